"""What R-CNN fits on the features of its finished network: a support vector machine and a box regression a class.

Girshick, Donahue, Darrell, Malik, Rich Feature Hierarchies for Accurate Object Detection and Semantic Segmentation,
CVPR 2014, sec. 2.3, and appendix C of the report of the same name; numbers of the published program.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from numpy.typing import NDArray

FEATURE_LENGTH = 20.0
"""Mean length that features are scaled to, so that the cost and the strength of the ridge mean the same everywhere."""

_POSITIVE_WEIGHT, _BIAS_SCALE = 2.0, 10.0
_FIRST_NEGATIVES = 2000
_ROUNDS = 30
_TOLERANCE = 1e-3
"""By which a negative's margin may lie above -1 without being mined."""


class FittedLinear(nn.Module):
    """Linear functions of features, some for each class, that are fitted and not trained.

    Args:
        width: Length D of the features.
        classes: K.
        outputs: Functions of each class.
    """

    weight: Tensor
    bias: Tensor
    known: Tensor

    def __init__(self, width: int, classes: int, outputs: int) -> None:
        super().__init__()
        self.classes, self.outputs = classes, outputs
        self.register_buffer("weight", torch.zeros(classes * outputs, width))
        self.register_buffer("bias", torch.zeros(classes * outputs))
        self.register_buffer("known", torch.zeros(classes, dtype=torch.bool))

    def forward(self, features: Tensor) -> Tensor:
        """(R, K, outputs) float32 of features (R, D); 0 for classes that are not known."""
        with torch.autocast(features.device.type, enabled=False):
            found = functional.linear(features.float(), self.weight, self.bias)
        return found.reshape(len(features), self.classes, self.outputs)

    def forget(self) -> None:
        """No class is known."""
        for each in (self.weight, self.bias, self.known):
            each.zero_()

    def learn(self, index: int, weight: NDArray[np.float64], bias: NDArray[np.float64]) -> None:
        """Takes over the functions of a class: weights (outputs, D) and biases (outputs,)."""
        rows = slice(index * self.outputs, (index + 1) * self.outputs)
        self.weight[rows] = torch.from_numpy(weight).to(self.weight)
        self.bias[rows] = torch.from_numpy(bias).to(self.bias)
        self.known[index] = True


class Examples(NamedTuple):
    """Regions to learn from.

    Attributes:
        features: (P, D) float32.
        overlaps: (P, K) best IoU with an object of each class; NaN for regions within a crowd, which tell nothing.
        truth: (P,) class of the regions that are true boxes, -1 for others.
        nearest: (P,) class of the object with the highest IoU, -1 without any object.
        offsets: (P, 4) from the region to that object, as `everymask.layers.box_coding.encode_boxes` has them.
    """

    features: NDArray[np.float32]
    overlaps: NDArray[np.float32]
    truth: NDArray[np.int64]
    nearest: NDArray[np.int64]
    offsets: NDArray[np.float32]


def fit_machines(machines: FittedLinear, examples: Examples, cost: float, shows_from: float = 0.5) -> None:
    """Fits the machine of each class that has an object, such that the sigmoid of what it gives is a probability.

    Positive are the true boxes of the class, negative the regions whose IoU with each of them is below 0.3 (sec. 2.3).

    Args:
        machines: With one output; changed in place.
        examples: Of all images.
        cost: Of a margin that is violated.
        shows_from: The probability is that of an IoU of this or more.
    """
    machines.forget()
    scale = _scale(examples.features)
    features = scale * examples.features
    for index in range(machines.classes):
        positive, overlap = examples.truth == index, examples.overlaps[:, index]
        if not positive.any() or positive.all():
            continue
        # Comparisons with NaN are false.
        weight, bias = mine(features, positive, overlap < 0.3, cost)
        shows, tells = overlap >= shows_from, ~np.isnan(overlap)
        margins = features @ weight + bias
        slope, shift = fit_probability(margins[tells], shows[tells])
        machines.learn(index, slope * scale * weight[None], np.array([slope * bias + shift]))


def fit_regressions(
    regressions: FittedLinear, examples: Examples, least_overlap: float = 0.6, strength: float = 1000.0
) -> None:
    """Fits the offsets of regions to the objects of each class that they overlap (appendix C).

    Args:
        regressions: With four outputs; changed in place.
        examples: Of all images.
        least_overlap: The IoU from which they do; 0.6 in the paper.
        strength: Of the ridge, for features of a mean length of 20.
    """
    regressions.forget()
    scale = _scale(examples.features)
    best = examples.overlaps.max(axis=1)
    for index in range(regressions.classes):
        used = (examples.nearest == index) & (best > least_overlap)
        if used.any():
            weight, bias = fit_ridge(scale * examples.features[used], examples.offsets[used], strength)
            regressions.learn(index, scale * weight, bias)


def _scale(features: NDArray[np.float32]) -> float:
    total = float(np.linalg.norm(features, axis=1).sum())
    return FEATURE_LENGTH * len(features) / total if total > 0 else 1.0


def mine(
    features: NDArray[np.floating], positive: NDArray[np.bool_], negative: NDArray[np.bool_], cost: float
) -> tuple[NDArray[np.float64], float]:
    """The support vector machine of all examples, from few of the negatives at a time (hard negative mining).

    Those that violate the margin come in, those that are far from it go, until none of all violates it any more: what
    is left out then has no influence on the machine.

    Args:
        features: (N, D).
        positive: (N,) examples of the class.
        negative: (N,) others; what is neither is not looked at.
        cost: As for `fit_machine`.

    Returns:
        Weights (D,) and bias.
    """
    all_negatives = np.flatnonzero(negative & ~positive)
    step = max(1, len(all_negatives) // _FIRST_NEGATIVES)
    cache = all_negatives[::step]
    first, weight, bias = np.flatnonzero(positive), np.zeros(features.shape[1]), 0.0
    for _ in range(_ROUNDS):
        chosen = np.concatenate([first, cache])
        weight, bias = fit_machine(features[chosen], positive[chosen], cost, start=(weight, bias))
        margins = (features @ weight.astype(features.dtype) + bias)[all_negatives]
        hard = all_negatives[margins > -1 + _TOLERANCE]
        if not len(np.setdiff1d(hard, cache, assume_unique=True)):
            break
        cache = np.union1d(hard, np.intersect1d(cache, all_negatives[margins > -1.2], assume_unique=True))
    return weight, bias


def fit_machine(
    features: NDArray[np.floating],
    positive: NDArray[np.bool_],
    cost: float,
    *,
    positive_weight: float = _POSITIVE_WEIGHT,
    bias_scale: float = _BIAS_SCALE,
    start: tuple[NDArray[np.float64], float] | None = None,
) -> tuple[NDArray[np.float64], float]:
    """A linear support vector machine: the least of |w|^2 / 2 plus the cost of the squared violations of the margin.

    Args:
        features: (N, D).
        positive: (N,) on which side each is to be.
        cost: Of a violation, squared, of a negative; C of LIBLINEAR.
        positive_weight: Factor of the cost of positives.
        bias_scale: Value of a further feature, whose weight, penalised as the others, makes the bias; the larger, the
            freer the bias.
        start: Weights and bias to begin with.

    Returns:
        Weights (D,) and bias of the margin: above 0 for positives.
    """
    from scipy.optimize import minimize

    rows = np.column_stack([features, np.full(len(features), bias_scale)]).astype(np.float64)
    signs = np.where(positive, 1.0, -1.0)
    costs = np.where(positive, positive_weight, 1.0) * cost
    begin = np.zeros(rows.shape[1]) if start is None else np.append(start[0], start[1] / bias_scale)

    def objective(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        violation = np.maximum(0, 1 - signs * (rows @ weights))
        value = 0.5 * weights @ weights + costs @ violation**2
        return float(value), weights - rows.T @ (2 * costs * signs * violation)

    options = {"maxiter": 1000, "maxcor": 20, "ftol": 1e-14, "gtol": 1e-7}
    found: Any = minimize(objective, begin, jac=True, method="L-BFGS-B", options=options)
    return found.x[:-1], float(found.x[-1] * bias_scale)


def fit_probability(margins: NDArray[np.floating], positive: NDArray[np.bool_]) -> tuple[float, float]:
    """Slope and shift such that the sigmoid of slope * margin + shift is the probability of being positive.

    Platt, Probabilistic Outputs for Support Vector Machines, 1999; the targets are smoothed as there.

    Args:
        margins: (N,).
        positive: (N,).

    Returns:
        A slope above 0, so that the order of the margins stays, and the shift.
    """
    from scipy.optimize import minimize

    positives = int(positive.sum())
    negatives = len(positive) - positives
    wanted = np.where(positive, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    values = margins.astype(np.float64)

    def objective(found: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        logits = found[0] * values + found[1]
        error = 1 / (1 + np.exp(-np.clip(logits, -500, 500))) - wanted
        entropy = np.logaddexp(0, logits) - wanted * logits
        return float(entropy.mean()), np.array([(error * values).mean(), error.mean()])

    begin = np.array([1.0, np.log((positives + 1) / (negatives + 1))])
    found: Any = minimize(objective, begin, jac=True, method="L-BFGS-B", bounds=[(1e-3, None), (None, None)])
    return float(found.x[0]), float(found.x[1])


def fit_ridge(
    features: NDArray[np.floating], answers: NDArray[np.floating], strength: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ridge regression with a free bias: the least squared error plus `strength` times the squared weights.

    Args:
        features: (N, D).
        answers: (N, M).
        strength: Above 0.

    Returns:
        Weights (M, D) and biases (M,).
    """
    rows, wanted = features.astype(np.float64), answers.astype(np.float64)
    mean, usual = rows.mean(axis=0), wanted.mean(axis=0)
    rows, wanted = rows - mean, wanted - usual
    if len(rows) < rows.shape[1]:  # the same weights from the smaller of two systems
        weight = np.linalg.solve(rows @ rows.T + strength * np.eye(len(rows)), wanted).T @ rows
    else:
        weight = np.linalg.solve(rows.T @ rows + strength * np.eye(rows.shape[1]), rows.T @ wanted).T
    return weight, usual - weight @ mean
