"""labelme: a JSON with shapes for each image.

How shapes become segments:

- Shapes of one label that share a ``group_id`` are the parts of one object, which lies where the first of them does.
- Where all shapes with an area are rectangles, segments have boxes and no outlines. Where any is something else,
  rectangles and circles are polygons; images with a ``mask`` have run-length masks, the others polygons.
- What geometry and columns do not tell exactly (circles, corners in another order, polygons in images with masks) is
  kept as it is in the file, in the attribute ``labelme``, and written again as long as it still fits.
- What covers no pixels (``point``, ``points``, ``line``, ``linestrip``) and labels that stand for nothing
  (``_background_``, ``__ignore__``) are no objects to train on: such shapes are kept in ``Sample.extra["labelme"]``.
- ``group_id``, ``flags`` and ``description`` are attributes of segments where they are set; a ``score`` that all shapes
  have is the score. Every other key of the JSON is kept with the image, every other key of a shape with the segment.
- Images in the folder that no JSON names are images that nobody has annotated yet.

Labels have no numbers: categories are counted from 1, in the order of ``labels.txt`` (the file that
``labelme --labels`` takes) if it lies in the folder, else by name.

``imagePath`` is often a path of another computer. Its longest end that exists in the folder of the JSON, in a folder of
images such as ``images`` in it, or in those one and two levels up, is taken; nothing else is ever read. Without such a
file, the copy of the image in ``imageData`` is. A mask is a PNG of the box between its two points, both included.

The meaning of keys is that of ``labelme/label_file.py`` and ``labelme/utils/shape.py`` of labelme 5.
"""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

from everymask.formats.description import Description, Feature
from everymask.formats.labelme_read import is_labelme, read
from everymask.formats.labelme_write import write
from everymask.types import Task

__all__ = ["DESCRIPTION", "read", "recognise", "write"]

DESCRIPTION = Description(
    summary="labelme: polygons, rectangles, circles and masks in a JSON for each image",
    layout="name.json with shapes and imagePath, beside its image",
    tasks=frozenset({Task.INSTANCE, Task.DETECTION}),
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
            Feature.SCORES,
            Feature.UNANNOTATED,
            Feature.EXTRA,
        }
    ),
    as_pixels=frozenset({Feature.HOLES}),
)


_MOST_FOLDERS = 300
"""How many folders are looked into for the first JSON."""


def recognise(path: Path) -> bool:
    """Whether `path` is a JSON of labelme, or a folder that has one or whose folders have; by keys, without parsing."""
    try:
        if path.is_file():
            return is_labelme(path)
        if _has_labelme(path) or _is_written(path):
            return True
        below = sorted(each for each in path.iterdir() if each.is_dir() and not each.name.startswith("."))[:8]
        # Folders with annotations of several kinds are data sets side by side, not parts of one.
        kinds = [_has_labelme(folder) for folder in below if _has_annotations(folder)]
        return bool(kinds) and all(kinds)
    except OSError:
        return False


def _names(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries]


def _has_annotations(folder: Path) -> bool:
    return any(name.endswith((".json", ".xml", ".txt")) for name in _names(folder))


def _is_written(path: Path) -> bool:
    """Whether a folder has a list of labels, and labelme somewhere below, as `write` leaves images in deep folders."""
    if not (path / "labels.txt").is_file():
        return False
    walked = islice(os.walk(path), _MOST_FOLDERS)
    return next((_has_labelme(Path(folder)) for folder, _, names in walked if any(map(_is_json, names))), False)


def _is_json(name: str) -> bool:
    return name.endswith(".json")


def _has_labelme(folder: Path) -> bool:
    names = sorted(filter(_is_json, _names(folder)))
    for name in names[:3]:
        try:
            if is_labelme(folder / name):
                return True
        except OSError:
            continue  # told when it is read
    return False
