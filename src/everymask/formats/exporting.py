"""What all writers of data sets share: names that stay inside the folder, and images that stay as they are."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from everymask.errors import InputError
from everymask.formats.checks import by
from everymask.formats.images import image_size, write_image
from everymask.formats.listing import IMAGE_SUFFIXES
from everymask.types import Sample

LONGEST = 255
"""Bytes of the name of a file."""
_SHORT = LONGEST // 4  # characters that are short enough in any alphabet


def check_relative(name: str, source: str) -> str:
    """Makes sure that a path from a file stays below the folder it is relative to.

    Args:
        name: The path, with forward slashes.
        source: Where it is from, for the message.

    Raises:
        InputError: It is empty, absolute, or leads out of the folder by ``..``; or it has backslashes or a null, or is
            longer than file systems allow.
    """
    # Plain string tests, since there may be a hundred thousand names; name[1:2] is the colon of a Windows drive.
    if not name or ".." in name.split("/") or name[0] == "/" or name[1:2] == ":" or "\\" in name or "\0" in name:
        raise InputError(
            f"{source}: {name!r} is no path below the data set; expected a relative path with forward slashes and "
            "without '..'"
        )
    if len(name) > _SHORT and any(len(part.encode("utf-8", "surrogatepass")) > LONGEST for part in name.split("/")):
        raise InputError(
            f"{source}: '{name[:40]}...' has a part of over {LONGEST} bytes, which no file is called; shorten it"
        )
    return name


def check_listed(name: str) -> str:
    """Makes sure that readers who list folders find an image.

    Raises:
        InputError: A part of the name begins with a dot: such files are hidden.
    """
    if name.startswith(".") or "/." in name:
        raise InputError(
            f"the image {name!r} would be a hidden file, which is passed over when folders are listed; rename it, or "
            "write coco, which lists its images"
        )
    return name


def nothing_annotated(format: str) -> InputError:
    """The error for a data set of whose annotations nothing would be there to be written."""
    return InputError(
        f"no image of the data set is annotated, so that there is nothing to write but images; {format} has no place "
        "for that: write coco"
    )


def copy_image(sample: Sample, folder: Path, *, link: bool = False, listed: bool = False) -> Path:
    """Puts the image of a sample into a folder: the file itself if there is one, else a PNG or a TIFF without loss.

    Args:
        sample: Its name becomes the path below `folder`.
        folder: The folder of images.
        listed: Whether it is found by listing the folder, so that it must not be hidden; see `check_listed`.
        link: Make a hard link instead of a copy, where the file system can. Then a change of either file is a change of
            both.

    Returns:
        The file, `folder` included.

    Raises:
        InputError: The name leads out of the folder, the image cannot be read or written, or it has another size
            than its annotation.
    """
    check_relative(sample.name, "name of a sample")
    if listed:
        check_listed(sample.name)
    source = sample.path
    if source is not None and source.suffix.lower() in IMAGE_SUFFIXES:
        target = folder / f"{sample.name}{source.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            if link:
                try:
                    os.link(source, target)
                except OSError:
                    # Another disk, or a file system without hard links.
                    shutil.copyfile(source, target)
            else:
                shutil.copyfile(source, target)
        except OSError as error:
            reason = error.strerror or error
            raise InputError(
                f"cannot copy {source} to {target}: {reason}; free some space or choose another place"
            ) from error
        _check_size(sample, target)
        return target
    image = sample.image
    plain = image.ndim == 3 and (image.dtype.name, image.shape[-1]) in {("uint8", 1), ("uint8", 3), ("uint16", 1)}
    target = folder / f"{sample.name}{'.png' if plain else '.tif'}"
    write_image(target, image)
    _check_size(sample, target)
    return target


def _check_size(sample: Sample, file: Path) -> None:
    """Makes sure that an image and its annotation fit, by the header of the image alone.

    Raises:
        InputError: They have different sizes.
    """
    size = image_size(file)
    if sample.segments is not None and sample.segments.size != size:
        raise InputError(
            f"{sample.path or sample.name} has size {by(size)}, but its annotation {by(sample.segments.size)}; correct "
            "the one that is wrong"
        )
