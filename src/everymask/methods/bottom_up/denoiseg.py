"""DenoiSeg: a segmentation network that also learns to denoise, so that images without annotation teach it, too.

Buchholz, Prakash, Schmidt, Krull, Jug, DenoiSeg: Joint Denoising and Segmentation, ECCV Workshops 2020. Denoising
needs no clean images: Krull, Buchholz, Jug, Noise2Void, CVPR 2019. Objects are connected components of the foreground,
held apart by a class of their borders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from everymask.errors import InputError
from everymask.layers.unet import Norm
from everymask.losses import cross_entropy
from everymask.methods.bottom_up.folded_maps import FoldedMaps, Unfold
from everymask.methods.recipe import Recipe
from everymask.types import LabelMap, Segments
from everymask.types.geometry import VOID

if TYPE_CHECKING:
    from numpy.typing import NDArray

BACKGROUND, FOREGROUND, BORDER = 0, 1, 2
"""Classes of the segmentation."""

_ACROSS = 3
"""Pixels from the edge of an object's border to the object that it touches; 2 in the truth, predictions are wider."""


class DenoiSeg(FoldedMaps):
    """Joint denoising and segmentation.

    In training some pixels of the input are replaced by their neighbours, and the network must say what they were: as
    it cannot know their noise, it learns what the image is without. Images without annotation contribute this term
    alone. The official network gives both outputs, too, and `alpha` weighs their losses.

    Args:
        classes: Number of categories K. With more than one a class head is added.
        channels: Input channels C.
        alpha: Weight of denoising in 0..1, that of segmentation is 1 - alpha. With 0 it is a U-Net of three classes
            that never sees a replaced pixel and has no output for the denoised image.
        hidden: Share of the pixels that are replaced, above 0 and at most 0.25.
        radius: Of the square around a pixel in which its replacement is drawn.
        border_weight: Weight of the class of borders; those of background and foreground are 1.
        grow: Whether objects get back the border between them and objects that they touch, which is neither's
            foreground. Pixels of the border towards the background are background.
        smallest: Objects of fewer pixels are left out.
        fold: Side in pixels of the cells that the network works on, 1, 2 or 4; 2 takes a quarter of the time of 1.
        base: Features of the first U-Net level.
        depth: Poolings of the U-Net.
        norm: Normalisation.
        backbone: A network of timm as the encoder, such as ``resnet34``; empty for the U-Net.
    """

    tunable: ClassVar[Mapping[str, tuple[float, ...]]] = {"foreground": (0.1, 0.9)}
    learns_from_unlabelled: ClassVar[bool] = True
    logit_layers: ClassVar[tuple[str, ...]] = ("category",)

    weights: Tensor

    def __init__(
        self,
        classes: int = 1,
        channels: int = 3,
        alpha: float = 0.5,
        hidden: float = 0.015,
        radius: int = 5,
        border_weight: float = 5.0,
        grow: bool = True,
        smallest: int = 4,
        fold: int = 1,
        base: int = 32,
        depth: int = 4,
        norm: Norm = "batch",
        backbone: str = "",
    ) -> None:
        super().__init__()
        if not 0 <= alpha < 1:
            raise InputError(
                f"alpha must be from 0 to below 1, got {alpha}; 0.5 learns denoising and segmentation alike"
            )
        if not 0 < hidden <= 0.25:
            raise InputError(f"hidden must be above 0 and at most 0.25, got {hidden}; 0.015 is usual")
        if radius < 1 or not border_weight > 0 or smallest < 0:
            raise InputError(
                f"radius must be at least 1, border_weight above 0 and smallest at least 0, got radius {radius}, "
                f"border_weight {border_weight} and smallest {smallest}"
            )
        self.alpha, self.radius, self.grow, self.smallest = alpha, radius, grow, smallest
        self.cell = max(2, round(hidden**-0.5))
        self.register_buffer("weights", torch.tensor([1.0, 1.0, border_weight]), persistent=False)
        features = self.prepare(classes, channels, fold, base, depth, norm, backbone)
        self.segmentation = Unfold(features, 3, fold)
        self.denoised = Unfold(features, channels, fold) if alpha > 0 else None
        self.thresholds = {"foreground": 0.5}

    @classmethod
    def recipe(cls) -> Recipe:
        """Half of the crops hold an annotated object, whatever the share of annotated images.

        No magnification and no noise of its own: noise that interpolation has smeared over pixels cannot be told from
        the image (Noise2Void needs it independent from pixel to pixel).
        """
        return Recipe(
            epochs=100,
            batch_size=16,
            crop=128,
            foreground=0.5,
            balance="classes",
            learning_rate=4e-4,
            scale=(1.0, 1.0),
            noise=0.0,
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Outputs of images (B, C, H, W).

        Returns:
            ``segmentation`` (B, 3, H, W) logits of background, foreground and border; ``denoised`` (B, C, H, W), the
            image in the units of the input, unless alpha is 0; with several categories ``category`` (B, K + 1, H, W)
            logits, background first.
        """
        (features,) = self.features(images)
        outputs = {"segmentation": self.segmentation(features)} | self.category_logits(features)
        if self.denoised is not None:
            outputs["denoised"] = self.denoised(features)
        return outputs

    def targets(self, segments: Segments) -> dict[str, Tensor]:
        """``segmentation`` (H, W) int64 of 0 background, 1 foreground, 2 border, -1 void; classes if several."""
        ids = self.objects(segments)
        parts = np.where(ids > 0, FOREGROUND, BACKGROUND)
        parts[outer_borders(np.maximum(ids, 0))] = BORDER
        parts[ids == VOID] = VOID
        return {"segmentation": torch.from_numpy(parts)} | self.common_targets(segments, ids)

    def training_loss(self, images: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Forward pass of images with replaced pixels, and both losses; in evaluation always the same pixels."""
        if self.denoised is None:
            return self.loss(self(images), targets)
        generator = None if self.training else torch.Generator(images.device).manual_seed(0)
        masked, hidden = hide_pixels(images, self.cell, self.radius, generator)
        return self.loss(self(masked), {**targets, "image": images, "hidden": hidden})

    def loss(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``(1 - alpha)`` x weighted cross-entropy + ``alpha`` x squared error at hidden pixels (paper, eq. 1 and 2).

        The error is divided by the variance of the batch's images, since alpha is meant for images of variance 1.

        Args:
            outputs: From `forward`.
            targets: From `targets`; for the denoising term also ``image`` (B, C, H, W), the input without replaced
                pixels, and ``hidden`` (B, 1, H, W), 1 where it was replaced.
        """
        parts = targets["segmentation"]
        weight = self.weights[parts.clamp(min=0)]
        told = {"segmentation": cross_entropy(outputs["segmentation"], parts, weight)}
        told |= self.category_loss(outputs, targets)
        terms = {name: (1 - self.alpha) * term for name, term in told.items()}
        if "hidden" in targets:
            image, hidden = targets["image"].float(), targets["hidden"]
            error = (outputs["denoised"].float() - image).square() * hidden
            count = (hidden.sum() * image.shape[1]).clamp(min=1)
            terms["denoising"] = self.alpha * error.sum() / count / image.var().clamp(min=1e-3)
        return terms

    def decode(self, outputs: Mapping[str, Tensor], sizes: Sequence[tuple[int, ...]]) -> list[Segments]:
        """Connected components of the foreground above the threshold, scored by their mean probability."""
        from everymask.ops.labels import compact_labels, connected_components, label_areas
        from everymask.ops.watershed import mean_inside

        found = []
        for i, (height, width) in enumerate(sizes):
            probability = outputs["segmentation"][i, :, :height, :width].float().softmax(0).cpu().numpy()
            foreground = probability[FOREGROUND]
            ids = connected_components(foreground > self.thresholds["foreground"])[0]
            areas = label_areas(ids, int(ids.max(initial=0)))
            if (areas < self.smallest).any():
                kept = np.concatenate([[False], areas >= self.smallest])
                ids = compact_labels(np.where(kept[ids], ids, 0))[0]
            score = mean_inside(ids, int(ids.max(initial=0)), foreground)
            category = self.object_classes(outputs, i, ids)
            if self.grow and len(score) > 1:
                ids = grown_borders(ids, probability.argmax(0) == BORDER)
            found.append(Segments((height, width), category, LabelMap(ids), score=np.clip(score, 0, 1)))
        return found


def hide_pixels(
    images: Tensor, cell: int, radius: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Replaces one random pixel of each cell of `cell` x `cell` pixels by one of its neighbours (Noise2Void, sec. 4.1).

    The neighbour is drawn uniformly from the square of `radius` around the pixel, cut at the border of the image; it
    may be the pixel itself, as in the official program (``uniform_withCP``). All channels are replaced alike, because
    the channels of grey images are copies of each other.

    Args:
        images: (B, C, H, W).
        cell: Side of a cell in pixels.
        radius: In pixels.
        generator: Source of the random numbers; default: torch's.

    Returns:
        The images with replaced pixels, and (B, 1, H, W), 1 where a pixel was replaced, else 0.
    """
    count, channels, height, width = images.shape
    rows, columns = -(-height // cell), -(-width // cell)
    device = images.device
    drawn = torch.rand((4, count, rows, columns), device=device, generator=generator)
    top = torch.arange(rows, device=device)[:, None] * cell
    left = torch.arange(columns, device=device) * cell
    row, column = top + (drawn[0] * cell).long(), left + (drawn[1] * cell).long()
    inside = (row < height) & (column < width)  # cells at the far edges may be cut
    row, column = row.clamp(max=height - 1), column.clamp(max=width - 1)

    def near(place: Tensor, share: Tensor, size: int) -> Tensor:
        first, last = (place - radius).clamp(min=0), (place + radius).clamp(max=size - 1)
        return torch.minimum(first + (share * (last - first + 1)).long(), last)

    source = near(row, drawn[2], height) * width + near(column, drawn[3], width)
    place = row * width + column
    source = torch.where(inside, source, place).flatten(1)
    place = place.flatten(1)
    flat = images.flatten(2)
    values = flat.gather(2, source[:, None].expand(-1, channels, -1))
    masked = flat.scatter(2, place[:, None].expand(-1, channels, -1), values).view_as(images)
    hidden = images.new_zeros((count, height * width)).scatter(1, place, inside.flatten(1).to(images.dtype))
    return masked, hidden.view(count, 1, height, width)


def outer_borders(ids: NDArray[np.integer]) -> NDArray[np.bool_]:
    """The border pixels that hold objects apart, as ``skimage.segmentation.find_boundaries(ids, mode="outer")``.

    Background beside an object, and the pixels of objects beside another one, on both sides.

    Args:
        ids: (H, W), 0 is background.
    """
    height, width = ids.shape
    framed = np.pad(ids, 1, mode="edge")
    inner = framed[1:-1, 1:-1]

    def shifted(dy: int, dx: int) -> NDArray[np.integer]:
        return framed[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]

    differs = np.zeros(ids.shape, bool)
    for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        differs |= shifted(dy, dx) != inner
    touches = np.zeros(ids.shape, bool)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            other = shifted(dy, dx)
            touches |= (other != inner) & (other > 0)
    return differs & ((inner == 0) | touches)


def grown_borders(ids: NDArray[np.int32], border: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Gives the border between touching objects to them, a pixel to each side.

    A pixel of the border lies between two objects where one is beside it and, straight on across the pixel, another one
    begins within `_ACROSS` pixels, in one of the eight directions.

    Args:
        ids: (H, W) objects without their borders, 0 elsewhere.
        border: (H, W).
    """
    framed = np.pad(ids, _ACROSS)
    rows, columns = np.nonzero(border & (ids == 0))
    found = np.zeros(len(rows), ids.dtype)
    y, x = rows + _ACROSS, columns + _ACROSS
    # Directions along the axes come last, so that they win over diagonal ones.
    for dy, dx in ((-1, -1), (-1, 1), (1, -1), (1, 1), (-1, 0), (1, 0), (0, -1), (0, 1)):
        beside = framed[y + dy, x + dx]
        across = np.zeros_like(found)
        for step in range(_ACROSS, 0, -1):  # the nearest object comes last
            there = framed[y - step * dy, x - step * dx]
            across = np.where(there > 0, there, across)
        found = np.where((beside > 0) & (across > 0) & (across != beside), beside, found)
    result = ids.copy()
    result[rows, columns] = found
    return result
