"""Test-time augmentation of methods that find boxes: what is found in each copy is turned back and joined."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from everymask.errors import InputError
from everymask.ops.boxes import box_iou
from everymask.predict.magnification import restored
from everymask.predict.padding import pad_constant
from everymask.types import Masks, Segments

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from everymask.methods.base import Method
    from everymask.predict.tta import View

SAME = 0.55
"""IoU from which boxes of one class in several copies are one object (Solovyev et al. 2021)."""


def segments_of_views(
    method: Method,
    network: Callable[[Tensor], dict[str, Tensor]],
    images: Tensor,
    views: Sequence[View],
    size: tuple[int, int],
) -> Segments:
    """What is found in an image and its copies.

    Args:
        method: Decodes the outputs.
        network: Gives them.
        images: (1, C, H, W), padded at the bottom and the right to multiples of the method's stride.
        views: The copies.
        size: (H, W) of the image before padding.
    """
    found = [_of_view(method, network, images[..., : size[0], : size[1]], view) for view in views]
    return fused(found, len(views))


def _of_view(method: Method, network: Callable[[Tensor], dict[str, Tensor]], image: Tensor, view: View) -> Segments:
    flip, turns, scale = view
    size = (int(image.shape[-2]), int(image.shape[-1]))
    if scale != 1:
        sides = [max(1, round(scale * side)) for side in size]
        image = functional.interpolate(image, size=sides, mode="bilinear", align_corners=False, antialias=scale < 1)
    copy = torch.rot90(image, turns, (-2, -1))
    copy = copy.flip(-1) if flip else copy
    inside = (int(copy.shape[-2]), int(copy.shape[-1]))
    stride = method.stride
    padded = pad_constant(copy, -inside[0] % stride, -inside[1] % stride, method.padding or 0.0)
    segments = turned_back(method.decode(network(padded), [inside])[0], flip, turns)
    return segments if scale == 1 else restored(segments, size)[0]


def turned_back(segments: Segments, flip: bool, turns: int) -> Segments:
    """Segments of an image from those of its copy, made by quarter turns and then perhaps a flip.

    Args:
        segments: Boxes, perhaps with run-length masks.
        flip: The copy was flipped left-right after its turns.
        turns: Counter-clockwise quarter turns of the copy.

    Raises:
        InputError: They are a label map, of which several cannot be joined.
    """
    if segments.geometry is not None and not isinstance(segments.geometry, Masks):
        raise InputError("test-time augmentation joins boxes and masks, and this method finds neither; leave out tta")
    height, width = segments.size
    x0, y0, x1, y1 = segments.boxes().T if len(segments) else np.zeros((4, 0))
    if flip:
        x0, x1 = width - x1, width - x0
    for _ in range(turns % 4):
        # Back by a clockwise quarter turn: row r, column c comes from row c, column height - r.
        x0, y0, x1, y1 = height - y1, x0, height - y0, x1
        height, width = width, height
    geometry = None
    if isinstance(segments.geometry, Masks):
        masks = segments.masks()
        masks = np.rot90(masks[..., ::-1] if flip else masks, -turns, (1, 2))
        geometry = (
            Segments.from_masks(np.ascontiguousarray(masks)).rles() if len(masks) else Masks.join((height, width), [])
        )
    return Segments(
        (height, width),
        segments.category,
        geometry,
        score=segments.score,
        box=np.stack([x0, y0, x1, y1], axis=1),
        crowd=segments.crowd,
    )


def fused(found: Sequence[Segments], copies: int) -> Segments:
    """Weighted box fusion (Solovyev et al. 2021): boxes of one class that lie on each other become their mean.

    The mean of a group is weighted by the scores; its score is the sum over the group, one of each copy at most, by the
    number of copies, so that what only some copies show is less probable. Its mask is that of its most probable member.

    Args:
        found: Segments of each copy, of one size.
        copies: How many there are.
    """
    boxes = np.concatenate([each.boxes() if len(each) else np.zeros((0, 4)) for each in found])
    score = np.concatenate([np.zeros(0) if each.score is None else each.score for each in found])
    category = np.concatenate([each.category for each in found])
    copy = np.repeat(np.arange(len(found)), [len(each) for each in found])
    order = np.argsort(-score, kind="stable")
    free = np.ones(len(score), np.bool_)
    kept: list[int] = []
    merged: list[NDArray[np.float64]] = []
    scores: list[float] = []
    for leader in order.tolist():
        if not free[leader]:
            continue
        rivals = order[free[order] & (category[order] == category[leader])]
        group = rivals[box_iou(boxes[leader][None], boxes[rivals], pairwise=True)[0] >= SAME]
        # The best of each copy; the others of the group are doubles within their copy.
        _, first = np.unique(copy[group], return_index=True)
        members = group[first]
        free[group] = False
        weights = score[members] / max(score[members].sum(), 1e-12)
        kept.append(leader)
        merged.append(weights @ boxes[members])
        scores.append(float(score[members].sum() / copies))
    geometry = None
    if all(isinstance(each.geometry, Masks) for each in found):
        runs = [run for each in found if isinstance(each.geometry, Masks) for run in each.geometry]
        geometry = Masks.join((found[0].size[0], found[0].size[1]), [runs[index] for index in kept])
    by_score = np.argsort(-np.array(scores), kind="stable")
    whole = Segments(
        found[0].size,
        category[kept],
        geometry,
        score=np.array(scores),
        box=np.array(merged).reshape(-1, 4),
    )
    return whole[by_score]
