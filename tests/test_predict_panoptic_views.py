"""Copies and tiles of images for panoptic methods, by networks that know the truth of every copy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from everymask.methods.detection.detr_panoptic import DETRPanoptic
from everymask.methods.detection.panoptic_fpn import PanopticFPN
from everymask.ops import rle
from everymask.ops.mask_voting import vote_masks
from everymask.predict.box_views import fused, grouped, segments_of_views
from everymask.predict.stitching import stitch
from everymask.predict.tiling import Tile, plan_tiles
from everymask.predict.tta import VIEWS, View
from everymask.types import LabelMap, Masks, Segments

CATEGORY = np.array([0, 3, 2, 0, 1])
"""Of the segments of the truth: things 0 and 2, stuff 1 and 3."""


def truth(height: int = 90, width: int = 122) -> Segments:
    """Two discs and a rectangle on two kinds of ground, one of them on both sides of the other."""
    rows, columns = np.mgrid[:height, :width]
    ids = np.where(abs(columns - 60 - rows / 9) < 25, 5, 2)
    ids[np.hypot(rows - 25, columns - 30) < 15] = 1
    ids[40:70, 50:100] = 3
    ids[np.hypot(rows - 70, columns - 25) < 14] = 4
    return Segments(ids.shape, CATEGORY, LabelMap(ids.astype(np.int32)))


def image_of(segments: Segments) -> Tensor:
    """(1, 3, H, W) whose first channel is the label map."""
    ids = torch.from_numpy(segments.label_map().astype(np.float32))
    return torch.stack([ids, ids, ids])[None]


def ids_in(images: Tensor) -> NDArray[np.int32]:
    """The label map that an image shows, 0 where it is padded; of magnified copies about so."""
    return images[0, 0].round().numpy().astype(np.int32)


def boxes_in(ids: NDArray[np.int32], number: int) -> list[float]:
    rows, columns = np.nonzero(ids == number)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else [0, 0, 1, 1]


def branches(images: Tensor) -> dict[str, Tensor]:
    """What a perfect Panoptic FPN says of an image."""
    ids = ids_in(images)
    things = (1, 3, 4)
    boxes = torch.tensor([boxes_in(ids, number) for number in things], dtype=torch.float32)
    masks = []
    for number, (x0, y0, x1, y1) in zip(things, boxes.int().tolist(), strict=True):
        part = torch.from_numpy((ids[y0:y1, x0:x1] == number).astype(np.float32))
        masks.append(functional.interpolate(part[None, None], size=(28, 28), mode="bilinear", antialias=True)[0, 0])
    # "Other", class 1, class 3; what the objects hide is seen as ground by half.
    semantic = np.stack([0.5 * np.isin(ids, things), ids == 5, ids == 2]).astype(np.float32)
    small = functional.avg_pool2d(torch.from_numpy(semantic)[None], 4)
    return {
        "boxes": boxes[None],
        "scores": torch.tensor([[0.9, 0.8, 0.7]]),
        "classes": torch.tensor([[0, 1, 0]]),
        "masks": 20 * (torch.stack(masks)[None] - 0.5),
        "semantic": 9 * small,
    }


def queries(images: Tensor) -> dict[str, Tensor]:
    """What a perfect DETR says: a query for each segment, two for the ground on both sides, and one for nothing."""
    ids = ids_in(images)
    middle = ids.shape[1] // 2
    masks = np.stack([ids == 1, ids == 2, ids == 3, ids == 4, ids == 5, ids == 2, ids == 1]).astype(np.float32)
    masks[1, :, middle:] = masks[5, :, :middle] = 0
    logits = torch.full((1, 7, 5), -3.0)
    for query, category in enumerate((*CATEGORY, 3, 4)):
        logits[0, query, category] = 3.0
    boxes = [boxes_in(mask.astype(np.int32), 1) for mask in masks]
    small = functional.avg_pool2d(torch.from_numpy(masks)[None], 4)
    return {"logits": logits, "boxes": torch.tensor(boxes, dtype=torch.float32)[None], "masks": 20 * (small - 0.5)}


def method_of(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "branches":
        small: dict[str, Any] = {"backbone": "test_resnet", "width": 8, "hidden": 8, "semantic_width": 8}
        return PanopticFPN(4, stuff=(1, 3), least_stuff=20, **small)
    sizes = {"width": 16, "heads": 8, "hidden": 8, "encoder_layers": 1, "decoder_layers": 1, "queries": 7}
    return DETRPanoptic(4, backbone="test_resnet", stuff=(1, 3), **sizes)


def agreement(found: Segments, expected: Segments) -> float:
    """Share of the pixels whose segments correspond: each true one to the one of its category that it meets most."""
    other = np.zeros(expected.size, np.int64)
    for number in range(len(expected)):
        mask = expected.label_map() == number + 1
        same = np.flatnonzero(found.category == expected.category[number])
        if len(same):
            pixels = [(mask & (found.label_map() == each + 1)).sum() for each in same]
            other[mask] = same[int(np.argmax(pixels))] + 1
    return float((other == np.maximum(found.label_map(), 0)).mean())


@pytest.mark.parametrize("views", ["none", "mirror", "flips", "dihedral", "multiscale"])
@pytest.mark.parametrize("kind", ["branches", "queries"])
def test_copies_of_an_image_agree(kind: str, views: str) -> None:
    method = method_of(kind)
    expected = truth()
    network = branches if kind == "branches" else queries
    if views == "multiscale":
        # Labels cannot be interpolated: the copies are made of the truth itself.
        pairs = [View(flip, 0, scale) for scale in (1.0, 2.0) for flip in (False, True)]
        images = image_of(expected)

        def magnified(copy: Tensor) -> dict[str, Tensor]:
            return network(copy) if copy.shape[-1] < 200 else network(doubled_labels(images, copy))

        found = segments_of_views(method, magnified, images, pairs, (90, 122))
    else:
        images = functional.pad(image_of(expected), (0, 6, 0, 6))
        found = segments_of_views(method, network, images, VIEWS[views], (90, 122))
    assert found.size == (90, 122)
    assert sorted(found.category.tolist()) == sorted(CATEGORY.tolist())
    assert agreement(found, expected) > 0.95
    assert found.score is not None
    if kind == "branches":
        things = found.score[np.isin(found.category, (0, 2))]
        np.testing.assert_allclose(things, [0.9, 0.8, 0.7], atol=1e-6)
    else:
        np.testing.assert_allclose(found.score, 1 / (1 + 4 * np.exp(-6)), atol=1e-6)


def doubled_labels(images: Tensor, copy: Tensor) -> Tensor:
    """The copy of twice the size with labels instead of what interpolation made of them."""
    large = functional.interpolate(images, scale_factor=2, mode="nearest")
    flipped = large.flip(-1)
    mirrored = (copy[..., :180, :244] - flipped).abs().mean() < (copy[..., :180, :244] - large).abs().mean()
    return functional.pad(flipped if mirrored else large, (0, 12, 0, 12))


@pytest.mark.parametrize("kind", ["branches", "queries"])
def test_what_one_copy_alone_shows_is_left_out(kind: str) -> None:
    """And its pixels go to what the other copies see there."""
    method = method_of(kind)
    method.thresholds["score"] = 0.5
    expected = truth()
    seen: list[bool] = []

    def network(images: Tensor) -> dict[str, Tensor]:
        outputs = (branches if kind == "branches" else queries)(images)
        if seen:  # all but the first copy miss the first disc
            if kind == "branches":
                outputs["scores"][0, 0] = 0
            else:
                outputs["logits"][0, 0] = torch.tensor([-3.0, -3, -3, -3, 9])
        seen.append(True)
        return outputs

    images = image_of(expected)
    found = segments_of_views(method, network, images, VIEWS["flips"], (90, 122))
    assert len(seen) == 4
    assert sorted(found.category.tolist()) == [0, 1, 2, 3]


def test_probabilities_of_copies_are_averaged_and_not_logits() -> None:
    """One copy is very sure of one class, two others are rather sure of another, which wins."""
    method = method_of("branches")
    sure = iter([(0.0, 60.0, 0.0), (0.0, 0.0, 3.0), (0.0, 0.0, 3.0), (0.0, 0.0, 3.0)])

    def network(images: Tensor) -> dict[str, Tensor]:
        logits = torch.tensor(next(sure))[None, :, None, None].expand(1, 3, 8, 8)
        tables = {"boxes": torch.zeros(1, 1, 4), "scores": torch.zeros(1, 1), "classes": torch.zeros(1, 1)}
        return tables | {"masks": torch.zeros(1, 1, 28, 28), "semantic": logits}

    found = segments_of_views(method, network, torch.zeros(1, 3, 32, 32), VIEWS["flips"], (32, 32))
    assert found.category.tolist() == [3] and (found.label_map() == 1).all()
    probability = np.exp(3) / (np.exp(3) + 2)
    assert found.score is not None and found.score[0] == pytest.approx(0.75 * probability, abs=1e-6)


@pytest.mark.parametrize("seed", range(25))
def test_masks_are_joined_by_a_vote(seed: int) -> None:
    """Against the weighted mean of dense masks, in whole numbers, as ties are frequent."""
    rng = np.random.default_rng(seed)
    size = (int(rng.integers(1, 12)), int(rng.integers(1, 12)))
    sizes = rng.integers(1, 5, int(rng.integers(0, 6)))
    masks = rng.random((int(sizes.sum()), *size)) < rng.choice([0.0, 0.3, 0.8, 1.0], int(sizes.sum()))[:, None, None]
    quarters = rng.integers(1, 5, len(masks))
    starts = np.concatenate([[0], np.cumsum(sizes)])
    found = vote_masks(*rle.encode(masks), starts, quarters / 4, size[0] * size[1])
    dense = rle.decode(*found, size)
    assert len(dense) == len(sizes)
    for mask, begin, end in zip(dense, starts, starts[1:], strict=False):
        votes = (masks[begin:end] * quarters[begin:end, None, None]).sum(0)
        assert np.array_equal(mask, (2 * votes >= quarters[begin:end].sum()) & (votes > 0))
    rle.check(found[0], size, found[1])


def test_fused_masks_are_those_of_most_copies() -> None:
    base = np.zeros((1, 20, 20), np.bool_)
    base[0, 5:15, 5:15] = True
    wider, narrower = base.copy(), base.copy()
    wider[0, 5:15, 15] = True
    narrower[0, 5:15, 5] = False
    copies = [
        Segments((20, 20), [1], Masks((20, 20), *rle.encode(mask)), score=[score], box=[[5, 5, 15, 15]])
        for mask, score in ((base, 0.6), (wider, 0.9), (narrower, 0.6))
    ]
    found = fused(copies, 3)
    assert np.array_equal(found.masks(), base) and found.score is not None
    assert found.score.tolist() == pytest.approx([0.7])


def test_stuff_is_one_group_with_all_members() -> None:
    def boxes(values: list[list[float]], category: list[int], score: list[float]) -> Segments:
        return Segments((50, 50), category, score=score, box=values)

    left, right = [0.0, 0, 20, 50], [30.0, 0, 50, 50]
    found = [boxes([left, right, left], [1, 1, 0], [0.8, 0.9, 0.5]), boxes([left, right], [1, 0], [0.6, 0.4])]
    stuff, *things = grouped(found, 2, whole=(1,))
    assert stuff.category == 1 and stuff.score == pytest.approx((0.9 + 0.6) / 2)
    members = set(zip(stuff.copy.tolist(), stuff.index.tolist(), strict=True))
    assert members == {(0, 0), (0, 1), (1, 0)}
    assert [each.score for each in things] == pytest.approx([0.25, 0.2])
    assert len(grouped(found, 2)) == 4


def test_boxes_of_different_classes_are_joined_only_if_classes_do_not_matter() -> None:
    box = [[5.0, 5, 25, 25]]
    found = [Segments((50, 50), [kind], score=[score], box=box) for kind, score in ((3, 0.9), (1, 0.6))]
    apart, together = fused(found, 2), fused(found, 2, class_agnostic=True)
    assert apart.category.tolist() == [3, 1] and together.category.tolist() == [3]
    assert apart.score is not None and apart.score.tolist() == pytest.approx([0.45, 0.3])
    assert together.score is not None and together.score.tolist() == pytest.approx([0.75])
    np.testing.assert_allclose(together.boxes(), box)


def test_tiles_of_things_and_stuff_are_joined() -> None:
    """Objects stay whole, stuff that several tiles see is one segment, and void stays void."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:150, :260]
    ids = np.where(rows + 20 * np.sin(columns / 30) < 70, 1, 2)
    category = [3, 1]
    for number, (y, x) in enumerate(np.mgrid[15:150:40, 15:260:40].reshape(2, -1).T, 3):
        ids[np.hypot(rows - y, columns - x) < rng.integers(6, 14)] = number
        category.append(int(rng.choice([0, 2])))
    ids[:10, :10] = 0
    ids[140:, 200:] = -1
    image = Segments(ids.shape, category, LabelMap(ids.astype(np.int32)), score=rng.random(len(category)))

    def parts() -> Iterator[tuple[Tile, Segments]]:
        for tile in plan_tiles((150, 260), 96, 48, 8):
            inside = tuple(
                slice(each.start, min(each.stop, side)) for each, side in zip(tile.spans, ids.shape, strict=True)
            )
            part = ids[inside]
            present = np.unique(part[part > 0])
            table = np.zeros(len(category) + 2, np.int32)
            table[0], table[present + 1] = -1, np.arange(1, len(present) + 1)
            local = LabelMap(table[part + 1])
            yield tile, Segments(part.shape, image.category[present - 1], local, score=np.full(len(present), 0.5))

    assert len(plan_tiles((150, 260), 96, 48, 8)) > 6
    found, cut = stitch(parts(), (150, 260), 4, False, stuff=(1, 3))
    assert cut == 0 and len(found) == len(category)
    assert found.category[-2:].tolist() == [1, 3]
    assert agreement(found, image) == 1
    assert np.array_equal(found.label_map() == -1, ids == -1) and np.array_equal(found.label_map() == 0, ids == 0)
    only, _ = stitch(((tile, each[each.category == 3]) for tile, each in parts()), (150, 260), 4, False, stuff=(1, 3))
    assert only.category.tolist() == [3] and np.array_equal(only.label_map() == 1, ids == 1)
