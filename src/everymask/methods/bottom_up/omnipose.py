"""Omnipose: objects of any shape, from the distance to their edge and the direction to their middle.

Cutler et al., Omnipose: a high-precision morphology-independent solution for bacterial cell segmentation, Nature
Methods 2022. Each pixel predicts the smooth distance to the edge of its object and the direction in which it grows;
pixels move a little that way, and those that come together are an object. Nothing has a centre, so bodies may be long
and bent.

Written from the paper and from what the official program (https://github.com/kevinjohncutler/omnipose, not for
commercial use) is known to compute; no code of it was used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from everymask.errors import InputError, unknown_name
from everymask.layers.unet import Dimensions, Norm
from everymask.losses import binary_cross_entropy
from everymask.methods.bottom_up.folded_maps import FoldedMaps, Unfold
from everymask.methods.bottom_up.objects import on_accelerator, turned_back
from everymask.methods.recipe import Recipe
from everymask.types import LabelMap, Segments

SCALE = 5.0
"""Length of the vectors of the flow. Errors of flow and distance are divided by it before they are squared."""

WEIGHT_REACH = 9.0
"""Pixels from the nearest object at which the weight of the background has fallen to its least."""

EULER_STEP = math.sqrt(2) / SCALE
"""Time step of the trajectories in the loss: the flow of an object leads as far as from a pixel to one askew of it."""


class Omnipose(FoldedMaps):
    """Distance and flow from a U-Net; pixels that the flow brings together are an object.

    The threshold ``mask`` is the distance in pixels above which a pixel surely belongs to an object; those up to 1
    below it belong to one if they are connected to such a pixel.

    Volumes need planes that are as far apart as pixels: distances and neighbours are counted in voxels here as in the
    official program. Bring others to cubic voxels before.

    Args:
        classes: Number of categories K. With more than one a class head is added.
        channels: Input channels C.
        boundary: Whether the network also learns to say which pixels are on the edge of their object. Decoding does
            not need it; it sharpens what the other maps are made from.
        clustering: How the pixels that came together are found: ``always`` by distance, ``never`` on the pixel grid,
            ``small`` by distance where objects are at most 12 pixels wide (see `everymask.ops.omnipose_masks`).
        steps: Steps that pixels follow the flow; fewer leave touching objects together, more tear thin bodies.
        min_size: Objects of fewer pixels (voxels) are dropped.
        fold: Side in pixels of the cells that the network works on, 1, 2 or 4; 2 takes a quarter of the time of 1.
        base: Features of the first U-Net level.
        depth: Poolings of the U-Net.
        norm: Normalisation.
        backbone: A network of timm as the encoder, such as ``resnet34``; empty for the U-Net. Not for volumes.
        dimensions: 2 for images, 3 for volumes.
        flat: Of volumes, the first poolings that leave the planes alone, for volumes of few planes.
    """

    tunable: ClassVar[Mapping[str, tuple[float, ...]]] = {"mask": (-1.0, 1.0)}

    def __init__(
        self,
        classes: int = 1,
        channels: int = 3,
        boundary: bool = True,
        clustering: str = "always",
        steps: int = 24,
        min_size: int = 15,
        fold: int = 2,
        base: int = 32,
        depth: int = 3,
        norm: Norm = "batch",
        backbone: str = "",
        dimensions: Dimensions = 2,
        flat: int = 0,
    ) -> None:
        super().__init__()
        from everymask.ops.omnipose_masks import Clustering

        if clustering not in get_args(Clustering):
            raise unknown_name("clustering", clustering, get_args(Clustering))
        if steps < 0 or min_size < 0:
            raise InputError(f"steps and min_size must be at least 0, got {steps} and {min_size}")
        self.clustering, self.steps, self.min_size = clustering, steps, min_size
        features = self.prepare(classes, channels, fold, base, depth, norm, backbone, dimensions=dimensions, flat=flat)
        self.maps = Unfold(features, dimensions + 1 + boundary, fold, dimensions)
        self.context += 4  # as far as pixels move
        if dimensions == 3:
            self.depth_context += 4
        self.thresholds = {"mask": 0.0}

    @classmethod
    def recipe(cls) -> Recipe:
        """Rotated by any angle, with AdamW and a cosine schedule.

        The official program trains for 4000 epochs of crops of 224 pixels, which are magnified at random by 0.5 to 1.5.
        """
        return Recipe(
            epochs=100, visits="area", batch_size=8, crop=192, learning_rate=2e-3, rotate=45, scale=(0.75, 1.3),
            contrast=(0.6, 1.6),
        )  # fmt: skip

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Outputs of images (B, C, H, W).

        Returns:
            ``flow`` (B, 2, H, W), down and right, of length 5 where it is certain; ``distance`` (B, 1, H, W) in pixels,
            negative outside objects; perhaps ``boundary`` (B, 1, H, W) logits; and with several categories
            ``category`` (B, K + 1, H, W) logits, background first. For volumes (B, C, D, H, W) each (B, ?, D, H, W),
            and ``flow`` has three components, from plane to plane, down and right.
        """
        (features,) = self.features(images)
        maps, axes = self.maps(features), self.dimensions
        # The network's own numbers stay about as large as its features.
        outputs = {"flow": SCALE * maps[:, :axes], "distance": SCALE * maps[:, axes : axes + 1]}
        if maps.shape[1] > axes + 1:
            outputs["boundary"] = maps[:, axes + 1 :]
        return outputs | self.category_logits(features)

    def targets(self, segments: Segments) -> dict[str, Tensor]:
        """Flow, distance (minus half the mean diameter outside objects), edge pixels, weight, validity, and classes."""
        from scipy.ndimage import gaussian_filter

        from everymask.ops.distance import signed_distance
        from everymask.ops.eikonal import eikonal_distance, mean_diameter, omnipose_flow
        from everymask.ops.labels import label_boundaries

        ids = self.objects(segments)
        distance = eikonal_distance(ids)
        # Without objects there is no diameter; any negative number says that there are none.
        outside = -mean_diameter(distance) / 2 if distance.any() else -SCALE
        nearness = 1 + np.clip(signed_distance(ids > 0) / WEIGHT_REACH, -1, 0)
        maps = {
            "flow": omnipose_flow(ids, distance),
            "distance": np.where(ids > 0, distance, np.float32(outside))[None],
            "weight": gaussian_filter(nearness, 1, mode="nearest")[None] + np.float32(0.5),
        }
        if self.maps.linear.out_channels > (self.dimensions + 1) * self.fold**2:
            maps["boundary"] = label_boundaries(ids)[None]
        targets = {name: torch.from_numpy(each.astype(np.float32, copy=False)) for name, each in maps.items()}
        return targets | self.common_targets(segments, ids)

    def loss(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The terms of the official program from version 1.0.6 on, with errors e of flow and distance divided by 5.

        ``flow``: 10 mean(w e^2); ``direction``: 2 mean(sin^2) of the angle to the true flow, over objects; ``length``:
        2 mean(w e^2) of the length of the vectors; ``distance``: 2 mean(w e^2); ``boundary``: twice the cross-entropy;
        ``trajectory``: squared difference in pixels of where the predicted and the true flow lead to, mean over two
        Euler steps. The weight w is 1/2 far from objects and 3/2 inside them.
        """
        valid = targets["valid"]
        flow, true_flow = outputs["flow"].float(), targets["flow"]
        weight = targets["weight"] * valid
        count = valid.sum().clamp(min=1)
        inside = valid * (true_flow != 0).any(1, keepdim=True)

        def error(difference: Tensor) -> Tensor:
            return (weight * difference.square().mean(1, keepdim=True)).sum() / (SCALE**2 * count)

        products = (flow * true_flow).sum(1, keepdim=True).square()
        squares = flow.square().sum(1, keepdim=True) * true_flow.square().sum(1, keepdim=True)
        # The addend keeps the gradient of a vector of length 0 finite.
        sines = 1 - products / (squares + 1e-3)
        terms = {
            "flow": 10 * error(flow - true_flow),
            "direction": 2 * (sines * inside).sum() / inside.sum().clamp(min=1),
            "length": 2 * error(_lengths(flow) - _lengths(true_flow)),
            "distance": 2 * error(outputs["distance"].float() - targets["distance"]),
        }
        with torch.no_grad():
            true_places = trajectories(true_flow)
        terms["trajectory"] = torch.stack(
            [
                SCALE**2 * error(places - true)
                for places, true in zip(trajectories(flow), true_places, strict=True)
            ]
        ).mean()  # fmt: skip
        if "boundary" in outputs:
            terms["boundary"] = 2 * binary_cross_entropy(outputs["boundary"], targets["boundary"], valid)
        return terms | self.category_loss(outputs, targets)

    def decode(self, outputs: Mapping[str, Tensor], sizes: Sequence[tuple[int, ...]]) -> list[Segments]:
        """Pixels that the flow brings together are an object; its score is how long its vectors are, 1 for a length 5.

        A network that is not certain of a direction predicts the mean of several, which is shorter.
        """
        from everymask.ops.watershed import mean_inside

        found = []
        for i, size in enumerate(sizes):
            window = (..., *(slice(length) for length in size))
            flow, distance = outputs["flow"][i][window].float(), outputs["distance"][i, 0][window].float()
            ids = self._labels(flow, distance)
            category = self.object_classes(outputs, i, ids)
            lengths = (flow.square().sum(0).sqrt().clamp(max=SCALE) / SCALE).cpu().numpy()
            score = mean_inside(ids, len(category), lengths).clip(0, 1)
            found.append(Segments(size, category, LabelMap(ids), score=score))
        return found

    def _labels(self, flow: Tensor, distance: Tensor) -> NDArray[np.int32]:
        """Ids (...) of the objects of a flow (axes, ...) and a distance (...); pixels move where these are."""
        threshold = self.thresholds["mask"]
        options: dict[str, Any] = {
            "clustering": self.clustering,
            "steps": self.steps,
            "minimum_area": self.min_size,
        }
        if on_accelerator(flow):
            from everymask.ops import omnipose_torch

            return omnipose_torch.omnipose_masks(flow, distance, threshold, **options)
        from everymask.ops import omnipose_masks

        return omnipose_masks.omnipose_masks(flow.cpu().numpy(), distance.cpu().numpy(), threshold, **options)

    def undo_dihedral(self, outputs: Mapping[str, Tensor], flip: bool, turns: int) -> dict[str, Tensor]:
        """Turns the maps back, and the vectors with them."""
        undone = super().undo_dihedral(outputs, flip, turns)
        return undone | {"flow": turned_back(undone["flow"], flip, turns)}


def trajectories(flow: Tensor, steps: int = 2, step: float = EULER_STEP) -> list[Tensor]:
    """How far each pixel is from its place after each Euler step along a flow, in pixels.

    Args:
        flow: Vectors (B, axes, ...) in the order of the axes, two or three; interpolated linearly between pixels, and
            beyond the border as on it.
        steps: How many.
        step: Time of a step.

    Returns:
        For each step displacements (B, axes, ...).
    """
    size = flow.shape[2:]
    lines = [torch.arange(length, dtype=flow.dtype, device=flow.device) for length in size]
    places = torch.stack(torch.meshgrid(lines, indexing="ij"))
    # From pixels to -1..1 between the centres of the first and the last pixel; x comes first.
    scale = torch.tensor([2 / max(length - 1, 1) for length in size], dtype=flow.dtype, device=flow.device)
    moved = step * flow
    found = [moved]
    for _ in range(steps - 1):
        grid = ((places + moved).movedim(1, -1) * scale - 1).flip(-1)
        there = functional.grid_sample(flow, grid, mode="bilinear", padding_mode="border", align_corners=True)
        moved = moved + step * there
        found.append(moved)
    return found


def _lengths(vectors: Tensor) -> Tensor:
    """(B, 1, ...) lengths of (B, axes, ...), with a finite gradient at 0."""
    return (vectors.square().sum(1, keepdim=True) + 1e-6).sqrt()
