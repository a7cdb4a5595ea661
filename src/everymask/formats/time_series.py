"""TIFF stacks whose frames are samples of their own: told by the time axis that ImageJ or OME metadata name."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everymask.errors import InputError
from everymask.formats.checks import check_same_size, reading
from everymask.formats.images import image_size, read_image, read_labels

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SUFFIXES = {".tif", ".tiff"}


def count_frames(files: Sequence[Path], time: bool | None) -> list[int | None]:
    """The number of frames of each image that is a time series; None for an image or a volume.

    Args:
        files: The images of a data set. Headers are read, no pixels.
        time: Whether the first axis of stacks is time. None if the files say so themselves: then the first TIFF decides
            whether the headers of the others are looked at, too.
    """
    counts: list[int | None] = [None] * len(files)
    if time is False:
        return counts
    for position, file in enumerate(files):
        if file.suffix.lower() in _SUFFIXES:
            counts[position] = _frames(file, named=time is None)
            if time is None and counts[position] is None:
                break
    return counts


def _frames(file: Path, *, named: bool) -> int | None:
    """The length of the time axis; with `named`, only if metadata call it so."""
    import tifffile

    try:
        if named:
            with reading(file), tifffile.TiffFile(file) as opened:
                series = opened.series[0]
                lengths = dict(zip(series.axes, series.shape, strict=True))
            if lengths.get("T", 1) == 1 or lengths.get("Z", 1) > 1:
                return None
        size = image_size(file)
    except InputError:
        return None  # a file that cannot be read is told when its pixels are asked for
    return size[0] if len(size) == 3 else None


def read_frame(path: Path, frame: int) -> NDArray[Any]:
    """(H, W, C) of one frame of a stack."""
    return _last_image(path)[frame].copy()


def read_label_frame(path: Path, frame: int, size: tuple[int, ...], image: Path) -> NDArray[Any]:
    """(H, W) of one frame of a stack of label masks.

    Args:
        path: The masks.
        frame: Which one.
        size: (T, H, W) of the images.
        image: These, for the message.

    Raises:
        InputError: The masks have another size.
    """
    labels = _last_labels(path)
    check_same_size(size, labels.shape, image, path)
    return labels[frame].copy()


# Frames are mostly asked for one after the other, so the stack that was read last is kept.
@lru_cache(maxsize=1)
def _last_image(path: Path) -> NDArray[Any]:
    return read_image(path)


@lru_cache(maxsize=1)
def _last_labels(path: Path) -> NDArray[Any]:
    return read_labels(path)
