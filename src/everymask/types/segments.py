"""`Segments`: every annotation and every prediction of one image, whatever the task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import numpy as np

from everymask.errors import InputError, unknown_name
from everymask.types.geometry import VOID, Geometry, LabelMap, Masks, Polygon, Polygons

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

Overlap = Literal["error", "score", "last"]


class Segments:
    """A set of N segments of one image: a category each, perhaps a score, and a geometry.

    Immutable by convention. Views are computed when asked for and are exact; a conversion that would lose something
    says so and takes a stated rule.

    Args:
        size: (H, W) of the image, or (Z, H, W) of the volume.
        category: (N,) int: category ids of the data set (inside methods: class indices).
        geometry: `LabelMap`, `Masks` or `Polygons`; None for boxes only, or for image-level tags.
        score: (N,) float in 0..1, or None for ground truth.
        box: (N, 4) float x0, y0, x1, y1 in pixels, right and bottom edge exclusive; (N, 6) x0, y0, z0, x1, y1, z1 in
            volumes. Given where the data set has its own boxes; otherwise derived from the geometry.
        crowd: (N,) bool, marks regions of many objects; default all False.
        attributes: Columns of N values each, such as ``{"difficult": ...}``.

    Raises:
        InputError: Lengths or sizes disagree, or a label map holds an id above N.
    """

    def __init__(
        self,
        size: Sequence[int],
        category: ArrayLike,
        geometry: Geometry | None = None,
        *,
        score: ArrayLike | None = None,
        box: ArrayLike | None = None,
        crowd: ArrayLike | None = None,
        attributes: Mapping[str, ArrayLike] | None = None,
    ) -> None:
        self.size: tuple[int, ...] = tuple(int(each) for each in size)
        self.category: NDArray[np.int64] = np.asarray(category, dtype=np.int64).reshape(-1)
        count = len(self.category)
        self.geometry = geometry
        self.score: NDArray[np.float64] | None = None if score is None else _column(score, np.float64, count, "score")
        self.crowd: NDArray[np.bool_] = (
            np.zeros(count, bool) if crowd is None else _column(crowd, np.bool_, count, "crowd")
        )
        self.attributes: dict[str, NDArray[Any]] = {
            name: _column(values, None, count, name) for name, values in (attributes or {}).items()
        }
        self._box: NDArray[np.float64] | None = None
        if box is not None:
            self._box = np.asarray(box, np.float64)
            expected = (count, 2 * len(self.size))
            if self._box.shape != expected and not self._box.size == count == 0:
                raise InputError(f"box has shape {self._box.shape}, expected {expected}: one row for each segment")
            self._box = self._box.reshape(expected)
        if geometry is not None and tuple(geometry.size) != self.size:
            raise InputError(f"the geometry has size {tuple(geometry.size)}, but the image {self.size}")
        if isinstance(geometry, LabelMap):
            lowest, highest = int(geometry.ids.min(initial=0)), int(geometry.ids.max(initial=0))
            if highest > count or lowest < VOID:
                wrong = highest if highest > count else lowest
                raise InputError(
                    f"the label map holds id {wrong}, but there are {count} segments; expected ids -1..{count} "
                    "(`Segments.from_label_map` numbers any labels anew)"
                )
        elif geometry is not None and len(geometry) != count:
            raise InputError(f"{len(geometry)} masks for {count} segments")

    # -- constructors ------------------------------------------------------------------------------------------------

    @classmethod
    def from_label_map(
        cls,
        ids: NDArray[Any],
        category: ArrayLike = 1,
        *,
        score: ArrayLike | None = None,
        attributes: Mapping[str, ArrayLike] | None = None,
    ) -> Self:
        """Segments of an instance label map.

        Args:
            ids: (H, W) or (Z, H, W) integers; every distinct positive value is a segment, in increasing order, 0 is
                background and negative values are void. Values need not be contiguous: the original ones are kept as
                attribute ``label`` where they differ from 1..N.
            category: One id for all, or (N,).
            score: (N,) or None.
            attributes: Further columns.
        """
        from everymask.ops.labels import compact_labels

        compact, originals = compact_labels(ids)
        count = len(originals)
        columns = dict(attributes or {})
        if not np.array_equal(originals, np.arange(1, count + 1)):
            columns.setdefault("label", originals)
        classes = _categories(category, count)
        return cls(compact.shape, classes, LabelMap(compact), score=score, attributes=columns)

    @classmethod
    def from_semantic_map(cls, classes: NDArray[Any], *, void: int | None = 255, background: int | None = None) -> Self:
        """One segment for each category id that occurs.

        Args:
            classes: (H, W) or (Z, H, W) integer category ids.
            void: Value of ignored pixels.
            background: Value that is no category but plain background, if there is one.
        """
        from everymask.ops.labels import semantic_labels

        ids, present = semantic_labels(classes, void=void, background=background)
        return cls(ids.shape, present, LabelMap(ids))

    @classmethod
    def from_panoptic_map(cls, ids: NDArray[Any], infos: Sequence[Mapping[str, Any]]) -> Self:
        """The inverse of `panoptic_map`.

        Args:
            ids: (H, W) or (Z, H, W) integers: ids of segments, 0 for background, negative for void.
            infos: ``id``, ``category_id`` and perhaps ``iscrowd`` of each segment; other entries are passed over.

        Raises:
            InputError: The map holds an id that `infos` lack, or an id is described twice or is not positive.
        """
        from everymask.ops.label_tables import renumber
        from everymask.ops.labels import compact_labels

        described = np.array([info["id"] for info in infos], np.int64)
        if len(np.unique(described)) != len(described) or bool(np.any(described <= 0)):
            raise InputError(f"panoptic segments: ids must be unique and positive, got {described.tolist()}")
        compact, originals = compact_labels(ids)
        unknown = np.setdiff1d(originals, described)
        if len(unknown):
            raise InputError(f"panoptic map: holds id {unknown[0]}, which no segment describes; set it to 0 or -1")
        # compact labels are in order of id, segments in order of description
        order = np.argsort(described)
        place = order[np.searchsorted(described, originals, sorter=order)] + 1
        targets = np.concatenate([[-1, 0], place])
        label_map = LabelMap(renumber(compact, np.arange(-1, len(originals) + 1), targets))
        crowd = [bool(info.get("iscrowd", 0)) for info in infos]
        return cls(compact.shape, [info["category_id"] for info in infos], label_map, crowd=crowd)

    @classmethod
    def from_masks(cls, masks: NDArray[Any], category: ArrayLike = 1, **columns: Any) -> Self:
        """Segments of dense masks (N, H, W), nonzero is foreground; they may overlap."""
        from everymask.ops import rle

        masks = np.asarray(masks)
        geometry = Masks(masks.shape[1:], *rle.encode(masks))
        return cls(masks.shape[1:], _categories(category, len(masks)), geometry, **columns)

    @classmethod
    def from_polygons(
        cls, size: tuple[int, int], parts: Sequence[Sequence[Polygon]], category: ArrayLike = 1, **columns: Any
    ) -> Self:
        """Segments of outlines: one sequence of polygons each."""
        geometry = Polygons(size, tuple(tuple(each) for each in parts))
        return cls(size, _categories(category, len(parts)), geometry, **columns)

    @classmethod
    def empty(cls, size: Sequence[int]) -> Self:
        """No segments at all."""
        return cls(size, np.zeros(0, np.int64), LabelMap(np.zeros(tuple(size), np.int32)), score=None)

    # -- views ---------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.category)

    def __repr__(self) -> str:
        kind = "no geometry" if self.geometry is None else type(self.geometry).__name__
        return f"Segments({len(self)} in {'x'.join(map(str, self.size))}, {kind})"

    def boxes(self) -> NDArray[np.float64]:
        """(N, 4) x0, y0, x1, y1 in pixels ((N, 6) in volumes); those given, else the tight ones of the geometry.

        Right and bottom edges are exclusive, so width = x1 - x0. A segment without pixels has a box of zeros.
        """
        if self._box is not None:
            return self._box
        from everymask.ops import labels, polygons, rle

        match self.geometry:
            case LabelMap(ids):
                return labels.label_boxes(ids, len(self)).astype(np.float64)
            case Masks(size, counts, offsets):
                return rle.boxes(counts, offsets, size).astype(np.float64)
            case Polygons():
                return polygons.polygon_boxes(self.geometry.outlines())
            case _:
                raise InputError("these segments have neither boxes nor a geometry")

    @property
    def given_boxes(self) -> NDArray[np.float64] | None:
        """(N, 4) or (N, 6) the data set's own boxes, None where `boxes` derives them from the geometry."""
        return self._box

    @property
    def has_boxes(self) -> bool:
        """Whether `boxes` can be computed: false for image-level tags."""
        return self._box is not None or self.geometry is not None

    def areas(self) -> NDArray[np.int64]:
        """(N,) number of pixels of each segment; of its box where there is no geometry."""
        from everymask.ops import labels, rle

        if self.geometry is None:
            sides = np.diff(self.boxes().reshape(len(self), 2, len(self.size)), axis=1)[:, 0]
            return np.round(sides.prod(axis=1)).astype(np.int64)
        if isinstance(self.geometry, LabelMap):
            return labels.label_areas(self.geometry.ids, len(self))
        runs = self.rles()
        return rle.areas(runs.counts, runs.offsets)

    def rles(self) -> Masks:
        """Run-length masks, exact from any geometry (polygons are rasterised by the COCO rule).

        Void, which only label maps have, belongs to no segment and is not kept; likewise in `masks` and `polygons`.

        Raises:
            InputError: The segments are boxes only, or lie in a volume.
        """
        from everymask.ops import polygons, rle

        match self.geometry:
            case Masks():
                return self.geometry
            case LabelMap(ids) if ids.ndim == 2:
                return Masks((ids.shape[0], ids.shape[1]), *rle.encode_labels(ids, len(self)))
            case Polygons():
                return Masks(self.geometry.size, *polygons.rasterise(self.geometry.outlines(), self.geometry.size))
            case LabelMap():
                raise InputError("run-length masks exist for 2-D images only; take `label_map()` of a volume")
            case _:
                raise InputError("these segments have boxes only, no masks")

    def masks(self) -> NDArray[np.bool_]:
        """Dense masks (N, H, W): N times the image in memory, so only for few segments."""
        from everymask.ops import rle

        if isinstance(self.geometry, LabelMap):
            numbers = np.arange(1, len(self) + 1).reshape(-1, *[1] * len(self.size))
            return self.geometry.ids[None] == numbers
        runs = self.rles()
        return rle.decode(runs.counts, runs.offsets, runs.size)

    def label_map(self, overlap: Overlap = "error") -> NDArray[np.int32]:
        """Label map (H, W) or (Z, H, W): segment i has id i + 1, background 0, void -1.

        Args:
            overlap: What happens where segments overlap: ``"error"``, ``"score"`` (the highest score wins, of
                equal ones the earlier segment) or ``"last"`` (the later segment lies on top).

        Raises:
            InputError: Segments overlap and `overlap` is ``"error"``, or ``"score"`` without scores.
        """
        if overlap not in get_args(Overlap):
            raise unknown_name("overlap rule", overlap, get_args(Overlap))
        if isinstance(self.geometry, LabelMap):
            return self.geometry.ids
        from everymask.ops import rle

        runs = self.rles()
        if overlap == "score":
            if self.score is None:
                raise InputError("overlap='score' needs scores; use overlap='last' for ground truth")
            order = np.argsort(-self.score, kind="stable")[::-1]  # the best is painted last, on top
        else:
            order = np.arange(len(self))
        ids, overlapping = rle.paint(runs.counts, runs.offsets, runs.size, order)
        if overlapping and overlap == "error":
            raise InputError(
                f"segments overlap in {overlapping} pixels, which a label map cannot hold; "
                "say overlap='score' (the highest score wins) or overlap='last'"
            )
        return ids

    def polygons(self) -> Polygons:
        """Outlines along the pixel edges, with holes and all parts; rasterising them gives the masks back exactly."""
        from everymask.ops import polygons

        if isinstance(self.geometry, Polygons):
            return self.geometry
        if isinstance(self.geometry, LabelMap) and self.geometry.ids.ndim == 2:
            height, width = self.geometry.ids.shape
            return Polygons.from_outlines((height, width), polygons.trace_labels(self.geometry.ids, len(self)))
        runs = self.rles()
        return Polygons.from_outlines(runs.size, polygons.trace(runs.counts, runs.offsets, runs.size))

    def semantic_map(self, *, void: int = 255, background: int = 0, overlap: Overlap = "error") -> NDArray[np.int64]:
        """(H, W) category ids, `background` where no segment lies, `void` on ignored pixels."""
        ids = self.label_map(overlap)
        table = np.concatenate([[void, background], self.category]).astype(np.int64)
        return table[ids + 1]

    def panoptic_map(self, overlap: Overlap = "error") -> tuple[NDArray[np.int32], list[dict[str, Any]]]:
        """The label map, and for each segment a dictionary with ``id``, ``category_id``, ``iscrowd`` and ``area``."""
        from everymask.ops.labels import label_areas

        ids = self.label_map(overlap)
        areas = label_areas(ids, len(self))  # of what is visible where segments overlap
        infos = [
            {"id": i + 1, "category_id": int(self.category[i]), "iscrowd": int(self.crowd[i]), "area": int(areas[i])}
            for i in range(len(self))
        ]
        return ids, infos

    # -- derived segments ----------------------------------------------------------------------------------------------

    def probable(self, least: float) -> Segments:
        """Those with a score of `least` or more; all where there are no scores, or the least one is 0."""
        return self if self.score is None or least <= 0 else self[self.score >= least]

    def __getitem__(self, index: Any) -> Segments:
        """The segments that a slice, a boolean (N,) or an integer array selects, in that order.

        Raises:
            InputError: One is chosen twice, which a label map cannot hold.
        """
        chosen = np.arange(len(self))[index].reshape(-1)
        geometry: Geometry | None
        match self.geometry:
            case LabelMap(ids):
                if len(np.unique(chosen)) < len(chosen):
                    raise InputError("a label map cannot hold a segment twice; choose from segments with masks instead")
                table = np.zeros(len(self) + 2, np.int32)
                table[0] = VOID
                table[chosen + 2] = np.arange(1, len(chosen) + 1)
                geometry = LabelMap(table[ids + 1])
            case Masks(size):
                geometry = Masks.join(size, [self.geometry[int(i)] for i in chosen])
            case Polygons(size, parts):
                geometry = Polygons(size, tuple(parts[i] for i in chosen))
            case _:
                geometry = None
        return Segments(
            self.size,
            self.category[chosen],
            geometry,
            score=None if self.score is None else self.score[chosen],
            box=None if self._box is None else self._box[chosen],
            crowd=self.crowd[chosen],
            attributes={name: values[chosen] for name, values in self.attributes.items()},
        )

    def plane(self, number: int) -> Segments:
        """What lies in one plane (H, W) of a volume, numbered anew; boxes of the data set are not taken over.

        Args:
            number: Of the plane, from 0.

        Raises:
            InputError: It is no volume with a label map.
        """
        if not isinstance(self.geometry, LabelMap) or self.geometry.ids.ndim != 3:
            raise InputError(f"planes are those of the label map of a volume, and this is {self!r}")
        ids = self.geometry.ids[number]
        present = np.bincount(ids.ravel() + 1, minlength=len(self) + 2)[2:] > 0
        flat = Segments(
            ids.shape,
            self.category,
            LabelMap(ids),
            score=self.score,
            crowd=self.crowd,
            attributes=self.attributes,
        )
        return flat[present]

    def with_category(self, category: ArrayLike) -> Segments:
        """The same segments with other categories (N,)."""
        return Segments(
            self.size,
            category,
            self.geometry,
            score=self.score,
            box=self._box,
            crowd=self.crowd,
            attributes=self.attributes,
        )


def _column(values: ArrayLike, kind: Any, count: int, name: str) -> NDArray[Any]:
    """`values` as an array of `count` entries."""
    column = np.asarray(values, dtype=kind)
    if column.shape[:1] != (count,):
        raise InputError(f"{name} has shape {column.shape}, but there are {count} segments")
    return column


def _categories(category: ArrayLike, count: int) -> NDArray[np.int64]:
    """One category for all of `count` segments, or one each."""
    classes = np.asarray(category, np.int64)
    if classes.shape not in ((), (count,)):
        raise InputError(f"category has shape {classes.shape}, but there are {count} segments")
    return np.broadcast_to(classes, (count,))
