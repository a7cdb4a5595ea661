"""StarDist for volumes: targets, network, decoding and weights against the official program, and learning."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from star_volume_toys import blurred, nuclei
from torch.nn import functional

from everymask.errors import InputError
from everymask.methods.bottom_up.stardist import StarDist
from everymask.methods.foreign import load_foreign
from everymask.types import LabelMap, Segments

Outputs = dict[str, torch.Tensor]
TINY: dict[str, Any] = {"channels": 1, "base": 4, "depth": 1, "features": 8, "norm": "none", "dimensions": 3}


def perfect(method: StarDist, segments: Segments) -> Outputs:
    """Outputs that say the targets."""
    targets = method.targets(segments)
    outputs = {
        "probability": torch.logit(targets["probability"], eps=1e-6)[None],
        "distances": targets["distances"][None],
    }
    if "category" in targets:
        outputs["category"] = functional.one_hot(targets["category"].clamp(min=0), method.classes + 1).movedim(-1, 0)[
            None
        ]
    return outputs


def accuracy(truth: NDArray[np.int32], found: Segments, threshold: float) -> float:
    matching = pytest.importorskip("stardist.matching")
    return matching.matching(truth, found.label_map(), thresh=threshold).accuracy


# --- options


def test_options_of_images_are_as_before() -> None:
    """Saved models name 32 rays and none of the options of volumes."""
    old = StarDist(classes=1, channels=3, rays=32, grid=2, base=4, depth=1, convolutions=2, features=8, norm="none")
    new = StarDist(grid=2, base=4, depth=1, features=8, norm="none")
    assert (new.rays, new.dimensions, new.depth_stride, new.depth_grid) == (32, 2, 1, 1)
    shapes = {name: value.shape for name, value in old.state_dict().items()}
    assert {name: value.shape for name, value in new.state_dict().items()} == shapes
    assert (old.stride, old.context) == (new.stride, new.context)


def test_a_configuration_from_before_volumes_means_images() -> None:
    with resources.as_file(resources.files("everymask") / "assets" / "images" / "fluorescence.mask.tif") as path:
        import tifffile

        truth = tifffile.imread(path)[:128, :128].astype(np.int32)
    method = StarDist(classes=1, channels=3, rays=32, grid=2, base=32, depth=3, features=128, norm="batch")
    assert (method.rays, method.dimensions) == (32, 2)
    found = method.decode(perfect(method, Segments.from_label_map(truth)), [(128, 128)])[0]
    assert accuracy(truth, found, 0.5) > 0.7


@pytest.mark.parametrize(
    ("options", "depth_grid", "depth_stride"),
    [
        ({"grid": 1}, 1, 4),
        ({"grid": 2}, 2, 8),
        ({"grid": 4}, 4, 16),
        ({"grid": 2, "anisotropy": 2.0}, 1, 4),
        ({"grid": 4, "anisotropy": 2.0, "depth_grid": 2, "flat": 1}, 2, 4),
    ],
    ids=str,
)
def test_sizes_of_outputs_and_what_they_depend_on(options: dict[str, Any], depth_grid: int, depth_stride: int) -> None:
    torch.manual_seed(0)
    method = StarDist(**(TINY | {"rays": 5, "depth": 2} | options)).eval()
    assert (method.depth_grid, method.depth_stride) == (depth_grid, depth_stride)
    planes = 2 * method.depth_context // depth_stride * depth_stride + 4 * depth_stride
    image = torch.rand(1, 1, planes, 2 * method.stride, 2 * method.stride)
    changed = image.clone()
    changed[:, :, 0] += 5.0
    with torch.inference_mode():
        before, after = method(image), method(changed)
    assert before["distances"].shape == (1, 5, planes // depth_grid, *[2 * method.stride // method.grid] * 2)
    differs = (before["distances"] != after["distances"]).flatten(3).any(3).any(1)[0]
    first_same = -(-(method.depth_context + 1) // depth_grid)
    assert differs[0]
    assert not differs[first_same:].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"anisotropy": 2.0}, "anisotropy"),
        ({"depth_grid": 1}, "depth_grid"),
        ({"flat": 1}, "flat"),
        ({"rays": 2}, "polygon"),
        ({"dimensions": 3, "rays": 4}, "polyhedron"),
        ({"dimensions": 3, "anisotropy": 0.0}, "anisotropy"),
        ({"dimensions": 3, "anisotropy": float("nan")}, "anisotropy"),
        ({"dimensions": 3, "grid": 2, "depth_grid": 4}, "depth_grid"),
        ({"dimensions": 3, "grid": 4, "depth_grid": 3}, "depth_grid"),
        ({"dimensions": 3, "depth": 2, "flat": 3}, "flat"),
        ({"dimensions": 4}, "dimensions"),
    ],
    ids=str,
)
def test_options_that_contradict_each_other_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        StarDist(**options)


def test_crops_of_volumes_fit_the_network() -> None:
    assert StarDist.recipe_for(dimensions=2) == StarDist.recipe()
    for options in ({}, {"anisotropy": 2.0}, {"anisotropy": 10.0}, {"grid": 4, "anisotropy": 1.5}):
        recipe, method = StarDist.recipe_for(dimensions=3, **options), StarDist(dimensions=3, base=1, **options)
        planes, rows, _ = recipe.sides(3)
        assert planes % method.depth_stride == rows % method.stride == 0
        assert planes >= 16


# --- targets and loss


@pytest.mark.parametrize(("anisotropy", "grid"), [(1.0, 1), (2.0, 2), (1.0, 2)])
def test_targets_equal_official(anisotropy: float, grid: int) -> None:
    geometry, utils = pytest.importorskip("stardist.geometry"), pytest.importorskip("stardist.utils")
    rays3d = pytest.importorskip("stardist.rays3d")
    labels = nuclei((13, 30, 33), 12, 1, anisotropy)
    method = StarDist(**(TINY | {"rays": 16, "grid": grid, "anisotropy": anisotropy}))
    void = labels.copy()
    void[2:5, 3:9] = -1
    crowd = np.arange(labels.max()) == 1
    targets = method.targets(Segments(labels.shape, np.zeros(len(crowd)), LabelMap(void), crowd=crowd))
    known = np.where((void < 0) | (labels == 2), 0, labels)
    rays = rays3d.Rays_GoldenSpiral(16, anisotropy=(anisotropy, 1, 1))
    cells = tuple(slice(None, None, step) for step in method.steps)
    distances = geometry.star_dist3D(known, rays, grid=method.steps)
    np.testing.assert_array_equal(targets["distances"], np.moveaxis(distances, -1, 0))
    probability = utils.edt_prob(known, anisotropy=(anisotropy, 1, 1))[cells]
    np.testing.assert_allclose(targets["probability"][0], probability, atol=1e-6)
    np.testing.assert_array_equal(targets["valid"][0] == 0, ((void < 0) | (labels == 2))[cells])


def test_loss_of_volumes_is_that_of_images_of_one_plane() -> None:
    """The formula knows no dimensions: a plane as a volume costs what it costs as an image."""
    rng = np.random.default_rng(0)
    flat, deep = StarDist(classes=2, rays=8, grid=1, base=4, depth=1), StarDist(**(TINY | {"classes": 2, "rays": 8}))

    def numbers(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.uniform(size=(2, *shape, 6, 7)).astype(np.float32))

    outputs = {"probability": numbers(1), "distances": numbers(8), "category": numbers(3)}
    targets = {"probability": numbers(1), "distances": numbers(8), "valid": numbers(1).round()}
    targets["category"] = torch.from_numpy(rng.integers(-1, 3, (2, 6, 7)))
    terms = flat.loss(outputs, targets)
    deep_terms = deep.loss(*({k: v.unsqueeze(-3) for k, v in each.items()} for each in (outputs, targets)))
    assert terms.keys() == deep_terms.keys()
    for name, value in terms.items():
        torch.testing.assert_close(deep_terms[name], value)


# --- decoding


@pytest.mark.parametrize(("anisotropy", "grid", "least"), [(1.0, 1, 0.7), (2.0, 1, 0.6), (1.0, 2, 0.7), (3.0, 2, 0.5)])
def test_perfect_outputs_give_the_objects_back(anisotropy: float, grid: int, least: float) -> None:
    labels = nuclei((int(44 / anisotropy), 44, 45), 40, 2, anisotropy, (5, 8))
    method = StarDist(**(TINY | {"grid": grid, "anisotropy": anisotropy, "classes": 3}))
    # Objects whose middle lies in the border of two cells give no candidates, as in the official program.
    cut = np.concatenate([np.unique(np.take(labels, [0, -1], axis)) for axis in range(3)])
    inner = np.setdiff1d(labels, [0, *cut])
    assert len(inner) > 5
    truth = np.where(np.isin(labels, inner), np.searchsorted(inner, labels) + 1, 0).astype(np.int32)
    category = np.arange(len(inner)) % 3
    outputs = perfect(method, Segments(truth.shape, category, LabelMap(truth)))
    found = method.decode(outputs, [truth.shape])[0]
    assert found.size == truth.shape
    assert len(found) == len(inner)
    assert accuracy(truth, found, least) == 1
    assert found.score is not None
    assert found.score.min() > 0.5
    ids = found.label_map()
    for number in range(1, len(inner) + 1):
        own = np.bincount(ids[truth == number])[1:].argmax()
        assert found.category[own] == category[number - 1]


@pytest.mark.parametrize(("anisotropy", "grid"), [(1.0, 2), (2.0, 2), (1.0, 1)])
def test_decoding_equals_the_official_program(anisotropy: float, grid: int) -> None:
    """Two volumes of odd sizes, whose padding continues the objects and must not be looked at."""
    nms, geometry = pytest.importorskip("stardist.nms"), pytest.importorskip("stardist.geometry")
    rays3d = pytest.importorskip("stardist.rays3d")
    method = StarDist(**(TINY | {"rays": 32, "grid": grid, "anisotropy": anisotropy}))
    method.thresholds = {"probability": 0.55, "overlap": 0.3}
    rays = rays3d.Rays_GoldenSpiral(32, anisotropy=(anisotropy, 1, 1))
    shape = (int(32 / anisotropy), 32, 40) if grid == 2 else (16, 20, 24)
    sizes = [(shape[0] - 3, shape[1] - 1, shape[2]), (shape[0], shape[1], shape[2] - 5)]
    batch: list[Outputs] = []
    for seed in range(2):
        targets = method.targets(Segments.from_label_map(nuclei(shape, 25, seed, anisotropy, (4, 6))))
        probability, distances = blurred(
            targets["probability"][0].numpy(), targets["distances"].numpy(), noise=0.03, seed=seed
        )
        batch.append(
            {
                "probability": torch.logit(torch.from_numpy(probability), eps=1e-6)[None, None],
                "distances": torch.from_numpy(distances)[None],
            }
        )
    decoded = method.decode({name: torch.cat([each[name] for each in batch]) for name in batch[0]}, sizes)
    for found, outputs, size in zip(decoded, batch, sizes, strict=True):
        window = tuple(slice(-(-side // step)) for side, step in zip(size, method.steps, strict=True))
        points, scores, lengths = nms.non_maximum_suppression_3d(
            np.maximum(1e-3, outputs["distances"][0].permute(1, 2, 3, 0).numpy()[window]),
            outputs["probability"][0, 0].sigmoid().numpy()[window],
            rays,
            grid=method.steps,
            prob_thresh=0.55,
            nms_thresh=0.3,
        )
        labels = geometry.polyhedron_to_label(lengths, points, rays, size, prob=scores, verbose=0)
        assert len(points) > 3
        ids = found.label_map()
        pairs = np.unique(np.stack([ids.ravel(), labels.ravel()]), axis=1)
        assert ((pairs > 0).all(axis=0) | (pairs == 0).all(axis=0)).all()
        assert pairs.shape[1] == len(found) + 1 == len(np.unique(labels))
        assert found.score is not None
        np.testing.assert_allclose(np.sort(found.score), np.sort(scores), rtol=1e-6)


def test_volumes_without_and_with_a_single_object() -> None:
    method = StarDist(**(TINY | {"grid": 2}))
    empty = np.zeros((16, 16, 16), np.int32)
    one, full = empty.copy(), empty + 1
    one[4:11, 5:12, 3:12] = 1
    for truth, count in ((empty, 0), (one, 1), (full, 1)):
        segments = Segments.from_label_map(truth)
        outputs = perfect(method, segments)
        found = method.decode(outputs, [truth.shape])[0]
        assert len(found) == count
        if count:
            assert accuracy(truth, found, 0.4) == 1
        for term in method.loss(
            outputs, {name: value[None] for name, value in method.targets(segments).items()}
        ).values():
            assert torch.isfinite(term)
    # Fewer cells than the border has: nothing is found, and nothing breaks.
    assert len(method.decode(perfect(method, Segments.from_label_map(full)), [(3, 16, 16)])[0]) == 0


def test_outputs_that_are_no_numbers_are_told() -> None:
    method = StarDist(**(TINY | {"grid": 1, "rays": 8}))
    outputs = {"probability": torch.full((1, 1, 8, 8, 8), 9.0), "distances": torch.full((1, 8, 8, 8, 8), torch.nan)}
    with pytest.raises(InputError, match="finite"):
        method.decode(outputs, [(8, 8, 8)])


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_outputs_of_a_turned_volume_are_turned_back(flip: bool, turns: int) -> None:
    """Maps exactly; distances as near as those of rays between the rays, measured by the objects that they give."""
    method = StarDist(**(TINY | {"grid": 1, "anisotropy": 2.0}))
    labels = nuclei((14, 30, 30), 12, 6, 2.0, (5, 8))
    turned = np.rot90(labels, turns, (1, 2))
    turned = np.ascontiguousarray(turned[..., ::-1] if flip else turned)
    expected = perfect(method, Segments.from_label_map(labels))
    found = method.undo_dihedral(perfect(method, Segments.from_label_map(turned)), flip, turns)
    torch.testing.assert_close(found["probability"], expected["probability"])
    inside = expected["distances"] > 0
    relative = (found["distances"] - expected["distances"])[inside] / expected["distances"][inside].mean()
    assert relative.mean().abs() < 0.02
    assert relative.square().mean().sqrt() < (0.2 if flip or turns else 1e-6)  # voxels are as large as that
    truth = method.decode(expected, [labels.shape])[0]
    assert len(truth) > 3
    assert accuracy(truth.label_map(), method.decode(found, [labels.shape])[0], 0.75) == 1


# --- weights of the official program

NETWORKS: list[dict[str, Any]] = [
    {"grid": 1, "channels": 1},
    {"grid": 2, "channels": 2, "classes": 3, "anisotropy": 2.0},
    {"grid": 4, "channels": 1, "depth": 2, "convolutions": 3, "features": 0, "base": 4, "depth_grid": 2, "flat": 2},
]
SMALL = {"rays": 8, "base": 2, "depth": 2, "convolutions": 2, "features": 4, "classes": 1, "flat": 0}


def official_layers(given: dict[str, Any]) -> list[tuple[str, tuple[int, int], int]]:
    """Name, inputs and outputs, and side of the kernel of each layer of `StarDist3D._build_unet`, in Keras's order."""
    base, depth, count = given["base"], given["depth"], given["convolutions"]
    layers: list[tuple[str, tuple[int, int], int]] = []
    width = given["channels"]

    def add(name: str, outputs: int, side: int = 3) -> None:
        nonlocal width
        layers.append((name, (width, outputs), side))
        width = outputs

    for number in range({1: 0, 2: 1, 4: 2}[given["grid"]] * count):
        add("conv3d" + (f"_{number}" if number else ""), base)
    for level in range(depth):
        for number in range(count):
            add(f"down_level_{level}_no_{number}", base * 2**level)
    for number in range(count - 1):
        add(f"middle_{number}", base * 2**depth)
    add(f"middle_{count}", base * 2 ** max(0, depth - 1))
    for level in reversed(range(depth)):
        width += base * 2**level
        for number in range(count - 1):
            add(f"up_level_{level}_no_{number}", base * 2**level)
        add(f"up_level_{level}_no_{count}", base * 2 ** max(0, level - 1))
    body = width
    for ending, heads in {
        "": {"prob": 1, "dist": given["rays"]},
        "_class": {"prob_class": given["classes"] + 1},
    }.items():
        if ending and given["classes"] == 1:
            continue
        width = body
        if given["features"]:
            add(f"features{ending}", given["features"])
        shared = width
        for name, outputs in heads.items():
            width = shared
            add(name, outputs, 1)
    return layers


def write_keras(path: Path, given: dict[str, Any]) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Random weights as ``save_weights`` writes them; also kernels (z, y, x, inputs, outputs) and biases by layer."""
    h5py = pytest.importorskip("h5py")
    rng = np.random.default_rng(0)
    arrays = {}
    with h5py.File(path, "w") as file:
        for name, (inputs, outputs), side in official_layers(given):
            kernel = rng.normal(0, np.sqrt(2 / (side**3 * inputs)), (side, side, side, inputs, outputs))
            arrays[name] = kernel.astype(np.float32), rng.normal(0, 0.1, outputs).astype(np.float32)
            group = file.create_group(name)
            for kind, values in zip(("kernel", "bias"), arrays[name], strict=True):
                group[f"{name}/{kind}:0"] = values
            group.attrs["weight_names"] = np.array([f"{name}/kernel:0", f"{name}/bias:0"], "S")
        file.attrs["layer_names"] = np.array(list(arrays), "S")
    return arrays


def official_outputs(given: dict[str, Any], arrays: dict[str, Any], image: torch.Tensor) -> list[torch.Tensor]:
    """`StarDist3D._build_unet` and `csbdeep.internals.blocks.unet_block` written again, in double precision."""

    def layer(name: str, features: torch.Tensor, active: bool = True) -> torch.Tensor:
        kernel, bias = (torch.from_numpy(each).double() for each in arrays[name])
        found = functional.conv3d(features, kernel.permute(4, 3, 0, 1, 2), bias, padding=kernel.shape[0] // 2)
        return found.relu() if active else found

    count, depth, features = given["convolutions"], given["depth"], image.double()
    pooled, number = np.array([1, 1, 1]), 0
    while tuple(pooled) != tuple(given["steps"]):
        pool = 1 + (np.asarray(given["steps"]) > pooled)
        pooled *= pool
        for _ in range(count):
            features = layer("conv3d" + (f"_{number}" if number else ""), features)
            number += 1
        features = functional.max_pool3d(features, tuple(int(each) for each in pool))
    pool, skips = (1, 2, 2) if given["flat"] else (2, 2, 2), []
    for level in range(depth):
        for number in range(count):
            features = layer(f"down_level_{level}_no_{number}", features)
        skips.append(features)
        features = functional.max_pool3d(features, pool)
    for number in [*range(count - 1), count]:
        features = layer(f"middle_{number}", features)
    for level in reversed(range(depth)):
        for axis, times in enumerate(pool, 2):
            features = features.repeat_interleave(times, axis)
        features = torch.cat([features, skips[level]], 1)
        for number in [*range(count - 1), count]:
            features = layer(f"up_level_{level}_no_{number}", features)
    last = layer("features", features) if given["features"] else features
    outputs = [layer("prob", last, False), layer("dist", last, False)]
    if given["classes"] > 1:
        own = layer("features_class", features) if given["features"] else features
        outputs.append(layer("prob_class", own, False))
    return outputs


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_outputs_equal_those_of_the_official_network(tmp_path: Path, network: dict[str, Any]) -> None:
    torch.manual_seed(0)
    method = StarDist(**(SMALL | network), norm="none", dimensions=3).eval()
    given = SMALL | network | {"steps": method.steps}
    arrays = write_keras(tmp_path / "weights_best.h5", given)
    scale = network.get("anisotropy")
    settings = {
        "n_dim": 3, "grid": method.steps, "unet_kernel_size": [3, 3, 3], "unet_batch_norm": False,
        "unet_pool": [1, 2, 2] if given["flat"] else [2, 2, 2], "anisotropy": scale and [scale, 1, 1],
        "rays_json": {"name": "Rays_GoldenSpiral", "kwargs": {"n": 8, "anisotropy": scale and [scale, 1, 1]}},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "thresholds.json").write_text('{"prob": 0.7, "nms": 0.3}')
    load_foreign(method, tmp_path / "weights_best.h5")
    assert method.thresholds == {"probability": 0.7, "overlap": 0.3}
    image = torch.rand(1, network["channels"], method.depth_stride, 2 * method.stride, method.stride)
    with torch.inference_mode():
        found = method(image)
    expected = official_outputs(given, arrays, image)
    assert len(found) == len(expected)
    for values, (name, each) in zip(expected, found.items(), strict=True):
        assert values.std() > 1e-3, name
        torch.testing.assert_close(each.double(), values, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("channels", "grid", "anisotropy", "parameters"), [(1, 1, 1.0, 1119969), (2, 2, 2.0, 1176193)])
def test_as_many_parameters_as_the_official_network(
    channels: int, grid: int, anisotropy: float, parameters: int
) -> None:
    # stardist 0.9.2: StarDist3D(Config3D(grid=..., n_channel_in=channels)).keras_model.count_params()
    method = StarDist(channels=channels, grid=grid, depth=2, norm="none", dimensions=3, anisotropy=anisotropy)
    assert sum(each.numel() for each in method.parameters()) == parameters


def test_other_options_of_volumes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "weights_best.h5"
    write_keras(path, SMALL | {"grid": 2, "channels": 1})
    with pytest.raises(InputError, match="--dimensions 3"):
        load_foreign(StarDist(grid=2, channels=1, norm="none"), path)
    options = SMALL | {"grid": 2, "channels": 1, "norm": "none", "dimensions": 3, "anisotropy": 2.0}
    load_foreign(StarDist(**options), path)
    rays = {"name": "Rays_GoldenSpiral", "kwargs": {"n": 8, "anisotropy": [2.0, 1.0, 1.0]}}
    for settings, told in (
        ({"grid": [2, 2, 2]}, "--depth-grid 2"),
        ({"rays_json": rays | {"kwargs": {"n": 8, "anisotropy": None}}}, "--anisotropy 1.0"),
        ({"unet_pool": [1, 2, 2]}, "--flat 2"),
        ({"unet_pool": [2, 1, 2]}, "unet_pool"),
        ({"rays_json": {"name": "Rays_Octo", "kwargs": {}}}, "golden spiral"),
        ({"rays_json": rays | {"kwargs": {"n": 8, "anisotropy": [2.0, 1.0, 1.5]}}}, "golden spiral"),
        ({"rays_json": 5}, "rays_json"),
        ({"grid": [1, 2, 4]}, "one number for y and x"),
        ({"grid": [1, 2]}, "expected rays_json, grid"),
        ({"n_dim": 2}, "n_dim"),
        ({"backbone": "resnet"}, "backbone"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(settings))
        with pytest.raises(InputError, match=told) as caught:
            load_foreign(StarDist(**options), path)
        assert str(tmp_path) in str(caught.value)


# --- learning


def test_a_small_network_learns_touching_nuclei() -> None:
    torch.manual_seed(1)
    labels = nuclei((16, 32, 32), 30, 4, 2.0, (4, 6))
    kinds = np.arange(labels.max()) % 2
    method = StarDist(2, 1, 32, 2, 8, 1, 1, 24, "batch", dimensions=3, anisotropy=2.0)
    segments = Segments(labels.shape, kinds, LabelMap(labels))
    targets = {name: value[None] for name, value in method.targets(segments).items()}
    depth = np.minimum(ndimage.distance_transform_edt(labels > 0, (2, 1, 1)), 4)
    bright = np.concatenate([[0], 1 + kinds])[labels] * (1 + depth) + np.random.default_rng(0).normal(
        0, 0.2, labels.shape
    )
    image = torch.from_numpy(bright.astype(np.float32))[None, None] / 10
    optimiser = torch.optim.Adam(method.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.02, 80)
    for _ in range(80):
        optimiser.zero_grad()
        sum(method.training_loss(image, targets).values()).backward()
        optimiser.step()
        schedule.step()
    with torch.inference_mode():
        found = method.eval()(image)
    found = method.decode(found, [labels.shape])[0]
    # Objects that have their middle in the border of two cells have no candidates, as in the official program.
    inner = targets["probability"][0, 0, 2:-2, 2:-2, 2:-2].numpy()
    ids = labels[:, ::2, ::2][2:-2, 2:-2, 2:-2]
    wanted = [number for number in range(1, labels.max() + 1) if inner[ids == number].max(initial=0) > 0.7]
    assert len(wanted) > 8
    matching = pytest.importorskip("stardist.matching")
    matched = matching.matching(labels, found.label_map(), thresh=0.5, report_matches=True)
    pairs = dict(np.array(matched.matched_pairs)[np.array(matched.matched_scores) >= 0.5].tolist())
    assert np.mean([number in pairs for number in wanted]) >= 0.9
    assert matched.fp <= 0.1 * matched.tp
    assert np.mean([found.category[place - 1] == kinds[number - 1] for number, place in pairs.items()]) >= 0.9


def test_candidates_found_by_torch_are_those_found_by_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    from everymask.methods.bottom_up import stardist

    labels = nuclei((12, 30, 32), 14, 3, 2.0, (4, 7))
    method = StarDist(**(TINY | {"grid": 2, "anisotropy": 2.0, "classes": 2, "rays": 16}))
    segments = Segments(labels.shape, np.arange(labels.max()) % 2, LabelMap(labels))
    outputs = perfect(method, segments)
    first = method.decode(outputs, [(11, 29, 32)])[0]
    asked = []
    monkeypatch.setattr(stardist, "on_accelerator", lambda tensor: asked.append(tensor) or True)
    second = method.decode(outputs, [(11, 29, 32)])[0]
    assert asked
    assert len(first) > 4
    np.testing.assert_array_equal(first.label_map(), second.label_map())
    np.testing.assert_array_equal(first.category, second.category)
