"""Losses of positions against torch, torchvision and formulas written out in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from losses_cases import FORMS, problem
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

from everymask.errors import InputError
from everymask.losses.classification import class_weights, cross_entropy, focal, lp, ohem, top_k

EXACT = {"rtol": 1e-9, "atol": 1e-12}
WEIGHTS = torch.tensor([0.3, 1.0, 2.5], dtype=torch.float64)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("shape", [(7,), (5, 6), (2, 3, 4)])
def test_cross_entropy_equals_torch(smoothing: float, weights: torch.Tensor | None, shape: tuple[int, ...]) -> None:
    given = problem("softmax", shape=shape)
    expected = functional.cross_entropy(given.logits, given.target, weights, ignore_index=-1, label_smoothing=smoothing)
    ours = cross_entropy(given.logits, given.target, class_weight=weights, smoothing=smoothing)
    torch.testing.assert_close(ours, expected, **EXACT)
    slopes = [torch.autograd.grad(each, given.logits)[0] for each in (ours, expected)]
    torch.testing.assert_close(*slopes, **EXACT)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_cross_entropy_of_labels_equals_torch(weights: torch.Tensor | None) -> None:
    given = problem("multilabel")
    valid = given.target != -1
    if weights is None:
        positive = torch.ones_like(given.logits)
    else:
        positive = weights.view(1, 3, 1, 1).expand_as(given.logits)
    expected = functional.binary_cross_entropy_with_logits(
        given.logits[valid], given.target[valid].double(), pos_weight=positive[valid]
    )
    torch.testing.assert_close(cross_entropy(given.logits, given.target, class_weight=weights), expected, **EXACT)
    smoothed = functional.binary_cross_entropy_with_logits(
        given.logits[valid], given.target[valid].double() * 0.8 + 0.1
    )
    torch.testing.assert_close(cross_entropy(given.logits, given.target, smoothing=0.2), smoothed, **EXACT)


def test_binary_is_one_of_two_classes() -> None:
    given = problem("binary")
    two = torch.cat([torch.zeros_like(given.logits), given.logits], 1)
    for loss in (cross_entropy, focal, ohem):
        torch.testing.assert_close(loss(given.logits, given.target), loss(two, given.target), **EXACT)


@pytest.mark.parametrize("form", FORMS)
def test_pixel_weights_are_not_divided_by(form: str) -> None:
    given = problem(form)
    probability, truth, valid = given.plain()
    weight = torch.rand(given.logits.shape[0], *given.logits.shape[2:], dtype=torch.float64) * 5
    factor = np.broadcast_to(weight.flatten(1).numpy()[:, None], probability.shape)
    if given.exclusive:
        terms = -(truth * np.log(probability)).sum(1, keepdims=True)
        valid, factor = valid[:, :1], factor[:, :1]
    else:
        terms = -(truth * np.log(probability) + (1 - truth) * np.log(1 - probability))
    ours = cross_entropy(given.logits, given.target, pixel_weight=weight)
    assert ours.item() == pytest.approx((terms * factor)[valid].mean(), rel=1e-9)
    if not given.exclusive:
        each = torch.rand(given.logits.shape, dtype=torch.float64)
        expected = (terms * each.flatten(2).numpy())[valid].mean()
        assert cross_entropy(given.logits, given.target, pixel_weight=each).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 3.5])
@pytest.mark.parametrize("alpha", [None, 0.25])
def test_focal_equals_torchvision(gamma: float, alpha: float | None) -> None:
    given = problem("multilabel")
    valid = given.target != -1
    expected = sigmoid_focal_loss(
        given.logits[valid], given.target[valid].double(), alpha=-1 if alpha is None else alpha, gamma=gamma,
        reduction="mean",
    )  # fmt: skip
    ours = focal(given.logits, given.target, gamma=gamma, alpha=alpha)
    torch.testing.assert_close(ours, expected, **EXACT)
    soft = torch.rand(given.logits.shape, dtype=torch.float64)
    expected = sigmoid_focal_loss(
        given.logits, soft, alpha=-1 if alpha is None else alpha, gamma=gamma, reduction="mean"
    )
    torch.testing.assert_close(focal(given.logits, soft, gamma=gamma, alpha=alpha), expected, **EXACT)


@pytest.mark.parametrize("form", FORMS)
def test_focal_with_class_weights(form: str) -> None:
    given = problem(form)
    probability, truth, valid = given.plain()
    weights = WEIGHTS[: probability.shape[1]]
    factor = weights.numpy()[None, :, None]
    if given.exclusive:
        p = (probability * truth).sum(1)
        terms, valid = -(truth * factor).sum(1) * (1 - p) ** 2 * np.log(np.where(p > 0, p, 1)), valid[:, 0]
    else:
        p = np.where(truth == 1, probability, 1 - probability)
        terms = -np.where(truth == 1, factor, 1) * (1 - p) ** 2 * np.log(p)
    ours = focal(given.logits, given.target, class_weight=weights)
    assert ours.item() == pytest.approx(terms[valid].mean(), rel=1e-9)


def test_focal_equals_segmentation_models() -> None:
    losses = pytest.importorskip("segmentation_models_pytorch").losses
    for form, mode in (("binary", "binary"), ("multilabel", "multilabel")):
        given = problem(form, void=0)
        target = given.target.float()
        expected = losses.FocalLoss(mode, gamma=1.5)(given.logits, target)
        torch.testing.assert_close(focal(given.logits, given.target, gamma=1.5), expected.double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("p", [1, 1.5, 2])
def test_lp(form: str, p: float) -> None:
    given = problem(form)
    probability, truth, valid = given.plain()
    terms = np.abs(probability - truth) ** p
    assert lp(given.logits, given.target, p=p).item() == pytest.approx(terms[valid].mean(), rel=1e-9)
    weights = WEIGHTS[: probability.shape[1]]
    factor = np.broadcast_to(weights.numpy()[None, :, None], terms.shape)
    expected = np.average(terms[valid], weights=factor[valid])
    ours = lp(given.logits, given.target, p=p, class_weight=weights)
    assert ours.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("threshold", "least"), [(0.7, 0.0625), (0.2, 0.5), (0.0, 0.3), (0.5, 0.0), (0.0, 0.0), (1.0, 0.0)]
)
def test_hard_examples(form: str, threshold: float, least: float) -> None:
    given = problem(form, shape=(9, 11))
    probability, truth, valid = given.plain()
    if given.exclusive:
        p, valid = (probability * truth).sum(1), valid[:, 0]
    else:
        p = np.where(truth == 1, probability, 1 - probability)
    ordered = np.sort(p[valid])
    count = max((ordered < threshold).sum(), math.ceil(least * len(ordered)))
    expected = -np.log(ordered[:count]).mean() if count else 0.0
    ours = ohem(given.logits, given.target, threshold=threshold, least=least)
    assert ours.item() == pytest.approx(expected, rel=1e-9)
    if threshold == 0 and least > 0:
        torch.testing.assert_close(top_k(given.logits, given.target, share=least), ours, rtol=0, atol=0)


def test_hard_examples_are_chosen_without_weights() -> None:
    given = problem("softmax", void=0)
    terms = functional.cross_entropy(given.logits, given.target, reduction="none").flatten()
    chosen = terms.argsort(descending=True)[: math.ceil(0.2 * len(terms))]
    weights = WEIGHTS[given.target.flatten()]
    expected = (terms * weights)[chosen].sum() / weights[chosen].sum()
    ours = top_k(given.logits, given.target, share=0.2, class_weight=WEIGHTS)
    torch.testing.assert_close(ours, expected, **EXACT)
    slope = torch.autograd.grad(ours, given.logits)[0].abs().sum(1).flatten()
    assert set(slope.nonzero().flatten().tolist()) == set(chosen.tolist())


def test_class_weights() -> None:
    counts = torch.tensor([100, 0, 50, 10])
    inverse = np.array([1 / 100, 0, 1 / 50, 1 / 10])
    assert class_weights(counts, "inverse").numpy() == pytest.approx(inverse / inverse.sum() * 3)
    assert class_weights(counts, "median").numpy() == pytest.approx([0.5, 0, 1, 5])
    seen = torch.tensor([160, 0, 100, 40])  # frequencies .625, .5, .25
    assert class_weights(counts, "median", seen=seen).numpy() == pytest.approx([0.8, 0, 1, 2])
    effective = np.array([(1 - 0.99) / (1 - 0.99**n) if n else 0 for n in counts.tolist()])
    assert class_weights(counts, "effective", beta=0.99).numpy() == pytest.approx(effective / effective.sum() * 3)
    assert class_weights(torch.zeros(3), "inverse").tolist() == [0, 0, 0]
    # Two frequencies: their median lies between them.
    assert class_weights(torch.tensor([3, 1]), "median").numpy() == pytest.approx([2 / 3, 2])


def test_numbers_out_of_range() -> None:
    given = problem("softmax")
    for call in (
        lambda: cross_entropy(given.logits, given.target, smoothing=1.5),
        lambda: focal(given.logits, given.target, gamma=-1),
        lambda: focal(given.logits, given.target, alpha=0.25),
        lambda: focal(problem("binary").logits, problem("binary").target, alpha=2),
        lambda: lp(given.logits, given.target, p=0.5),
        lambda: ohem(given.logits, given.target, threshold=1.1),
        lambda: ohem(given.logits, given.target, least=-0.1),
        lambda: top_k(given.logits, given.target, share=0),
        lambda: class_weights(torch.tensor([1, -1]), "inverse"),
        lambda: class_weights(torch.tensor([1, 1]), "effective", beta=1),
        lambda: class_weights(torch.tensor([1, 1]), "square"),
    ):
        with pytest.raises(InputError):
            call()
