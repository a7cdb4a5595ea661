"""StarDist: objects as star-convex polygons.

Schmidt et al., Cell Detection with Star-Convex Polygons, MICCAI 2018. Program: https://github.com/stardist/stardist
(BSD-3). Each pixel predicts an object probability and the distance to the object's outline along R rays; polygons
of probable pixels are thinned out by non-maximum suppression and drawn.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from everymask.errors import InputError
from everymask.layers.unet import Norm, UNet, convolution, initialise
from everymask.losses import binary_cross_entropy, cross_entropy, masked_l1
from everymask.methods.base import Method
from everymask.methods.bottom_up.objects import learnt_ids
from everymask.methods.recipe import Recipe
from everymask.types import LabelMap, Segments, Task
from everymask.types.geometry import VOID


class StarDist(Method):
    """Star-convex polygons on a U-Net.

    Args:
        classes: Number of categories K. With more than one a class head is added.
        channels: Input channels C.
        rays: Number of rays R, counter-clockwise from the positive x axis.
        grid: Input pixels per output pixel, 1, 2 or 4.
        base: Features of the first U-Net level.
        depth: Poolings of the U-Net.
        convolutions: Convolutions of a level of the U-Net, on each side, and before each pooling down to the grid.
        features: Features of the last convolution before the outputs, one shared by probability and distances and one
            of the classes; 0 for outputs straight from the U-Net.
        norm: Normalisation; the official networks have none, so weights from there need ``none``.
        distance_weight: Weight of the distance term.
        background_weight: Weight of the distances outside objects, relative to the distance term.
    """

    tasks: ClassVar[frozenset[Task]] = frozenset({Task.INSTANCE})
    metric: ClassVar[tuple[str, str]] = ("matching", "mean_accuracy")
    tunable: ClassVar[Mapping[str, tuple[float, ...]]] = {"probability": (0.1, 0.9), "overlap": (0.3, 0.4, 0.5)}
    logit_layers: ClassVar[tuple[str, ...]] = ("category",)

    def __init__(
        self,
        classes: int = 1,
        channels: int = 3,
        rays: int = 32,
        grid: int = 2,
        base: int = 32,
        depth: int = 3,
        convolutions: int = 2,
        features: int = 128,
        norm: Norm = "batch",
        distance_weight: float = 0.2,
        background_weight: float = 1e-4,
    ) -> None:
        super().__init__()
        if grid not in (1, 2, 4):
            raise InputError(f"grid must be 1, 2 or 4, got {grid}")
        if min(channels, base, convolutions) < 1 or features < 0:
            raise InputError(
                f"channels, base and convolutions must be at least 1 and features at least 0, got channels {channels}, "
                f"base {base}, convolutions {convolutions} and features {features}"
            )
        if rays < 3:
            raise InputError(f"a polygon needs at least 3 rays, got {rays}")
        self.classes, self.channels, self.rays, self.grid = classes, channels, rays, grid
        self.distance_weight, self.background_weight = distance_weight, background_weight
        poolings = int(math.log2(grid))
        stem: list[nn.Module] = []
        for i in range(poolings):
            stem += [convolution(channels if i == j == 0 else base, base, norm) for j in range(convolutions)]
            stem.append(nn.MaxPool2d(2))
        self.stem = nn.Sequential(*stem)
        self.body = UNet(base if poolings else channels, base, depth, convolutions, norm)

        def last() -> nn.Module:
            return convolution(self.body.width, features, norm) if features else nn.Identity()

        width = features or self.body.width
        self.features = last()
        self.probability = nn.Conv2d(width, 1, 1)
        self.distances = nn.Conv2d(width, rays, 1)
        self.category = nn.Sequential(last(), nn.Conv2d(width, classes + 1, 1)) if classes > 1 else None
        self.stride = grid * 2**depth
        self.context = grid * (self.body.radius + 1) + (convolutions + 1) * grid
        self.thresholds = {"probability": 0.5, "overlap": 0.4}
        initialise(self)
        # Distances start near the size of common objects, so that the first epochs are not spent on reaching it.
        nn.init.constant_(self.distances.bias, 8.0)  # type: ignore[arg-type]
        nn.init.constant_(self.probability.bias, -2.0)  # type: ignore[arg-type]

    @classmethod
    def recipe(cls) -> Recipe:
        """Rates and crops of the official example, with AdamW and a cosine schedule instead of the plateau."""
        return Recipe(epochs=100, batch_size=8, crop=256, learning_rate=1e-3, noise=0.02, contrast=(0.6, 2.0))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Outputs of images (B, C, H, W) on the grid.

        Returns:
            ``probability`` (B, 1, h, w) logits, ``distances`` (B, R, h, w) in input pixels, and with several
            categories ``category`` (B, K + 1, h, w) logits, background first.
        """
        shared = self.body(self.stem(images))
        features = self.features(shared)
        outputs = {"probability": self.probability(features), "distances": self.distances(features)}
        if self.category is not None:
            outputs["category"] = self.category(shared)
        return outputs

    def targets(self, segments: Segments) -> dict[str, Tensor]:
        """Normalised distance to the background, ray lengths, validity and (with several categories) classes."""
        from everymask.ops.distance import object_probability
        from everymask.ops.stars import star_distances

        ids = learnt_ids(segments)
        objects = np.maximum(ids, 0)
        step = self.grid
        targets = {
            "probability": torch.from_numpy(object_probability(objects)[None, ::step, ::step].copy()),
            "distances": torch.from_numpy(star_distances(objects, self.rays, step).transpose(2, 0, 1).copy()),
            "valid": torch.from_numpy((ids[None, ::step, ::step] != VOID).astype(np.float32)),
        }
        if self.category is not None:
            table = np.concatenate([[VOID, 0], segments.category + 1])
            targets["category"] = torch.from_numpy(table[ids[::step, ::step] + 1])
        return targets

    def loss(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Cross-entropy of the probability plus weighted L1 of the distances (paper, section 2; official weights)."""
        probability, valid = targets["probability"], targets["valid"]
        inside = probability * valid
        outside = (1 - probability) * valid
        terms = {
            "probability": binary_cross_entropy(outputs["probability"], probability, valid),
            "distances": self.distance_weight * masked_l1(outputs["distances"], targets["distances"], inside),
        }
        # Far from objects the rays should be short, not arbitrary.
        shrink = (outside * outputs["distances"].float().abs()).mean()
        terms["distances"] = terms["distances"] + self.distance_weight * self.background_weight * shrink
        if "category" in outputs:
            terms["category"] = cross_entropy(outputs["category"], targets["category"])
        return terms

    def decode(self, outputs: Mapping[str, Tensor], sizes: Sequence[tuple[int, ...]]) -> list[Segments]:
        """Candidates above the probability threshold, greedy non-maximum suppression, drawing."""
        from everymask.ops.stars import candidates, non_maximum_suppression, render_stars

        probabilities = outputs["probability"].float().sigmoid().cpu().numpy()[:, 0]
        distances = outputs["distances"].float().cpu()
        classes = outputs["category"].float().argmax(1).cpu().numpy() if "category" in outputs else None
        found = []
        for i, (height, width) in enumerate(sizes):
            rows, columns = -(-height // self.grid), -(-width // self.grid)
            rays = distances[i, :, :rows, :columns].permute(1, 2, 0).numpy()
            points, scores, lengths = candidates(
                probabilities[i, :rows, :columns], rays, self.thresholds["probability"], grid=self.grid
            )
            keep = non_maximum_suppression(points, scores, lengths, self.thresholds["overlap"])
            points, scores, lengths = points[keep], scores[keep], lengths[keep]
            category = np.zeros(len(points), np.int64)
            if classes is not None:
                at = (points // self.grid).astype(np.int64)
                category = np.maximum(classes[i][at[:, 0], at[:, 1]] - 1, 0)
            ids = render_stars(points, lengths, (height, width))
            drawn = Segments((height, width), category, LabelMap(ids), score=scores)
            # A star that others cover entirely has no pixel left; one that owns its centre, which is quick to see, has.
            centres = points.astype(np.int64)
            if (ids[centres[:, 0], centres[:, 1]] != np.arange(1, len(points) + 1)).any():
                areas = drawn.areas()
                drawn = drawn if areas.all() else drawn[areas > 0]
            found.append(drawn)
        return found

    def undo_dihedral(self, outputs: Mapping[str, Tensor], flip: bool, turns: int) -> dict[str, Tensor]:
        """Turns the maps back and sorts the rays into their old directions."""
        undone = super().undo_dihedral(outputs, flip, turns)
        ray = torch.arange(self.rays, device=outputs["distances"].device)
        # Ray k points along (cos, sin)(2 pi k / R) in (x, y down). Turning the image counter-clockwise by a quarter
        # takes direction a to a - pi/2 in these coordinates; a left-right flip takes a to pi - a.
        if turns % 4 and self.rays % 4:
            raise InputError(f"quarter turns need a multiple of 4 rays, the model has {self.rays}")
        source = ray - turns * self.rays // 4
        if flip:
            if self.rays % 2:
                raise InputError(f"flips need an even number of rays, the model has {self.rays}")
            source = self.rays // 2 - source
        undone["distances"] = undone["distances"][:, source % self.rays]
        return undone

    def foreign(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of the official program's network (`StarDist2D.keras_model`) under the names of this method.

        Args:
            state: From `everymask.methods.keras.read_keras`. Tensors under the names of this method stay as they are.

        Raises:
            InputError: They are of a network that other options make; the options are named.
        """
        if "prob.weight" not in state:
            return dict(state)
        if any(name.endswith("running_mean") for name in state):
            raise InputError("networks with unet_batch_norm cannot be loaded, because their layers have another order")
        told = _official_options(state)
        other = {name: value for name, value in told.items() if value != self.config[name]}
        if other:
            options = " ".join(f"--{name} {value}" for name, value in other.items())
            made = ", ".join(f"{name} {self.config[name]}" for name in other)
            raise InputError(f"the weights are of a network with other options; give {options} (the method has {made})")
        renamed = {}
        for name, each in state.items():
            layer, _, kind = name.rpartition(".")
            renamed[f"{_own_layer(layer, told['convolutions'], _stem(state))}.{kind}"] = each
        if self.category is None and state.get("prob_class.weight", torch.zeros(2)).shape[0] == 2:
            # A class head of a single class has nothing to tell.
            renamed = {name: each for name, each in renamed.items() if not name.startswith("category.")}
        return renamed

    def read_beside(self, path: Path) -> dict[str, float]:
        """Thresholds of ``thresholds.json`` beside the official program's weights, which ``config.json`` describes.

        Args:
            path: Of the weights.

        Raises:
            InputError: The network differs in what its weights do not show, or one of the files cannot be read.
        """
        place = path.with_name("config.json")
        config = _read_json(place)
        for name, value in _FIXED.items():
            if config.get(name, value) != value:
                raise InputError(f"{place}: {name} is {config[name]!r}; only networks with {value!r} can be loaded")
        place = path.with_name("thresholds.json")
        thresholds = _read_json(place)
        names = {"prob": "probability", "nms": "overlap"}
        try:
            return {own: float(thresholds[name]) for name, own in names.items() if name in thresholds}
        except (TypeError, ValueError) as error:
            raise InputError(f"{place}: expected numbers as prob and nms, got {thresholds!r}") from error


_FIXED = {
    "n_dim": 2,
    "backbone": "unet",
    "unet_kernel_size": [3, 3],
    "unet_pool": [2, 2],
    "unet_activation": "relu",
    "unet_last_activation": "relu",
    "unet_batch_norm": False,
    "unet_prefix": "",
}
"""Settings of the official network (`Config2D`) that are not options here."""


def _stem(state: Mapping[str, Tensor]) -> list[str]:
    """The convolutions above the grid, which Keras numbers by all layers of the program: only their order counts."""
    return [name.removesuffix(".weight") for name in state if re.fullmatch(r"conv2d(_\d+)?\.weight", name)]


def _official_options(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Constructor arguments that make the official network with these tensors, but for the number of classes."""
    level = re.compile(r"down_level_(\d+)_no_(\d+)\.weight")
    levels = [(int(found[1]), int(found[2])) for name in state if (found := level.fullmatch(name))]
    if (0, 0) not in levels or "dist.weight" not in state:
        raise InputError("the tensors are not those of a StarDist2D network: down_level_0_no_0 or dist is missing")
    convolutions, stem = max(number for _, number in levels) + 1, _stem(state)
    first, features = state[f"{(stem or ['down_level_0_no_0'])[0]}.weight"], state.get("features.weight")
    return {
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
