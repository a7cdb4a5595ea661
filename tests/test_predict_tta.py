"""Test-time augmentation against outputs that are known for every position and direction."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from predict_toys import PLAIN, Blobs, StarOracle, Toy, Vignette, blob_field, random_images
from torch import Tensor
from torch.nn import functional

from everymask.errors import InputError
from everymask.methods.classify.classifier import Classifier
from everymask.methods.semantic.unet import UNetSegmentation
from everymask.predict.predictor import Predictor
from everymask.predict.tta import SCALES, VIEWS, View, average_views, check_views, chosen_views


class Samples(Toy):
    """The output is the input at pixels 0, g, 2 g, ..., and its slope to the right and downwards."""

    def __init__(self, grid: int, stride: int) -> None:
        super().__init__()
        self.grid, self.stride = grid, stride

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        extended = functional.pad(images, (1, 1, 1, 1), mode="replicate")
        right = extended[..., 1:-1, 2:] - extended[..., 1:-1, :-2]
        down = extended[..., 2:, 1:-1] - extended[..., :-2, 1:-1]
        step = (..., slice(None, None, self.grid), slice(None, None, self.grid))
        return {"value": images[step], "slope": torch.cat([right, down], 1)[step]}

    def undo_dihedral(self, outputs: Mapping[str, Tensor], flip: bool, turns: int) -> dict[str, Tensor]:
        undone = super().undo_dihedral(outputs, flip, turns)
        right, down = undone["slope"].chunk(2, 1)
        right = -right if flip else right
        for _ in range(turns):  # a counter-clockwise turn took "right" up, and "down" to the right
            right, down = -down, right
        undone["slope"] = torch.cat([right, down], 1)
        return undone


@pytest.mark.parametrize(("grid", "stride"), [(1, 1), (1, 8), (2, 2), (2, 8), (4, 8)])
@pytest.mark.parametrize("views", ["mirror", "flips", "dihedral"])
def test_every_view_samples_the_same_pixels(grid: int, stride: int, views: str) -> None:
    method = Samples(grid, stride)
    images = random_images(2, (3 * stride + 8 * (8 % stride == 0), 40))
    images = images[..., : images.shape[-2] // stride * stride, :]
    plain = method(images)
    for view in VIEWS[views]:
        alone = average_views(method, method, images, (view,))
        torch.testing.assert_close(alone["value"], plain["value"], atol=0, rtol=0)
        # At the border the slope depends on what is taken to lie beyond it.
        inside = (..., slice(1, -1), slice(1, -1))
        torch.testing.assert_close(alone["slope"][inside], plain["slope"][inside], atol=1e-6, rtol=0)
    mean = average_views(method, method, images, VIEWS[views])
    torch.testing.assert_close(mean["value"], plain["value"], atol=1e-6, rtol=0)


def test_dihedral_views_are_the_eight_symmetries_of_the_square() -> None:
    square = torch.arange(9).reshape(3, 3)
    copies = {
        tuple(torch.rot90(square, t).flip(-1).flatten().tolist() if f else torch.rot90(square, t).flatten().tolist())
        for f, t, _ in VIEWS["dihedral"]
    }
    assert len(copies) == 8
    flips = {tuple(each.flatten().tolist()) for each in (square, square.flip(0), square.flip(1), square.flip(0, 1))}
    assert {
        tuple((torch.rot90(square, t).flip(-1) if f else torch.rot90(square, t)).flatten().tolist())
        for f, t, _ in VIEWS["flips"]
    } == flips


@pytest.mark.parametrize("grid", [1, 2, 4])
def test_star_distances_of_turned_copies_are_those_of_the_image(grid: int) -> None:
    rows, columns = np.mgrid[:96, :128]
    ids = np.zeros((96, 128), np.float32)
    for i, (y, x, a, b) in enumerate([(30, 40, 12, 20), (70, 90, 18, 9), (60, 25, 7, 15)], 1):
        ids[((rows - y) / a) ** 2 + ((columns - x) / b) ** 2 < 1] = i
    method = StarOracle(channels=1, rays=32, grid=grid, base=4, depth=1)
    images = torch.from_numpy(ids)[None, None]
    plain = method(images)
    inside = plain["probability"][0, 0].sigmoid() > 1e-5
    for view in VIEWS["dihedral"]:
        turned = average_views(method, method, images, (view,))
        torch.testing.assert_close(turned["probability"].sigmoid(), plain["probability"].sigmoid(), atol=1e-5, rtol=0)
        # Rays are walked in steps of a pixel and rounded, which is not quite the same in all directions.
        difference = (turned["distances"] - plain["distances"]).abs()[0][:, inside]
        assert difference.max() < 2.1 and difference.mean() < 0.5


def test_prediction_with_augmentation_is_tiled_like_any_other() -> None:
    class Lopsided(Blobs):
        """Sees better to its left than to its right."""

        def forward(self, images: Tensor) -> dict[str, Tensor]:
            return {name: functional.pad(output, (5, -5)) for name, output in super().forward(images).items()}

    image = blob_field((200, 330))
    arguments = (Lopsided(stride=4), PLAIN, "cpu", "float32")
    whole, _ = Predictor(*arguments, tta=True).outputs(image)
    tiled, _ = Predictor(*arguments, tile=128, overlap=48, tta="dihedral").outputs(image)
    plain, _ = Predictor(*arguments).outputs(image)
    np.testing.assert_allclose(tiled["foreground"].numpy(), whole["foreground"].numpy(), atol=1e-6)
    assert (whole["foreground"] - plain["foreground"]).abs().max() > 1e-3


def test_outputs_that_are_not_dense_are_refused() -> None:
    class Boxes(Samples):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            return {"boxes": images.new_zeros(1, 7, 4)}

    with pytest.raises(InputError, match="dense outputs"):
        Predictor(Boxes(1, 1), PLAIN, "cpu", tta=True).outputs(np.zeros((8, 8), np.uint8))


def test_unknown_augmentations_are_named() -> None:
    assert chosen_views(True) == VIEWS["dihedral"] and chosen_views(False) == VIEWS["none"]
    with pytest.raises(InputError, match="dihedral"):
        chosen_views("dihedrl")  # type: ignore[arg-type]


class Ramps(Toy):
    """Outputs the image at the samples, and a length: twice its value, in pixels of whatever copy it is shown."""

    def __init__(self, grid: int, stride: int, height: int) -> None:
        super().__init__()
        self.grid, self.stride, self.height = grid, stride, height

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        step = (..., slice(None, None, self.grid), slice(None, None, self.grid))
        return {"value": images[step], "length": 2 * images[step] * (images.shape[-2] / self.height)}

    def undo_scale(self, outputs: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
        return {"value": outputs["value"], "length": outputs["length"] / factor}


@pytest.mark.parametrize(("grid", "stride"), [(1, 1), (1, 8), (2, 8), (4, 16)])
def test_magnified_copies_are_sampled_at_the_same_pixels(grid: int, stride: int) -> None:
    # A ramp keeps its values under interpolation, so every copy must say the same away from the border.
    y, x = np.mgrid[:96, :160]
    images = torch.from_numpy((0.01 * y + 0.003 * x).astype(np.float32))[None, None]
    method = Ramps(grid, stride, 96)
    plain = method(images)
    inside = (..., slice(12 // grid, -12 // grid), slice(12 // grid, -12 // grid))
    for view in (*VIEWS["multiscale"], View(True, 1, 0.75), View(False, 3, 1.25)):
        if view.turns % 2:
            method.height = 160
        alone = average_views(method, method, images, (view,))
        # Antialiasing shifts a ramp by up to a fiftieth of a pixel; a step of a pixel is .003 and .01.
        torch.testing.assert_close(alone["value"][inside], plain["value"][inside], atol=3e-4, rtol=0)
        if not view.turns:
            # The sides of the padded copy are whole strides.
            torch.testing.assert_close(alone["length"][inside], plain["length"][inside], atol=0, rtol=0.15)


def test_several_scales_are_averaged_as_probabilities() -> None:
    torch.manual_seed(0)
    method = UNetSegmentation(classes=3, channels=1, base=4, depth=2).eval()
    image = blob_field((128, 192))
    predictor = Predictor(method, PLAIN, "cpu", "float32", tta="multiscale")
    outputs, size = predictor.outputs(image)
    assert size == (128, 192)
    images = torch.from_numpy(image)[None, None]
    total = torch.zeros(1, 4, 128, 192)
    with torch.no_grad():
        for scale in SCALES:
            copy = functional.interpolate(images, scale_factor=scale, mode="bilinear", antialias=scale < 1)
            assert copy.shape[-1] % method.stride == 0
            for flip in (False, True):
                logits = method(copy.flip(-1) if flip else copy)["classes"]
                logits = functional.interpolate(logits.flip(-1) if flip else logits, (128, 192), mode="bilinear")
                total += logits.softmax(1)
    torch.testing.assert_close(outputs["classes"].exp(), total / 6, atol=1e-5, rtol=1e-4)
    np.testing.assert_array_equal(predictor(image).semantic_map(void=9, background=3), _class_map(total))


def _class_map(probabilities: Tensor) -> np.ndarray:
    """Background, which comes first there, as class 3."""
    return ((probabilities[0].argmax(0) - 1) % 4).numpy()


def test_tiles_of_several_scales_are_as_large_as_before_and_see_as_much() -> None:
    seen = []

    class Watched(Vignette):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            seen.append(max(images.shape[-2:]))
            return super().forward(images)

    predictor = Predictor(Watched(reach=24), PLAIN, "cpu", "float32", tile=200, tta="multiscale")
    assert predictor(blob_field((300, 420))).size == (300, 420)
    assert max(seen) <= 200 and predictor.tile == 160
    assert predictor.context == 32 and predictor.overlap == 80  # 24 / .75; half a tile


def test_scales_are_for_methods_whose_outputs_do_not_change_with_them() -> None:
    with pytest.raises(InputError, match="StarOracle predicts lengths in pixels"):
        Predictor(StarOracle(channels=1, base=4, depth=1), PLAIN, "cpu", tta="multiscale")
    check_views(Ramps(1, 1, 8), VIEWS["multiscale"])  # says how


def test_classifiers_are_averaged_over_copies_of_the_whole_image() -> None:
    torch.manual_seed(0)
    method = Classifier(classes=3, channels=3, backbone="test_resnet", size=32).eval()
    image = np.random.default_rng(0).random((32, 32, 3)).astype(np.float32)
    preprocessing = method.preprocessing_of()
    found = Predictor(method, preprocessing, "cpu", "float32", tta="flips")(image)
    images = torch.from_numpy(preprocessing(image))[None]
    with torch.no_grad():
        copies = [images, images.flip(-1), images.flip(-2), images.flip(-1, -2)]
        expected = torch.stack([method(each)["classes"].softmax(1)[0] for each in copies]).mean(0).numpy()
    np.testing.assert_allclose(found.score, expected[found.category], atol=1e-6)
    assert (np.diff(found.score) <= 0).all()
    with pytest.raises(InputError, match="one size"):
        Predictor(method, preprocessing, "cpu", tta="multiscale")
