"""ADE20K in both forms: real files counted by hand, other programs on what is written, and round trips."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from everymask.errors import InputError
from everymask.formats import open_dataset, recognise, write_dataset
from everymask.formats.ade20k_classes import CLASSES
from everymask.metrics.semantic import SemanticMetric
from everymask.types import Categories, Category, Dataset, LabelMap, Polygons, Sample, Segments, Task

CATEGORIES = Categories([Category(7, "car"), Category(300, "wheel", False, (1, 2, 3), "parts"), Category(6655, "rim")])


@pytest.fixture(scope="module")
def street(shared_data):
    return shared_data / "ade20k" / "ADE20K_2021_17_01"


def pixels(path):
    return np.asarray(Image.open(path)).astype(np.int32)


def objects_of(path, level=None):
    found = json.loads(path.read_bytes())["annotation"]["object"]
    return [each for each in found if level in {None, each["parts"]["part_level"]}]


def blocks(generator, size, highest):
    ids = np.zeros(size, np.int32)
    for number in range(1, highest + 1):
        top, left = generator.integers(0, size[0]), generator.integers(0, size[1])
        ids[top : top + generator.integers(1, 15), left : left + generator.integers(1, 20)] = number
    return ids


def memory(segments, names=("street",), extra=None, categories=CATEGORIES, tasks=frozenset({Task.INSTANCE})):
    samples = [
        Sample(
            name,
            lambda size=each.size: np.arange(size[0] * size[1] * 3, dtype=np.uint8).reshape(*size, 3),
            lambda each=each: each,
            None,
            extra or {},
        )
        for name, each in zip(names, segments, strict=True)
    ]
    return Dataset.of(samples, categories, tasks)


def same(first, second):
    assert first.size == second.size
    assert first.category.tolist() == second.category.tolist()
    assert np.array_equal(first.masks(), second.masks())
    for key, column in first.attributes.items():
        assert column.tolist() == second.attributes[key].tolist(), key


# -- the full data set -------------------------------------------------------------------------------------------------


def test_counts_and_masks_are_those_of_the_files(street):
    files = sorted(street.rglob("*.json"))
    assert len(files) == 3
    for path in (street, street.parent, street / "images" / "ADE", street / "images" / "ADE" / "training" / "urban"):
        data = open_dataset(path)
        assert data.format == recognise(path) == "ade20k"
        assert [sample.name for sample in data] == [f"training/urban/street/{file.stem}" for file in files]
    data = open_dataset(street, split="training")
    assert data[0].name == f"urban/street/{files[0].stem}"
    for level in (0, 1, None):
        classes = {each["name_ndx"]: each["name"] for file in files for each in objects_of(file, level)}
        assert {each.id: each.name for each in open_dataset(street, level=level).categories} == classes
    for sample, file in zip(data, files, strict=True):
        described = objects_of(file, 0)
        segments = sample.segments
        assert segments.category.tolist() == [each["name_ndx"] for each in described]
        assert segments.attributes["id"].tolist() == [each["id"] for each in described]
        picture = pixels(file.with_name(f"{file.stem}_seg.png"))
        numbers = picture[..., 0] // 10 * 256 + picture[..., 1]
        assert np.array_equal(segments.semantic_map(void=0), numbers)
        assert np.array_equal(segments.label_map() == -1, picture[..., 2] == 0)
        assert sample.image.shape[:2] == segments.size
        assert sample.extra["scene"] == ["outdoor", "urban", "street"]
    # What is visible of each object by its own mask; a few hundred pixels of two objects disagree in the release.
    sample, file = data[2], files[2]
    for i, each in enumerate(objects_of(file, 0)):
        visible = pixels(file.parent / each["instance_mask"]) == 255
        assert (visible != (sample.segments.label_map() == i + 1)).sum() < 200


def test_attributes_are_those_of_the_json(street):
    file = sorted(street.rglob("*.json"))[0]
    attributes = open_dataset(street)[0].segments.attributes
    for i, each in enumerate(objects_of(file, 0)):
        for key in ("raw_name", "occluded", "crop", "attributes", "depth_ordering_rank", "polygon", "hypernym"):
            assert attributes[key][i] == each[key]
        for key in ("part_level", "ispartof", "hasparts"):
            assert attributes[key][i] == each["parts"][key]


@pytest.mark.parametrize("level", [1, 2, 3])
def test_parts(street, level):
    data = open_dataset(street, level=level)
    for sample, file in zip(data, sorted(street.rglob("*.json")), strict=True):
        described = objects_of(file, level)
        assert sample.segments.attributes.get("id", np.zeros(0)).tolist() == [each["id"] for each in described]
        path = file.with_name(f"{file.stem}_parts_{level}.png")
        assert path.exists() == bool(described)
        if described:
            picture = pixels(path)
            numbers = picture[..., 0] // 10 * 256 + picture[..., 1]
            assert np.array_equal(sample.segments.semantic_map(), numbers)
            # A pixel without a part is no void.
            assert sample.segments.label_map().min() == 0


def test_all_levels_amodal_masks_and_polygons(street):
    file = sorted(street.rglob("*.json"))[2]
    everything = objects_of(file)
    segments = open_dataset(street, level=None)[2].segments
    assert segments.attributes["id"].tolist() == list(range(len(everything)))
    parts = open_dataset(street, level=1)[2].segments
    of_level = segments.attributes["part_level"] == 1
    assert segments[of_level].areas().tolist() == parts.areas().tolist()
    amodal = open_dataset(street, level=None, geometry="amodal")[2].segments
    areas = [(pixels(file.parent / each["instance_mask"]) > 0).sum() for each in everything]
    assert amodal.areas().tolist() == areas
    assert (amodal.areas() >= segments.areas() - 200).all()
    outlines = open_dataset(street, level=None, geometry="polygons")[2].segments
    assert isinstance(outlines.geometry, Polygons)
    for parts_of, each in zip(outlines.geometry.parts, everything, strict=True):
        assert parts_of[0].exterior.T.tolist() == [each["polygon"]["x"], each["polygon"]["y"]]


def test_a_real_image_comes_back(street, tmp_path):
    data = open_dataset(street, level=None).subset([2])
    write_dataset(data, tmp_path / "out", "ade20k")
    again = open_dataset(tmp_path / "out", level=None)
    assert again.format == "ade20k"
    assert [(sample.name, sample.extra) for sample in again] == [(sample.name, sample.extra) for sample in data]
    same(data[0].segments, again[0].segments)
    file = sorted(street.rglob("*.json"))[2]
    written = next((tmp_path / "out").rglob(file.name))
    for ending in ("seg", "parts_1"):
        old, new = (pixels(path.with_name(f"{path.stem}_{ending}.png")) for path in (file, written))
        assert np.array_equal(old[..., :2], new[..., :2])
        # The same values for the same number of objects, though not in the same order.
        assert set(np.unique(old[..., 2])) == set(np.unique(new[..., 2]))
    assert json.loads(written.read_bytes())["annotation"].keys() == json.loads(file.read_bytes())["annotation"].keys()
    assert objects_of(written) == objects_of(file)


@pytest.mark.parametrize("instance_masks", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_made_objects_come_back(tmp_path, seed, instance_masks):
    generator = np.random.default_rng(seed)
    made = []
    for count in (0, 3, 40):
        ids = blocks(generator, (40, 60), count)
        if not instance_masks:
            # An object that nothing is visible of could be any of its class.
            ids = np.searchsorted(np.unique([0, *ids.ravel()]), ids).astype(np.int32)
            count = int(ids.max())
        ids[ids == 0] = -1
        columns = {
            "part_level": np.zeros(count, int),
            "weight": generator.random(count),
            "crop": generator.choice(["0", "1"], count),
            "mixed": np.array([[1, "ü"] if i % 2 else None for i in range(count)] or [None], object)[:count],
        }
        category = generator.choice(CATEGORIES.ids, count)
        made.append(Segments(ids.shape, category, LabelMap(ids), attributes=columns if count else {}))
    names = ["a/b", "a/ü", "c"]
    data = memory(made, names, {"split": "night", "source": {"url": 1.5}})
    write_dataset(data, tmp_path / "out", "ade20k", form="full", instance_masks=instance_masks)
    again = open_dataset(tmp_path / "out")
    assert again.categories == CATEGORIES
    assert [sample.name for sample in again] == [f"night/{name}" for name in names]
    assert len(list((tmp_path / "out").rglob("instance_*.png"))) == (43 if instance_masks else 0)
    for sample, before in zip(again, data, strict=True):
        same(before.segments, sample.segments)
        assert np.array_equal(before.segments.label_map(), sample.segments.label_map())
        assert np.array_equal(before.image, sample.image)
        assert {key: sample.extra[key] for key in before.extra} == before.extra


def test_parts_and_hidden_pixels_are_written(tmp_path):
    masks = np.zeros((4, 20, 30), bool)
    masks[0, 2:18, 2:18], masks[1, 10:20, 5:25], masks[2, 5:8, 5:9], masks[3, 6:7, 6:7] = True, True, True, True
    columns = {"part_level": [0, 0, 1, 2], "ispartof": np.array([[], [], 0, 2], object)}
    segments = Segments.from_masks(masks, [7, 7, 300, 6655], attributes=columns)
    write_dataset(memory([segments]), tmp_path / "out", "ade20k", overlap="last")
    visible = masks.copy()
    visible[0] &= ~masks[1]
    found = open_dataset(tmp_path / "out", level=None)[0].segments
    assert np.array_equal(found.masks(), visible)
    assert found.attributes["ispartof"].tolist() == [[], [], 0, 2]
    amodal = open_dataset(tmp_path / "out", level=None, geometry="amodal")[0].segments
    assert np.array_equal(amodal.masks(), masks)
    with pytest.raises(InputError, match="street: segments overlap"):
        write_dataset(memory([segments]), tmp_path / "no", "ade20k")


def test_what_the_full_form_cannot_hold(tmp_path):
    ids = np.arange(256, dtype=np.int32).reshape(16, 16) + 1
    crowd = Segments(ids.shape, np.full(256, 7), LabelMap(ids))
    with pytest.raises(InputError, match="street: has 256 objects of one level"):
        write_dataset(memory([crowd]), tmp_path / "a", "ade20k")
    write_dataset(memory([crowd[:255]]), tmp_path / "b", "ade20k", instance_masks=False)
    assert len(open_dataset(tmp_path / "b")[0].segments) == 255
    numbers = Categories([Category(0, "none"), Category(6656, "more")])
    with pytest.raises(InputError, match=r"category ids \[0, 6656\] do not fit"):
        write_dataset(memory([crowd], categories=numbers), tmp_path / "c", "ade20k")
    boxes = Segments((4, 5), [7], box=[[0, 0, 2, 2]])
    with pytest.raises(InputError, match="street has boxes or tags only"):
        write_dataset(memory([boxes]), tmp_path / "d", "ade20k")
    with pytest.raises(InputError, match="form must be 'challenge' or 'full', got 'half'"):
        write_dataset(memory([crowd]), tmp_path / "e", "ade20k", form="half")


def full_image(folder, entries, picture=None):
    """One image of the full layout with a given JSON."""
    place = folder / "images" / "ADE" / "training" / "a"
    place.mkdir(parents=True, exist_ok=True)
    picture = np.zeros((6, 8, 3), np.uint8) if picture is None else picture
    Image.fromarray(np.zeros((*picture.shape[:2], 3), np.uint8)).save(place / "ADE_train_00000001.jpg")
    Image.fromarray(picture).save(place / "ADE_train_00000001_seg.png")
    content = entries if isinstance(entries, bytes) else json.dumps({"annotation": {"object": entries}}).encode()
    (place / "ADE_train_00000001.json").write_bytes(content)
    return place


def entry(number, name="car", **more):
    return {"id": 0, "name": name, "name_ndx": number, "parts": {"part_level": 0}, **more}


def test_objects_of_one_class_are_told_apart_by_their_polygons(tmp_path):
    picture = np.zeros((20, 30, 3), np.uint8)
    picture[2:8, 2:8], picture[10:18, 12:28] = (10, 1, 255), (10, 1, 128)
    polygons = [{"x": [2, 8, 8, 2], "y": [2, 2, 8, 8]}, {"x": [12, 28, 28, 12], "y": [10, 10, 18, 18]}]
    full_image(tmp_path, [entry(257, polygon=each) for each in polygons], picture)
    ids = open_dataset(tmp_path)[0].segments.label_map()
    assert (ids[4, 4], ids[14, 14], ids[0, 0]) == (1, 2, -1)


def test_odd_files_of_the_release(tmp_path):
    picture = np.zeros((6, 8, 3), np.uint8)
    picture[:2], picture[3:] = (0, 7, 128), (0, 9, 255)
    # One object without a list, in Latin-1, and a region that it does not describe.
    full_image(tmp_path / "a", '{"annotation":{"object":{"name":"caf\xe9","name_ndx":7}}}'.encode("latin-1"), picture)
    data = open_dataset(tmp_path / "a")
    assert data.categories.names == ["café"]
    with pytest.raises(InputError, match=r"_seg\.png: unknown category ids \[9\].*does not list all objects"):
        _ = data[0].segments
    # Two classes of one name, an object that nothing is visible of, and one that is not described.
    full_image(tmp_path / "b", [entry(7), entry(8), entry(9), entry(9)], picture)
    data = open_dataset(tmp_path / "b")
    assert data.categories.names == ["car (7)", "car (8)", "car (9)"]
    assert data[0].segments.areas().tolist() in ([16, 0, 24, 0], [16, 0, 0, 24])
    # No JSON at all.
    (tmp_path / "b" / "images" / "ADE" / "training" / "a" / "ADE_train_00000001.json").unlink()
    assert len(open_dataset(tmp_path / "b").categories) == 0


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (b'{"annotation":{"object":[{"name":"car"}]}}', r"ADE_train_00000001\.json: .*name_ndx"),
        (b"{", r"ADE_train_00000001\.json"),
        ([entry(7), entry(7, "bus")], "class 7 is called 'bus', but 'car' before"),
        ([entry(7, parts=3)], r"\$\.annotation\.object\[0\]\.parts is no object"),
        (
            [entry(7), entry(7, parts={"part_level": "x"})],
            r"\$\.annotation\.object\[1\]\.parts\.part_level is no number",
        ),
        ([entry(7, instance_mask="../../x.png"), entry(7)], "no path below the data set"),
        ([entry(7, polygon={"x": [1, 2], "y": [1]}), entry(7)], "polygon of object 0"),
    ],
)
def test_mistakes_in_a_json(tmp_path, entries, message):
    picture = np.zeros((6, 8, 3), np.uint8)
    picture[:2], picture[3:] = (0, 7, 128), (0, 7, 255)
    full_image(tmp_path, entries, picture)
    with pytest.raises(InputError, match=message):
        _ = open_dataset(tmp_path)[0].segments


def test_mistakes_in_the_full_layout(tmp_path):
    place = full_image(tmp_path, [entry(7)])
    with pytest.raises(InputError, match="no part 'test'; it has training"):
        open_dataset(tmp_path, split="test")
    with pytest.raises(InputError, match="level must be 0"):
        open_dataset(tmp_path, level=-1)
    with pytest.raises(InputError, match="unknown geometry 'boxes'"):
        open_dataset(tmp_path, geometry="boxes")
    with pytest.raises(InputError, match="object 0 has no mask None; geometry='amodal' needs"):
        _ = open_dataset(tmp_path, geometry="amodal")[0].segments
    Image.fromarray(np.zeros((6, 8), np.uint8)).save(place / "ADE_train_00000001_seg.png")
    with pytest.raises(InputError, match=r"_seg\.png has 1 channels of uint8"):
        _ = open_dataset(tmp_path)[0].segments
    full_image(tmp_path, [entry(7)])
    Image.new("RGB", (9, 6)).save(place / "ADE_train_00000001.jpg")
    with pytest.raises(InputError, match=r"_seg\.png has size 6 x 8, but its image .* has 6 x 9"):
        _ = open_dataset(tmp_path)[0].segments
    (place / "ADE_train_00000001.jpg").unlink()
    with pytest.raises(InputError, match="1 of 1 images are missing: a/ADE_train_00000001"):
        open_dataset(tmp_path)
    assert len(open_dataset(tmp_path, missing_images="skip")) == 0
    assert open_dataset(tmp_path, missing_images="keep")[0].segments.size == (6, 8)


# -- the challenge -----------------------------------------------------------------------------------------------------


def challenge(folder, seed=0, size=(30, 40)):
    """Two training images, one validation image and one without a mask."""
    generator = np.random.default_rng(seed)
    for part, name, masked in (
        ("training", "ADE_train_00000001", True),
        ("training", "ADE_train_00000002", True),
        ("validation", "ADE_val_00000001", True),
        ("testing", "ADE_test_00000001", False),
    ):
        for kind in ("images", "annotations") if masked else ("images",):
            (folder / kind / part).mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (*size, 3)).astype(np.uint8)).save(
            folder / "images" / part / f"{name}.jpg"
        )
        if masked:
            values = np.kron(generator.integers(0, 151, (3, 4)), np.ones((10, 10))).astype(np.uint8)
            Image.fromarray(values).save(folder / "annotations" / part / f"{name}.png")
    return folder


def test_the_table_of_classes(street):
    assert len(CLASSES) == 150
    assert CLASSES.ids.tolist() == list(range(1, 151))
    assert sum(each.is_thing for each in CLASSES) == 100
    # The full data set calls the classes of street scenes by the same names.
    full = set(open_dataset(street).categories.names)
    shared = {each.name for each in CLASSES} & full
    assert {
        "building, edifice",
        "sky",
        "tree",
        "person, individual, someone, somebody, mortal, soul",
        "truck, motortruck",
    } <= shared
    assert len(shared) >= 18


def test_the_challenge_opens_value_by_value(tmp_path):
    challenge(tmp_path)
    data = open_dataset(tmp_path)
    assert (data.format, data.categories, data.tasks) == ("ade20k", CLASSES, {Task.SEMANTIC})
    assert [sample.name for sample in data] == [
        "testing/ADE_test_00000001",
        "training/ADE_train_00000001",
        "training/ADE_train_00000002",
        "validation/ADE_val_00000001",
    ]
    assert data[0].segments is None
    sample = open_dataset(tmp_path, split="training")[1]
    values = pixels(tmp_path / "annotations" / "training" / "ADE_train_00000002.png")
    assert sample.name == "ADE_train_00000002"
    assert np.array_equal(sample.segments.semantic_map(void=0), values)
    assert sample.segments.category.tolist() == [value for value in np.unique(values) if value]
    write_dataset(data, tmp_path / "again", "ade20k")
    files = sorted(path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*.*"))
    assert len(files) == 4 + 3 + 1
    for file in files[:-1]:
        assert np.array_equal(pixels(tmp_path / "again" / file), pixels(tmp_path / file))
    names = (tmp_path / "again" / "objectInfo150.txt").read_text().splitlines()
    assert (names[1], names[150]) == ("1\twall", "150\tflag")
    same(open_dataset(tmp_path / "again")[1].segments, data[1].segments)


def test_scores_equal_those_of_another_program(tmp_path):
    semantic = pytest.importorskip("hotcoco.semantic", reason="hotcoco is the reference program")
    generator = np.random.default_rng(3)
    challenge(tmp_path)
    data = open_dataset(tmp_path, split="training")
    metric, evaluator = SemanticMetric(CLASSES), semantic.SemanticEval(150, reduce_zero_label=True)
    for sample in data:
        path = tmp_path / "annotations" / "training" / f"{sample.name}.png"
        predicted = pixels(path)
        wrong = generator.random(predicted.shape) < 0.3
        predicted[wrong] = generator.integers(1, 151, int(wrong.sum()))
        predicted[predicted == 0] = 1
        # Their predictions count classes from 0.
        Image.fromarray((predicted - 1).astype(np.uint8)).save(tmp_path / "prediction.png")
        evaluator.update_png(path, tmp_path / "prediction.png")
        metric.update(sample.segments, Segments.from_semantic_map(predicted, void=0), sample.name)
    expected = evaluator.report()["metrics"]
    figures = metric.compute()
    assert np.array_equal(metric.matrix[:-1, :-2], evaluator.confusion())
    assert figures["miou"] == pytest.approx(expected["mIoU"], abs=1e-9)
    assert figures["pixel_accuracy"] == pytest.approx(expected["aAcc"], abs=1e-9)
    assert figures["mean_accuracy"] == pytest.approx(expected["mAcc"], abs=1e-9)
    assert figures["frequency_weighted_iou"] == pytest.approx(expected["fwIoU"], abs=1e-9)


def test_other_classes_are_written_by_their_names(tmp_path):
    ids = np.array([[1, 1, 2], [0, -1, 2]], np.int32)
    segments = Segments(ids.shape, [7, 300], LabelMap(ids))
    renamed = memory([segments], ["a/b"], categories=Categories([Category(7, "flag"), Category(300, "car")]))
    write_dataset(renamed, tmp_path / "out", "ade20k", form="challenge")
    assert pixels(tmp_path / "out" / "annotations" / "training" / "a" / "b.png").tolist() == [
        [150, 150, 21],
        [0, 0, 21],
    ]
    assert open_dataset(tmp_path / "out")[0].name == "training/a/b"
    with pytest.raises(InputError, match="'wheel', 'rim' are none of the challenge's 150 classes"):
        write_dataset(memory([segments]), tmp_path / "no", "ade20k", form="challenge")
    semantic = replace(open_dataset(tmp_path / "out"), tasks=frozenset({Task.INSTANCE}))
    write_dataset(semantic, tmp_path / "full", "ade20k")
    assert len(list((tmp_path / "full").rglob("*_seg.png"))) == 1


def test_mistakes_in_the_challenge(tmp_path):
    challenge(tmp_path)
    with pytest.raises(InputError, match="no part 'train'; it has testing, training, validation"):
        open_dataset(tmp_path, split="train")
    with pytest.raises(InputError, match="challenge of 2016, which has no parts"):
        open_dataset(tmp_path, level=1)
    mask = tmp_path / "annotations" / "validation" / "ADE_val_00000001.png"
    Image.fromarray(np.full((30, 40), 151, np.uint8)).save(mask)
    with pytest.raises(InputError, match=r"ADE_val_00000001\.png holds the value 151"):
        _ = open_dataset(tmp_path, split="validation")[0].segments
    Image.fromarray(np.full((30, 41), 1, np.uint8)).save(mask)
    with pytest.raises(InputError, match="has size 30 x 41, but its image"):
        _ = open_dataset(tmp_path, split="validation")[0].segments
    image = tmp_path / "images" / "validation" / "ADE_val_00000001.jpg"
    image.with_suffix(".png").write_bytes(b"")
    with pytest.raises(InputError, match="share a name"):
        open_dataset(tmp_path)
    image.with_suffix(".png").unlink()
    image.unlink()
    with pytest.raises(InputError, match="1 of 1 masks have no image"):
        open_dataset(tmp_path)
    assert len(open_dataset(tmp_path, missing_images="skip")) == 3
    kept = open_dataset(tmp_path, split="validation", missing_images="keep")[0]
    assert kept.segments.size == (30, 41)
    with pytest.raises(InputError, match=r"ADE_val_00000001\.jpg does not exist"):
        kept.read_image()
    with pytest.raises(InputError, match="is a file, but ADE20K is a folder"):
        open_dataset(mask, "ade20k")


def test_other_data_sets_are_not_claimed(shared_data, tmp_path):
    from everymask.formats.ade20k import recognise as claims

    others = [each for each in shared_data.iterdir() if each.is_dir() and each.name != "ade20k"]
    others += [below for each in others for below in each.iterdir() if below.is_dir()]
    assert not [path for path in others if claims(path)]
    assert not claims(tmp_path / "absent")
    for name in ("images/training/a.png", "annotations/training/a.png", "plain/a.jpg", "plain/a_seg.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert not claims(tmp_path)
    assert not claims(tmp_path / "plain")
