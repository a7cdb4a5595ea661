"""What bottom-up methods share: options of volumes, pixels that are learnt, where is decoded, how vectors turn."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from everymask.errors import InputError
from everymask.types import Segments
from everymask.types.geometry import VOID


def learnt_ids(segments: Segments) -> NDArray[np.int32]:
    """Ids (H, W) or (D, H, W) of the objects: i + 1 for segment i, 0 background, -1 void.

    Crowd regions are void: they hold objects that nobody told apart, so nothing can be learnt from them.
    """
    ids = segments.label_map("last")
    if not segments.crowd.any():
        return ids
    numbers = np.where(segments.crowd, VOID, np.arange(1, len(segments) + 1))
    return np.concatenate([[VOID, 0], numbers]).astype(np.int32)[ids + 1]


def pixel_spacing(dimensions: int, anisotropy: float, backbone: str = "") -> tuple[float, ...]:
    """Pixel size along each axis in pixels of a plane, from the constructor options of a method that does volumes too.

    Args:
        dimensions: 2 for images, 3 for volumes.
        anisotropy: Distance between planes in pixels.
        backbone: A network of timm; all of them are for images.

    Returns:
        (1, 1), or (`anisotropy`, 1, 1).

    Raises:
        InputError: The number is not positive, or options contradict each other.
    """
    if not 0 < anisotropy < math.inf:
        raise InputError(f"anisotropy is the distance between planes in pixels, above 0, got {anisotropy}")
    if dimensions == 2 and anisotropy != 1:
        raise InputError(f"anisotropy is for volumes (dimensions 3), got {anisotropy} with dimensions 2")
    if dimensions == 3 and backbone:
        raise InputError(f"backbones are for images (dimensions 2); leave out backbone {backbone} with dimensions 3")
    return (1.0, 1.0) if dimensions == 2 else (float(anisotropy), 1.0, 1.0)


def on_accelerator(outputs: Tensor) -> bool:
    """Whether outputs are decoded by the kernels with torch, where they are.

    Of the accelerators that of Apple has no numbers of 64 bits, which the kernels need.
    """
    return outputs.device.type not in ("cpu", "mps")


def turned_back(vectors: Tensor, flip: bool, turns: int) -> Tensor:
    """Vectors for an image from those for its copy, whose map is turned back already (`Method.undo_dihedral`).

    The planes of a volume turn alike, so that the components from plane to plane stay as they are.

    Args:
        vectors: (B, 2, H, W) down and right, or (B, 3, D, H, W) of a volume, whose first component is from plane to
            plane.
        flip: The copy was flipped left-right after its turns.
        turns: Counter-clockwise quarter turns of the copy.
    """
    *planes, down, right = vectors.unbind(1)
    if flip:
        right = -right
    for _ in range(turns % 4):
        # A counter-clockwise turn takes the right of the image to the top of its copy.
        down, right = right, -down
    return torch.stack([*planes, down, right], 1)
