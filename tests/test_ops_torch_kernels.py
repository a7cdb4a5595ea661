"""Kernels for accelerators against the compiled ones, which have tests of their own: here on the CPU, the same bits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage

from everymask.errors import InputError
from everymask.ops import (
    embedding_clusters,
    embedding_torch,
    flow_masks,
    flow_targets,
    flow_torch,
    heat_torch,
    omnipose_masks,
    omnipose_torch,
    star_torch,
    stars,
)
from everymask.ops.eikonal import eikonal_distance, omnipose_flow


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Threads that wait for each other take longer than these small images."""
    torch.set_num_threads(1)


def blobs(shape: tuple[int, ...], seed: int, objects: int = 6) -> NDArray[np.int32]:
    """Touching objects with holes and in several pieces, many cut by the border; every third value is background."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
    levels = np.quantile(noise, np.linspace(0, 1, objects + 2)[1:-1])
    labels = np.digitize(noise, levels)
    return np.where(labels % 3, labels, 0).astype(np.int32)


def cells(shape: tuple[int, ...], count: int, seed: int) -> NDArray[np.int32]:
    """Balls with radii of 4 to 9 pixels, of which later ones cover earlier ones, some cut by the border."""
    generator = np.random.default_rng(seed)
    labels = np.zeros(shape, np.int32)
    grids = np.indices(shape)
    for n in range(1, count + 1):
        centre = generator.uniform(0, shape).reshape(-1, *[1] * len(shape))
        labels[np.square(grids - centre).sum(0) < generator.uniform(4, 9) ** 2] = n
    return labels


def noise(shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    """Smooth along all axes but the first, standard deviation 1."""
    generator = np.random.default_rng(seed)
    smooth = np.stack([ndimage.gaussian_filter(generator.normal(size=shape[1:]), 1) for _ in range(shape[0])])
    return (smooth / smooth.std()).astype(np.float32)


IMAGES = [
    cells((90, 120), 30, 0),
    cells((70, 65), 12, 1),
    blobs((60, 80), 2),
    cells((20, 40, 36), 9, 3),
    blobs((9, 14, 37), 4),
    np.ones((30, 41), np.int32),
    np.zeros((12, 9), np.int32),
    np.ones((1, 7), np.int32),
]


# -- Cellpose ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", IMAGES)
@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_flow_labels_are_those_of_the_compiled_kernels(labels: NDArray[np.int32], strength: float) -> None:
    flow = flow_targets.FLOW_SCALE * flow_targets.flow_targets(labels)
    flow = (flow + strength * noise(flow.shape, 5)).astype(np.float32)
    logit = np.where(labels > 0, 4, -4).astype(np.float32)
    logit += noise((1, *labels.shape), 6)[0]
    for options in (
        {},
        {"flow_threshold": 0.0, "max_fraction": 0.03, "min_size": 0},
        {"steps": 31, "foreground_threshold": 3.5, "flow_threshold": 0.1, "max_fraction": 1.0},
    ):
        expected = flow_masks.flow_labels(flow, logit, **options)
        found = flow_torch.flow_labels(torch.from_numpy(flow), torch.from_numpy(logit), **options)
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, expected)


def test_flow_labels_pass_over_what_is_no_number() -> None:
    labels = cells((80, 80), 20, 7)
    flow = flow_targets.FLOW_SCALE * flow_targets.flow_targets(labels)
    logit = np.where(labels > 0, np.float32(4), np.float32(-4))
    for number, value in ((3, np.nan), (5, np.inf), (8, -np.inf)):
        place = tuple(np.argwhere(labels == number)[10])
        flow[(number % 2, *place)] = value
        logit[tuple(np.argwhere(labels == number)[20])] = value
    expected = flow_masks.flow_labels(flow, logit)
    found = flow_torch.flow_labels(torch.from_numpy(flow), torch.from_numpy(logit))
    assert 0 < expected.max() < len(np.unique(labels)) - 1, "some objects should be dropped"
    np.testing.assert_array_equal(found, expected)


def test_flow_may_be_a_view_of_channels_that_lie_together() -> None:
    labels = cells((64, 64), 14, 8)
    flow = flow_targets.FLOW_SCALE * flow_targets.flow_targets(labels)
    maps = np.stack([*flow, np.where(labels > 0, 4, -4)]).astype(np.float32)
    batch = torch.from_numpy(np.pad(maps, ((0, 0), (0, 5), (0, 3))))[None].to(memory_format=torch.channels_last)
    found = flow_torch.flow_labels(batch[0, :2, :64, :64], batch[0, 2, :64, :64])
    np.testing.assert_array_equal(found, flow_masks.flow_labels(flow, maps[2]))


def test_points_are_followed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = cells((50, 60), 12, 9)
    flow = torch.from_numpy(flow_targets.FLOW_SCALE * flow_targets.flow_targets(labels))
    foreground = torch.from_numpy(labels > 0)
    whole = flow_torch.follow_flows(flow, foreground)
    monkeypatch.setattr(flow_torch, "_TOGETHER", 97)
    assert torch.equal(flow_torch.follow_flows(flow, foreground), whole)
    monkeypatch.setattr(omnipose_torch, "_TOGETHER", 97)
    ends = omnipose_torch.suppressed_euler(flow / 5, foreground.int(), 9)
    np.testing.assert_array_equal(ends, omnipose_masks.suppressed_euler(flow.numpy() / 5, labels > 0, 9))


@pytest.mark.parametrize("labels", IMAGES)
def test_flow_error_is_that_of_the_compiled_kernel(labels: NDArray[np.int32]) -> None:
    flow = flow_targets.FLOW_SCALE * flow_targets.flow_targets(labels)
    flow = (flow + noise(flow.shape, 10)).astype(np.float32)
    labels = np.where(labels == 2, -1, labels * 7)  # ids with gaps, and void
    expected = flow_targets.flow_error(labels, flow)
    found = heat_torch.flow_error(torch.from_numpy(labels), torch.from_numpy(flow))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-12)


def test_flow_error_of_a_thin_object_far_from_its_middle() -> None:
    """The heat of a line of 600 pixels falls below 1e-100; so does that of one in two pieces, which has one middle."""
    labels = np.zeros((9, 600), np.int32)
    labels[2] = 1
    labels[5, :200] = labels[5, 300:] = 2
    flow = np.zeros((2, 9, 600), np.float32)
    flow[1, 2, :300], flow[1, 2, 300:] = 5, -5
    found = heat_torch.flow_error(torch.from_numpy(labels), torch.from_numpy(flow)).numpy()
    np.testing.assert_allclose(found, flow_targets.flow_error(labels, flow), rtol=1e-9)
    assert found[0] < 0.01


def test_wrong_fields_are_named() -> None:
    with pytest.raises(InputError, match="flow: got shape"):
        flow_torch.flow_labels(torch.zeros(3, 4, 4), torch.zeros(4, 4))
    with pytest.raises(InputError, match="steps: got -1"):
        flow_torch.flow_labels(torch.zeros(2, 4, 4), torch.zeros(4, 4), steps=-1)
    with pytest.raises(InputError, match="labels, flow: got"):
        heat_torch.flow_error(torch.zeros(4, 4), torch.zeros(2, 4, 4))


# -- StarDist ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("border", [0, 2, 40])
@pytest.mark.parametrize("grid", [1, 2])
def test_candidates_are_those_of_the_compiled_kernel(border: int, grid: int) -> None:
    generator = np.random.default_rng(0)
    # Few values, so that many scores are equal and their order counts.
    probability = generator.integers(0, 20, (60, 47)).astype(np.float32) / 20
    probability[30, 20:23] = np.nan, np.inf, -np.inf
    distances = generator.normal(3, 4, (60, 47, 8)).astype(np.float32)
    distances[31, 20, :3] = np.nan, np.inf, -np.inf
    rays = torch.from_numpy(distances.transpose(2, 0, 1).copy())
    expected = stars.candidates(probability, distances, 0.4, border, grid)
    found = star_torch.candidates(torch.from_numpy(probability), rays, 0.4, border, (grid, grid))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == torch.float32
        np.testing.assert_array_equal(ours.numpy(), theirs)


def test_candidates_of_a_volume() -> None:
    generator = np.random.default_rng(1)
    probability = generator.uniform(0, 1, (7, 12, 15)).astype(np.float32)
    distances = generator.uniform(0, 90, (20, 7, 12, 15)).astype(np.float32)
    points, scores, rays = star_torch.candidates(
        torch.from_numpy(probability), torch.from_numpy(distances), 0.7, 1, (1, 2, 4)
    )
    inner = np.zeros_like(probability)
    inner[1:-1, 1:-1, 1:-1] = probability[1:-1, 1:-1, 1:-1]
    places = np.argwhere(inner > 0.7)
    places = places[np.argsort(-inner[tuple(places.T)], kind="stable")]
    np.testing.assert_array_equal(points.numpy(), places * (1, 2, 4))
    np.testing.assert_array_equal(scores.numpy(), probability[tuple(places.T)])
    diagonal = np.float32(math.hypot(7, 24, 60))
    np.testing.assert_array_equal(rays.numpy(), distances[(slice(None), *places.T)].T.clip(np.float32(1e-3), diagonal))


def test_wrong_predictions_of_stars_are_named() -> None:
    with pytest.raises(InputError, match="threshold: got nan"):
        star_torch.candidates(torch.zeros(4, 4), torch.zeros(8, 4, 4), math.nan)
    with pytest.raises(InputError, match=r"got shapes \(4, 4\) and \(4, 4, 8\)"):
        star_torch.candidates(torch.zeros(4, 4), torch.zeros(4, 4, 8), 0.5)


# -- Omnipose ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", IMAGES)
@pytest.mark.parametrize("steps", [0, 1, 24])
def test_end_points_of_omnipose_are_those_of_the_compiled_kernels(labels: NDArray[np.int32], steps: int) -> None:
    distance = eikonal_distance(labels)
    flow = omnipose_flow(labels, distance)
    flow = (flow + noise(flow.shape, 11)).astype(np.float32)
    flow[:, *np.argwhere(labels == labels.max())[0]] = 0
    distance = np.where(labels > 0, distance, -5) + noise((1, *labels.shape), 12)[0] / 2
    regions, _ = omnipose_masks.foreground(distance, 1.0)
    field = omnipose_masks.converging_field(flow, regions)
    on_device = omnipose_torch.converging_field(torch.from_numpy(flow), torch.from_numpy(regions))
    np.testing.assert_array_equal(on_device.numpy(), field)
    ends = omnipose_masks.suppressed_euler(field, regions, steps)
    found = omnipose_torch.suppressed_euler(on_device, torch.from_numpy(regions), steps)
    np.testing.assert_array_equal(found.numpy(), ends)


# -- spatial embedding -------------------------------------------------------------------------------------------------


def embedded(shape: tuple[int, ...], seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Embedding, logarithm of the scale and seed scores, many of them equal, for touching objects; with errors."""
    labels = cells(shape, 25, seed)
    generator = np.random.default_rng(seed)
    centres = np.zeros((labels.max() + 1, len(shape)))
    centres[1:] = embedding_clusters.object_centres(labels, "centroid")
    places = np.indices(shape).astype(np.float32)
    pull = centres.astype(np.float32)[labels].transpose(len(shape), *range(len(shape))) - places
    embedding = np.where(labels > 0, places + 0.8 * pull, places) + generator.normal(0, 0.3, places.shape)
    log_scale = generator.normal(8, 0.3, places.shape)
    scores = np.where(labels > 0, 1 - np.abs(pull).max(0) / 12, 0.2) + generator.normal(0, 0.05, shape)
    return tuple((each.astype(np.float32)) for each in (embedding / 200, log_scale, scores.clip(0, 1).round(2)))  # type: ignore[return-value]


@pytest.mark.parametrize("shape", [(90, 110), (12, 40, 44), (1, 50)])
@pytest.mark.parametrize("seed", [0, 1])
def test_clusters_are_those_of_the_compiled_kernel(shape: tuple[int, ...], seed: int) -> None:
    embedding, log_scale, scores = embedded(shape, seed)
    embedding[..., 30], log_scale[..., 31], scores[..., 32] = np.nan, np.inf, np.inf
    fields = [torch.from_numpy(each) for each in (embedding, log_scale, scores)]
    for options in ((), (0.3, 0.6, 8, 0.2), (0.9, 0.95, 0, 0.9)):
        ids, found = embedding_clusters.cluster_embeddings(embedding, log_scale, scores, *options)
        ours, seeds = embedding_torch.cluster_embeddings(*fields, *options)
        np.testing.assert_array_equal(ours, ids)
        np.testing.assert_array_equal(seeds, found)
    assert ids.max() > 0 or shape[0] == 1


def test_clusters_of_nothing_and_of_one_point() -> None:
    fields = torch.zeros(2, 5, 6), torch.zeros(2, 5, 6), torch.full((5, 6), 0.5)
    ids, scores = embedding_torch.cluster_embeddings(*fields, 0.5, 0.5)
    assert not ids.any() and len(scores) == 0
    ids, scores = embedding_torch.cluster_embeddings(*fields, 0.4, 0.5, 3)  # all embed at the same point
    assert (ids == 1).all() and scores.tolist() == [0.5]
    with pytest.raises(InputError, match="have shapes"):
        embedding_torch.cluster_embeddings(torch.zeros(2, 5, 6), torch.zeros(2, 5, 6), torch.zeros(6, 5))
