"""Bands and contours against morphology and the rules of the official programs, written out plainly."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage

from everymask.errors import InputError
from everymask.ops import boundaries, rle

modest = settings(max_examples=80, deadline=None)


def eroded_band(mask, width):
    """The mask less its erosion, over and over, by 3 x 3; all is background outside of the image."""
    return mask & ~ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=width, border_value=0)


def berkeley_contour(mask):
    """Where a pixel differs from the next to the right, below or between: whole arrays, shifted."""
    edge = np.zeros(mask.shape, bool)
    edge[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    edge[:-1, :] |= mask[:-1, :] != mask[1:, :]
    edge[:-1, :-1] |= mask[:-1, :-1] != mask[1:, 1:]
    # along the last row and column there is one neighbour only
    edge[-1, :-1] = mask[-1, :-1] != mask[-1, 1:]
    edge[:-1, -1] = mask[:-1, -1] != mask[1:, -1]
    edge[-1, -1] = False
    return edge


def blobs(number, height, width, seed):
    """Wavy blobs, some with holes, some cut by the border."""
    generator = np.random.default_rng(seed)
    noise = generator.standard_normal((number, height, width))
    smooth = ndimage.gaussian_filter(noise, (0, *generator.uniform(1.5, 6, 2)))
    return smooth > generator.choice([-0.3, 0, 0.3], (number, 1, 1)) * smooth.std()


@modest
@given(arrays(np.bool_, st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(1, 9))), st.integers(1, 4))
def test_bands_of_noise_equal_erosion(masks, width):
    counts, offsets = boundaries.mask_boundaries(*rle.encode(masks), masks.shape[1:], width)
    expected = rle.encode(np.stack([eroded_band(mask, width) for mask in masks]) if len(masks) else masks)
    np.testing.assert_array_equal(counts, expected[0])
    np.testing.assert_array_equal(offsets, expected[1])


@pytest.mark.parametrize("width", [1, 2, 5, 11])
def test_bands_of_blobs_equal_erosion(width):
    for seed, size in enumerate([(60, 80), (80, 23), (23, 23), (70, 130)]):
        masks = np.concatenate([blobs(6, *size, seed), np.ones((1, *size), bool), np.zeros((1, *size), bool)])
        counts, offsets = boundaries.mask_boundaries(*rle.encode(masks), size, width)
        expected = rle.encode(np.stack([eroded_band(mask, width) for mask in masks]))
        np.testing.assert_array_equal(counts, expected[0])
        np.testing.assert_array_equal(offsets, expected[1])
        some = boundaries.mask_boundaries(*rle.encode(masks), size, width, np.array([5, 1, 5]))
        np.testing.assert_array_equal(rle.decode(*some, size), rle.decode(*expected, size)[[5, 1, 5]])


def test_bands_of_masks_cut_by_the_border_on_any_side():
    generator = np.random.default_rng(3)
    for seed in range(300):
        height, width = (int(each) for each in generator.integers(3, 70, 2))
        mask = blobs(1, height, width, seed)[0]
        width_of_band = int(generator.integers(1, 9))
        counts, _ = boundaries.mask_boundaries(*rle.encode(mask[None]), mask.shape, width_of_band)
        np.testing.assert_array_equal(counts, rle.encode(eroded_band(mask, width_of_band)[None])[0])


def test_bands_equal_opencv_as_the_official_program_calls_it():
    cv2 = pytest.importorskip("cv2", reason="opencv is what the official program erodes with")
    masks = blobs(8, 90, 120, 7)
    size = masks.shape[1:]
    width = boundaries.boundary_width(size)
    bands = rle.decode(*boundaries.mask_boundaries(*rle.encode(masks), size, width), size)
    for mask, band in zip(masks, bands, strict=True):
        padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
        eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]
        np.testing.assert_array_equal(band, mask - eroded)


@modest
@given(
    arrays(np.int32, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(-1, 3)), st.integers(1, 4)
)
def test_bands_of_a_label_map_are_those_of_each_label(ids, width):
    expected = np.zeros(ids.shape, bool)
    for label in np.unique(ids):
        expected |= eroded_band(ids == label, width)
    np.testing.assert_array_equal(boundaries.label_boundaries(ids, width), expected)


def test_bands_of_a_larger_label_map():
    ids = blobs(3, 150, 170, 1).argmax(axis=0) + 3 * blobs(1, 150, 170, 2)[0]
    for width in (1, 3, 9):
        expected = sum(eroded_band(ids == label, width) for label in np.unique(ids)) > 0
        np.testing.assert_array_equal(boundaries.label_boundaries(ids, width), expected)


def test_overlaps_of_bands_are_counted_by_class():
    for seed, width in enumerate([1, 3, 8]):
        truth = blobs(3, 60, 75, seed).argmax(axis=0) - blobs(1, 60, 75, 9)[0]
        prediction = np.roll(truth, 2, axis=1)
        expected = []
        for k in range(2):
            first, second = eroded_band(truth == k, width), eroded_band(prediction == k, width)
            expected.append([(first & second).sum(), first.sum(), second.sum()])
        assert boundaries.band_overlaps(truth, prediction, 2, width).tolist() == expected


def test_widths_follow_the_diagonal():
    # the official program: int(round(.02 * sqrt(h^2 + w^2))), at least 1
    for size in [(480, 640), (5, 5), (1024, 2048), (75, 100), (375, 500)]:
        assert boundaries.boundary_width(size) == max(1, round(0.02 * np.hypot(*size)))
    assert boundaries.contour_tolerance((480, 854)) == np.ceil(0.008 * np.linalg.norm((480, 854)))
    assert boundaries.contour_tolerance((480, 854), 2.5) == 2.5


def davis_counts(truth, prediction, radius):
    """Contour pixels and matched ones by dilation with a disk, as DAVIS does it."""
    span = np.arange(-math.floor(radius), math.floor(radius) + 1)
    disk = span[:, None] ** 2 + span**2 <= radius**2
    edges = berkeley_contour(truth), berkeley_contour(prediction)
    wide = [ndimage.binary_dilation(edge, disk) for edge in edges]
    return [edges[0].sum(), (edges[0] & wide[1]).sum(), edges[1].sum(), (edges[1] & wide[0]).sum()]


@modest
@given(
    array_shapes(min_dims=2, max_dims=2, max_side=12).flatmap(
        lambda size: arrays(np.int32, (2, *size), elements=st.integers(-1, 3))
    ),
    st.sampled_from([0, 1, 1.5, 2, 3.7, 5]),
)
def test_contours_of_noise_match_as_by_dilation(maps, radius):
    counts = boundaries.contour_matches(maps[0], maps[1], 3, radius)
    assert counts.tolist() == [davis_counts(maps[0] == k, maps[1] == k, radius) for k in range(3)]


def test_contours_of_blobs_match_as_by_dilation():
    for seed, radius in enumerate([1, 2, 4, 7.5, 20]):
        truth = blobs(4, 90, 110, seed).argmax(axis=0)
        prediction = np.roll(truth, (seed, 2 * seed + 1), (0, 1))
        counts = boundaries.contour_matches(truth, prediction, 4, radius)
        assert counts.tolist() == [davis_counts(truth == k, prediction == k, radius) for k in range(4)]


def test_bad_arguments_are_told():
    with pytest.raises(InputError, match="at least 1 pixel"):
        boundaries.label_boundaries(np.zeros((3, 3), int), 0)
    with pytest.raises(InputError, match="at least 1 pixel"):
        boundaries.mask_boundaries(*rle.encode(np.zeros((1, 3, 3))), (3, 3), 0)
    with pytest.raises(InputError, match=r"expected \(H, W\)"):
        boundaries.label_boundaries(np.zeros((3, 3, 3), int), 1)
    with pytest.raises(InputError, match=r"expected one \(H, W\)"):
        boundaries.contour_matches(np.zeros((3, 3), int), np.zeros((3, 4), int), 1, 1)
