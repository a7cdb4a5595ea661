"""What methods on backbones share: the pyramid for a U-shaped decoder, and preprocessing."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional

from everymask.backbones.pyramid import Backbone
from everymask.data.preprocessing import Preprocessing
from everymask.errors import InputError


def backbone_preprocessing(backbone: Backbone, channels: int) -> Preprocessing:
    """Images as the published weights of a backbone were trained on.

    Args:
        backbone: Knows mean and deviation of the colours.
        channels: Of the method. Other channels than colours are treated like the mean colour.
    """
    mean, std = backbone.mean, backbone.std
    if len(mean) != channels:
        mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
    return Preprocessing(channels=channels, normalise="scale", mean=mean, std=std)


def at_stride(maps: Tensor, backbone: Backbone, images: Tensor, stride: int = 1) -> Tensor:
    """What a `UNetDecoder` on a backbone gives, or a head on it, in the size that is wanted.

    It has that size where the pyramid ends at stride 32; the maps of vision transformers with patches of 14 pixels are
    resized, bilinearly.

    Args:
        maps: (B, F, h, w).
        backbone: Whose features were decoded.
        images: (B, C, H, W) that it has seen.
        stride: Of the result.
    """
    if backbone.reductions[-1] == 32:
        return maps
    size = (images.shape[-2] // stride, images.shape[-1] // stride)
    return functional.interpolate(maps, size=size, mode="bilinear")


def decoder_pyramid(name: str, channels: int, strides: tuple[int, ...] = (2, 4, 8, 16, 32)) -> Backbone:
    """A backbone with all strides that it has, for a decoder that goes back up: of some networks 4 is the first.

    Args:
        name: Of the network.
        channels: Input channels.
        strides: Wanted.

    Raises:
        InputError: The network does not exist, or is no pyramid.
    """
    try:
        return Backbone(name, channels, strides)
    except InputError:
        return Backbone(name, channels, (4, 8, 16, 32))  # says what is wrong if it was something else


def decoder_down_to(name: str, channels: int, finest: int) -> tuple[Backbone, tuple[int, ...]]:
    """A backbone and the widths of a `UNetDecoder` on it whose features end at a stride.

    Args:
        name: Of the network.
        channels: Input channels.
        finest: That stride, 1, 2 or 4; finer features of the backbone are of no use and left out.

    Raises:
        InputError: The network does not exist, or is no pyramid.
    """
    strides = tuple(each for each in (2, 4, 8, 16, 32) if each >= finest)
    return decoder_pyramid(name, channels, strides), (256, 128, 64, 32, 16)[: 5 - int(math.log2(finest))]
