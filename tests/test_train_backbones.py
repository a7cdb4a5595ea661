"""What a recipe does to a backbone: parts that are frozen, rates that fall from layer to layer, shared statistics."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from semantic_toys import scene
from timm.layers import BatchNormAct2d
from torch import nn

from everymask.data.loader import Batch
from everymask.errors import InputError
from everymask.methods import method_class
from everymask.methods.base import Method
from everymask.methods.recipe import Recipe
from everymask.train.engine import Engine
from everymask.train.setup import check_fit, freeze, make_optimiser, share_statistics
from everymask.types import Categories, Category, Dataset, Sample, Task

CATEGORIES = Categories([Category(0, "sky"), Category(1, "road"), Category(2, "box")])


def unet(backbone: str = "test_resnet") -> Method:
    torch.manual_seed(0)
    return method_class("unet")(classes=3, backbone=backbone, background=False)


def scenes(count: int) -> Dataset:
    def sample(number: int) -> Sample:
        return Sample(str(number), lambda: scene(seed=number)[0], lambda: scene(seed=number)[1])

    return Dataset(sample, count, CATEGORIES, frozenset({Task.SEMANTIC}), "test", Path("made-up"))


def noise() -> Iterator[Batch]:
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        yield (
            torch.randn(2, 3, 32, 32, generator=generator),
            {"classes": torch.randint(0, 3, (2, 32, 32), generator=generator)},
        )


# -- freezing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [0, 1, 2, 5])
def test_frozen_parts_stay_and_the_others_learn(parts: int) -> None:
    method = unet()
    before = {name: each.clone() for name, each in method.state_dict().items()}
    engine = Engine(method, Recipe(freeze=parts, precision="float32", weight_decay=0.1, warmup=0), "cpu")
    engine.objective.train()
    source = noise()
    for _ in range(2):
        engine.step(source, 1e-2)
    prefixes = [("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",)]
    frozen = tuple(f"backbone.body.{name}." for part in prefixes[:parts] for name in part)
    same = {name for name, each in method.state_dict().items() if torch.equal(each, before[name])}
    assert {name for name in before if frozen and name.startswith(frozen)} <= same
    learning = set(before) - {name for name in before if frozen and name.startswith(frozen)}
    assert not learning & same, sorted(learning & same)[:5]
    assert any(name.endswith("running_var") for name in same) == bool(parts)
    # The moving average of what does not move is that.
    assert all(torch.equal(engine.average.average[name], before[name]) for name in same)
    engine.release()
    assert all(each.requires_grad for each in method.parameters())


def test_too_many_parts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"test_resnet.*0 to 5 parts.*got 6"):
        freeze(unet(), 6)


@pytest.mark.parametrize("options", [{"freeze": 1}, {"layer_decay": 0.8}])
def test_methods_without_a_backbone_say_so(options: dict[str, float]) -> None:
    plain = method_class("unet")(classes=3)
    recipe = plain.recipe().with_options(**options)
    with pytest.raises(InputError, match=rf"{next(iter(options))}.*unet has none.*--backbone"):
        check_fit(plain, scenes(2), None, recipe, plain.preprocessing_of(), CATEGORIES)
    on_backbone = unet()
    check_fit(on_backbone, scenes(2), None, recipe, on_backbone.preprocessing_of(), CATEGORIES)


def test_compilation_and_checkpointing_together() -> None:
    plain = method_class("unet")(classes=3)
    recipe = plain.recipe().with_options(checkpointing=True, compile=True)
    with pytest.raises(InputError, match="leave checkpointing out"):
        check_fit(plain, scenes(2), None, recipe, plain.preprocessing_of(), CATEGORIES)


# -- rates -------------------------------------------------------------------------------------------------------------


def shares(method: Method, recipe: Recipe) -> dict[str, tuple[float, float]]:
    """Factor of the learning rate and weight decay of each parameter."""
    groups = make_optimiser(method, recipe).param_groups
    known = {id(each): (group["share"], group["weight_decay"]) for group in groups for each in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(known)
    return {name: known[id(each)] for name, each in method.named_parameters() if each.requires_grad}


def test_rates_fall_from_block_to_block() -> None:
    """The depths of a vision transformer counted by hand: embedding 0, blocks 1 to 6, final norm with the last."""
    method = unet("test_vit")
    found = shares(method, Recipe(layer_decay=0.5, backbone_rate=0.3, weight_decay=0.1))
    count = len(method.backbone.body.blocks)
    for index in range(count):
        share, decay = found[f"backbone.body.blocks.{index}.attn.qkv.weight"]
        assert share == pytest.approx(0.3 * 0.5 ** (count - index)) and decay == 0.1
        assert found[f"backbone.body.blocks.{index}.attn.qkv.bias"] == (pytest.approx(share), 0.0)
    assert found["backbone.body.patch_embed.proj.weight"][0] == pytest.approx(0.3 * 0.5 ** (count + 1))
    assert found["head.weight"] == (1.0, 0.1)
    assert found["decoder.levels.0.0.0.weight"] == (1.0, 0.1)


def test_frozen_weights_are_not_in_the_optimiser() -> None:
    method = unet()
    freeze(method, 3)
    plain, decayed = (shares(method, Recipe(layer_decay=decay, backbone_rate=0.3)) for decay in (1.0, 0.7))
    assert plain.keys() == decayed.keys()
    assert not any(name.startswith("backbone.body.layer2") for name in plain)
    assert {share for name, (share, _) in plain.items() if name.startswith("backbone")} == {0.3}
    blocks = [decayed[f"backbone.body.{layer}.0.conv1.weight"][0] for layer in ("layer3", "layer4")]
    assert blocks == pytest.approx([0.3 * 0.7**2, 0.3 * 0.7])


def test_a_step_moves_by_the_rate_of_its_layer() -> None:
    """Adam's first step is the rate times the sign of the gradient."""
    method = unet("test_vit")
    before = {name: each.detach().clone() for name, each in method.named_parameters()}
    recipe = Recipe(layer_decay=0.5, precision="float32", weight_decay=0, clip=0, optimiser="adam")
    Engine(method, recipe, "cpu").step(noise(), 1e-3)
    for name, share in (("blocks.0", 0.5 ** len(method.backbone.body.blocks)), ("blocks.1", None)):
        share = share or 0.5 ** (len(method.backbone.body.blocks) - 1)
        key = f"backbone.body.{name}.mlp.fc1.weight"
        moved = (dict(method.named_parameters())[key].detach() - before[key]).abs()
        assert float(moved.median()) == pytest.approx(1e-3 * share, rel=0.02)


@pytest.mark.parametrize("value", [0.0, -0.5, 1.5])
def test_decays_that_cannot_be(value: float) -> None:
    with pytest.raises(InputError, match="layer_decay must be above 0 and at most 1"):
        Recipe(layer_decay=value)


# -- statistics of several processes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["test_resnet", "test_efficientnet"])
def test_shared_statistics_change_neither_names_nor_outputs(backbone: str) -> None:
    method = unet(backbone)
    images = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32))
    method.train()(images)  # statistics of its own
    before, names = method.eval()(images)["classes"], list(method.state_dict())
    activations = [type(each.act) for each in method.modules() if isinstance(each, BatchNormAct2d)]
    share_statistics(method)
    assert not any(isinstance(each, nn.BatchNorm2d) for each in method.modules())
    shared = [each for each in method.modules() if isinstance(each, nn.SyncBatchNorm)]
    assert shared and [type(each.act) for each in shared if hasattr(each, "act")] == activations
    assert list(method.state_dict()) == names
    torch.testing.assert_close(method(images)["classes"], before)
