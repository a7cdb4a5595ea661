"""An image of a size that every network takes, for tracing and comparing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from everymask.methods.base import Method

_BOXES = 256
"""Least side in pixels for methods that find boxes, whose maps are up to 128 times as coarse."""


def example_side(method: Method) -> int:
    """Pixels: two strides, and so many that no map of the method has a side of 1, which exporters take for fixed."""
    side = 2 * method.stride
    return side if method.learns_from == "labels" else max(side, -(-_BOXES // method.stride) * method.stride)


def example_images(method: Method, generator: torch.Generator | None = None) -> Tensor:
    """Random images (2, C, H, W) in 0..1, twice as high as wide, or volumes (2, C, D, H, W) of two strides."""
    side, depth = example_side(method), [2 * method.depth_stride] if method.dimensions == 3 else []
    generator = generator or torch.Generator().manual_seed(0)
    return torch.rand(2, method.channels, *depth, 2 * side, side, generator=generator)
