"""Run-length encoded masks: many masks in two flat arrays, computed on without decoding them.

The representation is that of COCO. The pixels of an (H, W) mask are read down the columns (column-major order) and
stored as the lengths of alternating runs, of which the first is background and may be 0 long. The runs of N masks lie
one after the other in `counts` (R,) uint32; mask i has ``counts[offsets[i]:offsets[i + 1]]``, `offsets` (N + 1,) int64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from everymask.errors import InputError
from everymask.ops.rle_measures import areas, boxes, flat, merge, merge_groups
from everymask.ops.rle_overlaps import overlapping_pairs, overlaps
from everymask.ops.rle_scan import encode_columns, encode_label_map, encode_rows
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
    "overlapping_pairs",
    "overlaps",
    "paint",
    "to_string",
    "to_strings",
]

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
        masks: (N, H, W), any number type; nonzero is foreground. Bool and uint8 are read without a copy if each mask is
            in C order or each is in Fortran order.

    Returns:
        `counts` (R,) uint32 and `offsets` (N + 1,) int64.

    Raises:
        InputError: The array has not three axes.
    """
    masks = np.asarray(masks)
    if masks.ndim != 3:
        raise InputError(f"masks: got shape {masks.shape}, expected (N, H, W); write mask[None] for one mask")
    if masks.dtype not in (np.bool_, np.uint8):
        masks = masks != 0
    columns = masks.transpose(0, 2, 1)
    if columns.flags.c_contiguous and not masks.flags.c_contiguous:
        return encode_columns(columns.view(np.uint8).reshape(len(masks), -1))
    return encode_rows(np.ascontiguousarray(masks).view(np.uint8))


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
    return encode_label_map(checked_label_map(ids, count), count)


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
