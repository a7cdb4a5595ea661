"""The first step of decoding StarDist on an accelerator: which pixels are candidates, with torch.

A network predicts a probability and R distances at every pixel. Suppression, one polygon after the other, is for a
processor; what it needs are the candidates, and what travels are they alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from everymask.errors import InputError


def candidates(
    probability: Tensor, distances: Tensor, threshold: float, border: int = 2, grid: Sequence[int] = (1, 1)
) -> tuple[Tensor, Tensor, Tensor]:
    """Predicted polygons or polyhedra above a probability threshold, best first.

    As `everymask.ops.stars.candidates` and `everymask.ops.star_volumes.volume_candidates`.

    Args:
        probability: Object probability `(h, w)` or `(d, h, w)` on the grid of the prediction.
        distances: Distances along rays in pixels of the image, `(R, h, w)` or `(R, d, h, w)`. In volumes those beyond
            the diagonal are cut to it.
        threshold: Probability that a candidate has to exceed.
        border: Cells of the grid along each edge that give no candidates.
        grid: Pixels of the image per cell of the prediction, along each axis.

    Returns:
        On the same device: points `(N, 2)` (y, x) or `(N, 3)` (z, y, x) in pixels of the image, scores `(N,)` in
        descending order, equal ones in raster order, and distances `(N, R)` of at least 0.001, all float32.

    Raises:
        InputError: Where the shapes do not belong together, or the threshold is negative.
    """
    if not threshold >= 0:
        raise InputError(f"threshold: got {threshold}, expected a probability of at least 0, such as 0.5")
    shape = tuple(probability.shape)
    if len(shape) not in (2, 3) or tuple(distances.shape[1:]) != shape or len(grid) != len(shape):
        raise InputError(
            f"probability, distances, grid: got shapes {shape} and {tuple(distances.shape)} and {tuple(grid)}, "
            "expected (h, w), (R, h, w) and two numbers, or (d, h, w), (R, d, h, w) and three"
        )
    inner = probability[tuple(slice(border, max(side - border, border)) for side in shape)]
    cells = (inner > threshold).nonzero()
    scores, order = inner[cells.unbind(1)].float().sort(descending=True, stable=True)
    cells = cells[order] + border
    longest = max(math.hypot(*(cell * side for cell, side in zip(grid, shape, strict=True))), 1.0)
    rays = distances[(slice(None), *cells.unbind(1))].T.float().clamp(1e-3, longest if len(shape) == 3 else math.inf)
    return cells.float() * torch.tensor(grid, dtype=torch.float32, device=cells.device), scores, rays.contiguous()
