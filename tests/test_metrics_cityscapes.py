"""Cityscapes figures against the official program, on real and on made up street scenes."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from everymask.errors import InputError
from everymask.formats.cityscapes_labels import LABELS
from everymask.metrics import make_metric
from everymask.metrics.cityscapes import AVERAGE_SIZE, GROUPS, CityscapesMetric
from everymask.types import Categories, Category, LabelMap, Segments

CATEGORIES = Categories([Category(each.id, each.name, each.has_instances) for each in LABELS if each.id > 0])
EVALUATED = [each for each in LABELS if not each.ignored]
TRAINING = Categories([Category(each.train_id, each.name, each.has_instances) for each in EVALUATED])
THINGS = [each.id for each in LABELS if each.has_instances]


@pytest.fixture(scope="module")
def official():
    """The official program, which asks numpy for a function that newer versions lack."""
    module = pytest.importorskip(
        "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling", reason="cityscapesscripts is the reference"
    )
    if not hasattr(np, "in1d"):
        module.np.in1d = lambda a, b, invert=False: np.isin(np.ravel(a), b, invert=invert)
    return module


def official_figures(official, folder, scenes):
    """The official result for (labelIds, instanceIds, predicted labelIds)."""
    truths, predictions = [], []
    for number, (labels, instances, predicted) in enumerate(scenes):
        truths.append(str(folder / f"city_000000_{number:06}_gtFine_labelIds.png"))
        predictions.append(str(folder / f"city_000000_{number:06}_pred.png"))
        Image.fromarray(labels.astype(np.uint8)).save(truths[-1])
        Image.fromarray(instances.astype(np.uint16)).save(truths[-1].replace("labelIds", "instanceIds"))
        Image.fromarray(predicted.astype(np.uint8)).save(predictions[-1])
    settings = official.args
    settings.quiet, settings.JSONOutput, settings.evalPixelAccuracy = True, False, False
    return official.evaluateImgLists(predictions, truths, settings)


def true_segments(instances, categories=CATEGORIES):
    """Segments of a map of instance ids."""
    values = np.unique(instances)
    labels = np.where(values < 1000, values, values // 1000)
    names = {each.id: each.name for each in LABELS}
    known = [i for i, label in enumerate(labels) if names[int(label)] in categories.names]
    ids = np.full(instances.shape, -1, np.int32)
    for number, i in enumerate(known, 1):
        ids[instances == values[i]] = number
    return Segments(
        instances.shape,
        [categories.by_name(names[int(labels[i])]).id for i in known],
        LabelMap(ids),
        crowd=[bool(values[i] < 1000 and labels[i] in THINGS) for i in known],
    )


def predicted_segments(labels, categories=CATEGORIES):
    names = {each.id: each.name for each in LABELS}
    ids = np.zeros(labels.shape, np.int32)
    found = [value for value in np.unique(labels) if names[int(value)] in categories.names]
    for number, value in enumerate(found, 1):
        ids[labels == value] = number
    return Segments(labels.shape, [categories.by_name(names[int(each)]).id for each in found], LabelMap(ids))


def scored(scenes, categories=CATEGORIES):
    metric = CityscapesMetric(categories)
    for number, (_, instances, predicted) in enumerate(scenes):
        truth = true_segments(instances, categories)
        metric.update(truth, predicted_segments(predicted, categories), f"image {number}")
    return metric


def compare(metric, expected):
    figures = metric.compute()
    for key, theirs in (
        ("miou", "averageScoreClasses"),
        ("iiou", "averageScoreInstClasses"),
        ("category_iou", "averageScoreCategories"),
        ("category_iiou", "averageScoreInstCategories"),
    ):
        assert figures[key] == pytest.approx(expected[theirs], abs=1e-9, nan_ok=True), key
    for prefix, theirs, names in (
        ("iou", "classScores", [each.name for each in EVALUATED]),
        ("iiou", "classInstScores", list(AVERAGE_SIZE)),
        ("category_iou", "categoryScores", list(GROUPS)),
        ("category_iiou", "categoryInstScores", ["human", "vehicle"]),
    ):
        found = {name: figures[f"{prefix}/{name}"] for name in names}
        assert found == pytest.approx({name: expected[theirs][name] for name in names}, abs=1e-9, nan_ok=True), prefix
        # Whatever else the official program lists has no figure.
        assert all(np.isnan(expected[theirs][name]) for name in set(expected[theirs]) - set(names))


def perturbed(generator, labels, share=0.25):
    """A prediction: shifted, with boxes of other labels (void and ignored ones among them) and lone pixels."""
    made = np.roll(labels, generator.integers(-9, 10, 2), axis=(0, 1)).copy()
    for _ in range(12):
        top, left = generator.integers(0, made.shape[0]), generator.integers(0, made.shape[1])
        height, width = generator.integers(2, 2 + made.shape[0] // 4), generator.integers(2, 2 + made.shape[1] // 4)
        made[top : top + height, left : left + width] = generator.integers(0, 34)
    lone = generator.random(made.shape) < share
    made[lone] = generator.integers(0, 34, int(lone.sum()))
    return made


def made_scene(generator, size=(60, 90)):
    """Blocks of labels; some things are instances, some groups without a line between them."""
    labels = np.zeros(size, np.int64)
    instances = np.zeros(size, np.int64)
    counts: dict[int, int] = {}
    for _ in range(40):
        top, left = generator.integers(0, size[0]), generator.integers(0, size[1])
        area = np.s_[top : top + generator.integers(1, 30), left : left + generator.integers(1, 40)]
        label = int(generator.integers(0, 34))
        labels[area] = instances[area] = label
        if label in THINGS and generator.random() < 0.7:
            instances[area] = 1000 * label + counts.get(label, 0)
            counts[label] = counts.get(label, 0) + 1
    return labels, instances


def test_real_scenes_equal_the_official_program(official, shared_data, tmp_path):
    generator = np.random.default_rng(0)
    folder = shared_data / "cityscapes" / "pix2pixhd" / "test_inst"
    scenes = []
    for path in sorted(folder.glob("*.png"))[:3]:
        instances = np.asarray(Image.open(path)).astype(np.int64)
        labels = np.where(instances < 1000, instances, instances // 1000)
        official_labels = np.asarray(
            Image.open(str(path).replace("test_inst", "test_label").replace("instanceIds", "labelIds"))
        )
        assert np.array_equal(labels, official_labels)
        scenes.append((labels, instances, perturbed(generator, labels, 0.01)))
    metric = scored(scenes)
    compare(metric, official_figures(official, tmp_path, scenes))
    assert 0.1 < metric.compute()["iiou"] < 0.9


@pytest.mark.parametrize("seed", range(6))
def test_made_scenes_equal_the_official_program(official, tmp_path, seed):
    generator = np.random.default_rng(seed)
    scenes = []
    for _ in range(seed + 1):
        labels, instances = made_scene(generator)
        scenes.append((labels, instances, perturbed(generator, labels)))
    expected = official_figures(official, tmp_path, scenes)
    metric = scored(scenes)
    compare(metric, expected)
    # Void, which is the last row and column here, has the id 0; all others are positions plus one.
    matrix = np.roll(_with_void(metric.matrix), 1, (0, 1))
    assert np.array_equal(matrix, np.array(expected["confMatrix"], np.int64))


def _with_void(matrix):
    """No segment and void as one, in the last row and column."""
    joined = matrix[:-1].copy()
    joined[-1] += matrix[-1]
    joined[:, -2] += joined[:, -1]
    return joined[:, :-1]


def test_training_labels_give_the_same_figures(official, tmp_path):
    """Where only evaluated labels are predicted, leaving the others out of the categories changes nothing."""
    generator = np.random.default_rng(7)
    scenes = []
    for _ in range(3):
        labels, instances = made_scene(generator)
        predicted = generator.choice([0, *(each.id for each in EVALUATED)], 34)[perturbed(generator, labels)]
        scenes.append((labels, instances, predicted))
    compare(scored(scenes, TRAINING), official_figures(official, tmp_path, scenes))


def test_a_perfect_prediction_scores_one(official, tmp_path):
    labels, instances = made_scene(np.random.default_rng(3))
    scenes = [(labels, instances, labels)]
    figures = scored(scenes).compute()
    assert figures["miou"] == figures["iiou"] == figures["category_iou"] == figures["category_iiou"] == 1
    compare(scored(scenes), official_figures(official, tmp_path, scenes))


def test_instances_weigh_alike_whatever_their_size():
    """One car of 100 pixels found, one of 400 missed: half of the weight, a fifth of the pixels."""
    ids = np.repeat([26000, 26001], [100, 400])[None]
    predicted = np.where(ids == 26000, 26, 0)
    figures = scored([(ids // 1000, ids, predicted)]).compute()
    assert figures["iou/car"] == pytest.approx(0.2)
    assert figures["iiou/car"] == pytest.approx(0.5)


def test_merge_equals_one_process_to_the_last_bit():
    generator = np.random.default_rng(11)
    scenes = []
    for _ in range(9):
        labels, instances = made_scene(generator)
        scenes.append((labels, instances, perturbed(generator, labels)))
    whole = scored(scenes)
    parts = [scored(scenes[:2]), scored(scenes[5:]), scored(scenes[2:5])]
    parts[1].merge(parts[2])
    parts[1].merge(parts[0])
    assert repr(parts[1].compute()) == repr(whole.compute())
    assert parts[1].images().rows[0][2:] != parts[1].images().rows[1][2:]
    assert len(whole.images().rows) == whole.compute()["images"] == 9
    with pytest.raises(InputError, match="different categories"):
        whole.merge(CityscapesMetric(TRAINING))


def test_without_instances_there_are_no_weighted_figures():
    labels, instances = made_scene(np.random.default_rng(3))
    metric = CityscapesMetric(CATEGORIES)
    segments = true_segments(instances)
    metric.update(segments, predicted_segments(labels), "street", extra={"instances": False})
    figures = metric.compute()
    assert figures["miou"] == 1
    assert np.isnan([figures["iiou"], figures["category_iiou"], figures["iiou/car"]]).all()
    assert "no instances" in metric.tables()[0].note


def test_tables_and_confusion():
    generator = np.random.default_rng(5)
    labels, instances = made_scene(generator)
    metric = scored([(labels, instances, perturbed(generator, labels))])
    classes, groups = metric.tables()
    assert [row[0] for row in classes.rows] == [each.name for each in EVALUATED]
    assert [row[3] for row in classes.rows] == [int((labels == each.id).sum()) for each in EVALUATED]
    assert [row[0] for row in groups.rows] == list(GROUPS)
    confusion = metric.confusion()
    assert confusion.counts.sum() == np.isin(labels, [each.id for each in EVALUATED]).sum()
    assert confusion.rows == confusion.columns[:19]


def test_mistakes():
    with pytest.raises(InputError, match="'zebra' are no labels of Cityscapes"):
        make_metric("cityscapes", Categories(["road", "zebra"]))
    metric = make_metric("cityscapes", CATEGORIES)
    road = Segments.from_semantic_map(np.full((2, 3), 7))
    with pytest.raises(InputError, match=r"'street'.*prediction.*unknown category ids \[99\]"):
        metric.update(road, Segments.from_semantic_map(np.full((2, 3), 99)), "street")
    with pytest.raises(InputError, match=r"'street'.*2 x 3.*3 x 2"):
        metric.update(road, Segments.from_semantic_map(np.full((3, 2), 7)), "street")
