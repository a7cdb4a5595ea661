"""Fast R-CNN: the class and the box of regions that are found outside the network, from one feature map of the image.

Girshick, Fast R-CNN, ICCV 2015.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torchvision.ops import box_iou, roi_pool

from everymask.backbones.pyramid import Backbone
from everymask.errors import InputError
from everymask.layers.roi_heads import (
    BoxPredictor,
    box_head,
    box_losses,
    detections,
    in_places,
    sample_regions,
)
from everymask.layers.suppression import Suppression
from everymask.methods.detection.common import true_boxes
from everymask.methods.detection.proposals import ProposalMethod, Search, numbered

_STRIDE, _SIZE = 16, 7


class FastRCNN(ProposalMethod):
    """Boxes by Fast R-CNN on regions of selective search.

    Args:
        classes: Number of categories K.
        channels: Input channels C.
        backbone: ``vgg16`` as published, or any network of timm with stride 16, whose map of that stride is used.
        hidden: Width of the two fully connected layers; 4096 in VGG-16, whose own ones may be loaded.
        norm: ``batch`` lets the statistics of the backbone's batch normalisation, if it has any, follow the data;
            ``fixed`` keeps those of its weights, which is better for batches of few images if it has weights.
        search: ``fast`` or ``quality`` selective search; the second finds more objects in ten times the time.
        proposals: Regions of an image at most.
        finest: Scale and least size in pixels of the smallest regions that the search begins with; less finds smaller
            objects, by more regions.
        search_side: Larger images are reduced for the search until their longer side has so many pixels; 0 for never.
        samples: Regions of an image that a training step looks at, at most a quarter of them of objects.
        least_overlap: IoU from which a region shows an object in training, 0.5 in the paper. Where objects are so small
            that hardly any region fits them, less lets the boxes be corrected from farther away.
        least_background: Best IoU with an object from which the regions of background are taken; nearer ones teach
            more. Others come in where there are too few.
        overlap: IoU above which the less probable of two boxes of a class is suppressed; 0.3 in the published program.
        least_score: Detections of lower probability are never looked at.
        detections: Of an image at most.
        shorter_side: Pixels to which the shorter side of images is brought, 600 in the paper; 0 leaves images as they
            are.
        longer_side: Pixels that the longer side must not exceed then; 1000 in the paper.
        suppression: ``hard`` drops boxes that overlap a more probable one; ``linear`` and ``gaussian`` lower their
            score the more, the more they overlap it (Soft-NMS, Bodla et al. 2017). May be changed later, as the next.
        class_agnostic: Boxes of different classes suppress one another, too.
    """

    logit_layers: ClassVar[tuple[str, ...]] = ("box_predictor",)

    def __init__(
        self,
        classes: int = 1,
        channels: int = 3,
        backbone: str = "vgg16",
        hidden: int = 4096,
        norm: Literal["batch", "fixed"] = "batch",
        search: Search = "fast",
        proposals: int = 2000,
        finest: int = 50,
        search_side: int = 512,
        samples: int = 64,
        least_overlap: float = 0.5,
        least_background: float = 0.1,
        overlap: float = 0.5,
        least_score: float = 0.05,
        detections: int = 100,
        shorter_side: int = 0,
        longer_side: int = 0,
        suppression: Suppression = "hard",
        class_agnostic: bool = False,
    ) -> None:
        super().__init__()
        if min(classes, hidden, samples, detections) < 1:
            raise InputError(
                "classes, hidden, samples and detections must be 1 or more, got "
                f"{classes}, {hidden}, {samples} and {detections}"
            )
        if not 0 <= least_background < least_overlap <= 1:
            raise InputError(
                "least_background and least_overlap are IoUs, 0 or more and 1 or less, the first one below the second, "
                f"got {least_background} and {least_overlap}"
            )
        self.resize_to(shorter_side, longer_side)
        self.search_by(search, proposals, finest, search_side)
        self.suppress_by(suppression, class_agnostic)
        self.classes, self.channels = classes, channels
        self.samples, self.least_overlap, self.least_background = samples, least_overlap, least_background
        self.overlap, self.least_score, self.detections = overlap, least_score, detections
        self.thresholds = {"score": least_score}
        self.fixed_statistics = norm != "batch"
        self.backbone = Backbone(backbone, channels, (_STRIDE,))
        self.stride = self.backbone.stride
        self.box_head = box_head(self.backbone.widths[0], _SIZE, hidden, 0)
        self.box_predictor = BoxPredictor(hidden, classes)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Detections of images (B, C, H, W), the best first.

        Returns:
            ``boxes`` (B, M, 4) x0, y0, x1, y1 in pixels, ``scores`` (B, M) 0..1 and 0 for none, ``classes`` (B, M)
            int64, with M the most detections of an image.
        """
        regions = self.regions_of(images)
        scores, moves = self.second_stage(self.backbone(images)[0], regions)
        found = detections(
            scores,
            moves,
            regions,
            (images.shape[-2], images.shape[-1]),
            len(images),
            least_score=self.least_score,
            overlap=self.overlap,
            most=self.detections,
            suppression=self.suppression,
            class_agnostic=self.class_agnostic,
        )
        return in_places(found, len(images), self.detections)

    def second_stage(self, features: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (R, K + 1), background first, and offsets (R, K, 4) of regions (R, 5) of a feature map (B, D, h, w).

        Each region is divided into 7 x 7 cells, of which the largest values are taken (sec. 2.1).
        """
        pixels = self.backbone.reductions[0]
        # Narrow regions at the right and the lower edge would be rounded to nothing.
        last = regions.new_tensor([features.shape[-1] - 1, features.shape[-2] - 1]) * pixels
        inside = torch.cat([regions[:, :1], regions[:, 1:3].minimum(last), regions[:, 3:]], dim=1)
        pooled = roi_pool(features.float(), inside, _SIZE, 1 / pixels)
        found: tuple[Tensor, Tensor] = self.box_predictor(self.box_head(pooled))
        return found

    def training_loss(self, images: Tensor, targets: Mapping[str, Any]) -> dict[str, Tensor]:
        """The terms of `loss`; the second stage runs on regions that are drawn with the targets."""
        return self.loss({"features": self.backbone(images)[0], "images": images}, targets)

    def loss(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Any]) -> dict[str, Tensor]:
        """Cross-entropy of the classes and smooth L1 of the offsets of regions of objects (eq. 1 of the paper).

        Args:
            outputs: ``features`` (B, D, h, w) of the backbone, and the ``images``, which are searched if the targets
                have no ``regions``.
            targets: For each image ``boxes`` (N, 4), ``classes`` (N,), ``crowd`` (N,) and perhaps ``regions`` (P, 4).

        Returns:
            ``classes`` and ``boxes``.
        """
        boxes, classes, crowd = true_boxes(targets)
        regions = self.regions_of(outputs["images"], targets)
        chosen = numbered(
            [
                self._instructive(regions[regions[:, 0] == image, 1:], each[~crowded])
                for image, (each, crowded) in enumerate(zip(boxes, crowd, strict=True))
            ]
        )
        samples = sample_regions(
            chosen, boxes, classes, crowd, overlap=self.least_overlap, number=self.samples, positive_share=0.25
        )
        return box_losses(*self.second_stage(outputs["features"], samples.regions), samples=samples)

    def _instructive(self, regions: Tensor, boxes: Tensor) -> Tensor:
        """Those of the regions (P, 4) that touch one of the true boxes (N, 4), filled up with others to `samples`."""
        if not len(boxes) or not len(regions):
            return regions
        near = box_iou(regions, boxes).amax(1) >= self.least_background
        far = torch.where(~near)[0]
        lacking = max(0, self.samples - int(near.sum()))
        others = far[torch.randperm(len(far), device=far.device)[:lacking]]
        return torch.cat([regions[near], regions[others]])

    def foreign(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of a VGG classifier of torchvision or timm under the names of this method.

        Its two fully connected layers begin those of the head, as in the paper; its last one has other classes, so that
        the layers of the logits are to be left as they are.
        """
        if "classifier.0.weight" not in state and "pre_logits.fc1.weight" not in state:
            return dict(state)
        renamed: dict[str, Tensor] = {}
        for name, value in state.items():
            for pattern, replacement in _VGG:
                name = pattern.sub(replacement, name)
            renamed[name] = value.flatten(1) if name.startswith("box_head.") and value.ndim > 1 else value
        last = ("classifier.", "head.")
        return {name: value for name, value in renamed.items() if not name.startswith(last)}


_VGG = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^features\.", "backbone.body.features."),
        (r"^(classifier\.0|pre_logits\.fc1)\.", "box_head.1."),
        (r"^(classifier\.3|pre_logits\.fc2)\.", "box_head.3."),
    )
)
