"""The geometries a set of segments can have: a label map, run-length masks, or polygons."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from everymask.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from everymask.ops.polygons import Outlines

VOID = -1
"""Label map value of pixels that are to be ignored."""


@dataclass(frozen=True, eq=False)
class LabelMap:
    """Non-overlapping segments: one array whatever their number.

    Args:
        ids: (H, W) or (Z, H, W), integers, kept as int32. id i + 1 is segment i, 0 is background, -1 is void (ignored).

    Raises:
        InputError: The array has other axes or is not of integers.
    """

    ids: NDArray[np.int32]

    def __post_init__(self) -> None:
        ids = np.asarray(self.ids)
        if ids.ndim not in (2, 3) or ids.dtype.kind not in "biu":
            raise InputError(
                f"label map: got {ids.dtype} of shape {ids.shape}, expected integers (H, W) or (Z, H, W); "
                "`Segments.from_label_map` takes whole numbers of any type"
            )
        if not np.can_cast(ids.dtype, np.int32) and int(ids.max(initial=0)) > np.iinfo(np.int32).max:
            raise InputError(f"label map: holds id {ids.max()}; `Segments.from_label_map` numbers any labels anew")
        object.__setattr__(self, "ids", ids.astype(np.int32, copy=False))

    @property
    def size(self) -> tuple[int, ...]:
        """(H, W) or (Z, H, W)."""
        return self.ids.shape


@dataclass(frozen=True, eq=False)
class Masks:
    """Segments that may overlap, run-length encoded as in COCO.

    The runs of all segments lie in one array, so that a data set's worth of masks costs two arrays and no objects.
    Runs go down the columns (column-major order) and alternate background, foreground, starting with background.

    Args:
        size: (H, W).
        counts: (R,) uint32 run lengths of all segments, one after the other.
        offsets: (N + 1,) int64: segment i has ``counts[offsets[i]:offsets[i + 1]]``.
    """

    size: tuple[int, int]
    counts: NDArray[np.uint32]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> NDArray[np.uint32]:
        """The runs of segment `index`."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.counts[self.offsets[index] : self.offsets[index + 1]]

    def __iter__(self) -> Iterator[NDArray[np.uint32]]:
        for index in range(len(self)):
            yield self[index]

    @classmethod
    def join(cls, size: tuple[int, int], runs: list[NDArray[np.uint32]]) -> Masks:
        """One geometry from the runs of single segments."""
        offsets = np.zeros(len(runs) + 1, dtype=np.int64)
        np.cumsum([len(each) for each in runs], out=offsets[1:])
        counts = np.concatenate(runs).astype(np.uint32, copy=False) if runs else np.zeros(0, np.uint32)
        return cls(size, counts, offsets)


@dataclass(frozen=True, eq=False)
class Polygon:
    """One connected outline.

    Args:
        exterior: (K, 2) float64 x, y in pixels; (0, 0) is the top left corner of the top left pixel. Not closed.
        holes: Outlines of the holes, each (K, 2).
    """

    exterior: NDArray[np.float64]
    holes: tuple[NDArray[np.float64], ...] = ()


@dataclass(frozen=True, eq=False)
class Polygons:
    """Segments outlined by hand: each the union of its parts.

    Args:
        size: (H, W).
        parts: One tuple of polygons for each segment.
    """

    size: tuple[int, int]
    parts: tuple[tuple[Polygon, ...], ...]

    def __len__(self) -> int:
        return len(self.parts)

    def outlines(self) -> Outlines:
        """The same polygons in flat arrays, as `everymask.ops.polygons` works on them."""
        from everymask.ops.polygons import Outlines

        polygons = [polygon for parts in self.parts for polygon in parts]
        rings = [np.reshape(ring, (-1, 2)) for polygon in polygons for ring in (polygon.exterior, *polygon.holes)]
        return Outlines(
            np.concatenate([np.zeros((0, 2)), *rings]),
            _offsets([len(ring) for ring in rings]),
            _offsets([1 + len(polygon.holes) for polygon in polygons]),
            _offsets([len(parts) for parts in self.parts]),
        )

    @classmethod
    def from_outlines(cls, size: tuple[int, int], outlines: Outlines) -> Polygons:
        """The inverse of `outlines`."""
        points, ring_ends, part_ends, segment_ends = outlines
        rings = [points[start:end] for start, end in pairwise(ring_ends)]
        polygons = [Polygon(rings[start], tuple(rings[start + 1 : end])) for start, end in pairwise(part_ends)]
        return cls(size, tuple(tuple(polygons[start:end]) for start, end in pairwise(segment_ends)))


def _offsets(lengths: list[int]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


Geometry = LabelMap | Masks | Polygons
