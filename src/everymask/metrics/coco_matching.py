"""Matching of detections with true objects by the rules of the COCO evaluation, in one pass for all its settings.

The official program (`COCOeval.evaluateImg` of pycocotools) walks through the detections of an image and a category
once for every IoU threshold and every area range. The walks differ in few places only: what an overlap is good for,
which truths are ignored, which are taken already. Here those are words with a bit for every threshold and area range
(`coco_rules.Rules`), so that one walk over the few overlapping pairs decides all settings at once.

Objects of several images are kept in rows; *positions* are rows brought in the order of evaluation: image by image,
category by category, detections by falling score and otherwise in the order given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from everymask.metrics.coco_rules import Rules

_BUCKETS = 11  # bits of a key that one round of sorting looks at


class Objects(NamedTuple):
    """Objects of I images, one entry a position.

    Args:
        starts: (I + 1,) int64, image i has the positions ``starts[i]:starts[i + 1]``.
        rows: (N,) int64, the row of each.
        rank: (N,) int32, how many of its image and category come before.
        category: (N,) int32, rising within an image.
    """

    starts: NDArray[np.int64]
    rows: NDArray[np.int64]
    rank: NDArray[np.int32]
    category: NDArray[np.int32]


class Pairs(NamedTuple):
    """Overlaps of a detection and a true object of its image and category, by position of the detection.

    Args:
        offsets: (D + 1,) int64, detection d has the entries ``offsets[d]:offsets[d + 1]``.
        truth: (P,) int32, position of the true object, rising for a detection.
        iou: (P,) float64.
    """

    offsets: NDArray[np.int64]
    truth: NDArray[np.int32]
    iou: NDArray[np.float64]


class Outcome(NamedTuple):
    """What the matching of D detections with G truths gave.

    Args:
        true: (D, W) uint64, bits of the settings in which a detection is a true positive.
        false: (D, W) uint64, those in which it is a false positive; in the others it is ignored.
        counted: (G, W) uint64, those in which a true object is not ignored.
    """

    true: NDArray[np.uint64]
    false: NDArray[np.uint64]
    counted: NDArray[np.uint64]


# -- order -------------------------------------------------------------------------------------------------------------


def descending_keys(score: NDArray[np.float64]) -> NDArray[np.uint64]:
    """(N,) numbers that rise as scores fall; equal for equal scores, of which 0 and -0 are two."""
    bits = (score + 0.0).view(np.uint64)
    # The bits of negative numbers fall with the number, those of positive ones rise; then the order is reversed.
    negative = (bits >> np.uint64(63)).astype(np.bool_)
    return np.where(negative, bits, ~(bits | np.uint64(1 << 63)))


def rows_by_group(group: NDArray[np.int32], count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of each of `count` groups, in order of rows, and where those of each begin: (N,) and (count + 1,) int64."""
    return _rows_by_group(group, count)


def arrange(
    rows: NDArray[np.int64],
    starts: NDArray[np.int64],
    category: NDArray[np.int32],
    categories: int,
    keys: NDArray[np.uint64] | None = None,
    limit: int | None = None,
) -> Objects:
    """Brings objects in the order of evaluation.

    Args:
        rows: (N,) rows, image by image.
        starts: (I + 1,) where those of each image begin, from 0 to N.
        category: (R,) index of the category of each row, 0..categories - 1.
        categories: The number of categories.
        keys: (R,) what the objects of an image and a category are sorted by, of each row; as they are if not given.
        limit: How many of an image and a category are kept.
    """
    order, rank, ordered = _arrange(
        rows, starts, category, categories, np.zeros(0, np.uint64) if keys is None else keys, keys is not None
    )
    if limit is not None and len(rank) and int(rank.max()) >= limit:
        kept = rank < limit
        starts = np.concatenate([[0], np.cumsum(kept)])[starts]
        order, rank, ordered = order[kept], rank[kept], ordered[kept]
    return Objects(starts, order, rank, ordered)


@njit(cache=True, nogil=True)
def _rows_by_group(
    group: NDArray[np.int32], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:  # pragma: no cover - compiled
    starts = np.zeros(count + 2, np.int64)
    for i in range(len(group)):
        starts[group[i] + 2] += 1
    for g in range(count):
        starts[g + 2] += starts[g + 1]
    rows = np.empty(len(group), np.int64)
    for i in range(len(group)):
        rows[starts[group[i] + 1]] = i
        starts[group[i] + 1] += 1
    return rows, starts[: count + 1]


@njit(cache=True, nogil=True)
def sort_rows(
    rows: NDArray[np.int64], first: int, last: int, keys: NDArray[np.uint64]
) -> None:  # pragma: no cover - compiled
    """Sorts ``rows[first:last]`` by the key of each row, equal ones staying in order."""
    count = last - first
    if count <= 48:
        for i in range(first + 1, last):
            row = rows[i]
            key = keys[row]
            at = i
            while at > first and keys[rows[at - 1]] > key:
                rows[at] = rows[at - 1]
                at -= 1
            rows[at] = row
        return
    source = rows[first:last].copy()
    target = np.empty(count, np.int64)
    begins = np.empty((1 << _BUCKETS) + 1, np.int64)
    differing = np.uint64(0)
    for i in range(count):
        differing |= keys[source[i]] ^ keys[source[0]]
    for shift in range(0, 64, _BUCKETS):
        if differing >> np.uint64(shift) & np.uint64((1 << _BUCKETS) - 1) == 0:
            continue
        begins[:] = 0
        for i in range(count):
            begins[(keys[source[i]] >> np.uint64(shift) & np.uint64((1 << _BUCKETS) - 1)) + np.uint64(1)] += 1
        for b in range(1 << _BUCKETS):
            begins[b + 1] += begins[b]
        for i in range(count):
            bucket = keys[source[i]] >> np.uint64(shift) & np.uint64((1 << _BUCKETS) - 1)
            target[begins[bucket]] = source[i]
            begins[bucket] += 1
        source, target = target, source
    for i in range(count):
        rows[first + i] = source[i]


@njit(cache=True, nogil=True)
def _arrange(
    rows: NDArray[np.int64],
    starts: NDArray[np.int64],
    category: NDArray[np.int32],
    categories: int,
    keys: NDArray[np.uint64],
    by_key: bool,
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]:  # pragma: no cover - compiled
    order = np.empty(len(rows), np.int64)
    rank = np.empty(len(rows), np.int32)
    ordered = np.empty(len(rows), np.int32)
    ends = np.empty(categories + 1, np.int64)
    for image in range(len(starts) - 1):
        ends[:] = 0
        for i in range(starts[image], starts[image + 1]):
            ends[category[rows[i]] + 1] += 1
        ends[0] = starts[image]
        for k in range(categories):
            ends[k + 1] += ends[k]
        for i in range(starts[image], starts[image + 1]):
            k = category[rows[i]]
            order[ends[k]] = rows[i]
            ends[k] += 1
        first = starts[image]
        while first < starts[image + 1]:
            k = category[order[first]]
            if by_key:
                sort_rows(order, first, ends[k], keys)
            for i in range(first, ends[k]):
                rank[i] = i - first
                ordered[i] = k
            first = ends[k]
    return order, rank, ordered


# -- overlaps ----------------------------------------------------------------------------------------------------------


def box_pairs(
    truths: Objects,
    detections: Objects,
    truth_boxes: NDArray[np.float64],
    boxes: NDArray[np.float64],
    crowd: NDArray[np.bool_],
    lowest: float,
) -> Pairs:
    """Pairs of boxes that overlap enough for the lowest threshold, with the arithmetic of `bbIou` in `maskApi.c`.

    Args:
        truths: G true objects.
        detections: D detections of the same images.
        truth_boxes: (G, 4) x, y, width, height of each true object, by position.
        boxes: (D, 4) those of the detections.
        crowd: (G,) whether a true object is a crowd: then the union is the detection alone.
        lowest: The IoU that a pair needs.
    """
    return Pairs(
        *_near_pairs(
            truths.starts,
            truths.category,
            truth_boxes,
            truth_boxes[:, 2] * truth_boxes[:, 3],
            crowd,
            detections.starts,
            detections.category,
            boxes,
            boxes[:, 2] * boxes[:, 3],
            lowest,
            False,
        )
    )


def mask_pairs(
    truths: Objects,
    detections: Objects,
    truth_boxes: NDArray[np.float64],
    truth_areas: NDArray[np.int64],
    boxes: NDArray[np.float64],
    areas: NDArray[np.int64],
    crowd: NDArray[np.bool_],
    lowest: float,
    shared: Callable[[NDArray[np.int64], NDArray[np.int32]], NDArray[np.int64]],
) -> Pairs:
    """Pairs of masks that can overlap enough for the lowest threshold, as `rleIou` in `maskApi.c` measures them.

    Intersections are asked for only where the boxes leave room for that IoU: the intersection is at most that of the
    boxes and at most either mask.

    Args:
        truths: G true objects.
        detections: D detections of the same images.
        truth_boxes: (G, 4) x, y, width, height of the tight box of each true mask, by position.
        truth_areas: (G,) pixels of each true mask.
        boxes: (D, 4) those of the detections.
        areas: (D,) likewise.
        crowd: (G,) whether a true object is a crowd.
        lowest: The IoU that a pair needs.
        shared: Gives the intersections (P,) of the detections and truths at positions (P,) and (P,).
    """
    offsets, truth, _ = _near_pairs(
        truths.starts,
        truths.category,
        truth_boxes,
        truth_areas.astype(np.float64),
        crowd,
        detections.starts,
        detections.category,
        boxes,
        areas.astype(np.float64),
        lowest,
        True,
    )
    detection = np.repeat(np.arange(len(areas)), np.diff(offsets))
    both = shared(detection, truth)
    area = areas[detection]
    return Pairs(offsets, truth, both / np.where(crowd[truth], area, area + truth_areas[truth] - both))


@njit(cache=True, nogil=True, error_model="numpy")
def _near_pairs(
    truth_starts: NDArray[np.int64],
    truth_category: NDArray[np.int32],
    truth_boxes: NDArray[np.float64],
    truth_sizes: NDArray[np.float64],
    crowd: NDArray[np.bool_],
    starts: NDArray[np.int64],
    category: NDArray[np.int32],
    boxes: NDArray[np.float64],
    sizes: NDArray[np.float64],
    lowest: float,
    bound: bool,
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float64]]:  # pragma: no cover - compiled
    """Pairs of one image and category whose boxes give an IoU of `lowest`; with `bound`, could give it at most."""
    offsets = np.zeros(len(category) + 1, np.int64)
    truth = np.empty(len(category) + 16, np.int32)
    iou = np.empty(len(category) + 16, np.float64)
    number = 0
    for image in range(len(starts) - 1):
        t, t_end = truth_starts[image], truth_starts[image + 1]
        for d in range(starts[image], starts[image + 1]):
            while t < t_end and truth_category[t] < category[d]:
                t += 1
            x, y, width, height = boxes[d, 0], boxes[d, 1], boxes[d, 2], boxes[d, 3]
            for g in range(t, t_end):
                if truth_category[g] != category[d]:
                    break
                w = min(width + x, truth_boxes[g, 2] + truth_boxes[g, 0]) - max(x, truth_boxes[g, 0])
                if w <= 0:
                    continue
                h = min(height + y, truth_boxes[g, 3] + truth_boxes[g, 1]) - max(y, truth_boxes[g, 1])
                if h <= 0:
                    continue
                shared = w * h
                if bound:
                    shared = min(shared, sizes[d], truth_sizes[g])
                value = shared / (sizes[d] if crowd[g] else sizes[d] + truth_sizes[g] - shared)
                if value >= lowest:
                    if number == len(truth):
                        truth = np.concatenate((truth, np.empty_like(truth)))
                        iou = np.concatenate((iou, np.empty_like(iou)))
                    truth[number] = g
                    iou[number] = value
                    number += 1
            offsets[d + 1] = number
    return offsets, truth[:number], iou[:number]


# -- matching ----------------------------------------------------------------------------------------------------------


def match(
    rules: Rules, pairs: Pairs, areas: NDArray[np.float64], truth_areas: NDArray[np.float64], crowd: NDArray[np.bool_]
) -> Outcome:
    """Matches detections, the first of an image and category first, with the true objects they overlap.

    A detection takes, of the true objects left over, the one of highest IoU that is not ignored, or if there is none
    that reaches the threshold, the one of highest IoU that is; of equal ones the later. Crowds can be taken again and
    again. A true object is ignored if it is a crowd or if its area is outside of the range; a detection is ignored if
    the truth it took is, or if it took none and its own area is outside.

    Args:
        rules: Thresholds and area ranges.
        pairs: Overlaps of D detections, by position, with G true objects.
        areas: (D,) areas of the detections, in pixels.
        truth_areas: (G,) areas of the true objects.
        crowd: (G,) whether a true object is a crowd.
    """
    counted = _bits_of_areas(truth_areas, rules.ranges, rules.area_bits)
    counted[crowd] = 0
    inside = _bits_of_areas(areas, rules.ranges, rules.area_bits)
    true, matched = _match(pairs.offsets, pairs.truth, pairs.iou, rules.lowest, rules.level_bits, counted, crowd)
    return Outcome(true, inside & ~matched, counted)


@njit(cache=True, nogil=True)
def _bits_of_areas(
    areas: NDArray[np.float64], ranges: NDArray[np.float64], area_bits: NDArray[np.uint64]
) -> NDArray[np.uint64]:  # pragma: no cover - compiled
    """(N, W) the bits of the ranges that each area lies in."""
    result = np.zeros((len(areas), area_bits.shape[1]), np.uint64)
    for n in range(len(areas)):
        for a in range(len(ranges)):
            if areas[n] >= ranges[a, 0] and areas[n] <= ranges[a, 1]:
                for w in range(area_bits.shape[1]):
                    result[n, w] |= area_bits[a, w]
    return result


@njit(cache=True, nogil=True)
def _match(
    offsets: NDArray[np.int64],
    truth: NDArray[np.int32],
    iou: NDArray[np.float64],
    lowest: NDArray[np.float64],
    level_bits: NDArray[np.uint64],
    counted: NDArray[np.uint64],
    crowd: NDArray[np.bool_],
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:  # pragma: no cover - compiled
    """Bits (D, W) of the settings in which a detection took a truth that counts, and in which it took any."""
    number, words = len(offsets) - 1, level_bits.shape[1]
    true = np.zeros((number, words), np.uint64)
    matched = np.zeros((number, words), np.uint64)
    taken = np.zeros_like(counted)
    order = np.empty(16, np.int64)
    passed = np.empty(16, np.int64)
    for d in range(number):
        first, count = offsets[d], offsets[d + 1] - offsets[d]
        if count == 0:
            continue
        if count > len(order):
            order, passed = np.empty(2 * count, np.int64), np.empty(2 * count, np.int64)
        for i in range(count):
            # by falling IoU, of equal ones the later first
            at = i
            while at > 0 and iou[order[at - 1]] <= iou[first + i]:
                order[at] = order[at - 1]
                at -= 1
            order[at] = first + i
        for i in range(count):
            level = 0
            while level < len(lowest) and iou[order[i]] >= lowest[level]:
                level += 1
            passed[i] = level
        for w in range(words):
            done = np.uint64(0)
            for i in range(count):
                g = truth[order[i]]
                bits = level_bits[passed[i], w] & counted[g, w] & ~taken[g, w] & ~done
                taken[g, w] |= bits
                done |= bits
            true[d, w] = done
            for i in range(count):
                g = truth[order[i]]
                bits = level_bits[passed[i], w] & ~counted[g, w] & ~done
                if not crowd[g]:
                    bits &= ~taken[g, w]
                taken[g, w] |= bits
                done |= bits
            matched[d, w] = done
    return true, matched
