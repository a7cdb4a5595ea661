"""Losses of boxes against torchvision, and of embeddings against sums written out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torchvision import ops

from everymask.errors import InputError
from everymask.losses.box import ciou, diou, giou, iou, lp_iou
from everymask.losses.embedding import discriminative

LOSSES = {"iou": iou, "giou": giou, "diou": diou, "ciou": ciou, "lp_iou": lp_iou}
PEERS = {
    "giou": ops.generalized_box_iou_loss,
    "diou": ops.distance_box_iou_loss,
    "ciou": ops.complete_box_iou_loss,
}


def boxes(count: int, seed: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=random, dtype=torch.float64) * 20
    return torch.cat([low, low + 1 + 15 * torch.rand(count, 2, generator=random, dtype=torch.float64)], 1)


@pytest.mark.parametrize("name", PEERS)
def test_boxes_equal_torchvision(name: str) -> None:
    predicted, target = boxes(200, 0).requires_grad_(), boxes(200, 1)
    ours, expected = LOSSES[name](predicted, target), PEERS[name](predicted, target, reduction="mean")
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-8)
    slopes = [torch.autograd.grad(each, predicted)[0] for each in (ours, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-5, atol=1e-9)
    weight = torch.rand(200, dtype=torch.float64)
    expected = (PEERS[name](predicted, target) * weight).sum() / weight.sum()
    torch.testing.assert_close(LOSSES[name](predicted, target, weight=weight), expected, rtol=1e-6, atol=1e-8)


def test_overlap_and_distance() -> None:
    predicted, target = boxes(50, 2), boxes(50, 3)
    overlap = ops.box_iou(predicted, target).diagonal()
    torch.testing.assert_close(iou(predicted, target), 1 - overlap.mean())
    for p in (1, 1.5, 2):
        distance = ((predicted - target).abs() / 32) ** p
        expected = 5 * distance.mean() + 1 - overlap.mean()
        torch.testing.assert_close(lp_iou(predicted, target, p=p, corners=5, scale=32), expected)
    expected = (predicted - target).abs().mean() + ops.generalized_box_iou_loss(predicted, target, reduction="mean")
    torch.testing.assert_close(lp_iou(predicted, target, generalised=True), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", LOSSES)
def test_boxes_at_their_limits(name: str) -> None:
    loss = LOSSES[name]
    # ciou's weight has no gradient of its own, so that its gradient is no derivative.
    if name != "ciou":
        predicted, target = boxes(5, 4).requires_grad_(), boxes(5, 5)
        assert torch.autograd.gradcheck(lambda given: loss(given, target), predicted)
    empty = torch.zeros(0, 4, requires_grad=True)
    value = loss(empty, torch.zeros(0, 4))
    assert value.item() == 0
    value.backward()
    odd = torch.tensor([[5.0, 5, 5, 5], [9, 9, 2, 2], [0, 0, 1e4, 1e4], [0, 0, 3, 3]])
    for kind in (torch.float32, torch.bfloat16, torch.float16):
        given = odd.to(kind, copy=True).requires_grad_()
        value = loss(given, odd.roll(1, 0).to(kind))
        value.backward()
        assert torch.isfinite(value) and torch.isfinite(given.grad).all()
    same = boxes(7, 6)
    assert loss(same, same).item() == pytest.approx(0, abs=1e-12)
    if name != "ciou":
        volume = torch.tensor([[0.0, 0, 0, 2, 2, 2]])
        shifted = torch.tensor([[1.0, 0, 0, 3, 2, 2]])
        if name in ("iou", "giou"):  # one third; the box around both is full
            assert loss(volume, shifted).item() == pytest.approx(2 / 3)
    with pytest.raises(InputError, match="one target for each box"):
        loss(same, same[:3])
    with pytest.raises(InputError, match="weight"):
        loss(same, same, weight=torch.ones(3))


def test_box_options_out_of_range() -> None:
    for options in ({"p": 0.5}, {"corners": -1}, {"scale": 0}):
        with pytest.raises(InputError):
            lp_iou(boxes(2, 0), boxes(2, 1), **options)


def _discriminative(x: np.ndarray, ids: np.ndarray, near: float, far: float) -> tuple[float, float, float]:
    """The three terms of an image: positions (P, E), ids (P,) with 0 and -1 left out."""
    objects = [x[ids == i] for i in sorted(set(ids.tolist()) - {0, -1})]
    centres = [each.mean(0) for each in objects]
    pull = np.mean(
        [
            np.mean([max(0, np.linalg.norm(centre - point) - near) ** 2 for point in each])
            for each, centre in zip(objects, centres, strict=True)
        ]
    )
    pairs = [max(0, 2 * far - np.linalg.norm(a - b)) ** 2 for a, b in itertools.permutations(centres, 2)]
    return pull, float(np.mean(pairs)) if pairs else 0.0, np.mean([np.linalg.norm(c) for c in centres])


@pytest.mark.parametrize("shape", [(40,), (6, 7), (3, 4, 5)])
def test_discriminative(shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    embeddings = torch.from_numpy(random.normal(size=(4, 3, *shape))).requires_grad_()
    labels = torch.from_numpy(random.choice([-1, 0, 3, 4, 70], size=(4, *shape)))
    labels[1] = labels[1].clamp(max=0)  # no object: the image does not enter the mean
    labels[2] = labels[2].clamp(max=3)  # one object, no pair
    flat, ids = embeddings.detach().flatten(2).numpy(), labels.flatten(1).numpy()
    values = []
    for b in (0, 2, 3):
        pull, push, far = _discriminative(flat[b].T, ids[b], 0.4, 1.2)
        values.append(2 * pull + 3 * push + 0.1 * far)
    options = {"pull_margin": 0.4, "push_margin": 1.2, "pull": 2, "push": 3, "regularisation": 0.1}
    ours = discriminative(embeddings, labels, **options)
    assert ours.item() == pytest.approx(np.mean(values), rel=1e-9)
    slope = torch.autograd.grad(ours, embeddings)[0]
    assert torch.all(slope.movedim(1, -1)[labels <= 0] == 0)
    small = embeddings.detach()[:1, :, :3].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: discriminative(x, labels[:1, :3], **options), small)


def test_discriminative_at_its_limits() -> None:
    labels = torch.tensor([[1, 1, 2, 0, -1]])
    for embeddings in (torch.zeros(1, 2, 5), torch.full((1, 2, 5), 1e4), torch.randn(1, 2, 5).bfloat16() * 1e4):
        given = embeddings.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            value = discriminative(given, labels)
        slope = torch.autograd.grad(value, given)[0]
        assert torch.isfinite(value) and torch.isfinite(slope).all()
    for nothing in (0, -1):
        given = torch.randn(2, 3, 4, requires_grad=True)
        value = discriminative(given, torch.full((2, 4), nothing))
        assert value.item() == 0
        assert torch.all(torch.autograd.grad(value, given)[0] == 0)
    # Far apart and each object in one place: only the regularisation is left.
    apart = torch.tensor([[[0.0, 0, 9, 5, 5], [0, 0, 0, 5, 5]]])
    assert discriminative(apart, labels).item() == pytest.approx(0.001 * 4.5)
    with pytest.raises(InputError, match="expected"):
        discriminative(torch.zeros(1, 2, 5), torch.zeros(1, 4))
    with pytest.raises(InputError, match="push_margin"):
        discriminative(torch.zeros(1, 2, 5), labels, push_margin=-1)
