"""Losses that compare pixel by pixel."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def cross_entropy(logits: Tensor, classes: Tensor, weight: Tensor | None = None, void: int = -1) -> Tensor:
    """Mean over valid pixels of the weighted softmax cross-entropy (Ronneberger et al. 2015, eq. 1, negated).

    Args:
        logits: (B, K, ...) unbounded.
        classes: (B, ...) int class indices 0..K-1, or `void` where the pixel does not count.
        weight: (B, ...) factor of each pixel >= 0; the mean is over pixels, not over weights, so that a border weight
            adds to the loss instead of taking from the rest.
        void: Index of ignored pixels.

    Returns:
        Scalar >= 0; 0 (with gradient 0) when every pixel is void.
    """
    terms = functional.cross_entropy(logits.float(), classes.long(), ignore_index=void, reduction="none")
    if weight is not None:
        terms = terms * weight
    valid = classes != void
    return (terms * valid).sum() / valid.sum().clamp(min=1)


def binary_cross_entropy(logits: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean over valid elements of the sigmoid cross-entropy with soft targets.

    Args:
        logits: Any shape, unbounded.
        target: Same shape, 0..1.
        valid: Same shape, 1 where the element counts and 0 where not; None for all.
    """
    if valid is None:
        return functional.binary_cross_entropy_with_logits(logits.float(), target)
    terms = functional.binary_cross_entropy_with_logits(logits.float(), target * valid, reduction="none")
    return (terms * valid).sum() / valid.sum().clamp(min=1)


def masked_l1(prediction: Tensor, target: Tensor, weight: Tensor, epsilon: float = 1e-7) -> Tensor:
    """L1 distance averaged with weights: ``mean(weight * |target - prediction|) / mean(weight)``.

    Args:
        prediction: (B, R, ...) in the units of the target.
        target: (B, R, ...).
        weight: (B, 1, ...) >= 0.
        epsilon: Added to the mean weight, so that a batch without weight gives 0.
    """
    error = torch.abs(target - prediction.float())
    return (weight * error).mean() / (weight.mean() + epsilon)
