"""The three forms of a classification of pixels, brought to one: what every loss of probabilities starts from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from everymask.errors import InputError

VOID = -1
"""Class index of what does not count."""


@dataclass(frozen=True, eq=False)
class Regions:
    """Logits and truth of K classes at N positions; `regions` makes them.

    Args:
        logits: (B, K, N) float32, or float64 where the input is.
        valid: 1 where the position counts, 0 where it is void; (B, 1, N) if `exclusive`, else (B, K, N).
        index: (B, N) int64 the true class, -1 where void; None if each class stands alone.
        labels: (B, K, N) 0 or 1 (soft labels between), 0 where void; None if one class is true at each position.
        shape: The spatial shape, whose product is N.
    """

    logits: Tensor
    valid: Tensor
    index: Tensor | None
    labels: Tensor | None
    shape: tuple[int, ...]

    @property
    def exclusive(self) -> bool:
        """True if exactly one class is true at each position (softmax), False if each stands alone (sigmoid)."""
        return self.index is not None

    @cached_property
    def truth(self) -> Tensor:
        """(B, K, N) 1 where the class is true, else 0 (soft labels between), 0 where void."""
        if self.labels is not None:
            return self.labels
        assert self.index is not None  # noqa: S101 - one of the two is always there
        classes = torch.arange(self.logits.shape[1], device=self.logits.device)
        return (self.index.unsqueeze(1) == classes.view(1, -1, 1)).to(self.logits.dtype)

    def raw_probability(self) -> Tensor:
        """(B, K, N) softmax or sigmoid, where void, too."""
        return self.logits.softmax(1) if self.exclusive else self.logits.sigmoid()

    def probability(self) -> Tensor:
        """(B, K, N) softmax or sigmoid, 0 where void."""
        return self.raw_probability() * self.valid

    def log_probability(self) -> Tensor:
        """(B, K, N) logarithm of softmax or sigmoid, without overflow."""
        return functional.log_softmax(self.logits, 1) if self.exclusive else functional.logsigmoid(self.logits)

    def log_complement(self) -> Tensor:
        """(B, K, N) ``log(1 - p)``, without overflow and without cancellation."""
        if not self.exclusive:
            return functional.logsigmoid(-self.logits)
        # Only the most probable class can come near 1; what is left to it is summed over the others. All the others
        # are at most 1/2, where log1p is exact.
        top = self.logits.argmax(1, keepdim=True)
        is_top = torch.zeros_like(self.logits, dtype=torch.bool).scatter(1, top, True)
        rest = self.logits.masked_fill(is_top, -torch.inf).logsumexp(1, keepdim=True) - self.logits.logsumexp(
            1, keepdim=True
        )
        return torch.where(is_top, rest, torch.log1p(-self.logits.softmax(1).masked_fill(is_top, 0)))

    def of_classes(self, class_weight: Tensor) -> Tensor:
        """(K, 1) weights of classes, in the type and on the device of the logits.

        Raises:
            InputError: They are not one a class.
        """
        if class_weight.shape != self.logits.shape[1:2]:
            raise InputError(
                f"class_weight: got shape {tuple(class_weight.shape)}, expected one number for each of the "
                f"{self.logits.shape[1]} classes of the logits"
            )
        return class_weight.to(self.logits).unsqueeze(1)

    def of_positions(self, pixel_weight: Tensor) -> Tensor:
        """(B, 1, N) weights of positions, or (B, K, N) where each class stands alone and has its own.

        Raises:
            InputError: They are not one a position.
        """
        shape = (self.logits.shape[0], *self.shape)
        if pixel_weight.shape == shape:
            return pixel_weight.to(self.logits).flatten(1).unsqueeze(1)
        if not self.exclusive and pixel_weight.shape == (shape[0], self.logits.shape[1], *self.shape):
            return pixel_weight.to(self.logits).flatten(2)
        raise InputError(
            f"pixel_weight: got shape {tuple(pixel_weight.shape)}, expected one weight a position, {shape}"
        )

    def spatial(self, values: Tensor) -> Tensor:
        """(B, K or 1, N) values in the shape (B, K or 1, ...)."""
        return values.unflatten(2, self.shape)


def regions(logits: Tensor, target: Tensor, void: int = VOID) -> Regions:
    """Logits and targets of any of the three forms, told apart by their shapes.

    - Multi-class: logits (B, K, ...) with K >= 2, target (B, ...) of class indices 0..K-1, or `void`.
    - Binary: logits (B, 1, ...), target (B, ...) of 0..1, or `void`.
    - Multi-label: logits and target (B, K, ...), target 0..1 for each class, or `void` (one class may be void alone).

    Targets are checked on the CPU, where looking is free. On an accelerator it would stall the training: there a class
    that does not exist makes the loss NaN, which the training reports, and never reads beyond a table.

    Args:
        logits: Unbounded, with at least one spatial dimension, or (B, K, 1) for whole images; half precision is
            computed in float32.
        target: See above.
        void: Value of what does not count.

    Raises:
        InputError: The shapes fit none of the forms, or the target holds a class that there is not.
    """
    if logits.ndim < 3:
        raise InputError(f"logits: got shape {tuple(logits.shape)}, expected (B, K, ...) with spatial dimensions")
    values = logits if logits.dtype == torch.float64 else logits.float()
    classes, shape = logits.shape[1], tuple(logits.shape[2:])
    if target.shape == logits.shape:
        return _independent(values, target, void)
    if target.shape != (logits.shape[0], *shape):
        raise InputError(
            f"logits have shape {tuple(logits.shape)} and the target {tuple(target.shape)}; expected a target "
            f"{(logits.shape[0], *shape)} of class indices or {tuple(logits.shape)} of one value a class"
        )
    if classes == 1:
        return _independent(values, target.unsqueeze(1), void)
    index = target.flatten(1).long()
    counts = index != void
    index = index if void == VOID else torch.where(counts, index, VOID)
    valid = counts.to(values.dtype)
    if _looking_is_free(index):
        _check_range(index, counts, classes - 1, f"{classes} classes, 0 to {classes - 1}", void)
    else:
        wrong = counts & ((index < 0) | (index >= classes))
        valid, index = valid.masked_fill(wrong, torch.nan), index.masked_fill(wrong, 0)
    return Regions(values.flatten(2), valid.unsqueeze(1), index, None, shape)


def _independent(logits: Tensor, target: Tensor, void: int) -> Regions:
    flat = target.flatten(2)
    counts = flat != void
    truth = torch.where(counts, flat.to(logits.dtype), 0)
    valid = counts.to(logits.dtype)
    if _looking_is_free(flat):
        _check_range(flat, counts, 1, "labels between 0 and 1 for each class", void)
    else:
        valid = valid.masked_fill(~((truth >= 0) & (truth <= 1)), torch.nan)
    return Regions(logits.flatten(2), valid, None, truth, tuple(logits.shape[2:]))


def _looking_is_free(values: Tensor) -> bool:
    """Whether values can be looked at without waiting for an accelerator."""
    return values.device.type == "cpu"


def _check_range(values: Tensor, counts: Tensor, highest: int, expected: str, void: int) -> None:
    """Raises `InputError` if a value that counts is not in 0..highest."""
    if not values.numel() or values.dtype == torch.bool:
        return
    low, high = values.aminmax()
    if low >= 0 and high <= highest:
        return
    # Not `> highest`, so that NaN is found as well.
    wrong = values[counts & ~((values >= 0) & (values <= highest))]
    if len(wrong):
        found = f"{wrong[0].item():g}"
        raise InputError(
            f"the target holds the value {found}, but there are {expected}, and {void} for void; "
            f"if {found} marks what does not count, give it as void"
        )


def ratio(above: Tensor, below: Tensor) -> Tensor:
    """``above / below``, and ``above`` (with its gradient) where `below` is 0: an empty sum stays 0."""
    return above / torch.where(below == 0, 1, below)


def mean_of_valid(terms: Tensor, valid: Tensor, class_weight: Tensor | None = None) -> Tensor:
    """Weighted mean of the terms that count; 0 (with gradient 0) if none does.

    Args:
        terms: (B, K, N).
        valid: (B, K, N) or (B, 1, N), 1 where the term counts, else 0.
        class_weight: (K, 1) weight of each class in the mean.
    """
    weight = valid if class_weight is None else valid * class_weight
    return ratio((terms * weight).sum(), weight.expand_as(terms).sum())


def mean_over_classes(terms: Tensor, counts: Tensor, class_weight: Tensor | None = None) -> Tensor:
    """Weighted mean of one term a class; 0 (with gradient 0) if none counts.

    Args:
        terms: (B, K) a term for each class of each image, or (1, K) of the batch.
        counts: The same shape, whether the term counts.
        class_weight: (K, 1) weight of each class in the mean.
    """
    weight = counts.to(terms.dtype) if class_weight is None else counts * class_weight.squeeze(1)
    return ratio((terms * weight).sum(), weight.sum())


def power(base: Tensor, exponent: float) -> Tensor:
    """``base ** exponent`` for a base >= 0; where it is 0 (or negative by rounding) the value and its gradient are 0.

    The derivative of a root is infinite at 0, where the quantities raised to powers here cannot fall any further. NaN
    stays NaN, so that a training that has come apart is seen.
    """
    if exponent == 1:
        return base
    nothing = base <= 0
    return torch.where(nothing, 0, torch.where(nothing, 1, base) ** exponent)


def check_option(fine: bool, name: str, value: object, expected: str) -> None:
    """Raises an `InputError` about the option `name` unless `fine`."""
    if not fine:
        raise InputError(f"{name}: got {value}, expected {expected}")
