"""Dividing a data set into images to learn from and images to validate on."""

from __future__ import annotations

import numpy as np

from everymask.errors import InputError
from everymask.types import Dataset

TRAINING, VALIDATION = {"train", "training"}, {"val", "valid", "validation"}
"""How data sets call their parts."""


def hold_out(data: Dataset, share: float = 0.1, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Splits a data set into training and validation: by its own parts, else at random, always in the same way.

    A data set that was opened with its parts (``extra["split"]``) and has one for training and one for validation is
    split so; further parts, such as test, are left out. Images without annotation are for training.

    Raises:
        InputError: There are fewer than two images.
    """
    if len(data) < 2:
        raise InputError(f"{data.root}: {len(data)} image cannot be split; give a validation set by --val")
    # Parts lie one after the other, so two samples tell whether there are several.
    if data[0].extra.get("split") != data[-1].extra.get("split"):
        parts = [str(sample.extra.get("split")) for sample in data]
        training, validation = (
            [i for i, part in enumerate(parts) if part in names] for names in (TRAINING, VALIDATION)
        )
        if training and validation:
            return data.subset(training), data.subset(validation)
    annotated = [index for index, sample in enumerate(data) if sample.read_segments is not None]
    if not annotated:
        raise InputError(f"{data.root}: no image has an annotation to validate with; give a validation set by --val")
    order = np.random.default_rng(seed).permutation(annotated)
    held = set(order[: max(1, round(share * len(annotated)))].tolist())
    return data.subset([index for index in range(len(data)) if index not in held]), data.subset(sorted(held))
