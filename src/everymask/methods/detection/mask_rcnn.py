"""Mask R-CNN: Faster R-CNN with a mask in each box.

He, Gkioxari, Dollar, Girshick, Mask R-CNN, ICCV 2017.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from everymask.data.store import LearnsFrom
from everymask.layers.roi_heads import Detections, MaskHead, PyramidRoIAlign, Samples, mask_loss, mask_targets
from everymask.layers.suppression import Suppression
from everymask.methods.detection.faster_rcnn import FasterRCNN, Norm, Variant
from everymask.types import Task


class MaskRCNN(FasterRCNN):
    """Boxes and masks by Mask R-CNN on a feature pyramid, as in torchvision, whose weights load.

    Args:
        classes: Number of categories K.
        channels: Input channels C.
        backbone: Any network of timm with strides 4 to 32, such as ``resnet50``.
        variant: ``v1`` is as published; ``v2`` has batch normalisation in the pyramid and in the heads, two
            convolutions in the proposal network and a convolutional box head (Li et al. 2021), which is slower and more
            accurate.
        width: Channels of the pyramid and of the mask head.
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

    tasks: ClassVar[frozenset[Task]] = frozenset({Task.DETECTION, Task.INSTANCE})
    metric: ClassVar[tuple[str, str]] = ("coco_masks", "ap")
    learns_from: ClassVar[LearnsFrom] = "masks"
    logit_layers: ClassVar[tuple[str, ...]] = ("box_predictor", "mask_head.logits")

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
        super().__init__(
            classes,
            channels,
            backbone,
            variant,
            width,
            hidden,
            norm,
            anchor_sizes,
            anchor_ratios,
            proposals,
            samples,
            overlap,
            least_score,
            detections,
            shorter_side,
            longer_side,
            suppression,
            class_agnostic,
        )
        self.mask_pool = PyramidRoIAlign(self.backbone.reductions, 14)
        self.mask_head = MaskHead(width, classes, norm=variant == "v2")

    def of_detections(self, maps: Sequence[Tensor], found: Detections) -> dict[str, Tensor]:
        """``masks`` (D, 28, 28): the logits of the mask of each detection, for its class."""
        return {"masks": self.mask_head(self.mask_pool(maps, found.regions), found.classes)}

    def loss_of_samples(
        self, maps: Sequence[Tensor], samples: Samples, targets: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """``masks``: binary cross-entropy of the masks of samples that show an object, for its class (sec. 3)."""
        shows = torch.where(samples.classes > 0)[0]
        regions = samples.regions[shows]
        logits = self.mask_head(self.mask_pool(maps, regions), samples.classes[shows] - 1)
        return {
            "masks": mask_loss(logits, mask_targets(regions, samples.object[shows], targets["masks"], logits.shape[-1]))
        }
