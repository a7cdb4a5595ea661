"""Density-based clustering (DBSCAN) of points in images and volumes, compiled for the CPU.

Ester et al., "A density-based algorithm for discovering clusters in large spatial databases with noise", KDD 1996. The
clusters equal those of `sklearn.cluster.DBSCAN`, numbers included.

Points lie in a grid whose cells are so small that the points of a cell are neighbours: a cell of enough points needs no
search at all, and cells are joined once, not point by point. Time is about linear in the points, however dense they
are; memory grows with the box around them.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from everymask.errors import InputError

EPSILON = math.sqrt(2)
"""Largest distance of neighbours in pixels: that of pixels that share a corner."""

NEIGHBOURS = 5
"""Points within that distance, itself included, that make a point a core."""

_MOST_CELLS = 2**28


def dbscan(points: NDArray[np.floating], epsilon: float = EPSILON, neighbours: int = NEIGHBOURS) -> NDArray[np.int64]:
    """Density-based clusters, equal to those of ``sklearn.cluster.DBSCAN(eps=epsilon, min_samples=neighbours)``.

    Args:
        points: (N, 2) or (N, 3), finite.
        epsilon: Largest distance of neighbours, above 0.
        neighbours: Points within `epsilon`, itself included, that make a core.

    Returns:
        (N,) clusters 0, 1, ... in the order of their first cores, -1 for noise. A point that is no core takes the first
        cluster that has a core within `epsilon`.

    Raises:
        InputError: Other shapes, values that are not finite, points that are spread too widely, or an option out of
            range.
    """
    points = np.ascontiguousarray(points, np.float64)
    if points.ndim != 2 or points.shape[1] not in (2, 3) or not np.isfinite(points).all():
        raise InputError(f"points: got shape {points.shape}, expected finite points (N, 2) or (N, 3)")
    if not epsilon > 0 or neighbours < 1:
        raise InputError(f"epsilon, neighbours: got {epsilon} and {neighbours}, expected above 0 and at least 1")
    labels = np.full(len(points), -1, np.int64)
    if len(points):
        cells = np.prod(np.ptp(points, axis=0) / epsilon * 2 + 1)
        if cells > _MOST_CELLS:
            raise InputError("points: spread over too many grid cells; cluster parts or take a larger epsilon")
        _cluster(points, float(epsilon), neighbours, labels)
    return labels


@njit(cache=True, nogil=True)
def cluster_each(
    points: NDArray[np.float64], starts: NDArray[np.int64], epsilon: float, neighbours: int, labels: NDArray[np.int64]
) -> int:  # pragma: no cover - compiled
    """`dbscan` of each part ``starts[i]:starts[i + 1]`` of points (N, axes), for itself.

    Args:
        points: (N, 2) or (N, 3), finite; those of a part one after the other.
        starts: (P + 1,) rising from 0 to N.
        epsilon: As for `dbscan`.
        neighbours: As for `dbscan`.
        labels: (N,) filled with -1; the clusters are written into it, numbered on from part to part.

    Returns:
        The number of clusters.
    """
    highest = 0
    for part in range(len(starts) - 1):
        first, last = starts[part], starts[part + 1]
        found = _cluster(points[first:last], epsilon, neighbours, labels[first:last])
        for i in range(first, last):
            if labels[i] >= 0:
                labels[i] += highest
        highest += found
    return highest


@njit(cache=True, nogil=True)
def _root(parents: NDArray[np.int32], cell: int) -> int:  # pragma: no cover - compiled
    while parents[cell] != cell:
        parents[cell] = parents[parents[cell]]
        cell = parents[cell]
    return cell


@njit(cache=True, nogil=True)
def _near(points: NDArray[np.float64], one: int, other: int, square: float) -> bool:  # pragma: no cover - compiled
    squares = 0.0
    for axis in range(points.shape[1]):
        difference = points[one, axis] - points[other, axis]
        squares += difference * difference
    return squares <= square


@njit(cache=True, nogil=True)
def _steps_to_cells(shape: NDArray[np.int64]) -> NDArray[np.int64]:  # pragma: no cover - compiled
    """Steps in memory to the cells at most two away along each axis, nearest first, in a grid with a frame of two."""
    reach = 2 if shape[0] > 1 else 0
    steps, far = np.empty(125, np.int64), np.empty(125, np.int64)
    count = 0
    for i in range(-reach, reach + 1):
        for j in range(-2, 3):
            for k in range(-2, 3):
                if i != 0 or j != 0 or k != 0:
                    steps[count] = (i * shape[1] + j) * shape[2] + k
                    far[count] = i * i + j * j + k * k
                    count += 1
    return steps[:count][np.argsort(far[:count])]


@njit(cache=True, nogil=True)
def _cluster(
    points: NDArray[np.float64], epsilon: float, neighbours: int, labels: NDArray[np.int64]
) -> int:  # pragma: no cover - compiled
    """`dbscan` of points (N > 0, axes), written into `labels`, which are -1; returns the number of clusters."""
    count, axes = points.shape
    # The points of a cell are neighbours, and those of cells more than two apart are not.
    side = epsilon / math.sqrt(axes) * (1 - 1e-9)
    square = epsilon * epsilon
    shape = np.ones(3, np.int64)
    low = np.empty(axes)
    for axis in range(axes):
        least, most = points[0, axis], points[0, axis]
        for i in range(count):
            least, most = min(least, points[i, axis]), max(most, points[i, axis])
        low[axis] = least
        shape[3 - axes + axis] = int((most - least) / side) + 5
    cells = shape[0] * shape[1] * shape[2]
    begin = np.zeros(cells + 1, np.int32)
    home = np.empty(count, np.int32)
    for i in range(count):
        cell = 0
        for axis in range(axes):
            cell = cell * shape[3 - axes + axis] + int((points[i, axis] - low[axis]) / side) + 2
        home[i] = cell
        begin[cell + 1] += 1
    for cell in range(cells):
        begin[cell + 1] += begin[cell]
    order = np.empty(count, np.int32)
    filled = begin[:-1].copy()
    for i in range(count):
        order[filled[home[i]]] = i
        filled[home[i]] += 1
    around = _steps_to_cells(shape)

    core = np.zeros(count, np.bool_)
    parents = np.full(cells, -1, np.int32)  # of cells that hold a core
    for i in range(count):
        cell = home[i]
        number = begin[cell + 1] - begin[cell]
        for step in around:
            if number >= neighbours:
                break
            for place in range(begin[cell + step], begin[cell + step + 1]):
                number += _near(points, i, order[place], square)
        core[i] = number >= neighbours
        if core[i]:
            parents[cell] = cell
    for first in range(cells):
        if parents[first] < 0:
            continue
        for step in around:
            other = first + step
            if step < 0 or parents[other] < 0:
                continue
            mine, theirs = _root(parents, first), _root(parents, other)
            if mine != theirs and _touch(points, order, core, begin, first, other, square):
                parents[max(mine, theirs)] = min(mine, theirs)
    numbers = np.full(cells, -1, np.int32)
    found = 0
    for i in range(count):
        if core[i]:
            root = _root(parents, home[i])
            if numbers[root] < 0:
                numbers[root] = found
                found += 1
            labels[i] = numbers[root]
    for i in range(count):
        if core[i]:
            continue
        for k in range(-1, len(around)):
            cell = home[i] + (around[k] if k >= 0 else 0)
            if parents[cell] < 0:
                continue
            number = numbers[_root(parents, cell)]
            if labels[i] >= 0 and number >= labels[i]:
                continue
            for place in range(begin[cell], begin[cell + 1]):
                if core[order[place]] and _near(points, i, order[place], square):
                    labels[i] = number
                    break
    return found


@njit(cache=True, nogil=True)
def _touch(
    points: NDArray[np.float64],
    order: NDArray[np.int32],
    core: NDArray[np.bool_],
    begin: NDArray[np.int32],
    first: int,
    other: int,
    square: float,
) -> bool:  # pragma: no cover - compiled
    """Whether two cells hold cores that are neighbours."""
    for one in range(begin[first], begin[first + 1]):
        if core[order[one]]:
            for two in range(begin[other], begin[other + 1]):
                if core[order[two]] and _near(points, order[one], order[two], square):
                    return True
    return False
