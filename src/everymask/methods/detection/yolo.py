"""YOLOX: every cell of three maps says whether it sees an object, of which class, and where its box is.

Ge, Liu, Wang, Li, Sun, YOLOX: Exceeding YOLO Series in 2021, arXiv 2107.08430;
https://github.com/Megvii-BaseDetection/YOLOX (Apache-2.0), whose weights load.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from everymask.backbones.pyramid import Backbone
from everymask.data.preprocessing import Preprocessing
from everymask.errors import InputError, unknown_name
from everymask.layers.csp_darknet import (
    STRIDES,
    CSPDarknet,
    NormedConvolution,
    PathAggregation,
    focus_kernel,
    folded_state,
    normed_convolution,
)
from everymask.layers.sim_ota import sim_ota
from everymask.layers.suppression import Suppression, suppress
from everymask.methods.detection.common import BoxMethod, segments_of_boxes, true_boxes
from everymask.methods.recipe import Recipe
from everymask.ops.boxes import box_iou
from everymask.types import Segments

Variant = Literal["nano", "tiny", "s", "m", "l", "x"]

VARIANTS: dict[str, tuple[float, float, bool, int]] = {
    "nano": (0.33, 0.25, True, 416),
    "tiny": (0.33, 0.375, False, 416),
    "s": (0.33, 0.5, False, 640),
    "m": (0.67, 0.75, False, 640),
    "l": (1.0, 1.0, False, 640),
    "x": (1.33, 1.25, False, 640),
}
"""Factors of depth and width, separable convolutions or not, side of the images in pixels."""

_BOX_WEIGHT = 5.0
_PRIOR = 0.01  # probability that a fresh network gives to objects and classes


class YOLO(BoxMethod):
    """Boxes by YOLOX, without anchors, fast; the official weights load.

    Args:
        classes: Number of categories K.
        channels: Input channels C.
        variant: Size of the network, from ``nano``, ``tiny``, ``s``, ``m``, ``l`` to ``x``.
        backbone: Any network of timm with strides 8 to 32 instead of CSPDarknet; empty for CSPDarknet.
        depth: Factor of the number of layers, 1 for variant ``l``; 0 for that of the variant.
        width: Factor of the channels, 1 for variant ``l``; 0 for that of the variant.
        side: Pixels to which the longer side of an image is brought; 0 for that of the variant, 416 or 640.
        distance: Weight of the distance of the boxes' numbers in the loss, which makes them more exact; at least 1 in
            the last epochs, when images are no longer joined, as in the official training.
        detections: Of an image at most.
        suppression: What becomes of a box that a more probable one overlaps: ``hard`` drops it; ``linear`` and
            ``gaussian`` (soft-NMS, Bodla et al. 2017) lower its score, which finds more of objects that hide one
            another. `suppress_by` changes it later, and the next.
        class_agnostic: Whether boxes of different classes suppress one another, too: no two boxes then lie on one
            object.
    """

    antialias: ClassVar[bool] = False
    padding: ClassVar[float | None] = 114 / 255
    logit_layers: ClassVar[tuple[str, ...]] = tuple(f"head.{level}.classes" for level in range(len(STRIDES)))

    def __init__(
        self,
        classes: int = 1,
        channels: int = 3,
        variant: Variant = "s",
        backbone: str = "",
        depth: float = 0.0,
        width: float = 0.0,
        side: int = 0,
        distance: float = 0.0,
        detections: int = 300,
        suppression: Suppression = "hard",
        class_agnostic: bool = False,
    ) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise unknown_name("variant", str(variant), VARIANTS)
        if min(classes, channels, detections) < 1:
            raise InputError(
                f"classes, channels and detections must be 1 or more, got {classes}, {channels} and {detections}"
            )
        for name, value in {"depth": depth, "width": width, "side": side, "distance": distance}.items():
            if not 0 <= value < math.inf:
                raise InputError(f"{name} must be a number of 0 or more, got {value}")
        usual_depth, usual_width, depthwise, usual_side = VARIANTS[variant]
        depth, width = depth or usual_depth, width or usual_width
        if int(64 * width) < 1:
            raise InputError(f"width must be at least {1 / 64}, got {width}: no channels would be left")
        self.classes, self.channels, self.side = classes, channels, side or usual_side
        self.largest = self.side
        self.distance, self.detections = distance, detections
        self.thresholds = {"score": 0.01, "nms": 0.65}
        self.suppress_by(suppression, class_agnostic)
        self.backbone: Backbone | CSPDarknet
        self.reductions: tuple[float, ...]
        if backbone:
            self.backbone = Backbone(backbone, channels, STRIDES)
            self.stride, self.reductions = self.backbone.stride, self.backbone.reductions
        else:
            self.backbone = CSPDarknet(channels, depth, width, depthwise)
            self.stride, self.reductions = max(STRIDES), tuple(map(float, STRIDES))
        widths = [int(each * width) for each in (256, 512, 1024)]
        self.neck = PathAggregation(self.backbone.widths, widths, max(1, round(3 * depth)), depthwise)
        self.head = nn.ModuleList(_Head(each, widths[0], classes, depthwise) for each in widths)

    @classmethod
    def recipe(cls) -> Recipe:
        """As for other boxes, but from random weights: longer, at a higher rate."""
        return (
            super()
            .recipe()
            .with_options(
                epochs=200,
                batch_size=8,
                crop=640,
                learning_rate=1e-3,
                backbone_rate=1.0,
                warmup=5.0,
                mosaic=1.0,
                mixup=0.5,
                plain_epochs=15,
            )
        )

    @classmethod
    def recipe_for(cls, **options: Any) -> Recipe:
        """With crops of the side that the network is to see."""
        return cls.recipe().with_options(crop=options.get("side") or VARIANTS[options.get("variant", "s")][3])

    @classmethod
    def preprocessing(cls, channels: int) -> Preprocessing:
        """Intensities 0..1 without any mean taken off."""
        return Preprocessing(channels=channels, normalise="scale")

    def begin_plain_epochs(self) -> None:
        """The distance of the boxes' numbers counts from now on."""
        self.distance = max(1.0, self.distance)

    def magnification_for(self, height: int, width: int) -> float:
        """The factor that makes the longer side of an image `side` pixels long."""
        return self.side / max(height, width)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """What each of the A cells of all maps predicts for images (B, C, H, W).

        Returns:
            ``boxes`` (B, A, 4) x0, y0, x1, y1 in pixels, ``objectness`` (B, A) and ``classes`` (B, A, K) logits. The
            finest map comes first, row after row.
        """
        raw = self.raw(images)
        boxes = boxes_of_cells(raw["offsets"], raw["cells"])
        return {"boxes": boxes, "objectness": raw["objectness"], "classes": raw["classes"]}

    def raw(self, images: Tensor) -> dict[str, Tensor]:
        """``offsets`` (B, A, 4), ``objectness`` (B, A), ``classes`` (B, A, K) and ``cells`` (A, 3), for `loss`."""
        levels = [head(each) for head, each in zip(self.head, self.neck(self.backbone(images)), strict=True)]
        flat = [torch.cat([each.flatten(2) for each in maps], dim=2).mT for maps in zip(*levels, strict=True)]
        classes, offsets, objectness = flat
        grids = [(each[0].shape[-2], each[0].shape[-1]) for each in levels]
        cells = _cells(grids, self.reductions, images.device)
        return {"offsets": offsets, "objectness": objectness.squeeze(-1), "classes": classes, "cells": cells}

    def training_loss(self, images: Tensor, targets: Mapping[str, Any]) -> dict[str, Tensor]:
        """The terms of `loss`."""
        return self.loss(self.raw(images), targets)

    def loss(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Any]) -> dict[str, Tensor]:
        """Terms of the paper, each summed over the batch and divided by the number of cells that belong to an object.

        Cells in crowd regions that belong to no object are no background: objects may be there. The official program
        knows no crowds.

        Args:
            outputs: Of `raw`.
            targets: For each image ``boxes`` (N, 4), ``classes`` (N,) and ``crowd`` (N,).

        Returns:
            ``boxes`` (5 (1 - IoU^2)), ``objectness`` and ``classes`` (binary cross-entropy; the truth of a class is the
            IoU), and ``distance`` (L1) if the constructor's `distance` is not 0.
        """
        # Costs of boxes far outside are beyond half precision.
        offsets, objectness, logits = (outputs[name].float() for name in ("offsets", "objectness", "classes"))
        cells = outputs["cells"]
        predicted = boxes_of_cells(offsets, cells)
        images = zip(predicted, objectness, logits, *true_boxes(targets), strict=True)
        found = [_assigned(*image, cells=cells) for image in images]
        objects, counted = (torch.stack([each[part] for each in found]) for part in (0, 1))
        wanted, kind = (torch.cat([each[part] for each in found]) for part in (2, 3))
        number = max(1, len(wanted))
        overlap = box_iou(predicted[objects], wanted)
        of_class = functional.one_hot(kind, self.classes) * overlap.detach()[:, None]
        seen = functional.binary_cross_entropy_with_logits(objectness, objects.float(), reduction="none")
        told = functional.binary_cross_entropy_with_logits(logits[objects], of_class, reduction="sum")
        terms = {
            "boxes": _BOX_WEIGHT * (1 - overlap**2).sum() / number,
            "objectness": (seen * counted).sum() / number,
            "classes": told / number,
        }
        if self.distance:
            places = cells.expand(len(objects), -1, -1)[objects]
            apart = functional.l1_loss(offsets[objects], offsets_of_boxes(wanted, places), reduction="sum")
            terms["distance"] = self.distance * apart / number
        return terms

    def decode(self, outputs: Mapping[str, Tensor], sizes: Sequence[tuple[int, ...]]) -> list[Segments]:
        """Detections whose probability is that of an object times that of its most probable class.

        Those below the threshold ``score`` are left out, and those whose IoU is above ``nms`` with a more probable one
        of their class are suppressed.

        Args:
            outputs: Of `forward`.
            sizes: (H, W) of each image before padding.
        """
        found = []
        for image, size in enumerate(sizes):
            logit, kind = outputs["classes"][image].float().max(dim=1)
            score = logit.sigmoid() * outputs["objectness"][image].float().sigmoid()
            likely = torch.where(score >= self.thresholds["score"])[0]
            boxes, score, kind = outputs["boxes"][image, likely].float(), score[likely], kind[likely]
            kept, score = suppress(
                boxes,
                score,
                torch.zeros_like(kind) if self.class_agnostic else kind,
                overlap=self.thresholds["nms"],
                kind=self.suppression,
                least_score=self.thresholds["score"],
                most=self.detections,
            )
            kept, score = kept[: self.detections], score[: self.detections]
            tables = (each.cpu().numpy() for each in (boxes[kept], score, kind[kept]))
            found.append(segments_of_boxes((size[0], size[1]), *tables))
        return found

    def foreign(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of the official program under the names of this method.

        Either by their official names, or those of an ONNX file, as `everymask.methods.onnx_weights.read_onnx` gives
        them, by their order. The official network takes blue, green and red, 0..255, this one red, green and blue,
        0..1, so that the weights of its first convolution are changed.

        Raises:
            InputError: Without official names there are more or fewer tensors than the network has.
        """
        if any(name.startswith("backbone.backbone.") for name in state):
            renamed = {_translated(name): value for name, value in state.items()}
        elif "head.0.stem.norm.weight" in state:
            return dict(state)
        else:
            renamed = self._in_order(list(state.values()))
        name = "backbone.stem.convolution.weight"
        if name in renamed and renamed[name].shape[1:] == (12, 3, 3):
            renamed[name] = focus_kernel(renamed[name]).flip(1) * 255
        return renamed

    def _in_order(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        """Weights and biases of the convolutions, in the order in which they run, by name."""
        convolutions = [(name, each) for name, each in self.named_modules() if isinstance(each, nn.Conv2d)]
        if len(tensors) != 2 * len(convolutions):
            raise InputError(
                f"the weights are those of another network: {len(tensors)} tensors instead of {2 * len(convolutions)} "
                "of the convolutions; choose the variant that they are for"
            )
        renamed: dict[str, Tensor] = {}
        for (name, each), weight, bias in zip(convolutions, tensors[::2], tensors[1::2], strict=True):
            if each.bias is None:
                prefix = name.removesuffix("convolution")
                renamed |= {prefix + key: value for key, value in folded_state(weight, bias).items()}
            else:
                renamed |= {f"{name}.weight": weight, f"{name}.bias": bias}
        return renamed


class _Head(nn.Module):
    """Logits and offsets of a map; classes and boxes have convolutions of their own (paper, section 2.1, figure 2)."""

    def __init__(self, inputs: int, width: int, classes: int, depthwise: bool) -> None:
        super().__init__()

        def pair() -> nn.Sequential:
            return nn.Sequential(*(normed_convolution(width, width, 3, depthwise=depthwise) for _ in range(2)))

        self.stem = NormedConvolution(inputs, width, 1)
        self.class_convolutions = pair()
        self.classes = nn.Conv2d(width, classes, 1)
        self.box_convolutions = pair()
        self.offsets = nn.Conv2d(width, 4, 1)
        self.objectness = nn.Conv2d(width, 1, 1)
        for logits in (self.classes, self.objectness):
            nn.init.constant_(logits.bias, -math.log((1 - _PRIOR) / _PRIOR))  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Classes (B, K, h, w), offsets (B, 4, h, w) and objectness (B, 1, h, w) of features (B, inputs, h, w)."""
        features = self.stem(features)
        boxes = self.box_convolutions(features)
        return self.classes(self.class_convolutions(features)), self.offsets(boxes), self.objectness(boxes)


def _assigned(
    predicted: Tensor, objectness: Tensor, logits: Tensor, boxes: Tensor, classes: Tensor, crowd: Tensor, cells: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of one image: (A,) cells that belong to an object, (A,) that count, and boxes (M, 4) and classes (M,) of M cells.

    The last two are the truth of the cells that belong to an object, in their order.
    """
    boxes, classes, regions = boxes[~crowd], classes[~crowd], boxes[crowd]
    index = sim_ota(predicted, objectness, logits, cells, boxes, classes)
    objects = index >= 0
    return objects, objects | ~_in_any(cells, regions), boxes[index[objects]], classes[index[objects]]


def boxes_of_cells(offsets: Tensor, cells: Tensor) -> Tensor:
    """Boxes (..., A, 4) x0, y0, x1, y1 in pixels of what cells say.

    Args:
        offsets: (..., A, 4) shift of the centre from the cell's upper left corner, and logarithms of the sides, in
            strides.
        cells: (A, 3) column, row and stride.
    """
    stride = cells[..., 2:]
    centre = (offsets[..., :2].float() + cells[..., :2]) * stride
    half = 0.5 * (offsets[..., 2:].float().exp() * stride)
    return torch.cat([centre - half, centre + half], dim=-1)


def offsets_of_boxes(boxes: Tensor, cells: Tensor) -> Tensor:
    """The inverse of `boxes_of_cells`, for boxes (M, 4) of cells (M, 3)."""
    stride = cells[:, 2:]
    centre = 0.5 * (boxes[:, :2] + boxes[:, 2:]) / stride - cells[:, :2]
    return torch.cat([centre, torch.log((boxes[:, 2:] - boxes[:, :2]) / stride + 1e-8)], dim=-1)


def _cells(grids: Sequence[tuple[int, int]], strides: Sequence[float], device: torch.device) -> Tensor:
    """Cells (A, 3), column, row and stride, of the maps of (rows, columns), row after row."""
    levels = []
    for (rows, columns), stride in zip(grids, strides, strict=True):
        y = torch.arange(rows, device=device, dtype=torch.float32)[:, None].expand(rows, columns)
        x = torch.arange(columns, device=device, dtype=torch.float32).expand(rows, columns)
        levels.append(torch.stack([x, y, torch.full_like(x, stride)], dim=-1).flatten(0, 1))
    return torch.cat(levels)


def _in_any(cells: Tensor, regions: Tensor) -> Tensor:
    """(A,) whether the centre of a cell is in one of the regions (M, 4)."""
    centre = (cells[:, :2] + 0.5) * cells[:, 2:]
    inside = (centre[:, None] >= regions[:, :2]) & (centre[:, None] < regions[:, 2:])
    return inside.all(dim=-1).any(dim=1)


def _translated(name: str) -> str:
    """The name in this method of a tensor of the official program."""
    for pattern, replacement in _OFFICIAL:
        name = pattern.sub(replacement, name)
    return name


_OFFICIAL = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^backbone\.backbone\.stem\.conv\.", "backbone.stem."),
        (r"^backbone\.backbone\.dark5\.1\.conv1\.", "backbone.stages.3.1.first."),
        (r"^backbone\.backbone\.dark5\.1\.conv2\.", "backbone.stages.3.1.last."),
        (r"^backbone\.backbone\.dark2\.", "backbone.stages.0."),
        (r"^backbone\.backbone\.dark3\.", "backbone.stages.1."),
        (r"^backbone\.backbone\.dark4\.", "backbone.stages.2."),
        (r"^backbone\.backbone\.dark5\.", "backbone.stages.3."),
        (r"^backbone\.lateral_conv0\.", "neck.reduce_coarse."),
        (r"^backbone\.C3_p4\.", "neck.down_middle."),
        (r"^backbone\.reduce_conv1\.", "neck.reduce_middle."),
        (r"^backbone\.C3_p3\.", "neck.down_fine."),
        (r"^backbone\.bu_conv2\.", "neck.enlarge_fine."),
        (r"^backbone\.C3_n3\.", "neck.up_middle."),
        (r"^backbone\.bu_conv1\.", "neck.enlarge_middle."),
        (r"^backbone\.C3_n4\.", "neck.up_coarse."),
        (r"^head\.stems\.(\d)\.", r"head.\1.stem."),
        (r"^head\.cls_convs\.(\d)\.", r"head.\1.class_convolutions."),
        (r"^head\.reg_convs\.(\d)\.", r"head.\1.box_convolutions."),
        (r"^head\.cls_preds\.(\d)\.", r"head.\1.classes."),
        (r"^head\.reg_preds\.(\d)\.", r"head.\1.offsets."),
        (r"^head\.obj_preds\.(\d)\.", r"head.\1.objectness."),
        (r"\.m\.(\d+)\.conv1\.", r".bottlenecks.\1.first."),
        (r"\.m\.(\d+)\.conv2\.", r".bottlenecks.\1.second."),
        (r"\.conv1\.", ".main."),
        (r"\.conv2\.", ".side."),
        (r"\.conv3\.", ".last."),
        (r"\.dconv\.", ".0."),
        (r"\.pconv\.", ".1."),
        (r"\.conv\.", ".convolution."),
        (r"\.bn\.", ".norm."),
    )
)
