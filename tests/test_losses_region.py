"""Losses of regions and compounds against segmentation_models_pytorch, MONAI, and formulas written out in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from losses_cases import FORMS, Problem, problem
from numpy.typing import NDArray

from everymask.errors import InputError
from everymask.losses.compound import combo, exponential_logarithmic, unified_focal
from everymask.losses.lovasz import lovasz
from everymask.losses.region import (
    dice,
    focal_tversky,
    generalised_dice,
    jaccard,
    log_cosh_dice,
    sensitivity_specificity,
    squared_dice,
    tversky,
    wasserstein_dice,
)

Formula = Callable[[NDArray[np.float64], NDArray[np.float64]], float]
WEIGHTS = np.array([0.3, 1.0, 2.5])


def mean_of_regions(
    given: Problem, formula: Formula, *, per_image: bool, absent: bool, weights: NDArray[np.float64]
) -> float:
    """Weighted mean of a formula of (p, t) at the valid positions of each class [of each image]."""
    probability, truth, valid = given.plain()
    batches = [[b] for b in range(len(probability))] if per_image else [list(range(len(probability)))]
    values, factors = [], []
    for batch in batches:
        for k in range(probability.shape[1]):
            chosen = valid[batch, k]
            p, t = probability[batch, k][chosen], truth[batch, k][chosen]
            if t.sum() > 0 or (absent and len(t)):
                values.append(formula(p, t))
                factors.append(weights[k])
    return float(np.average(values, weights=factors)) if values else 0.0


def tversky_formula(alpha: float, beta: float, gamma: float = 1, s: float = 0) -> Formula:
    def formula(p: NDArray[np.float64], t: NDArray[np.float64]) -> float:
        hit, false, missed = (p * t).sum(), (p * (1 - t)).sum(), ((1 - p) * t).sum()
        return (1 - (hit + s) / (hit + alpha * false + beta * missed + s)) ** (1 / gamma)

    return formula


def dice_formula(s: float = 0, square: int = 1) -> Formula:
    return lambda p, t: 1 - (2 * (p * t).sum() + s) / ((p**square).sum() + (t**square).sum() + s)


def _sensitivity(p: NDArray[np.float64], t: NDArray[np.float64]) -> float:
    error = (p - t) ** 2
    value = 0.95 * (error * (1 - t)).sum() / (1 - t).sum()
    return value + (0.05 * (error * t).sum() / t.sum() if t.any() else 0)


REGIONS = {
    "dice": (dice, {}, dice_formula()),
    "dice smooth": (dice, {"smooth": 1.0}, dice_formula(1)),
    "squared": (squared_dice, {"smooth": 0.5}, dice_formula(0.5, 2)),
    "log cosh": (log_cosh_dice, {}, lambda p, t: math.log(math.cosh(dice_formula()(p, t)))),
    "jaccard": (jaccard, {}, lambda p, t: 1 - (p * t).sum() / (p + t - p * t).sum()),
    "tversky": (tversky, {"alpha": 0.2, "beta": 0.9, "smooth": 2.0}, tversky_formula(0.2, 0.9, 1, 2)),
    "focal tversky": (focal_tversky, {}, tversky_formula(0.3, 0.7, 4 / 3, 1)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("absent", [False, True])
@pytest.mark.parametrize("name", REGIONS)
def test_regions_equal_their_formulas(name: str, form: str, per_image: bool, absent: bool) -> None:
    function, options, formula = REGIONS[name]
    given = problem(form, batch=3, classes=3, seed=11)
    given.target[0][given.target[0] == given.target.max()] = 0  # one class is absent from one image
    expected = mean_of_regions(given, formula, per_image=per_image, absent=absent, weights=np.ones(3))
    ours = function(given.logits, given.target, per_image=per_image, absent=absent, **options)
    assert ours.item() == pytest.approx(expected, rel=1e-9)
    weights = WEIGHTS[: given.logits.shape[1]]
    expected = mean_of_regions(given, formula, per_image=per_image, absent=absent, weights=weights)
    ours = function(
        given.logits,
        given.target,
        per_image=per_image,
        absent=absent,
        class_weight=torch.from_numpy(weights),
        **options,
    )
    assert ours.item() == pytest.approx(expected, rel=1e-9)


def test_soft_labels_in_squares() -> None:
    given = problem("multilabel", void=0)
    soft = torch.rand(given.logits.shape, dtype=torch.float64)
    expected = mean_of_regions(
        Problem(given.logits, soft), dice_formula(0, 2), per_image=False, absent=False, weights=np.ones(3)
    )
    assert squared_dice(given.logits, soft).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_sensitivity_specificity(form: str) -> None:
    given = problem(form, seed=12)
    expected = mean_of_regions(given, _sensitivity, per_image=False, absent=True, weights=np.ones(3))
    assert sensitivity_specificity(given.logits, given.target).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("form", "mode"), [("softmax", "multiclass"), ("binary", "binary"), ("multilabel", "multilabel")]
)
def test_regions_equal_segmentation_models(form: str, mode: str) -> None:
    losses = pytest.importorskip("segmentation_models_pytorch").losses
    given = problem(form, void=0.2, seed=13)
    target = given.target if form != "multilabel" else given.target.double()
    expected = losses.DiceLoss(mode, ignore_index=-1)(given.logits, target)
    assert dice(given.logits, given.target).item() == pytest.approx(expected.item(), rel=1e-6)
    smooth = losses.DiceLoss(mode, ignore_index=-1, smooth=2.0)(given.logits, target)
    # They add it to half of numerator and denominator.
    assert dice(given.logits, given.target, smooth=4.0).item() == pytest.approx(smooth.item(), rel=1e-6)
    # The other two know no void there.
    given = problem(form, void=0, seed=13)
    target = given.target if form != "multilabel" else given.target.double()
    expected = losses.JaccardLoss(mode)(given.logits, target)
    assert jaccard(given.logits, given.target).item() == pytest.approx(expected.item(), rel=1e-6)
    expected = losses.TverskyLoss(mode, alpha=0.3, beta=0.7)(given.logits, target)
    ours = tversky(given.logits, given.target, alpha=0.3, beta=0.7)
    assert ours.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("per_image", [False, True])
def test_lovasz_equals_segmentation_models(per_image: bool) -> None:
    losses = pytest.importorskip("segmentation_models_pytorch").losses
    for form, mode in (("softmax", "multiclass"), ("binary", "binary")):
        given = problem(form, shape=(9, 8), seed=14)  # every image holds every class, so that means of means are means
        expected = losses.LovaszLoss(mode, per_image=per_image, ignore_index=-1)(given.logits.float(), given.target)
        ours = lovasz(given.logits, given.target, per_image=per_image)
        assert ours.item() == pytest.approx(expected.item(), rel=1e-6)


def _lovasz_of_errors(errors: NDArray[np.float64], truth: NDArray[np.float64]) -> float:
    """The Lovasz extension by its definition: sorted errors times what each wrong position adds to the loss."""

    def loss(wrong: set[int]) -> float:
        true = set(np.flatnonzero(truth).tolist())
        union = true | wrong
        return len(wrong) / len(union) if union else 0.0

    order = np.argsort(-errors, kind="stable")
    value, before = 0.0, 0.0
    for i in range(len(order)):
        now = loss(set(order[: i + 1].tolist()))
        value, before = value + errors[order[i]] * (now - before), now
    return value


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_lovasz_equals_its_definition(form: str, per_image: bool) -> None:
    given = problem(form, batch=3, seed=15)
    given.target[0][given.target[0] == given.target.max()] = 0
    logits = given.logits.detach().flatten(2).numpy()
    probability, truth, valid = given.plain()
    batches = [[b] for b in range(3)] if per_image else [[0, 1, 2]]
    for absent in (False, True):
        values = []
        for batch in batches:
            for k in range(probability.shape[1]):
                chosen = valid[batch, k]
                t = truth[batch, k][chosen]
                if given.exclusive:
                    errors = np.abs(t - probability[batch, k][chosen])
                else:
                    errors = np.maximum(1 - logits[batch, k][chosen] * (2 * t - 1), 0)
                if t.any() or absent or not given.exclusive:
                    values.append(_lovasz_of_errors(errors, t))
        ours = lovasz(given.logits, given.target, per_image=per_image, absent=absent)
        assert ours.item() == pytest.approx(np.mean(values), rel=1e-9)


def test_lovasz_of_right_and_wrong_is_the_jaccard_loss() -> None:
    """At the corners of the cube the extension is the Jaccard loss itself."""
    random = np.random.default_rng(0)
    truth, answer = random.integers(0, 2, (2, 1, 40))
    logits = torch.from_numpy((answer * 2 - 1) * 100.0).unsqueeze(1)
    two = torch.cat([-logits, logits], 1)
    expected = [1 - ((truth == k) & (answer == k)).sum() / ((truth == k) | (answer == k)).sum() for k in (0, 1)]
    assert lovasz(two, torch.from_numpy(truth)).item() == pytest.approx(np.mean(expected), rel=1e-9)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("per_image", [False, True])
def test_generalised_dice(form: str, per_image: bool) -> None:
    given = problem(form, batch=3, seed=16)
    given.target[0][given.target[0] == given.target.max()] = 0
    given.target[1] = -1
    probability, truth, valid = given.plain()
    values = []
    for batch in [[0], [2]] if per_image else [[0, 1, 2]]:
        true = truth[batch].sum((0, 2))
        weight = np.where(true > 0, 1 / np.maximum(true, 1) ** 2, 0)
        weight = np.where(true > 0, weight, weight.max())
        if not weight.any():
            continue
        above = (weight * (probability * truth * valid)[batch].sum((0, 2))).sum()
        below = (weight * ((probability + truth) * valid)[batch].sum((0, 2))).sum()
        values.append(1 - (2 * above + 0.5) / (below + 0.5))
    ours = generalised_dice(given.logits, given.target, smooth=0.5, per_image=per_image)
    assert ours.item() == pytest.approx(np.mean(values), rel=1e-9)


def test_generalised_dice_equals_monai() -> None:
    losses = pytest.importorskip("monai.losses")
    given = problem("softmax", void=0, batch=3, seed=17)
    given.target[0][given.target[0] == 2] = 0
    for per_image in (False, True):
        peer = losses.GeneralizedDiceLoss(
            softmax=True, to_onehot_y=True, batch=not per_image, smooth_nr=1e-3, smooth_dr=1e-3
        )
        expected = peer(given.logits, given.target.unsqueeze(1)).item()
        ours = generalised_dice(given.logits, given.target, smooth=1e-3, per_image=per_image)
        assert ours.item() == pytest.approx(expected, rel=1e-6)


DISTANCES = ((0.0, 2.0, 2.0), (2.0, 0.0, 0.5), (2.0, 0.5, 0.0))


def test_wasserstein_dice_equals_monai() -> None:
    losses = pytest.importorskip("monai.losses")
    given = problem("softmax", void=0, batch=3, seed=18)
    peer = losses.GeneralizedWassersteinDiceLoss(np.array(DISTANCES), smooth_nr=0.1, smooth_dr=0.1)
    expected = peer(given.logits, given.target).item()
    ours = wasserstein_dice(given.logits, given.target, distances=DISTANCES, smooth=0.1, per_image=True)
    assert ours.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("background", [0, 2])
def test_wasserstein_dice(background: int) -> None:
    given = problem("softmax", seed=19)
    probability, truth, valid = given.plain()
    matrix = np.array(DISTANCES) / 2
    hit = wrong = 0.0
    for b, n in np.argwhere(valid[:, 0]):
        true = truth[b, :, n].argmax()
        error = (matrix[true] * probability[b, :, n]).sum()
        wrong += error
        hit += (1 - error) * (true != background) * WEIGHTS[true]
    ours = wasserstein_dice(
        given.logits, given.target, distances=DISTANCES, background=background, smooth=0.3,
        class_weight=torch.from_numpy(WEIGHTS),
    )  # fmt: skip
    assert ours.item() == pytest.approx(1 - (2 * hit + 0.3) / (2 * hit + wrong + 0.3), rel=1e-9)


def test_wasserstein_dice_of_labels_is_dice() -> None:
    """With two classes at a distance of 1 the definition gives Dice, position by position."""
    given = problem("binary", seed=20)
    two = torch.cat([torch.zeros_like(given.logits), given.logits], 1)
    expected = wasserstein_dice(two, given.target)
    assert wasserstein_dice(given.logits, given.target).item() == pytest.approx(expected.item(), rel=1e-9)
    assert dice(given.logits, given.target).item() == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_combo(form: str) -> None:
    given = problem(form, seed=21)
    p, t, valid = given.plain()
    terms = -(0.7 * t * np.log(p) + 0.3 * (1 - t) * np.log(1 - p))
    region = mean_of_regions(given, dice_formula(1), per_image=False, absent=False, weights=np.ones(3))
    ours = combo(given.logits, given.target, alpha=0.4, beta=0.7)
    assert ours.item() == pytest.approx(0.4 * terms[valid].mean() + 0.6 * region, rel=1e-9)
    weights = WEIGHTS[: p.shape[1]]
    factor = np.broadcast_to(weights[None, :, None], p.shape)[valid]
    region = mean_of_regions(given, dice_formula(1), per_image=False, absent=False, weights=weights)
    ours = combo(given.logits, given.target, alpha=0.4, beta=0.7, class_weight=torch.from_numpy(weights))
    assert ours.item() == pytest.approx(0.4 * np.average(terms[valid], weights=factor) + 0.6 * region, rel=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_exponential_logarithmic(form: str) -> None:
    given = problem(form, seed=22)
    p, t, valid = given.plain()
    weights = WEIGHTS[: p.shape[1]]
    if given.exclusive:
        true = (p * t).sum(1)[valid[:, 0]]
        terms = (t * weights[None, :, None]).sum(1)[valid[:, 0]] * (-np.log(true)) ** 0.3
    else:
        true = np.where(t == 1, p, 1 - p)
        terms = (np.where(t == 1, weights[None, :, None], 1) * (-np.log(true)) ** 0.3)[valid]
    region = mean_of_regions(
        given,
        lambda p, t: (-np.log(1 - dice_formula(1)(p, t))) ** 0.3,
        per_image=False,
        absent=False,
        weights=np.ones(3),
    )
    ours = exponential_logarithmic(given.logits, given.target, class_weight=torch.from_numpy(weights))
    assert ours.item() == pytest.approx(0.8 * region + 0.2 * terms.mean(), rel=1e-9)


def test_unified_focal_equals_monai() -> None:
    module = pytest.importorskip("monai.losses.unified_focal_loss")
    given = problem("softmax", void=0, classes=2, batch=3, seed=23)
    probability = given.logits.softmax(1)
    one_hot = torch.nn.functional.one_hot(given.target, 2).movedim(-1, 1).double()
    for delta, gamma in ((0.6, 0.5), (0.7, 0.3)):
        focal = module.AsymmetricFocalLoss(delta=delta, gamma=gamma)(probability, one_hot)
        region = module.AsymmetricFocalTverskyLoss(delta=delta, gamma=gamma)(probability, one_hot)
        # MONAI divides the focal part by the two channels as well, which the official program does not.
        expected = 0.3 * 2 * focal + 0.7 * region
        ours = unified_focal(
            given.logits, given.target, balance=0.3, delta=delta, gamma=gamma, per_image=True, absent=True
        )
        assert ours.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("per_image", [False, True])
def test_unified_focal(asymmetric: bool, per_image: bool) -> None:
    given = problem("softmax", seed=24)
    p, t, valid = given.plain()
    delta, gamma = 0.7, 0.3
    terms = []
    for b, n in np.argwhere(valid[:, 0]):
        true = t[b, :, n].argmax()
        q = p[b, true, n]
        if true == 0:
            terms.append(-(1 - delta) * (1 - q) ** gamma * np.log(q))
        else:
            terms.append(-delta * (1 if asymmetric else (1 - q) ** gamma) * np.log(q))
    batches = [[0], [1]] if per_image else [[0, 1]]
    values = []
    for batch in batches:
        for k in range(3):
            chosen = valid[batch, k]
            loss = tversky_formula(1 - delta, delta)(p[batch, k][chosen], t[batch, k][chosen])
            values.append(loss if k == 0 and asymmetric else loss ** (1 - gamma))
    ours = unified_focal(
        given.logits, given.target, balance=0.4, delta=delta, gamma=gamma, asymmetric=asymmetric, per_image=per_image
    )
    assert ours.item() == pytest.approx(0.4 * np.mean(terms) + 0.6 * np.mean(values), rel=1e-9)


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("absent", [False, True])
@pytest.mark.parametrize("asymmetric", [False, True])
def test_unified_focal_of_labels_is_that_of_two_classes(per_image: bool, absent: bool, asymmetric: bool) -> None:
    given = problem("binary", batch=3, seed=25)
    given.target[0].clamp_(max=0)  # one image without foreground
    two = torch.cat([torch.zeros_like(given.logits), given.logits], 1)
    options = {"per_image": per_image, "absent": absent, "asymmetric": asymmetric}
    expected = unified_focal(two, given.target, **options)
    assert unified_focal(given.logits, given.target, **options).item() == pytest.approx(expected.item(), rel=1e-9)


def test_numbers_out_of_range() -> None:
    given, labels = problem("softmax"), problem("multilabel")
    for call in (
        lambda: tversky(given.logits, given.target, alpha=-1),
        lambda: tversky(given.logits, given.target, gamma=0),
        lambda: dice(given.logits, given.target, smooth=-1),
        lambda: generalised_dice(given.logits, given.target, smooth=-1),
        lambda: sensitivity_specificity(given.logits, given.target, balance=2),
        lambda: wasserstein_dice(given.logits, given.target, distances=((0, 1), (1, 0))),
        lambda: wasserstein_dice(given.logits, given.target, distances=((0, 1, 1), (1, 1, 1), (1, 1, 0))),
        lambda: wasserstein_dice(given.logits, given.target, distances=((0, 0, 0),) * 3),
        lambda: wasserstein_dice(given.logits, given.target, background=3),
        lambda: wasserstein_dice(labels.logits, labels.target, distances=DISTANCES),
        lambda: combo(given.logits, given.target, alpha=2),
        lambda: combo(given.logits, given.target, beta=2),
        lambda: exponential_logarithmic(given.logits, given.target, smooth=0),
        lambda: exponential_logarithmic(given.logits, given.target, gamma=0),
        lambda: unified_focal(given.logits, given.target, gamma=1),
        lambda: unified_focal(given.logits, given.target, delta=2),
    ):
        with pytest.raises(InputError):
            call()
