"""Following a flow on an accelerator: the same end points as `flow_following.follow_flows`, with torch.

A processor stops with every point that rests; here all points move until all of them rest. That pays where the flow is
on the accelerator already and its image is large.
"""

from __future__ import annotations

import torch
from torch import Tensor

from everymask.errors import InputError
from everymask.ops.flow_following import LONGEST_STEP, PERIOD
from everymask.ops.flow_targets import FLOW_SCALE


def follow_flows(flow: Tensor, foreground: Tensor, steps: int = 200) -> Tensor:
    """End points of all foreground pixels after a number of steps along the flow, on the device of the flow.

    Args:
        flow: as the network predicts it, `(2, H, W)` or `(3, Z, H, W)`; numbers that are not finite count 0.
        foreground: bool, `(H, W)` or `(Z, H, W)`.
        steps: number of steps, at least 0.

    Returns:
        `(D, H, W)` or `(D, Z, H, W)` float32, coordinates in pixel indices in the order of the axes; pixels outside the
        foreground stay where they are.

    Raises:
        InputError: for shapes that do not belong together, or a negative number of steps.
    """
    shape = tuple(foreground.shape)
    if len(shape) not in (2, 3) or tuple(flow.shape) != (len(shape), *shape):
        raise InputError(f"flow: got shape {tuple(flow.shape)}, expected {(len(shape), *shape)} as the foreground")
    if steps < 0:
        raise InputError(f"steps: got {steps}, expected at least 0, such as 200")
    grids = torch.meshgrid(*(torch.arange(side, device=flow.device) for side in shape), indexing="ij")
    ends = torch.stack(grids).float()
    field = (flow.float() / FLOW_SCALE).nan_to_num(0, 0, 0).clamp(-LONGEST_STEP, LONGEST_STEP) * foreground
    # One pixel of zeros more along each axis, so that the last one has neighbours as well.
    field = torch.nn.functional.pad(field, (0, 1) * len(shape)).flatten(1)
    strides = [1]
    for side in shape[:0:-1]:
        strides.insert(0, strides[0] * (side + 1))
    pitches = torch.tensor(strides, device=flow.device)[:, None]
    points = ends[:, foreground]
    last = torch.tensor(shape, device=flow.device)[:, None] - 1.0
    left = steps
    while left > 0 and points.numel():
        together = left % PERIOD or PERIOD
        before = points
        for _ in range(together):
            corner = points.long()
            place = (corner * pitches).sum(dim=0)
            step = _interpolate(field, place, points - corner, strides)
            points = torch.minimum((points + step).clamp(min=0), last)
        left -= together
        if together == PERIOD and torch.equal(points, before):
            break
    ends[:, foreground] = points
    return ends


def _interpolate(field: Tensor, places: Tensor, weights: Tensor, strides: list[int]) -> Tensor:
    """Steps (D, N) at points: their pixels (N,) in the flat field (D, P), and how far they are beyond them (A, N)."""
    if not strides:
        return field[:, places]
    # the last axis first, as in the compiled kernel: the same roundings give the same bits
    near = _interpolate(field, places, weights[1:], strides[1:])
    far = _interpolate(field, places + strides[0], weights[1:], strides[1:])
    return near + (far - near) * weights[0]
