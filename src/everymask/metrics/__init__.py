"""The official protocols by which predictions are scored: one file each, streaming and mergeable."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from everymask.errors import InputError, unknown_name
from everymask.metrics.base import Cell, Confusion, Curve, Metric, Table
from everymask.types import Task

if TYPE_CHECKING:
    from everymask.types import Categories

__all__ = ["METRICS", "Cell", "Confusion", "Curve", "Metric", "Table", "choose_protocol", "make_metric"]

METRICS = {
    "coco_boxes": "everymask.metrics.coco:CocoBoxMetric",
    "coco_masks": "everymask.metrics.coco:CocoMaskMetric",
    "coco_boundary": "everymask.metrics.boundary:CocoBoundaryMetric",
    "cityscapes": "everymask.metrics.cityscapes:CityscapesMetric",
    "matching": "everymask.metrics.matching:MatchingMetric",
    "ctc": "everymask.metrics.tracking:CellTrackingMetric",
    "panoptic": "everymask.metrics.panoptic:PanopticMetric",
    "semantic": "everymask.metrics.semantic:SemanticMetric",
    "boundary": "everymask.metrics.boundary:BoundaryMetric",
    "surface": "everymask.metrics.surface:SurfaceMetric",
    "voc": "everymask.metrics.voc:VocMetric",
    "classification": "everymask.metrics.classification:ClassificationMetric",
}
"""Protocol name -> "module:Class"; imported on first use, because the protocols need compiled kernels."""

# From the most to the least telling: what can be scored by objects is scored by objects.
_PROTOCOL_OF_TASK = {
    Task.INSTANCE: "matching",
    Task.PANOPTIC: "panoptic",
    Task.SEMANTIC: "semantic",
    Task.DETECTION: "coco_boxes",
    Task.CLASSIFICATION: "classification",
}
# Data sets whose field has a protocol of its own.
_PROTOCOL_OF_FORMAT = {
    ("coco_panoptic", Task.INSTANCE): "panoptic",
    ("cityscapes", Task.INSTANCE): "cityscapes",
    ("cityscapes", Task.PANOPTIC): "cityscapes",
    ("cityscapes", Task.SEMANTIC): "cityscapes",
    ("voc", Task.DETECTION): "voc",
    ("ctc", Task.INSTANCE): "ctc",
}


def metric_class(name: str) -> type[Metric]:
    """The class of the protocol `name`.

    Raises:
        InputError: There is no such protocol; the nearest names are suggested.
    """
    if name not in METRICS:
        raise unknown_name("protocol", name, METRICS)
    module, _, attribute = METRICS[name].partition(":")
    found: type[Metric] = getattr(importlib.import_module(module), attribute)
    return found


def make_metric(name: str, categories: Categories, **options: Any) -> Metric:
    """An empty metric of the protocol `name`, for segments of these categories.

    Args:
        name: One of `METRICS`.
        categories: The classes of the data set.
        options: The protocol's own options, which its class describes.

    Raises:
        InputError: There is no such protocol or option, or an option has no good value; the nearest names are
            suggested.
    """
    made, given = metric_class(name), checked_options(name, options)
    try:
        return made(categories, **given)
    except InputError:
        raise
    except (TypeError, AttributeError, ValueError) as error:
        said = ", ".join(f"{option} {value!r}" for option, value in options.items())
        raise InputError(f"the protocol {name!r} cannot work with {said or 'these categories'}: {error}") from error


def checked_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the protocol `name`; a single number where it takes several is made a list of one.

    Raises:
        InputError: There is no such protocol or option; the nearest names are suggested.
    """
    known = dict(list(inspect.signature(metric_class(name)).parameters.items())[1:])
    given = {}
    for option, value in options.items():
        if option not in known:
            raise unknown_name(f"option of the protocol {name!r}", option, known)
        kind = str(known[option].annotation)
        alone = "Sequence" in kind and "int |" not in kind and isinstance(value, int | float)
        given[option] = (value,) if alone else value
    return given


def choose_protocol(tasks: Iterable[Task], format: str = "", preferred: str | None = None) -> str:
    """The protocol that suits the tasks which data and predictions have in common.

    The most telling task decides: instance, panoptic, semantic, detection, classification. The protocol of the data
    set's field goes first, such as that of Cityscapes; then the one that the method prefers. COCO files hold anything,
    so they get COCO's average precision only where no method says otherwise.

    Args:
        tasks: The tasks in common; those without a protocol are passed over.
        format: Of the truth.
        preferred: The protocol by which the method that made the predictions is judged in training.

    Raises:
        InputError: No protocol scores any of the tasks.
    """
    given = set(tasks)
    for task, protocol in _PROTOCOL_OF_TASK.items():
        if task in given:
            usual = "coco_masks" if (format, task) == ("coco", Task.INSTANCE) else protocol
            return _PROTOCOL_OF_FORMAT.get((format, task), preferred or usual)
    raise InputError(
        f"no protocol scores the tasks {sorted(given) or 'none'}; "
        f"expected one of {', '.join(_PROTOCOL_OF_TASK)}, or name a protocol: {', '.join(METRICS)}"
    )
