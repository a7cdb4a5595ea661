"""Clustering of spatial embeddings against a plain greedy loop in numpy.

    python benchmarks/embedding_clusters.py [--size 2048] [--objects 2500] [--repeats 5]

The outputs are those that a trained network gives for a synthetic field of touching nuclei, with its errors. The loop
is the algorithm as published: each seed is compared with every foreground pixel. Both must find exactly the same
objects. Ours, in one thread, is compiled before; its median is compared with one run of the loop, which takes minutes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

import numpy as np
from numpy.typing import NDArray

from everymask.ops.embedding_clusters import cluster_embeddings

Outputs = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]


def field(size: int, count: int, radius: float = 14.0) -> Outputs:
    """Embedding (2, H, W), logarithm of the scale (2, H, W) and seed scores (H, W) of so many nuclei."""
    generator = np.random.default_rng(0)
    embedding = np.stack(np.mgrid[:size, :size]) + generator.normal(0, 1, (2, size, size))
    log_scale = generator.normal(9, 0.5, (2, size, size))
    seed = generator.uniform(0, 0.3, (size, size))
    margin = int(2 * radius)
    for y, x in generator.uniform(margin, size - margin, (count, 2)):
        own = radius * generator.uniform(0.7, 1.3)
        window = slice(int(y) - margin, int(y) + margin), slice(int(x) - margin, int(x) + margin)
        rows, columns = np.mgrid[window]
        apart = np.hypot(rows - y, columns - x) / own
        inside = apart < 1
        noise = generator.normal(0, 0.2 * own, (2, *apart.shape))
        embedding[(slice(None), *window)][:, inside] = (np.array([y, x])[:, None, None] + noise)[:, inside]
        scale = np.log(np.log(2) * (1023 / own) ** 2) + generator.normal(0, 0.1, (2, *apart.shape))
        log_scale[(slice(None), *window)][:, inside] = scale[:, inside]
        seed[window][inside] = (1 - 0.3 * apart**2 + generator.normal(0, 0.02, apart.shape))[inside]
    return (embedding / 1023).astype(np.float32), log_scale.astype(np.float32), seed.clip(0, 1).astype(np.float32)


def plain_loop(outputs: Outputs) -> NDArray[np.int32]:
    """The greedy loop over all foreground pixels, at the thresholds of the papers."""
    embedding, log_scale, seed = outputs
    inside = seed > 0.5
    places, scales, scores = embedding[:, inside].astype(np.float64), log_scale[:, inside], seed[inside].copy()
    free, labels, count = np.ones(len(scores), bool), np.zeros(len(scores), np.int32), 0
    while True:
        best = int(scores.argmax())
        if scores[best] < 0.9:
            break
        scale = np.exp(scales[:, best, None].astype(np.float64))
        proposal = np.exp(-(scale * (places - places[:, best, None]) ** 2).sum(0)) > 0.5
        new = proposal & free
        if proposal.sum() > 36 and new.sum() > 0.5 * proposal.sum():
            count += 1
            labels[new] = count
        free[proposal] = False
        scores[proposal] = 0
    ids = np.zeros(seed.shape, np.int32)
    ids[inside] = labels
    return ids


def main() -> None:
    """Compare results, then times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--objects", type=int, default=2500)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    outputs = field(options.size, options.objects)
    foreground = int((outputs[2] > 0.5).sum())
    ids, _ = cluster_embeddings(*outputs)
    print(f"{options.size}^2, {foreground} foreground pixels, {ids.max()} objects, load {os.getloadavg()[0]:.1f}")
    times = []
    for _ in range(options.repeats):
        start = time.perf_counter()
        cluster_embeddings(*outputs)
        times.append(time.perf_counter() - start)
    start = time.perf_counter()
    expected = plain_loop(outputs)
    theirs, ours = time.perf_counter() - start, statistics.median(times)
    verdict = "equal" if np.array_equal(ids, expected) else "DIFFERENT"
    print(f"ours {ours * 1e3:.0f} ms   plain loop {theirs * 1e3:.0f} ms   ratio {theirs / ours:.0f}   {verdict}")


if __name__ == "__main__":
    main()
