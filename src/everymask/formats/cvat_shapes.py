"""The shapes of CVAT for images 1.1: XML elements, and the outlines and columns of segments.

A shape that has an area (`AREAS`) is an object. The others (`polyline`, `points`, `cuboid`, `skeleton`, and `tag` where
there are shapes, too) outline no pixels; they are kept as XML beside the segments.

CVAT's masks are run lengths along the rows of their box, from the top left, beginning with background; COCO's and ours
go down the columns of the whole image.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree.ElementTree import (
    Element,
    SubElement,
    tostring,
)

import numpy as np

from everymask.errors import InputError
from everymask.formats.drawn_shapes import FARTHEST, check_points, cropped, ellipse, placed_runs, rectangle

if TYPE_CHECKING:
    from numpy.typing import NDArray

AREAS = frozenset({"box", "polygon", "ellipse", "mask"})
"""Shapes that cover pixels."""
SHAPES = AREAS | {"polyline", "points", "cuboid", "skeleton", "tag"}
DEFAULTS: dict[str, Any] = {"source": None, "occluded": False, "z_order": 0, "group_id": 0}
"""What all shapes have, and the values that CVAT takes where the file says nothing."""
RESERVED = frozenset({"shape", "cvat", *DEFAULTS})
"""Columns that are no attributes of labels."""
PREFIX = "attribute:"
"""Stands before the name of a column whose attribute is called like one of `RESERVED`."""
JSON = "json:"
"""Stands before the text of an attribute that CVAT has no type for: lists, and values of several types."""

_INTEGER = re.compile(r"-?\d{1,15}")
_LONG = re.compile(r"-?\d{1,18}")
# XML 1.0 has no way to write these, and turns a carriage return into a line feed.
_NO_XML = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

Specifications = Mapping[str, Mapping[str, str]]
"""Name of a label -> name of an attribute -> ``"checkbox"``, ``"number"`` or another input type, which gives text."""


@dataclass(frozen=True)
class Shape:
    """A shape that has an area.

    Args:
        label: Name of the category.
        outline: Points (K, 2) of a polygon, or run lengths (R,) of a mask in the image.
        columns: ``shape``, all of `DEFAULTS`, and the attributes of the label.
    """

    label: str
    outline: NDArray[Any]
    columns: dict[str, Any]


# -- reading -----------------------------------------------------------------------------------------------------------


def parse_shape(element: Element, size: tuple[int, int], specifications: Specifications) -> Shape:
    """The shape that an element describes.

    Args:
        element: One of `AREAS`.
        size: (H, W) of the image.
        specifications: Types of the attributes.

    Raises:
        InputError: A number is missing or wrong, or a mask leaves the image. The message does not name the place.
    """
    label, columns = parse_common(element, specifications)
    match element.tag:
        case "box":
            outline = rectangle(*_box(element), _number(element, "rotation", 0.0))
        case "polygon":
            outline = points(element)
            if len(outline) < 3:
                raise InputError(f"it has {len(outline)} points; a polygon needs three")
        case "ellipse":
            radii = _number(element, "rx"), _number(element, "ry")
            if min(radii) <= 0:
                raise InputError(f"its radii are {radii[0]:g} and {radii[1]:g}; expected more than 0")
            centre = _number(element, "cx"), _number(element, "cy")
            outline = ellipse(centre, radii, _number(element, "rotation", 0.0))
        case _:
            outline = _mask(element, size)
    return Shape(label, outline, {"shape": element.tag, **columns})


def parse_common(element: Element, specifications: Specifications) -> tuple[str, dict[str, Any]]:
    """Label and columns of a shape or a tag.

    Raises:
        InputError: There is no label, or a number is none.
    """
    label = element.get("label")
    if not label:
        raise InputError("it has no label; name one of the labels of the task")
    columns: dict[str, Any] = {
        "source": element.get("source"),
        "occluded": _integer(element, "occluded", 0) != 0,
        "z_order": _integer(element, "z_order", 0),
        "group_id": _integer(element, "group_id", 0),
    }
    types = specifications.get(label, {})
    for child in element:
        name = child.get("name")
        if child.tag == "attribute" and name is not None:
            key = PREFIX + name if name in RESERVED or name.startswith(PREFIX) else name
            columns[key] = _typed(child.text or "", types.get(name, "text"))
    return label, columns


def is_turned(element: Element) -> bool:
    """Whether a shape is rotated."""
    return element.get("rotation", "0").strip("0.") != ""


def points(element: Element) -> NDArray[np.float64]:
    """Points (K, 2) of ``"x,y;x,y"``.

    Raises:
        InputError: They are no such.
    """
    text = element.get("points", "")
    try:
        found = np.array([[float(each) for each in pair.split(",")] for pair in text.split(";")], np.float64)
    except ValueError:
        found = np.zeros(0)
    if found.ndim != 2 or found.shape[-1] != 2 or not np.isfinite(found).all():
        raise InputError(f"its points are {_short(text)}; expected 'x,y;x,y;x,y' in pixels")
    return check_points(found)


def _box(element: Element) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = (_number(element, key) for key in ("xtl", "ytl", "xbr", "ybr"))
    if x1 < x0 or y1 < y0:
        raise InputError(
            f"its bottom right corner ({x1:g}, {y1:g}) lies above or left of the top left ({x0:g}, {y0:g})"
        )
    return x0, y0, x1, y1


def _mask(element: Element, size: tuple[int, int]) -> NDArray[np.uint32]:
    left, top, width, height = (_integer(element, key) for key in ("left", "top", "width", "height"))
    text = element.get("rle", "")
    try:
        runs = np.array(text.split(","), np.int64)
    except (ValueError, OverflowError):
        runs = np.array([-1])
    if width < 1 or height < 1 or height > size[0] or width > size[1]:
        raise InputError(
            f"its width and height are {width} x {height}, in an image of {size[1]} x {size[0]}; correct them"
        )
    if (runs < 0).any() or (runs > width * height).any() or int(runs.sum()) != width * height:
        raise InputError(
            f"its rle {_short(text)} does not cover its width x height of {width} x {height} pixels; expected lengths "
            "of background and foreground in turn"
        )
    crop = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
    return placed_runs(crop, left, top, size)


def _number(element: Element, key: str, default: float | None = None) -> float:
    text = element.get(key)
    if text is None and default is not None:
        return default
    try:
        number = float(text or "")
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or abs(number) > FARTHEST:
        raise InputError(f"its {key} is {_short(text)}; expected a number")
    return number


def _integer(element: Element, key: str, default: int | None = None) -> int:
    text = element.get(key)
    if text is None and default is not None:
        return default
    if text is None or not _INTEGER.fullmatch(text.strip()):
        raise InputError(f"its {key} is {_short(text)}; expected a whole number")
    return int(text)


def _typed(text: str, kind: str) -> Any:
    if text.startswith(JSON):
        try:
            return json.loads(text[len(JSON) :])
        except (ValueError, RecursionError):
            return text  # somebody else's
    if kind == "checkbox" and text in {"true", "false"}:
        return text == "true"
    if kind == "number":
        if _LONG.fullmatch(text):
            return int(text)
        try:
            return float(text)
        except ValueError:
            return text
    return text


def _short(text: str | None) -> str:
    return "missing" if text is None else repr(text if len(text) <= 40 else f"{text[:40]}...")


# -- writing -----------------------------------------------------------------------------------------------------------


def make_element(
    label: str,
    kind: str,
    outline: NDArray[Any],
    size: tuple[int, int],
    columns: Mapping[str, Any],
    mixed: Set[str] = frozenset(),
) -> Element:
    """The element of a shape; attributes in the order of CVAT's own exports.

    Args:
        label: Name of the category.
        kind: ``"box"`` (upright), ``"polygon"`` or ``"mask"``.
        outline: Corners (4, 2) of the box from `drawn_shapes.rectangle`, points (K, 2), or run lengths (R,).
        size: (H, W) of the image.
        columns: Any of `DEFAULTS`, and attributes of the label.
        mixed: Attributes of the label whose values are of several types.
    """
    element = _labelled(kind, label, columns)
    element.set("occluded", str(int(columns.get("occluded") or 0)))
    if kind == "box":
        for key, value in zip(("xtl", "ytl", "xbr", "ybr"), (*outline[0], *outline[2]), strict=True):
            element.set(key, decimals(value))
    elif kind == "polygon":
        element.set("points", ";".join(f"{decimals(x)},{decimals(y)}" for x, y in outline))
    else:
        crop, left, top = cropped(outline, size)
        flat = crop.ravel()
        changes = np.flatnonzero(np.diff(flat, prepend=False))
        element.set("rle", ", ".join(map(str, np.diff(np.concatenate([[0], changes, [flat.size]])).tolist())))
        for key, value in (("left", left), ("top", top), ("width", crop.shape[1]), ("height", crop.shape[0])):
            element.set(key, str(value))
    element.set("z_order", str(int(columns.get("z_order") or 0)))
    _finish(element, columns, mixed)
    return element


def make_tag(label: str, columns: Mapping[str, Any], mixed: Set[str] = frozenset()) -> Element:
    """The element of a tag of the whole image."""
    element = _labelled("tag", label, columns)
    _finish(element, columns, mixed)
    return element


def _labelled(kind: str, label: str, columns: Mapping[str, Any]) -> Element:
    element = Element(kind, {"label": checked_text(label)})
    if columns.get("source") is not None:
        element.set("source", checked_text(str(columns["source"])))
    return element


def _finish(element: Element, columns: Mapping[str, Any], mixed: Set[str]) -> None:
    if columns.get("group_id"):
        element.set("group_id", str(int(columns["group_id"])))
    for name, value in named_attributes(columns).items():
        SubElement(element, "attribute", {"name": checked_text(name)}).text = attribute_text(value, mixed=name in mixed)


def named_attributes(columns: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of the label among the columns of an object, without those it has no value of."""
    return {
        name.removeprefix(PREFIX): value
        for name, value in columns.items()
        if name not in RESERVED and value is not None
    }


def kind_of(value: Any) -> str:
    """The type that an attribute with this value has in CVAT: ``"checkbox"``, ``"number"`` or ``"text"``.

    ``"json"`` for what has none, and for texts that would be taken for such or that XML cannot hold.
    """
    if isinstance(value, str):
        return "json" if value.startswith(JSON) or _NO_XML.search(value) else "text"
    if isinstance(value, bool):
        return "checkbox"
    fits = isinstance(value, float) or (isinstance(value, int) and _LONG.fullmatch(str(value)) is not None)
    return "number" if fits else "json"


def attribute_text(value: Any, *, mixed: bool = False) -> str:
    """The text of an attribute.

    Args:
        value: Anything that JSON holds.
        mixed: Whether the attribute has values of several types, so that CVAT's type does not tell this one's.
    """
    kind = kind_of(value)
    if kind == "json" or (mixed and kind != "text"):
        return checked_text(JSON + json.dumps(value))
    if kind == "checkbox":
        return "true" if value else "false"
    return checked_text(value) if kind == "text" else repr(value)


def checked_text(text: str) -> str:
    """`text`, if XML can hold it.

    Raises:
        InputError: It has control characters.
    """
    if _NO_XML.search(text):
        raise InputError(f"the text {_short(text)} has control characters, which XML cannot hold; remove them")
    return text


def decimals(value: float) -> str:
    """A number with two decimals as CVAT writes it, with more where two would change it."""
    short = f"{value:.2f}"
    return short if float(short) == value else repr(float(value))


def compact(element: Element) -> str:
    """The XML of an element without the white space between elements."""
    for each in element.iter():
        each.tail = (each.tail or "").strip() or None
        if len(each):
            each.text = (each.text or "").strip() or None
    return tostring(element, "unicode")


# -- comparing ---------------------------------------------------------------------------------------------------------

_COMMON = frozenset({"label", "source", "occluded", "z_order", "group_id", "rotation"})
_KEYS = {
    "box": _COMMON | {"xtl", "ytl", "xbr", "ybr"},
    "polygon": _COMMON | {"points"},
    "mask": _COMMON | {"rle", "left", "top", "width", "height"},
}


def is_told(element: Element, shape: Shape, size: tuple[int, int]) -> bool:
    """Whether `make_element` gives an element back, but for the digits of numbers, from what was read of it."""
    if not element.attrib.keys() <= _KEYS.get(element.tag, frozenset()) or is_turned(element):
        return False
    names = [child.get("name") for child in element if child.tag == "attribute" and len(child.attrib) == 1]
    if len(names) != len(element) or len(set(names)) != len(names) or None in names or any(map(len, element)):
        return False
    if element.tag != "mask":
        return True
    crop, left, top = cropped(shape.outline, size)
    tight = {"left": left, "top": top, "width": crop.shape[1], "height": crop.shape[0]}
    return all(int(element.get(key, "-1")) == value for key, value in tight.items())
