"""How far other objects are: the distance of pixels to the nearest pixel of another object, and where objects touch.

The distance is exact, and measured only as far as it is asked for, in the box of each object grown by that reach: two
sweeps and a lower envelope of parabolas, as in `everymask.ops.distance`.

Labels: 0 is background; negative labels are void, and count as background here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from everymask.errors import InputError
from everymask.ops.labels import compact_labels, label_boxes


def distance_to_others(
    labels: NDArray[np.integer], reach: float, spacing: Sequence[float] | None = None
) -> NDArray[np.float32]:
    """Distance of every object pixel to the nearest pixel of another object, background in between or not.

    Args:
        labels: Object ids (H, W) or (Z, H, W); 0 and negative ids are background.
        reach: Where the nearest other object is further than this, the result is this; above 0.
        spacing: Pixel size along each axis, in the unit of the result; 1 where not given.

    Returns:
        Distances from pixel centre to pixel centre, same shape, at most `reach`; 0 on background.

    Raises:
        InputError: These are no integer labels, or `reach` or `spacing` are not positive.
    """
    ids = numbered(labels)
    if not 0 < reach < math.inf:
        raise InputError(f"reach: got {reach}, expected a positive number")
    return distances_within(ids, np.full(int(ids.max(initial=0)) + 1, reach), steps_of(ids, spacing))


def distances_within(
    ids: NDArray[np.int32], reach: NDArray[np.float64], spacing: Sequence[float]
) -> NDArray[np.float32]:
    """Distance to the nearest other object, at most the reach (N + 1,) of the pixel's own."""
    count = int(ids.max(initial=0))
    boxes = label_boxes(ids, count)
    if ids.ndim == 2:
        flat = np.zeros(count, np.int64)
        boxes = np.column_stack([boxes[:, 0], boxes[:, 1], flat, boxes[:, 2], boxes[:, 3], flat + 1])
    steps = np.array(spacing if ids.ndim == 3 else (1.0, *spacing))
    return _distance_to_others(volume(ids), boxes, reach, steps).reshape(ids.shape)


def numbered(labels: NDArray[np.integer]) -> NDArray[np.int32]:
    """Labels as contiguous int32 0..N, void set to background."""
    labels = np.asarray(labels)
    if labels.ndim not in (2, 3) or labels.dtype.kind not in "biu":
        raise InputError(
            f"labels: got {labels.dtype} of shape {labels.shape}, expected integer object ids (H, W) or (Z, H, W)"
        )
    ids, _ = compact_labels(labels)
    return np.ascontiguousarray(np.maximum(ids, 0))


def volume(array: NDArray[Any]) -> NDArray[Any]:
    """The array as (Z, H, W)."""
    return array if array.ndim == 3 else array[None]


def steps_of(ids: NDArray[np.int32], spacing: Sequence[float] | None) -> tuple[float, ...]:
    """Pixel size along each axis.

    Raises:
        InputError: They are not positive, or not as many as axes.
    """
    steps = (1.0,) * ids.ndim if spacing is None else tuple(float(each) for each in spacing)
    if len(steps) != ids.ndim or not all(0 < each < math.inf for each in steps):
        raise InputError(f"spacing: got {spacing}, expected {ids.ndim} positive numbers, one for each axis")
    return steps


@njit(cache=True, nogil=True)
def distance_across(ids: NDArray[np.int32]) -> NDArray[np.float32]:  # pragma: no cover - compiled
    """Distance to other objects that touch a voxel in the next plane, as if that one were a pixel away.

    Args:
        ids: (Z, H, W) objects 1..N.

    Returns:
        The same shape: 1 where another object touches by a face, the roots of 2 and 3 where by an edge or a corner;
        infinite where none does, and on background.
    """
    depth, height, width = ids.shape
    result = np.full(ids.shape, np.float32(np.inf))
    for z in range(depth - 1):
        for y in range(height):
            for x in range(width):
                label = ids[z, y, x]
                if label > 0:
                    for i in range(max(y - 1, 0), min(y + 2, height)):
                        for j in range(max(x - 1, 0), min(x + 2, width)):
                            other = ids[z + 1, i, j]
                            if other > 0 and other != label:
                                away = np.float32(math.sqrt(1.0 + (i - y) ** 2 + (j - x) ** 2))
                                result[z, y, x] = min(result[z, y, x], away)
                                result[z + 1, i, j] = min(result[z + 1, i, j], away)
    return result


@njit(cache=True, nogil=True)
def _distance_to_others(
    ids: NDArray[np.int32], boxes: NDArray[np.int64], reach: NDArray[np.float64], spacing: NDArray[np.float64]
) -> NDArray[np.float32]:  # pragma: no cover - compiled
    """Object by object, in boxes (N, 6) x0 y0 z0 x1 y1 z1 grown by the reach; 0 on background."""
    depth, height, width = ids.shape
    result = np.zeros(ids.shape, np.float32)
    longest = max(depth, height, width) + 1
    line, vertex = np.empty(longest, np.float64), np.empty(longest, np.int64)
    begin = np.empty(longest + 1, np.float64)
    for label in range(1, len(boxes) + 1):
        x0, y0, z0, x1, y1, z1 = boxes[label - 1]
        if x1 == x0:
            continue
        far = reach[label]
        grow_z, grow_y, grow_x = math.ceil(far / spacing[0]), math.ceil(far / spacing[1]), math.ceil(far / spacing[2])
        front, back = max(z0 - grow_z, 0), min(z1 + grow_z, depth)
        top, bottom = max(y0 - grow_y, 0), min(y1 + grow_y, height)
        left, right = max(x0 - grow_x, 0), min(x1 + grow_x, width)
        squared = np.full((back - front, bottom - top, x1 - x0), np.inf)
        found = False
        for z in range(front, back):
            for y in range(top, bottom):
                row = ids[z, y]
                away = np.inf
                for x in range(left, x1):
                    away = 0.0 if row[x] > 0 and row[x] != label else away + spacing[2]
                    found = found or away == 0
                    if x >= x0:
                        squared[z - front, y - top, x - x0] = away * away
                away = np.inf
                for x in range(right - 1, x0 - 1, -1):
                    away = 0.0 if row[x] > 0 and row[x] != label else away + spacing[2]
                    if x < x1 and away * away < squared[z - front, y - top, x - x0]:
                        squared[z - front, y - top, x - x0] = away * away
                    found = found or away == 0
        if found:
            for z in range(back - front):
                for x in range(x1 - x0):
                    _envelope(squared[z, :, x], spacing[1], y0 - top, y1 - top, line, vertex, begin)
            if back - front > 1:
                for y in range(y0 - top, y1 - top):
                    for x in range(x1 - x0):
                        _envelope(squared[:, y, x], spacing[0], z0 - front, z1 - front, line, vertex, begin)
        for z in range(z0, z1):
            for y in range(y0, y1):
                for x in range(x0, x1):
                    if ids[z, y, x] == label:
                        result[z, y, x] = min(math.sqrt(squared[z - front, y - top, x - x0]), far)
    return result


@njit(cache=True, nogil=True)
def _envelope(
    values: NDArray[np.float64],
    spacing: float,
    first: int,
    last: int,
    line: NDArray[np.float64],
    vertex: NDArray[np.int64],
    begin: NDArray[np.float64],
) -> None:  # pragma: no cover - compiled
    """In place, at first <= p < last: the minimum over q of ``values[q] + (spacing (p - q))**2``."""
    area = spacing * spacing
    count = 0
    for q in range(len(values)):
        if values[q] == np.inf:
            continue
        line[q] = values[q] / area
        crossing = -np.inf
        while count > 0:
            v = vertex[count - 1]
            crossing = ((line[q] + q * q) - (line[v] + v * v)) / (2.0 * (q - v))
            if crossing > begin[count - 1]:
                break
            count -= 1
        vertex[count] = q
        begin[count] = crossing if count > 0 else -np.inf
        count += 1
    if count == 0:
        return
    begin[count] = np.inf
    k = 0
    for p in range(first, last):
        while begin[k + 1] < p:
            k += 1
        values[p] = area * (line[vertex[k]] + (p - vertex[k]) ** 2)
