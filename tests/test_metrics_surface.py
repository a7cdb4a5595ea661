"""Surface distances against distance transforms and brute force, and what the protocol makes of them."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage

from everymask.errors import InputError
from everymask.metrics import make_metric
from everymask.metrics.surface import SurfaceMetric
from everymask.ops.surfaces import surface_distances
from everymask.types import Categories, Category, LabelMap, Segments

CATEGORIES = Categories([Category(3, "liver"), Category(1, "spleen"), Category(8, "sky", is_thing=False)])


def surface(mask):
    """The mask less its erosion by a cross, everything beyond the image being outside."""
    return mask & ~ndimage.binary_erosion(mask, ndimage.generate_binary_structure(mask.ndim, 1))


def by_transform(truth, prediction, spacing):
    """As MedPy and MONAI do it: an exact Euclidean distance transform of everything but the other surface."""
    first, second = surface(truth), surface(prediction)
    return (
        ndimage.distance_transform_edt(~second, sampling=spacing)[first],
        ndimage.distance_transform_edt(~first, sampling=spacing)[second],
    )


def figures_of(truth, prediction, spacing, percentile, tolerance):
    """Hausdorff distance, by percentile, average and surface Dice, by comparing all points with all."""
    first, second = (np.argwhere(surface(each)) for each in (truth, prediction))
    distances = np.sqrt((((first[:, None] - second) * np.asarray(spacing)) ** 2).sum(axis=2))
    sides = distances.min(axis=1), distances.min(axis=0)
    both = np.concatenate(sides)
    return (
        both.max(),
        max(np.percentile(side, percentile) for side in sides),
        both.mean(),
        (both <= tolerance).mean(),
    )


def blobs(shape, seed, classes=3):
    """A map of `classes` smooth classes, and one like it."""
    generator = np.random.default_rng(seed)
    noise, other = (
        ndimage.gaussian_filter(generator.standard_normal((classes, *shape)), (0, *[3] * len(shape))) for _ in range(2)
    )
    return noise.argmax(axis=0), (noise + 0.5 * other).argmax(axis=0)


@settings(max_examples=80, deadline=None)
@given(
    array_shapes(min_dims=2, max_dims=3, max_side=8).flatmap(lambda shape: arrays(np.bool_, (2, *shape))),
    st.sampled_from([(1, 1, 1), (0.5, 2, 1.25), (3, 0.7, 0.7), (900, 1, 0.1), (0.01, 5, 7)]),
)
def test_distances_of_noise_equal_distance_transforms(masks, spacing):
    spacing = spacing[: masks.ndim - 1]
    found = surface_distances(masks[0], masks[1], spacing)
    if masks[0].any() and masks[1].any():
        for side, expected in zip(found, by_transform(*masks, spacing), strict=True):
            np.testing.assert_allclose(side, expected, rtol=0, atol=1e-12)
    else:
        assert [len(side) for side in found] == [surface(each).sum() for each in masks]
        assert all(np.isinf(side).all() for side in found)


@pytest.mark.parametrize(
    ("shape", "spacing"), [((70, 90), (1, 1)), ((60, 50), (0.3, 1.7)), ((20, 30, 25), (2.5, 0.8, 0.8))]
)
def test_figures_of_blobs_equal_brute_force_and_transforms(shape, spacing):
    for seed in range(4):
        truth, prediction = (each == 1 for each in blobs(shape, seed))
        found = surface_distances(truth, prediction, spacing)
        for side, expected in zip(found, by_transform(truth, prediction, spacing), strict=True):
            np.testing.assert_allclose(side, expected, rtol=0, atol=1e-12)
        got = found.hausdorff(), found.hausdorff(95), found.average(), found.dice(1.6)
        np.testing.assert_allclose(got, figures_of(truth, prediction, spacing, 95, 1.6), rtol=0, atol=1e-9)


@pytest.mark.parametrize("spacing", [(1, 1), (3, 1), (1, 0.2)])
def test_surfaces_far_apart(spacing):
    """Farther than the rows that are looked through around a point, in part or altogether."""
    truth, prediction = np.zeros((2, 500, 40), bool)
    truth[5:20, 3:20] = True
    for begin in (30, 60, 66, 70, 300):
        prediction[:] = False
        prediction[begin : begin + 90, 15:30] = True
        for side, expected in zip(
            surface_distances(truth, prediction, spacing), by_transform(truth, prediction, spacing), strict=True
        ):
            np.testing.assert_allclose(side, expected, rtol=0, atol=1e-10)


def test_distances_equal_medpy():
    medpy = pytest.importorskip("medpy.metric.binary", reason="MedPy is the reference program")
    for seed in range(4):
        truth, prediction = (each == 1 for each in blobs((20, 30, 25), seed))
        found = surface_distances(truth, prediction, (2, 1, 0.7))
        assert found.hausdorff() == medpy.hd(prediction, truth, (2, 1, 0.7))
        assert found.prediction.mean() == medpy.asd(prediction, truth, (2, 1, 0.7))


def test_a_distance_that_is_the_tolerance_is_within_it_whatever_the_spacing():
    truth, prediction = np.zeros((2, 400, 400), bool)
    truth[300:320, 300:320] = True
    prediction[303:323, 300:320] = True
    for spacing in (0.1, 0.7, 1 / 3):
        # a reference that measures whole pixels from the nearest one
        expected = figures_of(truth, prediction, (1, 1), 95, 3)[3]
        assert surface_distances(truth, prediction, (spacing, spacing)).dice(3 * spacing) == expected == 1


def test_nothing_has_no_distance_and_something_is_infinitely_far_from_nothing():
    nothing, something = np.zeros((5, 5), bool), np.eye(5, dtype=bool)
    none, one = surface_distances(nothing, nothing), surface_distances(something, nothing)
    assert all(map(math.isnan, (none.hausdorff(), none.average(), none.dice(1))))
    assert (one.hausdorff(), one.hausdorff(95), one.average(), one.dice(1)) == (math.inf, math.inf, math.inf, 0)


def segments_of(classes, ids=(3, 1, 8)):
    """A semantic map of positions 0..2 (-1 void) as segments."""
    table = np.array([*ids, 255])
    return Segments.from_semantic_map(table[classes], void=255, background=None)


@pytest.mark.parametrize(("shape", "spacing"), [((60, 70), None), ((60, 70), (0.5, 2.0)), ((16, 20, 24), (2, 1, 1))])
def test_the_protocol_averages_pairs_of_categories(shape, spacing):
    metric = SurfaceMetric(CATEGORIES, spacing=spacing, tolerance=1.5, percentile=90)
    expected = {k: [] for k in range(3)}
    for seed in range(3):
        truth, prediction = blobs(shape, seed)
        metric.update(segments_of(truth), segments_of(prediction), f"{seed}")
        for k in expected:
            expected[k].append(figures_of(truth == k, prediction == k, spacing or (1,) * len(shape), 90, 1.5))
    figures = metric.compute()
    names = ("hausdorff", "hausdorff90", "average_surface_distance", "surface_dice")
    for i, name in enumerate(names):
        means = [np.mean([each[i] for each in expected[k]]) for k in range(3)]
        np.testing.assert_allclose([figures[f"{name}/{each}"] for each in CATEGORIES.names], means, rtol=0, atol=1e-9)
        assert figures[name] == pytest.approx(np.mean(means), abs=1e-9)
    assert (figures["pairs"], figures["missing"], figures["spurious"], figures["images"]) == (9, 0, 0, 3)


def test_void_is_removed_from_both_and_what_has_no_counterpart_is_counted():
    truth = np.zeros((40, 40), int)
    truth[5:15, 5:15] = 1
    truth[:, 30:] = -1
    prediction = np.zeros((40, 40), int)
    prediction[6:15, 5:35] = 1
    prediction[20:25, 20:25] = 2
    metric = SurfaceMetric(CATEGORIES, tolerance=2)
    metric.update(segments_of(truth), segments_of(prediction), "a")
    seen = truth >= 0
    figures = metric.compute()
    cut = figures_of(truth == 1, (prediction == 1) & seen, (1, 1), 95, 2)
    assert figures["hausdorff/spleen"] == cut[0] == 15
    assert figures["surface_dice/spleen"] == pytest.approx(cut[3], abs=1e-12)
    assert (figures["missing"], figures["spurious"]) == (0, 1)
    assert figures["surface_dice/sky"] == 0
    assert math.isnan(figures["hausdorff/sky"])
    metric = SurfaceMetric(CATEGORIES)
    metric.update(segments_of(prediction), segments_of(np.zeros((40, 40), int)), "a")
    figures = metric.compute()
    assert (figures["missing"], figures["pairs"]) == (2, 1)


def test_a_background_category_has_no_surface():
    metric = SurfaceMetric(Categories([Category(0, "Background"), Category(1, "cell")]))
    truth = np.pad(np.ones((4, 4), int), 3)
    metric.update(*[Segments.from_semantic_map(truth, void=255, background=None)] * 2, "a")
    figures = metric.compute()
    assert figures["pairs"] == 1
    assert math.isnan(figures["surface_dice/Background"])
    assert figures["surface_dice"] == 1


def test_objects_are_compared_with_those_they_overlap_most():
    truth, prediction = np.zeros((2, 60, 60), np.int32)
    truth[2:12, 2:12] = 1
    truth[20:30, 20:30] = 2
    truth[40:50, 5:15] = 3  # stuff
    truth[40:50, 40:50] = 4  # crowd
    truth[30:36, 50:56] = 5
    prediction[3:13, 2:12] = 1
    prediction[20:30, 25:35] = 2  # IoU 1/3: no pair
    prediction[40:50, 40:50] = 3  # within the crowd
    prediction[31:36, 50:56] = 4  # another category
    prediction[55:58, 55:58] = 5
    first = Segments((60, 60), [3, 3, 8, 1, 1], LabelMap(truth), crowd=[False, False, False, True, False])
    second = Segments.from_label_map(prediction, category=[3, 3, 1, 3, 1])
    metric = SurfaceMetric(CATEGORIES, each="object", tolerance=0.5)
    metric.update(first, second, "a")
    figures = metric.compute()
    assert (figures["pairs"], figures["missing"], figures["spurious"]) == (1, 2, 3)
    expected = figures_of(truth == 1, prediction == 1, (1, 1), 95, 0.5)
    got = [
        figures[f"{name}/liver"] for name in ("hausdorff", "hausdorff95", "average_surface_distance", "surface_dice")
    ]
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)
    rows = {row[0]: row[1:4] for row in metric.tables()[0].rows}
    assert rows == {"liver": (1, 1, 2), "spleen": (0, 1, 1), "sky": (0, 0, 0)}


@pytest.mark.parametrize("each", ["category", "object"])
def test_merging_gives_the_same_bits_in_any_order(each):
    categories = Categories([Category(i, name) for i, name in ((3, "a"), (1, "b"), (8, "c"))])
    pairs = [blobs((40, 40), seed) for seed in range(6)]
    whole, left, right = (SurfaceMetric(categories, each=each, spacing=(0.3, 0.7)) for _ in range(3))
    for i, (truth, prediction) in enumerate(pairs):
        whole.update(segments_of(truth), segments_of(prediction), f"{i}", f"kind {i % 2}")
    for i in (5, 2, 4, 0, 3, 1):
        part = left if i in (5, 0, 3) else right
        part.update(segments_of(pairs[i][0]), segments_of(pairs[i][1]), f"{i}", f"kind {i % 2}")
    right.merge(left)
    assert right.compute() == whole.compute()
    assert right.images() == whole.images()
    assert right.tables() == whole.tables()
    images = whole.images()
    assert [row[0] for row in images.rows] == list("012345")
    assert images.judge in images.columns
    assert [table.title for table in whole.tables()] == ["Categories", "Kinds of image"]
    assert len({len(row) for row in images.rows} | {len(images.columns)}) == 1


def test_no_images_and_empty_images():
    metric = make_metric("surface", CATEGORIES)
    assert math.isnan(metric.compute()["hausdorff"])
    assert metric.images().rows == ()
    metric.update(Segments.empty((5, 6)), Segments.empty((5, 6)), "a")
    assert metric.compute()["pairs"] == 0


def test_bad_options_and_images_are_told():
    for options, message in (
        ({"each": "objects"}, "did you mean 'object'"),
        ({"tolerance": -1}, "tolerance: got -1"),
        ({"percentile": 0}, "percentile: got 0"),
        ({"iou": 0.4}, "pairs are not unique"),
        ({"spacing": (1, 0)}, "positive numbers"),
        ({"spacing": (1,)}, "positive numbers"),
    ):
        with pytest.raises(InputError, match=message):
            make_metric("surface", CATEGORIES, **options)
    with pytest.raises(InputError, match="no category is a thing"):
        make_metric("surface", Categories([Category(0, "sky", is_thing=False)]), each="object")
    volume = Segments.from_label_map(np.ones((2, 3, 4), np.int32), category=[1])
    with pytest.raises(InputError, match=r"image 'a': spacing: got .* expected 3 positive numbers"):
        make_metric("surface", CATEGORIES, spacing=(1, 1)).update(volume, volume, "a")
    with pytest.raises(InputError, match="cannot be merged"):
        make_metric("surface", CATEGORIES).merge(make_metric("surface", CATEGORIES, tolerance=2))
    with pytest.raises(InputError, match="equal ones"):
        surface_distances(np.zeros((2, 3)), np.zeros((3, 2)))
    with pytest.raises(InputError, match=r"expected \(H, W\)"):
        surface_distances(np.zeros(3), np.zeros(3))
