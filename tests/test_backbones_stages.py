"""Frozen parts and the depth of layers."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from everymask.backbones.pyramid import Backbone
from everymask.backbones.stages import freeze_stages, layer_decay, layer_depths, parts_of
from everymask.errors import InputError


def names_of(backbone: Backbone) -> list[list[str]]:
    """Of the children of the network that hold the parameters of each part."""
    names = {id(parameter): name for name, parameter in backbone.body.named_parameters()}
    parts = []
    for part in parts_of(backbone):
        owned = [names[id(each)] for module in part for each in module.parameters(recurse=False)]
        heads = [name.split(".") for name in owned]
        listed = ("blocks", "stages", "layers", "features")
        parts.append(sorted({".".join(each[:2]) if each[0] in listed else each[0] for each in heads}))
    return parts


def test_parts_are_stem_and_stages() -> None:
    resnet = names_of(Backbone("resnet18"))
    assert resnet == [["bn1", "conv1"], ["layer1"], ["layer2"], ["layer3"], ["layer4"]]
    convnext = names_of(Backbone("convnext_atto", 3, (4, 8, 16, 32)))
    assert convnext == [["stem"], *([f"stages.{i}"] for i in range(4))]
    efficientnet = names_of(Backbone("tf_efficientnet_lite0"))
    blocks = [["blocks.0"], ["blocks.1"], ["blocks.2"], ["blocks.3", "blocks.4"], ["blocks.5", "blocks.6"]]
    assert efficientnet == [["bn1", "conv_stem"], *blocks]
    transformer = names_of(Backbone("vit_tiny_patch16_224", 3, (8, 16)))
    assert transformer[0] == ["cls_token", "patch_embed", "pos_embed"]
    assert transformer[1:] == [*([f"blocks.{i}"] for i in range(11)), ["blocks.11", "norm"]]


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "tf_efficientnet_lite0", "vit_tiny_patch16_224"])
def test_every_parameter_is_in_one_part(name: str) -> None:
    backbone = Backbone(name, 3, (4, 8))
    owned = [id(each) for part in parts_of(backbone) for module in part for each in module.parameters(recurse=False)]
    assert sorted(owned) == sorted(id(each) for each in backbone.body.parameters())


def tensors_of(backbone: Backbone) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in backbone.state_dict().items()}


def step(backbone: Backbone) -> set[str]:
    """Names of the tensors that one step of training changes."""
    before = tensors_of(backbone)
    optimiser = torch.optim.SGD([each for each in backbone.parameters() if each.requires_grad], 0.1, weight_decay=0.1)
    maps = backbone(torch.rand(2, 3, 64, 64))
    torch.stack([each.square().mean() for each in maps]).sum().backward()
    optimiser.step()
    optimiser.zero_grad()
    return {name for name, value in tensors_of(backbone).items() if not torch.equal(value, before[name])}


def test_frozen_parts_keep_weights_and_statistics() -> None:
    torch.manual_seed(0)
    backbone = Backbone("resnet18")
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.05)  # timm's last scale of each block is zero, which stops the gradients before it
    everything = backbone.state_dict().keys()
    freeze_stages(backbone, 2)
    nn.Sequential(backbone).eval().train()  # training mode is set from outside, as by a training loop
    frozen = {each for each in everything if each.startswith(("body.conv1.", "body.bn1.", "body.layer1."))}
    assert step(backbone) == everything - frozen
    assert not backbone.body.bn1.training
    assert not backbone.body.layer1[0].bn1.training
    assert backbone.body.layer2[0].bn1.training

    freeze_stages(backbone, 0)  # and back
    assert backbone.body.bn1.training
    assert step(backbone) == everything


def test_all_parts_can_be_frozen_and_evaluation_stays() -> None:
    backbone = Backbone("vit_tiny_patch16_224", 3, (8, 16)).eval()
    freeze_stages(backbone, 13)
    assert not backbone.training
    learning = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    assert learning == {"pyramid.0.0.weight", "pyramid.0.0.bias"}
    assert layer_decay(backbone, 0.5) == [([backbone.pyramid[0][0].weight, backbone.pyramid[0][0].bias], 1.0)]


@pytest.mark.parametrize("stages", [-1, 6])
def test_parts_that_do_not_exist_cannot_be_frozen(stages: int) -> None:
    with pytest.raises(InputError, match=f"stem and 4 stages.*got {stages}"):
        freeze_stages(Backbone("resnet18"), stages)


def test_networks_without_named_stages_are_told() -> None:
    with torch.device("meta"):
        backbone = Backbone("twins_pcpvt_small", 3, (4, 8))
    with pytest.raises(InputError, match="'twins_pcpvt_small' has no stages that timm names"):
        freeze_stages(backbone, 1)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "tf_efficientnet_lite0", "vit_tiny_patch16_224"])
def test_decay_of_layers_equals_that_of_timm(name: str) -> None:
    network = timm.create_model(name)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    groups = param_groups_layer_decay(network, layer_decay=0.7)
    expected = {names[id(each)]: group["lr_scale"] for group in groups for each in group["params"]}

    backbone = Backbone(name, 3, (4, 8, 16, 32))
    names = {id(parameter): name for name, parameter in backbone.named_parameters()}
    found = {names[id(each)]: factor for group, factor in layer_decay(backbone, 0.7) for each in group}
    assert found.keys() == {name for name, _ in backbone.named_parameters()}
    for parameter, factor in found.items():
        above = parameter.startswith("pyramid.")
        assert factor == pytest.approx(1.0 if above else expected[parameter.removeprefix("body.")], rel=1e-12)


def test_depths_without_layers_of_timm_are_parts() -> None:
    depths = layer_depths(Backbone("poolformer_s12", 3, (4, 8, 16, 32)))
    assert depths["body.stem.conv.weight"] == 0
    assert {depth for name, depth in depths.items() if name.startswith("body.stages.2.")} == {3}


@pytest.mark.parametrize("decay", [0.0, 1.5])
def test_decay_out_of_range_is_told(decay: float) -> None:
    with pytest.raises(InputError, match=f"got {decay}"):
        layer_decay(Backbone("resnet18", 3, (4,)), decay)
