"""Graph-based segmentation into regions of homogeneous colour, at several scales from one sorting of the edges.

Felzenszwalb and Huttenlocher, Efficient Graph-Based Image Segmentation, IJCV 2004. The numbers and the rules for small
regions are those of scikit-image, whose results these are; the way to them is another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numba import njit

from everymask.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DIGIT = 11
"""Bits of a digit of the radix sort: three digits make the 32 bits of a key."""


def felzenszwalb(
    image: NDArray[np.floating], scales: Sequence[float], least_sizes: Sequence[int], sigma: float = 0.8
) -> list[NDArray[np.int32]]:
    """Regions whose inner differences are small compared with those to their neighbours, for each scale.

    Two regions are joined across an edge of the graph of pixels and their eight neighbours, from the smallest colour
    difference w on, if w is below the largest edge that either was joined by plus ``scale / 255 / size`` (eq. 3 and 4
    of the paper); then regions below the least size are joined to their most similar neighbour.

    Args:
        image: (H, W) or (H, W, C), values between 0 and 1; distances of colours are Euclidean.
        scales: k of the paper, for values between 0 and 255: the larger, the larger the regions.
        least_sizes: Pixels of a region at least, for each of the scales.
        sigma: Standard deviation in pixels of the Gaussian that the image is smoothed by before; 0 for none.

    Returns:
        For each scale labels (H, W), 0..n-1 in the order of their first pixels.

    Raises:
        InputError: The shape is another one or has no pixels, or there are not as many scales as sizes.
    """
    if image.ndim not in (2, 3) or 0 in image.shape or len(scales) != len(least_sizes):
        raise InputError(
            f"expected an image (H, W) or (H, W, C) and a least size for each scale, got {image.shape}, {len(scales)} "
            f"scales and {len(least_sizes)} sizes"
        )
    pixels = np.ascontiguousarray(image, np.float32).reshape(*image.shape[:2], -1)
    height, width = pixels.shape[:2]
    if height * width > 2**29:
        raise InputError(f"an image of {height} x {width} pixels has too many edges; reduce it")
    if sigma > 0:
        from scipy import ndimage

        pixels = ndimage.gaussian_filter(pixels, (sigma, sigma, 0))
    edges, costs = _sorted(*_edges(pixels))
    return [
        _segment(edges, costs, height, width, scale / 255, size)
        for scale, size in zip(scales, least_sizes, strict=True)
    ]


@njit(cache=True, nogil=True, error_model="numpy")
def _edges(pixels: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.uint32]]:  # pragma: no cover - compiled
    """The edges of the graph: four times the first pixel plus the direction, and the bits of their costs."""
    height, width, channels = pixels.shape
    number = 4 * height * width - 3 * (height + width) + 2
    edges, costs = np.empty(number, np.int32), np.empty(number, np.float32)
    found = 0
    # Down, right, down and right, up and right.
    for direction in range(4):
        dx = min(direction, 1)
        dy = (1 - direction) if direction < 2 else 5 - 2 * direction
        for y in range(max(0, -dy), height - max(0, dy)):
            for x in range(width - dx):
                total = 0.0
                for channel in range(channels):
                    step = np.float64(pixels[y, x, channel]) - pixels[y + dy, x + dx, channel]
                    total += step * step
                edges[found] = 4 * (y * width + x) + direction
                costs[found] = np.sqrt(total)
                found += 1
    return edges, costs.view(np.uint32)


@njit(cache=True, nogil=True, error_model="numpy")
def _sorted(
    edges: NDArray[np.int32], keys: NDArray[np.uint32]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:  # pragma: no cover - compiled
    """Edges and costs by rising costs, equal ones in their order: a radix sort of the bits of positive floats."""
    number, mask = len(keys), np.uint32(2**_DIGIT - 1)
    other_edges, other_keys = np.empty_like(edges), np.empty_like(keys)
    for shift in range(0, 32, _DIGIT):
        starts = np.zeros(2**_DIGIT, np.int64)
        for index in range(number):
            starts[(keys[index] >> np.uint32(shift)) & mask] += 1
        total = 0
        for digit in range(len(starts)):
            count = starts[digit]
            starts[digit] = total
            total += count
        for index in range(number):
            digit = (keys[index] >> np.uint32(shift)) & mask
            place = starts[digit]
            starts[digit] = place + 1
            other_keys[place] = keys[index]
            other_edges[place] = edges[index]
        edges, other_edges = other_edges, edges
        keys, other_keys = other_keys, keys
    return edges, keys.view(np.float32)


@njit(cache=True, nogil=True, error_model="numpy")
def _root(parents: NDArray[np.int32], pixel: int) -> int:  # pragma: no cover - compiled
    while parents[pixel] != pixel:
        parents[pixel] = parents[parents[pixel]]
        pixel = parents[pixel]
    return pixel


@njit(cache=True, nogil=True, error_model="numpy")
def _join(
    parents: NDArray[np.int32], sizes: NDArray[np.int32], first: int, second: int
) -> int:  # pragma: no cover - compiled
    """Makes one region of those with two roots, and returns its root: the larger one's, so that trees stay low."""
    if sizes[first] < sizes[second]:
        first, second = second, first
    parents[second] = first
    sizes[first] += sizes[second]
    return first


@njit(cache=True, nogil=True, error_model="numpy")
def _segment(
    edges: NDArray[np.int32],
    costs: NDArray[np.float32],
    height: int,
    width: int,
    scale: float,
    least_size: int,
) -> NDArray[np.int32]:  # pragma: no cover - compiled
    """Labels of one scale."""
    offsets = (width, 1, width + 1, 1 - width)
    parents = np.arange(height * width).astype(np.int32)
    sizes = np.ones(height * width, np.int32)
    # The cost up to which a region is joined with others.
    limits = np.full(height * width, scale, np.float64)
    left = np.empty_like(edges)
    number = 0
    for index in range(len(edges)):
        pixel = edges[index] >> 2
        first = _root(parents, pixel)
        second = _root(parents, pixel + offsets[edges[index] & 3])
        if first == second:
            continue
        if costs[index] < limits[first] and costs[index] < limits[second]:
            joined = _join(parents, sizes, first, second)
            limits[joined] = costs[index] + scale / sizes[joined]
        else:
            left[number] = edges[index]
            number += 1
    for index in range(number):
        pixel = left[index] >> 2
        first = _root(parents, pixel)
        second = _root(parents, pixel + offsets[left[index] & 3])
        if first != second and (sizes[first] < least_size or sizes[second] < least_size):
            _join(parents, sizes, first, second)
    labels, names, number = np.empty(height * width, np.int32), np.full(height * width, -1, np.int32), 0
    for pixel in range(height * width):
        root = _root(parents, pixel)
        if names[root] < 0:
            names[root] = number
            number += 1
        labels[pixel] = names[root]
    return labels.reshape(height, width)
