"""From pixels to run lengths: the compiled side of `everymask.ops.rle.encode` and `encode_labels`.

Arrays in memory go along the rows, so reading down the columns would miss the cache at every pixel. The kernels below
therefore read row by row within a strip of columns, look for *changes* against the row above, and sort those into
their columns: the cost is one vectorised comparison of the image with itself, plus a little for every run. Masks that
do lie in memory column by column are compared with themselves one pixel on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from everymask.ops.rle_measures import grown

# Columns scanned together. A row of a strip fills a few cache lines; must be a power of two, see `_changes`.
_STRIP_BITS = 9
_STRIP = 1 << _STRIP_BITS


@njit(cache=True, nogil=True)
def _changes(
    image: NDArray[Any], above: NDArray[Any], found: NDArray[np.int64], positions: NDArray[np.int64]
) -> tuple[NDArray[np.int64], int, bool]:  # pragma: no cover - compiled
    """Column-major positions, in order, at which the value differs from the one before (0 before the first pixel).

    `above` (W,) and `found` (>= STRIP * H,) are working memory; `positions` grows as needed. Also tells whether all
    values are 0 or 1, which is seen for nothing, since every value begins at a change.
    """
    height, width = image.shape
    seen = image.dtype.type(0)
    # The pixel before the top of a column is the bottom of the column to the left.
    above[0] = 0
    for x in range(1, width):
        above[x] = image[height - 1, x - 1]
    total = 0
    per_column = np.empty(_STRIP + 1, np.int64)
    for left in range(0, width, _STRIP):
        strip = min(_STRIP, width - left)
        blocks = strip >> 6 << 6
        per_column[:] = 0
        number = 0
        for y in range(height):
            row = image[y, left : left + strip]
            before = image[y - 1, left : left + strip] if y else above[left : left + strip]
            for block in range(0, blocks, 64):
                # unsigned indices and the narrow type let this loop become a few vector operations
                difference = image.dtype.type(0)
                for x in range(np.uint64(block), np.uint64(block + 64)):
                    difference = image.dtype.type(difference | image.dtype.type(row[x] ^ before[x]))
                if difference:
                    # Written always and kept only if it counts: a branch that can hardly be foretold costs far more.
                    for x in range(block, block + 64):
                        found[number] = y << _STRIP_BITS | x
                        changed = row[x] != before[x]
                        per_column[x + 1] += changed
                        number += changed
                        seen |= row[x]
            for x in range(blocks, strip):
                if row[x] != before[x]:
                    seen |= row[x]
                    per_column[x + 1] += 1
                    found[number] = y << _STRIP_BITS | x
                    number += 1
        # A counting sort by column; it is stable, so that rows stay in order.
        positions = grown(positions, total + number)
        per_column[0] = total
        for x in range(strip):
            per_column[x + 1] += per_column[x]
        for i in range(number):
            x = found[i] & (_STRIP - 1)
            positions[per_column[x]] = (left + x) * height + (found[i] >> _STRIP_BITS)
            per_column[x] += 1
        total += number
    return positions, total, seen < 2


@njit(cache=True, nogil=True)
def _append_runs(
    counts: NDArray[np.uint32], end: int, positions: NDArray[np.int64], changes: int, pixels: int
) -> tuple[NDArray[np.uint32], int]:  # pragma: no cover - compiled
    """The runs between the first `changes` positions, and their end."""
    counts = grown(counts, end + changes + 1)
    before = 0
    for i in range(changes):
        counts[end + i] = positions[i] - before
        before = positions[i]
    counts[end + changes] = pixels - before
    return counts, end + changes + 1


@njit(cache=True, nogil=True)
def _changes_along(
    pixels: NDArray[np.uint8], positions: NDArray[np.int64]
) -> tuple[NDArray[np.int64], int, bool]:  # pragma: no cover - compiled
    """As `_changes`, of pixels (P,) that lie in column-major order already."""
    total = 0
    value = seen = np.uint8(0)
    # Unsigned indices again; a block is entered for each change only, so its branches are mostly foretold.
    for block in range(np.uint64(0), np.uint64(len(pixels)), np.uint64(64)):
        last = min(block + np.uint64(64), np.uint64(len(pixels)))
        if block and last == block + np.uint64(64):
            difference = np.uint8(0)
            for i in range(block, block + np.uint64(64)):
                difference = np.uint8(difference | np.uint8(pixels[i] ^ pixels[i - np.uint64(1)]))
            if difference == 0:
                continue
        positions = grown(positions, total + 64)
        for i in range(block, last):
            if pixels[i] != value:
                value = pixels[i]
                seen |= value
                positions[total] = i
                total += 1
    return positions, total, bool(seen < 2)


@njit(cache=True, nogil=True)
def encode_columns(
    masks: NDArray[np.uint8],
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:  # pragma: no cover - compiled
    """Run lengths of masks (N, W * H), the columns of each one after the other; nonzero is foreground."""
    number, pixels = masks.shape
    offsets = np.zeros(number + 1, np.int64)
    counts = np.empty(64 * number + 1, np.uint32)
    positions = np.empty(1024, np.int64)
    end = 0
    for n in range(number):
        changes = 0
        if pixels:
            positions, changes, binary = _changes_along(masks[n], positions)
            if not binary:
                positions, changes, binary = _changes_along((masks[n] != 0).view(np.uint8), positions)
        counts, end = _append_runs(counts, end, positions, changes, pixels)
        offsets[n + 1] = end
    return counts[:end].copy(), offsets


@njit(cache=True, nogil=True)
def encode_rows(
    masks: NDArray[np.uint8],
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:  # pragma: no cover - compiled
    """Run lengths of masks (N, H, W), the rows of each one after the other; nonzero is foreground."""
    number, height, width = masks.shape
    offsets = np.zeros(number + 1, np.int64)
    counts = np.empty(64 * number + 1, np.uint32)
    above = np.empty(width, masks.dtype)
    found = np.empty(min(_STRIP, width) * height, np.int64)
    positions = np.empty(1024, np.int64)
    end = 0
    for n in range(number):
        changes = 0
        if height * width:
            positions, changes, binary = _changes(masks[n], above, found, positions)
            if not binary:
                ones = (masks[n] != 0).view(np.uint8)
                positions, changes, binary = _changes(ones, above, found, positions)
        counts, end = _append_runs(counts, end, positions, changes, height * width)
        offsets[n + 1] = end
    return counts[:end].copy(), offsets


@njit(cache=True, nogil=True)
def encode_label_map(
    ids: NDArray[np.int32], count: int
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:  # pragma: no cover - compiled
    """Run lengths of the labels 1..`count` of a map (H, W)."""
    height, width = ids.shape
    pixels = height * width
    positions = np.empty(1024, np.int64)
    changes = 0
    if pixels:
        above = np.empty(width, ids.dtype)
        found = np.empty(min(_STRIP, width) * height, np.int64)
        positions, changes, _ = _changes(ids, above, found, positions)
    # Two walks over the runs of the image: one to know how many each label gets, one to write them.
    offsets = np.zeros(count + 1, np.int64)
    ends = np.zeros(count + 1, np.int64)
    labels = np.empty(changes, np.int32)
    for i in range(changes):
        label = ids[positions[i] % height, positions[i] // height]
        labels[i] = label
        if label > 0:
            offsets[label] += 2
            ends[label] = positions[i + 1] if i + 1 < changes else pixels
    for label in range(1, count + 1):
        if ends[label] < pixels or pixels == 0:
            offsets[label] += 1
        offsets[label] += offsets[label - 1]
    counts = np.empty(offsets[count], np.uint32)
    ends[:] = 0
    cursor = offsets[:count].copy()
    for i in range(changes):
        label = labels[i]
        if label > 0:
            start = positions[i]
            end = positions[i + 1] if i + 1 < changes else pixels
            at = cursor[label - 1]
            counts[at] = start - ends[label]
            counts[at + 1] = end - start
            cursor[label - 1] = at + 2
            ends[label] = end
    for label in range(1, count + 1):
        if cursor[label - 1] < offsets[label]:
            counts[cursor[label - 1]] = pixels - ends[label]
    return counts, offsets
