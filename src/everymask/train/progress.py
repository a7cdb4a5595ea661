"""What a training run tells: a live line in a terminal, plain lines elsewhere, and the log file."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from everymask.errors import InputError

LOG = "log.jsonl"
"""File name in the output folder of a run."""


class RunLog:
    """The log of a run, one JSON object a line.

    Every object has ``event``. Numbers that are not finite are written as null.

    - ``start``: ``method``, ``config``, ``recipe``, ``preprocessing``, ``categories`` (names), ``images`` and
      ``validation_images`` (numbers of images), ``parameters`` (number of weights), ``device``, ``precision``,
      ``processes``, ``steps_per_epoch``, ``metric`` (protocol and figure) and ``monitor``.
    - ``resume``: ``epoch`` and ``step`` that were finished before.
    - ``step``, every few steps: ``epoch`` (from 1), ``step`` (from 1, over the whole run), ``loss`` (the terms and
      their sum ``total``, means since the epoch began), ``learning_rate``, ``gradient_norm`` (before clipping),
      ``images_per_second``, ``seconds`` (of the run).
    - ``epoch``: ``epoch``, ``step``, ``loss`` (means over the epoch), ``learning_rate``, ``images_per_second``,
      ``seconds``; and if there was a validation, ``validation`` (``loss``, its terms as ``loss/...``, and the figures
      of the metric) and ``best`` (whether this is the best epoch so far).
    - ``end``: ``reason`` (``finished`` or ``early_stop``), ``epoch``, ``step``, ``best_epoch``, ``thresholds``,
      ``validation`` (of the best epoch), ``tuned`` (figures after the thresholds were tuned, or null), ``seconds``.

    Args:
        path: The file; appended to.
        enabled: False in all processes but the first.

    Attributes:
        mirror: Gets each entry that is written, too.
    """

    def __init__(self, path: Path, enabled: bool = True) -> None:
        self.path, self.enabled = path, enabled
        self.mirror: Callable[[str, Mapping[str, Any]], None] | None = None

    def write(self, event: str, **values: Any) -> None:
        """Appends one line.

        Raises:
            InputError: The disk is full, or the folder is gone.
        """
        if not self.enabled:
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(_finite({"event": event, **values}), allow_nan=False) + "\n")
        except OSError as error:
            raise InputError(
                f"cannot write {self.path}: {error.strerror}; free some space and go on with --resume"
            ) from error
        if self.mirror is not None:
            self.mirror(event, values)

    def size(self) -> int:
        """Bytes so far."""
        return self.path.stat().st_size if self.path.exists() else 0

    def cut(self, size: int) -> None:
        """Drops what was written after the file had `size` bytes: steps that are done again after a crash."""
        if self.enabled and self.path.exists():
            with self.path.open("r+b") as file:
                file.truncate(size)

    def epochs(self, size: int) -> list[dict[str, Any]]:
        """The ``epoch`` entries, without ``event``, among the first `size` bytes."""
        if not self.path.exists():
            return []
        lines = self.path.read_bytes()[:size].decode("utf-8").splitlines()
        entries = [json.loads(line) for line in lines]
        return [entry for entry in entries if entry.pop("event") == "epoch"]


def _finite(value: Any) -> Any:
    """JSON knows no NaN."""
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class Progress:
    """Shows how far a run is: a bar that is redrawn in a terminal, a line an epoch (and a minute) elsewhere.

    Args:
        epochs: Epochs of the run.
        quiet: Show nothing.

    Attributes:
        steps: Optimiser steps of an epoch, set when they are known.
    """

    def __init__(self, epochs: int, quiet: bool = False) -> None:
        self.epochs, self.steps, self.quiet = epochs, 0, quiet
        self._bar: Any = None
        self._task: Any = None
        self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        if not self.quiet and sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            self._bar = progress.Progress(
                progress.TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
                progress.BarColumn(bar_width=20),
                progress.TextColumn("{task.fields[figures]}"),
                progress.TextColumn("[cyan]{task.fields[left]} left"),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task(
                "train", total=self.steps, epoch=1, epochs=self.epochs, figures="starting", left="?"
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    @contextmanager
    def counting(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """Gives a function to be told how many of how many are done, shown if the work takes over 2 seconds."""
        started = last = time.monotonic()
        shown = False

        def told(done: int, count: int) -> None:
            nonlocal last, shown
            now = time.monotonic()
            if self.quiet or now - started < 2 or now - last < 0.2:
                return
            last = now
            text = f"{what}: {done} of {count}, {duration((now - started) / done * (count - done))} left"
            if self._bar is not None:
                self._bar.update(self._task, figures=text)
            elif sys.stderr.isatty():
                shown = True
                sys.stderr.write(f"\r\x1b[2K{text}")
                sys.stderr.flush()
            elif now - self._last_line > 60:
                self.line(text)

        try:
            yield told
        finally:
            if shown:
                sys.stderr.write("\r\x1b[2K")
                sys.stderr.flush()

    def step(self, epoch: int, done: int, figures: str, seconds_left: float) -> None:
        """After `done` steps of epoch `epoch` (from 1)."""
        left = duration(seconds_left)
        if self._bar is not None:
            self._bar.update(self._task, completed=done, epoch=epoch, figures=figures, left=left)
        elif time.monotonic() - self._last_line > 60:
            self.line(f"epoch {epoch}/{self.epochs} step {done}/{self.steps}  {figures}  {left} left")

    def line(self, text: str) -> None:
        """A line that stays."""
        self._last_line = time.monotonic()
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()


class Clock:
    """Seconds of a run, and images per second without the pauses for validation.

    Args:
        before: Seconds of earlier parts of the run.
    """

    def __init__(self, before: float = 0.0) -> None:
        self._start = time.monotonic() - before
        self._since = time.monotonic()
        self._busy = 0.0
        self._images = 0

    def count(self, images: int) -> None:
        """Adds images that were learnt from."""
        self._images += images

    def seconds(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._start

    def rate(self) -> float:
        """Images per second."""
        return self._images / max(1e-9, self._busy + time.monotonic() - self._since)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside the context time does not count for `rate`."""
        self._busy += time.monotonic() - self._since
        try:
            yield
        finally:
            self._since = time.monotonic()


def duration(seconds: float) -> str:
    """``1:02:03`` or ``2:03``; ``?`` if it is not known."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
