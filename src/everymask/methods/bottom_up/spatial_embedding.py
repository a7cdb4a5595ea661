"""Spatial embeddings: each pixel points at the centre of its object and says how large the object is.

Neven et al., Instance Segmentation by Jointly Optimizing Spatial Embeddings and Clustering Bandwidth, CVPR 2019;
medoids as centres and the settings for microscopy from Lalit, Tomancak, Jug, EmbedSeg: Embedding-based Instance
Segmentation for Biomedical Microscopy Data, Medical Image Analysis 2022. Objects may have any shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from everymask.errors import InputError, unknown_name
from everymask.layers.erfnet import BranchedERFNet
from everymask.layers.unet import Dimensions, UNet, check_dimensions, initialise
from everymask.layers.unet_decoder import UNetDecoder
from everymask.losses.spatial_embedding import SHARPNESS, spatial_embedding
from everymask.methods.base import Method
from everymask.methods.bottom_up.objects import learnt_ids, on_accelerator, pixel_spacing, turned_back
from everymask.methods.preparation import at_stride, decoder_pyramid
from everymask.methods.recipe import Recipe
from everymask.types import LabelMap, Segments, Task

Network = Literal["erfnet", "unet"]
Centre = Literal["medoid", "centroid"]

UNIT = 1023.0
"""Pixels to a unit of the embeddings, in which an image of 1024 pixels has length 1; offsets, a tanh, reach as far."""

OFFSET_STEP, SIGMA_STEP, SIGMA_START = 16 / UNIT, 1 / SHARPNESS, 1.0
"""What 1 in the last convolution stands for: 16 pixels of offset, a factor e of the scale; and the sigma of 0.

The outputs are the same linear maps as in the papers. But offsets of some pixels are hundredths there, so that a step
of the optimiser moves them by more than an object is wide, and sigma is near 1, where bfloat16 rounds s by some per
cent.
"""

SEED_START = -2.0
"""Logit of the seed scores at the start: most of an image is background."""


class SpatialEmbedding(Method):
    """Offsets, bandwidths and seed scores from a branched ERFNet, clustered greedily.

    Args:
        classes: Number of categories K, each with its own seed scores.
        channels: Input channels C.
        network: ``erfnet``, the branched ERFNet of the papers, or ``unet``.
        backbone: Any network of timm with the decoder of a U-Net in place of `network`, such as ``resnet34``.
        base: Features at half the resolution of ERFNet, which has 16 in the papers, or of the first level of the U-Net.
        depth: Poolings of the U-Net.
        repeats: How often ERFNet runs through its dilated blocks; 2 in the papers.
        dropout: Of ERFNet; 0.3 in the papers, for training runs of many hours.
        centre: What the pixels of an object point at: its ``medoid`` (EmbedSeg) or its ``centroid`` (Neven et al.).
        instance_weight: Weight of the Lovasz hinge of the objects.
        variance_weight: Weight of the variance of sigma within objects.
        seed_weight: Weight of the seed scores.
        foreground_weight: Weight of the seed scores inside objects, relative to those outside.
        smallest: Objects have more pixels than this.
        overlap: Share of a proposed object's pixels that must not belong to another yet, 0..1.
        dimensions: 2 for images, 3 for volumes.
        anisotropy: Of volumes, the distance between planes in pixels.
        flat: Of volumes, the first poolings (of ERFNet: of its three halvings) that leave the planes alone, where these
            lie further apart than pixels.
    """

    tasks: ClassVar[frozenset[Task]] = frozenset({Task.INSTANCE})
    metric: ClassVar[tuple[str, str]] = ("matching", "mean_accuracy")
    stretched: ClassVar[bool] = True
    tunable: ClassVar[Mapping[str, tuple[float, ...]]] = {"foreground": (0.2, 0.8), "seed": (0.3, 0.98)}

    def __init__(
        self,
        classes: int = 1,
        channels: int = 3,
        network: Network = "erfnet",
        backbone: str = "",
        base: int = 16,
        depth: int = 4,
        repeats: int = 2,
        dropout: float = 0.0,
        centre: Centre = "medoid",
        instance_weight: float = 1.0,
        variance_weight: float = 10.0,
        seed_weight: float = 1.0,
        foreground_weight: float = 10.0,
        smallest: int = 36,
        overlap: float = 0.5,
        dimensions: Dimensions = 2,
        anisotropy: float = 1.0,
        flat: int = 0,
    ) -> None:
        super().__init__()
        if min(classes, channels, base) < 1 or smallest < 0:
            raise InputError(
                "classes, channels and base must be at least 1 and smallest at least 0, got "
                f"classes {classes}, channels {channels}, base {base} and smallest {smallest}"
            )
        if not 0 <= overlap <= 1:
            raise InputError(f"overlap must be in 0..1, got {overlap}")
        if centre not in get_args(Centre):
            raise unknown_name("centre", centre, get_args(Centre))
        self.spacing = pixel_spacing(dimensions, anisotropy, backbone)
        self.classes, self.channels, self.centre = classes, channels, centre
        self.dimensions, self.anisotropy = dimensions, anisotropy
        self.instance_weight, self.variance_weight = instance_weight, variance_weight
        self.seed_weight, self.foreground_weight = seed_weight, foreground_weight
        self.smallest, self.overlap = smallest, overlap
        # The papers take seeds of 0.9 and above, which scores reach only late in a long training.
        self.thresholds = {"foreground": 0.5, "seed": 0.7}
        self.body: BranchedERFNet | _TwoHeads
        groups = (2 * dimensions, classes)
        if backbone:
            check_dimensions(dimensions, flat, depth)
            self.backbone = decoder_pyramid(backbone, channels)
            self.body = _TwoHeads(UNetDecoder(self.backbone.widths), groups)
            self.stride, self.context = self.backbone.stride, 4 * self.backbone.stride
        elif network == "erfnet":
            self.body = BranchedERFNet(channels, groups, base, repeats, dropout, dimensions, flat)
            self._measure(self.body)
        elif network == "unet":
            unet = UNet(channels, base, depth, norm="batch", dimensions=dimensions, flat=flat)
            self.body = _TwoHeads(unet, groups, dimensions)
            self._measure(unet)
        else:
            raise unknown_name("network", network, get_args(Network))
        initialise(self.body)
        for head, bias in zip(self.body.heads, (0.0, SEED_START), strict=True):
            nn.init.zeros_(head.weight)  # type: ignore[arg-type]
            nn.init.constant_(head.bias, bias)  # type: ignore[arg-type]

    def _measure(self, network: BranchedERFNet | UNet) -> None:
        """Takes over what sizes the network needs, and how far it sees."""
        self.stride, self.context = network.stride, network.radius
        if self.dimensions == 3:
            self.depth_stride, self.depth_context = network.depth_stride, network.depth_radius

    @classmethod
    def recipe(cls) -> Recipe:
        """The weight decay and the symmetries of EmbedSeg, with AdamW and a cosine schedule."""
        return Recipe(epochs=100, batch_size=8, crop=256, learning_rate=1e-3, contrast=(0.6, 2.0))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Outputs of images (B, C, H, W) or volumes (B, C, D, H, W).

        Returns:
            ``offset`` (B, 2, H, W) y, x before the hyperbolic tangent, ``sigma`` (B, 2, H, W) y, x, and ``seed``
            (B, K, H, W) logits; of volumes (B, 3, D, H, W) z, y, x and (B, K, D, H, W).
        """
        if hasattr(self, "backbone"):
            maps = self.body(self.backbone(images))
            embedding, seed = (at_stride(each, self.backbone, images) for each in maps)
        else:
            embedding, seed = self.body(images)
        offset, sigma = embedding.float().split(self.dimensions, dim=1)
        return {"offset": offset * OFFSET_STEP, "sigma": SIGMA_START + sigma * SIGMA_STEP, "seed": seed}

    def targets(self, segments: Segments) -> dict[str, Tensor]:
        """``labels`` (H, W); at each pixel of an object ``centres`` (2, H, W), y, x in pixels, and its ``category``.

        Of volumes ``labels`` (D, H, W) and ``centres`` (3, D, H, W), all of them in pixels of a plane, z as well.
        """
        from everymask.ops.embedding_clusters import object_centres

        ids = learnt_ids(segments).astype(np.int64)
        centres = np.zeros((len(segments) + 1, ids.ndim), np.float32)
        found = object_centres(ids, self.centre, self.spacing)
        centres[1 : len(found) + 1] = found * self.spacing
        targets = {
            "labels": torch.from_numpy(ids),
            "centres": torch.from_numpy(np.moveaxis(centres[np.maximum(ids, 0)], -1, 0).copy()),
        }
        if self.classes > 1:
            category = np.concatenate([[0], segments.category])
            targets["category"] = torch.from_numpy(category[np.maximum(ids, 0)])
        return targets

    def loss(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weighted terms ``instance``, ``variance`` and ``seed`` of `everymask.losses.spatial_embedding`."""
        terms = spatial_embedding(
            embeddings(outputs["offset"], self.anisotropy),
            outputs["sigma"],
            outputs["seed"].sigmoid(),
            targets["labels"],
            targets["centres"] / UNIT,
            targets.get("category"),
            foreground_weight=self.foreground_weight,
        )
        return {
            "instance": self.instance_weight * terms.instance,
            "variance": self.variance_weight * terms.variance,
            "seed": self.seed_weight * terms.seed,
        }

    def decode(self, outputs: Mapping[str, Tensor], sizes: Sequence[tuple[int, ...]]) -> list[Segments]:
        """Greedy clustering of the pixels whose seed score is highest for a category, one category after the other."""
        places = embeddings(outputs["offset"].float(), self.anisotropy)
        log_scale = SHARPNESS * outputs["sigma"].float()
        seeds = outputs["seed"].float().sigmoid()
        found = []
        for i, size in enumerate(sizes):
            window = (i, slice(None), *map(slice, size))
            seed, best = seeds[window], seeds[window].argmax(dim=0)
            ids, scores = np.zeros(size, np.int32), [np.zeros(0)]
            for k in range(self.classes):
                labels, score = self._clusters(places[window], log_scale[window], seed[k].where(best == k, 0))
                ids[labels > 0] = labels[labels > 0] + sum(map(len, scores))
                scores.append(score)
            category = np.repeat(np.arange(self.classes), [len(each) for each in scores[1:]])
            found.append(Segments(size, category, LabelMap(ids), score=np.concatenate(scores)))
        return found

    def _clusters(
        self, places: Tensor, log_scale: Tensor, seed: Tensor
    ) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """Ids and scores of the objects of one category; the embeddings are sorted where they are."""
        options = self.thresholds["foreground"], self.thresholds["seed"], self.smallest, self.overlap
        if on_accelerator(seed):
            from everymask.ops import embedding_torch

            return embedding_torch.cluster_embeddings(places, log_scale, seed, *options)
        from everymask.ops.embedding_clusters import cluster_embeddings

        return cluster_embeddings(places.cpu().numpy(), log_scale.cpu().numpy(), seed.cpu().numpy(), *options)

    def undo_dihedral(self, outputs: Mapping[str, Tensor], flip: bool, turns: int) -> dict[str, Tensor]:
        """Turns the maps back, and with them the offsets and the axes of the bandwidths."""
        undone = super().undo_dihedral(outputs, flip, turns)
        sigma = undone["sigma"]
        if turns % 2:
            sigma = torch.cat([sigma[:, :-2], sigma[:, -2:].flip(1)], dim=1)
        return undone | {"offset": turned_back(undone["offset"], flip, turns), "sigma": sigma}


def embeddings(offset: Tensor, anisotropy: float = 1.0) -> Tensor:
    """Where each pixel says that its centre is, in units of `UNIT` pixels, from the first pixel on.

    Args:
        offset: (B, 2, H, W) y, x or (B, 3, D, H, W) z, y, x of the network.
        anisotropy: Distance between planes in pixels.

    Returns:
        The same shape.
    """

    def positions(axis: int) -> Tensor:
        return torch.arange(offset.shape[axis], device=offset.device, dtype=offset.dtype) / UNIT

    rows, columns = positions(-2), positions(-1)
    axes = [rows, columns] if offset.ndim == 4 else [positions(-3) * anisotropy, rows, columns]
    return offset.tanh() + torch.stack(torch.meshgrid(*axes, indexing="ij"))


class _TwoHeads(nn.Module):
    """The two groups of outputs as linear maps of the same features."""

    def __init__(self, body: UNet | UNetDecoder, widths: Sequence[int], dimensions: Dimensions = 2) -> None:
        super().__init__()
        self.body = body
        head = nn.Conv2d if dimensions == 2 else nn.Conv3d
        self.heads = nn.ModuleList(head(body.width, width, 1) for width in widths)

    def forward(self, inputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
        features = self.body(inputs)
        return tuple(head(features) for head in self.heads)
