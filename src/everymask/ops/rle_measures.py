"""Areas, boxes, intersections and unions of run-length masks, from the runs alone.

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


def overlaps(
    a_counts: NDArray[np.uint32],
    a_offsets: NDArray[np.int64],
    b_counts: NDArray[np.uint32],
    b_offsets: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Number of pixels that each mask of one set shares with each of another, from the runs alone.

    Args:
        a_counts: (R,) run lengths of N masks.
        a_offsets: (N + 1,) where the runs of each begin.
        b_counts: (S,) run lengths of M masks of the same size.
        b_offsets: (M + 1,) where the runs of each begin.

    Returns:
        (N, M) int64 intersections. With `areas` they give every overlap measure:
        ``intersection / (area_a[:, None] + area_b - intersection)`` is the IoU.
    """
    return _overlaps(*flat(a_counts, a_offsets), *flat(b_counts, b_offsets))


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
    for n in range(number):
        position = 0
        empty = True
        left = top = right = bottom = 0
        for i in range(offsets[n], offsets[n + 1]):
            start = position
            position += np.int64(counts[i])
            if (i - offsets[n]) & 1 == 0 or position == start:
                continue
            x, last = start // height, (position - 1) // height
            y = start - x * height if x == last else 0
            below = position - last * height if x == last else height
            if empty:
                left, top, bottom = x, y, below
                empty = False
            top, right, bottom = min(top, y), last + 1, max(bottom, below)
        result[n, 0], result[n, 1], result[n, 2], result[n, 3] = left, top, right, bottom
    return result


@njit(cache=True, nogil=True)
def _foreground(
    counts: NDArray[np.uint32], offsets: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:  # pragma: no cover - compiled
    """Starts and ends of the foreground runs of all masks, and where those of each mask begin."""
    number = len(offsets) - 1
    starts = np.empty(len(counts), np.int64)
    ends = np.empty(len(counts), np.int64)
    bounds = np.zeros(number + 1, np.int64)
    m = 0
    for n in range(number):
        position = 0
        for i in range(offsets[n], offsets[n + 1]):
            length = np.int64(counts[i])
            if (i - offsets[n]) & 1 and length:
                starts[m], ends[m] = position, position + length
                m += 1
            position += length
        bounds[n + 1] = m
    return starts[:m], ends[:m], bounds


@njit(cache=True, nogil=True)
def _first_ending_after(
    ends: NDArray[np.int64], low: int, high: int, position: int
) -> int:  # pragma: no cover - compiled
    while low < high:
        middle = (low + high) // 2
        if ends[middle] > position:
            high = middle
        else:
            low = middle + 1
    return low


@njit(cache=True, nogil=True)
def _overlaps(
    a_counts: NDArray[np.uint32],
    a_offsets: NDArray[np.int64],
    b_counts: NDArray[np.uint32],
    b_offsets: NDArray[np.int64],
) -> NDArray[np.int64]:  # pragma: no cover - compiled
    a_starts, a_ends, a_bounds = _foreground(a_counts, a_offsets)
    b_starts, b_ends, b_bounds = _foreground(b_counts, b_offsets)
    result = np.zeros((len(a_offsets) - 1, len(b_offsets) - 1), np.int64)
    for n in range(result.shape[0]):
        a_low, a_high = a_bounds[n], a_bounds[n + 1]
        if a_low == a_high:
            continue
        for m in range(result.shape[1]):
            b_low, b_high = b_bounds[m], b_bounds[m + 1]
            if b_low == b_high or b_starts[b_low] >= a_ends[a_high - 1] or a_starts[a_low] >= b_ends[b_high - 1]:
                continue
            # Walk both lists of runs from where they first can meet.
            i = _first_ending_after(a_ends, a_low, a_high, b_starts[b_low])
            j = _first_ending_after(b_ends, b_low, b_high, a_starts[a_low])
            shared = 0
            while i < a_high and j < b_high:
                shared += max(0, min(a_ends[i], b_ends[j]) - max(a_starts[i], b_starts[j]))
                if a_ends[i] < b_ends[j]:
                    i += 1
                else:
                    j += 1
            result[n, m] = shared
    return result


@njit(cache=True, nogil=True)
def _merge_groups(
    counts: NDArray[np.uint32], offsets: NDArray[np.int64], groups: NDArray[np.int64], pixels: int, depth: int
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:  # pragma: no cover - compiled
    number = len(groups) - 1
    result = np.empty(len(counts) + 2 * number, np.uint32)
    result_offsets = np.zeros(number + 1, np.int64)
    events = np.empty(len(counts) + 1, np.int64)
    end = 0
    for g in range(number):
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
