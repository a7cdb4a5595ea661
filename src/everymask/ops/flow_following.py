"""Following a flow: where every pixel ends that moves along it, by Euler's method with linear interpolation.

Stringer et al., "Cellpose: a generalist algorithm for cellular segmentation", Nature Methods 2021, Methods; official
program `cellpose` (BSD-3), `dynamics.follow_flows`. What Cellpose 3 does with images on the CPU is done here. Its other
code, for accelerators and (from version 3.1 on; before, volumes are not interpolated) volumes, which is the only one in
Cellpose 4, interpolates up to half a pixel off: at
`y H / (H - 1) - 1/2` where `y` is meant, since it scales points as for `align_corners=True` and interpolates as for
`align_corners=False`.

What costs time is reading the four pixels around a point: a processor cannot do that for many points at once, as it
can the arithmetic. So a step is done in three passes over the points of one small tile (their pixels stay in
the cache): places, reading, moving. In the middle one the two components of a flow travel as one number of 64 bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from everymask.errors import InputError
from everymask.ops.flow_targets import FLOW_SCALE, checked_flow, in_chunks

_TILES = {2: (1, 32, 64), 3: (8, 8, 16)}  # pixels (z, y, x) whose paths are followed together
# Most points come to rest or go round in a circle of 2, 3 or 4 steps. A point that is where it was this many steps ago
# returns there every time, whichever of those periods it has.
PERIOD = 12
# A step cannot be longer: sums and differences stay finite, and no image is as large.
LONGEST_STEP = 1e6


def follow_flows(
    flow: NDArray[np.floating], foreground: NDArray[np.bool_], steps: int = 200, *, parallel: bool = False
) -> NDArray[np.float32]:
    """End points of all foreground pixels after a number of steps along the flow.

    A step moves a point by `flow / FLOW_SCALE`, interpolated between the pixels around it, and keeps it within the
    image. The flow outside the foreground counts 0. Points that no longer move, or go round in a circle exactly, are
    not followed to the end; their end points are the same bit for bit.

    Args:
        flow: as the network predicts it, `(2, H, W)` or `(3, Z, H, W)`; numbers that are not finite count 0.
        foreground: the pixels that move, `(H, W)` or `(Z, H, W)`.
        steps: number of steps, at least 0.
        parallel: share the pixels among threads.

    Returns:
        `(D, H, W)` or `(D, Z, H, W)`, coordinates in pixel indices in the order of the axes; pixels outside the
        foreground stay where they are.

    Raises:
        InputError: for shapes that do not belong together, images of about 2^31 pixels and more, or a negative number
            of steps.
    """
    foreground = np.asarray(foreground, np.bool_)
    ends = np.indices(foreground.shape, np.float32)
    _follow(flow, foreground, steps, parallel, ends, np.empty(0, np.int32))
    return ends


def sinks(
    flow: NDArray[np.floating], foreground: NDArray[np.bool_], steps: int = 200, *, parallel: bool = False
) -> NDArray[np.int32]:
    """The pixel in which each foreground pixel ends: the end point of `follow_flows` with its fractions cut off.

    Args:
        flow: see `follow_flows`, as the other arguments.
        foreground: `(H, W)` or `(Z, H, W)`.
        steps: number of steps, at least 0.
        parallel: share the pixels among threads.

    Returns:
        `(H, W)` or `(Z, H, W)`: index of the pixel in the flattened image, -1 outside the foreground.

    Raises:
        InputError: as `follow_flows`.
    """
    foreground = np.asarray(foreground, np.bool_)
    found = np.full(foreground.shape, -1, np.int32)
    _follow(flow, foreground, steps, parallel, np.empty((foreground.ndim, *[0] * foreground.ndim), np.float32), found)
    return found


def _follow(
    flow: NDArray[np.floating],
    foreground: NDArray[np.bool_],
    steps: int,
    parallel: bool,
    ends: NDArray[np.float32],
    found: NDArray[np.int32],
) -> None:
    """Fills `ends` (D, ...) and `found` (...), or the one of them that is not empty."""
    flow = checked_flow(flow, foreground.shape)
    if steps < 0:
        raise InputError(f"steps: got {steps}, expected at least 0, such as 200")
    if foreground.size == 0:
        return
    axes = foreground.ndim
    volume = np.ascontiguousarray(foreground.reshape((1,) * (3 - axes) + foreground.shape)).view(np.uint8)
    depth, height, width = volume.shape
    # One row and column more, of zeros, so that the last pixel has neighbours as well; in volumes a plane more.
    field = np.zeros((depth + axes - 2, height + 1, width + 1, axes), np.float32)
    components = flow.reshape(axes, *volume.shape)

    def fill(first: int, last: int) -> None:
        _fill_field(components, volume, first, last, field)

    in_chunks(fill, depth * height, parallel)
    numbers = field.reshape(-1)
    pairs = numbers.view(np.int64) if axes == 2 else np.empty(0, np.int64)
    tile = _TILES[axes]
    tiles = [-(-size // side) for size, side in zip(volume.shape, tile, strict=True)]
    ends = ends.reshape(axes, -1)

    def follow(first: int, last: int) -> None:
        _follow_tiles(numbers, pairs, volume, steps, tile, first, last, ends, found.reshape(-1))

    in_chunks(follow, int(np.prod(tiles)), parallel)


@njit(cache=True, nogil=True)
def _fill_field(
    flow: NDArray[np.float32], foreground: NDArray[np.uint8], first: int, last: int, field: NDArray[np.float32]
) -> None:  # pragma: no cover - compiled
    """Writes the steps of the rows from `first` to `last` of all planes: (Z, H, W, D), 0 outside the foreground."""
    height = foreground.shape[1]
    for row in range(first, last):
        z, y = row // height, row % height
        for axis in range(len(flow)):
            for x in range(foreground.shape[2]):
                step = flow[axis, z, y, x] / np.float32(FLOW_SCALE)
                # a comparison with what is no number is false
                if foreground[z, y, x] and abs(step) < np.inf:
                    field[z, y, x, axis] = min(max(step, np.float32(-LONGEST_STEP)), np.float32(LONGEST_STEP))


@njit(cache=True, nogil=True)
def _follow_tiles(
    field: NDArray[np.float32],
    pairs: NDArray[np.int64],
    foreground: NDArray[np.uint8],
    steps: int,
    tile: tuple[int, int, int],
    first: int,
    last: int,
    ends: NDArray[np.float32],
    found: NDArray[np.int32],
) -> None:  # pragma: no cover - compiled
    """Follows the points of the tiles `first` to `last`, writes ends (D, pixels) and sinks (pixels) if there is room.

    Args:
        field: steps (Z, H + 1, W + 1, D), flat.
        pairs: the same memory as pairs of numbers; only for images.
        foreground: (Z, H, W).
        steps: how many.
        tile: its sides (z, y, x).
        first: index of a tile.
        last: exclusive.
        ends: (D, pixels) or (D, 0).
        found: (pixels,) or (0,).
    """
    depth, height, width = foreground.shape
    axes = len(ends)
    pitch, plane = width + 1, (width + 1) * (height + 1)
    tiles_y, tiles_x = -(-height // tile[1]), -(-width // tile[2])
    room = tile[0] * tile[1] * tile[2]
    points = np.empty((3, room), np.float32)
    before = np.empty((3, room), np.float32)
    home = np.empty(room, np.int64)
    limits = np.empty(3, np.float32)
    limits[0], limits[1], limits[2] = depth - 1, height - 1, width - 1
    places = np.empty(room, np.int32)
    weights = np.empty((2, room), np.float32)
    corners = np.empty((4, room), np.int64)
    values = corners.view(np.float32)
    for index in range(first, last):
        start_z = index // (tiles_y * tiles_x) * tile[0]
        start_y = index // tiles_x % tiles_y * tile[1]
        start_x = index % tiles_x * tile[2]
        count = 0
        for z in range(start_z, min(start_z + tile[0], depth)):
            for y in range(start_y, min(start_y + tile[1], height)):
                for x in range(start_x, min(start_x + tile[2], width)):
                    if foreground[z, y, x]:
                        points[0, count], points[1, count], points[2, count] = z, y, x
                        home[count] = (z * height + y) * width + x
                        count += 1
        left = steps
        while count > 0:
            # The odd steps come first, so that whole periods are left.
            together = left % PERIOD if left % PERIOD else min(left, PERIOD)
            for axis in range(3 - axes, 3):
                for i in range(count):
                    before[axis, i] = points[axis, i]
            for _ in range(together):
                if axes == 3:
                    _move_in_volume(field, plane, pitch, points, count, limits)
                else:
                    ys, xs = points[1, :count], points[2, :count]
                    _move_in_image(pairs, pitch, ys, xs, limits, places, weights, corners, values)
            left -= together
            kept = 0
            for i in range(count):
                resting = together == PERIOD
                for axis in range(3 - axes, 3):
                    resting = resting and points[axis, i] == before[axis, i]
                if resting or left == 0:
                    if ends.shape[1]:
                        for axis in range(axes):
                            ends[axis, home[i]] = points[3 - axes + axis, i]
                    if len(found):
                        z = np.int64(points[0, i])
                        found[home[i]] = (z * height + np.int64(points[1, i])) * width + np.int64(points[2, i])
                else:
                    points[0, kept], points[1, kept], points[2, kept] = points[0, i], points[1, i], points[2, i]
                    home[kept] = home[i]
                    kept += 1
            count = kept


# Points and steps are finite and far from the limits of their type, so the usual precautions may be left out.
_FINITE: Any = {"nnan", "ninf", "nsz"}


@njit(cache=True, nogil=True, fastmath=_FINITE)
def _move_in_image(
    pairs: NDArray[np.int64],
    pitch: int,
    ys: NDArray[np.float32],
    xs: NDArray[np.float32],
    limits: NDArray[np.float32],
    places: NDArray[np.int32],
    weights: NDArray[np.float32],
    corners: NDArray[np.int64],
    values: NDArray[np.float32],
) -> None:  # pragma: no cover - compiled
    """Moves each point by the step interpolated between the four pixels around it.

    Args:
        pairs: steps (y, x) of each pixel, flat.
        pitch: from one row to the next.
        ys: (N,) points.
        xs: (N,).
        limits: largest coordinates (z, y, x).
        places: room for N.
        weights: room for (2, N).
        corners: room for (4, N).
        values: the same memory, as numbers.
    """
    belows, rights = weights[0], weights[1]
    for i in range(len(ys)):
        y, x = np.int32(ys[i]), np.int32(xs[i])
        belows[i], rights[i] = ys[i] - np.float32(y), xs[i] - np.float32(x)
        places[i] = y * np.int32(pitch) + x

    lower = pairs[pitch:]
    a, b, c, d = corners[0], corners[1], corners[2], corners[3]
    for i in range(len(ys)):
        place = np.uint32(places[i])  # never negative: no need to look
        a[i], b[i] = pairs[place], pairs[place + np.uint32(1)]
        c[i], d[i] = lower[place], lower[place + np.uint32(1)]

    e, f, g, h = values[0], values[1], values[2], values[3]
    zero, last_y, last_x = np.float32(0), limits[1], limits[2]
    for i in range(len(ys)):
        below, right = belows[i], rights[i]
        at = np.uint32(2) * np.uint32(i)
        above_y = e[at] + (f[at] - e[at]) * right
        below_y = g[at] + (h[at] - g[at]) * right
        ys[i] = min(max(ys[i] + (above_y + (below_y - above_y) * below), zero), last_y)
        at += np.uint32(1)
        above_x = e[at] + (f[at] - e[at]) * right
        below_x = g[at] + (h[at] - g[at]) * right
        xs[i] = min(max(xs[i] + (above_x + (below_x - above_x) * below), zero), last_x)


@njit(cache=True, nogil=True, fastmath=_FINITE)
def _move_in_volume(
    field: NDArray[np.float32], plane: int, pitch: int, points: NDArray[np.float32], count: int, limits: Any
) -> None:  # pragma: no cover - compiled
    """Moves each point (z, y, x) by the step interpolated between the eight voxels around it."""
    zero = np.float32(0)
    for i in range(count):
        z, y, x = np.int64(points[0, i]), np.int64(points[1, i]), np.int64(points[2, i])
        behind = points[0, i] - np.float32(z)
        below = points[1, i] - np.float32(y)
        right = points[2, i] - np.float32(x)
        front = np.uint64(3 * (z * plane + y * pitch + x))
        for axis in range(3):
            step = zero
            front_step = zero
            for k in range(2):
                at = front + np.uint64(3 * k * plane + axis)
                a, b = field[at], field[at + np.uint64(3)]
                at += np.uint64(3 * pitch)
                c, d = field[at], field[at + np.uint64(3)]
                upper = a + (b - a) * right
                lower = c + (d - c) * right
                step = upper + (lower - upper) * below
                if k == 0:
                    front_step = step
            step = front_step + (step - front_step) * behind
            points[axis, i] = min(max(points[axis, i] + step, zero), limits[axis])
