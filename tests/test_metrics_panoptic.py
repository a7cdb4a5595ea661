"""Panoptic quality against a slow program of our own, written from the published rules on sets of pixels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from everymask.errors import InputError
from everymask.formats import open_dataset
from everymask.metrics import make_metric
from everymask.metrics.panoptic import PanopticMetric
from everymask.metrics.read_ahead import read_ahead
from everymask.types import Categories, Category, LabelMap, Sample, Segments
from everymask.types.label_runs import LabelRuns

CATEGORIES = Categories(
    [Category(7, "car"), Category(3, "cat"), Category(90, "sky", False), Category(12, "sea", False)]
)


def slow_quality(pairs: list[tuple[Segments, Segments]], categories: Categories) -> dict[str, dict[Any, Any]]:
    """TP, FP, FN and sum of IoU by category, pixel set by pixel set; and the means."""
    table = {each.id: {"tp": 0, "fp": 0, "fn": 0, "iou": []} for each in categories}
    for truth, prediction in pairs:
        t, p = (each.label_map("last").ravel().tolist() for each in (truth, prediction))
        void = {i for i, value in enumerate(t) if value <= 0}
        true = [{i for i, value in enumerate(t) if value == n + 1} for n in range(len(truth))]
        found = [{i for i, value in enumerate(p) if value == n + 1} for n in range(len(prediction))]
        matched_true, matched_found = set(), set()
        for a, pixels in enumerate(true):
            for b, others in enumerate(found):
                if truth.crowd[a] or truth.category[a] != prediction.category[b] or not pixels & others:
                    continue
                iou = len(pixels & others) / len((pixels | others) - (others & void))
                if iou > 0.5:
                    table[int(truth.category[a])]["tp"] += 1
                    table[int(truth.category[a])]["iou"].append(iou)
                    matched_true.add(a)
                    matched_found.add(b)
        crowds: dict[int, set[int]] = {}
        for a, pixels in enumerate(true):
            if truth.crowd[a]:
                crowds[int(truth.category[a])] = pixels
            elif a not in matched_true:
                table[int(truth.category[a])]["fn"] += 1
        for b, others in enumerate(found):
            category = int(prediction.category[b])
            if not others or b in matched_found:
                continue
            if len(others & void) + len(others & crowds.get(category, set())) <= len(others) / 2:
                table[category]["fp"] += 1
    for row in table.values():
        half = row["tp"] + row["fp"] / 2 + row["fn"] / 2
        row["pq"] = sum(row["iou"]) / half if half else math.nan
        row["sq"] = (sum(row["iou"]) / row["tp"] if row["tp"] else 0.0) if half else math.nan
        row["rq"] = row["tp"] / half if half else math.nan
    means = {}
    for end, wanted in (("", {True, False}), ("_things", {True}), ("_stuff", {False})):
        rows = [table[each.id] for each in categories if each.is_thing in wanted and table[each.id]["pq"] >= 0]
        means[end] = {
            name: sum(row[name] for row in rows) / len(rows) if rows else math.nan for name in ("pq", "sq", "rq")
        }
        means[end]["categories"] = len(rows)
    return {"table": table, "means": means}


def assert_equal(metric: PanopticMetric, pairs: list[tuple[Segments, Segments]], categories: Categories) -> None:
    slow, figures = slow_quality(pairs, categories), metric.compute()
    for end, row in slow["means"].items():
        for name, value in row.items():
            assert figures[f"{name}{end}"] == pytest.approx(value, abs=1e-12, nan_ok=True), f"{name}{end}"
    rows = {row[0]: row for row in metric.tables()[1].rows}
    for each in categories:
        expected = slow["table"][each.id]
        assert rows[each.name][5:] == (expected["tp"], expected["fp"], expected["fn"])
        for name in ("pq", "sq", "rq"):
            assert figures[f"{name}/{each.name}"] == pytest.approx(expected[name], abs=1e-12, nan_ok=True)


def random_map(generator: np.random.Generator, count: int, lowest: int) -> np.ndarray:
    """(12, 15) blocky labels lowest..count."""
    small = generator.integers(lowest, count + 1, (4, 5))
    labels = np.kron(small, np.ones((3, 3), np.int64))
    noise = generator.random(labels.shape) < 0.1
    return np.where(noise, generator.integers(lowest, count + 1, labels.shape), labels)


def random_pair(generator: np.random.Generator) -> tuple[Segments, Segments]:
    """Truth with void, background and crowds, and a prediction that resembles it."""
    count = int(generator.integers(0, 7))
    true = random_map(generator, count, -1)
    classes = generator.choice(CATEGORIES.ids, count)
    truth = Segments(true.shape, classes, LabelMap(true), crowd=generator.random(count) < 0.3)
    extra = int(generator.integers(0, 3))
    moved = np.where(generator.random(true.shape) < 0.2, random_map(generator, count + extra, 0), true)
    guesses = np.concatenate([classes, generator.choice(CATEGORIES.ids, extra)])
    guesses = np.where(generator.random(len(guesses)) < 0.2, generator.choice(CATEGORIES.ids, len(guesses)), guesses)
    return truth, Segments(true.shape, guesses, LabelMap(moved), crowd=generator.random(len(guesses)) < 0.2)


def in_runs(segments: Segments) -> Segments:
    """The same with its label map as runs, as the readers give it."""
    from everymask.ops.label_runs import image_runs

    copy = Segments(segments.size, segments.category, crowd=segments.crowd)
    starts, labels = image_runs(segments.label_map())
    copy.geometry = LabelRuns((segments.size[0], segments.size[1]), starts, labels)
    return copy


@pytest.mark.parametrize("seed", range(40))
def test_fuzzed_maps_equal_the_published_rules(seed: int) -> None:
    generator = np.random.default_rng(seed)
    pairs = [random_pair(generator) for _ in range(6)]
    dense, runs, left, right = (PanopticMetric(CATEGORIES) for _ in range(4))
    for i, (truth, prediction) in enumerate(pairs):
        dense.update(truth, prediction, f"{i}")
        runs.update(in_runs(truth), in_runs(prediction), f"{i}")
        (left if i % 2 else right).update(truth, prediction, f"{i}")
    assert_equal(dense, pairs, CATEGORIES)
    assert_equal(runs, pairs, CATEGORIES)
    left.merge(right)
    assert repr(left.compute()) == repr(dense.compute())  # to the last bit, NaN included
    single = {row[0]: row[2] for row in dense.images().rows}
    for i, pair in enumerate(pairs):
        assert single[f"{i}"] == pytest.approx(slow_quality([pair], CATEGORIES)["means"][""]["pq"], nan_ok=True)


def test_real_truth_against_itself_and_moved(shared_data: Any) -> None:
    dataset = open_dataset(shared_data / "coco/panoptic2")
    same, moved = PanopticMetric(dataset.categories), PanopticMetric(dataset.categories)
    pairs = []
    for sample in dataset:
        truth = sample.segments
        assert truth is not None
        same.update(truth, truth, sample.name)
        ids = np.roll(truth.label_map(), (6, 9), (0, 1))
        # A small image: the slow program works on sets of pixels.
        small = Segments((90, 160), truth.category, LabelMap(truth.label_map()[:360:4, ::4]), crowd=truth.crowd)
        shifted = Segments((90, 160), truth.category, LabelMap(np.maximum(ids[:360:4, ::4], 0)))
        moved.update(small, shifted, sample.name)
        pairs.append((small, shifted))
    figures = same.compute()
    assert {figures[f"{name}{end}"] for name in ("pq", "sq", "rq") for end in ("", "_things", "_stuff")} == {1.0}
    assert (figures["categories"], figures["categories_things"], figures["categories_stuff"]) == (8, 4, 4)
    # 2,712 and 7,189 black pixels, as counted in the files
    assert f"{(2712 + 7189) / (640 * (427 + 360)):.1%} of the pixels are void" in same.tables()[0].note
    assert_equal(moved, pairs, dataset.categories)


def test_given_areas_are_those_of_the_official_program() -> None:
    ids = np.array([[1, 1, 1, 1, 2, 2, 2, 2]])
    truth = Segments((1, 8), [7, 90], LabelMap(ids), attributes={"area": [6, 4]})
    prediction = Segments((1, 8), [7, 90], LabelMap(ids))
    counted, given = PanopticMetric(CATEGORIES), PanopticMetric(CATEGORIES, given_areas=True)
    for metric in (counted, given):
        metric.update(truth, prediction)
    assert counted.compute()["pq/car"] == 1
    # union = 4 predicted + 6 stated - 4 shared
    assert given.compute()["pq/car"] == pytest.approx(4 / 6)
    assert "1 segments of the truth state another area" in counted.tables()[0].note
    with pytest.raises(InputError, match="different options cannot be merged"):
        counted.merge(given)


def test_masks_that_overlap_go_to_the_higher_score() -> None:
    masks = np.zeros((2, 4, 6), np.uint8)
    masks[0, :, :4] = 1
    masks[1, :, 2:] = 1
    prediction = Segments.from_masks(masks, [7, 3], score=[0.9, 0.4])
    truth = Segments((4, 6), [7, 3], LabelMap(np.repeat([[1, 1, 1, 1, 2, 2]], 4, axis=0)))
    metric = PanopticMetric(CATEGORIES)
    metric.update(truth, prediction)
    assert metric.compute()["pq"] == 1


def test_hidden_segments_of_the_truth_are_missed_and_hidden_predictions_do_not_exist() -> None:
    masks = np.ones((2, 4, 6), np.uint8)
    shown = Segments((4, 6), [7], LabelMap(np.ones((4, 6), np.int32)))
    metric = PanopticMetric(CATEGORIES)
    metric.update(shown, Segments.from_masks(masks, [7, 3], score=[0.9, 0.4]))
    assert metric.tables()[1].rows[0][5:] == (1, 0, 0)
    assert metric.tables()[1].rows[1][5:] == (0, 0, 0)
    metric = PanopticMetric(CATEGORIES)
    metric.update(Segments.from_masks(masks, [3, 7]), shown)
    assert metric.tables()[1].rows[1][5:] == (0, 0, 1)


def test_volumes_and_nothing_at_all() -> None:
    ids = np.zeros((3, 4, 5), np.int32)
    ids[1:, 1:3, 2:] = 1
    metric = make_metric("panoptic", CATEGORIES)
    assert math.isnan(metric.compute()["pq"])
    metric.update(Segments(ids.shape, [7], LabelMap(ids)), Segments(ids.shape, [7], LabelMap(ids)), "a", "big")
    metric.update(Segments.empty((4, 5)), Segments.empty((4, 5)), "b", "small")
    assert metric.compute()["pq"] == 1
    kinds = metric.tables()[2].rows
    assert kinds[0][:3] == ("big", 1, 1.0)
    assert math.isnan(float(kinds[1][2]))
    table = metric.images()
    assert table is not None
    assert table.judge == "PQ"


def test_bad_input() -> None:
    metric = PanopticMetric(CATEGORIES)
    one = Segments((4, 5), [7], LabelMap(np.ones((4, 5), np.int32)))
    with pytest.raises(InputError, match="image 'x': the truth has size 4 x 5, the prediction 4 x 6"):
        metric.update(one, Segments.empty((4, 6)), "x")
    with pytest.raises(InputError, match=r"image 'x': the prediction has unknown category ids \[8\]"):
        metric.update(one, one.with_category([8]), "x")
    with pytest.raises(InputError, match="cannot be scored by pixels"):
        metric.update(one, Segments((4, 5), [7], box=[[0, 0, 2, 2]]), "x")
    assert metric.records == []


@pytest.mark.parametrize("threads", [1, 3])
def test_reading_ahead_keeps_the_order_and_the_errors(threads: int) -> None:
    from everymask.types import Dataset, Task

    def sample(number: int) -> Sample:
        segments = None if number == 4 else Segments.empty((2, number + 1))
        return Sample(f"{number}", lambda: np.zeros((2, 2, 1)), None if segments is None else lambda: segments)

    def predict(given: Sample) -> Segments:
        if given.name == "8":
            raise InputError("image 8 is damaged")
        return Segments.empty((3, int(given.name) + 1))

    dataset = Dataset.of([sample(i) for i in range(10)], CATEGORIES, frozenset({Task.PANOPTIC}))
    seen = []
    with pytest.raises(InputError, match="image 8 is damaged"):
        for given, truth, prediction in read_ahead(dataset, predict, threads=threads):
            seen.append(given.name)
            assert (truth is None) == (prediction is None) == (given.name == "4")
            assert truth is None or prediction is None or truth.size[1] == prediction.size[1] == int(given.name) + 1
    assert seen == [str(i) for i in range(8)]
