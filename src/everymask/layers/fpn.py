"""Feature pyramid network: maps of one width, each with what the coarser ones know.

Lin et al., Feature Pyramid Networks for Object Detection, CVPR 2017.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

Top = Literal["none", "subsample", "p5", "c5"]

TORCHVISION_PYRAMID = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        # Files from before torchvision 0.13 have no number for the layer of a block that has but one.
        (r"^backbone\.fpn\.inner_blocks\.(\d+)\.(weight|bias)$", r"neck.lateral.\1.0.\2"),
        (r"^backbone\.fpn\.layer_blocks\.(\d+)\.(weight|bias)$", r"neck.smooth.\1.0.\2"),
        (r"^backbone\.fpn\.inner_blocks\.", "neck.lateral."),
        (r"^backbone\.fpn\.layer_blocks\.", "neck.smooth."),
        (r"^backbone\.fpn\.extra_blocks\.p6\.", "neck.top.0."),
        (r"^backbone\.fpn\.extra_blocks\.p7\.", "neck.top.1."),
    )
)
"""Names of torchvision's pyramid, and those of a `FeaturePyramid` that a method has as ``neck``."""


class FeaturePyramid(nn.Module):
    """A pyramid from the stages of a backbone, finest first.

    Args:
        widths: Channels of each stage.
        width: Channels of every map of the pyramid.
        top: Further maps above the coarsest one: ``subsample`` one of its every other pixel (Faster R-CNN); ``p5`` two
            by convolutions of stride 2 on it (RetinaNet of torchvision, v1), ``c5`` two on the last stage of the
            backbone (RetinaNet as published, and v2); ``none``.
        norm: Batch normalisation after each convolution of the pyramid itself, as in torchvision's v2 detectors.

    Attributes:
        levels: Number of maps.
    """

    def __init__(self, widths: Sequence[int], width: int = 256, top: Top = "subsample", norm: bool = False) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(_convolution(each, width, 1, norm) for each in widths)
        self.smooth = nn.ModuleList(_convolution(width, width, 3, norm) for _ in widths)
        self._from_stage = top == "c5"
        self._subsample = top == "subsample"
        inputs = (widths[-1] if self._from_stage else width, width)
        self.top = nn.ModuleList(
            nn.Conv2d(each, width, 3, stride=2, padding=1) for each in (inputs if top in ("p5", "c5") else ())
        )
        self.levels = len(widths) + len(self.top) + self._subsample
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, stages: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, width, h, w), finest first, of the stages (B, widths[i], h, w) of a backbone."""
        merged = self.lateral[-1](stages[-1])
        maps = [self.smooth[-1](merged)]
        for index in reversed(range(len(stages) - 1)):
            side = self.lateral[index](stages[index])
            merged = side + functional.interpolate(merged, size=side.shape[-2:], mode="nearest")
            maps.insert(0, self.smooth[index](merged))
        if self._subsample:
            maps.append(functional.max_pool2d(maps[-1], 1, stride=2))
        if len(self.top):
            sixth = self.top[0](stages[-1] if self._from_stage else maps[-1])
            maps += [sixth, self.top[1](functional.relu(sixth))]
        return maps


def _convolution(inputs: int, outputs: int, size: int, norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=not norm)]
    return nn.Sequential(*layers, nn.BatchNorm2d(outputs)) if norm else nn.Sequential(*layers)
