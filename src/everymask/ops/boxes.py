"""Areas of boxes and the overlap of pairs: IoU, and its relatives that still tell apart boxes which do not meet.

A box is x0, y0, x1, y1 in pixels with exclusive right and bottom edges, so its width is x1 - x0. In volumes a box has
six numbers, the low corner and then the high one, in any order of axes that is the same for both.

Every function takes NumPy arrays (computed and returned in float64) or tensors (in their own floating type, half
precision in float32), on which it is differentiable, and returns what it was given. Values keep within their range and
gradients are finite for empty boxes too: a box whose edges coincide or are swapped has no area, and a ratio of nothing
to nothing counts as 0. So the IoU of two empty boxes is 0, even of equal ones, as in `pycocotools`.
"""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from everymask.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray
    from torch import Tensor

Array = TypeVar("Array", "NDArray[Any]", "Tensor")

# Below so many pairs the compiled kernel saves less than loading it costs.
_FEWEST_COMPILED_PAIRS = 1 << 12


def box_area(boxes: Array) -> Array:
    """Area of each box (volume, of six numbers).

    Args:
        boxes: (..., 4) x0, y0, x1, y1 in pixels, or (..., 6).

    Returns:
        (...) square pixels, at least 0.

    Raises:
        InputError: The last axis has another length.
    """
    xp, (given,) = _prepared(boxes)
    return _product(_sides(xp, *_corners(given)))


def box_iou(a: Array, b: Array, *, pairwise: bool = False, crowd: ArrayLike | None = None) -> Array:
    """Intersection over union.

    Args:
        a: (..., 4) x0, y0, x1, y1 in pixels, or (..., 6).
        b: (..., 4) or (..., 6), whose leading axes broadcast with those of `a`.
        pairwise: Compare every box of `a` (..., N, 4) with every box of `b` (..., M, 4).
        crowd: Which boxes of `b` are crowd regions, of the shape of `b` without its last axis: the intersection is
            divided by the area of `a` instead of the union, COCO's rule for regions that hold many objects.

    Returns:
        The broadcast leading axes, or (..., N, M) if `pairwise`; in 0..1.

    Raises:
        InputError: The shapes do not fit.
    """
    xp, (first, second) = _prepared(a, b)
    flags = _crowd_flags(crowd, second)
    if _is_large(first, second, pairwise):
        from everymask.ops.box_pairs import pairwise_iou

        result: Any = pairwise_iou(first, second, np.zeros(len(second), np.bool_) if flags is None else flags)
        return result
    first, second = _aligned(first, second, pairwise)
    shared, union, area = _shared_and_union(xp, first, second)
    if flags is not None:
        union = xp.where(flags[..., None, :] if pairwise else flags, area + xp.zeros_like(union), union)
    return _ratio(xp, shared, union)


def generalized_box_iou(a: Array, b: Array, *, pairwise: bool = False) -> Array:
    """IoU less the share of the enclosing box that neither box covers (Rezatofighi et al. 2019, algorithm 1).

    Args:
        a: (..., 4) x0, y0, x1, y1 in pixels, or (..., 6).
        b: (..., 4) or (..., 6), whose leading axes broadcast with those of `a`.
        pairwise: Compare every box of `a` (..., N, 4) with every box of `b` (..., M, 4).

    Returns:
        The broadcast leading axes, or (..., N, M) if `pairwise`; in -1..1. As a loss, one less this.

    Raises:
        InputError: The shapes do not fit.
    """
    xp, (first, second) = _prepared(a, b)
    first, second = _aligned(first, second, pairwise)
    shared, union, _ = _shared_and_union(xp, first, second)
    enclosing = _product(_enclosing_sides(xp, first, second))
    return _ratio(xp, shared, union) - _ratio(xp, enclosing - union, enclosing)


def distance_box_iou(a: Array, b: Array, *, pairwise: bool = False) -> Array:
    """IoU less the squared distance of the centres, relative to the enclosing diagonal (Zheng et al. 2020, eq. 7).

    Args:
        a: (..., 4) x0, y0, x1, y1 in pixels, or (..., 6).
        b: (..., 4) or (..., 6), whose leading axes broadcast with those of `a`.
        pairwise: Compare every box of `a` (..., N, 4) with every box of `b` (..., M, 4).

    Returns:
        The broadcast leading axes, or (..., N, M) if `pairwise`; in -1..1. As a loss, one less this.

    Raises:
        InputError: The shapes do not fit.
    """
    xp, (first, second) = _prepared(a, b)
    return _distance_iou(xp, *_aligned(first, second, pairwise))[0]


def complete_box_iou(a: Array, b: Array, *, pairwise: bool = False) -> Array:
    """Distance IoU less a penalty for another aspect ratio (Zheng et al. 2020, eq. 8-11).

    The penalty is alpha v with v = (4 / pi^2) (arctan(w_b / h_b) - arctan(w_a / h_a))^2 and alpha = v / (1 - IoU + v),
    which is a weight and has no gradient of its own, as in `torchvision.ops.complete_box_iou_loss`.

    Args:
        a: (..., 4) x0, y0, x1, y1 in pixels.
        b: (..., 4), whose leading axes broadcast with those of `a`.
        pairwise: Compare every box of `a` (..., N, 4) with every box of `b` (..., M, 4).

    Returns:
        The broadcast leading axes, or (..., N, M) if `pairwise`; at most 1. As a loss, one less this.

    Raises:
        InputError: The shapes do not fit, or the boxes are those of volumes, which have no aspect ratio.
    """
    xp, (first, second) = _prepared(a, b)
    if first.shape[-1] != 4:
        raise InputError(f"boxes: got shape {tuple(a.shape)}, expected (..., 4); volumes have no single aspect ratio")
    first, second = _aligned(first, second, pairwise)
    distance_iou, iou = _distance_iou(xp, first, second)
    # arctan2 gives the angle of a box without height, too; adding 0 makes -0, whose angle is another, a plain 0
    (wide_a, high_a), (wide_b, high_b) = (_sides(xp, *_corners(boxes)) for boxes in (first, second))
    angle_a, angle_b = xp.arctan2(wide_a + 0.0, high_a + 0.0), xp.arctan2(wide_b + 0.0, high_b + 0.0)
    v = 4 / math.pi**2 * (angle_b - angle_a) ** 2
    weight = _ratio(xp, v, 1 - iou + v)
    if xp is not np:
        weight = weight.detach()
    return distance_iou - weight * v


def _prepared(*boxes: Any) -> tuple[Any, list[Any]]:
    """The module to compute with, and the boxes in a floating type wide enough for areas."""
    torch = sys.modules.get("torch")
    xp: Any = np
    if torch is not None and any(isinstance(each, torch.Tensor) for each in boxes):
        xp = torch
    prepared = []
    for each in boxes:
        if xp is np:
            array = np.asarray(each, np.float64)
        else:
            array = xp.as_tensor(each)
            if not array.is_floating_point():
                array = array.to(xp.get_default_dtype())
            elif array.dtype.itemsize < 4:
                array = array.float()  # a side of 300 pixels already makes an area beyond half precision
        prepared.append(array)
    width = prepared[0].shape[-1] if prepared[0].ndim else 0
    if width not in (4, 6) or any(each.ndim == 0 or each.shape[-1] != width for each in prepared):
        shapes = " and ".join(str(tuple(each.shape)) for each in prepared)
        raise InputError(f"boxes: got shape {shapes}, expected (..., 4) corners x0, y0, x1, y1, or (..., 6) in volumes")
    return xp, prepared


def _aligned(a: Any, b: Any, pairwise: bool) -> tuple[Any, Any]:
    """Both sets with leading axes that broadcast."""
    if pairwise:
        if a.ndim < 2 or b.ndim < 2:
            raise InputError(f"boxes: got shapes {tuple(a.shape)} and {tuple(b.shape)}, expected (N, 4) and (M, 4)")
        a, b = a[..., :, None, :], b[..., None, :, :]
    try:
        np.broadcast_shapes(tuple(a.shape), tuple(b.shape))
    except ValueError as error:
        raise InputError(
            f"boxes: shapes {tuple(a.shape)} and {tuple(b.shape)} do not broadcast; "
            "give as many boxes in both, or pairwise=True for all pairs"
        ) from error
    return a, b


def _crowd_flags(crowd: ArrayLike | None, b: Any) -> Any:
    """`crowd` as an array of `b`'s kind, checked."""
    if crowd is None:
        return None
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(b, torch.Tensor):
        flags = torch.as_tensor(crowd, device=b.device).bool()
    else:
        flags = np.asarray(crowd, np.bool_)
    if tuple(flags.shape) != tuple(b.shape[:-1]):
        raise InputError(
            f"crowd: got shape {tuple(flags.shape)}, expected one flag for each box of b, {tuple(b.shape[:-1])}"
        )
    return flags


def _is_large(a: Any, b: Any, pairwise: bool) -> bool:
    """Whether the compiled kernel, which knows plain lists of boxes in images, pays."""
    plain = isinstance(a, np.ndarray) and pairwise and a.ndim == b.ndim == 2 and a.shape[1] == 4
    return plain and len(a) * len(b) >= _FEWEST_COMPILED_PAIRS


def _corners(boxes: Any) -> tuple[list[Any], list[Any]]:
    """The coordinates of the low and of the high corner, one array an axis."""
    axes = boxes.shape[-1] // 2
    return [boxes[..., i] for i in range(axes)], [boxes[..., axes + i] for i in range(axes)]


def _sides(xp: Any, low: list[Any], high: list[Any]) -> list[Any]:
    """Lengths along each axis, none below 0."""
    return [xp.clip(end - start, 0, None) for start, end in zip(low, high, strict=True)]


def _product(sides: list[Any]) -> Any:
    result = sides[0]
    for side in sides[1:]:
        result = result * side
    return result


def _ratio(xp: Any, above: Any, below: Any) -> Any:
    """above / below, 0 where `below` is 0; the quotient not taken has no gradient, which would be infinite."""
    some = below != 0  # NaN stays NaN, so that a diverged network is seen
    return xp.where(some, above / xp.where(some, below, xp.ones_like(below)), xp.zeros_like(below))


def _shared_and_union(xp: Any, a: Any, b: Any) -> tuple[Any, Any, Any]:
    """Areas of the intersection and of the union, and of `a`."""
    (a_low, a_high), (b_low, b_high) = _corners(a), _corners(b)
    low = [xp.maximum(x, y) for x, y in zip(a_low, b_low, strict=True)]
    high = [xp.minimum(x, y) for x, y in zip(a_high, b_high, strict=True)]
    shared = _product(_sides(xp, low, high))
    area = _product(_sides(xp, a_low, a_high))
    return shared, area + _product(_sides(xp, b_low, b_high)) - shared, area


def _enclosing_sides(xp: Any, a: Any, b: Any) -> list[Any]:
    """Sides of the smallest box around all corners of both: swapped edges, too, so that ratios stay bounded."""
    sides: list[Any] = []
    for i in range(a.shape[-1] // 2):
        k = i + a.shape[-1] // 2
        low = xp.minimum(xp.minimum(a[..., i], a[..., k]), xp.minimum(b[..., i], b[..., k]))
        high = xp.maximum(xp.maximum(a[..., i], a[..., k]), xp.maximum(b[..., i], b[..., k]))
        sides.append(high - low)
    return sides


def _distance_iou(xp: Any, a: Any, b: Any) -> tuple[Any, Any]:
    """Distance IoU, and IoU."""
    shared, union, _ = _shared_and_union(xp, a, b)
    iou = _ratio(xp, shared, union)
    diagonal = sum(side**2 for side in _enclosing_sides(xp, a, b))
    (a_low, a_high), (b_low, b_high) = _corners(a), _corners(b)
    steps = zip(a_low, a_high, b_low, b_high, strict=True)
    distance = sum((p + q - r - s) ** 2 for p, q, r, s in steps) / 4
    return iou - _ratio(xp, distance, diagonal), iou
