"""What people's street scenes and folders of images have wrong with them: one line that says where and what to do."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from bad_input_cases import Ended, save
from numpy.typing import NDArray

from everymask.cli import main

pytestmark = [pytest.mark.filterwarnings("error::UserWarning"), pytest.mark.filterwarnings("error::RuntimeWarning")]

CLASSES = ("sky", "road", "car")
SHORT = ("--crop", "32", "--batch-size", "2", "--epochs", "1", "--workers", "0", "--quiet")
SMALL = ("--base", "4", "--depth", "1", *SHORT)
BACKBONE = ("--backbone", "test_resnet", *SHORT)

Run = Callable[..., Ended]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Trains a method in this process."""

    def run(method: str, data: Path, val: Path, *options: object) -> Ended:
        capsys.readouterr()
        out = () if "--out" in options else ("--out", tmp_path / "out")
        code = main([str(each) for each in ("train", method, "--data", data, "--val", val, *out, *options)])
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return run


def labels(seed: int, side: int = 40) -> NDArray[np.uint8]:
    """Squares of the three classes, each of which lies in several places."""
    squares = np.random.default_rng(seed).permutation(np.arange((side // 5) ** 2) % 3).reshape(side // 5, side // 5)
    return squares.repeat(5, 0).repeat(5, 1).astype(np.uint8)


def make_scenes(
    folder: Path,
    maps: Sequence[NDArray[np.uint8]],
    classes: Sequence[str] | None = CLASSES,
    channels: Sequence[int] = (3,),
    void: int | None = 255,
) -> Path:
    """Images with class maps: images/0.png with labels/0.png and so on, and perhaps a list of classes."""
    for number, each in enumerate(maps):
        count = channels[number % len(channels)]
        shape = (*each.shape, count) if count > 1 else each.shape
        pixels = np.random.default_rng(number).integers(0, 256, shape).astype(np.uint8)
        save(folder / "images" / f"{number}.png", pixels)
        save(folder / "labels" / f"{number}.png", each)
    if classes:
        categories = [{"id": value, "name": name} for value, name in enumerate(classes)]
        meaning = {"kind": "semantic", "void": void, "categories": categories}
        (folder / "categories.json").write_text(json.dumps(meaning), encoding="utf-8")
    return folder


def make_folders(folder: Path, classes: Sequence[str]) -> Path:
    """Images in folders of their classes."""
    for name in classes:
        for number in range(2):
            save(folder / name / f"{number}.png", np.full((20, 30, 3), 40 * number, np.uint8))
    return folder


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes without mistakes."""
    return make_scenes(tmp_path_factory.mktemp("good"), [labels(i) for i in range(4)])


def spoilt() -> list[NDArray[np.uint8]]:
    maps = [labels(i) for i in range(4)]
    maps[2][0, 0] = 7
    return maps


# -- labels ------------------------------------------------------------------------------------------------------------


def test_a_label_that_is_no_class(run: Run, good: Path, tmp_path: Path) -> None:
    data = make_scenes(tmp_path / "data", spoilt(), void=None)
    mask = str(data / "labels" / "2.png")
    for training, validation in ((data, good), (good, data)):
        run("unet", training, validation, *SMALL).refused(mask, "[7]", "3 classes", "--void 7")
    # The advice works, in both ways that it names.
    assert run("unet", data, data, *SMALL, "--void", "7").code == 0
    again = ("--out", tmp_path / "again")
    assert run("unet", data, data, *SMALL, "--reading.void", "7", *again).code == 0


def test_void_where_there_is_none(run: Run, tmp_path: Path) -> None:
    data = make_folders(tmp_path / "data", ("cat", "dog"))
    ended = run("classifier", data, data, *BACKBONE, "--size", "32", "--void", "3")
    ended.refused(str(data), "image_folder", "leave out --void")
    ended = run("classifier", data, data, *BACKBONE, "--size", "32", "--reading.imagse", "x")
    ended.refused("image_folder", "imagse")


def test_a_class_that_the_training_data_lack(run: Run, tmp_path: Path) -> None:
    training = make_scenes(tmp_path / "train", [labels(i) for i in range(4)], None)
    validation = make_scenes(tmp_path / "val", spoilt(), None)
    place = str(validation / "images" / "2.png")
    run("unet", training, validation, *SMALL).refused(place, "[7]", "all classes", "--void 7")


@pytest.mark.parametrize("classes", [("sky", "road", "bus"), ("road", "sky", "car")])
def test_classes_that_are_called_otherwise(run: Run, good: Path, tmp_path: Path, classes: tuple[str, ...]) -> None:
    data = make_scenes(tmp_path / "data", [labels(i) for i in range(4)], classes)
    wrong = next(each for each, name in zip(classes, CLASSES, strict=True) if each != name)
    run("unet", good, data, *SMALL).refused(str(data), repr(wrong), "same list of classes")
    assert not list((tmp_path / "out").glob("*"))


def test_fewer_classes_in_validation_do_no_harm(run: Run, good: Path, tmp_path: Path) -> None:
    maps = [np.minimum(labels(i), 1) for i in range(6)]
    assert run("unet", good, make_scenes(tmp_path / "data", maps, CLASSES[:2]), *SMALL).code == 0


@pytest.mark.parametrize(("method", "options"), [("unet", SMALL), ("pspnet", BACKBONE)])
def test_images_of_void_are_learnt_without_a_fault(
    run: Run, good: Path, tmp_path: Path, method: str, options: tuple[str, ...]
) -> None:
    maps = [labels(i) for i in range(5)]
    for each in maps[1:]:
        each[:] = 255  # so that most batches, of two crops each, have nothing else
    data = make_scenes(tmp_path / "data", maps)
    assert run(method, data, good, *options).code == 0


def test_one_class(run: Run, tmp_path: Path) -> None:
    data = make_scenes(tmp_path / "data", [np.zeros((40, 40), np.uint8)] * 4, ("sky",))
    run("unet", data, data, *SMALL, "--no-background").refused("one category without background", "background")
    assert run("unet", data, data, *SMALL).code == 0


def test_class_names_of_a_text_file_that_differ(run: Run, tmp_path: Path) -> None:
    folders = []
    for name, classes in (("train", "sky\nroad\ncar\n"), ("val", "sky\nstreet\ncar\n")):
        folder = make_scenes(tmp_path / name, [labels(i) for i in range(2)], None)
        (folder / "classes.txt").write_text(classes)
        folders.append(folder)
    run("unet", *folders, *SMALL).refused(str(folders[1]), "'street'", "'road'", "same list of classes")


# -- images ------------------------------------------------------------------------------------------------------------


def test_images_smaller_than_the_crop(run: Run, tmp_path: Path) -> None:
    data = make_scenes(tmp_path / "data", [labels(i, 20) for i in range(4)])
    assert run("unet", data, data, *SMALL).code == 0


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_colour_images_together(run: Run, tmp_path: Path, channels: int) -> None:
    data = make_scenes(tmp_path / "data", [labels(i) for i in range(4)], channels=(1, 3, 4))
    assert run("unet", data, data, *SMALL, "--channels", channels).code == 0


def test_channels_that_are_not_there(run: Run, tmp_path: Path) -> None:
    data = make_scenes(tmp_path / "data", [labels(i) for i in range(4)], channels=(3, 1))
    ended = run("unet", data, data, *SMALL, "--channels", "5")
    ended.refused(
        str(data / "images"), "channels", "takes 5", "--channels 3" if "0.png" in ended.err else "--channels 1"
    )


def test_images_without_annotation(run: Run, good: Path, tmp_path: Path) -> None:
    data = make_scenes(tmp_path / "data", [labels(i) for i in range(4)])
    (data / "labels" / "3.png").unlink()
    run("unet", data, good, *SMALL).refused(str(data / "images"), "3.png", "without a mask")
    kept = ("--reading.unannotated", "keep")
    run("unet", data, good, *SMALL, *kept).refused(str(data / "images" / "3.png"), "no annotation", "annotate it")


# -- options -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("unet", ("--backbone", "resnet43"), ("unknown backbone 'resnet43'", "did you mean", "resnet34")),
        ("deeplabv3plus", ("--backbone", "efficientnet_light0"), ("efficientnet_lite0",)),
        ("deeplabv3", ("--backbone", "test_vit"), ("test_vit", "output_stride")),
        ("pspnet", ("--backbone", "test_resnet", "--depth", "6"), ("--depth", "3, 4, 5")),
        ("pspnet", ("--backbone", "test_resnet", "--crop", "30"), ("crop must be a multiple of 8", "try 24")),
        ("fcn", ("--backbone", "test_resnet", "--variant", "4s"), ("--variant", "8s")),
        ("res_unet", ("--depth", "0"), ("depth of at least 1",)),
        ("res_unet", ("--loss", "cross_entropi"), ("unknown loss", "cross_entropy")),
    ],
)
def test_options_that_cannot_be(
    run: Run, good: Path, method: str, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    rest = SHORT if "--crop" not in options else SHORT[2:]
    run(method, good, good, *options, *rest).refused(*words)


# -- classification ----------------------------------------------------------------------------------------------------


def test_classifiers_and_other_data(run: Run, good: Path, tmp_path: Path) -> None:
    folders = make_folders(tmp_path / "data", ("cat", "dog"))
    run("classifier", good, good, *BACKBONE).refused(str(good), "classifier needs classification")
    run("unet", folders, folders, *SMALL).refused(str(folders), "unet needs semantic")


def test_a_single_class_of_images(run: Run, tmp_path: Path) -> None:
    data = make_folders(tmp_path / "data", ("cat",))
    ended = run("classifier", data, data, *BACKBONE, "--size", "32", "--format", "image_folder")
    ended.refused(str(data / "cat"), "one class", "another class")


def test_other_classes_of_images_in_validation(run: Run, tmp_path: Path) -> None:
    data, other = make_folders(tmp_path / "data", ("cat", "dog")), make_folders(tmp_path / "other", ("cow", "dog"))
    run("classifier", data, other, *BACKBONE, "--size", "32").refused(str(other), "'cow'", "'cat'")


def test_a_size_that_a_network_does_not_take(run: Run, tmp_path: Path) -> None:
    data = make_folders(tmp_path / "data", ("cat", "dog"))
    ended = run("classifier", data, data, "--backbone", "test_vit", "--size", "50", *SHORT)
    ended.refused("test_vit", "50 x 50")
