"""Weights of the official StarDist program in Keras's HDF5 files: strictly loaded, equal outputs.

The official network (`csbdeep.internals.blocks.unet_block`, `StarDist2D._build`) is written again here, layer by layer
under the official names, and reads the same file by itself; where TensorFlow is installed, the real program is asked.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from everymask.errors import InputError
from everymask.methods.bottom_up.stardist import StarDist
from everymask.methods.foreign import load_foreign
from everymask.methods.keras import read_keras
from everymask.model import Model

h5py = pytest.importorskip("h5py")

Network = dict[str, Any]
CASES: list[Network] = [
    {"grid": 1, "channels": 1},
    {"grid": 2, "channels": 3, "rays": 8, "classes": 3},
    {"grid": 4, "channels": 2, "depth": 2, "convolutions": 3, "features": 0, "classes": 2},
]
SMALL = {"rays": 32, "base": 4, "depth": 3, "convolutions": 2, "features": 6, "classes": 1}


# --- the official network -------------------------------------------------------------------------------------------


def layers_of(channels: int, grid: int, **options: int) -> list[tuple[str, tuple[int, int, int, int]]]:
    """Name and shape of the kernel (height, width, inputs, outputs) of every layer with weights, in Keras's order."""
    given = SMALL | options
    base, depth, count = given["base"], given["depth"], given["convolutions"]
    layers, width = [], channels

    def add(name: str, outputs: int, side: int = 3) -> None:
        nonlocal width
        layers.append((name, (side, side, width, outputs)))
        width = outputs

    for number in range({1: 0, 2: 1, 4: 2}[grid] * count):
        add(f"conv2d_{number + 9}", base)  # Keras goes on counting from network to network
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


def write_keras(path: Path, network: Network, *, old: bool = False, whole: bool = False, seed: int = 0) -> Path:
    """A file as ``save_weights`` of Keras 2 (`old`) or 3 writes it, or as ``save`` does, with random weights."""
    random = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        root = file.create_group("model_weights") if whole else file
        names = ["input"]
        root.create_group("input").attrs["weight_names"] = np.array([], "S1")
        for name, shape in layers_of(**network):
            group, suffix = root.create_group(name), ":0" if old else ""
            arrays = {
                f"{name}/kernel{suffix}": random.normal(0, np.sqrt(2 / np.prod(shape[:3])), shape),
                f"{name}/bias{suffix}": random.normal(0, 0.1, shape[3]),
            }
            for key, values in arrays.items():
                group[key] = values.astype(np.float32)
            written = np.array(list(arrays), "S") if old else list(arrays)
            group.attrs["weight_names"] = written
            names.append(name)
        root.attrs["layer_names"] = np.array(names, "S") if old else names
    return path


def official(path: Path, network: Network, image: NDArray[np.float32]) -> dict[str, NDArray[np.float64]]:
    """Outputs (h, w, ?) of the network in the file for an image (H, W, C), in double precision."""
    given = SMALL | network
    depth, count = given["depth"], given["convolutions"]
    with h5py.File(path) as file:
        root = file.get("model_weights", file)

        def array(layer: str, kind: str) -> torch.Tensor:
            (name,) = [each for each in root[layer][layer] if each.startswith(kind)]
            return torch.from_numpy(root[layer][layer][name][()]).double()

        def layer(name: str, features: torch.Tensor, active: bool = True) -> torch.Tensor:
            kernel = array(name, "kernel").permute(3, 2, 0, 1)
            found = functional.conv2d(features, kernel, array(name, "bias"), padding=kernel.shape[-1] // 2)
            return found.relu() if active else found

        features = torch.from_numpy(image.transpose(2, 0, 1)).double()[None]
        stem = sorted((each for each in root if each.startswith("conv2d_")), key=lambda each: int(each[7:]))
        for number, name in enumerate(stem, 1):
            features = layer(name, features)
            features = functional.max_pool2d(features, 2) if number % count == 0 else features
        skips = []
        for level in range(depth):
            for number in range(count):
                features = layer(f"down_level_{level}_no_{number}", features)
            skips.append(features)
            features = functional.max_pool2d(features, 2)
        for number in [*range(count - 1), count]:
            features = layer(f"middle_{number}", features)
        for level in reversed(range(depth)):
            repeated = features.repeat_interleave(2, 2).repeat_interleave(2, 3)
            features = torch.cat([repeated, skips[level]], 1)
            for number in [*range(count - 1), count]:
                features = layer(f"up_level_{level}_no_{number}", features)
        last = layer("features", features) if "features" in root else features
        outputs = {"probability": layer("prob", last, False).sigmoid(), "distances": layer("dist", last, False)}
        if "prob_class" in root:
            own = layer("features_class", features) if "features_class" in root else features
            outputs["category"] = layer("prob_class", own, False).softmax(1)
    return {name: each[0].permute(1, 2, 0).numpy() for name, each in outputs.items()}


def ours(method: StarDist, image: NDArray[np.float32]) -> dict[str, NDArray[np.float64]]:
    with torch.inference_mode():
        outputs = method.eval()(torch.from_numpy(image.transpose(2, 0, 1).copy())[None])
    outputs["probability"] = outputs["probability"].sigmoid()
    if "category" in outputs:
        outputs["category"] = outputs["category"].softmax(1)
    return {name: each[0].permute(1, 2, 0).double().numpy() for name, each in outputs.items()}


def method_for(network: Network) -> StarDist:
    return StarDist(**(SMALL | network), norm="none")


# --- equal outputs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", CASES, ids=str)
@pytest.mark.parametrize("form", [{}, {"old": True}, {"whole": True, "old": True}], ids=str)
def test_outputs_equal_those_of_the_official_network(tmp_path: Path, network: Network, form: dict[str, bool]) -> None:
    path = write_keras(tmp_path / "weights_best.h5", network, **form)
    method = method_for(network)
    load_foreign(method, path)
    image = np.random.default_rng(1).uniform(size=(32, 64, network["channels"])).astype(np.float32)
    expected, found = official(path, network, image), ours(method, image)
    assert expected.keys() == found.keys()
    for name, values in expected.items():
        assert values.std(axis=(0, 1)).max() > 1e-3  # not a constant, to which every network would be equal
        np.testing.assert_allclose(found[name], values, atol=1e-5)


@pytest.mark.parametrize("network", CASES, ids=str)
def test_outputs_equal_those_of_the_program_itself(tmp_path: Path, network: Network) -> None:
    pytest.importorskip("tensorflow", reason="needs TensorFlow to run the official network")
    models = pytest.importorskip("stardist.models")
    given = SMALL | network
    config = models.Config2D(
        grid=(given["grid"],) * 2,
        n_channel_in=given["channels"],
        n_rays=given["rays"],
        n_classes=given["classes"] if given["classes"] > 1 else None,
        unet_n_filter_base=given["base"],
        unet_n_depth=given["depth"],
        unet_n_conv_per_depth=given["convolutions"],
        net_conv_after_unet=given["features"],
    )
    program = models.StarDist2D(config, name="random", basedir=str(tmp_path))
    random = np.random.default_rng(0)
    shapes = [each.shape for each in program.keras_model.get_weights()]
    program.keras_model.set_weights([random.normal(0, (2 / np.prod(each[:-1])) ** 0.5, each) for each in shapes])
    program.keras_model.save_weights(str(tmp_path / "random" / "weights_best.h5"))
    method = method_for(network)
    load_foreign(method, tmp_path / "random" / "weights_best.h5")
    image = random.uniform(size=(32, 64, network["channels"])).astype(np.float32)
    expected = program.keras_model.predict(image[None], verbose=0)
    for found, values in zip(ours(method, image).values(), expected, strict=True):
        np.testing.assert_allclose(found, values[0], atol=1e-5)


def test_thresholds_are_taken_from_the_file_beside(tmp_path: Path) -> None:
    path = write_keras(tmp_path / "weights_best.h5", CASES[0])
    (tmp_path / "thresholds.json").write_text('{"prob": 0.479, "nms": 0.3}')
    (tmp_path / "config.json").write_text(json.dumps({"n_dim": 2, "unet_activation": "relu", "unet_dropout": 0.0}))
    model = Model(method_for(CASES[0]), ["nucleus"])
    model.load_foreign(path)
    assert model.method.thresholds == {"probability": 0.479, "overlap": 0.3}
    assert StarDist().thresholds == {"probability": 0.5, "overlap": 0.4}
    model.save(tmp_path / "model.safetensors")
    again = Model.load(tmp_path / "model.safetensors")
    assert again.method.thresholds == model.method.thresholds
    image = np.random.default_rng(1).uniform(size=(32, 32, 1)).astype(np.float32)
    expected = official(path, CASES[0], image)
    np.testing.assert_allclose(ours(again.method, image)["distances"], expected["distances"], atol=1e-5)


def test_new_logits_leave_the_classes_out(tmp_path: Path) -> None:
    network = CASES[1]
    path = write_keras(tmp_path / "weights_best.h5", network)
    image = np.random.default_rng(1).uniform(size=(32, 32, 3)).astype(np.float32)
    expected = official(path, network, image)
    for classes in (1, 2):
        method = method_for(network | {"classes": classes})
        with pytest.raises(InputError, match="category"):
            load_foreign(method, path)
        load_foreign(method, path, new_logits=True)
        np.testing.assert_allclose(ours(method, image)["distances"], expected["distances"], atol=1e-5)


def test_a_class_head_of_one_class_is_not_needed(tmp_path: Path) -> None:
    network = CASES[0] | {"features": 0}
    path = write_keras(tmp_path / "weights_best.h5", network)
    with h5py.File(path, "a") as file:
        group = file.create_group("prob_class")
        group["prob_class/kernel"] = np.zeros((1, 1, 4, 2), np.float32)
        group["prob_class/bias"] = np.zeros(2, np.float32)
        group.attrs["weight_names"] = ["prob_class/kernel", "prob_class/bias"]
        file.attrs["layer_names"] = [*file.attrs["layer_names"], "prob_class"]
    load_foreign(method_for(network), path)


# --- bad input ------------------------------------------------------------------------------------------------------


def test_other_options_are_named(tmp_path: Path) -> None:
    path = write_keras(tmp_path / "weights_best.h5", CASES[0])
    with pytest.raises(InputError) as caught:
        load_foreign(StarDist(), path)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    assert "--channels 1 --grid 1 --base 4 --features 6 --norm none" in text
    assert "--rays" not in text


@pytest.mark.parametrize(
    ("name", "value"),
    [("unet_kernel_size", [5, 5]), ("unet_activation", "elu"), ("n_dim", 3), ("unet_batch_norm", True)],
)
def test_networks_that_are_built_otherwise_are_refused(tmp_path: Path, name: str, value: object) -> None:
    path = write_keras(tmp_path / "weights_best.h5", CASES[0])
    (tmp_path / "config.json").write_text(json.dumps({name: value}))
    with pytest.raises(InputError, match=name):
        load_foreign(method_for(CASES[0]), path)


def test_files_beside_the_weights_that_are_broken(tmp_path: Path) -> None:
    path = write_keras(tmp_path / "weights_best.h5", CASES[0])
    for content in ("{", "[1]", '{"prob": null}'):
        (tmp_path / "thresholds.json").write_text(content)
        with pytest.raises(InputError, match=r"thresholds\.json"):
            load_foreign(method_for(CASES[0]), path)


def test_missing_and_surplus_layers_are_told(tmp_path: Path) -> None:
    path = write_keras(tmp_path / "weights_best.h5", CASES[0])
    with h5py.File(path, "a") as file:
        names = [each for each in file.attrs["layer_names"] if each != "middle_0"]
        file.attrs["layer_names"] = names
    with pytest.raises(InputError, match=r"missing: body\.bottom\.0"):
        load_foreign(method_for(CASES[0]), path)
    with h5py.File(path, "a") as file:
        group = file.create_group("extra")
        group["extra/kernel"] = np.zeros((1, 1, 2, 2), np.float32)
        group.attrs["weight_names"] = ["extra/kernel"]
        file.attrs["layer_names"] = [*names, "middle_0", "extra"]
    with pytest.raises(InputError, match=r"unexpected: extra\.weight"):
        load_foreign(method_for(CASES[0]), path)


def test_files_that_hold_no_weights(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_keras(tmp_path / "missing.h5")
    broken = tmp_path / "broken.h5"
    broken.write_bytes(b"no HDF5")
    with pytest.raises(InputError, match=r"broken\.h5"):
        read_keras(broken)
    with h5py.File(tmp_path / "empty.h5", "w"):
        pass
    with pytest.raises(InputError, match="does not list the layers"):
        read_keras(tmp_path / "empty.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file.attrs["layer_names"] = ["dense"]
        group = file.create_group("dense")
        group["dense/kernel"] = np.ones((2, 3), np.float32)
        group.attrs["weight_names"] = ["dense/kernel"]
    assert read_keras(tmp_path / "other.h5")["dense.weight"].shape == (3, 2)
    with pytest.raises(InputError, match="missing"):
        load_foreign(StarDist(), tmp_path / "other.h5")


def test_nothing_outside_the_file_is_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["kernel"] = np.ones((1, 1, 1, 1), np.float32)
    (tmp_path / "raw").write_bytes(bytes(4))

    def external_link(group: Any) -> None:
        group["layer/kernel"] = h5py.ExternalLink(str(secret), "kernel")

    def soft_link(group: Any) -> None:
        group["layer/kernel"] = h5py.SoftLink("/elsewhere")

    def external_storage(group: Any) -> None:
        group.create_dataset("layer/kernel", (1,), "f4", external=[(str(tmp_path / "raw"), 0, 4)])

    def virtual(group: Any) -> None:
        layout = h5py.VirtualLayout((1, 1, 1, 1), "f4")
        layout[:] = h5py.VirtualSource(str(secret), "kernel", (1, 1, 1, 1))
        group.create_virtual_dataset("layer/kernel", layout)

    def huge(group: Any) -> None:
        group.create_dataset("layer/kernel", (2**20, 2**20), "f4", chunks=(1024, 1024), compression="gzip")

    for number, attack in enumerate((external_link, soft_link, external_storage, virtual, huge)):
        path = tmp_path / f"{number}.h5"
        with h5py.File(path, "w") as file:
            file.attrs["layer_names"] = ["layer"]
            group = file.create_group("layer")
            group.create_group("layer")
            attack(group)
            group.attrs["weight_names"] = ["layer/kernel"]
        with pytest.raises(InputError, match=f"{number}.h5"):
            read_keras(path)
