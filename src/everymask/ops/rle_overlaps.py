"""Which masks of two sets share pixels, and how many: only pairs whose boxes meet are looked at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from everymask.ops.box_pairs import meeting_boxes
from everymask.ops.rle_measures import boxes
from everymask.ops.rle_pairs import pair_overlaps


def overlaps(
    a_counts: NDArray[np.uint32],
    a_offsets: NDArray[np.int64],
    b_counts: NDArray[np.uint32],
    b_offsets: NDArray[np.int64],
    size: Sequence[int] | None = None,
) -> NDArray[np.int64]:
    """Number of pixels that each mask of one set shares with each of another, from the runs alone.

    Args:
        a_counts: (R,) run lengths of N masks.
        a_offsets: (N + 1,) where the runs of each begin.
        b_counts: (S,) run lengths of M masks of the same size.
        b_offsets: (M + 1,) where the runs of each begin.
        size: (H, W), with which masks that lie above each other are told apart at a glance; the result is the same.

    Returns:
        (N, M) int64 intersections. With `areas` they give every overlap measure:
        ``intersection / (area_a[:, None] + area_b - intersection)`` is the IoU.
    """
    result = np.zeros((len(a_offsets) - 1, len(b_offsets) - 1), np.int64)
    first, second, shared = overlapping_pairs(a_counts, a_offsets, b_counts, b_offsets, size)
    result[first, second] = shared
    return result


def overlapping_pairs(
    a_counts: NDArray[np.uint32],
    a_offsets: NDArray[np.int64],
    b_counts: NDArray[np.uint32],
    b_offsets: NDArray[np.int64],
    size: Sequence[int] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The pairs of masks that share pixels: `overlaps` without the zeros, for sets of many thousands.

    Args:
        a_counts: (R,) run lengths of N masks.
        a_offsets: (N + 1,) where the runs of each begin.
        b_counts: (S,) run lengths of M masks of the same size.
        b_offsets: (M + 1,) where the runs of each begin.
        size: (H, W), with which masks that lie above each other are told apart at a glance; the result is the same.

    Returns:
        Numbers of the masks in the first and in the second set, and the pixels that they share (at least 1), (P,)
        int64 each, ordered by the first and then by the second number.
    """
    # Without a size the image counts as a single row: a mask then reaches from its first to its last pixel.
    height = 1 if size is None else int(size[0])
    first, second = meeting_boxes(
        boxes(a_counts, a_offsets, (height, 0)).astype(np.float64),
        boxes(b_counts, b_offsets, (height, 0)).astype(np.float64),
    )
    shared = pair_overlaps(a_counts, a_offsets, b_counts, b_offsets, first, second)
    some = shared > 0
    return first[some], second[some], shared[some]
