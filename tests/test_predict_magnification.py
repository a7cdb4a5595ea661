"""Magnification: what the network is shown, and how segments come back."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from predict_toys import PLAIN, Bands, Blobs, Toy, blob_field, objects_of
from torch import Tensor
from torch.nn import functional

from everymask.data.preprocessing import Preprocessing
from everymask.errors import InputError
from everymask.methods.classify.classifier import Classifier
from everymask.predict.magnification import MagnifiedImage, magnification_for, restored
from everymask.predict.predictor import Predictor
from everymask.types import LabelMap, Polygon, Segments


@pytest.mark.parametrize("factor", [0.1, 0.37, 0.5, 0.9, 1.25, 2.0, 3.3])
@pytest.mark.parametrize("shape", [(61, 83), (61, 83, 2), (1, 9)])
def test_images_are_resized_as_torch_does_with_antialias(factor: float, shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).integers(0, 60_000, shape).astype(np.uint16)
    resized = MagnifiedImage(image, factor)
    assert resized.shape[:2] == (max(1, round(factor * shape[0])), max(1, round(factor * shape[1])))
    planes = torch.from_numpy(image.astype(np.float32).reshape(*shape[:2], -1)).permute(2, 0, 1)[None]
    expected = functional.interpolate(planes, size=resized.shape[:2], mode="bilinear", antialias=True)[0]
    found = resized[0 : resized.shape[0], 0 : resized.shape[1]]
    np.testing.assert_allclose(found.reshape(*resized.shape[:2], -1), expected.permute(1, 2, 0), rtol=1e-4, atol=0.1)
    window = (slice(resized.shape[0] // 3, resized.shape[0] + 9), slice(0, resized.shape[1] // 2))
    np.testing.assert_array_equal(resized[window], found[window])


def test_only_the_pixels_of_a_window_are_read() -> None:
    class Watched:
        shape, dtype, largest = (400, 600), np.dtype(np.uint8), 0

        def __getitem__(self, key: tuple[slice, slice]) -> np.ndarray:
            rows, columns = (range(*each.indices(length)) for each, length in zip(key, self.shape, strict=True))
            self.largest = max(self.largest, len(rows) * len(columns))
            return np.zeros((len(rows), len(columns)), np.uint8)

    watched = Watched()
    assert MagnifiedImage(watched, 0.5)[20:60, 100:140].shape == (40, 40)  # type: ignore[arg-type]
    assert watched.largest <= 84 * 84


@pytest.mark.parametrize("geometry", ["labels", "masks"])
@pytest.mark.parametrize("tile", [1024, 40])
def test_segments_come_back_in_the_pixels_of_the_image(geometry: str, tile: int) -> None:
    # At half the size, edges at even places give .875 inside and .125 outside, so nothing is lost.
    ids = np.zeros((192, 256), np.int32)
    generator = np.random.default_rng(0)
    for i, (top, left) in enumerate(itertools.product(range(8, 170, 40), range(8, 230, 48)), 1):
        height, width = 2 * generator.integers(2, 10, 2)
        ids[top : top + height, left : left + width] = i
    image = (ids > 0).astype(np.float32)
    method = Blobs(radius=0, stride=1, geometry=geometry)
    found = Predictor(method, PLAIN, "cpu", "float32", tile=tile, magnification=0.5)(image)
    assert len(found) == ids.max() == 25 and found.score is not None
    assert objects_of(found) == objects_of(Segments(ids.shape, np.zeros(25), LabelMap(ids)))


def test_enlarging_finds_the_same_objects() -> None:
    image = blob_field((120, 150), sigma=6)
    plain = Predictor(Blobs(radius=0, stride=1), PLAIN, "cpu", "float32")(image)
    for factor in (1.5, 2.0, 0.7):
        found = Predictor(Blobs(radius=0, stride=1), PLAIN, "cpu", "float32", magnification=factor)(image)
        assert found.size == image.shape
        both = (found.label_map() > 0) & (plain.label_map() > 0)
        assert both.sum() > 0.9 * (plain.label_map() > 0).sum()
    same = Predictor(Blobs(), PLAIN, "cpu", "float32", magnification=1)(image)
    assert objects_of(same) == objects_of(Predictor(Blobs(), PLAIN, "cpu", "float32")(image))


def test_intensities_are_those_of_the_image_itself() -> None:
    image = (60_000 * blob_field((64, 64))).astype(np.uint16)
    preprocessing = Preprocessing(channels=1, normalise="scale")
    outputs, size = Predictor(Blobs(radius=0, stride=1), preprocessing, "cpu", "float32", magnification=2.0).outputs(
        image
    )
    assert size == (128, 128)
    assert abs(float(outputs["foreground"].mean()) - image.mean() / 65535) < 0.02


def test_objects_that_vanish_are_counted() -> None:
    class Dots(Bands):
        """Every lit pixel of the magnified image is an object of its own."""

        def __init__(self) -> None:
            super().__init__(radius=0)
            self.tasks = Blobs.tasks  # type: ignore[misc]

        def decode(self, outputs, sizes):
            height, width = sizes[0]
            lit = outputs["level"][0, 0, :height, :width].numpy() > 0.5
            ids = np.zeros((height, width), np.int32)
            ids[lit] = np.arange(1, lit.sum() + 1)
            return [Segments((height, width), np.zeros(lit.sum()), LabelMap(ids))]

    image = np.zeros((16, 16), np.float32)
    image[4:8, 4:8] = 1
    with pytest.warns(UserWarning, match="of 64 objects are too small") as caught:
        found = Predictor(Dots(), PLAIN, "cpu", "float32", magnification=2.0)(image)
    assert len(found) == 16 and str(caught[0].message).startswith("48 of 64")
    assert sorted(np.unique(found.label_map())) == list(range(17))


def test_outlines_and_boxes_are_scaled() -> None:
    square = np.array([[2.0, 4.0], [6.0, 4.0], [6.0, 8.0], [2.0, 8.0]])
    hole = square / 2 + 2
    outlined = Segments.from_polygons((10, 20), [[Polygon(square, (hole,))]], 3, score=[0.5])
    found, lost = restored(outlined, (20, 10))
    np.testing.assert_array_equal(found.polygons().parts[0][0].exterior, square * [0.5, 2])
    np.testing.assert_array_equal(found.polygons().parts[0][0].holes[0], hole * [0.5, 2])
    assert lost == 0 and found.score is not None and found.category.tolist() == [3]
    boxed, _ = restored(Segments((10, 20), [0], box=[[2, 4, 6, 8]]), (20, 10))
    np.testing.assert_array_equal(boxed.boxes(), [[1, 8, 3, 16]])


def test_nearest_pixels_are_those_of_torch() -> None:
    ids = np.random.default_rng(0).integers(-1, 4, (37, 53)).astype(np.int32)
    for size in [(80, 40), (37, 53), (12, 100)]:
        expected = functional.interpolate(torch.from_numpy(ids).double()[None, None], size=size, mode="nearest-exact")
        found, _ = restored(Segments((37, 53), np.zeros(3), LabelMap(ids)), size)
        assert found.size == size
        np.testing.assert_array_equal(found.label_map() == -1, expected[0, 0].numpy() == -1)
        np.testing.assert_array_equal(found.label_map() > 0, expected[0, 0].numpy() > 0)


class Sizing(Blobs):
    """Knows its objects: squares of 8 pixels."""

    diameter = 8.0

    def estimate_magnification(self, images: Tensor) -> float:
        assert images.ndim == 4 and images.max() <= 1
        side = float((images > 0.5).sum(-1).max())
        return self.diameter / max(side, 1.0)


def test_the_method_may_say_itself_how_large_it_wants_the_image() -> None:
    image = np.zeros((64, 96), np.uint8)
    image[20:36, 30:46] = 255
    seen = []

    class Watched(Sizing):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            seen.append(tuple(images.shape[-2:]))
            return super().forward(images)

    found = Predictor(Watched(radius=0), PLAIN, "cpu", "float32", magnification="auto")(image)
    assert seen == [(32, 48)] and len(found) == 1
    assert magnification_for(Sizing(), 16) == 0.5
    with pytest.raises(InputError, match="Blobs knows no diameter"):
        magnification_for(Blobs(), 16)
    with pytest.raises(InputError, match="above 0"):
        magnification_for(Sizing(), 0)
    with pytest.raises(InputError, match="Blobs cannot estimate"):
        Predictor(Blobs(), PLAIN, "cpu", magnification="auto")


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf"), 1e6])
def test_senseless_magnifications_are_refused(factor: float) -> None:
    with pytest.raises(InputError, match="magnification must be"):
        Predictor(Blobs(), PLAIN, "cpu", magnification=factor)


def test_classifiers_have_no_magnification() -> None:
    method = Classifier(classes=2, channels=1, backbone="test_resnet", size=32)
    with pytest.raises(InputError, match="one size"):
        Predictor(method, PLAIN, "cpu", magnification=2.0)
    with pytest.raises(InputError, match="'auto'"):
        Predictor(Toy.__new__(Blobs), PLAIN, "cpu", magnification="automatic")  # type: ignore[arg-type]


def test_unsmoothed_images_are_those_of_torch_without_antialiasing():
    import torch

    image = np.random.default_rng(0).random((47, 64, 3)).astype(np.float32)
    for factor in (0.37, 0.65, 1.3):
        resized = MagnifiedImage(image, factor, smooth=False)
        size = (int(factor * 47 + 1e-6), int(factor * 64 + 1e-6))
        assert resized.shape == (*size, 3)
        tensor = torch.from_numpy(image.transpose(2, 0, 1))[None]
        expected = torch.nn.functional.interpolate(tensor, size=size, mode="bilinear", align_corners=False)
        found = resized[0 : size[0], 0 : size[1]]
        assert np.allclose(found, expected[0].numpy().transpose(1, 2, 0), atol=1e-5)
