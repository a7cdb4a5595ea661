"""Samples of a data set as the training keeps them in memory, checked once when they are read."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from everymask.data.preprocessing import Preprocessing
from everymask.errors import InputError
from everymask.types import Categories, Dataset, LabelMap, Sample, Segments
from everymask.types.geometry import VOID

if TYPE_CHECKING:
    from numpy.typing import NDArray

CACHE_BYTES = 1_000_000_000
"""Decoded images and label maps that are kept in memory, for all processes of a machine together."""


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """A sample as it is kept in memory.

    Args:
        image: (H, W, C) in the file's own number type.
        limits: From `Preprocessing.limits`, of the whole image.
        ids: (H, W) labels in the smallest fitting integer type; (0, 0) where the segments are tags of the image.
        category: (N,) class indices.
        crowd: (N,) bool.
        boxes: (M, 5) int32: label, y0, x0, y1, x1 of the segments that have pixels; ends exclusive.
    """

    image: NDArray[Any]
    limits: NDArray[np.float32]
    ids: NDArray[Any]
    category: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    boxes: NDArray[np.int32]

    @property
    def tagged(self) -> bool:
        """Whether the segments are tags of the whole image, without a place in it."""
        return self.ids.size == 0

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        return self.image.nbytes + self.ids.nbytes + self.boxes.nbytes

    def random_pixel(
        self, rng: np.random.Generator, category: int | None = None, by_class: bool = False
    ) -> NDArray[np.float64] | None:
        """A random pixel (y, x) of a random segment, whatever the segments' areas; None if there is no segment.

        Args:
            rng: Source of the randomness.
            category: Class index of the segment; default: any.
            by_class: Draw one of the image's classes first, so that many segments of one do not hide few of another.
        """
        boxes = self.boxes
        if by_class and len(boxes):
            category = int(rng.choice(np.unique(self.category[boxes[:, 0] - 1])))
        if category is not None:
            boxes = boxes[self.category[boxes[:, 0] - 1] == category]
        if not len(boxes):
            return None
        label, top, left, bottom, right = (int(each) for each in boxes[rng.integers(len(boxes))])
        inside = np.flatnonzero(self.ids[top:bottom, left:right] == label)
        row, column = divmod(int(inside[rng.integers(len(inside))]), right - left)
        return np.array([top + row, left + column], np.float64)


def decode(
    sample: Sample, preprocessing: Preprocessing, categories: Categories, *, unannotated: bool = False
) -> Decoded:
    """Reads a sample and checks it.

    Args:
        sample: What to read.
        preprocessing: Decides on channels and limits.
        categories: The model's categories.
        unannotated: Take an image without annotation for one that is void everywhere.

    Raises:
        InputError: The image is unreadable, not finite or a volume; the annotation is missing, has boxes only, another
            size than the image, or a category that `categories` lacks. The message names the sample.
    """
    from scipy import ndimage

    try:
        image = preprocessing.match_channels(sample.image)
        segments = sample.segments
        if segments is None:
            if not unannotated:
                raise InputError("has no annotation; remove the image from the data or annotate it")
            segments = _all_void((image.shape[0], image.shape[1]))
        if segments.size != image.shape[:2]:
            raise InputError(
                f"the image has {_by(image.shape[:2])} pixels (height x width), but its annotation "
                f"{_by(segments.size)}; they must be equal"
            )
        if np.issubdtype(image.dtype, np.floating) and not np.isfinite(image).all():
            raise InputError("the image holds NaN or infinite values; replace them by numbers")
        ids, category = labels_of(segments, categories)
    except InputError as error:
        raise named(sample, error) from error
    found = ndimage.find_objects(np.maximum(ids, 0), max_label=len(segments))
    boxes = [
        (number, place[0].start, place[1].start, place[0].stop, place[1].stop)
        for number, place in enumerate(found, 1)
        if place is not None
    ]
    return Decoded(
        image,
        preprocessing.limits(image),
        ids.astype(np.int16) if len(segments) < np.iinfo(np.int16).max else ids,
        category,
        segments.crowd,
        np.array(boxes, np.int32).reshape(-1, 5),
    )


def _all_void(size: tuple[int, int]) -> Segments:
    return Segments(size, [], LabelMap(np.full(size, VOID, np.int32)))


def labels_of(segments: Segments, categories: Categories) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The label map, (0, 0) where the segments are tags of the image, and the class index of each segment.

    Raises:
        InputError: The segments have boxes only, or a category that `categories` lacks.
    """
    tags = segments.geometry is None and not segments.has_boxes
    ids = np.zeros((0, 0), np.int32) if tags else segments.label_map("last")
    return ids, _indices(segments, categories)


def _indices(segments: Segments, categories: Categories) -> NDArray[np.int64]:
    try:
        return categories.indices(segments.category)
    except InputError as error:
        unknown = sorted(set(segments.category.tolist()) - set(categories.ids.tolist()))
        raise InputError(
            f"{error} ({', '.join(categories.names[:8])}); train on data that have all classes, or, if "
            f"{unknown[0]} marks pixels to ignore, say --void {unknown[0]}"
        ) from error


def named(sample: Sample, error: InputError) -> InputError:
    """The error with the file that it is about."""
    place, text = str(sample.path or sample.name), str(error)
    return error if place in text else InputError(f"{place}: {text}")


def _by(size: Sequence[int]) -> str:
    return " x ".join(str(each) for each in size)


Visits = Literal["once", "side", "area"]


class Store:
    """Decoded samples, the most recently used ones kept in memory.

    Args:
        data: The samples.
        preprocessing: Decides on channels and limits.
        categories: The model's categories.
        budget: Bytes to keep at most.
        unannotated: Take images without annotation for all void.
    """

    def __init__(
        self,
        data: Dataset,
        preprocessing: Preprocessing,
        categories: Categories,
        budget: int,
        *,
        unannotated: bool = False,
    ) -> None:
        self.data, self.preprocessing, self.categories, self.budget = data, preprocessing, categories, budget
        self.unannotated = unannotated
        self._kept: OrderedDict[int, Decoded] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Decoded:
        if index in self._kept:
            self._kept.move_to_end(index)
            return self._kept[index]
        decoded = decode(self.data[index], self.preprocessing, self.categories, unannotated=self.unannotated)
        self._kept[index] = decoded
        self._bytes += decoded.bytes
        while self._bytes > self.budget and self._kept:
            self._bytes -= self._kept.popitem(last=False)[1].bytes
        return decoded

    def labels(self, index: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """What `labels_of` says of a sample; its image is not read. Of a sample without annotation there is nothing.

        Raises:
            InputError: As for the sample itself.
        """
        if index in self._kept:
            return self._kept[index].ids, self._kept[index].category
        sample = self.data[index]
        try:
            segments = sample.segments
            return labels_of(_all_void((0, 0)) if segments is None else segments, self.categories)
        except InputError as error:
            raise named(sample, error) from error

    def visits(self, rule: Visits, crop: int) -> list[int]:
        """How often an epoch visits each sample; every rule but ``once`` reads all samples to learn their sizes.

        Args:
            rule: ``once``; ``side``: as many times as crops fit along the geometric mean of the image's sides;
                ``area``: as many as fit into the image. At least once.
            crop: Side of the crop.
        """
        if rule == "once":
            return [1] * len(self)
        sides = [math.sqrt(math.prod(self[index].image.shape[:2])) / crop for index in range(len(self))]
        return [max(1, round(side if rule == "side" else side**2)) for side in sides]

    def fill(self, progress: Callable[[int, int], None] | None = None) -> bool:
        """Reads all samples if they fit the budget, judged by a few of them; returns whether they are all in memory.

        Done before loader processes are started, which then share the memory, and so that a damaged file is found at
        once and not after hours.
        """
        count = len(self)
        probes = sorted({round(each) for each in np.linspace(0, count - 1, min(8, count))})
        typical = sum(self[index].bytes for index in probes) / len(probes)
        if typical * count > 0.9 * self.budget:
            return False
        for index in range(count):
            _ = self[index]
            if progress is not None:
                progress(index + 1, count)
        return len(self._kept) == count
