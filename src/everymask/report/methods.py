"""Methods side by side: one table, and one plot of accuracy against IoU."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everymask.files import atomic_write
from everymask.metrics import Table
from everymask.report import page
from everymask.report.evaluation import write_csv
from everymask.report.svg import Series, line_chart

if TYPE_CHECKING:
    from everymask.metrics.evaluate import Evaluation

FIGURES = {
    "matching": ("mean_accuracy", "accuracy@0.5", "accuracy@0.6", "accuracy@0.7", "accuracy@0.8", "accuracy@0.9"),
    "semantic": ("miou", "pixel_accuracy"),
    "classification": ("top1", "top5"),
}
"""Figures of a protocol that are compared; of other protocols the first six."""


@dataclass(frozen=True)
class Entry:
    """What a method reached, and what it cost.

    Args:
        name: Method and options.
        parameters: Of the network.
        epochs: That it was trained for.
        training_minutes: Time in training, validation not counted.
        processor_minutes: Processor time of the whole training run; NaN if it is not known.
        gigabytes: Most memory of the training process, in 10^9 bytes; NaN if it is not known.
        milliseconds: Median time of a prediction, reading included.
        evaluation: Scores on the validation images.
    """

    name: str
    parameters: int
    epochs: int
    training_minutes: float
    processor_minutes: float
    gigabytes: float
    milliseconds: float
    evaluation: Evaluation

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is not known is None."""
        values: dict[str, Any] = {
            "name": self.name,
            "parameters": self.parameters,
            "epochs": self.epochs,
            "training_minutes": self.training_minutes,
            "processor_minutes": self.processor_minutes,
            "gigabytes": self.gigabytes,
            "milliseconds": self.milliseconds,
            "protocol": self.evaluation.protocol,
            "figures": self.evaluation.figures,
        }
        return json.loads(json.dumps(values, default=float), parse_constant=lambda _: None)


def comparison_table(entries: Sequence[Entry]) -> Table:
    """A row for each method, the best first."""
    names = compared_figures(entries[0].evaluation)
    order = sorted(entries, key=lambda each: -_number(each.evaluation.figures.get(names[0])))
    costs = ("million parameters", "epochs", "minutes", "processor minutes", "GB", "ms per image")
    rows = tuple(
        (
            each.name,
            *(_number(each.evaluation.figures.get(name), math.nan) for name in names),
            each.parameters / 1e6,
            each.epochs,
            each.training_minutes,
            each.processor_minutes,
            each.gigabytes,
            each.milliseconds,
        )
        for each in order
    )
    return Table("Methods", ("method", *names, *costs), rows)


def compared_figures(evaluation: Evaluation) -> tuple[str, ...]:
    """The figures of a protocol that are compared, those that there are."""
    wanted = FIGURES.get(evaluation.protocol, tuple(evaluation.figures)[:6])
    return tuple(name for name in wanted if name in evaluation.figures) or tuple(evaluation.figures)[:6]


def write_comparison(folder: Path | str, entries: Sequence[Entry], about: Mapping[str, str]) -> Path:
    """Writes ``comparison.html``, ``comparison.csv`` and ``comparison.json``.

    Args:
        folder: That there is.
        entries: At least one, all scored by the same protocol.
        about: What was compared, for the page.

    Returns:
        The path of the page.
    """
    folder = Path(folder)
    content = comparison_table(entries)
    write_csv(folder / "comparison.csv", content)
    with atomic_write(folder / "comparison.json") as temporary:
        values = {"about": dict(about), "methods": [each.to_json() for each in entries]}
        temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    body = [f"<div class='charts'>{accuracy_chart(entries)}</div>", page.table(content)]
    subtitle = "; ".join(f"{name} {value}" for name, value in about.items())
    with atomic_write(folder / "comparison.html") as temporary:
        temporary.write_text(page.page("Comparison of methods", subtitle, body), encoding="utf-8")
    return folder / "comparison.html"


def accuracy_chart(entries: Sequence[Entry]) -> str:
    """Accuracy of each method against the IoU from which an object counts as found; empty for other protocols."""
    series = []
    for each in entries:
        points = sorted(
            (float(name.removeprefix("accuracy@")), value)
            for name, value in each.evaluation.figures.items()
            if name.startswith("accuracy@")
        )
        if points:
            series.append(Series(each.name, [x for x, _ in points], [y for _, y in points]))
    return line_chart(series, x_label="IoU threshold", y_label="accuracy", y_range=(0, 1)) if series else ""


def _number(value: float | None, otherwise: float = -math.inf) -> float:
    return otherwise if value is None or not math.isfinite(value) else float(value)
