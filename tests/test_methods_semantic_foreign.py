"""Weights of torchvision and segmentation_models_pytorch in methods: equal outputs, strictly loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from semantic_toys import randomise
from torch import Tensor, nn

from everymask.errors import InputError
from everymask.methods import method_class
from everymask.methods.base import Method
from everymask.methods.foreign import load_foreign

smp = pytest.importorskip("segmentation_models_pytorch")


def same(official: nn.Module, own: Method, side: int = 64) -> None:
    """Loads the weights of `official` into `own` and compares logits to 1e-5 of their range."""
    torch.manual_seed(0)
    randomise(official)
    load_foreign(own, official.state_dict())
    images = torch.randn(1, 3, side, side + 32)
    with torch.inference_mode():
        expected = official(images)
        found = own.eval()(images)["classes"]
    logits: Tensor = expected["out"] if isinstance(expected, dict) else expected
    assert float((found - logits).abs().max()) <= 1e-5 * float(logits.abs().max())


@pytest.mark.parametrize("encoder", ["resnet34", "resnet50"])
def test_unet_of_smp(encoder: str) -> None:
    same(smp.Unet(encoder, encoder_weights=None, classes=5), method_class("unet")(classes=4, backbone=encoder))


@pytest.mark.parametrize("encoder", ["resnet34", "resnet50"])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_deeplabv3plus_of_smp(encoder: str, output_stride: int) -> None:
    official = smp.DeepLabV3Plus(encoder, encoder_weights=None, classes=5, encoder_output_stride=output_stride)
    own = method_class("deeplabv3plus")(classes=4, backbone=encoder, output_stride=output_stride, smp=True)
    same(official, own)


@pytest.mark.parametrize("encoder", ["resnet34", "resnet50"])
def test_pspnet_of_smp(encoder: str) -> None:
    own = method_class("pspnet")(classes=4, backbone=encoder, depth=3, auxiliary=False, smp=True)
    same(smp.PSPNet(encoder, encoder_weights=None, classes=5), own)


@pytest.mark.parametrize("name", ["fcn", "deeplabv3"])
@pytest.mark.parametrize("auxiliary", [True, False])
def test_networks_of_torchvision(name: str, auxiliary: bool) -> None:
    from torchvision.models import segmentation

    make = getattr(segmentation, f"{name}_resnet50")
    official = make(weights=None, weights_backbone=None, num_classes=21, aux_loss=auxiliary)
    own = method_class(name)(classes=20, auxiliary=auxiliary)
    same(official, own)
    if auxiliary:
        images = torch.randn(1, 3, 64, 64)
        for each in (official, own):
            each.eval()
        own.training = True  # only the method itself: its layers stay in evaluation
        with torch.inference_mode():
            expected, found = official(images)["aux"], own(images)["auxiliary"]
        found = nn.functional.interpolate(found, size=(64, 64), mode="bilinear")
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_encoders_of_timm_and_a_single_logit() -> None:
    official = smp.Unet("tu-test_resnet", encoder_weights=None, classes=1)
    own = method_class("unet")(classes=1, backbone="test_resnet")
    torch.manual_seed(0)
    randomise(official)
    load_foreign(own, official.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected = official(images).sigmoid()[:, 0]
        found = own.eval()(images)["classes"].softmax(1)[:, 1]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def tiny(**options: object) -> Method:
    return method_class("unet")(classes=2, backbone="test_resnet", **options)


def test_files_of_training_programs(tmp_path: Path) -> None:
    official = smp.Unet("tu-test_resnet", encoder_weights=None, classes=3)
    wrapped = {f"model.{name}": value for name, value in official.state_dict().items()}
    torch.save({"state_dict": wrapped, "epoch": 3}, tmp_path / "run.pth")
    save_file({name: value.clone() for name, value in official.state_dict().items()}, tmp_path / "run.safetensors")
    first, second = tiny(), tiny()
    load_foreign(first, tmp_path / "run.pth")
    load_foreign(second, tmp_path / "run.safetensors")
    for each in (first, second):
        own = each.state_dict()
        assert torch.equal(own["head.weight"], official.segmentation_head[0].weight)
        encoder = official.encoder.model.state_dict()
        assert all(torch.equal(own[f"backbone.body.{name}"], value) for name, value in encoder.items())


def test_own_weights_and_new_classes() -> None:
    source, target = tiny(), method_class("unet")(classes=6, backbone="test_resnet")
    with pytest.raises(InputError, match=r"head\.weight \(3, 16, 3, 3\) instead of \(7, 16, 3, 3\).*new_logits"):
        load_foreign(target, source.state_dict())
    before = target.head.weight.clone()
    load_foreign(target, source.state_dict(), new_logits=True)
    assert torch.equal(target.head.weight, before)
    kept = [name for name in source.state_dict() if not name.startswith("head.")]
    assert all(torch.equal(source.state_dict()[name], target.state_dict()[name]) for name in kept)


def test_whatever_does_not_fit_is_listed(tmp_path: Path) -> None:
    official = smp.Unet("tu-test_resnet", encoder_weights=None, classes=3).state_dict()
    official["decoder.extra.weight"] = torch.zeros(1)
    del official["decoder.blocks.0.conv1.0.weight"]
    torch.save(official, tmp_path / "odd.pth")
    with pytest.raises(InputError) as caught:
        load_foreign(tiny(), tmp_path / "odd.pth")
    text = str(caught.value)
    assert "\n" not in text and str(tmp_path / "odd.pth") in text
    assert "missing: decoder.levels.0.0.0.weight" in text and "unexpected: decoder.extra.weight" in text
    own = tiny()
    before = {name: value.clone() for name, value in own.state_dict().items()}
    with pytest.raises(InputError):
        load_foreign(own, tmp_path / "odd.pth")
    assert all(torch.equal(before[name], value) for name, value in own.state_dict().items())


@pytest.mark.parametrize("name", ["deeplabv3plus", "pspnet"])
def test_weights_that_would_mean_something_else_are_refused(name: str) -> None:
    official = {"deeplabv3plus": smp.DeepLabV3Plus, "pspnet": smp.PSPNet}[name]("resnet18", encoder_weights=None)
    with pytest.raises(InputError, match="smp=True"):
        load_foreign(method_class(name)(backbone="resnet18"), official.state_dict())


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load_foreign(tiny(), tmp_path / "nothing.pth")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(InputError, match=r"text\.pth cannot be read"):
        load_foreign(tiny(), tmp_path / "text.pth")
