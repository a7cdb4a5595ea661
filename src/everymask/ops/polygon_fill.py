"""Scan-line filling of polygons with the pixel rule of scikit-image.

A pixel belongs to a polygon where its centre is inside by the even-odd rule, on an edge or on a vertex, as
`skimage.draw.polygon` decides it. There every pixel of the bounding box is tested against every edge; here each edge is
followed through the rows that it crosses.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numba import config, njit
from numpy.typing import NDArray

_TILE = 1024
"""Side of the squares that large images are painted in: the pixels of one stay in the cache of a core."""


def fill_polygons(vertices: NDArray[np.float32], order: NDArray[np.intp], height: int, width: int) -> NDArray[np.int32]:
    """Label image (height, width) of polygons, painted one over the other.

    Args:
        vertices: `(N, R, 2)` (y, x), in pixels.
        order: indices of the polygons in the order of painting; polygon i is painted with i + 1.
        height: rows of the label image.
        width: columns of the label image.
    """
    labels = np.zeros((height, width), dtype=np.int32)
    down, across = -(-height // _TILE), -(-width // _TILE)
    members, begin = _by_tile(vertices, order, down, across)

    def paint(row: int) -> None:
        for column in range(across):
            tile = row * across + column
            if begin[tile + 1] > begin[tile]:
                top, left = row * _TILE, column * _TILE
                _fill(
                    labels[top : top + _TILE, left : left + _TILE],
                    vertices,
                    members[begin[tile] : begin[tile + 1]],
                    top,
                    left,
                )

    # numba's own setting follows the environment. Its threads would not survive a fork; those of the pool end here.
    threads = min(vars(config)["NUMBA_NUM_THREADS"], down)
    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(paint, range(down)))
    else:
        for row in range(down):
            paint(row)
    return labels


@njit(cache=True, nogil=True)
def _by_tile(
    vertices: NDArray[np.float32], order: NDArray[np.intp], down: int, across: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:  # pragma: no cover - compiled
    """The polygons that may have pixels in each tile, in the order of painting, and where those of each tile begin."""
    count, rays, _ = vertices.shape
    place = np.empty((count, 4), dtype=np.int64)
    begin = np.zeros(down * across + 1, dtype=np.int64)
    for n in range(count):
        low_y = high_y = vertices[n, 0, 0]
        low_x = high_x = vertices[n, 0, 1]
        for k in range(1, rays):
            y, x = vertices[n, k, 0], vertices[n, k, 1]
            low_y, high_y = min(low_y, y), max(high_y, y)
            low_x, high_x = min(low_x, x), max(high_x, x)
        # A pixel more on each side, for what is rounded.
        place[n, 0] = max(np.int64(np.floor((low_y - 1) / _TILE)), 0)
        place[n, 1] = min(np.int64(np.floor((high_y + 1) / _TILE)), down - 1)
        place[n, 2] = max(np.int64(np.floor((low_x - 1) / _TILE)), 0)
        place[n, 3] = min(np.int64(np.floor((high_x + 1) / _TILE)), across - 1)
        for row in range(place[n, 0], place[n, 1] + 1):
            for column in range(place[n, 2], place[n, 3] + 1):
                begin[row * across + column + 1] += 1
    begin = np.cumsum(begin)
    end = begin[:-1].copy()
    members = np.empty(begin[-1], dtype=np.int64)
    for n in order:
        for row in range(place[n, 0], place[n, 1] + 1):
            for column in range(place[n, 2], place[n, 3] + 1):
                tile = row * across + column
                members[end[tile]] = n
                end[tile] += 1
    return members, begin


@njit(cache=True, nogil=True)
def _fill(
    labels: NDArray[np.int32], vertices: NDArray[np.float32], members: NDArray[np.int64], top: int, left: int
) -> None:  # pragma: no cover - compiled
    """Paints some polygons into a part of the image.

    Args:
        labels: the part (h, w), changed.
        vertices: of all polygons, `(N, R, 2)` (y, x), in pixels of the whole image.
        members: indices of polygons, in the order of painting.
        top: row of the image where the part begins.
        left: column where it begins.
    """
    height, width = labels.shape
    rays = vertices.shape[1]
    # Sorted columns where edges cross each row; an edge has its upper end but not its lower one in one list, and the
    # other way round in the other list. A pixel that only one of them finds inside lies on an edge.
    upper = np.empty((height, rays), dtype=np.int64)
    lower = np.empty((height, rays), dtype=np.int64)
    upper_count = np.zeros(height, dtype=np.int64)
    lower_count = np.zeros(height, dtype=np.int64)
    for n in members:
        polygon = vertices[n]
        value = n + 1
        first_row, last_row = height, -1
        for k in range(rays):
            y0, x0 = float(polygon[k, 0]), float(polygon[k, 1])
            follower = k + 1 if k + 1 < rays else 0
            y1, x1 = float(polygon[follower, 0]), float(polygon[follower, 1])
            start = max(np.int64(0), np.int64(np.ceil(min(y0, y1))) - top)
            stop = min(np.int64(height - 1), np.int64(np.floor(max(y0, y1))) - top)
            first_row, last_row = min(first_row, start), max(last_row, stop)
            if y0 == y1:
                continue
            slope = (x1 - x0) / (y1 - y0)
            for i in range(start, stop + 1):
                row = top + i
                near = np.rint(x0 + (row - y0) * slope)
                # The sign that the official pixel test would compute tells on which side of the pixel the edge passes.
                side = ((x1 - near) * (y0 - row) - (x0 - near) * (y1 - row)) / (y0 - y1)
                column = np.int64(near) - left
                if (y0 > row) != (y1 > row):
                    _insert(upper[i], upper_count, i, column + 1 if side > 0 else column)
                if (y0 < row) != (y1 < row):
                    _insert(lower[i], lower_count, i, column - 1 if side < 0 else column)
        for i in range(first_row, last_row + 1):
            # Inside by the first list: an odd number of crossings further right, pixel < ceil(crossing).
            for pair in range(0, upper_count[i] - 1, 2):
                for column in range(max(0, upper[i, pair]), min(width, upper[i, pair + 1])):
                    labels[i, column] = value
            # Inside by the second list: an odd number of crossings further left, pixel > floor(crossing).
            for pair in range(0, lower_count[i] - 1, 2):
                for column in range(max(0, lower[i, pair] + 1), min(width, lower[i, pair + 1] + 1)):
                    labels[i, column] = value
            upper_count[i] = 0
            lower_count[i] = 0
        for k in range(rays):
            row, column = np.int64(np.rint(polygon[k, 0])), np.int64(np.rint(polygon[k, 1]))
            at_pixel = max(abs(polygon[k, 0] - row), abs(polygon[k, 1] - column)) < 1e-12
            i, j = row - top, column - left
            if at_pixel and 0 <= i < height and 0 <= j < width:
                labels[i, j] = value


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
