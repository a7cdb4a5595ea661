"""Volumes of intersections of half-spaces, and convex hulls, for a few hundred planes around a point, compiled.

The part of a plane that bounds the intersection is a polygon: a large square, cut by each of the other planes. The
pyramids over these polygons make up the volume. A convex hull is the same thing in the dual space, in which points are
planes and facets are corners.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

# Squares of sines of angles between planes, below which they count as parallel.
_PARALLEL = 1e-18
# Share of the distance of a plane from the point within which parallel planes count as one.
_SAME = 1e-12
# Cosine of the angle up to which directions are similar.
_SIMILAR = 0.8
# What the square of a cosine may err.
_ROUNDING = 1e-12
# Half a side of the first square, relative to the distance of the farthest plane.
_FAR = 1e4


@njit(cache=True, nogil=True)
def intersection_volume(
    normals: NDArray[np.float64], offsets: NDArray[np.float64], enough: float
) -> float:  # pragma: no cover - compiled
    """Volume of the points x with `normals @ x <= offsets`.

    Args:
        normals: unit vectors `(P, 3)` that point out; together they have to enclose the origin.
        offsets: distances of the planes from the origin `(P,)`, above 0.
        enough: the sum ends where it passes this volume.

    Returns:
        The volume; where it is above `enough`, something between the two.
    """
    polygon = np.empty((2, normals.shape[0] + 4, 2), dtype=np.float64)
    edges = np.empty((2, normals.shape[0] + 4), dtype=np.int64)
    volume = 0.0
    for k in range(normals.shape[0]):
        count, which = _facet(normals, offsets, k, polygon, edges)
        area = 0.0
        for v in range(count):
            after = v + 1 if v + 1 < count else 0
            area += polygon[which, v, 0] * polygon[which, after, 1] - polygon[which, after, 0] * polygon[which, v, 1]
        volume += offsets[k] * area / 6.0
        if volume > enough:
            break
    return volume


@njit(cache=True, nogil=True)
def hull_planes(points: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:  # pragma: no cover
    """Planes of the convex hull of points around the origin.

    Args:
        points: `(P, 3)`, none of them at the origin, which lies inside their hull.

    Returns:
        Unit normals `(F, 3)` that point out and distances from the origin `(F,)`; points of a common plane may give it
        several times.
    """
    total = points.shape[0]
    normals = np.empty((total, 3), dtype=np.float64)
    offsets = np.empty(total, dtype=np.float64)
    for k in range(total):
        offsets[k] = 1.0 / np.sqrt(points[k, 0] ** 2 + points[k, 1] ** 2 + points[k, 2] ** 2)
        normals[k] = points[k] * offsets[k]
    polygon = np.empty((2, total + 4, 2), dtype=np.float64)
    edges = np.empty((2, total + 4), dtype=np.int64)
    found_normals = np.empty((2 * total, 3), dtype=np.float64)
    found_offsets = np.empty(2 * total, dtype=np.float64)
    found = 0
    for k in range(total):
        count, which = _facet(normals, offsets, k, polygon, edges)
        ux, uy, uz, vx, vy, vz = _axes(normals[k, 0], normals[k, 1], normals[k, 2])
        for v in range(count):
            # The corner between two edges is that of three planes: the first of them tells of it.
            before, after = edges[which, v - 1 if v else count - 1], edges[which, v]
            if before < k or after < k or found == 2 * total:
                continue
            s, t = polygon[which, v, 0], polygon[which, v, 1]
            x = offsets[k] * normals[k, 0] + s * ux + t * vx
            y = offsets[k] * normals[k, 1] + s * uy + t * vy
            z = offsets[k] * normals[k, 2] + s * uz + t * vz
            length = np.sqrt(x * x + y * y + z * z)
            found_normals[found, 0], found_normals[found, 1], found_normals[found, 2] = (
                x / length,
                y / length,
                z / length,
            )
            found_offsets[found] = 1.0 / length
            found += 1
    return found_normals[:found], found_offsets[:found]


@njit(cache=True, nogil=True)
def _axes(x: float, y: float, z: float) -> tuple[float, float, float, float, float, float]:  # pragma: no cover
    """Two unit vectors that make a right-handed system with the unit vector (x, y, z)."""
    if abs(x) <= abs(y) and abs(x) <= abs(z):
        ux, uy, uz = 0.0, -z, y
    elif abs(y) <= abs(z):
        ux, uy, uz = z, 0.0, -x
    else:
        ux, uy, uz = -y, x, 0.0
    length = np.sqrt(ux * ux + uy * uy + uz * uz)
    ux, uy, uz = ux / length, uy / length, uz / length
    return ux, uy, uz, y * uz - z * uy, z * ux - x * uz, x * uy - y * ux


@njit(cache=True, nogil=True)
def _facet(
    normals: NDArray[np.float64],
    offsets: NDArray[np.float64],
    k: int,
    polygon: NDArray[np.float64],
    edges: NDArray[np.int64],
) -> tuple[int, int]:  # pragma: no cover - compiled
    """The polygon that the other planes leave of plane k, in coordinates of the plane around the foot of the origin.

    Returns:
        Number of corners, 0 where nothing is left, and which of the two halves of `polygon` and `edges` holds it:
        corners `(n, 2)` and the plane that made the edge from each to the next, -1 for the first square.
    """
    nx, ny, nz = normals[k, 0], normals[k, 1], normals[k, 2]
    ux, uy, uz, vx, vy, vz = _axes(nx, ny, nz)
    far = _FAR * offsets.max()
    for corner in range(4):
        polygon[0, corner, 0] = far if corner in (0, 3) else -far
        polygon[0, corner, 1] = far if corner < 2 else -far
        edges[0, corner] = -1
    count, which = 4, 0
    squared_radius = 2.0 * far * far
    # Planes of similar directions first: they leave a small polygon, which most of the others do not even touch.
    for n in range(2 * normals.shape[0]):
        m = n % normals.shape[0]
        along = normals[m, 0] * nx + normals[m, 1] * ny + normals[m, 2] * nz
        if m == k or (along > _SIMILAR) == (n >= normals.shape[0]):
            continue
        limit = offsets[m] - offsets[k] * along
        if limit >= 0 and limit * limit >= (1.0 - along * along + _ROUNDING) * squared_radius:
            continue
        a = normals[m, 0] * ux + normals[m, 1] * uy + normals[m, 2] * uz
        b = normals[m, 0] * vx + normals[m, 1] * vy + normals[m, 2] * vz
        squared = a * a + b * b
        if squared < _PARALLEL:
            same = along > 0 and abs(limit) <= _SAME * offsets[k]
            if (same and m < k) or (not same and limit < 0):
                return 0, which
            continue
        other, kept, squared_radius = 1 - which, 0, 0.0
        for v in range(count):
            after = v + 1 if v + 1 < count else 0
            s, t = polygon[which, v, 0], polygon[which, v, 1]
            next_s, next_t = polygon[which, after, 0], polygon[which, after, 1]
            excess, next_excess = a * s + b * t - limit, a * next_s + b * next_t - limit
            if excess <= 0:
                polygon[other, kept, 0], polygon[other, kept, 1] = s, t
                edges[other, kept] = edges[which, v]
                squared_radius = max(squared_radius, s * s + t * t)
                kept += 1
            if (excess <= 0) != (next_excess <= 0):
                share = excess / (excess - next_excess)
                s, t = s + share * (next_s - s), t + share * (next_t - t)
                polygon[other, kept, 0], polygon[other, kept, 1] = s, t
                edges[other, kept] = m if excess <= 0 else edges[which, v]
                squared_radius = max(squared_radius, s * s + t * t)
                kept += 1
        count, which = kept, other
        if count < 3:
            return 0, which
    return count, which
