"""Omnipose kernels against the official program, or without it against plain numpy and scikit-learn.

    python benchmarks/omnipose_kernels.py [--size 1024] [--repeats 5] [--peer PEER/bin/python]

Prints the times of both, measured in turns, and their ratio, on a synthetic field of touching rods: the targets
(distance and flow of a label image) and the decoding of these fields to objects. Objects are compared in the same run.
Ours uses one thread.

The official program may be used for no commercial purpose and conflicts with other packages, so it is no dependency:
whoever may use it installs it in an environment of its own (``python -m venv peer; peer/bin/pip install omnipose``).
It runs in a process that waits while ours is measured, on the CPU and as many threads as torch takes
(set OMP_NUM_THREADS=1 to compare one with one).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Run = Callable[[], tuple[float, NDArray[Any]]]


def rods(size: int, seed: int = 0) -> NDArray[np.int32]:
    """(size, size) labels: rods 9 pixels wide and 20 to 60 long in heaps, about one for each 600 pixels."""
    random = np.random.default_rng(seed)
    labels = np.zeros((size, size), np.int32)
    placed = 0
    for _ in range(size * size // 250):
        y, x = random.uniform(0, size, 2)
        angle, half = random.uniform(0, np.pi), random.uniform(6, 26)
        top, left = max(int(y) - 32, 0), max(int(x) - 32, 0)
        view = labels[top : top + 65, left : left + 65]
        rows, columns = np.indices(view.shape)
        along = (columns + left - x) * np.cos(angle) + (rows + top - y) * np.sin(angle)
        across = (rows + top - y) * np.cos(angle) - (columns + left - x) * np.sin(angle)
        inside = np.hypot(along - np.clip(along, -half, half), across) < 4.6
        if (view[inside] > 0).mean() < 0.05:
            placed += 1
            view[inside & (view == 0)] = placed
    return labels


def timed(function: Callable[[], NDArray[Any]]) -> tuple[float, NDArray[Any]]:
    """Seconds and result of a call."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def official(folder: Path) -> None:
    """Measures the official program whenever a line comes in; run by its own Python."""
    import torch
    from omnipose import core

    saved = np.load(folder / "given.npz")
    labels, device = saved["labels"], torch.device("cpu")

    def targets() -> NDArray[Any]:
        found = core.labels_to_flows([labels], use_gpu=False, device=device, omni=True, dim=2)
        return np.asarray(found[0])

    def decoding() -> NDArray[Any]:
        found = core.compute_masks(
            saved["flow"], saved["distance"], mask_threshold=0, omni=True, dim=2, nclasses=3, min_size=0,
            use_gpu=False, device=device, cluster=True,
        )  # fmt: skip
        return np.asarray(found[0])

    for line in sys.stdin:
        seconds, result = timed({"targets": targets, "decoding": decoding}[line.strip()])
        np.save(folder / "found.npy", result)
        print("\n@" + json.dumps(seconds), flush=True)  # the program itself prints, too


def with_peer(python: str, folder: Path) -> tuple[Callable[[str], Run], subprocess.Popen[str]]:
    """Runs of the official program in another Python."""
    process = subprocess.Popen(
        [python, "-W", "ignore", __file__, "--official", str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("the official program has no pipes")
    put, get = process.stdin, process.stdout

    def make(name: str) -> Run:
        def run() -> tuple[float, NDArray[Any]]:
            put.write(name + "\n")
            put.flush()
            for line in get:
                if line.startswith("@"):
                    return float(json.loads(line[1:])), np.load(folder / "found.npy")
            raise SystemExit(f"{python} cannot run the official program; try: {python} -c 'from omnipose import core'")

        return run

    return make, process


def plain_distance(labels: NDArray[np.int32]) -> NDArray[np.float32]:
    """The iteration of `eikonal_distance` in numpy, all objects at once."""
    from scipy import ndimage

    edges = np.ones(labels.shape, bool)
    for axis in (0, 1):
        moved = np.diff(labels, axis=axis) == 0
        edges &= np.insert(moved, 0, True, axis) & np.insert(moved, moved.shape[axis], True, axis)
    rounds = int(np.ceil(1.16 * (ndimage.distance_transform_edt(edges & (labels > 0)).max() + 1))) + 1
    height, width = labels.shape
    framed = np.pad(labels, 1, mode="edge")
    offsets = [(0, 1), (1, 0), (1, 1), (1, -1)]

    def there(values: NDArray[Any], y: int, x: int) -> NDArray[Any]:
        return values[1 + y : 1 + y + height, 1 + x : 1 + x + width]

    same = {(s * y, s * x): there(framed, s * y, s * x) == labels for y, x in offsets for s in (1, -1)}
    values = np.zeros(labels.shape, np.float32)
    for _ in range(rounds):
        mirrored = np.pad(values, 1, mode="edge")
        least = [
            np.minimum(there(mirrored, y, x) * same[y, x], there(mirrored, -y, -x) * same[-y, -x]) for y, x in offsets
        ]
        groups = []
        for a, b, square in ((least[0], least[1], 1), (least[2], least[3], 2)):
            groups.append((a + b + np.sqrt(np.maximum(0, 2 * square - (a - b) ** 2))) / 2)
        values = np.where(labels > 0, np.sqrt(groups[0] * groups[1]), 0).astype(np.float32)
    return values


def agreement(truth: NDArray[Any], found: NDArray[Any]) -> float:
    """TP / (TP + FP + FN) of objects at an IoU of 0.9."""
    from everymask.metrics.matching import MatchingMetric
    from everymask.types import Categories, Segments

    metric = MatchingMetric(Categories(["object"]), (0.9,))
    metric.update(Segments.from_label_map(truth), Segments.from_label_map(found), "image")
    return float(metric.compute()["accuracy@0.9"])


def main() -> None:
    """Run all comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peer", default="")
    parser.add_argument("--official", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.official:
        official(Path(given.official))
        return
    from everymask.ops.dbscan import EPSILON, NEIGHBOURS, dbscan
    from everymask.ops.eikonal import eikonal_distance, mean_diameter, omnipose_flow
    from everymask.ops.omnipose_masks import converging_field, foreground, omnipose_masks, suppressed_euler

    labels = rods(given.size)
    distance = eikonal_distance(labels)
    flow = omnipose_flow(labels, distance)
    field = np.where(labels > 0, distance, -mean_diameter(distance) / 2).astype(np.float32)
    regions, _ = foreground(field)
    ends = suppressed_euler(converging_field(flow, regions), regions, 24)
    print(f"{given.size}^2, {labels.max()} rods, {(labels > 0).mean():.0%} foreground, load {os.getloadavg()[0]:.1f}")

    def ours_targets() -> NDArray[Any]:
        found = eikonal_distance(labels)
        return np.concatenate([omnipose_flow(labels, found), found[None]])

    def ours_decoding() -> NDArray[Any]:
        return omnipose_masks(flow, field)

    pairs: list[tuple[str, Run, Run, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        process = None
        if given.peer:
            np.savez(Path(folder) / "given.npz", labels=labels, flow=flow, distance=field)
            make, process = with_peer(given.peer, Path(folder))
            pairs.append(("targets", lambda: timed(ours_targets), make("targets"), "official"))
            pairs.append(("decoding", lambda: timed(ours_decoding), make("decoding"), "official"))
        else:
            from sklearn.cluster import DBSCAN

            other = DBSCAN(eps=EPSILON, min_samples=NEIGHBOURS)
            pairs.append(("distance", lambda: timed(lambda: eikonal_distance(labels)),
                          lambda: timed(lambda: plain_distance(labels)), "numpy"))  # fmt: skip
            pairs.append(("dbscan", lambda: timed(lambda: dbscan(ends)),
                          lambda: timed(lambda: other.fit(ends).labels_), "scikit-learn"))  # fmt: skip
        for name, ours, theirs, whose in pairs:
            _, mine = ours()
            _, other_result = theirs()
            if name == "targets":
                difference = np.abs(mine[-1] - other_result[-1])[labels > 0]
                verdict = f"distances within 0.05 in {(difference < 0.05).mean():.2%} of the pixels"
            elif name == "decoding":
                verdict = f"accuracy at IoU 0.9: ours {agreement(labels, mine):.3f}, theirs "
                verdict += f"{agreement(labels, other_result):.3f}"
            elif name == "distance":
                verdict = f"largest difference {np.abs(mine - other_result).max():.2g}"
            else:
                verdict = "equal" if np.array_equal(mine, other_result) else "DIFFERENT"
            times = [(ours()[0], theirs()[0]) for _ in range(given.repeats)]
            one, two = (statistics.median(each) * 1e3 for each in zip(*times, strict=True))
            print(f"{name:10s} ours {one:9.1f} ms   {whose} {two:9.1f} ms   ratio {two / one:6.1f}   {verdict}")
        if process is not None and process.stdin is not None:
            process.stdin.close()
            process.wait()


if __name__ == "__main__":
    main()
