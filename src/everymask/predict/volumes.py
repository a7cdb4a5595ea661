"""Volumes predicted by methods of images: plane by plane, joined by overlap, or seen from three sides."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from everymask.errors import InputError, unknown_name
from everymask.ops.plane_joining import join_planes
from everymask.ops.three_views import add_view, joined_views, no_views
from everymask.predict.limits import sampled_limits
from everymask.predict.magnification import MagnifiedImage, restored
from everymask.types import LabelMap, Segments, Task

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from everymask.predict.predictor import Predictor

Stacks = Literal["planes", "joined", "views"]
"""What a stack is to a method of images: ``planes`` are images of their own (a time series); ``joined``: objects of
neighbouring planes are one where they lie on each other; ``views``: the network sees the volume from three sides."""
OVERLAP = 0.25
"""Intersection over union above which objects of neighbouring planes are one."""


def check_stacks(predictor: Predictor, stacks: str, anisotropy: float = 1.0) -> None:
    """Makes sure that stacks can be predicted so.

    Raises:
        InputError: The choice does not exist or is not for this method, or the anisotropy makes no sense.
    """
    method = predictor.method
    if stacks not in get_args(Stacks):
        raise unknown_name("way to predict stacks", stacks, get_args(Stacks))
    if not anisotropy > 0:
        raise InputError(f"anisotropy is the distance between planes in pixels, above 0, got {anisotropy:g}")
    name = type(method).__name__
    if method.dimensions == 3:
        if stacks != "planes" or anisotropy != 1:
            raise InputError(
                f"this {name} is for volumes and predicts stacks as a whole; leave out stacks and anisotropy"
            )
        return
    if stacks == "joined" and Task.INSTANCE not in method.tasks:
        raise InputError(f"{name} finds no objects that could be joined from plane to plane; leave out stacks")
    if stacks == "views" and not getattr(method, "three_views", False):
        raise InputError(f"{name} cannot join three views of a volume; take joined, or train a method of volumes")
    if anisotropy != 1 and stacks != "views":
        raise InputError("anisotropy is for volumes that are seen from three sides; say stacks views, or leave it out")


def predict_volume(
    predictor: Predictor,
    volume: NDArray[Any],
    stacks: Stacks,
    *,
    anisotropy: float = 1.0,
    limits: ArrayLike | None = None,
    overlap: float = OVERLAP,
) -> Segments:
    """The objects of a volume by a method of images.

    Args:
        predictor: Of the method.
        volume: (D, H, W) or (D, H, W, C), any real number type.
        stacks: ``joined`` or ``views``; see `Stacks`.
        anisotropy: Distance between planes in pixels, for views: the planes from the side are stretched by it.
        limits: Intensities that become 0 and 1; default: those of the volume.
        overlap: For ``joined``, the least intersection over union.

    Returns:
        Segments with a label map (D, H, W) and categories 0..K-1. The score of a joined object is the mean over its
        planes, weighted by its pixels.

    Raises:
        InputError: As for images; or the method or the volume is not for this.
    """
    check_stacks(predictor, stacks, anisotropy)
    if len(np.shape(volume)) not in (3, 4):
        raise InputError(f"expected a volume (D, H, W) or (D, H, W, C), got an array of shape {np.shape(volume)}")
    if limits is None:
        limits = sampled_limits(predictor.preprocessing, volume, 3)
    if stacks == "joined":
        return joined(predictor.predict_stack(volume, limits), overlap)
    volume = np.asarray(volume)
    return _by_views(
        predictor, volume if volume.ndim == 4 else volume[..., None], anisotropy, np.asarray(limits, np.float32)
    )


def joined(planes: Sequence[Segments], overlap: float = OVERLAP) -> Segments:
    """The segments of the planes of a volume, joined where they lie on each other (see `join_planes`).

    Args:
        planes: (D) segments of planes of one size; where they overlap in a plane, the higher score wins.
        overlap: The least intersection over union.
    """
    ids = [each.label_map("last" if each.score is None else "score") for each in planes]
    volume, numbers = join_planes(ids, overlap, [each.category for each in planes])
    count = max((int(each.max(initial=0)) for each in numbers), default=0)
    category = np.zeros(count, np.int64)
    pixels, score = np.zeros(count), np.zeros(count)
    for plane, labels in zip(planes, numbers, strict=True):
        category[labels - 1] = plane.category
        areas = plane.areas()
        np.add.at(pixels, labels - 1, areas)
        if plane.score is not None:
            np.add.at(score, labels - 1, areas * plane.score)
    scored = all(each.score is not None for each in planes)
    return Segments(volume.shape, category, LabelMap(volume), score=score / np.maximum(pixels, 1) if scored else None)


def _by_views(predictor: Predictor, volume: NDArray[Any], anisotropy: float, limits: NDArray[np.float32]) -> Segments:
    """The objects of a volume (D, H, W, C) from outputs for the planes of its three axes."""
    if predictor.magnification == "auto":
        raise InputError("the magnification of a volume cannot be estimated; give a number, or the diameter")
    factor = float(predictor.magnification)
    factors = (anisotropy * factor, factor, factor)
    size = volume.shape[:3]
    if factors != (1.0, 1.0, 1.0):
        volume = MagnifiedImage(volume, factors)[tuple(slice(None) for _ in size)]
    plain, total = copy.copy(predictor), None
    plain.magnification = 1.0  # the volume has the magnification already
    for axis in range(3):
        for number, plane in enumerate(np.moveaxis(volume, axis, 0)):
            outputs, _ = plain.outputs(plane, limits)
            if total is None:
                classes = outputs["category"].shape[1] if "category" in outputs else 0
                total = no_views(volume.shape[:3], classes)
            add_view(total, axis, outputs, number)
    if total is None:
        raise InputError(f"the volume has no voxels: its shape is {volume.shape[:3]}")
    outputs = joined_views(total)
    found = predictor.method.decode(outputs, [volume.shape[:3]])[0]
    return found if volume.shape[:3] == size else restored(found, size)[0]
