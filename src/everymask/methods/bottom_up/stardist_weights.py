"""Weights and settings of the official StarDist program under the names of `StarDist`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from everymask.errors import InputError

_FIXED = {
    "backbone": "unet",
    "unet_activation": "relu",
    "unet_last_activation": "relu",
    "unet_batch_norm": False,
    "unet_prefix": "",
}
"""Settings of the official networks (`Config2D`, `Config3D`) that are not options here."""


def from_stardist(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors of `StarDist2D.keras_model` or `StarDist3D.keras_model` by our names.

    Args:
        state: From `everymask.methods.keras.read_keras`. Tensors under our names stay as they are.
        config: Constructor arguments of our network, with the number of rays.

    Raises:
        InputError: They are of a network that other options make; the options are named.
    """
    if "prob.weight" not in state:
        return dict(state)
    if any(name.endswith("running_mean") for name in state):
        raise InputError("networks with unet_batch_norm cannot be loaded, because their layers have another order")
    told = _official_options(state)
    _compare(told, config, "the weights are of a network with other options")
    renamed = {}
    for name, each in state.items():
        layer, _, kind = name.rpartition(".")
        renamed[f"{_own_layer(layer, told['convolutions'], _stem(state))}.{kind}"] = each
    if config["classes"] == 1 and state.get("prob_class.weight", torch.zeros(2)).shape[0] == 2:
        # A class head of a single class has nothing to tell.
        renamed = {name: each for name, each in renamed.items() if not name.startswith("category.")}
    return renamed


def settings_beside(path: Path, config: Mapping[str, Any]) -> dict[str, float]:
    """Thresholds of ``thresholds.json`` beside official weights, whose network ``config.json`` describes.

    Args:
        path: Of the weights.
        config: Constructor arguments of our network, with the numbers of rays and of planes per cell.

    Raises:
        InputError: The network differs in what its weights do not show, or one of the files cannot be read.
    """
    place = path.with_name("config.json")
    settings = _read_json(place)
    dimensions = config["dimensions"]
    fixed = _FIXED | {"n_dim": dimensions, "unet_kernel_size": [3] * dimensions}
    fixed |= {"unet_pool": [2, 2]} if dimensions == 2 else {}
    for name, value in fixed.items():
        if settings.get(name, value) != value:
            raise InputError(f"{place}: {name} is {settings[name]!r}; only networks with {value!r} can be loaded")
    if dimensions == 3:
        _compare(_options_of_volumes(settings, config, place), config, f"{place}: the network has other options")
    place = path.with_name("thresholds.json")
    thresholds = _read_json(place)
    names = {"prob": "probability", "nms": "overlap"}
    try:
        return {own: float(thresholds[name]) for name, own in names.items() if name in thresholds}
    except (TypeError, ValueError) as error:
        raise InputError(f"{place}: expected numbers as prob and nms, got {thresholds!r}") from error


def _options_of_volumes(settings: Mapping[str, Any], config: Mapping[str, Any], place: Path) -> dict[str, Any]:
    """Constructor arguments that the settings of a `Config3D` tell, but its weights do not."""
    told: dict[str, Any] = {}
    rays = settings.get("rays_json", {"name": "Rays_GoldenSpiral", "kwargs": {}})
    grid, pool = settings.get("grid"), settings.get("unet_pool")
    try:
        scale = [float(each) for each in rays["kwargs"].get("anisotropy") or (1, 1, 1)]
        anisotropy = scale[0] / scale[1]
        if rays["name"] != "Rays_GoldenSpiral" or scale != [anisotropy * scale[1], scale[1], scale[1]]:
            raise InputError(f"{place}: rays_json is {rays!r}; only a golden spiral around the z axis can be loaded")
        if "rays_json" in settings:
            told["anisotropy"] = anisotropy
        if grid is not None:
            told["depth_grid"], told["grid"], columns = (int(each) for each in grid)
            if told["grid"] != columns:
                raise InputError(f"{place}: grid is {grid!r}; only networks with one number for y and x can be loaded")
        if pool is not None:
            flat = {(2, 2, 2): 0, (1, 2, 2): config["depth"]}
            if tuple(pool) not in flat:
                raise InputError(f"{place}: unet_pool is {pool!r}; only [2, 2, 2] and [1, 2, 2] can be loaded")
            told["flat"] = flat[tuple(pool)]
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, ZeroDivisionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{place}: expected rays_json, grid and unet_pool of a Config3D, got {rays!r}, {grid!r} and {pool!r}"
        ) from error
    return told


def _compare(told: Mapping[str, Any], config: Mapping[str, Any], problem: str) -> None:
    """Raises InputError unless the network was made with these options."""
    other = {name: value for name, value in told.items() if value != config[name]}
    if other:
        options = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in other.items())
        made = ", ".join(f"{name} {config[name]}" for name in other)
        raise InputError(f"{problem}; give {options} (the method has {made})")


def _stem(state: Mapping[str, Tensor]) -> list[str]:
    """The convolutions above the grid, which Keras numbers by all layers of the program: only their order counts."""
    return [name.removesuffix(".weight") for name in state if re.fullmatch(r"conv[23]d(_\d+)?\.weight", name)]


def _official_options(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Constructor arguments that make the official network with these tensors, but for the number of classes."""
    level = re.compile(r"down_level_(\d+)_no_(\d+)\.weight")
    levels = [(int(found[1]), int(found[2])) for name in state if (found := level.fullmatch(name))]
    if (0, 0) not in levels or "dist.weight" not in state:
        raise InputError("the tensors are not those of a StarDist network: down_level_0_no_0 or dist is missing")
    convolutions, stem = max(number for _, number in levels) + 1, _stem(state)
    first, features = state[f"{(stem or ['down_level_0_no_0'])[0]}.weight"], state.get("features.weight")
    return {
        "dimensions": first.ndim - 2,
        "channels": first.shape[1],
        "rays": state["dist.weight"].shape[0],
        "grid": 2 ** (len(stem) // convolutions),
        "base": state["down_level_0_no_0.weight"].shape[0],
        "depth": max(number for number, _ in levels) + 1,
        "convolutions": convolutions,
        "features": 0 if features is None else features.shape[0],
        "norm": "none",
    }


_HEADS = {
    "features": "features.0",
    "prob": "probability",
    "dist": "distances",
    "features_class": "category.0.0",
    "prob_class": "category.1",
}
"""Official layer -> ours."""


def _own_layer(layer: str, convolutions: int, stem: Sequence[str]) -> str:
    """Our name of a layer of the official network; names of no rule stay as they are.

    The last convolution of the middle, and of a level on the way up, has the number `convolutions`, not one less.
    """
    if layer in _HEADS:
        return _HEADS[layer]
    if layer in stem:
        number = stem.index(layer)
        return f"stem.{number + number // convolutions}.0"  # poolings are layers, too
    if found := re.fullmatch(r"down_level_(\d+)_no_(\d+)", layer):
        return f"body.down.{found[1]}.{found[2]}.0"
    if found := re.fullmatch(r"middle_(\d+)", layer):
        return f"body.bottom.{min(int(found[1]), convolutions - 1)}.0"
    if found := re.fullmatch(r"up_level_(\d+)_no_(\d+)", layer):
        return f"body.up.{found[1]}.{min(int(found[2]), convolutions - 1)}.0"
    return layer


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty if there is no file."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: expected an object with names, got {type(found).__name__}")
    return found
