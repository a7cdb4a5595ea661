"""How well boundaries fit: boundary IoU and the boundary F-measure of categories, and average precision of instances.

- Boundary IoU (Cheng et al. 2021) compares bands along the inner side of the boundaries, `mask_to_boundary` of the
  authors' program. Where that scores instances, an object's IoU is the smaller one of masks and bands; crowds go by
  their masks alone.
- The boundary F-measure (Csurka et al. 2013; F of DAVIS, Perazzi et al. 2016) counts contour pixels that lie near the
  other contour, and equals `db_eval_boundary` of the DAVIS 2017 program.

Void pixels of the truth are removed from truth and prediction before boundaries are taken, as DAVIS does: against void
both have the same edge.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from everymask.errors import InputError
from everymask.metrics.base import Cell, Metric, Table, category_indices, check_pair, label_map
from everymask.metrics.coco import CocoMaskMetric
from everymask.metrics.coco_matching import Objects, Pairs
from everymask.metrics.coco_rules import AREAS, MAX_DETECTIONS, THRESHOLDS
from everymask.ops.boundaries import (
    band_overlaps,
    boundary_width,
    contour_matches,
    contour_tolerance,
    mask_boundaries,
)
from everymask.ops.rle import areas as mask_areas
from everymask.ops.rle_pairs import pair_overlaps
from everymask.types.geometry import VOID

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from everymask.types import Categories, Masks, Segments

_FIGURES = ("boundary_iou", "boundary_f", "boundary_precision", "boundary_recall")
_TITLES = ("boundary IoU", "boundary F", "boundary precision", "boundary recall")


@dataclass(frozen=True, slots=True, eq=False)
class _Image:
    """What is kept of one image, for the K categories that occur in its truth or prediction.

    Args:
        name: The image.
        group: Kind of image.
        category: (K,) indices of the categories.
        bands: (K, 3) pixels that both bands share, of the truth's band, and of the prediction's.
        contours: (K, 4) as `contour_matches` counts them.
    """

    name: str
    group: str
    category: NDArray[np.int64]
    bands: NDArray[np.int64]
    contours: NDArray[np.int64]


class BoundaryMetric(Metric):
    """Boundary IoU and boundary F-measure of categories, for semantic segmentation.

    Boundary IoU of a category = shared / joint pixels of its bands in truth and prediction, added up over all images,
    as the IoU of "semantic" is; a band reaches `dilation_ratio` of the image's diagonal inwards. Boundary precision and
    recall are the shares of contour pixels of prediction and truth within the tolerance of the other's contour, F their
    harmonic mean; they are averaged over the images in which the category occurs. A category without contour, because
    it fills the image, has precision and recall 1 if the other has none either; a contour without a counterpart has
    precision 1 and recall 0 (truth) or the other way round, so F is 0.

    Headline figures are means over the categories that occur in truth or prediction. Where segments overlap, the higher
    score wins, or the later one without scores. Pixels of no segment belong to the category called "background" if
    there is one, otherwise to none.

    Args:
        categories: The classes of the data set.
        dilation_ratio: Width of the bands as a share of the diagonal, rounded to pixels, at least 1 pixel.
        tolerance: Distance up to which contours match: below 1 a share of the diagonal, rounded up to pixels, from 1 on
            pixels. (DAVIS has .008, the toolbox of Matlab .0075.)

    Raises:
        InputError: An option is not a positive number.
    """

    # The classes without a training id are those that the benchmark ignores.
    reading: ClassVar[Mapping[str, Mapping[str, Any]]] = {"cityscapes": {"labels": "train"}}

    def __init__(self, categories: Categories, dilation_ratio: float = 0.02, tolerance: float = 0.008) -> None:
        super().__init__(categories)
        self.dilation_ratio = _positive(dilation_ratio, "dilation_ratio", "0.02")
        self.tolerance = _positive(tolerance, "tolerance", "0.008")
        self._images: list[_Image] = []

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
        if len(truth.size) != 2:
            raise InputError(f"image {name!r}: is a volume, but boundary IoU is for images; use the protocol 'surface'")
        maps = class_maps(truth, prediction, self.categories, name)
        count = len(self.categories)
        table = band_overlaps(*maps, count, boundary_width(truth.size, self.dilation_ratio))
        contours = contour_matches(*maps, count, contour_tolerance(truth.size, self.tolerance))
        occurring = np.flatnonzero(table.sum(axis=1))  # the band of a mask is never empty
        self._images.append(_Image(name, group, occurring, table[occurring], contours[occurring]))

    def merge(self, other: Self) -> None:
        """Takes in all images of `other`; see `Metric.merge`."""
        mine, theirs = ((each.categories, each.dilation_ratio, each.tolerance) for each in (self, other))
        if mine != theirs:
            raise InputError(
                "boundary metrics of different categories, dilation_ratio or tolerance cannot be merged; "
                "use the same for both"
            )
        self._images += other._images

    def compute(self) -> dict[str, float]:
        """The figures over all images so far.

        `boundary_iou`, `boundary_f`, `boundary_precision`, `boundary_recall`: means over categories;
        `boundary_iou/NAME` and `boundary_f/NAME` of each category; all in 0..1, NaN where nothing was there to be
        scored. `images` is the number of images.
        """
        columns = self._per_category(self._images)
        figures = {"images": float(len(self._images))}
        figures |= {name: _mean(column) for name, column in columns.items()}
        for name in _FIGURES[:2]:
            values = zip(self.categories.names, columns[name], strict=True)
            figures |= {f"{name}/{category}": float(value) for category, value in values}
        return figures

    def tables(self) -> list[Table]:
        """Figures of each category, and of each kind of image if there is more than one."""
        columns = self._per_category(self._images)
        rows: list[tuple[Cell, ...]] = [
            (name, *(float(column[k]) for column in columns.values())) for k, name in enumerate(self.categories.names)
        ]
        tables = [Table("Categories", ("category", *_TITLES), tuple(rows), judge="boundary IoU")]
        groups = sorted({each.group for each in self._images})
        if len(groups) > 1:
            kinds: list[tuple[Cell, ...]] = []
            for group in groups:
                images = [each for each in self._images if each.group == group]
                kinds.append((group, len(images), *(_mean(each) for each in self._per_category(images).values())))
            tables.append(Table("Kinds of image", ("kind", "images", *_TITLES), tuple(kinds), judge="boundary IoU"))
        return tables

    def images(self) -> Table:
        """One row for each image, in order of names: means over the categories that occur in it."""
        rows: list[tuple[Cell, ...]] = []
        for image in sorted(self._images, key=lambda each: each.name):
            columns = self._per_category([image])
            rows.append((image.name, image.group, _mean(columns["boundary_iou"]), _mean(columns["boundary_f"])))
        return Table("Images", ("image", "kind", "boundary IoU", "boundary F"), tuple(rows), judge="boundary IoU")

    def _per_category(self, images: Sequence[_Image]) -> dict[str, NDArray[np.float64]]:
        """(K,) figures of the categories; NaN for those that do not occur."""
        count = len(self.categories)
        bands = np.zeros((count, 3), np.int64)
        singles: list[list[tuple[float, float, float]]] = [[] for _ in range(count)]
        for image in images:
            bands[image.category] += image.bands
            for k, counts in zip(image.category.tolist(), image.contours.tolist(), strict=True):
                singles[k].append(_f_measure(*counts))
        joint = bands[:, 1] + bands[:, 2] - bands[:, 0]
        figures = {_FIGURES[0]: np.divide(bands[:, 0], joint, out=np.full(count, np.nan), where=joint > 0)}
        for i, name in enumerate(_FIGURES[1:]):
            # fsum is exactly rounded, so the order of images leaves no trace in the last bit.
            sums = [math.fsum(each[i] for each in rows) / len(rows) if rows else math.nan for rows in singles]
            figures[name] = np.array(sums)
        return figures


class CocoBoundaryMetric(CocoMaskMetric):
    """COCO average precision by boundary IoU: Boundary AP (Cheng et al. 2021, section 5), `iouType="boundary"`.

    The IoU of a detection and a true object is the smaller of that of their masks and that of their bands; with crowds
    it is that of the masks. Areas, limits and figures are those of "coco_masks".

    Args:
        categories: See `CocoMetric`, as for the next three.
        thresholds: IoU values.
        areas: Ranges of object areas.
        max_detections: Limits of detections.
        detection_area: See `CocoMaskMetric`.
        dilation_ratio: Width of the bands as a share of the image's diagonal, rounded to pixels, at least 1 pixel.

    Raises:
        InputError: An option has no good value, or no category is a thing.
    """

    def __init__(
        self,
        categories: Categories,
        thresholds: Sequence[float] = THRESHOLDS,
        areas: Mapping[str, Sequence[float]] = AREAS,
        max_detections: int | Sequence[int | None] = MAX_DETECTIONS,
        detection_area: str = "given",
        dilation_ratio: float = 0.02,
    ) -> None:
        super().__init__(categories, thresholds, areas, max_detections, detection_area)
        self.dilation_ratio = _positive(dilation_ratio, "dilation_ratio", "0.02")

    def merge(self, other: Self) -> None:
        """Takes in all images of `other`; see `Metric.merge`."""
        if isinstance(other, CocoBoundaryMetric) and other.dilation_ratio != self.dilation_ratio:
            raise InputError("COCO metrics of different dilation_ratio cannot be merged; use the same for both")
        super().merge(other)

    def _overlaps(
        self, truth: Segments, prediction: Segments, truths: Objects, detections: Objects, crowd: NDArray[np.bool_]
    ) -> tuple[Pairs, NDArray[np.float64], NDArray[np.float64]]:
        pairs, areas, true_areas = super()._overlaps(truth, prediction, truths, detections, crowd)
        detection = np.repeat(np.arange(len(pairs.offsets) - 1), np.diff(pairs.offsets))
        ordinary = ~crowd[pairs.truth]
        iou = pairs.iou.copy()
        iou[ordinary] = np.minimum(
            iou[ordinary],
            boundary_iou(
                prediction.rles(),
                truth.rles(),
                detections.rows[detection[ordinary]],
                truths.rows[pairs.truth[ordinary]],
                boundary_width(truth.size, self.dilation_ratio),
            ),
        )
        return pairs._replace(iou=iou), areas, true_areas


def boundary_iou(a: Masks, b: Masks, first: NDArray[Any], second: NDArray[Any], width: int) -> NDArray[np.float64]:
    """Boundary IoU of pairs of masks (Cheng et al. 2021, eq. 1).

    Args:
        a: Masks of an image.
        b: Other masks of the same image.
        first: (P,) which of `a` each pair has.
        second: (P,) which of `b`.
        width: Width of the bands in pixels, see `everymask.ops.boundaries.boundary_width`.

    Returns:
        (P,) in 0..1; 0 for two empty masks.
    """
    # Only the bands that are asked for are made, each once.
    (a_numbers, a_rows), (b_numbers, b_rows) = (np.unique(each, return_inverse=True) for each in (first, second))
    a_bands, b_bands = (
        mask_boundaries(masks.counts, masks.offsets, masks.size, width, numbers)
        for masks, numbers in ((a, a_numbers), (b, b_numbers))
    )
    shared = pair_overlaps(*a_bands, *b_bands, a_rows, b_rows)
    joint = mask_areas(*a_bands)[a_rows] + mask_areas(*b_bands)[b_rows] - shared
    return np.divide(shared, joint, out=np.zeros(len(shared)), where=joint > 0)


def class_maps(
    truth: Segments, prediction: Segments, categories: Categories, name: str
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Class indices of truth and prediction, with the truth's void pixels removed from both.

    Args:
        truth: The annotation.
        prediction: The prediction, of the same size.
        categories: The K classes of the data set.
        name: The image, for messages.

    Returns:
        Two arrays of the image's size: 0..K-1, -1 for void, K for pixels of no segment unless a category is called
        "background".

    Raises:
        InputError: A category is unknown, or segments have no masks.
    """
    names = [each.casefold() for each in categories.names]
    background = names.index("background") if "background" in names else len(names)
    maps = []
    for segments, role in ((truth, "truth"), (prediction, "prediction")):
        indices = category_indices(segments, categories, role, name)
        table = np.concatenate([[-1, background], indices]).astype(np.int32)
        maps.append(table[np.maximum(label_map(segments, role, name), VOID) + 1])
    maps[1][maps[0] < 0] = -1
    return maps[0], maps[1]


def _f_measure(true: int, found: int, predicted: int, right: int) -> tuple[float, float, float]:
    """F, precision and recall from contour pixels, with the conventions of DAVIS where a contour is lacking."""
    precision = right / predicted if predicted and true else float(not predicted)
    recall = found / true if predicted and true else float(not true)
    total = precision + recall
    return (2 * precision * recall / total if total else 0.0), precision, recall


def _positive(value: float, name: str, example: str) -> float:
    if not 0 < value < math.inf:
        raise InputError(f"{name}: got {value}, expected a number above 0, such as {example}")
    return float(value)


def _mean(values: NDArray[np.float64]) -> float:
    """The mean of what is not NaN; NaN if nothing is left."""
    left = values[~np.isnan(values)]
    return math.fsum(left) / len(left) if len(left) else math.nan
