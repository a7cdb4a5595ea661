"""Checkpoints: everything that a training run needs to go on exactly, in one safetensors file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from everymask.errors import InputError
from everymask.weights import write_tensors

CHECKPOINT = "checkpoint.safetensors"
"""File name in the output folder of a run."""

# Changes whenever what a checkpoint holds does, so that one of another version is refused and not misread.
_KEY = "everymask_checkpoint_1"


def write_checkpoint(path: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Writes tensors and JSON values in one step: the file is the old one or the new one, never a part of it.

    Args:
        path: Target.
        tensors: Named tensors of any device.
        state: JSON values.
    """
    # Copies, because tied weights share memory, which the format does not allow.
    kept = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    write_tensors(path, kept, {_KEY: json.dumps(state)})


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The inverse of `write_checkpoint`.

    Raises:
        InputError: The file is damaged or no checkpoint.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if _KEY not in metadata:
                raise InputError(f"{path} is no checkpoint of this version of everymask; start anew in another --out")
            state = json.loads(metadata[_KEY])
            return {name: file.get_tensor(name) for name in file.keys()}, state  # noqa: SIM118 - not a dictionary
    except InputError:
        raise
    except (SafetensorError, ValueError, OSError) as error:
        raise InputError(f"{path} is damaged ({error}); start anew in another --out") from error


def with_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors named ``prefix/name``."""
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def without_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that `with_prefix` named, under their own names."""
    start = f"{prefix}/"
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def optimiser_tensors(optimiser: Optimizer) -> dict[str, Tensor]:
    """The optimiser's state of every parameter as ``number/name``."""
    return {
        f"{number}/{name}": value
        for number, values in optimiser.state_dict()["state"].items()
        for name, value in values.items()
        if isinstance(value, Tensor)  # the rest is None: momentum that has not begun
    }


def restore_optimiser(optimiser: Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of `optimiser_tensors`."""
    parameters: list[Tensor] = [each for group in optimiser.param_groups for each in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition("/")
        like = parameters[int(number)]
        # Fused optimisers run through memory: each value must lie where that of its weight lies.
        placed = torch.empty_like(like, dtype=value.dtype).copy_(value) if value.shape == like.shape else value
        state.setdefault(int(number), {})[name] = placed
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def restore_network(network: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Copies the weights into the network.

    Raises:
        InputError: They are of another network.
    """
    try:
        with torch.no_grad():
            network.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} holds another network than the one to be trained: {reason}") from error
