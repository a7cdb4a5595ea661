"""The full ADE20K (2021): objects, their parts, and what is known of each.

Beside an image X.jpg lie X_seg.png (objects), X_parts_1.png, X_parts_2.png ... (parts, parts of parts), X.json (one
entry for each object of any level) and a folder X of masks, one for each object (255 visible, 128 hidden by another).
In the coloured pictures, R // 10 * 256 + G is the number of the class, and B tells objects of a picture apart: the
values of N objects are 1..N stretched over 1..255. Which entry of the JSON an object belongs to is not written down;
objects of a class of which there are several are found by their masks, or else by their polygons, or else by order.

What the JSON says of an object becomes attributes: ``id``, ``raw_name``, ``part_level``, ``ispartof``, ``hasparts``,
``occluded``, ``crop``, ``attributes``, ``polygon`` ... What it says of the image becomes `Sample.extra`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from everymask.errors import InputError, unknown_name
from everymask.formats.ade20k_objects import (
    FURTHER,
    OF_IMAGE,
    columns_of,
    entries_of,
    further,
    level_of,
    match_regions,
    read_level,
)
from everymask.formats.checks import check_same_size
from everymask.formats.exporting import check_relative
from everymask.formats.images import image_size, read_image, read_labels
from everymask.formats.label_kind import read_categories
from everymask.formats.listing import IMAGE_SUFFIXES, natural_key
from everymask.types import Categories, Category, Dataset, LabelMap, Masks, Polygon, Polygons, Sample, Segments, Task

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TASKS = frozenset({Task.SEMANTIC, Task.INSTANCE, Task.PANOPTIC, Task.DETECTION})
_GEOMETRIES = ("masks", "amodal", "polygons")
_PICTURE = re.compile(r"(.+)_(?:seg|parts_(\d+))\.png", re.IGNORECASE | re.DOTALL)
_OFFICIAL = re.compile(r"ADE_(train|val|test)_\d{8}_seg\.png", re.IGNORECASE)
CATEGORIES = "categories.json"
"""List of classes that `everymask.formats.ade20k_write` leaves in the data set's folder."""
_LISTED = 200
_ENTERED = 4


class JsonName(msgspec.Struct):
    """The class of an object, and whether it is a part."""

    name: str
    name_ndx: int
    parts: Any = None


class JsonNames(msgspec.Struct):
    """The objects of an image; a single one may stand without a list, as MATLAB writes it."""

    object: list[JsonName] | JsonName = []


class JsonFile(msgspec.Struct):
    """As much of X.json as opening needs."""

    annotation: JsonNames


_NAMES = msgspec.json.Decoder(JsonFile)


# -- finding files -----------------------------------------------------------------------------------------------------


def find_base(path: Path) -> Path | None:
    """The folder of the parts (``images/ADE``) in a data set, or the folder itself if it lies inside; None if neither.

    Judged by a few names: inside a folder called ADE any ``*_seg.png`` will do, elsewhere the official names.
    """
    children = sorted(each for each in path.iterdir() if each.is_dir() and each.name.startswith("ADE20K_"))
    for place in (path, *children):
        for candidate in (place / "images" / "ADE", place / "ADE"):
            if candidate.is_dir() and _has_pictures(candidate, 5, official=False):
                return candidate
    inside = "ADE" in path.resolve().parts
    return path if _has_pictures(path, 4 if inside else 1, official=not inside) else None


def _has_pictures(folder: Path, levels: int, *, official: bool) -> bool:
    """Whether there is an annotated picture in a folder; a few names are looked at."""
    below = []
    with os.scandir(folder) as entries:
        for number, entry in enumerate(entries):
            if number > _LISTED:
                break
            if entry.name.lower().endswith("_seg.png") and (not official or _OFFICIAL.fullmatch(entry.name)):
                return True
            if entry.is_dir() and not entry.name.startswith("."):
                below.append(entry.path)
    below = sorted(below)[:_ENTERED] if levels else []
    return any(_has_pictures(Path(each), levels - 1, official=official) for each in below)


@dataclass(frozen=True)
class _Frame:
    """The files of one image: `stem` is their common beginning, with the folder."""

    split: str
    name: str
    stem: str
    image: Path | None
    levels: dict[int, Path]

    @property
    def json(self) -> Path:
        return Path(f"{self.stem}.json")


def _find_frames(base: Path) -> list[_Frame]:
    """All images below a folder, in natural order.

    Raises:
        InputError: Two images differ in the suffix only.
    """
    frames = []
    above = base.resolve().parts
    start = len(above) - above[::-1].index("ADE") if "ADE" in above else None
    for place, below, names in os.walk(base):
        levels: dict[str, dict[int, Path]] = {}
        images: dict[str, Path] = {}
        for name in names:
            if found := _PICTURE.fullmatch(name):
                levels.setdefault(found[1], {})[int(found[2] or 0)] = Path(place, name)
            elif name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."):
                stem = name.rpartition(".")[0]
                if stem in images:
                    raise InputError(f"{place} holds {images[stem].name} and {name}, which share a name; rename one")
                images[stem] = Path(place, name)
        # A folder called like an image holds the masks of its objects.
        below[:] = sorted(each for each in below if each not in images and each not in levels and each[0] != ".")
        folders = (*above, *Path(place).relative_to(base).parts)[start if start is not None else len(above) :]
        split = folders[0] if start is not None and folders else ""
        inner = folders[1:] if split else folders
        for stem in {*images, *levels}:
            name = "/".join((*inner, stem))
            frames.append(_Frame(split, name, f"{place}/{stem}", images.get(stem), levels.get(stem, {})))
    return sorted(frames, key=lambda each: (each.split, natural_key(each.name)))


# -- reading -----------------------------------------------------------------------------------------------------------


def read(path: Path, *, split: str | None, level: int | None, geometry: str, missing_images: str) -> Dataset:
    """Opens the full data set; see `everymask.formats.ade20k.read`.

    The classes are those of the objects in all JSON files (of the parts, for a level of parts), under the numbers of
    the full list (``name_ndx``), unless there is a ``categories.json``, as `everymask.formats.ade20k_write` leaves
    it.
    """
    if geometry not in _GEOMETRIES:
        raise unknown_name("geometry", geometry, _GEOMETRIES)
    if level is not None and (isinstance(level, bool) or level < 0):
        raise InputError(f"level must be 0 for whole objects, 1 for parts ..., or None for all, got {level!r}")
    base = find_base(path) or path
    frames = _find_frames(base)
    parts = sorted({each.split for each in frames} - {""})
    if split is not None:
        if split not in parts:
            raise InputError(f"{path} has no part {split!r}; it has {', '.join(parts) or 'no parts at all'}")
        frames = [each for each in frames if each.split == split]
    absent = [each.name for each in frames if each.image is None]
    if absent and missing_images == "error":
        shown = ", ".join(absent[:3]) + (" ..." if len(absent) > 3 else "")
        raise InputError(
            f"{path}: {len(absent)} of {len(frames)} images are missing: {shown}; add them, or say --skip-missing to "
            "leave them out"
        )
    if missing_images == "skip":
        frames = [each for each in frames if each.image is not None]
    categories = _categories(base, frames, level)
    reader = _Reader(frames, categories, level, geometry, joined=split is None)
    return Dataset(reader.sample, len(frames), categories, _TASKS, "ade20k", path)


def _categories(base: Path, frames: list[_Frame], level: int | None) -> Categories:
    """The classes of the objects of a level, or of all, in order of their numbers.

    Raises:
        InputError: A file is malformed, or a number has two names.
    """
    for folder in (base, *list(base.parents)[:3]):
        if (folder / CATEGORIES).is_file():
            found: Categories = read_categories(folder / CATEGORIES)["categories"]
            return found
    names: dict[int, str] = {}
    for frame in frames:
        if not frame.levels or not frame.json.is_file():
            continue
        try:
            listed = _NAMES.decode(_utf8(frame.json)).annotation.object
        except (OSError, msgspec.MsgspecError, RecursionError) as error:
            raise InputError(f"{frame.json}: {error}; expected annotation.object with the objects") from error
        for each in listed if isinstance(listed, list) else [listed]:
            part_level = each.parts.get("part_level", 0) if isinstance(each.parts, dict) else 0
            if level is not None and str(part_level) != str(level):
                continue
            if names.setdefault(each.name_ndx, each.name) != each.name:
                raise InputError(
                    f"{frame.json}: class {each.name_ndx} is called {each.name!r}, but {names[each.name_ndx]!r} "
                    "before; copy the annotations of one release only"
                )
    double = {name for name in names.values() if list(names.values()).count(name) > 1}
    return Categories(
        Category(number, f"{names[number]} ({number})" if names[number] in double else names[number])
        for number in sorted(names)
    )


def _utf8(path: Path) -> bytes:
    """A JSON file; some of the official ones are in Latin-1."""
    content = path.read_bytes()
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1").encode("utf-8")
    return content


@dataclass(frozen=True)
class _Reader:
    """Makes the samples."""

    frames: list[_Frame]
    categories: Categories
    level: int | None
    geometry: str
    joined: bool

    def sample(self, index: int) -> Sample:
        frame = self.frames[index]
        name = f"{frame.split}/{frame.name}" if self.joined and frame.split else frame.name
        extra: dict[str, Any] = {"split": frame.split} if frame.split else {}
        segments: Callable[[], Segments] | None = None
        if frame.levels:
            segments = partial(self.segments, frame)
            content = _content(frame)
            extra = {key: content[key] for key in content if key not in {*OF_IMAGE, FURTHER}} | further(content) | extra
        return Sample(name, partial(read_image, frame.image or Path(f"{frame.stem}.jpg")), segments, frame.image, extra)

    def segments(self, frame: _Frame) -> Segments:
        entries = entries_of(_content(frame), frame.json)
        if self.geometry == "masks":
            found = self.visible(frame, entries)
        else:
            chosen = [each for each in entries if self.level in {None, level_of(each)}]
            size = image_size(frame.levels[min(frame.levels)])
            outline = (size[0], size[1])
            shapes = self.amodal(frame, chosen, outline) if self.geometry == "amodal" else _polygons(chosen, outline)
            numbers = [int(each["name_ndx"]) for each in chosen]
            found = Segments(
                outline, numbers, shapes, attributes=columns_of(chosen, polygons=self.geometry == "amodal")
            )
        if frame.image is not None:
            check_same_size(image_size(frame.image), found.size, frame.image, frame.levels[min(frame.levels)])
        try:
            self.categories.indices(found.category)
        except InputError as error:
            raise InputError(
                f"{frame.levels[min(frame.levels)]}: {error}; its JSON does not list all objects"
            ) from error
        return found

    def visible(self, frame: _Frame, entries: list[dict[str, Any]]) -> Segments:
        """What is visible of the objects of a level, or of all."""
        if self.level is not None and self.level not in frame.levels:
            size = image_size(frame.levels[min(frame.levels)])
            return Segments(size, [], LabelMap(np.zeros(size, np.int32)))
        made = []
        for number in sorted(frame.levels) if self.level is None else [self.level]:
            ids, numbers = read_level(frame.levels[number])
            described = [each for each in entries if level_of(each) == number]
            order = match_regions(ids, numbers, described, partial(_instance_mask, frame), frame.json)
            made.append(_in_order(ids, numbers, described, order, void=number == 0))
        if self.level is not None:
            return made[0][0]
        runs = [mask for segments, _ in made for mask in segments.rles()]
        rows = [entry for _, listed in made for entry in listed]
        numbers = np.concatenate([segments.category for segments, _ in made])
        # Back into the order of the file.
        places = {id(each): i for i, each in enumerate(entries)}
        order = sorted(range(len(rows)), key=lambda i: places.get(id(rows[i]), len(entries) + i))
        size = (made[0][0].size[0], made[0][0].size[1])
        masks = Masks.join(size, [runs[i] for i in order])
        return Segments(size, numbers[order], masks, attributes=columns_of([rows[i] for i in order]))

    def amodal(self, frame: _Frame, entries: list[dict[str, Any]], size: tuple[int, int]) -> Masks:
        """All of each object, hidden pixels included."""
        from everymask.ops import rle

        runs = []
        for each in entries:
            mask = _instance_mask(frame, each)
            if mask is None:
                raise InputError(
                    f"{frame.json}: object {each.get('id')} has no mask {each.get('instance_mask')!r}; "
                    "geometry='amodal' needs the masks of objects"
                )
            runs.append(rle.encode((mask > 0)[None])[0])
        return Masks.join(size, runs)


def _content(frame: _Frame) -> dict[str, Any]:
    """What X.json says; nothing where there is none."""
    if not frame.json.is_file():
        return {}
    try:
        content = msgspec.json.decode(_utf8(frame.json))["annotation"]
    except (OSError, msgspec.MsgspecError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{frame.json}: {error}; expected annotation.object with the objects") from error
    if not isinstance(content, dict):
        raise InputError(f"{frame.json}: $.annotation is no object; expected filename, object, scene ...")
    return content


def _instance_mask(frame: _Frame, entry: dict[str, Any]) -> NDArray[Any] | None:
    """(H, W) mask of an object, if it has one: 255 where it is visible, 128 where another hides it."""
    name = entry.get("instance_mask")
    if not isinstance(name, str) or not name:
        return None
    path = Path(frame.stem).parent / check_relative(name, str(frame.json))
    if not path.is_file():
        return None
    mask = read_labels(path)
    check_same_size(image_size(frame.levels[min(frame.levels)]), mask.shape, frame.levels[min(frame.levels)], path)
    return mask


def _polygons(entries: list[dict[str, Any]], size: tuple[int, int]) -> Polygons:
    """The outlines of objects as they were drawn."""
    return Polygons(size, tuple((Polygon(_ring(each)),) for each in entries))


def _ring(entry: dict[str, Any]) -> NDArray[np.float64]:
    polygon = entry.get("polygon") or {}
    return np.stack([np.ravel(np.array(polygon.get(axis, []), np.float64)) for axis in "xy"], axis=1)


def _in_order(
    ids: NDArray[np.int32],
    numbers: NDArray[np.int64],
    described: list[dict[str, Any]],
    order: list[int | None],
    *,
    void: bool,
) -> tuple[Segments, list[dict[str, Any]]]:
    """Segments in the order of their descriptions, those without pixels included, and then what has no description.

    Args:
        ids: (H, W) regions from 1 on.
        numbers: (R,) class of each region.
        described: Entries of the JSON.
        order: The region from 0 on of each entry, None if it has no pixel.
        void: Whether pixels of no region are void.
    """
    rest = [i for i in range(len(numbers)) if i not in order]
    table = np.zeros(len(numbers) + 1, np.int32)
    table[0] = -1 if void else 0
    for place, region in enumerate([*order, *rest], 1):
        if region is not None:
            table[region + 1] = place
    category = [int(each["name_ndx"]) for each in described] + numbers[rest].tolist()
    rows = described + [{"parts": {"part_level": level_of(described[0]) if described else 0}} for _ in rest]
    return Segments(ids.shape, category, LabelMap(table[ids]), attributes=columns_of(rows)), rows
