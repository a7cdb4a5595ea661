"""COCO panoptic: real files, round trips in both forms, results of programs, and bad input."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from everymask.errors import InputError
from everymask.formats import open_dataset, open_predictions, write_dataset
from everymask.metrics.panoptic import PanopticMetric
from everymask.types import Categories, Category, Dataset, LabelMap, Sample, Segments, Task

CATEGORIES = Categories(
    [
        Category(3, "car", True, (10, 20, 30), "vehicle"),
        Category(200, "sky", False, (70, 130, 180), "outdoor"),
        Category(17, "cat", True, None, None),
    ]
)


def make_dataset(seed: int, *, own_ids: bool) -> Dataset:
    """Five images with void, crowds, hidden segments, attributes; one is not annotated, one has no segment."""
    generator = np.random.default_rng(seed)
    samples = []
    for number in range(5):
        size = (int(generator.integers(4, 30)), int(generator.integers(4, 30)))
        count = 0 if number == 3 else int(generator.integers(1, 12))
        ids = np.kron(generator.integers(-1, count + 1, (8, 8)), np.ones((4, 4), np.int64))[: size[0], : size[1]]
        # Background is void in this format, so there is none here.
        ids = np.where(ids == 0, -1, ids)
        columns: dict[str, Any] = {}
        crowd = np.zeros(count, bool)
        if own_ids:
            columns["attributes"] = {
                "id": generator.choice(2**24 - 1, count, replace=False) + 1,
                "area": generator.integers(0, 90, count),
                "seen by": np.array([f"é{i}" for i in range(count)]),
                "notes": np.array([{"deep": [i]} for i in range(count)], object),
            }
            columns["score"] = generator.random(count)
            corner = generator.random((count, 2)) * 3
            columns["box"] = np.concatenate([corner, corner + generator.random((count, 2))], axis=1)
        category = generator.choice(CATEGORIES.ids, count)
        crowd[:1] = True
        segments = Segments(size, category, LabelMap(ids), crowd=crowd, **columns)
        image = generator.integers(0, 256, (*size, 3)).astype(np.uint8)
        extra = {"image_id": ["a", 7, 12, "z", 5][number], "camera": {"name": "left"}} if own_ids else {}
        reader = None if number == 2 else (lambda segments=segments: segments)
        name = ["street/001", "street/002", "ö", "park/001", "x.y"][number]
        samples.append(Sample(name, lambda image=image: image, reader, extra=extra))
    return Dataset.of(samples, CATEGORIES, frozenset({Task.PANOPTIC}))


def assert_same(a: Dataset, b: Dataset, *, attributes: bool = True) -> None:
    assert len(a) == len(b)
    assert list(a.categories) == list(b.categories)
    for one, two in zip(a, b, strict=True):
        assert one.name == two.name
        assert np.array_equal(one.image, two.image)
        assert (one.segments is None) == (two.segments is None)
        if one.segments is None or two.segments is None:
            continue
        assert np.array_equal(one.segments.label_map(), two.segments.label_map())
        assert np.array_equal(one.segments.category, two.segments.category)
        assert np.array_equal(one.segments.crowd, two.segments.crowd)
        if attributes:
            assert one.extra == two.extra
            if len(one.segments):
                assert np.array_equal(one.segments.score, two.segments.score)  # type: ignore[arg-type]
                assert np.array_equal(one.segments.boxes(), two.segments.boxes())
                assert {key: column.tolist() for key, column in one.segments.attributes.items()} == {
                    key: column.tolist() for key, column in two.segments.attributes.items()
                }


@pytest.mark.parametrize("seed", range(6))
def test_round_trips_are_exact(seed: int, tmp_path: Path) -> None:
    dataset = make_dataset(seed, own_ids=True)
    write_dataset(dataset, tmp_path / "a", "coco_panoptic")
    once = open_dataset(tmp_path / "a")
    assert once.format == "coco_panoptic"
    assert_same(dataset, once)
    write_dataset(once, tmp_path / "b", "coco_panoptic")
    assert_same(once, open_dataset(tmp_path / "b" / "panoptic.json"))
    for file in (tmp_path / "a").rglob("*.*"):
        if file.is_file():
            assert file.read_bytes() == (tmp_path / "b" / file.relative_to(tmp_path / "a")).read_bytes(), file
    plain = make_dataset(seed, own_ids=False)
    write_dataset(plain, tmp_path / "c", "coco_panoptic")
    assert_same(plain, open_dataset(tmp_path / "c"), attributes=False)
    metric = PanopticMetric(CATEGORIES)
    for sample in open_dataset(tmp_path / "c"):
        if sample.segments is not None:
            metric.update(sample.segments, sample.segments, sample.name)
    assert metric.compute()["sq"] == 1


@pytest.mark.parametrize("seed", range(4))
def test_the_two_channel_form_is_read_in_either_way(seed: int, tmp_path: Path) -> None:
    dataset = make_dataset(seed, own_ids=False)
    write_dataset(dataset, tmp_path / "a", "coco_panoptic", form="2ch")
    assert_same(dataset, open_dataset(tmp_path / "a"), attributes=False)
    bare = json.loads((tmp_path / "a/panoptic.json").read_text())
    annotated = {each["image_id"]: each["file_name"] for each in bare["annotations"]}
    bare["images"] = [each for each in bare["images"] if each["id"] in annotated]
    del bare["annotations"]
    (tmp_path / "a/bare.json").write_text(json.dumps(bare))
    again = open_dataset(tmp_path / "a/bare.json", "coco_panoptic", form="2ch", masks=tmp_path / "a/panoptic")
    by_name = {sample.name: sample.segments for sample in dataset}
    assert len(again) == 4
    for sample in again:
        two, one = sample.segments, by_name[sample.name]
        assert one is not None
        assert two is not None
        ids = two.attributes["id"]
        pixels = np.asarray(Image.open(tmp_path / "a/panoptic" / f"{sample.name}.png")).astype(int)
        assert np.array_equal(pixels[..., 0], two.semantic_map(void=0))
        assert np.array_equal(ids & 255, two.category)
        assert np.array_equal(two.crowd, ids >> 8 == 255)
        # The same partition of the image; segments without pixels are not in the PNG.
        present = np.unique(one.label_map()[one.label_map() > 0])
        assert len(two) == len(present)
        pairs = {
            (x, y) for x, y in zip(one.label_map().ravel().tolist(), two.label_map().ravel().tolist(), strict=True)
        }
        assert len({x for x, _ in pairs}) == len({y for _, y in pairs}) == len(pairs)


def test_real_files(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "coco/panoptic2"
    truth = json.loads((folder / "panoptic_examples.json").read_text())
    dataset = open_dataset(folder)
    assert dataset.format == open_dataset(folder / "panoptic_examples.json").format == "coco_panoptic"
    assert [sample.name for sample in dataset] == ["000000142238", "000000439180"]
    assert [each.id for each in dataset.categories] == [each["id"] for each in truth["categories"]]
    assert [each.is_thing for each in dataset.categories] == [bool(each["isthing"]) for each in truth["categories"]]
    assert [list(each.colour or ()) for each in dataset.categories] == [each["color"] for each in truth["categories"]]
    for sample, annotation, image in zip(dataset, truth["annotations"], truth["images"], strict=True):
        segments = sample.segments
        assert segments is not None
        assert sample.image.shape[:2] == segments.size == (image["height"], image["width"])
        assert sample.extra["flickr_url"] == image["flickr_url"]
        infos = annotation["segments_info"]
        assert segments.category.tolist() == [each["category_id"] for each in infos]
        assert segments.areas().tolist() == [each["area"] for each in infos]
        assert segments.crowd.tolist() == [bool(each["iscrowd"]) for each in infos]
        assert segments.attributes["id"].tolist() == [each["id"] for each in infos]
        boxes = segments.boxes().copy()
        boxes[:, 2:] -= boxes[:, :2]
        assert boxes.tolist() == [each["bbox"] for each in infos]
        tight = Segments(segments.size, segments.category, LabelMap(segments.label_map()))
        assert np.array_equal(tight.boxes(), segments.boxes())
        pixels = np.asarray(Image.open(folder / "panoptic_examples" / annotation["file_name"])).astype(int)
        colours = np.array([0, *(each["id"] for each in infos)])[np.maximum(segments.label_map(), 0)]
        assert np.array_equal(pixels @ [1, 256, 65536], colours)
        assert (segments.label_map() == -1).sum() == (colours == 0).sum()
    # The 2-channel files are recognised by their folder, and hold the same.
    channels = open_dataset(folder / "panoptic_examples.json", "coco_panoptic", form="2ch")
    for one, two in zip(dataset, channels, strict=True):
        a, b = one.segments, two.segments
        assert a is not None
        assert b is not None
        order = np.lexsort((a.crowd, a.category))
        assert b.category.tolist() == a.category[order].tolist()
        metric = PanopticMetric(dataset.categories)
        metric.update(a, b)
        metric.update(b, a)
        assert metric.compute()["pq"] == 1
    write_dataset(channels, tmp_path / "2ch", "coco_panoptic", form="2ch")
    for name in ("000000142238.png", "000000439180.png"):
        written = np.asarray(Image.open(tmp_path / "2ch/panoptic" / name))
        assert np.array_equal(written, np.asarray(Image.open(folder / "panoptic_examples_2ch_format" / name)))
    write_dataset(dataset, tmp_path / "ids", "coco_panoptic")
    again = json.loads((tmp_path / "ids/panoptic.json").read_text())
    for one, two in zip(truth["annotations"], again["annotations"], strict=True):
        assert one == two
    for one, two in zip(truth["images"], again["images"], strict=True):
        assert one == two
    assert [each for each in truth["licenses"] if each["id"] in {1, 2}] == sorted(
        again["licenses"], key=lambda x: x["id"]
    )


def test_parts_are_joined_and_a_split_is_chosen(tmp_path: Path) -> None:
    write_dataset(make_dataset(1, own_ids=True), tmp_path / "one", "coco_panoptic")
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    for part in ("train2017", "val2017"):
        shutil.copytree(tmp_path / "one/images", root / part)
        shutil.copytree(tmp_path / "one/panoptic", root / f"annotations/panoptic_{part}")
        shutil.copy(tmp_path / "one/panoptic.json", root / f"annotations/panoptic_{part}.json")
    both = open_dataset(root)
    assert len(both) == 10
    assert [sample.extra["split"] for sample in both] == ["train2017"] * 5 + ["val2017"] * 5
    assert both[0].name == "train2017/street/001"
    assert both[7].path == root.resolve() / "val2017/ö.png"
    assert len(open_dataset(root, split="val")) == 5
    with pytest.raises(InputError, match="holds no JSON of COCO panoptic for the part 'test'"):
        open_dataset(root, split="test")
    with pytest.raises(InputError, match="is a single file and has no part 'val'"):
        open_dataset(root / "annotations/panoptic_val2017.json", split="val")
    (root / "val2017/ö.png").unlink()
    with pytest.raises(InputError, match=r"1 of 5 images are missing in .*val2017: ö\.png"):
        open_dataset(root)
    assert len(open_dataset(root, missing_images="skip")) == 9
    assert len(open_dataset(root, missing_images="keep")) == 10
    # A folder with COCO's instances, too, is left to that format.
    (root / "annotations/instances_val2017.json").write_text('{"images": [], "annotations": [], "categories": []}')
    assert open_dataset(root, missing_images="keep").format != "coco_panoptic"


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A data set of two images of 4 x 6 pixels and results for it."""
    truth = tmp_path / "truth"
    ids = np.array([[5, 5, 5, 0, 9, 9]] * 4)
    images, annotations = [], []
    (truth / "panoptic").mkdir(parents=True)
    for number in (1, 2):
        Image.new("RGB", (6, 4)).save(truth / f"{number:03}.jpg")
        images.append({"id": number, "file_name": f"{number:03}.jpg", "width": 6, "height": 4})
        save(truth / f"panoptic/{number:03}.png", ids)
        infos = [{"id": 5, "category_id": 3}, {"id": 9, "category_id": 200}]
        annotations.append({"image_id": number, "file_name": f"{number:03}.png", "segments_info": infos})
    categories = [{"id": 3, "name": "car", "isthing": 1}, {"id": 200, "name": "sky", "isthing": 0}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (truth / "panoptic.json").write_text(json.dumps(content))
    shutil.copytree(truth / "panoptic", tmp_path / "results")
    (tmp_path / "results.json").write_text(json.dumps({"annotations": annotations}))
    return tmp_path


def save(path: Path, ids: np.ndarray) -> None:
    Image.fromarray((ids[..., None] >> np.array([0, 8, 16]) & 255).astype(np.uint8)).save(path)


def change(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def score(folder: Path) -> float:
    dataset = open_dataset(folder / "truth")
    predictions = open_predictions(folder / "results.json", dataset)
    assert predictions is not None
    metric = PanopticMetric(dataset.categories)
    for sample in dataset:
        assert sample.segments is not None
        metric.update(sample.segments, predictions[sample.name], sample.name)
    return metric.compute()["pq"]


def test_results_are_read(written: Path) -> None:
    assert score(written) == 1
    ids = np.array([[5, 0, 0, 70_000, 70_000, 70_000]] * 4)
    save(written / "results/001.png", ids)
    change(
        written / "results.json",
        lambda content: content["annotations"][0].update(
            segments_info=[
                {"id": 70_000, "category_id": 200, "score": 0.5, "made_by": "x"},
                {"id": 5, "category_id": 3},
            ]
        ),
    )
    # sky: one column of the prediction is void; car: 4 of 12 pixels, which is no match
    assert score(written) == pytest.approx((1 / (1 + 0.5 + 0.5) + 1) / 2)
    dataset = open_dataset(written / "truth")
    predictions = open_predictions(written / "results.json", dataset)
    assert predictions is not None
    assert set(predictions) == {"001", "002"}
    assert len(predictions) == 2
    assert predictions["001"].attributes["made_by"].tolist() == ["x", None]
    # beside the JSON, as other programs leave their PNG
    shutil.move(written / "results.json", written / "results/predictions.json")
    predictions = open_predictions(written / "results", dataset)
    assert predictions is not None
    assert len(predictions["002"]) == 2


def first(content: dict[str, Any]) -> dict[str, Any]:
    annotation: dict[str, Any] = content["annotations"][0]
    return annotation


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: first(c).update(image_id=8), r"results\.json: \$\.annotations\[0\] is for image 8"),
        (lambda c: first(c).update(image_id=2), r"\$\.annotations\[1\] is the second one of image 2"),
        (lambda c: c["annotations"].pop(0), r"results\.json: there is no prediction for image 1 \(001\)"),
        (lambda c: first(c).update(file_name="../001.png"), "is no path below the data set"),
        (lambda c: first(c).update(file_name="003.png"), r"1 of its 2 PNG files are missing in .*results: 003\.png"),
        (
            lambda c: first(c)["segments_info"].pop(0),
            r"results/001\.png holds the segment id 5, which .*results\.json: \$\.",
        ),
        (
            lambda c: first(c)["segments_info"].append({"id": 6, "category_id": 3}),
            r"results\.json: \$\.annotations\[0\]\.segments_info: the segment id 6 has no pixel in .*results/001\.png",
        ),
        (
            lambda c: first(c)["segments_info"][1].update(category_id=4),
            r"results\.json: \$\.annotations\[0\]\.segments_info\[1\]: the segment id 9 of 001\.png has category 4",
        ),
        (lambda c: first(c)["segments_info"][1].update(id=5), r"segments_info\[1\]\.id is 5 a second time"),
        (
            lambda c: first(c)["segments_info"][1].update(id=2**24),
            r"segments_info\[1\]\.id is 16777216; expected a colour",
        ),
        (lambda c: first(c)["segments_info"][1].update(id="9"), r"results\.json: .*segments_info\[1\]\.id"),
        (lambda c: first(c)["segments_info"][1].update(bbox=[1, 2]), r"results\.json: .*segments_info\[1\]\.bbox"),
        (lambda c: first(c).update(segments_info=7), r"results\.json: .*\$\.annotations\[0\]\.segments_info"),
        (lambda c: first(c).pop("file_name"), r"results\.json: .*`file_name`.*\$\.annotations\[0\]"),
    ],
)
def test_bad_results(written: Path, edit: Callable[[dict[str, Any]], None], message: str) -> None:
    change(written / "results.json", edit)
    with pytest.raises(InputError, match=message) as error:
        score(written)
    assert "\n" not in str(error.value)


def test_results_of_another_size_or_damaged(written: Path) -> None:
    save(written / "results/002.png", np.array([[5, 9]] * 4))
    with pytest.raises(InputError, match="image '002': the truth has size 4 x 6, the prediction 4 x 2"):
        score(written)
    (written / "results/002.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(InputError, match=r"results/002\.png"):
        score(written)
    shutil.rmtree(written / "results")
    with pytest.raises(InputError, match=r"results\.json: none of its PNG files is found, the first is 001\.png"):
        score(written)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c["images"][0].update(width=7), r"001\.png has size 4 x 6, but .*panoptic\.json says 4 x 7"),
        (lambda c: c["images"][1].update(id=1), r"image id 1 is there twice"),
        (lambda c: first(c).update(image_id=3), r"\$\.annotations\[0\] belongs to image 3"),
        (lambda c: first(c).update(image_id=2), r"\$\.annotations\[1\] is the second one of image 2"),
        (lambda c: first(c)["segments_info"].pop(), r"001\.png holds the segment id 9, which .*panoptic\.json: \$"),
        (lambda c: c["categories"].pop(), "the segment id 9 of 001.png has category 200, which is not among"),
        (lambda c: c["categories"][1].update(id=3), "category ids must be unique"),
        (lambda c: c["images"][0].update(file_name="/etc/passwd"), "is no path below the data set"),
        (lambda c: c["images"][0].update(file_name="004.jpg"), "1 of 2 images are missing"),
        (lambda c: c["images"][0].pop("height"), r"panoptic\.json: .*`height`.*\$\.images\[0\]"),
    ],
)
def test_bad_data_sets(written: Path, edit: Callable[[dict[str, Any]], None], message: str) -> None:
    change(written / "truth/panoptic.json", edit)
    with pytest.raises(InputError, match=message) as error:
        for sample in open_dataset(written / "truth"):
            assert sample.segments is not None
    assert "\n" not in str(error.value)


def test_segments_of_the_truth_may_lack_pixels_and_boxes(written: Path) -> None:
    infos = [
        {"id": 9, "category_id": 200, "bbox": [4, 0, 2, 4], "area": 8},
        {"id": 44, "category_id": 3},
        {"id": 5, "category_id": 3, "iscrowd": 1},
    ]
    change(written / "truth/panoptic.json", lambda c: first(c).update(segments_info=infos))
    segments = open_dataset(written / "truth")[0].segments
    assert segments is not None
    assert segments.areas().tolist() == [8, 0, 12]
    assert segments.boxes().tolist() == [[4, 0, 6, 4], [0, 0, 0, 0], [0, 0, 3, 4]]
    assert np.array_equal(segments.attributes["area"], [8, np.nan, np.nan], equal_nan=True)
    assert segments.label_map()[0].tolist() == [3, 3, 3, -1, 1, 1]


def test_what_cannot_be_written(tmp_path: Path) -> None:
    def refused(segments: Segments, categories: Categories, message: str, **options: Any) -> None:
        size = segments.size
        sample = Sample("a", lambda: np.zeros((*size, 1), np.uint8), lambda: segments)
        dataset = Dataset.of([sample], categories, frozenset({Task.PANOPTIC}))
        with pytest.raises(InputError, match=message):
            write_dataset(dataset, tmp_path / "out", "coco_panoptic", **options)
        assert not any(tmp_path.iterdir())

    boxes = Segments((4, 5), [3], box=[[0, 0, 1, 1]])
    refused(boxes, CATEGORIES, "a has boxes or tags only")
    refused(Segments.from_masks(np.ones((2, 4, 5)), 3), CATEGORIES, "a: segments overlap")
    refused(Segments((2, 4, 5), [], LabelMap(np.zeros((2, 4, 5), int))), CATEGORIES, "is a volume")
    many = Segments((1, 300), np.full(300, 3), LabelMap(np.arange(1, 301)[None]))
    refused(many, CATEGORIES, "more segments of the category 'car'", form="2ch")
    refused(
        many.with_category(np.full(300, 300)),
        Categories([Category(300, "x")]),
        "category id 300 does not fit",
        form="2ch",
    )
    refused(many, CATEGORIES, "form must be one of ids, 2ch, got '3ch'", form="3ch")


def test_hotcoco_agrees_on_what_we_write(tmp_path: Path) -> None:
    """A second, independent program, where it is installed."""
    hotcoco = pytest.importorskip("hotcoco.panoptic")
    for seed in range(5):
        truth = make_dataset(seed, own_ids=False)
        annotated = [sample for sample in truth if sample.segments is not None]
        generator = np.random.default_rng(seed)
        moved = []
        for sample in annotated:
            assert sample.segments is not None
            ids = np.roll(sample.segments.label_map(), int(generator.integers(0, 3)), 1)
            present = np.unique(ids[ids > 0]) - 1
            predicted = Segments(ids.shape, sample.segments.category, LabelMap(ids))[present]
            moved.append(Sample(sample.name, sample.read_image, lambda predicted=predicted: predicted))
        for name, samples in (("truth", annotated), ("results", moved)):
            dataset = Dataset.of(samples, CATEGORIES, frozenset({Task.PANOPTIC}))
            write_dataset(dataset, tmp_path / f"{name}{seed}", "coco_panoptic")
        files = [tmp_path / f"{name}{seed}/panoptic.json" for name in ("truth", "results")]
        theirs = hotcoco.pq_compute(str(files[0]), str(files[1]))
        dataset = open_dataset(files[0])
        predictions = open_predictions(files[1], dataset)
        assert predictions is not None
        metric = PanopticMetric(CATEGORIES)
        for sample in dataset:
            assert sample.segments is not None
            metric.update(sample.segments, predictions[sample.name])
        ours = metric.compute()
        for end, title in (("", "All"), ("_things", "Things"), ("_stuff", "Stuff")):
            assert ours[f"categories{end}"] == theirs[title]["n"]
            for name in ("pq", "sq", "rq"):
                assert ours[f"{name}{end}"] == pytest.approx(theirs[title][name], abs=1e-9)
