"""What R-CNN and Fast R-CNN share: regions that are found by selective search, outside the network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from everymask.errors import InputError
from everymask.methods.detection.common import BoxMethod
from everymask.ops.selective_search import Search, check_search, selective_search

_LEAST_RANGE = 0.1
"""Of intensities 0..1 that is stretched at most, so that the noise of an empty image does not become its regions."""


class ProposalMethod(BoxMethod):
    """A method that judges regions of selective search.

    They depend on the image alone: in training the loader's processes find them, elsewhere `forward` does.

    Attributes:
        search: Which hierarchies are gone through.
        proposals: Regions of an image at most.
        finest: Scale of the smallest regions that the search begins with.
        search_side: Larger images are reduced for the search until their longer side has so many pixels; 0 for never.
    """

    ragged: ClassVar[frozenset[str]] = BoxMethod.ragged | {"regions"}
    not_exportable: ClassVar[str] = "its regions come from selective search, which is no network"

    search: Search
    proposals: int
    finest: int
    search_side: int

    def search_by(self, search: Search, proposals: int, finest: int, search_side: int) -> None:
        """Sets the attributes.

        Raises:
            InputError: One of them is impossible.
        """
        check_search(search, finest)
        if proposals < 1 or search_side < 0:
            raise InputError(
                "proposals must be 1 or more and search_side 0 (whole images) or more pixels, got "
                f"{proposals} and {search_side}"
            )
        self.search, self.proposals, self.finest, self.search_side = search, proposals, finest, search_side

    def of_image(self, image: Tensor) -> dict[str, Tensor]:
        """``regions`` (P, 4) float32 x0, y0, x1, y1 in pixels of an image (C, H, W), the promising ones first.

        What only has the value of the padding around the image is left aside. The contrast is stretched, so that the
        regions of a dark image are those of a bright one.
        """
        pixels = image.detach().float().cpu()
        (top, bottom), (left, right) = _content(pixels.numpy(), cast("float", self.padding))
        pixels = pixels[:, top:bottom, left:right]
        height, width = pixels.shape[1:]
        longer = max(height, width)
        if 0 < self.search_side < longer:
            factor = self.search_side / longer
            size = (max(1, round(factor * height)), max(1, round(factor * width)))
            pixels = functional.interpolate(pixels[None], size=size, mode="bilinear", antialias=True)[0]
        colours, threads = self._colours(pixels), torch.get_num_threads()
        boxes = selective_search(colours, self.search, self.proposals, self.finest, threads)
        factors = np.array([width / pixels.shape[2], height / pixels.shape[1]] * 2, np.float32)
        return {"regions": torch.from_numpy(boxes * factors + np.array([left, top] * 2, np.float32))}

    def _colours(self, image: Tensor) -> Any:
        """(H, W, C) uint8 colours of an image (C, H, W) as the network gets it."""
        usual = self.preprocessing_of()
        mean, std = (torch.tensor(each)[:, None, None] for each in (usual.mean, usual.std))
        values = (image * std + mean).nan_to_num()
        # Some pixels tell the percentiles of all.
        step = max(1, math.isqrt(values[0].numel() // 2**14))
        low, high = np.percentile(values[:, ::step, ::step].numpy(), [1, 99])
        stretched = (values - float(low)) / max(float(high - low), _LEAST_RANGE)
        return (255 * stretched.clamp(0, 1)).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()

    def regions_of(self, images: Tensor, targets: Mapping[str, Any] | None = None) -> Tensor:
        """Regions (R, 5), number of the image, x0, y0, x1, y1, of images (B, C, H, W), image after image.

        Args:
            images: To search; not looked at where the targets have the regions.
            targets: Of a batch, with ``regions`` where the loader has found them.
        """
        found = None if targets is None else targets.get("regions")
        if found is None:
            found = [self.of_image(each)["regions"] for each in images]
        return numbered([each.to(images.device) for each in cast("Sequence[Tensor]", found)])


def numbered(boxes: Sequence[Tensor]) -> Tensor:
    """Boxes (N, 4) of each image as one table (R, 5) with the number of the image before them."""
    numbers = [each.new_full((len(each), 1), number) for number, each in enumerate(boxes)]
    return torch.cat([torch.cat(pair, dim=1) for pair in zip(numbers, boxes, strict=True)])


def _content(image: Any, padding: float) -> tuple[tuple[int, int], tuple[int, int]]:
    """First row and the one after the last, and likewise columns, in which an image (C, H, W) is not all padding."""
    inside = (image != padding).any(0)
    ends = []
    for axis in (1, 0):
        places = np.flatnonzero(inside.any(axis))
        # An image of nothing but the value of the padding is an image nevertheless.
        ends.append((int(places[0]), int(places[-1]) + 1) if len(places) else (0, inside.shape[1 - axis]))
    return ends[0], ends[1]
