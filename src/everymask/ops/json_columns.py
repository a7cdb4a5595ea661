"""Columns from a JSON array of objects, straight from its bytes: numbers as arrays, all else as where it lies.

Building an object in Python for every number of a large file costs most of the time and memory of reading it. Here a
compiled scanner walks over the bytes once, checks their grammar (RFC 8259), keeps the fields that were asked for and
skips the others. It is strict: what it does not understand it refuses, and a general parser decides.

An array is scanned by several threads. Each begins at a place that looks like the start of an element. That guess is
verified, not trusted: the scan before must arrive at that very byte between two elements. Otherwise what was scanned
from it is thrown away.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from everymask.ops.json_fields import AS_TEXT, END, MASK, OTHER_FIELDS, START, Field, Kind, Layout, Objects, layout
from everymask.ops.json_numbers import Whole, parse_integer, parse_number
from everymask.ops.json_text import (
    BACKSLASH,
    CLOSE_ARRAY,
    CLOSE_OBJECT,
    COLON,
    COMMA,
    NOT_UNDERSTOOD,
    OPEN_ARRAY,
    OPEN_OBJECT,
    QUOTE,
    guess_element,
    skip_space,
    skip_string,
    skip_value,
    skip_word,
)

__all__ = ["Field", "Kind", "Objects", "scan_array"]

_INTEGER, _NUMBER, _FOUR_NUMBERS, _FLAG, _TEXT, _, _OBJECT, _IDENTIFIER = (int(kind) for kind in Kind)
_LETTER_T, _LETTER_F, _LETTER_N = (ord(each) for each in "tfn")  # which begin true, false and null
_CHUNK = 1 << 20  # bytes for one call of the scanner: what it makes of them stays in the cache


class Scan(NamedTuple):
    """What a call of the scanner found."""

    end: int
    """Where the next element begins, or what follows the array; `NOT_UNDERSTOOD` if it was refused."""
    closed: bool
    """Whether the array ended."""
    table: NDArray[np.int64]
    """(n, width) the objects."""


def scan_array(
    data: NDArray[np.uint8],
    at: int,
    fields: Sequence[Field],
    *,
    threads: int | None = None,
    chunk: int = _CHUNK,
    scanned: Callable[[int], object] | None = None,
) -> tuple[Objects, int] | None:
    """Reads an array of objects.

    Args:
        data: The bytes of the text, read-only; the last one is a closing bracket.
        at: Index of the opening bracket.
        fields: What to keep; at most 30.
        threads: How many to use; by default one for each processor, at most 4.
        chunk: Bytes for one call of the scanner.
        scanned: Is told from time to time how many more bytes were scanned.

    Returns:
        The objects and where the array ends; None if the scanner does not understand it, be it that the text is no
        JSON, or a field of another kind, or escapes are in a key, a number is too large, UTF-8 is malformed ...
    """
    if data[at] != ord("["):
        return None
    first = int(skip_space(data, at + 1))
    if first < len(data) and data[first] == ord("]"):
        return Objects(fields), first + 1
    return _in_chunks(data, first, fields, threads or min(os.cpu_count() or 1, 4), chunk, scanned)


def _in_chunks(
    data: NDArray[np.uint8],
    at: int,
    fields: Sequence[Field],
    threads: int,
    chunk: int,
    scanned: Callable[[int], object] | None,
) -> tuple[Objects, int] | None:
    """Scans chunk after chunk, some of them ahead in other threads, until the array is closed."""
    objects = Objects(fields)
    arguments = layout(fields)
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[tuple[int, int, Future[Scan]]] = deque()
        begin = at

        def submit() -> None:
            nonlocal begin
            if begin < len(data):
                stop = int(guess_element(data, begin + chunk))
                ahead.append((begin, stop, pool.submit(_scan, data, begin, stop, arguments)))
                begin = stop

        for _ in range(threads + 1):
            submit()
        try:
            while ahead:
                start, stop, future = ahead.popleft()
                submit()
                # A wrong guess: what was scanned from it is wrong, too.
                scan = future.result() if start == at else _scan(data, at, stop, arguments) if at < stop else None
                if scan is None:
                    continue
                if scan.end < 0:
                    return None
                # As many more as there is room for, if all are about as long, with a little to spare.
                objects.append(scan.table, (len(data) - scan.end) * len(scan.table) * 9 // (scan.end - at) // 8)
                if scanned is not None:
                    scanned(scan.end - at)
                at = scan.end
                if scan.closed:
                    return objects, at
        finally:
            for _, _, future in ahead:
                future.cancel()
    return None


def _scan(data: NDArray[np.uint8], start: int, stop: int, arguments: Layout) -> Scan:
    end, closed, table, undecided, ascii_only = _scan_objects(data, start, stop, *arguments)
    for row, slot, first, behind in undecided.tolist():
        value = np.float64(data[first:behind].tobytes())
        if np.isinf(value):
            end = NOT_UNDERSTOOD
        table[row, slot] = value.view(np.int64)
    if end >= 0 and not ascii_only and not _is_utf8(data[start:end]):
        end = NOT_UNDERSTOOD
    return Scan(int(end), bool(closed), table)


def _is_utf8(data: NDArray[np.uint8]) -> bool:
    try:
        data.tobytes().decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


# -- scanning ----------------------------------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def _grown_table(table: NDArray[np.int64], rows: Whole) -> NDArray[np.int64]:  # pragma: no cover - compiled
    """`table`, or a copy with at least twice the rows when `rows` do not fit."""
    if rows <= table.shape[0]:
        return table
    larger = np.empty((max(rows, 2 * table.shape[0]), table.shape[1]), np.int64)
    for i in range(table.shape[0]):
        for j in range(table.shape[1]):
            larger[i, j] = table[i, j]
    return larger


@njit(cache=True, nogil=True)
def _field(
    data: NDArray[np.uint8],
    begin: int,
    end: int,
    names: NDArray[np.uint8],
    name_ends: NDArray[np.int64],
    expected: Whole,
) -> int:  # pragma: no cover - compiled
    """Which field the key in `begin:end` is, tried from the `expected` one on; the number of fields if none."""
    number = len(name_ends) - 1
    for step in range(number):
        f = expected + step
        if f >= number:
            f -= number
        first = name_ends[f]
        if name_ends[f + 1] - first != end - begin:
            continue
        i = 0
        while i < end - begin and data[begin + i] == names[first + i]:
            i += 1
        if i == end - begin:
            return f
    return number


@njit(cache=True, nogil=True)
def _scan_objects(
    data: NDArray[np.uint8],
    at: int,
    stop: int,
    names: NDArray[np.uint8],
    name_ends: NDArray[np.int64],
    kinds: NDArray[np.int64],
    slots: NDArray[np.int64],
    nullable: NDArray[np.bool_],
    width: int,
) -> tuple[int, bool, NDArray[np.int64], NDArray[np.int64], bool]:  # pragma: no cover - compiled
    """Reads elements of an array from `at` until one begins at `stop` or behind, or the array ends."""
    length = len(data)
    number = len(kinds)
    table = np.empty((1024, width), np.int64)
    undecided = np.empty((16, 4), np.int64)
    rows, open_numbers = np.int64(0), np.int64(0)
    refused = (NOT_UNDERSTOOD, False, table[:0], undecided[:0], True)
    begin_of_all = at
    while True:
        if at >= length or data[at] != OPEN_OBJECT:
            return refused
        table = _grown_table(table, rows + 1)
        row = table[rows]
        for slot in range(width):  # assigning a slice would cost seconds of compile time
            row[slot] = 0
        row[START] = at
        there = np.int64(0)
        at = skip_space(data, at + 1)
        if at >= length:
            return refused
        expected = np.int64(0)
        if data[at] == CLOSE_OBJECT:
            at += 1
        else:
            while True:
                # The key, in which nothing may be escaped.
                if at >= length or data[at] != QUOTE:
                    return refused
                key = at + 1
                at = key
                while at < length and data[at] != QUOTE:
                    if data[at] == BACKSLASH or data[at] < 32:
                        return refused
                    at += 1
                f = _field(data, key, at, names, name_ends, expected)
                at = skip_space(data, at + 1)
                if at >= length or data[at] != COLON:
                    return refused
                at = skip_space(data, at + 1)
                if at >= length:
                    return refused
                # The value.
                begin = at
                if f == number:
                    there |= np.int64(1) << OTHER_FIELDS
                    at = skip_value(data, at)
                else:
                    expected = f + 1 if f + 1 < number else 0
                    bit = np.int64(1) << f
                    there |= bit
                    kind, slot = kinds[f], slots[f]
                    c = data[at]
                    if c == _LETTER_N and nullable[f]:
                        at = skip_word(data, at)
                        there &= ~bit
                    elif (
                        kind == _INTEGER
                        or (kind == _FLAG and c != _LETTER_T and c != _LETTER_F)
                        or (kind == _IDENTIFIER and c != QUOTE)
                    ):
                        at, row[slot] = parse_integer(data, at)
                        if kind == _IDENTIFIER:
                            there &= ~(bit << AS_TEXT)
                    elif kind == _NUMBER:
                        at, bits, certain = parse_number(data, at)
                        row[slot] = np.int64(bits)
                        if not certain and at >= 0:
                            undecided = _noted(undecided, open_numbers, rows, slot, begin, at)
                            open_numbers += 1
                    elif kind == _FOUR_NUMBERS:
                        if c != OPEN_ARRAY:
                            return refused
                        for i in range(4):
                            begin = skip_space(data, at + 1)
                            if begin >= length:
                                return refused
                            at, bits, certain = parse_number(data, begin)
                            if at < 0:
                                return refused
                            row[slot + i] = np.int64(bits)
                            if not certain:
                                undecided = _noted(undecided, open_numbers, rows, slot + i, begin, at)
                                open_numbers += 1
                            at = skip_space(data, at)
                            if at >= length or data[at] != (CLOSE_ARRAY if i == 3 else COMMA):
                                return refused
                        at += 1
                    elif kind == _FLAG:
                        row[slot] = c == _LETTER_T
                        at = skip_word(data, at)
                    elif kind == _IDENTIFIER:
                        row[slot] = at
                        there |= bit << AS_TEXT
                        at = skip_string(data, at)
                    else:
                        if (kind == _TEXT and c != QUOTE) or (kind == _OBJECT and c != OPEN_OBJECT):
                            return refused
                        at = skip_value(data, at)
                        if kind != _OBJECT:
                            row[slot] = begin
                            row[slot + 1] = at
                if at < 0:
                    return refused
                at = skip_space(data, at)
                if at >= length:
                    return refused
                c = data[at]
                at += 1
                if c == CLOSE_OBJECT:
                    break
                if c != COMMA:
                    return refused
                at = skip_space(data, at)
        row[MASK] = there
        row[END] = at
        rows += 1
        at = skip_space(data, at)
        if at >= length:
            return refused
        closed = data[at] == CLOSE_ARRAY
        if not closed and data[at] != COMMA:
            return refused
        at += 1
        if not closed:
            at = skip_space(data, at)
        if closed or at >= stop:
            break
    high = np.uint8(0)
    for i in range(begin_of_all, at):
        high |= data[i]
    return at, bool(closed), table[:rows], undecided[:open_numbers], bool(high < 128)


@njit(cache=True, nogil=True)
def _noted(
    undecided: NDArray[np.int64], number: Whole, row: Whole, slot: Whole, begin: int, end: int
) -> NDArray[np.int64]:  # pragma: no cover - compiled
    """The list of undecided numbers with one more."""
    undecided = _grown_table(undecided, number + 1)
    undecided[number, 0] = row
    undecided[number, 1] = slot
    undecided[number, 2] = begin
    undecided[number, 3] = end
    return undecided
