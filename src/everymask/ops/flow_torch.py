"""From the fields of Cellpose to objects on an accelerator: what `flow_following` and `flow_masks` compile, with torch.

A flow takes longer to copy from the accelerator than to follow there. So everything happens where the flow is, but for
the filling of holes: what travels is one label image. Sums, products and quotients are those of the compiled kernels,
in their order, so that points end at the same places.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from everymask.errors import InputError
from everymask.ops.flow_following import LONGEST_STEP, PERIOD
from everymask.ops.flow_masks import _SEED_COUNT, _SEED_RADIUS, _SINK_COUNT, _SINK_RADIUS, fill_holes_and_drop_small
from everymask.ops.flow_targets import _MOST_PIXELS, FLOW_SCALE
from everymask.ops.heat_torch import flow_error

_TOGETHER = 2**21
"""Points that are followed at a time: what is around one takes 100 bytes in images, 300 in volumes."""


def flow_labels(
    flow: Tensor,
    foreground_logit: Tensor,
    *,
    steps: int = 200,
    foreground_threshold: float = 0.0,
    flow_threshold: float = 0.4,
    min_size: int = 15,
    max_fraction: float = 0.4,
) -> NDArray[np.int32]:
    """Label map of what a Cellpose network predicts, as `everymask.ops.flow_masks.flow_labels`.

    Args:
        flow: See there, as for the other arguments; on the accelerator.
        foreground_logit: `(H, W)` or `(Z, H, W)`, on the same device.
        steps: Steps along the flow.
        foreground_threshold: A logit.
        flow_threshold: Objects whose `flow_error` is above it are dropped; 0 or less for no check.
        min_size: Smaller objects are dropped; 0 or less keeps all, and their holes.
        max_fraction: Objects that cover more than this share of the image are dropped.

    Returns:
        Labels 1..N, `(H, W)` or `(Z, H, W)`, 0 background, on the host, where holes are filled.

    Raises:
        InputError: For shapes that do not belong together, images of about 2^31 pixels and more, or a negative number
            of steps.
    """
    foreground = foreground_logit > foreground_threshold
    whole = follow_flows(flow, foreground, steps).long()
    places = _raveled(whole, foreground.shape).where(foreground, foreground.numel())
    labels = _label_sinks(places, max_fraction)
    if flow_threshold > 0 and labels.ndim == 2:
        kept = flow_error(labels, flow) <= flow_threshold
        # They are numbered in the order of their first pixels, which dropping some does not change.
        numbers = functional.pad(kept.cumsum(0) * kept, (1, 0))
        labels = numbers[labels]
    found = labels.to(torch.int32).cpu().numpy()
    return fill_holes_and_drop_small(found, min_size) if min_size > 0 else found


def follow_flows(flow: Tensor, foreground: Tensor, steps: int = 200) -> Tensor:
    """End points of all foreground pixels after some steps along the flow, as `flow_following.follow_flows`.

    Args:
        flow: As the network predicts it, `(2, H, W)` or `(3, Z, H, W)`; numbers that are not finite count 0.
        foreground: Bool, `(H, W)` or `(Z, H, W)`.
        steps: Number of steps, at least 0.

    Returns:
        `(D, H, W)` or `(D, Z, H, W)` float32 on the device of the flow, coordinates in pixel indices in the order of
        the axes; pixels outside the foreground stay where they are.

    Raises:
        InputError: For shapes that do not belong together, images of about 2^31 pixels and more, or a negative number
            of steps.
    """
    shape = tuple(foreground.shape)
    if len(shape) not in (2, 3) or tuple(flow.shape) != (len(shape), *shape):
        expected = str((len(shape), *shape)) if len(shape) in (2, 3) else "(2, H, W) or (3, Z, H, W)"
        raise InputError(f"flow: got shape {tuple(flow.shape)}, expected {expected} as the foreground")
    if foreground.numel() > _MOST_PIXELS:
        raise InputError(f"flow: got {shape} pixels, expected at most {_MOST_PIXELS} in all; cut the image into tiles")
    if steps < 0:
        raise InputError(f"steps: got {steps}, expected at least 0, such as 200")
    grids = torch.meshgrid(*(torch.arange(side, device=flow.device) for side in shape), indexing="ij")
    ends = torch.stack(grids, -1).flatten(0, -2).float()
    field = _pairs(flow, foreground)
    for home in foreground.flatten().nonzero()[:, 0].split(_TOGETHER):
        _follow(field, shape, steps, home, ends)
    return ends.T.reshape(len(shape), *shape)


def _raveled(whole: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Indices (...) of pixels (D, ...) in the flattened image."""
    places = whole[0]
    for axis in range(1, len(shape)):
        places = places * shape[axis] + whole[axis]
    return places


def _pairs(flow: Tensor, foreground: Tensor) -> Tensor:
    """Steps of the pixels, and how much longer those of their right neighbours are: (P, 2 D).

    What is needed of two neighbours lies together, so that they are fetched at once. There is one row more, and in
    volumes one plane more, of zeros, so that the last ones have neighbours as well.
    """
    # By a tensor: torch multiplies by the reciprocal of a number, which is rounded otherwise.
    field = flow.float() / torch.tensor(FLOW_SCALE, dtype=torch.float32, device=flow.device)
    field = field.nan_to_num(0, 0, 0).clamp(-LONGEST_STEP, LONGEST_STEP) * foreground
    field = functional.pad(field, (0, 1) * foreground.ndim)
    here, right = field[..., :-1], field[..., 1:]
    return torch.cat([here, right - here]).flatten(1).T.contiguous()


def _follow(field: Tensor, shape: tuple[int, ...], steps: int, home: Tensor, ends: Tensor) -> None:
    """Moves some pixels and writes their end points.

    Args:
        field: From `_pairs`.
        shape: Of the image.
        steps: How many.
        home: (N,) the pixels, as indices of the flattened image.
        ends: (P, D), where the points of all pixels are at first.
    """
    axes = len(shape)
    # Pixels from one row to the next, and from one plane to the next, which has a row more.
    pitches = [shape[-1], shape[-1] * (shape[-2] + 1)][: axes - 1]
    corners = [0]
    for pitch in pitches:
        corners = [far + near for far in (0, pitch) for near in corners]
    beside = torch.tensor(corners, dtype=torch.int32, device=ends.device)
    first = torch.zeros(axes, device=ends.device)
    last = torch.tensor(shape, dtype=torch.float32, device=ends.device) - 1
    points, left = ends[home], steps
    while left > 0 and len(points):
        together = left % PERIOD or PERIOD
        before = points
        for _ in range(together):
            whole, weights = points.to(torch.int32), points.frac()
            place = whole[:, -1]
            for axis, pitch in enumerate(pitches):
                place = place.add(whole[:, -2 - axis], alpha=pitch)
            around = field.index_select(0, (place[:, None] + beside).flatten()).view(-1, len(corners), 2, axes)
            step = around[:, :, 0] + around[:, :, 1] * weights[:, None, -1:]
            for axis in range(axes - 2, -1, -1):
                near, far = step.unflatten(1, (-1, 2)).unbind(2)
                step = near + (far - near) * weights[:, axis, None, None]
            points = torch.clamp(points + step[:, 0], first, last)
        left -= together
        ends[home] = points
        if together == PERIOD and left:
            # Two thirds of the points rest, or go round in circles, long before the last step. To leave them out takes
            # their number, the one thing that travels, once in a period.
            moving = (points != before).any(1).nonzero()[:, 0]
            points, home = points[moving], home[moving]


def _label_sinks(places: Tensor, max_fraction: float) -> Tensor:
    """Labels of pixels by the pixel in which they end: `flow_masks.sinks_to_labels`.

    Args:
        places: Index of that pixel in the flattened image, `(H, W)` or `(Z, H, W)`; the number of pixels for those
            outside the foreground.
        max_fraction: See `flow_labels`.

    Returns:
        Labels 1..N in the order of their first pixels, int64.
    """
    shape, total = places.shape, places.numel()
    places = places.flatten()
    device = places.device
    pool = functional.max_pool2d if len(shape) == 2 else functional.max_pool3d
    # Whole numbers as float32, in which they are exact up to 2^24, are what all devices pool.
    paths = torch.zeros(total + 1, dtype=torch.int32, device=device)
    paths.index_add_(0, places, torch.ones(1, dtype=torch.int32, device=device).expand(total))
    counts = paths[:-1].float().view(1, *shape)
    highest = pool(counts, 2 * _SEED_RADIUS + 1, 1, _SEED_RADIUS)
    seeds = ((counts > _SEED_COUNT) & (counts == highest)).flatten().nonzero()[:, 0]
    # The more paths, the later, so that it prevails.
    seeds = seeds[paths[seeds].argsort(stable=True)]
    marks = torch.zeros(total, device=device)
    marks[seeds] = torch.arange(1, len(seeds) + 1, device=device, dtype=torch.float32)
    marks = marks.view(1, *shape)
    # All sinks grow at once: the highest number whose sink reaches a pixel is the highest of its neighbours' before.
    for _ in range(_SINK_RADIUS):
        marks = pool(marks, 3, 1, 1) * (counts > _SINK_COUNT)
    labels = functional.pad(marks.flatten().long(), (0, 1))[places]
    return _numbered(labels, len(seeds), math.floor(total * max_fraction)).view(shape)


def _numbered(labels: Tensor, count: int, largest: int) -> Tensor:
    """Labels (P,) 0..N without those of more than `largest` pixels, numbered in the order of their first pixels."""
    total = len(labels)
    areas = labels.bincount(minlength=count + 1)
    pixels = torch.arange(total, device=labels.device)
    first = pixels.new_full((count + 1,), total).scatter_reduce_(0, labels, pixels, "amin")
    first[0] = total
    first.masked_fill_(areas > largest, total)
    numbers = torch.empty_like(first)
    numbers[first.argsort()] = torch.arange(1, count + 2, device=labels.device)
    return numbers.masked_fill_(first == total, 0)[labels]
