"""Panoptic quality (Kirillov et al., "Panoptic Segmentation", CVPR 2019).

Follows COCO's official program, `panopticapi.evaluation.pq_compute`: PQ, SQ and RQ of every category, and their means
over all categories, over things and over stuff.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from everymask.errors import InputError
from everymask.metrics.base import Cell, Metric, Table, category_indices, check_pair, label_map
from everymask.types.geometry import LabelMap
from everymask.types.label_runs import LabelRuns

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from everymask.types import Categories, Segments

_PARTS = {"": "All", "_things": "Things", "_stuff": "Stuff"}
"""Ends of the names of figures, and titles of the rows of the first table."""
_TABLE = 2**20
"""Pairs of segments for which a table is made; beyond that, pairs that meet are hashed."""


@dataclass(frozen=True, slots=True, eq=False)
class ImageRecord:
    """What is kept of one image, for the K categories that occur in it.

    Args:
        name: The image.
        group: Kind of image.
        category: (K,) indices of the categories.
        matched: (K,) true positives.
        spurious: (K,) false positives.
        missed: (K,) false negatives.
        iou: (K,) sum of the IoU of true positives.
        void: Pixels of the truth that no segment covers.
        pixels: All pixels.
        misstated: Segments of the truth whose attribute ``area`` is not their number of pixels.
    """

    name: str
    group: str
    category: NDArray[np.int64]
    matched: NDArray[np.int64]
    spurious: NDArray[np.int64]
    missed: NDArray[np.int64]
    iou: NDArray[np.float64]
    void: int
    pixels: int
    misstated: int


@dataclass(frozen=True, slots=True, eq=False)
class _Quality:
    """Figures of the C categories: counts (C,), and PQ, SQ, RQ (C,), NaN for a category that occurs nowhere."""

    matched: NDArray[np.int64]
    spurious: NDArray[np.int64]
    missed: NDArray[np.int64]
    pq: NDArray[np.float64]
    sq: NDArray[np.float64]
    rq: NDArray[np.float64]

    def means(self, chosen: NDArray[np.bool_]) -> tuple[float, float, float, int]:
        """PQ, SQ and RQ, averaged over those of the `chosen` categories that occur; and how many these are."""
        occurring = chosen & ~np.isnan(self.pq)
        count = int(occurring.sum())
        if not count:
            return math.nan, math.nan, math.nan, 0
        pq, sq, rq = (math.fsum(each[occurring]) / count for each in (self.pq, self.sq, self.rq))
        return pq, sq, rq, count


class PanopticMetric(Metric):
    """Panoptic quality: recognition and segmentation of things and stuff in one figure.

    A true and a predicted segment of one category match if IoU > 0.5, which gives each at most one partner. With TP
    matched pairs, FP predicted and FN true segments left over: SQ = mean IoU of matched pairs (0 if TP = 0), RQ =
    TP / (TP + FP/2 + FN/2), PQ = SQ * RQ. A category with TP + FP + FN = 0 has NaN (the official program prints 0) and
    is left out of the means, there as here.

    - Void pixels of the truth are no part of the union of a pair. Void is whatever no segment of the truth covers: in
      COCO's files id 0, in `Segments` both void (-1) and background (0). Objects on a background that counts, as in
      microscopy, are the business of the protocol "matching".
    - Crowd segments of the truth match nothing and are not missed.
    - A predicted segment without a partner is no false positive if more than half of it lies on void and on the crowd
      segment of its category (of several in an image the last one, as in the official program).
    - A segment of the truth without pixels is missed, as in the official program. A predicted one without pixels, which
      that program refuses, can only be one that lies under others here, and does not exist.
    - Where segments overlap, a pixel goes to the higher score, or without scores to the later segment.
    - Areas are counted. The official program takes those of the truth from its JSON, where they are the same unless the
      JSON is wrong; `given_areas` does likewise, and a note under the table tells whether it would matter.

    Args:
        categories: The classes of the data set; `Category.is_thing` parts things from stuff.
        given_areas: Take the areas of the truth from its attribute ``area``, where there is one.
    """

    def __init__(self, categories: Categories, given_areas: bool = False) -> None:
        super().__init__(categories)
        self.given_areas = bool(given_areas)
        self.records: list[ImageRecord] = []

    def update(
        self,
        truth: Segments,
        prediction: Segments,
        name: str = "",
        group: str = "",
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Takes in one image; see `Metric.update`."""
        check_pair(truth, prediction, name)
        true_category = category_indices(truth, self.categories, "truth", name)
        predicted_category = category_indices(prediction, self.categories, "prediction", name)
        # Number 0 stands for void in the truth and for "no segment" in the prediction, segment i for i + 1.
        true, predicted, shared = _overlaps(truth, prediction, name)
        true, predicted = np.maximum(true, 0), np.maximum(predicted, 0)
        true_area = _sums(true, shared, len(truth) + 1)
        predicted_area = _sums(predicted, shared, len(prediction) + 1)
        on_void = _sums(predicted[true == 0], shared[true == 0], len(prediction) + 1)
        pixels, void = int(shared.sum()), int(true_area[0])
        misstated = 0
        if "area" in truth.attributes and isinstance(truth.geometry, LabelMap):
            given = truth.attributes["area"].astype(np.float64)
            misstated = int((given != true_area[1:]).sum())
            if self.given_areas:
                true_area = np.where(np.isnan(given), true_area[1:], given)
                true_area = np.concatenate([[void], true_area])

        pair = (true > 0) & (predicted > 0)
        true, predicted, shared = true[pair], predicted[pair], shared[pair]
        same = true_category[true - 1] == predicted_category[predicted - 1]
        true, predicted, shared = true[same], predicted[same], shared[same]
        crowd = truth.crowd[true - 1]
        union = predicted_area[predicted] + true_area[true] - shared - on_void[predicted]
        with np.errstate(divide="ignore"):  # a wrong area that was given can make it 0
            iou = shared / union
        match = ~crowd & (iou > 0.5)

        missed = ~truth.crowd
        missed[true[match] - 1] = False
        # The crowd segment of each category that counts is the last one.
        crowds = np.zeros(len(self.categories), np.int64)
        for number in np.flatnonzero(truth.crowd):
            crowds[true_category[number]] = number + 1
        counts = crowd & (true == crowds[true_category[true - 1]])
        ignored = on_void + _sums(predicted[counts], shared[counts], len(prediction) + 1)
        spurious = (predicted_area > 0) & (2 * ignored <= predicted_area)
        spurious[predicted[match]] = False

        size = len(self.categories)
        matches = true_category[true[match] - 1]
        columns = (
            np.bincount(matches, minlength=size),
            np.bincount(predicted_category[spurious[1:]], minlength=size),
            np.bincount(true_category[missed], minlength=size),
        )
        sums = np.bincount(matches, weights=iou[match], minlength=size).astype(np.float64)
        found = np.flatnonzero(columns[0] + columns[1] + columns[2])
        tp, fp, fn = (each[found] for each in columns)
        self.records.append(ImageRecord(name, group, found, tp, fp, fn, sums[found], void, pixels, misstated))

    def merge(self, other: Self) -> None:
        """Takes in all images of `other`; see `Metric.merge`."""
        if (other.categories, other.given_areas) != (self.categories, self.given_areas):
            raise InputError(
                "panoptic metrics of different categories or with different options cannot be merged; use the same for "
                "both"
            )
        self.records.extend(other.records)

    def compute(self) -> dict[str, float]:
        """The figures, all but the counts in 0..1.

        - `images`; `pq`, `sq`, `rq`: means over the `categories` that occur.
        - `pq_things`, `sq_things`, `rq_things`, `categories_things`: of things alone; `..._stuff`: of stuff alone.
        - `pq/NAME`, `sq/NAME`, `rq/NAME` of each category. NaN where nothing is to be scored.
        """
        quality = self._quality(self.records)
        figures = {"images": float(len(self.records))}
        for end, chosen in self._parts().items():
            pq, sq, rq, count = quality.means(chosen)
            figures |= {f"pq{end}": pq, f"sq{end}": sq, f"rq{end}": rq, f"categories{end}": float(count)}
        for index, name in enumerate(self.categories.names):
            figures |= {f"{each}/{name}": float(getattr(quality, each)[index]) for each in ("pq", "sq", "rq")}
        return figures

    def tables(self) -> list[Table]:
        """All, things and stuff; every category; and the kinds of image if there are several."""
        quality = self._quality(self.records)
        means = {_PARTS[end]: quality.means(chosen) for end, chosen in self._parts().items()}
        tables = [
            Table(
                "Panoptic quality",
                ("part", "PQ", "SQ", "RQ", "categories"),
                tuple((title, *row) for title, row in means.items()),
                self._note(),
            )
        ]
        rows: list[tuple[Cell, ...]] = []
        for i, each in enumerate(self.categories):
            figures = (float(quality.pq[i]), float(quality.sq[i]), float(quality.rq[i]))
            counts = (int(quality.matched[i]), int(quality.spurious[i]), int(quality.missed[i]))
            rows.append((each.name, "thing" if each.is_thing else "stuff", *figures, *counts))
        columns = ("category", "part", "PQ", "SQ", "RQ", "TP", "FP", "FN")
        tables.append(Table("Categories", columns, tuple(rows), judge="PQ"))
        groups = sorted({each.group for each in self.records})
        if len(groups) > 1:
            kinds: list[tuple[Cell, ...]] = []
            for group in groups:
                records = [each for each in self.records if each.group == group]
                kinds.append((group, len(records), *self._quality(records).means(self._parts()[""])))
            columns = ("kind", "images", "PQ", "SQ", "RQ", "categories")
            tables.append(Table("Kinds of image", columns, tuple(kinds), judge="PQ"))
        return tables

    def images(self) -> Table:
        """One row for each image, in order of names: PQ, SQ and RQ as if it were the only one, and the counts."""
        rows: list[tuple[Cell, ...]] = []
        everything = self._parts()[""]
        for record in sorted(self.records, key=lambda each: each.name):
            pq, sq, rq, _ = self._quality([record]).means(everything)
            counts = (int(each.sum()) for each in (record.matched, record.spurious, record.missed))
            rows.append((record.name, record.group, pq, sq, rq, *counts))
        return Table("Images", ("image", "kind", "PQ", "SQ", "RQ", "TP", "FP", "FN"), tuple(rows), judge="PQ")

    def _parts(self) -> dict[str, NDArray[np.bool_]]:
        """Which categories (C,) belong to each of `_PARTS`."""
        things = np.array([each.is_thing for each in self.categories], dtype=np.bool_)
        return {"": np.ones(len(things), np.bool_), "_things": things, "_stuff": ~things}

    def _quality(self, records: Sequence[ImageRecord]) -> _Quality:
        """The figures of some images together."""
        size = len(self.categories)
        counts = np.zeros((3, size), np.int64)
        shares: list[list[float]] = [[] for _ in range(size)]
        for each in records:
            counts[:, each.category] += (each.matched, each.spurious, each.missed)
            for index, share in zip(each.category.tolist(), each.iou.tolist(), strict=True):
                shares[index].append(share)
        # fsum is exactly rounded, so the order of images and processes leaves no trace in the last bit.
        iou = np.array([math.fsum(each) for each in shares])
        matched, spurious, missed = counts
        below = matched + 0.5 * spurious + 0.5 * missed
        with np.errstate(divide="ignore", invalid="ignore"):
            pq, rq = iou / below, matched / below
            sq = np.where(matched > 0, iou / matched, np.where(below > 0, 0.0, math.nan))
        return _Quality(matched, spurious, missed, pq, sq, rq)

    def _note(self) -> str:
        """What a reader of the figures may have to know."""
        notes = []
        pixels, void = sum(each.pixels for each in self.records), sum(each.void for each in self.records)
        if void:
            notes.append(f"{void / pixels:.1%} of the pixels are void in the truth.")
        if misstated := sum(each.misstated for each in self.records):
            used = "which was taken (given_areas)" if self.given_areas else "which the official program would take"
            notes.append(f"{misstated} segments of the truth state another area than they have, {used}.")
        return " ".join(notes)


def _overlaps(
    truth: Segments, prediction: Segments, name: str
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Labels of the truth and of the prediction that meet, and the pixels in which they do, (P,) each, sorted."""
    a, b = truth.geometry, prediction.geometry
    if isinstance(a, LabelRuns) and isinstance(b, LabelRuns) and len(truth) * len(prediction) < _TABLE:
        from everymask.ops.label_runs import joint_runs

        return joint_runs(a.starts, a.labels, b.starts, b.labels)
    from everymask.ops.labels import label_overlap

    return label_overlap(label_map(truth, "truth", name), label_map(prediction, "prediction", name))


def _sums(numbers: NDArray[np.int64], weights: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """(size,) sum of the weights of each number."""
    sums = np.zeros(size, np.int64)
    np.add.at(sums, numbers, weights)
    return sums
