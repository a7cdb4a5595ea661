"""U-Net with a border class: the baseline that every method for touching objects is compared with.

Ronneberger, Fischer, Brox, U-Net: Convolutional Networks for Biomedical Image Segmentation, MICCAI 2015, with the three
classes of Caicedo et al., Evaluation of Deep Learning Strategies for Nucleus Segmentation in Fluorescence Images,
Cytometry A 2019: background, interior and border of objects. Interiors are separate where objects touch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from everymask.errors import InputError
from everymask.layers.unet import Dimensions, Norm
from everymask.losses import cross_entropy
from everymask.methods.bottom_up.folded_maps import FoldedMaps, Unfold
from everymask.methods.recipe import Recipe
from everymask.types import LabelMap, Segments
from everymask.types.geometry import VOID


class BorderUNet(FoldedMaps):
    """Background, interior and border from a U-Net; connected interiors grow back into their borders.

    The thresholds: a pixel belongs to an object if background is less probable than 1 - ``foreground``, and to the
    interior of one if that is more probable than ``interior``.

    Args:
        classes: Number of categories K. With more than one a class head is added.
        channels: Input channels C.
        border_width: Object pixels at most so many pixels from the outside of their object are border.
        border_weight: Weight of border pixels in the loss, above 0; all others have 1.
        fold: Side in pixels of the cells that the network works on, 1, 2 or 4; 2 takes a quarter of the time of 1.
        base: Features of the first U-Net level.
        depth: Poolings of the U-Net.
        norm: Normalisation.
        backbone: A network of timm as the encoder, such as ``resnet34``; empty for the U-Net.
        dimensions: 2 for images, 3 for volumes.
        anisotropy: Of volumes, the distance between planes in pixels.
        flat: Of volumes, the first poolings that leave the planes alone, where these lie further apart than pixels.
    """

    tunable: ClassVar[Mapping[str, tuple[float, ...]]] = {"foreground": (0.2, 0.8), "interior": (0.2, 0.9)}

    def __init__(
        self,
        classes: int = 1,
        channels: int = 3,
        border_width: float = 1.5,
        border_weight: float = 2.0,
        fold: int = 2,
        base: int = 32,
        depth: int = 3,
        norm: Norm = "batch",
        backbone: str = "",
        dimensions: Dimensions = 2,
        anisotropy: float = 1.0,
        flat: int = 0,
    ) -> None:
        super().__init__()
        if not border_width >= 1:
            raise InputError(f"border_width must be at least 1 pixel, got {border_width}")
        if not border_weight > 0:
            raise InputError(f"border_weight must be above 0, got {border_weight}")
        self.border_width, self.border_weight = border_width, border_weight
        features = self.prepare(
            classes, channels, fold, base, depth, norm, backbone,
            dimensions=dimensions, anisotropy=anisotropy, flat=flat,
        )  # fmt: skip
        self.head = Unfold(features, 3, fold, dimensions)
        self.thresholds = {"foreground": 0.5, "interior": 0.5}

    @classmethod
    def recipe(cls) -> Recipe:
        """Crops and augmentation as for the other methods of this family."""
        return Recipe(epochs=100, batch_size=8, crop=256, learning_rate=1e-3, noise=0.02, contrast=(0.6, 2.0))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Outputs of images (B, C, H, W), or of volumes (B, C, D, H, W), whose maps are (D, H, W) likewise.

        Returns:
            ``parts`` (B, 3, H, W) logits of background, interior and border; with several categories ``category``
            (B, K + 1, H, W) logits, background first.
        """
        (features,) = self.features(images)
        return {"parts": self.head(features)} | self.category_logits(features)

    def targets(self, segments: Segments) -> dict[str, Tensor]:
        """``parts`` (H, W) int64 of 0 background, 1 interior, 2 border, -1 void; validity; classes if several."""
        from everymask.ops.neighbour_distance import border_classes

        ids = self.objects(segments)
        parts = np.where(ids == VOID, VOID, border_classes(ids, self.border_width, self.spacing))
        return {"parts": torch.from_numpy(parts)} | self.common_targets(segments, ids)

    def loss(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Cross-entropy with the border's weight, mean over the pixels that are not void."""
        parts = targets["parts"]
        weight = torch.where(parts == 2, self.border_weight, 1.0)
        return {"parts": cross_entropy(outputs["parts"], parts, weight)} | self.category_loss(outputs, targets)

    def decode(self, outputs: Mapping[str, Tensor], sizes: Sequence[tuple[int, ...]]) -> list[Segments]:
        """Connected interiors flood the foreground; the score of an object is its mean foreground probability."""
        from everymask.ops.watershed import mean_inside, seeds_of, watershed

        probabilities = outputs["parts"].float().softmax(1)
        found = []
        for i, size in enumerate(sizes):
            background, interior, _ = probabilities[i][:, *map(slice, size)].cpu().numpy()
            foreground = 1 - background
            mask = foreground > self.thresholds["foreground"]
            ids = watershed(-interior, seeds_of(mask & (interior > self.thresholds["interior"])), mask)
            score = mean_inside(ids, int(ids.max(initial=0)), foreground)
            category = self.object_classes(outputs, i, ids)
            found.append(Segments(size, category, LabelMap(ids), score=np.clip(score, 0, 1)))
        return found
