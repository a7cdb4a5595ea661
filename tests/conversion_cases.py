"""Random data sets of everything that `Segments` can hold, and what two data sets differ in."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everymask.formats.description import Feature
from everymask.formats.fidelity import POINTS_BESIDE
from everymask.types import Categories, Category, Dataset, LabelMap, Masks, Polygon, Polygons, Sample, Segments, Task

SIZE = (26, 34)
"""(H, W) of the images."""

ATTRIBUTES: dict[str, Sequence[Any]] = {
    "flag": (True, False),
    "count": (-3, 0, 7, 2**40),
    "share": (0.1, 1 / 3, -2.5e-7, 1e300),
    "note": ("", "a", "ä \"quoted\" <tag> & 'x'", "two words", "1", "true", "null"),
    "sometimes": (None, 3, "x"),
    "list": ([1, "a", None], [], [{"k": 0.5}]),
    "dict": ({"k": [1, 2]}, {"": {}}),
}
"""Name -> values of columns: of one type each, of several, lacking in some rows, nested."""


# -- data sets ---------------------------------------------------------------------------------------------------------


def ring(rng: np.random.Generator, size: tuple[int, int], digits: int | None) -> NDArray[np.float64]:
    """(K, 2) points about a centre, in order of their angle, so that the ring does not cross itself."""
    number = int(rng.integers(3, 9))
    centre = rng.uniform(4, np.array(size[::-1]) - 4)
    angles = np.sort(rng.uniform(0, 2 * np.pi, number))
    radii = rng.uniform(2, 9, number)
    points = centre + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    points = np.clip(points, 0, size[::-1])
    return points if digits is None else np.round(points, digits)


def square(x: float, y: float, side: float) -> NDArray[np.float64]:
    """(4, 2) corners."""
    return np.array([(x, y), (x + side, y), (x + side, y + side), (x, y + side)], np.float64)


def plain_polygons(rng: np.random.Generator, count: int, *, digits: int | None = None) -> Polygons:
    """One ring each; they overlap now and then."""
    return Polygons(SIZE, tuple((Polygon(ring(rng, SIZE, digits)),) for _ in range(count)))


def parted_polygons(rng: np.random.Generator, count: int) -> Polygons:
    """Up to three rings each."""
    return Polygons(
        SIZE, tuple(tuple(Polygon(ring(rng, SIZE, 2)) for _ in range(int(rng.integers(1, 4)))) for _ in range(count))
    )


def holed_polygons(rng: np.random.Generator, count: int) -> Polygons:
    """Squares, some with a square hole and some with a further part."""
    parts = []
    for _ in range(count):
        x, y = rng.integers(0, SIZE[1] - 14), rng.integers(0, SIZE[0] - 10)
        holes = (square(x + 3, y + 3, 3),) if rng.random() < 0.7 else ()
        further = (Polygon(square(x + 11, y, 2)),) if rng.random() < 0.5 else ()
        parts.append((Polygon(square(x, y, 9), holes), *further))
    return Polygons(SIZE, tuple(parts))


def masks(rng: np.random.Generator, count: int) -> Masks:
    """Ragged discs that overlap, one perhaps empty, one perhaps the whole image."""
    rows, columns = np.indices(SIZE)
    found = np.zeros((count, *SIZE), bool)
    for each in found:
        y, x = rng.uniform(0, SIZE[0]), rng.uniform(0, SIZE[1])
        each[:] = ((rows - y) ** 2 + (columns - x) ** 2 < rng.uniform(4, 60)) & (rng.random(SIZE) < 0.9)
    if count:
        found[rng.integers(count)] = rng.random() < 0.5
    return Segments.from_masks(found).rles()


def label_map(rng: np.random.Generator, count: int, size: tuple[int, ...] = SIZE, *, void: bool = False) -> LabelMap:
    """Blobs that touch, each perhaps in pieces; some ids may have no pixel."""
    ids = np.zeros(size, np.int32)
    grid = np.stack(np.indices(size))
    for number in range(1, count + 1):
        centre = rng.uniform(0, size).reshape(-1, *[1] * len(size))
        ids[((grid - centre) ** 2).sum(axis=0) < rng.uniform(2, 50)] = number
    if void:
        ids[rng.random(size) < 0.1] = -1
    return LabelMap(ids)


def boxes(rng: np.random.Generator, count: int, *, digits: int | None = 2) -> NDArray[np.float64]:
    """(N, 4) x0, y0, x1, y1."""
    corners = rng.uniform(0, 1, (count, 2, 2)) * SIZE[::-1]
    corners.sort(axis=1)
    corners = corners.reshape(-1, 4)
    return corners if digits is None else np.round(corners, digits)


def columns(rng: np.random.Generator, count: int, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Random values of `ATTRIBUTES`."""
    from everymask.formats.columns import attribute_column

    return {name: attribute_column([ATTRIBUTES[name][i] for i in rng.integers(len(ATTRIBUTES[name]), size=count)])
            for name in names}  # fmt: skip


SAMPLES = ("a", "b/a", "B/a.b", "ä ö/ß.x", "c d'e", "10", "9")
"""Names of samples: one name in two folders, dots, other alphabets, spaces, quotes, and an order of their own."""


def dataset(
    segments: Sequence[Segments | None],
    categories: Categories,
    tasks: frozenset[Task],
    *,
    names: Sequence[str] = SAMPLES,
    extras: Sequence[dict[str, Any]] = (),
    images: Sequence[NDArray[Any]] = (),
) -> Dataset:
    """A data set in memory; its images are noise."""

    def make(i: int) -> Sample:
        each = segments[i]
        size = SIZE if each is None else each.size
        pixels = images[i] if images else np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8)
        read: Callable[[], Segments] | None = None if each is None else (lambda: each)
        return Sample(names[i], lambda: pixels, read, None, dict(extras[i]) if extras else {})

    return Dataset.of([make(i) for i in range(len(segments))], categories, tasks)


# -- what formats change beyond `Feature` ------------------------------------------------------------------------------

NAMES = "names of samples"
IDS_OF_OBJECTS = "ids of objects, which are counted anew where two are the same"
IDENTITY = ("height", "width")
ORDER = "order of samples"
CLASSES = Feature.CLASSES
ORDER_OF_CLASSES = "order of classes"
FIXED_CLASSES = "which classes there are"
ORDER_OF_OBJECTS = "order of objects"
LAST_BIT = "the last bit of points, which pixels may hang on"
EDGES = "pixels at the edges of polygons, which are drawn by another rule"
EMPTY = Feature.EMPTY
BACKGROUND = Feature.BACKGROUND
HOLE_POINTS = POINTS_BESIDE
PART_POINTS = POINTS_BESIDE
UNSAID: dict[str, frozenset[str]] = {
    "image_folder": frozenset({ORDER, ORDER_OF_CLASSES}),
    "ade20k": frozenset({ORDER}),
    # These number their frames; only groups of things are crowds in Cityscapes.
    "cityscapes": frozenset({NAMES, ORDER, FIXED_CLASSES, ORDER_OF_OBJECTS, EDGES, Feature.CROWDS}),
    # A class that is the only one loses but its name.
    "ctc": frozenset({NAMES, CLASSES}),
    # Ids that colours cannot hold are made anew.
    "coco_panoptic": frozenset({IDS_OF_OBJECTS, *(f"extra {each}" for each in IDENTITY)}),
    # Files are in the natural order of their names.
    "segmentation_mask": frozenset({ORDER}),
    "voc": frozenset({ORDER}),
    "yolo": frozenset({ORDER, LAST_BIT}),
    "label_images": frozenset({ORDER}),
    # A part is a folder there; images that do not lie in one have none.
    "coco_stuff": frozenset({ORDER, FIXED_CLASSES, ORDER_OF_OBJECTS, "extra split"}),
    # Masks and polygons of one image become masks when they are read.
    "coco": frozenset({IDS_OF_OBJECTS, *(f"extra {each}" for each in IDENTITY)}),
    "labelme": frozenset({ORDER}),
}
"""Format -> what else it changes, which its `write` tells."""


# -- comparison --------------------------------------------------------------------------------------------------------


def differences(source: Dataset, result: Dataset, lost: set[str]) -> Iterator[str]:
    """What `result` has lost of `source` although it is not among `lost`."""
    if CLASSES not in lost:
        yield from _of_categories(source.categories, result.categories, lost)
    if len(source) != len(result):
        yield f"images: {len(source)} -> {len(result)}"
        return
    if NAMES in lost:
        pairs = [(one, next(each for each in result if np.array_equal(each.image, one.image))) for one in source]
    else:
        found = {each.name: each for each in result}
        names = [_new_name(each, source.categories, result.format, found) for each in source]
        if set(names) != set(found):
            yield f"names: {[each.name for each in source]} -> {list(found)}"
            return
        if ORDER not in lost and len({each.extra.get("split") for each in source}) == 1 and names != list(found):
            yield f"order: {names} -> {list(found)}"
        pairs = [(one, found[name]) for one, name in zip(source, names, strict=True)]
    for one, other in pairs:
        for each in _of_samples(one, other, source.categories, result.categories, lost):
            yield f"{one.name}: {each}"


def _new_name(sample: Sample, categories: Categories, format: str, found: Container[str]) -> str:
    """What a sample is called in another format: a name is a place in some."""
    name, split = sample.name, sample.extra.get("split")
    if format == "image_folder" and sample.segments is not None:
        label = categories.by_id(int(sample.segments.category[0])).name
        rest = name.removeprefix(f"{split}/").removeprefix(f"{label}/").replace("/", "_")
        return f"{split}/{label}/{rest}" if split else f"{label}/{rest}"
    if format == "ade20k":
        return f"{split or 'training'}/{name.removeprefix(f'{split}/')}"
    # Where parts are opened as one, names begin with the part.
    return name if name in found else f"{split}/{name}"


def _of_categories(one: Categories, other: Categories, lost: set[str]) -> Iterator[str]:
    if one.names != other.names:
        sorted_only = ORDER_OF_CLASSES in lost and sorted(one.names) == other.names
        if not sorted_only and not (FIXED_CLASSES in lost and set(one.names) <= set(other.names)):
            yield f"class names: {one.names} -> {other.names}"
        return
    if Feature.IDS not in lost:
        # Ids that merely count may count from elsewhere in a format that has its own numbers; see find_losses.
        counted = [list(range(start, start + len(one))) for start in (0, 1)]
        if one.ids.tolist() != other.ids.tolist() and one.ids.tolist() not in counted:
            yield f"class ids: {one.ids.tolist()} -> {other.ids.tolist()}"
    for feature, field in (
        (Feature.COLOURS, "colour"),
        (Feature.SUPERCATEGORIES, "supercategory"),
        (Feature.STUFF, "is_thing"),
    ):
        before, after = ([getattr(each, field) for each in categories] for categories in (one, other))
        if feature not in lost and any(a is not None and a != b for a, b in zip(before, after, strict=True)):
            yield f"{field}: {before} -> {after}"


def _of_samples(one: Sample, other: Sample, before: Categories, after: Categories, lost: set[str]) -> Iterator[str]:
    if not np.array_equal(one.image, other.image) or one.image.dtype != other.image.dtype:
        yield f"image: {one.image.dtype} {one.image.shape} -> {other.image.dtype} {other.image.shape}"
    if Feature.EXTRA not in lost:
        for key, value in one.extra.items():
            if key == "image_id" or f"extra {key}" in lost:
                continue  # counted anew
            if key not in other.extra or other.extra[key] != value or type(other.extra[key]) is not type(value):
                yield f"extra {key}: {value!r} -> {other.extra.get(key)!r}"
    mine, theirs = one.segments, other.segments
    if mine is None or theirs is None:
        if ((mine is None) != (theirs is None) and Feature.UNANNOTATED not in lost) or (
            theirs is not None and len(theirs)
        ):
            yield f"annotation: {mine} -> {theirs}"
        return
    yield from of_segments(mine, theirs, before, after, lost)


def of_segments(one: Segments, other: Segments, before: Categories, after: Categories, lost: set[str]) -> Iterator[str]:
    """What segments have lost although it is not among `lost`."""
    if one.size != other.size:
        yield f"size: {one.size} -> {other.size}"
        return
    drawn = one.geometry is not None and other.geometry is not None
    if drawn and Feature.OBJECTS not in lost and not lost.isdisjoint({EMPTY, Feature.OVERLAP}):
        one, other = _with_pixels(one, other, lost)
    if EDGES in lost and isinstance(one.geometry, Polygons):
        return
    if ORDER_OF_OBJECTS in lost and Feature.OVERLAP in lost:
        one = Segments(one.size, one.category, LabelMap(one.label_map("last")), attributes=one.attributes)
    if ORDER_OF_OBJECTS in lost and len(one) == len(other):
        one, other = _in_order(one), _in_order(other)
    names, others = ([categories.by_id(int(each)).name for each in segments.category]
                     for categories, segments in ((before, one), (after, other)))  # fmt: skip
    if CLASSES in lost:
        names = others if len(names) == len(others) else names
    if Feature.OBJECTS in lost:
        if Feature.OVERLAP in lost or not lost.isdisjoint({Feature.HOLES, Feature.PARTS}):
            return
        for name in dict.fromkeys(names):
            a = one.masks()[np.array(names) == name].any(axis=0)
            b = other.masks()[np.array(others, object) == name].any(axis=0)
            if not np.array_equal(a, b):
                yield f"pixels of {name}: {a.sum()} -> {b.sum()}"
        return
    bare = one.geometry is None
    if (Feature.BOXES in lost and bare and one.has_boxes) or (Feature.TAGS in lost and bare and not one.has_boxes):
        return
    if names != others:
        yield f"classes: {names} -> {others}"
        return
    if Feature.SCORES not in lost and len(one):
        a, b = (None if each.score is None else each.score.tolist() for each in (one, other))
        if a != b:
            yield f"scores: {a} -> {b}"
    if Feature.CROWDS not in lost and one.crowd.tolist() != other.crowd.tolist():
        yield f"crowds: {one.crowd.tolist()} -> {other.crowd.tolist()}"
    yield from _of_attributes(one, other, lost)
    if len(one):
        yield from _of_boxes(one, other, lost)
    if one.geometry is not None and Feature.MASKS not in lost:
        yield from _of_geometry(one, other, lost)


def _with_pixels(one: Segments, other: Segments, lost: set[str]) -> tuple[Segments, Segments]:
    """Both without the objects that have no pixel, or none on top of the others where those are lost."""
    if Feature.OVERLAP in lost:
        ids = one.label_map("last")
        seen = np.bincount(ids[ids > 0], minlength=len(one) + 1)[1:] > 0
    else:
        seen = one.areas() > 0
    # Formats may keep the others, too.
    return one[seen], other[seen] if len(other) == len(one) else other


def _in_order(segments: Segments) -> Segments:
    """In the order of their first pixels."""
    if not len(segments):
        return segments
    masks = segments.masks().reshape(len(segments), -1)
    return segments[np.argsort(masks.argmax(axis=1), kind="stable")]


def _of_attributes(one: Segments, other: Segments, lost: set[str]) -> Iterator[str]:
    if not len(one):
        return
    for name, column in one.attributes.items():
        if (
            f"the attribute {name!r}" in lost
            or (name == "id" and IDS_OF_OBJECTS in lost)
            or all(each is None for each in column.tolist())
        ):
            continue
        # CVAT's own columns go first; see `everymask.formats.cvat_write`.
        found_as = name if name in other.attributes else f"attribute:{name}"
        if found_as not in other.attributes:
            yield f"attribute {name}: gone, was {column.tolist()}"
            continue
        values, found = column.tolist(), other.attributes[found_as].tolist()
        numbers = all(type(each) in {int, float} for each in [*values, *found])
        if values != found or not (numbers or [type(each) for each in values] == [type(each) for each in found]):
            yield f"attribute {name}: {values} -> {found}"


def _of_boxes(one: Segments, other: Segments, lost: set[str]) -> Iterator[str]:
    if not one.has_boxes:
        if other.has_boxes:
            yield "tags became objects"
        return
    if not other.has_boxes:
        yield "no boxes"
        return
    if one.geometry is not None and not lost.isdisjoint(
        {Feature.OWN_BOXES, Feature.OVERLAP, Feature.HOLES, Feature.PARTS}
    ):
        return
    wanted, found = one.boxes(), other.boxes()
    # Boxes that are those of the outlines may be left out, even where they were given: see BOX_TOLERANCE.
    tolerance = 1e-8 if one.given_boxes is None or one.geometry is None else 0.5
    if np.abs(wanted - found).max() > tolerance:
        tight = None if one.geometry is None else Segments(one.size, one.category, one.rles()).boxes()
        drawn = not lost.isdisjoint({Feature.POINTS, HOLE_POINTS, PART_POINTS})
        if tight is None or not drawn or not np.array_equal(tight, found):
            yield f"boxes: {wanted.tolist()} -> {found.tolist()}"


def _of_geometry(one: Segments, other: Segments, lost: set[str]) -> Iterator[str]:
    if other.geometry is None:
        if len(one) and bool(one.areas().any()):
            yield f"geometry: {one} -> {other}"
        return
    void, found = (each.geometry.ids < 0 if isinstance(each.geometry, LabelMap) else np.zeros(one.size, bool)
                   for each in (one, other))  # fmt: skip
    # What is void anyway is void where background is void, too.
    kept = not (void & ~found).any() if BACKGROUND in lost else np.array_equal(void, found)
    if Feature.VOID not in lost and not kept:
        yield f"void: {void.sum()} -> {found.sum()}"
    if not len(one):
        return
    if isinstance(one.geometry, Polygons) and Feature.POINTS not in lost:
        yield from _of_points(one.geometry, other.geometry, lost)
        if LAST_BIT in lost:
            return
    if not lost.isdisjoint({Feature.HOLES, Feature.PARTS}):
        return
    if Feature.OVERLAP in lost:
        mine = one.label_map("last")
        theirs = other.label_map("last")
        same = np.array_equal(np.maximum(mine, 0), np.maximum(theirs, 0))
    else:
        mine, theirs = one.masks(), other.masks()
        same = np.array_equal(mine, theirs)
    if not same:
        yield f"pixels: {(mine != theirs).sum()} differ"


def _of_points(one: Polygons, other: Any, lost: set[str]) -> Iterator[str]:
    if any(part.holes for parts in one.parts for part in parts) and not lost.isdisjoint({Feature.HOLES, HOLE_POINTS}):
        return
    if any(len(parts) > 1 for parts in one.parts) and not lost.isdisjoint({Feature.PARTS, PART_POINTS}):
        return
    if not isinstance(other, Polygons):
        yield f"points: Polygons -> {type(other).__name__}"
        return
    for i, (mine, theirs) in enumerate(zip(one.parts, other.parts, strict=True)):
        rings, found = ([[part.exterior, *part.holes] for part in parts] for parts in (mine, theirs))
        if list(map(len, rings)) != list(map(len, found)):
            yield f"points: object {i} has rings {list(map(len, rings))} -> {list(map(len, found))}"
            return
        for part, twin in zip(rings, found, strict=True):
            for a, b in zip(part, twin, strict=True):
                if a.shape != b.shape or np.abs(a - b).max() > 1e-9:
                    yield f"points: object {i}: {a.tolist()} -> {b.tolist()}"
                    return


PLAIN = Categories(["zebra", "ant", "bee"])
"""Not in the order of the alphabet."""
RICH = Categories(
    [
        Category(7, "sky", False, (1, 2, 3), "air"),
        Category(3, "a cat: wild", True, (250, 128, 0)),
        Category(90, "ß", True, None, "letters"),
    ]
)
"""With all that categories can have, and ids in disorder."""
