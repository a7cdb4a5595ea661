"""The pyramid pooling module of PSPNet."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class PyramidPooling(nn.Module):
    """Means over the cells of several grids, each through a 1 x 1 convolution, beside the features themselves.

    Zhao, Shi, Qi, Wang, Jia 2017, fig. 3c. The grid of a single cell has a bias instead of batch normalisation, as in
    `segmentation_models_pytorch`, whose weights load.

    Args:
        inputs: Channels of the features.
        sizes: Cells of each grid along both axes.
        align_corners: How the grids are spread over the map again: by the centres of their corner cells, or by their
            outer edges.

    Attributes:
        width: Channels of the result.
    """

    def __init__(self, inputs: int, sizes: Sequence[int] = (1, 2, 3, 6), align_corners: bool = False) -> None:
        super().__init__()
        outputs = inputs // len(sizes)
        self.sizes, self.align_corners = tuple(sizes), align_corners
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, bias=size == 1),
                nn.Identity() if size == 1 else nn.BatchNorm2d(outputs),
                nn.ReLU(inplace=True),
            )
            for size in sizes
        )
        self.width = inputs + outputs * len(sizes)

    def forward(self, features: Tensor) -> Tensor:
        """(B, width, H, W) of features (B, inputs, H, W)."""
        joined = []
        for size, block in zip(self.sizes, self.blocks, strict=True):
            cells = block(cell_means(features, size))
            joined.append(
                functional.interpolate(
                    cells, size=features.shape[-2:], mode="bilinear", align_corners=self.align_corners
                )
            )
        return torch.cat([*joined, features], dim=1)


def cell_means(features: Tensor, size: int) -> Tensor:
    """Means (B, C, size, size) over the cells of a regular grid, as `torch.nn.functional.adaptive_avg_pool2d`.

    Exported networks take images of any size, for which the exporter knows no adaptive pooling; there the means are
    products with matrices.
    """
    if size == 1:
        return features.mean((-2, -1), keepdim=True)
    if not torch.compiler.is_exporting():
        return functional.adaptive_avg_pool2d(features, size)
    rows, columns = (_averaging(features.shape[axis], size, features) for axis in (-2, -1))
    return rows @ features @ columns.transpose(0, 1)


def _averaging(length: int, size: int, like: Tensor) -> Tensor:
    """(size, length): weights of the positions in the mean of each cell, from floor(i L / s) to ceil((i + 1) L / s)."""
    cells, positions = torch.arange(size, device=like.device)[:, None], torch.arange(length, device=like.device)
    first, last = cells * length // size, ((cells + 1) * length + size - 1) // size
    inside = ((positions >= first) & (positions < last)).to(like.dtype)
    return inside / inside.sum(1, keepdim=True)
