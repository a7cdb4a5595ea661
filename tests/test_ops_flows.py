"""Flows of Cellpose against brute force in numpy and scipy, closed forms, and the official program (3 or 4)."""

from __future__ import annotations

import inspect
import itertools
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from everymask.errors import InputError
from everymask.ops import flow_following
from everymask.ops.flow_following import follow_flows, sinks
from everymask.ops.flow_masks import drop_bad_flows, fill_holes_and_drop_small, flow_labels, sinks_to_labels
from everymask.ops.flow_targets import FLOW_SCALE, flow_error, flow_targets
from everymask.ops.labels import label_overlap

SQUARE = np.ones((3, 3), bool)


def blobs(shape: tuple[int, ...], seed: int, objects: int = 6) -> NDArray[np.int32]:
    """Touching, holed objects in several pieces, many cut by the border; every third value is background."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
    levels = np.quantile(noise, np.linspace(0, 1, objects + 2)[1:-1])
    labels = np.digitize(noise, levels)
    return np.where(labels % 3, labels, 0).astype(np.int32)


def cells(
    size: int, count: int, seed: int, radii: tuple[float, float] = (6, 11), gap: bool = False
) -> NDArray[np.int32]:
    """(size, size) ellipses, touching here and there, or with a gap between each two; a few are cut by the border."""
    generator = np.random.default_rng(seed)
    labels = np.zeros((size, size), np.int32)
    rows, columns = np.mgrid[:size, :size]
    for n in range(1, count + 1):
        for _ in range(50):
            y, x = generator.uniform(2, size - 2, 2)
            first, second = generator.uniform(*radii, 2)
            angle = generator.uniform(0, np.pi)
            along = (columns - x) * np.cos(angle) + (rows - y) * np.sin(angle)
            across = (rows - y) * np.cos(angle) - (columns - x) * np.sin(angle)
            inside = (along / first) ** 2 + (across / second) ** 2 < 1
            taken = ndimage.binary_dilation(labels > 0, SQUARE) if gap else labels > 0
            if (taken & inside).sum() <= (0 if gap else 0.15 * inside.sum()):
                labels[inside & (labels == 0)] = n
                break
    for n in range(1, count + 1):  # one piece of each
        labels[ndimage.label(labels == n, SQUARE)[0] > 1] = 0
    return labels


def noisy(flow: NDArray[np.float32], strength: float, seed: int) -> NDArray[np.float32]:
    """A flow as a network predicts it: smooth errors of the given standard deviation."""
    generator = np.random.default_rng(seed)
    errors = np.stack([ndimage.gaussian_filter(generator.normal(size=part.shape), 1) for part in flow])
    return (FLOW_SCALE * flow + strength * errors / errors.std()).astype(np.float32)


# -- targets -----------------------------------------------------------------------------------------------------------


def middle(places: NDArray[np.int64]) -> tuple[int, ...]:
    """The pixel nearest the centroid; which of several is the first, up to rounding."""
    inner = places - places.min(axis=0) + 1
    away = (inner - inner.mean(axis=0)) ** 2
    # the order of the terms is that of the official program: sums of floats depend on it
    distances = away[:, 0] + away[:, 1] if away.shape[1] == 2 else away[:, 0] + away[:, 2] + away[:, 1]
    return tuple(places[distances.argmin()])


def brute_force_flow(mask: NDArray[np.bool_], logarithm: bool = False) -> NDArray[np.float64]:
    """Flow of one object in one piece, by convolution of whole images."""
    axes = mask.ndim
    places = np.argwhere(mask)
    sides = np.ptp(places, axis=0) + 1
    steps = 2 * (sides.sum() + 4) if axes == 2 else 6 * (sides.sum() + 3)
    source = middle(places)
    kernel = ndimage.generate_binary_structure(axes, 2 if axes == 2 else 1)
    heat = np.zeros(mask.shape)
    for _ in range(steps):
        heat[source] += 1
        heat = ndimage.convolve(heat, kernel / kernel.sum(), mode="constant") * mask
    if logarithm:
        heat = np.log1p(heat)
    framed = np.pad(heat, 1)
    slopes = []
    for axis in range(axes):
        inner = [slice(1, -1)] * axes
        inner[axis] = slice(2, None)
        after = framed[tuple(inner)]
        inner[axis] = slice(None, -2)
        slopes.append(after - framed[tuple(inner)])
    vectors = np.stack(slopes) * mask
    length = np.sqrt((vectors**2).sum(axis=0))
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 1e-9 * heat)


@pytest.mark.parametrize("shape", [(17, 23), (6, 9, 11)])
@pytest.mark.parametrize("logarithm", [False, True])
def test_targets_equal_brute_force(shape: tuple[int, ...], logarithm: bool) -> None:
    structure = ndimage.generate_binary_structure(len(shape), 2 if len(shape) == 2 else 1)
    for seed in range(4):
        labels = blobs(shape, seed)
        expected = np.zeros((len(shape), *shape))
        for label in np.unique(labels[labels > 0]):
            pieces, count = ndimage.label(labels == label, structure)
            for piece in range(1, count + 1):
                expected += brute_force_flow(pieces == piece, logarithm)
        got = flow_targets(labels, logarithm=logarithm)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, atol=1e-5)
        np.testing.assert_array_equal(got, flow_targets(labels, logarithm=logarithm, parallel=True))


def test_targets_of_any_ids_and_void() -> None:
    labels = blobs((40, 30), 3)
    odd = np.array([0, 7, 2_000_000_000, 3, 900, 31, 4, 5])[labels]
    np.testing.assert_array_equal(flow_targets(odd), flow_targets(labels))
    void = np.where(labels == 1, -1, labels)
    assert np.all(flow_targets(void)[:, labels == 1] == 0)
    others = labels > 1
    np.testing.assert_array_equal(flow_targets(void)[:, others], flow_targets(labels)[:, others])


def test_targets_of_degenerate_images() -> None:
    assert np.all(flow_targets(np.zeros((5, 7), np.int32)) == 0)
    one = np.zeros((5, 7), np.int32)
    one[0, 3] = 9
    assert np.all(flow_targets(one) == 0)  # nowhere to go
    full = flow_targets(np.ones((9, 9), np.int32))
    np.testing.assert_allclose(full[:, 0, 4], [1, 0], atol=1e-6)
    np.testing.assert_allclose(full[:, 8, 8], [-np.sqrt(0.5)] * 2, atol=1e-6)
    assert flow_targets(np.zeros((0, 4), np.int32)).shape == (2, 0, 4)


def test_targets_of_a_thin_object_reach_its_ends() -> None:
    # The heat falls by a factor of 8 for each pixel, below what the official program's normalisation takes for nothing.
    line = np.zeros((3, 301), np.int32)
    line[1] = 1
    flow = flow_targets(line)
    assert np.all(flow[1, 1, :150] == 1) and np.all(flow[1, 1, 151:] == -1) and flow[1, 1, 150] == 0


def test_targets_of_an_object_in_pieces_equal_those_of_its_pieces() -> None:
    apart = np.zeros((20, 40), np.int32)
    apart[3:12, 2:13], apart[5:18, 20:37] = 1, 2
    np.testing.assert_array_equal(flow_targets(np.minimum(apart, 1)), flow_targets(apart))


# -- the official program ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dynamics() -> ModuleType:
    return pytest.importorskip("cellpose.dynamics", reason="the official program (cellpose) is not installed")


def official_flow(dynamics: ModuleType, labels: NDArray[np.int32]) -> NDArray[np.float64]:
    """The official flow of each object by itself, with steps as of Cellpose 3 on the CPU."""
    if hasattr(dynamics, "masks_to_flows_cpu"):
        return dynamics.masks_to_flows_cpu(labels)[0]
    flow = np.zeros((2, *labels.shape))
    for n, box in enumerate(ndimage.find_objects(labels), 1):
        if box is not None:
            mask = labels[box] == n
            steps = 2 * (sum(mask.shape) + 4)
            flow[:, box[0], box[1]] += official_accelerator_flow(dynamics, mask.astype(np.int32), steps)
    return flow


def official_accelerator_flow(dynamics: ModuleType, labels: NDArray[np.int32], steps: int) -> NDArray[np.float64]:
    """The flow of the official code for accelerators, which is the only one in Cellpose 4."""
    import torch

    return first(dynamics.masks_to_flows_gpu(labels.astype(np.int64), device=torch.device("cpu"), niter=steps))


def official_labels(
    dynamics: ModuleType, flow: NDArray[np.float32], logit: NDArray[np.float32], flow_threshold: float = 0.4
) -> NDArray[np.int32]:
    import torch

    device = torch.device("cpu")
    found = dynamics.compute_masks(flow, logit, flow_threshold=flow_threshold, min_size=15, device=device)
    return np.asarray(first(found), np.int32)


def first(result: Any) -> Any:
    """What the official program wants to say: some versions return more."""
    return result[0] if isinstance(result, tuple) else result


def least_cosine(a: NDArray[np.floating], b: NDArray[np.floating], where: NDArray[np.bool_]) -> float:
    return float(((a * b).sum(axis=0) / np.maximum(np.linalg.norm(b, axis=0), 1e-9))[where].min())


@pytest.mark.parametrize("gap", [True, False])
def test_targets_equal_official(dynamics: ModuleType, gap: bool) -> None:
    labels = cells(128, 40, 1, gap=gap)
    theirs = official_flow(dynamics, labels)
    ours = flow_targets(labels)
    moving = (labels > 0) & np.any(ours != 0, axis=0)
    assert (labels > 0).sum() - moving.sum() <= labels.max()  # a middle each, where the official program may have noise
    cosine = (ours * theirs).sum(axis=0)[moving]
    if hasattr(dynamics, "masks_to_flows_cpu"):
        assert cosine.min() > 0.99999
    # Cellpose 4 rounds the centroid first, so a few objects have another middle
    assert np.mean(cosine > 0.999) > 0.98


def test_official_accelerator_code_reads_the_heat_of_touching_objects(dynamics: ModuleType) -> None:
    labels = np.zeros((24, 34), np.int32)
    labels[2:21, 2:17], labels[2:21, 17:32] = 1, 2
    alone = [official_accelerator_flow(dynamics, (labels == n).astype(np.int32), 76) for n in (1, 2)]
    expected = np.where(labels == 1, alone[0], alone[1])
    ours = flow_targets(labels)
    moving = (labels > 0) & np.any(ours != 0, axis=0)
    assert least_cosine(ours, expected, moving) > 0.999
    together = official_accelerator_flow(dynamics, labels, 76)
    border = np.zeros_like(moving)
    border[:, 16:18] = moving[:, 16:18]
    assert least_cosine(together, expected, moving & ~border) > 0.999
    # Where two cells touch, each reads the heat of the other, and its own flow turns along the border.
    assert least_cosine(together, expected, border) < 0.95


def test_targets_in_volumes_equal_official(dynamics: ModuleType) -> None:
    z, y, x = np.mgrid[:12, :17, :20]
    ball = (((z - 5.3) / 5) ** 2 + ((y - 8.1) / 7) ** 2 + ((x - 10.2) / 9) ** 2 < 1).astype(np.int32)
    import torch

    theirs = first(dynamics.masks_to_flows_gpu_3d(ball, device=torch.device("cpu")))
    moving = (ball > 0) & (np.linalg.norm(theirs, axis=0) > 0.5)
    assert least_cosine(flow_targets(ball), theirs, moving) > 0.99999


def test_flow_error_equals_official(dynamics: ModuleType) -> None:
    import torch

    # without touching cells, whose heat Cellpose 4 mixes
    labels = cells(96, 25, 2, gap=not hasattr(dynamics, "masks_to_flows_cpu"))
    labels = np.unique(labels, return_inverse=True)[1].reshape(labels.shape).astype(np.int32)
    flow = noisy(flow_targets(labels), 2, 0)
    ours = flow_error(labels, flow)
    np.testing.assert_array_equal(ours, flow_error(labels, flow, parallel=True))
    if hasattr(dynamics, "masks_to_flows_cpu"):
        metrics = pytest.importorskip("cellpose.metrics")
        theirs = metrics.flow_error(labels, flow, device=torch.device("cpu"))[0]
        np.testing.assert_allclose(ours, theirs, atol=0.02)  # a middle each, see above
        assert np.median(np.abs(ours - theirs)) < 1e-6
    else:
        theirs = dynamics.flow_error(labels.astype(np.int64), flow, device=torch.device("cpu"))[0]
        np.testing.assert_allclose(ours, theirs, atol=0.05)


def test_flow_error_equals_brute_force() -> None:
    for seed in range(3):
        labels = blobs((30, 40), seed)
        flow = noisy(flow_targets(labels), 3, seed)
        expected = []
        for label in np.unique(labels[labels > 0]):
            mask = labels == label
            places = np.argwhere(mask)
            source = middle(places)
            pieces = ndimage.label(mask, SQUARE)[0]
            # the piece with the source has its flow, after as many steps as the box of all asks for; others have none
            own = official_like_flow(mask, pieces == pieces[source], source)
            expected.append((((own - flow / FLOW_SCALE) ** 2).sum(axis=0))[mask].mean())
        np.testing.assert_allclose(flow_error(labels, flow), expected, atol=1e-6)


def official_like_flow(
    mask: NDArray[np.bool_], piece: NDArray[np.bool_], source: tuple[int, ...]
) -> NDArray[np.float64]:
    heat = np.zeros(mask.shape)
    for _ in range(2 * int((np.ptp(np.argwhere(mask), axis=0) + 1).sum() + 4)):
        heat[source] += 1
        heat = ndimage.uniform_filter(heat, 3, mode="constant") * piece
    framed = np.pad(heat, 1)
    slope = np.stack([framed[2:, 1:-1] - framed[:-2, 1:-1], framed[1:-1, 2:] - framed[1:-1, :-2]]) * piece
    length = np.sqrt((slope**2).sum(axis=0))
    return np.divide(slope, length, out=np.zeros_like(slope), where=length > 1e-9 * heat)


# -- following ---------------------------------------------------------------------------------------------------------


def brute_force_ends(flow: NDArray[np.float32], foreground: NDArray[np.bool_], steps: int) -> NDArray[np.float32]:
    """Euler's method for all points and all steps in float32, the corners one after the other."""
    axes = foreground.ndim
    field = np.where(foreground, flow / np.float32(FLOW_SCALE), np.float32(0))
    field = np.pad(field, [(0, 0)] + [(0, 1)] * axes)
    ends = np.indices(foreground.shape).astype(np.float32)
    points = ends[:, foreground]
    last = np.array(foreground.shape, np.float32)[:, None] - 1
    for _ in range(steps):
        corner = points.astype(np.int64)
        fraction = points - corner.astype(np.float32)
        values = {
            offset: field[(slice(None), *(corner + np.array(offset)[:, None]))]
            for offset in itertools.product((0, 1), repeat=axes)
        }
        for axis in range(axes - 1, -1, -1):
            near = {key: value for key, value in values.items() if key[axis] == 0}
            values = {
                key[:axis]: value + (values[(*key[:axis], 1)] - value) * fraction[axis] for key, value in near.items()
            }
        points = np.clip(points + values[()], np.float32(0), last)
    ends[:, foreground] = points
    return ends


@pytest.mark.parametrize("strength", [0.0, 1.5, 6.0])
@pytest.mark.parametrize("steps", [0, 1, 11, 12, 60, 200, 203])
def test_early_stop_keeps_end_points(strength: float, steps: int) -> None:
    labels = cells(90, 25, 3)
    flow = noisy(flow_targets(labels), strength, 1)
    foreground = labels > 0
    ends = follow_flows(flow, foreground, steps)
    np.testing.assert_array_equal(ends, brute_force_ends(flow, foreground, steps))
    np.testing.assert_array_equal(ends, follow_flows(flow, foreground, steps, parallel=True))
    whole = ends.astype(np.int64)
    np.testing.assert_array_equal(sinks(flow, foreground, steps)[foreground], (whole[0] * 90 + whole[1])[foreground])


def test_paths_in_volumes_equal_brute_force() -> None:
    labels = blobs((9, 14, 37), 4)
    flow = noisy(flow_targets(labels), 2, 1)
    ends = follow_flows(flow, labels > 0, 50)
    np.testing.assert_array_equal(ends, brute_force_ends(flow, labels > 0, 50))
    torch_ends = pytest.importorskip("torch")
    from everymask.ops import flow_torch

    on_device = flow_torch.follow_flows(torch_ends.from_numpy(flow), torch_ends.from_numpy(labels > 0), 50)
    np.testing.assert_array_equal(ends, on_device.numpy())


@pytest.mark.parametrize("steps", [0, 7, 200])
def test_torch_ends_at_the_same_points(steps: int) -> None:
    torch = pytest.importorskip("torch")
    from everymask.ops import flow_torch

    labels = cells(80, 20, 5)
    flow = noisy(flow_targets(labels), 1, 2)
    flow[0, 30, 40], flow[1, 31, 40] = np.nan, np.inf
    foreground = labels > 0
    on_device = flow_torch.follow_flows(torch.from_numpy(flow), torch.from_numpy(foreground), steps)
    np.testing.assert_array_equal(on_device.numpy(), follow_flows(flow, foreground, steps))
    with pytest.raises(InputError, match="flow: got shape"):
        flow_torch.follow_flows(torch.zeros(2, 4, 4), torch.zeros(4, 5, dtype=torch.bool))
    with pytest.raises(InputError, match="steps"):
        flow_torch.follow_flows(torch.zeros(2, 4, 4), torch.zeros(4, 4, dtype=torch.bool), -1)


def linear_flow() -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """y' = y - (y - c) / 20 and its solution c + (y0 - c) (19 / 20)^t at t = 40; interpolation is exact in it."""
    places = np.indices((60, 50)).astype(np.float64)
    away = places - np.array([21.3, 30.7]).reshape(2, 1, 1)
    return (-away / 20 * FLOW_SCALE).astype(np.float32), places - away + away * 0.95**40


def test_a_linear_flow_ends_where_the_formula_says() -> None:
    flow, expected = linear_flow()
    np.testing.assert_allclose(follow_flows(flow, np.ones((60, 50), bool), 40), expected, atol=1e-4)


def test_official_interpolation_is_shifted_in_cellpose_4(dynamics: ModuleType) -> None:
    import torch

    flow, expected = linear_flow()
    device = torch.device("cpu")
    if "inds" in inspect.signature(dynamics.follow_flows).parameters:
        inside = np.nonzero(np.ones((60, 50), bool))
        theirs = dynamics.follow_flows(flow / FLOW_SCALE, inds=inside, niter=40, device=device)
    else:
        theirs = dynamics.follow_flows(flow / FLOW_SCALE, niter=40, device=device)[0]
    away = np.abs(np.asarray(theirs).reshape(2, 60, 50) - expected).max()
    if hasattr(dynamics, "masks_to_flows_cpu"):
        assert away < 1e-4
    else:  # it interpolates at y H / (H - 1) - 1/2
        assert away > 0.1


def test_flows_that_are_not_finite_count_zero() -> None:
    flow = np.zeros((2, 9, 9), np.float32)
    flow[:, 4, 4] = np.nan
    flow[0, 2, 2], flow[1, 6, 6], flow[0, 7, 1] = np.inf, -np.inf, 3e38
    ends = follow_flows(flow, np.ones((9, 9), bool), 30)
    assert np.isfinite(ends).all() and ends.min() >= 0 and ends.max() <= 8
    still = np.indices((9, 9)).astype(np.float32)
    assert np.array_equal(ends[:, 4, 4], still[:, 4, 4]) and np.array_equal(ends[:, 2, 2], still[:, 2, 2])
    assert ends[0, 7, 1] == 8
    assert flow_labels(flow, np.full((9, 9), np.nan)).max() == 0


# -- labels ------------------------------------------------------------------------------------------------------------


def brute_force_sinks(
    ends: NDArray[np.floating], foreground: NDArray[np.bool_], max_fraction: float
) -> NDArray[np.int32]:
    axes = foreground.ndim
    whole = ends.astype(np.int64)[:, foreground]
    counts = np.zeros(foreground.shape, np.int64)
    np.add.at(counts, tuple(whole), 1)
    seeds = np.argwhere((counts == ndimage.maximum_filter(counts, 5, mode="constant")) & (counts > 10))
    seeds = seeds[np.argsort(counts[tuple(seeds.T)], kind="stable")]
    marks = np.zeros(foreground.shape, np.int32)
    for n, seed in enumerate(seeds, 1):
        sink = np.zeros(foreground.shape, bool)
        sink[tuple(seed)] = True
        for _ in range(5):
            sink = ndimage.binary_dilation(sink, np.ones((3,) * axes)) & (counts > 2)
        marks[sink] = n
    labels = np.zeros(foreground.shape, np.int32)
    labels[foreground] = marks[tuple(whole)]
    numbers: dict[int, int] = {}
    for label in labels.ravel():
        if label > 0 and (labels == label).sum() <= labels.size * max_fraction:
            numbers.setdefault(int(label), len(numbers) + 1)
    return np.array([numbers.get(int(label), 0) for label in labels.ravel()], np.int32).reshape(labels.shape)


@pytest.mark.parametrize("shape", [(40, 50), (9, 15, 17)])
def test_labels_of_sinks_equal_brute_force(shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(0)
    for _ in range(6):
        foreground = generator.random(shape) < 0.8
        middles = generator.uniform(0, shape, (9, len(shape)))
        ends = middles[generator.integers(0, 9, shape)] + generator.normal(0, 1.5, (*shape, len(shape)))
        ends = np.clip(np.moveaxis(ends, -1, 0), 0, np.array(shape).reshape(-1, *[1] * len(shape)) - 1)
        for max_fraction in (0.4, 0.06):
            got = sinks_to_labels(ends, foreground, max_fraction=max_fraction)
            np.testing.assert_array_equal(got, brute_force_sinks(ends.astype(np.float32), foreground, max_fraction))


def same_partition(a: NDArray[np.integer], b: NDArray[np.integer]) -> bool:
    first, second, _ = label_overlap(a.astype(np.int32), b.astype(np.int32))
    return len(first) == len(np.unique(first)) == len(np.unique(second))


@pytest.mark.parametrize("shape", [(60, 70), (12, 20, 24)])
def test_labels_of_sinks_equal_official(dynamics: ModuleType, shape: tuple[int, ...]) -> None:
    import torch

    labels = blobs(shape, 7, 9)
    ends = follow_flows(noisy(flow_targets(labels), 1, 0), labels > 0, 60)
    if hasattr(dynamics, "get_masks_torch"):
        points = torch.from_numpy(ends[:, labels > 0]).int()
        theirs = dynamics.get_masks_torch(points, np.nonzero(labels > 0), np.array(shape))
    else:  # before 3.1, where the seed with fewer paths prevailed
        theirs = dynamics.get_masks(ends.copy(), iscell=labels > 0)
    ours = sinks_to_labels(ends, labels > 0)
    assert ours.max() > 3
    if hasattr(dynamics, "get_masks_torch"):
        assert same_partition(ours, np.asarray(theirs))
    else:
        assert accuracy(ours, np.asarray(theirs, np.int32), 0.9) > 0.8


def accuracy(a: NDArray[np.integer], b: NDArray[np.integer], threshold: float) -> float:
    """Objects that match at an intersection over union above 1/2, over all of both."""
    first, second, shared = label_overlap(a.astype(np.int32), b.astype(np.int32))
    areas, others = np.bincount(a.ravel()), np.bincount(b.ravel())
    both = (first > 0) & (second > 0)
    union = areas[first[both]] + others[second[both]] - shared[both]
    matched = int((shared[both] / union >= threshold).sum())
    return matched / max(len(np.unique(a[a > 0])) + len(np.unique(b[b > 0])) - matched, 1)


@pytest.mark.parametrize("strength", [0.0, 1.0, 2.0])
def test_labels_agree_with_official(dynamics: ModuleType, strength: float) -> None:

    labels = cells(200, 90, 8)
    flow = noisy(flow_targets(labels), strength, 3)
    logit = np.where(labels > 0, 3, -3).astype(np.float32)
    # The check of Cellpose 4 is the more lenient or strict the more the flows of touching objects mix, and its shifted
    # interpolation shows where the flow is noisy: there the objects are those of Cellpose 3.
    exact = hasattr(dynamics, "masks_to_flows_cpu") or strength < 2
    for flow_threshold in (0.0, 0.4) if exact else (0.0,):
        ours = flow_labels(flow, logit, flow_threshold=flow_threshold)
        theirs = official_labels(dynamics, flow, logit, flow_threshold)
        assert ours.max() > 20
        assert accuracy(ours, theirs, 0.9) >= (0.99 if exact else 0.9)


def test_labels_of_real_nuclei_agree_with_official(dynamics: ModuleType, shared_data: Path) -> None:
    from PIL import Image

    paths = sorted((shared_data / "dsb2018" / "val" / "masks").glob("*"))[:6]
    if not paths:
        pytest.skip("no dsb2018 in the shared data")
    matched = []
    for seed, path in enumerate(paths):
        labels = np.asarray(Image.open(path)).astype(np.int32)[:256, :256]
        flow = noisy(flow_targets(labels), 1.5, seed)
        logit = np.where(labels > 0, 3, -3).astype(np.float32)
        matched.append(accuracy(flow_labels(flow, logit), official_labels(dynamics, flow, logit), 0.9))
    assert np.mean(matched) >= 0.99


@pytest.mark.parametrize("steps", [60, 200])
def test_flows_give_back_touching_cells(steps: int) -> None:
    labels = cells(200, 90, 9)
    logit = np.where(labels > 0, 3, -3).astype(np.float32)
    flow = noisy(flow_targets(labels), 0.5, 0)
    found = flow_labels(flow, logit, steps=steps)
    assert accuracy(found, labels, 0.9) > 0.9
    np.testing.assert_array_equal(found, flow_labels(flow, logit, steps=steps, parallel=True))


def test_flows_give_back_balls_in_a_volume() -> None:
    z, y, x = np.mgrid[:20, :40, :40]
    labels = np.zeros((20, 40, 40), np.int32)
    for n, middle in enumerate([(9, 10, 10), (9, 10, 27), (10, 28, 12), (8, 29, 29)], 1):
        labels[(z - middle[0]) ** 2 + (y - middle[1]) ** 2 + (x - middle[2]) ** 2 < 81] = n
    found = flow_labels(FLOW_SCALE * flow_targets(labels), np.where(labels > 0, 1.0, -1.0))
    assert found.max() == 4 and accuracy(found, labels, 0.95) == 1


def test_drop_bad_flows_keeps_what_fits() -> None:
    labels = np.zeros((30, 60), np.int32)
    labels[5:25, 5:25], labels[5:25, 35:55] = 40, 7
    flow = FLOW_SCALE * flow_targets(labels)
    flow[:, :, 30:] *= -1
    kept = drop_bad_flows(labels, flow)
    np.testing.assert_array_equal(kept, labels == 40)
    # of the opposite direction the distance is 2, but in the middle pixel, which has no direction
    errors = flow_error(labels, flow)
    assert errors[1] < 1e-6 and abs(errors[0] - 4) < 0.02
    flow[0, 10, 10] = np.nan
    assert drop_bad_flows(labels, flow).max() == 0


def brute_force_filling(labels: NDArray[np.int32], min_size: int) -> NDArray[np.int32]:
    found = labels.copy()
    for label in np.unique(found[found > 0]):
        if (found == label).sum() < min_size:
            found[found == label] = 0
    first = {}
    for label in found.ravel():
        first.setdefault(int(label), len(first))
    for label in sorted((each for each in first if each > 0), key=first.__getitem__):
        found[ndimage.binary_fill_holes(found == label)] = label
    for label in np.unique(found[found > 0]):
        if (found == label).sum() < min_size:
            found[found == label] = 0
    return found


@pytest.mark.parametrize("shape", [(35, 45), (9, 12, 14)])
def test_holes_are_filled_as_by_brute_force(shape: tuple[int, ...]) -> None:
    for seed in range(6):
        labels = blobs(shape, seed, 9)
        expected = brute_force_filling(labels, 15)
        before = labels.copy()
        got = fill_holes_and_drop_small(labels, 15)
        np.testing.assert_array_equal(labels, before)
        assert same_partition(got, expected)
        firsts = [int(np.flatnonzero(got == n)[0]) for n in range(1, got.max() + 1)]
        assert firsts == sorted(firsts)


def test_holes_are_filled_as_officially() -> None:
    utils = pytest.importorskip("cellpose.utils", reason="the official program (cellpose) is not installed")
    rings = np.zeros((40, 60), np.uint16)
    rings[2:30, 2:30], rings[5:27, 5:27], rings[10:20, 10:20] = 1, 0, 2
    rings[5:30, 35:55], rings[10:20, 40:50], rings[30:32, 35:37] = 3, 0, 4
    theirs = utils.fill_holes_and_remove_small_masks(rings.copy(), min_size=15)
    ours = fill_holes_and_drop_small(rings.astype(np.int32), 15)
    assert ours.max() == 2 and same_partition(ours, theirs)


def test_large_and_small_objects_are_dropped() -> None:
    labels = np.zeros((60, 60), np.int32)
    labels[5:50, 5:50], labels[53:58, 5:10] = 1, 2
    logit = np.where(labels > 0, 3.0, -3.0)
    flow = FLOW_SCALE * flow_targets(labels)
    assert flow_labels(flow, logit).max() == 1
    assert flow_labels(flow, logit, max_fraction=0.9).max() == 2
    assert flow_labels(flow, logit, max_fraction=0.9, min_size=30).max() == 1
    assert flow_labels(flow, logit, foreground_threshold=4.0).max() == 0
    assert flow_labels(flow[:, :0], logit[:0]).shape == (0, 60)


def test_mistakes_are_told() -> None:
    with pytest.raises(InputError, match=r"flow: got shape \(2, 4, 4\), expected \(2, 4, 5\)"):
        flow_labels(np.zeros((2, 4, 4)), np.zeros((4, 5)))
    with pytest.raises(InputError, match="cut the image into tiles"):
        flow_labels(np.broadcast_to(np.float32(0), (2, 50_000, 50_000)), np.broadcast_to(0.0, (50_000, 50_000)))
    with pytest.raises(InputError, match="steps: got -1"):
        flow_labels(np.zeros((2, 4, 4)), np.zeros((4, 4)), steps=-1)
    with pytest.raises(InputError, match="ends: got shape"):
        sinks_to_labels(np.zeros((3, 4, 4)), np.zeros((4, 4), bool))
    with pytest.raises(InputError, match="expected"):
        flow_targets(np.zeros(4, np.int32))
    with pytest.raises(InputError, match="whole numbers"):
        flow_targets(np.full((4, 4), 0.5))
    with pytest.raises(InputError, match="flow: got shape"):
        flow_error(np.zeros((4, 4), np.int32), np.zeros((2, 5, 4)))


def test_tiles_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = cells(100, 25, 11)
    flow = noisy(flow_targets(labels), 1, 0)
    expected = follow_flows(flow, labels > 0)
    monkeypatch.setitem(vars(flow_following)["_TILES"], 2, (1, 3, 7))
    np.testing.assert_array_equal(follow_flows(flow, labels > 0), expected)
