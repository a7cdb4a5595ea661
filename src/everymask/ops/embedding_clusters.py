"""Centres of objects, and objects from pixels that point at the centre of theirs.

Neven et al., Instance Segmentation by Jointly Optimizing Spatial Embeddings and Clustering Bandwidth, CVPR 2019; Lalit,
Tomancak, Jug, EmbedSeg: Embedding-based Instance Segmentation for Biomedical Microscopy Data, Medical Image Analysis
2022. Each pixel has an embedding (its position plus an offset), a bandwidth, and a seed score that says how near its
embedding is to the centre. Objects are found greedily: the best seed takes all pixels that embed within its bandwidth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from numba import njit
from numpy.typing import NDArray

from everymask.errors import InputError, unknown_name

Centre = Literal["medoid", "centroid"]

_REACH = math.log(2)
"""A pixel belongs to a centre where exp(-distance) > 1/2, so where the distance is below this."""


# -- centres -----------------------------------------------------------------------------------------------------------


def object_centres(
    ids: NDArray[np.integer], kind: Centre = "medoid", spacing: Sequence[float] | None = None
) -> NDArray[np.float64]:
    """The centre of each object of a label map.

    Args:
        ids: (H, W) or (Z, H, W) labels; 0 is background, negative values are void.
        kind: ``medoid``: the pixel of the object whose distances to all its other pixels have the least sum (Lalit et
            al. 2022), one of several that are equally good; it lies inside objects of any shape.
            ``centroid``: the mean position.
        spacing: Pixel size along each axis, which the distances of medoids depend on; 1 along each where not given.

    Returns:
        (N, 2) y, x or (N, 3) z, y, x in pixels (and planes, whatever the spacing), for labels 1..N; NaN for labels that
        have no pixel.

    Raises:
        InputError: The array has other axes or is not of integers, `kind` is unknown, or `spacing` is not positive.
    """
    ids = np.asarray(ids)
    if ids.ndim not in (2, 3) or ids.dtype.kind not in "biu":
        raise InputError(f"labels: got {ids.dtype} of shape {ids.shape}, expected integers (H, W) or (Z, H, W)")
    if kind not in get_args(Centre):
        raise unknown_name("centre", kind, get_args(Centre))
    steps = np.ones(ids.ndim) if spacing is None else np.array([float(each) for each in spacing])
    if len(steps) != ids.ndim or not all(0 < each < math.inf for each in steps):
        raise InputError(f"spacing: got {spacing}, expected {ids.ndim} positive numbers, one for each axis")
    pixels = np.flatnonzero(ids > 0)
    labels = ids.ravel()[pixels].astype(np.int64)
    count = int(labels.max(initial=0))
    order = np.argsort(labels, kind="stable")
    places = np.stack(np.unravel_index(pixels[order], ids.shape), axis=1).astype(np.float64)
    bounds = np.searchsorted(labels[order], np.arange(1, count + 2))
    if kind == "centroid" or (steps == 1).all():
        return _centres(places, bounds, kind == "medoid")
    return np.rint(_centres(places * steps, bounds, medoids=True) / steps)


@njit(cache=True, nogil=True)
def _centres(
    places: NDArray[np.float64], bounds: NDArray[np.int64], medoids: bool
) -> NDArray[np.float64]:  # pragma: no cover - compiled
    """Centres (N, A) of places (P, A), those of object n being ``bounds[n]:bounds[n + 1]``.

    The sum of distances is a convex function of the position. So a subgradient g at a pixel y bounds it from below
    everywhere, f(x) >= f(y) + g (x - y), and rules out about half of the pixels that are left each time (the method of
    cutting planes): the exact medoid of n pixels takes about n log n steps instead of n^2.
    """
    count, axes = len(bounds) - 1, places.shape[1]
    centres = np.full((count, axes), np.nan)
    left = np.empty(len(places), np.int64)
    middle, slope = np.empty(axes), np.empty(axes)
    for n in range(count):
        first, last = bounds[n], bounds[n + 1]
        remaining = last - first
        for i in range(remaining):
            left[i] = first + i
        least = np.inf
        while remaining > 0:
            middle[:] = 0.0
            for i in range(remaining):
                for a in range(axes):
                    middle[a] += places[left[i], a] / remaining
            if not medoids:
                centres[n] = middle
                break
            trial, nearest = left[0], np.inf
            for i in range(remaining):
                squared = 0.0
                for a in range(axes):
                    squared += (places[left[i], a] - middle[a]) ** 2
                if squared < nearest:
                    trial, nearest = left[i], squared
            total = 0.0
            slope[:] = 0.0
            for j in range(first, last):
                squared = 0.0
                for a in range(axes):
                    squared += (places[trial, a] - places[j, a]) ** 2
                distance = math.sqrt(squared)
                total += distance
                if distance > 0.0:
                    for a in range(axes):
                        slope[a] += (places[trial, a] - places[j, a]) / distance
            if total < least:
                least = total
                centres[n] = places[trial]
            kept = 0
            for i in range(remaining):
                bound = total
                for a in range(axes):
                    bound += slope[a] * (places[left[i], a] - places[trial, a])
                if bound < least and left[i] != trial:
                    left[kept] = left[i]
                    kept += 1
            remaining = kept
    return centres


# -- clusters ----------------------------------------------------------------------------------------------------------


def cluster_embeddings(
    embedding: NDArray[Any],
    log_scale: NDArray[Any],
    seed: NDArray[Any],
    foreground: float = 0.5,
    lowest: float = 0.9,
    smallest: int = 36,
    overlap: float = 0.5,
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Objects by greedy clustering (Neven et al. 2019).

    The pixel with the highest seed score of those not clustered yet proposes an object: every foreground pixel with
    ``exp(-sum_a s_a (e_a - c_a)^2) > 1/2``, where c and s are embedding and scale of the proposing pixel. It is kept if
    it has more than `smallest` pixels and more than a share `overlap` of them is not clustered; those become its
    pixels. All of them count as clustered from then on. This ends when no score of `lowest` or above is left.

    Exactly the objects of the plain loop, whose cost is objects times foreground pixels. Here the embeddings are sorted
    into a grid, so that a proposal looks only at those within its reach.

    Args:
        embedding: (2, H, W) or (3, Z, H, W) where each pixel says that its centre is, in any unit.
        log_scale: The same shape: logarithm of s, in one over the square of that unit.
        seed: (H, W) or (Z, H, W) scores, 0..1.
        foreground: Pixels with a score above it can belong to objects.
        lowest: Least score of a seed.
        smallest: Objects have more pixels than this.
        overlap: See above, 0..1.

    Returns:
        Labels 1..N (int32, shape of `seed`) in the order of falling score, 0 for background; and the score (N,) of the
        seed of each object. Pixels with values that are not finite are background.

    Raises:
        InputError: The shapes do not fit.
    """
    embedding, log_scale, seed = np.asarray(embedding), np.asarray(log_scale), np.asarray(seed)
    axes = seed.ndim
    if axes not in (2, 3) or embedding.shape != (axes, *seed.shape) or log_scale.shape != embedding.shape:
        raise InputError(
            f"embedding, log_scale and seed have shapes {embedding.shape}, {log_scale.shape} and {seed.shape}; "
            "expected (2, H, W), (2, H, W) and (H, W), or (3, Z, H, W), (3, Z, H, W) and (Z, H, W)"
        )
    ids = np.zeros(seed.shape, np.int32)
    pixels = np.flatnonzero(seed > foreground)
    places = _three_axes(embedding, pixels)
    finite = np.isfinite(places.sum(axis=0))
    if not finite.all():
        pixels, places = pixels[finite], places[:, finite]
    scores = seed.ravel()[pixels].astype(np.float64)
    candidates = np.flatnonzero(scores >= lowest)
    logs = _three_axes(log_scale, pixels[candidates])
    finite = np.isfinite(logs.sum(axis=0)) & np.isfinite(scores[candidates])
    candidates, logs = candidates[finite], logs[:, finite]
    if not len(candidates):
        return ids, np.zeros(0)
    best_first = np.argsort(-scores[candidates], kind="stable")
    candidates, logs = candidates[best_first], logs[:, best_first]
    low, cells, side = _grid(places, logs)
    order, starts, near = _sort_into_grid(places, low, cells, side)
    labels, seeds = _cluster(near, order, starts, candidates, logs, low, cells, side, smallest, overlap)
    ids.ravel()[pixels[order]] = labels
    return ids, scores[seeds]


def _three_axes(values: NDArray[Any], pixels: NDArray[np.int64]) -> NDArray[np.float64]:
    """(3, P) values of some pixels; where there are two axes only, the first of the three is 0 everywhere."""
    chosen = np.zeros((3, len(pixels)))
    for axis in range(1, len(values) + 1):
        chosen[-axis] = values[-axis].ravel()[pixels]
    return chosen


def _grid(
    places: NDArray[np.float64], logs: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.int64], float]:
    """Lower corner (3,), number of cells (3,) and side of a grid around all embeddings (3, M).

    Cells are about as large as half the reach of a typical seed, unless that makes more cells than there are pixels.
    """
    low = places.min(axis=1)
    extent = places.max(axis=1) - low
    used = extent > 0
    if not used.any():
        return low, np.ones(3, np.int64), 1.0
    reach = math.sqrt(_REACH) * np.exp(-0.5 * np.median(logs[used]).clip(-600, 600))
    side = max(0.5 * float(reach), float(extent.max()) / 2**20)
    while np.prod(np.floor(extent / side) + 1) > places.shape[1] + 64:
        side *= 1.25
    return low, np.floor(extent / side).astype(np.int64) + 1, side


@njit(cache=True, nogil=True)
def _cell(value: float, low: float, side: float, cells: int) -> int:  # pragma: no cover - compiled
    """The cell of a coordinate, of those outside the grid the outermost one."""
    return int(min(max((value - low) / side, 0.0), cells - 1.0))


@njit(cache=True, nogil=True)
def _span(
    centre: float, scale: float, reach: float, low: float, side: float, cells: int
) -> tuple[int, int]:  # pragma: no cover - compiled
    """First and last cell with coordinates x of ``scale (x - centre)^2 < reach``."""
    # A little more than the reach, lest rounding lose a pixel on its rim.
    radius = math.sqrt(reach / scale) * (1 + 1e-9) + 1e-12 * side if scale > 0 else np.inf
    return _cell(centre - radius, low, side, cells), _cell(centre + radius, low, side, cells)


@njit(cache=True, nogil=True)
def _sort_into_grid(
    places: NDArray[np.float64], low: NDArray[np.float64], cells: NDArray[np.int64], side: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:  # pragma: no cover - compiled
    """Order (M,) of the embeddings by cell, where each cell starts in it, and the embeddings (M, 3) in that order."""
    count = places.shape[1]
    cell = np.empty(count, np.int64)
    starts = np.zeros(cells[0] * cells[1] * cells[2] + 1, np.int64)
    for i in range(count):
        at = 0
        for a in range(3):
            at = at * cells[a] + _cell(places[a, i], low[a], side, cells[a])
        cell[i] = at
        starts[at + 1] += 1
    for c in range(1, len(starts)):
        starts[c] += starts[c - 1]
    order = np.empty(count, np.int64)
    near = np.empty((count, 3))
    free = starts.copy()
    for i in range(count):
        order[free[cell[i]]] = i
        for a in range(3):
            near[free[cell[i]], a] = places[a, i]
        free[cell[i]] += 1
    return order, starts, near


@njit(cache=True, nogil=True)
def _within(
    near: NDArray[np.float64],
    starts: NDArray[np.int64],
    low: NDArray[np.float64],
    cells: NDArray[np.int64],
    side: float,
    centre: NDArray[np.float64],
    scale: NDArray[np.float64],
    reach: float,
    hits: NDArray[np.int64],
) -> int:  # pragma: no cover - compiled
    """Writes to `hits` the embeddings with ``sum_a s_a (e_a - c_a)^2 < reach``, by their place in the grid's order.

    Returns:
        How many they are.
    """
    front, back = _span(centre[0], scale[0], reach, low[0], side, cells[0])
    top, bottom = _span(centre[1], scale[1], reach, low[1], side, cells[1])
    left, right = _span(centre[2], scale[2], reach, low[2], side, cells[2])
    found = 0
    for z in range(front, back + 1):
        for y in range(top, bottom + 1):
            row = (z * cells[1] + y) * cells[2]
            for i in range(starts[row + left], starts[row + right + 1]):
                distance = scale[0] * (near[i, 0] - centre[0]) ** 2
                distance += scale[1] * (near[i, 1] - centre[1]) ** 2
                distance += scale[2] * (near[i, 2] - centre[2]) ** 2
                if distance < reach:
                    hits[found] = i
                    found += 1
    return found


@njit(cache=True, nogil=True)
def _cluster(
    near: NDArray[np.float64],
    order: NDArray[np.int64],
    starts: NDArray[np.int64],
    candidates: NDArray[np.int64],
    logs: NDArray[np.float64],
    low: NDArray[np.float64],
    cells: NDArray[np.int64],
    side: float,
    smallest: int,
    overlap: float,
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:  # pragma: no cover - compiled
    """Label (M,) of each embedding in the order of the grid, and the seed (N,) of each object."""
    count = len(near)
    rank = np.empty(count, np.int64)
    for i in range(count):
        rank[order[i]] = i
    labels = np.zeros(count, np.int32)
    clustered = np.zeros(count, np.bool_)
    seeds = np.empty(len(candidates), np.int64)
    hits = np.empty(count, np.int64)
    found = 0
    scale = np.empty(3)
    for c in range(len(candidates)):
        at = rank[candidates[c]]
        if clustered[at]:
            continue
        for a in range(3):
            scale[a] = math.exp(min(logs[a, c], 700.0))
        total = _within(near, starts, low, cells, side, near[at], scale, _REACH, hits)
        new = 0
        for h in range(total):
            if not clustered[hits[h]]:
                clustered[hits[h]] = True
                hits[new] = hits[h]
                new += 1
        if total > smallest and new > overlap * total:
            seeds[found] = candidates[c]
            found += 1
            for m in range(new):
                labels[hits[m]] = found
    return labels, seeds[:found]


# -- neighbours --------------------------------------------------------------------------------------------------------


def embeddings_within(
    embedding: NDArray[np.floating],
    objects: NDArray[np.int64],
    scale: NDArray[np.floating],
    centre: NDArray[np.floating],
    reach: NDArray[np.floating],
) -> NDArray[np.int64]:
    """Pixels outside an object that embed within its reach, for all objects of an image.

    Args:
        embedding: (A, P) of P pixels; A is 2 or 3.
        objects: (P,) object 0..N-1 that each pixel belongs to, -1 for none; pixels with -2 are passed over.
        scale: (A, N) s of each object.
        centre: (A, N) c of each object.
        reach: (N,) bound on ``sum_a s_a (e_a - c_a)^2``; NaN finds nothing.

    Returns:
        (2, Q) pairs of an object and a pixel with a distance below the bound, in order of the objects.
    """
    pixels = np.flatnonzero((objects != -2) & np.isfinite(embedding.sum(axis=0)))
    places = _three_axes(embedding, pixels)
    # Of objects without pixels nothing is known.
    known = np.flatnonzero(np.isfinite(scale.sum(axis=0) + centre.sum(axis=0) + reach))
    if not len(pixels) or not len(known):
        return np.zeros((2, 0), np.int64)
    scales, centres = _three_axes(scale, known), _three_axes(centre, known)
    reaches = np.maximum(reach[known].astype(np.float64), 1e-30)
    low, cells, side = _grid(places, np.log(np.maximum(scales, 1e-300) * (_REACH / reaches)))
    order, starts, near = _sort_into_grid(places, low, cells, side)
    found = _pairs(near, pixels[order], starts, objects, known, scales, centres, reaches, low, cells, side)
    return np.ascontiguousarray(found.T)


@njit(cache=True, nogil=True)
def _pairs(
    near: NDArray[np.float64],
    pixels: NDArray[np.int64],
    starts: NDArray[np.int64],
    objects: NDArray[np.int64],
    known: NDArray[np.int64],
    scales: NDArray[np.float64],
    centres: NDArray[np.float64],
    reaches: NDArray[np.float64],
    low: NDArray[np.float64],
    cells: NDArray[np.int64],
    side: float,
) -> NDArray[np.int64]:  # pragma: no cover - compiled
    """Pairs (Q, 2) of `embeddings_within`; `near` and `pixels` are in the order of the grid."""
    pairs = np.empty((len(near) + 64, 2), np.int64)
    hits = np.empty(len(near), np.int64)
    found = 0
    for k in range(len(known)):
        total = _within(near, starts, low, cells, side, centres[:, k], scales[:, k], reaches[k], hits)
        if found + total > len(pairs):
            longer = np.empty((2 * (found + total), 2), np.int64)
            longer[:found] = pairs[:found]
            pairs = longer
        for h in range(total):
            pixel = pixels[hits[h]]
            if objects[pixel] != known[k]:
                pairs[found, 0], pairs[found, 1] = known[k], pixel
                found += 1
    return pairs[:found]
