"""The pixel-level semantic labelling task of Cityscapes.

Follows cityscapesScripts 2.3 (`evaluation/evalPixelLevelSemanticLabeling.py`), without its text output:

- Of each of the 19 evaluated labels, IoU = TP / (TP + FP + FN) in pixels of all images. Pixels whose true label is not
  evaluated are ignored. Whatever is predicted on the others and is not their label, void and labels that are not
  evaluated included, is a false negative.
- Of each of the seven groups (the paper's categories), the same with labels of one group taken as one.
- Of each label with instances, iIoU = iTP / (iTP + FP + iFN): pixels of a true instance count with the weight of the
  average size of such instances divided by its own size, so that near cars do not outweigh far ones. FP has no weight.
  Likewise for the groups that have nothing but instances, human and vehicle.

The figures of a set are means over what occurs (Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene
Understanding", CVPR 2016, section 4.1 and equation 1).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from everymask.errors import InputError
from everymask.metrics.base import Cell, Confusion, Metric, Table, category_indices, check_pair, label_map
from everymask.ops.confusion import count_pairs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from everymask.types import Categories, Segments

GROUPS = {
    "flat": ("road", "sidewalk"),
    "construction": ("building", "wall", "fence"),
    "object": ("pole", "traffic light", "traffic sign"),
    "nature": ("vegetation", "terrain"),
    "sky": ("sky",),
    "human": ("person", "rider"),
    "vehicle": ("car", "truck", "bus", "train", "motorcycle", "bicycle"),
}
"""The labels that are evaluated, by group, in the order of the official table."""

AVERAGE_SIZE = {
    "person": 3462.4756337644,
    "rider": 3930.4788056518,
    "car": 12794.0202738185,
    "truck": 27855.1264367816,
    "bus": 35732.1511111111,
    "train": 67583.7075812274,
    "motorcycle": 6298.7200839748,
    "bicycle": 4672.3249222261,
}
"""Average size in pixels of the instances of a label, from the official program (`avgClassSize`)."""

INSTANCE_GROUPS = {"human": GROUPS["human"], "vehicle": (*GROUPS["vehicle"], "caravan", "trailer")}
"""Groups of nothing but instances, with those labels that are not evaluated but count as vehicles in the iIoU."""

_IGNORED = ("unlabeled", "ego vehicle", "rectification border", "out of roi", "static", "dynamic", "ground", "parking")
_IGNORED += ("rail track", "guard rail", "bridge", "tunnel", "polegroup", "caravan", "trailer", "license plate")
_LABELS = tuple(label for labels in GROUPS.values() for label in labels)


@dataclass(frozen=True)
class _Image:
    """What is kept of one image.

    Args:
        name: Of the image.
        group: Kind of image.
        miou: Mean IoU of this image alone.
        instances: (I, 4) of each true instance: position of its label in the categories, its pixels, those predicted
            as its label, and those predicted as any label of its group.
        told_apart: Whether the truth tells instances apart.
    """

    name: str
    group: str
    miou: float
    instances: NDArray[np.int64]
    told_apart: bool


class CityscapesMetric(Metric):
    """IoU of labels and groups, and instance-weighted IoU, exactly as the official program counts them.

    The truth has to tell instances apart: a segment of a label with instances is one instance, unless it is marked as a
    crowd (a group of instances without a line between them), which the weighted figures pass over. Where the truth of
    an image is known to have no instances (``extra["instances"]`` is false), there are no weighted figures.

    Of the prediction only the categories count. Where segments overlap, the higher score wins, or the later one without
    scores.

    Args:
        categories: Labels of Cityscapes, by name: all of them, or only those that are evaluated.

    Raises:
        InputError: A category is no label of Cityscapes.
    """

    reading: ClassVar[Mapping[str, Mapping[str, Any]]] = {"cityscapes": {"geometry": "masks"}}

    def __init__(self, categories: Categories) -> None:
        super().__init__(categories)
        names = categories.names
        unknown = [name for name in names if name not in _LABELS and name not in _IGNORED]
        if unknown:
            raise InputError(
                f"the categories {', '.join(map(repr, unknown[:5]))} are no labels of Cityscapes, which alone the "
                "protocol 'cityscapes' scores; use the protocol 'semantic'"
            )
        count = len(names)
        self._position = {name: i for i, name in enumerate(names)}
        self._evaluated = [name for name in _LABELS if name in self._position]
        # Positions of the labels of each group; then, for each label, which predictions are hits of its group.
        self._groups = {group: self._positions(labels) for group, labels in GROUPS.items()}
        self._weighted_groups = {group: self._positions(labels) for group, labels in INSTANCE_GROUPS.items()}
        self._members = np.zeros((count, count + 2), bool)
        for positions in self._weighted_groups.values():
            self._members[np.ix_(positions, positions)] = True
        self._weighted = np.array([name in AVERAGE_SIZE for name in names], bool)
        self._matrix = np.zeros((count + 2, count + 2), np.int64)
        self._images: list[_Image] = []

    def _positions(self, labels: Iterable[str]) -> list[int]:
        return [self._position[label] for label in labels if label in self._position]

    @property
    def matrix(self) -> NDArray[np.int64]:
        """(K + 2, K + 2) pixels, rows the truth and columns the prediction: the categories, no segment, and void."""
        return self._matrix

    def update(
        self,
        truth: Segments,
        prediction: Segments,
        name: str = "",
        group: str = "",
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Takes in one image; see `Metric.update`. The truth's ``extra["instances"]`` may be false, see the class."""
        check_pair(truth, prediction, name)
        count, number = len(self.categories), len(truth)
        true = category_indices(truth, self.categories, "truth", name)
        predicted = category_indices(prediction, self.categories, "prediction", name)
        # Rows are true segments first, since a segment is an instance; afterwards they are added up by category.
        rows = np.concatenate([[number + 1, number], np.arange(number)])
        columns = np.concatenate([[count + 1, count], predicted])
        maps = label_map(truth, "truth", name), label_map(prediction, "prediction", name)
        pairs = count_pairs(*maps, rows, columns, (number + 2, count + 2))
        matrix = np.zeros((count + 2, count + 2), np.int64)
        np.add.at(matrix, np.concatenate([true, [count, count + 1]]), pairs)
        told_apart = extra is None or bool(extra.get("instances", True))
        chosen = np.flatnonzero(self._weighted[true] & ~truth.crowd) if told_apart else np.zeros(0, np.int64)
        label, hits = true[chosen], pairs[chosen]
        in_group = np.where(self._members[label], hits, 0).sum(axis=1)
        instances = np.stack([label, hits.sum(axis=1), hits[np.arange(len(chosen)), label], in_group], axis=1)
        self._matrix = self._matrix + matrix
        miou = _mean(self._label_iou(matrix).values())
        # An instance without a pixel, hidden by others, has no weight.
        self._images.append(_Image(name, group, miou, instances[instances[:, 1] > 0], told_apart))

    def merge(self, other: Self) -> None:
        """Takes in all images of `other`; see `Metric.merge`."""
        if other.categories != self.categories:
            raise InputError("Cityscapes metrics of different categories cannot be merged; use the same for both")
        self._matrix = self._matrix + other._matrix
        self._images += other._images

    def compute(self) -> dict[str, float]:
        """The figures over all images so far, in 0..1, NaN where nothing was there to be scored.

        The four of the benchmark: `miou` ("IoU class"), `iiou` ("iIoU class"), `category_iou` and `category_iiou` (of
        the groups). For each label and group `iou/NAME`, `iiou/NAME`, `category_iou/NAME`, `category_iiou/NAME`, the
        weighted ones where there are instances. `images` is the number of images.
        """
        figures = {"images": float(len(self._images))}
        single: dict[str, float] = {}
        for key, scores in self._scores().items():
            figures["miou" if key == "iou" else key] = _mean(scores.values())
            single |= {f"{key}/{name}": value for name, value in scores.items()}
        return figures | single

    def tables(self) -> list[Table]:
        """The figures of each label and of each group."""
        scores = self._scores()
        true = self._matrix.sum(axis=1)
        nan = float("nan")
        labels: list[tuple[Cell, ...]] = [
            (name, value, scores["iiou"].get(name, nan), int(true[self._position[name]]))
            for name, value in scores["iou"].items()
        ]
        groups: list[tuple[Cell, ...]] = [
            (name, value, scores["category_iiou"].get(name, nan), int(true[self._groups[name]].sum()))
            for name, value in scores["category_iou"].items()
        ]
        note = "" if self._told_apart else "The truth of some images has no instances, so there is no iIoU."
        return [
            Table("Categories", ("category", "IoU", "iIoU", "true pixels"), tuple(labels), note, judge="IoU"),
            Table("Groups", ("group", "IoU", "iIoU", "true pixels"), tuple(groups), judge="IoU"),
        ]

    def images(self) -> Table:
        """One row for each image, in order of names: mean IoU of the labels in it, and its true instances."""
        rows: list[tuple[Cell, ...]] = sorted(
            ((each.name, each.group, len(each.instances), each.miou) for each in self._images), key=repr
        )
        return Table("Images", ("image", "kind", "true instances", "mIoU"), tuple(rows), judge="mIoU")

    def confusion(self) -> Confusion:
        """Pixels of each evaluated true label, by what was predicted, as far as it occurs."""
        names = [*self.categories.names, "no segment", "void"]
        rows = self._positions(self._evaluated)
        columns = rows + [i for i in range(len(names)) if i not in rows and self._matrix[rows, i].any()]
        counts = self._matrix[np.ix_(rows, columns)]
        return Confusion(tuple(self._evaluated), tuple(names[i] for i in columns), counts, "pixels")

    @property
    def _told_apart(self) -> bool:
        return all(each.told_apart for each in self._images)

    def _scores(self) -> dict[str, dict[str, float]]:
        """The four figures of every label or group that has them."""
        matrix, nan = self._matrix, float("nan")
        evaluated = self._positions(self._evaluated)
        weights = self._weights()
        scores: dict[str, dict[str, float]] = {"iou": self._label_iou(matrix), "iiou": {}}
        scores |= {"category_iou": {}, "category_iiou": {}}
        for name in (each for each in self._evaluated if each in AVERAGE_SIZE):
            position = self._position[name]
            wrong = int(matrix[[i for i in evaluated if i != position], position].sum())
            hit, missed = weights.label([position])
            scores["iiou"][name] = _ratio(hit, wrong, missed) if self._told_apart else nan
        for group, inside in self._groups.items():
            if not inside:
                continue
            outside = [i for i in evaluated if i not in inside]
            hits = int(matrix[np.ix_(inside, inside)].sum())
            wrong = int(matrix[np.ix_(outside, inside)].sum())
            scores["category_iou"][group] = _ratio(hits, wrong, int(matrix[inside].sum()) - hits)
            if group in self._weighted_groups:
                wrong = int(matrix[np.ix_(outside, self._weighted_groups[group])].sum())
                hit, missed = weights.group(inside)
                scores["category_iiou"][group] = _ratio(hit, wrong, missed) if self._told_apart else nan
        return scores

    def _label_iou(self, matrix: NDArray[np.int64]) -> dict[str, float]:
        """IoU of every evaluated label."""
        evaluated = self._positions(self._evaluated)
        true, predicted = matrix.sum(axis=1), matrix[evaluated].sum(axis=0)
        hit = matrix.diagonal()
        return {
            self.categories[i].name: _ratio(int(hit[i]), int(predicted[i] - hit[i]), int(true[i] - hit[i]))
            for i in evaluated
        }

    def _weights(self) -> _Weights:
        rows = np.concatenate([np.zeros((0, 4), np.int64), *(each.instances for each in self._images)])
        average = np.array([AVERAGE_SIZE.get(name, 0.0) for name in self.categories.names])
        return _Weights(rows, average[rows[:, 0]] / rows[:, 1])


@dataclass(frozen=True)
class _Weights:
    """Weighted pixels of all true instances.

    Sums are exactly rounded, so that neither the order of the images nor their share among processes changes a bit.

    Args:
        rows: (I, 4) as `_Image.instances`.
        weight: (I,) of one pixel of each.
    """

    rows: NDArray[np.int64]
    weight: NDArray[np.float64]

    def label(self, positions: list[int]) -> tuple[float, float]:
        """Weighted hits and misses of the instances of some labels, where a hit is the very label."""
        return self._sums(positions, self.rows[:, 2])

    def group(self, positions: list[int]) -> tuple[float, float]:
        """Likewise, where any label of the group is a hit."""
        return self._sums(positions, self.rows[:, 3])

    def _sums(self, positions: list[int], hits: NDArray[np.int64]) -> tuple[float, float]:
        chosen = np.isin(self.rows[:, 0], positions)
        weight, hit, size = self.weight[chosen], hits[chosen], self.rows[chosen, 1]
        return math.fsum(hit * weight), math.fsum((size - hit) * weight)


def _ratio(hit: float, wrong: float, missed: float) -> float:
    """hit / (hit + wrong + missed), NaN where all are zero."""
    whole = hit + wrong + missed
    return hit / whole if whole else float("nan")


def _mean(values: Iterable[float]) -> float:
    """The mean of what is not NaN; NaN if nothing is left."""
    left = [each for each in values if not math.isnan(each)]
    return math.fsum(left) / len(left) if left else float("nan")
