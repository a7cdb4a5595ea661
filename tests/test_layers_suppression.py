"""Hard and soft suppression of boxes: against the algorithm of the paper in plain loops, and torchvision's."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import batched_nms, nms

from everymask.cli import main
from everymask.errors import InputError
from everymask.layers.dense_head import Candidates
from everymask.layers.dense_head import detections as dense_detections
from everymask.layers.roi_heads import detections as region_detections
from everymask.layers.suppression import LEAST_SCORE, suppress
from everymask.methods import method_class
from everymask.methods.detection.detr import DETR
from everymask.methods.detection.faster_rcnn import FasterRCNN
from everymask.methods.detection.yolo import YOLO
from everymask.model import Model

Soft = Literal["linear", "gaussian"]
SOFT: tuple[Soft, ...] = ("linear", "gaussian")


def overlap_of(one: list[float], other: list[float]) -> float:
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    if wide <= 0 or high <= 0:
        return 0.0
    areas = sum((each[2] - each[0]) * (each[3] - each[1]) for each in (one, other))
    return wide * high / (areas - wide * high)


def paper(
    boxes: Tensor, scores: Tensor, kind: Soft, overlap: float, sigma: float = 0.5, least: float = LEAST_SCORE
) -> tuple[list[int], list[float]]:
    """Figure 2 of the paper, with the pruning of the official program."""
    table, left = boxes.double().tolist(), dict(enumerate(scores.double().tolist()))
    taken: list[int] = []
    decayed: list[float] = []
    left = {i: score for i, score in left.items() if score >= least}
    while left:
        best = max(left, key=left.__getitem__)
        taken.append(best)
        decayed.append(left.pop(best))
        for i in left:
            iou = overlap_of(table[best], table[i])
            if kind == "gaussian":
                left[i] *= math.exp(-(iou**2) / sigma)
            elif iou > overlap:
                left[i] *= 1 - iou
        left = {i: score for i, score in left.items() if score >= least}
    return taken, decayed


def scene(seed: int, number: int, spread: float = 60) -> tuple[Tensor, Tensor]:
    """Boxes (N, 4) of which many overlap, and scores (N,) of which none are equal."""
    random = torch.Generator().manual_seed(seed)
    corner = spread * torch.rand(number, 2, generator=random)
    sides = 5 + 40 * torch.rand(number, 2, generator=random)
    return torch.cat([corner, corner + sides], 1), torch.rand(number, generator=random)


def one_group(boxes: Tensor) -> Tensor:
    return torch.zeros(len(boxes), dtype=torch.int64)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    number=st.integers(0, 150),
    groups=st.integers(1, 4),
    spread=st.sampled_from([1.0, 60.0, 400.0]),
    kind=st.sampled_from(SOFT),
    overlap=st.sampled_from([0.0, 0.3, 0.7]),
    sigma=st.sampled_from([0.05, 0.5, 2.0]),
    least=st.sampled_from([0.001, 0.05, 0.4]),
)
def test_soft_suppression_is_that_of_the_paper(
    seed: int, number: int, groups: int, spread: float, kind: Soft, overlap: float, sigma: float, least: float
) -> None:
    boxes, scores = scene(seed, number, spread)
    group = torch.randint(groups, (number,), generator=torch.Generator().manual_seed(seed))
    expected: list[tuple[int, float]] = []
    for each in range(groups):
        own = torch.where(group == each)[0]
        index, decayed = paper(boxes[own], scores[own], kind, overlap, sigma, least)
        expected += zip(own[index].tolist(), decayed, strict=True)
    expected.sort(key=lambda pair: -pair[1])
    kept, left = suppress(boxes, scores, group, overlap=overlap, kind=kind, sigma=sigma, least_score=least)
    assert kept.dtype == torch.int64 and left.dtype == scores.dtype
    assert kept.tolist() == [index for index, _ in expected]
    np.testing.assert_allclose(left, [score for _, score in expected], rtol=1e-5)
    # The first few of each group are those that come first in all.
    few, decayed = suppress(boxes, scores, group, overlap=overlap, kind=kind, sigma=sigma, least_score=least, most=5)
    first = [at for at, index in enumerate(kept) if int((group[kept[:at]] == group[index]).sum()) < 5]
    assert torch.equal(few, kept[first]) and torch.equal(decayed, left[first])


@pytest.mark.parametrize("seed", range(4))
def test_hard_suppression_is_that_of_torchvision(seed: int) -> None:
    boxes, scores = scene(seed, 200)
    kept, left = suppress(boxes, scores, one_group(boxes), overlap=0.4)
    assert torch.equal(kept, nms(boxes, scores, 0.4)) and torch.equal(left, scores[kept])
    groups = torch.arange(200) % 3
    kept, left = suppress(boxes, scores, groups, overlap=0.4)
    assert torch.equal(kept, batched_nms(boxes, scores, groups, 0.4)) and torch.equal(left, scores[kept])


@pytest.mark.parametrize("seed", range(4))
def test_soft_suppression_ends_in_hard_suppression_or_in_none(seed: int) -> None:
    boxes, scores = scene(seed, 200)
    scores = 0.01 + 0.99 * scores
    group = one_group(boxes)
    # With a tiny sigma whatever overlaps goes.
    kept, left = suppress(boxes, scores, group, overlap=0.9, kind="gaussian", sigma=1e-12)
    assert torch.equal(kept, nms(boxes, scores, 0.0)) and torch.equal(left, scores[kept])
    # With a huge one, or from an overlap that no boxes have, nothing happens.
    for kind, option in (("gaussian", {"sigma": 1e12}), ("linear", {})):
        kept, left = suppress(boxes, scores, group, overlap=1.0, kind=kind, **option)
        assert torch.equal(kept, scores.argsort(descending=True))
        torch.testing.assert_close(left, scores[kept])


@pytest.mark.parametrize("kind", SOFT)
def test_scores_only_fall_and_the_best_keep_theirs(kind: Soft) -> None:
    boxes, scores = scene(5, 300)
    kept, left = suppress(boxes, scores, one_group(boxes), overlap=0.3, kind=kind)
    assert bool((left <= scores[kept]).all()) and bool((left[1:] <= left[:-1]).all())
    assert int(kept[0]) == int(scores.argmax()) and float(left[0]) == float(scores.max())
    assert len(kept) > len(nms(boxes, scores, 0.3))
    # An object that hides another of its kind: the usual reason to suppress softly.
    pair = torch.tensor([[0.0, 0, 10, 30], [4.0, 0, 14, 30]])
    probable = torch.tensor([0.9, 0.8])
    assert len(suppress(pair, probable, one_group(pair), overlap=0.3)[0]) == 1
    iou = 6 / 14
    expected = 0.8 * (1 - iou if kind == "linear" else math.exp(-(iou**2) / 0.5))
    kept, left = suppress(pair, probable, one_group(pair), overlap=0.3, kind=kind)
    assert kept.tolist() == [0, 1] and left.tolist() == pytest.approx([0.9, expected])


@pytest.mark.parametrize("kind", SOFT)
def test_boxes_without_area_or_end_and_scores_that_are_no_numbers_do_no_harm(kind: Soft) -> None:
    inf, nan = math.inf, math.nan
    boxes = torch.tensor([[5.0, 5, 5, 9], [5.0, 5, 5, 9], [-inf, -inf, inf, inf], [-inf, -inf, inf, inf], [0, 0, 9, 9]])
    scores = torch.tensor([0.5, 0.4, 0.3, 0.2, nan])
    kept, left = suppress(boxes, scores, one_group(boxes), overlap=0.5, kind=kind)
    assert kept.tolist() == [0, 1, 2, 3] and torch.equal(left, scores[:4])
    for options in ({}, {"most": 0}):
        none = boxes if options else boxes[:0]
        kept, left = suppress(none, scores[: len(none)], one_group(none), overlap=0.5, kind=kind, **options)
        assert kept.shape == left.shape == (0,)
    equal = torch.tensor([[0.0, 0, 9, 9]]).repeat(3, 1)
    kept, left = suppress(equal, torch.full((3,), 0.5), one_group(equal), overlap=0.5, kind="linear")
    assert kept.tolist() == [0] and left.tolist() == [0.5]


def test_wrong_options_are_told() -> None:
    boxes, scores = scene(0, 3)
    with pytest.raises(InputError, match="sigma must be above 0, got 0"):
        suppress(boxes, scores, one_group(boxes), overlap=0.5, kind="gaussian", sigma=0)
    for name in ("yolo", "ssd", "retinanet", "faster_rcnn", "mask_rcnn"):
        with pytest.raises(InputError, match="unknown suppression 'soft'"):
            method_class(name)(1, suppression="soft")
    small = {"width": 16, "heads": 2, "hidden": 16, "encoder_layers": 1, "decoder_layers": 1}
    with pytest.raises(InputError, match="DETR finds no object twice"):
        DETR(1, backbone="test_resnet", **small).suppress_by("linear")


# -- in the methods ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("class_agnostic", [False, True])
@pytest.mark.parametrize("kind", SOFT)
def test_detections_of_regions_are_suppressed_softly(kind: Soft, class_agnostic: bool) -> None:
    random = torch.Generator().manual_seed(0)
    number, classes = 80, 3
    boxes, _ = scene(1, number, spread=50)
    regions = torch.cat([(torch.arange(number)[:, None] >= 50).float(), boxes], 1)
    logits = 2 * torch.randn(number, classes + 1, generator=random)
    options: dict[str, Any] = {"least_score": 0.05, "overlap": 0.3, "most": 30}
    found = region_detections(
        logits,
        torch.zeros(number, classes, 4),
        regions,
        (100, 100),
        2,
        suppression=kind,
        class_agnostic=class_agnostic,
        **options,
    )
    scores = logits.softmax(1)[:, 1:]
    rows: list[tuple[int, int, float]] = []
    for image in range(2):
        row, of_class = torch.where((scores > 0.05) & (regions[:, :1] == image))
        every = [torch.arange(len(row))] if class_agnostic else [torch.where(of_class == k)[0] for k in range(classes)]
        own: list[tuple[int, int, float]] = []
        for group in every:
            index, decayed = paper(boxes[row[group]], scores[row[group], of_class[group]], kind, 0.3, least=0.05)
            chosen = group[index]
            own += zip(row[chosen].tolist(), of_class[chosen].tolist(), decayed, strict=True)
        rows += sorted(own, key=lambda each: -each[2])[:30]
    assert len(found.scores) == len(rows) > 30
    np.testing.assert_allclose(found.scores, [score for _, _, score in rows], rtol=1e-4)
    assert found.classes.tolist() == [of_class for _, of_class, _ in rows]
    torch.testing.assert_close(found.regions, regions[[row for row, _, _ in rows]], atol=1e-4, rtol=0)


def test_class_agnostic_detections_of_regions_are_those_of_torchvision() -> None:
    random = torch.Generator().manual_seed(0)
    boxes, _ = scene(1, 80, spread=50)
    regions = torch.cat([(torch.arange(80)[:, None] >= 50).float(), boxes], 1)
    logits = 2 * torch.randn(80, 4, generator=random)
    found = region_detections(
        logits,
        torch.zeros(80, 3, 4),
        regions,
        (100, 100),
        2,
        least_score=0.05,
        overlap=0.3,
        most=100,
        class_agnostic=True,
    )
    scores = logits.softmax(1)[:, 1:]
    row, _ = torch.where(scores > 0.05)
    kept = batched_nms(boxes[row], scores[scores > 0.05], regions[row, 0].long(), 0.3)
    kept = torch.cat([kept[regions[row[kept], 0] == image] for image in range(2)])
    torch.testing.assert_close(found.scores, scores[scores > 0.05][kept])
    torch.testing.assert_close(found.regions, regions[row[kept]], atol=1e-4, rtol=0)
    # What is left of two classes at one place differs from what each class would leave alone.
    assert len(kept) < len(batched_nms(boxes[row], scores[scores > 0.05], torch.where(scores > 0.05)[1], 0.3))


@pytest.mark.parametrize("class_agnostic", [False, True])
@pytest.mark.parametrize("kind", SOFT)
def test_detections_of_anchors_are_suppressed_softly(kind: Soft, class_agnostic: bool) -> None:
    boxes, scores = scene(3, 90, spread=50)
    classes = torch.arange(90) % 3
    image = (torch.arange(90) >= 40).long()
    outputs = {"anchors": boxes.expand(2, -1, -1), "offsets": torch.zeros(2, 90, 4)}
    found = dense_detections(
        Candidates(image, torch.arange(90), classes, scores),
        outputs,
        [(100, 100), (100, 100)],
        coding=(1.0, 1.0, 1.0, 1.0),
        overlap=0.3,
        most=20,
        suppression=kind,
        class_agnostic=class_agnostic,
        least_score=0.02,
    )
    for number, (own_boxes, own_scores, own_classes) in enumerate(found):
        expected: list[tuple[int, float]] = []
        for group in (torch.zeros(1),) if class_agnostic else range(3):
            of_group = torch.where((image == number) & (class_agnostic | (classes == group)))[0]
            index, decayed = paper(boxes[of_group], scores[of_group], kind, 0.3, least=0.02)
            expected += zip(of_group[index].tolist(), decayed, strict=True)
        expected = sorted(expected, key=lambda pair: -pair[1])[:20]
        index = [each for each, _ in expected]
        torch.testing.assert_close(own_boxes, boxes[index], atol=1e-4, rtol=0)
        np.testing.assert_allclose(own_scores, [score for _, score in expected], rtol=1e-5)
        assert own_classes.tolist() == classes[index].tolist() and len(index) == 20


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_yolo_suppresses_as_it_is_told(class_agnostic: bool) -> None:
    method = YOLO(2, variant="nano", side=64, suppression="gaussian", class_agnostic=class_agnostic)
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 9], [30, 0, 40, 10]])
    kinds, sure = torch.tensor([0, 0, 1, 1]), torch.tensor([2.0, 1.0, 0.0, -1.0])
    classes = torch.full((1, 4, 2), -9.0)
    classes[0, torch.arange(4), kinds] = 9.0
    (found,) = method.decode({"boxes": boxes[None], "objectness": sure[None], "classes": classes}, [(64, 64)])
    scores = sure.sigmoid() * torch.tensor(9.0).sigmoid()
    expected: list[tuple[int, float]] = []
    for own in [[0, 1, 2, 3]] if class_agnostic else [[0, 1], [2, 3]]:
        index, decayed = paper(boxes[own], scores[own], "gaussian", 0.65, least=0.01)
        expected += [(own[each], score) for each, score in zip(index, decayed, strict=True)]
    expected.sort(key=lambda pair: -pair[1])
    assert found.category.tolist() == kinds[[index for index, _ in expected]].tolist()
    assert found.score == pytest.approx([score for _, score in expected])
    method.suppress_by("hard")
    (found,) = method.decode({"boxes": boxes[None], "objectness": sure[None], "classes": classes}, [(64, 64)])
    assert found.category.tolist() == ([0, 1] if class_agnostic else [0, 1, 1])


def small_model(**options: Any) -> Model:
    """A two-stage model with random weights that finds boxes of every class everywhere."""
    torch.manual_seed(0)
    sizes = {"backbone": "resnet10t", "width": 16, "hidden": 32, "proposals": 50, "least_score": 0.1}
    return Model("faster_rcnn", ["cat", "dog"], **(sizes | options))


def test_a_model_is_changed_saved_and_loaded(tmp_path: Path) -> None:
    model = small_model()
    image = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
    before = model.predict(image)
    assert isinstance(model.method, FasterRCNN)
    model.method.suppress_by("gaussian", class_agnostic=True)
    after = model.predict(image)  # not what the predictor of before would have found
    made = small_model(suppression="gaussian", class_agnostic=True).predict(image)
    assert len(before) and not np.array_equal(before.score, after.score)
    assert np.array_equal(made.boxes(), after.boxes()) and np.array_equal(made.score, after.score)
    model.save(tmp_path / "soft.safetensors")
    loaded = Model.load(tmp_path / "soft.safetensors")
    assert loaded.method.config["suppression"] == "gaussian" and loaded.method.config["class_agnostic"]
    assert np.array_equal(loaded.predict(image).score, after.score)


def test_models_from_before_the_options_load(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from everymask.weights import read_metadata

    small_model().save(tmp_path / "new.safetensors")
    header = read_metadata(tmp_path / "new.safetensors")
    assert header["config"].pop("suppression") == "hard" and header["config"].pop("class_agnostic") is False
    save_file(
        load_file(tmp_path / "new.safetensors"),
        tmp_path / "old.safetensors",
        metadata={"everymask": json.dumps(header)},
    )
    method = Model.load(tmp_path / "old.safetensors").method
    assert isinstance(method, FasterRCNN) and method.suppression == "hard" and not method.class_agnostic


def test_the_command_line_changes_a_loaded_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    model = small_model()
    model.save(tmp_path / "model.safetensors")
    image = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "image.png")
    common = ["predict", str(tmp_path / "image.png"), "--model", str(tmp_path / "model.safetensors"), "--no-overlay"]
    assert isinstance(model.method, FasterRCNN)
    for options, change in (
        ([], {}),
        (["--suppression", "linear"], {"suppression": "linear"}),
        (["--class-agnostic"], {"suppression": "hard", "class_agnostic": True}),
    ):
        out = tmp_path / "-".join(["out", *options])
        assert main([*common, "--out", str(out), "--score", "0.1", *options]) == 0
        written = json.loads((out / "predictions.json").read_text())
        model.method.suppress_by(**change)
        expected = model.predict(image).score
        assert expected is not None and len(expected)
        found = sorted(each["score"] for each in written["annotations"])
        assert found == pytest.approx(sorted(expected[expected >= 0.1]), abs=1e-4)
    capsys.readouterr()
    wrong = ["predict", str(tmp_path / "image.png"), "--model", "nuclei", "--out", str(tmp_path / "no")]
    assert main([*wrong, "--class-agnostic"]) == 2
    assert "nuclei does not find boxes" in capsys.readouterr().err

    truth = tmp_path / "out" / "predictions.json"
    scores = []
    for options in ([], ["--suppression", "gaussian"]):
        told = ["--data", str(truth), "--reading.images", str(tmp_path), "--out", str(tmp_path / "scores.json")]
        assert main(["evaluate", "--model", str(tmp_path / "model.safetensors"), *told, *options]) == 0
        scores.append(json.loads((tmp_path / "scores.json").read_text())["figures"]["ap"])
    assert scores[0] == pytest.approx(1) and 0 < scores[1] < 0.99
    told = ["--data", str(truth), "--reading.images", str(tmp_path), "--predictions", str(truth)]
    assert main(["evaluate", *told, "--class-agnostic"]) == 2
    assert "leave them out" in capsys.readouterr().err
