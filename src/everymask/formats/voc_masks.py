"""Masks of Pascal VOC: one picture of classes and one of objects, and how they become segments.

The VOC colour map gives each number a colour by spreading its bits over red, green and blue (`VOClabelcolormap.m` of
the devkit). Taken to 24 bits it is one to one, so any colour of an object picture is a number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from everymask.errors import InputError
from everymask.files import atomic_write
from everymask.formats.checks import check_same_size, file_head
from everymask.formats.columns import attribute_column
from everymask.formats.images import read_image, read_labels
from everymask.types import Categories, LabelMap, Segments

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from everymask.formats.voc_xml import VocObject

VOID = 255
"""Value, in pictures, of pixels to ignore, such as the borders of objects."""
NO_CLASS = -1
"""What `VOID` is read as in pictures of classes, of which there may be more than 255."""
_SAME_OBJECT = 0.5
"""IoU of boxes from which the numbers of objects are trusted."""


# -- colours ---------------------------------------------------------------------------------------------------------


def _spread_bits() -> NDArray[np.int32]:
    """(3, 256) the share of a number that each value of red, green and blue stands for."""
    values = np.arange(256)
    table = np.zeros((3, 256), np.int32)
    for bit in range(8):
        for channel in range(3):
            table[channel] |= ((values >> (7 - bit)) & 1) << (3 * bit + channel)
    return table


def colour_numbers(colours: NDArray[np.uint8]) -> NDArray[np.int32]:
    """(...) the numbers 0..2^24 - 1 whose VOC colours are (..., 3) red, green, blue."""
    table = _spread_bits()
    return table[0][colours[..., 0]] | table[1][colours[..., 1]] | table[2][colours[..., 2]]


def number_colours(numbers: NDArray[np.integer]) -> NDArray[np.uint8]:
    """(..., 3) the VOC colours of numbers 0..2^24 - 1; the inverse of `colour_numbers`."""
    numbers = np.asarray(numbers, np.int64)
    colours = np.zeros((*numbers.shape, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[..., channel] |= (((numbers >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return colours


@dataclass(frozen=True)
class Palette:
    """What the values or colours of class pictures mean.

    Args:
        values: Of each colour number: 0 background, -1 void, else the id of a category. None where pictures hold the
            values themselves.
        known: The ids of the categories.
        source: Where to look for the meaning, for messages.
    """

    values: Mapping[int, int] | None
    known: frozenset[int]
    source: str


# -- reading ---------------------------------------------------------------------------------------------------------


def read_classes(path: Path, palette: Palette) -> NDArray[np.int32]:
    """(H, W) ids of categories, 0 background, -1 void.

    Raises:
        InputError: A pixel has a value or a colour that is no class; the message names pixel and value.
    """
    from everymask.ops.label_tables import distinct, renumber

    numbers, coloured = _numbers(path, by_colour=palette.values is not None)
    found = distinct(numbers)
    if coloured and palette.values is not None:
        unknown = [int(each) for each in found if int(each) not in palette.values]
        meaning = np.array([palette.values.get(int(each), 0) for each in found])
    else:
        unknown = [int(each) for each in found if int(each) not in {0, VOID, *palette.known}]
        meaning = np.where(found == VOID, NO_CLASS, found)
    if unknown:
        y, x = (int(each) for each in np.argwhere(numbers == unknown[0])[0])
        red, green, blue = (int(each) for each in number_colours(np.array(unknown[0])))
        what = f"the colour {red}, {green}, {blue}" if coloured else f"the value {unknown[0]}"
        raise InputError(
            f"{path}: the pixel at x = {x}, y = {y} has {what}, which is no class; add it to {palette.source}, or "
            "correct the mask"
        )
    return renumber(numbers, found, meaning)


def read_objects(path: Path) -> NDArray[np.int32]:
    """(H, W) numbers of objects, 0 background, 255 void."""
    return _numbers(path, by_colour=False)[0]


def _numbers(path: Path, *, by_colour: bool) -> tuple[NDArray[np.int32], bool]:
    """The numbers of a picture, and whether they were told by colour.

    Args:
        path: The picture. Grey pictures hold numbers, RGB ones VOC colours.
        by_colour: Of a palette picture, take the colours instead of the indices.
    """
    head = file_head(path)
    png = head.startswith(b"\x89PNG") and len(head) > 25
    colour_type = head[25] if png else 0
    if colour_type in {2, 6} or (colour_type == 3 and by_colour):
        image = read_image(path)
        if image.dtype == np.uint8 and image.shape[-1] in {3, 4}:
            return colour_numbers(image[..., :3]), True
    values = read_labels(path)
    if values.ndim != 2:
        raise InputError(f"{path} is a volume, but VOC masks are pictures; write one for each plane")
    return values.astype(np.int32), False


# -- segments --------------------------------------------------------------------------------------------------------


def combine(
    paths: tuple[Path | None, Path | None],
    palette: Palette,
    categories: Categories,
    listed: Sequence[VocObject],
    size: tuple[int, ...],
    source: Path,
) -> Segments:
    """Segments of object masks, with classes from the class picture and boxes and flags from the listed objects.

    - The class of an object is the one that most of its pixels have in the class picture. Without that picture, it
      is the class of the listed object that it is matched to, or the only category.
    - Void is what is void in the object picture, and what is void in the class picture and in no object.
    - Class pixels outside all objects are one further segment for each class.
    - Masks and listed objects are the same object where mask number k has the class of listed object k and their boxes
      have an IoU of at least .5; of the rest, pairs of one class by falling IoU of their boxes. Files of EveryMask say
      it themselves (attribute ``label``) where this would not do.
    - Listed objects come first, in their order; those without a mask have no pixels. Masks that are not listed follow.

    Args:
        paths: The class picture and the object picture, of which one may be missing.
        palette: Of the class picture.
        categories: The classes.
        listed: The objects of the annotation file.
        size: (H, W) of the image.
        source: The image, for messages.

    Raises:
        InputError: Sizes differ, or an object has no class.
    """
    from everymask.ops.label_tables import distinct, joint_histogram, renumber
    from everymask.ops.labels import label_boxes

    class_path, object_path = paths
    classes = None if class_path is None else read_classes(class_path, palette)
    objects = None if object_path is None else read_objects(object_path)
    for picture, path in ((classes, class_path), (objects, object_path)):
        if picture is not None and path is not None:
            check_same_size(size, picture.shape, source, path)
    if objects is None or object_path is None:
        if classes is None:
            raise InputError(f"{source} has no masks")
        return Segments.from_semantic_map(classes, void=NO_CLASS, background=0)

    numbers = np.array([each for each in distinct(objects) if each not in (0, VOID)], np.int64)
    class_of = np.full(len(numbers), -1, np.int64)
    further = np.zeros(0, np.int64)
    if classes is not None:
        number, kind, count = joint_histogram(objects, classes)
        real = kind > 0
        for i, each in enumerate(numbers):
            own = real & (number == each)
            if not own.any():
                raise InputError(
                    f"{class_path} has no class at the pixels of object {each} of {object_path}; paint them in the "
                    "colour of its class"
                )
            class_of[i] = kind[own][np.argmax(count[own])]
        further = kind[real & (number == 0)]
    present = distinct(objects)
    ids = renumber(objects, present, np.where(np.isin(present, numbers), np.searchsorted(numbers, present) + 1, 0))
    tight = label_boxes(ids, len(numbers)).astype(np.float64)
    listed_class = np.array([categories.by_name(each.name).id for each in listed], np.int64)
    given = np.array([each.box or (0, 0, 0, 0) for each in listed], np.float64).reshape(-1, 4)
    place = _linked(numbers, listed)
    if place is None:
        place = _matched(numbers, class_of, tight, listed_class, given)
    unknown = class_of < 0
    class_of[unknown & (place >= 0)] = listed_class[place[unknown & (place >= 0)]]
    if len(categories) == 1:
        class_of[class_of < 0] = categories[0].id
    if (class_of < 0).any():
        raise InputError(
            f"{object_path}: the class of object {numbers[class_of < 0][0]} is not known; add the picture of classes "
            "(SegmentationClass), or its box and name to the annotation file"
        )
    return _assembled(
        _Found(objects, classes, numbers, class_of, place, further), listed, listed_class, given
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Found:
    """The V objects of a mask: their numbers, categories and places among the listed objects or -1."""

    objects: NDArray[np.int32]
    classes: NDArray[np.int32] | None
    numbers: NDArray[np.int64]
    class_of: NDArray[np.int64]
    place: NDArray[np.int64]
    further: NDArray[np.int64]


def _assembled(
    found: _Found, listed: Sequence[VocObject], listed_class: NDArray[np.int64], given: NDArray[np.float64]
) -> Segments:
    """Listed objects, then masks that are not listed, then class pixels outside all objects."""
    from everymask.ops.label_tables import distinct, renumber
    from everymask.ops.labels import label_boxes

    own = np.flatnonzero(found.place < 0)
    segment = found.place.copy()
    segment[own] = len(listed) + np.arange(len(own))
    count = len(listed) + len(own) + len(found.further)
    category = np.concatenate([listed_class, found.class_of[own], found.further])
    present = distinct(found.objects)
    target = dict(zip(found.numbers.tolist(), (segment + 1).tolist(), strict=True)) | {0: 0, VOID: -1}
    ids = renumber(found.objects, present, np.array([target[int(each)] for each in present]))
    if found.classes is not None:
        outside = found.objects == 0
        ids[outside & (found.classes == NO_CLASS)] = -1
        for offset, kind in enumerate(found.further):
            ids[outside & (found.classes == kind)] = len(listed) + len(own) + offset + 1
    label = np.zeros(count, np.int64)
    label[segment] = found.numbers
    # Numbers that no object has, as if these pixels were objects, too.
    label[count - len(found.further) :] = _free_numbers(int(found.numbers.max(initial=0)), len(found.further))
    tight = label_boxes(ids, count).astype(np.float64)
    box = tight.copy()
    box[: len(listed)] = given
    lacking = [i for i, each in enumerate(listed) if each.box is None]
    box[lacking] = tight[lacking]
    columns, score = object_columns(listed, count)
    if all(type(each.attributes.get("label")) is int for each in listed):
        columns.pop("label", None)
    if not np.array_equal(label, np.where(label > 0, np.arange(1, count + 1), 0)):
        columns["label"] = label
    return Segments(
        ids.shape,
        category,
        LabelMap(ids),
        score=score,
        # Boxes that say nothing new are left to the masks.
        box=None if np.array_equal(box, tight) else box,
        attributes=columns,
    )


def object_columns(
    listed: Sequence[VocObject], count: int
) -> tuple[dict[str, NDArray[Any]], NDArray[np.float64] | None]:
    """Attributes as columns of `count` values, and the scores if all have one; segments beyond the listed lack all.

    What lacks a flag does not have it, what lacks a pose has an empty one, and what lacks another attribute has None.
    """
    from everymask.formats.voc_xml import FLAGS

    empty: dict[str, Any] = dict.fromkeys(FLAGS, False) | {"pose": ""}
    keys = dict.fromkeys(key for each in listed for key in each.attributes)
    columns: dict[str, NDArray[Any]] = {}
    for key in keys:
        usual = empty.get(key)
        if not all(type(each.attributes.get(key, usual)) is type(usual) for each in listed):
            usual = None  # it is no flag here, but something that is called like one
        values = [each.attributes.get(key, usual) for each in listed]
        columns[key] = attribute_column([*values, *[usual] * (count - len(listed))])
    scores = [each.score for each in listed if each.score is not None]
    if scores and len(scores) == count:
        return columns, np.array(scores, np.float64)
    if scores:
        columns["confidence"] = attribute_column([*[each.score for each in listed], *[None] * (count - len(listed))])
    return columns, None


def _free_numbers(highest: int, count: int) -> NDArray[np.int64]:
    """The next `count` numbers of objects above `highest`; 255 is none."""
    numbers = highest + 1 + np.arange(count)
    return numbers + (numbers >= VOID) if highest < VOID else numbers


def _linked(numbers: NDArray[np.int64], listed: Sequence[VocObject]) -> NDArray[np.int64] | None:
    """(V,) as `_matched`, where the listed objects say which mask is theirs: the attribute ``label`` of our files."""
    labels = [each.attributes.get("label") for each in listed]
    if not labels or not all(type(each) is int for each in labels):
        return None
    places = {each: i for i, each in enumerate(labels)}
    return np.array([places.get(int(each), -1) for each in numbers], np.int64)


def _matched(
    numbers: NDArray[np.int64],
    class_of: NDArray[np.int64],
    tight: NDArray[np.float64],
    listed_class: NDArray[np.int64],
    given: NDArray[np.float64],
) -> NDArray[np.int64]:
    """(V,) position of the listed object that each mask belongs to, -1 for none; see `combine`."""
    from everymask.ops.boxes import box_iou

    place = np.full(len(numbers), -1, np.int64)
    if not len(numbers) or not len(listed_class):
        return place
    same = (class_of[:, None] < 0) | (class_of[:, None] == listed_class)
    iou = np.where(same, np.asarray(box_iou(tight, given, pairwise=True)), 0.0)
    by_number = numbers - 1
    trusted = np.flatnonzero((by_number >= 0) & (by_number < len(listed_class)))
    trusted = trusted[iou[trusted, by_number[trusted]] >= _SAME_OBJECT]
    place[trusted] = by_number[trusted]
    iou[trusted] = 0
    iou[:, by_number[trusted]] = 0
    while iou.max(initial=0.0) > 0:
        mask, item = np.unravel_index(np.argmax(iou), iou.shape)
        place[mask] = item
        iou[mask] = 0
        iou[:, item] = 0
    return place


# -- writing ---------------------------------------------------------------------------------------------------------


def write_palette(path: Path, numbers: NDArray[Any], colours: NDArray[np.uint8] | None = None) -> None:
    """Writes a palette PNG.

    Args:
        path: The PNG.
        numbers: (H, W) 0..255.
        colours: (256, 3) of the palette; the VOC colour map if not given.
    """
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(numbers, np.uint8))
    image.putpalette((number_colours(np.arange(256)) if colours is None else colours).tobytes())
    with atomic_write(path) as temporary:
        image.save(temporary, format="PNG")


def linked_by_number(segments: Segments, ids: NDArray[np.int32], numbers: NDArray[np.int64]) -> bool:
    """Whether `combine` finds the listed object of every mask by its number alone.

    Args:
        segments: N segments, which are listed in their order.
        ids: Their label map.
        numbers: (N,) of their masks, 0 for those without.
    """
    from everymask.ops.boxes import box_iou
    from everymask.ops.labels import label_boxes

    own = np.flatnonzero(numbers)
    iou = np.asarray(box_iou(label_boxes(ids, len(segments)).astype(np.float64), segments.boxes()))
    return bool((numbers[own] == own + 1).all() and (iou[own] >= _SAME_OBJECT).all())


def mask_numbers(segments: Segments, ids: NDArray[np.int32], limit: int) -> NDArray[np.int64]:
    """(N,) a number for each object: those it was read with, or its position; 255 is never one.

    Args:
        segments: N segments.
        ids: Their label map.
        limit: The highest number that the file can hold.

    Raises:
        InputError: There are too many objects.
    """
    count = len(segments)
    present = np.bincount(ids[ids > 0], minlength=count + 1)[1:] > 0
    numbers = _free_numbers(0, count)
    own = segments.attributes.get("label")
    if own is not None and own.dtype.kind in "iu":
        used = own[present]
        if ((used > 0) & (used != VOID) & (used <= limit)).all() and len(np.unique(used)) == len(used):
            numbers = own
    numbers = np.where(present, numbers, 0)
    if int(numbers.max(initial=0)) > limit:
        raise InputError(
            f"there are {count} objects, but a VOC mask numbers at most {limit}; cut the image into smaller ones, or "
            "write coco or label_images"
        )
    return numbers
