"""Pascal VOC: average precision of detections.

Follows `VOCevaldet.m` and `VOCap.m` of the devkit (Everingham et al. 2010, section 4.2): VOC 2010 and later by the area
under the monotone precision-recall curve, VOC 2007 by the mean of precision at eleven recalls. With ``kind="masks"``
the same rules hold for the IoU of masks, which is AP^r of Hariharan et al. 2014, section 5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numba import njit

from everymask.errors import InputError
from everymask.metrics.base import Cell, Curve, Metric, Table, category_indices, check_pair

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from everymask.types import Categories, Segments

RECALLS = (0.0, 0.1, 0.2, 3 * 0.1, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""The eleven recalls of VOC 2007 as MATLAB counts ``0:0.1:1``: the fourth is one bit above 0.3, so that a recall of
exactly 3 in 10 does not reach it."""
_POINTS = 1000
"""The longest curve that is handed to a plot."""


@dataclass(frozen=True, slots=True, eq=False)
class ImageRecord:
    """What is kept of one image, for the K categories whose objects are in it and the D detections that count.

    Args:
        name: The image.
        group: Kind of image.
        category: (K,) indices of the categories of its objects.
        positive: (K,) number of objects that are not difficult.
        difficult: (K,) number of those that are.
        detected: (D,) category indices of the detections in order of falling score, without those of difficult objects.
        score: (D,) their scores.
        correct: (D,) whether each is a true positive.
        ignored: Number of detections of difficult objects.
    """

    name: str
    group: str
    category: NDArray[np.int32]
    positive: NDArray[np.int64]
    difficult: NDArray[np.int64]
    detected: NDArray[np.int32]
    score: NDArray[np.float64]
    correct: NDArray[np.bool_]
    ignored: int


class VocMetric(Metric):
    """Average precision of each category, and its mean over the categories that have objects.

    The detections of a category, over all images, are taken in order of falling score. Each looks at the object of its
    category in its image with which it has the highest IoU (of equal ones, the first), whether that is taken or not:

    - IoU below the threshold, or an object that a better detection has taken: false positive;
    - a difficult object: the detection does not count, neither for nor against;
    - otherwise true positive.

    Difficult objects (attribute `difficult` of the truth) are not to be found. Crowd regions, which VOC does not have,
    are treated like them. Detections of equal score are taken in order of the names of their images, which is the order
    of the devkit's image lists, and within an image in the order in which they are given.

    The devkit's boxes name the first and the last pixel, so that a box is ``x1 - x0 + 1`` wide; `plus_one` computes
    with that width. It gives the official figures for boxes that were read as they stand. Where data and predictions
    were read with ``one_based=True``, `plus_one` has to be False, and the figures are the same.

    Args:
        categories: The classes of the data set.
        interpolation: ``"all"`` (VOC 2010 and later) or ``"11"`` (VOC 2007).
        threshold: The IoU from which a detection has found an object, above 0 and up to 1.
        plus_one: Whether a box from x0 to x1 is ``x1 - x0 + 1`` pixels wide (boxes only).
        kind: ``"boxes"`` or ``"masks"``.

    Raises:
        InputError: An option has another value.
    """

    def __init__(
        self,
        categories: Categories,
        interpolation: str = "all",
        threshold: float = 0.5,
        plus_one: bool = True,
        kind: str = "boxes",
    ) -> None:
        super().__init__(categories)
        self.interpolation = str(interpolation)
        self.threshold = float(threshold)
        self.plus_one = bool(plus_one)
        self.kind = kind
        if self.interpolation not in {"all", "11"}:
            raise InputError(f"interpolation: got {interpolation!r}, expected 'all' (VOC 2010) or '11' (VOC 2007)")
        if not 0 < self.threshold <= 1:
            raise InputError(f"threshold: got {threshold}, expected an IoU above 0 and up to 1, such as 0.5")
        if kind not in {"boxes", "masks"}:
            raise InputError(f"kind: got {kind!r}, expected 'boxes' or 'masks'")
        self.records: list[ImageRecord] = []

    def update(
        self,
        truth: Segments,
        prediction: Segments,
        name: str = "",
        group: str = "",
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Takes in one image; see `Metric.update`.

        Raises:
            InputError: Also if predictions have no score, or segments lack the boxes or masks that are compared.
        """
        check_pair(truth, prediction, name)
        true, found = (
            category_indices(segments, self.categories, role, name)
            for segments, role in ((truth, "truth"), (prediction, "prediction"))
        )
        if prediction.score is None and len(prediction):
            raise InputError(f"image {name!r}: the predictions have no scores, without which there is no precision "
                             "over recall; predict with scores")  # fmt: skip
        score = np.zeros(0) if prediction.score is None else prediction.score
        difficult = truth.crowd.copy()
        if "difficult" in truth.attributes:
            difficult |= truth.attributes["difficult"].astype(bool)
        order = np.argsort(-score, kind="stable")
        outcome = np.zeros(len(order), np.int8)
        if len(truth) and len(prediction):
            iou = self._iou(truth, prediction, name)
            outcome = _outcomes(iou[order], true, found[order], difficult, self.threshold)
        occurring = np.unique(true)
        count = len(self.categories)
        kept = outcome >= 0
        self.records.append(
            ImageRecord(
                name,
                group,
                occurring.astype(np.int32),
                np.bincount(true[~difficult], minlength=count)[occurring],
                np.bincount(true[difficult], minlength=count)[occurring],
                found[order][kept].astype(np.int32),
                score[order][kept],
                outcome[kept] > 0,
                int(np.count_nonzero(~kept)),
            )
        )

    def merge(self, other: Self) -> None:
        """Takes in all images of `other`; see `Metric.merge`."""
        settings = [
            (each.categories, each.interpolation, each.threshold, each.plus_one, each.kind) for each in (self, other)
        ]
        if settings[0] != settings[1]:
            raise InputError("VOC metrics of different categories or options cannot be merged; use the same for both")
        self.records.extend(other.records)

    def compute(self) -> dict[str, float]:
        """The figures over all images so far.

        - `map`: mean of the average precisions of the categories that have objects, in 0..1.
        - `ap/NAME`: average precision of each category; NaN without objects to be found.
        - `images`, `true_objects` (those to be found), `difficult_objects`, `predicted_objects`.
        """
        pool = _Pool(self.records, len(self.categories))
        precision = self._average_precisions(pool)
        return {
            "images": float(len(self.records)),
            "true_objects": float(pool.positive.sum()),
            "difficult_objects": float(pool.difficult.sum()),
            "predicted_objects": float(len(pool.score) + sum(each.ignored for each in self.records)),
            "map": _mean(precision),
            **{f"ap/{name}": value for name, value in zip(self.categories.names, precision, strict=True)},
        }

    def tables(self) -> list[Table]:
        """Average precision of each category, and of each kind of image if there is more than one."""
        pool = _Pool(self.records, len(self.categories))
        precision = self._average_precisions(pool)
        rows: list[tuple[Cell, ...]] = []
        for index, name in enumerate(self.categories.names):
            correct = pool.of_category(index)[0]
            found = int(np.count_nonzero(correct))
            true = int(pool.positive[index])
            recall = found / true if true else math.nan
            rows.append((name, precision[index], recall, true, int(pool.difficult[index]), found, len(correct) - found))
        columns = ("category", "AP", "recall", "true objects", "difficult objects", "found", "false positives")
        rule = "area under the curve" if self.interpolation == "all" else "eleven recalls"
        note = f"AP of {self.kind} at IoU {self.threshold:g}, {rule}."
        tables = [Table("Categories", columns, tuple(rows), note, "AP")]
        groups = sorted({each.group for each in self.records})
        if len(groups) > 1:
            kinds: list[tuple[Cell, ...]] = []
            for group in groups:
                records = [each for each in self.records if each.group == group]
                part = _Pool(records, len(self.categories))
                kinds.append((group, len(records), int(part.positive.sum()), _mean(self._average_precisions(part))))
            tables.append(Table("Kinds of image", ("kind", "images", "true objects", "mAP"), tuple(kinds), "", "mAP"))
        return tables

    def images(self) -> Table:
        """One row for each image, in order of names: objects, true and false positives, and the mAP of the image alone.

        The image's mAP is NaN where there is nothing to be found.
        """
        rows: list[tuple[Cell, ...]] = []
        for record in sorted(self.records, key=lambda each: (each.name, each.group)):
            found = int(np.count_nonzero(record.correct))
            single = _mean(self._average_precisions(_Pool([record], len(self.categories))))
            true, difficult = int(record.positive.sum()), int(record.difficult.sum())
            rows.append((record.name, record.group, true, difficult, found, len(record.correct) - found, single))
        columns = ("image", "kind", "true objects", "difficult objects", "found", "false positives", "mAP")
        return Table("Images", columns, tuple(rows), "", "mAP")

    def curves(self) -> list[Curve]:
        """Precision over recall of each category that has objects, at each true positive."""
        pool = _Pool(self.records, len(self.categories))
        curves = []
        for index, name in enumerate(self.categories.names):
            recall, precision = _recall_and_precision(*pool.of_category(index))
            # Between two true positives precision only falls, so the points at these say everything.
            shown = np.flatnonzero(np.diff(recall, prepend=0.0) > 0)
            if len(shown) and pool.positive[index]:
                if len(shown) > _POINTS:
                    shown = shown[np.linspace(0, len(shown) - 1, _POINTS).round().astype(np.int64)]
                curves.append(
                    Curve("Precision and recall", name, "recall", "precision", recall[shown], precision[shown])
                )
        return curves

    def _iou(self, truth: Segments, prediction: Segments, name: str) -> NDArray[np.float64]:
        """(D, G) intersection over union of every detection with every object."""
        try:
            if self.kind == "masks":
                from everymask.ops import rle

                found, true = prediction.rles(), truth.rles()
                shared = rle.overlaps(found.counts, found.offsets, true.counts, true.offsets)
                areas = [rle.areas(each.counts, each.offsets) for each in (found, true)]
                return shared / np.maximum(areas[0][:, None] + areas[1] - shared, 1)
            boxes = [np.ascontiguousarray(each.boxes()) for each in (prediction, truth)]
        except InputError as error:
            raise InputError(f"image {name!r} cannot be scored by {self.kind}: {error}") from error
        for each, role in zip(boxes, ("prediction", "truth"), strict=True):
            if each.shape[1] != 4 or not np.isfinite(each).all():
                raise InputError(
                    f"image {name!r}: the {role} has boxes that are not four finite numbers (x0, y0, x1, y1); mend it"
                )
        return _box_iou(boxes[0], boxes[1], 1.0 if self.plus_one else 0.0)

    def _average_precisions(self, pool: _Pool) -> list[float]:
        rule = area_under_curve if self.interpolation == "all" else eleven_point_mean
        return [
            rule(*_recall_and_precision(*pool.of_category(index))) if pool.positive[index] else math.nan
            for index in range(len(self.categories))
        ]


class _Pool:
    """The detections of all images, by category and falling score.

    Args:
        records: In any order; that of names decides between equal scores.
        count: K, the number of categories.
    """

    def __init__(self, records: Sequence[ImageRecord], count: int) -> None:
        records = sorted(records, key=lambda each: (each.name, each.group))
        self.positive = np.zeros(count, np.int64)
        self.difficult = np.zeros(count, np.int64)
        for each in records:
            self.positive[each.category] += each.positive
            self.difficult[each.category] += each.difficult
        detected = np.concatenate([np.zeros(0, np.int32), *(each.detected for each in records)])
        score = np.concatenate([np.zeros(0), *(each.score for each in records)])
        # lexsort is stable: what has the same category and score stays in order of images and, within them, as given.
        order = np.lexsort((-score, detected))
        self.score = score[order]
        self._correct = np.concatenate([np.zeros(0, bool), *(each.correct for each in records)])[order]
        self._ends = np.searchsorted(detected[order], np.arange(count + 1))

    def of_category(self, index: int) -> tuple[NDArray[np.bool_], int]:
        """Whether each detection of a category is right, the best first; and the number of its objects."""
        return self._correct[self._ends[index] : self._ends[index + 1]], int(self.positive[index])


def area_under_curve(recall: NDArray[np.float64], precision: NDArray[np.float64]) -> float:
    """Average precision of VOC 2010 and later: the area under the curve, precision made to fall monotonically.

    Args:
        recall: (D,) rising, in 0..1.
        precision: (D,) in 0..1.
    """
    envelope = np.maximum.accumulate(np.append(precision, 0.0)[::-1])[::-1]
    return math.fsum(np.diff(recall, prepend=0.0) * envelope[:-1])


def eleven_point_mean(recall: NDArray[np.float64], precision: NDArray[np.float64]) -> float:
    """Average precision of VOC 2007: the mean, over eleven recalls, of the highest precision from there on.

    Args:
        recall: (D,) rising, in 0..1.
        precision: (D,) in 0..1.
    """
    envelope = np.maximum.accumulate(np.append(precision, 0.0)[::-1])[::-1]
    return math.fsum(envelope[np.searchsorted(recall, RECALLS)]) / len(RECALLS)


def _recall_and_precision(correct: NDArray[np.bool_], positive: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(D,) each, after the first, the first two ... detections."""
    hits = np.cumsum(correct, dtype=np.float64)
    return hits / max(positive, 1), hits / np.arange(1, len(correct) + 1)


@njit(cache=True, nogil=True)
def _box_iou(
    found: NDArray[np.float64], true: NDArray[np.float64], extra: float
) -> NDArray[np.float64]:  # pragma: no cover - compiled
    """(D, G) IoU of boxes that are ``x1 - x0 + extra`` wide, in the devkit's order of operations."""
    iou = np.zeros((len(found), len(true)))
    for d in range(len(found)):
        for g in range(len(true)):
            width = min(found[d, 2], true[g, 2]) - max(found[d, 0], true[g, 0]) + extra
            height = min(found[d, 3], true[g, 3]) - max(found[d, 1], true[g, 1]) + extra
            if width > 0 and height > 0:
                shared = width * height
                area = (found[d, 2] - found[d, 0] + extra) * (found[d, 3] - found[d, 1] + extra)
                other = (true[g, 2] - true[g, 0] + extra) * (true[g, 3] - true[g, 1] + extra)
                iou[d, g] = shared / (area + other - shared)
    return iou


@njit(cache=True, nogil=True)
def _outcomes(
    iou: NDArray[np.float64],
    true: NDArray[np.int64],
    found: NDArray[np.int64],
    difficult: NDArray[np.bool_],
    threshold: float,
) -> NDArray[np.int8]:  # pragma: no cover - compiled
    """(D,) 1 for true and 0 for false positives, -1 for detections of difficult objects; rows by falling score."""
    outcome = np.zeros(len(found), np.int8)
    taken = np.zeros(len(true), np.bool_)
    for d in range(len(found)):
        best, highest = -1, 0.0
        for g in range(len(true)):
            if true[g] == found[d] and iou[d, g] > highest:
                best, highest = g, iou[d, g]
        if best < 0 or highest < threshold:
            continue
        if difficult[best]:
            outcome[d] = -1
        elif not taken[best]:
            taken[best] = True
            outcome[d] = 1
    return outcome


def _mean(values: Sequence[float]) -> float:
    """The mean of what is not NaN; NaN if nothing is left."""
    left = [each for each in values if not math.isnan(each)]
    return math.fsum(left) / len(left) if left else math.nan
