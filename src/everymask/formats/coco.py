"""COCO instances: one JSON file with polygons, run-length masks, crowds or boxes, and a folder of images.

Where the images are is not in the file. Looked for are, in this order, the folder of the JSON, `images/` in it, a
folder called like a part of its name (`train2017` for `instances_train2017.json`) in it and in `images/`; then the same
places beside that folder. The one that holds most of the first images is taken for all.

What is kept of an image: every further field, as `Sample.extra`, its id as ``"image_id"``, its licence in full as
``"license_entry"``. Of an annotation: the attributes ``id`` and ``area``, and whatever is under its ``attributes``.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from everymask.errors import InputError
from everymask.formats import coco_schema as schema
from everymask.formats.coco_results import image_ids, read_predictions, write_predictions
from everymask.formats.coco_write import write
from everymask.formats.columns import attribute_column
from everymask.formats.description import Description
from everymask.formats.exporting import check_relative
from everymask.formats.images import read_image
from everymask.formats.listing import natural_key
from everymask.types import Categories, Category, Dataset, Sample, Segments, Task

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "DESCRIPTION",
    "image_ids",
    "read",
    "read_predictions",
    "recognise",
    "write",
    "write_predictions",
]

DESCRIPTION = Description(
    summary="COCO instances JSON: polygons, run-length masks, crowds, boxes",
    layout="a JSON with images, annotations and categories, beside its images",
    tasks=frozenset({Task.INSTANCE, Task.DETECTION}),
    keeps=("polygons", "masks that overlap", "crowds", "boxes", "categories", "attributes", "extra"),
    loses=("void pixels", "holes of polygons (such an object becomes a mask)", "volumes"),
)

_IMAGE = msgspec.json.Decoder(schema.JsonImage)
_FIELDS = msgspec.json.Decoder(dict[str, Any])
_DATASET = msgspec.json.Decoder(schema.JsonDataset)


# -- recognising -------------------------------------------------------------------------------------------------------


def recognise(path: Path) -> bool:
    """Whether `path` is a JSON of instances, or a folder with at least one; by its keys, without parsing it."""
    return _is_instances(path) if path.is_file() else any(_is_instances(each) for each in _candidates(path))


def _is_instances(path: Path) -> bool:
    """Whether a file has the keys of COCO instances (and not of COCO panoptic)."""
    if path.suffix.lower() != ".json" or path.stat().st_size < 2:
        return False
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        keys = (b'"images"', b'"annotations"', b'"categories"')
        starts = content[:64].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")
        return starts and all(content.find(key) >= 0 for key in keys) and content.find(b'"segments_info"') < 0


def _candidates(folder: Path) -> list[Path]:
    """JSON files in a folder and in the folders right below it."""
    found = [Path(entry.path) for entry in os.scandir(folder) if entry.name.lower().endswith(".json")]
    for below in (entry for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")):
        found += [Path(entry.path) for entry in os.scandir(below) if entry.name.lower().endswith(".json")]
    return sorted(found, key=lambda path: natural_key(str(path)))


def _choose(folder: Path, split: str | None) -> Path:
    """The one JSON of instances in a folder that belongs to `split`.

    Raises:
        InputError: There is none, or there are several.
    """
    found = [path for path in _candidates(folder) if _is_instances(path)]
    chosen = found
    if split is not None:
        wanted = split.lower()
        chosen = [path for path in found if wanted in schema.words(path.stem) or wanted == path.parent.name.lower()]
    # The folder `annotations` of COCO holds key points of the same images, too.
    instances = [path for path in chosen if path.stem.lower().startswith("instances")]
    chosen = instances if len(instances) == 1 else chosen
    if len(chosen) == 1:
        return chosen[0]
    names = ", ".join(str(path.relative_to(folder)) for path in found[:5]) or "none"
    if not chosen:
        what = f"no JSON of COCO instances{f' for the part {split!r}' if split else ''}"
        raise InputError(f"{folder} holds {what}; found: {names}")
    raise InputError(f"{folder} holds several JSON files of COCO instances ({names}); name one of them, or say split")


# -- reading -----------------------------------------------------------------------------------------------------------


def read(
    path: Path, *, split: str | None = None, images: str | os.PathLike[str] | None = None, missing_images: str = "error"
) -> Dataset:
    """Opens a JSON of COCO instances; decodes no pixels and no outlines.

    Args:
        path: The JSON, or a folder that holds it.
        split: Which one, if the folder holds several: a word of its name, such as ``"train"``.
        images: The folder that file names are relative to, if it is none of those that are looked into.
        missing_images: ``"error"``, or ``"keep"`` samples whose image is absent (reading it is then an error), as suits
            an evaluation of finished predictions.

    Raises:
        InputError: The file is malformed, keys are missing, ids are unknown or double, a file name leads out of the
            folder, or images are missing.
    """
    if missing_images not in {"error", "keep"}:
        raise InputError(f"missing_images must be 'error' or 'keep', got {missing_images!r}")
    if path.is_dir():
        path = _choose(path, split)
    elif split is not None:
        raise InputError(f"{path} is a single file and has no part {split!r}; leave out split")
    content = schema.decode(path, lambda: _DATASET.decode(path.read_bytes()))
    entries = schema.decode(
        path, lambda: [schema.nested(raw, f"$.images[{i}]", _IMAGE) for i, raw in enumerate(content.images)]
    )
    for entry in entries:
        check_relative(entry.file_name, f"{path}: image {entry.id}")
    categories = _categories(content.categories, path)
    rows = _rows(entries, content.annotations, set(categories.ids.tolist()), path)
    folder = _image_folder(path, [entry.file_name for entry in entries], images, required=missing_images == "error")
    shapes = any(each.has_segmentation for each in content.annotations)
    tasks = {Task.DETECTION, Task.INSTANCE} if shapes else {Task.DETECTION}
    index = _Index(path, folder, content, entries, _names(entries), rows)
    return Dataset(index.sample, len(entries), categories, frozenset(tasks), "coco", path)


@dataclass(frozen=True)
class _Index:
    """Makes the samples of a file."""

    path: Path
    folder: Path
    content: schema.JsonDataset
    entries: list[schema.JsonImage]
    names: list[str]
    rows: list[list[int]]

    def sample(self, index: int) -> Sample:
        entry = self.entries[index]
        file = self.folder / entry.file_name
        extra = _FIELDS.decode(self.content.images[index])
        for known in ("id", "file_name", "width", "height"):
            del extra[known]
        extra["image_id"] = entry.id
        for licence in self.content.licenses:
            if extra.get("license") is not None and licence.get("id") == extra["license"]:
                extra["license_entry"] = licence
        return Sample(self.names[index], partial(self.image, index), partial(self.segments, index), file, extra)

    def image(self, index: int) -> NDArray[Any]:
        entry = self.entries[index]
        file = self.folder / entry.file_name
        image = read_image(file)
        if image.shape[:-1] != (entry.height, entry.width):
            raise InputError(
                f"{file} has size {image.shape[0]} x {image.shape[1]}, but {self.path} says {entry.height} x "
                f"{entry.width} (height x width) for image {entry.id}; correct "
                "the JSON, or the file (is it turned by EXIF?)"
            )
        return image

    def segments(self, index: int) -> Segments:
        entry, rows = self.entries[index], self.rows[index]
        size = (entry.height, entry.width)
        shapes = []
        for row in rows:
            annotation = self.content.annotations[row]
            place = f"$.annotations[{row}].segmentation"
            try:
                if annotation.bbox is not None:
                    schema.check_box(annotation.bbox, size)
                shapes.append(schema.segmentation(annotation.segmentation, place, size))
            except msgspec.ValidationError as error:
                raise InputError(f"{self.path}: {error}; expected polygons or an RLE") from error
            except InputError as error:
                place = f"{self.path}: annotation {annotation.id} of {entry.file_name}"
                raise InputError(f"{place}: {error}; correct or remove the annotation") from error
        found = [self.content.annotations[row] for row in rows]
        outlines = schema.geometry(shapes, size)
        boxes = np.array([each.bbox or (0, 0, 0, 0) for each in found], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        lacking = [row for row, each in enumerate(found) if each.bbox is None]
        if lacking and outlines is not None:
            boxes[lacking] = Segments(size, np.ones(len(found)), outlines).boxes()[lacking]
        scores = [each.score for each in found if each.score is not None]
        return Segments(
            size,
            [each.category_id for each in found],
            outlines,
            score=scores if scores and len(scores) == len(found) else None,
            box=boxes,
            crowd=[bool(each.iscrowd) for each in found],
            attributes=_attributes(found),
        )


def _attributes(found: Sequence[schema.JsonAnnotation]) -> dict[str, NDArray[Any]]:
    """The columns ``id``, ``area`` (NaN where there is none), and those under ``attributes``."""
    columns: dict[str, NDArray[Any]] = {"id": np.array([each.id for each in found], np.int64)}
    if any(each.area is not None for each in found):
        columns["area"] = np.array([np.nan if each.area is None else each.area for each in found], np.float64)
    keys = dict.fromkeys(key for each in found for key in each.attributes or ())
    for key in keys:
        if key not in columns:
            columns[key] = attribute_column([(each.attributes or {}).get(key) for each in found])
    return columns


def _categories(items: Iterable[schema.JsonCategory], path: Path) -> Categories:
    try:
        return Categories(
            Category(item.id, item.name, bool(item.isthing), item.color, item.supercategory) for item in items
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _rows(
    entries: Sequence[schema.JsonImage], annotations: Sequence[schema.JsonAnnotation], categories: set[int], path: Path
) -> list[list[int]]:
    """For each image, the positions of its annotations.

    Raises:
        InputError: An id is double, or names an image or a category that does not exist.
    """
    positions = {entry.id: i for i, entry in enumerate(entries)}
    if len(positions) != len(entries):
        raise InputError(
            f"{path}: image id {_double([entry.id for entry in entries])} is there twice; ids must be unique"
        )
    if len({each.id for each in annotations}) != len(annotations):
        double = _double([each.id for each in annotations])
        raise InputError(f"{path}: annotation id {double} is there twice; ids must be unique")
    rows: list[list[int]] = [[] for _ in entries]
    for row, each in enumerate(annotations):
        if each.image_id not in positions:
            raise InputError(
                f"{path}: annotation {each.id} belongs to image {each.image_id}, which is not among the images; "
                "remove it or add the image"
            )
        if each.category_id not in categories:
            raise InputError(
                f"{path}: annotation {each.id} has category {each.category_id}, which is not among the categories "
                f"({', '.join(map(str, sorted(categories)[:10]))}{' ...' if len(categories) > 10 else ''}); "
                "add the category or correct the id"
            )
        rows[positions[each.image_id]].append(row)
    return rows


def _double(ids: Sequence[int]) -> int:
    seen: set[int] = set()
    return next(each for each in ids if each in seen or seen.add(each))


def _names(entries: Sequence[schema.JsonImage]) -> list[str]:
    """Names of the samples: file names without suffix, but with it where two would share a name."""
    bare = [entry.file_name.rpartition(".")[0] or entry.file_name for entry in entries]
    count = dict.fromkeys(bare, 0)
    for name in bare:
        count[name] += 1
    return [name if count[name] == 1 else entry.file_name for name, entry in zip(bare, entries, strict=True)]


def _image_folder(path: Path, names: Sequence[str], given: str | os.PathLike[str] | None, *, required: bool) -> Path:
    """The folder that the file names are relative to, by the rule at the top of this module.

    Raises:
        InputError: Images are missing and `required`.
    """
    searched = [Path(given)] if given is not None else _places(path)
    first = names[:10]
    hits = [sum((folder / name).is_file() for name in first) for folder in searched]
    best = searched[int(np.argmax(hits))]
    if not required:
        return best
    if names and not max(hits):
        listed = ", ".join(str(folder) for folder in searched if folder.is_dir())
        raise InputError(
            f"{path}: none of its images is found, the first is {names[0]}; looked in {listed or given}; say where "
            "they are (option images)"
        )
    present: dict[str, set[str]] = {}
    missing = []
    for name in names:
        parent, _, file = name.rpartition("/")
        if parent not in present:
            folder = best / parent
            present[parent] = {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set()
        if file not in present[parent]:
            missing.append(name)
    if missing:
        shown = ", ".join(missing[:3]) + (" ..." if len(missing) > 3 else "")
        raise InputError(
            f"{path}: {len(missing)} of {len(names)} images are missing in {best}: {shown}; add them, or say "
            "missing_images='keep' if only the annotations are needed"
        )
    return best


def _places(path: Path) -> list[Path]:
    """Folders where the images of a JSON may be, the likeliest first."""
    parts = sorted(schema.words(path.stem), key=len, reverse=True)
    places: list[Path] = []
    for folder in (path.resolve().parent, path.resolve().parent.parent):
        places += [folder, folder / "images"]
        places += [folder / below / part for below in ("", "images") for part in parts]
    return places
