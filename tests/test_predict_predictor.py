"""Prediction of single images: sizes, number types, precision, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from predict_toys import PLAIN, Bands, Blobs, Toy, blob_field, objects_of
from torch import Tensor, nn

from everymask.data.preprocessing import Preprocessing
from everymask.errors import InputError
from everymask.methods.bottom_up.stardist import StarDist
from everymask.methods.semantic.unet import UNetSegmentation
from everymask.predict.convolutions import keep_weights_in_bfloat16, run_pointwise_in_one_thread
from everymask.predict.device import choose_device, use_bfloat16
from everymask.predict.folding import fold_batch_normalisation
from everymask.predict.padding import pad_reflected
from everymask.predict.predictor import Predictor


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 5), (16, 16), (17, 16), (31, 63)])
def test_images_of_any_size(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 255, size).astype(np.uint8)
    for method in (StarDist(channels=1, base=4, depth=2), UNetSegmentation(classes=2, channels=1, base=4)):
        found = Predictor(method, method.preprocessing(1), "cpu")(image)
        assert found.size == size
        assert found.category.min(initial=0) >= 0 and found.category.max(initial=0) < method.classes


@pytest.mark.parametrize("kind", ["uint8", "uint16", ">u2", "int32", "float16", "float64", "bool"])
def test_number_types_do_not_matter(kind: str) -> None:
    image = (blob_field((64, 80)) > 0.45) * np.float64(1)
    preprocessing = Preprocessing(channels=1, low=0, high=100)
    expected = Predictor(Blobs(), preprocessing, "cpu", "float32")(image)
    assert len(expected) > 3
    scaled = image if kind in ("bool", "float16", "float64") else image * 200
    assert objects_of(Predictor(Blobs(), preprocessing, "cpu", "float32")(scaled.astype(kind))) == objects_of(expected)


def test_padding_is_numpys_reflection_whatever_the_width() -> None:
    images = torch.arange(24.0).reshape(1, 2, 3, 4)
    for top, bottom, left, right in [(0, 0, 0, 0), (1, 2, 3, 1), (7, 9, 2, 12)]:
        expected = np.pad(images.numpy(), ((0, 0), (0, 0), (top, bottom), (left, right)), mode="reflect")
        np.testing.assert_array_equal(pad_reflected(images, top, bottom, left, right).numpy(), expected)
    torch.testing.assert_close(pad_reflected(images[..., :1, :1], 2, 1, 0, 3), images[..., :1, :1].expand(1, 2, 4, 4))


def test_limits_are_those_of_the_image_or_those_given() -> None:
    image = blob_field((64, 64)) * 1000 + 50
    preprocessing = Preprocessing(channels=1)
    predictor = Predictor(Blobs(), preprocessing, "cpu", "float32")
    own = preprocessing.limits(image[..., None])
    assert objects_of(predictor(image, limits=own)) == objects_of(predictor(image))
    assert objects_of(predictor(image, limits=own[:, 0].tolist())) == objects_of(predictor(image))
    assert len(predictor(image, limits=(1e6, 2e6))) == 0
    with pytest.raises(InputError, match="limits must have"):
        predictor(image, limits=(1, 2, 3))


def test_limits_of_a_colour_image_are_taken_after_the_change_to_grey() -> None:
    image = np.random.default_rng(1).integers(0, 255, (40, 50, 3)).astype(np.uint8)
    preprocessing = Preprocessing(channels=1)
    outputs, _ = Predictor(Blobs(radius=0, stride=1), preprocessing, "cpu", "float32").outputs(image)
    np.testing.assert_allclose(outputs["foreground"][0, 0].numpy(), preprocessing(image)[0], atol=1e-6)


def test_the_predictor_keeps_the_weights_it_was_made_with_and_follows_the_thresholds() -> None:
    method = StarDist(channels=1, base=4, depth=1)
    method.train()
    predictor = Predictor(method, PLAIN, "cpu", "float32")
    assert method.training and all(each.requires_grad for each in method.parameters())
    image = blob_field((32, 32))
    before, _ = predictor.outputs(image)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(1)
    after, _ = predictor.outputs(image)
    torch.testing.assert_close(after["probability"], before["probability"])
    method.thresholds["probability"] = 0.0
    assert len(predictor(image)) > 0
    method.thresholds["probability"] = 1.0
    assert len(predictor(image)) == 0


def test_folding_batch_normalisation_changes_no_output() -> None:
    torch.manual_seed(0)
    method = StarDist(channels=3, base=8, depth=2).train()
    for _ in range(3):
        method(torch.rand(2, 3, 32, 32) * 4 + 1)  # gives the normalisation something to do
    method.eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = method(images)
        folded = fold_batch_normalisation(method)(images)
    assert not any(isinstance(each, nn.BatchNorm2d) for each in method.modules())
    for name, output in expected.items():
        torch.testing.assert_close(folded[name], output, atol=1e-4, rtol=1e-4)


def shaken(network: nn.Module) -> nn.Module:
    """The network with normalisations that do something."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.running_mean, module.running_var, module.weight.data, module.bias.data):
                values.uniform_(0.5, 1.5, generator=generator)  # type: ignore[union-attr]
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize("backbone", ["resnet18", "efficientnet_lite0", "mobilenetv3_small_050", "test_convnext"])
def test_convolutions_of_backbones_are_folded_wherever_they_stand(backbone: str) -> None:
    torch.manual_seed(0)
    method = shaken(UNetSegmentation(classes=3, backbone=backbone))
    images = torch.rand(1, 3, 64, 96)
    expected = method(images)["classes"]
    folded = fold_batch_normalisation(method)
    assert not any(isinstance(each, nn.BatchNorm2d) for each in folded.modules())
    torch.testing.assert_close(folded(images)["classes"], expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


def test_normalisations_are_kept_where_folding_would_change_the_outputs() -> None:
    class Tricky(Toy):
        """Reads a convolution twice, uses a normalisation twice, and has one that stands alone."""

        def __init__(self) -> None:
            super().__init__()
            self.stride = 4
            self.read_twice, self.first = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
            self.one, self.two, self.shared = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
            self.alone, self.out, self.last = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, images: Tensor) -> dict[str, Tensor]:
            features = self.read_twice(images)
            features = features + self.first(features)
            features = self.shared(self.one(features)) + self.shared(self.two(features))
            logits = self.out(self.alone(features.relu()))
            return {"classes": self.last(logits), "raw": logits}

    method = shaken(Tricky())
    images = torch.rand(1, 1, 16, 16)
    expected = method(images)
    folded = fold_batch_normalisation(method)
    assert sum(isinstance(each, nn.BatchNorm2d) for each in folded.modules()) == 4
    for name, output in folded(images).items():
        torch.testing.assert_close(output, expected[name])


def test_networks_that_no_trial_can_run_are_left_as_they_are() -> None:
    class Picky(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))

        def forward(self, images: Tensor) -> dict[str, Tensor]:
            if images.shape[-1] != 640:
                raise InputError("640 pixels only")
            return {"classes": self.body(images)}

    assert isinstance(fold_batch_normalisation(shaken(Picky())).body[1], nn.BatchNorm2d)


def test_weights_rounded_beforehand_give_the_outputs_of_autocast() -> None:
    torch.manual_seed(0)
    method = shaken(UNetSegmentation(classes=3, backbone="resnet18"))
    images = torch.rand(1, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        expected = method(images)["classes"]
        keep_weights_in_bfloat16(method)
        found = method(images)["classes"]
    assert method.backbone.body.conv1.weight.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, atol=0, rtol=0)


def test_pointwise_convolutions_of_a_single_thread() -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        for stride, groups in ((1, 1), (2, 1), (1, 4)):
            layer = nn.Sequential(nn.Conv2d(16, 32, 1, stride=stride, groups=groups)).requires_grad_(False)
            for images in (torch.rand(2, 16, 65, 64), torch.rand(1, 16, 1, 1)):
                expected = layer(images)
                run_pointwise_in_one_thread(layer)
                assert type(layer[0]) is not nn.Conv2d
                torch.testing.assert_close(layer(images), expected)
                assert layer.double()(images.double()).dtype == torch.float64
                layer.float()
        torch.set_num_threads(2)
        many = nn.Sequential(nn.Conv2d(16, 32, 1))
        run_pointwise_in_one_thread(many)
        assert type(many[0]) is nn.Conv2d
    finally:
        torch.set_num_threads(threads)


def test_bfloat16_is_near_float32() -> None:
    torch.manual_seed(0)
    method = UNetSegmentation(classes=3, channels=1, base=8, depth=2)
    image = blob_field((64, 64))
    exact, _ = Predictor(method, PLAIN, "cpu", "float32").outputs(image)
    rounded, _ = Predictor(method, PLAIN, "cpu", "bfloat16").outputs(image)
    assert rounded["classes"].dtype == torch.float32
    difference = (exact["classes"] - rounded["classes"]).abs().max()
    assert 0 < difference < 0.05 * exact["classes"].abs().max()


def test_a_stack_is_predicted_plane_by_plane() -> None:
    stack = np.stack([blob_field((48, 64), seed) for seed in range(3)])
    predictor = Predictor(Blobs(), PLAIN, "cpu", "float32")
    for shape in [(3, 48, 64), (3, 48, 64, 1)]:
        found = predictor.predict_stack(stack.reshape(shape))
        assert [objects_of(each) for each in found] == [objects_of(predictor(plane)) for plane in stack]
    with pytest.raises(InputError, match="expected a stack"):
        predictor.predict_stack(stack[0])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((0, 0), np.uint8), "no pixels"),
        (np.zeros((5, 0, 3), np.uint8), "no pixels"),
        (np.zeros((2, 3, 4, 5), np.uint8), r"expected an image \(H, W\)"),
        (np.zeros(7), r"expected an image \(H, W\)"),
        (np.full((4, 4), np.nan), "not finite"),
        (np.array([[0, np.inf]], np.float16), "not finite"),
        (np.zeros((4, 4), complex), "real numbers"),
        (np.array([["a", "b"]]), "real numbers"),
        (np.zeros((4, 4, 7), np.uint8), "7 channels"),
    ],
)
def test_images_that_cannot_be_predicted_are_refused(image: np.ndarray, message: str) -> None:
    predictor = Predictor(Bands(), PLAIN, "cpu")
    with pytest.raises(InputError, match=message):
        predictor(image)
    with pytest.raises(InputError, match=message):
        predictor.outputs(image)


def test_devices_and_precisions_that_do_not_exist_are_refused() -> None:
    with pytest.raises(InputError, match="cannot use the device 'gpu'"):
        choose_device("gpu")
    with pytest.raises(InputError, match="precision must be"):
        use_bfloat16("float16", torch.device("cpu"))  # type: ignore[arg-type]
    assert use_bfloat16("bfloat16", torch.device("cpu")) and not use_bfloat16("float32", torch.device("cpu"))


def test_running_out_of_memory_names_the_way_out() -> None:
    class Hungry(Toy):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            raise torch.OutOfMemoryError("no more")

    with pytest.raises(InputError, match="lower tile, now 1024"):
        Predictor(Hungry(), PLAIN, "cpu")(np.zeros((8, 8), np.uint8))
