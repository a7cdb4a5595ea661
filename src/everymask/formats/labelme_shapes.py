"""The shapes of labelme: dictionaries of a JSON, and the outlines and columns of segments."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from everymask.errors import InputError
from everymask.formats.drawn_shapes import check_points, cropped, ellipse, placed_runs, rectangle
from everymask.types import Polygon, Polygons, Segments

if TYPE_CHECKING:
    from numpy.typing import NDArray

AREAS = frozenset({"polygon", "rectangle", "circle", "mask"})
"""Types of shapes that cover pixels."""
ASIDE = frozenset({"point", "points", "line", "linestrip"})
IGNORED = frozenset({"_background_", "__ignore__"})
"""Labels that labelme's own programs do not count among the classes."""
RESERVED = frozenset({"group_id", "flags", "description", "shape_type", "labelme"})
"""Columns that are no entries of ``attributes``."""


FURTHER = "everymask"
"""Key of a file that holds what is called like one of labelme's own keys, but is something else."""


class JsonShape(msgspec.Struct):
    """A shape; further keys are kept, too."""

    label: str
    points: list[tuple[float, float]] = []
    shape_type: str | None = None
    group_id: int | str | None = None
    flags: dict[str, Any] | None = None
    description: str | None = None
    mask: str | None = None
    attributes: dict[str, Any] | None = None

    @property
    def kind(self) -> str:
        """The type; files of old versions have polygons without saying so."""
        return self.shape_type or "polygon"


def is_object(label: str, kind: str) -> bool:
    """Whether a shape covers pixels of an object."""
    return kind not in ASIDE and label not in IGNORED


# -- reading -----------------------------------------------------------------------------------------------------------


def outline(shapes: Sequence[JsonShape], size: tuple[int, int]) -> tuple[Polygon, ...] | NDArray[np.uint32]:
    """Polygons of the parts of an object, or its run lengths (R,) if one of them is a mask.

    Args:
        shapes: Its parts.
        size: (H, W) of the image.

    Raises:
        InputError: Points or a mask are malformed, or a mask leaves the image. The message does not name the place.
    """
    masks = [_mask(each, size) for each in shapes if each.kind == "mask"]
    polygons = tuple(Polygon(_ring(each)) for each in shapes if each.kind != "mask")
    if not masks:
        return polygons
    if len(shapes) == 1:
        return masks[0]
    from everymask.ops import rle

    if polygons:
        masks.append(Segments.from_polygons(size, [polygons]).rles()[0])
    united = np.zeros(size, bool)
    for runs in masks:
        united |= rle.decode(runs, np.array([0, len(runs)]), size)[0]
    return rle.encode(united[None])[0]


def _ring(shape: JsonShape) -> NDArray[np.float64]:
    points = np.array(shape.points, np.float64).reshape(-1, 2)
    check_points(points)
    needed = 3 if shape.kind == "polygon" else 2
    if len(points) < needed or (shape.kind != "polygon" and len(points) not in {2, 4}):
        raise InputError(f"it has {len(points)} points; a {shape.kind} needs {needed}")
    match shape.kind:
        case "rectangle" if len(points) == 2:
            return rectangle(*points.min(axis=0), *points.max(axis=0))
        case "circle":
            centre, edge = points[:2]
            radius = math.dist(centre, edge)
            if radius == 0:
                raise InputError("its two points are one; a circle needs its centre and a point on it")
            return ellipse((centre[0], centre[1]), (radius, radius))
        case "polygon" | "rectangle":  # some programs write rectangles that are turned, with four corners
            return points
    raise InputError(f"its shape_type is {shape.kind!r}; expected one of {', '.join(sorted(AREAS | ASIDE))}")


def _mask(shape: JsonShape, size: tuple[int, int]) -> NDArray[np.uint32]:
    if not shape.mask or not shape.points:
        raise InputError("it is a mask without mask or points")
    left, top = (round(each) if math.isfinite(each) else -1 for each in shape.points[0])
    return placed_runs(mask_pixels(shape.mask), left, top, size)


def mask_pixels(text: str) -> NDArray[np.bool_]:
    """The (h, w) mask in a PNG in base64.

    Raises:
        InputError: It is none.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"]) as image:
            pixels = np.array(image)
    except Exception as error:  # a decoder meets bytes that anyone may have written
        raise InputError(f"its mask is no PNG in base64 ({error})") from error
    return (pixels if pixels.ndim == 2 else pixels[..., :3].any(axis=-1)) != 0


# -- writing -----------------------------------------------------------------------------------------------------------


def as_written(
    label: str,
    kind: str,
    drawn: tuple[Polygon, ...] | NDArray[np.uint32],
    size: tuple[int, int],
    row: Mapping[str, Any],
    group: int | str | None,
    score: float | None,
) -> list[dict[str, Any]]:
    """The shapes of an object, with the keys in labelme's order.

    Args:
        label: Name of the category.
        kind: ``"rectangle"`` (one polygon of four corners from `drawn_shapes.rectangle`), ``"polygon"`` or ``"mask"``.
        drawn: Polygons without holes, or run lengths (R,).
        size: (H, W) of the image.
        row: Any columns of the object.
        group: The ``group_id`` of its shapes, which may be another than that in `row`.
        score: Of the object, if it has one.
    """
    outlines: list[tuple[list[list[float]], str | None]]
    if isinstance(drawn, tuple):
        rings = [each.exterior[[0, 2]] if kind == "rectangle" else each.exterior for each in drawn]
        outlines = [(ring.tolist(), None) for ring in rings]
    else:
        crop, left, top = cropped(drawn, size)
        corners = [[left, top], [left + crop.shape[1] - 1, top + crop.shape[0] - 1]]
        outlines = [([list(map(float, each)) for each in corners], _png(crop))]
    own = {key: row[key] if key in row and suits(key, row[key]) else None for key in RESERVED} | {"group_id": group}
    # What is called like a key of labelme and is something else is an attribute like any other.
    further = {key: value for key, value in row.items() if value is not None and value != own.get(key)}
    shapes = []
    for points, mask in outlines:
        shape = {
            "label": label,
            "points": points,
            "group_id": group,
            "description": own["description"] or "",
            "shape_type": kind,
            "flags": own["flags"] or {},
            "mask": mask,
        }
        if score is not None:
            shape["score"] = score
        if further:
            shape["attributes"] = further
        shapes.append(shape)
    return shapes


def suits(key: str, value: Any) -> bool:
    """Whether a value is one that labelme has under a key of `RESERVED`."""
    match key:
        case "group_id":
            return type(value) in {int, str}
        case "flags":
            return isinstance(value, dict)
        case "description":
            return isinstance(value, str)
        case "shape_type":
            return value in ("polygon", "rectangle", "circle", "mask")
        case _:
            return isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)


def _png(crop: NDArray[np.bool_]) -> str:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(crop).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode("ascii")


def same_shapes(one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> bool:
    """Whether shapes say the same: equal numbers, pixels and texts; what is absent is what labelme takes for it."""
    return [_meaning(each) for each in one] == [_meaning(each) for each in other]


def _meaning(shape: Mapping[str, Any]) -> dict[str, Any]:
    said = {key: value for key, value in shape.items() if value not in (None, "", {})}
    said["shape_type"] = shape.get("shape_type") or "polygon"
    said["points"] = [list(each) for each in shape["points"]]
    if isinstance(shape.get("mask"), str):
        pixels = mask_pixels(shape["mask"])
        said["mask"] = (pixels.shape, pixels.tobytes())
    return said


def plain_parts(geometry: Polygons, index: int) -> bool:
    """Whether an object is outlined by polygons without holes."""
    return bool(geometry.parts[index]) and not any(part.holes for part in geometry.parts[index])
