"""Layers of detectors, each against torchvision's or a plain program."""

from __future__ import annotations

import itertools
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign, box_iou
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from everymask.errors import InputError
from everymask.layers.anchors import Anchors
from everymask.layers.box_coding import clip_boxes, decode_boxes, encode_boxes
from everymask.layers.box_matching import BACKGROUND, IGNORED, best_of_each_image, match_boxes, sample_balanced
from everymask.layers.fpn import FeaturePyramid
from everymask.layers.roi_heads import MaskHead, PyramidRoIAlign
from everymask.ops import rle
from everymask.ops.mask_pasting import paste_masks
from everymask.ops.region_features import align_regions


def random_boxes(number: int, size: int = 200, seed: int = 0, smallest: float = 2) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    low = torch.rand(number, 2, generator=random) * (size - 2 * smallest)
    sides = smallest + torch.rand(number, 2, generator=random) ** 2 * (size - low - smallest)
    return torch.cat([low, low + sides], dim=1)


def test_boxes_are_coded_as_by_torchvision() -> None:
    weights = (10.0, 10.0, 5.0, 5.0)
    boxes, references = random_boxes(50), random_boxes(50, seed=1)
    coder = BoxCoder(weights)
    torch.testing.assert_close(encode_boxes(boxes, references, weights), coder.encode_single(boxes, references))
    offsets = torch.randn(50, 4) * 20  # some beyond the limit of the growth
    torch.testing.assert_close(decode_boxes(offsets, references, weights), coder.decode_single(offsets, references))
    torch.testing.assert_close(decode_boxes(encode_boxes(boxes, references), references), boxes, atol=1e-3, rtol=0)
    assert clip_boxes(torch.tensor([[-3.0, 5, 300, 90]]), (60, 200)).tolist() == [[0, 5, 200, 60]]


@pytest.mark.parametrize("ratios", [(0.5, 1.0, 2.0), (1.0,)])
def test_anchors_lie_as_those_of_torchvision(ratios: tuple[float, ...]) -> None:
    sizes = ((16.0, 20.0), (33.0, 64.0), (128.0, 100.0))
    maps = [torch.zeros(1, 1, 24, 16), torch.zeros(1, 1, 12, 8), torch.zeros(1, 1, 5, 3)]
    images = ImageList(torch.zeros(1, 3, 96, 64), [(96, 64)])
    (expected,) = AnchorGenerator(sizes, (ratios,) * 3)(images, maps)
    anchors = Anchors(sizes, ratios)
    grids = [(each.shape[2], each.shape[3]) for each in maps]
    with torch.inference_mode():
        found = anchors((96, 64), grids, torch.device("cpu"))
    assert torch.equal(found, expected)
    assert not found.is_inference()
    assert sum(anchors.counts(grids)) == len(expected)


def test_anchors_keep_up_with_steps_that_are_not_whole() -> None:
    found = Anchors([(8.0,), (8.0,)], (1.0,), steps=(3.5, 7))((56, 84), [(16, 24), (8, 12)], torch.device("cpu"))
    centres = (found[:, :2] + found[:, 2:]) / 2
    expected = [(3.5 * x, 3.5 * y) for y in range(16) for x in range(24)]
    assert centres.tolist() == [list(each) for each in expected + [(7 * x, 7 * y) for y in range(8) for x in range(12)]]


def test_anchors_say_what_is_wrong() -> None:
    with pytest.raises(InputError, match="above 0"):
        Anchors([(0.0,)])
    with pytest.raises(InputError, match="as many sizes"):
        Anchors([(1.0,), (1.0, 2.0)])
    with pytest.raises(InputError, match="2 feature maps, but there are 1"):
        Anchors([(1.0,), (2.0,)])((8, 8), [(4, 4)], torch.device("cpu"))


@pytest.mark.parametrize("top", ["none", "subsample", "p5", "c5"])
@pytest.mark.parametrize("norm", [False, True])
def test_the_pyramid_is_that_of_torchvision(top: str, norm: bool) -> None:
    torch.manual_seed(0)
    widths = [4, 6, 8]
    extra = {
        "none": None,
        "subsample": LastLevelMaxPool(),
        "p5": LastLevelP6P7(5, 5),
        "c5": LastLevelP6P7(8, 5),
    }[top]
    official = FeaturePyramidNetwork(widths, 5, extra, torch.nn.BatchNorm2d if norm else None).eval()
    ours = FeaturePyramid(widths, 5, top, norm).eval()  # type: ignore[arg-type]
    places = {
        "inner_blocks": "lateral",
        "layer_blocks": "smooth",
        "extra_blocks.p6": "top.0",
        "extra_blocks.p7": "top.1",
    }
    state = {}
    for name, value in official.state_dict().items():
        for before, after in places.items():
            name = name.replace(before, after)
        state[name] = torch.randn(value.shape) if value.is_floating_point() and "var" not in name else value
    ours.load_state_dict(state)
    official.load_state_dict(dict(zip(official.state_dict(), state.values(), strict=True)))
    stages = [torch.randn(2, width, 36 >> level, 20 >> level) for level, width in enumerate(widths)]
    expected = official(OrderedDict((str(number), each) for number, each in enumerate(stages)))
    found = ours(stages)
    assert len(found) == ours.levels == len(expected)
    for one, other in zip(found, expected.values(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("at_least_one", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_boxes_are_matched_as_by_torchvision(at_least_one: bool, seed: int) -> None:
    candidates = random_boxes(300, seed=seed)
    boxes = torch.cat([random_boxes(6, seed=seed + 100), candidates[:2] + 1])
    boxes = torch.cat([boxes, boxes[-1:]])  # the same box twice
    expected = Matcher(0.6, 0.3, at_least_one)(box_iou(boxes, candidates))
    crowd = torch.zeros(len(boxes), dtype=torch.bool)
    found = match_boxes(candidates, boxes, crowd, low=0.3, high=0.6, at_least_one=at_least_one)
    assert torch.equal(found, expected)


def test_crowds_are_neither_found_nor_background() -> None:
    boxes = torch.tensor([[0.0, 0, 50, 50], [100, 100, 120, 120]])
    candidates = torch.tensor(
        [[0.0, 0, 50, 50], [0, 0, 10, 10], [40, 40, 55, 55], [45, 0, 60, 50], [100, 100, 120, 119]]
    )
    crowd = torch.tensor([True, False])
    found = match_boxes(candidates, boxes, crowd, low=0.3, high=0.7, at_least_one=True)
    #                                             10 x 10 of 15 x 15 and 5 of 15 columns lie in the crowd
    assert found.tolist() == [IGNORED, IGNORED, BACKGROUND, BACKGROUND, 1]
    alone = match_boxes(candidates, boxes[:1], crowd[:1], low=0.3, high=0.7, at_least_one=True)
    assert alone.tolist() == [IGNORED, IGNORED, BACKGROUND, BACKGROUND, BACKGROUND]


def test_a_box_that_no_candidate_meets_is_nobodys() -> None:
    none = torch.zeros(1, dtype=torch.bool)
    found = match_boxes(
        random_boxes(5, 50), torch.tensor([[90.0, 90, 99, 99]]), none, low=0.3, high=0.7, at_least_one=True
    )
    assert found.tolist() == [BACKGROUND] * 5
    assert match_boxes(torch.zeros(0, 4), torch.ones(1, 4), none, low=0.3, high=0.7).tolist() == []


def test_samples_are_of_both_kinds_and_no_more_than_asked_for() -> None:
    index = torch.tensor([0, BACKGROUND, IGNORED] * 40)
    positive, negative = sample_balanced(index, 30, 0.5)
    assert len(positive.unique()) == len(negative.unique()) == 15
    assert (index[positive] == 0).all() and (index[negative] == BACKGROUND).all()
    positive, negative = sample_balanced(index, 500, 0.5)
    assert len(positive) == len(negative) == 40


def test_the_best_of_each_image_are_those_of_a_loop() -> None:
    random = torch.Generator().manual_seed(0)
    image = torch.randint(0, 4, (60,), generator=random)
    image[image == 2] = 3  # one image has none
    kept = torch.randperm(60, generator=random)[:45]
    found, rank = best_of_each_image(kept, image, 4, 5)
    expected = [[each for each in kept.tolist() if image[each] == number][:5] for number in range(4)]
    assert found.tolist() == list(itertools.chain(*expected))
    assert rank.tolist() == list(itertools.chain(*(range(len(each)) for each in expected)))
    assert best_of_each_image(kept, torch.zeros(60, dtype=torch.int64), 1, 5)[0].tolist() == kept[:5].tolist()


def test_regions_are_pooled_as_by_torchvision() -> None:
    torch.manual_seed(0)
    maps = [torch.randn(2, 3, 256 // stride, 256 // stride) for stride in (4, 8, 16, 32, 64)]
    boxes = [random_boxes(40, 256, seed=seed, smallest=1) * seed**2 for seed in (1, 2)]  # some beyond the image
    names = ["0", "1", "2", "3"]
    official = MultiScaleRoIAlign(names, 7, 2)
    named = dict(zip(names, maps, strict=False))
    expected = official(named, boxes, [(256, 256)] * 2)
    number = torch.arange(2.0).repeat_interleave(40)[:, None]
    pool = PyramidRoIAlign((4, 8, 16, 32), 7)
    found = pool(maps, torch.cat([number, torch.cat(boxes)], dim=1))
    assert len(pool.levels(torch.cat([number, torch.cat(boxes)], dim=1)).unique()) == 4
    assert torch.equal(found, expected)
    with torch.no_grad():
        for order in (torch.contiguous_format, torch.channels_last):
            kernel = pool([each.to(memory_format=order) for each in maps], torch.cat([number, torch.cat(boxes)], dim=1))
            torch.testing.assert_close(kernel, expected, atol=1e-5, rtol=1e-5)
        assert pool(maps, torch.zeros(0, 5)).shape == (0, 3, 7, 7)
    assert pool(maps, torch.zeros(0, 5)).shape == (0, 3, 7, 7)
    with pytest.raises(InputError, match="expected"):
        features, table, result = (np.zeros(shape, np.float32) for shape in ((1, 4, 4, 2), (1, 5), (1, 7, 7, 3)))
        align_regions(features, table, np.zeros(1, np.int64), 1.0, result)


def test_the_mask_of_one_class_is_that_among_all() -> None:
    torch.manual_seed(0)
    head = MaskHead(8, 5)
    features, classes = torch.randn(6, 8, 14, 14), torch.tensor([0, 4, 2, 2, 1, 3])
    found = head(features, classes)
    everything = head.logits(torch.relu(head.up(head.convolutions(features))))
    torch.testing.assert_close(found, everything[torch.arange(6), classes])


@pytest.mark.parametrize("size", [(60, 83), (200, 31), (1, 1)])
def test_masks_are_pasted_as_by_torchvision(size: tuple[int, int]) -> None:
    random = torch.Generator().manual_seed(0)
    height, width = size
    # Beyond every edge, as small as a pixel, and as large as the image.
    boxes = torch.cat([random_boxes(40, 220, seed=3, smallest=0.3) - 30, torch.tensor([[0.0, 0, width, height]])])
    # torchvision fails on boxes that do not meet the image.
    meets = (boxes[:, 2:] > 1).all(1) & (boxes[:, :2] < torch.tensor([width - 1, height - 1])).all(1)
    meets[-1] = True
    boxes = boxes[meets]
    coarse = torch.rand(len(boxes), 1, 5, 5, generator=random)
    masks = torch.nn.functional.interpolate(coarse, size=(28, 28), mode="bilinear")
    masks[0], masks[-1] = 0, 1
    soft = paste_masks_in_image(masks, boxes, size)[:, 0].numpy()
    counts, offsets = paste_masks(masks[:, 0].numpy(), boxes.numpy(), size)
    found = rle.decode(counts, offsets, size)
    sure = abs(soft - 0.5) > 1e-5
    assert np.array_equal(found[sure], soft[sure] >= 0.5)
    assert found.any() or size == (1, 1)
    again = rle.encode(found)
    assert np.array_equal(again[0], counts) and np.array_equal(again[1], offsets)


def test_pasting_needs_a_box_for_each_mask() -> None:
    with pytest.raises(InputError, match="expected"):
        paste_masks(np.zeros((2, 28, 28)), np.zeros((1, 4)), (10, 10))
    counts, offsets = paste_masks(np.zeros((0, 28, 28)), np.zeros((0, 4)), (10, 10))
    assert len(counts) == 0 and offsets.tolist() == [0]
