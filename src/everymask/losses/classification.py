"""Losses of the probability of the true class, position by position: cross-entropy and its relatives."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from everymask.errors import InputError
from everymask.losses.forms import VOID, Regions, check_option, mean_of_valid, power, ratio, regions


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    pixel_weight: Tensor | None = None,
    class_weight: Tensor | None = None,
    smoothing: float = 0.0,
    void: int = VOID,
) -> Tensor:
    """Cross-entropy of softmax (one class a position) or sigmoid (binary, multi-label), by the shape of the target.

    ``L = -sum_k w_k t_k log p_k``, mean over the positions that are not void. With class weights it is divided by their
    sum, as `torch.nn.functional.cross_entropy` does; pixel weights are not divided by (Ronneberger et al. 2015, eq. 1),
    so that a border weight adds to the loss. With sigmoid, ``-(w t log p + (1 - t) log(1 - p))``, mean over positions
    and classes, as `torch.nn.functional.binary_cross_entropy_with_logits` with `pos_weight` does.

    Label smoothing (Szegedy et al. 2016, sec. 7): ``t (1 - s) + s / K``; for sigmoid ``t (1 - s) + s / 2``.

    Args:
        logits: (B, K, ...), see `everymask.losses.forms.regions`.
        target: (B, ...) or (B, K, ...).
        pixel_weight: (B, ...) >= 0; for sigmoid also (B, K, ...).
        class_weight: (K,) >= 0; for sigmoid the weight of positive labels.
        smoothing: s in 0..1.
        void: Value of what does not count.

    Returns:
        Scalar >= 0; 0 with gradient 0 when everything is void.

    Raises:
        InputError: `smoothing` is out of range, or shapes do not fit.
    """
    given = regions(logits, target, void)
    terms, weight = entropy(given, class_weight, smoothing)
    if pixel_weight is not None:
        terms = terms * given.of_positions(pixel_weight)
    return ratio(terms.sum(), weight.sum())


def entropy(given: Regions, class_weight: Tensor | None = None, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each position, and what its sum is divided by.

    Args:
        given: Logits and truth.
        class_weight: (K,) weights, already part of the terms that are returned.
        smoothing: Label smoothing in 0..1.

    Returns:
        Terms and weights, (B, 1, N) for softmax and (B, K, N) for sigmoid, 0 where void.
    """
    check_option(0 <= smoothing <= 1, "smoothing", smoothing, "a number from 0 to 1")
    weights = None if class_weight is None else given.of_classes(class_weight)
    if given.index is not None:
        flat = None if weights is None else weights.squeeze(1)
        terms = functional.cross_entropy(
            given.logits, given.index, flat, ignore_index=VOID, reduction="none", label_smoothing=smoothing
        )
        # With smoothing, too, torch divides by the weight of the true class alone.
        divisor = given.valid if flat is None else flat[given.index.clamp(min=0)].unsqueeze(1) * given.valid
        return terms.unsqueeze(1) * given.valid, divisor
    truth = given.truth * (1 - smoothing) + smoothing / 2 if smoothing else given.truth
    terms = functional.binary_cross_entropy_with_logits(given.logits, truth, pos_weight=weights, reduction="none")
    return terms * given.valid, given.valid


def ohem(
    logits: Tensor,
    target: Tensor,
    *,
    pixel_weight: Tensor | None = None,
    class_weight: Tensor | None = None,
    threshold: float = 0.7,
    least: float = 0.0625,
    smoothing: float = 0.0,
    void: int = VOID,
) -> Tensor:
    """Cross-entropy of the hard positions alone (online hard example mining).

    Shrivastava et al. 2016, in the form that semantic segmentation uses (HRNet, BiSeNet): those positions count whose
    true class has a probability below `threshold`, but always at least the share `least` of all, those with the lowest
    probabilities. Mean over the positions that count, of the batch together.

    Args:
        logits: (B, K, ...), see `everymask.losses.forms.regions`.
        target: (B, ...) or (B, K, ...).
        pixel_weight: (B, ...) >= 0, as in `cross_entropy`; it does not make a position hard.
        class_weight: (K,) >= 0, as in `cross_entropy`.
        threshold: Probability of the true class in 0..1 from which on a position is easy.
        least: Share of the positions in 0..1; 1 takes all.
        smoothing: Label smoothing in 0..1.
        void: Value of what does not count.

    Raises:
        InputError: A number is out of range, or shapes do not fit.
    """
    check_option(0 <= threshold <= 1, "threshold", threshold, "a probability from 0 to 1")
    check_option(0 <= least <= 1, "least", least, "a share from 0 to 1")
    given = regions(logits, target, void)
    terms, weight = entropy(given, class_weight, smoothing)
    if pixel_weight is not None:
        terms = terms * given.of_positions(pixel_weight)
    with torch.no_grad():
        plain = terms if class_weight is None and pixel_weight is None and not smoothing else entropy(given)[0]
        valid = given.valid.expand_as(plain) != 0
        # Void positions come last. Everything stays on the device: the count is never read.
        difficulty = torch.where(valid, plain, -1.0).flatten()
        easy = -math.log(threshold) if threshold > 0 else math.inf
        count = torch.maximum((difficulty > easy).sum(), torch.ceil(least * valid.sum()))
        order = difficulty.argsort(descending=True, stable=True)
        rank = torch.empty_like(order).scatter(0, order, torch.arange(len(order), device=order.device))
        hard = (rank < count).to(terms.dtype).view_as(terms)
    return ratio((terms * hard).sum(), (weight * hard).sum())


def top_k(
    logits: Tensor,
    target: Tensor,
    *,
    pixel_weight: Tensor | None = None,
    class_weight: Tensor | None = None,
    share: float = 0.1,
    smoothing: float = 0.0,
    void: int = VOID,
) -> Tensor:
    """Cross-entropy of the share of the positions whose true class is least probable (Wu et al. 2016).

    Args:
        logits: (B, K, ...), see `everymask.losses.forms.regions`.
        target: (B, ...) or (B, K, ...).
        pixel_weight: (B, ...) >= 0, as in `ohem`.
        class_weight: (K,) >= 0, as in `cross_entropy`.
        share: Of the positions of the batch that are not void, above 0 and up to 1, rounded up.
        smoothing: Label smoothing in 0..1.
        void: Value of what does not count.

    Raises:
        InputError: A number is out of range, or shapes do not fit.
    """
    check_option(0 < share <= 1, "share", share, "a share above 0, up to 1")
    return ohem(
        logits, target, pixel_weight=pixel_weight, class_weight=class_weight, threshold=0.0, least=share,
        smoothing=smoothing, void=void,
    )  # fmt: skip


def focal(
    logits: Tensor,
    target: Tensor,
    *,
    pixel_weight: Tensor | None = None,
    class_weight: Tensor | None = None,
    gamma: float = 2.0,
    alpha: float | None = None,
    void: int = VOID,
) -> Tensor:
    """Focal loss ``-a (1 - p_t)^gamma log p_t`` (Lin et al. 2017, eq. 5), mean over what is not void.

    Equal to `torchvision.ops.sigmoid_focal_loss` for sigmoid, soft labels included.

    Args:
        logits: (B, K, ...), see `everymask.losses.forms.regions`.
        target: (B, ...) or (B, K, ...).
        pixel_weight: (B, ...) >= 0; for sigmoid also (B, K, ...).
        class_weight: (K,) factor of each class, the mean is not divided by them; for sigmoid that of positive labels.
        gamma: Focus on hard positions, >= 0; 0 is the cross-entropy.
        alpha: Only for sigmoid: weight of positive labels, that of negative ones is 1 - alpha; None for 1 and 1.
        void: Value of what does not count.

    Raises:
        InputError: `gamma` is negative, or `alpha` is given for softmax, or out of 0..1.
    """
    check_option(gamma >= 0, "gamma", gamma, "a number of 0 or more")
    given = regions(logits, target, void)
    terms, _ = entropy(given)
    if given.index is not None:
        if alpha is not None:
            raise InputError("alpha weighs positive against negative labels; with softmax give class_weight instead")
        wrong = -torch.expm1(-terms)
        factor = None if class_weight is None else given.of_classes(class_weight)[given.index.clamp(min=0), 0]
        factor = None if factor is None else factor.unsqueeze(1)
    else:
        probability = given.logits.sigmoid()
        # sigmoid(-x) is 1 - p without cancellation.
        wrong = given.truth * (-given.logits).sigmoid() + (1 - given.truth) * probability
        factor = None if class_weight is None else given.of_classes(class_weight) * given.truth + 1 - given.truth
        if alpha is not None:
            check_option(0 <= alpha <= 1, "alpha", alpha, "a number from 0 to 1")
            balance = alpha * given.truth + (1 - alpha) * (1 - given.truth)
            factor = balance if factor is None else factor * balance
    terms = power(wrong, gamma) * terms if gamma > 0 else terms
    terms = terms if factor is None else terms * factor
    if pixel_weight is not None:
        terms = terms * given.of_positions(pixel_weight)
    return mean_of_valid(terms, given.valid)


def lp(
    logits: Tensor,
    target: Tensor,
    *,
    pixel_weight: Tensor | None = None,
    class_weight: Tensor | None = None,
    p: float = 2.0,
    void: int = VOID,
) -> Tensor:
    """``|probability - truth|^p``, mean over classes and the positions that are not void.

    p = 1 is the mean absolute error, which forgives wrong labels (Ghosh et al. 2017), p = 2 the Brier score over K.

    Args:
        logits: (B, K, ...), see `everymask.losses.forms.regions`.
        target: (B, ...) or (B, K, ...).
        pixel_weight: (B, ...) >= 0; for sigmoid also (B, K, ...).
        class_weight: (K,) weight of each class in the mean.
        p: Exponent of at least 1.
        void: Value of what does not count.

    Raises:
        InputError: `p` is below 1.
    """
    check_option(p >= 1, "p", p, "a number of 1 or more")
    given = regions(logits, target, void)
    terms = power(torch.abs(given.probability() - given.truth), p)
    if pixel_weight is not None:
        terms = terms * given.of_positions(pixel_weight)
    return mean_of_valid(terms, given.valid, None if class_weight is None else given.of_classes(class_weight))


def class_weights(counts: Tensor, rule: str, *, beta: float = 0.9999, seen: Tensor | None = None) -> Tensor:
    """(K,) weights of classes from how often they occur; classes that never occur get 0.

    - ``inverse``: 1 / frequency, scaled to a mean of 1 over the classes that occur.
    - ``median``: median frequency / frequency, where the frequency is that within the images which hold the class
      (Eigen and Fergus 2015, sec. 6.3.2; used for CamVid by SegNet).
    - ``effective``: (1 - beta) / (1 - beta^n) (Cui et al. 2019, eq. 2), scaled to a mean of 1.

    Args:
        counts: (K,) positions of each class in the training data.
        rule: See above.
        beta: For ``effective``, in 0..1 (1 excluded).
        seen: For ``median``: (K,) positions of all classes in the images that hold the class. Without it every image is
            taken to hold every class that occurs.

    Raises:
        InputError: There is no such rule, a count is negative, or `beta` is out of range.
    """
    count = counts.double()
    check_option(bool((count >= 0).all()), "counts", counts.tolist(), "numbers of 0 or more")
    check_option(0 <= beta < 1, "beta", beta, "a number from 0 to below 1")
    occurs = count > 0
    if not occurs.any():
        return torch.zeros_like(count).float()
    safe = torch.where(occurs, count, 1)
    match rule:
        case "inverse":
            weight = 1 / safe
        case "median":
            frequency = safe / (count.sum() if seen is None else torch.where(occurs, seen.double(), 1))
            weight = frequency[occurs].quantile(0.5) / frequency
        case "effective":
            weight = (1 - beta) / (1 - beta**safe)
        case _:
            raise InputError(f"class weights must be inverse, median or effective, got {rule!r}")
    weight = weight * occurs
    return (weight if rule == "median" else weight / weight[occurs].mean()).float()
