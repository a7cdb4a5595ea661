"""What a format is and what it can carry, for `everymask convert`, for tables of formats and for messages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from everymask.types import Dataset, Task


@dataclass(frozen=True)
class Description:
    """What a format can carry.

    Args:
        summary: One line: what the format is.
        layout: The files that it is made of, for people and for the message when a path is not recognised.
        tasks: What its annotations can train and score.
        keeps: What a round trip through the format returns exactly.
        loses: What it has no place for.
    """

    summary: str
    layout: str
    tasks: frozenset[Task]
    keeps: tuple[str, ...]
    loses: tuple[str, ...]


class Format(Protocol):
    """What each module that is named in `everymask.formats.FORMATS` holds.

    `read` and `write` may take further keyword arguments, the options of the format.
    """

    DESCRIPTION: Description

    def recognise(self, path: Path) -> bool:
        """Whether `path` is of this format, judged from names and at most a look into one index file."""
        ...

    def read(self, path: Path) -> Dataset:
        """Opens a data set; reads names and indices, no pixels of images."""
        ...

    def write(self, dataset: Dataset, target: Path) -> None:
        """Writes a data set into the folder `target`, sample by sample."""
        ...
