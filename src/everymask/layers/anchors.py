"""Anchors: reference boxes of given sizes and proportions around every cell of every feature map.

Ren et al. 2015 (Faster R-CNN), sec. 3.1.1, and Liu et al. 2016 (SSD), sec. 2.2; rounding and order as in torchvision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise

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
        steps: Pixels from cell to cell of each map. Only those that are not whole count, as of transformers with
            patches of 14 pixels; else, as in torchvision, they are as many whole ones as fit into the image for each
            cell, which is fewer where a map is rounded up.

    Attributes:
        per_cell: Anchors at each cell of a feature map.

    Raises:
        InputError: The numbers are not positive, or maps would have different numbers of anchors in a cell.
    """

    def __init__(
        self,
        sizes: Sequence[Sequence[float]],
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
        steps: Sequence[float] = (),
    ) -> None:
        values = [*ratios, *(each for level in sizes for each in level)]
        if not sizes or not ratios or not all(0 < each < math.inf for each in values):
            raise InputError(f"anchors need sizes and ratios above 0, got sizes {sizes} and ratios {ratios}")
        if len({len(level) for level in sizes}) > 1:
            raise InputError(f"anchors: every feature map needs as many sizes as the others, got {sizes}")
        fractions = [0.0 if float(step).is_integer() else float(step) for step in steps] or [0.0] * len(sizes)
        self._levels = tuple(
            (tuple(map(tuple, cell_anchors(level, ratios).tolist())), step)
            for level, step in zip(sizes, fractions, strict=True)
        )
        self.per_cell = len(self._levels[0][0])

    def __len__(self) -> int:
        return len(self._levels)

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
        if torch.compiler.is_exporting():
            return _laid_out(self._levels, size, grids).to(device)  # sizes are symbols, which nothing is kept for
        return _kept(_laid_out, self._levels, _whole(size), _whole_grids(grids), torch.device(device))

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


class DefaultBoxes:
    """The reference boxes of SSD, for square images of one size (Liu et al. 2016, sec. 2.2, eq. 4).

    Each feature map has a scale s. Around the middle of every cell lie a square of side s, one of the geometric mean of
    s and the next map's scale, and for each ratio a lying and a standing box of the area of the first square.

    Args:
        scales: Sides of the squares as shares of the image, finest map first, and one more for beyond the last map.
        ratios: For each map, longer sides divided by shorter ones.
        cells: For each map, how many cells fit along the image; the map may have another, cut off or beyond the edge.

    Attributes:
        per_cell: Boxes at a cell of each map.

    Raises:
        InputError: There is not one scale more than maps, or the scales do not rise from above 0.
    """

    def __init__(self, scales: Sequence[float], ratios: Sequence[Sequence[float]], cells: Sequence[float]) -> None:
        if len(scales) != len(ratios) + 1 or not all(low < high for low, high in pairwise([0.0, *scales])):
            raise InputError(
                f"default boxes: {len(ratios)} feature maps need {len(ratios) + 1} rising scales above 0, got "
                f"{tuple(scales)}"
            )
        sides: list[Cells] = []
        for (scale, following), of_map in zip(pairwise(scales), ratios, strict=True):
            of_cell = [(scale, scale), (math.sqrt(scale * following),) * 2]
            for ratio in of_map:
                long, short = scale * math.sqrt(ratio), scale / math.sqrt(ratio)
                of_cell += [(long, short), (short, long)]
            # A box is no larger than the image, but may reach beyond its edges.
            sides.append(tuple((min(width, 1.0), min(height, 1.0)) for width, height in of_cell))
        self._sides, self._cells = tuple(sides), tuple(map(float, cells))
        self.per_cell = tuple(len(each) for each in sides)

    def __call__(self, grids: Sequence[Grid], device: torch.device) -> Tensor:
        """Boxes (A, 4) x0, y0, x1, y1 as shares of the image, in the order of `Anchors`.

        Args:
            grids: (rows, columns) of each feature map, finest first.
            device: Where to.
        """
        return _kept(_around_middles, self._sides, self._cells, _whole_grids(grids), torch.device(device))


Cells = tuple[tuple[float, ...], ...]
"""Of a feature map: numbers of each box at a cell."""


def _whole(size: Grid) -> Grid:
    return int(size[0]), int(size[1])


def _whole_grids(grids: Sequence[Grid]) -> tuple[Grid, ...]:
    return tuple(map(_whole, grids))


@lru_cache(maxsize=16)
def _kept(compute: Callable[..., Tensor], boxes: object, sizes: object, grids: object, device: torch.device) -> Tensor:
    """What is computed, kept for the next time; it must serve training, too, even if a prediction asks first."""
    with torch.inference_mode(False):
        return compute(boxes, sizes, grids).to(device)


def _laid_out(cells: Sequence[tuple[Cells, float]], size: Grid, grids: Sequence[Grid]) -> Tensor:
    """`Anchors.__call__`."""
    levels = []
    for (cell, step), (rows, columns) in zip(cells, grids, strict=True):
        y = torch.arange(rows, dtype=torch.float32) * (step or size[0] // rows)
        x = torch.arange(columns, dtype=torch.float32) * (step or size[1] // columns)
        places = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).flip(-1).repeat(1, 1, 2)
        levels.append((places[:, :, None] + torch.tensor(cell)).reshape(-1, 4))
    return torch.cat(levels)


def _around_middles(sides: Sequence[Cells], cells: Sequence[float], grids: Sequence[Grid]) -> Tensor:
    """`DefaultBoxes.__call__`."""
    levels = []
    for of_map, number, (rows, columns) in zip(sides, cells, grids, strict=True):
        y, x = ((torch.arange(length) + 0.5) / number for length in (rows, columns))
        middles = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).flip(-1)[:, :, None]
        half = 0.5 * torch.tensor(of_map)
        levels.append(torch.cat([middles - half, middles + half], dim=-1).reshape(-1, 4))
    return torch.cat(levels)
