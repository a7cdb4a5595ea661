"""Of boxes that overlap, all but the most probable one are left out, or become less probable.

Hard suppression is that of `torchvision`; soft suppression that of Bodla, Singh, Chellappa, Davis, Soft-NMS: Improving
Object Detection With One Line of Code, ICCV 2017, as in the official program
https://github.com/bharatsingh430/soft-nms.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from everymask.errors import InputError, unknown_name

Suppression = Literal["hard", "linear", "gaussian"]

SIGMA = 0.5
"""Of the Gaussian rule (sec. 4 of the paper)."""

LEAST_SCORE = 1e-3
"""What softly suppressed boxes must keep of their score (the official program's)."""

_ALL = 2**62


def check_suppression(kind: str) -> None:
    """Checks the name of a rule.

    Raises:
        InputError: There is no such rule.
    """
    if kind not in get_args(Suppression):
        raise unknown_name("suppression", str(kind), get_args(Suppression))


def suppress(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    *,
    overlap: float,
    kind: Suppression = "hard",
    sigma: float = SIGMA,
    least_score: float = LEAST_SCORE,
    most: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Takes the most probable box, suppresses those that overlap it, takes the most probable one that is left, etc.

    Args:
        boxes: (N, 4) x0, y0, x1, y1 in pixels.
        scores: (N,) probabilities.
        groups: (N,) int64; boxes of different groups, such as images or the classes of an image, leave one another
            alone.
        overlap: IoU above which ``hard`` drops the less probable box and ``linear`` lowers its score; ``gaussian`` has
            no such limit.
        kind: ``hard``; ``linear`` multiplies the score by 1 - IoU (eq. 2 of the paper), ``gaussian`` by
            exp(-IoU^2 / sigma) (eq. 3).
        sigma: Of ``gaussian``, above 0: the smaller, the more is suppressed.
        least_score: Of the soft rules: boxes whose score falls below are dropped, at the latest at `LEAST_SCORE`.
        most: Of the soft rules: no more boxes of a group are wanted, which saves the time for the others; None for all.

    Returns:
        (K,) int64 indices of the boxes that are left, from the most probable on, and (K,) their scores, which the soft
        rules have lowered.

    Raises:
        InputError: `sigma` is not above 0.
    """
    if kind == "hard":
        kept = batched_nms(boxes, scores, groups, overlap)
        return kept, scores[kept]
    if sigma <= 0:
        raise InputError(f"sigma must be above 0, got {sigma}")
    from everymask.ops.box_decay import decay_scores

    # On the CPU whatever the device: the loop has a step for every box that is taken, each far too small to be worth
    # the launches on an accelerator.
    table, probable, numbers = (each.detach().cpu().numpy() for each in (boxes.float(), scores.float(), groups))
    index, decayed = decay_scores(
        table,
        probable,
        numbers,
        overlap=overlap,
        sigma=sigma if kind == "gaussian" else 0.0,
        least=max(least_score, LEAST_SCORE),
        most=_ALL if most is None else most,
    )
    kept, left = torch.from_numpy(index).to(boxes.device), torch.from_numpy(decayed).to(scores)
    order = torch.argsort(left, descending=True, stable=True)
    return kept[order], left[order]
