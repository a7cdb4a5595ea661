"""A sample is an image with its segments; a data set is a lazy sequence of samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from everymask.types.categories import Categories, Task
from everymask.types.segments import Segments

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Sample:
    """One image, read when asked for, and its segments, likewise.

    Args:
        name: Unique in its data set: the path of the image below the data set's folder, without the suffix, with
            forward slashes.
        read_image: Gives the image: (H, W, C), or (Z, H, W, C) for a volume, in the file's own number type.
        read_segments: Gives the segments, or None when the data set has no annotation for this image.
        path: The image file, if there is one.
        extra: What the format keeps with an image (licence, time point ...), as JSON values.
    """

    name: str
    read_image: Callable[[], NDArray[Any]]
    read_segments: Callable[[], Segments] | None = None
    path: Path | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def image(self) -> NDArray[Any]:
        """(H, W, C) or (Z, H, W, C), read on first use."""
        return self.read_image()

    @cached_property
    def segments(self) -> Segments | None:
        """The annotation, read on first use; None where there is none."""
        return None if self.read_segments is None else self.read_segments()


@dataclass(frozen=True)
class Dataset(Sequence[Sample]):
    """A sequence of samples. Opening one reads file names and indices, never pixels.

    Args:
        read: Makes sample number i; it must not read pixels.
        length: The number of samples.
        categories: The classes of the annotation.
        tasks: What the annotation can train and score.
        format: Name of the format it was read from, such as ``"coco"``.
        root: The file or folder it was opened from.
    """

    read: Callable[[int], Sample]
    length: int
    categories: Categories
    tasks: frozenset[Task]
    format: str
    root: Path

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Dataset: ...
    def __getitem__(self, index: int | slice) -> Sample | Dataset:
        if isinstance(index, slice):
            chosen = range(self.length)[index]
            return self.subset(chosen)
        if index < 0:
            index += self.length
        if not 0 <= index < self.length:
            raise IndexError(f"sample {index} of {self.length}")
        return self.read(index)

    def subset(self, indices: Sequence[int]) -> Dataset:
        """The samples with the given numbers, in that order."""
        chosen = tuple(indices)
        return Dataset(lambda i: self.read(chosen[i]), len(chosen), self.categories, self.tasks, self.format, self.root)

    @classmethod
    def of(cls, samples: Sequence[Sample], categories: Categories, tasks: frozenset[Task]) -> Dataset:
        """A data set of samples in memory."""
        kept = tuple(samples)
        return cls(lambda i: kept[i], len(kept), categories, tasks, "memory", Path())
