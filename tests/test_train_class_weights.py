"""Class weights from the training data: the numbers, their way into the method and its file, and what cannot be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from everymask import Model
from everymask.data.sampling import Census
from everymask.errors import InputError
from everymask.train.samples import class_weights_of
from everymask.types import Categories, Category, Dataset, LabelMap, Sample, Segments, Task
from everymask.weights import load_model, read_metadata

CATEGORIES = Categories([Category(4, "road"), Category(1, "car"), Category(6, "sign")])


def scene(number: int) -> Segments:
    """A road, a car in every second image, a sign of three pixels in the first; the last row is background."""
    ids = np.ones((24, 24), np.int32)
    ids[-1], ids[0] = 0, -1
    category = [4]
    if number % 2 == 0:
        ids[6:14, 4:12] = 2
        category.append(1)
    if number == 0:
        ids[20, 5:8] = 3
        category.append(6)
    return Segments(ids.shape, category, LabelMap(ids))


def scenes(count: int = 6) -> Dataset:
    def sample(number: int) -> Sample:
        image = np.random.default_rng(number).integers(0, 255, (24, 24, 3)).astype(np.uint8)
        return Sample(f"scene {number}", lambda: image, lambda: scene(number))

    return Dataset(sample, count, CATEGORIES, frozenset({Task.SEMANTIC}), "test", Path("made-up"))


def census(pixels: list[list[int]], background: list[int]) -> Census:
    found = np.array(pixels)
    return Census(found, np.array(background), found > 0)


def test_rules_against_their_formulas() -> None:
    counted = census([[600, 100, 0], [200, 0, 0], [0, 100, 0]], [0, 50, 50])
    road, car, ground = 800, 200, 100
    inverse = np.array([1 / road, 1 / car, 0])
    assert class_weights_of(counted, "inverse", background=False) == pytest.approx(inverse / inverse[:2].mean())
    inverse = np.array([1 / ground, 1 / road, 1 / car, 0])
    assert class_weights_of(counted, "inverse", background=True) == pytest.approx(inverse / inverse[:3].mean())
    # Eigen and Fergus: pixels of the class over all pixels of the images that hold it.
    frequency = np.array([800 / 900, 200 / 800])
    expected = [*(np.median(frequency) / frequency), 0]
    assert class_weights_of(counted, "median", background=False) == pytest.approx(expected)
    frequency = np.array([100 / (250 + 150), 800 / (700 + 250), 200 / (700 + 150)])
    expected = [*(np.median(frequency) / frequency), 0]
    assert class_weights_of(counted, "median", background=True) == pytest.approx(expected)
    beta = 1 - 1 / 500
    effective = np.array([(1 - beta) / (1 - beta**road), (1 - beta) / (1 - beta**car), 0])
    assert class_weights_of(counted, "effective", background=False) == pytest.approx(effective / effective[:2].mean())


def test_effective_numbers_tell_classes_of_millions_of_pixels_apart() -> None:
    rare, frequent = class_weights_of(census([[10**5, 10**8]], [0]), "effective", background=False)
    assert 100 < rare / frequent < 1000  # with the fixed .9999 of small data sets both would weigh 1
    frequent, more = class_weights_of(census([[10**8, 10**9]], [0]), "effective", background=False)
    assert frequent / more < 10  # less than by frequency


@pytest.mark.parametrize("background", [True, False])
def test_a_run_with_weights_is_recorded_and_reloads(tmp_path: Path, background: bool) -> None:
    model = Model("unet", CATEGORIES, base=4, depth=1, background=background)
    options = {"crop": 16, "batch_size": 2, "workers": 0, "precision": "float32", "quiet": True}
    result = model.train(scenes(), scenes(2), out=tmp_path, epochs=1, weigh_classes="inverse", **options)
    pixels = {4: 0, 1: 0, 6: 0, 0: 0}
    for number in range(6):
        found = scene(number)
        ids = np.concatenate([[-1, 0], found.category])[found.label_map() + 1]
        for key in pixels:
            pixels[key] += np.count_nonzero(ids == key)
    expected = np.array([1 / pixels[key] for key in ([0] if background else []) + [4, 1, 6]])
    expected /= expected.mean()
    assert model.method.config["class_weights"] == pytest.approx(tuple(expected))
    loaded = load_model(result.model).method
    assert loaded.config == model.method.config
    torch.testing.assert_close(loaded.class_weights, torch.tensor(expected, dtype=torch.float32))
    assert read_metadata(result.model)["recipe"]["weigh_classes"] == "inverse"
    assert "class_weights" not in load_file(result.model)

    # The loss of the loaded model is that of the formula.
    logits = torch.randn(1, len(expected), 4, 4)
    target = torch.randint(0, len(expected), (1, 4, 4))
    found = loaded.loss({"classes": logits}, {"classes": target})["cross_entropy"]
    weight = torch.tensor(expected, dtype=torch.float32)
    torch.testing.assert_close(found, torch.nn.functional.cross_entropy(logits, target, weight))

    # The run can be gone on with; other data would have other weights.
    fresh = Model("unet", CATEGORIES, base=4, depth=1, background=background)
    again = fresh.train(scenes(), scenes(2), out=tmp_path, epochs=1, weigh_classes="inverse", resume=True, **options)
    assert again.validation == result.validation
    fresh = Model("unet", CATEGORIES, base=4, depth=1, background=background)
    with pytest.raises(InputError, match="weigh_classes was 'inverse' and is now 'median'"):
        fresh.train(scenes(), scenes(2), out=tmp_path, epochs=1, weigh_classes="median", resume=True, **options)


def test_weights_that_were_given_are_not_replaced(tmp_path: Path) -> None:
    model = Model("unet", CATEGORIES, base=4, depth=1, background=False, class_weights=(1.0, 2.0, 3.0))
    with pytest.raises(InputError, match=r"class_weights 1, 2, 3.*weigh_classes inverse.*one of both"):
        model.train(scenes(), scenes(2), out=tmp_path, crop=16, weigh_classes="inverse", quiet=True)


def test_methods_that_know_no_weights_say_so(tmp_path: Path) -> None:
    model = Model("stardist", CATEGORIES, base=4, depth=1, rays=8)
    with pytest.raises(InputError, match=r"stardist has no class_weights.*leave weigh_classes out"):
        model.train(scenes(), out=tmp_path, crop=16, weigh_classes="median", quiet=True)
    with pytest.raises(InputError, match="no class_weights"):
        model.method.weigh_classes([1.0])
