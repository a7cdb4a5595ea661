"""Matching of objects against `stardist.matching`, and against brute force where stardist has no such figure."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from everymask.errors import InputError
from everymask.metrics import assignment, choose_protocol, make_metric
from everymask.metrics.matching import THRESHOLDS, MatchingMetric
from everymask.types import Categories, Category, LabelMap, Masks, Segments, Task

CELLS = Categories(["cell"])
LOW = (0.1, 0.25, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9, 1.0)
RATIOS = ("precision", "recall", "f1", "accuracy", "mean_matched_score", "mean_true_score", "panoptic_quality")


@pytest.fixture(scope="module")
def stardist_matching():
    return pytest.importorskip("stardist.matching", reason="stardist is the reference program")


def segments(ids, category=1, **columns):
    """Segments of a label map without renumbering, so that ids without pixels stay."""
    ids = np.asarray(ids, np.int32)
    count = max(int(ids.max(initial=0)), 0)
    return Segments(ids.shape, np.broadcast_to(category, (count,)), LabelMap(ids), **columns)


def scored(pairs, thresholds=THRESHOLDS, names=None):
    metric = MatchingMetric(CELLS, thresholds)
    for number, (truth, prediction) in enumerate(pairs):
        metric.update(segments(truth), segments(prediction), names[number] if names else str(number))
    return metric


def random_blobs(generator, side, objects):
    """A label map of overlapping rectangles painted one over the other; some end up without pixels."""
    ids = np.zeros((side, side), np.int32)
    for number in range(1, objects + 1):
        top, left = generator.integers(0, side, 2)
        height, width = generator.integers(1, max(2, side // 2), 2)
        ids[top : top + height, left : left + width] = number
    return ids


def perturb(ids, generator):
    """A prediction with the usual errors: shifted, eroded, merged, split and dropped objects."""
    made = np.roll(ids, generator.integers(-2, 3, 2), axis=(0, 1))
    present = [int(each) for each in np.unique(made) if each > 0]
    following = int(made.max(initial=0)) + 1
    for number in present:
        mask = made == number
        match generator.integers(6):
            case 0:
                made[mask & ~ndimage.binary_erosion(mask, iterations=2)] = 0
            case 1:
                neighbours = made[ndimage.binary_dilation(mask, iterations=3)]
                made[mask] = neighbours.max()
            case 2:
                rows = np.flatnonzero(mask.any(axis=1))
                half = mask.copy()
                half[: int(rows.mean()) + 1] = False
                made[half] = following
                following += 1
            case 3:
                made[mask] = 0
    return made


def fuzzed_pairs(seed, count):
    generator = np.random.default_rng(seed)
    for number in range(count):
        side = int(generator.integers(2, 24))
        truth = random_blobs(generator, side, int(generator.integers(0, 9)))
        match number % 3:
            case 0:
                prediction = random_blobs(generator, side, int(generator.integers(0, 9)))
            case 1:
                prediction = perturb(truth, generator)
            case _:
                # Nested halves: IoU of exactly .5, .25 ... and so exact ties.
                prediction = truth * 2 + (np.arange(side)[:, None] % 2 if number % 2 else np.arange(side) % 2)
                prediction[truth == 0] = 0
        yield truth, prediction


def assert_equals_stardist(figures, reference, threshold):
    for key in ("tp", "fp", "fn"):
        assert figures[f"{key}@{threshold:g}"] == getattr(reference, key), (key, threshold)
    assert figures["true_objects"] == reference.n_true
    assert figures["predicted_objects"] == reference.n_pred
    for key in ("precision", "recall", "f1", "accuracy"):
        assert figures[f"{key}@{threshold:g}"] == pytest.approx(getattr(reference, key), abs=1e-12), (key, threshold)
    for key in ("mean_matched_score", "mean_true_score", "panoptic_quality"):
        # stardist keeps IoU in single precision.
        assert figures[f"{key}@{threshold:g}"] == pytest.approx(getattr(reference, key), abs=2e-6), (key, threshold)


def test_single_images_equal_stardist(stardist_matching):
    choices = 0
    for truth, prediction in fuzzed_pairs(0, 600):
        figures = scored([(truth, prediction)], LOW).compute()
        for threshold, reference in zip(LOW, stardist_matching.matching(truth, prediction, LOW), strict=True):
            assert_equals_stardist(figures, reference, threshold)
            choices += threshold < 0.5 and reference.tp > 0
    assert choices > 300


def test_lowest_threshold_on_dense_tissue_equals_stardist(stardist_matching):
    """Voronoi cells against other Voronoi cells: one connected component of ambiguous overlaps."""
    generator = np.random.default_rng(1)
    maps = []
    for _ in range(2):
        seeds = np.zeros((150, 150), np.int32)
        seeds[tuple(generator.integers(0, 150, (2, 120)))] = 1
        seeds[seeds > 0] = np.arange(1, seeds.sum() + 1)
        nearest = ndimage.distance_transform_edt(seeds == 0, return_distances=False, return_indices=True)
        maps.append(seeds[tuple(nearest)])
    thresholds = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4)
    figures = scored([tuple(maps)], thresholds).compute()
    for threshold, reference in zip(thresholds, stardist_matching.matching(*maps, thresholds), strict=True):
        assert_equals_stardist(figures, reference, threshold)


def test_pooled_over_images_equals_stardist(stardist_matching):
    pairs = list(fuzzed_pairs(2, 60))
    figures = scored(pairs).compute()
    references = stardist_matching.matching_dataset(*zip(*pairs, strict=True), thresh=THRESHOLDS, show_progress=False)
    for threshold, reference in zip(THRESHOLDS, references, strict=True):
        assert_equals_stardist(figures, reference, threshold)


def figures_in_double_precision(pairs, threshold):
    """The official rule with IoU in double precision, object by object: counts and the sum of matched IoU."""
    true = predicted = matched = 0
    score = []
    for truth, prediction in pairs:
        shared, joint = dense_iou(truth, prediction)
        true, predicted = true + shared.shape[0], predicted + shared.shape[1]
        if not shared.size:
            continue
        iou = shared / joint
        rows, columns = linear_sum_assignment(-(iou >= threshold).astype(float) - iou / (2 * min(iou.shape)))
        hits = iou[rows, columns] >= threshold
        matched += int(hits.sum())
        score += iou[rows, columns][hits].tolist()
    total = math.fsum(score)
    return {
        "mean_matched_score": total / matched if matched else 0,
        "mean_true_score": total / true if true else 0,
        "panoptic_quality": total / ((true + predicted) / 2) if true + predicted else 0,
    }


def test_mean_scores_to_the_last_digits():
    """stardist rounds IoU to single precision; without that rounding its rule gives our figures."""
    pairs = list(fuzzed_pairs(12, 80))
    figures = scored(pairs, LOW).compute()
    for threshold in LOW:
        for name, value in figures_in_double_precision(pairs, threshold).items():
            assert figures[f"{name}@{threshold:g}"] == pytest.approx(value, abs=1e-9), (name, threshold)


def test_means_over_images_equal_stardist(stardist_matching):
    pairs = [(truth, prediction) for truth, prediction in fuzzed_pairs(3, 60) if truth.any() or prediction.any()]
    figures = scored(pairs).compute()
    references = stardist_matching.matching_dataset(
        *zip(*pairs, strict=True), thresh=THRESHOLDS, show_progress=False, by_image=True
    )
    for threshold, reference in zip(THRESHOLDS, references, strict=True):
        for key in RATIOS:
            assert figures[f"image_{key}@{threshold:g}"] == pytest.approx(getattr(reference, key), abs=2e-6), key


def test_nuclei_with_perturbed_predictions_equal_stardist(stardist_matching, shared_data):
    tifffile = pytest.importorskip("tifffile")
    from PIL import Image

    files = sorted((shared_data / "dsb2018" / "val" / "masks").iterdir())[:20]
    assert len(files) == 20
    generator = np.random.default_rng(4)
    pairs = []
    for file in files:
        read = tifffile.imread(file) if file.suffix.startswith(".tif") else np.asarray(Image.open(file))
        truth = read.astype(np.int32)
        assert truth.ndim == 2
        assert truth.any()
        pairs.append((truth, perturb(truth, generator)))
    figures = scored(pairs).compute()
    references = stardist_matching.matching_dataset(*zip(*pairs, strict=True), thresh=THRESHOLDS, show_progress=False)
    for threshold, reference in zip(THRESHOLDS, references, strict=True):
        assert_equals_stardist(figures, reference, threshold)
    assert 0.2 < figures["accuracy@0.5"] < 0.9


def dense_iou(truth, prediction):
    """(N, M) IoU of all objects, by their masks."""
    rows = [truth == each for each in np.unique(truth[truth > 0])]
    columns = [prediction == each for each in np.unique(prediction[prediction > 0])]
    shared = np.array([[(a & b).sum() for b in columns] for a in rows], float).reshape(len(rows), len(columns))
    joint = np.array([[(a | b).sum() for b in columns] for a in rows], float).reshape(len(rows), len(columns))
    return shared, joint


def test_mean_over_images_follows_cellpose():
    """cellpose's average precision is NaN for an image that is empty on both sides; its users take the nanmean."""
    pairs = [*fuzzed_pairs(5, 30), (np.zeros((4, 4), int), np.zeros((4, 4), int))]
    expected = []
    for truth, prediction in pairs:
        shared, joint = dense_iou(truth, prediction)
        count, iou = sum(shared.shape), shared / joint if shared.size else shared
        hits = []
        for threshold in THRESHOLDS:
            cost = -(iou >= threshold).astype(float) - iou / (2 * max(1, min(iou.shape)))
            row, column = linear_sum_assignment(cost)
            hits.append((iou[row, column] >= threshold).sum())
        expected.append([hit / (count - hit) if count else np.nan for hit in hits])
    figures = scored(pairs).compute()
    for threshold, value in zip(THRESHOLDS, np.nanmean(expected, axis=0), strict=True):
        assert figures[f"image_accuracy@{threshold:g}"] == pytest.approx(value, abs=1e-12)
    assert figures["image_mean_accuracy"] == pytest.approx(np.nanmean(expected), abs=1e-12)


def brute_force_aji(truth, prediction):
    """Kumar et al. 2017, algorithm 1, step by step on masks."""
    shared, joint = dense_iou(truth, prediction)
    true_areas = [(truth == each).sum() for each in np.unique(truth[truth > 0])]
    predicted_areas = [(prediction == each).sum() for each in np.unique(prediction[prediction > 0])]
    above, below, used = 0.0, 0.0, set()
    for i in range(len(true_areas)):
        best = max(range(len(predicted_areas)), key=lambda j: (shared[i, j] / joint[i, j], -j), default=None)
        if best is None or shared[i, best] == 0:
            below += true_areas[i]
            continue
        above, below = above + shared[i, best], below + joint[i, best]
        used.add(best)
    return above, below + sum(area for j, area in enumerate(predicted_areas) if j not in used)


def test_aggregated_jaccard_index():
    pairs = list(fuzzed_pairs(6, 150))
    # One true object of 4 pixels, predicted objects with 1 of its 4 and with 2 of 8 pixels in common: of equal IoU the
    # first is taken, and the other is one too many.
    truth, prediction = np.zeros((2, 1, 9), int)
    truth[0, :4] = 1
    prediction[0, 0], prediction[0, 2:8] = 1, 2
    assert scored([(truth, prediction)]).compute()["aji"] == 1 / (4 + 6)
    pairs += [(truth, prediction), (truth, np.array([[0, 2, 1]])[0][prediction])]
    parts = [brute_force_aji(*pair) for pair in pairs]
    figures = scored(pairs).compute()
    assert figures["aji"] == pytest.approx(sum(a for a, _ in parts) / sum(b for _, b in parts), abs=1e-12)
    assert figures["image_aji"] == pytest.approx(np.mean([a / b for a, b in parts if b]), abs=1e-12)


@pytest.mark.parametrize("dense", [2**20, 0])
def test_jaccard_index_of_cellpose(monkeypatch, dense):
    """One assignment of all objects at IoU .5, by the pixels that it shares and those of any object."""
    monkeypatch.setattr(assignment, "_DENSE", dense)
    above, below, means = 0, 0, []
    pairs = list(fuzzed_pairs(11, 120))
    for truth, prediction in pairs:
        shared, joint = dense_iou(truth, prediction)
        numerator, denominator = 0, int(((truth > 0) | (prediction > 0)).sum())
        if shared.size:
            iou = shared / joint
            cost = -(iou >= 0.5).astype(float) - iou / (2 * min(iou.shape))
            numerator = shared[linear_sum_assignment(cost)].sum()
        above, below = above + numerator, below + denominator
        means += [numerator / denominator] if denominator else []
    metric = MatchingMetric(CELLS, jaccard="cellpose")
    for number, (truth, prediction) in enumerate(pairs):
        metric.update(segments(truth), segments(prediction), str(number))
    assert metric.compute()["aji"] == pytest.approx(above / below, abs=1e-12)
    assert metric.compute()["image_aji"] == pytest.approx(np.mean(means), abs=1e-12)
    assert abs(metric.compute()["aji"] - scored(pairs).compute()["aji"]) > 0.01


def test_worst_images_and_curves():
    pairs = list(fuzzed_pairs(13, 12))
    metric = scored(pairs)
    table = metric.images()
    assert table.judge == "accuracy@0.5"
    assert table.judge in table.columns
    assert scored(pairs, [0.7]).images().judge == "accuracy@0.7"
    figures = metric.compute()
    curves = {each.name: each for each in metric.curves()}
    assert set(curves) == {"accuracy", "F1", "precision", "recall"}
    for name, curve in curves.items():
        assert curve.x.tolist() == list(THRESHOLDS)
        assert curve.y.tolist() == [figures[f"{name.lower()}@{threshold:g}"] for threshold in THRESHOLDS]
    assert scored(pairs, [0.5]).curves() == []


@pytest.mark.parametrize("split", [1, 7, 29])
def test_merge_equals_one_process_to_the_last_bit(split):
    pairs = list(fuzzed_pairs(7, 60))
    names = [f"image{number}" for number in range(60)]
    whole = scored(pairs, LOW, names)
    order = np.random.default_rng(split).permutation(60)
    parts = [
        scored([pairs[i] for i in chosen], LOW, [names[i] for i in chosen]) for chosen in np.split(order, [split, 40])
    ]
    first, *others = reversed(parts)
    for other in others:
        first.merge(other)
    # repr gives every bit, and NaN equals NaN.
    assert repr(first.compute()) == repr(whole.compute())
    assert repr(first.tables()) == repr(whole.tables())
    assert repr(first.images()) == repr(whole.images())


def test_void_and_crowd_are_removed_from_both(stardist_matching):
    generator = np.random.default_rng(8)
    for truth, prediction in fuzzed_pairs(9, 100):
        void = generator.random(truth.shape) < 0.2
        for how in ("void", "crowd"):
            marked = truth.copy()
            crowd = np.zeros(int(truth.max()) + 1, bool)
            if how == "void":
                marked[void] = -1
            else:
                marked[void] = len(crowd)
                crowd[-1] = True
            metric = MatchingMetric(CELLS, LOW)
            count = int(marked.max(initial=0))
            metric.update(segments(marked, crowd=crowd[:count]), segments(prediction))
            cleaned = np.where(void, 0, truth), np.where(void, 0, prediction)
            for threshold, reference in zip(LOW, stardist_matching.matching(*cleaned, LOW), strict=True):
                assert_equals_stardist(metric.compute(), reference, threshold)


def test_void_of_the_prediction_is_background():
    truth, prediction = np.full((4, 4), 1), np.full((4, 4), 1)
    prediction[:2] = -1
    assert scored([(truth, prediction)]).compute()["mean_matched_score@0.5"] == 0.5


def test_objects_match_within_their_category(stardist_matching):
    categories = Categories([Category(3, "round"), Category(8, "long"), Category(9, "floor", is_thing=False)])
    generator = np.random.default_rng(10)
    metric = MatchingMetric(categories, LOW)
    expected = np.zeros((2, len(LOW), 3))
    for truth, prediction in fuzzed_pairs(11, 80):
        kinds = [generator.choice([3, 8, 9], int(ids.max())) for ids in (truth, prediction)]
        metric.update(segments(truth, kinds[0]), segments(prediction, kinds[1]))
        for row, identifier in enumerate((3, 8)):
            parts = [
                np.where(np.isin(ids, np.flatnonzero(kind == identifier) + 1), ids, 0)
                for ids, kind in zip((truth, prediction), kinds, strict=True)
            ]
            for column, each in enumerate(stardist_matching.matching(*parts, LOW)):
                expected[row, column] += each.tp, each.fp, each.fn
    figures = metric.compute()
    for column, threshold in enumerate(LOW):
        found = [figures[f"{key}@{threshold:g}"] for key in ("tp", "fp", "fn")]
        assert found == expected[:, column].sum(axis=0).tolist()
    table = metric.tables()[1]
    assert table.columns == ("category", "images", "true objects", "predicted objects", "accuracy@0.5")
    middle = LOW.index(0.5)
    for row, (name, counts) in zip(table.rows, zip(("round", "long"), expected[:, middle], strict=True), strict=True):
        assert row[0] == name
        assert row[2:] == pytest.approx((counts[0] + counts[2], counts[0] + counts[1], counts[0] / counts.sum()))


def test_a_single_category_matches_whatever_the_ids():
    ids = np.array([[1, 1, 0, 2]])
    metric = MatchingMetric(CELLS)
    metric.update(segments(ids, 5), segments(ids, 7))
    assert metric.compute()["tp@0.95"] == 2


def test_kinds_of_image_are_compared():
    pairs = list(fuzzed_pairs(12, 20))
    metric = MatchingMetric(CELLS)
    for number, (truth, prediction) in enumerate(pairs):
        metric.update(segments(truth), segments(prediction), str(number), group="even" if number % 2 == 0 else "odd")
    kinds = metric.tables()[-1]
    assert kinds.columns[-2:] == ("accuracy@0.5", "accuracy@0.7")
    for row, start in zip(kinds.rows, (0, 1), strict=True):
        alone = scored(pairs[start::2]).compute()
        assert row == (
            ("even", "odd")[start], 10, alone["true_objects"], alone["predicted_objects"],
            alone["accuracy@0.5"], alone["accuracy@0.7"],
        )  # fmt: skip


def test_volumes_match_like_images():
    generator = np.random.default_rng(13)
    truth, prediction = generator.integers(0, 6, (2, 5, 6, 7))
    flat = scored([(truth.reshape(5, 42), prediction.reshape(5, 42))], LOW).compute()
    assert repr(scored([(truth, prediction)], LOW).compute()) == repr(flat)


def test_overlapping_masks_are_told():
    metric = MatchingMetric(CELLS)
    # 2 x 2 pixels, runs down the columns: the left column, and the whole image.
    geometry = Masks.join((2, 2), [np.array([0, 2, 2], np.uint32), np.array([0, 4], np.uint32)])
    metric.update(Segments((2, 2), [1, 1], geometry), segments([[1, 1], [1, 1]]))
    assert "2 pixels of the truth" in metric.tables()[0].note
    assert metric.compute()["tp@0.95"] == 1


def test_nothing_scored_and_nothing_found():
    figures = MatchingMetric(CELLS).compute()
    assert figures["images"] == 0
    assert figures["accuracy@0.5"] == 0
    assert np.isnan(figures["image_accuracy@0.5"])
    assert np.isnan(figures["aji"])
    empty = np.zeros((3, 3), int)
    assert np.isnan(scored([(empty, empty)]).images().rows[0][4])
    assert scored([(empty, empty + 1)]).compute()["image_accuracy@0.5"] == 0


def test_mistakes_name_the_image():
    metric = MatchingMetric(Categories(["a", "b"]))
    with pytest.raises(InputError, match=r"'cat.png'.*2 x 3.*3 x 2"):
        metric.update(segments(np.zeros((2, 3))), segments(np.zeros((3, 2))), "cat.png")
    with pytest.raises(InputError, match=r"'cat.png'.*1 of 2 predicted scores are NaN"):
        metric.update(segments([[1, 2]]), segments([[1, 2]], score=[0.5, np.nan]), "cat.png")
    with pytest.raises(InputError, match=r"'cat.png'.*prediction.*unknown category ids \[7\]"):
        metric.update(segments([[1]]), segments([[1]], 7), "cat.png")
    with pytest.raises(InputError, match=r"'cat.png'.*no masks"):
        metric.update(segments([[1]]), Segments((1, 1), [1], box=[[0, 0, 1, 1]]), "cat.png")
    assert metric.records == []
    for thresholds in ([], [0.0], [1.5], [float("nan")]):
        with pytest.raises(InputError, match="thresholds"):
            MatchingMetric(CELLS, thresholds)
    with pytest.raises(InputError, match="semantic"):
        MatchingMetric(Categories([Category(1, "sky", is_thing=False), Category(2, "sea", is_thing=False)]))
    with pytest.raises(InputError, match="merged"):
        MatchingMetric(CELLS).merge(MatchingMetric(CELLS, [0.5]))
    with pytest.raises(InputError, match="merged"):
        MatchingMetric(CELLS).merge(MatchingMetric(CELLS, jaccard="cellpose"))
    with pytest.raises(InputError, match="did you mean 'cellpose'"):
        MatchingMetric(CELLS, jaccard="celpose")


def test_protocols_by_name_and_by_task():
    assert isinstance(make_metric("matching", CELLS, thresholds=[0.5]), MatchingMetric)
    with pytest.raises(InputError, match="did you mean 'matching'"):
        make_metric("maching", CELLS)
    with pytest.raises(InputError, match="did you mean 'thresholds'"):
        make_metric("matching", CELLS, treshold=0.5)
    alone = make_metric("matching", CELLS, thresholds=0.5)
    assert isinstance(alone, MatchingMetric) and alone.thresholds == (0.5,)
    with pytest.raises(InputError, match="cannot work with thresholds 'x'"):
        make_metric("matching", CELLS, thresholds="x")
    with pytest.raises(InputError, match="cannot work with areas 5"):
        make_metric("coco_boxes", CELLS, areas=5)
    assert choose_protocol({Task.SEMANTIC, Task.INSTANCE}) == "matching"
    with pytest.raises(InputError, match="no protocol"):
        choose_protocol([])


def test_import_is_light():
    program = (
        "import sys, everymask.metrics; "
        "print([each for each in ('torch', 'numba', 'scipy', 'PIL') if each in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
