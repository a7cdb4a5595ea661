"""What holds for every loss of a classification of pixels."""

from __future__ import annotations

import inspect
import re

import pytest
import torch
from losses_cases import FORMS, blobs, problem

from everymask.errors import InputError
from everymask.losses.expression import LOSSES, loss_function
from everymask.losses.forms import regions

EVERY = [pytest.param(name, form, id=f"{name}-{form}") for name in LOSSES for form in FORMS]
UNLIKE_OTHERS = {"boundary", "active_contour", "length"}
"""Losses that are not 0 for a perfect answer: distances have signs, and true regions have contours."""
SPATIAL = {"boundary", "hausdorff", "distance_cross_entropy", "border_cross_entropy", "active_contour", "length"}


def gradient(loss: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, logits)[0]


def perfect(target: torch.Tensor, classes: int, size: float) -> torch.Tensor:
    """Logits of +-size that say what the target says."""
    if target.ndim > 2 and target.shape[1] == classes and classes > 1:
        return (target.float() * 2 - 1) * size
    if classes == 1:
        return (target.float() * 2 - 1).unsqueeze(1) * size
    return (torch.nn.functional.one_hot(target.clamp(min=0), classes).movedim(-1, 1).float() * 2 - 1) * size


@pytest.mark.parametrize(("name", "form"), EVERY)
def test_gradient_is_the_derivative(name: str, form: str) -> None:
    given = problem(form, shape=(3, 4), seed=1)
    function = loss_function(name)
    assert torch.autograd.gradcheck(lambda logits: function(logits, given.target), given.logits)


@pytest.mark.parametrize(("name", "form"), EVERY)
def test_void_has_no_part(name: str, form: str) -> None:
    given = problem(form, seed=2)
    function = loss_function(name)
    value = function(given.logits, given.target)
    void = given.target == -1
    void = void if form == "multilabel" else void.unsqueeze(1).expand_as(given.logits)
    slope = gradient(value, given.logits)
    assert torch.all(slope[void] == 0)
    assert torch.any(slope[~void] != 0)
    other = torch.where(void, 7 * torch.randn_like(given.logits), given.logits)
    torch.testing.assert_close(function(other, given.target), value, rtol=1e-12, atol=1e-12)
    # The number of void is free.
    renamed = torch.where(given.target == -1, 255, given.target)
    torch.testing.assert_close(function(given.logits, renamed, void=255), value, rtol=0, atol=0)


@pytest.mark.parametrize(("name", "form"), EVERY)
def test_all_void_is_zero_with_zero_gradient(name: str, form: str) -> None:
    given = problem(form, void=2.0)
    function = loss_function(name)
    options = [
        {},
        *({each: True} for each in ("per_image", "absent") if each in inspect.signature(function).parameters),
    ]
    for option in options:
        value = function(given.logits, given.target, **option)
        assert value.item() == 0
        assert torch.all(gradient(value, given.logits) == 0)


@pytest.mark.parametrize(("name", "form"), EVERY)
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32])
def test_finite_with_extreme_logits(name: str, form: str, kind: torch.dtype) -> None:
    given = problem(form, seed=3)
    function = loss_function(name)
    signs = given.logits.detach().sign() * 1e4
    right = perfect(given.target, given.logits.shape[1], 1e4)
    for extreme in (signs, right, -right, torch.zeros_like(right)):
        logits = extreme.to(kind).requires_grad_()
        value = function(logits, given.target)
        slope = gradient(value, logits)
        assert torch.isfinite(value) and torch.isfinite(slope).all()
        assert value.dtype == torch.float32 and slope.dtype == kind


@pytest.mark.parametrize(("name", "form"), EVERY)
def test_what_has_come_apart_is_seen(name: str, form: str) -> None:
    given = problem(form, void=0)
    logits = given.logits.detach().clone()
    logits[0, 0, 1, 1] = torch.nan
    assert torch.isnan(loss_function(name)(logits, given.target))


@pytest.mark.parametrize(("name", "form"), EVERY)
def test_perfect_answer_costs_nothing(name: str, form: str) -> None:
    given = problem(form, seed=4)
    function = loss_function(name)
    right = perfect(given.target, given.logits.shape[1], 40)
    value, wrong = function(right, given.target), function(-right, given.target)
    if name not in UNLIKE_OTHERS:
        assert 0 <= value < 1e-5
    if name != "length":
        assert wrong > value + 0.01


@pytest.mark.parametrize(("name", "form"), EVERY)
def test_float32_and_autocast_are_near_float64(name: str, form: str) -> None:
    given = blobs(form, void=True)
    function = loss_function(name)
    value = function(given.logits, given.target)
    with torch.autocast("cpu", torch.bfloat16):
        single = function(given.logits.float(), given.target)
    torch.testing.assert_close(single.double(), value, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(("name", "form"), EVERY)
def test_absent_class_and_single_position(name: str, form: str) -> None:
    function = loss_function(name)
    given = problem(form, seed=5)
    target = torch.where(given.target == given.target.max(), 0, given.target)
    for logits, labels in (
        (given.logits, target),
        (given.logits[:1, :, :1, :1], given.target[:1, ..., :1, :1]),
        (given.logits[:1, :, 0, :1], given.target[:1, ..., 0, :1]),
    ):
        value = function(logits, labels)
        assert torch.isfinite(value) and torch.isfinite(gradient(value, given.logits)).all()


@pytest.mark.parametrize(("name", "form"), EVERY)
def test_shape_of_space_is_free(name: str, form: str) -> None:
    given = problem(form, shape=(24,), seed=6)
    function = loss_function(name)
    line = function(given.logits, given.target)
    for shape in ((24, 1), (1, 24, 1), (4, 6), (2, 3, 4)):
        moved = function(given.logits.unflatten(-1, shape), given.target.unflatten(-1, shape))
        assert torch.isfinite(moved)
        if name not in SPATIAL or max(shape) == 24:
            torch.testing.assert_close(moved, line, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "form"), EVERY)
def test_classes_that_there_are_not(name: str, form: str) -> None:
    given = problem(form)
    function = loss_function(name)
    for value in (255, -2):
        wrong = given.target.clone()
        wrong.view(-1)[3] = value
        with pytest.raises(InputError, match=f"holds the value {value}.*as void"):
            function(given.logits, wrong)
    with pytest.raises(InputError, match="expected a target"):
        function(given.logits, given.target[..., 1:])


@pytest.mark.parametrize(("name", "form"), EVERY)
def test_classes_that_there_are_not_on_an_accelerator(name: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """There nobody looks, but the loss is NaN, and no table is read beyond its end."""
    given = problem(form)
    function = loss_function(name)
    expected = function(given.logits, given.target)
    monkeypatch.setattr("everymask.losses.forms._looking_is_free", lambda values: False)
    torch.testing.assert_close(function(given.logits, given.target), expected, rtol=0, atol=0)
    for value in (255, -2):
        wrong = given.target.clone()
        wrong.view(-1)[3] = value
        assert torch.isnan(function(given.logits, wrong))


@pytest.mark.parametrize(("name", "form"), EVERY)
def test_equal_class_weights_change_nothing(name: str, form: str) -> None:
    function = loss_function(name)
    given = problem(form, seed=7)
    channels = given.logits.shape[1]
    expected = function(given.logits, given.target)
    weighted = function(given.logits, given.target, class_weight=torch.ones(channels))
    torch.testing.assert_close(weighted, expected, rtol=1e-12, atol=1e-12)
    with pytest.raises(InputError, match="class_weight"):
        function(given.logits, given.target, class_weight=torch.ones(channels + 1))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "name", [n for n in LOSSES if "pixel_weight" in inspect.signature(loss_function(n)).parameters]
)
def test_pixel_weights(name: str, form: str) -> None:
    function = loss_function(name)
    given = problem(form, seed=8)
    shape = (given.logits.shape[0], *given.logits.shape[2:])
    plain = function(given.logits, given.target)
    torch.testing.assert_close(function(given.logits, given.target, pixel_weight=torch.ones(shape)), plain)
    # Without weight a position has no gradient in the losses of positions alone.
    weight = torch.ones(shape)
    weight[..., 2] = 0
    value = function(given.logits, given.target, pixel_weight=weight)
    assert value < plain
    if name in ("cross_entropy", "focal", "lp", "ohem"):
        assert torch.all(gradient(value, given.logits)[..., 2] == 0)
    with pytest.raises(InputError, match="pixel_weight"):
        function(given.logits, given.target, pixel_weight=torch.ones(3))


def test_soft_and_boolean_labels() -> None:
    given = problem("multilabel", void=0)
    for name in LOSSES:
        function = loss_function(name)
        expected = function(given.logits, given.target)
        torch.testing.assert_close(function(given.logits, given.target.bool()), expected)
        torch.testing.assert_close(function(given.logits, given.target.float()), expected)
        torch.testing.assert_close(function(given.logits, given.target.to(torch.uint8)), expected)
        assert torch.isfinite(function(given.logits, 0.3 + 0.4 * given.target.double()))


def test_soft_labels_out_of_range() -> None:
    given = problem("multilabel", void=0)
    for value in (1.5, float("nan")):
        wrong = given.target.double()
        wrong[0, 0, 0, 0] = value
        with pytest.raises(InputError, match=f"holds the value {value}"):
            loss_function("dice")(given.logits, wrong)


def test_logits_without_space() -> None:
    with pytest.raises(InputError, match="spatial dimensions"):
        regions(torch.zeros(2, 3), torch.zeros(2))


def test_every_loss_says_what_it_is() -> None:
    for name in LOSSES:
        text = inspect.getdoc(loss_function(name))
        assert text is not None and re.search(r"\b20\d\d\b", text), f"{name} names no source with its year"
