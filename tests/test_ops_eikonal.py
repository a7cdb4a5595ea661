"""The kernels of Omnipose against plain numpy, closed forms and scikit-learn."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from touching_toys import touching

from everymask.errors import InputError
from everymask.ops.dbscan import dbscan
from everymask.ops.eikonal import FLOW_LENGTH, eikonal_distance, mean_diameter, omnipose_flow
from everymask.ops.omnipose_masks import (
    converging_field,
    foreground,
    omnipose_masks,
    suppressed_euler,
)

matching = pytest.importorskip("stardist.matching").matching


def patches(size: tuple[int, ...], count: int, seed: int) -> NDArray[np.int64]:
    """Labels 0, 3, 6 ...: a map of irregular patches without gaps, cut by the border; some ids have several parts."""
    random = np.random.default_rng(seed)
    noise = random.random((count, *size))
    return 3 * np.argmax([ndimage.gaussian_filter(each, 2.5 if len(size) == 2 else 2) for each in noise], axis=0)


def neighbour(values: NDArray[np.float64], offset: tuple[int, ...]) -> NDArray[np.float64]:
    """The values at an offset, mirrored at the border."""
    padded = np.pad(values, 1, mode="symmetric")
    return padded[tuple(slice(1 + step, 1 + step + n) for step, n in zip(offset, values.shape, strict=True))]


def half_of_the_neighbours(axes: int) -> list[tuple[int, ...]]:
    return [each for each in itertools.product((-1, 0, 1), repeat=axes) if each > (0,) * axes]


def distance_by_hand(labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """The formula of the docstring, part by part of every object, over the whole image."""
    axes = labels.ndim
    found = np.zeros(labels.shape)
    for label in np.unique(labels[labels > 0]):
        parts, count = ndimage.label(labels == label, np.ones((3,) * axes))
        for part in range(1, count + 1):
            inside = parts == part
            # The mirrored background is never nearer than the background itself.
            euclidean = ndimage.distance_transform_edt(inside if not inside.all() else np.pad(inside, 1))
            values = np.zeros(labels.shape)
            for _ in range(math.ceil(1.16 * np.float32(euclidean.max())) + 1):
                groups: dict[int, list[NDArray[np.float64]]] = {}
                for offset in half_of_the_neighbours(axes):
                    opposite = tuple(-step for step in offset)
                    smaller = np.minimum(neighbour(values, offset), neighbour(values, opposite))
                    groups.setdefault(sum(map(abs, offset)), []).append(smaller)
                product = np.ones(labels.shape)
                for squared_step, minima in groups.items():
                    a, k = np.array(minima), len(minima)
                    square = squared_step * k / axes
                    radicand = a.sum(0) ** 2 - k * ((a**2).sum(0) - square)
                    product *= (a.sum(0) + np.sqrt(np.maximum(0, radicand))) / k
                values = product ** (1 / len(groups)) * inside
            found += values
    return found


@pytest.mark.parametrize("size", [(31, 44), (1, 30), (25, 1), (2, 9), (9, 12, 10), (1, 12, 12), (8, 1, 9)])
@pytest.mark.parametrize("seed", range(2))
def test_distance_is_the_iteration_written_out(size: tuple[int, ...], seed: int) -> None:
    labels = patches(size, 7, seed)
    expected = distance_by_hand(labels)
    found = eikonal_distance(labels)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-5)
    np.testing.assert_array_equal(eikonal_distance(labels, threads=3), found)


@pytest.mark.parametrize("name", ["full", "empty", "pixel", "void"])
@pytest.mark.parametrize("axes", [2, 3])
def test_distance_of_degenerate_labels(name: str, axes: int) -> None:
    labels = np.zeros((7, 6, 5)[:axes], np.int64)
    if name == "full":
        labels[:] = 9
    elif name == "pixel":
        labels[(3,) * axes] = 10**12
    elif name == "void":
        labels[:] = -1
        labels[(slice(2, 4),) * axes] = 4
    np.testing.assert_allclose(eikonal_distance(labels), distance_by_hand(labels), rtol=1e-5)
    flow = omnipose_flow(labels, eikonal_distance(labels))
    assert np.isfinite(flow).all()
    assert name == "void" or not flow.any()


@pytest.mark.parametrize("radius", [3, 5, 10, 20, 40])
def test_distance_in_a_disc_is_nearly_euclidean(radius: int) -> None:
    rows, columns = np.indices((2 * radius + 9, 2 * radius + 9)) - radius - 4
    labels = (rows**2 + columns**2 < radius**2).astype(int)
    inside = labels > 0
    error = np.abs(eikonal_distance(labels) - ndimage.distance_transform_edt(labels))[inside]
    # Measured 0.07 to 0.13 on average; the tip of the cone is rounded, by up to 0.86.
    assert error.mean() < 0.14
    assert error.max() < 0.9
    # Distances count from the pixel centres outside, half a pixel beyond the edge.
    assert mean_diameter(eikonal_distance(labels)) == pytest.approx(2 * radius + 1, abs=1)


@pytest.mark.parametrize("axes", [2, 3])
def test_distance_from_a_straight_edge_is_exact(axes: int) -> None:
    # The official program has 0.84 a voxel in volumes (see `eikonal_distance`).
    labels = np.zeros((24,) * axes, int)
    labels[2:13] = 1
    expected = np.zeros(24)
    expected[2:13] = [1, 2, 3, 4, 5, 6, 5, 4, 3, 2, 1]
    along = eikonal_distance(labels)[(slice(None),) + (12,) * (axes - 1)]
    below = expected < 6  # the last half pixel of the ridge takes more iterations
    np.testing.assert_allclose(along[below], expected[below], atol=2e-3)
    assert along[7] == pytest.approx(6, abs=0.2)
    flow = omnipose_flow(labels, eikonal_distance(labels))
    np.testing.assert_allclose(flow[0, 2:7], FLOW_LENGTH, rtol=1e-3)
    np.testing.assert_allclose(flow[0, 8:13], -FLOW_LENGTH, rtol=1e-3)


def test_objects_do_not_feel_each_other() -> None:
    labels = patches((40, 50), 6, 5)
    distance = eikonal_distance(labels)
    flow = omnipose_flow(labels, distance)
    for label in np.unique(labels[labels > 0]):
        inside = labels == label
        alone = np.where(inside, label, 0)
        assert np.array_equal(eikonal_distance(alone)[inside], distance[inside])
        assert np.array_equal(omnipose_flow(alone, eikonal_distance(alone))[:, inside], flow[:, inside])


def test_an_object_cut_by_the_border_is_half_of_a_mirrored_one() -> None:
    half = np.zeros((12, 40), int)
    rows, columns = np.indices(half.shape)
    half[(rows / 11) ** 2 + ((columns - 20) / 15) ** 2 < 1] = 1
    whole = np.concatenate([half[::-1], half])
    np.testing.assert_allclose(eikonal_distance(half), eikonal_distance(whole)[12:], rtol=1e-6)


def flow_by_hand(labels: NDArray[np.int64], distance: NDArray[np.float32]) -> NDArray[np.float64]:
    """Weighted differences to the neighbours of the same label."""
    axes = labels.ndim
    gradient = np.zeros((axes, *labels.shape))
    for offset in itertools.product((-1, 0, 1), repeat=axes):
        same = neighbour(labels.astype(float), offset) == labels
        rise = (neighbour(distance.astype(float), offset) - distance) * same / 2 ** sum(map(abs, offset))
        gradient += np.multiply.outer(np.array(offset), rise)
    length = np.sqrt((gradient**2).sum(0))
    return np.where((labels > 0) & (length > 1e-6), 5 * gradient / np.maximum(length, 1e-6), 0)


@pytest.mark.parametrize("size", [(31, 44), (1, 30), (9, 12, 10)])
def test_flow_is_the_masked_gradient(size: tuple[int, ...]) -> None:
    labels = patches(size, 7, 3)
    distance = eikonal_distance(labels)
    expected = flow_by_hand(labels, distance)
    # Where the gradient is as good as 0 its direction is a matter of rounding.
    sure = np.sqrt((expected**2).sum(0)) > 0
    found = omnipose_flow(labels, distance)
    assert not found[:, labels <= 0].any()
    difference = np.abs(found - expected).max(0)[sure]
    assert np.mean(difference < 1e-2) > 0.999


@pytest.mark.parametrize("angle", [0.0, 0.5, 1.1])
def test_flow_points_to_the_nearest_point_of_the_axis_of_a_rod(angle: float) -> None:
    rows, columns = np.indices((90, 90)) - 44.6
    along = np.cos(angle) * columns + np.sin(angle) * rows
    across = np.cos(angle) * rows - np.sin(angle) * columns
    beyond = along - np.clip(along, -25, 25)
    length = np.hypot(beyond, across)
    labels = (length < 6).astype(int)
    flow = omnipose_flow(labels, eikonal_distance(labels)) / FLOW_LENGTH
    truth = -np.stack(
        [beyond * np.sin(angle) + across * np.cos(angle), beyond * np.cos(angle) - across * np.sin(angle)]
    )
    cosine = (flow * truth).sum(0) / np.maximum(length, 1e-9)
    assert cosine[(length < 6) & (length > 1)].mean() > 0.994


def test_mean_diameter_is_exact_for_balls() -> None:
    for axes, radius in ((2, 300), (3, 40)):
        grid = np.indices((2 * radius + 1,) * axes) - radius
        assert mean_diameter(radius - np.sqrt((grid**2).sum(0))) == pytest.approx(2 * radius, rel=1e-2)
    assert mean_diameter(np.zeros((4, 4))) == 0


@pytest.mark.parametrize("labels", [np.zeros(4, int), np.full((3, 3), 0.5), np.zeros((2, 2, 2, 2), int)])
def test_labels_that_are_none_are_refused(labels: NDArray[np.float64]) -> None:
    with pytest.raises(InputError):
        eikonal_distance(labels)
    with pytest.raises(InputError):
        omnipose_flow(labels, np.zeros((3, 4)))


def test_wrong_options_of_the_fields_are_told() -> None:
    with pytest.raises(InputError, match="threads"):
        eikonal_distance(np.zeros((3, 3), int), threads=0)
    with pytest.raises(InputError, match=r"expected that of the labels, \(3, 3\)"):
        omnipose_flow(np.zeros((3, 3), int), np.zeros((3, 4)))


# -- from fields to objects --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", [2, 3])
def test_dbscan_is_that_of_scikit_learn(axes: int) -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    random = np.random.default_rng(axes)
    for trial in range(60):
        points = random.random((random.integers(1, 250), axes)) * random.uniform(1, 22 if axes == 2 else 9)
        if trial % 3:
            points = np.round(points * (trial % 3)) / (trial % 3)  # many equal distances
        epsilon, least = float(random.choice([math.sqrt(2), 1.0, 0.7, 2.3])), int(random.integers(1, 9))
        expected = cluster.DBSCAN(eps=epsilon, min_samples=least).fit(points).labels_
        np.testing.assert_array_equal(dbscan(points, epsilon, least), expected)


def test_dbscan_refuses_what_it_cannot_cluster() -> None:
    assert dbscan(np.zeros((0, 2))).shape == (0,)
    for points in (np.zeros((3, 4)), np.array([[0, np.nan]]), np.zeros(3)):
        with pytest.raises(InputError, match="points"):
            dbscan(points)
    with pytest.raises(InputError, match="spread"):
        dbscan(np.array([[0, 0, 0], [1e9, 1e9, 1e9]]))
    with pytest.raises(InputError, match="epsilon"):
        dbscan(np.zeros((3, 2)), 0.0)


def test_foreground_is_hysteresis_thresholding() -> None:
    filters = pytest.importorskip("skimage.filters")
    random = np.random.default_rng(0)
    for size in ((40, 50), (10, 14, 12)):
        distance = 3 * ndimage.gaussian_filter(random.normal(size=size), 2) * 4 - 1
        for threshold in (-1.0, 0.0, 0.7):
            regions, count = foreground(distance, threshold)
            expected = filters.apply_hysteresis_threshold(distance, threshold - 1, threshold)
            np.testing.assert_array_equal(regions > 0, expected)
            assert count == ndimage.label(expected)[1]


def euler_by_hand(field: NDArray[np.float32], regions: NDArray[np.int32], steps: int) -> NDArray[np.float64]:
    """Pixel by pixel, step by step, as the docstring says."""
    ends: list[NDArray[np.float32]] = []
    limits = np.array(regions.shape) - 1
    for pixel in np.argwhere(regions > 0):
        place, nearest, velocity = pixel.astype(np.float32), pixel, field[(slice(None), *pixel)]
        for t in range(steps):
            velocity = (velocity + field[(slice(None), *nearest)]) * np.float32(0.5)
            moved = np.clip(place + velocity * (np.float32(1) / np.float32(1 + t)), 0, limits).astype(np.float32)
            into = np.floor(moved + np.float32(0.5)).astype(int)
            if regions[tuple(into)] != regions[tuple(pixel)]:
                break
            place, nearest = moved, into
        ends.append(place)
    return np.array(ends).reshape(-1, regions.ndim)


@pytest.mark.parametrize("size", [(30, 26), (6, 11, 12)])
def test_pixels_move_as_described(size: tuple[int, ...]) -> None:
    random = np.random.default_rng(1)
    labels = patches(size, 5, 8)
    regions, _ = ndimage.label(labels > 0)
    flow = omnipose_flow(labels, eikonal_distance(labels)) + random.normal(0, 2, (len(size), *size))
    field = converging_field(flow, regions)
    inside = regions > 0
    units = np.where(inside, flow / np.sqrt((flow**2).sum(0)), 0)
    divergence = sum(
        (neighbour(units[axis], tuple(np.eye(len(size), dtype=int)[axis])) -
         neighbour(units[axis], tuple(-np.eye(len(size), dtype=int)[axis]))) / 2
        for axis in range(len(size))
    )  # fmt: skip
    np.testing.assert_allclose(field, units * np.clip((1 + divergence) / 2, 0, 1), atol=1e-6)
    for steps in (0, 1, 16):
        found = suppressed_euler(field, regions, steps)
        np.testing.assert_allclose(found, euler_by_hand(field, regions.astype(np.int32), steps), atol=1e-5)


def bodies() -> dict[str, NDArray[np.int32]]:
    """Long, bent, touching and coiled objects."""
    rows, columns = np.indices((120, 140)).astype(float)
    side_by_side = np.zeros((120, 140), np.int32)
    for number in range(6):
        side_by_side[20 + 8 * number : 28 + 8 * number, 10 + 5 * number : 110 + 5 * number] = number + 1
    angle, radius = np.arctan2(rows - 60, columns - 70), np.hypot(rows - 60, columns - 70)
    rings = np.zeros((120, 140), np.int32)
    for number in range(5):  # arcs that touch along their whole length
        rings[(radius >= 8 + 9 * number) & (radius < 17 + 9 * number) & (np.abs(angle) < 2.6)] = number + 1
    turn = np.linspace(0, 6 * np.pi, 2000)
    curve = np.ones(rows.shape, bool)
    curve[np.round(60 + (8 + 2.3 * turn) * np.sin(turn)).astype(int),
          np.round(70 + (8 + 2.3 * turn) * np.cos(turn)).astype(int)] = False  # fmt: skip
    waves = np.zeros((120, 140), np.int32)
    middle = 60 + 20 * np.sin(columns / 14)
    for number in range(4):
        waves[(rows - middle >= 9 * number - 18) & (rows - middle < 9 * number - 9)] = number + 1
    return {
        "side by side": side_by_side,
        "arcs": rings,
        "coil": (ndimage.distance_transform_edt(curve) < 5).astype(np.int32),
        "waves cut by the border": waves,
        "heaps": touching((120, 140), 3),
    }


@pytest.mark.parametrize("clustering", ["always", "small", "never"])
@pytest.mark.parametrize("name", bodies())
def test_objects_come_back_from_their_fields(name: str, clustering: str) -> None:
    labels = bodies()[name]
    distance = eikonal_distance(labels)
    flow = omnipose_flow(labels, distance)
    field = np.where(labels > 0, distance, -mean_diameter(distance) / 2)
    found = omnipose_masks(flow, field, clustering=clustering)  # type: ignore[arg-type]
    assert matching(labels, found, thresh=0.9).accuracy == 1


def test_objects_of_volumes_come_back_from_their_fields() -> None:
    grid = np.indices((24, 40, 44)).astype(float)
    labels = np.zeros(grid.shape[1:], np.int32)
    for number in range(3):  # slanted rods that touch
        across = np.hypot(grid[0] - 12, grid[1] - 8 - 10 * number - grid[2] / 8)
        labels[(across < 5.5) & (labels == 0)] = number + 1
    distance = eikonal_distance(labels)
    found = omnipose_masks(omnipose_flow(labels, distance), np.where(labels > 0, distance, -5))
    assert matching(labels, found, thresh=0.9).accuracy == 1


def test_noise_joins_the_nearest_cluster_and_thin_regions_are_objects() -> None:
    distance = np.full((30, 60), -5.0)
    distance[5:13, 5:50], distance[20, 3:40], distance[25, 50] = 3, 1, 1
    flow = np.zeros((2, 30, 60))
    flow[0, 5:9], flow[0, 9:13] = 5, -5
    flow[:, 5, 20] = (-5, 0)  # a pixel that goes astray
    found = omnipose_masks(flow, distance)
    np.testing.assert_array_equal(found > 0, distance > 0)
    assert found.max() == 3
    assert (found[5:13, 5:50] == 1).all()
    assert (found[20, 3:40] == 2).all()
    assert omnipose_masks(flow, distance, minimum_area=30).max() == 2


def test_objects_do_not_depend_on_the_rest_of_the_image() -> None:
    labels = bodies()["heaps"]
    random = np.random.default_rng(4)
    distance = eikonal_distance(labels)
    flow = omnipose_flow(labels, distance) + ndimage.gaussian_filter(random.normal(0, 9, (2, *labels.shape)), (0, 1, 1))
    field = np.where(labels > 0, distance, -5)
    found = omnipose_masks(flow, field)
    more = np.full((120, 300), -5.0)
    more[:, :140], more[20:100, 170:280] = field, 40
    wide = np.zeros((2, 120, 300))
    wide[:, :, :140] = flow
    np.testing.assert_array_equal(omnipose_masks(wide, more)[:, :140] > 0, found > 0)
    assert matching(found, omnipose_masks(wide, more)[:, :140], thresh=1).accuracy == 1


@pytest.mark.parametrize("seed", range(3))
def test_by_distance_more_objects_survive_noise(seed: int) -> None:
    labels = touching((120, 140), seed)
    random = np.random.default_rng(seed)
    distance = eikonal_distance(labels)
    noise = 4 * ndimage.gaussian_filter(random.normal(0, 3, (2, *labels.shape)), (0, 1, 1))
    flow = omnipose_flow(labels, distance) + noise
    field = np.where(labels > 0, distance, -5)
    accuracy = {
        how: matching(labels, omnipose_masks(flow, field, clustering=how), thresh=0.5).accuracy  # type: ignore[arg-type]
        for how in ("always", "never")
    }
    assert accuracy["always"] > accuracy["never"]


def test_real_cells_come_back_from_their_fields(shared_data: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    files = sorted((shared_data / "microscopy" / "omnipose" / "masks").glob("*.tif"))
    assert len(files) == 7
    for file in files:
        labels = tifffile.imread(file).astype(np.int32)
        distance = eikonal_distance(labels)
        field = np.where(labels > 0, distance, -mean_diameter(distance) / 2)
        found = omnipose_masks(omnipose_flow(labels, distance), field)
        # One of 21 Caulobacter cells has a stalk a pixel wide, which comes off.
        assert matching(labels, found, thresh=0.9).accuracy >= (0.83 if file.name.startswith("caulo") else 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flow": np.zeros((3, 8, 8))}, "shapes"),
        ({"distance": np.full((8, 8), np.nan)}, "not finite"),
        ({"clustering": "allways"}, "did you mean 'always'"),
        ({"steps": -1}, "steps"),
        ({"minimum_area": -1}, "minimum_area"),
    ],
)
def test_wrong_input_of_decoding_is_told(change: dict[str, object], message: str) -> None:
    given = {"flow": np.zeros((2, 8, 8)), "distance": np.zeros((8, 8))} | change
    with pytest.raises(InputError, match=message):
        omnipose_masks(**given)  # type: ignore[arg-type]
