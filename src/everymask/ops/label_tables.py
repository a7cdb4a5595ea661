"""Distinct values, joint histograms and renumbering of integer images, by hashing runs.

Sorting an image to find its distinct values (`numpy.unique`) takes seconds for a whole slide; a table indexed by value
fails when values are sparse. A hash table that is asked once for each run of equal pixels is fast for both. The ends of
the runs are found first, a block at a time: comparing neighbours has no branches and fills whole registers, and the
look-ups that follow, freed of the branches, overlap in time. Large images are cut into bands, one for each core.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numba import config, njit
from numpy.typing import NDArray

_MULTIPLIER = -7046029254386353131  # 2^64 divided by the golden ratio, odd, as int64: spreads keys over the table
_BLOCK = 8192  # pixels whose run ends are found at once; two images of 32 bits, flags and ends stay in a core's cache
_BAND = 2**21  # pixels that are worth a thread of their own

_Histogram = tuple[NDArray[np.int64], NDArray[np.int64]]


def distinct(image: NDArray[Any]) -> NDArray[Any]:
    """The distinct values of a contiguous integer image, sorted, in its own type."""
    flat = image.reshape(-1)
    return _in_bands(flat, flat, paired=False)[0].astype(image.dtype)


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
    keys, counts = _in_bands(a.reshape(-1), b.reshape(-1), paired=True)
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


def _in_bands(a: NDArray[Any], b: NDArray[Any], paired: bool) -> _Histogram:
    """`_histogram` with its keys sorted, of two flat images; the cores share the work if there is enough of it."""
    # numba's own setting follows the environment; `numba.get_num_threads` would start threads that no fork survives.
    bands = max(1, min(vars(config)["NUMBA_NUM_THREADS"], len(a) // _BAND))
    edges = [len(a) * band // bands for band in range(bands + 1)]

    def of_band(low: int, high: int) -> _Histogram:
        return _histogram(a[low:high], b[low:high], paired)

    if bands == 1:
        found = [of_band(0, len(a))]
    else:
        with ThreadPoolExecutor(bands) as pool:  # the kernel runs without the interpreter's lock
            found = list(pool.map(of_band, edges[:-1], edges[1:]))
    keys, counts = (np.concatenate(columns) for columns in zip(*found, strict=True))
    order = np.argsort(keys)
    keys, counts = keys[order], counts[order]
    first = np.flatnonzero(np.diff(keys, prepend=~keys[:1]))
    return keys[first], np.add.reduceat(counts, first) if len(first) else counts


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
def _changes(
    a: NDArray[Any], before_a: NDArray[Any], b: NDArray[Any], before_b: NDArray[Any], changed: NDArray[np.uint8]
) -> None:  # pragma: no cover - compiled
    """Whether either image differs from its pixel before."""
    for i in range(len(a)):
        changed[i] = (a[i] != before_a[i]) | (b[i] != before_b[i])


@njit(cache=True, nogil=True)
def _histogram(a: NDArray[Any], b: NDArray[Any], paired: bool) -> _Histogram:  # pragma: no cover - compiled
    """Keys in no order and how often they occur: values of `a`, or pairs of values of both images as one number."""
    keys = np.empty(4096, np.int64)
    counts = np.zeros(4096, np.int64)
    used = 0
    changed = np.empty(_BLOCK, np.uint8)
    ends = np.empty(_BLOCK, np.int64)
    begin = 0
    for start in range(1, len(a) + 1, _BLOCK):
        stop = min(start + _BLOCK, len(a))
        length = stop - start
        _changes(a[start:stop], a[start - 1 : stop - 1], b[start:stop], b[start - 1 : stop - 1], changed)
        if length < _BLOCK:  # the image ends within this block, and its last run with it
            changed[length] = 1
            length += 1
        runs = 0
        for i in range(length):
            ends[runs] = start + i
            runs += changed[i]
        while 2 * (used + runs) > len(keys):
            keys, counts = _doubled(keys, counts)
        for i in range(runs):
            key = np.int64(a[begin])
            if paired:
                # the second value is moved to 0..2^32-1, which keeps the order of signed pairs
                key = (key << 32) | (np.int64(b[begin]) + 2147483648)
            at = _slot(keys, counts, key)
            used += counts[at] == 0
            keys[at] = key
            counts[at] += ends[i] - begin
            begin = ends[i]
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
