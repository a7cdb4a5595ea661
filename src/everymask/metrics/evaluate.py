"""Scoring a whole data set: one prediction after the other through one protocol."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from everymask.errors import InputError
from everymask.metrics import choose_protocol, make_metric
from everymask.metrics.base import Metric, Table
from everymask.types import Categories, Dataset, Sample, Segments, Task

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True)
class Evaluation:
    """Scores of predictions against a data set.

    Attributes:
        protocol: Name of the protocol in `everymask.metrics.METRICS`.
        images: Number of images scored.
        figures: The figures by name.
        tables: The same in detail.
        metric: The metric itself, to be merged with others.
    """

    protocol: str
    images: int
    figures: dict[str, float]
    tables: list[Table]
    metric: Metric


def evaluate(
    data: Dataset,
    predict: Callable[[Sample], Segments],
    *,
    protocol: str = "auto",
    tasks: Iterable[Task] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Scores the predictions for every annotated sample of a data set.

    Args:
        data: The truth.
        predict: Gives the prediction for a sample, with category ids of the data set.
        protocol: A name in `everymask.metrics.METRICS`, or ``"auto"``: chosen from what the data hold and `tasks`.
        tasks: What the predictions are; None if unknown.
        progress: Called with (samples done, samples in all).

    Raises:
        InputError: No sample has an annotation, or no protocol fits.
    """
    if protocol == "auto":
        common = data.tasks if tasks is None else (data.tasks & frozenset(tasks)) or frozenset(tasks)
        protocol = choose_protocol(common)
    metric = make_metric(protocol, data.categories)
    scored = 0
    for number, sample in enumerate(data, 1):
        truth = sample.segments
        if truth is not None:
            metric.update(truth, predict(sample), sample.name, str(sample.extra.get("kind", "")))
            scored += 1
        if progress is not None:
            progress(number, len(data))
    if not scored:
        raise InputError(f"{data.root}: no image has an annotation, so there is nothing to score")
    return Evaluation(protocol, scored, metric.compute(), metric.tables(), metric)


def ids_in_data(own: Categories, data: Dataset) -> dict[int, int]:
    """The data set's ids of categories by their own ids: by name; a single one may be called differently.

    Raises:
        InputError: The data set lacks a category.
    """
    if len(own) == len(data.categories) == 1:
        return {own[0].id: data.categories[0].id}
    try:
        return {each.id: data.categories.by_name(each.name).id for each in own}
    except InputError as error:
        raise InputError(f"{data.root}: {error}; the data need all categories of the predictions") from error
