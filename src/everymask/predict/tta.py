"""Test-time augmentation: the mean of the network's outputs for turned, mirrored and magnified copies of the image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch.nn import functional

from everymask.errors import InputError, unknown_name
from everymask.methods.semantic.common import SemanticMethod
from everymask.predict.averaging import from_average, to_average
from everymask.predict.padding import pad_reflected
from everymask.types import Task

if TYPE_CHECKING:
    from torch import Tensor

    from everymask.methods.base import Method

Network = Callable[["Tensor"], dict[str, "Tensor"]]


class View(NamedTuple):
    """A copy of the image.

    Args:
        flip: Mirrored left to right, after
        turns: so many counter-clockwise quarter turns, after
        scale: magnification by this factor.
    """

    flip: bool
    turns: int
    scale: float = 1.0


Augmentation = Literal["none", "mirror", "flips", "dihedral", "multiscale"]

SCALES = (0.75, 1.0, 1.25)
"""Magnifications of ``multiscale``: the middle ones of Chen et al. 2017 (DeepLab v3), sec. 4.1."""

VIEWS: Mapping[str, tuple[View, ...]] = {
    "none": (View(False, 0),),
    "mirror": (View(False, 0), View(True, 0)),
    "flips": (View(False, 0), View(True, 0), View(False, 2), View(True, 2)),
    "dihedral": tuple(View(flip, turns) for turns in range(4) for flip in (False, True)),
    "multiscale": tuple(View(flip, 0, scale) for scale in SCALES for flip in (False, True)),
}
"""The copies of each augmentation: ``mirror`` where up and down differ (photographs), ``dihedral`` where no direction
is special (microscopy, satellites), ``flips`` between the two for methods that allow no quarter turns, ``multiscale``
for photographs and methods whose outputs are classes: the mirrored pair at `SCALES`."""


def chosen_views(tta: bool | Augmentation) -> tuple[View, ...]:
    """The copies for a value of the option `tta`; True means ``dihedral``.

    Raises:
        InputError: The name is unknown.
    """
    name = {True: "dihedral", False: "none"}.get(tta, tta)  # type: ignore[call-overload]
    if name not in VIEWS:
        raise unknown_name("test-time augmentation", str(name), VIEWS)
    return VIEWS[name]


def check_views(method: Method, views: tuple[View, ...]) -> None:
    """Makes sure that the outputs for magnified copies can be compared with those for the image.

    Classes can. A method whose outputs are lengths may declare how they change by ``undo_scale(outputs, factor) ->
    outputs``: from outputs for a copy magnified by `factor`, brought to the places of those for the image itself, the
    values for the image.

    Raises:
        InputError: They cannot.
    """
    if any(view.scale != 1 for view in views):
        if Task.CLASSIFICATION in method.tasks:
            raise InputError(
                "a classifier brings every image to one size, so that multiscale changes nothing; use mirror"
            )
        boxes = method.learns_from != "labels"
        if not boxes and not isinstance(method, SemanticMethod) and not hasattr(method, "undo_scale"):
            raise InputError(
                f"{type(method).__name__} predicts lengths in pixels, which are others at another scale, so multiscale "
                "test-time augmentation is for semantic methods; use mirror, flips or dihedral"
            )


def average_views(method: Method, network: Network, images: Tensor, views: tuple[View, ...]) -> dict[str, Tensor]:
    """The mean over `views` of the dense outputs, in the form that the method gives them.

    Args:
        method: Says how its outputs turn (`undo_dihedral`) and how they are sampled (`grid`, `stride`).
        network: Outputs (B, ?, H / g, W / g) of images (B, C, H, W); of classifiers (B, K).
        images: (B, C, H, W); H and W are multiples of the method's stride.
        views: From `chosen_views`.

    Raises:
        InputError: The outputs are not dense, so that they cannot be averaged.
    """
    if views == VIEWS["none"]:
        return network(images)
    return from_average(method, mean_of_views(method, network, images, views))


@torch.inference_mode()
def mean_of_views(method: Method, network: Network, images: Tensor, views: tuple[View, ...]) -> dict[str, Tensor]:
    """As `average_views`, but in the form in which outputs are averaged (see `everymask.predict.averaging`).

    With a grid g above 1, output sample k stands for input pixel k g, so the samples of a flipped copy would fall
    between those of the image. One pixel of reflected border in front of each reversed axis brings them back: pixel x
    of the image is then pixel W - x of the copy, and W is a multiple of g.
    """
    total: dict[str, Tensor] = {}
    for view in views:
        outputs = _outputs_of_view(method, network, images, view)
        for name, output in to_average(method, outputs).items():
            total[name] = total[name] + output if name in total else output
    return {name: output / len(views) for name, output in total.items()}


def _outputs_of_view(method: Method, network: Network, images: Tensor, view: View) -> dict[str, Tensor]:
    """The outputs for one copy, turned back and sampled at the pixels of the outputs for the image itself."""
    flip, turns, scale = view
    if Task.CLASSIFICATION in method.tasks:
        turned = torch.rot90(images, turns, (-2, -1))
        return network(turned.flip(-1) if flip else turned)
    grid, stride = method.grid, method.stride
    size = (images.shape[-2] // grid, images.shape[-1] // grid)
    if scale != 1:
        images = _magnified(images, scale)
    magnified = images.shape[-2:]
    images = pad_reflected(images, bottom=-magnified[0] % stride, right=-magnified[1] % stride)
    copies = torch.rot90(images, turns, (-2, -1))
    copies = copies.flip(-1) if flip else copies
    height, width = copies.shape[-2] // grid, copies.shape[-1] // grid
    # Turns of 90 and 180 degrees reverse the rows of the copy, those of 180 and 270 its columns; so does the flip.
    top = int(grid > 1 and turns in (1, 2))
    left = int(grid > 1 and (turns in (2, 3)) != flip)
    copies = pad_reflected(copies, top, top * (stride - 1), left, left * (stride - 1))
    expected = (copies.shape[-2] // grid, copies.shape[-1] // grid)
    outputs = network(copies)
    for name, output in outputs.items():
        if output.ndim != images.ndim or tuple(output.shape[-2:]) != expected:
            raise InputError(
                f"test-time augmentation needs dense outputs, but {name!r} of {type(method).__name__} has shape "
                f"{tuple(output.shape)}; predict without it"
            )
    window = (..., slice(top, top + height), slice(left, left + width))
    undone = method.undo_dihedral({name: output[window] for name, output in outputs.items()}, flip, turns)
    if scale == 1:
        return undone
    sampled = {name: _resampled(output, size, magnified, grid) for name, output in undone.items()}
    undo_scale: Callable[[dict[str, Tensor], float], dict[str, Tensor]] | None = getattr(method, "undo_scale", None)
    return sampled if undo_scale is None else undo_scale(sampled, scale)


def _magnified(images: Tensor, scale: float) -> Tensor:
    """Images (B, C, round(scale H), round(scale W)), smoothed where they shrink."""
    size = [max(1, round(scale * side)) for side in images.shape[-2:]]
    return functional.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=scale < 1)


def _resampled(output: Tensor, size: tuple[int, int], magnified: tuple[int, ...], grid: int) -> Tensor:
    """Outputs for a copy of `magnified` pixels, interpolated at the `size` samples of the image.

    Sample k of both stands for pixel k g, whose middle lies at (k g + 1/2) / H of the height of the image.
    """
    if grid == 1:
        inside = output[..., : magnified[0], : magnified[1]]
        return functional.interpolate(inside, size=size, mode="bilinear", align_corners=False)
    axes = []
    for samples, length, available in zip(size, magnified, output.shape[-2:], strict=True):
        middles = (torch.arange(samples, device=output.device) * grid + 0.5) * (length / (samples * grid))
        place = (middles - 0.5) / grid
        axes.append((2 * place + 1) / available - 1)  # as grid_sample counts: -1..1 between the outer edges
    rows, columns = torch.meshgrid(axes[0], axes[1], indexing="ij")
    places = torch.stack([columns, rows], -1).to(output.dtype).expand(len(output), -1, -1, -1)
    return functional.grid_sample(output, places, mode="bilinear", padding_mode="border", align_corners=False)
