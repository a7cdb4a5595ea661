"""The documented command for several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from test_methods import discs


def test_torchrun_trains_one_model_with_two_processes(tmp_path: Path) -> None:
    for number in range(4):
        ids = discs(64, seed=number)
        for folder, array in (("images", 40 + 150 * (ids > 0)), ("masks", ids)):
            (tmp_path / "data" / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array.astype(np.uint8)).save(tmp_path / "data" / folder / f"{number}.png")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [
        "-m",
        "everymask",
        "train",
        "stardist",
        "--data",
        "data",
        "--val",
        "data",
        "--out",
        "run",
        "--base",
        "4",
        "--depth",
        "1",
    ]
    command += ["--rays", "8", "--epochs", "1", "--batch-size", "2", "--crop", "64", "--workers", "0", "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["epochs"] == 1  # one process prints, or this would be two objects
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert log[0]["processes"] == 2
    assert log[0]["steps_per_epoch"] == 1  # four images, two on each process
    assert (tmp_path / "run" / "report.html").is_file()
