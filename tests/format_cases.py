"""Segments for the tests of formats: made at random by hypothesis, put into data sets in memory, and compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from everymask.formats.images import write_image
from everymask.types import Categories, Dataset, LabelMap, Masks, Polygon, Polygons, Sample, Segments, Task

INSTANCES = frozenset({Task.DETECTION, Task.INSTANCE})


def same(one: Segments | None, other: Segments | None, *, attributes: bool = True) -> None:
    """Asserts that segments are equal: pixels, points, boxes, classes, scores and columns."""
    assert one is not None and other is not None
    assert one.size == other.size
    assert one.category.tolist() == other.category.tolist()
    assert one.crowd.tolist() == other.crowd.tolist()
    assert type(one.geometry) is type(other.geometry)
    match one.geometry, other.geometry:
        case Polygons(), Polygons():
            assert one.geometry.parts.__len__() == other.geometry.parts.__len__()
            for mine, theirs in zip(one.geometry.parts, other.geometry.parts, strict=True):
                for part, twin in zip(mine, theirs, strict=True):
                    assert np.array_equal(part.exterior, twin.exterior)
                    assert len(part.holes) == len(twin.holes)
                    assert all(np.array_equal(a, b) for a, b in zip(part.holes, twin.holes, strict=True))
        case Masks(), Masks():
            assert np.array_equal(one.masks(), other.masks())
        case LabelMap(), LabelMap():
            assert np.array_equal(one.geometry.ids, other.geometry.ids)
    if len(one) and one.has_boxes:
        assert np.array_equal(one.boxes(), other.boxes())
    assert (one.score is None) == (other.score is None)
    if one.score is not None and other.score is not None:
        assert np.array_equal(one.score, other.score)
    if attributes:
        assert {key: column.tolist() for key, column in one.attributes.items()} == {
            key: column.tolist() for key, column in other.attributes.items()
        }


def in_memory(
    segments: Sequence[Segments | None],
    categories: Categories,
    *,
    names: Sequence[str] | None = None,
    extras: Sequence[dict[str, Any]] | None = None,
    tasks: frozenset[Task] = INSTANCES,
    size: tuple[int, int] = (20, 30),
) -> Dataset:
    """A data set of black images with the given segments."""
    samples = []
    for i, each in enumerate(segments):
        shape = size if each is None else each.size
        samples.append(
            Sample(
                names[i] if names else f"image{i}",
                lambda shape=shape: np.zeros((*shape, 1), np.uint8),
                None if each is None else (lambda each=each: each),
                None,
                extras[i] if extras else {},
            )
        )
    return Dataset.of(samples, categories, tasks)


def black(path: Path, size: tuple[int, int] = (20, 30)) -> Path:
    """Writes a black image of (H, W)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, np.zeros((*size, 3), np.uint8))
    return path


# -- strategies --------------------------------------------------------------------------------------------------------


def coordinate(limit: int, digits: int | None = None) -> st.SearchStrategy[float]:
    """A coordinate in 0..limit, of so many decimals, or any number."""
    if digits is None:
        return st.floats(0, limit, allow_subnormal=False)
    return st.integers(0, limit * 10**digits).map(lambda number: number / 10**digits)


def rings(size: tuple[int, int], digits: int | None = None) -> st.SearchStrategy[np.ndarray]:
    """Points (K, 2) of a polygon that may cross itself."""
    point = st.tuples(coordinate(size[1], digits), coordinate(size[0], digits))
    return st.lists(point, min_size=3, max_size=8).map(lambda points: np.array(points, np.float64))


def upright_boxes(size: tuple[int, int], digits: int | None = None) -> st.SearchStrategy[list[float]]:
    """x0, y0, x1, y1."""
    xs = st.tuples(coordinate(size[1], digits), coordinate(size[1], digits)).map(sorted)
    ys = st.tuples(coordinate(size[0], digits), coordinate(size[0], digits)).map(sorted)
    return st.tuples(xs, ys).map(lambda edges: [edges[0][0], edges[1][0], edges[0][1], edges[1][1]])


def bitmaps(size: tuple[int, int]) -> st.SearchStrategy[np.ndarray]:
    """A mask (H, W), from nothing to everything."""
    return st.tuples(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0])).map(
        lambda drawn: np.random.default_rng(drawn[0]).random(size) < drawn[1]
    )


@st.composite
def polygon_segments(
    draw: st.DrawFn, size: tuple[int, int], classes: Sequence[int], *, digits: int | None = None, parts: int = 1
) -> Segments:
    """Outlines of up to so many parts, without holes."""
    number = draw(st.integers(0, 4))
    outlines = [
        [Polygon(ring) for ring in draw(st.lists(rings(size, digits), min_size=1, max_size=parts))]
        for _ in range(number)
    ]
    return Segments.from_polygons(size, outlines, [draw(st.sampled_from(classes)) for _ in range(number)])


@st.composite
def mask_segments(draw: st.DrawFn, size: tuple[int, int], classes: Sequence[int]) -> Segments:
    """Run-length masks, at least one."""
    masks = draw(st.lists(bitmaps(size), min_size=1, max_size=3))
    return Segments.from_masks(np.array(masks), [draw(st.sampled_from(classes)) for _ in masks])


@st.composite
def box_segments(
    draw: st.DrawFn, size: tuple[int, int], classes: Sequence[int], *, digits: int | None = None
) -> Segments:
    """Boxes only."""
    boxes = draw(st.lists(upright_boxes(size, digits), max_size=4))
    category = [draw(st.sampled_from(classes)) for _ in boxes]
    return Segments(size, category, None, box=np.array(boxes, np.float64).reshape(-1, 4))
