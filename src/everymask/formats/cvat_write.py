"""Writing CVAT for images 1.1."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from xml.etree.ElementTree import (
    Element,
    SubElement,
    indent,
    tostring,
)

import msgspec
import numpy as np

from everymask.errors import InputError
from everymask.files import atomic_write
from everymask.formats.cvat_read import IMAGE_KEYS, annotation_file, label_elements, scan
from everymask.formats.cvat_shapes import (
    AREAS,
    DEFAULTS,
    PREFIX,
    RESERVED,
    checked_text,
    kind_of,
    make_element,
    make_tag,
    named_attributes,
    parse_shape,
)
from everymask.formats.drawn_shapes import rectangle
from everymask.formats.exporting import copy_image
from everymask.formats.images import image_size
from everymask.types import Categories, Dataset, Polygon, Polygons, Sample, Segments

if TYPE_CHECKING:
    from numpy.typing import NDArray

_XML_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_KNOWN = frozenset({"image_id", "split", "cvat"})
"""Entries of `Sample.extra` that have a place of their own in the file."""


def write(dataset: Dataset, target: Path, *, link_images: bool = False) -> None:
    """Writes `annotations.xml` and `images/`; reading them gives the same segments.

    Boxes become boxes, outlines of one ring polygons, everything else (masks, label maps, outlines with holes or of
    several parts) masks, one shape an object. What the segments were read from (attribute ``cvat``) is written again as
    long as it still says what they are. Numbers have two decimals, as CVAT writes them, or more where two would change
    them.

    Columns of segments other than those of CVAT become attributes of the labels: truth values checkboxes, numbers
    numbers, everything else text: with ``json:`` in front where it is no text, and in attributes whose values are of
    several types. A column that is called like one of CVAT's, but holds something else, is written with ``attribute:``
    before its name. Further columns of images become attributes of ``<image>`` if they are texts, and
    JSON in its attribute ``extra`` if not; CVAT passes over both.

    What a file that the data set was read from says of the task (``<meta>``, with the definitions of labels and their
    attributes) is read from there again, since nothing in a data set has a place for it.

    Args:
        dataset: Segments of any geometry, boxes and tags included.
        target: The folder.
        link_images: Make hard links of the image files instead of copies.

    Raises:
        InputError: A sample is a volume, or a text holds what XML cannot.
    """
    if "" in dataset.categories.names:
        raise InputError("a class has no name, which a label of CVAT needs; name it")
    identifiers = _identifiers(dataset)
    target.mkdir(parents=True, exist_ok=True)
    # The labels come before the images, but which attributes they have is known after.
    with tempfile.TemporaryFile(dir=target) as body:
        files = _copy_images(dataset, target / "images", link=link_images)
        used = _write_images(dataset, body, identifiers, files, {})
        mixed = {
            label: {name for name, kinds in each.items() if len(kinds - {"json"}) > 1} for label, each in used.items()
        }
        if any(mixed.values()):
            # CVAT has one type for an attribute; now that it is known not to do for all values, they say theirs.
            body.seek(0)
            body.truncate()
            used = _write_images(dataset, body, identifiers, files, mixed)
        meta, others = _meta(dataset, used)
        with atomic_write(target / "annotations.xml") as temporary, temporary.open("wb") as stream:
            stream.write(b'<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n  ')
            stream.write(_printed(meta) + b"\n")
            body.seek(0)
            shutil.copyfileobj(body, stream)
            for each in others:
                stream.write(b"  " + each.encode() + b"\n")
            stream.write(b"</annotations>\n")


_Used = dict[str, dict[str, set[str]]]
"""Label -> name of an attribute -> types of its values."""


def _copy_images(dataset: Dataset, folder: Path, *, link: bool) -> list[tuple[str, tuple[int, int]]]:
    """Writes the images; returns the names that the file has for them, and their (H, W)."""
    splits = {sample.extra.get("split") for sample in dataset}
    found = []
    for sample in dataset:
        file = copy_image(sample, folder, link=link)
        size = image_size(file)
        if len(size) != 2:
            raise InputError(f"{sample.name} is a volume of {size}, which CVAT cannot hold; write label_images")
        name = file.relative_to(folder).as_posix()
        split = sample.extra.get("split")
        if split is not None and len(splits) > 1:
            name = name.removeprefix(f"{split}/")
        found.append((name, (size[0], size[1])))
    return found


def _write_images(
    dataset: Dataset,
    body: IO[bytes],
    identifiers: Sequence[int],
    files: Sequence[tuple[str, tuple[int, int]]],
    mixed: Mapping[str, Set[str]],
) -> _Used:
    """Writes the elements of all images; returns which attributes the labels have."""
    used: _Used = {name: {} for name in dataset.categories.names}
    for sample, identifier, (name, size) in zip(dataset, identifiers, files, strict=True):
        try:
            element = _image(sample, identifier, name, size, dataset.categories, used, mixed)
        except InputError as error:
            raise InputError(f"{sample.name}: {error}") from error
        body.write(b"  " + _printed(element) + b"\n")
    return used


def _printed(element: Element) -> bytes:
    indent(element, "  ", 1)
    return tostring(element, "utf-8")


def _identifiers(dataset: Dataset) -> list[int]:
    """Numbers of the frames: the data set's own if it has one for each image, else 0, 1, ..."""
    own = [sample.extra.get("image_id") for sample in dataset]
    numbers = [each for each in own if isinstance(each, int) and each >= 0]
    return numbers if len(set(numbers)) == len(own) else list(range(len(own)))


# -- images ------------------------------------------------------------------------------------------------------------


def _image(
    sample: Sample,
    identifier: int,
    name: str,
    size: tuple[int, int],
    categories: Categories,
    used: _Used,
    mixed: Mapping[str, Set[str]],
) -> Element:
    """The element of an image; adds to `used` the types of attributes that its labels have."""
    element = Element("image", {"id": str(identifier), "name": checked_text(name)})
    if sample.extra.get("split") is not None:
        element.set("subset", checked_text(str(sample.extra["split"])))
    element.set("width", str(size[1]))
    element.set("height", str(size[0]))
    further = {}
    aside = sample.extra.get("cvat")
    elements = [_parsed(each) for each in aside] if isinstance(aside, list) else []
    for key, value in sample.extra.items():
        if key in _KNOWN and (key != "cvat" or None not in elements):
            continue
        if isinstance(value, str) and _XML_NAME.fullmatch(key) and key not in {*IMAGE_KEYS, "extra"}:
            element.set(key, checked_text(value))
        else:
            further[key] = value
    if further:
        element.set("extra", checked_text(msgspec.json.encode(further).decode()))
    if sample.segments is not None:
        element.extend(_objects(sample.segments, categories, used, mixed))
    if None not in elements:
        element.extend(each for each in elements if each is not None)
    return element


def _objects(
    segments: Segments, categories: Categories, used: _Used, mixed: Mapping[str, Set[str]]
) -> list[Element]:  # fmt: skip
    names = {each.id: each.name for each in categories}
    categories.indices(segments.category)
    if segments.geometry is None and not segments.has_boxes:
        outlines: list[NDArray[Any] | None] = [None] * len(segments)
    else:
        outlines = _outlines(segments)
    columns = _suitable(segments)
    elements = []
    for i, outline in enumerate(outlines):
        row = {**DEFAULTS, **{name: column[i] for name, column in columns.items()}}
        label = names[int(segments.category[i])]
        types = {name: kind_of(value) for name, value in named_attributes(row).items()}
        for name, kind in types.items():
            used[label].setdefault(name, set()).add(kind)
        if outline is None:
            elements.append(make_tag(label, row, mixed.get(label, frozenset())))
            continue
        size = segments.size[0], segments.size[1]
        original = row.pop("cvat", None)
        kept = _kept(original, label, outline, row, size, types) if isinstance(original, str) else None
        if kept is None:
            kind = "mask" if outline.ndim == 1 else "box" if _is_box(segments, i, outline, row) else "polygon"
            kept = make_element(label, kind, outline, size, row, mixed.get(label, frozenset()))
        elements.append(kept)
    return elements


def _suitable(segments: Segments) -> dict[str, list[Any]]:
    """The columns of segments; those that are called like one of CVAT's and hold something else under another name."""
    found = {}
    for name, column in segments.attributes.items():
        values = column.tolist()
        own = name in RESERVED and not (
            all(value is None or _SUITS[name](value) for value in values)
            # Segments are read in the order of this one.
            and (name != "z_order" or (heights := [each or 0 for each in values]) == sorted(heights))
        )
        found[PREFIX + name if own else name] = values
    return found


def _is_number(value: Any) -> bool:
    return type(value) is int and abs(value) < 10**15


_SUITS: dict[str, Callable[[Any], bool]] = {
    "shape": lambda value: isinstance(value, str) and value in AREAS,
    "cvat": lambda value: isinstance(value, str) and (found := _parsed(value)) is not None and found.tag in AREAS,
    "source": lambda value: isinstance(value, str),
    "occluded": lambda value: isinstance(value, bool),
    "z_order": _is_number,
    "group_id": _is_number,
}
"""Column of CVAT -> whether a value is one of CVAT's."""


def _outlines(segments: Segments) -> list[NDArray[Any] | None]:
    """For each segment its corners, its one ring (K, 2), or else its run lengths (R,)."""
    if segments.geometry is None:
        return [rectangle(*box) for box in segments.boxes()]
    if not isinstance(segments.geometry, Polygons):
        return list(segments.rles())
    plain = [len(each) == 1 and not each[0].holes for each in segments.geometry.parts]
    drawn = iter(segments[[not each and bool(parts) for each, parts in _zipped(plain, segments)]].rles())
    found: list[NDArray[Any] | None] = []
    for position, (simple, parts) in enumerate(_zipped(plain, segments)):
        if simple:
            found.append(parts[0].exterior)
        else:
            # Where other objects have outlines and this one has none, its box is all there is.
            found.append(next(drawn) if parts else rectangle(*segments.boxes()[position]))
    return found


def _zipped(plain: Sequence[bool], segments: Segments) -> list[tuple[bool, tuple[Any, ...]]]:
    parts = segments.geometry.parts if isinstance(segments.geometry, Polygons) else ()
    return list(zip(plain, parts, strict=True))


def _is_box(segments: Segments, index: int, outline: NDArray[Any], row: Mapping[str, Any]) -> bool:
    """Whether corners are to be written as a box: they were read from one, or a box is all there is."""
    if not isinstance(segments.geometry, Polygons) or not segments.geometry.parts[index]:
        return True
    upright = len(outline) == 4 and np.array_equal(outline, rectangle(*outline[0], *outline[2]))
    return upright and row.get("shape") == "box"


def _kept(
    original: str,
    label: str,
    outline: NDArray[Any],
    row: Mapping[str, Any],
    size: tuple[int, int],
    types: Mapping[str, str],
) -> Element | None:
    """The element that a segment was read from, if it still says what the segment is."""
    element = _parsed(original)
    if element is None or element.tag not in AREAS:
        return None
    element.set("label", label)
    try:
        shape = parse_shape(element, size, {label: types})
    except InputError:
        return None  # of an image of another size
    wanted = {"shape": shape.columns["shape"], **{key: value for key, value in row.items() if value is not None}}
    found = {key: value for key, value in shape.columns.items() if value is not None}
    drawn = shape.outline
    if outline.ndim == 1 and drawn.ndim == 2:
        drawn = Segments.from_polygons(size, [[Polygon(drawn)]]).rles()[0]
    return element if wanted == found and np.array_equal(outline, drawn) else None


def _parsed(xml: Any) -> Element | None:
    """An element that was kept as XML; None if it is something else."""
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import ParseError, fromstring

    try:
        return fromstring(xml, forbid_dtd=True) if isinstance(xml, str) else None
    except (ParseError, DefusedXmlException, ValueError):
        return None


# -- the task ----------------------------------------------------------------------------------------------------------


def _meta(dataset: Dataset, used: Mapping[str, Mapping[str, set[str]]]) -> tuple[Element, list[str]]:
    """The description of the task, and further elements of the root, as XML."""
    meta, others = Element("meta"), list[str]()
    source = annotation_file(dataset.root) if dataset.format == "cvat" and dataset.root.exists() else None
    if source is not None:
        content = scan(source)
        meta, others = meta if content.meta is None else content.meta, content.others
    labels = meta.find(".//labels")
    if labels is None:
        task = meta.find("task")
        if task is None:
            task = SubElement(meta, "task")
            for name, text in (("name", "EveryMask"), ("size", str(len(dataset))), ("mode", "annotation")):
                SubElement(task, name).text = text
        labels = SubElement(task, "labels")
    known = {each.findtext("name"): each for each in label_elements(meta)}
    # Points of skeletons stay with the skeleton.
    gone = [each for name, each in known.items() if name not in used and each.find("parent") is None]
    parents = {child: parent for parent in meta.iter("labels") for child in parent}
    for each in gone:
        parents[each].remove(each)
    for category in dataset.categories:
        label = known.get(category.name)
        if label is None:
            label = SubElement(labels, "label")
            SubElement(label, "name").text = checked_text(category.name)
        _define(label, category.colour, used[category.name])
    return meta, others


def _define(label: Element, colour: tuple[int, int, int] | None, used: Mapping[str, set[str]]) -> None:
    """Completes the definition of a label: its colour, and attributes that it lacks."""
    if colour is not None:
        color = label.find("color")
        color = SubElement(label, "color") if color is None else color
        color.text = "#" + bytes(colour).hex()
    attributes = label.find("attributes")
    attributes = SubElement(label, "attributes") if attributes is None else attributes
    defined = {each.findtext("name") for each in attributes}
    for name, types in used.items():
        if name in defined:
            continue
        plain = types - {"json"}
        kind = next(iter(plain)) if len(plain) == 1 else "text"
        attribute = SubElement(attributes, "attribute")
        default = "false" if kind == "checkbox" else ""
        for tag, text in (
            ("name", checked_text(name)),
            ("mutable", "False"),
            ("input_type", kind),
            ("default_value", default),
            ("values", default),
        ):
            SubElement(attribute, tag).text = text
