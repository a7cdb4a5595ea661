"""Kernels of StarDist for volumes against the official program, Qhull and closed forms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial import ConvexHull, HalfspaceIntersection
from star_volume_toys import blurred, nuclei

from everymask.errors import InputError
from everymask.ops.half_spaces import hull_planes, intersection_volume
from everymask.ops.polyhedron_rows import place_vertices, words_of, write_rows
from everymask.ops.sphere_rays import golden_spiral, ray_distances, turned_rays
from everymask.ops.star_volumes import render_polyhedra, suppress_polyhedra, volume_candidates

geometry = pytest.importorskip("stardist.geometry")
nms = pytest.importorskip("stardist.nms")
rays3d = pytest.importorskip("stardist.rays3d")
utils = pytest.importorskip("stardist.utils")

Field = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]
Grid = tuple[int, int, int]


def official_rays(rays: int, anisotropy: float):
    return rays3d.Rays_GoldenSpiral(rays, anisotropy=(anisotropy, 1, 1))


def official_distances(labels: NDArray[np.int32], rays: int, anisotropy: float, grid: Grid) -> NDArray[np.float32]:
    return np.moveaxis(geometry.star_dist3D(labels, official_rays(rays, anisotropy), grid=grid), -1, 0)


def official_keep(field: Field, rays: int, anisotropy: float, threshold: float) -> NDArray[np.bool_]:
    points, scores, distances = field
    keep = nms.non_maximum_suppression_3d_inds(
        distances, points, official_rays(rays, anisotropy), scores, thresh=threshold, verbose=0
    )
    return np.asarray(keep, dtype=bool)


def blobs(seed: int, count: int, size: tuple[int, int, int], rays: int, anisotropy: float, noise: float) -> Field:
    """Stars near random ellipsoids, at random whole points, so that they overlap by all shares."""
    rng = np.random.default_rng(seed)
    directions = golden_spiral(rays, anisotropy)[0] * (anisotropy, 1, 1)
    points = np.unique(rng.integers(0, size, (count, 3)), axis=0)
    rng.shuffle(points)
    distances = np.empty((len(points), rays))
    for i in range(len(points)):
        axes, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        radii = rng.uniform(0.8, 1.2, 3) * rng.uniform(3, 9)
        distances[i] = 1 / np.sqrt(((directions @ axes / radii) ** 2).sum(1))
    distances *= 1 + noise * rng.normal(size=distances.shape)
    scores = np.sort(rng.uniform(size=len(points)))[::-1]
    return points.astype(np.float32), scores.astype(np.float32), np.maximum(distances, 1e-3).astype(np.float32)


def predicted(
    labels: NDArray[np.int32], anisotropy: float, grid: Grid, noise: float, threshold: float = 0.5, seed: int = 0
) -> Field:
    """Candidates of what a network would say of labels."""
    cells = tuple(slice(None, None, step) for step in grid)
    probability = utils.edt_prob(labels, anisotropy=(anisotropy, 1, 1))[cells]
    distances = official_distances(labels, 96, anisotropy, grid)
    return volume_candidates(*blurred(probability, distances, noise, seed), threshold, 2, grid)


def real_labels(shared_data: Path) -> NDArray[np.int32]:
    import tifffile

    return tifffile.imread(shared_data / "microscopy" / "stardist" / "mask3d.tif").astype(np.int32)


# --- rays


@pytest.mark.parametrize(("rays", "anisotropy"), [(96, 1.0), (96, 2.0), (32, 0.5), (64, 3.7), (5, 1.0)])
def test_golden_spiral_equals_official(rays: int, anisotropy: float) -> None:
    directions, faces = golden_spiral(rays, anisotropy)
    expected = official_rays(rays, anisotropy)
    np.testing.assert_array_equal(directions, expected.vertices)
    np.testing.assert_array_equal(faces, expected.faces)
    # A closed surface that looks outwards everywhere (Euler: F = 2 V - 4), whatever Qhull the official program has.
    assert len(faces) == 2 * rays - 4
    assert (np.linalg.det(directions[faces].astype(np.float64)) < 0).all()


def degenerate_volumes() -> dict[str, NDArray[np.int32]]:
    one = np.zeros((5, 7, 9), np.int32)
    one[2, 3, 4] = 5
    touching = np.ones((9, 10, 12), np.int32)
    touching[:, :, 5:] = 2
    border = np.zeros((8, 12, 12), np.int32)
    border[:3], border[5:, 6:, 3:9] = 1, 2
    return {
        "empty": np.zeros((3, 5, 6), np.int32),
        "one voxel": one,
        "full": np.ones((9, 20, 21), np.int32),
        "touching": touching,
        "cut by the border": border,
        "one plane": np.ones((1, 9, 9), np.int32),
        "one voxel volume": np.ones((1, 1, 1), np.int32),
    }


@pytest.mark.parametrize("name", degenerate_volumes())
@pytest.mark.parametrize(("rays", "grid"), [(96, (1, 1, 1)), (12, (1, 2, 4))])
def test_distances_of_degenerate_volumes_equal_official(name: str, rays: int, grid: Grid) -> None:
    labels = degenerate_volumes()[name]
    found = ray_distances(labels, golden_spiral(rays)[0], grid)
    np.testing.assert_array_equal(found, official_distances(labels, rays, 1.0, grid))


@pytest.mark.parametrize(("anisotropy", "grid"), [(1.0, (1, 1, 1)), (2.0, (1, 2, 2)), (5.0, (2, 4, 1))])
def test_distances_equal_official(anisotropy: float, grid: Grid) -> None:
    labels = nuclei((20, 45, 51), 30, seed=1, anisotropy=anisotropy)
    assert labels.max() > 12
    found = ray_distances(labels, golden_spiral(96, anisotropy)[0], grid)
    np.testing.assert_array_equal(found, official_distances(labels, 96, anisotropy, grid))


def test_rays_that_end_between_voxels_equal_official() -> None:
    """Directions with components of a half, whose steps end in the middle between voxels again and again."""
    half = np.array([[0, 0.5, 0.75**0.5], [0.5, 0.75**0.5, 0], [-0.5, 0.5, 0.5**0.5], [0, 0, 1]], np.float32)
    labels = nuclei((30, 40, 40), 12, seed=2, radius=(7, 12))
    expected = geometry.star_dist3D(labels, rays3d.Rays_Explicit(half, [[0, 1, 2], [1, 2, 3]]))
    np.testing.assert_array_equal(ray_distances(labels, half), np.moveaxis(expected, -1, 0))


def test_rays_beyond_the_table_equal_official() -> None:
    labels = np.ones((3, 3, 1400), np.int32)
    labels[:, :, 1100:] = 2
    along = np.array([[0, 0, 1], [0, 0, -1], [0, 1, 0], [1, 0, 0]], np.float32)
    expected = geometry.star_dist3D(labels, rays3d.Rays_Explicit(along, [[0, 1, 2], [1, 2, 3]]))
    np.testing.assert_array_equal(ray_distances(labels, along), np.moveaxis(expected, -1, 0))


def test_void_and_large_ids() -> None:
    labels = nuclei((16, 24, 24), 5, seed=0)
    directions = golden_spiral(16)[0]
    expected = official_distances(np.where(labels == 3, 0, labels), 16, 1.0, (1, 1, 1))
    np.testing.assert_array_equal(ray_distances(np.where(labels == 3, -1, labels), directions), expected)
    # 65536 is 0 modulo 65536: the official program takes it for background.
    np.testing.assert_array_equal(ray_distances(labels * 65536, directions), ray_distances(labels, directions))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize("anisotropy", [1.0, 2.0])
def test_rays_of_a_turned_volume_are_near_those_of_the_volume(flip: bool, turns: int, anisotropy: float) -> None:
    """The ellipsoid with half axes 5, 7 and 9 has its distances in closed form, also turned."""
    directions, faces = golden_spiral(96, anisotropy)
    corners, weights = turned_rays(directions, faces, flip, turns, anisotropy)
    assert weights.min() >= 0

    def lengths(matrix: NDArray[np.float64], axes: tuple[int, int, int] = (5, 7, 9)) -> NDArray[np.float64]:
        return 1 / np.sqrt((((directions * (anisotropy, 1, 1)) @ matrix / axes) ** 2).sum(1))

    ball = lengths(np.eye(3), (8, 8, 8))
    np.testing.assert_allclose((ball[corners] * weights).sum(1), ball, rtol=1e-6)
    tilted = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    turn = np.linalg.matrix_power(np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]]), turns)  # right -> top
    copied = (np.diag([1, 1, -1]) if flip else np.eye(3)) @ turn
    found = (lengths(copied @ tilted)[corners] * weights).sum(1)
    error = found / lengths(tilted) - 1
    assert abs(error).max() < 0.06
    assert np.sqrt((error**2).mean()) < 0.02
    if not flip and not turns:
        np.testing.assert_allclose(error, 0, atol=1e-6)


# --- candidates


@pytest.mark.parametrize("border", [0, 2])
def test_candidates_equal_official_selection(border: int) -> None:
    rng = np.random.default_rng(0)
    probability = rng.uniform(size=(9, 12, 10)).astype(np.float32)
    distances = rng.uniform(-1, 20, (8, 9, 12, 10)).astype(np.float32)
    points, scores, rays = volume_candidates(probability, distances, 0.4, border, (1, 2, 2))
    mask = nms._ind_prob_thresh(probability, 0.4, border)
    order = np.argsort(-probability[mask], kind="stable")
    np.testing.assert_array_equal(points, (np.argwhere(mask) * (1, 2, 2))[order])
    np.testing.assert_array_equal(scores, probability[mask][order])
    np.testing.assert_array_equal(rays, np.maximum(distances[:, mask].T, np.float32(1e-3))[order])


def test_candidates_of_a_volume_that_is_all_border() -> None:
    directions, faces = golden_spiral(8)
    points, scores, rays = volume_candidates(np.ones((4, 9, 9), np.float32), np.ones((8, 4, 9, 9), np.float32), 0.5)
    assert (points.shape, scores.shape, rays.shape) == ((0, 3), (0,), (0, 8))
    assert suppress_polyhedra(points, scores, rays, directions, faces).shape == (0,)
    assert not render_polyhedra(points, rays, directions, faces, (4, 9, 9)).any()


def test_distances_of_an_untrained_network_end_with_the_volume() -> None:
    probability, distances = np.ones((8, 8, 8), np.float32), np.full((8, 8, 8, 8), 1e9, np.float32)
    _, _, rays = volume_candidates(probability, distances, 0.5, 2, (1, 2, 2))
    np.testing.assert_allclose(rays, np.sqrt(8**2 + 16**2 + 16**2), rtol=1e-6)


# --- suppression


@pytest.mark.parametrize(
    ("anisotropy", "grid", "noise", "radius"),
    [(1.0, (2, 2, 2), 0.03, (4, 7)), (2.0, (1, 2, 2), 0.03, (4, 7)), (1.0, (1, 1, 1), 0.0, (3, 5))],
)
def test_kept_of_a_predicted_volume_equals_official(
    anisotropy: float, grid: Grid, noise: float, radius: tuple[float, float]
) -> None:
    labels = nuclei((24, 40, 40) if grid[2] == 2 else (16, 20, 22), 60, 3, anisotropy, radius)
    field = predicted(labels, anisotropy, grid, noise)
    keep = suppress_polyhedra(*field, *golden_spiral(96, anisotropy), 0.4)
    assert 10 < np.count_nonzero(keep) < 0.2 * len(keep)
    np.testing.assert_array_equal(keep, official_keep(field, 96, anisotropy, 0.4))


@pytest.mark.parametrize(
    ("seed", "rays", "anisotropy", "noise", "threshold"),
    [(0, 32, 1.0, 0.0, 0.4), (1, 32, 2.5, 0.02, 0.3), (2, 64, 1.0, 0.1, 0.5), (3, 32, 1.0, 0.02, 0.1)],
)
def test_kept_of_stars_of_all_overlaps_equals_official(
    seed: int, rays: int, anisotropy: float, noise: float, threshold: float
) -> None:
    field = blobs(seed, 220, (int(40 / anisotropy), 40, 40), rays, anisotropy, noise)
    keep = suppress_polyhedra(*field, *golden_spiral(rays, anisotropy), threshold)
    assert 0.2 * len(keep) < np.count_nonzero(keep) < 0.9 * len(keep)
    np.testing.assert_array_equal(keep, official_keep(field, rays, anisotropy, threshold))


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.8])
def test_kept_of_tiny_and_huge_stars_equals_official(threshold: float) -> None:
    rng = np.random.default_rng(4)
    points = np.unique(rng.integers(0, 24, (120, 3)), axis=0).astype(np.float32)
    distances = np.repeat(rng.choice([1e-3, 0.5, 1.0, 3.0, 25.0], (len(points), 1)), 32, axis=1).astype(np.float32)
    field = (points, np.linspace(1, 0, len(points), dtype=np.float32), distances)
    keep = suppress_polyhedra(*field, *golden_spiral(32), threshold)
    np.testing.assert_array_equal(keep, official_keep(field, 32, 1.0, threshold))


def test_kernels_and_hulls_overrule_the_count() -> None:
    """Cubes of 7 voxels whose faces lie on voxels hold 8^3 of them, half as much again as their volume."""
    directions, faces = golden_spiral(96)
    points = np.array([[20, 20, 20], [20, 20, 24], [20, 24, 20]], np.float32)
    cube = (3.5 / np.abs(directions).max(1)).astype(np.float32)
    corners = [ConvexHull(cube[:, None] * directions + point) for point in points[:2]]
    both = HalfspaceIntersection(np.concatenate([each.equations for each in corners]), np.array([20.0, 20, 22]))
    share = ConvexHull(both.intersections).volume / corners[0].volume
    field = (points, np.array([3, 2, 1], np.float32), np.stack([cube, cube, cube]))
    for threshold in (share - 0.02, share + 0.02):
        keep = suppress_polyhedra(*field, directions, faces, threshold)
        assert keep[1] == (threshold > share)
        np.testing.assert_array_equal(keep, official_keep(field, 96, 1.0, threshold))


def test_polyhedra_larger_than_the_memory_for_their_bits_are_counted_in_parts() -> None:
    """Two balls of radius 500; the volume that balls share is known."""
    directions, faces = golden_spiral(2000)
    radius, distance = 500.0, 470.0
    share = (1 - distance / (2 * radius)) ** 2 * (2 + distance / (2 * radius)) / 2
    points = np.array([[600, 600, 600], [600, 600 + distance, 600]], np.float32)
    field = (points, np.array([1, 0.5], np.float32), np.full((2, 2000), radius, np.float32))
    vertices, box = np.empty((2000, 3)), np.empty(6, np.int64)
    place_vertices(points[0], field[2][0], directions, vertices, box)
    assert words_of(box) > 2**23
    for threshold in (share - 0.01, share + 0.01):
        assert suppress_polyhedra(*field, directions, faces, threshold).tolist() == [True, threshold > share]


def test_one_candidate_is_kept() -> None:
    directions, faces = golden_spiral(8)
    keep = suppress_polyhedra(np.ones((1, 3)), np.ones(1), np.full((1, 8), 2.0), directions, faces)
    assert keep.tolist() == [True]


def test_kept_on_a_real_volume_equals_official(shared_data: Path) -> None:
    labels = real_labels(shared_data)
    field = predicted(labels, 2.0, (1, 2, 2), 0.02, threshold=0.6)
    keep = suppress_polyhedra(*field, *golden_spiral(96, 2.0), 0.3)
    assert np.count_nonzero(keep) > 15
    np.testing.assert_array_equal(keep, official_keep(field, 96, 2.0, 0.3))


# --- volumes of half-spaces


@pytest.mark.parametrize("seed", range(4))
def test_intersections_and_hulls_equal_qhull(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(60, 3)) * rng.uniform(0.5, 3, 3) + 0.1
    normals, offsets = hull_planes(points)
    hull = ConvexHull(points)
    assert len(offsets) == len(hull.equations)
    assert (points @ normals.T <= offsets + 1e-9).all()
    assert intersection_volume(normals, offsets, np.inf) == pytest.approx(hull.volume, rel=1e-9)
    other = rng.normal(size=(40, 3)) * 2
    middle = 0.1 * rng.normal(size=3)
    planes = np.concatenate([hull.equations, ConvexHull(other).equations])
    expected = ConvexHull(HalfspaceIntersection(planes, middle).intersections).volume
    away = -(planes[:, :3] @ middle + planes[:, 3])
    assert intersection_volume(planes[:, :3].copy(), away, np.inf) == pytest.approx(expected, rel=1e-9)
    # Planes that are there twice count once; where enough is asked for, the sum ends early.
    twice = np.concatenate([planes, planes])[:, :3].copy()
    assert intersection_volume(twice, np.concatenate([away, away]), np.inf) == pytest.approx(expected, rel=1e-9)
    assert 0.5 * expected < intersection_volume(planes[:, :3].copy(), away, 0.5 * expected) <= expected


def test_volume_of_a_cube() -> None:
    normals = np.concatenate([np.eye(3), -np.eye(3)])
    assert intersection_volume(normals, np.array([1.0, 2, 3, 1, 1, 1]), np.inf) == pytest.approx(2 * 3 * 4)


# --- rendering


@pytest.mark.parametrize(("seed", "rays", "anisotropy"), [(0, 96, 1.0), (1, 32, 2.0), (2, 5, 1.0)])
def test_rendering_equals_official(seed: int, rays: int, anisotropy: float) -> None:
    """Ragged stars beyond the border and without an order of scores."""
    points, _, distances = blobs(seed, 60, (20, 44, 40), rays, anisotropy, noise=0.25)
    scores = np.random.default_rng(seed).permutation(len(points)).astype(np.float32)
    shape = (20, 41, 70 if rays == 32 else 40)
    if rays == 32:
        points[:, 2] += np.arange(len(points)) % 40  # across the words of bits
    expected = geometry.polyhedron_to_label(
        distances, points, official_rays(rays, anisotropy), shape, prob=scores, verbose=0
    )
    directions, faces = golden_spiral(rays, anisotropy)
    np.testing.assert_array_equal(render_polyhedra(points, distances, directions, faces, shape, scores), expected)


def test_planes_painted_by_threads_are_those_painted_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from numba import config

    points, _, distances = blobs(5, 60, (70, 30, 30), 32, 1.0, 0.1)
    directions, faces = golden_spiral(32)
    found = []
    for threads in (1, 4):
        monkeypatch.setattr(config, "NUMBA_NUM_THREADS", threads)
        found.append(render_polyhedra(points, distances, directions, faces, (70, 30, 30)))
    np.testing.assert_array_equal(*found)
    assert len(np.unique(found[0])) > 40


def test_voxels_on_the_surface_belong_to_the_object() -> None:
    """An octahedron of whole size: |z| + |y| + |x| <= 4, its corners, edges and faces included."""
    directions = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]], np.float32)
    faces = np.array([[z, y, x] for z in (0, 1) for y in (2, 3) for x in (4, 5)], np.int32)
    labels = render_polyhedra(np.full((1, 3), 6.0), np.full((1, 6), 4.0), directions, faces, (13, 13, 13))
    np.testing.assert_array_equal(labels > 0, np.abs(np.indices((13, 13, 13)) - 6).sum(0) <= 4)


def test_rays_without_length_leave_the_voxel_of_the_centre() -> None:
    directions, faces = golden_spiral(96, 2.0)
    labels = render_polyhedra(np.array([[2.0, 3, 4]]), np.full((1, 96), 1e-3), directions, faces, (5, 6, 7))
    assert np.argwhere(labels).tolist() == [[2, 3, 4]]


def test_without_scores_the_first_polyhedron_wins() -> None:
    directions, faces = golden_spiral(96)
    points = np.array([[6, 6, 5], [6, 6, 7]])
    labels = render_polyhedra(points, np.full((2, 96), 4.5), directions, faces, (13, 13, 13))
    assert labels[6, 6, 5] == labels[6, 6, 7] == 1
    assert labels[6, 6, 11] == 2


def test_bits_of_a_box_are_those_of_the_whole() -> None:
    """Rows of parts of a polyhedron, of every plane and of every third, across words and below 0."""
    directions, faces = golden_spiral(96)
    vertices, box = np.empty((96, 3)), np.empty(6, np.int64)
    place_vertices(np.array([3, 4, 2], np.float32), np.full(96, 9.3, np.float32), directions, vertices, box)

    def bits(part: NDArray[np.int64], step: int) -> NDArray[np.bool_]:
        rows = np.full(words_of(part), 7, np.uint64)
        write_rows(vertices, faces, part, step, rows)
        words = (part[5] >> 6) - (part[2] >> 6) + 1
        planes = (part[3] - part[0]) // step + 1
        rows = rows[: planes * (part[4] - part[1] + 1) * words].reshape(planes, -1, words)
        volume = ((rows[..., None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)).reshape(planes, rows.shape[1], -1)
        first = part[2] - (part[2] >> 6 << 6)
        return volume[:, :, first : first + part[5] - part[2] + 1] > 0

    whole = bits(box, 1)
    assert whole.sum() == pytest.approx(ConvexHull(vertices).volume, rel=0.03)
    part = box + np.array([2, 3, 4, -1, -2, 0])
    expected = whole[2:-1, 3:-2, 4:]
    np.testing.assert_array_equal(bits(part, 1), expected)
    np.testing.assert_array_equal(bits(part, 3), expected[::3])


@pytest.mark.parametrize("anisotropy", [1.0, 2.0])
def test_a_real_label_volume_survives_its_stars(shared_data: Path, anisotropy: float) -> None:
    """Stars of the centres of real nuclei, rendered again: the mean overlap of the official program.

    The ends of the first and the last ray lie on voxels, which the official program may leave out by rounding.
    """
    labels = real_labels(shared_data)
    ids = np.unique(labels[labels > 0])
    centres = np.array([np.argwhere(labels == number).mean(0).astype(int) for number in ids])
    own = labels[tuple(centres.T)] == ids
    ids, centres = ids[own], centres[own]
    directions, faces = golden_spiral(96, anisotropy)
    distances = ray_distances(labels, directions)[:, *centres.T].T
    found = render_polyhedra(centres, distances, directions, faces, labels.shape)
    expected = geometry.polyhedron_to_label(
        distances, centres, official_rays(96, anisotropy), labels.shape, prob=-np.arange(len(ids)), verbose=0
    )
    different = found != expected
    assert np.count_nonzero(different) <= 2 * len(ids)
    ends = {
        (z, y, x)
        for (z, y, x), (first, *_, last) in zip(centres.tolist(), distances.tolist(), strict=True)
        for z in (round(z - first), round(z + last))
    }
    assert set(map(tuple, np.argwhere(different).tolist())) <= ends

    def overlap(drawn: NDArray[np.int32]) -> float:
        pairs = [(drawn == place, labels == number) for place, number in enumerate(ids, 1)]
        return float(np.mean([(first & second).sum() / (first | second).sum() for first, second in pairs]))

    assert overlap(found) == pytest.approx(overlap(expected), abs=1e-3)
    assert overlap(found) > 0.75


# --- mistakes


def test_mistakes_are_told_in_a_line() -> None:
    directions, faces = golden_spiral(8)
    points, rays = np.zeros((2, 3), np.float32), np.ones((2, 8), np.float32)
    scores = np.array([0.9, 0.1])
    with pytest.raises(InputError, match="rays, anisotropy"):
        golden_spiral(4)
    with pytest.raises(InputError, match="rays, anisotropy"):
        golden_spiral(8, 0.0)
    with pytest.raises(InputError, match="labels"):
        ray_distances(np.zeros((4, 4), np.int32), directions)
    with pytest.raises(InputError, match="directions"):
        ray_distances(np.zeros((4, 4, 4), np.int32), directions[:, :2])
    with pytest.raises(InputError, match="grid"):
        ray_distances(np.zeros((4, 4, 4), np.int32), directions, (1, 0, 1))
    with pytest.raises(InputError, match="probability, distances"):
        volume_candidates(np.zeros((4, 4, 4), np.float32), np.zeros((8, 4, 4, 5), np.float32), 0.5)
    with pytest.raises(InputError, match="threshold"):
        volume_candidates(np.zeros((4, 4, 4), np.float32), np.zeros((8, 4, 4, 4), np.float32), -1)
    with pytest.raises(InputError, match="descending"):
        suppress_polyhedra(points, scores[::-1], rays, directions, faces)
    with pytest.raises(InputError, match="threshold"):
        suppress_polyhedra(points, scores, rays, directions, faces, threshold=-1)
    with pytest.raises(InputError, match="finite"):
        suppress_polyhedra(points, scores, np.full((2, 8), np.nan), directions, faces)
    with pytest.raises(InputError, match="above 0"):
        suppress_polyhedra(points, scores, np.zeros((2, 8)), directions, faces)
    with pytest.raises(InputError, match="faces"):
        suppress_polyhedra(points, scores, rays, directions, faces + 1)
    with pytest.raises(InputError, match="points, distances"):
        render_polyhedra(points, rays[:1], directions, faces, (4, 4, 4))
    with pytest.raises(InputError, match="scores"):
        render_polyhedra(points, rays, directions, faces, (4, 4, 4), scores=np.ones(3))
