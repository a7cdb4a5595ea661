"""Parts of a data set, such as train and val, as one."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

from everymask.errors import InputError
from everymask.types import Dataset, Sample

PARTS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})
"""Folders of these names are parts of the data set above them, and share its classes and its metadata."""


def join_parts(parts: Mapping[str, Dataset], root: Path) -> Dataset:
    """One data set of all samples; each is called ``PART/NAME`` and has its part as ``extra["split"]``.

    Args:
        parts: Name of the part, such as ``"train"``, and its samples. At least one.
        root: What they were opened from.

    Raises:
        InputError: The parts have different categories.
    """
    names, opened = list(parts), list(parts.values())
    first = opened[0]
    for name, each in parts.items():
        if each.categories != first.categories:
            raise InputError(
                f"{root}: its parts {names[0]} and {name} have different categories; open one of them, such as "
                f"{opened[0].root}"
            )
    starts = [0, *accumulate(len(each) for each in opened)]

    def read(index: int) -> Sample:
        part = bisect_right(starts, index) - 1
        sample = opened[part][index - starts[part]]
        extra = {**sample.extra, "split": names[part]}
        return replace(sample, name=f"{names[part]}/{sample.name}", extra=extra)

    tasks = frozenset.union(*(each.tasks for each in opened))
    return Dataset(read, starts[-1], first.categories, tasks, first.format, root)
