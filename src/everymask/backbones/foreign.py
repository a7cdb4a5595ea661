"""Names of tensors in the files of other programs, as timm calls them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import Tensor

Renaming = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]

_STAGES = (1, 2, 2, 3, 3, 4, 1)
"""Blocks in each stage of EfficientNet-Lite0 (Tan and Le 2019, table 1)."""


def efficientnet_lite(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names of the packages `efficientnet-lite-pytorch` and `EfficientNet-PyTorch`, for the sizes without a factor.

    Their blocks are numbered throughout, and their convolutions are called by what they do.
    """
    places = [(stage, block) for stage, count in enumerate(_STAGES) for block in range(count)]
    renamed = {}
    for name, tensor in state.items():
        found = re.fullmatch(r"_blocks\.(\d+)\.(_\w+)\.(\w+)", name)
        if found is None:
            plain = {
                "_conv_stem": "conv_stem",
                "_bn0": "bn1",
                "_conv_head": "conv_head",
                "_bn1": "bn2",
                "_fc": "classifier",
            }
            module, _, leaf = name.partition(".")
            renamed[f"{plain.get(module, module)}.{leaf}"] = tensor
            continue
        number, module, leaf = int(found[1]), found[2], found[3]
        if number >= len(places):
            return dict(state)
        stage, block = places[number]
        expands = f"_blocks.{number}._expand_conv.weight" in state
        # A block without expansion begins with its depthwise convolution, and its layers are counted from there.
        modules = (
            {
                "_expand_conv": "conv_pw",
                "_bn0": "bn1",
                "_depthwise_conv": "conv_dw",
                "_bn1": "bn2",
                "_project_conv": "conv_pwl",
                "_bn2": "bn3",
            }
            if expands
            else {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
        )
        renamed[f"blocks.{stage}.{block}.{modules.get(module, module)}.{leaf}"] = tensor
    return renamed


RENAMINGS: tuple[Renaming, ...] = (efficientnet_lite,)
"""Tried one after the other, after the names as they are."""
