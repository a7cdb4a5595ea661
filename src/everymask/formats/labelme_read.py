"""Reading labelme."""

from __future__ import annotations

import base64
import mmap
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import numpy as np

from everymask.errors import InputError
from everymask.formats.checks import check_plane
from everymask.formats.class_names import read_names
from everymask.formats.columns import attribute_column
from everymask.formats.drawn_shapes import joined
from everymask.formats.exporting import LONGEST
from everymask.formats.images import image_size, read_image
from everymask.formats.joining import PARTS
from everymask.formats.labelme_shapes import FURTHER, IGNORED, JsonShape, as_written, is_object, outline, same_shapes
from everymask.formats.listing import IMAGE_SUFFIXES, list_images, natural_key
from everymask.formats.places import candidates, check_missing
from everymask.types import Categories, Dataset, Polygon, Polygons, Sample, Segments, Task

if TYPE_CHECKING:
    from numpy.typing import NDArray

_IMAGE_KEYS = frozenset({"version", "shapes", "imagePath", "imageData", "imageHeight", "imageWidth"})
"""Keys of a JSON that are not `Sample.extra`."""
_T = TypeVar("_T")


class JsonIndex(msgspec.Struct):
    """What is read of a JSON when a data set is opened: everything but the outlines and the image."""

    class Shape(msgspec.Struct):
        """A shape."""

        label: str
        shape_type: str | None = None

    shapes: list[Shape]
    imagePath: str = ""
    imageHeight: int | None = None
    imageWidth: int | None = None


class JsonFile(msgspec.Struct):
    """The shapes of an image, as they are."""

    shapes: list[dict[str, Any]]


_INDEX = msgspec.json.Decoder(JsonIndex)
_SHAPES = msgspec.json.Decoder(JsonFile)
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def is_labelme(path: Path) -> bool:
    """Whether a JSON has the keys that labelme needs."""
    if path.suffix.lower() != ".json" or path.stat().st_size < 2:
        return False
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        starts = content[:64].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")
        return starts and content.find(b'"shapes"') >= 0 and content.find(b'"imagePath"') >= 0


@dataclass(frozen=True)
class Entry:
    """An image: its name, its JSON, and its file as far as there is one."""

    name: str
    json: Path | None
    image: Path | None
    size: tuple[int, int] | None = None


def read(
    path: Path,
    *,
    split: str | None = None,
    images: str | os.PathLike[str] | None = None,
    missing_images: str = "error",
) -> Dataset:
    """Opens JSONs of labelme; reads labels and names of files, no outlines and no pixels.

    Args:
        path: The folder, with folders in it or without, or one JSON.
        split: A folder below it, such as ``"train"``. Without it, folders of such names are splits of one data set.
        images: The folder of images, if it is none of those that are looked into.
        missing_images: ``"error"``, ``"keep"`` images that are absent (reading one is then an error), or ``"skip"``
            them.

    Raises:
        InputError: A JSON is malformed, or images are missing.
    """
    check_missing(missing_images)
    root = path if path.is_dir() else path.parent
    if split is not None and not (path / split).is_dir():
        raise InputError(f"{path} has no folder {split!r}; name one of those in it")
    files = _json_files(root) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path} holds no JSON of labelme; expected name.json beside each annotated image")
    indices = {file: _decode(file, _INDEX) for file in files}
    # Classes are those of all parts, so that the parts agree on them.
    categories, outlined = _categories(root, indices)
    home = root if split is None else root / split
    finder = _Finder(None if images is None else Path(images))
    entries: list[Entry] = []
    absent: list[str] = []
    for file, index in indices.items():
        if not file.is_relative_to(home):
            continue
        image = finder.find(index.imagePath, file)
        if image is None and not _embedded(file):
            absent.append(f"{index.imagePath[-100:]!r} of {file.name}")
            if missing_images != "keep":
                continue
        size = (index.imageHeight, index.imageWidth)
        known = (size[0], size[1]) if size[0] and size[1] else None
        if known is not None:
            check_plane(known, file)
        entries.append(Entry(file.relative_to(home).with_suffix("").as_posix(), file, image, known))
    if absent and missing_images == "error":
        raise InputError(
            f"{path}: {len(absent)} of {len(indices)} images are not found: {', '.join(absent[:3])}; say where they "
            "are (option images), or --skip-missing to leave them out"
        )
    if path.is_dir():
        entries = _with_unannotated(entries, home)
    tasks = {Task.DETECTION, Task.INSTANCE} if outlined else {Task.DETECTION}
    reader = _Reader(entries, categories, outlined, split_names=split is None)
    return Dataset(reader.sample, len(entries), categories, frozenset(tasks), "labelme", path)


def _json_files(folder: Path) -> list[Path]:
    """The JSONs of labelme below a folder, in natural order.

    Raises:
        InputError: A JSON that is called like an image beside it is none of labelme: it may be damaged.
    """
    found: list[Path] = []
    for root, folders, files in os.walk(folder):
        folders[:] = [each for each in folders if not each.startswith(".")]
        images = {name.rpartition(".")[0] for name in files if name.lower().endswith(IMAGE_SUFFIXES)}
        for name in files:
            if not name.lower().endswith(".json") or name.startswith("."):
                continue
            path = Path(root, name)
            try:
                labelme = is_labelme(path)
            except OSError as error:
                raise InputError(f"cannot read {path}: {error.strerror}; copy the file again, or remove it") from error
            if labelme:
                found.append(path)
            elif name[: -len(".json")] in images:
                raise InputError(
                    f"{path} lies beside the image of that name, but is no JSON of labelme, or is damaged; save it "
                    "again, or remove it"
                )
    return sorted(found, key=lambda each: natural_key(str(each)))


def _decode(path: Path, decoder: msgspec.json.Decoder[_T]) -> _T:
    try:
        return decoder.decode(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except msgspec.ValidationError as error:
        raise InputError(f"{path}: {error}; expected the JSON of labelme") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} is no valid JSON ({error}); save or copy the file again") from error


def _embedded(path: Path) -> bool:
    """Whether a JSON holds its image."""
    return bytes(_decode(path, _FIELDS).get("imageData", msgspec.Raw(b"null"))) not in {b"null", b'""'}


def _categories(root: Path, indices: dict[Path, JsonIndex]) -> tuple[Categories, bool]:
    """The labels of objects, and whether any object is more than a box."""
    found: dict[str, Path] = {}
    kinds = set()
    for file, index in indices.items():
        for shape in index.shapes:
            if is_object(shape.label, shape.shape_type or "polygon"):
                found.setdefault(shape.label, file)
                kinds.add(shape.shape_type or "polygon")
    listed = root / "labels.txt"
    names = sorted(found, key=natural_key)
    if listed.is_file():
        names = [each for each in read_names(listed) if each not in IGNORED]
        for name, file in found.items():
            if name not in names:
                raise InputError(f"{file}: the label {name!r} is not in {listed}; add it there, or correct it")
    try:
        return Categories(names), bool(kinds - {"rectangle"})
    except InputError as error:
        raise InputError(f"{listed}: {error}; each label must be there once") from error


class _Finder:
    """Where the images are that JSONs name."""

    def __init__(self, images: Path | None) -> None:
        self._images = images
        self._places: dict[Path, list[Path]] = {}

    def find(self, name: str, source: Path) -> Path | None:
        """The longest end of a path that is a file in one of the folders; see the top of this module."""
        parts = [each for each in name.replace("\\", "/").split("/") if each not in {"", "."}]
        while ".." in parts:
            parts = parts[parts.index("..") + 1 :]
        if source.parent not in self._places:
            places = candidates(source) if self._images is None else [self._images]
            self._places[source.parent] = places
        places = self._places[source.parent]
        for start in range(len(parts)):
            tail = "/".join(parts[start:])
            if not tail.lower().endswith(IMAGE_SUFFIXES) or "\0" in tail:
                break
            if max(map(len, parts[start:])) > LONGEST:
                continue
            for place in places:
                if (place / tail).is_file():
                    return place / tail
        return None


def _with_unannotated(entries: Sequence[Entry], folder: Path) -> list[Entry]:
    """The images below a folder that no JSON names, too: nobody has annotated them yet."""
    used = {each.image for each in entries if each.image is not None}
    names = {each.name for each in entries}
    more = []
    for name in list_images(folder, recursive=True):
        stem = name.rpartition(".")[0]
        if (folder.resolve() / name) not in used and (folder / name) not in used and stem not in names:
            more.append(Entry(stem, None, folder / name))
    return sorted([*entries, *more], key=lambda each: natural_key(each.name)) if more else list(entries)


# -- images ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Reader:
    """Makes the samples."""

    entries: Sequence[Entry]
    categories: Categories
    outlined: bool
    split_names: bool

    def sample(self, index: int) -> Sample:
        entry = self.entries[index]
        extra: dict[str, Any] = {}
        part = entry.name.partition("/")[0]
        segments = None
        if entry.json is not None:
            extra = self._extra(entry.json)
            segments = partial(self.segments, entry, entry.json)
        if self.split_names and "/" in entry.name and part.lower() in PARTS:
            extra.setdefault("split", part)
        return Sample(entry.name, partial(self.image, entry), segments, entry.image, extra)

    def _extra(self, path: Path) -> dict[str, Any]:
        """Further keys of a JSON, and the shapes that are no objects, with their places."""
        fields = _decode(path, _FIELDS)
        try:
            extra = {key: msgspec.json.decode(raw) for key, raw in fields.items() if key not in _IMAGE_KEYS}
        except (msgspec.DecodeError, RecursionError) as error:
            raise InputError(f"{path} is no valid JSON ({error}); save or copy the file again") from error
        further = extra.pop(FURTHER, None)
        if extra.get("flags") in ({}, None):
            extra.pop("flags", None)
        extra |= further if isinstance(further, dict) else {}
        aside = [
            [i, shape]
            for i, shape in enumerate(_decode(path, _SHAPES).shapes)
            if not is_object(shape.get("label", ""), shape.get("shape_type") or "polygon")
        ]
        return {**extra, "labelme": aside} if aside else extra

    def image(self, entry: Entry) -> NDArray[Any]:
        if entry.image is not None:
            image, source = read_image(entry.image), str(entry.image)
        elif entry.json is not None:
            image, source = _embedded_image(entry.json), f"imageData of {entry.json}"
        else:
            raise InputError(f"there is no image of {entry.name}; add it")
        if entry.size is not None and image.shape[:-1] != entry.size:
            raise InputError(
                f"{source} has size {' x '.join(map(str, image.shape[:-1]))}, but {entry.json} says {entry.size[0]} x "
                f"{entry.size[1]} (height x width); correct the one that is wrong"
            )
        return image

    def segments(self, entry: Entry, path: Path) -> Segments:
        size = entry.size
        if size is None:
            found = image_size(entry.image) if entry.image is not None else _embedded_image(path).shape[:-1]
            size = (found[0], found[1])
        groups = _groups(path)
        drawn = []
        for place, _, shapes in groups:
            try:
                drawn.append(outline(shapes, size))
            except InputError as error:
                raise InputError(f"{path}: {place}: {error}; correct or remove the shape") from error
        geometry = joined(drawn, size)
        ids = {each.name: each.id for each in self.categories}
        category = [ids[shapes[0].label] for _, _, shapes in groups]
        scores = [raw[0]["score"] for _, raw, _ in groups if type(raw[0].get("score")) in {int, float}]
        scored = bool(scores) and len(scores) == len(groups)
        usual = "rectangle" if not self.outlined else "polygon" if isinstance(geometry, Polygons) else "mask"
        columns = _columns(groups, drawn, size, usual, scored=scored)
        score = scores if scored else None
        if self.outlined:
            return Segments(size, category, geometry, score=score, attributes=columns)
        box = Segments(size, category, geometry).boxes() if category else np.zeros((0, 4))
        return Segments(size, category, None, box=box, score=score, attributes=columns)


def _embedded_image(path: Path) -> NDArray[Any]:
    """The image in a JSON, read as if it were a file."""
    raw = _decode(path, _FIELDS).get("imageData", msgspec.Raw(b"null"))
    try:
        content = base64.b64decode(msgspec.json.decode(raw, type=str))
    except (msgspec.DecodeError, ValueError) as error:
        raise InputError(f"{path}: imageData is no image in base64 ({error}); add the image file") from error
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "image")
        copy.write_bytes(content)
        try:
            return read_image(copy)
        except InputError as error:
            raise InputError(f"{path}: imageData: {str(error).replace(str(copy), 'the image in it')}") from error


Group = tuple[str, list[dict[str, Any]], list[JsonShape]]
"""Place in the file, and the shapes of an object, as they are and typed."""


def _groups(path: Path) -> list[Group]:
    """The objects of a JSON."""
    found: dict[Any, Group] = {}
    for i, raw in enumerate(_decode(path, _SHAPES).shapes):
        place = f"$.shapes[{i}]"
        try:
            shape = msgspec.convert(raw, JsonShape)
        except msgspec.ValidationError as error:
            raise InputError(f"{path}: {str(error).replace('`$', f'`{place}')}; expected a shape of labelme") from error
        if not is_object(shape.label, shape.kind):
            continue
        key = i if shape.group_id is None else (shape.label, shape.group_id)
        group = found.setdefault(key, (place, [], []))
        group[1].append(raw)
        group[2].append(shape)
    return list(found.values())


def _columns(
    groups: Sequence[Group],
    drawn: Sequence[tuple[Polygon, ...] | NDArray[np.uint32]],
    size: tuple[int, int],
    usual: str,
    *,
    scored: bool,
) -> dict[str, NDArray[Any]]:
    """The attributes of segments, with ``labelme``, the shapes that geometry and columns do not tell exactly."""
    rows = []
    for (_, raw, shapes), found in zip(groups, drawn, strict=True):
        first = shapes[0]
        row: dict[str, Any] = {"group_id": first.group_id, "flags": first.flags or None}
        row |= {"description": first.description or None, "shape_type": first.kind}
        # Our files have what is called like these, and could not stand in their place, among the attributes.
        row |= {key: value for key, value in (first.attributes or {}).items() if key != "labelme"}
        score = raw[0]["score"] if scored else None
        told = first.kind == usual or (first.kind == "rectangle" and len(shapes) == 1 and usual == "polygon")
        if not told or not same_shapes(
            raw, as_written(first.label, first.kind, found, size, row, first.group_id, score)
        ):
            row["labelme"] = raw
        rows.append(row)
    keys = dict.fromkeys(key for row in rows for key in row)
    columns = {key: [row.get(key) for row in rows] for key in keys}
    if all(value == usual for value in columns.get("shape_type", ())):
        columns.pop("shape_type", None)
    return {
        key: attribute_column(values) for key, values in columns.items() if any(value is not None for value in values)
    }
