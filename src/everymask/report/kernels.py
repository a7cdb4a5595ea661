"""Compiled loops behind the overlays: painting, and which objects are neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import njit, prange

if TYPE_CHECKING:
    from numpy.typing import NDArray


@njit(cache=True, parallel=True)
def paint(
    picture: NDArray[np.uint8],
    ids: NDArray[np.int32],
    contour: NDArray[np.bool_],
    colours: NDArray[np.uint8],
    fill: float,
) -> NDArray[np.uint8]:
    """(H, W, 3) the picture with filled objects, contours, and a dark rim along the contours.

    Args:
        picture: (H, W, 3).
        ids: (H, W) label map; only values above 0 are painted.
        contour: (H, W) pixels that get the full colour.
        colours: (N, 3) of the objects 1..N.
        fill: Opacity of the fill, 0..1.
    """
    height, width = ids.shape
    painted = np.empty_like(picture)
    for y in prange(height):
        for x in range(width):
            own = ids[y, x]
            # The rim: without it a bright contour drowns in a bright image.
            beside = (
                (y > 0 and contour[y - 1, x])
                or (y + 1 < height and contour[y + 1, x])
                or (x > 0 and contour[y, x - 1])
                or (x + 1 < width and contour[y, x + 1])
            )
            for channel in range(3):
                value = np.float32(picture[y, x, channel])
                if own > 0:
                    colour = np.float32(colours[own - 1, channel])
                    value = colour if contour[y, x] else value + np.float32(fill) * (colour - value)
                if beside and not contour[y, x]:
                    value *= np.float32(0.5)
                painted[y, x, channel] = np.uint8(value + np.float32(0.5))
    return painted


@njit(cache=True)
def _near_pairs(ids: NDArray[np.int32], reach: int, pairs: NDArray[np.int64]) -> int:
    """Writes the pairs it meets into `pairs` while there is room, and returns how many there are."""
    height, width = ids.shape
    count = 0
    for y in range(height):
        for x in range(width):
            own = ids[y, x]
            if own < 1:
                continue
            for direction in range(4):  # east, south-east, south, south-west: each pair is met from one side
                dy = 1 if direction > 0 else 0
                dx = 1 if direction < 2 else (0 if direction == 2 else -1)
                for step in range(1, reach + 1):
                    other_y, other_x = y + step * dy, x + step * dx
                    if other_y >= height or other_x < 0 or other_x >= width:
                        break
                    other = ids[other_y, other_x]
                    if other == own:
                        break
                    if other > 0:
                        if count < len(pairs):
                            pairs[count, 0] = min(own, other)
                            pairs[count, 1] = max(own, other)
                        count += 1
                        break
    return count


def neighbours(ids: NDArray[np.int32], reach: int = 6) -> NDArray[np.int64]:
    """(P, 2) pairs of ids, smaller first, each once, that touch or lie within `reach` pixels of each other.

    The gap is measured along rows, columns and diagonals.

    Args:
        ids: (H, W) label map.
        reach: Largest step in pixels from one object to the other; 1 finds touching objects.
    """
    pairs = np.empty((max(1024, ids.size // 16), 2), np.int64)
    count = _near_pairs(ids, reach, pairs)
    if count > len(pairs):
        pairs = np.empty((count, 2), np.int64)
        _near_pairs(ids, reach, pairs)
    base = int(ids.max(initial=0)) + 1
    keys = np.unique(pairs[:count, 0] * base + pairs[:count, 1])
    return np.stack([keys // base, keys % base], axis=1)
