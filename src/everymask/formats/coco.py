"""COCO instances: one JSON file with polygons, run-length masks, crowds or boxes, and a folder of images.

Where the images are is not in the file. They are looked for by `everymask.formats.places`: from the folder of the JSON
upwards, in folders such as `images/` and those called like a part of its name (`train2017` for
`instances_train2017.json`). The one that holds most of the first images is taken for all.

What is kept of an image: every further field, as `Sample.extra`, its id as ``"image_id"``, its licence in full as
``"license_entry"``. Of an annotation: the attributes ``id`` and ``area``, whatever is under its ``attributes``, and
every further field.

Opening a file reads numbers and places of outlines only (`everymask.formats.coco_columns`); images are matched to their
annotations by sorting arrays, so that a million annotations cost no million objects.
"""

from __future__ import annotations

import mmap
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from everymask.errors import InputError
from everymask.formats import PARTS
from everymask.formats import coco_schema as schema
from everymask.formats.coco_results import image_ids, read_predictions, recognise_predictions, write_predictions
from everymask.formats.coco_write import write
from everymask.formats.columns import attribute_column
from everymask.formats.description import Description, Feature
from everymask.formats.exporting import check_relative
from everymask.formats.images import read_image
from everymask.formats.joining import join_parts
from everymask.formats.listing import natural_key
from everymask.formats.places import absent_images, candidates, image_folder
from everymask.types import Categories, Category, Dataset, Sample, Segments, Task

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from everymask.formats.coco_columns import Columns, Content

__all__ = [
    "DESCRIPTION",
    "image_ids",
    "read",
    "read_predictions",
    "recognise",
    "recognise_predictions",
    "write",
    "write_predictions",
]

DESCRIPTION = Description(
    summary="COCO instances JSON: polygons, run-length masks, crowds, boxes",
    layout="a JSON with images, annotations and categories, beside its images",
    tasks=frozenset({Task.INSTANCE, Task.DETECTION}),
    # Holes are carried as pixels: an object with holes is written as run lengths, and an image that has such an object
    # is read as masks, so that the points of polygons are carried only in images where no object has a hole.
    carries=frozenset(Feature) - {Feature.VOID, Feature.VOLUMES, Feature.TAGS, Feature.UNANNOTATED},
    as_pixels=frozenset({Feature.HOLES}),
)

_ANY = msgspec.json.Decoder(Any)
_FIELDS = msgspec.json.Decoder(dict[str, Any])
_ATTRIBUTES = msgspec.json.Decoder(dict[str, Any] | None)
_KNOWN = frozenset(schema.JsonAnnotation.__struct_fields__)
_WINDOW = 1 << 20  # bytes of a file that are searched for a key together


# -- recognising -------------------------------------------------------------------------------------------------------


def recognise(path: Path) -> bool:
    """Whether `path` is a JSON of instances, or a folder with at least one; by its keys, without parsing it.

    Lists of results and panoptic files are no such.
    """
    try:
        return _is_instances(path) if path.is_file() else any(_is_instances(each) for each in _candidates(path))
    except OSError:
        return False


def _is_instances(path: Path) -> bool:
    """Whether a file has the keys of COCO instances, and its first annotations are not those of COCO panoptic."""
    if path.suffix.lower() != ".json" or path.stat().st_size < 2:
        return False
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if not content[:64].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
            return False
        annotations = _find(content, b'"annotations"')
        return (
            annotations >= 0
            and content[annotations : annotations + _WINDOW].find(b'"segments_info"') < 0
            and all(_find(content, key) >= 0 for key in (b'"images"', b'"categories"'))
        )


def _find(content: mmap.mmap, key: bytes) -> int:
    """Where a key occurs, -1 if nowhere: at the beginning or the end of the file, as mostly, or anywhere."""
    last = max(len(content) - _WINDOW, 0)
    for start in (0, last, *range(_WINDOW, last, _WINDOW)):
        # Searching a copy is faster by far than searching the mapping.
        found = content[start : start + _WINDOW + len(key)].find(key)
        if found >= 0:
            return start + found
    return -1


def _candidates(folder: Path) -> list[Path]:
    """JSON files in a folder and in the folders right below it."""
    found = [Path(entry.path) for entry in os.scandir(folder) if entry.name.lower().endswith(".json")]
    for below in (entry for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")):
        found += [Path(entry.path) for entry in os.scandir(below) if entry.name.lower().endswith(".json")]
    return sorted(found, key=lambda path: natural_key(str(path)))


def _choose(folder: Path, split: str | None) -> dict[str, Path]:
    """The JSON of instances in a folder that belongs to `split`, or all of them by the names of their parts.

    Raises:
        InputError: There is none, or there are several that are not called like parts of one data set.
    """
    found = [path for path in _candidates(folder) if path.is_file() and _is_instances(path)]
    chosen = found
    if split is not None:
        wanted = split.lower()
        chosen = [path for path in found if wanted in schema.words(path.stem) or wanted == path.parent.name.lower()]
    # The folder `annotations` of COCO holds key points of the same images, too.
    chosen = [path for path in chosen if path.stem.lower().startswith("instances")] or chosen
    names = ", ".join(path.relative_to(folder).as_posix() for path in found[:5]) or "none"
    if not chosen:
        what = f"no JSON of COCO instances{f' for the part {split!r}' if split else ''}"
        raise InputError(f"{folder} holds {what}; found: {names}")
    if len(chosen) == 1:
        return {"": chosen[0]}
    parts = {_part(path): path for path in chosen}
    if split is not None or "" in parts or len(parts) < len(chosen):
        raise InputError(
            f"{folder} holds several JSON files of COCO instances ({names}); name one of them, or say split"
        )
    return parts


def _part(path: Path) -> str:
    """The part of a data set that a JSON is called after, or its folder, such as ``train2017``; empty if after none."""
    words = sorted(schema.words(path.stem), key=len, reverse=True)
    called = [word for word in words if word.rstrip("0123456789") in PARTS]
    if not called and path.parent.name.lower() in PARTS:
        called = [path.parent.name]
    return called[0] if called else ""


# -- reading -----------------------------------------------------------------------------------------------------------


def read(
    path: Path, *, split: str | None = None, images: str | os.PathLike[str] | None = None, missing_images: str = "error"
) -> Dataset:
    """Opens a JSON of COCO instances; decodes no pixels and no outlines.

    Args:
        path: The JSON, or a folder that holds it. Where it holds several, one for each part of the data set, they are
            opened as one.
        split: Only this part: a word of the name of its JSON, such as ``"train"``.
        images: The folder that file names are relative to, if it is none of those that are looked into.
        missing_images: ``"error"``, or ``"keep"`` samples whose image is absent (reading it is then an error), as suits
            an evaluation of finished predictions, or ``"skip"`` them.

    Raises:
        InputError: The file is malformed, keys are missing, ids are unknown or double, a file name leads out of the
            folder, or images are missing.
    """
    if not path.is_dir():
        if split is not None:
            raise InputError(f"{path} is a single file and has no part {split!r}; leave out split")
        return _read_file(path, images, missing_images)
    parts = _choose(path, split)
    opened = {name: _read_file(file, images, missing_images) for name, file in parts.items()}
    return next(iter(opened.values())) if len(opened) == 1 else join_parts(opened, path)


def _read_file(path: Path, given: str | os.PathLike[str] | None, missing: str) -> Dataset:
    from everymask.formats.coco_columns import read_annotations

    content = read_annotations(path)
    files = content.images.file_names
    _check_names(files, content.images.id, path)
    categories = _categories(content.categories, path)
    rows, starts = _rows(content, categories, path)
    words = sorted(schema.words(path.stem), key=len, reverse=True)
    searched = candidates(path, words) if given is None else [Path(given)]
    folder = image_folder(path, files, searched, missing=missing)
    absent = set(absent_images(folder, files)) if missing == "skip" else set()
    kept = [position for position, file in enumerate(files) if file not in absent]
    tasks = {Task.DETECTION} | ({Task.INSTANCE} if content.annotations.segmentation_kind.any() else set())
    licences = {licence["id"]: licence for licence in content.licenses if isinstance(licence.get("id"), (int, str))}
    index = _Index(path, folder, content, _names(files), kept, rows, starts, licences)
    return Dataset(index.sample, len(kept), categories, frozenset(tasks), "coco", path)


@dataclass(frozen=True)
class _Index:
    """Makes the samples of a file.

    The annotations of image i are ``rows[starts[i]:starts[i + 1]]``; sample k is image ``kept[k]``.
    """

    path: Path
    folder: Path
    content: Content
    names: list[str]
    kept: list[int]
    rows: NDArray[np.int64]
    starts: NDArray[np.int64]
    licences: dict[int | str, dict[str, Any]]

    def sample(self, index: int) -> Sample:
        image = self.kept[index]
        entries, source = self.content.images, self.content.annotations.source
        source.check()
        begin, end = entries.object_span[image].tolist()
        extra = _FIELDS.decode(source.data[begin:end].data)
        for known in ("id", "file_name", "width", "height"):
            del extra[known]
        extra["image_id"] = int(entries.id[image])
        licence = extra.get("license")
        if isinstance(licence, (int, str)) and licence in self.licences:
            extra["license_entry"] = self.licences[licence]
        file = self.folder / entries.file_names[image]
        return Sample(self.names[image], partial(self.image, image), partial(self.segments, image), file, extra)

    def image(self, image: int) -> NDArray[Any]:
        entries = self.content.images
        file = self.folder / entries.file_names[image]
        pixels = read_image(file)
        height, width = int(entries.height[image]), int(entries.width[image])
        if pixels.shape[:-1] != (height, width):
            raise InputError(
                f"{file} has size {pixels.shape[0]} x {pixels.shape[1]}, but {self.path} says {height} x {width} "
                f"(height x width) for image {entries.id[image]}; correct the JSON, or the file (is it turned by EXIF?)"
            )
        return pixels

    def segments(self, image: int) -> Segments:
        rows = self.rows[self.starts[image] : self.starts[image + 1]]
        entries, columns = self.content.images, self.content.annotations
        size = (int(entries.height[image]), int(entries.width[image]))
        file = entries.file_names[image]

        def name(row: int) -> str:
            return f"annotation {columns.id[row]} of {file}"

        score = columns.score[rows]
        scored = ~np.isnan(score)
        boxes = columns.box[rows]
        # Predicted boxes may well leave the image.
        _check_boxes(boxes, size, ~scored, self.path, lambda position: name(int(rows[position])))
        outlines = columns.shapes.geometry(rows, size, name)
        lacking = np.isnan(boxes[:, 0])
        boxes = np.where(lacking[:, None], 0, boxes)
        boxes[:, 2:] += boxes[:, :2]
        if outlines is not None and bool(lacking.any()):
            boxes[lacking] = Segments(size, np.ones(len(rows)), outlines).boxes()[lacking]
        return Segments(
            size,
            columns.category_id[rows],
            outlines,
            score=score if len(rows) and bool(scored.all()) else None,
            box=boxes,
            crowd=columns.crowd[rows],
            attributes=_attributes(columns, rows, self.path),
        )


def _check_boxes(
    boxes: NDArray[np.float64],
    size: tuple[int, int],
    inside: NDArray[np.bool_],
    path: Path,
    name: Callable[[int], str],
) -> None:
    """Makes sure that boxes (N, 4) x, y, width, height are boxes, and lie `inside` the image but for `OUTSIDE` pixels.

    Raises:
        InputError: One does not; `name` tells what messages call it.
    """
    low, sides = boxes[:, :2], boxes[:, 2:]
    beyond = (low < -schema.OUTSIDE) | (low + sides > np.array(size[::-1]) + schema.OUTSIDE)
    wrong = ((sides < 0) | (beyond & inside[:, None])).any(axis=1)
    if bool(wrong.any()):
        position = int(np.argmax(wrong))
        x, y, width, height = boxes[position].tolist()
        try:
            schema.check_box((x, y, width, height), size)
        except InputError as error:
            raise InputError(f"{path}: {name(position)}: {error}; correct or remove the annotation") from error


def _attributes(columns: Columns, rows: NDArray[np.int64], path: Path) -> dict[str, NDArray[Any]]:
    """The columns ``id``, ``area`` (NaN where there is none), and those of further fields and under ``attributes``."""
    found: dict[str, NDArray[Any]] = {"id": columns.id[rows]}
    area = columns.area[rows]
    if not bool(np.isnan(area).all()):
        found["area"] = area
    if bool(columns.extended[rows].any()):
        entries = [_further(columns, int(row), path) if columns.extended[row] else {} for row in rows]
        for key in dict.fromkeys(key for entry in entries for key in entry):
            found.setdefault(key, attribute_column([entry.get(key) for entry in entries]))
    return found


def _further(columns: Columns, row: int, path: Path) -> dict[str, Any]:
    """The fields of an annotation that have no column, and those under ``attributes``."""
    fields = columns.fields(row)
    place = f"{columns.place}[{row}]"

    def decode() -> dict[str, Any]:
        own = {key: schema.nested(raw, f"{place}.{key}", _ANY) for key, raw in fields.items() if key not in _KNOWN}
        under = (
            schema.nested(fields["attributes"], f"{place}.attributes", _ATTRIBUTES) if "attributes" in fields else {}
        )
        return own | (under or {})

    return schema.decode(path, decode)


def _check_names(files: Sequence[str], ids: NDArray[np.int64], path: Path) -> None:
    """Makes sure that no file name leads out of the folder of the images, and that none is there twice.

    Raises:
        InputError: One does.
    """
    for file in files:
        try:
            check_relative(file, "")
        except InputError:
            # The place is made only now, since making it takes longer than the check.
            check_relative(file, f"{path}: image {ids[files.index(file)]}")
    if len(set(files)) < len(files):
        double = next(file for file, count in Counter(files).items() if count > 1)
        raise InputError(f"{path}: two images have the file name {double!r}; remove one, and join their annotations")


def _categories(items: Sequence[schema.JsonCategory], path: Path) -> Categories:
    try:
        return Categories(
            Category(item.id, item.name, bool(item.isthing), item.color, item.supercategory) for item in items
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _rows(content: Content, categories: Categories, path: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The annotations ordered by their image, and where those of each image begin.

    Raises:
        InputError: An id is double, or names an image or a category that does not exist.
    """
    images, columns = content.images, content.annotations
    for ids, what in ((images.id, "image"), (columns.id, "annotation")):
        double = _double(ids)
        if double is not None:
            raise InputError(f"{path}: {what} id {double} is there twice; ids must be unique")
    owner = schema.positions(images.id, columns.image_id)
    if bool((owner < 0).any()):
        row = int(np.argmax(owner < 0))
        raise InputError(
            f"{path}: annotation {columns.id[row]} belongs to image {columns.image_id[row]}, which is not among the "
            "images; remove it or add the image"
        )
    unknown = schema.positions(categories.ids, columns.category_id) < 0
    if bool(unknown.any()):
        row = int(np.argmax(unknown))
        known = sorted(categories.ids.tolist())
        raise InputError(
            f"{path}: annotation {columns.id[row]} has category {columns.category_id[row]}, which is not among the "
            f"categories ({', '.join(map(str, known[:10]))}{' ...' if len(known) > 10 else ''}); "
            "add the category or correct the id"
        )
    starts = np.zeros(len(images.id) + 1, np.int64)
    np.cumsum(np.bincount(owner, minlength=len(images.id)), out=starts[1:])
    return np.argsort(owner, kind="stable"), starts


def _double(ids: NDArray[np.int64]) -> int | None:
    """The first id that was there before, if any."""
    order = np.argsort(ids, kind="stable")
    again = order[1:][ids[order[1:]] == ids[order[:-1]]]
    return int(ids[again.min()]) if len(again) else None


def _names(files: Sequence[str]) -> list[str]:
    """Names of the samples: file names without suffix, but with it where two would share a name."""
    bare = [file.rpartition(".")[0] or file for file in files]
    count = dict.fromkeys(bare, 0)
    for name in bare:
        count[name] += 1
    return [name if count[name] == 1 else file for name, file in zip(bare, files, strict=True)]
