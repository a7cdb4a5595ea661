"""One optimiser step after the other: the network, its optimiser and its moving average on one or several devices."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from torch import Tensor

from everymask.data.loader import Batch, to_device
from everymask.errors import InputError
from everymask.predict.device import channels_innermost, use_bfloat16
from everymask.predict.memory import keep_freed_memory
from everymask.train.checkpoint import (
    optimiser_tensors,
    restore_network,
    restore_optimiser,
    with_prefix,
    without_prefix,
)
from everymask.train.checkpointing import Checkpointing
from everymask.train.compiling import Compiled
from everymask.train.depthwise import FloatDepthwise
from everymask.train.ema import MovingAverage
from everymask.train.setup import Objective, freeze, make_optimiser, share_statistics

if TYPE_CHECKING:
    from pathlib import Path

    from everymask.methods.base import Method
    from everymask.methods.recipe import Recipe


class Engine:
    """Everything that an optimiser step changes.

    Args:
        method: The method to train, moved to the device in place.
        recipe: Optimiser, clipping, accumulation, moving average and precision.
        device: ``"cpu"``, or None for an accelerator if there is one.
        tell: Told what could not be done as the recipe asks, in a line.

    Attributes:
        steps: Optimiser steps that were done.
        bfloat16: Whether convolutions and matrix products run in bfloat16.
    """

    def __init__(
        self,
        method: Method,
        recipe: Recipe,
        device: str | None = None,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.method, self.recipe = method, recipe
        # Accelerate joins processes on CPUs only if it is told that CPUs are meant.
        self.accelerator = Accelerator(cpu=device == "cpu" or not torch.accelerator.is_available())
        self.device = self.accelerator.device
        freeze(method, recipe.freeze)
        if self.accelerator.num_processes > 1 and self.device.type != "cpu":
            share_statistics(method)
        # Convolutions are faster with the channels innermost, on CPUs as on tensor cores.
        method.to(self.device)
        self._layout = channels_innermost(method.dimensions)
        method.to(memory_format=self._layout)  # type: ignore[call-overload]
        self.bfloat16 = use_bfloat16(recipe.precision, self.device)
        if self.device.type == "cpu":
            keep_freed_memory()
        self._changes: list[Checkpointing | Compiled] = []
        if recipe.checkpointing:
            self._changes.append(Checkpointing(method))
        if recipe.compile:
            self._changes.append(Compiled(method, tell))
        self.objective = self.accelerator.prepare_model(Objective(method, self.bfloat16))
        self.parameters = [each for each in method.parameters() if each.requires_grad]
        self.optimiser = make_optimiser(method, recipe)
        self.average = MovingAverage(method, recipe.ema)
        self.steps = 0
        self._sums: dict[str, Tensor] = {}
        self._summed = 0
        self._first_bad_step = torch.full((), -1, dtype=torch.int64, device=self.device)

    @property
    def crops_per_step(self) -> int:
        """Crops that a step of all processes learns from."""
        return self.recipe.batch_size * self.recipe.accumulate * self.accelerator.num_processes

    def step(self, source: Iterator[Batch], rate: float) -> Tensor:
        """One optimiser step.

        Args:
            source: Gives `Recipe.accumulate` batches.
            rate: Learning rate.

        Returns:
            The norm of the gradient before clipping, on the device.
        """
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["share"]
        self.optimiser.zero_grad(set_to_none=True)
        for part in range(self.recipe.accumulate):
            images, targets = next(source)
            images = images.to(self.device, memory_format=self._layout, non_blocking=True)
            targets = to_device(targets, self.device)
            self._seed(part)
            with ExitStack() as stack:
                if part < self.recipe.accumulate - 1:
                    stack.enter_context(self.accelerator.no_sync(self.objective))
                if self.bfloat16 and self.device.type == "cpu" and not self.recipe.compile:
                    stack.enter_context(FloatDepthwise())
                terms = self.objective(images, targets)
                total = torch.stack(list(terms.values())).sum()
                self.accelerator.backward(total / self.recipe.accumulate)
            self._add_losses({**terms, "total": total})
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip or math.inf)
        self.optimiser.step()
        self.steps += 1
        self.average.update(self.steps)
        fine = torch.isfinite(norm) & torch.isfinite(self._sums["total"])
        bad = torch.full_like(self._first_bad_step, self.steps)
        self._first_bad_step = torch.where((self._first_bad_step < 0) & ~fine, bad, self._first_bad_step)
        return norm

    def _seed(self, part: int) -> None:
        """Makes dropout and the like depend on the number of the batch alone, so that no generator's state is kept.

        Called after the batch was fetched, because starting a loader draws a random number.
        """
        batch = self.steps * self.recipe.accumulate + part
        torch.manual_seed(((self.recipe.seed * 1_000_003 + batch) * 4096 + self.accelerator.process_index) % 2**63)

    def _add_losses(self, terms: dict[str, Tensor]) -> None:
        """Adds up on the device, so that nothing has to wait for it."""
        for name, term in terms.items():
            value = term.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._summed += 1

    def losses(self) -> dict[str, float]:
        """Means of the terms, and of their sum ``total``, since `reset_losses`; of this process."""
        return {name: float(value) / self._summed for name, value in self._sums.items()}

    def losses_of_all(self) -> dict[str, float]:
        """The means over all processes."""
        losses = self.losses()
        if self.accelerator.num_processes == 1:
            return losses
        values = torch.tensor(list(losses.values()), device=self.device)
        return dict(zip(losses, self.accelerator.reduce(values, "mean").tolist(), strict=True))

    def reset_losses(self) -> None:
        """Starts the means anew."""
        self._sums.clear()
        self._summed = 0

    def check_finite(self) -> None:
        """Checks the losses and gradients of all steps so far; waits for the device.

        Raises:
            InputError: One was infinite or NaN. The weights are spoilt by then.
        """
        step = int(self._first_bad_step)
        if step >= 0:
            advice = [f"lower learning_rate (now {self.recipe.learning_rate:g})"]
            advice += [] if self.recipe.clip else ["set clip to 1"]
            advice += ["set precision to float32"] if self.bfloat16 else []
            raise InputError(f"the loss or its gradient became infinite or NaN in step {step}; {', or '.join(advice)}")

    def synchronise(self) -> None:
        """Gives all processes the statistics of the first, so that they validate one and the same network.

        Gradients are shared in every step, but statistics (of batch normalisation) are each process's own.
        """
        if self.accelerator.num_processes > 1:
            from accelerate.utils import broadcast

            for tensor in [*self.method.buffers(), *self.average.average.values()]:
                tensor.copy_(broadcast(tensor.clone()))

    def release(self) -> None:
        """Leaves the method as other programs expect it, when the training is over."""
        for change in self._changes:
            change.undo()
        self._changes.clear()
        freeze(self.method, 0)

    def any_process(self, flag: bool) -> bool:
        """Whether `flag` is true in any process; all must ask."""
        if self.accelerator.num_processes == 1:
            return flag
        value = torch.tensor(float(flag), device=self.device)
        return bool(self.accelerator.reduce(value, "sum") > 0)

    def tensors(self) -> dict[str, Tensor]:
        """All that a checkpoint must keep."""
        return {
            **with_prefix("weights", self.method.state_dict()),
            **with_prefix("average", self.average.average),
            **with_prefix("optimiser", optimiser_tensors(self.optimiser)),
            # Of the first process; with several, a mean over an epoch that was interrupted is that process's alone.
            **with_prefix("sums", self._sums),
            "steps": torch.tensor([self.steps, self._summed]),
        }

    def restore(self, tensors: dict[str, Tensor], path: Path) -> None:
        """The inverse of `tensors`.

        Args:
            tensors: From a checkpoint.
            path: The checkpoint, for messages.

        Raises:
            InputError: They are of another network.
        """
        restore_network(self.method, without_prefix("weights", tensors), path)
        self.average.restore(without_prefix("average", tensors))
        restore_optimiser(self.optimiser, without_prefix("optimiser", tensors))
        self._sums = {name: value.to(self.device) for name, value in without_prefix("sums", tensors).items()}
        self.steps, self._summed = (int(each) for each in tensors["steps"])
