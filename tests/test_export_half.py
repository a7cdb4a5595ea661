"""Model files with 16-bit weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from everymask.errors import InputError
from everymask.methods.bottom_up.stardist import StarDist
from everymask.model import Model
from everymask.types import Categories
from everymask.types.categories import Category
from everymask.weights import halved

if TYPE_CHECKING:
    from pathlib import Path


def model() -> Model:
    torch.manual_seed(0)
    return Model(StarDist(base=8, depth=2, features=16), Categories([Category(1, "nucleus")]))


def test_the_file_is_half_as_large_and_loads_as_32_bit_floats(tmp_path: Path) -> None:
    whole = model()
    whole.save(tmp_path / "whole.safetensors")
    difference = whole.export("half", tmp_path / "half.safetensors")
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("whole", "half")]
    assert sizes[1] < 0.62 * sizes[0]
    loaded = Model.load(tmp_path / "half.safetensors")
    for name, tensor in whole.method.state_dict().items():
        found = loaded.method.state_dict()[name]
        assert found.dtype == tensor.dtype
        # Half precision has 11 significant bits; values below 2^-14 have fewer.
        wanted = tensor.numpy().astype(np.float16).astype(np.float32) if tensor.ndim > 1 else tensor.numpy()
        np.testing.assert_array_equal(found.numpy(), wanted)
    assert set(difference) == {"probability", "distances"}
    assert 0 < max(difference.values()) < 5e-3


def test_what_is_too_large_or_no_weight_keeps_its_bits() -> None:
    tensors = {
        "weight": torch.full((2, 2), 1.5),
        "huge": torch.full((2, 2), 1e6),
        "bias": torch.full((2,), 1e-6),
        "count": torch.zeros((2, 2), dtype=torch.int64),
    }
    found = halved(tensors)
    assert {name: each.dtype for name, each in found.items()} == {
        "weight": torch.float16,
        "huge": torch.float32,
        "bias": torch.float32,
        "count": torch.int64,
    }
    assert found["huge"] is tensors["huge"]


def test_a_network_that_is_not_finite_is_refused_and_nothing_written(tmp_path: Path) -> None:
    broken = model()
    with torch.no_grad():
        broken.method.get_submodule("probability").weight.fill_(torch.nan)
    with pytest.raises(InputError, match="probability is not finite"):
        broken.export("half", tmp_path / "half.safetensors")
    assert not list(tmp_path.iterdir())


def test_unknown_formats_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="onnx"):
        model().export("onnxx", tmp_path / "model")
