"""CVAT for images 1.1: one XML with all shapes of the annotation tool CVAT, and a folder of images.

How shapes become segments:

- Where all objects are upright boxes, segments have boxes and no outlines. Where any has another outline, boxes are
  rectangles among the outlines; images with a ``mask`` have run-length masks, the others polygons.
- Rotated boxes and ellipses become polygons. What geometry and columns do not tell exactly (those, and polygons in
  images with masks) is kept as XML, in the attribute ``cvat``, and written again as long as it still fits.
- Segments are in the order of ``z_order``, the highest last, which is on top.
- What covers no pixels (``polyline``, ``points``, ``cuboid``, ``skeleton``) is no object to train on: it is kept as XML
  in ``Sample.extra["cvat"]``, with all elements that CVAT does not have. So are tags, unless there are only tags: then
  they are segments without geometry.
- ``source``, ``occluded``, ``z_order``, ``group_id`` and the attributes of labels are attributes of segments; ``shape``
  says ``"box"``, ``"polygon"``, ``"ellipse"`` or ``"mask"`` where that is not clear. A group is not one object: its
  shapes stay apart.
- Labels have no numbers in CVAT: categories are counted from 1 in the order of the task. Its subsets are splits.

The meaning of elements and attributes is that of https://docs.cvat.ai/docs/manual/advanced/formats/format-cvat/.
"""

from __future__ import annotations

from pathlib import Path

from everymask.formats.cvat_read import annotation_file, read
from everymask.formats.cvat_write import write
from everymask.formats.description import Description, Feature
from everymask.types import Task

__all__ = ["DESCRIPTION", "read", "recognise", "write"]

DESCRIPTION = Description(
    summary="CVAT for images 1.1: boxes, polygons, ellipses, masks and tags in one XML",
    layout="annotations.xml, beside its images",
    tasks=frozenset({Task.INSTANCE, Task.DETECTION, Task.CLASSIFICATION}),
    carries=frozenset(
        {
            Feature.BACKGROUND,
            Feature.EMPTY,
            Feature.CLASSES,
            Feature.MASKS,
            Feature.POINTS,
            Feature.HOLES,
            Feature.PARTS,
            Feature.OVERLAP,
            Feature.OBJECTS,
            Feature.BOXES,
            Feature.TAGS,
            Feature.COLOURS,
            Feature.EXTRA,
        }
    ),
    as_pixels=frozenset({Feature.HOLES, Feature.PARTS}),
)


def recognise(path: Path) -> bool:
    """Whether `path` is an XML with the root ``annotations``, or a folder of one; by its first bytes."""
    try:
        return annotation_file(path) is not None
    except OSError:
        return False
