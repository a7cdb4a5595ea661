"""Distinct values, joint histograms and renumbering of integer images, by hashing runs.

Sorting an image to find its distinct values (`numpy.unique`) takes seconds for a whole slide; a table indexed by value
fails when values are sparse. A hash table that is asked once for each run of equal pixels is fast for both.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

_MULTIPLIER = -7046029254386353131  # 2^64 divided by the golden ratio, odd, as int64: spreads keys over the table


def distinct(image: NDArray[Any]) -> NDArray[Any]:
    """The distinct values of a contiguous integer image, sorted, in its own type."""
    keys, _ = _histogram(image.reshape(-1))
    return np.sort(keys).astype(image.dtype)


def renumber(image: NDArray[Any], values: NDArray[Any], targets: NDArray[Any]) -> NDArray[np.int32]:
    """`image` with each of its distinct `values` replaced by its target.

    Args:
        image: Contiguous integers, any shape.
        values: (V,) all its distinct values.
        targets: (V,) what each becomes.
    """
    flat = _renumber(image.reshape(-1), values.astype(np.int64), targets.astype(np.int32))
    return flat.reshape(image.shape)


def joint_histogram(a: NDArray[Any], b: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of values that occur at the same place and how often, (P,) each, sorted.

    Args:
        a: Contiguous uint8, int32 or int64, any shape.
        b: Likewise, same shape.
    """
    # Two values share one key of 64 bits, so values of 64 bits are numbered first.
    a, a_values = _narrowed(a)
    b, b_values = _narrowed(b)
    keys, counts = _joint_histogram(a.reshape(-1), b.reshape(-1))
    order = np.argsort(keys)
    keys, counts = keys[order], counts[order]
    first, second = keys >> 32, (keys & 0xFFFFFFFF) - 2**31
    if a_values is not None:
        first = a_values[first]
    if b_values is not None:
        second = b_values[second]
    return first, second, counts


def _narrowed(image: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
    """An image of at most 32 bits: itself, or the ranks of its values and those values."""
    if image.dtype != np.int64:
        return image, None
    values = distinct(image)
    return renumber(image, values, np.arange(len(values))), values


@njit(cache=True, nogil=True)
def _slot(keys: NDArray[np.int64], counts: NDArray[np.int64], key: np.int64) -> np.int64:  # pragma: no cover - compiled
    """Where `key` is in the table, or the free place where it goes (its count is 0)."""
    mask = len(keys) - 1
    mixed = key * _MULTIPLIER
    at = (mixed ^ (mixed >> 32)) & mask
    while counts[at] and keys[at] != key:
        at = (at + 1) & mask
    return at


@njit(cache=True, nogil=True)
def _doubled(
    keys: NDArray[np.int64], counts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:  # pragma: no cover - compiled
    more_keys = np.empty(2 * len(keys), np.int64)
    more_counts = np.zeros(2 * len(keys), np.int64)
    for i in range(len(keys)):
        if counts[i]:
            at = _slot(more_keys, more_counts, keys[i])
            more_keys[at], more_counts[at] = keys[i], counts[i]
    return more_keys, more_counts


@njit(cache=True, nogil=True)
def _histogram(image: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:  # pragma: no cover - compiled
    keys = np.empty(1024, np.int64)
    counts = np.zeros(1024, np.int64)
    used = 0
    i = 0
    while i < len(image):
        value = image[i]
        start = i
        i += 1
        while i < len(image) and image[i] == value:
            i += 1
        at = _slot(keys, counts, np.int64(value))
        if counts[at] == 0:
            keys[at] = value
            used += 1
        counts[at] += i - start
        if 2 * used > len(keys):
            keys, counts = _doubled(keys, counts)
    occupied = np.flatnonzero(counts)
    return keys[occupied], counts[occupied]


@njit(cache=True, nogil=True)
def _joint_histogram(
    a: NDArray[Any], b: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:  # pragma: no cover - compiled
    keys = np.empty(4096, np.int64)
    counts = np.zeros(4096, np.int64)
    used = 0
    i = 0
    while i < len(a):
        first, second = a[i], b[i]
        start = i
        i += 1
        while i < len(a) and a[i] == first and b[i] == second:
            i += 1
        # the second value is moved to 0..2^32-1, which keeps the order of signed pairs
        key = (np.int64(first) << 32) | (np.int64(second) + 2147483648)
        at = _slot(keys, counts, key)
        if counts[at] == 0:
            keys[at] = key
            used += 1
        counts[at] += i - start
        if 2 * used > len(keys):
            keys, counts = _doubled(keys, counts)
    occupied = np.flatnonzero(counts)
    return keys[occupied], counts[occupied]


@njit(cache=True, nogil=True)
def _renumber(
    image: NDArray[Any], values: NDArray[np.int64], targets: NDArray[np.int32]
) -> NDArray[np.int32]:  # pragma: no cover - compiled
    size = 16
    while size < 2 * len(values):
        size *= 2
    keys = np.empty(size, np.int64)
    counts = np.zeros(size, np.int64)
    results = np.empty(size, np.int32)
    for i in range(len(values)):
        at = _slot(keys, counts, values[i])
        keys[at], counts[at], results[at] = values[i], 1, targets[i]
    renumbered = np.empty(len(image), np.int32)
    i = 0
    while i < len(image):
        value = image[i]
        target = results[_slot(keys, counts, np.int64(value))]
        while i < len(image) and image[i] == value:
            renumbered[i] = target
            i += 1
    return renumbered
