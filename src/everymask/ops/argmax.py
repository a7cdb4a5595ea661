"""The most probable class of every pixel, from logits: one pass over them on all cores."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numba import config, njit
from numpy.typing import NDArray

from everymask.errors import InputError

_BLOCK = 512
"""Pixels whose logits are treated together, so that they stay in the fast memory of a core."""
_BAND = 2**18
"""Pixels of a piece of work. The sums of a class are added piece by piece, whatever the number of cores."""

# The Taylor series of 2^x about 0; up to |x| = 1/2 the rest of it is below 1.3e-7.
_C0, _C1, _C2, _C3, _C4, _C5, _C6 = (np.float32(math.log(2) ** n / math.factorial(n)) for n in range(7))
_LOG2_E = np.float32(1 / math.log(2))
_LOWEST = np.float32(-126)  # 2^-126 is the smallest normal number


def most_probable(logits: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.float64]]:
    """The class of the highest logit at every pixel, the first of equal ones, and how probable it is.

    Args:
        logits: (K, H, W) float32, K of at least 1; log-probabilities are logits, too. Any strides: memory in the order
            of channels, rows, columns and of rows, columns, channels is read in place.

    Returns:
        The classes (H, W) int32; the number of pixels of each class (K,); and the sum of their probabilities
        (softmax; within 1e-6 of the exact one) for each class (K,). A pixel whose logits hold infinity or not-a-number
        counts with a probability that is not a number.

    Raises:
        InputError: The array is not float32 of three axes, or has no classes.
    """
    if logits.ndim != 3 or logits.dtype != np.float32 or not len(logits):
        raise InputError(f"logits: got {logits.dtype} of shape {logits.shape}, expected float32 (K, H, W)")
    classes, height, width = logits.shape
    class_step, row_step, column_step = (step // 4 for step in logits.strides)
    if 0 in logits.shape or min(logits.strides) < 4 or 1 not in (class_step, column_step):
        logits = np.ascontiguousarray(logits)
        class_step, row_step, column_step = height * width, width, 1
    found = np.empty((height, width), np.int32)
    rows = max(1, _BAND // max(width, 1))
    starts = range(0, height, rows)
    # A flat view of the memory: one kernel for every order of the axes.
    extent = (
        sum((length - 1) * step for length, step in zip(logits.shape, (class_step, row_step, column_step), strict=True))
        + 1
    )
    flat = np.lib.stride_tricks.as_strided(logits, (extent,), (4,)) if found.size else np.zeros(0, np.float32)

    def of_band(start: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        band = found[start : start + rows]
        result: tuple[NDArray[np.int64], NDArray[np.float64]] = _most_probable(
            flat[start * row_step :], classes, class_step, row_step, column_step, band
        )
        return result

    # numba's own setting follows the environment. Its threads would not survive a fork; those of the pool end here.
    threads = min(vars(config)["NUMBA_NUM_THREADS"], len(starts))
    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            parts = list(pool.map(of_band, starts))
    else:
        parts = [of_band(start) for start in starts]
    counts, sums = np.zeros(classes, np.int64), np.zeros(classes)
    for of_part, sum_of_part in parts:
        counts += of_part
        sums += sum_of_part
    return found, counts, sums


_FAST: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy", "fastmath": {"contract", "nsz"}}
"""Products and sums may be fused; nothing is reordered, so that results do not depend on the compiler's mood."""


@njit(**_FAST)
def _most_probable(
    flat: NDArray[np.float32],
    classes: int,
    class_step: int,
    row_step: int,
    column_step: int,
    found: NDArray[np.int32],
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:  # pragma: no cover - compiled
    height, width = found.shape
    counts, sums = np.zeros(classes, np.int64), np.zeros(classes, np.float64)
    # Rows a power of two apart would share few lines of the cache.
    block = np.empty((classes, _BLOCK + 16), np.float32)
    highest, total, power = np.empty(_BLOCK, np.float32), np.empty(_BLOCK, np.float32), np.empty(_BLOCK, np.float32)
    index, bits = np.empty(_BLOCK, np.int32), np.empty(_BLOCK, np.int32)
    for y in range(height):
        for left in range(0, width, _BLOCK):
            length = min(_BLOCK, width - left)
            begin = y * row_step + left * column_step
            if column_step == 1:
                for k in range(classes):
                    source = flat[begin + k * class_step : begin + k * class_step + length]
                    for i in range(length):
                        block[k, i] = source[i]
            else:
                for i in range(length):
                    at = begin + i * column_step
                    for k in range(classes):
                        block[k, i] = flat[at + k * class_step]
            for i in range(length):
                highest[i] = block[0, i]
                index[i] = 0
                total[i] = 0
            for k in range(1, classes):
                for i in range(length):
                    if block[k, i] > highest[i]:
                        highest[i] = block[k, i]
                        index[i] = k
            for k in range(classes):
                # exp(x) = 2^n 2^f with n whole and |f| <= 1/2; 2^n is made as the bits of its exponent.
                for i in range(length):
                    scaled = max((block[k, i] - highest[i]) * _LOG2_E, _LOWEST)
                    whole = np.floor(scaled + np.float32(0.5))
                    f = scaled - whole
                    power[i] = _C0 + f * (_C1 + f * (_C2 + f * (_C3 + f * (_C4 + f * (_C5 + f * _C6)))))
                    bits[i] = (np.int32(whole) + np.int32(127)) << np.int32(23)
                exponent = bits.view(np.float32)
                for i in range(length):
                    total[i] += power[i] * exponent[i]
            for i in range(length):
                found[y, left + i] = index[i]
                counts[index[i]] += 1
                sums[index[i]] += np.float32(1) / total[i]
    return counts, sums
