"""The segmentations of COCO files, straight from the bytes of the JSON: polygons, and run lengths as lists or strings.

Each is given by where it begins and ends in the text, as `everymask.ops.json_columns` finds it. The functions here
check all that is not checked there, and name the first segmentation that is not what they read.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from everymask.ops.json_numbers import Whole, parse_integer, parse_number
from everymask.ops.json_text import (
    BACKSLASH,
    CLOSE_ARRAY,
    CLOSE_OBJECT,
    COMMA,
    NOT_UNDERSTOOD,
    OPEN_ARRAY,
    OPEN_OBJECT,
    QUOTE,
    read_escape,
    skip_key,
    skip_space,
    skip_value,
)
from everymask.ops.rle_measures import grown

NOTHING, POLYGONS, STRING, LENGTHS = 0, 1, 2, 3
"""Kinds of segmentations: none, lists of polygons, run lengths as a compressed string, run lengths as a list."""

_COUNTS = np.frombuffer(b"counts", np.uint8).copy()
_SIZE = np.frombuffer(b"size", np.uint8).copy()


@njit(cache=True, nogil=True)
def _is_key(data: NDArray[np.uint8], at: int, name: NDArray[np.uint8]) -> bool:  # pragma: no cover - compiled
    """Whether the string at `at` is `name`."""
    if at + len(name) + 2 > len(data) or data[at + len(name) + 1] != QUOTE:
        return False
    same = True
    for i in range(len(name)):
        same &= data[at + 1 + i] == name[i]
    return same


@njit(cache=True, nogil=True)
def _members_of_rle(data: NDArray[np.uint8], at: int) -> tuple[Whole, Whole]:  # pragma: no cover - compiled
    """Where the values of `size` and `counts` begin in the object at `at`; `NOT_UNDERSTOOD` for what is not there."""
    size, counts = np.int64(NOT_UNDERSTOOD), np.int64(NOT_UNDERSTOOD)
    at = skip_space(data, at + 1)
    while data[at] == QUOTE:
        value = skip_key(data, at)
        if _is_key(data, at, _SIZE):
            size = value
        elif _is_key(data, at, _COUNTS):
            counts = value
        at = skip_space(data, skip_value(data, value))
        if data[at] == CLOSE_OBJECT:
            break
        at = skip_space(data, at + 1)
    return size, counts


@njit(cache=True, nogil=True)
def segmentation_kinds(
    data: NDArray[np.uint8], spans: NDArray[np.int64], there: NDArray[np.bool_]
) -> NDArray[np.uint8]:  # pragma: no cover - compiled
    """What segmentations are, judged by their first bytes; reading one that is nothing of the kind then fails.

    Args:
        data: The bytes of the text.
        spans: (N, 2) where each begins and ends.
        there: (N,) which are there at all.

    Returns:
        (N,) `NOTHING`, `POLYGONS`, `STRING` or `LENGTHS`.
    """
    kinds = np.zeros(len(spans), np.uint8)
    for n in range(len(spans)):
        if not there[n]:
            continue
        at = spans[n, 0]
        if data[at] != OPEN_OBJECT:
            empty = data[at] == OPEN_ARRAY and data[skip_space(data, at + 1)] == CLOSE_ARRAY
            kinds[n] = NOTHING if empty else POLYGONS
            continue
        # Found without a look at the rest, since `counts` may be long.
        kinds[n] = LENGTHS
        at = skip_space(data, at + 1)
        while data[at] == QUOTE:
            value = skip_key(data, at)
            if _is_key(data, at, _COUNTS):
                kinds[n] = STRING if data[value] == QUOTE else LENGTHS
                break
            at = skip_space(data, skip_value(data, value))
            if data[at] == CLOSE_OBJECT:
                break
            at = skip_space(data, at + 1)
    return kinds


@njit(cache=True, nogil=True)
def _append_polygons(
    data: NDArray[np.uint8],
    at: int,
    numbers: NDArray[np.float64],
    end: Whole,
    rings: NDArray[np.int64],
    number: Whole,
) -> tuple[NDArray[np.float64], Whole, NDArray[np.int64], Whole]:  # pragma: no cover - compiled
    """Reads a list of lists of numbers; the number of rings is `NOT_UNDERSTOOD` if it is none, or one is undecided."""
    if data[at] != OPEN_ARRAY:
        return numbers, end, rings, NOT_UNDERSTOOD
    at = skip_space(data, at + 1)
    more = data[at] != CLOSE_ARRAY
    while more:
        if data[at] != OPEN_ARRAY:
            return numbers, end, rings, NOT_UNDERSTOOD
        at = skip_space(data, at + 1)
        another = data[at] != CLOSE_ARRAY
        while another:
            at, bits, certain = parse_number(data, at)
            if at < 0 or not certain:
                return numbers, end, rings, NOT_UNDERSTOOD
            numbers = grown(numbers, end + 1)
            numbers.view(np.uint64)[end] = bits
            end += 1
            at = skip_space(data, at)
            another = data[at] == COMMA
            if another:
                at = skip_space(data, at + 1)
        if data[at] != CLOSE_ARRAY:
            return numbers, end, rings, NOT_UNDERSTOOD
        number += 1
        rings = grown(rings, number + 1)
        rings[number] = end
        at = skip_space(data, at + 1)
        more = data[at] == COMMA
        if more:
            at = skip_space(data, at + 1)
    return numbers, end, rings, number if data[at] == CLOSE_ARRAY else NOT_UNDERSTOOD


@njit(cache=True, nogil=True)
def read_polygons(
    data: NDArray[np.uint8], spans: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64], int]:  # pragma: no cover - compiled
    """Reads segmentations that are lists of polygons.

    Args:
        data: The bytes of the text.
        spans: (N, 2) where each begins and ends.

    Returns:
        The numbers of all, x and y in turn; (R + 1,) offsets of the polygons into them; (N + 1,) offsets of the
        segmentations into the polygons; and the first segmentation that is no list of lists of numbers, or has a number
        that only Python can read, or -1.
    """
    numbers = np.empty(64 * len(spans) + 64, np.float64)
    rings = np.zeros(2 * len(spans) + 2, np.int64)
    segments = np.zeros(len(spans) + 1, np.int64)
    end, number = np.int64(0), np.int64(0)
    for n in range(len(spans)):
        numbers, end, rings, number = _append_polygons(data, spans[n, 0], numbers, end, rings, number)
        if number < 0:
            return numbers[:0], rings[:1], segments, n
        segments[n + 1] = number
    return numbers[:end].copy(), rings[: number + 1].copy(), segments, -1


@njit(cache=True, nogil=True)
def _append_string(
    data: NDArray[np.uint8], at: int, counts: NDArray[np.uint32], end: Whole
) -> tuple[NDArray[np.uint32], Whole]:  # pragma: no cover - compiled
    """Decodes the compressed string at `at` (see `everymask.ops.rle_strings`); end is `NOT_UNDERSTOOD` if none."""
    begin = end
    room = len(counts)  # asked here, since a call for every run costs more than the run
    value = np.int64(0)
    shift = 0
    at += 1
    while data[at] != QUOTE:
        character = np.int64(data[at])
        if character == BACKSLASH:
            at, character = read_escape(data, at)
        else:
            at += 1
        group = character - 48
        if group < 0 or group > 63 or shift >= 35:
            return counts, NOT_UNDERSTOOD
        value |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:
            value |= np.int64(-1) << shift
        if end > begin + 2:
            value += np.int64(counts[end - 2])
        if value < 0 or value > 4294967295:
            return counts, NOT_UNDERSTOOD
        if end >= room:
            counts = grown(counts, end + 1)
            room = len(counts)
        counts[end] = value
        end += 1
        value = np.int64(0)
        shift = 0
    return counts, NOT_UNDERSTOOD if shift else end


@njit(cache=True, nogil=True)
def _append_lengths(
    data: NDArray[np.uint8], at: int, counts: NDArray[np.uint32], end: Whole
) -> tuple[NDArray[np.uint32], Whole]:  # pragma: no cover - compiled
    """Reads the list of run lengths at `at`; end is `NOT_UNDERSTOOD` if it is none."""
    if data[at] != OPEN_ARRAY:
        return counts, NOT_UNDERSTOOD
    at = skip_space(data, at + 1)
    another = data[at] != CLOSE_ARRAY
    while another:
        at, value = parse_integer(data, at)
        if at < 0 or value < 0 or value > 4294967295:
            return counts, NOT_UNDERSTOOD
        counts = grown(counts, end + 1)
        counts[end] = value
        end += 1
        at = skip_space(data, at)
        another = data[at] == COMMA
        if another:
            at = skip_space(data, at + 1)
    return counts, end if data[at] == CLOSE_ARRAY else NOT_UNDERSTOOD


@njit(cache=True, nogil=True)
def _has_size(data: NDArray[np.uint8], at: int, height: int, width: int) -> bool:  # pragma: no cover - compiled
    """Whether the value at `at` is the list of these two numbers."""
    if data[at] != OPEN_ARRAY:
        return False
    at, first = parse_integer(data, skip_space(data, at + 1))
    if at < 0:
        return False
    at = skip_space(data, at)
    if data[at] != COMMA:
        return False
    at, second = parse_integer(data, skip_space(data, at + 1))
    return at >= 0 and data[skip_space(data, at)] == CLOSE_ARRAY and first == height and second == width


@njit(cache=True, nogil=True)
def read_runs(
    data: NDArray[np.uint8], spans: NDArray[np.int64], sizes: NDArray[np.int64]
) -> tuple[NDArray[np.uint32], NDArray[np.int64], int]:  # pragma: no cover - compiled
    """Reads segmentations that are run lengths, as lists or compressed strings.

    Args:
        data: The bytes of the text.
        spans: (N, 2) where each begins and ends.
        sizes: (N, 2) height and width of the image of each.

    Returns:
        `counts` (R,) uint32 and `offsets` (N + 1,) int64 (see `everymask.ops.rle`), and the first segmentation that is
        malformed or of another size, or -1.
    """
    counts = np.empty(64 * len(spans) + 64, np.uint32)
    offsets = np.zeros(len(spans) + 1, np.int64)
    end = np.int64(0)
    for n in range(len(spans)):
        height, width = sizes[n, 0], sizes[n, 1]
        size, lengths = _members_of_rle(data, spans[n, 0])
        if size < 0 or lengths < 0 or not _has_size(data, size, height, width):
            return counts[:0], offsets, n
        begin = end
        if data[lengths] == QUOTE:
            counts, end = _append_string(data, lengths, counts, end)
        else:
            counts, end = _append_lengths(data, lengths, counts, end)
        if end < 0:
            return counts[:0], offsets, n
        total = np.int64(0)
        for i in range(begin, end):
            total += np.int64(counts[i])
        if total != height * width:
            return counts[:0], offsets, n
        offsets[n + 1] = end
    return counts[:end].copy(), offsets, -1
