"""From samples to batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from everymask.data.augment import Augmentation
from everymask.data.loader import Crops, batches, collate
from everymask.data.preprocessing import Preprocessing
from everymask.data.sampling import CropStream, Draw
from everymask.data.store import Store, decode
from everymask.errors import InputError
from everymask.types import Categories, Category, Dataset, LabelMap, Sample, Segments, Task

CATEGORIES = Categories([Category(7, "cell"), Category(3, "nucleus")])
GREY = Preprocessing(channels=1)
ALL = Augmentation("dihedral", 30, (0.7, 1.4), 0.2, (0.6, 1.6), (0.8, 1.2), 0.05, 1.0, 0.2, 0.1)


def made_up(number, size=(40, 48)):
    rng = np.random.default_rng(number)
    image = rng.integers(0, 4000, (*size, 1)).astype(np.uint16)
    ids = np.zeros(size, np.int32)
    ids[2:6, 3:9], ids[20:30, 20:40], ids[35:, 40:] = 1, 2, 3
    return image, Segments(size, [3, 7, 3], LabelMap(ids), crowd=[False, False, True])


def data_of(count, reads=None, change=lambda number, image, segments: (image, segments)):
    def image(number):
        if reads is not None:
            reads.append(number)
        return change(number, *made_up(number))[0]

    def sample(number):
        return Sample(f"image {number}", lambda: image(number), lambda: change(number, *made_up(number))[1])

    return Dataset(sample, count, CATEGORIES, frozenset({Task.INSTANCE}), "test", Path("made-up"))


def targets(segments):
    return {"ids": torch.from_numpy(segments.label_map().copy()), "count": torch.tensor(len(segments))}


def crops_of(data, crop=24, budget=10**8, augmentation=ALL, **options):
    return Crops(Store(data, GREY, CATEGORIES, budget), targets, crop=crop, augmentation=augmentation, **options)


def test_large_images_are_visited_as_often_as_their_size_asks():
    sizes = [(20, 20), (48, 48), (48, 192), (100, 100)]

    def image(number):
        segments = Segments(sizes[number], [3], LabelMap(np.ones(sizes[number], np.int32)))
        return Sample(str(number), lambda: np.zeros((*sizes[number], 1), np.uint8), lambda: segments)

    data = Dataset(image, len(sizes), CATEGORIES, frozenset({Task.INSTANCE}), "test", Path("made-up"))
    store = Store(data, GREY, CATEGORIES, 10**8)
    assert store.visits("once", (48, 48)) == [1, 1, 1, 1]
    assert store.visits("side", (48, 48)) == [1, 1, 2, 2]
    assert store.visits("area", (48, 48)) == [1, 1, 4, 4]
    stream = CropStream(4, 10, batches=2, visits=[1, 1, 4, 4], seed=3)
    for batch in stream:  # a batch is one pass here, each in another order
        assert np.bincount([draw.index for draw in batch]).tolist() == [1, 1, 4, 4]
    first, second = stream
    assert [draw.index for draw in first] != [draw.index for draw in second]


def test_batches_do_not_depend_on_the_number_of_loader_processes():
    found = []
    for workers in (0, 1, 2):
        crops = crops_of(data_of(5), foreground=0.5, seed=9)
        stream = CropStream(5, 3, batches=4, seed=9)
        found.append([(images, values["ids"]) for images, values in batches(crops, stream, workers=workers)])
    assert len(found[0]) == 4
    for images, ids in found[0]:
        assert images.shape == (3, 1, 24, 24)
        assert ids.shape == (3, 24, 24)
    for other in found[1:]:
        for (images, ids), (other_images, other_ids) in zip(found[0], other, strict=True):
            assert torch.equal(images, other_images)
            assert torch.equal(ids, other_ids)


def test_every_pass_covers_each_image_once():
    draws = [draw for batch in CropStream(7, 4, batches=7, seed=1) for draw in batch]
    assert [draw.position for draw in draws] == list(range(28))
    passes = [[draw.index for draw in draws[start : start + 7]] for start in range(0, 28, 7)]
    assert all(sorted(each) == list(range(7)) for each in passes)
    assert len({tuple(each) for each in passes}) > 1
    other = [draw.index for batch in CropStream(7, 4, batches=7, seed=2) for draw in batch]
    assert other != [draw.index for draw in draws]


def test_the_stream_can_be_entered_anywhere():
    whole = list(CropStream(7, 4, batches=9, seed=1))
    assert list(CropStream(7, 4, batches=9, start=5, seed=1)) == whole[5:]


def test_processes_share_a_global_batch():
    whole = list(CropStream(11, 6, batches=5, seed=1))
    parts = [list(CropStream(11, 2, batches=5, seed=1, process=i, processes=3)) for i in range(3)]
    assert [first + second + third for first, second, third in zip(*parts, strict=True)] == whole


def test_without_augmentation_the_crop_is_the_middle_of_the_normalised_image():
    data = data_of(1)
    preprocessing = Preprocessing(channels=1, mean=(0.3,), std=(0.2,))
    crops = Crops(Store(data, preprocessing, CATEGORIES, 0), targets, crop=24)
    image, segments = crops.cut(Draw(0, 0))
    expected = preprocessing(data[0].image)[:, 8:32, 12:36]
    np.testing.assert_allclose(image, expected, rtol=1e-5, atol=1e-6)
    # Only the second object is in the crop; categories become indices.
    np.testing.assert_array_equal(segments.label_map() > 0, data[0].segments.label_map()[8:32, 12:36] == 2)
    assert segments.category.tolist() == [0]
    assert segments.crowd.tolist() == [False]


def test_labels_are_compacted_with_their_columns():
    # The crop is as large as the image, so every object but those cut away by rounding is there.
    crops = crops_of(data_of(1), crop=48, augmentation=None)
    _, segments = crops.cut(Draw(0, 0))
    assert len(segments) == 3
    assert segments.category.tolist() == [1, 0, 1]
    assert segments.crowd.tolist() == [False, False, True]
    rng = np.random.default_rng(0)
    crops = crops_of(data_of(1), crop=12, foreground=1.0)
    for position in rng.integers(0, 10**6, 50).tolist():
        _, segments = crops.cut(Draw(0, position))
        present = np.unique(segments.label_map())
        assert present[present > 0].tolist() == list(range(1, len(segments) + 1))
        # Object 2 alone has index 0 and object 3 alone is a crowd.
        assert all(segments.category[segments.crowd] == 1)


def test_foreground_crops_are_chosen_by_object_not_by_area():
    def tiny_and_huge(number, image, segments):
        ids = np.zeros((40, 48), np.int32)
        ids[:, :30], ids[10, 45] = 1, 2
        return image, Segments((40, 48), [3, 7], LabelMap(ids))

    crops = crops_of(data_of(1, change=tiny_and_huge), crop=8, augmentation=Augmentation(), foreground=1.0)
    hits = [int(0 in crops.cut(Draw(0, position))[1].category) for position in range(300)]
    assert 0.4 < np.mean(hits) < 0.6
    crops = crops_of(data_of(1, change=tiny_and_huge), crop=8, augmentation=Augmentation(), foreground=0.0)
    hits = [int(0 in crops.cut(Draw(0, position))[1].category) for position in range(300)]
    assert np.mean(hits) < 0.2


def test_an_image_without_objects_gives_crops():
    def empty(number, image, segments):
        return image, Segments.empty((40, 48))

    image, segments = crops_of(data_of(1, change=empty), foreground=1.0).cut(Draw(0, 1))
    assert np.isfinite(image).all()
    assert len(segments) == 0


def test_files_are_read_once_if_they_fit_the_budget():
    reads = []
    crops = crops_of(data_of(6, reads))
    assert crops.store.fill()
    for index in range(6):
        crops.cut(Draw(index, index))
    assert sorted(reads) == list(range(6))


def test_the_budget_is_kept():
    size = decode(data_of(1)[0], GREY, CATEGORIES).bytes
    reads = []
    store = Store(data_of(6, reads), GREY, CATEGORIES, budget=int(2.5 * size))
    assert not store.fill()
    for index in range(6):
        _ = store[index]
    reads.clear()
    _ = store[5], store[4], store[0]
    assert reads == [0]


def wrong_size(number, image, segments):
    return image[:-1], segments


def not_finite(number, image, segments):
    image = image.astype(np.float32)
    image[3, 3] = np.nan
    return image, segments


def unknown_category(number, image, segments):
    return image, segments.with_category([3, 7, 99])


def boxes_only(number, image, segments):
    return image, Segments((40, 48), [3], box=[[1, 1, 5, 5]])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (wrong_size, ["39 x 48", "40 x 48"]),
        (not_finite, ["NaN"]),
        (unknown_category, ["99"]),
        (boxes_only, ["boxes"]),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_bad_samples_are_named(change, words, workers):
    def second(number, image, segments):
        return change(number, image, segments) if number == 1 else (image, segments)

    crops = crops_of(data_of(2, change=second))
    with pytest.raises(InputError) as caught:
        list(batches(crops, CropStream(2, 2, batches=1), workers=workers))
    message = str(caught.value)
    assert "\n" not in message
    for word in ["image 1", *words]:
        assert word in message


def test_unannotated_images_are_refused():
    sample = Sample("lonely", lambda: made_up(0)[0])
    with pytest.raises(InputError, match=r"lonely.*no annotation"):
        decode(sample, GREY, CATEGORIES)


def test_collate_stacks_every_target():
    crops = crops_of(data_of(2))
    images, values = collate([crops[Draw(0, 0)], crops[Draw(1, 1)]])
    assert images.shape == (2, 1, 24, 24)
    assert values["ids"].shape == (2, 24, 24)
    assert values["count"].shape == (2,)


def test_scale_normalisation_of_a_colour_image_made_grey():
    """The range is that of the file's number type, whatever the conversion to grey computes in."""
    image = np.full((4, 4, 3), 255, np.uint8)
    np.testing.assert_allclose(Preprocessing(channels=1, normalise="scale")(image), 1.0)


def test_grey_images_get_an_empty_second_channel_where_channels_mean_different_things():
    grey = np.random.default_rng(0).integers(0, 255, (8, 9, 1)).astype(np.uint8)
    two = Preprocessing(channels=2, per_channel=True, missing="empty")
    matched = two.match_channels(grey)
    assert np.array_equal(matched[..., 0], grey[..., 0])
    assert not matched[..., 1].any()
    assert np.isfinite(two(grey)).all()
    with pytest.raises(InputError, match="has 1 channels, but the model takes 2"):
        Preprocessing(channels=2).match_channels(grey)
