"""Anchors: reference boxes of given sizes and proportions around every cell of every feature map.

Ren et al. 2015 (Faster R-CNN), sec. 3.1.1; rounding and order as in torchvision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from everymask.errors import InputError

Grid = tuple[int, int]
"""(rows, columns) of a feature map."""


class Anchors:
    """The anchors of a feature pyramid; computed once for each size of images.

    Args:
        sizes: For each feature map, finest first, the square roots of the anchors' areas in pixels.
        ratios: Heights divided by widths, the same for all maps.

    Attributes:
        per_cell: Anchors at each cell of a feature map.

    Raises:
        InputError: The numbers are not positive, or maps would have different numbers of anchors in a cell.
    """

    def __init__(self, sizes: Sequence[Sequence[float]], ratios: Sequence[float] = (0.5, 1.0, 2.0)) -> None:
        values = [*ratios, *(each for level in sizes for each in level)]
        if not sizes or not ratios or not all(0 < each < math.inf for each in values):
            raise InputError(f"anchors need sizes and ratios above 0, got sizes {sizes} and ratios {ratios}")
        if len({len(level) for level in sizes}) > 1:
            raise InputError(f"anchors: every feature map needs as many sizes as the others, got {sizes}")
        self._cells = tuple(tuple(map(tuple, cell_anchors(level, ratios).tolist())) for level in sizes)
        self.per_cell = len(self._cells[0])

    def __len__(self) -> int:
        return len(self._cells)

    def __call__(self, size: Grid, grids: Sequence[Grid], device: torch.device) -> Tensor:
        """Anchors (A, 4) x0, y0, x1, y1 in pixels: map after map, row after row; those of a cell lie together.

        Args:
            size: (height, width) of the image in pixels.
            grids: (rows, columns) of each feature map, finest first.
            device: Where to.

        Raises:
            InputError: There are more or fewer maps than sizes were given for.
        """
        if len(grids) != len(self):
            raise InputError(f"anchors have sizes for {len(self)} feature maps, but there are {len(grids)}")
        rounded = tuple((int(rows), int(columns)) for rows, columns in grids)
        return _laid_out(self._cells, (int(size[0]), int(size[1])), rounded, torch.device(device))

    def counts(self, grids: Sequence[Grid]) -> list[int]:
        """How many of the anchors belong to each map."""
        return [self.per_cell * rows * columns for rows, columns in grids]


def cell_anchors(sizes: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """Anchors (R * S, 4) around the origin, rounded to whole pixels: all sizes of a ratio, then those of the next.

    Args:
        sizes: (S) square roots of the areas in pixels.
        ratios: (R) heights divided by widths.
    """
    size = torch.tensor(sizes, dtype=torch.float32, device="cpu")
    tall = torch.sqrt(torch.tensor(ratios, dtype=torch.float32, device="cpu"))
    widths = ((1 / tall)[:, None] * size).flatten()
    heights = (tall[:, None] * size).flatten()
    return (torch.stack([-widths, -heights, widths, heights], dim=1) / 2).round()


@lru_cache(maxsize=16)
def _laid_out(cells: tuple[tuple[Grid, ...], ...], size: Grid, grids: tuple[Grid, ...], device: torch.device) -> Tensor:
    """`Anchors.__call__`. Kept tensors must serve training, too, even if the first to ask is a prediction."""
    with torch.inference_mode(False):
        levels = []
        for cell, (rows, columns) in zip(cells, grids, strict=True):
            y = torch.arange(rows, dtype=torch.float32) * (size[0] // rows)
            x = torch.arange(columns, dtype=torch.float32) * (size[1] // columns)
            places = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).flip(-1).repeat(1, 1, 2)
            levels.append((places[:, :, None] + torch.tensor(cell)).reshape(-1, 4))
        return torch.cat(levels).to(device)
