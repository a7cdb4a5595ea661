"""Bad input through the command line: exit code 2, one line that says what to do, and no partial output."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bad_input_cases import (
    BAD_COCO,
    BAD_IMAGES,
    BAD_PAIRS,
    SPOILT_PIXELS,
    Ended,
    cut,
    discs,
    make_coco,
    make_pairs,
    save,
    text,
)
from safetensors.torch import load_file, save_file

from everymask.cli import main
from everymask.layers.unet import UNet
from everymask.model import Model
from everymask.train.checkpoint import read_checkpoint
from everymask.train.engine import Engine
from everymask.weights import read_metadata

# In a process of its own a warning would be a second line.
pytestmark = [pytest.mark.filterwarnings("error::UserWarning"), pytest.mark.filterwarnings("error::RuntimeWarning")]

TINY = ("--base", "4", "--depth", "1", "--features", "4", "--rays", "8", "--crop", "16", "--batch-size", "2")
SHORT = (*TINY, "--epochs", "1", "--workers", "0", "--no-tune")

Run = Callable[..., Ended]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process."""

    def run(*arguments: object) -> Ended:
        capsys.readouterr()
        code = main([str(each) for each in arguments])
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return run


def program(*arguments: object) -> subprocess.Popen[str]:
    """Starts a command in a process of its own."""
    code = "import sys; from everymask.cli import main; sys.exit(main())"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def ended(process: subprocess.Popen[str]) -> Ended:
    """Waits for a process."""
    out, err = process.communicate(timeout=300)
    return Ended(process.returncode, out, err)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set without mistakes."""
    return make_pairs(tmp_path_factory.mktemp("good"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file; its weights are random."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    Model("stardist", ["cell"], base=4, depth=1, features=4, rays=8).save(path)
    return path


def files_below(folder: Path) -> list[str]:
    """All files, hidden ones included."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# -- paths -------------------------------------------------------------------------------------------------------------


def _reading(data: Path, good: Path, model: Path, out: Path) -> dict[str, tuple[object, ...]]:
    """Every command that reads a data set."""
    return {
        "train": ("train", "stardist", "--data", data, "--val", good, "--out", out, *SHORT),
        "validation": ("train", "stardist", "--data", good, "--val", data, "--out", out, *SHORT),
        "evaluate": ("evaluate", "--data", data, "--model", model, "--out", out),
        "convert": (
            "convert",
            data,
            out,
            "--to",
            "coco" if (data / "masks").exists() else "label_images",
            "--lossy",
            "--quiet",
        ),
        "inspect": ("inspect", data),
    }


@pytest.mark.parametrize("command", ["train", "validation", "evaluate", "convert", "inspect"])
def test_data_that_are_none(run: Run, good: Path, model: Path, tmp_path: Path, command: str) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    notes = text(tmp_path / "notes" / "todo.txt").parent
    cases = {
        tmp_path / "absent": ("absent does not exist", "check the spelling"),
        empty: ("empty is an empty folder", "expected a data set"),
        notes: ("cannot tell what", "notes is", "everymask formats"),
        notes / "todo.txt": ("cannot tell what", "todo.txt is", "everymask formats"),
    }
    for path, words in cases.items():
        run(*_reading(path, good, model, tmp_path / "out")[command]).refused(*words)
        assert not (tmp_path / "out").exists()


def test_images_that_are_none(run: Run, model: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    cases = {
        tmp_path / "absent.png": ("absent.png does not exist", "check the spelling"),
        tmp_path / "absent*.png": ("no image matches", "absent*.png", "check the pattern"),
        empty: ("empty holds no image", "expected files ending in .png"),
        text(tmp_path / "notes" / "todo.txt").parent: ("notes holds no image", "expected files ending in .png"),
        make_pairs(tmp_path / "pairs"): ("pairs holds no image itself", "images, masks"),
    }
    for path, words in cases.items():
        run("predict", path, "--model", model, "--out", tmp_path / "out").refused(*words)
        assert not (tmp_path / "out").exists()


# -- images ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", BAD_IMAGES)
def test_predicting_a_bad_image(run: Run, model: Path, tmp_path: Path, what: str) -> None:
    name, write, words = BAD_IMAGES[what]
    write(tmp_path / name)
    ended = run("predict", tmp_path / name, "--model", model, "--out", tmp_path / "out")
    ended.refused(str(tmp_path / name), *words)
    assert files_below(tmp_path / "out") == []


def test_predicting_a_folder_with_bad_images(run: Run, good: Path, model: Path, tmp_path: Path) -> None:
    """The others are written as if the bad ones were not there."""
    images = make_pairs(tmp_path / "data") / "images"
    assert run("predict", images, "--model", model, "--out", tmp_path / "expected").code == 0
    cut(save(images / "0b.png", discs()[0]))
    text(images / "1b.tif")
    bad = run("predict", images, "--model", model, "--out", tmp_path / "out")
    bad.refused("2 of 5 images", "0b.png is damaged", "1b.tif is no image", f"the other 3 are in {tmp_path / 'out'}")
    assert files_below(tmp_path / "out") == files_below(tmp_path / "expected")
    for name in files_below(tmp_path / "expected"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes()


def test_a_stack_among_images_that_become_png(run: Run, model: Path, tmp_path: Path) -> None:
    images = make_pairs(tmp_path / "data") / "images"
    save(images / "stack.tif", np.zeros((5, 24, 24), np.uint8))
    ended = run("predict", images, "--model", model, "--out", tmp_path / "out", "--format", "png", "--no-overlay")
    ended.refused("stack.tif is a stack", "a PNG cannot hold", "TIFF", "the other 3")
    assert files_below(tmp_path / "out") == [*(f"labels/{number}.png" for number in range(3)), "measures.csv"]


def test_one_pixel_is_an_image(run: Run, model: Path, tmp_path: Path) -> None:
    data = make_pairs(tmp_path / "data")
    for folder in ("images", "masks"):
        save(data / folder / "1.png", np.ones((1, 1), np.uint8))
    out = tmp_path / "out"
    assert run("predict", data / "images", "--model", model, "--out", out / "predicted", "--tta").code == 0
    assert "labels/1.tif" in files_below(out / "predicted")
    assert run("evaluate", "--data", data, "--model", model).code == 0
    assert run("train", "stardist", "--data", data, "--val", data, "--out", out / "run", *SHORT).code == 0
    assert run("inspect", data).code == 0
    assert run("convert", data, out / "coco", "--to", "coco").code == 0


# -- data sets ---------------------------------------------------------------------------------------------------------

CHECKED_LATER = {"truncated image"}
"""What `convert` copies, as it is, without decoding it; `inspect` finds it."""


@pytest.mark.parametrize("what", {**BAD_PAIRS, **SPOILT_PIXELS})
def test_data_sets_with_a_mistake(run: Run, good: Path, model: Path, tmp_path: Path, what: str) -> None:
    change, words = {**BAD_PAIRS, **SPOILT_PIXELS}[what]
    data = make_pairs(tmp_path / "data")
    change(data)
    out = tmp_path / "out"
    commands = _reading(data, good, model, out)
    for name in ("train", "validation", "evaluate"):
        run(*commands[name]).refused(*words)
        assert not out.exists() or files_below(out) == []
        if out.exists():
            out.rmdir()
    converted = run(*commands["convert"])
    if what in SPOILT_PIXELS or what in CHECKED_LATER:
        assert converted.code == 0
    else:
        converted.refused(*words)
        assert [path.name for path in tmp_path.iterdir()] == ["data"]
    inspected = run(*commands["inspect"], "--json")
    if inspected.code == 0:
        findings = " ".join(each["message"] for each in json.loads(inspected.out)["findings"])
        assert "5 channels" in words or Path(words[0]).stem in findings
        assert what in SPOILT_PIXELS or words[1] in findings
    else:
        inspected.refused(*words)


@pytest.mark.parametrize("what", BAD_COCO)
def test_coco_files_with_a_mistake(run: Run, good: Path, model: Path, tmp_path: Path, what: str) -> None:
    change, words = BAD_COCO[what]
    data = make_coco(tmp_path / "data", change)
    out = tmp_path / "out"
    commands = _reading(data, good, model, out)
    for name in ("train", "evaluate", "convert"):
        run(*commands[name]).refused(*words, str(data.parent))
        assert not out.exists() or files_below(out) == []
        if out.exists():
            out.rmdir()
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"images": [], "annotations": [', ("no valid JSON", "again")),
        ("not at all", ("no valid JSON", "again")),
        ("", ("no valid JSON", "again")),
        ('{"images": [], "annotations": []}', ("lacks categories", "export the file again")),
        ('{"shapes": []}', ("lacks images and annotations and categories", "export the file again")),
        ("[1, 2]", ("holds no JSON object", "name the file with the annotations")),
        ('{"images": [], "annotations": [], "categories": 3}', ("`$.categories`", "expected the COCO format")),
        ('{"images": [NaN], "annotations": [], "categories": []}', ("no valid JSON", "again")),
    ],
)
def test_json_that_is_no_coco(
    run: Run, good: Path, model: Path, tmp_path: Path, content: str, words: tuple[str, ...]
) -> None:
    path = tmp_path / "cells.json"
    path.write_text(content)
    for command in _reading(path, good, model, tmp_path / "out").values():
        run(*command).refused(str(path), *words)
        assert files_below(tmp_path) == ["cells.json"]


def test_a_coco_file_without_images(run: Run, good: Path, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "cells.json"
    path.write_text('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "cell"}]}')
    commands = _reading(path, good, model, tmp_path / "out")
    run(*commands["train"]).refused(str(path), "no images to train on")
    run(*commands["validation"]).refused(str(path), "no images to validate on")
    run(*commands["evaluate"]).refused(str(path), "nothing to score")
    assert not (tmp_path / "out").exists() or files_below(tmp_path / "out") == []


def test_a_single_image_cannot_be_held_out(run: Run, tmp_path: Path) -> None:
    data = make_pairs(tmp_path / "data", 1)
    ended = run("train", "stardist", "--data", data, "--out", tmp_path / "out", *SHORT)
    ended.refused(str(data), "1 image cannot be split", "--val")
    assert not (tmp_path / "out").exists()


def test_masks_without_any_object_can_be_learnt(run: Run, tmp_path: Path) -> None:
    data = make_pairs(tmp_path / "data")
    for number in range(3):
        save(data / "masks" / f"{number}.png", np.zeros((24, 24), np.uint8))
    out = tmp_path / "out"
    assert run("train", "stardist", "--data", data, "--val", data, "--out", out, *SHORT).code == 0
    assert run("evaluate", "--data", data, "--model", out / "model.safetensors").code == 0


def test_grey_and_colour_images_together(run: Run, tmp_path: Path) -> None:
    data = make_pairs(tmp_path / "data")
    for number, channels in ((1, 3), (2, 4)):
        image = np.repeat(discs(number)[0][..., None], channels, axis=-1)
        save(data / "images" / f"{number}.png", image)
    for channels in ("3", "1"):
        out = tmp_path / f"out{channels}"
        ended = run("train", "stardist", "--data", data, "--val", data, "--out", out, "--channels", channels, *SHORT)
        assert ended.code == 0
        images = data / "images"
        ended = run("predict", images, "--model", out / "model.safetensors", "--out", tmp_path / f"found{channels}")
        assert ended.code == 0


def test_other_categories_than_those_of_the_model(run: Run, model: Path, tmp_path: Path) -> None:
    def more(content: dict[str, Any]) -> None:
        content["categories"].append({"id": 4, "name": "dust"})
        content["categories"][0]["name"] = "nucleus"

    data = make_coco(tmp_path / "data", more)
    ended = run("evaluate", "--data", data, "--model", model, "--out", tmp_path / "out")
    ended.refused(str(data), "unknown category 'cell'", "known: dust, nucleus")
    assert not (tmp_path / "out").exists()


# -- finished predictions ----------------------------------------------------------------------------------------------


def _coco_results(path: Path, **changes: object) -> Path:
    box = {"image_id": 0, "category_id": 1, "score": 0.5, "bbox": [1, 1, 3, 3], **changes}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps([{key: value for key, value in box.items() if value is not None}]))
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder / "absent", ("absent does not exist", "--predictions needs")),
        (lambda folder: save(folder / "0.png", discs()[1]).parent, ("no prediction for 2 of 3", "first is '1'")),
        (
            lambda folder: make_pairs(folder, 3, (24, 25)) / "masks",
            ("24 x 25", "24 x 24"),
        ),
        (
            lambda folder: (make_pairs(folder), cut(folder / "masks" / "1.png"), folder / "masks")[-1],
            ("masks/1.png", "damaged or cut short"),
        ),
        (
            lambda folder: (
                make_pairs(folder),
                save(folder / "masks" / "1.png", np.eye(24, dtype=np.uint8)[..., None] * np.uint8([9, 0, 0])),
                folder / "masks",
            )[-1],
            ("masks/1.png", "colour picture", "replace each colour"),
        ),
        (lambda folder: text(folder / "found.json"), ("found.json", "no valid JSON")),
        (lambda folder: _coco_results(folder / "found.json", image_id="9"), ("found.json", "image '9'")),
        (lambda folder: _coco_results(folder / "found.json", category_id=4), ("found.json", "category 4", "known ids")),
        (lambda folder: _coco_results(folder / "found.json", score=None), ("found.json", "`score`", "COCO format")),
        (
            lambda folder: _coco_results(folder / "found.json", segmentation={"size": [24, 9], "counts": [0, 216]}),
            ("found.json", "[24, 9]", "[24, 24]"),
        ),
    ],
)
def test_bad_predictions(
    run: Run, good: Path, tmp_path: Path, make: Callable[[Path], Path], words: tuple[str, ...]
) -> None:
    given = make(tmp_path / "predictions")
    run("evaluate", "--data", good, "--predictions", given, "--out", tmp_path / "out").refused(*words)
    assert not (tmp_path / "out").exists() or files_below(tmp_path / "out") == []


# -- model files -------------------------------------------------------------------------------------------------------


class _Evil:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("unpickled",)


def _with_header(**changes: object) -> Callable[[Path, Path], object]:
    """The same weights with other metadata."""

    def write(model: Path, path: Path) -> None:
        header = {**read_metadata(model), **changes}
        save_file(load_file(model), path, metadata={"everymask": json.dumps(header)})

    return write


BAD_MODELS: dict[str, tuple[Callable[[Path, Path], object], tuple[str, ...]]] = {
    "absent": (lambda model, path: None, ("no such model file", "everymask models")),
    "folder": (lambda model, path: path.mkdir(), ("is a folder", "model.safetensors")),
    "no bytes": (lambda model, path: path.write_bytes(b""), ("is no model file", "again")),
    "text": (lambda model, path: text(path), ("is no model file", "again")),
    "image": (lambda model, path: path.write_bytes(b"\x89PNG\r\n\x1a\n" * 99), ("is no model file", "again")),
    "cut": (lambda model, path: path.write_bytes(model.read_bytes()[:-9]), ("is cut off", "again")),
    "cut early": (lambda model, path: path.write_bytes(model.read_bytes()[:99]), ("is no model file", "again")),
    "corrupt": (lambda model, path: path.write_bytes(model.read_bytes().replace(b'"', b"'")), ("is damaged", "again")),
    "pickle": (lambda model, path: path.write_bytes(pickle.dumps(_Evil())), ("Python pickle", "only safetensors")),
    "torch.save": (lambda model, path: torch.save({"evil": _Evil()}, path), ("Python pickle", "only safetensors")),
    "foreign": (
        lambda model, path: save_file({"weight": torch.ones(3)}, path, metadata={"format": "pt"}),
        ("was not written by everymask", "only its own files load"),
    ),
    "later version": (_with_header(format="99"), ("format '99'", "update everymask")),
    "other JSON": (
        lambda model, path: save_file(load_file(model), path, metadata={"everymask": "[1]"}),
        ("has format None", "update everymask"),
    ),
    "unknown method": (_with_header(method="stardst"), ("unknown method 'stardst'", "did you mean 'stardist'")),
    "no method": (_with_header(method="os:system"), ("os:system is not a subclass",)),
    "method of no name": (_with_header(method=4), ("does not fit this version", "train it again")),
    "unknown option": (_with_header(config={"rais": 8}), ("does not fit this version", "'rais'", "train it again")),
    "other network": (_with_header(config={"base": 8}), ("the weights do not fit", "shapes", "more", "train it again")),
    "no configuration": (_with_header(config=None), ("does not fit this version", "train it again")),
    "categories": (_with_header(categories="cell"), ("does not fit this version", "train it again")),
    "too many categories": (
        _with_header(categories=[{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]),
        ("1 classes", "2 categories", "train it again"),
    ),
    "thresholds": (_with_header(thresholds={"overlap": "much"}), ("does not fit this version", "train it again")),
    "preprocessing": (_with_header(preprocessing=None), ("does not fit this version", "train it again")),
}


@pytest.mark.parametrize("what", BAD_MODELS)
def test_bad_model_files(
    run: Run, good: Path, model: Path, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, words = BAD_MODELS[what]
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.safetensors"
    make(model, path)
    before = sorted(tmp_path.iterdir())
    for command in (
        ("predict", good / "images", "--model", path, "--out", tmp_path / "out"),
        ("evaluate", "--data", good, "--model", path, "--out", tmp_path / "out"),
        ("export", path, "--to", "onnx", "--out", tmp_path / "out.onnx"),
    ):
        run(*command).refused(str(path), *words)
        assert sorted(tmp_path.iterdir()) == before  # neither output nor what a pickle would have made


# -- options -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("predit IMAGES --model MODEL --out OUT", ("unknown command 'predit'", "did you mean 'predict'")),
        ("predict IMAGES --modle MODEL --out OUT", ("--modle", "did you mean --model")),
        ("predict IMAGES --model nuclie --out OUT", ("unknown model 'nuclie'", "did you mean 'nuclei'")),
        ("predict IMAGES --model MODEL --out OUT --format cocoo", ("cocoo", "--format", 'did you mean "coco"')),
        ("predict IMAGES --model MODEL --out OUT --tile 3", ("tile must be at least 8", "got 3")),
        ("predict IMAGES --model MODEL", ("--out is missing", "everymask predict --help")),
        ("evaluate --data GOOD --model MODEL --protocol machting", ("'machting'", "did you mean 'matching'")),
        ("evaluate --data GOOD --model MODEL --format coc", ("unknown format 'coc'", "did you mean 'coco'")),
        ("evaluate --data GOOD --model MODEL --tile 3 --out OUT", ("tile must be at least 8", "got 3")),
        ("evaluate --data GOOD", ("--model NAME_OR_FILE or --predictions PATH",)),
        ("convert GOOD OUT --to coc", ("unknown format 'coc'", "did you mean 'coco'")),
        ("convert GOOD OUT --to coco --from coco", ("holds no JSON of COCO instances",)),
        ("export MODEL --to onxx --out OUT", ("onxx", "--to", "onnx")),
        ("train stardst --data GOOD --out OUT", ("unknown method 'stardst'", "did you mean 'stardist'")),
        ("train no.such:Method --data GOOD --out OUT", ("cannot import method 'no.such:Method'",)),
        ("train stardist --data GOOD --out OUT --learning-rte 1", ("--learning-rte", "did you mean --learning-rate")),
        ("train stardist --data GOOD --out OUT --config absent.toml", ("absent.toml", "--config needs a TOML file")),
        ("train stardist --data GOOD --val GOOD --out OUT --epochs 0", ("epochs must be at least 1, got 0",)),
        ("train stardist --data GOOD --val GOOD --out OUT --crop 17", ("crop must be a multiple of 16", "try 16")),
        ("train stardist --data GOOD --val GOOD --out OUT --clip -1", ("clip must be at least 0, got -1",)),
        ("train stardist --data GOOD --val GOOD --out OUT --noise nan", ("noise must be at least 0, got nan",)),
        ("train stardist --data GOOD --val GOOD --out OUT --seed -1", ("seed must be at least 0, got -1",)),
        ("train stardist --data GOOD --val GOOD --out OUT --workers -2", ("workers must be at least -1, got -2",)),
        ("train stardist --data GOOD --val GOOD --out OUT --plateau-factor 2", ("plateau_factor must be between 0",)),
        ("train stardist --data GOOD --val GOOD --out OUT --scale 2 1", ("scale must be two numbers", "got 2.0 1.0")),
        ("train stardist --data GOOD --val GOOD --out OUT --base 0", ("must be at least 1", "base 0")),
        ("train stardist --data GOOD --val GOOD --out OUT --depth -1", ("depth 0", "depth -1")),
        ("train unet --data GOOD --val GOOD --out OUT --channels 0", ("at least 1 channel", "channels 0")),
        ("train stardist --data GOOD --val GOOD --out OUT --grid 3", ("grid must be 1, 2 or 4, got 3",)),
        ("train stardist --data GOOD --val GOOD --out OUT --rays 2", ("at least 3 rays, got 2",)),
    ],
)
def test_bad_options(run: Run, good: Path, model: Path, tmp_path: Path, arguments: str, words: tuple[str, ...]) -> None:
    places = {"GOOD": good, "IMAGES": good / "images", "MODEL": model, "OUT": tmp_path / "out"}
    run(*[places.get(each, each) for each in arguments.split()]).refused(*words)
    assert list(tmp_path.iterdir()) == []


def test_an_epoch_is_trained_with_the_options_that_are_refused_otherwise(run: Run, good: Path, tmp_path: Path) -> None:
    """The other tests prove nothing if these commands were refused for another reason."""
    out = tmp_path / "out"
    limits = ("--clip", "0", "--noise", "0", "--seed", "0", "--plateau-factor", "0.9", "--scale", "1", "1")
    assert run("train", "stardist", "--data", good, "--val", good, "--out", out, *SHORT, *limits).code == 0
    again = run("train", "stardist", "--data", good, "--val", good, "--out", out, *SHORT, *limits)
    before = (out / "model.safetensors").read_bytes()
    again.refused(str(out), "already holds a training run", "--resume", "--out")
    assert (out / "model.safetensors").read_bytes() == before
    cut(out / "checkpoint.safetensors")
    again = run("train", "stardist", "--data", good, "--val", good, "--out", out, *SHORT, *limits, "--resume")
    again.refused("checkpoint.safetensors is damaged", "start anew in another --out")


# -- outputs -----------------------------------------------------------------------------------------------------------


def _writing(good: Path, model: Path, out: Path) -> dict[str, tuple[object, ...]]:
    """Every command that writes."""
    return {
        "predict": ("predict", good / "images", "--model", model, "--out", out),
        "predict png": ("predict", good / "images", "--model", model, "--out", out, "--format", "png"),
        "predict coco": (
            "predict",
            good / "images",
            "--model",
            model,
            "--out",
            out,
            "--format",
            "coco",
            "--no-overlay",
        ),
        "evaluate": ("evaluate", "--data", good, "--model", model, "--out", out),
        "evaluate json": ("evaluate", "--data", good, "--model", model, "--out", out / "scores.json"),
        "train": ("train", "stardist", "--data", good, "--val", good, "--out", out, *SHORT, "--quiet"),
        "convert": ("convert", good, out / "coco", "--to", "coco"),
        "convert back": ("convert", good, out / "pairs", "--to", "label_images"),
    }


WRITERS = tuple(_writing(Path(), Path(), Path()))


@pytest.mark.parametrize("command", WRITERS)
@pytest.mark.parametrize("place", ["file", "below a file", "unwritable"])
def test_output_where_none_can_be(run: Run, good: Path, model: Path, tmp_path: Path, command: str, place: str) -> None:
    if place == "unwritable":
        out = Path("/proc/everymask")  # where even root can make nothing
        if not out.parent.is_dir():
            pytest.skip("this system has no /proc")
    else:
        out = save(tmp_path / "taken.png", discs()[0])
        out = out / "below" if place == "below a file" else out
    run(*_writing(good, model, out)[command]).refused(str(out), "choose another")
    assert files_below(tmp_path) == ([] if place == "unwritable" else ["taken.png"])


@contextlib.contextmanager
def _full_disk(size: int) -> Iterator[None]:
    """Lets no file grow beyond `size` bytes: writing then fails as on a full disk, in every library."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.skipif(os.name != "posix", reason="uses a POSIX limit")
@pytest.mark.parametrize(("command", "size"), [*((each, 100) for each in WRITERS), ("train", 6000)])
def test_a_full_disk(run: Run, good: Path, model: Path, tmp_path: Path, command: str, size: int) -> None:
    assert run(*_writing(good, model, tmp_path / "warm")[command]).code == 0  # kernels are compiled and cached
    whole = {path.name: path.stat().st_size for path in (tmp_path / "warm").rglob("*") if path.is_file()}
    out = tmp_path / "out"
    with _full_disk(size):  # 6000 bytes hold the log, but no checkpoint
        full = run(*_writing(good, model, out)[command])
    full.refused(str(out), "cannot", "free some space")
    left = {path.name: path.stat().st_size for path in out.rglob("*") if path.is_file()} if out.exists() else {}
    left.pop("log.jsonl", None)  # a line is appended at a time
    assert all(size == whole.get(name) for name, size in left.items()), left


# -- memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        lambda: torch.empty(2**60, dtype=torch.uint8),
        lambda: np.empty(2**60, np.uint8),
    ],
    ids=["accelerator", "torch", "numpy"],
)
def test_running_out_of_memory(
    run: Run, good: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Callable[[], object]
) -> None:
    def forward(self: UNet, images: torch.Tensor) -> torch.Tensor:
        raise error()  # type: ignore[misc] # the allocations raise by themselves

    monkeypatch.setattr(UNet, "forward", forward)
    out = tmp_path / "out"
    training = run("train", "stardist", "--data", good, "--val", good, "--out", out / "run", *SHORT)
    training.refused("out of memory", "batch_size 2", "crop 16", "lower batch_size", "accumulate")
    assert files_below(out / "run") == ["checkpoint.safetensors", "log.jsonl"]  # of the start: --resume works
    predicting = run("predict", good / "images" / "0.png", "--model", model, "--out", out / "found", "--tile", "512")
    predicting.refused("0.png", "out of memory", "lower tile, now 512")
    assert files_below(out / "found") == []
    run("evaluate", "--data", good, "--model", model, "--out", out / "scores").refused("out of memory", "lower tile")
    assert files_below(out / "scores") == []


# -- interruptions -----------------------------------------------------------------------------------------------------


def _curve(out: Path) -> list[dict[str, Any]]:
    """The epochs of a log."""
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [entry for entry in entries if entry["event"] == "epoch"]


def _wait_for(out: Path, event: str, process: subprocess.Popen[str]) -> None:
    """Waits until the log of a run has an entry."""
    for _ in range(2400):
        if (out / "log.jsonl").exists() and f'"{event}"' in (out / "log.jsonl").read_text():
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    pytest.fail("the run does not get going")


@pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")
def test_kill_and_ctrl_c_in_training(run: Run, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed, interrupted and resumed by the command line, a run takes the course of an undisturbed one."""
    out = tmp_path / "out"
    command = ("train", "stardist", "--data", good, "--val", good, *TINY, "--workers", "0", "--no-tune", "--quiet")
    command = (*command, "--schedule", "constant", "--steps-per-epoch", "2")
    process = program(*command, "--out", out, "--epochs", "100000")
    _wait_for(out, "epoch", process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    tensors, _ = read_checkpoint(out / "checkpoint.safetensors")
    assert all(torch.isfinite(each).all() for each in tensors.values())
    epochs = int(tensors["steps"][0]) // 2 + 2

    original = Engine.step

    def step(self: Engine, source: Any, rate: float) -> torch.Tensor:
        norm = original(self, source, rate)
        os.kill(os.getpid(), signal.SIGINT)
        return norm

    with monkeypatch.context() as patched:
        patched.setattr(Engine, "step", step)
        stopped = run(*command, "--out", out, "--epochs", epochs, "--resume")
    assert stopped.code == 130
    assert stopped.err == f"interrupted; the same command with --resume continues the run in {out}\n"
    left = {name for name in files_below(out) if not name.startswith(".")}  # the kill may leave a hidden half file
    assert left <= {"checkpoint.safetensors", "best.safetensors", "log.jsonl"}

    assert run(*command, "--out", out, "--epochs", epochs, "--resume").code == 0
    assert run(*command, "--out", tmp_path / "straight", "--epochs", epochs).code == 0
    assert len(_curve(out)) == epochs
    for resumed, straight in zip(_curve(out), _curve(tmp_path / "straight"), strict=True):
        # The killed process had one thread, this one may have more, which add up in another order.
        assert resumed["loss"] == pytest.approx(straight["loss"], rel=1e-4)
        assert resumed["validation"] == pytest.approx(straight["validation"], rel=1e-3)


def test_ctrl_c_in_prediction(
    run: Run, good: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = UNet.forward
    calls: list[int] = []

    def forward(self: UNet, images: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, images)

    monkeypatch.setattr(UNet, "forward", forward)
    ended = run("predict", good / "images", "--model", model, "--out", tmp_path / "out", "--no-overlay")
    assert ended.code == 130 and ended.err == "interrupted\n"
    assert set(files_below(tmp_path / "out")) <= {"labels/0.tif"}


# -- in a process of its own -------------------------------------------------------------------------------------------


def test_processes_of_their_own_say_one_line(good: Path, model: Path, tmp_path: Path) -> None:
    """Nothing that only a whole process does adds a line: warnings, chatty libraries, the interpreter's end."""
    spoilt = make_pairs(tmp_path / "spoilt")
    SPOILT_PIXELS["NaN"][0](spoilt)
    cut(spoilt / "images" / "2.png")
    cases = [
        (("predict", spoilt / "images", "--model", model), ("2 of 3 images", "1.tif", "2.png")),
        (("train", "stardist", "--data", spoilt, "--val", good, *SHORT), ("1.tif", "NaN", "replace")),
    ]
    started = [program(*arguments, "--out", tmp_path / f"out{i}") for i, (arguments, _) in enumerate(cases)]
    for process, (_, words) in zip(started, cases, strict=True):
        ended(process).refused(*words)
    assert files_below(tmp_path / "out0") == ["labels/0.tif", "measures.csv", "overlays/0.png"]
    assert files_below(tmp_path / "out1") == []
