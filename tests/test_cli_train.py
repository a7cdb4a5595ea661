"""`everymask train`: options made from recipe and method, TOML files, and a run from end to end."""

from __future__ import annotations

import json
import sys
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
    taken = {"method", "data", "val", "out", "config", "resume", "channels", "quiet", "json", "debug", "format"}
    taken |= {"void", "reading", "preview", "tensorboard", "weights", "new_logits", "backbone_weights", "data_licence"}
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


@pytest.mark.parametrize("given, expected", [([], "percentile"), (["--normalise", "scale"], "scale")])
def test_intensities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from everymask.model import Model

    seen: list[Any] = []

    def train(self: Model, *_: Any, **__: Any) -> None:
        seen.append(self.preprocessing)
        raise KeyboardInterrupt

    monkeypatch.setattr(Model, "train", train)
    write_discs(tmp_path / "data", 2)
    arguments = ["train", "stardist", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "run"), *SMALL]
    assert main([*arguments, *given]) == 130
    assert [(each.normalise, each.channels) for each in seen] == [(expected, 3)]
    assert main([*arguments, "--normalise", "minmax"]) == 2
    assert "percentile" in capsys.readouterr().err.splitlines()[-1]


# -- what the recipe depends on ----------------------------------------------------------------------------------------


def test_a_backbone_brings_the_recipe_for_photographs(called: dict[str, Any], tmp_path: Path) -> None:
    photographs = method_class("pspnet").recipe()
    assert main(["train", "unet", "--data", "d", "--out", "o"]) == 0
    assert called["recipe"] == method_class("unet").recipe() != photographs
    for way in (["--backbone", "resnet34"], ["--backbone=resnet34"]):
        assert main(["train", "unet", "--data", "d", "--out", "o", *way, "--epochs", "7"]) == 0
        assert called["recipe"] == photographs.with_options(epochs=7)
    file = tmp_path / "run.toml"
    file.write_text('[method]\nbackbone = "resnet34"\n')
    assert main(["train", "unet", "--data", "d", "--out", "o", "--config", str(file)]) == 0
    assert called["recipe"] == photographs and called["options"]["backbone"] == "resnet34"


def test_the_help_shows_the_recipe_that_applies(capsys: pytest.CaptureFixture[str]) -> None:
    plain, photographs = method_class("unet").recipe(), method_class("pspnet").recipe()
    assert plain.crop != photographs.crop
    for options, title, crop in (
        ([], "defaults of unet)", plain.crop),
        (["--backbone", "resnet34"], "", photographs.crop),
    ):
        assert main(["train", "unet", *options, "--help"]) == 0
        shown = capsys.readouterr().out
        assert (title or "defaults of unet --backbone resnet34)") in shown
        line = next(each for each in shown.splitlines() if " --crop " in f"{each} ")
        assert f"[default: {crop}]" in " ".join(shown[shown.index(line) :].split())[:300]


def test_models_made_in_python_have_it_too() -> None:
    from everymask import Model

    model = Model("unet", ["a", "b"], backbone="test_resnet")
    assert model._recipe(None, {}) == method_class("pspnet").recipe()
    assert model._recipe(None, {"epochs": 3}).epochs == 3


# -- a look at the data ------------------------------------------------------------------------------------------------


def test_the_preview_shows_what_the_network_gets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_discs(tmp_path / "data")
    plain = ["--flip", "none", "--scale", "1", "1", "--brightness", "0", "--contrast", "1", "1", "--noise", "0"]
    arguments = ["train", "unet", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "run"), "--preview"]
    assert main([*arguments, "--crop", "64", "--base", "4", "--depth", "1", *plain]) == 0
    assert str(tmp_path / "run" / "preview.png") in capsys.readouterr().out
    assert [each.name for each in (tmp_path / "run").iterdir()] == ["preview.png"]
    with Image.open(tmp_path / "run" / "preview.png") as file:
        sheet = np.asarray(file).astype(int)
    # Four rows of four tiles; a dark ground of 30 to 50 and discs of 180 to 200 become about 0 and 255.
    assert sheet.shape[0] > 4 * 320 and sheet.shape[1] > 4 * 320
    middle = sheet[100:280, 30:280]
    assert np.median(middle) < 30 and np.percentile(middle, 98) > 180
    assert (np.ptp(middle, axis=-1) > 60).any()  # coloured contours on grey

    assert main([*arguments, "--crop", "64", "--base", "4", "--depth", "1", "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out) == {"preview": str(tmp_path / "run" / "preview.png")}


# -- event files -------------------------------------------------------------------------------------------------------


def test_event_files_hold_what_the_log_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    write_discs(tmp_path / "data")
    data = str(tmp_path / "data")
    arguments = ["train", "unet", "--data", data, "--val", data, "--out", str(tmp_path / "run"), "--quiet"]
    arguments += ["--crop", "32", "--base", "4", "--depth", "1", "--workers", "0", "--batch-size", "2"]
    arguments += ["--steps-per-epoch", "20", "--tensorboard", "--schedule", "constant"]
    assert main([*arguments, "--epochs", "1"]) == 0
    assert main([*arguments, "--epochs", "2", "--resume"]) == 0
    found = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    found.Reload()
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    epochs = [each for each in log if each["event"] == "epoch"]
    for tag, values in {
        "training_loss/total": [each["loss"]["total"] for each in epochs],
        "training_loss/cross_entropy": [each["loss"]["cross_entropy"] for each in epochs],
        "training/learning_rate": [each["learning_rate"] for each in epochs],
        "validation/miou": [each["validation"]["miou"] for each in epochs],
        "validation_loss/total": [each["validation"]["loss"] for each in epochs],
        "validation_loss/cross_entropy": [each["validation"]["loss/cross_entropy"] for each in epochs],
    }.items():
        last = {each.step: each.value for each in found.Scalars(tag)}
        assert last == pytest.approx({20: values[0], 40: values[1]}), tag
    steps = {each["step"]: each["gradient_norm"] for each in log if each["event"] == "step"}
    assert {each.step: each.value for each in found.Scalars("training/gradient_norm")} == pytest.approx(steps)
    tags = found.Tags()["images"]
    assert len(tags) == 4
    pictures = found.Images(tags[0])
    assert [each.step for each in pictures] == [20, 40]
    assert (pictures[0].height, pictures[0].width) == (72, 3 * 80)  # the image, its annotation and its prediction


def test_without_tensorboard_it_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    write_discs(tmp_path / "data", 2)
    data = str(tmp_path / "data")
    options = ["--crop", "32", "--base", "4", "--depth", "1", "--tensorboard", "--quiet"]
    assert main(["train", "unet", "--data", data, "--val", data, "--out", str(tmp_path / "run"), *options]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "pip install everymask[tensorboard]" in error
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


# -- images without annotation -----------------------------------------------------------------------------------------


def test_methods_that_learn_from_unlabelled_images_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Eight of ten images have no mask; those that have one are for validation, too."""
    from everymask.methods.semantic.unet import UNetSegmentation

    write_discs(tmp_path / "data", 10)
    for number in range(8):
        (tmp_path / "data" / "masks" / f"{number}.png").unlink()
    arguments = ["train", "unet", "--data", str(tmp_path / "data"), "--crop", "32", "--base", "4", "--depth", "1"]
    arguments += ["--workers", "0", "--batch-size", "2", "--epochs", "1", "--balance", "classes"]
    assert main([*arguments, "--out", str(tmp_path / "refused")]) == 2
    assert "8 images" in capsys.readouterr().err
    monkeypatch.setattr(UNetSegmentation, "learns_from_unlabelled", True)
    assert main([*arguments, "--out", str(tmp_path / "run"), "--quiet"]) == 0
    start = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[0])
    assert (start["images"], start["validation_images"]) == (9, 1)


def test_options_of_any_kind_pick_the_recipe() -> None:
    from everymask.cli.options import given_names

    line = ["stardist", "--dimensions", "3", "--rays", "many", "--norm", "none", "--anisotropy", "2"]
    given = given_names(method_class("stardist"), line)
    assert given == {"dimensions": 3, "norm": "none", "anisotropy": 2.0}
    assert method_class("stardist").recipe_for(**given).planes == 48
    assert method_class("omnipose").recipe_for(dimensions=3).planes == 32
    given = given_names(method_class("cellpose"), ["cellpose", "--network", "sam"])
    assert method_class("cellpose").recipe_for(**given).learning_rate == 1e-5
