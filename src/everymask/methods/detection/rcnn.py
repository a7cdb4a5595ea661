"""R-CNN: each region that may hold an object is cut out of the image and classified.

Girshick, Donahue, Darrell, Malik, Rich Feature Hierarchies for Accurate Object Detection and Semantic Segmentation,
CVPR 2014.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import box_iou, roi_align

from everymask.backbones.whole import WholeBackbone
from everymask.errors import InputError
from everymask.layers.box_coding import encode_boxes
from everymask.layers.box_matching import IGNORED, match_boxes
from everymask.layers.roi_heads import detections_by_score, in_places, sample_regions
from everymask.layers.suppression import Suppression
from everymask.methods.detection.common import true_boxes
from everymask.methods.detection.proposals import ProposalMethod, Search, numbered
from everymask.methods.detection.rcnn_fitting import Examples, FittedLinear, fit_machines, fit_regressions
from everymask.types import Segments

_CHUNK = 64
"""Windows that go through the network at a time where nothing is learnt, so that memory is bounded."""

_IGNORED = -100
"""Class of windows from which nothing is learnt."""


class RCNN(ProposalMethod):
    """Boxes by R-CNN on regions of selective search.

    The network learns to tell windows of objects and of background apart. When it is finished, a support vector machine
    and a box regression of each class are fitted to its features. A detection's score is the probability, by a sigmoid
    of the machine's margin that was fitted on training images (Platt 1999), that the region overlaps an object of the
    class by `least_overlap`; without machines, and for classes without an object in those images, it is that of the
    network's softmax.

    Args:
        classes: Number of categories K.
        channels: Input channels C.
        backbone: Any network of timm with its own pooling. The paper has AlexNet, which costs about as much as
            ``resnet18``, and ``vgg16``, which costs ten times as much.
        size: Side in pixels that each region is warped to, whatever its proportions; 227 in the paper, in three times
            the time.
        margin: Pixels of the surroundings of a region on each side of its window; 16 in the paper.
        search: ``fast`` or ``quality`` selective search; the second finds more objects in ten times the time.
        proposals: Regions of an image at most; the time of a prediction goes with their number.
        finest: Scale and least size in pixels of the smallest regions that the search begins with; less finds smaller
            objects, by more regions.
        search_side: Larger images are reduced for the search until their longer side has so many pixels; 0 for never.
        samples: Windows of a batch that a training step learns from, in equal parts from its images, at most a quarter
            of them of objects.
        least_overlap: IoU from which a window shows an object in training, 0.5 in the paper; the boxes of windows with
            0.1 more are corrected. Where objects are so small that hardly any region fits them, less helps.
        svm: Judge by support vector machines.
        box_regression: Correct the boxes.
        svm_cost: Of a violated margin.
        svm_images: Training images that machines and regressions are fitted on at most.
        svm_regions: Regions of each of them at most. The features of all are kept in memory.
        overlap: IoU above which the less probable of two boxes of a class is suppressed; 0.3 in the published program.
        least_score: Detections of lower probability are never looked at.
        detections: Of an image at most.
        shorter_side: Pixels to which the shorter side of images is brought; 0 leaves images as they are.
        longer_side: Pixels that the longer side must not exceed then.
        suppression: ``hard`` drops boxes that overlap a more probable one; ``linear`` and ``gaussian`` lower their
            score the more, the more they overlap it (Soft-NMS, Bodla et al. 2017). May be changed later, as the next.
        class_agnostic: Boxes of different classes suppress one another, too.
    """

    logit_layers: ClassVar[tuple[str, ...]] = ("score", "machines", "regressions")

    def __init__(
        self,
        classes: int = 1,
        channels: int = 3,
        backbone: str = "resnet18",
        size: int = 128,
        margin: int = 9,
        search: Search = "fast",
        proposals: int = 2000,
        finest: int = 50,
        search_side: int = 512,
        samples: int = 128,
        least_overlap: float = 0.5,
        svm: bool = True,
        box_regression: bool = True,
        svm_cost: float = 1e-3,
        svm_images: int = 200,
        svm_regions: int = 500,
        overlap: float = 0.5,
        least_score: float = 0.05,
        detections: int = 100,
        shorter_side: int = 0,
        longer_side: int = 0,
        suppression: Suppression = "hard",
        class_agnostic: bool = False,
    ) -> None:
        super().__init__()
        counts = (classes, samples, svm_images, svm_regions, detections)
        if min(counts) < 1 or not svm_cost > 0:
            raise InputError(
                "classes, samples, svm_images, svm_regions and detections must be 1 or more and svm_cost above 0, got "
                f"{', '.join(map(str, counts))} and {svm_cost}"
            )
        if not 0 < least_overlap < 0.9:
            raise InputError(f"least_overlap is an IoU above 0 and below 0.9, got {least_overlap}")
        if not 0 <= 2 * margin < size:
            raise InputError(f"margin must be 0 or more and below half the size, got {margin} and {size}")
        self.resize_to(shorter_side, longer_side)
        self.search_by(search, proposals, finest, search_side)
        self.suppress_by(suppression, class_agnostic)
        self.classes, self.channels, self.size, self.margin = classes, channels, size, margin
        self.least_overlap = least_overlap
        self.samples, self.svm, self.box_regression, self.svm_cost = samples, svm, box_regression, svm_cost
        self.completion_images, self.svm_regions = svm_images, svm_regions
        self.overlap, self.least_score, self.detections = overlap, least_score, detections
        self.thresholds = {"score": least_score}
        self.backbone = WholeBackbone(backbone, channels, size)
        self.score = nn.Linear(self.backbone.widths[0], classes + 1)
        self.machines = FittedLinear(self.backbone.widths[0], classes, 1)
        self.regressions = FittedLinear(self.backbone.widths[0], classes, 4)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Detections of images (B, C, H, W), the best first.

        Returns:
            ``boxes`` (B, M, 4) x0, y0, x1, y1 in pixels, ``scores`` (B, M) 0..1 and 0 for none, ``classes`` (B, M)
            int64, with M the most detections of an image.
        """
        regions = self.regions_of(images)
        scores, moves = self.judge(self.features(images, regions))
        found = detections_by_score(
            scores,
            moves,
            regions,
            (images.shape[-2], images.shape[-1]),
            len(images),
            weights=(1.0, 1.0, 1.0, 1.0),
            least_score=self.least_score,
            overlap=self.overlap,
            most=self.detections,
            suppression=self.suppression,
            class_agnostic=self.class_agnostic,
        )
        return in_places(found, len(images), self.detections)

    def features(self, images: Tensor, regions: Tensor) -> Tensor:
        """Features (R, D) float32 of the windows of regions (R, 5) of images (B, C, H, W), some windows at a time."""
        warp = Warping(images, self.size, self.margin)
        parts = [self.backbone(warp(each))[0] for each in regions.split(_CHUNK)]
        return torch.cat(parts).float() if len(regions) else images.new_zeros(0, self.backbone.widths[0])

    def judge(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities (R, K) and offsets (R, K, 4) of regions by their features (R, D)."""
        probability = self.score(features).float().softmax(-1)[:, 1:]
        by_machine = self.machines(features)[..., 0].sigmoid()
        return torch.where(self.machines.known, by_machine, probability), self.regressions(features)

    def training_loss(self, images: Tensor, targets: Mapping[str, Any]) -> dict[str, Tensor]:
        """The terms of `loss`; the network runs on windows that are drawn with the targets."""
        return self.loss({"images": images}, targets)

    def loss(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Any]) -> dict[str, Tensor]:
        """Cross-entropy of the class of windows, those with an IoU of `least_overlap` showing the object (sec. 2.3).

        Args:
            outputs: The ``images`` (B, C, H, W), which are searched if the targets have no ``regions``.
            targets: For each image ``boxes`` (N, 4), ``classes`` (N,), ``crowd`` (N,) and perhaps ``regions`` (P, 4).

        Returns:
            ``classes``.
        """
        images = outputs["images"]
        number = max(1, self.samples // len(images))
        samples = sample_regions(
            self.regions_of(images, targets),
            *true_boxes(targets),
            overlap=self.least_overlap,
            number=number,
            positive_share=0.25,
        )
        regions, classes, learnt = samples.regions, samples.classes, len(samples.regions)
        if learnt < 2:  # all lies in crowds, and the network must run: with two windows, to have statistics
            whole = images.new_tensor([[0, 0, 0, images.shape[-1], images.shape[-2]]] * 2)
            regions, classes = torch.cat([regions, whole]), functional.pad(classes, (0, 2), value=_IGNORED)
        logits = self.score(self.backbone(Warping(images, self.size, self.margin)(regions))[0]).float()
        entropy = functional.cross_entropy(logits, classes, ignore_index=_IGNORED, reduction="sum")
        return {"classes": entropy / max(1, learnt)}

    @torch.no_grad()
    def complete(self, samples: Iterable[tuple[Tensor, Segments]]) -> None:
        """Fits the machines and the box regressions to the features of the finished network."""
        if not (self.svm or self.box_regression):
            return
        found = [self._examples(image, segments, number) for number, (image, segments) in enumerate(samples)]
        if not found:
            return
        examples = Examples(*(np.concatenate(each) for each in zip(*found, strict=True)))
        if self.svm:
            fit_machines(self.machines, examples, self.svm_cost, self.least_overlap)
        if self.box_regression:
            fit_regressions(self.regressions, examples, self.least_overlap + 0.1)

    def _examples(self, image: Tensor, segments: Segments, seed: int) -> Examples:
        """True boxes and regions of an image (C, H, W), half of which at most are near an object."""
        boxes, classes, crowd = (each[0] for each in true_boxes({k: [v] for k, v in self.targets(segments).items()}))
        single = torch.where(~crowd)[0]
        regions = self.of_image(image)["regions"]
        near = box_iou(regions, boxes[single]).amax(1) >= 0.3 if len(single) else torch.zeros(len(regions)) > 0
        random = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(regions), generator=random)
        chosen = torch.cat([order[near[order]][: self.svm_regions // 2], order[~near[order]]])[: self.svm_regions]
        regions = torch.cat([boxes[single], regions[chosen]])
        features = self.features(image[None], numbered([regions.to(image.device)])).cpu().numpy()
        overlaps = torch.zeros(len(regions), self.classes)
        truth = torch.full((len(regions),), -1)
        truth[: len(single)] = classes[single]
        nearest, offsets = torch.full_like(truth, -1), torch.zeros(len(regions), 4)
        if len(single):
            each = box_iou(regions, boxes[single])
            overlaps.scatter_reduce_(1, classes[single].expand_as(each), each, "amax")
            best = each.argmax(1)
            nearest, offsets = classes[single][best], encode_boxes(boxes[single][best], regions)
        ignored = match_boxes(regions, boxes, crowd, low=0.5, high=0.5) == IGNORED
        overlaps[ignored] = torch.nan
        return Examples(features, *(each.numpy() for each in (overlaps, truth, nearest, offsets)))


class Warping:
    """Regions of a batch of images as windows of one size, with their surroundings (appendix A of the paper).

    Beyond the image lies 0, the mean colour of usual preprocessing. So that large regions are not sampled in many
    places, nor sparsely, each is taken from the copy of the images, halved none or several times, that fits its area.

    Args:
        images: (B, C, H, W).
        size: Side of the windows in pixels.
        margin: Pixels of a window, on each of its sides, that show the surroundings.
    """

    def __init__(self, images: Tensor, size: int, margin: int) -> None:
        self.size, self.growth = size, size / (size - 2 * margin)
        self.copies = [images.float()]

    def __call__(self, regions: Tensor) -> Tensor:
        """Windows (R, C, size, size) of regions (R, 5), number of the image, x0, y0, x1, y1 in pixels."""
        centres, sides = (regions[:, 1:3] + regions[:, 3:]) / 2, self.growth * (regions[:, 3:] - regions[:, 1:3])
        table = torch.cat([regions[:, :1], centres - sides / 2, centres + sides / 2], dim=1)
        halvings = (sides.prod(1).sqrt() / self.size).log2().floor().clamp(min=0).to(torch.int64)
        windows = table.new_empty(len(regions), self.copies[0].shape[1], self.size, self.size)
        for level in halvings.unique().tolist():
            chosen = torch.where(halvings == level)[0]
            # Two samples along each side of a pixel, which is one to two pixels of the copy.
            parts = roi_align(self._halved(level), table[chosen], self.size, 0.5**level, sampling_ratio=2, aligned=True)
            windows = windows.index_copy(0, chosen, parts)
        return windows.contiguous(memory_format=torch.channels_last)

    def _halved(self, times: int) -> Tensor:
        while len(self.copies) <= times:
            self.copies.append(functional.avg_pool2d(self.copies[-1], 2, ceil_mode=True))
        return self.copies[times]
