"""The second stage of the R-CNN family: features of regions, their class, their box and their mask.

Girshick 2015 (Fast R-CNN), Lin et al. 2017 (levels of the pyramid), He et al. 2017 (Mask R-CNN, RoIAlign). Regions are
rows (number of the image, x0, y0, x1, y1) of one table for the whole batch, so that every layer runs once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import roi_align

from everymask.layers.anchors import Grid
from everymask.layers.box_coding import Weights, clip_boxes, decode_boxes, encode_boxes, have_sides
from everymask.layers.box_matching import BACKGROUND, best_of_each_image, match_boxes, sample_balanced
from everymask.layers.rpn import BETA
from everymask.layers.suppression import Suppression, suppress

OFFSET_WEIGHTS: Weights = (10.0, 10.0, 5.0, 5.0)
"""One over the deviations of the offsets from proposals to objects (Girshick's program)."""

_LEAST_SIDE = 1e-2
"""Sides in pixels of a detection."""

_CANONICAL_SIDE, _CANONICAL_LEVEL = 224, 4
"""A region as large as the images of ImageNet is taken from stride 2^4 (Lin et al. 2017, eq. 1)."""


class PyramidRoIAlign(nn.Module):
    """Features of regions by bilinear sampling, each from the level of the pyramid that fits its size.

    Args:
        reductions: Pixels of the image per feature of each level used, finest first; each twice the one before.
        size: Side of the result.
        sampling: Samples along each side of a cell of the result.
    """

    def __init__(self, reductions: Sequence[float], size: int, sampling: int = 2) -> None:
        super().__init__()
        self.reductions, self.size, self.sampling = tuple(reductions), size, sampling
        self._finest = round(math.log2(self.reductions[0]))

    def forward(self, maps: Sequence[Tensor], regions: Tensor) -> Tensor:
        """Features (R, C, size, size) of regions (R, 5).

        Args:
            maps: (B, C, h, w) of each level; levels above those used are passed over.
            regions: Number of the image, x0, y0, x1, y1 in pixels of the image.
        """
        level = self.levels(regions)
        used = list(zip(maps, self.reductions, strict=False))
        places = [torch.where(level == number)[0] for number in range(len(used))]
        if regions.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return self._on_cpu(used, regions, places)
        parts = [
            roi_align(features.to(regions.dtype), regions[place], self.size, 1 / reduction, self.sampling)
            for (features, reduction), place in zip(used, places, strict=True)
        ]
        order, gathered = torch.empty_like(level), torch.cat(places)
        order[gathered] = torch.arange(len(gathered), device=order.device)
        return torch.cat(parts)[order]

    def _on_cpu(self, used: Sequence[tuple[Tensor, float]], regions: Tensor, places: Sequence[Tensor]) -> Tensor:
        """`forward` without a gradient: there the kernel of torchvision has one thread and no vectors."""
        from everymask.ops.region_features import align_regions

        found = torch.empty(len(regions), self.size, self.size, used[0][0].shape[1])
        table, result = regions.contiguous().numpy(), found.numpy()
        for (features, reduction), place in zip(used, places, strict=True):
            if len(place):
                rows = features.float().permute(0, 2, 3, 1).contiguous().numpy()
                align_regions(rows, table, place.numpy(), 1 / reduction, result, self.sampling)
        return found.permute(0, 3, 1, 2)

    def levels(self, regions: Tensor) -> Tensor:
        """(R,) index of the map for each region (Lin et al. 2017, eq. 1)."""
        side = (regions[:, 3:] - regions[:, 1:3]).prod(-1).sqrt()
        level = torch.floor(_CANONICAL_LEVEL + torch.log2(side / _CANONICAL_SIDE) + 1e-6)
        return level.clamp(self._finest, self._finest + len(self.reductions) - 1).to(torch.int64) - self._finest


def box_head(width: int, size: int, hidden: int, convolutions: int) -> nn.Sequential:
    """From features (R, width, size, size) to (R, hidden).

    Args:
        width: Channels.
        size: Side of the features.
        hidden: Width of the fully connected layers.
        convolutions: 0 gives two fully connected layers (Lin et al. 2017), more so many 3 x 3 convolutions with batch
            normalisation and one such layer (torchvision's v2, Li et al. 2021).
    """
    layers: list[nn.Module] = [_convolution(width, width, norm=True) for _ in range(convolutions)]
    layers += [nn.Flatten(), nn.Linear(width * size**2, hidden), nn.ReLU(inplace=True)]
    if not convolutions:
        layers += [nn.Linear(hidden, hidden), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class BoxPredictor(nn.Module):
    """Class and box of each region.

    Args:
        hidden: Width of the input.
        classes: K; the logits have background before them.
    """

    def __init__(self, hidden: int, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.score = nn.Linear(hidden, classes + 1)
        self.offsets = nn.Linear(hidden, 4 * classes)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (R, K + 1) and offsets (R, K, 4), both float32, of features (R, hidden)."""
        return self.score(features).float(), self.offsets(features).float().reshape(len(features), self.classes, 4)


class MaskHead(nn.Module):
    """A mask for each class, of which only that of the region's class is computed.

    Args:
        width: Channels.
        classes: K.
        convolutions: 3 x 3 convolutions before the resolution is doubled.
        norm: Batch normalisation after each of them (torchvision's v2).
    """

    def __init__(self, width: int, classes: int, convolutions: int = 4, norm: bool = False) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(*(_convolution(width, width, norm) for _ in range(convolutions)))
        self.up = nn.ConvTranspose2d(width, width, 2, stride=2)
        self.logits = nn.Conv2d(width, classes, 1)
        nn.init.kaiming_normal_(self.up.weight, mode="fan_out", nonlinearity="relu")
        # torchvision's variance of 2 / K makes the first losses of data with few classes huge; this is Detectron's.
        nn.init.normal_(self.logits.weight, std=1e-3)
        nn.init.zeros_(self.logits.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor, classes: Tensor) -> Tensor:
        """Logits (R, 2 s, 2 s) float32 of the masks of features (R, width, s, s), for classes (R,) 0..K-1."""
        risen = functional.relu(self.up(self.convolutions(features)))
        # One vector times the features, instead of the K of which K - 1 would be thrown away.
        weights = self.logits.weight[classes].flatten(1)[:, None]
        found = (weights @ risen.flatten(2).to(weights.dtype)).reshape(-1, *risen.shape[2:])
        bias = self.logits.bias[classes]  # type: ignore[index]
        return found.float() + bias[:, None, None].float()


def _convolution(inputs: int, outputs: int, norm: bool) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=not norm)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    normalisation: list[nn.Module] = [nn.BatchNorm2d(outputs)] if norm else []
    return nn.Sequential(convolution, *normalisation, nn.ReLU(inplace=True))


# -- prediction --------------------------------------------------------------------------------------------------------


class Detections(NamedTuple):
    """Detections of a batch, image after image, each from the best on.

    Attributes:
        regions: (D, 5) number of the image, x0, y0, x1, y1 in pixels.
        scores: (D,) probabilities.
        classes: (D,) int64, 0..K-1.
        places: (D,) int64, number of the image times the most of an image, plus the rank: where each has its place in
            outputs of fixed shape.
    """

    regions: Tensor
    scores: Tensor
    classes: Tensor
    places: Tensor


def detections(
    logits: Tensor,
    offsets: Tensor,
    regions: Tensor,
    size: Grid,
    images: int,
    *,
    least_score: float,
    overlap: float,
    most: int,
    suppression: Suppression = "hard",
    class_agnostic: bool = False,
) -> Detections:
    """Classes and boxes of regions, without duplicates.

    Args:
        logits: (R, K + 1), background first.
        offsets: (R, K, 4).
        regions: (R, 5).
        size: (height, width) of the images in pixels.
        images: Number of them.
        least_score: Only more probable ones count; 0..1.
        overlap: IoU from which the less probable of two boxes is suppressed.
        most: Detections of an image at most.
        suppression: See `everymask.layers.suppression.suppress`; with the soft rules scores are what they leave.
        class_agnostic: Whether boxes of different classes suppress one another, too.
    """
    return detections_by_score(
        torch.softmax(logits, dim=-1)[:, 1:],
        offsets,
        regions,
        size,
        images,
        weights=OFFSET_WEIGHTS,
        least_score=least_score,
        overlap=overlap,
        most=most,
        suppression=suppression,
        class_agnostic=class_agnostic,
    )


def detections_by_score(
    scores: Tensor,
    offsets: Tensor,
    regions: Tensor,
    size: Grid,
    images: int,
    *,
    weights: Weights,
    least_score: float,
    overlap: float,
    most: int,
    suppression: Suppression,
    class_agnostic: bool,
) -> Detections:
    """As `detections`, from probabilities (R, K) instead of logits; `weights` are those of the coding of the boxes."""
    # Few of the R * K boxes are ever needed.
    row, classes = torch.where(scores > least_score)
    boxes = clip_boxes(decode_boxes(offsets[row, classes], regions[row, 1:], weights), size)
    kept = torch.where(have_sides(boxes, _LEAST_SIDE))[0]
    boxes, row, classes = boxes[kept], row[kept], classes[kept]
    score, image = scores[row, classes], regions[row, 0].to(torch.int64)
    groups = image if class_agnostic else image * scores.shape[1] + classes
    found, left = suppress(boxes, score, groups, overlap=overlap, kind=suppression, least_score=least_score, most=most)
    score = score.index_copy(0, found, left)
    found, rank = best_of_each_image(found, image, images, most)
    image = image[found]
    table = torch.cat([image[:, None].to(boxes.dtype), boxes[found]], dim=1)
    return Detections(table, score[found], classes[found], image * most + rank)


def in_places(
    found: Detections, images: int, most: int, further: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Detections as outputs of fixed shape, zeros where there is none.

    Args:
        found: The detections.
        images: Number of them.
        most: Detections of an image at most.
        further: What else there is of each, (D, ...).

    Returns:
        ``boxes`` (images, most, 4), ``scores`` and ``classes`` (images, most), and likewise the further ones.
    """
    tables = {"boxes": found.regions[:, 1:], "scores": found.scores, "classes": found.classes, **(further or {})}

    def placed(values: Tensor) -> Tensor:
        empty = values.new_zeros(images * most, *values.shape[1:])
        return empty.index_copy(0, found.places, values).reshape(images, most, *values.shape[1:])

    return {name: placed(values) for name, values in tables.items()}


# -- training ----------------------------------------------------------------------------------------------------------


class Samples(NamedTuple):
    """Regions that a training step looks at, image after image.

    Attributes:
        regions: (S, 5).
        object: (S,) int64 index of the true box within its image, -1 for background.
        classes: (S,) int64, 0 for background, 1..K.
        boxes: (S, 4) the true boxes; of background, the region itself.
    """

    regions: Tensor
    object: Tensor
    classes: Tensor
    boxes: Tensor


def sample_regions(
    regions: Tensor,
    boxes: Sequence[Tensor],
    classes: Sequence[Tensor],
    crowd: Sequence[Tensor],
    *,
    overlap: float,
    number: int,
    positive_share: float,
) -> Samples:
    """A random choice of the proposals, to which the true boxes are added.

    Args:
        regions: (P, 5) proposals, image after image.
        boxes: (N, 4) true boxes of each image.
        classes: (N,) 0..K-1 of each image.
        crowd: (N,) bool of each image.
        overlap: IoU with a true box from which a region shows that object; below it is background.
        number: Of regions of each image.
        positive_share: At most this share of them shows objects.
    """
    counts = torch.bincount(regions[:, 0].to(torch.int64), minlength=len(boxes)).tolist()
    parts = []
    for image, (proposed, true_boxes, true_classes, crowds) in enumerate(
        zip(regions[:, 1:].split(counts), boxes, classes, crowd, strict=True)
    ):
        candidates = torch.cat([proposed, true_boxes[~crowds].to(proposed)])
        index = match_boxes(candidates, true_boxes, crowds, low=overlap, high=overlap)
        # In order, so that what follows does not depend on the draw more than it must.
        chosen = torch.cat(sample_balanced(index, number, positive_share)).sort().values
        candidates, index = candidates[chosen], index[chosen]
        shows = index != BACKGROUND
        label, wanted = torch.zeros_like(index), candidates.clone()
        label[shows] = true_classes[index[shows]] + 1
        wanted[shows] = true_boxes[index[shows]].to(wanted)
        number_of_image = torch.full_like(candidates[:, :1], image)
        parts.append((torch.cat([number_of_image, candidates], dim=1), index, label, wanted))
    return Samples(*(torch.cat(each) for each in zip(*parts, strict=True)))


def box_losses(logits: Tensor, offsets: Tensor, samples: Samples) -> dict[str, Tensor]:
    """Cross-entropy of the classes and smooth L1 of the offsets of the true class (Girshick 2015, eq. 1).

    Args:
        logits: (S, K + 1), background first.
        offsets: (S, K, 4).
        samples: The regions that they are of.

    Returns:
        Scalars ``classes`` and ``boxes``, both divided by the number of samples.
    """
    number = max(1, len(logits))
    shows = torch.where(samples.classes > 0)[0]
    wanted = encode_boxes(samples.boxes[shows], samples.regions[shows, 1:], OFFSET_WEIGHTS)
    found = offsets[shows, samples.classes[shows] - 1]
    return {
        "classes": functional.cross_entropy(logits, samples.classes, reduction="sum") / number,
        "boxes": functional.smooth_l1_loss(found, wanted, beta=BETA, reduction="sum") / number,
    }


def mask_targets(regions: Tensor, objects: Tensor, masks: Sequence[Tensor], size: int) -> Tensor:
    """The true masks within regions, (S, size, size), 0..1.

    Args:
        regions: (S, 5) that show objects, image after image.
        objects: (S,) index of each one's object within its image.
        masks: (N, H, W) bool of each image.
        size: Side of the result.
    """
    counts = torch.bincount(regions[:, 0].to(torch.int64), minlength=len(masks)).tolist()
    parts = []
    for boxes, index, true in zip(regions[:, 1:].split(counts), objects.split(counts), masks, strict=True):
        used, place = index.unique(return_inverse=True)
        table = torch.cat([place[:, None].to(boxes.dtype), boxes], dim=1)
        parts.append(roi_align(true[used, None].to(boxes.dtype), table, size)[:, 0])
    return torch.cat(parts)


def mask_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean binary cross-entropy of logits (S, s, s) with targets (S, s, s); 0 without samples (He et al. 2017)."""
    total = functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
    return total / max(1, targets.numel())
