"""What the watershed methods share: maps of every pixel from a folded U-Net with some decoders, classes, void."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from everymask.errors import InputError
from everymask.layers.unet import Dimensions, Norm, UNet, check_dimensions, initialise
from everymask.layers.unet_decoder import UNetDecoder
from everymask.losses import cross_entropy
from everymask.methods.base import Method
from everymask.methods.bottom_up.objects import learnt_ids, pixel_spacing
from everymask.methods.preparation import at_stride, decoder_down_to
from everymask.types import Segments, Task
from everymask.types.geometry import VOID


class FoldedMaps(Method):
    """Maps of every pixel from a network that works on cells of `fold` x `fold` pixels.

    The pixels of a cell become channels of the input, without loss; each map has as many outputs in a cell, which
    become pixels again (sub-pixel convolution: Shi et al., CVPR 2016). A quarter of the work of the unfolded network
    with `fold` 2, for edges that are as sharp. In volumes a cell is of one plane: maps (H, W) here are (D, H, W) there.

    A subclass calls `prepare` in `__init__` and makes its heads by `Unfold`; its `forward` begins with `features`.

    Attributes:
        fold: Side of a cell in pixels.
        spacing: Pixel size along each axis, in pixels of a plane.
    """

    tasks: ClassVar[frozenset[Task]] = frozenset({Task.INSTANCE})
    metric: ClassVar[tuple[str, str]] = ("matching", "mean_accuracy")
    stretched: ClassVar[bool] = True

    fold: int
    spacing: tuple[float, ...]
    category: Unfold | None

    def prepare(
        self,
        classes: int,
        channels: int,
        fold: int,
        base: int,
        depth: int,
        norm: Norm,
        backbone: str,
        decoders: int = 1,
        dimensions: Dimensions = 2,
        anisotropy: float = 1.0,
        flat: int = 0,
    ) -> int:
        """Makes the network up to the last features, and with several classes their head.

        Args:
            classes: Number of categories K.
            channels: Input channels C.
            fold: Side of a cell in pixels, 1, 2 or 4.
            base: Features of the first level of the U-Net.
            depth: Its poolings.
            norm: Its normalisation.
            backbone: A network of timm as the encoder instead; empty for the U-Net.
            decoders: Decoders, each with features of its own, on the one encoder.
            dimensions: 2 for images, 3 for volumes.
            anisotropy: Of volumes, the distance between planes in pixels.
            flat: Of volumes, the first poolings that leave the planes alone.

        Returns:
            The number of features of each decoder.

        Raises:
            InputError: The fold is another one, a number is too small, or options contradict each other.
        """
        if fold not in (1, 2, 4):
            raise InputError(f"fold must be 1, 2 or 4, got {fold}")
        if min(classes, channels) < 1:
            raise InputError(f"classes and channels must be at least 1, got {classes} and {channels}")
        self.spacing = pixel_spacing(dimensions, anisotropy, backbone)
        self.classes, self.channels, self.fold = classes, channels, fold
        self.dimensions, self.anisotropy = dimensions, anisotropy
        if backbone:
            check_dimensions(dimensions, flat, depth)
            self.backbone, widths = decoder_down_to(backbone, channels, fold)  # the levels end at the cells
            self.decoders = nn.ModuleList(UNetDecoder(self.backbone.widths, widths) for _ in range(decoders))
            initialise(self.decoders)
            features = widths[-1]
            self.stride = math.lcm(self.backbone.stride, fold)
            self.context = 4 * self.stride
        else:
            self.body = UNet(channels * fold**2, base, depth, norm=norm, dimensions=dimensions, flat=flat)
            # Further decoders: the way up once more, with weights of its own.
            self.ways_up = nn.ModuleList(copy.deepcopy(self.body.up) for _ in range(decoders - 1))
            initialise(self.body)
            initialise(self.ways_up)
            features = self.body.width
            self.stride, self.context = fold * self.body.stride, fold * (self.body.radius + 1)
            if dimensions == 3:
                self.depth_stride, self.depth_context = self.body.depth_stride, self.body.depth_radius
        self.category = Unfold(features, classes + 1, fold, dimensions) if classes > 1 else None
        return features

    def features(self, images: Tensor) -> list[Tensor]:
        """The features (B, F, H / fold, W / fold) of each decoder for images (B, C, H, W)."""
        if not hasattr(self, "backbone"):
            return _of_each_way_up(self.body, self.ways_up, folded(images, self.fold))
        pyramid = self.backbone(images)
        return [at_stride(decoder(pyramid), self.backbone, images, self.fold) for decoder in self.decoders]

    def category_logits(self, features: Tensor) -> dict[str, Tensor]:
        """``category`` (B, K + 1, H, W), background first; nothing with a single class."""
        return {} if self.category is None else {"category": self.category(features)}

    def category_loss(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Cross-entropy of the classes, if there are several."""
        if "category" not in outputs:
            return {}
        return {"category": cross_entropy(outputs["category"], targets["category"])}

    def objects(self, segments: Segments) -> NDArray[np.int32]:
        """Ids (H, W) of what is learnt: 0 background, -1 void, and each connected part of an object for itself.

        A crop or an annotator may have cut an object into parts. Nothing that a pixel sees tells that they are one, and
        each is decoded as an object of its own. Crowd regions are void.
        """
        from everymask.ops.labels import connected_components

        ids = learnt_ids(segments)
        return connected_components(ids, connectivity=ids.ndim)[0]

    def common_targets(self, segments: Segments, ids: NDArray[np.int32]) -> dict[str, Tensor]:
        """``valid`` (1, H, W), 0 where void, and with several categories ``category`` (H, W), -1 where void.

        Args:
            segments: The sample.
            ids: Of `objects`.
        """
        void = ids == VOID
        targets = {"valid": torch.from_numpy((~void).astype(np.float32)[None])}
        if self.category is not None:
            table = np.concatenate([[VOID, 0], segments.category + 1])
            classes = np.where(void, VOID, table[segments.label_map("last") + 1])
            targets["category"] = torch.from_numpy(classes.astype(np.int64))
        return targets

    def object_classes(self, outputs: Mapping[str, Tensor], index: int, ids: NDArray[np.int32]) -> NDArray[np.int64]:
        """Class indices (N,) of the objects 1..N in image `index`, whose ids are (H, W) without padding."""
        from everymask.ops.watershed import class_votes

        count = int(ids.max(initial=0))
        if "category" not in outputs:
            return np.zeros(count, np.int64)
        probability = outputs["category"][index].float().softmax(0)[1:].cpu().numpy()
        return class_votes(ids, count, probability)


class Unfold(nn.Module):
    """A linear map of features of cells to outputs of their pixels.

    Args:
        features: Channels that come in.
        outputs: Channels that go out.
        fold: Side of a cell in pixels.
        dimensions: 2 for images, 3 for volumes.
    """

    def __init__(self, features: int, outputs: int, fold: int, dimensions: Dimensions = 2) -> None:
        super().__init__()
        self.linear = (nn.Conv2d if dimensions == 2 else nn.Conv3d)(features, outputs * fold**2, 1)
        self.fold = fold
        initialise(self.linear)
        with torch.no_grad():
            # All pixels of a cell start equal, so that no chequered pattern has to be unlearnt (Aitken et al. 2017).
            self.linear.weight.copy_(self.linear.weight[:: fold**2].repeat_interleave(fold**2, 0))

    def forward(self, features: Tensor) -> Tensor:
        """(B, outputs, fold h, fold w) of (B, features, h, w), or (B, outputs, D, fold h, fold w) of volumes."""
        return unfolded(self.linear(features), self.fold)


def folded(images: Tensor, fold: int) -> Tensor:
    """The pixels of cells as channels: (B, C fold^2, H / fold, W / fold) of (B, C, H, W).

    Of volumes (B, C, D, H, W) each plane for itself: (B, C fold^2, D, H / fold, W / fold).
    """
    if fold == 1:
        return images
    if images.ndim == 4:
        return functional.pixel_unshuffle(images, fold)
    batch, channels, planes, height, width = images.shape
    cells = images.reshape(batch, channels, planes, height // fold, fold, width // fold, fold)
    order = (0, 1, 4, 6, 2, 3, 5)
    return cells.permute(order).reshape(batch, channels * fold**2, planes, height // fold, width // fold)


def unfolded(maps: Tensor, fold: int) -> Tensor:
    """The inverse of `folded`."""
    if fold == 1:
        return maps
    if maps.ndim == 4:
        return functional.pixel_shuffle(maps, fold)
    batch, channels, planes, height, width = maps.shape
    cells = maps.reshape(batch, channels // fold**2, fold, fold, planes, height, width)
    order = (0, 1, 4, 5, 2, 6, 3)
    return cells.permute(order).reshape(batch, channels // fold**2, planes, height * fold, width * fold)


def _of_each_way_up(network: UNet, ways_up: nn.ModuleList, images: Tensor) -> list[Tensor]:
    """The features of the network, and those of further ways up from the same skip connections."""
    pool = functional.max_pool2d if network.dimensions == 2 else functional.max_pool3d
    skips = []
    features = images
    for down, pooling in zip(network.down, network.poolings, strict=True):
        features = down(features)
        skips.append(features)
        features = pool(features, pooling)
    lowest = network.bottom(features)
    found = []
    ways: list[Any] = [network.up, *ways_up]
    for way in ways:
        features = lowest
        for level, skip, pooling in reversed(list(zip(way, skips, network.poolings, strict=True))):
            factors = float(pooling) if isinstance(pooling, int) else [float(each) for each in pooling]
            features = functional.interpolate(features, scale_factor=factors, mode="nearest")
            features = level(torch.cat([features, skip], dim=1))
        found.append(features)
    return found
