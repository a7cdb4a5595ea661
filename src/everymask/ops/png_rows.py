"""The filtered rows of a PNG as runs of equal pixels, without ever filling an image.

Written from the PNG specification, third edition (W3C, 2025), section 9: each row is stored as the difference to a
prediction from the pixels to the left, above and in the corner between them. In a label image nearly all differences
are zero. Between the places where one is not, or where the row above changes, all rules predict what the pixel before
had, so that a row costs a few steps instead of one for each of its pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray


def png_runs(
    places: NDArray[np.int32], differences: NDArray[np.uint8], height: int, width: int, step: int
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The runs of the rows of a PNG without interlacing.

    Args:
        places: (M,) where the bytes of the rows, each after the number of its filter, are not zero.
        differences: (M,) the bytes there.
        height: Rows.
        width: Columns.
        step: Bytes of a pixel, 1 to 4.

    Returns:
        (R + 1,) positions of the first pixel of each run in reading order, the last one the number of pixels; and (R,)
        bytes of its pixels, the first one lowest: R + 256 G + 256^2 B of colours. Every row begins a run.

    Raises:
        ValueError: A row has an unknown filter.
    """
    starts, values, used = _png_runs(places, differences, height, width, step)
    if used < 0:
        raise ValueError(f"unknown row filter {-used}")
    return starts[1 : used + 1], values[1:used]


@njit(cache=True, nogil=True)
def _sum(pixel: Any, difference: Any) -> Any:  # pragma: no cover - compiled
    """Adds byte by byte, without a carry from one to the next."""
    return ((pixel & 0x7F7F7F7F) + (difference & 0x7F7F7F7F)) ^ ((pixel ^ difference) & 0x80808080)


@njit(cache=True, nogil=True)
def _average(left: Any, above: Any) -> Any:  # pragma: no cover - compiled
    """The mean of two pixels, byte by byte, rounded down."""
    return (left & above) + (((left ^ above) & 0xFEFEFEFE) >> 1)


@njit(cache=True, nogil=True)
def _paeth(left: Any, above: Any, corner: Any) -> Any:  # pragma: no cover - compiled
    """Of the bytes of three pixels, the ones closest to left + above - corner (section 9.4)."""
    if above == corner:
        return left
    if left == corner:
        return above
    chosen = np.int64(0)
    for shift in range(0, 32, 8):
        a, b, c = (left >> shift) & 255, (above >> shift) & 255, (corner >> shift) & 255
        to_left, to_above, to_corner = abs(b - c), abs(a - c), abs(a + b - 2 * c)
        if to_left <= to_above and to_left <= to_corner:
            nearest = a
        elif to_above <= to_corner:
            nearest = b
        else:
            nearest = c
        chosen |= nearest << shift
    return chosen


@njit(cache=True, nogil=True)
def _png_runs(
    places: NDArray[np.int32], differences: NDArray[np.uint8], height: Any, width: Any, step: Any
) -> Any:  # pragma: no cover - compiled
    """Starts and values of the runs, after one of zeros that stands for the row above the first; and their number.

    The start behind the last run is the number of pixels. An unknown filter gives its negative instead of the number.
    """
    capacity = 1024 + 16 * height + 2 * width
    starts = np.empty(capacity, np.int32)
    values = np.empty(capacity, np.int64)
    starts[0], values[0] = -width, 0
    above_first, used = 0, 1
    entry, entries = 0, len(places)
    for y in range(height):
        if used + width + 1 > capacity:
            capacity = 2 * capacity + width
            more_starts, more_values = np.empty(capacity, np.int32), np.empty(capacity, np.int64)
            for i in range(used):  # slices would double the time that this function takes to compile
                more_starts[i], more_values[i] = starts[i], values[i]
            starts, values = more_starts, more_values
        row = y * (1 + width * step)
        method = 0
        if entry < entries and places[entry] == row:
            method = np.int64(differences[entry])
            entry += 1
            if method > 4:
                return starts, values, -method
        row += 1
        first = used
        to_above = (y - 1) * width
        run = above_first
        left = np.int64(0)
        x = 0
        while x < width:
            # The difference of this pixel, and the next pixel with one that is not zero.
            difference = np.int64(0)
            pixel = row + x * step
            while entry < entries and places[entry] < pixel + step:
                difference |= np.int64(differences[entry]) << (8 * (places[entry] - pixel))
                entry += 1
            following = width
            if entry < entries and places[entry] < row + width * step:
                following = (places[entry] - row) // step
            # `steady`: as long as there is no difference and the row above stays the same, the value does, too.
            if method == 0:
                value = difference
                steady = value == 0
            elif method == 1:
                value = _sum(left, difference)
                steady = True
            else:
                while run + 1 < first and starts[run + 1] - to_above <= x:
                    run += 1
                above = values[run]
                if method == 2:
                    value = _sum(above, difference)
                    steady = difference == 0
                elif method == 3:
                    value = _sum(_average(left, above), difference)
                    steady = value == _average(value, above)
                else:
                    corner = np.int64(0)
                    if x > 0:
                        corner = values[run - 1] if starts[run] - to_above == x else above
                    value = _sum(_paeth(left, above, corner), difference)
                    steady = True
                if run + 1 < first:
                    following = min(following, starts[run + 1] - to_above)
            if value != left or x == 0:
                starts[used], values[used] = y * width + x, value
                used += 1
                left = value
            x = following if steady else x + 1
        above_first = first
    starts[used] = height * width
    return starts, values, used
