"""Several masks of one object made one, by a vote on every pixel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import njit

from everymask.ops.rle_measures import grown

if TYPE_CHECKING:
    from numpy.typing import NDArray

_UNIT = 2.0**32
"""Votes are whole multiples of 2^-32, so that a tie is a tie whatever the order of the masks."""


def vote_masks(
    counts: NDArray[np.uint32],
    offsets: NDArray[np.int64],
    groups: NDArray[np.int64],
    weights: NDArray[np.float64],
    pixels: int,
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Of each group of masks the pixels with at least half of the votes.

    The mask voting of Dai, He, Sun, Instance-aware Semantic Segmentation via Multi-task Network Cascades, CVPR 2016:
    the mean of the masks, weighted by their scores, is cut at one half.

    Args:
        counts: Run lengths of the masks, group after group, as in `everymask.ops.rle`.
        offsets: (N + 1,).
        groups: (G + 1,): group g are the masks ``groups[g]`` to ``groups[g + 1] - 1``.
        weights: (N,) votes of each mask, 0..1.
        pixels: Of the image.

    Returns:
        Run lengths and offsets (G + 1,) of the results.
    """
    votes = np.maximum(np.round(np.asarray(weights, np.float64) * _UNIT), 1).astype(np.int64)
    return _vote(counts, offsets, np.asarray(groups, np.int64), votes, pixels)


@njit(cache=True, nogil=True)
def _vote(
    counts: NDArray[np.uint32],
    offsets: NDArray[np.int64],
    groups: NDArray[np.int64],
    weights: NDArray[np.int64],
    pixels: int,
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:  # pragma: no cover - compiled
    number = len(groups) - 1
    found, found_offsets = np.empty(64 * number + 16, np.uint32), np.zeros(number + 1, np.int64)
    filled = 0
    for g in range(number):
        low, high, total = pixels, 0, np.int64(0)
        for n in range(groups[g], groups[g + 1]):
            total += weights[n]
            position = 0
            for run in range(offsets[n], offsets[n + 1]):
                end = position + np.int64(counts[run])
                if (run - offsets[n]) % 2 and end > position:
                    low, high = min(low, position), max(high, end)
                position = end
        changes = np.zeros(max(high - low, 0) + 1, np.int64)
        for n in range(groups[g], groups[g + 1]):
            position = 0
            for run in range(offsets[n], offsets[n + 1]):
                end = position + np.int64(counts[run])
                if (run - offsets[n]) % 2 and end > position:
                    changes[position - low] += weights[n]
                    changes[end - low] -= weights[n]
                position = end
        vote, start, closed = np.int64(0), -1, 0
        for i in range(len(changes)):  # after the last pixel there is no vote, which closes the last run
            vote += changes[i]
            if vote > 0 and 2 * vote >= total:
                if start < 0:
                    start = low + i
            elif start >= 0:
                found = grown(found, filled + 4)
                found[filled], found[filled + 1] = start - closed, low + i - start
                filled += 2
                start, closed = -1, low + i
        found = grown(found, filled + 4)
        if closed < pixels or pixels == 0:
            found[filled] = pixels - closed
            filled += 1
        found_offsets[g + 1] = filled
    return found[:filled].copy(), found_offsets
