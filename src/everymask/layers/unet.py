"""The U-Net body: an encoder and a decoder joined by skip connections."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from everymask.errors import InputError

Norm = Literal["none", "batch", "group"]
Upsampling = Literal["nearest", "transposed"]


def convolution(inputs: int, outputs: int, norm: Norm = "none", kernel: int = 3) -> nn.Sequential:
    """A convolution that keeps the size, normalisation if asked for, and ReLU."""
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=norm == "none")]
    if norm == "batch":
        layers.append(nn.BatchNorm2d(outputs))
    elif norm == "group":
        layers.append(nn.GroupNorm(min(32, outputs // 4) or 1, outputs))
    layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Encoder with max pooling, decoder with upsampling and skip connections; keeps the size of the image.

    With ``upsampling="transposed"`` it is the network of Ronneberger et al. 2015 (2 x 2 up-convolutions that halve the
    channels) apart from padded convolutions. With ``upsampling="nearest"`` it is the variant of the CSBDeep
    programs (StarDist, CARE, DenoiSeg): repeated pixels, and the last convolution of a level halves the channels.

    Args:
        channels: Input channels C.
        base: Features of the first level, doubled on each further one.
        depth: Number of poolings D; height and width of the input must be multiples of 2**depth.
        convolutions: Convolutions a level and side.
        norm: Normalisation after each convolution.
        upsampling: See above.

    Attributes:
        width: Channels of the output.
        radius: Radius in pixels of the receptive field.

    Raises:
        InputError: A number is too small.
    """

    def __init__(
        self,
        channels: int,
        base: int = 32,
        depth: int = 3,
        convolutions: int = 2,
        norm: Norm = "none",
        upsampling: Upsampling = "nearest",
    ) -> None:
        super().__init__()
        if channels < 1 or base < 1 or depth < 0:
            raise InputError(
                f"a U-Net needs at least 1 channel, base 1 and depth 0, got channels {channels}, base {base} and "
                f"depth {depth}"
            )
        self.depth = depth
        nearest = upsampling == "nearest"
        widths = [base * 2**level for level in range(depth + 1)]

        def level(inputs: int, outputs: int, last: int) -> nn.Sequential:
            features = [inputs, *[outputs] * (convolutions - 1), last]
            return nn.Sequential(*[convolution(features[i], features[i + 1], norm) for i in range(convolutions)])

        self.down = nn.ModuleList(
            level(channels if i == 0 else widths[i - 1], widths[i], widths[i]) for i in range(depth)
        )
        below = widths[depth - 1] if depth else channels
        self.bottom = level(below, widths[depth], widths[max(depth - 1, 0)] if nearest else widths[depth])
        self.rise = nn.ModuleList(
            nn.Identity() if nearest else nn.ConvTranspose2d(widths[i + 1], widths[i], 2, stride=2)
            for i in range(depth)
        )
        self.up = nn.ModuleList(
            level(2 * widths[i], widths[i], widths[max(i - 1, 0)] if nearest else widths[i]) for i in range(depth)
        )
        self.nearest = nearest
        self.width = widths[0]
        # Each 3 x 3 convolution reaches 2**level pixels further, on the way down and on the way up.
        self.radius = convolutions * (2 * sum(2**i for i in range(depth)) + 2**depth) + 2**depth

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, width, H, W) of images (B, C, H, W)."""
        skips = []
        features = images
        for down in self.down:
            features = down(features)
            skips.append(features)
            features = functional.max_pool2d(features, 2)
        features = self.bottom(features)
        for i in reversed(range(self.depth)):
            if self.nearest:
                features = functional.interpolate(features, scale_factor=2.0, mode="nearest")
            else:
                features = self.rise[i](features)
            features = self.up[i](torch.cat([features, skips[i]] if self.nearest else [skips[i], features], dim=1))
        return features


def initialise(module: nn.Module) -> None:
    """He initialisation (He et al. 2015, eq. 10) of every convolution, zero biases."""
    for each in module.modules():
        if isinstance(each, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(each.weight, mode="fan_in", nonlinearity="relu")
            if each.bias is not None:
                nn.init.zeros_(each.bias)
