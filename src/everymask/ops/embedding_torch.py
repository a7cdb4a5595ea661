"""The greedy clustering of embeddings where these lie on an accelerator: `embedding_clusters`, sorted with torch.

The greedy loop itself is short, one seed after the other, and for a processor. What takes most of the time is to find
the foreground, to rank the seeds and to sort the embeddings into the grid: that is done on the accelerator, and what
travels are the embeddings of the foreground and the scales of possible seeds.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from everymask.errors import InputError
from everymask.ops.embedding_clusters import _REACH, _cluster


def cluster_embeddings(
    embedding: Tensor,
    log_scale: Tensor,
    seed: Tensor,
    foreground: float = 0.5,
    lowest: float = 0.9,
    smallest: int = 36,
    overlap: float = 0.5,
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Objects by greedy clustering, as `everymask.ops.embedding_clusters.cluster_embeddings`.

    Args:
        embedding: (2, H, W) or (3, Z, H, W) where each pixel says that its centre is, in any unit.
        log_scale: The same shape: logarithm of s, in one over the square of that unit.
        seed: (H, W) or (Z, H, W) scores, 0..1.
        foreground: Pixels with a score above it can belong to objects.
        lowest: Least score of a seed.
        smallest: Objects have more pixels than this.
        overlap: Share of a proposal's pixels that must not be clustered yet, 0..1.

    Returns:
        On the host: labels 1..N (shape of `seed`) in the order of falling score, 0 for background; and the score (N,)
        of the seed of each object.

    Raises:
        InputError: The shapes do not fit.
    """
    axes = seed.ndim
    if axes not in (2, 3) or embedding.shape != (axes, *seed.shape) or log_scale.shape != embedding.shape:
        raise InputError(
            f"embedding, log_scale and seed have shapes {tuple(embedding.shape)}, {tuple(log_scale.shape)} and "
            f"{tuple(seed.shape)}; expected (2, H, W), (2, H, W) and (H, W), or (3, Z, H, W), (3, Z, H, W) and "
            "(Z, H, W)"
        )
    ids = np.zeros(tuple(seed.shape), np.int32)
    flat, places, logs = seed.flatten(), embedding.flatten(1), log_scale.flatten(1)
    pixels = ((flat > foreground) & places.isfinite().all(0)).nonzero()[:, 0]
    places, scores = places[:, pixels], flat[pixels].double()
    candidates = ((scores >= lowest) & scores.isfinite() & logs[:, pixels].isfinite().all(0)).nonzero()[:, 0]
    if not len(candidates):
        return ids, np.zeros(0)
    candidates = candidates[scores[candidates].sort(descending=True, stable=True).indices]
    logs = logs[:, pixels[candidates]]
    low, cells, side = _grid(places, logs)
    order, starts = _sort_into_grid(places, low, cells, side)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    labels, seeds = _cluster(
        _on_host(places[:, order]).T.copy(),
        np.arange(len(order)),
        starts.cpu().numpy(),
        rank[candidates].cpu().numpy(),
        _on_host(logs),
        low,
        cells,
        side,
        smallest,
        overlap,
    )
    pixels = pixels[order]
    ids.ravel()[pixels.cpu().numpy()] = labels
    return ids, flat[pixels[torch.from_numpy(seeds).to(pixels.device)]].double().cpu().numpy()


def _on_host(values: Tensor) -> NDArray[np.float64]:
    """(3, P) of (axes, P), which travel as they are; the first of three is 0 where there are two axes only."""
    chosen = np.zeros((3, values.shape[1]))
    chosen[3 - len(values) :] = values.cpu().numpy()
    return chosen


def _grid(places: Tensor, logs: Tensor) -> tuple[NDArray[np.float64], NDArray[np.int64], float]:
    """Lower corner (3,), number of cells (3,) and side of a grid around all embeddings (axes, M).

    Cells are about as large as half the reach of a typical seed, unless that makes more cells than there are pixels;
    the objects do not depend on it.
    """
    typical = logs.sort(dim=1).values[:, logs.shape[1] // 2]
    bounds = _on_host(torch.stack([places.amin(1), places.amax(1), typical], dim=1))
    least, most, usual = np.ascontiguousarray(bounds.T)
    extent = most - least
    used = extent > 0
    if not used.any():
        return least, np.ones(3, np.int64), 1.0
    reach = math.sqrt(_REACH) * math.exp(-0.5 * float(np.mean(usual[used].clip(-600, 600))))
    side = max(0.5 * reach, float(extent.max()) / 2**20)
    while np.prod(np.floor(extent / side) + 1) > places.shape[1] + 64:
        side *= 1.25
    return least, np.floor(extent / side).astype(np.int64) + 1, side


def _sort_into_grid(
    places: Tensor, low: NDArray[np.float64], cells: NDArray[np.int64], side: float
) -> tuple[Tensor, Tensor]:
    """Order (M,) of the embeddings (axes, M) by cell, and where each cell starts in it."""
    # By a tensor: torch multiplies by the reciprocal of a number, which is rounded otherwise than the kernel's cells.
    width = torch.tensor(side, dtype=torch.float64, device=places.device)
    cell = torch.zeros_like(places[0], dtype=torch.int64)
    for axis, values in enumerate(places, 3 - len(places)):
        along = ((values.double() - float(low[axis])) / width).clamp(0, float(cells[axis] - 1))
        cell = cell * int(cells[axis]) + along.long()
    cell, order = cell.sort(stable=True)
    return order, torch.searchsorted(cell, torch.arange(int(cells.prod()) + 1, device=cell.device))
