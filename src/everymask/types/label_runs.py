"""A label map that is kept as runs, and painted when somebody asks for its pixels."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from everymask.types.geometry import LabelMap

if TYPE_CHECKING:
    from numpy.typing import NDArray


class LabelRuns(LabelMap):
    """A label map as runs of equal pixels, in reading order; every row begins a run.

    A thousand times smaller than its pixels. Readers that decode runs hand them on like this, and those who can work on
    runs, such as the panoptic protocol, never fill an image. For all others it is a `LabelMap` like any other.

    Args:
        shape: (H, W).
        starts: (R + 1,) int32 position of the first pixel of each run, the last one the number of pixels.
        labels: (R,) int32 id of each run: i + 1 is segment i, 0 is background, -1 is void.
    """

    def __init__(self, shape: tuple[int, int], starts: NDArray[np.int32], labels: NDArray[np.int32]) -> None:
        # The parent is frozen, and would ask for the pixels.
        self.__dict__.update(shape=shape, starts=starts, labels=labels)

    shape: tuple[int, int]
    starts: NDArray[np.int32]
    labels: NDArray[np.int32]

    @cached_property
    def ids(self) -> NDArray[np.int32]:  # type: ignore[override]
        """(H, W) int32, painted on first use."""
        from everymask.ops.label_runs import paint

        return paint(self.starts, self.labels, self.shape)

    @property
    def size(self) -> tuple[int, ...]:
        """(H, W)."""
        return self.shape
