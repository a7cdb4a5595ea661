"""Images as runs of equal pixels: numbered, painted and counted without looking at single pixels.

An image is given by `starts`, (R + 1,) int32 positions of the first pixel of each run in reading order, the last one
the number of pixels; and one value for each run.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray


def image_runs(image: NDArray[Any]) -> tuple[NDArray[np.int32], NDArray[Any]]:
    """Starts and values of the runs of an image (H, W); every row begins a run."""
    changes = np.ones(image.shape, np.bool_)
    changes[:, 1:] = image[:, 1:] != image[:, :-1]
    starts = np.flatnonzero(changes)
    return np.append(starts, image.size).astype(np.int32), image.reshape(-1)[starts]


def paint(starts: NDArray[np.int32], values: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """The image (H, W) in the number type of `values`."""
    image = np.empty(size, values.dtype)
    _paint(starts, values, image.reshape(-1))
    return image


def number_runs(
    starts: NDArray[np.int32], values: NDArray[np.int64], ids: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.int64], int | None]:
    """Numbers the segments of an image of ids.

    Args:
        starts: Of the runs.
        values: (R,) ids of the runs, 0 for void; none negative.
        ids: (N,) unique positive ids of the segments.

    Returns:
        (R,) i + 1 where the id is ``ids[i]`` and -1 where it is 0; the pixels (N,) of each segment; and an id that
        occurs but is none of `ids`, if there is one.
    """
    keys = np.concatenate([[0], ids]).astype(np.int64)
    order = np.argsort(keys)
    numbers = np.arange(len(keys), dtype=np.int32)
    numbers[0] = -1
    labels = np.empty(len(values), np.int32)
    areas = np.zeros(len(keys), np.int64)
    unknown = int(_number_runs(starts, values, keys[order], numbers[order], labels, areas))
    return labels, areas[1:], unknown if unknown >= 0 else None


def joint_runs(
    a_starts: NDArray[np.int32], a: NDArray[np.int32], b_starts: NDArray[np.int32], b: NDArray[np.int32]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of labels that meet and in how many pixels, (P,) each, sorted: `label_overlap` of two images of one size.

    Args:
        a_starts: Of the runs of the first image.
        a: Their labels, -1 or more and few: a table of all pairs is made.
        b_starts: Likewise of the second image.
        b: Likewise.
    """
    table = np.zeros((int(a.max(initial=0)) + 2, int(b.max(initial=0)) + 2), np.int64)
    _joint_runs(a_starts, a, b_starts, b, table)
    first, second = np.nonzero(table)
    return first - 1, second - 1, table[first, second]


@njit(cache=True, nogil=True)
def _paint(starts: NDArray[np.int32], values: NDArray[Any], image: NDArray[Any]) -> None:  # pragma: no cover - compiled
    for run in range(len(values)):
        value = values[run]
        # Unsigned positions: looking out for negative ones would keep the loop from filling whole registers.
        for i in range(np.uint64(starts[run]), np.uint64(starts[run + 1])):
            image[i] = value


@njit(cache=True, nogil=True)
def _number_runs(
    starts: NDArray[np.int32],
    values: NDArray[np.int64],
    keys: NDArray[np.int64],
    numbers: NDArray[np.int32],
    labels: NDArray[np.int32],
    areas: NDArray[np.int64],
) -> Any:  # pragma: no cover - compiled
    """Fills `labels` and `areas`; `keys` are sorted. Gives the first value that is no key, or -1."""
    size = 64
    while size < 4 * len(keys):
        size *= 2
    # Most values were met a moment ago: a table of the latest ones spares the search.
    recent = np.zeros(size, np.int64)
    found = np.zeros(size, np.int32)  # 0 is no number: nothing is there yet
    for run in range(len(values)):
        value = values[run]
        place = (value ^ (value >> 8) ^ (value >> 16)) & (size - 1)
        if recent[place] != value or found[place] == 0:
            at, behind = 0, len(keys)
            while behind - at > 1:
                middle = (at + behind) // 2
                if keys[middle] <= value:
                    at = middle
                else:
                    behind = middle
            if keys[at] != value:
                return value
            recent[place], found[place] = value, numbers[at]
        labels[run] = found[place]
        if found[place] > 0:
            areas[found[place]] += starts[run + 1] - starts[run]
    return np.int64(-1)


@njit(cache=True, nogil=True)
def _joint_runs(
    a_starts: NDArray[np.int32],
    a: NDArray[np.int32],
    b_starts: NDArray[np.int32],
    b: NDArray[np.int32],
    table: NDArray[np.int64],
) -> None:  # pragma: no cover - compiled
    """Adds the pixels of each pair of labels to `table`, whose first row and column are for label -1."""
    i, j = 0, 0
    at = a_starts[0]
    while i < len(a) and j < len(b):
        a_end, b_end = a_starts[i + 1], b_starts[j + 1]
        end = min(a_end, b_end)
        table[a[i] + 1, b[j] + 1] += end - at
        at = end
        i += a_end == end
        j += b_end == end
