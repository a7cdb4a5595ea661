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
    carried = _Carried([{} for _ in columns])
    for number, (tile, maps) in enumerate(parts):
        row, column = divmod(number, len(columns))
        # Up to where no tile below, and none to the right, has a say.
        end_row = rows[row + 1].start if row + 1 < len(rows) else tile.rows.stop
        end_column = columns[column + 1].start if column + 1 < len(columns) else tile.columns.stop
        height, width = (end_row - tile.rows.start) // grid, (end_column - tile.columns.start) // grid
        weights = torch.from_numpy(np.outer(row_weights[row], column_weights[column]))
        block_rows = Span(tile.rows.start, end_row, tile.rows.start, end_row)
        block = Tile(block_rows, Span(tile.columns.start, end_column, tile.columns.start, end_column))
        if column == 0:
            carried.right.clear()
        # Nothing may be kept here that lives on while the network sees the next tile.
        yield block, {name: carried.add(name, maps.pop(name), weights, column, height, width) for name in [*maps]}


class _Carried:
    """The sums over the parts of tiles that later tiles reach.

    Args:
        below: For each column of tiles, what its last tile and those above said of the rows below.

    Attributes:
        right: What the tiles to the left said of the columns to come.
    """

    def __init__(self, below: list[dict[str, Tensor]]) -> None:
        self.below = below
        self.right: dict[str, Tensor] = {}

    @torch.inference_mode()
    def add(self, name: str, values: Tensor, weights: Tensor, column: int, height: int, width: int) -> Tensor:
        """The finished part (1, ?, height, width) of a tile's map (1, ?, h, w), which is changed in place."""
        values *= weights.to(values.device)
        self._join(values, self.right.pop(name, None))
        self.right[name] = values[..., width:].clone()
        block = values[..., :width]
        self._join(block, self.below[column].pop(name, None))
        self.below[column][name] = block[..., height:, :].clone()
        return block[..., :height, :]

    @staticmethod
    def _join(values: Tensor, earlier: Tensor | None) -> None:
        if earlier is not None:
            values[..., : earlier.shape[-2], : earlier.shape[-1]] += earlier
