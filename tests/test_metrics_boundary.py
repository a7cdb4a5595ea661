"""Boundary figures against the official rules written out plainly, and boundary AP against pycocotools with them."""

import contextlib
import io
import math

import numpy as np
import pytest
from scipy import ndimage

from everymask.errors import InputError
from everymask.metrics import make_metric
from everymask.metrics.boundary import BoundaryMetric, CocoBoundaryMetric, boundary_iou
from everymask.ops.boundaries import boundary_width
from everymask.types import Categories, Category, Segments

CATEGORIES = Categories([Category(7, "road"), Category(0, "sky"), Category(33, "car")])
THINGS = Categories([Category(1, "person"), Category(3, "car"), Category(9, "grass", is_thing=False)])


def band(mask, width):
    return mask & ~ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=width, border_value=0)


def davis_f(truth, prediction, tolerance):
    """`f_measure` of the DAVIS program: contours half a pixel off, dilated by a disk."""

    def contour(mask):
        moved = np.pad(mask, ((0, 1), (0, 1)), "edge")
        # with the last row and column repeated, the neighbours beyond the border differ from nothing new
        return (mask != moved[1:, :-1]) | (mask != moved[:-1, 1:]) | (mask != moved[1:, 1:])

    radius = tolerance if tolerance >= 1 else np.ceil(tolerance * np.linalg.norm(truth.shape))
    span = np.arange(-int(radius), int(radius) + 1)
    disk = span[:, None] ** 2 + span**2 <= radius**2
    edges = contour(truth), contour(prediction)
    wide = [ndimage.binary_dilation(edge, disk) for edge in edges]
    recall, precision = ((a & b).sum() / a.sum() if a.any() else 1.0 for a, b in zip(edges, wide[::-1], strict=True))
    if edges[0].any() and not edges[1].any():
        recall, precision = 0.0, 1.0
    if edges[1].any() and not edges[0].any():
        recall, precision = 1.0, 0.0
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def maps(shape, seed, classes=3):
    """A map of `classes` smooth classes, and one like it."""
    generator = np.random.default_rng(seed)
    noise, other = (ndimage.gaussian_filter(generator.standard_normal((classes, *shape)), (0, 4, 4)) for _ in range(2))
    return noise.argmax(axis=0), (noise + 0.4 * other).argmax(axis=0)


def segments_of(classes):
    """Positions 0..2 (-1 void) as segments."""
    table = np.array([*CATEGORIES.ids, 255])
    return Segments.from_semantic_map(table[classes], void=255, background=None)


@pytest.mark.parametrize(("ratio", "tolerance"), [(0.02, 0.008), (0.05, 0.03), (0.001, 3)])
def test_figures_of_categories_equal_the_rules(ratio, tolerance):
    metric = BoundaryMetric(CATEGORIES, ratio, tolerance)
    pixels, single = np.zeros((3, 2)), [[], [], []]
    for seed, shape in enumerate([(60, 90), (33, 40), (75, 75)]):
        truth, prediction = maps(shape, seed, classes=2 if seed == 1 else 3)
        truth[10:20, 5:25] = -1
        metric.update(segments_of(truth), segments_of(prediction), f"{seed}")
        width = max(1, round(ratio * np.hypot(*shape)))
        for k in range(3):
            a, b = truth == k, (prediction == k) & (truth >= 0)
            first, second = band(a, width), band(b, width)
            pixels[k] += (first & second).sum(), (first | second).sum()
            if a.any() or b.any():
                single[k].append(davis_f(a, b, tolerance))
    figures = metric.compute()
    names = CATEGORIES.names
    iou, f = pixels[:, 0] / pixels[:, 1], [np.mean(each) for each in single]
    np.testing.assert_allclose([figures[f"boundary_iou/{name}"] for name in names], iou, rtol=0, atol=1e-12)
    np.testing.assert_allclose([figures[f"boundary_f/{name}"] for name in names], f, rtol=0, atol=1e-12)
    assert figures["boundary_iou"] == pytest.approx(iou.mean(), abs=1e-12)
    assert figures["boundary_f"] == pytest.approx(np.mean(f), abs=1e-12)
    assert len(single[2]) == 2
    assert figures["images"] == 3


def test_a_category_that_is_missed_or_invented_scores_nothing():
    truth = np.zeros((20, 20), int)
    truth[5:15, 5:15] = 1
    prediction = np.zeros((20, 20), int)
    prediction[5:15, 5:15] = 2
    metric = BoundaryMetric(CATEGORIES)
    metric.update(segments_of(truth), segments_of(prediction), "a")
    figures = metric.compute()
    assert [figures[f"boundary_f/{name}"] for name in CATEGORIES.names] == [1, 0, 0]
    assert [figures[f"boundary_iou/{name}"] for name in CATEGORIES.names] == [1, 0, 0]
    # precision of what is not predicted is 1, recall of what is not there as well
    rows = {row[0]: row[3:] for row in metric.tables()[0].rows}
    assert rows == {"road": (1, 1), "sky": (1, 0), "car": (0, 1)}


def test_a_category_that_fills_the_image_has_a_band_but_no_contour():
    everything = segments_of(np.zeros((20, 20), int))
    metric = BoundaryMetric(CATEGORIES)
    metric.update(everything, everything, "a")
    figures = metric.compute()
    assert (figures["boundary_iou"], figures["boundary_f"]) == (1, 1)
    assert math.isnan(figures["boundary_iou/car"])


def test_pixels_of_no_segment_are_background_only_where_a_category_is_called_so():
    mask = np.zeros((1, 30, 30), bool)
    mask[0, 10:20, 10:20] = True
    for categories, expected in (
        (Categories([Category(1, "cell")]), ["cell"]),
        (Categories([Category(0, "background"), Category(1, "cell")]), ["background", "cell"]),
    ):
        metric = BoundaryMetric(categories)
        metric.update(Segments.from_masks(mask, 1), Segments.from_masks(mask, 1), "a")
        figures = metric.compute()
        assert [name for name in categories.names if figures[f"boundary_iou/{name}"] == 1] == expected


def test_merging_gives_the_same_bits_in_any_order():
    pairs = [maps((40, 50), seed) for seed in range(6)]
    whole, left, right = (BoundaryMetric(CATEGORIES) for _ in range(3))
    for i, (truth, prediction) in enumerate(pairs):
        whole.update(segments_of(truth), segments_of(prediction), f"{i}", f"kind {i % 2}")
    for i in (5, 2, 4, 0, 3, 1):
        part = left if i in (5, 0, 3) else right
        part.update(segments_of(pairs[i][0]), segments_of(pairs[i][1]), f"{i}", f"kind {i % 2}")
    right.merge(left)
    assert right.compute() == whole.compute()
    assert right.tables() == whole.tables()
    assert right.images() == whole.images()
    table = whole.images()
    assert table.judge in table.columns
    alone = BoundaryMetric(CATEGORIES)
    alone.update(segments_of(pairs[3][0]), segments_of(pairs[3][1]), "3")
    assert table.rows[3][2] == alone.compute()["boundary_iou"]
    assert [each.title for each in whole.tables()] == ["Categories", "Kinds of image"]


def test_bad_options_and_images_are_told():
    for options in ({"dilation_ratio": 0}, {"tolerance": -1}, {"tolerance": math.nan}):
        with pytest.raises(InputError, match="expected a number above 0"):
            make_metric("boundary", CATEGORIES, **options)
    with pytest.raises(InputError, match="dilation_ratio: got 0"):
        make_metric("coco_boundary", THINGS, dilation_ratio=0)
    volume = Segments.from_label_map(np.ones((2, 3, 4), np.int32), category=7)
    with pytest.raises(InputError, match="use the protocol 'surface'"):
        make_metric("boundary", CATEGORIES).update(volume, volume, "a")
    with pytest.raises(InputError, match="cannot be merged"):
        BoundaryMetric(CATEGORIES).merge(BoundaryMetric(CATEGORIES, tolerance=2))
    with pytest.raises(InputError, match="different dilation_ratio"):
        CocoBoundaryMetric(THINGS).merge(CocoBoundaryMetric(THINGS, dilation_ratio=0.01))


def test_no_images():
    figures = BoundaryMetric(CATEGORIES).compute()
    assert figures["images"] == 0
    assert math.isnan(figures["boundary_iou"])
    assert BoundaryMetric(CATEGORIES).images().rows == ()


# -- instances ---------------------------------------------------------------------------------------------------------


def scene(seed, size=(120, 160)):
    """Overlapping ellipses as truth, and shifted, resized, doubled and invented ones as detections."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]

    def ellipse(cy, cx, ry, rx):
        return ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1

    truth, detections = [], []
    for _ in range(int(generator.integers(3, 9))):
        shape = *generator.uniform((0, 0), size), *generator.uniform(4, 45, 2)
        category = int(generator.choice([1, 3]))
        truth.append((ellipse(*shape), category, bool(generator.random() < 0.15)))
        for _ in range(int(generator.integers(0, 3))):
            near = np.array(shape) * generator.uniform(0.93, 1.07, 4)
            other = category if generator.random() < 0.9 else 4 - category
            detections.append((ellipse(*near), other, float(generator.choice([0.2, 0.5, generator.random()]))))
    detections += [(ellipse(*generator.uniform(10, 60, 4)), 1, float(generator.random())) for _ in range(2)]
    return truth, [each for each in detections if each[0].any()]


def official(scenes, ratio):
    """The figures of pycocotools, its IoU replaced as the official boundary program does."""
    from pycocotools import mask as coco
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def encoded(mask):
        return coco.encode(np.asfortranarray(mask.astype(np.uint8)))

    truths, results = [], []
    for image, (truth, detections) in enumerate(scenes, 1):
        for mask, category, crowd in truth:
            whole = {"id": len(truths) + 1, "image_id": image, "category_id": category, "iscrowd": int(crowd)}
            truths.append({**whole, "area": float(mask.sum()), "segmentation": encoded(mask), "bbox": [0, 0, 1, 1]})
        for mask, category, score in detections:
            results.append({"image_id": image, "category_id": category, "score": score, "segmentation": encoded(mask)})

    class BoundaryEvaluation(COCOeval):
        def computeIoU(self, image, category):
            ious = super().computeIoU(image, category)
            if not len(ious):
                return ious
            true = self._gts[image, category]
            found = self._dts[image, category]
            order = np.argsort([-each["score"] for each in found], kind="mergesort")[: self.params.maxDets[-1]]
            bands = []
            for objects in ([found[i] for i in order], true):
                masks = [coco.decode(each["segmentation"]).astype(bool) for each in objects]
                bands.append([encoded(band(mask, max(1, round(ratio * np.hypot(*mask.shape))))) for mask in masks])
            crowd = [int(each["iscrowd"]) for each in true]
            smaller = np.minimum(ious, coco.iou(*bands, crowd))
            return np.where(np.array(crowd) == 1, ious, smaller)

    with contextlib.redirect_stdout(io.StringIO()):
        data, found = COCO(), COCO()
        data.dataset = {
            "images": [{"id": i, "height": 120, "width": 160} for i in range(1, len(scenes) + 1)],
            "categories": [{"id": 1, "name": "person"}, {"id": 3, "name": "car"}],
            "annotations": truths,
        }
        data.createIndex()
        found = data.loadRes(results)
        evaluation = BoundaryEvaluation(data, found, "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


def scored(metric, scenes):
    """The figures of an average precision metric."""
    for image, (truth, detections) in enumerate(scenes, 1):
        masks, category, crowd = zip(*truth, strict=True)
        true = Segments.from_masks(np.stack(masks), category, crowd=crowd)
        masks, category, score = zip(*detections, strict=True)
        metric.update(true, Segments.from_masks(np.stack(masks), category, score=score), "", extra={"image_id": image})
    return metric.compute()


@pytest.mark.parametrize("ratio", [0.02, 0.005, 0.05])
def test_boundary_ap_equals_the_official_rule_in_pycocotools(ratio):
    pytest.importorskip("pycocotools.cocoeval", reason="pycocotools is the reference")
    scenes = [scene(seed) for seed in range(20)]
    figures = scored(make_metric("coco_boundary", THINGS, dilation_ratio=ratio), scenes)
    keys = ["ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar_1", "ar_10", "ar_100"]
    keys += ["ar_small", "ar_medium", "ar_large"]
    got = [figures[key] for key in keys]
    np.testing.assert_allclose(np.nan_to_num(got, nan=-1), official(scenes, ratio), rtol=0, atol=1e-12)
    assert 0 < figures["ap"] < scored(make_metric("coco_masks", THINGS), scenes)["ap"]


def test_boundary_iou_of_pairs_is_that_of_dense_bands():
    truth, detections = scene(3)
    first, second = (np.stack([each[0] for each in objects]) for objects in (detections, truth))
    width = boundary_width(first.shape[1:])
    a, b = (index.ravel() for index in np.indices((len(first), len(second))))
    bands = [np.stack([band(mask, width) for mask in masks]) for masks in (first, second)]
    expected = [
        (bands[0][i] & bands[1][j]).sum() / (bands[0][i] | bands[1][j]).sum() for i, j in zip(a, b, strict=True)
    ]
    runs = [Segments.from_masks(masks, 1).rles() for masks in (first, second)]
    np.testing.assert_allclose(boundary_iou(*runs, a, b, width), expected, rtol=0, atol=1e-15)
    empty = Segments.from_masks(np.zeros((1, *first.shape[1:]), bool), 1).rles()
    assert boundary_iou(empty, empty, np.array([0]), np.array([0]), width).tolist() == [0]
