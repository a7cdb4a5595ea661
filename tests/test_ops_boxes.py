"""Overlap of boxes against torchvision, pycocotools and formulas in exact arithmetic."""

import math
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
import torchvision.ops as tv
from hypothesis import given, settings
from hypothesis import strategies as st

from everymask.errors import InputError
from everymask.ops import boxes

MEASURES = [boxes.box_iou, boxes.generalized_box_iou, boxes.distance_box_iou, boxes.complete_box_iou]
IN_TORCHVISION = [tv.box_iou, tv.generalized_box_iou, tv.distance_box_iou, tv.complete_box_iou]
LOSSES = [None, tv.generalized_box_iou_loss, tv.distance_box_iou_loss, tv.complete_box_iou_loss]

corner = st.floats(-50, 50).map(lambda value: round(value, 2)) | st.integers(-3, 3).map(float)
box = st.tuples(corner, corner, corner, corner)
list_of_boxes = st.lists(box, min_size=1, max_size=6).map(lambda rows: np.array(rows, np.float64))


def random_boxes(number, seed, side=100.0):
    generator = np.random.default_rng(seed)
    low = generator.uniform(0, side, (number, 2))
    return np.concatenate([low, low + generator.uniform(0.5, side / 2, (number, 2))], axis=1)


def exact(a, b):
    """IoU, GIoU, DIoU and CIoU of two boxes, rational up to the angles."""
    a, b = [Fraction(float(each)) for each in a], [Fraction(float(each)) for each in b]

    def sides(x0, y0, x1, y1):
        return max(x1 - x0, Fraction(0)), max(y1 - y0, Fraction(0))

    def area(corners):
        wide, high = sides(*corners)
        return wide * high

    def ratio(above, below):
        return above / below if below else Fraction(0)

    shared = area([max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])])
    union = area(a) + area(b) - shared
    corners = np.array([a, b]).reshape(4, 2)
    around = [*corners.min(axis=0), *corners.max(axis=0)]
    iou = ratio(shared, union)
    generalized = iou - ratio(area(around) - union, area(around))
    wide, high = sides(*around)
    apart = ((a[0] + a[2] - b[0] - b[2]) ** 2 + (a[1] + a[3] - b[1] - b[3]) ** 2) / 4
    distance = iou - ratio(apart, wide**2 + high**2)
    angles = [math.atan2(*map(float, sides(*corners))) for corners in (a, b)]
    v = 4 / math.pi**2 * (angles[0] - angles[1]) ** 2
    alpha = v / float(1 - iou + Fraction(v)) if v else 0.0
    return float(iou), float(generalized), float(distance), float(distance) - alpha * v


@settings(max_examples=300, deadline=None)
@given(list_of_boxes, list_of_boxes)
def test_all_measures_equal_exact_arithmetic_even_for_empty_and_swapped_boxes(a, b):
    expected = np.array([[exact(first, second) for second in b] for first in a])
    for i, measure in enumerate(MEASURES):
        values = measure(a, b, pairwise=True)
        np.testing.assert_allclose(values, expected[..., i], rtol=0, atol=1e-12)
        assert (np.abs(values) <= (2 if measure is boxes.complete_box_iou else 1)).all()
        tensors = measure(torch.from_numpy(a), torch.from_numpy(b), pairwise=True)
        np.testing.assert_allclose(tensors.numpy(), expected[..., i], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_pairs_equal_torchvision(kind):
    a, b = (torch.from_numpy(random_boxes(number, seed)).to(kind) for number, seed in ((23, 0), (31, 1)))
    b[:5] = a[:5]
    for ours, theirs in zip(MEASURES, IN_TORCHVISION, strict=True):
        got, want = ours(a, b, pairwise=True), theirs(a, b)
        assert got.dtype == kind
        torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
    torch.testing.assert_close(boxes.box_area(a), tv.box_area(a))


def test_losses_and_their_gradients_equal_torchvision():
    for ours, theirs in zip(MEASURES[1:], LOSSES[1:], strict=True):
        a, b = (torch.from_numpy(random_boxes(200, seed)) for seed in (2, 3))
        mine, other = a.clone().requires_grad_(), a.clone().requires_grad_()
        loss, want = 1 - ours(mine, b), theirs(other, b)
        torch.testing.assert_close(loss, want, rtol=0, atol=1e-6)
        loss.sum().backward()
        want.sum().backward()
        torch.testing.assert_close(mine.grad, other.grad, rtol=0, atol=1e-6)


@pytest.mark.parametrize("measure", MEASURES[:3])  # the gradient of CIoU leaves out that of its weight alpha
def test_gradients_equal_finite_differences_of_the_measure(measure):
    a, b = (torch.from_numpy(random_boxes(12, seed)) for seed in (4, 5))
    assert torch.autograd.gradcheck(lambda x: measure(x, b), a.requires_grad_())


@pytest.mark.parametrize("measure", MEASURES)
def test_values_and_gradients_of_degenerate_boxes_are_finite(measure):
    point, line = [3.0, 3, 3, 3], [1.0, 5, 1, 9]
    swapped, proper, far = [9.0, 9, 2, 2], [0.0, 0, 4, 4], [1e6, 1e6, 1e6, 1e6]
    rows = torch.tensor([point, line, swapped, proper, far], dtype=torch.float64, requires_grad=True)
    values = measure(rows, rows.detach(), pairwise=True)
    values.sum().backward()
    assert torch.isfinite(values).all()
    assert torch.isfinite(rows.grad).all()
    # with swapped edges there is no area to cover, but an enclosing box
    assert measure(rows, rows.detach()).tolist() == [0, 0, -1 if measure is boxes.generalized_box_iou else 0, 1, 0]


def test_boxes_that_do_not_meet_are_drawn_together_by_all_but_plain_iou():
    a = torch.tensor([[0.0, 0, 10, 10]], requires_grad=True)
    b = torch.tensor([[30.0, 0, 40, 10]])
    for measure in MEASURES:
        (gradient,) = torch.autograd.grad(measure(a, b).sum(), a)
        assert (gradient[0, 2] > 0) == (measure is not boxes.box_iou)


def test_leading_axes_broadcast_and_single_boxes_work():
    a, b = random_boxes(24, 6).reshape(2, 3, 4, 4), random_boxes(4, 7)
    for measure in MEASURES:
        got = measure(a, b)
        assert got.shape == (2, 3, 4)
        np.testing.assert_array_equal(got[1, 2], measure(a[1, 2], b))
        assert measure(a[0, 0, 0], b[0]).shape == ()
        pairs = measure(a, b, pairwise=True)
        assert pairs.shape == (2, 3, 4, 4)
        np.testing.assert_allclose(pairs[1, 0], measure(a[1, 0], b, pairwise=True), rtol=0, atol=1e-15)


@pytest.mark.parametrize("number", [20, 300])
def test_crowds_equal_pycocotools(number):
    coco = pytest.importorskip("pycocotools.mask", reason="pycocotools is the reference")
    a, b = np.floor(random_boxes(number, 8)), np.floor(random_boxes(number + 3, 9))
    b[:4, 2:] = b[:4, :2]
    a[:2] = b[:2]
    crowd = np.random.default_rng(0).random(number + 3) < 0.3
    sides = [np.concatenate([each[:, :2], each[:, 2:] - each[:, :2]], axis=1) for each in (a, b)]
    np.testing.assert_array_equal(
        boxes.box_iou(a, b, pairwise=True, crowd=crowd), coco.iou(*sides, crowd.astype(np.uint8))
    )
    tensors = boxes.box_iou(torch.from_numpy(a), torch.from_numpy(b), pairwise=True, crowd=crowd)
    np.testing.assert_allclose(tensors.numpy(), coco.iou(*sides, crowd.astype(np.uint8)), rtol=0, atol=1e-15)
    np.testing.assert_array_equal(
        boxes.box_iou(a[:5], b[:5], crowd=crowd[:5]),
        np.diagonal(coco.iou(sides[0][:5], sides[1][:5], crowd[:5].astype(np.uint8))),
    )


def test_the_compiled_kernel_equals_the_plain_formula():
    a, b = random_boxes(150, 10), random_boxes(170, 11)
    a[:3, 2:] = a[:3, :2] - 1
    compiled = boxes.box_iou(a, b, pairwise=True)
    np.testing.assert_allclose(compiled, boxes.box_iou(a[:, None], b[None]), rtol=0, atol=1e-15)


def test_half_precision_is_computed_in_single():
    a = torch.tensor([[0.0, 0, 1000, 1000]], dtype=torch.float16)
    for measure in MEASURES:
        result = measure(a, a)
        assert result.dtype == torch.float32
        assert result.item() == 1
    assert boxes.box_area(a.to(torch.bfloat16)).item() == 1e6


def test_whole_numbers_are_taken():
    square = [[0, 0, 2, 2]]
    assert boxes.box_iou(np.array(square), np.array([[1, 0, 3, 2]])).tolist() == [1 / 3]
    assert boxes.box_iou(torch.tensor(square), torch.tensor([[1, 0, 3, 2]])).item() == pytest.approx(1 / 3)


def test_boxes_of_volumes():
    a, b = np.array([0.0, 0, 0, 2, 2, 2]), np.array([1.0, 1, 1, 3, 3, 3])
    assert boxes.box_area(b) == 8
    assert boxes.box_iou(a, b) == 1 / 15
    assert boxes.generalized_box_iou(a, b) == pytest.approx(1 / 15 - 12 / 27)
    assert boxes.distance_box_iou(a, b) == pytest.approx(1 / 15 - 3 / 27)
    with pytest.raises(InputError, match="aspect ratio"):
        boxes.complete_box_iou(a, b)


def test_no_boxes():
    none = np.zeros((0, 4))
    for measure in MEASURES:
        assert measure(none, none).shape == (0,)
        assert measure(none, random_boxes(3, 0), pairwise=True).shape == (0, 3)
        assert measure(torch.zeros(0, 4), torch.ones(3, 4), pairwise=True).shape == (0, 3)


def test_wrong_shapes_are_told():
    four, five = np.zeros((2, 4)), np.zeros((2, 5))
    with pytest.raises(InputError, match=r"got shape \(2, 5\), expected \(\.\.\., 4\)"):
        boxes.box_area(five)
    with pytest.raises(InputError, match="got shape"):
        boxes.box_iou(np.float64(3), four)
    with pytest.raises(InputError, match="pairwise=True for all pairs"):
        boxes.generalized_box_iou(four, np.zeros((3, 4)))
    with pytest.raises(InputError, match=r"expected \(N, 4\) and \(M, 4\)"):
        boxes.box_iou(four, four[0], pairwise=True)
    with pytest.raises(InputError, match="one flag for each box of b"):
        boxes.box_iou(four, four, crowd=[True])


def test_arrays_need_no_torch():
    code = (
        "import sys, numpy as np; from everymask.ops.boxes import complete_box_iou as iou; "
        "iou(np.eye(4), np.eye(4)); assert not {'torch', 'numba'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
