"""Scoring a whole data set: one prediction after the other through one protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everymask.errors import InputError
from everymask.metrics import checked_options, choose_protocol, make_metric
from everymask.metrics.base import Metric, Table
from everymask.metrics.read_ahead import read_ahead
from everymask.types import Categories, Dataset, Sample, Segments, Task

if TYPE_CHECKING:
    from collections.abc import Iterable


_LOOKED_AT = 50
"""Images in which a prediction is looked for that tells what the predictions are."""


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
    options: Mapping[str, Any] | None = None,
    tasks: Iterable[Task] | None = None,
    preferred: str | None = None,
    from_files: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Scores the predictions for every annotated sample of a data set.

    Args:
        data: The truth.
        predict: Gives the prediction for a sample, with category ids of the data set.
        protocol: A name in `everymask.metrics.METRICS`, or ``"auto"``: chosen from what the data hold and `tasks`.
        options: The protocol's own options, see its class.
        tasks: What the predictions are; None if unknown: then the first of them tell.
        preferred: The protocol that the method prefers, see `choose_protocol`.
        from_files: `predict` reads files and may be called by several threads at once, ahead of need.
        progress: Called with (samples done, samples in all).

    Raises:
        InputError: No sample has an annotation, or no protocol fits.
    """
    if protocol == "auto":
        protocol = protocol_for(data, predict, tasks, preferred)
    metric = make_metric(protocol, data.categories, **(options or {}))
    scored = 0
    for number, (sample, truth, prediction) in enumerate(
        read_ahead(data, predict, threads=None if from_files else 1), 1
    ):
        if truth is not None and prediction is not None:
            metric.update(truth, prediction, sample.name, str(sample.extra.get("kind", "")), sample.extra)
            scored += 1
        if progress is not None:
            progress(number, len(data))
    if not scored:
        raise InputError(f"{data.root}: no image has an annotation, so there is nothing to score")
    return Evaluation(protocol, scored, metric.compute(), metric.tables(), metric)


def evaluate_files(
    data: Dataset, results: Path, protocol: str, options: Mapping[str, Any] | None = None
) -> Evaluation | None:
    """The same scores from whole files, many times faster, where a protocol can: COCO JSON and COCO results.

    Args:
        data: The truth.
        results: What programs left behind.
        protocol: The protocol's name.
        options: Its own options.

    Returns:
        None if the files or the protocol are others; then `evaluate` does it sample by sample.

    Raises:
        InputError: A file is malformed, or the results are none for the data.
    """
    kinds = {"coco_boxes": "boxes", "coco_masks": "masks"}
    if protocol not in kinds or data.format != "coco" or not data.root.is_file():
        return None
    from everymask.formats.coco import recognise_predictions
    from everymask.metrics.coco_files import evaluate_files as score

    if not recognise_predictions(results):
        return None
    make_metric(protocol, data.categories, **(options or {}))  # refuses what is no good option
    metric = score(data.root, results, kind=kinds[protocol], **checked_options(protocol, options or {}))
    return Evaluation(protocol, len(data), metric.compute(), metric.tables(), metric)


def protocol_for(
    data: Dataset,
    predict: Callable[[Sample], Segments],
    tasks: Iterable[Task] | None = None,
    preferred: str | None = None,
) -> str:
    """The protocol that suits a data set and predictions for it.

    Args:
        data: The truth.
        predict: Gives the prediction for a sample.
        tasks: What the predictions are; None if unknown: then the first that are not empty tell.
        preferred: The protocol that the method prefers.

    Raises:
        InputError: No protocol fits.
    """
    predicted = frozenset(tasks) if tasks is not None else _tasks_of_predictions(data, predict)
    return choose_protocol((data.tasks & predicted) or predicted or data.tasks, data.format, preferred)


def _tasks_of_predictions(data: Dataset, predict: Callable[[Sample], Segments]) -> frozenset[Task]:
    """What predictions can be, judged from the first that have segments; nothing if none of a few has."""
    for sample in data[:_LOOKED_AT]:
        if sample.read_segments is None:
            continue
        segments = predict(sample)
        if not len(segments):
            continue
        if segments.geometry is not None:
            return frozenset({Task.INSTANCE, Task.PANOPTIC, Task.SEMANTIC})
        return frozenset({Task.DETECTION}) if segments.has_boxes else frozenset({Task.CLASSIFICATION})
    return frozenset()


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
