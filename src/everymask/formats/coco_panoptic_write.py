"""Writing COCO panoptic data sets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from everymask.errors import InputError
from everymask.files import atomic_write
from everymask.formats.coco_panoptic_schema import CROWD_INSTANCE, ID_END
from everymask.formats.coco_schema import json_boxes
from everymask.formats.exporting import check_relative, copy_image
from everymask.formats.images import image_size, write_image
from everymask.types import Categories, Dataset, Segments
from everymask.types.segments import Overlap

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMS = ("ids", "2ch")
_ENCODER = msgspec.json.Encoder()
_STRIDE = 0x5BD1E5
"""Odd, so that adding it again and again meets every colour; large, so that colours which follow each other differ."""


def check_form(form: str) -> None:
    """Makes sure that `form` is one of `FORMS`."""
    if form not in FORMS:
        raise InputError(f"form must be one of {', '.join(FORMS)}, got {form!r}")


def write(
    dataset: Dataset, target: Path, *, form: str = "ids", overlap: Overlap = "error", link_images: bool = False
) -> None:
    """Writes `panoptic.json`, `panoptic/` and `images/`; reading them gives the same segments.

    Void and background both become black, which is void. Ids of images (``extra["image_id"]``) and of segments
    (attribute ``id``) stay as long as they are unique and, for segments, colours; new ones are given where there are
    none: the colour of the category for its first segment in an image. Boxes and areas are those of the data set, or
    counted.

    Args:
        dataset: Segments of any geometry.
        target: The folder.
        form: ``"ids"``, or ``"2ch"``: the category in the red, the instance in the green channel, 255 for crowds. Both
            have the same JSON, so that what is written as ``"2ch"`` can be read in either form.
        overlap: What happens where segments overlap: ``"error"``, ``"score"`` or ``"last"``; see `Segments.label_map`.
        link_images: Make hard links of the image files instead of copies.

    Raises:
        InputError: A sample is a volume or has no outlines, segments overlap, or the 2-channel form has no place for
            its categories or that many objects.
    """
    check_form(form)
    numbers = _numbers([sample.extra.get("image_id") for sample in dataset])
    images: list[dict[str, Any]] = []
    licences: dict[Any, Any] = {}
    (target / "panoptic").mkdir(parents=True, exist_ok=True)
    with atomic_write(target / "panoptic.json") as temporary, temporary.open("wb") as stream:
        stream.write(_ENCODER.encode({"info": {"description": "written by EveryMask"}})[:-1])
        stream.write(b',"annotations":[\n')
        separator = b""
        for sample, number in zip(dataset, numbers, strict=True):
            file = copy_image(sample, target / "images", link=link_images)
            segments = sample.segments
            size = image_size(file) if segments is None else segments.size
            if len(size) != 2:
                raise InputError(
                    f"{sample.name} is a volume of {size}, which COCO panoptic cannot hold; write label_images instead"
                )
            if (licence := sample.extra.get("license_entry")) is not None:
                licences[licence["id"]] = licence
            extra = {key: value for key, value in sample.extra.items() if key not in {"image_id", "license_entry"}}
            known = {"id": number, "file_name": file.relative_to(target / "images").as_posix()}
            images.append({**extra, **known, "width": int(size[1]), "height": int(size[0])})
            if segments is None:
                continue
            labels = _labels(segments, sample.name, overlap)
            dataset.categories.indices(segments.category)
            if form == "2ch":
                ids = _instance_ids(segments, dataset.categories, sample.name)
            else:
                ids = _colour_ids(segments, dataset.categories)
            mask = f"{check_relative(sample.name, 'name of a sample')}.png"
            write_image(target / "panoptic" / mask, _colours(labels, ids))
            entry = {"image_id": number, "file_name": mask, "segments_info": list(_rows(segments, labels, ids))}
            stream.write(separator + _ENCODER.encode(entry))
            separator = b",\n"
        rest = {"images": images, "categories": _categories(dataset.categories), "licenses": list(licences.values())}
        stream.write(b"\n]," + _ENCODER.encode(rest)[1:])


def _labels(segments: Segments, name: str, overlap: Overlap) -> NDArray[np.int32]:
    """The label map of the segments of a sample."""
    if segments.geometry is None:
        if len(segments):
            raise InputError(f"{name} has boxes or tags only, which panoptic PNG cannot hold; write coco instead")
        return np.zeros(segments.size, np.int32)
    try:
        return segments.label_map(overlap)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def _colours(labels: NDArray[np.int32], ids: Sequence[int]) -> NDArray[np.uint8]:
    """(H, W, 3) the ids as red + 256 green + 256^2 blue; black where no segment is."""
    table = np.array([0, 0, *ids], "<u4")  # void, background, segments
    return table[labels + 1].view(np.uint8).reshape(*labels.shape, 4)[..., :3]


def _own_ids(segments: Segments) -> list[int] | None:
    """The attribute ``id``, if it can be the colours of the segments."""
    column = segments.attributes.get("id")
    if column is None or column.dtype.kind not in "iu":
        return None
    ids: list[int] = column.tolist()
    return ids if len(set(ids)) == len(ids) and all(0 < each < ID_END for each in ids) else None


def _colour_ids(segments: Segments, categories: Categories) -> list[int]:
    """An id for each segment: its own, or a colour that starts from that of its category."""
    own = _own_ids(segments)
    if own is not None:
        return own
    red, green, blue = categories.colours().astype(int).T
    starts = (red | green << 8 | blue << 16)[categories.indices(segments.category)]
    used = {0}
    ids = []
    for start in starts.tolist():
        while start in used:
            start = (start + _STRIDE) % ID_END
        used.add(start)
        ids.append(start)
    return ids


def _instance_ids(segments: Segments, categories: Categories, name: str) -> list[int]:
    """An id for each segment that is its category + 256 * its instance.

    Raises:
        InputError: A category id is not in 1..255, or there are too many segments of one category.
    """
    own = _own_ids(segments)
    classes = segments.category.tolist()
    crowds = segments.crowd.tolist()
    if own is not None and all(
        each < 2**16 and each & 255 == category and (each >> 8 == CROWD_INSTANCE) == crowd
        for each, category, crowd in zip(own, classes, crowds, strict=True)
    ):
        return own
    following: dict[tuple[int, bool], int] = {}
    ids = []
    for category, crowd in zip(classes, crowds, strict=True):
        if not 0 < category < 256:
            raise InputError(f"{name}: category id {category} does not fit the 2-channel form, which has 1..255")
        place = following.get((category, crowd), 0)
        following[category, crowd] = place + 1
        if place >= (1 if crowd else CROWD_INSTANCE):
            what = "crowd regions" if crowd else "segments"
            raise InputError(
                f"{name} has more {what} of the category {categories.by_id(category).name!r} than the 2-channel form "
                f"can tell apart ({1 if crowd else CROWD_INSTANCE}); write form='ids'"
            )
        ids.append(category + 256 * (CROWD_INSTANCE if crowd else place))
    return ids


def _rows(segments: Segments, labels: NDArray[np.int32], ids: Sequence[int]) -> Iterator[dict[str, Any]]:
    """The entries of `segments_info`."""
    from everymask.ops.labels import label_areas, label_boxes

    given = segments.given_boxes
    boxes = json_boxes(label_boxes(labels, len(segments)).astype(np.float64) if given is None else given)
    areas = label_areas(labels, len(segments)).tolist()
    columns = {name: column.tolist() for name, column in segments.attributes.items() if name != "id"}
    own_areas = columns.pop("area", areas)
    for i, identifier in enumerate(ids):
        row: dict[str, Any] = {
            "id": identifier,
            "category_id": int(segments.category[i]),
            "iscrowd": int(segments.crowd[i]),
            "bbox": [int(each) if each == int(each) else each for each in boxes[i]],
            # Not a number is what a missing area was read as.
            "area": own_areas[i] if own_areas[i] == own_areas[i] else areas[i],
        }
        if segments.score is not None:
            row["score"] = float(segments.score[i])
        if columns:
            row["attributes"] = {name: column[i] for name, column in columns.items()}
        yield row


def _numbers(own: Sequence[Any]) -> list[int | str]:
    """An id for each image: its own if it is a number or text that no image before has, or the lowest free number."""
    taken = {each for each in own if isinstance(each, (int, str))}
    free = (number for number in range(1, len(own) + len(taken) + 2) if number not in taken)
    numbers: dict[int | str, None] = {}
    for each in own:
        good = isinstance(each, (int, str)) and each not in numbers
        numbers[each if good else next(free)] = None
    return list(numbers)


def _categories(categories: Categories) -> list[dict[str, Any]]:
    entries = []
    for each in categories:
        entry: dict[str, Any] = {"id": each.id, "name": each.name, "isthing": int(each.is_thing)}
        if each.supercategory is not None:
            entry["supercategory"] = each.supercategory
        if each.colour is not None:
            entry["color"] = list(each.colour)
        entries.append(entry)
    return entries
