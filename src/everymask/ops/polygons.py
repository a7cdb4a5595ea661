"""Outlines of masks and masks of outlines, exact in both directions.

Outlines run along the edges of pixels: (0, 0) is the top left corner of the top left pixel, so all vertices of a traced
outline are whole numbers, and rasterising it gives the mask back.

*Which pixels belong together.* Pixels that share an edge do, pixels that only share a corner do not (4-connectivity):
every 4-connected part of a segment is a polygon of its own, with its holes. Its inside hangs together, and where its
outline would meet itself in a corner it is split into two rings there. So every polygon is valid in the sense of the
Simple Features standard (no ring touches itself), which with 8-connectivity two pixels at a corner would already break.

*Which pixels a polygon covers.* The rule of COCO's own program: vertices are rounded to fifths of a pixel, edges are
walked on that grid, and a pixel is inside by the crossings in its column a little left of its centre. Lists of polygons
thus give the masks of `pycocotools` exactly; holes, which COCO's lists cannot express, are taken off afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from everymask.errors import InputError
from everymask.ops.labels import component_tables, earlier_rows
from everymask.ops.polygon_runs import fill_rings
from everymask.ops.rle import check, checked_label_map, merge_groups
from everymask.ops.rle_measures import boxes as mask_boxes
from everymask.ops.rle_measures import flat, grown

_FARTHEST = 1e8  # pixels; beyond it the fixed-point arithmetic of the COCO rule is undefined


class Outlines(NamedTuple):
    """The polygons of N segments in flat arrays, nested by offsets (the multi-polygon layout of GeoArrow).

    Segment i has the parts ``segments[i]:segments[i + 1]``, part p has the rings ``parts[p]:parts[p + 1]``, the
    first being the exterior and the others holes, and ring r has the vertices ``points[rings[r]:rings[r + 1]]``.
    """

    points: NDArray[np.float64]
    """(P, 2) x, y in pixels; rings are not closed. Traced exteriors run clockwise on the screen, holes do not."""
    rings: NDArray[np.int64]
    """(R + 1,) offsets into `points`."""
    parts: NDArray[np.int64]
    """(Q + 1,) offsets into the rings."""
    segments: NDArray[np.int64]
    """(N + 1,) offsets into the parts."""


# -- tracing -----------------------------------------------------------------------------------------------------------


def trace_labels(ids: NDArray[np.int32], count: int) -> Outlines:
    """Outlines of the labels 1..`count` of a map, in one pass over the image.

    Args:
        ids: (H, W); 0 and negative labels have no outline.
        count: N; labels that do not occur have no parts.

    Raises:
        InputError: The array has not two axes, or holds a label above `count`.
    """
    ids = checked_label_map(ids, count)
    components, owners = component_tables(ids[None], earlier_rows(2, 1))
    points, rings, ring_parts = _trace_map(components[0], len(owners))
    return _assembled(points, rings, ring_parts, owners.astype(np.int64) - 1, count)


def trace(counts: NDArray[np.uint32], offsets: NDArray[np.int64], size: Sequence[int]) -> Outlines:
    """Outlines of run-length masks, each within its own box; the masks may overlap.

    Args:
        counts: (R,) run lengths of N masks.
        offsets: (N + 1,) where the runs of each mask begin.
        size: (H, W).

    Raises:
        InputError: The runs do not belong to that size.
    """
    counts, offsets = flat(counts, offsets)
    check(counts, size, offsets)
    boxes = mask_boxes(counts, offsets, size)
    points, rings, ring_parts, owners = _trace_masks(counts, offsets, boxes, size[0], earlier_rows(2, 1))
    return _assembled(points, rings, ring_parts, owners, len(offsets) - 1)


def _assembled(
    points: NDArray[np.int64],
    rings: NDArray[np.int64],
    ring_parts: NDArray[np.int64],
    owners: NDArray[np.int64],
    count: int,
) -> Outlines:
    """Rings in the order they were found, as outlines ordered by segment, part, and exterior before holes.

    Args:
        points: (2 P,) x, y of the vertices, one after the other.
        rings: (R + 1,) offsets into them.
        ring_parts: (R,) the part each ring belongs to; of its rings the exterior was found first.
        owners: (Q,) the segment each part belongs to.
        count: N, the number of segments.
    """
    part_order = np.argsort(owners, kind="stable")
    rank = np.empty_like(part_order)
    rank[part_order] = np.arange(len(part_order))
    ring_order = np.argsort(rank[ring_parts], kind="stable")
    lengths = np.diff(rings)[ring_order]
    ordered_rings = _offsets(lengths)
    gather = np.arange(len(points) // 2) + np.repeat(rings[:-1][ring_order] - ordered_rings[:-1], lengths)
    return Outlines(
        points.reshape(-1, 2)[gather].astype(np.float64),
        ordered_rings,
        _offsets(np.bincount(rank[ring_parts], minlength=len(owners))),
        _offsets(np.bincount(owners, minlength=count)),
    )


def _offsets(lengths: NDArray[Any]) -> NDArray[np.int64]:
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


@njit(cache=True, nogil=True)
def _belongs(components: NDArray[np.int32], part: int, x: int, y: int) -> bool:  # pragma: no cover - compiled
    height, width = components.shape
    return 0 <= x < width and 0 <= y < height and components[y, x] == part


@njit(cache=True, nogil=True)
def _append_ring(
    components: NDArray[np.int32], seen: NDArray[np.bool_], x: int, y: int, points: NDArray[np.int64], end: int
) -> tuple[NDArray[np.int64], int]:  # pragma: no cover - compiled
    """Walk around the part to the right hand of the upper edge of pixel (x, y), noting x and y of every corner.

    `seen` marks upper edges, of which every ring has one. Headings are 0 right, 1 down, 2 left, 3 up.
    """
    part = components[y, x]
    first_x, first_y = x, y
    heading = 0
    points = grown(points, 2 * end + 2)
    points[2 * end], points[2 * end + 1] = x, y
    end += 1
    while True:
        if heading == 0:
            seen[y, x] = True
            x += 1
        elif heading == 1:
            y += 1
        elif heading == 2:
            x -= 1
        else:
            y -= 1
        # the two pixels ahead; the offsets follow from the heading
        left = _belongs(components, part, x - (heading >= 2), y - (heading == 0 or heading == 3))
        right = _belongs(components, part, x - (heading == 1 or heading == 2), y - (heading >= 2))
        # Where only the left one belongs, two pixels of this part meet in a corner: crossing over to it splits the
        # outline into two rings that do not touch themselves.
        turn = -1 if left else 0 if right else 1
        heading = (heading + turn) & 3
        if heading == 0 and x == first_x and y == first_y:
            return points, end
        if turn:
            points = grown(points, 2 * end + 2)
            points[2 * end], points[2 * end + 1] = x, y
            end += 1


@njit(cache=True, nogil=True)
def _append_rings(
    components: NDArray[np.int32],
    first_part: int,
    origin: NDArray[np.int64],
    points: NDArray[np.int64],
    end: int,
    rings: NDArray[np.int64],
    ring_parts: NDArray[np.int64],
    number: int,
) -> tuple[NDArray[np.int64], int, NDArray[np.int64], NDArray[np.int64], int]:  # pragma: no cover - compiled
    """All rings of a map of 4-connected parts, the exterior of each part first: its first pixel is on it."""
    height, width = components.shape
    seen = np.zeros((height, width), np.bool_)
    nothing = np.zeros(width, components.dtype)
    for y in range(height):
        row = components[y]
        above = components[y - 1] if y else nothing
        for x in range(width):
            part = row[x]
            if part == above[x] or part <= 0 or seen[y, x]:
                continue
            begin = end
            points, end = _append_ring(components, seen, x, y, points, end)
            for i in range(begin, end):
                points[2 * i] += origin[0]
                points[2 * i + 1] += origin[1]
            number += 1
            rings = grown(rings, number + 1)
            ring_parts = grown(ring_parts, number)
            rings[number] = end
            ring_parts[number - 1] = first_part + part - 1
    return points, end, rings, ring_parts, number


@njit(cache=True, nogil=True)
def _trace_map(
    components: NDArray[np.int32], number_of_parts: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:  # pragma: no cover - compiled
    points = np.empty(32 * number_of_parts + 32, np.int64)
    rings = np.zeros(number_of_parts + 1, np.int64)
    ring_parts = np.empty(number_of_parts + 1, np.int64)
    points, end, rings, ring_parts, number = _append_rings(
        components, 0, np.zeros(2, np.int64), points, 0, rings, ring_parts, 0
    )
    return points[: 2 * end], rings[: number + 1], ring_parts[:number]


@njit(cache=True, nogil=True)
def _trace_masks(
    counts: NDArray[np.uint32],
    offsets: NDArray[np.int64],
    boxes: NDArray[np.int64],
    height: int,
    earlier: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:  # pragma: no cover - compiled
    masks = len(offsets) - 1
    points = np.empty(32 * masks + 32, np.int64)
    rings = np.zeros(masks + 1, np.int64)
    ring_parts = np.empty(masks + 1, np.int64)
    owners = np.empty(masks + 1, np.int64)
    end, number, parts = 0, 0, 0
    for n in range(masks):
        left, top, right, bottom = boxes[n]
        if right == left:
            continue
        window = np.zeros((1, bottom - top, right - left), np.int32)
        position = 0
        for i in range(offsets[n], offsets[n + 1]):
            start = position
            position += np.int64(counts[i])
            if (i - offsets[n]) & 1:
                for pixel in range(start, position):
                    window[0, pixel % height - top, pixel // height - left] = 1
        components, own = component_tables(window, earlier)
        points, end, rings, ring_parts, number = _append_rings(
            components[0], parts, boxes[n, :2], points, end, rings, ring_parts, number
        )
        owners = grown(owners, parts + len(own))
        owners[parts : parts + len(own)] = n
        parts += len(own)
    return points[: 2 * end], rings[: number + 1], ring_parts[:number], owners[:parts]


# -- rasterising -------------------------------------------------------------------------------------------------------


def rasterise(outlines: Outlines, size: Sequence[int]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Run-length masks of outlines: of each segment the union of its parts, of each part the exterior less the holes.

    Args:
        outlines: Polygons of N segments; they may reach beyond the image.
        size: (H, W).

    Returns:
        `counts` (R,) uint32 and `offsets` (N + 1,) int64. Where there are no holes they equal
        ``pycocotools.mask.merge(frPyObjects(polygons, H, W))``.

    Raises:
        InputError: A vertex is not finite, or more than 10^8 pixels away.
    """
    height, width = size
    points = np.ascontiguousarray(outlines.points, np.float64)
    if not bool(np.all(np.abs(points) <= _FARTHEST)):  # also false for NaN
        raise InputError(f"polygons: a vertex is not finite or beyond {_FARTHEST:.0e} pixels; correct it")
    counts, offsets = fill_rings(points, outlines.rings, height, width)
    pixels = height * width
    if len(outlines.parts) < len(outlines.rings):
        holes = np.ones(len(outlines.rings) - 1, bool)
        holes[outlines.parts[:-1]] = False
        counts, offsets = _without_holes(counts, offsets, outlines.parts, holes, pixels)
    if len(offsets) == len(outlines.segments) and bool(np.all(np.diff(outlines.segments) == 1)):
        return counts, offsets  # one part each: nothing to unite
    return merge_groups(counts, offsets, outlines.segments, pixels)


def _without_holes(
    counts: NDArray[np.uint32],
    offsets: NDArray[np.int64],
    parts: NDArray[np.int64],
    holes: NDArray[np.bool_],
    pixels: int,
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Masks of parts from those of their rings: outside minus inside is "both the exterior and no hole"."""
    exteriors = _chosen(counts, offsets, parts[:-1])
    holes_before = np.concatenate([[0], np.cumsum(holes)])
    inner = merge_groups(*_chosen(counts, offsets, np.flatnonzero(holes)), holes_before[parts], pixels)
    pairs = np.arange(2 * len(parts) - 2).reshape(2, -1).T.ravel()
    inverse_counts, inverse_offsets = _inverted(*inner)
    both = _chosen(
        np.concatenate([exteriors[0], inverse_counts]),
        np.concatenate([exteriors[1], inverse_offsets[1:] + exteriors[1][-1]]),
        pairs,
    )
    return merge_groups(*both, np.arange(len(parts)) * 2, pixels, depth=2)


def _chosen(
    counts: NDArray[np.uint32], offsets: NDArray[np.int64], masks: NDArray[np.int64]
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """The runs of some masks."""
    lengths = np.diff(offsets)[masks]
    result = _offsets(lengths)
    return counts[np.arange(result[-1]) + np.repeat(offsets[masks] - result[:-1], lengths)], result


def _inverted(counts: NDArray[np.uint32], offsets: NDArray[np.int64]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Background for foreground: an empty run before the first. (Runs of no length are allowed.)"""
    return np.insert(counts, offsets[:-1], 0), offsets + np.arange(len(offsets))


# -- measures ----------------------------------------------------------------------------------------------------------


def polygon_boxes(outlines: Outlines) -> NDArray[np.float64]:
    """(N, 4) x0, y0, x1, y1 of the vertices of each segment, in pixels; zeros for one without parts."""
    number = len(outlines.segments) - 1
    ring_of_point = np.repeat(np.arange(len(outlines.rings) - 1), np.diff(outlines.rings))
    part_of_ring = np.repeat(np.arange(len(outlines.parts) - 1), np.diff(outlines.parts))
    segment_of_part = np.repeat(np.arange(number), np.diff(outlines.segments))
    segment = segment_of_part[part_of_ring[ring_of_point]]
    low = np.full((number, 2), np.inf)
    high = np.full((number, 2), -np.inf)
    np.minimum.at(low, segment, outlines.points)
    np.maximum.at(high, segment, outlines.points)
    boxes = np.concatenate([low, high], axis=1)
    boxes[low[:, 0] > high[:, 0]] = 0
    return boxes


def coco_polygons_exact(outlines: Outlines) -> NDArray[np.bool_]:
    """Which segments COCO's lists of polygons express exactly; the others must be written as run lengths.

    A list is one ring for each part, filled and united. So a segment must have a part, no holes, and at least three
    vertices in every ring (COCO's programs read four numbers as a box). Traced outlines then give their pixels back.

    Returns:
        (N,) bool.
    """
    single = np.diff(outlines.parts) == 1
    long_enough = np.diff(outlines.rings)[outlines.parts[:-1]] >= 3
    fine = np.concatenate([[0], np.cumsum(single & long_enough)])
    parts = np.diff(outlines.segments)
    return (parts > 0) & (fine[outlines.segments[1:]] - fine[outlines.segments[:-1]] == parts)
