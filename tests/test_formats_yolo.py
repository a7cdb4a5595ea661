"""YOLO: every layout, round trips to the bit, results, and what is said about mistakes."""

from __future__ import annotations

import tempfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from format_cases import INSTANCES, black, box_segments, in_memory, mask_segments, polygon_segments, same
from hypothesis import given, settings
from hypothesis import strategies as st

from everymask.errors import InputError
from everymask.formats import open_dataset, open_predictions, recognise, write_dataset, yolo
from everymask.types import Categories, Category, Dataset, Polygon, Polygons, Segments, Task

CLASSES = Categories([Category(0, "cat"), Category(1, 'a "quoted" name: yes'), Category(2, "größer")])
SIZE = (20, 30)
BOX = "1 0.5 0.25 0.2 0.5\n"
POLYGON = "0 0.1 0.1 0.5 0.1 0.5 0.9\n"


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, "utf-8")
    return path


def ultralytics(folder: Path, yaml: str = "train: images/train\nval: images/val\nnames: [cat, dog]\n") -> Path:
    """The usual layout: two images to train, one of them without a label file, and one to validate."""
    for name in ("train/a.JPG", "train/sub/ü.png", "val/a.png"):
        black(folder / "images" / name.replace(".JPG", ".png"))
    (folder / "images/train/a.png").rename(folder / "images/train/a.PNG")
    text(folder / "labels/train/a.txt", BOX + "\n" + BOX)
    text(folder / "labels/val/a.txt", POLYGON)
    text(folder / "data.yaml", yaml)
    return folder


def segments_of(dataset: Dataset, index: int = 0) -> Segments:
    found = dataset[index].segments
    assert found is not None
    return found


# -- layouts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "yaml",
    [
        "train: images/train\nval: images/val\nnames: [cat, dog]\n",
        "path: .\ntrain: images/train\nval: images/val\nnames: {0: cat, 1: dog}\nnc: 2\n",
        "path: ../datasets/mine\ntrain: images/train\nval: [images/val]\nnames:\n  1: dog\n  0: cat\n",
        "path: /home/somebody/else\ntrain: images/train/\nval: ./images/val\ntest:\nnames: [cat, dog]\n",
        "train: ../images/train\nval: ../images/val\nnames: ['cat', 'dog']\n",
        "train: C:\\data\\images\\train\nval: images\\val\nnames: [cat, dog]\n",
    ],
)
def test_ultralytics(tmp_path: Path, yaml: str) -> None:
    folder = ultralytics(tmp_path / "mine", yaml)
    assert recognise(folder) == "yolo" and recognise(folder / "data.yaml") == "yolo"
    dataset = open_dataset(folder)
    assert [sample.name for sample in dataset] == ["train/a", "train/sub/ü", "val/a"]
    assert [sample.extra for sample in dataset] == [{"split": "train"}, {"split": "train"}, {"split": "val"}]
    assert dataset.categories == Categories([Category(0, "cat"), Category(1, "dog")])
    assert dataset.tasks == INSTANCES
    boxes = segments_of(dataset)
    assert boxes.geometry is None and boxes.category.tolist() == [1, 1]
    assert boxes.boxes().tolist() == [[12, 0, 18, 10]] * 2
    assert len(segments_of(dataset, 1)) == 0  # background
    outline = segments_of(dataset, 2)
    assert isinstance(outline.geometry, Polygons)
    assert outline.geometry.parts[0][0].exterior.tolist() == [[3, 2], [15, 2], [15, 18]]
    part = open_dataset(folder / "data.yaml", split="val")
    assert [sample.name for sample in part] == ["a"] and part.tasks == INSTANCES
    assert open_dataset(folder, split="train").tasks == {Task.DETECTION}


def test_folders_of_parts_with_labels_in_each(tmp_path: Path) -> None:
    for part in ("train", "valid"):
        black(tmp_path / part / "images" / "a.png")
        text(tmp_path / part / "labels" / "a.txt", BOX)
    text(tmp_path / "data.yaml", "train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['cat', 'dog']\n")
    dataset = open_dataset(tmp_path)
    assert [(sample.name, len(sample.segments or ())) for sample in dataset] == [("train/a", 1), ("val/a", 1)]


def test_lists_of_images(tmp_path: Path) -> None:
    folder = ultralytics(tmp_path / "set", "train: train.txt\nval: val.txt\nnames: [cat, dog]\n")
    text(folder / "train.txt", "./images/train/a.PNG\n./images/train/sub/ü.png\n")
    text(folder / "val.txt", "/somewhere/else/images/val/a.png\n\n")
    dataset = open_dataset(folder)
    assert [(sample.name, len(sample.segments or ())) for sample in dataset] == [
        ("train/a", 2),
        ("train/sub/ü", 0),
        ("val/a", 1),
    ]
    assert all(sample.image.shape == (20, 30, 3) for sample in dataset)


def test_darknet(tmp_path: Path) -> None:
    text(tmp_path / "gts/obj.data", "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")
    text(tmp_path / "gts/obj.names", "cat\ndog\n")
    text(tmp_path / "gts/train.txt", "data/obj_train_data/b.png\ndata/obj_train_data/a.png\n")
    text(tmp_path / "gts/obj_train_data/a.txt", BOX)
    text(tmp_path / "gts/obj_train_data/b.txt", "")
    black(tmp_path / "images/a.png")
    with pytest.raises(InputError, match=r"1 of 2 images are missing .*b\.png"):
        open_dataset(tmp_path / "gts")
    assert [sample.name for sample in open_dataset(tmp_path / "gts", missing_images="skip")] == ["a"]
    assert len(open_dataset(tmp_path / "gts", missing_images="keep")) == 2
    black(tmp_path / "images/b.png")
    dataset = open_dataset(tmp_path / "gts")
    assert [(sample.name, len(sample.segments or ())) for sample in dataset] == [("b", 0), ("a", 1)]
    assert dataset[0].extra == {"split": "train"}


@pytest.mark.parametrize("names", ["classes.txt", "labels/classes.txt", "obj.names"])
def test_images_beside_labels(tmp_path: Path, names: str) -> None:
    black(tmp_path / "images/a.png")
    black(tmp_path / "images/b.png")
    text(tmp_path / "labels/b.txt", BOX)
    text(tmp_path / names, "cat\ndog\n\n")
    dataset = open_dataset(tmp_path)
    assert [(sample.name, len(sample.segments or ())) for sample in dataset] == [("a", 0), ("b", 1)]


def test_folders_of_parts_without_a_description(tmp_path: Path) -> None:
    text(ultralytics(tmp_path) / "classes.txt", "cat\ndog\n")
    (tmp_path / "data.yaml").unlink()
    assert [sample.name for sample in open_dataset(tmp_path)] == ["train/a", "train/sub/ü", "val/a"]


def test_everything_in_one_folder(tmp_path: Path) -> None:
    black(tmp_path / "a.png")
    text(tmp_path / "a.txt", BOX)
    text(tmp_path / "classes.txt", "cat\ndog\n")
    assert len(segments_of(open_dataset(tmp_path))) == 1
    (tmp_path / "a.png").rename(tmp_path.parent / "a.png")
    with pytest.raises(InputError, match="1 of 1 label files have no image"):
        open_dataset(tmp_path, images=tmp_path)
    assert open_dataset(tmp_path, images=tmp_path.parent)[0].image.shape == (20, 30, 3)
    (tmp_path.parent / "a.png").unlink()


def test_names_from_the_user(tmp_path: Path) -> None:
    black(tmp_path / "images/a.png")
    text(tmp_path / "labels/a.txt", BOX)
    dataset = open_dataset(tmp_path, "yolo", names=["cat", "dog"])
    assert dataset.categories.names == ["cat", "dog"] and len(segments_of(dataset)) == 1
    with pytest.raises(InputError, match=r"no names of classes; add a data\.yaml"):
        open_dataset(tmp_path, "yolo")


def test_a_part_without_any_label_file_is_not_annotated(tmp_path: Path) -> None:
    folder = ultralytics(tmp_path)
    (folder / "labels/val/a.txt").unlink()
    assert [sample.segments is None for sample in open_dataset(folder)] == [False, False, True]


def test_oriented_boxes_are_polygons(tmp_path: Path) -> None:
    folder = ultralytics(tmp_path)
    text(folder / "labels/val/a.txt", "1 0.1 0.2 0.3 0.2 0.3 0.4 0.1 0.4\n")
    assert segments_of(open_dataset(folder, split="val")).boxes().tolist() == [[3, 4, 9, 8]]


def test_an_image_that_is_turned_by_exif(tmp_path: Path) -> None:
    from PIL import Image

    folder = ultralytics(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (30, 20)).save(folder / "images/val/a.jpg", exif=exif)
    (folder / "images/val/a.png").unlink()
    sample = open_dataset(folder, split="val")[0]
    assert sample.image.shape == (30, 20, 3)
    assert segments_of(open_dataset(folder, split="val")).boxes().tolist() == [[2, 3, 10, 27]]


# -- round trips -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [polygon_segments(SIZE, [0, 1, 2], digits=6), box_segments(SIZE, [0, 1, 2], digits=6)],
    ids=["polygons", "boxes"],
)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_round_trip(kind: st.SearchStrategy[Segments], data: st.DataObject) -> None:
    segments = data.draw(kind)
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(in_memory([segments], CLASSES), Path(folder, "set"), "yolo")
        dataset = open_dataset(Path(folder, "set"))
        assert dataset.categories == CLASSES
        if len(segments):
            same(dataset[0].segments, segments)
        else:
            assert len(segments_of(dataset)) == 0
        # What others read: fractions that stand for the very coordinates.
        lines = Path(folder, "set/labels/image0.txt").read_text().splitlines()
        outlines = segments.polygons().parts if segments.geometry else [()] * len(segments)
        for line, category, parts, box in zip(lines, segments.category, outlines, segments.boxes(), strict=True):
            index, *numbers = line.split()
            assert int(index) == category
            fractions = [Fraction(each) for each in numbers]
            if parts:
                pixels = [float(each * side) for each, side in zip(fractions, [30, 20] * 9, strict=False)]
                assert np.allclose(pixels, parts[0].exterior.ravel(), rtol=0, atol=1e-12)
            else:
                x, y, width, height = fractions
                edges = [(x - width / 2) * 30, (y - height / 2) * 20, (x + width / 2) * 30, (y + height / 2) * 20]
                assert np.allclose([float(each) for each in edges], box, rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(segments=polygon_segments((333, 1777), [0]))
def test_any_number_comes_back_to_a_billionth_of_a_pixel_and_then_stays(segments: Segments) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(in_memory([segments], CLASSES), Path(folder, "one"), "yolo")
        first = open_dataset(Path(folder, "one"))
        write_dataset(first, Path(folder, "two"), "yolo")
        same(segments_of(open_dataset(Path(folder, "two"))), segments_of(first))
        if len(segments):
            assert np.abs(segments_of(first).boxes() - segments.boxes()).max() <= 5e-10


@settings(deadline=None, max_examples=60)
@given(segments=mask_segments(SIZE, [0, 1]))
def test_masks_keep_their_pixels(segments: Segments) -> None:
    """Holes and parts, too, although a line of YOLO is one ring."""
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(in_memory([segments], CLASSES), Path(folder, "set"), "yolo")
        read = segments_of(open_dataset(Path(folder, "set")))
        if isinstance(read.geometry, Polygons):
            assert np.array_equal(read.masks(), segments.masks())
        else:
            assert not segments.masks().any()


@settings(deadline=None, max_examples=60)
@given(segments=polygon_segments(SIZE, [0, 1], digits=2, parts=3))
def test_parts_that_overlap_keep_their_pixels(segments: Segments) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(in_memory([segments], CLASSES), Path(folder, "set"), "yolo")
        if len(segments):
            assert np.array_equal(segments_of(open_dataset(Path(folder, "set"))).masks(), segments.masks())


@pytest.mark.parametrize("splits", [["train", "val"], ["train", "valid"], ["val"], ["my part", "träin"], [None]])
def test_parts_come_back(tmp_path: Path, splits: list[str | None]) -> None:
    segments = Segments(SIZE, [1], None, box=[[3, 4, 5, 6]])
    names = [f"{split}/a/b" if split else "a/b" for split in splits]
    extras = [{"split": split} if split else {} for split in splits]
    dataset = in_memory([segments] * len(splits), CLASSES, names=names, extras=extras)
    write_dataset(dataset, tmp_path / "set", "yolo")
    again = open_dataset(tmp_path / "set")
    assert [(each.name, each.extra) for each in again] == [(each.name, each.extra) for each in dataset]
    assert len(segments_of(again)) == 1


def test_objects_that_leave_the_image(tmp_path: Path) -> None:
    """A little is kept, as other programs write it; more ends at the edge, which programs that check would refuse."""
    boxes = [[-0.1, 2, 30.2, 8], [-9, -9, 5, 6], [25, 2, 99, 8]]
    ring = np.array([[-20.0, 5], [10, 5], [10, 10]])
    boxed = Segments(SIZE, [0, 1, 2], None, box=boxes)
    outlined = Segments.from_polygons(SIZE, [[Polygon(ring)]], [1])
    write_dataset(in_memory([boxed, outlined], CLASSES), tmp_path / "set", "yolo")
    again = open_dataset(tmp_path / "set")
    assert segments_of(again).boxes().tolist() == [boxes[0], [0, 0, 5, 6], [25, 2, 30, 8]]
    assert segments_of(again, 1).boxes().tolist() == [[0, 5, 10, 10]]


def test_classes_are_counted_from_0(tmp_path: Path) -> None:
    categories = Categories([Category(90, "b"), Category(7, "a")])
    dataset = in_memory([Segments(SIZE, [7, 90], None, box=[[3, 4, 5, 6]] * 2)], categories)
    write_dataset(dataset, tmp_path / "set", "yolo")
    again = open_dataset(tmp_path / "set")
    assert again.categories == Categories([Category(0, "b"), Category(1, "a")])
    assert segments_of(again).category.tolist() == [1, 0]


def test_what_cannot_be_written(tmp_path: Path) -> None:
    tags = in_memory([Segments(SIZE, [1])], CLASSES)
    with pytest.raises(InputError, match="image0 has tags of the whole image"):
        write_dataset(tags, tmp_path / "set", "yolo")
    unknown = in_memory([Segments(SIZE, [9], None, box=[[3, 4, 5, 6]])], CLASSES)
    with pytest.raises(InputError, match="unknown category ids"):
        write_dataset(unknown, tmp_path / "set", "yolo")


# -- results -----------------------------------------------------------------------------------------------------------


def test_results(tmp_path: Path) -> None:
    dataset = open_dataset(ultralytics(tmp_path / "set"), split="train")
    text(tmp_path / "run/labels/a.txt", "1 0.5 0.25 0.2 0.5 0.75\n0 0.5 0.5 1 1 0.125\n")
    for path in (tmp_path / "run", tmp_path / "run" / "labels"):
        found = open_predictions(path, dataset)
        assert found is not None and set(found) == {"a", "sub/ü"}
        assert found["a"].score is not None and found["a"].score.tolist() == [0.75, 0.125]
        assert found["a"].boxes().tolist() == [[12, 0, 18, 10], [0, 0, 30, 20]]
        assert found["a"].category.tolist() == [1, 0]
        assert len(found["sub/ü"]) == 0
    text(tmp_path / "run/classes.txt", "dog\ncat\n")
    assert yolo.read_predictions(tmp_path / "run", dataset)["a"].category.tolist() == [0, 1]
    text(tmp_path / "run/labels/a.txt", "1 0.1 0.1 0.5 0.1 0.5 0.9 0.5\n")
    outlines = yolo.read_predictions(tmp_path / "run", dataset)["a"]
    assert isinstance(outlines.geometry, Polygons) and outlines.masks().any()
    text(tmp_path / "run/labels/b.txt", "1 0.5 0.25 0.2 0.5 0.75\n")
    with pytest.raises(InputError, match=r"b\.txt is for no image of the data set"):
        yolo.read_predictions(tmp_path / "run", dataset)


def test_what_are_no_results(tmp_path: Path) -> None:
    text(tmp_path / "labels/a.txt", BOX)
    assert not yolo.recognise_predictions(tmp_path)
    text(tmp_path / "labels/a.txt", "cat 0.5 0.5 0.5 0.5 0.5\n")
    assert not yolo.recognise_predictions(tmp_path)
    text(tmp_path / "labels/a.txt", "1 0.431 162 96 351 341\n")
    assert not yolo.recognise_predictions(tmp_path)
    assert not yolo.recognise_predictions(tmp_path / "labels" / "a.txt")


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 0.5 0.5 0.1 0.1", "class 2, but there are 2 names; expected 0 to 1"),
        ("-1 0.5 0.5 0.1 0.1", "class -1, but there are 2 names"),
        ("0.5 0.5 0.5 0.1 0.1", "class 0.5, but there are 2 names"),
        ("1 0.5 0.5 0.1", "4 columns; expected 'class x y width height'"),
        ("1 0.5 0.5 0.1 0.1 0.9", "6 columns; expected 'class x y width height'"),
        ("1 0.5 0.5 0.1 0.1 0.9 0.9 0.9", "8 columns"),
        ("1 0.5 0.5 0.1 wide", "could not convert string to float: 'wide'"),
        ("1 0.5 0.5 0.1 nan", "expected fractions of the image"),
        ("1 15 10 3 2", "coordinate 15; expected fractions of the image, from 0 to 1"),
        ("1 0.1 0.1 0.5 -0.1 0.5 0.9", "coordinate -0.1; expected fractions"),
        ("1 0.5 0.5 -0.005 0.1", "a box of width -0.005"),
    ],
)
def test_wrong_lines(tmp_path: Path, line: str, message: str) -> None:
    folder = ultralytics(tmp_path)
    file = text(folder / "labels/train/a.txt", f"{BOX}\n{line}\n")
    dataset = open_dataset(folder)
    with pytest.raises(InputError) as error:
        _ = dataset[0].segments
    assert message in str(error.value) and str(error.value).startswith(f"{file}, line 3: ")


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("train: images/nowhere\nnames: [cat]\n", "images/nowhere is not below"),
        ("train: ../../../../etc\nnames: [cat]\n", "is not below"),
        ("train: /etc\nnames: [cat]\n", "/etc is not below"),
        ("train: 5\nnames: [cat]\n", "train is 5; expected a folder"),
        ("train: images/train\nnames: 5\n", "names is 5; expected a list"),
        ("train: images/train\nnames: {1: cat}\n", "names is {1: 'cat'}; expected a list"),
        ("train: images/train\nnames: [cat, cat]\n", "category names must be unique"),
        ("train: images/train\nnames: [[cat]]\n", r"a class is called \['cat'\]"),
        ("train: images/train\nnames: [cat]\nkpt_shape: [17, 3]\n", "describes key points"),
    ],
)
def test_wrong_descriptions(tmp_path: Path, yaml: str, message: str) -> None:
    folder = ultralytics(tmp_path / "a" / "b" / "set", yaml)
    with pytest.raises(InputError, match=message) as error:
        open_dataset(folder)
    assert "data.yaml" in str(error.value) and "\n" not in str(error.value)


def test_a_yaml_that_grows_when_it_is_read(tmp_path: Path) -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [
        f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]"
        for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    folder = ultralytics(tmp_path, "\n".join([*lines, "train: images/train", "names: *i"]))
    with pytest.raises(InputError, match="a class is called"):
        open_dataset(folder)


def test_a_list_that_leads_out(tmp_path: Path) -> None:
    folder = ultralytics(tmp_path / "set", "train: train.txt\nnames: [cat, dog]\n")
    text(folder / "train.txt", "images/train/a.PNG\nimages/../../../secret.png\n")
    with pytest.raises(InputError, match=r"train\.txt: .* is no path below the data set"):
        open_dataset(folder)


def test_unknown_parts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no part 'test'; it has train, val"):
        open_dataset(ultralytics(tmp_path), split="test")


def test_other_layouts_are_not_yolo(tmp_path: Path) -> None:
    text(tmp_path / "one/config.yaml", "learning_rate: 0.1\n")
    text(tmp_path / "two/classes.txt", "cat\n")
    text(tmp_path / "two/notes.txt", "cats are 0.5 0.5 0.5 0.5\n")
    text(tmp_path / "three/broken.yaml", "names: [a\ntrain: }\n")
    for name in ("one", "two", "three", "nothing"):
        assert not yolo.recognise(tmp_path / name)
