"""PNG of 16 bits with several channels (grey + alpha, RGB, RGBA), which Pillow reduces to 8 bits without a word.

Written from the PNG specification, third edition (W3C, 2025): chunks, section 5; filters, section 9.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

from everymask.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}


def read(path: Path) -> NDArray[np.uint16]:
    """Pixels (H, W, C) of a PNG of 16 bits a channel.

    Args:
        path: A PNG whose header has been checked: 16 bits, colour type 0, 2, 4 or 6.

    Raises:
        InputError: The file is interlaced.
        ValueError: The file is damaged.
    """
    data = path.read_bytes()
    width, height, _, colour_type, _, _, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    if interlaced:
        raise InputError(f"{path} is an interlaced PNG of 16 bits; save it without interlacing, or as TIFF")
    channels = _CHANNELS[colour_type]
    row_bytes = width * channels * 2
    expected = height * (row_bytes + 1)
    # A limit, so that a small file cannot unpack to any size.
    packed = zlib.decompressobj()
    unpacked = packed.decompress(b"".join(_pixel_chunks(data)), expected)
    if len(unpacked) != expected:
        raise ValueError(f"{len(unpacked)} bytes of pixels instead of {expected}")
    rows = np.frombuffer(unpacked, np.uint8).reshape(height, row_bytes + 1)
    if rows[:, 0].max() > 4:
        raise ValueError(f"unknown row filter {rows[:, 0].max()}")
    pixels = _unfilter(rows[:, 0].copy(), rows[:, 1:].copy(), channels * 2)
    return pixels.view(">u2").astype(np.uint16).reshape(height, width, channels)


def _pixel_chunks(data: bytes) -> list[bytes]:
    """The contents of the IDAT chunks, their checksums verified."""
    chunks = []
    position = 8
    while position + 12 <= len(data):
        length, kind = struct.unpack(">I4s", data[position : position + 8])
        content = data[position + 8 : position + 8 + length]
        if kind == b"IDAT":
            checksum = data[position + 8 + length : position + 12 + length]
            if checksum != struct.pack(">I", zlib.crc32(content, zlib.crc32(kind))):
                raise ValueError("wrong checksum")
            chunks.append(content)
        elif kind == b"IEND":
            break
        position += 12 + length
    return chunks


@njit(cache=True)
def _unfilter(filters: Any, rows: Any, step: int) -> Any:
    """Undoes the row filters in place (section 9.2): `step` is the number of bytes of a pixel."""
    height, width = rows.shape
    for y in range(height):
        kind = filters[y]
        for x in range(width):
            left = np.int64(rows[y, x - step]) if x >= step else 0
            above = np.int64(rows[y - 1, x]) if y > 0 else 0
            corner = np.int64(rows[y - 1, x - step]) if x >= step and y > 0 else 0
            prediction = 0
            if kind == 1:
                prediction = left
            elif kind == 2:
                prediction = above
            elif kind == 3:
                prediction = (left + above) // 2
            elif kind == 4:
                to_left = abs(above - corner)
                to_above = abs(left - corner)
                to_corner = abs(left + above - 2 * corner)
                if to_left <= to_above and to_left <= to_corner:
                    prediction = left
                elif to_above <= to_corner:
                    prediction = above
                else:
                    prediction = corner
            rows[y, x] = (rows[y, x] + prediction) & 255
    return rows
