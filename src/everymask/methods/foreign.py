"""Weights from other programs: checkpoints of torchvision and `segmentation_models_pytorch`, HDF5 files of Keras.

A method that knows the names of another program has ``foreign(state) -> state``, which gives its tensors under the
names of the method and leaves those that it does not know as they are. Where that program keeps settings in files
beside the weights, the method has ``read_beside(path)``, which checks them and takes over the thresholds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from everymask.backbones.weights import PREFIXES, read_state
from everymask.errors import InputError
from everymask.methods.base import Method
from everymask.methods.keras import SUFFIXES, read_keras
from everymask.methods.onnx_weights import SUFFIX as ONNX
from everymask.methods.onnx_weights import read_onnx

State = Mapping[str, Tensor]


def load_foreign(method: Method, source: Path | str | State, *, new_logits: bool = False) -> None:
    """Fills a whole method with weights that another program, or this one, has trained.

    Args:
        method: With the options that the other network was made with; changed in place.
        source: A file (.safetensors, a state dict saved by torch, .h5 of Keras, .onnx), or the tensors by name.
        new_logits: Leave out the layers that give the logits: for other classes than the weights were trained for.

    Raises:
        InputError: The file cannot be read, or holds more than tensors; or tensors are missing, left over or of another
            shape: they are listed.
    """
    thresholds: dict[str, float] = {}
    if isinstance(source, Mapping):
        state, origin = dict(source), "the state"
    else:
        path, origin = Path(source), str(source)
        keras = path.suffix.lower() in SUFFIXES
        if path.suffix.lower() == ONNX:
            state = read_onnx(path)
        else:
            state = read_keras(path) if keras else read_state(path)
        read_beside = getattr(method, "read_beside", None)
        if keras and read_beside is not None:
            thresholds = read_beside(path)
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    rename = getattr(method, "foreign", None)
    try:
        found: dict[str, Tensor] = dict(state) if rename is None else rename(state)
    except InputError as error:
        raise InputError(f"{origin}: {error}") from error
    own = method.state_dict()
    layers = tuple(f"{name}." for name in getattr(method, "logit_layers", ()))
    if new_logits:
        found = {name: value for name, value in found.items() if not name.startswith(layers)}
        found |= {name: value for name, value in own.items() if name.startswith(layers)}
    _check(own, found, origin, layers)
    method.load_state_dict(found)
    method.thresholds = {**method.thresholds, **thresholds}


def _check(own: State, found: State, origin: str, logits: tuple[str, ...]) -> None:
    """Raises InputError unless both have the same names and shapes."""
    missing = sorted(own.keys() - found.keys())
    unexpected = sorted(found.keys() - own.keys())
    differing = [name for name in sorted(own.keys() & found.keys()) if own[name].shape != found[name].shape]
    if not (missing or unexpected or differing):
        return
    shapes = [f"{name} {tuple(found[name].shape)} instead of {tuple(own[name].shape)}" for name in differing]
    kinds = {"missing": missing, "unexpected": unexpected, "shapes": shapes}
    told = "; ".join(f"{kind}: {_some(names)}" for kind, names in kinds.items() if names)
    if not (missing or unexpected) and all(name.startswith(logits) for name in differing):
        advice = "they were trained for other classes; keep all but the layers of the logits by new_logits"
    else:
        advice = "make the method with the options of the network that was trained (backbone, auxiliary, ...)"
    raise InputError(f"{origin}: the weights do not fit the method; {told}; {advice}")


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def from_torchvision(state: State) -> dict[str, Tensor]:
    """Names of torchvision's segmentation networks as those of this package: backbone, head and auxiliary head."""
    rules = (
        (re.compile(r"^backbone\.(?!body\.)"), "backbone.body."),
        (re.compile(r"^classifier\."), "head."),
        (re.compile(r"^aux_classifier\."), "auxiliary."),
    )
    renamed = {}
    for name, value in state.items():
        for pattern, replacement in rules:
            name = pattern.sub(replacement, name)
        renamed[name] = value
    return renamed


def is_smp(state: State) -> bool:
    """Whether these are tensors of a network of `segmentation_models_pytorch`."""
    return any(name.startswith("segmentation_head.") for name in state)


def from_smp(state: State, logits: int) -> dict[str, Tensor]:
    """Names of encoder and head of `segmentation_models_pytorch` as those of this package; others stay.

    Args:
        state: Tensors by name.
        logits: Channels of the method's logits. Where two are wanted and there is one, which is a sigmoid's, zeros
            become the other: their softmax is the same probability.
    """
    rules = (
        (re.compile(r"^encoder\.(model\.)?"), "backbone.body."),
        (re.compile(r"^segmentation_head\.0\."), "head."),
    )
    renamed = {}
    for name, value in state.items():
        for pattern, replacement in rules:
            name = pattern.sub(replacement, name)
        if name.startswith("head.") and logits == 2 and value.shape[0] == 1:
            value = torch.cat([torch.zeros_like(value), value])
        renamed[name] = value
    return renamed
