"""Reading CVAT for images 1.1."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree.ElementTree import Element, tostring

import msgspec
import numpy as np

from everymask.errors import InputError
from everymask.formats.checks import check_plane
from everymask.formats.columns import attribute_column
from everymask.formats.cvat_shapes import (
    AREAS,
    DEFAULTS,
    SHAPES,
    Shape,
    Specifications,
    compact,
    is_told,
    is_turned,
    parse_common,
    parse_shape,
)
from everymask.formats.drawn_shapes import joined
from everymask.formats.exporting import check_relative
from everymask.formats.images import read_image
from everymask.formats.joining import join_parts
from everymask.formats.places import absent_images, candidates, check_missing, image_folder
from everymask.types import Categories, Category, Dataset, Polygon, Polygons, Sample, Segments, Task

if TYPE_CHECKING:
    from numpy.typing import NDArray

IMAGE_KEYS = ("id", "name", "subset", "width", "height")
"""Attributes of an image that are not `Sample.extra`."""


@dataclass
class Content:
    """What one pass over a file finds.

    Args:
        meta: The element `meta`, if there is one.
        entries: The images.
        tags: Names of the elements in all of them: ``"box"``, ...; ``"turned"`` where a box is rotated.
        labels: Labels that occur, in the order of the file.
        others: Further elements of the root, as XML.
    """

    meta: Element | None = None
    entries: list[Entry] = field(default_factory=list)
    tags: set[str] = field(default_factory=set)
    labels: dict[str, None] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Entry:
    """An image. Its element stays text until somebody asks for it.

    Args:
        name: Path of the file below the folder of images.
        size: (H, W).
        subset: The part of the project it is in.
        extra: `Sample.extra`, but for what is in `aside`.
        aside: Elements in it that are no area: name and XML.
        xml: The whole element.
    """

    name: str
    size: tuple[int, int]
    subset: str | None
    extra: dict[str, Any]
    aside: list[tuple[str, str]]
    xml: bytes


def read(
    path: Path,
    *,
    split: str | None = None,
    images: str | os.PathLike[str] | None = None,
    missing_images: str = "error",
) -> Dataset:
    """Opens an export of CVAT for images 1.1; decodes no pixels and no outlines.

    Args:
        path: The XML, or the folder of ``annotations.xml``.
        split: A subset of a CVAT project; without it, all subsets are opened as one.
        images: The folder that the names of images are relative to, if it is none of those that are looked into.
        missing_images: ``"error"``, ``"keep"`` images that are absent (reading one is then an error), or ``"skip"``
            them.

    Raises:
        InputError: The file is malformed or of CVAT for video, holds entities, names a file outside of the folder, or
            images are missing.
    """
    check_missing(missing_images)
    source = annotation_file(path)
    if source is None:
        raise InputError(f"{path} holds no annotations.xml of CVAT; name the XML file")
    content = scan(source)
    categories = _categories(content, source)
    subsets = list(dict.fromkeys(each.subset or "default" for each in content.entries))
    if split is not None and (split not in subsets or not any(each.subset for each in content.entries)):
        raise InputError(f"{source} has no subset {split!r}; it has {', '.join(subsets) or 'none'}")
    parts = {}
    for subset in subsets if split is None else [split]:
        entries = [each for each in content.entries if (each.subset or "default") == subset]
        places = [Path(images)] if images is not None else candidates(source, [subset])
        names = [each.name for each in entries]
        if len(set(names)) < len(names):
            double = next(name for name, count in Counter(names).items() if count > 1)
            raise InputError(f"{source}: image {double} is there twice; remove one of them")
        folder = image_folder(source, names, places, missing=missing_images)
        if missing_images == "skip":
            absent = set(absent_images(folder, names))
            entries = [each for each in entries if each.name not in absent]
        index = _Index(source, folder, entries, sample_names([each.name for each in entries]), content, categories)
        parts[subset] = Dataset(index.sample, len(entries), categories, _tasks(content.tags), "cvat", path)
    if not parts:
        return Dataset(_no_sample, 0, categories, _tasks(content.tags), "cvat", path)
    return join_parts(parts, path) if len(parts) > 1 else next(iter(parts.values()))


def _no_sample(index: int) -> Sample:
    raise IndexError(index)


def annotation_file(path: Path) -> Path | None:
    """The XML of an export: `path`, or ``annotations.xml`` or the only XML in that folder; None if there is none."""
    if path.is_file():
        return path if path.suffix.lower() == ".xml" and _is_annotations(path) else None
    usual = path / "annotations.xml"
    found = [usual] if usual.is_file() else [each for each in path.iterdir() if each.suffix.lower() == ".xml"][:2]
    return found[0] if len(found) == 1 and _is_annotations(found[0]) else None


def _is_annotations(path: Path) -> bool:
    """Whether the root of an XML is `annotations`; by its first bytes."""
    try:
        with path.open("rb") as stream:
            head = stream.read(4096)
    except OSError:
        return False
    return b"<annotations" in head and b"<annotation>" not in head


def sample_names(files: Sequence[str]) -> list[str]:
    """File names without suffix, but with it where two would share a name."""
    bare = [name.rpartition(".")[0] or name for name in files]
    count = Counter(bare)
    return [name if count[name] == 1 else file for name, file in zip(bare, files, strict=True)]


# -- the file ----------------------------------------------------------------------------------------------------------


def scan(path: Path) -> Content:
    """Reads a file image by image.

    Raises:
        InputError: It is malformed, holds entities or a document type, is of CVAT for video, or names a file outside.
    """
    try:
        return _scanned(path)
    except RecursionError as error:
        raise InputError(f"{path}: its elements lie too deep in each other; export it again") from error


def _scanned(path: Path) -> Content:
    content = Content()
    for depth, element in _elements(path):
        if element.tag == "track":
            raise InputError(
                f"{path} is of 'CVAT for video 1.1' (it has tracks); export the task as 'CVAT for images 1.1'"
            )
        if depth != 1:
            continue
        if element.tag == "meta":
            content.meta = element
            continue
        if element.tag == "image":
            content.entries.append(_entry(element, path))
            for child in element:
                content.tags.add(child.tag)
                if child.tag == "box" and is_turned(child):
                    content.tags.add("turned")
                if child.tag in SHAPES and (label := child.get("label")):
                    content.labels[label] = None
        elif element.tag != "version":
            content.others.append(compact(element))
        element.clear()
    return content


def _elements(path: Path) -> Iterator[tuple[int, Element]]:
    """Depth below the root (1 for its children) and element, at the end of each; errors as `InputError`."""
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import ParseError, iterparse

    depth = -1
    try:
        with path.open("rb") as stream:
            for event, element in iterparse(stream, ("start", "end"), forbid_dtd=True):
                if event == "start":
                    depth += 1
                    if depth == 0 and element.tag != "annotations":
                        raise InputError(f"{path} begins with <{element.tag}>; an export of CVAT has <annotations>")
                else:
                    yield depth, element
                    depth -= 1
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except DefusedXmlException as error:
        raise InputError(f"{path} has a document type or entities, which may attack a reader; remove them") from error
    except (ParseError, ValueError, LookupError) as error:  # besides syntax: encodings that are none, or do not fit
        raise InputError(f"{path} is no valid XML ({error}); export or copy the file again") from error


def _entry(element: Element, path: Path) -> Entry:
    name = check_relative(element.get("name", ""), f"{path}: image {element.get('id', 'without id')}")
    try:
        size = int(element.get("height", "")), int(element.get("width", ""))
    except ValueError:
        size = (0, 0)
    if min(size) < 1:
        raise InputError(
            f"{path}: image {name} has width {element.get('width')!r} and height {element.get('height')!r}; expected "
            "whole numbers above 0"
        )
    check_plane(size, path)
    subset = element.get("subset") or None
    element.tail = None
    aside = [(each.tag, compact(each)) for each in element if each.tag not in AREAS]
    return Entry(name, size, subset, _extra(element, subset), aside, tostring(element, "utf-8"))


def _extra(element: Element, subset: str | None) -> dict[str, Any]:
    """What an image has besides its shapes; see `cvat_write` for the attribute ``extra``."""
    extra: dict[str, Any] = {key: value for key, value in element.attrib.items() if key not in IMAGE_KEYS}
    try:
        further = msgspec.json.decode(extra.get("extra", ""), type=dict[str, Any])
        del extra["extra"]
        extra.update(further)
    except msgspec.DecodeError:
        pass  # an attribute of somebody else's
    if element.get("id", "").isdecimal():
        extra["image_id"] = int(element.get("id", ""))
    if subset is not None:
        extra["split"] = subset
    return extra


def _tasks(tags: set[str]) -> frozenset[Task]:
    if tags & (AREAS - {"box"}) or "turned" in tags:
        return frozenset({Task.DETECTION, Task.INSTANCE})
    return frozenset({Task.CLASSIFICATION if is_tagged(tags) else Task.DETECTION})


def is_tagged(tags: set[str]) -> bool:
    """Whether images have tags and no objects."""
    return "tag" in tags and not tags & AREAS


def label_elements(meta: Element | None) -> list[Element]:
    """The definitions of labels."""
    return [] if meta is None else meta.findall(".//labels/label")


def _categories(content: Content, path: Path) -> Categories:
    """Labels in the order of the task, then those that it does not define; points of skeletons are none."""
    items: dict[str, Category] = {}
    defined = label_elements(content.meta)
    for label in defined:
        name = label.findtext("name") or ""
        if label.find("parent") is not None:
            continue
        if not name or name in items:
            raise InputError(f"{path}: a label of the task has no name or that of another ({name!r}); rename it")
        text = (label.findtext("color") or "").strip()
        try:
            colour = tuple(bytes.fromhex(text.removeprefix("#"))) if text else None
        except ValueError:
            colour = ()
        if colour is not None and len(colour) != 3:
            raise InputError(f"{path}: label {name!r} has the color {text!r}; expected one such as #ff8000")
        items[name] = Category(len(items) + 1, name, colour=colour and (colour[0], colour[1], colour[2]))
    for name in content.labels:
        items.setdefault(name, Category(len(items) + 1, name))
    return Categories(items.values())


def specifications(meta: Element | None) -> Specifications:
    """Types of the attributes of each label."""
    return {
        label.findtext("name") or "": {
            each.findtext("name") or "": (each.findtext("input_type") or "text").strip()
            for each in label.findall("attributes/attribute")
        }
        for label in label_elements(meta)
    }


# -- images ------------------------------------------------------------------------------------------------------------


class _Index:
    """Makes the samples of a file."""

    def __init__(
        self,
        path: Path,
        folder: Path,
        entries: Sequence[Entry],
        names: Sequence[str],
        content: Content,
        categories: Categories,
    ) -> None:
        self.path, self.folder, self.entries, self.names = path, folder, entries, names
        self.specifications = specifications(content.meta)
        self.ids = {each.name: each.id for each in categories}
        self.tagged = is_tagged(content.tags)
        self.outlined = Task.INSTANCE in _tasks(content.tags)

    def sample(self, index: int) -> Sample:
        entry = self.entries[index]
        extra = dict(entry.extra)
        if aside := [xml for tag, xml in entry.aside if not (self.tagged and tag == "tag")]:
            extra["cvat"] = aside
        file = self.folder / entry.name
        return Sample(self.names[index], partial(self.image, index), partial(self.segments, index), file, extra)

    def image(self, index: int) -> NDArray[Any]:
        entry = self.entries[index]
        image = read_image(self.folder / entry.name)
        if image.shape[:-1] != entry.size:
            raise InputError(
                f"{self.folder / entry.name} has size {' x '.join(map(str, image.shape[:-1]))}, but {self.path} says "
                f"{entry.size[0]} x {entry.size[1]} (height x width); correct the one that is wrong"
            )
        return image

    def segments(self, index: int) -> Segments:
        from defusedxml.ElementTree import fromstring

        entry = self.entries[index]
        wanted = {"tag"} if self.tagged else AREAS
        # What lies higher covers what lies lower; CVAT draws equals in the order of the file.
        elements = sorted((each for each in fromstring(entry.xml) if each.tag in wanted), key=_height)
        shapes = []
        for number, element in enumerate(elements, 1):
            try:
                shapes.append(self._shape(element, entry.size))
            except InputError as error:
                place = f"{self.path}: image {entry.name}, <{element.tag}> {number} by z_order"
                raise InputError(f"{place}: {error}; correct or remove it") from error
        category = [self.ids[each.label] for each in shapes]
        if self.tagged:
            return Segments(entry.size, category, None, attributes=_table([each.columns for each in shapes]))
        if not self.outlined:
            box = np.array([[*each.outline[0], *each.outline[2]] for each in shapes]).reshape(-1, 4)
            columns = _columns(elements, shapes, entry.size, "box")
            return Segments(entry.size, category, None, box=box, attributes=columns)
        drawn = [(Polygon(each.outline),) if each.outline.ndim == 2 else each.outline for each in shapes]
        geometry = joined(drawn, entry.size)
        columns = _columns(elements, shapes, entry.size, "polygon" if isinstance(geometry, Polygons) else "mask")
        return Segments(entry.size, category, geometry, attributes=columns)

    def _shape(self, element: Element, size: tuple[int, int]) -> Shape:
        if self.tagged:
            label, columns = parse_common(element, self.specifications)
            return Shape(label, np.zeros(0), columns)
        return parse_shape(element, size, self.specifications)


def _height(element: Element) -> int:
    text = element.get("z_order", "0")
    return int(text) if text.lstrip("-").isdecimal() else 0  # a wrong one is told when the shape is read


def _columns(
    elements: Sequence[Element], shapes: Sequence[Shape], size: tuple[int, int], usual: str
) -> dict[str, NDArray[Any]]:
    """The attributes of segments, with ``cvat``, the XML of those that geometry and columns do not tell exactly.

    Args:
        elements: Of the shapes.
        shapes: What they say.
        size: (H, W) of the image.
        usual: The shape as which segments are written; ``shape`` is left out where all are of that one.
    """
    rows: list[dict[str, Any]] = []
    for element, shape in zip(elements, shapes, strict=True):
        kind = shape.columns["shape"]
        # Where masks and polygons mix, the segments have pixels only, so that a polygon is not told by them.
        told = kind == usual or (kind == "box" and usual == "polygon")
        if told and is_told(element, shape, size):
            rows.append(shape.columns)
        else:
            rows.append({**shape.columns, "cvat": compact(element)})
    columns = _table(rows)
    if all(each.columns["shape"] == usual for each in shapes):
        columns.pop("shape", None)
    return columns


def _table(rows: Sequence[dict[str, Any]]) -> dict[str, NDArray[Any]]:
    """Columns of rows, without those that hold nothing but what CVAT takes by default."""
    keys = dict.fromkeys(key for row in rows for key in row)
    columns = {key: [row.get(key) for row in rows] for key in keys}
    return {
        key: attribute_column(values)
        for key, values in columns.items()
        if key not in DEFAULTS or any(value != DEFAULTS[key] for value in values)
    }
