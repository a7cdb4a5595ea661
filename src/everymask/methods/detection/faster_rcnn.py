"""Faster R-CNN: regions that may hold objects, and then the class and the box of each.

Ren, He, Girshick, Sun, Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks, NeurIPS 2015;
on a feature pyramid as in Lin et al. 2017.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor

from everymask.backbones.pyramid import Backbone
from everymask.errors import InputError
from everymask.layers.anchors import Anchors, Grid
from everymask.layers.fpn import TORCHVISION_PYRAMID, FeaturePyramid
from everymask.layers.roi_heads import (
    BoxPredictor,
    Detections,
    PyramidRoIAlign,
    Samples,
    box_head,
    box_losses,
    detections,
    in_places,
    sample_regions,
)
from everymask.layers.rpn import Proposing, RegionProposalNetwork
from everymask.layers.suppression import Suppression
from everymask.methods.detection.common import BoxMethod, true_boxes

Variant = Literal["v1", "v2"]
Norm = Literal["batch", "fixed", "fixed_without_epsilon"]

_STRIDES = (4, 8, 16, 32)


class FasterRCNN(BoxMethod):
    """Boxes by Faster R-CNN on a feature pyramid, as in torchvision, whose weights load.

    Args:
        classes: Number of categories K.
        channels: Input channels C.
        backbone: Any network of timm with strides 4 to 32, such as ``resnet50``.
        variant: ``v1`` is as published; ``v2`` has batch normalisation in the pyramid, two convolutions in the proposal
            network and a convolutional box head (Li et al. 2021), which is slower and more accurate.
        width: Channels of the pyramid.
        hidden: Width of the fully connected layers of the box head.
        norm: ``batch`` lets the statistics of the backbone's batch normalisation follow the data; ``fixed`` keeps those
            of its weights, which is better for batches of few images if it has weights;
            ``fixed_without_epsilon`` also adds nothing to the variance, as torchvision's published v1 weights need.
        anchor_sizes: Square root of the anchors' area in pixels for each of the five levels.
        anchor_ratios: Heights of the anchors divided by their widths.
        proposals: Proposals of an image at most; in training twice as many.
        samples: Proposals of an image that a training step looks at.
        overlap: IoU from which the less probable of two boxes of a class is suppressed.
        least_score: Detections of lower probability are never looked at.
        detections: Of an image at most.
        shorter_side: Pixels to which the shorter side of images is brought, 800 in the published networks; 0 leaves
            images as they are.
        longer_side: Pixels that the longer side must not exceed then; 1333 in the published networks.
        suppression: What becomes of a box that a more probable one overlaps: ``hard`` drops it; ``linear`` and
            ``gaussian`` (soft-NMS, Bodla et al. 2017) lower its score, which finds more of objects that hide one
            another. A lower `least_score` then leaves more of them. `suppress_by` changes it later, and the next.
        class_agnostic: Whether boxes of different classes suppress one another, too: no two boxes then lie on one
            object.
    """

    antialias: ClassVar[bool] = False
    logit_layers: ClassVar[tuple[str, ...]] = ("box_predictor",)
    not_exportable: ClassVar[str] = "it suppresses boxes between its two stages, in steps that depend on the image"

    def __init__(
        self,
        classes: int = 1,
        channels: int = 3,
        backbone: str = "resnet50",
        variant: Variant = "v1",
        width: int = 256,
        hidden: int = 1024,
        norm: Norm = "batch",
        anchor_sizes: tuple[float, ...] = (32.0, 64.0, 128.0, 256.0, 512.0),
        anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0),
        proposals: int = 1000,
        samples: int = 512,
        overlap: float = 0.5,
        least_score: float = 0.05,
        detections: int = 100,
        shorter_side: int = 0,
        longer_side: int = 0,
        suppression: Suppression = "hard",
        class_agnostic: bool = False,
    ) -> None:
        super().__init__()
        if classes < 1 or min(width, hidden, proposals, samples, detections) < 1:
            raise InputError(
                "classes, width, hidden, proposals, samples and detections must be 1 or more, got "
                f"{classes}, {width}, {hidden}, {proposals}, {samples} and {detections}"
            )
        if len(anchor_sizes) != len(_STRIDES) + 1:
            raise InputError(f"anchor_sizes: the pyramid has {len(_STRIDES) + 1} levels, got {len(anchor_sizes)} sizes")
        self.resize_to(shorter_side, longer_side)
        self.classes, self.channels = classes, channels
        self.samples, self.overlap, self.least_score, self.detections = samples, overlap, least_score, detections
        self.thresholds = {"score": least_score}
        self.suppress_by(suppression, class_agnostic)
        self.fixed_statistics = norm != "batch"
        second = variant == "v2"
        self.backbone = Backbone(backbone, channels, _STRIDES)
        if norm == "fixed_without_epsilon":
            for module in self.backbone_normalisations():
                module.eps = 0.0
        self.neck = FeaturePyramid(self.backbone.widths, width, "subsample", norm=second)
        proposing = Proposing(before=(proposals, 2 * proposals), after=(proposals, 2 * proposals))
        steps = (*self.backbone.reductions, 2 * self.backbone.reductions[-1])
        anchors = Anchors([(each,) for each in anchor_sizes], anchor_ratios, steps)
        self.rpn = RegionProposalNetwork(width, anchors, 2 if second else 1, proposing)
        self.box_pool = PyramidRoIAlign(self.backbone.reductions, 7)
        self.box_head = box_head(width, 7, hidden, 4 if second else 0)
        self.box_predictor = BoxPredictor(hidden, classes)
        self.stride = self.backbone.stride

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Detections of images (B, C, H, W), the best first.

        Returns:
            ``boxes`` (B, M, 4) x0, y0, x1, y1 in pixels, ``scores`` (B, M) 0..1 and 0 for none, ``classes`` (B, M)
            int64, with M the most detections of an image.
        """
        return self.tables(self.neck(self.backbone(images)), (images.shape[-2], images.shape[-1]))

    def tables(self, maps: Sequence[Tensor], size: Grid) -> dict[str, Tensor]:
        """The outputs of `forward`.

        Args:
            maps: Of the pyramid.
            size: (height, width) of the images in pixels.
        """
        images = len(maps[0])
        logits, offsets = self.rpn(maps)
        regions = self.rpn.propose(logits, offsets, size, _grids(maps))
        scores, moves = self.second_stage(maps, regions)
        found = detections(
            scores,
            moves,
            regions,
            size,
            images,
            least_score=self.least_score,
            overlap=self.overlap,
            most=self.detections,
            suppression=self.suppression,
            class_agnostic=self.class_agnostic,
        )
        return in_places(found, images, self.detections, self.of_detections(maps, found))

    def second_stage(self, maps: Sequence[Tensor], regions: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (R, K + 1), background first, and offsets (R, K, 4) of regions (R, 5) of a batch."""
        found: tuple[Tensor, Tensor] = self.box_predictor(self.box_head(self.box_pool(maps, regions)))
        return found

    def of_detections(self, maps: Sequence[Tensor], found: Detections) -> dict[str, Tensor]:
        """Further outputs (D, ...) of the detections of a batch, from the maps of the pyramid."""
        return {}

    def training_loss(self, images: Tensor, targets: Mapping[str, Any]) -> dict[str, Tensor]:
        """The terms of `loss`; the network of the second stage runs on samples that are drawn with the targets."""
        maps = self.neck(self.backbone(images))
        logits, offsets = self.rpn(maps)
        first_stage = {"objectness": logits, "offsets": offsets, "images": images}
        return self.loss(first_stage | {f"map{number}": each for number, each in enumerate(maps)}, targets)

    def loss(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Any]) -> dict[str, Tensor]:
        """Terms of both stages, each of weight 1 (eq. 1 of the paper, twice).

        Args:
            outputs: Of the first stage: ``objectness`` (B, A), ``offsets`` (B, A, 4), ``map0`` to ``map4`` of the
                pyramid, and the ``images``, of which only the size counts.
            targets: For each image ``boxes`` (N, 4), ``classes`` (N,) and ``crowd`` (N,), and what `targets` gives
                besides.

        Returns:
            ``objectness`` and ``proposals`` of the first stage, ``classes`` and ``boxes`` of the second.
        """
        maps = [outputs[f"map{number}"] for number in range(self.neck.levels)]
        size = (outputs["images"].shape[-2], outputs["images"].shape[-1])
        logits, offsets, grids = outputs["objectness"], outputs["offsets"], _grids(maps)
        boxes, classes, crowd = true_boxes(targets)
        regions = self.rpn.propose(logits, offsets, size, grids)
        terms = self.rpn.loss(logits, offsets, size, grids, boxes, crowd)
        samples = sample_regions(regions, boxes, classes, crowd, overlap=0.5, number=self.samples, positive_share=0.25)
        terms |= box_losses(*self.second_stage(maps, samples.regions), samples=samples)
        return terms | self.loss_of_samples(maps, samples, targets)

    def loss_of_samples(
        self, maps: Sequence[Tensor], samples: Samples, targets: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """Further terms of the second stage."""
        return {}

    def foreign(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of torchvision's ``fasterrcnn_*`` and ``maskrcnn_*`` under the names of this method.

        Class k of this method is torchvision's label k + 1; its boxes and masks of the background, which nothing reads,
        are left out.
        """
        if not any(name.startswith("roi_heads.") for name in state):
            return dict(state)
        renamed: dict[str, Tensor] = {}
        for name, value in state.items():
            for pattern, replacement in _TORCHVISION:
                name = pattern.sub(replacement, name)
            if name.startswith("box_predictor.offsets."):
                value = value[4:]
            elif name.startswith("mask_head.logits."):
                value = value[1:]
            renamed[name] = value
        return self.batch_counters() | renamed


_TORCHVISION = TORCHVISION_PYRAMID + tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^rpn\.head\.conv\.(weight|bias)$", r"rpn.convolutions.0.0.\1"),
        (r"^rpn\.head\.conv\.", "rpn.convolutions."),
        (r"^rpn\.head\.cls_logits\.", "rpn.objectness."),
        (r"^rpn\.head\.bbox_pred\.", "rpn.offsets."),
        (r"^roi_heads\.box_head\.fc6\.", "box_head.1."),
        (r"^roi_heads\.box_head\.fc7\.", "box_head.3."),
        (r"^roi_heads\.box_head\.", "box_head."),
        (r"^roi_heads\.box_predictor\.cls_score\.", "box_predictor.score."),
        (r"^roi_heads\.box_predictor\.bbox_pred\.", "box_predictor.offsets."),
        (r"^roi_heads\.mask_head\.mask_fcn1\.", "mask_head.convolutions.0.0."),
        (r"^roi_heads\.mask_head\.mask_fcn2\.", "mask_head.convolutions.1.0."),
        (r"^roi_heads\.mask_head\.mask_fcn3\.", "mask_head.convolutions.2.0."),
        (r"^roi_heads\.mask_head\.mask_fcn4\.", "mask_head.convolutions.3.0."),
        (r"^roi_heads\.mask_head\.", "mask_head.convolutions."),
        (r"^roi_heads\.mask_predictor\.conv5_mask\.", "mask_head.up."),
        (r"^roi_heads\.mask_predictor\.mask_fcn_logits\.", "mask_head.logits."),
    )
)


def _grids(maps: Sequence[Tensor]) -> list[Grid]:
    """(rows, columns) of each map."""
    return [(each.shape[-2], each.shape[-1]) for each in maps]
