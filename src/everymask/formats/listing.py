"""Finding image files: natural order, any mix of files, folders and patterns. No file is ever opened."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable
from pathlib import Path

from everymask.errors import InputError

_DIGITS = re.compile(r"\d+")

PathLike = str | os.PathLike[str]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
"""Suffixes that `find_images` takes for images, in lower case."""


def natural_key(name: str) -> tuple[str, str]:
    """Sorting key that puts ``t2`` before ``t10`` and ignores case."""
    return _DIGITS.sub(lambda found: found[0].zfill(20), name.casefold()), name


def list_images(folder: Path, *, recursive: bool = False) -> list[str]:
    """Paths of the images in a folder, below it, with forward slashes, in natural order. No file is opened.

    Hidden files and folders (``.name``, which includes the ``._name`` files of macOS) are skipped, and so are links to
    a folder that they lie in.
    """
    found: list[str] = []

    def visit(current: str, prefix: str, above: tuple[os.stat_result, ...]) -> None:
        with os.scandir(current) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.name.lower().endswith(IMAGE_SUFFIXES) and entry.is_file():
                    found.append(prefix + entry.name)
                elif recursive and entry.is_dir():
                    place = entry.stat()
                    if not entry.is_symlink() or not any(os.path.samestat(place, each) for each in above):
                        visit(entry.path, f"{prefix}{entry.name}/", (*above, place))

    try:
        # A link may lead to a folder above this one, too.
        visit(os.fspath(folder), "", tuple(each.stat() for each in (folder, *folder.resolve().parents)))
    except OSError as error:
        place = error.filename or folder
        raise InputError(f"cannot list {place}: {error.strerror}; check its permissions, or remove it") from error
    return sorted(found, key=natural_key)


def find_images(paths: PathLike | Iterable[PathLike], *, recursive: bool = False) -> list[Path]:
    """Image files from any mix of files, folders and glob patterns.

    Folders and patterns give the files with one of `IMAGE_SUFFIXES` (in upper or lower case), naturally sorted (``t2``
    before ``t10``), hidden files skipped. A file named itself is taken whatever its suffix. Each file comes once.

    Args:
        paths: One or several files, folders, or patterns such as ``"plate*/well?.tif"`` (``**`` crosses folders).
        recursive: Take the images of subfolders, too.

    Raises:
        InputError: A path does not exist, a folder or a pattern gives no image.
    """
    given = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    found: dict[Path, None] = {}
    for item in given:
        path = Path(item)
        if path.is_dir():
            names = list_images(path, recursive=recursive)
            if not names:
                raise InputError(_no_image(path))
            found.update((path / name, None) for name in names)
        elif path.exists():
            found[path] = None
        elif glob.has_magic(os.fspath(item)):
            matches = [
                match
                for match in glob.glob(os.fspath(item), recursive=True)  # noqa: PTH207 - Path.glob refuses absolute patterns
                if match.lower().endswith(IMAGE_SUFFIXES) and Path(match).is_file()
            ]
            if not matches:
                raise InputError(f"no image matches {os.fspath(item)!r}; check the pattern")
            found.update((Path(match), None) for match in sorted(matches, key=natural_key))
        else:
            raise InputError(f"{path} does not exist; check the spelling")
    return list(found)


def _no_image(folder: Path) -> str:
    """The message for a folder without images."""
    with os.scandir(folder) as entries:
        below = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    if below:
        return f"{folder} holds no image itself; name one of its subfolders: {', '.join(below[:5])}"
    return f"{folder} holds no image; expected files ending in {' '.join(IMAGE_SUFFIXES)}"
