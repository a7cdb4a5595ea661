"""The training runs behind `everymask compare`: processes of their own, whose time and memory are measured."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everymask.errors import InputError

if TYPE_CHECKING:
    from everymask.report.methods import Entry
    from everymask.types import Dataset

TRIAL_STEPS = 20
"""Optimiser steps that tell the pace of a method."""
VALIDATIONS = 10
"""Validations in a run, so that methods that decode slowly do not spend their hours on it."""


@dataclass(frozen=True)
class Budget:
    """How long each method trains: minutes, or epochs, or neither for the recipe's own epochs."""

    minutes: float | None = None
    epochs: int | None = None


@dataclass(frozen=True)
class Runs:
    """Trains and scores methods on the same images.

    Args:
        data: Training images.
        val: Validation images, or None for a part of `data`.
        out: Folder of all runs.
        format: Format of the data, if it is given.
        budget: Of each method.
        resume: Go on with runs that are there.
    """

    data: Path
    val: Path | None
    out: Path
    format: str | None
    budget: Budget
    resume: bool

    def check(self, commands: Mapping[str, Sequence[str]]) -> None:
        """Finds out before hours of training what would only be told after them.

        Raises:
            InputError: A method does not exist, data cannot be opened, or a folder of a run is taken.
        """
        from everymask.methods import method_class

        for tokens in commands.values():
            method_class(tokens[0])
        _ = self.validation
        if not self.resume:
            for name in commands:
                if (self.out / name).exists():
                    raise InputError(f"{self.out / name} exists; go on with it by --resume, or choose another --out")

    @cached_property
    def validation(self) -> Dataset:
        """The images that methods are scored on; opened once for all."""
        from everymask.data.parts import hold_out
        from everymask.formats import open_dataset

        if self.val is not None:
            open_dataset(self.data, format=self.format)
            return open_dataset(self.val, format=self.format)
        return hold_out(open_dataset(self.data, format=self.format))[1]

    def entry(self, name: str, tokens: Sequence[str]) -> Entry:
        """Trains a method and scores it.

        Raises:
            InputError: What `everymask train` says.
        """
        from everymask.report.methods import Entry

        folder = self.out / name
        model = folder / "model.safetensors"
        measured = folder / "measured.json"
        spent = json.loads(measured.read_text(encoding="utf-8")) if measured.exists() else {}
        if not model.exists():
            found = _run([*self._train(tokens, folder), *self._length(tokens, folder)])
            spent = {
                "processor_seconds": found["processor_seconds"] + spent.get("processor_seconds", 0.0),
                "bytes": max(found["bytes"], spent.get("bytes", 0.0)),
            }
            measured.write_text(json.dumps(spent) + "\n", encoding="utf-8")
        log = _log(folder)
        start, last = log[0], [each for each in log if each["event"] == "epoch"][-1]
        evaluation, seconds = self._score(model)
        return Entry(
            name=name,
            parameters=int(start["parameters"]),
            epochs=int(last["epoch"]),
            training_minutes=float(last["seconds"]) / 60,
            processor_minutes=spent.get("processor_seconds", math.nan) / 60,
            gigabytes=spent.get("bytes", math.nan) / 1e9,
            milliseconds=1000 * seconds,
            evaluation=evaluation,
        )

    def _train(self, tokens: Sequence[str], folder: Path) -> list[str]:
        method, *options = tokens
        made = [sys.executable, "-m", "everymask", "train", method, "--data", str(self.data), "--out", str(folder)]
        made += ["--val", str(self.val)] if self.val is not None else []
        made += ["--format", self.format] if self.format is not None else []
        return [*made, "--quiet", *options]

    def _length(self, tokens: Sequence[str], folder: Path) -> list[str]:
        """The options that say how long to train."""
        if self.resume and (folder / "log.jsonl").exists():
            epochs = int(_log(folder)[0]["recipe"]["epochs"])
            return ["--resume", *_epochs(epochs, tokens)]
        if self.budget.epochs is not None:
            return _epochs(self.budget.epochs, tokens)
        if self.budget.minutes is None:
            return []
        with tempfile.TemporaryDirectory(dir=self.out) as trial:
            short = ["--epochs", "1", "--steps-per-epoch", str(TRIAL_STEPS), "--no-tune"]
            _run([*self._train(tokens, Path(trial) / "run"), *short])
            log = _log(Path(trial) / "run")
            pace = float([each for each in log if each["event"] == "epoch"][-1]["images_per_second"])
            images = int(log[0]["images"])
        return _epochs(max(1, round(60 * self.budget.minutes * pace / images)), tokens)

    def _score(self, model: Path) -> tuple[Any, float]:
        """The scores, and the median seconds that an image takes."""
        from statistics import median

        from everymask.metrics.evaluate import evaluate
        from everymask.model import Model

        data = self.validation
        loaded = Model.load(model)
        predict = loaded.predictions_for(data)
        predict(data[0])  # kernels are compiled, memory is fetched
        times: list[float] = []

        def timed(sample: Any) -> Any:
            start = time.perf_counter()
            found = predict(sample)
            times.append(time.perf_counter() - start)
            return found

        protocol = type(loaded.method).metric[0]
        evaluation = evaluate(data, timed, tasks=loaded.tasks, preferred=protocol)
        return evaluation, median(times)


def _epochs(count: int, tokens: Sequence[str]) -> list[str]:
    options = ["--epochs", str(count)]
    return options if "--validate-every" in tokens else [*options, "--validate-every", str(-(-count // VALIDATIONS))]


def _log(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _run(command: Sequence[str]) -> dict[str, float]:
    """Runs a command; returns its processor seconds and the most bytes of memory it had (NaN where unknown).

    Raises:
        InputError: With the last line of what it printed, if it failed.
        KeyboardInterrupt: Ctrl-C, once the command has ended.
    """
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)  # noqa: S603 - ourselves
        spent = {"processor_seconds": math.nan, "bytes": math.nan}
        try:
            if hasattr(os, "wait4"):
                _, status, usage = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
                unit = 1 if sys.platform == "darwin" else 1024
                spent = {"processor_seconds": usage.ru_utime + usage.ru_stime, "bytes": float(unit * usage.ru_maxrss)}
            else:
                process.wait()
        except KeyboardInterrupt:
            # Ctrl-C reaches the command as well, which writes a checkpoint and ends.
            process.wait()
            raise KeyboardInterrupt("interrupted; the same command with --resume goes on") from None
        errors.seek(0)
        said = errors.read().decode(errors="replace").strip().splitlines()
    if process.returncode:
        reason = said[-1] if said else f"exit code {process.returncode}"
        raise InputError(reason.removeprefix("error: "))
    return spent
