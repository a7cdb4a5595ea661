"""Where the images of an annotation are that names them, or shares their names, but does not say where they lie."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from everymask.errors import InputError
from everymask.formats.listing import IMAGE_SUFFIXES, list_images

FOLDERS = ("images", "JPEGImages", "image", "imgs", "data", "obj_train_data", "leftImg8bit")
"""Names of folders that hold images beside annotations."""
MISSING = ("error", "keep", "skip")
"""What can be done about images that an annotation names and that are absent."""


def candidates(source: Path, parts: Iterable[str] = (), *, levels: int = 3) -> list[Path]:
    """Folders that may hold the images of the annotations in `source`, the likeliest first.

    Searched are `source` itself (or the folder of the file `source`), the `FOLDERS` in it and the folders in `parts` in
    both; then the same places one level up, and so on.

    Args:
        source: A file or a folder of annotations.
        parts: Names of folders such as ``"train2017"``.
        levels: How many folders upwards are searched.
    """
    parts = list(parts)
    start = Path(os.path.abspath(source))  # noqa: PTH100 - links stay as they are named
    folder = start if start.is_dir() else start.parent
    found: dict[Path, None] = {}
    for place in [folder, *folder.parents][:levels]:
        for each in (place, *(place / name for name in FOLDERS)):
            for below in (each, *(each / part for part in parts)):
                if below.is_dir():
                    found[below] = None
    return list(found)


def image_folder(source: Path, names: Sequence[str], folders: Sequence[Path], *, missing: str = "error") -> Path:
    """The one of `folders` that holds most of the first of the images.

    Args:
        source: What names the images, for messages.
        names: Paths of the images below the folder, with forward slashes.
        folders: From `candidates`, or the one that a user gave.
        missing: ``"error"`` if every image must be there; otherwise none has to.

    Raises:
        InputError: Images are missing and may not, or `missing` is none of `MISSING`.
    """
    check_missing(missing)
    hits = [sum((folder / name).is_file() for name in names[:10]) for folder in folders]
    best = folders[int(np.argmax(hits))] if folders else source
    if missing != "error":
        return best
    if names and not max(hits, default=0):
        listed = ", ".join(str(folder) for folder in folders[:6]) or "no folder"
        raise InputError(
            f"{source}: none of its images is found, the first is {names[0]}; looked in {listed}; say where they are "
            "(option images)"
        )
    absent = absent_images(best, names)
    if absent:
        shown = ", ".join(absent[:3]) + (" ..." if len(absent) > 3 else "")
        raise InputError(
            f"{source}: {len(absent)} of {len(names)} images are missing in {best}: {shown}; add them, or say "
            "--skip-missing to leave them out"
        )
    return best


def absent_images(folder: Path, names: Sequence[str]) -> list[str]:
    """Those of `names` that are no files below `folder`; each folder is listed once."""
    present: dict[str, set[str]] = {}
    absent = []
    for name in names:
        parent, _, file = name.rpartition("/")
        if parent not in present:
            below = folder / parent
            present[parent] = {entry.name for entry in os.scandir(below)} if below.is_dir() else set()
        if file not in present[parent]:
            absent.append(name)
    return absent


def images_by_stem(source: Path, stems: Sequence[str], folders: Sequence[Path]) -> tuple[Path, dict[str, str]]:
    """The folder that holds most images of the given names without suffix, and the file of each stem that is there.

    Args:
        source: What the stems are from, for messages.
        stems: Paths below the folder without suffix.
        folders: From `candidates`, or the one that a user gave.

    Raises:
        InputError: Two images of the folder differ in the suffix only.
    """
    best, most = folders[0] if folders else source, -1
    for folder in folders:
        hits = sum(
            any((folder / f"{stem}{end}").is_file() for end in (*IMAGE_SUFFIXES, *map(str.upper, IMAGE_SUFFIXES)))
            for stem in stems[:10]
        )
        if hits > most:
            best, most = folder, hits
    wanted, files = set(stems), dict[str, str]()
    for name in list_images(best, recursive=any("/" in stem for stem in stems)):
        stem = name.rpartition(".")[0]
        if stem in wanted and stem in files:
            raise InputError(f"{best}: {files[stem]} and {name} share a name; rename one of them and its annotation")
        if stem in wanted:
            files[stem] = name
    return best, files


def check_missing(missing: str) -> None:
    """Makes sure that `missing` is one of `MISSING`."""
    if missing not in MISSING:
        raise InputError(f"missing_images must be one of {', '.join(MISSING)}, got {missing!r}")
