"""Small networks of every semantic method, and a scene that they learn in seconds."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from everymask.methods import method_class
from everymask.methods.semantic.common import SemanticMethod
from everymask.types import LabelMap, Segments

SMALL: dict[str, dict[str, Any]] = {
    "unet": {"base": 8, "depth": 2},
    "unet on a backbone": {"backbone": "test_resnet"},
    "unet from stride 4": {"backbone": "test_convnext"},
    "res_unet": {"base": 8, "depth": 2},
    "fcn": {"backbone": "test_resnet"},
    "fcn with skips": {"backbone": "test_resnet", "variant": "8s"},
    "deeplabv3": {"backbone": "test_resnet"},
    "deeplabv3plus": {"backbone": "test_resnet", "width": 32},
    "deeplabv3plus undilated": {"backbone": "test_vit", "output_stride": 32, "width": 32},
    "pspnet": {"backbone": "test_resnet", "width": 64},
    "pspnet of three stages": {"backbone": "test_resnet", "depth": 3, "auxiliary": False, "smp": True},
}
"""Options of small networks; the name begins with that of the method."""


def small(name: str, classes: int = 3, channels: int = 3, **options: Any) -> SemanticMethod:
    """A small network, always with the same weights."""
    torch.manual_seed(0)
    made = method_class(name.split()[0])(classes=classes, channels=channels, **SMALL[name], **options)
    assert isinstance(made, SemanticMethod)
    return made


def scene(height: int = 64, width: int = 64, seed: int = 0) -> tuple[np.ndarray, Segments]:
    """Sky, road and a box on it, each of its own colour with noise; (H, W, 3) uint8 and classes 0, 1 and 2."""
    random = np.random.default_rng(seed)
    ids = np.ones((height, width), np.int32)
    ids[height // 2 :] = 2
    top, left = random.integers(height // 4, height // 2), random.integers(width // 2)
    ids[top : top + height // 3, left : left + width // 3] = 3
    colours = np.array([[90, 140, 220], [110, 110, 100], [200, 60, 40]])
    image = colours[ids - 1] + random.normal(0, 12, (height, width, 3))
    return image.clip(0, 255).astype(np.uint8), Segments((height, width), [0, 1, 2], LabelMap(ids))


def batch(method: SemanticMethod, count: int = 2, side: int = 64) -> tuple[Tensor, dict[str, Tensor]]:
    """Images as the method takes them, and what it should say of them."""
    scenes = [scene(side, side, seed) for seed in range(count)]
    prepared = method.preprocessing_of()
    images = torch.from_numpy(np.stack([prepared(image) for image, _ in scenes]))
    targets = [method.targets(segments) for _, segments in scenes]
    return images, {name: torch.stack([each[name] for each in targets]) for name in targets[0]}


def randomise(network: nn.Module) -> nn.Module:
    """Statistics and scales of normalisation other than those of a new network, which hide mistakes."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.6, 1.4)
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return network.eval()
