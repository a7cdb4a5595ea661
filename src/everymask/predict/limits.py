"""Intensity limits of images and volumes of any size."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from everymask.data.preprocessing import Preprocessing

_SAMPLED = 2**24
"""Limits of images with more pixels are taken from a regular subset of about so many."""


def sampled_limits(preprocessing: Preprocessing, image: NDArray[Any], dimensions: int) -> NDArray[np.float32]:
    """The limits (2, 1) or (2, C) of an image (2 dimensions) or a volume (3), with or without an axis of channels.

    Args:
        preprocessing: Says which.
        image: Any array that is read by slices.
        dimensions: Axes that are no channels.
    """
    step = max(1, int(np.sqrt(math.prod(image.shape[:dimensions]) / _SAMPLED)))
    every = slice(None, None, step)
    sampled = np.asarray(image[(slice(None), every, every)[-dimensions:]])
    # Channels are matched on the subset, so that a colour image is never turned into grey floats as a whole.
    return preprocessing.limits(
        preprocessing.match_channels(sampled[..., None] if sampled.ndim == dimensions else sampled)
    )
