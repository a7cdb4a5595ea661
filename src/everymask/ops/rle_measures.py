"""Areas, boxes, unions and intersections of run-length masks, from the runs alone.

The representation (`counts`, `offsets`) is that of `everymask.ops.rle`, which offers these functions as its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from everymask.errors import InputError


def flat(counts: NDArray[Any], offsets: NDArray[Any]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Both arrays in the one type that the kernels are compiled for."""
    return np.ascontiguousarray(counts, np.uint32), np.ascontiguousarray(offsets, np.int64)


def areas(counts: NDArray[np.uint32], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,) number of foreground pixels of each mask."""
    return _areas(*flat(counts, offsets))


def boxes(counts: NDArray[np.uint32], offsets: NDArray[np.int64], size: Sequence[int]) -> NDArray[np.int64]:
    """Tight boxes of masks.

    Args:
        counts: (R,) run lengths.
        offsets: (N + 1,) where the runs of each mask begin.
        size: (H, W).

    Returns:
        (N, 4) x0, y0, x1, y1 in pixels, right and bottom edge exclusive; zeros for a mask without foreground.
    """
    return _boxes(*flat(counts, offsets), size[0])


def merge(counts: NDArray[np.uint32], offsets: NDArray[np.int64], *, intersect: bool = False) -> NDArray[np.uint32]:
    """The union, or the intersection, of masks.

    Args:
        counts: (R,) run lengths of N masks of one size.
        offsets: (N + 1,) where the runs of each mask begin.
        intersect: Give the pixels that all masks share instead of those that any has.

    Returns:
        (S,) run lengths of one mask.

    Raises:
        InputError: There are no masks, so that the size of the result is unknown.
    """
    counts, offsets = flat(counts, offsets)
    number = len(offsets) - 1
    if number == 0:
        raise InputError("merge: got no masks, expected one or more")
    pixels = int(counts[: offsets[1]].sum(dtype=np.int64))
    return merge_groups(counts, offsets, np.array([0, number]), pixels, number if intersect else 1)[0]


def merge_groups(
    counts: NDArray[np.uint32], offsets: NDArray[np.int64], groups: NDArray[np.int64], pixels: int, depth: int = 1
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Unions of groups of masks.

    Args:
        counts: (R,) run lengths of N masks of one size.
        offsets: (N + 1,) where the runs of each mask begin.
        groups: (G + 1,) int64, rising from 0 to N: group g has the masks ``groups[g]:groups[g + 1]``, perhaps none.
        pixels: H * W.
        depth: A pixel belongs to the result when at least so many masks of the group cover it.

    Returns:
        `counts` and `offsets` of G masks.
    """
    counts, offsets = flat(counts, offsets)
    return _merge_groups(counts, offsets, np.ascontiguousarray(groups, np.int64), pixels, depth)


@njit(cache=True, nogil=True)
def grown(array: NDArray[Any], needed: int) -> NDArray[Any]:  # pragma: no cover - compiled
    """A one-dimensional `array`, or a copy of at least twice its length when `needed` entries do not fit."""
    if needed <= len(array):
        return array
    larger = np.empty(max(needed, 2 * len(array)), array.dtype)
    for i in range(len(array)):  # assigning a slice would cost seconds of compile time
        larger[i] = array[i]
    return larger


@njit(cache=True, nogil=True)
def _areas(counts: NDArray[np.uint32], offsets: NDArray[np.int64]) -> NDArray[np.int64]:  # pragma: no cover - compiled
    number = len(offsets) - 1
    result = np.zeros(number, np.int64)
    for n in range(number):
        for i in range(offsets[n] + 1, offsets[n + 1], 2):
            result[n] += np.int64(counts[i])
    return result


@njit(cache=True, nogil=True)
def _boxes(
    counts: NDArray[np.uint32], offsets: NDArray[np.int64], height: int
) -> NDArray[np.int64]:  # pragma: no cover - compiled
    number = len(offsets) - 1
    result = np.zeros((number, 4), np.int64)
    if height == 0:
        return result
    for n in range(number):
        x, y = 0, 0  # where the next run begins
        left, top, right, bottom = -1, height, 0, 0
        for i in range(offsets[n], offsets[n + 1]):
            begin_x, begin_y = x, y
            y += np.int64(counts[i])
            if y >= height:
                y -= height
                x += 1
                if y >= height:  # rare, so that few runs cost a division
                    x += y // height
                    y %= height
            if (i - offsets[n]) & 1 == 0 or counts[i] == 0:
                continue
            last, below = (x, y) if y else (x - 1, height)
            if left < 0:
                left = begin_x
            right = last + 1
            top = min(top, begin_y if begin_x == last else 0)
            bottom = max(bottom, below if begin_x == last else height)
        if left >= 0:
            result[n, 0], result[n, 1], result[n, 2], result[n, 3] = left, top, right, bottom
    return result


@njit(cache=True, nogil=True)
def _all_fill(
    counts: NDArray[np.uint32], offsets: NDArray[np.int64], first: int, last: int, pixels: int
) -> bool:  # pragma: no cover - compiled
    """Whether the runs of each of some masks add up to the image."""
    for n in range(first, last):
        total = np.int64(0)
        for i in range(offsets[n], offsets[n + 1]):
            total += np.int64(counts[i])
        if total != pixels:
            return False
    return True


@njit(cache=True, nogil=True)
def _append_covered(
    result: NDArray[np.uint32], end: int, marks: NDArray[np.int32], depth: int
) -> int:  # pragma: no cover - compiled
    """Appends the runs of the pixels that at least `depth` masks cover, and clears the marks.

    `marks` (H * W + 1,) holds for each pixel how many more masks cover it than the one before. Stretches without a
    mark are passed over with vector operations.
    """
    pixels = len(marks) - 1
    begin, before, cover, inside = end, 0, 0, False
    for block in range(0, pixels, 64):
        last = min(block + 64, pixels)
        if last == block + 64:
            some = np.int32(0)
            for i in range(np.uint64(block), np.uint64(last)):
                some |= marks[i]
            if some == 0:
                continue
        for i in range(np.uint64(block), np.uint64(last)):
            if marks[i]:
                cover += marks[i]
                marks[i] = 0
                if (cover >= depth) != inside:
                    inside = not inside
                    result[end] = np.int64(i) - before
                    before = np.int64(i)
                    end += 1
    marks[pixels] = 0
    if before < pixels or end == begin:
        result[end] = pixels - before
        end += 1
    return end


@njit(cache=True, nogil=True)
def _merge_groups(
    counts: NDArray[np.uint32], offsets: NDArray[np.int64], groups: NDArray[np.int64], pixels: int, depth: int
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:  # pragma: no cover - compiled
    number = len(groups) - 1
    result = np.empty(len(counts) + 2 * number, np.uint32)
    result_offsets = np.zeros(number + 1, np.int64)
    events = np.empty(len(counts) + 1, np.int64)
    marks = np.zeros(0, np.int32)
    end = 0
    for g in range(number):
        if (
            groups[g + 1] - groups[g] > 1
            and offsets[groups[g + 1]] - offsets[groups[g]] > pixels >> 5
            and _all_fill(counts, offsets, groups[g], groups[g + 1], pixels)
        ):
            # So many runs that marking the pixels and looking at all of them is cheaper than sorting.
            if len(marks) == 0:
                marks = np.zeros(pixels + 1, np.int32)
            for n in range(groups[g], groups[g + 1]):
                position = 0
                for i in range(offsets[n], offsets[n + 1]):
                    if i > offsets[n]:
                        marks[position] += 1 if (i - offsets[n]) & 1 else -1
                    position += np.int64(counts[i])
                if (offsets[n + 1] - offsets[n]) & 1 == 0:
                    marks[position] -= 1
            end = _append_covered(result, end, marks, depth)
            result_offsets[g + 1] = end
            continue
        # Every start and end of a run, in order of position: ends are even and starts odd, so that at one position
        # the runs that end come first and those that begin there close the gap again.
        m = 0
        for n in range(groups[g], groups[g + 1]):
            position = 0
            for i in range(offsets[n], offsets[n + 1]):
                length = np.int64(counts[i])
                if (i - offsets[n]) & 1 and length:
                    events[m] = 2 * position + 1
                    events[m + 1] = 2 * (position + length)
                    m += 2
                position += length
        if groups[g + 1] - groups[g] > 1:
            events[:m].sort()
        cover = 0
        before = 0  # where the last run of the result ended
        inside = False
        for k in range(m):
            position = events[k] >> 1
            cover += 1 if events[k] & 1 else -1
            # only the last event at a position decides
            if (k + 1 < m and events[k + 1] >> 1 == position) or (cover >= depth) == inside:
                continue
            inside = not inside
            result[end] = position - before
            end += 1
            before = position
        if before < pixels or end == result_offsets[g]:
            result[end] = pixels - before
            end += 1
        result_offsets[g + 1] = end
    return result[:end].copy(), result_offsets
