"""The methods of semantic segmentation: the contract, learning, tiles, and their parts against torch and the papers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from semantic_toys import SMALL, batch, randomise, scene, small
from torch import Tensor, nn
from torch.nn import functional

from everymask.data.preprocessing import Preprocessing
from everymask.errors import InputError
from everymask.layers.aspp import ASPP, atrous_rates
from everymask.layers.pyramid_pooling import PyramidPooling, cell_means
from everymask.layers.unet_decoder import UNetDecoder
from everymask.methods.semantic.common import SemanticMethod, fcn_head
from everymask.methods.semantic.deeplabv3 import DeepLabV3
from everymask.methods.semantic.fcn import FCN
from everymask.methods.semantic.pspnet import PSPNet
from everymask.methods.semantic.res_unet import ResUNet
from everymask.methods.semantic.unet import UNetSegmentation
from everymask.predict.predictor import Predictor
from everymask.types import Categories, LabelMap, Segments
from everymask.weights import load_model, save_model

NAMES = Categories(["sky", "road", "box"])


def learn(method: SemanticMethod, steps: int = 60) -> tuple[Tensor, dict[str, Tensor]]:
    """Trains a method on a batch of scenes; returns the batch."""
    images, targets = batch(method)
    optimiser = torch.optim.Adam(method.parameters(), 2e-3)
    method.train()
    for _ in range(steps):
        terms = method.training_loss(images, targets)
        assert all(term.ndim == 0 and torch.isfinite(term) for term in terms.values())
        optimiser.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimiser.step()
    return images, targets


@pytest.mark.parametrize("name", SMALL)
def test_every_method_learns_a_scene(name: str) -> None:
    method = small(name, background=False)
    images, targets = learn(method)
    assert all(each.grad is not None for each in method.parameters())
    with torch.no_grad():
        # Few steps do not settle the running statistics; those of the batch are as good here.
        found = method(images)["classes"].argmax(1)
    assert float((found == targets["classes"]).float().mean()) > 0.93


@pytest.mark.parametrize("name", SMALL)
def test_saved_loaded_and_applied_to_any_size(name: str, tmp_path: Path) -> None:
    method = small(name)
    randomise(method)
    preprocessing = method.preprocessing_of()
    save_model(tmp_path / "model.safetensors", method, NAMES, preprocessing)
    loaded = load_model(tmp_path / "model.safetensors")
    assert loaded.method.config == method.config and loaded.preprocessing == preprocessing
    for height, width in ((61, 83), (1, 1), (97, 5)):
        image, _ = scene(height, width) if min(height, width) > 4 else (np.full((height, width, 3), 99, np.uint8), None)
        first, second = (Predictor(each, preprocessing, "cpu")(image) for each in (method, loaded.method))
        assert first.size == (height, width)
        assert np.array_equal(first.label_map(), second.label_map())
        assert np.array_equal(first.category, second.category) and set(first.category) <= {0, 1, 2}
        assert first.score is not None and (first.score > 0).all() and (first.score <= 1).all()
    outputs = method(torch.zeros(2, 3, 2 * method.stride, 4 * method.stride))
    assert set(outputs) == {"classes"}
    assert outputs["classes"].shape == (2, 4, 2 * method.stride, 4 * method.stride)


@pytest.mark.parametrize("name", ["unet", "res_unet"])
def test_tiles_say_what_the_whole_image_says(name: str) -> None:
    method = small(name, background=False)
    randomise(method)
    image, _ = scene(200, 232)
    preprocessing = Preprocessing(channels=3, normalise="scale")
    whole = Predictor(method, preprocessing, "cpu").outputs(image)[0]["classes"]
    tiled = Predictor(method, preprocessing, "cpu", tile=128, overlap=64).outputs(image)[0]["classes"]
    assert method.context <= 32  # half the overlap: no pixel that counts lacks surroundings
    # Tiles are blended as probabilities, so that a constant may be missing from the logits of a pixel.
    torch.testing.assert_close(tiled.softmax(1), whole.softmax(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["fcn", "unet on a backbone"])
def test_tiles_agree_within_the_effective_surroundings(name: str) -> None:
    # The theoretical field of a backbone is much larger than what its outputs truly depend on.
    method = small(name, background=False)
    learn(method)
    image, _ = scene(320, 320)
    whole, tiled = (Predictor(method, method.preprocessing_of(), "cpu", tile=tile, overlap=128) for tile in (320, 256))
    assert np.mean(whole(image).label_map() == tiled(image).label_map()) > 0.99


def test_the_surroundings_of_res_unet_are_what_it_says() -> None:
    method = ResUNet(channels=1, base=4, depth=2).double().eval()
    for parameter in method.parameters():
        nn.init.uniform_(parameter, 0.01, 0.1)  # positive weights: nothing cancels, no unit dies
    side = 2 * method.context + 16
    image = torch.rand(1, 1, side, side, dtype=torch.double, requires_grad=True)
    method(image)["classes"][0, :, side // 2, side // 2].sum().backward()
    assert image.grad is not None
    reached = torch.nonzero(image.grad[0, 0].abs().sum(0))[:, 0]
    assert int((reached - side // 2).abs().max()) <= method.context


def test_res_unet_has_the_parameters_of_the_paper() -> None:
    # 7.8 million, table II of the paper: those of its 3 x 3 convolutions; shortcuts of 1 x 1 come on top.
    method = ResUNet(classes=1, background=True)
    count = sum(each.numel() for each in method.parameters() if each.ndim == 4 and each.shape[-1] == 3)
    assert count == 9 * (
        3 * 64 + 64 * 64  # level 1
        + 64 * 128 + 128 * 128 + 128 * 256 + 256 * 256 + 256 * 512 + 512 * 512  # levels 2 to 4
        + 768 * 256 + 256 * 256 + 384 * 128 + 128 * 128 + 192 * 64 + 64 * 64  # levels 5 to 7
    )  # fmt: skip
    assert round(count / 1e6, 1) == 7.8


def test_the_auxiliary_head_counts_two_fifths_and_in_training_only() -> None:
    method = small("deeplabv3", background=False)
    images, targets = batch(method)
    outputs = method.train()(images)
    terms = method.loss(outputs, targets)
    logits = functional.interpolate(outputs["auxiliary"], size=(64, 64), mode="bilinear")
    expected = 0.4 * functional.cross_entropy(logits, targets["classes"])
    terms = {key: value.detach() for key, value in terms.items()}
    assert float(terms["auxiliary_cross_entropy"]) == pytest.approx(float(expected.detach()), rel=1e-5)
    expected = functional.cross_entropy(outputs["classes"], targets["classes"])
    assert float(terms["cross_entropy"]) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert set(method.eval()(images)) == {"classes"}


def test_class_weights_are_those_of_torch() -> None:
    method = small("unet", background=False, class_weights=(0.5, 2.0, 1.0))
    images, targets = batch(method)
    with torch.no_grad():
        outputs = method(images)
        found = method.loss(outputs, targets)["cross_entropy"]
        expected = functional.cross_entropy(outputs["classes"], targets["classes"], torch.tensor([0.5, 2.0, 1.0]))
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    assert "class_weights" not in method.state_dict()
    with pytest.raises(InputError, match=r"class_weights must be 4 numbers.*the background and"):
        small("unet", class_weights=(1.0, 2.0, 1.0))


@pytest.mark.parametrize("name", ["unet", "deeplabv3", "pspnet"])
def test_a_batch_of_void_teaches_nothing(name: str) -> None:
    method = small(name)
    void = Segments((64, 64), [], LabelMap(np.full((64, 64), -1, np.int32)))
    targets = {"classes": method.targets(void)["classes"][None].expand(2, -1, -1)}
    assert (targets["classes"] == -1).all()
    total = torch.stack(list(method.training_loss(torch.rand(2, 3, 64, 64), targets).values())).sum()
    assert float(total.detach()) == 0
    total.backward()
    assert all(not each.grad.any() for each in method.parameters() if each.grad is not None)


@pytest.mark.parametrize("name", ["deeplabv3", "deeplabv3plus", "pspnet", "fcn"])
def test_a_batch_of_one_image_can_be_learnt(name: str) -> None:
    method = small(name).train()
    terms = method.training_loss(*batch(method, 1))
    assert all(torch.isfinite(each) for each in terms.values())


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "test_vit"])
def test_a_unet_on_a_vision_transformer_covers_the_image(name: str) -> None:
    method = UNetSegmentation(classes=2, backbone=name).eval()
    side = 2 * method.stride
    with torch.inference_mode():
        assert method(torch.zeros(1, 3, side, side))["classes"].shape == (1, 3, side, side)


def test_other_numbers_of_channels_than_colours() -> None:
    method = PSPNet(classes=2, channels=5, backbone="resnet18").eval()
    assert method(torch.zeros(1, 5, 64, 64))["classes"].shape == (1, 3, 64, 64)
    preprocessing = method.preprocessing_of()
    assert preprocessing.channels == 5 and preprocessing.mean == pytest.approx((0.449,), abs=0.01)


@pytest.mark.parametrize("method", ["unet", "fcn", "deeplabv3", "deeplabv3plus", "pspnet"])
def test_backbones_that_cannot_be_are_told(method: str) -> None:
    from everymask.methods import method_class

    with pytest.raises(InputError, match=r"unknown backbone 'resnet51'.*did you mean") as caught:
        method_class(method)(backbone="resnet51")
    assert "\n" not in str(caught.value)
    if method in ("deeplabv3", "deeplabv3plus"):
        with pytest.raises(InputError, match="output_stride"):
            method_class(method)(backbone="test_vit")


def test_impossible_networks_are_refused() -> None:
    with pytest.raises(InputError, match="depth"):
        ResUNet(depth=0)
    with pytest.raises(InputError, match="background=True"):
        DeepLabV3(classes=1, background=False)
    with pytest.raises(InputError, match="dice"):
        FCN(classes=2, loss="dicee")


# -- parts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_cell_means_of_exported_networks_are_those_of_adaptive_pooling(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = torch.randn(2, 5, 17, 23, dtype=torch.double)
    expected = functional.adaptive_avg_pool2d(features, size)
    torch.testing.assert_close(cell_means(features, size), expected)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    torch.testing.assert_close(cell_means(features, size), expected)
    small_map = features[..., :4, :5]  # fewer positions than cells
    torch.testing.assert_close(cell_means(small_map, size), functional.adaptive_avg_pool2d(small_map, size))


def test_pyramid_pooling_keeps_the_features_beside_the_means() -> None:
    pooling = PyramidPooling(8).eval()
    features = torch.randn(1, 8, 12, 18)
    found = pooling(features)
    assert found.shape == (1, pooling.width, 12, 18) and pooling.width == 16
    assert torch.equal(found[:, 8:], features)
    expected = functional.relu(pooling.blocks[0][0](features.mean((2, 3), keepdim=True)))
    torch.testing.assert_close(found[:, :2], expected.expand(-1, -1, 12, 18))


def test_aspp_rates_and_a_single_image() -> None:
    assert [atrous_rates(each) for each in (8, 16, 32)] == [(12, 24, 36), (6, 12, 18), (3, 6, 9)]
    pooling = ASPP(4, 6, (1, 2), dropout=0.0)
    features = torch.randn(1, 4, 7, 7)
    branch = pooling.convs[-1]
    # In training the mean of a single image is normalised by what was learnt before, as in evaluation.
    torch.testing.assert_close(branch.train()(features), branch.eval()(features))


def test_unet_decoder_reaches_the_resolution_of_the_image() -> None:
    for strides in ((2, 4, 8, 16, 32), (4, 8, 16, 32)):
        maps = [torch.zeros(1, 4, 64 // stride, 96 // stride) for stride in strides]
        decoder = UNetDecoder([4] * len(maps), (8, 8, 6, 6, 5))
        assert decoder(maps).shape == (1, 5, 64, 96)


def test_fcn_skips_begin_as_bilinear_interpolation_of_the_coarse_logits() -> None:
    method = small("fcn with skips").eval()
    images = torch.rand(1, 3, 256, 256)
    *_, last = method.backbone(images)
    coarse = method.head(last)
    # Doubled twice as in sec. 3.3, then brought to the image; zero padding matters at the borders only.
    expected = coarse
    for _ in range(2):
        expected = functional.interpolate(expected, scale_factor=2.0, mode="bilinear")
    expected = functional.interpolate(expected, size=(256, 256), mode="bilinear")
    found = method(images)["classes"]
    torch.testing.assert_close(found[..., 80:176, 80:176], expected[..., 80:176, 80:176], rtol=1e-4, atol=1e-5)


def test_fcn_head_is_that_of_torchvision() -> None:
    from torchvision.models.segmentation.fcn import FCNHead

    own, official = fcn_head(16, 3).eval(), FCNHead(16, 3).eval()
    own.load_state_dict(official.state_dict())
    features = torch.randn(2, 16, 5, 5)
    assert torch.equal(own(features), official(features))
