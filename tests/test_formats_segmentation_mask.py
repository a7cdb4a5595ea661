"""CVAT's segmentation masks: colours against a hand-made export, round trips, and colours that mean nothing."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from everymask.errors import InputError
from everymask.formats import segmentation_mask, voc
from everymask.formats.segmentation_mask import class_colours
from everymask.types import Categories, Category, Dataset, LabelMap, Sample, Segments, Task

LABELMAP = (
    "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:51,221,255::\nflower bed:250,50,83:leaf,stem:bloom\n"
)
RED, BLUE, BED = (128, 0, 0), (51, 221, 255), (250, 50, 83)
"""The colours of object 1 in the VOC colour map, and of both classes."""


def export(folder, classes, objects, labelmap=LABELMAP, name="a"):
    """What CVAT exports: (8, 9, 3) colours, or None."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "labelmap.txt").write_text(labelmap)
    for part, colours in (("SegmentationClass", classes), ("SegmentationObject", objects)):
        if colours is not None:
            (folder / part / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.asarray(colours, np.uint8)).save(folder / part / f"{name}.png")
    (folder / "JPEGImages" / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 8)).save(folder / f"JPEGImages/{name}.png")
    sets = folder / "ImageSets/Segmentation"
    sets.mkdir(parents=True, exist_ok=True)
    (sets / "default.txt").write_text(f"{name}\n")
    return folder


def coloured():
    """A cat, and two flower beds, of which one has a hole."""
    classes, objects = np.zeros((2, 8, 9, 3), np.uint8)
    classes[0:3, 0:3], objects[0:3, 0:3] = BLUE, RED
    classes[4:8, 4:8], objects[4:8, 4:8] = BED, (0, 128, 0)
    classes[5, 5], objects[5, 5] = 0, 0
    classes[0, 8], objects[0, 8] = BED, (12, 34, 56)
    return classes, objects


def memory(rows, categories, tasks=frozenset({Task.INSTANCE})):
    samples = [
        Sample(name, lambda: np.zeros((8, 9, 3), np.uint8), lambda segments=segments: segments, extra=dict(*extra))
        for name, segments, *extra in rows
    ]
    return Dataset.of(samples, categories, tasks)


def round_trip(dataset, folder, **options):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    segmentation_mask.write(dataset, folder, **options)
    return segmentation_mask.read(folder)


def test_an_export(tmp_path):
    folder = export(tmp_path, *coloured())
    assert segmentation_mask.recognise(folder)
    dataset = segmentation_mask.read(folder)
    assert [(each.id, each.name, each.colour) for each in dataset.categories] == [
        (1, "cat", BLUE),
        (2, "flower bed", BED),
    ]
    assert dataset.tasks == {Task.INSTANCE, Task.SEMANTIC}
    assert (dataset.format, dataset[0].name, dataset[0].extra) == ("segmentation_mask", "a", {})
    segments = dataset[0].segments
    assert segments.category.tolist() == [1, 2, 2]
    assert segments.areas().tolist() == [9, 15, 1]
    assert segments.attributes["label"].tolist()[:2] == [1, 2]
    semantic = segmentation_mask.read(folder, kind="semantic")
    assert semantic.tasks == {Task.SEMANTIC}
    assert semantic[0].segments.areas().tolist() == [9, 16]


def test_palette_pictures_are_read_by_their_colours(tmp_path):
    """Indices may be in any order; the same picture as RGB says the same."""
    classes, objects = coloured()
    folder = export(tmp_path, classes, objects)
    expected = segmentation_mask.read(folder)[0].segments
    image = Image.fromarray(classes).quantize(7)
    assert np.array_equal(np.asarray(image.convert("RGB")), classes)
    image.save(folder / "SegmentationClass/a.png")
    found = segmentation_mask.read(folder)[0].segments
    assert np.array_equal(found.label_map(), expected.label_map())
    assert found.category.tolist() == expected.category.tolist()


def test_void(tmp_path):
    classes, objects = coloured()
    classes[7, 0], objects[7, 1] = (224, 224, 192), (224, 224, 192)
    ids = segmentation_mask.read(export(tmp_path / "a", classes, objects))[0].segments.label_map()
    assert (ids[7, :2] == -1).all()
    assert (ids < 0).sum() == 2
    classes[7, 0] = (9, 9, 9)
    labelmap = LABELMAP + "ignored:9,9,9::\n"
    ids = segmentation_mask.read(export(tmp_path / "b", classes, objects, labelmap))[0].segments.label_map()
    assert (ids[7, :2] == -1).all()


def test_one_of_the_two_pictures_is_enough(tmp_path):
    classes, objects = coloured()
    only_classes = segmentation_mask.read(export(tmp_path / "a", classes, None))
    assert only_classes.tasks == {Task.SEMANTIC}
    assert only_classes[0].segments.areas().tolist() == [9, 16]
    one = "background:0,0,0::\ncell:1,2,3::\n"
    assert len(segmentation_mask.read(export(tmp_path / "b", None, objects, one))[0].segments) == 3


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_masks_survive_a_round_trip(tmp_path, data):
    names = data.draw(st.lists(st.sampled_from(["cat", "dog", "\u00e4 b"]), min_size=1, unique=True))
    colours = data.draw(st.lists(st.tuples(*[st.integers(1, 250)] * 3), min_size=3, max_size=3, unique=True))
    categories = Categories(Category(number, name, colour=colours[number - 1]) for number, name in enumerate(names, 1))
    rows = []
    for number in range(2):
        count = data.draw(st.integers(0, 4))
        ids = data.draw(arrays.arrays(np.int32, (8, 9), elements=st.integers(-1, count)))
        # An object without pixels has no colour anywhere, and cannot come back.
        present = [each for each in range(1, count + 1) if (ids == each).any()]
        ids = np.concatenate([[-1, 0], np.searchsorted([*present, 99], np.arange(1, count + 1)) + 1])[ids + 1]
        category = data.draw(st.lists(st.integers(1, len(names)), min_size=len(present), max_size=len(present)))
        extra = {"split": "train", "day": 3} if number else {}
        rows.append((f"down/image {number}", Segments((8, 9), category, LabelMap(ids)), extra))
    dataset = memory(rows, categories)
    again = round_trip(dataset, tmp_path / "set")
    assert again.categories == categories
    for one, other in zip(dataset, again, strict=True):
        assert (one.name, one.extra) == (other.name, other.extra)
        assert np.array_equal(one.segments.label_map(), other.segments.label_map())
        assert one.segments.category.tolist() == other.segments.category.tolist()
        assert other.segments.attributes == {}


def test_exports_survive_a_round_trip(tmp_path):
    first = segmentation_mask.read(export(tmp_path / "a", *coloured()))
    again = round_trip(first, tmp_path / "b")
    assert again.categories == first.categories
    assert np.array_equal(again[0].segments.label_map(), first[0].segments.label_map())
    assert again[0].segments.attributes["label"].tolist() == first[0].segments.attributes["label"].tolist()


def test_more_objects_than_a_palette_holds(tmp_path):
    ids = np.arange(72, dtype=np.int32).reshape(8, 9)
    labels = Segments((8, 9), np.ones(71), LabelMap(ids), attributes={"label": np.arange(71) * 1000 + 5})
    again = round_trip(memory([("a", labels)], Categories(["cell"])), tmp_path / "set")[0].segments
    assert np.array_equal(again.label_map(), ids)
    assert again.attributes["label"].tolist() == labels.attributes["label"].tolist()
    assert Image.open(tmp_path / "set/SegmentationObject/a.png").mode == "RGB"


def test_more_classes_than_a_palette_holds(tmp_path):
    categories = Categories([f"class {number}" for number in range(300)])
    ids = np.arange(72, dtype=np.int32).reshape(8, 9)
    segments = Segments((8, 9), np.arange(300, 300 - 71, -1), LabelMap(ids))
    again = round_trip(memory([("a", segments)], categories), tmp_path / "set")
    assert again.categories.names == categories.names
    assert np.array_equal(again[0].segments.category, segments.category)


def test_semantic_sets(tmp_path):
    classes = np.arange(72).reshape(8, 9) % 3
    segments = Segments.from_semantic_map(classes, background=0)
    dataset = memory([("a", segments)], Categories(["cat", "dog"]), frozenset({Task.SEMANTIC}))
    again = round_trip(dataset, tmp_path / "set")
    assert again.tasks == {Task.SEMANTIC}
    assert np.array_equal(again[0].segments.semantic_map(), classes)


def test_what_is_written_is_a_voc_set_for_other_programs(tmp_path):
    """The voc reader takes the same folder, and CVAT's own rule of colours holds for every pixel."""
    first = segmentation_mask.read(export(tmp_path / "a", *coloured()))
    round_trip(first, tmp_path / "b")
    stored = np.asarray(Image.open(tmp_path / "b/SegmentationClass/a.png").convert("RGB"))
    assert np.array_equal(stored, coloured()[0])
    lines = (tmp_path / "b/labelmap.txt").read_text().splitlines()
    assert lines == ["# label:color_rgb:parts:actions", "background:0,0,0::", "cat:51,221,255::",
                     "flower bed:250,50,83::"]  # fmt: skip
    assert (tmp_path / "b/ImageSets/Segmentation/default.txt").read_text() == "a\n"
    assert np.array_equal(voc.read(tmp_path / "b")[0].segments.label_map(), first[0].segments.label_map())


def test_colours_of_classes_are_never_shared():
    same = [Category(number, str(number), colour=colour) for number, colour in enumerate(
        [(128, 0, 0), None, (128, 0, 0), (0, 0, 0), (224, 224, 192), None], 1)]  # fmt: skip
    found = [tuple(each.tolist()) for each in class_colours(Categories(same)).values()]
    assert found[0] == (128, 0, 0)
    assert len(set(found)) == 6
    assert not {(0, 0, 0), (224, 224, 192)} & set(found)


def test_images_elsewhere(tmp_path):
    folder = export(tmp_path / "set", *coloured())
    (folder / "JPEGImages").rename(tmp_path / "photos")
    with pytest.raises(InputError, match="missing"):
        segmentation_mask.read(folder)
    assert segmentation_mask.read(folder, missing_images="keep")[0].segments.size == (8, 9)
    assert len(segmentation_mask.read(folder, missing_images="skip")) == 0
    assert segmentation_mask.read(folder, images=tmp_path / "photos")[0].image.shape == (8, 9, 3)


def test_other_sets_are_not_claimed(tmp_path):
    folder = export(tmp_path / "set", *coloured())
    (folder / "Annotations").mkdir()
    (folder / "Annotations/a.xml").write_text("<annotation/>")
    assert not segmentation_mask.recognise(folder)
    assert not segmentation_mask.recognise(tmp_path)
    assert not segmentation_mask.recognise(folder / "labelmap.txt")
    with pytest.raises(InputError, match="no segmentation masks"):
        segmentation_mask.read(tmp_path)


def test_unknown_colours(tmp_path):
    classes, objects = coloured()
    classes[6, 2] = (1, 2, 3)
    with pytest.raises(InputError, match=r"a\.png: the pixel at x = 2, y = 6 has the colour 1, 2, 3.*labelmap\.txt"):
        segmentation_mask.read(export(tmp_path, classes, objects))[0].segments  # noqa: B018


@pytest.mark.parametrize(
    ("segments", "categories", "options", "words"),
    [
        (Segments((8, 9), [1], box=[[0, 0, 1, 1]]), ["cat"], {}, "boxes"),
        (Segments.from_masks(np.ones((2, 8, 9), bool)), ["cat"], {}, "overlap"),
        (Segments.empty((8, 9)), ["a:b"], {}, "rename"),
        (Segments.empty((8, 9)), ["#a"], {}, "rename"),
        (Segments.empty((8, 9)), ["a"], {"kind": "detection"}, "kind"),
    ],
)
def test_what_cannot_be_written(tmp_path, segments, categories, options, words):
    with pytest.raises(InputError, match=words):
        segmentation_mask.write(memory([("a", segments)], Categories(categories)), tmp_path, **options)


def test_bad_options(tmp_path):
    folder = export(tmp_path, *coloured())
    with pytest.raises(InputError, match="kind"):
        segmentation_mask.read(folder, kind="detection")
    with pytest.raises(InputError, match="Segmentation/default"):
        segmentation_mask.read(folder, split="train")
