"""The Lovasz extension of the Jaccard index: a convex surrogate of the IoU itself.

Berman, Triki, Blaschko, The Lovasz-Softmax loss, CVPR 2018.
"""

from __future__ import annotations

import torch
from torch import Tensor

from everymask.losses.forms import VOID, mean_over_classes, regions


def lovasz(
    logits: Tensor,
    target: Tensor,
    *,
    class_weight: Tensor | None = None,
    per_image: bool = False,
    absent: bool = False,
    void: int = VOID,
) -> Tensor:
    """Lovasz-softmax (eq. 12) where one class is true a position, Lovasz hinge (eq. 8) where each class stands alone.

    Args:
        logits: (B, K, ...), see `everymask.losses.forms.regions`.
        target: (B, ...) or (B, K, ...); soft labels count as 1 above 1/2 and as 0 below.
        class_weight: (K,) weight of each class in the mean.
        per_image: Sort the errors of each image alone instead of those of the batch together.
        absent: In Lovasz-softmax, classes without a true position count, too, as they always do in the hinge.
        void: Value of what does not count.

    Raises:
        InputError: The shapes do not fit, or the target holds a class that there is not.
    """
    given = regions(logits, target, void)
    truth = given.truth if given.exclusive else (given.truth > 0.5).to(given.logits)
    valid = given.valid.expand_as(truth)
    if given.exclusive:
        errors = torch.abs(truth - given.probability())
    else:
        # Errors below 0 are cut off anyway; cut off before sorting, they come last together with what is void.
        errors = (1 - given.logits * (2 * truth - 1)).relu() * valid
    if not per_image:
        errors, truth, valid = (each.transpose(0, 1).flatten(1).unsqueeze(0) for each in (errors, truth, valid))
    ordered, order = errors.sort(dim=2, descending=True)
    terms = (ordered * _jaccard_steps(truth.gather(2, order), valid.gather(2, order))).sum(2)
    counts = (truth if given.exclusive and not absent else valid).sum(2) > 0
    return mean_over_classes(terms, counts, None if class_weight is None else given.of_classes(class_weight))


def _jaccard_steps(truth: Tensor, valid: Tensor) -> Tensor:
    """How much each error adds to the Jaccard loss (algorithm 1), (B, K, N) sorted; what is void adds nothing."""
    # Counted in whole numbers: float32 cannot count beyond 2^24 positions.
    true, false = truth.int().cumsum(2, dtype=torch.int32), (valid - truth).int().cumsum(2, dtype=torch.int32)
    whole = true[..., -1:]
    # Where nothing is true and nothing was seen yet, the loss is 0.
    loss = 1 - (whole - true) / (whole + false).clamp(min=1)
    loss = torch.where(whole + false > 0, loss, 0).to(truth.dtype)
    return torch.diff(loss, dim=2, prepend=torch.zeros_like(loss[..., :1]))
