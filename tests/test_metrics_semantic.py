"""Semantic figures against scikit-learn, and by hand where scikit-learn knows no void."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from everymask.errors import InputError
from everymask.metrics import make_metric
from everymask.metrics.semantic import SemanticMetric
from everymask.ops.confusion import confusion_matrix, count_pairs
from everymask.types import Categories, Category, LabelMap, Segments

# Ids with gaps and out of order, as data sets have them.
CATEGORIES = Categories([Category(7, "road"), Category(0, "sky"), Category(33, "car"), Category(21, "bus")])
IDS = CATEGORIES.ids
NAMES = CATEGORIES.names


@pytest.fixture(scope="module")
def sklearn_metrics():
    return pytest.importorskip("sklearn.metrics", reason="scikit-learn is the reference program")


def stripes(generator, values, shape=(40, 57)):
    """A map with runs of any length, and some lone pixels."""
    pixels = np.repeat(generator.choice(values, shape[0] * shape[1]), generator.integers(1, 300))[: shape[0] * shape[1]]
    lone = generator.random(pixels.size) < 0.01
    pixels[lone] = generator.choice(values, lone.sum())
    return pixels.reshape(shape)


def random_pairs(seed, count, values=IDS):
    generator = np.random.default_rng(seed)
    return [(stripes(generator, values), stripes(generator, values)) for _ in range(count)]


def scored(pairs, categories=CATEGORIES):
    metric = SemanticMetric(categories)
    for number, (truth, prediction) in enumerate(pairs):
        metric.update(
            Segments.from_semantic_map(truth, void=255), Segments.from_semantic_map(prediction, void=255), str(number)
        )
    return metric


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.int64])
@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 66, 128, 5000])
def test_confusion_matrix_equals_sklearn(sklearn_metrics, kind, size):
    generator = np.random.default_rng(size)
    for longest in (1, 5, 200):
        truth, prediction = (
            np.repeat(generator.integers(0, 19, size), generator.integers(1, longest + 1, size))[:size].astype(kind)
            for _ in range(2)
        )
        found = confusion_matrix(truth, prediction, 19)
        expected = np.zeros((19, 19), int)
        if size:
            expected = sklearn_metrics.confusion_matrix(truth, prediction, labels=np.arange(19))
        assert np.array_equal(found[:, :-1], expected)
        assert not found[:, -1].any()


@given(st.data())
def test_confusion_matrix_counts_every_pixel_once(data):
    """Against a pixel by pixel count, with void in both."""
    kind = data.draw(st.sampled_from([np.uint8, np.int32]))
    values = st.sampled_from([0, 1, 2, 255] if kind is np.uint8 else [0, 1, 2, 3, -1, -7, 2**31 - 1, -(2**31)])
    runs = data.draw(st.lists(st.tuples(values, values, st.integers(1, 150)), max_size=12))
    truth, prediction = (np.array([run[i] for run in runs for _ in range(run[2])], kind) for i in (0, 1))
    expected = np.zeros((3, 4), int)
    for true, predicted in zip(truth.tolist(), prediction.tolist(), strict=True):
        if true in range(3):
            expected[true, predicted if predicted in range(3) else 3] += 1
    assert np.array_equal(confusion_matrix(truth, prediction, 3), expected)


def test_confusion_matrix_takes_strided_maps_and_refuses_others():
    generator = np.random.default_rng(0)
    truth, prediction = generator.integers(0, 3, (2, 30, 40)).astype(np.uint8)
    same = confusion_matrix(np.asfortranarray(truth), prediction, 3)
    assert np.array_equal(same, confusion_matrix(truth, prediction, 3))
    assert np.array_equal(
        confusion_matrix(truth[::2, ::3], prediction[::2, ::3], 3),
        confusion_matrix(truth[::2, ::3].copy(), prediction[::2, ::3].copy(), 3),
    )
    # A row that does not begin at a multiple of eight bytes.
    assert np.array_equal(
        confusion_matrix(truth.ravel()[3:], prediction.ravel()[3:], 3),
        confusion_matrix(truth.ravel()[3:].copy(), prediction.ravel()[3:].copy(), 3),
    )
    with pytest.raises(InputError, match="expected integers of one shape"):
        confusion_matrix(truth, prediction[:5], 3)
    with pytest.raises(InputError, match="expected integers of one shape"):
        confusion_matrix(truth.astype(float), prediction, 3)


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int32, np.int64, np.uint32])
@pytest.mark.parametrize("classes", [3, 150, 400])
def test_pairs_are_renumbered_on_the_way(kind, classes):
    """Any table of rows and columns, few classes or so many that one table is all there is."""
    generator = np.random.default_rng(classes)
    highest = min(classes, 300)
    truth, prediction = (stripes(generator, np.arange(min(highest, 255)), (50, 41)).astype(kind) for _ in range(2))
    if np.dtype(kind).kind == "i":
        truth[:3], prediction[1:5] = -1, -1
    rows, columns = generator.integers(0, classes, highest + 1), generator.integers(0, classes + 1, highest + 1)
    expected = np.zeros((classes, classes + 1), int)
    np.add.at(expected, (rows[truth.astype(int) + 1], columns[prediction.astype(int) + 1]), 1)
    assert np.array_equal(count_pairs(truth, prediction, rows, columns, (classes, classes + 1)), expected)


def test_figures_equal_sklearn(sklearn_metrics):
    pairs = random_pairs(1, 12)
    figures = scored(pairs).compute()
    truth, prediction = (np.concatenate([pair[i].ravel() for pair in pairs]) for i in (0, 1))
    iou = sklearn_metrics.jaccard_score(truth, prediction, labels=IDS, average=None)
    dice = sklearn_metrics.f1_score(truth, prediction, labels=IDS, average=None)
    weighted = sklearn_metrics.jaccard_score(truth, prediction, labels=IDS, average="weighted")
    assert [figures[f"iou/{name}"] for name in NAMES] == pytest.approx(iou, abs=1e-12)
    assert figures["miou"] == pytest.approx(iou.mean(), abs=1e-12)
    assert figures["mean_dice"] == pytest.approx(dice.mean(), abs=1e-12)
    assert figures["frequency_weighted_iou"] == pytest.approx(weighted, abs=1e-12)
    assert figures["pixel_accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(truth, prediction), abs=1e-12)
    recall = sklearn_metrics.recall_score(truth, prediction, labels=IDS, average="macro")
    assert figures["mean_accuracy"] == pytest.approx(recall, abs=1e-12)
    assert figures["images"] == 12
    rows = scored(pairs).tables()[0].rows
    assert [row[0] for row in rows] == NAMES
    assert [row[2] for row in rows] == pytest.approx(dice, abs=1e-12)
    assert [row[4] for row in rows] == [(truth == each).sum() for each in IDS]


def test_void_of_truth_is_ignored_and_void_of_prediction_is_missed(sklearn_metrics):
    pairs = random_pairs(2, 8, [*IDS, 255])
    figures = scored(pairs).compute()
    truth, prediction = (np.concatenate([pair[i].ravel() for pair in pairs]) for i in (0, 1))
    kept = truth != 255
    # For scikit-learn, void of the prediction is just another label, which no truth has.
    iou = sklearn_metrics.jaccard_score(truth[kept], prediction[kept], labels=IDS, average=None)
    assert [figures[f"iou/{name}"] for name in NAMES] == pytest.approx(iou, abs=1e-12)
    assert figures["pixel_accuracy"] == pytest.approx((truth == prediction)[kept].mean(), abs=1e-12)


def test_absent_categories_are_nan_and_left_out_of_means():
    truth, prediction = np.array([[7, 7, 0, 0]]), np.array([[7, 33, 0, 0]])
    figures = scored([(truth, prediction)]).compute()
    assert [figures[f"iou/{name}"] for name in NAMES[:3]] == [0.5, 1.0, 0.0]
    assert np.isnan(figures["iou/bus"])
    assert figures["miou"] == 0.5
    # The car was never there to be found, so it has no accuracy.
    assert figures["mean_accuracy"] == 0.75
    nothing = SemanticMetric(CATEGORIES).compute()
    assert nothing["images"] == 0
    assert np.isnan([nothing["miou"], nothing["pixel_accuracy"], nothing["frequency_weighted_iou"]]).all()


@pytest.mark.parametrize(
    ("mean_over", "miou", "dice"), [("present", 1 / 2, 5 / 9), ("truth", 3 / 4, 5 / 6), ("all", 3 / 8, 5 / 12)]
)
def test_which_categories_the_means_are_taken_over(mean_over, miou, dice):
    """Road half found and otherwise taken for a car, sky found, no bus: IoU 1/2, 1, 0 and none; Dice 2/3, 1, 0."""
    truth, prediction = np.array([[7, 7, 0, 0]]), np.array([[7, 33, 0, 0]])
    metric = make_metric("semantic", CATEGORIES, mean_over=mean_over)
    metric.update(Segments.from_semantic_map(truth), Segments.from_semantic_map(prediction))
    assert metric.compute()["miou"] == pytest.approx(miou)
    assert metric.compute()["mean_dice"] == pytest.approx(dice)
    assert np.isnan(metric.compute()["iou/bus"])
    with pytest.raises(InputError, match="mean_over"):
        metric.merge(SemanticMetric(CATEGORIES, "present" if mean_over != "present" else "all"))
    with pytest.raises(InputError, match="unknown mean_over 'voc'"):
        make_metric("semantic", CATEGORIES, mean_over="voc")


def test_all_counts_as_the_program_of_ade20k():
    """Its rule written out: areas of each class added up, intersection / (union + eps), mean over all classes."""
    generator = np.random.default_rng(4)
    categories = Categories([Category(i + 1, f"class {i}") for i in range(20)])
    metric = SemanticMetric(categories, "all")
    areas = np.zeros((3, 20))
    for _ in range(6):
        truth, prediction = stripes(generator, np.arange(15)), stripes(generator, np.arange(13))
        metric.update_maps((truth - 1).astype(np.uint8), (prediction - 1).astype(np.uint8))
        prediction = prediction * (truth > 0)
        for i in range(20):
            areas[0, i] += ((truth == i + 1) & (prediction == i + 1)).sum()
            areas[1, i] += (truth == i + 1).sum()
            areas[2, i] += (prediction == i + 1).sum()
    union = areas[1] + areas[2] - areas[0]
    expected = (areas[0] / (np.spacing(1) + union)).mean()
    assert metric.compute()["miou"] == pytest.approx(expected, abs=1e-12)
    assert metric.compute()["pixel_accuracy"] == pytest.approx(areas[0].sum() / areas[1].sum(), abs=1e-12)


@pytest.mark.parametrize("kind", [np.uint8, np.int32])
def test_maps_of_indices_give_what_segments_give(kind):
    pairs = random_pairs(8, 6, [*IDS, 255])
    metric = SemanticMetric(CATEGORIES)
    indices = np.full(256, 255)
    indices[IDS] = np.arange(len(IDS))
    for number, (truth, prediction) in enumerate(pairs):
        metric.update_maps(indices[truth].astype(kind), indices[prediction].astype(kind), str(number))
    assert metric.compute() == scored(pairs).compute()
    assert metric.images() == scored(pairs).images()
    assert np.array_equal(metric.matrix, scored(pairs).matrix)
    with pytest.raises(InputError, match=r"'street'.*integers of one shape"):
        metric.update_maps(np.zeros((2, 3), kind), np.zeros((3, 2), kind), "street")


def test_images_and_confusion():
    pairs = random_pairs(9, 4, [*IDS, 255])
    metric = scored(pairs)
    table = metric.images()
    assert [row[0] for row in table.rows] == ["0", "1", "2", "3"]
    assert table.judge in table.columns
    assert [row[2] for row in table.rows] == [scored([pair]).compute()["miou"] for pair in pairs]
    assert [row[3] for row in table.rows] == [scored([pair]).compute()["pixel_accuracy"] for pair in pairs]
    confusion = metric.confusion()
    assert confusion.rows == tuple(NAMES)
    assert confusion.columns == (*NAMES, "void")
    for i, true in enumerate(IDS):
        for j, predicted in enumerate([*IDS, 255]):
            assert confusion.counts[i, j] == sum(((a == true) & (b == predicted)).sum() for a, b in pairs)


@pytest.mark.parametrize(("names", "classes", "accuracy"), [(["cell"], 1, 0.7), (["background", "cell"], 2, 0.7)])
def test_pixels_of_no_segment(names, classes, accuracy):
    """10 pixels: 3 hit, 1 missed, 2 too many, 4 background; background is scored as a class if it has a name."""
    truth = np.array([[1, 1, 1, 2, 0, 0, 0, 0, 0, 0]], np.int32)
    prediction = np.array([[1, 1, 1, 0, 1, 1, 0, 0, 0, 0]], np.int32)
    cell = len(names)
    metric = SemanticMetric(Categories(names))
    metric.update(
        Segments(truth.shape, [cell, cell], LabelMap(truth)), Segments(prediction.shape, [cell], LabelMap(prediction))
    )
    figures = metric.compute()
    assert figures["iou/cell"] == 3 / 6
    assert figures["pixel_accuracy"] == accuracy
    assert figures["miou"] == pytest.approx(3 / 6 if classes == 1 else (3 / 6 + 4 / 7) / 2)


def test_merge_equals_one_process_to_the_last_bit():
    pairs = random_pairs(3, 20, [*IDS, 255])
    whole = SemanticMetric(CATEGORIES)
    parts = [SemanticMetric(CATEGORIES) for _ in range(3)]
    for number, pair in enumerate(pairs):
        truth, prediction = (Segments.from_semantic_map(each, void=255) for each in pair)
        for metric in (whole, parts[number % 3]):
            metric.update(truth, prediction, group="day" if number % 2 else "night")
    parts[2].merge(parts[0])
    parts[2].merge(parts[1])
    assert repr(parts[2].compute()) == repr(whole.compute())
    assert repr(parts[2].tables()) == repr(whole.tables())
    assert repr(parts[2].images()) == repr(whole.images())
    kinds = whole.tables()[1]
    assert [row[:2] for row in kinds.rows] == [("day", 10), ("night", 10)]
    assert kinds.rows[0][2] == scored(pairs[1::2]).compute()["miou"]
    with pytest.raises(InputError, match="different categories"):
        whole.merge(SemanticMetric(Categories(["other"])))


def test_mistakes_name_the_image():
    metric = SemanticMetric(CATEGORIES)
    road = Segments.from_semantic_map(np.full((2, 3), 7))
    with pytest.raises(InputError, match=r"'street'.*prediction.*unknown category ids \[5\]"):
        metric.update(road, Segments.from_semantic_map(np.full((2, 3), 5)), "street")
    with pytest.raises(InputError, match=r"'street'.*2 x 3.*3 x 2"):
        metric.update(road, Segments.from_semantic_map(np.full((3, 2), 7)), "street")
    with pytest.raises(InputError, match=r"'street'.*scores are NaN"):
        metric.update(road, Segments(road.size, [7], road.geometry, score=[np.nan]), "street")
    assert metric.compute()["images"] == 0
