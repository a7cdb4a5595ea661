"""Semantic segmentation: confusion matrix, IoU, accuracy and Dice.

Follows cityscapesScripts (`evalPixelLevelSemanticLabeling`), which agrees with the VOC devkit and ADE20K on IoU: one
confusion matrix over all images; void pixels of the truth are ignored; void in the prediction is a false negative.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import numpy as np
from numba import njit

from everymask.errors import InputError
from everymask.metrics.base import Metric, Table, category_indices, check_pair, label_map

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from everymask.types import Categories, Segments


class SemanticMetric(Metric):
    """Intersection over union, accuracy and Dice of categories.

    With TP, FP and FN in pixels of all images: IoU = TP / (TP + FP + FN), Dice = 2 TP / (2 TP + FP + FN), accuracy of a
    category = TP / (TP + FN). A category that occurs neither in the truth nor in the prediction has NaN, and means
    leave it out. Where segments overlap, the higher score wins, or the later one without scores.

    Pixels of no segment belong to the category called "background" if there is one. Otherwise they are a class
    without a name, which counts in the pixel accuracy and as errors of the other categories, but not in means.

    Args:
        categories: The classes of the data set.
    """

    def __init__(self, categories: Categories) -> None:
        super().__init__(categories)
        names = [name.casefold() for name in categories.names]
        self._background = names.index("background") if "background" in names else len(names)
        self._confusion: dict[str, NDArray[np.int64]] = {}
        self._images: dict[str, int] = {}

    @property
    def confusion(self) -> NDArray[np.int64]:
        """(K + 1, K + 2) pixels: rows are the truth's categories and background; columns the prediction's, and void."""
        empty = np.zeros((len(self.categories) + 1, len(self.categories) + 2), np.int64)
        return sum(self._confusion.values(), start=empty)

    def update(self, truth: Segments, prediction: Segments, name: str = "", group: str = "") -> None:
        """Takes in one image; see `Metric.update`."""
        check_pair(truth, prediction, name)
        count = len(self.categories)
        truth_index, prediction_index = (
            np.concatenate([[count + 1, self._background], category_indices(segments, self.categories, role, name)])
            for segments, role in ((truth, "truth"), (prediction, "prediction"))
        )
        matrix = np.zeros((count + 2, count + 2), np.int64)
        _count(
            np.ascontiguousarray(label_map(truth, "truth", name)).reshape(-1),
            np.ascontiguousarray(label_map(prediction, "prediction", name)).reshape(-1),
            truth_index,
            prediction_index,
            matrix,
        )
        # The last row is the truth's void.
        self._add(group, matrix[:-1], 1)

    def merge(self, other: Self) -> None:
        """Takes in all images of `other`; see `Metric.merge`."""
        if other.categories != self.categories:
            raise InputError("semantic metrics of different categories cannot be merged; use the same for both")
        for group, matrix in other._confusion.items():
            self._add(group, matrix, other._images[group])

    def compute(self) -> dict[str, float]:
        """The figures over all images so far.

        `miou`, `pixel_accuracy`, `mean_accuracy`, `frequency_weighted_iou`, `mean_dice`, and `iou/NAME` of each
        category, all in 0..1, NaN where nothing was there to be scored; `images` is the number of images.
        """
        matrix = self.confusion
        figures = {"images": float(sum(self._images.values())), **_summary(matrix)}
        iou = _per_category(matrix)["iou"]
        return figures | {f"iou/{name}": float(value) for name, value in zip(self.categories.names, iou, strict=True)}

    def tables(self) -> list[Table]:
        """IoU, Dice and accuracy of each category, and of each kind of image if there is more than one."""
        figures = _per_category(self.confusion)
        rows = [
            (name, *(float(figures[each][i]) for each in ("iou", "dice", "accuracy")), int(figures["pixels"][i]))
            for i, name in enumerate(self.categories.names)
        ]
        tables = [Table("Categories", ("category", "IoU", "Dice", "accuracy", "true pixels"), tuple(rows))]
        if len(self._confusion) > 1:
            kinds = []
            for group in sorted(self._confusion):
                summary = _summary(self._confusion[group])
                kinds.append((group, self._images[group], summary["miou"], summary["pixel_accuracy"]))
            tables.append(Table("Kinds of image", ("kind", "images", "mIoU", "pixel accuracy"), tuple(kinds)))
        return tables

    def _add(self, group: str, matrix: NDArray[np.int64], images: int) -> None:
        """Adds counts of `images` images of one kind."""
        self._confusion[group] = self._confusion[group] + matrix if group in self._confusion else matrix.copy()
        self._images[group] = self._images.get(group, 0) + images


def confusion_matrix(truth: NDArray[np.integer], prediction: NDArray[np.integer], classes: int) -> NDArray[np.int64]:
    """Pixels of each pair of true and predicted class.

    Runs of equal pixels are counted at once. Fastest on uint8; any other integers are read as int32.

    Args:
        truth: Class indices 0..K-1, any shape; any other value is void, which is ignored.
        prediction: Class indices of the same shape; any other value is void.
        classes: The number of classes K.

    Returns:
        (K, K + 1): rows are true classes, columns predicted ones; the last column is void, that is a false negative.

    Raises:
        InputError: The shapes differ or an array is not integer.
    """
    if truth.shape != prediction.shape or {truth.dtype.kind, prediction.dtype.kind} - {"u", "i"}:
        raise InputError(
            f"class maps: got {truth.dtype} of shape {truth.shape} and {prediction.dtype} of shape {prediction.shape}, "
            "expected integers of one shape; take the argmax of network outputs first"
        )
    kind = np.uint8 if truth.dtype == prediction.dtype == np.uint8 else np.int32
    true, predicted = (np.ascontiguousarray(each, kind).reshape(-1) for each in (truth, prediction))
    table = np.concatenate([[classes], np.arange(classes)])
    matrix = np.zeros((classes + 1, classes + 1), np.int64)
    _count(true, predicted, table, table, matrix)
    return matrix[:-1]


@njit(cache=True, nogil=True)
def _count(
    truth: NDArray[np.integer],
    prediction: NDArray[np.integer],
    truth_index: NDArray[np.int64],
    prediction_index: NDArray[np.int64],
    matrix: NDArray[np.int64],
) -> None:  # pragma: no cover - compiled
    """Adds pixel counts to `matrix`; value v has index ``index[v + 1]``, unlisted values have ``index[0]``."""
    if truth.size == 0:
        return
    start, true, predicted = 0, truth[0], prediction[0]
    # One step past the end closes the last run. (A `while` loop over a position costs half as much again: the compiler
    # then allows for negative positions, which count from the end.)
    for position in range(1, truth.size + 1):
        if position == truth.size or truth[position] != true or prediction[position] != predicted:
            row = truth_index[true + 1 if 0 <= true < truth_index.size - 1 else 0]
            column = prediction_index[predicted + 1 if 0 <= predicted < prediction_index.size - 1 else 0]
            matrix[row, column] += position - start
            if position < truth.size:
                start, true, predicted = position, truth[position], prediction[position]


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


def _summary(matrix: NDArray[np.int64]) -> dict[str, float]:
    """The means over categories of a (K + 1, K + 2) confusion matrix."""
    figures = _per_category(matrix)
    iou, pixels = figures["iou"], figures["pixels"]
    seen = pixels > 0
    return {
        "miou": _mean(iou),
        "pixel_accuracy": float(np.trace(matrix) / matrix.sum()) if matrix.any() else float("nan"),
        "mean_accuracy": _mean(figures["accuracy"]),
        "frequency_weighted_iou": float((pixels[seen] * iou[seen]).sum() / pixels.sum())
        if seen.any()
        else float("nan"),
        "mean_dice": _mean(figures["dice"]),
    }


def _mean(values: NDArray[np.float64]) -> float:
    """The mean of what is not NaN; NaN if nothing is left."""
    left = values[~np.isnan(values)]
    return float(left.mean()) if left.size else float("nan")
