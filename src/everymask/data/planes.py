"""Volumes as images: methods of images learn from their planes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from everymask.errors import InputError
from everymask.types import Dataset, LabelMap, Sample, Segments

if TYPE_CHECKING:
    from numpy.typing import NDArray


def in_planes(data: Dataset) -> Dataset:
    """The data set with every plane of its volumes as an image of its own, called ``NAME/0007``; images stay.

    To learn how many planes there are, the annotation of every sample is read, if that of the first is a volume's.

    Args:
        data: With annotations as label maps where they are volumes. Samples without annotation stay as they are.
    """
    if not len(data) or not _planes(data[0]):
        return data
    places: list[tuple[int, int | None]] = []
    for index in range(len(data)):
        planes = _planes(data[index])
        places += [(index, plane) for plane in range(planes)] or [(index, None)]
    volumes = _Volumes(data)

    def read(number: int) -> Sample:
        index, plane = places[number]
        sample = data[index]
        if plane is None:
            return sample
        return replace(
            sample,
            name=f"{sample.name}/{plane:04d}",
            read_image=lambda: volumes.image(index)[plane],
            read_segments=lambda: volumes.segments(index).plane(plane),
        )

    return Dataset(read, len(places), data.categories, data.tasks, data.format, data.root)


def _planes(sample: Sample) -> int:
    """Planes of the annotated volume; 0 of an image."""
    segments = sample.segments
    if segments is None or len(segments.size) == 2:
        return 0
    if not isinstance(segments.geometry, LabelMap):
        raise InputError(f"{sample.path or sample.name}: the annotation of a volume must be a label map")
    return segments.size[0]


class _Volumes:
    """The volumes of a data set; the one that was read last is kept, since planes are asked for one after the other."""

    def __init__(self, data: Dataset) -> None:
        self._data = data
        self._image: tuple[int, NDArray[Any]] | None = None
        self._segments: tuple[int, Segments] | None = None

    def image(self, index: int) -> NDArray[Any]:
        """(D, H, W, C) of a sample."""
        if self._image is None or self._image[0] != index:
            self._image = (index, self._data[index].read_image())
        return self._image[1]

    def segments(self, index: int) -> Segments:
        """The annotation of a sample."""
        if self._segments is None or self._segments[0] != index:
            sample = self._data[index]
            found = sample.segments
            if found is None:
                raise InputError(f"{sample.path or sample.name} has no annotation any more")
            self._segments = (index, found)
        return self._segments[1]
