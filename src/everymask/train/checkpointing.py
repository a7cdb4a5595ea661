"""Gradient checkpointing: blocks whose features are computed anew for the gradient instead of being kept."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from os.path import commonpath
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from everymask.backbones.pyramid import Backbone
from everymask.backbones.stages import layer_depths

if TYPE_CHECKING:
    from everymask.methods.base import Method


class Checkpointing:
    """Training keeps the inputs of blocks only and computes what is inside them anew (Chen et al. 2016).

    Gradients and statistics are those of plain training. Evaluation is not touched.

    Args:
        method: Changed in place, until `undo`.

    Attributes:
        blocks: The modules in question.
    """

    def __init__(self, method: Method) -> None:
        self.blocks = blocks_of(method)
        for block in self.blocks:
            # A bound method, which goes with its module when that is copied.
            block.forward = MethodType(_forward, block)  # type: ignore[method-assign]

    def undo(self) -> None:
        """Leaves the method as it was."""
        for block in self.blocks:
            del block.forward


def blocks_of(method: Method) -> list[nn.Module]:
    """The blocks of a method: of a backbone its layers, elsewhere the innermost modules with several convolutions."""
    backbone = getattr(method, "backbone", None)
    if not isinstance(backbone, Backbone):
        return [block for each in method.children() for block in _innermost(each)]
    layers: dict[int, list[str]] = {}
    for name, depth in layer_depths(backbone).items():
        layers.setdefault(depth, []).append(f"/{name.replace('.', '/')}")
    places = [commonpath(names).strip("/").replace("/", ".") for names in layers.values()]
    shared = [backbone.get_submodule(place) for place in places if place not in dict(backbone.named_parameters())]
    blocks = [each for each in shared if _is_block(each) and each not in (backbone, backbone.body)]
    # Networks that name no layers still have blocks.
    blocks = blocks or _innermost(backbone.body)
    rest = (each for name, each in method.named_children() if name != "backbone")
    return blocks + [block for each in rest for block in _innermost(each)]


def _innermost(module: nn.Module) -> list[nn.Module]:
    found = [block for child in module.children() for block in _innermost(child)]
    return found or ([module] if _is_block(module) else [])


def _is_block(module: nn.Module) -> bool:
    """Whether a module is called as a whole and has two or more layers with weights."""
    return (
        not isinstance(module, nn.ModuleList | nn.ModuleDict)
        and any(True for _ in module.children())
        and sum(each.ndim > 1 for each in module.parameters()) > 1
    )


def _forward(self: nn.Module, *inputs: Any, **options: Any) -> Any:
    plain = MethodType(type(self).forward, self)
    if not (self.training and torch.is_grad_enabled()):
        return plain(*inputs, **options)
    return checkpoint(
        plain,
        *inputs,
        use_reentrant=False,
        context_fn=lambda: (contextlib.nullcontext(), _same_statistics(self)),
        **options,
    )


@contextlib.contextmanager
def _same_statistics(module: nn.Module) -> Iterator[None]:
    """Inside the context normalisation does not count: a batch that is seen for the second time is no second batch."""
    norms = [each for each in module.modules() if isinstance(each, _NormBase)]
    momenta = [each.momentum for each in norms]
    counts = [each.num_batches_tracked for each in norms]
    before = [None if each is None else each.clone() for each in counts]
    for each in norms:
        each.momentum = 0.0
    try:
        yield
    finally:
        for each, momentum, count, value in zip(norms, momenta, counts, before, strict=True):
            each.momentum = momentum
            if count is not None and value is not None:
                count.copy_(value)
