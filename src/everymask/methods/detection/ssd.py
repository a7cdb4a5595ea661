"""SSD: the class and the box of default boxes on feature maps that become coarser and coarser, in one pass.

Liu, Anguelov, Erhan, Szegedy, Reed, Fu, Berg, SSD: Single Shot MultiBox Detector, ECCV 2016.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import box_iou

from everymask.backbones.pyramid import Backbone
from everymask.data.preprocessing import Preprocessing
from everymask.errors import unknown_name
from everymask.layers.anchors import DefaultBoxes
from everymask.layers.box_coding import Weights
from everymask.layers.box_matching import BACKGROUND, match_boxes
from everymask.layers.dense_head import BoxLoss, Candidates, box_loss, of_anchors, positives
from everymask.layers.suppression import Suppression
from everymask.losses.forms import check_option
from everymask.methods.detection.common import true_boxes
from everymask.methods.detection.dense import DenseMethod

Pixels = Literal["backbone", "caffe"]

_ANY = 2**30
"""Side of an image that any other is smaller than: all of them are seen as a whole."""

_CAFFE_MEAN = (0.48235, 0.45882, 0.40784)


@dataclass(frozen=True, slots=True)
class _Layout:
    """What depends on the size of the images.

    Args:
        steps: Pixels from cell to cell of each feature map.
        scales: Sides of the default boxes as shares of the image: the numbers for COCO, where objects are smaller.
        ratios: Proportions of the default boxes of each map.
        further: The convolutions that make the maps after the second: share of the `width`, kernel, stride, padding.
    """

    steps: tuple[float, ...]
    scales: tuple[float, ...]
    ratios: tuple[tuple[float, ...], ...]
    further: tuple[tuple[float, int, int, int], ...]


_LAYOUTS = {
    300: _Layout(
        steps=(8, 16, 32, 64, 100, 300),
        scales=(0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05),
        ratios=((2,), (2, 3), (2, 3), (2, 3), (2,), (2,)),
        further=((1 / 2, 3, 2, 1), (1 / 4, 3, 2, 1), (1 / 4, 3, 1, 0), (1 / 4, 3, 1, 0)),
    ),
    512: _Layout(
        steps=(8, 16, 32, 64, 128, 256, 512),
        scales=(0.04, 0.1, 0.26, 0.42, 0.58, 0.74, 0.9, 1.06),
        ratios=((2,), (2, 3), (2, 3), (2, 3), (2, 3), (2,), (2,)),
        further=((1 / 2, 3, 2, 1), *[(1 / 4, 3, 2, 1)] * 3, (1 / 4, 4, 1, 1)),
    ),
}


class SSD(DenseMethod):
    """Boxes by SSD on images that are brought to one size; weights of torchvision's ``ssd300_vgg16`` load.

    Args:
        classes: Number of categories K.
        channels: Input channels C.
        backbone: ``vgg16`` as published, or any network of timm with strides 8 and 16 that takes this size.
        size: Height and width that every image is brought to, 300 or 512. So are the crops of the training, whose
            `crop` therefore should be about as large as the images are.
        width: Channels after the layers that stand for VGG's fully connected ones; the further maps have a half and a
            quarter of them.
        pixels: ``backbone`` normalises images as the published weights of the backbone want; ``caffe`` subtracts the
            mean colour from values of 0 to 255, as the published weights of the whole SSD want.
        scales: Sides of the default boxes of each feature map, and of one map more, as shares of the image; empty takes
            those for COCO.
        negatives: Hardest anchors of background that are learnt for each one of an object.
        box_loss: ``smooth_l1`` as published, ``l1`` or ``giou``.
        overlap: IoU from which the less probable of two boxes of a class is suppressed; may be changed later in
            `thresholds`, as the next.
        least_score: Detections of lower probability do not count.
        candidates: Most probable ones of each class that go into the suppression.
        detections: Of an image at most.
        suppression: What becomes of a box that a more probable one overlaps: ``hard`` drops it; ``linear`` and
            ``gaussian`` (soft-NMS, Bodla et al. 2017) lower its score, which finds more of objects that hide one
            another. A lower `least_score` then leaves more of them. `suppress_by` changes it later, and the next.
        class_agnostic: Whether boxes of different classes suppress one another, too: no two boxes then lie on one
            object.
    """

    logit_layers: ClassVar[tuple[str, ...]] = ("class_head",)
    coding: ClassVar[Weights] = (10.0, 10.0, 5.0, 5.0)

    def __init__(
        self,
        classes: int = 1,
        channels: int = 3,
        backbone: str = "vgg16",
        size: Literal[300, 512] = 300,
        width: int = 1024,
        pixels: Pixels = "backbone",
        scales: tuple[float, ...] = (),
        negatives: float = 3.0,
        box_loss: BoxLoss = "smooth_l1",
        overlap: float = 0.45,
        least_score: float = 0.01,
        candidates: int = 400,
        detections: int = 200,
        suppression: Suppression = "hard",
        class_agnostic: bool = False,
    ) -> None:
        super().__init__()
        for name, value, known in (("pixels", pixels, get_args(Pixels)), ("box_loss", box_loss, get_args(BoxLoss))):
            if value not in known:
                raise unknown_name(name, value, known)
        check_option(size in _LAYOUTS, "size", size, "300 or 512")
        counts = (classes, candidates, detections)
        check_option(min(counts) >= 1, "classes, candidates, detections", counts, "numbers of 1 or more")
        check_option(width >= 8 and width % 8 == 0, "width", width, "a multiple of 8")
        check_option(negatives > 0, "negatives", negatives, "a number above 0")
        layout = _LAYOUTS[size]
        self.classes, self.channels, self.size, self.pixels = classes, channels, size, pixels
        self.largest = _ANY
        self.negatives, self.box_loss = negatives, box_loss
        self.candidates, self.detections = candidates, detections
        self.thresholds = {"score": least_score, "overlap": overlap}
        self.suppress_by(suppression, class_agnostic)
        cells = [size / step for step in layout.steps]
        self.default_boxes = DefaultBoxes(scales or layout.scales, layout.ratios, cells)
        self.backbone = Backbone(backbone, channels, (8, 16))
        fine, coarse = self.backbone.widths
        self.scale = nn.Parameter(torch.full((fine,), 20.0))
        self.fully = nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1),
            nn.Conv2d(coarse, width, 3, padding=6, dilation=6),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 1),
            nn.ReLU(inplace=True),
        )
        widths, self.further = [fine, width], nn.ModuleList()
        for share, kernel, stride, padding in layout.further:
            outputs = int(share * width)
            self.further.append(
                nn.Sequential(
                    nn.Conv2d(widths[-1], outputs // 2, 1),
                    nn.ReLU(inplace=True),
                    nn.Conv2d(outputs // 2, outputs, kernel, stride, padding),
                    nn.ReLU(inplace=True),
                )
            )
            widths.append(outputs)
        per_map = list(zip(widths, self.default_boxes.per_cell, strict=True))
        self.class_head = nn.ModuleList(nn.Conv2d(each, n * (classes + 1), 3, padding=1) for each, n in per_map)
        self.box_head = nn.ModuleList(nn.Conv2d(each, n * 4, 3, padding=1) for each, n in per_map)
        for part in (self.fully, self.further, self.class_head, self.box_head):
            for module in part.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.xavier_uniform_(module.weight)
                    nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        for module in self.backbone.body.modules():
            # VGG's pooling must round 75 / 2 up to 38, as the convolutions of other networks do.
            if isinstance(module, nn.MaxPool2d) and module.kernel_size == 2:
                module.ceil_mode = True

    def preprocessing_of(self) -> Preprocessing:
        """What the option `pixels` says."""
        if self.pixels == "backbone":
            return super().preprocessing_of()
        mean = _CAFFE_MEAN if self.channels == len(_CAFFE_MEAN) else (sum(_CAFFE_MEAN) / len(_CAFFE_MEAN),)
        return Preprocessing(channels=self.channels, normalise="scale", mean=mean, std=(1 / 255,))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """What is said of each anchor of images (B, C, H, W), which are brought to `size` whatever their proportions.

        Returns:
            ``logits`` (B, A, K + 1), background first, and ``offsets`` (B, A, 4) from the ``anchors`` (B, A, 4), x0,
            y0, x1, y1 in pixels of the images as they came.
        """
        height, width = images.shape[-2:]
        size = (self.size, self.size)
        if torch.compiler.is_exporting() or (height, width) != size:
            # As the published weights were trained: without a filter against aliasing.
            images = functional.interpolate(images, size=size, mode="bilinear", align_corners=False)
        maps = self._maps(images)
        boxes = self.default_boxes([(each.shape[-2], each.shape[-1]) for each in maps], images.device)
        # Offsets are in sides of the anchors, so that they hold for stretched images as they are.
        anchors = torch.stack([boxes[:, 0::2] * width, boxes[:, 1::2] * height], dim=-1)
        logits = [head(each) for head, each in zip(self.class_head, maps, strict=True)]
        offsets = [head(each) for head, each in zip(self.box_head, maps, strict=True)]
        return {
            "logits": of_anchors(logits, self.classes + 1),
            "offsets": of_anchors(offsets, 4),
            "anchors": anchors.flatten(1).expand(images.shape[0], -1, -1),
        }

    def _maps(self, images: Tensor) -> list[Tensor]:
        """Feature maps, finest first; the first one, whose values are far larger, is normalised (sec. 3.1)."""
        fine, coarse = self.backbone(images)
        maps = [self.scale[:, None, None] * functional.normalize(fine), self.fully(coarse)]
        for convolutions in self.further:
            maps.append(convolutions(maps[-1]))
        return maps

    def loss(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Any]) -> dict[str, Tensor]:
        """Cross-entropy of the classes and distance of the boxes, divided by the anchors of objects (eq. 1 to 3).

        An anchor belongs to the object that it overlaps by an IoU of .5 or more, and to each object the one with the
        highest, however low. Of the others of each image only the hardest are learnt as background, `negatives` for
        each anchor of an object, and for one if there is none.

        Args:
            outputs: Of `forward`.
            targets: For each image ``boxes`` (N, 4), ``classes`` (N,) and ``crowd`` (N,).

        Returns:
            ``classes`` and ``boxes``.
        """
        boxes, classes, crowd = true_boxes(targets)
        logits, offsets, anchors = (outputs[name].float() for name in ("logits", "offsets", "anchors"))
        index = torch.stack([_matched(*each) for each in zip(anchors, boxes, crowd, strict=True)])
        found = positives(index, boxes, classes)
        place = (found.image, found.anchor)
        label = torch.zeros_like(index).index_put(place, found.classes + 1)
        entropy = functional.cross_entropy(logits.flatten(0, 1), label.flatten(), reduction="none").view_as(index)
        hardest = torch.where(index == BACKGROUND, entropy, 0).sort(dim=1, descending=True).values
        allowed = self.negatives * (index >= 0).sum(1, keepdim=True).clamp(min=1)
        rank = torch.arange(index.shape[1], device=index.device)
        background = torch.where(rank < allowed, hardest, 0).sum()
        share = 1 / max(1, len(found.image))
        return {
            "classes": share * (entropy[place].sum() + background),
            "boxes": box_loss(self.box_loss, offsets[place], anchors[place], found.boxes, share, self.coding),
        }

    def probable(self, outputs: Mapping[str, Tensor]) -> Candidates:
        """The best candidates of each class in each image."""
        probability = outputs["logits"].float().softmax(-1)[..., 1:]
        above = torch.where(probability > self.thresholds["score"], probability, 0)
        scores, anchors = above.transpose(1, 2).contiguous().topk(min(self.candidates, above.shape[1]))
        image, classes, rank = torch.where(scores > 0)
        return Candidates(image, anchors[image, classes, rank], classes, scores[image, classes, rank])

    def foreign(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of torchvision's ``ssd300_vgg16`` under the names of this method; class k is its label k + 1."""
        if "backbone.scale_weight" not in state:
            return dict(state)
        renamed: dict[str, Tensor] = {}
        for name, value in state.items():
            for pattern, replacement in _TORCHVISION:
                name = pattern.sub(replacement, name)
            # Its second map begins with the pooling before the last convolutions of VGG, which are 24, 26 and 28.
            name = _LAST_STAGE.sub(lambda match: f"backbone.body.features.{int(match[1]) + 23}.", name)
            name = _FURTHER.sub(lambda match: f"further.{int(match[1]) - 1}.", name)
            renamed[name] = value
        return renamed


def _matched(anchors: Tensor, boxes: Tensor, crowd: Tensor) -> Tensor:
    """(A,) index of the true box of each anchor, or a negative number, as `match_boxes`.

    Args:
        anchors: (A, 4).
        boxes: (N, 4).
        crowd: (N,) bool.
    """
    index = match_boxes(anchors, boxes[crowd], crowd[crowd], low=0.5, high=0.5)  # background, or ignored
    single = torch.where(~crowd)[0]
    if not len(single):
        return index
    overlaps = box_iou(boxes[single], anchors)
    best, box = overlaps.max(dim=0)
    index = torch.where(best >= 0.5, single[box], index)
    most, nearest = overlaps.max(dim=1)
    met = most > 0
    # An anchor that is the nearest of two objects becomes the later one's.
    return index.scatter_reduce(0, nearest[met], single[met], "amax", include_self=False)


_LAST_STAGE = re.compile(r"^backbone\.extra\.0\.(\d)\.(?=weight|bias)")
_FURTHER = re.compile(r"^backbone\.extra\.(\d)\.")
_TORCHVISION = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^backbone\.scale_weight$", "scale"),
        (r"^backbone\.features\.", "backbone.body.features."),
        (r"^backbone\.extra\.0\.7\.", "fully."),
        (r"^head\.classification_head\.module_list\.", "class_head."),
        (r"^head\.regression_head\.module_list\.", "box_head."),
    )
)
