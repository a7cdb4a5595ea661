"""U-Net for semantic segmentation, as published or on the features of any backbone.

Ronneberger, Fischer, Brox, U-Net: Convolutional Networks for Biomedical Image Segmentation, MICCAI 2015.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from everymask.layers.unet import Norm, UNet, Upsampling, initialise
from everymask.layers.unet_decoder import UNetDecoder
from everymask.methods.foreign import from_smp
from everymask.methods.preparation import at_stride, decoder_pyramid
from everymask.methods.recipe import Recipe
from everymask.methods.semantic.common import SemanticMethod
from everymask.types import Segments


class UNetSegmentation(SemanticMethod):
    """A class for every pixel from a U-Net, with the paper's weights that hold touching objects apart.

    Args:
        classes: Number of categories K.
        channels: Input channels C.
        backbone: Any network of timm as the encoder, such as ``resnet34``; empty for the network of the paper.
        base: Features of the first level of the paper's network, which has 64.
        depth: Its poolings; the paper has 4.
        norm: Its normalisation; the paper has none.
        upsampling: ``transposed`` as in the paper or ``nearest``.
        background: Whether pixels of no segment are a class of their own (index 0 of the outputs). Without it such
            pixels are void, as in street scenes whose categories cover the image.
        loss: A loss, or a sum of several: ``0.5*cross_entropy + 0.5*dice``.
        class_weights: Factor of each class in losses that know one, background first where it is a class; none for 1.
        border_weight: w0 of the paper's eq. 2 (10 there), added to the weight of pixels between objects; 0 switches it
            off. Only annotations that tell the objects of a category apart have such borders.
        border_sigma: sigma of eq. 2 in pixels.
    """

    def __init__(
        self,
        classes: int = 1,
        channels: int = 3,
        backbone: str = "",
        base: int = 32,
        depth: int = 4,
        norm: Norm = "batch",
        upsampling: Upsampling = "transposed",
        background: bool = True,
        loss: str = "cross_entropy",
        class_weights: tuple[float, ...] = (),
        border_weight: float = 0.0,
        border_sigma: float = 5.0,
    ) -> None:
        super().__init__()
        logits = self.prepare(classes, channels, background, loss, class_weights)
        self.border_weight, self.border_sigma = border_weight, border_sigma
        if backbone:
            self.backbone = decoder_pyramid(backbone, channels)
            self.decoder = UNetDecoder(self.backbone.widths)
            self.head = nn.Conv2d(self.decoder.width, logits, 3, padding=1)
            initialise(self.decoder)
            initialise(self.head)
            self.stride = self.backbone.stride
            self.context = 4 * self.stride
        else:
            self.body = UNet(channels, base, depth, norm=norm, upsampling=upsampling)
            self.head = nn.Conv2d(self.body.width, logits, 1)
            self.stride = 2**depth
            self.context = self.body.radius
            initialise(self)

    @classmethod
    def recipe(cls) -> Recipe:
        """Random crops, flips, quarter turns and magnification; a cosine schedule."""
        return Recipe(epochs=100, batch_size=8, crop=256, learning_rate=1e-3, foreground=0.5)

    @classmethod
    def recipe_for(cls, **options: Any) -> Recipe:
        """On a backbone, which has learnt from photographs, the recipe for those; else that of the paper's network."""
        return super().recipe() if options.get("backbone") else cls.recipe()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """``classes`` (B, K [+ 1], H, W) logits, background first, of images (B, C, H, W)."""
        if not hasattr(self, "backbone"):
            return {"classes": self.head(self.body(images))}
        return {"classes": at_stride(self.head(self.decoder(self.backbone(images))), self.backbone, images)}

    def targets(self, segments: Segments) -> dict[str, Tensor]:
        """Class of each pixel (-1 void) and its weight (eq. 2)."""
        targets = super().targets(segments)
        if self.border_weight > 0:
            from everymask.ops.distance import unet_weight_map

            ids = np.maximum(segments.label_map("last"), 0)
            border = unet_weight_map(ids, self.border_weight, self.border_sigma)
            targets["weight"] = torch.from_numpy(1 + border).float()
        return targets

    def foreign(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of the ``Unet`` of `segmentation_models_pytorch` under the names of this method."""
        renamed = from_smp(state, self.head.out_channels)
        block = re.compile(r"decoder\.blocks\.(\d+)\.conv([12])\.")
        return {
            block.sub(lambda m: f"decoder.levels.{m[1]}.{int(m[2]) - 1}.", name): each for name, each in renamed.items()
        }
