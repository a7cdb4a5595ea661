"""`Model`: the verbs of a user, on data small enough to learn in seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from test_methods import discs

import everymask
from everymask.data.parts import hold_out
from everymask.errors import InputError
from everymask.model import Model
from everymask.types import Categories, Category, Dataset, Sample, Segments, Task


def field(number: int, side: int = 96) -> Sample:
    """An image of bright discs on noise with its truth."""
    ids = discs(side, seed=number)
    image = np.random.default_rng(number).normal(100, 10, (side, side, 1)) + 120 * (ids > 0)[..., None]
    segments = Segments.from_label_map(ids, category=5)
    return Sample(f"image{number}", lambda: image.astype(np.uint16), lambda: segments)


def fields(count: int) -> Dataset:
    tasks = frozenset({Task.INSTANCE, Task.SEMANTIC})
    return Dataset.of([field(number) for number in range(count)], Categories([Category(5, "disc")]), tasks)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Path]:
    torch.manual_seed(0)
    model = Model("stardist", fields(1).categories, channels=1, rays=16, base=8, depth=2, features=16)
    out = tmp_path_factory.mktemp("run")
    model.train(
        fields(6), fields(2), out=out, epochs=6, steps_per_epoch=12, batch_size=4, crop=64, learning_rate=3e-3,
        ema=0.9, workers=0, scale=(1, 1), contrast=(0.9, 1.1), validate_every=3, quiet=True,
    )  # fmt: skip
    return model, out


def test_objects_of_lower_scores_are_left_out(trained: tuple[Model, Path]) -> None:
    model, data = trained[0], fields(2)
    every = [model.predictions_for(data)(sample) for sample in data]
    scores = np.concatenate([each.score for each in every])
    least = float(np.median(scores))
    kept = np.concatenate([model.predictions_for(data, score=least)(sample).score for sample in data])
    np.testing.assert_array_equal(kept, scores[scores >= least])
    assert 0 < len(kept) < len(scores)
    all_, some = (model.evaluate(data, score=each).figures["predicted_objects"] for each in (0.0, least))
    assert (all_, some) == (len(scores), len(kept))


def test_a_model_learns_to_find_discs(trained: tuple[Model, Path]) -> None:
    model, out = trained
    evaluation = model.evaluate(fields(2))
    assert evaluation.protocol == "matching"
    assert evaluation.figures["accuracy@0.5"] > 0.8
    found = model.predict(field(9).image)
    assert set(found.category.tolist()) == {5}
    assert (out / "report.html").stat().st_size > 1000


def test_a_saved_model_predicts_the_same(trained: tuple[Model, Path], tmp_path: Path) -> None:
    model, out = trained
    image = field(9).image
    expected = model.predict(image)
    model.save(tmp_path / "copy.safetensors")
    for path in (out / "model.safetensors", tmp_path / "copy.safetensors"):
        again = everymask.load(path)
        assert np.array_equal(again.predict(image).label_map(), expected.label_map())
        assert again.metadata["recipe"]["epochs"] == 6


def test_predictions_follow_the_weights(trained: tuple[Model, Path]) -> None:
    model, out = trained
    again = everymask.load(out / "model.safetensors")
    image = field(9).image
    assert len(again.predict(image))
    with torch.no_grad():
        again.method.probability.bias.fill_(-100)  # type: ignore[union-attr]
    assert len(again.predict(image)) == 0
    again = everymask.load(out / "model.safetensors")
    assert len(again.predict(image))
    again.method.thresholds["probability"] = 1.0
    assert len(again.predict(image)) == 0
    assert len(model.predict(image))


def test_categories_are_matched_by_name(trained: tuple[Model, Path]) -> None:
    model, _ = trained
    data = fields(2)
    renamed = Dataset.of(list(data), Categories([Category(5, "disc"), Category(2, "ring")]), data.tasks)
    assert model.evaluate(renamed).figures["accuracy@0.5"] > 0.8
    renamed = Dataset.of(list(data), Categories([Category(5, "ball"), Category(2, "ring")]), data.tasks)
    with pytest.raises(InputError, match="'disc'"):
        model.evaluate(renamed)


def test_the_exported_network_is_the_same(trained: tuple[Model, Path], tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")
    model, _ = trained
    path = tmp_path / "model.onnx"
    assert max(model.export("onnx", path).values()) < 1e-4
    images = np.random.default_rng(0).random((1, 1, 40, 24)).astype(np.float32)
    found = onnxruntime.InferenceSession(str(path)).run(["probability"], {"images": images})[0]
    with torch.inference_mode():
        expected = model.method.eval()(torch.from_numpy(images))["probability"].numpy()
    assert np.abs(found - expected).max() < 1e-3
    with pytest.raises(InputError, match="did you mean 'onnx'"):
        model.export("onxx", path)


def test_held_out_images_are_always_the_same_and_never_shared() -> None:
    training, validation = hold_out(fields(20))
    names = [{sample.name for sample in each} for each in (training, validation)]
    assert not names[0] & names[1]
    assert (len(names[0]), len(names[1])) == (18, 2)
    assert {sample.name for sample in hold_out(fields(20))[1]} == names[1]
    with pytest.raises(InputError, match="--val"):
        hold_out(fields(1))


def test_wrong_options_are_told_in_one_line() -> None:
    with pytest.raises(InputError, match="did you mean 'rays'"):
        Model("stardist", ray=32)
    with pytest.raises(InputError, match="did you mean 'stardist'"):
        Model("stardst")
    with pytest.raises(InputError, match="2 categories"):
        Model(Model("stardist", base=4, depth=1).method, ["a", "b"])
    with pytest.raises(InputError, match="3 channels, but the model takes 2"):
        Model("stardist", channels=2, base=4, depth=1).predict(np.zeros((32, 32, 3), np.uint8))


def test_importing_the_package_loads_nothing_heavy() -> None:
    program = "import sys, everymask; print([m for m in ('torch', 'numba', 'scipy', 'numpy') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "[]"
    assert "Model" in dir(everymask) or everymask.Model is Model


def test_the_bundled_model_finds_the_nuclei_of_the_sample_image() -> None:
    """The ground truth of the sample image comes with the official StarDist package."""
    from importlib.resources import files

    from everymask.metrics.matching import MatchingMetric

    folder = files("everymask") / "assets" / "images"
    image = tifffile.imread(str(folder / "fluorescence.tif"))
    truth = Segments.from_label_map(tifffile.imread(str(folder / "fluorescence.mask.tif")))
    model = everymask.load("nuclei")
    metric = MatchingMetric(Categories(["nucleus"]))
    metric.update(truth, model.predict(image))
    assert metric.compute()["accuracy@0.5"] > 0.8
