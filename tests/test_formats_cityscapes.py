"""Cityscapes: real files, the official program's own drawing and evaluation, and round trips value by value."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from everymask.errors import InputError
from everymask.formats import open_dataset, open_predictions, recognise, write_dataset
from everymask.formats.cityscapes_labels import BY_ID, LABELS
from everymask.metrics import make_metric
from everymask.metrics.semantic import SemanticMetric
from everymask.types import Categories, Category, Dataset, LabelMap, Masks, Polygon, Sample, Segments, Task

THINGS = [each.id for each in LABELS if each.has_instances]
PNGS = ("instanceIds", "labelIds", "labelTrainIds", "color")


def pixels(path):
    return np.asarray(Image.open(path)).astype(np.int64)


def made_truth(seed, size=(40, 60)):
    """Values of an instanceIds.png: labels, groups of things, and instances whose numbers have gaps."""
    generator = np.random.default_rng(seed)
    values = np.zeros(size, np.int64)
    for _ in range(25):
        top, left = generator.integers(0, size[0]), generator.integers(0, size[1])
        label = int(generator.integers(0, 34))
        if label in THINGS and generator.random() < 0.7:
            label = 1000 * label + int(generator.integers(0, 1000))
        values[top : top + generator.integers(1, 20), left : left + generator.integers(1, 30)] = label
    return values


def put(folder, core, values=None, *, image=True, kinds=("instanceIds", "labelIds"), split="val", truth="gtFine"):
    """The files of one image in the official layout."""
    city = core.split("_")[0]
    size = (40, 60) if values is None else values.shape
    if image:
        place = folder / "leftImg8bit" / split / city
        place.mkdir(parents=True, exist_ok=True)
        shade = np.random.default_rng(len(core)).integers(0, 255, (*size, 3)).astype(np.uint8)
        Image.fromarray(shade).save(place / f"{core}_leftImg8bit.png")
    if values is not None:
        place = folder / truth / split / city
        place.mkdir(parents=True, exist_ok=True)
        labels = np.where(values < 1000, values, values // 1000)
        train = np.array([each.train_id for each in LABELS[:-1]])[labels]
        for kind, content in (("instanceIds", values), ("labelIds", labels), ("labelTrainIds", train)):
            if kind in kinds:
                kind_of_pixel = np.uint16 if kind == "instanceIds" else np.uint8
                Image.fromarray(content.astype(kind_of_pixel)).save(place / f"{core}_{truth}_{kind}.png")


def put_polygons(folder, core, objects, size=(40, 60), split="val"):
    place = folder / "gtFine" / split / core.split("_")[0]
    place.mkdir(parents=True, exist_ok=True)
    content = {"imgHeight": size[0], "imgWidth": size[1], "objects": objects}
    (place / f"{core}_gtFine_polygons.json").write_text(json.dumps(content))
    return place / f"{core}_gtFine_polygons.json"


def made_objects(seed, size=(40, 60)):
    """Polygons, some outside the image, of all labels, of groups, and some deleted."""
    generator = np.random.default_rng(seed)
    names = [each.name for each in LABELS] + [f"{BY_ID[each].name}group" for each in THINGS]
    objects = []
    for number in range(30):
        count = int(generator.integers(3, 9))
        points = generator.integers([-5, -5], [size[1] + 5, size[0] + 5], (count, 2)).tolist()
        objects.append({"label": names[int(generator.integers(0, len(names)))], "polygon": points})
        if seed % 2:
            objects[-1] |= {"id": number, "deleted": int(generator.random() < 0.2), "user": "ü"}
    return objects


def memory(segments, names=("street",), extra=None):
    """A data set in memory with an image for each of some segments."""
    samples = [
        Sample(name, lambda size=each.size: np.zeros((*size, 3), np.uint8), lambda each=each: each, None, extra or {})
        for name, each in zip(names, segments, strict=True)
    ]
    categories = Categories([Category(each.id, each.name, each.has_instances) for each in LABELS])
    return Dataset.of(samples, categories, frozenset({Task.PANOPTIC}))


def same(first, second):
    assert first.size == second.size
    assert np.array_equal(first.category, second.category)
    assert np.array_equal(first.crowd, second.crowd)
    assert np.array_equal(first.label_map("last"), second.label_map("last"))
    assert first.attributes.keys() == second.attributes.keys()
    for key, column in first.attributes.items():
        assert column.tolist() == second.attributes[key].tolist()


# -- facts -------------------------------------------------------------------------------------------------------------


def test_the_table_of_labels_is_the_official_one():
    official = pytest.importorskip("cityscapesscripts.helpers.labels", reason="cityscapesscripts is the reference")
    assert len(LABELS) == len(official.labels) == 35
    for ours, theirs in zip(LABELS, official.labels, strict=True):
        assert (ours.name, ours.id, ours.group, ours.has_instances, ours.ignored, ours.colour) == (
            theirs.name,
            theirs.id,
            theirs.category,
            theirs.hasInstances,
            theirs.ignoreInEval,
            theirs.color,
        )
        # Their own number for the only label without an id is -1, which no picture holds.
        assert ours.train_id == (theirs.trainId if theirs.trainId >= 0 else 255)


# -- real files --------------------------------------------------------------------------------------------------------


def test_loose_folders_open_with_the_counts_of_their_files(shared_data):
    folder = shared_data / "cityscapes" / "pix2pixhd"
    data = open_dataset(folder)
    assert data.format == recognise(folder) == "cityscapes"
    assert len(data) == 23
    assert len(open_dataset(folder, split="train")) == 8
    assert len(open_dataset(folder, split="test")) == 15
    assert [sample.extra["split"] for sample in data] == ["test"] * 15 + ["train"] * 8
    assert data[15].name == "train/aachen_000000_000019"
    assert sum(sample.path is not None for sample in data) == 8
    assert data[15].image.shape == (1024, 2048, 3)
    with pytest.raises(InputError, match="frankfurt_000000_000576 has an annotation, but no image"):
        data[0].read_image()
    assert len(open_dataset(folder, missing_images="skip")) == 8
    with pytest.raises(InputError, match="15 of 23 images are missing"):
        open_dataset(folder, missing_images="error")
    with pytest.raises(InputError, match="no part 'val'; it has test, train"):
        open_dataset(folder, split="val")
    for index in (0, 22):
        segments = data[index].segments
        core = data[index].name.split("/")[1]
        values = pixels(next(folder.glob(f"*/{core}_gtFine_instanceIds.png")))
        expected = [value for value in np.unique(values) if value]
        assert segments.attributes["instance_id"].tolist() == expected
        assert segments.category.tolist() == [v if v < 1000 else v // 1000 for v in expected]
        assert segments.crowd.tolist() == [v in THINGS for v in expected]
        assert segments.areas().tolist() == [(values == v).sum() for v in expected]
        assert np.array_equal(segments.label_map() == -1, values == 0)


def test_images_meet_their_truth_in_another_folder(shared_data):
    folder = shared_data / "cityscapes"
    alone = open_dataset(folder / "frankfurt")
    assert [sample.name for sample in alone] == ["frankfurt_000000_000294", "frankfurt_000000_000576"]
    assert all(sample.segments is None for sample in alone)
    both = {sample.name.rpartition("/")[2]: sample for sample in open_dataset(folder)}
    assert len(both) == 24
    assert both["frankfurt_000000_000576"].image.shape[:2] == both["frankfurt_000000_000576"].segments.size
    assert both["frankfurt_000000_000294"].segments is None


def test_other_data_sets_are_not_claimed(shared_data, tmp_path):
    from everymask.formats.cityscapes import recognise as claims

    others = [each for each in shared_data.iterdir() if each.is_dir() and each.name != "cityscapes"]
    others += [below for each in others for below in each.iterdir() if below.is_dir()]
    assert not [path for path in others if claims(path)]
    assert not claims(shared_data / "README.md")
    assert not claims(tmp_path / "absent")
    # Images of Cityscapes with annotations in another format, or with masks of the same names, are not its own.
    for name in ("aachen_000000_000019_leftImg8bit.png", "aachen_000001_000019_leftImg8bit.png"):
        for part in ("coco/images", "masks/images", "masks/masks"):
            (tmp_path / part).mkdir(parents=True, exist_ok=True)
            (tmp_path / part / name).touch()
    (tmp_path / "coco" / "instances.json").write_text("{}")
    assert not claims(tmp_path / "coco")
    assert not claims(tmp_path / "masks")


# -- the official layout -----------------------------------------------------------------------------------------------


def test_every_way_into_the_official_layout(tmp_path):
    for number, split in enumerate(("train", "train", "val", "test")):
        values = made_truth(number) if split != "test" else None
        put(tmp_path, f"city{number}_000000_00001{number}", values, split=split)
    data = open_dataset(tmp_path)
    names = [
        "test/city3/city3_000000_000013",
        "train/city0/city0_000000_000010",
        "train/city1/city1_000000_000011",
        "val/city2/city2_000000_000012",
    ]
    assert [sample.name for sample in data] == names
    assert data[0].segments is None
    assert data.tasks >= {Task.PANOPTIC, Task.INSTANCE, Task.SEMANTIC}
    for path in (tmp_path / "gtFine" / "val", tmp_path / "leftImg8bit" / "val", tmp_path / "gtFine" / "val" / "city2"):
        part = open_dataset(path)
        assert [sample.name for sample in part] == ["val/city2/city2_000000_000012"]
        same(part[0].segments, data[3].segments)
        assert part[0].image.shape == (40, 60, 3)
    assert open_dataset(tmp_path, split="val")[0].name == "city2/city2_000000_000012"


def test_training_labels(tmp_path):
    values = made_truth(3)
    put(tmp_path, "aachen_000000_000019", values)
    data = open_dataset(tmp_path, labels="train")
    assert data.categories.ids.tolist() == list(range(19))
    segments = data[0].segments
    labels = np.where(values < 1000, values, values // 1000)
    expected = np.array([each.train_id for each in LABELS[:-1]])[labels]
    assert np.array_equal(segments.semantic_map(void=255), expected)
    put(tmp_path / "b", "aachen_000000_000019", values, kinds=("labelTrainIds",))
    other = open_dataset(tmp_path / "b", labels="train")
    assert other.tasks == {Task.SEMANTIC}
    assert np.array_equal(other[0].segments.semantic_map(void=255), expected)
    by_id = open_dataset(tmp_path / "b", labels="ids")[0].segments.semantic_map(void=0)
    assert np.array_equal(by_id, np.where(expected == 255, 0, labels))


def test_without_instances_things_are_groups(tmp_path):
    values = made_truth(4)
    put(tmp_path, "aachen_000000_000019", values, kinds=("labelIds",))
    data = open_dataset(tmp_path)
    assert data.tasks == {Task.SEMANTIC}
    segments = data[0].segments
    assert segments.crowd.tolist() == [each in THINGS for each in segments.category]
    assert data[0].extra == {"split": "val", "instances": False}
    metric = make_metric("cityscapes", data.categories)
    metric.update(segments, segments, extra=data[0].extra)
    assert metric.compute()["miou"] == 1
    assert np.isnan(metric.compute()["iiou"])


def test_fine_and_coarse_annotations(tmp_path):
    put(tmp_path, "aachen_000000_000019", made_truth(5))
    put(tmp_path, "aachen_000000_000019", made_truth(6), truth="gtCoarse", image=False)
    fine, coarse = (open_dataset(tmp_path, annotations=each)[0].segments for each in ("gtFine", "gtCoarse"))
    same(fine, open_dataset(tmp_path)[0].segments)
    assert not np.array_equal(fine.label_map(), coarse.label_map())
    with pytest.raises(InputError, match="annotations must be one of gtFine, gtCoarse"):
        open_dataset(tmp_path, annotations="gtBest")


# -- polygons ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_polygons_are_kept_and_drawn_as_the_official_program_does(tmp_path, seed):
    instance_module = pytest.importorskip(
        "cityscapesscripts.preparation.json2instanceImg", reason="cityscapesscripts is the reference"
    )
    from cityscapesscripts.helpers.annotation import Annotation
    from cityscapesscripts.preparation.json2labelImg import createLabelImage

    objects = made_objects(seed)
    source = tmp_path / "source"
    file = put_polygons(source, "aachen_000000_000019", objects)
    put(source, "aachen_000000_000019")
    data = open_dataset(source)
    segments = data[0].segments
    assert len(segments) == len(objects)
    assert [polygon[0].exterior.tolist() for polygon in segments.polygons().parts] == [
        each["polygon"] for each in objects
    ]
    target = tmp_path / "target"
    write_dataset(data, target, "cityscapes")
    folder = target / "gtFine" / "val" / "aachen"
    assert json.loads((folder / file.name).read_text()) == json.loads(file.read_text())
    annotation = Annotation()
    annotation.fromJsonFile(str(file))
    start = f"{folder}/aachen_000000_000019_gtFine_"
    official = np.asarray(instance_module.createInstanceImage(annotation, "ids"))
    assert np.array_equal(pixels(f"{start}instanceIds.png"), official)
    for kind, encoding in (("labelIds", "ids"), ("labelTrainIds", "trainIds"), ("color", "color")):
        drawn = np.asarray(createLabelImage(annotation, encoding))
        found = pixels(f"{start}{kind}.png")
        if kind == "labelTrainIds":
            # The official program draws a license plate with -1, that is 255, over the car; here the car stays.
            kept = ~np.isin(drawn, [255]) | (pixels(f"{start}labelIds.png") == 0)
            assert np.array_equal(found[kept], drawn[kept])
        elif kind == "color":
            assert found.shape == (40, 60, 4)
        else:
            assert np.array_equal(found, drawn)
    again = open_dataset(target, geometry="polygons")
    same(again[0].segments, segments)
    masks = open_dataset(target, geometry="masks")[0].segments
    assert masks.attributes["instance_id"].tolist() == [value for value in np.unique(official) if value]
    # Without label images, the polygons are painted when they are read.
    same(open_dataset(source, geometry="masks")[0].segments, masks)
    trained = open_dataset(source, labels="train")[0].segments.semantic_map(void=255)
    labels = np.where(official < 1000, official, official // 1000)
    assert np.array_equal(trained, np.array([each.train_id for each in LABELS[:-1]])[labels])


def test_mistakes_in_polygons_name_their_place(tmp_path):
    for objects, message in (
        ([{"label": "zebra", "polygon": [[0, 0], [1, 1], [2, 0]]}], r"\$\.objects\[0\]\.label: unknown label 'zebra'"),
        ([{"label": "zebragroup", "polygon": []}], r"\$\.objects\[0\]\.label: unknown label 'zebragroup'"),
        ([{"label": "car"}], r"\$\.objects\[0\]\.polygon: expected a list"),
        ([{"label": "car", "polygon": [[0, 1, 2], [1, 2]]}], r"\$\.objects\[0\]\.polygon: expected a list"),
        ("none", r"polygons\.json: .*objects"),
    ):
        file = put_polygons(tmp_path, "aachen_000000_000019", objects)
        with pytest.raises(InputError, match=message) as caught:
            _ = open_dataset(tmp_path)[0].segments
        assert str(file) in str(caught.value)
    with pytest.raises(InputError, match="labels='train' goes with geometry='masks'"):
        open_dataset(tmp_path, labels="train", geometry="polygons")


# -- writing -----------------------------------------------------------------------------------------------------------


def test_real_files_come_back_value_by_value(shared_data, tmp_path):
    folder = shared_data / "cityscapes" / "pix2pixhd"
    data = open_dataset(folder, split="train")
    write_dataset(data.subset([0, 7]), tmp_path / "out", "cityscapes")
    again = open_dataset(tmp_path / "out")
    assert [sample.name for sample in again] == [
        "train/aachen/aachen_000000_000019",
        "train/aachen/aachen_000007_000019",
    ]
    for sample, index in zip(again, (0, 7), strict=True):
        same(sample.segments, data[index].segments)
        core = sample.name.rpartition("/")[2]
        written = tmp_path / "out" / "gtFine" / "train" / "aachen"
        for kind, original in (("instanceIds", "train_inst"), ("labelIds", "train_label")):
            file = f"{core}_gtFine_{kind}.png"
            assert np.array_equal(pixels(written / file), pixels(folder / original / file))
            assert Image.open(written / file).mode == Image.open(folder / original / file).mode
        image = f"{core}_leftImg8bit.png"
        assert (tmp_path / "out" / "leftImg8bit" / "train" / "aachen" / image).read_bytes() == (
            folder / "train_img" / image
        ).read_bytes()


@pytest.mark.parametrize("seed", range(8))
def test_made_files_come_back_value_by_value(tmp_path, seed):
    for number in range(3):
        put(tmp_path / "a", f"ulm_00000{seed}_00001{number}", made_truth(10 * seed + number), kinds=PNGS)
    data = open_dataset(tmp_path / "a")
    write_dataset(data, tmp_path / "b", "cityscapes")
    again = open_dataset(tmp_path / "b")
    for first, second in zip(data, again, strict=True):
        assert (first.name, first.extra) == (second.name, second.extra)
        same(first.segments, second.segments)
        assert np.array_equal(first.image, second.image)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.png"))
    assert len(files) == 3 * 4
    for file in files:
        assert np.array_equal(pixels(tmp_path / "a" / file), pixels(tmp_path / "b" / file))


def test_segments_from_elsewhere_are_numbered(tmp_path):
    ids = np.zeros((10, 12), np.int32)
    ids[:3], ids[3:5], ids[5:7, :6], ids[5:7, 6:], ids[8] = 1, 2, 3, 4, -1
    segments = Segments(ids.shape, [7, 26, 26, 26], LabelMap(ids), attributes={"instance_id": [0, 26001, 26001, 33004]})
    data = memory([segments, segments, segments], ["Zürich/a b.1", "Zürich/a b:1", "Zürich/a/b"])
    write_dataset(data, tmp_path / "out", "cityscapes", images=False)
    again = open_dataset(tmp_path / "out")
    assert [sample.name.rpartition("/")[2] for sample in again] == [
        "Z-rich-a-b-1_000000_000019",
        "Z-rich-a-b-1_000001_000019",
        "Z-rich-a-b_000000_000019",
    ]
    found = again[0].segments
    assert found.category.tolist() == [7, 26, 26, 26]
    assert found.attributes["instance_id"].tolist() == [7, 26000, 26001, 26002]
    # The first to ask for a number has it; the others take what is free.
    assert [int(found.label_map()[at]) for at in ((0, 0), (3, 0), (5, 0), (5, 6))] == [1, 3, 2, 4]
    assert (found.label_map()[[7, 8, 9]] == -1).all()


def test_what_cannot_be_written(tmp_path):
    ids = np.arange(2000, dtype=np.int32).reshape(40, 50)
    crowd = Segments(ids.shape, np.full(1999, 24), LabelMap(ids))
    with pytest.raises(InputError, match="street: has over 1000 instances of 'person'"):
        write_dataset(memory([crowd]), tmp_path / "a", "cityscapes")
    overlapping = Segments.from_masks(np.ones((2, 4, 5), bool), [7, 8])
    assert isinstance(overlapping.geometry, Masks)
    with pytest.raises(InputError, match="street: segments overlap"):
        write_dataset(memory([overlapping]), tmp_path / "b", "cityscapes")
    write_dataset(memory([overlapping]), tmp_path / "c", "cityscapes", overlap="last")
    assert open_dataset(tmp_path / "c")[0].segments.category.tolist() == [8]
    boxes = Segments((4, 5), [26], box=[[0, 0, 2, 2]])
    with pytest.raises(InputError, match="street: has boxes or tags only"):
        write_dataset(memory([boxes]), tmp_path / "d", "cityscapes")
    zebra = replace(memory([overlapping]), categories=Categories(["zebra"]))
    with pytest.raises(InputError, match="'zebra' are no labels of Cityscapes"):
        write_dataset(zebra, tmp_path / "e", "cityscapes")
    twice = memory([overlapping] * 2, ["a/ulm_000000_000019", "b/ulm_000000_000019"])
    with pytest.raises(InputError, match="two samples are called ulm_000000_000019"):
        write_dataset(twice, tmp_path / "f", "cityscapes", overlap="last")
    astray = memory([overlapping], extra={"split": "../.."})
    with pytest.raises(InputError, match="no path below the data set"):
        write_dataset(astray, tmp_path / "g", "cityscapes")
    assert not [path for path in tmp_path.iterdir() if path.name in "abdefg"]


def test_polygons_with_holes_are_written_as_masks(tmp_path):
    outer, hole = np.array([[1, 1], [9, 1], [9, 9], [1, 9]]), np.array([[3, 3], [6, 3], [6, 6], [3, 6]])
    segments = Segments.from_polygons((10, 10), [[Polygon(outer.astype(float), (hole.astype(float),))]], [26])
    write_dataset(memory([segments]), tmp_path / "out", "cityscapes")
    found = open_dataset(tmp_path / "out")[0].segments
    assert np.array_equal(found.masks(), segments.masks())
    assert not list((tmp_path / "out").rglob("*.json"))


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("labelIds", 34),
        ("labelIds", 255),
        ("instanceIds", 34),
        ("instanceIds", 7001),
        ("instanceIds", 34000),
        ("labelTrainIds", 19),
    ],
)
def test_unknown_values_name_the_file(tmp_path, kind, value):
    put(tmp_path, "aachen_000000_000019", made_truth(0), kinds=(kind,))
    file = next(tmp_path.rglob(f"*{kind}.png"))
    content = np.array(Image.open(file))
    content[0, 0] = value
    Image.fromarray(content).save(file)
    with pytest.raises(InputError, match=rf"{kind}\.png holds the value {value}, which is no label of Cityscapes"):
        _ = open_dataset(tmp_path)[0].segments


def test_bad_folders(tmp_path):
    put(tmp_path, "aachen_000000_000019", made_truth(0))
    (tmp_path / "gtFine" / "more").mkdir()
    double = tmp_path / "gtFine" / "more" / "aachen_000000_000019_gtFine_labelIds.png"
    double.write_bytes(next(tmp_path.rglob("*labelIds.png")).read_bytes())
    with pytest.raises(InputError, match="which are of the same image"):
        open_dataset(tmp_path)
    double.unlink()
    Image.new("RGB", (61, 40)).save(next(tmp_path.rglob("*_leftImg8bit.png")))
    with pytest.raises(InputError, match=r"instanceIds\.png has size 40 x 60, but its image .* has 40 x 61"):
        _ = open_dataset(tmp_path)[0].segments
    for option, value in (("labels", "names"), ("geometry", "boxes"), ("missing_images", "guess")):
        with pytest.raises(InputError, match=value):
            open_dataset(tmp_path, **{option: value})
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.txt").touch()
    with pytest.raises(InputError, match="no file of Cityscapes"):
        open_dataset(tmp_path / "empty", "cityscapes")
    with pytest.raises(InputError, match="is a folder; name the folder"):
        open_dataset(tmp_path / "empty" / "a.txt", "cityscapes")


def test_links_in_a_circle_end(tmp_path):
    put(tmp_path, "aachen_000000_000019", made_truth(0))
    (tmp_path / "gtFine" / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert len(open_dataset(tmp_path)) == 1


# -- results -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def results(tmp_path):
    """Three truths, and a folder of results for them."""
    generator = np.random.default_rng(1)
    folder = tmp_path / "results"
    (folder / "deep").mkdir(parents=True)
    for number in range(3):
        core = f"aachen_000000_00001{number}"
        put(tmp_path / "data", core, made_truth(number, (60, 80)), kinds=PNGS)
        labels = pixels(next((tmp_path / "data").rglob(f"{core}*labelIds.png")))
        labels[generator.random(labels.shape) < 0.2] = 0
        labels[:20, :20] = generator.integers(0, 34, (20, 20))
        Image.fromarray(labels.astype(np.uint8)).save(folder / ("deep" if number else "") / f"{core}pred{number}.png")
    return tmp_path / "data", folder


@pytest.mark.parametrize("labels", ["ids", "train"])
def test_results_score_as_in_the_official_program(results, tmp_path, labels):
    official = pytest.importorskip(
        "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling", reason="cityscapesscripts is the reference"
    )
    if not hasattr(np, "in1d"):
        official.np.in1d = lambda a, b, invert=False: np.isin(np.ravel(a), b, invert=invert)
    data_folder, folder = results
    # What is written and read again is what the official program is given.
    write_dataset(open_dataset(data_folder), tmp_path / "written", "cityscapes")
    truths = sorted(str(path) for path in (tmp_path / "written").rglob("*_labelIds.png"))
    settings = official.args
    settings.quiet, settings.JSONOutput, settings.evalPixelAccuracy = True, False, False
    settings.predictionPath, settings.predictionWalk = str(folder), None
    expected = official.evaluateImgLists([official.getPrediction(settings, each) for each in truths], truths, settings)
    data = open_dataset(data_folder, labels=labels)
    predictions = open_predictions(folder, data)
    assert len(predictions) == 3
    metric = make_metric("cityscapes", data.categories)
    for sample in data:
        metric.update(sample.segments, predictions[sample.name], sample.name, extra=sample.extra)
    figures = metric.compute()
    assert figures["miou"] == pytest.approx(expected["averageScoreClasses"], abs=1e-9)
    assert figures["iiou"] == pytest.approx(expected["averageScoreInstClasses"], abs=1e-9)
    assert figures["category_iou"] == pytest.approx(expected["averageScoreCategories"], abs=1e-9)
    if labels == "ids":
        assert figures["category_iiou"] == pytest.approx(expected["averageScoreInstCategories"], abs=1e-9)
    # The plain protocol asks for training labels, and then says the same.
    assert labels in {SemanticMetric.reading["cityscapes"]["labels"], "ids"}
    if labels == "train":
        semantic = SemanticMetric(data.categories)
        for sample in data:
            semantic.update(sample.segments, predictions[sample.name], sample.name)
        assert semantic.compute()["miou"] == pytest.approx(expected["averageScoreClasses"], abs=1e-9)


def test_results_that_do_not_fit(results):
    data_folder, folder = results
    data = open_dataset(data_folder)
    file = next((folder / "deep").glob("*pred1.png"))
    content = np.array(Image.open(file))
    content[0, 0] = 99
    Image.fromarray(content).save(file)
    with pytest.raises(InputError, match=r"pred1\.png holds the value 99, which is no label of Cityscapes"):
        _ = open_predictions(folder, data)["val/aachen/aachen_000000_000011"]
    copy = folder / file.name
    copy.write_bytes(file.read_bytes())
    with pytest.raises(InputError, match=r"aachen_000000_000011' has 2 results"):
        open_predictions(folder, data)
    copy.unlink()
    file.unlink()
    with pytest.raises(InputError, match=r"aachen_000000_000011' has no result; expected one PNG"):
        open_predictions(folder, data)
    with pytest.raises(InputError, match="the data set has none of its labels"):
        open_predictions(folder, replace(data, categories=Categories(["zebra"])))


def test_other_folders_are_no_results(tmp_path, shared_data):
    from everymask.formats.cityscapes import recognise_predictions as claims

    assert not claims(shared_data / "camvid" / "val" / "labels")
    assert not claims(shared_data / "coco")
    assert not claims(tmp_path)
    assert not claims(Path(__file__))
    assert claims(shared_data / "cityscapes" / "pix2pixhd" / "test_label")
