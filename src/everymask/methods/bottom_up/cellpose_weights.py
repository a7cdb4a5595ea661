"""Weights of the official Cellpose programs, and of Segment Anything, under the names of `Cellpose`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from everymask.errors import InputError
from everymask.layers.cellpose_vit import from_sam

SIZE_MODEL = ("size_weights", "size_style", "size_offset")
_DIAMETERS = {"diam_mean": "diameter", "diam_labels": "usual_diameter"}
_OUTPUTS = 3  # flow down, flow right, cell
_SAM_PREFIX = "image_encoder."


def from_cellpose(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], config: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Tensors of Cellpose 1 to 3, Cellpose-SAM or Segment Anything by our names; others stay as they are.

    Args:
        state: Of `resnet_torch.CPnet`, of `vit_sam.Transformer` (later `vit.CPSAM`), or of `Sam`.
        own: Tensors of our network, which stand for what the others have not: the size model, whose weights lie in a
            file of their own, and for Segment Anything the readout.
        config: Constructor arguments of our network.

    Raises:
        InputError: They are of a network that other options make; the options are named.
    """
    if "downsample.down.res_down_0.proj.1.weight" in state:
        _compare(_residual_options(state), config)
        renamed = {_residual_name(name): value for name, value in state.items()}
    elif "encoder.pos_embed" in state and "out.weight" in state:
        _compare(_sam_options(state), config)
        renamed = _cellpose_sam(state)
    elif f"{_SAM_PREFIX}pos_embed" in state:
        return _segment_anything(state, own, config)
    else:
        return dict(state)
    return {**{name: own[name] for name in (*SIZE_MODEL, *_DIAMETERS.values())}, **renamed}


def _compare(told: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Raises InputError unless the network was made with the options that the weights tell."""
    other = {name: value for name, value in told.items() if value != config[name]}
    if other:
        wanted, made = (", ".join(f"{name}={each[name]!r}" for name in other) for each in (other, config))
        raise InputError(f"the weights are of a network with other options; make it with {wanted} (it has {made})")


def _residual_options(state: Mapping[str, Tensor]) -> dict[str, Any]:
    first = state["downsample.down.res_down_0.proj.1.weight"]
    if first.ndim != 4:
        raise InputError("the weights are of a network for volumes (conv_3D), which is not known here")
    levels = sum(re.fullmatch(r"downsample\.down\.res_down_\d+\.proj\.1\.weight", name) is not None for name in state)
    options = {"channels": first.shape[1], "base": first.shape[0], "depth": levels - 1}
    return {"network": "residual", "backbone": "", "style": True, **options}


_RESIDUAL = (
    (re.compile(r"^downsample\.down\.res_down_"), "body.down."),
    (re.compile(r"^upsample\.up\.res_up_"), "body.up."),
    (re.compile(r"^output\."), "readout."),
    (re.compile(r"(?<=\d)\.proj\."), ".shortcut."),
    (re.compile(r"\.conv\.conv_(\d)\.conv\."), r".convolutions.\1."),
    (re.compile(r"\.conv\.conv_(\d)\.full\."), r".style.\1."),
    (re.compile(r"\.conv\.conv_(\d)\."), r".convolutions.\1."),
)


def _residual_name(name: str) -> str:
    for pattern, replacement in _RESIDUAL:
        name = pattern.sub(replacement, name)
    # The first convolution of a block is told no style.
    name = re.sub(r"\.style\.(\d)\.", lambda found: f".style.{int(found[1]) - 1}.", name)
    return _DIAMETERS.get(name, name)


def _sam_options(state: Mapping[str, Tensor]) -> dict[str, Any]:
    positions, patches = state["encoder.pos_embed"], state["encoder.patch_embed.proj.weight"]
    depth = sum(name.endswith(".norm1.weight") for name in state)
    heads = patches.shape[0] // state["encoder.blocks.0.attn.rel_pos_h"].shape[1]
    return {
        "network": "sam",
        "backbone": "",
        "channels": patches.shape[1],
        "encoder": (patches.shape[0], depth, heads),
        "window": positions.shape[1] * patches.shape[-1],
    }


def _cellpose_sam(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {re.sub(r"^encoder\.", "body.", _DIAMETERS.get(name, name)): value for name, value in state.items()}
    # Spreading the outputs of a token over its pixels is a matrix there, and always this one.
    spread = renamed.pop("W2", None)
    if spread is not None and not torch.equal(spread.flatten(1).float(), torch.eye(len(spread), device=spread.device)):
        raise InputError("W2 is not the unit matrix that it is in all networks of Cellpose-SAM")
    outputs = _OUTPUTS * state["encoder.patch_embed.proj.weight"].shape[-1] ** 2
    for kind in ("weight", "bias"):
        both = renamed.pop(f"out.{kind}")
        renamed[f"readout.{kind}"] = both[-outputs:]  # classes come first there
        if len(both) > outputs:
            renamed[f"category.{kind}"] = both[:-outputs]
    return renamed


def _segment_anything(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], config: Mapping[str, Any]
) -> dict[str, Tensor]:
    """The published encoder, fitted to small patches; what it has not stays as it was made."""
    if config["network"] != "sam" or config["backbone"]:
        raise InputError("weights of Segment Anything need the option network='sam'")
    encoder = {
        f"body.{name.removeprefix(_SAM_PREFIX)}": value for name, value in state.items() if name.startswith(_SAM_PREFIX)
    }
    patch, tokens = own["body.patch_embed.proj.weight"].shape[-1], own["body.pos_embed"].shape[1]
    weight, positions = encoder["body.patch_embed.proj.weight"], encoder["body.pos_embed"]
    if weight.shape[-1] % patch or positions.shape[1] % tokens:
        raise InputError(
            f"Segment Anything has position embeddings for {positions.shape[1]} tokens a side, of which every n-th is "
            f"taken, but the window has {tokens}; choose a window of {positions.shape[1] * patch} pixels, or its half"
        )
    fitted = from_sam(weight, positions, patch, tokens)
    encoder["body.patch_embed.proj.weight"], encoder["body.pos_embed"] = fitted
    return {**{name: value for name, value in own.items() if not name.startswith("body.")}, **encoder}
