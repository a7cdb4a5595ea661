"""Losses of distances and contours against scipy, MONAI and distances measured one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from losses_cases import FORMS, Problem, blobs, problem
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, label

from everymask.errors import InputError
from everymask.losses.boundary import (
    border_cross_entropy,
    boundary,
    distance_cross_entropy,
    hausdorff,
    signed_distances,
)
from everymask.losses.classification import cross_entropy
from everymask.losses.contour import active_contour, length
from everymask.losses.expression import PixelLoss
from everymask.ops.distance import unet_weight_map

SHAPES = {1: (40,), 2: (11, 12), 3: (5, 6, 7)}


def distances_one_by_one(given: Problem, masks: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
    """(B, K, N) signed distances to masks (the truth by default), each pair of positions being measured."""
    _, truth, valid = given.plain()
    masks = truth > 0.5 if masks is None else masks
    shape = given.logits.shape[2:]
    place = np.stack(np.unravel_index(np.arange(np.prod(shape)), shape), 1).astype(float)
    apart = np.linalg.norm(place[:, None] - place[None], axis=-1)
    result = np.zeros(masks.shape)
    for b, k in np.ndindex(*masks.shape[:2]):
        inside, outside = masks[b, k] & valid[b, k], ~masks[b, k] & valid[b, k]
        if inside.any() and outside.any():
            result[b, k] = np.where(inside, -apart[:, outside].min(1), apart[:, inside].min(1))
    return result


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("form", FORMS)
def test_signed_distances(form: str, axes: int) -> None:
    given = problem(form, shape=SHAPES[axes], void=0.5, seed=31)
    given.target[0][given.target[0] == 1] = 0
    classes = None if form == "multilabel" else given.logits.shape[1]
    measured = signed_distances(given.target, classes)
    assert measured.shape == given.logits.shape
    np.testing.assert_allclose(measured.flatten(2).numpy(), distances_one_by_one(given), rtol=1e-6)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("form", FORMS)
def test_boundary(form: str, axes: int) -> None:
    given = problem(form, shape=SHAPES[axes], void=0.5, seed=32)
    probability, _, valid = given.plain()
    signed = distances_one_by_one(given)
    signed = np.where(signed < 0, signed + 1, signed)
    expected = (probability * signed)[valid].mean()
    assert boundary(given.logits, given.target).item() == pytest.approx(expected, rel=1e-6)


def test_boundary_equals_the_official_formula() -> None:
    """Distances as the official program makes them: outside d, inside -(d - 1), both by scipy."""
    given = blobs("softmax")
    probability, truth, _ = given.plain()
    masks = (truth > 0.5).reshape(2, 3, *given.logits.shape[2:])
    signed = np.zeros(masks.shape)
    for b, k in np.ndindex(2, 3):
        inside = masks[b, k]
        assert inside.any() and not inside.all()
        signed[b, k] = distance_transform_edt(~inside) * ~inside - (distance_transform_edt(inside) - 1) * inside
    expected = (signed.reshape(probability.shape) * probability).mean()
    assert boundary(given.logits, given.target).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_hausdorff(form: str, axes: int, alpha: float) -> None:
    given = problem(form, shape=SHAPES[axes], void=0.3, seed=33)
    probability, truth, valid = given.plain()
    weight = np.abs(distances_one_by_one(given)) ** alpha
    weight += np.abs(distances_one_by_one(given, probability > 0.5)) ** alpha
    expected = ((probability - truth) ** 2 * weight)[valid].mean()
    assert hausdorff(given.logits, given.target, alpha=alpha).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("axes", [2, 3])
def test_hausdorff_equals_monai(axes: int) -> None:
    losses = pytest.importorskip("monai.losses")
    for form in ("softmax", "binary", "multilabel"):
        given = blobs(form, shape=(24, 26) if axes == 2 else (8, 9, 10))
        target = given.target if form == "multilabel" else given.target.unsqueeze(1)
        chosen = {"softmax": True, "to_onehot_y": True} if form == "softmax" else {"sigmoid": True}
        peer = losses.HausdorffDTLoss(include_background=True, **chosen)
        expected = peer(given.logits, target.double()).item()
        assert hausdorff(given.logits, given.target).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_distance_cross_entropy(form: str) -> None:
    given = blobs(form, void=True)
    probability, truth, valid = given.plain()
    signed = distances_one_by_one(given)
    total, count = 0.0, 0
    for b, k in np.ndindex(*truth.shape[:2]):
        for side, p in ((truth[b, k] == 1, probability[b, k]), (truth[b, k] == 0, 1 - probability[b, k])):
            side = side & valid[b, k]
            if not side.any() or (given.exclusive and side is not None and not truth[b, k][side].any()):
                continue
            distance = np.abs(signed[b, k][side])
            phi = (distance.max() - distance) / (distance.max() - 1) if distance.any() else np.zeros(side.sum())
            total += ((1 + 0.7 * phi) * -np.log(p[side])).sum()
            count += side.sum()
    ours = distance_cross_entropy(given.logits, given.target, strength=0.7)
    assert ours.item() == pytest.approx(total / count, rel=1e-6)


def test_distance_cross_entropy_where_all_is_edge() -> None:
    """Sides one position wide are edge throughout: phi is 1, and 0 without an edge."""
    target = torch.tensor([[0, 1, 0, 1], [1, 1, 1, 1]])
    logits = torch.randn(2, 2, 4, dtype=torch.float64)
    first, second = (cross_entropy(logits[[b]], target[[b]]) for b in (0, 1))
    ours = distance_cross_entropy(logits, target)
    torch.testing.assert_close(ours, (2 * first + second) / 2)


@pytest.mark.parametrize("name", ["boundary", "hausdorff", "distance_cross_entropy"])
@pytest.mark.parametrize("form", FORMS)
def test_distances_made_beforehand(name: str, form: str) -> None:
    given = blobs(form, void=True)
    distance = signed_distances(given.target, None if form == "multilabel" else given.logits.shape[1])
    loss = PixelLoss(f"dice + {name}")
    expected = loss(given.logits, given.target)[name]
    torch.testing.assert_close(loss(given.logits, given.target, distance=distance)[name], expected)
    assert loss(given.logits, given.target, distance=2 * distance)[name] != expected or "entropy" in name
    with pytest.raises(InputError, match="distance: got shape"):
        loss(given.logits, given.target, distance=distance[..., 1:])


@pytest.mark.parametrize("form", FORMS)
def test_border_cross_entropy(form: str) -> None:
    given = blobs(form, batch=3, void=True)
    maps = np.maximum(given.target.numpy(), 0)
    maps = maps if form == "multilabel" else maps[:, None]
    weights = np.zeros(maps.shape)
    for place in np.ndindex(*maps.shape[:2]):
        objects = np.zeros(maps.shape[2:], np.int32)
        for value in (1, 2):
            pieces, _ = label(maps[place] == value, np.ones((3, 3)))
            objects = np.where(pieces > 0, pieces + objects.max(), objects)
        weights[place] = 1 + unet_weight_map(objects, 10, 5)
    assert weights.max() > 2
    weights = weights if form == "multilabel" else weights[:, 0]
    expected = cross_entropy(given.logits, given.target, pixel_weight=torch.from_numpy(weights))
    torch.testing.assert_close(border_cross_entropy(given.logits, given.target), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("axes", [1, 3])
def test_border_weights_in_other_dimensions(axes: int) -> None:
    given = blobs("binary", shape=(30,) if axes == 1 else (9, 10, 11))
    shape = given.logits.shape[2:]
    expected = 0.0
    for b in range(2):
        objects, count = label(given.target[b].numpy(), np.ones((3,) * axes))
        apart = [distance_transform_edt(objects != k) for k in range(1, count + 1)]
        border = np.zeros(shape)
        if count > 1:
            nearest, second = np.sort(apart, axis=0)[:2]
            border = 4 * np.exp(-((nearest + second) ** 2) / (2 * 2.0**2)) * (objects == 0)
        terms = torch.nn.functional.binary_cross_entropy_with_logits(
            given.logits[b, 0], given.target[b].double(), reduction="none"
        )
        expected += (terms.detach().numpy() * (1 + border)).mean() / 2
    ours = border_cross_entropy(given.logits, given.target, border=4, sigma=2)
    assert ours.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("form", FORMS)
def test_active_contour(form: str, axes: int) -> None:
    given = problem(form, shape=SHAPES[axes], seed=34)
    probability, truth, valid = given.plain()
    shape = given.logits.shape[2:]
    p, v = probability.reshape(*probability.shape[:2], *shape), valid.reshape(*valid.shape[:2], *shape)
    contour, wrong, count = 0.0, 0.0, 0
    for place in np.ndindex(*p.shape):
        if not v[place]:
            continue
        squared = 0.0
        for axis in range(2, p.ndim):
            following = tuple(n + (i == axis) for i, n in enumerate(place))
            if following[axis] < p.shape[axis] and v[following]:
                squared += (p[following] - p[place]) ** 2
        contour += np.sqrt(squared + 1e-8) - 1e-4
        count += 1
    wrong = (probability * (1 - truth) ** 2 + (1 - probability) * truth**2)[valid].sum()
    assert length(given.logits, given.target).item() == pytest.approx(contour / count, rel=1e-9)
    ours = active_contour(given.logits, given.target, region=3.0)
    assert ours.item() == pytest.approx((contour + 3 * wrong) / count, rel=1e-9)


def test_length_of_a_square() -> None:
    """An outline of 4 x 10 steps; where two sides meet at the far corner the gradient is one diagonal step."""
    logits = torch.full((1, 1, 32, 32), -100.0, dtype=torch.float64)
    logits[..., 8:18, 8:18] = 100
    measured = length(logits, torch.zeros(1, 32, 32)).item() * 32 * 32
    assert measured == pytest.approx(38 + np.sqrt(2), rel=1e-3)
    assert length(torch.zeros(1, 3, 8, 8), torch.zeros(1, 8, 8)).item() == 0


def test_wrong_options() -> None:
    given = problem("softmax")
    deep = torch.zeros(1, 2, 2, 2, 2, 2)
    for call in (
        lambda: hausdorff(given.logits, given.target, alpha=0),
        lambda: distance_cross_entropy(given.logits, given.target, strength=-1),
        lambda: border_cross_entropy(given.logits, given.target, sigma=0),
        lambda: border_cross_entropy(given.logits, given.target, border=-1),
        lambda: length(given.logits, given.target, epsilon=0),
        lambda: active_contour(given.logits, given.target, region=-1),
        lambda: boundary(deep, torch.zeros(1, 2, 2, 2, 2)),
        lambda: border_cross_entropy(deep, torch.zeros(1, 2, 2, 2, 2)),
    ):
        with pytest.raises(InputError):
            call()
