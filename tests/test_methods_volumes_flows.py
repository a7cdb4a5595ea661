"""Volumes: Cellpose from three sides, and Omnipose in three dimensions, from labels to outputs and back."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from test_methods_omnipose import loss_by_hand
from torch import Tensor
from torch.nn import functional

from everymask.errors import InputError
from everymask.methods.base import Method
from everymask.methods.bottom_up.cellpose import Cellpose
from everymask.methods.bottom_up.omnipose import Omnipose
from everymask.ops.three_views import join_views
from everymask.types import LabelMap, Segments

matching = pytest.importorskip("stardist.matching").matching

Labels = NDArray[np.int32]


def ellipsoids(size: tuple[int, int, int] = (30, 44, 48), seed: int = 0, count: int = 200) -> Labels:
    """Ellipsoids in heaps, many of which touch and some of which are cut by the border."""
    random = np.random.default_rng(seed)
    ids = np.zeros(size, np.int32)
    places = np.indices(size)
    for _ in range(count):
        middle, radii = random.uniform(0, size).reshape(3, 1, 1, 1), random.uniform(5, 8, 3).reshape(3, 1, 1, 1)
        inside = (((places - middle) / radii) ** 2).sum(0) < 1
        if inside.sum() > 150 and (ids[inside] > 0).mean() < 0.12:
            ids[inside & (ids == 0)] = ids.max() + 1
    return ids


def rods(size: tuple[int, int, int] = (26, 40, 44)) -> Labels:
    """Bent rods side by side, which touch along their whole length."""
    z, y, x = np.indices(size).astype(float)
    ids = np.zeros(size, np.int32)
    for number in range(3):
        middle = 8 + 11 * number + 4 * np.sin(x / 9)
        ids[(np.hypot(z - 12, y - middle) < 6) & (ids == 0)] = number + 1
    return ids


def layer(size: tuple[int, int, int] = (16, 32, 32)) -> Labels:
    """Nine balls in a layer that touch each other."""
    middles = np.array([(8, y, x) for y in (5, 16, 26) for x in (5, 16, 26)])
    middles = middles + np.random.default_rng(0).uniform(-1, 1, middles.shape)
    away = np.sqrt(((np.indices(size)[:, None] - middles.T[..., None, None, None]) ** 2).sum(0))
    return np.where(away.min(0) < 6, away.argmin(0) + 1, 0).astype(np.int32)


def degenerate(size: tuple[int, int, int] = (16, 24, 32)) -> dict[str, Labels]:
    """Volumes with few objects or void, and how many objects are to be found."""
    empty, one, cut, part = (np.zeros(size, np.int32) for _ in range(4))
    one[4:12, 5:17, 6:20] = 7
    cut[:, 12:, 16:] = 1
    part[3:13, 2:14, 4:18] = 1
    part[8:] = -1
    pixel = empty.copy()
    pixel[5, 5, 5] = 1
    return {
        "empty": empty, "one object": one, "fills the volume": np.ones(size, np.int32), "cut by the border": cut,
        "void planes": part, "all void": np.full(size, -1, np.int32), "one voxel": pixel,
        "a single plane": one[8:9], "two planes": one[8:10],
    }  # fmt: skip


FOUND = {"one object": 1, "fills the volume": 1, "cut by the border": 1, "void planes": 1,
         "a single plane": 1, "two planes": 1}  # fmt: skip


def same(expected: Labels, found: Segments, threshold: float = 0.9) -> float:
    """Accuracy of what was found."""
    return matching(np.maximum(expected, 0), found.label_map(), thresh=threshold).accuracy


def logits(classes: Tensor, count: int) -> Tensor:
    """(..., count, ...) logits that are sure of classes (B, ...); void is background."""
    return 9.0 * functional.one_hot(classes.clamp(min=0), count).movedim(-1, 1).float()


# -- Cellpose: three views ---------------------------------------------------------------------------------------------


def views(ids: Labels, method: Cellpose, category: int | NDArray[np.int64] = 0) -> list[dict[str, Tensor]]:
    """What a network says of the planes along each axis that has learnt them by heart."""
    found = []
    for axis in range(3):
        targets = [
            method.targets(Segments(plane.shape, np.broadcast_to(category, max(ids.max(), 0)), LabelMap(plane.copy())))
            for plane in np.moveaxis(ids, axis, 0)
        ]
        stacked = {name: torch.stack([each[name] for each in targets]) for name in targets[0]}
        outputs = {"flow": stacked["flow"], "cell": 12 * stacked["cell"] - 6}
        if "category" in stacked:
            outputs["category"] = logits(stacked["category"], method.classes + 1)
        found.append(outputs)
    return found


def tiny(**options: Any) -> Cellpose:
    return Cellpose(**({"base": 4, "depth": 1} | options))


@pytest.mark.parametrize("seed", [0, 1])
def test_touching_objects_come_back_from_perfect_planes(seed: int) -> None:
    ids, method = ellipsoids(seed=seed), tiny()
    (found,) = method.decode(join_views(views(ids, method)), [ids.shape])
    assert ids.max() > 30 and len(found) == ids.max()
    assert same(ids, found) == 1
    assert found.score is not None and found.score.min() > 0.95


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_objects_of_volumes_are_those_of_the_official_program(strength: float) -> None:
    dynamics = pytest.importorskip("cellpose.dynamics", reason="the official program (cellpose) is not installed")
    ids, method = ellipsoids(seed=3), tiny(max_fraction=0.4)
    random = np.random.default_rng(0)
    method.thresholds["foreground"] = 0.5
    given = []
    for view in views(ids, method):
        errors = {name: ndimage.gaussian_filter(random.normal(size=each.shape), (1, 0, 1, 1))
                  for name, each in view.items()}  # fmt: skip
        given.append({name: each + torch.from_numpy(strength * (1 if name == "flow" else 3)
                                                    * errors[name] / errors[name].std()).float()
                      for name, each in view.items()})  # fmt: skip
    outputs = join_views(given)
    (found,) = method.decode(outputs, [ids.shape])
    options: dict[str, Any] = {"cellprob_threshold": 0.5, "do_3D": True, "min_size": 15}
    if "device" in inspect.signature(dynamics.compute_masks).parameters:
        options["device"] = torch.device("cpu")
    flow, cell = outputs["flow"][0].numpy(), outputs["cell"][0, 0].numpy()
    expected = dynamics.compute_masks(flow, cell, **options)
    expected = np.asarray(expected[0] if isinstance(expected, tuple) else expected, np.int32)
    assert expected.max() == len(found) > 30
    assert same(expected, found) >= 0.99


def test_most_pixels_of_all_views_decide_the_category() -> None:
    ids = ellipsoids((20, 30, 34), 1)
    method, category = tiny(classes=3), np.arange(ids.max()) % 3
    given = views(ids, method, category)
    torch.manual_seed(0)
    for view in given:
        view["category"] += 6 * torch.randn(view["category"].shape)
    given[1]["category"] = given[1]["category"].flip(1)  # one of the views is wrong throughout
    (found,) = method.decode(join_views(given), [ids.shape])
    assert same(ids, found) == 1
    for number, kind in enumerate(found.category):
        assert kind == category[np.bincount(ids[found.label_map() == number + 1]).argmax() - 1]


@pytest.mark.parametrize("name", degenerate())
def test_degenerate_volumes_from_three_sides(name: str) -> None:
    ids = degenerate()[name]
    method = tiny(classes=2)
    compact = np.where(ids > 0, 1, ids).astype(np.int32)
    given = views(compact, method, 1)
    padded = [{key: functional.pad(each, (0, 3, 0, 2)) for key, each in view.items()} for view in given]
    (found,) = method.decode(join_views(padded), [ids.shape])
    assert found.size == ids.shape and len(found) == FOUND.get(name, 0)
    if len(found):
        assert same(compact, found) == 1 and list(found.category) == [1]


def test_numbers_that_are_none_do_no_harm() -> None:
    ids = degenerate()["one object"]
    method = tiny()
    given = views((ids > 0).astype(np.int32), method)
    given[0]["flow"][8, :, 8:10, 8:10] = torch.nan
    given[2]["cell"][9, 0, 8, 8] = torch.nan
    (found,) = method.decode(join_views(given), [ids.shape])
    assert len(found) >= 1 and found.score is not None and np.isfinite(found.score).all()


def test_holes_are_filled_in_all_three_dimensions() -> None:
    # A tunnel is no hole in a volume, although it is one in the planes across it.
    ids = np.zeros((20, 24, 24), np.int32)
    ids[2:18, 3:21, 3:21] = 1
    method = tiny()
    given = views(ids, method)
    hollow = ids.copy()
    hollow[9:11, 10:12, 10:12], hollow[:, 6, 6] = 0, 0
    logit = torch.from_numpy(np.where(hollow > 0, 6.0, -6.0)).float()
    outputs = join_views(given) | {"cell": logit[None, None]}
    (found,) = method.decode(outputs, [ids.shape])
    expected = ids.copy()
    expected[:, 6, 6] = 0
    np.testing.assert_array_equal(found.label_map() > 0, expected > 0)


# -- Omnipose in three dimensions --------------------------------------------------------------------------------------


def volumetric(**options: Any) -> Omnipose:
    return Omnipose(**({"channels": 1, "base": 4, "depth": 1, "dimensions": 3} | options))


def perfect(method: Omnipose, segments: Segments) -> dict[str, Tensor]:
    """What a network says that has learnt the targets."""
    targets = {name: value[None] for name, value in method.targets(segments).items()}
    outputs = {name: targets[name] for name in ("flow", "distance")}
    if "boundary" in targets:
        outputs["boundary"] = torch.logit(targets["boundary"], eps=1e-4)
    if "category" in targets:
        outputs["category"] = logits(targets["category"], method.classes + 1)
    return outputs


@pytest.mark.parametrize("name", ["ellipsoids", "rods"])
@pytest.mark.parametrize("clustering", ["always", "small"])
def test_touching_bodies_and_their_categories_come_back(name: str, clustering: str) -> None:
    ids = ellipsoids((24, 40, 44), 1) if name == "ellipsoids" else rods()
    category = np.arange(ids.max()) % 3
    method = volumetric(classes=3, clustering=clustering)
    (found,) = method.decode(perfect(method, Segments.from_label_map(ids, category)), [ids.shape])
    # Without clusters the ends of two bodies may share a pixel, or those of one have a gap.
    assert same(ids, found) >= (1 if clustering == "always" else 0.95)
    assert found.score is not None and found.score.min() > 0.95 and found.score.max() <= 1
    for number, kind in enumerate(found.category):
        assert kind == category[np.bincount(ids[found.label_map() == number + 1]).argmax() - 1]


def test_targets_of_volumes_are_what_they_are_said_to_be() -> None:
    skimage = pytest.importorskip("skimage.segmentation")
    ids = ellipsoids((20, 30, 34), 2)
    ids[:, :6, :6] = -1
    targets = volumetric(classes=2).targets(Segments(ids.shape, np.arange(ids.max()) % 2, LabelMap(ids)))
    assert {name: tuple(value.shape) for name, value in targets.items()} == {
        "flow": (3, 20, 30, 34), "distance": (1, 20, 30, 34), "weight": (1, 20, 30, 34), "boundary": (1, 20, 30, 34),
        "valid": (1, 20, 30, 34), "category": (20, 30, 34),
    }  # fmt: skip
    inside = ids > 0
    distance = targets["distance"][0].numpy()
    # 3-D: the diameter is eight times the mean distance.
    np.testing.assert_allclose(distance[~inside], -4 * distance[inside].mean(), rtol=1e-5)
    lengths = np.sqrt((targets["flow"].numpy() ** 2).sum(0))
    assert not lengths[~inside].any()
    assert np.mean(np.isclose(lengths[inside], 5, rtol=1e-5)) > 0.99
    expected = skimage.find_boundaries(ids, mode="inner", connectivity=1) & inside
    np.testing.assert_array_equal(targets["boundary"][0] > 0, expected)
    nearest = np.minimum(ndimage.distance_transform_edt(~inside), 9) / 9
    weight = ndimage.gaussian_filter(1 - nearest, 1, mode="nearest") + 0.5
    np.testing.assert_allclose(targets["weight"][0], weight, atol=1e-5)


def test_the_flow_of_a_ball_points_to_its_middle_in_all_three_dimensions() -> None:
    away = np.indices((23, 23, 23)) - 11.0
    length = np.sqrt((away**2).sum(0))
    ids = (length < 10).astype(np.int32)
    targets = volumetric().targets(Segments.from_label_map(ids, 0))
    cosine = -(targets["flow"].numpy() * away).sum(0) / np.maximum(5 * length, 1e-9)
    assert cosine[(length > 2) & (length < 9)].min() > 0.98
    # Measured 0.1 on average, 0.37 at most; the tip is rounded.
    error = np.abs(targets["distance"][0].numpy() - ndimage.distance_transform_edt(ids))
    assert error[ids > 0].mean() < 0.15 and error[(length > 3) & (ids > 0)].max() < 0.5


def test_the_loss_of_volumes_is_the_formula() -> None:
    random = np.random.default_rng(0)
    ids = ellipsoids((14, 20, 22), 4)
    ids[:4, :5, :5] = -1
    method = volumetric()
    targets = {key: torch.stack([value, value]) for key, value in
               method.targets(Segments(ids.shape, np.zeros(ids.max(), int), LabelMap(ids))).items()}  # fmt: skip
    flow = random.normal(0, 3, (2, 3, 14, 20, 22))
    distance, edge = random.normal(0, 3, (2, 2, 1, 14, 20, 22))
    outputs = {"flow": flow, "distance": distance, "boundary": edge}
    terms = method.loss({key: torch.tensor(each).float() for key, each in outputs.items()}, targets)
    expected = loss_by_hand(flow, distance, edge, {key: value.double().numpy() for key, value in targets.items()})
    assert set(terms) == set(expected)
    for name, value in expected.items():
        assert float(terms[name]) == pytest.approx(value, rel=2e-3), name


@pytest.mark.parametrize("name", degenerate())
def test_degenerate_volumes_train_and_decode(name: str) -> None:
    ids = degenerate()[name]
    ids = np.where(ids > 0, 1, ids).astype(np.int32)
    torch.manual_seed(0)
    method = volumetric(classes=2, flat=1)
    segments = Segments(ids.shape, [1] * max(int(ids.max()), 0), LabelMap(ids))
    targets = {key: value[None] for key, value in method.targets(segments).items()}
    assert all(torch.isfinite(value).all() for value in targets.values())
    terms = method.training_loss(torch.rand(1, 1, *ids.shape), targets)
    assert all(torch.isfinite(term) for term in terms.values())
    sum(terms.values(), torch.zeros(())).backward()
    assert all(torch.isfinite(each.grad).all() for each in method.parameters() if each.grad is not None)
    outputs = {key: functional.pad(each, (0, 8, 0, 4, 0, 3)) for key, each in perfect(method, segments).items()}
    (found,) = method.decode(outputs, [ids.shape])
    assert found.size == ids.shape and len(found) == FOUND.get(name, 0)
    if len(found):
        np.testing.assert_array_equal(found.label_map(), np.maximum(ids, 0))
    if name == "all void":
        assert all(float(term.detach()) == 0 for term in terms.values())


def test_turned_volumes_are_turned_back_with_their_vectors() -> None:
    ids = ellipsoids((16, 32, 32), 5)
    method = volumetric()
    straight = method.targets(Segments.from_label_map(ids, 0))
    for flip in (False, True):
        for turns in range(4):
            turned = np.rot90(ids, turns, (-2, -1))
            turned = np.ascontiguousarray(np.flip(turned, -1) if flip else turned)
            outputs = {key: each[None] for key, each in method.targets(Segments.from_label_map(turned, 0)).items()}
            undone = method.undo_dihedral(outputs, flip, turns)
            torch.testing.assert_close(undone["distance"][0], straight["distance"], atol=1e-4, rtol=0)
            # On ridges the direction of a gradient of nearly 0 is a matter of rounding.
            difference = (undone["flow"][0] - straight["flow"]).abs().amax(0)
            assert float((difference > 1e-2).float().mean()) < 0.01


@pytest.mark.parametrize(("fold", "flat"), [(1, 0), (2, 1)])
def test_the_context_of_volumes_covers_the_receptive_field(fold: int, flat: int) -> None:
    torch.manual_seed(0)
    method = volumetric(fold=fold, flat=flat, base=2, norm="none", depth=1).double().eval()
    for parameter in method.parameters():
        torch.nn.init.uniform_(parameter, 0.01, 0.1)  # positive weights: nothing cancels, no unit dies
    sides = [2 * reach + step + -(2 * reach + step) % (2 * step) for reach, step in
             ((method.depth_context, method.depth_stride), (method.context, method.stride))]  # fmt: skip
    volume = torch.rand(1, 1, sides[0], sides[1], sides[1], dtype=torch.double, requires_grad=True)
    depth, middle = sides[0] // 2, sides[1] // 2
    outputs = method(volume)
    assert {name: tuple(each.shape) for name, each in outputs.items()} == {
        name: (1, count, *volume.shape[2:]) for name, count in (("flow", 3), ("distance", 1), ("boundary", 1))
    }
    outputs["distance"][0, 0, depth, middle, middle].backward()
    assert volume.grad is not None
    reached = torch.nonzero(volume.grad[0, 0])
    reach = (reached - torch.tensor([depth, middle, middle])).abs().amax(0)
    assert 3 <= int(reach[0]) <= method.depth_context - 4
    assert 4 <= int(reach[1:].max()) <= method.context - 4


def learn(method: Method, image: Tensor, segments: Segments, steps: int) -> Segments:
    """Fits a network to one volume, in one piece, and decodes what it then says of it."""
    targets = {key: value[None] for key, value in method.targets(segments).items()}
    optimiser = torch.optim.Adam(method.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=steps)
    for _ in range(steps):
        optimiser.zero_grad()
        sum(method.training_loss(image, targets).values(), torch.zeros(())).backward()
        optimiser.step()
        schedule.step()
    method.eval()
    with torch.inference_mode():
        return method.decode(method(image), [segments.size])[0]


def test_omnipose_learns_touching_bodies_by_heart() -> None:
    torch.manual_seed(0)
    ids = layer()
    assert ids.max() == 9
    edges = np.stack([ndimage.distance_transform_edt(np.pad(ids == n + 1, 1))[1:-1, 1:-1, 1:-1]
                      for n in range(ids.max())]).sum(0)  # fmt: skip
    noise = np.random.default_rng(0).normal(0, 0.05, ids.shape)
    image = torch.from_numpy(np.minimum(edges, 4) / 4 + noise).float()[None, None]
    segments = Segments.from_label_map(ids, np.arange(ids.max()) % 2)
    found = learn(volumetric(classes=2, base=16, depth=2, flat=1), image, segments, 80)
    assert same(ids, found, 0.5) >= 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dimensions": 4}, "2 .images. or 3 .volumes."),
        ({"dimensions": 2, "flat": 1}, "flat is for volumes"),
        ({"flat": 2}, "flat counts poolings"),
        ({"backbone": "resnet10t"}, "for images"),
    ],
)
def test_wrong_options_of_volumes_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        volumetric(**options)
    assert "\n" not in str(caught.value)
