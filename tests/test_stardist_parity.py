"""StarDist as a whole against the official program: from network outputs to objects, and the network itself.

The official suppression and rendering work without TensorFlow, so they are called here; the official network does not,
so its definition (`csbdeep.internals.blocks.unet_block`, `StarDist2D._build`) is written again in numpy. The comparison
with the official program as a whole and with trained weights is `benchmarks/stardist_predict.py`.
"""

from __future__ import annotations

from importlib import resources

import numpy as np
import pytest
import tifffile
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy import ndimage

from everymask.methods.bottom_up.stardist import StarDist
from everymask.types import Segments

Outputs = dict[str, torch.Tensor]
Size = tuple[int, int]


@pytest.fixture(scope="module")
def nuclei() -> NDArray[np.int32]:
    """The true objects of a real image, (512, 512)."""
    with (resources.files("everymask") / "assets" / "images" / "fluorescence.mask.tif").open("rb") as file:
        return tifffile.imread(file).astype(np.int32)


def outputs_near(labels: NDArray[np.int32], method: StarDist, seed: int) -> Outputs:
    """What a network might say of an image: the targets, blurred, with smooth noise and noise of single cells."""
    random = np.random.default_rng(seed)
    targets = method.targets(Segments.from_label_map(labels))
    probability = ndimage.gaussian_filter(targets["probability"].numpy()[0], 1)
    logits = 6 * (probability - 0.4) + random.normal(0, 0.2, probability.shape)
    distances = ndimage.gaussian_filter(targets["distances"].numpy(), (0.5, 1, 1))
    smooth = ndimage.gaussian_filter(random.normal(size=distances.shape), (4, 2, 2))
    distances *= 1 + 0.02 * random.normal(size=distances.shape) + 0.3 * smooth
    return {
        "probability": torch.from_numpy(logits.astype(np.float32))[None, None],
        "distances": torch.from_numpy(distances.astype(np.float32))[None],
    }


def official(outputs: Outputs, size: Size, grid: int, thresholds: dict[str, float]) -> tuple[NDArray[np.int32], list]:
    """Label map and scores of the objects with pixels, by `StarDist2D.predict` and `_instances_from_prediction`."""
    nms, geometry = pytest.importorskip("stardist.nms"), pytest.importorskip("stardist.geometry")
    rows, columns = -(-size[0] // grid), -(-size[1] // grid)
    points, scores, distances = nms.non_maximum_suppression(
        np.maximum(1e-3, outputs["distances"][0, :, :rows, :columns].permute(1, 2, 0).numpy()),
        outputs["probability"][0, 0, :rows, :columns].sigmoid().numpy(),
        grid=(grid, grid),
        prob_thresh=thresholds["probability"],
        nms_thresh=thresholds["overlap"],
    )
    labels = geometry.polygons_to_label(distances, points, size, prob=scores)
    drawn = np.unique(labels[labels > 0])
    return labels, scores[drawn - 1].tolist()


def assert_same_objects(found: Segments, labels: NDArray[np.int32], scores: list[float]) -> None:
    """Equal label maps up to the numbers of the objects, which carry the same scores."""
    ids = found.label_map()
    pairs = np.unique(np.stack([ids.ravel(), labels.ravel()]), axis=1)
    objects = pairs[:, (pairs > 0).any(axis=0)]
    assert len(found) == len(scores) == objects.shape[1]
    assert (objects > 0).all()
    assert all(len(np.unique(each)) == len(scores) for each in objects)
    assert found.score is not None
    np.testing.assert_allclose(np.sort(found.score), np.sort(scores), rtol=1e-6)


@pytest.mark.parametrize("grid", [1, 2, 4])
@pytest.mark.parametrize(("probability", "overlap"), [(0.3, 0.3), (0.5, 0.4), (0.6, 0.1)])
def test_decoding_equals_the_official_program(
    nuclei: NDArray[np.int32], grid: int, probability: float, overlap: float
) -> None:
    """A batch of images of odd sizes, whose padding continues the objects and must not be looked at."""
    method = StarDist(grid=grid)
    method.thresholds = {"probability": probability, "overlap": overlap}
    sizes = [(251, 203), (192, 256), (190, 217)]
    places = [(0, 0), (200, 100), (256, 256)]
    batch = [
        outputs_near(nuclei[top : top + 256, left : left + 256], method, seed)
        for seed, (top, left) in enumerate(places)
    ]
    decoded = method.decode({name: torch.cat([each[name] for each in batch]) for name in batch[0]}, sizes)
    for found, outputs, size in zip(decoded, batch, sizes, strict=True):
        labels, scores = official(outputs, size, grid, method.thresholds)
        assert found.size == size
        assert len(scores) > 10
        assert_same_objects(found, labels, scores)


@pytest.mark.parametrize("grid", [1, 2])
def test_two_cells_at_each_border_give_no_object(grid: int) -> None:
    """The border is that of the image, not of the padded output: here 21 x 18 of 24 x 24 cells belong to the image."""
    method = StarDist(grid=grid)
    size = (grid * 21 - (grid - 1), grid * 18)
    for row, column in [(2, 9), (1, 9), (18, 9), (19, 9), (9, 2), (9, 1), (9, 15), (9, 16), (22, 9), (9, 20)]:
        outputs = {"probability": torch.full((1, 1, 24, 24), -9.0), "distances": torch.full((1, 32, 24, 24), 3.4)}
        outputs["probability"][0, 0, row, column] = 9.0
        found = method.decode(outputs, [size])[0]
        assert len(found) == int(2 <= row <= 18 and 2 <= column <= 15)
        assert_same_objects(found, *official(outputs, size, grid, method.thresholds))


def test_rays_without_length_leave_the_pixel_of_the_centre() -> None:
    method = StarDist(grid=2)
    for length in (-7.0, 0.0, 1e-4):
        outputs = {"probability": torch.full((1, 1, 8, 8), -9.0), "distances": torch.full((1, 32, 8, 8), length)}
        outputs["probability"][0, 0, 3, 4] = 9.0
        found = method.decode(outputs, [(16, 15)])[0]
        assert np.argwhere(found.label_map()).tolist() == [[6, 8]]
        assert_same_objects(found, *official(outputs, (16, 15), 2, method.thresholds))


def test_images_smaller_than_the_border_are_empty() -> None:
    method = StarDist(grid=2)
    outputs = {"probability": torch.full((1, 1, 8, 8), 9.0), "distances": torch.full((1, 32, 8, 8), 3.0)}
    for size in [(1, 1), (8, 8), (3, 16)]:
        assert len(method.decode(outputs, [size])[0]) == 0


# --- the network, by the official definition in numpy ---------------------------------------------------------------


def convolved(image: NDArray[np.float64], convolution: torch.nn.Conv2d) -> NDArray[np.float64]:
    """Keras ``Conv2D(padding="same")`` of an image (H, W, C), without activation."""
    kernel = convolution.weight.detach().numpy().transpose(2, 3, 1, 0)  # (height, width, inputs, outputs) as in Keras
    half = kernel.shape[0] // 2
    windows = sliding_window_view(np.pad(image, ((half, half), (half, half), (0, 0))), kernel.shape[:2], axis=(0, 1))
    return np.einsum("hwcij,ijco->hwo", windows, kernel) + convolution.bias.detach().numpy()


def official_network(image: NDArray[np.float64], method: StarDist) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Probabilities (h, w) and distances (h, w, R) of an image (H, W, C)."""

    def activated(features: NDArray[np.float64], convolutions: list[torch.nn.Conv2d]) -> NDArray[np.float64]:
        for each in convolutions:
            features = np.maximum(convolved(features, each), 0)
        return features

    def pooled(features: NDArray[np.float64]) -> NDArray[np.float64]:
        height, width, channels = features.shape
        return features.reshape(height // 2, 2, width // 2, 2, channels).max(axis=(1, 3))

    def of(module: torch.nn.Module) -> list[torch.nn.Conv2d]:
        return [each for each in module.modules() if isinstance(each, torch.nn.Conv2d)]

    features, stem = image, of(method.stem)
    for i in range(0, len(stem), 2):
        features = pooled(activated(features, stem[i : i + 2]))
    skips = []
    for level in method.body.down:
        features = activated(features, of(level))
        skips.append(features)
        features = pooled(features)
    features = activated(features, of(method.body.bottom))
    for level, skip in zip(reversed(method.body.up), reversed(skips), strict=True):
        features = activated(np.concatenate([features.repeat(2, axis=0).repeat(2, axis=1), skip], axis=2), of(level))
    features = activated(features, of(method.features))
    return 1 / (1 + np.exp(-convolved(features, method.probability)[..., 0])), convolved(features, method.distances)


@pytest.mark.parametrize(("grid", "depth", "channels"), [(1, 3, 1), (2, 2, 3), (4, 1, 2)])
def test_the_network_is_the_official_one(grid: int, depth: int, channels: int) -> None:
    torch.manual_seed(grid)
    method = StarDist(channels=channels, rays=8, grid=grid, base=4, depth=depth, features=6, norm="none").double()
    for name, parameter in method.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    image = np.random.default_rng(0).uniform(size=(2 * method.stride, 3 * method.stride, channels))
    with torch.inference_mode():
        outputs = method(torch.from_numpy(image.transpose(2, 0, 1).copy())[None])
    probability, distances = official_network(image, method)
    assert distances.std(axis=(0, 1)).min() > 1e-3  # not a constant, to which every network would be equal
    np.testing.assert_allclose(outputs["probability"][0, 0].sigmoid().numpy(), probability, rtol=1e-9)
    np.testing.assert_allclose(outputs["distances"][0].permute(1, 2, 0).numpy(), distances, rtol=1e-9, atol=1e-12)
