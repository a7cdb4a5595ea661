"""Pictures of discs and squares for methods that search regions, as a data set."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from everymask.types import Categories, Category, Dataset, Sample, Segments, Task

CATEGORIES = Categories([Category(3, "disc"), Category(8, "square")])
PLAIN: dict[str, Any] = {"scale": (1, 1), "contrast": (1, 1), "brightness": 0, "colour": 0, "flip": "none"}
"""Recipe options for the pictures as they are."""

QUICK: dict[str, Any] = PLAIN | {
    "warmup": 0.05,
    "batch_size": 2,
    "crop": 96,
    "ema": 0.9,
    "workers": 0,
    "precision": "float32",
    "quiet": True,
}
"""Options of a training that takes seconds."""


def scene(number: int, size: int = 96) -> tuple[NDArray[np.uint8], Segments]:
    """Two objects on a dark ground, discs yellowish and squares bluish; the categories are class indices."""
    random = np.random.default_rng(number)
    image = random.normal(40, 6, (size, size, 3))
    rows, columns = np.mgrid[:size, :size]
    boxes, kinds = [], []
    for index, (y, x) in enumerate([(32, 40), (66, 64)]):
        y, x = y + random.integers(-4, 5), x + random.integers(-8, 9)
        radius = int(random.integers(14, 21))
        kind = (index + number) % 2
        far = np.maximum(abs(rows - y), abs(columns - x)) if kind else np.hypot(rows - y, columns - x)
        inside = far <= radius
        image[inside] += random.uniform(60, 160, 3) * [1, 0.8, 0.3 + 0.9 * kind]
        boxes.append([x - radius, y - radius, x + radius + 1, y + radius + 1])
        kinds.append(kind)
    return image.clip(0, 255).astype(np.uint8), Segments((size, size), kinds, box=boxes)


def scenes(number: int) -> Dataset:
    def sample(index: int) -> Sample:
        image, truth = scene(index)
        return Sample(f"scene {index}", lambda: image, lambda: truth.with_category(CATEGORIES.ids[truth.category]))

    return Dataset.of([sample(index) for index in range(number)], CATEGORIES, frozenset({Task.DETECTION}))
