"""Losses of boxes x0, y0, x1, y1: distances of their corners, and one less their overlap.

All work in volumes, too (x0, y0, z0, x1, y1, z1), but for `ciou`; values and gradients are finite for empty boxes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from everymask.errors import InputError
from everymask.losses.forms import check_option, ratio
from everymask.ops.boxes import box_iou, complete_box_iou, distance_box_iou, generalized_box_iou


def iou(predicted: Tensor, target: Tensor, *, weight: Tensor | None = None) -> Tensor:
    """``1 - IoU`` (Yu et al. 2016 without the logarithm); no gradient between boxes that do not meet.

    Args:
        predicted: (..., 4) corners in pixels, or (..., 6).
        target: The same shape.
        weight: (...) weight >= 0 of each box in the mean.

    Returns:
        Scalar, mean over boxes; 0 with gradient 0 when there are none.

    Raises:
        InputError: The shapes do not fit.
    """
    return _mean(box_iou, predicted, target, weight)


def giou(predicted: Tensor, target: Tensor, *, weight: Tensor | None = None) -> Tensor:
    """``1 - GIoU`` (Rezatofighi et al. 2019): boxes that do not meet are pulled together. Arguments as `iou`."""
    return _mean(generalized_box_iou, predicted, target, weight)


def diou(predicted: Tensor, target: Tensor, *, weight: Tensor | None = None) -> Tensor:
    """``1 - DIoU`` (Zheng et al. 2020, eq. 7): centres are pulled together. Arguments as `iou`."""
    return _mean(distance_box_iou, predicted, target, weight)


def ciou(predicted: Tensor, target: Tensor, *, weight: Tensor | None = None) -> Tensor:
    """``1 - CIoU`` (Zheng et al. 2020, eq. 8-11): `diou` and equal shapes; 4 numbers only. Arguments as `iou`."""
    return _mean(complete_box_iou, predicted, target, weight)


def lp_iou(
    predicted: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    p: float = 1.0,
    corners: float = 1.0,
    scale: float = 1.0,
    generalised: bool = False,
) -> Tensor:
    """``c mean |(a - b) / s|^p + (1 - IoU)``: a distance that pulls from anywhere, and the overlap that is scored.

    DETR joins the two with p = 1 and GIoU, there with centres and sides for corners (Carion et al. 2020, sec. 3.1).

    Args:
        predicted: (..., 4) corners in pixels, or (..., 6).
        target: The same shape.
        weight: (...) weight >= 0 of each box in the mean.
        p: Exponent of at least 1; the mean is over the corners' coordinates.
        corners: c >= 0, weight of the distance.
        scale: s > 0 in pixels, such as the side of the image; the distance of pixels would outweigh the overlap.
        generalised: GIoU instead of IoU.

    Raises:
        InputError: The shapes do not fit, or a number is out of range.
    """
    check_option(p >= 1, "p", p, "a number of 1 or more")
    check_option(corners >= 0, "corners", corners, "a number of 0 or more")
    check_option(scale > 0, "scale", scale, "a number above 0")

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return 1 - corners * ((torch.abs(_float(a) - _float(b)) / scale) ** p).mean(-1)

    overlap = generalized_box_iou if generalised else box_iou
    return _mean(distance, predicted, target, weight) + _mean(overlap, predicted, target, weight)


def _mean(
    similarity: Callable[[Tensor, Tensor], Tensor], predicted: Tensor, target: Tensor, weight: Tensor | None
) -> Tensor:
    """Weighted mean of ``1 - similarity``."""
    if predicted.shape != target.shape:
        raise InputError(
            f"boxes: got {tuple(predicted.shape)} and a target {tuple(target.shape)}, expected one target for each box"
        )
    terms = 1 - similarity(predicted, target.to(predicted))
    if weight is None:
        return ratio(terms.sum(), torch.tensor(float(terms.numel()), dtype=terms.dtype, device=terms.device))
    if weight.shape != terms.shape:
        raise InputError(f"weight: got shape {tuple(weight.shape)}, expected one for each box, {tuple(terms.shape)}")
    factor = weight.to(terms)
    return ratio((terms * factor).sum(), factor.sum())


def _float(boxes: Tensor) -> Tensor:
    return boxes if boxes.dtype == torch.float64 else boxes.float()
