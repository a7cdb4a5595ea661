"""The exponential moving average of the weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class MovingAverage:
    """An exponential moving average of all weights and statistics of a network (Polyak and Juditsky 1992).

    After step t = 1, 2, ... the average moves to ``d * average + (1 - d) * weights`` with
    ``d = min(decay, (1 + t) / (10 + t))``: the bound lets it forget the random start soon. Integers, such as the
    counters of batch normalisation, are copied.

    Args:
        network: The network that is trained.
        decay: Largest decay of a step, 0..1; 0 keeps the average equal to the weights.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network, self.decay = network, decay
        self.average = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves the average towards the present weights, after optimiser step `step` = 1, 2, ..."""
        decay = min(self.decay, (1 + step) / (10 + step))
        present = self.network.state_dict()
        moving = [name for name, tensor in present.items() if tensor.is_floating_point()]
        move = get_ema_multi_avg_fn(decay)  # all tensors at once, which accelerators do in a few kernels
        move([self.average[name] for name in moving], [present[name] for name in moving], None)
        for name in present.keys() - set(moving):
            self.average[name].copy_(present[name])

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the context the network has the averaged weights."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, tensor in self.network.state_dict().items():
            present = tensor.detach().clone()
            tensor.copy_(self.average[name])
            self.average[name] = present

    def restore(self, average: dict[str, Tensor]) -> None:
        """Takes the average over from a checkpoint."""
        for name, tensor in self.average.items():
            tensor.copy_(average[name])
