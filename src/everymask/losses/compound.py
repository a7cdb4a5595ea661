"""Losses that join a loss of positions with a loss of regions in one formula."""

from __future__ import annotations

import torch
from torch import Tensor

from everymask.losses.classification import entropy
from everymask.losses.forms import VOID, Regions, check_option, mean_of_valid, mean_over_classes, power, ratio, regions
from everymask.losses.region import Overlap, overlap


def combo(
    logits: Tensor,
    target: Tensor,
    *,
    pixel_weight: Tensor | None = None,
    class_weight: Tensor | None = None,
    alpha: float = 0.5,
    beta: float = 0.5,
    smooth: float = 1.0,
    per_image: bool = False,
    absent: bool = False,
    void: int = VOID,
) -> Tensor:
    """Combo loss: a cross-entropy that weighs misses against false alarms, and Dice.

    ``a mean(-(b t log p + (1 - b) (1 - t) log(1 - p))) + (1 - a) (1 - Dice)`` (Taghanaki et al. 2019), where the
    paper subtracts Dice, which differs by a constant. The cross-entropy asks of each class whether it is there, with
    softmax, too.

    Args:
        logits: (B, K, ...), see `everymask.losses.forms.regions`.
        target: (B, ...) or (B, K, ...).
        pixel_weight: (B, ...) >= 0, for the cross-entropy; for sigmoid also (B, K, ...).
        class_weight: (K,) weight of each class in both means.
        alpha: a in 0..1, the weight of the cross-entropy.
        beta: b in 0..1; above 1/2 misses cost more than false alarms.
        smooth: Added to numerator and denominator of Dice, >= 0.
        per_image: Dice of each image alone instead of the batch together.
        absent: Classes without a true position count in the mean of Dice, too.
        void: Value of what does not count.

    Raises:
        InputError: A number is out of range, or shapes do not fit.
    """
    check_option(0 <= alpha <= 1, "alpha", alpha, "a number from 0 to 1")
    check_option(0 <= beta <= 1, "beta", beta, "a number from 0 to 1")
    check_option(smooth >= 0, "smooth", smooth, "a number of 0 or more")
    given = regions(logits, target, void)
    weight = None if class_weight is None else given.of_classes(class_weight)
    terms = -(beta * given.truth * given.log_probability() + (1 - beta) * (1 - given.truth) * given.log_complement())
    if pixel_weight is not None:
        terms = terms * given.of_positions(pixel_weight)
    found = overlap(given, per_image=per_image, absent=absent)
    errors = found.false_positive + found.false_negative
    dice = mean_over_classes(ratio(errors, 2 * found.hit + errors + smooth), found.counts, weight)
    return alpha * mean_of_valid(terms, given.valid, weight) + (1 - alpha) * dice


def exponential_logarithmic(
    logits: Tensor,
    target: Tensor,
    *,
    pixel_weight: Tensor | None = None,
    class_weight: Tensor | None = None,
    dice_weight: float = 0.8,
    gamma: float = 0.3,
    smooth: float = 1.0,
    per_image: bool = False,
    absent: bool = False,
    void: int = VOID,
) -> Tensor:
    """``d mean_k (-log Dice_k)^gamma + (1 - d) mean_x w_t (-log p_t)^gamma`` (Wong et al. 2018, eq. 1-3).

    With gamma below 1 the loss stays steep where the answer is nearly right, for small structures.

    Args:
        logits: (B, K, ...), see `everymask.losses.forms.regions`.
        target: (B, ...) or (B, K, ...).
        pixel_weight: (B, ...) >= 0, for the cross-entropy; for sigmoid also (B, K, ...).
        class_weight: (K,) w, a factor of the cross-entropy, whose mean is not divided by it; for sigmoid that of
            positive labels. The paper takes the root of 1 / frequency.
        dice_weight: d in 0..1.
        gamma: Exponent of both, above 0.
        smooth: Added to numerator and denominator of Dice, above 0.
        per_image: Dice of each image alone instead of the batch together.
        absent: Classes without a true position count in the mean of Dice, too.
        void: Value of what does not count.

    Raises:
        InputError: A number is out of range, or shapes do not fit.
    """
    check_option(0 <= dice_weight <= 1, "dice_weight", dice_weight, "a number from 0 to 1")
    check_option(gamma > 0, "gamma", gamma, "a number above 0")
    check_option(smooth > 0, "smooth", smooth, "a number above 0")
    given = regions(logits, target, void)
    terms = power(entropy(given)[0], gamma)
    if class_weight is not None:
        factor = given.of_classes(class_weight) * given.truth
        terms = terms * (factor.sum(1, keepdim=True) if given.exclusive else factor + 1 - given.truth)
    if pixel_weight is not None:
        terms = terms * given.of_positions(pixel_weight)
    found = overlap(given, per_image=per_image, absent=absent)
    # -log Dice, written so that it keeps its digits near 0.
    logarithm = torch.log1p((found.false_positive + found.false_negative) / (2 * found.hit + smooth))
    dice = mean_over_classes(power(logarithm, gamma), found.counts)
    return dice_weight * dice + (1 - dice_weight) * mean_of_valid(terms, given.valid)


def unified_focal(
    logits: Tensor,
    target: Tensor,
    *,
    pixel_weight: Tensor | None = None,
    class_weight: Tensor | None = None,
    balance: float = 0.5,
    delta: float = 0.6,
    gamma: float = 0.5,
    asymmetric: bool = True,
    smooth: float = 0.0,
    per_image: bool = False,
    absent: bool = False,
    void: int = VOID,
) -> Tensor:
    """Unified focal loss: a focal cross-entropy and a focal Tversky loss with common numbers (Yeung et al. 2022).

    As in the official program, class 0 being the background (with sigmoid: the negative labels of each class) and the
    other classes rare. ``l L_F + (1 - l) L_T``, of a foreground and of a background position and region:

    - L_F: ``-d log p`` and ``-(1 - d) (1 - p)^g log p``; symmetric: both with the factor ``(1 - p)^g``.
    - L_T: ``(1 - TI)^(1 - g)`` and ``1 - TI``; symmetric: both with the exponent. TI is the Tversky index with d for
      misses and 1 - d for false alarms.

    Args:
        logits: (B, K, ...), see `everymask.losses.forms.regions`.
        target: (B, ...) or (B, K, ...).
        pixel_weight: (B, ...) >= 0, for L_F; for sigmoid also (B, K, ...).
        class_weight: (K,) factor in L_F, weight of each class in the mean of L_T; for sigmoid that of positive labels
            in L_F.
        balance: l in 0..1.
        delta: d in 0..1; above 1/2 misses of the foreground cost more than false alarms.
        gamma: g, at least 0 and below 1.
        asymmetric: Suppress easy positions of the background alone, and enhance rare classes alone.
        smooth: Added to numerator and denominator of TI, >= 0.
        per_image: L_T of each image alone instead of the batch together.
        absent: Classes without a true position count in the mean of L_T, too.
        void: Value of what does not count.

    Raises:
        InputError: A number is out of range, or shapes do not fit.
    """
    check_option(0 <= balance <= 1, "balance", balance, "a number from 0 to 1")
    check_option(0 <= delta <= 1, "delta", delta, "a number from 0 to 1")
    check_option(0 <= gamma < 1, "gamma", gamma, "a number from 0 to below 1")
    check_option(smooth >= 0, "smooth", smooth, "a number of 0 or more")
    given = regions(logits, target, void)
    weight = None if class_weight is None else given.of_classes(class_weight)

    # Share of the foreground in the truth of each position: 0 or 1 unless labels are soft.
    rare = given.truth if given.index is None else (given.index != 0).unsqueeze(1).to(given.logits)
    terms, _ = entropy(given)
    focus = power(-torch.expm1(-terms), gamma) if gamma > 0 else torch.ones_like(terms)
    terms = terms * (delta * rare * (1 if asymmetric else focus) + (1 - delta) * (1 - rare) * focus)
    if weight is not None:
        factor = weight * given.truth
        terms = terms * (factor.sum(1, keepdim=True) if given.exclusive else factor + 1 - given.truth)
    if pixel_weight is not None:
        terms = terms * given.of_positions(pixel_weight)

    found = overlap(given, per_image=per_image, absent=absent)
    background = found if given.exclusive else _of_negatives(given, found, per_image=per_image, absent=absent)
    high, low = (_tversky(each, delta, smooth) for each in (found, background))
    high = power(high, 1 - gamma)
    low = low if asymmetric else power(low, 1 - gamma)
    if given.exclusive:
        region = mean_over_classes(torch.cat([low[:, :1], high[:, 1:]], 1), found.counts, weight)
    else:
        counts = torch.cat([background.counts, found.counts], 1)
        region = mean_over_classes(torch.cat([low, high], 1), counts, None if weight is None else weight.repeat(2, 1))
    return balance * mean_of_valid(terms, given.valid) + (1 - balance) * region


def _tversky(found: Overlap, delta: float, smooth: float) -> Tensor:
    """1 - TI."""
    errors = delta * found.false_negative + (1 - delta) * found.false_positive
    return ratio(errors, found.hit + errors + smooth)


def _of_negatives(given: Regions, found: Overlap, *, per_image: bool, absent: bool) -> Overlap:
    """The counts of "not this class", whose misses are the false alarms of the class."""
    counted = given.valid.sum(2) if per_image else given.valid.sum((0, 2)).unsqueeze(0)
    negative = counted - found.hit.detach() - found.false_negative.detach()
    hit = counted - found.hit - found.false_positive - found.false_negative
    return Overlap(hit, found.false_negative, found.false_positive, (counted if absent else negative) > 0)
