"""Classification of whole images by any network of timm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from everymask.backbones.foreign import TRANSLATIONS
from everymask.backbones.whole import WholeBackbone
from everymask.errors import InputError
from everymask.losses.expression import PixelLoss
from everymask.methods.base import Method
from everymask.methods.recipe import Recipe
from everymask.types import Segments, Task


class Classifier(Method):
    """A class for the whole image.

    Args:
        classes: Number of categories K.
        channels: Input channels C.
        backbone: Any network of timm, such as ``resnet50`` or ``vit_small_patch16_224``, with its own pooling.
        size: Height and width that every image is brought to; best the `crop` of the training.
        dropout: Share of the pooled features that are dropped in training.
        loss: A loss, or a sum of several: ``cross_entropy(smoothing=0.1)``.
    """

    tasks: ClassVar[frozenset[Task]] = frozenset({Task.CLASSIFICATION})
    metric: ClassVar[tuple[str, str]] = ("classification", "top1")
    logit_layers: ClassVar[tuple[str, ...]] = ("head",)

    def __init__(
        self,
        classes: int = 1,
        channels: int = 3,
        backbone: str = "resnet50",
        size: int = 224,
        dropout: float = 0.1,
        loss: str = "cross_entropy",
    ) -> None:
        super().__init__()
        if size < 1:
            raise InputError(f"size must be at least 1 pixel, got {size}")
        self.classes, self.channels, self.size = classes, channels, size
        self.criterion = PixelLoss(loss)
        self.thresholds = {}
        self.backbone = WholeBackbone(backbone, channels, size)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.backbone.widths[0], classes)

    @classmethod
    def recipe(cls) -> Recipe:
        """Random windows of an eighth of the image or more, mirrored; label images of 224 x 224 pixels."""
        return Recipe(
            epochs=60,
            batch_size=32,
            crop=224,
            foreground=0.0,
            learning_rate=1e-3,
            backbone_rate=0.3,
            weight_decay=5e-2,
            schedule="cosine",
            warmup=3.0,
            flip="mirror",
            scale=(1.0, 2.8),
            brightness=0.15,
            contrast=(0.7, 1.4),
            colour=0.05,
            noise=0.0,
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """``classes`` (B, K) logits of images (B, C, H, W), which are brought to `size` whatever their proportions."""
        size = (self.size, self.size)
        if torch.compiler.is_exporting() or images.shape[-2:] != size:
            images = functional.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)
        return {"classes": self.head(self.dropout(self.backbone(images)[0]))}

    def targets(self, segments: Segments) -> dict[str, Tensor]:
        """``class`` () int64: the one class of the image.

        Raises:
            InputError: There is not one, or there is but one class in the data.
        """
        if self.classes < 2:
            raise InputError("the data have one class, which leaves nothing to tell apart; add images of another class")
        if len(segments) != 1:
            raise InputError(
                f"the image has {len(segments)} classes, but a classifier learns one for each; leave the image out"
            )
        return {"class": torch.tensor(int(segments.category[0]))}

    def loss(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The terms of the loss."""
        # An image is a single position.
        return self.criterion(outputs["classes"][..., None], targets["class"][..., None])

    def decode(self, outputs: Mapping[str, Tensor], sizes: Sequence[tuple[int, ...]]) -> list[Segments]:
        """One segment without geometry for each class, the most probable first, scored by its probability."""
        found = []
        for logits, size in zip(outputs["classes"], sizes, strict=True):
            probability = logits.double().softmax(0).cpu()
            order = probability.argsort(descending=True, stable=True)
            found.append(Segments(size, order.numpy(), score=probability[order].numpy()))
        return found

    def foreign(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of a classifier of timm or torchvision under the names of this method."""
        body, last = self.backbone.body.state_dict().keys(), f"{self.backbone.last}."
        names = [*body, f"{last}weight", f"{last}bias"]
        for found in (state, *(translate(state, names) for translate in TRANSLATIONS)):
            if found is not None and body <= found.keys():
                return {
                    name.replace(last, "head.", 1) if name.startswith(last) else f"backbone.body.{name}": value
                    for name, value in found.items()
                }
        return dict(state)
