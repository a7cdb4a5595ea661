"""Whole training runs of a toy method."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from train_toys import CATEGORIES, GREY, Toy, curve, picture, pictures, run

import everymask.train.loop as loop
from everymask.errors import InputError
from everymask.predict.predictor import Predictor
from everymask.train.checkpoint import read_checkpoint
from everymask.train.setup import check_fit
from everymask.types import Categories, Task
from everymask.weights import load_model


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of three epochs."""
    out = tmp_path_factory.mktemp("finished")
    return out, run(out, provenance={"data": "made up"})


def test_a_run_learns_and_writes_its_files(finished, tmp_path):
    out, result = finished
    assert {each.name for each in out.iterdir()} == {
        "log.jsonl",
        "checkpoint.safetensors",
        "best.safetensors",
        "model.safetensors",
    }
    assert result.model == out / "model.safetensors"
    assert result.epochs == 3
    losses = [entry["validation"]["loss"] for entry in result.history]
    assert losses[-1] < 0.8 * losses[0]
    assert result.validation["miou"] > 0.5


def test_the_model_file_gives_the_figures_it_states(finished):
    _, result = finished
    loaded = load_model(result.model)
    assert loaded.categories == CATEGORIES
    assert loaded.preprocessing == GREY
    assert loaded.method.thresholds == result.thresholds
    assert loaded.metadata["provenance"] == {"data": "made up"}
    assert loaded.metadata["recipe"] == json.loads(json.dumps(Toy.recipe().to_json()))
    stated = loaded.metadata["training"]["validation"]["miou"]
    # The protocol's mean is over the categories, of which there is one: intersection / union.
    predictor = Predictor(loaded.method, loaded.preprocessing, "cpu", "float32")
    shared = union = 0
    for number in range(100, 103):
        image, truth = picture(number)
        found, true = predictor(image).label_map() > 0, truth.label_map() > 0
        shared, union = shared + np.count_nonzero(found & true), union + np.count_nonzero(found | true)
    assert stated == pytest.approx(shared / union)


def test_the_log_has_the_documented_entries(finished):
    out, result = finished
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [entry["event"] for entry in entries] == ["start", "epoch", "epoch", "epoch", "end"]
    start, *epochs, end = entries
    assert start["method"] == "train_toys:Toy"
    assert start["images"] == 10
    assert start["validation_images"] == 3
    assert start["parameters"] == sum(each.numel() for each in Toy().parameters())
    assert [entry["epoch"] for entry in epochs] == [1, 2, 3]
    assert [entry["step"] for entry in epochs] == [3, 6, 9]
    for entry in epochs:
        assert entry["loss"]["total"] == pytest.approx(entry["loss"]["entropy"] + entry["loss"]["square"], rel=1e-5)
        validation = entry["validation"]
        assert validation["loss"] == pytest.approx(validation["loss/entropy"] + validation["loss/square"])
    best = max(epochs, key=lambda entry: entry["validation"]["miou"])
    assert end["best_epoch"] == best["epoch"] == result.best_epoch
    assert [entry for entry in epochs if entry["best"]][-1] == best
    assert end["reason"] == "finished"


def test_steps_are_logged(tmp_path):
    run(tmp_path, epochs=2, steps_per_epoch=30, val=0)
    steps = curve(tmp_path, ["step"])
    assert [(entry["epoch"], entry["step"]) for entry in steps] == [(1, 20), (2, 40), (2, 60)]
    assert all(entry["gradient_norm"] > 0 for entry in steps)
    epoch = curve(tmp_path)[1]
    assert epoch["loss"] == steps[2]["loss"]  # both are means over the whole second epoch


def test_without_validation_the_last_average_is_kept(tmp_path):
    result = run(tmp_path, val=0)
    tensors, _ = read_checkpoint(tmp_path / "checkpoint.safetensors")
    model = load_file(result.model)
    for name, value in model.items():
        assert torch.equal(value, tensors[f"average/{name}"])
    assert result.best_epoch == 3
    assert result.validation == {}
    assert not (tmp_path / "best.safetensors").exists()


def test_tuned_thresholds_are_no_worse_than_any_other(finished):
    _, result = finished
    loaded = load_model(result.model)
    scores = {}
    for threshold in np.arange(0.1, 0.91, 0.1):
        loaded.method.thresholds = {"probability": float(threshold)}
        predictor = Predictor(loaded.method, loaded.preprocessing, "cpu", "float32")
        shared = union = 0
        for number in range(100, 103):
            image, truth = picture(number)
            found, true = predictor(image).label_map() > 0, truth.label_map() > 0
            shared, union = shared + np.count_nonzero(found & true), union + np.count_nonzero(found | true)
        scores[threshold] = shared / union
    assert result.validation["miou"] >= max(scores.values()) - 0.01


def test_accumulated_batches_equal_a_large_one(tmp_path):
    toy = {"dropout": 0.0, "norm": False}
    run(tmp_path / "large", toy=toy, batch_size=8, epochs=2, val=0)
    run(tmp_path / "small", toy=toy, batch_size=4, accumulate=2, epochs=2, val=0)
    large, small = (load_file(tmp_path / name / "model.safetensors") for name in ("large", "small"))
    for name, value in large.items():
        torch.testing.assert_close(small[name], value, rtol=1e-4, atol=1e-5)
    assert curve(tmp_path / "small")[1]["loss"]["total"] == pytest.approx(
        curve(tmp_path / "large")[1]["loss"]["total"], rel=1e-4
    )


def test_early_stopping(tmp_path):
    result = run(tmp_path, epochs=50, patience=2, learning_rate=1e-9)
    assert result.epochs < 50
    assert result.epochs == result.best_epoch + 2
    assert curve(tmp_path, ["end"])[0]["reason"] == "early_stop"


def test_a_folder_with_a_run_is_not_overwritten(finished):
    out, _ = finished
    before = (out / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match=r"already holds a training run.*--resume.*--out"):
        run(out)
    assert (out / "model.safetensors").read_bytes() == before


def test_resuming_a_finished_run_gives_its_result(finished, tmp_path):
    _, result = finished
    run(tmp_path)
    again = run(tmp_path, resume=True)
    assert again.validation == result.validation
    assert again.best_epoch == result.best_epoch
    assert [each["loss"] for each in again.history] == [each["loss"] for each in result.history]


def test_more_epochs_can_be_added(tmp_path):
    run(tmp_path, epochs=1, schedule="constant")
    run(tmp_path, epochs=2, schedule="constant", resume=True)
    run(tmp_path / "straight", epochs=2, schedule="constant")
    assert curve(tmp_path) == curve(tmp_path / "straight")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"learning_rate": 0.01}, ["learning_rate was 0.05 and is now 0.01"]),
        ({"crop": 20, "flip": "none"}, ["crop was 16 and is now 20", "flip was 'dihedral' and is now 'none'"]),
        ({"toy": {"dropout": 0.5}}, ["method option dropout was 0.2 and is now 0.5"]),
        ({"val": 2}, ["number of validation images was 3 and is now 2"]),
    ],
)
def test_a_changed_run_is_not_resumed(finished, options, words):
    out, _ = finished
    before = (out / "log.jsonl").read_bytes()
    with pytest.raises(InputError) as caught:
        run(out, resume=True, **options)
    for word in ["cannot resume", *words]:
        assert word in str(caught.value)
    assert (out / "log.jsonl").read_bytes() == before


def test_an_infinite_loss_ends_the_run(tmp_path):
    with pytest.raises(InputError, match=r"infinite or NaN in step \d+; lower learning_rate"):
        run(tmp_path, learning_rate=1e30, clip=0.0, epochs=20, val=0, schedule="constant", warmup=0.0)
    tensors, _ = read_checkpoint(tmp_path / "checkpoint.safetensors")
    assert all(torch.isfinite(each).all() for each in tensors.values())


def test_running_out_of_memory_is_explained(tmp_path, monkeypatch):
    def loss(self, outputs, targets):
        return {"entropy": torch.empty(2**60).sum()}

    monkeypatch.setattr(Toy, "loss", loss)
    with pytest.raises(InputError, match=r"out of memory with batch_size 4 and crop 16; lower batch_size"):
        run(tmp_path)


def test_an_interrupted_epoch_goes_on_where_it_was(tmp_path, monkeypatch):
    """Ctrl-C in the middle of an epoch, again and again; the curve is that of an undisturbed run."""
    run(tmp_path / "straight", epochs=2, steps_per_epoch=7)
    original = loop.Engine.step

    def interrupted(self, source, rate):
        norm = original(self, source, rate)
        if self.steps in (3, 5, 10) and self.steps not in seen:
            seen.append(self.steps)
            loop.os.kill(loop.os.getpid(), 2)
        return norm

    seen: list[int] = []
    monkeypatch.setattr(loop.Engine, "step", interrupted)
    for resume in (False, True, True):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "broken", epochs=2, steps_per_epoch=7, resume=resume)
    result = run(tmp_path / "broken", epochs=2, steps_per_epoch=7, resume=True)
    assert seen == [3, 5, 10]
    assert curve(tmp_path / "broken") == curve(tmp_path / "straight")
    straight, broken = (load_file(tmp_path / name / "model.safetensors") for name in ("straight", "broken"))
    assert all(torch.equal(broken[name], straight[name]) for name in straight)
    assert len(result.history) == 2


def test_quiet_says_nothing_and_else_a_line_an_epoch(tmp_path, capsys):
    run(tmp_path / "a", epochs=2)
    assert capsys.readouterr() == ("", "")
    run(tmp_path / "b", epochs=2, quiet=False)
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split("  ")[0] for line in err.splitlines()[:2]] == ["epoch 1/2", "epoch 2/2"]
    assert "miou" in err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train_data": pictures(0)}, "no images to train on"),
        ({"val_data": pictures(0)}, "no images to validate on"),
        (
            {"recipe": Toy.recipe().with_options(crop=17)},
            "crop must be a multiple of 2 for this method, got 17; try 16",
        ),
        ({"categories": Categories(["a", "b"])}, "1 classes, but there are 2 categories"),
        ({"method": Toy(channels=3)}, "takes 3 channels, but the preprocessing makes 1"),
    ],
)
def test_what_does_not_fit_is_told(change, words):
    given = {
        "method": Toy(),
        "train_data": pictures(2),
        "val_data": pictures(1),
        "recipe": Toy.recipe(),
        "preprocessing": GREY,
        "categories": CATEGORIES,
    }
    check_fit(**given)
    with pytest.raises(InputError, match=words):
        check_fit(**{**given, **change})


def test_data_for_another_task_are_refused():
    data = pictures(2)
    tags = type(data)(data.read, 2, data.categories, frozenset({Task.CLASSIFICATION}), "test", data.root)
    with pytest.raises(InputError, match=r"can train classification, but .* needs semantic"):
        check_fit(Toy(), tags, None, Toy.recipe(), GREY, CATEGORIES)
