"""The official Cellpose program as a server for `cellpose_kernels.py`, so that both stay warm and run in turns.

It runs in an environment of its own (``pip install "cellpose<4"`` or ``pip install cellpose``) and must not import
everymask. Each line on standard input is a request, a JSON object; each line on standard output the answer to one.
Arrays travel in files. Times are pairs of the clock's and the processor's seconds.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from cellpose import dynamics

CPU = torch.device("cpu")


def timed(function: Callable[[], Any], out: str) -> dict[str, Any]:
    """Times a call and writes the array that it returns."""
    start, busy = time.perf_counter(), time.process_time()
    result = function()
    seconds = time.perf_counter() - start, time.process_time() - busy
    np.save(out, np.asarray(result))
    return {"seconds": seconds}


def about(threads: int) -> dict[str, Any]:
    """Version of the program; sets the threads of torch."""
    torch.set_num_threads(threads)
    return {"version": version("cellpose")}


def targets(labels: str, out: str) -> dict[str, Any]:
    """Flows of the objects of a label image, on the CPU."""
    image = np.load(labels)
    if hasattr(dynamics, "masks_to_flows"):
        return timed(lambda: dynamics.masks_to_flows(image, device=CPU), out)
    return timed(lambda: dynamics.masks_to_flows_gpu(image.astype(np.int64), device=CPU), out)


def labels(flow: str, logit: str, flow_threshold: float, out: str) -> dict[str, Any]:
    """Label image of a predicted flow and logit, on the CPU."""
    arrays = np.load(flow), np.load(logit)

    def decode() -> Any:
        found = dynamics.compute_masks(*arrays, flow_threshold=flow_threshold, min_size=15, device=CPU)
        return (found[0] if isinstance(found, tuple) else found).astype(np.int32)  # before 3.1 end points as well

    return timed(decode, out)


def main() -> None:
    """Serves until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")  # the official program prints; only answers may reach the pipe
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        answer = {"about": about, "targets": targets, "labels": labels}[request.pop("do")](**request)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
