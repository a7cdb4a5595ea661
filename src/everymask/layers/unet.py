"""The U-Net body: an encoder and a decoder joined by skip connections."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from everymask.errors import InputError

Norm = Literal["none", "batch", "group"]
Upsampling = Literal["nearest", "transposed"]
Dimensions = Literal[2, 3]
"""Of images (B, C, H, W), or of volumes (B, C, D, H, W)."""


def check_dimensions(dimensions: int, flat: int, depth: int) -> None:
    """Checks the options of a network for images or volumes.

    Raises:
        InputError: There are neither 2 nor 3 dimensions, or not so many poolings that could leave out the planes.
    """
    if dimensions not in (2, 3):
        raise InputError(f"dimensions must be 2 (images) or 3 (volumes), got {dimensions}")
    if not 0 <= flat <= (depth if dimensions == 3 else 0):
        raise InputError(
            f"flat counts poolings of volumes that keep all planes, 0 to the depth of {depth}, got {flat}"
            if dimensions == 3
            else f"flat is for volumes (dimensions 3), got {flat} with dimensions 2"
        )


def convolution(
    inputs: int, outputs: int, norm: Norm = "none", kernel: int = 3, dimensions: Dimensions = 2
) -> nn.Sequential:
    """A convolution that keeps the size, normalisation if asked for, and ReLU."""
    kind, batch_norm = (nn.Conv2d, nn.BatchNorm2d) if dimensions == 2 else (nn.Conv3d, nn.BatchNorm3d)
    layers: list[nn.Module] = [kind(inputs, outputs, kernel, padding=kernel // 2, bias=norm == "none")]
    if norm == "batch":
        layers.append(batch_norm(outputs))
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
        depth: Number of poolings.
        convolutions: Convolutions a level and side.
        norm: Normalisation after each convolution.
        upsampling: See above.
        dimensions: 2 for images, 3 for volumes (B, C, D, H, W).
        flat: The first poolings of volumes that halve height and width alone, for planes that lie further apart than
            pixels.

    Attributes:
        width: Channels of the output.
        radius: Radius in pixels of the receptive field, in a plane.
        depth_radius: The same in planes.
        stride: Height and width of the input must be multiples of it.
        depth_stride: The number of planes must be a multiple of it.

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
        dimensions: Dimensions = 2,
        flat: int = 0,
    ) -> None:
        super().__init__()
        if channels < 1 or base < 1 or depth < 0:
            raise InputError(
                f"a U-Net needs at least 1 channel, base 1 and depth 0, got channels {channels}, base {base} and "
                f"depth {depth}"
            )
        check_dimensions(dimensions, flat, depth)
        self.depth, self.dimensions = depth, dimensions
        # How each pooling divides the axes of volumes: 2 in plane, and 2 or 1 from plane to plane.
        self.poolings = [2 if dimensions == 2 else (1 if i < flat else 2, 2, 2) for i in range(depth)]
        nearest = upsampling == "nearest"
        widths = [base * 2**level for level in range(depth + 1)]

        def one(inputs: int, outputs: int) -> nn.Sequential:
            return convolution(inputs, outputs, norm, dimensions=dimensions)

        def level(inputs: int, outputs: int, last: int) -> nn.Sequential:
            features = [inputs, *[outputs] * (convolutions - 1), last]
            return nn.Sequential(*[one(features[i], features[i + 1]) for i in range(convolutions)])

        self.down = nn.ModuleList(
            level(channels if i == 0 else widths[i - 1], widths[i], widths[i]) for i in range(depth)
        )
        below = widths[depth - 1] if depth else channels
        self.bottom = level(below, widths[depth], widths[max(depth - 1, 0)] if nearest else widths[depth])
        self.rise = nn.ModuleList(
            nn.Identity() if nearest else self._up_convolution(widths[i + 1], widths[i], i) for i in range(depth)
        )
        self.up = nn.ModuleList(
            level(2 * widths[i], widths[i], widths[max(i - 1, 0)] if nearest else widths[i]) for i in range(depth)
        )
        self.nearest = nearest
        self.width = widths[0]
        # Each 3 x 3 convolution reaches 2**level pixels further, on the way down and on the way up.
        steps = [2**i for i in range(depth + 1)]
        planes = [2 ** max(0, i - flat) for i in range(depth + 1)]
        self.radius, self.depth_radius = (
            convolutions * (2 * sum(each[:-1]) + each[-1]) + each[-1] for each in (steps, planes)
        )
        self.stride, self.depth_stride = steps[-1], planes[-1]

    def _up_convolution(self, inputs: int, outputs: int, level: int) -> nn.Module:
        pooling = self.poolings[level]
        if isinstance(pooling, int):
            return nn.ConvTranspose2d(inputs, outputs, pooling, stride=pooling)
        return nn.ConvTranspose3d(inputs, outputs, pooling, stride=pooling)

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, width, H, W) of images (B, C, H, W), or (B, width, D, H, W) of volumes (B, C, D, H, W)."""
        skips = []
        features = images
        for down in self.down:
            features = down(features)
            skips.append(features)
            features = _pooled(features, self.poolings[len(skips) - 1])
        features = self.bottom(features)
        for i in reversed(range(self.depth)):
            if self.nearest:
                features = _repeated(features, self.poolings[i])
            else:
                features = self.rise[i](features)
            features = self.up[i](torch.cat([features, skips[i]] if self.nearest else [skips[i], features], dim=1))
        return features


def _pooled(features: Tensor, pooling: int | tuple[int, int, int]) -> Tensor:
    return functional.max_pool2d(features, 2) if isinstance(pooling, int) else functional.max_pool3d(features, pooling)


def _repeated(features: Tensor, pooling: int | tuple[int, int, int]) -> Tensor:
    """The inverse of pooling in size."""
    factors = 2.0 if isinstance(pooling, int) else [float(each) for each in pooling]
    return functional.interpolate(features, scale_factor=factors, mode="nearest")


def initialise(module: nn.Module) -> None:
    """He initialisation (He et al. 2015, eq. 10) of every convolution, zero biases."""
    for each in module.modules():
        if isinstance(each, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            nn.init.kaiming_normal_(each.weight, mode="fan_in", nonlinearity="relu")
            if each.bias is not None:
                nn.init.zeros_(each.bias)
