"""Boxes and masks of training crops, for methods that find objects by their boxes; joining crops into new ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from everymask.types import LabelMap, Segments

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from everymask.data.augment import Placement

VISIBLE = 0.25
"""Of an object less of which lies in a crop nothing is learnt: it is neither found nor missed there."""


@dataclass(frozen=True, slots=True, eq=False)
class Objects:
    """The objects of a crop.

    Args:
        boxes: (N, 4) float32 x0, y0, x1, y1 in pixels of the crop, within it.
        category: (N,) class indices.
        crowd: (N,) bool: neither to be found nor missed.
        masks: (N, H, W) bool, may overlap; None for methods that learn from boxes alone.
    """

    boxes: NDArray[np.float32]
    category: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    masks: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.category)

    def __getitem__(self, chosen: NDArray[Any]) -> Objects:
        masks = None if self.masks is None else self.masks[chosen]
        return Objects(self.boxes[chosen], self.category[chosen], self.crowd[chosen], masks)

    def segments(self, size: tuple[int, int]) -> Segments:
        """The same as a method's targets are made from."""
        if self.masks is None:
            return Segments(size, self.category, None, box=self.boxes.astype(np.float64), crowd=self.crowd)
        if not len(self):
            return Segments(size, self.category, LabelMap(np.zeros(size, np.int32)), crowd=self.crowd)
        found: Segments = Segments.from_masks(self.masks, self.category, crowd=self.crowd)
        return found


def joined(parts: Sequence[Objects]) -> Objects:
    """The objects of several crops of one size, one after the other."""
    masks = [part.masks for part in parts if part.masks is not None]
    return Objects(
        np.concatenate([part.boxes for part in parts]),
        np.concatenate([part.category for part in parts]),
        np.concatenate([part.crowd for part in parts]),
        np.concatenate(masks) if len(masks) == len(parts) else None,
    )


def layers_of(segments: Segments) -> NDArray[np.int32]:
    """Label maps in which no two segments overlap: (H, W), or (H, W, P) with as few of them as a greedy choice finds.

    Args:
        segments: With a geometry. Segment i has the label i + 1; void of a label map stays -1.
    """
    if isinstance(segments.geometry, LabelMap):
        return segments.geometry.ids
    from everymask.ops import rle

    runs = segments.rles()
    boxes = rle.boxes(runs.counts, runs.offsets, runs.size).astype(np.int64)
    layers: list[NDArray[np.int32]] = []
    for number, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        counts = runs[number]
        window = (slice(y0, y1), slice(x0, x1))
        mask = rle.decode(counts, np.array([0, len(counts)], np.int64), runs.size)[0][window].astype(bool)
        free = next((layer for layer in layers if not layer[window][mask].any()), None)
        if free is None:
            free = np.zeros(segments.size, np.int32)
            layers.append(free)
        free[window][mask] = number + 1
    if not layers:
        return np.zeros(segments.size, np.int32)
    return layers[0] if len(layers) == 1 else np.stack(layers, axis=-1)


def crop_boxes(
    placement: Placement,
    boxes: NDArray[np.floating],
    centre: NDArray[np.float64],
    crop: int,
    category: NDArray[np.int64],
    crowd: NDArray[np.bool_],
) -> Objects:
    """The objects of a crop from the boxes of its image; those that are cut off too far become crowds.

    Args:
        placement: How the crop lies in the image.
        boxes: (N, 4) x0, y0, x1, y1 in pixels of the image.
        centre: (y, x) of the crop in the image.
        crop: Its side.
        category: (N,).
        crowd: (N,).
    """
    moved = placement.moved_boxes(boxes, centre, crop)
    cut = np.clip(moved, 0, crop)
    sides, whole = cut[:, 2:] - cut[:, :2], moved[:, 2:] - moved[:, :2]
    share = sides.prod(axis=1) / np.maximum(whole.prod(axis=1), 1e-9)
    inside = (sides >= 1).all(axis=1) | ((sides > 0).all(axis=1) & (share > 1 - 1e-6))
    return Objects(cut.astype(np.float32), category, crowd | (share < VISIBLE))[inside]


def crop_masks(
    layers: NDArray[np.int32], pixels: NDArray[np.floating], category: NDArray[np.int64], crowd: NDArray[np.bool_]
) -> Objects:
    """The objects of a crop from its label maps; those that are cut off too far become crowds.

    Args:
        layers: (crop, crop) or (crop, crop, P) labels.
        pixels: (N,) pixels that each object would have in a crop that holds it wholly.
        category: (N,).
        crowd: (N,).
    """
    from everymask.ops.labels import label_areas, label_boxes

    count = len(category)
    planes = [layers] if layers.ndim == 2 else [np.ascontiguousarray(each) for each in np.moveaxis(layers, -1, 0)]
    areas, boxes = np.zeros(count, np.int64), np.zeros((count, 4), np.int64)
    for plane in planes:  # an object lies in one of them
        areas += label_areas(plane, count)
        boxes += label_boxes(plane, count)
    kept = np.flatnonzero(areas)
    masks = np.zeros((len(kept), *layers.shape[:2]), np.bool_)
    for place, number in enumerate(kept.tolist()):
        x0, y0, x1, y1 = boxes[number].tolist()
        window = layers[y0:y1, x0:x1] == number + 1
        masks[place, y0:y1, x0:x1] = window if window.ndim == 2 else window.any(axis=-1)
    hidden = areas < VISIBLE * pixels
    return Objects(boxes[kept].astype(np.float32), category[kept], (crowd | hidden)[kept], masks)


# -- crops made of crops -----------------------------------------------------------------------------------------------

Crop = tuple["NDArray[np.float32]", Objects]
"""An image (C, H, W) and its objects."""


def mosaic(parts: Sequence[Crop], corner: tuple[int, int]) -> Crop:
    """Four crops around a corner, of each the quarter that lies towards its own middle (Bochkovskiy et al. 2020).

    Args:
        parts: Four crops of one size: top left, top right, bottom left, bottom right.
        corner: Row and column at which they meet.
    """
    height, width = parts[0][0].shape[-2:]
    image = np.empty_like(parts[0][0])
    found: list[Objects] = []
    for number, (pixels, objects) in enumerate(parts):
        rows = slice(0, corner[0]) if number < 2 else slice(corner[0], height)
        columns = slice(0, corner[1]) if number % 2 == 0 else slice(corner[1], width)
        # From the middle of the part, so that objects are not cut at its outer edges only.
        top, left = (height - (rows.stop - rows.start)) // 2, (width - (columns.stop - columns.start)) // 2
        source = (slice(top, top + rows.stop - rows.start), slice(left, left + columns.stop - columns.start))
        image[:, rows, columns] = pixels[:, source[0], source[1]]
        found.append(_windowed(objects, source, (rows.start - top, columns.start - left), (height, width)))
    return image, joined(found)


def _windowed(objects: Objects, window: tuple[slice, slice], shift: tuple[int, int], size: tuple[int, int]) -> Objects:
    """What is left of objects in a window that is moved to another place of a crop of that size."""
    rows, columns = window
    low = np.array([columns.start, rows.start] * 2, np.float32)
    high = np.array([columns.stop, rows.stop] * 2, np.float32)
    cut = np.clip(objects.boxes, low, high)
    sides, whole = cut[:, 2:] - cut[:, :2], objects.boxes[:, 2:] - objects.boxes[:, :2]
    share = sides.prod(axis=1) / np.maximum(whole.prod(axis=1), 1e-9)
    masks = None
    if objects.masks is not None:
        masks = np.zeros((len(objects), *size), np.bool_)
        target = tuple(slice(each.start + by, each.stop + by) for each, by in zip(window, shift, strict=True))
        masks[(slice(None), *target)] = objects.masks[(slice(None), *window)]
    moved = cut + np.array([shift[1], shift[0]] * 2, np.float32)
    kept = np.all(sides >= 1, axis=1)
    found = Objects(moved, objects.category, objects.crowd | (share < VISIBLE), masks)[kept]
    return _tight(found)


def mixup(one: Crop, other: Crop) -> Crop:
    """The mean of two crops with the objects of both (Zhang et al. 2018, as in YOLOX)."""
    return np.float32(0.5) * (one[0] + other[0]), joined([one[1], other[1]])


def copy_paste(one: Crop, other: Crop, rng: np.random.Generator) -> Crop:
    """Some objects of the other crop are laid on the first one (Ghiasi et al. 2021).

    Masks that are covered shrink, and their boxes with them; objects of which little is left become crowds.

    Args:
        one: A crop with masks.
        other: Of the same size, with masks.
        rng: Draws each object of the other crop, crowds apart, with a probability of one half.
    """
    (image, objects), (pixels, others) = one, other
    if objects.masks is None or others.masks is None:
        raise ValueError("objects without masks cannot be pasted")
    pasted = others[~others.crowd & (rng.random(len(others)) < 0.5)]
    if not len(pasted) or pasted.masks is None:
        return one
    cover = pasted.masks.any(axis=0)
    before = objects.masks.sum(axis=(1, 2))
    left = objects.masks & ~cover
    hidden = left.sum(axis=(1, 2)) < VISIBLE * before
    remaining = _tight(Objects(objects.boxes, objects.category, objects.crowd | hidden, left))
    return np.where(cover, pixels, image), joined([remaining, pasted])


def _tight(objects: Objects) -> Objects:
    """Objects with masks get boxes around what is left of them; those of which nothing is left go."""
    if objects.masks is None:
        return objects
    rows, columns = np.any(objects.masks, axis=2), np.any(objects.masks, axis=1)
    left = np.flatnonzero(np.any(rows, axis=1))
    ends = [_ends(each[left]) for each in (columns, rows)]
    boxes = np.stack([ends[0][0], ends[1][0], ends[0][1], ends[1][1]], axis=1).astype(np.float32)
    return Objects(boxes, objects.category[left], objects.crowd[left], objects.masks[left])


def _ends(along: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first and one past the last true entry of each row (N, L)."""
    return np.argmax(along, axis=1), along.shape[1] - np.argmax(along[:, ::-1], axis=1)
