"""Smooth distance and flow inside every object of a label image: the fields that Omnipose learns.

Cutler et al., "Omnipose: a high-precision morphology-independent solution for bacterial cell segmentation", Nature
Methods 2022. The distance solves the eikonal equation ``|grad d| = 1`` with d = 0 outside the object. It is iterated on
several stencils at once, the neighbours that share an edge and those that share a corner; their geometric mean is
rounder than either, so that the ridge of a long object is smooth and its flow points to the middle everywhere.

Labels: 0 is background, negative labels are void, and both are outside; so are all other objects. Beyond the border
of the image everything goes on as in a mirror, ``f(-1) = f(0)``, so that the border is no edge of the objects that it
cuts. All functions take images (H, W) and volumes (Z, H, W).
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from everymask.errors import InputError
from everymask.ops.distance import distance_to_edge
from everymask.ops.labels import compact_labels, connected_components, label_boxes

FLOW_LENGTH = 5.0
"""Length of the vectors of the flow, so that they weigh as much as distances do in the loss of a network."""

_ITERATIONS_PER_PIXEL = 1.16
"""Iterations for each pixel of the largest distance in an object: how far the solution travels (official number)."""


def eikonal_distance(labels: NDArray[Any], *, threads: int = 1) -> NDArray[np.float32]:
    """Smooth distance of every object pixel to the outside of its object.

    From 0 everywhere, each iteration solves the discrete eikonal equation in every pixel of the object for the values
    of the iteration before (Jacobi). A stencil is a group of k pairs of opposite neighbours at a distance of s pixels,
    and a are the smaller values of its pairs, outside counting 0. The group's x solves ``sum (x - a)^2 = f^2``,

        x = (sum a + sqrt(max(0, (sum a)^2 - k (sum a^2 - f^2)))) / k,   f^2 = s^2 k / axes,

    and the pixel becomes the geometric mean over the groups: edges and corners in images (f^2 = 1 and 2), faces, edges
    and corners in volumes (f^2 = 1, 4 and 4). A connected part of an object whose largest Euclidean distance is m takes
    ``ceil(1.16 m) + 1`` iterations.

    In images this is the official program's field (measured on cells: 99.5 % of the pixels within 0.05; at the tips of
    ridges it stops earlier). In volumes it takes f^2 = s^2, although the 6 and 4 pairs of edges and corners are more
    directions than there are axes; its distance then grows by 0.84 for each voxel, here by 1.

    Each part is computed in its own box, whatever the others do; the cost grows with the area of the boxes.

    Args:
        labels: Object ids (H, W) or (Z, H, W), any integers, contiguous or not.
        threads: Objects are shared among so many threads; 1 starts none, as processes that were forked must not.

    Returns:
        Distances in pixels, same shape, above 0 inside objects and 0 outside. They count from the first pixel centres
        outside: at a straight edge the outermost pixels have 1.

    Raises:
        InputError: The labels are no whole numbers or have other than 2 or 3 axes, or there are fewer threads than 1.
    """
    labels = _checked(labels)
    if threads < 1:
        raise InputError(f"threads: got {threads}, expected at least 1")
    ids, _ = connected_components(compact_labels(labels)[0], connectivity=labels.ndim)
    count = int(ids.max(initial=0))
    distance = np.zeros(ids.shape, np.float32)
    if count == 0:
        return distance
    volume, result = _as_volume(ids), _as_volume(distance)
    corners = label_boxes(volume, count)[:, ::-1]  # ends z, y, x and beginnings z, y, x
    begins = np.ascontiguousarray(corners[:, 3:])
    frame = np.array([2 * (ids.ndim == 3), 2, 2])
    shapes = corners[:, :3] - begins + frame
    furthest = _largest_of_objects(ids.ravel(), distance_to_edge(ids).ravel(), count)
    iterations = np.ceil(_ITERATIONS_PER_PIXEL * furthest).astype(np.int64) + 1
    if threads == 1 or count == 1:
        _solve(volume, begins, shapes, iterations, np.arange(count), result)
        return distance
    # Objects write to pixels of their own alone. Dealt out by falling cost, so that all threads end at the same time.
    order = np.argsort(-shapes.prod(axis=1) * iterations)

    def solve(part: NDArray[np.int64]) -> None:
        _solve(volume, begins, shapes, iterations, part, result)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(solve, [order[first::threads] for first in range(min(threads, count))]))
    return distance


def omnipose_flow(labels: NDArray[Any], distance: NDArray[np.floating]) -> NDArray[np.float32]:
    """Directions towards the middle of each object: the normalised gradient of its distance.

    The gradient is that of Sobel's operator without the neighbours of other objects and of the background: a neighbour
    at the offset o adds ``w(o) o (d(p + o) - d(p))``, where w halves with each further axis along which it is askew.
    No object feels its neighbours.

    Args:
        labels: Object ids (H, W) or (Z, H, W).
        distance: From `eikonal_distance`, same shape.

    Returns:
        Vectors (2, H, W) as (y, x) or (3, Z, H, W) as (z, y, x), of length 5; 0 outside objects and where the gradient
        vanishes.

    Raises:
        InputError: The shapes differ, or the labels are no label image.
    """
    labels = _checked(labels)
    distance = np.ascontiguousarray(distance, np.float32)
    if distance.shape != labels.shape:
        raise InputError(f"distance: got shape {distance.shape}, expected that of the labels, {labels.shape}")
    ids = compact_labels(labels)[0]
    flow = np.zeros((ids.ndim, *ids.shape), np.float32)
    _gradient(_as_volume(ids), _as_volume(distance), flow.reshape(ids.ndim, *_as_volume(ids).shape))
    return flow


def mean_diameter(distance: NDArray[np.floating]) -> float:
    """Diameter of the objects of an image in pixels, from their distances: ``2 (axes + 1) mean(d)`` over d > 0.

    Exact for balls, in which the mean distance is the radius divided by (axes + 1); of a long object it is 1.5 times
    the width in images. 0 for an image without objects.

    Args:
        distance: Distances (H, W) or (Z, H, W), 0 or less outside objects.
    """
    inside = distance[distance > 0]
    return 2 * (distance.ndim + 1) * float(inside.mean(dtype=np.float64)) if inside.size else 0.0


def _checked(labels: NDArray[Any]) -> NDArray[Any]:
    labels = np.asarray(labels)
    if labels.ndim not in (2, 3):
        raise InputError(f"labels: got shape {labels.shape}, expected (H, W) or (Z, H, W); pass one image at a time")
    return labels


def _as_volume(image: NDArray[Any]) -> NDArray[Any]:
    """A view (Z, H, W), of one plane for an image."""
    return image.reshape((1,) * (3 - image.ndim) + image.shape)


# -- kernels -----------------------------------------------------------------------------------------------------------
# An object is computed in arrays of its box and a frame of one pixel, laid out as one row, so that the loop over its
# pixels is long and uses vector instructions (measured: 28 times faster). For that the pixels outside the object are
# computed as well, and masked; there are no branches, not even the check of a division by zero; and indices are
# unsigned, since Python's negative ones would be looked out for in every step.


@njit(cache=True, nogil=True)
def _largest_of_objects(
    ids: NDArray[np.int32], values: NDArray[np.float32], count: int
) -> NDArray[np.float32]:  # pragma: no cover - compiled
    """(N,) largest value of each object, of flat arrays."""
    largest = np.zeros(count, np.float32)
    for i in range(ids.size):
        if ids[i] > 0 and values[i] > largest[ids[i] - 1]:
            largest[ids[i] - 1] = values[i]
    return largest


@njit(cache=True, nogil=True, error_model="numpy", forceinline=True)
def _root(
    total: np.float32, squares: np.float32, pairs: np.float32, goal: np.float32
) -> np.float32:  # pragma: no cover
    """The x of a group: of the sum of its a, the sum of their squared deviations from the mean, their number and f^2.

    With deviations the root is that of ``(f^2 - squares) / pairs``, whose digits do not cancel far from the edge.
    """
    return total / pairs + math.sqrt(max((goal - squares) / pairs, np.float32(0)))


@njit(cache=True, nogil=True, error_model="numpy", forceinline=True)
def _cube_root(product: np.float32, start: np.float32) -> np.float32:  # pragma: no cover - compiled
    """By Newton's iteration from the mean of the factors, which are alike; vectors have no such instruction."""
    root = start
    for _ in range(5):
        root = root - (root - product / (root * root)) * np.float32(1 / 3)
    return root


@njit(cache=True, nogil=True, error_model="numpy")
def _iterate_image(
    old: NDArray[np.float32], new: NDArray[np.float32], inside: NDArray[np.float32], shape: NDArray[np.int64]
) -> None:  # pragma: no cover - compiled
    """One iteration in a box of `shape` (1, h + 2, w + 2), frame included."""
    half, two = np.float32(0.5), np.float32(2)
    m, r = np.uint64(1), np.uint64(2)  # columns of the stencil: 0 on the left, m in the middle, r on the right
    row = np.uint64(shape[2])
    last = row + row
    for i in range(np.uint64(shape[1]) * row - last - r):
        a, b = min(old[i + m], old[i + last + m]), min(old[i + row], old[i + row + r])
        edges = _root(a + b, half * (a - b) * (a - b), two, np.float32(1))
        a, b = min(old[i], old[i + last + r]), min(old[i + r], old[i + last])
        corners = _root(a + b, half * (a - b) * (a - b), two, two)
        new[i + row + m] = math.sqrt(edges * corners) * inside[i + row + m]


@njit(cache=True, nogil=True, error_model="numpy")
def _iterate_volume(
    old: NDArray[np.float32], new: NDArray[np.float32], inside: NDArray[np.float32], shape: NDArray[np.int64]
) -> None:  # pragma: no cover - compiled
    """One iteration in a box of `shape` (d + 2, h + 2, w + 2), frame included."""
    three, four, six = np.float32(3), np.float32(4), np.float32(6)
    m, r = np.uint64(1), np.uint64(2)
    row, plane = np.uint64(shape[2]), np.uint64(shape[1] * shape[2])
    last = row + row
    for i in range(np.uint64(shape[0]) * plane - plane - plane - last - r):
        j, k = i + plane, i + plane + plane  # the planes before, of and behind the voxel
        a = min(old[i + row + m], old[k + row + m])
        b = min(old[j + m], old[j + last + m])
        c = min(old[j + row], old[j + row + r])
        total = a + b + c
        mean = total / three
        faces = _root(total, (a - mean) ** 2 + (b - mean) ** 2 + (c - mean) ** 2, three, np.float32(1))
        a, b = min(old[i + m], old[k + last + m]), min(old[i + last + m], old[k + m])
        c, d = min(old[i + row], old[k + row + r]), min(old[i + row + r], old[k + row])
        e, g = min(old[j], old[j + last + r]), min(old[j + r], old[j + last])
        total = a + b + c + d + e + g
        mean = total / six
        squares = (a - mean) ** 2 + (b - mean) ** 2 + (c - mean) ** 2
        squares += (d - mean) ** 2 + (e - mean) ** 2 + (g - mean) ** 2
        edges = _root(total, squares, six, four)
        a, b = min(old[i], old[k + last + r]), min(old[i + r], old[k + last])
        c, d = min(old[i + last], old[k + r]), min(old[i + last + r], old[k])
        total = a + b + c + d
        mean = total / four
        squares = (a - mean) ** 2 + (b - mean) ** 2 + (c - mean) ** 2 + (d - mean) ** 2
        corners = _root(total, squares, four, four)
        middle = j + row + m
        mean = (faces + edges + corners) / three
        new[middle] = _cube_root(faces * edges * corners, mean) * inside[middle]


@njit(cache=True, nogil=True)
def _mirror(
    values: NDArray[np.float32], begin: NDArray[np.int64], shape: NDArray[np.int64], size: tuple[int, int, int]
) -> None:  # pragma: no cover - compiled
    """Fills the frame of a box where it lies beyond the border of the image: the pixels on the border once more."""
    flat = shape[0] == 1
    strides = (shape[1] * shape[2], shape[2], 1)
    for axis in range(1 if flat else 0, 3):
        first, second = (axis + 1) % 3, (axis + 2) % 3
        for side in range(2):
            if side == 0 and begin[axis] == 0:
                to, source = 0, strides[axis]
            elif side == 1 and begin[axis] + shape[axis] - 2 == size[axis]:
                to, source = (shape[axis] - 1) * strides[axis], (shape[axis] - 2) * strides[axis]
            else:
                continue
            for i in range(shape[first]):
                for j in range(shape[second]):
                    place = i * strides[first] + j * strides[second]
                    values[to + place] = values[source + place]


@njit(cache=True, nogil=True)
def _solve(
    ids: NDArray[np.int32],
    begins: NDArray[np.int64],
    shapes: NDArray[np.int64],
    iterations: NDArray[np.int64],
    objects: NDArray[np.int64],
    distance: NDArray[np.float32],
) -> None:  # pragma: no cover - compiled
    """Distances of some objects of (Z, H, W), written into `distance`; `shapes` (N, 3) are those of framed boxes."""
    room = 0
    for k in objects:
        room = max(room, shapes[k, 0] * shapes[k, 1] * shapes[k, 2])
    buffers = np.empty((3, room), np.float32)
    for k in objects:
        shape, begin = shapes[k], begins[k]
        flat = shape[0] == 1
        depth, height, width = 1 if flat else shape[0] - 2, shape[1] - 2, shape[2] - 2
        at_border = begin[1] == 0 or begin[2] == 0 or begin[1] + height == ids.shape[1]
        at_border |= begin[2] + width == ids.shape[2]
        at_border |= not flat and (begin[0] == 0 or begin[0] + depth == ids.shape[0])
        buffers[:, : shape[0] * shape[1] * shape[2]] = 0
        old, new, inside = buffers[0], buffers[1], buffers[2]
        for z in range(depth):
            for y in range(height):
                start = ((z + (not flat)) * shape[1] + y + 1) * shape[2] + 1
                for x in range(width):
                    inside[start + x] = ids[begin[0] + z, begin[1] + y, begin[2] + x] == k + 1
        for _ in range(iterations[k]):
            if at_border:
                _mirror(old, begin, shape, ids.shape)
            if flat:
                _iterate_image(old, new, inside, shape)
            else:
                _iterate_volume(old, new, inside, shape)
            old, new = new, old
        for z in range(depth):
            for y in range(height):
                start = ((z + (not flat)) * shape[1] + y + 1) * shape[2] + 1
                for x in range(width):
                    if inside[start + x] > 0:
                        distance[begin[0] + z, begin[1] + y, begin[2] + x] = old[start + x]


@njit(cache=True, nogil=True)
def _gradient(
    ids: NDArray[np.int32], distance: NDArray[np.float32], flow: NDArray[np.float32]
) -> None:  # pragma: no cover - compiled
    """Directions of a volume (Z, H, W), one plane if `flow` (axes, Z, H, W) has two axes, written into `flow`."""
    depth, height, width = ids.shape
    axes = len(flow)
    reach = axes - 2  # along z
    for z in range(depth):
        for y in range(height):
            for x in range(width):
                label = ids[z, y, x]
                if label <= 0:
                    continue
                along_z, along_y, along_x = 0.0, 0.0, 0.0
                for i in range(-reach, reach + 1):
                    for j in range(-1, 2):
                        for k in range(-1, 2):
                            # Staying within the image is mirroring it.
                            there = (
                                min(max(z + i, 0), depth - 1),
                                min(max(y + j, 0), height - 1),
                                min(max(x + k, 0), width - 1),
                            )
                            if ids[there] == label:
                                rise = (distance[there] - distance[z, y, x]) / (1 << (abs(i) + abs(j) + abs(k)))
                                along_z += i * rise
                                along_y += j * rise
                                along_x += k * rise
                length = math.sqrt(along_z * along_z + along_y * along_y + along_x * along_x)
                if length > 1e-6:
                    flow[axes - 1, z, y, x] = along_x * FLOW_LENGTH / length
                    flow[axes - 2, z, y, x] = along_y * FLOW_LENGTH / length
                    if axes == 3:
                        flow[0, z, y, x] = along_z * FLOW_LENGTH / length
