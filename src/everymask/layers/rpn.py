"""Region proposal network: where objects may be, whatever their class.

Ren, He, Girshick, Sun, Faster R-CNN, NeurIPS 2015; on feature pyramids as in Lin et al. 2017. Numbers and rules are
those of torchvision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import batched_nms

from everymask.layers.anchors import Anchors, Grid
from everymask.layers.box_coding import clip_boxes, decode_boxes, encode_boxes, have_sides
from everymask.layers.box_matching import best_of_each_image, match_boxes, sample_balanced

BETA = 1 / 9
"""Where the smooth L1 loss of offsets goes over from a parabola to a line."""

_LEAST_SIDE = 1e-3
"""Sides of a proposal in pixels; what is left of smaller ones at the edge of the image is nothing."""


@dataclass(frozen=True, slots=True)
class Proposing:
    """What a region proposal network keeps and learns from.

    Args:
        before: Best anchors of each feature map that go into non-maximum suppression, (prediction, training).
        after: Proposals of an image that come out of it at most, (prediction, training).
        overlap: IoU from which the less probable of two proposals is suppressed.
        low: Anchors whose best IoU with a true box is below are background.
        high: From this IoU on they are of the object; between the two nothing is learnt.
        samples: Anchors of each image that a training step looks at.
        positive_share: At most this share of them is of objects.
    """

    before: tuple[int, int] = (1000, 2000)
    after: tuple[int, int] = (1000, 2000)
    overlap: float = 0.7
    low: float = 0.3
    high: float = 0.7
    samples: int = 256
    positive_share: float = 0.5


class RegionProposalNetwork(nn.Module):
    """A small convolutional head, the same for all maps of a pyramid, that judges and moves anchors.

    Args:
        width: Channels of the maps.
        anchors: Those of the pyramid.
        depth: 3 x 3 convolutions before the two predicting ones.
        proposing: What is kept and learnt from.
    """

    def __init__(self, width: int, anchors: Anchors, depth: int = 1, proposing: Proposing | None = None) -> None:
        super().__init__()
        self.anchors, self.proposing = anchors, Proposing() if proposing is None else proposing
        self.convolutions = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(inplace=True)) for _ in range(depth))
        )
        self.objectness = nn.Conv2d(width, anchors.per_cell, 1)
        self.offsets = nn.Conv2d(width, 4 * anchors.per_cell, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (B, A) of the anchors to be of an object, and their offsets (B, A, 4), both float32.

        Args:
            maps: (B, width, h, w) of each level, finest first.
        """
        logits: list[Tensor] = []
        offsets: list[Tensor] = []
        for each in maps:
            features = self.convolutions(each)
            images = len(each)
            logits.append(self.objectness(features).permute(0, 2, 3, 1).reshape(images, -1))
            offsets.append(self.offsets(features).permute(0, 2, 3, 1).reshape(images, -1, 4))
        return torch.cat(logits, dim=1).float(), torch.cat(offsets, dim=1).float()

    @torch.no_grad()
    def propose(self, logits: Tensor, offsets: Tensor, size: Grid, grids: Sequence[Grid]) -> Tensor:
        """The proposals: the most probable anchors of each level, moved, cut at the edges, without near-duplicates.

        Args:
            logits: (B, A).
            offsets: (B, A, 4).
            size: (height, width) of the images in pixels.
            grids: (rows, columns) of each level.

        Returns:
            (P, 5) number of the image, x0, y0, x1, y1 in pixels; image after image, each from the most probable on.
        """
        before, after = self.proposing.before[self.training], self.proposing.after[self.training]
        images, device = len(logits), logits.device
        counts = self.anchors.counts(grids)
        chosen: list[Tensor] = []
        first = 0
        for count in counts:
            best = logits[:, first : first + count].topk(min(before, count), dim=1).indices
            chosen.append(best + first)
            first += count
        index = torch.cat(chosen, dim=1)
        # Only what is left is decoded: a tenth of the anchors of a usual image.
        anchors = self.anchors(size, grids, device)
        boxes = decode_boxes(offsets.gather(1, index[..., None].expand(-1, -1, 4)), anchors[index])
        boxes = clip_boxes(boxes, size)
        level = torch.cat([torch.full_like(each[0], number) for number, each in enumerate(chosen)])
        image = torch.arange(images, device=device)[:, None].expand_as(index)
        group = image * len(counts) + level
        kept = have_sides(boxes, _LEAST_SIDE)
        boxes, image = boxes[kept], image[kept]
        found = batched_nms(boxes, logits.gather(1, index)[kept].sigmoid(), group[kept], self.proposing.overlap)
        found, _ = best_of_each_image(found, image, images, after)
        return torch.cat([image[found, None].to(boxes.dtype), boxes[found]], dim=1)

    def loss(
        self,
        logits: Tensor,
        offsets: Tensor,
        size: Grid,
        grids: Sequence[Grid],
        boxes: Sequence[Tensor],
        crowd: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        """Cross-entropy of the sampled anchors and smooth L1 of the offsets of those of objects (eq. 1).

        Args:
            logits: (B, A).
            offsets: (B, A, 4).
            size: (height, width) of the images in pixels.
            grids: (rows, columns) of each level.
            boxes: (N, 4) true boxes of each image.
            crowd: (N,) bool of each image.

        Returns:
            Scalars ``objectness`` and ``proposals``, both divided by the number of sampled anchors.
        """
        settings = self.proposing
        anchors = self.anchors(size, grids, logits.device)
        truth: list[Tensor] = []
        judged: list[Tensor] = []
        moved: list[Tensor] = []
        wanted: list[Tensor] = []
        for image, (true_boxes, crowds) in enumerate(zip(boxes, crowd, strict=True)):
            index = match_boxes(anchors, true_boxes, crowds, low=settings.low, high=settings.high, at_least_one=True)
            positive, negative = sample_balanced(index, settings.samples, settings.positive_share)
            judged.append(logits[image, torch.cat([positive, negative])])
            truth.append(torch.cat([logits.new_ones(len(positive)), logits.new_zeros(len(negative))]))
            moved.append(offsets[image, positive])
            wanted.append(encode_boxes(true_boxes[index[positive]], anchors[positive]))
        sampled = torch.cat(judged)
        number = max(1, len(sampled))
        objectness = functional.binary_cross_entropy_with_logits(sampled, torch.cat(truth), reduction="sum")
        distance = functional.smooth_l1_loss(torch.cat(moved), torch.cat(wanted), beta=BETA, reduction="sum")
        return {"objectness": objectness / number, "proposals": distance / number}
