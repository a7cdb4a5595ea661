"""The JSON of COCO, typed: data sets of instances, and lists of results.

Layout after the COCO data format page (https://cocodataset.org/#format-data and #format-results). Fields that are not
listed here are kept by `everymask.formats.coco`. Files are read by `everymask.formats.coco_columns`, which is faster by
far; what is here says what is wrong with those that it refuses.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from everymask.errors import InputError
from everymask.types import Masks, Polygon, Polygons, Segments

Length = Annotated[int, msgspec.Meta(ge=0)]
Side = Annotated[int, msgspec.Meta(ge=1)]
Box = tuple[float, float, float, float]
T = TypeVar("T")

OUTSIDE = 1.0
"""Pixels that boxes and polygons may reach beyond the image, which rounding and pixel centres at .5 account for."""

_NOTHING = (b"", b"null", b"[]")


class JsonImage(msgspec.Struct):
    """An image."""

    id: int
    file_name: str
    width: Side
    height: Side


class JsonAnnotation(msgspec.Struct):
    """An object."""

    id: int
    image_id: int
    category_id: int
    bbox: Box | None = None
    area: float | None = None
    iscrowd: int | bool = 0
    score: float | None = None
    attributes: dict[str, Any] | None = None
    segmentation: msgspec.Raw = msgspec.Raw()


class JsonCategory(msgspec.Struct):
    """A class; `isthing` and `color` are those of COCO's panoptic files."""

    id: int
    name: str
    supercategory: str | None = None
    isthing: int | bool = 1
    color: tuple[int, int, int] | None = None


class JsonDataset(msgspec.Struct):
    """A file of instances."""

    images: list[JsonImage]
    annotations: list[JsonAnnotation]
    categories: list[JsonCategory]
    licenses: list[dict[str, Any]] = []


class JsonResult(msgspec.Struct):
    """A prediction."""

    image_id: int | str
    category_id: int
    score: float
    bbox: Box | None = None
    segmentation: msgspec.Raw = msgspec.Raw()


class JsonRle(msgspec.Struct):
    """Run lengths, as a list or as COCO's compressed string."""

    size: tuple[Side, Side]
    counts: list[Length] | str


_SEGMENTATION = msgspec.json.Decoder(JsonRle | list[list[float]] | None)


def decode(path: Path, read: Callable[[], T]) -> T:
    """The result of `read`, a decoding of (a part of) the file `path`.

    Raises:
        InputError: The JSON is malformed or not as this module says; the message has the place in the file.
    """
    try:
        return read()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except msgspec.ValidationError as error:
        raise InputError(f"{path}: {error}; expected the COCO format") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} is no valid JSON ({error}); export or copy the file again") from error


def check_keys(path: Path) -> None:
    """Says what a JSON lacks that was not recognised, so that a file cut short is told from one of another kind.

    Raises:
        InputError: It is no JSON, no object, or lacks keys of COCO instances.
    """
    content = decode(path, lambda: msgspec.json.decode(path.read_bytes()))
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no JSON object, as COCO instances are; name the file with the annotations")
    lacking = [key for key in ("images", "annotations", "categories") if key not in content]
    if lacking:
        raise InputError(f"{path} lacks {' and '.join(lacking)}, which COCO instances need; export the file again")


def nested(raw: msgspec.Raw, place: str, decoder: msgspec.json.Decoder[T]) -> T:
    """Decodes a part of a file that was left as text.

    Args:
        raw: The text.
        place: Where it is in the file, such as ``"$.images[3]"``.
        decoder: For its type.

    Raises:
        msgspec.DecodeError: With the place from the root of the file.
    """
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError as error:
        message, found, inner = str(error).rpartition("`$")
        if not found:
            raise msgspec.ValidationError(f"{error} - at `{place}`") from error
        raise msgspec.ValidationError(f"{message}`{place}{inner}") from error
    except msgspec.DecodeError as error:
        raise msgspec.DecodeError(f"{error} - at `{place}`") from error


def segmentation(raw: msgspec.Raw, place: str, size: tuple[int, int]) -> tuple[Polygon, ...] | NDArray[np.uint32]:
    """Polygons, or the run lengths (R,) of a mask; no polygon at all where there is no segmentation.

    Args:
        raw: The JSON.
        place: Where it is in the file, for messages.
        size: (H, W) of the image.

    Raises:
        InputError: A polygon has fewer than three points or leaves the image by more than `OUTSIDE` pixels; run lengths
            are no such or are those of another size. The message does not name the annotation.
        msgspec.DecodeError: The JSON has another structure, or is none.
    """
    from everymask.ops import rle

    if bytes(raw) in _NOTHING:
        return ()
    found = nested(raw, place, _SEGMENTATION)
    if isinstance(found, JsonRle):
        if found.size != size:
            raise InputError(f"its RLE has the size {list(found.size)}, but the image {list(size)} (height, width)")
        if isinstance(found.counts, str):
            counts = rle.from_string(found.counts)
        elif max(found.counts, default=0) > size[0] * size[1]:
            raise InputError(f"its RLE has a run of {max(found.counts)} pixels, in an image of {size[0] * size[1]}")
        else:
            counts = np.array(found.counts, np.uint32)
        rle.check(counts, size)
        return counts
    return tuple(_polygon(each, size) for each in found or ())


def _polygon(numbers: list[float], size: tuple[int, int]) -> Polygon:
    if len(numbers) < 6 or len(numbers) % 2:
        raise InputError(f"a polygon has {len(numbers)} numbers; expected x, y of at least three points")
    points = np.array(numbers, np.float64).reshape(-1, 2)
    low, high = points.min(axis=0), points.max(axis=0)
    if (low < -OUTSIDE).any() or (high > np.array(size[::-1]) + OUTSIDE).any():
        raise InputError(
            f"its polygon reaches from ({low[0]:g}, {low[1]:g}) to ({high[0]:g}, {high[1]:g}), outside the image of "
            f"{size[1]} x {size[0]} (width x height)"
        )
    return Polygon(points)


def check_box(box: Box, size: tuple[int, int] | None) -> None:
    """Makes sure that a box x, y, width, height lies in an image of (H, W), but for `OUTSIDE` pixels.

    Raises:
        InputError: It does not, or its width or height is negative.
    """
    x, y, width, height = box
    if width < 0 or height < 0:
        raise InputError(f"its bbox {list(box)} has a negative width or height")
    if size and (min(x, y) < -OUTSIDE or x + width > size[1] + OUTSIDE or y + height > size[0] + OUTSIDE):
        raise InputError(f"its bbox {list(box)} leaves the image of {size[1]} x {size[0]} (width x height)")


def geometry(shapes: list[tuple[Polygon, ...] | NDArray[np.uint32]], size: tuple[int, int]) -> Polygons | Masks | None:
    """Polygons if there are only such, run-length masks if any shape is one, None if there is no shape at all."""
    if not any(len(shape) for shape in shapes):
        return None if shapes else Polygons(size, ())
    outlined = [shape for shape in shapes if isinstance(shape, tuple)]
    if len(outlined) == len(shapes):
        return Polygons(size, tuple(outlined))
    # COCO's own rasteriser, so that mixing the two forms changes no mask.
    rasterised = iter(Segments(size, np.ones(len(outlined)), Polygons(size, tuple(outlined))).rles())
    return Masks.join(size, [next(rasterised) if isinstance(shape, tuple) else shape for shape in shapes])


def positions(ids: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """(M,) where each of `wanted` (M,) is in `ids` (N,), which are unique; -1 for what is not there."""
    if not len(ids):
        return np.full(len(wanted), -1, np.int64)
    order = np.argsort(ids, kind="stable")
    found = order[np.minimum(np.searchsorted(ids[order], wanted), len(ids) - 1)]
    return np.where(ids[found] == wanted, found, -1)


def json_boxes(boxes: NDArray[np.float64]) -> list[list[float]]:
    """x, y, width, height of boxes (N, 4) x0, y0, x1, y1.

    The shortest decimal width and height that give the same right and bottom edge, so that reading what was written
    gives the same numbers: 3.1 - 1 is 2.1 and not 2.1000000000000001.
    """
    sides = boxes[:, 2:] - boxes[:, :2]
    for digits in (12, 9, 6, 4, 3, 2, 1, 0):
        shorter = np.round(boxes[:, 2:] - boxes[:, :2], digits)
        sides = np.where(boxes[:, :2] + shorter == boxes[:, 2:], shorter, sides)
    return np.concatenate([boxes[:, :2], sides], axis=1).tolist()


def words(name: str) -> set[str]:
    """The parts of a file name between dots, underscores and dashes, with and without a year behind: ``train2017``."""
    parts = [part for part in re.split(r"[._\-]+", name.lower()) if part]
    return {*parts, *(part.rstrip("0123456789") for part in parts)} - {""}
