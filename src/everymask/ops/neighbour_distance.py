"""Distance maps of objects that touch: how deep a pixel lies in its object, and how near the next object is.

The targets of three families of methods that find objects by a watershed:

- cell and neighbour distance (Scherr et al. 2020, "Cell segmentation and tracking using CNN-based distance predictions
  and a graph-based matching strategy", PLoS ONE; programs KIT-GE and microbeSEG, MIT);
- the signed distance of each object, squashed by tanh;
- distances to the centre and to the boundary (torch-em and micro-sam, MIT; Archit et al. 2025).

Labels: 0 is background; negative labels are void, and count as background here.

In volumes whose planes lie further apart than pixels, `spacing` makes distances physical. Voxels that touch another
object across planes are then far from it, and yet nothing lies in between to tell the two apart: there the planes count
as a pixel apart (`everymask.ops.nearest_other.distance_across`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from everymask.errors import InputError
from everymask.ops.distance import distance_to_edge, signed_distance
from everymask.ops.gaps import close_gaps
from everymask.ops.labels import label_boundaries
from everymask.ops.nearest_other import distance_across, distances_within, numbered, steps_of, volume

_REACH = 3.0
"""Pixels beyond the depth of an object at which neighbours are still noticed (microbeSEG)."""


def neighbour_targets(
    labels: NDArray[np.integer], spacing: Sequence[float] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cell distance and neighbour distance of microbeSEG.

    The cell distance is the distance to the edge of the object, divided by its maximum m in the object. The neighbour
    distance is ``1 - clip(d / min(m + 3, max d), 0, 1)`` in objects, d being the distance to the nearest pixel of
    another object; gaps between objects (see `everymask.ops.gaps.close_gaps`) count up to 1, object pixels that share
    an edge or a corner with another object 1. It is then rescaled to ``clip(1 / sqrt(.65 + .5 exp(-11 (N - .75))) -
    .19, 0, 1)`` and closed in windows of 3 x 3.

    Deviations from the official program, where that one is at the mercy of the frame: neighbours are noticed wherever
    they are, not only in a window around the object's centre, and gaps are closed up to the border of the image.

    The official program is for images. Here the distances of volumes are those in space; gaps are looked for, and the
    closing in windows is done, in each plane for itself, since gaps are a few pixels wide and planes often lie as far
    apart. Between planes the nearness of the objects' own voxels is all that marks a gap.

    Args:
        labels: Object ids (H, W) or (Z, H, W); 0 and negative ids are background.
        spacing: Pixel size along each axis, in pixels of a plane; 1 along each axis where not given.

    Returns:
        Cell and neighbour distance, same shape, in [0, 1]; the first is 0 outside objects, the second where no
        neighbour is.

    Raises:
        InputError: These are no integer labels, or `spacing` is not positive.
    """
    ids = numbered(labels)
    edge = distance_to_edge(ids, spacing)
    depth = label_maxima(ids, edge)
    others = distances_within(ids, depth + _REACH, steps_of(ids, spacing))
    neighbour = _nearness(ids.ravel(), others.ravel(), depth + _REACH).reshape(ids.shape)
    gaps = np.empty_like(neighbour)
    for plane in _planes(ids):
        gaps[plane] = close_gaps(ids[plane], neighbour[plane])
    touching = (others > 0) & (others < 1.5)  # an edge or a corner in common
    if ids.ndim == 3:
        touching |= np.isfinite(distance_across(ids))
    _rescale(neighbour.ravel(), gaps.ravel(), touching.ravel())
    for plane in _planes(ids):
        neighbour[plane] = _grey_closing(neighbour[plane])
    return _share(ids.ravel(), edge.ravel(), depth).reshape(ids.shape), neighbour


def signed_targets(
    labels: NDArray[np.integer], sigma: float, spacing: Sequence[float] | None = None
) -> NDArray[np.float32]:
    """``tanh(d / sigma)`` of the signed distance d to the edge of each object.

    In an object d is the distance to the nearest pixel outside it, so that objects that touch are apart; outside it is
    that to the nearest object, negative. Where objects touch across planes, these count as at most a pixel apart, lest
    objects of planes that are far from each other run together.

    Args:
        labels: Object ids (H, W) or (Z, H, W); 0 and negative ids are background.
        sigma: Distance in pixels at which the target is .76; above 0.
        spacing: Pixel size along each axis, in pixels of a plane; 1 along each axis where not given.

    Raises:
        InputError: These are no integer labels, or `sigma` or `spacing` is not positive.
    """
    if not sigma > 0:
        raise InputError(f"sigma: got {sigma}, expected a number of pixels above 0")
    ids = numbered(labels)
    inside = distance_to_edge(ids, spacing)
    if ids.ndim == 3:
        inside = np.minimum(inside, distance_across(ids))
    distance = np.where(ids > 0, inside, signed_distance(ids > 0, spacing))
    return np.tanh(distance / np.float32(sigma))


def centre_and_boundary(
    labels: NDArray[np.integer], spacing: Sequence[float] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Distances to the centre and to the boundary of each object, as torch-em makes them.

    The centre is the pixel nearest the centroid, or the deepest pixel if that one lies outside the object. The distance
    to it is divided by its maximum in the object. The distance to the object's outermost pixels (those that share an
    edge with other values) is divided likewise, and turned round: 1 at the boundary, 0 at the deepest pixel.

    Args:
        labels: Object ids (H, W) or (Z, H, W); 0 and negative ids are background.
        spacing: Pixel size along each axis; 1 along each axis where not given.

    Returns:
        Both in [0, 1], same shape, 1 outside objects.

    Raises:
        InputError: These are no integer labels, or `spacing` is not positive.
    """
    ids = numbered(labels)
    # The nearest pixel that does not belong to an object's interior is always one of its own boundary.
    depth = distance_to_edge(np.where(label_boundaries(ids), 0, ids), spacing)
    steps = np.array((1.0, *steps_of(ids, spacing))[-3:])
    centre, boundary = _centre_and_boundary(volume(ids), volume(depth), label_maxima(ids, depth), steps)
    return centre.reshape(ids.shape), boundary.reshape(ids.shape)


def border_classes(
    labels: NDArray[np.integer], width: float, spacing: Sequence[float] | None = None
) -> NDArray[np.int64]:
    """Background, interior and border of objects: the classes of the border-class U-Net.

    Args:
        labels: Object ids (H, W) or (Z, H, W); 0 and negative ids are background.
        width: Object pixels at most so far from the nearest pixel outside their object are border; 1 takes those that
            share an edge with it. So are voxels that another object touches in the next plane (by a corner, too),
            however far that is. In an object without other pixels the deepest ones are interior nonetheless, so that
            none is without.
        spacing: Pixel size along each axis, in pixels of a plane; 1 along each axis where not given.

    Returns:
        0 background, 1 interior, 2 border; int64, same shape.

    Raises:
        InputError: These are no integer labels, the width is below 1, or `spacing` is not positive.
    """
    if not width >= 1:
        raise InputError(f"border width: got {width}, expected 1 pixel or more")
    ids = numbered(labels)
    edge = distance_to_edge(ids, spacing)
    border = edge <= np.float32(width)
    if ids.ndim == 3:
        border |= np.isfinite(distance_across(ids))
    deepest = np.where(label_maxima(ids, np.where(border, np.float32(0), edge)) > 0, math.inf, label_maxima(ids, edge))
    border &= edge <= (deepest * (1 - 1e-6)).astype(np.float32)[ids]
    return np.where(ids > 0, 1 + border, 0).astype(np.int64)


def label_maxima(labels: NDArray[np.int32], values: NDArray[np.float32]) -> NDArray[np.float64]:
    """The largest value in each label.

    Args:
        labels: Ids 0..N of any shape.
        values: Of the same shape, 0 or more.

    Returns:
        (N + 1,) maxima, 0 for background and for labels that do not occur.
    """
    return _maxima(labels.ravel(), values.ravel(), int(labels.max(initial=0)))


# -- helpers -----------------------------------------------------------------------------------------------------------


def _planes(ids: NDArray[np.int32]) -> Iterable[Any]:
    """Indices of the planes of a volume, or of the whole image."""
    return range(len(ids)) if ids.ndim == 3 else (...,)


@njit(cache=True, nogil=True)
def _maxima(
    labels: NDArray[np.int32], values: NDArray[np.float32], count: int
) -> NDArray[np.float64]:  # pragma: no cover - compiled
    largest = np.zeros(count + 1, np.float64)
    for i in range(len(labels)):
        if labels[i] > 0 and values[i] > largest[labels[i]]:
            largest[labels[i]] = values[i]
    return largest


@njit(cache=True, nogil=True)
def _share(
    ids: NDArray[np.int32], edge: NDArray[np.float32], depth: NDArray[np.float64]
) -> NDArray[np.float32]:  # pragma: no cover - compiled
    """The distance to the edge divided by its maximum in the object; flat arrays."""
    result = np.zeros(ids.shape, np.float32)
    for i in range(len(ids)):
        if ids[i] > 0:
            result[i] = edge[i] / depth[ids[i]]
    return result


@njit(cache=True, nogil=True)
def _nearness(
    ids: NDArray[np.int32], others: NDArray[np.float32], reach: NDArray[np.float64]
) -> NDArray[np.float32]:  # pragma: no cover - compiled
    """``1 - others / min(reach, max others)`` of flat arrays; the distances are cut at the reach already."""
    largest = np.zeros(len(reach), np.float64)
    for i in range(len(ids)):
        if ids[i] > 0 and others[i] > largest[ids[i]]:
            largest[ids[i]] = others[i]
    result = np.zeros(ids.shape, np.float32)
    for i in range(len(ids)):
        if ids[i] > 0:
            result[i] = 1.0 - others[i] / largest[ids[i]]
    return result


@njit(cache=True, nogil=True)
def _rescale(
    neighbour: NDArray[np.float32], gaps: NDArray[np.float32], touching: NDArray[np.bool_]
) -> None:  # pragma: no cover - compiled
    """In place, flat arrays: the maximum with gaps and touching borders, and the rescaling of `neighbour_targets`."""
    for i in range(len(neighbour)):
        value = max(neighbour[i], gaps[i])
        if touching[i]:
            value = np.float32(1)
        if value > 0:
            scaled = 1 / math.sqrt(0.65 + 0.5 * math.exp(-11 * (value - 0.75))) - 0.19
            value = np.float32(min(max(scaled, 0.0), 1.0))
        neighbour[i] = value


@njit(cache=True, nogil=True)
def _grey_closing(image: NDArray[np.float32]) -> NDArray[np.float32]:  # pragma: no cover - compiled
    """Maximum and then minimum over 3 x 3 windows, cut off at the border of the image."""
    height, width = image.shape
    for sign in (1, -1):
        rows = np.empty_like(image)
        for y in range(height):
            for x in range(width):
                before, after = image[y, max(x - 1, 0)], image[y, min(x + 1, width - 1)]
                if sign > 0:
                    rows[y, x] = max(before, image[y, x], after)
                else:
                    rows[y, x] = min(before, image[y, x], after)
        image = np.empty_like(image)
        for y in range(height):
            above, below = max(y - 1, 0), min(y + 1, height - 1)
            for x in range(width):
                if sign > 0:
                    image[y, x] = max(rows[above, x], rows[y, x], rows[below, x])
                else:
                    image[y, x] = min(rows[above, x], rows[y, x], rows[below, x])
    return image


@njit(cache=True, nogil=True)
def _centre_and_boundary(
    ids: NDArray[np.int32], depth: NDArray[np.float32], deepest: NDArray[np.float64], spacing: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:  # pragma: no cover - compiled
    """`centre_and_boundary` of a volume, from the distance to the outermost pixels and its maxima (N + 1,)."""
    planes, height, width = ids.shape
    sums = np.zeros((len(deepest), 4), np.float64)
    deep = np.full((len(deepest), 3), -1, np.int64)
    for z in range(planes):
        for y in range(height):
            for x in range(width):
                label = ids[z, y, x]
                if label > 0:
                    sums[label, 0] += z
                    sums[label, 1] += y
                    sums[label, 2] += x
                    sums[label, 3] += 1
                    if deep[label, 0] < 0 and depth[z, y, x] == deepest[label]:
                        deep[label, 0], deep[label, 1], deep[label, 2] = z, y, x
    for label in range(1, len(deepest)):
        if sums[label, 3] > 0:
            z, y = int(np.rint(sums[label, 0] / sums[label, 3])), int(np.rint(sums[label, 1] / sums[label, 3]))
            x = int(np.rint(sums[label, 2] / sums[label, 3]))
            if ids[z, y, x] == label:
                deep[label, 0], deep[label, 1], deep[label, 2] = z, y, x
    centre = np.ones(ids.shape, np.float32)
    boundary = np.ones(ids.shape, np.float32)
    furthest = np.zeros(len(deepest), np.float64)
    for z in range(planes):
        for y in range(height):
            for x in range(width):
                label = ids[z, y, x]
                if label > 0:
                    away = ((z - deep[label, 0]) * spacing[0]) ** 2
                    away += ((y - deep[label, 1]) * spacing[1]) ** 2 + ((x - deep[label, 2]) * spacing[2]) ** 2
                    furthest[label] = max(furthest[label], away)
    for z in range(planes):
        for y in range(height):
            for x in range(width):
                label = ids[z, y, x]
                if label > 0:
                    away = ((z - deep[label, 0]) * spacing[0]) ** 2
                    away += ((y - deep[label, 1]) * spacing[1]) ** 2 + ((x - deep[label, 2]) * spacing[2]) ** 2
                    centre[z, y, x] = math.sqrt(away / furthest[label]) if furthest[label] > 0 else 0.0
                    boundary[z, y, x] = 1 - depth[z, y, x] / deepest[label] if deepest[label] > 0 else 0.0
    return centre, boundary
