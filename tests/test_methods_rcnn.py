"""R-CNN: windows, what is fitted on features against scikit-learn and numpy, and a training from end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from proposal_toys import QUICK, scene, scenes
from torch.nn import functional

from everymask.errors import InputError
from everymask.layers.box_coding import decode_boxes
from everymask.layers.roi_heads import sample_regions
from everymask.methods.detection.proposals import numbered
from everymask.methods.detection.rcnn import RCNN, Warping
from everymask.methods.detection.rcnn_fitting import (
    Examples,
    FittedLinear,
    fit_machine,
    fit_machines,
    fit_probability,
    fit_regressions,
    fit_ridge,
    mine,
)
from everymask.methods.foreign import load_foreign
from everymask.model import Model
from everymask.types import Segments


def small(classes: int = 1, **options: Any) -> RCNN:
    sizes = {"backbone": "test_resnet", "size": 32, "margin": 2, "proposals": 60, "samples": 32}
    return RCNN(classes, **(sizes | options))


# -- windows -----------------------------------------------------------------------------------------------------------


def test_windows_of_their_own_size_are_the_pixels_and_beyond_the_image_lies_nothing() -> None:
    image = torch.rand(2, 3, 40, 50)
    regions = torch.tensor([[0, 8.0, 9, 28, 29], [1, 0, 0, 20, 20], [1, 31, 21, 51, 41]])
    windows = Warping(image, 28, 4)(regions)
    # Two samples a pixel lie a quarter off its middle: a slight blur.
    kernel = torch.tensor([1 / 8, 3 / 4, 1 / 8])
    blur = (kernel[:, None] * kernel)[None, None].expand(3, 1, 3, 3)
    expected = functional.conv2d(image[:1, :, 4:34, 3:33], blur, groups=3)
    torch.testing.assert_close(windows[:1], expected, atol=1e-5, rtol=1e-5)
    assert not windows[1, :, :3].any() and not windows[1, :, :, :3].any() and windows[1, :, 5:, 5:].all()
    assert not windows[2, :, -3:].any() and not windows[2, :, :, -3:].any()


@pytest.mark.parametrize("box", [[20, 30, 30, 60], [3, 3, 125, 90], [64, 40, 67, 48]])
def test_windows_keep_ramps(box: list[float]) -> None:
    """Bilinear sampling and halving are exact for linear images, whatever the proportions."""
    rows, columns = torch.meshgrid(torch.arange(128.0), torch.arange(160.0), indexing="ij")
    image = torch.stack([rows, columns])[None]
    size, margin = 24, 3
    window = Warping(image, size, margin)(torch.tensor([[0.0, *box]]))[0]
    inner = torch.arange(size - 2 * margin) + 0.5
    for channel, (low, high) in enumerate(((box[1], box[3]), (box[0], box[2]))):
        expected = low + (high - low) * inner / len(inner) - 0.5
        found = window[channel, margin:-margin, margin:-margin].mean(1 - channel)
        torch.testing.assert_close(found, expected, atol=0.02, rtol=1e-4)


def test_features_come_in_pieces() -> None:
    method = small().eval()
    images = torch.rand(2, 3, 64, 64)
    regions = numbered([torch.tensor([[1.0, 2, 30, 40]]).repeat(70, 1) + torch.arange(70)[:, None] / 4] * 2)
    with torch.inference_mode():
        together = method.backbone(Warping(images, 32, 2)(regions))[0]
        torch.testing.assert_close(method.features(images, regions), together, atol=1e-5, rtol=1e-4)
        assert method.features(images, regions[:0]).shape == (0, method.backbone.widths[0])


# -- fitting -----------------------------------------------------------------------------------------------------------


def clouds(number: int, width: int, share: float, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Features of a mean length of about 20, and which are positive; the two overlap."""
    random = np.random.default_rng(seed)
    positive = random.random(number) < share
    features = random.normal(0, 20 / np.sqrt(width), (number, width)) + 1.2 * positive[:, None]
    return features.astype(np.float32), positive


@pytest.mark.parametrize(("number", "width", "cost"), [(300, 12, 1e-3), (40, 90, 0.1), (500, 5, 1.0)])
def test_machines_are_those_of_liblinear(number: int, width: int, cost: float) -> None:
    svm = pytest.importorskip("sklearn.svm", reason="scikit-learn is not installed")
    features, positive = clouds(number, width, 0.2)
    weight, bias = fit_machine(features, positive, cost)
    reference = svm.LinearSVC(
        C=cost, dual=False, intercept_scaling=10, class_weight={1: 2.0}, tol=1e-8, max_iter=100_000
    )
    reference.fit(features.astype(np.float64), positive.astype(int))
    np.testing.assert_allclose(weight, reference.coef_[0], atol=1e-4, rtol=1e-3)
    assert bias == pytest.approx(float(reference.intercept_[0]), abs=1e-3)


def test_the_gradient_of_a_machine_vanishes() -> None:
    features, positive = clouds(200, 8, 0.3, seed=1)
    weight, bias = fit_machine(features, positive, 0.01, positive_weight=3.0, bias_scale=5.0)
    signs, costs = np.where(positive, 1, -1), np.where(positive, 3.0, 1.0) * 0.01
    pull = 2 * costs * signs * np.maximum(0, 1 - signs * (features @ weight + bias))
    np.testing.assert_allclose(weight, features.T.astype(float) @ pull, atol=1e-5)
    assert bias / 25 == pytest.approx(pull.sum(), abs=1e-5)


def test_mining_finds_the_machine_of_all_examples() -> None:
    features, positive = clouds(9000, 16, 0.01)
    negative = ~positive & (np.arange(9000) % 7 > 0)
    weight, bias = mine(features, positive, negative, 1e-3)
    used = positive | negative
    expected = fit_machine(features[used], positive[used], 1e-3)
    np.testing.assert_allclose(weight, expected[0], atol=2e-4)
    assert bias == pytest.approx(expected[1], abs=2e-3)
    alone, _ = mine(features, positive, np.zeros_like(positive), 1e-3)
    assert np.isfinite(alone).all()


def test_probabilities_are_logistic_regression() -> None:
    random = np.random.default_rng(0)
    margins = random.normal(0, 2, 20_000)
    positive = random.random(len(margins)) < 1 / (1 + np.exp(-(1.7 * margins - 0.8)))
    slope, shift = fit_probability(margins, positive)
    assert slope == pytest.approx(1.7, abs=0.08) and shift == pytest.approx(-0.8, abs=0.08)
    # The order of the margins stays, even where they say the opposite.
    assert fit_probability(margins, margins < 0)[0] > 0
    assert all(np.isfinite(fit_probability(np.array([-1.0, 2]), np.array([True, True]))))


@pytest.mark.parametrize(("number", "width"), [(60, 9), (12, 40), (1, 5)])
def test_ridges_are_least_squares_of_longer_systems(number: int, width: int) -> None:
    random = np.random.default_rng(0)
    features, answers = random.normal(1, 3, (number, width)), random.normal(2, 1, (number, 4))
    weight, bias = fit_ridge(features, answers, 7.0)
    # Rows of the root of the strength stand for the penalty; a column of ones, without one, for the bias.
    penalty = np.column_stack([np.sqrt(7.0) * np.eye(width), np.zeros(width)])
    rows = np.concatenate([np.column_stack([features, np.ones(number)]), penalty])
    expected = np.linalg.lstsq(rows, np.concatenate([answers, np.zeros((width, 4))]), rcond=None)[0]
    np.testing.assert_allclose(weight, expected[:-1].T, atol=1e-8)
    np.testing.assert_allclose(bias, expected[-1], atol=1e-8)


def examples(classes: int, seed: int = 0) -> Examples:
    """Regions of which features tell the class, and the offsets from them; none shows an object of the last class."""
    random = np.random.default_rng(seed)
    kind = random.integers(-1, classes - 1, 900)
    features = random.normal(0, 1, (900, 12))
    features[np.arange(900), kind] += 5 * (kind >= 0)
    overlaps = np.where(kind[:, None] == np.arange(classes), random.uniform(0.55, 1, (900, 1)), 0.1)
    overlaps[::50] = np.nan
    true = (random.random(900) < 0.2) & ~np.isnan(overlaps[:, 0])
    offsets = 0.1 * features[:, :4] + 0.05
    return Examples(
        features.astype(np.float32), overlaps.astype(np.float32), np.where(true, kind, -1), kind,
        offsets.astype(np.float32),
    )  # fmt: skip


def test_scores_of_machines_are_probabilities_and_classes_without_objects_stay_unknown() -> None:
    given = examples(4)
    machines, regressions = FittedLinear(12, 4, 1), FittedLinear(12, 4, 4)
    fit_machines(machines, given, 1e-2)
    fit_regressions(regressions, given, strength=1e-3)
    assert machines.known.tolist() == regressions.known.tolist() == [True, True, True, False]
    scores = machines(torch.from_numpy(given.features))[..., 0].sigmoid()
    moves = regressions(torch.from_numpy(given.features))
    for index in range(3):
        shows = given.nearest == index
        assert scores[shows, index].mean() > 0.9 and scores[~shows, index].mean() < 0.1
        torch.testing.assert_close(moves[shows, index], torch.from_numpy(given.offsets[shows]), atol=5e-3, rtol=0)
    assert (scores[:, 3] == 0.5).all() and not moves[:, 3].any()
    none = Examples(*(each[:0] for each in given))
    fit_regressions(regressions, none)
    assert not regressions.known.any() and not regressions.weight.any()


# -- the method --------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_cross_entropy_of_windows_of_a_quarter_of_objects() -> None:
    torch.manual_seed(0)
    method = small(2).eval()
    images = torch.randn(2, 3, 64, 64)
    boxes = [torch.tensor([[4.0, 4, 30, 30], [30, 30, 60, 60]]), torch.tensor([[10.0, 10, 50, 50]])]
    regions = [torch.rand(80, 4) * 30 + torch.tensor([0, 0, 31, 31]) for _ in boxes]
    regions[0][:20] = boxes[0][0] + torch.rand(20, 4)
    targets = {"boxes": boxes, "classes": [torch.tensor([1, 0]), torch.tensor([1])], "regions": regions}
    targets["crowd"] = [torch.zeros(len(each), dtype=torch.bool) for each in boxes]
    torch.manual_seed(1)
    (name, found), *_ = method.training_loss(images, targets).items()
    torch.manual_seed(1)
    samples = sample_regions(
        numbered(regions), boxes, targets["classes"], targets["crowd"], overlap=0.5, number=16, positive_share=0.25
    )
    assert name == "classes" and len(samples.regions) == 32 and 1 < int((samples.classes > 0).sum()) <= 8
    logits = method.score(method.features(images, samples.regions))
    torch.testing.assert_close(found, functional.cross_entropy(logits, samples.classes), atol=1e-5, rtol=1e-5)


def test_images_of_nothing_but_crowds_train() -> None:
    method = small(1).train()
    crowd = method.targets(Segments((64, 64), [0], box=[[0, 0, 64, 64]], crowd=[True]))
    terms = method.training_loss(torch.rand(1, 3, 64, 64), {name: [value] for name, value in crowd.items()})
    assert float(terms["classes"].detach()) == 0
    terms["classes"].backward()
    assert all(each.grad is not None for each in method.parameters())


def completed(method: RCNN) -> RCNN:
    """The method with what it fits on three pictures, one of them without objects."""
    prepared = [
        (torch.from_numpy(method.preprocessing_of()(image)), truth) for image, truth in (scene(0), scene(1), scene(2))
    ]
    image, _ = prepared[0]
    nothing = Segments((96, 96), [], box=np.zeros((0, 4)))
    method.eval().complete(iter([*prepared, (image[:, :20, :30], nothing)]))
    return method


def test_what_is_fitted_judges_and_corrects() -> None:
    torch.manual_seed(0)
    method = completed(small(3, svm_regions=40))
    assert method.machines.known.tolist() == method.regressions.known.tolist() == [True, True, False]
    image = torch.from_numpy(method.preprocessing_of()(scene(0)[0]))[None]
    with torch.no_grad():
        regions = method.regions_of(image)
        features = method.features(image, regions)
        scores, moves = method.judge(features)
        found = method(image)
        softmax = method.score(features).softmax(1)[:, 1:]
    assert torch.equal(scores[:, 2], softmax[:, 2]) and not moves[:, 2].any()
    margins = features @ method.machines.weight.T + method.machines.bias
    torch.testing.assert_close(scores[:, :2], margins.sigmoid()[:, :2], atol=1e-5, rtol=1e-4)
    # The best detection is the best region, corrected.
    row, kind = divmod(int(scores.argmax()), 3)
    torch.testing.assert_close(found["scores"][0, 0], scores[row, kind])
    box = decode_boxes(moves[row, kind], regions[row, 1:]).clamp(0, 96)
    torch.testing.assert_close(found["boxes"][0, 0], box)
    assert int(found["classes"][0, 0]) == kind


def test_what_is_fitted_is_kept_and_may_be_switched_off(tmp_path: Path) -> None:
    torch.manual_seed(0)
    method = completed(small(2, svm_regions=40))
    again = small(2, svm_regions=40)
    again.load_state_dict(method.state_dict())
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        expected, found = method(images), again.eval()(images)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    other = small(5)
    with pytest.raises(InputError, match="new_logits"):
        load_foreign(other, method.state_dict())
    load_foreign(other, method.state_dict(), new_logits=True)
    assert not other.machines.known.any()
    plain = completed(small(2, svm=False, box_regression=False))
    assert not plain.machines.known.any() and not plain.regressions.known.any()
    half = completed(small(2, svm=False))
    assert not half.machines.known.any() and half.regressions.known.all()
    nothing = Segments((96, 96), [], box=np.zeros((0, 4)))
    method.complete(iter([(torch.rand(3, 96, 96), nothing)]))
    assert not method.machines.known.any()
    method.complete(iter([]))


def test_a_batch_says_what_its_images_say_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    method = small(2, detections=6, least_score=0.0).eval()
    images = torch.stack([torch.from_numpy(method.preprocessing_of()(scene(number)[0])) for number in range(2)])
    with torch.inference_mode():
        together = method(images)
        alone = [method(each[None]) for each in images]
        monkeypatch.setattr(method, "regions_of", lambda images: images.new_zeros(0, 5))
        none = method(images)
    assert together["scores"].shape == (2, 6) and (together["scores"] > 0).all()
    for name, values in together.items():
        torch.testing.assert_close(values, torch.cat([each[name] for each in alone]), atol=1e-2, rtol=1e-3)
    assert none["boxes"].shape == (2, 6, 4) and not none["scores"].any()


def test_wrong_options_are_told(tmp_path: Path) -> None:
    for options, message in (
        ({"margin": 16}, "below half the size, got 16 and 32"),
        ({"svm_cost": 0.0}, "svm_cost above 0"),
        ({"samples": 0}, "must be 1 or more"),
        ({"search": "slow"}, "unknown search"),
    ):
        with pytest.raises(InputError, match=message):
            small(1, **options)
    with pytest.raises(InputError, match="RCNN cannot be exported: its regions come from selective search"):
        Model("rcnn", ["thing"], backbone="test_resnet", size=32, margin=2).export("onnx", tmp_path / "no.onnx")


def test_a_small_network_learns_boxes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"backbone": "test_resnet", "size": 32, "margin": 2, "proposals": 150, "samples": 64}
    model = Model("rcnn", scenes(1).categories, **options, svm_cost=1e-2)
    model.train(
        scenes(3),
        scenes(3),
        out=tmp_path,
        epochs=1,
        steps_per_epoch=60,
        learning_rate=3e-3,
        backbone_rate=1.0,
        **QUICK,
    )
    assert model.method.machines.known.all() and model.method.regressions.known.all()
    loaded = Model.load(tmp_path / "model.safetensors")
    assert loaded.evaluate(scenes(3)).figures["ap50"] >= 0.9
