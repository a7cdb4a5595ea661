"""Res-U-Net: a U-Net of residual units.

Zhang, Liu, Wang, Road Extraction by Deep Residual U-Net, IEEE Geoscience and Remote Sensing Letters 2018.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from everymask.errors import InputError
from everymask.layers.unet import initialise
from everymask.methods.recipe import Recipe
from everymask.methods.semantic.common import SemanticMethod


class ResUNet(SemanticMethod):
    """A class for every pixel from a U-Net of residual units with strides instead of pooling.

    Args:
        classes: Number of categories K.
        channels: Input channels C.
        base: Features of the first level, doubled on each further one; the paper has 64.
        depth: Number of times that the resolution is halved; the paper has 3.
        background: Whether pixels of no segment are a class of their own (index 0 of the outputs); otherwise they are
            void.
        loss: A loss, or a sum of several: ``0.5*cross_entropy + 0.5*dice``.
        class_weights: Factor of each class in losses that know one, background first where it is a class; none for 1.
    """

    def __init__(
        self,
        classes: int = 1,
        channels: int = 3,
        base: int = 64,
        depth: int = 3,
        background: bool = True,
        loss: str = "cross_entropy",
        class_weights: tuple[float, ...] = (),
    ) -> None:
        super().__init__()
        if base < 1 or depth < 1:
            raise InputError(f"a Res-U-Net needs base and depth of at least 1, got base {base} and depth {depth}")
        logits = self.prepare(classes, channels, background, loss, class_weights)
        widths = [base * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(
            ResidualUnit(widths[i - 1] if i else channels, widths[i], stride=2 if i else 1, first=i == 0)
            for i in range(depth + 1)
        )
        self.up = nn.ModuleList(ResidualUnit(widths[i] + widths[i + 1], widths[i]) for i in range(depth))
        self.head = nn.Conv2d(base, logits, 1)
        initialise(self)
        self.stride = 2**depth
        # Each 3 x 3 convolution reaches a pixel of its resolution further, and nearest neighbours half a coarse one.
        self.context = 4 * sum(2**level for level in range(depth + 1)) + 2**depth

    @classmethod
    def recipe(cls) -> Recipe:
        """Random crops, flips, quarter turns and magnification, as for views from above; a cosine schedule."""
        return Recipe(epochs=100, batch_size=8, crop=256, learning_rate=1e-3, foreground=0.5)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """``classes`` (B, K [+ 1], H, W) logits, background first, of images (B, C, H, W)."""
        maps = [images]
        for unit in self.down:
            maps.append(unit(maps[-1]))
        features = maps.pop()
        for unit in reversed(self.up):
            features = functional.interpolate(features, scale_factor=2.0, mode="nearest")
            features = unit(torch.cat([features, maps.pop()], dim=1))
        return {"classes": self.head(features)}


class ResidualUnit(nn.Module):
    """Two convolutions, each after normalisation and ReLU, beside an identity (He et al. 2016b, fig. 4e).

    Where the shape changes the identity is a 1 x 1 convolution (projection shortcut; He et al. 2016a, option B).

    Args:
        inputs: Channels.
        outputs: Channels.
        stride: Of the first convolution.
        first: Whether it takes the image itself, which is neither normalised nor cut off below 0 (fig. 1 of the paper).
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, first: bool = False) -> None:
        super().__init__()
        before: list[nn.Module] = [] if first else [nn.BatchNorm2d(inputs), nn.ReLU(inplace=True)]
        self.body = nn.Sequential(
            *before,
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1),
        )
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """(B, outputs, H / stride, W / stride) of (B, inputs, H, W)."""
        result: Tensor = self.body(features) + self.shortcut(features)
        return result
