"""Run lengths of polygons by the rule of COCO's own program, `rleFrPoly`.

Vertices are rounded to fifths of a pixel, edges are walked on that grid, and a pixel is inside by the crossings in its
column a little left of its centre. The official program lists every point of the outline on the grid and keeps the
steps from grid column 5 c + 2 to 5 c + 3, for each image column c. Here those steps are found directly, with the same
arithmetic.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from everymask.ops.rle_measures import grown


@njit(cache=True, nogil=True)
def fill_rings(
    points: NDArray[np.float64], rings: NDArray[np.int64], height: int, width: int
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:  # pragma: no cover - compiled
    """Run lengths of single rings.

    Args:
        points: (P, 2) x, y in pixels, finite and within 10^8.
        rings: (R + 1,) offsets into them.
        height: Rows of the image.
        width: Its columns.

    Returns:
        `counts` and `offsets` of R masks.
    """
    number_of_rings = len(rings) - 1
    counts = np.empty(8 * number_of_rings + 64, np.uint32)
    offsets = np.zeros(number_of_rings + 1, np.int64)
    columns = np.empty(1024, np.int64)
    heights = np.empty(1024, np.int64)
    crossings = np.empty(1024, np.int64)
    per_column = np.zeros(width + 1, np.int64)
    end = 0
    for r in range(number_of_rings):
        number = 0
        first, last = rings[r], rings[r + 1]
        for i in range(first, last):
            k = i + 1 if i + 1 < last else first
            x0, y0 = int(5.0 * points[i, 0] + 0.5), int(5.0 * points[i, 1] + 0.5)
            x1, y1 = int(5.0 * points[k, 0] + 0.5), int(5.0 * points[k, 1] + 0.5)
            if x0 == x1:
                continue
            wide, high = abs(x1 - x0), abs(y1 - y0)
            if (wide >= high and x0 > x1) or (wide < high and y0 > y1):
                x0, y0, x1, y1 = x1, y1, x0, y0
            low = max((min(x0, x1) + 2) // 5, 0)  # first column whose 5 c + 2 is not left of the edge
            high_column = min((max(x0, x1) - 3) // 5, width - 1)
            needed = number + max(high_column - low + 1, 0)
            columns, heights = grown(columns, needed), grown(heights, needed)
            if wide >= high:
                slope = (y1 - y0) / wide
                for column in range(low, high_column + 1):
                    t = 5 * column + 2 - x0
                    columns[number] = column
                    heights[number] = min(int(y0 + slope * t + 0.5), int(y0 + slope * (t + 1) + 0.5))
                    number += 1
            else:
                slope = (x1 - x0) / high
                for column in range(low, high_column + 1):
                    x = 5 * column + 2
                    # the first step t after which the edge is on the far side; an estimate is off by one at most
                    t = min(max(int((x + 0.5 - x0) / slope), 0), high)
                    if slope > 0:
                        while t > 0 and int(x0 + slope * t + 0.5) > x:
                            t -= 1
                        while t < high and int(x0 + slope * t + 0.5) <= x:
                            t += 1
                    else:
                        while t > 0 and int(x0 + slope * t + 0.5) <= x:
                            t -= 1
                        while t < high and int(x0 + slope * t + 0.5) > x:
                            t += 1
                    columns[number] = column
                    heights[number] = y0 + t - 1
                    number += 1
        crossings = grown(crossings, number)
        _sort_crossings(columns, heights, number, height, per_column, crossings)
        counts = grown(counts, end + number + 1)
        begin, before, i = end, 0, 0
        while i < number:
            if i + 1 < number and crossings[i + 1] == crossings[i]:
                i += 2  # two crossings in one place cancel
                continue
            counts[end] = crossings[i] - before
            before = crossings[i]
            end += 1
            i += 1
        if before < height * width or end == begin:
            counts[end] = height * width - before
            end += 1
        offsets[r + 1] = end
    return counts[:end].copy(), offsets


@njit(cache=True, nogil=True)
def _sort_crossings(
    columns: NDArray[np.int64],
    heights: NDArray[np.int64],
    number: int,
    height: int,
    per_column: NDArray[np.int64],
    crossings: NDArray[Any],
) -> None:  # pragma: no cover - compiled
    """Writes where an outline crosses the columns of an image to `crossings`, in column-major order of pixels.

    Args:
        columns: The column of each of `number` crossings.
        heights: How far down it is crossed, in fifths of a pixel; rounded to the pixel edge, kept within the image.
        number: How many there are.
        height: Rows of the image.
        per_column: (W + 1,) zeros, which are left behind.
        crossings: (>= number,) the result.
    """
    if number == 0:
        return
    first, last = columns[0], columns[0]
    for i in range(number):
        per_column[columns[i]] += 1
        first, last = min(first, columns[i]), max(last, columns[i])
    total = 0
    for column in range(first, last + 1):
        begin = total
        total += per_column[column]
        per_column[column] = begin
    for i in range(number):
        column = columns[i]
        crossings[per_column[column]] = column * height + min(max((heights[i] + 2) // 5, 0), height)
        per_column[column] += 1
    per_column[first : last + 1] = 0
    # The columns are in order now. Within one there are few crossings, which insertion brings in order.
    for i in range(1, number):
        crossing, at = crossings[i], i
        while at > 0 and crossings[at - 1] > crossing:
            crossings[at] = crossings[at - 1]
            at -= 1
        crossings[at] = crossing
