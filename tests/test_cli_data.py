"""The verbs that read and write data: predict, evaluate, convert, inspect, demo."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from everymask.cli import main
from everymask.formats import open_dataset
from everymask.formats.images import read_labels

CORNERS = ((5, 5), (5, 40), (40, 10), (45, 50))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images of four squares with their masks."""
    folder = tmp_path_factory.mktemp("data")
    for each in ("images", "masks"):
        (folder / each).mkdir()
    for i in range(3):
        ids = np.zeros((64, 72), np.uint16)
        for label, (y, x) in enumerate(CORNERS, 1):
            ids[y : y + 10 + i, x : x + 12] = label
        image = np.where(ids > 0, 200, 20) + np.random.default_rng(i).integers(0, 20, ids.shape)
        Image.fromarray(image.astype(np.uint8)).save(folder / "images" / f"im{i}.png")
        Image.fromarray(ids).save(folder / "masks" / f"im{i}.png")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights, which finds something or nothing, but fast."""
    import torch

    from everymask.model import Model

    torch.manual_seed(0)
    made = Model("stardist", ["square"], rays=8, base=4, depth=1, features=8)
    made.method.thresholds = {"probability": 0.05, "overlap": 0.3}
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    made.save(path)
    return path


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# -- predict -----------------------------------------------------------------------------------------------------------


def test_predict_writes_what_it_says(
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(data / "images"), "--model", str(model), "--out", str(tmp_path), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    rows = read_rows(Path(result["measures"]))
    assert result["images"] == 3 and result["objects"] == len(rows)
    for i in range(3):
        labels = read_labels(tmp_path / "labels" / f"im{i}.tif")
        own = [row for row in rows if row["image"] == f"im{i}"]
        assert labels.shape == (64, 72) and labels.max() == len(own)
        assert [int(row["area"]) for row in own] == np.bincount(labels.ravel())[1:].tolist()
        overlay = Image.open(tmp_path / "overlays" / f"im{i}.png")
        assert overlay.size == (4 * 72, 4 * 64)  # small images are magnified for contours to be thin


def test_predict_in_other_formats(data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = [str(data / "images" / "im?.png"), "--model", str(model), "--no-overlay"]
    assert main(["predict", *common, "--out", str(tmp_path / "a"), "--format", "png"]) == 0
    assert "objects in 3 images" in capsys.readouterr().out
    assert main(["predict", *common, "--out", str(tmp_path / "b"), "--format", "coco", "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    assert sorted(each.name for each in (tmp_path / "a").iterdir()) == ["labels", "measures.csv"]
    assert sorted(each.name for each in (tmp_path / "b").iterdir()) == ["measures.csv", "predictions.json"]
    counts = [read_labels(tmp_path / "a" / "labels" / f"im{i}.png").max() for i in range(3)]
    listed = json.loads((tmp_path / "b" / "predictions.json").read_text())
    ids = [each["image_id"] for each in listed["annotations"]]
    assert [ids.count(image["id"]) for image in listed["images"]] == counts


def test_predict_does_not_hide_images_that_fail(
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    good = (data / "images" / "im0.png").read_bytes()
    (tmp_path / "in" / "good.png").write_bytes(good)
    (tmp_path / "in" / "bad.png").write_bytes(good[: len(good) // 2])
    assert main(["predict", str(tmp_path / "in"), "--model", str(model), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "bad.png" in error and "1 of 2" in error
    assert [each.name for each in (tmp_path / "out" / "labels").iterdir()] == ["good.tif"]


# -- evaluate ----------------------------------------------------------------------------------------------------------


def test_evaluate_of_the_truth_itself_is_perfect(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", "--data", str(data), "--predictions", str(data / "masks"), "--json"]
    assert main(arguments) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["protocol"] == "matching" and scores["images"] == 3
    assert scores["figures"]["accuracy@0.95"] == 1 and scores["figures"]["true_objects"] == 12


@pytest.mark.parametrize("ending", ["", "_labels", ".mask", "_cp_masks"])
def test_evaluate_finds_label_images_of_other_programs(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str
) -> None:
    (tmp_path / "deep").mkdir()
    for i in range(3):
        labels = read_labels(data / "masks" / f"im{i}.png")
        labels[labels == 4] = 0  # one of four missed
        Image.fromarray(labels.astype(np.uint16)).save(tmp_path / "deep" / f"im{i}{ending}.png")
    out = tmp_path / "scores.json"
    assert main(["evaluate", "--data", str(data), "--predictions", str(tmp_path), "--out", str(out)]) == 0
    assert "accuracy" in capsys.readouterr().out
    assert json.loads(out.read_text())["figures"]["accuracy@0.5"] == pytest.approx(9 / 12)


def test_evaluate_says_which_predictions_are_missing(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.zeros((64, 72), np.uint8)).save(tmp_path / "im1.png")
    assert main(["evaluate", "--data", str(data), "--predictions", str(tmp_path), "--out", str(tmp_path / "o")]) == 2
    error = capsys.readouterr().err
    assert "2 of 3 images" in error and "'im0'" in error and not (tmp_path / "o").exists()


def test_options_of_a_model_are_refused_for_predictions(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--data", str(data), "--predictions", str(data / "masks"), "--score", "0.5"]) == 2
    assert "--score" in capsys.readouterr().err


def test_evaluate_agrees_between_model_labels_and_coco(
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, scores = str(data / "images"), {}
    for name in ("labels", "coco"):
        out = str(tmp_path / name)
        assert main(["predict", images, "--model", str(model), "--out", out, "--format", name, "--no-overlay"]) == 0
    capsys.readouterr()
    for source in (["--model", model], ["--predictions", tmp_path / "labels" / "labels"],
                   ["--predictions", tmp_path / "coco" / "predictions.json"]):  # fmt: skip
        assert main(["evaluate", "--data", str(data), *map(str, source), "--json"]) == 0
        scores[str(source[1])] = json.loads(capsys.readouterr().out)["figures"]
    first, second, third = scores.values()
    assert first == second == third and first["predicted_objects"] > 0


def test_evaluate_report(data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--data", str(data), "--model", str(model), "--out", str(tmp_path / "r")]) == 0
    assert "report" in capsys.readouterr().out
    assert {"report.html", "evaluation.json", "matching.csv", "images.csv"} <= {
        each.name for each in (tmp_path / "r").iterdir()
    }


def test_evaluate_semantic_predictions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classes = np.zeros((20, 30), np.uint8)
    classes[:, 10:20], classes[:, 20:] = 1, 2
    for each in ("images", "masks"):
        (tmp_path / "d" / each).mkdir(parents=True)
    Image.fromarray(classes * 100).save(tmp_path / "d" / "images" / "a.png")
    Image.fromarray(classes).save(tmp_path / "d" / "masks" / "a.png")
    listed = {
        "kind": "semantic",
        "categories": [{"id": i, "name": name} for i, name in enumerate(("sky", "sea", "sun"))],
    }
    (tmp_path / "d" / "categories.json").write_text(json.dumps({**listed, "void": 255, "background": None}))
    predicted = classes.copy()
    predicted[:10, 20:] = 1
    (tmp_path / "p").mkdir()
    Image.fromarray(predicted).save(tmp_path / "p" / "a.png")
    assert main(["evaluate", "--data", str(tmp_path / "d"), "--predictions", str(tmp_path / "p"), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)["figures"]
    assert figures["iou/sky"] == 1 and figures["iou/sun"] == 0.5 and figures["iou/sea"] == pytest.approx(200 / 300)


# -- convert and inspect -----------------------------------------------------------------------------------------------


def test_convert_to_coco_and_back(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(data), str(tmp_path / "coco"), "--to", "coco"]) == 0
    assert "no place for" not in capsys.readouterr().err
    arguments = ["convert", str(tmp_path / "coco"), str(tmp_path / "back"), "--to", "label_images", "--from", "coco"]
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 3
    for before, after in zip(open_dataset(data), open_dataset(tmp_path / "back"), strict=True):
        assert before.name == after.name and before.segments is not None and after.segments is not None
        assert np.array_equal(before.segments.label_map(), after.segments.label_map())
    assert main(["convert", str(data), str(tmp_path / "coco"), "--to", "coco"]) == 2
    assert "not empty" in capsys.readouterr().err


def test_inspect(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(data)]) == 0
    shown = capsys.readouterr().out
    assert "3 images" in shown and "64x72 (3)" in shown and "findings: none" in shown
    assert main(["inspect", str(data), "--format", "label_images", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["categories"][0]["objects"] == 12 and found["categories"][0]["largest_area"] == 12 * 12


# -- export ------------------------------------------------------------------------------------------------------------


def test_export_writes_a_model_that_onnx_accepts(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    assert main(["export", str(model), "--to", "onnx", "--out", str(tmp_path / "m.onnx"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    onnx.checker.check_model(result["file"])
    assert all(difference < 1e-3 for difference in result["difference"].values())


# -- demo --------------------------------------------------------------------------------------------------------------


def test_demo(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from everymask.cli import demo

    monkeypatch.setattr(demo, "MODEL", str(model))
    assert main(["demo", "--out", str(tmp_path / "demo"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["images"]
    assert len(rows) >= 4 and any(row["accuracy"] is not None for row in rows)
    for row in rows:
        stem = Path(row["file"]).stem
        assert read_labels(tmp_path / "demo" / "labels" / f"{stem}.tif").max() == row["objects"]
        assert (tmp_path / "demo" / "overlays" / f"{stem}.png").is_file()
    with Image.open(tmp_path / "demo" / "contact_sheet.png") as sheet:
        assert sheet.size[0] > 1000
    measured = read_rows(tmp_path / "demo" / "measures.csv")
    assert len(measured) == sum(row["objects"] for row in rows)
