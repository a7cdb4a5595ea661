"""Batch normalisation as part of the convolution before it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from everymask.layers.aspp import BatchNormOfSingles

_SIDES = (2, 4)
"""Strides per side of the image that a network is tried on; the first may be too small for its deepest layers."""


def fold_batch_normalisation(network: nn.Module) -> nn.Module:
    """Replaces each convolution whose only reader is a batch normalisation by one convolution.

    In evaluation mode the normalisation is a fixed scale and offset for each channel, which the weights and the bias
    can take over (Jacob et al., CVPR 2018, section 3.2); the network then reads and writes each feature map once less.
    What follows what is seen from one run on a small image, so that it does not matter how a network is written down.
    One that cannot be run so is left as it is.

    Args:
        network: A `everymask.methods.base.Method` in evaluation mode; changed in place.

    Returns:
        The network.
    """
    if any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        for convolution, normalisation in _pairs(network):
            _fold(network, convolution, normalisation)
    return network


def _pairs(network: nn.Module) -> list[tuple[str, str]]:
    """Names of convolutions and of the batch normalisations that read nothing else and are their only readers."""
    names = {module: name for name, module in network.named_modules()}
    made: dict[nn.Module, list[Any]] = {}
    read: dict[nn.Module, list[Any]] = {}
    handles = []

    def note(module: nn.Module, _: Any, output: Tensor) -> None:
        made.setdefault(module, []).append(output.grad_fn)

    def note_input(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        read.setdefault(module, []).append(inputs[0].grad_fn)

    for module in names:
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(note))
        elif _is_plain(module):
            handles.append(module.register_forward_pre_hook(note_input))
    try:
        readers = _readers(_graph_of(network))
    finally:
        for handle in handles:
            handle.remove()
    # A module that runs twice in a pass has two nodes; one without a node was not reached.
    writers = {nodes[0]: module for module, nodes in made.items() if len(nodes) == 1 and nodes[0] is not None}
    return [
        (names[writers[nodes[0]]], names[module])
        for module, nodes in read.items()
        if len(nodes) == 1 and nodes[0] in writers and readers[nodes[0]] == 1
    ]


def _is_plain(module: nn.Module) -> bool:
    """Whether a module is batch normalisation by the book, perhaps with an activation behind it as in timm."""
    from timm.layers import BatchNormAct2d

    return (
        type(module) in (nn.BatchNorm2d, BatchNormAct2d, BatchNormOfSingles)
        and not module.training
        and getattr(module, "running_mean", None) is not None
    )


def _graph_of(network: nn.Module) -> list[Any]:
    """The ends of the autograd graph of a pass on a small image; nothing if the network cannot be run so."""
    stride, channels = int(getattr(network, "stride", 32)), int(getattr(network, "channels", 3))
    device = next(network.parameters()).device
    for side in _SIDES:
        # Gradients are followed from the image, since the weights learn nothing any more.
        image = torch.zeros(1, channels, side * stride, side * stride, device=device, requires_grad=True)
        try:
            with torch.enable_grad():
                outputs: dict[str, Tensor] = network(image)
        except (RuntimeError, ValueError, TypeError, AttributeError, AssertionError, MemoryError):
            continue
        return [output.grad_fn for output in outputs.values() if output.grad_fn is not None]
    return []


def _readers(ends: Iterable[Any]) -> Counter[Any]:
    """How many steps of a graph read the result of each step; the outputs count as readers."""
    counts: Counter[Any] = Counter(ends)
    waiting, seen = list(counts), set(counts)
    while waiting:
        for following, _ in waiting.pop().next_functions:
            if following is not None:
                counts[following] += 1
                if following not in seen:
                    seen.add(following)
                    waiting.append(following)
    return counts


def _fold(network: nn.Module, convolution: str, normalisation: str) -> None:
    before, after = network.get_submodule(convolution), network.get_submodule(normalisation)
    assert isinstance(before, nn.Conv2d) and isinstance(after, nn.BatchNorm2d)  # noqa: S101 - for the type checker
    network.set_submodule(convolution, fuse_conv_bn_eval(before, after))
    rest = [part for part in (getattr(after, "drop", None), getattr(after, "act", None)) if part is not None]
    network.set_submodule(normalisation, nn.Sequential(*rest) if rest else nn.Identity())
