"""StarDist, and the other methods for microscopy, on backbones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from everymask.backbones.pyramid import Backbone
from everymask.errors import InputError
from everymask.methods import method_class
from everymask.methods.bottom_up.stardist import StarDist
from everymask.model import Model


@pytest.mark.parametrize(
    ("backbone", "grid"),
    [("resnet10t", 1), ("resnet10t", 2), ("resnet10t", 4), ("convnext_atto", 2), ("vit_tiny_patch16_224", 2)],
)
def test_a_backbone_replaces_the_unet(backbone: str, grid: int) -> None:
    torch.manual_seed(0)
    method = StarDist(backbone=backbone, grid=grid, classes=2, features=16)
    height, width = 2 * method.stride, 3 * method.stride
    outputs = method(torch.rand(2, 3, height, width))
    size = (height // grid, width // grid)
    assert {name: each.shape[1:] for name, each in outputs.items()} == {
        "probability": (1, *size),
        "distances": (32, *size),
        "category": (3, *size),
    }
    sum(each.mean() for each in outputs.values()).backward()
    idle = [name for name, each in method.named_parameters() if each.grad is None]
    assert not idle
    again = StarDist(**method.config)
    again.load_state_dict(method.state_dict())


def test_initial_weights_of_the_backbone_are_left_alone() -> None:
    """Only the decoder and the heads get the initialisation of this program, since weights may have been read."""
    torch.manual_seed(0)
    inside = StarDist(backbone="resnet10t").backbone
    torch.manual_seed(0)
    alone = Backbone("resnet10t", 3, (2, 4, 8, 16, 32))
    for mine, theirs in zip(inside.parameters(), alone.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_backbones_are_for_images() -> None:
    with pytest.raises(InputError, match="leave out backbone resnet18"):
        StarDist(backbone="resnet18", dimensions=3)


@pytest.mark.parametrize("name", ["stardist", "border_unet", "cellpose", "spatial_embedding", "omnipose"])
def test_microscopes_have_no_common_range_of_intensities(name: str) -> None:
    """The same cells ten times as bright or in 16 bits: the same input, mean and deviation of the backbone."""
    method = method_class(name)(backbone="resnet10t")
    preprocessing = method.preprocessing_of()
    assert preprocessing.normalise == "percentile"
    dim = np.random.default_rng(0).integers(0, 25, (40, 40, method.channels)).astype(np.uint8)
    found = [preprocessing(image) for image in (dim, 10 * dim, dim.astype(np.uint16) * 200)]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[0], found[2], rtol=1e-5, atol=1e-5)
    assert (preprocessing.mean, preprocessing.std) in {
        (method.backbone.mean, method.backbone.std),
        ((np.mean(method.backbone.mean),), (np.mean(method.backbone.std),)),
    }
    assert Model(method).preprocessing == preprocessing
