"""What a data set holds that a format has no place for, found before a single file is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from everymask.errors import InputError
from everymask.formats.description import Description, Feature
from everymask.types import Dataset, LabelMap, Polygons, Segments

BOX_TOLERANCE = 0.5
"""Pixels by which a data set's box may differ from that of the outline and still be called the same."""
POINTS_BESIDE = "the points of polygons in images with holes or parts (their pixels are kept)"
"""What is lost where holes or parts are carried as pixels; see `Description.as_pixels`."""
_SHAPES = frozenset({Feature.HOLES, Feature.PARTS})


@dataclass(frozen=True)
class Loss:
    """Something that a format has no place for.

    Args:
        what: What it is, such as ``"holes in objects"`` or ``"the attribute 'occluded'"``.
        images: Number of images that have it; 0 for what belongs to the categories.
        example: Name of the first of those images.
    """

    what: str
    images: int = 0
    example: str = ""

    def __str__(self) -> str:
        where = f" ({self.images} image{'s' if self.images > 1 else ''}, the first is {self.example})"
        return self.what + (where if self.images else "")


def find_losses(
    dataset: Dataset, description: Description, progress: Callable[[int, int], None] | None = None
) -> list[Loss]:
    """What would be lost by writing a data set in a format. Reads every annotation, and no image.

    Args:
        dataset: What is to be written.
        description: Of the format.
        progress: Called with (images done, images in all).
    """
    losses = [Loss(each) for each in _of_categories(dataset) if each not in description.carries]
    found: dict[str, list[str | int]] = {}
    for number, sample in enumerate(dataset, 1):
        if sample.read_segments is None or sample.segments is None:
            lost: Iterator[str] = iter((Feature.UNANNOTATED,))
        else:
            lost = _of_segments(sample.segments, description)
        # The part is where the image lies; ids are counted anew by every format that has some.
        columns = [Feature.EXTRA] if set(sample.extra) - {"split", "image_id"} else []
        for each in {*lost, *columns} - description.carries:
            entry = found.setdefault(each, [sample.name, 0])
            entry[1] = int(entry[1]) + 1
        if progress is not None:
            progress(number, len(dataset))
    return losses + [Loss(str(what), int(count), str(name)) for what, (name, count) in sorted(found.items())]


def _of_categories(dataset: Dataset) -> Iterator[Feature]:
    categories = dataset.categories
    # Any format that has its own numbers keeps the order, so ids that merely count are found again.
    if list(categories.ids) not in (list(range(len(categories))), list(range(1, len(categories) + 1))):
        yield Feature.IDS
    if len(categories) > 1:
        yield Feature.CLASSES
    if any(each.colour is not None for each in categories):
        yield Feature.COLOURS
    if any(each.supercategory is not None for each in categories):
        yield Feature.SUPERCATEGORIES
    if not all(each.is_thing for each in categories):
        yield Feature.STUFF


def _of_segments(segments: Segments, description: Description) -> Iterator[str]:
    """What the segments of an image have that is not carried, and some that is."""
    carries = description.carries
    if description.attributes is not None:
        yield from (f"the attribute {name!r}" for name in segments.attributes if name not in description.attributes)
    if len(segments.size) == 3:
        yield Feature.VOLUMES
    if segments.score is not None and len(segments):
        yield Feature.SCORES
    if segments.crowd.any():
        yield Feature.CROWDS
    geometry = segments.geometry
    if isinstance(geometry, LabelMap) and Feature.VOID not in carries and bool((geometry.ids < 0).any()):
        yield Feature.VOID
    if Feature.BACKGROUND not in carries and Feature.MASKS in carries and _has_background(segments):
        yield Feature.BACKGROUND
    if not len(segments):
        return
    if geometry is None:
        yield Feature.BOXES if segments.has_boxes else Feature.TAGS
        return
    yield Feature.MASKS
    if Feature.MASKS not in carries:
        return  # boxes are all that is left, so that nothing finer can be lost on top
    if isinstance(geometry, Polygons) and Feature.POINTS not in carries:
        yield Feature.POINTS
    if Feature.EMPTY not in carries and bool((segments.areas() == 0).any()):
        yield Feature.EMPTY
    if isinstance(geometry, Polygons):
        holes = any(polygon.holes for parts in geometry.parts for polygon in parts)
        several = any(len(parts) > 1 for parts in geometry.parts)
        if (holes and Feature.HOLES in description.as_pixels) or (several and Feature.PARTS in description.as_pixels):
            yield POINTS_BESIDE
    if Feature.OBJECTS not in carries and len(np.unique(segments.category)) < len(segments):
        yield Feature.OBJECTS
    if Feature.OWN_BOXES not in carries and _has_own_boxes(segments):
        yield Feature.OWN_BOXES
    if Feature.OVERLAP not in carries and _overlaps(segments):
        yield Feature.OVERLAP
    if carries < carries | _SHAPES and len(segments.size) == 2:
        parts = [each for each in segments.polygons().parts if each]
        if any(len(each) > 1 for each in parts):
            yield Feature.PARTS
        if any(polygon.holes for each in parts for polygon in each):
            yield Feature.HOLES


def _has_own_boxes(segments: Segments) -> bool:
    given = segments.given_boxes
    if given is None:
        return False
    tight = Segments(segments.size, segments.category, segments.geometry).boxes()
    return bool((np.abs(given - tight) > BOX_TOLERANCE).any())


def _overlaps(segments: Segments) -> bool:
    try:
        segments.label_map()
    except InputError:
        return True
    return False


def _has_background(segments: Segments) -> bool:
    """Whether there are pixels of no object that are not void."""
    if segments.geometry is None:
        return not len(segments)
    return bool((segments.label_map("last") == 0).any())
