"""Run-length masks against pycocotools and brute force."""

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from everymask.errors import InputError
from everymask.ops import rle
from everymask.ops.polygons import Outlines, rasterise

coco = pytest.importorskip("pycocotools.mask", reason="pycocotools is the reference")

modest = settings(max_examples=60, deadline=None)


def stacks(fewest=0, most=4):
    """Dense masks (N, H, W): noise, with empty and full ones among them."""
    side = st.integers(1, 9)
    return st.tuples(st.integers(fewest, most), side, side).flatmap(lambda shape: arrays(np.bool_, shape))


def reference(masks):
    return [coco.encode(np.asfortranarray(mask)) for mask in masks.astype(np.uint8)]


def blobs(count, height, width, seed=0):
    """Overlapping ellipses, some cut by the border: what real masks look like."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    return np.stack(
        [
            ((y - rng.integers(height)) / rng.integers(5, 40)) ** 2
            + ((x - rng.integers(width)) / rng.integers(5, 90)) ** 2
            < 1
            for _ in range(count)
        ]
    )


@modest
@given(stacks())
def test_encoding_and_strings_equal_pycocotools(masks):
    counts, offsets = rle.encode(masks)
    strings = [each["counts"] for each in reference(masks)]
    assert rle.to_strings(counts, offsets) == strings
    again = rle.from_strings(strings)
    np.testing.assert_array_equal(again[0], counts)
    np.testing.assert_array_equal(again[1], offsets)
    np.testing.assert_array_equal(rle.decode(counts, offsets, masks.shape[1:]), masks)


def test_large_masks_cross_every_block_of_the_scan():
    for width in (1, 63, 64, 65, 511, 512, 513, 1100):
        masks = blobs(5, 97, width, seed=width)
        counts, offsets = rle.encode(masks)
        assert rle.to_strings(counts, offsets) == [each["counts"] for each in reference(masks)]
        np.testing.assert_array_equal(rle.decode(counts, offsets, (97, width)), masks)


@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.float32])
def test_encode_takes_any_type_and_memory_order(kind):
    masks = np.asfortranarray(blobs(3, 20, 30).astype(kind) * 7)
    assert rle.to_strings(*rle.encode(masks)) == [each["counts"] for each in reference(masks != 0)]


@pytest.mark.parametrize("kind", [np.bool_, np.uint8, np.float64])
@pytest.mark.parametrize("size", [(7, 9), (64, 65), (97, 513), (1, 200), (200, 1)])
def test_masks_in_fortran_order_and_values_beyond_one(kind, size):
    """Each mask by columns, as pycocotools keeps them, or by rows; any nonzero value is foreground."""
    masks = blobs(5, *size, seed=size[1])
    masks[0, 0, 0] = True  # a run that begins with the first pixel
    want = [each["counts"] for each in reference(masks)]
    values = (masks * np.random.default_rng(0).integers(1, 256, masks.shape)).astype(kind)
    columns = np.ascontiguousarray(values.transpose(0, 2, 1)).transpose(0, 2, 1)
    for stack in (values, columns, np.ascontiguousarray(values.transpose(1, 2, 0)).transpose(2, 0, 1)):
        assert rle.to_strings(*rle.encode(stack)) == want
        assert rle.to_strings(*rle.encode(stack[:1])) == want[:1]


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_images_without_pixels(size):
    counts, offsets = rle.encode(np.zeros((2, *size), bool))
    assert counts.tolist() == [0, 0]
    assert rle.decode(counts, offsets, size).shape == (2, *size)
    assert rle.boxes(counts, offsets, size).tolist() == [[0, 0, 0, 0]] * 2
    columns = rle.encode(np.zeros((2, *size[::-1]), bool).transpose(0, 2, 1))
    assert columns[0].tolist() == [0, 0]
    labelled = rle.encode_labels(np.zeros(size, np.int32), 2)
    assert [each.tolist() for each in labelled] == [[0, 0], [0, 1, 2]]


@modest
@given(arrays(np.int32, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(-1, 4)))
def test_encoding_a_label_map_equals_encoding_each_of_its_masks(ids):
    counts, offsets = rle.encode_labels(ids, 5)
    expected = rle.encode(ids[None] == np.arange(1, 6)[:, None, None])
    np.testing.assert_array_equal(counts, expected[0])
    np.testing.assert_array_equal(offsets, expected[1])


def test_encode_labels_beyond_65535():
    ids = np.arange(300 * 300, dtype=np.int32).reshape(300, 300)
    counts, offsets = rle.encode_labels(ids, 300 * 300)
    assert rle.areas(counts, offsets).tolist() == [1] * (300 * 300 - 1) + [0]
    np.testing.assert_array_equal(rle.paint(counts, offsets, (300, 300), np.arange(300 * 300))[0], ids)


@modest
@given(stacks(fewest=1))
def test_areas_and_boxes_equal_pycocotools(masks):
    counts, offsets = rle.encode(masks)
    encoded = reference(masks)
    np.testing.assert_array_equal(rle.areas(counts, offsets), coco.area(encoded))
    corners = rle.boxes(counts, offsets, masks.shape[1:])
    sides = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    np.testing.assert_array_equal(sides, coco.toBbox(encoded))


@modest
@given(stacks())
def test_boxes_are_tight(masks):
    for mask, box in zip(masks, rle.boxes(*rle.encode(masks), masks.shape[1:]), strict=True):
        y, x = np.nonzero(mask)
        expected = [x.min(), y.min(), x.max() + 1, y.max() + 1] if len(x) else [0, 0, 0, 0]
        assert box.tolist() == expected


@modest
@given(stacks(fewest=5, most=5))
def test_overlaps_and_merge_equal_pycocotools(masks):
    counts, offsets = rle.encode(masks)
    first, second = rle.encode(masks[:2]), rle.encode(masks[2:])
    shared = rle.overlaps(*first, *second)
    np.testing.assert_array_equal(shared, (masks[:2, None] & masks[None, 2:]).sum(axis=(2, 3)))
    encoded = reference(masks)
    assert rle.to_string(rle.merge(counts, offsets)) == coco.merge(encoded)["counts"]
    assert rle.to_string(rle.merge(counts, offsets, intersect=True)) == coco.merge(encoded, 1)["counts"]


def test_overlaps_of_realistic_masks_give_the_iou_of_pycocotools():
    masks = blobs(40, 120, 200)
    counts, offsets = rle.encode(masks)
    shared, areas = rle.overlaps(counts, offsets, counts, offsets), rle.areas(counts, offsets)
    encoded = reference(masks)
    np.testing.assert_array_equal(shared / (areas[:, None] + areas - shared), coco.iou(encoded, encoded, [0] * 40))


@modest
@given(stacks(fewest=6, most=6))
def test_pairs_are_the_overlaps_that_are_not_zero(masks):
    first, second = rle.encode(masks[:3]), rle.encode(masks[3:])
    shared = (masks[:3, None] & masks[None, 3:]).sum(axis=(2, 3))
    for size in (None, masks.shape[1:]):
        a, b, pixels = rle.overlapping_pairs(*first, *second, size)
        np.testing.assert_array_equal(np.stack([a, b]), np.stack(np.nonzero(shared)))
        np.testing.assert_array_equal(pixels, shared[a, b])
        np.testing.assert_array_equal(rle.overlaps(*first, *second, size), shared)


def test_pairs_of_many_small_masks():
    """Two label maps of 2,500 cells each, whose joint histogram is known; dense it would be six million pairs."""
    y, x = np.mgrid[:300, :300]
    first, second = (y // 6 * 50 + x // 6 + 1).astype(np.int32), ((y + 2) % 300 // 6 * 50 + (x + 1) % 300 // 6 + 1)
    runs = [rle.encode_labels(each.astype(np.int32), 2500) for each in (first, second)]
    pairs, counts = np.unique(np.stack([first.ravel(), second.ravel()]) - 1, axis=1, return_counts=True)
    a, b, pixels = rle.overlapping_pairs(*runs[0], *runs[1], (300, 300))
    np.testing.assert_array_equal(np.stack([a, b]), pairs)
    np.testing.assert_array_equal(pixels, counts)


@modest
@given(stacks(), st.randoms(use_true_random=False))
def test_painting_covers_in_order_and_counts_shared_pixels(masks, random):
    order = list(range(len(masks)))
    random.shuffle(order)
    ids, overlapping = rle.paint(*rle.encode(masks), masks.shape[1:], np.array(order, int))
    expected = np.zeros(masks.shape[1:], int)
    for i in order:
        expected[masks[i]] = i + 1
    np.testing.assert_array_equal(ids, expected)
    assert ids.dtype == np.int32
    assert overlapping == (masks.sum(axis=0) > 1).sum()


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_merging_many_masks_with_many_runs(depth):
    """Enough runs that pixels are marked instead of runs being sorted; noise, so that runs meet in every way."""
    generator = np.random.default_rng(depth)
    masks = generator.random((40, 23, 71)) < generator.choice([0.02, 0.3, 0.9], (40, 1, 1))
    masks[3], masks[7] = True, False
    masks[5, -1, -1] = True
    counts, offsets = rle.encode(masks)
    groups = np.array([0, 12, 12, 13, 30, 40])
    expected = np.stack([masks[a:b].sum(axis=0) >= depth for a, b in pairwise(groups)])
    got = rle.merge_groups(counts, offsets, groups, 23 * 71, depth)
    for one, other in zip(got, rle.encode(expected), strict=True):
        np.testing.assert_array_equal(one, other)
    encoded = reference(masks)
    assert rle.to_string(rle.merge(counts, offsets)) == coco.merge(encoded)["counts"]


def test_unions_of_groups():
    masks = blobs(6, 30, 40)
    counts, offsets = rle.encode(masks)
    groups = np.array([0, 2, 2, 6])
    expected = np.stack([masks[:2].any(axis=0), np.zeros((30, 40), bool), masks[2:].any(axis=0)])
    merged = rle.merge_groups(counts, offsets, groups, 1200)
    np.testing.assert_array_equal(merged[0], rle.encode(expected)[0])
    np.testing.assert_array_equal(merged[1], rle.encode(expected)[1])


def annotations(shared_data):
    """Size and segmentation of every object of the real COCO subset: polygons, and run lengths of crowds."""
    for part in ("train", "val"):
        path = shared_data / "coco" / "tiny160" / "annotations" / f"instances_{part}2017.json"
        content = json.loads(path.read_text())
        sizes = {each["id"]: (each["height"], each["width"]) for each in content["images"]}
        for each in content["annotations"]:
            yield sizes[each["image_id"]], each["segmentation"]


def test_real_masks_equal_those_of_pycocotools(shared_data):
    """Polygons, uncompressed runs and strings of a real data set: masks, strings, areas and boxes are all the same."""
    crowds = 0
    for size, segmentation in annotations(shared_data):
        if isinstance(segmentation, dict):
            crowds += 1
            expected = coco.frPyObjects(segmentation, *size)
            counts = np.array(segmentation["counts"], np.uint32)
        else:
            expected = coco.merge(coco.frPyObjects(segmentation, *size))
            rings = [np.reshape(each, (-1, 2)) for each in segmentation]
            ends = np.concatenate([[0], np.cumsum([len(each) for each in rings])])
            single = np.arange(len(rings) + 1)
            outlines = Outlines(np.concatenate(rings), ends, single, single[[0, -1]])
            counts, _ = rasterise(outlines, size)
        offsets = np.array([0, len(counts)])
        assert rle.to_string(counts) == expected["counts"]
        np.testing.assert_array_equal(rle.from_string(expected["counts"]), counts)
        dense = coco.decode(expected).astype(bool)
        np.testing.assert_array_equal(rle.decode(counts, offsets, size)[0], dense)
        for mask in (np.asfortranarray(dense), np.ascontiguousarray(dense)):
            assert rle.to_strings(*rle.encode(mask[None])) == [expected["counts"]]
        assert rle.areas(counts, offsets)[0] == coco.area(expected)
        x0, y0, x1, y1 = rle.boxes(counts, offsets, size)[0]
        assert [x0, y0, x1 - x0, y1 - y0] == coco.toBbox(expected).tolist()
    assert crowds > 0


@modest
@given(st.lists(st.integers(0, 2**32 - 1), max_size=12))
def test_strings_keep_any_runs(runs):
    counts = np.array(runs, np.uint32)
    np.testing.assert_array_equal(rle.from_string(rle.to_string(counts)), counts)
    np.testing.assert_array_equal(rle.from_string(rle.to_string(counts).decode()), counts)


@pytest.mark.parametrize("string", [b"abc\x00", b"o", b"ooooooooo1", "é1", b"1!", b"O"])
def test_broken_strings_are_refused(string):
    with pytest.raises(InputError, match="not a compressed RLE string"):
        rle.from_string(string)


@modest
@given(st.binary(max_size=20))
def test_no_string_crashes(string):
    try:
        counts = rle.from_string(string)
    except InputError:
        return
    assert counts.dtype == np.uint32


def test_wrong_sizes_are_refused():
    counts, offsets = rle.encode(np.zeros((2, 4, 5), bool))
    rle.check(counts, (4, 5), offsets)
    rle.check(counts[:1], (4, 5))
    for call in (
        lambda: rle.check(counts, (5, 5), offsets),
        lambda: rle.decode(counts, offsets, (5, 5)),
        lambda: rle.paint(counts, offsets, (5, 5), np.arange(2)),
    ):
        with pytest.raises(InputError, match=r"RLE of the wrong size: .* 20 pixels, but an image of 5 x 5 has 25"):
            call()
    with pytest.raises(InputError, match="offsets"):
        rle.check(counts, (4, 5), np.array([0, 3]))
    with pytest.raises(InputError, match=r"names masks 2\.\.2, but there are 2"):
        rle.paint(counts, offsets, (4, 5), np.array([2]))
    with pytest.raises(InputError, match=r"mask\[None\]"):
        rle.encode(np.zeros((4, 5)))
    with pytest.raises(InputError, match="holds label 3, expected at most 2"):
        rle.encode_labels(np.full((2, 2), 3, np.int32), 2)
    # Masks of several sizes have no union, but must not do harm either.
    small, _ = rle.encode(np.ones((1, 1, 2), bool))
    large, _ = rle.encode(np.random.default_rng(0).random((1, 90, 90)) < 0.5)
    rle.merge(np.concatenate([small, large]), np.array([0, len(small), len(small) + len(large)]))
    with pytest.raises(InputError, match="no masks"):
        rle.merge(*rle.encode(np.zeros((0, 4, 5), bool)))
