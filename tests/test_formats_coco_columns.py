"""COCO JSON as columns: against the standard library's parser and pycocotools, and what is kept by a round trip."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from everymask.errors import InputError
from everymask.formats import (
    coco,
    coco_columns,
    coco_shapes,
    mapped_file,
    open_dataset,
    open_predictions,
    write_dataset,
)
from everymask.formats.images import write_image
from everymask.ops import rle
from everymask.types import Categories, Category, Dataset, LabelMap, Masks, Polygon, Polygons, Sample, Segments, Task

mask_api = pytest.importorskip("pycocotools.mask")


def number(generator: random.Random) -> float | int:
    """A number of a file, in one of the ways they are written."""
    return generator.choice(
        [
            generator.randrange(300),
            generator.random() * 300,
            round(generator.random() * 300, 2),
            generator.random() * 10.0 ** generator.randrange(-320, 0),
        ]
    )


def segmentation(generator: random.Random, height: int, width: int) -> Any:
    """A segmentation of any form, or none; its numbers may be written in any way."""
    kind = generator.randrange(5)
    if kind == 0:
        return generator.choice([None, []])
    if kind < 3:
        return [
            [
                value
                for _ in range(generator.randrange(3, 9))
                for value in (generator.random() * width, number(generator) % height)
            ]
            for _ in range(generator.randrange(1, 4))
        ]
    mask = np.asfortranarray(np.random.default_rng(generator.randrange(99)).random((height, width)) > 0.6, np.uint8)
    string = mask_api.encode(mask)["counts"].decode()
    return {"size": [height, width], "counts": string if kind == 3 else rle.from_string(string).tolist()}


def instances(generator: random.Random) -> dict[str, Any]:
    """A file of instances with what is allowed and rare."""
    images = [
        {
            "file_name": generator.choice(["ä/", "", "b c/"]) + f"{i}.jpg",
            "height": generator.randrange(1, 90),
            "id": generator.randrange(10**6) * 1000 + i,
            "width": generator.randrange(1, 90),
            **generator.choice([{}, {"license": 1}, {"url": "http://a/b", "nested": [{"id": 3}]}]),
        }
        for i in range(generator.randrange(1, 9))
    ]
    annotations = []
    for i in range(generator.randrange(20)):
        image = generator.choice(images)
        fields: dict[str, Any] = {
            "id": generator.randrange(10**9) * 1000 + i,
            "image_id": image["id"],
            "category_id": generator.choice([1, 90]),
            "iscrowd": generator.choice([0, 1, False, True]),
            "area": generator.choice([None, number(generator)]),
            "bbox": generator.choice([None, [number(generator) for _ in range(4)]]),
            "score": generator.choice([None, number(generator)]),
            "segmentation": segmentation(generator, image["height"], image["width"]),
            "attributes": generator.choice([None, {}, {"a": 1, "b": ["x", {}]}]),
            "note": generator.choice(["}, {", None, [1, "]"]]),
        }
        keys = sorted(fields, key=lambda _: generator.random())
        kept = {"id", "image_id", "category_id"}
        annotations.append({key: fields[key] for key in keys if key in kept or generator.random() < 0.7})
    parts: dict[str, Any] = {
        "info": {"year": 2020, "ranges": [[1, 2], [3.5]]},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "a", "keypoints": ["nose"]}, {"id": 90, "name": "ö", "supercategory": None}],
        "licenses": [{"id": 1, "name": "none"}],
        "x": [{"annotations": []}],
    }
    required = {"images", "annotations", "categories"}
    keys = sorted(parts, key=lambda _: generator.random())
    return {key: parts[key] for key in keys if key in required or generator.random() < 0.6}


def written(content: Any, generator: random.Random) -> bytes:
    """The content as JSON in one of many styles, some of which only the general way of reading understands."""
    style = generator.randrange(4)
    text = json.dumps(content, indent=[None, 1, None, 3][style], ensure_ascii=style < 2)
    if style == 0:
        text = text.replace('"image_id"', '"image\\u005fid"')
    elif style == 2:
        text = text.replace("\\\\", "\\u005C").replace("/", "\\/")
    return generator.choice([b"", b"\xef\xbb\xbf"]) + text.encode() + generator.choice([b"", b"\n \r\n"])


def check(columns: coco_columns.Columns, entries: list[dict[str, Any]]) -> None:
    """Asserts that columns hold the entries."""
    assert len(columns) == len(entries)
    for row, entry in enumerate(entries):
        assert columns.category_id[row] == entry["category_id"]
        assert columns.id[row] == entry.get("id", -1)
        image = columns.image_texts[columns.image_id[row]] if columns.image_text[row] else columns.image_id[row]
        assert image == entry["image_id"]
        assert columns.crowd[row] == bool(entry.get("iscrowd", 0))
        for found, key in ((columns.score, "score"), (columns.area, "area"), (columns.box, "bbox")):
            wanted = entry.get(key)
            expected = np.nan if wanted is None else np.array(wanted, np.float64)
            np.testing.assert_array_equal(found[row], np.broadcast_to(expected, found[row].shape))
        shape = entry.get("segmentation")
        kind = 0 if not shape else 1 if isinstance(shape, list) else 2 if isinstance(shape["counts"], str) else 3
        assert columns.segmentation_kind[row] == kind
        begin, end = columns.segmentation_span[row]
        assert json.loads(columns.data[begin:end].tobytes() or b"null") == shape
        begin, end = columns.object_span[row]
        assert json.loads(columns.data[begin:end].tobytes()) == entry


@pytest.mark.parametrize("mapped", [False, True])
def test_columns_are_what_the_standard_parser_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mapped: bool
) -> None:
    if mapped:
        monkeypatch.setattr(mapped_file, "_MAPPED", 0)
        monkeypatch.setattr(mapped_file, "_KEPT_PAGES", 500)
    for seed in range(120):
        generator = random.Random(seed)
        content = instances(generator)
        path = tmp_path / f"{seed}.json"
        path.write_bytes(written(content, generator))
        found = coco_columns.read_annotations(path)
        assert found.images.file_names == [each["file_name"] for each in content["images"]]
        for name in ("id", "height", "width"):
            assert getattr(found.images, name).tolist() == [each[name] for each in content["images"]]
        assert found.licenses == content.get("licenses", [])
        assert [each.name for each in found.categories] == ["a", "ö"]
        check(found.annotations, content["annotations"])


def test_results_are_what_the_standard_parser_gives(tmp_path: Path) -> None:
    for seed in range(120):
        generator = random.Random(seed)
        entries = [
            {
                "image_id": generator.choice([7, -1, 10**15, "a/ö", 'q"\\', ""]),
                "category_id": generator.randrange(99),
                "score": number(generator),
                **generator.choice([{}, {"bbox": [number(generator) for _ in range(4)]}, {"bbox": None}]),
                **generator.choice([{}, {"segmentation": segmentation(generator, 9, 8)}, {"note": "}"}]),
            }
            for _ in range(generator.randrange(12))
        ]
        path = tmp_path / f"{seed}.json"
        path.write_bytes(written(entries, generator))
        check(coco_columns.read_results(path), entries)


def test_a_million_digits_are_no_problem(tmp_path: Path) -> None:
    content = {"image_id": 1, "category_id": 1, "score": 0.5, "bbox": [0, 0, 1, 1]}
    text = json.dumps([content]).replace("0.5", "0." + "123" * 100_000)
    (tmp_path / "r.json").write_text(text)
    assert coco_columns.read_results(tmp_path / "r.json").score.tolist() == [float("0." + "123" * 100_000)]
    (tmp_path / "r.json").write_text(text.replace("0.123", '1e400, "x": 0.123'))
    with pytest.raises(InputError, match=r"r\.json: Number out of range - at `\$\[0\]\.score`"):
        coco_columns.read_results(tmp_path / "r.json")
    (tmp_path / "r.json").write_text(json.dumps([content | {"category_id": 2**70}]))
    with pytest.raises(InputError, match=r"r\.json: an id needs more than 64 bits"):
        coco_columns.read_results(tmp_path / "r.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is no valid JSON"),
        (b" \n", "is no valid JSON"),
        (b"[1]", r"Expected `object`, got `int` - at `\$\[0\]`"),
        (b'[{"image_id": 1, "category_id": 1, "score": 1}', "is no valid JSON"),
        (b'[{"image_id": 1, "category_id": 1, "score": 1}]]', "is no valid JSON"),
        (b'[{"image_id": 1, "category_id": 1}]', r"missing required field `score` - at `\$\[0\]`"),
        (b'[{"image_id": 1.5, "category_id": 1, "score": 1}]', r"at `\$\[0\]\.image_id`"),
        (b'[{"image_id": 1, "category_id": 1, "score": NaN}]', "is no valid JSON"),
        (b'[{"image_id": 1, "category_id": 1, "score": 1, "x": "\xff"}]', "is no valid JSON"),
        (b'{"image_id": 1}', r"Expected `array`, got `object`"),
    ],
)
def test_what_are_no_results(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "r.json").write_bytes(text)
    with pytest.raises(InputError, match=message) as caught:
        coco_columns.read_results(tmp_path / "r.json")
    assert str(tmp_path / "r.json") in str(caught.value)
    assert "\n" not in str(caught.value)


# -- masks -------------------------------------------------------------------------------------------------------------


def many(generator: random.Random, annotations: int) -> dict[str, Any]:
    """A file of images of a few sizes with annotations of all kinds, in no order."""
    sizes = [(generator.randrange(20, 90), generator.randrange(20, 90)) for _ in range(4)]
    images = []
    for i in range(20):
        height, width = generator.choice(sizes)
        images.append({"id": i, "file_name": f"{i}.png", "height": height, "width": width})
    entries = []
    for i in range(annotations):
        image = generator.choice(images)
        shape = segmentation(generator, image["height"], image["width"])
        entries.append(
            {"id": i, "image_id": image["id"], "category_id": 1, "segmentation": shape, "bbox": [0, 0, 1, 1]}
        )
    return {"images": images, "annotations": entries, "categories": [{"id": 1, "name": "a"}]}


def official(entry: dict[str, Any], height: int, width: int) -> bytes:
    """The compressed run lengths that pycocotools makes of a segmentation."""
    shape = entry["segmentation"]
    if not shape:
        return mask_api.encode(np.zeros((height, width), np.uint8, order="F"))["counts"]
    if isinstance(shape, list):
        return mask_api.merge(mask_api.frPyObjects(shape, height, width))["counts"]
    if isinstance(shape["counts"], list):
        return mask_api.frPyObjects(shape, height, width)["counts"]
    return shape["counts"].encode()


@pytest.mark.parametrize("threads", [False, True])
def test_masks_of_many_images_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: bool) -> None:
    if threads:
        monkeypatch.setattr(coco_shapes, "_SMALL", 10)
        monkeypatch.setattr(os, "cpu_count", lambda: 3)
    generator = random.Random(2)
    content = many(generator, 300)
    (tmp_path / "x.json").write_text(json.dumps(content))
    columns = coco_columns.read_annotations(tmp_path / "x.json").annotations
    rows = generator.sample(range(300), 250)
    sizes = [(content["images"][each]["height"], content["images"][each]["width"]) for each in columns.image_id[rows]]
    wanted = [official(content["annotations"][row], *size) for row, size in zip(rows, sizes, strict=True)]
    assert rle.to_strings(*columns.masks(rows, sizes)) == wanted
    assert rle.to_strings(*columns.masks([], (5, 5))) == []
    one = rows[0]
    assert rle.to_strings(*columns.masks([one], sizes[0])) == wanted[:1]
    masked = next(row for row in rows if columns.segmentation_kind[row] >= 2)
    with pytest.raises(InputError, match=rf"x\.json: \$\.annotations\[{masked}\]: its RLE has the size"):
        columns.masks([*rows[:3], masked], [*sizes[:3], (1, 2)])


def test_numbers_that_compiled_code_leaves_to_python(tmp_path: Path) -> None:
    """Polygons with more digits than fit, and numbers below the normal range, next to plain ones."""
    points = "[[1e-320, 0, 10, 0.00000000000000000000000000000, 10.123456789012345678901234567890, 12]]"
    content = many(random.Random(3), 6)
    text = json.dumps(content)
    first = content["annotations"][0]
    height, width = (content["images"][first["image_id"]][name] for name in ("height", "width"))
    text = text.replace(json.dumps(first["segmentation"]), points, 1)
    content = json.loads(text)
    (tmp_path / "x.json").write_text(text)
    columns = coco_columns.read_annotations(tmp_path / "x.json").annotations
    sizes = [(content["images"][each]["height"], content["images"][each]["width"]) for each in columns.image_id]
    wanted = [official(entry, *size) for entry, size in zip(content["annotations"], sizes, strict=True)]
    assert rle.to_strings(*columns.masks(np.arange(6), sizes)) == wanted
    dataset = open_dataset(tmp_path / "x.json", missing_images="keep")
    segments = dataset[first["image_id"]].segments
    assert segments is not None and segments.size == (height, width)
    position = segments.attributes["id"].tolist().index(0)
    assert rle.to_string(segments.rles()[position]) == wanted[0]


@pytest.mark.parametrize(
    "polygon", ["[[1, 2, 3, 4, 5, 6.]]", "[[1, 2, 3, 4, 5 6]]", "[[1, 2, 3, 4, 5, 6],]", "[[1..2, 1, 1, 1, 1, 1]]"]
)
def test_malformed_polygons_are_found_when_they_are_read(tmp_path: Path, polygon: str) -> None:
    content = many(random.Random(4), 5)
    content["annotations"][2]["segmentation"] = "here"
    (tmp_path / "x.json").write_text(json.dumps(content).replace('"here"', polygon))
    dataset = open_dataset(tmp_path / "x.json", missing_images="keep")
    with pytest.raises(
        InputError, match=r"x\.json: JSON is malformed: .* at `\$\.annotations\[2\]\.segmentation`"
    ) as caught:
        _ = dataset[content["annotations"][2]["image_id"]].segments
    assert "\n" not in str(caught.value)


def test_a_file_that_is_changed_while_it_is_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped_file, "_MAPPED", 0)
    path = tmp_path / "x.json"
    content = many(random.Random(5), 50)
    path.write_text(json.dumps(content))
    dataset = open_dataset(path, missing_images="keep")
    assert dataset[0].segments is not None
    # A file that takes its place is another one: the old one is still there for those who have it open.
    (tmp_path / "y.json").write_text("{}")
    (tmp_path / "y.json").replace(path)
    assert dataset[1].segments is not None
    path.write_text(json.dumps(content))
    dataset = open_dataset(path, missing_images="keep")
    path.write_text("{}")
    with pytest.raises(InputError, match=r"x\.json was changed while it was in use; open it again"):
        _ = dataset[0]


# -- what a round trip keeps -------------------------------------------------------------------------------------------


def save(folder: Path, content: dict[str, Any]) -> Path:
    for image in content["images"]:
        write_image(folder / image["file_name"], np.zeros((image["height"], image["width"], 3), np.uint8))
    (folder / "instances.json").write_text(json.dumps(content))
    return folder / "instances.json"


def test_fields_beside_the_usual_ones_are_attributes(tmp_path: Path) -> None:
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 20, "width": 30}],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 1,
                "bbox": [1, 1, 5, 5],
                "keypoints": [1, 2, 2],
                "num_keypoints": 1,
            },
            {
                "id": 2,
                "image_id": 1,
                "category_id": 1,
                "bbox": [1, 1, 5, 5],
                "ignore": 1,
                "attributes": {"pose": "left"},
            },
            {"id": 3, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], "attributes": {"id": 9, "pose": None}},
        ],
    }
    dataset = open_dataset(save(tmp_path, content))
    segments = dataset[0].segments
    assert segments is not None
    wanted = {
        "id": [1, 2, 3],
        "keypoints": [[1, 2, 2], None, None],
        "num_keypoints": [1, None, None],
        "ignore": [None, 1, None],
        "pose": [None, "left", None],
    }
    assert {name: column.tolist() for name, column in segments.attributes.items()} == wanted
    write_dataset(dataset, tmp_path / "out", "coco")
    entries = json.loads((tmp_path / "out/instances.json").read_text())["annotations"]
    assert entries[0]["keypoints"] == [1, 2, 2]
    assert entries[0]["num_keypoints"] == 1
    assert entries[1]["ignore"] == 1
    assert [set(entry) & {"keypoints", "num_keypoints", "ignore"} for entry in entries[2:]] == [set()]
    back = open_dataset(tmp_path / "out")[0].segments
    assert back is not None
    assert {name: column.tolist() for name, column in back.attributes.items() if name != "area"} == wanted
    content["annotations"][1]["attributes"] = [1]
    with pytest.raises(
        InputError, match=r"Expected `object \| null`, got `array` - at `\$\.annotations\[1\]\.attributes`"
    ):
        open_dataset(save(tmp_path, content))


SQUARE = np.array([[2.0, 2], [12, 2], [12, 12], [2, 12]])


def round_trip(segments: Segments, folder: Path, categories: Categories | None = None) -> Segments:
    sample = Sample("a", lambda: np.zeros((*segments.size, 3), np.uint8), lambda: segments)
    dataset = Dataset.of([sample], categories or Categories(["a", "b"]), frozenset({Task.INSTANCE}))
    write_dataset(dataset, folder, "coco")
    back = open_dataset(folder)
    assert back.categories == dataset.categories
    found = back[0].segments
    assert found is not None
    np.testing.assert_array_equal(found.category, segments.category)
    if segments.geometry is not None:
        np.testing.assert_array_equal(found.masks(), segments.masks())
    return found


def test_every_feature_that_is_said_to_be_carried(tmp_path: Path) -> None:
    size = (20, 30)
    # POINTS, PARTS, OVERLAP, OBJECTS, BOXES, CROWDS, SCORES
    parts = [[Polygon(SQUARE), Polygon(SQUARE + 6.25)], [Polygon(SQUARE + 1 / 3)], [Polygon(SQUARE)]]
    boxes = [[1.1, 2.2, 20.3, 18.4], [0, 0, 3, 3], [2, 2, 12, 12]]
    polygons = Segments.from_polygons(size, parts, [1, 2, 1], box=boxes, score=[0.1, 0.7, 1 / 3])
    found = round_trip(polygons, tmp_path / "polygons")
    assert isinstance(found.geometry, Polygons)
    for ours, theirs in zip(found.geometry.parts, parts, strict=True):
        assert [each.exterior.tolist() for each in ours] == [each.exterior.tolist() for each in theirs]
    assert found.boxes().tolist() == boxes
    assert found.score is not None and found.score.tolist() == [0.1, 0.7, 1 / 3]
    # HOLES keep their pixels, and all of the image become masks.
    holed = Segments.from_polygons(size, [[Polygon(SQUARE, (SQUARE / 2 + 3,))], [Polygon(SQUARE + 1)]], [1, 2])
    assert isinstance(round_trip(holed, tmp_path / "holed").geometry, Masks)
    # MASKS and CROWDS, IDS, COLOURS, SUPERCATEGORIES, STUFF
    masks = np.random.default_rng(0).random((3, *size)) > 0.5
    categories = Categories([Category(90, "x", colour=(1, 2, 3)), Category(7, "y", is_thing=False, supercategory="s")])
    found = round_trip(Segments.from_masks(masks, [7, 90, 7], crowd=[True, False, False]), tmp_path / "m", categories)
    assert found.crowd.tolist() == [True, False, False]
    # VOID is not.
    labels = np.array([[0, 1, -1], [2, 1, -1]], np.int32)
    assert round_trip(Segments((2, 3), [1, 2], LabelMap(labels)), tmp_path / "labels").geometry is not None


def test_what_leaves_the_image_is_written_so_that_it_can_be_read(tmp_path: Path) -> None:
    size = (20, 30)
    outside = Polygon(np.array([[-5.0, 3], [10, 3], [10, 15], [-5, 15]]))
    short = Polygon(np.array([[1.0, 1], [5, 5]]))
    segments = Segments.from_polygons(size, [[outside], [Polygon(SQUARE)], [], [short]], [1, 1, 2, 2])
    found = round_trip(segments, tmp_path / "polygons")
    assert found.boxes()[0].tolist() == [0, 3, 10, 15]
    boxes = [[-3, -4, 31, 20.5], [-0.5, 0, 30.5, 20], [35, 3, 40, 4]]
    found = round_trip(Segments(size, [1, 1, 2], box=boxes), tmp_path / "boxes")
    assert found.boxes().tolist() == [[0, 0, 30, 20], [-0.5, 0, 30.5, 20], [30, 3, 30, 4]]
    scored = Segments(size, [1, 1, 2], box=boxes, score=[0.1, 0.2, 0.3])
    assert round_trip(scored, tmp_path / "scored").boxes().tolist() == boxes


def test_conversion_twice_changes_nothing(tmp_path: Path) -> None:
    content = many(random.Random(6), 200)
    for entry in content["annotations"]:
        entry["area"] = 1.5
    first = open_dataset(save(tmp_path, content))
    write_dataset(first, tmp_path / "once", "coco")
    second = open_dataset(tmp_path / "once")
    for before, after in zip(first, second, strict=True):
        one, other = before.segments, after.segments
        assert one is not None and other is not None and type(one.geometry) is type(other.geometry)
        if one.geometry is not None:
            np.testing.assert_array_equal(one.masks(), other.masks())
    write_dataset(second, tmp_path / "twice", "coco")
    texts = [(tmp_path / name / "instances.json").read_text() for name in ("once", "twice")]
    assert texts[0] == texts[1]


# -- results -----------------------------------------------------------------------------------------------------------


def test_results_of_the_coco_api(shared_data: Path, tmp_path: Path) -> None:
    for kind in ("segm", "bbox"):
        path = shared_data / f"coco/cocoapi_results/instances_val2014_fake{kind}100_results.json"
        entries = json.loads(path.read_text())
        sizes = {entry["image_id"]: entry.get("segmentation", {"size": [640, 640]})["size"] for entry in entries}
        content = {
            "images": [
                {"id": each, "file_name": f"{each}.jpg", "height": height, "width": width}
                for each, (height, width) in sizes.items()
            ],
            "categories": [{"id": i, "name": str(i)} for i in range(1, 91)],
            "annotations": [],
        }
        (tmp_path / "truth.json").write_text(json.dumps(content))
        dataset = open_dataset(tmp_path / "truth.json", missing_images="keep")
        results = open_predictions(path, dataset)
        assert results is not None and len(results) == len(sizes)
        for sample in dataset:
            wanted = [each for each in entries if each["image_id"] == sample.extra["image_id"]]
            found = results[sample.name]
            assert found.score is not None
            assert found.score.tolist() == [each["score"] for each in wanted]
            assert found.category.tolist() == [each["category_id"] for each in wanted]
            if kind == "segm":
                runs = found.rles()
                counts = [each["segmentation"]["counts"].encode() for each in wanted]
                assert rle.to_strings(runs.counts, runs.offsets) == counts
            else:
                np.testing.assert_allclose(
                    found.boxes(), [[x, y, x + w, y + h] for x, y, w, h in (each["bbox"] for each in wanted)]
                )


def test_results_for_images_named_by_text(tmp_path: Path) -> None:
    def sample(name: str) -> Sample:
        return Sample(name, lambda: np.zeros((9, 9, 1), np.uint8), lambda: Segments.empty((9, 9)))

    names = ["well_A", "plate 2/ö", "17", "x/18"]
    dataset = Dataset.of([sample(name) for name in names], Categories(["cell"]), frozenset({Task.INSTANCE}))
    segments = Segments.from_masks(np.random.default_rng(1).random((3, 9, 9)) > 0.5, score=[0.1, 0.2, 0.3])
    coco.write_predictions(tmp_path / "r.json", dict.fromkeys(names, segments), coco.image_ids(dataset))
    assert coco.recognise_predictions(tmp_path / "r.json")
    back = coco.read_predictions(tmp_path / "r.json", dataset)
    for name in names:
        np.testing.assert_array_equal(back[name].masks(), segments.masks())
    (tmp_path / "r.json").write_text((tmp_path / "r.json").read_text().replace("well_A", "well_B"))
    with pytest.raises(InputError, match=r"\$\[0\] is for image 'well_B', which the data set does not have"):
        coco.read_predictions(tmp_path / "r.json", dataset)
    # Names that end in the same number share an id where the data set gives none.
    dataset = Dataset.of([sample("a/17"), sample("b/17")], dataset.categories, dataset.tasks)
    coco.write_predictions(tmp_path / "r.json", {"a/17": segments}, coco.image_ids(dataset))
    with pytest.raises(InputError, match=r"\$\[0\] is for image 17, which is the id of several images of the data set"):
        coco.read_predictions(tmp_path / "r.json", dataset)
