"""Large images in tiles for methods that give each pixel a class: overlapping tiles fade into one another.

Near the edge of a tile the network sees less of the surroundings, so two tiles may say different things of a pixel that
both hold. Instead of a border between them, at which the answer would jump, each tile has a weight that falls from 1 to
0 across the overlap as a raised cosine, and the weights of all tiles that hold a pixel sum to 1. Pixels nearer to an
inner edge than the method's `context` have the weight 0 if the overlap is twice as wide: then only outputs with
complete surroundings count, and the result is that of the untiled image.

What is averaged are probabilities, not logits (see `everymask.predict.averaging`).

Rows of tiles are worked off from the top, and the tiles of a row from the left. What no later tile reaches is handed on
at once; kept are the sums over the overlaps with the tiles to the right and below, so that the memory grows with the
width of the image times the overlap and the number of classes, but not with its height.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

from everymask.predict.tiling import Span, Tile

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


def fading_weights(spans: Sequence[Span], context: int, grid: int = 1) -> list[NDArray[np.float32]]:
    """Weights of the tiles along an axis: one array for each, a weight for each output sample.

    Args:
        spans: The tiles along the axis, from the first to the last.
        context: Radius of the surroundings that an output depends on, in pixels. Outputs nearer to an inner edge count
            nothing, unless the overlap is too narrow for that; then those in its outer quarters do not.
        grid: Pixels per output sample.

    Returns:
        Numbers in 0..1 that sum to 1 over the tiles at every sample.
    """
    start, stop = spans[0].start, spans[-1].stop
    total = np.zeros((stop - start) // grid)
    tapers = []
    for i, span in enumerate(spans):
        positions: NDArray[np.float64] = np.arange(span.start, span.stop, grid, dtype=np.float64) + grid / 2
        taper = np.ones(len(positions))
        if i:
            taper *= _rise(positions, span.start, spans[i - 1].stop, context)
        if i + 1 < len(spans):
            taper *= 1 - _rise(positions, spans[i + 1].start, span.stop, context)
        tapers.append(taper)
        total[(span.start - start) // grid : (span.stop - start) // grid] += taper
    return [
        (taper / total[(span.start - start) // grid : (span.stop - start) // grid]).astype(np.float32)
        for span, taper in zip(spans, tapers, strict=True)
    ]


def _rise(positions: NDArray[np.float64], start: int, stop: int, context: int) -> NDArray[np.float64]:
    """From 0 to 1 within an overlap start..stop: a raised cosine between the margins on both sides."""
    overlap = stop - start
    margin = context if 2 * context <= overlap else overlap / 4
    width = overlap - 2 * margin
    if width == 0:
        return (positions > start + margin).astype(np.float64)
    share = np.clip((positions - start - margin) / width, 0, 1)
    return np.asarray((1 - np.cos(np.pi * share)) / 2)


def blend(
    parts: Iterable[tuple[Tile, dict[str, Tensor]]], tiles: Sequence[Tile], context: int, grid: int = 1
) -> Iterator[tuple[Tile, dict[str, Tensor]]]:
    """The weighted sum of overlapping tiles, block by block.

    Args:
        parts: Each tile and its dense maps (1, ?, h, w), in the order of `tiles`; consumed one by one, and changed, so
            that there are no copies.
        tiles: From `everymask.predict.tiling.plan_tiles`.
        context: As for `fading_weights`.
        grid: Pixels per sample of the maps.

    Yields:
        Blocks that cover the image once, row by row of tiles, as tiles that are core only, and their maps.
    """
    rows, columns = ([*dict.fromkeys(getattr(tile, axis) for tile in tiles)] for axis in ("rows", "columns"))
    row_weights, column_weights = fading_weights(rows, context, grid), fading_weights(columns, context, grid)
    carried: dict[str, _Carried] = {}
    for number, (tile, maps) in enumerate(parts):
        row, column = divmod(number, len(columns))
        block = Tile((_finished(rows, row), _finished(columns, column)))
        weights = torch.from_numpy(np.outer(row_weights[row], column_weights[column]))
        for name, values in maps.items():
            if name not in carried:
                carried[name] = _Carried(values, rows, columns, grid)
            maps[name] = carried[name].add(values, weights, tile, block, row == 0, column == 0)
        yield block, maps


def _finished(spans: Sequence[Span], number: int) -> Span:
    """The part of a tile, along an axis, that no tile after it reaches."""
    start = spans[number].start
    stop = spans[number + 1].start if number + 1 < len(spans) else spans[number].stop
    return Span(start, stop, start, stop)


class _Carried:
    """The sums over the parts of tiles that later tiles reach, of one map.

    The memory is taken once: pieces that come and go between the large arrays of the network would scatter over it.

    Args:
        values: The map (1, ?, h, w) of a tile.
        rows: Tiles along the columns.
        columns: Tiles along the rows.
        grid: Pixels per sample.
    """

    def __init__(self, values: Tensor, rows: Sequence[Span], columns: Sequence[Span], grid: int) -> None:
        deep, wide = (max(one.stop - two.start for one, two in _neighbours(spans)) // grid for spans in (rows, columns))
        self._grid = grid
        self._below = values.new_zeros(*values.shape[:2], deep, columns[-1].stop // grid)
        self._right = values.new_zeros(*values.shape[:3], wide)

    @torch.inference_mode()
    def add(
        self, values: Tensor, weights: Tensor, tile: Tile, block: Tile, first_row: bool, first_column: bool
    ) -> Tensor:
        """The finished part of a tile's map, which is changed in place."""
        height, width = ((span.stop - span.start) // self._grid for span in (block.rows, block.columns))
        below = self._below[..., block.columns.start // self._grid : block.columns.stop // self._grid]
        values *= weights.to(values.device)
        if not first_column:
            reach = min(self._right.shape[-1], values.shape[-1])
            values[..., :reach] += self._right[..., :reach]
        later = values[..., width:]
        self._right.zero_()
        self._right[..., : later.shape[-1]] = later
        values = values[..., :width]
        if not first_row:
            reach = min(below.shape[-2], values.shape[-2])
            values[..., :reach, :] += below[..., :reach, :]
        later = values[..., height:, :]
        below.zero_()
        below[..., : later.shape[-2], :] = later
        return values[..., :height, :]


def _neighbours(spans: Sequence[Span]) -> list[tuple[Span, Span]]:
    """Pairs of tiles that overlap; of a single one, an empty overlap."""
    return [*pairwise(spans)] or [(spans[0], Span(spans[0].stop, 0, 0, 0))]
