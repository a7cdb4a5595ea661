"""The learning rate over a training run."""

from __future__ import annotations

import math
from typing import Any

from everymask.methods.recipe import Recipe

FINAL_SHARE = 0.01
"""Share of the peak rate at which the cosine ends."""
POWER = 0.9
"""Of the polynomial decay."""


class Schedule:
    """Linear warm-up, then a cosine, a polynomial, a plateau or a constant rate.

    Args:
        recipe: Gives the kind of schedule and its numbers.
        steps_per_epoch: Optimiser steps of an epoch.
    """

    def __init__(self, recipe: Recipe, steps_per_epoch: int) -> None:
        self.recipe = recipe
        self.total = recipe.epochs * steps_per_epoch
        self.warmup = min(round(recipe.warmup * steps_per_epoch), self.total)
        self.reduction = 1.0
        self.best = math.inf
        self.epochs_without_improvement = 0

    def rate(self, step: int) -> float:
        """Learning rate of optimiser step `step` = 0, 1, ...

        With S steps of which W are warm-up it is ``peak * (step + 1) / W`` for step < W. After that, with
        t = (step - W) / (S - W): the cosine is ``peak * (f + (1 - f) * (1 + cos(pi * t)) / 2)`` with f = `FINAL_SHARE`
        (Loshchilov and Hutter 2017, eq. 5); poly is ``peak * (1 - t)^0.9`` (Chen et al. 2017); the others are ``peak``
        times the reductions so far.
        """
        peak = self.recipe.learning_rate
        if step < self.warmup:
            return peak * (step + 1) / self.warmup
        if self.recipe.schedule == "cosine":
            done = min(1.0, (step - self.warmup) / max(1, self.total - self.warmup))
            return peak * (FINAL_SHARE + (1 - FINAL_SHARE) * (1 + math.cos(math.pi * done)) / 2)
        if self.recipe.schedule == "poly":
            # One step longer, so that the last step still learns.
            return peak * (1 - (step - self.warmup) / (max(1, self.total - self.warmup) + 1)) ** POWER
        return peak * self.reduction

    def observe(self, loss: float) -> None:
        """Tells the plateau schedule the loss of an epoch, on validation data or, if there are none, in training."""
        if self.recipe.schedule != "plateau":
            return
        # As in torch's and Keras' plateau schedules a change of less than 1e-4 of the loss counts as none.
        if loss < self.best * (1 - 1e-4):
            self.best, self.epochs_without_improvement = loss, 0
            return
        self.epochs_without_improvement += 1
        if self.epochs_without_improvement > self.recipe.plateau_patience:
            self.reduction *= self.recipe.plateau_factor
            self.epochs_without_improvement = 0

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep, as JSON values."""
        return {
            "reduction": self.reduction,
            "best": None if math.isinf(self.best) else self.best,
            "epochs_without_improvement": self.epochs_without_improvement,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.reduction = state["reduction"]
        self.best = math.inf if state["best"] is None else state["best"]
        self.epochs_without_improvement = state["epochs_without_improvement"]
