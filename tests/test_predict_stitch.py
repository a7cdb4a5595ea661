"""The kernels of stitching against dense masks and pycocotools, and the rules of the stitchers on hand-made tiles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from everymask.ops import rle
from everymask.ops.stitch import paste_labels, shift_runs
from everymask.predict.stitching import stitch
from everymask.predict.tiling import Span, Tile, plan_tiles
from everymask.types import LabelMap, Polygon, Polygons, Segments


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_moved_runs_are_those_of_the_moved_masks(data: st.DataObject) -> None:
    height, width, count = (data.draw(st.integers(1, 9)) for _ in range(3))
    margins = [data.draw(st.integers(0, 4)) for _ in range(4)]
    seed = data.draw(st.integers(0, 2**32 - 1))
    masks = np.random.default_rng(seed).random((count, height, width)) < data.draw(st.sampled_from([0, 0.2, 0.8, 1]))
    moved = np.pad(masks, ((0, 0), (margins[0], margins[1]), (margins[2], margins[3])))
    counts, offsets = rle.encode(masks)
    found = shift_runs(counts, offsets, masks.shape[1:], moved.shape[1:], (margins[0], margins[2]))
    np.testing.assert_array_equal(rle.decode(*found, moved.shape[1:]), moved)
    expected = rle.encode(moved)  # compared with pycocotools in the tests of `ops.rle`
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def test_pasting_follows_the_score() -> None:
    rng = np.random.default_rng(0)
    canvas = rng.integers(-1, 4, (20, 30)).astype(np.int32)
    ids = np.where(rng.random((20, 30)) < 0.5, rng.integers(4, 7, (20, 30)), 0).astype(np.int32)
    score = np.array([0.9, 0.5, 0.5, 0.5, 0.7, 0.95])
    layers = np.stack([canvas, ids])
    worth = np.where(layers > 0, score[layers - 1], -np.inf)
    top = worth.argmax(axis=0)  # the first, the canvas, where both are equal
    expected = np.take_along_axis(layers, top[None], axis=0)[0]
    paste_labels(canvas, ids, score)
    np.testing.assert_array_equal(canvas, expected)


def two_tiles(height: int = 20) -> list[Tile]:
    """Columns 0..40 and 20..60; the cores meet at column 30."""
    rows = Span(0, height, 0, height)
    return [Tile((rows, Span(0, 40, 0, 30))), Tile((rows, Span(20, 60, 30, 60)))]


def segments_of(boxes: list[tuple[int, int, int, int]], score: list[float], origin: int, **columns: object) -> Segments:
    """Rectangles (x0, y0, x1, y1) of the image as a label map of a tile 20 x 40 that begins at column `origin`."""
    ids = np.zeros((20, 40), np.int32)
    for i, (x0, y0, x1, y1) in enumerate(boxes, 1):
        ids[y0:y1, max(x0 - origin, 0) : max(x1 - origin, 0)] = i
    return Segments((20, 40), np.zeros(len(boxes)), LabelMap(ids), score=score, **columns)


def found_boxes(segments: Segments) -> list[tuple[int, ...]]:
    return sorted(tuple(int(each) for each in box) for box in segments.boxes())


def test_an_object_seen_a_pixel_apart_by_two_tiles_is_taken_once_with_the_higher_score() -> None:
    left, right = two_tiles()
    # The centre is at 29.5 for one tile and 30.5 for the other, so both own it, or neither.
    for one, two in [((25, 4, 34, 12), (26, 4, 35, 12)), ((26, 4, 35, 12), (25, 4, 34, 12))]:
        for scores in [(0.9, 0.8), (0.8, 0.9)]:
            found, cut = stitch(
                [(left, segments_of([one], [scores[0]], 0)), (right, segments_of([two], [scores[1]], 20))],
                (20, 60),
                1,
                semantic=False,
            )
            assert cut == 0
            assert found.score is not None and found.score.tolist() == [0.9]
            assert found_boxes(found) == [one if scores[0] > scores[1] else two]


def test_neighbours_are_not_taken_for_one_object() -> None:
    left, right = two_tiles()
    one, two = (20, 4, 30, 12), (30, 4, 41, 12)
    found, _ = stitch(
        [(left, segments_of([one, (30, 4, 40, 12)], [0.5, 0.6], 0)), (right, segments_of([one, two], [0.5, 0.6], 20))],
        (20, 60),
        1,
        semantic=False,
    )
    assert found_boxes(found) == [one, two]


def test_void_and_attributes_survive_stitching() -> None:
    left, right = two_tiles()
    parts = [
        segments_of([(2, 2, 8, 8)], [0.5], 0, attributes={"rays": np.ones((1, 3)), "left": [1]}),
        segments_of([(50, 2, 58, 8), (40, 10, 45, 15)], [0.5, 0.5], 20, attributes={"rays": np.zeros((2, 3))}),
    ]
    for part in parts:
        assert isinstance(part.geometry, LabelMap)
        part.geometry.ids[16:] = -1
    found, _ = stitch(zip([left, right], parts, strict=True), (20, 60), 1, semantic=False)
    assert (found.label_map()[16:] == -1).all() and (found.label_map()[:16] >= 0).all()
    assert list(found.attributes) == ["rays"] and found.attributes["rays"][:, 0].tolist() == [1, 0, 0]


def test_an_object_of_two_classes_is_one_where_classes_suppress_one_another() -> None:
    tiles = two_tiles()
    # At the border of the cores the left tile takes it for class 0, the right one for class 1.
    parts = [
        Segments((20, 40), [kind], box=[[26 - origin, 4, 34 - origin, 12]], score=[score])
        for kind, origin, score in ((0, 0, 0.6), (1, 20, 0.9))
    ]
    found, _ = stitch(zip(tiles, parts, strict=True), (20, 60), 2, semantic=False)
    assert found.category.tolist() == [0, 1]
    found, _ = stitch(zip(tiles, parts, strict=True), (20, 60), 2, semantic=False, class_agnostic=True)
    assert found.category.tolist() == [1] and found_boxes(found) == [(26, 4, 34, 12)]


@pytest.mark.parametrize("geometry", ["polygons", "boxes", "masks"])
def test_overlapping_segments_are_stitched_without_a_label_map(geometry: str) -> None:
    rng = np.random.default_rng(3)
    size = (90, 130)
    corner = np.stack([rng.integers(0, size[1] - 16, 60), rng.integers(0, size[0] - 16, 60)], 1)
    boxes = np.concatenate([corner, corner + rng.integers(4, 17, (60, 2))], 1)
    category = rng.integers(0, 3, 60)

    def seen(tile: Tile) -> Segments:
        """What a perfect method sees in a tile: the objects that lie in it whole."""
        top, left = tile.origin
        height, width = min(tile.rows.stop, size[0]) - top, min(tile.columns.stop, size[1]) - left
        moved = boxes - np.array([left, top, left, top])
        whole = (moved[:, :2] >= 0).all(1) & (moved[:, 2] <= width) & (moved[:, 3] <= height)
        moved = moved[whole]
        columns = {"score": np.arange(60)[whole] / 60}
        if geometry == "boxes":
            return Segments((height, width), category[whole], box=moved, **columns)
        if geometry == "masks":
            dense = np.zeros((len(moved), height, width), np.uint8)
            for mask, (x0, y0, x1, y1) in zip(dense, moved, strict=True):
                mask[y0:y1, x0:x1] = 1
            return Segments.from_masks(dense, category[whole], **columns)
        parts = [
            (Polygon(np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], float)),) for x0, y0, x1, y1 in moved.tolist()
        ]
        return Segments((height, width), category[whole], Polygons((height, width), tuple(parts)), **columns)

    tiles = plan_tiles(size, tile=64, overlap=32, stride=8)
    found, _ = stitch(((tile, seen(tile)) for tile in tiles), size, 3, semantic=False)
    rows: NDArray[np.float64] = np.column_stack([found.boxes(), found.category])
    expected = np.column_stack([boxes, category])
    np.testing.assert_array_equal(rows[np.lexsort(rows.T)], expected[np.lexsort(expected.T)])
    if geometry != "boxes":
        np.testing.assert_array_equal(found.areas(), np.prod(found.boxes()[:, 2:] - found.boxes()[:, :2], axis=1))
    assert sorted(found.score) == pytest.approx(np.arange(60) / 60)
