"""`everymask compare`: the runs, what is measured of them, and the table."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from train_toys import picture

from everymask.cli import main, runs
from everymask.cli.compare import named_commands
from everymask.errors import InputError
from everymask.metrics import make_metric
from everymask.metrics.evaluate import Evaluation
from everymask.report.methods import Entry, accuracy_chart, comparison_table, write_comparison
from everymask.types import Categories

TOY = "train_toys:Toy"
SHORT = "--crop 16 --batch-size 4 --workers 0"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Label images of discs, and a path on which the processes find the toy."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    for part, numbers in (("train", range(6)), ("val", range(6, 9))):
        for number in numbers:
            image, segments = picture(number)
            for name, pixels in (("images", image[..., 0]), ("labels", segments.label_map().astype(np.uint8))):
                folder = tmp_path / "data" / part / name
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "data"


def test_methods_are_trained_scored_and_tabled(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = ["compare", f"{TOY} {SHORT}", f"{TOY} {SHORT} --seed 1", f"{TOY} --nonsense 3"]
    command += ["--data", str(data / "train"), "--val", str(data / "val"), "--epochs", "2", "--out", str(out)]
    assert main([*command, "--json"]) == 2  # the third cannot be trained; the table of the others is there
    printed = capsys.readouterr()
    assert "1 of 3 methods" in printed.err and "nonsense" in printed.err
    methods = json.loads(printed.out)["methods"]
    assert [each["epochs"] for each in methods] == [2, 2]
    for each in methods:
        assert 0 < each["figures"]["miou"] <= 1
        assert each["training_minutes"] > 0 and each["milliseconds"] > 0
        assert 0.05 < each["gigabytes"] < 20  # torch alone takes more than 50 MB
        log = (out / each["name"] / "log.jsonl").read_text().splitlines()
        assert json.loads(log[0])["parameters"] == each["parameters"]
    rows = list(csv.DictReader((out / "comparison.csv").open()))
    assert {row["method"] for row in rows} == {each["name"] for each in methods}
    assert "<table" in (out / "comparison.html").read_text()

    assert main(command) == 2
    assert "--resume" in capsys.readouterr().err
    before = (out / methods[0]["name"] / "model.safetensors").stat().st_mtime_ns
    assert main([*command[:2], *command[4:], "--resume", "--quiet"]) == 0
    assert (out / methods[0]["name"] / "model.safetensors").stat().st_mtime_ns == before


def test_minutes_become_epochs_by_the_pace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[str]) -> dict[str, float]:
        commands.append(command)
        folder = Path(command[command.index("--out") + 1])
        folder.mkdir(parents=True)
        lines = [{"event": "start", "images": 120}, {"event": "epoch", "images_per_second": 8.0}]
        (folder / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
        return {}

    monkeypatch.setattr(runs, "_run", run)
    made = runs.Runs(tmp_path, None, tmp_path, None, runs.Budget(minutes=10), resume=False)
    # 600 seconds at 8 images a second are 4,800 images: 40 epochs.
    assert made._length(["toy"], tmp_path / "toy") == ["--epochs", "40", "--validate-every", "4"]
    assert commands[0][commands[0].index("--steps-per-epoch") + 1] == str(runs.TRIAL_STEPS)
    assert not any(each.is_dir() for each in tmp_path.iterdir())  # nothing is left of the trial
    assert made._length(["toy", "--validate-every", "1"], tmp_path / "toy") == ["--epochs", "40"]


def test_commands_get_names() -> None:
    found = named_commands(["unet", "unet --backbone resnet34", "stardist --rays 64"])
    assert list(found) == ["unet", "unet_backbone_resnet34", "stardist_rays_64"]
    assert found["unet_backbone_resnet34"] == ["unet", "--backbone", "resnet34"]
    for wrong in (["unet", "unet"], ["unet 'a"], [""]):
        with pytest.raises(InputError):
            named_commands(wrong)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["unet", "--minutes", "1", "--epochs", "2"], "not both"),
        (["unet", "--minutes", "-1"], "above 0"),
        (["unett", "--epochs", "1"], "unet"),
    ],
)
def test_mistakes_are_told_before_training(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    assert main(["compare", *options, "--data", str(data / "train"), "--out", str(tmp_path / "o")]) == 2
    assert words in capsys.readouterr().err


def entry(name: str, accuracy: dict[str, float], **others: Any) -> Entry:
    metric = make_metric("matching", Categories(["cell"]))
    values = {"parameters": 10, "epochs": 1, "training_minutes": 1.0, "processor_minutes": 1.0}
    values |= {"gigabytes": 1.0, "milliseconds": 1.0, **others}
    return Entry(name=name, evaluation=Evaluation("matching", 3, accuracy, [], metric), **values)


def test_the_best_method_comes_first_and_unknown_figures_are_empty(tmp_path: Path) -> None:
    better = {"mean_accuracy": 0.7, "accuracy@0.5": 0.9, "accuracy@0.7": 0.5}
    worse = {"mean_accuracy": 0.6, "accuracy@0.5": 0.8, "accuracy@0.7": math.nan}
    entries = [entry("b", worse, processor_minutes=math.nan), entry("a", better)]
    table = comparison_table(entries)
    assert [row[0] for row in table.rows] == ["a", "b"]
    assert table.columns[:4] == ("method", "mean_accuracy", "accuracy@0.5", "accuracy@0.7")
    write_comparison(tmp_path, entries, {"data": "d"})
    values = json.loads((tmp_path / "comparison.json").read_text(), parse_constant=pytest.fail)
    assert values["methods"][0]["processor_minutes"] is None
    chart = accuracy_chart(entries)
    assert chart.count("<polyline") == 1  # the other method has a single point
    assert accuracy_chart([entry("c", {"miou": 0.5})]) == ""
