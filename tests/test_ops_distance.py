"""Distance transforms against the official StarDist program, scipy and brute force."""

from __future__ import annotations

import itertools
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from everymask.errors import InputError
from everymask.ops.distance import distance_to_edge, object_probability, signed_distance, unet_weight_map


def random_labels(shape: tuple[int, ...], seed: int, objects: int = 6) -> NDArray[np.int32]:
    """Touching, holed, disconnected objects, many cut by the border."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
    levels = np.quantile(noise, np.linspace(0, 1, objects + 2)[1:-1])
    return np.digitize(noise, levels).astype(np.int32)


def degenerate_labels() -> dict[str, NDArray[np.int32]]:
    one = np.zeros((7, 9), np.int32)
    one[3, 4] = 5
    corner = np.zeros((7, 9), np.int32)
    corner[0, 0] = 1
    touching = np.ones((6, 8), np.int32)
    touching[:, 4:] = 2
    border = np.zeros((8, 8), np.int32)
    border[:3], border[6:, 2:5] = 1, 2
    return {
        "empty": np.zeros((5, 6), np.int32),
        "one pixel": one,
        "corner pixel": corner,
        "touching, no background": touching,
        "cut by the border": border,
        "full": np.full((6, 5), 3, np.int32),
        "row": np.array([[1, 1, 1, 0, 2, 2]], np.int32),
        "column": np.array([[1], [1], [0], [2]], np.int32),
        "one pixel image": np.ones((1, 1), np.int32),
    }


def official_probability(labels: NDArray[np.int32], spacing: tuple[float, ...] | None = None) -> NDArray[np.float32]:
    utils = pytest.importorskip("stardist.utils")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the official program warns of an image that is one object
        return utils._edt_prob_scipy(labels, anisotropy=spacing)


def brute_force_edge(labels: NDArray[np.int32], spacing: tuple[float, ...]) -> NDArray[np.float64]:
    places = np.array(list(itertools.product(*map(range, labels.shape))))
    values = labels.ravel()
    result = np.zeros(labels.size)
    for n in np.flatnonzero(values):
        others = places[values != values[n]]
        result[n] = np.linalg.norm((others - places[n]) * spacing, axis=1).min()
    return result.reshape(labels.shape)


@pytest.mark.parametrize("name", degenerate_labels())
def test_probability_of_degenerate_images_equals_official(name: str) -> None:
    labels = degenerate_labels()[name]
    np.testing.assert_allclose(object_probability(labels), official_probability(labels), rtol=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_probability_equals_official(seed: int) -> None:
    labels = random_labels((61, 47), seed)
    np.testing.assert_allclose(object_probability(labels), official_probability(labels), rtol=1e-6)


def test_probability_in_3d_with_spacing_equals_official() -> None:
    labels = random_labels((9, 24, 17), seed=1)
    spacing = (2.5, 1.0, 0.7)
    np.testing.assert_allclose(object_probability(labels, spacing), official_probability(labels, spacing), rtol=1e-6)


def test_probability_on_real_masks_equals_official(shared_data: Path) -> None:
    from PIL import Image

    paths = sorted((shared_data / "dsb2018" / "val" / "masks").glob("*.png"))[:12]
    assert paths
    for path in paths:
        labels = np.asarray(Image.open(path)).astype(np.int32)
        np.testing.assert_allclose(object_probability(labels), official_probability(labels), rtol=1e-6)


def test_ids_may_be_sparse_and_negative() -> None:
    labels = random_labels((30, 30), seed=2)
    sparse = labels.copy()
    sparse[labels > 0] = labels[labels > 0] * 300_000_000
    np.testing.assert_array_equal(object_probability(sparse), object_probability(labels))
    void = labels.copy()
    void[labels == 1] = -1
    np.testing.assert_array_equal(
        object_probability(void), object_probability(np.where(labels == 1, 0, labels).astype(np.int32))
    )
    only_objects = np.array([[900, 900, 700_000]], np.int32)  # no background, so that no id is 0
    np.testing.assert_allclose(object_probability(only_objects), [[1, 0.5, 1]], rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "spacing"), [((23, 17), (1.0, 1.0)), ((15, 18), (0.5, 2.0)), ((5, 9, 8), (3.0, 1.0, 1.0))]
)
def test_distance_to_edge_equals_brute_force(shape: tuple[int, ...], spacing: tuple[float, ...]) -> None:
    labels = random_labels(shape, seed=3)
    np.testing.assert_allclose(distance_to_edge(labels, spacing), brute_force_edge(labels, spacing), rtol=1e-6)


def test_full_image_is_measured_to_a_frame_around_it() -> None:
    expected = ndimage.distance_transform_edt(np.pad(np.ones((5, 8)), 1))[1:-1, 1:-1]
    np.testing.assert_allclose(distance_to_edge(np.full((5, 8), 4)), expected, rtol=1e-6)


@pytest.mark.parametrize("shape", [(40, 31), (7, 12, 13)])
def test_signed_distance_equals_two_transforms(shape: tuple[int, ...]) -> None:
    mask = random_labels(shape, seed=4) > 3
    expected = ndimage.distance_transform_edt(mask) - ndimage.distance_transform_edt(~mask)
    np.testing.assert_allclose(signed_distance(mask), expected, rtol=1e-6)


def test_signed_distance_without_edge_is_the_diagonal() -> None:
    np.testing.assert_allclose(signed_distance(np.ones((3, 4), bool)), 5.0)
    np.testing.assert_allclose(signed_distance(np.zeros((3, 4), bool)), -5.0)


def brute_force_weights(labels: NDArray[np.int32], w0: float, sigma: float) -> NDArray[np.float64]:
    distances = np.sort(
        [ndimage.distance_transform_edt(labels != label) for label in np.unique(labels[labels > 0])], axis=0
    )
    return np.where(labels == 0, w0 * np.exp(-((distances[0] + distances[1]) ** 2) / (2 * sigma**2)), 0)


@pytest.mark.parametrize(("w0", "sigma"), [(10.0, 5.0), (4.0, 1.5)])
def test_unet_weights_equal_brute_force(w0: float, sigma: float) -> None:
    rng = np.random.default_rng(5)
    labels = np.zeros((90, 110), np.int32)
    rows, columns = np.indices(labels.shape)
    for label in range(1, 15):
        y, x, radius = rng.uniform(0, 90), rng.uniform(0, 110), rng.uniform(1, 9)
        labels[(np.hypot(rows - y, columns - x) < radius) & (labels == 0)] = label
    weights = unet_weight_map(labels, w0, sigma)
    assert weights.max() > 0.25 * w0
    np.testing.assert_allclose(weights, brute_force_weights(labels, w0, sigma), rtol=1e-5, atol=w0 * 2e-8)


def test_unet_weights_of_two_pixels_have_the_closed_form() -> None:
    labels = np.zeros((1, 9), np.int32)
    labels[0, 1], labels[0, 6] = 1, 2
    expected = [10 * math.exp(-(((abs(x - 1) + abs(x - 6)) / 5) ** 2) / 2) if x not in (1, 6) else 0 for x in range(9)]
    np.testing.assert_allclose(unet_weight_map(labels)[0], expected, rtol=1e-6)


@pytest.mark.parametrize("ids", [[], [3]])
def test_unet_weights_need_two_objects(ids: list[int]) -> None:
    labels = np.zeros((12, 12), np.int32)
    for label in ids:
        labels[4:7, 4:7] = label
    np.testing.assert_array_equal(unet_weight_map(labels), np.zeros((12, 12)))


@pytest.mark.parametrize("function", [distance_to_edge, object_probability, signed_distance, unet_weight_map])
def test_arrays_without_pixels(function: object) -> None:
    assert function(np.zeros((0, 5), np.int32)).shape == (0, 5)  # type: ignore[operator]


def test_mistakes_are_told_in_a_line() -> None:
    with pytest.raises(InputError, match="4 axes"):
        object_probability(np.zeros((1, 1, 1, 1), np.int32))
    with pytest.raises(InputError, match="float64"):
        distance_to_edge(np.zeros((3, 3)))
    with pytest.raises(InputError, match="spacing"):
        distance_to_edge(np.ones((3, 3), np.int32), spacing=(1.0, 0.0))
    with pytest.raises(InputError, match="sigma"):
        unet_weight_map(np.ones((3, 3), np.int32), sigma=0)
