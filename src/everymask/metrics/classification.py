"""Classification of whole images: top-1 and top-5 accuracy, precision, recall and F1 of each class.

Equal to `sklearn.metrics`: `accuracy_score`, `top_k_accuracy_score`, `balanced_accuracy_score`, `confusion_matrix` and
`precision_recall_fscore_support` with ``zero_division=nan``. Top-5 is that of ILSVRC (Russakovsky et al. 2015, section
4.1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from everymask.errors import InputError
from everymask.metrics.base import Cell, Confusion, Metric, Table, category_indices, check_pair

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from everymask.types import Categories, Segments


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """What is kept of one image.

    Args:
        name: The image.
        group: Kind of image.
        true: Index of its class.
        predicted: Index of the class of the highest score; K, the number of classes, if none was predicted.
        rank: How many classes come before the true one; K if the true one was not predicted at all.
        score: Of the predicted class; NaN if there is none.
    """

    name: str
    group: str
    true: int
    predicted: int
    rank: int
    score: float


class ClassificationMetric(Metric):
    """One class for each image.

    The truth has one segment, the prediction one segment for each class that it gives a score to; geometry is not
    looked at. The class of the highest score is the answer; of equal scores, the class that comes first among the
    categories. A prediction without scores has one segment, the answer. A prediction without segments is wrong.

    With TP, FP and FN in images: precision = TP / (TP + FP), recall = TP / (TP + FN), F1 = 2 TP / (2 TP + FP + FN), NaN
    for 0 / 0. Means over classes leave NaN out.

    Args:
        categories: The classes of the data set.
    """

    def __init__(self, categories: Categories) -> None:
        super().__init__(categories)
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
            InputError: Also if the truth has not one class, or the prediction has a class twice or lacks scores.
        """
        check_pair(truth, prediction, name)
        if len(truth) != 1:
            raise InputError(
                f"image {name!r}: the truth has {len(truth)} segments, but classification needs one class for each "
                "image; use another protocol, or leave the image out"
            )
        (true,) = category_indices(truth, self.categories, "truth", name)
        found = category_indices(prediction, self.categories, "prediction", name)
        if len(np.unique(found)) != len(found):
            raise InputError(
                f"image {name!r}: the prediction has a class twice; expected one segment with a score for each class"
            )
        score = prediction.score
        if score is None and len(found) > 1:
            raise InputError(
                f"image {name!r}: the prediction has {len(found)} classes without scores; give each a score, or the "
                "one that is most likely"
            )
        score = np.ones(len(found)) if score is None else score
        count = len(self.categories)
        order = np.lexsort((found, -score))
        place = np.flatnonzero(found[order] == true)
        self.records.append(
            ImageRecord(
                name,
                group,
                int(true),
                int(found[order[0]]) if len(found) else count,
                int(place[0]) if len(place) else count,
                float(score[order[0]]) if len(found) else math.nan,
            )
        )

    def merge(self, other: Self) -> None:
        """Takes in all images of `other`; see `Metric.merge`."""
        if other.categories != self.categories:
            raise InputError("classification metrics of different categories cannot be merged; use the same for both")
        self.records.extend(other.records)

    def compute(self) -> dict[str, float]:
        """The figures over all images so far.

        - `images`.
        - `top1`, `top5`: share of images whose class is the answer, or among the five answers of highest score.
        - `mean_class_accuracy`: mean of the recalls of the classes (balanced accuracy).
        - `mean_precision`, `mean_f1`: likewise ("macro" averages).
        - `accuracy/NAME`: recall of each class.
        """
        figures = _per_class(self._counts(self.records))
        names = self.categories.names
        return {
            "images": float(len(self.records)),
            **_accuracies(self.records),
            "mean_class_accuracy": _mean(figures["recall"]),
            "mean_precision": _mean(figures["precision"]),
            "mean_f1": _mean(figures["f1"]),
            **{f"accuracy/{name}": float(each) for name, each in zip(names, figures["recall"], strict=True)},
        }

    def tables(self) -> list[Table]:
        """Precision, recall and F1 of each class, and the accuracy of each kind of image if there is more than one."""
        counts = self._counts(self.records)
        figures = _per_class(counts)
        rows: list[tuple[Cell, ...]] = [
            (
                name,
                *(float(figures[each][i]) for each in ("precision", "recall", "f1")),
                int(counts[i].sum()),
                int(counts[:, i].sum()),
            )
            for i, name in enumerate(self.categories.names)
        ]
        columns = ("class", "precision", "recall", "F1", "true images", "predicted images")
        tables = [Table("Classes", columns, tuple(rows), "", "F1")]
        groups = sorted({each.group for each in self.records})
        if len(groups) > 1:
            kinds: list[tuple[Cell, ...]] = []
            for group in groups:
                records = [each for each in self.records if each.group == group]
                accuracy = _accuracies(records)
                kinds.append((group, len(records), accuracy["top1"], accuracy["top5"]))
            tables.append(Table("Kinds of image", ("kind", "images", "top-1", "top-5"), tuple(kinds), "", "top-1"))
        return tables

    def images(self) -> Table:
        """One row for each image, in order of names: true and predicted class, its score, and the true one's place.

        The column ``1 / place`` judges: 1 for a right answer, .5 where the true class came second, 0 where it is
        not among the answers.
        """
        names = [*self.categories.names, "(none)"]
        count = len(self.categories)
        rows: list[tuple[Cell, ...]] = [
            (
                each.name,
                each.group,
                names[each.true],
                names[each.predicted],
                each.score,
                1 / (each.rank + 1) if each.rank < count else 0.0,
            )
            for each in sorted(self.records, key=lambda each: (each.name, each.group))
        ]
        columns = ("image", "kind", "true class", "predicted class", "score", "1 / place")
        return Table("Images", columns, tuple(rows), "", "1 / place")

    def confusion(self) -> Confusion:
        """Images by true and predicted class; the column ``(none)`` is there if an image has no prediction."""
        counts = self._counts(self.records)
        names = tuple(self.categories.names)
        if counts[:, -1].any():
            return Confusion(names, (*names, "(none)"), counts, "images")
        return Confusion(names, names, counts[:, :-1], "images")

    def _counts(self, records: Sequence[ImageRecord]) -> NDArray[np.int64]:
        """(K, K + 1) images: rows are true classes, columns predicted ones, the last for none."""
        count = len(self.categories)
        counts = np.zeros((count, count + 1), np.int64)
        true, predicted = ([getattr(each, field) for each in records] for field in ("true", "predicted"))
        np.add.at(counts, (np.array(true, np.int64), np.array(predicted, np.int64)), 1)
        return counts


def _accuracies(records: Sequence[ImageRecord]) -> dict[str, float]:
    """Top-1 and top-5 accuracy; NaN of nothing."""
    return {f"top{k}": sum(each.rank < k for each in records) / len(records) if records else math.nan for k in (1, 5)}


def _per_class(counts: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """(K,) figures of (K, K + 1) counts."""
    hit = np.diagonal(counts).astype(np.float64)
    true, predicted = counts.sum(axis=1), counts.sum(axis=0)[: len(counts)]
    with np.errstate(invalid="ignore"):
        return {"precision": hit / predicted, "recall": hit / true, "f1": 2 * hit / (true + predicted)}


def _mean(values: NDArray[np.float64]) -> float:
    """The mean of what is not NaN; NaN if nothing is left."""
    left = values[~np.isnan(values)]
    return math.fsum(left) / len(left) if len(left) else math.nan
