"""Writing the full ADE20K."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from everymask.errors import InputError
from everymask.files import atomic_write
from everymask.formats.ade20k_full import CATEGORIES
from everymask.formats.ade20k_objects import FURTHER, OF_IMAGE, PLACED, level_of, level_picture
from everymask.formats.checks import by
from everymask.formats.exporting import check_relative, copy_image, nothing_annotated
from everymask.formats.images import write_image, write_labels
from everymask.formats.renaming import renamed
from everymask.types import Categories, Dataset, Masks, Polygons, Segments
from everymask.types.segments import Overlap

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_LEVELS = 100
HIGHEST_CLASS = 26 * 256 - 1
"""The highest class number that red (0, 10 .. 250) and green (0 .. 255) can say."""


def write(dataset: Dataset, target: Path, *, overlap: Overlap, link_images: bool, instance_masks: bool) -> None:
    """Writes the full form; reading it with ``level=None`` gives all objects back, with ``level=0`` the whole ones.

    Levels are told by the attribute ``part_level``; without it all objects are whole. Pixels of no object become void.
    ``categories.json`` keeps the list of classes, which the official release has in a pickle only.

    Raises:
        InputError: Segments of one level overlap, there are over 255 of them, a category id is outside 1..6655, or an
            image has no masks.
    """
    categories = _numbered(dataset.categories)
    if all(sample.read_segments is None for sample in dataset):
        raise nothing_annotated("ade20k")
    _check_names(dataset)
    for sample in dataset:
        name = check_relative(sample.name, "name of a sample")
        split = check_relative(str(sample.extra.get("split") or "training"), f"part of {name}")
        name = name.removeprefix(f"{split}/")
        folder = target / "images" / "ADE" / split
        image = copy_image(renamed(sample, name), folder, link=link_images, listed=True)
        segments = sample.segments
        if segments is None:
            continue
        if len(segments.size) != 2:
            raise InputError(f"{sample.name} is a volume of {by(segments.size)}, which ADE20K cannot hold")
        if segments.geometry is None and len(segments):
            raise InputError(f"{sample.name} has boxes or tags only, which masks cannot hold; write coco instead")
        try:
            positions = dataset.categories.indices(segments.category)
            segments = segments.with_category(categories.ids[positions])
            entries = _write_objects(segments, folder / name, categories, overlap, instance_masks=instance_masks)
        except InputError as error:
            raise InputError(f"{sample.name}: {error}") from error
        place = Path("images", "ADE", split, name).parent.as_posix()
        extra = {key: value for key, value in sample.extra.items() if key not in {"split", *OF_IMAGE}}
        size = [*segments.size, 3]
        content = {"filename": image.name, "folder": place, **extra, "imsize": size, "object": entries}
        if aside := {key: sample.extra[key] for key in sorted(OF_IMAGE & sample.extra.keys())}:
            content[FURTHER] = aside
        with atomic_write(folder / f"{name}.json") as temporary:
            temporary.write_bytes(msgspec.json.encode({"annotation": content}))
    with atomic_write(target / CATEGORIES) as temporary:
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(categories.to_json()), indent=1))


def _numbered(categories: Categories) -> Categories:
    """The classes under numbers that red and green can say; those that are counted from 0 are counted from 1.

    Raises:
        InputError: A number does not fit.
    """
    ids = categories.ids.tolist()
    if ids == list(range(len(ids))):
        ids = list(range(1, len(ids) + 1))
    wrong = [each for each in ids if not 1 <= each <= HIGHEST_CLASS]
    if wrong:
        raise InputError(
            f"category ids {wrong[:5]} do not fit ADE20K, which has room for 1..{HIGHEST_CLASS}; renumber the "
            "categories"
        )
    return Categories(replace(each, id=number) for each, number in zip(categories, ids, strict=True))


def _check_names(dataset: Dataset) -> None:
    """Makes sure that no image is called like a folder of others, since its folder holds the masks of its objects.

    Raises:
        InputError: One is.
    """
    names = {sample.name for sample in dataset}
    for name in names:
        parent = name.rpartition("/")[0]
        if parent in names:
            raise InputError(
                f"the image {name!r} lies in a folder that is called like the image {parent!r}, where ADE20K has the "
                "masks of its objects; rename one of them"
            )


def _write_objects(
    segments: Segments, stem: Path, categories: Categories, overlap: Overlap, *, instance_masks: bool
) -> list[dict[str, Any]]:
    """Writes the pictures of an image and returns its entries for the JSON."""
    entries = list(_entries(segments, categories, stem.name))
    levels = np.array([level_of(each) for each in entries], np.int64)
    for level in range(int(levels.max(initial=0)) + 1):
        chosen = np.flatnonzero(levels == level)
        part = segments[chosen]
        ids = part.label_map(overlap) if part.geometry is not None else np.zeros(segments.size, np.int32)
        ending = "seg" if level == 0 else f"parts_{level}"
        write_image(stem.parent / f"{stem.name}_{ending}.png", level_picture(ids, part.category))
        if not instance_masks:
            continue
        runs = part.rles() if part.geometry is not None else None
        for i, number in enumerate(chosen.tolist()):
            whole = _decoded(runs, i) if runs is not None else np.zeros(segments.size, bool)
            visible = np.where(ids == i + 1, np.uint8(255), np.uint8(0))
            write_labels(stem.parent / entries[number]["instance_mask"], np.where(whole & (visible == 0), 128, visible))
    if not instance_masks:
        for entry in entries:
            del entry["instance_mask"]
    return entries


def _decoded(runs: Masks, index: int) -> NDArray[np.bool_]:
    from everymask.ops import rle

    counts = runs[index]
    mask: NDArray[np.bool_] = rle.decode(counts, np.array([0, len(counts)], np.int64), runs.size)[0]
    return mask


def _entries(segments: Segments, categories: Categories, stem: str) -> Iterator[dict[str, Any]]:
    """An entry of the JSON for each segment, its attributes in their official places."""
    columns = {key: column.tolist() for key, column in segments.attributes.items()}
    geometry = segments.geometry
    for i, number in enumerate(segments.category.tolist()):
        values = {key: column[i] for key, column in columns.items() if column[i] is not None}
        aside = {key: values.pop(key) for key in sorted(PLACED & values.keys())}
        parts = {
            "hasparts": values.pop("hasparts", []),
            "ispartof": values.pop("ispartof", []),
            "part_level": _level(values.pop("part_level", 0)),
        }
        entry = {"id": i, "name": categories.by_id(number).name, "name_ndx": number, **values, "parts": parts}
        if aside:
            entry[FURTHER] = aside
        entry["instance_mask"] = f"{stem}/instance_{i:03}_{stem}.png"
        if isinstance(geometry, Polygons) and len(geometry.parts[i]) == 1:
            points = geometry.parts[i][0].exterior
            entry["polygon"] = {"x": points[:, 0].tolist(), "y": points[:, 1].tolist()}
        yield entry


def _level(value: Any) -> int:
    if type(value) is not int or not 0 <= value < MOST_LEVELS:
        raise InputError(f"the attribute 'part_level' is {value!r}; expected 0 for a whole object, 1 for a part ...")
    return value
