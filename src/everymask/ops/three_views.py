"""Outputs for the planes of a volume in its three directions, joined to outputs for the volume.

Stringer et al., "Cellpose: a generalist algorithm for cellular segmentation", Nature Methods 2021, Methods; official
program `cellpose` (BSD-3), `core.run_3D`. A network for images sees every plane of a volume: those of y and x, those of
z and x, and those of z and y. Each axis is seen by two of the three views; the flow along it is the mean of both.

The official program takes sums, of flows and of logits. A sum of flows makes steps of up to two pixels, more than
interpolation can bear: points swing around the middle of their object for ever, and do not gather there. Measured on
perfect outputs for 71 touching ellipsoids, the accuracy at an IoU of 0.9 is 0.28 by sums in the official program from
version 3.1 on, which interpolates, 0.97 in version 3.0, which does not, and 1 by means in all of them. And a mean of
logits is what the threshold was tuned for in images; the official threshold for volumes is three times as large.

A view is numbered by the axis along which its planes are stacked: 0 for planes (Y, X), 1 for (Z, X), 2 for (Z, Y).
The means can be made plane by plane, so that no more than one result for the volume has to be kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from everymask.errors import InputError

_VIEWS = 3
_FLOW, _CELL = slice(0, 3), slice(3, 4)
_CATEGORY = slice(4, None)


def no_views(size: Sequence[int], categories: int = 0, device: torch.device | str = "cpu") -> Tensor:
    """The means to which `add_view` adds, all 0.

    Args:
        size: Of the volume, (Z, Y, X).
        categories: Channels of the output ``category``, background included; 0 where there is none.
        device: Where they are kept.

    Returns:
        (4 + categories, Z, Y, X) float32: the flow along z, y and x, the logit, and the probabilities of categories.

    Raises:
        InputError: The size is not that of a volume.
    """
    if len(size) != _VIEWS:
        raise InputError(f"size: got {tuple(size)}, expected that of a volume, (Z, Y, X)")
    return torch.zeros((_CATEGORY.start + categories, *size), device=device)


@torch.no_grad()
def add_view(total: Tensor, axis: int, outputs: Mapping[str, Tensor], first: int = 0) -> None:
    """Adds the outputs for some planes of one view.

    To be called for every plane of each view once, in any order. A half of each flow, and a third of each logit and of
    the probabilities of categories, is added.

    Args:
        total: From `no_views`; changed in place.
        axis: The axis of the volume along which the planes are stacked, 0, 1 or 2.
        outputs: For N planes ``flow`` (N, 2, h, w), along the first and along the second of the other two axes,
            ``cell`` (N, 1, h, w) logits, and perhaps ``category`` (N, K + 1, h, w) logits. Rows and columns that the
            volume has not (padding behind the last one) are left out.
        first: Where the first of these planes is.

    Raises:
        InputError: The planes are not those of this volume.
    """
    if axis not in range(_VIEWS):
        raise InputError(f"axis: got {axis}, expected 0, 1 or 2")
    planes = len(outputs["flow"])
    size = [length for other, length in enumerate(total.shape[1:]) if other != axis]
    given = tuple(outputs["flow"].shape)
    if first < 0 or first + planes > total.shape[1 + axis] or any(a < b for a, b in zip(given[2:], size, strict=True)):
        raise InputError(
            f"planes {first} to {first + planes} along axis {axis} with outputs {given}: expected at most "
            f"{total.shape[1 + axis]} planes of {size[0]} x {size[1]}, those of the volume"
        )
    part = total.narrow(1 + axis, first, planes)

    def placed(maps: Tensor) -> Tensor:
        """Maps (N, ?, h, w) as (?, Z, Y, X), N planes along the axis."""
        return maps[..., : size[0], : size[1]].to(total.device, torch.float32).movedim(0, 1 + axis)

    flow = placed(outputs["flow"])
    for component, other in enumerate(each for each in range(_VIEWS) if each != axis):
        part[other].add_(flow[component], alpha=1 / 2)
    part[_CELL].add_(placed(outputs["cell"]), alpha=1 / _VIEWS)
    if "category" in outputs:
        part[_CATEGORY].add_(placed(outputs["category"].float().softmax(1)), alpha=1 / _VIEWS)


def joined_views(total: Tensor) -> dict[str, Tensor]:
    """The outputs for the volume, once every plane of the three views was added.

    Args:
        total: (4 + categories, Z, Y, X), from `add_view`.

    Returns:
        ``flow`` (1, 3, Z, Y, X) along z, y and x and ``cell`` (1, 1, Z, Y, X) logits, which share the memory of
        `total`; and perhaps ``category`` (1, K + 1, Z, Y, X) logits whose softmax is the mean of the probabilities.
    """
    outputs = {"flow": total[None, _FLOW], "cell": total[None, _CELL]}
    if total.shape[0] > _CATEGORY.start:
        outputs["category"] = total[None, _CATEGORY].clamp(min=torch.finfo(torch.float32).tiny).log()
    return outputs


def join_views(views: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Outputs for a volume from those for all its planes, by `add_view` and `joined_views`.

    Args:
        views: Outputs for the planes (Y, X) stacked as (Z, ?, Y, X), for the planes (Z, X) stacked as (Y, ?, Z, X), and
            for the planes (Z, Y) stacked as (X, ?, Z, Y). Padding behind the last row and column may still be there.

    Raises:
        InputError: There are not three views, or they are not of one volume.
    """
    if len(views) != _VIEWS:
        raise InputError(f"views: got {len(views)}, expected 3, of the planes YX, ZX and ZY of a volume")
    front = views[0]
    categories = front["category"].shape[1] if "category" in front else 0
    total = no_views([len(view["flow"]) for view in views], categories, front["flow"].device)
    for axis, outputs in enumerate(views):
        add_view(total, axis, outputs)
    return joined_views(total)
