"""COCO instances and results: against pycocotools, round trips, real files, and what is said about mistakes."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from everymask.errors import InputError
from everymask.formats import coco, open_dataset, write_dataset
from everymask.formats.images import write_image
from everymask.ops import json_outlines, rle
from everymask.types import Categories, Category, Dataset, LabelMap, Masks, Polygon, Polygons, Sample, Segments, Task

mask_api = pytest.importorskip("pycocotools.mask")
random = np.random.default_rng(11)


def load(path: Path) -> Any:
    """The official API on a file, without its prints."""
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def example() -> dict[str, Any]:
    """A file with every form of annotation; images of 20 x 30 (height x width)."""
    crowd = np.zeros((20, 30), np.uint8)
    crowd[3:9, 4:20] = 1
    compressed = mask_api.encode(np.asfortranarray(crowd))
    runs = [4 * 20 + 3] + [6, 14] * 15 + [6, 600 - 4 * 20 - 3 - 15 * 20 - 6]
    return {
        "info": {"description": "made by hand"},
        "licenses": [{"id": 4, "name": "CC BY", "url": "http://example.org"}],
        "images": [
            {"id": 7, "file_name": "a.png", "width": 30, "height": 20, "license": 4, "coco_url": "http://x"},
            {"id": 3, "file_name": "sub/b.png", "width": 30, "height": 20},
            {"id": 9, "file_name": "c.png", "width": 30, "height": 20},
        ],
        "annotations": [
            {
                "id": 100,
                "image_id": 7,
                "category_id": 90,
                "bbox": [2.1, 3.2, 10.3, 9.4],
                "area": 55.5,
                "iscrowd": 0,
                "segmentation": [[2.1, 3.2, 12.4, 3.2, 12.4, 12.6], [20, 1, 25, 1, 25, 5, 20, 5]],
                "attributes": {"occluded": True, "who": "me"},
            },
            {
                "id": 50,
                "image_id": 3,
                "category_id": 2,
                "bbox": [4, 3, 16, 6],
                "area": 96,
                "iscrowd": 1,
                "segmentation": {"size": [20, 30], "counts": runs},
            },
            {
                "id": 51,
                "image_id": 3,
                "category_id": 2,
                "bbox": [4, 3, 16, 6],
                "area": 96,
                "iscrowd": 0,
                "segmentation": {"size": [20, 30], "counts": compressed["counts"].decode()},
            },
            {
                "id": 52,
                "image_id": 3,
                "category_id": 90,
                "bbox": [0, 0, 9, 9],
                "iscrowd": 0,
                "segmentation": [[0, 0, 9, 0, 9, 9.5, 0, 9.5]],
            },
            {"id": 53, "image_id": 3, "category_id": 90, "bbox": [1, 1, 2, 2], "iscrowd": 0},
        ],
        "categories": [
            {"id": 90, "name": "toothbrush", "supercategory": "indoor"},
            {"id": 2, "name": "sky", "isthing": 0, "color": [1, 2, 3]},
        ],
    }


def make(folder: Path, content: dict[str, Any], name: str = "instances.json", images: str = "") -> Path:
    for image in content["images"]:
        with contextlib.suppress(KeyError, InputError):
            pixels = random.integers(0, 256, (20, 30, 3), dtype=np.uint8)
            write_image(folder / images / image["file_name"], pixels)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))
    return folder / name


# -- reading -----------------------------------------------------------------------------------------------------------


def test_every_form_of_annotation(tmp_path: Path) -> None:
    path = make(tmp_path, example())
    dataset = open_dataset(path)
    assert dataset.format == "coco"
    assert dataset.tasks == {Task.DETECTION, Task.INSTANCE}
    assert dataset.categories == Categories(
        [
            Category(90, "toothbrush", supercategory="indoor"),
            Category(2, "sky", is_thing=False, colour=(1, 2, 3)),
        ]
    )
    assert [sample.name for sample in dataset] == ["a", "sub/b", "c"]
    outlined, mixed, empty = (sample.segments for sample in dataset)
    assert outlined is not None and mixed is not None and empty is not None
    assert isinstance(outlined.geometry, Polygons)
    assert [len(parts) for parts in outlined.geometry.parts] == [2]
    assert outlined.boxes().tolist() == [[2.1, 3.2, 2.1 + 10.3, 3.2 + 9.4]]
    assert outlined.attributes["id"].tolist() == [100]
    assert outlined.attributes["area"].tolist() == [55.5]
    assert outlined.attributes["occluded"].tolist() == [True]
    assert isinstance(mixed.geometry, Masks)
    assert mixed.crowd.tolist() == [True, False, False, False]
    assert mixed.category.tolist() == [2, 2, 90, 90]
    assert np.isnan(mixed.attributes["area"][2])
    official = load(path)
    for position, identifier in enumerate([50, 51, 52]):
        np.testing.assert_array_equal(mixed.masks()[position], official.annToMask(official.anns[identifier]))
    assert not mixed.masks()[3].any()
    assert len(empty) == 0
    assert empty.boxes().shape == (0, 4)
    assert dataset[0].extra == {
        "license": 4,
        "coco_url": "http://x",
        "image_id": 7,
        "license_entry": {"id": 4, "name": "CC BY", "url": "http://example.org"},
    }
    assert dataset[0].image.shape == (20, 30, 3)


def test_boxes_only(tmp_path: Path) -> None:
    content = example()
    for annotation in content["annotations"]:
        annotation["segmentation"] = []
    dataset = open_dataset(make(tmp_path, content))
    assert dataset.tasks == {Task.DETECTION}
    segments = dataset[1].segments
    assert segments is not None and segments.geometry is None
    assert segments.boxes()[3].tolist() == [1, 1, 3, 3]


def test_a_missing_box_is_that_of_the_outline(tmp_path: Path) -> None:
    content = example()
    for annotation in content["annotations"]:
        annotation.pop("bbox")
    segments = open_dataset(make(tmp_path, content))[1].segments
    assert segments is not None
    assert segments.boxes()[0].tolist() == [4, 3, 20, 9]


@pytest.mark.parametrize(
    ("json_name", "images"),
    [
        ("x.json", ""),
        ("x.json", "images"),
        ("instances_train2017.json", "train2017"),
        ("annotations/instances_train2017.json", "train2017"),
        ("annotations/instances_train2017.json", "images/train2017"),
        ("annotations/instances_train2017.json", "images/train"),
        ("annotations/x.json", ""),
        ("annotations/x.json", "images"),
        ("valid/_annotations.coco.json", "valid"),
    ],
)
def test_where_images_are_looked_for(tmp_path: Path, json_name: str, images: str) -> None:
    make(tmp_path, example(), json_name, images)
    dataset = open_dataset(tmp_path)
    assert [sample.path for sample in dataset] == [tmp_path / images / f"{name}.png" for name in ("a", "sub/b", "c")]


def test_opening_decodes_no_outline_and_reads_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path, example())
    monkeypatch.setattr(coco, "read_image", lambda path: pytest.fail(f"read {path}"))
    decoded = []
    for name in ("read_polygons", "read_runs"):
        original = getattr(json_outlines, name)
        monkeypatch.setattr(json_outlines, name, lambda *each, n=name, f=original: decoded.append(n) or f(*each))
    dataset = open_dataset(path)
    sample = dataset[1]
    assert decoded == []
    assert sample.segments is not None
    assert set(decoded) == {"read_polygons", "read_runs"}


def test_which_of_several_files(tmp_path: Path) -> None:
    for part in ("train", "val"):
        make(tmp_path, example(), f"annotations/instances_{part}2017.json", f"{part}2017")
        make(tmp_path, example(), f"annotations/person_keypoints_{part}2017.json", f"{part}2017")
    (tmp_path / "annotations/captions.json").write_text('{"images": [], "annotations": []}')
    for split in ("val", "val2017"):
        assert open_dataset(tmp_path, split=split).root == tmp_path / "annotations/instances_val2017.json"
    with pytest.raises(InputError, match="no JSON of COCO instances for the part 'test'"):
        open_dataset(tmp_path, split="test")
    with pytest.raises(InputError, match="is a single file and has no part 'val'"):
        open_dataset(tmp_path / "annotations/instances_val2017.json", split="val")
    both = open_dataset(tmp_path)
    names = [f"{part}/{name}" for part in ("train2017", "val2017") for name in ("a", "sub/b", "c")]
    assert [sample.name for sample in both] == names
    assert [sample.extra["split"] for sample in both] == ["train2017"] * 3 + ["val2017"] * 3
    assert [len(sample.segments or ()) for sample in both] == [1, 4, 0] * 2


def test_files_that_are_no_parts_of_one_data_set(tmp_path: Path) -> None:
    make(tmp_path, example(), "first.json")
    make(tmp_path, example(), "second.json")
    with pytest.raises(InputError, match=r"holds several JSON files of COCO instances \(first.json, second.json\)"):
        open_dataset(tmp_path)


def test_folders_of_parts(tmp_path: Path) -> None:
    for part in ("train", "valid", "test"):
        make(tmp_path / part, example(), "_annotations.coco.json")
    opened = open_dataset(tmp_path)
    assert [sample.name for sample in opened][::3] == ["test/a", "train/a", "valid/a"]
    assert all(sample.image.shape == (20, 30, 3) for sample in opened)
    assert len(open_dataset(tmp_path, split="valid")) == 3


def test_names_that_differ_in_the_suffix_only(tmp_path: Path) -> None:
    content = example()
    content["images"][2]["file_name"] = "a.jpg"
    assert [sample.name for sample in open_dataset(make(tmp_path, content))] == ["a.png", "sub/b", "a.jpg"]


# -- mistakes ----------------------------------------------------------------------------------------------------------

Change = Callable[[dict[str, Any]], Any]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["images"][1].pop("height"), r"missing required field `height` - at `\$\.images\[1\]`"),
        (lambda c: c["images"][0].update(width=0), r"Expected `int` >= 1 - at `\$\.images\[0\]\.width`"),
        (lambda c: c["images"][2].update(id="x"), r"Expected `int`, got `str` - at `\$\.images\[2\]\.id`"),
        (lambda c: c["annotations"][4].update(bbox=[1, 2, 3]), r"of length 4 - at `\$\.annotations\[4\]\.bbox`"),
        (lambda c: c["annotations"][0].pop("category_id"), r"missing required field `category_id`"),
        (lambda c: c.pop("categories"), "missing required field `categories`"),
        (lambda c: c["annotations"][0].update(image_id=8), "annotation 100 belongs to image 8, which is not among"),
        (lambda c: c["annotations"][1].update(category_id=5), r"annotation 50 has category 5, .* \(2, 90\)"),
        (lambda c: c["annotations"][1].update(id=100), "annotation id 100 is there twice"),
        (lambda c: c["images"][1].update(id=7), "image id 7 is there twice"),
        (lambda c: c["categories"][1].update(id=90), r"category ids must be unique"),
        (
            lambda c: c["images"][0].update(file_name="../a.png"),
            r"image 7: '\.\./a\.png' is no path below the data set",
        ),
        (lambda c: c["images"][0].update(file_name="/etc/passwd"), "image 7: '/etc/passwd' is no path below"),
        (lambda c: c["images"][0].update(file_name="C:/a.png"), "image 7: 'C:/a.png' is no path below"),
        (lambda c: c["images"][0].update(file_name="x\\a.png"), "is no path below the data set; expected a relative"),
    ],
)
def test_mistakes_found_when_opening(tmp_path: Path, change: Change, message: str) -> None:
    content = example()
    change(content)
    # Written without images, lest the bad names are: names and ids are checked before images are looked for.
    (tmp_path / "instances.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=message) as caught:
        open_dataset(tmp_path / "instances.json", "coco")
    assert str(tmp_path / "instances.json") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "change", "message"),
    [
        (
            0,
            {"segmentation": [[1, 1, 5, 1, 5, 22.5]]},
            r"polygon reaches from \(1, 1\) to \(5, 22\.5\), outside the image",
        ),
        (0, {"segmentation": [[-1.5, 1, 5, 1, 5, 5]]}, r"polygon reaches from \(-1\.5, 1\)"),
        (0, {"segmentation": [[1, 1, 5, 1, 5]]}, "a polygon has 5 numbers; expected x, y of at least three points"),
        (0, {"segmentation": [[1, 1, 5, 1]]}, "a polygon has 4 numbers"),
        (
            0,
            {"segmentation": {"size": [30, 20], "counts": [600]}},
            r"RLE has the size \[30, 20\], but the image \[20, 30\]",
        ),
        (0, {"segmentation": {"size": [20, 30], "counts": [599]}}, "599"),
        (0, {"segmentation": {"size": [20, 30], "counts": "\u00e4"}}, "not a compressed RLE string"),
        (0, {"bbox": [1, 1, -5, 2]}, r"its bbox \[1\.0, 1\.0, -5\.0, 2\.0\] has a negative width or height"),
        (0, {"bbox": [1, 1, 50, 2]}, r"its bbox .* leaves the image of 30 x 20"),
    ],
)
def test_mistakes_found_when_reading(tmp_path: Path, row: int, change: dict[str, Any], message: str) -> None:
    content = example()
    content["annotations"][row].update(change)
    dataset = open_dataset(make(tmp_path, content))
    with pytest.raises(InputError, match=message) as caught:
        _ = dataset[0].segments
    assert "annotation 100 of a.png" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wrong_type_of_an_outline_has_its_place(tmp_path: Path) -> None:
    content = example()
    content["annotations"][0]["segmentation"] = [[1, 2, "x", 4, 5, 6]]
    dataset = open_dataset(make(tmp_path, content))
    with pytest.raises(
        InputError, match=r"Expected `float`, got `str` - at `\$\.annotations\[0\]\.segmentation\[0\]\[2\]`"
    ):
        _ = dataset[0].segments


def test_a_polygon_may_touch_the_border(tmp_path: Path) -> None:
    content = example()
    content["annotations"][0]["segmentation"] = [[-0.5, -0.5, 30.5, -0.5, 30.5, 20.5, -0.5, 20.5]]
    path = make(tmp_path, content)
    segments = open_dataset(path)[0].segments
    assert segments is not None
    official = load(path)
    np.testing.assert_array_equal(segments.masks()[0], official.annToMask(official.anns[100]))
    assert segments.masks().all()


def test_broken_files(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(example())[:300])
    with pytest.raises(InputError, match=r"x\.json is no valid JSON .*; export or copy the file again"):
        open_dataset(path, "coco")
    path.write_text("[" * 100_000)
    with pytest.raises(InputError, match=r"x\.json"):
        open_dataset(path, "coco")
    path.write_bytes(b"\xff\xfe\x00{}")
    with pytest.raises(InputError, match=r"x\.json is no valid JSON"):
        open_dataset(path, "coco")


def test_missing_images(tmp_path: Path) -> None:
    path = make(tmp_path, example())
    (tmp_path / "sub/b.png").unlink()
    with pytest.raises(
        InputError, match=r"1 of 3 images are missing in .*: sub/b\.png; add them, or say --skip-missing"
    ):
        open_dataset(path)
    dataset = open_dataset(path, missing_images="keep")
    assert len(dataset[1].segments or ()) == 4
    with pytest.raises(InputError, match=r"sub/b\.png does not exist"):
        _ = dataset[1].image
    (tmp_path / "a.png").unlink()
    (tmp_path / "c.png").unlink()
    with pytest.raises(
        InputError, match=r"none of its images is found, the first is a\.png; looked in .*option images"
    ):
        open_dataset(path)
    assert len(open_dataset(path, missing_images="skip")) == 0
    with pytest.raises(InputError, match="missing_images must be one of error, keep, skip, got 'all'"):
        open_dataset(path, missing_images="all")


def test_missing_images_are_left_out(tmp_path: Path) -> None:
    path = make(tmp_path, example())
    (tmp_path / "a.png").unlink()
    dataset = open_dataset(path, missing_images="skip")
    assert [sample.name for sample in dataset] == ["sub/b", "c"]
    assert [len(sample.segments or ()) for sample in dataset] == [4, 0]
    assert [sample.extra["image_id"] for sample in dataset] == [3, 9]
    assert dataset[0].image.shape == (20, 30, 3)


def test_an_image_of_another_size(tmp_path: Path) -> None:
    path = make(tmp_path, example())
    write_image(tmp_path / "a.png", np.zeros((30, 20, 3), np.uint8))
    with pytest.raises(InputError, match=r"a\.png has size 30 x 20, but .*instances\.json says 20 x 30"):
        _ = open_dataset(path)[0].image


# -- writing -----------------------------------------------------------------------------------------------------------


def same(a: Segments | None, b: Segments | None) -> None:
    """Asserts that two sets of segments agree in everything."""
    assert a is not None and b is not None
    assert a.size == b.size
    np.testing.assert_array_equal(a.category, b.category)
    np.testing.assert_array_equal(a.boxes(), b.boxes())
    np.testing.assert_array_equal(a.crowd, b.crowd)
    assert type(a.geometry) is type(b.geometry)
    if isinstance(a.geometry, Polygons) and isinstance(b.geometry, Polygons):
        for ours, theirs in zip(a.geometry.parts, b.geometry.parts, strict=True):
            for one, other in zip(ours, theirs, strict=True):
                np.testing.assert_array_equal(one.exterior, other.exterior)
    if isinstance(a.geometry, Masks) and isinstance(b.geometry, Masks):
        np.testing.assert_array_equal(a.geometry.counts, b.geometry.counts)
        np.testing.assert_array_equal(a.geometry.offsets, b.geometry.offsets)
    assert set(a.attributes) == set(b.attributes)
    for name, values in a.attributes.items():
        np.testing.assert_array_equal(values, b.attributes[name])


def test_round_trip_of_every_form(tmp_path: Path) -> None:
    content = example()
    for annotation in content["annotations"]:
        annotation.setdefault("area", 12.5)
    dataset = open_dataset(make(tmp_path / "in", content))
    write_dataset(dataset, tmp_path / "out", "coco")
    back = open_dataset(tmp_path / "out")
    assert back.categories == dataset.categories
    for ours, theirs in zip(dataset, back, strict=True):
        assert (ours.name, ours.extra) == (theirs.name, theirs.extra)
        np.testing.assert_array_equal(ours.image, theirs.image)
        same(ours.segments, theirs.segments)
    # What was a polygon, a list of runs for a crowd, or a string, is so again, number by number.
    written = {each["id"]: each for each in json.loads((tmp_path / "out/instances.json").read_text())["annotations"]}
    before = {each["id"]: each for each in content["annotations"]}
    for identifier in (100, 50, 51):
        assert written[identifier] == before[identifier]
    assert json.loads((tmp_path / "out/instances.json").read_text())["licenses"] == content["licenses"]


def test_pycocotools_reads_what_is_written(tmp_path: Path) -> None:
    height, width = 40, 50
    masks = random.random((3, height, width)) > 0.5
    labels = random.integers(-1, 6, (height, width)).astype(np.int32)
    hole = Polygon(np.array([[5.0, 5], [30, 5], [30, 30], [5, 30]]), (np.array([[10.0, 10], [20, 10], [20, 20]]),))
    plain = Polygon(np.array([[1.25, 2], [33.3, 4], [20, 39.9]]))
    kinds = {
        "masks": Segments.from_masks(masks, [1, 2, 1], crowd=[False, True, False]),
        "labels": Segments((height, width), [1, 2, 1, 2, 1], LabelMap(labels)),
        "polygons": Segments.from_polygons((height, width), [[hole], [plain], [plain, hole]], [2, 1, 1]),
        "boxes": Segments((height, width), [1, 2], box=[[1, 2, 3, 4], [0.1, 0.2, 0.4, 0.7]]),
        "nothing": Segments.empty((height, width)),
    }
    image = np.zeros((height, width, 1), np.uint16)
    samples = [Sample(name, lambda: image, lambda s=segments: s) for name, segments in kinds.items()]
    samples.append(Sample("unannotated", lambda: image))
    dataset = Dataset.of(samples, Categories(["cat", "dog"]), frozenset({Task.INSTANCE}))
    write_dataset(dataset, tmp_path / "out", "coco")
    official = load(tmp_path / "out/instances.json")
    assert sorted(official.anns) == list(range(1, 14))
    ids = {image["file_name"]: image["id"] for image in official.dataset["images"]}
    assert set(ids) == {f"{name}.png" for name in [*kinds, "unannotated"]}
    for name, segments in kinds.items():
        annotations = official.loadAnns(official.getAnnIds(ids[f"{name}.png"]))
        assert [each["category_id"] for each in annotations] == segments.category.tolist()
        if not len(segments):
            continue
        boxes = np.array([each["bbox"] for each in annotations])
        boxes[:, 2:] += boxes[:, :2]
        np.testing.assert_array_equal(boxes, segments.boxes())
        if name != "boxes":
            np.testing.assert_array_equal([official.annToMask(each) for each in annotations], segments.masks())
            np.testing.assert_array_equal([each["area"] for each in annotations], segments.masks().sum(axis=(1, 2)))
    assert [bool(each["iscrowd"]) for each in official.loadAnns(official.getAnnIds(ids["masks.png"]))] == [
        False,
        True,
        False,
    ]


def test_ids_stay_unique(tmp_path: Path) -> None:
    def sample(name: str, ids: list[int] | None, **extra: int) -> Sample:
        boxes = np.tile([0.0, 0, 2, 2], (2, 1))
        segments = Segments((4, 4), [1, 1], box=boxes, attributes={} if ids is None else {"id": ids})
        return Sample(name, lambda: np.zeros((4, 4, 3), np.uint8), lambda: segments, None, dict(extra))

    samples = [sample("a", None), sample("b", [5, 2], image_id=1), sample("c", [5, 6], image_id=1), sample("d", None)]
    dataset = Dataset.of(samples, Categories(["x"]), frozenset({Task.DETECTION}))
    write_dataset(dataset, tmp_path / "out", "coco")
    content = json.loads((tmp_path / "out/instances.json").read_text())
    assert [each["id"] for each in content["images"]] == [2, 1, 3, 4]
    ids = [each["id"] for each in content["annotations"]]
    assert ids == [1, 2, 5, 6, 7, 8, 9, 10]
    assert len(open_dataset(tmp_path / "out")) == 4


def test_volumes_and_tags_are_refused(tmp_path: Path) -> None:
    volume = Segments.from_label_map(random.integers(0, 3, (3, 4, 5)))
    sample = Sample("v", lambda: np.zeros((3, 4, 5, 1), np.uint8), lambda: volume)
    with pytest.raises(InputError, match=r"v is a volume of .*, which COCO cannot hold; write label_images instead"):
        write_dataset(Dataset.of([sample], Categories(["x"]), frozenset({Task.INSTANCE})), tmp_path / "a", "coco")
    tags = Segments((4, 4), [1])
    sample = Sample("t", lambda: np.zeros((4, 4, 3), np.uint8), lambda: tags)
    with pytest.raises(InputError, match="t has tags of the whole image"):
        write_dataset(Dataset.of([sample], Categories(["x"]), frozenset({Task.CLASSIFICATION})), tmp_path / "b", "coco")
    assert list(tmp_path.iterdir()) == []


# -- results -----------------------------------------------------------------------------------------------------------


def test_results_go_through_the_official_api(tmp_path: Path) -> None:
    path = make(tmp_path, example())
    dataset = open_dataset(path)
    masks = random.random((4, 20, 30)) > 0.7
    predictions = {
        "a": Segments.from_masks(masks, [90, 2, 2, 90], score=[0.5, 0.25, 0.125, 1.0]),
        "sub/b": dataset[1].segments[[0, 2]].with_category([2, 90]) if dataset[1].segments else None,
        "c": Segments.empty((20, 30)),
    }
    assert predictions["sub/b"] is not None
    crowd = predictions["sub/b"]
    predictions["sub/b"] = Segments(crowd.size, crowd.category, crowd.geometry, score=[0.1, 0.2], crowd=[True, False])
    coco.write_predictions(tmp_path / "results.json", predictions, coco.image_ids(dataset))  # type: ignore[arg-type]
    official = load(path)
    with contextlib.redirect_stdout(io.StringIO()):
        results = official.loadRes(str(tmp_path / "results.json"))
    np.testing.assert_array_equal([results.annToMask(each) for each in results.imgToAnns[7]], masks)
    back = coco.read_predictions(tmp_path / "results.json", dataset)
    assert list(back) == ["a", "sub/b", "c"]
    for name, segments in predictions.items():
        assert segments is not None
        assert back[name].size == (20, 30)
        np.testing.assert_array_equal(back[name].masks(), segments.masks())
        np.testing.assert_array_equal(back[name].boxes(), segments.boxes())
        np.testing.assert_array_equal(back[name].score, segments.score if len(segments) else [])


def test_results_of_boxes_only_and_ids_from_names(tmp_path: Path) -> None:
    boxes = Segments((20, 30), [90, 2], box=[[0.1, 0.2, 0.4, 31.5], [1, 2, 3, 4]], score=[0.3, 0.7])
    coco.write_predictions(tmp_path / "r.json", iter([("000000000139", boxes), ("x/17", boxes), ("well_A", boxes)]))
    entries = json.loads((tmp_path / "r.json").read_text())
    assert [each["image_id"] for each in entries] == [139, 139, 17, 17, "well_A", "well_A"]
    assert entries[1] == {"image_id": 139, "category_id": 2, "bbox": [1, 2, 2, 2], "score": 0.7}
    content = example()
    content["images"][0].update(id=139)
    content["annotations"] = []
    dataset = open_dataset(make(tmp_path, content))
    (tmp_path / "r.json").write_text(json.dumps(entries[:2]))
    back = coco.read_predictions(tmp_path / "r.json", dataset)["a"]
    assert back.geometry is None
    np.testing.assert_array_equal(back.boxes(), boxes.boxes())
    coco.write_predictions(tmp_path / "empty.json", {})
    assert json.loads((tmp_path / "empty.json").read_text()) == []


def test_results_with_mistakes(tmp_path: Path) -> None:
    dataset = open_dataset(make(tmp_path, example()))
    good = {"image_id": 7, "category_id": 90, "score": 0.5, "bbox": [1, 1, 2, 2]}

    def message(**change: Any) -> str:
        entry = {key: value for key, value in {**good, **change}.items() if value is not None}
        (tmp_path / "r.json").write_text(json.dumps([entry]))
        with pytest.raises(InputError) as caught:
            _ = coco.read_predictions(tmp_path / "r.json", dataset)["a"]
        return str(caught.value)

    assert "$[0] is for image 8, which the data set does not have" in message(image_id=8)
    assert "$[0] has category 3, which the data set does not have; known ids: 2, 90" in message(category_id=3)
    assert "missing required field `score` - at `$[0]`" in message(score=None)
    assert "neither bbox nor segmentation" in message(bbox=None)
    assert "RLE has the size [4, 4]" in message(segmentation={"size": [4, 4], "counts": [16]})
    with pytest.raises(InputError, match=r"nowhere\.json does not exist"):
        coco.read_predictions(tmp_path / "nowhere.json", dataset)
    with pytest.raises(InputError, match="segments of 'a' have no scores"):
        coco.write_predictions(tmp_path / "w.json", {"a": Segments((4, 4), [1], box=[[0, 0, 1, 1]])})
    with pytest.raises(InputError, match="no image id for 'z'"):
        coco.write_predictions(tmp_path / "w.json", {"z": Segments.empty((4, 4))}, coco.image_ids(dataset))
    assert not (tmp_path / "w.json").exists()


# -- real sets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "val"])
def test_coco_2017(shared_data: Path, tmp_path: Path, split: str) -> None:
    folder = shared_data / "coco/tiny160"
    dataset = open_dataset(folder, split=split)
    official = load(folder / f"annotations/instances_{split}2017.json")
    assert len(dataset) == len(dataset.categories) == 80
    for sample in dataset:
        segments = sample.segments
        assert segments is not None
        annotations = official.loadAnns(official.getAnnIds(sample.extra["image_id"]))
        assert segments.attributes["id"].tolist() == [each["id"] for each in annotations]
        runs = segments.rles()
        assert rle.to_strings(runs.counts, runs.offsets) == [official.annToRLE(each)["counts"] for each in annotations]
    write_dataset(dataset, tmp_path / "out", "coco", link_images=True)
    written = load(tmp_path / "out/instances.json")
    assert {key: each["bbox"] for key, each in written.anns.items()} == {k: a["bbox"] for k, a in official.anns.items()}
    for identifier, annotation in official.anns.items():
        theirs, ours = annotation["segmentation"], written.anns[identifier]["segmentation"]
        if isinstance(ours, list) or annotation["iscrowd"]:
            assert ours == theirs
        else:
            # A crowd in the same image made run-length masks of all.
            assert ours["counts"].encode() == official.annToRLE(annotation)["counts"]
    for ours, theirs in zip(open_dataset(tmp_path / "out"), dataset, strict=True):
        assert (ours.name, ours.extra) == (theirs.name, theirs.extra)
        same(ours.segments, theirs.segments)


def test_other_sets(shared_data: Path) -> None:
    fruits = open_dataset(shared_data / "detection/fruits_nuts/data")
    assert fruits.categories.names == ["date", "fig", "hazelnut"]
    assert sum(len(sample.segments or ()) for sample in fruits) == 165
    assert all(sample.image.shape[2] == 3 for sample in fruits)
    older = open_dataset(shared_data / "detection/voc100/gts/coco_format_v1")
    newer = open_dataset(shared_data / "detection/voc100/gts/coco_format_v2")
    assert len(older) == len(newer) == 100
    assert {sample.path.parent for sample in newer if sample.path} == {shared_data / "detection/voc100/images"}
    boxes = {sample.name: sample.segments for sample in newer}
    for sample in older:
        truth = boxes[sample.name]
        assert sample.segments is not None and truth is not None
        assert len(sample.segments) == len(truth)
    whole = open_dataset(shared_data / "coco/tiny160")
    assert len(whole) == 160
    assert sorted({sample.extra["split"] for sample in whole}) == ["train2017", "val2017"]
    assert all(sample.path and sample.path.is_file() for sample in whole)


def test_panoptic_and_results_are_not_instances(shared_data: Path) -> None:
    folder = shared_data / "coco"
    assert not coco.recognise(folder / "panoptic2/panoptic_examples.json")
    assert not coco.recognise(folder / "cocoapi_results/instances_val2014_fakesegm100_results.json")
    assert coco.recognise(folder / "tiny160/annotations/instances_val2017.json")
    assert coco.recognise(folder / "tiny160")
    for kind in ("bbox", "segm"):
        assert coco.recognise_predictions(folder / f"cocoapi_results/instances_val2014_fake{kind}100_results.json")
    assert not coco.recognise_predictions(folder / "tiny160/annotations/instances_val2017.json")
    assert not coco.recognise_predictions(folder / "panoptic2/panoptic_examples.json")
    assert not coco.recognise_predictions(folder)
    assert not coco.recognise(folder / "nowhere")
