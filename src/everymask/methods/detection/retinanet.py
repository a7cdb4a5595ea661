"""RetinaNet: the class and the box of every anchor of a feature pyramid, learnt with the focal loss.

Lin, Goyal, Girshick, He, Dollar, Focal Loss for Dense Object Detection, ICCV 2017; with the changes of Zhang et al.
2020 (ATSS, table 1) as the second variant of torchvision.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from everymask.backbones.pyramid import Backbone
from everymask.errors import InputError, unknown_name
from everymask.layers.anchors import Anchors
from everymask.layers.box_coding import Weights
from everymask.layers.box_matching import IGNORED, match_boxes
from everymask.layers.dense_head import (
    BoxLoss,
    Candidates,
    Positives,
    Tower,
    box_loss,
    of_anchors,
    positives,
)
from everymask.layers.fpn import TORCHVISION_PYRAMID, FeaturePyramid
from everymask.layers.suppression import Suppression
from everymask.losses.forms import check_option, power
from everymask.methods.detection.common import true_boxes
from everymask.methods.detection.dense import DenseMethod

Variant = Literal["v1", "v2"]
Norm = Literal["batch", "fixed", "fixed_without_epsilon"]

_STRIDES = (8, 16, 32)
_PRIOR = 0.01
"""Probability of every class at the start of the training (sec. 4.1); else all the background would swamp it."""


class RetinaNet(DenseMethod):
    """Boxes by RetinaNet, as in torchvision, whose weights load.

    Args:
        classes: Number of categories K.
        channels: Input channels C.
        backbone: Any network of timm with strides 8 to 32, such as ``resnet50``.
        variant: ``v1``; ``v2`` has group normalisation in the towers, with which it learns in far fewer steps, and
            makes the coarsest maps from the last stage of the backbone, not from the pyramid.
        width: Channels of the pyramid and the towers; for ``v2`` 64 or a larger multiple of 32.
        norm: ``batch`` lets the statistics of the backbone's batch normalisation follow the data; ``fixed`` keeps those
            of its weights, which is better for batches of few images if it has weights;
            ``fixed_without_epsilon`` also adds nothing to the variance, as torchvision's published v1 weights need.
        anchor_sizes: Square root of the smallest anchors' area in pixels for each of the five levels.
        anchor_ratios: Heights of the anchors divided by their widths.
        anchor_octaves: Sizes from an anchor to one of twice its side.
        alpha: Weight of objects in the focal loss, 0..1; that of the background is 1 - alpha.
        focusing: Exponent gamma of the focal loss, 0 or more: how far it looks at what is hard; 0 is the cross-entropy.
        box_loss: ``l1`` (v1 of torchvision), ``smooth_l1`` (the paper) or ``giou`` (v2); empty takes that of the
            variant.
        overlap: IoU from which the less probable of two boxes of a class is suppressed; may be changed later in
            `thresholds`, as the next.
        least_score: Detections of lower probability do not count.
        candidates: Most probable ones of each level that go into the suppression.
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

    logit_layers: ClassVar[tuple[str, ...]] = ("class_tower.predict",)
    coding: ClassVar[Weights] = (1.0, 1.0, 1.0, 1.0)

    def __init__(
        self,
        classes: int = 1,
        channels: int = 3,
        backbone: str = "resnet50",
        variant: Variant = "v1",
        width: int = 256,
        norm: Norm = "batch",
        anchor_sizes: tuple[float, ...] = (32.0, 64.0, 128.0, 256.0, 512.0),
        anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0),
        anchor_octaves: int = 3,
        alpha: float = 0.25,
        focusing: float = 2.0,
        box_loss: Literal["", "l1", "smooth_l1", "giou"] = "",
        overlap: float = 0.5,
        least_score: float = 0.05,
        candidates: int = 1000,
        detections: int = 100,
        shorter_side: int = 0,
        longer_side: int = 0,
        suppression: Suppression = "hard",
        class_agnostic: bool = False,
    ) -> None:
        super().__init__()
        for name, value, known in (
            ("variant", variant, get_args(Variant)),
            ("norm", norm, get_args(Norm)),
            ("box_loss", box_loss, ("", *get_args(BoxLoss))),
        ):
            if value not in known:
                raise unknown_name(name, value, filter(None, known))
        counts = (classes, width, anchor_octaves, candidates, detections)
        names = "classes, width, anchor_octaves, candidates, detections"
        check_option(min(counts) >= 1, names, counts, "numbers of 1 or more")
        check_option(0 <= alpha <= 1, "alpha", alpha, "a number from 0 to 1")
        check_option(focusing >= 0, "focusing", focusing, "a number of 0 or more")
        if len(anchor_sizes) != len(_STRIDES) + 2:
            raise InputError(f"anchor_sizes: the pyramid has {len(_STRIDES) + 2} levels, got {len(anchor_sizes)} sizes")
        self.resize_to(shorter_side, longer_side)
        second = variant == "v2"
        self.classes, self.channels = classes, channels
        self.alpha, self.focusing = alpha, focusing
        self.box_loss: BoxLoss = box_loss or ("giou" if second else "l1")
        self.candidates, self.detections = candidates, detections
        self.thresholds = {"score": least_score, "overlap": overlap}
        self.suppress_by(suppression, class_agnostic)
        self.fixed_statistics = norm != "batch"
        self.backbone = Backbone(backbone, channels, _STRIDES)
        if norm == "fixed_without_epsilon":
            for module in self.backbone_normalisations():
                module.eps = 0.0
        self.neck = FeaturePyramid(self.backbone.widths, width, "c5" if second else "p5")
        steps = [2 ** (each / anchor_octaves) for each in range(anchor_octaves)]
        self.anchors = Anchors([[int(size * step) for step in steps] for size in anchor_sizes], anchor_ratios)
        groups = 32 if second else 0
        self.class_tower = Tower(width, self.anchors.per_cell * classes, groups=groups)
        self.box_tower = Tower(width, self.anchors.per_cell * 4, groups=groups)
        nn.init.constant_(self.class_tower.predict.bias, -math.log((1 - _PRIOR) / _PRIOR))  # type: ignore[arg-type]
        self.stride = self.backbone.stride

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """What is said of each anchor of images (B, C, H, W).

        Returns:
            ``logits`` (B, A, K), ``offsets`` (B, A, 4) from the ``anchors`` (B, A, 4) x0, y0, x1, y1 in pixels, and the
            ``levels`` (B, A) int64 of the anchors, 0 for the finest.
        """
        maps = self.neck(self.backbone(images))
        grids = [(each.shape[-2], each.shape[-1]) for each in maps]
        anchors = self.anchors((images.shape[-2], images.shape[-1]), grids, images.device)
        counts = self.anchors.counts(grids)
        levels = torch.cat([anchors.new_full((count,), each, dtype=torch.int64) for each, count in enumerate(counts)])
        return {
            "logits": of_anchors(self.class_tower(maps), self.classes),
            "offsets": of_anchors(self.box_tower(maps), 4),
            "anchors": anchors.expand(images.shape[0], -1, -1),
            "levels": levels.expand(images.shape[0], -1),
        }

    def loss(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Any]) -> dict[str, Tensor]:
        """Focal loss of all anchors, and distance of the boxes of those that belong to an object.

        An anchor belongs to the object that it overlaps by an IoU of .5 or more (and to each object those with the
        highest, however low), and is background below .4 (sec. 4). Both terms are divided by the number of anchors of
        objects of the image, at least 1, and averaged over the images, as in torchvision.

        Args:
            outputs: ``logits``, ``offsets`` and ``anchors`` of `forward`.
            targets: For each image ``boxes`` (N, 4), ``classes`` (N,) and ``crowd`` (N,).

        Returns:
            ``classes`` and ``boxes``.
        """
        boxes, classes, crowd = true_boxes(targets)
        logits, offsets, anchors = (outputs[name].float() for name in ("logits", "offsets", "anchors"))
        index = torch.stack(
            [
                match_boxes(own, *each, low=0.4, high=0.5, at_least_one=True)
                for own, *each in zip(anchors, boxes, crowd, strict=True)
            ]
        )
        found = positives(index, boxes, classes)
        weight = 1 / (len(logits) * (index >= 0).sum(1).clamp(min=1))
        weights = weight[:, None] * (index != IGNORED)
        place = (found.image, found.anchor)
        distance = box_loss(self.box_loss, offsets[place], anchors[place], found.boxes, weights[place], self.coding)
        return {"classes": self._focal(logits, weights, found), "boxes": distance}

    def _focal(self, logits: Tensor, weights: Tensor, found: Positives) -> Tensor:
        """Focal loss (eq. 5) of logits (B, A, K), anchors weighted by (B, A).

        Of millions of pairs of an anchor and a class hardly any are true, so all are taken for false, and the few that
        are not are put right: a third of the work of the formula with labels.
        """
        chosen = logits[found.image, found.anchor, found.classes]
        right = self.alpha * _focused(-chosen, self.focusing) - (1 - self.alpha) * _focused(chosen, self.focusing)
        background = (1 - self.alpha) * (weights * _focused(logits, self.focusing).sum(-1)).sum()
        return background + (weights[found.image, found.anchor] * right).sum()

    def probable(self, outputs: Mapping[str, Tensor]) -> Candidates:
        """The best candidates of each level of each image."""
        bound = _logit(self.thresholds["score"])
        counts = outputs["levels"][0].long().bincount().tolist()
        found: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        for image, logits in enumerate(outputs["logits"]):
            before = 0
            for count, of_level in zip(counts, logits.split(counts), strict=True):
                pairs = of_level.flatten()
                index = torch.where(pairs > bound)[0]  # hardly any, so that the best are found fast
                best, rank = pairs[index].float().topk(min(self.candidates, len(index)))
                index = index[rank]
                anchor, classes = before + index // self.classes, index % self.classes
                found.append((torch.full_like(index, image), anchor, classes, best.sigmoid()))
                before += count
        return Candidates(*(torch.cat(each) for each in zip(*found, strict=True)))

    def foreign(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of torchvision's ``retinanet_*`` under the names of this method.

        torchvision counts the background as a class, label 0, which is no object's. Where it has one class more than
        this method, that one is left out, so that class k is its label k + 1.
        """
        if not any(name.startswith("head.classification_head.") for name in state):
            return dict(state)
        renamed: dict[str, Tensor] = {}
        for name, value in state.items():
            # Files from before torchvision 0.14 count the activations between the convolutions.
            name = _OLD_TOWER.sub(lambda match: f"{match[1]}{int(match[2]) // 2}.0.{match[3]}", name)
            for pattern, replacement in _TORCHVISION:
                name = pattern.sub(replacement, name)
            if name.startswith("class_tower.predict.") and len(value) == self.anchors.per_cell * (self.classes + 1):
                value = value.unflatten(0, (-1, self.classes + 1))[:, 1:].flatten(0, 1)
            renamed[name] = value
        return self.batch_counters() | renamed


def _focused(logits: Tensor, gamma: float) -> Tensor:
    """``-p^gamma log(1 - p)`` with p = sigmoid(logits): the cross-entropy of a false class, where it is hard."""
    entropy = functional.softplus(logits)
    return power(logits.sigmoid(), gamma) * entropy if gamma else entropy


def _logit(probability: float) -> float:
    if not 0 < probability < 1:
        return math.inf if probability >= 1 else -math.inf
    return math.log(probability / (1 - probability))


_OLD_TOWER = re.compile(r"^(head\.\w+_head\.conv\.)(\d+)\.(weight|bias)$")
_TORCHVISION = TORCHVISION_PYRAMID + tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^head\.classification_head\.conv\.", "class_tower.convolutions."),
        (r"^head\.classification_head\.cls_logits\.", "class_tower.predict."),
        (r"^head\.regression_head\.conv\.", "box_tower.convolutions."),
        (r"^head\.regression_head\.bbox_reg\.", "box_tower.predict."),
    )
)
