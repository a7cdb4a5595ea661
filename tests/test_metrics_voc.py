"""Average precision of VOC against a plain transcription of the devkit's rules, fuzzed and on real detections."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everymask.errors import InputError
from everymask.metrics.voc import RECALLS, VocMetric
from everymask.types import Categories, Category, LabelMap, Masks, Segments

CATEGORIES = Categories([Category(7, "cat"), Category(0, "dog"), Category(33, "cow")])


# -- the reference: VOCevaldet.m and VOCap.m, loop by loop -----------------------------------------------------------


def devkit_overlap(found, true, extra=1.0):
    left, top = max(found[0], true[0]), max(found[1], true[1])
    right, bottom = min(found[2], true[2]), min(found[3], true[3])
    width, height = right - left + extra, bottom - top + extra
    if width <= 0 or height <= 0:
        return -math.inf
    union = (
        (found[2] - found[0] + extra) * (found[3] - found[1] + extra)
        + (true[2] - true[0] + extra) * (true[3] - true[1] + extra)
        - width * height
    )
    return width * height / union


def devkit_average_precision(objects, detections, *, threshold=0.5, overlap=devkit_overlap, eleven=False):
    """Objects: image -> [(geometry, difficult)]; detections: [(image, score, geometry)] in order of images."""
    positive = sum(not difficult for each in objects.values() for _, difficult in each)
    taken = {image: [False] * len(each) for image, each in objects.items()}
    right, wrong = [], []
    for image, _, geometry in sorted(detections, key=lambda each: -each[1]):
        best, highest = None, -math.inf
        for number, (true, _) in enumerate(objects.get(image, [])):
            value = overlap(geometry, true)
            if value > highest:
                best, highest = number, value
        tp = fp = 0
        if highest >= threshold:
            if not objects[image][best][1]:
                if taken[image][best]:
                    fp = 1
                else:
                    tp, taken[image][best] = 1, True
        else:
            fp = 1
        right.append(tp)
        wrong.append(fp)
    if not positive:
        return math.nan
    recall, precision = [], []
    for number in range(1, len(right) + 1):
        tp, fp = sum(right[:number]), sum(wrong[:number])
        recall.append(tp / positive)
        precision.append(tp / (tp + fp) if tp + fp else 0.0)
    if eleven:
        total = 0.0
        for recall_wanted in matlab_range():
            total += max([p for r, p in zip(recall, precision, strict=True) if r >= recall_wanted], default=0.0) / 11
        return total
    recall, precision = [0.0, *recall, 1.0], [0.0, *precision, 0.0]
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    return sum((recall[i] - recall[i - 1]) * precision[i] for i in range(1, len(recall)))


def matlab_range():
    """0:0.1:1 as MATLAB counts it: from both ends towards the middle."""
    values = [0.0] * 11
    for step in range(6):
        values[step], values[10 - step] = step * 0.1, 1 - step * 0.1
    values[5] = (0.0 + 1.0) / 2
    return values


def test_eleven_recalls():
    assert list(RECALLS) == matlab_range()
    assert [each == k / 10 for k, each in enumerate(RECALLS)] == [k != 3 for k in range(11)]


# -- fuzz ------------------------------------------------------------------------------------------------------------


def random_scene(generator, images, sizes=(30, 40), whole=True):
    """Pairs of truth and prediction with difficult objects, ties in score, duplicates, and empty images."""
    pairs = []
    for number in range(images):
        count = int(generator.integers(0, 6))
        corner = generator.uniform(0, 20, (count, 2))
        boxes = np.hstack([corner, corner + generator.uniform(0, 12, (count, 2))])
        copies = boxes[generator.integers(0, count, 8)] if count else np.zeros((0, 4))
        found = np.sort((copies + generator.normal(0, 2, copies.shape)).reshape(-1, 2, 2), axis=1).reshape(-1, 4)
        if whole:
            boxes, found = boxes.round(), found.round()
        truth = Segments(
            sizes,
            generator.choice(CATEGORIES.ids, count),
            box=boxes,
            attributes={"difficult": generator.random(count) < 0.3},
        )
        category = generator.choice(CATEGORIES.ids, len(found))
        if count:
            nearest = [int(np.argmin(np.abs(boxes - each).sum(1))) for each in found]
            category = np.where(generator.random(len(found)) < 0.8, truth.category[nearest], category)
        score = generator.integers(0, 10, len(found)) / 10
        pairs.append((truth, Segments(sizes, category, box=found, score=score), f"{number:03}"))
    return pairs


def scored(pairs, **options):
    metric = VocMetric(CATEGORIES, **options)
    for truth, prediction, name in pairs:
        metric.update(truth, prediction, name)
    return metric


def by_devkit(pairs, geometry, **options):
    found = []
    for category in CATEGORIES:
        objects, detections = {}, []
        for truth, prediction, name in pairs:
            of_class = np.flatnonzero(truth.category == category.id)
            true = geometry(truth)
            objects[name] = [(true[i], bool(truth.attributes["difficult"][i])) for i in of_class]
            given = geometry(prediction)
            detections += [
                (name, prediction.score[i], given[i]) for i in np.flatnonzero(prediction.category == category.id)
            ]
        found.append(devkit_average_precision(objects, detections, **options))
    return found


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    eleven=st.booleans(),
    plus_one=st.booleans(),
    threshold=st.sampled_from([0.3, 0.5, 0.75]),
    whole=st.booleans(),
)
def test_boxes_equal_the_devkit(seed, eleven, plus_one, threshold, whole):
    pairs = random_scene(np.random.default_rng(seed), 12, whole=whole)
    metric = scored(pairs, interpolation="11" if eleven else "all", plus_one=plus_one, threshold=threshold)
    expected = by_devkit(
        pairs,
        Segments.boxes,
        threshold=threshold,
        eleven=eleven,
        overlap=lambda a, b: devkit_overlap(a, b, float(plus_one)),
    )
    figures = metric.compute()
    assert [figures[f"ap/{name}"] for name in CATEGORIES.names] == pytest.approx(expected, abs=1e-12, nan_ok=True)
    present = [each for each in expected if not math.isnan(each)]
    if present:
        assert figures["map"] == pytest.approx(sum(present) / len(present), abs=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_masks_equal_the_devkit_with_mask_overlap(seed):
    generator = np.random.default_rng(seed)
    pairs = []
    for truth, prediction, name in random_scene(generator, 6):
        made = []
        for each in (truth, prediction):
            dense = np.zeros((len(each), *each.size), bool)
            for mask, (x0, y0, x1, y1) in zip(dense, each.boxes().clip(0, 30).astype(int), strict=True):
                mask[y0 : y1 + 1, x0 : x1 + 1] = generator.random(mask[y0 : y1 + 1, x0 : x1 + 1].shape) < 0.95
            made.append(Segments.from_masks(dense, each.category, score=each.score, attributes=each.attributes))
        pairs.append((*made, name))

    def overlap(a, b):
        return (a & b).sum() / max((a | b).sum(), 1)

    expected = by_devkit(pairs, Segments.masks, overlap=overlap)
    figures = scored(pairs, kind="masks").compute()
    assert isinstance(pairs[0][0].geometry, Masks)
    assert [figures[f"ap/{name}"] for name in CATEGORIES.names] == pytest.approx(expected, abs=1e-12, nan_ok=True)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.randoms())
def test_merged_metrics_have_the_same_bits(seed, shuffler):
    pairs = random_scene(np.random.default_rng(seed), 9)
    whole = scored(pairs)
    shuffled = list(pairs)
    shuffler.shuffle(shuffled)
    first, second = scored(shuffled[:4]), scored(shuffled[4:])
    first.merge(second)
    assert repr(first.compute()) == repr(whole.compute())
    assert repr(first.tables()) == repr(whole.tables())
    assert repr(first.images()) == repr(whole.images())
    for one, other in zip(first.curves(), whole.curves(), strict=True):
        assert np.array_equal(one.x, other.x)
        assert np.array_equal(one.y, other.y)


# -- rules, by hand --------------------------------------------------------------------------------------------------


def boxes(values, **columns):
    return Segments((100, 100), [7] * len(values), box=values, **columns)


def test_duplicates_are_false_positives_and_difficult_objects_count_neither_way():
    truth = boxes([[0, 0, 9, 9], [50, 50, 59, 59]], attributes={"difficult": [False, True]})
    found = boxes([[0, 0, 9, 9], [0, 0, 9, 8], [50, 50, 59, 59], [50, 50, 59, 58]], score=[0.9, 0.8, 0.7, 0.6])
    metric = VocMetric(CATEGORIES)
    metric.update(truth, found, "a")
    figures = metric.compute()
    assert (figures["true_objects"], figures["difficult_objects"], figures["predicted_objects"]) == (1, 1, 4)
    assert figures["ap/cat"] == 1
    row = metric.tables()[0].rows[0]
    assert row[3:] == (1, 1, 1, 1)  # one true, one difficult, one found, one duplicate
    assert metric.images().rows == (("a", "", 1, 1, 1, 1, 1.0),)


def test_crowd_regions_are_like_difficult_objects():
    metric = VocMetric(CATEGORIES)
    metric.update(boxes([[0, 0, 9, 9]], crowd=[True]), boxes([[0, 0, 9, 9]], score=[1]), "a")
    assert math.isnan(metric.compute()["map"])
    assert metric.tables()[0].rows[0][5:] == (0, 0)


def test_the_best_object_decides_even_if_it_is_taken():
    """A detection does not fall back on its second best object, other than in COCO."""
    truth = boxes([[0, 0, 99, 99], [10, 0, 99, 99]])
    found = boxes([[0, 0, 99, 99], [1, 0, 99, 99]], score=[0.9, 0.8])
    metric = VocMetric(CATEGORIES)
    metric.update(truth, found, "a")
    assert metric.compute()["ap/cat"] == 0.5


def test_ties_are_taken_in_order_of_image_names():
    right = (boxes([[0, 0, 9, 9]]), boxes([[0, 0, 9, 9]], score=[0.5]))
    wrong = (boxes([]), boxes([[0, 0, 9, 9]], score=[0.5]))
    first, second = VocMetric(CATEGORIES), VocMetric(CATEGORIES)
    for metric, names in ((first, ("a", "b")), (second, ("b", "a"))):
        metric.update(*right, names[0])
        metric.update(*wrong, names[1])
    assert (first.compute()["ap/cat"], second.compute()["ap/cat"]) == (1.0, 0.5)


def test_one_pixel_boxes():
    metrics = {plus: VocMetric(CATEGORIES, plus_one=plus) for plus in (True, False)}
    for metric in metrics.values():
        metric.update(boxes([[3, 3, 3, 3]]), boxes([[3, 3, 3, 3]], score=[1]), "a")
    assert metrics[True].compute()["map"] == 1
    assert metrics[False].compute()["map"] == 0


def test_kinds_of_image_are_compared():
    metric = VocMetric(CATEGORIES)
    metric.update(boxes([[0, 0, 9, 9]]), boxes([[0, 0, 9, 9]], score=[1]), "a", "day")
    metric.update(boxes([[0, 0, 9, 9]]), boxes([]), "b", "night")
    assert metric.tables()[1].rows == (("day", 1, 1, 1.0), ("night", 1, 1, 0.0))


def test_long_curves_are_thinned():
    metric = VocMetric(CATEGORIES)
    for number in range(1200):
        metric.update(boxes([[0, 0, 9, 9]]), boxes([[0, 0, 9, 9]], score=[1 - number / 1200]), f"{number:04}")
    (curve,) = metric.curves()
    assert len(curve.x) == 1000
    assert curve.x[-1] == 1
    assert (np.diff(curve.x) > 0).all()
    assert (curve.y == 1).all()


def test_nothing_at_all():
    metric = VocMetric(CATEGORIES)
    assert math.isnan(metric.compute()["map"])
    assert metric.curves() == []
    assert metric.images().rows == ()


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"interpolation": "10"}, {"threshold": 0}, {"threshold": 1.1}, {"kind": "points"}])
def test_bad_options(options):
    with pytest.raises(InputError, match="expected"):
        VocMetric(CATEGORIES, **options)


@pytest.mark.parametrize(
    ("truth", "prediction", "words"),
    [
        (boxes([[0, 0, 9, 9]]), boxes([[0, 0, 9, 9]]), "scores"),
        (boxes([[0, 0, 9, 9]]), boxes([[0, 0, 9, 9]], score=[np.nan]), "NaN"),
        (boxes([[0, 0, 9, 9]]), boxes([[0, 0, 9, np.inf]], score=[1]), "finite"),
        (boxes([[0, 0, 9, 9]]), Segments((9, 9), [7], box=[[0, 0, 1, 1]], score=[1]), "size"),
        (boxes([[0, 0, 9, 9]]), Segments((100, 100), [8], box=[[0, 0, 1, 1]], score=[1]), "8"),
        (boxes([[0, 0, 9, 9]]), Segments((100, 100), [7], score=[1]), "boxes"),
    ],
)
def test_bad_predictions(truth, prediction, words):
    with pytest.raises(InputError, match=words) as caught:
        VocMetric(CATEGORIES).update(truth, prediction, "street")
    assert "street" in str(caught.value)


def test_masks_need_masks():
    truth = Segments((9, 9), [7], LabelMap(np.ones((9, 9), np.int32)))
    with pytest.raises(InputError, match="masks"):
        VocMetric(CATEGORIES, kind="masks").update(truth, Segments((9, 9), [7], box=[[0, 0, 1, 1]], score=[1]), "a")


def test_unequal_metrics_do_not_merge():
    with pytest.raises(InputError, match="cannot be merged"):
        VocMetric(CATEGORIES).merge(VocMetric(CATEGORIES, threshold=0.7))


# -- real detections -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eleven", [False, True])
@pytest.mark.parametrize("threshold", [0.5, 0.75])
def test_voc100(shared_data, eleven, threshold):
    """452 detections of 100 images, read here by plain XML and JSON code, not by the format."""
    folder = shared_data / "detection" / "voc100"
    content = json.loads((folder / "dets/coco_format/coco_dets.json").read_text())
    names = {each["id"]: each["name"] for each in content["categories"]}
    files = {each["id"]: each["file_name"].removesuffix(".jpg") for each in content["images"]}
    found = defaultdict(list)
    for each in content["annotations"]:
        x, y, width, height = each["bbox"]
        found[files[each["image_id"]]].append(
            (names[each["category_id"]], each["score"], (x, y, x + width, y + height))
        )
    assert sum(map(len, found.values())) == 452
    categories = Categories(sorted(names.values()))
    metric = VocMetric(categories, "11" if eleven else "all", threshold)
    objects, detections = defaultdict(dict), defaultdict(list)
    for path in sorted((folder / "gts/pascalvoc_format").glob("*.xml")):
        root = ElementTree.parse(path).getroot()
        size = (int(root.findtext("size/height")), int(root.findtext("size/width")))
        rows = [
            (
                each.findtext("name"),
                tuple(float(each.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax")),
                each.findtext("difficult") == "1",
            )
            for each in root.findall("object")
        ]
        for name in categories.names:
            objects[name][path.stem] = [(box, difficult) for kind, box, difficult in rows if kind == name]
        for name, score, box in found[path.stem]:
            detections[name].append((path.stem, score, box))
        metric.update(
            Segments(
                size,
                [categories.by_name(each[0]).id for each in rows],
                box=[each[1] for each in rows],
                attributes={"difficult": [each[2] for each in rows]},
            ),
            Segments(
                size,
                [categories.by_name(each[0]).id for each in found[path.stem]],
                box=[each[2] for each in found[path.stem]],
                score=[each[1] for each in found[path.stem]],
            ),
            path.stem,
        )
    figures = metric.compute()
    assert (figures["images"], figures["true_objects"], figures["difficult_objects"]) == (100, 235, 38)
    assert figures["predicted_objects"] == 452
    for name in categories.names:
        expected = devkit_average_precision(objects[name], detections[name], eleven=eleven, threshold=threshold)
        assert figures[f"ap/{name}"] == pytest.approx(expected, abs=1e-12)
