"""RoIAlign for prediction on CPUs: the channels of a pixel lie together, and regions are shared among the cores."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from numba import config, njit

from everymask.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray


_BAND = 16
"""Regions that a thread takes at a time; neighbours in the list need not be of the same size."""


def align_regions(
    features: NDArray[np.float32],
    regions: NDArray[np.float32],
    rows: NDArray[np.int64],
    scale: float,
    found: NDArray[np.float32],
    sampling: int = 2,
) -> None:
    """Means of bilinear samples in the cells of regions: `torchvision.ops.roi_align` with its default options.

    He et al. 2017 (Mask R-CNN), sec. 3, without the shift by half a feature that later programs have as ``aligned``.

    Args:
        features: (B, H, W, C), contiguous.
        regions: (R, 5) number of the image, x0, y0, x1, y1 in pixels of the image.
        rows: (n,) which regions.
        scale: Features per pixel of the image.
        found: (R, S, S, C), whose `rows` are written.
        sampling: Samples along each side of a cell, at least 1.

    Raises:
        InputError: The shapes do not fit.
    """
    if features.ndim != 4 or regions.ndim != 2 or regions.shape[1] != 5 or found.shape[3:] != features.shape[3:]:
        raise InputError(
            f"features, regions and result: got {features.shape}, {regions.shape} and {found.shape}, expected "
            "(B, H, W, C), (R, 5) and (R, S, S, C)"
        )

    def of_band(start: int) -> None:
        _align(features, regions, rows[start : start + _BAND], np.float32(scale), sampling, found)

    starts = range(0, len(rows), _BAND)
    threads = min(vars(config)["NUMBA_NUM_THREADS"], len(starts))
    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(of_band, starts))
    else:
        for start in starts:
            of_band(start)


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "nsz"})
def _tap(place: np.float32, length: int) -> tuple[int, int, np.float32]:  # pragma: no cover - compiled
    """The two features that a sample lies between, and its distance from the first; -1 outside the map."""
    if place < -1 or place > length:
        return -1, -1, np.float32(0)
    place = max(place, np.float32(0))
    before = int(place)
    if before >= length - 1:
        return length - 1, length - 1, np.float32(0)
    return before, before + 1, place - np.float32(before)


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "nsz"})
def _align(
    features: NDArray[np.float32],
    regions: NDArray[np.float32],
    rows: NDArray[np.int64],
    scale: np.float32,
    sampling: int,
    found: NDArray[np.float32],
) -> None:  # pragma: no cover - compiled
    height, width, channels = features.shape[1:]
    size = found.shape[1]
    share, half = np.float32(1 / (sampling * sampling)), np.float32(0.5)
    for row in rows:
        image = int(regions[row, 0])
        left, top = regions[row, 1] * scale, regions[row, 2] * scale
        wide = max(regions[row, 3] * scale - left, np.float32(1)) / np.float32(size)
        high = max(regions[row, 4] * scale - top, np.float32(1)) / np.float32(size)
        for i in range(size):
            for j in range(size):
                cell = found[row, i, j]
                for c in range(channels):
                    cell[c] = 0
                for a in range(sampling):
                    y = top + np.float32(i) * high + (np.float32(a) + half) * high / np.float32(sampling)
                    y0, y1, down = _tap(y, height)
                    if y0 < 0:
                        continue
                    for b in range(sampling):
                        x = left + np.float32(j) * wide + (np.float32(b) + half) * wide / np.float32(sampling)
                        x0, x1, across = _tap(x, width)
                        if x0 < 0:
                            continue
                        up, near = np.float32(1) - down, np.float32(1) - across
                        w00, w01, w10, w11 = (
                            up * near * share,
                            up * across * share,
                            down * near * share,
                            down * across * share,
                        )
                        f00, f01 = features[image, y0, x0], features[image, y0, x1]
                        f10, f11 = features[image, y1, x0], features[image, y1, x1]
                        for c in range(channels):
                            cell[c] += w00 * f00[c] + w01 * f01[c] + w10 * f10[c] + w11 * f11[c]
