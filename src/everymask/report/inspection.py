"""What is in a data set, and what looks like a mistake in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from everymask.errors import InputError

if TYPE_CHECKING:
    from everymask.types import Dataset, Sample, Segments

TINY = 4
"""Objects of fewer pixels are taken for slips of the pen."""
FLAT = 1e-9


def inspect_dataset(data: Dataset, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Counts and findings of a data set, as JSON values. Reads every image and annotation, one at a time.

    Args:
        data: The data set.
        progress: Called with (images done, images in all).

    Returns:
        ``format``, ``images``, ``annotated``, ``tasks``; ``categories``, each with ``id``, ``name``, ``objects``,
        ``images`` and in pixels ``median_area``, ``smallest_area``, ``largest_area``; ``sizes``, ``types`` and
        ``channels`` (value -> number of images); ``objects_in_an_image`` (text: smallest, median, largest) and
        ``findings`` (sentences that name the image).
    """
    sizes: Counter[str] = Counter()
    types: Counter[str] = Counter()
    channels: Counter[str] = Counter()
    areas: dict[int, list[np.ndarray[Any, Any]]] = {each.id: [] for each in data.categories}
    counts: list[int] = []
    findings: list[str] = []
    for number, sample in enumerate(data, 1):
        try:
            image, segments = sample.read_image(), sample.segments
        except InputError as error:
            findings.append(str(error))
            image, segments = None, None
        if image is not None:
            sizes["x".join(map(str, image.shape[:-1]))] += 1
            types[image.dtype.name] += 1
            channels[str(image.shape[-1])] += 1
            findings += _image_findings(sample, image)
            if sample.read_segments is None:
                findings.append(f"{sample.name}: no annotation")
        if segments is not None:
            counts.append(len(segments))
            findings += _segment_findings(sample, segments, None if image is None else image.shape[:-1])
            if segments.has_boxes:
                area = segments.areas()
                for identifier in np.unique(segments.category):
                    areas.setdefault(int(identifier), []).append(area[segments.category == identifier])
        if progress is not None:
            progress(number, len(data))
    categories = []
    for each in data.categories:
        joined = np.concatenate(areas[each.id]) if areas[each.id] else np.zeros(0, np.int64)
        figures = [float(function(joined)) if len(joined) else 0.0 for function in (np.median, np.min, np.max)]
        categories.append(
            {
                "id": each.id,
                "name": each.name,
                "objects": len(joined),
                "images": len(areas[each.id]),
                "median_area": round(figures[0]),
                "smallest_area": round(figures[1]),
                "largest_area": round(figures[2]),
            }
        )
        if not len(joined):
            findings.append(f"category {each.name!r} occurs in no image")
    if len(types) > 1:
        findings.append(f"images have different number types: {_listed(types)}")
    return {
        "format": data.format,
        "images": len(data),
        "annotated": len(counts),
        "tasks": sorted(data.tasks),
        "categories": categories,
        "sizes": dict(sizes),
        "types": dict(types),
        "channels": dict(channels),
        "objects_in_an_image": _spread(counts),
        "findings": findings,
    }


def _image_findings(sample: Sample, image: np.ndarray[Any, Any]) -> list[str]:
    """What is odd about the pixels."""
    if not image.size:
        return [f"{sample.name}: the image has no pixels"]
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        wrong = int(np.count_nonzero(~np.isfinite(image)))
        return [f"{sample.name}: {wrong} pixel values are NaN or infinite"]
    low, high = float(image.min()), float(image.max())
    if high - low < FLAT:
        return [f"{sample.name}: every pixel has the value {low:g}"]
    return []


def _segment_findings(sample: Sample, segments: Segments, size: tuple[int, ...] | None) -> list[str]:
    """What is odd about the annotation of an image."""
    made = []
    if size is not None and segments.size != size:
        made.append(f"{sample.name}: the image has size {size}, its annotation {segments.size}")
    if not len(segments):
        made.append(f"{sample.name}: annotated, but without any object")
    if segments.geometry is None or not len(segments):
        return made
    areas = segments.areas()
    if empty := int(np.count_nonzero(areas == 0)):
        made.append(f"{sample.name}: {empty} objects have no pixels")
    if tiny := int(np.count_nonzero((areas > 0) & (areas < TINY))):
        made.append(f"{sample.name}: {tiny} objects have fewer than {TINY} pixels")
    boxes, count = np.unique(np.round(segments.boxes()[areas > 0], 2), axis=0, return_counts=True)
    del boxes
    if len(segments.size) == 2 and (double := int(np.count_nonzero(count > 1))):
        made.append(f"{sample.name}: {double} boxes are there more than once, perhaps objects annotated twice")
    return made


def _spread(counts: list[int]) -> str:
    if not counts:
        return "none"
    return f"{min(counts)} to {max(counts)}, median {int(np.median(counts))}, {sum(counts):,} in all"


def _listed(counter: Counter[str]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in counter.most_common())
