"""Distances between surfaces: Hausdorff distance, average surface distance and normalised surface Dice.

For images and volumes, of whole categories or of single objects. What a surface is and how the figures are defined, and
which programs agree, is said in `everymask.ops.surfaces`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_args

import numpy as np

from everymask.errors import InputError, unknown_name
from everymask.metrics.base import Cell, Metric, Table, category_indices, check_pair, label_map
from everymask.metrics.boundary import class_maps
from everymask.ops.labels import label_overlap
from everymask.ops.surfaces import checked_spacing, point_distances, surface_points
from everymask.types.geometry import VOID

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from everymask.types import Categories, Segments

Each = Literal["category", "object"]

_COUNTS = ("pairs", "missing", "spurious")


@dataclass(frozen=True, slots=True, eq=False)
class _Image:
    """What is kept of one image.

    Args:
        name: The image.
        group: Kind of image.
        category: (P,) category index of each pair of surfaces.
        figures: (P, 4) Hausdorff distance, the same by percentile, average surface distance, surface Dice.
        missing: (M,) category index of each surface of the truth without counterpart.
        spurious: (S,) likewise of the prediction.
    """

    name: str
    group: str
    category: NDArray[np.int64]
    figures: NDArray[np.float64]
    missing: NDArray[np.int64]
    spurious: NDArray[np.int64]


class SurfaceMetric(Metric):
    """Hausdorff distance, its percentile, average symmetric surface distance and normalised surface Dice.

    Surfaces are compared in pairs: with ``each="category"`` all that an image holds of a category in truth and
    prediction, with ``each="object"`` a true object (of things) and the predicted one of its category that overlaps it
    with an IoU above `iou`, of which there is one at most. A figure of a category is the mean over its pairs in all
    images, a headline figure is the mean over the categories that have one.

    What lacks a counterpart has no distance, and is counted as missing (truth) or spurious (prediction) instead: read
    distances together with these counts. Surface Dice knows it: a category that is in one of both only scores 0 in that
    image. (Among objects it, too, is of pairs alone.)

    Void pixels of the truth, and with ``each="object"`` its crowd regions, are removed from truth and prediction first.
    The border of the image is a surface. A category called "background" has no surface of its own. Where segments
    overlap, the higher score wins, or the later one without scores.

    Args:
        categories: The classes of the data set.
        each: ``"category"`` or ``"object"``: what has a surface.
        tolerance: Distance that surface Dice forgives, in pixels or in the unit of `spacing`.
        percentile: That of the robust Hausdorff distance, above 0 and up to 100.
        spacing: Size of a pixel along each axis, (y, x) or (z, y, x); distances are in its unit. Pixels if not given.
        iou: Overlap above which objects are a pair, .5 or more and below 1, so that pairs are unique.

    Raises:
        InputError: An option has no good value, or objects are asked for and no category is a thing.
    """

    # The classes without a training id are those that the benchmark ignores.
    reading: ClassVar[Mapping[str, Mapping[str, Any]]] = {"cityscapes": {"labels": "train"}}

    def __init__(
        self,
        categories: Categories,
        each: Each = "category",
        tolerance: float = 1.0,
        percentile: float = 95.0,
        spacing: Sequence[float] | None = None,
        iou: float = 0.5,
    ) -> None:
        super().__init__(categories)
        if each not in get_args(Each):
            raise unknown_name("each", each, get_args(Each))
        if not 0 <= tolerance < math.inf:
            raise InputError(f"tolerance: got {tolerance}, expected a distance of 0 or more, such as 1")
        if not 0 < percentile <= 100:
            raise InputError(f"percentile: got {percentile}, expected a number above 0 and up to 100, such as 95")
        if not 0.5 <= iou < 1:
            raise InputError(f"iou: got {iou}, expected at least 0.5 and below 1: below 0.5 pairs are not unique")
        if each == "object" and not any(category.is_thing for category in categories):
            raise InputError("no category is a thing, so there are no objects; use each='category'")
        self.each: Each = each
        self.tolerance = float(tolerance)
        self.percentile = float(percentile)
        self.spacing = None if spacing is None else checked_spacing(spacing, 3 if len(tuple(spacing)) == 3 else 2)
        self.iou = float(iou)
        self._names = ("hausdorff", f"hausdorff{self.percentile:g}", "average_surface_distance", "surface_dice")
        self._images: list[_Image] = []

    def update(
        self,
        truth: Segments,
        prediction: Segments,
        name: str = "",
        group: str = "",
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Takes in one image or volume; see `Metric.update`."""
        check_pair(truth, prediction, name)
        try:
            spacing = checked_spacing(self.spacing, len(truth.size))
        except InputError as error:
            raise InputError(f"image {name!r}: {error}") from error
        if self.each == "category":
            true_ids, ids = (each + 1 for each in class_maps(truth, prediction, self.categories, name))
            kinds = true_kinds = np.arange(len(self.categories))
            shown = np.array([each.casefold() != "background" for each in self.categories.names], np.bool_)
            present = [_present(each, len(kinds)) & shown for each in (true_ids, ids)]
            first = second = np.flatnonzero(present[0] & present[1])
            missing, spurious = (np.flatnonzero(here & ~there) for here, there in (present, present[::-1]))
        else:
            true_ids, ids, true_kinds, kinds = self._objects(truth, prediction, name)
            first, second = self._pairs(true_ids, ids, true_kinds, kinds)
            missing, spurious = (
                np.setdiff1d(np.flatnonzero(_present(each, len(own)) & (own >= 0)), paired)
                for each, own, paired in ((true_ids, true_kinds, first), (ids, kinds, second))
            )
        figures = np.zeros((len(first), len(self._names)))
        if len(first):
            true_points, true_starts = surface_points(true_ids, len(true_kinds))
            points, starts = surface_points(ids, len(kinds))
            for row, (t, p) in enumerate(zip(first.tolist(), second.tolist(), strict=True)):
                distances = point_distances(
                    true_points[true_starts[t] : true_starts[t + 1]], points[starts[p] : starts[p + 1]], spacing
                )
                robust = distances.hausdorff(self.percentile)
                figures[row] = distances.hausdorff(), robust, distances.average(), distances.dice(self.tolerance)
        self._images.append(_Image(name, group, true_kinds[first], figures, true_kinds[missing], kinds[spurious]))

    def merge(self, other: Self) -> None:
        """Takes in all images of `other`; see `Metric.merge`."""
        if self._settings() != other._settings():
            raise InputError("surface metrics of different categories or options cannot be merged; use the same")
        self._images += other._images

    def compute(self) -> dict[str, float]:
        """The figures over all images so far.

        `hausdorff`, `hausdorff95` (named after the percentile), `average_surface_distance`, in pixels or in the unit of
        `spacing`, `surface_dice` in 0..1: means over categories, and those of each category as ``hausdorff/NAME`` and
        so on; NaN where there is no pair. `images`, `pairs`, `missing`, `spurious`: counts.
        """
        columns, counts = self._per_category(self._images)
        figures = {"images": float(len(self._images))}
        figures |= {name: float(each.sum()) for name, each in counts.items()}
        figures |= {name: _mean(each) for name, each in columns.items()}
        for name, each in columns.items():
            values = zip(self.categories.names, each, strict=True)
            figures |= {f"{name}/{category}": float(value) for category, value in values}
        return figures

    def tables(self) -> list[Table]:
        """Figures of each category, and of each kind of image if there is more than one."""
        columns, counts = self._per_category(self._images)
        rows: list[tuple[Cell, ...]] = [
            (
                name,
                *(int(each[k]) for each in counts.values()),
                *(float(each[k]) for each in columns.values()),
            )
            for k, name in enumerate(self.categories.names)
        ]
        note = "Distances are of pairs; what is missing or spurious has none."
        titles = self._titles()
        tables = [Table("Categories", ("category", *titles), tuple(rows), note, "surface dice")]
        groups = sorted({each.group for each in self._images})
        if len(groups) > 1:
            kinds: list[tuple[Cell, ...]] = []
            for group in groups:
                images = [each for each in self._images if each.group == group]
                columns, counts = self._per_category(images)
                sums = (int(each.sum()) for each in counts.values())
                kinds.append((group, len(images), *sums, *(_mean(each) for each in columns.values())))
            tables.append(Table("Kinds of image", ("kind", "images", *titles), tuple(kinds), note, "surface dice"))
        return tables

    def images(self) -> Table:
        """One row for each image, in order of names: means over the categories that it holds."""
        rows: list[tuple[Cell, ...]] = []
        for image in sorted(self._images, key=lambda each: each.name):
            columns, counts = self._per_category([image])
            sums = (int(each.sum()) for each in counts.values())
            rows.append((image.name, image.group, *sums, *(_mean(each) for each in columns.values())))
        return Table("Images", ("image", "kind", *self._titles()), tuple(rows), judge="surface dice")

    def _titles(self) -> tuple[str, ...]:
        return *_COUNTS, *(each.replace("_", " ") for each in self._names)

    def _settings(self) -> tuple[Any, ...]:
        return self.categories, self.each, self.tolerance, self.percentile, self.spacing, self.iou

    def _objects(
        self, truth: Segments, prediction: Segments, name: str
    ) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
        """Label maps of truth and prediction without void and crowds, and category indices, -1 for stuff and crowds."""
        things = np.array([each.is_thing for each in self.categories], np.bool_)
        maps: list[NDArray[np.int32]] = []
        kinds: list[NDArray[np.int64]] = []
        for segments, role in ((truth, "truth"), (prediction, "prediction")):
            indices = category_indices(segments, self.categories, role, name)
            kinds.append(np.where(things[indices], indices, -1))
            maps.append(label_map(segments, role, name).copy())
        kinds[0][truth.crowd] = -1
        ignored = np.concatenate([[True, False], truth.crowd])[np.maximum(maps[0], VOID) + 1]
        for ids in maps:
            ids[ignored] = 0
        return maps[0], maps[1], kinds[0], kinds[1]

    def _pairs(
        self,
        true_ids: NDArray[np.int32],
        ids: NDArray[np.int32],
        true_kinds: NDArray[np.int64],
        kinds: NDArray[np.int64],
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Numbers of the true and the predicted objects that are pairs, in order of the true ones."""
        a, b, shared = label_overlap(true_ids, ids)
        true_areas, areas = (
            np.bincount(np.maximum(each, 0), shared, len(own) + 1) for each, own in ((a, true_kinds), (b, kinds))
        )
        both = (a > 0) & (b > 0)
        a, b, shared = a[both], b[both], shared[both]
        same = (true_kinds[a - 1] == kinds[b - 1]) & (true_kinds[a - 1] >= 0)
        chosen = same & (shared > self.iou * (true_areas[a] + areas[b] - shared))
        return a[chosen] - 1, b[chosen] - 1

    def _per_category(
        self, images: Sequence[_Image]
    ) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.int64]]]:
        """(K,) figures and counts of the categories."""
        count = len(self.categories)
        kinds = np.concatenate([np.zeros(0, np.int64), *(each.category for each in images)])
        figures = np.concatenate([np.zeros((0, len(self._names))), *(each.figures for each in images)])
        missing, spurious = (
            np.bincount(np.concatenate([np.zeros(0, np.int64), *each]), minlength=count)
            for each in ([image.missing for image in images], [image.spurious for image in images])
        )
        pairs = np.bincount(kinds, minlength=count)
        scored = pairs + missing + spurious if self.each == "category" else pairs
        order = np.argsort(kinds, kind="stable")
        ends = np.concatenate([[0], np.cumsum(pairs)])
        columns = {}
        for i, name in enumerate(self._names):
            ordered = figures[order, i]
            # fsum is exactly rounded, so the order of images leaves no trace in the last bit.
            sums = np.array([math.fsum(ordered[ends[k] : ends[k + 1]]) for k in range(count)])
            number = scored if name == "surface_dice" else pairs
            columns[name] = np.divide(sums, number, out=np.full(count, np.nan), where=number > 0)
        return columns, dict(zip(_COUNTS, (pairs, missing, spurious), strict=True))


def _present(ids: NDArray[np.int32], count: int) -> NDArray[np.bool_]:
    """(N,) which of the labels 1..`count` occur."""
    found = np.zeros(count + 1, np.bool_)
    found[ids[(ids > 0) & (ids <= count)]] = True
    return found[1:]


def _mean(values: NDArray[np.float64]) -> float:
    """The mean of what is not NaN; NaN if nothing is left."""
    left = values[~np.isnan(values)]
    return math.fsum(left) / len(left) if len(left) else math.nan
