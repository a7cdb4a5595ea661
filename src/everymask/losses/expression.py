"""Losses by name, and sums of them: ``0.5*cross_entropy + 0.5*dice`` or ``tversky(alpha=0.3, beta=0.7)``."""

from __future__ import annotations

import ast
import importlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard, cast, get_type_hints

import torch
from torch import Tensor, nn

from everymask.errors import InputError, unknown_name

LOSSES: dict[str, str] = {
    "cross_entropy": "everymask.losses.classification:cross_entropy",
    "top_k": "everymask.losses.classification:top_k",
    "ohem": "everymask.losses.classification:ohem",
    "focal": "everymask.losses.classification:focal",
    "lp": "everymask.losses.classification:lp",
    "dice": "everymask.losses.region:dice",
    "squared_dice": "everymask.losses.region:squared_dice",
    "log_cosh_dice": "everymask.losses.region:log_cosh_dice",
    "generalised_dice": "everymask.losses.region:generalised_dice",
    "wasserstein_dice": "everymask.losses.region:wasserstein_dice",
    "jaccard": "everymask.losses.region:jaccard",
    "tversky": "everymask.losses.region:tversky",
    "focal_tversky": "everymask.losses.region:focal_tversky",
    "sensitivity_specificity": "everymask.losses.region:sensitivity_specificity",
    "lovasz": "everymask.losses.lovasz:lovasz",
    "boundary": "everymask.losses.boundary:boundary",
    "hausdorff": "everymask.losses.boundary:hausdorff",
    "distance_cross_entropy": "everymask.losses.boundary:distance_cross_entropy",
    "border_cross_entropy": "everymask.losses.boundary:border_cross_entropy",
    "active_contour": "everymask.losses.contour:active_contour",
    "length": "everymask.losses.contour:length",
    "combo": "everymask.losses.compound:combo",
    "exponential_logarithmic": "everymask.losses.compound:exponential_logarithmic",
    "unified_focal": "everymask.losses.compound:unified_focal",
}
"""Name -> "module:function" of the losses of a classification of pixels: ``function(logits, target, ...)``."""

Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Term:
    """One loss of a sum.

    Args:
        name: One of `LOSSES`.
        factor: What it is multiplied by.
        options: Its own options.
    """

    name: str
    factor: float
    options: dict[str, Any]


def loss_function(name: str) -> Function:
    """The function called `name`.

    Raises:
        InputError: There is none; the nearest names are suggested.
    """
    if name not in LOSSES:
        raise unknown_name("loss", name, LOSSES)
    module, _, attribute = LOSSES[name].partition(":")
    found: Function = getattr(importlib.import_module(module), attribute)
    return found


class PixelLoss(nn.Module):
    """A weighted sum of losses of a classification of pixels.

    Args:
        expression: Names of `LOSSES`, each perhaps with a factor before it and options behind it, joined by ``+``. The
            option ``class_weight=(1, 2.5)`` of a loss that knows class weights comes before those of `forward`.

    Raises:
        InputError: The expression is none, or a loss or an option does not exist, or an option is of another type.

    Example:
        >>> PixelLoss("cross_entropy(smoothing=0.1) + 0.5*dice")(logits, target)
    """

    def __init__(self, expression: str) -> None:
        super().__init__()
        self.terms = parse(expression)
        names = [term.name for term in self.terms]
        # Two terms of one name are told apart by their positions.
        self._keys = [name if names.count(name) == 1 else f"{name}_{i}" for i, name in enumerate(names, 1)]
        self._functions = [loss_function(term.name) for term in self.terms]
        self._takes = [set(inspect.signature(function).parameters) for function in self._functions]
        self._options = [{k: v for k, v in term.options.items() if k != _CLASS_WEIGHT} for term in self.terms]
        for key, term in zip(self._keys, self.terms, strict=True):
            weights = term.options.get(_CLASS_WEIGHT)
            # A buffer follows the module to its device, but is no part of the saved weights: the expression is.
            self.register_buffer(
                _buffer(key), None if weights is None else torch.tensor(weights, dtype=torch.float32), persistent=False
            )

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        *,
        pixel_weight: Tensor | None = None,
        class_weight: Tensor | None = None,
        distance: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The terms by name, factors included; their sum is the loss.

        Args:
            logits: (B, K, ...), see `everymask.losses.forms.regions`.
            target: (B, ...) or (B, K, ...).
            pixel_weight: (B, ...) factor of each position, for the losses that know one.
            class_weight: (K,) weight of each class, for the losses that know one.
            distance: (B, K, ...) of `everymask.losses.boundary.signed_distances`, for the losses that know one;
                measured where they need it and it is not given.
        """
        made = {}
        for i, (key, term) in enumerate(zip(self._keys, self.terms, strict=True)):
            own = getattr(self, _buffer(key))
            tensors = {"pixel_weight": pixel_weight, "distance": distance}
            tensors[_CLASS_WEIGHT] = class_weight if own is None else own
            given = {name: each for name, each in tensors.items() if each is not None and name in self._takes[i]}
            made[key] = term.factor * self._functions[i](logits, target, **given, **self._options[i])
        return made

    def extra_repr(self) -> str:
        """The terms, for ``print``."""
        return " + ".join(f"{term.factor:g}*{term.name}" for term in self.terms)


def parse(expression: str) -> list[Term]:
    """The terms of an expression.

    Raises:
        InputError: It is not a sum of losses, or a loss or an option does not exist (the nearest names are suggested),
            or an option is of another type.
    """
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
        terms = [_term(node, expression) for node in _summands(tree)]
    except (SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise _wrong(expression) from error
    except ValueError as error:
        # What `ast` says of null bytes and of values that are no constants.
        raise error if isinstance(error, InputError) else _wrong(expression) from error
    for term in terms:
        known = options_of(term.name)
        for option, value in term.options.items():
            if option not in known:
                raise unknown_name(f"option of the loss {term.name!r}", option, known)
            _check_type(term.name, option, value, known[option])
    return terms


def options_of(name: str) -> Mapping[str, object]:
    """The options that an expression may give the loss `name`, and their types.

    Raises:
        InputError: There is no such loss.
    """
    hints = get_type_hints(loss_function(name))
    return {option: kind for option, kind in hints.items() if option not in _GIVEN}


_CLASS_WEIGHT = "class_weight"
_GIVEN = ("logits", "target", "pixel_weight", "distance", "return")
"""Parameters that the training gives."""


def _buffer(key: str) -> str:
    return f"{_CLASS_WEIGHT}_of_{key}"


def _summands(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _summands(node.left) + _summands(node.right)
    return [node]


def _factors(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        return _factors(node.left) + _factors(node.right)
    return [node]


def _term(node: ast.expr, expression: str) -> Term:
    factor = 1.0
    rest: list[ast.expr] = []
    for each in _factors(node):
        value = each.value if isinstance(each, ast.Constant) else None
        if _is_number(value):
            factor *= value
        else:
            rest.append(each)
    if len(rest) != 1 or not math.isfinite(factor):
        raise _wrong(expression)
    loss = rest[0]
    if isinstance(loss, ast.Name):
        return Term(loss.id, factor, {})
    if isinstance(loss, ast.Call) and isinstance(loss.func, ast.Name) and not loss.args:
        options = {each.arg: ast.literal_eval(each.value) for each in loss.keywords if each.arg}
        if len(options) == len(loss.keywords):
            return Term(loss.func.id, factor, options)
    raise _wrong(expression)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _elements(value: object) -> Sequence[object] | None:
    return cast("Sequence[object]", value) if isinstance(value, (list, tuple)) else None


def _are_numbers(value: object) -> TypeGuard[Sequence[float]]:
    elements = _elements(value)
    return elements is not None and all(_is_number(each) for each in elements)


def _check_type(loss: str, option: str, value: object, kind: object) -> None:
    """Raises `InputError` unless `value` is of the type that the option has."""
    if option == _CLASS_WEIGHT:
        fine = _are_numbers(value) and min(value, default=0) >= 0
        expected = "one number of 0 or more for each class, such as (1, 2.5)"
    elif option == "distances":
        rows = _elements(value)
        fine = rows is not None and all(_are_numbers(row) for row in rows)
        expected = "rows of numbers, such as ((0, 1), (1, 0))"
    elif kind is bool:
        fine, expected = isinstance(value, bool), "True or False"
    elif kind is int:
        fine, expected = isinstance(value, int) and not isinstance(value, bool), "a whole number"
    elif kind is float:
        fine, expected = _is_number(value), "a number"
    else:
        fine, expected = value is None or _is_number(value), "a number or None"
    if not fine:
        raise InputError(f"option {option!r} of the loss {loss!r}: got {value!r}, expected {expected}")


def _wrong(expression: str) -> InputError:
    return InputError(
        f"{expression!r} is no sum of losses; expected names with factors and options, such as "
        "'0.5*cross_entropy + 0.5*dice' or 'tversky(alpha=0.3, beta=0.7)'"
    )
