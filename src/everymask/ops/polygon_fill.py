"""Scan-line filling of polygons with the pixel rule of scikit-image.

A pixel belongs to a polygon where its centre is inside by the even-odd rule, on an edge or on a vertex, as
`skimage.draw.polygon` decides it. There every pixel of the bounding box is tested against every edge; here each edge is
followed through the rows that it crosses.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray


@njit(cache=True, nogil=True)
def fill_polygons(
    vertices: NDArray[np.float32], order: NDArray[np.intp], height: int, width: int
) -> NDArray[np.int32]:  # pragma: no cover - compiled
    """Label image (height, width) of polygons, painted one over the other.

    Args:
        vertices: `(N, R, 2)` (y, x), in pixels.
        order: indices of the polygons in the order of painting; polygon i is painted with i + 1.
        height: rows of the label image.
        width: columns of the label image.
    """
    labels = np.zeros((height, width), dtype=np.int32)
    count, rays, _ = vertices.shape
    # Sorted columns where edges cross each row; an edge has its upper end but not its lower one in one list, and the
    # other way round in the other list. A pixel that only one of them finds inside lies on an edge.
    upper = np.empty((height, rays), dtype=np.int64)
    lower = np.empty((height, rays), dtype=np.int64)
    upper_count = np.zeros(height, dtype=np.int64)
    lower_count = np.zeros(height, dtype=np.int64)
    for n in range(count):
        polygon = vertices[order[n]]
        value = order[n] + 1
        first_row, last_row = height, -1
        for k in range(rays):
            y0, x0 = float(polygon[k, 0]), float(polygon[k, 1])
            follower = k + 1 if k + 1 < rays else 0
            y1, x1 = float(polygon[follower, 0]), float(polygon[follower, 1])
            start = max(np.int64(0), np.int64(np.ceil(min(y0, y1))))
            stop = min(np.int64(height - 1), np.int64(np.floor(max(y0, y1))))
            first_row, last_row = min(first_row, start), max(last_row, stop)
            if y0 == y1:
                continue
            slope = (x1 - x0) / (y1 - y0)
            for row in range(start, stop + 1):
                near = np.rint(x0 + (row - y0) * slope)
                # The sign that the official pixel test would compute tells on which side of the pixel the edge passes.
                side = ((x1 - near) * (y0 - row) - (x0 - near) * (y1 - row)) / (y0 - y1)
                column = np.int64(near)
                if (y0 > row) != (y1 > row):
                    _insert(upper[row], upper_count, row, column + 1 if side > 0 else column)
                if (y0 < row) != (y1 < row):
                    _insert(lower[row], lower_count, row, column - 1 if side < 0 else column)
        for row in range(first_row, last_row + 1):
            # Inside by the first list: an odd number of crossings further right, pixel < ceil(crossing).
            for pair in range(0, upper_count[row] - 1, 2):
                for column in range(max(0, upper[row, pair]), min(width, upper[row, pair + 1])):
                    labels[row, column] = value
            # Inside by the second list: an odd number of crossings further left, pixel > floor(crossing).
            for pair in range(0, lower_count[row] - 1, 2):
                for column in range(max(0, lower[row, pair] + 1), min(width, lower[row, pair + 1] + 1)):
                    labels[row, column] = value
            upper_count[row] = 0
            lower_count[row] = 0
        for k in range(rays):
            row, column = np.int64(np.rint(polygon[k, 0])), np.int64(np.rint(polygon[k, 1]))
            at_pixel = max(abs(polygon[k, 0] - row), abs(polygon[k, 1] - column)) < 1e-12
            if at_pixel and 0 <= row < height and 0 <= column < width:
                labels[row, column] = value
    return labels


@njit(cache=True, nogil=True)
def _insert(
    columns: NDArray[np.int64], counts: NDArray[np.int64], row: int, column: np.int64
) -> None:  # pragma: no cover - compiled
    """Insert a column into the sorted list of a row."""
    at = counts[row]
    while at > 0 and columns[at - 1] > column:
        columns[at] = columns[at - 1]
        at -= 1
    columns[at] = column
    counts[row] += 1
