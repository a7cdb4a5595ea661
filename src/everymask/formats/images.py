"""Reading and writing single images and label masks, whatever the file type.

The rules, in one place:

- The content decides what a file is, never its suffix. PNG, JPEG, BMP, GIF and WebP go through Pillow, TIFF through
  tifffile (`everymask.formats.tiff` has the rules for axes, pages and compression).
- An image is (H, W, C) in the file's own number type, a volume or a time series (Z, H, W, C). Grey has C = 1.
- Palette -> RGB; 1 bit -> uint8 of 0 and 255; CMYK -> RGB; 16-bit PNG -> uint16. Of an animation, the first frame.
- An alpha channel that is opaque everywhere is dropped; any other is kept as the last channel.
- An EXIF orientation is applied, to the pixels and to `image_size`, so that an image is as a viewer shows it. (The
  orientation tag of a TIFF is not: microscopes write it carelessly, and Fiji ignores it, too.)
- Float images may hold NaN or infinite pixels; `check_finite` is for those who cannot use them.
- Up to `MAX_PIXELS` pixels a plane are decoded; beyond that a file is taken for a decompression bomb.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from everymask.errors import InputError
from everymask.formats import raster, tiff
from everymask.formats.checks import MAX_PIXELS, check_finite, check_same_size, file_head, integer_labels
from everymask.formats.listing import IMAGE_SUFFIXES, PathLike, find_images, list_images, natural_key

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "check_finite",
    "check_same_size",
    "find_images",
    "image_size",
    "list_images",
    "natural_key",
    "read_image",
    "read_labels",
    "read_region",
    "write_image",
    "write_labels",
]


# -- reading ---------------------------------------------------------------------------------------------------------


def read_image(path: PathLike) -> NDArray[Any]:
    """Reads an image by the rules at the top of this module.

    Args:
        path: A PNG, JPEG, BMP, GIF, WebP or TIFF file.

    Returns:
        (H, W, C), or (Z, H, W, C) for a volume or a time series, in the file's own number type.

    Raises:
        InputError: The file is missing, damaged, no image, empty, or larger than `MAX_PIXELS`.
    """
    path = Path(path)
    head = file_head(path)
    return tiff.read_image(path) if _is_tiff(head) else raster.read_image(path, head)


def read_labels(path: PathLike) -> NDArray[Any]:
    """Reads a label mask: integers that are ids or classes, not grey values.

    Palette files give their indices, 1-bit files 0 and 1, grey files of 2 and 4 bits their stored values. A grey mask
    that was saved as RGB with equal channels is taken as grey.

    Returns:
        (H, W), or (Z, H, W) for a TIFF with several pages, of an integer type, without negative values.

    Raises:
        InputError: The file cannot be read, is colour-coded, is a JPEG (whose compression invents ids), or holds
            negative or fractional values.
    """
    path = Path(path)
    head = file_head(path)
    return tiff.read_labels(path) if _is_tiff(head) else raster.read_labels(path, head)


def image_size(path: PathLike) -> tuple[int, ...]:
    """(H, W), or (Z, H, W), of the array that `read_image` would give, without decoding pixels.

    Raises:
        InputError: As for `read_image`, as far as the header shows it.
    """
    path = Path(path)
    head = file_head(path)
    return tiff.image_size(path) if _is_tiff(head) else raster.image_size(path, head)


def read_region(path: PathLike, rows: slice, columns: slice) -> NDArray[Any]:
    """Reads a rectangle of an image; of a big TIFF, only the strips or tiles that it touches are decoded.

    Args:
        path: An image file, no volume.
        rows: Rows with step 1, as for numpy.
        columns: Columns with step 1.

    Returns:
        (h, w, C), equal to ``read_image(path)[rows, columns]``.

    Raises:
        InputError: As for `read_image`; or the file is a volume.
    """
    path = Path(path)
    head = file_head(path)
    return tiff.read_region(path, rows, columns) if _is_tiff(head) else raster.read_image(path, head)[rows, columns]


def _is_tiff(head: bytes) -> bool:
    return head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"))


# -- writing ---------------------------------------------------------------------------------------------------------


def write_labels(path: PathLike, ids: NDArray[Any]) -> None:
    """Writes a label mask without loss.

    Args:
        path: ``.png`` (uint8 up to id 255, else uint16), or ``.tif`` / ``.tiff`` (uint16, or uint32 above id 65,535;
            deflate-compressed).
        ids: (H, W), or (Z, H, W) for a TIFF; integers, none negative.

    Raises:
        InputError: The suffix is another one, or the file type cannot hold these ids.
    """
    path = Path(path)
    ids = integer_labels(np.asarray(ids), path)
    highest = int(ids.max(initial=0))
    suffix = path.suffix.lower()
    if suffix in {".tif", ".tiff"}:
        if highest > np.iinfo(np.uint32).max:
            raise InputError(f"{path}: id {highest} is too large for a TIFF mask; renumber the ids from 1")
        tiff.write(path, ids.astype(np.uint16 if highest < 2**16 else np.uint32), "YX" if ids.ndim == 2 else "ZYX")
    elif suffix == ".png":
        if ids.ndim != 2:
            raise InputError(f"{path}: a PNG cannot hold a volume of shape {ids.shape}; write a .tif")
        if highest >= 2**16:
            raise InputError(f"{path}: a PNG holds ids up to 65,535, but there are ids up to {highest}; write a .tif")
        raster.write(path, ids.astype(np.uint8 if highest < 2**8 else np.uint16))
    else:
        raise InputError(f"{path}: label masks are written as .png, .tif or .tiff, not {suffix or 'without a suffix'}")


def write_image(path: PathLike, image: NDArray[Any]) -> None:
    """Writes an image, a volume or a time series.

    Args:
        path: Without loss, ``.tif`` / ``.tiff`` for any number type and any number of channels, and ``.png`` for uint8
            with 1 to 4 channels or uint16 with one; with loss, ``.jpg`` / ``.jpeg`` for uint8 with 1 or 3 channels.
        image: (H, W), (H, W, C) or, TIFF only, (Z, H, W, C).

    Raises:
        InputError: The file type cannot hold this image.
    """
    path = Path(path)
    image = np.asarray(image)
    image = image[..., None] if image.ndim == 2 else image
    suffix = path.suffix.lower()
    if image.ndim not in {3, 4} or 0 in image.shape:
        raise InputError(f"{path}: an image is (H, W), (H, W, C) or (Z, H, W, C), not {image.shape}")
    if suffix in {".tif", ".tiff"}:
        tiff.write_image(path, image)
        return
    held = {
        ".png": {("uint8", 1), ("uint8", 2), ("uint8", 3), ("uint8", 4), ("uint16", 1)},
        ".jpg": {("uint8", 1), ("uint8", 3)},
        ".jpeg": {("uint8", 1), ("uint8", 3)},
    }
    if suffix not in held:
        raise InputError(
            f"{path}: images are written as {', '.join([*held, '.tif'])}, not {suffix or 'without suffix'}"
        )
    if image.ndim == 4 or (image.dtype.name, image.shape[-1]) not in held[suffix]:
        raise InputError(f"{path}: a {suffix} file cannot hold shape {image.shape} of {image.dtype}; write a .tif")
    raster.write(path, image[..., 0] if image.shape[-1] == 1 else image)
