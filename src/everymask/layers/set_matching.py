"""Sets of predictions matched with sets of objects, one to one, at the least cost.

Carion et al., End-to-End Object Detection with Transformers, ECCV 2020, sec. 3.1 and appendix A.2; the assignment by
Kuhn's Hungarian method in the form of `scipy.optimize.linear_sum_assignment`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from everymask.ops.boxes import generalized_box_iou

_WORST = 1e9
"""Cost of a pair whose cost is no number: such a network is lost, but the training is to tell so, not the matching."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Weights of the three parts of the cost of a pair.

    Args:
        classes: Of the negative probability of the object's class.
        boxes: Of the sum of the absolute differences of centres and sides, in shares of the image.
        overlap: Of the negative generalised IoU.
    """

    classes: float = 1.0
    boxes: float = 5.0
    overlap: float = 2.0


class Matching(NamedTuple):
    """P pairs of a prediction and an object for each of S sets of predictions (decoder layers), by image.

    Every set has as many pairs: of each image all objects or all predictions, whichever are fewer.
    """

    image: Tensor
    """(P,) int64."""
    prediction: Tensor
    """(S, P) int64 index of the prediction in its image."""
    object: Tensor
    """(S, P) int64 index of the object among those of all images, one image after the other."""


def corners(boxes: Tensor) -> Tensor:
    """Boxes (..., 4) x0, y0, x1, y1 of boxes (..., 4) given as centre and sides x, y, w, h."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def centres(boxes: Tensor) -> Tensor:
    """The inverse of `corners`."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


@torch.no_grad()
def pair_costs(
    logits: Tensor, boxes: Tensor, true_classes: Sequence[Tensor], true_boxes: Sequence[Tensor], costs: Costs
) -> Tensor:
    """Cost of each prediction for each object of its image.

    Args:
        logits: (..., B, Q, K + 1) of the classes, "no object" last.
        boxes: (..., B, Q, 4) centre and sides, in shares of the image.
        true_classes: (N,) int64 0..K-1 of each image.
        true_boxes: (N, 4) of each image, as `boxes`.
        costs: Weights of the parts.

    Returns:
        (..., B, Q, most N) float32; what lies beyond the N of an image means nothing.
    """
    classes = pad_sequence(list(true_classes), batch_first=True)
    wanted = pad_sequence(list(true_boxes), batch_first=True)
    probability = logits.float().softmax(-1)
    index = classes[:, None].expand(*probability.shape[:-1], -1)
    found = boxes.float()
    distance = torch.cdist(found, wanted.expand(*found.shape[:-2], -1, -1), p=1)
    overlap = generalized_box_iou(corners(found), corners(wanted), pairwise=True)
    return costs.boxes * distance - costs.classes * probability.gather(-1, index) - costs.overlap * overlap


def match_sets(
    logits: Tensor,
    boxes: Tensor,
    true_classes: Sequence[Tensor],
    true_boxes: Sequence[Tensor],
    costs: Costs | None = None,
) -> Matching:
    """The pairs of least total cost, for all sets of predictions and all images of a batch.

    The costs are computed for all at once on the device of the predictions and brought to the CPU in one transfer.

    Args:
        logits: (S, B, Q, K + 1), see `pair_costs`.
        boxes: (S, B, Q, 4).
        true_classes: (N,) of each of the B images.
        true_boxes: (N, 4) of each.
        costs: Weights of the parts; default those of the paper.

    Returns:
        Pairs, on the device of the logits.
    """
    device, sets = logits.device, len(logits)
    counts = [len(each) for each in true_classes]
    images: list[Tensor] = []
    predictions: list[Tensor] = []
    objects: list[Tensor] = []
    if any(counts):
        table = pair_costs(logits, boxes, true_classes, true_boxes, costs or Costs())
        known = table.nan_to_num(_WORST, _WORST, _WORST).cpu().numpy()
        first = 0
        for image, count in enumerate(counts):
            pairs = [linear_sum_assignment(known[each, image, :, :count]) for each in range(sets)]
            predictions.append(torch.stack([torch.from_numpy(rows) for rows, _ in pairs]))
            objects.append(torch.stack([torch.from_numpy(columns) for _, columns in pairs]) + first)
            images.append(torch.full((predictions[-1].shape[1],), image))
            first += count
    if not images:
        none = torch.zeros(sets, 0, dtype=torch.int64, device=device)
        return Matching(none[0], none, none)
    return Matching(
        torch.cat(images).to(device), torch.cat(predictions, 1).to(device), torch.cat(objects, 1).to(device)
    )
