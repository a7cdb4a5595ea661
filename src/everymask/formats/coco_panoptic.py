"""COCO panoptic: one JSON file, a folder of PNG whose colours are the ids of segments, and a folder of images.

The PNG files are looked for in the folder that is called like the JSON (`panoptic_val2017/` for
`panoptic_val2017.json`), as by the official program, then beside the JSON and in the folders there. The images are
looked for as `everymask.formats.places` says.

What is kept of an image: every further field, as `Sample.extra`, its id as ``"image_id"``, its licence in full as
``"license_entry"``. Of a segment: its box, the attributes ``id`` and ``area``, and whatever other fields it has. Black
pixels are void.

The 2-channel form of the panoptic paper, with the category in the red and the instance in the green channel of a PNG,
is read and written with the option `form`.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from everymask.errors import InputError
from everymask.formats import coco_panoptic_schema as schema
from everymask.formats.checks import by
from everymask.formats.coco_panoptic_results import find_masks, read_predictions, recognise_predictions
from everymask.formats.coco_panoptic_write import check_form, write
from everymask.formats.coco_schema import decode, nested, words
from everymask.formats.description import Description, Feature
from everymask.formats.exporting import check_relative
from everymask.formats.images import read_image
from everymask.formats.joining import join_parts
from everymask.formats.listing import natural_key
from everymask.formats.places import absent_images, candidates, image_folder
from everymask.types import Categories, Dataset, Sample, Segments, Task

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["DESCRIPTION", "read", "read_predictions", "recognise", "recognise_predictions", "write"]

DESCRIPTION = Description(
    summary="COCO panoptic: JSON of segments, and PNG whose colours are their ids (or 2-channel PNG)",
    layout="NAME.json with segments_info beside a folder NAME/ of PNG",
    tasks=frozenset({Task.PANOPTIC, Task.SEMANTIC, Task.INSTANCE, Task.DETECTION}),
    carries=frozenset(Feature)
    - {Feature.POINTS, Feature.OVERLAP, Feature.BOXES, Feature.VOLUMES, Feature.TAGS, Feature.BACKGROUND},
)

_IMAGE = msgspec.json.Decoder(schema.JsonPanopticImage)
_FIELDS = msgspec.json.Decoder(dict[str, Any])
_DATASET = msgspec.json.Decoder(schema.JsonPanoptic)


# -- recognising -------------------------------------------------------------------------------------------------------


def recognise(path: Path) -> bool:
    """Whether `path` is a panoptic JSON with images and categories, or a folder with at least one.

    A folder with a file `instances*.json`, too, is left to the format ``"coco"``: name the panoptic JSON or the format.
    """
    try:
        if path.is_file():
            return _is_panoptic(path)
        found = _candidates(path)
        plain = any(each.name.lower().startswith("instances") for folder in _places(path) for each in _jsons(folder))
        return not plain and any(_is_panoptic(each) for each in found)
    except OSError:
        return False


def _is_panoptic(path: Path) -> bool:
    """Whether the first annotation of a file has segments, and there are images and categories; without parsing it."""
    if path.suffix.lower() != ".json" or path.stat().st_size < 2:
        return False
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if not content[:64].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
            return False
        first = content.find(b'"annotations"')
        if first < 0 or content.find(b'"segments_info"', first, first + 4096) < 0:
            return False
        return all(content.find(key) >= 0 for key in (b'"images"', b'"categories"'))


def _places(folder: Path) -> list[Path]:
    """The folders whose JSON files may be meant by `folder`."""
    below = [Path(entry.path) for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")]
    return [folder, *(each for each in below if each.name.lower() == "annotations" or "panoptic" in each.name.lower())]


def _jsons(folder: Path) -> list[Path]:
    return [Path(entry.path) for entry in os.scandir(folder) if entry.name.lower().endswith(".json")]


def _candidates(folder: Path) -> list[Path]:
    """JSON files that are called panoptic or have a folder of their name, in natural order; no file is opened."""
    found = [
        path
        for place in _places(folder)
        for path in _jsons(place)
        if "panoptic" in path.name.lower() or path.with_suffix("").is_dir()
    ]
    return sorted(found, key=lambda path: natural_key(str(path)))


def _choose(folder: Path, split: str | None) -> dict[str, Path]:
    """The panoptic files in a folder by the name of their part, or the one that belongs to `split`.

    Raises:
        InputError: There is none, or several belong to `split`.
    """
    found = [path for path in _candidates(folder) if _is_panoptic(path)]
    names = ", ".join(str(path.relative_to(folder)) for path in found[:5]) or "none"
    if split is not None:
        wanted = split.lower()
        found = [path for path in found if wanted in words(path.stem) or wanted == path.parent.name.lower()]
    if not found or (split is not None and len(found) > 1):
        what = f" for the part {split!r}" if split else ""
        raise InputError(
            f"{folder} holds {len(found) or 'no'} JSON of COCO panoptic{what}, expected one; found: {names}; name the "
            "file itself"
        )
    parts = {path.stem.lower().removeprefix("panoptic").lstrip("_-. ") or path.stem: path for path in found}
    if len(parts) < len(found):
        parts = {path.relative_to(folder).with_suffix("").as_posix(): path for path in found}
    return parts


# -- reading -----------------------------------------------------------------------------------------------------------


def read(
    path: Path,
    *,
    split: str | None = None,
    images: str | os.PathLike[str] | None = None,
    missing_images: str = "error",
    masks: str | os.PathLike[str] | None = None,
    form: str = "ids",
) -> Dataset:
    """Opens a panoptic JSON; decodes no pixels and no segments.

    Args:
        path: The JSON, or a folder that holds one or several.
        split: Which one, if the folder holds several: a word of its name, such as ``"train"``.
        images: The folder that the names of images are relative to, if it is none of those that are looked into.
        missing_images: ``"error"``; ``"keep"`` samples whose image is absent (reading it is then an error), as suits an
            evaluation of finished predictions; or ``"skip"`` them.
        masks: The folder of the PNG files, if it is none of those that are looked into.
        form: ``"ids"``: colours are ids of segments; or ``"2ch"``: red is the category, green the instance. Then the
            JSON needs no annotations; the PNG are those of its images' names.

    Raises:
        InputError: The file is malformed, keys are missing, ids are unknown or double, a file name leads out of its
            folder, or images or PNG files are missing.
    """
    check_form(form)
    options: dict[str, Any] = {"images": images, "missing_images": missing_images, "masks": masks, "form": form}
    if path.is_file():
        if split is not None:
            raise InputError(f"{path} is a single file and has no part {split!r}; leave out split")
        return _read_file(path, **options)
    chosen = _choose(path, split)
    opened = {name: _read_file(file, **options) for name, file in chosen.items()}
    return next(iter(opened.values())) if len(opened) == 1 else join_parts(opened, path)


def _read_file(
    path: Path,
    images: str | os.PathLike[str] | None,
    missing_images: str,
    masks: str | os.PathLike[str] | None,
    form: str,
) -> Dataset:
    content = decode(path, lambda: _DATASET.decode(path.read_bytes()))
    entries = decode(path, lambda: [nested(raw, f"$.images[{i}]", _IMAGE) for i, raw in enumerate(content.images)])
    for entry in entries:
        check_relative(entry.file_name, f"{path}: image {entry.id}")
    categories = schema.make_categories(content.categories, path)
    if form == "ids":
        rows = _rows(entries, content.annotations, path)
        files = [check_relative(each.file_name, f"{path}: image {each.image_id}") for each in content.annotations]
        mask_folder = find_masks(path, files, masks)
    else:
        rows = list(range(len(entries)))
        files = [f"{entry.file_name.rpartition('.')[0] or entry.file_name}.png" for entry in entries]
        mask_folder = find_masks(path, files, masks, prefer="2ch")
    names = [entry.file_name for entry in entries]
    parts = sorted(words(path.stem), key=len, reverse=True)
    # What lies where the masks lie and is called like them are the masks themselves.
    near = [each for each in candidates(path, [*parts, "input_images"]) if each.resolve() != mask_folder.resolve()]
    places = near if images is None else [Path(images)]
    folder = image_folder(path, names, places, missing=missing_images)
    index = _Index(path, folder, mask_folder, content, entries, _names(names), rows, files, categories, form)
    tasks = DESCRIPTION.tasks
    if not any(each.is_thing for each in categories):
        tasks -= {Task.INSTANCE, Task.DETECTION}
    dataset = Dataset(index.sample, len(entries), categories, tasks, "coco_panoptic", path)
    if missing_images == "skip" and (absent := set(absent_images(folder, names))):
        return dataset.subset([i for i, name in enumerate(names) if name not in absent])
    return dataset


@dataclass(frozen=True)
class _Index:
    """Makes the samples of a file; `rows` has the number of each image's annotation, or None."""

    path: Path
    folder: Path
    mask_folder: Path
    content: schema.JsonPanoptic
    entries: list[schema.JsonPanopticImage]
    names: list[str]
    rows: Sequence[int | None]
    files: list[str]
    categories: Categories
    form: str

    def sample(self, index: int) -> Sample:
        entry = self.entries[index]
        extra = _FIELDS.decode(self.content.images[index])
        for known in ("id", "file_name", "width", "height"):
            del extra[known]
        extra["image_id"] = entry.id
        for licence in self.content.licenses:
            if extra.get("license") is not None and licence.get("id") == extra["license"]:
                extra["license_entry"] = licence
        row = self.rows[index]
        read_segments = None if row is None else partial(self.segments, index, row)
        return Sample(
            self.names[index], partial(self.image, index), read_segments, self.folder / entry.file_name, extra
        )

    def image(self, index: int) -> NDArray[Any]:
        entry = self.entries[index]
        file = self.folder / entry.file_name
        image = read_image(file)
        if image.shape[:-1] != (entry.height, entry.width):
            raise InputError(
                f"{file} has size {by(image.shape[:-1])}, but {self.path} says {entry.height} x {entry.width} "
                f"(height x width) for image {entry.id}; correct the JSON, or the file (is it turned by EXIF?)"
            )
        return image

    def segments(self, index: int, row: int) -> Segments:
        entry, file = self.entries[index], self.mask_folder / self.files[row]
        if self.form == "2ch":
            segments = schema.read_two_channels(file, self.categories)
        else:
            place = f"$.annotations[{row}].segments_info"
            found = schema.checked_rows(self.content.annotations[row].segments_info, self.path, place)
            segments = schema.read_segments(file, found, self.categories, f"{self.path}: {place}")
        schema.check_size(file, segments, entry.height, entry.width, self.path)
        return segments


def _rows(
    entries: Sequence[schema.JsonPanopticImage], annotations: Sequence[schema.JsonAnnotation], path: Path
) -> list[int | None]:
    """For each image the number of its annotation, None where there is none.

    Raises:
        InputError: An id of an image is double or unknown, or an image is annotated twice.
    """
    positions = {entry.id: i for i, entry in enumerate(entries)}
    if len(positions) != len(entries):
        double = next(entry.id for i, entry in enumerate(entries) if positions[entry.id] != i)
        raise InputError(f"{path}: image id {double} is there twice; ids must be unique")
    rows: list[int | None] = [None] * len(entries)
    for row, each in enumerate(annotations):
        position = positions.get(each.image_id)
        if position is None:
            raise InputError(
                f"{path}: $.annotations[{row}] belongs to image {each.image_id}, which is not among the images; remove "
                "it or add the image"
            )
        if rows[position] is not None:
            raise InputError(
                f"{path}: $.annotations[{row}] is the second one of image {each.image_id}; remove one of them"
            )
        rows[position] = row
    return rows


def _names(files: Sequence[str]) -> list[str]:
    """Names of the samples: file names without suffix, but with it where two would share a name."""
    bare = [file.rpartition(".")[0] or file for file in files]
    count = dict.fromkeys(bare, 0)
    for name in bare:
        count[name] += 1
    return [name if count[name] == 1 else file for name, file in zip(bare, files, strict=True)]
