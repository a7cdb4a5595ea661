"""Weights of other programs give the outputs that they give there; what does not fit is listed."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from everymask.backbones import weights as weights_module
from everymask.backbones.foreign import TRANSLATIONS, efficientnet_pytorch
from everymask.backbones.names import timm_name
from everymask.backbones.pyramid import Backbone, create
from everymask.backbones.weights import WeightsError, load_backbone, read_state
from everymask.errors import InputError


def disturbed(network: nn.Module) -> nn.Module:
    """Random values where initialisation leaves zeros and ones, so that no tensor may be mixed up or left out."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.numel() < 10_000 or not parameter.any():
                parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in network.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(0.1 * torch.rand_like(buffer))
    return network.eval()


def saved(folder: Path, state: object) -> Path:
    path = folder / "weights.pth"
    torch.save(state, path)
    return path


def torchvision_vit() -> nn.Module:
    """As small as timm's smallest."""
    return torchvision.models.VisionTransformer(224, 16, 12, 3, 192, 768)


@pytest.mark.parametrize(
    ("reference", "name", "size", "nodes"),
    [
        ("resnet18", "resnet18", (64, 96), ["relu", "layer1", "layer2", "layer3", "layer4"]),
        ("vgg11_bn", "vgg11_bn", (224, 224), [f"features.{i}" for i in (6, 13, 20, 27, 28)]),
        ("convnext_tiny", "convnext_tiny", (64, 96), [f"features.{i}" for i in (1, 3, 5, 7)]),
        # In the last stage one window covers the height, but not the width, which decides what is shifted.
        ("swin_t", "swin_t", (224, 448), [f"features.{i}" for i in (1, 3, 5, 7)]),
        ("swin_v2_t", "swin_v2_t", (256, 512), [f"features.{i}" for i in (1, 3, 5, 7)]),
        (torchvision_vit, "vit_tiny_patch16_224", (224, 224), ["encoder.ln"]),
    ],
)
def test_classifiers_of_torchvision(
    reference: str | Callable[[], nn.Module], name: str, size: tuple[int, int], nodes: list[str], tmp_path: Path
) -> None:
    model = disturbed(torchvision.models.get_model(reference) if isinstance(reference, str) else reference())
    state, images = model.state_dict(), torch.rand(1, 3, *size)

    backbone = Backbone(name, 3, {1: (16,), 4: (4, 8, 16, 32), 5: (2, 4, 8, 16, 32)}[len(nodes)]).eval()
    # The fully connected layers of VGG would make a file of half a gigabyte.
    load_backbone(backbone, saved(tmp_path, {k: v for k, v in state.items() if "vgg" not in name or "features" in k}))
    with torch.no_grad():
        maps = create_feature_extractor(model, nodes)(images).values()
        if "swin" in name:
            maps = [each.permute(0, 3, 1, 2) for each in maps]
        elif "vit" in name:
            maps = [each[:, 1:].transpose(1, 2).unflatten(2, (14, 14)) for each in maps]
        for ours, theirs in zip(backbone(images), maps, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)

    classifier, _ = create(name, 3, num_classes=1000)
    names = classifier.state_dict().keys()
    translated = next((found for each in TRANSLATIONS if (found := each(state, names)) is not None), state)
    classifier.load_state_dict(translated)  # strict
    with torch.no_grad():
        torch.testing.assert_close(classifier.eval()(images), model(images), rtol=1e-5, atol=1e-5)


FAMILIES = re.compile(r"(resnet|wide_resnet|resnext|vgg|convnext_|swin_|vit_)")


@pytest.mark.parametrize("name", list(filter(FAMILIES.match, torchvision.models.list_models(torchvision.models))))
def test_every_classifier_of_torchvision_has_the_names_and_shapes_of_timm(name: str) -> None:
    with torch.device("meta"):
        state = torchvision.models.get_model(name).state_dict()
        expected = create(name, 3, num_classes=1000)[0].state_dict()
    found = next((found for each in TRANSLATIONS if (found := each(state, expected.keys())) is not None), state)
    assert {key: value.shape for key, value in found.items()} == {key: value.shape for key, value in expected.items()}


@pytest.mark.parametrize(
    ("package", "reference", "name"),
    [
        ("efficientnet_pytorch", "efficientnet-b0", "tf_efficientnet_b0"),
        ("efficientnet_pytorch", "efficientnet-b1", "tf_efficientnet_b1"),
        ("efficientnet_lite_pytorch", "efficientnet-lite0", "tf_efficientnet_lite0"),
        ("efficientnet_lite_pytorch", "efficientnet-lite1", "tf_efficientnet_lite1"),
    ],
)
def test_packages_of_efficientnet(package: str, reference: str, name: str, tmp_path: Path) -> None:
    model = disturbed(pytest.importorskip(package).EfficientNet.from_name(reference))
    classifier = timm.create_model(name).eval()
    translated = efficientnet_pytorch(model.state_dict(), classifier.state_dict().keys())
    assert translated is not None
    classifier.load_state_dict(translated)
    side = int(model._global_params.image_size)  # its padding is made for one size of images
    images = torch.rand(1, 3, side, side)
    with torch.no_grad():
        torch.testing.assert_close(classifier(images), model(images), rtol=1e-5, atol=1e-5)
        backbone = Backbone(name, 3, (32,)).eval()
        load_backbone(backbone, saved(tmp_path, model.state_dict()))
        head = nn.Sequential(classifier.conv_head, classifier.bn2)
        expected = model.extract_features(images)
        found = head(backbone(images)[0])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def original_convnext(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's tensors under the names of the program that came with the paper."""
    rules = [
        (r"^stem\.", "downsample_layers.0."),
        (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
        (r"\.blocks\.", "."),
        (r"conv_dw", "dwconv"),
        (r"mlp\.fc", "pwconv"),
        (r"^head\.norm\.", "norm."),
        (r"^head\.fc\.", "head."),
    ]
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor.flatten(1) if "pwconv" in name and tensor.ndim == 4 else tensor
    return renamed


def test_files_of_original_programs_are_read_by_timm(tmp_path: Path) -> None:
    reference = disturbed(timm.create_model("convnext_atto"))
    backbone = Backbone("convnext_atto", 3, (4, 32))
    load_backbone(backbone, saved(tmp_path, {"model": original_convnext(reference.state_dict())}))
    assert_filled(backbone, reference)


def assert_filled(backbone: Backbone, reference: nn.Module) -> None:
    expected = reference.state_dict()
    for name, value in backbone.body.state_dict().items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3, "args": argparse.Namespace(rate=0.1)},
        lambda state: {"model": {f"module.{name}": value for name, value in state.items()}},
        lambda state: {"teacher": {f"backbone.{name}": value for name, value in state.items()} | other_parts("head")},
        lambda state: {f"encoder.{name}": value for name, value in state.items()} | other_parts("decoder"),
        lambda state: {f"backbone.body.{name}": value for name, value in state.items()} | other_parts("decoder"),
        lambda state: {f"model.encoder.{name}": value for name, value in state.items()} | other_parts("model.decoder"),
        lambda state: {name: value for name, value in state.items() if not name.startswith("fc.")},
        lambda state: {name: value for name, value in state.items() if "num_batches" not in name},
    ],
)
def test_wrappers_and_prefixes_are_taken_off(wrap: Callable[[dict[str, Tensor]], object], tmp_path: Path) -> None:
    reference = disturbed(timm.create_model("resnet18"))
    backbone = Backbone("resnet18")
    load_backbone(backbone, saved(tmp_path, wrap(reference.state_dict())))
    assert_filled(backbone, reference)


def other_parts(name: str) -> dict[str, Tensor]:
    return {f"{name}.weight": torch.ones(2, 2), f"{name}.bias": torch.ones(2)}


def test_safetensors_and_stages_that_are_not_wanted(tmp_path: Path) -> None:
    reference = disturbed(timm.create_model("resnet18"))
    save_file(reference.state_dict(), tmp_path / "weights.safetensors")
    backbone = Backbone("resnet18", 3, (4, 8))
    load_backbone(backbone, str(tmp_path / "weights.safetensors"))
    assert_filled(backbone, reference)


def test_position_embeddings_of_other_sizes_are_resampled(tmp_path: Path) -> None:
    """A gradient stays a gradient."""
    reference = timm.create_model("vit_tiny_patch16_384")
    with torch.no_grad():
        rows = torch.linspace(-1, 1, 24)[:, None, None].expand(24, 24, 192).reshape(1, 576, 192)
        reference.pos_embed[:, 1:] = rows
    backbone = Backbone("vit_tiny_patch16_224", 3, (16,))
    load_backbone(backbone, saved(tmp_path, reference.state_dict()))
    found = backbone.body.pos_embed.detach()[0, 1:].unflatten(0, (14, 14))
    # The middle of pixel i of 14 lies at 24 / 14 * (i + 1/2) - 1/2 of 24 pixels; the border is not linear.
    expected = torch.lerp(torch.tensor(-1.0), torch.tensor(1.0), ((torch.arange(14) + 0.5) * 24 / 14 - 0.5) / 23)
    torch.testing.assert_close(found[3:-3], expected[3:-3, None, None].expand(8, 14, 192), rtol=0, atol=5e-3)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_first_convolution_is_adapted_to_the_channels(name: str, channels: int, tmp_path: Path) -> None:
    """An image of the constant c in each channel gives what colours of other constants gave before."""
    reference = timm.create_model(name)
    backbone = Backbone(name, channels, (16,))
    load_backbone(backbone, saved(tmp_path, reference.state_dict()))
    layer = {"resnet18": "conv1", "vit_tiny_patch16_224": "patch_embed.proj"}[name]
    # Channels repeat red, green, blue; the scale keeps the sum over equal channels. One channel stands for all three.
    shares = {1: (1, 1, 1), 2: (1.5, 1.5, 0), 3: (1, 1, 1), 4: (1.5, 0.75, 0.75), 5: (1.2, 1.2, 0.6)}[channels]
    colours = 0.3 * torch.tensor(shares)[None, :, None, None].expand(1, 3, 32, 32)
    with torch.no_grad():
        expected = reference.get_submodule(layer)(colours)
        found = backbone.body.get_submodule(layer)(torch.full((1, channels, 32, 32), 0.3))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_own_channels_are_kept(tmp_path: Path) -> None:
    reference = timm.create_model("resnet18", in_chans=4)
    backbone = Backbone("resnet18", 4)
    load_backbone(backbone, saved(tmp_path, reference.state_dict()))
    assert_filled(backbone, reference)
    with pytest.raises(WeightsError, match=r"1 of other shape: conv1.weight \(64, 4, 7, 7\) for \(64, 2, 7, 7\)"):
        load_backbone(Backbone("resnet18", 2), saved(tmp_path, reference.state_dict()))


def test_every_missing_and_unexpected_tensor_is_listed(tmp_path: Path) -> None:
    state = timm.create_model("resnet18").state_dict()
    # Names that look like classifiers are no exception, but those of the network itself are.
    state |= {"classifier.1.weight": torch.ones(2), "head.bias": torch.ones(2), "layer9.weight": torch.ones(2)}
    del state["layer1.0.bn1.running_mean"], state["layer4.1.conv2.weight"]
    state["bn1.weight"] = torch.ones(3)
    backbone = Backbone("resnet18")
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    with pytest.raises(WeightsError) as told:
        load_backbone(backbone, saved(tmp_path, state))
    assert told.value.missing == ("layer1.0.bn1.running_mean", "layer4.1.conv2.weight")
    assert set(told.value.unexpected) == {"classifier.1.weight", "head.bias", "layer9.weight"}
    assert told.value.misshapen == ("bn1.weight",)
    message = str(told.value)
    assert "\n" not in message
    assert "weights.pth does not fit resnet18" in message
    for name in (*told.value.missing, *told.value.unexpected, "bn1.weight (3,) for (64,)"):
        assert name in message
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


@pytest.mark.parametrize(("file", "name"), [("resnet34", "resnet18"), ("resnet18", "resnet34"), ("vgg11", "resnet18")])
def test_weights_of_another_network_are_refused(file: str, name: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        state = {
            name: torch.zeros(value.shape) for name, value in torchvision.models.get_model(file).state_dict().items()
        }
    small = {name: value for name, value in state.items() if value.numel() < 1e7}
    with pytest.raises(WeightsError) as told:
        load_backbone(Backbone(name, 3, (16, 32)), saved(tmp_path, small))
    assert len(told.value.missing) + len(told.value.unexpected) > 10
    assert len(str(told.value)) < 4000


class Program:
    """What a file must not be able to run."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("run",)


def test_files_that_are_no_weights_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "cut.safetensors").write_bytes(b"\xff" * 20)
    torch.save({"weights": Program()}, tmp_path / "program.pth")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    torch.save(torch.ones(3), tmp_path / "tensor.pth")
    for name in ("text.pth", "cut.safetensors", "program.pth", "empty.pth", "tensor.pth", "absent.pth"):
        with pytest.raises(InputError, match=name) as told:
            read_state(tmp_path / name)
        assert "\n" not in str(told.value)
    assert not (tmp_path / "run").exists()


def test_without_internet_one_line_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    # Nobody listens there: the same as a computer without a connection.
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    offline = constants.HF_HUB_OFFLINE
    with pytest.raises(InputError) as told:
        load_backbone(Backbone("resnet18", 3, (4,)), "pretrained")
    message = str(told.value)
    assert "\n" not in message
    assert "published weights of resnet18 cannot be downloaded" in message
    assert "--backbone-weights FILE" in message
    assert offline == constants.HF_HUB_OFFLINE


def test_networks_without_published_weights_are_told() -> None:
    name = next(each for each in ("seresnet18", "resnet26t", "convnext_xlarge") if not timm_published(each))
    with pytest.raises(InputError, match=f"no published weights for the backbone {name}; give a file"):
        weights_module.load_backbone(Backbone(name, 3, (4,)), "pretrained")


def timm_published(name: str) -> bool:
    return bool(timm.list_pretrained(f"{timm_name(name)}.*"))
