"""The official protocols by which predictions are scored: one file each, streaming and mergeable."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from everymask.errors import InputError, unknown_name
from everymask.metrics.base import Cell, Metric, Table
from everymask.types import Task

if TYPE_CHECKING:
    from everymask.types import Categories

__all__ = ["METRICS", "Cell", "Metric", "Table", "choose_protocol", "make_metric"]

METRICS = {
    "matching": "everymask.metrics.matching:MatchingMetric",
    "semantic": "everymask.metrics.semantic:SemanticMetric",
}
"""Protocol name -> "module:Class"; imported on first use, because the protocols need compiled kernels."""

# From the most to the least telling: what can be scored by objects is scored by objects.
_PROTOCOL_OF_TASK = {Task.INSTANCE: "matching", Task.PANOPTIC: "matching", Task.SEMANTIC: "semantic"}


def make_metric(name: str, categories: Categories) -> Metric:
    """An empty metric of the protocol `name`, for segments of these categories.

    Raises:
        InputError: There is no such protocol; the nearest names are suggested.
    """
    if name not in METRICS:
        raise unknown_name("protocol", name, METRICS)
    module, _, attribute = METRICS[name].partition(":")
    made: Metric = getattr(importlib.import_module(module), attribute)(categories)
    return made


def choose_protocol(tasks: Iterable[Task]) -> str:
    """The protocol that suits the tasks which data and model have in common.

    Instance and panoptic segments are matched object by object (of panoptic ones, the things); semantic ones are
    scored pixel by pixel.

    Args:
        tasks: The tasks in common; those without a protocol are passed over.

    Raises:
        InputError: No protocol scores any of the tasks.
    """
    given = set(tasks)
    for task, protocol in _PROTOCOL_OF_TASK.items():
        if task in given:
            return protocol
    raise InputError(
        f"no protocol scores the tasks {sorted(given) or 'none'}; "
        f"expected one of {', '.join(_PROTOCOL_OF_TASK)}, or name a protocol: {', '.join(METRICS)}"
    )
