"""Colour spaces of images of bytes, all of values between 0 and 1: those in which selective search compares regions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import njit

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


def _hsv(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return _hue_saturation_value(pixels)


def _lab(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    values = np.arange(256) / 255
    linear = np.where(values > 0.04045, ((values + 0.055) / 1.055) ** 2.4, values / 12.92)
    return _lightness_and_opponents(pixels, linear)


def _rgi(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    shares = _shares(pixels)
    return np.concatenate([shares[..., :2], _intensity(pixels)], axis=-1)


def _hue(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.ascontiguousarray(_hue_saturation_value(pixels)[..., :1])


def _intensity(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    mean: NDArray[np.float32] = pixels.mean(axis=-1, keepdims=True, dtype=np.float32) / np.float32(255)
    return mean


def _channels(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return pixels.astype(np.float32) / np.float32(255)


def _shares(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Each channel as a share of their sum; of black pixels equal ones."""
    total = pixels.sum(axis=-1, keepdims=True, dtype=np.float32)
    equal = np.float32(1 / pixels.shape[-1])
    return np.where(total > 0, pixels / np.maximum(total, np.float32(1)), equal).astype(np.float32)


SPACES: dict[str, Callable[[NDArray[np.uint8]], NDArray[np.float32]]] = {
    "hsv": _hsv,
    "lab": _lab,
    "rgi": _rgi,
    "hue": _hue,
    "intensity": _intensity,
    "channels": _channels,
    "shares": _shares,
}
"""Colour spaces: (H, W, C) float32, 0..1, of images (H, W, C) of bytes."""


@njit(cache=True, nogil=True, error_model="numpy")
def _hue_saturation_value(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:  # pragma: no cover - compiled
    height, width, _ = pixels.shape
    found = np.empty((height, width, 3), np.float32)
    for y in range(height):
        for x in range(width):
            red, green, blue = np.int32(pixels[y, x, 0]), np.int32(pixels[y, x, 1]), np.int32(pixels[y, x, 2])
            high, low = max(red, green, blue), min(red, green, blue)
            chroma = high - low
            hue = 0.0
            if chroma > 0:
                if high == red:
                    hue = (green - blue) / chroma
                elif high == green:
                    hue = 2 + (blue - red) / chroma
                else:
                    hue = 4 + (red - green) / chroma
                if hue < 0:
                    hue += 6
            found[y, x, 0] = hue / 6
            found[y, x, 1] = chroma / high if high > 0 else 0.0
            found[y, x, 2] = high / 255
    return found


@njit(cache=True, nogil=True, error_model="numpy")
def _cube_root(value: float) -> float:  # pragma: no cover - compiled
    """The cube root, and below 0.008856 the line that CIE Lab has instead."""
    return np.cbrt(value) if value > 0.008856 else 7.787 * value + 16 / 116


@njit(cache=True, nogil=True, error_model="numpy")
def _lightness_and_opponents(
    pixels: NDArray[np.uint8], linear: NDArray[np.float64]
) -> NDArray[np.float32]:  # pragma: no cover - compiled
    """L / 100, (a + 128) / 255 and (b + 128) / 255 of CIE Lab under D65; `linear` undoes the gamma of sRGB."""
    height, width, _ = pixels.shape
    found = np.empty((height, width, 3), np.float32)
    for y in range(height):
        for x in range(width):
            red, green, blue = linear[pixels[y, x, 0]], linear[pixels[y, x, 1]], linear[pixels[y, x, 2]]
            first = _cube_root((0.412453 * red + 0.357580 * green + 0.180423 * blue) / 0.95047)
            second = _cube_root(0.212671 * red + 0.715160 * green + 0.072169 * blue)
            third = _cube_root((0.019334 * red + 0.119193 * green + 0.950227 * blue) / 1.08883)
            found[y, x, 0] = (116 * second - 16) / 100
            found[y, x, 1] = (500 * (first - second) + 128) / 255
            found[y, x, 2] = (200 * (second - third) + 128) / 255
    return found
