"""JSON numbers from bytes to the nearest double, compiled.

Almost every number is settled by one or two 64-bit products with a table of powers of five, after D. Lemire, "Number
Parsing at a Gigabyte per Second", Software: Practice and Experience 51 (2021), algorithm 1. The few that are not (more
than 19 digits, results below the normal range or above all doubles, and products too close to a tie) are reported as
such, for Python's `float` to decide.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Whole = Any
"""An int or an int64: compiled code counts from ``np.int64(0)``, lest it is compiled once more for a literal 0."""

MALFORMED = -1
"""Instead of the end of a number: what is there is no JSON number."""

_LOWEST, _HIGHEST = -342, 308  # exponents of ten beyond which 19 digits give zero or infinity
_MANY_DIGITS = 19  # as many always fit 64 bits
_LOW_HALF = np.uint64(0xFFFFFFFF)
_ALL_ONES = np.uint64(0xFFFFFFFFFFFFFFFF)
_HIDDEN_BIT = np.uint64(1 << 52)


def _powers_of_five() -> NDArray[np.uint64]:
    """(E, 2) the highest 128 bits of 5^q, high and low word, for q from `_LOWEST` to `_HIGHEST`.

    They are cut off, but from -27 to -1 (whose reciprocals fit 64 bits) rounded up: so an exact tie, which among the
    negative powers can occur only there, gives a product with zeros below.
    """
    words = []
    for exponent in range(_LOWEST, _HIGHEST + 1):
        power = 5 ** abs(exponent)
        bits = power.bit_length()
        if exponent >= 0:
            value = power << (128 - bits) if bits <= 128 else power >> (bits - 128)
        else:
            value = (1 << (bits + 127)) // power + (exponent >= -27)
        words.append((value >> 64, value & ((1 << 64) - 1)))
    return np.array(words, np.uint64)


_POWERS = _powers_of_five()


@njit(cache=True, nogil=True)
def _product(a: np.uint64, b: np.uint64) -> tuple[np.uint64, np.uint64]:  # pragma: no cover - compiled
    """High and low word of a 128-bit product."""
    half = np.uint64(32)
    a_low, a_high, b_low, b_high = a & _LOW_HALF, a >> half, b & _LOW_HALF, b >> half
    low, middle = a_low * b_low, a_high * b_low
    carried = (low >> half) + (middle & _LOW_HALF) + a_low * b_high
    return a_high * b_high + (middle >> half) + (carried >> half), a * b


@njit(cache=True, nogil=True)
def _nearest(digits: np.uint64, exponent: Whole) -> tuple[np.uint64, bool]:  # pragma: no cover - compiled
    """The bits of the double nearest to digits * 10^exponent (digits > 0), and whether that is certain."""
    if exponent < _LOWEST or exponent > _HIGHEST:
        return np.uint64(0), False
    shift = np.int64(0)
    while digits >> np.uint64(56) == 0:
        digits <<= np.uint64(8)
        shift += 8
    while digits >> np.uint64(63) == 0:
        digits <<= np.uint64(1)
        shift += 1
    row = exponent - _LOWEST
    high, low = _product(digits, _POWERS[row, 0])
    if high & np.uint64(0x1FF) == np.uint64(0x1FF):
        # The bits to be rounded off are all ones, so that the second word of the power may carry into them.
        more, _ = _product(digits, _POWERS[row, 1])
        low += more
        if low < more:
            high += np.uint64(1)
    if low == _ALL_ONES and not -27 <= exponent <= 55:
        return np.uint64(0), False
    upper = np.int64(high >> np.uint64(63))
    cut = np.uint64(upper + 9)
    mantissa = high >> cut
    # 217706 / 2^16 is log2(10) from below; its floor is right for all exponents of the table.
    power = ((217706 * exponent) >> 16) + 63 + upper - shift + 1023
    if power <= 0 or power >= 2046:
        return np.uint64(0), False
    if (
        low <= np.uint64(1)
        and -4 <= exponent <= 23
        and mantissa & np.uint64(3) == np.uint64(1)
        and mantissa << cut == high
    ):
        mantissa &= ~np.uint64(1)  # exactly between two doubles: to the even one
    mantissa = (mantissa + (mantissa & np.uint64(1))) >> np.uint64(1)
    if mantissa >= np.uint64(1 << 53):
        mantissa = _HIDDEN_BIT
        power += 1
    return (np.uint64(power) << np.uint64(52)) | (mantissa & ~_HIDDEN_BIT), True


@njit(cache=True, nogil=True)
def parse_number(data: NDArray[np.uint8], at: int) -> tuple[int, np.uint64, bool]:  # pragma: no cover - compiled
    """Reads the number that begins at `at`.

    Args:
        data: Bytes of a JSON text; the last one is a closing bracket, which ends every loop over digits.
        at: Index of the first byte.

    Returns:
        The index behind the number, or `MALFORMED`; the bits of its double; and whether they are certain.
    """
    negative = data[at] == 45
    if negative:
        at += 1
    start = at
    digits = np.uint64(0)
    while 48 <= data[at] <= 57:
        digits = digits * np.uint64(10) + np.uint64(data[at] - 48)
        at += 1
    many = at - start
    if many == 0 or (many > 1 and data[start] == 48):
        return MALFORMED, digits, False
    exponent = np.int64(0)
    if data[at] == 46:
        at += 1
        point = at
        while 48 <= data[at] <= 57:
            digits = digits * np.uint64(10) + np.uint64(data[at] - 48)
            at += 1
        if at == point:
            return MALFORMED, digits, False
        exponent = point - at
        many -= exponent
    certain = True
    if many > _MANY_DIGITS:
        # Zeros in front count for nothing.
        first = start
        while data[first] == 48 or data[first] == 46:
            many -= data[first] == 48
            first += 1
        certain = many <= _MANY_DIGITS
    if data[at] | 32 == 101:
        at += 1
        below = data[at] == 45
        if below or data[at] == 43:
            at += 1
        point = at
        power = np.int64(0)
        while 48 <= data[at] <= 57:
            power = min(power * 10 + np.int64(data[at] - 48), np.int64(1_000_000))
            at += 1
        if at == point:
            return MALFORMED, digits, False
        exponent += -power if below else power
    bits = np.uint64(0)
    if certain and digits:
        bits, certain = _nearest(digits, exponent)
    if negative:
        bits |= np.uint64(1 << 63)
    return at, bits, certain


@njit(cache=True, nogil=True)
def parse_integer(data: NDArray[np.uint8], at: int) -> tuple[int, np.int64]:  # pragma: no cover - compiled
    """Reads the whole number that begins at `at`, without fraction and exponent.

    Args:
        data: As for `parse_number`.
        at: Index of the first byte.

    Returns:
        The index behind the number, or `MALFORMED`, also if it does not fit 64 bits; and its value.
    """
    negative = data[at] == 45
    if negative:
        at += 1
    start = at
    value = np.uint64(0)
    while 48 <= data[at] <= 57:
        value = value * np.uint64(10) + np.uint64(data[at] - 48)
        at += 1
    many = at - start
    wrong = many == 0 or many > _MANY_DIGITS or (many > 1 and data[start] == 48) or value >> np.uint64(63)
    if wrong or data[at] == 46 or data[at] | 32 == 101:
        return MALFORMED, np.int64(0)
    return at, -np.int64(value) if negative else np.int64(value)


@njit(cache=True, nogil=True)
def skip_number(data: NDArray[np.uint8], at: int) -> int:  # pragma: no cover - compiled
    """The index behind the number that begins at `at`, or `MALFORMED`; `data` as for `parse_number`."""
    if data[at] == 45:
        at += 1
    start = at
    while 48 <= data[at] <= 57:
        at += 1
    if at == start or (at > start + 1 and data[start] == 48):
        return MALFORMED
    if data[at] == 46:
        at += 1
        start = at
        while 48 <= data[at] <= 57:
            at += 1
        if at == start:
            return MALFORMED
    if data[at] | 32 == 101:
        at += 1
        if data[at] == 45 or data[at] == 43:
            at += 1
        start = at
        while 48 <= data[at] <= 57:
            at += 1
        if at == start:
            return MALFORMED
    return at
