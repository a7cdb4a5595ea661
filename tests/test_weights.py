"""Model files: what is written comes back, and nothing else is let in."""

from __future__ import annotations

import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from everymask.data.preprocessing import Preprocessing
from everymask.errors import InputError
from everymask.methods.bottom_up.stardist import StarDist
from everymask.types import Categories, Category
from everymask.weights import MODELS, find_model, load_model, read_metadata, save_model


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    method = StarDist(classes=2, channels=1, rays=8, base=4, depth=1)
    method.thresholds = {"probability": 0.37, "overlap": 0.3}
    categories = Categories([Category(7, "Zelle", colour=(1, 2, 3)), Category(3, "débris", is_thing=False)])
    path = tmp_path / "model.safetensors"
    save_model(path, method, categories, Preprocessing(channels=1, mean=(0.5,)), metadata={"licence": "CC0-1.0"})
    return path


def test_a_model_file_needs_nothing_else(model_file: Path) -> None:
    loaded = load_model(model_file)
    assert loaded.method.config["rays"] == 8
    assert loaded.method.thresholds == {"probability": 0.37, "overlap": 0.3}
    assert loaded.categories.names == ["Zelle", "débris"]
    assert loaded.categories[0].colour == (1, 2, 3)
    assert loaded.preprocessing == Preprocessing(channels=1, mean=(0.5,))
    assert loaded.metadata["licence"] == "CC0-1.0"
    second = model_file.with_name("second.safetensors")
    save_model(second, loaded.method, loaded.categories, loaded.preprocessing, metadata={"licence": "CC0-1.0"})
    state, again = loaded.method.state_dict(), load_model(second).method.state_dict()
    assert all(torch.equal(state[name], again[name]) for name in state)


class _Evil:
    """Unpickling this would make a file."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, ("unpickled",)


def _torch_save(model: bytes) -> bytes:
    buffer = io.BytesIO()
    torch.save({"weights": torch.zeros(3)}, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: b"", "is no model file"),
        (lambda model: model[:5], "is no model file"),
        (lambda model: model[:200], "is no model file"),
        (lambda model: model[:-1000], "is cut off"),
        (lambda model: model + b"more", "is cut off"),
        (lambda model: b"\xff" * len(model), "is no model file"),
        (lambda model: model[:8] + b"[" + model[9:], "is damaged"),
        (lambda model: pickle.dumps(_Evil(), 2), "Python pickle"),
        (lambda model: pickle.dumps(_Evil(), 5), "Python pickle"),
        (_torch_save, "Python pickle"),
    ],
)
def test_damaged_files_and_pickles_are_refused(
    model_file: Path, change: Callable[[bytes], bytes], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model_file.parent)
    model_file.write_bytes(change(model_file.read_bytes()))
    with pytest.raises(InputError, match=message) as caught:
        load_model(model_file)
    assert "\n" not in str(caught.value)
    assert str(model_file) in str(caught.value)
    assert not Path("unpickled").exists()


def _with_metadata(path: Path, **changes: object) -> None:
    """The same weights with other metadata."""
    loaded = load_model(path)
    header = {**read_metadata(path), **changes}
    save_file(loaded.method.state_dict(), path, metadata={"everymask": json.dumps(header)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "99"}, "update everymask"),
        ({"method": "stardust"}, "did you mean 'stardist'"),
        ({"config": {"rays": 8, "sails": 3}}, "does not fit this version"),
        ({"config": {"classes": 2, "channels": 1, "rays": 16, "base": 4, "depth": 1}}, "shapes: .*instead of"),
        ({"config": {"classes": 2, "channels": 1, "rays": 8, "base": 4, "depth": 2}}, "missing: .'body"),
        ({"categories": [{"id": 1}]}, "not a category"),
        ({"preprocessing": {"channels": 1, "magic": True}}, "unknown preprocessing"),
    ],
)
def test_metadata_that_do_not_fit_are_told_in_one_line(
    model_file: Path, changes: dict[str, object], message: str
) -> None:
    _with_metadata(model_file, **changes)
    with pytest.raises(InputError, match=message) as caught:
        load_model(model_file)
    assert "\n" not in str(caught.value)


def test_foreign_safetensors_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(InputError, match="was not written by everymask"):
        read_metadata(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [("nuclie", "did you mean 'nuclei'"), ("runs/none.safetensors", "no such model file"), (".", "is a folder")],
)
def test_unknown_models_are_told_in_one_line(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_model(name)


@pytest.mark.parametrize("name", MODELS)
def test_bundled_weights_load_and_say_where_they_come_from(name: str) -> None:
    path = find_model(name)
    assert path.stat().st_size <= 12_000_000
    metadata = load_model(path).metadata
    for key in ("data licence", "command"):
        assert metadata["provenance"][key], key
    assert metadata["training"]["validation"]["accuracy@0.5"] > 0.7
    assert metadata["recipe"]["epochs"] > 0
