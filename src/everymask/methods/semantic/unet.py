"""U-Net for semantic segmentation.

Ronneberger, Fischer, Brox, U-Net: Convolutional Networks for Biomedical Image Segmentation, MICCAI 2015.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from everymask.errors import InputError
from everymask.layers.unet import Norm, UNet, Upsampling, initialise
from everymask.losses import cross_entropy
from everymask.methods.base import Method
from everymask.methods.recipe import Recipe
from everymask.types import LabelMap, Segments, Task
from everymask.types.geometry import VOID


class UNetSegmentation(Method):
    """A class for every pixel from a U-Net, with the paper's weights that hold touching objects apart.

    Args:
        classes: Number of categories K.
        channels: Input channels C.
        base: Features of the first level; the paper has 64.
        depth: Poolings; the paper has 4.
        norm: Normalisation; the paper has none.
        upsampling: ``transposed`` as in the paper or ``nearest``.
        background: Whether pixels of no segment are a class of their own (index 0 of the outputs). Without it such
            pixels are void, as in street scenes whose categories cover the image.
        border_weight: w0 of the paper's eq. 2 (10 there), added to the weight of pixels between objects; 0 switches it
            off. Only annotations that tell the objects of a category apart have such borders.
        border_sigma: sigma of eq. 2 in pixels.
    """

    tasks: ClassVar[frozenset[Task]] = frozenset({Task.SEMANTIC})
    metric: ClassVar[tuple[str, str]] = ("semantic", "miou")

    def __init__(
        self,
        classes: int = 1,
        channels: int = 3,
        base: int = 32,
        depth: int = 4,
        norm: Norm = "batch",
        upsampling: Upsampling = "transposed",
        background: bool = True,
        border_weight: float = 0.0,
        border_sigma: float = 5.0,
    ) -> None:
        super().__init__()
        if classes + background < 2:
            raise InputError("one category without background leaves nothing to tell apart; set background=True")
        self.classes, self.channels, self.background = classes, channels, background
        self.border_weight, self.border_sigma = border_weight, border_sigma
        self.body = UNet(channels, base, depth, norm=norm, upsampling=upsampling)
        self.head = nn.Conv2d(self.body.width, classes + background, 1)
        self.stride = 2**depth
        self.context = self.body.radius
        self.thresholds = {}
        initialise(self)

    @classmethod
    def recipe(cls) -> Recipe:
        """Random crops, flips, quarter turns and magnification; a cosine schedule."""
        return Recipe(epochs=100, batch_size=8, crop=256, learning_rate=1e-3, foreground=0.5)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """``classes`` (B, K [+ 1], H, W) logits, background first, of images (B, C, H, W)."""
        return {"classes": self.head(self.body(images))}

    def targets(self, segments: Segments) -> dict[str, Tensor]:
        """Class of each pixel (-1 void) and its weight."""
        ids = segments.label_map("last")
        table = np.concatenate([[VOID, 0 if self.background else VOID], segments.category + self.background])
        targets = {"classes": torch.from_numpy(table[ids + 1].astype(np.int64))}
        if self.border_weight > 0:
            from everymask.ops.distance import unet_weight_map

            border = unet_weight_map(np.maximum(ids, 0), self.border_weight, self.border_sigma)
            targets["weight"] = torch.from_numpy(1 + border).float()
        return targets

    def loss(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Softmax cross-entropy, weighted at the borders between objects (eq. 1 and 2)."""
        return {"cross_entropy": cross_entropy(outputs["classes"], targets["classes"], targets.get("weight"))}

    def decode(self, outputs: Mapping[str, Tensor], sizes: Sequence[tuple[int, int]]) -> list[Segments]:
        """The most probable class of each pixel; one segment for each class that occurs."""
        found = []
        for logits, (height, width) in zip(outputs["classes"], sizes, strict=True):
            probabilities = logits[:, :height, :width].float().softmax(0)
            best, classes = probabilities.max(0)
            best, classes = best.cpu().numpy(), classes.cpu().numpy()
            classes = classes - self.background  # -1 is background
            present = np.unique(classes[classes >= 0])
            table = np.zeros(self.classes + 1, np.int32)
            table[present + 1] = np.arange(1, len(present) + 1)
            ids = table[classes + 1]
            counts = np.bincount(ids.ravel(), minlength=len(present) + 1)
            sums = np.bincount(ids.ravel(), weights=best.ravel(), minlength=len(present) + 1)
            score = sums[1:] / np.maximum(counts[1:], 1)
            found.append(Segments((height, width), present, LabelMap(ids), score=score))
        return found
