"""Training runs in processes of their own: killed at any moment, interrupted, and several at once."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from train_toys import CATEGORIES, GREY, Toy, curve, pictures, run

from everymask.train.validation import Validator
from everymask.weights import load_model

COMMAND = [sys.executable, "-c", "import train_toys; train_toys.main()"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}


def start(out, **options):
    command = [*COMMAND, str(out), json.dumps(options)]
    return subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait_for_lines(out, count, process):
    """Until the log has `count` lines."""
    limit = time.monotonic() + 240
    while time.monotonic() < limit and process.poll() is None:
        log = Path(out) / "log.jsonl"
        if log.exists() and log.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.005)
    pytest.fail(f"the log never had {count} lines: {process.communicate()[1]}")


@pytest.fixture(autouse=True)
def one_thread():
    """Sums over several threads round differently, so both sides of a comparison use one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_killed_and_interrupted_a_run_takes_the_same_course(tmp_path):
    options = {"epochs": 8, "steps_per_epoch": 10, "workers": 1}
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    run(straight, **options)

    # The log has a line for the start, one an epoch, and one every 20 steps.
    process = start(broken, **options)
    wait_for_lines(broken, 3, process)
    time.sleep(0.05)  # some steps into the next epoch
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert 1 <= len(curve(broken)) < 8

    before = (broken / "log.jsonl").read_bytes().count(b"\n")
    process = start(broken, **options, resume=True, quiet=False)
    wait_for_lines(broken, before + 2, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the loader process, too
    _, told = process.communicate(timeout=240)
    assert process.returncode not in (0, None)
    assert f"go on with --resume --out {broken}" in told
    assert told.rstrip().endswith("KeyboardInterrupt")
    assert 2 <= len(curve(broken)) < 8

    run(broken, **options, resume=True)
    assert len(curve(broken, ["resume"])) == 2
    assert curve(broken, ["epoch", "step"]) == curve(straight, ["epoch", "step"])
    mine, theirs = (load_file(folder / "model.safetensors") for folder in (broken, straight))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_two_processes_learn_what_one_learns(tmp_path):
    options = {"epochs": 2, "steps_per_epoch": 6, "toy": {"dropout": 0.0, "norm": False}, "val": 3}
    two = {**options, "batch_size": 2}
    statistics = {"epochs": 2, "steps_per_epoch": 6, "batch_size": 2, "tune": False, "ema": 0.0}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launched = [
        subprocess.Popen(
            [*COMMAND, str(tmp_path / "two"), json.dumps(two), str(tmp_path / "statistics"), json.dumps(statistics)],
            env={
                **ENVIRONMENT,
                # What torchrun sets; without its agent the test starts in half the time.
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "LOCAL_WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "ACCELERATE_USE_CPU": "true",
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in launched:
        _, told = process.communicate(timeout=240)
        assert process.returncode == 0, told
    run(tmp_path / "one", **options, batch_size=4)
    start_line = json.loads((tmp_path / "two" / "log.jsonl").read_text().splitlines()[0])
    assert start_line["processes"] == 2
    one, two = curve(tmp_path / "one"), curve(tmp_path / "two")
    assert len(one) == len(two) == 2
    for mine, theirs in zip(one, two, strict=True):
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-4)
        assert theirs["validation"] == pytest.approx(mine["validation"], rel=1e-3)
    model_of_one, model_of_two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, value in model_of_one.items():
        torch.testing.assert_close(model_of_two[name], value, rtol=1e-3, atol=1e-5)

    # Batch normalisation sees other crops in each process; yet both validate the network that is saved.
    best = [entry for entry in curve(tmp_path / "statistics") if entry["best"]][-1]
    method = load_model(tmp_path / "statistics" / "model.safetensors").method
    recipe = Toy.recipe()
    validator = Validator(method, pictures(3, 100), recipe, GREY, CATEGORIES, Accelerator(cpu=True), budget=10**7)
    assert validator() == pytest.approx(best["validation"], rel=1e-5)
