"""Semantic segmentation: confusion matrix, IoU, accuracy and Dice.

One confusion matrix over all images, as in the VOC devkit (`VOCevalseg`), in ADE20K's scene parsing program
(`demoEvaluation`), in cityscapesScripts (`evalPixelLevelSemanticLabeling`) and in mmsegmentation (`IoUMetric`). Void
pixels of the truth are ignored; void in the prediction is a false negative. These programs agree on the IoU of a class
and differ in the classes that the mean is taken over, which is the option `mean_over`. (Cityscapes' instance-weighted
and group figures are the protocol "cityscapes".)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_args

import numpy as np

from everymask.errors import InputError, unknown_name
from everymask.metrics.base import Cell, Confusion, Metric, Table, category_indices, check_pair, label_map
from everymask.ops.confusion import confusion_matrix, count_pairs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from everymask.types import Categories, Segments

__all__ = ["MeanOver", "SemanticMetric", "confusion_matrix"]

MeanOver = Literal["present", "truth", "all"]


@dataclass(frozen=True)
class _Image:
    """What is kept of one image."""

    name: str
    group: str
    miou: float
    accuracy: float


class SemanticMetric(Metric):
    """Intersection over union, accuracy and Dice of categories.

    With TP, FP and FN in pixels of all images: IoU = TP / (TP + FP + FN), Dice = 2 TP / (2 TP + FP + FN), accuracy of a
    category = TP / (TP + FN). Where segments overlap, the higher score wins, or the later one without scores.

    Pixels of no segment belong to the category called "background" if there is one. Otherwise they are a class
    without a name, which counts in the pixel accuracy and as errors of the other categories, but not in means.

    Args:
        categories: The classes of the data set.
        mean_over: Which categories the means of IoU and Dice are taken over.

            - ``"present"``: those that occur in the truth or in the prediction. Cityscapes and mmsegmentation (whose
              means leave out NaN); VOC, too, where every class occurs.
            - ``"truth"``: those that occur in the truth; classes that were only predicted cost accuracy elsewhere.
            - ``"all"``: all; one that occurs nowhere counts 0. The program of ADE20K, which adds a tiny number to the
              union.

    Raises:
        InputError: `mean_over` is none of these.
    """

    # The classes without a training id are those that the benchmark ignores.
    reading: ClassVar[Mapping[str, Mapping[str, Any]]] = {"cityscapes": {"labels": "train"}}

    def __init__(self, categories: Categories, mean_over: MeanOver = "present") -> None:
        super().__init__(categories)
        if mean_over not in get_args(MeanOver):
            raise unknown_name("mean_over", mean_over, get_args(MeanOver))
        self.mean_over: MeanOver = mean_over
        names = [name.casefold() for name in categories.names]
        self._background = names.index("background") if "background" in names else len(names)
        self._matrices: dict[str, NDArray[np.int64]] = {}
        self._images: list[_Image] = []

    @property
    def matrix(self) -> NDArray[np.int64]:
        """(K + 1, K + 2) pixels: rows are the truth's categories and background; columns the prediction's, and void."""
        empty = np.zeros((len(self.categories) + 1, len(self.categories) + 2), np.int64)
        return sum(self._matrices.values(), start=empty)

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
        void = len(self.categories) + 1
        rows, columns = (
            np.concatenate([[void, self._background], category_indices(segments, self.categories, role, name)])
            for segments, role in ((truth, "truth"), (prediction, "prediction"))
        )
        maps = label_map(truth, "truth", name), label_map(prediction, "prediction", name)
        self._take(count_pairs(*maps, rows, columns, (void + 1, void + 1)), name, group)

    def update_maps(self, truth: NDArray[Any], prediction: NDArray[Any], name: str = "", group: str = "") -> None:
        """Takes in one image as maps of class indices, which costs less than making segments of them first.

        Args:
            truth: Positions 0..K-1 among the categories, any shape; every other value is void. Fastest as uint8.
            prediction: Likewise, of the same shape.
            name: Names the image in errors and tables.
            group: Kind of image.

        Raises:
            InputError: The shapes differ or an array is not integer.
        """
        count = len(self.categories)
        indices = np.concatenate([[count + 1], np.arange(count)])
        try:
            matrix = count_pairs(truth, prediction, indices, indices, (count + 2, count + 2))
        except InputError as error:
            raise InputError(f"image {name!r}: {error}") from error
        self._take(matrix, name, group)

    def merge(self, other: Self) -> None:
        """Takes in all images of `other`; see `Metric.merge`."""
        if other.categories != self.categories:
            raise InputError("semantic metrics of different categories cannot be merged; use the same for both")
        if other.mean_over != self.mean_over:
            raise InputError(
                f"semantic metrics with mean_over={self.mean_over!r} and {other.mean_over!r} cannot be merged; "
                "use the same for both"
            )
        for group, matrix in other._matrices.items():
            self._add(matrix, group)
        self._images += other._images

    def compute(self) -> dict[str, float]:
        """The figures over all images so far.

        `miou`, `pixel_accuracy`, `mean_accuracy` (over the categories of the truth), `frequency_weighted_iou`,
        `mean_dice`, and `iou/NAME` of each category, all in 0..1, NaN where nothing was there to be scored; `images` is
        the number of images.
        """
        matrix = self.matrix
        figures = {"images": float(len(self._images)), **self._summary(matrix)}
        iou = _per_category(matrix)["iou"]
        return figures | {f"iou/{name}": float(value) for name, value in zip(self.categories.names, iou, strict=True)}

    def tables(self) -> list[Table]:
        """IoU, Dice and accuracy of each category, and of each kind of image if there is more than one."""
        figures = _per_category(self.matrix)
        rows = [
            (name, *(float(figures[each][i]) for each in ("iou", "dice", "accuracy")), int(figures["pixels"][i]))
            for i, name in enumerate(self.categories.names)
        ]
        columns = ("category", "IoU", "Dice", "accuracy", "true pixels")
        tables = [Table("Categories", columns, tuple(rows), judge="IoU")]
        if len(self._matrices) > 1:
            kinds = []
            for group in sorted(self._matrices):
                summary = self._summary(self._matrices[group])
                images = sum(each.group == group for each in self._images)
                kinds.append((group, images, summary["miou"], summary["pixel_accuracy"]))
            columns = ("kind", "images", "mIoU", "pixel accuracy")
            tables.append(Table("Kinds of image", columns, tuple(kinds), judge="mIoU"))
        return tables

    def images(self) -> Table:
        """One row for each image, in order of names: mIoU of the categories in it, and pixel accuracy."""
        rows: list[tuple[Cell, ...]] = [
            (each.name, each.group, each.miou, each.accuracy) for each in sorted(self._images, key=_order)
        ]
        return Table("Images", ("image", "kind", "mIoU", "pixel accuracy"), tuple(rows), judge="mIoU")

    def confusion(self) -> Confusion:
        """Pixels of each true and predicted category; pixels of no segment and void where there are any."""
        matrix, count = self.matrix, len(self.categories)
        names = [*self.categories.names, "no segment", "void"]
        rows = [i for i in range(count + 1) if i < count or matrix[i].any()]
        columns = [i for i in range(count + 2) if i < count or matrix[:, i].any()]
        return Confusion(
            tuple(names[i] for i in rows), tuple(names[i] for i in columns), matrix[np.ix_(rows, columns)], "pixels"
        )

    def _take(self, counts: NDArray[np.int64], name: str, group: str) -> None:
        """Adds the (K + 2, K + 2) counts of one image."""
        matrix = counts[:-1]  # the last row is the truth's void
        summary = self._summary(matrix)
        self._add(matrix, group)
        self._images.append(_Image(name, group, summary["miou"], summary["pixel_accuracy"]))

    def _add(self, matrix: NDArray[np.int64], group: str) -> None:
        if group in self._matrices:
            self._matrices[group] += matrix
        else:
            self._matrices[group] = matrix.copy()

    def _summary(self, matrix: NDArray[np.int64]) -> dict[str, float]:
        """The means over categories of a (K + 1, K + 2) confusion matrix."""
        figures = _per_category(matrix)
        iou, pixels = figures["iou"], figures["pixels"]
        seen = pixels > 0
        known = pixels.sum()
        scored = known + matrix[-1].sum()
        return {
            "miou": self._mean(iou, seen),
            "pixel_accuracy": float(matrix.diagonal().sum() / scored) if scored else float("nan"),
            "mean_accuracy": _mean(figures["accuracy"]),
            "frequency_weighted_iou": float((pixels[seen] * iou[seen]).sum() / known) if known else float("nan"),
            "mean_dice": self._mean(figures["dice"], seen),
        }

    def _mean(self, values: NDArray[np.float64], in_truth: NDArray[np.bool_]) -> float:
        if self.mean_over == "truth":
            values = values[in_truth]
        elif self.mean_over == "all" and not np.isnan(values).all():
            values = np.nan_to_num(values, nan=0.0)
        return _mean(values)


def _order(image: _Image) -> tuple[str, str, str]:
    return image.name, image.group, repr((image.miou, image.accuracy))


def _per_category(matrix: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """IoU, Dice, accuracy (K,) and number of true pixels (K,) from a (K + 1, K + 2) confusion matrix."""
    count = len(matrix) - 1
    hit = np.diagonal(matrix)[:count].astype(np.float64)
    true = matrix.sum(axis=1)[:count].astype(np.float64)
    predicted = matrix.sum(axis=0)[:count].astype(np.float64)
    with np.errstate(invalid="ignore"):
        return {
            "iou": hit / (true + predicted - hit),
            "dice": 2 * hit / (true + predicted),
            "accuracy": hit / true,
            "pixels": true,
        }


def _mean(values: NDArray[np.float64]) -> float:
    """The mean of what is not NaN; NaN if nothing is left."""
    left = values[~np.isnan(values)]
    return float(left.mean()) if left.size else float("nan")
