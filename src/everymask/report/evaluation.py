"""The report of an evaluation: JSON and CSV for programs, a plot and a page with the worst images for people."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everymask.files import atomic_write, check_writable_folder
from everymask.metrics import Table
from everymask.report import page
from everymask.report.comparison import LEGEND, worst_images
from everymask.report.svg import Series, bar_chart, line_chart, matrix_chart

if TYPE_CHECKING:
    from everymask.metrics import Confusion, Curve
    from everymask.metrics.evaluate import Evaluation
    from everymask.types import Dataset, Sample, Segments

BARS = ("IoU", "AP", "PQ", "accuracy@0.5", "F1")
"""Figures of categories that the bars show: the first that there is."""
CONFUSION = "Confusion: rows are the true classes, each row's shares"
MOST_CURVES = 12
"""Curves in one plot; the CSV has all."""
MOST_CLASSES = 40
"""Classes in the picture of confusions; the CSV has all."""
MOST_ROWS = 200
"""Images listed in the page; the CSV has all."""
MOST_BARS = 40
"""Categories in the bar chart; the table has all."""


def evaluation_json(evaluation: Evaluation, about: Mapping[str, Any]) -> dict[str, Any]:
    """Everything an evaluation found, as JSON values; figures that are not defined are None.

    Args:
        evaluation: The scores.
        about: What was scored: model, data and the like.
    """
    return {
        "about": dict(about),
        "protocol": evaluation.protocol,
        "images": evaluation.images,
        "figures": {name: _json_number(value) for name, value in evaluation.figures.items()},
        "tables": [
            {
                "title": each.title,
                "columns": list(each.columns),
                "rows": [[_json_number(cell) for cell in row] for row in each.rows],
                "note": each.note,
            }
            for each in all_tables(evaluation)
        ],
    }


def write_evaluation_json(path: Path | str, evaluation: Evaluation, about: Mapping[str, Any]) -> None:
    """Writes `evaluation_json` in one step.

    Raises:
        InputError: The folder cannot be written.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(evaluation_json(evaluation, about), indent=2) + "\n", encoding="utf-8")


def write_evaluation(
    folder: Path | str,
    evaluation: Evaluation,
    data: Dataset,
    predict: Callable[[Sample], Segments],
    about: Mapping[str, Any],
    *,
    worst: int = 6,
) -> Path:
    """Writes ``evaluation.json``, a CSV for each table, ``report.html`` and, with matplotlib, ``plot.png``.

    Where the protocol has curves, ``curves.csv`` has all of them.

    Args:
        folder: Made if it is absent.
        evaluation: The scores.
        data: The truth.
        predict: The prediction for a sample; called again for the few worst images, to draw them.
        about: What was scored.
        worst: Number of worst images in the page.

    Returns:
        The path of the page.

    Raises:
        InputError: The folder cannot be written.
    """
    folder = check_writable_folder(folder)
    write_evaluation_json(folder / "evaluation.json", evaluation, about)
    tables = all_tables(evaluation)
    for each in tables:
        write_csv(folder / f"{_slug(each.title)}.csv", each)
    curves, bars = evaluation.metric.curves(), _bars(evaluation)
    if curves:
        write_csv(folder / "curves.csv", _curve_table(curves))
    if (curves or bars) and importlib.util.find_spec("matplotlib") is not None:
        _plot(folder / "plot.png", curves, bars)
    body = [page.tiles(headline(evaluation)), "<div class='charts'>"]
    for plot, lines in _by_plot(curves).items():
        series = [Series(each.name, each.x.tolist(), each.y.tolist()) for each in lines[:MOST_CURVES]]
        body.append(line_chart(series, x_label=lines[0].x_label, y_label=plot, y_range=(0, 1)))
    if bars:
        body.append(bar_chart(bars[:MOST_BARS], label=f"{bars_name(evaluation)} of the categories"))
    confusion = evaluation.metric.confusion()
    if confusion is not None and len(confusion.rows) <= MOST_CLASSES:
        body.append(matrix_chart(confusion.rows, confusion.columns, confusion.counts.tolist(), label=CONFUSION))
    body += ["</div>", *(page.table(each) for each in evaluation.tables)]
    images = evaluation.metric.images()
    pictures: list[str] = [] if images is None else worst_images(images, data, predict, worst)
    if pictures:
        body += ["<h2>Worst images</h2>", f"<p class='quiet'>{LEGEND}</p>"]
        body += ["<div class='pictures'>", *pictures, "</div>"]
    if images is not None:
        body.append(page.table(_shortened(images)))
    subtitle = "; ".join(f"{name} {value}" for name, value in about.items() if value is not None)
    with atomic_write(folder / "report.html") as temporary:
        temporary.write_text(page.page("Evaluation", subtitle, body), encoding="utf-8")
    return folder / "report.html"


def write_csv(path: Path | str, content: Table) -> None:
    """Writes a table as CSV with unrounded figures; undefined ones are empty.

    Raises:
        InputError: The folder cannot be written.
    """
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(content.columns)
        writer.writerows(["" if _json_number(cell) is None else cell for cell in row] for row in content.rows)


def all_tables(evaluation: Evaluation) -> list[Table]:
    """The protocol's tables and, where it knows them, those of single images and of confusions."""
    images, confusion = evaluation.metric.images(), evaluation.metric.confusion()
    return [
        *evaluation.tables,
        *([] if images is None else [images]),
        *([] if confusion is None else [confusion_table(confusion)]),
    ]


def confusion_table(confusion: Confusion) -> Table:
    """The counts with the true classes as rows."""
    rows = [(name, *(int(each) for each in row)) for name, row in zip(confusion.rows, confusion.counts, strict=True)]
    return Table("Confusion", (f"true \\ predicted ({confusion.unit})", *confusion.columns), tuple(rows))


def headline(evaluation: Evaluation) -> list[tuple[str, str]]:
    """The few figures to look at first: (name, value)."""
    chosen = [("protocol", evaluation.protocol), ("images", f"{evaluation.images:,}")]
    counts = [name for name in ("true_objects", "predicted_objects") if name in evaluation.figures]
    chosen += [(name.replace("_", " "), f"{evaluation.figures[name]:,.0f}") for name in counts]
    names = ("accuracy@0.5", "accuracy@0.7", "mean_accuracy", "f1@0.5", "aji", "miou", "pixel_accuracy", "dice")
    names += ("ap", "ap50", "ap75", "map", "pq", "sq", "rq", "seg", "det", "tra", "op_csb", "top1", "top5")
    names += ("category_iou", "iiou", "boundary_iou", "boundary_f1")
    present = [name for name in names if name in evaluation.figures] or list(evaluation.figures)[:6]
    return chosen + [(name.replace("_", " "), page.cell(float(evaluation.figures[name]))) for name in present]


def bars_name(evaluation: Evaluation) -> str:
    """The figure of categories that the bars show; nothing if the protocol has none."""
    for each in evaluation.tables:
        if each.columns[0] == "category":
            return each.judge or next((name for name in BARS if name in each.columns), "")
    return ""


def _bars(evaluation: Evaluation) -> list[tuple[str, float]]:
    """That figure of each category."""
    name = bars_name(evaluation)
    for each in evaluation.tables:
        if each.columns[0] == "category" and name in each.columns:
            column = each.columns.index(name)
            return [(str(row[0]), float(row[column])) for row in each.rows]
    return []


def _by_plot(curves: Sequence[Curve]) -> dict[str, list[Curve]]:
    plots: dict[str, list[Curve]] = {}
    for each in curves:
        plots.setdefault(each.plot, []).append(each)
    return plots


def _curve_table(curves: Sequence[Curve]) -> Table:
    rows = [(each.plot, each.name, float(x), float(y)) for each in curves for x, y in zip(each.x, each.y, strict=True)]
    return Table("Curves", ("plot", "curve", "x", "y"), tuple(rows))


def _shortened(images: Table) -> Table:
    """The worst rows of a long table; the page stays small, and the CSV has all."""
    if len(images.rows) <= MOST_ROWS:
        return images
    column = images.columns.index(images.judge) if images.judge in images.columns else None
    rows = images.rows
    if column is not None:
        rows = tuple(sorted(rows, key=lambda row: (math.isnan(float(row[column])), float(row[column]))))
    note = f"{images.note} The {MOST_ROWS} worst of {len(rows):,} images; the CSV has all.".strip()
    return Table(images.title, images.columns, rows[:MOST_ROWS], note, images.judge)


def _plot(path: Path, curves: Sequence[Curve], bars: Sequence[tuple[str, float]]) -> None:
    """The plots as PNG, with matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown, plots = bars[:MOST_BARS], _by_plot(curves)
    panels = len(plots) + bool(shown)
    figure = Figure(figsize=(6 * panels, max(4, 0.22 * len(shown) + 1)), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    for number, (plot, lines) in enumerate(plots.items(), 1):
        axes = figure.add_subplot(1, panels, number)
        for each in lines[:MOST_CURVES]:
            axes.plot(each.x, each.y, "o-" if len(each.x) <= 30 else "-", ms=3.5, label=each.name)
        axes.set(xlabel=lines[0].x_label, ylabel=lines[0].y_label, ylim=(0, 1.02), title=plot)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize="small")
    if shown:
        axes = figure.add_subplot(1, panels, panels)
        names = [name for name, _ in shown][::-1]
        axes.barh(names, [0.0 if math.isnan(value) else value for _, value in shown][::-1])
        axes.set(xlim=(0, 1), title="Categories")
        axes.grid(axis="x", alpha=0.3)
    with atomic_write(path) as temporary:
        figure.savefig(temporary)


def _json_number(value: str | int | float) -> str | int | float | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", title.lower()).strip("_") or "table"
