"""Star kernels against the official StarDist program, scikit-image and areas counted on a fine grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from everymask.errors import InputError
from everymask.ops.star_overlap import edge_lines, intersection_area, new_workspace, twice_signed_area
from everymask.ops.stars import (
    candidates,
    non_maximum_suppression,
    render_stars,
    star_distances,
    star_polygons,
)

geometry = pytest.importorskip("stardist.geometry")
nms = pytest.importorskip("stardist.nms")
utils = pytest.importorskip("stardist.utils")


def nuclei(size: int, count: int, seed: int) -> NDArray[np.int32]:
    """A field of ellipses of radius 9 to 14 pixels, many of them touching, some cut by the border."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((size, size), np.int32)
    placed = 0
    while placed < count:
        y, x = rng.uniform(0, size, 2)
        long, short, angle = rng.uniform(10, 14), rng.uniform(9, 11), rng.uniform(0, np.pi)
        window = tuple(slice(max(int(v) - 16, 0), int(v) + 17) for v in (y, x))
        rows, columns = np.mgrid[window[0], window[1]][:, : size - window[0].start, : size - window[1].start]
        along = (columns - x) * np.cos(angle) + (rows - y) * np.sin(angle)
        across = (rows - y) * np.cos(angle) - (columns - x) * np.sin(angle)
        inside = (along / long) ** 2 + (across / short) ** 2 < 1
        view = labels[window]
        if (view[inside] > 0).mean() > 0.15:
            continue
        placed += 1
        view[inside & (view == 0)] = placed
    return labels


def prediction(
    labels: NDArray[np.int32], grid: int, noise: float, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What a network would predict: the official targets, blurred, with smooth and pixel noise."""
    rng = np.random.default_rng(seed)
    probability = utils.edt_prob(labels)[::grid, ::grid]
    probability = ndimage.gaussian_filter(probability, 1) + rng.normal(0, 0.02, probability.shape)
    distances = geometry.star_dist(labels, 32, grid=(grid, grid))
    distances = ndimage.gaussian_filter(distances, (1, 1, 0.5))
    distances *= 1 + noise * (
        rng.normal(size=distances.shape)
        + ndimage.gaussian_filter(rng.normal(size=(*distances.shape[:2], 1)), (2, 2, 0))
    )
    return np.clip(probability, 0, 1).astype(np.float32), distances.astype(np.float32)


def official_keep(
    points: NDArray[np.float32], scores: NDArray[np.float32], distances: NDArray[np.float32], threshold: float
) -> NDArray[np.bool_]:
    keep = nms.non_maximum_suppression_inds(distances, points.astype(np.int32), scores, thresh=threshold, verbose=0)
    return np.asarray(keep, dtype=bool)


def real_labels(shared_data: Path, count: int) -> list[NDArray[np.int32]]:
    from PIL import Image

    paths = sorted((shared_data / "dsb2018" / "val" / "masks").glob("*.png"))[:count]
    assert paths
    return [np.asarray(Image.open(path)).astype(np.int32) for path in paths]


def degenerate_labels() -> dict[str, NDArray[np.int32]]:
    one = np.zeros((7, 9), np.int32)
    one[3, 4] = 5
    touching = np.ones((20, 24), np.int32)
    touching[:, 11:] = 2
    border = np.zeros((18, 18), np.int32)
    border[:5], border[10:, 6:14] = 1, 2
    return {
        "empty": np.zeros((5, 6), np.int32),
        "one pixel": one,
        "full": np.ones((30, 41), np.int32),
        "touching": touching,
        "cut by the border": border,
        "one row": np.array([[1, 1, 0, 2, 2, 2]], np.int32),
        "one pixel image": np.ones((1, 1), np.int32),
    }


# --- distances


@pytest.mark.parametrize("name", degenerate_labels())
@pytest.mark.parametrize(("rays", "grid"), [(32, 1), (3, 2), (12, 4)])
def test_distances_of_degenerate_images_equal_official(name: str, rays: int, grid: int) -> None:
    labels = degenerate_labels()[name]
    expected = geometry.star_dist(labels, rays, grid=(grid, grid))
    np.testing.assert_allclose(star_distances(labels, rays, grid), expected, rtol=1e-6)


# 60 degrees has the cosine 0.5: every other step ends half way between two pixels.
@pytest.mark.parametrize(("rays", "grid"), [(32, 1), (6, 1), (24, 2), (64, 4), (7, 3)])
def test_distances_equal_official(rays: int, grid: int) -> None:
    noise = ndimage.gaussian_filter(np.random.default_rng(rays).normal(size=(150, 211)), 4)
    labels = np.digitize(noise, np.quantile(noise, [0.3, 0.5, 0.7])).astype(np.int32)
    expected = geometry.star_dist(labels, rays, grid=(grid, grid))
    np.testing.assert_allclose(star_distances(labels, rays, grid), expected, rtol=1e-6)


def test_rays_beyond_the_table_equal_official() -> None:
    labels = np.ones((3, 1500), np.int32)
    labels[:, 1200:] = 2
    np.testing.assert_allclose(star_distances(labels, 8), geometry.star_dist(labels, 8), rtol=1e-6)


def test_distances_on_real_masks_equal_official(shared_data: Path) -> None:
    for labels in real_labels(shared_data, 8):
        np.testing.assert_allclose(star_distances(labels), geometry.star_dist(labels), rtol=1e-6)


def test_void_and_large_ids() -> None:
    labels = nuclei(64, 6, seed=0)
    expected = geometry.star_dist(np.where(labels == 3, 0, labels), 16)
    np.testing.assert_allclose(star_distances(np.where(labels == 3, -1, labels), 16), expected, rtol=1e-6)
    # 65536 is 0 modulo 65536: the official program takes it for background.
    np.testing.assert_array_equal(star_distances(labels * 65536, 16), star_distances(labels, 16))


# --- candidates


@pytest.mark.parametrize("border", [0, 2])
def test_candidates_equal_official_selection(border: int) -> None:
    probability, distances = prediction(nuclei(128, 14, seed=1), grid=2, noise=0.05)
    distances[10:20] = -3.0
    points, scores, rays = candidates(probability, distances, 0.4, border, grid=2)
    mask = nms._ind_prob_thresh(probability, 0.4, border)
    order = np.argsort(-probability[mask], kind="stable")
    np.testing.assert_array_equal(points, (np.argwhere(mask) * 2)[order])
    np.testing.assert_array_equal(scores, probability[mask][order])
    np.testing.assert_array_equal(rays, np.maximum(distances[mask], np.float32(1e-3))[order])


def test_candidates_of_an_image_that_is_all_border() -> None:
    points, scores, rays = candidates(np.ones((3, 9), np.float32), np.ones((3, 9, 8), np.float32), 0.5)
    assert (points.shape, scores.shape, rays.shape) == ((0, 2), (0,), (0, 8))
    assert non_maximum_suppression(points, scores, rays).shape == (0,)
    assert not render_stars(points, rays, (3, 9)).any()


# --- suppression


@pytest.mark.parametrize("grid", [1, 2])
def test_kept_on_real_masks_equals_official(shared_data: Path, grid: int) -> None:
    dropped = 0
    for seed, labels in enumerate(real_labels(shared_data, 6)):
        probability, distances = prediction(labels, grid, noise=0.03, seed=seed)
        for threshold in (0.3, 0.5):
            found = candidates(probability, distances, 0.3, 2, grid)
            keep = non_maximum_suppression(*found, threshold)
            np.testing.assert_array_equal(keep, official_keep(*found, threshold))
            dropped += np.count_nonzero(~keep)
    assert dropped > 5_000


def test_kept_of_a_large_field_equals_official() -> None:
    probability, distances = prediction(nuclei(1024, 1000, seed=2), grid=2, noise=0.03)
    found = candidates(probability, distances, 0.4, 2, 2)
    keep = non_maximum_suppression(*found, 0.4)
    assert 900 < np.count_nonzero(keep) < 1010
    np.testing.assert_array_equal(keep, official_keep(*found, 0.4))


# Outlines that jump by 40 % from ray to ray cross themselves once cut to whole pixels; there the rules by which Clipper
# moves crossings are followed nearly always, but not always.
@pytest.mark.parametrize(("raggedness", "tolerated"), [(0.1, 0.0), (0.4, 0.01)])
def test_kept_of_random_stars_of_all_sizes_equals_official(raggedness: float, tolerated: float) -> None:
    rng = np.random.default_rng(3)
    different = kept = 0
    for _ in range(6):
        points = rng.integers(0, 200, (1500, 2)).astype(np.float32)
        distances = rng.uniform(2, 25, (1500, 1)) * rng.uniform(1 - raggedness, 1 + raggedness, (1500, 32))
        scores = np.sort(rng.uniform(size=1500))[::-1]
        expected = official_keep(points, scores, distances, 0.4)
        different += np.count_nonzero(non_maximum_suppression(points, scores, distances, 0.4) != expected)
        kept += np.count_nonzero(expected)
    assert kept > 700
    assert different <= tolerated * kept


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8])
def test_kept_of_tiny_stars_equals_official(threshold: float) -> None:
    rng = np.random.default_rng(4)
    points = rng.integers(0, 40, (400, 2)).astype(np.float32)
    distances = np.repeat(rng.choice([1e-3, 0.5, 1.0, 3.0, 30.0], (400, 1)), 32, axis=1)
    scores = np.linspace(1, 0, 400)
    np.testing.assert_array_equal(
        non_maximum_suppression(points, scores, distances, threshold),
        official_keep(points, scores, distances, threshold),
    )


def area_on_a_fine_grid(first: NDArray[np.int32], second: NDArray[np.int32], per_pixel: int = 10) -> float:
    """Intersection area of two (2, R) polygons (x, y), counted at `per_pixel`^2 points a pixel by winding number."""
    low = np.minimum(first.min(1), second.min(1))
    high = np.maximum(first.max(1), second.max(1))
    offsets = (0.37, 0.59)  # no sample on the diagonals that pass through whole points
    axes = [np.arange(low[n] + offsets[n] / per_pixel, high[n], 1 / per_pixel) for n in range(2)]
    x, y = np.meshgrid(axes[0], axes[1])
    inside = np.ones(x.shape, bool)
    for polygon in (first, second):
        winding = np.zeros(x.shape, int)
        for (ax, ay), (bx, by) in zip(polygon.T, np.roll(polygon, -1, axis=1).T, strict=True):
            left = (bx - ax) * (y - ay) - (by - ay) * (x - ax) > 0
            winding += ((ay <= y) & (by > y) & left).astype(int) - ((ay > y) & (by <= y) & ~left)
        inside &= winding != 0
    return inside.mean() * x.size / per_pixel**2


@pytest.mark.parametrize("seed", range(4))
def test_intersection_area_equals_counted_area(seed: int) -> None:
    rng = np.random.default_rng(seed)
    angles = np.arange(32) * 2 * np.pi / 32
    directions = np.stack([np.cos(angles), np.sin(angles)])
    for step in range(9):
        # Smooth outlines; every third pair shares its outline and is moved by whole pixels, so that much touches.
        shapes = [10 + 3 * np.cos(3 * angles + rng.uniform(0, 6)) + rng.uniform(0, 1, 32) for _ in range(2)]
        if step % 3 == 0:
            shapes[1] = shapes[0]
        move = rng.integers(-12, 13, (2, 1))
        first = (directions * shapes[0]).astype(np.int32)
        second = (directions * shapes[1]).astype(np.int32) + move.astype(np.int32)
        lines, other_lines = np.empty((5, 32)), np.empty((5, 32))
        edge_lines(first[0], first[1], 1.0, lines)
        edge_lines(second[0], second[1], -1.0, other_lines)
        areas = twice_signed_area(first[0], first[1]), twice_signed_area(second[0], second[1])
        shared, _ = intersection_area(lines, other_lines, *areas, np.empty(0), new_workspace(32))
        assert shared == pytest.approx(area_on_a_fine_grid(first, second), abs=0.75)


# --- rendering


def random_stars(
    seed: int, count: int, size: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    points = rng.integers(-5, size + 5, (count, 2)).astype(np.float32)
    distances = rng.uniform(0.001, 20, (count, 1)) * rng.uniform(0.5, 1.5, (count, 32))
    return points, distances.astype(np.float32), rng.uniform(size=count).round(1).astype(np.float32)


@pytest.mark.parametrize("seed", range(4))
def test_rendering_equals_official(seed: int) -> None:
    points, distances, scores = random_stars(seed, 150, 120)
    expected = geometry.polygons_to_label(distances, points.astype(int), (120, 111), prob=scores)
    np.testing.assert_array_equal(render_stars(points, distances, (120, 111), scores), expected)


def test_large_images_are_painted_in_parts_as_a_whole() -> None:
    """Objects across the edges of the parts, and larger than them, in an image of three by two."""
    points, distances, scores = random_stars(1, 60, 2100)
    distances[:20] *= 6
    distances[20] = 1200
    expected = geometry.polygons_to_label(distances, points.astype(int), (2100, 1030), prob=scores)
    assert len(np.unique(expected[1020:1030, :])) > 2
    np.testing.assert_array_equal(render_stars(points, distances, (2100, 1030), scores), expected)


@pytest.mark.parametrize("rays", [4, 8, 32])
def test_rendering_of_vertices_and_edges_on_pixels_equals_official(rays: int) -> None:
    """Whole radii put vertices, and with four rays whole edges, exactly on pixel centres."""
    radii = np.array([1e-3, 1, 2, 3, 5, 8, 30])
    points = np.stack([np.arange(7) * 12 + 4, np.arange(7) * 9 + 6], axis=1).astype(np.float32)
    distances = np.repeat(radii[:, None], rays, axis=1).astype(np.float32)
    distances[3, ::2] = 1
    scores = np.linspace(1, 0, 7)
    expected = geometry.polygons_to_label(distances, points.astype(int), (90, 80), prob=scores)
    np.testing.assert_array_equal(render_stars(points, distances, (90, 80), scores), expected)


def test_without_scores_the_first_polygon_wins() -> None:
    points = np.array([[10, 10], [10, 12]], np.float32)
    labels = render_stars(points, np.full((2, 32), 5, np.float32), (20, 24))
    assert labels[10, 10] == labels[10, 14] == 1
    assert labels[10, 16] == 2


def test_polygons_equal_official_vertices() -> None:
    points, distances, _ = random_stars(0, 20, 100)
    expected = geometry.dist_to_coord(distances, points.astype(int))
    np.testing.assert_array_equal(star_polygons(points, distances), expected.transpose(0, 2, 1))


def test_a_label_image_survives_its_stars(shared_data: Path) -> None:
    """Stars of the centres of real nuclei, rendered again, equal the official reconstruction."""
    for labels in real_labels(shared_data, 4):
        ids = np.unique(labels[labels > 0])
        centres = np.array(ndimage.center_of_mass(labels > 0, labels, ids)).astype(int)
        rays = star_distances(labels)[tuple(centres.T)]
        expected = geometry.polygons_to_label(rays, centres, labels.shape)
        found = render_stars(centres.astype(np.float32), rays, labels.shape, scores=np.ones(len(ids)))
        np.testing.assert_array_equal(found, expected)


# --- mistakes


def test_mistakes_are_told_in_a_line() -> None:
    points, rays = np.zeros((2, 2), np.float32), np.ones((2, 8), np.float32)
    with pytest.raises(InputError, match="labels"):
        star_distances(np.zeros((4, 4)))
    with pytest.raises(InputError, match="rays, grid"):
        star_distances(np.zeros((4, 4), np.int32), rays=2)
    with pytest.raises(InputError, match="probability, distances"):
        candidates(np.zeros((4, 4), np.float32), np.zeros((4, 5, 8), np.float32), 0.5)
    with pytest.raises(InputError, match="descending"):
        non_maximum_suppression(points, np.array([0.1, 0.9]), rays)
    with pytest.raises(InputError, match="threshold"):
        non_maximum_suppression(points, np.array([0.9, 0.1]), rays, threshold=-1)
    with pytest.raises(InputError, match="finite"):
        star_polygons(points, np.full((2, 8), np.nan))
    with pytest.raises(InputError, match="points, distances"):
        star_polygons(points[:1], rays)
    with pytest.raises(InputError, match="scores"):
        render_stars(points, rays, (9, 9), scores=np.ones(3))
