"""Hierarchical grouping of regions by similarity: the kernel of selective search.

Uijlings, van de Sande, Gevers, Smeulders, Selective Search for Object Recognition, IJCV 2013, algorithm 1 and sec. 3.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numba import njit

from everymask.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from everymask.ops.selective_search import Similarity

COLOUR_BINS, TEXTURE_BINS, ORIENTATIONS = 25, 10, 8
"""Of the histograms of each channel, and of each of its eight directions of a gradient (sec. 3.2)."""


class Regions(NamedTuple):
    """What the grouping starts from.

    Attributes:
        pairs: (M, 2) int32 numbers of neighbours, the lower one first; at least a corner of their pixels touches.
        sizes: (n,) int32 pixels.
        boxes: (n, 4) int32 x0, y0, x1, y1, exclusive.
        colours: (n, C * 25) int32 histograms.
        textures: (n, C * 8 * 10) int32 histograms.
    """

    pairs: NDArray[np.int32]
    sizes: NDArray[np.int32]
    boxes: NDArray[np.int32]
    colours: NDArray[np.int32]
    textures: NDArray[np.int32]


def describe_regions(
    labels: NDArray[np.int32], colours: NDArray[np.uint8], gradients: NDArray[np.float32], steepest: NDArray[np.float32]
) -> Regions:
    """Neighbours, sizes, boxes and histograms of regions.

    Args:
        labels: (H, W), 0..n-1, none of them missing.
        colours: (H, W, C) bins 0..24.
        gradients: (H, W, C, 2) derivatives along y and x.
        steepest: (C,) the length of a gradient that is in the last bin.
    """
    number = int(labels.max()) + 1
    first, second = _touching(labels)
    codes = np.unique(np.minimum(first, second).astype(np.int64) * number + np.maximum(first, second))
    pairs = np.stack(np.divmod(codes, number), axis=1).astype(np.int32)
    factors = np.divide(TEXTURE_BINS, steepest, out=np.zeros(len(steepest), np.float32), where=steepest > 0)
    return Regions(pairs, *_describe(labels, colours, gradients, factors, number))


def group_regions(regions: Regions, similarity: Similarity) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Joins the two most similar neighbours, over and over, until one region is left.

    Of equally similar pairs the one with the lower first, then second number is joined. The sums of the histograms'
    intersections are exact, so that no order of additions matters.

    Args:
        regions: From `describe_regions`.
        similarity: The measure.

    Returns:
        (n - 1, 2) the pairs that are joined; the first gives region n, the next one n + 1, and so on. And the boxes
        (2 n - 1, 4) of all regions.

    Raises:
        InputError: Nothing is to be measured.
    """
    used = (similarity.colour, similarity.texture, similarity.size, similarity.fill)
    if not any(used):
        raise InputError("similarity: all four measures are switched off; switch one on")
    number = len(regions.sizes)

    def with_room(table: NDArray[np.int32]) -> NDArray[np.int32]:
        return np.concatenate([table, np.zeros((number - 1, *table.shape[1:]), np.int32)])

    sizes, boxes = with_room(regions.sizes), with_room(regions.boxes)
    colours, textures = with_room(regions.colours), with_room(regions.textures)
    joined = _group(regions.pairs, sizes, boxes, colours, textures, int(regions.sizes.sum()), number, *used)
    return joined, boxes


@njit(cache=True, nogil=True, error_model="numpy")
def _describe(
    labels: NDArray[np.int32],
    colours: NDArray[np.uint8],
    gradients: NDArray[np.float32],
    factors: NDArray[np.float32],
    number: int,
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:  # pragma: no cover - compiled
    height, width, channels = colours.shape
    sizes = np.zeros(number, np.int32)
    boxes = np.zeros((number, 4), np.int32)
    colour = np.zeros((number, channels * COLOUR_BINS), np.int32)
    texture = np.zeros((number, channels * ORIENTATIONS * TEXTURE_BINS), np.int32)
    half, diagonal = ORIENTATIONS // 2, np.float32(np.sqrt(0.5))
    for y in range(height):
        for x in range(width):
            label = labels[y, x]
            if sizes[label] == 0:
                boxes[label, 0], boxes[label, 1], boxes[label, 2] = x, y, x + 1
            boxes[label, 0] = min(boxes[label, 0], x)
            boxes[label, 2] = max(boxes[label, 2], x + 1)
            boxes[label, 3] = y + 1
            sizes[label] += 1
            for channel in range(channels):
                colour[label, channel * COLOUR_BINS + colours[y, x, channel]] += 1
                down, right = gradients[y, x, channel, 0], gradients[y, x, channel, 1]
                first = channel * ORIENTATIONS * TEXTURE_BINS
                for turn in range(half):
                    if turn == 0:
                        slope = right
                    elif turn == 1:
                        slope = (right + down) * diagonal
                    elif turn == 2:
                        slope = down
                    else:
                        slope = (down - right) * diagonal
                    # In the direction against the slope it is 0.
                    bin_ = min(TEXTURE_BINS - 1, int(abs(slope) * factors[channel]))
                    forward = bin_ if slope > 0 else 0
                    texture[label, first + turn * TEXTURE_BINS + forward] += 1
                    texture[label, first + (turn + half) * TEXTURE_BINS + bin_ - forward] += 1
    return sizes, boxes, colour, texture


@njit(cache=True, nogil=True, error_model="numpy")
def _touching(
    labels: NDArray[np.int32],
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:  # pragma: no cover - compiled
    """The labels of neighbouring pixels where they differ, without most repetitions."""
    height, width = labels.shape
    first, second = np.empty(4 * labels.size, np.int32), np.empty(4 * labels.size, np.int32)
    found = 0
    for y in range(height):
        for x in range(width):
            here = labels[y, x]
            for direction in range(4):
                # To the right, and the three pixels below.
                dy, dx = min(direction, 1), 1 if direction == 0 else direction - 2
                if y + dy >= height or x + dx < 0 or x + dx >= width:
                    continue
                there = labels[y + dy, x + dx]
                if there == here or (found and first[found - 1] == here and second[found - 1] == there):
                    continue
                first[found], second[found] = here, there
                found += 1
    return first[:found], second[:found]


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "nnan", "nsz"})
def _intersection(
    histograms: NDArray[np.int32], one: int, other: int, size: float, other_size: float
) -> float:  # pragma: no cover - compiled
    """The shared part of two rows, whose sums are both a multiple of the sizes by one number: 0..that number.

    All products and sums are whole numbers below 2^53, hence exact, however they are vectorised.
    """
    total = 0.0
    for bin_ in range(histograms.shape[1]):
        left, right = histograms[one, bin_] * other_size, histograms[other, bin_] * size
        total += left if left < right else right
    return total / (size * other_size)


@njit(cache=True, nogil=True, error_model="numpy")
def _similarity(
    one: int,
    other: int,
    pixels: int,
    sizes: NDArray[np.int32],
    boxes: NDArray[np.int32],
    colours: NDArray[np.int32],
    textures: NDArray[np.int32],
    by_colour: bool,
    by_texture: bool,
    by_size: bool,
    by_fill: bool,
) -> float:  # pragma: no cover - compiled
    """The sum of the similarities of two regions (eq. 6)."""
    size, other_size = float(sizes[one]), float(sizes[other])
    total = 0.0
    if by_colour:
        total += _intersection(colours, one, other, size, other_size) * COLOUR_BINS / colours.shape[1]
    if by_texture:
        total += _intersection(textures, one, other, size, other_size) * TEXTURE_BINS / textures.shape[1]
    if by_size:
        total += 1 - (size + other_size) / pixels
    if by_fill:
        width = max(boxes[one, 2], boxes[other, 2]) - min(boxes[one, 0], boxes[other, 0])
        height = max(boxes[one, 3], boxes[other, 3]) - min(boxes[one, 1], boxes[other, 1])
        total += 1 - (float(width) * float(height) - size - other_size) / pixels
    return total


@njit(cache=True, nogil=True, error_model="numpy")
def _before(
    heap: NDArray[np.float64], ends: NDArray[np.int64], one: int, other: int
) -> bool:  # pragma: no cover - compiled
    """Whether one entry of the heap is to come before another one."""
    return heap[one] > heap[other] or (heap[one] == heap[other] and ends[one] < ends[other])


@njit(cache=True, nogil=True, error_model="numpy")
def _rise(heap: NDArray[np.float64], ends: NDArray[np.int64], place: int) -> None:  # pragma: no cover - compiled
    """Brings the entry at a place upwards to where it belongs."""
    while place > 0:
        above = (place - 1) // 2
        if not _before(heap, ends, place, above):
            return
        heap[place], heap[above] = heap[above], heap[place]
        ends[place], ends[above] = ends[above], ends[place]
        place = above


@njit(cache=True, nogil=True, error_model="numpy")
def _sink(heap: NDArray[np.float64], ends: NDArray[np.int64], count: int) -> None:  # pragma: no cover - compiled
    """Brings the first of `count` entries downwards to where it belongs."""
    place, below = 0, 1
    while below < count:
        if below + 1 < count and _before(heap, ends, below + 1, below):
            below += 1
        if not _before(heap, ends, below, place):
            return
        heap[place], heap[below] = heap[below], heap[place]
        ends[place], ends[below] = ends[below], ends[place]
        place, below = below, 2 * below + 1


@njit(cache=True, nogil=True, error_model="numpy")
def _group(
    pairs: NDArray[np.int32],
    sizes: NDArray[np.int32],
    boxes: NDArray[np.int32],
    colours: NDArray[np.int32],
    textures: NDArray[np.int32],
    pixels: int,
    number: int,
    by_colour: bool,
    by_texture: bool,
    by_size: bool,
    by_fill: bool,
) -> NDArray[np.int32]:  # pragma: no cover - compiled
    """The joined pairs of `group_regions`; the tables have room for the regions that arise, and are filled."""
    every = len(sizes)
    # A list of neighbours for each region, all in one pool. Those of a new region are gathered from the lists of its
    # two parts; numbers of regions that are no more stand for what they have become a part of.
    starts, stops = np.zeros(every, np.int64), np.zeros(every, np.int64)
    filled = count = 2 * len(pairs)
    pool = np.empty(2 * filled + 64, np.int32)
    for index in range(len(pairs)):
        starts[pairs[index, 0]] += 1
        starts[pairs[index, 1]] += 1
    total = 0
    for region in range(number):
        total += starts[region]
        starts[region] = stops[region] = total - starts[region]
    # A heap of similarities, with both regions of each pair in one number.
    heap, ends = np.empty(count + 64, np.float64), np.empty(count + 64, np.int64)
    count = 0
    for index in range(len(pairs)):
        one, other = pairs[index, 0], pairs[index, 1]
        pool[stops[one]], pool[stops[other]] = other, one
        stops[one] += 1
        stops[other] += 1
        heap[count] = _similarity(
            one, other, pixels, sizes, boxes, colours, textures, by_colour, by_texture, by_size, by_fill
        )
        ends[count] = np.int64(one) * every + other
        _rise(heap, ends, count)
        count += 1
    parents, seen = np.arange(every), np.full(every, -1, np.int64)
    joined = np.empty((number - 1, 2), np.int32)
    new = number
    while new < every:
        one, other = ends[0] // every, ends[0] % every
        count -= 1
        heap[0], ends[0] = heap[count], ends[count]
        _sink(heap, ends, count)
        if parents[one] != one or parents[other] != other:
            continue
        joined[new - number, 0], joined[new - number, 1] = one, other
        parents[one] = parents[other] = new
        sizes[new] = sizes[one] + sizes[other]
        for bin_ in range(colours.shape[1]):
            colours[new, bin_] = colours[one, bin_] + colours[other, bin_]
        for bin_ in range(textures.shape[1]):
            textures[new, bin_] = textures[one, bin_] + textures[other, bin_]
        for side in range(2):
            boxes[new, side] = min(boxes[one, side], boxes[other, side])
            boxes[new, side + 2] = max(boxes[one, side + 2], boxes[other, side + 2])
        most = stops[one] - starts[one] + stops[other] - starts[other]
        if filled + most > len(pool):
            larger = np.empty(2 * len(pool) + most, np.int32)
            larger[:filled] = pool[:filled]
            pool = larger
        if count + most > len(heap):
            more, further = np.empty(2 * len(heap) + most, np.float64), np.empty(2 * len(heap) + most, np.int64)
            more[:count] = heap[:count]
            further[:count] = ends[:count]
            heap, ends = more, further
        starts[new] = filled
        seen[new] = new
        for part in range(2):
            region = other if part else one
            for place in range(starts[region], stops[region]):
                neighbour = int(pool[place])
                while parents[neighbour] != neighbour:
                    parents[neighbour] = parents[parents[neighbour]]
                    neighbour = parents[neighbour]
                if seen[neighbour] == new:
                    continue
                seen[neighbour] = new
                pool[filled] = neighbour
                filled += 1
                heap[count] = _similarity(
                    neighbour, new, pixels, sizes, boxes, colours, textures, by_colour, by_texture, by_size, by_fill
                )
                ends[count] = neighbour * every + new
                _rise(heap, ends, count)
                count += 1
        stops[new] = filled
        new += 1
    return joined
