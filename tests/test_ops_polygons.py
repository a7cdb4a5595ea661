"""Outlines against pycocotools, brute force and the rules of the Simple Features standard."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage

from everymask.errors import InputError
from everymask.ops import polygons, rle

coco = pytest.importorskip("pycocotools.mask", reason="pycocotools is the reference")

modest = settings(max_examples=60, deadline=None)
label_maps = arrays(np.int32, array_shapes(min_dims=2, max_dims=2, max_side=10), elements=st.integers(-1, 3))


def rings_of(outlines, segment):
    """Nested lists: the parts of a segment, each a list of rings, the exterior first."""
    return [
        [
            outlines.points[outlines.rings[r] : outlines.rings[r + 1]]
            for r in range(outlines.parts[p], outlines.parts[p + 1])
        ]
        for p in range(outlines.segments[segment], outlines.segments[segment + 1])
    ]


def one_ring(points):
    points = np.asarray(points, float)
    return polygons.Outlines(points, np.array([0, len(points)]), np.array([0, 1]), np.array([0, 1]))


def signed_area(ring):
    x, y = ring.T
    return 0.5 * float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum())


def crossing_fill(rings, height, width):
    """Brute force: a pixel is inside when a ray from its centre crosses the rings an odd number of times."""
    filled = np.zeros((height, width), bool)
    for ring in rings:
        for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            for y in range(height):
                if (y0 > y + 0.5) != (y1 > y + 0.5):
                    at = x0 + (y + 0.5 - y0) * (x1 - x0) / (y1 - y0)
                    filled[y] ^= np.arange(width) + 0.5 < at
    return filled


@modest
@given(label_maps)
def test_traced_outlines_enclose_exactly_their_pixels(ids):
    outlines = polygons.trace_labels(ids, 4)
    for i in range(4):
        parts = rings_of(outlines, i)
        rings = [ring for part in parts for ring in part]
        np.testing.assert_array_equal(crossing_fill(rings, *ids.shape), ids == i + 1)
        assert len(parts) == ndimage.label(ids == i + 1)[1]
        assert sum(map(signed_area, rings)) == (ids == i + 1).sum()


@modest
@given(label_maps)
def test_rasterising_traced_outlines_gives_the_pixels_back(ids):
    outlines = polygons.trace_labels(ids, 4)
    expected = rle.encode_labels(ids, 4)
    for got, want in zip(polygons.rasterise(outlines, ids.shape), expected, strict=True):
        np.testing.assert_array_equal(got, want)


@modest
@given(label_maps)
def test_rings_are_simple_and_holes_lie_inside(ids):
    """No ring meets itself, every part is connected, holes run the other way: valid polygons."""
    outlines = polygons.trace_labels(ids, 4)
    for i in range(4):
        for exterior, *holes in rings_of(outlines, i):
            for ring in (exterior, *holes):
                # all lattice points on the ring, corner or not, are met once
                steps = np.roll(ring, -1, axis=0) - ring
                assert ((steps != 0).sum(axis=1) == 1).all()
                walked = [
                    tuple(start + np.sign(step) * k)
                    for start, step in zip(ring, steps, strict=True)
                    for k in range(int(abs(step).sum()))
                ]
                assert len(set(walked)) == len(walked)
            assert signed_area(exterior) > 0
            assert all(signed_area(hole) < 0 for hole in holes)
            pixels = crossing_fill([exterior, *holes], *ids.shape)
            assert ndimage.label(pixels)[1] == 1
            assert (crossing_fill([exterior], *ids.shape) >= pixels).all()


@modest
@given(st.tuples(st.integers(0, 4), st.integers(1, 9), st.integers(1, 9)).flatmap(lambda size: arrays(np.bool_, size)))
def test_tracing_run_lengths_equals_tracing_each_mask(masks):
    outlines = polygons.trace(*rle.encode(masks), masks.shape[1:])
    assert len(outlines.segments) == len(masks) + 1
    for i, mask in enumerate(masks):
        expected = rings_of(polygons.trace_labels(mask.astype(np.int32), 1), 0)
        got = rings_of(outlines, i)
        assert [[ring.tolist() for ring in part] for part in got] == [
            [ring.tolist() for ring in part] for part in expected
        ]


def test_pixels_that_share_only_a_corner_are_two_polygons_but_a_corner_inside_a_part_splits_its_ring():
    apart = polygons.trace_labels(np.eye(2, dtype=np.int32), 1)
    assert [len(part) for part in rings_of(apart, 0)] == [1, 1]
    # a ring of pixels closed only through a corner encloses a hole that touches the outside there
    closed = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0]], np.int32)
    (part,) = rings_of(polygons.trace_labels(closed, 1), 0)
    assert [len(ring) for ring in part] == [6, 4]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(*[st.floats(-6, 30) | st.integers(-24, 120).map(lambda v: v / 4)] * 2), min_size=3, max_size=9),
    st.integers(1, 24),
    st.integers(1, 24),
)
def test_any_single_ring_is_filled_as_pycocotools_does(points, height, width):
    counts, _ = polygons.rasterise(one_ring(points), (height, width))
    (expected,) = coco.frPyObjects([np.ravel(points).tolist()], height, width)
    assert rle.to_string(counts) == expected["counts"]


def test_random_rings_of_every_scale_are_filled_as_pycocotools_does():
    rng = np.random.default_rng(0)
    for _ in range(1500):
        height, width = (int(each) for each in rng.integers(1, 90, 2))
        points = rng.uniform(-40, 120, (rng.integers(3, 12), 2)) * rng.choice([0.1, 1, 8])
        counts, _ = polygons.rasterise(one_ring(points), (height, width))
        (expected,) = coco.frPyObjects([points.ravel().tolist()], height, width)
        assert rle.to_string(counts) == expected["counts"]


def test_lists_of_polygons_are_united_as_pycocotools_does():
    rng = np.random.default_rng(1)
    lists = [[rng.uniform(0, 40, (5, 2)) for _ in range(count)] for count in (1, 4, 2)]
    flat = [ring for each in lists for ring in each]
    outlines = polygons.Outlines(
        np.concatenate(flat), np.arange(8) * 5, np.arange(8), np.concatenate([[0], np.cumsum([1, 4, 2])])
    )
    expected = [coco.merge(coco.frPyObjects([ring.ravel().tolist() for ring in each], 33, 37)) for each in lists]
    assert rle.to_strings(*polygons.rasterise(outlines, (33, 37))) == [each["counts"] for each in expected]


def test_holes_are_taken_off_even_where_they_reach_beyond_the_exterior():
    square = np.array([[2, 2], [8, 2], [8, 8], [2, 8]], float)
    hole = square + np.array([4, 0])
    outlines = polygons.Outlines(
        np.concatenate([square, hole, hole]), np.array([0, 4, 8, 12]), np.array([0, 2, 3]), np.array([0, 1, 1, 2])
    )
    masks = rle.decode(*polygons.rasterise(outlines, (10, 12)), (10, 12))
    expected = np.zeros((3, 10, 12), bool)
    expected[0, 2:8, 2:6] = True
    expected[2, 2:8, 6:12] = True
    np.testing.assert_array_equal(masks, expected)


@modest
@given(label_maps)
def test_coco_lists_give_traced_outlines_back_wherever_they_are_called_exact(ids):
    outlines = polygons.trace_labels(ids, 3)
    exact = polygons.coco_polygons_exact(outlines)
    height, width = ids.shape
    for i in range(3):
        parts = rings_of(outlines, i)
        assert exact[i] == (len(parts) > 0 and all(len(part) == 1 for part in parts))
        if exact[i]:
            merged = coco.merge(coco.frPyObjects([part[0].ravel().tolist() for part in parts], height, width))
            np.testing.assert_array_equal(coco.decode(merged), ids == i + 1)


def test_boxes_of_outlines():
    ids = np.zeros((6, 7), np.int32)
    ids[1:3, 2:6] = 1
    ids[4, 0] = 3
    assert polygons.polygon_boxes(polygons.trace_labels(ids, 3)).tolist() == [[2, 1, 6, 3], [0, 0, 0, 0], [0, 4, 1, 5]]


def test_many_objects_and_none():
    ids = np.arange(1, 90_001, dtype=np.int32).reshape(300, 300)
    outlines = polygons.trace_labels(ids, 90_000)
    assert len(outlines.points) == 4 * 90_000
    np.testing.assert_array_equal(polygons.rasterise(outlines, (300, 300))[0], rle.encode_labels(ids, 90_000)[0])
    empty = polygons.trace_labels(np.zeros((4, 5), np.int32), 0)
    assert polygons.rasterise(empty, (4, 5))[1].tolist() == [0]
    assert polygons.polygon_boxes(empty).shape == (0, 4)
    assert polygons.coco_polygons_exact(empty).shape == (0,)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1e9])
def test_vertices_that_are_nowhere_are_refused(value):
    with pytest.raises(InputError, match="vertex"):
        polygons.rasterise(one_ring([[0, 0], [value, 3], [4, 4]]), (5, 5))


def test_label_maps_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="holds label 2, expected at most 1"):
        polygons.trace_labels(np.full((2, 2), 2, np.int32), 1)
    with pytest.raises(InputError, match=r"expected \(H, W\)"):
        polygons.trace_labels(np.zeros((2, 2, 2), np.int32), 1)
