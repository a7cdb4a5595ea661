"""Writing COCO instances."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from everymask.errors import InputError
from everymask.files import atomic_write
from everymask.formats.coco_schema import OUTSIDE, json_boxes
from everymask.formats.exporting import copy_image
from everymask.formats.images import image_size
from everymask.types import Categories, Dataset, Polygons, Sample, Segments

_ENCODER = msgspec.json.Encoder()
_BESIDE = ("keypoints", "num_keypoints", "ignore")
"""Attributes that COCO and its relatives keep beside the other fields of an annotation, not under ``attributes``."""


def write(dataset: Dataset, target: Path, *, link_images: bool = False) -> None:
    """Writes `instances.json` and `images/`; reading them gives the same segments.

    Outlines stay polygons, with the numbers they have; those with holes or outside the image, masks and label maps
    become compressed RLE, crowds among them uncompressed RLE, as in COCO. Boxes of annotations (not those with scores)
    are cut at the border of the image. Ids of images (``extra["image_id"]``) and annotations (attribute ``id``) stay as
    long as they are unique; new ones are given where there are none.

    Args:
        dataset: Segments of any geometry, boxes included; void pixels are not kept.
        target: The folder.
        link_images: Make hard links of the image files instead of copies.

    Raises:
        InputError: A sample is a volume, or has segments without a box.
    """
    numbers = _numbers(dataset)
    # Kept as text, which is an eighth of the memory of dictionaries.
    images: list[bytes] = []
    licences: dict[Any, Any] = {}
    identifiers = _Identifiers()
    with atomic_write(target / "instances.json") as temporary, temporary.open("wb") as stream:
        stream.write(_ENCODER.encode({"info": {"description": "written by EveryMask"}})[:-1])
        stream.write(b',"annotations":[\n')
        separator = b""
        for sample, number in zip(dataset, numbers, strict=True):
            file = copy_image(sample, target / "images", link=link_images)
            size = image_size(file) if sample.segments is None else sample.segments.size
            if len(size) != 2:
                raise InputError(
                    f"{sample.name} is a volume of {size}, which COCO cannot hold; write label_images instead"
                )
            if (licence := sample.extra.get("license_entry")) is not None:
                licences[licence["id"]] = licence
            entry = _image(sample, number, file.relative_to(target / "images").as_posix(), size)
            images.append(_ENCODER.encode(entry))
            if sample.segments is None:
                continue
            for entry in _annotations(sample, sample.segments, dataset.categories, number, identifiers):
                stream.write(separator + _ENCODER.encode(entry))
                separator = b",\n"
        stream.write(b'\n],"images":[\n')
        for position, image in enumerate(images):
            stream.write(b",\n" + image if position else image)
        rest = {"categories": _categories(dataset.categories), "licenses": list(licences.values())}
        stream.write(b"\n]," + _ENCODER.encode(rest)[1:])


def segmentations(segments: Segments) -> list[Any]:
    """COCO's `segmentation` of each segment; None where there is no geometry."""
    if segments.geometry is None:
        return [None] * len(segments)
    if isinstance(segments.geometry, Polygons):
        from everymask.ops.polygons import coco_polygons_exact, polygon_boxes

        outlines, parts = segments.geometry.outlines(), segments.geometry.parts
        listed = coco_polygons_exact(outlines) & ~_leaving(polygon_boxes(outlines), segments.geometry.size)
        found: list[Any] = [
            [part.exterior.ravel().tolist() for part in each] if exact else None
            for each, exact in zip(parts, listed, strict=True)
        ]
        others = [position for position, each in enumerate(parts) if each and not listed[position]]
        if others:
            for position, mask in zip(others, segmentations_of_masks(segments[others]), strict=True):
                found[position] = mask
        return found
    return segmentations_of_masks(segments)


def _leaving(boxes: NDArray[np.float64], size: Sequence[int]) -> NDArray[np.bool_]:
    """(N,) which boxes (N, 4) x0, y0, x1, y1 reach farther out of an image of (H, W) than COCO's do."""
    beyond = (boxes[:, :2] < -OUTSIDE) | (boxes[:, 2:] > np.array([size[1], size[0]]) + OUTSIDE)
    return beyond[:, 0] | beyond[:, 1]


def segmentations_of_masks(segments: Segments) -> list[dict[str, Any]]:
    """RLE of each segment: a string, or a list of numbers for crowds."""
    from everymask.ops import rle

    masks = segments.rles()
    strings = rle.to_strings(masks.counts, masks.offsets)
    size = list(masks.size)
    return [
        {"size": size, "counts": masks[i].tolist() if segments.crowd[i] else strings[i].decode("ascii")}
        for i in range(len(segments))
    ]


class _Identifiers:
    """Ids of annotations: the wanted one as long as it is free, else the next above all others."""

    def __init__(self) -> None:
        self._used: set[int] = set()
        self._highest = 0

    def take(self, wanted: object) -> int:
        chosen = wanted if isinstance(wanted, int) and wanted not in self._used else self._highest + 1
        self._used.add(chosen)
        self._highest = max(self._highest, chosen)
        return chosen


def _numbers(dataset: Dataset) -> list[int]:
    """An id for each image: its own, or the lowest one that is free."""
    own = [sample.extra.get("image_id") for sample in dataset]
    taken = {each for each in own if isinstance(each, int)}
    if len(taken) == len(own):
        return [int(each) for each in own if each is not None]
    free = (number for number in range(1, len(own) + len(taken) + 2) if number not in taken)
    seen: set[int] = set()
    numbers = []
    for each in own:
        number = each if isinstance(each, int) and each not in seen else next(free)
        seen.add(number)
        numbers.append(number)
    return numbers


def _image(sample: Sample, number: int, file_name: str, size: tuple[int, ...]) -> dict[str, Any]:
    known = {"id": number, "file_name": file_name, "width": int(size[1]), "height": int(size[0])}
    extra = {key: value for key, value in sample.extra.items() if key not in {"image_id", "license_entry"}}
    return {**extra, **known}


def _annotations(
    sample: Sample, segments: Segments, categories: Categories, number: int, identifiers: _Identifiers
) -> Iterator[dict[str, Any]]:
    """The annotations of an image."""
    if len(segments) and not segments.has_boxes:
        raise InputError(f"{sample.name} has tags of the whole image, without boxes, which COCO instances cannot hold")
    categories.indices(segments.category)
    shapes = segmentations(segments)
    boxes = _boxes(segments)
    columns = {name: column.tolist() for name, column in segments.attributes.items()}
    own_ids, own_areas = columns.pop("id", None), columns.pop("area", None)
    # Not a number is what a missing area was read as. Counting pixels is the most work of all here.
    known = own_areas is not None and all(area == area for area in own_areas)
    areas = own_areas if known else segments.areas().tolist()
    beside = {name: columns.pop(name) for name in _BESIDE if name in columns}
    for i in range(len(segments)):
        entry: dict[str, Any] = {
            "id": identifiers.take(own_ids[i] if own_ids else None),
            "image_id": number,
            "category_id": int(segments.category[i]),
            "bbox": boxes[i],
            "area": own_areas[i] if own_areas and own_areas[i] == own_areas[i] else areas[i],
            "iscrowd": int(segments.crowd[i]),
        }
        if shapes[i] is not None:
            entry["segmentation"] = shapes[i]
        if segments.score is not None:
            entry["score"] = float(segments.score[i])
        for name, column in beside.items():
            if column[i] is not None:
                entry[name] = column[i]
        if columns:
            entry["attributes"] = {name: column[i] for name, column in columns.items()}
        yield entry


def _boxes(segments: Segments) -> list[list[float]]:
    """x, y, width, height of each segment."""
    if not len(segments):
        return []
    boxes = segments.boxes()
    leaving = _leaving(boxes, segments.size)
    if segments.score is None and bool(leaving.any()):
        cut = np.clip(boxes, 0, np.array([segments.size[1], segments.size[0]] * 2))
        boxes = np.where(leaving[:, None], cut, boxes)
    return json_boxes(boxes)


def _categories(categories: Categories) -> list[dict[str, Any]]:
    entries = []
    for each in categories:
        entry: dict[str, Any] = {"id": each.id, "name": each.name}
        if each.supercategory is not None:
            entry["supercategory"] = each.supercategory
        if not each.is_thing:
            entry["isthing"] = 0
        if each.colour is not None:
            entry["color"] = list(each.colour)
        entries.append(entry)
    return entries
