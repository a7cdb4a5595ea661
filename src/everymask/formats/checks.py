"""What every reader of pixels checks, and the messages when it fails."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from everymask.errors import InputError
from everymask.formats.listing import PathLike

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_PIXELS = 2**30
"""Largest number of pixels in a plane that is decoded at once: 32,768 x 32,768."""


def check_finite(image: NDArray[Any], path: PathLike) -> None:
    """Makes sure that a float image holds no NaN and no infinity; for training and prediction.

    Args:
        image: Any shape and number type.
        path: Where the image is from, for the message.

    Raises:
        InputError: There are such pixels.
    """
    if image.dtype.kind != "f" or np.isfinite(image).all():
        return
    missing, infinite = int(np.isnan(image).sum()), int(np.isinf(image).sum())
    raise InputError(
        f"{os.fspath(path)} holds {missing} NaN and {infinite} infinite pixel values; "
        "replace them, for example with numpy.nan_to_num, and save the image again"
    )


def check_same_size(image: Sequence[int], mask: Sequence[int], image_path: PathLike, mask_path: PathLike) -> None:
    """Makes sure that an image and its mask have the same (H, W) or (Z, H, W).

    Raises:
        InputError: They differ; the message names both files.
    """
    if tuple(image) != tuple(mask):
        raise InputError(
            f"{os.fspath(mask_path)} has size {by(mask)}, but its image {os.fspath(image_path)} has {by(image)}; "
            "save the mask in the size of the image"
        )


def integer_labels(values: NDArray[Any], path: Path) -> NDArray[Any]:
    """`values` as non-negative integers.

    Raises:
        InputError: A value is fractional, not finite or negative.
    """
    if values.dtype.kind == "b":
        return values.astype(np.uint8)
    if values.dtype.kind == "f":
        if not np.isfinite(values).all() or (values != np.round(values)).any():
            raise InputError(f"{path} holds fractional values, but a label mask needs whole ids; save it as integers")
        if np.abs(values).max(initial=0) >= 2**53:
            raise InputError(f"{path} holds ids of 2**53 and more, which a float file cannot keep; renumber them")
        values = values.astype(np.int64)
    if values.dtype.kind == "i" and values.min(initial=0) < 0:
        raise InputError(
            f"{path} holds negative ids (lowest {values.min()}); use 0 for background and a positive number, such as "
            "255, for pixels to ignore"
        )
    return values


def file_head(path: Path) -> bytes:
    """The first bytes of a file, after a check that there are any."""
    try:
        with path.open("rb") as stream:
            head = stream.read(32)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; check the spelling") from error
    except IsADirectoryError as error:
        raise InputError(f"{path} is a folder, but an image file is expected; name a file in it") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if not head:
        raise InputError(f"{path} is empty (0 bytes); copy or export the file again")
    return head


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns whatever a decoder raises on a damaged file into an `InputError`."""
    try:
        yield
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"{path} does not fit into memory; cut it into smaller images") from error
    # A parser meets bytes that anyone may have written, and raises anything from IndexError to zlib.error on them.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path} is damaged or cut short ({reason}); copy or export the file again") from error


def check_plane(size: Sequence[int], path: Path) -> None:
    """Makes sure that an (H, W) plane is neither empty nor larger than `MAX_PIXELS`.

    Raises:
        InputError: It is.
    """
    height, width = size
    if height < 1 or width < 1:
        raise InputError(f"{path} has no pixels: its size is {height} x {width}; export the file again")
    if height * width > MAX_PIXELS:
        raise InputError(
            f"{path} claims {height} x {width} pixels, more than the limit of {MAX_PIXELS:,}; "
            "cut it into smaller images"
        )


def without_opaque_alpha(pixels: NDArray[Any]) -> NDArray[Any]:
    """(..., C) without the alpha channel, if it is opaque everywhere."""
    if pixels.shape[-1] in {2, 4} and (pixels[..., -1] == np.iinfo(pixels.dtype).max).all():
        return pixels[..., :-1]
    return pixels


def single_channel(pixels: NDArray[Any], path: Path) -> NDArray[Any]:
    """(..., H, W) of (..., H, W, C) with equal channels.

    Raises:
        InputError: The channels differ: colours, not ids.
    """
    if (pixels != pixels[..., :1]).any():
        raise InputError(
            f"{path} is a colour picture with {pixels.shape[-1]} channels, but a label mask needs one integer a pixel; "
            "replace each colour by its id and save a grey or palette PNG, or a TIFF"
        )
    return pixels[..., 0]


def by(size: Iterable[int]) -> str:
    """``"480 x 640"`` for messages."""
    return " x ".join(map(str, size))
