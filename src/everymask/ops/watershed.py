"""Watershed from seeds, and what the methods that decode by it have in common."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from everymask.errors import InputError
from everymask.ops.labels import compact_labels, connected_components, label_areas


def seeds_of(mask: NDArray[np.bool_], least: float = 4, share: float = 0.1) -> NDArray[np.int32]:
    """The connected parts of a mask, corners joined, without the smallest.

    Args:
        mask: (H, W) or (Z, H, W), True where a seed is.
        least: Parts of at most so many pixels are dropped.
        share: So are those of at most this share of the mean size of all parts (microbeSEG: .1 and 4 pixels).

    Returns:
        Seeds 1..M, 0 elsewhere; same shape.
    """
    seeds, owners = connected_components(mask, connectivity=mask.ndim)
    if not len(owners):
        return seeds
    areas = label_areas(seeds, len(owners))
    keep = areas > max(share * float(areas.mean()), least)
    if keep.all():
        return seeds
    return np.concatenate([[0], np.where(keep, np.cumsum(keep), 0)]).astype(np.int32)[seeds]


def watershed(heights: NDArray[np.floating], seeds: NDArray[np.int32], mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """The basins of seeds, flooded from the lowest heights upwards, by `skimage.segmentation.watershed`.

    Args:
        heights: (H, W) or (Z, H, W).
        seeds: Labels from 1 on, 0 elsewhere; same shape.
        mask: What may be flooded. Parts of it without a seed stay background.

    Returns:
        Labels 1..N in the order of the seeds, 0 elsewhere; seeds outside the mask have no basin and no number.

    Raises:
        InputError: scikit-image is not installed.
    """
    try:
        from skimage.segmentation import watershed as flood
    except ImportError as error:
        raise InputError("the watershed needs scikit-image; run: pip install 'everymask[microscopy]'") from error
    # scikit-image computes with float64 and copies everything else once for each use.
    basins = flood(np.asarray(heights, np.float64), seeds, mask=mask)
    return compact_labels(basins)[0]


def class_votes(ids: NDArray[np.int32], count: int, probability: NDArray[np.float32]) -> NDArray[np.int64]:
    """The class of each object: the one with the largest sum of probabilities over its pixels.

    Args:
        ids: (H, W) or (Z, H, W) objects 1..N.
        count: N.
        probability: (K, H, W) or (K, Z, H, W) of the classes without the background; further planes, rows and columns
            are passed over.

    Returns:
        (N,) class indices 0..K-1.
    """
    if ids.ndim == 2:
        ids, probability = ids[None], probability[:, None]
    return _class_votes(ids, count, probability).argmax(1).astype(np.int64)


def mean_inside(ids: NDArray[np.int32], count: int, values: NDArray[np.floating]) -> NDArray[np.float64]:
    """(N,) mean value over each of the labels 1..`count`, every one of which occurs."""
    flat = ids.ravel()
    sums = np.bincount(flat, weights=values.ravel(), minlength=count + 1)[1:]
    return sums / np.bincount(flat, minlength=count + 1)[1:]


@njit(cache=True, nogil=True)
def _class_votes(
    ids: NDArray[np.int32], count: int, probability: NDArray[np.float32]
) -> NDArray[np.float64]:  # pragma: no cover - compiled
    votes = np.zeros((count, len(probability)), np.float64)
    for z in range(ids.shape[0]):
        for y in range(ids.shape[1]):
            for x in range(ids.shape[2]):
                if ids[z, y, x] > 0:
                    for k in range(len(probability)):
                        votes[ids[z, y, x] - 1, k] += probability[k, z, y, x]
    return votes
