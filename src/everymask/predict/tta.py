"""Test-time augmentation: the mean of the network's outputs for turned and mirrored copies of the image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

import torch

from everymask.errors import InputError, unknown_name
from everymask.predict.padding import pad_reflected

if TYPE_CHECKING:
    from torch import Tensor

    from everymask.methods.base import Method

View = tuple[bool, int]
"""Left-right flip after so many counter-clockwise quarter turns."""
Augmentation = Literal["none", "mirror", "flips", "dihedral"]

VIEWS: Mapping[str, tuple[View, ...]] = {
    "none": ((False, 0),),
    "mirror": ((False, 0), (True, 0)),
    "flips": ((False, 0), (True, 0), (False, 2), (True, 2)),
    "dihedral": tuple((flip, turns) for turns in range(4) for flip in (False, True)),
}
"""The copies of each augmentation: ``mirror`` where up and down differ (photographs), ``dihedral`` where no direction
is special (microscopy, satellites), ``flips`` between the two for methods that allow no quarter turns."""


def chosen_views(tta: bool | Augmentation) -> tuple[View, ...]:
    """The copies for a value of the option `tta`; True means ``dihedral``.

    Raises:
        InputError: The name is unknown.
    """
    name = {True: "dihedral", False: "none"}.get(tta, tta)  # type: ignore[call-overload]
    if name not in VIEWS:
        raise unknown_name("test-time augmentation", str(name), VIEWS)
    return VIEWS[name]


def average_views(
    method: Method, network: Callable[[Tensor], dict[str, Tensor]], images: Tensor, views: tuple[View, ...]
) -> dict[str, Tensor]:
    """The mean over `views` of the dense outputs, as the method gives them: logits are averaged as logits.

    With a grid g above 1, output sample k stands for input pixel k g, so the samples of a flipped copy would fall
    between those of the image. One pixel of reflected border in front of each reversed axis brings them back: pixel x
    of the image is then pixel W - x of the copy, and W is a multiple of g.

    Args:
        method: Says how its outputs turn (`undo_dihedral`) and how they are sampled (`grid`, `stride`).
        network: Outputs (B, ?, H / g, W / g) of images (B, C, H, W).
        images: (B, C, H, W); H and W are multiples of the method's stride.
        views: From `chosen_views`.

    Raises:
        InputError: The outputs are not dense, so that they cannot be averaged.
    """
    if views == VIEWS["none"]:
        return network(images)
    total: dict[str, Tensor] = {}
    for flip, turns in views:
        for name, output in _outputs_of_view(method, network, images, flip, turns).items():
            total[name] = total[name] + output if name in total else output
    return {name: output / len(views) for name, output in total.items()}


def _outputs_of_view(
    method: Method, network: Callable[[Tensor], dict[str, Tensor]], images: Tensor, flip: bool, turns: int
) -> dict[str, Tensor]:
    """The outputs for one copy, turned back and sampled at the pixels of the outputs for the image itself."""
    copies = torch.rot90(images, turns, (-2, -1))
    copies = copies.flip(-1) if flip else copies
    grid, stride = method.grid, method.stride
    height, width = copies.shape[-2] // grid, copies.shape[-1] // grid
    # Turns of 90 and 180 degrees reverse the rows of the copy, those of 180 and 270 its columns; so does the flip.
    top = int(grid > 1 and turns in (1, 2))
    left = int(grid > 1 and (turns in (2, 3)) != flip)
    copies = pad_reflected(copies, top, top * (stride - 1), left, left * (stride - 1))
    expected = (copies.shape[-2] // grid, copies.shape[-1] // grid)
    outputs = network(copies)
    for name, output in outputs.items():
        if output.ndim != 4 or tuple(output.shape[-2:]) != expected:
            raise InputError(
                f"test-time augmentation needs dense outputs, but {name!r} of {type(method).__name__} has shape "
                f"{tuple(output.shape)}; predict without it"
            )
    window = (..., slice(top, top + height), slice(left, left + width))
    return method.undo_dihedral({name: output[window] for name, output in outputs.items()}, flip, turns)
