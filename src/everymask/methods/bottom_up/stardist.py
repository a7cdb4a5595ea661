"""StarDist: objects as star-convex polygons, in volumes as star-convex polyhedra.

Schmidt et al., Cell Detection with Star-Convex Polygons, MICCAI 2018; Weigert et al., Star-convex Polyhedra for 3D
Object Detection and Segmentation in Microscopy, WACV 2020. Program: https://github.com/stardist/stardist (BSD-3). Each
pixel predicts an object probability and the distance to the object's outline along R rays; polygons of probable pixels
are thinned out by non-maximum suppression and drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from everymask.errors import InputError
from everymask.layers.unet import Dimensions, Norm, UNet, check_dimensions, convolution, initialise
from everymask.layers.unet_decoder import UNetDecoder
from everymask.losses import binary_cross_entropy, cross_entropy, masked_l1
from everymask.methods.base import Method
from everymask.methods.bottom_up.objects import learnt_ids, on_accelerator, pixel_spacing
from everymask.methods.bottom_up.stardist_weights import from_stardist, settings_beside
from everymask.methods.preparation import at_stride, decoder_down_to
from everymask.methods.recipe import Recipe
from everymask.types import LabelMap, Segments, Task
from everymask.types.geometry import VOID

Floats = NDArray[np.float32]


class StarDist(Method):
    """Star-convex polygons on a U-Net, or polyhedra in volumes.

    Args:
        classes: Number of categories K. With more than one a class head is added.
        channels: Input channels C.
        rays: Number of rays R, counter-clockwise from the positive x axis, or on a golden spiral around the z axis of
            volumes; 0 for 32, in volumes 96.
        grid: Input pixels per output pixel, 1, 2 or 4.
        base: Features of the first U-Net level.
        depth: Poolings of the U-Net. The official program has 3 for images and 2 for volumes.
        convolutions: Convolutions of a level of the U-Net, on each side, and before each pooling down to the grid.
        features: Features of the last convolution before the outputs, one shared by probability and distances and one
            of the classes; 0 for outputs straight from the U-Net.
        norm: Normalisation; the official networks have none, so weights from there need ``none``.
        distance_weight: Weight of the distance term.
        background_weight: Weight of the distances outside objects, relative to the distance term.
        dimensions: 2 for images, 3 for volumes.
        anisotropy: Of volumes, the distance between planes in pixels.
        flat: Of volumes, the first poolings of the U-Net that leave the planes alone, where these lie further apart
            than pixels.
        depth_grid: Of volumes, planes per output plane, 1, 2 or 4 and at most `grid`; 0 for `grid`, or for 1 where the
            anisotropy is above 1.5, as in the official example.
        backbone: Any network of timm with the decoder of a U-Net, such as ``resnet34``, in place of the U-Net; `base`,
            `depth`, `convolutions` and `norm` then mean nothing.
    """

    tasks: ClassVar[frozenset[Task]] = frozenset({Task.INSTANCE})
    metric: ClassVar[tuple[str, str]] = ("matching", "mean_accuracy")
    stretched: ClassVar[bool] = True
    tunable: ClassVar[Mapping[str, tuple[float, ...]]] = {"probability": (0.1, 0.9), "overlap": (0.3, 0.4, 0.5)}
    logit_layers: ClassVar[tuple[str, ...]] = ("category",)

    def __init__(
        self,
        classes: int = 1,
        channels: int = 3,
        rays: int = 0,
        grid: int = 2,
        base: int = 32,
        depth: int = 3,
        convolutions: int = 2,
        features: int = 128,
        norm: Norm = "batch",
        distance_weight: float = 0.2,
        background_weight: float = 1e-4,
        dimensions: Dimensions = 2,
        anisotropy: float = 1.0,
        flat: int = 0,
        depth_grid: int = 0,
        backbone: str = "",
    ) -> None:
        super().__init__()
        check_dimensions(dimensions, flat, depth)
        self.spacing = pixel_spacing(dimensions, anisotropy, backbone)
        if grid not in (1, 2, 4):
            raise InputError(f"grid must be 1, 2 or 4, got {grid}")
        if min(channels, base, convolutions) < 1 or features < 0:
            raise InputError(
                f"channels, base and convolutions must be at least 1 and features at least 0, got channels {channels}, "
                f"base {base}, convolutions {convolutions} and features {features}"
            )
        shape, least = ("polygon", 3) if dimensions == 2 else ("polyhedron", 5)
        if rays and rays < least:
            raise InputError(f"a {shape} needs at least {least} rays, got {rays}")
        self.dimensions, self.anisotropy = dimensions, anisotropy
        self.classes, self.channels, self.grid = classes, channels, grid
        self.rays = rays or (32 if dimensions == 2 else 96)
        self.distance_weight, self.background_weight = distance_weight, background_weight
        self._settle_planes(depth_grid)
        if backbone:
            self.backbone, widths = decoder_down_to(backbone, channels, grid)
            self.body: UNetDecoder | UNet = UNetDecoder(self.backbone.widths, widths)
            self.stride = math.lcm(self.backbone.stride, grid)
            self.context = 4 * self.stride
        else:
            self.body = self._make_unet(base, depth, convolutions, norm, flat)

        def last() -> nn.Module:
            if not features:
                return nn.Identity()
            return convolution(self.body.width, features, norm, dimensions=dimensions)

        def head(outputs: int) -> nn.Module:
            return (nn.Conv2d if dimensions == 2 else nn.Conv3d)(features or self.body.width, outputs, 1)

        self.features = last()
        self.probability = head(1)
        self.distances = head(self.rays)
        self.category = nn.Sequential(last(), head(classes + 1)) if classes > 1 else None
        self.thresholds = {"probability": 0.5, "overlap": 0.4}
        for name, part in self.named_children():
            if name != "backbone":
                initialise(part)
        # Distances start near the size of common objects, so that the first epochs are not spent on reaching it.
        nn.init.constant_(self.distances.bias, 8.0)  # type: ignore[arg-type]
        nn.init.constant_(self.probability.bias, -2.0)  # type: ignore[arg-type]

    def _make_unet(self, base: int, depth: int, convolutions: int, norm: Norm, flat: int) -> UNet:
        """The U-Net and before it the convolutions and poolings down to the grid, with the strides of both."""
        dimensions, poolings = self.dimensions, int(math.log2(self.grid))
        stem: list[nn.Module] = []
        for i in range(poolings):
            stem += [
                convolution(self.channels if i == j == 0 else base, base, norm, dimensions=dimensions)
                for j in range(convolutions)
            ]
            stem.append(nn.MaxPool2d(2) if dimensions == 2 else nn.MaxPool3d((1 + (self.depth_grid > 2**i), 2, 2)))
        self.stem = nn.Sequential(*stem)
        inputs = base if poolings else self.channels
        body = UNet(inputs, base, depth, convolutions, norm, dimensions=dimensions, flat=flat)
        self.stride = self.grid * 2**depth
        self.context = self.grid * (body.radius + 1) + (convolutions + 1) * self.grid
        if dimensions == 3:
            # The stem sees as many planes as pixels, however few of them it pools.
            self.depth_stride = self.depth_grid * body.depth_stride
            self.depth_context = self.depth_grid * (body.depth_radius + 1)
            self.depth_context += sum(convolutions * min(2**i, self.depth_grid) for i in range(poolings))
            self.depth_context += self.depth_grid - 1
        return body

    def _settle_planes(self, depth_grid: int) -> None:
        """Checks the planes per output plane, and finds them where they are to be found."""
        if self.dimensions == 2:
            if depth_grid:
                raise InputError(f"depth_grid is for volumes (dimensions 3), got {depth_grid} with dimensions 2")
            return
        if depth_grid not in (0, 1, 2, 4) or depth_grid > self.grid:
            raise InputError(
                f"depth_grid must be 1, 2 or 4 and at most the grid of {self.grid}, or 0, got {depth_grid}"
            )
        self.depth_grid = depth_grid or (1 if self.anisotropy > 1.5 else self.grid)

    @property
    def steps(self) -> tuple[int, ...]:
        """Input pixels per output pixel along each axis, (y, x) or (z, y, x)."""
        return (self.grid, self.grid) if self.dimensions == 2 else (self.depth_grid, self.grid, self.grid)

    def sphere(self) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Directions (R, 3) of the rays of volumes, z, y, x in voxels, and triangles (F, 3) between them."""
        from everymask.ops.sphere_rays import golden_spiral

        return golden_spiral(self.rays, self.anisotropy)

    @classmethod
    def recipe(cls) -> Recipe:
        """Rates and crops of the official example, with AdamW and a cosine schedule instead of the plateau."""
        return Recipe(epochs=100, batch_size=8, crop=256, learning_rate=1e-3, noise=0.02, contrast=(0.6, 2.0))

    @classmethod
    def recipe_for(cls, **options: Any) -> Recipe:
        """For volumes two crops of 96 pixels a side, and the rate of the official program.

        That takes one of 128 voxels a side, in its example two of 48 planes of 96 x 96 pixels.
        """
        if int(options.get("dimensions", 2)) == 2:
            return cls.recipe()
        anisotropy = float(options.get("anisotropy", 1.0))
        planes = max(16, 16 * round(6 / anisotropy)) if anisotropy > 1 else 0
        return cls.recipe().with_options(batch_size=2, crop=96, planes=planes, learning_rate=3e-4)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Outputs of images (B, C, H, W) or volumes (B, C, D, H, W) on the grid.

        Returns:
            ``probability`` (B, 1, h, w) logits, ``distances`` (B, R, h, w) in input pixels, and with several
            categories ``category`` (B, K + 1, h, w) logits, background first; of volumes (B, ?, d, h, w).
        """
        shared = self._shared(images)
        features = self.features(shared)
        outputs = {"probability": self.probability(features), "distances": self.distances(features)}
        if self.category is not None:
            outputs["category"] = self.category(shared)
        return outputs

    def _shared(self, images: Tensor) -> Tensor:
        """The features on the grid that all outputs have in common."""
        if not hasattr(self, "backbone"):
            return self.body(self.stem(images))
        return at_stride(self.body(self.backbone(images)), self.backbone, images, self.grid)

    def targets(self, segments: Segments) -> dict[str, Tensor]:
        """Normalised distance to the background, ray lengths, validity and (with several categories) classes."""
        from everymask.ops.distance import object_probability

        ids = learnt_ids(segments)
        objects = np.maximum(ids, 0)
        cells = tuple(slice(None, None, step) for step in self.steps)
        targets = {
            "probability": torch.from_numpy(object_probability(objects, self.spacing)[None, *cells].copy()),
            "distances": torch.from_numpy(self._ray_lengths(objects)),
            "valid": torch.from_numpy((ids[None, *cells] != VOID).astype(np.float32)),
        }
        if self.category is not None:
            table = np.concatenate([[VOID, 0], segments.category + 1])
            targets["category"] = torch.from_numpy(table[ids[cells] + 1])
        return targets

    def _ray_lengths(self, objects: NDArray[np.int32]) -> NDArray[np.float32]:
        """Distances (R, h, w) or (R, d, h, w) of ids (H, W) or (D, H, W)."""
        from everymask.ops.sphere_rays import ray_distances
        from everymask.ops.stars import star_distances

        if self.dimensions == 2:
            return star_distances(objects, self.rays, self.grid).transpose(2, 0, 1).copy()
        return ray_distances(objects, self.sphere()[0], (self.depth_grid, self.grid, self.grid))

    def loss(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Cross-entropy of the probability plus weighted L1 of the distances (paper, section 2; official weights)."""
        probability, valid = targets["probability"], targets["valid"]
        inside = probability * valid
        outside = (1 - probability) * valid
        terms = {
            "probability": binary_cross_entropy(outputs["probability"], probability, valid),
            "distances": self.distance_weight * masked_l1(outputs["distances"], targets["distances"], inside),
        }
        # Far from objects the rays should be short, not arbitrary.
        shrink = (outside * outputs["distances"].float().abs()).mean()
        terms["distances"] = terms["distances"] + self.distance_weight * self.background_weight * shrink
        if "category" in outputs:
            terms["category"] = cross_entropy(outputs["category"], targets["category"])
        return terms

    def decode(self, outputs: Mapping[str, Tensor], sizes: Sequence[tuple[int, ...]]) -> list[Segments]:
        """Candidates above the probability threshold, greedy non-maximum suppression, drawing."""
        probabilities = outputs["probability"].float().sigmoid()[:, 0]
        classes = outputs["category"].float().argmax(1).cpu().numpy() if "category" in outputs else None
        suppress_and_draw = self._polygons if self.dimensions == 2 else self._polyhedra
        found = []
        for i, size in enumerate(sizes):
            cells = tuple(slice(-(-side // step)) for side, step in zip(size, self.steps, strict=True))
            candidates = self._candidates(probabilities[i, *cells], outputs["distances"][i, :, *cells])
            points, scores, ids = suppress_and_draw(*candidates, size)
            category = np.zeros(len(points), np.int64)
            if classes is not None:
                at = (points // self.steps).astype(np.int64)
                category = np.maximum(classes[i][tuple(at.T)] - 1, 0)
            drawn = Segments(size, category, LabelMap(ids), score=scores)
            # A star that others cover entirely has no pixel left; one that owns its centre, which is quick to see, has.
            if (ids[tuple(points.astype(np.int64).T)] != np.arange(1, len(points) + 1)).any():
                areas = drawn.areas()
                drawn = drawn if areas.all() else drawn[areas > 0]
            found.append(drawn)
        return found

    def _candidates(self, probability: Tensor, distances: Tensor) -> tuple[Floats, Floats, Floats]:
        """Points (N, 2) or (N, 3), scores (N,) and distances (N, R), best first.

        Args:
            probability: (h, w) or (d, h, w), of one image.
            distances: (R, h, w) or (R, d, h, w).
        """
        threshold = self.thresholds["probability"]
        if on_accelerator(distances):
            from everymask.ops.star_torch import candidates as candidates_there

            points, scores, rays = candidates_there(probability, distances, threshold, grid=self.steps)
            return points.cpu().numpy(), scores.cpu().numpy(), rays.cpu().numpy()
        probabilities, distances = probability.cpu().numpy(), distances.float().cpu()
        if self.dimensions == 2:
            from everymask.ops.stars import candidates

            return candidates(probabilities, distances.permute(1, 2, 0).numpy(), threshold, grid=self.grid)
        from everymask.ops.star_volumes import volume_candidates

        grid = (self.depth_grid, self.grid, self.grid)
        return volume_candidates(probabilities, distances.numpy(), threshold, grid=grid)

    def _polygons(
        self, points: Floats, scores: Floats, lengths: Floats, size: tuple[int, ...]
    ) -> tuple[Floats, Floats, NDArray[np.int32]]:
        """Centres and scores of the kept ones, and ids (H, W)."""
        from everymask.ops.stars import non_maximum_suppression, render_stars

        keep = non_maximum_suppression(points, scores, lengths, self.thresholds["overlap"])
        points, scores, lengths = points[keep], scores[keep], lengths[keep]
        return points, scores, render_stars(points, lengths, (size[0], size[1]))

    def _polyhedra(
        self, points: Floats, scores: Floats, lengths: Floats, size: tuple[int, ...]
    ) -> tuple[Floats, Floats, NDArray[np.int32]]:
        """Centres and scores of the kept ones, and ids (D, H, W)."""
        from everymask.ops.star_volumes import render_polyhedra, suppress_polyhedra

        directions, faces = self.sphere()
        keep = suppress_polyhedra(points, scores, lengths, directions, faces, self.thresholds["overlap"])
        points, scores, lengths = points[keep], scores[keep], lengths[keep]
        return points, scores, render_polyhedra(points, lengths, directions, faces, (size[0], size[1], size[2]))

    def undo_dihedral(self, outputs: Mapping[str, Tensor], flip: bool, turns: int) -> dict[str, Tensor]:
        """Turns the maps back and sorts the rays into their old directions.

        Those of volumes lie in no old direction: there distances are interpolated between three rays
        (`everymask.ops.sphere_rays.turned_rays`), which changes them by about 2 % for round objects.
        """
        undone = super().undo_dihedral(outputs, flip, turns)
        if self.dimensions == 3:
            undone["distances"] = self._interpolated(undone["distances"], flip, turns % 4)
            return undone
        ray = torch.arange(self.rays, device=outputs["distances"].device)
        # Ray k points along (cos, sin)(2 pi k / R) in (x, y down). Turning the image counter-clockwise by a quarter
        # takes direction a to a - pi/2 in these coordinates; a left-right flip takes a to pi - a.
        if turns % 4 and self.rays % 4:
            raise InputError(f"quarter turns need a multiple of 4 rays, the model has {self.rays}")
        source = ray - turns * self.rays // 4
        if flip:
            if self.rays % 2:
                raise InputError(f"flips need an even number of rays, the model has {self.rays}")
            source = self.rays // 2 - source
        undone["distances"] = undone["distances"][:, source % self.rays]
        return undone

    def _interpolated(self, distances: Tensor, flip: bool, turns: int) -> Tensor:
        """Distances (B, R, d, h, w) in the directions of the volume from those in directions of its turned copy."""
        from everymask.ops.sphere_rays import turned_rays

        if not flip and not turns:
            return distances
        corners, weights = turned_rays(*self.sphere(), flip, turns, self.anisotropy)
        mixture = distances.new_zeros(self.rays, self.rays)
        rows = torch.arange(self.rays, device=distances.device)[:, None].expand(-1, 3)
        mixture[rows, torch.from_numpy(corners).to(distances.device)] = torch.from_numpy(weights).to(distances)
        return torch.einsum("kr,brdhw->bkdhw", mixture, distances)

    def foreign(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of the official program's network (`StarDist2D.keras_model`, `StarDist3D.keras_model`) by our names.

        Args:
            state: From `everymask.methods.keras.read_keras`. Tensors under the names of this method stay as they are.

        Raises:
            InputError: They are of a network that other options make; the options are named.
        """
        return from_stardist(state, self._settled_config())

    def read_beside(self, path: Path) -> dict[str, float]:
        """Thresholds of ``thresholds.json`` beside the official program's weights, which ``config.json`` describes.

        Args:
            path: Of the weights.

        Raises:
            InputError: The network differs in what its weights do not show, or one of the files cannot be read.
        """
        return settings_beside(path, self._settled_config())

    def _settled_config(self) -> dict[str, Any]:
        """The constructor arguments, with what a 0 there stands for."""
        return self.config | {"rays": self.rays, "depth_grid": self.depth_grid}
