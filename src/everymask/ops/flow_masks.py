"""Objects from flows: pixels whose paths end at the same place belong together.

Stringer et al., "Cellpose: a generalist algorithm for cellular segmentation", Nature Methods 2021, Methods; official
program `cellpose` (BSD-3), `dynamics.compute_masks` and `utils.fill_holes_and_remove_small_masks`. The objects are
those of Cellpose 3 on the CPU; of Cellpose 4, but for the few pixels that its shifted interpolation sends elsewhere and
its check of touching objects (see `flow_following` and `flow_targets`).
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from everymask.ops.flow_following import sinks
from everymask.ops.flow_targets import checked_flow, flow_error
from everymask.ops.labels import compact_labels, label_areas, label_boxes

# A pixel is a seed where more paths than this end, and as many as anywhere within this many pixels.
_SEED_COUNT = 10
_SEED_RADIUS = 2
# Around a seed, pixels where more paths than this end belong to its sink, as far as so many dilations reach.
_SINK_COUNT = 2
_SINK_RADIUS = 5


def flow_labels(
    flow: NDArray[np.floating],
    foreground_logit: NDArray[np.floating],
    *,
    steps: int = 200,
    foreground_threshold: float = 0.0,
    flow_threshold: float = 0.4,
    min_size: int = 15,
    max_fraction: float = 0.4,
    parallel: bool = False,
) -> NDArray[np.int32]:
    """Label map of what a Cellpose network predicts: `cellpose.dynamics.compute_masks`.

    Args:
        flow: as the network predicts it, `FLOW_SCALE` times the unit flow, `(2, H, W)` or `(3, Z, H, W)`; numbers that
            are not finite count 0, and an object that has one fails the check.
        foreground_logit: `(H, W)` or `(Z, H, W)`; a pixel above the threshold is foreground.
        steps: steps along the flow; the official program takes 200 diameter / 30 for objects of another diameter.
        foreground_threshold: a logit, not a probability.
        flow_threshold: objects whose `flow_error` is above it are dropped; 0 or less for no check. Volumes are not
            checked, as in the official program.
        min_size: objects of fewer pixels are dropped; 0 or less keeps all. Holes are filled if it is above 0, as in the
            official program.
        max_fraction: objects that cover more than this share of the image are dropped.
        parallel: share the work among threads; the result is the same.

    Returns:
        Labels 1..N, `(H, W)` or `(Z, H, W)`, 0 background, numbered in the order of their first pixels along the rows.

    Raises:
        InputError: for shapes that do not belong together, images of about 2^31 pixels and more, or a negative number
            of steps.
    """
    logit = np.asarray(foreground_logit)
    flow = checked_flow(flow, logit.shape)
    foreground = logit > foreground_threshold
    labels = _label_sinks(sinks(flow, foreground, steps, parallel=parallel), max_fraction)
    del foreground
    if flow_threshold > 0 and labels.ndim == 2:
        labels = drop_bad_flows(labels, flow, flow_threshold, parallel=parallel)
    return fill_holes_and_drop_small(labels, min_size) if min_size > 0 else labels


def sinks_to_labels(
    ends: NDArray[np.floating], foreground: NDArray[np.bool_], *, max_fraction: float = 0.4
) -> NDArray[np.int32]:
    """Objects of pixels by where their paths end: `cellpose.dynamics.get_masks_torch`.

    Paths are counted by the pixel in which they end, the fractions of end points cut off. A seed is a pixel with more
    than 10 of them that no pixel within 2 exceeds. From it, its sink grows 5 times by a pixel in all directions, over
    pixels in which more than 2 paths end; where sinks overlap, that of the seed with more paths prevails, of two equal
    ones the later along the rows. Pixels get the label of the sink that they end in, or none.

    Args:
        ends: end points as `follow_flows` returns them, `(D, H, W)` or `(D, Z, H, W)`.
        foreground: the pixels whose end points count, `(H, W)` or `(Z, H, W)`.
        max_fraction: objects that cover more than this share of the image are dropped.

    Returns:
        Labels 1..N, `(H, W)` or `(Z, H, W)`, 0 background, numbered in the order of their first pixels along the rows.

    Raises:
        InputError: for shapes that do not belong together.
    """
    foreground = np.asarray(foreground, np.bool_)
    points = checked_flow(ends, foreground.shape, "ends")
    limits = np.array(foreground.shape).reshape(-1, *[1] * foreground.ndim) - 1
    whole = np.clip(np.nan_to_num(points), 0, limits).astype(np.int64)
    found = np.ravel_multi_index(tuple(whole), foreground.shape) if foreground.size else np.zeros(foreground.shape)
    return _label_sinks(np.where(foreground, found, -1).astype(np.int32), max_fraction)


def drop_bad_flows(
    labels: NDArray[np.integer], flow: NDArray[np.floating], threshold: float = 0.4, *, parallel: bool = False
) -> NDArray[np.int32]:
    """Label map without the objects whose shape does not fit the flow that was predicted for them.

    Args:
        labels: object ids, `(H, W)` or `(Z, H, W)`.
        flow: as the network predicts it, `(D, H, W)` or `(D, Z, H, W)`.
        threshold: objects with a `flow_error` above it, or one that is not a number, are dropped.
        parallel: share the objects among threads.

    Returns:
        Labels 1..N of those left in the order of their first pixels along the rows, 0 background, -1 void.

    Raises:
        InputError: for labels that are no integers, or shapes that do not belong together.
    """
    compact = compact_labels(labels)[0]
    errors = flow_error(compact, flow, parallel=parallel)
    return _kept(compact, errors <= threshold)


def fill_holes_and_drop_small(labels: NDArray[np.integer], min_size: int = 15) -> NDArray[np.int32]:
    """Label map with the holes of objects filled, and without small objects.

    As `cellpose.utils.fill_holes_and_remove_small_masks`: objects of fewer pixels are dropped, the holes of each other
    one filled with whatever lies in them, void and smaller objects included, and then small ones dropped once more,
    since what is left of an object may be. A hole is not connected to the outside of the object by edges of pixels (by
    faces in volumes, as from version 3.1 of the program on; before, each plane of a volume was filled for itself).

    Args:
        labels: object ids, `(H, W)` or `(Z, H, W)`.
        min_size: pixels that an object has at least; 0 or 1 keep all.

    Returns:
        Labels 1..N of those left in the order of their first pixels along the rows, 0 background, -1 void.

    Raises:
        InputError: for labels that are no integers.
    """
    compact, originals = compact_labels(labels)
    kept = _kept(compact, label_areas(compact, len(originals)) >= min_size)
    volume = kept if kept.ndim == 3 else kept[np.newaxis]
    count = int(kept.max(initial=0))
    _fill_holes(volume, label_boxes(volume, count))
    return _kept(kept, label_areas(kept, count) >= max(min_size, 1))


def _kept(labels: NDArray[np.int32], keep: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Labels 1..N of which some are dropped and the others numbered anew."""
    numbered = labels.copy()
    _keep(numbered.reshape(-1), np.concatenate([[False], keep]))
    return numbered


def _label_sinks(found: NDArray[np.int32], max_fraction: float) -> NDArray[np.int32]:
    """Labels of pixels by the pixel in which they end, -1 for those that are background; overwrites them."""
    volume = found if found.ndim == 3 else found[np.newaxis]
    flat = volume.reshape(-1)
    counts = np.zeros(volume.shape, np.int32)
    _count(flat, counts.reshape(-1))
    seeds = _seeds(counts)
    # the more paths, the later, so that it prevails
    seeds = seeds[np.argsort(counts.reshape(-1)[seeds], kind="stable")]
    marks = np.zeros(volume.shape, np.int32)
    _grow_sinks(counts, seeds, marks)
    del counts
    _look_up(flat, marks.reshape(-1))  # in the same memory: a whole slide leaves room for few arrays of its size
    del marks
    areas = label_areas(found, len(seeds))
    return _kept(found, areas <= found.size * max_fraction)


@njit(cache=True, nogil=True)
def _keep(labels: NDArray[np.int32], keep: NDArray[np.bool_]) -> None:  # pragma: no cover - compiled
    """Sets labels to 0 that are not kept and numbers the others by their first pixels, in place; void stays."""
    numbers = np.zeros(len(keep), np.int32)
    count = 0
    for i in range(len(labels)):
        label = labels[i]
        if label > 0:
            if not keep[label]:
                labels[i] = 0
                continue
            if numbers[label] == 0:
                count += 1
                numbers[label] = count
            labels[i] = numbers[label]


@njit(cache=True, nogil=True)
def _count(found: NDArray[np.int32], counts: NDArray[np.int32]) -> None:  # pragma: no cover - compiled
    for i in range(len(found)):
        if found[i] >= 0:
            counts[found[i]] += 1


@njit(cache=True, nogil=True)
def _seeds(counts: NDArray[np.int32]) -> NDArray[np.int64]:  # pragma: no cover - compiled
    """Pixels (flat) in which more paths end than `_SEED_COUNT` and at least as many as in all others around."""
    depth, height, width = counts.shape
    total = 0
    for z in range(depth):
        for y in range(height):
            for x in range(width):
                total += counts[z, y, x] > _SEED_COUNT
    seeds = np.empty(total, np.int64)
    total = 0
    for z in range(depth):
        for y in range(height):
            for x in range(width):
                here = counts[z, y, x]
                if here <= _SEED_COUNT:
                    continue
                highest = here
                for other_z in range(max(z - _SEED_RADIUS, 0), min(z + _SEED_RADIUS + 1, depth)):
                    for other_y in range(max(y - _SEED_RADIUS, 0), min(y + _SEED_RADIUS + 1, height)):
                        for other_x in range(max(x - _SEED_RADIUS, 0), min(x + _SEED_RADIUS + 1, width)):
                            highest = max(highest, counts[other_z, other_y, other_x])
                if highest == here:
                    seeds[total] = (z * height + y) * width + x
                    total += 1
    return seeds[:total].copy()


@njit(cache=True, nogil=True)
def _grow_sinks(
    counts: NDArray[np.int32], seeds: NDArray[np.int64], marks: NDArray[np.int32]
) -> None:  # pragma: no cover - compiled
    """Marks the sink of each seed with its number; later ones prevail."""
    depth, height, width = counts.shape
    side = 2 * _SINK_RADIUS + 1
    seen = np.zeros((min(depth, side), side, side), np.int64)  # the seed that saw a pixel last, and so does not again
    queue = np.empty((seen.size, 4), np.int64)
    for n in range(len(seeds)):
        seed_z, seed_y, seed_x = seeds[n] // (height * width), seeds[n] // width % height, seeds[n] % width
        low_z = max(seed_z - _SINK_RADIUS, 0)
        low_y, low_x = seed_y - _SINK_RADIUS, seed_x - _SINK_RADIUS
        queue[0, 0], queue[0, 1], queue[0, 2], queue[0, 3] = seed_z, seed_y, seed_x, 0
        seen[seed_z - low_z, _SINK_RADIUS, _SINK_RADIUS] = n + 1
        at, end = 0, 1
        while at < end:
            z, y, x, distance = queue[at]
            at += 1
            marks[z, y, x] = n + 1
            if distance == _SINK_RADIUS:
                continue
            for other_z in range(max(z - 1, 0), min(z + 2, depth)):
                for other_y in range(max(y - 1, 0), min(y + 2, height)):
                    for other_x in range(max(x - 1, 0), min(x + 2, width)):
                        if counts[other_z, other_y, other_x] <= _SINK_COUNT:
                            continue
                        if seen[other_z - low_z, other_y - low_y, other_x - low_x] == n + 1:
                            continue
                        seen[other_z - low_z, other_y - low_y, other_x - low_x] = n + 1
                        queue[end, 0], queue[end, 1], queue[end, 2] = other_z, other_y, other_x
                        queue[end, 3] = distance + 1
                        end += 1


@njit(cache=True, nogil=True)
def _look_up(found: NDArray[np.int32], marks: NDArray[np.int32]) -> None:  # pragma: no cover - compiled
    """Replaces sinks by their labels."""
    for i in range(len(found)):
        found[i] = marks[found[i]] if found[i] >= 0 else 0


@njit(cache=True, nogil=True)
def _fill_holes(labels: NDArray[np.int32], boxes: NDArray[np.int64]) -> None:  # pragma: no cover - compiled
    """Fills the holes of the labels one after the other, in place: whatever their outside does not reach.

    A flat image is a volume of one slice, from which paths cannot leave through the slices above and below.
    """
    flat_image = labels.shape[0] == 1
    largest = 0
    for n in range(len(boxes)):
        x0, y0, z0, x1, y1, z1 = boxes[n]
        largest = max(largest, (z1 - z0) * (y1 - y0) * (x1 - x0))
    reached = np.empty(largest, np.uint8)
    stack = np.empty(largest, np.int64)
    for n in range(len(boxes)):
        x0, y0, z0, x1, y1, z1 = boxes[n]
        depth, height, width = z1 - z0, y1 - y0, x1 - x0
        # The pixels of the object and, at first, those on the edges of its box count as reached.
        waiting, gaps = 0, 0
        for z in range(depth):
            for y in range(height):
                row = labels[z0 + z, y0 + y, x0:x1]
                at_edge = y == 0 or y == height - 1 or (not flat_image and (z == 0 or z == depth - 1))
                start = (z * height + y) * width
                first, last, count = width, -1, 0
                for x in range(width):
                    if row[x] == n + 1:
                        first, last, count = min(first, x), x, count + 1
                        reached[start + x] = 1
                    elif at_edge or x == 0 or x == width - 1:
                        reached[start + x] = 1
                        stack[waiting] = start + x
                        waiting += 1
                    else:
                        reached[start + x] = 0
                gaps += last + 1 - first - count if count else 0
        if gaps == 0:  # a hole has the object on its left and on its right
            continue
        while waiting > 0:
            waiting -= 1
            place = stack[waiting]
            z, y, x = place // (height * width), place // width % height, place % width
            for side in range(6):
                other_z = z + (side == 4) - (side == 5)
                other_y = y + (side == 2) - (side == 3)
                other_x = x + (side == 0) - (side == 1)
                if 0 <= other_z < depth and 0 <= other_y < height and 0 <= other_x < width:
                    other = (other_z * height + other_y) * width + other_x
                    if reached[other] == 0:
                        reached[other] = 1
                        stack[waiting] = other
                        waiting += 1
        for z in range(depth):
            for y in range(height):
                for x in range(width):
                    if reached[(z * height + y) * width + x] == 0:
                        labels[z0 + z, y0 + y, x0 + x] = n + 1
