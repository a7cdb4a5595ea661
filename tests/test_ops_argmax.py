"""The class of every pixel against float64 softmax."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everymask.errors import InputError
from everymask.ops.argmax import most_probable


def reference(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By the definition of softmax, in float64."""
    exact = logits.astype(np.float64)
    index = exact.argmax(0)
    probability = 1 / np.exp(exact - exact.max(0)).sum(0)
    classes = len(logits)
    weights = probability.ravel()
    return index, np.bincount(index.ravel(), minlength=classes), np.bincount(index.ravel(), weights, minlength=classes)


def agree(logits: np.ndarray) -> None:
    for ours, expected in zip(most_probable(logits), reference(logits), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(0, 12), st.integers(0, 12)),
    spread=st.sampled_from([0.0, 1.0, 30.0, 3e4]),
    seed=st.integers(0, 99),
)
def test_small_maps_of_every_shape(shape: tuple[int, int, int], spread: float, seed: int) -> None:
    values = spread * np.random.default_rng(seed).normal(size=shape)
    agree(values.round().astype(np.float32))  # rounded, so that ties are frequent


@pytest.mark.parametrize("order", ["channels first", "channels last", "cut", "cut channels last", "reversed"])
def test_memory_in_any_order(order: str) -> None:
    values = (4 * np.random.default_rng(0).normal(size=(7, 700, 1100))).astype(np.float32)
    match order:
        case "channels last":
            values = np.ascontiguousarray(values.transpose(1, 2, 0)).transpose(2, 0, 1)
        case "cut":
            values = values[2:, 3:690, 5:1051]
        case "cut channels last":
            values = np.ascontiguousarray(values.transpose(1, 2, 0)).transpose(2, 0, 1)[2:, 3:690, 5:1051]
        case "reversed":
            values = values[::-1, :, ::-2]
    agree(values)


def test_log_probabilities_of_zero_and_extremes() -> None:
    with np.errstate(divide="ignore"):
        probabilities = np.array([[[1.0, 0.0, 0.5]], [[0.0, 1.0, 0.5]], [[0.0, 0.0, 0.0]]])
        logs = np.log(probabilities).astype(np.float32)
    index, counts, sums = most_probable(logs)
    assert index.tolist() == [[0, 1, 0]] and counts.tolist() == [2, 1, 0]
    np.testing.assert_allclose(sums, [1.5, 1.0, 0.0], rtol=1e-6)
    agree(np.array([[[3e38]], [[-3e38]], [[1e-38]]], np.float32))


def test_what_is_no_map_of_logits_is_refused() -> None:
    for wrong in (np.zeros((3, 4), np.float32), np.zeros((2, 3, 4)), np.zeros((0, 3, 4), np.float32)):
        with pytest.raises(InputError, match="expected float32"):
            most_probable(wrong)
