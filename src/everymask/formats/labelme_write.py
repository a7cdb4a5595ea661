"""Writing labelme."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from everymask.errors import InputError
from everymask.files import atomic_write
from everymask.formats.drawn_shapes import rectangle
from everymask.formats.exporting import copy_image, nothing_annotated
from everymask.formats.images import image_size
from everymask.formats.labelme_shapes import FURTHER, IGNORED, JsonShape, as_written, outline, plain_parts, suits
from everymask.types import Categories, Dataset, Polygon, Polygons, Sample, Segments

VERSION = "5.5.0"
"""The version of labelme whose keys are written."""
_KEYS = frozenset({"version", "shapes", "imagePath", "imageData", "imageHeight", "imageWidth", "labelme", FURTHER})


def write(dataset: Dataset, target: Path, *, link_images: bool = False, embed_images: bool = False) -> None:
    """Writes each image with its JSON beside it, and `labels.txt`; reading them gives the same segments.

    Boxes become rectangles, outlines without holes polygons (several with one ``group_id`` where an object has several
    parts), everything else (masks, label maps, outlines with holes) masks. What the segments were read from (attribute
    ``labelme``) is written again as long as it still says what they are. Of an object with an outline, the box is not
    written. Images that are not annotated get no JSON. Columns that labelme does not have go to ``attributes`` of the
    shape, those of images to keys beside ``flags``; labelme keeps both.

    Args:
        dataset: Segments of any geometry, boxes included.
        target: The folder.
        link_images: Make hard links of the image files instead of copies.
        embed_images: Put a copy of each image file into its JSON, too, as labelme does by default.

    Raises:
        InputError: A sample is a volume, or has tags of the whole image.
    """
    names = _class_list(dataset.categories)
    annotated = False
    for sample in dataset:
        file = copy_image(sample, target, link=link_images, listed=True)
        segments = sample.segments
        if segments is None:
            continue
        annotated = True
        size = image_size(file)
        if len(size) != 2:
            raise InputError(f"{sample.name} is a volume of {size}, which labelme cannot hold; write label_images")
        shapes = _shapes(sample, segments, dataset.categories, (size[0], size[1]))
        aside = sample.extra.get("labelme")
        own = {"labelme"} if _are_shapes(aside) else set()
        for index, shape in sorted(aside, key=lambda each: each[0]) if own and aside else ():
            shapes.insert(index, shape)
        further = {key: value for key, value in sample.extra.items() if key in _KEYS and key not in own}
        content: dict[str, Any] = {
            "version": VERSION,
            "flags": {},
            **{key: value for key, value in sample.extra.items() if key not in _KEYS},
            "shapes": shapes,
            "imagePath": file.name,
            "imageData": base64.b64encode(file.read_bytes()).decode("ascii") if embed_images else None,
            "imageHeight": size[0],
            "imageWidth": size[1],
            **({FURTHER: further} if further else {}),
        }
        with atomic_write(file.with_name(f"{sample.name.rpartition('/')[2]}.json")) as temporary:
            temporary.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=2))
    if not annotated:
        raise nothing_annotated("labelme")
    with atomic_write(target / "labels.txt") as temporary:
        temporary.write_text("".join(f"{name}\n" for name in names), "utf-8", newline="\n")


def _are_shapes(value: Any) -> bool:
    """Whether a value is what reading has put aside: places and shapes."""
    return isinstance(value, list) and all(
        isinstance(each, list) and len(each) == 2 and type(each[0]) is int and isinstance(each[1], dict)
        for each in value
    )


def _class_list(categories: Categories) -> list[str]:
    """The lines of `labels.txt`.

    Raises:
        InputError: A name is no line of text.
    """
    for name in categories.names:
        if name != name.strip() or not name or not name.isprintable():
            raise InputError(f"the class name {name!r} is no line of text, as labelme needs; rename the class")
    return categories.names


def _shapes(sample: Sample, segments: Segments, categories: Categories, size: tuple[int, int]) -> list[dict[str, Any]]:
    """The shapes of an image."""
    if len(segments) and not segments.has_boxes:
        raise InputError(f"{sample.name} has tags of the whole image, without boxes, which labelme shapes cannot hold")
    categories.indices(segments.category)
    names = {each.id: each.name for each in categories}
    if nameless := sorted({names[each] for each in segments.category.tolist()} & IGNORED):
        raise InputError(f"{sample.name} has objects of the class {nameless[0]!r}, which is none in labelme; rename it")
    columns = {name: column.tolist() for name, column in segments.attributes.items()}
    scores = [None] * len(segments) if segments.score is None else segments.score.tolist()
    groups = _Groups(columns.get("group_id", ()))
    shapes: list[dict[str, Any]] = []
    for i, (kind, drawn) in enumerate(_drawn(segments, columns.get("shape_type"))):
        row = {name: column[i] for name, column in columns.items()}
        label = names[int(segments.category[i])]
        several = isinstance(drawn, tuple) and len(drawn) > 1
        group = groups.take(label, row.get("group_id"), several=several)
        kept = _kept(row, label, drawn, size, group, scores[i])
        if "labelme" in row and suits("labelme", row["labelme"]):
            del row["labelme"]
        shapes += as_written(label, kind, drawn, size, row, group, scores[i]) if kept is None else kept
    return shapes


class _Groups:
    """Ids of groups, such that no two objects of a label share one: in labelme, they would be one."""

    def __init__(self, used: Any) -> None:
        numbers = [each for each in used if type(each) is int]
        self._free = itertools.count(max(numbers, default=0) + 1)
        self._taken: set[tuple[str, Any]] = set()

    def take(self, label: str, wanted: Any, *, several: bool) -> Any:
        """The id that an object wants, if it can have it; else none, or a new one if it has several parts."""
        if not suits("group_id", wanted) or (label, wanted) in self._taken:
            wanted = next(self._free) if several else None
        if wanted is not None:
            self._taken.add((label, wanted))
        return wanted


def _drawn(segments: Segments, kinds: list[Any] | None) -> Iterator[tuple[str, Any]]:
    """For each segment the type of its shapes, and its polygons or run lengths."""
    geometry = segments.geometry
    boxes = segments.boxes() if len(segments) else np.zeros((0, 4))
    runs = None if geometry is None or isinstance(geometry, Polygons) else segments.rles()
    for i in range(len(segments)):
        if runs is not None:
            yield "mask", runs[i]
        elif not isinstance(geometry, Polygons) or not geometry.parts[i]:
            yield "rectangle", (Polygon(rectangle(*boxes[i])),)
        elif not plain_parts(geometry, i):
            yield "mask", segments[[i]].rles()[0]
        else:
            parts = geometry.parts[i]
            ring = parts[0].exterior
            upright = len(parts) == 1 and len(ring) == 4 and np.array_equal(ring, rectangle(*ring[0], *ring[2]))
            wanted = upright and kinds is not None and kinds[i] == "rectangle"
            yield "rectangle" if wanted else "polygon", parts


def _kept(
    row: Mapping[str, Any], label: str, drawn: Any, size: tuple[int, int], group: Any, score: float | None
) -> list[dict[str, Any]] | None:
    """The shapes that a segment was read from, if they still say what it is."""
    original: Any = row.get("labelme")
    if not suits("labelme", original):
        return None
    shapes = [{**each, "label": label} for each in original]
    try:
        parsed = [msgspec.convert(each, JsonShape) for each in shapes]
        found = outline(parsed, size)
    except (InputError, msgspec.ValidationError):
        return None  # of an image of another size, or somebody else's
    first = parsed[0]
    if first.group_id != group or (score is not None and shapes[0].get("score") != score):
        return None
    said: dict[str, Any] = {"group_id": group, "flags": first.flags, "description": first.description}
    said |= {"shape_type": first.kind, "labelme": original, **(first.attributes or {})}
    same_row = all(said.get(key) == value or (not said.get(key) and not value) for key, value in row.items())
    if isinstance(found, tuple) and not isinstance(drawn, tuple):
        found = Segments.from_polygons(size, [found]).rles()[0]
    return shapes if same_row and _same(found, drawn) else None


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(
            not b.holes and np.array_equal(a.exterior, b.exterior) for a, b in zip(one, other, strict=True)
        )
    return not isinstance(one, tuple) and not isinstance(other, tuple) and np.array_equal(one, other)
