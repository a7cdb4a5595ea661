"""The shared data types: every conversion of segments is exact, and every mistake is told in a line."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from everymask.errors import InputError
from everymask.types import (
    Categories,
    Category,
    Dataset,
    LabelMap,
    Masks,
    Polygon,
    Polygons,
    Sample,
    Segments,
    Task,
)

modest = settings(max_examples=50, deadline=None)


@st.composite
def compact_maps(draw, axes=2, void=True):
    """Label maps with ids 1..N that all occur: touching, in several parts, with holes, of single pixels, or empty."""
    shape = draw(array_shapes(min_dims=axes, max_dims=axes, max_side=8))
    ids = draw(arrays(np.int32, shape, elements=st.integers(-1 if void else 0, 4)))
    present = np.unique(ids[ids > 0])
    return np.where(ids > 0, np.searchsorted(present, ids) + 1, ids).astype(np.int32)


def columns_of(segments):
    return (
        segments.category.tolist(),
        None if segments.score is None else segments.score.tolist(),
        segments.crowd.tolist(),
        {name: values.tolist() for name, values in segments.attributes.items()},
    )


def described(ids, **columns):
    """Segments of a compact label map with a different category each."""
    count = int(ids.max(initial=0))
    return Segments(ids.shape, 10 * np.arange(count) + 7, LabelMap(ids), **columns)


# -- conversions -------------------------------------------------------------------------------------------------------


@modest
@given(compact_maps())
def test_all_views_of_a_label_map_hold_the_same_masks(ids):
    segments = described(ids)
    masks = ids == np.arange(1, len(segments) + 1)[:, None, None]
    np.testing.assert_array_equal(segments.masks(), masks)
    views = [
        segments,
        Segments.from_masks(masks, segments.category),
        Segments(segments.size, segments.category, segments.rles()),
        Segments(segments.size, segments.category, segments.polygons()),
        Segments.from_polygons(ids.shape, segments.polygons().parts, segments.category),
    ]
    visible = np.maximum(ids, 0)  # void belongs to no segment, and only label maps have it
    for view in views:
        np.testing.assert_array_equal(view.masks(), masks)
        np.testing.assert_array_equal(np.maximum(view.label_map(), 0), visible)
        np.testing.assert_array_equal(view.areas(), masks.sum(axis=(1, 2)))
        for box, mask in zip(view.boxes(), masks, strict=True):
            y, x = np.nonzero(mask)
            assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
        assert view.boxes().dtype == np.float64
        again = Segments(view.size, view.category, view.polygons()).rles()
        np.testing.assert_array_equal(again.counts, views[2].rles().counts)
        np.testing.assert_array_equal(again.offsets, views[2].rles().offsets)


@modest
@given(st.tuples(st.integers(0, 4), st.integers(1, 7), st.integers(1, 7)).flatmap(lambda size: arrays(np.bool_, size)))
def test_overlapping_masks_survive_every_geometry_that_can_hold_them(masks):
    segments = Segments.from_masks(masks)
    outlined = Segments(segments.size, segments.category, segments.polygons())
    for view in (segments, outlined):
        np.testing.assert_array_equal(view.masks(), masks)
        np.testing.assert_array_equal(view.areas(), masks.sum(axis=(1, 2)))
    shared = (masks.sum(axis=0) > 1).sum()
    if shared:
        with pytest.raises(InputError, match=f"overlap in {shared} pixels"):
            outlined.label_map()
    else:
        np.testing.assert_array_equal(
            segments.label_map(), (masks * np.arange(1, len(masks) + 1)[:, None, None]).sum(0)
        )


@modest
@given(compact_maps(), st.data())
def test_semantic_maps_come_back(ids, data):
    classes = data.draw(arrays(np.int64, ids.shape, elements=st.sampled_from([-3, 0, 1, 5, 70_000, 255, 254])))
    segments = Segments.from_semantic_map(classes, void=255, background=254)
    np.testing.assert_array_equal(segments.semantic_map(void=255, background=254), classes)
    assert segments.category.tolist() == sorted(set(classes.ravel().tolist()) - {255, 254})
    # and through another geometry, once void is gone
    classes[classes == 255] = 254
    segments = Segments.from_semantic_map(classes, void=255, background=254)
    outlined = Segments(segments.size, segments.category, segments.polygons())
    np.testing.assert_array_equal(outlined.semantic_map(background=254), classes)


@modest
@given(compact_maps(), st.randoms(use_true_random=False))
def test_panoptic_maps_come_back(ids, random):
    segments = described(ids, crowd=np.arange(ids.max(initial=0)) % 2 == 1)
    panoptic, infos = segments.panoptic_map()
    assert [info["area"] for info in infos] == [(ids == i + 1).sum() for i in range(len(segments))]
    again = Segments.from_panoptic_map(panoptic, infos)
    np.testing.assert_array_equal(again.label_map(), ids)
    assert columns_of(again) == columns_of(segments)
    # with large ids in any order, as in files
    names = np.array([-1, 0, *random.sample(range(1, 2**24), len(segments))])
    renamed = [{**info, "id": int(name)} for info, name in zip(infos, names[2:], strict=True)]
    random.shuffle(renamed)
    again = Segments.from_panoptic_map(names[ids + 1], renamed)
    for i, info in enumerate(renamed):
        np.testing.assert_array_equal(again.label_map() == i + 1, names[ids + 1] == info["id"])
        assert again.category[i] == info["category_id"]
    np.testing.assert_array_equal(again.label_map() < 0, ids < 0)


@modest
@given(compact_maps(axes=3))
def test_volumes(ids):
    segments = Segments.from_label_map(ids, 3)
    masks = ids == np.arange(1, len(segments) + 1)[:, None, None, None]
    np.testing.assert_array_equal(segments.masks(), masks)
    np.testing.assert_array_equal(segments.areas(), masks.sum(axis=(1, 2, 3)))
    for box, mask in zip(segments.boxes(), masks, strict=True):
        z, y, x = np.nonzero(mask)
        assert box.tolist() == [x.min(), y.min(), z.min(), x.max() + 1, y.max() + 1, z.max() + 1]
    semantic = segments.semantic_map(void=9)
    np.testing.assert_array_equal(semantic, np.where(ids > 0, 3, np.where(ids < 0, 9, 0)))
    for view in (segments.rles, segments.polygons):
        with pytest.raises(InputError, match="2-D images only"):
            view()


@modest
@given(compact_maps(axes=3))
def test_classes_of_volumes_come_back(ids):
    segments = Segments.from_semantic_map(ids, void=-1)
    np.testing.assert_array_equal(segments.semantic_map(void=-1, background=99), ids)


def test_labels_keep_their_original_numbers():
    segments = Segments.from_label_map(np.array([[70_000, 0, 5], [-4, 2**40, 5]]), score=[0.1, 0.2, 0.3])
    assert segments.label_map().tolist() == [[2, 0, 1], [-1, 3, 1]]
    assert segments.attributes["label"].tolist() == [5, 70_000, 2**40]
    assert segments.category.tolist() == [1, 1, 1]
    assert Segments.from_label_map(np.array([[1, 0, 2]])).attributes == {}


def test_more_than_65535_objects():
    ids = np.arange(300 * 300).reshape(300, 300)
    segments = Segments.from_label_map(ids)
    assert len(segments) == 89_999
    outlined = Segments(segments.size, segments.category, segments.polygons())
    np.testing.assert_array_equal(outlined.label_map(), ids)
    np.testing.assert_array_equal(segments[::2].areas(), np.ones(45_000))


def test_images_without_segments():
    for segments in (
        Segments.empty((3, 4)),
        Segments.from_masks(np.zeros((0, 3, 4))),
        Segments.from_polygons((3, 4), []),
    ):
        assert len(segments) == 0
        assert segments.masks().shape == (0, 3, 4)
        assert segments.boxes().shape == (0, 4)
        assert segments.areas().shape == (0,)
        assert segments.polygons().parts == ()
        assert not segments.label_map().any()
        assert not segments.semantic_map().any()
        assert segments.panoptic_map()[1] == []
        assert len(segments[:]) == 0
    assert Segments.empty((2, 3, 4)).boxes().shape == (0, 6)


def test_holes_and_parts_are_kept():
    ids = np.zeros((7, 9), np.int32)
    ids[1:6, 1:6] = 1
    ids[2:5, 2:5] = 0
    ids[3, 3] = 2  # an island in the hole
    ids[6, 8] = 1  # a second part, of one pixel
    first, second = described(ids).polygons().parts
    assert [len(polygon.holes) for polygon in first] == [1, 0]
    assert first[0].exterior.tolist() == [[1, 1], [6, 1], [6, 6], [1, 6]]
    assert sorted(first[0].holes[0].tolist()) == [[2, 2], [2, 5], [5, 2], [5, 5]]
    assert first[1].exterior.tolist() == [[8, 6], [9, 6], [9, 7], [8, 7]]
    assert second[0].exterior.tolist() == [[3, 3], [4, 3], [4, 4], [3, 4]]


@modest
@given(compact_maps(void=False))
def test_polygons_and_flat_outlines_are_the_same(ids):
    polygons = described(ids).polygons()
    again = Polygons.from_outlines(polygons.size, polygons.outlines())
    assert len(again) == len(polygons)
    for parts, others in zip(polygons.parts, again.parts, strict=True):
        for polygon, other in zip(parts, others, strict=True):
            np.testing.assert_array_equal(polygon.exterior, other.exterior)
            assert [hole.tolist() for hole in polygon.holes] == [hole.tolist() for hole in other.holes]


def test_hand_made_polygons_have_the_boxes_of_their_vertices():
    polygon = Polygon(np.array([[0.5, 1.25], [3.5, 1.25], [2.0, 4.75]]))
    segments = Segments.from_polygons((6, 6), [[polygon], []], [3, 4])
    assert segments.boxes().tolist() == [[0.5, 1.25, 3.5, 4.75], [0, 0, 0, 0]]
    assert segments.areas()[1] == 0


# -- overlap -----------------------------------------------------------------------------------------------------------


def overlapping(score):
    masks = np.zeros((3, 1, 5), bool)
    masks[0, 0, :3] = masks[1, 0, 1:4] = masks[2, 0, 2:] = True
    return Segments.from_masks(masks, [5, 6, 7], score=score)


def test_overlap_rules():
    segments = overlapping([0.5, 0.9, 0.5])
    assert segments.label_map("last").tolist() == [[1, 2, 3, 3, 3]]
    assert segments.label_map("score").tolist() == [[1, 2, 2, 2, 3]]
    assert overlapping([0.5, 0.1, 0.5]).label_map("score").tolist() == [[1, 1, 1, 3, 3]]  # the earlier of equal scores
    assert segments.semantic_map(overlap="score").tolist() == [[5, 6, 6, 6, 7]]
    assert [info["area"] for info in segments.panoptic_map("score")[1]] == [1, 3, 1]
    with pytest.raises(InputError, match=r"overlap in 3 pixels.*overlap='score'"):
        segments.label_map()
    with pytest.raises(InputError, match="needs scores"):
        overlapping(None).label_map("score")
    with pytest.raises(InputError, match="unknown overlap rule 'scores'; did you mean 'score'"):
        segments.label_map("scores")


# -- choosing ----------------------------------------------------------------------------------------------------------


@modest
@given(compact_maps(), st.randoms(use_true_random=False))
def test_chosen_segments_are_the_chosen_masks_in_that_order(ids, random):
    count = int(ids.max(initial=0))
    chosen = np.array(random.sample(range(count), random.randint(0, count)), int)
    segments = described(ids, score=np.linspace(0, 1, count), attributes={"name": np.arange(count) * 2})
    masks = segments.masks()
    boxed = Segments(segments.size, segments.category, box=segments.boxes())
    for geometry in (segments.geometry, segments.rles(), segments.polygons()):
        part = Segments(
            segments.size, segments.category, geometry, score=segments.score, attributes=segments.attributes
        )[chosen]
        np.testing.assert_array_equal(part.masks(), masks[chosen])
        np.testing.assert_array_equal(part.boxes(), boxed[chosen].boxes())
        assert part.category.tolist() == segments.category[chosen].tolist()
        assert part.score.tolist() == segments.score[chosen].tolist()
        assert part.attributes["name"].tolist() == (chosen * 2).tolist()
        assert isinstance(part.geometry, type(geometry))
    np.testing.assert_array_equal(segments[chosen].label_map() < 0, ids < 0)  # void stays


def test_ways_to_choose():
    segments = described(np.array([[1, 2, 3]], np.int32))
    assert segments[1].category.tolist() == [17]
    assert segments[-1].category.tolist() == [27]
    assert segments[np.array([True, False, True])].category.tolist() == [7, 27]
    assert segments[::-1].label_map().tolist() == [[3, 2, 1]]
    assert segments[[]].label_map().tolist() == [[0, 0, 0]]
    with pytest.raises(IndexError):
        segments[3]
    with pytest.raises(InputError, match="twice"):
        segments[[0, 0]]
    twice = Segments(segments.size, segments.category, segments.rles())[[0, 0]]
    np.testing.assert_array_equal(twice.masks()[0], twice.masks()[1])
    assert segments.with_category([1, 2, 3]).category.tolist() == [1, 2, 3]


# -- boxes, tags and mistakes ------------------------------------------------------------------------------------------


def test_boxes_only_and_tags_only():
    boxed = Segments((10, 12), [1, 2], box=[[0, 0, 3, 4], [1, 1, 2, 2.6]], crowd=[True, False])
    assert boxed.has_boxes
    assert boxed.areas().tolist() == [12, 2]
    tags = Segments((10, 12), [4])
    assert not tags.has_boxes
    for view in (boxed.rles, boxed.masks, boxed.label_map, boxed.polygons):
        with pytest.raises(InputError, match="boxes only"):
            view()
    with pytest.raises(InputError, match="neither boxes nor a geometry"):
        tags.boxes()
    assert Segments((10, 12), [], box=[]).boxes().shape == (0, 4)
    assert Segments((10, 12), [], box=[]).areas().shape == (0,)
    assert Segments((2, 10, 12), [1], box=[[0, 0, 0, 3, 4, 2]]).areas().tolist() == [24]


def test_given_boxes_win_over_the_geometry():
    segments = Segments((1, 4), [1], LabelMap(np.array([[0, 1, 1, 0]])), box=[[0, 0, 4, 1]])
    assert segments.boxes().tolist() == [[0, 0, 4, 1]]
    assert segments.areas().tolist() == [2]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Segments((2, 2), [1], LabelMap(np.full((2, 2), 2))), "holds id 2, but there are 1 segments"),
        (lambda: Segments((2, 2), [1], LabelMap(np.full((2, 2), -2))), "holds id -2"),
        (lambda: Segments((2, 3), [1], LabelMap(np.ones((2, 2), int))), r"size \(2, 2\), but the image \(2, 3\)"),
        (lambda: Segments((2, 2), [1, 2], Masks.join((2, 2), [np.array([4])])), "1 masks for 2 segments"),
        (lambda: Segments((2, 2), [1], score=[0.1, 0.2]), r"score has shape \(2,\), but there are 1"),
        (lambda: Segments((2, 2), [1], attributes={"area": []}), r"area has shape \(0,\)"),
        (lambda: Segments((2, 2), [1], box=[[0, 0, 1]]), r"box has shape \(1, 3\), expected \(1, 4\)"),
        (lambda: Segments.from_label_map(np.ones((2, 2), int), [1, 2]), r"category has shape \(2,\)"),
        (lambda: Segments.from_label_map(np.full((2, 2), 0.5)), "expected whole numbers"),
        (lambda: Segments.from_masks(np.ones((2, 2))), r"expected \(N, H, W\)"),
        (lambda: LabelMap(np.ones((2, 2))), "expected integers"),
        (lambda: LabelMap(np.ones(2, int)), r"expected integers \(H, W\)"),
        (lambda: LabelMap(np.full((2, 2), 2**32 + 1)), "from_label_map"),
        (lambda: Segments((2, 2), [1], Masks.join((2, 2), [np.array([3])])).masks(), "RLE of the wrong size"),
        (lambda: Segments.from_panoptic_map(np.ones((1, 1), int), []), "holds id 1, which no segment describes"),
        (lambda: Segments.from_panoptic_map(np.ones((1, 1), int), [{"id": 0, "category_id": 1}]), "positive"),
    ],
)
def test_mistakes_are_told_in_one_line(make, message):
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_masks_are_a_sequence_of_runs():
    masks = Segments.from_masks(np.eye(3, dtype=bool)[None].repeat(2, axis=0)).rles()
    assert [each.tolist() for each in masks] == [[0, 1, 3, 1, 3, 1]] * 2
    with pytest.raises(IndexError):
        masks[2]
    assert len(Masks.join((2, 2), [])) == 0


def test_types_do_not_import_heavy_packages():
    code = (
        "import sys; from everymask.types import Segments; Segments.empty((2, 2)); "
        "print([name for name in ('torch', 'numba', 'scipy', 'PIL', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# -- categories --------------------------------------------------------------------------------------------------------

MIXED = Categories(
    [Category(7, "road", is_thing=False, colour=(128, 64, 128), supercategory="flat"), Category(-1, "licence plate")]
)


def test_categories_keep_the_ids_of_the_data_set():
    assert MIXED.ids.tolist() == [7, -1]
    assert MIXED.names == ["road", "licence plate"]
    assert MIXED.indices([[-1, 7], [7, 7]]).tolist() == [[1, 0], [0, 0]]
    assert MIXED.by_id(-1) == MIXED.by_name("licence plate") == MIXED[1] == list(MIXED)[1]
    assert MIXED[:1] == (MIXED[0],)
    assert Categories(["cell", "nucleus"]).ids.tolist() == [1, 2]
    assert len(Categories([])) == 0
    assert Categories([]).colours().shape == (0, 3)


def test_categories_survive_json():
    again = Categories.from_json(json.loads(json.dumps(MIXED.to_json())))
    assert again == MIXED
    assert hash(again) == hash(MIXED)
    assert again != Categories(["road", "licence plate"])


def test_colours_are_those_given_and_otherwise_differ():
    assert MIXED.colours()[0].tolist() == [128, 64, 128]
    many = Categories([f"class {i}" for i in range(100)]).colours()
    assert many.dtype == np.uint8
    assert len(np.unique(many, axis=0)) == 100


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Categories([Category(1, "a"), Category(1, "b")]), "ids must be unique"),
        (lambda: Categories(["a", "a"]), "names must be unique"),
        (lambda: MIXED.by_id(3), r"unknown category id 3; known ids: \[-1, 7\]"),
        (lambda: MIXED.by_name("rode"), "did you mean 'road'"),
        (lambda: MIXED.indices([7, 8]), r"unknown category ids \[8\]"),
        (lambda: Categories.from_json([{"name": "a"}]), "not a category"),
        (lambda: Categories.from_json([{"id": 1, "name": "a", "color": "red"}]), "not a category"),
    ],
)
def test_mistakes_with_categories(make, message):
    with pytest.raises(InputError, match=message):
        make()


# -- samples and data sets ---------------------------------------------------------------------------------------------


def counted(number, reads):
    """Sample `number`, which notes when its image is read."""

    def read_image():
        reads.append(number)
        return np.full((2, 3, 1), number, np.uint8)

    return Sample(f"image {number}", read_image, lambda: Segments.empty((2, 3)))


def test_samples_are_read_once_and_only_when_asked_for():
    reads = []
    data = Dataset.of([counted(i, reads) for i in range(5)], Categories(["cell"]), frozenset({Task.INSTANCE}))
    assert (len(data), data.format, reads) == (5, "memory", [])
    sample = data[2]
    assert reads == []
    assert sample.image[0, 0, 0] == sample.image[1, 2, 0] == 2
    assert reads == [2]
    assert len(sample.segments) == 0
    assert Sample("plain", lambda: np.zeros((1, 1, 1))).segments is None


@modest
@given(st.slices(7), st.slices(4))
def test_slices_of_data_sets_are_those_of_lists(first, second):
    data = Dataset.of([counted(i, []) for i in range(7)], Categories(["cell"]), frozenset({Task.SEMANTIC}))
    numbers = list(range(7))
    part = data[first]
    assert [sample.name for sample in part] == [f"image {i}" for i in numbers[first]]
    assert [sample.name for sample in part[second]] == [f"image {i}" for i in numbers[first][second]]
    assert (part.categories, part.tasks) == (data.categories, data.tasks)


def test_indices_of_data_sets():
    data = Dataset.of([counted(i, []) for i in range(3)], Categories(["cell"]), frozenset())
    assert data[-1].name == "image 2"
    assert [sample.name for sample in data.subset([2, 0, 0])] == ["image 2", "image 0", "image 0"]
    for index in (3, -4):
        with pytest.raises(IndexError):
            data[index]
