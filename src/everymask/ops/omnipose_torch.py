"""From the fields of Omnipose to end points on an accelerator: what `omnipose_masks` compiles, with torch.

Regions of the foreground are found on the host, and so are the clusters of end points; between them every pixel is
moved on its own, which a processor takes longer for than the copies there and back.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from everymask.errors import InputError
from everymask.ops.omnipose_masks import Clustering, check_options, foreground, objects_of_ends

_TOGETHER = 2**21
"""Points that are moved at a time: each takes about 100 bytes."""


def omnipose_masks(
    flow: Tensor,
    distance: Tensor,
    threshold: float = 0.0,
    *,
    clustering: Clustering = "always",
    steps: int = 24,
    minimum_area: int = 0,
) -> NDArray[np.int32]:
    """Objects of a flow and a distance field, as `everymask.ops.omnipose_masks.omnipose_masks`.

    Args:
        flow: Vectors (axes, ...) of any length, on the accelerator.
        distance: Distances (...) in pixels, negative outside objects, on the same device.
        threshold: Distance above which a pixel surely belongs to an object.
        clustering: See there.
        steps: Euler steps.
        minimum_area: Smaller objects are dropped.

    Returns:
        Labels (...) of 1..N in the order in which the objects are met along the rows, 0 background; on the host.

    Raises:
        InputError: The shapes do not belong together, values are not finite, or an option is out of range.
    """
    if distance.ndim not in (2, 3) or tuple(flow.shape) != (distance.ndim, *distance.shape):
        raise InputError(
            f"flow, distance: got shapes {tuple(flow.shape)} and {tuple(distance.shape)}, expected (2, H, W) and "
            "(H, W), or (3, Z, H, W) and (Z, H, W)"
        )
    if not (flow.isfinite().all() & distance.isfinite().all()):
        raise InputError("flow, distance: hold values that are not finite; check the network")
    check_options(clustering, steps, minimum_area)
    lengths = distance.float().cpu().numpy()
    regions, count = foreground(lengths, threshold)
    if count == 0:
        return np.zeros(lengths.shape, np.int32)
    there = torch.from_numpy(regions).to(flow.device)
    ends = suppressed_euler(converging_field(flow, there), there, steps).cpu().numpy()
    return objects_of_ends(ends, regions, lengths, clustering, minimum_area)


def converging_field(flow: Tensor, regions: Tensor) -> Tensor:
    """The directions of a flow, scaled by its divergence, as `everymask.ops.omnipose_masks.converging_field`.

    Args:
        flow: Vectors (axes, ...).
        regions: Numbers (...) of `everymask.ops.omnipose_masks.foreground`, 0 outside, on the same device.

    Returns:
        Vectors (axes, ...) float32 of length 0..1, 0 outside regions.
    """
    flow = flow.float()
    squares = flow.square().sum(0)
    # By way of float64: the square root of float32 is not always the nearest number.
    lengths = squares.double().sqrt().float()
    units = (flow * (1 / lengths)).where((regions > 0) & (squares > 0), 0)
    divergence = torch.zeros_like(squares)
    for axis in reversed(range(regions.ndim)):
        side = regions.shape[axis]
        line = torch.arange(side, device=flow.device)
        # Beyond the border of the image the flow goes on.
        ahead = units[axis].index_select(axis, (line + 1).clamp(max=side - 1))
        behind = units[axis].index_select(axis, (line - 1).clamp(min=0))
        divergence = divergence + (ahead - behind)
    return units * (0.5 + 0.25 * divergence).clamp(0, 1)


def suppressed_euler(field: Tensor, regions: Tensor, steps: int) -> Tensor:
    """Where the pixels of regions end up that follow a field, as `everymask.ops.omnipose_masks.suppressed_euler`.

    Args:
        field: Vectors (axes, ...) in pixels, of length 0..1.
        regions: Numbers (...), 0 outside; the pixels above 0 are moved.
        steps: How many.

    Returns:
        End points (P, axes) float32 in pixels, of the pixels in raster order.
    """
    vectors = field.flatten(1).T.contiguous()
    places = regions.flatten().gt(0).nonzero()[:, 0]
    return torch.cat([_follow(vectors, regions, steps, home) for home in places.split(_TOGETHER)])


def _follow(vectors: Tensor, regions: Tensor, steps: int, home: Tensor) -> Tensor:
    """End points (N, axes) of the pixels `home` (N,), indices of the flattened image, for vectors (P, axes)."""
    pitches = [int(each) for each in regions.contiguous().stride()]
    numbers = regions.flatten()
    own = numbers[home]
    points = torch.stack(
        [home // pitch % side for pitch, side in zip(pitches, regions.shape, strict=True)], dim=1
    ).float()
    first = torch.zeros(len(pitches), device=points.device)
    last = torch.tensor(regions.shape, dtype=torch.float32, device=points.device) - 1
    nearest, moving = home, torch.ones_like(home, dtype=torch.bool)
    velocity = vectors[home]
    for t in range(steps):
        velocity = 0.5 * (velocity + vectors[nearest])
        to = torch.clamp(points + velocity * (1 / (1 + t)), first, last)
        into = _place((to + 0.5).long(), pitches)
        # One that would leave its region stays for good.
        moving = moving & (numbers[into] == own)
        points = to.where(moving[:, None], points)
        nearest = into.where(moving, nearest)
    return points


def _place(whole: Tensor, pitches: list[int]) -> Tensor:
    """Indices (N,) of pixels (N, axes) in the flattened image."""
    place = whole[:, -1]
    for axis in range(len(pitches) - 1):
        place = place.add(whole[:, axis], alpha=pitches[axis])
    return place
