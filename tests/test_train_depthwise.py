"""Depthwise convolutions with gradients in float32: the same numbers as without, and only where they are meant."""

from __future__ import annotations

import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional

from everymask.train import depthwise
from everymask.train.depthwise import FloatDepthwise


@pytest.fixture
def replaced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the weights of the convolutions that were exchanged."""
    seen: list[tuple[int, ...]] = []
    apply = depthwise._Depthwise.apply

    def noted(images: Tensor, weight: Tensor, *rest: object) -> Tensor:
        seen.append(tuple(weight.shape))
        return apply(images, weight, *rest)

    monkeypatch.setattr(depthwise._Depthwise, "apply", staticmethod(noted))
    return seen


def gradients(layer: nn.Module, images: Tensor, *, mode: bool, dtype: torch.dtype | None) -> list[Tensor]:
    """Output, gradient of the images, and gradients of the weights of a loss that differs at every place."""
    layer.zero_grad()
    given = images.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is not None):
        if mode:
            with FloatDepthwise():
                found = layer(given)
        else:
            found = layer(given)
    place = torch.linspace(-1, 1, found.numel()).view(found.shape)
    (found.float() * place).sum().backward()
    return [found, given.grad, *(each.grad for each in layer.parameters())]


LAYERS = {
    "3 x 3": lambda: nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False),
    "bias": lambda: nn.Conv2d(16, 16, 3, padding=1, groups=16),
    "stride": lambda: nn.Conv2d(16, 16, 5, stride=2, padding=2, groups=16, bias=False),
    "dilation": lambda: nn.Conv2d(16, 16, 3, padding=(4, 2), dilation=(4, 2), groups=16),
    "multiplier": lambda: nn.Conv2d(16, 32, 3, padding=1, groups=16),
    "timm's same padding": lambda: Conv2dSame(16, 16, 3, stride=2, groups=16, bias=False),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("innermost", [False, True])
def test_gradients_are_those_of_float32(name: str, innermost: bool, replaced: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    layer = LAYERS[name]()
    images = torch.randn(2, 16, 17, 22)
    if innermost:
        layer, images = layer.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
    exact = gradients(layer, images, mode=False, dtype=None)
    plain = gradients(layer, images, mode=False, dtype=torch.bfloat16)
    assert not replaced
    ours = gradients(layer, images, mode=True, dtype=torch.bfloat16)
    assert replaced == [tuple(layer.weight.shape)]
    assert torch.equal(ours[0], plain[0]) and ours[0].dtype == torch.bfloat16
    for mine, theirs, true in zip(ours[1:], plain[1:], exact[1:], strict=True):
        assert mine.dtype == true.dtype == torch.float32
        scale = true.abs().max()
        # Rounding of images, weights and gradients to 8 bits; and never much worse than plain bfloat16.
        assert (mine - true).abs().max() <= 2**-6 * scale
        assert (mine - true).abs().max() <= 1.5 * (theirs - true).abs().max() + 2**-8 * scale


def test_a_network_learns_the_same() -> None:
    import timm

    torch.manual_seed(0)
    network = timm.create_model("test_efficientnet").to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 64, 64).to(memory_format=torch.channels_last)
    results = [gradients(network, images, mode=mode, dtype=torch.bfloat16)[2:] for mode in (False, True)]
    for mine, theirs in zip(*results, strict=True):
        both = torch.stack([mine, theirs]).flatten(1)
        if both.abs().max() > 1e-6:
            assert torch.cosine_similarity(both[0], both[1], dim=0) > 0.95


def test_elsewhere_nothing_changes(replaced: list[tuple[int, ...]]) -> None:
    images = torch.randn(1, 8, 9, 9)
    dense, grouped, depth = (nn.Conv2d(8, 8, 3, padding=1, groups=groups) for groups in (1, 4, 8))
    with FloatDepthwise():
        depth(images)  # float32 outside autocast is fast as it is
        with torch.autocast("cpu", torch.bfloat16):
            dense(images)
            grouped(images)
            functional.conv2d(images, depth.weight, padding="same", groups=8)
            with torch.autocast("cpu", enabled=False):
                depth(images)
    assert not replaced
    with torch.autocast("cpu", torch.bfloat16):
        depth(images)
        assert not replaced
        with FloatDepthwise():
            functional.conv2d(images, depth.weight, None, 1, 1, 1, 8)
    assert replaced == [(8, 1, 3, 3)]


def test_evaluation_keeps_no_gradient() -> None:
    layer = nn.Conv2d(8, 8, 3, groups=8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), FloatDepthwise():
        assert layer(torch.randn(1, 8, 9, 9)).grad_fn is None
