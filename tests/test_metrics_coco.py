"""COCO average precision against pycocotools: bit for bit, whole arrays of precision and recall."""

from __future__ import annotations

import contextlib
import io
import json
from itertools import pairwise

import numpy as np
import pytest

pytest.importorskip("pycocotools", reason="pycocotools is the reference program")
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from everymask.errors import InputError
from everymask.metrics import METRICS, make_metric
from everymask.metrics.coco import CocoBoxMetric, CocoMaskMetric
from everymask.metrics.coco_files import evaluate_files
from everymask.metrics.coco_matching import descending_keys, sort_rows
from everymask.metrics.coco_parts import box_sides
from everymask.metrics.coco_rules import AREAS, THRESHOLDS, UNLIMITED
from everymask.ops import rle
from everymask.ops.rle_pairs import extents, pair_overlaps
from everymask.types import Categories, Category, LabelMap, Masks, Segments

CLASSES = {"boxes": CocoBoxMetric, "masks": CocoMaskMetric}
FIGURES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
FIGURES += ("ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large")
SIZE = (120, 160)


# -- made-up data sets in the form of COCO's files ---------------------------------------------------------------------


def made(seed, *, images=8, kind="boxes", digits=1, with_boxes=False, categories=(1, 2, 5, 9)):
    """A truth and a list of results with all that is odd: see the body."""
    generator = np.random.default_rng(seed)
    ids = generator.choice(900, images, replace=False) + 1
    truth = {
        # neither images nor categories are in order of their ids
        "images": [{"id": int(i), "file_name": f"{i:012}.jpg", "height": SIZE[0], "width": SIZE[1]} for i in ids],
        "categories": [{"id": k, "name": f"class {k}"} for k in generator.permutation(categories).tolist()],
        "annotations": [],
    }
    results = []
    for image in ids[: images - 1]:  # the last image is empty on both sides
        for _ in range(generator.integers(0, 9)):
            box = random_box(generator, digits)
            crowd = bool(generator.random() < 0.15)
            area = float(generator.choice([box[2] * box[3] * 0.8, 1024, 9216, 1025.5]))
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": int(image),
                    "category_id": int(generator.choice(categories[:-1])),  # one category has detections only
                    "bbox": box,
                    "area": area,
                    "iscrowd": int(crowd),
                    "segmentation": polygon(generator, box) if not crowd else runs(generator, box),
                }
            )
    for image in generator.permutation(ids[1:]):  # the first image has no detections
        near = [each for each in truth["annotations"] if each["image_id"] == image]
        for _ in range(generator.integers(0, 25)):
            box, category = random_box(generator, digits), int(generator.choice(categories))
            if near and generator.random() < 0.75:
                chosen = near[generator.integers(len(near))]
                box = [round(x + float(generator.normal(0, 2)), digits) for x in chosen["bbox"]]
                box = chosen["bbox"] if generator.random() < 0.3 else [*box[:2], *(max(x, 0) for x in box[2:])]
                category = chosen["category_id"] if generator.random() < 0.9 else category
            score = round(float(generator.random()), int(generator.integers(1, 4)))  # many are equal
            entry = {"image_id": int(image), "category_id": category, "score": score}
            if kind == "boxes" or with_boxes:
                entry["bbox"] = [float(x) for x in box]
            if kind == "masks":
                entry["segmentation"] = {
                    "size": list(SIZE),
                    "counts": compressed(runs(generator, box)["counts"]),
                }
            results.append(entry)
            if generator.random() < 0.05:
                results.append(dict(entry))
    return truth, results


def random_box(generator, digits):
    """x, y, width, height; some without area, many of a size at the edge of a range."""
    width, height = generator.choice([[0, 10], [32, 32], [96, 96], [5, 3]] + [generator.uniform(2, 100, 2)] * 6)
    x, y = generator.uniform(0, SIZE[1] - width), generator.uniform(0, SIZE[0] - height)
    return [round(float(each), digits) for each in (x, y, width, height)]


def polygon(generator, box):
    """Two parts that together fill about the box."""
    x, y, w, h = box
    middle = y + h * generator.uniform(0.3, 0.7)
    upper = [x, y, x + w, y, x + w, middle, x, middle]
    return [upper, [x, middle, x + w / 2, y + h, x + w, middle - 1]]


def runs(generator, box):
    """Uncompressed run lengths of an ellipse in the box, at times of no pixel at all."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    half = max(box[2] / 2, 0.1), max(box[3] / 2, 0.1)
    inside = ((x - box[0] - half[0]) / half[0]) ** 2 + ((y - box[1] - half[1]) / half[1]) ** 2 <= 1.2
    inside &= generator.random(SIZE) > generator.choice([0, 0.1])
    flat = np.concatenate([[False], inside.ravel(order="F"), [False]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], edges, [inside.size]])).tolist()
    return {"size": list(SIZE), "counts": counts}


def compressed(counts):
    return mask_utils.frPyObjects([{"size": list(SIZE), "counts": counts}], *SIZE)[0]["counts"].decode()


# -- the reference program ---------------------------------------------------------------------------------------------


def official(truth, results, kind, max_detections=(1, 10, 100)):
    """The evaluated `COCOeval`."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = json.loads(json.dumps(truth))
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(json.loads(json.dumps(results))), {"boxes": "bbox"}.get(kind, "segm"))
        evaluation.params.maxDets = list(max_detections)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def agree(metric, evaluation):
    """All figures and all arrays are the same numbers, to the last bit."""
    summary = metric.summary()
    for ours, theirs in ((summary.precision, "precision"), (summary.recall, "recall")):
        np.testing.assert_array_equal(np.where(np.isnan(ours), -1, ours), evaluation.eval[theirs])
    figures = metric.compute()
    if tuple(evaluation.params.maxDets) == (1, 10, 100):
        ours = [figures[name] for name in FIGURES]
        np.testing.assert_array_equal(np.where(np.isnan(ours), -1, ours), evaluation.stats)


def categories_of(truth):
    return Categories(Category(each["id"], each["name"]) for each in truth["categories"])


def streamed(truth, results, kind, images=None, **options):
    """The metric fed with `Segments`, image by image in the order of the file."""
    metric = CLASSES[kind](categories_of(truth), **options)
    for entry in truth["images"] if images is None else images:
        own, found = (
            [each for each in entries if each["image_id"] == entry["id"]] for entries in (truth["annotations"], results)
        )
        metric.update(
            segments(own, area=np.array([each["area"] for each in own], float)),
            segments(found, score=[each["score"] for each in found]),
            entry["file_name"],
            extra={"image_id": entry["id"]},
        )
    return metric


def segments(entries, score=None, area=None):
    geometry = box = None
    if not entries:
        return Segments(SIZE, [], Masks.join(SIZE, []), score=score)
    if "bbox" in entries[0]:
        box = np.array([each["bbox"] for each in entries], float)
        box[:, 2:] += box[:, :2]
    if "segmentation" in entries[0]:
        geometry = Masks.join(SIZE, [run_lengths(each["segmentation"]) for each in entries])
    attributes = {} if area is None else {"area": area}
    crowd = [bool(each.get("iscrowd", 0)) for each in entries]
    return Segments(
        SIZE,
        [each["category_id"] for each in entries],
        geometry,
        score=score,
        box=box,
        crowd=crowd,
        attributes=attributes,
    )


def run_lengths(segmentation):
    """By way of the reference program, so that our own decoding is not tested by itself."""
    if isinstance(segmentation, list):
        code = mask_utils.merge(mask_utils.frPyObjects(segmentation, *SIZE))
    elif isinstance(segmentation["counts"], list):
        return np.array(segmentation["counts"], np.uint32)
    else:
        code = segmentation
    flat = np.concatenate([[0], mask_utils.decode(code).ravel(order="F"), [0]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff(np.concatenate([[0], edges, [SIZE[0] * SIZE[1]]])).astype(np.uint32)


@pytest.fixture
def from_files(tmp_path):
    """Scores by way of files."""

    def run(truth, results, kind, **options):
        for name, content in (("truth.json", truth), ("results.json", results)):
            (tmp_path / name).write_text(json.dumps(content))
        return evaluate_files(tmp_path / "truth.json", tmp_path / "results.json", kind=kind, **options)

    return run


def same(a, b):
    """Two metrics have the same figures, arrays and tables to the last bit."""
    for ours, theirs in zip(a.summary(), b.summary(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert repr(a.compute()) == repr(b.compute())
    assert repr([*a.tables(), a.images()]) == repr([*b.tables(), b.images()])


# -- equal to the official program -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(24))
def test_boxes_equal_pycocotools(seed, from_files):
    truth, results = made(seed, digits=seed % 4)
    streaming = streamed(truth, results, "boxes")
    agree(streaming, official(truth, results, "boxes"))
    named = {**truth, "images": [{**each, "file_name": each["file_name"] + ".jpg"} for each in truth["images"]]}
    same(streaming, from_files(named, results, "boxes"))


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("with_boxes", [False, True])
def test_masks_equal_pycocotools(seed, with_boxes, from_files):
    truth, results = made(100 + seed, kind="masks", with_boxes=with_boxes)
    streaming = streamed(truth, results, "masks")
    agree(streaming, official(truth, results, "masks"))
    named = {**truth, "images": [{**each, "file_name": each["file_name"] + ".jpg"} for each in truth["images"]]}
    same(streaming, from_files(named, results, "masks"))


@pytest.mark.parametrize("seed", range(4))
def test_boxes_of_results_that_are_masks(seed, from_files):
    """The official program takes boxes and areas of detections from their masks then."""
    truth, results = made(200 + seed, kind="masks")
    evaluation = official(truth, results, "boxes")
    agree(from_files(truth, results, "boxes"), evaluation)
    agree(streamed(truth, results, "boxes"), evaluation)


@pytest.mark.parametrize("kind", ["boxes", "masks"])
@pytest.mark.parametrize("seed", range(3))
def test_unlimited_detections(kind, seed, from_files):
    """Three crowded images: more detections of a category than are kept by default, and than insertion sort takes."""
    generator = np.random.default_rng(300 + seed)
    truth, results = made(300 + seed, kind=kind, images=4, categories=(3, 4))
    per_image = 1500 if kind == "boxes" else 150
    for image in truth["images"]:
        pool = [each for each in results if each["image_id"] == image["id"]] or results[:1]
        for _ in range(per_image):
            entry = dict(pool[generator.integers(len(pool))])
            score = float(np.round(generator.normal(), 2)) * generator.choice([1, -1, 0])  # also negative, and -0
            results.append({**entry, "image_id": image["id"], "score": score})
    agree(streamed(truth, results, kind), official(truth, results, kind))
    evaluation = official(truth, results, kind, (1, 10, 1_000_000))
    for found in (
        streamed(truth, results, kind, max_detections=(1, 10, 0)),
        from_files(truth, results, kind, max_detections=[None, 10, 1]),
    ):
        agree(found, evaluation)
        figures = found.compute()
        assert figures["ap50"] == evaluation.stats[1]
        assert figures["ar_unlimited"] == evaluation.stats[8]
        assert figures["detections"] == len(results)
        assert "not limited" in found.tables()[0].note


def test_many_detections_go_to_several_threads(from_files):
    truth, results = made(400, images=6, categories=range(1, 9))
    generator = np.random.default_rng(0)
    results = [
        {**each, "score": round(float(generator.random()), 3), "category_id": int(generator.integers(1, 9))}
        for each in (results[i] for i in generator.integers(0, len(results), 12_000))
    ]
    agree(from_files(truth, results, "boxes"), official(truth, results, "boxes"))


@pytest.mark.parametrize("kind", ["boxes", "masks"])
def test_own_thresholds_and_areas_of_more_than_a_word(kind, from_files):
    thresholds = np.linspace(0.1, 1.0, 19)
    areas = {f"range {n}": (150.0 * n * n, 150.0 * (n + 2) ** 2) for n in range(7)}
    for seed in range(3):
        truth, results = made(500 + seed, kind=kind)
        evaluation = official(truth, results, kind)
        evaluation.params.iouThrs = thresholds
        evaluation.params.areaRng = [list(each) for each in areas.values()]
        evaluation.params.areaRngLbl = list(areas)
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation.evaluate()
            evaluation.accumulate()
        options = {"thresholds": thresholds, "areas": areas}
        for metric in (streamed(truth, results, kind, **options), from_files(truth, results, kind, **options)):
            for ours, theirs in zip(metric.summary(), ("precision", "recall"), strict=True):
                np.testing.assert_array_equal(np.where(np.isnan(ours), -1, ours), evaluation.eval[theirs])
            assert "ap_range 3" in metric.compute()
            assert "ap50" in metric.compute()
            assert "ap75" in metric.compute()
            assert "ap_small" not in metric.compute()


@pytest.mark.parametrize("kind", ["boxes", "masks"])
def test_real_annotations(kind, shared_data, from_files):
    """Real polygons and crowds, predictions made of them."""
    truth = json.loads((shared_data / "coco/tiny160/annotations/instances_val2017.json").read_text())
    generator = np.random.default_rng(0)
    sizes = {each["id"]: (each["height"], each["width"]) for each in truth["images"]}
    results = []
    for each in truth["annotations"] * 2:
        height, width = sizes[each["image_id"]]
        if generator.random() < 0.2:
            continue
        entry = {key: each[key] for key in ("image_id", "category_id")}
        entry["score"] = round(float(generator.random()), 2)
        if kind == "boxes":
            entry["bbox"] = [round(x + float(generator.normal(0, 4)), 2) for x in each["bbox"]]
        else:
            shape = each["segmentation"]
            code = mask_utils.frPyObjects(shape, height, width)
            code = mask_utils.merge(code) if isinstance(shape, list) else code
            moved = np.roll(mask_utils.decode(code), generator.integers(-4, 5, 2), axis=(0, 1))
            code = mask_utils.encode(np.asfortranarray(moved))
            entry["segmentation"] = {"size": code["size"], "counts": code["counts"].decode()}
        results.append(entry)
    evaluation = official(truth, results, kind)
    assert 0.2 < evaluation.stats[0] < 0.9
    agree(from_files(truth, results, kind), evaluation)


@pytest.mark.parametrize("kind", ["boxes", "masks"])
def test_real_results(kind, shared_data, from_files):
    """The COCO API's own example of results. Its truth is not at hand: the confident half of them stands in for it."""
    name = {"boxes": "fakebbox100", "masks": "fakesegm100"}[kind]
    results = json.loads((shared_data / f"coco/cocoapi_results/instances_val2014_{name}_results.json").read_text())
    size = (480, 640)
    if kind == "masks":
        sizes = {each["image_id"]: each["segmentation"]["size"] for each in results}
    truth = {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "height": h, "width": w}
            for i, (h, w) in (
                (i, sizes[i] if kind == "masks" else size) for i in {each["image_id"] for each in results}
            )
        ],
        "categories": [{"id": k, "name": str(k)} for k in sorted({each["category_id"] for each in results})],
        "annotations": [],
    }
    for number, each in enumerate(results[::2], 1):
        box = each["bbox"] if kind == "boxes" else mask_utils.toBbox(each["segmentation"]).tolist()
        area = box[2] * box[3] if kind == "boxes" else int(mask_utils.area(each["segmentation"]))
        own = {"id": number, "area": area, "bbox": box, "iscrowd": int(number % 9 == 0)}
        truth["annotations"].append({**{k: each[k] for k in each if k != "score"}, **own})
    shifted = [{**each, "image_id": results[i - i % 7]["image_id"]} for i, each in enumerate(results)]
    same_size = kind == "boxes"
    agree(
        from_files(truth, shifted if same_size else results, kind),
        official(truth, shifted if same_size else results, kind),
    )


@pytest.mark.parametrize("kind", ["boxes", "masks"])
def test_annotation_zero_counts(kind, from_files):
    """The official program takes a match with annotation 0 for none; the figures are those of any other id."""
    truth, results = made(7, kind=kind)
    right = official(truth, results, kind)
    crowds = {each["id"] for each in truth["annotations"] if each["iscrowd"]}
    matched = {int(each) for image in right.evalImgs if image is not None for each in image["dtMatches"].flat}
    chosen = min(matched - crowds - {0})
    zero = json.loads(json.dumps(truth))
    next(each for each in zero["annotations"] if each["id"] == chosen)["id"] = 0
    assert not np.array_equal(official(zero, results, kind).eval["recall"], right.eval["recall"])
    agree(from_files(zero, results, kind), right)


@pytest.mark.parametrize("kind", ["boxes", "masks"])
@pytest.mark.parametrize(
    ("true", "found", "ap50"),
    [
        # IoU of exactly .5
        ([[0, 0, 10, 10]], [[0, 0, 10, 5]], 1),
        ([[0, 0, 10, 5]], [[0, 0, 10, 10]], 1),
        # Of equal overlaps the later truth is taken, which leaves the first one to the second detection ...
        ([[20, 0, 10, 10], [22, 0, 10, 10]], [[21, 0, 10, 10], [17, 0, 10, 10]], 1),
        # ... and the other way round leaves it nothing.
        ([[22, 0, 10, 10], [20, 0, 10, 10]], [[21, 0, 10, 10], [17, 0, 10, 10]], 51 / 101),
        # The better overlap is taken, be it the earlier.
        ([[20, 0, 10, 10], [22, 0, 10, 10]], [[20, 0, 10, 10], [23, 0, 10, 10]], 1),
    ],
)
def test_ties(kind, true, found, ap50, from_files):
    truth = {
        "images": [{"id": 1, "file_name": "1.jpg", "height": SIZE[0], "width": SIZE[1]}],
        "categories": [{"id": 1, "name": "one"}],
        "annotations": [
            {"id": n, "image_id": 1, "category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for n, box in enumerate(true, 1)
        ],
    }
    results = [{"image_id": 1, "category_id": 1, "score": 0.9 - n / 10} for n in range(len(found))]
    for entry, box in zip(truth["annotations"] + results, true + found, strict=True):
        entry["segmentation"] = mask_of(box) if kind == "masks" else []
        entry["bbox"] = box
    metric = from_files(truth, results, kind)
    agree(metric, official(truth, results, kind))
    assert metric.compute()["ap50"] == pytest.approx(ap50)


def mask_of(box):
    mask = np.zeros(SIZE, np.uint8, order="F")
    mask[box[1] : box[1] + box[3], box[0] : box[0] + box[2]] = 1
    return {"size": list(SIZE), "counts": mask_utils.encode(mask)["counts"].decode()}


# -- streaming ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["boxes", "masks"])
def test_merged_halves_equal_the_whole(kind):
    truth, results = made(600, kind=kind, images=11)
    whole = streamed(truth, results, kind)
    shuffled = [truth["images"][i] for i in np.random.default_rng(1).permutation(11)]
    left = streamed(truth, results, kind, shuffled[:4])
    left.compute()  # figures in between change nothing
    right = streamed(truth, results, kind, shuffled[4:])
    right.merge(left)
    same(right, whole)


def test_images_without_ids_are_ordered_by_name():
    """Equal scores in two images: the first in order has the hit, which makes the difference."""
    box = [[0, 0, 10, 10]]
    truth = Segments(SIZE, [1], box=box, attributes={"area": [100.0]})
    hit = Segments(SIZE, [1], box=box, score=[0.5])
    miss = Segments(SIZE, [1], box=[[50, 50, 60, 60]], score=[0.5])
    first, last = [CocoBoxMetric(Categories(["one"])) for _ in range(2)]
    for metric, names in ((first, "ab"), (last, "ba")):
        metric.update(truth, miss, names[1])
        metric.update(truth, hit, names[0])
    assert first.compute()["ap"] == pytest.approx(51 / 101)
    assert last.compute()["ap"] == pytest.approx(51 / 101 / 2)


def test_state_is_small():
    truth, results = made(601)
    part = streamed(truth, results * 50, "boxes", max_detections=0)._joined()
    arrays = [*part.detections, part.starts, part.truth_starts, part.truth_category, part.truth_count]
    assert sum(each.nbytes for each in arrays) < 36 * len(part.detections.score)


def test_masks_of_a_label_map():
    """Any geometry will do: the same masks as a label map, as runs, and as boxes around them."""
    ids = np.zeros(SIZE, np.int32)
    ids[5:30, 5:40], ids[50:90, 60:100], ids[100:, 100:] = 1, 2, 3
    truth = Segments(SIZE, [1, 1, 2], LabelMap(ids))
    figures = []
    for geometry in (LabelMap(np.roll(ids, 3, 1)), Segments(SIZE, [1, 1, 2], LabelMap(np.roll(ids, 3, 1))).rles()):
        metric = CocoMaskMetric(Categories(["a", "b"]))
        metric.update(truth, Segments(SIZE, [1, 1, 2], geometry, score=[0.5, 0.9, 0.2]), "only")
        figures.append(metric.compute())
    assert repr(figures[0]) == repr(figures[1])
    assert 0.5 < figures[0]["ap"] < 1
    assert figures[0]["ap50"] == pytest.approx(1)


def test_area_of_detections_with_boxes():
    """A box of 40 x 40 around a thin mask: medium by its box, as officially, small by its mask."""
    mask = np.zeros((1, *SIZE), bool)
    mask[0, np.arange(40), np.arange(40)] = True
    far = np.roll(mask, 60, axis=2)
    truth = Segments.from_masks(mask, 1, box=[[0, 0, 40, 40]], attributes={"area": [40.0]})
    for area, expected in (("given", 1.0), ("mask", 0.5)):
        metric = CocoMaskMetric(Categories(["one"]), detection_area=area)
        boxes = [[60, 0, 100, 40], [0, 0, 40, 40]]
        metric.update(truth, Segments.from_masks(np.concatenate([far, mask]), 1, score=[0.9, 0.8], box=boxes), "only")
        assert metric.compute()["ap_small"] == pytest.approx(expected)
    with pytest.raises(InputError, match="detection_area"):
        metric.merge(CocoMaskMetric(Categories(["one"])))


def test_stuff_is_left_out():
    categories = Categories([Category(7, "sky", is_thing=False), Category(3, "cat")])
    truth = Segments(SIZE, [7, 3], box=[[0, 0, 160, 50], [0, 0, 10, 10]])
    found = Segments(SIZE, [7, 3], box=[[0, 0, 1, 1], [0, 0, 10, 10]], score=[0.9, 0.8])
    metric = CocoBoxMetric(categories)
    metric.update(truth, found, "only")
    figures = metric.compute()
    assert figures["ap"] == pytest.approx(1)
    assert (figures["true_objects"], figures["detections"]) == (1, 1)
    with pytest.raises(InputError, match="no category is a thing"):
        CocoBoxMetric(Categories(categories[:1]))


# -- tables ------------------------------------------------------------------------------------------------------------


def test_nothing_at_all():
    metric = CocoBoxMetric(Categories(["one"]))
    assert np.isnan([metric.compute()[name] for name in FIGURES]).all()
    assert metric.curves() == []
    assert metric.images().rows == ()
    metric.update(Segments.empty(SIZE), Segments(SIZE, [1], box=[[0, 0, 1, 1]], score=[0.5]), "empty")
    figures = metric.compute()
    assert np.isnan(figures["ap"])
    assert figures["detections"] == 1
    assert metric.images().rows[0][:6] == ("empty", "", 0, 0, 0, 1)


def test_no_detections_at_all(from_files):
    truth, _ = made(3)
    figures = from_files(truth, [], "boxes").compute()
    assert figures["ap"] == figures["ar_100"] == 0


def test_table_of_categories_has_the_official_means():
    truth, results = made(601)
    metric, evaluation = streamed(truth, results, "boxes"), official(truth, results, "boxes")
    table = metric.tables()[1]
    ids = categories_of(truth).ids.tolist()
    assert [row[0] for row in table.rows] == [f"class {k}" for k in ids]
    for row, identifier in zip(table.rows, ids, strict=True):
        k = sorted(ids).index(identifier)
        own = [each for each in truth["annotations"] if each["category_id"] == identifier and not each["iscrowd"]]
        assert row[1:3] == (len(own), sum(each["category_id"] == identifier for each in results))
        for value, column in (("AP", slice(None)), ("AP50", 0), ("AP75", 5)):
            precision = evaluation.eval["precision"][column, :, k, 0, 2]
            expected = np.mean(precision[precision > -1]) if own else np.nan
            np.testing.assert_equal(row[table.columns.index(value)], expected)


def test_images_are_counted_at_the_best_score():
    """Every cut of the scores is tried on what the official program matched."""
    truth, results = made(602, images=10)
    metric, evaluation = streamed(truth, results, "boxes"), official(truth, results, "boxes")
    ids = [each["id"] for each in truth["images"]]
    found = []  # image, score, hit or miss, at IoU .5 in the first range
    true = dict.fromkeys(ids, 0)
    for each in evaluation.evalImgs:
        if each is not None and each["aRng"] == [0, 1e10]:
            true[each["image_id"]] += int((each["gtIgnore"] == 0).sum())
            for score, match, ignored in zip(each["dtScores"], each["dtMatches"][0], each["dtIgnore"][0], strict=True):
                if not ignored:
                    found.append((each["image_id"], score, match > 0))

    def counts(cut, image=None):
        kept = [hit for i, score, hit in found if score >= cut and image in (None, i)]
        return sum(kept), len(kept) - sum(kept), sum(true.values()) if image is None else true[image]

    def f1(hits, misses, objects):
        return 2 * hits / (hits + misses + objects) if hits + misses + objects else float("nan")

    cut = max({score for _, score, _ in found}, key=lambda each: (f1(*counts(each)), each))
    rows = {row[0]: row[2:] for row in metric.images().rows}
    assert list(rows) == sorted(rows)
    for entry in truth["images"]:
        hits, misses, objects = counts(cut, entry["id"])
        np.testing.assert_equal(
            rows[entry["file_name"]], (objects, hits, objects - hits, misses, f1(hits, misses, objects))
        )


def test_kinds_of_image_and_curves():
    truth, results = made(603)
    metric = CocoBoxMetric(categories_of(truth))
    parts = {kind: CocoBoxMetric(categories_of(truth)) for kind in ("dark", "bright")}
    for number, entry in enumerate(truth["images"]):
        kind = ("dark", "bright")[number % 2]
        pair = [
            segments([each for each in entries if each["image_id"] == entry["id"]], **columns)
            for entries, columns in ((truth["annotations"], {}), (results, {}))
        ]
        scores = [each["score"] for each in results if each["image_id"] == entry["id"]]
        pair[1] = Segments(SIZE, pair[1].category, box=pair[1].boxes(), score=scores) if scores else pair[1]
        for each in (metric, parts[kind]):
            each.update(*pair, entry["file_name"], kind, {"image_id": entry["id"]})
    rows = {row[0]: row for row in metric.tables()[-1].rows}
    for kind, part in parts.items():
        assert rows[kind][3:] == tuple(part.compute()[name] for name in ("ap", "ap50", "ap75"))
    curves = metric.curves()
    overall = [each for each in curves if each.plot == "Precision over recall"]
    assert len(overall) == len(THRESHOLDS)
    assert np.mean([each.y for each in overall]) == pytest.approx(metric.compute()["ap"])
    assert len(curves) - len(overall) == 4


# -- what is refused ---------------------------------------------------------------------------------------------------


def change(entries, row, **fields):
    entries[row] = {**entries[row], **fields}


@pytest.mark.parametrize(
    ("kind", "spoil", "message"),
    [
        ("boxes", lambda t, r: change(r, 3, image_id=10_000), r"results.json: \$\[3\] has image_id 10000"),
        ("boxes", lambda t, r: change(r, 3, image_id=-(2**60)), r"\$\[3\] has image_id -1152921504606846976"),
        ("boxes", lambda t, r: change(r, 2, image_id="1.jpg"), r"\$\[2\] has image_id 1.jpg"),
        ("boxes", lambda t, r: change(r, 4, category_id=6), r"results.json: \$\[4\] has category_id 6"),
        ("boxes", lambda t, r: change(r, 1, score=float("nan")), "results.json"),
        ("boxes", lambda t, r: change(r, 1, bbox=None), r"\$\[1\] has no bbox"),
        ("boxes", lambda t, r: r.append({"image_id": 1}), "results.json"),
        ("masks", lambda t, r: change(r, 5, segmentation=None), r"\$\[5\] has no segmentation"),
        ("masks", lambda t, r: r[5]["segmentation"].update(size=[4, 4]), r"results.json: \$\[5\]"),
        ("masks", lambda t, r: r[5]["segmentation"].update(counts="0~"), r"results.json: \$\[5\]"),
        (
            "boxes",
            lambda t, r: change(t["annotations"], 2, image_id=-5),
            r"truth.json: \$.annotations\[2\] has image_id",
        ),
        ("boxes", lambda t, r: change(t["annotations"], 2, category_id=77), r"annotations\[2\] has category_id 77"),
        ("boxes", lambda t, r: change(t["annotations"], 2, id=1), "truth.json: annotation id 1 is there twice"),
        (
            "boxes",
            lambda t, r: change(t["images"], 1, id=t["images"][0]["id"]),
            "truth.json: image id .* is there twice",
        ),
        ("boxes", lambda t, r: change(t["categories"], 1, id=t["categories"][0]["id"]), "truth.json: category ids"),
        ("masks", lambda t, r: change(t["annotations"], 2, segmentation=[]), r"annotations\[2\] has no segmentation"),
        (
            "boxes",
            lambda t, r: change(t["annotations"], 2, segmentation=[], bbox=None),
            r"annotations\[2\] has neither a bbox nor a segmentation",
        ),
    ],
)
def test_bad_files(kind, spoil, message, from_files):
    truth, results = made(5, kind=kind)
    spoil(truth, results)
    with pytest.raises(InputError, match=message) as caught:
        from_files(truth, results, kind)
    assert "\n" not in str(caught.value)


def test_areas_that_lack(from_files):
    """Areas that are not annotated are those of the masks, as a file that has them would say."""
    truth, results = made(8, kind="masks")
    for each in truth["annotations"]:
        shape = each["segmentation"]
        code = mask_utils.frPyObjects(shape, *SIZE)
        each["area"] = int(mask_utils.area(mask_utils.merge(code) if isinstance(shape, list) else code))
    complete = from_files(truth, results, "masks").compute()
    for each in truth["annotations"]:
        del each["area"]
    assert from_files(truth, results, "masks").compute() == pytest.approx(complete, rel=0, abs=0, nan_ok=True)


def test_bad_segments():
    one = Categories(["one"])
    box = [[0.0, 0, 10, 10]]
    truth = Segments(SIZE, [1], box=box)
    volume = Segments((2, *SIZE), [1], box=[[0, 0, 0, 1, 1, 1]], score=[0.5])
    cases = [
        (CocoBoxMetric, truth, Segments(SIZE, [1], box=box), "'a': the prediction has no scores"),
        (CocoBoxMetric, truth, Segments(SIZE, [1], box=box, score=[np.nan]), "'a': 1 of 1 predicted scores are NaN"),
        (CocoBoxMetric, truth, Segments(SIZE, [2], box=box, score=[0.5]), "'a': the prediction has unknown category"),
        (
            CocoBoxMetric,
            truth,
            Segments(SIZE, [1], box=[[0, 0, np.inf, 1]], score=[0.5]),
            "'a': a box of the prediction",
        ),
        (CocoBoxMetric, truth, Segments((9, 9), [1], box=box, score=[0.5]), "'a': the truth has size"),
        (CocoBoxMetric, volume, volume, "'a': is a volume"),
        (CocoMaskMetric, truth, Segments(SIZE, [1], box=box, score=[0.5]), "'a': these segments have boxes only"),
    ]
    for metric, own, found, message in cases:
        with pytest.raises(InputError, match=message):
            metric(one).update(own, found, "a")
    metric = CocoBoxMetric(one)
    for _ in range(2):
        metric.update(truth, Segments(SIZE, [1], box=box, score=[0.5]), "a")
    with pytest.raises(InputError, match=r"'a' .* was scored twice"):
        metric.compute()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thresholds": ()}, "thresholds"),
        ({"thresholds": (0, 0.5)}, "thresholds"),
        ({"thresholds": np.linspace(0.1, 1, 65)}, "thresholds"),
        ({"areas": {}}, "areas"),
        ({"areas": {"odd": (5, 1)}}, "odd"),
        ({"max_detections": -1}, "max_detections"),
        ({"max_detections": ()}, "max_detections"),
        ({"max_detection": 3}, "max_detections"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        make_metric("coco_boxes", Categories(["one"]), **options)


def test_metrics_of_different_settings_do_not_merge():
    one = CocoBoxMetric(Categories(["one"]))
    for other in (
        CocoBoxMetric(Categories(["two"])),
        CocoBoxMetric(Categories(["one"]), max_detections=0),
        CocoBoxMetric(Categories(["one"]), areas={"all": AREAS["all"]}),
        CocoMaskMetric(Categories(["one"])),
    ):
        with pytest.raises(InputError, match="cannot be merged"):
            one.merge(other)


def test_they_are_registered():
    assert isinstance(make_metric("coco_masks", Categories(["one"])), CocoMaskMetric)
    assert isinstance(make_metric("coco_boxes", Categories(["one"]), max_detections=0), CocoBoxMetric)
    assert make_metric("coco_boxes", Categories(["one"]), max_detections=0).rules.max_detections == (UNLIMITED,)
    assert {"coco_boxes", "coco_masks"} <= set(METRICS)


# -- kernels -----------------------------------------------------------------------------------------------------------


def test_extents_and_overlaps_of_pairs():
    """Against dense masks, with noise, empty masks, full masks and runs of no length."""
    generator = np.random.default_rng(0)
    for height, width in ((1, 1), (1, 9), (7, 1), (13, 17), (30, 5)):
        dense = generator.random((12, height, width)) < generator.choice([0, 0.05, 0.5, 0.95, 1], (12, 1, 1))
        dense[:2, :, 3:] = False
        counts, offsets = rle.encode(dense)
        # every third run split in two by one of no length
        padded, ends = [], [0]
        for begin, end in pairwise(offsets.tolist()):
            for number, run in enumerate(counts[begin:end].tolist()):
                padded += [run // 2, 0, run - run // 2] if number % 3 == 2 else [run]
            ends.append(len(padded))
        for runs_, starts in ((counts, offsets), (np.array(padded, np.uint32), np.array(ends))):
            boxes, areas = extents(runs_, starts, np.full(12, height))
            for mask, box, area in zip(dense, boxes, areas, strict=True):
                y, x = np.nonzero(mask)
                expected = [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1] if len(x) else [0, 0, 0, 0]
                assert box.tolist() == expected
                assert area == mask.sum()
            pairs = generator.integers(0, 12, (60, 2))
            shared = pair_overlaps(runs_, starts, counts, offsets, pairs[:, 0], pairs[:, 1])
            assert shared.tolist() == [int((dense[a] & dense[b]).sum()) for a, b in pairs]
            part = pair_overlaps(
                runs_[starts[5] : starts[9]], starts[5:10], counts, offsets, np.array([0, 3]), np.array([2, 2])
            )
            assert part.tolist() == [int((dense[a] & dense[2]).sum()) for a in (5, 8)]


def test_keys_sort_as_falling_scores_do():
    generator = np.random.default_rng(0)
    scores = np.concatenate(
        [[-0.0, 1e300, -1e-310], generator.normal(0, 1, 5000), generator.integers(-3, 3, 5000), [-0.0, 0.0]]
    )
    keys = descending_keys(scores)
    for begin, end in ((0, len(scores)), (4990, 5020), (len(scores) - 2, len(scores))):
        rows = np.arange(len(scores))
        sort_rows(rows, begin, end, keys)
        expected = begin + np.argsort(-scores[begin:end], kind="stable")
        np.testing.assert_array_equal(rows[begin:end], expected)
        np.testing.assert_array_equal(rows[:begin], np.arange(begin))


def test_widths_that_files_had_are_found_again():
    generator = np.random.default_rng(0)
    for sides in (
        np.round(generator.uniform(0, 900, (2000, 4)), 2),
        np.round(generator.uniform(0, 900, (2000, 4)), 7),
        generator.integers(0, 900, (2000, 4)).astype(float),
        generator.uniform(0, 900, (2000, 4)).astype(np.float32).astype(float),
    ):
        edges = np.concatenate([sides[:, :2], sides[:, :2] + sides[:, 2:]], axis=1)
        np.testing.assert_array_equal(box_sides(edges), sides)
