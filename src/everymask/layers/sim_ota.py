"""SimOTA: which predictions are to find which true box, by what each pairing would cost now.

Ge et al., YOLOX: Exceeding YOLO Series in 2021, section 2.1, which simplifies Ge et al., OTA: Optimal Transport
Assignment for Object Detection, CVPR 2021. Numbers as in the official program up to version 0.2
(https://github.com/Megvii-BaseDetection/YOLOX, Apache-2.0), by which the published weights were trained.
"""

from __future__ import annotations

import torch
from torch import Tensor

from everymask.layers.box_matching import BACKGROUND
from everymask.ops.boxes import box_iou

RADIUS = 2.5
"""Half the side of the region around the centre of a box whose cells are preferred, in strides of the cell."""

CANDIDATES = 10
"""A box is found by as many predictions as the IoUs of this many best ones add up to."""

OVERLAP_WEIGHT = 3.0
OUTSIDE_COST = 1e5
"""For cells that are not both in the box and near its centre."""

_LEAST_LOG = -100.0  # of probabilities, as in torch's binary cross-entropy


@torch.no_grad()
def sim_ota(
    predicted: Tensor, objectness: Tensor, logits: Tensor, cells: Tensor, boxes: Tensor, classes: Tensor
) -> Tensor:
    """The true box of each cell of one image.

    Args:
        predicted: (A, 4) boxes x0, y0, x1, y1 in pixels that the cells predict now.
        objectness: (A,) their logits of holding any object.
        logits: (A, K) their logits of the classes.
        cells: (A, 3) column, row and stride of each cell; its centre is (column + .5, row + .5) * stride.
        boxes: (N, 4) true boxes.
        classes: (N,) 0..K-1.

    Returns:
        (A,) int64 index of a box or `BACKGROUND`; a box is that of 1 to `CANDIDATES` cells, unless others take them.
    """
    found = torch.full((len(cells),), BACKGROUND, dtype=torch.int64, device=cells.device)
    if not len(boxes):
        return found
    inside, near = _prior(cells, boxes)
    chosen = torch.where((inside | near).any(dim=0))[0]
    if not len(chosen):
        return found
    overlaps = box_iou(boxes, predicted[chosen], pairwise=True)
    cost = _class_cost(objectness[chosen], logits[chosen], classes) - OVERLAP_WEIGHT * torch.log(overlaps + 1e-8)
    cost = cost + OUTSIDE_COST * ~(inside & near)[:, chosen]

    most = min(CANDIDATES, len(chosen))
    number = overlaps.topk(most, dim=1).values.sum(dim=1).int().clamp(min=1)
    cheapest = cost.topk(most, dim=1, largest=False).indices
    wanted = torch.arange(most, device=cost.device) < number[:, None]
    taken = torch.zeros_like(cost, dtype=torch.bool).scatter(1, cheapest, wanted)
    wanting = taken.sum(dim=0)
    # A cell that several boxes want goes to the one it is cheapest for.
    index = torch.where(wanting > 1, cost.argmin(dim=0), taken.int().argmax(dim=0))
    found[chosen] = torch.where(wanting > 0, index, BACKGROUND)
    return found


def _prior(cells: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """(N, A) whether the centre of a cell is inside a box, and whether it is near the centre of the box."""
    stride = cells[:, 2]
    x, y = (cells[:, 0] + 0.5) * stride, (cells[:, 1] + 0.5) * stride
    x0, y0, x1, y1 = boxes.T[..., None]
    inside = (x > x0) & (x < x1) & (y > y0) & (y < y1)
    reach = RADIUS * stride
    near = ((x - 0.5 * (x0 + x1)).abs() < reach) & ((y - 0.5 * (y0 + y1)).abs() < reach)
    return inside, near


def _class_cost(objectness: Tensor, logits: Tensor, classes: Tensor) -> Tensor:
    """(N, M) binary cross-entropy of all K classes, summed, if the cell were of the class of the box.

    The probability is the geometric mean of that of the class and that of an object. The terms of the classes that a
    cell should not be of are the same for all boxes but for one term, so that no (N, M, K) numbers are needed.
    """
    probability = (logits.sigmoid() * objectness.sigmoid()[:, None]).sqrt()
    yes = -torch.log(probability).clamp(min=_LEAST_LOG)
    no = -torch.log1p(-probability).clamp(min=_LEAST_LOG)
    return (no.sum(dim=1, keepdim=True) + (yes - no)[:, classes]).T
