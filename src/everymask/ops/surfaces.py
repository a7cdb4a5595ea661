"""Distances between the surfaces of objects, in images and volumes, and what is made of them.

The surface of an object are its pixels that have a neighbour across an edge (a face in volumes) outside of it; beyond
the image everything is outside. That is the object less its erosion by a cross, as MedPy and MONAI take it. (DeepMind's
`surface-distance` puts the surface between the pixels and weights it by area, which gives other numbers.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from everymask.errors import InputError

_ROWS = 96  # of pixels around a point that are looked through before a tree is asked


class SurfaceDistances(NamedTuple):
    """How far two surfaces are apart, from either side; infinite where the other object does not exist.

    Args:
        truth: (P,) distance of each pixel on the one surface to the nearest on the other.
        prediction: (Q,) the other way round.
    """

    truth: NDArray[np.float64]
    prediction: NDArray[np.float64]

    def hausdorff(self, percentile: float = 100.0) -> float:
        """The largest distance (Hausdorff distance), or a percentile of them.

        Percentiles are those of either side, of which the larger one counts, as in MONAI, DeepMind's program and
        "Metrics Reloaded" (Maier-Hein et al. 2024); MedPy's `hd95` takes one percentile of both sides together.

        Args:
            percentile: 0..100, by linear interpolation.

        Returns:
            A length; NaN if neither object exists, infinite if one does not.
        """
        if not len(self.truth) + len(self.prediction):
            return float("nan")
        if not len(self.truth) or not len(self.prediction):
            return float("inf")
        return float(max(np.percentile(each, percentile) for each in self))

    def average(self) -> float:
        """Average symmetric surface distance: the mean over the pixels of both surfaces together.

        As "Metrics Reloaded", MONAI's symmetric `compute_average_surface_distance` and MedPy's `assd` of 0.5; earlier
        releases of that took the mean of the means of both sides.

        Returns:
            A length; NaN if neither object exists, infinite if one does not.
        """
        both = np.concatenate(self)
        return float(both.mean()) if len(both) else float("nan")

    def dice(self, tolerance: float) -> float:
        """Normalised surface Dice: the share of both surfaces within a tolerance of the other (Nikolov et al. 2018).

        Args:
            tolerance: A length; distances up to it, itself included, are no error.

        Returns:
            0..1; NaN if neither object exists.
        """
        both = np.concatenate(self)
        return float(np.count_nonzero(both <= tolerance) / len(both)) if len(both) else float("nan")


def surface_distances(
    truth: NDArray[Any], prediction: NDArray[Any], spacing: Sequence[float] | None = None
) -> SurfaceDistances:
    """Distances between the surfaces of two masks.

    Args:
        truth: (H, W) or (Z, H, W), foreground where nonzero.
        prediction: Likewise, of the same shape.
        spacing: Size of a pixel along each axis, in the unit of the result; 1 along each where not given.

    Raises:
        InputError: The shapes differ or have other axes, or the spacing is not positive.
    """
    if np.shape(truth) != np.shape(prediction):
        raise InputError(f"masks have shapes {np.shape(truth)} and {np.shape(prediction)}, expected equal ones")
    steps = checked_spacing(spacing, np.ndim(truth))
    first, second = (surface_points((np.asarray(each) != 0).astype(np.int32), 1)[0] for each in (truth, prediction))
    return point_distances(first, second, steps)


def checked_spacing(spacing: Sequence[float] | None, axes: int) -> tuple[float, ...]:
    """The size of a pixel along each of the axes.

    Raises:
        InputError: There are not so many numbers, or one is not positive and finite.
    """
    if spacing is None:
        return (1.0,) * axes
    steps = tuple(float(each) for each in spacing)
    if len(steps) != axes or not all(0 < each < float("inf") for each in steps):
        raise InputError(f"spacing: got {list(steps)}, expected {axes} positive numbers, one for each axis of the data")
    return steps


def surface_points(ids: NDArray[np.integer], count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The surface pixels of all objects of a label map, in one pass.

    Args:
        ids: (H, W) or (Z, H, W) labels; 1..`count` are objects, other values are not.
        count: N.

    Returns:
        (P, axes) coordinates ordered by object and position, and (N + 1,) where those of each object begin.

    Raises:
        InputError: The array has other axes.
    """
    if ids.ndim not in (2, 3):
        raise InputError(f"label map: got shape {ids.shape}, expected (H, W) or (Z, H, W)")
    volume = np.ascontiguousarray(ids if ids.ndim == 3 else ids[None], np.int32)
    points, starts = _surface_points(volume, count, ids.ndim == 3)
    return points[:, 3 - ids.ndim :], starts


def point_distances(
    truth: NDArray[np.int64], prediction: NDArray[np.int64], spacing: Sequence[float]
) -> SurfaceDistances:
    """Distance of each point to the nearest of the other set.

    Args:
        truth: (P, axes) coordinates in pixels.
        prediction: (Q, axes) likewise.
        spacing: Size of a pixel along each axis.
    """
    if not len(truth) or not len(prediction):
        return SurfaceDistances(np.full(len(truth), np.inf), np.full(len(prediction), np.inf))
    steps = np.asarray(spacing, np.float64)
    return SurfaceDistances(_nearest(truth, prediction, steps), _nearest(prediction, truth, steps))


def _nearest(points: NDArray[np.int64], others: NDArray[np.int64], spacing: NDArray[np.float64]) -> NDArray[np.float64]:
    """(P,) distance of each point to the nearest of the others, both ordered by position.

    Surfaces that are compared mostly lie close together, where looking through the nearest rows of pixels is many times
    faster than a tree or a transform; for what is farther away there is a tree.
    """
    if len(spacing) == 2:
        points, others = (np.pad(each, ((0, 0), (1, 0))) for each in (points, others))
        spacing = np.concatenate([[1.0], spacing])
        reach = _ROWS / 2 * spacing[1]
        rows = np.arange(-_ROWS, _ROWS + 1)[:, None] * np.array([[0, 1]])
    else:
        reach = np.sqrt(_ROWS / np.pi * spacing[0] * spacing[1])
        most = (reach // spacing[:2]).astype(np.int64)
        rows = np.stack(np.meshgrid(*(np.arange(-each, each + 1) for each in most)), -1).reshape(-1, 2)
    away = ((rows * spacing[:2]) ** 2).sum(axis=1)
    order = np.argsort(away, kind="stable")
    order = order[away[order] <= reach**2]
    result = _nearest_in_rows(points, others, spacing, rows[order], away[order], reach**2)
    far = np.flatnonzero(result < 0)
    if len(far):
        from scipy.spatial import KDTree

        _, index = KDTree(others * spacing, balanced_tree=False, compact_nodes=False).query(points[far] * spacing)
        # Anew from whole pixels: the tree's own distances lose a bit to large coordinates, and whether a distance is
        # within a tolerance may hang on it.
        result[far] = (((points[far] - others[index]) * spacing) ** 2).sum(axis=1)
    return np.sqrt(result)


@njit(cache=True, nogil=True)
def _nearest_in_rows(
    points: NDArray[np.int64],
    others: NDArray[np.int64],
    spacing: NDArray[np.float64],
    rows: NDArray[np.int64],
    away: NDArray[np.float64],
    limit: float,
) -> NDArray[np.float64]:  # pragma: no cover - compiled
    """(P,) squared distances of points (z, y, x) to the nearest of the others, -1 where it is beyond the limit.

    Args:
        points: (P, 3).
        others: (Q, 3) ordered by z, y and x.
        spacing: (3,) size of a pixel.
        rows: (R, 2) steps in z and y, all that are up to the limit away, the nearest first.
        away: (R,) their squared lengths.
        limit: Squared length.
    """
    # Where the points of each row begin, for the box of the others.
    top, left = others[0, 0], others[0, 1]
    bottom, right = others[-1, 0], others[0, 1]
    for i in range(len(others)):
        left, right = min(left, others[i, 1]), max(right, others[i, 1])
    width = right - left + 1
    starts = np.zeros((bottom - top + 1) * width + 1, np.int64)
    for i in range(len(others)):
        starts[(others[i, 0] - top) * width + others[i, 1] - left + 1] += 1
    for i in range(len(starts) - 1):
        starts[i + 1] += starts[i]
    result = np.empty(len(points))
    for i in range(len(points)):
        z, y, x = points[i, 0] - top, points[i, 1] - left, points[i, 2]
        best = np.inf
        for k in range(len(rows)):
            if away[k] >= best:
                break
            row, column = z + rows[k, 0], y + rows[k, 1]
            if row < 0 or row > bottom - top or column < 0 or column >= width:
                continue
            first, last = starts[row * width + column], starts[row * width + column + 1]
            low, high = first, last
            while low < high:
                middle = (low + high) // 2
                if others[middle, 2] >= x:
                    high = middle
                else:
                    low = middle + 1
            if low < last:
                best = min(best, away[k] + ((others[low, 2] - x) * spacing[2]) ** 2)
            if low > first:
                best = min(best, away[k] + ((x - others[low - 1, 2]) * spacing[2]) ** 2)
        result[i] = best if best <= limit else -1.0
    return result


@njit(cache=True, nogil=True)
def _surface_points(
    ids: NDArray[np.int32], count: int, deep: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:  # pragma: no cover - compiled
    """`deep` tells a volume, where the first and the last slice are border, from an image."""
    depth, height, width = ids.shape
    starts = np.zeros(count + 2, np.int64)
    points = np.empty((0, 3), np.int64)
    for writing in (False, True):
        if writing:
            for n in range(count + 1):
                starts[n + 1] += starts[n]
            points = np.empty((starts[count + 1], 3), np.int64)
        for z in range(depth):
            for y in range(height):
                row = ids[z, y]
                edge = y == 0 or y == height - 1 or (deep and (z == 0 or z == depth - 1))
                above, below = ids[z, max(y - 1, 0)], ids[z, min(y + 1, height - 1)]
                before, behind = ids[max(z - 1, 0), y], ids[min(z + 1, depth - 1), y]
                for x in range(width):
                    label = row[x]
                    if label < 1 or label > count:
                        continue
                    inside = (
                        not edge
                        and 0 < x < width - 1
                        and row[x - 1] == label
                        and row[x + 1] == label
                        and above[x] == label
                        and below[x] == label
                        and before[x] == label
                        and behind[x] == label
                    )
                    if inside:
                        continue
                    # Counting puts a label two places on, writing one: so each ends up in its own place.
                    if writing:
                        at = starts[label]
                        points[at, 0], points[at, 1], points[at, 2] = z, y, x
                        starts[label] += 1
                    else:
                        starts[label + 1] += 1
    return points, starts[: count + 1]
