"""The report of an evaluation: JSON and CSV for programs, a plot and a page with the worst images for people."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from everymask.files import atomic_write, check_writable_folder
from everymask.report import page
from everymask.report.overlay import draw_overlay, suggested_magnification
from everymask.report.svg import Series, bar_chart, line_chart

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from everymask.metrics import Table
    from everymask.metrics.evaluate import Evaluation
    from everymask.types import Dataset, Sample, Segments

SHOWN = ("accuracy", "f1", "precision", "recall")
"""Figures at IoU thresholds that the plot shows, if the protocol has them."""
HIT, MISS = (70, 170, 255), (255, 140, 0)
LEGEND = (
    "Truth left, prediction right. Blue: matched (IoU above 0.5). "
    "Orange: missed (left) or predicted where nothing is, or too different (right)."
)
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
    curves, bars = _curves(evaluation), _bars(evaluation)
    if (curves or bars) and importlib.util.find_spec("matplotlib") is not None:
        _plot(folder / "plot.png", curves, bars)
    body = [page.tiles(headline(evaluation)), "<div class='charts'>"]
    if curves:
        body.append(line_chart(curves, x_label="IoU threshold", y_label="Figures by IoU threshold", y_range=(0, 1)))
    if bars:
        body.append(bar_chart(bars[:MOST_BARS], label="IoU of the categories"))
    body += ["</div>", *(page.table(each) for each in evaluation.tables)]
    pictures = _worst_images(evaluation, data, predict, worst)
    if pictures:
        body += ["<h2>Worst images</h2>", f"<p class='quiet'>{LEGEND}</p>"]
        body += ["<div class='pictures'>", *pictures, "</div>"]
    body += [page.table(each) for each in tables if each not in evaluation.tables]
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
    """The protocol's tables and, where it keeps single images, theirs."""
    images = getattr(evaluation.metric, "images", None)
    return [*evaluation.tables, *([images()] if callable(images) else [])]


def headline(evaluation: Evaluation) -> list[tuple[str, str]]:
    """The few figures to look at first: (name, value)."""
    chosen = [("protocol", evaluation.protocol), ("images", f"{evaluation.images:,}")]
    counts = [name for name in ("true_objects", "predicted_objects") if name in evaluation.figures]
    chosen += [(name.replace("_", " "), f"{evaluation.figures[name]:,.0f}") for name in counts]
    names = ("accuracy@0.5", "accuracy@0.7", "mean_accuracy", "f1@0.5", "aji", "miou", "pixel_accuracy", "dice")
    present = [name for name in names if name in evaluation.figures] or list(evaluation.figures)[:6]
    return chosen + [(name.replace("_", " "), page.cell(float(evaluation.figures[name]))) for name in present]


def _curves(evaluation: Evaluation) -> list[Series]:
    """Figures with a threshold in their name, such as ``accuracy@0.5``."""
    made = []
    for name in SHOWN:
        pattern = re.compile(rf"{name}@([0-9.]+)")
        found = [
            (float(match[1]), value) for key, value in evaluation.figures.items() if (match := pattern.fullmatch(key))
        ]
        if len(found) > 1:
            thresholds, values = zip(*sorted(found), strict=True)
            made.append(Series(name, thresholds, values))
    return made


def _bars(evaluation: Evaluation) -> list[tuple[str, float]]:
    """IoU of each category, if the protocol has a table of it."""
    for each in evaluation.tables:
        if each.columns[0] == "category" and "IoU" in each.columns:
            column = each.columns.index("IoU")
            return [(str(row[0]), float(row[column])) for row in each.rows]
    return []


def _worst_images(
    evaluation: Evaluation, data: Dataset, predict: Callable[[Sample], Segments], count: int
) -> list[str]:
    """Pictures of the images with the lowest accuracy at the lowest threshold."""
    listed = all_tables(evaluation)[len(evaluation.tables) :]
    if not listed:
        return []
    content = listed[0]
    column = next((i for i, name in enumerate(content.columns) if name.startswith("accuracy@")), None)
    if column is None:
        return []
    rows = sorted(
        (row for row in content.rows if math.isfinite(float(row[column]))), key=lambda row: float(row[column])
    )
    samples = {sample.name: sample for sample in data} if rows else {}
    made = []
    for row in rows[:count]:
        sample = samples[str(row[0])]
        truth = sample.segments
        if truth is None or len(truth.size) != 2:
            continue
        caption = f"{sample.name}: {content.columns[column]} {page.cell(row[column])}"
        text = f"{len(truth)} objects annotated, {int(row[3])} predicted"
        made.append(page.picture(compared(sample.image, truth, predict(sample)), caption, text))
    return made


def compared(image: NDArray[Any], truth: Segments, prediction: Segments, side: int = 512) -> NDArray[np.uint8]:
    """Overlays of truth (left) and prediction (right), (h, w, 3), each at most `side` pixels high and wide.

    Objects of either that overlap one of the other with an IoU above 0.5 are drawn in blue, the others in orange.

    Args:
        image: (H, W, C).
        truth: Of the same size.
        prediction: Likewise.
        side: In pixels.
    """
    from everymask.report.picture import resized

    magnify = suggested_magnification(truth.size, side)
    halves = [
        draw_overlay(image, each, colours=np.where(hit[:, None], HIT, MISS).astype(np.uint8), magnify=magnify)
        for each, hit in zip((truth, prediction), matches(truth, prediction), strict=True)
    ]
    share = min(1.0, side / max(halves[0].shape[:2]))
    if share < 1:
        height, width = (max(1, round(share * each)) for each in halves[0].shape[:2])
        halves = [resized(each, height, width) for each in halves]
    gap = np.full((halves[0].shape[0], 6, 3), 128, np.uint8)
    return np.hstack([halves[0], gap, halves[1]])


def matches(
    truth: Segments, prediction: Segments, threshold: float = 0.5
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(N,) which objects of the truth, and (M,) of the prediction, overlap one of the other with IoU > `threshold`.

    From 0.5 on an object has at most one such partner, so that no assignment is needed. Categories are not looked at.
    """
    from everymask.ops.labels import label_overlap

    maps = [each.label_map("last") for each in (truth, prediction)]
    first, second, shared = label_overlap(*maps)
    both = (first > 0) & (second > 0)
    first, second, shared = first[both] - 1, second[both] - 1, shared[both]
    counts = (len(truth), len(prediction))
    areas = [
        np.bincount(np.maximum(ids, 0).ravel(), minlength=n + 1)[1:]
        for ids, n in zip(maps, map(len, (truth, prediction)), strict=True)
    ]
    good = shared > threshold * (areas[0][first] + areas[1][second] - shared)
    hits = np.zeros(counts[0], bool), np.zeros(counts[1], bool)
    hits[0][first[good]] = True
    hits[1][second[good]] = True
    return hits


def _plot(path: Path, curves: list[Series], bars: list[tuple[str, float]]) -> None:
    """The plot as PNG, with matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = bars[:MOST_BARS]
    panels = bool(curves) + bool(shown)
    figure = Figure(figsize=(6 * panels, max(4, 0.22 * len(shown) + 1)), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    if curves:
        axes = figure.add_subplot(1, panels, 1)
        for each in curves:
            axes.plot([x for x, _ in each.points()], [y for _, y in each.points()], "o-", ms=3.5, label=each.name)
        axes.set(xlabel="IoU threshold", ylim=(0, 1.02), title="Matching of objects")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    if shown:
        axes = figure.add_subplot(1, panels, panels)
        names = [name for name, _ in shown][::-1]
        axes.barh(names, [0.0 if math.isnan(value) else value for _, value in shown][::-1])
        axes.set(xlim=(0, 1), title="IoU of the categories")
        axes.grid(axis="x", alpha=0.3)
    with atomic_write(path) as temporary:
        figure.savefig(temporary)


def _json_number(value: str | int | float) -> str | int | float | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", title.lower()).strip("_") or "table"
