"""Label map functions against numpy, scipy and scikit-image."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage

from everymask.errors import InputError
from everymask.ops import labels

modest = settings(max_examples=60, deadline=None)
shapes = array_shapes(min_dims=2, max_dims=3, max_side=8)
label_maps = arrays(np.int32, shapes, elements=st.integers(-1, 4))


def brute_compact(ids):
    originals = np.unique(ids[ids > 0])
    expected = np.where(ids < 0, -1, 0)
    for i, value in enumerate(originals, 1):
        expected[ids == value] = i
    return expected, originals


@modest
@given(
    st.sampled_from([np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64]).flatmap(
        lambda kind: arrays(kind, shapes, elements=st.integers(max(np.iinfo(kind).min, -3), np.iinfo(kind).max))
    )
)
def test_compact_labels_of_any_integer_type(ids):
    compact, originals = labels.compact_labels(ids)
    expected, values = brute_compact(ids)
    np.testing.assert_array_equal(compact, expected)
    np.testing.assert_array_equal(originals, values)
    assert compact.dtype == np.int32
    assert originals.dtype == np.int64


def test_compact_labels_beyond_65535_and_sparse():
    rng = np.random.default_rng(0)
    values = np.unique(rng.integers(1, 2**62, 80_000))
    ids = rng.permutation(np.concatenate([values, values, [0, -5]]))[: 2 * len(values)].reshape(2, -1)
    compact, originals = labels.compact_labels(ids)
    unique, inverse = np.unique(ids, return_inverse=True)
    positive = int((unique <= 0).sum())
    np.testing.assert_array_equal(originals, unique[positive:])
    np.testing.assert_array_equal(np.maximum(compact, 0), np.maximum(inverse.reshape(ids.shape) - positive + 1, 0))


def test_compact_labels_accepts_floats_and_masks_of_whole_numbers():
    compact, originals = labels.compact_labels(np.array([[0.0, 7.0], [3.0, -1.0]], np.float32))
    assert (compact.tolist(), originals.tolist()) == ([[0, 2], [1, -1]], [3, 7])
    compact, originals = labels.compact_labels(np.array([[True, False]]))
    assert (compact.tolist(), originals.tolist()) == ([[1, 0]], [1])


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")
@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.array([[0.5]]), "fractions"),
        (np.array([[np.nan]]), "fractions or non-finite"),
        (np.array([["a"]]), "expected integers"),
        (np.array([[2**63]], np.uint64), "holds 9223372036854775808"),
    ],
)
def test_labels_that_are_no_whole_numbers_are_refused(ids, message):
    with pytest.raises(InputError, match=message):
        labels.compact_labels(ids)


@modest
@given(
    arrays(np.int16, shapes, elements=st.sampled_from([-7, 0, 1, 2, 19, 254, 255])),
    st.sampled_from([None, 255, 0]),
    st.sampled_from([None, 0, 1]),
)
def test_semantic_labels(classes, void, background):
    ids, present = labels.semantic_labels(classes, void=void, background=background)
    expected_present = [value for value in np.unique(classes) if value not in (void, background)]
    assert present.tolist() == expected_present
    label = {background: 0} | {void: -1} | {value: i for i, value in enumerate(expected_present, 1)}
    expected = np.vectorize(label.__getitem__, otypes=[int])(classes)
    np.testing.assert_array_equal(ids, expected)


@modest
@given(label_maps, st.data())
def test_label_overlap_is_the_joint_histogram(a, data):
    b = data.draw(arrays(st.sampled_from([np.uint8, np.int64, np.uint32]), a.shape, elements=st.integers(0, 3)))
    expected = {}
    for pair in zip(a.ravel().tolist(), b.ravel().tolist(), strict=True):
        expected[pair] = expected.get(pair, 0) + 1
    for swap in (False, True):
        first, second, counts = labels.label_overlap(b, a) if swap else labels.label_overlap(a, b)
        got = list(zip(first.tolist(), second.tolist(), counts.tolist(), strict=True))
        assert got == sorted((*(pair[::-1] if swap else pair), count) for pair, count in expected.items())


def test_label_overlap_of_many_and_of_extreme_labels():
    rng = np.random.default_rng(1)
    a = rng.integers(-(2**31), 2**31, (60, 60)).astype(np.int32)
    b = rng.integers(-(2**62), 2**62, (60, 60))
    first, second, counts = labels.label_overlap(a, b)
    order = np.lexsort((b.ravel(), a.ravel()))
    np.testing.assert_array_equal(first, a.ravel()[order])
    np.testing.assert_array_equal(second, b.ravel()[order])
    assert (counts == 1).all()
    with pytest.raises(InputError, match="shapes"):
        labels.label_overlap(a, b[1:])


@modest
@given(label_maps)
def test_areas_and_boxes_equal_scipy(ids):
    np.testing.assert_array_equal(labels.label_areas(ids, 5), [(ids == i).sum() for i in range(1, 6)])
    boxes = labels.label_boxes(ids, 5)
    assert boxes.shape == (5, 2 * ids.ndim)
    found = ndimage.find_objects(np.maximum(ids, 0), 5)
    for box, slices in zip(boxes, found, strict=True):
        if slices is None:
            assert not box.any()
        else:
            assert box.tolist() == [each.start for each in slices[::-1]] + [each.stop for each in slices[::-1]]


def test_labels_above_the_count_are_passed_over():
    ids = np.array([[1, 2, 9]])
    assert labels.label_areas(ids, 2).tolist() == [1, 1]
    with pytest.raises(InputError, match="compact_labels"):
        labels.label_areas(np.array([[2**40]]), 2)
    with pytest.raises(InputError, match="expected"):
        labels.label_areas(np.zeros(4, int), 2)


@modest
@given(arrays(np.bool_, shapes), st.integers(1, 3))
def test_components_of_a_mask_equal_scipy(mask, connectivity):
    connectivity = min(connectivity, mask.ndim)
    components, owners = labels.connected_components(mask, connectivity)
    expected, count = ndimage.label(mask, ndimage.generate_binary_structure(mask.ndim, connectivity))
    assert owners.tolist() == [1] * count
    # same partition, and numbers in the order of first pixels
    pairs = np.unique(np.stack([components.ravel(), expected.ravel()]), axis=1)
    assert pairs.shape[1] == len(np.unique(expected))
    first = [np.flatnonzero(components == i)[0] for i in range(1, count + 1)]
    assert first == sorted(first)


@modest
@given(label_maps, st.integers(1, 2))
def test_components_of_labels_are_those_of_their_masks(ids, connectivity):
    components, owners = labels.connected_components(ids, connectivity)
    np.testing.assert_array_equal(components <= 0, ids <= 0)
    np.testing.assert_array_equal(components == -1, ids == -1)
    for label in range(1, 5):
        mine = np.where(ids == label, components, 0)
        structure = ndimage.generate_binary_structure(ids.ndim, connectivity)
        expected, count = ndimage.label(ids == label, structure)
        assert (owners == label).sum() == count
        assert len(np.unique(np.stack([mine.ravel(), expected.ravel()]), axis=1).T) == len(np.unique(expected))


def test_components_of_a_spiral_are_one():
    spiral = np.zeros((41, 41), bool)
    y, x, heading, length = 20, 20, 0, 2
    while 0 <= y < 41 and 0 <= x < 41:
        for _ in range(2):
            for _ in range(length):
                if 0 <= y < 41 and 0 <= x < 41:
                    spiral[y, x] = True
                y, x = y + (0, 1, 0, -1)[heading], x + (1, 0, -1, 0)[heading]
            heading = (heading + 1) % 4
        length += 2
    assert len(labels.connected_components(spiral)[1]) == ndimage.label(spiral)[1] == 1
    with pytest.raises(InputError, match="connectivity"):
        labels.connected_components(spiral, 3)


@pytest.mark.parametrize("shape", [(40, 50), (8, 20, 30)])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_measures_equal_scikit_image(shape, kind):
    regionprops_table = pytest.importorskip("skimage.measure").regionprops_table
    rng = np.random.default_rng(3)
    ids, count = ndimage.label(ndimage.gaussian_filter(rng.random(shape), 1.5) > 0.52)
    image = rng.integers(0, 200, (*shape, 2)).astype(kind)
    columns = labels.label_measures(ids, count + 1, image)
    expected = regionprops_table(ids, image, properties=("area", "centroid", "bbox", "mean_intensity"))
    names = [f"centroid_{axis}" for axis in "zyx"[-len(shape) :]]
    names += [f"{axis}{end}" for end in (0, 1) for axis in "zyx"[-len(shape) :]]
    properties = [f"centroid-{i}" for i in range(len(shape))] + [f"bbox-{i}" for i in range(2 * len(shape))]
    pairs = [("area", "area"), *zip(names, properties, strict=True)]
    pairs += [(f"mean_intensity_{i}", f"mean_intensity-{i}") for i in range(2)]
    for name, theirs in pairs:
        np.testing.assert_allclose(columns[name][:-1], expected[theirs], rtol=1e-6)
    assert set(columns) == {name for name, _ in pairs}
    # the last label does not occur
    assert columns["area"][-1] == columns["x1"][-1] == 0
    assert np.isnan(columns["centroid_x"][-1])
    assert np.isnan(columns["mean_intensity_1"][-1])


def test_measures_refuse_an_image_of_another_size():
    with pytest.raises(InputError, match=r"expected \(3, 4, 'C'\)"):
        labels.label_measures(np.zeros((3, 4), int), 1, np.zeros((3, 4)))


@modest
@given(label_maps)
def test_boundaries_equal_scikit_image(ids):
    find_boundaries = pytest.importorskip("skimage.segmentation").find_boundaries
    ids = np.maximum(ids, 0)
    np.testing.assert_array_equal(labels.label_boundaries(ids), find_boundaries(ids, connectivity=1, mode="inner"))


@modest
@given(label_maps, st.integers(1, 4))
def test_thick_boundaries_are_the_pixels_near_another_label(ids, thickness):
    expected = np.zeros(ids.shape, bool)
    for label in np.unique(ids[ids > 0]):
        inside = ids == label
        if not inside.all():
            expected |= inside & (ndimage.distance_transform_cdt(inside, metric="taxicab") <= thickness)
    np.testing.assert_array_equal(labels.label_boundaries(ids, thickness), expected)
    with pytest.raises(InputError, match="thickness"):
        labels.label_boundaries(ids, 0)


@pytest.mark.parametrize("size", [0, 1, 2, 8191, 8192, 8193, 16385])
@pytest.mark.parametrize("kinds", [(np.uint8, np.int32), (np.int32, np.int32), (np.int64, np.uint8)])
def test_label_overlap_at_the_edges_of_blocks(size, kinds):
    """Lengths around that of the blocks in which ends of runs are found, with runs that cross their edges."""
    generator = np.random.default_rng(size)
    a, b = (np.repeat(generator.integers(0, 4, size // 3 + 1), 3)[:size].astype(kind)[None] for kind in kinds)
    found = labels.label_overlap(a, b)
    pairs, counts = np.unique(np.stack([a[0], b[0]]).astype(np.int64), axis=1, return_counts=True)
    np.testing.assert_array_equal(np.stack(found[:2]), pairs)
    np.testing.assert_array_equal(found[2], counts)
    assert found[2].sum() == size


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_label_overlap_in_bands_equals_one_table(monkeypatch, threads):
    """Bands cut runs and share pairs; together they are what a single pass finds."""
    from everymask.ops import label_tables

    generator = np.random.default_rng(threads)
    a, b = (np.repeat(generator.integers(-1, 300, (40, 70)), 9, axis=1).astype(np.int32) for _ in range(2))
    monkeypatch.setattr(label_tables, "_BAND", 999)
    monkeypatch.setitem(vars(label_tables.config), "NUMBA_NUM_THREADS", threads)
    found = np.stack(labels.label_overlap(a, b))
    pairs, counts = np.unique(np.stack([a.ravel(), b.ravel()]), axis=1, return_counts=True)
    np.testing.assert_array_equal(found, np.vstack([pairs, counts]))
    np.testing.assert_array_equal(label_tables.distinct(a), np.unique(a))
