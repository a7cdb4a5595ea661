"""Kernels of StarDist: distances along rays, polygon suppression and rendering, compiled for the CPU.

Schmidt et al., "Cell Detection with Star-convex Polygons", MICCAI 2018; official program `stardist` (BSD-3). The
results equal the official program's (`stardist.geometry`, `stardist.nms`), the way to them is another one.

Conventions: ray `k` of `R` points at the angle `2 pi k / R`, measured from the x axis towards the y axis; points are
`(y, x)` in pixels of the image; a prediction on a grid of `g` pixels has its cell `(i, j)` at `(g i, g j)`.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from everymask.errors import InputError
from everymask.ops.polygon_fill import fill_polygons
from everymask.ops.star_suppression import suppress

# Steps along a ray that are tabulated; longer rays are walked step by step.
_TABLE_STEPS = 512
# Whole coordinates and their sums are exact in float32 up to 2^24.
_LARGEST_COORDINATE = 2.0**22


def star_distances(labels: NDArray[np.integer], rays: int = 32, grid: int = 1) -> NDArray[np.float32]:
    """Distance from each pixel to the edge of its object, along rays.

    Equal to `stardist.geometry.star_dist(labels, rays, grid=(grid, grid))`: unit steps from the pixel until the label
    of the nearest pixel changes or the image ends, less the overshoot of `1 - 0.5 / max(|cos|, |sin|)` steps.
    Unlike the official program, which reduces labels modulo 65536, ids are taken as they are, and negative ids (void)
    give 0 like the background; the official training code sets them to 0 beforehand.

    Args:
        labels: object ids `(H, W)`; 0 and negative ids are background.
        rays: number of rays R, at least 3.
        grid: distances are computed for every `grid`-th pixel along both axes.

    Returns:
        Distances in pixels, `(ceil(H / grid), ceil(W / grid), R)`; 0 on background.

    Raises:
        InputError: for labels that are no integer `(H, W)` array, fewer than 3 rays or a grid below 1.
    """
    labels = np.asarray(labels)
    if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(
            f"labels: got {labels.dtype} of shape {labels.shape}, expected integer object ids (H, W); "
            "pass one label image at a time"
        )
    if rays < 3 or grid < 1:
        raise InputError(f"rays, grid: got {rays} and {grid}, expected at least 3 rays and a grid of at least 1")
    # A frame of a value that no pixel has ends every ray inside the array. Two pixels wide, since rounding half to even
    # can move the nearest pixel by two in one step.
    framed = np.full((labels.shape[0] + 4, labels.shape[1] + 4), -1, dtype=np.int32)
    framed[2:-2, 2:-2] = np.maximum(labels, 0)
    steps = min(_TABLE_STEPS, int(math.hypot(*labels.shape)) + 3)
    return _star_distances(framed, rays, grid, steps)


def candidates(
    probability: NDArray[np.floating], distances: NDArray[np.floating], threshold: float, border: int = 2, grid: int = 1
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Predicted polygons above a probability threshold, best first.

    As `StarDist2D.predict_instances` selects them (`stardist.nms._ind_prob_thresh`): probability strictly above the
    threshold, a border of the prediction left out, distances raised to at least 0.001. Equal scores stay in raster
    order; the official program leaves their order to an unstable sort.

    Args:
        probability: object probability `(h, w)` on the grid of the prediction.
        distances: distances along rays in pixels of the image, `(h, w, R)`.
        threshold: probability that a candidate has to exceed.
        border: cells of the grid (not pixels of the image) along each edge that give no candidates.
        grid: pixels of the image per cell of the prediction.

    Returns:
        points `(N, 2)` (y, x) in pixels of the image, scores `(N,)` in descending order, distances `(N, R)`.

    Raises:
        InputError: where the shapes do not belong together, or the threshold is negative.
    """
    if not threshold >= 0:
        raise InputError(f"threshold: got {threshold}, expected a probability of at least 0, such as 0.5")
    if probability.ndim != 2 or distances.ndim != 3 or distances.shape[:2] != probability.shape:
        raise InputError(
            f"probability, distances: got shapes {probability.shape} and {distances.shape}, "
            "expected (h, w) and (h, w, R)"
        )
    height, width = probability.shape
    inner = np.asarray(probability[border : max(height - border, border), border : max(width - border, border)])
    places = np.flatnonzero(inner > threshold)  # several times faster than nonzero of two axes
    rows, columns = np.divmod(places, max(inner.shape[1], 1))
    scores = inner[rows, columns].astype(np.float32)
    # Positive floats sort as their bits do; with the place behind them keys are unique, so the fastest sort is stable.
    keys = (~scores.view(np.uint32)).astype(np.uint64) << np.uint64(32) | np.arange(len(scores), dtype=np.uint64)
    order = (np.sort(keys) & np.uint64(0xFFFFFFFF)).astype(np.int64)
    rows, columns = rows[order] + border, columns[order] + border
    points = np.stack([rows, columns], axis=1).astype(np.float32) * np.float32(grid)
    rays = distances[rows, columns].astype(np.float32, copy=False)
    return points, scores[order], np.maximum(rays, np.float32(1e-3), out=rays)


def non_maximum_suppression(
    points: NDArray[np.floating],
    scores: NDArray[np.floating],
    distances: NDArray[np.floating],
    threshold: float = 0.4,
) -> NDArray[np.bool_]:
    """Greedy suppression of star polygons that overlap a better one.

    A polygon is dropped where a kept one of higher score shares more than `threshold` of the smaller of the two areas
    (not of the union), as `stardist.nms.non_maximum_suppression_inds` decides it: vertices cut to whole pixels,
    crossings of edges rounded. The kept sets are equal; only outlines that jump so much from ray to ray that they cross
    themselves once cut to whole pixels may now and then be decided otherwise (measured: of 1,000 kept, fewer than 10).

    Args:
        points: centres `(N, 2)` (y, x), in pixels.
        scores: scores `(N,)` in descending order, as `candidates` returns them.
        distances: distances along rays `(N, R)`, positive.
        threshold: share of the smaller area above which the worse polygon is dropped, at least 0.

    Returns:
        `(N,)`, True for the polygons that are kept.

    Raises:
        InputError: for shapes that do not belong together, scores out of order, numbers that are not finite, or a
            threshold below 0.
    """
    points, distances = _checked_polygons(points, distances)
    if scores.shape != points.shape[:1] or np.any(scores[1:] > scores[:-1]):
        raise InputError(f"scores: got shape {scores.shape}, expected ({len(points)},) in descending order; sort first")
    if not threshold >= 0:
        raise InputError(f"threshold: got {threshold}, expected at least 0, such as 0.4")
    sines, cosines = _ray_directions(distances.shape[1])
    return suppress(points, distances, sines, cosines, np.float32(threshold))


def star_polygons(points: NDArray[np.floating], distances: NDArray[np.floating]) -> NDArray[np.float32]:
    """Vertices of star polygons.

    Equal to `stardist.geometry.dist_to_coord`, with the axes in another order.

    Args:
        points: centres `(N, 2)` (y, x).
        distances: distances along rays `(N, R)`.

    Returns:
        Vertices `(N, R, 2)` (y, x).

    Raises:
        InputError: for shapes that do not belong together or numbers that are not finite.
    """
    points, distances = _checked_polygons(points, distances)
    angles = np.linspace(0, 2 * np.pi, distances.shape[1], endpoint=False)
    directions = np.stack([np.sin(angles), np.cos(angles)], axis=1)
    return (distances[:, :, None] * directions).astype(np.float32) + points[:, None, :]


def render_stars(
    points: NDArray[np.floating],
    distances: NDArray[np.floating],
    shape: tuple[int, int],
    scores: NDArray[np.floating] | None = None,
) -> NDArray[np.int32]:
    """Label image of star polygons; where they overlap, the highest score wins.

    Equal to `stardist.geometry.polygons_to_label`, whose pixels are those of `skimage.draw.polygon`: a pixel belongs
    to a polygon where its centre lies inside by the even-odd rule, on an edge or on a vertex.

    Args:
        points: centres `(N, 2)` (y, x).
        distances: distances along rays `(N, R)`.
        shape: (H, W) of the label image.
        scores: `(N,)`; of two equal scores the later polygon wins, as in the official program. Without scores the
            polygons count as sorted, best first.

    Returns:
        Labels `(H, W)`: polygon i has the id i + 1, whatever the order of the scores; 0 is background.

    Raises:
        InputError: for shapes that do not belong together or numbers that are not finite.
    """
    vertices = star_polygons(points, distances)
    order = np.arange(len(vertices) - 1, -1, -1) if scores is None else np.argsort(scores, kind="stable")
    if len(order) != len(vertices):
        raise InputError(f"scores: got {len(order)}, expected one for each of the {len(vertices)} polygons")
    return fill_polygons(vertices, order, shape[0], shape[1])


def _checked_polygons(
    points: NDArray[np.floating], distances: NDArray[np.floating]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Centres and distances as contiguous float32."""
    if points.ndim != 2 or points.shape[1] != 2 or distances.ndim != 2 or len(points) != len(distances):
        raise InputError(
            f"points, distances: got shapes {points.shape} and {distances.shape}, expected (N, 2) and (N, R)"
        )
    points = np.ascontiguousarray(points, dtype=np.float32)
    distances = np.ascontiguousarray(distances, dtype=np.float32)
    for name, values in (("points", points), ("distances", distances)):
        if values.size and not np.abs(values).max() < _LARGEST_COORDINATE:
            raise InputError(f"{name}: expected finite numbers below {_LARGEST_COORDINATE:g} pixels; check the network")
    return points, distances


def _ray_directions(rays: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Sines and cosines of the rays, float32 at every step like those of the official suppression."""
    angles = np.arange(rays, dtype=np.float32) * np.float32(2 * np.pi / rays)
    return np.sin(angles.astype(np.float64)).astype(np.float32), np.cos(angles.astype(np.float64)).astype(np.float32)


@njit(cache=True, nogil=True)
def _star_distances(
    framed: NDArray[np.int32], rays: int, grid: int, steps: int
) -> NDArray[np.float32]:  # pragma: no cover - compiled
    """Star distances of labels in a frame 2 pixels wide.

    The k-th ray passes the same offsets from every pixel, so its steps and lengths are tabulated once. The exception
    is a step that ends so near the middle between two pixels that float32 rounding of `pixel + offset`, as in the
    official program, decides: from the first such step on, a ray is walked without the table.
    """
    height, width = framed.shape[0] - 4, framed.shape[1] - 4
    pitch = framed.shape[1]
    flat = framed.ravel()
    offset = np.empty((rays, steps), dtype=np.int64)
    length = np.empty((rays, steps), dtype=np.float32)
    end_y = np.empty((rays, steps), dtype=np.float32)
    end_x = np.empty((rays, steps), dtype=np.float32)
    safe_steps = np.full(rays, steps, dtype=np.int64)
    reach = np.empty(steps, dtype=np.int64)
    skip = np.empty((rays, steps + 1), dtype=np.int64)  # steps sure to stay in a square of that half width
    sines = np.empty(rays, dtype=np.float32)
    cosines = np.empty(rays, dtype=np.float32)
    angle_step = np.float32(2 * np.pi / rays)
    tolerance = np.float32(max(height, width) + 2) * np.float32(2.4e-7)  # twice the spacing of float32 numbers there
    for k in range(rays):
        angle = np.float32(k) * angle_step
        cosines[k] = np.float32(math.cos(angle))
        sines[k] = np.float32(math.sin(angle))
        y = np.float32(0)
        x = np.float32(0)
        for t in range(steps):
            y += sines[k]
            x += cosines[k]
            end_y[k, t] = y
            end_x[k, t] = x
            near_y, near_x = np.rint(y), np.rint(x)
            offset[k, t] = np.int64(near_y) * pitch + np.int64(near_x)
            length[k, t] = _length_of_ray(y, x, sines[k], cosines[k])
            tie = max(abs(y - near_y), abs(x - near_x)) > np.float32(0.5) - tolerance
            if tie and safe_steps[k] == steps:
                safe_steps[k] = t
            reach[t] = np.int64(max(abs(near_y), abs(near_x)))
        t = 0
        for half in range(steps + 1):
            while t < safe_steps[k] and reach[t] < half:
                t += 1
            skip[k, half] = t

    square = _half_width_of_square(framed)
    result = np.zeros(((height - 1) // grid + 1, (width - 1) // grid + 1, rays), dtype=np.float32)
    for i in range(result.shape[0]):
        for j in range(result.shape[1]):
            here = (i * grid + 2) * pitch + j * grid + 2
            label = flat[here]
            if label <= 0:
                continue
            half = min(square[i * grid + 2, j * grid + 2], steps)
            for k in range(rays):
                t = skip[k, half]
                while t < safe_steps[k] and flat[here + offset[k, t]] == label:
                    t += 1
                if t < safe_steps[k]:
                    result[i, j, k] = length[k, t]
                    continue
                y = end_y[k, t - 1] if t > 0 else np.float32(0)
                x = end_x[k, t - 1] if t > 0 else np.float32(0)
                inside = True
                while inside:
                    y += sines[k]
                    x += cosines[k]
                    row = np.int64(np.rint(np.float32(i * grid) + y))
                    column = np.int64(np.rint(np.float32(j * grid) + x))
                    inside = framed[row + 2, column + 2] == label
                result[i, j, k] = _length_of_ray(y, x, sines[k], cosines[k])
    return result


@njit(cache=True, nogil=True)
def _length_of_ray(
    y: np.float32, x: np.float32, sine: np.float32, cosine: np.float32
) -> np.float32:  # pragma: no cover - compiled
    """Length of a ray that ends at (y, x), less the overshoot, in float32 like the official program."""
    correction = np.float32(0.5) / max(abs(cosine), abs(sine)) - np.float32(1)
    y += correction * sine
    x += correction * cosine
    return np.sqrt(y * y + x * x)


@njit(cache=True, nogil=True)
def _half_width_of_square(framed: NDArray[np.int32]) -> NDArray[np.int32]:  # pragma: no cover - compiled
    """Chessboard distance to the nearest other label: pixels nearer than that have the same label."""
    height, width = framed.shape
    square = np.zeros((height, width), dtype=np.int32)
    for i in range(2, height - 2):
        for j in range(2, width - 2):
            label = framed[i, j]
            if label > 0:
                nearest = 0x7FFFFFFF
                for a, b in ((i, j - 1), (i - 1, j - 1), (i - 1, j), (i - 1, j + 1)):
                    nearest = min(nearest, square[a, b] if framed[a, b] == label else 0)
                square[i, j] = nearest + 1
    for i in range(height - 3, 1, -1):
        for j in range(width - 3, 1, -1):
            label = framed[i, j]
            if label > 0:
                nearest = square[i, j] - 1
                for a, b in ((i, j + 1), (i + 1, j + 1), (i + 1, j), (i + 1, j - 1)):
                    nearest = min(nearest, square[a, b] if framed[a, b] == label else 0)
                square[i, j] = nearest + 1
    return square
