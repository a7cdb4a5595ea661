"""ERFNet: residual layers of one-dimensional convolutions, most of them at an eighth of the resolution.

Romera, Alvarez, Bergasa, Arroyo, ERFNet: Efficient Residual Factorized ConvNet for Real-Time Semantic Segmentation,
IEEE Transactions on Intelligent Transportation Systems 19(1), 2018. The branched form, one encoder with a decoder for
each group of outputs, is that of Neven et al., Instance Segmentation by Jointly Optimizing Spatial Embeddings and
Clustering Bandwidth, CVPR 2019. Volumes have convolutions along three axes, as in Lalit, Tomancak, Jug, EmbedSeg:
Embedding-based Instance Segmentation for Biomedical Microscopy Data, Medical Image Analysis 2022.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from everymask.errors import InputError
from everymask.layers.unet import Dimensions, check_dimensions

DILATIONS = (2, 4, 8, 16)
"""Of the residual blocks at an eighth of the resolution (paper, table 1); the paper runs through them twice."""

Steps = tuple[int, ...]
"""By how much a layer divides or multiplies the size along each axis: (2, 2) of images, (1 or 2, 2, 2) of volumes."""


class _Layers(NamedTuple):
    """The layers of images, or of volumes."""

    convolution: Callable[..., nn.Module]
    transposed: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    dropout: Callable[..., nn.Module]
    pool: Callable[..., Tensor]


_LAYERS: Mapping[int, _Layers] = {
    2: _Layers(nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.Dropout2d, functional.max_pool2d),
    3: _Layers(nn.Conv3d, nn.ConvTranspose3d, nn.BatchNorm3d, nn.Dropout3d, functional.max_pool3d),
}


class Downsampler(nn.Module):
    """Halves the resolution: a strided convolution beside a max pooling (paper, section III-B).

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out, more than `inputs`.
        steps: For images, or for volumes, whose planes may be left alone.
    """

    def __init__(self, inputs: int, outputs: int, steps: Steps = (2, 2)) -> None:
        super().__init__()
        layers = _LAYERS[len(steps)]
        self.convolution = layers.convolution(inputs, outputs - inputs, 3, stride=steps, padding=1)
        self.norm = layers.norm(outputs)
        self.steps = steps

    def forward(self, features: Tensor) -> Tensor:
        """(B, outputs, H / 2, W / 2) of (B, inputs, H, W), both even; volumes are divided by the steps."""
        largest = _LAYERS[len(self.steps)].pool(features, self.steps)
        joined = torch.cat([self.convolution(features), largest], dim=1)
        return functional.relu(self.norm(joined), inplace=True)


class FactorizedResidual(nn.Module):
    """Non-bottleneck-1D: two 3 x 3 convolutions, each as a column and a row, and a shortcut (paper, figure 2c).

    In volumes they are 3 x 3 x 3, each a line across the planes, a column and a row.

    Args:
        channels: Channels in and out.
        dilation: Of the second convolution.
        dropout: Probability that a channel is dropped before the shortcut is added.
        dimensions: 2 for images, 3 for volumes.
    """

    def __init__(self, channels: int, dilation: int = 1, dropout: float = 0.0, dimensions: Dimensions = 2) -> None:
        super().__init__()
        layers = _LAYERS[dimensions]
        self.first_across = _across(channels, 1, dimensions)
        self.first_column = _line(channels, -2, 1, dimensions)
        self.first_row = _line(channels, -1, 1, dimensions, bias=False)
        self.first_norm = layers.norm(channels)
        self.second_across = _across(channels, dilation, dimensions)
        self.second_column = _line(channels, -2, dilation, dimensions)
        self.second_row = _line(channels, -1, dilation, dimensions, bias=False)
        self.second_norm = layers.norm(channels)
        self.dropout = layers.dropout(dropout) if dropout else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) or (B, C, D, H, W) of the same shape."""
        inner = functional.relu(self.first_column(self.first_across(features)), inplace=True)
        inner = functional.relu(self.first_norm(self.first_row(inner)), inplace=True)
        inner = functional.relu(self.second_column(self.second_across(inner)), inplace=True)
        inner = self.dropout(self.second_norm(self.second_row(inner)))
        return functional.relu(inner + features, inplace=True)


def _line(channels: int, axis: int, dilation: int, dimensions: Dimensions, bias: bool = True) -> nn.Module:
    """A convolution of 3 pixels along an axis: -1 is a row, -2 a column, -3 across the planes."""
    size, padding, steps = (
        tuple(along if each == axis else other for each in range(-dimensions, 0))
        for along, other in ((3, 1), (dilation, 0), (dilation, 1))
    )
    return _LAYERS[dimensions].convolution(channels, channels, size, padding=padding, dilation=steps, bias=bias)


def _across(channels: int, dilation: int, dimensions: Dimensions) -> nn.Module:
    """The line across the planes of a volume, with ReLU; nothing for images."""
    if dimensions == 2:
        return nn.Identity()
    return nn.Sequential(_line(channels, -3, dilation, dimensions), nn.ReLU(inplace=True))


class Upsampler(nn.Module):
    """Doubles the resolution by a transposed 3 x 3 convolution (paper, section III-B).

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
        steps: For images, or for volumes, whose planes may be left alone.
    """

    def __init__(self, inputs: int, outputs: int, steps: Steps = (2, 2)) -> None:
        super().__init__()
        layers = _LAYERS[len(steps)]
        rest = tuple(each - 1 for each in steps)
        self.convolution = layers.transposed(
            inputs, outputs, 3, stride=steps, padding=1, output_padding=rest, bias=False
        )
        self.norm = layers.norm(outputs)

    def forward(self, features: Tensor) -> Tensor:
        """(B, outputs, 2 H, 2 W) of (B, inputs, H, W); volumes are multiplied by the steps."""
        return functional.relu(self.norm(self.convolution(features)), inplace=True)


class BranchedERFNet(nn.Module):
    """ERFNet with one encoder and a decoder for each group of outputs.

    Args:
        channels: Input channels C.
        outputs: Channels of each group of outputs.
        base: Channels at half the resolution, 16 in the paper; 4 times as many at a quarter, 8 times at an eighth.
        repeats: How often the encoder runs through the `DILATIONS`; 2 in the paper.
        dropout: In the blocks at an eighth of the resolution; a tenth of it in those at a quarter. 0.3 in the paper.
        dimensions: 2 for images, 3 for volumes (B, C, D, H, W).
        flat: How many of the three halvings of volumes leave the planes alone, the first ones.

    Attributes:
        stride: Height and width of the input must be multiples of it.
        depth_stride: The number of planes must be a multiple of it.
        heads: The last layer of each group of outputs.
        radius: Radius in pixels of the receptive field, in a plane.
        depth_radius: The same in planes.

    Raises:
        InputError: A number is out of range.
    """

    stride = 8

    def __init__(
        self,
        channels: int,
        outputs: Sequence[int],
        base: int = 16,
        repeats: int = 2,
        dropout: float = 0.0,
        dimensions: Dimensions = 2,
        flat: int = 0,
    ) -> None:
        super().__init__()
        if base <= channels:
            raise InputError(f"base must be larger than the number of channels, {channels}, got {base}")
        if repeats < 1 or not 0 <= dropout < 1:
            raise InputError(f"repeats must be at least 1 and dropout in 0..1, got {repeats} and {dropout}")
        check_dimensions(dimensions, flat, 3)
        half, quarter, eighth = base, 4 * base, 8 * base
        steps: list[Steps] = [(2, 2) if dimensions == 2 else (1 if i < flat else 2, 2, 2) for i in range(3)]

        def block(width: int, dilation: int = 1, dropout: float = 0.0) -> FactorizedResidual:
            return FactorizedResidual(width, dilation, dropout, dimensions)

        self.encoder = nn.Sequential(
            Downsampler(channels, half, steps[0]),
            Downsampler(half, quarter, steps[1]),
            *[block(quarter, dropout=dropout / 10) for _ in range(5)],
            Downsampler(quarter, eighth, steps[2]),
            *[block(eighth, dilation, dropout) for _ in range(repeats) for dilation in DILATIONS],
        )
        self.decoders = nn.ModuleList(
            nn.Sequential(
                Upsampler(eighth, quarter, steps[2]),
                block(quarter),
                block(quarter),
                Upsampler(quarter, half, steps[1]),
                block(half),
                block(half),
            )
            for _ in outputs
        )
        head = _LAYERS[dimensions].transposed
        self.heads = nn.ModuleList(head(half, width, steps[0], stride=steps[0]) for width in outputs)
        self.radius, self.depth_radius = (_radius([each[axis] for each in steps], repeats) for axis in (-1, 0))
        self.depth_stride = math.prod(each[0] for each in steps)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """A map (B, ?, H, W) for each group of outputs, of images (B, C, H, W); of volumes (B, ?, D, H, W)."""
        features = self.encoder(images)
        return tuple(head(decoder(features)) for head, decoder in zip(self.heads, self.decoders, strict=True))


def _radius(steps: Sequence[int], repeats: int) -> int:
    """Radius of the receptive field along an axis that the three halvings divide by these steps."""
    half, quarter, eighth = steps[0], math.prod(steps[:2]), math.prod(steps)
    # In features of stride s a block of reach r sees r s pixels further.
    dilated = eighth * repeats * sum(1 + each for each in DILATIONS)
    blocks = quarter * (2 * 5) + dilated + quarter * (2 * 2) + half * (2 * 2)
    # Downsamplers, upsamplers, and that a feature stands for s pixels.
    return blocks + (1 + half + quarter) + (quarter + half) + eighth
