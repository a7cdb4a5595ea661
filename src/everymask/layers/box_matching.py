"""Which true box each anchor or proposal is to find, and which of them a training step looks at.

Ren et al. 2015 (Faster R-CNN), sec. 3.1.2 and 3.1.3; ties and the order of random draws as in torchvision.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_iou

BACKGROUND, IGNORED = -1, -2
"""Instead of an index of a true box."""

CROWD_SHARE = 0.5
"""Background that a crowd region covers by this share of its area is ignored: objects may be in there."""


def match_boxes(
    candidates: Tensor, boxes: Tensor, crowd: Tensor, *, low: float, high: float, at_least_one: bool = False
) -> Tensor:
    """The true box of each candidate.

    Args:
        candidates: (A, 4) anchors or proposals, x0, y0, x1, y1 in pixels.
        boxes: (N, 4) true boxes.
        crowd: (N,) bool, which of them are regions of many objects: they are found by none, and what lies in them is
            no background either.
        low: Candidates whose best IoU is below are background.
        high: Those whose best IoU is at least this belong to that box; between the two they are ignored.
        at_least_one: Every box also gets the candidates that overlap it the most, however little.

    Returns:
        (A,) int64 index of a box, `BACKGROUND` or `IGNORED`.
    """
    index = torch.full((len(candidates),), BACKGROUND, dtype=torch.int64, device=candidates.device)
    single = torch.where(~crowd)[0]
    if len(single) and len(candidates):
        overlaps = box_iou(boxes[single], candidates)
        best, nearest = overlaps.max(dim=0)
        index = torch.where(best >= high, nearest, torch.where(best < low, BACKGROUND, IGNORED))
        if at_least_one:
            most = overlaps.amax(dim=1, keepdim=True)
            # A box that no candidate meets would else be found by all of them.
            index = torch.where(((overlaps == most) & (most > 0)).any(dim=0), nearest, index)
        index = torch.where(index >= 0, single[index.clamp(min=0)], index)
    if len(single) < len(boxes) and len(candidates):
        covered = _covered_share(candidates, boxes[crowd]) >= CROWD_SHARE
        index = torch.where(covered & (index == BACKGROUND), IGNORED, index)
    return index


def _covered_share(candidates: Tensor, regions: Tensor) -> Tensor:
    """(A,) the largest share of a candidate's area that one of the regions (M, 4) covers, 0..1."""
    low = torch.maximum(candidates[:, None, :2], regions[:, :2])
    high = torch.minimum(candidates[:, None, 2:], regions[:, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    area = (candidates[:, 2:] - candidates[:, :2]).prod(-1)
    return (shared / area.clamp(min=1e-6)[:, None]).amax(dim=1)


def sample_balanced(index: Tensor, number: int, share: float) -> tuple[Tensor, Tensor]:
    """A random choice of candidates for a training step.

    Args:
        index: (A,) from `match_boxes`.
        number: Of candidates, fewer if there are not so many.
        share: 0..1, the most of them that belong to a box; background fills up.

    Returns:
        Positions of those that belong to a box, and of background.
    """
    positive = torch.where(index >= 0)[0]
    negative = torch.where(index == BACKGROUND)[0]
    positives = min(len(positive), int(number * share))
    negatives = min(len(negative), number - positives)
    first = torch.randperm(len(positive), device=index.device)[:positives]
    second = torch.randperm(len(negative), device=index.device)[:negatives]
    return positive[first], negative[second]


def best_of_each_image(kept: Tensor, image: Tensor, images: int, most: int) -> tuple[Tensor, Tensor]:
    """The first `most` of each image, image after image.

    Args:
        kept: (K,) indices into `image`, the best first, of all images together.
        image: (N,) the number of the image of each.
        images: How many there are.
        most: To keep of each.

    Returns:
        The indices, and the rank 0..most - 1 of each within its image.
    """
    if images == 1:
        kept = kept[:most]
        return kept, torch.arange(len(kept), device=kept.device)
    order = torch.argsort(image[kept], stable=True)
    kept = kept[order]
    numbers = image[kept]
    starts = torch.searchsorted(numbers, torch.arange(images, device=kept.device, dtype=numbers.dtype))
    rank = torch.arange(len(kept), device=kept.device) - starts[numbers]
    inside = rank < most
    return kept[inside], rank[inside]
