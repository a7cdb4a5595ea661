"""Decoding where a network's outputs lie on an accelerator: kernels with torch there, or compiled ones on the host.

    python benchmarks/torch_kernels.py [--device cuda] [--size 1024 --repeats 5]

For a synthetic field of touching cells with errors as of a network, prints whether both ways give the same, and the
median times in turns. The compiled kernels (numba; those of Cellpose in all threads) get their arrays from the device
first, and the others send to the host what the next step needs there, so that the times are those of `decode`. On the
CPU the ratios only tell that torch's kernels are not for processors: `decode` takes the compiled ones there.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from cellpose_kernels import cells, prediction
from embedding_clusters import field
from numpy.typing import NDArray
from torch import Tensor

from everymask.ops import (
    embedding_clusters,
    embedding_torch,
    flow_masks,
    flow_torch,
    omnipose_masks,
    omnipose_torch,
    star_torch,
    stars,
)
from everymask.ops.distance import object_probability
from everymask.ops.eikonal import eikonal_distance, omnipose_flow

Arrays = tuple[NDArray[Any], ...]


def on_host(*tensors: Tensor) -> Arrays:
    """Arrays of tensors on any device."""
    return tuple(each.cpu().numpy() for each in tensors)


def cellpose(labels: NDArray[np.int32], device: torch.device) -> tuple[Callable[[], Arrays], Callable[[], Arrays]]:
    """From flow and logit to the label image."""
    flow, logit = (torch.from_numpy(each).to(device) for each in prediction(labels))
    return (
        lambda: (flow_masks.flow_labels(*on_host(flow, logit), parallel=True),),
        lambda: (flow_torch.flow_labels(flow, logit),),
    )


def omnipose(labels: NDArray[np.int32], device: torch.device) -> tuple[Callable[[], Arrays], Callable[[], Arrays]]:
    """From the flow and the regions, which are found on the host, to end points."""
    distance = eikonal_distance(labels)
    errors = np.random.default_rng(0).normal(0, 1, (2, *labels.shape))
    flow = torch.from_numpy((omnipose_flow(labels, distance) + errors).astype(np.float32)).to(device)
    regions, _ = omnipose_masks.foreground(np.where(labels > 0, distance, np.float32(-5)))

    def compiled() -> Arrays:
        converging = omnipose_masks.converging_field(*on_host(flow), regions)
        return (omnipose_masks.suppressed_euler(converging, regions, 24),)

    def with_torch() -> Arrays:
        there = torch.from_numpy(regions).to(device)
        return on_host(omnipose_torch.suppressed_euler(omnipose_torch.converging_field(flow, there), there, 24))

    return compiled, with_torch


def stardist(labels: NDArray[np.int32], device: torch.device) -> tuple[Callable[[], Arrays], Callable[[], Arrays]]:
    """From probability and distances on a grid of 2 to candidates."""
    probability = torch.from_numpy(object_probability(labels)[::2, ::2].copy()).to(device)
    distances = torch.from_numpy(stars.star_distances(labels, 32, 2).transpose(2, 0, 1).copy()).to(device)

    def compiled() -> Arrays:
        scores, rays = on_host(probability, distances)
        return stars.candidates(scores, rays.transpose(1, 2, 0), 0.5, grid=2)

    return compiled, lambda: on_host(*star_torch.candidates(probability, distances, 0.5, grid=(2, 2)))


def embedding(labels: NDArray[np.int32], device: torch.device) -> tuple[Callable[[], Arrays], Callable[[], Arrays]]:
    """From embeddings, scales and seed scores to the label image, for as many nuclei."""
    outputs = [torch.from_numpy(each).to(device) for each in field(len(labels), int(labels.max()))]
    return (
        lambda: embedding_clusters.cluster_embeddings(*on_host(*outputs)),
        lambda: embedding_torch.cluster_embeddings(*outputs),
    )


def main() -> None:
    """Compare results, then times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, help="default: an accelerator if there is one")
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = options.device or found or torch.device("cpu")
    labels = cells(options.size, options.size**2 // 840)
    print(f"{options.size}^2, {labels.max()} cells, {device}, load {os.getloadavg()[0]:.1f}")
    for name, case in (
        ("cellpose", cellpose),
        ("omnipose", omnipose),
        ("stardist", stardist),
        ("embedding", embedding),
    ):
        compiled, with_torch = case(labels, device)
        same = [(a == b).mean() for a, b in zip(compiled(), with_torch(), strict=True)]
        times: dict[Callable[[], Arrays], list[float]] = {compiled: [], with_torch: []}
        for _ in range(options.repeats):
            for way, seconds in times.items():
                start = time.perf_counter()
                way()
                seconds.append(time.perf_counter() - start)
        first, second = (statistics.median(each) * 1e3 for each in times.values())
        print(
            f"{name:10s} compiled {first:8.1f} ms   torch {second:8.1f} ms   ratio {first / second:6.2f}   "
            f"equal in {min(same):.4%}"
        )


if __name__ == "__main__":
    main()
