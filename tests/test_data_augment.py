"""Crops and augmentation against plain NumPy and SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from everymask.data.augment import Augmentation, Placement


def as_float(window):
    """Preprocessing that changes no value."""
    return np.ascontiguousarray(window.transpose(2, 0, 1), dtype=np.float32)


def made_up(height, width, channels=2, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, channels)).astype(np.uint8)
    return image, rng.integers(0, 9, (height, width)).astype(np.int32)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("turns", range(4))
def test_symmetries_of_the_square_are_exact(flip, turns):
    image, ids = made_up(8, 8)
    found, labels = Placement(flip=flip, turns=turns).cut(image, ids, np.array([3.5, 3.5]), 8, as_float)
    expected, expected_labels = np.rot90(image, turns), np.rot90(ids, turns)
    if flip:
        expected, expected_labels = np.fliplr(expected), np.fliplr(expected_labels)
    np.testing.assert_array_equal(found, expected.transpose(2, 0, 1))
    np.testing.assert_array_equal(labels, expected_labels)


def test_a_crop_beyond_the_image_is_mirrored_and_void():
    image, ids = made_up(5, 12)
    found, labels = Placement().cut(image, ids, np.array([2.0, 3.5]), 8, as_float)
    # Rows -2..5 (nearest whole start), columns 0..7.
    start = round(2.0 - 3.5)
    rows = np.pad(image[:, :8], [(-start, start + 8 - 5), (0, 0), (0, 0)], mode="symmetric")
    np.testing.assert_array_equal(found, rows.transpose(2, 0, 1))
    np.testing.assert_array_equal(labels, np.pad(ids[:, :8], [(-start, start + 8 - 5), (0, 0)], constant_values=-1))


@pytest.mark.parametrize(("angle", "scale"), [(0.3, 1.0), (0.0, 1.7), (-1.1, 0.8)])
def test_resampling_agrees_with_scipy(angle, scale):
    image, ids = made_up(60, 50)
    image = ndimage.gaussian_filter(image, (2, 2, 0))
    centre, crop = np.array([29.3, 24.1]), 17
    found, labels = Placement(angle, scale).cut(image, ids, centre, crop, as_float)
    cosine, sine = math.cos(angle) / scale, math.sin(angle) / scale
    matrix = np.array([[cosine, -sine], [sine, cosine]])
    offset = centre - matrix @ np.full(2, (crop - 1) / 2)
    for channel in range(2):
        expected = ndimage.affine_transform(
            image[..., channel].astype(float), matrix, offset, output_shape=(crop, crop), order=1
        )
        np.testing.assert_allclose(found[channel], expected, atol=1e-2)
    nearest = ndimage.affine_transform(ids, matrix, offset, output_shape=(crop, crop), order=0)
    assert (labels == nearest).mean() > 0.99  # positions half way between two pixels may round either way


def test_resampling_gives_void_outside():
    image, ids = np.full((10, 10, 1), 7, np.uint8), np.full((10, 10), 3, np.int32)
    found, labels = Placement(scale=0.5).cut(image, ids, np.array([4.5, 4.5]), 16, as_float)
    np.testing.assert_allclose(found, 7, rtol=1e-6)
    # At half the size the image covers the middle 5 pixels, give or take half a pixel at each side.
    inside = labels == 3
    assert set(np.unique(labels)) == {-1, 3}
    assert 16 <= inside.sum() <= 36
    assert inside[6:10, 6:10].all()


def test_image_and_labels_stay_together():
    rows, columns = np.mgrid[:64, :64]
    ids = ((rows - 30) ** 2 + (columns - 34) ** 2 < 200).astype(np.int32)
    image = (ids * 200).astype(np.uint8)[..., None]
    augmentation = Augmentation(flip="dihedral", rotate=180, scale=(0.7, 1.5))
    rng = np.random.default_rng(3)
    for _ in range(20):
        placement = augmentation.draw_placement(rng)
        centre = placement.random_centre(32, (64, 64), rng, np.array([30.0, 34.0]))
        found, labels = placement.cut(image, ids, centre, 32, as_float)
        known = labels >= 0
        assert ((found[0] > 100) == (labels == 1))[known].mean() > 0.97  # they differ on the outline alone


@settings(deadline=None, max_examples=100)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    crop=st.integers(1, 64),
    scale=st.floats(0.5, 2),
    place=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_target_lies_in_the_crop(height, width, crop, scale, place, seed):
    target = np.floor(np.array(place) * (np.array([height, width]) - 1))
    placement = Placement(scale=scale)
    centre = placement.random_centre(crop, (height, width), np.random.default_rng(seed), target)
    half = crop / scale / 2
    assert (np.abs(target - centre) <= half + 1e-6).all()
    # The crop leaves the image only along an axis on which it is larger than it.
    for at, length in zip(centre, (height, width), strict=True):
        if 2 * half <= length:
            assert half - 0.5 - 1e-6 <= at <= length - half - 0.5 + 1e-6


def test_default_augmentation_changes_nothing():
    image = np.random.default_rng(0).random((3, 9, 9), dtype=np.float32)
    rng = np.random.default_rng(0)
    assert Augmentation().draw_placement(rng) == Placement()
    np.testing.assert_array_equal(Augmentation().change_intensities(image, rng), image)


def test_intensity_changes_follow_their_definitions():
    image = np.random.default_rng(0).normal(0.5, 0.5, (2, 64, 64)).astype(np.float32)

    def changed(**ranges):
        return Augmentation(**ranges).change_intensities(image, np.random.default_rng(1))

    np.testing.assert_allclose(changed(invert=1.0), 1 - image)
    np.testing.assert_allclose(changed(contrast=(2.0, 2.0)), 2 * image)
    power = changed(gamma=(2.0, 2.0))
    np.testing.assert_allclose(power, np.where(image < 0, -(image**2), image**2), rtol=1e-5)
    shift = changed(brightness=0.2) - image
    assert np.ptp(shift) < 1e-6
    assert 0 < abs(shift.mean()) <= 0.2
    shift = changed(colour=0.3) - image
    assert np.ptp(shift, axis=(1, 2)).max() < 1e-6
    assert abs(shift[0, 0, 0] - shift[1, 0, 0]) > 1e-3
    noise = [
        np.std(Augmentation(noise=0.1).change_intensities(image, np.random.default_rng(i)) - image) for i in range(40)
    ]
    assert max(noise) <= 0.102
    assert 0.03 < np.mean(noise) < 0.07  # uniform in 0..0.1
    blurred = changed(blur=3.0)
    assert blurred.std() < image.std()
    np.testing.assert_allclose(blurred.mean(axis=(1, 2)), image.mean(axis=(1, 2)), atol=0.03)


def test_magnification_is_symmetric_about_one():
    rng = np.random.default_rng(0)
    scales = [Augmentation(scale=(0.5, 2.0)).draw_placement(rng).scale for _ in range(2000)]
    assert 0.5 <= min(scales) < 0.52
    assert 1.95 < max(scales) <= 2
    assert 0.46 < np.mean(np.array(scales) < 1) < 0.54
