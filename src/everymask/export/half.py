"""Model files of half the size: weights as 16-bit floats, which become 32-bit again when the file is read."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

from everymask.errors import InputError
from everymask.export.example import example_images
from everymask.weights import halved

if TYPE_CHECKING:
    from everymask.methods.base import Method


def difference_of_half(method: Method) -> dict[str, float]:
    """For each output the largest difference that 16-bit weights make on a random image, relative to its range.

    Args:
        method: Trained; it stays as it is.

    Raises:
        InputError: A weight or an output is not finite.
    """
    rounded = copy.deepcopy(method).eval().float().cpu()
    images = example_images(rounded)
    with torch.inference_mode():
        wanted = rounded(images)
        rounded.load_state_dict(halved(rounded.state_dict()))
        found = rounded(images)
    worst = {}
    for name, output in wanted.items():
        difference, scale = (found[name] - output).abs().max(), output.abs().max()
        if not torch.isfinite(difference):
            raise InputError(
                f"the output {name} is not finite, with 32-bit weights or with 16-bit ones; train it again"
            )
        worst[name] = float(difference / scale) if scale else float(difference)
    return worst
