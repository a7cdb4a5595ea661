"""The semantic branch of Panoptic FPN: a class for every pixel from a feature pyramid.

Kirillov, Girshick, He, Dollar, Panoptic Feature Pyramid Networks, CVPR 2019, sec. 3 and fig. 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn
from torch.nn import functional


class SemanticBranch(nn.Module):
    """Brings every map of a pyramid to the size of the finest one, step by step, and adds them up.

    A step is a 3 x 3 convolution, group normalisation, a rectifier and bilinear interpolation to twice the size; the
    finest map has one step without interpolation.

    Args:
        width: Channels of the maps of the pyramid.
        hidden: Channels of the branch, 128 in the paper.
        classes: Of the pixels.
        levels: Maps used, finest first; 4 in the paper.
    """

    def __init__(self, width: int, hidden: int, classes: int, levels: int = 4) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Sequential(*(_step(hidden if number else width, hidden) for number in range(max(1, level))))
            for level in range(levels)
        )
        self.logits = nn.Conv2d(hidden, classes, 1)
        # Detectron's variance of 2 / classes makes the first losses of data with few classes huge.
        nn.init.normal_(self.logits.weight, std=1e-2)
        nn.init.zeros_(self.logits.bias)  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Logits (B, classes, h, w) float32 at the size of the finest map.

        Args:
            maps: (B, width, h, w) of each level, finest first; levels above those used are passed over.
        """
        total: Tensor | None = None
        for level, (steps, features) in enumerate(zip(self.levels, maps, strict=False)):
            for number, step in enumerate(cast("nn.Sequential", steps), 1):
                features = step(features)
                if level:
                    # To the size of the next finer map, which is twice its own but for images of odd sides.
                    size = maps[level - number].shape[-2:]
                    features = functional.interpolate(features, size=size, mode="bilinear", align_corners=False)
            total = features if total is None else total + features
        return self.logits(total).float()


def _step(inputs: int, outputs: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, nn.GroupNorm(math.gcd(32, outputs), outputs), nn.ReLU(inplace=True))
