"""Centres, clusters and neighbours of embeddings against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from everymask.errors import InputError
from everymask.ops.embedding_clusters import cluster_embeddings, embeddings_within, object_centres


def greedy(
    embedding: NDArray[np.floating],
    log_scale: NDArray[np.floating],
    seed: NDArray[np.floating],
    foreground: float = 0.5,
    lowest: float = 0.9,
    smallest: int = 36,
    overlap: float = 0.5,
) -> tuple[NDArray[np.int32], list[float]]:
    """The clustering as it is described: each proposal looks at all foreground pixels."""
    inside = seed > foreground
    places, logs = embedding[:, inside].astype(np.float64), log_scale[:, inside].astype(np.float64)
    score, free = seed[inside], np.ones(inside.sum(), bool)
    labels, scores = np.zeros(inside.sum(), np.int32), []
    while free.any() and (score * free).max() >= lowest:
        best = int((score * free).argmax())
        squared = (np.exp(logs[:, best, None]) * (places - places[:, best, None]) ** 2).sum(0)
        proposal = np.exp(-squared) > 0.5
        if proposal.sum() > smallest and free[proposal].sum() > overlap * proposal.sum():
            scores.append(float(score[best]))
            labels[proposal & free] = len(scores)
        free[proposal] = False
    ids = np.zeros(seed.shape, np.int32)
    ids[inside] = labels
    return ids, scores


def field(
    shape: tuple[int, ...], count: int, radius: float, noise: float, generator: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Embedding, log scale and seed of round objects, as a network would say, with its errors."""
    places = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij")) / 1023
    embedding = places + generator.normal(0, 0.3 * radius / 1023, places.shape)
    seed = generator.uniform(0, 0.6, shape)
    log_scale = generator.normal(9, 1, places.shape)
    for _ in range(count):
        centre = generator.uniform(0, shape) / 1023
        size = radius * generator.uniform(0.6, 1.4) / 1023
        apart = np.sqrt(((places.T - centre) ** 2).sum(-1)).T
        inside = apart < size
        drift = generator.normal(0, noise * size, places.shape)
        embedding[:, inside] = (centre[(...,) + (None,) * len(shape)] + drift)[:, inside]
        log_scale[:, inside] = np.log(np.log(2) / size**2) + generator.normal(0, 0.3, places.shape)[:, inside]
        seed[inside] = (1 - 0.4 * (apart / size) ** 2 + generator.normal(0, 0.05, shape))[inside]
    return embedding.astype(np.float32), log_scale.astype(np.float32), seed.clip(0, 1).astype(np.float32)


@pytest.mark.parametrize("noise", [0.1, 0.4, 1.0])
@pytest.mark.parametrize("shape", [(97, 120), (14, 40, 33)])
def test_clusters_are_those_of_the_plain_loop(shape: tuple[int, ...], noise: float) -> None:
    for number in range(6):
        generator = np.random.default_rng(number)
        outputs = field(shape, 40, 7, noise, generator)
        if number % 2:  # ties: the first pixel is the first
            outputs = (*outputs[:2], np.round(outputs[2] * 20) / 20)
        options = {
            "foreground": generator.uniform(0.3, 0.7),
            "lowest": generator.uniform(0.6, 0.95),
            "smallest": int(generator.integers(0, 40)),
            "overlap": generator.uniform(0.2, 0.8),
        }
        expected, scores = greedy(*outputs, **options)
        ids, found = cluster_embeddings(*outputs, **options)
        assert expected.max() > 3
        np.testing.assert_array_equal(ids, expected)
        assert found.tolist() == scores


def test_clusters_of_untrained_outputs_are_those_of_the_plain_loop() -> None:
    # Bandwidths from far below a pixel to beyond the image, embeddings anywhere: the grid must fit none of them.
    for number in range(8):
        generator = np.random.default_rng(number)
        embedding = generator.normal(0, 10.0 ** generator.integers(-4, 2), (2, 40, 50))
        log_scale = generator.normal(0, 10.0 ** generator.integers(0, 3), (2, 40, 50))
        outputs = embedding.astype(np.float32), log_scale.astype(np.float32), generator.random((40, 50))
        expected, scores = greedy(*outputs, smallest=2)
        ids, found = cluster_embeddings(*outputs, smallest=2)
        np.testing.assert_array_equal(ids, expected)
        assert found.tolist() == scores


def test_clusters_where_there_is_nothing_to_cluster() -> None:
    embedding, log_scale, seed = field((30, 30), 5, 5, 0.1, np.random.default_rng(0))
    for nothing in (np.zeros_like(seed), np.full_like(seed, np.nan)):
        ids, scores = cluster_embeddings(embedding, log_scale, nothing)
        assert not ids.any()
        assert len(scores) == 0
    # All pixels embed at one place.
    ids, scores = cluster_embeddings(np.zeros_like(embedding), log_scale, np.ones_like(seed))
    assert (ids == 1).all()
    ids, scores = cluster_embeddings(np.full_like(embedding, np.nan), log_scale, np.ones_like(seed))
    assert not ids.any()
    embedding[:, :10] = np.nan
    log_scale[:, 10:12] = np.inf
    ids, scores = cluster_embeddings(embedding, log_scale, seed, smallest=5)
    assert not ids[:10].any()
    assert len(scores) == ids.max() > 0
    assert cluster_embeddings(np.zeros((2, 0, 4)), np.zeros((2, 0, 4)), np.zeros((0, 4)))[0].shape == (0, 4)


def test_clusters_refuse_shapes_that_do_not_fit() -> None:
    with pytest.raises(InputError, match=r"expected \(2, H, W\)"):
        cluster_embeddings(np.zeros((2, 4, 4)), np.zeros((2, 4, 5)), np.zeros((4, 4)))


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((60, 70), None), ((40, 50), (2.0, 0.7)), ((9, 25, 20), None), ((9, 25, 20), (3.7, 1.0, 1.0))],
)
def test_medoids_have_the_least_sum_of_distances(shape: tuple[int, ...], spacing: tuple[float, ...] | None) -> None:
    generator = np.random.default_rng(0)
    for _ in range(8):
        # Blobs of any shape, with holes and fragments; label 3 is missing, some pixels are void.
        points = generator.uniform(0, shape, (12, len(shape)))
        places = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1)
        ids = ((places[..., None, :] - points) ** 2).sum(-1).argmin(-1).astype(np.int32)
        ids[generator.random(shape) < 0.3] = 0
        ids[ids == 3] = -1
        centres = object_centres(ids, spacing=spacing)
        means = object_centres(ids, "centroid", spacing)
        assert len(centres) == ids.max()
        for label in range(1, ids.max() + 1):
            own = np.argwhere(ids == label)
            if not len(own):
                assert np.isnan(centres[label - 1]).all()
                continue
            np.testing.assert_allclose(means[label - 1], own.mean(0), rtol=1e-12)
            steps = np.ones(len(shape)) if spacing is None else np.array(spacing)
            sums = np.sqrt((((own[:, None] - own) * steps) ** 2).sum(-1)).sum(1)
            chosen = (own == centres[label - 1]).all(1)
            assert chosen.sum() == 1
            assert sums[chosen][0] == pytest.approx(sums.min(), rel=1e-12)


def test_medoids_of_plain_shapes() -> None:
    bar = np.zeros((3, 9), np.uint8)
    bar[1, 2:7] = 1
    assert object_centres(bar).tolist() == [[1, 4]]
    ring = np.hypot(*np.mgrid[-9:10, -9:10])
    ring = ((ring > 6) & (ring < 9)).astype(int)
    y, x = object_centres(ring)[0].astype(int)
    assert ring[y, x] == 1
    assert object_centres(ring, "centroid")[0] == pytest.approx([9, 9])
    assert object_centres(np.zeros((4, 4), int)).shape == (0, 2)
    with pytest.raises(InputError, match="expected integers"):
        object_centres(np.zeros((4, 4)))
    with pytest.raises(InputError, match="spacing"):
        object_centres(bar, spacing=(1.0, 0.0))
    with pytest.raises(InputError, match="centre"):
        object_centres(bar, "median")  # type: ignore[arg-type]


@pytest.mark.parametrize("axes", [2, 3])
def test_neighbours_are_those_of_all_pairs(axes: int) -> None:
    for number in range(6):
        generator = np.random.default_rng(number)
        embedding = generator.normal(0, 0.1, (axes, 700)).astype(np.float32)
        objects = generator.integers(-2, 9, 700)
        scale = np.exp(generator.normal(6, 3, (axes, 9))).astype(np.float32)
        centre = generator.normal(0, 0.1, (axes, 9)).astype(np.float32)
        reach = generator.uniform(0, 16, 9).astype(np.float32)
        embedding[:, 5], scale[:, 2], reach[3], centre[:, 4] = np.inf, 0, np.nan, 50
        found = embeddings_within(embedding, objects, scale, centre, reach)
        apart = np.nan_to_num(embedding[:, None].astype(np.float64), posinf=1e9) - centre[:, :, None]
        close = (scale[:, :, None].astype(np.float64) * apart**2).sum(0) < reach[:, None]
        close[:, 5] = False
        close &= (objects != np.arange(9)[:, None]) & (objects != -2)
        expected = np.argwhere(close)
        assert len(expected) > 50
        assert sorted(found.T.tolist()) == expected.tolist()
        assert (np.diff(found[0]) >= 0).all()
    assert embeddings_within(embedding[:, :0], objects[:0], scale, centre, reach).shape == (2, 0)
