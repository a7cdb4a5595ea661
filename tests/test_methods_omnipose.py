"""Omnipose: from labels to targets and back, the loss, thresholds, learning, and its fields beside another's."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from touching_toys import overfit, picture, touching

from everymask.errors import InputError
from everymask.methods.bottom_up.omnipose import SCALE, Omnipose, trajectories
from everymask.ops.eikonal import FLOW_LENGTH
from everymask.predict.predictor import Predictor
from everymask.types import LabelMap, Segments

matching = pytest.importorskip("stardist.matching").matching


def small(**options: object) -> Omnipose:
    settings = {"channels": 1, "base": 4, "depth": 1} | options
    return Omnipose(**settings)  # type: ignore[arg-type]


def perfect(method: Omnipose, segments: Segments) -> dict[str, Tensor]:
    """What a network says that has learnt the targets."""
    targets = {name: value[None] for name, value in method.targets(segments).items()}
    outputs = {name: targets[name] for name in ("flow", "distance")}
    if "boundary" in targets:
        outputs["boundary"] = torch.logit(targets["boundary"], eps=1e-4)
    if "category" in targets:
        classes = targets["category"].clamp(min=0)
        outputs["category"] = 9.0 * torch.nn.functional.one_hot(classes, method.classes + 1).permute(0, 3, 1, 2)
    return outputs


@pytest.mark.parametrize("classes", [1, 3])
def test_touching_objects_and_their_categories_come_back_from_perfect_outputs(classes: int) -> None:
    ids = touching((120, 101), 1)
    category = np.arange(ids.max()) % classes
    method = small(classes=classes)
    (found,) = method.decode(perfect(method, Segments.from_label_map(ids, category)), [ids.shape])
    kept = np.isin(ids, 1 + np.flatnonzero(np.bincount(ids.ravel())[1:] >= method.min_size)) * ids
    assert matching(kept, found.label_map(), thresh=0.9).accuracy == 1
    assert found.score is not None
    assert (found.score > 0.95).all()
    assert (found.score <= 1).all()
    table = np.concatenate([[-1], category])
    for number in range(len(found)):
        inside = ids[found.label_map() == number + 1]
        assert table[np.bincount(inside).argmax()] == found.category[number]


def test_padding_is_not_decoded() -> None:
    method = small()
    outputs = perfect(method, Segments.from_label_map(touching((64, 64), 1)))
    whole, part = method.decode({key: torch.cat([each, each]) for key, each in outputs.items()}, [(64, 64), (41, 50)])
    (expected,) = method.decode({key: each[..., :41, :50] for key, each in outputs.items()}, [(41, 50)])
    assert whole.size == (64, 64)
    np.testing.assert_array_equal(part.label_map(), expected.label_map())
    assert len(part) > 5


def test_targets_are_what_they_are_said_to_be() -> None:
    skimage = pytest.importorskip("skimage.segmentation")
    assert SCALE == FLOW_LENGTH
    ids = touching((80, 90), 2)
    ids[60:, :20] = -1
    targets = small(classes=2).targets(Segments(ids.shape, np.arange(ids.max()) % 2, LabelMap(ids)))
    assert {name: tuple(value.shape) for name, value in targets.items()} == {
        "flow": (2, 80, 90), "distance": (1, 80, 90), "weight": (1, 80, 90), "boundary": (1, 80, 90),
        "valid": (1, 80, 90), "category": (80, 90),
    }  # fmt: skip
    inside = ids > 0
    distance = targets["distance"][0].numpy()
    # 2-D: the diameter is six times the mean distance.
    np.testing.assert_allclose(distance[~inside], -3 * distance[inside].mean(), rtol=1e-5)
    lengths = np.hypot(*targets["flow"].numpy())
    assert not lengths[~inside].any()
    assert np.mean(np.isclose(lengths[inside], 5, rtol=1e-5)) > 0.99
    expected = skimage.find_boundaries(ids, mode="inner", connectivity=1) & inside
    np.testing.assert_array_equal(targets["boundary"][0] > 0, expected)
    nearest = np.minimum(ndimage.distance_transform_edt(~inside), 9) / 9
    np.testing.assert_allclose(targets["weight"][0], ndimage.gaussian_filter(1 - nearest, 1, mode="nearest") + 0.5,
                               atol=1e-5)  # fmt: skip


def loss_by_hand(
    flow: NDArray[np.float64],
    distance: NDArray[np.float64],
    logits: NDArray[np.float64],
    truth: dict[str, NDArray[np.float64]],
) -> dict[str, float]:
    """The terms in plain numpy, with scipy's interpolation; arrays (B, channels, H, W)."""
    valid, weight, true_flow = truth["valid"], truth["weight"] * truth["valid"], truth["flow"]
    count = valid.sum()

    def squared(error: NDArray[np.float64]) -> float:
        return float((weight * (error**2).mean(1, keepdims=True)).sum() / count)

    dot = (flow * true_flow).sum(1, keepdims=True)
    lengths = [np.sqrt((each**2).sum(1, keepdims=True)) for each in (flow, true_flow)]
    inside = (lengths[1] > 0) & (valid > 0)
    cosine = dot[inside] / (lengths[0] * lengths[1])[inside]
    probability = 1 / (1 + np.exp(-logits))
    entropy = -(truth["boundary"] * np.log(probability) + (1 - truth["boundary"]) * np.log(1 - probability))

    def follow(field: NDArray[np.float64]) -> list[NDArray[np.float64]]:
        step = np.sqrt(2) / 5
        moved = []
        for vectors in field:
            places = np.indices(vectors.shape[1:]) + step * vectors
            there = [ndimage.map_coordinates(each, places, order=1, mode="nearest") for each in vectors]
            moved.append((step * vectors, step * vectors + step * np.array(there)))
        return [np.array(each) for each in zip(*moved, strict=True)]

    ends = [squared(a - b) for a, b in zip(follow(flow), follow(true_flow), strict=True)]
    return {
        "flow": 2 * 5 * squared((flow - true_flow) / 5),
        "direction": 2 * float((1 - cosine**2).mean()),
        "length": 2 * squared((lengths[0] - lengths[1]) / 5),
        "distance": 2 * squared((distance - truth["distance"]) / 5),
        "boundary": 2 * float((entropy * valid).sum() / count),
        "trajectory": float(np.mean(ends)),
    }


def test_loss_is_the_formula() -> None:
    random = np.random.default_rng(0)
    method = small()
    ids = touching((40, 36), 4)
    ids[:9, :9] = -1
    targets = {key: torch.stack([value, value]).double() for key, value in
               method.targets(Segments(ids.shape, np.zeros(ids.max(), int), LabelMap(ids))).items()}  # fmt: skip
    flow = random.normal(0, 3, (2, 2, 40, 36))
    distance, logits = random.normal(0, 3, (2, 2, 1, 40, 36))
    terms = method.loss(
        {key: torch.tensor(each, dtype=torch.float32) for key, each in
         {"flow": flow, "distance": distance, "boundary": logits}.items()},
        {key: value.float() for key, value in targets.items()},
    )  # fmt: skip
    expected = loss_by_hand(flow, distance, logits, {key: value.numpy() for key, value in targets.items()})
    assert set(terms) == set(expected)
    for name, value in expected.items():
        assert float(terms[name]) == pytest.approx(value, rel=2e-3), name


def test_perfect_outputs_have_no_loss_but_the_cross_entropy() -> None:
    method = small()
    segments = Segments.from_label_map(touching((48, 48), 5))
    targets = {key: value[None] for key, value in method.targets(segments).items()}
    terms = method.loss(perfect(method, segments), targets)
    assert all(float(term) < 1e-3 for term in terms.values())


@pytest.mark.parametrize("axes", [2, 3])
def test_trajectories_in_a_turning_field_follow_the_circle(axes: int) -> None:
    size = (5, 41, 41)[3 - axes :]
    line = torch.arange(41.0) - 20
    rows, columns = torch.meshgrid(line, line, indexing="ij")
    flow = torch.zeros(1, axes, *size)
    flow[0, -2], flow[0, -1] = columns, -rows  # a quarter turn takes the time pi / 2
    ends = trajectories(flow, steps=100, step=np.pi / 200)[-1]
    # Explicit steps spiral outwards by a factor of (1 + step^2)^(1/2) each, and turn by atan(step).
    factor, angle = (1 + (np.pi / 200) ** 2) ** 50, 100 * np.arctan(np.pi / 200)
    down = factor * (np.cos(angle) * rows + np.sin(angle) * columns) - rows
    right = factor * (np.cos(angle) * columns - np.sin(angle) * rows) - columns
    inner = rows**2 + columns**2 < 15**2
    for found, expected in ((ends[0, -2], down), (ends[0, -1], right)):
        torch.testing.assert_close(found[..., inner], expected[inner].expand_as(found[..., inner]), atol=1e-3, rtol=0)


def test_the_threshold_is_a_distance() -> None:
    method = small(min_size=0)
    outputs = perfect(method, Segments.from_label_map(touching((80, 80), 2)))
    assert set(method.thresholds) == set(method.tunable)
    areas = []
    for threshold in (-2.0, 0.0, 3.0, 100.0):
        method.thresholds = {"mask": threshold}
        (found,) = method.decode(outputs, [(80, 80)])
        areas.append(int((found.label_map() > 0).sum()))
        distance = outputs["distance"][0, 0]
        assert areas[-1] <= int((distance > threshold - 1).sum())
    assert areas[0] == areas[1] > areas[2] > areas[3] == 0


def degenerate() -> dict[str, NDArray[np.int32]]:
    one = np.zeros((32, 32), np.int32)
    one[6:26, 3:29] = 1
    fragmented = one.copy()
    fragmented[:, 14:18] = 0
    pixel = np.zeros((32, 32), np.int32)
    pixel[5, 5] = 1
    cut = np.zeros((32, 32), np.int32)
    cut[:, 20:] = 1
    return {
        "empty": np.zeros((32, 32), np.int32),
        "one object": one,
        "an object that fills the image": np.ones((32, 32), np.int32),
        "cut by the border": cut,
        "fragmented": fragmented,
        "one pixel": pixel,
        "void": np.full((32, 32), -1, np.int32),
    }


@pytest.mark.parametrize("name", degenerate())
def test_degenerate_images_train_and_decode(name: str) -> None:
    ids = degenerate()[name]
    method = small(classes=2)
    segments = Segments(ids.shape, [1] * max(int(ids.max()), 0), LabelMap(ids))
    targets = {key: value[None] for key, value in method.targets(segments).items()}
    assert all(torch.isfinite(value).all() for value in targets.values())
    terms = method.training_loss(torch.rand(1, 1, 32, 32), targets)
    assert all(torch.isfinite(term) for term in terms.values())
    sum(terms.values(), torch.zeros(())).backward()
    assert all(torch.isfinite(each.grad).all() for each in method.parameters() if each.grad is not None)
    (found,) = method.decode(perfect(method, segments), [ids.shape])
    expected = {"one object": 1, "an object that fills the image": 1, "cut by the border": 1, "fragmented": 2}
    assert len(found) == expected.get(name, 0)
    if len(found) == 1:
        np.testing.assert_array_equal(found.label_map(), ids)
    if name == "void":
        assert all(float(term.detach()) == 0 for term in terms.values())


def test_zero_outputs_have_finite_gradients() -> None:
    method = small()
    targets = {key: value[None] for key, value in
               method.targets(Segments.from_label_map(touching((32, 32), 1))).items()}  # fmt: skip
    outputs = {key: torch.zeros(1, count, 32, 32, requires_grad=True)
               for key, count in (("flow", 2), ("distance", 1), ("boundary", 1))}  # fmt: skip
    sum(method.loss(outputs, targets).values(), torch.zeros(())).backward()
    for each in outputs.values():
        assert each.grad is not None
        assert torch.isfinite(each.grad).all()


def test_outputs_that_are_not_finite_are_told() -> None:
    method = small()
    outputs = perfect(method, Segments.from_label_map(touching((32, 32), 1)))
    outputs["flow"][0, 0, 3, 3] = torch.nan
    with pytest.raises(InputError, match="not finite"):
        method.decode(outputs, [(32, 32)])


def test_crowds_and_void_teach_nothing() -> None:
    ids = touching((64, 64), 5)
    crowd = np.zeros(ids.max(), bool)
    crowd[[0, 3]] = True
    ids[:, 50:] = -1
    method = small(classes=2).eval()
    segments = Segments(ids.shape, np.zeros(len(crowd), int), LabelMap(ids), crowd=crowd)
    targets = {key: value[None] for key, value in method.targets(segments).items()}
    excluded = torch.from_numpy(np.isin(ids, [1, 4, -1]))
    assert torch.equal(targets["valid"][0, 0] == 0, excluded)
    outputs = method(torch.rand(1, 1, 64, 64))
    changed = {key: value + 3 * excluded for key, value in outputs.items()}
    with torch.no_grad():
        first, second = method.loss(outputs, targets), method.loss(changed, targets)
    # Trajectories interpolate: those of the last pixels beside void may look into it.
    assert all(float(first[key]) == pytest.approx(float(second[key]), rel=1e-6) for key in first if key != "trajectory")


def test_test_time_augmentation_turns_maps_and_vectors_back() -> None:
    ids = touching((64, 64), 6)
    method = small()
    straight = method.targets(Segments.from_label_map(ids))
    for flip in (False, True):
        for turns in range(4):
            turned = np.rot90(ids, turns)
            turned = np.ascontiguousarray(np.flip(turned, -1) if flip else turned)
            outputs = {key: each[None] for key, each in method.targets(Segments.from_label_map(turned)).items()}
            undone = method.undo_dihedral(outputs, flip, turns)
            torch.testing.assert_close(undone["distance"][0], straight["distance"], atol=1e-4, rtol=0)
            # On ridges the direction of a gradient of nearly 0 is a matter of rounding.
            difference = (undone["flow"][0] - straight["flow"]).abs().amax(0)
            assert float((difference > 1e-2).float().mean()) < 0.01


@pytest.mark.parametrize("fold", [1, 2])
def test_the_context_covers_the_receptive_field(fold: int) -> None:
    torch.manual_seed(0)
    method = small(fold=fold, base=3, norm="none").double().eval()
    for parameter in method.parameters():
        torch.nn.init.uniform_(parameter, 0.01, 0.1)  # positive weights: nothing cancels, no unit dies
    side = 2 * (method.context + method.stride)
    side += -side % method.stride
    image = torch.rand(1, 1, side, side, dtype=torch.double, requires_grad=True)
    middle = side // 2
    method(image)["distance"][0, 0, middle, middle].backward()
    assert image.grad is not None
    reached = torch.nonzero(image.grad[0, 0].abs().sum(0))[:, 0]
    assert 4 <= int((reached - middle).abs().max()) <= method.context - 4


@pytest.mark.parametrize("boundary", [True, False])
def test_backbones_replace_the_unet(boundary: bool) -> None:
    method = Omnipose(backbone="resnet10t", channels=5, boundary=boundary).eval()
    outputs = method(torch.rand(1, 5, 64, 96))
    shapes = {"flow": (1, 2, 64, 96), "distance": (1, 1, 64, 96)}
    assert {key: tuple(value.shape) for key, value in outputs.items()} == shapes | (
        {"boundary": (1, 1, 64, 96)} if boundary else {}
    )
    assert ("boundary" in method.targets(Segments.from_label_map(touching((32, 32), 0)))) == boundary


def test_it_learns_to_tell_touching_objects_apart(tmp_path: Path) -> None:
    torch.manual_seed(0)
    method = small(base=8, depth=2)
    truth, found = overfit(method, tmp_path, rotate=0.0)
    for ids, segments in zip(truth, found, strict=True):
        assert matching(ids, segments.label_map(), thresh=0.5).accuracy >= 0.9
    ids = touching((160, 192), 7)
    image = picture(ids, 7)
    whole = Predictor(method, method.preprocessing_of(), "cpu", "float32")(image)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no object is cut by a tile
        tiled = Predictor(method, method.preprocessing_of(), "cpu", "float32", tile=128, overlap=64)(image)
    assert matching(ids, whole.label_map(), thresh=0.5).accuracy > 0.6
    assert matching(whole.label_map(), tiled.label_map(), thresh=0.9).accuracy == 1
    turned = Predictor(method, method.preprocessing_of(), "cpu", "float32", tta=True)(image)
    assert matching(ids, turned.label_map(), thresh=0.5).accuracy > 0.6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clustering": "alway"}, "did you mean 'always'"),
        ({"steps": -1}, "steps"),
        ({"min_size": -3}, "min_size"),
        ({"fold": 3}, "fold must be 1, 2 or 4"),
        ({"classes": 0}, "classes"),
        ({"backbone": "resnet5000"}, "resnet5000"),
    ],
)
def test_wrong_options_are_told(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Omnipose(**options)  # type: ignore[arg-type]
