"""PNG, JPEG, BMP, GIF and WebP through Pillow."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from everymask.errors import InputError
from everymask.files import atomic_write
from everymask.formats.checks import check_plane, integer_labels, reading, single_channel, without_opaque_alpha

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import ImageFile

_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")
_EXIF_ORIENTATION = 0x0112


def read_image(path: Path, head: bytes) -> NDArray[Any]:
    """(H, W, C) in the file's own number type.

    Args:
        path: The file.
        head: Its first 32 bytes.

    Raises:
        InputError: The file is damaged or no image.
    """
    if _is_deep_colour_png(head):
        from everymask.formats import png16

        with reading(path), _opened(path, head):
            return without_opaque_alpha(png16.read(path))
    with reading(path), _opened(path, head) as image:
        orientation = _orientation(image)
        return _oriented(without_opaque_alpha(_pixels(image)), orientation)


def read_labels(path: Path, head: bytes) -> NDArray[Any]:
    """(H, W) integers as they are stored: palette indices, grey values that Pillow has not stretched.

    Raises:
        InputError: The file is damaged, a JPEG, or colour-coded.
    """
    from everymask.formats import png_labels

    quickly = png_labels.read_labels(path, head)
    if quickly is not None:
        return quickly
    with reading(path), _opened(path, head) as image:
        if image.format == "JPEG":
            raise InputError(f"{path} is a JPEG, whose compression changes label ids; save masks as PNG or TIFF")
        orientation = _orientation(image)
        if image.mode in {"P", "1"}:
            labels = np.asarray(image).astype(np.uint8)
        else:
            labels = _pixels(image)
            depth = head[24] if image.format == "PNG" else 8
            if image.mode == "L" and depth in {2, 4}:
                # Pillow stretches grey values of 2 and 4 bits over 0..255.
                labels = labels // (85 if depth == 2 else 17)
            labels = single_channel(without_opaque_alpha(labels), path)
        return integer_labels(_oriented(labels, orientation), path)


def image_size(path: Path, head: bytes) -> tuple[int, int]:
    """(H, W) of what `read_image` gives, from the header."""
    with reading(path), _opened(path, head) as image:
        width, height = image.size
        return (width, height) if _orientation(image) >= 5 else (height, width)


@contextlib.contextmanager
def _opened(path: Path, head: bytes) -> Iterator[ImageFile.ImageFile]:
    """The Pillow image of a file, header only.

    `Image.open` would refuse more than 179 million pixels, warn from 89 million on, and try every decoder there is,
    one of which starts an external program. So the decoder is chosen here.
    """
    from PIL import Image

    if head.startswith(b"\x89PNG\r\n\x1a\n") and len(head) >= 24:
        # Pillow takes an empty one for no PNG at all.
        check_plane((int.from_bytes(head[20:24], "big"), int.from_bytes(head[16:20], "big")), path)
    Image.init()
    for name in _FORMATS:
        factory, accepts = Image.OPEN.get(name, (None, None))
        if factory is None or accepts is None or accepts(head[:16]) is not True:
            continue
        with path.open("rb") as stream:
            image = factory(stream, os.fspath(path))
            check_plane(image.size[::-1], path)
            yield image
        return
    raise InputError(
        f"{path} is no image that can be read (it begins with {head[:8]!r}); "
        "expected PNG, JPEG, BMP, GIF, WebP or TIFF; convert it first"
    )


def _pixels(image: ImageFile.ImageFile) -> NDArray[Any]:
    """(H, W, C) of a Pillow image in its own number type."""
    mode = image.mode
    if mode == "1":
        pixels = np.asarray(image).astype(np.uint8) * np.uint8(255)
    elif mode == "I" and image.format == "PNG":
        # Pillow before 11 opens 16-bit PNG as 32-bit integers.
        pixels = np.asarray(image).astype(np.uint16)
    elif mode in {"L", "LA", "RGB", "RGBA", "I", "F"}:
        pixels = np.asarray(image)
    elif mode.startswith("I;16"):
        pixels = np.asarray(image).astype(np.uint16)
    elif mode in {"P", "PA"}:
        transparent = "transparency" in image.info or mode == "PA"
        pixels = np.asarray(image.convert("RGBA" if transparent else "RGB"))
    else:
        pixels = np.asarray(image.convert("RGB"))
    # np.asarray of a Pillow image is read-only.
    pixels = np.array(pixels)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _is_deep_colour_png(head: bytes) -> bool:
    """Whether this is a PNG of 16 bits with more than one channel, which Pillow would reduce to 8 bits."""
    return head[:8] == b"\x89PNG\r\n\x1a\n" and len(head) > 25 and head[24] == 16 and head[25] in {2, 4, 6}


def _orientation(image: ImageFile.ImageFile) -> int:
    """The EXIF orientation 1..8, 1 where there is none.

    Read from the header alone: Pillow's own `getexif` would decode a PNG to look behind its pixels.
    """
    raw = image.info.get("exif")
    if not raw:
        return 1
    from PIL import Image

    exif = Image.Exif()
    try:
        exif.load(raw)
        value = exif.get(_EXIF_ORIENTATION, 1)
    # Cameras write broken EXIF blocks of every kind; the picture is good all the same.
    except Exception:  # noqa: BLE001
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _oriented(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """(H, W, ...) turned and flipped by the EXIF 2.3 orientation (section 4.6.4, tag 274)."""
    match orientation:
        case 2:
            turned = pixels[:, ::-1]
        case 3:
            turned = pixels[::-1, ::-1]
        case 4:
            turned = pixels[::-1]
        case 5:
            turned = pixels.swapaxes(0, 1)
        case 6:
            turned = np.rot90(pixels, -1)
        case 7:
            turned = pixels[::-1, ::-1].swapaxes(0, 1)
        case 8:
            turned = np.rot90(pixels)
        case _:
            turned = pixels
    return np.ascontiguousarray(turned)


def write(path: Path, pixels: NDArray[Any]) -> None:
    """Writes (H, W) or (H, W, C) as the suffix of `path` says; JPEG at quality 95."""
    from PIL import Image

    options: dict[str, Any] = {} if path.suffix.lower() == ".png" else {"quality": 95}
    with atomic_write(path) as temporary:
        Image.fromarray(np.ascontiguousarray(pixels)).save(temporary, **options)
