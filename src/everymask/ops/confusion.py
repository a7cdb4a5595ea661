"""Counting pairs of values of two images: the confusion matrices of semantic segmentation.

Neighbouring pixels mostly agree in both images, so the kernels look at 8 bytes of each at once (8 pixels of a class
map, 2 of a label map): as long as these are what they were before, only a counter grows. Where they are not, each
pixel is counted by itself, into tables taken in turns, because adding to the same place twice in a row makes the
processor wait.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from everymask.errors import InputError

_TABLES = ((2**12, 4), (2**16, 2))
"""Entries of a table, and how many tables of that size at most are worth clearing and adding up; above, one."""


def confusion_matrix(truth: NDArray[Any], prediction: NDArray[Any], classes: int) -> NDArray[np.int64]:
    """Pixels of each pair of true and predicted class.

    Args:
        truth: Class indices 0..K-1, any shape; any other value is void, which is ignored. Fastest as uint8.
        prediction: Class indices of the same shape; any other value is void.
        classes: The number of classes K.

    Returns:
        (K, K + 1): rows are true classes, columns predicted ones; the last column is void, that is a false negative.

    Raises:
        InputError: The shapes differ or an array is not integer.
    """
    indices = np.concatenate([[classes], np.arange(classes)])
    return count_pairs(truth, prediction, indices, indices, (classes + 1, classes + 1))[:-1]


def count_pairs(
    truth: NDArray[Any],
    prediction: NDArray[Any],
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    shape: tuple[int, int],
) -> NDArray[np.int64]:
    """Pixels of each pair of true and predicted value, the values renumbered on the way.

    Args:
        truth: Integers of any shape. uint8 is fastest, int32 comes next, anything else is converted.
        prediction: Integers of the same shape.
        rows: (V + 2,) row of each value of the truth: that of value v is ``rows[v + 1]``, that of any value outside
            0..V is ``rows[0]``. So a label map has void first, then background, then its segments.
        columns: Likewise, the column of each value of the prediction.
        shape: (R, C) of the result.

    Returns:
        (R, C) pixels.

    Raises:
        InputError: The shapes differ or an array is not integer.
    """
    if truth.shape != prediction.shape or {truth.dtype.kind, prediction.dtype.kind} - {"u", "i"}:
        raise InputError(
            f"class maps: got {truth.dtype} of shape {truth.shape} and {prediction.dtype} of shape {prediction.shape}, "
            "expected integers of one shape; take the argmax of network outputs first"
        )
    size = shape[0] * shape[1]
    tables = np.zeros((next((count for most, count in _TABLES if size <= most), 1), size), np.int64)
    places = (np.asarray(rows) * shape[1]).astype(np.uint32), np.asarray(columns).astype(np.uint32)
    if truth.dtype == prediction.dtype == np.uint8:
        true, predicted = _aligned(truth, np.uint8), _aligned(prediction, np.uint8)
        row_of, column_of = _of_bytes(places[0]), _of_bytes(places[1])
        whole = true.size // 8 * 8
        _count_bytes(true[:whole].view(np.uint64), predicted[:whole].view(np.uint64), row_of, column_of, tables)
        rest = row_of[true[whole:]] + column_of[predicted[whole:]]
    else:
        true, predicted = _listed(truth, len(rows) - 2), _listed(prediction, len(columns) - 2)
        whole = true.size // 2 * 2
        _count_labels(true[:whole].view(np.uint64), predicted[:whole].view(np.uint64), *places, tables)
        last = (_place(true[whole:], places[0]), _place(predicted[whole:], places[1]))
        rest = last[0] + last[1]
    np.add.at(tables[0], rest, 1)
    return tables.sum(axis=0).reshape(shape)


def _place(values: NDArray[np.int32], index: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """The entries of `index` for some values."""
    return index[np.where((values >= 0) & (values < len(index) - 1), values + 1, 0)]


def _aligned(image: NDArray[Any], kind: Any) -> NDArray[Any]:
    """`image` in one row of the number type `kind`, where 8 bytes can be read at once; copied only if need be."""
    flat = np.ascontiguousarray(image, kind).reshape(-1)
    return flat if flat.ctypes.data % 8 == 0 else flat.copy()


def _of_bytes(index: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """(256,) entries of `index` by value."""
    table = np.full(256, index[0], np.uint32)
    listed = index[1:257]
    table[: len(listed)] = listed
    return table


def _listed(image: NDArray[Any], highest: int) -> NDArray[np.int32]:
    """`image` in one row of int32; of wider types, with -1 for whatever is outside 0..highest."""
    if not np.can_cast(image.dtype, np.int32):
        image = np.where((image >= 0) & (image <= highest), image, -1)
    return _aligned(image, np.int32)


@njit(cache=True, nogil=True)
def _count_bytes(
    truth: NDArray[np.uint64],
    prediction: NDArray[np.uint64],
    rows: NDArray[np.uint32],
    columns: NDArray[np.uint32],
    tables: NDArray[np.int64],
) -> None:  # pragma: no cover - compiled
    """Counts eight pixels of one byte a word; the place of a pair in a table is ``rows[true] + columns[predicted]``."""
    first, second, third, fourth = (
        tables[0],
        tables[1 % len(tables)],
        tables[2 % len(tables)],
        tables[3 % len(tables)],
    )
    byte = np.uint64(255)
    true_before, predicted_before, place, run = np.uint64(0), np.uint64(0), rows[0], 0
    for position in range(truth.size):
        true, predicted = truth[position], prediction[position]
        if run and true == true_before and predicted == predicted_before:
            run += 8
            continue
        if run:
            first[place] += run
            run = 0
        # Turned by a byte, a word stays the same only if its bytes are all alike.
        if true == (true >> np.uint64(8) | true << np.uint64(56)) and predicted == (
            predicted >> np.uint64(8) | predicted << np.uint64(56)
        ):
            true_before, predicted_before, run = true, predicted, 8
            place = rows[true & byte] + columns[predicted & byte]
            continue
        for _ in range(2):
            first[rows[true & byte] + columns[predicted & byte]] += 1
            second[rows[(true >> np.uint64(8)) & byte] + columns[(predicted >> np.uint64(8)) & byte]] += 1
            third[rows[(true >> np.uint64(16)) & byte] + columns[(predicted >> np.uint64(16)) & byte]] += 1
            fourth[rows[(true >> np.uint64(24)) & byte] + columns[(predicted >> np.uint64(24)) & byte]] += 1
            true >>= np.uint64(32)
            predicted >>= np.uint64(32)
    if run:
        first[place] += run


@njit(cache=True, nogil=True)
def _known(place: np.uint64, length: int) -> np.uint64:  # pragma: no cover - compiled
    """`place` in a list, 0 beyond its end."""
    return place if place < np.uint64(length) else np.uint64(0)


@njit(cache=True, nogil=True)
def _count_labels(
    truth: NDArray[np.uint64],
    prediction: NDArray[np.uint64],
    rows: NDArray[np.uint32],
    columns: NDArray[np.uint32],
    tables: NDArray[np.int64],
) -> None:  # pragma: no cover - compiled
    """Counts two pixels of four bytes a word, from -1 on: the place is ``rows[true + 1] + columns[predicted + 1]``."""
    first, second = tables[0], tables[1 % len(tables)]
    half, one, low = np.uint64(32), np.uint64(1), np.uint64(0xFFFFFFFF)
    true_before, predicted_before, place, run = np.uint64(0), np.uint64(0), rows[0], 0
    for position in range(truth.size):
        true, predicted = truth[position], prediction[position]
        if run and true == true_before and predicted == predicted_before:
            run += 2
            continue
        if run:
            first[place] += run
            run = 0
        # Adding one takes void, whose 32 bits are all set, to place 0.
        true_left = _known((true + one) & low, len(rows))
        true_right = _known(((true >> half) + one) & low, len(rows))
        predicted_left = _known((predicted + one) & low, len(columns))
        predicted_right = _known(((predicted >> half) + one) & low, len(columns))
        if true_left == true_right and predicted_left == predicted_right:
            true_before, predicted_before, run = true, predicted, 2
            place = rows[true_left] + columns[predicted_left]
        else:
            first[rows[true_left] + columns[predicted_left]] += 1
            second[rows[true_right] + columns[predicted_right]] += 1
    if run:
        first[place] += run
