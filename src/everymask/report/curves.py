"""The report of a training run, made from its log."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from everymask.errors import InputError
from everymask.files import atomic_write
from everymask.report import page
from everymask.report.svg import Series, line_chart


@dataclass
class Run:
    """What the log of a run says, see `everymask.train.progress.RunLog`.

    Attributes:
        start: The ``start`` event.
        steps: The ``step`` events in order.
        epochs: The ``epoch`` events in order.
        end: The ``end`` event, empty while the run is not finished.
    """

    start: dict[str, Any] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)
    epochs: list[dict[str, Any]] = field(default_factory=list)
    end: dict[str, Any] = field(default_factory=dict)

    @property
    def figure(self) -> str:
        """The validation figure that the method maximises; ``loss`` where the log names none."""
        metric = self.start.get("metric")
        return str(metric[1]) if metric else "loss"

    @property
    def best_epoch(self) -> int | None:
        """The epoch whose weights are kept."""
        chosen = [each["epoch"] for each in self.epochs if each.get("best")]
        return self.end.get("best_epoch") or (chosen[-1] if chosen else None)

    def losses(self) -> list[Series]:
        """Training and validation loss by epoch."""
        x = [each["epoch"] for each in self.epochs]
        made = [Series("training", x, [_total(each.get("loss")) for each in self.epochs])]
        validation = [(each.get("validation") or {}).get("loss") for each in self.epochs]
        return [*made, Series("validation", x, validation)] if any(each is not None for each in validation) else made

    def terms(self) -> list[Series]:
        """The terms of the training loss by epoch; none if there is but one."""
        names = [name for name in (self.epochs[-1].get("loss") or {}) if name != "total"] if self.epochs else []
        x = [each["epoch"] for each in self.epochs]
        if len(names) < 2:
            return []
        return [Series(name, x, [(each.get("loss") or {}).get(name) for each in self.epochs]) for name in names]

    def metric(self) -> Series:
        """The method's headline figure by epoch."""
        x = [each["epoch"] for each in self.epochs]
        return Series(self.figure, x, [(each.get("validation") or {}).get(self.figure) for each in self.epochs])

    def rates(self) -> Series:
        """The learning rate by epoch, with fractions where the log has steps."""
        length = max(1, int(self.start.get("steps_per_epoch") or 1))
        events = self.steps or self.epochs
        return Series(
            "rate", [each["step"] / length for each in events], [each.get("learning_rate") for each in events]
        )


def read_log(path: Path) -> Run:
    """The events of a ``log.jsonl``; an unfinished last line, as a killed run leaves it, is passed over.

    Raises:
        InputError: The file is missing or not such a log.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot read the log of a training run ({error})") from error
    run = Run()
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
            kind = event["event"]
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise InputError(f"{path}, line {number}: not an event of a training log") from error
        if kind == "start":
            run.start = event
        elif kind == "step":
            run.steps.append(event)
        elif kind == "epoch":
            run.epochs.append(event)
        elif kind == "end":
            run.end = event
    return run


def training_report(out: Path | str) -> Path:
    """Writes ``report.html`` and, where matplotlib is installed, ``curves.png`` into the folder of a run.

    Args:
        out: Folder with ``log.jsonl``.

    Returns:
        The path of the page.

    Raises:
        InputError: The log is missing or damaged, or the folder cannot be written.
    """
    out = Path(out)
    run = read_log(out / "log.jsonl")
    body = [page.tiles(_summary(run)), "<div class='charts'>", *_charts(run), "</div>", *_details(run)]
    title = f"Training of {run.start.get('method', 'a model')}"
    with atomic_write(out / "report.html") as temporary:
        temporary.write_text(page.page(title, str(out), body), encoding="utf-8")
    if importlib.util.find_spec("matplotlib") is not None:
        _plot(run, out / "curves.png")
    return out / "report.html"


def _charts(run: Run) -> list[str]:
    best = run.best_epoch
    charts = [line_chart(run.losses(), x_label="epoch", y_label="Loss", logarithmic=_spans_decades(run), mark=best)]
    metric = run.metric()
    if metric.points() and run.figure != "loss":
        charts.append(line_chart([metric], x_label="epoch", y_label=f"Validation: {_words(run.figure)}", mark=best))
    if terms := run.terms():
        charts.append(line_chart(terms, x_label="epoch", y_label="Terms of the training loss"))
    charts.append(line_chart([run.rates()], x_label="epoch", y_label="Learning rate"))
    return charts


def _summary(run: Run) -> list[tuple[str, str]]:
    last = run.end or (run.epochs[-1] if run.epochs else {})
    entries = [
        ("method", str(run.start.get("method", "-"))),
        ("training images", f"{run.start.get('images', 0):,}"),
        ("validation images", f"{run.start.get('validation_images') or 0:,}"),
        ("epochs", str(last.get("epoch", 0))),
        ("best epoch", str(run.best_epoch or "-")),
    ]
    figures = run.end.get("tuned") or run.end.get("validation") or _best_figures(run)
    value = figures.get(run.figure)
    if value is not None:
        entries.append((_words(run.figure), f"{value:.4f}"))
    seconds = float(last.get("seconds") or 0)
    entries.append(("time", f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{seconds / 60:.1f} min"))
    rates = [each["images_per_second"] for each in run.epochs if each.get("images_per_second")]
    if rates:
        entries.append(("images per second", f"{sorted(rates)[len(rates) // 2]:.1f}"))
    return entries


def _best_figures(run: Run) -> dict[str, Any]:
    return next((each.get("validation") or {} for each in run.epochs if each["epoch"] == run.best_epoch), {})


def _details(run: Run) -> list[str]:
    figures = run.end.get("tuned") or run.end.get("validation") or _best_figures(run)
    made = []
    if figures:
        shown = [(_words(name), "-" if value is None else f"{value:.4f}") for name, value in figures.items()]
        made.append(page.listing("Validation figures of the saved model", shown))
    if thresholds := run.end.get("thresholds"):
        made.append(page.listing("Decision thresholds", [(name, f"{value:.4g}") for name, value in thresholds.items()]))
    for title, key in (("Method", "config"), ("Recipe", "recipe"), ("Preprocessing", "preprocessing")):
        values = run.start.get(key)
        if isinstance(values, Mapping):
            made.append(page.listing(title, [(name, str(value)) for name, value in values.items()]))
    about = [
        (name, str(run.start[name])) for name in ("device", "precision", "processes", "parameters") if name in run.start
    ]
    return [*made, page.listing("Machine", about)] if about else made


def _plot(run: Run, path: Path) -> None:
    """``curves.png``, with matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    panels: list[tuple[str, list[Series], bool]] = [("loss", run.losses(), _spans_decades(run))]
    if run.metric().points() and run.figure != "loss":
        panels.append((_words(run.figure), [run.metric()], False))
    panels.append(("learning rate", [run.rates()], False))
    figure = Figure(figsize=(4.6 * len(panels), 3.6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    for position, (title, lines, logarithmic) in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), position)
        for each in lines:
            points = each.points()
            marker = "o" if len(points) == 1 else None
            axes.plot([x for x, _ in points], [y for _, y in points], label=each.name, marker=marker)
        axes.set(title=title, xlabel="epoch", yscale="log" if logarithmic else "linear")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if position < len(panels) and run.best_epoch is not None:
            axes.axvline(run.best_epoch, color="grey", linestyle="--", linewidth=1, label="best epoch")
        if len(axes.get_legend_handles_labels()[0]) > 1:
            axes.legend(frameon=False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary)


def _spans_decades(run: Run) -> bool:
    """Whether the losses need a logarithmic axis."""
    values = [y for each in run.losses() for _, y in each.points()]
    return bool(values) and min(values) > 0 and max(values) > 20 * min(values)


def _total(loss: Mapping[str, float | None] | None) -> float | None:
    """The sum of the terms, which newer logs give themselves."""
    if not loss:
        return None
    if "total" in loss:
        return loss["total"]
    return sum(value for value in loss.values() if value is not None)


def _words(name: str) -> str:
    return name.replace("_", " ")
