"""PSPNet: the features of a backbone beside their means over parts of the image.

Zhao, Shi, Qi, Wang, Jia, Pyramid Scene Parsing Network, CVPR 2017.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar, Literal

from torch import Tensor, nn

from everymask.backbones.pyramid import Backbone
from everymask.errors import InputError
from everymask.layers.pyramid_pooling import PyramidPooling
from everymask.layers.unet import convolution, initialise
from everymask.methods.foreign import from_smp, is_smp
from everymask.methods.semantic.common import SemanticMethod, fcn_head, resized


class PSPNet(SemanticMethod):
    """A class for every pixel from features beside their means over 1, 4, 9 and 36 parts of the image.

    Args:
        classes: Number of categories K.
        channels: Input channels C.
        backbone: Any network of timm, such as ``resnet50``.
        depth: Stages of the backbone, each of which halves the resolution: 5 for all of them as in the paper; 3 keeps
            the fast first ones, as `segmentation_models_pytorch` does.
        output_stride: Input pixels per feature of the last stage of five: 8 or 16 dilate the last stages; 32 leaves the
            backbone as it is, for networks that cannot be dilated. With less depth nothing is dilated.
        width: Channels of the head.
        dropout: Share of the head's channels that are dropped in training.
        auxiliary: Whether the stage before the last has a head of its own in training, as in the paper.
        smp: Interpolate with aligned corners as `segmentation_models_pytorch` does, for its weights. Tiles join less
            exactly then.
        background: Whether pixels of no segment are a class of their own (index 0 of the outputs); otherwise they are
            void.
        loss: A loss, or a sum of several: ``0.5*cross_entropy + 0.5*dice``.
        class_weights: Factor of each class in losses that know one, background first where it is a class; none for 1.
    """

    logit_layers: ClassVar[tuple[str, ...]] = ("head", "auxiliary.4")

    def __init__(
        self,
        classes: int = 1,
        channels: int = 3,
        backbone: str = "resnet50",
        depth: Literal[3, 4, 5] = 5,
        output_stride: Literal[8, 16, 32] = 8,
        width: int = 512,
        dropout: float = 0.2,
        auxiliary: bool = True,
        smp: bool = False,
        background: bool = True,
        loss: str = "cross_entropy",
        class_weights: tuple[float, ...] = (),
    ) -> None:
        super().__init__()
        logits = self.prepare(classes, channels, background, loss, class_weights)
        self.depth, self.smp = depth, smp
        stages = (2 ** (depth - 1), 2**depth)
        self.backbone = Backbone(backbone, channels, stages, output_stride if depth == 5 else 32)
        before, last = self.backbone.widths
        self.pooling = PyramidPooling(last, align_corners=smp)
        self.fusion = convolution(self.pooling.width, width, "batch", kernel=1)
        self.dropout = nn.Dropout2d(dropout)
        self.head = nn.Conv2d(width, logits, 3, padding=1)
        self.auxiliary = fcn_head(before, logits) if auxiliary else None
        initialise(self.pooling)
        initialise(self.fusion)
        self.stride = self.backbone.stride
        self.context = 128

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """``classes`` (B, K [+ 1], H, W) logits of images (B, C, H, W); in training also ``auxiliary``, coarser."""
        before, last = self.backbone(images)
        features = self.dropout(self.fusion(self.pooling(last)))
        outputs = {"classes": resized(self.head(features), images.shape[-2:], self.smp)}
        if self.training and self.auxiliary is not None:
            outputs["auxiliary"] = self.auxiliary(before)
        return outputs

    def foreign(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of the ``PSPNet`` of `segmentation_models_pytorch` under the names of this method.

        Raises:
            InputError: The method interpolates otherwise, so that these weights would not mean quite the same.
        """
        if is_smp(state) and not self.smp:
            raise InputError("these are weights of segmentation_models_pytorch; make the method with smp=True for them")
        renamed = {}
        for name, value in from_smp(state, self.head.out_channels).items():
            name = re.sub(r"^decoder\.psp\.blocks\.(\d+)\.pool\.1\.", r"pooling.blocks.\1.", name)
            name = re.sub(r"^decoder\.conv\.", "fusion.", name)
            stage = re.match(r"backbone\.body\.layer(\d)\.", name)
            # Its ResNets keep the stages that they do not use; stage 1 is the stem, layer 1 stage 2.
            if stage is None or int(stage[1]) < self.depth:
                renamed[name] = value
        return renamed
