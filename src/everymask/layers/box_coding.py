"""Boxes as offsets from reference boxes (anchors, proposals): what networks of the R-CNN family predict.

Girshick et al. 2014 (R-CNN), appendix C; limits and weights as in torchvision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Weights = tuple[float, float, float, float]
"""Factors of dx, dy, dw, dh, about one over their deviations in training."""

LARGEST_GROWTH = math.log(1000 / 16)
"""Limit of the logarithm of a side's growth, so that a wild prediction does not become infinite."""


def encode_boxes(boxes: Tensor, references: Tensor, weights: Weights = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """Offsets of boxes from reference boxes: shifts of the centre in sides of the reference, logarithms of the growth.

    Args:
        boxes: (..., 4) x0, y0, x1, y1 in pixels, with sides above 0.
        references: (..., 4), likewise.
        weights: Factors of the offsets.

    Returns:
        (..., 4) dx, dy, dw, dh.
    """
    sides = references[..., 2:] - references[..., :2]
    centres = references[..., :2] + 0.5 * sides
    wanted_sides = boxes[..., 2:] - boxes[..., :2]
    wanted_centres = boxes[..., :2] + 0.5 * wanted_sides
    factors = boxes.new_tensor(weights)
    shifts = factors[:2] * (wanted_centres - centres) / sides
    return torch.cat([shifts, factors[2:] * torch.log(wanted_sides / sides)], dim=-1)


def decode_boxes(
    offsets: Tensor, references: Tensor, weights: Weights = (1.0, 1.0, 1.0, 1.0), limit: float = LARGEST_GROWTH
) -> Tensor:
    """The inverse of `encode_boxes`.

    Args:
        offsets: (..., 4) dx, dy, dw, dh.
        references: (..., 4) x0, y0, x1, y1 in pixels; leading axes broadcast.
        weights: Those of the encoding.
        limit: Of the logarithms of the growth.

    Returns:
        (..., 4) x0, y0, x1, y1 in pixels, not clipped to any image.
    """
    sides = references[..., 2:] - references[..., :2]
    centres = references[..., :2] + 0.5 * sides
    scaled = offsets / offsets.new_tensor(weights)
    new_centres = scaled[..., :2] * sides + centres
    half = 0.5 * (torch.exp(scaled[..., 2:].clamp(max=limit)) * sides)
    return torch.cat([new_centres - half, new_centres + half], dim=-1)


def clip_boxes(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """Boxes (..., 4) cut off at the edges of an image of (height, width)."""
    height, width = size
    return boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))


def have_sides(boxes: Tensor, least: float) -> Tensor:
    """(...) whether both sides of boxes (..., 4) are at least `least` pixels long."""
    return ((boxes[..., 2:] - boxes[..., :2]) >= least).all(-1)
