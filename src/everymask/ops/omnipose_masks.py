"""From the fields of Omnipose to objects: pixels follow the flow inwards, and where they gather is an object.

Cutler et al., "Omnipose: a high-precision morphology-independent solution for bacterial cell segmentation", Nature
Methods 2022. The object of a pixel is known once the pixels of one object are nearer to each other than to any others;
they need not meet in a point. So steps shorten with time, and pixels stop at the ridge of their object instead of
running along it, which would tear long objects apart.

All functions take images and volumes: fields (2, H, W) or (3, Z, H, W), components in the order of the axes. What
becomes of a pixel depends on its region of the foreground alone, never on other places, so that tiles of an image agree
with the whole.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
from numba import njit
from numpy.typing import NDArray

from everymask.errors import InputError, unknown_name
from everymask.ops.dbscan import EPSILON, NEIGHBOURS, cluster_each
from everymask.ops.labels import connected_components

Clustering = Literal["always", "small", "never"]

SMALL_DIAMETER = 12.0
"""Diameter in pixels up to which ``small`` clusters by distance (official number)."""


def omnipose_masks(
    flow: NDArray[np.floating],
    distance: NDArray[np.floating],
    threshold: float = 0.0,
    *,
    clustering: Clustering = "always",
    steps: int = 24,
    minimum_area: int = 0,
) -> NDArray[np.int32]:
    """Objects of a flow and a distance field.

    The pixels of the `foreground` follow the `converging_field` by `suppressed_euler`. Objects are the clusters of
    their end points by `dbscan` in each region, points outside every cluster joining that of the nearest point inside
    one; a region without a cluster is an object, too. Or they are the connected sets of pixels that hold end points.

    The official program clusters by distance only where the diameter of the image is at most 12, or if asked.
    By distance more cells survive the errors of a network (measured on real bacteria of 13 to 27 pixels: accuracy at an
    IoU of 0.7 of 0.58 instead of 0.49 and, without `dbscan` at all, 0.48), hence the default.

    Args:
        flow: Vectors (axes, ...) of any length.
        distance: Distances (...) in pixels, negative outside objects.
        threshold: Distance above which a pixel surely belongs to an object.
        clustering: ``always`` by `dbscan`; ``never``, by connection of pixels, corners included; ``small``: by `dbscan`
            in regions whose diameter ``2 (axes + 1) mean(distance)`` is at most 12.
        steps: Euler steps; t of them lead at most 1 + 1/2 + ... + 1/t pixels.
        minimum_area: Smaller objects are dropped.

    Returns:
        Labels (...) of 1..N in the order in which the objects are met along the rows, 0 background.

    Raises:
        InputError: The shapes do not belong together, values are not finite, or an option is out of range.
    """
    flow, distance = _checked_fields(flow, distance)
    check_options(clustering, steps, minimum_area)
    regions, count = foreground(distance, threshold)
    if count == 0:
        return np.zeros(distance.shape, np.int32)
    ends = suppressed_euler(converging_field(flow, regions), regions, steps)
    return objects_of_ends(ends, regions, distance, clustering, minimum_area)


def objects_of_ends(
    ends: NDArray[np.float32],
    regions: NDArray[np.int32],
    distance: NDArray[np.floating],
    clustering: Clustering = "always",
    minimum_area: int = 0,
) -> NDArray[np.int32]:
    """The last step of `omnipose_masks`: objects of the pixels that ended together.

    Args:
        ends: From `suppressed_euler`, at least one.
        regions: From `foreground`.
        distance: Distances (...) in pixels.
        clustering: See `omnipose_masks`.
        minimum_area: Smaller objects are dropped.

    Returns:
        Labels (...) of 1..N in the order in which the objects are met along the rows, 0 background.
    """
    labels = np.zeros(distance.shape, np.int32)
    count = int(regions.max())
    places = np.flatnonzero(regions)
    region = regions.ravel()[places]
    by_distance = np.full(count + 1, clustering == "always")
    if clustering == "small":
        sums = np.bincount(region, distance.ravel()[places], count + 1)
        means = sums / np.maximum(np.bincount(region, minlength=count + 1), 1)
        by_distance = 2 * (distance.ndim + 1) * means <= SMALL_DIAMETER
    chosen = by_distance[region]
    objects = np.zeros(len(places), np.int64)
    if chosen.any():
        objects[chosen] = _clusters_of_regions(ends[chosen], region[chosen])
    if not chosen.all():
        objects[~chosen] = _connected_ends(ends[~chosen], region[~chosen], distance.shape) + objects.max() + 1
    labels.ravel()[places] = _numbered(objects, minimum_area)
    return labels


def check_options(clustering: str, steps: int, minimum_area: int) -> None:
    """Checks the options of `omnipose_masks`.

    Raises:
        InputError: One is out of range.
    """
    if clustering not in get_args(Clustering):
        raise unknown_name("clustering", clustering, get_args(Clustering))
    if steps < 0 or minimum_area < 0:
        raise InputError(f"steps, minimum_area: got {steps} and {minimum_area}, expected numbers of 0 or more")


def foreground(distance: NDArray[np.floating], threshold: float = 0.0) -> tuple[NDArray[np.int32], int]:
    """Regions of pixels above ``threshold - 1`` that hold a pixel above `threshold` (hysteresis).

    Args:
        distance: (...) as predicted.
        threshold: In pixels.

    Returns:
        Connected regions (pixels that share an edge) numbered 1..M, 0 background, and M.
    """
    low, _ = connected_components(distance > threshold - 1)
    sure = np.zeros(int(low.max(initial=0)) + 1, bool)
    sure[low[distance > threshold]] = True
    sure[0] = False
    numbers = np.cumsum(sure).astype(np.int32) * sure
    return numbers[low].astype(np.int32, copy=False), int(sure.sum())


def converging_field(flow: NDArray[np.floating], regions: NDArray[np.integer]) -> NDArray[np.float32]:
    """The directions of a flow, scaled by its divergence: full speed at edges, none where the flow meets itself.

    With u the unit vectors inside regions and 0 outside, the field is ``u clip((1 + div u) / 2, 0, 1)``, by central
    differences. At the edge of an object the divergence is about 1/2, between touching ones 1, along a straight flank
    0, at a ridge -1. The official program rescales the divergence to 0..1 by its extremes in the whole image, which
    makes every object depend on all others; the fixed range is that of touching straight objects.

    Args:
        flow: Vectors (axes, ...).
        regions: From `foreground`.

    Returns:
        Vectors (axes, ...) of length 0..1, 0 outside regions.
    """
    axes = regions.ndim
    volume = (1,) * (3 - axes) + regions.shape
    field = np.zeros((axes, *volume), np.float32)
    given = np.ascontiguousarray(flow, np.float32).reshape(field.shape)
    _converge(given, np.ascontiguousarray(regions, np.int32).reshape(volume), field)
    return field.reshape(axes, *regions.shape)


def suppressed_euler(field: NDArray[np.float32], regions: NDArray[np.integer], steps: int) -> NDArray[np.float32]:
    """Where the pixels of regions end up if they follow a field in steps that shorten.

    Step t = 0, 1, ... is ``v / (1 + t)``, where v is the mean of the field in the nearest pixel and of the v before
    (at first the field at the start). A pixel stays where a step would lead out of its region.

    Args:
        field: Vectors (axes, ...) in pixels.
        regions: Numbers (...), 0 outside; the pixels above 0 are moved.
        steps: How many.

    Returns:
        End points (P, axes) in pixels, of the pixels in raster order.
    """
    axes = regions.ndim
    volume = (1,) * (3 - axes) + regions.shape
    inside = np.ascontiguousarray(regions, np.int32).reshape(volume)
    return _follow(np.ascontiguousarray(field, np.float32).reshape(axes, *volume), inside, steps)


def _checked_fields(
    flow: NDArray[np.floating], distance: NDArray[np.floating]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    flow, distance = np.ascontiguousarray(flow, np.float32), np.ascontiguousarray(distance, np.float32)
    if distance.ndim not in (2, 3) or flow.shape != (distance.ndim, *distance.shape):
        raise InputError(
            f"flow, distance: got shapes {flow.shape} and {distance.shape}, expected (2, H, W) and (H, W), or "
            "(3, Z, H, W) and (Z, H, W)"
        )
    if not (np.isfinite(flow).all() and np.isfinite(distance).all()):
        raise InputError("flow, distance: hold values that are not finite; check the network")
    return flow, distance


def _clusters_of_regions(ends: NDArray[np.float32], region: NDArray[np.int32]) -> NDArray[np.int64]:
    """A number for each point: clusters within each region; see `omnipose_masks`."""
    order = np.argsort(region, kind="stable")
    points, owner = ends[order].astype(np.float64), region[order]
    starts = np.flatnonzero(np.diff(owner, prepend=-1))
    labels = np.full(len(points), -1, np.int64)
    highest = cluster_each(points, np.append(starts, len(points)), EPSILON, NEIGHBOURS, labels)
    lonely = np.flatnonzero(labels < 0)
    if len(lonely):
        from scipy.spatial import KDTree

        # Regions are far apart along one more axis, so that the nearest point is one of the same region if any is.
        apart = np.column_stack([points, owner * (4.0 * points.max() + 4.0)])
        clustered = np.flatnonzero(labels >= 0)
        fallback = highest + owner[lonely]
        if len(clustered):
            nearest = clustered[KDTree(apart[clustered]).query(apart[lonely])[1]]
            fallback = np.where(owner[nearest] == owner[lonely], labels[nearest], fallback)
        labels[lonely] = fallback
    result = np.empty_like(labels)
    result[order] = labels
    return result


def _connected_ends(ends: NDArray[np.float32], region: NDArray[np.int32], shape: tuple[int, ...]) -> NDArray[np.int64]:
    """A number for each point: the connected sets of pixels of a region that hold end points, corners included."""
    pixels = tuple(np.floor(ends + 0.5).astype(np.int64).T)
    occupied = np.zeros(shape, np.int32)
    occupied[pixels] = region  # a point never leaves its region
    return connected_components(occupied, len(shape))[0][pixels].astype(np.int64)


# -- kernels -----------------------------------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def _converge(
    flow: NDArray[np.float32], regions: NDArray[np.int32], field: NDArray[np.float32]
) -> None:  # pragma: no cover - compiled
    """`converging_field` of (axes, Z, H, W), written into `field`."""
    axes, depth, height, width = flow.shape
    units = np.zeros(flow.shape, np.float32)
    for z in range(depth):
        for y in range(height):
            for x in range(width):
                if regions[z, y, x] > 0:
                    squares = np.float32(0)
                    for axis in range(axes):
                        squares += flow[axis, z, y, x] ** 2
                    if squares > 0:
                        scale = np.float32(1) / math.sqrt(squares)
                        for axis in range(axes):
                            units[axis, z, y, x] = flow[axis, z, y, x] * scale
    for z in range(depth):
        for y in range(height):
            for x in range(width):
                if regions[z, y, x] > 0:
                    # Beyond the border of the image the flow goes on.
                    divergence = units[axes - 1, z, y, min(x + 1, width - 1)] - units[axes - 1, z, y, max(x - 1, 0)]
                    divergence += units[axes - 2, z, min(y + 1, height - 1), x] - units[axes - 2, z, max(y - 1, 0), x]
                    if axes == 3:
                        divergence += units[0, min(z + 1, depth - 1), y, x] - units[0, max(z - 1, 0), y, x]
                    speed = min(max(np.float32(0.5) + np.float32(0.25) * divergence, np.float32(0)), np.float32(1))
                    for axis in range(axes):
                        field[axis, z, y, x] = units[axis, z, y, x] * speed


@njit(cache=True, nogil=True)
def _follow(
    field: NDArray[np.float32], regions: NDArray[np.int32], steps: int
) -> NDArray[np.float32]:  # pragma: no cover - compiled
    """`suppressed_euler` of (axes, Z, H, W)."""
    axes, depth, height, width = field.shape
    half = np.float32(0.5)
    count = 0
    for region in regions.ravel():
        count += region > 0
    ends = np.empty((count, axes), np.float32)
    row = 0
    for z in range(depth):
        for y in range(height):
            for x in range(width):
                region = regions[z, y, x]
                if region <= 0:
                    continue
                at_z, at_y, at_x = np.float32(z), np.float32(y), np.float32(x)
                near_z, near_y, near_x = z, y, x
                by_z = field[0, z, y, x] if axes == 3 else np.float32(0)
                by_y, by_x = field[axes - 2, z, y, x], field[axes - 1, z, y, x]
                for t in range(steps):
                    if axes == 3:
                        by_z = half * (by_z + field[0, near_z, near_y, near_x])
                    by_y = half * (by_y + field[axes - 2, near_z, near_y, near_x])
                    by_x = half * (by_x + field[axes - 1, near_z, near_y, near_x])
                    share = np.float32(1) / np.float32(1 + t)
                    to_z = min(max(at_z + by_z * share, np.float32(0)), np.float32(depth - 1))
                    to_y = min(max(at_y + by_y * share, np.float32(0)), np.float32(height - 1))
                    to_x = min(max(at_x + by_x * share, np.float32(0)), np.float32(width - 1))
                    into_z, into_y, into_x = int(to_z + half), int(to_y + half), int(to_x + half)
                    if regions[into_z, into_y, into_x] != region:
                        break
                    at_z, at_y, at_x = to_z, to_y, to_x
                    near_z, near_y, near_x = into_z, into_y, into_x
                ends[row, axes - 1], ends[row, axes - 2] = at_x, at_y
                if axes == 3:
                    ends[row, 0] = at_z
                row += 1
    return ends


@njit(cache=True, nogil=True)
def _numbered(objects: NDArray[np.int64], minimum_area: int) -> NDArray[np.int32]:  # pragma: no cover - compiled
    """Any numbers >= 0 of pixels as 1..N in the order in which they occur, 0 for those of too few pixels."""
    areas = np.zeros(objects.max() + 1, np.int64)
    for number in objects:
        areas[number] += 1
    names = np.zeros(len(areas), np.int32)
    result = np.zeros(len(objects), np.int32)
    highest = 0
    for i in range(len(objects)):
        number = objects[i]
        if areas[number] < minimum_area:
            continue
        if names[number] == 0:
            highest += 1
            names[number] = highest
        result[i] = names[number]
    return result
