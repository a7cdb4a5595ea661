"""DeepLab v3+: DeepLab v3 with a small decoder that brings the details back.

Chen, Zhu, Papandreou, Schroff, Adam, Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation,
ECCV 2018.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from everymask.backbones.pyramid import Backbone
from everymask.errors import InputError
from everymask.layers.aspp import ASPP, atrous_rates, dilated_convolution, separable_convolution
from everymask.layers.unet import initialise
from everymask.methods.foreign import from_smp, is_smp
from everymask.methods.semantic.common import SemanticMethod, dilate_entries, resized

_DETAILS = 48
"""Channels that the features of stride 4 are reduced to (sec. 4.1 of the paper)."""
_SMP_RATES = (12, 24, 36)


class DeepLabV3Plus(SemanticMethod):
    """A class for every pixel from features of several dilations, refined by those of stride 4.

    Args:
        classes: Number of categories K.
        channels: Input channels C.
        backbone: Any network of timm, such as ``resnet50``.
        output_stride: Input pixels per feature of the last stage: 8 or 16 dilate the last stages of the backbone; 32
            leaves it as it is, for networks that cannot be dilated.
        rates: Dilations of the pooling; none for those of the paper: 6, 12, 18 at output stride 16, twice as many at 8.
        width: Channels of pooling and decoder.
        smp: Compute as `segmentation_models_pytorch` does, for its weights: maps are interpolated with aligned corners,
            dilated stages begin dilated, and the rates are 12, 24 and 36 unless given. Tiles join less exactly then.
        background: Whether pixels of no segment are a class of their own (index 0 of the outputs); otherwise they are
            void.
        loss: A loss, or a sum of several: ``0.5*cross_entropy + 0.5*dice``.
        class_weights: Factor of each class in losses that know one, background first where it is a class; none for 1.
    """

    def __init__(
        self,
        classes: int = 1,
        channels: int = 3,
        backbone: str = "resnet50",
        output_stride: Literal[8, 16, 32] = 16,
        rates: tuple[int, ...] = (),
        width: int = 256,
        smp: bool = False,
        background: bool = True,
        loss: str = "cross_entropy",
        class_weights: tuple[float, ...] = (),
    ) -> None:
        super().__init__()
        logits = self.prepare(classes, channels, background, loss, class_weights)
        self.smp = smp
        self.backbone = Backbone(backbone, channels, (4, 32), output_stride)
        if smp and output_stride < 32:
            dilate_entries(self.backbone, channels)
        fine, coarse = self.backbone.widths
        chosen = rates or (_SMP_RATES if smp else atrous_rates(output_stride))
        self.pooling = nn.Sequential(ASPP(coarse, width, chosen, separable=True), separable_convolution(width, width))
        self.details = dilated_convolution(fine, _DETAILS, kernel=1)
        self.fusion = separable_convolution(width + _DETAILS, width)
        self.head = nn.Conv2d(width, logits, 1)
        for module in (self.pooling, self.details, self.fusion):
            initialise(module)
        self.stride = self.backbone.stride
        self.context = int(max(chosen) * self.backbone.reductions[-1])

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """``classes`` (B, K [+ 1], H, W) logits of images (B, C, H, W)."""
        fine, coarse = self.backbone(images)
        pooled = resized(self.pooling(coarse), fine.shape[-2:], self.smp)
        logits = self.head(self.fusion(torch.cat([pooled, self.details(fine)], dim=1)))
        return {"classes": resized(logits, images.shape[-2:], self.smp)}

    def foreign(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of the ``DeepLabV3Plus`` of `segmentation_models_pytorch` under the names of this method.

        Raises:
            InputError: The method computes otherwise, so that these weights would not mean the same.
        """
        if is_smp(state) and not self.smp:
            raise InputError("these are weights of segmentation_models_pytorch; make the method with smp=True for them")
        # There the two convolutions of a separable one are a module of their own.
        rules = (
            (r"^decoder\.aspp\.0\.convs\.([123])\.0\.([01])\.", r"pooling.0.convs.\1.\2."),
            (r"^decoder\.aspp\.0\.convs\.([123])\.1\.", r"pooling.0.convs.\1.2."),
            (r"^decoder\.aspp\.0\.", "pooling.0."),
            (r"^decoder\.aspp\.1\.([01])\.", r"pooling.1.\1."),
            (r"^decoder\.aspp\.2\.", "pooling.1.2."),
            (r"^decoder\.block1\.", "details."),
            (r"^decoder\.block2\.0\.([01])\.", r"fusion.\1."),
            (r"^decoder\.block2\.1\.", "fusion.2."),
        )
        renamed: dict[str, Tensor] = {}
        for name, value in from_smp(state, self.head.out_channels).items():
            for pattern, replacement in rules:
                name, changed = re.subn(pattern, replacement, name)
                if changed:
                    break
            renamed[name] = value
        return renamed
