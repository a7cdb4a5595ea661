"""Exact Euclidean distance transforms of label images, and the training targets made from them.

All objects of a label image are measured in one go: the transform of every pixel is its distance to the nearest pixel
of any *other* label, found by a sweep along the first axis and then a lower envelope of parabolas along each further
axis (Felzenszwalb and Huttenlocher, "Distance Transforms of Sampled Functions", 2012), restarted wherever the label
changes. The cost is linear in the number of pixels, whatever the number and the size of the objects.

Labels: 0 is background; negative labels are void, and count as background here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numba import njit
from numpy.typing import NDArray

from everymask.errors import InputError

# The official program divides by (maximum + this), so that a distance of 0 never divides by 0; kept to equal it.
_OFFICIAL_EPSILON = 1e-10


def distance_to_edge(labels: NDArray[np.integer], spacing: Sequence[float] | None = None) -> NDArray[np.float32]:
    """Distance of every object pixel to the nearest pixel outside its object.

    The border of the image is no edge: an object cut by the border is measured only against what is visible. An image
    that is one single object is measured as if background surrounded it, since nothing else would define a distance.

    Args:
        labels: object ids, `(H, W)` or `(Z, H, W)`; 0 and negative ids are background.
        spacing: pixel size along each axis, in the unit of the result; 1 along each axis where not given.

    Returns:
        Distances from pixel centre to pixel centre, same shape, in pixels or in the unit of `spacing`: at least the
        smallest spacing inside objects, 0 outside.

    Raises:
        InputError: for other than 2 or 3 axes, labels that are no integers, or a spacing that is not positive.
    """
    return np.sqrt(_squared_distances(_checked_labels(labels), spacing)).astype(np.float32)


def object_probability(labels: NDArray[np.integer], spacing: Sequence[float] | None = None) -> NDArray[np.float32]:
    """Object probability of StarDist: the distance to the edge divided by its maximum in the same object.

    Weigert et al. 2020 (StarDist 3D), section 2.1; equal to `stardist.utils.edt_prob` with its conventions for the
    border of the image (see `distance_to_edge`).

    Args:
        labels: object ids, `(H, W)` or `(Z, H, W)`; 0 and negative ids are background.
        spacing: pixel size along each axis; 1 along each axis where not given.

    Returns:
        Probabilities in [0, 1], same shape, 0 outside objects.

    Raises:
        InputError: as `distance_to_edge`.
    """
    labels = _checked_labels(labels)
    squared = _squared_distances(labels, spacing)
    return _divide_by_object_maximum(_compact_ids(labels).ravel(), squared.ravel()).reshape(labels.shape)


def signed_distance(mask: NDArray[np.bool_], spacing: Sequence[float] | None = None) -> NDArray[np.float32]:
    """Distance to the edge of a mask, positive inside and negative outside.

    Inside it is the distance to the nearest pixel outside, and the other way round, so that neighbours across the edge
    have +1 and -1. As a target it is commonly squashed, `tanh(signed_distance / sigma)`.

    Args:
        mask: True inside, `(H, W)` or `(Z, H, W)`.
        spacing: pixel size along each axis; 1 along each axis where not given.

    Returns:
        Signed distances, same shape. A mask without an edge (all True, all False) has the length of the diagonal of the
        image everywhere, with its sign.

    Raises:
        InputError: as `distance_to_edge`.
    """
    inside = _checked_labels(mask) > 0
    sides = np.where(inside, np.int32(1), np.int32(2))
    if inside.size and inside.all() == inside.any():
        steps = np.ones(inside.ndim) if spacing is None else np.asarray(spacing, dtype=np.float64)
        distance = np.full(inside.shape, np.linalg.norm(steps * inside.shape))
    else:
        distance = np.sqrt(_squared_distances(sides, spacing))
    return np.where(inside, distance, -distance).astype(np.float32)


def unet_weight_map(labels: NDArray[np.integer], w0: float = 10.0, sigma: float = 5.0) -> NDArray[np.float32]:
    """Border weights of the U-Net: high on background between two close objects.

    Ronneberger et al. 2015, eq. 2, without the class weight: `w0 * exp(-(d1 + d2)^2 / (2 sigma^2))` on background
    pixels, d1 and d2 being the distances to the nearest pixels of the nearest and of the second nearest object. Sums of
    distances above `6 sigma` count as infinite; the weight there is below `w0 * 2e-8`.

    Args:
        labels: object ids `(H, W)`; 0 and negative ids are background.
        w0: weight of the border in the limit of touching objects.
        sigma: width of the border, in pixels, above 0.

    Returns:
        Weights `(H, W)` in [0, w0]; 0 inside objects, and everywhere with fewer than two objects. Add 1 or a class
        weight before use.

    Raises:
        InputError: for other than 2 axes, labels that are no integers, or a sigma that is not positive.
    """
    labels = _checked_labels(labels)
    if labels.ndim != 2 or not sigma > 0:
        raise InputError(f"labels, sigma: got {labels.ndim} axes and {sigma}, expected (H, W) and a sigma above 0")
    if labels.size == 0:
        return np.zeros(labels.shape, dtype=np.float32)
    sums = _sum_of_two_nearest(_compact_ids(labels), math.ceil(6 * sigma))
    return (w0 * np.exp(-(sums**2) / (2 * sigma**2))).astype(np.float32)


def _checked_labels(image: NDArray[np.integer] | NDArray[np.bool_]) -> NDArray[np.int32]:
    """Labels as contiguous int32 with void set to background."""
    labels: NDArray[np.integer | np.bool_] = np.asarray(image)
    if labels.ndim not in (2, 3):
        raise InputError(f"labels: got {labels.ndim} axes, expected (H, W) or (Z, H, W); pass one image at a time")
    if not (np.issubdtype(labels.dtype, np.integer) or labels.dtype == np.bool_):
        raise InputError(f"labels: got type {labels.dtype}, expected integer object ids; convert with .astype('int32')")
    return np.maximum(labels, 0).astype(np.int32, order="C", copy=False)


def _compact_ids(labels: NDArray[np.int32]) -> NDArray[np.int32]:
    """Ids no larger than the image has pixels, so that a table of them stays small; 0 stays 0."""
    if labels.size == 0 or int(labels.max()) <= labels.size:
        return labels
    values, ids = np.unique(labels, return_inverse=True)
    return (ids.reshape(labels.shape) + (values[0] > 0)).astype(np.int32)


def _squared_distances(labels: NDArray[np.int32], spacing: Sequence[float] | None) -> NDArray[np.float64]:
    """Squared distance to the nearest other label, 0 on background."""
    steps = (1.0,) * labels.ndim if spacing is None else tuple(float(step) for step in spacing)
    if len(steps) != labels.ndim or not all(step > 0 for step in steps):
        raise InputError(f"spacing: got {spacing}, expected {labels.ndim} positive numbers, one for each axis")
    if labels.size == 0:
        return np.zeros(labels.shape)
    if labels.flat[0] > 0 and labels.min() == labels.max():
        inside = (slice(1, -1),) * labels.ndim
        return np.ascontiguousarray(_squared_distances(np.pad(labels, 1), spacing)[inside])
    squared = _sweep_first_axis(labels.reshape(labels.shape[0], -1), steps[0]).reshape(labels.shape)
    for axis in range(1, labels.ndim):
        turned_labels = np.ascontiguousarray(np.moveaxis(labels, axis, -1))
        turned = np.ascontiguousarray(np.moveaxis(squared, axis, -1))
        length = labels.shape[axis]
        _lower_envelope(turned_labels.reshape(-1, length), turned.reshape(-1, length), steps[axis])
        squared = np.moveaxis(turned, -1, axis)
    return np.ascontiguousarray(squared)


@njit(cache=True, nogil=True)
def _sweep_first_axis(labels: NDArray[np.int32], spacing: float) -> NDArray[np.float64]:  # pragma: no cover - compiled
    """Squared distance along the first axis of (n, m) to the nearest other label; inf where there is none."""
    n, m = labels.shape
    steps = np.empty((n, m), dtype=np.float64)
    for j in range(m):
        steps[0, j] = np.inf if labels[0, j] > 0 else 0.0
    for i in range(1, n):
        for j in range(m):
            same = labels[i, j] == labels[i - 1, j]
            further = steps[i - 1, j] + 1.0 if same else 1.0
            steps[i, j] = further if labels[i, j] > 0 else 0.0
    for i in range(n - 2, -1, -1):
        for j in range(m):
            same = labels[i, j] == labels[i + 1, j]
            further = steps[i + 1, j] + 1.0 if same else 1.0
            if labels[i, j] > 0 and further < steps[i, j]:
                steps[i, j] = further
    for i in range(n):
        for j in range(m):
            steps[i, j] = (steps[i, j] * spacing) ** 2
    return steps


@njit(cache=True, nogil=True)
def _lower_envelope(
    labels: NDArray[np.int32], squared: NDArray[np.float64], spacing: float
) -> None:  # pragma: no cover - compiled
    """Minimum over each run of equal labels of `squared[q] + (spacing * (p - q))**2`, in place, rows of (n, length).

    The pixels just before and after a run belong to another label: they enter as parabolas of height 0. No pixel
    beyond them can be nearer, so a run needs nothing else.
    """
    n, length = labels.shape
    area = spacing * spacing
    vertex = np.empty(length + 2, dtype=np.int64)  # where the parabolas of the envelope stand
    height = np.empty(length + 2, dtype=np.float64)
    begin = np.empty(length + 3, dtype=np.float64)  # from where on each is the lowest
    for row in range(n):
        start = 0
        while start < length:
            label = labels[row, start]
            stop = start + 1
            while stop < length and labels[row, stop] == label:
                stop += 1
            if label > 0:
                count = 0
                for q in range(max(start - 1, 0), min(stop + 1, length)):
                    value = squared[row, q] / area if start <= q < stop else 0.0
                    if value == np.inf:
                        continue
                    crossing = -np.inf
                    while count > 0:
                        v = vertex[count - 1]
                        crossing = ((value + q * q) - (height[count - 1] + v * v)) / (2.0 * (q - v))
                        if crossing > begin[count - 1]:
                            break
                        count -= 1
                    vertex[count] = q
                    height[count] = value
                    begin[count] = crossing if count > 0 else -np.inf
                    count += 1
                if count > 0:
                    begin[count] = np.inf
                    k = 0
                    for p in range(start, stop):
                        while begin[k + 1] < p:
                            k += 1
                        offset = p - vertex[k]
                        squared[row, p] = (height[k] + offset * offset) * area
            start = stop


@njit(cache=True, nogil=True)
def _divide_by_object_maximum(
    labels: NDArray[np.int32], squared: NDArray[np.float64]
) -> NDArray[np.float32]:  # pragma: no cover - compiled
    """Square root of `squared` over its maximum of the same label, float32, for flat arrays."""
    largest = np.zeros(labels.max() + 1 if labels.size else 1, dtype=np.float64)
    for p in range(labels.size):
        if squared[p] > largest[labels[p]]:
            largest[labels[p]] = squared[p]
    for label in range(largest.size):
        largest[label] = np.sqrt(largest[label]) + _OFFICIAL_EPSILON
    result = np.empty(labels.size, dtype=np.float32)
    for p in range(labels.size):
        result[p] = np.sqrt(squared[p]) / largest[labels[p]] if squared[p] > 0 else 0.0
    return result


@njit(cache=True, nogil=True)
def _sum_of_two_nearest(labels: NDArray[np.int32], margin: int) -> NDArray[np.float64]:  # pragma: no cover - compiled
    """Sum of the distances to the two nearest objects on background pixels; inf in objects and far from two objects.

    Each object is measured only in its bounding box grown by `margin`, so the cost grows with the area near objects and
    not with objects times image.
    """
    height, width = labels.shape
    count = labels.max() + 1
    box = np.empty((count, 4), dtype=np.int64)
    box[:, 0], box[:, 1], box[:, 2], box[:, 3] = height, width, -1, -1
    for i in range(height):
        for j in range(width):
            label = labels[i, j]
            box[label, 0], box[label, 2] = min(box[label, 0], i), i
            box[label, 1], box[label, 3] = min(box[label, 1], j), max(box[label, 3], j)
    nearest = np.full((height, width), np.inf)
    second = np.full((height, width), np.inf)
    for label in range(1, count):
        if box[label, 2] < 0:
            continue
        top, left = max(box[label, 0] - margin, 0), max(box[label, 1] - margin, 0)
        bottom, right = min(box[label, 2] + margin + 1, height), min(box[label, 3] + margin + 1, width)
        squared = np.full((bottom - top, right - left), np.inf)
        for j in range(left, right):
            steps = np.inf
            for i in range(top, bottom):
                steps = 0.0 if labels[i, j] == label else steps + 1.0
                squared[i - top, j - left] = steps * steps
            steps = np.inf
            for i in range(bottom - 1, top - 1, -1):
                steps = 0.0 if labels[i, j] == label else steps + 1.0
                squared[i - top, j - left] = min(squared[i - top, j - left], steps * steps)
        _lower_envelope(np.ones(squared.shape, dtype=np.int32), squared, 1.0)
        for i in range(top, bottom):
            for j in range(left, right):
                if labels[i, j] == 0:
                    distance = math.sqrt(squared[i - top, j - left])
                    if distance < nearest[i, j]:
                        nearest[i, j], second[i, j] = distance, nearest[i, j]
                    elif distance < second[i, j]:
                        second[i, j] = distance
    return nearest + second
