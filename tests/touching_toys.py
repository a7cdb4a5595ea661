"""Made-up pictures of objects that touch, for methods that must tell them apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everymask.methods.base import Method
from everymask.predict.predictor import Predictor
from everymask.train.loop import train
from everymask.types import Categories, Dataset, LabelMap, Sample, Segments, Task


def touching(
    size: tuple[int, int] = (96, 96), seed: int = 0, radius: tuple[float, float] = (7, 11)
) -> NDArray[np.int32]:
    """Labels of ellipses in pairs and heaps that touch without a gap; some are cut by the border."""
    random = np.random.default_rng(seed)
    ids = np.zeros(size, np.int32)
    rows, columns = np.indices(size)
    number = 0
    for _ in range(200):
        y, x = random.uniform(0, size[0]), random.uniform(0, size[1])
        first, second = random.uniform(*radius, 2)
        angle = random.uniform(0, np.pi)
        along = (columns - x) * np.cos(angle) + (rows - y) * np.sin(angle)
        across = (rows - y) * np.cos(angle) - (columns - x) * np.sin(angle)
        inside = (along / first) ** 2 + (across / second) ** 2 < 1
        if inside.sum() > 80 and (ids[inside] > 0).mean() < 0.12:
            number += 1
            ids[inside & (ids == 0)] = number
    return ids


def picture(ids: NDArray[np.int32], seed: int = 0) -> NDArray[np.uint8]:
    """A grey image (H, W, 1) of objects brighter in the middle, with noise."""
    from scipy import ndimage

    random = np.random.default_rng(seed)
    depth = np.zeros(ids.shape)
    for number in range(1, ids.max() + 1):
        own = ids == number
        depth += np.minimum(ndimage.distance_transform_edt(np.pad(own, 1))[1:-1, 1:-1], 4) / 4
    return (40 + 150 * depth + random.normal(0, 6, ids.shape)).clip(0, 255).astype(np.uint8)[..., None]


def overfit(method: Method, out: Path, **options: object) -> tuple[list[NDArray[np.int32]], list[Segments]]:
    """Trains on two pictures with the real trainer; the true labels, and what is then found in the same pictures.

    The category of each object of the truth is its number modulo that of the method's classes.
    """
    maps = [touching((64, 64), seed) for seed in (1, 2)]
    pictures = [picture(ids, seed) for seed, ids in enumerate(maps)]

    def sample(number: int) -> Sample:
        ids = maps[number]
        category = 1 + np.arange(1, ids.max() + 1) % method.classes
        return Sample(str(number), lambda: pictures[number], lambda: Segments(ids.shape, category, LabelMap(ids)))

    categories = Categories([f"kind {number}" for number in range(method.classes)])
    data = Dataset(sample, 2, categories, frozenset({Task.INSTANCE}), "test", Path("made-up"))
    settings: dict[str, Any] = {
        "epochs": 1, "steps_per_epoch": 80, "batch_size": 2, "crop": 64, "learning_rate": 5e-3, "ema": 0.8,
        "workers": 0, "flip": "none", "scale": (1.0, 1.0), "noise": 0.0, "contrast": (1.0, 1.0), "brightness": 0.0,
        "precision": "float32", "warmup": 0.1,
    }  # fmt: skip
    train(
        method,
        data,
        data,
        recipe=method.recipe().with_options(**(settings | options)),
        preprocessing=method.preprocessing_of(),
        categories=categories,
        out=out,
        device="cpu",
        quiet=True,
    )
    predictor = Predictor(method, method.preprocessing_of(), "cpu", "float32")
    return maps, [predictor(each) for each in pictures]
