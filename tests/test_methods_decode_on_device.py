"""Decoding by the kernels for accelerators gives what the compiled ones give, for every method that has them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from everymask.methods.base import Method
from everymask.methods.bottom_up import cellpose, omnipose, spatial_embedding, stardist
from everymask.types import LabelMap, Segments


def field() -> Segments:
    """Touching discs of two categories, some cut by the border."""
    ids = np.zeros((96, 80), np.int32)
    rows, columns = np.indices(ids.shape)
    for n, (y, x, radius) in enumerate(
        [(10, 12, 9), (30, 20, 10), (31, 40, 11), (60, 60, 13), (80, 40, 9), (70, 8, 12), (2, 60, 10)], 1
    ):
        ids[((rows - y) ** 2 + (columns - x) ** 2 < radius**2) & (ids == 0)] = n
    return Segments(ids.shape, np.arange(7) % 2, LabelMap(ids))


def cellpose_outputs(method: Method, segments: Segments) -> dict[str, Tensor]:
    targets = method.targets(segments)
    return {"flow": targets["flow"], "cell": 8 * targets["cell"] - 4}


def omnipose_outputs(method: Method, segments: Segments) -> dict[str, Tensor]:
    targets = method.targets(segments)
    return {name: targets[name] for name in ("flow", "distance")}


def stardist_outputs(method: Method, segments: Segments) -> dict[str, Tensor]:
    targets = method.targets(segments)
    return {"probability": 8 * targets["probability"] - 4, "distances": targets["distances"]}


def spatial_embedding_outputs(method: Method, segments: Segments) -> dict[str, Tensor]:
    targets = method.targets(segments)
    size = targets["labels"].shape
    inside = targets["labels"] > 0
    pull = (targets["centres"] - torch.stack(torch.meshgrid(*map(torch.arange, size), indexing="ij"))) * inside
    scale = np.log(np.log(2) / (9 / spatial_embedding.UNIT) ** 2) / spatial_embedding.SHARPNESS
    seed = torch.where(inside, 4 - pull.abs().amax(0) / 9, torch.tensor(-4.0))
    seeds = torch.stack([seed.where(targets["category"] == k, -4.0) for k in range(2)])
    return {"offset": (pull / spatial_embedding.UNIT).atanh(), "sigma": torch.full((2, *size), scale), "seed": seeds}


CASES = [
    (cellpose, cellpose.Cellpose, cellpose_outputs),
    (omnipose, omnipose.Omnipose, omnipose_outputs),
    (stardist, stardist.StarDist, stardist_outputs),
    (spatial_embedding, spatial_embedding.SpatialEmbedding, spatial_embedding_outputs),
]


@pytest.mark.parametrize(("module", "kind", "outputs_of"), CASES)
def test_both_ways_of_decoding_agree(
    module: object, kind: type, outputs_of: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    segments = field()
    method = kind(classes=2, channels=1)
    outputs = {}
    for name, each in outputs_of(method, segments).items():
        noise = torch.randn(each.shape, generator=torch.manual_seed(0)) * (0.0 if name == "offset" else 0.1)
        outputs[name] = torch.nn.functional.pad(each.float() + noise, (0, 6, 0, 3))[None]
    if kind is not spatial_embedding.SpatialEmbedding:
        step = method.grid
        classes = torch.from_numpy(np.concatenate([[0], segments.category + 1])[segments.label_map("last")])
        logits = torch.nn.functional.one_hot(classes[::step, ::step], 3).permute(2, 0, 1) * 5.0
        outputs["category"] = torch.nn.functional.pad(logits, (0, 6, 0, 3))[None]
    with torch.inference_mode():  # as predictors make them: they may not be changed in place
        outputs = {name: each.clone() for name, each in outputs.items()}
    size = segments.size
    (expected,) = method.decode(outputs, [size])
    asked = []
    monkeypatch.setattr(module, "on_accelerator", lambda tensor: asked.append(tensor.device) or True)
    (found,) = method.decode(outputs, [size])
    assert asked, "the kernels for accelerators were not asked for"
    assert len(expected) == 7
    np.testing.assert_array_equal(found.label_map(), expected.label_map())
    np.testing.assert_array_equal(found.category, expected.category)
    np.testing.assert_allclose(found.score, expected.score, atol=1e-6)


def test_outputs_on_the_processor_are_decoded_there() -> None:
    from everymask.methods.bottom_up.objects import on_accelerator

    assert not on_accelerator(torch.zeros(1))
    assert on_accelerator(torch.zeros(1, device="meta"))
