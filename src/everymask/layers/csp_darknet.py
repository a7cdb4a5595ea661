"""CSPDarknet and its path aggregation network: the features of YOLOX.

Wang et al., CSPNet: A New Backbone that can Enhance Learning Capability of CNN, CVPR Workshops 2020; Liu et al., Path
Aggregation Network for Instance Segmentation, CVPR 2018; in the form of Ge et al., YOLOX: Exceeding YOLO Series in 2021
(arXiv 2107.08430), https://github.com/Megvii-BaseDetection/YOLOX (Apache-2.0).

Layers stand in the order in which they run, which weights without names (ONNX) are loaded by.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

STRIDES = (8, 16, 32)
"""Of the maps that detectors read."""

_POOLINGS = 3
_EPSILON = 1e-3


class NormedConvolution(nn.Module):
    """Convolution, batch normalisation, SiLU.

    The official program lets running statistics follow ten thousands of steps at a rate of .03; here it is the usual
    .1, by which a few hundred steps are enough.

    Where the weights came with the normalisation folded into the convolution, as `folded_state` makes them, nothing is
    known of the features' statistics: then training leaves the normalisation as it is, too, instead of rescaling what
    was never rescaled.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
        size: Side of the kernel.
        stride: 1 or 2.
        groups: Of channels that are convolved alone.
    """

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        padding = (size - 1) // 2
        self.convolution = nn.Conv2d(inputs, outputs, size, stride, padding, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=_EPSILON)

    def forward(self, features: Tensor) -> Tensor:
        """(B, outputs, H / stride, W / stride) of (B, inputs, H, W)."""
        return functional.silu(self.norm(self.convolution(features)), inplace=True)

    def train(self, mode: bool = True) -> NormedConvolution:
        """Training or evaluation mode; a normalisation that was folded stays in evaluation."""
        super().train(mode)
        variance = getattr(self.norm, "running_var", None)  # prediction may have replaced the whole layer
        if mode and variance is not None and bool((variance == _FOLDED_VARIANCE).all()):
            self.norm.eval()
        return self


# With the epsilon this is 1 in float32, too, so that such a normalisation adds its bias and changes nothing else; as a
# measured variance it would be an odd coincidence in every channel.
_FOLDED_VARIANCE = 1 - _EPSILON


def folded_state(weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
    """The tensors of a `NormedConvolution` that equals a convolution with a bias.

    Args:
        weight: (outputs, inputs, size, size).
        bias: (outputs,).
    """
    return {
        "convolution.weight": weight,
        "norm.weight": torch.ones_like(bias),
        "norm.bias": bias,
        "norm.running_mean": torch.zeros_like(bias),
        "norm.running_var": torch.full_like(bias, _FOLDED_VARIANCE),
        "norm.num_batches_tracked": torch.zeros((), dtype=torch.int64),
    }


def normed_convolution(inputs: int, outputs: int, size: int, stride: int = 1, depthwise: bool = False) -> nn.Module:
    """A `NormedConvolution`, or with `depthwise` one of each channel alone and one of 1 x 1 pixels that mixes them."""
    if not depthwise:
        return NormedConvolution(inputs, outputs, size, stride)
    alone = NormedConvolution(inputs, inputs, size, stride, groups=inputs)
    return nn.Sequential(alone, NormedConvolution(inputs, outputs, 1))


class Bottleneck(nn.Module):
    """A convolution of 1 x 1, one of 3 x 3, and perhaps a shortcut around both.

    Args:
        channels: Channels in, out and between.
        shortcut: Whether the input is added.
        depthwise: Whether the larger convolution is separable.
    """

    def __init__(self, channels: int, shortcut: bool, depthwise: bool) -> None:
        super().__init__()
        self.first = NormedConvolution(channels, channels, 1)
        self.second = normed_convolution(channels, channels, 3, depthwise=depthwise)
        self.shortcut = shortcut

    def forward(self, features: Tensor) -> Tensor:
        """(B, channels, H, W), like the input."""
        found: Tensor = self.second(self.first(features))
        return found + features if self.shortcut else found


class CSPLayer(nn.Module):
    """Bottlenecks on one half of the channels, the other half beside them (cross stage partial network).

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
        depth: Number of bottlenecks.
        shortcut: Whether they have shortcuts.
        depthwise: Whether their larger convolutions are separable.
    """

    def __init__(self, inputs: int, outputs: int, depth: int, shortcut: bool, depthwise: bool) -> None:
        super().__init__()
        half = outputs // 2
        self.main = NormedConvolution(inputs, half, 1)
        self.side = NormedConvolution(inputs, half, 1)
        self.bottlenecks = nn.Sequential(*(Bottleneck(half, shortcut, depthwise) for _ in range(depth)))
        self.last = NormedConvolution(2 * half, outputs, 1)

    def forward(self, features: Tensor) -> Tensor:
        """(B, outputs, H, W) of (B, inputs, H, W)."""
        main, side = self.main(features), self.side(features)
        found: Tensor = self.last(torch.cat([self.bottlenecks(main), side], dim=1))
        return found


class SpatialPooling(nn.Module):
    """Maxima over 5, 9 and 13 pixels beside the features themselves (spatial pyramid pooling, He et al. 2014).

    Args:
        channels: Channels in and out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = NormedConvolution(channels, channels // 2, 1)
        self.last = NormedConvolution((_POOLINGS + 1) * (channels // 2), channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """(B, channels, H, W), like the input."""
        pooled = [self.first(features)]
        for _ in range(_POOLINGS):
            # The maximum over 5 pixels of one over 5 is that over 9, and once more over 13.
            pooled.append(functional.max_pool2d(pooled[-1], 5, stride=1, padding=2))
        found: Tensor = self.last(torch.cat(pooled, dim=1))
        return found


class CSPDarknet(nn.Module):
    """Features at strides 8, 16 and 32.

    The stem of the paper (focus) puts the four pixels of every square of 2 x 2 into channels and convolves these by
    3 x 3. That is one convolution of 6 x 6 and stride 2, which is faster and therefore stands here; `focus_kernel`
    translates the weights.

    Args:
        channels: Input channels.
        depth: Factor of the number of bottlenecks, 1 for YOLOX-l.
        width: Factor of the channels, 1 for YOLOX-l, which has 64 after the stem.
        depthwise: Whether convolutions of 3 x 3 are separable (nano).

    Attributes:
        widths: Channels of each map.
    """

    def __init__(self, channels: int, depth: float, width: float, depthwise: bool = False) -> None:
        super().__init__()
        base, blocks = int(64 * width), max(1, round(3 * depth))
        self.stem = NormedConvolution(channels, base, 6, 2)
        stages = []
        for factor, number in ((2, blocks), (4, 3 * blocks), (8, 3 * blocks)):
            down = normed_convolution(base * factor // 2, base * factor, 3, 2, depthwise)
            stages.append(nn.Sequential(down, CSPLayer(base * factor, base * factor, number, True, depthwise)))
        down = normed_convolution(base * 8, base * 16, 3, 2, depthwise)
        last = CSPLayer(base * 16, base * 16, blocks, False, depthwise)
        self.stages = nn.ModuleList([*stages, nn.Sequential(down, SpatialPooling(base * 16), last)])
        self.widths = (base * 4, base * 8, base * 16)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps (B, widths[i], H / STRIDES[i], W / STRIDES[i]) of images (B, C, H, W), H and W multiples of 32."""
        features = self.stem(images)
        maps = []
        for stage in self.stages:
            features = stage(features)
            maps.append(features)
        return maps[1:]


def focus_kernel(weight: Tensor) -> Tensor:
    """The weights (outputs, C, 6, 6) of the stem that say the same as (outputs, 4 C, 3, 3) behind a focus.

    A focus puts the upper left pixels of all squares first, C channels of them, then the lower left, the upper right
    and the lower right ones.
    """
    outputs, channels = weight.shape[0], weight.shape[1] // 4
    by_pixel = weight.reshape(outputs, 2, 2, channels, 3, 3)  # outputs, column, row, channel, squares down, across
    return by_pixel.permute(0, 3, 4, 2, 5, 1).reshape(outputs, channels, 6, 6)


class PathAggregation(nn.Module):
    """Coarse maps are passed down to the fine ones, and these up again (PAFPN of YOLOX).

    Args:
        inputs: Channels of each of the three maps that come in, finest first.
        widths: Channels of those that go out.
        depth: Number of bottlenecks of each layer.
        depthwise: Whether convolutions of 3 x 3 are separable.
    """

    def __init__(self, inputs: Sequence[int], widths: Sequence[int], depth: int, depthwise: bool = False) -> None:
        super().__init__()
        fine, middle, coarse = widths

        def layer(before: int, after: int) -> CSPLayer:
            return CSPLayer(before, after, depth, False, depthwise)

        self.reduce_coarse = NormedConvolution(inputs[2], middle, 1)
        self.down_middle = layer(middle + inputs[1], middle)
        self.reduce_middle = NormedConvolution(middle, fine, 1)
        self.down_fine = layer(fine + inputs[0], fine)
        self.enlarge_fine = normed_convolution(fine, fine, 3, 2, depthwise)
        self.up_middle = layer(2 * fine, middle)
        self.enlarge_middle = normed_convolution(middle, middle, 3, 2, depthwise)
        self.up_coarse = layer(2 * middle, coarse)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, widths[i], h, w), finest first, of maps (B, inputs[i], h, w)."""
        coarse = self.reduce_coarse(maps[2])
        middle = self.reduce_middle(self.down_middle(_joined(_enlarged(coarse, maps[1]), maps[1])))
        finest = self.down_fine(_joined(_enlarged(middle, maps[0]), maps[0]))
        second = self.up_middle(_joined(self.enlarge_fine(finest), middle))
        return [finest, second, self.up_coarse(_joined(self.enlarge_middle(second), coarse))]


def _enlarged(features: Tensor, like: Tensor) -> Tensor:
    return functional.interpolate(features, size=like.shape[-2:], mode="nearest")


def _joined(first: Tensor, second: Tensor) -> Tensor:
    return torch.cat([first, second], dim=1)
