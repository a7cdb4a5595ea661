"""Average precision of boxes and masks, the protocol of COCO: figures equal to those of pycocotools' `COCOeval`.

Where the official program (version 2.0.11) is followed to the letter, and where it is not:

- Crowds of the truth may be matched again and again, with intersection over the detection's area, and are ignored.
- The ranges of area go by the annotated area of a true object (attribute ``area``); without one, by the pixels of its
  mask, or by its box if there is no mask. A detection that has a box of its own goes by that box, even where masks are
  scored (so does the official program when results hold ``bbox``), else by the pixels of its mask.
- Equal scores are told apart by the order of detections in an image and the order of images by their ids, which are
  ``extra["image_id"]``; an image without id is ordered by its name, after those with ids.
- The official program takes a match with a true object of id 0 for no match, because it stores ids and tests for 0.
  Here it is a match.
- Its -1, for figures without any true object, is NaN.
- Stuff (`Category.is_thing` false) is left out, void pixels belong to no segment and are not treated specially.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from everymask.errors import InputError, unknown_name
from everymask.metrics.base import Cell, Curve, Metric, Table, category_indices, check_pair
from everymask.metrics.coco_matching import Objects, Pairs, arrange, box_pairs, descending_keys, mask_pairs
from everymask.metrics.coco_parts import Part, box_sides, image_key, matched_part
from everymask.metrics.coco_rules import AREAS, MAX_DETECTIONS, RECALLS, THRESHOLDS, UNLIMITED, Rules
from everymask.metrics.coco_summary import Summary, summarise
from everymask.ops.rle_pairs import extents, pair_overlaps

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from everymask.types import Categories, Masks, Segments

DETECTION_AREAS = ("given", "mask")
_MOST_CURVES = 20  # categories with a line of their own in a plot


class CocoMetric(Metric):
    """What average precision of boxes and of masks share.

    The true objects and detections of an image and a category are matched when the image is taken in, at all thresholds
    and in all ranges of area; 32 bytes of a detection are kept. See the module for how figures relate to the official
    program's.

    Args:
        categories: The classes of the data set. Only things are scored.
        thresholds: IoU values, 1 to 64 of them.
        areas: Name of each range of object areas and its ends in pixels, both included. The headline figures are those
            of the first range.
        max_detections: How many detections of a category in an image count, those of highest score; several limits give
            a recall each, the largest is that of the headline figures. 0 stands for no limit, as dense fields need.

    Raises:
        InputError: An option has no good value, or no category is a thing.
    """

    def __init__(
        self,
        categories: Categories,
        thresholds: Sequence[float] = THRESHOLDS,
        areas: Mapping[str, Sequence[float]] = AREAS,
        max_detections: int | Sequence[int | None] = MAX_DETECTIONS,
    ) -> None:
        super().__init__(categories)
        self.rules = Rules.checked(thresholds, areas, max_detections)
        # The official program averages over categories in order of their ids.
        by_id = np.argsort(categories.ids, kind="stable")
        self.scored_categories = tuple(int(i) for i in by_id if categories[int(i)].is_thing)
        """Indices of the things among `categories`, by id: the order of categories in `summary`."""
        if not self.scored_categories:
            raise InputError("no category is a thing, so there are no objects to score; use the protocol 'semantic'")
        self.places = np.full(len(categories), -1, np.int32)
        """(K,) the position of each of `categories` in `scored_categories`, -1 for stuff."""
        self.places[list(self.scored_categories)] = np.arange(len(self.scored_categories))
        self._parts: list[Part] = []
        self._whole: Part | None = None
        self._summary: Summary | None = None

    # -- taking in -----------------------------------------------------------------------------------------------------

    def update(
        self,
        truth: Segments,
        prediction: Segments,
        name: str = "",
        group: str = "",
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Takes in one image; see `Metric.update`. The truth's attribute ``area`` and ``extra["image_id"]`` count."""
        place = f"image {name!r}" if name else "an image without a name"
        check_pair(truth, prediction, name)
        if len(truth.size) != 2:
            raise InputError(f"{place}: is a volume, but COCO average precision is for images; use 'matching'")
        if prediction.score is None and len(prediction):
            raise InputError(
                f"{place}: the prediction has no scores, but average precision ranks detections by score; "
                "use the protocol 'matching'"
            )
        for role, segments in (("truth", truth), ("prediction", prediction)):
            if segments.given_boxes is not None and not np.isfinite(segments.given_boxes).all():
                raise InputError(f"{place}: a box of the {role} is not finite; check that the model's weights are")
        truths = self._arranged(truth, "truth", name)
        detections = self._arranged(prediction, "prediction", name)
        crowd = truth.crowd[truths.rows]
        try:
            pairs, areas, truth_areas = self._overlaps(truth, prediction, truths, detections, crowd)
        except InputError as error:
            raise InputError(f"{place}: {error}") from error
        score = np.zeros(0) if prediction.score is None else prediction.score[detections.rows]
        labels = (name,), (group,), (image_key((extra or {}).get("image_id", name)),)
        self.add(matched_part(self.rules, labels, truths, detections, pairs, score, areas, truth_areas, crowd))

    def add(self, part: Part) -> None:
        """Takes in images that were matched elsewhere by the same rules."""
        self._parts.append(part)
        self._whole = self._summary = None

    def merge(self, other: Self) -> None:
        """Takes in all images of `other`; see `Metric.merge`."""
        if (type(other), other.categories, other.rules) != (type(self), self.categories, self.rules):
            raise InputError(
                "COCO metrics of different kinds, categories, thresholds, areas or limits cannot be merged; "
                "use the same for both"
            )
        self._parts.extend(other._parts)
        self._whole = self._summary = None

    def _arranged(self, segments: Segments, role: str, name: str) -> Objects:
        """Things in the order of evaluation."""
        category = self.places[category_indices(segments, self.categories, role, name)]
        rows = np.flatnonzero(category >= 0)
        return arrange(
            rows,
            np.array([0, len(rows)]),
            category,
            len(self.scored_categories),
            descending_keys(segments.score) if role == "prediction" and segments.score is not None else None,
            self.rules.max_detections[-1] if role == "prediction" else None,
        )

    @abstractmethod
    def _overlaps(
        self, truth: Segments, prediction: Segments, truths: Objects, detections: Objects, crowd: NDArray[np.bool_]
    ) -> tuple[Pairs, NDArray[np.float64], NDArray[np.float64]]:
        """Overlapping pairs, the areas (D,) of the detections and those (G,) of the true objects, all by position."""

    # -- figures -------------------------------------------------------------------------------------------------------

    def summary(self) -> Summary:
        """Precision and recall at every threshold, in every range of area and with every limit of detections.

        Categories are those of `scored_categories`; NaN where a category has no true object that counts.

        Raises:
            InputError: An image was given twice.
        """
        if self._summary is None:
            whole = self._joined()
            self._summary = summarise(self.rules, whole.detections, whole.positives(len(self.scored_categories)))
        return self._summary

    def compute(self) -> dict[str, float]:
        """The figures, those of the official program under these names, in its order.

        - `ap`: mean precision over recalls 0, .01 ... 1, thresholds and categories; `ap50`, `ap75`: at one threshold.
        - `ap_small`, `ap_medium`, `ap_large`: the same as `ap` for objects in a range of area.
        - `ar_1`, `ar_10`, `ar_100`: mean over thresholds and categories of the recall with so many detections of a
          category in an image (`ar_unlimited` without a limit).
        - `ar_small`, `ar_medium`, `ar_large`: recall with the most detections, in a range of area.

        With other options the names change accordingly. NaN where there is no true object. Further: the numbers of
        `images`, `true_objects` (that are not ignored) and `detections` (within the limit).
        """
        figures = self._figures(self.summary())
        whole = self._joined()
        return {
            **figures,
            "images": float(len(whole.names)),
            "true_objects": float(whole.truth_count[:, 0].sum()),
            "detections": float(len(whole.detections.score)),
        }

    def tables(self) -> list[Table]:
        """Figures by range of area, by category, and by kind of image where there are several."""
        summary, whole, rules = self.summary(), self._joined(), self.rules
        names = self._single_thresholds()
        columns = ("area", "AP", *(f"AP{each}" for each in names), *(f"AR {each}" for each in rules.limit_names))
        rows: list[tuple[Cell, ...]] = []
        for a, (name, _, _) in enumerate(rules.areas):
            precision, recall = summary.precision[..., a, -1], summary.recall[..., a, :]
            single = (summary.mean(precision[t]) for t in names.values())
            by_limit = (summary.mean(recall[..., m]) for m in range(len(rules.max_detections)))
            rows.append((name, summary.mean(precision), *single, *by_limit))
        limit = rules.limit_names[-1]
        note = f"At most {limit} detections of a category in an image; AR 1 is recall with at most one."
        if rules.max_detections[-1] == UNLIMITED:
            note = "Detections are not limited in number, as the official figures are."
        tables = [Table("Average precision", columns, tuple(rows), note), self._category_table(summary, whole)]
        groups = sorted(set(whole.groups))
        if len(groups) > 1:
            tables.append(self._group_table(whole, groups))
        return tables

    def images(self) -> Table:
        """One row for each image: what was found and missed at the score that gives the best F1 over all images.

        Objects are matched at IoU .5 (at the lowest threshold if .5 is none of them), in the first range of area.
        """
        whole = self._joined()
        half = self.rules.threshold_index(0.5) or 0
        hit, miss = (
            (column[:, 0] >> np.uint64(half) & np.uint64(1)).astype(np.int64)
            for column in (whole.detections.true, whole.detections.false)
        )
        score, image = whole.detections.score, np.repeat(np.arange(len(whole.names)), np.diff(whole.starts))
        truth_image = np.repeat(np.arange(len(whole.names)), np.diff(whole.truth_starts))
        true = np.bincount(truth_image, whole.truth_count[:, 0], len(whole.names)).astype(np.int64)
        cut = _best_score(score, hit, miss, int(true.sum()))
        kept = score >= cut
        found, spurious = (
            np.bincount(image[kept], each[kept], len(whole.names)).astype(np.int64) for each in (hit, miss)
        )
        rows: list[tuple[Cell, ...]] = []
        for i in sorted(range(len(whole.names)), key=lambda each: whole.names[each]):
            together = int(true[i] + found[i] + spurious[i])
            f1 = float(2 * found[i] / together) if together else float("nan")
            counts = int(true[i]), int(found[i]), int(true[i] - found[i]), int(spurious[i])
            rows.append((whole.names[i], whole.groups[i], *counts, f1))
        title = f"F1@{self.rules.thresholds[half]:g}"
        note = f"Detections of score {cut:.3g} and above, which gives the best F1 over all images."
        return Table(
            "Images", ("image", "kind", "true objects", "found", "missed", "spurious", title), tuple(rows), note, title
        )

    def curves(self) -> list[Curve]:
        """Precision over recall, mean over categories at each threshold; and of each category, if they are not many."""
        precision = self.summary().precision[..., 0, -1]
        defined = ~np.isnan(precision[0, 0])
        labels = "recall", "precision", RECALLS
        lines = [
            Curve("Precision over recall", f"IoU {threshold:.2g}", *labels, precision[t][:, defined].mean(axis=1))
            for t, threshold in enumerate(self.rules.thresholds)
            if defined.any()
        ]
        if 1 < len(self.scored_categories) <= _MOST_CURVES:
            lines += [
                Curve(
                    "Precision over recall of categories",
                    self.categories[index].name,
                    *labels,
                    precision[:, :, k].mean(axis=0),
                )
                for k, index in enumerate(self.scored_categories)
            ]
        return lines

    def _joined(self) -> Part:
        if self._whole is None:
            empty = np.zeros(1, np.int64)
            parts = self._parts or [
                matched_part(
                    self.rules,
                    ((), (), ()),
                    Objects(empty, empty[:0], np.zeros(0, np.int32), np.zeros(0, np.int32)),
                    Objects(empty, empty[:0], np.zeros(0, np.int32), np.zeros(0, np.int32)),
                    Pairs(empty, np.zeros(0, np.int32), np.zeros(0)),
                    np.zeros(0),
                    np.zeros(0),
                    np.zeros(0),
                    np.zeros(0, np.bool_),
                )
            ]
            self._whole = Part.joined(parts)
            # One part instead of thousands: the memory of a long evaluation stays that of its columns.
            self._parts = [self._whole] if self._parts else []
        return self._whole

    def _single_thresholds(self) -> dict[str, int]:
        """``50`` and ``75``: positions of the thresholds that have a figure of their own."""
        found = {str(round(100 * value)): self.rules.threshold_index(value) for value in (0.5, 0.75)}
        return {name: index for name, index in found.items() if index is not None}

    def _figures(self, summary: Summary) -> dict[str, float]:
        precision, recall = summary.precision, summary.recall
        figures = {"ap": summary.mean(precision[:, :, :, 0, -1])}
        for name, t in self._single_thresholds().items():
            figures[f"ap{name}"] = summary.mean(precision[t, :, :, 0, -1])
        others = [(index, name) for index, (name, _, _) in enumerate(self.rules.areas)][1:]
        for index, name in others:
            figures[f"ap_{name}"] = summary.mean(precision[:, :, :, index, -1])
        for m, name in enumerate(self.rules.limit_names):
            figures[f"ar_{name}"] = summary.mean(recall[:, :, 0, m])
        for index, name in others:
            figures[f"ar_{name}"] = summary.mean(recall[:, :, index, -1])
        return figures

    def _category_table(self, summary: Summary, whole: Part) -> Table:
        names = self._single_thresholds()
        areas = [(index, name) for index, (name, _, _) in enumerate(self.rules.areas)][1:]
        true = whole.positives(len(self.scored_categories))[:, 0]
        detected = np.bincount(whole.detections.category, minlength=len(self.scored_categories))
        rows: list[tuple[Cell, ...]] = []
        for k in sorted(range(len(self.scored_categories)), key=lambda each: self.scored_categories[each]):
            precision, recall = summary.precision[:, :, k, :, -1], summary.recall[:, k, :, -1]
            rows.append(
                (
                    self.categories[self.scored_categories[k]].name,
                    int(true[k]),
                    int(detected[k]),
                    summary.mean(precision[..., 0]),
                    *(summary.mean(precision[t, :, 0]) for t in names.values()),
                    *(summary.mean(precision[..., a]) for a, _ in areas),
                    summary.mean(recall[:, 0]),
                )
            )
        figures = ("AP", *(f"AP{each}" for each in names), *(f"AP {each}" for _, each in areas), "AR")
        return Table("Categories", ("category", "true objects", "detections", *figures), tuple(rows), judge="AP")

    def _group_table(self, whole: Part, groups: Sequence[str]) -> Table:
        rows: list[tuple[Cell, ...]] = []
        names = self._single_thresholds()
        for group in groups:
            part = whole.chosen([i for i, each in enumerate(whole.groups) if each == group])
            positives = part.positives(len(self.scored_categories))
            figures = self._figures(summarise(self.rules, part.detections, positives))
            single = (figures[f"ap{each}"] for each in names)
            rows.append((group, len(part.names), int(positives[:, 0].sum()), figures["ap"], *single))
        columns = ("kind", "images", "true objects", "AP", *(f"AP{each}" for each in names))
        return Table("Kinds of image", columns, tuple(rows), judge="AP")


class CocoBoxMetric(CocoMetric):
    """COCO average precision of boxes (`iouType="bbox"`).

    Boxes are the segments' own, else the tight ones of their geometry. Detections without boxes of their own go by the
    area of their mask, as officially.
    """

    def _overlaps(
        self, truth: Segments, prediction: Segments, truths: Objects, detections: Objects, crowd: NDArray[np.bool_]
    ) -> tuple[Pairs, NDArray[np.float64], NDArray[np.float64]]:
        truth_boxes = box_sides(truth.boxes())[truths.rows]
        boxes = box_sides(prediction.boxes())[detections.rows]
        if prediction.given_boxes is not None:
            areas = box_areas(boxes)
        else:
            areas = prediction.areas()[detections.rows].astype(np.float64)
        pairs = box_pairs(truths, detections, truth_boxes, boxes, crowd, float(self.rules.lowest[0]))
        return pairs, areas, _annotated_areas(truth)[truths.rows]


class CocoMaskMetric(CocoMetric):
    """COCO average precision of masks (`iouType="segm"`).

    Args:
        categories: See `CocoMetric`, as for the next three.
        thresholds: IoU values.
        areas: Ranges of object areas.
        max_detections: Limits of detections.
        detection_area: What puts a detection in a range of area: ``"given"``, the box it came with and otherwise its
            mask, which is what the official program does with the same results; or ``"mask"``, always its mask, which
            is what programs do that remove boxes before they score masks.

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
    ) -> None:
        super().__init__(categories, thresholds, areas, max_detections)
        if detection_area not in DETECTION_AREAS:
            raise unknown_name("detection_area", detection_area, DETECTION_AREAS)
        self.detection_area = detection_area

    def merge(self, other: Self) -> None:
        """Takes in all images of `other`; see `Metric.merge`."""
        if other.detection_area != self.detection_area:
            raise InputError("COCO metrics of different detection_area cannot be merged; use the same for both")
        super().merge(other)

    def _overlaps(
        self, truth: Segments, prediction: Segments, truths: Objects, detections: Objects, crowd: NDArray[np.bool_]
    ) -> tuple[Pairs, NDArray[np.float64], NDArray[np.float64]]:
        true, found = truth.rles(), prediction.rles()
        (true_boxes, true_areas), (boxes, areas) = _extents(true), _extents(found)
        pairs = mask_pairs(
            truths,
            detections,
            true_boxes[truths.rows],
            true_areas[truths.rows],
            boxes[detections.rows],
            areas[detections.rows],
            crowd,
            float(self.rules.lowest[0]),
            lambda d, g: pair_overlaps(
                found.counts, found.offsets, true.counts, true.offsets, detections.rows[d], truths.rows[g]
            ),
        )
        sizes = areas[detections.rows].astype(np.float64)
        if self.detection_area == "given" and prediction.given_boxes is not None:
            sizes = box_areas(box_sides(prediction.given_boxes))[detections.rows]
        return pairs, sizes, _annotated_areas(truth)[truths.rows]


def box_areas(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) areas of boxes (N, 4) x, y, width, height."""
    return boxes[:, 2] * boxes[:, 3]


def _extents(masks: Masks) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(N, 4) tight boxes x, y, width, height and (N,) areas."""
    return extents(masks.counts, masks.offsets, np.full(len(masks), masks.size[0]))


def _annotated_areas(truth: Segments) -> NDArray[np.float64]:
    """(N,) the attribute ``area``, where it is lacking the pixels of the mask or, without masks, of the box."""
    areas = np.full(len(truth), np.nan)
    if "area" in truth.attributes:
        areas = np.array([np.nan if each is None else each for each in truth.attributes["area"]], np.float64)
    lacking = np.isnan(areas)
    if lacking.any():
        own = truth.areas() if truth.geometry is not None else box_areas(box_sides(truth.boxes()))
        areas = np.where(lacking, own, areas)
    return areas


def _best_score(score: NDArray[np.float64], hit: NDArray[np.int64], miss: NDArray[np.int64], true: int) -> float:
    """The score from which on detections give the best F1 of all; of equal ones the highest, 0 without detections."""
    if not len(score):
        return 0.0
    order = np.argsort(-score, kind="stable")
    ordered, hits, misses = score[order], np.cumsum(hit[order]), np.cumsum(miss[order])
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    f1 = 2 * hits[last] / np.maximum(hits[last] + misses[last] + true, 1)
    return float(ordered[last[np.argmax(f1)]])
