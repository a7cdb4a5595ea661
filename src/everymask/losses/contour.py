"""Losses of the length of contours, after active contours (snakes) and level sets."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from everymask.losses.forms import VOID, Regions, check_option, mean_of_valid, regions


def length(
    logits: Tensor,
    target: Tensor,
    *,
    class_weight: Tensor | None = None,
    epsilon: float = 1e-8,
    void: int = VOID,
) -> Tensor:
    """Length of the contours of the probability: ``sqrt(|grad p|^2 + e) - sqrt(e)``, mean over positions and classes.

    The first term of Chen et al. 2019, in any number of dimensions with differences of neighbours, less its value
    where nothing changes. It knows nothing of the classes of the target, only what is void: use it beside another loss,
    to make outlines smooth.

    Args:
        logits: (B, K, ...), see `everymask.losses.forms.regions`.
        target: (B, ...) or (B, K, ...).
        class_weight: (K,) weight of each class in the mean.
        epsilon: e, above 0.
        void: Value of what does not count. Differences to what is void are taken as 0.

    Raises:
        InputError: `epsilon` is not above 0, or shapes do not fit.
    """
    given = regions(logits, target, void)
    weight = None if class_weight is None else given.of_classes(class_weight)
    return mean_of_valid(_steepness(given, epsilon), given.valid, weight)


def active_contour(
    logits: Tensor,
    target: Tensor,
    *,
    class_weight: Tensor | None = None,
    region: float = 1.0,
    epsilon: float = 1e-8,
    void: int = VOID,
) -> Tensor:
    """Active contour without edges: `length` and ``lambda mean(p (1 - t)^2 + (1 - p) t^2)`` (Chen et al. 2019).

    Args:
        logits: (B, K, ...), see `everymask.losses.forms.regions`.
        target: (B, ...) or (B, K, ...).
        class_weight: (K,) weight of each class in the mean.
        region: lambda >= 0, the weight of the second term.
        epsilon: See `length`.
        void: Value of what does not count.

    Raises:
        InputError: `epsilon` is not above 0, `region` is negative, or shapes do not fit.
    """
    check_option(region >= 0, "region", region, "a number of 0 or more")
    given = regions(logits, target, void)
    weight = None if class_weight is None else given.of_classes(class_weight)
    probability = given.probability()
    wrong = probability * (1 - given.truth) ** 2 + (1 - probability) * given.truth**2
    return mean_of_valid(_steepness(given, epsilon) + region * wrong, given.valid, weight)


def _steepness(given: Regions, epsilon: float) -> Tensor:
    """(B, K, N) length of the gradient of the probability."""
    check_option(epsilon > 0, "epsilon", epsilon, "a number above 0")
    probability, valid = given.spatial(given.raw_probability()), given.spatial(given.valid)
    squared = torch.zeros_like(probability)
    for axis in range(2, probability.ndim):
        both = valid.narrow(axis, 1, valid.shape[axis] - 1) * valid.narrow(axis, 0, valid.shape[axis] - 1)
        step = torch.diff(probability, dim=axis) * both
        end = torch.zeros_like(probability.narrow(axis, 0, 1))
        squared = squared + torch.cat([step, end], axis) ** 2
    # sqrt(s + e) - sqrt(e) without its cancellation.
    return (squared / ((squared + epsilon).sqrt() + math.sqrt(epsilon))).flatten(2)
