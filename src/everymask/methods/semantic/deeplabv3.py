"""DeepLab v3: dilated features and atrous spatial pyramid pooling.

Chen, Papandreou, Schroff, Adam, Rethinking Atrous Convolution for Semantic Image Segmentation, 2017.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from torch import Tensor, nn

from everymask.backbones.pyramid import Backbone
from everymask.layers.aspp import ASPP, atrous_rates, dilated_convolution
from everymask.methods.foreign import from_torchvision
from everymask.methods.semantic.common import SemanticMethod, fcn_head, resized


class DeepLabV3(SemanticMethod):
    """A class for every pixel from features of several dilations; the network of torchvision, whose weights load.

    Args:
        classes: Number of categories K.
        channels: Input channels C.
        backbone: Any network of timm, such as ``resnet50``.
        output_stride: Input pixels per feature of the last stage: 8 or 16 dilate the last stages of the backbone; 32
            leaves it as it is, for networks that cannot be dilated.
        rates: Dilations of the pooling; none for those of the paper: 6, 12, 18 at output stride 16, twice as many at 8.
        auxiliary: Whether the stage before the last has a head of its own in training.
        background: Whether pixels of no segment are a class of their own (index 0 of the outputs); otherwise they are
            void.
        loss: A loss, or a sum of several: ``0.5*cross_entropy + 0.5*dice``.
        class_weights: Factor of each class in losses that know one, background first where it is a class; none for 1.
    """

    logit_layers: ClassVar[tuple[str, ...]] = ("head.4", "auxiliary.4")

    def __init__(
        self,
        classes: int = 1,
        channels: int = 3,
        backbone: str = "resnet50",
        output_stride: Literal[8, 16, 32] = 8,
        rates: tuple[int, ...] = (),
        auxiliary: bool = True,
        background: bool = True,
        loss: str = "cross_entropy",
        class_weights: tuple[float, ...] = (),
    ) -> None:
        super().__init__()
        logits = self.prepare(classes, channels, background, loss, class_weights)
        self.backbone = Backbone(backbone, channels, (16, 32), output_stride)
        before, last = self.backbone.widths
        chosen = rates or atrous_rates(output_stride)
        self.head = nn.Sequential(ASPP(last, 256, chosen), *dilated_convolution(256, 256), nn.Conv2d(256, logits, 1))
        self.auxiliary = fcn_head(before, logits) if auxiliary else None
        self.stride = self.backbone.stride
        self.context = int(max(chosen) * self.backbone.reductions[-1])

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """``classes`` (B, K [+ 1], H, W) logits of images (B, C, H, W); in training also ``auxiliary``, coarser."""
        before, last = self.backbone(images)
        outputs = {"classes": resized(self.head(last), images.shape[-2:])}
        if self.training and self.auxiliary is not None:
            outputs["auxiliary"] = self.auxiliary(before)
        return outputs

    def foreign(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of torchvision's ``deeplabv3_*`` under the names of this method."""
        return from_torchvision(state)
