"""Matching of objects, the protocol of microscopy: accuracy at IoU thresholds, and the aggregated Jaccard index.

Follows `stardist.matching` for pooled figures and `cellpose.metrics.average_precision` for means over images: a
one-to-one assignment with as many matches (IoU >= t) as possible and, among those, the highest sum of IoU. Counts, and
figures made of counts, equal the official ones. IoU is kept in double precision where `stardist` rounds it to single:
mean scores agree with those to 2e-6, and to 1e-9 with the same rule computed in double precision. (Only objects of
millions of pixels could that rounding lift over a threshold.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from everymask.errors import InputError, unknown_name
from everymask.metrics.assignment import assign, best_pairs
from everymask.metrics.base import Cell, Curve, Metric, Table, category_indices, check_pair, label_map
from everymask.types.geometry import VOID, LabelMap

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from everymask.types import Categories, Segments

JACCARD = ("kumar", "cellpose")
THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


@dataclass(frozen=True, slots=True, eq=False)
class ImageRecord:
    """What is kept of one image, for the K categories that occur in it and T thresholds.

    Args:
        name: The image.
        group: Kind of image.
        category: (K,) indices of the categories.
        true: (K,) number of true objects.
        predicted: (K,) number of predicted objects.
        matched: (K, T) true positives.
        score: (K, T) sum of the IoU of true positives.
        shared: Numerator of the aggregated Jaccard index, in pixels.
        joint: Its denominator.
        covered: Pixels of the truth under more than one object.
    """

    name: str
    group: str
    category: NDArray[np.int64]
    true: NDArray[np.int64]
    predicted: NDArray[np.int64]
    matched: NDArray[np.int64]
    score: NDArray[np.float64]
    shared: int
    joint: int
    covered: int


@dataclass(frozen=True, slots=True, eq=False)
class _Pairs:
    """The P pairs of a true and a predicted object of one category that share pixels, ordered by object numbers.

    Objects are numbered as in the label maps less one. Category indices are (N,), -1 for what is no object.
    """

    truth: NDArray[np.int64]
    prediction: NDArray[np.int64]
    shared: NDArray[np.int64]
    joint: NDArray[np.int64]
    truth_category: NDArray[np.int64]
    prediction_category: NDArray[np.int64]
    truth_area: NDArray[np.int64]
    prediction_area: NDArray[np.int64]

    @property
    def iou(self) -> NDArray[np.float64]:
        """(P,) intersection over union."""
        return self.shared / self.joint


class MatchingMetric(Metric):
    """Objects matched one to one, at several IoU thresholds.

    Of an image's objects, TP are matched, FP and FN are what is left of prediction and truth. Precision, recall and F1
    are the usual ones (0 if TP = 0); accuracy = TP / (TP + FP + FN), which the field calls AP; mean matched score = sum
    of matched IoU / TP; mean true score = that sum / number of true objects; panoptic quality = that sum /
    (TP + FP/2 + FN/2) (Kirillov et al. 2019, eq. 1). The aggregated Jaccard index is algorithm 1 of Kumar et al. 2017.

    Figures are given twice: pooled (counts added up over images) and as the mean over images, which leaves out images
    with neither true nor predicted objects, as `numpy.nanmean` of cellpose's result does.

    - Void pixels of the truth, and its crowd regions, are removed from truth and prediction before anything is counted;
      an object without any pixel left does not exist. Void in the prediction is background.
    - With more than one category, objects match within their category, and stuff is background. With a single one,
      category ids are not looked at.
    - Where segments overlap, a pixel goes to the higher score, or without scores to the later segment.

    Args:
        categories: The classes of the data set.
        thresholds: IoU above 0 and up to 1.
        jaccard: The aggregated Jaccard index: ``"kumar"`` as published, or ``"cellpose"`` as
            `cellpose.metrics.aggregated_jaccard_index` computes it: the pixels that objects share in the assignment at
            IoU .5 (pairs below take part where an object is left over), by the pixels of any object.

    Raises:
        InputError: No or wrong thresholds, an unknown Jaccard index, or several categories of which none is a thing.
    """

    def __init__(
        self, categories: Categories, thresholds: Sequence[float] = THRESHOLDS, jaccard: str = "kumar"
    ) -> None:
        super().__init__(categories)
        if jaccard not in JACCARD:
            raise unknown_name("aggregated Jaccard index", jaccard, JACCARD)
        self.jaccard = jaccard
        self.thresholds = tuple(sorted({float(each) for each in thresholds}))
        if not self.thresholds or not all(0 < each <= 1 for each in self.thresholds):
            raise InputError(
                f"thresholds: got {list(thresholds)}, expected IoU values above 0 and up to 1, such as 0.5"
            )
        if len(categories) > 1 and not any(each.is_thing for each in categories):
            raise InputError("no category is a thing, so there are no objects to match; use the protocol 'semantic'")
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
        truth_ids, prediction_ids = label_map(truth, "truth", name), label_map(prediction, "prediction", name)
        covered = 0
        if not isinstance(truth.geometry, LabelMap):
            covered = int(truth.areas().sum()) - int(np.count_nonzero(truth_ids > 0))
        pairs = _overlapping_pairs(
            truth_ids,
            prediction_ids,
            self._object_categories(truth, "truth", name),
            self._object_categories(prediction, "prediction", name),
            truth.crowd,
        )
        count = len(self.categories)
        true, predicted = (
            np.bincount(each[each >= 0], minlength=count) for each in (pairs.truth_category, pairs.prediction_category)
        )
        occurring = np.flatnonzero(true + predicted)
        matched = np.zeros((count, len(self.thresholds)), np.int64)
        score = np.zeros((count, len(self.thresholds)))
        iou = pairs.iou
        for column, threshold in enumerate(self.thresholds):
            chosen = assign(pairs.truth, pairs.prediction, iou, threshold)
            kind = pairs.truth_category[pairs.truth[chosen]]
            matched[:, column] = np.bincount(kind, minlength=count)
            score[:, column] = np.bincount(kind, weights=iou[chosen], minlength=count)
        self.records.append(
            ImageRecord(
                name,
                group,
                occurring,
                true[occurring],
                predicted[occurring],
                matched[occurring],
                score[occurring],
                *(_aggregated_jaccard(pairs) if self.jaccard == "kumar" else _matched_jaccard(pairs)),
                covered,
            )
        )

    def merge(self, other: Self) -> None:
        """Takes in all images of `other`; see `Metric.merge`."""
        if (other.categories, other.thresholds, other.jaccard) != (self.categories, self.thresholds, self.jaccard):
            raise InputError(
                "matching metrics of different categories, thresholds or jaccard cannot be merged; use equal ones"
            )
        self.records.extend(other.records)

    def compute(self) -> dict[str, float]:
        """The figures, all but the counts in 0..1.

        - `images`, `true_objects`, `predicted_objects`.
        - For every threshold, such as 0.5, pooled: `tp@0.5`, `fp@0.5`, `fn@0.5`, `precision@0.5`, `recall@0.5`,
          `f1@0.5`, `accuracy@0.5`, `mean_matched_score@0.5`, `mean_true_score@0.5`, `panoptic_quality@0.5`.
        - The means over images: `image_precision@0.5` and so on; NaN if every image is empty.
        - `mean_accuracy` and `image_mean_accuracy`: means over the thresholds.
        - `aji`: pooled; `image_aji`: mean over images.
        """
        pooled, single = self._pooled(self.records), self._means_over_images()
        matched, true, predicted = _totals(self.records, len(self.thresholds))
        figures = {
            "images": float(len(self.records)),
            "true_objects": float(true),
            "predicted_objects": float(predicted),
        }
        for column, threshold in enumerate(self.thresholds):
            tp = float(matched[column])
            figures |= {f"tp@{threshold:g}": tp, f"fp@{threshold:g}": predicted - tp, f"fn@{threshold:g}": true - tp}
            figures |= {f"{each}@{threshold:g}": float(values[column]) for each, values in pooled.items()}
            figures |= {f"image_{each}@{threshold:g}": float(values[column]) for each, values in single.items()}
        figures["mean_accuracy"] = math.fsum(pooled["accuracy"]) / len(self.thresholds)
        figures["image_mean_accuracy"] = math.fsum(single["accuracy"]) / len(self.thresholds)
        joint = sum(each.joint for each in self.records)
        figures["aji"] = sum(each.shared for each in self.records) / joint if joint else math.nan
        figures["image_aji"] = _mean([each.shared / each.joint for each in self.records if each.joint])
        return figures

    def tables(self) -> list[Table]:
        """Figures by threshold; by category and by kind of image, where there are several."""
        figures = self.compute()
        columns = ("tp", "fp", "fn", "precision", "recall", "f1", "accuracy", "mean_matched_score", "mean_true_score")
        columns += ("panoptic_quality", "image_accuracy")
        counts = {"tp", "fp", "fn"}
        rows: list[tuple[Cell, ...]] = []
        for threshold in self.thresholds:
            row = {each: figures[f"{each}@{threshold:g}"] for each in columns}
            rows.append((threshold, *(int(value) if each in counts else value for each, value in row.items())))
        covered = sum(each.covered for each in self.records)
        note = (
            f"{covered} pixels of the truth lie under several objects and were given to one of them." if covered else ""
        )
        titles = ("IoU threshold", *(each.replace("_", " ") for each in columns))
        tables = [Table("Matching", titles, tuple(rows), note)]
        if len(self.categories) > 1:
            parts = {
                each.name: [_of_category(record, index) for record in self.records if index in record.category]
                for index, each in enumerate(self.categories)
                if each.is_thing
            }
            tables.append(self._comparison("Categories", "category", parts))
        groups = sorted({each.group for each in self.records})
        if len(groups) > 1:
            parts = {group: [each for each in self.records if each.group == group] for group in groups}
            tables.append(self._comparison("Kinds of image", "kind", parts))
        return tables

    def images(self) -> Table:
        """One row for each image, in order of names: objects, accuracy at every threshold, aggregated Jaccard index."""
        rows: list[tuple[Cell, ...]] = []
        for record in sorted(self.records, key=lambda each: each.name):
            accuracy = self._pooled([record])["accuracy"]
            jaccard = record.shared / record.joint if record.joint else math.nan
            # Nothing found where nothing is: no figure, rather than the 0 of the pooled convention.
            shown = [float(each) if record.joint else math.nan for each in accuracy]
            rows.append(
                (record.name, record.group, int(record.true.sum()), int(record.predicted.sum()), *shown, jaccard)
            )
        accuracies = [f"accuracy@{each:g}" for each in self.thresholds]
        columns = ("image", "kind", "true objects", "predicted objects", *accuracies, "AJI")
        judge = "accuracy@0.5" if "accuracy@0.5" in accuracies else accuracies[0]
        return Table("Images", columns, tuple(rows), judge=judge)

    def curves(self) -> list[Curve]:
        """Pooled accuracy, F1, precision and recall over the IoU thresholds, if there are several."""
        if len(self.thresholds) == 1:
            return []
        x = np.array(self.thresholds)
        pooled = self._pooled(self.records)
        names = {"accuracy": "accuracy", "F1": "f1", "precision": "precision", "recall": "recall"}
        return [Curve("Matching", name, "IoU threshold", "figure", x, pooled[figure]) for name, figure in names.items()]

    def _object_categories(self, segments: Segments, role: str, name: str) -> NDArray[np.int64]:
        """(N,) category indices, -1 for stuff."""
        if len(self.categories) == 1:
            return np.zeros(len(segments), np.int64)
        indices = category_indices(segments, self.categories, role, name)
        things = np.array([each.is_thing for each in self.categories], dtype=np.bool_)
        return np.where(things[indices], indices, -1)

    def _pooled(self, records: Sequence[ImageRecord]) -> dict[str, NDArray[np.float64]]:
        """(T,) figures of counts added up over the images."""
        matched, true, predicted = _totals(records, len(self.thresholds))
        # fsum is exactly rounded, so the order of images and processes leaves no trace in the last bit.
        score = [math.fsum(x for each in records for x in each.score[:, i]) for i in range(len(self.thresholds))]
        return _figures(matched, true, predicted, np.array(score))

    def _means_over_images(self) -> dict[str, NDArray[np.float64]]:
        """(T,) means of the figures of single images; NaN if all are empty."""
        scored = [self._pooled([each]) for each in self.records if len(each.category)]
        names = _figures(np.zeros(1, np.int64), 0, 0, np.zeros(1))
        width = range(len(self.thresholds))
        return {name: np.array([_mean([float(each[name][i]) for each in scored]) for i in width]) for name in names}

    def _comparison(self, title: str, column: str, parts: dict[str, list[ImageRecord]]) -> Table:
        """Pooled accuracy at .5 and .7 of parts of the records; at all thresholds if those are not among them."""
        shown = [i for i, each in enumerate(self.thresholds) if each in (0.5, 0.7)] or list(range(len(self.thresholds)))
        rows: list[tuple[Cell, ...]] = []
        for name, records in parts.items():
            _, true, predicted = _totals(records, len(self.thresholds))
            accuracy = self._pooled(records)["accuracy"]
            rows.append((name, len(records), true, predicted, *(float(accuracy[i]) for i in shown)))
        accuracies = (f"accuracy@{self.thresholds[i]:g}" for i in shown)
        return Table(title, (column, "images", "true objects", "predicted objects", *accuracies), tuple(rows))


def _overlapping_pairs(
    truth_ids: NDArray[np.int32],
    prediction_ids: NDArray[np.int32],
    truth_category: NDArray[np.int64],
    prediction_category: NDArray[np.int64],
    crowd: NDArray[np.bool_],
) -> _Pairs:
    """The overlaps of two label maps, void and crowd pixels of the truth left out."""
    from everymask.ops.labels import label_overlap

    a, b, shared = label_overlap(truth_ids, prediction_ids)
    # Index -1 of the padded table is void, which is treated like a crowd.
    ignored = np.concatenate([[False], crowd, [True]])[np.maximum(a, VOID)]
    a, b, shared = a[~ignored], b[~ignored], shared[~ignored]
    areas = []
    for ids, category in ((a, truth_category), (b, prediction_category)):
        area = np.zeros(len(category), np.int64)
        np.add.at(area, ids[ids > 0] - 1, shared[ids > 0])
        areas.append(area)
    truth_category, prediction_category = (
        np.where(area > 0, category, -1)
        for area, category in zip(areas, (truth_category, prediction_category), strict=True)
    )
    both = (a > 0) & (b > 0)
    a, b, shared = a[both] - 1, b[both] - 1, shared[both]
    same = (truth_category[a] == prediction_category[b]) & (truth_category[a] >= 0)
    a, b, shared = a[same], b[same], shared[same]
    joint = areas[0][a] + areas[1][b] - shared
    return _Pairs(a, b, shared, joint, truth_category, prediction_category, areas[0], areas[1])


def _matched_jaccard(pairs: _Pairs) -> tuple[int, int]:
    """Numerator and denominator, in pixels, of the aggregated Jaccard index of cellpose."""
    assigned = best_pairs(
        pairs.truth, pairs.prediction, pairs.iou, pairs.iou >= 0.5, np.arange(len(pairs.truth)), every=True
    )
    areas = (
        pairs.truth_area[pairs.truth_category >= 0].sum() + pairs.prediction_area[pairs.prediction_category >= 0].sum()
    )
    return int(pairs.shared[assigned].sum()), int(areas - pairs.shared.sum())


def _aggregated_jaccard(pairs: _Pairs) -> tuple[int, int]:
    """Numerator and denominator, in pixels, of Kumar et al. 2017, algorithm 1.

    Every true object takes the predicted object of highest IoU (of equal ones the first), which others may take as
    well; predicted objects that none took are added to the denominator.
    """
    # Sorted by true object, then by falling IoU: the first pair of each true object is its best.
    order = np.lexsort((pairs.prediction, -pairs.iou, pairs.truth))
    touched, first = np.unique(pairs.truth[order], return_index=True)
    best = order[first]
    missed = pairs.truth_category >= 0
    missed[touched] = False
    spare = pairs.prediction_category >= 0
    spare[pairs.prediction[best]] = False
    joint = pairs.joint[best].sum() + pairs.truth_area[missed].sum() + pairs.prediction_area[spare].sum()
    return int(pairs.shared[best].sum()), int(joint)


def _totals(records: Sequence[ImageRecord], width: int) -> tuple[NDArray[np.int64], int, int]:
    """Matches (T,), true objects and predicted objects of all images together."""
    matched = np.zeros(width, np.int64)
    for each in records:
        matched += each.matched.sum(axis=0)
    return matched, sum(int(each.true.sum()) for each in records), sum(int(each.predicted.sum()) for each in records)


def _figures(
    matched: NDArray[np.int64], true: int, predicted: int, score: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    """(T,) figures from counts (T,) and sums of IoU (T,); 0 / 0 is 0, as in `stardist.matching`."""

    def divide(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.divide(above, below, out=np.zeros(len(matched)), where=below > 0)

    tp = matched.astype(np.float64)
    fp, fn = predicted - tp, true - tp
    return {
        "precision": divide(tp, tp + fp),
        "recall": divide(tp, tp + fn),
        "f1": divide(2 * tp, 2 * tp + fp + fn),
        "accuracy": divide(tp, tp + fp + fn),
        "mean_matched_score": divide(score, tp),
        "mean_true_score": divide(score, tp + fn),
        "panoptic_quality": divide(score, tp + fp / 2 + fn / 2),
    }


def _of_category(record: ImageRecord, index: int) -> ImageRecord:
    """The counts of one category; the aggregated Jaccard index has no share per category and stays out."""
    chosen = record.category == index
    return ImageRecord(
        record.name,
        record.group,
        record.category[chosen],
        record.true[chosen],
        record.predicted[chosen],
        record.matched[chosen],
        record.score[chosen],
        0,
        0,
        0,
    )


def _mean(values: Sequence[float]) -> float:
    """Exactly rounded sum over count, so that order does not matter; NaN of nothing."""
    return math.fsum(values) / len(values) if values else math.nan
