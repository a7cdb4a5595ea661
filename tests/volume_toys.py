"""A method of volumes that learns in seconds, and made-up volumes of balls for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional

from everymask.data.preprocessing import Preprocessing
from everymask.layers.unet import UNet
from everymask.methods.base import Method
from everymask.methods.recipe import Recipe
from everymask.types import Categories, Dataset, LabelMap, Sample, Segments, Task

CATEGORIES = Categories(["ball"])
GREY = Preprocessing(channels=1)
ANISOTROPY = 2.0


class Balls(Method):
    """Foreground of volumes; objects are its connected components."""

    tasks: ClassVar[frozenset[Task]] = frozenset({Task.INSTANCE})
    metric: ClassVar[tuple[str, str]] = ("matching", "mean_accuracy")

    def __init__(self, classes: int = 1, channels: int = 1, base: int = 8, flat: int = 1) -> None:
        super().__init__()
        self.classes, self.channels, self.thresholds = classes, channels, {}
        self.dimensions, self.anisotropy = 3, ANISOTROPY
        self.body = UNet(channels, base, depth=2, norm="batch", dimensions=3, flat=flat)
        self.head = nn.Conv3d(base, 1, 1)
        self.stride, self.context = self.body.stride, self.body.radius
        self.depth_stride, self.depth_context = self.body.depth_stride, self.body.depth_radius

    @classmethod
    def recipe(cls) -> Recipe:
        return Recipe(
            epochs=2, steps_per_epoch=40, validate_every=2, crop=32, planes=12, batch_size=2, learning_rate=5e-3,
            ema=0.9, scale=(0.9, 1.1), rotate=10, workers=0,
        )  # fmt: skip

    @classmethod
    def recipe_for(cls, **options: object) -> Recipe:
        return cls.recipe()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"foreground": self.head(self.body(images))}

    def targets(self, segments: Segments) -> dict[str, Tensor]:
        ids = torch.from_numpy(segments.label_map())[None]
        return {"foreground": (ids > 0).float(), "valid": (ids >= 0).float()}

    def loss(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        losses = functional.binary_cross_entropy_with_logits(
            outputs["foreground"].float(), targets["foreground"], reduction="none"
        )
        return {"foreground": (losses * targets["valid"]).sum() / targets["valid"].sum().clamp_min(1)}

    def decode(self, outputs: Mapping[str, Tensor], sizes: Sequence[tuple[int, ...]]) -> list[Segments]:
        found = []
        for logits, size in zip(outputs["foreground"][:, 0].cpu().numpy(), sizes, strict=True):
            ids, count = ndimage.label(logits[tuple(slice(0, each) for each in size)] > 0)
            found.append(Segments(size, [0] * count, LabelMap(ids.astype(np.int32)), score=np.ones(count)))
        return found


def balls(number: int, size: tuple[int, int, int] = (20, 56, 64), shape: int = 1) -> Sample:
    """Balls apart from each other, in planes twice as far apart as pixels, with noise."""
    rng = np.random.default_rng(number)
    ids = np.zeros(size, np.int32)
    z, y, x = np.indices(size)
    for centre in np.ndindex(size[0] // 10, size[1] // 18, size[2] // 18):
        middle = np.array([5, 9, 9]) + np.array([10, 18, 18]) * centre + rng.integers(-1, 2, 3)
        distance = (ANISOTROPY * (z - middle[0])) ** 2 + (y - middle[1]) ** 2 + (x - middle[2]) ** 2
        ids[distance < rng.uniform(4, 7) ** 2] = ids.max() + 1
    image = np.clip((ids > 0) * 120 + rng.normal(60, 20, size), 0, 255).astype(np.uint8)[..., None]
    truth = Segments(size, np.ones(ids.max(), int), LabelMap(ids))
    return Sample(f"balls {number}", lambda: image, lambda: truth)


def balls_data(*numbers: int) -> Dataset:
    """A data set of such volumes."""
    return Dataset.of([balls(number) for number in numbers], CATEGORIES, frozenset({Task.INSTANCE}))
