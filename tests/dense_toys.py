"""What the tests of SSD and RetinaNet share: images, truth, weights that find something, comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from everymask.metrics import make_metric
from everymask.types import Categories, Category, Segments


def shaken(network: nn.Module, factors: Mapping[str, float]) -> nn.Module:
    """Random weights under which objects are found: biases and statistics that are not zero and one, decisive layers.

    Args:
        network: Changed in place.
        factors: For a part of the names of weights what they are multiplied by.
    """
    random = torch.Generator().manual_seed(1)
    for name, parameter in network.named_parameters():
        for part, factor in factors.items():
            if part in name and name.endswith("weight"):
                parameter.data *= factor
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=random)
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer += 0.05 * torch.randn(buffer.shape, generator=random)
        elif name.endswith("running_var"):
            buffer *= 0.8 + 0.5 * torch.rand(buffer.shape, generator=random)
    return network


def noise(height: int, width: int, seed: int = 2) -> Tensor:
    """An image (3, H, W) of 0..1."""
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def real_images(shared_data: Path, number: int, longest: int) -> list[Tensor]:
    """The first photographs (3, H, W) of 0..1, made smaller."""
    images = []
    for place in sorted((shared_data / "coco" / "tiny160" / "train2017").glob("*.jpg"))[:number]:
        with Image.open(place) as opened:
            opened.thumbnail((longest, longest))
            array = np.asarray(opened.convert("RGB"))
        images.append(torch.from_numpy(array.copy()).permute(2, 0, 1).float() / 255)
    return images


def normalised(images: Sequence[Tensor], mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """A batch (B, 3, H, W) of images of one size."""
    return (torch.stack(list(images)) - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def truth() -> tuple[list[dict[str, Tensor]], dict[str, list[Tensor]]]:
    """Objects of two images for torchvision (labels from 1) and for us (classes from 0)."""
    boxes = [
        # Two anchors that lie alike about a box would else have IoUs which differ by rounding only.
        torch.tensor([[10.2, 12.3, 60, 50.9], [40.1, 60, 120.6, 110.2], [0, 0, 127.3, 126.1], [3.3, 100, 9.6, 105.7]]),
        torch.tensor([[5.2, 70.1, 50.3, 121.7], [6.4, 71.9, 50.3, 121.7]]),
    ]
    labels = [torch.tensor([1, 3, 2, 4]), torch.tensor([4, 1])]
    theirs = [{"boxes": one, "labels": two} for one, two in zip(boxes, labels, strict=True)]
    crowd = [torch.zeros(len(each), dtype=torch.bool) for each in boxes]
    return theirs, {"boxes": boxes, "classes": [each - 1 for each in labels], "crowd": crowd}


def check_same_detections(
    found: Sequence[Segments], expected: Sequence[dict[str, Tensor]], shift: int, least: int = 5
) -> None:
    """The same boxes, scores and classes (their label less `shift`); boxes without area left out.

    The best come first, but those of almost the same score may have changed places.
    """
    assert sum(len(each) for each in found) >= least
    for segments, each in zip(found, expected, strict=True):
        boxes = each["boxes"].numpy()
        solid = (boxes[:, 2:] > boxes[:, :2]).all(1)
        boxes, scores, classes = boxes[solid], each["scores"].numpy()[solid], each["labels"].numpy()[solid] - shift
        own, score = segments.boxes(), np.asarray(segments.score)
        np.testing.assert_allclose(score, scores, atol=1e-4)
        far = abs(own[:, None] - boxes).max(-1) / np.maximum(1, abs(boxes).max(-1))
        same = (far < 1e-4) & (segments.category[:, None] == classes) & (abs(score[:, None] - scores) < 1e-4)
        assert np.array_equal(same.sum(0), np.ones(len(boxes))) and np.array_equal(same.sum(1), np.ones(len(boxes)))


def batch_of(method: Any, truths: Sequence[Segments]) -> dict[str, list[Tensor]]:
    """Targets as the loader collates them."""
    each = [method.targets(truth) for truth in truths]
    return {name: [one[name] for one in each] for name in each[0]}


def shapes(side: int, unit: int, number: int = 2) -> tuple[Tensor, list[Segments]]:
    """Images (B, 3, side, side) of a disc, a square and a disc on noise, whose sizes go by `unit` pixels."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:side, :side] / unit
    images: list[Tensor] = []
    truths: list[Segments] = []
    for image in range(number):
        picture = -np.ones((side, side))
        boxes = []
        for index, (y, x) in enumerate([(2.2, 2.4), (2.3, 5.6), (5.5, 2.3 + image)]):
            radius = 1.1 + 0.3 * index
            across, down = abs(columns - x), abs(rows - y)
            inside = (np.maximum(across, down) if index == 1 else np.hypot(across, down)) < radius
            picture[inside] = 1.0
            lines, places = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
            boxes.append([places[0], lines[0], places[-1] + 1, lines[-1] + 1])
        noisy = picture + 0.1 * random.standard_normal((3, side, side))
        images.append(torch.from_numpy(noisy.astype(np.float32)))
        truths.append(Segments((side, side), [0, 1, 0], box=boxes))
    return torch.stack(images), truths


def ap50(found: Sequence[Segments], truths: Sequence[Segments]) -> float:
    """COCO's AP at an IoU of .5."""
    metric = make_metric("coco_boxes", Categories([Category(0, "disc"), Category(1, "square")]))
    for number, (segments, true) in enumerate(zip(found, truths, strict=True)):
        metric.update(true, segments, str(number))
    return float(metric.compute()["ap50"])


def fit(method: Any, images: Tensor, truths: Sequence[Segments], steps: int, rate: float) -> list[Segments]:
    """What the method finds in a few images after so many steps on them."""
    targets = batch_of(method, truths)
    optimiser = torch.optim.AdamW(method.parameters(), rate)
    method.train()
    for _ in range(steps):
        optimiser.zero_grad()
        sum(method.training_loss(images, targets).values(), torch.zeros(())).backward()
        optimiser.step()
    method.eval()
    with torch.inference_mode():
        found: list[Segments] = method.decode(method(images), [each.size for each in truths])
    return found
