"""Where the images of a prediction come from: files that are read whole, and Zarr folders that are read in pieces."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everymask.errors import InputError
from everymask.formats.calibration import Calibration, calibration_of
from everymask.formats.images import check_finite, find_images, natural_key, read_image
from everymask.formats.zarr_arrays import ZarrImage, is_zarr, open_zarr

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from everymask.formats.listing import PathLike

    Pixels = NDArray[Any] | ZarrImage


def find_inputs(paths: PathLike | Iterable[PathLike], *, recursive: bool = False) -> list[Path]:
    """Images as `everymask.formats.images.find_images` finds them, and Zarr folders.

    Args:
        paths: Files, folders, patterns, and folders that are Zarr images themselves. Of other folders, the image files
            come first and then the Zarr images in them, each in natural order.
        recursive: Take the images of subfolders, too.

    Raises:
        InputError: A path does not exist, or holds no image.
    """
    given = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    found: dict[Path, None] = {}
    for item in given:
        path = Path(item)
        arrays = _zarr_below(path, recursive) if path.is_dir() else []
        if arrays != [path]:
            try:
                files = find_images(item, recursive=recursive)
            except InputError:
                if not arrays:
                    raise
                files = list[Path]()
            # The pieces of an array may have any name.
            found.update((each, None) for each in files if not any(inside in each.parents for inside in arrays))
        found.update((each, None) for each in arrays)
    return list(found)


def _zarr_below(folder: Path, recursive: bool) -> list[Path]:
    """The folder itself if it is Zarr, else those in it."""
    if is_zarr(folder):
        return [folder]
    try:
        entries = sorted((each for each in folder.iterdir() if each.is_dir()), key=lambda each: natural_key(each.name))
    except OSError as error:
        raise InputError(f"cannot list {folder}: {error.strerror}; check its permissions") from error
    below: list[Path] = []
    for each in entries:
        if each.name.startswith("."):
            continue
        if is_zarr(each):
            below.append(each)
        elif recursive and not each.is_symlink():
            below += _zarr_below(each, recursive)
    return below


def read_input(path: Path) -> Pixels:
    """An image (H, W, C), or a stack (Z, H, W, C): read whole and checked, or, of Zarr, opened.

    Raises:
        InputError: It cannot be read, or holds values that are not finite.
    """
    if is_zarr(path):
        return open_zarr(path)  # the predictor looks for values that are not finite, strip by strip
    image = read_image(path)
    check_finite(image, path)
    return image


def calibration(path: Path, image: Pixels) -> Calibration:
    """The size of a pixel, where the file says."""
    return image.calibration if isinstance(image, ZarrImage) else calibration_of(path)
