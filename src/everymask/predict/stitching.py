"""Joining the segments of overlapping tiles into those of the image (see `everymask.predict.tiling` for the tiles)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from everymask.types import LabelMap, Masks, Polygon, Polygons, Segments
from everymask.types.geometry import VOID

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from numpy.typing import NDArray

    from everymask.predict.tiling import Tile
    from everymask.types.geometry import Geometry

TOLERANCE = 2.0
"""Pixels by which the centre of one object may differ between two tiles (rounding of outputs that are almost equal)."""
SAME = 0.5
"""Above this share of common pixels two objects are one and the same."""


def stitch(
    parts: Iterable[tuple[Tile, Segments]],
    size: tuple[int, ...],
    classes: int,
    semantic: bool,
    class_agnostic: bool = False,
    stuff: Collection[int] = (),
) -> tuple[Segments, int]:
    """Joins the segments of tiles.

    Args:
        parts: Tiles, at least one, and the segments found in each, in the pixels of the tile; consumed one by one.
        size: (H, W) of the image, or (D, H, W) of the volume.
        classes: Number of categories K.
        semantic: Whether every pixel has one class and there are no objects.
        class_agnostic: Whether boxes or masks of different classes may be one object, seen in two tiles.
        stuff: Of label maps, classes that are no objects: those of an image are one segment.

    Returns:
        The segments of the image, and the number of objects that an inner edge of their tile has cut off.
    """
    stitcher: SemanticStitcher | LabelStitcher | PanopticStitcher | MaskStitcher | None = None
    for tile, segments in parts:
        if stitcher is None:
            if semantic:
                stitcher = SemanticStitcher(size, classes)
            elif not isinstance(segments.geometry, LabelMap):
                stitcher = MaskStitcher((size[0], size[1]), class_agnostic)
            else:
                stitcher = PanopticStitcher(size, classes, stuff) if stuff else LabelStitcher(size)
        stitcher.add(tile, segments)
    if stitcher is None:
        raise ValueError("there are no tiles to stitch")
    return stitcher.result(), stitcher.cut


class SemanticStitcher:
    """Joins class maps: each pixel comes from the tile whose core holds it (a block of `blend` is core only).

    The score of a segment is the mean of the tiles' scores, weighted by the pixels they contribute.

    Args:
        size: (H, W) of the image.
        classes: Number of categories K.
    """

    def __init__(self, size: tuple[int, ...], classes: int) -> None:
        self._canvas = np.zeros(size, np.int32)  # class + 1, 0 background, -1 void
        self._pixels = np.zeros(classes)
        self._score = np.zeros(classes)
        self.cut = 0

    def add(self, tile: Tile, segments: Segments) -> None:
        """Takes over the core of a tile."""
        ids = segments.label_map("last")[tile.core]
        table = np.concatenate([[VOID, 0], segments.category + 1]).astype(np.int32)
        self._canvas[tile.window][tile.core] = table[ids + 1]
        if segments.score is not None:
            pixels = np.bincount(ids[ids > 0], minlength=len(segments) + 1)[1:]
            np.add.at(self._pixels, segments.category, pixels)
            np.add.at(self._score, segments.category, pixels * segments.score)

    def result(self) -> Segments:
        """One segment for each class that occurs, in order of class."""
        from everymask.ops.label_tables import distinct

        present = distinct(self._canvas)
        present = present[present > 0]
        table = np.zeros(int(present.max(initial=0)) + 2, np.int32)
        table[0] = VOID
        table[present + 1] = np.arange(1, len(present) + 1)
        for row in self._canvas:  # in place, since a large image has no room for several canvases
            row[:] = table[row + 1]
        scored = self._pixels.any() or not len(present)
        score = self._score[present - 1] / np.maximum(self._pixels[present - 1], 1) if scored else None
        return Segments(self._canvas.shape, present - 1, LabelMap(self._canvas), score=score)


class LabelStitcher:
    """Joins label maps object by object.

    Candidates are objects whose centre lies in the core, or so near it that rounding may have moved it across. A
    candidate that shares more than half of the smaller one's pixels with an object of an earlier tile is the same
    object: the one with the higher score stays. Where different objects meet, the higher score wins the pixel.

    Args:
        size: (H, W) of the image, or (D, H, W) of the volume.

    Attributes:
        cut: Number of objects that an inner edge of their tile has cut off.
    """

    def __init__(self, size: tuple[int, ...]) -> None:
        self._canvas = np.zeros(size, np.int32)
        self._score = np.zeros(0)
        self._area = np.zeros(0, np.int64)
        self._box = np.zeros((0, 2 * len(size)), np.int64)
        self._parts: list[Segments] = []
        self.cut = 0

    def add(self, tile: Tile, segments: Segments) -> None:
        """Takes over the objects of a tile."""
        from everymask.ops.labels import label_areas, label_boxes
        from everymask.ops.stitch import paste_labels

        ids = segments.label_map()
        window = self._canvas[tile.window]
        core = tile.core
        window[core][(ids[core] == VOID) & (window[core] == 0)] = VOID

        boxes, areas = label_boxes(ids, len(segments)), label_areas(ids, len(segments))
        score = np.zeros(len(segments)) if segments.score is None else segments.score
        candidates = (areas > 0) & _in_core(tile, boxes, TOLERANCE)
        kept = np.flatnonzero(self._settle_doubles(window, ids, areas, score, candidates))

        numbers = np.zeros(len(segments) + 2, np.int32)  # of the tile's labels -1, 0, 1, ... on the canvas
        numbers[kept + 2] = len(self._score) + np.arange(1, len(kept) + 1)
        self.cut += int(_reaches_inner_edge(tile, boxes[kept], self._canvas.shape).sum())
        self._score = np.concatenate([self._score, score[kept]])
        self._area = np.concatenate([self._area, areas[kept]])
        self._box = np.concatenate([self._box, boxes[kept] + np.array(tile.origin[::-1] * 2)])
        self._parts.append(_columns(segments, kept))
        paste_labels(window, numbers[ids + 1], self._score)

    def _settle_doubles(
        self,
        window: NDArray[np.int32],
        ids: NDArray[np.int32],
        areas: NDArray[np.int64],
        score: NDArray[np.float64],
        candidates: NDArray[np.bool_],
    ) -> NDArray[np.bool_]:
        """The candidates (N,) to keep; objects on the canvas that lose against one of them are erased."""
        from everymask.ops.labels import label_overlap

        here, there, pixels = label_overlap(ids, window)
        both = (here > 0) & (there > 0)
        here, there, pixels = here[both] - 1, there[both] - 1, pixels[both]
        same = candidates[here] & (pixels > SAME * np.minimum(areas[here], self._area[there]))
        here, there = here[same], there[same]
        keep = candidates.copy()
        keep[here[self._score[there] >= score[here]]] = False
        for index in there[keep[here]]:
            low, high = self._box[index].reshape(2, -1)[:, ::-1].tolist()
            erased = self._canvas[tuple(slice(*each) for each in zip(low, high, strict=True))]
            erased[erased == index + 1] = 0
        return keep

    def result(self) -> Segments:
        """All objects that have pixels, numbered 1..N in order of tiles."""
        whole = _joined(self._parts, self._canvas.shape, LabelMap(self._canvas))
        visible = whole.areas() > 0
        return whole if visible.all() else whole[visible]


class PanopticStitcher:
    """Joins label maps of things and stuff: things object by object, stuff pixel by pixel where no thing lies.

    Args:
        size: (H, W) of the image.
        classes: Number of categories K.
        stuff: Those of them that are no objects.
    """

    def __init__(self, size: tuple[int, ...], classes: int, stuff: Collection[int]) -> None:
        self._is_stuff = np.isin(np.arange(classes), list(stuff))
        self._things, self._stuff = LabelStitcher(size), SemanticStitcher(size, classes)

    @property
    def cut(self) -> int:
        """Number of things that an inner edge of their tile has cut off."""
        return self._things.cut

    def add(self, tile: Tile, segments: Segments) -> None:
        """Takes over the things of a tile, and the stuff of its core."""
        of_stuff = self._is_stuff[segments.category]
        self._things.add(tile, segments[~of_stuff])
        self._stuff.add(tile, segments[of_stuff])

    def result(self) -> Segments:
        """All things that have pixels, in order of tiles, and then one segment for each class of stuff."""
        things, stuff = self._things.result(), self._stuff.result()
        ids, ground = things.label_map().copy(), stuff.label_map()
        ids[:] = np.where((ids == 0) & (ground > 0), ground + len(things), ids)
        scores = [each.score for each in (things, stuff) if each.score is not None]
        whole = Segments(
            ids.shape,
            np.concatenate([things.category, stuff.category]),
            LabelMap(ids),
            score=np.concatenate(scores) if len(scores) == 2 else None,
        )
        visible = whole.areas() > 0
        return whole if visible.all() else whole[visible]


class MaskStitcher:
    """Joins masks, polygons and boxes, which may overlap.

    Candidates are as in `LabelStitcher`. Two candidates of different tiles are the same object if both have their
    centre at a core border, the same category, and boxes with an intersection over union above one half.

    Args:
        size: (H, W) of the image.
        class_agnostic: Whether their categories may differ; the more probable one counts.

    Attributes:
        cut: Number of objects that an inner edge of their tile has cut off.
    """

    def __init__(self, size: tuple[int, int], class_agnostic: bool = False) -> None:
        self._size, self._class_agnostic = size, class_agnostic
        self._parts: list[Segments] = []
        self._boxes: list[NDArray[np.float64]] = []
        self._geometries: list[Geometry | None] = []
        self._at_border: list[NDArray[np.bool_]] = []
        self.cut = 0

    def add(self, tile: Tile, segments: Segments) -> None:
        """Takes over the objects of a tile."""
        top, left = tile.rows.start, tile.columns.start
        boxes = segments.boxes()
        kept = np.flatnonzero(_in_core(tile, boxes, TOLERANCE))
        boxes = boxes[kept]
        self.cut += int(_reaches_inner_edge(tile, boxes, self._size).sum())
        self._at_border.append(~_in_core(tile, boxes, -TOLERANCE))
        self._boxes.append(boxes + np.array([left, top, left, top]))
        self._parts.append(_columns(segments, kept))
        self._geometries.append(_moved(segments[kept].geometry, self._size, (top, left)))

    def result(self) -> Segments:
        """All objects, without those found twice, in order of tiles."""
        from everymask.ops.boxes import box_iou

        boxes = np.concatenate(self._boxes)
        whole = _joined(self._parts, self._size, _joined_geometry(self._geometries, self._size), boxes)
        score = np.zeros(len(whole)) if whole.score is None else whole.score
        tile = np.repeat(np.arange(len(self._parts)), [len(part) for part in self._parts])
        doubtful = np.flatnonzero(np.concatenate(self._at_border))
        dropped = np.zeros(len(whole), bool)
        for index in doubtful[np.argsort(-score[doubtful], kind="stable")]:
            if not dropped[index]:
                alike = self._class_agnostic | (whole.category[doubtful] == whole.category[index])
                others = doubtful[alike & (tile[doubtful] != tile[index])]
                dropped[others[box_iou(boxes[index][None], boxes[others], pairwise=True)[0] > SAME]] = True
        return whole[~dropped]


def _in_core(tile: Tile, boxes: NDArray[Any], tolerance: float) -> NDArray[np.bool_]:
    """(N,): whether the centres of boxes (N, 4) or (N, 6) of a tile lie in its core, widened by `tolerance` pixels."""
    inside = np.ones(len(boxes), bool)
    for span, (low, high) in zip(tile.spans, _sides(boxes), strict=True):
        centre = (low + high) / 2 + span.start
        inside &= (centre >= span.core_start - tolerance) & (centre < span.core_stop + tolerance)
    return inside


def _reaches_inner_edge(tile: Tile, boxes: NDArray[Any], size: Sequence[int]) -> NDArray[np.bool_]:
    """(N,): whether boxes (N, 4) or (N, 6) of a tile touch an edge of it that is no edge of the image."""
    touching = np.zeros(len(boxes), bool)
    for span, (low, high), length in zip(tile.spans, _sides(boxes), size, strict=True):
        touching |= (low <= 0) & (span.start > 0)
        touching |= (high >= span.stop - span.start) & (span.stop < length)
    return touching


def _sides(boxes: NDArray[Any]) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """Low and high ends (N,) of boxes along each axis of the image; boxes begin with the last axis."""
    axes = boxes.shape[1] // 2
    return [(boxes[:, axes - 1 - axis], boxes[:, 2 * axes - 1 - axis]) for axis in range(axes)]


def _columns(segments: Segments, index: NDArray[np.int64]) -> Segments:
    """Category, score, crowd and attributes of some segments, without the geometry."""
    return Segments(
        segments.size,
        segments.category[index],
        score=None if segments.score is None else segments.score[index],
        crowd=segments.crowd[index],
        attributes={name: values[index] for name, values in segments.attributes.items()},
    )


def _joined(
    parts: list[Segments], size: Sequence[int], geometry: Geometry | None, boxes: NDArray[np.float64] | None = None
) -> Segments:
    """Segments with the columns of all parts one after the other, as far as all parts have them."""
    scores = [part.score for part in parts if part.score is not None]
    names = [name for name in parts[0].attributes if all(name in part.attributes for part in parts)]
    return Segments(
        size,
        np.concatenate([part.category for part in parts]),
        geometry,
        score=np.concatenate(scores) if len(scores) == len(parts) else None,
        box=boxes,
        crowd=np.concatenate([part.crowd for part in parts]),
        attributes={name: np.concatenate([part.attributes[name] for part in parts]) for name in names},
    )


def _moved(geometry: Geometry | None, size: tuple[int, int], origin: tuple[int, int]) -> Geometry | None:
    """The geometry of a tile that begins at `origin` in the pixels of the image."""
    from everymask.ops.stitch import shift_runs

    match geometry:
        case Masks():
            return Masks(size, *shift_runs(geometry.counts, geometry.offsets, geometry.size, size, origin))
        case Polygons():
            by = np.array(origin[::-1], np.float64)
            moved = (
                tuple(Polygon(each.exterior + by, tuple(hole + by for hole in each.holes)) for each in part)
                for part in geometry.parts
            )
            return Polygons(size, tuple(moved))
        case _:
            return None


def _joined_geometry(geometries: list[Geometry | None], size: tuple[int, int]) -> Geometry | None:
    """The masks or polygons of all tiles one after the other."""
    if all(isinstance(each, Masks) for each in geometries):
        return Masks.join(size, [runs for each in geometries if isinstance(each, Masks) for runs in each])
    if all(isinstance(each, Polygons) for each in geometries):
        return Polygons(size, tuple(part for each in geometries if isinstance(each, Polygons) for part in each.parts))
    return None
