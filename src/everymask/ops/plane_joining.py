"""Objects of a volume from the objects of its planes: neighbouring ones are joined where objects lie on each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from everymask.errors import InputError
from everymask.ops.labels import label_areas, label_overlap

if TYPE_CHECKING:
    from numpy.typing import NDArray


def join_planes(
    planes: Sequence[NDArray[np.int32]], threshold: float = 0.25, category: Sequence[NDArray[np.int64]] | None = None
) -> tuple[NDArray[np.int32], list[NDArray[np.int64]]]:
    """Joins each object to the one in the plane before that it overlaps best.

    Two objects of neighbouring planes are one if their intersection over union is at least `threshold` and none of the
    plane behind overlaps the one before better, as ``stitch3D`` of the program Cellpose. An object that goes on in no
    plane ends; one that nothing leads to is new.

    Args:
        planes: (D) label maps (H, W), objects 1..N of each plane, background 0, void -1.
        threshold: Intersection over union, above 0 and up to 1.
        category: (D) class of each object of each plane, (N,); objects of different classes are never joined. None
            where all are of one class.

    Returns:
        The label map (D, H, W), objects numbered 1..M in the order of their first planes, and (D) for each plane the
        label of each of its objects in the volume, (N,).

    Raises:
        InputError: The threshold makes no sense.
    """
    if not 0 < threshold <= 1:
        raise InputError(f"the overlap of planes must be above 0 and at most 1, got {threshold:g}")
    volume = np.zeros((len(planes), *planes[0].shape), np.int32)
    numbers: list[NDArray[np.int64]] = []
    areas: list[NDArray[np.int64]] = []
    total = 0
    for z, plane in enumerate(planes):
        count = int(plane.max(initial=0)) if category is None else len(category[z])
        areas.append(label_areas(plane, count))
        joined = np.zeros(count, np.int64)
        if z:
            here, before = _best_partners(plane, planes[z - 1], areas[z], areas[z - 1], threshold)
            if category is not None:
                same = category[z][here] == category[z - 1][before]
                here, before = here[same], before[same]
            joined[here] = numbers[z - 1][before]
        new = np.flatnonzero(joined == 0)
        joined[new] = total + 1 + np.arange(len(new))
        total += len(new)
        numbers.append(joined)
        volume[z] = np.concatenate([[-1, 0], joined]).astype(np.int32)[plane + 1]
    return volume, numbers


def _best_partners(
    plane: NDArray[np.int32],
    before: NDArray[np.int32],
    areas: NDArray[np.int64],
    areas_before: NDArray[np.int64],
    threshold: float,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs (here, before) of objects, counted from 0, that are one; each object takes part once at most."""
    here, there, pixels = label_overlap(plane, before)
    both = (here > 0) & (there > 0)
    here, there, pixels = here[both] - 1, there[both] - 1, pixels[both]
    share = pixels / (areas[here] + areas_before[there] - pixels)
    # The best object behind for each one before, the lower number among equal ones.
    order = np.lexsort((here, -share, there))
    order = order[share[order] >= threshold]
    _, first = np.unique(there[order], return_index=True)
    order = order[first]
    # Several before may have the same best one behind: it goes on from the one that it overlaps best.
    order = order[np.lexsort((there[order], -share[order], here[order]))]
    _, first = np.unique(here[order], return_index=True)
    return here[order[first]], there[order[first]]
