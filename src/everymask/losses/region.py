"""Losses of the overlap of regions: Dice, Jaccard, Tversky and their relatives.

All count softly: a class of which the network says 0.3 at a position of that class has 0.3 of a hit there. What they
count over is the whole batch, where crops seldom hold every class, or each image alone (`per_image`). Classes without
a true position do not enter the mean unless `absent` is set, since without `smooth` their loss would be 1 whatever
little of them is predicted.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from everymask.errors import InputError
from everymask.losses.forms import VOID, Regions, check_option, mean_over_classes, power, ratio, regions


class Overlap(NamedTuple):
    """Soft counts (B, K), or (1, K) of the whole batch: probability on the truth, beside it, and truth it misses."""

    hit: Tensor
    false_positive: Tensor
    false_negative: Tensor
    counts: Tensor
    """Whether the class enters the mean."""


def overlap(given: Regions, *, per_image: bool, absent: bool = False, square: bool = False) -> Overlap:
    """The soft counts of each class; with `square` of p^2 and t^2 beside the products p t."""
    probability = given.probability()
    axes = (2,) if per_image else (0, 2)

    def total(values: Tensor) -> Tensor:
        return values.sum(axes) if per_image else values.sum(axes).unsqueeze(0)

    hit = total(probability * given.truth)
    predicted = total(probability**2 if square else probability)
    true = total(given.truth)
    occurs = total(given.valid.expand_as(given.truth)) > 0 if absent else true > 0
    if square and not given.exclusive:  # the square of a soft label is another number
        true = total(given.truth**2)
    return Overlap(hit, predicted - hit, true - hit, occurs)


def _weights(given: Regions, class_weight: Tensor | None) -> Tensor | None:
    return None if class_weight is None else given.of_classes(class_weight)


def tversky(
    logits: Tensor,
    target: Tensor,
    *,
    class_weight: Tensor | None = None,
    alpha: float = 0.5,
    beta: float = 0.5,
    gamma: float = 1.0,
    smooth: float = 0.0,
    per_image: bool = False,
    absent: bool = False,
    void: int = VOID,
) -> Tensor:
    """Tversky loss ``(1 - TI)^(1 / gamma)``, ``TI = (TP + s) / (TP + alpha FP + beta FN + s)``, mean over classes.

    Salehi et al. 2017, eq. 2; with gamma = 4/3 the focal Tversky loss (Abraham and Khan 2019). With alpha = beta =
    .5 it is the Dice loss, with alpha = beta = 1 the soft Jaccard loss.

    Args:
        logits: (B, K, ...), see `everymask.losses.forms.regions`.
        target: (B, ...) or (B, K, ...).
        class_weight: (K,) weight of each class in the mean.
        alpha: Weight of false positives, >= 0.
        beta: Weight of false negatives, >= 0.
        gamma: Above 1 the loss stays steep for classes that are nearly found; above 0.
        smooth: s >= 0, added to numerator and denominator.
        per_image: Count each image alone instead of the batch together.
        absent: Classes without a true position count, too.
        void: Value of what does not count.

    Raises:
        InputError: A number is out of range, or shapes do not fit.
    """
    check_option(alpha >= 0 and beta >= 0, "alpha, beta", (alpha, beta), "numbers of 0 or more")
    check_option(gamma > 0, "gamma", gamma, "a number above 0")
    check_option(smooth >= 0, "smooth", smooth, "a number of 0 or more")
    given = regions(logits, target, void)
    found = overlap(given, per_image=per_image, absent=absent)
    # 1 - TI in one fraction, which keeps its digits near 0.
    errors = alpha * found.false_positive + beta * found.false_negative
    terms = power(ratio(errors, found.hit + errors + smooth), 1 / gamma)
    return mean_over_classes(terms, found.counts, _weights(given, class_weight))


def focal_tversky(
    logits: Tensor,
    target: Tensor,
    *,
    class_weight: Tensor | None = None,
    alpha: float = 0.3,
    beta: float = 0.7,
    gamma: float = 4 / 3,
    smooth: float = 1.0,
    per_image: bool = False,
    absent: bool = False,
    void: int = VOID,
) -> Tensor:
    """Focal Tversky loss with the numbers of Abraham and Khan 2019; arguments and errors as `tversky`."""
    return tversky(
        logits, target, class_weight=class_weight, alpha=alpha, beta=beta, gamma=gamma, smooth=smooth,
        per_image=per_image, absent=absent, void=void,
    )  # fmt: skip


def jaccard(
    logits: Tensor,
    target: Tensor,
    *,
    class_weight: Tensor | None = None,
    smooth: float = 0.0,
    per_image: bool = False,
    absent: bool = False,
    void: int = VOID,
) -> Tensor:
    """Soft IoU loss ``1 - (sum p t + s) / (sum p + sum t - sum p t + s)`` (Rahman and Wang 2016), mean over classes.

    Arguments and errors as `tversky`.
    """
    return tversky(
        logits, target, class_weight=class_weight, alpha=1.0, beta=1.0, smooth=smooth, per_image=per_image,
        absent=absent, void=void,
    )  # fmt: skip


def dice(
    logits: Tensor,
    target: Tensor,
    *,
    class_weight: Tensor | None = None,
    smooth: float = 0.0,
    square: bool = False,
    log_cosh: bool = False,
    per_image: bool = False,
    absent: bool = False,
    void: int = VOID,
) -> Tensor:
    """Dice loss ``1 - (2 sum p t + s) / (sum p + sum t + s)``, mean over classes.

    With `square`, ``p^2`` and ``t^2`` are summed below (Milletari et al. 2016, sec. 3). With `log_cosh`, each class's
    loss is ``log cosh`` of it (Jadon 2020), which is flat near 0.

    Args:
        logits: (B, K, ...), see `everymask.losses.forms.regions`.
        target: (B, ...) or (B, K, ...).
        class_weight: (K,) weight of each class in the mean.
        smooth: s >= 0.
        square: See above.
        log_cosh: See above.
        per_image: Count each image alone instead of the batch together.
        absent: Classes without a true position count, too.
        void: Value of what does not count.

    Raises:
        InputError: `smooth` is negative, or shapes do not fit.
    """
    check_option(smooth >= 0, "smooth", smooth, "a number of 0 or more")
    given = regions(logits, target, void)
    found = overlap(given, per_image=per_image, absent=absent, square=square)
    errors = found.false_positive + found.false_negative
    terms = ratio(errors, 2 * found.hit + errors + smooth)
    if log_cosh:
        terms = torch.log(torch.cosh(terms))
    return mean_over_classes(terms, found.counts, _weights(given, class_weight))


def squared_dice(
    logits: Tensor,
    target: Tensor,
    *,
    class_weight: Tensor | None = None,
    smooth: float = 0.0,
    per_image: bool = False,
    absent: bool = False,
    void: int = VOID,
) -> Tensor:
    """Dice loss with squares below, that of V-Net (Milletari et al. 2016, sec. 3); arguments and errors as `dice`."""
    return dice(
        logits, target, class_weight=class_weight, smooth=smooth, square=True, per_image=per_image, absent=absent,
        void=void,
    )  # fmt: skip


def log_cosh_dice(
    logits: Tensor,
    target: Tensor,
    *,
    class_weight: Tensor | None = None,
    smooth: float = 0.0,
    per_image: bool = False,
    absent: bool = False,
    void: int = VOID,
) -> Tensor:
    """``log cosh`` of the Dice loss of each class (Jadon 2020); arguments and errors as `dice`."""
    return dice(
        logits, target, class_weight=class_weight, smooth=smooth, log_cosh=True, per_image=per_image, absent=absent,
        void=void,
    )  # fmt: skip


def generalised_dice(
    logits: Tensor,
    target: Tensor,
    *,
    class_weight: Tensor | None = None,
    smooth: float = 0.0,
    per_image: bool = False,
    void: int = VOID,
) -> Tensor:
    """Generalised Dice loss ``1 - 2 sum_k w_k sum p t / sum_k w_k sum (p + t)`` with ``w_k = 1 / (sum t)^2``.

    Sudre et al. 2017, sec. 2. A class without a true position has no weight of its own; it gets the largest of the
    others, as in MONAI, so that what is predicted of it costs something and nothing becomes infinite.

    Args:
        logits: (B, K, ...), see `everymask.losses.forms.regions`.
        target: (B, ...) or (B, K, ...).
        class_weight: (K,) factor of w_k.
        smooth: s >= 0, added to numerator and denominator.
        per_image: Count each image alone instead of the batch together, and take the mean.
        void: Value of what does not count.

    Raises:
        InputError: `smooth` is negative, or shapes do not fit.
    """
    check_option(smooth >= 0, "smooth", smooth, "a number of 0 or more")
    given = regions(logits, target, void)
    found = overlap(given, per_image=per_image)
    true = (found.hit + found.false_negative).detach()
    weight = torch.where(found.counts, 1 / torch.where(found.counts, true, 1) ** 2, 0)
    weight = torch.where(found.counts, weight, weight.amax(1, keepdim=True))
    if class_weight is not None:
        weight = weight * given.of_classes(class_weight).squeeze(1)
    errors = (weight * (found.false_positive + found.false_negative)).sum(1, keepdim=True)
    terms = ratio(errors, 2 * (weight * found.hit).sum(1, keepdim=True) + errors + smooth)
    return mean_over_classes(terms, found.counts.any(1, keepdim=True))


def wasserstein_dice(
    logits: Tensor,
    target: Tensor,
    *,
    class_weight: Tensor | None = None,
    distances: tuple[tuple[float, ...], ...] | None = None,
    background: int = 0,
    smooth: float = 0.0,
    per_image: bool = False,
    void: int = VOID,
) -> Tensor:
    """Generalised Wasserstein Dice loss: to confuse classes that are near to each other costs less.

    ``1 - (2 TP + s) / (2 TP + sum W + s)`` with the error ``W = sum_l M[t, l] p_l`` of a position whose true class is
    t, and ``TP = sum a_t (1 - W)``, where a is 0 for the background and 1 for other classes (Fidon et al. 2017,
    as in the official program). Where each class stands alone, that is the Dice loss of each class.

    Args:
        logits: (B, K, ...), see `everymask.losses.forms.regions`.
        target: (B, ...) or (B, K, ...).
        class_weight: (K,) factor of a; where each class stands alone, the weight of each class in the mean.
        distances: M, K rows of K numbers >= 0 with a diagonal of 0, divided by the largest; None for 1 between all
            classes.
        background: Index of the background.
        smooth: s >= 0.
        per_image: Count each image alone instead of the batch together, and take the mean.
        void: Value of what does not count.

    Raises:
        InputError: `distances` is no such matrix or given where each class stands alone, or `background` is no class.
    """
    check_option(smooth >= 0, "smooth", smooth, "a number of 0 or more")
    given = regions(logits, target, void)
    if given.index is None:
        if distances is not None:
            raise InputError("distances: classes that stand alone are not confused with each other; leave it out")
        return dice(logits, target, class_weight=class_weight, smooth=smooth, per_image=per_image, void=void)
    classes = given.logits.shape[1]
    check_option(0 <= background < classes, "background", background, f"a class from 0 to {classes - 1}")
    matrix = _distance_matrix(distances, classes).to(given.logits)
    index = given.index.clamp(min=0)
    error = (matrix[index].movedim(2, 1) * given.raw_probability()).sum(1) * given.valid.squeeze(1)
    factor = torch.ones(classes, dtype=error.dtype, device=error.device)
    if class_weight is not None:
        factor = given.of_classes(class_weight).squeeze(1).clone()
    factor[background] = 0
    hit = factor[index] * (given.valid.squeeze(1) - error)
    if not per_image:
        error, hit = error.flatten().unsqueeze(0), hit.flatten().unsqueeze(0)
    wrong = error.sum(1, keepdim=True)
    terms = ratio(wrong, 2 * hit.sum(1, keepdim=True) + wrong + smooth)
    counts = given.valid.sum((1, 2))
    return mean_over_classes(terms, ((counts if per_image else counts.sum(0, keepdim=True)) > 0).unsqueeze(1))


def _distance_matrix(distances: tuple[tuple[float, ...], ...] | None, classes: int) -> Tensor:
    """M with a largest entry of 1, on the CPU."""
    if distances is None:
        return 1 - torch.eye(classes)
    expected = f"{classes} rows of {classes} numbers of 0 or more with a diagonal of 0"
    square = len(distances) == classes and all(len(row) == classes for row in distances)
    check_option(square, "distances", distances, expected)
    matrix = torch.tensor(distances, dtype=torch.float64)
    fine = bool((matrix >= 0).all()) and not matrix.diagonal().any() and bool(matrix.any())
    check_option(fine, "distances", distances, expected)
    return matrix / matrix.max()


def sensitivity_specificity(
    logits: Tensor,
    target: Tensor,
    *,
    class_weight: Tensor | None = None,
    balance: float = 0.05,
    void: int = VOID,
) -> Tensor:
    """``r sum (t - p)^2 t / sum t + (1 - r) sum (t - p)^2 (1 - t) / sum (1 - t)`` (Brosch et al. 2015).

    Args:
        logits: (B, K, ...), see `everymask.losses.forms.regions`.
        target: (B, ...) or (B, K, ...).
        class_weight: (K,) weight of each class in the mean; specificity is defined for classes that do not occur, so
            that all count.
        balance: r, the weight of sensitivity, 0..1.
        void: Value of what does not count.

    Raises:
        InputError: `balance` is out of range, or shapes do not fit.
    """
    check_option(0 <= balance <= 1, "balance", balance, "a number from 0 to 1")
    given = regions(logits, target, void)
    error = (given.truth - given.probability()) ** 2
    negative = given.valid - given.truth
    axes = (0, 2)
    true, false = given.truth.sum(axes), negative.sum(axes)
    sensitivity = ratio((error * given.truth).sum(axes), true)
    specificity = ratio((error * negative).sum(axes), false)
    terms = balance * sensitivity + (1 - balance) * specificity
    return mean_over_classes(terms[None], (true + false > 0)[None], _weights(given, class_weight))
