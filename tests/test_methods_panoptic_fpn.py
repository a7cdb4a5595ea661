"""Panoptic FPN: the semantic branch, the losses, the merging of things and stuff, and a training from end to end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from test_methods_two_stage import official
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection import maskrcnn_resnet50_fpn

from everymask.data.loader import collate
from everymask.errors import InputError
from everymask.layers.semantic_fpn import SemanticBranch
from everymask.methods.detection.mask_rcnn import MaskRCNN
from everymask.methods.detection.panoptic_fpn import PanopticFPN
from everymask.methods.foreign import load_foreign
from everymask.metrics import make_metric
from everymask.model import Model
from everymask.ops import rle
from everymask.ops.mask_pasting import paste_masks
from everymask.ops.panoptic_merging import merge_panoptic
from everymask.predict.predictor import Predictor
from everymask.train.thresholds import tune_thresholds
from everymask.types import Categories, Category, Dataset, LabelMap, Masks, Sample, Segments, Task

SMALL: dict[str, Any] = {
    "backbone": "resnet10t",
    "width": 16,
    "hidden": 32,
    "proposals": 50,
    "samples": 64,
    "semantic_width": 16,
}


def small(classes: int = 4, stuff: tuple[int, ...] = (1, 3), **options: Any) -> PanopticFPN:
    """The method, as small as it goes."""
    return PanopticFPN(classes, stuff=stuff, **(SMALL | options))


# -- the semantic branch -----------------------------------------------------------------------------------------------


def official_branch(state: Mapping[str, Tensor], maps: list[Tensor]) -> Tensor:
    """The branch as Detectron2 composes it: for each level convolution, norm, rectifier and doubling, and their sum."""
    total = torch.zeros(())
    for level, features in enumerate(maps):
        for number in range(max(1, level)):
            weight = state[f"levels.{level}.{number}.0.weight"]
            scale, shift = (state[f"levels.{level}.{number}.1.{each}"] for each in ("weight", "bias"))
            features = functional.conv2d(features, weight, padding=1)
            features = functional.group_norm(features, 32, scale, shift).clamp(min=0)
            if level:
                features = functional.interpolate(features, scale_factor=2, mode="bilinear", align_corners=False)
        total = total + features
    return functional.conv2d(total, state["logits.weight"], state["logits.bias"])


def test_the_semantic_branch_is_that_of_the_paper() -> None:
    torch.manual_seed(0)
    branch = SemanticBranch(24, 64, 7).eval()
    for parameter in branch.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    maps = [torch.randn(2, 24, 48 // 2**level, 32 // 2**level) for level in range(5)]
    with torch.inference_mode():
        found, expected = branch(maps), official_branch(branch.state_dict(), maps[:4])
    assert found.shape == (2, 7, 48, 32) and expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    # As many convolutions as in Detectron2's p2.0, p3.0, p4.0, p4.2, p5.0, p5.2, p5.4, without biases, and a predictor.
    shapes = [each.shape for each in branch.parameters() if each.ndim == 4]
    assert shapes == [(64, 24, 3, 3)] * 3 + [(64, 64, 3, 3), (64, 24, 3, 3), (64, 64, 3, 3), (64, 64, 3, 3)] + [
        (7, 64, 1, 1)
    ]


# -- targets and losses ------------------------------------------------------------------------------------------------


def test_targets_part_things_from_stuff() -> None:
    masks = np.zeros((5, 6, 8), np.bool_)
    masks[0, :, :6] = True  # stuff 3
    masks[1, 2:4, 1:4] = True  # thing 2 on it
    masks[2, :2, 5:] = True  # stuff 1, partly on stuff 3
    masks[3, 3:5, 2:7] = True  # a crowd of thing 0, partly on nothing
    masks[4, 5, 5] = True  # stuff that is marked as a crowd, as what a crop has cut off
    truth = Segments.from_masks(masks, [3, 2, 1, 0, 1], crowd=[False, False, False, True, True])
    found = small().targets(truth)
    assert found["classes"].tolist() == [1, 0] and found["crowd"].tolist() == [False, True]
    assert found["boxes"].tolist() == [[1, 2, 4, 4], [2, 3, 7, 5]]
    assert np.array_equal(found["masks"], masks[[1, 3]])
    expected = np.full((6, 8), -1)
    for y in range(6):
        for x in range(8):
            for number, value in ((0, 2), (2, 1), (4, 1), (1, 0), (3, 0)):
                if masks[number, y, x]:
                    expected[y, x] = value
    assert found["semantic"].dtype == torch.int64 and np.array_equal(found["semantic"], expected)
    assert "semantic" not in PanopticFPN.ragged
    # The same from a label map, whose void and background are nothing.
    ids = np.array([[1, 1, 2, 0, -1]] * 3, np.int32)
    from_map = small().targets(Segments(ids.shape, [2, 1], LabelMap(ids)))
    assert from_map["semantic"].tolist() == [[0, 0, 1, -1, -1]] * 3 and from_map["classes"].tolist() == [1]
    empty = small().targets(Segments((5, 6), [], box=np.zeros((0, 4))))
    assert (empty["semantic"] == -1).all() and empty["masks"].shape == (0, 5, 6)
    assert small(2, ()).targets(Segments((3, 5), [1, 0], LabelMap(ids))).keys() == MaskRCNN.ragged
    assert small(2, (0, 1)).targets(Segments((3, 5), [1, 0], LabelMap(ids))).keys() == {"semantic"}
    for method in (small(), small(2, (0, 1))):
        with pytest.raises(InputError, match="masks"):
            method.targets(Segments((20, 30), [0], box=[[1, 1, 9, 9]]))


def scene(number: int, size: int = 64) -> tuple[NDArray[np.uint8], Segments]:
    """A dark sky over a bright ground, and on both discs (class 0) and squares (class 2), some in one another's way."""
    rng = np.random.default_rng(number)
    rows, columns = np.mgrid[:size, :size]
    horizon = size * rng.uniform(0.4, 0.6) + 3 * np.sin(columns / 9 + number)
    ids, category = np.where(rows < horizon, 1, 2).astype(np.int32), [1, 3]
    image = np.where(ids == 1, 40.0, 120.0)[..., None] + np.zeros(3)
    for y, x in rng.permutation(np.array([(17, 17), (18, 47), (46, 16), (47, 45)]))[:3]:
        y, x, radius = y + rng.integers(-3, 4), x + rng.integers(-3, 4), rng.integers(7, 12)
        square = bool(rng.random() < 0.5)
        far = np.maximum(abs(rows - y), abs(columns - x)) if square else np.hypot(rows - y, columns - x)
        category.append(2 if square else 0)
        ids[far < radius] = len(category)
        image[far < radius] = (200, 60, 60) if square else (60, 60, 220)
    image = (image + rng.normal(0, 8, image.shape)).clip(0, 255).astype(np.uint8)
    return image, Segments(ids.shape, category, LabelMap(ids))


def batch_of(method: PanopticFPN, scenes: range) -> tuple[Tensor, dict[str, Any]]:
    parts = [scene(number) for number in scenes]
    items = [(torch.from_numpy(each).permute(2, 0, 1) / 127.5 - 1, method.targets(truth)) for each, truth in parts]
    return collate(items, method.ragged)


def test_losses_are_those_of_mask_rcnn_and_a_cross_entropy() -> None:
    """Those of Mask R-CNN are compared with torchvision's in its own tests."""
    torch.manual_seed(0)
    method = small(instance_weight=0.7, semantic_weight=0.3).eval()
    parent = MaskRCNN(2, **{name: value for name, value in SMALL.items() if name != "semantic_width"}).eval()
    own = {name: value for name, value in method.state_dict().items() if not name.startswith("semantic_branch.")}
    parent.load_state_dict(own)
    images, targets = batch_of(method, range(2))
    targets["semantic"][0, :20, :30] = -1
    torch.manual_seed(1)
    expected = parent.training_loss(images, targets)
    torch.manual_seed(1)
    found = method.training_loss(images, targets)
    assert found.keys() == expected.keys() | {"semantic"}
    for name, value in expected.items():
        weight = 0.7 if name in ("classes", "boxes", "masks") else 1
        assert float(value.detach()) > 0
        torch.testing.assert_close(found[name], weight * value)
    logits = official_semantic(method, images)
    large = functional.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=False)
    entropy = functional.cross_entropy(large, targets["semantic"], ignore_index=-1)
    torch.testing.assert_close(found["semantic"], 0.3 * entropy)
    with torch.inference_mode():
        tables, outputs = parent(images), method(images)
    assert outputs.keys() == tables.keys() | {"semantic"} and float(tables["scores"].max()) > 0
    assert all(torch.equal(outputs[name], value) for name, value in tables.items())
    torch.testing.assert_close(outputs["semantic"], logits)
    # Nothing is learnt where nothing is known.
    found = method.training_loss(images, targets | {"semantic": torch.full((2, 64, 64), -1)})
    assert float(found["semantic"].detach()) == 0
    sum(found.values(), torch.zeros(())).backward()
    assert all(torch.isfinite(each.grad).all() for each in method.parameters() if each.grad is not None)


def official_semantic(method: PanopticFPN, images: Tensor) -> Tensor:
    """The logits of the branch, put together outside of it; group normalisation has as many groups as fit."""
    maps = method.neck(method.backbone(images))[:4]
    total = torch.zeros(())
    for level, (steps, features) in enumerate(zip(method.semantic_branch.levels, maps, strict=True)):
        for step in steps:  # type: ignore[union-attr]
            features = step(features)
            features = nn.UpsamplingBilinear2d(scale_factor=1)(features) if not level else doubled(features)
        total = total + features
    return method.semantic_branch.logits(total)


def doubled(features: Tensor) -> Tensor:
    return functional.interpolate(features, scale_factor=2, mode="bilinear", align_corners=False)


@pytest.mark.parametrize("stuff", [(), (0, 1)])
def test_things_alone_and_stuff_alone(stuff: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    method = small(2, stuff)
    truth = Segments((64, 64), [0, 1], LabelMap(np.repeat(np.array([[1, 2]], np.int32), 32, 1).repeat(64, 0)))
    targets = collate([(torch.zeros(3, 64, 64), method.targets(truth))] * 2, method.ragged)[1]
    terms = method.training_loss(torch.rand(2, 3, 64, 64), targets)
    assert ("semantic" in terms) == bool(stuff) and ("masks" in terms) == (not stuff)
    sum(terms.values(), torch.zeros(())).backward()
    assert all(each.grad is not None for each in method.parameters())
    image = np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)
    method.thresholds |= {"score": 0.0, "least_stuff": 0.0}
    for shorter in (0, 64):
        method.resize_to(shorter, 2 * shorter)
        found = Predictor(method, method.preprocessing_of(), "cpu", "float32")(image)
        assert found.size == (50, 70) and set(found.category.tolist()) <= {0, 1}
        if stuff:
            assert found.label_map().min() > 0 or len(found) == 1


# -- merging -----------------------------------------------------------------------------------------------------------


def merged_by_hand(
    masks: NDArray[np.bool_], scores: list[float], semantic: NDArray[np.int64], score: float, free: float, least: float
) -> list[tuple[str, int, NDArray[np.bool_]]]:
    """The paper's rule with sets of pixels: masks by score into what is free, then classes into the rest."""
    size = masks.shape[1:]
    taken: set[tuple[int, int]] = set()
    found: list[tuple[str, int, NDArray[np.bool_]]] = []
    for number in sorted(range(len(masks)), key=lambda each: -scores[each]):
        pixels = {(int(y), int(x)) for y, x in zip(*np.nonzero(masks[number]), strict=True)}
        if scores[number] < score or not pixels - taken:
            continue
        if len(pixels & taken) / len(pixels) > 1 - free:
            continue
        found.append(("thing", number, drawn(pixels - taken, size)))
        taken |= pixels
    for label in range(1, int(semantic.max(initial=0)) + 1):
        pixels = {(int(y), int(x)) for y, x in zip(*np.nonzero(semantic == label), strict=True)} - taken
        if pixels and len(pixels) >= least:
            found.append(("stuff", label, drawn(pixels, size)))
    return found


def drawn(pixels: set[tuple[int, int]], size: tuple[int, ...]) -> NDArray[np.bool_]:
    mask = np.zeros(size, np.bool_)
    for y, x in pixels:
        mask[y, x] = True
    return mask


def random_masks(rng: np.random.Generator, number: int, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Rectangles with holes and specks; some are empty, some are the whole image, some are alike."""
    masks = np.zeros((number, *size), np.bool_)
    for mask in masks:
        y, x = rng.integers(0, size[0]), rng.integers(0, size[1])
        mask[y : y + rng.integers(0, size[0]), x : x + rng.integers(0, size[1])] = True
        mask &= rng.random(size) < rng.choice([0.3, 1.0])
    if number > 3:
        masks[1], masks[2] = masks[3], True
    return masks


@pytest.mark.parametrize("seed", range(40))
def test_things_and_stuff_are_merged_by_the_rule_of_the_paper(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = (int(rng.integers(1, 25)), int(rng.integers(1, 25)))
    method = small()
    limits = {
        "score": float(rng.choice([0.0, 0.5])),
        "least_free": float(rng.choice([0.0, 0.25, 0.5, 1.0])),
        "least_stuff": float(rng.choice([0, 5, 60])),
    }
    method.thresholds = dict(limits)
    number = int(rng.integers(0, 9))
    masks = random_masks(rng, number, size)
    score = rng.choice([0.3, 0.5, 0.6, 0.9], number)
    category = rng.choice([0, 2], number)
    semantic = rng.integers(0, 3, (-(-size[0] // 5), -(-size[1] // 5))).repeat(5, 0).repeat(5, 1)[: size[0], : size[1]]
    logits = rng.standard_normal((3, *size)) + 6 * (np.arange(3)[:, None, None] == semantic)
    things = Segments(size, category, Masks(size, *rle.encode(masks)), score=score)
    found = method.merged(things, torch.from_numpy(logits).float())
    semantic = logits.argmax(0)
    expected = merged_by_hand(
        masks, score.tolist(), semantic, limits["score"], limits["least_free"], limits["least_stuff"]
    )
    assert len(found) == len(expected)
    assert found.score is not None
    probability = np.exp(logits) / np.exp(logits).sum(0)
    for index, (kind, which, mask) in enumerate(expected):
        assert np.array_equal(found.label_map() == index + 1, mask)
        assert found.category[index] == (category[which] if kind == "thing" else (1, 3)[which - 1])
        wanted = score[which] if kind == "thing" else probability[which][semantic == which].mean()
        assert found.score[index] == pytest.approx(wanted, abs=1e-5)
    assert found.label_map().min(initial=0) == 0


def test_half_of_a_mask_is_enough() -> None:
    masks = np.zeros((3, 4, 8), np.bool_)
    masks[0, :, :4], masks[1, :, 2:6], masks[2, :, 1:5] = True, True, True
    ids, kept, present = merge_panoptic(*rle.encode(masks), (4, 8), None, 1)
    assert kept.tolist() == [0, 1] and len(present) == 0
    assert ids.tolist() == [[1, 1, 1, 1, 2, 2, 0, 0]] * 4
    with pytest.raises(InputError, match=r"expected \(4, 8\)"):
        merge_panoptic(*rle.encode(masks), (4, 8), np.zeros((8, 4), np.int32), 2)
    with pytest.raises(InputError, match="expected 0 to 1"):
        merge_panoptic(*rle.encode(masks), (4, 8), np.full((4, 8), 2, np.int32), 2)


def test_merging_is_fast() -> None:
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:28, :28]
    disc = (np.hypot(rows - 13.5, columns - 13.5) < 14).astype(np.float32)
    corner = rng.integers(-100, 900, (100, 2))
    boxes = np.concatenate([corner, corner + rng.integers(100, 300, (100, 2))], 1)
    runs = paste_masks(disc[None].repeat(100, 0), boxes, (1024, 1024))
    classes = rng.integers(0, 54, (16, 16)).repeat(64, 0).repeat(64, 1).astype(np.int32)
    times = []
    for _ in range(6):
        start = time.process_time()
        _, kept, present = merge_panoptic(*runs, (1024, 1024), classes, 54, least=100)
        times.append(time.process_time() - start)
    assert len(kept) > 20 and len(present) > 20
    assert min(times) < 0.05


def test_decoding_enlarges_the_branch_as_detectron_does() -> None:
    """Four times by bilinear interpolation, without the padding, and, of a resized image, once more to its size."""
    torch.manual_seed(0)
    method = small(3, (0, 2), least_stuff=0)
    logits = torch.randn(2, 3, 16, 24)
    tables = {"boxes": torch.zeros(2, 5, 4), "scores": torch.zeros(2, 5), "classes": torch.zeros(2, 5)}
    outputs = tables | {"masks": torch.zeros(2, 5, 28, 28), "semantic": logits}
    large = functional.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=False)
    found = method.decode(outputs, [(64, 96), (50, 85)])
    for image, segments in enumerate(found):
        height, width = segments.size
        expected = large[image, :, :height, :width].argmax(0)
        assert np.array_equal(np.array([0, 1, 3])[expected], segments.semantic_map(background=-1) + 1)
    size, original = (50, 85), (75, 128)
    factors = [wanted / have for wanted, have in zip(original, size, strict=True)]
    scaled = method.at_scale({name: value[:1] for name, value in outputs.items()}, factors)
    (segments,) = method.decode(scaled, [original])
    expected = functional.interpolate(large[:1, :, :50, :85], size=original, mode="bilinear", align_corners=False)
    assert segments.size == original
    assert np.array_equal(np.array([0, 1, 3])[expected[0].argmax(0)], segments.semantic_map(background=-1) + 1)


# -- weights, options and training -------------------------------------------------------------------------------------


def test_weights_of_mask_rcnn_begin_a_panoptic_network() -> None:
    with torch.device("meta"):
        network = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
        method = PanopticFPN(93, stuff=(0, 40, 92))
    found, own = method.foreign(network.state_dict()), method.state_dict()
    assert {name: value.shape for name, value in found.items()} == {
        name: value.shape for name, value in own.items() if not name.startswith("semantic_branch.logits.")
    }
    reference = official("v1")
    method = PanopticFPN(6, backbone="resnet18", stuff=(1,), proposals=20, semantic_width=16)
    with pytest.raises(InputError, match=r"missing: semantic_branch\.logits"):
        load_foreign(method, reference.state_dict())
    load_foreign(method, reference.state_dict(), new_logits=True)
    theirs = reference.state_dict()
    for ours, other in (
        ("backbone.body.layer2.0.conv1.weight", "backbone.body.layer2.0.conv1.weight"),
        ("neck.smooth.0.0.weight", "backbone.fpn.layer_blocks.0.0.weight"),
        ("mask_head.convolutions.3.0.weight", "roi_heads.mask_head.3.0.weight"),
        ("box_head.3.bias", "roi_heads.box_head.fc7.bias"),
    ):
        assert torch.equal(method.state_dict()[ours], theirs[other])
    # Weights of this method itself load as they are.
    again = PanopticFPN(6, backbone="resnet18", stuff=(1,), proposals=20, semantic_width=16)
    load_foreign(again, method.state_dict())
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in method.state_dict().items())


def test_contract_and_options() -> None:
    assert PanopticFPN.tasks == {Task.DETECTION, Task.INSTANCE, Task.PANOPTIC}
    protocol, figure = PanopticFPN.metric
    _, truth = scene(0)
    metric = make_metric(protocol, CATEGORIES)
    metric.update(truth.with_category(CATEGORIES.ids[truth.category]), truth_as_found(truth), "a")
    assert metric.compute()[figure] == 1
    for options, message in (
        ({"stuff": (4,)}, r"stuff: got \[4\], expected classes from 0 to 3"),
        ({"semantic_width": 0}, "semantic_width: got 0"),
        ({"instance_weight": -1}, "instance_weight: got -1"),
        ({"semantic_weight": -1}, "semantic_weight: got -1"),
        ({"least_free": 1.5}, "least_free: got 1.5"),
        ({"least_stuff": -1}, "least_stuff: got -1"),
        ({"suppression": "soft"}, "unknown suppression"),
        ({"classes": 0, "stuff": ()}, "must be 1 or more"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            small(**options)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
    method = small(least_free=0.3, least_stuff=7, suppression="gaussian", class_agnostic=True)
    assert method.thresholds == {"score": 0.5, "least_free": 0.3, "least_stuff": 7.0}
    assert method.thresholds.keys() >= PanopticFPN.tunable.keys()
    assert (method.suppression, method.class_agnostic) == ("gaussian", True)
    model = Model("panoptic_fpn", CATEGORIES, **SMALL)
    assert isinstance(model.method, PanopticFPN)
    assert model.method.stuff == (1, 3) and model.method.things == (0, 2)
    assert model.method.box_predictor.classes == 2 and model.method.semantic_branch.logits.out_channels == 3


CATEGORIES = Categories(
    [
        Category(3, "disc"),
        Category(5, "sky", is_thing=False),
        Category(9, "square"),
        Category(11, "ground", is_thing=False),
    ]
)


def truth_as_found(truth: Segments) -> Segments:
    ids = CATEGORIES.ids[truth.category]
    return Segments(truth.size, ids, truth.geometry, score=np.ones(len(truth)))


def scenes(number: int) -> Dataset:
    def sample(index: int) -> Sample:
        image, truth = scene(index)
        return Sample(f"scene {index}", lambda: image, lambda: truth.with_category(CATEGORIES.ids[truth.category]))

    return Dataset.of([sample(index) for index in range(number)], CATEGORIES, frozenset({Task.PANOPTIC}))


def test_a_small_network_learns_things_and_stuff(tmp_path: Path) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = SMALL | {"backbone": "test_resnet", "width": 32, "hidden": 64, "semantic_width": 24}
    options |= {"samples": 24, "proposals": 30, "anchor_sizes": (12.0, 16.0, 24.0, 32.0, 48.0), "least_stuff": 100}
    model = Model("panoptic_fpn", CATEGORIES, **options)
    plain: dict[str, Any] = {"scale": (1, 1), "contrast": (1, 1), "brightness": 0, "colour": 0, "flip": "none"}
    model.train(
        scenes(2),
        scenes(2),
        out=tmp_path,
        epochs=2,
        steps_per_epoch=30,
        warmup=0.05,
        validate_every=2,
        batch_size=2,
        crop=64,
        learning_rate=5e-3,
        backbone_rate=1.0,
        ema=0.9,
        workers=0,
        tune=False,
        precision="float32",
        quiet=True,
        **plain,
    )
    figures = model.evaluate(scenes(2)).figures
    assert figures["pq"] >= 0.8 and figures["pq_things"] >= 0.7 and figures["pq_stuff"] >= 0.9
    turned = model.evaluate(scenes(2), tta="mirror").figures
    assert turned["pq"] >= 0.7


def test_thresholds_are_tuned_on_images_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs of tiles cannot be put together, so each trial predicts such images anew."""
    monkeypatch.setattr(PanopticFPN, "tunable", {"least_stuff": PanopticFPN.tunable["least_stuff"]})
    method = small(2, (0, 1), least_stuff=4096)
    image = np.zeros((40, 130, 3), np.uint8)
    truth = Segments((40, 130), [0], LabelMap(np.ones((40, 130), np.int32)))
    categories = Categories([Category(0, "sky", is_thing=False), Category(1, "ground", is_thing=False)])
    with torch.no_grad():
        method.semantic_branch.logits.weight.zero_()
        method.semantic_branch.logits.bias.copy_(torch.tensor([0.0, 9.0, 0.0]))
    predictor = Predictor(method, method.preprocessing_of(), "cpu", "float32", tile=64)
    assert not predictor.in_one_piece(image) and predictor.in_one_piece(image[:, :60])

    def samples() -> Iterator[tuple[str, Any, Segments]]:
        yield "long", SimpleNamespace(image=image, limits=None), truth
        yield (
            "short",
            SimpleNamespace(image=image[:, :60], limits=None),
            truth.__class__((40, 60), [0], LabelMap(np.ones((40, 60), np.int32))),
        )

    validator: Any = SimpleNamespace(
        method=method,
        categories=categories,
        new_metric=lambda: make_metric("panoptic", categories),
        predictor=lambda: predictor,
        samples=samples,
        update=lambda metric, truth, found, name: metric.update(truth, found, name),
        merge=lambda metric, merged: metric,
    )
    # No tile has the 4096 pixels that stuff must have at first.
    assert len(predictor(image)) == 0
    assert tune_thresholds(validator)["least_stuff"] < 4096
