"""Classification figures against scikit-learn, and the rules by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everymask.errors import InputError
from everymask.metrics.classification import ClassificationMetric
from everymask.types import Categories, Category, Segments

CATEGORIES = Categories([Category(identifier, f"class {identifier}") for identifier in (4, 0, 90, 17, 3, 8, 25)])
IDS = CATEGORIES.ids
SIZE = (32, 32)


@pytest.fixture(scope="module")
def sklearn_metrics():
    return pytest.importorskip("sklearn.metrics", reason="scikit-learn is the reference program")


def tag(identifier):
    return Segments(SIZE, [identifier])


def random_answers(seed, count, classes=7):
    """True indices (N,) of some classes only, and scores (N, K) without ties that are right more often than not."""
    generator = np.random.default_rng(seed)
    true = generator.integers(0, classes, count)
    scores = generator.random((count, len(IDS)))
    scores[np.arange(count), true] += generator.choice([0, 0.5], count)
    return true, scores


def scored(true, scores, shuffle=None):
    metric = ClassificationMetric(CATEGORIES)
    for number, (each, row) in enumerate(zip(true, scores, strict=True)):
        order = np.arange(len(IDS)) if shuffle is None else shuffle.permutation(len(IDS))
        metric.update(tag(IDS[each]), Segments(SIZE, IDS[order], score=row[order]), f"{number:04}")
    return metric


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 60), classes=st.integers(1, len(IDS)))
def test_equals_sklearn(seed, count, classes):
    sklearn_metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is the reference program")
    true, scores = random_answers(seed, count, classes)
    metric = scored(true, scores, np.random.default_rng(seed))
    predicted = scores.argmax(axis=1)
    every = np.arange(len(IDS))
    figures = metric.compute()
    assert figures["images"] == count
    assert figures["top1"] == pytest.approx(sklearn_metrics.accuracy_score(true, predicted), abs=1e-12)
    top5 = sklearn_metrics.top_k_accuracy_score(true, scores, k=5, labels=every)
    assert figures["top5"] == pytest.approx(top5, abs=1e-12)
    counts = sklearn_metrics.confusion_matrix(true, predicted, labels=every)
    assert np.array_equal(metric.confusion().counts, counts)
    rows = sklearn_metrics.precision_recall_fscore_support(true, predicted, labels=every, zero_division=np.nan)
    table = np.array([row[1:] for row in metric.tables()[0].rows])
    assert table[:, :3] == pytest.approx(np.array(rows[:3]).T, abs=1e-12, nan_ok=True)
    assert np.array_equal(table[:, 3], rows[3])
    means = sklearn_metrics.precision_recall_fscore_support(
        true, predicted, labels=every, zero_division=np.nan, average="macro"
    )
    found = (figures["mean_precision"], figures["mean_class_accuracy"], figures["mean_f1"])
    assert found == pytest.approx(means[:3], abs=1e-12, nan_ok=True)


def test_mean_class_accuracy_is_balanced_accuracy(sklearn_metrics):
    true, scores = random_answers(3, 200)
    expected = sklearn_metrics.balanced_accuracy_score(true, scores.argmax(axis=1))
    assert scored(true, scores).compute()["mean_class_accuracy"] == pytest.approx(expected, abs=1e-12)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_merged_metrics_have_the_same_bits(seed):
    true, scores = random_answers(seed, 30)
    whole, first, second = scored(true, scores), ClassificationMetric(CATEGORIES), ClassificationMetric(CATEGORIES)
    generator = np.random.default_rng(seed)
    for number in generator.permutation(30):
        part = first if generator.random() < 0.5 else second
        part.update(tag(IDS[true[number]]), Segments(SIZE, IDS, score=scores[number]), f"{number:04}")
    first.merge(second)
    assert repr(first.compute()) == repr(whole.compute())
    assert repr(first.tables()) == repr(whole.tables())
    assert repr(first.images()) == repr(whole.images())


def test_equal_scores_go_to_the_class_that_comes_first():
    metric = ClassificationMetric(CATEGORIES)
    metric.update(tag(4), Segments(SIZE, IDS[::-1], score=np.full(len(IDS), 0.5)), "a")
    metric.update(tag(25), Segments(SIZE, IDS, score=np.full(len(IDS), 0.5)), "b")
    assert [row[3] for row in metric.images().rows] == ["class 4", "class 4"]
    assert [row[5] for row in metric.images().rows] == [1, 1 / 7]
    assert metric.compute()["top5"] == 0.5


def test_answers_without_scores_and_no_answers():
    metric = ClassificationMetric(CATEGORIES)
    metric.update(tag(4), tag(4), "a")
    metric.update(tag(4), tag(90), "b")
    metric.update(tag(4), Segments(SIZE, []), "c")
    figures = metric.compute()
    assert (figures["top1"], figures["top5"], figures["accuracy/class 4"]) == (1 / 3, 1 / 3, 1 / 3)
    assert metric.confusion().columns[-1] == "(none)"
    assert metric.confusion().counts.sum() == 3
    assert [row[5] for row in metric.images().rows] == [1, 0, 0]


def test_kinds_of_image_are_compared():
    metric = ClassificationMetric(CATEGORIES)
    metric.update(tag(4), tag(4), "a", "day")
    metric.update(tag(4), tag(0), "b", "night")
    assert metric.tables()[1].rows == (("day", 1, 1.0, 1.0), ("night", 1, 0.0, 0.0))


def test_nothing_at_all():
    metric = ClassificationMetric(CATEGORIES)
    assert math.isnan(metric.compute()["top1"])
    assert math.isnan(metric.compute()["mean_class_accuracy"])
    assert metric.images().rows == ()


@pytest.mark.parametrize(
    ("truth", "prediction", "words"),
    [
        (Segments(SIZE, []), tag(4), "one class"),
        (Segments(SIZE, [4, 0]), tag(4), "one class"),
        (tag(4), Segments(SIZE, [4, 0]), "score"),
        (tag(4), Segments(SIZE, [4, 4], score=[0.1, 0.2]), "twice"),
        (tag(4), Segments(SIZE, [4], score=[np.nan]), "NaN"),
        (tag(4), Segments((9, 9), [4], score=[0.1]), "size"),
        (tag(4), tag(5), "5"),
        (tag(5), tag(4), "5"),
    ],
)
def test_bad_input(truth, prediction, words):
    with pytest.raises(InputError, match=words) as caught:
        ClassificationMetric(CATEGORIES).update(truth, prediction, "street")
    assert "street" in str(caught.value)


def test_unequal_metrics_do_not_merge():
    with pytest.raises(InputError, match="cannot be merged"):
        ClassificationMetric(CATEGORIES).merge(ClassificationMetric(Categories(["a"])))
