"""Samples of a data set as the training keeps them in memory, checked once when they are read."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from everymask.data.objects import layers_of
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
        image: (H, W, C), or (D, H, W, C) of a volume, in the file's own number type.
        limits: From `Preprocessing.limits`, of the whole image.
        ids: (H, W) or (D, H, W) labels in the smallest fitting integer type; (0, 0) where the segments are tags of the
            image, or learnt as boxes. For masks that overlap (H, W, P), labels of P maps (`layers_of`).
        category: (N,) class indices.
        crowd: (N,) bool.
        boxes: (M, 5) int32: label, y0, x0, y1, x1 of the segments that have pixels; ends exclusive. Of volumes (M, 7):
            label, z0, y0, x0, z1, y1, x1.
        frames: (N, 4) x0, y0, x1, y1 of all segments, for methods that learn from boxes or masks; None for others.
        areas: (N,) pixels of all segments, for methods that learn from masks; None for others.
    """

    image: NDArray[Any]
    limits: NDArray[np.float32]
    ids: NDArray[Any]
    category: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    boxes: NDArray[np.int32]
    frames: NDArray[np.float32] | None = None
    areas: NDArray[np.int64] | None = None

    @property
    def tagged(self) -> bool:
        """Whether the segments are tags of the whole image, without a place in it."""
        return self.ids.size == 0 and self.frames is None

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        return self.image.nbytes + self.ids.nbytes + self.boxes.nbytes

    def random_pixel(
        self, rng: np.random.Generator, category: int | None = None, by_class: bool = False
    ) -> NDArray[np.float64] | None:
        """A random pixel (y, x), or (z, y, x), of a random segment, whatever its area; None if there is no segment.

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
        label, *ends = (int(each) for each in boxes[rng.integers(len(boxes))])
        if self.frames is not None:
            x0, y0, x1, y1 = self.frames[label - 1]
            return np.array([rng.uniform(y0, y1), rng.uniform(x0, x1)]) - 0.5
        start, stop = ends[: self.ids.ndim], ends[self.ids.ndim :]
        window = self.ids[tuple(slice(*each) for each in zip(start, stop, strict=True))]
        inside = np.flatnonzero(window == label)
        place = np.unravel_index(int(inside[rng.integers(len(inside))]), window.shape)
        return np.add(start, place).astype(np.float64)


def decode(
    sample: Sample,
    preprocessing: Preprocessing,
    categories: Categories,
    *,
    unannotated: bool = False,
    dimensions: int = 2,
    learns_from: LearnsFrom = "labels",
) -> Decoded:
    """Reads a sample and checks it.

    Args:
        sample: What to read.
        preprocessing: Decides on channels and limits.
        categories: The model's categories.
        unannotated: Take an image without annotation for one that is void everywhere.
        dimensions: 2 for images, 3 for volumes.
        learns_from: Whether the method wants a label map, boxes, or masks that may overlap. Boxes without any area in
            the image, of which large data sets have some, are left out.

    Raises:
        InputError: The image is unreadable or not finite, or a volume instead of an image; the annotation is missing,
            has boxes only, another size than the image, or a category that `categories` lacks. The message names the
            sample.
    """
    from scipy import ndimage

    try:
        image = preprocessing.match_channels(sample.image)
        if image.ndim != dimensions + 1:
            kinds = {3: "an image", 4: "a volume (a stack of planes)"}
            advice = "train with --dimensions 3" if dimensions == 2 else "leave --dimensions 3 out"
            raise InputError(
                f"is {kinds[image.ndim]}, but the method is for {('images', 'volumes')[dimensions - 2]}; {advice}, or "
                "train on other data"
            )
        segments = sample.segments
        if segments is None:
            if not unannotated:
                raise InputError("has no annotation; remove the image from the data or annotate it")
            segments = _all_void(image.shape[:-1])
        if segments.size != image.shape[:-1]:
            axes = "height x width" if dimensions == 2 else "planes x height x width"
            raise InputError(
                f"the image has {_by(image.shape[:-1])} pixels ({axes}), but its annotation "
                f"{_by(segments.size)}; they must be equal"
            )
        if np.issubdtype(image.dtype, np.floating) and not np.isfinite(image).all():
            raise InputError("the image holds NaN or infinite values; replace them by numbers")
        if learns_from != "labels":
            return _of_objects(image, preprocessing.limits(image), segments, categories, learns_from)
        ids, category = labels_of(segments, categories)
    except InputError as error:
        raise named(sample, error) from error
    found = ndimage.find_objects(np.maximum(ids, 0), max_label=len(segments))
    boxes = [
        (number, *(axis.start for axis in place), *(axis.stop for axis in place))
        for number, place in enumerate(found, 1)
        if place is not None
    ]
    return Decoded(
        image,
        preprocessing.limits(image),
        ids.astype(np.int16) if len(segments) < np.iinfo(np.int16).max else ids,
        category,
        segments.crowd,
        np.array(boxes, np.int32).reshape(-1, 1 + 2 * dimensions),
    )


def _of_objects(
    image: NDArray[Any],
    limits: NDArray[np.float32],
    segments: Segments,
    categories: Categories,
    learns_from: LearnsFrom,
) -> Decoded:
    """A sample for a method that learns from boxes or masks.

    Raises:
        InputError: There are none.
    """
    check_objects(segments, learns_from)
    category = _indices(segments, categories)
    if learns_from == "boxes":
        ids = np.zeros((0, 0), np.int32)
        frames = clipped_boxes(segments)
    else:
        ids = layers_of(segments)
        if len(segments) < np.iinfo(np.int16).max:
            ids = ids.astype(np.int16)
        # Around the pixels that the annotation has, and not the boxes that it may give besides.
        frames = Segments(segments.size, segments.category, segments.geometry).boxes().astype(np.float32)
    present = np.flatnonzero(have_area(frames))
    if learns_from == "boxes":
        frames, category, crowd = frames[present], category[present], segments.crowd[present]
        present, areas = np.arange(len(frames)), None
    else:
        crowd, areas = segments.crowd, segments.areas()
    found = np.concatenate([present[:, None] + 1, frames[present][:, [1, 0, 3, 2]].round()], axis=1).astype(np.int32)
    return Decoded(image, limits, ids, category, crowd, found, frames, areas)


def check_objects(segments: Segments, learns_from: LearnsFrom) -> None:
    """Checks that an annotation has what a method that finds objects learns from.

    Raises:
        InputError: It has tags of the image only, or boxes without the masks that are needed.
    """
    if not len(segments) or learns_from == "labels":
        return
    if not segments.has_boxes:
        raise InputError("the annotation has neither boxes nor masks, which this method learns from")
    if learns_from == "masks" and segments.geometry is None:
        raise InputError(
            "the annotation has boxes but no masks; train a method that finds boxes, such as faster_rcnn, or add masks"
        )


def clipped_boxes(segments: Segments) -> NDArray[np.float32]:
    """The boxes (N, 4) of segments, cut off at the edges of the image."""
    height, width = segments.size
    given = segments.boxes() if len(segments) else np.zeros((0, 4))
    return np.clip(given, 0, np.array([width, height] * 2, np.float64)).astype(np.float32)


def have_area(boxes: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(N,): whether boxes (N, 4) have any."""
    found: NDArray[np.bool_] = np.all(boxes[:, 2:] > boxes[:, :2], axis=1)
    return found


def _all_void(size: tuple[int, ...]) -> Segments:
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


LearnsFrom = Literal["labels", "boxes", "masks"]
"""What of an annotation a method learns from: a label map (or tags of the image), boxes, or masks that may overlap."""
Visits = Literal["once", "side", "area"]


class Counts(NamedTuple):
    """What the annotation of a sample holds."""

    category: NDArray[np.int64]
    """(N,) class index of each segment that is there."""
    areas: NDArray[np.int64]
    """(N,) its pixels, those of its box for methods that learn from boxes, 0 of a tag of the image."""
    background: int
    """Pixels of no segment; 0 for boxes and tags."""


class Store:
    """Decoded samples, the most recently used ones kept in memory.

    Args:
        data: The samples.
        preprocessing: Decides on channels and limits.
        categories: The model's categories.
        budget: Bytes to keep at most.
        unannotated: Take images without annotation for all void.
        dimensions: 2 for images, 3 for volumes.
        learns_from: What of the annotation; see `decode`.
    """

    def __init__(
        self,
        data: Dataset,
        preprocessing: Preprocessing,
        categories: Categories,
        budget: int,
        *,
        unannotated: bool = False,
        dimensions: int = 2,
        learns_from: LearnsFrom = "labels",
    ) -> None:
        self.data, self.preprocessing, self.categories, self.budget = data, preprocessing, categories, budget
        self.unannotated, self.dimensions, self.learns_from = unannotated, dimensions, learns_from
        self._kept: OrderedDict[int, Decoded] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Decoded:
        if index in self._kept:
            self._kept.move_to_end(index)
            return self._kept[index]
        decoded = decode(
            self.data[index],
            self.preprocessing,
            self.categories,
            unannotated=self.unannotated,
            dimensions=self.dimensions,
            learns_from=self.learns_from,
        )
        self._kept[index] = decoded
        self._bytes += decoded.bytes
        while self._bytes > self.budget and self._kept:
            self._bytes -= self._kept.popitem(last=False)[1].bytes
        return decoded

    def counts(self, index: int) -> Counts:
        """The segments of a sample and their pixels; its image is not read. Without annotation there is nothing.

        Raises:
            InputError: As for the sample itself.
        """
        if index in self._kept and self.learns_from == "labels":
            return _counts_of_labels(self._kept[index].ids, self._kept[index].category)
        sample = self.data[index]
        try:
            segments = sample.segments
            if segments is None:
                segments = _all_void((0, 0))
            if self.learns_from == "boxes":
                check_objects(segments, "boxes")
                boxes = clipped_boxes(segments)
                present = have_area(boxes)
                sides = boxes[present, 2:] - boxes[present, :2]
                areas = sides.prod(axis=1).round().astype(np.int64)
                return Counts(_indices(segments, self.categories)[present], areas, 0)
            return _counts_of_labels(*labels_of(segments, self.categories))
        except InputError as error:
            raise named(sample, error) from error

    def visits(self, rule: Visits, crop: Sequence[int]) -> list[int]:
        """How often an epoch visits each sample; every rule but ``once`` reads all samples to learn their sizes.

        Args:
            rule: ``once``; ``side``: as many times as crops fit along the geometric mean of the image's sides;
                ``area``: as many as fit into the image or volume. At least once.
            crop: Sides of the crop.
        """
        if rule == "once":
            return [1] * len(self)
        fitting = [math.prod(self[index].image.shape[:-1]) / math.prod(crop) for index in range(len(self))]
        return [max(1, round(each ** (1 / len(crop)) if rule == "side" else each)) for each in fitting]

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


def _counts_of_labels(ids: NDArray[Any], category: NDArray[np.int64]) -> Counts:
    """The pixels of a label map; all segments are there if they are tags, which have none."""
    pixels = np.bincount(ids.ravel() + 1, minlength=len(category) + 2)  # from void (-1) on
    present = pixels[2:] > 0 if ids.size else np.ones(len(category), np.bool_)
    return Counts(category[present], pixels[2:][present], int(pixels[1]))
