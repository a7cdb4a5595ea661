"""COCO JSON as columns: the numbers of all annotations as arrays, their outlines as places in the file.

A large file is mapped into memory, not read, and scanned by `everymask.ops.json_columns`. Where the scanner refuses a
file, msgspec decides: either the file is not as COCO's are, and msgspec says where, or it is written in an unusual
way (a key with escapes, say) and is brought into the usual one in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from everymask.errors import InputError
from everymask.formats import coco_schema as schema
from everymask.formats.coco_shapes import Shapes
from everymask.formats.mapped_file import MappedFile
from everymask.ops import json_outlines, json_text
from everymask.ops.json_columns import Field, Kind, Objects, scan_array

T = TypeVar("T")

_ANNOTATION = (
    Field("segmentation", Kind.VALUE, nullable=True),
    Field("area", Kind.NUMBER, nullable=True),
    Field("iscrowd", Kind.FLAG),
    Field("image_id", Kind.INTEGER),
    Field("bbox", Kind.FOUR_NUMBERS, nullable=True),
    Field("category_id", Kind.INTEGER),
    Field("id", Kind.INTEGER),
    Field("score", Kind.NUMBER, nullable=True),
    Field("attributes", Kind.OBJECT, nullable=True),
)
_RESULT = (
    Field("image_id", Kind.IDENTIFIER),
    Field("category_id", Kind.INTEGER),
    Field("bbox", Kind.FOUR_NUMBERS, nullable=True),
    Field("score", Kind.NUMBER),
    Field("segmentation", Kind.VALUE, nullable=True),
)
_IMAGE = (
    Field("file_name", Kind.TEXT),
    Field("height", Kind.INTEGER),
    Field("width", Kind.INTEGER),
    Field("id", Kind.INTEGER),
)
_DATASET = msgspec.json.Decoder(schema.JsonDataset)
_RESULTS = msgspec.json.Decoder(list[schema.JsonResult])
_ARRAYS = {"images": _IMAGE, "annotations": _ANNOTATION}
_LISTS: dict[str, msgspec.json.Decoder[Any]] = {
    "categories": msgspec.json.Decoder(list[schema.JsonCategory]),
    "licenses": msgspec.json.Decoder(list[dict[str, Any]]),
}
_RAW_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ROWS = 1 << 15  # whose segmentations are looked at together


@dataclass(frozen=True, eq=False)
class Columns:
    """N annotations or results.

    Args:
        source: The file.
        place: Where they are in it, for messages: ``"$.annotations"``, or ``"$"`` for a list of results.
        id: (N,) int64; -1 where there is none.
        image_id: (N,) int64; where `image_text` is true the index of the text in `image_texts`.
        image_text: (N,) bool: whether the id of the image is text, which only results may have.
        image_texts: Ids of images that are text, each once.
        category_id: (N,) int64.
        score: (N,) float64, NaN where there is none.
        box: (N, 4) float64 x, y, width, height in pixels, NaN where there is none.
        area: (N,) float64 in pixels, NaN where there is none.
        crowd: (N,) bool.
        shapes: The N segmentations.
        object_span: (N, 2) int64 where all of it begins and ends.
        extended: (N,) bool: whether there are fields besides these, see `fields`.
    """

    source: MappedFile
    place: str
    id: NDArray[np.int64]
    image_id: NDArray[np.int64]
    image_text: NDArray[np.bool_]
    image_texts: tuple[str, ...]
    category_id: NDArray[np.int64]
    score: NDArray[np.float64]
    box: NDArray[np.float64]
    area: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    shapes: Shapes
    object_span: NDArray[np.int64]
    extended: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.id)

    @property
    def segmentation_kind(self) -> NDArray[np.uint8]:
        """(N,) `NOTHING`, `POLYGONS`, `STRING` (compressed run lengths) or `LENGTHS`, see `json_outlines`."""
        return self.shapes.kind

    @property
    def segmentation_span(self) -> NDArray[np.int64]:
        """(N, 2) where the segmentation begins and ends in `data`; zeros where there is none."""
        return self.shapes.span

    @property
    def data(self) -> NDArray[np.uint8]:
        """The bytes of the file, mapped; call `source.check()` before looking at them."""
        return self.source.data

    def masks(self, rows: ArrayLike, sizes: ArrayLike) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Run-length masks of some rows, decoded on several threads; polygons are filled by COCO's rule.

        Args:
            rows: (M,) row numbers.
            sizes: (M, 2) height and width of the image of each, or (2,) for all.

        Returns:
            `counts` (R,) uint32 and `offsets` (M + 1,) int64; a row without segmentation has an empty mask.

        Raises:
            InputError: A segmentation is malformed or does not fit its size; the message names file and place.
        """
        rows = np.asarray(rows, np.int64).reshape(-1)
        return self.shapes.masks(rows, np.broadcast_to(np.asarray(sizes, np.int64), (len(rows), 2)))

    def fields(self, row: int) -> dict[str, msgspec.Raw]:
        """All fields of a row as text."""
        self.source.check()
        begin, end = self.object_span[row]
        return _RAW_FIELDS.decode(self.data[begin:end].tobytes())


@dataclass(frozen=True, eq=False)
class ImageColumns:
    """M images.

    Args:
        id: (M,) int64.
        height: (M,) int64 in pixels.
        width: (M,) int64.
        file_names: M paths.
        object_span: (M, 2) int64 where the entry begins and ends in the bytes of the file.
    """

    id: NDArray[np.int64]
    height: NDArray[np.int64]
    width: NDArray[np.int64]
    file_names: list[str]
    object_span: NDArray[np.int64]


class Content(NamedTuple):
    """A file of instances."""

    images: ImageColumns
    annotations: Columns
    categories: list[schema.JsonCategory]
    licenses: list[dict[str, Any]]


def read_annotations(path: Path) -> Content:
    """Reads a JSON of COCO instances; decodes no outlines, and checks nothing but its form.

    Raises:
        InputError: The file cannot be read, is no JSON or is not of this form; the message names the place in it.
    """
    return _read(path, _content, _DATASET)


def read_results(path: Path) -> Columns:
    """Reads a JSON list of COCO results; decodes no outlines, and checks nothing but its form.

    Raises:
        InputError: The file cannot be read, is no JSON or is not of this form; the message names the place in it.
    """
    return _read(path, _results, _RESULTS)


def _read(path: Path, scan: Callable[[MappedFile], T | None], typed: msgspec.json.Decoder[Any]) -> T:
    """What `scan` finds in a file or, if it refuses that, in the same content written in the usual way.

    Args:
        path: The file.
        scan: The fast way, which may give None.
        typed: The general way, which says what is wrong.
    """
    source = MappedFile(path)
    found = scan(source)
    if found is None:
        schema.decode(path, lambda: typed.decode(source.data.data))
        source.replace(schema.decode(path, lambda: msgspec.json.encode(msgspec.json.decode(source.data.data))))
        found = scan(source)
    source.forget()
    if found is None:
        raise InputError(
            f"{path}: an id needs more than 64 bits, or values are nested too deep; export it more plainly"
        )
    return found


def _content(source: MappedFile) -> Content | None:
    """The content of a file of instances; None if anything in it is not as expected."""
    data = source.data
    if not len(data) or data[0] != ord("{") or data[-1] != ord("}"):
        return None
    found: dict[str, Any] = {"licenses": []}

    def visit(key: str, at: int) -> int:
        if key in _ARRAYS:
            array = scan_array(data, at, _ARRAYS[key], scanned=source.check)
            if array is None:
                return json_text.NOT_UNDERSTOOD
            found[key] = array[0]
            return array[1]
        end = int(json_text.skip_value(data, at))
        if key in _LISTS and end >= 0:
            try:
                found[key] = _LISTS[key].decode(data[at:end].data)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                return json_text.NOT_UNDERSTOOD
        return end

    if json_text.members(data, 0, visit) != len(data) or not {*_ARRAYS, *_LISTS} <= set(found):
        return None
    images = _images(source, found.pop("images"))
    annotations = _columns(source, "$.annotations", found.pop("annotations"), ("id", "image_id", "category_id"))
    if images is None or annotations is None:
        return None
    return Content(images, annotations, found["categories"], found["licenses"])


def _images(source: MappedFile, objects: Objects) -> ImageColumns | None:
    if not all(bool(objects.present(name).all()) for name in ("id", "file_name", "height", "width")):
        return None
    height, width = objects.integers("height"), objects.integers("width")
    if bool((height < 1).any() or (width < 1).any()):
        return None
    names = json_text.texts(source.data, objects.integers("file_name")[:, 0])
    return ImageColumns(objects.integers("id"), height, width, names, objects.spans())


def _results(source: MappedFile) -> Columns | None:
    """The columns of a list of results; None if anything in it is not as expected."""
    data = source.data
    if not len(data) or data[0] != ord("[") or data[-1] != ord("]"):
        return None
    found = scan_array(data, 0, _RESULT, scanned=source.check)
    if found is None or found[1] != len(data):
        return None
    return _columns(source, "$", found[0], ("image_id", "category_id", "score"))


def _columns(source: MappedFile, place: str, objects: Objects, required: Sequence[str]) -> Columns | None:
    """The columns of annotations or results; None if one lacks a field that is `required`."""
    if not all(bool(objects.present(name).all()) for name in required):
        return None
    number = len(objects)
    spans, there = objects.integers("segmentation"), objects.present("segmentation")
    spans[~there] = 0
    image_id, textual = objects.integers("image_id"), objects.textual("image_id")
    names: dict[str, int] = {}
    if bool(textual.any()):
        found = json_text.texts(source.data, image_id[textual])
        image_id[textual] = [names.setdefault(each, len(names)) for each in found]
    extended = objects.others()
    if objects.has("attributes"):
        extended |= objects.present("attributes")
    return Columns(
        source,
        place,
        objects.integers("id") if objects.has("id") else np.full(number, -1, np.int64),
        image_id,
        textual,
        tuple(names),
        objects.integers("category_id"),
        objects.numbers("score"),
        objects.numbers("bbox"),
        objects.numbers("area") if objects.has("area") else np.full(number, np.nan),
        objects.integers("iscrowd") != 0 if objects.has("iscrowd") else np.zeros(number, bool),
        Shapes(source, place, _kinds(source, spans, there), spans),
        objects.spans(),
        extended,
    )


def _kinds(source: MappedFile, spans: NDArray[np.int64], there: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The kinds of segmentations, looked at some at a time, so that pages of the file can be given back between."""
    kinds = np.zeros(len(spans), np.uint8)
    for first in range(0, len(spans), _ROWS):
        rows = slice(first, first + _ROWS)
        kinds[rows] = json_outlines.segmentation_kinds(source.data, spans[rows], there[rows])
        source.check(int(spans[rows].max() - spans[rows].min(initial=len(source.data))))
    return kinds
