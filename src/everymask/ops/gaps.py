"""Gaps between objects that nearly touch: the bottom-hat closing of the neighbour distance (microbeSEG, MIT)."""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from everymask.ops.labels import connected_components, label_boxes

_RADIUS = 3
"""Of the disk that closes gaps, in pixels."""


def close_gaps(ids: NDArray[np.int32], neighbour: NDArray[np.float32]) -> NDArray[np.float32]:
    """How much background pixels belong to a gap between objects.

    A gap is what a closing with a disk of radius 3 adds to the union of the objects, after each object was closed alone
    (so that its own dents are no gaps). Connected gaps (by corners, too) are 1; if one's minor axis is 3 pixels or
    more, its outermost pixels are .8. A gap whose rim of 8 neighbours sums to a neighbour distance below 5, 8, 10 or 20
    (areas up to 20, 30, 50 pixels or more) lies at one object alone, or in the background, and is none.

    Args:
        ids: Object ids 0..N (H, W), 0 background.
        neighbour: (H, W) the neighbour distance before gaps are closed and before it is rescaled.

    Returns:
        (H, W) 0, .8 or 1. What lies outside the image counts as background, and takes nothing from the objects.
    """
    count = int(ids.max(initial=0))
    result = np.zeros(ids.shape, np.float32)
    if count < 2:
        return result
    half = np.array([math.isqrt(_RADIUS**2 - step**2) for step in range(_RADIUS + 1)], np.int64)
    union = _close_each(ids, label_boxes(ids, count), half)
    gaps, owners = connected_components((_close(union, half) > union).view(np.uint8), connectivity=2)
    _weigh_gaps(gaps, label_boxes(gaps, len(owners)), neighbour, result)
    return result


@njit(cache=True, nogil=True)
def _dilate(mask: NDArray[np.uint8], half: NDArray[np.int64]) -> NDArray[np.uint8]:  # pragma: no cover - compiled
    """Dilation with the disk whose rows at +-i reach `half[i]` pixels to both sides; nothing outside the image."""
    height, width = mask.shape
    radius = len(half) - 1
    away = np.full((height + 2 * radius, width), radius + 1, np.uint8)  # along the row to the nearest pixel of the mask
    for y in range(height):
        steps = radius + 1
        for x in range(width):
            steps = 0 if mask[y, x] else min(steps + 1, radius + 1)
            away[y + radius, x] = steps
        steps = radius + 1
        for x in range(width - 1, -1, -1):
            steps = 0 if mask[y, x] else min(steps + 1, radius + 1)
            away[y + radius, x] = min(away[y + radius, x], steps)
    result = np.zeros((height, width), np.uint8)
    for y in range(height):
        for step in range(-radius, radius + 1):
            row, reach = away[y + radius + step], np.uint8(half[abs(step)])
            for x in range(width):
                result[y, x] |= np.uint8(row[x] <= reach)
    return result


@njit(cache=True, nogil=True)
def _close(mask: NDArray[np.uint8], half: NDArray[np.int64]) -> NDArray[np.uint8]:  # pragma: no cover - compiled
    """Dilation and then erosion, in a frame wide enough that the border of the image makes no difference."""
    # Explicit loops: expressions of whole arrays take seconds to compile.
    height, width = mask.shape
    frame = 2 * (len(half) - 1)
    framed = np.zeros((height + 2 * frame, width + 2 * frame), np.uint8)
    for y in range(height):
        for x in range(width):
            framed[y + frame, x + frame] = mask[y, x]
    outside = _dilate(framed, half)
    for y in range(framed.shape[0]):
        for x in range(framed.shape[1]):
            outside[y, x] = 1 - outside[y, x]
    outside = _dilate(outside, half)
    closed = np.empty(mask.shape, np.uint8)
    for y in range(height):
        for x in range(width):
            closed[y, x] = 1 - outside[y + frame, x + frame]
    return closed


@njit(cache=True, nogil=True)
def _close_each(
    ids: NDArray[np.int32], boxes: NDArray[np.int64], half: NDArray[np.int64]
) -> NDArray[np.uint8]:  # pragma: no cover - compiled
    """The union of the objects, each closed alone; a closing never leaves the box of an object."""
    union = np.zeros(ids.shape, np.uint8)
    for n in range(len(boxes)):
        x0, y0, x1, y1 = boxes[n]
        if x1 == x0:
            continue
        own = np.empty((y1 - y0, x1 - x0), np.uint8)
        for y in range(y0, y1):
            for x in range(x0, x1):
                own[y - y0, x - x0] = ids[y, x] == n + 1
        own = _close(own, half)
        for y in range(y0, y1):
            for x in range(x0, x1):
                union[y, x] |= own[y - y0, x - x0]
    return union


@njit(cache=True, nogil=True)
def _weigh_gaps(
    gaps: NDArray[np.int32], boxes: NDArray[np.int64], neighbour: NDArray[np.float32], result: NDArray[np.float32]
) -> None:  # pragma: no cover - compiled
    """Writes the values of the gaps 1..N that are none of the exceptions of `close_gaps`."""
    height, width = gaps.shape
    for n in range(len(boxes)):
        x0, y0, x1, y1 = boxes[n]
        area, rim = 0, 0.0
        sum_y = sum_x = 0.0
        for y in range(max(y0 - 1, 0), min(y1 + 1, height)):
            for x in range(max(x0 - 1, 0), min(x1 + 1, width)):
                if gaps[y, x] == n + 1:
                    area += 1
                    sum_y += y
                    sum_x += x
                else:
                    beside = False
                    for i in range(max(y - 1, 0), min(y + 2, height)):
                        for j in range(max(x - 1, 0), min(x + 2, width)):
                            beside = beside or gaps[i, j] == n + 1
                    if beside:
                        rim += neighbour[y, x]
        least = 5 if area <= 20 else 8 if area <= 30 else 10 if area <= 50 else 20
        if rim < least:
            continue
        middle_y, middle_x = sum_y / area, sum_x / area
        yy = xx = yx = 0.0
        for y in range(y0, y1):
            for x in range(x0, x1):
                if gaps[y, x] == n + 1:
                    yy += (y - middle_y) ** 2 / area
                    xx += (x - middle_x) ** 2 / area
                    yx += (y - middle_y) * (x - middle_x) / area
        # The minor axis of the ellipse with the same second moments.
        smaller = (yy + xx) / 2 - math.sqrt(((yy - xx) / 2) ** 2 + yx**2)
        wide = 16 * max(smaller, 0.0) >= 9
        for y in range(y0, y1):
            for x in range(x0, x1):
                if gaps[y, x] == n + 1:
                    outermost = y == 0 or y == height - 1 or x == 0 or x == width - 1
                    if not outermost:
                        outermost = (
                            gaps[y - 1, x] != n + 1
                            or gaps[y + 1, x] != n + 1
                            or gaps[y, x - 1] != n + 1
                            or gaps[y, x + 1] != n + 1
                        )
                    result[y, x] = 0.8 if wide and outermost else 1.0
