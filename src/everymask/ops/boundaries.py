"""Bands along the inner side of boundaries, and how many pixels of two contours lie near each other.

*Bands* (Cheng et al. 2021, "Boundary IoU", section 4; the authors' `mask_to_boundary`): the pixels of a mask within d
steps of a pixel outside it, a step going to any of the 8 neighbours and everything beyond the image being outside. That
is the mask less its erosion, d times over, by a square of 3 x 3.

*Contours* (Perazzi et al. 2016, DAVIS; the `seg2bmap` of the Berkeley benchmark): the pixels that differ from a
neighbour to the right, below, or diagonally between the two. The border of the image is no contour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from everymask.errors import InputError
from everymask.ops.rle_measures import boxes, flat, grown


def boundary_width(size: Sequence[int], ratio: float = 0.02) -> int:
    """Width of the band of boundary IoU: a share of the diagonal of the image, rounded, and at least 1 pixel.

    Args:
        size: (H, W).
        ratio: The share, above 0.
    """
    return max(1, round(ratio * math.sqrt(size[0] ** 2 + size[1] ** 2)))


def contour_tolerance(size: Sequence[int], tolerance: float = 0.008) -> float:
    """How far apart, in pixels, contours may lie that count as one.

    Args:
        size: (H, W).
        tolerance: Below 1 a share of the diagonal of the image, rounded up to a pixel; from 1 on pixels.
    """
    return tolerance if tolerance >= 1 else float(math.ceil(tolerance * math.sqrt(size[0] ** 2 + size[1] ** 2)))


# -- bands -------------------------------------------------------------------------------------------------------------


def mask_boundaries(
    counts: NDArray[np.uint32],
    offsets: NDArray[np.int64],
    size: Sequence[int],
    width: int,
    masks: NDArray[Any] | None = None,
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """The bands of run-length masks, computed within the box of each, as run-length masks.

    With `everymask.ops.rle.overlaps` and `areas` of the bands follow their intersections and unions: boundary IoU.

    Args:
        counts: (R,) run lengths of N masks.
        offsets: (N + 1,) where the runs of each mask begin.
        size: (H, W).
        width: Pixels, as `boundary_width` gives them.
        masks: (M,) numbers of the masks that are wanted, in that order; all if not given.

    Returns:
        `counts` and `offsets` of N masks, or of M.

    Raises:
        InputError: The width is not at least 1.
    """
    _check_width(width)
    counts, offsets = flat(counts, offsets)
    corners = boxes(counts, offsets, size)
    chosen = np.arange(len(offsets) - 1) if masks is None else np.ascontiguousarray(masks, np.int64)
    return _mask_boundaries(counts, offsets, corners, size[0], size[0] * size[1], width, chosen)


def label_boundaries(ids: NDArray[np.integer], width: int) -> NDArray[np.bool_]:
    """The bands of all labels of a map at once, background and void included.

    Args:
        ids: (H, W) integers.
        width: Pixels, as `boundary_width` gives them.

    Returns:
        (H, W), True where a pixel is within the band of its own label.

    Raises:
        InputError: The array has not two axes, or the width is not at least 1.
    """
    if ids.ndim != 2:
        raise InputError(f"label map: got shape {ids.shape}, expected (H, W)")
    _check_width(width)
    return _label_boundaries(np.ascontiguousarray(ids, np.int32), width).view(np.bool_)


def band_overlaps(
    truth: NDArray[np.integer], prediction: NDArray[np.integer], classes: int, width: int
) -> NDArray[np.int64]:
    """Pixels of the bands of each class in two maps, and of what they share: boundary IoU.

    Args:
        truth: (H, W) classes 0..K-1; other values are no class.
        prediction: (H, W) likewise.
        classes: K.
        width: Pixels, as `boundary_width` gives them.

    Returns:
        (K, 3) pixels that both bands share, of the band in the truth, and of that in the prediction.

    Raises:
        InputError: The shapes differ or have not two axes, or the width is not at least 1.
    """
    first, second = _class_maps(truth, prediction)
    _check_width(width)
    return _band_overlaps(first, second, _label_boundaries(first, width), _label_boundaries(second, width), classes)


def _class_maps(
    truth: NDArray[np.integer], prediction: NDArray[np.integer]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    if truth.ndim != 2 or truth.shape != prediction.shape:
        raise InputError(f"class maps: got shapes {truth.shape} and {prediction.shape}, expected one (H, W)")
    return np.ascontiguousarray(truth, np.int32), np.ascontiguousarray(prediction, np.int32)


def _check_width(width: int) -> None:
    if width < 1:
        raise InputError(f"width of a boundary: got {width}, expected at least 1 pixel")


@njit(cache=True, nogil=True)
def _mask_boundaries(
    counts: NDArray[np.uint32],
    offsets: NDArray[np.int64],
    corners: NDArray[np.int64],
    height: int,
    pixels: int,
    width: int,
    masks: NDArray[np.int64],
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:  # pragma: no cover - compiled
    result = np.empty(len(counts) + 64, np.uint32)
    result_offsets = np.zeros(len(masks) + 1, np.int64)
    end = 0
    for k in range(len(masks)):
        n = masks[k]
        left, top, right, bottom = corners[n]
        result = grown(result, end + offsets[n + 1] - offsets[n])
        if min(right - left, bottom - top) <= 2 * width:
            for i in range(offsets[n], offsets[n + 1]):  # no interior: the band is the mask
                result[end] = counts[i]
                end += 1
            result_offsets[k + 1] = end
            continue
        mask = np.zeros((right - left, bottom - top), np.uint8)
        # Pixels whose neighbours up to `width` above and below all belong to the mask.
        tall = np.zeros((right - left, bottom - top), np.uint8)
        x, y = 0, 0
        for i in range(offsets[n], offsets[n + 1]):
            length = np.int64(counts[i])
            if (i - offsets[n]) & 1 == 0:
                y += length
                x += y // height
                y %= height
                continue
            while length:
                stop = min(y + length, height)
                mask[x - left, y - top : stop - top] = 1
                if stop - y > 2 * width:
                    tall[x - left, y - top + width : stop - top - width] = 1
                length -= stop - y
                y = stop
                if y == height:
                    x, y = x + 1, 0
        # Of those, the ones with `width` such columns to the left and to the right are the interior.
        columns = np.zeros(bottom - top, np.int32)
        for column in range(right - left):
            row = tall[column]
            for y in range(np.uint64(bottom - top)):
                columns[y] = (columns[y] + 1) * np.int32(row[y])
            if column >= 2 * width:
                inner = mask[column - width]
                for y in range(np.uint64(bottom - top)):
                    inner[y] &= np.uint8(columns[y] <= 2 * width)
        before, value = 0, np.uint8(0)
        for column in range(right - left):
            band = mask[column]
            first = (left + column) * height + top
            result = grown(result, end + bottom - top + 2)
            for y in range(np.uint64(bottom - top)):
                if band[y] != value:
                    position = first + np.int64(y)
                    result[end] = position - before
                    end += 1
                    before, value = position, band[y]
            # The band goes on in the next column only from the bottom of the image to its top.
            if value and (bottom - top < height or column == right - left - 1):
                result[end] = first + bottom - top - before
                end += 1
                before, value = first + bottom - top, np.uint8(0)
        if before < pixels:
            result[end] = pixels - before
            end += 1
        result_offsets[k + 1] = end
    return result[:end].copy(), result_offsets


@njit(cache=True, nogil=True)
def _label_boundaries(ids: NDArray[np.int32], width: int) -> NDArray[np.uint8]:  # pragma: no cover - compiled
    height, length = ids.shape
    result = np.ones((height, length), np.uint8)
    wide = np.empty(length, np.uint8)  # whether the pixels up to `width` to the left and right have the same label
    rows = np.zeros(length, np.int32)  # for how many rows up to this one that holds, with the same label throughout
    for y in range(height):
        row = ids[y]
        wide[:] = 0
        begin = 0
        for x in range(1, length + 1):
            if x == length or row[x] != row[begin]:
                if x - begin > 2 * width:
                    wide[begin + width : x - width] = 1
                begin = x
        above = ids[max(y - 1, 0)]
        for x in range(np.uint64(length)):
            rows[x] = (rows[x] * np.int32(row[x] == above[x]) + 1) * np.int32(wide[x])
        if y >= 2 * width:
            inner = result[y - width]
            for x in range(np.uint64(length)):
                inner[x] = rows[x] <= 2 * width
    return result


@njit(cache=True, nogil=True)
def _band_overlaps(
    truth: NDArray[np.int32],
    prediction: NDArray[np.int32],
    true_band: NDArray[np.uint8],
    band: NDArray[np.uint8],
    classes: int,
) -> NDArray[np.int64]:  # pragma: no cover - compiled
    counts = np.zeros((classes, 3), np.int64)
    for y in range(truth.shape[0]):
        for x in range(truth.shape[1]):
            if true_band[y, x] | band[y, x] == 0:
                continue
            first, second = truth[y, x], prediction[y, x]
            if true_band[y, x] and 0 <= first < classes:
                counts[first, 1] += 1
                if band[y, x] and first == second:
                    counts[first, 0] += 1
            if band[y, x] and 0 <= second < classes:
                counts[second, 2] += 1
    return counts


# -- contours ----------------------------------------------------------------------------------------------------------


def contour_matches(
    truth: NDArray[np.integer], prediction: NDArray[np.integer], classes: int, tolerance: float
) -> NDArray[np.int64]:
    """How many pixels of each class's contour lie near that of the same class in another map.

    Args:
        truth: (H, W) classes 0..K-1; other values are no class.
        prediction: (H, W) likewise.
        classes: K.
        tolerance: Distance in pixels up to which contours match, as `contour_tolerance` gives it.

    Returns:
        (K, 4) contour pixels of the truth, how many of them the prediction matches, contour pixels of the prediction,
        and how many of them the truth matches. Recall and precision of the boundary follow.

    Raises:
        InputError: The shapes differ or have not two axes.
    """
    height = truth.shape[0]
    first, second = (_contours(each, classes) for each in _class_maps(truth, prediction))
    counts = np.zeros((classes, 4), np.int64)
    for column, (points, others) in enumerate(((first, second), (second, first))):
        counts[:, 2 * column] = np.diff(points[1][::height])
        counts[:, 2 * column + 1] = _near(*points, *others, height, classes, float(tolerance))
    return counts


@njit(cache=True, nogil=True)
def _contours(
    ids: NDArray[np.int32], classes: int
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:  # pragma: no cover - compiled
    """Columns of contour pixels ordered by class, row and column, and (K * H + 1,) where each class and row begins."""
    height, width = ids.shape
    starts = np.zeros(classes * height + 2, np.int64)
    points = np.empty(0, np.int32)
    corner = np.empty(4, np.int32)
    for writing in (False, True):
        if writing:
            for i in range(len(starts) - 1):
                starts[i + 1] += starts[i]
            points = np.empty(starts[-1], np.int32)
        for y in range(height):
            below = ids[min(y + 1, height - 1)]
            row = ids[y]
            for x in range(width):
                right = min(x + 1, width - 1)
                own = row[x]
                if own == row[right] and own == below[x] and own == below[right]:
                    continue
                corner[0], corner[1], corner[2], corner[3] = own, row[right], below[x], below[right]
                for i in range(4):
                    label = corner[i]
                    if label < 0 or label >= classes:
                        continue
                    known = False
                    for j in range(i):
                        known |= corner[j] == label
                    if known:
                        continue
                    # Counting puts a class and row two places on, writing one: so it ends up in its own place.
                    place = label * height + y
                    if writing:
                        points[starts[place + 1]] = x
                        starts[place + 1] += 1
                    else:
                        starts[place + 2] += 1
    return points, starts[: classes * height + 1]


@njit(cache=True, nogil=True)
def _near(
    points: NDArray[np.int32],
    starts: NDArray[np.int64],
    others: NDArray[np.int32],
    other_starts: NDArray[np.int64],
    height: int,
    classes: int,
    tolerance: float,
) -> NDArray[np.int64]:  # pragma: no cover - compiled
    """(K,) how many points have another of their class within the tolerance; the nearest rows are searched first."""
    result = np.zeros(classes, np.int64)
    reach = int(tolerance)
    halves = np.empty(reach + 1, np.int64)
    for dy in range(reach + 1):
        halves[dy] = int(math.sqrt(tolerance * tolerance - dy * dy))
    for k in range(classes):
        if other_starts[k * height] == other_starts[(k + 1) * height]:
            continue
        for y in range(height):
            for i in range(starts[k * height + y], starts[k * height + y + 1]):
                x = points[i]
                found = False
                for step in range(2 * reach + 1):
                    dy = (step + 1) // 2
                    row = y + dy if step & 1 else y - dy
                    if row < 0 or row >= height:
                        continue
                    low, high = other_starts[k * height + row], other_starts[k * height + row + 1]
                    last = high
                    while low < high:
                        middle = (low + high) // 2
                        if others[middle] >= x - halves[dy]:
                            high = middle
                        else:
                            low = middle + 1
                    if low < last and others[low] <= x + halves[dy]:
                        found = True
                        break
                result[k] += found
    return result
