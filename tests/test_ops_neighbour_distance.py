"""Distance targets against the formulas of the publications, written down object by object over the whole image."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from touching_toys import touching

from everymask.errors import InputError
from everymask.ops.gaps import close_gaps
from everymask.ops.nearest_other import distance_to_others
from everymask.ops.neighbour_distance import (
    border_classes,
    centre_and_boundary,
    label_maxima,
    neighbour_targets,
    signed_targets,
)
from everymask.ops.watershed import class_votes, mean_inside, seeds_of, watershed

measure = pytest.importorskip("skimage.measure")
morphology = pytest.importorskip("skimage.morphology")
segmentation = pytest.importorskip("skimage.segmentation")


def blobs(shape: tuple[int, ...], seed: int, objects: int = 7, background: float = 0.4) -> NDArray[np.int32]:
    """Touching, holed, disconnected objects of all sizes, many cut by the border."""
    random = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(random.normal(size=(objects, *shape)), (0, *[2.0] * len(shape)))
    best = noise.argmax(0) + 1
    field = ndimage.gaussian_filter(random.normal(size=shape), 2)
    return np.where(field < np.quantile(field, background), 0, best).astype(np.int32)


def degenerate() -> dict[str, NDArray[np.int32]]:
    one_pixel = np.zeros((7, 9), np.int32)
    one_pixel[3, 4] = 5
    halves = np.ones((16, 18), np.int32)
    halves[:, 9:] = 2
    line = np.zeros((9, 24), np.int32)
    line[4, 2:10], line[4, 12:22] = 1, 2
    enclosed = np.ones((15, 15), np.int32)
    enclosed[5:10, 5:10] = 2
    void = np.zeros((14, 14), np.int32)
    void[:6], void[6:8], void[8:] = 1, -1, 2
    return {
        "empty": np.zeros((5, 6), np.int32),
        "one pixel": one_pixel,
        "full": np.full((9, 8), 3, np.int32),
        "halves": halves,
        "thin lines": line,
        "one inside another": enclosed,
        "void between": void,
        "row": np.array([[1, 1, 1, 0, 0, 2, 2]], np.int32),
    }


def official_neighbour(labels: NDArray[np.int32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cell and neighbour distance of Scherr et al. 2020 as microbeSEG makes them."""
    labels = np.maximum(labels, 0)
    numbers = [each for each in np.unique(labels) if each]
    cell, neighbour = np.zeros(labels.shape), np.zeros(labels.shape)
    square = np.ones((3, 3), bool)
    for number in numbers:
        own = labels == number
        # A frame where nothing else ends the object; otherwise the border of the image is no edge.
        edge = ndimage.distance_transform_edt(np.pad(own, 1))[1:-1, 1:-1] if own.all() else edge_of(own)
        cell[own] = edge[own] / edge.max()
        others = (labels > 0) & ~own
        if others.any():
            distance = ndimage.distance_transform_edt(~others)[own]
            neighbour[own] = 1 - np.clip(distance / min(edge.max() + 3, distance.max()), 0, 1)

    def closed(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return ndimage.binary_closing(np.pad(mask, 9), morphology.disk(3))[9:-9, 9:-9]

    union, touch = np.zeros(labels.shape, bool), np.zeros(labels.shape, bool)
    for number in numbers:
        own = labels == number
        union |= closed(own)
        touch |= ndimage.binary_dilation(own, square) & ~own & (labels > 0)
    parts = measure.label(closed(union) & ~union, connectivity=2)
    gaps = (parts > 0).astype(float)
    for part in measure.regionprops(parts):
        inside = parts == part.label
        if part.axis_minor_length >= 3:
            gaps[inside & ~ndimage.binary_erosion(inside)] = 0.8
        least = next((least for area, least in ((20, 5), (30, 8), (50, 10)) if part.area <= area), 20)
        if (neighbour * (ndimage.binary_dilation(inside, square) & ~inside)).sum() < least:
            gaps[inside] = 0
    nearest = np.max([neighbour, gaps, touch], axis=0)
    nearest = np.clip(1 / np.sqrt(0.65 + 0.5 * np.exp(-11 * (nearest - 0.75))) - 0.19, 0, 1)
    return cell, ndimage.grey_closing(nearest, size=(3, 3))


def edge_of(own: NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.asarray(ndimage.distance_transform_edt(own))


@pytest.mark.parametrize("name", degenerate())
def test_neighbour_targets_of_degenerate_images_follow_the_formulas(name: str) -> None:
    labels = degenerate()[name]
    for ours, official in zip(neighbour_targets(labels), official_neighbour(labels), strict=True):
        np.testing.assert_allclose(ours, official, atol=1e-5)


@pytest.mark.parametrize("seed", range(8))
def test_neighbour_targets_follow_the_formulas(seed: int) -> None:
    labels = blobs((70, 61), seed, background=0.15 * (seed % 4)) if seed % 2 else touching((80, 90), seed)
    for ours, official in zip(neighbour_targets(labels), official_neighbour(labels), strict=True):
        np.testing.assert_allclose(ours, official, atol=1e-5)


@pytest.mark.parametrize("anisotropy", [1.0, 2.5, 6.0])
@pytest.mark.parametrize("seed", range(3))
def test_neighbour_targets_of_volumes_follow_the_formulas(seed: int, anisotropy: float) -> None:
    # Distances in space, touching by a face, an edge or a corner; gaps and the grey closing plane by plane.
    labels = blobs((9, 30, 28), seed, background=0.3)
    labels[:, 12:14] = 0  # gaps
    spacing = (anisotropy, 1.0, 1.0)
    cell, neighbour = np.zeros(labels.shape), np.zeros(labels.shape)
    touch = np.zeros(labels.shape, bool)
    for number in range(1, labels.max() + 1):
        own = labels == number
        edge = ndimage.distance_transform_edt(own, sampling=spacing)
        cell[own] = edge[own] / edge.max()
        distance = ndimage.distance_transform_edt(~((labels > 0) & ~own), sampling=spacing)[own]
        neighbour[own] = 1 - np.clip(distance / min(edge.max() + 3, distance.max()), 0, 1)
        touch |= ndimage.binary_dilation(own, np.ones((3, 3, 3))) & ~own & (labels > 0)
    gaps = np.stack([close_gaps(*each) for each in zip(labels, neighbour.astype(np.float32), strict=True)])
    nearest = np.max([neighbour, gaps, touch], axis=0)
    nearest = np.clip(1 / np.sqrt(0.65 + 0.5 * np.exp(-11 * (nearest - 0.75))) - 0.19, 0, 1)
    ours = neighbour_targets(labels, spacing)
    assert (gaps[labels == 0] > 0).any()
    np.testing.assert_allclose(ours[0], cell, atol=1e-5)
    np.testing.assert_allclose(ours[1], ndimage.grey_closing(nearest, size=(1, 3, 3)), atol=1e-5)


def test_a_single_plane_is_an_image() -> None:
    labels = touching((50, 40), 1)
    for ours, plane in zip(neighbour_targets(labels[None], (3.0, 1.0, 1.0)), neighbour_targets(labels), strict=True):
        np.testing.assert_array_equal(ours[0], plane)
    np.testing.assert_array_equal(border_classes(labels[None], 2, (3.0, 1.0, 1.0))[0], border_classes(labels, 2))
    np.testing.assert_array_equal(signed_targets(labels[None], 3, (3.0, 1.0, 1.0))[0], signed_targets(labels, 3))


def test_neighbour_targets_of_real_masks_follow_the_formulas(shared_data: Path) -> None:
    from PIL import Image

    gaps = 0
    for path in sorted((shared_data / "dsb2018" / "train" / "masks").glob("*.png"))[:6]:
        labels = np.asarray(Image.open(path)).astype(np.int32)[:160, :160]
        cell, neighbour = neighbour_targets(labels)
        official_cell, official = official_neighbour(labels)
        np.testing.assert_allclose(cell, official_cell, atol=1e-5)
        np.testing.assert_allclose(neighbour, official, atol=1e-5)
        gaps += np.count_nonzero(neighbour[labels == 0])
    assert gaps > 20


def test_ids_may_be_sparse_and_large() -> None:
    labels = touching((60, 60), 3)
    sparse = np.where(labels > 0, labels.astype(np.int64) * 300_000_007, -7)
    for ours, plain in zip(neighbour_targets(sparse), neighbour_targets(labels), strict=True):
        np.testing.assert_array_equal(ours, plain)


@pytest.mark.parametrize(
    ("shape", "spacing"), [((23, 19), (1.0, 1.0)), ((17, 20), (0.5, 1.7)), ((6, 11, 9), (2.5, 1.0, 0.7))]
)
@pytest.mark.parametrize("reach", [2.5, 100.0])
def test_distance_to_others_equals_brute_force(
    shape: tuple[int, ...], spacing: tuple[float, ...], reach: float
) -> None:
    labels = blobs(shape, seed=4, background=0.5)
    places = np.array(list(itertools.product(*map(range, shape))))
    values = labels.ravel()
    expected = np.zeros(labels.size)
    for n in np.flatnonzero(values):
        others = places[(values != values[n]) & (values > 0)]
        expected[n] = min(reach, np.linalg.norm((others - places[n]) * spacing, axis=1).min())
    np.testing.assert_allclose(distance_to_others(labels, reach, spacing), expected.reshape(shape), rtol=1e-6)


def test_one_object_alone_has_others_nowhere() -> None:
    labels = np.zeros((8, 9), np.int32)
    labels[2:5, 3:6] = 4
    np.testing.assert_array_equal(distance_to_others(labels, 6), np.where(labels, 6, 0))
    assert not neighbour_targets(labels)[1].any()


@pytest.mark.parametrize("shape", [(40, 37), (7, 14, 12)])
def test_signed_targets_follow_the_formula(shape: tuple[int, ...]) -> None:
    labels = blobs(shape, seed=5)
    expected = -np.asarray(ndimage.distance_transform_edt(labels == 0))
    for number in range(1, labels.max() + 1):
        expected[labels == number] = edge_of(labels == number)[labels == number]
    np.testing.assert_allclose(signed_targets(labels, 4.0), np.tanh(expected / 4), atol=1e-6)


@pytest.mark.parametrize("anisotropy", [1.0, 4.0])
def test_signed_targets_of_volumes_keep_touching_objects_apart(anisotropy: float) -> None:
    labels = blobs((7, 16, 15), seed=6)
    spacing = (anisotropy, 1.0, 1.0)
    expected = -np.asarray(ndimage.distance_transform_edt(labels == 0, sampling=spacing))
    for number in range(1, labels.max() + 1):
        own = labels == number
        expected[own] = ndimage.distance_transform_edt(own, sampling=spacing)[own]
        # Voxels that another object touches across planes, which count as a pixel apart there.
        others = np.pad((labels > 0) & ~own, 1)
        for z, y, x in np.argwhere(own):
            for step in itertools.product((-1, 1), (-1, 0, 1), (-1, 0, 1)):
                if others[z + 1 + step[0], y + 1 + step[1], x + 1 + step[2]]:
                    expected[z, y, x] = min(expected[z, y, x], np.linalg.norm(step))
    assert (expected == 1).sum() > 20
    np.testing.assert_allclose(signed_targets(labels, 4.0, spacing), np.tanh(expected / 4), atol=1e-6)


def test_signed_targets_without_an_edge_have_one_sign() -> None:
    assert (signed_targets(np.zeros((9, 9), np.int32), 3.0) < -0.9).all()
    assert (signed_targets(np.ones((9, 9), np.int32), 3.0) > 0.3).all()


def official_boundary(
    labels: NDArray[np.int32], spacing: tuple[float, ...]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distances to centre and boundary of torch-em, with a distance transform of scipy."""
    centre, boundary = np.ones(labels.shape), np.ones(labels.shape)
    outermost = segmentation.find_boundaries(labels, mode="inner", connectivity=1)
    grid = np.indices(labels.shape)
    for each in measure.regionprops(labels):
        own = labels == each.label
        depth = np.where(own, ndimage.distance_transform_edt(~(outermost & own), sampling=spacing), 0)
        middle = tuple(np.round(each.centroid).astype(int))
        if not own[middle]:
            # torch-em may take a pixel of another object here if this one is all boundary.
            middle = np.unravel_index(np.argmax(np.where(own, depth, -1)), labels.shape)
        away = np.sqrt(sum(((axis - at) * step) ** 2 for axis, at, step in zip(grid, middle, spacing, strict=True)))
        centre[own] = (away / (away[own].max() + 1e-7))[own]
        boundary[own] = ((depth.max() - depth) / (depth.max() + 1e-7))[own]
    return centre, boundary


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((50, 43), None), ((30, 33), (0.5, 2.0)), ((8, 15, 13), None), ((8, 15, 13), (2.5, 1.0, 1.0))],
)
@pytest.mark.parametrize("seed", range(3))
def test_centre_and_boundary_follow_torch_em(
    shape: tuple[int, ...], spacing: tuple[float, ...] | None, seed: int
) -> None:
    labels = blobs(shape, seed)
    expected = official_boundary(labels, spacing or (1.0,) * labels.ndim)
    for ours, official in zip(centre_and_boundary(labels, spacing), expected, strict=True):
        np.testing.assert_allclose(ours, official, atol=1e-5)


@pytest.mark.parametrize("width", [1, 1.5, 3])
def test_border_is_as_wide_as_asked(width: float) -> None:
    labels = blobs((50, 43), seed=1)
    classes = border_classes(labels, width)
    for number in range(1, labels.max() + 1):
        own = labels == number
        edge = edge_of(own)
        interior = own & ((edge > width) if edge.max() > width else (edge == edge.max()))
        np.testing.assert_array_equal(classes[own] == 1, interior[own])
        assert interior.any()
    np.testing.assert_array_equal(classes == 0, labels == 0)
    if width == 1:
        official = segmentation.find_boundaries(labels, mode="inner", connectivity=1)
        thick = np.isin(labels, [n for n in range(1, labels.max() + 1) if edge_of(labels == n).max() > 1])
        np.testing.assert_array_equal((classes == 2)[thick], official[thick])


@pytest.mark.parametrize("width", [1, 1.5, 3])
@pytest.mark.parametrize("anisotropy", [1.0, 2.0, 5.0])
def test_interiors_of_volumes_do_not_touch(anisotropy: float, width: float) -> None:
    labels = blobs((12, 24, 22), seed=2)
    spacing = (anisotropy, 1.0, 1.0)
    classes = border_classes(labels, width, spacing)
    across = np.zeros((3, 3, 3))
    across[[0, 2]] = 1
    for number in range(1, labels.max() + 1):
        own = labels == number
        edge = ndimage.distance_transform_edt(own, sampling=spacing)
        border = (edge <= width) | ndimage.binary_dilation((labels > 0) & ~own, across)
        interior = own & ~border if (own & ~border).any() else own & (edge >= edge.max() * (1 - 1e-6))
        np.testing.assert_array_equal(classes[own] == 1, interior[own])
    parts, count = ndimage.label(classes == 1, np.ones((3, 3, 3)))
    assert count > labels.max()
    for part in range(1, count + 1):
        assert len(np.unique(labels[parts == part])) == 1


def test_label_maxima_equal_scipy() -> None:
    labels = blobs((30, 31), seed=2)
    values = np.random.default_rng(0).random(labels.shape).astype(np.float32)
    expected = ndimage.maximum(values, labels, np.arange(1, labels.max() + 1))
    np.testing.assert_allclose(label_maxima(labels, values), [0, *expected])


def test_seeds_are_dropped_as_by_microbeseg() -> None:
    random = np.random.default_rng(3)
    mask = ndimage.gaussian_filter(random.normal(size=(90, 80)), 1.5) > 0.1
    official = measure.label(mask, connectivity=2)
    areas = np.bincount(official.ravel())[1:]
    assert (areas <= 4).any()
    assert (areas > 4).any()
    small = 1 + np.flatnonzero(areas <= max(0.1 * areas.mean(), 4))
    official = measure.label(np.where(np.isin(official, small), 0, official) > 0, connectivity=2)
    np.testing.assert_array_equal(seeds_of(mask), official)
    volume = ndimage.gaussian_filter(random.normal(size=(12, 20, 21)), 1.0) > 0.2
    np.testing.assert_array_equal(seeds_of(volume, least=0, share=0), measure.label(volume, connectivity=3))
    np.testing.assert_array_equal(seeds_of(mask, least=0, share=0), measure.label(mask, connectivity=2))
    assert not seeds_of(np.zeros((3, 4), bool)).any()


def test_watershed_is_that_of_scikit_image_numbered_anew() -> None:
    random = np.random.default_rng(4)
    heights = ndimage.gaussian_filter(random.normal(size=(60, 50)), 2)
    mask = ndimage.gaussian_filter(random.normal(size=(60, 50)), 3) > -0.05
    seeds = measure.label(heights < np.quantile(heights, 0.1)).astype(np.int32)
    found = watershed(heights, seeds, mask)
    official = segmentation.watershed(heights, seeds, mask=mask)
    assert found.max() == len(np.unique(official)) - 1
    assert found.max() < seeds.max()  # some seeds lie outside the mask
    pairs = np.unique(np.column_stack([found.ravel(), official.ravel()]), axis=0)
    assert len(pairs) == found.max() + 1
    assert (np.diff(pairs, axis=0) > 0).all()


def test_a_missing_scikit_image_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    with pytest.raises(InputError, match=r"everymask\[microscopy\]"):
        watershed(np.zeros((3, 3)), np.zeros((3, 3), np.int32), np.ones((3, 3), bool))


@pytest.mark.parametrize("shape", [(20, 21), (6, 20, 21)])
def test_votes_and_means_equal_numpy(shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(5)
    ids = blobs(shape, seed=6)
    count = int(ids.max())
    probability = random.random((4, *(each + 2 for each in shape))).astype(np.float32)
    inside = [ids == number for number in range(1, count + 1)]
    window = probability[(slice(None), *map(slice, shape))]
    expected = [window[:, each].sum(1).argmax() for each in inside]
    np.testing.assert_array_equal(class_votes(ids, count, probability), expected)
    values = random.random(ids.shape)
    np.testing.assert_allclose(mean_inside(ids, count, values), [values[each].mean() for each in inside])
    assert len(mean_inside(ids * 0, 0, values)) == 0


def test_wrong_arguments_are_told() -> None:
    volume = np.ones((3, 4, 5), np.int32)
    for spacing in ((1.0, 1.0), (0.0, 1.0, 1.0), (np.nan, 1.0, 1.0)):
        with pytest.raises(InputError, match="spacing"):
            neighbour_targets(volume, spacing)
    with pytest.raises(InputError, match="spacing"):
        centre_and_boundary(volume, (1.0, 1.0))
    with pytest.raises(InputError, match="float64"):
        neighbour_targets(np.zeros((4, 4)))
    with pytest.raises(InputError, match="sigma"):
        signed_targets(volume, 0)
    with pytest.raises(InputError, match="border width"):
        border_classes(volume, 0.5)
    with pytest.raises(InputError, match="spacing"):
        distance_to_others(volume, 3, (1.0, 1.0))
    with pytest.raises(InputError, match="reach"):
        distance_to_others(volume, 0)
