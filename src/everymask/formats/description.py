"""What a format is and what it can carry, for `everymask convert`, for tables of formats and for messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from everymask.types import Dataset, Segments, Task


class Feature(StrEnum):
    """What a data set can hold and a format may have no place for.

    The value is how messages call it.
    """

    MASKS = "outlines of objects"
    POINTS = "the points of polygons (their pixels are kept)"
    HOLES = "holes in objects"
    PARTS = "objects of several parts"
    OVERLAP = "pixels under more than one object"
    OBJECTS = "single objects (their classes are kept)"
    BOXES = "boxes without outlines"
    OWN_BOXES = "boxes that differ from the outlines"
    TAGS = "tags of whole images"
    SCORES = "scores"
    CROWDS = "regions marked as crowds"
    VOID = "void pixels"
    BACKGROUND = "the difference between background and void pixels"
    EMPTY = "objects without pixels"
    VOLUMES = "volumes"
    UNANNOTATED = "the difference between images without annotation and images without objects"
    CLASSES = "classes of objects"
    IDS = "ids of categories"
    COLOURS = "colours of categories"
    SUPERCATEGORIES = "groups of categories"
    STUFF = "the difference between things and stuff"
    EXTRA = "further columns of images"


@dataclass(frozen=True)
class Description:
    """What a format can carry.

    Args:
        summary: One line: what the format is.
        layout: The files that it is made of, for people and for the message when a path is not recognised.
        tasks: What its annotations can train and score.
        carries: What survives being written and read. What a data set holds beyond that is lost.
        attributes: Names of the attributes of objects that survive; None for any.
        as_pixels: Which of `Feature.HOLES` and `Feature.PARTS` are carried as pixels: then so are all polygons of an
            image that has one.
    """

    summary: str
    layout: str
    tasks: frozenset[Task]
    carries: frozenset[Feature]
    attributes: frozenset[str] | None = None
    as_pixels: frozenset[Feature] = frozenset()


class Format(Protocol):
    """What each module that is named in `everymask.formats.FORMATS` holds.

    `read` and `write` may take further keyword arguments, the options of the format. A format that only exports has no
    `read`, and its `recognise` says no. A format in which programs leave results, too, has `recognise_predictions`
    and `read_predictions`.
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


class ReadsPredictions(Protocol):
    """What the module of a format has besides, if programs leave results in it."""

    def recognise_predictions(self, path: Path) -> bool:
        """Whether `path` holds results in this format."""
        ...

    def read_predictions(self, path: Path, dataset: Dataset) -> Mapping[str, Segments]:
        """Results for the samples of `dataset`, by their names, read when asked for."""
        ...
