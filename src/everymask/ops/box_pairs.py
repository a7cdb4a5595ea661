"""All pairs of two lists of boxes at once, compiled: their IoU, and which of them meet.

`everymask.ops.boxes` calls the first where there are many boxes.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray


def pairwise_iou(a: NDArray[np.float64], b: NDArray[np.float64], crowd: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Intersection over union of every pair, over the area of `a` where `b` is a crowd region.

    Args:
        a: (N, 4) x0, y0, x1, y1 in pixels, right and bottom edges exclusive.
        b: (M, 4) likewise.
        crowd: (M,) which of them are crowd regions.

    Returns:
        (N, M) in 0..1; 0 where both boxes are empty.
    """
    # one contiguous row for each coordinate lets the inner loop become vector operations
    return _pairwise_iou(np.ascontiguousarray(a), np.ascontiguousarray(b.T), crowd)


@njit(cache=True, nogil=True, error_model="numpy")
def _pairwise_iou(
    a: NDArray[np.float64], b: NDArray[np.float64], crowd: NDArray[np.bool_]
) -> NDArray[np.float64]:  # pragma: no cover - compiled
    number = b.shape[1]
    result = np.empty((len(a), number))
    left, top, right, bottom = b[0], b[1], b[2], b[3]
    areas = np.empty(number)
    for m in range(number):
        areas[m] = max(right[m] - left[m], 0.0) * max(bottom[m] - top[m], 0.0)
    for n in range(len(a)):
        x0, y0, x1, y1 = a[n, 0], a[n, 1], a[n, 2], a[n, 3]
        area = max(x1 - x0, 0.0) * max(y1 - y0, 0.0)
        row = result[n]
        for m in range(number):
            width = max(min(x1, right[m]) - max(x0, left[m]), 0.0)
            height = max(min(y1, bottom[m]) - max(y0, top[m]), 0.0)
            shared = width * height
            total = area if crowd[m] else area + areas[m] - shared
            # where nothing is shared the numerator is 0 whatever it is divided by
            row[m] = shared / (total if total > 0.0 else 1.0)
    return result


def meeting_boxes(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The pairs of boxes that share an area, without comparing all of them.

    Args:
        a: (N, 4) x0, y0, x1, y1 in pixels, right and bottom edges exclusive.
        b: (M, 4) likewise.

    Returns:
        Numbers of the boxes in the first and in the second list, (P,) each, ordered by the first and then the second.
    """
    order = np.argsort(b[:, 0], kind="stable")
    first, second = _meeting_boxes(np.ascontiguousarray(a), np.ascontiguousarray(b[order]), order)
    by_number = np.lexsort((second, first))
    return first[by_number], second[by_number]


@njit(cache=True, nogil=True)
def _meeting_boxes(
    a: NDArray[np.float64], b: NDArray[np.float64], numbers: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:  # pragma: no cover - compiled
    """Boxes of b are in the order of their left edges, so those that can meet one of a follow each other."""
    widest = 0.0
    for m in range(len(b)):
        widest = max(widest, b[m, 2] - b[m, 0])
    first = np.empty(256, np.int64)
    second = np.empty(256, np.int64)
    total = 0
    for n in range(len(a)):
        x0, y0, x1, y1 = a[n, 0], a[n, 1], a[n, 2], a[n, 3]
        if x0 >= x1 or y0 >= y1:
            continue
        low, high = 0, len(b)
        while low < high:
            middle = (low + high) // 2
            if b[middle, 0] > x0 - widest:
                high = middle
            else:
                low = middle + 1
        for m in range(low, len(b)):
            if b[m, 0] >= x1:
                break
            if max(x0, b[m, 0]) < min(x1, b[m, 2]) and max(y0, b[m, 1]) < min(y1, b[m, 3]):
                if total == len(first):
                    first = np.concatenate((first, first))
                    second = np.concatenate((second, second))
                first[total] = n
                second[total] = numbers[m]
                total += 1
    return first[:total], second[:total]
