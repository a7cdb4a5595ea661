"""Extents of run-length masks, and intersections of given pairs where most masks of two sets never meet.

`everymask.ops.rle.overlaps` compares every mask with every other. In a data set most pairs are known beforehand to
share nothing: they are in other images, of other categories, or their boxes lie apart. Here only the pairs asked for
are computed, from the runs alone and only where both masks have any.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from everymask.ops.rle_measures import flat


def pair_overlaps(
    a_counts: NDArray[np.uint32],
    a_offsets: NDArray[np.int64],
    b_counts: NDArray[np.uint32],
    b_offsets: NDArray[np.int64],
    a: NDArray[Any],
    b: NDArray[Any],
) -> NDArray[np.int64]:
    """Number of pixels that the masks of each pair share.

    The interpreter's lock is released meanwhile, so several threads can share the pairs of a data set among them.

    Args:
        a_counts: (R,) run lengths of N masks; a slice of a larger array does, with the offsets of that array.
        a_offsets: (N + 1,) where the runs of each begin; the first offset is where `a_counts` begins.
        b_counts: (S,) run lengths of M masks.
        b_offsets: (M + 1,) where the runs of each begin, likewise.
        a: (P,) the first mask of each pair, 0..N-1. Pairs of one mask should follow each other: its runs are added up
            once for all of them.
        b: (P,) the second mask of each pair, 0..M-1. The masks of a pair must be of the same size.

    Returns:
        (P,) int64 intersections in pixels.
    """
    return _pair_overlaps(
        *flat(a_counts, a_offsets),
        *flat(b_counts, b_offsets),
        np.ascontiguousarray(a, np.int32),
        np.ascontiguousarray(b, np.int32),
    )


def extents(
    counts: NDArray[np.uint32], offsets: NDArray[np.int64], heights: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Tight boxes and areas of masks, in one look at their runs.

    Args:
        counts: (R,) run lengths of N masks.
        offsets: (N + 1,) where the runs of each begin.
        heights: (N,) height of the image of each, in pixels.

    Returns:
        (N, 4) x, y, width, height in pixels, zeros for a mask without foreground; and (N,) number of pixels.
    """
    return _extents(*flat(counts, offsets), np.ascontiguousarray(heights, np.int64))


@njit(cache=True, nogil=True)
def _extents(
    counts: NDArray[np.uint32], offsets: NDArray[np.int64], heights: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:  # pragma: no cover - compiled
    number = len(offsets) - 1
    boxes = np.zeros((number, 4))
    areas = np.zeros(number, np.int64)
    for n in range(number):
        height = heights[n]
        # Most runs begin a column or two after the one before: no division is needed to know in which.
        position, x, top_of_column = np.int64(0), np.int64(0), np.int64(0)
        left, top, bottom, area = np.int64(-1), height, np.int64(0), np.int64(0)
        for i in range(offsets[n] + 1, offsets[n + 1], 2):
            position += np.int64(counts[i - 1])
            length = np.int64(counts[i])
            if length == 0:
                continue
            if position - top_of_column > 8 * height:
                x = position // height
                top_of_column = x * height
            while position - top_of_column >= height:
                x += 1
                top_of_column += height
            if left < 0:
                left = x
            area += length
            first = position - top_of_column
            position += length
            last = position - top_of_column
            if last > height:
                top, bottom = np.int64(0), height
                x += (last - 1) // height
                top_of_column = x * height
            else:
                top, bottom = min(top, first), max(bottom, last)
        if left >= 0:
            boxes[n, 0], boxes[n, 1], boxes[n, 2], boxes[n, 3] = left, top, x + 1 - left, bottom - top
        areas[n] = area
    return boxes, areas


@njit(cache=True, nogil=True)
def _edges(
    counts: NDArray[np.uint32], first: int, last: int, edges: NDArray[np.int64], at: int
) -> int:  # pragma: no cover - compiled
    """Writes start and end of every foreground run of ``counts[first:last]`` from `edges` (.., 2) row `at` on.

    Returns the row after the last one.
    """
    position = np.int64(0)
    for i in range(first, last - 1, 2):
        position += np.int64(counts[i])
        edges[at, 0] = position
        position += np.int64(counts[i + 1])
        edges[at, 1] = position
        # a run of no length is overwritten by the next one
        at += counts[i + 1] > 0
    return at


@njit(cache=True, nogil=True)
def _first_ending_after(
    edges: NDArray[np.int64], low: int, high: int, position: int
) -> int:  # pragma: no cover - compiled
    while low < high:
        middle = (low + high) // 2
        if edges[middle, 1] > position:
            high = middle
        else:
            low = middle + 1
    return low


@njit(cache=True, nogil=True)
def _pair_overlaps(
    a_counts: NDArray[np.uint32],
    a_offsets: NDArray[np.int64],
    b_counts: NDArray[np.uint32],
    b_offsets: NDArray[np.int64],
    a: NDArray[np.int32],
    b: NDArray[np.int32],
) -> NDArray[np.int64]:  # pragma: no cover - compiled
    longest = 0
    for n in range(len(a_offsets) - 1):
        longest = max(longest, a_offsets[n + 1] - a_offsets[n])
    a_edges = np.empty((longest // 2 + 1, 2), np.int64)
    b_edges = np.empty((len(b_counts) // 2 + 1, 2), np.int64)
    # Runs of each second mask lie at begins[m]:ends[m] once it was asked for.
    begins = np.full(len(b_offsets), -1, np.int64)
    ends = np.zeros(len(b_offsets), np.int64)
    used = 0
    result = np.zeros(len(a), np.int64)
    current, a_end = -1, 0
    for k in range(len(a)):
        n, m = a[k], b[k]
        if n != current:
            a_end = _edges(a_counts, a_offsets[n] - a_offsets[0], a_offsets[n + 1] - a_offsets[0], a_edges, 0)
            current = n
        if begins[m] < 0:
            begins[m] = used
            used = _edges(b_counts, b_offsets[m] - b_offsets[0], b_offsets[m + 1] - b_offsets[0], b_edges, used)
            ends[m] = used
        j, b_end = begins[m], ends[m]
        if a_end == 0 or j == b_end:
            continue
        # Walk both lists from where they first can meet to where one ends.
        i = _first_ending_after(a_edges, 0, a_end, b_edges[j, 0])
        j = _first_ending_after(b_edges, j, b_end, a_edges[0, 0])
        shared = np.int64(0)
        while i < a_end and j < b_end:
            a_last, b_last = a_edges[i, 1], b_edges[j, 1]
            shared += max(np.int64(0), min(a_last, b_last) - max(a_edges[i, 0], b_edges[j, 0]))
            # which list goes on cannot be foretold, so there is no branch for it
            step = np.int64(a_last < b_last)
            i += step
            j += 1 - step
        result[k] = shared
    return result
