"""Large images in tiles: where the tiles lie.

Neighbouring tiles overlap, and the overlap is divided down the middle: each tile has a *core*, and the cores cover the
image once. Every output within a core is at least half an overlap from the inner edges of its tile. If that is no less
than the method's `context`, the outputs there are those of the whole image, because tiles begin at multiples of the
method's stride. An object belongs to the tile whose core holds the centre of its box and is taken from there whole.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Span:
    """A tile along one axis: pixels start..stop, of which core_start..core_stop are its own."""

    start: int
    stop: int
    core_start: int
    core_stop: int


@dataclass(frozen=True, slots=True)
class Tile:
    """A rectangle of the (padded) image."""

    rows: Span
    columns: Span

    @property
    def origin(self) -> tuple[int, int]:
        """Row and column of the first pixel."""
        return self.rows.start, self.columns.start

    @property
    def core(self) -> tuple[slice, slice]:
        """The core in the pixels of the tile."""
        return (
            slice(self.rows.core_start - self.rows.start, self.rows.core_stop - self.rows.start),
            slice(self.columns.core_start - self.columns.start, self.columns.core_stop - self.columns.start),
        )


def plan_tiles(size: tuple[int, int], tile: int, overlap: int, stride: int) -> list[Tile]:
    """Tiles of equal size that cover an image, row by row.

    Args:
        size: (H, W) of the image.
        tile: Longest side of a tile in pixels, a multiple of `stride`; an axis that is no longer is not divided.
        overlap: Pixels that neighbours share at least; at most half of `tile`.
        stride: Tiles begin and end, and cores end, at multiples of it.
    """
    rows, columns = (_spans(length, tile, overlap, stride) for length in size)
    return [Tile(row, column) for row in rows for column in columns]


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
