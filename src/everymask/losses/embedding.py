"""Losses of embeddings: positions of one object near each other, those of different objects apart."""

from __future__ import annotations

import torch
from torch import Tensor

from everymask.errors import InputError
from everymask.losses.forms import VOID, check_option, ratio


def discriminative(
    embeddings: Tensor,
    labels: Tensor,
    *,
    pull_margin: float = 0.5,
    push_margin: float = 1.5,
    pull: float = 1.0,
    push: float = 1.0,
    regularisation: float = 0.001,
    background: int = 0,
    void: int = VOID,
) -> Tensor:
    """Discriminative loss of De Brabandere et al. 2017, eq. 1-4, mean over the images that hold an object.

    - Pull: ``mean_c mean_i max(0, |mu_c - x_i| - d_v)^2`` over objects c and their positions i.
    - Push: ``mean_(a != b) max(0, 2 d_d - |mu_a - mu_b|)^2`` over pairs of objects; 0 with a single object.
    - Regularisation: ``mean_c |mu_c|``.

    With push_margin > 2 pull_margin, each position is nearer to its own mean than to that of any other object once
    the loss is 0.

    Args:
        embeddings: (B, E, ...) unbounded; half precision is computed in float32.
        labels: (B, ...) integer: the object of each position, any numbers.
        pull_margin: d_v >= 0.
        push_margin: d_d >= 0.
        pull: Weight of the first term, >= 0.
        push: Weight of the second term, >= 0.
        regularisation: Weight of the third term, >= 0.
        background: Label of positions of no object.
        void: Label of what does not count.

    Returns:
        Scalar >= 0; 0 with gradient 0 when there is no object.

    Raises:
        InputError: The shapes do not fit, or a number is negative.
    """
    if embeddings.ndim < 3 or labels.shape != (embeddings.shape[0], *embeddings.shape[2:]):
        raise InputError(
            f"embeddings have shape {tuple(embeddings.shape)} and labels {tuple(labels.shape)}; "
            "expected (B, E, ...) and (B, ...)"
        )
    options = {"pull_margin": pull_margin, "push_margin": push_margin, "pull": pull, "push": push}
    for name, value in {**options, "regularisation": regularisation}.items():
        check_option(value >= 0, name, value, "a number of 0 or more")
    values = (embeddings if embeddings.dtype == torch.float64 else embeddings.float()).flatten(2)
    whole, images = values.sum() * 0, 0
    for positions, ids in zip(values.transpose(1, 2), labels.flatten(1), strict=True):
        chosen = (ids != background) & (ids != void)
        objects, member = torch.unique(ids[chosen], return_inverse=True)
        if not len(objects):
            continue
        images += 1
        whole = whole + _of_image(
            positions[chosen], member, len(objects), pull_margin=pull_margin, push_margin=push_margin, pull=pull,
            push=push, regularisation=regularisation,
        )  # fmt: skip
    return whole / max(images, 1)


def _of_image(
    positions: Tensor,
    member: Tensor,
    count: int,
    *,
    pull_margin: float,
    push_margin: float,
    pull: float,
    push: float,
    regularisation: float,
) -> Tensor:
    """The loss of positions (P, E) that belong to the objects `member` (P,) in 0..count - 1."""

    def mean_of_objects(each: Tensor) -> Tensor:
        return torch.zeros(count, *each.shape[1:], dtype=each.dtype, device=each.device).index_add(0, member, each)

    sizes = mean_of_objects(torch.ones_like(positions[:, :1]))
    centres = mean_of_objects(positions) / sizes
    spread = (_length(positions - centres[member]) - pull_margin).relu() ** 2
    pulled = (mean_of_objects(spread.unsqueeze(1)) / sizes).mean()
    # Not by matrix products, which would lose the digits of close means.
    apart = torch.cdist(centres, centres, compute_mode="donot_use_mm_for_euclid_dist")
    different = 1 - torch.eye(count, dtype=apart.dtype, device=apart.device)
    pushed = ratio(((2 * push_margin - apart).relu() ** 2 * different).sum(), different.sum())
    return pull * pulled + push * pushed + regularisation * _length(centres).mean()


def _length(vectors: Tensor) -> Tensor:
    """(P,) Euclidean length, with a gradient of 0 where the length is 0."""
    squared = (vectors**2).sum(1)
    nothing = squared == 0
    return torch.where(nothing, 0, torch.where(nothing, 1, squared).sqrt())
