"""Test-time augmentation of methods that find boxes: what is found in each copy is turned back and joined."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

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


class MergesBranches(Protocol):
    """A panoptic method with a branch for things and one for the classes of pixels, such as Panoptic FPN."""

    def parts(
        self, outputs: dict[str, Tensor], sizes: Sequence[tuple[int, ...]], least_score: float
    ) -> list[tuple[Segments, Tensor | None]]:
        """Things with masks that may overlap, and logits (C, H, W) of the pixels, of each image."""
        ...

    def merged(self, things: Segments, semantic: Tensor | None) -> Segments:
        """The label map of both."""
        ...


class MergesQueries(Protocol):
    """A panoptic method each of whose queries sees a segment with a mask for the whole image, such as DETR's."""

    stuff: tuple[int, ...]

    def candidates(self, outputs: dict[str, Tensor], image: int, size: tuple[int, int]) -> tuple[Segments, Tensor]:
        """Class, score and box of the queries (N) that may see something, and their masks (N, h, w) in small."""
        ...

    def enlarged(self, mask: Tensor, size: tuple[int, int], factors: Sequence[float] = (1.0, 1.0)) -> Tensor:
        """Logits (H, W) of a mask (h, w)."""
        ...

    def painted(self, candidates: Segments, mask: Callable[[int], Tensor]) -> Segments:
        """The label map of candidates, given what calculates the mask (H, W) of one, logits or probabilities."""
        ...


def segments_of_views(
    method: Method,
    network: Callable[[Tensor], dict[str, Tensor]],
    images: Tensor,
    views: Sequence[View],
    size: tuple[int, int],
) -> Segments:
    """What is found in an image and its copies.

    Boxes and masks are joined by `fused`. Of panoptic methods things are as well, the probabilities of the classes of
    pixels are averaged, and only then are both merged; the masks of queries are averaged within the groups that `fused`
    makes, those for the same stuff being one group, before they compete for the pixels.

    Args:
        method: Decodes the outputs.
        network: Gives them.
        images: (1, C, H, W), padded at the bottom and the right to multiples of the method's stride.
        views: The copies.
        size: (H, W) of the image before padding.
    """
    image = images[..., : size[0], : size[1]]
    seen = [_seen(method, network, image, view) for view in views]
    if hasattr(method, "merged"):
        return _of_branches(cast("MergesBranches", method), seen, size)
    if hasattr(method, "painted"):
        return _of_queries(cast("MergesQueries", method), seen, size)
    found = [copy.brought_back(method.decode(copy.outputs, [copy.size])[0], size) for copy in seen]
    return fused(found, len(views), getattr(method, "class_agnostic", False))


class _Copy(NamedTuple):
    """A copy of the image, as the network saw it."""

    view: View
    size: tuple[int, int]
    """(H, W) without padding."""
    outputs: dict[str, Tensor]

    def brought_back(self, segments: Segments, size: tuple[int, int]) -> Segments:
        """Segments of the image, which has that size, from those of the copy."""
        back = turned_back(segments, self.view.flip, self.view.turns)
        return back if self.view.scale == 1 else restored(back, size)[0]

    def map_brought_back(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """Maps (..., H, W) of the image from those of the copy."""
        back = torch.rot90(maps.flip(-1) if self.view.flip else maps, -self.view.turns, (-2, -1))
        if self.view.scale == 1:
            return back
        flat = back.reshape(1, -1, *back.shape[-2:])
        resized = functional.interpolate(flat, size=size, mode="bilinear", align_corners=False)
        return resized.reshape(*back.shape[:-2], *size)


def _seen(method: Method, network: Callable[[Tensor], dict[str, Tensor]], image: Tensor, view: View) -> _Copy:
    flip, turns, scale = view
    if scale != 1:
        sides = [max(1, round(scale * int(side))) for side in image.shape[-2:]]
        image = functional.interpolate(image, size=sides, mode="bilinear", align_corners=False, antialias=scale < 1)
    copy = torch.rot90(image, turns, (-2, -1))
    copy = copy.flip(-1) if flip else copy
    inside = (int(copy.shape[-2]), int(copy.shape[-1]))
    stride = method.stride
    padded = pad_constant(copy, -inside[0] % stride, -inside[1] % stride, method.padding or 0.0)
    return _Copy(view, inside, network(padded))


def _of_branches(method: MergesBranches, seen: Sequence[_Copy], size: tuple[int, int]) -> Segments:
    """The segments of an image of whose copies two branches have said something."""
    things: list[Segments] = []
    mean: Tensor | None = None
    for copy in seen:
        ((found, logits),) = method.parts(copy.outputs, [copy.size], 0.0)
        things.append(copy.brought_back(found, size))
        if logits is not None:
            share = copy.map_brought_back(logits.softmax(0), size) / len(seen)
            mean = share if mean is None else mean + share
    # Logarithms of probabilities are logits, too.
    things_of_all = fused(things, len(seen), getattr(method, "class_agnostic", False))
    return method.merged(things_of_all, None if mean is None else mean.log())


def _of_queries(method: MergesQueries, seen: Sequence[_Copy], size: tuple[int, int]) -> Segments:
    """The segments of an image whose copies were seen by queries."""
    found: list[Segments] = []
    masks: list[Tensor] = []
    for copy in seen:
        candidates, small = method.candidates(copy.outputs, 0, copy.size)
        found.append(copy.brought_back(candidates, size))
        masks.append(small)
    groups = grouped(found, len(seen), method.stuff)

    def mask_of(number: int) -> Tensor:
        """The mean over the copies of the probability (H, W); of several queries for the same stuff the highest."""
        group = groups[number]
        total: Tensor | None = None
        for index in np.unique(group.copy).tolist():
            here = group.copy == index
            copy, small = seen[index], masks[index][torch.from_numpy(group.index[here])]
            highest = torch.stack([method.enlarged(each, copy.size) for each in small]).amax(0).sigmoid()
            back = copy.map_brought_back(highest, size) * float(group.weight[here].max())
            total = back if total is None else total + back
        assert total is not None  # noqa: S101 - a group has members
        return total / sum(float(group.weight[group.copy == each].max()) for each in np.unique(group.copy))

    return method.painted(_columns(groups, size), mask_of)


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


@dataclass(frozen=True, eq=False)
class Group:
    """What several copies show of one object.

    Args:
        category: Of all members.
        score: Sum of the members' scores, of each copy the highest, by the number of copies: what only some copies show
            is less probable.
        box: (4,) mean of the members' boxes, weighted by their scores.
        copy: (M,) int64: which copy each member is of.
        index: (M,) int64: which segment of that copy it is.
        weight: (M,) its score.
    """

    category: int
    score: float
    box: NDArray[np.float64]
    copy: NDArray[np.int64]
    index: NDArray[np.int64]
    weight: NDArray[np.float64]


def grouped(
    found: Sequence[Segments], copies: int, whole: Collection[int] = (), class_agnostic: bool = False
) -> list[Group]:
    """Groups of segments of one class that lie on each other (Solovyev et al. 2021, weighted boxes fusion), best first.

    Args:
        found: Segments of each copy, with boxes and scores, of one size.
        copies: How many there are.
        whole: Classes of which an image has one segment at most: all are one group, with all members of each copy. Of
            other groups a copy has one member, since others are doubles within it.
        class_agnostic: Segments of different classes make a group, too, of the class of the best one.
    """
    boxes = np.concatenate([each.boxes() if len(each) else np.zeros((0, 4)) for each in found])
    score = np.concatenate([np.zeros(0) if each.score is None else each.score for each in found])
    category = np.concatenate([each.category for each in found])
    copy = np.repeat(np.arange(len(found)), [len(each) for each in found])
    place = np.concatenate([np.arange(len(each)) for each in found])
    order = np.argsort(-score, kind="stable")
    free = np.ones(len(score), np.bool_)
    groups: list[Group] = []
    for leader in order.tolist():
        if not free[leader]:
            continue
        members = order[free[order] & ((category[order] == category[leader]) | class_agnostic)]
        of_whole = int(category[leader]) in whole
        if not of_whole:
            members = members[box_iou(boxes[leader][None], boxes[members], pairwise=True)[0] >= SAME]
        free[members] = False
        best = members[np.unique(copy[members], return_index=True)[1]]
        weights = score[best] / max(score[best].sum(), 1e-12)
        kept = members if of_whole else best
        total = float(score[best].sum() / copies)
        groups.append(Group(int(category[leader]), total, weights @ boxes[best], copy[kept], place[kept], score[kept]))
    return sorted(groups, key=lambda each: -each.score)


def fused(found: Sequence[Segments], copies: int, class_agnostic: bool = False) -> Segments:
    """Segments from those of several copies: boxes by weighted boxes fusion, masks by a vote on every pixel.

    Args:
        found: Segments of each copy, of one size, with boxes or run-length masks.
        copies: How many there are.
        class_agnostic: Join segments of different classes, too.
    """
    groups = grouped(found, copies, class_agnostic=class_agnostic)
    size = (found[0].size[0], found[0].size[1])
    geometry = None
    if all(isinstance(each.geometry, Masks) for each in found):
        from everymask.ops.mask_voting import vote_masks

        geometries = [each.geometry for each in found if isinstance(each.geometry, Masks)]
        members = [(group.copy, group.index) for group in groups]
        runs = [geometries[i][j] for copy, index in members for i, j in zip(copy.tolist(), index.tolist(), strict=True)]
        masks = Masks.join(size, runs)
        starts = np.cumsum([0, *(len(copy) for copy, _ in members)])
        weights = np.concatenate([np.zeros(0), *(group.weight for group in groups)])
        geometry = Masks(size, *vote_masks(masks.counts, masks.offsets, starts, weights, size[0] * size[1]))
    return _columns(groups, size, geometry)


def _columns(groups: Sequence[Group], size: tuple[int, int], geometry: Masks | None = None) -> Segments:
    return Segments(
        size,
        [each.category for each in groups],
        geometry,
        score=[each.score for each in groups],
        box=np.array([each.box for each in groups]).reshape(-1, 4),
    )
