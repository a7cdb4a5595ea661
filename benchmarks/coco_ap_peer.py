"""One program of `coco_ap.py` in a process of its own: evaluates the files named on its standard input.

Every line is a JSON list of the paths of a truth and its results; the answer is a line of JSON with the 12 figures,
seconds, and the largest resident memory so far.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path


def everymask_figures(kind: str) -> Callable[[str, str], Sequence[float]]:
    """Ours."""
    from everymask.metrics.coco_files import evaluate_files

    def run(truth: str, results: str) -> Sequence[float]:
        return list(evaluate_files(Path(truth), Path(results), kind=kind).compute().values())[:12]

    return run


def api_figures(module: str, kind: str) -> Callable[[str, str], Sequence[float]]:
    """A package with the classes of pycocotools."""
    package = importlib.import_module(module)
    if module == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    elif module == "faster_coco_eval":
        COCO, COCOeval = package.COCO, package.COCOeval_faster
    else:
        COCO, COCOeval = package.COCO, package.COCOeval

    def run(truth: str, results: str) -> Sequence[float]:
        coco = COCO(truth)
        found = coco.load_res(results) if module == "hotcoco" else coco.loadRes(results)
        evaluation = COCOeval(coco, found, {"boxes": "bbox", "masks": "segm"}[kind])
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        return [float(each) for each in evaluation.stats[:12]]

    return run


def main() -> None:
    """Answers until the input ends."""
    name, kind = sys.argv[1:]
    # Programs may print from compiled code as well, so the answers get a stream of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    run = everymask_figures(kind) if name == "everymask" else api_figures(name, kind)
    for line in sys.stdin:
        truth, results = json.loads(line)
        before, start = os.times(), time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            figures = [float(each) for each in run(truth, results)]
        wall, after = time.perf_counter() - start, os.times()
        cpu = after.user + after.system - before.user - before.system
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        answers.write(json.dumps({"figures": figures, "wall": wall, "cpu": cpu, "peak": peak}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
