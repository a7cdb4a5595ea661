"""The check of Cellpose's objects on an accelerator: `flow_targets.flow_error`, with torch.

Heat spreads in all objects at once, a pixel a thread, as in the official program (`cellpose.dynamics`, BSD-3), but from
each pixel to those of its own object only, and for as many steps as the object takes by itself. Pixels are sorted by
their number of steps: those that still take part are the first of them, and the number of these is known beforehand.
So nothing travels while heat spreads, and small objects do not wait for a large one.

Targets for training are not made here: that is the work of the loader's processes, which have no accelerator.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from everymask.errors import InputError
from everymask.ops.flow_targets import _NO_SLOPE, FLOW_SCALE


def flow_error(labels: Tensor, flow: Tensor) -> Tensor:
    """How far a predicted flow is from the flow of each object, as `everymask.ops.flow_targets.flow_error`.

    Sums over the pixels of an object may be rounded otherwise from run to run, by about 1e-15.

    Args:
        labels: Integer object ids `(H, W)` or `(Z, H, W)`; 0 and negative ids are no objects.
        flow: As the network predicts it, `FLOW_SCALE` times the unit flow, `(2, H, W)` or `(3, Z, H, W)`.

    Returns:
        `(N,)` float64 on the same device, one for each distinct positive id in increasing order; not a number where the
        predicted flow is not finite.

    Raises:
        InputError: For labels that are no integers, or shapes that do not belong together.
    """
    axes = labels.ndim
    if axes not in (2, 3) or tuple(flow.shape) != (axes, *labels.shape) or labels.is_floating_point():
        raise InputError(
            f"labels, flow: got {labels.dtype} of shape {tuple(labels.shape)} and shape {tuple(flow.shape)}, "
            "expected integers (H, W) and flow (2, H, W), or (Z, H, W) and (3, Z, H, W)"
        )
    # Pixels are named by their place in the image with a frame of 1 pixel, in which every pixel has all neighbours.
    framed = torch.nn.functional.pad(labels.clamp(min=0), (1, 1) * axes)
    strides = _strides(framed)
    framed = framed.flatten()
    places = framed.nonzero()[:, 0]
    ids, owner = framed[places].unique(return_inverse=True)
    position = torch.stack([places // strides[a] % (labels.shape[a] + 2) - 1 for a in range(axes)])
    sources, steps = _sources(position, owner, len(ids))
    # Those that take most steps come first.
    first = steps[owner].argsort(descending=True, stable=True)
    places, owner, position = places[first], owner[first], position[:, first]
    rank = torch.empty_like(first)
    rank[first] = torch.arange(len(first), device=first.device)
    heat, neighbours = _heat(framed, places, rank[sources], steps, owner, strides)
    vectors = _directions(heat, neighbours, axes)
    at = position.unbind()
    predicted = flow[(slice(None), *at)].double() / torch.tensor(FLOW_SCALE, dtype=torch.float64, device=flow.device)
    squares = (vectors - predicted).square().sum(0)
    sums = torch.zeros(len(ids), dtype=torch.float64, device=flow.device).index_add_(0, owner, squares)
    return sums / owner.bincount(minlength=len(ids))


def _strides(framed: Tensor) -> tuple[int, ...]:
    return tuple(int(each) for each in framed.contiguous().stride())


def _sources(position: Tensor, owner: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The pixel of each object nearest its centroid, and the number of its steps.

    Args:
        position: (D, P) of pixels, in raster order.
        owner: (P,) their objects 0..N-1.
        count: N.

    Returns:
        Indices (N,) into the pixels, the first one of several that are equally near; and (N,) steps.
    """
    axes, device = len(position), position.device
    where = owner.expand(axes, -1)
    low = position.new_full((axes, count), 2**40).scatter_reduce_(1, where, position, "amin")
    high = position.new_zeros(axes, count).scatter_reduce_(1, where, position, "amax")
    # Counted from 1 in the box, and summed in the order of the compiled kernel: ties are decided by the roundings.
    inner = position - low.gather(1, where) + 1
    sums = torch.zeros_like(low).scatter_add_(1, where, inner)
    away = (inner.double() - (sums.double() / owner.bincount(minlength=count)).gather(1, where)).square()
    distance = away[0] + away[2] + away[1] if axes == 3 else away[1] + away[0]
    least = distance.new_full((count,), torch.inf).scatter_reduce_(0, owner, distance, "amin")
    number = torch.arange(len(owner), device=device).where(distance == least[owner], len(owner))
    sources = number.new_full((count,), len(owner)).scatter_reduce_(0, owner, number, "amin")
    sides = (high - low + 1).sum(0)
    return sources, (6 * (sides + 3) if axes == 3 else 2 * (sides + 4))


def _heat(
    framed: Tensor, places: Tensor, sources: Tensor, steps: Tensor, owner: Tensor, strides: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Heat of the pixels after all steps, and each pixel's neighbours.

    Args:
        framed: Ids of the framed image, flat.
        places: (P,) pixels in it, those of the objects with most steps first.
        sources: (N,) indices into `places`.
        steps: (N,) of the objects.
        owner: (P,) the objects of the pixels.
        strides: Of the framed image.

    Returns:
        Heat (P + 1,) float64, the last one 0; and indices (9 or 7, P) of neighbours, pixels themselves included, which
        are P where the neighbour is none of the object.
    """
    axes, count, device = len(strides), len(places), places.device
    slots = torch.full_like(framed, count, dtype=torch.int64)
    slots[places] = torch.arange(count, device=device)
    steps_to = itertools.product((-1, 0, 1), repeat=axes)
    offsets = [each for each in steps_to if axes == 2 or sum(map(abs, each)) <= 1]
    own = framed[places]
    neighbours = torch.stack(
        [
            slots[beside].where(framed[beside] == own, count)
            for beside in (places + sum(a * b for a, b in zip(offset, strides, strict=True)) for offset in offsets)
        ]
    )
    heat = torch.zeros(count + 1, dtype=torch.float64, device=device)
    order = steps.argsort(descending=True, stable=True)
    sources, ones = sources[order], torch.ones(len(sources), dtype=torch.float64, device=device)
    # How many pixels and objects take part in each step: sent to the host once, before the first one.
    longest = int(steps.max()) if len(steps) else 0
    taking_part = [
        (len(each) - torch.bincount(each, minlength=longest + 1).cumsum(0))[:longest].tolist()
        for each in (steps[owner], steps)
    ]
    share = 1 / len(offsets)
    for pixels, objects in zip(*taking_part, strict=True):
        heat.index_add_(0, sources[:objects], ones[:objects])
        torch.mul(heat[neighbours[:, :pixels]].sum(0), share, out=heat[:pixels])
    return heat, neighbours


def _directions(heat: Tensor, neighbours: Tensor, axes: int) -> Tensor:
    """Unit vectors (D, P) of the slope of the heat, 0 where there is none."""
    middle = len(neighbours) // 2
    # Rows of neighbours before and behind along each axis, in the order in which `_heat` lists them.
    apart = (3, 1) if axes == 2 else (3, 2, 1)
    slope = torch.stack([heat[neighbours[middle + each]] - heat[neighbours[middle - each]] for each in apart])
    largest = slope.abs().amax(0)
    # In the middle of a symmetric object the slope is nothing but rounding.
    flat = largest <= _NO_SLOPE * heat[:-1]
    # Far from the middle of a thin object there is so little heat that its square vanishes: lengths of 1 first.
    slope = slope / largest
    return (slope / slope.square().sum(0).sqrt()).masked_fill(flat, 0)
