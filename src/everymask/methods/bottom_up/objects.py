"""What bottom-up methods share: which pixels are learnt as which object, and how maps of vectors turn."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from everymask.types import Segments
from everymask.types.geometry import VOID


def learnt_ids(segments: Segments) -> NDArray[np.int32]:
    """Ids (H, W) of the objects: i + 1 for segment i, 0 background, -1 void.

    Crowd regions are void: they hold objects that nobody told apart, so nothing can be learnt from them.
    """
    ids = segments.label_map("last")
    if not segments.crowd.any():
        return ids
    numbers = np.where(segments.crowd, VOID, np.arange(1, len(segments) + 1))
    return np.concatenate([[VOID, 0], numbers]).astype(np.int32)[ids + 1]


def turned_back(vectors: Tensor, flip: bool, turns: int) -> Tensor:
    """Vectors for an image from those for its copy, whose map is turned back already (`Method.undo_dihedral`).

    Args:
        vectors: (B, 2, H, W) down and right.
        flip: The copy was flipped left-right after its turns.
        turns: Counter-clockwise quarter turns of the copy.
    """
    down, right = vectors.unbind(1)
    if flip:
        right = -right
    for _ in range(turns % 4):
        # A counter-clockwise turn takes the right of the image to the top of its copy.
        down, right = right, -down
    return torch.stack([down, right], 1)
