"""COCO-Stuff: one PNG for each image, whose grey values are classes of things and stuff.

Two kinds are in use, told apart by the names of folders:

- ``stuffthingmaps/train2017/*.png``, or ``annotations/train2017/*.png`` as its authors unpack it: things and stuff,
  with class id - 1 as value and 255 for void.
- ``stuff_train2017_pixelmaps/*.png``: stuff alone, with the class id as value, 183 for all things and 0 for void.

The images are looked for as `everymask.formats.places` says, in folders called like the part, such as ``train2017``.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from everymask.errors import InputError
from everymask.formats.checks import check_same_size
from everymask.formats.coco_stuff_classes import stuff_categories
from everymask.formats.description import Description, Feature
from everymask.formats.exporting import check_relative, copy_image
from everymask.formats.images import image_size, read_image, read_labels, write_labels
from everymask.formats.joining import join_parts
from everymask.formats.listing import list_images
from everymask.formats.places import candidates, check_missing, images_by_stem
from everymask.types import Categories, Dataset, Sample, Segments, Task
from everymask.types.segments import Overlap

if TYPE_CHECKING:
    from numpy.typing import NDArray

DESCRIPTION = Description(
    summary="COCO-Stuff: PNG masks of 80 things and 91 kinds of stuff",
    layout="stuffthingmaps/PART/*.png or stuff_PART_pixelmaps/*.png, with images/PART/",
    tasks=frozenset({Task.SEMANTIC}),
    carries=frozenset(
        {Feature.CLASSES, Feature.MASKS, Feature.HOLES, Feature.PARTS, Feature.VOID, Feature.IDS, Feature.STUFF}
    ),
    attributes=frozenset(),
)

_MAPS = "stuffthingmaps"
_PIXELMAPS = "_pixelmaps"
_OFFICIAL = re.compile(r"\d{12}\.png", re.IGNORECASE)


# -- recognising -------------------------------------------------------------------------------------------------------


def recognise(path: Path) -> bool:
    """Whether `path` has maps of COCO-Stuff in folders of the names above; by names alone."""
    try:
        return path.is_dir() and bool(_parts(path))
    except OSError:
        return False


def _parts(path: Path) -> dict[str, Path]:
    """Names of parts and the folders of their maps; the name is empty where there are no parts."""
    path = path.resolve()
    if path.name.startswith(_MAPS):
        return _parts_of_maps(path)
    if path.parent.name.startswith(_MAPS) and _has_png(path):
        return {path.name: path}
    if path.name.endswith(_PIXELMAPS) and _has_png(path):
        return {_part_of_pixelmaps(path): path}
    for base in (path, path / "annotations"):
        below = _folders(base)
        for each in below:
            if each.name.startswith(_MAPS) and (parts := _parts_of_maps(each)):
                return parts
        if parts := {_part_of_pixelmaps(each): each for each in below if each.name.endswith(_PIXELMAPS)}:
            return parts
        if base.name == "annotations":
            official = [each for each in below if each.name in {"train2017", "val2017"} and _has_png(each, _OFFICIAL)]
            return {each.name: each for each in official}
    return {}


def _parts_of_maps(folder: Path) -> dict[str, Path]:
    if _has_png(folder):
        return {"": folder}
    return {each.name: each for each in _folders(folder) if _has_png(each)}


def _part_of_pixelmaps(folder: Path) -> str:
    return folder.name.removesuffix(_PIXELMAPS).removeprefix("stuff_")


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(Path(each.path) for each in os.scandir(folder) if each.is_dir() and not each.name.startswith("."))


def _has_png(folder: Path, pattern: re.Pattern[str] | None = None) -> bool:
    """Whether the first file of a folder is a PNG, and is called as the pattern says."""
    with os.scandir(folder) as entries:
        first = next((each.name for each in entries if not each.name.startswith(".") and each.is_file()), "")
    return first.lower().endswith(".png") if pattern is None else pattern.fullmatch(first) is not None


# -- reading -----------------------------------------------------------------------------------------------------------


def read(
    path: Path,
    *,
    split: str | None = None,
    zero_based: bool | None = None,
    images: str | os.PathLike[str] | None = None,
    missing_images: str = "error",
) -> Dataset:
    """Opens maps of COCO-Stuff; reads names only.

    Args:
        path: The folder above the maps, or that of the maps.
        split: The part, such as ``"train2017"`` or ``"train"``; by default all.
        zero_based: Whether values are class ids less one with 255 for void, or class ids with 0 for void; told by the
            names of the folders where not given.
        images: The folder of the images, if it is none of those that are looked into.
        missing_images: What to do about maps whose image is absent: ``"error"``, ``"keep"`` (reading the image is then
            an error) or ``"skip"``.

    Raises:
        InputError: There are no maps, or images are missing.
    """
    check_missing(missing_images)
    if not path.is_dir():
        raise InputError(f"{path} is a file, but COCO-Stuff is a folder; name the folder")
    parts = _parts(path)
    if not parts:
        raise InputError(f"{path} has no maps of COCO-Stuff; expected {DESCRIPTION.layout}")
    if split is not None:
        chosen = {name: each for name, each in parts.items() if split in {name, name.rstrip("0123456789")}}
        if not chosen:
            raise InputError(f"{path} has no part {split!r}; it has {', '.join(parts) or 'no parts'}")
        parts = chosen
    opened = {
        name: _read_part(folder, name, path, zero_based, images, missing_images) for name, folder in parts.items()
    }
    return next(iter(opened.values())) if len(opened) == 1 else join_parts(opened, path)


def _read_part(
    folder: Path, part: str, root: Path, zero_based: bool | None, images: str | os.PathLike[str] | None, missing: str
) -> Dataset:
    stems = [name[:-4] for name in list_images(folder, recursive=True) if name.lower().endswith(".png")]
    places = candidates(folder.parent, [part] if part else []) if images is None else [Path(images)]
    # Whatever has the same names and lies where the maps lie are the maps themselves.
    maps = folder.resolve()
    image_folder, files = images_by_stem(folder, stems, [each for each in places if each.resolve() != maps])
    absent = [stem for stem in stems if stem not in files]
    if absent and missing == "error":
        raise InputError(
            f"{folder}: {len(absent)} of {len(stems)} maps have no image in {image_folder}, the first is {absent[0]}; "
            "say where the images are (option images), or --skip-missing to leave them out"
        )
    if missing == "skip":
        stems = [stem for stem in stems if stem in files]
    pixelmaps = folder.name.endswith(_PIXELMAPS)
    based = not pixelmaps if zero_based is None else zero_based
    reader = _Reader(folder, image_folder, stems, files, based, stuff_categories(things=not pixelmaps))
    return Dataset(reader.sample, len(stems), reader.categories, DESCRIPTION.tasks, "coco_stuff", root)


@dataclass(frozen=True)
class _Reader:
    """Makes the samples of a part."""

    folder: Path
    images: Path
    stems: list[str]
    files: dict[str, str]
    zero_based: bool
    categories: Categories

    def sample(self, index: int) -> Sample:
        stem = self.stems[index]
        file = self.images / self.files.get(stem, f"{stem}.jpg")
        return Sample(stem, partial(read_image, file), partial(self.segments, stem, file), file)

    def segments(self, stem: str, file: Path) -> Segments:
        path = self.folder / f"{stem}.png"
        values = read_labels(path).astype(np.int64)
        if stem in self.files:
            check_same_size(image_size(file), values.shape, file, path)
        classes = np.where(values == 255, 0, values + 1) if self.zero_based else values
        segments = Segments.from_semantic_map(classes, void=0)
        unknown = np.setdiff1d(segments.category, self.categories.ids)
        if len(unknown):
            value = int(unknown[0]) - self.zero_based
            raise InputError(
                f"{path} holds the value {value}, which is no class of COCO-Stuff when values are class ids"
                f"{' less one' if self.zero_based else ''}; if they are not, say zero_based={not self.zero_based}"
            )
        return segments


# -- writing -----------------------------------------------------------------------------------------------------------


def write(dataset: Dataset, target: Path, *, overlap: Overlap = "error", link_images: bool = False) -> None:
    """Writes `stuffthingmaps/` and `images/`, with class ids less one; reading them gives the same classes.

    Args:
        dataset: Segments of any geometry, with the ids and names of COCO-Stuff's classes. Pixels of no segment become
            void.
        target: The folder.
        overlap: What happens where segments overlap: ``"error"``, ``"score"`` or ``"last"``; see `Segments.label_map`.
        link_images: Make hard links of the image files instead of copies.

    Raises:
        InputError: A category is none of COCO-Stuff's, or a sample has no outlines, is a volume, or has segments that
            overlap.
    """
    known = {each.id: each.name for each in stuff_categories()}
    for each in dataset.categories:
        if known.get(each.id) != each.name:
            raise InputError(
                f"the category {each.name!r} with id {each.id} is none of the fixed list of COCO-Stuff "
                f"(id {each.id}: {known.get(each.id, 'not used')}); write label_images instead"
            )
    (target / _MAPS).mkdir(parents=True, exist_ok=True)
    for sample in dataset:
        image = copy_image(sample, target / "images", link=link_images)
        # Without annotation all is void: a map is what makes an image part of the set.
        segments = Segments.empty(image_size(image)) if sample.segments is None else sample.segments
        write_labels(
            target / _MAPS / f"{check_relative(sample.name, 'name of a sample')}.png",
            _values(segments, sample.name, dataset.categories, overlap),
        )


def _values(segments: Segments, name: str, categories: Categories, overlap: Overlap) -> NDArray[Any]:
    """(H, W) uint8 class ids less one, 255 for void."""
    categories.indices(segments.category)
    if len(segments.size) != 2 or (segments.geometry is None and len(segments)):
        raise InputError(
            f"{name} is a volume or has boxes or tags only, which COCO-Stuff cannot hold; write coco instead"
        )
    if segments.geometry is None:
        return np.full(segments.size, 255, np.uint8)
    try:
        ids = segments.label_map(overlap)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    return np.concatenate([[255, 255], segments.category - 1]).astype(np.uint8)[ids + 1]
