"""What all protocols share: the streaming contract, the tables they report, and the checks of their input."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from everymask.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from everymask.types import Categories, Segments
    from everymask.types.segments import Overlap

Cell = str | int | float


@dataclass(frozen=True)
class Table:
    """Figures in rows and columns, for the terminal, JSON, CSV and HTML alike.

    Args:
        title: What the rows are, such as ``"Categories"``.
        columns: One name for each column; the first column names the row.
        rows: Unrounded figures, one tuple a row; NaN where a figure is not defined.
        note: A sentence that belongs under the table, or nothing.
        judge: The column by which the rows are compared, the higher the better, or nothing.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    judge: str = ""


@dataclass(frozen=True, eq=False)
class Curve:
    """A line of a plot, such as precision over recall.

    Args:
        plot: Which plot it belongs to; curves of one plot share their axes.
        name: What the line is, for the legend.
        x_label: What is along the horizontal axis.
        y_label: What is along the vertical axis.
        x: (P,) in increasing order.
        y: (P,), NaN where it is not defined.
    """

    plot: str
    name: str
    x_label: str
    y_label: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Confusion:
    """Which true class was taken for which.

    Args:
        rows: Names of the true classes.
        columns: Names of what was predicted.
        counts: (R, C) pixels, objects or images.
        unit: What is counted: ``"pixels"``, ``"objects"`` or ``"images"``.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    counts: NDArray[np.int64]
    unit: str


class Metric(ABC):
    """A protocol that takes images one by one and forgets their pixels.

    The state is integer counts and exactly rounded sums, so figures depend neither on the order of the images nor on
    how processes share them: after `merge` they equal those of a single process to the last bit. Every image must be
    given once; a sampler that repeats images to even out processes would count them twice.

    Args:
        categories: The classes of the data set; truth and prediction use their ids.
    """

    reading: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Options with which the truth has to be opened, by name of its format, where the usual ones do not do."""

    def __init__(self, categories: Categories) -> None:
        self.categories = categories

    @abstractmethod
    def update(
        self,
        truth: Segments,
        prediction: Segments,
        name: str = "",
        group: str = "",
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Takes in one image.

        Args:
            truth: The annotation.
            prediction: What the model made of the same image.
            name: Names the image in errors and tables.
            group: Kind of image, such as ``"fluorescence"``; with more than one kind, a table compares them.
            extra: `Sample.extra` of the truth, such as the frame number in a sequence.

        Raises:
            InputError: Sizes differ, scores are NaN, or a category is unknown.
        """

    @abstractmethod
    def merge(self, other: Self) -> None:
        """Takes in all images of another metric of the same protocol and the same settings.

        Raises:
            InputError: The settings differ.
        """

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """The figures over all images so far."""

    @abstractmethod
    def tables(self) -> list[Table]:
        """The figures in detail."""

    def images(self) -> Table | None:
        """One row for each image, its name first, in order of names; None if single images are not kept.

        `Table.judge` names the figure by which the worst images are found.
        """
        return None

    def curves(self) -> list[Curve]:
        """The lines of the report's plots, such as precision over recall."""
        return []

    def confusion(self) -> Confusion | None:
        """Which class was taken for which, where the protocol knows."""
        return None


def check_pair(truth: Segments, prediction: Segments, name: str) -> None:
    """Refuses a prediction that cannot belong to the truth.

    Args:
        truth: The annotation.
        prediction: The prediction of the same image.
        name: The image, for the message.

    Raises:
        InputError: The sizes differ, or a score is NaN.
    """
    if truth.size != prediction.size:
        raise InputError(
            f"{_image(name)}: the truth has size {_size(truth)}, the prediction {_size(prediction)}; "
            "predict on the very image that was annotated, without resizing or cropping it"
        )
    if prediction.score is not None and np.isnan(prediction.score).any():
        wrong = int(np.isnan(prediction.score).sum())
        raise InputError(
            f"{_image(name)}: {wrong} of {len(prediction)} predicted scores are NaN, expected numbers in 0..1; "
            "check that the model's weights are finite"
        )


def category_indices(segments: Segments, categories: Categories, role: str, name: str) -> NDArray[np.int64]:
    """Positions (N,) of the segments' categories among `categories`.

    Args:
        segments: N segments.
        categories: The classes of the data set.
        role: ``"truth"`` or ``"prediction"``, for the message.
        name: The image, for the message.

    Raises:
        InputError: A segment has a category id that does not exist.
    """
    try:
        return categories.indices(segments.category)
    except InputError as error:
        raise InputError(f"{_image(name)}: the {role} has {error}; score with the model's own categories") from error


def label_map(segments: Segments, role: str, name: str) -> NDArray[np.int32]:
    """Label map (H, W) or (Z, H, W); where segments overlap the higher score wins, without scores the later one.

    Args:
        segments: N segments of any geometry.
        role: ``"truth"`` or ``"prediction"``, for the message.
        name: The image, for the message.

    Raises:
        InputError: The segments have no masks.
    """
    rule: Overlap = "last" if segments.score is None else "score"
    try:
        return segments.label_map(rule)
    except InputError as error:
        raise InputError(f"{_image(name)}: the {role} cannot be scored by pixels: {error}") from error


def _image(name: str) -> str:
    return f"image {name!r}" if name else "an image without a name"


def _size(segments: Segments) -> str:
    return " x ".join(map(str, segments.size))
