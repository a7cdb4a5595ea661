"""What annotation tools draw, as outlines and run lengths: rotated rectangles, ellipses, masks cropped to their box.

Coordinates are x, y in pixels with (0, 0) at the top left corner of the image, as in `everymask.types.Polygon`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from everymask.errors import InputError
from everymask.types import Masks, Polygon, Polygons, Segments

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

FARTHEST = 1e8
"""Pixels from the origin that a point may lie: more than any image has, and few enough to compute with."""
SAGITTA = 0.05
"""Pixels that a chord of the polygon of an ellipse may lie inside the ellipse: far below what a pixel resolves."""


def rectangle(x0: float, y0: float, x1: float, y1: float, rotation: float = 0.0) -> NDArray[np.float64]:
    """Corners (4, 2) of a rectangle, clockwise on the screen from the top left one.

    Args:
        x0: Left edge before it is turned, and so on.
        y0: Top edge.
        x1: Right edge.
        y1: Bottom edge.
        rotation: Degrees by which it is turned clockwise about its centre.
    """
    corners = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], np.float64)
    # The corners of an upright rectangle keep their numbers to the last bit.
    return turned(corners, ((x0 + x1) / 2, (y0 + y1) / 2), rotation) if rotation % 360 else corners


def ellipse(centre: tuple[float, float], radii: tuple[float, float], rotation: float = 0.0) -> NDArray[np.float64]:
    """Polygon (K, 2) whose vertices lie on an ellipse and whose edges come within `SAGITTA` of it; K is 12 at least.

    Args:
        centre: x, y.
        radii: Half axes along x and y before it is turned, above zero.
        rotation: Degrees by which it is turned clockwise on the screen.

    Raises:
        InputError: It is larger than any image.
    """
    if max(*radii, *map(abs, centre)) > FARTHEST:
        raise InputError(f"its centre {centre} or its radii {radii} lie far outside of any image")
    # A chord of a circle of radius r that spans the angle 2 pi / K lies r (1 - cos(pi / K)) inside it.
    number = max(12, math.ceil(math.pi / math.acos(max(0.0, 1 - SAGITTA / max(radii)))))
    angles = np.arange(number) * (2 * math.pi / number)
    points = np.stack([centre[0] + radii[0] * np.cos(angles), centre[1] + radii[1] * np.sin(angles)], axis=1)
    return turned(points, centre, rotation) if rotation % 360 else points


def check_points(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """The points of a polygon, if one can compute with them.

    Raises:
        InputError: One is not finite, or lies beyond `FARTHEST`.
    """
    if not np.isfinite(points).all() or (np.abs(points) > FARTHEST).any():
        raise InputError(f"its points are not all finite numbers up to {FARTHEST:g}")
    return points


def turned(points: NDArray[np.float64], centre: tuple[float, float], degrees: float) -> NDArray[np.float64]:
    """Points (K, 2) turned about a centre, clockwise on the screen, where y points down."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return (points - centre) @ np.array([[cosine, sine], [-sine, cosine]]) + centre


def placed_runs(crop: NDArray[Any], left: int, top: int, size: tuple[int, int]) -> NDArray[np.uint32]:
    """COCO run lengths, of the whole image, of a mask that is given within a box.

    Costs time and memory of the box, not of the image.

    Args:
        crop: (h, w), nonzero is foreground.
        left: Column of the image in which the box begins.
        top: Row in which it begins.
        size: (H, W) of the image.

    Raises:
        InputError: The box leaves the image.
    """
    height, width = size
    rows, columns = crop.shape
    if left < 0 or top < 0 or left + columns > width or top + rows > height:
        raise InputError(
            f"its mask of {rows} x {columns} at row {top}, column {left} leaves the image of {height} x {width} "
            "(height x width)"
        )
    # A row of background below each column keeps runs of neighbouring columns apart.
    padded = np.zeros((columns, rows + 1), bool)
    padded[:, :rows] = crop.T != 0
    changes = np.flatnonzero(np.diff(padded.ravel(), prepend=False))
    column, row = np.divmod(changes, rows + 1)
    edges = (left + column) * height + top + row
    # In a box as high as the image, a run may go on at the top of the next column.
    starts, ends = edges[::2], edges[1::2]
    apart = starts[1:] != ends[:-1]
    starts, ends = starts[np.append(True, apart)[: len(starts)]], ends[np.append(apart, True)[: len(ends)]]
    edges = np.stack([starts, ends], axis=1).ravel()
    bounds = np.concatenate([[0], edges, [height * width]])
    lengths = np.diff(bounds)
    return (lengths[:-1] if lengths[-1] == 0 and len(lengths) > 1 else lengths).astype(np.uint32)


def cropped(counts: NDArray[np.uint32], size: tuple[int, int]) -> tuple[NDArray[np.bool_], int, int]:
    """The inverse of `placed_runs`: a mask within its tight box, and the column and row where that begins.

    A mask without pixels gives one pixel of background at the top left.
    """
    height = size[0]
    edges = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    pairs = edges[1 : 1 + (len(edges) - 1) // 2 * 2].reshape(-1, 2)
    pairs = pairs[pairs[:, 1] > pairs[:, 0]]
    if not len(pairs):
        return np.zeros((1, 1), bool), 0, 0
    first, last = int(pairs[0, 0]) // height, (int(pairs[-1, 1]) - 1) // height
    marks = np.zeros((last - first + 1) * height + 1, np.int8)
    np.add.at(marks, pairs[:, 0] - first * height, 1)
    np.add.at(marks, pairs[:, 1] - first * height, -1)
    columns = (np.cumsum(marks[:-1], dtype=np.int8) > 0).reshape(-1, height)
    rows = np.flatnonzero(columns.any(axis=0))
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    return np.ascontiguousarray(columns[:, top:bottom].T), first, top


def joined(outlines: Sequence[tuple[Polygon, ...] | NDArray[np.uint32]], size: tuple[int, int]) -> Polygons | Masks:
    """One geometry: polygons if there are only such, run lengths if any outline is run lengths.

    Args:
        outlines: For each segment its polygons, or the run lengths (R,) of its mask.
        size: (H, W) of the image.
    """
    drawn = [each for each in outlines if isinstance(each, tuple)]
    polygons = Polygons(size, tuple(drawn))
    if len(drawn) == len(outlines):
        return polygons
    # By COCO's rule for the pixels of a polygon, so that a mixture covers the pixels that each outline does alone.
    rasterised = iter(Segments(size, np.ones(len(drawn)), polygons).rles())
    return Masks.join(size, [next(rasterised) if isinstance(each, tuple) else each for each in outlines])
