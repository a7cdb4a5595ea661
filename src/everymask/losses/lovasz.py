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
    """Lovasz-softmax where one class is true at each position, Lovasz hinge where each class stands alone.

    Berman et al. 2018: the sorted errors times the steps of the Jaccard loss (algorithm 1), mean over classes.

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
    truth = given.truth > 0.5
    valid = given.valid.expand_as(truth)
    if given.exclusive:
        errors = torch.abs(given.truth - given.raw_probability())
    else:
        errors = (1 - given.logits * (2.0 * truth - 1)).relu()
    # Below all others, what is void comes last.
    errors = torch.where(valid == 0, -1, errors * valid)
    if not per_image:
        errors, truth, valid = (each.transpose(0, 1).flatten(1).unsqueeze(0) for each in (errors, truth, valid))
    ordered, order = errors.sort(dim=2, descending=True)
    counted = valid.sum(2)
    steps = _jaccard_steps(truth.gather(2, order), counted)
    terms = (ordered * steps.to(ordered.dtype)).sum(2)
    counts = truth.any(2) if given.exclusive and not absent else counted > 0
    return mean_over_classes(terms, counts, None if class_weight is None else given.of_classes(class_weight))


def _jaccard_steps(truth: Tensor, counted: Tensor) -> Tensor:
    """How much each error adds to the Jaccard loss (algorithm 1).

    Args:
        truth: (B, K, N) bool, sorted by falling errors.
        counted: (B, K) number of the first positions that count; the others add nothing.

    Returns:
        (B, K, N) of the type of `counted`.
    """
    # Counted in whole numbers: float32 cannot count beyond 2^24 positions.
    true = truth.cumsum(2, dtype=torch.int32)
    seen = torch.arange(1, truth.shape[2] + 1, dtype=torch.int32, device=truth.device)
    seen = torch.minimum(seen, counted.int().unsqueeze(2))
    whole = true[..., -1:]
    # Of the union, what is true and what was seen of the rest; the intersection is what was not seen of what is true.
    union = whole + seen - true
    loss = torch.where(union > 0, 1 - (whole - true).to(counted.dtype) / union.clamp(min=1), 0)
    return torch.diff(loss, dim=2, prepend=torch.zeros_like(loss[..., :1]))
