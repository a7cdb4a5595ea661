"""Speed of the confusion matrix of semantic segmentation against hotcoco, a program in Rust.

    python benchmarks/confusion.py [--rounds 100]

Both get the same maps; their matrices are compared with numpy's before any time is printed. The programs run in turns,
so that a busy machine slows both alike, and the shortest of all rounds counts. (`metrics.py` has numpy and torch.)
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from everymask.metrics.semantic import SemanticMetric
from everymask.ops.confusion import confusion_matrix
from everymask.types import Categories, Category, Segments

Run = Callable[[], object]


def scene(size: tuple[int, int], classes: int, block: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Truth and prediction (H, W): blocks of one class; the prediction is moved, and a pixel in a hundred is wrong."""
    generator = np.random.default_rng(0)
    blocks = generator.integers(0, classes, (size[0] // block + 1, size[1] // block + 1)).astype(np.uint8)
    truth = np.kron(blocks, np.ones((block, block), np.uint8))[: size[0], : size[1]].copy()
    prediction = np.roll(truth, (3, 5), axis=(0, 1))
    lone = generator.random(size) < 0.01
    prediction[lone] = generator.integers(0, classes, int(lone.sum()))
    return truth, prediction


def noise(size: tuple[int, int], classes: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The worst case: no pixel agrees with its neighbours."""
    truth, prediction = np.random.default_rng(1).integers(0, classes, (2, *size)).astype(np.uint8)
    return truth, prediction


def best_milliseconds(runs: dict[str, Run], rounds: int) -> dict[str, float]:
    """The shortest time of each program; they take turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: min(values) for name, values in times.items()}


def compare(title: str, truth: NDArray[np.uint8], prediction: NDArray[np.uint8], classes: int, rounds: int) -> None:
    """Prints the times for one pair of maps, and how they compare with ours."""
    from hotcoco import metrics, semantic

    pairs = truth.ravel().astype(np.int64) * classes + prediction.ravel()
    expected = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    categories = Categories([Category(i, f"class {i}") for i in range(classes)])
    metric, evaluator = SemanticMetric(categories), semantic.SemanticEval(classes)
    segments = Segments.from_semantic_map(truth), Segments.from_semantic_map(prediction)
    matrices: dict[str, Callable[[], NDArray[np.int64]]] = {
        "everymask": lambda: confusion_matrix(truth, prediction, classes)[:, :-1],
        "hotcoco pixel_confusion": lambda: np.asarray(metrics.pixel_confusion(truth, prediction, classes)),
    }
    for name, run in matrices.items():
        assert np.array_equal(run(), expected), name
    updates: dict[str, Run] = {
        "everymask update_maps": lambda: metric.update_maps(truth, prediction),
        "everymask update (segments)": lambda: metric.update(*segments),
        "hotcoco SemanticEval.update": lambda: evaluator.update(truth, prediction),
    }
    for run in updates.values():
        run()
    evaluator.update(truth, prediction)
    assert np.array_equal(metric.matrix[:-1, :-2], evaluator.confusion())
    print(f"{title}, {truth.shape[0]} x {truth.shape[1]} pixels, {classes} classes; same matrices")
    for runs in (dict(matrices), updates):
        times = best_milliseconds(runs, rounds)
        ours = next(iter(times.values()))
        for name, value in times.items():
            print(f"  {name:28} {value:7.2f} ms  {value / ours:5.1f} x")


def main() -> None:
    """Runs all comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100, help="runs of each program, of which the shortest counts")
    rounds = parser.parse_args().rounds
    compare("street scene", *scene((1024, 2048), 19, 32), 19, rounds)
    compare("indoor scene", *scene((512, 683), 150, 24), 150, rounds)
    compare("noise", *noise((1024, 2048), 19), 19, rounds)


if __name__ == "__main__":
    main()
