"""Soft suppression of overlapping boxes: the compiled loop behind `everymask.layers.suppression`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

_BLOCK = 64
"""Neighbouring boxes of which the highest score is remembered, so that the next one to take is found fast."""


def decay_scores(
    boxes: NDArray[Any],
    scores: NDArray[Any],
    groups: NDArray[np.int64],
    *,
    overlap: float,
    sigma: float,
    least: float,
    most: int,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Boxes in the order in which they are taken, each with its score by then (Bodla et al. 2017, figure 2).

    In each group the box of the highest score is taken, the scores of those that it overlaps are lowered, and so on.

    Args:
        boxes: (N, 4) x0, y0, x1, y1.
        scores: (N,) 0..1.
        groups: (N,) boxes of different groups leave one another alone.
        overlap: IoU above which the linear rule lowers scores.
        sigma: Of the Gaussian rule; 0 takes the linear one.
        least: Boxes whose score is or falls below it go; above 0.
        most: Boxes that are taken of each group.

    Returns:
        (K,) indices, group after group, of equal scores the leftmost first, and (K,) scores.
    """
    # Along x, so that a box need not be compared with all of those that lie beside it.
    order = np.lexsort((boxes[:, 0], groups))
    groups = groups[order]
    starts = np.concatenate([[0], np.flatnonzero(groups[1:] != groups[:-1]) + 1, [len(groups)]])
    current = np.where(scores >= least, scores, 0).astype(np.float64)[order]
    taken, values = _decay(boxes.astype(np.float64)[order], current, starts, overlap, sigma, least, most)
    return order[taken], values


@njit(cache=True, nogil=True)
def _decay(
    boxes: NDArray[np.float64],
    current: NDArray[np.float64],
    starts: NDArray[np.int64],
    overlap: float,
    sigma: float,
    least: float,
    most: int,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:  # pragma: no cover - compiled
    """As `decay_scores`, of boxes sorted by group and then by x0; `current` holds their scores and is changed."""
    taken, scores = np.empty(len(current), np.int64), np.empty(len(current), np.float64)
    total = 0
    for group in range(len(starts) - 1):
        begin, end = starts[group], starts[group + 1]
        # The highest score of each block, or more: scores only fall, and it is put right when the block comes up.
        highest = np.zeros((end - begin + _BLOCK - 1) // _BLOCK)
        widest = 0.0
        for k in range(begin, end):
            highest[(k - begin) // _BLOCK] = max(highest[(k - begin) // _BLOCK], current[k])
            widest = max(widest, boxes[k, 2] - boxes[k, 0])
        found = 0
        while found < most and len(highest) > 0:
            block = np.argmax(highest)
            if highest[block] < least:
                break
            best = begin + block * _BLOCK
            for k in range(best + 1, min(best + _BLOCK, end)):
                if current[k] > current[best]:
                    best = k
            if current[best] < highest[block]:
                highest[block] = current[best]
                continue
            taken[total], scores[total] = best, current[best]
            total += 1
            found += 1
            current[best] = 0.0
            x0, y0, x1, y1 = boxes[best]
            area = (x1 - x0) * (y1 - y0)
            # Boxes that begin left of this one reach into it only if they begin less than the widest one before it.
            for step in (-1, 1):
                k = best + step
                while begin <= k < end and x0 - widest <= boxes[k, 0] < x1:
                    if (boxes[k, 3] > y0) & (boxes[k, 1] < y1) & (boxes[k, 2] > x0) & (current[k] >= least):
                        wide = min(x1, boxes[k, 2]) - max(x0, boxes[k, 0])
                        shared = wide * (min(y1, boxes[k, 3]) - max(y0, boxes[k, 1]))
                        other = (boxes[k, 2] - boxes[k, 0]) * (boxes[k, 3] - boxes[k, 1])
                        iou = shared / (area + other - shared)
                        if sigma > 0:
                            factor = math.exp(-iou * iou / sigma)
                        else:
                            factor = 1 - iou if iou > overlap else 1.0
                        if factor < 1:  # not where boxes without end make no number of it
                            current[k] *= factor
                    k += step
    return taken[:total], scores[:total]
