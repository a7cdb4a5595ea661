"""Large images in tiles: where the tiles lie.

Neighbouring tiles overlap, and the overlap is divided down the middle: each tile has a *core*, and the cores cover the
image once. Every output within a core is at least half an overlap from the inner edges of its tile. If that is no less
than the method's `context`, the outputs there are those of the whole image, because tiles begin at multiples of the
method's stride. An object belongs to the tile whose core holds the centre of its box and is taken from there whole.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

_PLANES = 64
"""Planes of a tile of a volume."""
_OVERLAP = (16, 32, 32)
"""Planes, rows and columns that tiles of a volume share beside the context on both sides."""


@dataclass(frozen=True, slots=True)
class Span:
    """A tile along one axis: pixels start..stop, of which core_start..core_stop are its own."""

    start: int
    stop: int
    core_start: int
    core_stop: int


@dataclass(frozen=True, slots=True)
class Tile:
    """A box of the (padded) image or volume: a span along each axis, (rows, columns) or (planes, rows, columns)."""

    spans: tuple[Span, ...]

    @property
    def rows(self) -> Span:
        """Along the columns of the image."""
        return self.spans[-2]

    @property
    def columns(self) -> Span:
        """Along its rows."""
        return self.spans[-1]

    @property
    def origin(self) -> tuple[int, ...]:
        """Row and column (plane, row and column) of the first pixel."""
        return tuple(span.start for span in self.spans)

    @property
    def window(self) -> tuple[slice, ...]:
        """The tile in the pixels of the image."""
        return tuple(slice(span.start, span.stop) for span in self.spans)

    @property
    def core(self) -> tuple[slice, ...]:
        """The core in the pixels of the tile."""
        return tuple(slice(span.core_start - span.start, span.core_stop - span.start) for span in self.spans)


def plan_tiles(
    size: Sequence[int], tile: int | Sequence[int], overlap: int | Sequence[int], stride: int | Sequence[int]
) -> list[Tile]:
    """Tiles of equal size that cover an image or a volume, row by row.

    Args:
        size: (H, W) or (D, H, W).
        tile: Longest side of a tile in pixels, a multiple of `stride`; an axis that is no longer is not divided. One
            number for all axes, or one for each, here as below.
        overlap: Pixels that neighbours share at least; at most half of `tile`.
        stride: Tiles begin and end, and cores end, at multiples of it.
    """
    tiles, overlaps, strides = (
        [each] * len(size) if isinstance(each, int) else each for each in (tile, overlap, stride)
    )
    axes = [_spans(*each) for each in zip(size, tiles, overlaps, strides, strict=True)]
    return [Tile(spans) for spans in itertools.product(*axes)]


def plan_volume(size: Sequence[int], voxels: int, stride: Sequence[int], context: Sequence[int]) -> list[Tile]:
    """Tiles of a volume whose number of voxels is limited.

    Args:
        size: (D, H, W).
        voxels: Of a tile, about; the smallest tile has four times the stride along each axis.
        stride: (planes, rows, columns) as for `plan_tiles`.
        context: The same of the radius that outputs depend on.
    """
    padded = [-(-length // step) * step for length, step in zip(size, stride, strict=True)]
    planes = min(padded[0], max(4 * stride[0], _PLANES // stride[0] * stride[0]))
    side = max(4 * stride[1], math.isqrt(voxels // planes) // stride[1] * stride[1])
    # Where few rows or columns are to be had, the tile may be longer along the other axis.
    side = min(max(side, voxels // (planes * min(padded[1:])) // stride[1] * stride[1]), max(padded))
    tile = [planes, side, side]
    wanted = [max(each, 2 * reach + each) for each, reach in zip(_OVERLAP, context, strict=True)]
    overlap = [min(each, length // 2) for each, length in zip(wanted, tile, strict=True)]
    return plan_tiles(size, tile, overlap, stride)


def _spans(length: int, tile: int, overlap: int, stride: int) -> list[Span]:
    total, shared, longest = -(-length // stride), -(-overlap // stride), tile // stride
    if total <= longest:
        return [Span(0, total * stride, 0, total * stride)]
    # As few tiles as will do, then as small as will do, so that the overlap is not wasted on the last one.
    count = -(-(total - shared) // (longest - shared))
    side = -(-(total + (count - 1) * shared) // count)
    starts = [i * (total - side) // (count - 1) for i in range(count)]
    borders = [0, *((starts[i + 1] + starts[i] + side) // 2 for i in range(count - 1)), total]
    return [
        Span(start * stride, (start + side) * stride, borders[i] * stride, borders[i + 1] * stride)
        for i, start in enumerate(starts)
    ]
