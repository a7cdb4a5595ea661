"""What `Predictor` makes sure of before it begins: that options are for the method, and that an image is one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from everymask.errors import InputError
from everymask.predict.magnification import check_magnification
from everymask.types import Task

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from everymask.methods.base import Method


def check_purpose(method: Method, magnification: float | Literal["auto"], blend: bool | None) -> None:
    """Makes sure that magnification and blending are for a method like this.

    Raises:
        InputError: They are not, or the magnification is no sensible number.
    """
    name = type(method).__name__
    if isinstance(magnification, str):
        if magnification != "auto":
            raise InputError(f"magnification must be a number or 'auto', got {magnification!r}")
        if not hasattr(method, "estimate_magnification"):
            raise InputError(f"{name} cannot estimate a magnification; give a number, such as 0.5")
    else:
        check_magnification(magnification)
    if magnification != 1 and Task.CLASSIFICATION in method.tasks:
        raise InputError("a classifier brings every image to one size; leave out the magnification")
    if blend and (Task.SEMANTIC not in method.tasks or Task.INSTANCE in method.tasks):
        raise InputError(f"{name} finds objects, which are taken whole from one tile; leave out blend")


def checked_image(image: NDArray[Any], dimensions: int) -> NDArray[Any]:
    """The image if it can be predicted; lazily read arrays stay lazy.

    Raises:
        InputError: It has no pixels, other axes or number types, or values that are not finite.
    """
    if not (hasattr(image, "shape") and hasattr(image, "dtype")):
        image = np.asarray(image)
    if len(image.shape) - dimensions not in (0, 1):
        wanted = "an image (H, W) or (H, W, C)" if dimensions == 2 else "a volume (D, H, W) or (D, H, W, C)"
        raise InputError(f"expected {wanted}, got an array of shape {tuple(image.shape)}")
    if 0 in image.shape:
        raise InputError(f"the image has no pixels: its shape is {tuple(image.shape)}")
    if image.dtype.kind == "b":
        return np.asarray(image).astype(np.uint8) * np.uint8(255)
    if image.dtype.kind not in "uif":
        raise InputError(f"expected an image of real numbers, got {image.dtype}")
    if image.dtype.kind == "f":
        for block in _row_blocks(image, 256 if dimensions == 2 else 1):
            if not np.isfinite(block).all():
                raise InputError("the image holds values that are not finite (NaN or infinity); replace them first")
    return image


def _row_blocks(image: NDArray[Any], rows: int) -> Iterator[NDArray[Any]]:
    """The image in strips, so that a memory-mapped one is never held as a whole."""
    for top in range(0, image.shape[0], rows):
        yield np.asarray(image[top : top + rows])
