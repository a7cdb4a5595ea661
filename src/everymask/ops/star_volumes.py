"""Kernels of StarDist for volumes: candidates, suppression and rendering of star polyhedra.

Weigert et al., "Star-convex Polyhedra for 3D Object Detection and Segmentation in Microscopy", WACV 2020; official
program `stardist` (BSD-3). The results equal the official program's (`stardist.nms`, `stardist.geometry`) but for what
the functions tell; the way to them is another one. Rays and conventions are those of `everymask.ops.sphere_rays`.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numba import config
from numpy.typing import NDArray

from everymask.errors import InputError
from everymask.ops.polyhedron_rows import paint_polyhedra
from everymask.ops.sphere_rays import Grid, checked_directions
from everymask.ops.star_volume_suppression import suppress

# Larger objects than any volume that fits into a memory; rows of bits of all that is below do, too.
_LARGEST_COORDINATE = 2.0**14
# Planes that are worth a thread of their own.
_SLAB = 16


def volume_candidates(
    probability: NDArray[np.floating],
    distances: NDArray[np.floating],
    threshold: float,
    border: int = 2,
    grid: Grid = (1, 1, 1),
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Predicted polyhedra above a probability threshold, best first.

    As `StarDist3D.predict_instances` selects them (`stardist.nms._ind_prob_thresh`): probability strictly above the
    threshold, a border of the prediction left out, distances raised to at least 0.001. Equal scores stay in raster
    order; the official program leaves their order to an unstable sort. Other than there, distances beyond the diagonal
    of the volume are cut to it, so that what an untrained network says needs no more memory than the volume.

    Args:
        probability: object probability `(d, h, w)` on the grid of the prediction.
        distances: distances along rays in voxels, `(R, d, h, w)`.
        threshold: probability that a candidate has to exceed.
        border: cells of the grid (not voxels) at each end of each axis that give no candidates.
        grid: voxels per cell of the prediction.

    Returns:
        points `(N, 3)` (z, y, x) in voxels, scores `(N,)` in descending order, distances `(N, R)`.

    Raises:
        InputError: where the shapes do not belong together, or the threshold is negative.
    """
    if not threshold >= 0:
        raise InputError(f"threshold: got {threshold}, expected a probability of at least 0, such as 0.5")
    if probability.ndim != 3 or distances.ndim != 4 or distances.shape[1:] != probability.shape:
        raise InputError(
            f"probability, distances: got shapes {probability.shape} and {distances.shape}, "
            "expected (d, h, w) and (R, d, h, w)"
        )
    inner = probability[tuple(slice(border, max(side - border, border)) for side in probability.shape)]
    cells = np.argwhere(inner > threshold)
    scores = inner[tuple(cells.T)].astype(np.float32)
    order = np.argsort(-scores, kind="stable")
    cells = cells[order] + border
    rays = np.ascontiguousarray(distances[:, cells[:, 0], cells[:, 1], cells[:, 2]].T, dtype=np.float32)
    diagonal = math.hypot(*(cell * side for cell, side in zip(grid, probability.shape, strict=True)))
    np.clip(rays, np.float32(1e-3), np.float32(max(diagonal, 1.0)), out=rays)
    return cells.astype(np.float32) * np.asarray(grid, dtype=np.float32), scores[order], rays


def suppress_polyhedra(
    points: NDArray[np.floating],
    scores: NDArray[np.floating],
    distances: NDArray[np.floating],
    directions: NDArray[np.float32],
    faces: NDArray[np.int32],
    threshold: float = 0.4,
) -> NDArray[np.bool_]:
    """Greedy non-maximum suppression of star polyhedra that overlap a better one.

    A polyhedron is dropped where a kept one of higher score shares more than `threshold` of the smaller of the two
    volumes (not of the union), as `stardist.nms.non_maximum_suppression_3d_inds` decides it with one thread: the shared
    volume is first bounded by boxes and by spheres, in coordinates in which the polyhedra are as high as wide on
    average, then by the kernels and the convex hulls, and at last counted in voxels. See
    `everymask.ops.star_volume_suppression` for how the kernels and hulls of most pairs are not needed for that. Only
    polyhedra with faces exactly on voxels, such as cubes, may now and then be decided otherwise, since there the
    official count depends on rounding.

    Args:
        points: centres `(N, 3)` (z, y, x), in voxels.
        scores: scores `(N,)` in descending order, as `volume_candidates` returns them.
        distances: distances along rays `(N, R)`, positive.
        directions: unit vectors `(R, 3)` of the rays.
        faces: triangles between them `(F, 3)`.
        threshold: share of the smaller volume above which the worse polyhedron is dropped, at least 0.

    Returns:
        `(N,)`, True for the polyhedra that are kept.

    Raises:
        InputError: for shapes that do not belong together, scores out of order, numbers that are not finite, or a
            threshold below 0.
    """
    directions = checked_directions(directions)
    points, distances = _checked_polyhedra(points, distances, len(directions))
    if scores.shape != points.shape[:1] or np.any(scores[1:] > scores[:-1]):
        raise InputError(f"scores: got shape {scores.shape}, expected ({len(points)},) in descending order; sort first")
    if not threshold >= 0:
        raise InputError(f"threshold: got {threshold}, expected at least 0, such as 0.4")
    return suppress(points, distances, directions, _checked_faces(faces, len(directions)), np.float32(threshold))


def render_polyhedra(
    points: NDArray[np.floating],
    distances: NDArray[np.floating],
    directions: NDArray[np.float32],
    faces: NDArray[np.int32],
    shape: tuple[int, int, int],
    scores: NDArray[np.floating] | None = None,
) -> NDArray[np.int32]:
    """Label volume of star polyhedra; where they overlap, the highest score wins.

    Equal to `stardist.geometry.polyhedron_to_label` (mode ``full``), that is, a voxel belongs to a polyhedron where its
    centre lies within. A centre on the very surface (to a hundred-thousandth of a voxel), such as at the end of a ray
    of whole length, is within; the official program leaves it to the rounding of planes there.

    Args:
        points: centres `(N, 3)` (z, y, x).
        distances: distances along rays `(N, R)`, positive.
        directions: unit vectors `(R, 3)` of the rays.
        faces: triangles between them `(F, 3)`.
        shape: (D, H, W) of the label volume.
        scores: `(N,)`; of two equal scores the later polyhedron wins. Without scores the polyhedra count as sorted,
            best first.

    Returns:
        Labels `(D, H, W)`: polyhedron i has the id i + 1, whatever the order of the scores; 0 is background.

    Raises:
        InputError: for shapes that do not belong together or numbers that are not finite.
    """
    directions = checked_directions(directions)
    points, distances = _checked_polyhedra(points, distances, len(directions))
    faces = _checked_faces(faces, len(directions))
    order = np.arange(len(points) - 1, -1, -1) if scores is None else np.argsort(scores, kind="stable")
    if len(order) != len(points):
        raise InputError(f"scores: got {len(order)}, expected one for each of the {len(points)} polyhedra")
    labels = np.zeros(shape, dtype=np.int32)

    def paint(first: int) -> None:
        paint_polyhedra(labels[first : first + slab], first, points, distances, directions, faces, order)

    # numba's own setting follows the environment. Its threads would not survive a fork; those of the pool end here.
    threads = max(1, min(vars(config)["NUMBA_NUM_THREADS"], shape[0] // _SLAB))
    slab = max(1, -(-shape[0] // threads))
    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(paint, range(0, shape[0], slab)))
    else:
        paint(0)
    return labels


def _checked_faces(faces: NDArray[np.integer], rays: int) -> NDArray[np.int32]:
    if faces.ndim != 2 or faces.shape[1] != 3 or (faces.size and not 0 <= faces.min() <= faces.max() < rays):
        raise InputError(f"faces: got shape {faces.shape}, expected (F, 3) indices of the {rays} rays")
    return np.ascontiguousarray(faces, dtype=np.int32)


def _checked_polyhedra(
    points: NDArray[np.floating], distances: NDArray[np.floating], rays: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Centres and distances as contiguous float32."""
    if points.ndim != 2 or points.shape[1] != 3 or distances.shape != (len(points), rays):
        raise InputError(
            f"points, distances: got shapes {points.shape} and {distances.shape}, expected (N, 3) and (N, {rays})"
        )
    points = np.ascontiguousarray(points, dtype=np.float32)
    distances = np.ascontiguousarray(distances, dtype=np.float32)
    for name, values in (("points", points), ("distances", distances)):
        if values.size and not np.abs(values).max() < _LARGEST_COORDINATE:
            raise InputError(f"{name}: expected finite numbers below {_LARGEST_COORDINATE:g} voxels; check the network")
    if distances.size and not distances.min() > 0:
        raise InputError("distances: expected numbers above 0, as volume_candidates gives them")
    return points, distances
