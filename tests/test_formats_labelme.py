"""labelme: every shape, groups, where images are found, round trips, and what is said about mistakes."""

from __future__ import annotations

import base64
import copy
import io
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from format_cases import INSTANCES, black, box_segments, in_memory, mask_segments, polygon_segments, same
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from everymask.errors import InputError
from everymask.formats import labelme, open_dataset, recognise, write_dataset
from everymask.types import Categories, Dataset, Masks, Polygon, Polygons, Segments, Task

SIZE = (20, 30)
CLASSES = Categories(["cat", "dog", "größer & so"])


def png(mask: np.ndarray) -> str:
    stream = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).convert("1").save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def shape(kind: str, points: list[list[float]], label: str = "cat", **more: Any) -> dict[str, Any]:
    known = {"group_id": None, "description": "", "flags": {}, "mask": None}
    return {"label": label, "points": points, "shape_type": kind, **known, **more}


TRIANGLE = [[1.25, 2.125], [10, 2], [10, 9.0625]]
MASK = np.array([[0, 1, 1], [1, 1, 0]], bool)
SHAPES = [
    shape("polygon", TRIANGLE, flags={"torn": True}, description="my first"),
    shape("rectangle", [[20, 15], [12, 4]]),
    shape("point", [[3, 3]]),
    shape("circle", [[15, 10], [18, 14]], "dog"),
    shape("polygon", [[0, 0], [4, 0], [4, 4]], "dog", group_id=3),
    shape("line", [[0, 0], [4, 4]]),
    shape("polygon", [[20, 0], [24, 0], [24, 4]], "dog", group_id=3, creator={"name": "bo"}),
    shape("polygon", [[25, 0], [29, 0], [29, 4]], "cat", group_id=3),
    shape("linestrip", [[0, 0], [4, 4], [4, 5]], "_background_"),
]
MASKED = shape("mask", [[5, 6], [7, 7]], mask=png(MASK))


def document(shapes: list[dict[str, Any]], image: str = "a.png", **more: Any) -> dict[str, Any]:
    return {
        "version": "5.4.1",
        "flags": {},
        "shapes": shapes,
        "imagePath": image,
        "imageData": None,
        "imageHeight": 20,
        "imageWidth": 30,
        **more,
    }


def make(folder: Path, shapes: list[dict[str, Any]] | None = None, name: str = "a", **more: Any) -> Path:
    black(folder / f"{name}.png")
    content = document(SHAPES if shapes is None else shapes, f"{name.rpartition('/')[2]}.png", **more)
    (folder / f"{name}.json").write_text(json.dumps(content), "utf-8")
    return folder


def segments_of(dataset: Dataset, index: int = 0) -> Segments:
    found = dataset[index].segments
    assert found is not None
    return found


# -- reading -----------------------------------------------------------------------------------------------------------


def test_every_shape(tmp_path: Path) -> None:
    dataset = open_dataset(make(tmp_path, flags={"night": True}, lens="50 mm"))
    assert dataset.format == "labelme" and recognise(tmp_path / "a.json") == "labelme"
    assert dataset.tasks == INSTANCES
    assert dataset.categories == Categories(["cat", "dog"])
    segments = segments_of(dataset)
    assert isinstance(segments.geometry, Polygons)
    assert segments.category.tolist() == [1, 1, 2, 2, 1]
    triangle, box, circle, pair, alone = segments.geometry.parts
    assert triangle[0].exterior.tolist() == TRIANGLE
    assert box[0].exterior.tolist() == [[12, 4], [20, 4], [20, 15], [12, 15]]
    assert np.allclose(np.hypot(*(circle[0].exterior - [15, 10]).T), 5)
    x, y = circle[0].exterior.T
    assert 0.98 < abs(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)) / 2 / (math.pi * 25) <= 1
    assert [part.exterior.tolist() for part in pair] == [[[0, 0], [4, 0], [4, 4]], [[20, 0], [24, 0], [24, 4]]]
    assert len(alone) == 1
    assert segments.attributes["group_id"].tolist() == [None, None, None, 3, 3]
    assert segments.attributes["flags"].tolist() == [{"torn": True}, None, None, None, None]
    assert segments.attributes["description"].tolist() == ["my first", None, None, None, None]
    extra = dataset[0].extra
    assert [(index, each["shape_type"]) for index, each in extra["labelme"]] == [
        (2, "point"),
        (5, "line"),
        (8, "linestrip"),
    ]
    assert extra["flags"] == {"night": True} and extra["lens"] == "50 mm"


def test_masks(tmp_path: Path) -> None:
    grouped = shape("polygon", [[0, 10], [6, 10], [6, 16], [0, 16]], group_id=1)
    dataset = open_dataset(make(tmp_path, [MASKED, grouped, {**MASKED, "group_id": 1}, SHAPES[1]]))
    segments = segments_of(dataset)
    assert isinstance(segments.geometry, Masks) and len(segments) == 3
    expected = np.zeros(SIZE, bool)
    expected[6:8, 5:8] = MASK
    alone, union, box = segments.masks()
    assert np.array_equal(alone, expected)
    expected[10:16, 0:6] = True
    assert np.array_equal(union, expected)
    assert box.sum() == 8 * 11


def test_rectangles_alone_are_boxes(tmp_path: Path) -> None:
    make(tmp_path, [shape("rectangle", [[20, 15], [12, 4]]), shape("point", [[1, 1]])])
    make(tmp_path, [], "b")
    dataset = open_dataset(tmp_path)
    assert dataset.tasks == {Task.DETECTION}
    assert segments_of(dataset).geometry is None
    assert segments_of(dataset).boxes().tolist() == [[12, 4, 20, 15]]
    assert len(segments_of(dataset, 1)) == 0


def test_files_of_old_versions(tmp_path: Path) -> None:
    black(tmp_path / "a.png")
    content = {
        "shapes": [{"label": "cat", "points": TRIANGLE, "line_color": None}],
        "imagePath": "a.png",
        "imageData": None,
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    segments = segments_of(open_dataset(tmp_path))
    assert isinstance(segments.geometry, Polygons) and segments.size == SIZE


def test_labels_in_the_order_of_labels_txt(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\ndog\nbird\ncat\n")
    assert open_dataset(tmp_path).categories == Categories(["dog", "bird", "cat"])
    (tmp_path / "labels.txt").write_text("dog\n")
    with pytest.raises(InputError, match=r"a\.json: the label 'cat' is not in .*labels\.txt; add it"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    "given",
    ["../images/a.png", "..\\images\\a.png", "/home/ann/a.png", "C:\\pictures\\images\\a.png", "images/a.png", "a.png"],
)
def test_images_beside_the_folder(tmp_path: Path, given: str) -> None:
    folder = tmp_path / "set" / "json"
    folder.mkdir(parents=True)
    (folder / "x.json").write_text(json.dumps(document(SHAPES, given)))
    image = black(tmp_path / "set" / "images" / "a.png")
    dataset = open_dataset(folder)
    assert dataset[0].name == "x" and dataset[0].path == image
    assert dataset[0].image.shape == (20, 30, 3)


def test_a_path_cannot_lead_out(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b" / "c" / "set"
    folder.mkdir(parents=True)
    secret = black(tmp_path / "secret.png")
    for named in ("../../../../secret.png", str(secret), "x/../../../../../secret.png"):
        (folder / "a.json").write_text(json.dumps(document([], named)))
        with pytest.raises(InputError, match=r"1 of 1 images are not found: .*secret\.png"):
            open_dataset(folder)
        assert open_dataset(folder, missing_images="keep")[0].path is None
        assert len(open_dataset(folder, missing_images="skip")) == 0
        assert open_dataset(folder, images=tmp_path)[0].path == secret


def test_images_in_the_json(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    data = base64.b64encode(stream.getvalue()).decode()
    (tmp_path / "a.json").write_text(json.dumps(document(SHAPES, "gone.png", imageData=data)))
    dataset = open_dataset(tmp_path)
    assert np.array_equal(dataset[0].image, pixels)
    write_dataset(dataset, tmp_path / "again", "labelme", embed_images=True)
    (tmp_path / "again" / "a.png").unlink()
    again = open_dataset(tmp_path / "again")
    assert np.array_equal(again[0].image, pixels)
    same(again[0].segments, dataset[0].segments)
    (tmp_path / "a.json").write_text(json.dumps(document([], "gone.png", imageData="bm8gaW1hZ2U=", imageWidth=None)))
    broken = open_dataset(tmp_path)
    with pytest.raises(InputError, match=r"a\.json: imageData: "):
        _ = broken[0].image


def test_images_without_a_json_are_not_annotated(tmp_path: Path) -> None:
    make(tmp_path)
    black(tmp_path / "b.png")
    dataset = open_dataset(tmp_path)
    assert [(sample.name, sample.segments is None) for sample in dataset] == [("a", False), ("b", True)]
    write_dataset(dataset, tmp_path / "again", "labelme")
    assert [each.segments is None for each in open_dataset(tmp_path / "again")] == [False, True]


def test_folders_are_splits(tmp_path: Path) -> None:
    make(tmp_path, name="train/a")
    make(tmp_path, [SHAPES[0]], name="val/ü")
    dataset = open_dataset(tmp_path)
    assert [(sample.name, sample.extra["split"]) for sample in dataset] == [("train/a", "train"), ("val/ü", "val")]
    part = open_dataset(tmp_path, split="val")
    assert [sample.name for sample in part] == ["ü"]
    assert part.categories == dataset.categories
    write_dataset(dataset, tmp_path / "again", "labelme")
    again = open_dataset(tmp_path / "again")
    assert [(each.name, each.extra) for each in again] == [(each.name, each.extra) for each in dataset]
    with pytest.raises(InputError, match=r"no (folder|part) 'test'"):
        open_dataset(tmp_path, split="test")


# -- round trips -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shapes", [SHAPES, [*SHAPES, MASKED], [SHAPES[1], SHAPES[2]]], ids=["outlines", "masks", "boxes"]
)
def test_nothing_of_a_file_is_lost(tmp_path: Path, shapes: list[dict[str, Any]]) -> None:
    further = {"difficult": True, "score": None, "attributes": {"age": 3, "who": ["x"], "flags": "odd"}}
    shapes = [{**copy.deepcopy(shapes[0]), **further}, *shapes[1:]]
    first = open_dataset(make(tmp_path / "first", shapes, lens={"f": 50}, flags={"night": False}))
    write_dataset(first, tmp_path / "second", "labelme")
    second = open_dataset(tmp_path / "second")
    same(second[0].segments, first[0].segments)
    assert second[0].extra == first[0].extra
    assert second.categories == first.categories
    before, after = (json.loads((tmp_path / each / "a.json").read_text()) for each in ("first", "second"))
    assert {**after, "shapes": 0, "version": 0} == {**before, "shapes": 0, "version": 0}

    def meaning(each: dict[str, Any]) -> str:
        said = {key: value for key, value in each.items() if value not in (None, "", {})}
        said["points"] = [[float(number) for number in point] for point in each["points"]]
        if each.get("mask"):
            said["mask"] = np.array(Image.open(io.BytesIO(base64.b64decode(each["mask"])))).tolist()
        return json.dumps(said, sort_keys=True)

    assert sorted(map(meaning, after["shapes"])) == sorted(map(meaning, before["shapes"]))


def test_the_order_of_shapes_stays(tmp_path: Path) -> None:
    shapes = [each for each in SHAPES if each["group_id"] is None]
    write_dataset(open_dataset(make(tmp_path / "first", shapes)), tmp_path / "second", "labelme")
    after = json.loads((tmp_path / "second" / "a.json").read_text())["shapes"]
    assert [each["shape_type"] for each in after] == [each["shape_type"] for each in shapes]


def test_what_was_changed_is_not_written_as_it_was(tmp_path: Path) -> None:
    segments = segments_of(open_dataset(make(tmp_path / "first")))
    assert isinstance(segments.geometry, Polygons)
    shifted = tuple(tuple(Polygon(part.exterior + 1) for part in parts) for parts in segments.geometry.parts)
    columns = {**segments.attributes, "description": np.array([None, None, "round", None, None], object)}
    moved = Segments(SIZE, segments.category, Polygons(SIZE, shifted), attributes=segments.attributes)
    told = Segments(SIZE, segments.category, segments.geometry, attributes=columns)
    for name, each in {"moved": moved, "told": told, "class": segments.with_category([2, 2, 1, 1, 1])}.items():
        write_dataset(in_memory([each], CLASSES), tmp_path / name, "labelme")
        read = segments_of(open_dataset(tmp_path / name))
        assert read.category.tolist() == each.category.tolist()
        assert np.array_equal(read.boxes(), each.boxes())
        assert read.attributes["description"].tolist() == each.attributes["description"].tolist()
    again = json.loads((tmp_path / "class" / "image0.json").read_text())["shapes"]
    assert [each["shape_type"] for each in again][:4] == ["polygon", "rectangle", "circle", "polygon"]
    # Both objects of group 3 are cats now; as one group they would be one object.
    assert len({each["group_id"] for each in again[3:]}) == 2


@st.composite
def with_columns(draw: st.DrawFn, segments: Segments) -> Segments:
    """The same segments with columns of every type, and perhaps scores."""
    number = len(segments)
    kinds = {
        "truth": st.booleans(),
        "whole": st.integers(-99, 99),
        "broken": st.floats(allow_nan=False, allow_infinity=False),
        "text": st.text(st.characters(blacklist_categories=("Cs",))),
        "description": st.text(st.characters(blacklist_categories=("Cs",)), min_size=1),
    }
    columns = {name: [draw(kind) for _ in range(number)] for name, kind in kinds.items() if draw(st.booleans())}
    score = [draw(st.floats(0, 1)) for _ in range(number)] if number and draw(st.booleans()) else None
    box, columns = segments.given_boxes, columns if number else {}
    return Segments(SIZE, segments.category, segments.geometry, box=box, score=score, attributes=columns)


@pytest.mark.parametrize(
    "kind",
    [polygon_segments(SIZE, [1, 2, 3]), mask_segments(SIZE, [1, 2, 3]), box_segments(SIZE, [1, 2, 3])],
    ids=["polygons", "masks", "boxes"],
)
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_round_trip(kind: st.SearchStrategy[Segments], data: st.DataObject) -> None:
    segments = data.draw(kind.flatmap(with_columns))
    # A polygon among the images says that outlines are meant, where this one has none.
    other = Segments.from_polygons(SIZE, [[Polygon(np.array([[0, 0], [9, 0], [9, 9.0]]))]], 1)
    with tempfile.TemporaryDirectory() as folder:
        dataset = in_memory([segments, other] if segments.geometry is not None else [segments], CLASSES)
        write_dataset(dataset, Path(folder, "set"), "labelme")
        again = open_dataset(Path(folder, "set"))
        assert again.categories == CLASSES
        same(again[0].segments, segments)


@settings(deadline=None, max_examples=40)
@given(segments=polygon_segments(SIZE, [1, 2], parts=3))
def test_parts_come_back(segments: Segments) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(in_memory([segments], CLASSES), Path(folder, "set"), "labelme")
        again = open_dataset(Path(folder, "set"))
        if len(segments):
            same(again[0].segments, segments, attributes=False)
            groups = [each["group_id"] for each in json.loads(Path(folder, "set", "image0.json").read_text())["shapes"]]
            assert len(groups) == sum(map(len, segments.polygons().parts))


def test_holes_become_masks(tmp_path: Path) -> None:
    square = np.array([[2.0, 2], [12, 2], [12, 12], [2, 12]])
    segments = Segments.from_polygons(SIZE, [[Polygon(square, (square / 2 + 3,))]], [2])
    write_dataset(in_memory([segments], CLASSES), tmp_path / "set", "labelme")
    assert np.array_equal(segments_of(open_dataset(tmp_path / "set")).masks(), segments.masks())
    (written,) = json.loads((tmp_path / "set" / "image0.json").read_text())["shapes"]
    assert written["points"] == [[2, 2], [11, 11]]


def test_tags_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="image0 has tags of the whole image"):
        write_dataset(in_memory([Segments(SIZE, [1])], CLASSES), tmp_path / "set", "labelme")


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (shape("polygon", [[1, 2], [3, 4]]), "it has 2 points; a polygon needs 3"),
        (shape("rectangle", [[1, 2]]), "it has 1 points; a rectangle needs 2"),
        (shape("circle", [[1, 2], [1, 2]]), "its two points are one"),
        (shape("spline", [[1, 2], [1, 2]]), "its shape_type is 'spline'; expected one of circle"),
        (shape("mask", [[28, 6], [30, 7]], mask=png(MASK)), "leaves the image of 20 x 30"),
        (shape("mask", [[5, 6], [7, 7]], mask="bm8gcG5n"), "its mask is no PNG"),
        (shape("mask", [[5, 6], [7, 7]]), "it is a mask without mask"),
        (shape("polygon", [[1, 2], [3]]), "$.shapes[1].points[1]"),
        (shape("polygon", [[1, 2], [3, "x"]]), "$.shapes[1].points[1][1]"),
    ],
)
def test_wrong_shapes(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    dataset = open_dataset(make(tmp_path, [SHAPES[0], wrong]))
    with pytest.raises(InputError) as error:
        _ = dataset[0].segments
    assert message in str(error.value) and "a.json: " in str(error.value) and "$.shapes[1]" in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"shapes": [{"label": 5}], "imagePath": "a.png"}', r"a\.json: .*\$\.shapes\[0\]\.label"),
        ('{"shapes": {}, "imagePath": "a.png"}', r"a\.json: .*\$\.shapes"),
        ('{"shapes": [], "imagePath": "a.png"', r"a\.json is no valid JSON"),
    ],
)
def test_wrong_files(tmp_path: Path, content: str, message: str) -> None:
    black(tmp_path / "a.png")
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError, match=message) as error:
        open_dataset(tmp_path)
    assert "\n" not in str(error.value)


def test_an_image_of_another_size(tmp_path: Path) -> None:
    dataset = open_dataset(make(tmp_path))
    black(tmp_path / "a.png", (10, 12))
    with pytest.raises(InputError, match=r"a\.png has size 10 x 12, but .*a\.json says 20 x 30"):
        _ = dataset[0].image


def test_other_layouts_are_not_labelme(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"images": [], "annotations": [], "categories": []}')
    assert not labelme.recognise(tmp_path) and not labelme.recognise(tmp_path / "nothing")
