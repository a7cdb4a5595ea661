"""Speed of the metrics against the programs whose figures they equal.

    python benchmarks/metrics.py [--side 8192] [--objects 10000] [--official-side 8192] [--repeat 3]

Both sides get the same arrays, and the results are compared before any time is printed. Ours are timed after one run
that compiles; the official programs as well.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
from numba import config
from numpy.typing import NDArray

from everymask.metrics.matching import MatchingMetric
from everymask.metrics.semantic import confusion_matrix
from everymask.types import Categories, LabelMap, Segments

THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def best_seconds(run: Callable[[], object], repeat: int) -> float:
    """The shortest of `repeat` runs, in seconds."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def disks(side: int, objects: int, seed: int) -> NDArray[np.int32]:
    """A (side, side) label map of about `objects` disks near the points of a grid; the seed moves and resizes them."""
    generator = np.random.default_rng(seed)
    number = round(objects**0.5)
    pitch = side / number
    ids = np.zeros((side, side), np.int32)
    for i, (row, column) in enumerate(np.ndindex(number, number), 1):
        radius = pitch * generator.uniform(0.25, 0.5)
        y, x = pitch * (np.array([row, column]) + 0.5 + generator.uniform(-0.2, 0.2, 2))
        top, left = max(int(y - radius), 0), max(int(x - radius), 0)
        window = ids[top : int(y + radius) + 2, left : int(x + radius) + 2]
        rows, columns = np.ogrid[: window.shape[0], : window.shape[1]]
        window[(rows + top - y) ** 2 + (columns + left - x) ** 2 <= radius**2] = i
    return ids


def matching(side: int, objects: int, official_side: int, repeat: int) -> None:
    """Prints the time of `MatchingMetric` and of `stardist.matching` at seven thresholds."""
    from stardist.matching import matching as official

    def segments(ids: NDArray[np.int32]) -> Segments:
        return Segments(ids.shape, np.ones(ids.max(), int), LabelMap(ids))

    def ours(truth: Segments, prediction: Segments) -> dict[str, float]:
        metric = MatchingMetric(Categories(["cell"]), THRESHOLDS)
        metric.update(truth, prediction)
        return metric.compute()

    warm = disks(64, 16, 0), disks(64, 16, 1)
    ours(*map(segments, warm))
    official(*warm, thresh=THRESHOLDS)
    for width in sorted({official_side, side}):
        count = round(objects * (width / side) ** 2)
        pair = disks(width, count, 0), disks(width, count, 1)
        both = segments(pair[0]), segments(pair[1])
        threads = config.NUMBA_NUM_THREADS
        mine = best_seconds(lambda: ours(*both), repeat)  # noqa: B023 - called at once
        config.NUMBA_NUM_THREADS = 1
        alone = best_seconds(lambda: ours(*both), repeat)  # noqa: B023 - called at once
        config.NUMBA_NUM_THREADS = threads
        print(
            f"matching, {count} objects, {width} x {width}, {len(THRESHOLDS)} thresholds: everymask {mine:.3f} s with "
            f"{threads} threads, {alone:.3f} s with one",
            end="",
        )
        if width > official_side:
            print(" (stardist not run at this size)")
            continue
        start = time.perf_counter()
        references = official(*pair, thresh=THRESHOLDS)
        theirs = time.perf_counter() - start
        figures = ours(*both)
        for reference in references:
            key = f"{reference.thresh:g}"
            assert [figures[f"{each}@{key}"] for each in ("tp", "fp", "fn")] == [
                reference.tp,
                reference.fp,
                reference.fn,
            ]
        print(
            f"; stardist (one thread) {theirs:.2f} s: {theirs / mine:.0f} times faster, {theirs / alone:.0f} times on "
            "one thread, same counts"
        )


def confusion(repeat: int) -> None:
    """Prints the time of `confusion_matrix` on a street scene's size, and of `torch.bincount` and `numpy.bincount`."""
    import torch

    generator = np.random.default_rng(0)
    blocks = generator.integers(0, 19, (32, 64)).astype(np.uint8)
    truth = np.ascontiguousarray(np.kron(blocks, np.ones((32, 32), np.uint8)))
    prediction = np.roll(truth, (3, 5), axis=(0, 1))
    # One pixel in a hundred is wrong by itself, so that runs are as short as those of real predictions.
    lone = generator.random(truth.shape) < 0.01
    prediction[lone] = generator.integers(0, 19, int(lone.sum()))

    def numpy_bincount() -> NDArray[np.int64]:
        pairs = truth.ravel().astype(np.int64) * 19 + prediction.ravel()
        return np.bincount(pairs, minlength=361).reshape(19, 19)

    def torch_bincount() -> NDArray[np.int64]:
        pairs = torch.from_numpy(truth).flatten().long() * 19 + torch.from_numpy(prediction).flatten()
        return torch.bincount(pairs, minlength=361).reshape(19, 19).numpy()

    found = confusion_matrix(truth, prediction, 19)[:, :-1]
    mine = best_seconds(lambda: confusion_matrix(truth, prediction, 19), 3 * repeat)
    for name, other in (("numpy.bincount", numpy_bincount), ("torch.bincount", torch_bincount)):
        assert np.array_equal(found, other())
        theirs = best_seconds(other, 3 * repeat)
        print(
            f"confusion matrix, 1024 x 2048, 19 classes: everymask {1000 * mine:.2f} ms, "
            f"{name} {1000 * theirs:.2f} ms, {theirs / mine:.1f} times faster, same matrix"
        )


def main() -> None:
    """Runs all comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=8192, help="width and height of the image")
    parser.add_argument("--objects", type=int, default=10_000, help="objects in it")
    parser.add_argument(
        "--official-side",
        type=int,
        default=8192,
        help="largest width at which stardist runs too, with as many objects per area",
    )
    parser.add_argument("--repeat", type=int, default=3, help="runs, of which the shortest counts")
    arguments = parser.parse_args()
    confusion(arguments.repeat)
    matching(arguments.side, arguments.objects, arguments.official_side, arguments.repeat)


if __name__ == "__main__":
    main()
