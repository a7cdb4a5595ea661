"""What a COCO evaluation is asked for: IoU thresholds, area ranges and numbers of detections, laid out as bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from everymask.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())
"""IoU .50, .55 ... .95 as the official program computes them: .9 is the number right below 0.9."""

AREAS: Mapping[str, tuple[float, float]] = {
    "all": (0.0, 1e10),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e10),
}
"""Ranges of object areas in pixels, both ends included."""

MAX_DETECTIONS = (1, 10, 100)

UNLIMITED = int(np.iinfo(np.int32).max)

RECALLS = np.linspace(0.0, 1.0, 101)
"""(101,) levels of recall at which precision is read."""

_WORD = 64


@dataclass(frozen=True)
class Rules:
    """The T thresholds, A area ranges and M numbers of detections of an evaluation.

    What happens to an object at every threshold in every area range is kept as bits of one word, or of several where
    T times A does not fit. The bits of an area range lie in one word.

    Args:
        thresholds: T IoU values in increasing order.
        areas: Name and ends of A ranges; the first is the one of the headline figures.
        max_detections: M limits of the detections of a category in an image, in increasing order.
    """

    thresholds: tuple[float, ...]
    areas: tuple[tuple[str, float, float], ...]
    max_detections: tuple[int, ...]

    @classmethod
    def checked(
        cls,
        thresholds: Sequence[float],
        areas: Mapping[str, Sequence[float]],
        max_detections: int | Sequence[int | None],
    ) -> Rules:
        """The rules that a user asked for.

        Args:
            thresholds: 1..64 values above 0 and up to 1.
            areas: Name of each range and its ends in pixels.
            max_detections: One limit or several; 0 or None stands for no limit.

        Raises:
            InputError: One of them has no good value.
        """
        chosen = tuple(sorted({float(each) for each in thresholds}))
        if not 1 <= len(chosen) <= _WORD or not all(0 < each <= 1 for each in chosen):
            raise InputError(
                f"thresholds: got {list(thresholds)}, expected 1 to {_WORD} IoU values above 0 and up to 1, such as 0.5"
            )
        ranges = []
        for name, ends in areas.items():
            if len(ends) != 2 or not 0 <= ends[0] <= ends[1]:
                raise InputError(f"areas: {name!r} is {list(ends)}, expected two numbers of pixels, the lower first")
            ranges.append((name, float(ends[0]), float(ends[1])))
        if not ranges:
            raise InputError("areas: got none, expected at least one range, such as all=(0, 1e10)")
        limits = [max_detections] if isinstance(max_detections, int) else list(max_detections)
        if not limits or any(each is not None and each < 0 for each in limits):
            raise InputError(f"max_detections: got {max_detections}, expected numbers of detections, or 0 for no limit")
        return cls(chosen, tuple(ranges), tuple(sorted({min(each or UNLIMITED, UNLIMITED) for each in limits})))

    @property
    def limit_names(self) -> tuple[str, ...]:
        """(M,) how the numbers of detections are called in figures: the number, or ``unlimited``."""
        return tuple("unlimited" if each == UNLIMITED else str(each) for each in self.max_detections)

    def threshold_index(self, value: float) -> int | None:
        """Position of a threshold, None if it is not among them."""
        near = [index for index, each in enumerate(self.thresholds) if abs(each - value) < 1e-9]
        return near[0] if near else None

    @property
    def per_word(self) -> int:
        """How many area ranges share a word."""
        return _WORD // len(self.thresholds)

    @property
    def words(self) -> int:
        """W, how many words an object has."""
        return -(-len(self.areas) // self.per_word)

    @cached_property
    def lowest(self) -> NDArray[np.float64]:
        """(T,) the IoU that is enough at each threshold: one of 1 has to be met up to 1e-10 only, as officially."""
        return np.minimum(np.array(self.thresholds), 1 - 1e-10)

    @cached_property
    def ranges(self) -> NDArray[np.float64]:
        """(A, 2) ends of the area ranges."""
        return np.array([ends for _, *ends in self.areas], np.float64)

    @cached_property
    def area_bits(self) -> NDArray[np.uint64]:
        """(A, W) the bits of each area range."""
        full = (1 << len(self.thresholds)) - 1
        bits = np.zeros((len(self.areas), self.words), np.uint64)
        for index in range(len(self.areas)):
            bits[index, index // self.per_word] = full << index % self.per_word * len(self.thresholds)
        return bits

    @cached_property
    def level_bits(self) -> NDArray[np.uint64]:
        """(T + 1, W) the bits of the n lowest thresholds, of every area range."""
        count = len(self.thresholds)
        bits = np.zeros((count + 1, self.words), np.uint64)
        for passed in range(count + 1):
            for index in range(len(self.areas)):
                word = ((1 << passed) - 1) << index % self.per_word * count
                bits[passed, index // self.per_word] |= np.uint64(word)
        return bits
