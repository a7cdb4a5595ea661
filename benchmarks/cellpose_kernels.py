"""Cellpose kernels against the official program, which has an environment of its own.

    python -m venv peer && peer/bin/pip install "cellpose<4"
    python benchmarks/cellpose_kernels.py --peer peer/bin/python [--size 2048 --cells 5000 --repeats 3 --threads 2]
    python benchmarks/cellpose_kernels.py --memory

Prints, for a synthetic field of touching cells of about 27 pixels, how far the flow targets agree and how many objects
of both label images match, then the median times in turns. The flow that is decoded is that of the cells with smooth
errors as a network makes them. Cellpose 4 has only code meant for accelerators: it takes minutes for a field of this
size (try ``--size 1024 --cells 1200``) and mixes the flows of touching cells. ``--memory`` prints the peak memory of
decoding 8192 x 8192 pixels with 10,000 cells, beyond the inputs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from peer import Peer
from scipy import ndimage

from everymask.metrics.matching import MatchingMetric
from everymask.ops.flow_masks import flow_labels
from everymask.ops.flow_targets import FLOW_SCALE, flow_targets
from everymask.types import Categories, LabelMap, Segments


def cells(size: int, count: int, scale: float = 1.0, seed: int = 0) -> NDArray[np.int32]:
    """(size, size) labels of up to that many ellipses with radii of 11 to 17 pixels times `scale`, many touching."""
    generator = np.random.default_rng(seed)
    labels = np.zeros((size, size), np.int32)
    half = int(17 * scale) + 1
    placed = 0
    for _ in range(60 * count):
        if placed == count:
            break
        y, x = generator.uniform(half + 1, size - half - 2, 2)
        first, second = generator.uniform(12, 17) * scale, generator.uniform(11, 14) * scale
        angle = generator.uniform(0, np.pi)
        top, left = int(y) - half, int(x) - half
        window = np.s_[top : top + 2 * half + 2, left : left + 2 * half + 2]
        rows, columns = np.mgrid[window]
        along = (columns - x) * np.cos(angle) + (rows - y) * np.sin(angle)
        across = (columns - x) * np.sin(angle) - (rows - y) * np.cos(angle)
        inside = (along / first) ** 2 + (across / second) ** 2 < 1
        view = labels[window]
        if (view[inside] > 0).mean() < 0.15:
            placed += 1
            view[inside & (view == 0)] = placed
    return labels


def prediction(labels: NDArray[np.int32], strength: float = 1.0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Flow (2, H, W) with smooth errors of that standard deviation, of 5, and logit (H, W)."""
    generator = np.random.default_rng(1)
    flow = FLOW_SCALE * flow_targets(labels)
    for component in flow:
        errors = ndimage.gaussian_filter(generator.standard_normal(labels.shape, np.float32), 1)
        component += strength * errors / errors.std()
    return flow, np.where(labels > 0, np.float32(4), np.float32(-4))


def matched(truth: NDArray[np.int32], found: NDArray[np.int32]) -> str:
    """Accuracy of one label image against another."""
    metric = MatchingMetric(Categories(("cell",)), thresholds=(0.5, 0.7, 0.9))
    first, second = (
        Segments(ids.shape, np.zeros(ids.max(), np.int64), LabelMap(ids), score=np.ones(ids.max()))
        for ids in (truth, found)
    )
    metric.update(first, second)
    figures = metric.compute()
    return ", ".join(f"{name} {value:.4f}" for name, value in figures.items() if name.startswith("accuracy"))


def compare(name: str, ours: Callable[[], Any], official: Callable[[], dict[str, Any]], repeats: int) -> None:
    """Prints the median times of both, measured in turns."""
    mine: list[tuple[float, float]] = []
    theirs: list[tuple[float, float]] = []
    for _ in range(repeats):
        start, busy = time.perf_counter(), time.process_time()
        ours()
        mine.append((time.perf_counter() - start, time.process_time() - busy))
        theirs.append(tuple(official()["seconds"]))
    for kind, column in (("wall", 0), ("processor", 1)):
        first, second = (statistics.median(times[column] for times in each) for each in (mine, theirs))
        print(f"{name:24s} {kind:9s} ours {first:8.3f} s   official {second:8.3f} s   ratio {second / first:6.1f}")


def against_official(arguments: argparse.Namespace) -> None:
    """Compares results, then times."""
    labels = cells(arguments.size, arguments.cells)
    touching = ndimage.maximum_filter(labels, 5) != -ndimage.maximum_filter(-np.where(labels > 0, labels, 2**30), 5)
    flow, logit = prediction(labels)
    peer = Peer(arguments.peer, "cellpose_kernels_peer.py")
    about = peer.ask("about", threads=arguments.threads)
    parallel = arguments.threads > 1
    print(
        f"cellpose {about['version']}, {arguments.size} x {arguments.size} pixels, {labels.max()} cells, "
        f"{arguments.threads} threads, load {os.getloadavg()[0]:.1f}"
    )
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{name}.npy" for name in ("labels", "flow", "logit", "targets", "masks")}
        for name, array in (("labels", labels), ("flow", flow), ("logit", logit)):
            np.save(paths[name], array)

        def official_targets() -> dict[str, Any]:
            return peer.ask("targets", labels=paths["labels"], out=paths["targets"])

        def official_labels(flow_threshold: float = 0.4) -> dict[str, Any]:
            files = {name: paths[name] for name in ("flow", "logit")}
            return peer.ask("labels", **files, flow_threshold=flow_threshold, out=paths["masks"])

        official_targets()
        ours = flow_targets(labels)
        cosine = (ours * np.load(paths["targets"])).sum(axis=0)
        moving = np.any(ours != 0, axis=0)
        for name, where in (("far from other cells", moving & ~touching), ("all", moving)):
            print(
                f"cosine of flow targets, {name}: mean {cosine[where].mean():.6f}, "
                f"above 0.999 in {(cosine[where] > 0.999).mean():.4%} of pixels"
            )
        official_labels()
        theirs = np.load(paths["masks"])
        found = flow_labels(flow, logit, parallel=parallel)
        print(f"objects found: {found.max()}, officially {theirs.max()}; {matched(theirs, found)}")
        compare("targets", lambda: flow_targets(labels, parallel=parallel), official_targets, arguments.repeats)
        compare("decoding", lambda: flow_labels(flow, logit, parallel=parallel), official_labels, arguments.repeats)
        compare(
            "decoding without check",
            lambda: flow_labels(flow, logit, flow_threshold=0, parallel=parallel),
            lambda: official_labels(0),
            arguments.repeats,
        )
    peer.close()


def peak() -> int:
    """Largest resident memory in bytes since the last `forget_peak` (Linux)."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024


def memory() -> None:
    """Prints peak memory and time of decoding a large image."""
    part = cells(2048, 625, scale=2)
    labels = np.zeros((8192, 8192), np.int32)
    for n in range(16):
        view = labels[n // 4 * 2048 : (n // 4 + 1) * 2048, n % 4 * 2048 : (n % 4 + 1) * 2048]
        view[:] = np.where(part > 0, part + n * int(part.max()), 0)
    small = flow_targets(part)
    flow = np.tile(FLOW_SCALE * small, (1, 4, 4))
    logit = np.where(labels > 0, np.float32(4), np.float32(-4))
    flow_labels(flow[:, :64, :64], logit[:64, :64])  # compiles
    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    start = time.perf_counter()
    found = flow_labels(flow, logit, parallel=True)
    seconds = time.perf_counter() - start
    print(
        f"8192 x 8192, {labels.max()} cells, {(labels > 0).mean():.0%} foreground: "
        f"{found.max()} found in {seconds:.1f} s; "
        f"peak {(peak() - before) / labels.nbytes:.2f} times the label image beyond the inputs"
    )


def main() -> None:
    """Run the comparison, or measure memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="interpreter of the environment with cellpose")
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--cells", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="of both programs; ours uses one or all")
    parser.add_argument("--memory", action="store_true")
    arguments = parser.parse_args()
    if arguments.memory:
        memory()
    elif arguments.peer:
        against_official(arguments)
    else:
        parser.error("give --peer or --memory")


if __name__ == "__main__":
    main()
