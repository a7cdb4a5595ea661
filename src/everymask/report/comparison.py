"""Pictures for the report of an evaluation: truth beside prediction, what is right in blue, what is wrong in orange."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from everymask.errors import InputError
from everymask.report import page
from everymask.report.overlay import draw_overlay, suggested_magnification

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from everymask.metrics import Table
    from everymask.types import Dataset, Sample, Segments

HIT, MISS = (70, 170, 255), (255, 140, 0)
LEGEND = (
    "Truth left, prediction right. Blue: matched (IoU above 0.5). "
    "Orange: missed (left) or predicted where nothing is, or too different (right)."
)


def worst_images(content: Table, data: Dataset, predict: Callable[[Sample], Segments], count: int) -> list[str]:
    """Pictures of the images with the lowest figure in the column `Table.judge`, as HTML.

    Args:
        content: One row for each image, its name first.
        data: The truth.
        predict: The prediction for a sample.
        count: The most pictures.
    """
    if content.judge not in content.columns:
        return []
    column = content.columns.index(content.judge)
    rows = sorted(
        (row for row in content.rows if math.isfinite(float(row[column]))), key=lambda row: float(row[column])
    )
    wanted = {str(row[0]) for row in rows[:count]}
    samples = {sample.name: sample for sample in data if sample.name in wanted} if wanted else {}
    made = []
    for row in rows[:count]:
        sample = samples[str(row[0])]
        truth = sample.segments
        if truth is None:
            continue
        try:
            image = sample.image
        except InputError:
            continue  # figures need no images, so the data set may be without
        prediction = predict(sample)
        place = ""
        if len(truth.size) == 3:
            middle = truth.size[0] // 2
            image, truth, prediction = image[middle], truth.plane(middle), prediction.plane(middle)
            place = f", plane {middle}"
        caption = f"{sample.name}{place}: {content.judge} {page.cell(row[column])}"
        text = f"{len(truth)} segments annotated, {len(prediction)} predicted"
        made.append(page.picture(compared(image, truth, prediction), caption, text))
    return made


def compared(image: NDArray[Any], truth: Segments, prediction: Segments, side: int = 512) -> NDArray[np.uint8]:
    """Overlays of truth (left) and prediction (right), (h, w, 3), each at most `side` pixels high and wide.

    Objects of either that overlap one of the other with an IoU above 0.5 are drawn in blue, the others in orange.

    Args:
        image: (H, W, C).
        truth: Of the same size.
        prediction: Likewise.
        side: In pixels.
    """
    from everymask.report.picture import resized

    magnify = suggested_magnification(truth.size, side)
    halves = [
        draw_overlay(image, each, colours=np.where(hit[:, None], HIT, MISS).astype(np.uint8), magnify=magnify)
        for each, hit in zip((truth, prediction), matches(truth, prediction), strict=True)
    ]
    share = min(1.0, side / max(halves[0].shape[:2]))
    if share < 1:
        height, width = (max(1, round(share * each)) for each in halves[0].shape[:2])
        halves = [resized(each, height, width) for each in halves]
    gap = np.full((halves[0].shape[0], 6, 3), 128, np.uint8)
    return np.hstack([halves[0], gap, halves[1]])


def matches(
    truth: Segments, prediction: Segments, threshold: float = 0.5
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(N,) which objects of the truth, and (M,) of the prediction, overlap one of the other with IoU > `threshold`.

    From 0.5 on an object has at most one such partner, so that no assignment is needed. Categories are not looked at.
    Where one of the two has boxes only, boxes are compared; tags of whole images match by category.
    """
    if not (truth.has_boxes and prediction.has_boxes):
        return np.isin(truth.category, prediction.category), np.isin(prediction.category, truth.category)
    if truth.geometry is None or prediction.geometry is None:
        from everymask.ops.boxes import box_iou

        near = box_iou(truth.boxes(), prediction.boxes(), pairwise=True) > threshold
        return np.any(near, axis=1), np.any(near, axis=0)
    from everymask.ops.labels import label_overlap

    maps = [each.label_map("last") for each in (truth, prediction)]
    first, second, shared = label_overlap(*maps)
    both = (first > 0) & (second > 0)
    first, second, shared = first[both] - 1, second[both] - 1, shared[both]
    counts = (len(truth), len(prediction))
    areas = [
        np.bincount(np.maximum(ids, 0).ravel(), minlength=n + 1)[1:]
        for ids, n in zip(maps, map(len, (truth, prediction)), strict=True)
    ]
    good = shared > threshold * (areas[0][first] + areas[1][second] - shared)
    hits = np.zeros(counts[0], bool), np.zeros(counts[1], bool)
    hits[0][first[good]] = True
    hits[1][second[good]] = True
    return hits
