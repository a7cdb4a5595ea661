"""Outlines and masks of COCO annotations, decoded from the bytes of the file when somebody asks.

Compiled code reads them. What it does not understand is read once more by way of msgspec, which either says what is
wrong, and where, or can read it after all.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import msgspec
import numpy as np
from numpy.typing import NDArray

from everymask.errors import InputError
from everymask.formats import coco_schema as schema
from everymask.formats.mapped_file import MappedFile
from everymask.ops import json_outlines
from everymask.ops.json_outlines import NOTHING, POLYGONS
from everymask.ops.polygons import Outlines, rasterise
from everymask.types import Masks, Polygon, Polygons

Runs = tuple[NDArray[np.uint32], NDArray[np.int64]]
"""Run lengths and the offsets of the masks into them, see `everymask.ops.rle`."""

_SMALL = 1 << 20  # bytes for which another thread does not pay


@dataclass(frozen=True, eq=False)
class Shapes:
    """The segmentations of N annotations or results.

    Args:
        source: The file.
        place: Where the annotations are in it, for messages, such as ``"$.annotations"``.
        kind: (N,) uint8: `NOTHING`, `POLYGONS`, `STRING` or `LENGTHS`, see `everymask.ops.json_outlines`.
        span: (N, 2) int64 where each begins and ends in the bytes of the file.
    """

    source: MappedFile
    place: str
    kind: NDArray[np.uint8]
    span: NDArray[np.int64]

    def geometry(
        self, rows: NDArray[np.int64], size: tuple[int, int], name: Callable[[int], str]
    ) -> Polygons | Masks | None:
        """The geometry of the annotations of one image.

        Args:
            rows: (M,) row numbers.
            size: (H, W) of the image.
            name: What messages call a row.

        Returns:
            Polygons if there are only such, run-length masks if any annotation has one, None if there are annotations
            but no segmentation at all.

        Raises:
            InputError: A segmentation is malformed or does not fit the image.
        """
        kinds = self.kind[rows]
        if len(rows) and not kinds.any():
            return None
        outlines = self.outlines(rows, size)
        if outlines is not None and bool((kinds <= POLYGONS).all()):
            return Polygons.from_outlines(size, outlines)
        if outlines is not None:
            runs = self._masks(rows, np.broadcast_to(np.array(size), (len(rows), 2)))
            if runs is not None:
                return Masks(size, *runs)
        return schema.geometry([self._general(int(row), size, name) for row in rows], size)

    def masks(self, rows: NDArray[np.int64], sizes: NDArray[np.int64]) -> Runs:
        """Run-length masks of annotations of any images, on several threads; polygons are filled by COCO's rule.

        Args:
            rows: (M,) row numbers.
            sizes: (M, 2) height and width of the image of each.

        Returns:
            `counts` and `offsets`; a row without segmentation has an empty mask.

        Raises:
            InputError: A segmentation is malformed or does not fit its image.
        """
        lengths = self.span[rows, 1] - self.span[rows, 0]
        total = int(lengths.sum())
        parts = min(os.cpu_count() or 1, 4, 1 + total // _SMALL)
        # Parts of about the same number of bytes.
        cuts = [0, *np.searchsorted(np.cumsum(lengths), np.arange(1, parts) * total / parts).tolist(), len(rows)]
        if parts == 1:
            found = [self._masks(rows, sizes)]
        else:
            with ThreadPoolExecutor(parts) as pool:
                slices = [slice(start, end) for start, end in pairwise(cuts)]
                found = list(pool.map(self._masks, (rows[each] for each in slices), (sizes[each] for each in slices)))
        pieces = []
        for piece, (start, end) in zip(found, pairwise(cuts), strict=True):
            pieces.append(self._one_by_one(rows[start:end], sizes[start:end]) if piece is None else piece)
        return _joined(pieces)

    def outlines(self, rows: NDArray[np.int64], size: tuple[int, int]) -> Outlines | None:
        """The polygons of annotations, none for one that has another kind of segmentation.

        Args:
            rows: (M,) row numbers.
            size: (H, W) of their images.

        Returns:
            None if one is not understood, has fewer than three points, or leaves the image by more than `OUTSIDE`.
        """
        there = self.kind[rows] == POLYGONS
        spans = self.span[rows[there]]
        self.source.check(int((spans[:, 1] - spans[:, 0]).sum()), len(spans))
        numbers, rings, segments, wrong = json_outlines.read_polygons(self.source.data, spans)
        lengths = np.diff(rings)
        if wrong >= 0 or bool(np.any((lengths < 6) | (lengths & 1 != 0))):
            return None
        points = numbers.reshape(-1, 2)
        if bool((points < -schema.OUTSIDE).any() or (points > np.array(size[::-1]) + schema.OUTSIDE).any()):
            return None
        number = np.zeros(len(rows), np.int64)
        number[there] = np.diff(segments)
        return Outlines(points, rings // 2, np.arange(len(rings)), _offsets(number))

    def _masks(self, rows: NDArray[np.int64], sizes: NDArray[np.int64]) -> Runs | None:
        """What `masks` gives, on one thread; None if a row must be read in the general way."""
        kinds = self.kind[rows]
        # Polygons are filled together with those of images of the same size.
        keys = np.where(kinds == POLYGONS, sizes[:, 0] << 32 | sizes[:, 1], np.where(kinds == NOTHING, -2, -1))
        order = np.argsort(keys, kind="stable")
        starts = np.flatnonzero(np.diff(keys[order], prepend=-3)).tolist()
        pieces = []
        for start, end in pairwise([*starts, len(rows)]):
            chosen = order[start:end]
            piece = self._alike(int(keys[chosen[0]]), rows[chosen], sizes[chosen])
            if piece is None:
                return None
            pieces.append(piece)
        counts, offsets = _joined(pieces)
        if bool(np.all(order[:-1] < order[1:])):
            return counts, offsets
        # Back into the order of the rows.
        places = np.argsort(order)
        lengths = np.diff(offsets)[places]
        ordered = _offsets(lengths)
        return counts[np.arange(ordered[-1]) + np.repeat(offsets[places] - ordered[:-1], lengths)], ordered

    def _alike(self, key: int, rows: NDArray[np.int64], sizes: NDArray[np.int64]) -> Runs | None:
        """The masks of rows without segmentation (key -2), with run lengths (-1), or with polygons, of one size."""
        if key == -2:
            return sizes.prod(axis=1).astype(np.uint32), np.arange(len(rows) + 1)
        if key == -1:
            spans = self.span[rows]
            self.source.check(int((spans[:, 1] - spans[:, 0]).sum()), len(spans))
            counts, offsets, wrong = json_outlines.read_runs(self.source.data, spans, np.ascontiguousarray(sizes))
            return (counts, offsets) if wrong < 0 else None
        size = (int(sizes[0, 0]), int(sizes[0, 1]))
        outlines = self.outlines(rows, size)
        return None if outlines is None else rasterise(outlines, size)

    def _one_by_one(self, rows: NDArray[np.int64], sizes: NDArray[np.int64]) -> Runs:
        """What `masks` gives, in the general way."""
        pieces: list[Runs] = []
        for row, (height, width) in zip(rows.tolist(), sizes.tolist(), strict=True):
            shape = self._general(row, (height, width), lambda each: f"{self.place}[{each}]")
            if isinstance(shape, tuple):
                pieces.append(rasterise(Polygons((height, width), (shape,)).outlines(), (height, width)))
            else:
                pieces.append((shape, np.array([0, len(shape)])))
        return _joined(pieces)

    def _general(
        self, row: int, size: tuple[int, int], name: Callable[[int], str]
    ) -> tuple[Polygon, ...] | NDArray[np.uint32]:
        """Polygons or run lengths by way of msgspec.

        Raises:
            InputError: They are wrong.
        """
        self.source.check()
        begin, end = self.span[row].tolist()
        raw = msgspec.Raw(self.source.data[begin:end].tobytes())
        try:
            return schema.segmentation(raw, f"{self.place}[{row}].segmentation", size)
        except msgspec.DecodeError as error:
            raise InputError(f"{self.source.path}: {error}; expected polygons or an RLE") from error
        except InputError as error:
            raise InputError(f"{self.source.path}: {name(row)}: {error}; correct or remove it") from error


def _joined(pieces: list[Runs]) -> Runs:
    counts = np.concatenate([np.zeros(0, np.uint32), *(each for each, _ in pieces)])
    return counts, _offsets(np.concatenate([np.zeros(0, np.int64), *(np.diff(each) for _, each in pieces)]))


def _offsets(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
