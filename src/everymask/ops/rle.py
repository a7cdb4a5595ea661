"""Run-length encoded masks: many masks in two flat arrays, computed on without decoding them.

The representation is that of COCO. The pixels of an (H, W) mask are read down the columns (column-major order) and
stored as the lengths of alternating runs, of which the first is background and may be 0 long. The runs of N masks lie
one after the other in `counts` (R,) uint32; mask i has ``counts[offsets[i]:offsets[i + 1]]``, `offsets` (N + 1,) int64.

Arrays in memory go along the rows, so reading down the columns would miss the cache at every pixel. The kernels below
therefore read row by row within a strip of columns, look for *changes* against the row above, and sort those into
their columns: the cost is one vectorised comparison of the image with itself, plus a little for every run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from everymask.errors import InputError
from everymask.ops.rle_measures import areas, boxes, flat, grown, merge, merge_groups, overlaps
from everymask.ops.rle_strings import from_string, from_strings, to_string, to_strings

__all__ = [
    "areas",
    "boxes",
    "check",
    "decode",
    "encode",
    "encode_labels",
    "from_string",
    "from_strings",
    "merge",
    "merge_groups",
    "overlaps",
    "paint",
    "to_string",
    "to_strings",
]

# Columns scanned together. A row of a strip fills a few cache lines; must be a power of two, see `_changes`.
_STRIP_BITS = 9
_STRIP = 1 << _STRIP_BITS


# -- checks ------------------------------------------------------------------------------------------------------------


def check(counts: NDArray[Any], size: Sequence[int], offsets: NDArray[Any] | None = None) -> None:
    """Make sure that runs belong to an image of `size`.

    Args:
        counts: (R,) run lengths, of one mask or, with `offsets`, of many.
        size: (H, W).
        offsets: (N + 1,) where the runs of each mask begin; one mask when not given.

    Raises:
        InputError: The runs of a mask do not add up to H * W, or the offsets are no offsets into `counts`.
    """
    height, width = size
    ends = np.array([0, len(counts)]) if offsets is None else np.asarray(offsets)
    if len(ends) == 0 or ends[0] != 0 or ends[-1] != len(counts) or bool(np.any(np.diff(ends) < 0)):
        raise InputError(f"RLE offsets must rise from 0 to the number of runs, {len(counts)}; got {list(ends[:5])} ...")
    before = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, dtype=np.int64, out=before[1:])
    sums = before[ends[1:]] - before[ends[:-1]]
    wrong = np.flatnonzero(sums != height * width)
    if len(wrong):
        which = "" if offsets is None else f" (mask {wrong[0]} of {len(sums)})"
        raise InputError(
            f"RLE of the wrong size: its runs add up to {sums[wrong[0]]} pixels, but an image of {height} x {width} "
            f"has {height * width}{which}"
        )


# -- from and to dense arrays ------------------------------------------------------------------------------------------


def encode(masks: NDArray[Any]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Run lengths of dense masks, equal to those of `pycocotools.mask.encode`.

    Args:
        masks: (N, H, W), any number type; nonzero is foreground. C order is read without a copy if bool or uint8.

    Returns:
        `counts` (R,) uint32 and `offsets` (N + 1,) int64.

    Raises:
        InputError: The array has not three axes.
    """
    masks = np.asarray(masks)
    if masks.ndim != 3:
        raise InputError(f"masks: got shape {masks.shape}, expected (N, H, W); write mask[None] for one mask")
    if masks.dtype != np.bool_:
        masks = masks != 0
    return _encode(np.ascontiguousarray(masks).view(np.uint8))


def encode_labels(ids: NDArray[np.int32], count: int) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Run lengths of every label of a label map, found in one pass whatever their number.

    Args:
        ids: (H, W) labels; 1..`count` are encoded, 0 and negative labels are background of all.
        count: N, the number of masks. Labels that do not occur give an empty mask.

    Returns:
        `counts` (R,) uint32 and `offsets` (N + 1,) int64.

    Raises:
        InputError: The array has not two axes, or holds a label above `count`.
    """
    return _encode_labels(checked_label_map(ids, count), count)


def checked_label_map(ids: NDArray[np.int32], count: int) -> NDArray[np.int32]:
    """The label map (H, W) as a contiguous array.

    Raises:
        InputError: The array has not two axes, or holds a label above `count`.
    """
    ids = np.ascontiguousarray(ids, np.int32)
    if ids.ndim != 2:
        raise InputError(f"label map: got shape {ids.shape}, expected (H, W)")
    highest = int(ids.max(initial=0))
    if highest > count:
        raise InputError(f"label map: holds label {highest}, expected at most {count}")
    return ids


def decode(counts: NDArray[np.uint32], offsets: NDArray[np.int64], size: Sequence[int]) -> NDArray[np.bool_]:
    """Dense masks (N, H, W).

    Args:
        counts: (R,) run lengths.
        offsets: (N + 1,) where the runs of each mask begin.
        size: (H, W).

    Raises:
        InputError: The runs do not belong to that size.
    """
    counts, offsets = flat(counts, offsets)
    check(counts, size, offsets)
    height, width = size
    masks = np.zeros((len(offsets) - 1, height, width), np.uint8)
    if masks.size:
        _decode(counts, offsets, masks)
    return masks.view(np.bool_)


def paint(
    counts: NDArray[np.uint32], offsets: NDArray[np.int64], size: Sequence[int], order: NDArray[Any]
) -> tuple[NDArray[np.int32], int]:
    """Lay masks over each other into a label map.

    Args:
        counts: (R,) run lengths.
        offsets: (N + 1,) where the runs of each mask begin.
        size: (H, W).
        order: The masks to paint, from the bottom to the top: indices 0..N-1.

    Returns:
        Label map (H, W) int32, in which mask i has label i + 1, and the number of pixels covered more than once.

    Raises:
        InputError: The runs do not belong to that size, or `order` names a mask that is not there.
    """
    counts, offsets = flat(counts, offsets)
    check(counts, size, offsets)
    order = np.ascontiguousarray(order, np.int64)
    count = len(offsets) - 1
    if len(order) and (order.min() < 0 or order.max() >= count):
        raise InputError(f"order: names masks {order.min()}..{order.max()}, but there are {count} (0..{count - 1})")
    height, width = size
    ids, overlapping = _paint(counts, offsets, order, height, width)
    return ids, int(overlapping)


@njit(cache=True, nogil=True)
def _changes(
    image: NDArray[Any], above: NDArray[Any], found: NDArray[np.int64], positions: NDArray[np.int64]
) -> tuple[NDArray[np.int64], int]:  # pragma: no cover - compiled
    """Column-major positions, in order, at which the value differs from the one before (0 before the first pixel).

    `above` (W,) and `found` (>= STRIP * H,) are working memory; `positions` grows as needed.
    """
    height, width = image.shape
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
                    for x in range(block, block + 64):
                        if row[x] != before[x]:
                            per_column[x + 1] += 1
                            found[number] = y << _STRIP_BITS | x
                            number += 1
            for x in range(blocks, strip):
                if row[x] != before[x]:
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
    return positions, total


@njit(cache=True, nogil=True)
def _encode(masks: NDArray[np.uint8]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:  # pragma: no cover - compiled
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
            positions, changes = _changes(masks[n], above, found, positions)
        counts = grown(counts, end + changes + 1)
        before = 0
        for i in range(changes):
            counts[end + i] = positions[i] - before
            before = positions[i]
        counts[end + changes] = height * width - before
        end += changes + 1
        offsets[n + 1] = end
    return counts[:end].copy(), offsets


@njit(cache=True, nogil=True)
def _encode_labels(
    ids: NDArray[np.int32], count: int
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:  # pragma: no cover - compiled
    height, width = ids.shape
    pixels = height * width
    positions = np.empty(1024, np.int64)
    changes = 0
    if pixels:
        above = np.empty(width, ids.dtype)
        found = np.empty(min(_STRIP, width) * height, np.int64)
        positions, changes = _changes(ids, above, found, positions)
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


@njit(cache=True, nogil=True)
def _decode(
    counts: NDArray[np.uint32], offsets: NDArray[np.int64], masks: NDArray[np.uint8]
) -> None:  # pragma: no cover - compiled
    """Mark where columns switch between background and foreground, then spread the marks down, row by row."""
    number, height, width = masks.shape
    for n in range(number):
        mask = masks[n]
        top, bottom, left, right = height, 0, width, 0
        position = 0
        for i in range(offsets[n], offsets[n + 1]):
            start = position
            position += np.int64(counts[i])
            if (i - offsets[n]) & 1 == 0 or position == start:
                continue
            x, y = start // height, start % height
            last, below = (position - 1) // height, (position - 1) % height + 1
            left = min(left, x)
            right = last + 1
            top = min(top, y if x == last else 0)
            bottom = max(bottom, below if x == last else height)
            mask[y, x] ^= 1
            for column in range(x + 1, last + 1):
                mask[0, column] ^= 1
            if below < height:
                mask[below, last] ^= 1
        # a mark at `bottom` closes the lowest run and must go as well
        for y in range(top + 1, min(bottom + 1, height)):
            row, before = mask[y, left:right], mask[y - 1, left:right]
            for x in range(right - left):
                row[x] ^= before[x]


@njit(cache=True, nogil=True)
def _paint(
    counts: NDArray[np.uint32], offsets: NDArray[np.int64], order: NDArray[np.int64], height: int, width: int
) -> tuple[NDArray[np.int32], int]:  # pragma: no cover - compiled
    """Paint down the columns, where runs are contiguous, then turn the image to rows in blocks that stay in the cache.

    Pixels covered twice are made negative on the way, so that each is counted once.
    """
    columns = np.zeros(height * width, np.int32)
    for n in order:
        position = 0
        for i in range(offsets[n], offsets[n + 1]):
            length = np.int64(counts[i])
            if (i - offsets[n]) & 1:
                for pixel in range(position, position + length):
                    columns[pixel] = n + 1 if columns[pixel] == 0 else -(n + 1)
            position += length
    ids = np.empty((height, width), np.int32)
    overlapping = 0
    for left in range(0, width, 32):
        for top in range(0, height, 32):
            for y in range(top, min(top + 32, height)):
                for x in range(left, min(left + 32, width)):
                    label = columns[x * height + y]
                    overlapping += label < 0
                    ids[y, x] = abs(label)
    return ids, overlapping
