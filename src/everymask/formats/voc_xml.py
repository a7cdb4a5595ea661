"""Annotation files of Pascal VOC: one XML an image.

Of an object are read its name, box, score, the flags `difficult`, `truncated` and `occluded`, its `pose`, its parts
(a list of names and boxes, as attribute ``parts``), and the list of named values that CVAT writes under `attributes`.
Whatever else there is comes back when the file is written: elements of an object as attribute ``xml``, those of the
image in `Annotation.header`.

Values under `attributes` are text. To keep numbers and truth values what they are, EveryMask writes them as JSON and
says so in an element ``<type>json</type>`` beside the value, which other programs pass over.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everymask.errors import InputError

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element  # for types only: reading goes through defusedxml

Box = tuple[float, float, float, float]

FLAGS = ("difficult", "truncated", "occluded")
_TRUTH = {"0": False, "1": True, "": False, "false": False, "true": True, "no": False, "yes": True}
_TRUTH |= {"unspecified": False, "0.0": False, "1.0": True}
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_OWN = {"name", "bndbox", "score", "pose", *FLAGS}
_RESERVED = {*FLAGS, "pose", "parts", "xml", "score"}
PREFIX = "attribute:"
"""Stands before the name of a value under `attributes` that VOC has another meaning for."""
_NOT_HEADER = {"xml", "depth", "sets", "one_based"}
"""Keys of `Annotation.header` and of `Sample.extra` that mean something else."""
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class VocObject:
    """One object.

    Args:
        name: Of its class.
        box: x0, y0, x1, y1 as `read_annotation` was told to count; None where the file has none.
        score: None in ground truth.
        attributes: The flags as truth values, `pose` as text, ``parts``, ``xml``, and what was under `attributes`.
    """

    name: str
    box: Box | None
    score: float | None = None
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Annotation:
    """One file.

    Args:
        filename: The image, or nothing.
        size: (H, W), or None where the file has none.
        objects: In order.
        header: Everything else: the text of plain elements by name, dictionaries of those that have elements
            themselves, attributes of the root as ``"@name"``, and what fits none of these as text under ``"xml"``.
    """

    filename: str
    size: tuple[int, int] | None
    objects: list[VocObject]
    header: dict[str, Any] = field(default_factory=dict)


# -- reading ---------------------------------------------------------------------------------------------------------


def parse(path: Path) -> Element:
    """The root of an XML file, without entities, document types and references to other files.

    Raises:
        InputError: The file cannot be read, is no XML, or holds what an attack is made of.
    """
    from defusedxml import ElementTree
    from defusedxml.common import DefusedXmlException

    try:
        return ElementTree.fromstring(path.read_bytes(), forbid_dtd=True)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except DefusedXmlException as error:
        raise InputError(
            f"{path} declares entities or a document type, which can hide an attack; remove its <!DOCTYPE>"
        ) from error
    # Besides syntax errors: unknown encodings, bytes that do not fit them.
    except (ElementTree.ParseError, ValueError, LookupError, RecursionError) as error:
        raise InputError(f"{path} is no well-formed XML: {error}; export it again") from error


def read_annotation(path: Path, *, one_based: bool = False) -> Annotation:
    """Reads a file.

    Args:
        path: The XML file.
        one_based: Whether boxes count pixels from 1 and name the last pixel: x0 = xmin - 1, y0 = ymin - 1.

    Raises:
        InputError: It is no VOC annotation, or a number is malformed; the message names the element.
    """
    root = parse(path)
    if root.tag != "annotation":
        raise InputError(f"{path}: the root is <{root.tag}>, but a VOC annotation begins with <annotation>")
    try:
        return _annotation(root, path, one_based)
    except RecursionError as error:
        raise InputError(f"{path}: its elements lie too deep in each other; export it again") from error


def _annotation(root: Element, path: Path, one_based: bool) -> Annotation:
    header: dict[str, Any] = {f"@{key}": value for key, value in root.attrib.items()}
    size = None
    objects: list[VocObject] = []
    filename = ""
    rest: list[Element] = []
    for element in root:
        if element.tag == "object":
            objects.append(_object(element, f"{path}: object {len(objects) + 1}", one_based))
        elif element.tag == "filename":
            filename = (element.text or "").strip()
        elif element.tag == "size" and size is None:
            sides = [_number(element, key, f"{path}: size") for key in ("height", "width")]
            if not all(each >= 1 and each == int(each) for each in sides):
                raise InputError(f"{path}: size: got {sides} for height and width, expected whole numbers from 1 on")
            size = (int(sides[0]), int(sides[1]))
            if (depth := (element.findtext("depth") or "").strip()) not in {"", "3"}:
                header["depth"] = depth
        else:
            rest.append(element)
    raw = ""
    for element in rest:
        value = _plain(element)
        if value is None or element.tag in header or element.tag in _NOT_HEADER or element.tag[0] == "{":
            raw += to_text(element)
        else:
            header[element.tag] = value
    if raw:
        header["xml"] = raw
    return Annotation(filename, size, objects, header)


def _object(element: Element, place: str, one_based: bool) -> VocObject:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise InputError(f"{place} has no name; add <name> with its class")
    place = f"{place} ({name})"
    attributes: dict[str, Any] = {}
    box: Box | None = None
    score: float | None = None
    parts: list[dict[str, Any]] = []
    raw = ""
    seen: set[str] = set()
    for child in element:
        tag = child.tag
        if tag in seen and tag in _OWN:
            raise InputError(f"{place} has <{tag}> twice; remove one of them")
        seen.add(tag)
        if tag == "bndbox":
            box = _box(child, place, one_based)
        elif tag == "score":
            score = _float(child.text, f"{place}: score")
        elif tag in FLAGS:
            text = (child.text or "").strip().lower()
            if text not in _TRUTH:
                raise InputError(f"{place}: {tag} is {text!r}, expected 0 or 1")
            attributes[tag] = _TRUTH[text]
        elif tag == "pose":
            attributes["pose"] = child.text or ""
        elif tag == "part" and {each.tag for each in child} == {"name", "bndbox"} and len(child) == 2:
            corners = _box(child[0] if child[0].tag == "bndbox" else child[1], f"{place}: part", one_based)
            parts.append({"name": child.findtext("name") or "", "box": list(corners)})
        elif tag == "attributes" and (named := _named_values(child, place)) is not None:
            attributes |= named
        elif tag != "name":
            raw += to_text(child)
    if parts:
        attributes["parts"] = parts
    if raw:
        attributes["xml"] = raw
    return VocObject(name, box, score, attributes)


def _named_values(element: Element, place: str) -> dict[str, Any] | None:
    """The values under `attributes` by name; None if it is built in another way than CVAT's."""
    found: dict[str, Any] = {}
    for each in element:
        name, value = each.findtext("name"), each.findtext("value")
        unknown = {child.tag for child in each} - {"name", "value", "type"}
        if each.tag != "attribute" or name is None or value is None or unknown or name in _RESERVED:
            return None
        name = name.removeprefix(PREFIX)
        if name in found:
            return None
        found[name] = value
        if each.findtext("type") == "json":
            try:
                found[name] = json.loads(value)
            except ValueError as error:
                raise InputError(f"{place}: attribute {name!r} is no JSON: {error}; correct the value") from error
    return found


def _box(element: Element, place: str, one_based: bool) -> Box:
    x0, y0, x1, y1 = (_number(element, key, f"{place}: bndbox") for key in _CORNERS)
    first = 1 if one_based else 0
    # A box without pixels, counted from 1, ends before it begins.
    if x1 < x0 - first or y1 < y0 - first:
        raise InputError(
            f"{place}: bndbox {x0:g}, {y0:g}, {x1:g}, {y1:g} has its maximum before its minimum; swap them"
        )
    return (x0 - first, y0 - first, x1, y1)


def _number(element: Element, key: str, place: str) -> float:
    found = element.find(key)
    if found is None:
        raise InputError(f"{place} has no <{key}>; expected a number")
    return _float(found.text, f"{place}/{key}")


def _float(text: str | None, place: str) -> float:
    try:
        value = float((text or "").replace("_", "?"))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{place} is {text or ''!r}, expected a number")
    return value


def _plain(element: Element) -> str | dict[str, Any] | None:
    """The text of an element, or a dictionary of its elements; None if neither holds everything that is in it."""
    if element.attrib:
        return None
    if not len(element):
        return element.text or ""
    if len({child.tag for child in element}) < len(element) or (element.text or "").strip():
        return None
    found = {child.tag: _plain(child) for child in element}
    return None if None in found.values() or any((child.tail or "").strip() for child in element) else found


# -- writing ---------------------------------------------------------------------------------------------------------


def to_text(element: Element) -> str:
    """An element as XML text, without the space behind it."""
    space, _, tag = element.tag.rpartition("}")
    attributes = "".join(f' {key}="{_escaped(value, quote=True)}"' for key, value in element.attrib.items())
    if space:
        attributes += f' xmlns="{_escaped(space[1:], quote=True)}"'
    below = "".join(to_text(child) + _escaped(child.tail or "") for child in element)
    return f"<{tag}{attributes}>{_escaped(element.text or '')}{below}</{tag}>"


def annotation_text(annotation: Annotation, *, one_based: bool = False) -> str:
    """The file of an annotation; the inverse of `read_annotation`.

    Raises:
        InputError: A text holds characters that XML has no place for.
    """
    header = dict(annotation.header)
    root = "".join(f' {key[1:]}="{_escaped(header.pop(key), quote=True)}"' for key in list(header) if key[0] == "@")
    depth, raw = header.pop("depth", "3"), header.pop("xml", "")
    lines = [f"<annotation{root}>"]
    folder = header.pop("folder", None)
    if folder is not None:
        lines += _lines("folder", folder, 1)
    lines += _lines("filename", annotation.filename, 1)
    for key in ("source", "owner"):
        if key in header:
            lines += _lines(key, header.pop(key), 1)
    if annotation.size is not None:
        height, width = annotation.size
        lines += _lines("size", {"width": str(width), "height": str(height), "depth": str(depth)}, 1)
    for key, value in header.items():
        lines += _lines(key, value, 1)
    if raw:
        lines.append(f"\t{raw}")
    for each in annotation.objects:
        lines += _object_lines(each, one_based)
    text = "\n".join([*lines, "</annotation>", ""])
    # What is repeated from another file is the one thing that may be no XML.
    if annotation.header or any("xml" in each.attributes for each in annotation.objects):
        _check_well_formed(text, annotation.filename)
    return text


def _check_well_formed(text: str, filename: str) -> None:
    from defusedxml import ElementTree

    try:
        ElementTree.fromstring(text.encode(), forbid_dtd=True)
    except (ElementTree.ParseError, ValueError) as error:
        raise InputError(f"{filename}: its fields under 'voc', or an attribute 'xml', are no XML: {error}") from error


def _object_lines(item: VocObject, one_based: bool) -> list[str]:
    if not item.name or item.name != item.name.strip():
        raise InputError(f"the class name {item.name!r} cannot be written to XML; name the class without outer spaces")
    lines = ["\t<object>", *_lines("name", item.name, 2)]
    given = {key: value for key, value in item.attributes.items() if value is not None}
    others: dict[str, Any] = {}
    parts: Sequence[Mapping[str, Any]] = []
    raw = ""
    for key, value in given.items():
        if key == "pose" and isinstance(value, str):
            lines += _lines(key, value, 2)
        elif key in FLAGS and value in (0, 1):
            lines += _lines(key, str(int(value)), 2)
        elif key == "parts" and _are_parts(value):
            parts = value
        elif key == "xml" and isinstance(value, str) and value.startswith("<"):
            raw = value
        elif key in _RESERVED or key.startswith(PREFIX):
            others[PREFIX + key] = value
        else:
            others[key] = value
    if item.box is not None:
        lines += _box_lines(item.box, one_based, 2)
    if item.score is not None:
        lines += _lines("score", number_text(item.score), 2)
    for part in parts:
        box = part["box"]
        lines += ["\t\t<part>", *_lines("name", part["name"], 3), *_box_lines(box, one_based, 3), "\t\t</part>"]
    if others:
        lines.append("\t\t<attributes>")
        for key, value in others.items():
            plain = isinstance(value, str) and not _FORBIDDEN.search(value)
            entry = {"name": key, "value": value if plain else json.dumps(value), **({} if plain else {"type": "json"})}
            lines += _lines("attribute", entry, 3)
        lines.append("\t\t</attributes>")
    if raw:
        lines.append(f"\t\t{raw}")
    return [*lines, "\t</object>"]


def _are_parts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, dict) and set(each) == {"name", "box"} for each in value)


def _box_lines(box: Sequence[float], one_based: bool, level: int) -> list[str]:
    first = 1 if one_based else 0
    corners = (box[0] + first, box[1] + first, box[2], box[3])
    return _lines("bndbox", {key: number_text(each) for key, each in zip(_CORNERS, corners, strict=True)}, level)


def number_text(value: float) -> str:
    """A number as short as it can be without loss: ``"174"`` rather than ``"174.0"``."""
    value = float(value)
    return str(int(value)) if value == int(value) and abs(value) < 2**53 else repr(value)


def _lines(tag: str, value: str | Mapping[str, Any], level: int) -> list[str]:
    indent = "\t" * level
    if isinstance(value, Mapping):
        below = [line for key, each in value.items() for line in _lines(key, each, level + 1)]
        return [f"{indent}<{tag}>", *below, f"{indent}</{tag}>"]
    return [f"{indent}<{tag}>{_escaped(value)}</{tag}>"]


def _escaped(text: str, *, quote: bool = False) -> str:
    if _FORBIDDEN.search(text):
        raise InputError(f"the text {text!r} holds control characters, which XML has no place for; remove them")
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\r", "&#13;")
    if quote:
        text = text.replace('"', "&quot;").replace("\n", "&#10;").replace("\t", "&#9;")
    return text
