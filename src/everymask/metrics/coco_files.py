"""COCO average precision from files: a JSON of instances and a JSON of results, without objects in between.

The columns of both files go batch by batch, on all processors, through the kernels that score `Segments` as well, so
the figures are the same to the last bit. Masks are decoded where they are looked at and forgotten: of the results only
the file, mapped into memory, and a few columns are ever there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numba
import numpy as np

from everymask.errors import InputError, unknown_name
from everymask.metrics.coco import CocoBoxMetric, CocoMaskMetric, CocoMetric, box_areas
from everymask.metrics.coco_matching import Objects, arrange, box_pairs, descending_keys, mask_pairs, rows_by_group
from everymask.metrics.coco_parts import Part, image_key, matched_part
from everymask.metrics.coco_rules import AREAS, MAX_DETECTIONS, THRESHOLDS
from everymask.ops.rle_pairs import extents, pair_overlaps
from everymask.types import Categories, Category

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from everymask.formats.coco_columns import Columns, Content

KINDS: Mapping[str, type[CocoMetric]] = {"boxes": CocoBoxMetric, "masks": CocoMaskMetric}

_BATCH = 1 << 19  # bytes of masks, as text, that a thread decodes at a time: their runs stay in the cache
_WIDEST = 1 << 22  # range of ids up to which a table is faster than a search
_BATCHES = 16  # for boxes: how many at least, so that threads end at about the same time


def evaluate_files(
    truth: Path | str,
    results: Path | str,
    *,
    kind: str = "boxes",
    thresholds: Sequence[float] = THRESHOLDS,
    areas: Mapping[str, Sequence[float]] = AREAS,
    max_detections: int | Sequence[int | None] = MAX_DETECTIONS,
) -> CocoMetric:
    """Scores a file of COCO results.

    What results lack is added as `COCO.loadRes` of pycocotools does: if the first one has no box, all go by the areas
    of their masks, and those without a box get the tight one of their mask.

    Args:
        truth: JSON of COCO instances.
        results: JSON list of results for all or some of its images.
        kind: ``"boxes"`` or ``"masks"``.
        thresholds: See `CocoMetric`, as for the next two.
        areas: Ranges of object areas.
        max_detections: Limits of detections of a category in an image.

    Returns:
        The metric with all images of the truth; `compute` gives the figures.

    Raises:
        InputError: A file is malformed; ids are double; an image, a category or a segmentation is lacking; a number is
            not finite. The message names the file and the place in it.
    """
    if kind not in KINDS:
        raise unknown_name("kind", kind, KINDS)
    from everymask.formats.coco_columns import read_annotations, read_results

    truth, results = Path(truth), Path(results)
    # The larger file first: reading takes more memory for a moment than what is kept.
    found = read_results(results)
    content = read_annotations(truth)
    metric = KINDS[kind](_categories(content, truth), thresholds, areas, max_detections)
    files = _Files(metric, kind == "masks", content, found, truth, results)
    del content, found  # what is not looked at any more can go
    batches = files.batches()
    if len(batches) > 1:
        with ThreadPoolExecutor(numba.get_num_threads()) as pool:
            parts = list(pool.map(files.part, batches[:-1], batches[1:]))
        metric.add(Part.joined(parts, in_order=False))
    return metric


@dataclass(frozen=True)
class _Side:
    """One of the two files, its rows sorted by image.

    Args:
        columns: N annotations or results; None if no mask of theirs is needed, since then the file need not be kept.
        box: (N, 4) x, y, width, height, NaN where there is none.
        category: (N,) int32 place among the categories that are scored.
        rows: Rows of the things among them, image by image in order of ids.
        starts: (I + 1,) int64 where those of each image begin.
        decode: (N,) bool, of which masks are needed.
    """

    columns: Columns | None
    box: NDArray[np.float64]
    category: NDArray[np.int32]
    rows: NDArray[np.int64]
    starts: NDArray[np.int64]
    decode: NDArray[np.bool_]


class _Shapes(NamedTuple):
    """What N objects look like, by position.

    Args:
        box: (N, 4) x, y, width, height that pairs are searched by: for masks the tight ones, else those in the file.
        pixels: (N,) int64 area of each mask, 0 of those that were not decoded.
        runs: `counts` and `offsets` of the decoded masks.
        place: (N,) int64 index among them.
    """

    box: NDArray[np.float64]
    pixels: NDArray[np.int64]
    runs: tuple[NDArray[np.uint32], NDArray[np.int64]]
    place: NDArray[np.int64]


class _Files:
    """Both files, checked and sorted by image."""

    def __init__(
        self, metric: CocoMetric, masks: bool, content: Content, results: Columns, truth_path: Path, path: Path
    ) -> None:
        self._metric, self._masks, self._images = metric, masks, content.images
        self._order = np.argsort(content.images.id, kind="stable")
        self._known = content.images.id[self._order]
        _refuse_double(self._known, f"{truth_path}: image id")
        _refuse_double(np.sort(content.annotations.id), f"{truth_path}: annotation id")
        self._names = _names(content.images.file_names)
        self._sizes = np.stack([content.images.height, content.images.width], axis=1)[self._order]
        # Without masks to look at, a box is all that a missing area can be computed from.
        own, there = content.annotations, content.annotations.segmentation_kind > 0
        needed = np.isnan(own.box[:, 0]) | (np.isnan(own.area) & there)
        self._truth = self._side(truth_path, own, needed | masks)
        self._truth_area, self._crowd, self._drawn = own.area, own.crowd, there
        # As officially, the first result decides whether the areas of all are those of their boxes.
        lacking = np.isnan(results.box[:, 0])
        self._given = len(results) == 0 or not lacking[0]
        if self._given and lacking.any():
            row = int(np.argmax(lacking))
            raise InputError(f"{path}: $[{row}] has no bbox, but $[0] has one; give one to all results, or to none")
        self._results = self._side(path, results, np.full(len(results), masks or not self._given))
        wrong = ~np.isfinite(results.score)
        if wrong.any():
            row = int(np.argmax(wrong))
            raise InputError(f"{path}: the score of $[{row}] is {results.score[row]}; expected a finite number")
        self._score, self._keys = results.score, descending_keys(results.score)

    def _side(self, path: Path, columns: Columns, decode: NDArray[np.bool_]) -> _Side:
        """Refuses what cannot be scored and sorts the rest.

        Raises:
            InputError: An image or a category is unknown, or what is to be scored is lacking.
        """
        places = self._metric.places
        category_ids = self._metric.categories.ids
        by_id = np.argsort(category_ids, kind="stable")
        image, category = _indices(columns.image_id, self._known), _indices(columns.category_id, category_ids[by_id])
        image[columns.image_text] = -1
        for index, what in ((image, "image"), (category, "category")):
            if len(index) and int(index.min()) < 0:
                row = int(np.argmin(index))
                given = columns.image_id[row] if what == "image" else columns.category_id[row]
                if what == "image" and columns.image_text[row]:
                    given = columns.image_texts[given]
                raise InputError(
                    f"{path}: {columns.place}[{row}] has {what}_id {given!s}, which the truth does not list; "
                    "are these results for another data set?"
                )
        if (decode & (columns.segmentation_kind == 0)).any():
            row = int(np.argmax(decode & (columns.segmentation_kind == 0)))
            lacking = "no segmentation" if self._masks else "neither a bbox nor a segmentation"
            raise InputError(f"{path}: {columns.place}[{row}] has {lacking}; add it, or score the other kind")
        place = places[by_id][category]
        # What is not scored goes behind the last image.
        group = np.where(place >= 0, image, len(self._known)).astype(np.int32)
        rows, starts = rows_by_group(group, len(self._known) + 1)
        kept = columns if decode.any() else None
        return _Side(kept, columns.box, place, rows[: starts[-2]], starts[:-1], decode)

    def batches(self) -> list[int]:
        """Positions in the order of images at which batches begin, and where the last one ends."""
        weight = starts = self._results.starts
        share = max(1, int(starts[-1]) // _BATCHES)
        if self._results.columns is not None:
            spans = self._results.columns.segmentation_span[self._results.rows]
            weight = np.concatenate([[0], np.cumsum(spans[:, 1] - spans[:, 0])])[starts]
            share = _BATCH
        cuts = np.searchsorted(weight, np.arange(share, int(weight[-1]), share))
        return np.unique(np.concatenate([[0], cuts, [len(starts) - 1]])).tolist()

    def part(self, first: int, last: int) -> Part:
        """Matches the images ``first:last``, in order of ids."""
        rules = self._metric.rules
        truths = self._arranged(self._truth, first, last)
        found = self._arranged(self._results, first, last, self._keys, rules.max_detections[-1])
        crowd = self._crowd[truths.rows]
        true_shapes = self._shapes(self._truth, truths, first, self._truth.decode[truths.rows])
        decode = self._results.decode[found.rows]
        if self._given:
            decode &= _near_truths(truths, found, len(self._metric.scored_categories))
        shapes = self._shapes(self._results, found, first, decode)
        lowest = float(rules.lowest[0])
        if self._masks:
            pairs = mask_pairs(
                truths,
                found,
                true_shapes.box,
                true_shapes.pixels,
                shapes.box,
                shapes.pixels,
                crowd,
                lowest,
                lambda d, g: pair_overlaps(*shapes.runs, *true_shapes.runs, shapes.place[d], true_shapes.place[g]),
            )
        else:
            pairs = box_pairs(truths, found, true_shapes.box, shapes.box, crowd, lowest)
        areas = box_areas(self._results.box[found.rows]) if self._given else shapes.pixels.astype(np.float64)
        truth_areas = self._truth_area[truths.rows]
        lacking = np.isnan(truth_areas)
        if lacking.any():
            own = np.where(self._drawn[truths.rows], true_shapes.pixels, box_areas(true_shapes.box))
            truth_areas = np.where(lacking, own, truth_areas)
        chosen = self._order[first:last].tolist()
        names, ids = tuple(self._names[i] for i in chosen), self._known[first:last].tolist()
        return matched_part(
            rules,
            (names, ("",) * len(names), tuple(map(image_key, ids))),
            truths,
            found,
            pairs,
            self._score[found.rows],
            areas,
            truth_areas,
            crowd,
        )

    def _arranged(
        self, side: _Side, first: int, last: int, keys: NDArray[np.uint64] | None = None, limit: int | None = None
    ) -> Objects:
        starts = side.starts[first : last + 1]
        rows = side.rows[starts[0] : starts[-1]]
        return arrange(rows, starts - starts[0], side.category, len(self._metric.scored_categories), keys, limit)

    def _shapes(self, side: _Side, objects: Objects, first: int, decode: NDArray[np.bool_]) -> _Shapes:
        """The boxes and masks of some objects.

        Args:
            side: The file.
            objects: N objects.
            first: The first image.
            decode: (N,) of which the mask is needed.
        """
        boxes = np.zeros((len(decode), 4)) if self._masks else side.box[objects.rows]
        pixels = np.zeros(len(decode), np.int64)
        place = np.cumsum(decode) - 1
        if side.columns is None or not decode.any():
            return _Shapes(boxes, pixels, (np.zeros(0, np.uint32), np.zeros(1, np.int64)), place)
        images = np.repeat(np.arange(first, first + len(objects.starts) - 1), np.diff(objects.starts))
        sizes = self._sizes[images[decode]]
        counts, offsets = side.columns.masks(objects.rows[decode], sizes)
        tight, pixels[decode] = extents(counts, offsets, sizes[:, 0])
        if self._masks:
            boxes[decode] = tight
        else:
            boxes[decode] = np.where(np.isnan(boxes[decode]), tight, boxes[decode])
        return _Shapes(boxes, pixels, (counts, offsets), place)


def _near_truths(truths: Objects, found: Objects, categories: int) -> NDArray[np.bool_]:
    """(D,) whether there is a true object of the same category in the image of each detection."""
    group, own = (
        np.repeat(np.arange(len(each.starts) - 1), np.diff(each.starts)) * categories + each.category
        for each in (truths, found)
    )
    there = np.zeros((len(found.starts) - 1) * categories, np.bool_)
    there[group] = True
    return there[own]


def _categories(content: Content, path: Path) -> Categories:
    try:
        return Categories(
            Category(each.id, each.name, bool(each.isthing), each.color, each.supercategory)
            for each in content.categories
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _names(files: Sequence[str]) -> list[str]:
    """Names of images as the format has them: without suffix, unless two would share a name."""
    bare = [each.rpartition(".")[0] or each for each in files]
    number = Counter(bare)
    return [name if number[name] == 1 else file for name, file in zip(bare, files, strict=True)]


def _refuse_double(ids: NDArray[np.int64], what: str) -> None:
    """Makes sure that sorted ids are unique.

    Raises:
        InputError: One is there twice.
    """
    double = np.flatnonzero(ids[1:] == ids[:-1])
    if len(double):
        raise InputError(f"{what} {ids[double[0]]} is there twice; ids must be unique")


def _indices(ids: NDArray[np.int64], known: NDArray[np.int64]) -> NDArray[np.int32]:
    """(N,) positions of ids (N,) among sorted ones, -1 where they are not among them."""
    if not len(known):
        return np.full(len(ids), -1, np.int32)
    low, high = int(known[0]), int(known[-1])
    if high - low > _WIDEST:
        found = np.minimum(np.searchsorted(known, ids), len(known) - 1)
        return np.where(known[found] == ids, found, -1).astype(np.int32)
    table = np.full(high - low + 2, -1, np.int32)  # the last entry is for what lies outside
    table[known - low] = np.arange(len(known))
    return table[np.where((ids >= low) & (ids <= high), ids - low, high - low + 1)]
