"""Pascal VOC: real files, round trips, independent readers, and what may be wrong with a data set."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ElementTree
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from everymask.errors import InputError
from everymask.formats import voc
from everymask.formats.columns import attribute_column
from everymask.formats.images import read_image
from everymask.formats.voc_layout import CLASSES, read_labelmap
from everymask.formats.voc_masks import colour_numbers, number_colours
from everymask.formats.voc_xml import annotation_text, read_annotation
from everymask.metrics.voc import VocMetric
from everymask.types import Categories, Category, Dataset, LabelMap, Polygon, Sample, Segments, Task

BOXES_ONLY = frozenset({Task.DETECTION})
OBJECTS = frozenset({Task.INSTANCE})


def memory(rows, categories, tasks=OBJECTS):
    """A data set of (name, segments) or (name, segments, extra)."""
    samples = []
    for name, segments, *extra in rows:
        size = (8, 9) if segments is None else segments.size
        pixels = np.full((*size, 3), 7, np.uint8)
        samples.append(
            Sample(
                name,
                lambda pixels=pixels: pixels,
                None if segments is None else lambda segments=segments: segments,
                extra=dict(*extra),
            )
        )
    return Dataset.of(samples, categories, tasks)


def round_trip(dataset, folder, reading=None, **writing):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    voc.write(dataset, folder, **writing)
    return voc.read(folder, **(reading or {}))


def assert_equal(one, other):
    assert one.size == other.size
    assert one.category.tolist() == other.category.tolist()
    assert (one.score is None) == (other.score is None)
    if one.score is not None:
        assert one.score.tolist() == other.score.tolist()
    assert type(one.geometry) is type(other.geometry)
    if isinstance(one.geometry, LabelMap):
        assert np.array_equal(one.geometry.ids, other.geometry.ids)
    if len(one):
        assert one.boxes().tolist() == other.boxes().tolist()
    assert one.attributes.keys() == other.attributes.keys()
    for name, column in one.attributes.items():
        assert column.tolist() == other.attributes[name].tolist(), name
        assert column.dtype.kind == other.attributes[name].dtype.kind, name


def page(objects="", size="<size><width>9</width><height>8</height><depth>3</depth></size>", rest="", name="a.png"):
    return f"<annotation><filename>{name}</filename>{size}{rest}{objects}</annotation>"


def item(name="cat", box=(1, 1, 5, 6), rest=""):
    corners = "".join(
        f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return f"<object><name>{name}</name><bndbox>{corners}</bndbox>{rest}</object>"


def place(folder, pages, sizes=None, sets=None):
    """A data set of XML pages with 9 x 8 images."""
    for name, text in pages.items():
        for part, suffix in (("Annotations", "xml"), ("JPEGImages", "png")):
            (folder / part / name).parent.mkdir(parents=True, exist_ok=True)
            file = folder / part / f"{name}.{suffix}"
            if suffix == "xml" and text is not None:
                file.write_text(text)
            elif suffix == "png":
                Image.new("RGB", (sizes or {}).get(name, (9, 8))).save(file)
    for name, lines in (sets or {}).items():
        file = folder / "ImageSets" / f"{name}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(lines) + "\n")
    return folder


# -- real files ------------------------------------------------------------------------------------------------------


def test_voc100_equals_its_coco_form(shared_data):
    folder = shared_data / "detection/voc100/gts"
    dataset = voc.read(folder / "pascalvoc_format")
    assert voc.recognise(folder / "pascalvoc_format")
    assert (len(dataset), dataset.tasks, dataset.categories.names) == (100, BOXES_ONLY, CLASSES)
    content = json.loads((folder / "coco_format_v1/instances_default.json").read_text())
    names = {each["id"]: each["name"] for each in content["categories"]}
    files = {each["id"]: each for each in content["images"]}
    expected = {each["file_name"].removesuffix(".jpg"): Counter() for each in content["images"]}
    sizes = {each["file_name"].removesuffix(".jpg"): (each["height"], each["width"]) for each in content["images"]}
    for each in content["annotations"]:
        x, y, width, height = each["bbox"]
        stem = files[each["image_id"]]["file_name"].removesuffix(".jpg")
        expected[stem][(names[each["category_id"]], x, y, x + width, y + height)] += 1
    for sample in dataset:
        segments = sample.segments
        found = Counter(
            (dataset.categories.by_id(int(kind)).name, *box.tolist())
            for kind, box in zip(segments.category, segments.boxes(), strict=True)
        )
        assert found == expected[sample.name]
        assert segments.size == sizes[sample.name] == sample.image.shape[:2]
    assert sum(int(each.segments.attributes["difficult"].sum()) for each in dataset) == 38


def test_real_masks_are_read_pixel_by_pixel(shared_data):
    folder = shared_data / "voc/instance"
    dataset = voc.read(folder)
    assert dataset.tasks == {Task.INSTANCE, Task.SEMANTIC}
    assert dataset.categories.names[19] == "tv/monitor"
    assert sum(len(each.segments) for each in dataset) == 12
    for sample in dataset:
        classes, objects = (
            np.asarray(Image.open(folder / f"Segmentation{kind}/{sample.name}.png")) for kind in ("Class", "Object")
        )
        assert np.array_equal(sample.segments.semantic_map(void=255), classes)
        numbers = sample.segments.attributes.get("label", np.arange(1, len(sample.segments) + 1))
        assert np.array_equal(np.array([0, 0, *numbers])[sample.segments.label_map() + 1], objects)
        semantic = voc.read(folder, kind="semantic")
        assert np.array_equal(semantic[0].segments.semantic_map(), dataset[0].segments.semantic_map())


def test_real_boxes(shared_data):
    dataset = voc.read(shared_data / "voc/detection")
    assert (len(dataset), dataset.tasks) == (3, BOXES_ONLY)
    assert sum(len(each.segments) for each in dataset) == 9
    assert dataset[0].segments.boxes()[0].tolist() == [191.0, 107.36900369003689, 313.0, 329.36900369003695]


@pytest.mark.parametrize("name", ["voc/instance", "voc/detection", "detection/voc100/gts/pascalvoc_format"])
def test_real_sets_survive_a_round_trip(shared_data, tmp_path, name):
    first = voc.read(shared_data / name)
    again = round_trip(first, tmp_path / "again")
    assert again.categories == first.categories
    assert again.tasks >= first.tasks - {Task.SEMANTIC}
    for one, other in zip(first, again, strict=True):
        assert one.name == other.name
        assert one.path.read_bytes() == other.path.read_bytes()
        assert_equal(one.segments, other.segments)
        assert one.extra == other.extra


# -- round trips -----------------------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\ufffe\uffff"), max_size=8)
values = st.one_of(st.booleans(), st.integers(-(2**40), 2**40), st.floats(allow_nan=False), texts, st.none())


@st.composite
def scenes(draw):
    """A data set of label maps with void, boxes of all kinds, flags, scores and attributes."""
    ids = draw(st.lists(st.integers(1, 254), min_size=1, max_size=4, unique=True).map(sorted))
    categories = Categories(Category(each, f"class {each}") for each in ids)
    rows = []
    for number in range(draw(st.integers(1, 3))):
        count = draw(st.integers(0, 4))
        ids_map = draw(arrays.arrays(np.int32, (8, 9), elements=st.integers(-1, count)))
        columns = {}
        if count:
            if draw(st.booleans()):
                columns["difficult"] = draw(st.lists(st.booleans(), min_size=count, max_size=count))
            if draw(st.booleans()):
                columns["pose"] = draw(st.lists(texts, min_size=count, max_size=count))
            if draw(st.booleans()):
                label = draw(st.lists(st.integers(1, 254), min_size=count, max_size=count, unique=True))
                present = np.isin(np.arange(1, count + 1), ids_map)
                label = np.where(present, label, 0)
                if not np.array_equal(label, np.where(present, np.arange(1, count + 1), 0)):
                    columns["label"] = label
            for name in draw(st.lists(st.sampled_from(["colour", "a <b> & c", "number"]), unique=True)):
                drawn = draw(st.lists(values, min_size=count, max_size=count))
                if any(each is not None for each in drawn):
                    column = np.empty(count, object)
                    column[:] = drawn
                    if len({type(each) for each in drawn}) == 1:
                        column = np.array(drawn)
                    columns[name] = column
        box = None
        if draw(st.booleans()) and count:
            corner = draw(arrays.arrays(np.float64, (count, 4), elements=st.floats(0, 8)))
            box = np.hstack([np.minimum(corner[:, :2], corner[:, 2:]), np.maximum(corner[:, :2], corner[:, 2:])])
        score = None
        if count and draw(st.booleans()):
            score = draw(st.lists(st.floats(0, 1), min_size=count, max_size=count))
        segments = Segments(
            (8, 9),
            draw(st.lists(st.sampled_from(ids), min_size=count, max_size=count)),
            LabelMap(ids_map),
            score=score,
            box=box,
            attributes=columns,
        )
        extra = {} if draw(st.booleans()) else {"split": draw(st.sampled_from(["train", "val"])), "time": 3}
        rows.append((f"{'down/' * draw(st.integers(0, 1))}image {number}", segments, extra))
    if draw(st.booleans()):
        rows.append(("zz lacks annotation", None, {"time": 4}))
    return memory(rows, categories)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(scenes())
def test_objects_survive_a_round_trip(tmp_path, dataset):
    again = round_trip(dataset, tmp_path / "set")
    assert again.categories.names == dataset.categories.names
    assert again.categories.ids.tolist() == dataset.categories.ids.tolist()
    found = {sample.name: sample for sample in again}
    assert found.keys() == {sample.name for sample in dataset}
    for sample in dataset:
        other = found[sample.name]
        assert other.extra == sample.extra
        assert (other.segments is None) == (sample.segments is None)
        if sample.segments is not None:
            assert_equal(sample.segments, other.segments)


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(scenes(), st.booleans())
def test_boxes_survive_a_round_trip(tmp_path, dataset, one_based):
    rows = []
    for sample in dataset:
        segments = sample.segments
        if segments is not None and one_based:
            segments = Segments((8, 9), segments.category, box=segments.boxes().round(), score=segments.score)
        elif segments is not None:
            segments = Segments((8, 9), segments.category, box=segments.boxes(), score=segments.score)
        rows.append((sample.name, segments, sample.extra))
    dataset = memory(rows, dataset.categories, BOXES_ONLY)
    again = round_trip(dataset, tmp_path / "set", {"one_based": one_based}, one_based=one_based)
    assert again.tasks <= BOXES_ONLY
    found = {sample.name: sample.segments for sample in again}
    assert len(found) == len(dataset)
    for sample in dataset:
        if sample.segments is not None:
            assert_equal(sample.segments, found[sample.name])


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(arrays.arrays(np.int64, (8, 9), elements=st.sampled_from([0, 3, 4, 250, 255])))
def test_class_maps_survive_a_round_trip(tmp_path, classes):
    categories = Categories([Category(3, "road"), Category(4, "sky"), Category(250, "car")])
    segments = Segments.from_semantic_map(classes, void=255, background=0)
    again = round_trip(memory([("a", segments)], categories, frozenset({Task.SEMANTIC})), tmp_path / "set")
    assert again.tasks == {Task.SEMANTIC}
    assert again.categories == categories
    assert_equal(again[0].segments, segments)
    assert not (tmp_path / "set/Annotations").exists()
    stored = np.asarray(Image.open(tmp_path / "set/SegmentationClass/a.png"))
    assert np.array_equal(stored, classes)


def test_what_an_xml_holds_comes_back(tmp_path):
    """Compared by an independent parser: names, texts, attributes and order of siblings of one name."""
    text = """<?xml version="1.0" encoding="utf-8"?>
    <annotation verified="yes"><folder>VOC2012</folder><filename>a.png</filename><path>C:\\old\\a.png</path>
      <source><database>Mine &amp; yours</database><flickrid>1</flickrid></source>
      <owner><name>J\u00fcrgen</name></owner>
      <size><width>9</width><height>8</height><depth>1</depth></size><segmented>1</segmented>
      <comment lang="de">gut <b>so</b></comment><tag>1</tag><tag>2</tag>
      <object><name>person</name><pose>Left</pose><truncated>1</truncated><difficult>0</difficult>
        <bndbox><xmin>1</xmin><ymin>2.5</ymin><xmax>8</xmax><ymax>7</ymax></bndbox>
        <part><name>head</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax></bndbox></part>
        <part><name>hand</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax></bndbox></part>
        <actions><jumping>1</jumping></actions><point><x>3</x><y>4</y></point>
        <attributes><attribute><name>age</name><value>7</value></attribute></attributes></object>
      <object><name>dog</name><bndbox><ymax>7</ymax><xmin>1</xmin><ymin>2</ymin><xmax>8</xmax></bndbox></object>
    </annotation>"""
    place(tmp_path / "set", {"a": text})
    dataset = voc.read(tmp_path / "set")
    segments = dataset[0].segments
    assert segments.attributes["parts"][0][1] == {"name": "hand", "box": [2, 2, 3, 4]}
    assert segments.attributes["age"].tolist() == ["7", None]
    assert segments.attributes["truncated"].tolist() == [True, False]
    round_trip(dataset, tmp_path / "again")

    def content(element):
        below = sorted(((each.tag, content(each)) for each in element), key=repr)
        return (element.text or "").strip(), sorted(element.attrib.items()), below

    before, after = ElementTree.fromstring(text), ElementTree.parse(tmp_path / "again/Annotations/a.xml").getroot()
    for root in (before, after):
        for each in root.findall("object"):
            for corners in each.iter("bndbox"):
                assert len(corners) == 4
    for key in ("folder", "filename", "path", "source", "owner", "size", "segmented", "comment"):
        assert content(before.find(key)) == content(after.find(key)), key
    assert [each.text for each in after.findall("tag")] == ["1", "2"]
    assert after.attrib == {"verified": "yes"}
    assert content(before.find("object")) == content(after.find("object"))
    again = voc.read(tmp_path / "again")
    assert again[0].extra == dataset[0].extra
    assert_equal(again[0].segments, segments)


def test_text_of_an_annotation_is_read_back(tmp_path):
    made = read_annotation_text(tmp_path, page(item(rest="<x:odd xmlns:x='u' k='1&amp;2'>t</x:odd>")))
    assert read_annotation_text(tmp_path, annotation_text(made)) == made


def read_annotation_text(folder, text):
    (folder / "a.xml").write_text(text)
    return read_annotation(folder / "a.xml")


def test_polygons_become_masks_with_their_own_boxes(tmp_path):
    square = Polygon(np.array([[1.5, 1], [6, 1], [6, 7], [1.5, 7]]))
    segments = Segments.from_polygons((8, 9), [[square]], [1])
    again = round_trip(memory([("a", segments)], Categories(["cat"])), tmp_path / "set")[0].segments
    assert np.array_equal(again.label_map(), segments.label_map())
    assert again.boxes().tolist() == [[1.5, 1, 6, 7]]


def test_torchvision_reads_what_is_written(tmp_path):
    """Its classes expect the devkit's own folders, and take the values of pictures as they are."""
    datasets = pytest.importorskip("torchvision.datasets", reason="torchvision is the independent reader")
    ids = np.zeros((8, 9), np.int32)
    ids[1:4, 2:6], ids[5:7, 1:3], ids[0] = 1, 2, -1
    segments = Segments((8, 9), [15, 7], LabelMap(ids), attributes={"difficult": [True, False]})
    root = tmp_path / "VOCdevkit/VOC2012"
    Image.new("RGB", (9, 8)).save(tmp_path / "photo.jpg")
    sample = Sample("x", lambda: None, lambda: segments, tmp_path / "photo.jpg", {"split": "train"})
    round_trip(Dataset.of([sample], Categories(CLASSES), OBJECTS), root)
    image, target = datasets.VOCSegmentation(tmp_path, "2012", "train")[0]
    assert image.size == (9, 8)
    assert np.array_equal(np.asarray(target), np.array([255, 0, 15, 7])[ids + 1])
    assert target.getpalette()[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]
    _, annotation = datasets.VOCDetection(tmp_path, "2012", "train")[0]
    first, second = annotation["annotation"]["object"]
    assert (first["name"], first["difficult"], second["name"]) == ("person", "1", "car")
    assert first["bndbox"] == {"xmin": "2", "ymin": "1", "xmax": "6", "ymax": "4"}
    assert_equal(voc.read(tmp_path)[0].segments, segments)


# -- masks -----------------------------------------------------------------------------------------------------------


def test_colour_map():
    """The first colours as the devkit prints them, and its inverse on all numbers."""
    colours = number_colours(np.arange(256))
    printed = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128)]
    assert [tuple(each) for each in colours[:7]] == printed
    assert tuple(colours[20]) == (0, 64, 128)
    assert tuple(colours[255]) == (224, 224, 192)
    numbers = np.concatenate([np.arange(5000), np.random.default_rng(0).integers(0, 2**24, 5000), [2**24 - 1]])
    assert np.array_equal(colour_numbers(number_colours(numbers)), numbers)


def save_palette(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(values, np.uint8))
    image.putpalette(number_colours(np.arange(256)).tobytes())
    image.save(path)


def masked(folder, objects, classes, listed=""):
    place(folder, {"a": page(listed) if listed is not None else None})
    if objects is not None:
        save_palette(folder / "SegmentationObject/a.png", objects)
    if classes is not None:
        save_palette(folder / "SegmentationClass/a.png", classes)
    return folder


def two_squares():
    objects = np.zeros((8, 9), np.uint8)
    objects[0:4, 0:4], objects[4:8, 5:9] = 1, 2
    return objects, np.where(objects == 1, 15, np.where(objects == 2, 7, 0))


def test_masks_and_boxes_of_one_image_are_the_same_objects(tmp_path):
    """By class and overlap, where the order differs; what has only one of the two is kept."""
    objects, classes = two_squares()
    objects[7, 0] = 3
    classes[7, 0] = 12
    listed = item("car", (6, 5, 9, 8), "<difficult>1</difficult>") + item("person", (1, 1, 4, 4)) + item("bird")
    folder = masked(tmp_path, objects, classes, listed)
    dataset = voc.read(folder, one_based=True)
    assert dataset.tasks == {Task.DETECTION, Task.INSTANCE, Task.SEMANTIC}
    segments = dataset[0].segments
    assert [dataset.categories.by_id(int(each)).name for each in segments.category] == ["car", "person", "bird", "dog"]
    assert segments.areas().tolist() == [16, 16, 0, 1]
    assert segments.boxes().tolist() == [[5, 4, 9, 8], [0, 0, 4, 4], [0, 0, 5, 6], [0, 7, 1, 8]]
    assert segments.attributes["label"].tolist() == [2, 1, 0, 3]
    assert segments.attributes["difficult"].tolist() == [True, False, False, False]
    boxes = voc.read(folder, kind="detection", one_based=True)
    assert boxes.tasks == BOXES_ONLY
    assert boxes[0].segments.geometry is None
    assert len(boxes[0].segments) == 3
    again = round_trip(dataset, tmp_path / "again", {"one_based": True})
    assert_equal(again[0].segments, segments)


def test_the_order_decides_between_boxes_that_overlap(tmp_path):
    objects = np.zeros((8, 9), np.uint8)
    objects[0:8, 0:8], objects[0:7, 0:7] = 1, 2
    listed = item("person", (0, 0, 7, 7)) + item("person", (0, 0, 8, 8))
    segments = voc.read(masked(tmp_path, objects, np.where(objects, 15, 0), listed))[0].segments
    assert segments.areas().tolist() == [15, 49]


def test_void_and_class_pixels_outside_objects(tmp_path):
    objects, classes = two_squares()
    objects[3, 3], classes[0, 8], classes[7, 0:2] = 255, 255, 20
    segments = voc.read(masked(tmp_path, objects, classes, None))[0].segments
    assert segments.category.tolist() == [15, 7, 20]
    assert segments.areas().tolist() == [15, 16, 2]
    assert segments.label_map()[3, 3] == segments.label_map()[0, 8] == -1


def test_objects_without_a_picture_of_classes(tmp_path):
    objects, _ = two_squares()
    listed = item("car", (5, 4, 9, 8)) + item("person", (0, 0, 4, 4))
    segments = voc.read(masked(tmp_path / "a", objects, None, listed))[0].segments
    assert segments.category.tolist() == [7, 15]
    segments = voc.read(masked(tmp_path / "b", objects, None, None), classes=["cell"])[0].segments
    assert segments.category.tolist() == [1, 1]
    with pytest.raises(InputError, match="class of object 1"):
        voc.read(masked(tmp_path / "c", objects, None, None))[0].segments  # noqa: B018


def test_grey_and_coloured_pictures_of_classes(tmp_path):
    objects, classes = two_squares()
    folder = masked(tmp_path, objects, classes, None)
    expected = voc.read(folder)[0].segments
    Image.fromarray(classes.astype(np.uint8)).save(folder / "SegmentationClass/a.png")
    assert_equal(voc.read(folder)[0].segments, expected)
    for part, numbers in (("Class", classes), ("Object", objects)):
        Image.fromarray(number_colours(numbers)).save(folder / f"Segmentation{part}/a.png")
    assert_equal(voc.read(folder)[0].segments, expected)


def test_images_without_masks_are_not_annotated(tmp_path):
    objects, classes = two_squares()
    folder = masked(tmp_path, objects, classes, None)
    Image.new("RGB", (5, 5)).save(folder / "JPEGImages/b.png")
    dataset = voc.read(folder)
    assert [each.name for each in dataset] == ["a", "b"]
    assert dataset[1].segments is None
    assert [each.name for each in voc.read(folder, kind="instance")] == ["a"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda o, c: c.__setitem__((2, 3), 77), "x = 3, y = 2 has the value 77"),
        (lambda o, c: o.__setitem__((7, 0), 9), "object 9"),
    ],
)
def test_masks_that_contradict(tmp_path, change, words):
    objects, classes = two_squares()
    change(objects, classes)
    with pytest.raises(InputError, match=words) as caught:
        voc.read(masked(tmp_path, objects, classes, None))[0].segments  # noqa: B018
    assert "a.png" in str(caught.value)


def test_masks_of_another_size(tmp_path):
    objects, classes = two_squares()
    with pytest.raises(InputError, match="size 8 x 8"):
        voc.read(masked(tmp_path, objects[:, :8], classes, None))[0].segments  # noqa: B018


# -- layouts, lists of images and classes ----------------------------------------------------------------------------


def test_lists_of_images(tmp_path):
    pages = {name: page(item("cat"), name=f"{name}.png") for name in ("a", "b 1", "c", "d")}
    sets = {"Main/train": ["a", '"b 1"'], "Main/val": ["c"], "Main/trainval": ["a", "b 1", "c"]}
    sets |= {"Main/cat_train": ["a  1", "b 1 -1"], "Layout/val": ["c 1", "c 2"], "Main/default": ["d"]}
    folder = place(tmp_path / "set", pages, sets=sets)
    dataset = voc.read(folder)
    assert [each.name for each in dataset] == ["a", "b 1", "c", "d"]
    assert [each.extra.get("split") for each in dataset] == ["train", "train", "val", None]
    assert [each.name for each in voc.read(folder, split="train")] == ["a", "b 1"]
    assert [each.name for each in voc.read(folder, split="trainval")] == ["a", "b 1", "c"]
    assert [each.name for each in voc.read(folder, split="Layout/val")] == ["c"]
    with pytest.raises(InputError, match="Main/train, "):
        voc.read(folder, split="test")
    again = round_trip(dataset, tmp_path / "again")
    assert [each.extra for each in again] == [each.extra for each in dataset]
    assert (tmp_path / "again/ImageSets/Main/trainval.txt").read_text() == 'a\n"b 1"\nc\n'


def test_a_devkit_of_several_years(tmp_path):
    for year, name in (("VOC2007", "000001"), ("VOC2012", "2008_000001")):
        folder = tmp_path / "VOCdevkit" / year
        place(folder, {name: page(item("person"), name=f"{name}.png")}, sets={"Main/val": [name]})
    assert voc.recognise(tmp_path)
    assert voc.recognise(tmp_path / "VOCdevkit")
    dataset = voc.read(tmp_path)
    assert [each.name for each in dataset] == ["VOC2007/000001", "VOC2012/2008_000001"]
    assert [each.extra["voc"]["sets"] for each in dataset] == [["Main/val"], ["Main/val"]]
    assert len(voc.read(tmp_path, split="val")) == 2
    with pytest.raises(InputError, match="'train'"):
        voc.read(tmp_path, split="train")
    shutil.rmtree(tmp_path / "VOCdevkit/VOC2007")
    assert [each.name for each in voc.read(tmp_path)] == ["2008_000001"]


def test_images_beside_xml_and_parts_with_the_same_classes(tmp_path):
    for part, label in (("train", "zebra"), ("valid", "ant")):
        folder = tmp_path / part
        folder.mkdir()
        (folder / "a.xml").write_text(page(item(label, rest="<part><name>leg</name></part>")))
        Image.new("RGB", (9, 8)).save(folder / "a.JPG")
        Image.new("RGB", (9, 8)).save(folder / "lone.jpg")
    for part in ("train", "valid"):
        dataset = voc.read(tmp_path / part)
        assert dataset.categories.names == ["ant", "zebra"]
        assert [each.name for each in dataset] == ["a", "lone"]
        assert dataset[0].path.name == "a.JPG"


def test_names_in_folders_and_beyond_ascii(tmp_path):
    pages = {"n\u00f6rd/\u00e4": page(item("K\u00e4fer")), "s\u00fcd/\u00e4": page(item("K\u00e4fer"))}
    dataset = voc.read(place(tmp_path / "set", pages))
    assert [each.name for each in dataset] == list(pages)
    assert dataset.categories.names == ["K\u00e4fer"]
    assert [each.name for each in round_trip(dataset, tmp_path / "again")] == list(pages)


def test_the_image_that_an_xml_names(tmp_path):
    folder = place(tmp_path, {"a": page(item(), name="sub/photo.png")})
    (folder / "JPEGImages/sub").mkdir()
    (folder / "JPEGImages/a.png").rename(folder / "JPEGImages/sub/photo.png")
    assert [each.name for each in voc.read(folder)] == ["sub/photo"]


def test_classes_from_files_and_options(tmp_path):
    folder = place(tmp_path, {"a": page(item("cow") + item("ant"))})
    assert voc.read(folder).categories.names == ["ant", "cow"]
    (folder / "class_names.txt").write_text("_background_\nant\n\ncow\n")
    assert [(each.id, each.name) for each in voc.read(folder).categories] == [(1, "ant"), (3, "cow")]
    (folder / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\ncow:1,2,3::\nant:::\n")
    assert voc.read(folder).categories.names == ["cow", "ant"]
    assert voc.read(folder, classes=["x", "ant", "cow"])[0].segments.category.tolist() == [3, 2]


def test_names_in_comments_are_no_classes(tmp_path):
    text = page("<!-- <object><name>ghost</name></object> -->" + item("r&amp;d"))
    assert voc.read(place(tmp_path, {"a": text})).categories.names == ["r&d"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cat:1,2\n", "line 1"),
        ("cat:1,2,256::\n", "line 1"),
        ("cat\n", "line 1"),
        ("cat:1,2,3::\ndog:1,2,3::\n", "line 2"),
        ("cat:1,2,3::\ncat:1,2,4::\n", "unique"),
    ],
)
def test_malformed_labelmaps(tmp_path, text, words):
    (tmp_path / "labelmap.txt").write_text(text)
    with pytest.raises(InputError, match=words):
        read_labelmap(tmp_path / "labelmap.txt")


def test_missing_images(tmp_path):
    folder = place(tmp_path / "set", {"a": page(item()), "b": page(item(), name="b.png")})
    (folder / "JPEGImages/b.png").rename(tmp_path / "b.png")
    with pytest.raises(InputError, match=r"1 of 2 images .* b;.*--skip-missing"):
        voc.read(folder)
    assert [each.name for each in voc.read(folder, missing_images="skip")] == ["a"]
    kept = voc.read(folder, missing_images="keep")
    assert kept[1].segments.size == (8, 9)
    with pytest.raises(InputError, match="does not exist"):
        kept[1].image  # noqa: B018
    (tmp_path / "a.png").write_bytes((folder / "JPEGImages/a.png").read_bytes())
    assert len(voc.read(folder, images=tmp_path)) == 2
    with pytest.raises(InputError, match="no folder"):
        voc.read(folder, images=tmp_path / "nowhere")


def test_turned_photographs(tmp_path):
    """An image is read upright, as EXIF says, and its XML must say so, too."""
    folder = place(tmp_path, {"a": page(item())})
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 9)).save(folder / "JPEGImages/a.png", exif=exif)
    sample = voc.read(folder)[0]
    assert sample.image.shape == (8, 9, 3)
    assert sample.segments.size == (8, 9)


@pytest.mark.parametrize("name", ["images", "masks", "other.xml", "deep"])
def test_other_layouts_are_not_claimed(tmp_path, name):
    if name == "other.xml":
        (tmp_path / name).write_text("<annotations><image/></annotations>")
    elif name == "deep":
        (tmp_path / "a/b/c").mkdir(parents=True)
    else:
        (tmp_path / name).mkdir()
        Image.new("L", (3, 3)).save(tmp_path / name / "a.png")
    assert not voc.recognise(tmp_path)
    assert not voc.recognise(tmp_path / "nothing")
    with pytest.raises(InputError, match="no VOC data set"):
        voc.read(tmp_path)


# -- bad input -------------------------------------------------------------------------------------------------------

BOMB = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>' + page(item("&b;"))
OUTSIDE = '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>' + page(item("&a;"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "DOCTYPE"),
        (OUTSIDE, "DOCTYPE"),
        (page(item())[:-5], "no well-formed XML"),
        ("<annotation>" + "<a>" * 20000 + "</a>" * 20000 + "</annotation>", "too deep|well-formed"),
        (page(item(), name="../../x.png"), "no path below"),
        (page(item(), name="/etc/x.png"), "no path below"),
        (page(item(box=(1, "two", 3, 4))), r"object 1 \(cat\): bndbox/ymin is 'two'"),
        (page(item(box=(1, "nan", 3, 4))), "bndbox/ymin is 'nan'"),
        (page(item(box=(1, 1, 1_000, 4))), r"object 1 \(cat\) has the box .* outside"),
        (page(item() + item(box=(-3, 1, 2, 4))), r"object 2 \(cat\)"),
        (page(item(box=(5, 1, 3, 4))), "swap"),
        (page("<object><name>cat</name></object>"), "no bndbox"),
        (page("<object><name>cat</name><bndbox><xmin>1</xmin></bndbox></object>"), "no <ymin>"),
        (page("<object/>"), "no name"),
        (page(item(rest="<difficult>maybe</difficult>")), "difficult is 'maybe'"),
        (page(item(rest="<difficult>0</difficult><difficult>1</difficult>")), "twice"),
        (page(item(rest="<score>high</score>")), "score"),
        (page(item(), size="<size><width>9</width><height>9</height></size>"), "says height 9 and width 9"),
        (page(item(), size="<size><width>-9</width><height>8</height></size>"), "whole numbers"),
        (page(item(), size="<size><width>9</width></size>"), "no <height>"),
        (page(item("giraffe")), "giraffe"),
    ],
)
def test_bad_xml(tmp_path, text, words):
    folder = place(tmp_path, {"a": text})
    with pytest.raises(InputError, match=words) as caught:
        voc.read(folder, classes=["cat"])[0].segments  # noqa: B018
    assert "a.xml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_boxes_one_pixel_outside_are_let_pass(tmp_path):
    """For those who count from 0 and those who count from 1."""
    folder = place(tmp_path, {"a": page(item(box=(0, 0, 10, 9)))})
    assert voc.read(folder)[0].segments.boxes().tolist() == [[0, 0, 10, 9]]
    assert voc.read(folder, one_based=True)[0].segments.boxes().tolist() == [[-1, -1, 10, 9]]


@pytest.mark.parametrize("line", ["../a", "/a", "b\\a"])
def test_lists_that_lead_out_of_the_data_set(tmp_path, line):
    with pytest.raises(InputError, match="no path below"):
        voc.read(place(tmp_path, {"a": page(item())}, sets={"Main/train": [line]}))


@pytest.mark.parametrize("options", [{"kind": "panoptic"}, {"missing_images": "ignore"}])
def test_bad_options(tmp_path, options):
    with pytest.raises(InputError, match="must be one of"):
        voc.read(place(tmp_path, {"a": page(item())}), **options)


def ones(count=1, **columns):
    return Segments((8, 9), [1] * count, LabelMap(np.zeros((8, 9), np.int32)), **columns)


@pytest.mark.parametrize(
    ("segments", "options", "words"),
    [
        (Segments((8, 9), [1]), {"kind": "instance"}, "tags"),
        (Segments((8, 9), [1], box=[[0, 0, 1, 1]]), {"kind": "semantic"}, "outlines"),
        (Segments.from_masks(np.ones((2, 8, 9), bool)), {}, "overlap"),
        (Segments((2, 8, 9), [1], LabelMap(np.ones((2, 8, 9), np.int32))), {}, "volume"),
        (Segments.from_label_map(np.arange(1, 257).reshape(16, 16)), {}, "254"),
        (ones(attributes={"xml": ["<a>"]}), {}, "no XML"),
        (ones(attributes={"pose": ["\x01"]}), {}, "control"),
        (ones(), {"kind": "boxes"}, "kind"),
    ],
)
def test_what_cannot_be_written(tmp_path, segments, options, words):
    with pytest.raises(InputError, match=words):
        voc.write(memory([("a", segments)], Categories(["cat"])), tmp_path, **options)


def test_attributes_that_are_called_like_flags(tmp_path):
    """ADE20K says ``"no"`` where VOC says 0; nothing of it is lost, and VOC's own flags stay what they are."""
    columns = {"occluded": ["no"], "pose": [3], "parts": [["a"]], "xml": ["text"]}
    columns |= {"score": [7], "label": ["A"], "difficult": [True], "note": ["\x01"], "": [1]}
    ids = np.zeros((8, 9), np.int32)
    ids[2:5, 3:7] = 1
    attributes = {name: attribute_column(values) for name, values in columns.items()}
    given = Segments((8, 9), [1], LabelMap(ids), attributes=attributes)
    again = round_trip(memory([("a", given)], Categories(["x"])), tmp_path / "set")[0].segments
    assert again.score is None
    assert {name: column.tolist() for name, column in again.attributes.items()} == columns
    text = (tmp_path / "set/Annotations/a.xml").read_text()
    assert "<difficult>1</difficult>" in text and "<occluded>" not in text and "<pose>" not in text


def test_class_names_that_cannot_be_written(tmp_path):
    with pytest.raises(InputError, match="rename"):
        voc.write(memory([], Categories(["a\nb"])), tmp_path)
    with pytest.raises(InputError, match="254"):
        voc.write(memory([], Categories([str(each) for each in range(255)])), tmp_path)


def test_ids_that_do_not_fit_are_counted_anew(tmp_path):
    categories = Categories([Category(0, "a"), Category(1000, "b")])
    segments = Segments.from_label_map(np.eye(9, dtype=int), [1000])
    again = round_trip(memory([("x", segments)], categories), tmp_path / "set")
    assert [(each.id, each.name) for each in again.categories] == [(1, "a"), (2, "b")]
    assert again[0].segments.category.tolist() == [2]


# -- detections as text ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["abs_xywh", "abs_xyx2y2", "rel_xywh"])
def test_detections_of_voc100_in_all_forms(shared_data, form):
    folder = shared_data / "detection/voc100"
    dataset = voc.read(folder / "gts/pascalvoc_format")
    assert voc.recognise_predictions(folder / "dets" / form)
    found = voc.read_predictions(folder / "dets" / form, dataset)
    content = json.loads((folder / "dets/coco_format/coco_dets.json").read_text())
    names = {each["id"]: each["name"] for each in content["categories"]}
    files = {each["id"]: each["file_name"].removesuffix(".jpg") for each in content["images"]}
    expected = {sample.name: [] for sample in dataset}
    for each in content["annotations"]:
        x, y, width, height = each["bbox"]
        label = dataset.categories.by_name(names[each["category_id"]]).id
        expected[files[each["image_id"]]].append((label, round(each["score"], 6), x, y, x + width, y + height))
    assert set(found) == set(expected)
    assert sum(len(found[name]) for name in found) == 452
    for name, rows in expected.items():
        segments = found[name]
        got = np.column_stack([segments.category, segments.score, segments.boxes()])
        wanted = np.array(sorted(rows), float).reshape(-1, 6)
        # The shares of the image are given to six digits.
        tolerance = 1e-3 if form == "rel_xywh" else 1e-9
        assert got[np.lexsort(got.round(2).T[::-1])] == pytest.approx(
            wanted[np.lexsort(wanted.round(2).T[::-1])], abs=tolerance
        )


def detections(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def plain(tmp_path):
    pages = {name: page(item("dog"), name=f"{name}.png") for name in ("a", "sub/b")}
    return voc.read(place(tmp_path / "truth", pages), classes=["cat", "dog", "guinea_pig"])


def test_devkit_results(tmp_path, plain):
    files = {
        "comp3_det_test_dog.txt": "b 0.5 1 2 3 4\na 0.25 1 1 2 2\n",
        "comp3_det_test_guinea_pig.txt": "b 0.75 2 2 3 3\n",
        "comp3_det_test_cat.txt": "",
    }
    folder = detections(tmp_path / "results", files)
    assert voc.recognise_predictions(folder)
    found = voc.read_predictions(folder, plain)
    assert found["sub/b"].category.tolist() == [2, 3]
    assert found["sub/b"].score.tolist() == [0.5, 0.75]
    assert found["sub/b"].boxes().tolist() == [[1, 2, 3, 4], [2, 2, 3, 3]]
    counted = voc.read(tmp_path / "truth", classes=["cat", "dog", "guinea_pig"], one_based=True)
    assert voc.read_predictions(folder, counted)["sub/b"].boxes().tolist() == [[0, 1, 3, 4], [1, 1, 3, 3]]


def test_scores_are_the_same_in_both_ways_of_counting(shared_data, tmp_path):
    """From 1 with plain widths, or as they stand with widths of one pixel more: the devkit's overlap in both cases."""
    folder = shared_data / "detection/voc100"
    content = json.loads((folder / "dets/coco_format/coco_dets.json").read_text())
    names = {each["id"]: each["name"] for each in content["categories"]}
    files = {each["id"]: each["file_name"].removesuffix(".jpg") for each in content["images"]}
    lines = {}
    for each in content["annotations"]:
        x, y, width, height = each["bbox"]
        lines.setdefault(f"comp3_det_test_{names[each['category_id']]}.txt", []).append(
            f"{files[each['image_id']]} {each['score']!r} {x} {y} {x + width} {y + height}\n"
        )
    results = detections(tmp_path / "results", {name: "".join(each) for name, each in lines.items()})
    figures = []
    for one_based in (False, True):
        dataset = voc.read(folder / "gts/pascalvoc_format", one_based=one_based)
        found = voc.read_predictions(results, dataset)
        metric = VocMetric(dataset.categories, plus_one=not one_based)
        for sample in dataset:
            metric.update(sample.segments, found[sample.name], sample.name)
        figures.append(metric.compute())
    assert figures[0]["predicted_objects"] == 452
    assert figures[0] == pytest.approx(figures[1], abs=1e-12)


def test_names_and_numbers_of_classes(tmp_path, plain):
    folder = detections(tmp_path / "results/text", {"a.txt": "guinea_pig 0.5 0 0 8 7\n1 0.25 5 5 9 8\n", "b.txt": ""})
    assert voc.read_predictions(folder, plain)["a"].category.tolist() == [3, 2]
    assert len(voc.read_predictions(folder, plain)["sub/b"]) == 0
    (tmp_path / "results/obj.names").write_text("dog\ncat\n")
    assert voc.read_predictions(folder, plain)["a"].category.tolist() == [3, 1]


def test_boxes_that_can_be_read_in_two_ways(tmp_path, plain):
    folder = detections(tmp_path / "results", {"a.txt": "0 0.5 2 2 5 5\n"})
    with pytest.raises(InputError, match="abs_xyxy_score_first or abs_xywh_score_first"):
        voc.read_predictions(folder, plain)
    assert voc.read_predictions(folder, plain, boxes="abs_xyxy")["a"].boxes().tolist() == [[2, 2, 5, 5]]
    folder.rename(tmp_path / "abs_xywh")
    assert voc.read_predictions(tmp_path / "abs_xywh", plain)["a"].boxes().tolist() == [[2, 2, 7, 7]]


def test_scores_behind_the_boxes(tmp_path, plain):
    folder = detections(tmp_path / "results", {"a.txt": "0 4 3 4 5 0.5\n0 1 1 8 6 0.25\n"})
    found = voc.read_predictions(folder, plain)["a"]
    assert found.score.tolist() == [0.5, 0.25]
    assert found.boxes().tolist() == [[4, 3, 8, 8], [1, 1, 9, 7]]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a.txt": "0 0.5 1 1 x 5\n"}, "a.txt, line 1"),
        ({"a.txt": "0 0.5 1 1 5\n"}, "a.txt, line 1"),
        ({"a.txt": "7 0.5 1 1 5 5\n"}, "class 7"),
        ({"a.txt": "hamster 0.5 1 1 5 5\n"}, "hamster"),
        ({"a.txt": "0 0.5 1 1 500 500\n"}, "another size"),
        ({"zz.txt": "0 0.5 1 1 5 5\n"}, "zz.txt"),
        ({}, "no text file"),
        ({"comp3_det_test_dog.txt": "zz 0.5 1 1 5 5\n"}, "'zz'"),
        ({"comp3_det_test_dog.txt": "a 0.5 1 1 5 nan\n"}, "line 1"),
        ({"comp3_det_test_hamster.txt": "a 0.5 1 1 5 5\n"}, "hamster"),
    ],
)
def test_bad_detections(tmp_path, plain, files, words):
    with pytest.raises(InputError, match=words):
        voc.read_predictions(detections(tmp_path / "results", files), plain)


def test_the_name_of_the_folder_says_where_the_score_is(tmp_path, plain):
    for end, score in (("first", 0.5), ("last", 0.25)):
        folder = detections(tmp_path / f"rel_xywh_score_{end}", {"a.txt": "0 0.5 0.5 0.5 0.5 0.25\n"})
        assert voc.read_predictions(folder, plain)["a"].score.tolist() == [score]
    with pytest.raises(InputError, match="rel_xywh_score_first or rel_xywh_score_last"):
        voc.read_predictions(folder.rename(tmp_path / "results"), plain)


YOLO = "0 0.5 0.5 0.1 0.1 0.9\n3 0.2 0.9 0.1 0.1 0.8\n"
POLYGON = "0 0.5 0.5 0.1 0.1 0.9 0.2 0.3\n"


@pytest.mark.parametrize(
    "text", ["0 0.5 0.5 0.1 0.1\n", YOLO, POLYGON, "a line of words here and there\n", "", "0 0 0 0 0 x\n"]
)
def test_other_text_files_are_not_claimed(tmp_path, text):
    assert not voc.recognise_predictions(detections(tmp_path, {"a.txt": text}))
    assert not voc.recognise_predictions(tmp_path / "nothing")


def test_images_are_copied_as_they_are(tmp_path):
    dataset = voc.read(place(tmp_path / "set", {"a": page(item())}))
    round_trip(dataset, tmp_path / "again")
    copied = tmp_path / "again/JPEGImages/a.png"
    assert copied.read_bytes() == (tmp_path / "set/JPEGImages/a.png").read_bytes()
    assert np.array_equal(read_image(copied), dataset[0].image)
