"""Distance maps and a watershed: objects grow from where they are deep, and stop where a neighbour begins.

Three published forms, told apart by what the network predicts:

- ``neighbour``: Scherr, Löffler, Böhland, Mikut, Cell segmentation and tracking using CNN-based distance predictions
  and a graph-based matching strategy, PLoS ONE 2020. Programs: KIT-GE and
  https://github.com/hip-satomi/microbeSEG (MIT). A cell distance, and the nearness of other objects.
- ``signed``: the signed distance of each object, squashed by tanh.
- ``boundary``: Archit et al., Segment Anything for Microscopy, Nature Methods 2025 (automatic segmentation). Program:
  https://github.com/constantinpape/torch-em (MIT). Foreground, distance to the centre and to the boundary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from everymask.errors import InputError, unknown_name
from everymask.layers.unet import Dimensions, Norm
from everymask.losses.region import squared_dice
from everymask.methods.bottom_up.folded_maps import FoldedMaps, Unfold
from everymask.methods.recipe import Recipe
from everymask.types import LabelMap, Segments

Form = Literal["neighbour", "signed", "boundary"]
Loss = Literal["l1", "l2", "smooth_l1"]


class _Form(NamedTuple):
    """What the network of a form predicts, and how it is decided on."""

    maps: tuple[str, ...]
    decoders: int
    thresholds: Mapping[str, float]
    tunable: Mapping[str, tuple[float, ...]]


_FORMS: Mapping[str, _Form] = {
    "neighbour": _Form(
        ("cell", "neighbour"), 2, {"mask": 0.1, "seed": 0.45}, {"mask": (0.02, 0.4), "seed": (0.2, 0.8)}
    ),
    "signed": _Form(("signed",), 1, {"mask": 0.0, "seed": 0.3}, {"mask": (-0.4, 0.4), "seed": (0.1, 0.9)}),
    "boundary": _Form(
        ("foreground", "centre", "boundary"),
        1,
        {"mask": 0.5, "seed": 0.5},
        {"mask": (0.2, 0.8), "seed": (0.2, 0.8)},
    ),
}

_LOSSES = {"l1": functional.l1_loss, "l2": functional.mse_loss, "smooth_l1": functional.smooth_l1_loss}
_SMOOTHING = {"neighbour": 0.5, "signed": 0.5, "boundary": 1.6}
"""Standard deviations in pixels of the Gaussian that the distances are smoothed with before they are decided on."""


class DistanceWatershed(FoldedMaps):
    """Distance maps from a U-Net, a watershed from their peaks.

    The thresholds: ``mask`` is the height above which (or the foreground probability from which) a pixel belongs to an
    object, ``seed`` that above which (with ``boundary`` the distances below which) it belongs to a seed.

    Args:
        classes: Number of categories K. With more than one a class head is added.
        channels: Input channels C.
        form: ``neighbour`` (cell and neighbour distance, two decoders), ``signed`` (tanh of the signed distance) or
            ``boundary`` (foreground, distances to centre and boundary).
        loss: Of the distances in the forms ``neighbour`` and ``signed``: ``l1``, ``l2`` or ``smooth_l1``. The form
            ``boundary`` has the Dice loss and squared errors.
        sigma: Pixels from the edge at which the target of the form ``signed`` reaches .76.
        fold: Side in pixels of the cells that the network works on, 1, 2 or 4; 2 takes a quarter of the time of 1.
        base: Features of the first U-Net level.
        depth: Poolings of the U-Net.
        norm: Normalisation.
        backbone: A network of timm as the encoder, such as ``resnet34``; empty for the U-Net.
        dimensions: 2 for images, 3 for volumes.
        anisotropy: Of volumes, the distance between planes in pixels.
        flat: Of volumes, the first poolings that leave the planes alone, where these lie further apart than pixels.
    """

    def __init__(
        self,
        classes: int = 1,
        channels: int = 3,
        form: Form = "neighbour",
        loss: Loss = "smooth_l1",
        sigma: float = 5.0,
        fold: int = 2,
        base: int = 32,
        depth: int = 3,
        norm: Norm = "batch",
        backbone: str = "",
        dimensions: Dimensions = 2,
        anisotropy: float = 1.0,
        flat: int = 0,
    ) -> None:
        super().__init__()
        if form not in _FORMS:
            raise unknown_name("form", form, _FORMS)
        if loss not in _LOSSES:
            raise unknown_name("loss", loss, _LOSSES)
        if not sigma > 0:
            raise InputError(f"sigma must be above 0 pixels, got {sigma}")
        self.form, self.criterion, self.sigma = form, loss, sigma
        self.maps, decoders, thresholds, tunable = _FORMS[form]
        self.tunable = tunable  # type: ignore[misc] - the forms decide on different quantities
        features = self.prepare(
            classes, channels, fold, base, depth, norm, backbone, decoders, dimensions, anisotropy, flat
        )
        self.heads = nn.ModuleDict({name: Unfold(features, 1, fold, dimensions) for name in self.maps})
        self.context += math.ceil(4 * _SMOOTHING[form])  # where the Gaussian ends
        if dimensions == 3:
            self.depth_context += math.ceil(4 * _SMOOTHING[form] / anisotropy)
        self.thresholds = dict(thresholds)
        if dimensions == 3 and form == "signed":
            # Objects of volumes meet in surfaces, and one leak in a surface joins them: seeds begin deeper (with the
            # default sigma 2.7 pixels from the edge instead of 1.5).
            self.thresholds["seed"] = 0.5

    @classmethod
    def recipe(cls) -> Recipe:
        """Crops and augmentation as for StarDist; AdamW and a cosine schedule instead of Adam and the plateau."""
        return Recipe(epochs=100, batch_size=8, crop=256, learning_rate=1e-3, noise=0.02, contrast=(0.6, 2.0))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Maps (B, 1, H, W) of images (B, C, H, W), or (B, 1, D, H, W) of volumes (B, C, D, H, W).

        Returns:
            ``cell`` and ``neighbour`` in about 0..1; or ``signed`` in about -1..1; or logits ``foreground``, ``centre``
            and ``boundary``. With several categories ``category`` (B, K + 1, H, W) logits, background first.
        """
        features = self.features(images)
        # The first map has the first decoder, and so have all that there is no further one for.
        outputs = {name: self.heads[name](features[min(i, len(features) - 1)]) for i, name in enumerate(self.maps)}
        return outputs | self.category_logits(features[0])

    def targets(self, segments: Segments) -> dict[str, Tensor]:
        """The maps of the form, validity and (with several categories) classes."""
        from everymask.ops.neighbour_distance import centre_and_boundary, neighbour_targets, signed_targets

        ids = self.objects(segments)
        maps: tuple[NDArray[np.float32], ...]
        if self.form == "neighbour":
            maps = neighbour_targets(ids, self.spacing)
        elif self.form == "signed":
            maps = (signed_targets(ids, self.sigma, self.spacing),)
        else:
            maps = ((ids > 0).astype(np.float32), *centre_and_boundary(ids, self.spacing))
        tensors = (torch.from_numpy(each[None]) for each in maps)
        return dict(zip(self.maps, tensors, strict=True)) | self.common_targets(segments, ids)

    def loss(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sum, unweighted, of the losses of the maps, each a mean over the pixels that are not void."""
        valid = targets["valid"]
        count = valid.sum().clamp(min=1)
        terms: dict[str, Tensor] = {}
        if self.form == "boundary":
            foreground = targets["foreground"]
            truth = torch.where(valid > 0, foreground, -1)
            terms["foreground"] = squared_dice(outputs["foreground"], truth)
            for name in ("centre", "boundary"):
                error = (outputs[name].float().sigmoid() - targets[name]) ** 2
                terms[name] = (error * foreground * valid).sum() / count
        else:
            for name in self.maps:
                error = _LOSSES[self.criterion](outputs[name].float(), targets[name], reduction="none")
                terms[name] = (error * valid).sum() / count
        return terms | self.category_loss(outputs, targets)

    def decode(self, outputs: Mapping[str, Tensor], sizes: Sequence[tuple[int, ...]]) -> list[Segments]:
        """Seeds, watershed, and the class of each object; scores are how sure the network is of an object's depth."""
        from everymask.ops.neighbour_distance import label_maxima
        from everymask.ops.watershed import mean_inside, seeds_of, watershed

        found = []
        for i, size in enumerate(sizes):
            window = (i, 0, *map(slice, size))
            maps = {name: outputs[name][window].float().cpu().numpy() for name in self.maps}
            if self.form == "boundary":
                probability, heights, seeds, mask = self._by_boundary(maps)
                ids = watershed(heights, seeds_of(seeds, least=0, share=0), mask)
                score = mean_inside(ids, int(ids.max(initial=0)), probability)
            else:
                depth, seeds, mask = self._by_depth(maps)
                ids = watershed(-depth, seeds_of(seeds), mask)
                score = label_maxima(ids, depth)[1:]
            category = self.object_classes(outputs, i, ids)
            found.append(Segments(size, category, LabelMap(ids), score=np.clip(score, 0, 1)))
        return found

    def _by_depth(
        self, maps: Mapping[str, NDArray[np.float32]]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]:
        """Smoothed depth, seeds and mask; the nearness of other objects takes seeds apart (microbeSEG)."""
        depth = self._smoothed(maps[self.maps[0]])
        cleaned = depth
        if self.form == "neighbour":
            border = np.tan(np.clip(maps["neighbour"], 0, 1) ** 2)
            cleaned = depth - np.where(border < 0.05, 0, np.minimum(border, 1))
        return depth, cleaned > self.thresholds["seed"], depth > self.thresholds["mask"]

    def _by_boundary(
        self, maps: Mapping[str, NDArray[np.float32]]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]:
        """Foreground probability, heights, seeds and mask (torch-em)."""
        foreground = _sigmoid(maps["foreground"])
        centre, boundary = (self._smoothed(_sigmoid(maps[name])) for name in ("centre", "boundary"))
        mask = foreground > self.thresholds["mask"]
        limit = self.thresholds["seed"]
        return foreground, boundary, mask & (centre < limit) & (boundary < limit), mask

    def _smoothed(self, distances: NDArray[np.float32]) -> NDArray[np.float32]:
        """Smoothed as far in space across planes as in them."""
        from scipy.ndimage import gaussian_filter

        return gaussian_filter(distances, [_SMOOTHING[self.form] / each for each in self.spacing])


def _sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    from scipy.special import expit

    return expit(logits)
