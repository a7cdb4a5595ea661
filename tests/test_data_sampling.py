"""Which crops come when: balanced draws, and the census that they and class weights are made from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from everymask.data.augment import Augmentation
from everymask.data.loader import Crops, batches
from everymask.data.preprocessing import Preprocessing
from everymask.data.sampling import BalancedDraws, Census, CropStream, Draw
from everymask.data.store import Store
from everymask.errors import InputError
from everymask.types import Categories, Category, Dataset, LabelMap, Sample, Segments, Task

CATEGORIES = Categories([Category(5, "road"), Category(2, "car"), Category(9, "rider"), Category(1, "never")])
GREY = Preprocessing(channels=1)


def scene(number: int) -> Segments:
    """Mostly road (index 0); a car (1) in every third image; a rider (2) of two pixels in image 7; some void."""
    ids = np.ones((20, 30), np.int32)
    ids[:2], ids[2:4] = -1, 0
    category = [5]
    if number % 3 == 0:
        ids[10:14, 3 + number : 8 + number] = 2
        category.append(2)
    if number == 7:
        ids[17, 20:22] = 2
        category.append(9)
    return Segments(ids.shape, category, LabelMap(ids))


def scenes(count: int = 12, annotated: frozenset[int] | None = None) -> Dataset:
    def sample(number: int) -> Sample:
        image = np.random.default_rng(number).integers(0, 255, (20, 30, 1)).astype(np.uint8)
        known = annotated is None or number in annotated
        return Sample(f"scene {number}", lambda: image, (lambda: scene(number)) if known else None)

    return Dataset(sample, count, CATEGORIES, frozenset({Task.SEMANTIC}), "test", Path("made-up"))


def tagged(count: int) -> Dataset:
    def sample(number: int) -> Sample:
        segments = Segments((4, 4), [5 if number else 2])
        return Sample(str(number), lambda: np.zeros((4, 4, 1), np.uint8), lambda: segments)

    return Dataset(sample, count, CATEGORIES, frozenset({Task.CLASSIFICATION}), "test", Path("made-up"))


def store_of(data: Dataset, budget: int = 10**8, **options: bool) -> Store:
    return Store(data, GREY, CATEGORIES, budget, **options)


def targets(segments: Segments) -> dict[str, torch.Tensor]:
    return {"ids": torch.from_numpy(segments.label_map().copy()), "riders": torch.tensor(int(2 in segments.category))}


# -- census ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_memory", [True, False])
def test_pixels_are_counted_by_class(in_memory: bool) -> None:
    store = store_of(scenes(), 10**8 if in_memory else 0)
    if in_memory:
        assert store.fill()
    census = Census.of(store)
    for number in range(12):
        found = scene(number)
        map_ = np.concatenate([[-1, 0], found.category])[found.label_map() + 1]
        expected = [np.count_nonzero(map_ == id_) for id_ in CATEGORIES.ids]
        assert census.pixels[number].tolist() == expected
        assert census.background[number] == np.count_nonzero(map_ == 0)
        assert census.present[number].tolist() == [each > 0 for each in expected]


def test_tags_count_as_images() -> None:
    census = Census.of(store_of(tagged(3)))
    assert census.present.tolist() == [[False, True, False, False], [True, *[False] * 3], [True, *[False] * 3]]
    assert not census.pixels.any() and not census.background.any()


def test_images_are_not_read_for_a_census() -> None:
    def unreadable() -> np.ndarray:
        raise InputError("nobody should look")

    data = Dataset(lambda i: Sample(str(i), unreadable, lambda: scene(i)), 3, CATEGORIES, frozenset(), "test", Path())
    assert Census.of(store_of(data)).pixels[0, 1] == 20


# -- balanced draws ----------------------------------------------------------------------------------------------------


def test_rare_classes_are_drawn_as_often_as_frequent_ones() -> None:
    store = store_of(scenes())
    draws = BalancedDraws(Census.of(store).present, 1.0, seed=3)
    drawn = [draws.draw(position) for position in range(6000)]
    assert all(each is not None and each.position == i for i, each in enumerate(drawn))
    counts = np.bincount([each.category for each in drawn if each], minlength=4)
    assert counts[3] == 0  # of what never occurs there is nothing to show
    assert chisquare(counts[:3]).pvalue > 0.001
    assert {each.index for each in drawn if each and each.category == 2} == {7}
    cars = np.bincount([each.index for each in drawn if each and each.category == 1], minlength=12)
    assert np.flatnonzero(cars).tolist() == [0, 3, 6, 9]
    assert chisquare(cars[cars > 0]).pvalue > 0.001


def test_the_rest_of_the_stream_stays_as_it_was() -> None:
    present = Census.of(store_of(scenes())).present
    plain = [draw for batch in CropStream(12, 4, batches=300, seed=8) for draw in batch]
    balance = BalancedDraws(present, 0.25, seed=8)
    mixed = [draw for batch in CropStream(12, 4, batches=300, seed=8, balance=balance) for draw in batch]
    chosen = [draw for draw in mixed if draw.category >= 0]
    assert 0.2 < len(chosen) / len(mixed) < 0.3
    assert all(draw == plain[draw.position] for draw in mixed if draw.category < 0)
    other = BalancedDraws(present, 0.25, seed=9)
    assert [other.draw(i) for i in range(50)] != [balance.draw(i) for i in range(50)]


def test_processes_and_resumed_runs_draw_the_same() -> None:
    balance = BalancedDraws(Census.of(store_of(scenes())).present, 0.5, seed=1)
    whole = list(CropStream(12, 6, batches=7, seed=1, balance=balance))
    parts = [list(CropStream(12, 3, batches=7, seed=1, process=i, processes=2, balance=balance)) for i in range(2)]
    assert [first + second for first, second in zip(*parts, strict=True)] == whole
    assert list(CropStream(12, 6, batches=7, start=4, seed=1, balance=balance)) == whole[4:]


def test_the_crop_holds_the_class_that_was_drawn() -> None:
    store = store_of(scenes())
    draws = BalancedDraws(Census.of(store).present, 1.0, seed=0)
    crops = Crops(store, targets, crop=6, augmentation=Augmentation("dihedral", scale=(1.0, 1.6)))
    for position in range(300):
        draw = draws.draw(position)
        assert draw is not None
        assert draw.category in crops.cut(draw)[1].category


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_processes_change_nothing(workers: int) -> None:
    store = store_of(scenes())
    balance = BalancedDraws(Census.of(store).present, 0.5, seed=2)
    crops = Crops(store, targets, crop=8, augmentation=Augmentation("dihedral"), seed=2)
    stream = CropStream(12, 4, batches=5, seed=2, balance=balance)
    riders = []
    for (images, values), draws in zip(batches(crops, stream, workers=workers), stream, strict=True):
        expected = [crops.cut(draw) for draw in draws]
        assert np.array_equal(images.numpy(), np.stack([image for image, _ in expected]))
        riders += values["riders"].tolist()
    assert sum(riders) >= 2  # one image of twelve holds one, of two pixels


def test_classes_of_an_image_are_drawn_before_its_segments() -> None:
    """Ninety small cells of one class and a single one of another."""
    ids = np.zeros((40, 40), np.int32)
    ids[:30:3, :27:3] = np.arange(1, 91).reshape(10, 9)
    ids[35, 35] = 91
    segments = Segments(ids.shape, [5] * 90 + [2], LabelMap(ids))
    image = np.zeros((40, 40, 1), np.uint8)
    data = Dataset(lambda i: Sample("0", lambda: image, lambda: segments), 1, CATEGORIES, frozenset(), "test", Path())
    share = {}
    for by_class in (False, True):
        crops = Crops(
            store_of(data), targets, crop=4, augmentation=Augmentation(), foreground=1.0, by_class=by_class, seed=0
        )
        share[by_class] = np.mean([1 in crops.cut(Draw(0, position))[1].category for position in range(400)])
    assert share[False] < 0.05
    assert 0.4 < share[True] < 0.6


def test_tagged_images_are_drawn_by_class() -> None:
    store = store_of(tagged(30))
    draws = BalancedDraws(Census.of(store).present, 1.0, seed=0)
    drawn = [draws.draw(position) for position in range(200)]
    assert 0.4 < np.mean([each is not None and each.index == 0 for each in drawn]) < 0.6
    assert Crops(store, targets, crop=4).cut(Draw(0, 0, 1))[1].category.tolist() == [1]


# -- images without annotation -----------------------------------------------------------------------------------------


def test_images_without_annotation_are_void_where_they_are_wanted() -> None:
    data = scenes(12, frozenset({0, 1}))
    with pytest.raises(InputError, match=r"scene 5: has no annotation"):
        _ = store_of(data)[5]
    store = store_of(data, unannotated=True)
    assert store.fill()
    crops = Crops(store, targets, crop=8, augmentation=Augmentation("dihedral"), foreground=1.0, by_class=True)
    places = set()
    for position in range(40):
        image, segments = crops.cut(Draw(5, position))
        assert (segments.label_map() == -1).all() and len(segments) == 0
        places.add(image.tobytes())
    assert len(places) > 30  # anywhere
    census = Census.of(store)
    assert census.present[2:].sum() == 0 and census.pixels[2:].sum() == 0 and census.background[2:].sum() == 0
    assert Census.of(store_of(data, unannotated=True)).pixels.tolist() == census.pixels.tolist()


# -- boxes -------------------------------------------------------------------------------------------------------------


def boxed(number: int) -> Segments:
    """A road; in image 1 two cars, one cut off by the edge; in image 2 a rider of which nothing lies in the image."""
    boxes, category = [[0, 10, 30, 20]], [5]
    if number == 1:
        boxes += [[2, 3, 8, 7], [25, 0, 40, 4]]
        category += [2, 2]
    if number == 2:
        boxes.append([31, 2, 36, 9])
        category.append(9)
    return Segments((20, 30), category, box=boxes)


@pytest.mark.parametrize("filled", [True, False])
def test_boxes_are_counted_where_there_are_no_masks(filled: bool) -> None:
    image = np.zeros((20, 30, 1), np.uint8)
    data = Dataset(
        lambda i: Sample(str(i), lambda: image, lambda: boxed(i)),
        3,
        CATEGORIES,
        frozenset({Task.DETECTION}),
        "test",
        Path("made-up"),
    )
    store = Store(data, GREY, CATEGORIES, 10**8, learns_from="boxes")
    if filled:
        assert store.fill()
    census = Census.of(store)
    assert census.pixels.tolist() == [[300, 0, 0, 0], [300, 24 + 20, 0, 0], [300, 0, 0, 0]]
    assert census.present.tolist() == [[True, False, False, False], [True, True, False, False], [True, *[False] * 3]]
    draws = BalancedDraws(census.present, 1.0, seed=0)
    count = {"number": torch.ones(())}
    crops = Crops(store, lambda _: count, crop=6, augmentation=Augmentation("mirror"))
    drawn = [draws.draw(position) for position in range(40)]
    cars = [draw for draw in drawn if draw is not None and draw.category == 1]
    assert len(cars) > 10 and all(draw.index == 1 for draw in cars)
    assert all(1 in crops.cut(draw)[1].category for draw in cars)
    with pytest.raises(InputError, match="no masks"):
        Census.of(Store(data, GREY, CATEGORIES, 10**8))
    tags = tagged(2)
    with pytest.raises(InputError, match="0: the annotation has neither boxes nor masks"):
        Census.of(Store(tags, GREY, CATEGORIES, 10**8, learns_from="boxes"))
