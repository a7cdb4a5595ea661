"""Random crops of volumes: every plane is cut like an image, and planes are picked and blended along the depth."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from everymask.types.geometry import VOID

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from everymask.data.augment import Placement


def random_depth(
    planes: int, scale: float, length: int, rng: np.random.Generator, target: float | None = None
) -> float:
    """The plane on which a crop is centred; as `Placement.random_centre` for one axis without rotation.

    Args:
        planes: Of the crop.
        scale: Its magnification.
        length: Planes of the volume.
        rng: Source of the randomness.
        target: A plane that is to lie in the crop; None for any.
    """
    half = planes / scale / 2
    low, high = min(half, length / 2) - 0.5, max(length - half, length / 2) - 0.5
    if target is None:
        return float(rng.uniform(low, high))
    offset = rng.uniform(-(planes - 1) / 2, (planes - 1) / 2) / scale
    return float(np.clip(target - offset, low, high))


def cut_volume(
    placement: Placement,
    image: NDArray[Any],
    ids: NDArray[Any],
    centre: NDArray[np.float64],
    shape: tuple[int, int],
    prepare: Callable[[NDArray[Any]], NDArray[np.float32]],
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """The crop of a volume and of its label map.

    In a plane as `Placement.cut`. Along the depth the image is interpolated linearly and labels are taken from the
    nearest plane, unless the magnification is 1: then planes are copied. Beyond the first and the last plane the image
    is mirrored and the labels are void.

    Args:
        placement: How the crop lies in the volume.
        image: (D, H, W, C) of any number type.
        ids: (D, H, W) labels.
        centre: (z, y, x).
        shape: Planes of the crop, and its side.
        prepare: Makes float (C, d, h, w) of a window (d, h, w, C).

    Returns:
        Image (C, planes, side, side) and labels (planes, side, side).
    """
    planes, side = shape
    length = len(ids)
    if placement.scale == 1:
        positions = round(float(centre[0]) - (planes - 1) / 2) + np.arange(planes, dtype=np.float64)
    else:
        positions = centre[0] + (np.arange(planes) - (planes - 1) / 2) / placement.scale
    if placement.backwards:
        positions = positions[::-1]
    lower = np.floor(positions).astype(np.int64)
    share = (positions - lower).astype(np.float32)[None, :, None, None]
    below, above, nearest = (
        _mirrored(each, length) for each in (lower, lower + 1, np.floor(positions + 0.5).astype(np.int64))
    )
    first, last = int(min(below.min(), above.min())), int(max(below.max(), above.max()))
    depth = last + 1 - first

    def flat(window: NDArray[Any]) -> NDArray[np.float32]:
        ready = prepare(np.moveaxis(window, 2, 0))
        return ready.reshape(-1, *ready.shape[2:])

    found, labels = placement.cut(
        np.moveaxis(image[first : last + 1], 0, 2), np.moveaxis(ids[first : last + 1], 0, 2), centre[1:], side, flat
    )
    stack = found.reshape(-1, depth, side, side)
    pixels = stack[:, below - first]
    if share.any():
        pixels = pixels + share * (stack[:, above - first] - pixels)
    drawn = np.moveaxis(labels, 2, 0)[nearest - first]
    drawn[(positions < -0.5) | (positions > length - 0.5)] = VOID
    return pixels, np.ascontiguousarray(drawn)


def _mirrored(positions: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Positions beyond 0..length-1 mirrored into it, the end planes doubled, as the borders of images are."""
    inside = positions % (2 * length)
    return np.minimum(inside, 2 * length - 1 - inside)
