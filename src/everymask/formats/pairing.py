"""Which mask belongs to which image: three layouts of files, told apart and paired by their names alone.

- `images/` beside `masks/` (or `labels/`, `annotations/`), with the same names below both, subfolders included;
- images in the folder itself, with their masks in `masks/` (or `labels/`, `annotations/`) below it;
- images and masks side by side: ``cell.tif`` (or ``cell_img.tif``) with ``cell_mask.tif``, ``cell_masks``,
  ``cell_label``, ``cell_labels`` or ``cell_cp_masks``; or ``img2.tif`` with ``mask2.tif``.

In the first two layouts, too, the name of a mask may have such an ending. Suffixes may differ (.jpg and .png).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from everymask.errors import InputError
from everymask.formats.listing import IMAGE_SUFFIXES, list_images

IMAGE_FOLDERS = ("images", "image", "imgs", "img")
MASK_FOLDERS = ("masks", "mask", "labels", "label", "annotations", "annotation")

Layout = Literal["folders", "below", "beside"]

_MASK_ENDING = re.compile(r"(.+?)_(?:cp_masks|masks?|labels?)", re.IGNORECASE)
_MASK_BEGINNING = re.compile(r"(?:masks?|labels?)(.+)", re.IGNORECASE)
_IMAGE_ENDING = re.compile(r"(.+?)_(?:img|image)", re.IGNORECASE)
_IMAGE_BEGINNING = re.compile(r"(?:img|image)(.+)", re.IGNORECASE)
_CELLPOSE_EXTRAS = ("_flows", "_outlines_cp", "_cp_output")
"""Pictures that Cellpose leaves beside its masks and that are neither image nor mask."""


@dataclass(frozen=True)
class Pairs:
    """Images and their masks, in natural order of the images.

    Args:
        names: Paths of the images below their folder, without suffix.
        images: Paths below `image_folder`.
        masks: Paths below `mask_folder`, or None for an image without annotation.
        image_folder: Where the images are.
        mask_folder: Where the masks are.
    """

    names: Sequence[str]
    images: Sequence[str]
    masks: Sequence[str | None]
    image_folder: Path
    mask_folder: Path


def find_layout(folder: Path, split: str | None = None) -> tuple[Layout, Path, Path] | None:
    """The layout of a folder, its image folder and its mask folder; None where there are no images with masks.

    No more file names are read than it takes to decide.

    Args:
        folder: The data set.
        split: Name of a folder below `folder`, or below both of `images/` and `masks/`.
    """
    if split is not None and (folder / split).is_dir():
        folder, split = folder / split, None
    subfolders = {entry.name.lower(): Path(entry.path) for entry in os.scandir(folder) if entry.is_dir()}
    image_folder = next((subfolders[name] for name in IMAGE_FOLDERS if name in subfolders), None)
    mask_folders = [subfolders[name] for name in MASK_FOLDERS if name in subfolders]
    if split is not None:
        image_folder = image_folder / split if image_folder and (image_folder / split).is_dir() else None
        mask_folders = [each / split for each in mask_folders if (each / split).is_dir()]
    if image_folder and has_image(image_folder):
        for mask_folder in mask_folders:
            if has_image(mask_folder):
                return "folders", image_folder, mask_folder
        return None
    if split is not None:
        return None
    for mask_folder in mask_folders:
        if has_image(mask_folder) and has_image(folder, recursive=False):
            return "below", folder, mask_folder
    if _pair_beside(list_images(folder))[0]:
        return "beside", folder, folder
    return None


def splits_of(folder: Path) -> list[str]:
    """Names of the parts of a data set: folders below it that are data sets themselves."""
    below = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    return [name for name in below if find_layout(folder / name) is not None]


def has_image(folder: Path, *, recursive: bool = True) -> bool:
    """Whether there is a file with the suffix of an image in a folder; stops at the first."""
    below = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.name.lower().endswith(IMAGE_SUFFIXES):
                return True
            if entry.is_dir():
                below.append(Path(entry.path))
    return recursive and any(has_image(each) for each in below)


def find_pairs(layout: Layout, image_folder: Path, mask_folder: Path, *, unannotated: str | None = None) -> Pairs:
    """Pairs images with masks.

    Args:
        layout: From `find_layout`, like the folders.
        image_folder: Where the images are.
        mask_folder: Where the masks are.
        unannotated: What to do with an image without a mask: ``"error"`` or ``"keep"`` it without annotation; by
            default an error where masks have a folder of their own, and kept where files lie side by side.

    Raises:
        InputError: A mask has no image, an image no mask, or one has two; the names are listed.
    """
    if unannotated not in {None, "error", "keep"}:
        raise InputError(f"unannotated must be 'error' or 'keep', got {unannotated!r}")
    listed = list_images(image_folder, recursive=layout == "folders")
    if layout == "beside":
        pairs, alone, orphans = _pair_beside(listed)
    else:
        pairs, alone, orphans = _pair_folders(listed, list_images(mask_folder, recursive=True), image_folder)
    if orphans:
        raise InputError(
            f"{mask_folder}: {_some(orphans, 'mask')} without an image of the same name in {image_folder}; "
            "add the images or remove the masks"
        )
    if alone and (unannotated or ("keep" if layout == "beside" else "error")) == "error":
        raise InputError(
            f"{image_folder}: {_some(alone, 'image')} without a mask in {mask_folder}; add the masks or "
            "remove the images (in Python, unannotated='keep' leaves them without)"
        )
    order = {name: position for position, name in enumerate(listed)}
    rows = sorted([*pairs, *((image, None) for image in alone)], key=lambda row: order[row[0]])
    names = [stem(image) for image, _ in rows]
    return Pairs(names, [image for image, _ in rows], [mask for _, mask in rows], image_folder, mask_folder)


def stem(name: str) -> str:
    """The path of an image without its suffix."""
    return name.rpartition(".")[0]


def _pair_folders(
    images: list[str], masks: list[str], folder: Path
) -> tuple[list[tuple[str, str]], list[str], list[str]]:
    """Pairs, images without mask and masks without image, of two folders."""
    by_stem = _by_stem(images, folder)
    shortened = {match[1]: name for name in by_stem if (match := _IMAGE_ENDING.fullmatch(name))}
    mask_of: dict[str, str] = {}
    orphans = []
    for mask in masks:
        name = stem(mask)
        image = by_stem.get(name)
        if image is None and (match := _MASK_ENDING.fullmatch(name)):
            image = by_stem.get(match[1]) or by_stem.get(shortened.get(match[1], ""))
        if image is None:
            orphans.append(mask)
        elif image in mask_of:
            raise InputError(f"{folder / image} has two masks, {mask_of[image]} and {mask}; remove one")
        else:
            mask_of[image] = mask
    return list(mask_of.items()), [image for image in images if image not in mask_of], orphans


def _pair_beside(names: list[str]) -> tuple[list[tuple[str, str]], list[str], list[str]]:
    """Pairs, images without mask and masks without image, of files that lie side by side."""
    keys: dict[str, str] = {}
    masks: list[tuple[str, str]] = []
    for name in names:
        bare = stem(name)
        if bare.lower().endswith(_CELLPOSE_EXTRAS):
            continue
        if match := _MASK_ENDING.fullmatch(bare):
            masks.append((match[1], name))
            continue
        keys[bare] = name
        if match := _IMAGE_ENDING.fullmatch(bare):
            keys.setdefault(match[1], name)
        if match := _IMAGE_BEGINNING.fullmatch(bare):
            keys.setdefault(f"/{match[1]}", name)
    # mask2.tif is the mask of img2.tif, but without an img2.tif it is any picture called mask2.
    for name in [each for each in keys.values() if _MASK_BEGINNING.fullmatch(stem(each))]:
        match = _MASK_BEGINNING.fullmatch(stem(name))
        if match and f"/{match[1]}" in keys and stem(name) in keys:
            del keys[stem(name)]
            masks.append((f"/{match[1]}", name))
    mask_of: dict[str, str] = {}
    orphans = []
    for key, mask in masks:
        if key not in keys:
            orphans.append(mask)
        elif keys[key] in mask_of:
            raise InputError(f"{keys[key]} has two masks, {mask_of[keys[key]]} and {mask}; remove one")
        else:
            mask_of[keys[key]] = mask
    images = dict.fromkeys(keys.values())
    return list(mask_of.items()), [image for image in images if image not in mask_of], orphans


def _by_stem(names: Iterable[str], folder: Path) -> dict[str, str]:
    """Files by their path without suffix.

    Raises:
        InputError: Two differ in the suffix only.
    """
    found: dict[str, str] = {}
    for name in names:
        other = found.setdefault(stem(name), name)
        if other != name:
            raise InputError(f"{folder} holds both {other} and {name}, which share a mask name; remove or rename one")
    return found


def _some(names: Sequence[str], noun: str) -> str:
    """``"7 masks (a.png, b.png, c.png ...)"``."""
    shown = ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
    return f"{len(names)} {noun}{'' if len(names) == 1 else 's'} ({shown})"
