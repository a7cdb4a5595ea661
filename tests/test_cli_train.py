"""`everymask train`: options made from recipe and method, TOML files, and a run from end to end."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
from PIL import Image

from everymask.cli import main, train
from everymask.cli.options import method_options, read_options_file, recipe_options
from everymask.errors import InputError
from everymask.methods import METHODS, method_class
from everymask.methods.recipe import Recipe


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command line asks the training for."""
    found: dict[str, Any] = {}

    def note(method: str, data: Path, val: Path | None, out: Path, **rest: Any) -> None:
        found.update(method=method, data=data, val=val, out=out, **rest)

    monkeypatch.setattr(train, "_train", note)
    return found


def test_defaults_are_those_of_the_method(called: dict[str, Any]) -> None:
    for name in METHODS:
        assert main(["train", name, "--data", "d", "--out", "o"]) == 0
        assert called["recipe"] == method_class(name).recipe()
        made = method_class(name)(classes=2, channels=1, **called["options"])
        assert {**made.config, "classes": 1, "channels": 3} == method_class(name)().config


def another(kind: Any, value: Any) -> Any:
    """A value of a recipe's field that is not its default."""
    if get_origin(kind) is Literal:
        return next(each for each in get_args(kind) if each != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 3
    return (0.5, 3.25) if isinstance(value, tuple) else 0.625


def test_every_number_of_the_recipe_is_an_option(called: dict[str, Any]) -> None:
    hints = get_type_hints(Recipe)
    changed = {each.name: another(hints[each.name], each.default) for each in fields(Recipe)}
    arguments = []
    for name, value in changed.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            arguments += [f"--{flag}", *map(str, value if isinstance(value, tuple) else [value])]
    assert main(["train", "stardist", "--data", "d", "--out", "o", *arguments]) == 0
    assert called["recipe"] == Recipe(**changed)
    assert all(getattr(called["recipe"], each.name) != each.default for each in fields(Recipe))


def test_method_options_and_the_rest(called: dict[str, Any]) -> None:
    arguments = ["--data", "d", "--rays=64", "--val", "v", "--norm", "group", "stardist", "--out", "o", "--resume"]
    assert main(["train", *arguments, "--channels", "1"]) == 0
    assert called["options"]["rays"] == 64 and called["options"]["norm"] == "group"
    assert (called["method"], called["val"], called["resume"], called["channels"]) == ("stardist", Path("v"), True, 1)
    assert called["command"].startswith("everymask train --data d --rays=64")


def test_a_method_of_the_users_own(called: dict[str, Any]) -> None:
    name = "everymask.methods.semantic.unet:UNetSegmentation"
    assert main(["train", name, "--data", "d", "--out", "o", "--depth", "2"]) == 0
    assert called["method"] == name and called["options"]["depth"] == 2


def test_the_command_line_overrules_the_file(called: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        'data = "d"\nout = "o"\nepochs = 5\nbatch-size = 6\n[method]\nrays = 16\n[recipe]\nscale = [0.5, 2]\n'
    )
    assert main(["train", "stardist", "--config", str(file), "--epochs", "9"]) == 0
    recipe = called["recipe"]
    assert (recipe.epochs, recipe.batch_size, recipe.scale) == (9, 6, (0.5, 2.0))
    assert called["options"]["rays"] == 16 and called["data"] == Path("d")
    assert main(["train", "stardist", f"--config={file}"]) == 0
    assert called["recipe"].epochs == 5


@pytest.mark.parametrize(
    "text, parts",
    [
        ("epochs = \nseed = 1", ["is not TOML", "line 1"]),
        ("epoch = 3", ["epoch", "did you mean --epochs"]),
        ('epochs = "many"', ["epochs", '"many"', "int"]),
        ("epochs = 3\n[recipe]\nepochs = 4", ["'epochs' twice"]),
        ('norm = "btach"', ["btach", '"batch"']),
    ],
)
def test_mistakes_in_the_file(
    called: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, parts: list[str]
) -> None:
    file = tmp_path / "run.toml"
    file.write_text(text)
    assert main(["train", "stardist", "--data", "d", "--out", "o", "--config", str(file)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(file) in error
    for part in parts:
        assert part in error
    assert not called


def test_options_file_in_other_encodings(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not TOML"):
        read_options_file(tmp_path / "a.toml")


@pytest.mark.parametrize("name", sorted(METHODS))
def test_no_option_means_two_things_and_all_are_described(name: str) -> None:
    groups = [recipe_options(Recipe(), "r"), method_options(method_class(name), "m")]
    names = [each.name for group in groups for each in fields(group)]
    taken = {"method", "data", "val", "out", "config", "resume", "channels", "quiet", "json", "debug"}
    assert len(set(names)) == len(names) and not set(names) & taken
    for group in groups:
        for each in fields(group):
            assert each.type.__metadata__[0].help, each.name  # type: ignore[union-attr]


# -- a run -------------------------------------------------------------------------------------------------------------

SMALL = [
    "--base",
    "4",
    "--depth",
    "1",
    "--features",
    "8",
    "--rays",
    "8",
    "--crop",
    "64",
    "--batch-size",
    "2",
    "--epochs",
    "1",
]
SMALL += ["--steps-per-epoch", "2", "--workers", "0", "--no-tune"]


def write_discs(folder: Path, images: int = 4) -> None:
    """Images of bright discs with their masks."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:72, :80]
    for each in ("images", "masks"):
        (folder / each).mkdir(parents=True)
    for i in range(images):
        ids = np.zeros((72, 80), np.uint16)
        for label, (cy, cx) in enumerate(rng.integers(8, 64, (5, 2)), 1):
            ids[(y - cy) ** 2 + (x - cx) ** 2 < 36] = label
        image = np.where(ids > 0, 180, 30) + rng.integers(0, 20, ids.shape)
        Image.fromarray(image.astype(np.uint8)).save(folder / "images" / f"{i}.png")
        Image.fromarray(ids).save(folder / "masks" / f"{i}.png")


def test_training_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_discs(tmp_path / "data")
    arguments = ["train", "stardist", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "run"), *SMALL]
    assert main([*arguments, "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert Path(result["model"]).is_file() and Path(result["report"]).is_file() and result["epochs"] == 1
    assert "1 of 4 images" in captured.err and "held out" in captured.err
    from everymask.weights import read_metadata

    provenance = read_metadata(result["model"])["provenance"]
    assert provenance["command"].startswith("everymask train stardist") and provenance["validation"] == "held out"

    assert main(arguments) == 2  # the folder holds a run already
    assert "--resume" in capsys.readouterr().err


def test_interrupted_training_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from everymask.model import Model

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Model, "train", interrupted)
    write_discs(tmp_path / "data", 2)
    arguments = ["train", "stardist", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "run"), *SMALL]
    assert main(arguments) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("interrupted") and "--resume" in last and str(tmp_path / "run") in last
