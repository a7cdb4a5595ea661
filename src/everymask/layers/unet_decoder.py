"""The decoder of a U-Net on the feature pyramid of a backbone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from everymask.layers.unet import convolution


class UNetDecoder(nn.Module):
    """Nearest-neighbour upsampling, skip connection and two convolutions a level, down to the resolution of the image.

    The design of the field's packages for U-Nets on classification networks; the same as the ``Unet`` of
    `segmentation_models_pytorch`, so that its weights load.

    Args:
        skips: Channels of the feature maps, finest first; each has half the resolution of the one before.
        widths: Channels of the levels, deepest first. There may be more levels than feature maps: the last ones then
            have no skip connection, as on backbones that begin at stride 4.

    Attributes:
        width: Channels of the output.
    """

    def __init__(self, skips: Sequence[int], widths: Sequence[int] = (256, 128, 64, 32, 16)) -> None:
        super().__init__()
        below = [skips[-1], *widths[:-1]]
        beside = [*reversed(skips[:-1]), *[0] * (len(widths) - len(skips) + 1)]
        self.levels = nn.ModuleList(
            nn.Sequential(convolution(inputs + skip, width, "batch"), convolution(width, width, "batch"))
            for inputs, skip, width in zip(below, beside, widths, strict=True)
        )
        self.width = widths[-1]

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Features (B, width, h, w), finer than the deepest of `features` by a factor of 2 for each level."""
        current = features[-1]
        for i, level in enumerate(self.levels):
            current = functional.interpolate(current, scale_factor=2.0, mode="nearest")
            if i + 1 < len(features):
                current = torch.cat([current, features[-2 - i]], dim=1)
            current = level(current)
        return current
