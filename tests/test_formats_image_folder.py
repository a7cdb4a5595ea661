"""Folders of classes: a real set, torchvision as independent reader, and folders that are something else."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from everymask.errors import InputError
from everymask.formats import image_folder, open_dataset
from everymask.types import Categories, Dataset, Sample, Segments, Task


def place(folder, names, size=(5, 4)):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name.lower().endswith((".txt", ".xml", ".json")):
            (folder / name).write_text("1")
        else:
            Image.new("RGB", size).save(folder / name)
    return folder


def memory(rows, names):
    """A data set of (name, category ids, extra)."""
    samples = [
        Sample(
            name,
            lambda: np.zeros((4, 5, 3), np.uint8),
            None if category is None else lambda category=category: Segments((4, 5), category),
            extra=extra,
        )
        for name, category, extra in rows
    ]
    return Dataset.of(samples, Categories(names), frozenset({Task.CLASSIFICATION}))


def content(dataset):
    names = {each.id: each.name for each in dataset.categories}
    return [(each.name, names[int(each.segments.category[0])], each.segments.size, each.extra) for each in dataset]


def test_cifar10(shared_data):
    folder = shared_data / "cifar10"
    dataset = open_dataset(folder)
    assert (dataset.format, dataset.tasks, len(dataset)) == ("image_folder", {Task.CLASSIFICATION}, 2500)
    names = "airplane automobile bird cat deer dog frog horse ship truck".split()  # noqa: SIM905
    assert dataset.categories.names == names
    assert dataset.categories.ids.tolist() == list(range(10))
    for part, count in (("train", 2000), ("test", 500)):
        opened = open_dataset(folder, split=part)
        assert len(opened) == len(open_dataset(folder / part)) == count
        counts = np.bincount([int(each.segments.category[0]) for each in opened[::7]], minlength=10)
        assert counts.min() > 0
    sample = dataset[0]
    assert (sample.name, sample.extra, sample.segments.size) == ("test/airplane/0000", {"split": "test"}, (32, 32))
    assert sample.segments.geometry is None
    assert not sample.segments.has_boxes


def test_equals_torchvision(shared_data):
    datasets = pytest.importorskip("torchvision.datasets", reason="torchvision is the independent reader")
    other = datasets.ImageFolder(shared_data / "cifar10/test")
    dataset = image_folder.read(shared_data / "cifar10/test")
    assert other.classes == dataset.categories.names
    assert sorted((str(path), label) for path, label in other.samples) == sorted(
        (str(each.path), int(each.segments.category[0])) for each in dataset
    )


def test_round_trip_in_parts(tmp_path):
    names = [f"{part}/{label}/{i}.png" for part in ("train", "val") for label in ("b", "a") for i in (1, 10, 2)]
    first = image_folder.read(place(tmp_path / "first", [*names, "train/c/\u00e4.PNG"]))
    assert first.categories.names == ["a", "b", "c"]
    image_folder.write(first, tmp_path / "again")
    assert (tmp_path / "again/val/c").is_dir()
    again = image_folder.read(tmp_path / "again")
    assert again.categories == first.categories
    assert content(again) == content(first)
    assert image_folder.recognise(tmp_path / "again")


def test_round_trip_of_further_columns(tmp_path):
    rows = [("dog/x", [1], {"day": 3}), ("cat/x", [2], {"split": "odd", "n": [1]}), ("cat/y", [2], {})]
    image_folder.write(memory(rows, ["dog", "cat"]), tmp_path)
    again = image_folder.read(tmp_path)
    assert content(again) == [
        ("cat/x", "cat", (4, 5), {"split": "odd", "n": [1]}),
        ("cat/y", "cat", (4, 5), {}),
        ("dog/x", "dog", (4, 5), {"day": 3}),
    ]


def test_names_from_other_places(tmp_path):
    rows = [("2020/x", [1], {}), ("2021/x", [1], {}), ("y", [2], {})]
    image_folder.write(memory(rows, ["dog", "cat"]), tmp_path)
    assert [each.name for each in image_folder.read(tmp_path)] == ["cat/y", "dog/2020_x", "dog/2021_x"]


def test_ids_mean_the_same_in_every_part(tmp_path):
    folder = place(tmp_path, ["train/a/1.png", "train/b/1.png", "train/c/1.png", "test/a/1.png", "test/c/1.png"])
    part = image_folder.read(folder / "test")
    assert part.categories.names == ["a", "b", "c"]
    assert [int(each.segments.category[0]) for each in part] == [0, 2]


def test_files_that_differ_in_the_suffix(tmp_path):
    folder = place(tmp_path, ["a/1.png", "a/1.jpg", "b/2.png"])
    assert [each.name for each in image_folder.read(folder)] == ["a/1.jpg", "a/1.png", "b/2"]


def test_turned_photographs(tmp_path):
    folder = place(tmp_path, ["a/1.png", "b/2.png"])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (5, 4)).save(folder / "a/1.png", exif=exif)
    sample = image_folder.read(folder)[0]
    assert sample.segments.size == sample.image.shape[:2] == (5, 4)


@pytest.mark.parametrize(
    "names",
    [
        ["a/1.png", "b/1.png"],
        ["a/1.png", "b/1.png", "labels.txt", ".hidden/x/1.png"],
        ["train/a/1.png", "train/b/1.png"],
        ["Train/0/1.png", "Train/1/1.png", "VAL/0/1.png", "VAL/1/1.png"],
    ],
)
def test_what_is_recognised(tmp_path, names):
    assert image_folder.recognise(place(tmp_path, names))
    assert open_dataset(tmp_path).format == "image_folder"


@pytest.mark.parametrize(
    "names",
    [
        ["images/1.png", "masks/1.png"],
        ["images/a/1.png", "images/b/1.png", "labels/a/1.png"],
        ["train_img/1.png", "train_label/1.png"],
        ["a/1.png"],
        ["a/1.png", "b/1.txt"],
        ["a/1.png", "b/deeper/1.png"],
        ["a/1.png", "b/1.png", "1.png"],
        ["a/1.png", "b/1.png", "c/1.png", "c/1.txt"],
        ["01/t000.tif", "01/t001.tif", "02/t000.tif"],
        ["01/t000.tif", "01_GT/SEG/man_seg000.tif"],
        ["train/a/1.png", "val/images/1.png"],
        ["train2017/1.png", "val2017/1.png"],
        ["SegmentationClass/1.png", "JPEGImages/1.png"],
        ["readme.txt"],
    ],
)
def test_what_is_not_recognised(tmp_path, names):
    assert not image_folder.recognise(place(tmp_path, names))


def test_nothing_else_under_the_shared_data_is_claimed(shared_data):
    below = [
        path for path in shared_data.glob("*/**") if path.is_dir() and len(path.relative_to(shared_data).parts) < 5
    ]
    claimed = {path.relative_to(shared_data).as_posix() for path in below if image_folder.recognise(path)}
    assert claimed == {"cifar10", "cifar10/train", "cifar10/test"}


@pytest.mark.parametrize(
    ("names", "options", "words"),
    [
        (["1.png"], {}, "no folders"),
        (["a/1.txt", "b/1.txt"], {}, "no images"),
        (["a/1.png", "b/1.png"], {"split": "train"}, "no part 'train'"),
        (["val/a/1.png", "val/b/1.png"], {"split": "train"}, "it has val"),
    ],
)
def test_bad_folders(tmp_path, names, options, words):
    with pytest.raises(InputError, match=words):
        image_folder.read(place(tmp_path, names), **options)


def test_a_file_is_no_folder(tmp_path):
    with pytest.raises(InputError, match="is a file"):
        image_folder.read(place(tmp_path, ["a.png"]) / "a.png")


@pytest.mark.parametrize(
    ("rows", "names", "words"),
    [
        ([("x", None, {})], ["a"], "no annotation"),
        ([("x", [], {})], ["a"], "0 segments"),
        ([("x", [1, 2], {})], ["a", "b"], "2 segments"),
        ([("p/x", [1], {}), ("p_x", [1], {})], ["a"], "both be called a/p_x"),
        ([("x", [1], {})], ["a/b"], "folder"),
        ([("x", [1], {})], ["..", "b"], "folder"),
        ([("x", [1], {}), ("train/y", [1], {"split": "train"})], ["a"], "part"),
    ],
)
def test_what_cannot_be_written(tmp_path, rows, names, words):
    with pytest.raises(InputError, match=words):
        image_folder.write(memory(rows, names), tmp_path)
