"""Padding by reflection, whatever the size of the image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def reflected_indices(length: int, before: int, after: int) -> Tensor:
    """(before + length + after,) int64 indices into 0..length-1 that go back and forth, the end pixels not doubled.

    Pads wider than the image are reflected again and again; a single pixel is repeated.
    """
    positions = torch.arange(-before, length + after)
    if length == 1:
        return torch.zeros_like(positions)
    period = 2 * (length - 1)
    positions = positions % period
    return torch.minimum(positions, period - positions)


def pad_reflected(
    images: Tensor, top: int = 0, bottom: int = 0, left: int = 0, right: int = 0, behind: int = 0
) -> Tensor:
    """Images (..., H, W) with reflected borders: (..., top + H + bottom, left + W + right).

    Volumes (..., D, H, W) may get further planes `behind` the last one.
    """
    if behind:
        images = images.index_select(-3, reflected_indices(images.shape[-3], 0, behind).to(images.device))
    height, width = images.shape[-2:]
    if top or bottom:
        images = images.index_select(-2, reflected_indices(height, top, bottom).to(images.device))
    if left or right:
        images = images.index_select(-1, reflected_indices(width, left, right).to(images.device))
    return images


def pad_constant(images: Tensor, bottom: int, right: int, value: float) -> Tensor:
    """Images (..., H, W) with `value` below and on the right: (..., H + bottom, W + right)."""
    if not bottom and not right:
        return images
    return torch.nn.functional.pad(images, (0, right, 0, bottom), value=value)
