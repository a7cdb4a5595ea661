"""Images with label masks: pairing, the meaning of masks, round trips, real sets, and what is said about mistakes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from everymask.errors import InputError
from everymask.formats import open_dataset, write_dataset
from everymask.formats.images import read_image, read_labels, write_image, write_labels
from everymask.formats.label_images import recognise as is_label_images
from everymask.types import Categories, Category, Dataset, LabelMap, Masks, Sample, Segments, Task

random = np.random.default_rng(3)


def picture(*shape: int) -> np.ndarray:
    return random.integers(0, 256, shape, dtype=np.uint8)


def objects(height: int = 20, width: int = 30) -> np.ndarray:
    """Three separate squares."""
    ids = np.zeros((height, width), np.uint16)
    ids[1:5, 1:5], ids[8:12, 3:9], ids[14:18, 20:28] = 1, 2, 3
    return ids


def make(folder: Path, masks: dict[str, np.ndarray], image: str = "images", mask: str = "masks") -> Path:
    for name, ids in masks.items():
        write_image(folder / image / f"{name}.png", picture(*ids.shape, 3))
        write_labels(folder / mask / f"{name}.png", ids)
    return folder


def same(a: Segments | None, b: Segments | None) -> None:
    """Asserts that two sets of segments agree in everything, label by label."""
    assert a is not None and b is not None
    assert a.size == b.size
    np.testing.assert_array_equal(a.category, b.category)
    np.testing.assert_array_equal(a.label_map(), b.label_map())
    np.testing.assert_array_equal(a.crowd, b.crowd)
    np.testing.assert_array_equal(a.boxes(), b.boxes())
    assert (a.score is None) == (b.score is None)
    if a.score is not None and b.score is not None:
        np.testing.assert_array_equal(a.score, b.score)
    assert set(a.attributes) == set(b.attributes)
    for name, values in a.attributes.items():
        assert values.dtype == b.attributes[name].dtype
        np.testing.assert_array_equal(values, b.attributes[name])


# -- pairing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask_folder", ["masks", "labels", "annotations", "Masks"])
def test_two_folders(tmp_path: Path, mask_folder: str) -> None:
    make(tmp_path, {"b10": objects(), "b9": objects(), "deep/a": objects()}, mask=mask_folder)
    dataset = open_dataset(tmp_path)
    assert dataset.format == "label_images"
    assert [sample.name for sample in dataset] == ["b9", "b10", "deep/a"]
    assert dataset.categories == Categories(["object"])
    sample = dataset[1]
    assert sample.image.shape == (20, 30, 3)
    assert sample.segments is not None
    np.testing.assert_array_equal(sample.segments.label_map(), objects())


def test_masks_below_the_images_and_with_an_ending(tmp_path: Path) -> None:
    for name in ("cell_1", "cell_2"):
        write_image(tmp_path / f"{name}.tif", picture(20, 30, 1))
        write_labels(tmp_path / "masks" / f"{name}_cp_masks.tif", objects())
    dataset = open_dataset(tmp_path)
    assert [sample.name for sample in dataset] == ["cell_1", "cell_2"]
    assert all(sample.segments is not None for sample in dataset)


def test_side_by_side(tmp_path: Path) -> None:
    pairs = [
        ("a.tif", "a_mask.png"),
        ("b.png", "b_masks.tif"),
        ("c_img.png", "c_label.png"),
        ("d.jpg", "d_labels.png"),
        ("e.TIF", "e_cp_masks.png"),
        ("img7.png", "mask7.png"),
    ]
    for number, (image, mask) in enumerate(pairs):
        write_image(tmp_path / f"{Path(image).stem}{Path(image).suffix.lower()}", picture(20, 30, 3))
        (tmp_path / f"{Path(image).stem}{Path(image).suffix.lower()}").rename(tmp_path / image)
        write_labels(tmp_path / mask, np.where(objects() == 1, number + 1, 0))
    write_image(tmp_path / "alone.png", picture(20, 30, 3))
    write_image(tmp_path / "a_flows.tif", picture(20, 30, 3))
    dataset = open_dataset(tmp_path)
    names = [sample.name for sample in dataset]
    assert names == ["a", "alone", "b", "c_img", "d", "e", "img7"]
    assert dataset[1].segments is None
    found = {
        sample.path.name: int(sample.segments.attributes.get("label", [1])[0])
        for sample in dataset
        if sample.segments is not None and sample.path is not None
    }
    assert found == {image: number + 1 for number, (image, _) in enumerate(pairs)}
    with pytest.raises(InputError, match=r"1 image \(alone\.png\) without a mask"):
        open_dataset(tmp_path, unannotated="error")


def test_splits(tmp_path: Path) -> None:
    make(tmp_path / "above" / "train", {"a": objects()})
    make(tmp_path / "above" / "val", {"b": objects()})
    together = open_dataset(tmp_path / "above")
    assert [(sample.name, sample.extra["split"]) for sample in together] == [("train/a", "train"), ("val/b", "val")]
    make(tmp_path / "plates" / "first", {"a": objects()})
    assert [sample.name for sample in open_dataset(tmp_path / "plates")] == ["a"]
    make(tmp_path / "plates" / "second", {"b": objects()})
    with pytest.raises(InputError, match=r"holds 2 data sets: first \(label_images\), second \(label_images\)"):
        open_dataset(tmp_path / "plates")
    assert [sample.name for sample in open_dataset(tmp_path / "plates", split="second")] == ["b"]
    with pytest.raises(InputError, match=r"has the parts first, second; open .*first, or say split='first'"):
        open_dataset(tmp_path / "plates", "label_images")
    assert [sample.name for sample in open_dataset(tmp_path / "above", split="val")] == ["b"]
    assert [sample.name for sample in open_dataset(tmp_path / "above" / "train")] == ["a"]
    make(tmp_path / "below", {"train/a": objects(), "val/b": objects()})
    assert [sample.name for sample in open_dataset(tmp_path / "below", split="val")] == ["b"]
    with pytest.raises(InputError, match="has no part 'test' with images and masks"):
        open_dataset(tmp_path / "below", "label_images", split="test")


def test_what_does_not_match_is_listed(tmp_path: Path) -> None:
    make(tmp_path, {name: objects() for name in "abcdef"})
    for name in "abcd":
        (tmp_path / "masks" / f"{name}.png").unlink()
    with pytest.raises(InputError, match=r"4 images \(a\.png, b\.png, c\.png \.\.\.\) without a mask in .*masks; add"):
        open_dataset(tmp_path)
    kept = open_dataset(tmp_path, unannotated="keep")
    assert [sample.segments is None for sample in kept] == [True] * 4 + [False] * 2
    (tmp_path / "images" / "f.png").unlink()
    with pytest.raises(InputError, match=r"1 mask \(f\.png\) without an image of the same name"):
        open_dataset(tmp_path, unannotated="keep")
    write_labels(tmp_path / "masks" / "e_mask.png", objects())
    (tmp_path / "masks" / "f.png").unlink()
    with pytest.raises(InputError, match=r"e\.png has two masks, e\.png and e_mask\.png; remove one"):
        open_dataset(tmp_path, unannotated="keep")
    write_image(tmp_path / "images" / "e.jpg", picture(20, 30, 3))
    with pytest.raises(InputError, match=r"holds both e\.jpg and e\.png"):
        open_dataset(tmp_path)


def test_sizes_that_differ(tmp_path: Path) -> None:
    make(tmp_path, {"a": objects()})
    write_labels(tmp_path / "masks" / "a.png", objects(21, 30))
    dataset = open_dataset(tmp_path)
    with pytest.raises(InputError, match=r"masks/a\.png has size 21 x 30, but its image .*images/a\.png has 20 x 30"):
        _ = dataset[0].segments


# -- opening is lazy ---------------------------------------------------------------------------------------------------


def test_opening_reads_no_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "0.png").touch()
        for number in range(1, 10_000):
            os.link(tmp_path / folder / "0.png", tmp_path / folder / f"{number}.png")  # quicker to make than a file
    (tmp_path / "categories.json").write_text('{"kind": "instance", "categories": [{"id": 1, "name": "cell"}]}')
    opened = []
    real_open = Path.open

    def watched(path: Path, *arguments: object, **options: object) -> object:
        opened.append(path)
        return real_open(path, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "open", watched)
    dataset = open_dataset(tmp_path)
    assert len(dataset) == 10_000
    assert dataset[9_999].name == "9999"
    assert {path.name for path in opened} <= {"categories.json"}
    # Nothing says what the masks mean: then a few are looked at, however many there are, and no image.
    (tmp_path / "categories.json").unlink()
    assert len(open_dataset(tmp_path)) == 10_000
    looked_at = [path for path in opened if path.suffix == ".png"]
    assert len(looked_at) == 8
    assert {path.parent.name for path in looked_at} == {"masks"}


# -- kinds of masks ----------------------------------------------------------------------------------------------------


def classes(seed: int) -> np.ndarray:
    """Classes 0..4 in pieces, and void."""
    values = np.random.default_rng(seed).integers(0, 5, (20, 30)).astype(np.uint8)
    values[:2] = 255
    return values


def test_kind_by_values(tmp_path: Path) -> None:
    semantic = open_dataset(make(tmp_path / "semantic", {f"{i}": classes(i) for i in range(3)}))
    assert semantic.tasks == {Task.SEMANTIC}
    assert semantic.categories.ids.tolist() == [0, 1, 2, 3, 4]
    segments = semantic[0].segments
    assert segments is not None
    np.testing.assert_array_equal(segments.semantic_map(), classes(0))
    instance = open_dataset(make(tmp_path / "instance", {"a": objects()}))
    assert Task.INSTANCE in instance.tasks
    forced = open_dataset(tmp_path / "instance", kind="semantic")
    assert forced.tasks == {Task.SEMANTIC}
    assert forced.categories.ids.tolist() == [1, 2, 3]


def test_parts_share_their_classes(tmp_path: Path) -> None:
    """Class 4 lies in the training part only, and is a class of both nevertheless."""
    make(tmp_path / "train", {f"{i}": classes(i) for i in range(3)})
    make(tmp_path / "val", {"a": np.where(classes(7) == 4, 0, classes(7))})
    together = open_dataset(tmp_path)
    assert together.categories.ids.tolist() == [0, 1, 2, 3, 4]
    assert [sample.name for sample in together] == ["train/0", "train/1", "train/2", "val/a"]
    (tmp_path / "train" / "classes.txt").write_text("a\nb\nc\nd\ne\n")
    (tmp_path / "val" / "classes.txt").write_text("a\nb\nc\nd\nf\n")
    with pytest.raises(InputError, match="its parts train and val have different categories"):
        open_dataset(tmp_path)


def test_white_masks_are_never_silently_void(tmp_path: Path) -> None:
    white = np.where(objects() > 0, 255, 0)
    folder = make(tmp_path / "white", {"a": white, "b": white})
    (folder / "classes.txt").write_text("background\ncell\n")
    with pytest.raises(InputError, match=r"a\.png and others hold only 0 and 255, but .*classes\.txt names classes"):
        open_dataset(folder)
    ignored = open_dataset(folder, void=255)[0].segments
    assert ignored is not None
    np.testing.assert_array_equal(ignored.semantic_map() == 255, white == 255)
    make(tmp_path / "white", {"b": np.where(white == 255, 1, 0)})
    assert open_dataset(folder).categories.names == ["background", "cell"]
    (folder / "classes.txt").unlink()
    objects_of_white = open_dataset(make(tmp_path / "alone", {"a": white}), kind="instance")[0].segments
    assert objects_of_white is not None and len(objects_of_white) == 1
    assert (objects_of_white.label_map() >= 0).all()


def test_foreground_masks(tmp_path: Path) -> None:
    ids = np.where(objects() > 0, 255, 0)
    dataset = open_dataset(make(tmp_path / "white", {"a": ids}))
    assert dataset.categories == Categories([Category(255, "foreground")])
    segments = dataset[0].segments
    assert segments is not None and len(segments) == 1
    np.testing.assert_array_equal(segments.masks()[0], ids > 0)
    dataset = open_dataset(make(tmp_path / "one", {"a": ids // 255}))
    assert dataset.categories == Categories([Category(1, "foreground")])


def test_several_names_make_masks_semantic(tmp_path: Path) -> None:
    """Two halves look like two objects, until a list says that they are classes."""
    halves = np.repeat([1, 2], 20)[:, None].repeat(40, axis=1)
    make(tmp_path, {"0": halves, "1": halves})
    assert Task.INSTANCE in open_dataset(tmp_path).tasks
    (tmp_path / "classes.txt").write_text("none\nupper\nlower\n")
    dataset = open_dataset(tmp_path)
    assert dataset.tasks == {Task.SEMANTIC} and dataset.categories.names == ["none", "upper", "lower"]
    assert dataset[0].segments is not None and dataset[0].segments.category.tolist() == [1, 2]
    (tmp_path / "classes.txt").write_text("cell\n")
    assert Task.INSTANCE in open_dataset(tmp_path).tasks


def test_classes_from_files_and_options(tmp_path: Path) -> None:
    make(tmp_path, {f"{i}": classes(i) for i in range(2)})
    names = ["sky", "road", "car", "tree", "sign"]
    assert open_dataset(tmp_path, classes=names).categories.names == names
    (tmp_path / "classes.txt").write_text("\n".join(names) + "\n")
    dataset = open_dataset(tmp_path)
    assert dataset.categories.names == names
    assert dataset.categories.ids.tolist() == [0, 1, 2, 3, 4]
    (tmp_path / "classes.txt").write_text("sky\nroad\n")
    with pytest.raises(
        InputError,
        match=r"masks/0\.png holds the values \[2, 3, 4\], which are none of the 2 classes.*--reading\.void 2",
    ):
        _ = open_dataset(tmp_path)[0].segments
    (tmp_path / "classes.txt").write_text("sky\n\nroad\n")
    with pytest.raises(InputError, match=r"classes\.txt has an empty line"):
        open_dataset(tmp_path)
    with pytest.raises(InputError, match="names 5 classes, but the values of instance masks are objects"):
        open_dataset(tmp_path, classes=names, kind="instance")
    (tmp_path / "categories.json").write_text('{"kind": "panoptical", "categories": []}')
    with pytest.raises(InputError, match=r"categories\.json is no list of categories: kind must be"):
        open_dataset(tmp_path)
    with pytest.raises(InputError, match="kind must be 'instance' or 'semantic', got 'pixels'"):
        open_dataset(tmp_path, kind="pixels")


def test_void_of_instances(tmp_path: Path) -> None:
    ids = objects()
    ids[0] = 255
    segments = open_dataset(make(tmp_path, {"a": ids}), kind="instance", void=255)[0].segments
    assert segments is not None
    np.testing.assert_array_equal(segments.label_map(), np.where(ids == 255, -1, ids.astype(int)))


# -- columns -----------------------------------------------------------------------------------------------------------


def test_columns_of_a_manifest(tmp_path: Path) -> None:
    make(tmp_path / "train", {"a": objects(), "b": objects()})
    (tmp_path / "manifest.csv").write_text(
        "id,split,kind,cells,note\na,train,histology,12,007\nb.png,train,fluorescence,3.5,x\na,val,other,1,y\n"
    )
    dataset = open_dataset(tmp_path / "train")
    assert dataset[0].extra == {"split": "train", "kind": "histology", "cells": 12, "note": "007"}
    assert dataset[1].extra == {"split": "train", "kind": "fluorescence", "cells": 3.5, "note": "x"}
    (tmp_path / "train" / "metadata.csv").write_text("name,kind\nb,brightfield\n")
    assert [sample.extra for sample in open_dataset(tmp_path / "train")] == [{}, {"kind": "brightfield"}]
    (tmp_path / "train" / "metadata.csv").write_bytes(b"name,kind\nb,\xff\xfe\n")
    with pytest.raises(InputError, match=r"metadata\.csv cannot be read"):
        open_dataset(tmp_path / "train")


# -- round trips -------------------------------------------------------------------------------------------------------


def sample_of(name: str, segments: Segments | None, **extra: object) -> Sample:
    image = picture(*(segments.size if segments is not None else (20, 30)), 3)
    return Sample(name, lambda: image, None if segments is None else lambda: segments, None, extra)


def test_everything_comes_back(tmp_path: Path) -> None:
    categories = Categories(
        [Category(3, "cell", colour=(1, 2, 3)), Category(17, "sky", is_thing=False, supercategory="outside")]
    )
    ids = objects().astype(np.int32)
    ids[0] = -1
    full = Segments(
        (20, 30),
        [17, 3, 3, 17],
        LabelMap(ids),  # the fourth segment has no pixels
        score=[0.25, 0.5, 1 / 3, 1],
        box=random.random((4, 4)),
        crowd=[True, False, False, False],
        attributes={
            "id": [9, 8, 7, 6],
            "ok": [True, False, True, True],
            "who": ["a", "b", "", "ü"],
            "x": [0.1, 1e-9, 2, 3],
        },
    )
    volume = Segments.from_label_map(random.integers(0, 6, (4, 9, 8)), [3, 17, 3, 3, 3])
    samples = [
        sample_of("a", full, kind="x", number="007", nested={"list": [1, None, 2.5]}),
        sample_of("sub/b", Segments.empty((6, 7))),
        sample_of("c", volume),
        sample_of("d", None),
    ]
    dataset = Dataset.of(samples, categories, frozenset({Task.INSTANCE}))
    write_dataset(dataset, tmp_path / "out", "label_images")
    back = open_dataset(tmp_path / "out", unannotated="keep")
    assert back.categories == categories
    assert {Task.INSTANCE, Task.PANOPTIC} <= back.tasks
    found = {sample.name: sample for sample in back}
    assert set(found) == {"a", "sub/b", "c", "d"}
    for sample in samples:
        np.testing.assert_array_equal(found[sample.name].image, sample.image)
        assert found[sample.name].extra == sample.extra
        if sample.segments is None:
            assert found[sample.name].segments is None
        else:
            same(found[sample.name].segments, sample.segments)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_many_objects_need_a_tiff(tmp_path: Path) -> None:
    ids = np.arange(1, 260 * 260 + 1).reshape(260, 260)
    dataset = Dataset.of(
        [sample_of("a", Segments.from_label_map(ids))], Categories(["cell"]), frozenset({Task.INSTANCE})
    )
    write_dataset(dataset, tmp_path / "out", "label_images")
    assert tifffile.imread(tmp_path / "out/masks/a.tif").dtype == np.uint32
    same(open_dataset(tmp_path / "out")[0].segments, dataset[0].segments)
    voided = Segments((1, 2), [1], LabelMap(np.array([[1, -1]], np.int32)))
    mixed = Dataset.of([dataset[0], sample_of("b", voided)], dataset.categories, dataset.tasks)
    with pytest.raises(InputError, match=r"b has void pixels, and another mask has the label 67600"):
        write_dataset(mixed, tmp_path / "mixed", "label_images")
    assert not (tmp_path / "mixed").exists()


@pytest.mark.parametrize("ids", [[0, 1, 4], [5, 255], [7, 300], [1, 2]])
def test_semantic_masks_with_void_and_background(tmp_path: Path, ids: list[int]) -> None:
    labels = random.integers(-1, len(ids) + 1, (12, 13)).astype(np.int32)
    labels[0, : len(ids) + 2] = np.arange(-1, len(ids) + 1)
    segments = Segments((12, 13), ids, LabelMap(labels))
    categories = Categories([Category(each, f"c{each}", is_thing=False) for each in ids])
    dataset = Dataset.of([sample_of("a", segments)], categories, frozenset({Task.SEMANTIC}))
    write_dataset(dataset, tmp_path / "out", "label_images")
    back = open_dataset(tmp_path / "out")
    assert back.tasks == {Task.SEMANTIC}
    assert back.categories == categories
    same(back[0].segments, segments)


def test_overlap_and_missing_geometry_are_said(tmp_path: Path) -> None:
    masks = np.zeros((2, 8, 8), bool)
    masks[:, 2:5, 2:5] = True
    overlapping = Segments.from_masks(masks, score=[0.9, 0.1])
    dataset = Dataset.of([sample_of("a", overlapping)], Categories(["x"]), frozenset({Task.INSTANCE}))
    with pytest.raises(InputError, match=r"a: segments overlap in 9 pixels, .*overlap='last'"):
        write_dataset(dataset, tmp_path / "out", "label_images")
    assert list(tmp_path.iterdir()) == []
    write_dataset(dataset, tmp_path / "out", "label_images", overlap="score")
    np.testing.assert_array_equal(read_labels(tmp_path / "out/masks/a.png"), masks[0])
    boxes = Segments((8, 8), [1], box=[[0, 0, 2, 2]])
    dataset = Dataset.of([sample_of("a", boxes)], Categories(["x"]), frozenset({Task.DETECTION}))
    with pytest.raises(InputError, match="a has boxes or tags only, which label masks cannot hold; write coco instead"):
        write_dataset(dataset, tmp_path / "boxes", "label_images")


@pytest.mark.parametrize("name", ["../a", "/tmp/a", "a/../../b", "C:/a", "a\\b", ""])
def test_names_stay_in_the_folder(tmp_path: Path, name: str) -> None:
    dataset = Dataset.of([sample_of(name, Segments.empty((4, 4)))], Categories(["x"]), frozenset({Task.INSTANCE}))
    with pytest.raises(InputError, match="is no path below the data set"):
        write_dataset(dataset, tmp_path / "out", "label_images")
    assert list(tmp_path.iterdir()) == []


def test_image_files_are_copied_as_they_are(tmp_path: Path) -> None:
    make(tmp_path / "in", {"a": objects()})
    Image.fromarray(picture(20, 30, 3)).save(tmp_path / "in/images/a.jpg")
    (tmp_path / "in/images/a.png").unlink()
    dataset = open_dataset(tmp_path / "in")
    write_dataset(dataset, tmp_path / "copy", "label_images")
    write_dataset(dataset, tmp_path / "link", "label_images", link_images=True)
    original = tmp_path / "in/images/a.jpg"
    assert (tmp_path / "copy/images/a.jpg").read_bytes() == original.read_bytes()
    assert not (tmp_path / "copy/images/a.jpg").samefile(original)
    assert (tmp_path / "link/images/a.jpg").samefile(original)


def test_labels_of_the_file_come_back(tmp_path: Path) -> None:
    ids = np.where(objects() == 3, 900, objects() * 7)
    make(tmp_path / "in", {"a": ids})
    write_dataset(open_dataset(tmp_path / "in"), tmp_path / "out", "label_images")
    np.testing.assert_array_equal(read_labels(tmp_path / "out/masks/a.png"), ids)
    assert not (tmp_path / "out/objects").exists()


def test_objects_that_do_not_fit_their_mask(tmp_path: Path) -> None:
    make(tmp_path, {"a": objects()})
    (tmp_path / "categories.json").write_text(
        json.dumps({"kind": "instance", "categories": [{"id": 1, "name": "x"}, {"id": 2, "name": "y"}]})
    )
    with pytest.raises(InputError, match=r"there are 2 categories, but no .*objects/a\.json"):
        _ = open_dataset(tmp_path)[0].segments
    (tmp_path / "objects").mkdir()
    (tmp_path / "objects/a.json").write_text('{"category": [1, 2]}')
    with pytest.raises(InputError, match=r"objects/a\.json does not fit its mask: the label map holds id 3"):
        _ = open_dataset(tmp_path)[0].segments


# -- opening in general ------------------------------------------------------------------------------------------------


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere does not exist; check the spelling"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is an empty folder; expected a data set"):
        open_dataset(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(
            InputError,
            match=r"cannot tell what .* is; expected a data set as .*coco.*; check the path, or say --format",
        ) as caught:
            open_dataset(path)
        assert "label_images" in str(caught.value)
    with pytest.raises(InputError, match="unknown format 'label_image'; did you mean 'label_images'"):
        open_dataset(tmp_path, "label_image")
    with pytest.raises(InputError, match="unknown option of the format 'label_images' 'kinds'; did you mean 'kind'"):
        open_dataset(tmp_path, "label_images", kinds="semantic")
    with pytest.raises(InputError, match="holds no images with masks; expected images/ with masks/"):
        open_dataset(tmp_path, "label_images")


def test_what_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Dataset.of([sample_of("a", Segments.empty((4, 4)))], Categories(["x"]), frozenset({Task.INSTANCE}))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious.txt").write_text("1")
    with pytest.raises(InputError, match="full is a folder that is not empty; choose a new folder"):
        write_dataset(dataset, tmp_path / "full", "label_images")
    with pytest.raises(InputError, match=r"out\.json looks like a file, but a data set is written to a folder"):
        write_dataset(dataset, tmp_path / "out.json", "coco")
    with pytest.raises(InputError, match=r"precious\.txt is a file; choose a new folder"):
        write_dataset(dataset, tmp_path / "full" / "precious.txt", "label_images")
    with pytest.raises(InputError, match="unknown option of the format 'label_images' 'overlaps'"):
        write_dataset(dataset, tmp_path / "out", "label_images", overlaps="last")
    (tmp_path / "empty").mkdir()
    write_dataset(dataset, tmp_path / "empty", "label_images")
    assert len(open_dataset(tmp_path / "empty")) == 1
    broken = Dataset.of([dataset[0], Sample("b", lambda: 1 / 0)], dataset.categories, dataset.tasks)  # type: ignore[arg-type, return-value]
    with pytest.raises(ZeroDivisionError):
        write_dataset(broken, tmp_path / "broken", "label_images")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "full"]


# -- time --------------------------------------------------------------------------------------------------------------


def stacks(folder: Path, axes: str, **options: object) -> tuple[np.ndarray, np.ndarray]:
    """An image and a mask of four frames, side by side with a single image."""
    images = random.integers(0, 999, (4, 20, 30), dtype=np.uint16)
    masks = np.stack([np.where(objects() == number, 0, objects()) for number in range(4)]).astype(np.uint16)
    folder.mkdir()
    tifffile.imwrite(folder / "film.tif", images, metadata={"axes": axes}, **options)
    tifffile.imwrite(folder / "film_mask.tif", masks, photometric="minisblack")
    write_image(folder / "photo.tif", picture(20, 30, 1))
    write_labels(folder / "photo_mask.tif", objects())
    return images, masks


@pytest.mark.parametrize("options", [{"imagej": True}, {"ome": True}, {}])
def test_time_series_are_frames(tmp_path: Path, options: dict[str, bool]) -> None:
    images, masks = stacks(tmp_path / "set", "TYX", **options)
    dataset = open_dataset(tmp_path / "set")
    names = ["film/t000", "film/t001", "film/t002", "film/t003", "photo"]
    assert [sample.name for sample in dataset] == names
    for frame in (2, 0, 3, 1):
        sample = dataset[frame]
        assert sample.extra == {"sequence": "film", "frame": frame}
        np.testing.assert_array_equal(sample.image[..., 0], images[frame])
        assert sample.segments is not None
        np.testing.assert_array_equal(sample.segments.label_map() > 0, masks[frame] > 0)
    write_dataset(dataset, tmp_path / "out", "label_images")
    back = open_dataset(tmp_path / "out")
    assert [sample.name for sample in back] == names
    for one, other in zip(dataset, back, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        same(one.segments, other.segments)
        assert one.extra == other.extra


def test_time_is_a_matter_of_the_metadata_or_of_the_option(tmp_path: Path) -> None:
    images, masks = stacks(tmp_path / "volume", "ZYX", imagej=True)
    volume = open_dataset(tmp_path / "volume")
    assert [sample.name for sample in volume] == ["film", "photo"]
    assert volume[0].image.shape == (4, 20, 30, 1)
    frames = open_dataset(tmp_path / "volume", time=True)
    assert len(frames) == 5
    np.testing.assert_array_equal(frames[3].image[..., 0], images[3])
    stacks(tmp_path / "film", "TYX", imagej=True)
    assert len(open_dataset(tmp_path / "film", time=False)) == 2
    tifffile.imwrite(tmp_path / "film" / "film_mask.tif", masks[:3], photometric="minisblack")
    with pytest.raises(InputError, match=r"film_mask\.tif has size 3 x 20 x 30, but its image .* 4 x 20 x 30"):
        _ = open_dataset(tmp_path / "film")[1].segments


# -- real sets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("split", "count"), [("train", 499), ("val", 83)])
def test_nuclei(shared_data: Path, split: str, count: int) -> None:
    dataset = open_dataset(shared_data / "dsb2018" / split)
    assert len(dataset) == count
    assert Task.INSTANCE in dataset.tasks
    assert dataset.categories == Categories(["object"])
    for sample in (dataset[i] for i in range(0, count, 9)):
        mask = np.asarray(Image.open(shared_data / "dsb2018" / split / "masks" / f"{sample.name}.png"))
        assert sample.segments is not None
        # The manifest counts objects by itself.
        assert len(sample.segments) == sample.extra["instances"] == len(np.unique(mask)) - (0 in mask)
        assert sample.extra["kind"] in {"fluorescence", "histology-color", "brightfield-gray"}
        assert sample.image.shape[:2] == (sample.extra["height"], sample.extra["width"])
        np.testing.assert_array_equal(sample.segments.label_map() > 0, mask > 0)


@pytest.mark.parametrize(("split", "count"), [("train", 367), ("val", 101)])
def test_camvid(shared_data: Path, split: str, count: int) -> None:
    dataset = open_dataset(shared_data / "camvid" / split)
    assert len(dataset) == count
    assert dataset.tasks == {Task.SEMANTIC}
    assert dataset.categories.ids.tolist() == list(range(11))
    for sample in (dataset[i] for i in range(0, count, 12)):
        mask = np.asarray(Image.open(shared_data / "camvid" / split / "labels" / f"{sample.name}.png"))
        assert sample.segments is not None
        np.testing.assert_array_equal(sample.segments.semantic_map(), mask)


def test_parts_open_as_one(shared_data: Path) -> None:
    """The counts of the README, without options."""
    nuclei = open_dataset(shared_data / "dsb2018")
    assert nuclei.format == "label_images"
    assert len(nuclei) == 499 + 83
    kinds = {sample.extra["kind"] for sample in nuclei[::7]}
    assert kinds == {"fluorescence", "histology-color", "brightfield-gray"}
    assert {sample.extra["split"] for sample in nuclei[::7]} == {"train", "val"}
    streets = open_dataset(shared_data / "camvid")
    assert len(streets) == 367 + 101
    assert (streets.tasks, len(streets.categories)) == ({Task.SEMANTIC}, 11)


def test_layouts_of_other_formats_are_not_claimed(shared_data: Path) -> None:
    others = [
        "voc/instance",
        "voc/detection",
        "cityscapes/pix2pixhd",
        "cityscapes/frankfurt",
        "coco/tiny160",
        "cifar10",
    ]
    others += [
        "ade20k/ADE20K_2021_17_01",
        "ctc/Fluo-N2DH-SIM+",
        "ctc/Fluo-N2DH-SIM+/01_GT",
        "ctc/Fluo-N2DL-HeLa/01_RES",
    ]
    others += ["coco/panoptic2", "detection/voc100"]
    for name in others:
        assert (shared_data / name).is_dir()
        assert not is_label_images(shared_data / name), name


def test_microscopy(shared_data: Path, tmp_path: Path) -> None:
    bacteria = open_dataset(shared_data / "microscopy" / "omnipose")
    assert len(bacteria) == 7
    for sample in bacteria:
        mask = tifffile.imread(shared_data / "microscopy/omnipose/masks" / f"{sample.name}_cp_masks.tif")
        assert sample.segments is not None
        assert len(sample.segments) == len(np.unique(mask)) - 1
        np.testing.assert_array_equal(sample.segments.label_map() > 0, mask > 0)
    nuclei = {sample.name: sample for sample in open_dataset(shared_data / "microscopy" / "stardist")}
    assert set(nuclei) == {"histo", "img2d", "img3d"}
    assert nuclei["histo"].segments is None
    volume = nuclei["img3d"].segments
    assert volume is not None
    mask = tifffile.imread(shared_data / "microscopy/stardist/mask3d.tif")
    np.testing.assert_array_equal(volume.label_map() > 0, mask > 0)
    assert nuclei["img3d"].image.shape == (*mask.shape, 1)


@pytest.mark.parametrize(
    ("source", "every", "mask"),
    [
        ("dsb2018/val", 10, "masks/{}.png"),
        ("camvid/val", 20, "labels/{}.png"),
        ("microscopy/omnipose", 1, "masks/{}_cp_masks.tif"),
        ("microscopy/stardist", 1, "{}.tif"),
    ],
)
def test_real_sets_come_back(shared_data: Path, tmp_path: Path, source: str, every: int, mask: str) -> None:
    dataset = open_dataset(shared_data / source)[::every]
    write_dataset(dataset, tmp_path / "out", "label_images")
    back = {sample.name: sample for sample in open_dataset(tmp_path / "out", unannotated="keep")}
    assert len(back) == len(dataset)
    for sample in dataset:
        np.testing.assert_array_equal(back[sample.name].image, sample.image)
        assert back[sample.name].extra == sample.extra
        if sample.segments is None:
            assert back[sample.name].segments is None
            continue
        same(back[sample.name].segments, sample.segments)
        # The mask files have the same values, too, whatever their numbering.
        original = shared_data / source / mask.format(sample.name.replace("img", "mask"))
        written = next((tmp_path / "out" / "masks").glob(f"{sample.name}.*"))
        np.testing.assert_array_equal(read_labels(written), read_labels(original))


def test_masks_overlap_free_conversion_from_run_lengths(tmp_path: Path) -> None:
    masks = np.stack([objects() == 1, objects() == 3])
    segments = Segments.from_masks(masks, [5, 6])
    assert isinstance(segments.geometry, Masks)
    categories = Categories([Category(5, "a"), Category(6, "b")])
    write_dataset(
        Dataset.of([sample_of("a", segments)], categories, frozenset({Task.INSTANCE})), tmp_path / "out", "label_images"
    )
    back = open_dataset(tmp_path / "out")[0].segments
    assert back is not None
    np.testing.assert_array_equal(back.masks(), masks)
    assert back.category.tolist() == [5, 6]
    assert read_image(tmp_path / "out/images/a.png").shape == (20, 30, 3)
