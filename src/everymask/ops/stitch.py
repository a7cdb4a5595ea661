"""Putting the objects of tiles into one image: label maps and run-length masks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import njit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def paste_labels(canvas: NDArray[np.int32], ids: NDArray[np.int32], score: NDArray[np.float64]) -> None:
    """Draws labels into a part of a canvas; where two objects meet, the higher score wins and the drawn one on a tie.

    Args:
        canvas: (H, W) or (D, H, W) labels, changed in place; background and void (at most 0) yield to every object.
        ids: Labels of the same shape in the numbering of the canvas, 0 where nothing is to be drawn.
        score: Score of every label of both, indexed by label - 1.
    """
    if canvas.ndim == 3:
        for plane, drawn in zip(canvas, ids, strict=True):
            _paste_labels(plane, drawn, score)
    else:
        _paste_labels(canvas, ids, score)


@njit(cache=True, nogil=True)
def _paste_labels(canvas: NDArray[np.int32], ids: NDArray[np.int32], score: NDArray[np.float64]) -> None:
    for row in range(canvas.shape[0]):
        for column in range(canvas.shape[1]):
            new = ids[row, column]
            if new <= 0:
                continue
            old = canvas[row, column]
            if old <= 0 or score[new - 1] > score[old - 1]:
                canvas[row, column] = new


def shift_runs(
    counts: NDArray[np.uint32],
    offsets: NDArray[np.int64],
    size: Sequence[int],
    frame: Sequence[int],
    origin: Sequence[int],
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Run lengths of masks of a tile as masks of the image that the tile is a part of.

    Args:
        counts: (R,) run lengths, down the columns, background first.
        offsets: (N + 1,) where the runs of each mask begin.
        size: (H, W) of the tile.
        frame: (H, W) of the image.
        origin: Row and column of the tile's first pixel in the image; the tile must lie inside the image.

    Returns:
        `counts` and `offsets` in the image.
    """
    # A run of the tile is cut at each column it crosses, so it becomes at most two runs (gap and mask) per column.
    shape, outer, start = ((int(each[0]), int(each[1])) for each in (size, frame, origin))
    made = np.empty(_room_for_runs(counts, offsets, shape[0]), np.uint32)
    ends = np.zeros(len(offsets), np.int64)
    used = _shift_runs(counts, offsets, shape[0], outer, start, made, ends)
    return made[:used].copy(), ends


@njit(cache=True, nogil=True)
def _room_for_runs(counts: NDArray[np.uint32], offsets: NDArray[np.int64], height: int) -> int:
    room = 0
    for n in range(len(offsets) - 1):
        position = np.int64(0)
        for i in range(offsets[n], offsets[n + 1]):
            length = np.int64(counts[i])
            if (i - offsets[n]) % 2 == 1 and length > 0:
                room += 2 * ((position + length - 1) // height - position // height + 1)
            position += length
        room += 1
    return int(room)


@njit(cache=True, nogil=True)
def _shift_runs(
    counts: NDArray[np.uint32],
    offsets: NDArray[np.int64],
    height: int,
    frame: tuple[int, int],
    origin: tuple[int, int],
    made: NDArray[np.uint32],
    ends: NDArray[np.int64],
) -> int:
    used = 0
    for n in range(len(offsets) - 1):
        position = np.int64(0)
        first, stop = used, np.int64(0)  # where this mask's runs begin, and the end of its last run in the image
        for i in range(offsets[n], offsets[n + 1]):
            end = position + np.int64(counts[i])
            if (i - offsets[n]) % 2 == 1:
                while position < end:
                    column, row = position // height, position % height
                    length = min(end - position, height - row)
                    begin = (column + origin[1]) * frame[0] + row + origin[0]
                    if begin == stop and used > first:
                        made[used - 1] += length  # goes on from the foot of the column before
                    else:
                        made[used] = begin - stop
                        made[used + 1] = length
                        used += 2
                    stop = begin + length
                    position += length
            position = end
        if stop < frame[0] * frame[1]:
            made[used] = frame[0] * frame[1] - stop
            used += 1
        ends[n + 1] = used
    return used
