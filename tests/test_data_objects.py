"""Boxes and masks of crops, against what the pixels of the crops say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from everymask.data.augment import Augmentation, Placement
from everymask.data.loader import Crops, Mixing, collate, to_device
from everymask.data.objects import VISIBLE, Objects, copy_paste, crop_boxes, crop_masks, layers_of, mixup, mosaic
from everymask.data.preprocessing import Preprocessing
from everymask.data.sampling import Draw
from everymask.data.store import Store
from everymask.errors import InputError
from everymask.methods.detection.common import BoxMethod
from everymask.predict.box_views import fused, turned_back
from everymask.types import Categories, Dataset, LabelMap, Masks, Sample, Segments, Task

CATEGORIES = Categories(["a", "b"])
RGB = Preprocessing(channels=3, normalise="scale", mean=(0.5,), std=(0.25,))


def _tight(mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def _placements(rng, count, rotated):
    for _ in range(count):
        angle = rng.uniform(-0.5, 0.5) if rotated else 0.0
        scale = 1.0 if rng.random() < 0.3 and not rotated else float(rng.uniform(0.6, 1.7))
        yield Placement(angle, scale, bool(rng.integers(2)), int(rng.integers(4)))


def _plain(window):
    return np.moveaxis(window, -1, 0).astype(np.float32)


@pytest.mark.parametrize("rotated", [False, True])
def test_boxes_move_with_the_pixels(rotated):
    rng = np.random.default_rng(0)
    for placement in _placements(rng, 60, rotated):
        ids = np.zeros((70, 90), np.int32)
        box = np.array([[30, 25, 52, 41]])
        ids[25:41, 30:52] = 1
        centre = np.array([35.0, 42.0]) + rng.uniform(-3, 3, 2)
        _, labels = placement.cut(ids[..., None], ids, centre, 120, _plain)
        found = _tight(labels == 1)
        moved = placement.moved_boxes(box, centre, 120)[0]
        # The nearest pixel may be half a pixel off, at both ends; corners of rotated boxes have no pixel of their own.
        slack = 0.51 if not rotated else 0.51 + 1.5 * placement.scale
        assert np.abs(np.array(found) - moved).max() <= slack, placement


def test_what_lies_outside_is_where_labels_are_void():
    rng = np.random.default_rng(1)
    for rotated in (False, True):
        for placement in _placements(rng, 30, rotated):
            ids = np.zeros((40, 50), np.int32)
            centre = rng.uniform(0, 40, 2)
            _, labels = placement.cut(ids[..., None], ids, centre, 48, _plain)
            outside = placement.outside((40, 50), centre, 48)
            assert ((labels == -1) != outside).mean() < 0.002  # exactly between two pixels rounding decides


def test_boxes_of_a_crop_are_cut_and_those_hardly_visible_become_crowds():
    assert VISIBLE > 0.2
    boxes = np.array([[0, 0, 10, 10], [18, 4, 28, 14], [5, 5, 45, 9], [30, 30, 40, 40], [19.5, 0, 30, 20]], np.float32)
    category, crowd = np.arange(5), np.zeros(5, bool)
    found = crop_boxes(Placement(), boxes, np.array([9.5, 9.5]), 20, category, crowd)
    assert found.boxes.tolist() == [[0, 0, 10, 10], [18, 4, 20, 14], [5, 5, 20, 9]]  # the last is under a pixel wide
    assert found.category.tolist() == [0, 1, 2]
    assert found.crowd.tolist() == [False, True, False]
    segments = found.segments((20, 20))
    assert segments.given_boxes is not None
    assert segments.geometry is None


def test_overlapping_masks_are_laid_into_few_maps():
    rng = np.random.default_rng(2)
    masks = np.zeros((12, 40, 50), bool)
    for mask in masks:
        y, x = rng.integers(0, 30), rng.integers(0, 40)
        mask[y : y + 10, x : x + 10] = rng.random((10, 10)) > 0.2
    segments = Segments.from_masks(masks.astype(np.uint8), np.arange(12))
    layers = layers_of(segments)
    assert layers.ndim == 3
    assert layers.shape[-1] < 12
    assert all(np.array_equal((layers == i + 1).any(-1), mask) for i, mask in enumerate(masks))
    apart = Segments.from_masks(masks[:1].astype(np.uint8), [0])
    assert np.array_equal(layers_of(apart), masks[0].astype(int))
    assert layers_of(Segments((4, 5), [], Masks.join((4, 5), []))).shape == (4, 5)
    ids = np.array([[0, 1], [-1, 2]], np.int32)
    assert layers_of(Segments(ids.shape, [0, 1], LabelMap(ids))) is ids


def test_masks_of_a_crop_are_those_of_its_maps():
    rng = np.random.default_rng(3)
    layers = rng.integers(-1, 6, (30, 30, 2)).astype(np.int32)
    layers[..., 0][layers[..., 0] > 3] = 0
    layers[..., 1][layers[..., 1] < 4] = 0
    pixels = np.full(7, 10.0)
    pixels[1] = 10_000
    found = crop_masks(layers, pixels, np.arange(7) % 2, np.zeros(7, bool))
    assert found.category.tolist() == [0, 1, 0, 1, 0]
    assert found.crowd.tolist() == [False, True, False, False, False]
    for number, (mask, box) in enumerate(zip(found.masks, found.boxes, strict=True)):
        assert np.array_equal(mask, (layers == number + 1).any(-1))
        assert box.tolist() == _tight(mask)
    assert np.array_equal(found.segments((30, 30)).masks(), found.masks)


def _objects(masks):
    masks = np.array(masks, bool)
    boxes = np.array([_tight(each) for each in masks], np.float32).reshape(-1, 4)
    return Objects(boxes, np.arange(len(masks)), np.zeros(len(masks), bool), masks)


def _parts(rng, count, side=32):
    parts = []
    for _ in range(count):
        masks = np.zeros((3, side, side), bool)
        for mask in masks:
            y, x = rng.integers(0, side - 8, 2)
            mask[y : y + 8, x : x + 8] = True
        image = rng.random((3, side, side)).astype(np.float32)
        parts.append((image, _objects(masks)))
    return parts


def test_a_mosaic_holds_the_middles_of_four_crops():
    rng = np.random.default_rng(4)
    for _ in range(10):
        parts, corner = _parts(rng, 4), tuple(rng.integers(8, 25, 2).tolist())
        image, objects = mosaic(parts, corner)
        top, left = (32 - corner[0]) // 2, (32 - corner[1]) // 2
        middle = parts[0][0][:, top : top + corner[0], left : left + corner[1]]
        assert np.array_equal(image[:, : corner[0], : corner[1]], middle)
        for mask, box in zip(objects.masks, objects.boxes, strict=True):
            assert box.tolist() == _tight(mask)
        bare, alone = mosaic([(p, Objects(o.boxes, o.category, o.crowd)) for p, o in parts], corner)
        assert np.array_equal(bare, image)
        assert np.array_equal(alone.boxes, objects.boxes)
        assert np.array_equal(alone.crowd, objects.crowd)


def test_mixup_is_the_mean_with_all_objects():
    one, other = _parts(np.random.default_rng(5), 2)
    image, objects = mixup(one, other)
    assert np.allclose(image, (one[0] + other[0]) / 2)
    assert len(objects) == 6


def test_pasted_objects_cover_what_lies_below():
    rng = np.random.default_rng(6)
    for seed in range(20):
        one, other = _parts(rng, 2)
        image, objects = copy_paste(one, other, np.random.default_rng(seed))
        from_other = (image == other[0]).all(0) & (image != one[0]).any(0)
        covering = np.zeros_like(from_other)
        for mask, box in zip(objects.masks, objects.boxes, strict=True):
            assert box.tolist() == _tight(mask)
            if from_other[mask].all():
                covering |= mask
            else:
                assert not from_other[mask].any()
        assert np.array_equal(covering, from_other)
    with pytest.raises(ValueError, match="without masks"):
        copy_paste((one[0], Objects(*[getattr(one[1], n) for n in ("boxes", "category", "crowd")])), other, rng)


# -- through the loader ------------------------------------------------------------------------------------------------


def _scene(number, geometry=True):
    rng = np.random.default_rng(number)
    image = np.full((60, 80, 3), 255, np.uint8)
    masks = np.zeros((4, 60, 80), bool)
    for mask in masks:
        y, x = rng.integers(0, 48), rng.integers(0, 64)
        mask[y : y + 12, x : x + 16] = True
        image[mask] = 0
    segments = Segments.from_masks(masks.astype(np.uint8), rng.integers(1, 3, 4))
    if not geometry:
        segments = Segments((60, 80), segments.category, None, box=segments.boxes())
    return Sample(f"scene {number}", lambda: image, lambda: segments)


def _store(learns_from, geometry=True, count=3):
    data = Dataset.of([_scene(i, geometry) for i in range(count)], CATEGORIES, frozenset({Task.DETECTION}))
    return Store(data, RGB, CATEGORIES, 10**8, learns_from=learns_from)


class _Boxes(BoxMethod):
    def __init__(self):
        torch.nn.Module.__init__(self)
        self.classes, self.channels, self.thresholds = 2, 3, {"score": 0.5}

    def forward(self, images):
        raise AssertionError

    def loss(self, outputs, targets):
        raise AssertionError


class _Masks(_Boxes):
    learns_from = "masks"


@pytest.mark.parametrize(("method", "geometry"), [(_Boxes, True), (_Boxes, False), (_Masks, True)])
@pytest.mark.parametrize("mixing", [None, Mixing(0.7, 0.5, 0.0, 10**6)])
def test_crops_show_their_objects_where_the_targets_say(method, geometry, mixing):
    store = _store(method.learns_from, geometry)
    if method is _Masks and mixing is not None:
        mixing = Mixing(0.5, 0.0, 0.7, 10**6)
    crops = Crops(
        store, method().targets, crop=48, augmentation=Augmentation("dihedral", 0, (0.7, 1.4)), foreground=1.0,
        mixing=mixing,
    )  # fmt: skip
    items = [crops[Draw(position % 3, position)] for position in range(12)]
    for image, targets in items:
        assert image.shape == (3, 48, 48)
        for box in targets["boxes"].round().int().tolist():
            inner = image[0, box[1] + 1 : box[3] - 1, box[0] + 1 : box[2] - 1]
            assert inner.numel() == 0 or mixing is not None or (inner < 0).float().mean() > 0.6
        if method is _Masks:
            assert targets["masks"].shape[1:] == (48, 48)
            assert all((image[0][mask] < 0).float().mean() > 0.85 for mask in targets["masks"])
    held = sum(len(targets["boxes"]) > 0 for _, targets in items)
    assert held == 12
    images, batch = collate(items[:3], BoxMethod.ragged)
    assert images.shape == (3, 3, 48, 48)
    assert [len(each) for each in batch["boxes"]] == [len(targets["boxes"]) for _, targets in items[:3]]
    assert to_device(batch, torch.device("cpu"))["classes"][1].dtype == torch.int64


def test_beyond_the_image_lies_the_fill_and_crops_are_reproducible():
    crops = Crops(_store("boxes"), _Boxes().targets, crop=96, fill=-7.0)
    image, _ = crops[Draw(0, 0)]
    assert (image[:, :18] == -7).all()
    assert (image[:, 18:78, 8:88] != -7).all()
    magnified = Crops(_store("boxes"), _Boxes().targets, crop=96, magnify=lambda height, width: 96 / width)
    image, targets = magnified[Draw(1, 0)]
    truth = _scene(1).segments.boxes() * 1.2 + np.array([0, 12] * 2)
    assert np.allclose(targets["boxes"].numpy(), truth, atol=1e-4)
    again, _ = magnified[Draw(1, 0)]
    assert torch.equal(image, again)


def test_annotation_without_boxes_or_masks_is_told():
    with pytest.raises(InputError, match="scene 0: the annotation has boxes but no masks"):
        _store("masks", geometry=False)[0]
    tags = Dataset.of(
        [Sample("tag", _scene(0).read_image, lambda: Segments((60, 80), [1]))], CATEGORIES, frozenset({Task.DETECTION})
    )
    with pytest.raises(InputError, match="neither boxes nor masks"):
        Store(tags, RGB, CATEGORIES, 10**8, learns_from="boxes")[0]


def test_boxes_without_area_and_images_without_objects_are_no_obstacle():
    boxes = [[5, 5, 20, 20], [7, 7, 7, 30], [90, 10, 120, 30], [30, 30, 20, 40]]
    odd = Sample("odd", _scene(0).read_image, lambda: Segments((60, 80), [1, 2, 1, 1], None, box=boxes))
    none = Sample("none", _scene(0).read_image, lambda: Segments((60, 80), [], None, box=np.zeros((0, 4))))
    store = Store(
        Dataset.of([odd, none], CATEGORIES, frozenset({Task.DETECTION})), RGB, CATEGORIES, 10**8, learns_from="boxes"
    )
    assert store[0].category.tolist() == [0]
    assert store[0].frames.tolist() == [[5, 5, 20, 20]]
    assert store[1].random_pixel(np.random.default_rng(0)) is None
    _, targets = Crops(store, _Boxes().targets, crop=32, augmentation=Augmentation(), foreground=1.0)[Draw(1, 0)]
    assert targets["boxes"].shape == (0, 4)


# -- copies ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_what_is_found_in_a_copy_is_turned_back(flip, turns):
    masks = np.zeros((2, 30, 44), np.uint8)
    masks[0, 3:9, 5:25], masks[1, 20:29, 30:31] = 1, 1
    truth = Segments.from_masks(masks, [0, 1], score=[0.9, 0.4])
    copies = np.rot90(masks, turns, (1, 2))
    copies = np.ascontiguousarray(copies[..., ::-1] if flip else copies)
    back = turned_back(Segments.from_masks(copies, [0, 1], score=[0.9, 0.4]), flip, turns)
    assert back.size == (30, 44)
    assert np.array_equal(back.masks(), truth.masks())
    assert np.array_equal(back.boxes(), truth.boxes())
    empty = turned_back(Segments(copies.shape[1:], [], None, score=[], box=np.zeros((0, 4))), flip, turns)
    assert empty.size == (30, 44)


def test_fused_boxes_are_weighted_means_and_rare_ones_lose():
    def boxes(values, scores, category):
        return Segments((50, 50), category, None, score=scores, box=values)

    found = fused(
        [
            boxes([[0, 0, 10, 10], [0, 0, 10, 9], [30, 30, 40, 40]], [0.8, 0.3, 0.6], [0, 0, 1]),
            boxes([[0, 0, 12, 10], [0, 0, 10, 10]], [0.4, 0.7], [0, 1]),
        ],
        2,
    )
    assert found.category.tolist() == [0, 1, 1]
    assert found.score.tolist() == pytest.approx([0.6, 0.35, 0.3])
    assert found.boxes()[0].tolist() == pytest.approx([0, 0, (0.8 * 10 + 0.4 * 12) / 1.2, 10])
    nothing = boxes(np.zeros((0, 4)), [], [])
    assert len(fused([nothing, nothing], 2)) == 0
    with pytest.raises(InputError, match="finds neither"):
        turned_back(Segments((4, 4), [0], LabelMap(np.ones((4, 4), np.int32))), False, 0)
