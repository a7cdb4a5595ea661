"""Small methods whose right answer is known without training, for the tests of prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from everymask.data.preprocessing import Preprocessing
from everymask.methods.base import Method
from everymask.methods.bottom_up.stardist import StarDist
from everymask.methods.recipe import Recipe
from everymask.methods.semantic.common import SemanticMethod
from everymask.types import LabelMap, Segments, Task

PLAIN = Preprocessing(channels=1, normalise="scale")
"""Leaves float images as they are and divides uint8 by 255."""


class Toy(Method):
    """What the toys share: nothing is learned."""

    tasks: ClassVar[frozenset[Task]] = frozenset({Task.INSTANCE})
    metric: ClassVar[tuple[str, str]] = ("matching", "mean_accuracy")

    def __init__(self) -> None:
        super().__init__()
        self.classes, self.channels, self.thresholds = 1, 1, {}

    @classmethod
    def recipe(cls) -> Recipe:
        return Recipe()

    def targets(self, segments: Segments) -> dict[str, Tensor]:
        raise AssertionError("toys are not trained")

    def loss(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        raise AssertionError("toys are not trained")

    def decode(self, outputs: Mapping[str, Tensor], sizes: Sequence[tuple[int, int]]) -> list[Segments]:
        raise AssertionError("this toy has outputs only")


class Blobs(Toy):
    """Connected components of the blurred, coarsened image above one half.

    The coarsening to blocks of `stride` pixels makes the outputs depend on where a tile begins, the blur on the
    surroundings up to `context`. The geometry is a label map, or masks.
    """

    def __init__(self, radius: int = 3, stride: int = 8, geometry: str = "labels") -> None:
        super().__init__()
        self.radius, self.stride, self.geometry = radius, stride, geometry
        self.context = radius + stride

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        coarse = functional.max_pool2d(images.mean(1, keepdim=True), self.stride)
        coarse = functional.interpolate(coarse, scale_factor=float(self.stride), mode="nearest")
        mixed = 0.7 * images.mean(1, keepdim=True) + 0.3 * coarse
        return {"foreground": functional.avg_pool2d(mixed, 2 * self.radius + 1, 1, self.radius)}

    def decode(self, outputs: Mapping[str, Tensor], sizes: Sequence[tuple[int, int]]) -> list[Segments]:
        found = []
        for foreground, size in zip(outputs["foreground"].cpu().numpy()[:, 0], sizes, strict=True):
            foreground = foreground[: size[0], : size[1]]
            ids, count = ndimage.label(foreground > 0.5)
            index = np.arange(1, count + 1)
            score = ndimage.maximum(foreground, ids, index) if count else np.zeros(0)
            columns: dict[str, Any] = {
                "score": np.clip(score, 0, 1),
                "attributes": {"area": ndimage.sum_labels(np.ones(size), ids, index) if count else np.zeros(0)},
            }
            if self.geometry == "masks":
                masks = ids[None] == index[:, None, None]
                found.append(Segments.from_masks(masks.astype(np.uint8), np.zeros(count), **columns))
            else:
                found.append(Segments(size, np.zeros(count), LabelMap(ids.astype(np.int32)), **columns))
        return found


class Bands(Toy):
    """Three classes by blurred intensity: dark is background, the rest class 0 and 1; a hundredth of it void."""

    tasks: ClassVar[frozenset[Task]] = frozenset({Task.SEMANTIC})

    def __init__(self, radius: int = 3) -> None:
        super().__init__()
        self.classes, self.stride, self.radius, self.context = 2, 4, radius, radius

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"level": functional.avg_pool2d(images, 2 * self.radius + 1, 1, self.radius)}

    def decode(self, outputs: Mapping[str, Tensor], sizes: Sequence[tuple[int, int]]) -> list[Segments]:
        found = []
        for level, (height, width) in zip(outputs["level"].cpu().numpy()[:, 0], sizes, strict=True):
            classes = np.digitize(level[:height, :width], [0.45, 0.5, 0.51]) - 1
            ids = np.choose(classes + 1, [0, 1, -1, 2]).astype(np.int32)
            present = np.unique(ids[ids > 0])
            table = np.zeros(4, np.int32)
            table[0] = -1
            table[present + 1] = np.arange(1, len(present) + 1)
            found.append(Segments((height, width), present - 1, LabelMap(table[ids + 1])))
        return found


class StarOracle(StarDist):
    """Takes the image for a label map and answers with the exact targets, the probability as a logit."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        made = []
        for image in images:
            ids = image[0].round().cpu().numpy().astype(np.int32)
            made.append(self.targets(Segments(ids.shape, np.zeros(ids.max(initial=0)), LabelMap(ids))))
        probability = torch.stack([each["probability"] for each in made])
        return {"probability": probability.logit(1e-6), "distances": torch.stack([each["distances"] for each in made])}


def blob_field(size: tuple[int, int], seed: int = 0, sigma: float = 3.5, level: float = 0.31) -> np.ndarray:
    """An image (H, W) float32 in 0..1 with blobs of about 4 `sigma` pixels here and there."""
    noise = np.random.default_rng(seed).normal(size=size)
    smooth = ndimage.gaussian_filter(noise, sigma, mode="wrap")
    return (level + 0.12 * smooth / smooth.std()).clip(0, 1).astype(np.float32)


def objects_of(segments: Segments) -> set[tuple[int, bytes]]:
    """The segments as a set of (category, pixels), whatever their order."""
    runs = segments.rles()
    return {(int(category), each.tobytes()) for category, each in zip(segments.category, runs, strict=True)}


def random_images(count: int, size: tuple[int, int], channels: int = 1, seed: int = 0) -> Tensor:
    """(count, channels, H, W) in 0..1."""
    return torch.rand(count, channels, *size, generator=torch.Generator().manual_seed(seed))


class Vignette(SemanticMethod):
    """Two classes by intensity, seen through a lens that is wrong towards the edges of whatever it is shown.

    The logits are off by `depth` at the left edge of the input, less and less over `reach` pixels.
    """

    def __init__(self, reach: int = 64, depth: float = 2.0, stride: int = 8) -> None:
        super().__init__()
        self.prepare(2, 1, False, "cross_entropy")
        self.reach, self.depth, self.stride, self.context = reach, depth, stride, reach

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        wrong = self.depth * (1 - torch.arange(images.shape[-1]) / self.reach).clamp(min=0)
        logit = 4 * images[:, 0] - 2 + wrong
        return {"classes": torch.stack([torch.zeros_like(logit), logit], 1)}
