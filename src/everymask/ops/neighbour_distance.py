"""Distance maps of objects that touch: how deep a pixel lies in its object, and how near the next object is.

The targets of three families of methods that find objects by a watershed:

- cell and neighbour distance (Scherr et al. 2020, "Cell segmentation and tracking using CNN-based distance predictions
  and a graph-based matching strategy", PLoS ONE; programs KIT-GE and microbeSEG, MIT);
- the signed distance of each object, squashed by tanh;
- distances to the centre and to the boundary (torch-em and micro-sam, MIT; Archit et al. 2025).

The distance to the nearest *other* object is exact, and measured only as far as the target needs it, in the box of each
object grown by that reach: two sweeps and a lower envelope of parabolas, as in `everymask.ops.distance`.

Labels: 0 is background; negative labels are void, and count as background here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from everymask.errors import InputError
from everymask.ops.distance import distance_to_edge, signed_distance
from everymask.ops.gaps import close_gaps
from everymask.ops.labels import compact_labels, label_boundaries, label_boxes

_REACH = 3.0
"""Pixels beyond the depth of an object at which neighbours are still noticed (microbeSEG)."""


def neighbour_targets(labels: NDArray[np.integer]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cell distance and neighbour distance of microbeSEG.

    The cell distance is the distance to the edge of the object, divided by its maximum m in the object. The neighbour
    distance is ``1 - clip(d / min(m + 3, max d), 0, 1)`` in objects, d being the distance to the nearest pixel of
    another object; gaps between objects (see `everymask.ops.gaps.close_gaps`) count up to 1, object pixels that share
    an edge or a corner with another object 1. It is then rescaled to ``clip(1 / sqrt(.65 + .5 exp(-11 (N - .75))) -
    .19, 0, 1)`` and closed in windows of 3 x 3.

    Deviations from the official program, where that one is at the mercy of the frame: neighbours are noticed wherever
    they are, not only in a window around the object's centre, and gaps are closed up to the border of the image.

    Args:
        labels: Object ids (H, W); 0 and negative ids are background.

    Returns:
        Cell and neighbour distance (H, W) in [0, 1]; the first is 0 outside objects, the second where no neighbour is.

    Raises:
        InputError: These are no integer labels (H, W).
    """
    ids = _numbered(labels)
    if ids.ndim != 2:
        raise InputError(f"labels: got {ids.ndim} axes, expected an image (H, W); pass a volume plane by plane")
    edge = distance_to_edge(ids)
    depth = label_maxima(ids, edge)
    others = _others(ids, depth + _REACH, (1.0, 1.0))
    neighbour = _nearness(ids, others, depth + _REACH)
    _rescale(neighbour, close_gaps(ids, neighbour), others)
    return _share(ids, edge, depth), _grey_closing(neighbour)


def distance_to_others(
    labels: NDArray[np.integer], reach: float, spacing: Sequence[float] | None = None
) -> NDArray[np.float32]:
    """Distance of every object pixel to the nearest pixel of another object, background in between or not.

    Args:
        labels: Object ids (H, W) or (Z, H, W); 0 and negative ids are background.
        reach: Where the nearest other object is further than this, the result is this; above 0.
        spacing: Pixel size along each axis, in the unit of the result; 1 where not given.

    Returns:
        Distances from pixel centre to pixel centre, same shape, at most `reach`; 0 on background.

    Raises:
        InputError: These are no integer labels, or `reach` or `spacing` are not positive.
    """
    ids = _numbered(labels)
    steps = (1.0,) * ids.ndim if spacing is None else tuple(float(each) for each in spacing)
    if len(steps) != ids.ndim or not min(steps) > 0 or not 0 < reach < math.inf:
        raise InputError(
            f"reach, spacing: got {reach} and {spacing}, expected positive numbers, a spacing for each of the "
            f"{ids.ndim} axes"
        )
    return _others(ids, np.full(int(ids.max(initial=0)) + 1, reach), steps)


def signed_targets(labels: NDArray[np.integer], sigma: float) -> NDArray[np.float32]:
    """``tanh(d / sigma)`` of the signed distance d to the edge of each object.

    In an object d is the distance to the nearest pixel outside it, so that objects that touch are apart; outside it is
    that to the nearest object, negative.

    Args:
        labels: Object ids (H, W) or (Z, H, W); 0 and negative ids are background.
        sigma: Distance in pixels at which the target is .76; above 0.

    Raises:
        InputError: These are no integer labels, or `sigma` is not positive.
    """
    if not sigma > 0:
        raise InputError(f"sigma: got {sigma}, expected a number of pixels above 0")
    ids = _numbered(labels)
    inside = distance_to_edge(ids)
    distance = np.where(ids > 0, inside, signed_distance(ids > 0))
    return np.tanh(distance / np.float32(sigma))


def centre_and_boundary(labels: NDArray[np.integer]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Distances to the centre and to the boundary of each object, as torch-em makes them.

    The centre is the pixel nearest the centroid, or the deepest pixel if that one lies outside the object. The distance
    to it is divided by its maximum in the object. The distance to the object's outermost pixels (those that share an
    edge with other values) is divided likewise, and turned round: 1 at the boundary, 0 at the deepest pixel.

    Args:
        labels: Object ids (H, W) or (Z, H, W); 0 and negative ids are background.

    Returns:
        Both in [0, 1], same shape, 1 outside objects.

    Raises:
        InputError: These are no integer labels.
    """
    ids = _numbered(labels)
    # The nearest pixel that does not belong to an object's interior is always one of its own boundary.
    depth = distance_to_edge(np.where(label_boundaries(ids), 0, ids))
    volume = _volume(ids)
    centre, boundary = _centre_and_boundary(volume, _volume(depth), label_maxima(ids, depth))
    return centre.reshape(ids.shape), boundary.reshape(ids.shape)


def border_classes(labels: NDArray[np.integer], width: float) -> NDArray[np.int64]:
    """Background, interior and border of objects: the classes of the border-class U-Net.

    Args:
        labels: Object ids (H, W) or (Z, H, W); 0 and negative ids are background.
        width: Object pixels at most so far from the nearest pixel outside their object are border; 1 takes those that
            share an edge with it. In an object without other pixels the deepest ones are interior nonetheless, so that
            none is without.

    Returns:
        0 background, 1 interior, 2 border; int64, same shape.

    Raises:
        InputError: These are no integer labels, or the width is below 1.
    """
    if not width >= 1:
        raise InputError(f"border width: got {width}, expected 1 pixel or more")
    ids = _numbered(labels)
    edge = distance_to_edge(ids)
    thinnest = np.minimum(np.float32(width), label_maxima(ids, edge) * (1 - 1e-6)).astype(np.float32)
    return np.where(ids > 0, 1 + (edge <= thinnest[ids]), 0).astype(np.int64)


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


def _numbered(labels: NDArray[np.integer]) -> NDArray[np.int32]:
    """Labels as contiguous int32 0..N, void set to background."""
    labels = np.asarray(labels)
    if labels.ndim not in (2, 3) or labels.dtype.kind not in "biu":
        raise InputError(
            f"labels: got {labels.dtype} of shape {labels.shape}, expected integer object ids (H, W) or (Z, H, W)"
        )
    ids, _ = compact_labels(labels)
    return np.ascontiguousarray(np.maximum(ids, 0))


def _volume(array: NDArray[Any]) -> NDArray[Any]:
    """The array as (Z, H, W)."""
    return array if array.ndim == 3 else array[None]


def _others(ids: NDArray[np.int32], reach: NDArray[np.float64], spacing: Sequence[float]) -> NDArray[np.float32]:
    """Distance to the nearest other object, at most the reach (N + 1,) of the pixel's own."""
    count = int(ids.max(initial=0))
    boxes = label_boxes(ids, count)
    if ids.ndim == 2:
        flat = np.zeros(count, np.int64)
        boxes = np.column_stack([boxes[:, 0], boxes[:, 1], flat, boxes[:, 2], boxes[:, 3], flat + 1])
    steps = np.array(spacing if ids.ndim == 3 else (1.0, *spacing))
    return _distance_to_others(_volume(ids), boxes, reach, steps).reshape(ids.shape)


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
    """The distance to the edge divided by its maximum in the object."""
    result = np.zeros(ids.shape, np.float32)
    for y in range(ids.shape[0]):
        for x in range(ids.shape[1]):
            if ids[y, x] > 0:
                result[y, x] = edge[y, x] / depth[ids[y, x]]
    return result


@njit(cache=True, nogil=True)
def _nearness(
    ids: NDArray[np.int32], others: NDArray[np.float32], reach: NDArray[np.float64]
) -> NDArray[np.float32]:  # pragma: no cover - compiled
    """``1 - others / min(reach, max others)``; the distances are cut at the reach already."""
    largest = np.zeros(len(reach), np.float64)
    for y in range(ids.shape[0]):
        for x in range(ids.shape[1]):
            if ids[y, x] > 0 and others[y, x] > largest[ids[y, x]]:
                largest[ids[y, x]] = others[y, x]
    result = np.zeros(ids.shape, np.float32)
    for y in range(ids.shape[0]):
        for x in range(ids.shape[1]):
            if ids[y, x] > 0:
                result[y, x] = 1.0 - others[y, x] / largest[ids[y, x]]
    return result


@njit(cache=True, nogil=True)
def _rescale(
    neighbour: NDArray[np.float32], gaps: NDArray[np.float32], others: NDArray[np.float32]
) -> None:  # pragma: no cover - compiled
    """In place: the maximum with gaps and touching borders, and the rescaling of `neighbour_targets`."""
    for y in range(neighbour.shape[0]):
        for x in range(neighbour.shape[1]):
            value = max(neighbour[y, x], gaps[y, x])
            if 0 < others[y, x] < 1.5:  # an edge or a corner in common
                value = np.float32(1)
            if value > 0:
                scaled = 1 / math.sqrt(0.65 + 0.5 * math.exp(-11 * (value - 0.75))) - 0.19
                value = np.float32(min(max(scaled, 0.0), 1.0))
            neighbour[y, x] = value


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
def _distance_to_others(
    ids: NDArray[np.int32], boxes: NDArray[np.int64], reach: NDArray[np.float64], spacing: NDArray[np.float64]
) -> NDArray[np.float32]:  # pragma: no cover - compiled
    """Object by object, in boxes (N, 6) x0 y0 z0 x1 y1 z1 grown by the reach; 0 on background."""
    depth, height, width = ids.shape
    result = np.zeros(ids.shape, np.float32)
    longest = max(depth, height, width) + 1
    line, vertex = np.empty(longest, np.float64), np.empty(longest, np.int64)
    begin = np.empty(longest + 1, np.float64)
    for label in range(1, len(boxes) + 1):
        x0, y0, z0, x1, y1, z1 = boxes[label - 1]
        if x1 == x0:
            continue
        far = reach[label]
        grow_z, grow_y, grow_x = math.ceil(far / spacing[0]), math.ceil(far / spacing[1]), math.ceil(far / spacing[2])
        front, back = max(z0 - grow_z, 0), min(z1 + grow_z, depth)
        top, bottom = max(y0 - grow_y, 0), min(y1 + grow_y, height)
        left, right = max(x0 - grow_x, 0), min(x1 + grow_x, width)
        squared = np.full((back - front, bottom - top, x1 - x0), np.inf)
        found = False
        for z in range(front, back):
            for y in range(top, bottom):
                row = ids[z, y]
                away = np.inf
                for x in range(left, x1):
                    away = 0.0 if row[x] > 0 and row[x] != label else away + spacing[2]
                    found = found or away == 0
                    if x >= x0:
                        squared[z - front, y - top, x - x0] = away * away
                away = np.inf
                for x in range(right - 1, x0 - 1, -1):
                    away = 0.0 if row[x] > 0 and row[x] != label else away + spacing[2]
                    if x < x1 and away * away < squared[z - front, y - top, x - x0]:
                        squared[z - front, y - top, x - x0] = away * away
                    found = found or away == 0
        if found:
            for z in range(back - front):
                for x in range(x1 - x0):
                    _envelope(squared[z, :, x], spacing[1], y0 - top, y1 - top, line, vertex, begin)
            if back - front > 1:
                for y in range(y0 - top, y1 - top):
                    for x in range(x1 - x0):
                        _envelope(squared[:, y, x], spacing[0], z0 - front, z1 - front, line, vertex, begin)
        for z in range(z0, z1):
            for y in range(y0, y1):
                for x in range(x0, x1):
                    if ids[z, y, x] == label:
                        result[z, y, x] = min(math.sqrt(squared[z - front, y - top, x - x0]), far)
    return result


@njit(cache=True, nogil=True)
def _envelope(
    values: NDArray[np.float64],
    spacing: float,
    first: int,
    last: int,
    line: NDArray[np.float64],
    vertex: NDArray[np.int64],
    begin: NDArray[np.float64],
) -> None:  # pragma: no cover - compiled
    """In place, at first <= p < last: the minimum over q of ``values[q] + (spacing (p - q))**2``."""
    area = spacing * spacing
    count = 0
    for q in range(len(values)):
        if values[q] == np.inf:
            continue
        line[q] = values[q] / area
        crossing = -np.inf
        while count > 0:
            v = vertex[count - 1]
            crossing = ((line[q] + q * q) - (line[v] + v * v)) / (2.0 * (q - v))
            if crossing > begin[count - 1]:
                break
            count -= 1
        vertex[count] = q
        begin[count] = crossing if count > 0 else -np.inf
        count += 1
    if count == 0:
        return
    begin[count] = np.inf
    k = 0
    for p in range(first, last):
        while begin[k + 1] < p:
            k += 1
        values[p] = area * (line[vertex[k]] + (p - vertex[k]) ** 2)


@njit(cache=True, nogil=True)
def _centre_and_boundary(
    ids: NDArray[np.int32], depth: NDArray[np.float32], deepest: NDArray[np.float64]
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
                    away = (z - deep[label, 0]) ** 2 + (y - deep[label, 1]) ** 2 + (x - deep[label, 2]) ** 2
                    furthest[label] = max(furthest[label], away)
    for z in range(planes):
        for y in range(height):
            for x in range(width):
                label = ids[z, y, x]
                if label > 0:
                    away = (z - deep[label, 0]) ** 2 + (y - deep[label, 1]) ** 2 + (x - deep[label, 2]) ** 2
                    centre[z, y, x] = math.sqrt(away / furthest[label]) if furthest[label] > 0 else 0.0
                    boundary[z, y, x] = 1 - depth[z, y, x] / deepest[label] if deepest[label] > 0 else 0.0
    return centre, boundary
