"""The language of sums of losses: what it means, and what it says to what it does not understand."""

from __future__ import annotations

import pytest
import torch
from losses_cases import FORMS, problem
from torch.nn import functional

from everymask.errors import InputError
from everymask.losses.classification import cross_entropy
from everymask.losses.expression import LOSSES, PixelLoss, loss_function, options_of, parse
from everymask.losses.region import dice, tversky


@pytest.mark.parametrize("form", FORMS)
def test_sums(form: str) -> None:
    given = problem(form)
    loss = PixelLoss("0.5*cross_entropy(smoothing=0.1) + dice * 2 + 2*0.25*tversky(alpha=0.3, beta=0.7)")
    made = loss(given.logits, given.target)
    assert list(made) == ["cross_entropy", "dice", "tversky"]
    torch.testing.assert_close(made["cross_entropy"], 0.5 * cross_entropy(given.logits, given.target, smoothing=0.1))
    torch.testing.assert_close(made["dice"], 2 * dice(given.logits, given.target))
    expected = 0.5 * tversky(given.logits, given.target, alpha=0.3, beta=0.7)
    torch.testing.assert_close(made["tversky"], expected)


def test_terms() -> None:
    assert [(term.name, term.factor, term.options) for term in parse(" focal ( gamma = 3 )+1e-2*dice+lp ")] == [
        ("focal", 1, {"gamma": 3}),
        ("dice", 0.01, {}),
        ("lp", 1, {}),
    ]
    two = PixelLoss("dice + focal(alpha=None) + 2*dice(square=True)")
    given = problem("binary")
    assert list(two(given.logits, given.target)) == ["dice_1", "focal", "dice_3"]
    assert "2*dice" in repr(two)


def test_weights_are_handed_on() -> None:
    given = problem("softmax", void=0)
    weights = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
    pixels = torch.rand(2, 5, 6, dtype=torch.float64)
    made = PixelLoss("cross_entropy + dice")(given.logits, given.target, pixel_weight=pixels, class_weight=weights)
    terms = functional.cross_entropy(given.logits, given.target, weights, reduction="none")
    torch.testing.assert_close(made["cross_entropy"], (terms * pixels).sum() / weights[given.target].sum())
    torch.testing.assert_close(made["dice"], dice(given.logits, given.target, class_weight=weights))


def test_class_weights_in_the_expression() -> None:
    given = problem("softmax", void=0)
    own = torch.tensor([1, 2.5, 0.5], dtype=torch.float64)
    loss = PixelLoss("cross_entropy(class_weight=(1, 2.5, 0.5)) + dice")
    made = loss(given.logits, given.target, class_weight=torch.tensor([1.0, 0, 0]))
    torch.testing.assert_close(made["cross_entropy"], functional.cross_entropy(given.logits, given.target, own))
    torch.testing.assert_close(made["dice"], dice(given.logits, given.target, class_weight=torch.tensor([1.0, 0, 0])))
    assert not loss.state_dict()
    with pytest.raises(InputError, match="class_weight: got shape"):
        PixelLoss("dice(class_weight=[1, 2])")(given.logits, given.target)


def test_matrix_of_distances() -> None:
    given = problem("softmax")
    loss = PixelLoss("wasserstein_dice(distances=((0, 1, 1), (1, 0, 0.2), (1, 0.2, 0)), background=0)")
    assert loss(given.logits, given.target)["wasserstein_dice"] < PixelLoss("wasserstein_dice")(
        given.logits, given.target
    )["wasserstein_dice"]  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_every_option_has_a_type(name: str) -> None:
    allowed = {float, int, bool, float | None, torch.Tensor | None, tuple[tuple[float, ...], ...] | None}
    options = options_of(name)
    assert "void" in options and set(options.values()) <= allowed
    parse(f"{name}(void=255)")


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("dicee", "unknown loss 'dicee'; did you mean 'dice'"),
        ("0.5*crossentropy + dice", "did you mean 'cross_entropy'"),
        ("generalized_dice", "did you mean 'generalised_dice'"),
        ("xyz", "unknown loss 'xyz'; known: active_contour, "),
        ("dice(smoth=1)", "unknown option of the loss 'dice' 'smoth'; did you mean 'smooth'"),
        ("dice(pixel_weight=1)", "unknown option of the loss 'dice'"),
        ("cross_entropy(pixel_weight=1)", "unknown option"),
        ("boundary(distance=1)", "unknown option"),
        ("dice(smooth='1')", "option 'smooth' of the loss 'dice': got '1', expected a number"),
        ("dice(smooth=None)", "expected a number"),
        ("dice(smooth=True)", "expected a number"),
        ("dice(square=1)", "got 1, expected True or False"),
        ("dice(void=1.5)", "expected a whole number"),
        ("focal(alpha='x')", "expected a number or None"),
        ("focal(gamma=1e999)", "expected a number"),
        ("dice(class_weight=2)", "one number of 0 or more for each class"),
        ("dice(class_weight=(1, -1))", "one number of 0 or more for each class"),
        ("dice(class_weight=(1, 'a'))", "one number of 0 or more for each class"),
        ("wasserstein_dice(distances=3)", "rows of numbers"),
        ("wasserstein_dice(distances=(1, 2))", "rows of numbers"),
    ],
)
def test_what_is_wrong_is_said(expression: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        PixelLoss(expression)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "expression",
    [
        "", "+", "dice +", "dice - focal", "-dice", "dice/2", "0.5 dice", "0.5", "0.5*0.5", "dice*dice", "True*dice",
        "1e999*dice", "'a'*dice", "dice(1)", "dice(**{'smooth': 1})", "dice(smooth=1, smooth=2)", "dice(smooth=x)",
        "dice(smooth=__import__('os'))", "dice(smooth={[]: 1})", "a.dice", "dice()()", "lambda: 1", "dice; focal",
        "dice\0", "(" * 300 + "dice" + ")" * 300, "1+" * 20_000 + "dice",
    ],
)  # fmt: skip
def test_what_is_no_sum(expression: str) -> None:
    with pytest.raises(InputError, match=r"is no sum of losses; expected names with factors and options"):
        parse(expression)


def test_functions_by_name() -> None:
    assert loss_function("dice") is dice
    with pytest.raises(InputError, match="did you mean 'dice'"):
        loss_function("dise")
