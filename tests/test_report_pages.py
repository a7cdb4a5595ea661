"""Reports of trainings and evaluations: the figures in them, and that they stand alone."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from everymask.errors import InputError
from everymask.metrics import Table
from everymask.metrics.evaluate import evaluate
from everymask.report import page
from everymask.report.comparison import compared, matches
from everymask.report.curves import read_log, training_report
from everymask.report.evaluation import evaluation_json, headline, write_csv, write_evaluation
from everymask.report.inspection import inspect_dataset
from everymask.report.svg import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Series,
    bar_chart,
    line_chart,
    log_ticks,
    ticks,
)
from everymask.types import Categories, Dataset, Sample, Segments, Task

# -- charts ------------------------------------------------------------------------------------------------------------


def drawn(html: str) -> ElementTree.Element:
    """The SVG of a figure, which must be well-formed."""
    found = ElementTree.fromstring(html)
    svg = found if found.tag == "svg" else found.find("svg")
    assert svg is not None
    return svg


def test_lines_are_where_their_values_are() -> None:
    html = line_chart([Series("a & b", [0, 5, 10], [0.0, 1.0, 0.5])], x_label="x", y_label="y <1>", y_range=(0, 1))
    line = drawn(html).find("polyline")
    assert line is not None
    found = np.array([[float(each) for each in pair.split(",")] for pair in line.attrib["points"].split()])
    x = LEFT + np.array([0, 0.5, 1]) * (WIDTH - LEFT - RIGHT)
    y = HEIGHT - BOTTOM - np.array([0, 1, 0.5]) * (HEIGHT - TOP - BOTTOM)
    assert np.abs(found - np.stack([x, y], axis=1)).max() < 0.06
    assert "y &lt;1&gt;" in html


def test_logarithmic_axis_is_even_in_the_exponent_and_leaves_out_zero() -> None:
    html = line_chart([Series("a", [0, 1, 2, 3], [100, 10, 0, 1])], x_label="x", y_label="y", logarithmic=True)
    line = drawn(html).find("polyline")
    assert line is not None
    y = [float(pair.split(",")[1]) for pair in line.attrib["points"].split()]
    assert len(y) == 3 and abs((y[1] - y[0]) - (y[2] - y[1])) < 0.11


def test_charts_of_next_to_nothing() -> None:
    assert "Nothing to draw" in line_chart([Series("a", [1, 2], [None, math.nan])], x_label="x", y_label="y")
    assert drawn(line_chart([Series("a", [1], [3.0])], x_label="x", y_label="y")).find("circle") is not None
    assert drawn(line_chart([Series("a", [1, 2], [3.0, 3.0])], x_label="x", y_label="y", logarithmic=True)) is not None


def test_bars_are_as_long_as_their_values() -> None:
    svg = drawn(bar_chart([("a", 0.5), ("b", 0.25), ("none", math.nan)], label="IoU"))
    widths = [float(each.attrib["width"]) for each in svg.findall("rect")]
    assert len(widths) == 2 and abs(widths[0] - 2 * widths[1]) < 0.11


@pytest.mark.parametrize("low, high", [(0, 1), (-3, 17), (0.0301, 0.0302), (1e5, 3e6), (2, 60)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 3 <= len(found) <= 8 and min(found) >= low - 1e-9 * abs(low) and max(found) <= high * (1 + 1e-9)
    step = found[1] - found[0]
    mantissa = step / 10 ** math.floor(math.log10(step * 1.0001))
    assert min(abs(mantissa - each) for each in (1, 2, 5, 10)) < 1e-6


def test_log_ticks() -> None:
    assert log_ticks(-1, 1) == pytest.approx([0.1, 0.2, 0.5, 1, 2, 5, 10])
    assert log_ticks(0.01, 0.02) == pytest.approx([10**0.01, 10**0.015, 10**0.02])


def test_page_stands_alone_and_is_well_formed() -> None:
    table = Table("T & co", ("name", "value"), (("<a>", 0.12345), (0.55, math.nan), ("n", 1234)), "A note.")
    html = page.page("Title <b>", "sub & title", [page.table(table), page.tiles([("x", "y")]), page.listing("l", [])])
    assert not re.search(r'(src|href)="?(http|//)|@import|url\(', html)
    ElementTree.fromstring(
        html.replace("<!doctype html>\n", "")
        .replace('<meta charset="utf-8">', "")
        .replace('<meta name="viewport" content="width=device-width, initial-scale=1">', "")
    )
    assert "&lt;a&gt;" in html and "0.123" in html and "<td>-</td>" in html and "1,234" in html and ">0.55<" in html


# -- training ----------------------------------------------------------------------------------------------------------


def write_log(folder: Path, epochs: int = 3, ended: bool = True) -> None:
    start = {
        "event": "start",
        "method": "stardist",
        "config": {"rays": 32},
        "recipe": {"epochs": epochs},
        "images": 9,
        "validation_images": 2,
        "steps_per_epoch": 4,
        "metric": ["matching", "mean_accuracy"],
    }
    events: list[dict[str, Any]] = [start]
    for epoch in range(1, epochs + 1):
        loss = {"probability": 1 / epoch, "distances": 2 / epoch, "total": 3 / epoch}
        figures = {"loss": 4 / epoch, "mean_accuracy": 0.1 * epoch}
        events.append(
            {"event": "step", "epoch": epoch, "step": 4 * epoch - 1, "loss": loss, "learning_rate": 0.01 / epoch}
        )
        events.append(
            {
                "event": "epoch",
                "epoch": epoch,
                "step": 4 * epoch,
                "loss": loss,
                "learning_rate": 0.01,
                "images_per_second": 5.0,
                "validation": figures,
                "best": epoch < 3,
                "seconds": 60.0 * epoch,
            }
        )
    if ended:
        events.append(
            {
                "event": "end",
                "reason": "finished",
                "epoch": epochs,
                "best_epoch": 2,
                "seconds": 180.0,
                "thresholds": {"probability": 0.4},
                "validation": {"mean_accuracy": 0.2},
                "tuned": {"mean_accuracy": 0.2345},
            }
        )
    (folder / "log.jsonl").write_text("".join(json.dumps(each) + "\n" for each in events))


def test_training_report_shows_the_run(tmp_path: Path) -> None:
    write_log(tmp_path)
    html = training_report(tmp_path).read_text()
    assert html.count("<svg") == 4  # loss, metric, terms, learning rate
    assert "0.2345" in html and "3.0 min" in html and "stardist" in html
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG") == (
        importlib.util.find_spec("matplotlib") is not None
    )
    run = read_log(tmp_path / "log.jsonl")
    assert run.losses()[0].points() == [(1, 3.0), (2, 1.5), (3, 1.0)]
    assert run.rates().points()[0] == (0.75, 0.01)
    assert run.best_epoch == 2


def test_training_report_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_log(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "<polyline" in training_report(tmp_path).read_text()
    assert not (tmp_path / "curves.png").exists()


@pytest.mark.parametrize("epochs", [0, 1])
def test_training_report_of_a_run_that_was_killed(tmp_path: Path, epochs: int) -> None:
    write_log(tmp_path, epochs, ended=False)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"event": "epoch", "epo')
    assert training_report(tmp_path).is_file()


def test_logs_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the log"):
        training_report(tmp_path)
    (tmp_path / "log.jsonl").write_text('{"no": "event"}\n{"event": "end"}\n')
    with pytest.raises(InputError, match="line 1"):
        training_report(tmp_path)


# -- evaluation --------------------------------------------------------------------------------------------------------


def two_images() -> tuple[Dataset, dict[str, Segments]]:
    """A data set of two images and predictions: the first image is right, of the second one of two objects."""
    first = np.zeros((30, 40), np.int32)
    first[2:12, 2:12], first[15:25, 20:30] = 1, 2
    second = np.zeros((30, 40), np.int32)
    second[5:15, 5:15], second[16:26, 5:15] = 1, 2
    wrong = np.zeros((30, 40), np.int32)
    wrong[5:15, 5:15], wrong[0:4, 30:38] = 1, 2
    samples = [
        Sample(name, lambda: np.zeros((30, 40, 1), np.uint8), lambda ids=ids: Segments.from_label_map(ids))
        for name, ids in (("right", first), ("half", second))
    ]
    data = Dataset.of(samples, Categories(["cell"]), frozenset({Task.INSTANCE}))
    return data, {"right": Segments.from_label_map(first), "half": Segments.from_label_map(wrong)}


def test_evaluation_folder(tmp_path: Path) -> None:
    data, predictions = two_images()
    found = evaluate(data, lambda sample: predictions[sample.name])
    html = write_evaluation(
        tmp_path / "r", found, data, lambda sample: predictions[sample.name], {"model": "m<1>"}
    ).read_text()
    assert html.count('src="data:image/png;base64,') == 2 and "m&lt;1&gt;" in html
    assert html.index("half: accuracy@0.5 0.333") < html.index("right: accuracy@0.5 1.000")  # the worst comes first
    scores = json.loads((tmp_path / "r" / "evaluation.json").read_text())
    assert scores["figures"]["tp@0.5"] == 3 and scores["figures"]["accuracy@0.5"] == pytest.approx(3 / 5)
    rows = (tmp_path / "r" / "images.csv").read_text().splitlines()
    assert {row.split(",")[0] for row in rows[1:]} == {"right", "half"}
    assert ("accuracy@0.5", "0.600") in headline(found)


def test_figures_that_are_not_defined_are_null_and_empty(tmp_path: Path) -> None:
    data, _ = two_images()
    found = evaluate(data, lambda sample: Segments.empty((30, 40)))
    values = json.loads(json.dumps(evaluation_json(found, {}), allow_nan=False))
    assert values["figures"]["accuracy@0.5"] == 0
    write_csv(tmp_path / "t.csv", Table("t", ("a", "b"), (("x", math.nan), ("y", 1 / 3))))
    rows = csv.reader((tmp_path / "t.csv").read_text().splitlines())
    assert list(rows) == [["a", "b"], ["x", ""], ["y", repr(1 / 3)]]


def test_matches_equal_brute_force() -> None:
    rng = np.random.default_rng(0)
    base = np.kron(np.arange(1, 26).reshape(5, 5), np.ones((8, 8), int))
    for shift in (0, 1, 2, 3, 4):
        first, second = base * (rng.random((40, 40)) < 0.9), np.roll(base, shift, 1) * (rng.random((40, 40)) < 0.9)
        a, b = Segments.from_label_map(first), Segments.from_label_map(second)
        x, y = a.masks().reshape(len(a), -1).astype(int), b.masks().reshape(len(b), -1).astype(int)
        shared = x @ y.T
        good = shared / (x.sum(1)[:, None] + y.sum(1)[None] - shared) > 0.5
        found = matches(a, b)
        assert np.array_equal(found[0], good.any(1)) and np.array_equal(found[1], good.any(0))


def test_matches_of_boxes_and_of_tags() -> None:
    truth = Segments((30, 40), [1, 1], box=[[0, 0, 10, 10], [20, 0, 30, 10]])
    prediction = Segments((30, 40), [1, 2], box=[[21, 0, 30, 10], [0, 12, 10, 22]])
    assert [each.tolist() for each in matches(truth, prediction)] == [[False, True], [True, False]]
    tags = matches(Segments((30, 40), [3]), Segments((30, 40), [1, 3]))
    assert [each.tolist() for each in tags] == [[True], [False, True]]


def test_large_images_are_compared_at_the_size_asked_for() -> None:
    ids = np.kron(np.arange(1, 5).reshape(2, 2), np.ones((400, 300), int)).astype(np.int32)
    truth = Segments.from_label_map(ids)
    assert compared(np.zeros((800, 600)), truth, Segments.empty((800, 600)), side=200).shape == (200, 306, 3)


# -- inspection --------------------------------------------------------------------------------------------------------


def test_inspection_counts_and_finds() -> None:
    flat = Sample("flat", lambda: np.full((30, 40, 1), 7, np.uint8), lambda: Segments.empty((30, 40)))
    bare = Sample("bare", lambda: np.arange(1200, dtype=np.uint16).reshape(30, 40, 1), None)
    nan = Sample("nan", lambda: np.full((4, 4, 1), np.nan), lambda: Segments.from_label_map(np.eye(4, dtype=int)))

    def broken() -> np.ndarray:
        raise InputError("bad.png is cut off")

    bad = Sample("bad", broken, None)
    data, _ = two_images()
    samples = [*data, flat, bare, nan, bad]
    found = inspect_dataset(Dataset.of(samples, Categories(["cell", "dog"]), frozenset({Task.INSTANCE})))
    assert found["images"] == 6 and found["annotated"] == 4
    assert found["categories"][0] | {"name": ""} == {
        "id": 1,
        "name": "",
        "objects": 5,
        "images": 3,
        "splits": {},
        "median_area": 100,
        "smallest_area": 4,
        "largest_area": 100,
    }
    assert found["sizes"] == {"30x40": 4, "4x4": 1} and found["types"] == {"uint8": 3, "uint16": 1, "float64": 1}
    text = "\n".join(each["message"] for each in found["findings"])
    for part in (
        "flat: every pixel has the value 7",
        "annotated, but without any object in flat",
        "no annotation in bare",
        "bad.png is cut off",
        "nan: 16 pixel values are NaN",
        "category 'dog' occurs in no image",
        "different number types",
    ):
        assert part in text, part
