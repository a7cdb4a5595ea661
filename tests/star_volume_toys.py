"""Made-up volumes of nuclei and what a network would say of them, for the tests of StarDist in three dimensions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


def nuclei(
    shape: tuple[int, int, int],
    count: int,
    seed: int = 0,
    anisotropy: float = 1.0,
    radius: tuple[float, float] = (4, 7),
) -> NDArray[np.int32]:
    """Labels of ellipsoids in all directions, many of them touching, some cut by the border.

    Args:
        shape: (D, H, W).
        count: ellipsoids to place, as far as there is room.
        seed: of the random numbers.
        anisotropy: distance between planes in pixels.
        radius: smallest and largest half axis in pixels.
    """
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.int32)
    spacing = np.array([anisotropy, 1.0, 1.0])
    placed = 0
    for _ in range(40 * count):
        centre, radii = rng.uniform(0, 1, 3) * shape, rng.uniform(*radius, 3)
        axes, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        reach = (radius[1] / spacing + 2).astype(int)
        low = np.maximum(centre.astype(int) - reach, 0)
        high = np.minimum(centre.astype(int) + reach + 1, shape)
        offsets = np.moveaxis(np.mgrid[tuple(map(slice, low, high))], 0, -1) - centre
        inside = (((offsets * spacing) @ axes / radii) ** 2).sum(-1) < 1
        view = labels[tuple(map(slice, low, high))]
        if placed < count and inside.sum() > 30 and (view[inside] > 0).mean() < 0.12:
            placed += 1
            view[inside & (view == 0)] = placed
    return labels


def blurred(
    probability: NDArray[np.float32], distances: NDArray[np.float32], noise: float, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Targets (d, h, w) and (R, d, h, w) as a network would say them: blurred, with smooth noise and noise of each."""
    rng = np.random.default_rng(seed)
    probability = ndimage.gaussian_filter(probability, 0.7) + rng.normal(0, 0.02, probability.shape)
    distances = ndimage.gaussian_filter(distances, (0, 0.7, 0.7, 0.7))
    smooth = ndimage.gaussian_filter(rng.normal(size=probability.shape), 2)
    distances *= 1 + noise * rng.normal(size=distances.shape) + 0.05 * smooth / smooth.std()
    return np.clip(probability, 0, 1).astype(np.float32), np.maximum(distances, 1e-3).astype(np.float32)
