"""CVAT for images 1.1: every shape, round trips, what is kept beside the shapes, and what is said about mistakes."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np
import pytest
from defusedxml.ElementTree import fromstring, parse
from format_cases import black, box_segments, in_memory, mask_segments, polygon_segments, same
from hypothesis import given, settings
from hypothesis import strategies as st

from everymask.errors import InputError
from everymask.formats import open_dataset, recognise, write_dataset
from everymask.formats.columns import attribute_column
from everymask.types import Categories, Category, Dataset, Masks, Polygon, Polygons, Segments, Task

META = """\
  <meta>
    <task>
      <id>7</id>
      <name>a task</name>
      <size>2</size>
      <mode>annotation</mode>
      <owner><username>ann</username></owner>
      <labels>
        <label>
          <name>cell</name><color>#ff0010</color><type>any</type>
          <attributes>
            <attribute>
              <name>kind</name><mutable>False</mutable><input_type>select</input_type>
              <default_value>a</default_value><values>a\nb</values>
            </attribute>
            <attribute>
              <name>dead</name><mutable>True</mutable><input_type>checkbox</input_type>
              <default_value>false</default_value><values>false</values>
            </attribute>
            <attribute>
              <name>count</name><mutable>False</mutable><input_type>number</input_type>
              <default_value>0</default_value><values>0\n9\n1</values>
            </attribute>
          </attributes>
        </label>
        <label><name>body</name><color>#00ff00</color><type>skeleton</type><attributes/><svg>&lt;line/&gt;</svg></label>
        <label><name>joint</name><color>#0000ff</color><type>points</type><attributes/><parent>body</parent></label>
        <label><name>never used</name><color>#123456</color><attributes/></label>
      </labels>
    </task>
    <dumped>2024-01-01 00:00:00+00:00</dumped>
  </meta>
"""
SHAPES = """\
    <polygon label="cell" source="manual" occluded="1" points="1.25,2.50;10.00,2.50;10.00,9.75" z_order="2"
      group_id="4">
      <attribute name="kind">b</attribute>
      <attribute name="dead">true</attribute>
      <attribute name="count">3</attribute>
      <attribute name="source">a book</attribute>
    </polygon>
    <box label="cell" source="auto" occluded="0" xtl="3.00" ytl="4.50" xbr="9.00" ybr="8.50" z_order="0"></box>
    <box label="cell" source="manual" occluded="0" xtl="10.00" ytl="6.00" xbr="20.00" ybr="10.00" rotation="90.00"
      z_order="0"/>
    <ellipse label="body" source="manual" occluded="0" cx="15.00" cy="10.00" rx="8.00" ry="4.00" rotation="30.0"
      z_order="-1"/>
    <tag label="cell" source="manual"><attribute name="kind">a</attribute></tag>
    <polyline label="cell" source="manual" occluded="0" points="0.00,0.00;5.00,5.00" z_order="0"/>
    <points label="cell" source="manual" occluded="0" points="1.00,1.00" z_order="0"/>
    <cuboid label="cell" source="manual" occluded="0" xtl1="1" ytl1="2" xbl1="3" ybl1="4" xtr1="5" ytr1="6" xbr1="7"
      ybr1="8" xtl2="9" ytl2="10" xbl2="11" ybl2="12" xtr2="13" ytr2="14" xbr2="15" ybr2="16" z_order="0"/>
    <skeleton label="body" source="manual" z_order="0">
      <points label="joint" source="manual" outside="0" occluded="0" points="4.00,5.00"/>
    </skeleton>
    <blob label="new in CVAT 9" shape="spline"/>
"""
MASK = """\
    <mask label="cell" source="semi-auto" occluded="0" rle="1, 2, 3, 4, 2" left="5" top="6" width="4" height="3"
      z_order="1"/>
"""
BOX = '    <box label="cell" occluded="0" xtl="1.00" ytl="2.00" xbr="9.50" ybr="8.00" z_order="0"/>\n'


def make(folder: Path, first: str = SHAPES, second: str = "", *, meta: str = META, images: str = "images") -> Path:
    """An export of two images of 20 x 30 (height x width)."""
    for name in ("a.png", "sub/Ü b.PNG"):
        black(folder / images / name)
    (folder / "annotations.xml").write_text(
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n'
        f'{meta}  <image id="4" name="a.png" width="30" height="20">\n{first}  </image>\n'
        f'  <image id="5" name="sub/Ü b.PNG" width="30" height="20" reviewed="007">\n{second}  </image>\n'
        '  <comments by="bo">fine</comments>\n</annotations>\n',
        "utf-8",
    )
    return folder


def segments_of(dataset: Dataset, index: int = 0) -> Segments:
    found = dataset[index].segments
    assert found is not None
    return found


def meaning(element: Element) -> Any:
    """An element with numbers as numbers, and without white space between elements and the values that mean nothing."""

    def value(text: str) -> Any:
        try:
            return tuple(round(float(each), 9) for each in text.replace(";", ",").split(","))
        except ValueError:
            return text

    attributes = {key: value(text) for key, text in element.attrib.items()}
    for key in ("occluded", "z_order", "group_id"):
        if attributes.get(key) == (0.0,):
            del attributes[key]
    text = (element.text or "").strip() if len(element) else element.text or ""
    return element.tag, attributes, text, [meaning(child) for child in element]


# -- reading -----------------------------------------------------------------------------------------------------------


def test_every_shape(tmp_path: Path) -> None:
    dataset = open_dataset(make(tmp_path, SHAPES, MASK))
    assert dataset.format == "cvat" and recognise(tmp_path / "annotations.xml") == "cvat"
    assert dataset.tasks == {Task.DETECTION, Task.INSTANCE}
    assert dataset.categories == Categories(
        [
            Category(1, "cell", colour=(255, 0, 16)),
            Category(2, "body", colour=(0, 255, 0)),
            Category(3, "never used", colour=(0x12, 0x34, 0x56)),
        ]
    )
    assert [sample.name for sample in dataset] == ["a", "sub/Ü b"]
    assert [sample.extra["image_id"] for sample in dataset] == [4, 5]
    assert dataset[1].extra["reviewed"] == "007"
    assert dataset[1].image.shape == (20, 30, 3)
    segments = segments_of(dataset)
    assert isinstance(segments.geometry, Polygons)
    # By z_order, and of equals in the order of the file.
    assert segments.attributes["shape"].tolist() == ["ellipse", "box", "box", "polygon"]
    assert segments.category.tolist() == [2, 1, 1, 1]
    oval, box, turned, outline = (parts[0].exterior for parts in segments.geometry.parts)
    assert outline.tolist() == [[1.25, 2.5], [10, 2.5], [10, 9.75]]
    assert box.tolist() == [[3, 4.5], [9, 4.5], [9, 8.5], [3, 8.5]]
    # A quarter turn about (15, 8) swaps the sides of 10 and 4; clockwise, the top left corner goes to the top right.
    assert np.allclose(turned, [[17, 3], [17, 13], [13, 13], [13, 3]])
    # Every vertex fulfils the equation of the ellipse in its own axes, turned by 30 degrees clockwise (y points down).
    cosine, sine = math.cos(math.radians(30)), math.sin(math.radians(30))
    dx, dy = (oval - [15, 10]).T
    along, across = dx * cosine + dy * sine, -dx * sine + dy * cosine
    assert np.allclose((along / 8) ** 2 + (across / 4) ** 2, 1)
    x, y = oval.T
    area = abs(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)) / 2
    assert 0.98 < area / (math.pi * 8 * 4) <= 1
    assert segments.attributes["occluded"].tolist() == [False, False, False, True]
    assert segments.attributes["z_order"].tolist() == [-1, 0, 0, 2]
    assert segments.attributes["group_id"].tolist() == [0, 0, 0, 4]
    assert segments.attributes["source"].tolist() == ["manual", "auto", "manual", "manual"]
    assert segments.attributes["kind"].tolist() == [None, None, None, "b"]
    assert segments.attributes["dead"].tolist() == [None, None, None, True]
    assert segments.attributes["count"].tolist() == [None, None, None, 3]
    assert segments.attributes["attribute:source"].tolist() == [None, None, None, "a book"]
    aside = [fromstring(each).tag for each in dataset[0].extra["cvat"]]
    assert aside == ["tag", "polyline", "points", "cuboid", "skeleton", "blob"]


def test_mask_against_a_walk_along_its_rows(tmp_path: Path) -> None:
    segments = segments_of(open_dataset(make(tmp_path, SHAPES, MASK)), 1)
    assert isinstance(segments.geometry, Masks)
    expected = np.zeros((20, 30), bool)
    row = [0, 1, 1, 0, 0, 0, 1, 1, 1, 1, 0, 0]  # 1, 2, 3, 4, 2
    for i, value in enumerate(row):
        expected[6 + i // 4, 5 + i % 4] = value
    assert np.array_equal(segments.masks()[0], expected)


def test_polygons_among_masks_become_masks_and_stay_what_they_were(tmp_path: Path) -> None:
    dataset = open_dataset(make(tmp_path, SHAPES + MASK))
    segments = segments_of(dataset)
    alone = segments_of(open_dataset(make(tmp_path / "alone")))
    assert isinstance(segments.geometry, Masks)
    assert np.array_equal(segments.masks()[[0, 1, 2, 4]], alone.masks())
    write_dataset(dataset, tmp_path / "again", "cvat")
    same(segments_of(open_dataset(tmp_path / "again")), segments)
    written = parse(tmp_path / "again" / "annotations.xml").find(".//polygon")
    assert written is not None and written.get("points") == "1.25,2.50;10.00,2.50;10.00,9.75"


def test_upright_boxes_alone_are_boxes(tmp_path: Path) -> None:
    dataset = open_dataset(make(tmp_path, BOX, BOX + BOX))
    assert dataset.tasks == {Task.DETECTION}
    segments = segments_of(dataset, 1)
    assert segments.geometry is None
    assert segments.boxes().tolist() == [[1, 2, 9.5, 8]] * 2
    assert not segments.attributes


def test_tags_alone_are_classes(tmp_path: Path) -> None:
    dataset = open_dataset(
        make(tmp_path, '<tag label="cell" source="manual"/>', '<tag label="body"/><tag label="cell"/>')
    )
    assert dataset.tasks == {Task.CLASSIFICATION}
    segments = segments_of(dataset, 1)
    assert not segments.has_boxes and segments.category.tolist() == [2, 1]
    write_dataset(dataset, tmp_path / "again", "cvat")
    again = open_dataset(tmp_path / "again")
    assert again.tasks == {Task.CLASSIFICATION}
    same(segments_of(again, 1), segments)


def test_labels_without_a_definition(tmp_path: Path) -> None:
    dataset = open_dataset(make(tmp_path, SHAPES, meta=""))
    assert dataset.categories.names == ["cell", "body"]
    assert segments_of(dataset).attributes["count"].tolist() == [None, None, None, "3"]


def test_images_elsewhere(tmp_path: Path) -> None:
    make(tmp_path / "set" / "gts", images="../images")
    dataset = open_dataset(tmp_path / "set" / "gts")
    assert dataset[0].image.shape == (20, 30, 3)
    other = open_dataset(make(tmp_path / "x", images="pictures"), images=tmp_path / "x" / "pictures")
    assert other[0].image.shape == (20, 30, 3)


def test_missing_images(tmp_path: Path) -> None:
    (make(tmp_path, BOX, BOX) / "images" / "a.png").unlink()
    with pytest.raises(InputError, match=r"1 of 2 images are missing .*a\.png.*--skip-missing"):
        open_dataset(tmp_path)
    kept = open_dataset(tmp_path, missing_images="keep")
    assert len(kept) == 2 and len(segments_of(kept)) == 1
    assert [sample.name for sample in open_dataset(tmp_path, missing_images="skip")] == ["sub/Ü b"]


def test_subsets_are_splits(tmp_path: Path) -> None:
    folder = make(tmp_path / "set", BOX, BOX + BOX)
    path = folder / "annotations.xml"
    path.write_text(
        path.read_text().replace('id="4"', 'id="4" subset="Train"').replace('id="5"', 'id="5" subset="Val"')
    )
    dataset = open_dataset(folder)
    assert [sample.name for sample in dataset] == ["Train/a", "Val/sub/Ü b"]
    assert [sample.extra["split"] for sample in dataset] == ["Train", "Val"]
    part = open_dataset(folder, split="Val")
    assert [sample.name for sample in part] == ["sub/Ü b"] and len(segments_of(part)) == 2
    with pytest.raises(InputError, match="no subset 'test'; it has Train, Val"):
        open_dataset(folder, split="test")
    write_dataset(dataset, tmp_path / "again", "cvat")
    again = open_dataset(tmp_path / "again")
    assert [(each.name, each.extra) for each in again] == [(each.name, each.extra) for each in dataset]
    assert again[1].image.shape == (20, 30, 3)
    write_dataset(dataset[1:], tmp_path / "val", "cvat")
    alone = open_dataset(tmp_path / "val")
    assert [(each.name, each.extra) for each in alone] == [(dataset[1].name, dataset[1].extra)]


# -- round trips -------------------------------------------------------------------------------------------------------


def test_nothing_of_a_file_is_lost(tmp_path: Path) -> None:
    first = open_dataset(make(tmp_path / "first", SHAPES, MASK))
    write_dataset(first, tmp_path / "second", "cvat")
    second = open_dataset(tmp_path / "second")
    assert second.categories == first.categories
    for one, other in zip(first, second, strict=True):
        same(one.segments, other.segments)
        assert one.extra == other.extra and one.name == other.name
    before, after = (parse(tmp_path / each / "annotations.xml").getroot() for each in ("first", "second"))
    assert [child.tag for child in after] == ["version", "meta", "image", "image", "comments"]
    for tag in ("version", "comments"):
        assert meaning(before.find(tag)) == meaning(after.find(tag))
    for one, other in zip(before.findall("image"), after.findall("image"), strict=True):
        assert one.attrib == other.attrib
        assert sorted(map(repr, map(meaning, one))) == sorted(map(repr, map(meaning, other)))
    # The task is as it was, but for an attribute that shapes had and the label did not define.
    labels = after.findall(".//label")
    assert [label.findtext("name") for label in labels] == ["cell", "body", "joint", "never used"]
    extra = labels[0].findall("attributes/attribute")[3]
    assert extra.findtext("name") == "source" and extra.findtext("input_type") == "text"
    labels[0].find("attributes").remove(extra)
    assert meaning(before.find("meta")) == meaning(after.find("meta"))


def test_what_was_changed_is_not_written_as_it_was(tmp_path: Path) -> None:
    segments = segments_of(open_dataset(make(tmp_path / "first")))
    columns = {**segments.attributes, "occluded": np.array([True, False, False, True])}
    shifted = tuple((Polygon(parts[0].exterior + 1),) for parts in segments.geometry.parts)
    changed = {
        "class": segments.with_category([1, 1, 2, 2]),
        "column": Segments(segments.size, segments.category, segments.geometry, attributes=columns),
        "place": Segments(
            segments.size, segments.category, Polygons(segments.size, shifted), attributes=segments.attributes
        ),
        "choice": segments[[3, 0]][[1, 0]],
    }
    categories = Categories(["cell", "body"])
    for name, each in changed.items():
        write_dataset(in_memory([each], categories), tmp_path / name, "cvat")
        read = segments_of(open_dataset(tmp_path / name))
        assert read.category.tolist() == each.category.tolist()
        assert np.allclose(read.boxes(), each.boxes(), atol=0.005)
        occluded = each.attributes["occluded"].tolist()
        assert read.attributes["occluded"].tolist() == occluded
    element = parse(tmp_path / "class" / "annotations.xml").find(".//ellipse")
    assert element is not None and element.get("label") == "cell"
    assert parse(tmp_path / "place" / "annotations.xml").find(".//ellipse") is None


CLASSES = Categories(["cell", "größer & <kleiner>", 'a "quoted" one'])
TEXTS = st.text(st.characters(blacklist_categories=("Cs", "Cc")).filter(lambda c: ord(c) not in (0xFFFE, 0xFFFF)))
SIZE = (20, 30)


@st.composite
def with_columns(draw: st.DrawFn, segments: Segments) -> Segments:
    """The same segments with attributes of every type, in the order of z_order."""
    number = len(segments)
    kinds = {
        "occluded": st.booleans(),
        "source": st.sampled_from(["manual", "auto"]),
        "truth": st.booleans(),
        "whole": st.integers(-99, 99),
        "broken": st.floats(allow_nan=False, allow_infinity=False),
        "text": TEXTS,
        "attribute:shape": TEXTS,
    }
    columns: dict[str, Any] = {"z_order": sorted(draw(st.integers(0, 2)) for _ in range(number))}
    for name, kind in kinds.items():
        if draw(st.booleans()):
            columns[name] = [draw(kind) for _ in range(number)]
    # CVAT's defaults, where they are all there is, are no columns.
    defaults = {"z_order": 0, "occluded": False}
    columns = {name: values for name, values in columns.items() if any(each != defaults.get(name) for each in values)}
    return Segments(
        segments.size,
        segments.category,
        segments.geometry,
        box=segments.given_boxes,
        attributes=columns if number else {},
    )


@pytest.mark.parametrize(
    "kind",
    [
        polygon_segments(SIZE, [1, 2, 3]),
        polygon_segments(SIZE, [1, 2, 3], digits=2),
        mask_segments(SIZE, [1, 2, 3]),
        box_segments(SIZE, [1, 2, 3]),
    ],
    ids=["polygons", "two decimals", "masks", "boxes"],
)
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_round_trip(kind: st.SearchStrategy[Segments], data: st.DataObject) -> None:
    segments = data.draw(kind.flatmap(with_columns))
    # A polygon among the images says that outlines are meant, where this one has none.
    other = Segments.from_polygons(SIZE, [[Polygon(np.array([[0, 0], [9, 0], [9, 9.0]]))]], 1)
    outlined = segments.geometry is not None
    with tempfile.TemporaryDirectory() as folder:
        dataset = in_memory([segments, other] if outlined else [segments], CLASSES)
        write_dataset(dataset, Path(folder, "set"), "cvat")
        again = open_dataset(Path(folder, "set"))
        assert again.categories == CLASSES
        same(again[0].segments, segments)
        for element in parse(Path(folder, "set", "annotations.xml")).iter("polygon"):
            numbers = [float(each) for pair in element.get("points", "").split(";") for each in pair.split(",")]
            assert len(numbers) >= 6


def test_holes_and_parts_become_masks_of_one_object(tmp_path: Path) -> None:
    square = np.array([[2.0, 2], [12, 2], [12, 12], [2, 12]])
    hole = Polygon(square, (square / 2 + 3,))
    parts = [Polygon(square), Polygon(square + np.array([14, 3]))]
    segments = Segments.from_polygons(SIZE, [[hole], parts], [1, 2])
    write_dataset(in_memory([segments], CLASSES), tmp_path / "set", "cvat")
    read = segments_of(open_dataset(tmp_path / "set"))
    assert np.array_equal(read.masks(), segments.masks())
    elements = list(parse(tmp_path / "set" / "annotations.xml").iter("mask"))
    for element, mask in zip(elements, segments.masks(), strict=True):
        values = [i % 2 for i, run in enumerate(map(int, element.get("rle", "").split(","))) for _ in range(run)]
        box = np.array(values).reshape(int(element.get("height", "")), int(element.get("width", "")))
        y, x = int(element.get("top", "")), int(element.get("left", ""))
        painted = np.zeros(SIZE, int)
        painted[y : y + box.shape[0], x : x + box.shape[1]] = box
        assert np.array_equal(painted, mask)


def test_columns_of_images(tmp_path: Path) -> None:
    extra = {
        "licence": "CC0",
        "width": 3,
        "a b": ["x", None, 1.5],
        "who": {"name": "Zoë"},
        "image_id": 12,
        "extra": "y",
    }
    dataset = in_memory([Segments(SIZE, [1], None, box=[[0, 0, 5, 5]])], CLASSES, extras=[extra])
    write_dataset(dataset, tmp_path / "set", "cvat")
    assert open_dataset(tmp_path / "set")[0].extra == extra


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ('<box label="cell" xtl="5" ytl="2" xbr="3" ybr="8"/>', "lies above or left of the top left"),
        ('<box label="cell" xtl="a" ytl="2" xbr="3" ybr="8"/>', "its xtl is 'a'; expected a number"),
        ('<box label="cell" ytl="2" xbr="3" ybr="8"/>', "its xtl is missing; expected a number"),
        ('<box xtl="1" ytl="2" xbr="3" ybr="8"/>', "it has no label"),
        ('<polygon label="cell" points="1,2;3,4"/>', "it has 2 points; a polygon needs three"),
        ('<polygon label="cell" points="1,2;3;4,5"/>', "expected 'x,y;x,y;x,y'"),
        ('<polygon label="cell" points="1,2;nan,3;4,5"/>', "expected 'x,y;x,y;x,y'"),
        ('<ellipse label="cell" cx="5" cy="5" rx="0" ry="3"/>', "its radii are 0 and 3"),
        ('<mask label="cell" rle="1, 2" left="0" top="0" width="2" height="2"/>', "does not cover its width x height"),
        ('<mask label="cell" rle="-1, 5" left="0" top="0" width="2" height="2"/>', "does not cover its width x height"),
        ('<mask label="cell" rle="4" left="29" top="0" width="2" height="2"/>', "leaves the image of 20 x 30"),
        ('<mask label="cell" rle="4" left="0" top="-1" width="2" height="2"/>', "leaves the image of 20 x 30"),
        (
            '<mask label="cell" rle="4" left="0" top="0" width="2000000" height="2000000"/>',
            "width and height are",
        ),
        ('<mask label="cell" rle="4" left="0.5" top="0" width="2" height="2"/>', "its left is '0.5'; expected a whole"),
    ],
)
def test_wrong_shapes(tmp_path: Path, shape: str, message: str) -> None:
    dataset = open_dataset(make(tmp_path, MASK + shape))
    with pytest.raises(InputError) as error:
        _ = dataset[0].segments
    assert message in str(error.value)
    assert "annotations.xml: image a.png, <" in str(error.value)


BOMB = '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]>\n<annotations><version>&b;</version></annotations>'
OUTSIDE = '<!DOCTYPE a [<!ENTITY a SYSTEM "file:///etc/passwd">]>\n<annotations><version>&a;</version></annotations>'
IMAGE = '<annotations><version>1.1</version><image id="0" name="{}" width="{}" height="3"/></annotations>'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (BOMB, "document type or entities"),
        (OUTSIDE, "document type or entities"),
        ("<annotations><track id='0'/></annotations>", "CVAT for video 1.1"),
        ("<annotations><image", "no valid XML"),
        (IMAGE.format("../../x.png", 3), "no path below the data set"),
        (IMAGE.format("/etc/x.png", 3), "no path below the data set"),
        (IMAGE.format("C:\\x.png", 3), "no path below the data set"),
        (IMAGE.format("x.png", "wide"), "image x.png has width 'wide'"),
        (IMAGE.format("x.png", "0"), "image x.png has width '0'"),
        (META.join(("<annotations>", "</annotations>")).replace("never used", "cell"), "rename it"),
        (META.join(("<annotations>", "</annotations>")).replace("#123456", "#12345"), "the color '#12345'"),
    ],
)
def test_wrong_files(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "annotations.xml"
    path.write_text(content)
    with pytest.raises(InputError, match=message) as error:
        open_dataset(path, format="cvat")
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_an_image_of_another_size(tmp_path: Path) -> None:
    dataset = open_dataset(make(tmp_path, BOX))
    black(tmp_path / "images" / "a.png", (10, 12))
    with pytest.raises(InputError, match=r"a\.png has size 10 x 12, but .*annotations\.xml says 20 x 30"):
        _ = dataset[0].image


def test_texts_that_xml_cannot_hold(tmp_path: Path) -> None:
    segments = Segments(SIZE, [1], None, box=[[0, 0, 5, 5]], attributes={"source": ["bell \a"]})
    with pytest.raises(InputError, match=r"image0: the text .* has control characters"):
        write_dataset(in_memory([segments], CLASSES), tmp_path / "set", "cvat")
    assert not (tmp_path / "set").exists()


def test_attributes_of_any_type(tmp_path: Path) -> None:
    """What CVAT has no type for says so in its text; another program sees texts, numbers and checkboxes."""
    columns = {"note": ["bell \a", "json:3"], "both": [3, "3"], "list": [[1, None], "x"], "long": [10**30, 5]}
    columns |= {"number": [1, 2.5], "occluded": ["yes", "no"]}
    made = {name: attribute_column(values) for name, values in columns.items()}
    segments = Segments(SIZE, [1, 1], None, box=[[0, 0, 5, 5], [1, 1, 4, 4]], attributes=made)
    write_dataset(in_memory([segments], CLASSES), tmp_path / "set", "cvat")
    again = open_dataset(tmp_path / "set")[0].segments
    assert again is not None
    columns["attribute:occluded"] = columns.pop("occluded")
    assert {name: column.tolist() for name, column in again.attributes.items()} == columns
    text = (tmp_path / "set" / "annotations.xml").read_text()
    for each in ('name="number">1<', 'name="number">2.5<', 'name="both">json:3<', 'name="both">3<', 'name="list">x<'):
        assert each in text


def test_other_layouts_are_not_cvat(tmp_path: Path) -> None:
    from everymask.formats import cvat

    (tmp_path / "a.xml").write_text("<annotation><object/></annotation>")
    assert not cvat.recognise(tmp_path) and not cvat.recognise(tmp_path / "a.xml")
    (tmp_path / "b.xml").write_text("<annotations>")
    assert not cvat.recognise(tmp_path)  # which of the two?
    assert cvat.recognise(tmp_path / "b.xml")
