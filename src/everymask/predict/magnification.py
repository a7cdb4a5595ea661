"""Prediction at another magnification: images of the scale that a network was trained on, from images of any scale.

The image is resized as it is read, tile by tile, and the segments are brought back to the pixels of the image. In
memory beside the result is the label map of the resized image, which has the square of the factor times as many pixels.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from everymask.errors import InputError
from everymask.types import LabelMap, Masks, Polygon, Polygons, Segments

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from everymask.methods.base import Method

SMALLEST, LARGEST = 0.02, 50.0
"""Magnifications beyond these are mistakes."""


def check_magnification(factor: float) -> float:
    """The factor, if it is one.

    Raises:
        InputError: It is not a number within `SMALLEST` and `LARGEST`.
    """
    if not SMALLEST <= factor <= LARGEST:
        raise InputError(
            f"magnification must be between {SMALLEST} and {LARGEST:g}, got {factor:g}; 1 leaves the image as it is"
        )
    return factor


def magnification_for(method: Method, diameter: float) -> float:
    """The factor that brings objects to the size that a method knows.

    Args:
        method: With an attribute `diameter`, that of the objects it was trained on in pixels.
        diameter: That of the objects in the image, in pixels.

    Raises:
        InputError: The method has no diameter, or the one given is not positive, or far from all sense.
    """
    known = getattr(method, "diameter", None)
    if known is None:
        raise InputError(
            f"{type(method).__name__} knows no diameter of its objects; give the magnification itself, such as 0.5"
        )
    if not diameter > 0:
        raise InputError(f"the diameter of objects must be above 0 pixels, got {diameter:g}")
    return check_magnification(float(known) / diameter)


class MagnifiedImage:
    """An image or a volume at another magnification, resized where it is read.

    Enlarged by bilinear interpolation; reduced by the mean under a triangle as wide as two pixels of the result, which
    keeps fine texture from turning into false structures (as Pillow, and torch with ``antialias``).

    Args:
        image: Any array that is read by slices, such as `numpy.memmap`: (H, W), (H, W, C) or (D, H, W, C).
        factor: Magnification of all axes of the image, or one for each of the first axes, such as (z, y, x) of a
            volume; sides are rounded to whole pixels, down where `smooth` is false, as those programs do.
        smooth: Take the mean where it is reduced; else interpolate between two pixels as well, as programs do whose
            weights expect that.

    Attributes:
        shape: Of the resized image.
        dtype: float32, with the intensities of the image.
    """

    def __init__(self, image: NDArray[Any], factor: float | Sequence[float], smooth: bool = True) -> None:
        self._image, self._smooth = image, smooth
        factors = [factor] * max(2, len(image.shape) - 1) if isinstance(factor, float | int) else factor
        sides = image.shape[: len(factors)]
        self._axes = len(factors)
        lengths = [each * side for each, side in zip(factors, sides, strict=True)]
        # The rounding errors of a quotient of whole numbers must not cost a pixel.
        resized = (max(1, round(each) if smooth else math.floor(each + 1e-6)) for each in lengths)
        self.shape: tuple[int, ...] = (*resized, *image.shape[self._axes :])
        self.dtype = np.dtype(np.float32)

    def __getitem__(self, window: tuple[slice, ...]) -> NDArray[np.float32]:
        """The pixels of a window, a slice with step 1 for each axis that is resized."""
        taps = [
            _taps(*each.indices(length)[:2], length, source, self._smooth)
            for each, length, source in zip(window, self.shape, self._image.shape, strict=False)
        ]
        needed = tuple(
            slice(int(places.min()), int(places.max()) + 1) if places.size else slice(0, 0) for places, _ in taps
        )
        found = np.asarray(self._image[needed])
        for axis, ((places, weights), part) in enumerate(zip(taps, needed, strict=True)):
            found = _weighted(found, places - part.start, weights, axis)
        return found


def _taps(
    start: int, stop: int, length: int, source: int, smooth: bool
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """For each pixel start..stop of an axis resized from `source` to `length` pixels: pixels (n, T) and weights."""
    scale = source / length
    radius = max(1.0, scale) if smooth else 1.0
    middles = (np.arange(start, stop) + 0.5) * scale - 0.5
    first = np.ceil(middles - radius).astype(np.int64)
    places = first[:, None] + np.arange(math.floor(2 * radius) + 1)
    weights = np.maximum(0, 1 - np.abs(places - middles[:, None]) / radius)
    weights[(places < 0) | (places >= source)] = 0
    weights /= weights.sum(axis=1, keepdims=True)
    return places.clip(0, source - 1), weights.astype(np.float32)


def _weighted(source: NDArray[Any], places: NDArray[np.int64], weights: NDArray[np.float32], axis: int) -> NDArray[Any]:
    """float32 weighted sums of the entries along an axis, which gets as many as there are rows of places."""
    if places.shape[1] > 3:  # else fewer pixels are converted after they are picked
        source = source.astype(np.float32, copy=False)
    along = tuple(slice(None) if each == axis else None for each in range(source.ndim))
    total = np.zeros((*source.shape[:axis], len(places), *source.shape[axis + 1 :]), np.float32)
    for tap in range(places.shape[1]):
        if weights[:, tap].any():
            part = source.take(places[:, tap], axis=axis).astype(np.float32, copy=False)
            part *= weights[:, tap][along]
            total += part
    return total


def restored(segments: Segments, size: tuple[int, ...]) -> tuple[Segments, int]:
    """The segments of a resized image in the pixels of the image itself.

    Pixels get what their middle lies on in the resized image; outlines and boxes are scaled.

    Args:
        segments: Of the resized image.
        size: (H, W) of the image, or (D, H, W) of the volume.

    Returns:
        The segments, and how many were left out because they are too small to own a pixel of it.
    """
    factors = np.array(size[::-1]) / np.array(segments.size[::-1])  # x, y
    boxes = segments.given_boxes
    boxes = None if boxes is None else boxes * np.tile(factors, 2)
    places = [
        ((np.arange(wanted) + 0.5) * (have / wanted)).astype(np.int64)
        for wanted, have in zip(size, segments.size, strict=True)
    ]
    rows, columns = places[-2:]
    geometry: LabelMap | Masks | Polygons | None
    match segments.geometry:
        case LabelMap(ids):
            planes = [ids] if ids.ndim == 2 else [ids[plane] for plane in places[0]]
            drawn = [_at_places(plane, rows, columns) for plane in planes]
            geometry = LabelMap(drawn[0] if ids.ndim == 2 else np.stack(drawn))
        case Masks():
            geometry = _restored_masks(segments.geometry, (size[0], size[1]), rows, columns)
        case Polygons(_, parts):
            scaled = (
                tuple(Polygon(each.exterior * factors, tuple(hole * factors for hole in each.holes)) for each in part)
                for part in parts
            )
            geometry = Polygons((size[0], size[1]), tuple(scaled))
        case _:
            geometry = None
    found = Segments(
        size,
        segments.category,
        geometry,
        score=segments.score,
        box=boxes,
        crowd=segments.crowd,
        attributes=segments.attributes,
    )
    if geometry is None or isinstance(geometry, Polygons):
        return found, 0
    visible = found.areas() > 0
    return (found, 0) if visible.all() else (found[visible], int((~visible).sum()))


def _at_places(ids: NDArray[Any], rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[Any]:
    """``ids[rows][:, columns]`` without the array in between."""
    found = np.empty((len(rows), len(columns)), ids.dtype)
    for i, row in enumerate(rows):
        np.take(ids[row], columns, out=found[i])
    return found


def _restored_masks(masks: Masks, size: tuple[int, int], rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Masks:
    """Masks at the places of an image, one at a time, since dense masks of all would take N times the image."""
    from everymask.ops import rle

    runs = []
    for each in masks:
        dense = rle.decode(each, np.array([0, len(each)], np.int64), masks.size)[0]
        runs.append(rle.encode(_at_places(dense, rows, columns)[None])[0])
    return Masks.join(size, runs)
