"""What the processes of a distributed training must know of one another's batches."""

from __future__ import annotations

import torch
from torch import distributed


def mean_count(count: int, device: torch.device) -> float:
    """A count of this process's batch, such as that of its objects, averaged over the processes; at least 1.

    Distributed training averages the gradients of the processes. A loss that is a sum over objects, divided by this
    number, then is the sum over the objects of all processes, divided by their number, as if the batch were one
    (official program of DETR, ``SetCriterion.forward``). Divided by each process's own, objects would count for more
    where there are few.

    Every process must call it as often as the others. Without a gradient, as in validation, where they need not take
    equally many steps, the count is this process's own.

    Args:
        count: Of this process.
        device: On which the processes exchange it: that of the network.
    """
    if torch.is_grad_enabled() and distributed.is_available() and distributed.is_initialized():
        counts = torch.tensor(float(count), device=device)
        distributed.all_reduce(counts)
        return max(1.0, float(counts) / distributed.get_world_size())
    return max(1.0, float(count))
