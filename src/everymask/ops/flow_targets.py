"""Flows of Cellpose: every pixel of an object points along the heat that spreads from the object's middle.

Stringer et al., "Cellpose: a generalist algorithm for cellular segmentation", Nature Methods 2021, Methods; official
program `cellpose` (BSD-3), `dynamics.masks_to_flows`. In each step the pixel nearest the centroid gets a unit of heat,
and then every pixel of the object the mean of its neighbourhood (3 x 3 pixels, in volumes itself and 6 neighbours), in
which whatever is no part of the object counts 0. The flow is the central difference of the heat, of length 1.

Each object is heated in a box of its own, so its flow depends on nothing but its pixels. The official program has three
versions: that of Cellpose 1 to 3 for the CPU does the same; those for accelerators, the only ones in Cellpose 4, let
the gradient read the heat of touching objects (issue 1486 of the official program) and heat all objects of an image
for as many steps as its largest one. `tests/test_ops_flows.py` shows the differences.

Labels: 0 is background; negative labels are void, and have no flow either.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numba import config, njit
from numpy.typing import NDArray

from everymask.errors import InputError
from everymask.ops.labels import compact_labels, connected_components, label_boxes

# What networks predict is the unit flow times this number (Cellpose, Methods: it balances the two terms of the loss).
FLOW_SCALE = 5.0

# Pixels with one more along each axis have to have an index of 32 bits.
_MOST_PIXELS = 2**31 - 2**26
# Part of the heat of a pixel below which the difference of its neighbours counts as 0.
_NO_SLOPE = 1e-10
# Where an object fills less than this part of its box, one over it, its pieces are looked for: see `_piece`.
_SPARSE = 4
_CHUNKS = 8  # per thread, so that one with the large objects does not keep the others waiting


def flow_targets(
    labels: NDArray[np.integer], *, logarithm: bool = False, parallel: bool = False
) -> NDArray[np.float32]:
    """Unit vectors that lead every pixel of an object to its middle.

    Equal to `cellpose.dynamics.masks_to_flows` of Cellpose 3 on the CPU for images of objects in one piece; volumes as
    in `masks_to_flows_gpu_3d`, with the number of steps of each object by itself. The steps are twice the sum of the
    sides of the object's box, each 2 pixels wider; in volumes 6 times the sum of the sides, each 1 wider.

    An object in several pieces (joined by corners in images, by faces in volumes: as heat passes) gets a middle for
    each, since a network sees no more than the pieces; the official program leaves all but one without a flow.

    Args:
        labels: object ids, any integers, `(H, W)` or `(Z, H, W)`; 0 and negative ids have no flow.
        logarithm: take the gradient of `log(1 + heat)`, as Cellpose 1 and 2 did. Directions of large objects hardly
            change.
        parallel: share the objects among threads; not in the worker processes of a data loader, which share the
            processors already.

    Returns:
        `(D, H, W)` or `(D, Z, H, W)` in the order of the axes (y, x) or (z, y, x): vectors of length 1, or 0 outside
        objects and where the heat has no slope (where the official program gives rounding errors the length 1). What a
        network is to predict is `FLOW_SCALE` times that.

    Raises:
        InputError: for labels that are no integers `(H, W)` or `(Z, H, W)`.
    """
    labels = np.asarray(labels)
    pieces, owners = connected_components(labels, connectivity=2 if labels.ndim == 2 else 1)
    volume = pieces if labels.ndim == 3 else pieces[np.newaxis]
    boxes = label_boxes(volume, len(owners))
    flow = np.zeros((labels.ndim, *volume.shape), np.float32)

    def write(first: int, last: int) -> None:
        _write_flows(volume, boxes, first, last, labels.ndim, logarithm, flow)

    in_chunks(write, len(boxes), parallel)
    return flow.reshape(labels.ndim, *labels.shape)


def flow_error(
    labels: NDArray[np.integer], flow: NDArray[np.floating], *, parallel: bool = False
) -> NDArray[np.float64]:
    """How far a predicted flow is from the flow of each object: the quality that Cellpose filters by.

    The mean over the pixels of an object of the squared distance between its own flow and the predicted one, as
    `cellpose.metrics.flow_error` of Cellpose 3. An object in several pieces has one middle here, and no flow in the
    other pieces: as an object found by following a flow, it should not be in pieces.

    Args:
        labels: object ids, `(H, W)` or `(Z, H, W)`.
        flow: as the network predicts it, `FLOW_SCALE` times the unit flow, `(D, H, W)` or `(D, Z, H, W)`.
        parallel: share the objects among threads.

    Returns:
        `(N,)`, one for each distinct positive id in increasing order; 0 is perfect, 1 what no flow at all would give,
        4 the opposite direction. Not a number where the predicted flow is not finite.

    Raises:
        InputError: for labels that are no integers, or shapes that do not belong together.
    """
    compact, originals = compact_labels(labels)
    flow = checked_flow(flow, compact.shape)
    volume = compact if compact.ndim == 3 else compact[np.newaxis]
    predicted = flow.reshape(compact.ndim, *volume.shape)
    boxes = label_boxes(volume, len(originals))
    errors = np.zeros(len(originals), np.float64)

    def measure(first: int, last: int) -> None:
        _measure_errors(volume, boxes, first, last, compact.ndim, predicted, errors)

    in_chunks(measure, len(boxes), parallel)
    return errors


def checked_flow(flow: NDArray[np.floating], shape: tuple[int, ...], name: str = "flow") -> NDArray[np.float32]:
    """Vectors `(D, ...)` for an image of the given shape, as contiguous float32.

    Raises:
        InputError: for another shape than `(2, H, W)` or `(3, Z, H, W)`, or more pixels than indices of 32 bits count.
    """
    flow = np.asarray(flow)
    if len(shape) not in (2, 3) or flow.shape != (len(shape), *shape):
        expected = str((len(shape), *shape)) if len(shape) in (2, 3) else "(2, H, W) or (3, Z, H, W)"
        raise InputError(f"{name}: got shape {flow.shape}, expected {expected} for an image of shape {shape}")
    if math.prod(shape) > _MOST_PIXELS:
        raise InputError(
            f"{name}: got {shape} pixels, expected at most {_MOST_PIXELS} in all; cut the image into tiles"
        )
    return np.ascontiguousarray(flow, np.float32)


def in_chunks(task: Callable[[int, int], None], count: int, parallel: bool) -> None:
    """Calls `task(first, last)` for ranges that make up 0..`count`, in threads if wanted.

    The tasks have to release the interpreter's lock. The threads end with the call: those of numba would stay, and a
    process forked later (a worker of a data loader) could not use them.
    """
    threads = min(vars(config)["NUMBA_NUM_THREADS"], os.cpu_count() or 1, count) if parallel else 1
    if threads <= 1:
        task(0, count)
        return
    chunks = min(count, threads * _CHUNKS)
    edges = [count * chunk // chunks for chunk in range(chunks + 1)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(task, edges[:-1], edges[1:]))


@njit(cache=True, nogil=True)
def _write_flows(
    labels: NDArray[np.int32],
    boxes: NDArray[np.int64],
    first: int,
    last: int,
    axes: int,
    logarithm: bool,
    flow: NDArray[np.float32],
) -> None:  # pragma: no cover - compiled
    """Writes the flow of the labels `first` + 1 to `last` into `flow` (D, Z, H, W)."""
    for n in range(first, last):
        heat, frame, pitch, plane = _heat(labels, n + 1, boxes[n], axes)
        if logarithm:
            # log1p where the official program has log(1 + T), which is 0 for the little heat far from the middle
            for place in range(len(heat)):
                heat[place] = np.log1p(heat[place])
        x0, y0, z0, x1, y1, z1 = boxes[n]
        for z in range(z0, z1):
            for y in range(y0, y1):
                for x in range(x0, x1):
                    if labels[z, y, x] == n + 1:
                        place = (z - frame[0]) * plane + (y - frame[1]) * pitch + x - frame[2]
                        vector = _direction(heat, place, pitch, plane, axes)
                        for axis in range(axes):
                            flow[axis, z, y, x] = vector[3 - axes + axis]


@njit(cache=True, nogil=True)
def _measure_errors(
    labels: NDArray[np.int32],
    boxes: NDArray[np.int64],
    first: int,
    last: int,
    axes: int,
    flow: NDArray[np.float32],
    errors: NDArray[np.float64],
) -> None:  # pragma: no cover - compiled
    """Mean squared errors of the labels `first` + 1 to `last`, against a predicted flow (D, Z, H, W)."""
    for n in range(first, last):
        heat, frame, pitch, plane = _heat(labels, n + 1, boxes[n], axes)
        x0, y0, z0, x1, y1, z1 = boxes[n]
        total, count = 0.0, 0
        for z in range(z0, z1):
            for y in range(y0, y1):
                for x in range(x0, x1):
                    if labels[z, y, x] != n + 1:
                        continue
                    place = (z - frame[0]) * plane + (y - frame[1]) * pitch + x - frame[2]
                    inside = frame[1] < y < frame[4] and frame[2] < x < frame[5]
                    inside = inside and (axes == 2 or frame[0] < z < frame[3])
                    vector = _direction(heat, place, pitch, plane, axes) if inside else (0.0, 0.0, 0.0)
                    count += 1
                    for axis in range(axes):
                        difference = vector[3 - axes + axis] - flow[axis, z, y, x] / FLOW_SCALE
                        total += difference * difference
        errors[n] = total / count


@njit(cache=True, nogil=True)
def _direction(
    heat: NDArray[np.float64], place: int, pitch: int, plane: int, axes: int
) -> tuple[float, float, float]:  # pragma: no cover - compiled
    """Unit vector (z, y, x) of the slope of the heat at a place, 0 where there is none."""
    z = heat[place + plane] - heat[place - plane] if axes == 3 else 0.0
    y = heat[place + pitch] - heat[place - pitch]
    x = heat[place + 1] - heat[place - 1]
    largest = max(abs(z), abs(y), abs(x))
    # In the middle of a symmetric object the slope is nothing but rounding.
    if largest <= _NO_SLOPE * heat[place]:
        return 0.0, 0.0, 0.0
    squares = z * z + y * y + x * x
    if squares < 1e-200:  # far from the middle of a thin object there is so little heat that its square vanishes
        z, y, x = z / largest, y / largest, x / largest
        squares = z * z + y * y + x * x
    scale = 1 / np.sqrt(squares)
    return z * scale, y * scale, x * scale


@njit(cache=True, nogil=True)
def _heat(
    labels: NDArray[np.int32], label: int, box: NDArray[np.int64], axes: int
) -> tuple[NDArray[np.float64], NDArray[np.int64], int, int]:  # pragma: no cover - compiled
    """Heat of an object after all steps, in a box with a frame of 1 pixel around the piece with the source.

    Returns:
        The heat, flat; the corners of its box with the frame (z0, y0, x0, and the last z, y, x); and the distance in
        `heat` from one row, and from one plane, to the next.
    """
    x0, y0, z0, x1, y1, z1 = box
    sides = (z1 - z0 if axes == 3 else 0) + y1 - y0 + x1 - x0
    steps = 6 * (sides + 3) if axes == 3 else 2 * (sides + 4)
    source_z, source_y, source_x, area = _source(labels, label, box)
    frame = _framed(z0, y0, x0, z1 - 1, y1 - 1, x1 - 1, axes)
    if _SPARSE * area < (z1 - z0) * (y1 - y0) * (x1 - x0):
        frame = _piece(labels, label, box, axes, source_z, source_y, source_x)

    depth, height, width = frame[3] - frame[0] + 1, frame[4] - frame[1] + 1, frame[5] - frame[2] + 1
    pitch, plane = width, height * width
    share = np.zeros(depth * plane, np.float64)
    part = 1 / 7 if axes == 3 else 1 / 9
    for z in range(frame[0] + axes - 2, frame[3] + 3 - axes):  # there is no frame in front of an image
        for y in range(frame[1] + 1, frame[4]):
            for x in range(frame[2] + 1, frame[5]):
                if labels[z, y, x] == label:
                    share[(z - frame[0]) * plane + (y - frame[1]) * pitch + x - frame[2]] = part
    heat = np.zeros(len(share), np.float64)
    source = (source_z - frame[0]) * plane + (source_y - frame[1]) * pitch + source_x - frame[2]
    sums = np.zeros(len(share), np.float64)
    # The loops run over whole boxes without a gap, frames included, where the share is 0: long loops fill registers.
    if axes == 3:
        n = len(heat) - 2 * plane
        for _ in range(steps):
            heat[source] += 1
            _sum_7(
                heat[plane : plane + n],
                heat[plane - 1 : plane - 1 + n],
                heat[plane + 1 : plane + 1 + n],
                heat[plane - pitch : plane - pitch + n],
                heat[plane + pitch : plane + pitch + n],
                heat[:n],
                heat[2 * plane :],
                sums[:n],
            )
            _share_1(sums[:n], share[plane : plane + n], heat[plane : plane + n])
    else:
        n = len(heat) - 2 * pitch
        for _ in range(steps):
            heat[source] += 1
            _sum_3(heat[:n], heat[pitch : pitch + n], heat[2 * pitch :], sums[1 : 1 + n])
            _share_3(sums[:n], sums[1 : 1 + n], sums[2 : 2 + n], share[pitch : pitch + n], heat[pitch : pitch + n])
    return heat, frame, pitch, plane


@njit(cache=True, nogil=True)
def _sum_3(
    a: NDArray[np.float64], b: NDArray[np.float64], c: NDArray[np.float64], out: NDArray[np.float64]
) -> None:  # pragma: no cover - compiled
    for i in range(len(out)):
        out[i] = a[i] + b[i] + c[i]


@njit(cache=True, nogil=True)
def _share_3(
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    c: NDArray[np.float64],
    share: NDArray[np.float64],
    out: NDArray[np.float64],
) -> None:  # pragma: no cover - compiled
    for i in range(len(out)):
        out[i] = (a[i] + b[i] + c[i]) * share[i]


@njit(cache=True, nogil=True)
def _sum_7(
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    c: NDArray[np.float64],
    d: NDArray[np.float64],
    e: NDArray[np.float64],
    f: NDArray[np.float64],
    g: NDArray[np.float64],
    out: NDArray[np.float64],
) -> None:  # pragma: no cover - compiled
    for i in range(len(out)):
        out[i] = a[i] + b[i] + c[i] + d[i] + e[i] + f[i] + g[i]


@njit(cache=True, nogil=True)
def _share_1(
    sums: NDArray[np.float64], share: NDArray[np.float64], out: NDArray[np.float64]
) -> None:  # pragma: no cover - compiled
    for i in range(len(out)):
        out[i] = sums[i] * share[i]


@njit(cache=True, nogil=True)
def _source(
    labels: NDArray[np.int32], label: int, box: NDArray[np.int64]
) -> tuple[int, int, int, int]:  # pragma: no cover - compiled
    """The pixel (z, y, x) of an object nearest its centroid, the first one along the rows of several; its area."""
    x0, y0, z0, x1, y1, z1 = box
    sum_z, sum_y, sum_x, count = 0, 0, 0, 0
    for z in range(z0, z1):
        for y in range(y0, y1):
            for x in range(x0, x1):
                if labels[z, y, x] == label:
                    # counted from 1 in the box, as the official program does: the same roundings decide between ties
                    sum_z += z - z0 + 1
                    sum_y += y - y0 + 1
                    sum_x += x - x0 + 1
                    count += 1
    mean_z, mean_y, mean_x = sum_z / count, sum_y / count, sum_x / count
    nearest = np.inf
    best_z, best_y, best_x = z0, y0, x0
    for z in range(z0, z1):
        for y in range(y0, y1):
            for x in range(x0, x1):
                if labels[z, y, x] == label:
                    away_z, away_y, away_x = z - z0 + 1 - mean_z, y - y0 + 1 - mean_y, x - x0 + 1 - mean_x
                    distance = away_z * away_z + away_x * away_x + away_y * away_y
                    if distance < nearest:
                        nearest = distance
                        best_z, best_y, best_x = z, y, x
    return best_z, best_y, best_x, count


@njit(cache=True, nogil=True)
def _piece(
    labels: NDArray[np.int32], label: int, box: NDArray[np.int64], axes: int, z: int, y: int, x: int
) -> NDArray[np.int64]:  # pragma: no cover - compiled
    """Box with a frame around the pixels that heat from (z, y, x) reaches: z0, y0, x0, and the last z, y, x.

    An object found by following flows may have stray pixels far away, which make its box many times too large. The
    heat is the same in both boxes, it only takes longer in the larger one.
    """
    x0, y0, z0, x1, y1, z1 = box
    height, width = y1 - y0, x1 - x0
    seen = np.zeros((z1 - z0) * height * width, np.uint8)
    stack = np.empty(len(seen), np.int64)
    stack[0] = ((z - z0) * height + y - y0) * width + x - x0
    seen[stack[0]] = 1
    waiting = 1
    top, left, front, bottom, right, back = y, x, z, y, x, z
    while waiting > 0:
        waiting -= 1
        place = stack[waiting]
        z, y, x = place // (height * width) + z0, place // width % height + y0, place % width + x0
        front, top, left = min(front, z), min(top, y), min(left, x)
        back, bottom, right = max(back, z), max(bottom, y), max(right, x)
        for other_z in range(max(z - 1, z0), min(z + 2, z1)):
            for other_y in range(max(y - 1, y0), min(y + 2, y1)):
                for other_x in range(max(x - 1, x0), min(x + 2, x1)):
                    if axes == 3 and abs(other_z - z) + abs(other_y - y) + abs(other_x - x) > 1:
                        continue
                    other = ((other_z - z0) * height + other_y - y0) * width + other_x - x0
                    if seen[other] == 0 and labels[other_z, other_y, other_x] == label:
                        seen[other] = 1
                        stack[waiting] = other
                        waiting += 1
    return _framed(front, top, left, back, bottom, right, axes)


@njit(cache=True, nogil=True)
def _framed(
    front: int, top: int, left: int, back: int, bottom: int, right: int, axes: int
) -> NDArray[np.int64]:  # pragma: no cover - compiled
    """A box, from its first to its last pixels, with a frame of 1 pixel in all axes there are."""
    box = np.empty(6, np.int64)
    box[0], box[1], box[2], box[3], box[4], box[5] = front, top - 1, left - 1, back, bottom + 1, right + 1
    if axes == 3:
        box[0] -= 1
        box[3] += 1
    return box
