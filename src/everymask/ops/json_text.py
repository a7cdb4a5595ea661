"""Walking over the bytes of a JSON text (RFC 8259), compiled.

Every function takes the bytes and a position and gives the position behind what it walked over, or `NOT_UNDERSTOOD`.
The grammar is checked on the way, but for arrays of numbers that are skipped: of those only the brackets are looked
at, and that nothing is in them that numbers are not made of. Their grammar is for those to check who read them.

The last byte must be a closing bracket: it ends every loop over digits.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
from numba import njit
from numpy.typing import NDArray

from everymask.ops.json_numbers import Whole, skip_number
from everymask.ops.rle_measures import grown

NOT_UNDERSTOOD = -1
"""Instead of a position in the text: there is something else than expected."""

QUOTE, BACKSLASH, COMMA, COLON = (ord(each) for each in '"\\,:')
OPEN_ARRAY, CLOSE_ARRAY, OPEN_OBJECT, CLOSE_OBJECT = (ord(each) for each in "[]{}")
_TRUE, _FALSE, _NULL = (np.frombuffer(each, np.uint8).copy() for each in (b"true", b"false", b"null"))
_LETTER_U = ord("u")
_ESCAPED = np.zeros(256, np.int64)  # what a letter behind a backslash stands for, 0 if nothing
_ESCAPED[list(b'"\\/bfnrt')] = list(b'"\\/\b\f\n\r\t')
_DEEPEST = 60  # levels of nesting, of which each takes a bit of a 64-bit stack
# What a byte is in an array of numbers: 0 number, comma or space, 1 opens and 2 closes an array, 3 does not belong.
_ROLES = np.full(256, 3, np.uint8)
_ROLES[list(b"0123456789.-+eE, \t\r\n")] = 0
_ROLES[list(b"[]")] = 1, 2


def members(data: NDArray[np.uint8], at: int, visit: Callable[[str, int], int]) -> int:
    """Walks over the members of the object that begins at `at`.

    Args:
        data: The bytes of the text; the last one is a closing bracket.
        at: Index of the opening brace.
        visit: Gets a key and where its value begins; returns where the value ends, or `NOT_UNDERSTOOD`.

    Returns:
        Where the object ends, or `NOT_UNDERSTOOD`.
    """
    at = int(skip_space(data, at + 1))
    if at < len(data) and data[at] == ord("}"):
        return at + 1
    while at < len(data) and data[at] == ord('"'):
        end = int(skip_string(data, at))
        if end < 0:
            break
        key = data[at + 1 : end - 1].tobytes()
        value = int(skip_key(data, at))
        if value < 0 or b"\\" in key:
            break
        at = visit(key.decode("utf-8", "replace"), value)
        if at < 0:
            break
        at = int(skip_space(data, at))
        if at < len(data) and data[at] == ord("}"):
            return at + 1
        if at >= len(data) or data[at] != ord(","):
            break
        at = int(skip_space(data, at + 1))
    return NOT_UNDERSTOOD


def texts(data: NDArray[np.uint8], begins: NDArray[np.int64]) -> list[str]:
    """The strings whose opening quotes are at `begins`; they must be well-formed."""
    # Joined by a character that no JSON string holds, so that all are decoded at once.
    joined = _join_strings(data, np.ascontiguousarray(begins)).tobytes().decode("utf-8")
    found = joined.split("\n")[:-1]
    if "\\" in joined:
        found = [json.loads(f'"{each}"') if "\\" in each else each for each in found]
    return found


@njit(cache=True, nogil=True)
def skip_space(data: NDArray[np.uint8], at: int) -> int:  # pragma: no cover - compiled
    """The index of the first byte from `at` on that is no white space; the length if there is none."""
    while at < len(data) and data[at] <= 32:
        if data[at] != 32 and data[at] != 10 and data[at] != 13 and data[at] != 9:
            return at
        at += 1
    return at


@njit(cache=True, nogil=True)
def _hexadecimal(data: NDArray[np.uint8], at: int) -> Whole:  # pragma: no cover - compiled
    """The value of four hexadecimal digits, or `NOT_UNDERSTOOD`."""
    if at + 4 > len(data):
        return NOT_UNDERSTOOD
    value = 0
    for i in range(at, at + 4):
        c = np.int64(data[i])
        if 48 <= c <= 57:
            value = value * 16 + c - 48
        elif 97 <= c | 32 <= 102:
            value = value * 16 + (c | 32) - 87
        else:
            return NOT_UNDERSTOOD
    return value


@njit(cache=True, nogil=True)
def read_escape(data: NDArray[np.uint8], at: int) -> tuple[int, Whole]:  # pragma: no cover - compiled
    """Where the escape that begins with the backslash at `at` ends, and the character it stands for."""
    if at + 1 >= len(data):
        return NOT_UNDERSTOOD, 0
    letter = data[at + 1]
    if letter != _LETTER_U:
        return (NOT_UNDERSTOOD if _ESCAPED[letter] == 0 else at + 2), _ESCAPED[letter]
    value = _hexadecimal(data, at + 2)
    if 0xD800 <= value < 0xE000:
        # Half of a pair: the other half must follow.
        if value >= 0xDC00 or at + 8 > len(data) or data[at + 6] != BACKSLASH or data[at + 7] != _LETTER_U:
            return NOT_UNDERSTOOD, 0
        low = _hexadecimal(data, at + 8)
        if low < 0xDC00 or low >= 0xE000:
            return NOT_UNDERSTOOD, 0
        return at + 12, 0x10000 + ((value - 0xD800) << 10) + low - 0xDC00
    return (NOT_UNDERSTOOD if value < 0 else at + 6), value


@njit(cache=True, nogil=True)
def skip_string(data: NDArray[np.uint8], at: int) -> int:  # pragma: no cover - compiled
    """The index behind the string whose opening quote is at `at`."""
    at += 1
    while at < len(data):
        c = data[at]
        if c == QUOTE:
            return at + 1
        if c == BACKSLASH:
            at, _ = read_escape(data, at)
            if at < 0:
                return NOT_UNDERSTOOD
        elif c < 32:
            return NOT_UNDERSTOOD
        else:
            at += 1
    return NOT_UNDERSTOOD


@njit(cache=True, nogil=True)
def _join_strings(
    data: NDArray[np.uint8], begins: NDArray[np.int64]
) -> NDArray[np.uint8]:  # pragma: no cover - compiled
    """The bytes between the quotes of strings, a line feed behind each."""
    joined = np.empty(32 * len(begins) + 64, np.uint8)
    end = 0
    for n in range(len(begins)):
        behind = skip_string(data, begins[n]) - 1
        joined = grown(joined, end + behind - begins[n])
        for i in range(begins[n] + 1, behind):
            joined[end] = data[i]
            end += 1
        joined[end] = 10
        end += 1
    return joined[:end].copy()


@njit(cache=True, nogil=True)
def skip_key(data: NDArray[np.uint8], at: int) -> int:  # pragma: no cover - compiled
    """Where the value begins whose key, or white space in front of it, is at `at`."""
    at = skip_space(data, at)
    if at >= len(data) or data[at] != QUOTE:
        return NOT_UNDERSTOOD
    at = skip_string(data, at)
    if at < 0:
        return NOT_UNDERSTOOD
    at = skip_space(data, at)
    if at >= len(data) or data[at] != COLON:
        return NOT_UNDERSTOOD
    at = skip_space(data, at + 1)
    return at if at < len(data) else NOT_UNDERSTOOD


@njit(cache=True, nogil=True)
def skip_word(data: NDArray[np.uint8], at: int) -> int:  # pragma: no cover - compiled
    """The index behind true, false or null."""
    if at + 4 > len(data):
        return NOT_UNDERSTOOD
    same_true = same_null = same_false = True
    for i in range(4):
        same_true &= data[at + i] == _TRUE[i]
        same_null &= data[at + i] == _NULL[i]
        same_false &= data[at + i] == _FALSE[i]
    if same_true or same_null:
        return at + 4
    return at + 5 if same_false and at + 4 < len(data) and data[at + 4] == _FALSE[4] else NOT_UNDERSTOOD


@njit(cache=True, nogil=True)
def _skip_numbers(data: NDArray[np.uint8], at: int) -> int:  # pragma: no cover - compiled
    """The index behind the array, perhaps of arrays, at `at`; `NOT_UNDERSTOOD` at a character that is in no number."""
    depth = 0
    while at < len(data):
        role = _ROLES[data[at]]
        at += 1
        if role:
            if role == 1:
                depth += 1
            elif role == 2:
                depth -= 1
                if depth == 0:
                    return at
            else:
                return NOT_UNDERSTOOD
    return NOT_UNDERSTOOD


@njit(cache=True, nogil=True)
def skip_value(data: NDArray[np.uint8], at: int) -> int:  # pragma: no cover - compiled
    """The index behind the value that begins at `at`, whatever it is; see above for arrays of numbers."""
    depth = 0
    in_object = np.uint64(0)  # a bit for each level, the lowest for the innermost
    one = np.uint64(1)
    while True:
        at = skip_space(data, at)
        if at >= len(data):
            return NOT_UNDERSTOOD
        c = data[at]
        if c == QUOTE:
            at = skip_string(data, at)
        elif c == 45 or 48 <= c <= 57:
            at = skip_number(data, at)
        elif c in (OPEN_ARRAY, OPEN_OBJECT):
            behind = _skip_numbers(data, at) if c == OPEN_ARRAY else NOT_UNDERSTOOD
            at = skip_space(data, at + 1)
            if at >= len(data) or depth == _DEEPEST:
                return NOT_UNDERSTOOD
            if behind >= 0:
                at = behind
            elif data[at] == c + 2:
                at += 1
            else:
                depth += 1
                in_object <<= one
                if c == OPEN_OBJECT:
                    in_object |= one
                    at = skip_key(data, at)
                    if at < 0:
                        return NOT_UNDERSTOOD
                continue
        else:
            at = skip_word(data, at)
        if at < 0:
            return NOT_UNDERSTOOD
        # A value has ended, and with it perhaps what it is in.
        while True:
            if depth == 0:
                return at
            at = skip_space(data, at)
            if at >= len(data):
                return NOT_UNDERSTOOD
            c = data[at]
            at += 1
            if c == COMMA:
                if in_object & one:
                    at = skip_key(data, at)
                    if at < 0:
                        return NOT_UNDERSTOOD
                break
            if c != (CLOSE_OBJECT if in_object & one else CLOSE_ARRAY):
                return NOT_UNDERSTOOD
            depth -= 1
            in_object >>= one


@njit(cache=True, nogil=True)
def guess_element(data: NDArray[np.uint8], at: int) -> int:  # pragma: no cover - compiled
    """Where, from `at` on, an object seems to begin that follows another one; the length if nowhere."""
    while at < len(data):
        if data[at] == CLOSE_OBJECT:
            follower = skip_space(data, at + 1)
            if follower < len(data) and data[follower] == COMMA:
                follower = skip_space(data, follower + 1)
                if follower < len(data) and data[follower] == OPEN_OBJECT:
                    return follower
        at += 1
    return len(data)
