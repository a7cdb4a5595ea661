"""A method that learns in seconds, made-up data for it, and a program that trains it in a process of its own."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from everymask.data.preprocessing import Preprocessing
from everymask.methods.base import Method
from everymask.methods.recipe import Recipe
from everymask.train.loop import TrainingResult, train
from everymask.types import Categories, Dataset, LabelMap, Sample, Segments, Task

CATEGORIES = Categories(["blob"])
GREY = Preprocessing(channels=1)


class Toy(Method):
    """Foreground or background from two convolutions, with dropout, so that random numbers matter."""

    tasks: ClassVar[frozenset[Task]] = frozenset({Task.SEMANTIC})
    metric: ClassVar[tuple[str, str]] = ("semantic", "miou")
    tunable: ClassVar[Mapping[str, tuple[float, ...]]] = {"probability": (0.1, 0.9)}

    def __init__(self, classes: int = 1, channels: int = 1, dropout: float = 0.2, norm: bool = True) -> None:
        super().__init__()
        self.classes, self.channels, self.stride = classes, channels, 2
        self.thresholds = {"probability": 0.5}
        self.body = nn.Sequential(
            nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4) if norm else nn.Identity(), nn.ReLU()
        )
        self.dropout = nn.Dropout2d(dropout)
        self.head = nn.Conv2d(4, 1, 1)

    @classmethod
    def recipe(cls) -> Recipe:
        return Recipe(
            epochs=3, batch_size=4, crop=16, learning_rate=0.05, warmup=0.5, ema=0.9, workers=0, precision="float32"
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"blob": self.head(self.dropout(self.body(images)))}

    def targets(self, segments: Segments) -> dict[str, Tensor]:
        return {"blob": torch.from_numpy((segments.label_map() > 0).astype(np.float32))[None]}

    def loss(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        logits = outputs["blob"].float()
        return {
            "entropy": functional.binary_cross_entropy_with_logits(logits, targets["blob"]),
            "square": 0.1 * (logits.sigmoid() - targets["blob"]).square().mean(),
        }

    def decode(self, outputs: Mapping[str, Tensor], sizes: Sequence[tuple[int, int]]) -> list[Segments]:
        found = []
        for output, (height, width) in zip(outputs["blob"], sizes, strict=True):
            ids = (output[0, :height, :width].float().sigmoid() > self.thresholds["probability"]).numpy(force=True)
            found.append(Segments((height, width), [0] if ids.any() else [], LabelMap(ids.astype(np.int32))))
        return found


def picture(number: int, size: int = 24) -> tuple[np.ndarray, Segments]:
    """A bright disc on a dark ground, with noise."""
    rng = np.random.default_rng(number)
    rows, columns = np.mgrid[:size, :size]
    centre, radius = rng.uniform(6, size - 6, 2), rng.uniform(3, 6)
    ids = ((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2).astype(np.int32)
    image = (60 + 90 * ids + rng.normal(0, 25, ids.shape)).clip(0, 255).astype(np.uint8)
    return image[..., None], Segments(ids.shape, [1], LabelMap(ids))


def pictures(count: int, start: int = 0) -> Dataset:
    def sample(number: int) -> Sample:
        return Sample(f"picture {number}", lambda: picture(number)[0], lambda: picture(number)[1])

    return Dataset(lambda i: sample(start + i), count, CATEGORIES, frozenset({Task.SEMANTIC}), "test", Path("made-up"))


def run(out: Path | str, *, toy: Mapping[str, object] | None = None, val: int = 3, **options: object) -> TrainingResult:
    """Trains a toy; `options` are for `train` (resume, provenance ...) or the recipe."""
    torch.manual_seed(0)
    own = {name: options.pop(name) for name in ("resume", "provenance", "quiet") if name in options}
    return train(
        Toy(**(toy or {})),
        pictures(10),
        pictures(val, 100) if val else None,
        recipe=Toy.recipe().with_options(**options),
        preprocessing=GREY,
        categories=CATEGORIES,
        out=out,
        device="cpu",
        **{"quiet": True, **own},
    )


def curve(out: Path | str, events: Sequence[str] = ("epoch",)) -> list[dict[str, object]]:
    """The log without what differs from run to run: times and the number of the process."""
    lines = [json.loads(line) for line in (Path(out) / "log.jsonl").read_text().splitlines()]
    varying = {"seconds", "images_per_second"}
    return [{key: line[key] for key in line if key not in varying} for line in lines if line["event"] in events]


def main() -> None:
    """``OUT OPTIONS [OUT OPTIONS ...]`` of the command line; steps pause, so that there is time to disturb them."""
    torch.set_num_threads(1)
    original = Toy.training_loss

    def pausing(self: Toy, images: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        time.sleep(0.02)
        return original(self, images, targets)

    Toy.training_loss = pausing  # type: ignore[method-assign]
    for out, options in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        run(out, **json.loads(options))
