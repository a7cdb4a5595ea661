"""What detectors that judge all anchors at once share (SSD, RetinaNet): towers, losses of boxes, detections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from everymask.errors import InputError
from everymask.layers.box_coding import Weights, decode_boxes, encode_boxes
from everymask.layers.suppression import LEAST_SCORE, Suppression, suppress
from everymask.ops.boxes import generalized_box_iou

BoxLoss = Literal["l1", "smooth_l1", "giou"]

# -- network -----------------------------------------------------------------------------------------------------------


class Tower(nn.Module):
    """Convolutions and a predicting one, the same for all maps of a pyramid (Lin et al. 2017, sec. 4).

    Args:
        width: Channels of the maps.
        outputs: Channels of the prediction.
        depth: 3 x 3 convolutions before it.
        groups: Of group normalisation after each of them; 0 for none.

    Raises:
        InputError: The channels cannot be parted into so many groups of two or more.
    """

    def __init__(self, width: int, outputs: int, depth: int = 4, groups: int = 0) -> None:
        super().__init__()
        # A group of one channel would have no variance where a map is a single pixel.
        if groups and (width % groups or width < 2 * groups):
            raise InputError(
                f"the width must be a multiple of {groups} from {2 * groups} on for group normalisation, got {width}"
            )
        layers = []
        for _ in range(depth):
            norm: list[nn.Module] = [nn.GroupNorm(groups, width)] if groups else []
            convolution = nn.Conv2d(width, width, 3, padding=1, bias=not groups)
            layers.append(nn.Sequential(convolution, *norm, nn.ReLU(inplace=True)))
        self.convolutions = nn.Sequential(*layers)
        self.predict = nn.Conv2d(width, outputs, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """(B, outputs, h, w) of each map (B, width, h, w)."""
        return [self.predict(self.convolutions(each)) for each in maps]


def of_anchors(maps: Sequence[Tensor], numbers: int) -> Tensor:
    """Predictions of all anchors in the order of `everymask.layers.anchors`, in float32.

    Args:
        maps: (B, a * numbers, h, w) for each level with a anchors at a cell, those of an anchor one after another.
        numbers: That are predicted for each anchor.

    Returns:
        (B, A, numbers).
    """
    # Not len(each), which an export takes for a constant.
    flat = [each.permute(0, 2, 3, 1).reshape(each.shape[0], -1, numbers) for each in maps]
    return torch.cat(flat, dim=1).float()


# -- training ----------------------------------------------------------------------------------------------------------


class Positives(NamedTuple):
    """The anchors of a batch that belong to an object, image after image.

    Attributes:
        image: (P,) int64 number of the image.
        anchor: (P,) int64 number of the anchor.
        boxes: (P, 4) the true box.
        classes: (P,) int64, 0..K-1.
    """

    image: Tensor
    anchor: Tensor
    boxes: Tensor
    classes: Tensor


def positives(index: Tensor, boxes: Sequence[Tensor], classes: Sequence[Tensor]) -> Positives:
    """What the anchors that belong to an object are to find.

    Args:
        index: (B, A) int64 index of the true box within its image, negative for none.
        boxes: (N, 4) of each image.
        classes: (N,) of each image.
    """
    image, anchor = torch.where(index >= 0)
    counts = torch.tensor([0, *(len(each) for each in boxes)], device=index.device)
    chosen = counts.cumsum(0)[image] + index[image, anchor]
    return Positives(image, anchor, torch.cat(list(boxes))[chosen], torch.cat(list(classes))[chosen])


def box_loss(
    kind: BoxLoss, offsets: Tensor, anchors: Tensor, boxes: Tensor, weight: Tensor | float, coding: Weights
) -> Tensor:
    """Weighted sum of the distances of boxes from the true ones.

    Args:
        kind: ``l1`` and ``smooth_l1`` (bent at 1; Girshick 2015, eq. 3) compare offsets, ``giou`` the boxes
            (Rezatofighi et al. 2019).
        offsets: (P, 4) predicted.
        anchors: (P, 4) that they are from.
        boxes: (P, 4) true boxes.
        weight: (P,), or one for all.
        coding: Weights of the offsets.
    """
    if kind == "giou":
        distance = 1 - generalized_box_iou(decode_boxes(offsets, anchors, coding), boxes)
    else:
        compare = functional.l1_loss if kind == "l1" else functional.smooth_l1_loss
        distance = compare(offsets, encode_boxes(boxes, anchors, coding), reduction="none").sum(-1)
    return (weight * distance).sum()


# -- prediction --------------------------------------------------------------------------------------------------------


class Candidates(NamedTuple):
    """Pairs of an anchor and a class that may be detections.

    Attributes:
        image: (C,) int64 number of the image.
        anchor: (C,) int64 number of the anchor.
        classes: (C,) int64, 0..K-1.
        scores: (C,) probabilities.
    """

    image: Tensor
    anchor: Tensor
    classes: Tensor
    scores: Tensor


def detections(
    found: Candidates,
    outputs: Mapping[str, Tensor],
    sizes: Sequence[tuple[int, ...]],
    *,
    coding: Weights,
    overlap: float,
    most: int,
    suppression: Suppression = "hard",
    class_agnostic: bool = False,
    least_score: float = LEAST_SCORE,
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Detections of each image without duplicates, the best first.

    Args:
        found: Candidates of a batch.
        outputs: ``offsets`` (B, A, 4) and the ``anchors`` (B, A, 4) that they are from.
        sizes: (H, W) of each image in pixels.
        coding: Weights of the offsets.
        overlap: IoU from which the less probable of two boxes is suppressed.
        most: Detections of an image at most.
        suppression: See `everymask.layers.suppression.suppress`; with the soft rules scores are what they leave.
        class_agnostic: Whether boxes of different classes suppress one another, too.
        least_score: What the soft rules must leave of a score.

    Returns:
        For each image boxes (D, 4) within it, scores (D,) and classes (D,).
    """
    offsets, anchors = (outputs[name][found.image, found.anchor].float() for name in ("offsets", "anchors"))
    limits = torch.tensor([(width, height, width, height) for height, width in sizes], device=offsets.device)
    boxes = decode_boxes(offsets, anchors, coding).clamp(min=0).minimum(limits[found.image])
    results = []
    for image in range(len(sizes)):
        own = torch.where(found.image == image)[0]
        groups = torch.zeros_like(own) if class_agnostic else found.classes[own]
        kept, scores = suppress(
            boxes[own],
            found.scores[own],
            groups,
            overlap=overlap,
            kind=suppression,
            least_score=least_score,
            most=most,
        )
        kept = own[kept[:most]]
        results.append((boxes[kept], scores[:most], found.classes[kept]))
    return results
