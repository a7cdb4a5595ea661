"""The compressed strings that COCO files keep run lengths in.

From the third run on, the difference to the run two before is stored: consecutive columns of an object are about
equally long. Each number is cut into groups of five bits, the lowest first; a group and a bit that says whether more
follow become one printable character. The highest bit of the last group is the sign.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit
from numpy.typing import NDArray

from everymask.errors import InputError

_MOST_CHARACTERS = 7  # for one number: 32 bits and a sign, in groups of five


def to_string(counts: NDArray[np.uint32]) -> bytes:
    """COCO's compressed string of one mask, byte for byte that of `pycocotools`.

    Args:
        counts: (R,) run lengths of one mask.
    """
    return to_strings(counts, np.array([0, len(counts)]))[0]


def to_strings(counts: NDArray[np.uint32], offsets: NDArray[np.int64]) -> list[bytes]:
    """COCO's compressed strings of many masks.

    Args:
        counts: (R,) run lengths.
        offsets: (N + 1,) where the runs of each mask begin.
    """
    characters, ends = _to_strings(np.ascontiguousarray(counts, np.uint32), np.ascontiguousarray(offsets, np.int64))
    text = characters.tobytes()
    return [text[ends[i] : ends[i + 1]] for i in range(len(ends) - 1)]


def from_string(string: bytes | str) -> NDArray[np.uint32]:
    """Run lengths (R,) of COCO's compressed string.

    Raises:
        InputError: It is no such string.
    """
    return from_strings([string])[0]


def from_strings(strings: Sequence[bytes | str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Run lengths of COCO's compressed strings.

    Returns:
        `counts` (R,) uint32 and `offsets` (N + 1,) int64.

    Raises:
        InputError: One of them is no such string: it has other characters, ends within a number, or holds a negative
            run or one of more than 32 bits.
    """
    texts = [each.encode("utf-8") if isinstance(each, str) else each for each in strings]
    ends = np.zeros(len(texts) + 1, np.int64)
    np.cumsum([len(each) for each in texts], out=ends[1:])
    counts, offsets, wrong = _from_strings(np.frombuffer(b"".join(texts), np.uint8), ends)
    if wrong >= 0:
        raise InputError(f"not a compressed RLE string: {texts[wrong][:40]!r} (number {wrong} of {len(texts)})")
    return counts, offsets


@njit(cache=True, nogil=True)
def _to_strings(
    counts: NDArray[np.uint32], offsets: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:  # pragma: no cover - compiled
    number = len(offsets) - 1
    text = np.empty(_MOST_CHARACTERS * len(counts), np.uint8)
    ends = np.zeros(number + 1, np.int64)
    end = 0
    for n in range(number):
        for i in range(offsets[n], offsets[n + 1]):
            value = np.int64(counts[i])
            if i > offsets[n] + 2:
                value -= np.int64(counts[i - 2])
            while True:
                group = value & 31
                value >>= 5
                # done when what is left only repeats the sign that the reader takes from this group
                if value == (-1 if group & 16 else 0):
                    text[end] = group + 48
                    end += 1
                    break
                text[end] = (group | 32) + 48
                end += 1
        ends[n + 1] = end
    return text[:end], ends


@njit(cache=True, nogil=True)
def _from_strings(
    text: NDArray[np.uint8], ends: NDArray[np.int64]
) -> tuple[NDArray[np.uint32], NDArray[np.int64], int]:  # pragma: no cover - compiled
    """The runs, their offsets, and the first string that is wrong or -1."""
    number = len(ends) - 1
    # a number ends with a character below "P", so their count is that of the runs
    runs = 0
    for at in range(np.uint64(len(text))):
        runs += text[at] < 80
    counts = np.empty(runs, np.uint32)
    offsets = np.zeros(number + 1, np.int64)
    m = np.uint64(0)
    for n in range(number):
        first = m
        before, last = np.int64(0), np.int64(0)  # the runs two and one before
        value = np.int64(0)
        shift = 0
        for at in range(np.uint64(ends[n]), np.uint64(ends[n + 1])):
            group = np.int64(text[at]) - 48
            if group < 0 or group > 63 or shift >= 5 * _MOST_CHARACTERS:
                return counts, offsets, n
            value |= (group & 31) << shift
            shift += 5
            if group & 32:
                continue
            if group & 16:
                value -= np.int64(1) << shift
            if m > first + np.uint64(2):
                value += before
            if value < 0 or value > 4294967295:
                return counts, offsets, n
            counts[m] = value
            m += np.uint64(1)
            before, last = last, value
            value = np.int64(0)
            shift = 0
        if shift:
            return counts, offsets, n
        offsets[n + 1] = m
    return counts, offsets, -1
