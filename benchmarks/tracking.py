"""Speed of the cell tracking measures against `py-ctcmetrics`, whose figures they equal.

    python benchmarks/tracking.py [--side 512] [--cells 200] [--frames 40] [--repeat 3]

Both read the same folders (a made-up sequence with its truth and results) and compute SEG, DET, TRA, LNK, CT, TF, BC
and CCA, one after the other in one process. The figures are compared before a time is printed. Ours are timed after a
run that compiles.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import time
from pathlib import Path

import numpy as np
import tifffile

from everymask.formats import open_dataset, open_predictions
from everymask.metrics.evaluate import evaluate

METRICS = ["Valid", "DET", "SEG", "TRA", "LNK", "CT", "TF", "BC", "CCA"]


def make(folder: Path, side: int, cells: int, frames: int) -> None:
    """Disks that wander; in the results every tenth is lost, and tracks break at every fifteenth frame."""
    generator = np.random.default_rng(0)
    places = generator.uniform(10, side - 10, (cells, 2))
    rows, columns = np.mgrid[:side, :side]
    period = 15
    for kind in ("01_GT/SEG/man_seg", "01_GT/TRA/man_track", "01_RES/mask"):
        (folder / kind).parent.mkdir(parents=True, exist_ok=True)
    lines: dict[str, dict[int, list[int]]] = {"truth": {}, "results": {}}
    for frame in range(frames):
        places = np.clip(places + generator.normal(0, 1, places.shape), 10, side - 10)
        truth, results = np.zeros((2, side, side), np.uint16)
        for number, (y, x) in enumerate(places, 1):
            window = (slice(int(y) - 9, int(y) + 10), slice(int(x) - 9, int(x) + 10))
            disk = (rows[window] - y) ** 2 + (columns[window] - x) ** 2
            truth[window][disk < 60] = number
            if generator.random() > 0.1:
                results[window][disk < generator.uniform(30, 70)] = number + cells * (frame // period)
        for name, labels in (("truth", truth), ("results", results)):
            for label in np.unique(labels[labels > 0]).tolist():
                lines[name].setdefault(label, []).append(frame)
        tifffile.imwrite(folder / f"01_GT/SEG/man_seg{frame:03d}.tif", truth)
        tifffile.imwrite(folder / f"01_GT/TRA/man_track{frame:03d}.tif", truth)
        tifffile.imwrite(folder / f"01_RES/mask{frame:03d}.tif", results)
    # A result has no gaps: after one, the label goes on as another track with the first as its parent.
    following = max(lines["results"]) + 1
    tracks: list[tuple[int, int, int, int]] = []
    renamed: dict[int, dict[int, int]] = {}
    for label, seen in lines["results"].items():
        parent, begin, name = 0, seen[0], label
        for before, after in zip(seen, [*seen[1:], -1], strict=True):
            renamed.setdefault(before, {})[label] = name
            if after != before + 1:
                tracks.append((name, begin, before, parent))
                parent, begin, name = name, after, following
                following += 1
    for frame in range(frames):
        path = folder / f"01_RES/mask{frame:03d}.tif"
        labels = tifffile.imread(path)
        table = np.zeros(following, np.uint16)
        for label, name in renamed.get(frame, {}).items():
            table[label] = name
        tifffile.imwrite(path, table[labels])
    truth_lines = [f"{label} {seen[0]} {seen[-1]} 0\n" for label, seen in lines["truth"].items()]
    (folder / "01_GT/TRA/man_track.txt").write_text("".join(truth_lines))
    (folder / "01_RES/res_track.txt").write_text("".join(f"{a} {b} {c} {d}\n" for a, b, c, d in tracks))


def ours(folder: Path) -> dict[str, float]:
    """Our figures of the folder."""
    dataset = open_dataset(folder / "01_GT", annotation="both")
    predictions = open_predictions(folder / "01_RES", dataset)
    return evaluate(dataset, lambda sample: predictions[sample.name], protocol="ctc").figures


def theirs(folder: Path) -> dict[str, float]:
    """The official program's."""
    from ctc_metrics.scripts.evaluate import evaluate_sequence

    with contextlib.redirect_stdout(io.StringIO()):
        return evaluate_sequence(str(folder / "01_RES"), str(folder / "01_GT"), metrics=list(METRICS), threads=1)


def main() -> None:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=512, help="width and height of a frame")
    parser.add_argument("--cells", type=int, default=200, help="cells in a frame")
    parser.add_argument("--frames", type=int, default=40, help="frames of the sequence")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each in turn, of which the shortest counts")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, arguments.side, arguments.cells, arguments.frames)
        figures, reference = ours(folder), theirs(folder)
        for each in ("SEG", "DET", "TRA", "LNK", "CT", "TF"):
            assert abs(figures[each.lower()] - reference[each]) < 1e-9, each
        times: dict[str, list[float]] = {"everymask": [], "py-ctcmetrics": []}
        for _ in range(arguments.repeat):
            for program, run in (("everymask", ours), ("py-ctcmetrics", theirs)):
                start = time.perf_counter()
                run(folder)
                times[program].append(time.perf_counter() - start)
        best = {program: min(each) for program, each in times.items()}
        print(
            f"tracking, {arguments.frames} frames of {arguments.side} x {arguments.side}, {arguments.cells} cells: "
            + ", ".join(f"{program} {seconds:.2f} s" for program, seconds in best.items())
            + f", {best['py-ctcmetrics'] / best['everymask']:.0f} times faster, same figures"
        )


if __name__ == "__main__":
    main()
