"""The residual U-Net of Cellpose, whose decoder is told the style of the image.

Stringer et al., Cellpose: a generalist algorithm for cellular segmentation, Nature Methods 2021, Methods ("Neural
network architecture"). The network of Cellpose 1 to 3, `resnet_torch.CPnet` of https://github.com/MouseLand/cellpose
(BSD-3): equal layers, so that its weights load.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

from everymask.errors import InputError


class CellposeUNet(nn.Module):
    """Residual blocks of four convolutions a level, skip connections that are added, and a style vector.

    The style of an image is the mean of its deepest features, scaled to length 1. It is added, after a linear layer of
    its own for each convolution, to the features of the decoder. So every output depends on the whole image.

    Args:
        channels: Input channels C.
        base: Features of the first level, doubled on each further one; the official networks have 32.
        depth: Poolings D, 3 in the official networks; height and width of the input must be multiples of 2**depth.
        style: Whether the decoder is told the style.

    Attributes:
        width: Channels of the output.
        style_width: Length S of the style vector.
        radius: Radius in pixels of the receptive field, but for the style.

    Raises:
        InputError: A number is too small.
    """

    def __init__(self, channels: int, base: int = 32, depth: int = 3, style: bool = True) -> None:
        super().__init__()
        if min(channels, base) < 1 or depth < 0:
            raise InputError(
                f"a U-Net needs at least 1 channel, base 1 and depth 0, got channels {channels}, base {base} and "
                f"depth {depth}"
            )
        widths = [base * 2**level for level in range(depth + 1)]
        self.width, self.style_width = widths[0], widths[-1]
        self.down = nn.ModuleList(ResidualDown(*each) for each in pairwise([channels, *widths]))
        self.up = nn.ModuleList(
            ResidualUp(inputs, outputs, self.style_width if style else 0)
            for outputs, inputs in pairwise([*widths, widths[-1]])
        )
        # Four 3 x 3 convolutions a level, on the way down and on the way up; each reaches 2**level pixels further.
        self.radius = 8 * (2 ** (depth + 1) - 1) + 2**depth

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, width, H, W) and styles (B, S) of length 1 of images (B, C, H, W)."""
        skips = self.encode(images)
        style = style_of(skips[-1])
        features = skips[-1]
        for level in reversed(range(len(self.up))):
            if level < len(self.up) - 1:
                features = functional.interpolate(features, scale_factor=2.0, mode="nearest")
            features = self.up[level](features, skips[level], style)
        return features, style

    def encode(self, images: Tensor) -> list[Tensor]:
        """Features of each level, finest first: (B, base * 2**level, H / 2**level, W / 2**level)."""
        skips: list[Tensor] = []
        for down in self.down:
            skips.append(down(functional.max_pool2d(skips[-1], 2) if skips else images))
        return skips


def style_of(deepest: Tensor) -> Tensor:
    """Styles (B, S): the mean of the deepest features (B, S, h, w), scaled to length 1."""
    return functional.normalize(deepest.float().mean((-2, -1)), dim=1)


def pre_activated(inputs: int, outputs: int, kernel: int = 3) -> nn.Sequential:
    """Batch normalisation, ReLU and then a convolution that keeps the size (He et al. 2016, identity mappings)."""
    return nn.Sequential(
        nn.BatchNorm2d(inputs, momentum=0.05),
        nn.ReLU(inplace=True),
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2),
    )


def _projection(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(inputs, momentum=0.05), nn.Conv2d(inputs, outputs, 1))


class ResidualDown(nn.Module):
    """Two residual units of two convolutions each.

    Args:
        inputs: Channels of the input.
        outputs: Channels of the output.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.shortcut = _projection(inputs, outputs)
        self.convolutions = nn.ModuleList(pre_activated(inputs if i == 0 else outputs, outputs) for i in range(4))

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, outputs, h, w) of features (B, inputs, h, w)."""
        first, second, third, fourth = self.convolutions
        features = self.shortcut(features) + second(first(features))
        return features + fourth(third(features))


class ResidualUp(nn.Module):
    """Two residual units; the skip connection and the style are added to the features within.

    Args:
        inputs: Channels of the input.
        outputs: Channels of the output and of the skip connection.
        style: Length of the style vector; 0 for a decoder that is not told the style.
    """

    def __init__(self, inputs: int, outputs: int, style: int) -> None:
        super().__init__()
        self.shortcut = _projection(inputs, outputs)
        self.convolutions = nn.ModuleList(pre_activated(inputs if i == 0 else outputs, outputs) for i in range(4))
        self.style = nn.ModuleList(nn.Linear(style, outputs) for _ in range(3)) if style else None

    def forward(self, features: Tensor, skip: Tensor, style: Tensor) -> Tensor:
        """Features (B, outputs, h, w) of features (B, inputs, h, w), skip (B, outputs, h, w) and style (B, S)."""
        first, second, third, fourth = self.convolutions
        if self.style is None:
            features = self.shortcut(features) + second(first(features) + skip)
            return features + fourth(third(features))
        offsets = [linear(style)[..., None, None] for linear in self.style]
        features = self.shortcut(features) + second(first(features) + skip + offsets[0])
        return features + fourth(third(features + offsets[1]) + offsets[2])
