"""ERFNet: residual layers of one-dimensional convolutions, most of them at an eighth of the resolution.

Romera, Alvarez, Bergasa, Arroyo, ERFNet: Efficient Residual Factorized ConvNet for Real-Time Semantic Segmentation,
IEEE Transactions on Intelligent Transportation Systems 19(1), 2018. The branched form, one encoder with a decoder for
each group of outputs, is that of Neven et al., Instance Segmentation by Jointly Optimizing Spatial Embeddings and
Clustering Bandwidth, CVPR 2019.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from everymask.errors import InputError

DILATIONS = (2, 4, 8, 16)
"""Of the residual blocks at an eighth of the resolution (paper, table 1); the paper runs through them twice."""


class Downsampler(nn.Module):
    """Halves the resolution: a strided convolution beside a max pooling (paper, section III-B).

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out, more than `inputs`.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs - inputs, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, features: Tensor) -> Tensor:
        """(B, outputs, H / 2, W / 2) of (B, inputs, H, W), both even."""
        joined = torch.cat([self.convolution(features), functional.max_pool2d(features, 2)], dim=1)
        return functional.relu(self.norm(joined), inplace=True)


class FactorizedResidual(nn.Module):
    """Non-bottleneck-1D: two 3 x 3 convolutions, each as a column and a row, and a shortcut (paper, figure 2c).

    Args:
        channels: Channels in and out.
        dilation: Of the second pair.
        dropout: Probability that a channel is dropped before the shortcut is added.
    """

    def __init__(self, channels: int, dilation: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        along, across = (dilation, 1), (1, dilation)
        self.first_column = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0))
        self.first_row = nn.Conv2d(channels, channels, (1, 3), padding=(0, 1), bias=False)
        self.first_norm = nn.BatchNorm2d(channels)
        self.second_column = nn.Conv2d(channels, channels, (3, 1), padding=(dilation, 0), dilation=along)
        self.second_row = nn.Conv2d(channels, channels, (1, 3), padding=(0, dilation), dilation=across, bias=False)
        self.second_norm = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout2d(dropout) if dropout else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) of the same shape."""
        inner = functional.relu(self.first_column(features), inplace=True)
        inner = functional.relu(self.first_norm(self.first_row(inner)), inplace=True)
        inner = functional.relu(self.second_column(inner), inplace=True)
        inner = self.dropout(self.second_norm(self.second_row(inner)))
        return functional.relu(inner + features, inplace=True)


class Upsampler(nn.Module):
    """Doubles the resolution by a transposed 3 x 3 convolution (paper, section III-B).

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.convolution = nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, features: Tensor) -> Tensor:
        """(B, outputs, 2 H, 2 W) of (B, inputs, H, W)."""
        return functional.relu(self.norm(self.convolution(features)), inplace=True)


class BranchedERFNet(nn.Module):
    """ERFNet with one encoder and a decoder for each group of outputs.

    Args:
        channels: Input channels C.
        outputs: Channels of each group of outputs.
        base: Channels at half the resolution, 16 in the paper; 4 times as many at a quarter, 8 times at an eighth.
        repeats: How often the encoder runs through the `DILATIONS`; 2 in the paper.
        dropout: In the blocks at an eighth of the resolution; a tenth of it in those at a quarter. 0.3 in the paper.

    Attributes:
        stride: Height and width of the input must be multiples of it.
        heads: The last layer of each group of outputs.
        radius: Radius in pixels of the receptive field.

    Raises:
        InputError: A number is out of range.
    """

    stride = 8

    def __init__(
        self, channels: int, outputs: Sequence[int], base: int = 16, repeats: int = 2, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if base <= channels:
            raise InputError(f"base must be larger than the number of channels, {channels}, got {base}")
        if repeats < 1 or not 0 <= dropout < 1:
            raise InputError(f"repeats must be at least 1 and dropout in 0..1, got {repeats} and {dropout}")
        half, quarter, eighth = base, 4 * base, 8 * base
        self.encoder = nn.Sequential(
            Downsampler(channels, half),
            Downsampler(half, quarter),
            *[FactorizedResidual(quarter, dropout=dropout / 10) for _ in range(5)],
            Downsampler(quarter, eighth),
            *[FactorizedResidual(eighth, dilation, dropout) for _ in range(repeats) for dilation in DILATIONS],
        )
        self.decoders = nn.ModuleList(
            nn.Sequential(
                Upsampler(eighth, quarter),
                FactorizedResidual(quarter),
                FactorizedResidual(quarter),
                Upsampler(quarter, half),
                FactorizedResidual(half),
                FactorizedResidual(half),
            )
            for _ in outputs
        )
        self.heads = nn.ModuleList(nn.ConvTranspose2d(half, width, 2, stride=2) for width in outputs)
        # In features of stride s a block of reach r sees r s pixels further.
        blocks = 4 * (2 * 5) + 8 * repeats * sum(1 + each for each in DILATIONS) + 4 * (2 * 2) + 2 * (2 * 2)
        # Downsamplers, upsamplers, and that a feature stands for s pixels.
        self.radius = blocks + (1 + 2 + 4) + (4 + 2) + self.stride

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """A map (B, ?, H, W) for each group of outputs, of images (B, C, H, W)."""
        features = self.encoder(images)
        return tuple(head(decoder(features)) for head, decoder in zip(self.heads, self.decoders, strict=True))
