"""FCN: logits right from the features of a classification network.

Long, Shelhamer, Darrell, Fully Convolutional Networks for Semantic Segmentation, CVPR 2015.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from everymask.backbones.pyramid import Backbone
from everymask.methods.foreign import from_torchvision
from everymask.methods.semantic.common import SemanticMethod, fcn_head, resized


class FCN(SemanticMethod):
    """A class for every pixel from a fully convolutional network, dilated as in torchvision or with skips as published.

    Args:
        classes: Number of categories K.
        channels: Input channels C.
        backbone: Any network of timm, such as ``resnet50``; the paper's best is on ``vgg16``.
        variant: ``dilated`` is torchvision's network, whose weights load: stride 8 by dilation. ``32s``, ``16s`` and
            ``8s`` are the paper's: the logits of the last stage, and those of strides 16 and 8 added to them.
        auxiliary: Whether the stage of stride 16 has a head of its own in training; torchvision's option, for
            ``dilated`` and ``32s``.
        background: Whether pixels of no segment are a class of their own (index 0 of the outputs); otherwise they are
            void.
        loss: A loss, or a sum of several: ``0.5*cross_entropy + 0.5*dice``.
        class_weights: Factor of each class in losses that know one, background first where it is a class; none for 1.
    """

    logit_layers: ClassVar[tuple[str, ...]] = ("head.4", "auxiliary.4", "skips", "rises")

    def __init__(
        self,
        classes: int = 1,
        channels: int = 3,
        backbone: str = "resnet50",
        variant: Literal["dilated", "32s", "16s", "8s"] = "dilated",
        auxiliary: bool = True,
        background: bool = True,
        loss: str = "cross_entropy",
        class_weights: tuple[float, ...] = (),
    ) -> None:
        super().__init__()
        logits = self.prepare(classes, channels, background, loss, class_weights)
        strides = (8, 16, 32) if variant == "8s" else (16, 32)
        self.backbone = Backbone(backbone, channels, strides, 8 if variant == "dilated" else 32)
        *finer, last = self.backbone.widths
        self.head = fcn_head(last, logits)
        skips = finer if variant in ("16s", "8s") else []
        self.skips = nn.ModuleList(_silent(width, logits) for width in skips)
        self.rises = nn.ModuleList(_doubling(logits) for _ in skips)
        self.auxiliary = fcn_head(finer[-1], logits) if auxiliary and not skips else None
        self.stride = self.backbone.stride
        self.context = 4 * self.stride

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """``classes`` (B, K [+ 1], H, W) logits of images (B, C, H, W); in training also ``auxiliary``, coarser."""
        *finer, last = self.backbone(images)
        logits = self.head(last)
        for rise, skip, features in zip(self.rises, reversed(self.skips), reversed(finer), strict=False):
            logits = rise(logits) + skip(features)
        outputs = {"classes": resized(logits, images.shape[-2:])}
        if self.training and self.auxiliary is not None:
            outputs["auxiliary"] = self.auxiliary(finer[-1])
        return outputs

    def foreign(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of torchvision's ``fcn_*`` under the names of this method."""
        return from_torchvision(state)


def _silent(inputs: int, outputs: int) -> nn.Conv2d:
    """Logits that begin at zero, so that the coarser ones are learnt first as if alone (sec. 4.2)."""
    layer = nn.Conv2d(inputs, outputs, 1)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _doubling(channels: int) -> nn.ConvTranspose2d:
    """An up-convolution that begins as bilinear interpolation to twice the size (sec. 3.3)."""
    layer = nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1, bias=False)
    slope = torch.tensor([0.25, 0.75, 0.75, 0.25])
    with torch.no_grad():
        layer.weight.copy_(torch.eye(channels)[:, :, None, None] * slope[:, None] * slope)
    return layer
