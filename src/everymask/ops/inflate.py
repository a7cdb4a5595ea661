"""DEFLATE decompression to the bytes that are not zero, for the rows of label images.

In a PNG of labels 99 of 100 bytes are zero, and most of what DEFLATE says is "so many zeros more". Unpacking into a
list of the other bytes needs no memory for the zeros and no time to write, copy and look through them: it takes a
sixth of the time of `zlib`. Written from RFC 1950 (zlib) and RFC 1951 (DEFLATE); section numbers are those of RFC 1951.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

_LONGEST = 15  # bits of a code
_SPARE = 40  # zero bytes behind the data, so that the reader of bits need not look for the end within a block header
_BLOCK = 8  # places are found by blocks of 2^8 bytes

# Section 3.2.5: lengths and distances that a symbol stands for, and how many more bits belong to it.
_LENGTH_EXTRA = np.array([0] * 8 + [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4 + [5] * 4 + [0], np.int64)
_LENGTH_BASE = np.concatenate([[3], 3 + np.cumsum(1 << _LENGTH_EXTRA[:-2]), [258]]).astype(np.int64)
_DISTANCE_EXTRA = np.array([max(0, symbol // 2 - 1) for symbol in range(30)], np.int64)
_DISTANCE_BASE = np.concatenate([[1], 1 + np.cumsum(1 << _DISTANCE_EXTRA[:-1])]).astype(np.int64)
# Section 3.2.7: the order in which the lengths of the code lengths' own codes are stored.
_ORDER = np.array([16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15], np.int64)

_FULL = -8
_ERRORS = {
    -1: "the compressed data end too early",
    -2: "a block of an unknown kind",
    -3: "an uncompressed block of inconsistent length",
    -4: "code lengths that make no code",
    -5: "a code that stands for nothing",
    -6: "a reference to data before the beginning",
    -7: "a zlib header that is none",
}


def inflate_nonzero(packed: bytes, size: int) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """The bytes that are not zero among the first `size` ones of zlib data; what follows is not looked at.

    The checksum of the data is not verified: callers hold one of `packed`, as a PNG does.

    Args:
        packed: Data with a zlib header.
        size: Bytes expected, less than 2^31.

    Returns:
        Places (M,) in increasing order, and the bytes (M,) there.

    Raises:
        ValueError: The data are damaged or shorter than `size`.
    """
    words = np.frombuffer(packed + bytes(_SPARE + -len(packed) % 8), "<u8").astype(np.uint64, copy=False)
    room = min(size, 2 * len(packed)) + 512
    while True:
        places, values = np.empty(room, np.int32), np.empty(room, np.uint8)
        used, written = _inflate(words, 8 * len(packed), size, places, values)
        if written != _FULL:
            break
        room = min(size + 512, 8 * room)
    if written < 0:
        raise ValueError(_ERRORS[int(written)])
    if written != size:
        raise ValueError(f"{written} bytes of data instead of {size}")
    return places[:used], values[:used]


@njit(cache=True, nogil=True)
def _make_table(lengths: NDArray[np.int64], table: NDArray[np.int32]) -> Any:  # pragma: no cover - compiled
    """Fills the look-up table of a canonical code (section 3.2.2).

    Args:
        lengths: (S,) bits of the code of each symbol, 0 for symbols that do not occur.
        table: (2**15,) for every sequence of bits, first bit lowest: symbol * 16 + bits of its code; 0 for no code.

    Returns:
        The bits by which the table is asked (the longest code), or -4 for lengths that make no code.
    """
    counts = np.zeros(_LONGEST + 1, np.int64)
    for symbol in range(len(lengths)):
        counts[lengths[symbol]] += 1
    counts[0] = 0
    longest, left, used = 0, 1, 0
    following = np.zeros(_LONGEST + 2, np.int64)
    for bits in range(1, _LONGEST + 1):
        following[bits] = (following[bits - 1] + counts[bits - 1]) << 1
        left = (left << 1) - counts[bits]
        if left < 0:
            return -4
        used += counts[bits]
        if counts[bits]:
            longest = bits
    # As in zlib: only a code of a single symbol, or of none, may leave sequences of bits without a meaning.
    if left > 0 and longest > 1:
        return -4
    size = 1 << longest
    for i in range(size):
        table[i] = 0
    for symbol in range(len(lengths)):
        bits = lengths[symbol]
        if bits == 0:
            continue
        code = following[bits]
        following[bits] += 1
        # The first bit of a code is its highest, but the first bit of the data is the lowest.
        reverse = 0
        for _ in range(bits):
            reverse = (reverse << 1) | (code & 1)
            code >>= 1
        for i in range(reverse, size, 1 << bits):
            table[i] = (symbol << 4) | bits
    return longest


@njit(cache=True, nogil=True)
def _peek(words: NDArray[np.uint64], position: Any) -> Any:  # pragma: no cover - compiled
    """The 48 bits from bit `position` on, the first one lowest."""
    word, shift = position >> 6, np.uint64(position & 63)
    low, high = words[word] >> shift, (words[word + 1] << np.uint64(1)) << (np.uint64(63) - shift)
    return np.int64((low | high) & np.uint64(0xFFFFFFFFFFFF))


@njit(cache=True, nogil=True)
def _code_lengths(
    words: NDArray[np.uint64], end: Any, position: Any, lengths: NDArray[np.int64], table: NDArray[np.int32]
) -> Any:  # pragma: no cover - compiled
    """Reads the two codes of a block (section 3.2.7) into `lengths`, those of the distances behind the others.

    Returns:
        The number of literal and length codes, or a negative key of `_ERRORS`; that of distance codes; and the position
        behind them.
    """
    bits = _peek(words, position)
    literal_count, distance_count = (bits & 31) + 257, ((bits >> 5) & 31) + 1
    code_count = ((bits >> 10) & 15) + 4
    position += 14
    if literal_count > 286 or distance_count > 30:
        return -4, 0, position
    short = np.zeros(len(_ORDER), np.int64)
    for i in range(code_count):
        short[_ORDER[i]] = _peek(words, position) & 7
        position += 3
    longest = _make_table(short, table)
    if longest < 1:
        return -4, 0, position
    index, total = 0, literal_count + distance_count
    while index < total:
        if position > end:
            return -1, 0, position
        bits = _peek(words, position)
        entry = np.int64(table[bits & ((1 << longest) - 1)])
        if entry == 0:
            return -5, 0, position
        bits >>= entry & 15
        position += entry & 15
        symbol = entry >> 4
        if symbol < 16:
            lengths[index] = symbol
            index += 1
            continue
        # 16: the length before, 3 to 6 times; 17 and 18: zeros, 3 to 10 and 11 to 138 times.
        more = 2 if symbol == 16 else 3 if symbol == 17 else 7
        repeats = (11 if symbol == 18 else 3) + (bits & ((1 << more) - 1))
        position += more
        if index + repeats > total or (symbol == 16 and index == 0):
            return -4, 0, position
        repeated = lengths[index - 1] if symbol == 16 else 0
        for _ in range(repeats):
            lengths[index] = repeated
            index += 1
    return (literal_count if lengths[256] else -4), distance_count, position


@njit(cache=True, nogil=True)
def _inflate(
    words: NDArray[np.uint64], end: Any, size: Any, places: NDArray[np.int32], values: NDArray[np.uint8]
) -> Any:  # pragma: no cover - compiled
    """Unpacks until there are `size` bytes or the data are at their end.

    Args:
        words: zlib data and `_SPARE` zero bytes or more behind them.
        end: Bits of the data.
        size: Bytes wanted.
        places: Filled with the places of bytes that are not zero.
        values: Filled with these bytes.

    Returns:
        How many bytes are not zero, and how many there are in all, or a negative key of `_ERRORS`.
    """
    header = _peek(words, 0)
    if end < 16 or header & 15 != 8 or ((header & 255) * 256 + (header >> 8 & 255)) % 31 or header & 0x2000:
        return 0, -7
    room = len(places) - 258
    # Of each block of places, how many entries come before it; known for the blocks before `block`.
    earlier = np.empty((size >> _BLOCK) + 2, np.int32)
    block = 0
    literals = np.empty(1 << _LONGEST, np.int32)
    distances = np.empty(1 << _LONGEST, np.int32)
    lengths = np.zeros(320, np.int64)
    at, used = 0, 0
    position = 16
    newest = -1  # place of the newest entry
    last = False
    while not last and at < size:
        if position > end:
            return used, -1
        bits = _peek(words, position)
        last = bits & 1 == 1
        kind = (bits >> 1) & 3
        position += 3
        if kind == 3:
            return used, -2
        if kind == 0:
            position = (position + 7) & ~7
            bits = _peek(words, position)
            length = bits & 0xFFFF
            position += 32
            if position + 8 * length > end:
                return used, -1
            if length ^ 0xFFFF != bits >> 16 & 0xFFFF:
                return used, -3
            for i in range(min(length, size - at)):
                literal = _peek(words, position + 8 * i) & 255
                if literal:
                    if used > room:
                        return used, _FULL
                    newest = at + i
                    while block <= newest >> _BLOCK:
                        earlier[block] = used
                        block += 1
                    places[used], values[used] = newest, literal
                    used += 1
            at += min(length, size - at)
            position += 8 * length
            continue
        if kind == 1:
            for symbol in range(288):
                lengths[symbol] = 8 if symbol < 144 else 9 if symbol < 256 else 7 if symbol < 280 else 8
            for symbol in range(288, 320):
                lengths[symbol] = 5
            literal_count, distance_count = 288, 32
        else:
            literal_count, distance_count, position = _code_lengths(words, end, position, lengths, literals)
            if literal_count < 0:
                return used, literal_count
        literal_bits = _make_table(lengths[:literal_count], literals)
        distance_bits = _make_table(lengths[literal_count : literal_count + distance_count], distances)
        if literal_bits < 1 or distance_bits < 0:
            return used, -4
        literal_mask, distance_mask = (1 << literal_bits) - 1, (1 << distance_bits) - 1
        while at < size:
            if position > end:
                return used, -1
            # A length and a distance with all that belongs to them have at most 48 bits.
            bits = _peek(words, position)
            entry = np.int64(literals[bits & literal_mask])
            if entry == 0:
                return used, -5
            bits >>= entry & 15
            position += entry & 15
            symbol = entry >> 4
            if symbol < 256:
                if symbol:
                    if used > room:
                        return used, _FULL
                    newest = at
                    while block <= at >> _BLOCK:
                        earlier[block] = used
                        block += 1
                    places[used], values[used] = at, symbol
                    used += 1
                at += 1
                continue
            if symbol == 256:
                break
            if symbol > 285:
                return used, -5
            extra = _LENGTH_EXTRA[symbol - 257]
            length = min(_LENGTH_BASE[symbol - 257] + (bits & ((1 << extra) - 1)), size - at)
            bits >>= extra
            entry = np.int64(distances[bits & distance_mask])
            symbol = entry >> 4
            if entry == 0 or symbol > 29:
                return used, -5
            bits >>= entry & 15
            position += extra + (entry & 15) + _DISTANCE_EXTRA[symbol]
            distance = _DISTANCE_BASE[symbol] + (bits & ((1 << _DISTANCE_EXTRA[symbol]) - 1))
            source = at - distance
            if source < 0:
                return used, -6
            at += length
            if newest < source:
                continue  # nothing but zeros
            if used > room:
                return used, _FULL
            # Entries are copied one by one, so that those which this very match makes are met, too (section 3.2.3).
            entry = np.int64(earlier[source >> _BLOCK]) if source >> _BLOCK < block else used
            while entry < used and places[entry] < source:
                entry += 1
            while entry < used and places[entry] < source + length:
                newest = places[entry] + distance
                while block <= newest >> _BLOCK:
                    earlier[block] = used
                    block += 1
                places[used], values[used] = newest, values[entry]
                used += 1
                entry += 1
    # Zeros behind the data may have been taken for some.
    return used, (at if position <= end else -1)
