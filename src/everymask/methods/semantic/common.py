"""What all methods of semantic segmentation share: the targets, the loss, the class of each pixel, and backbones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from everymask.backbones.pyramid import Backbone
from everymask.errors import InputError
from everymask.losses.expression import PixelLoss
from everymask.methods.base import Method
from everymask.methods.recipe import Recipe
from everymask.types import LabelMap, Segments, Task
from everymask.types.geometry import VOID

if TYPE_CHECKING:
    from numpy.typing import NDArray


class SemanticMethod(Method):
    """A class for every pixel: logits ``classes`` (B, K [+ 1], H, W), background first where it is a class.

    A subclass makes its network in `__init__`, calls `prepare`, and gives `forward`. In training it may give logits of
    an auxiliary head as ``auxiliary``, whose loss counts `auxiliary_weight`.

    Attributes:
        background: Whether pixels of no segment are a class of their own.
        auxiliary_weight: Share of the auxiliary head's loss, 0.4 as in Zhao et al. 2017, sec. 5.1.
        logit_layers: Names of the layers that give logits: what new classes need new weights for.
    """

    tasks: ClassVar[frozenset[Task]] = frozenset({Task.SEMANTIC})
    metric: ClassVar[tuple[str, str]] = ("semantic", "miou")
    logit_layers: ClassVar[tuple[str, ...]] = ("head",)
    auxiliary_weight: ClassVar[float] = 0.4

    background: bool

    def prepare(
        self, classes: int, channels: int, background: bool, loss: str, class_weights: Sequence[float] = ()
    ) -> int:
        """Sets what every method has; returns the number of channels of the logits.

        Raises:
            InputError: There is but one class, the loss does not exist, or there is not a weight for each class.
        """
        if classes + background < 2:
            raise InputError("one category without background leaves nothing to tell apart; set background=True")
        self.classes, self.channels, self.background = classes, channels, background
        self.criterion = PixelLoss(loss)
        self.thresholds = {}
        logits = classes + background
        if class_weights and (len(class_weights) != logits or min(class_weights) < 0):
            first = "the background and " if background else ""
            raise InputError(
                f"class_weights must be {logits} numbers of 0 or more, for {first}each of the {classes} classes; got "
                f"{', '.join(f'{each:g}' for each in class_weights)}"
            )
        weights = torch.tensor(class_weights, dtype=torch.float32) if class_weights else None
        self.register_buffer("class_weights", weights, persistent=False)
        return logits

    @classmethod
    def recipe(cls) -> Recipe:
        """For photographs, on a backbone with weights.

        Mirroring, magnification from half to double and the polynomial decay of Chen et al. 2017, sec. 4.1; AdamW, and
        a lower rate for the backbone.
        """
        return Recipe(
            epochs=60,
            batch_size=8,
            crop=352,
            foreground=0.5,
            learning_rate=1e-3,
            backbone_rate=0.3,
            weight_decay=1e-2,
            schedule="poly",
            flip="mirror",
            scale=(0.5, 2.0),
            brightness=0.15,
            contrast=(0.7, 1.4),
            colour=0.05,
            noise=0.0,
        )

    def targets(self, segments: Segments) -> dict[str, Tensor]:
        """``classes`` (H, W) int64: the class of each pixel, -1 void."""
        ids = segments.label_map("last")
        table = np.concatenate([[VOID, 0 if self.background else VOID], segments.category + self.background])
        return {"classes": torch.from_numpy(table[ids + 1].astype(np.int64))}

    def loss(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The terms of the loss, and those of the auxiliary head, whose logits are brought to the targets' size."""
        classes, weight = targets["classes"], targets.get("weight")
        weights = {"pixel_weight": weight, "class_weight": self.class_weights}
        terms = self.criterion(outputs["classes"], classes, **weights)
        if "auxiliary" in outputs:
            side = self.criterion(resized(outputs["auxiliary"], classes.shape[-2:]), classes, **weights)
            terms |= {f"auxiliary_{name}": self.auxiliary_weight * value for name, value in side.items()}
        return terms

    def decode(self, outputs: Mapping[str, Tensor], sizes: Sequence[tuple[int, ...]]) -> list[Segments]:
        """The most probable class of each pixel; a segment for each that occurs, scored by its mean probability."""
        found = []
        for logits, (height, width) in zip(outputs["classes"], sizes, strict=True):
            index, counts, sums = most_probable_classes(logits[:, :height, :width].float())
            first = int(self.background)  # class of the first category
            present = np.flatnonzero(counts[first:])
            table = np.zeros(len(counts), np.int32)
            table[present + first] = np.arange(1, len(present) + 1)
            score = np.clip(sums[present + first] / counts[present + first], 0, 1)  # sums may be rounded up
            found.append(Segments((height, width), present, LabelMap(table[index]), score=score))
        return found


def most_probable_classes(logits: Tensor) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.float64]]:
    """`everymask.ops.argmax.most_probable` of logits (K, H, W) float32, on the device that they are on."""
    if logits.device.type == "cpu":
        from everymask.ops.argmax import most_probable

        return most_probable(logits.detach().numpy())
    highest, index = logits.max(0)
    probability = (highest - logits.logsumexp(0)).exp()
    found, weights = index.to(torch.int32).cpu().numpy(), probability.cpu().numpy().ravel()
    counts = np.bincount(found.ravel(), minlength=len(logits)).astype(np.int64)
    return found, counts, np.bincount(found.ravel(), weights, minlength=len(logits)).astype(np.float64)


def resized(maps: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    """Maps (B, C, h, w) interpolated bilinearly to (height, width).

    Args:
        maps: Features or logits.
        size: Wanted.
        align_corners: Whether the centres of the corner pixels stay in place, instead of the outer edges. Then the
            place of a pixel depends on the size of the map, and tiles do not join as exactly.
    """
    return functional.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=align_corners)


def fcn_head(inputs: int, outputs: int) -> nn.Sequential:
    """The head of torchvision's FCN, also its auxiliary head: a 3 x 3 convolution, dropout and a layer of logits."""
    width = max(1, inputs // 4)
    return nn.Sequential(
        nn.Conv2d(inputs, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Dropout(0.1),
        nn.Conv2d(width, outputs, 1),
    )


def dilate_entries(backbone: Backbone, channels: int) -> None:
    """Dilates the first block of each dilated stage of a backbone like its other blocks.

    A convolution that lost its stride reads the map of the stage before, whose neighbours lie where they lay in
    training, so timm and torchvision give it that stage's dilation. `segmentation_models_pytorch` does not, and weights
    that were trained so need it.

    Args:
        backbone: With an output stride below 32; changed in place.
        channels: Of its input.
    """
    with torch.device("meta"):
        undilated = Backbone(backbone.name, channels, (32,))
    before = {name: each for name, each in undilated.named_modules() if isinstance(each, nn.Conv2d)}
    for name, convolution in backbone.named_modules():
        if isinstance(convolution, nn.Conv2d) and convolution.stride != before[name].stride:
            factor = before[name].stride[0] // convolution.stride[0]
            dilation = convolution.dilation[0] * factor
            convolution.dilation = (dilation, dilation)
            if isinstance(convolution.padding, tuple):
                convolution.padding = (convolution.padding[0] * factor, convolution.padding[1] * factor)
