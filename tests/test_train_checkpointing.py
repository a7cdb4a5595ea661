"""Gradient checkpointing and compilation: the same gradients and statistics, less memory, and a way back."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from semantic_toys import batch
from torch import Tensor

from everymask.methods import method_class
from everymask.methods.base import Method
from everymask.methods.recipe import Recipe
from everymask.train import engine
from everymask.train.checkpointing import Checkpointing
from everymask.train.compiling import Compiled
from everymask.train.depthwise import FloatDepthwise

NETWORKS = {
    "unet": {"base": 4, "depth": 2},
    "unet of resnet": {"backbone": "test_resnet"},
    "unet of efficientnet": {"backbone": "test_efficientnet"},
    "unet of convnext": {"backbone": "test_convnext"},
    "unet of vit": {"backbone": "test_vit"},
    "res_unet": {"base": 4, "depth": 2},
    "deeplabv3plus": {"backbone": "test_resnet", "width": 32},
    "pspnet": {"backbone": "test_resnet", "width": 32},
}


def made(name: str) -> Method:
    torch.manual_seed(0)
    return method_class(name.split()[0])(classes=3, **NETWORKS[name]).train()


def step(method: Method, images: Tensor, targets: dict[str, Tensor]) -> tuple[int, Tensor]:
    """Bytes that the forward pass keeps for the gradient, each piece of memory once, and the loss."""
    kept: dict[int, int] = {}
    own = {each.untyped_storage().data_ptr() for each in [*method.parameters(), images, *targets.values()]}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    alive: list[Tensor] = []  # as the graph does, or freed memory would be counted once for several

    def keep_alive(tensor: Tensor) -> Tensor:
        alive.append(tensor)
        return keep(tensor)

    torch.manual_seed(5)  # of dropout
    with torch.autograd.graph.saved_tensors_hooks(keep_alive, lambda tensor: tensor):
        loss = torch.stack(list(method.training_loss(images, targets).values())).sum()
    forward = sum(kept.values())
    loss.backward()
    return forward, loss.detach()


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_and_statistics_are_the_same_and_memory_falls(name: str) -> None:
    plain, checkpointed = made(name), made(name)
    images, targets = batch(plain, side=64)
    changed = Checkpointing(checkpointed)
    assert changed.blocks
    before, loss = step(plain, images, targets)
    after, again = step(checkpointed, images, targets)
    assert torch.equal(loss, again)
    assert after < 0.72 * before, (after / before, len(changed.blocks))
    for (key, mine), theirs in zip(checkpointed.named_parameters(), plain.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None), key
        if mine.grad is not None:
            torch.testing.assert_close(
                mine.grad, theirs.grad, rtol=1e-4, atol=1e-6 + 1e-5 * float(theirs.grad.abs().max())
            )
    for (key, mine), theirs in zip(checkpointed.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(mine, theirs), key


def test_copies_and_evaluation_are_not_touched() -> None:
    method = made("unet of resnet")
    images, _ = batch(method)
    changed = Checkpointing(method)
    other = copy.deepcopy(method)
    with torch.no_grad():
        for each in other.parameters():
            each.zero_()
    assert not torch.equal(method.eval()(images)["classes"], other.eval()(images)["classes"])
    with_blocks = method(images)["classes"]
    changed.undo()
    assert not any("forward" in vars(each) for each in method.modules())
    assert torch.equal(method(images)["classes"], with_blocks)


def test_in_bfloat16_with_depthwise_convolutions() -> None:
    plain, checkpointed = made("unet of efficientnet"), made("unet of efficientnet")
    images, targets = batch(plain)
    Checkpointing(checkpointed)
    for method in (plain, checkpointed):
        with FloatDepthwise():
            with torch.autocast("cpu", torch.bfloat16):
                loss = torch.stack(list(method.training_loss(images, targets).values())).sum()
            loss.backward()
    for mine, theirs in zip(checkpointed.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


def test_the_recipe_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    images, targets = batch(made("unet"))
    outcomes = []
    monkeypatch.setattr(engine, "Compiled", functools.partial(Compiled, compiler=lambda function, **_: function))
    for options in ({}, {"checkpointing": True}, {"compile": True}):
        method = made("unet")
        trained = engine.Engine(method, Recipe(precision="float32", **options), "cpu")
        assert any("forward" in vars(each) for each in method.modules()) == bool(options)
        norm = trained.step(iter([(images, targets)] * 2), 1e-3)
        trained.release()
        assert not any("forward" in vars(each) for each in method.modules())
        outcomes.append((float(norm), {name: each.clone() for name, each in method.state_dict().items()}))
    for norm, state in outcomes[1:]:
        assert norm == pytest.approx(outcomes[0][0], rel=1e-4)
        torch.testing.assert_close(state, outcomes[0][1], rtol=1e-3, atol=1e-5)


# -- compilation -------------------------------------------------------------------------------------------------------


def test_without_a_compiler_the_network_is_trained_as_it_is() -> None:
    told: list[str] = []
    calls = []

    def compiler(function: object, **options: object) -> object:
        def broken(*_: object) -> None:
            calls.append(options)
            raise RuntimeError("no compiler\nfound anywhere")

        return broken

    plain, compiled = made("unet"), made("unet")
    images, targets = batch(plain)
    changed = Compiled(compiled, told.append, compiler)
    for _ in range(2):
        for method in (plain, compiled):
            method.zero_grad()
            step(method, images, targets)
        for mine, theirs in zip(compiled.parameters(), plain.parameters(), strict=True):
            assert torch.equal(mine.grad, theirs.grad)
    assert len(calls) == len(told) == 1
    assert told[0].startswith("note: ") and "no compiler found" in told[0] and "\n" not in told[0]
    changed.undo()
    assert "forward" not in vars(compiled)


def test_evaluation_and_copies_are_not_compiled() -> None:
    seen = []

    def compiler(function: object, **options: object) -> object:
        def noted(method: Method, images: Tensor) -> object:
            seen.append(method)
            return function(method, images)

        return noted

    method = made("unet")
    images, targets = batch(method)
    Compiled(method, print, compiler)
    method.eval()(images)
    with torch.no_grad():
        method.train()(images)
    step(copy.deepcopy(method), images, targets)
    assert not seen
    step(method, images, targets)
    assert seen == [method]


@pytest.mark.parametrize("name", ["unet of resnet"])
def test_a_compiled_network_learns_the_same(name: str) -> None:
    plain, compiled = made(name), made(name)
    images, targets = batch(plain)
    told: list[str] = []
    # All of torch.compile but the generation of code, which takes a minute.
    changed = Compiled(compiled, told.append, functools.partial(torch.compile, backend="aot_eager"))
    step(plain, images, targets)
    step(compiled, images, targets)
    assert changed.fine and not told
    for mine, theirs in zip(compiled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-5)
    for mine, theirs in zip(compiled.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)
