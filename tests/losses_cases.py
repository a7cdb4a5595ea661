"""Problems that the tests of the losses share, and plain views of them for formulas written out in float64."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

FORMS = ("softmax", "binary", "multilabel")


class Problem(NamedTuple):
    """Logits and target for the loss, and what a formula needs: one entry of each list is one image."""

    logits: torch.Tensor
    target: torch.Tensor

    @property
    def exclusive(self) -> bool:
        return self.target.ndim < self.logits.ndim and self.logits.shape[1] > 1

    def plain(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Probability, truth and validity, (B, K, N) float64, float64 and bool."""
        logits = self.logits.detach().double().flatten(2).numpy()
        classes = logits.shape[1]
        if self.exclusive:
            weights = np.exp(logits - logits.max(1, keepdims=True))
            probability = weights / weights.sum(1, keepdims=True)
            index = self.target.flatten(1).numpy()
            truth = np.stack([index == k for k in range(classes)], 1).astype(float)
            valid = np.repeat((index != -1)[:, None], classes, 1)
        else:
            probability = 1 / (1 + np.exp(-logits))
            labels = self.target.double().numpy().reshape(logits.shape)
            valid = labels != -1
            truth = np.where(valid, labels, 0)
        return probability, truth, valid


def problem(
    form: str, *, shape: tuple[int, ...] = (5, 6), batch: int = 2, classes: int = 3, void: float = 0.2, seed: int = 0
) -> Problem:
    """Random logits (float64, with a gradient) and targets, a share `void` of which does not count."""
    random = torch.Generator().manual_seed(seed)
    channels = 1 if form == "binary" else classes
    logits = torch.randn(batch, channels, *shape, generator=random, dtype=torch.float64) * 2
    size = (batch, *shape) if form != "multilabel" else (batch, channels, *shape)
    target = torch.randint(0, classes if form == "softmax" else 2, size, generator=random)
    target[torch.rand(size, generator=random) < void] = -1
    return Problem(logits.requires_grad_(), target)


def blobs(form: str, *, shape: tuple[int, ...] = (24, 26), batch: int = 2, void: bool = False) -> Problem:
    """Logits and targets of compact regions, so that distances to edges are more than 1."""
    random = np.random.default_rng(5)
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    channels = {"softmax": 3, "binary": 1, "multilabel": 2}[form]
    maps = np.zeros((batch, 2, *shape), np.int64)
    for b in range(batch):
        for k in range(2):
            for _ in range(2):
                middle, radius = random.uniform(0, shape), random.uniform(2, 0.3 * min(shape) + 2)
                maps[b, k][np.linalg.norm(grid - middle, axis=-1) < radius] = 1
    if form == "softmax":
        target = np.where(maps[:, 1] > 0, 2, maps[:, 0])
    else:
        target = maps[:, 0] if form == "binary" else maps
    if void:
        target[..., -3:] = -1
    logits = torch.from_numpy(random.normal(size=(batch, channels, *shape)) * 2).requires_grad_()
    return Problem(logits, torch.from_numpy(target))
