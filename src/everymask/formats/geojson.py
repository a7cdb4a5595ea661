"""GeoJSON as QuPath imports it: a file of outlines for each image, with classes, colours and measurements. Export only.

A feature is a segment: a Polygon (the exterior ring, then its holes) or, of several parts, a MultiPolygon, in pixels
from the top left corner, rings closed (https://www.rfc-editor.org/rfc/rfc7946, section 3.1; a picture has no longitude,
and y points down). What QuPath adds is described at
https://qupath.readthedocs.io/en/stable/docs/advanced/exporting_annotations.html.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from everymask.errors import InputError, unknown_name
from everymask.files import atomic_write
from everymask.formats.description import Description, Feature
from everymask.formats.drawn_shapes import rectangle
from everymask.formats.exporting import check_relative
from everymask.types import Categories, Dataset, Polygon, Segments, Task

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["DESCRIPTION", "recognise", "write"]

DESCRIPTION = Description(
    summary="GeoJSON of QuPath: outlines with classes, colours and measurements (export only)",
    layout="name.geojson for each image; the images are not copied",
    tasks=frozenset({Task.INSTANCE, Task.DETECTION}),
    carries=frozenset(
        {
            Feature.BACKGROUND,
            Feature.CLASSES,
            Feature.MASKS,
            Feature.POINTS,
            Feature.HOLES,
            Feature.PARTS,
            Feature.OVERLAP,
            Feature.OBJECTS,
            Feature.BOXES,
            Feature.SCORES,
            Feature.COLOURS,
        }
    ),
)

OBJECT_TYPES = ("annotation", "detection")
"""What objects are in QuPath: drawn by a person, or found by a program. Detections are faster where there are many."""


def recognise(path: Path) -> bool:
    """No: what is exported is not read again."""
    return False


def write(dataset: Dataset, target: Path, *, object_type: str = "annotation") -> None:
    """Writes a FeatureCollection for each annotated image, called like it.

    Scores and other numbers of segments become measurements, texts and truth values metadata. Segments without pixels
    are left out, since a polygon has an area.

    Args:
        dataset: Segments of any geometry, boxes included.
        target: The folder.
        object_type: ``"annotation"`` or ``"detection"``.

    Raises:
        InputError: A sample is a volume, or has tags of the whole image.
    """
    if object_type not in OBJECT_TYPES:
        raise unknown_name("object_type", object_type, OBJECT_TYPES)
    for sample in dataset:
        segments = sample.segments
        if segments is None:
            continue
        if len(segments.size) != 2:
            raise InputError(f"{sample.name} is a volume, which GeoJSON cannot hold; write label_images instead")
        if len(segments) and not segments.has_boxes:
            raise InputError(f"{sample.name} has tags of the whole image, which have no outline; write cvat instead")
        name = check_relative(sample.name, "name of a sample")
        features = list(_features(segments, dataset.categories, object_type))
        content = msgspec.json.encode({"type": "FeatureCollection", "features": features})
        with atomic_write(target / f"{name}.geojson") as temporary:
            temporary.write_bytes(content)


def _outlines(segments: Segments) -> Iterator[tuple[int, tuple[Polygon, ...]]]:
    """Number and polygons of each segment; the corners of its box where it has none, nothing where that is empty."""
    if not len(segments):
        return
    boxes = segments.boxes()
    outlines = segments.polygons().parts if segments.geometry is not None else ((),) * len(segments)
    for i, parts in enumerate(outlines):
        if parts:
            yield i, parts
        elif (boxes[i, 2:] > boxes[i, :2]).all():
            yield i, (Polygon(rectangle(*boxes[i])),)


def _features(segments: Segments, categories: Categories, object_type: str) -> Iterator[dict[str, Any]]:
    positions = categories.indices(segments.category)
    colours = categories.colours()
    columns = {name: column.tolist() for name, column in segments.attributes.items()}
    if segments.score is not None:
        columns["score"] = segments.score.tolist()
    for i, parts in _outlines(segments):
        rings = [[_closed(ring) for ring in (part.exterior, *part.holes)] for part in parts]
        several = len(rings) > 1
        row = {name: column[i] for name, column in columns.items() if column[i] is not None}
        numbers = {name: value for name, value in row.items() if type(value) in {int, float}}
        texts = {name: value for name, value in row.items() if name not in numbers}
        properties: dict[str, Any] = {
            "objectType": object_type,
            "classification": {
                "name": categories[int(positions[i])].name,
                "color": colours[positions[i]].tolist(),
            },
        }
        if numbers:
            properties["measurements"] = numbers
        if texts:
            metadata = {name: each if isinstance(each, str) else _json(each) for name, each in texts.items()}
            properties["metadata"] = metadata
        yield {
            "type": "Feature",
            "geometry": {
                "type": "MultiPolygon" if several else "Polygon",
                "coordinates": rings if several else rings[0],
            },
            "properties": properties,
        }


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _closed(ring: NDArray[np.float64]) -> list[list[float]]:
    """A ring whose last point is its first; whole numbers without decimals, which traced outlines have only."""
    points = ring.astype(np.int64) if (ring == np.round(ring)).all() else ring
    return [*points.tolist(), points[0].tolist()]
