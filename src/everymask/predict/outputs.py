"""The files that predictions are written to. Each appears whole, when it is complete, or not at all."""

from __future__ import annotations

import contextlib
import csv
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from everymask.files import atomic_write
from everymask.formats.coco_write import segmentations
from everymask.types import LabelMap, Masks, Segments

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from everymask.predict.inputs import Pixels
    from everymask.types import Categories

_STRIP, _PLANES = 1024, 16
"""Rows of an image, and planes of a volume, read in pieces that are measured at a time."""
_SIDES = ("x0", "y0", "z0", "x1", "y1", "z1")
_ALL_CLASSES = 20
"""Up to so many classes, a table of classes has a column for each; else those of the five most probable."""
_BEST = 5


def label_image(segments: Segments, semantic: bool, categories: Categories | None = None) -> NDArray[np.int32]:
    """What a label file of the segments holds, (H, W), or (Z, H, W) of a volume.

    Args:
        segments: With the data set's category ids. Where they overlap the highest score wins.
        semantic: Write categories instead of objects.
        categories: All that the model knows; default: those that occur.

    Returns:
        Numbers 1..N of the objects, 0 elsewhere. For semantic segments the category ids, 255 on void pixels (65,535
        where ids exceed 254) and 0 where there is no category, or the value of void if 0 is the id of a category.
    """
    if not semantic:
        ids = segments.label_map("last" if segments.score is None else "score")
        return np.maximum(ids, 0) if ids.min(initial=0) < 0 else ids
    known = segments.category if categories is None else categories.ids
    void = 255 if known.max(initial=0) < 255 else 65535
    background = void if (known == 0).any() else 0
    table = np.concatenate([[void, background], segments.category]).astype(np.int32)
    ids = segments.label_map("last")
    found = np.empty(ids.shape, np.int32)
    for row, target in zip(ids, found, strict=True):  # so that a large image has no copies of other types
        np.take(table, row + 1, out=target)
    return found


def measures(segments: Segments, image: Pixels) -> dict[str, NDArray[Any]]:
    """Columns of measures of each segment (see `everymask.ops.labels.label_measures`); overlapping ones each in full.

    Args:
        segments: Of one image.
        image: (H, W, C), or (Z, H, W, C) of a volume; one that is read in pieces is never held as a whole.
    """
    from everymask.ops.labels import label_measures

    if isinstance(segments.geometry, LabelMap):
        if isinstance(image, np.ndarray):
            return label_measures(segments.geometry.ids, len(segments), image)
        return _measures_by_strips(segments.geometry.ids, len(segments), image)
    boxes = segments.boxes()
    if segments.geometry is None:
        columns: dict[str, NDArray[Any]] = {"area": segments.areas()}
        columns["centroid_y"] = (boxes[:, 1] + boxes[:, 3] - 1) / 2
        columns["centroid_x"] = (boxes[:, 0] + boxes[:, 2] - 1) / 2
        return columns | {name: boxes[:, i] for i, name in enumerate(("x0", "y0", "x1", "y1"))}
    # One at a time within its box, since dense masks of all would take N times the image.
    rows = []
    runs = segments.rles()
    tight = Segments(segments.size, segments.category, runs).boxes().astype(np.int64)
    for i, (left, top, right, bottom) in enumerate(tight.tolist()):
        alone = Segments(segments.size, [0], Masks.join(runs.size, [runs[i]])).masks()[0, top:bottom, left:right]
        row = label_measures(alone.astype(np.int32), 1, np.asarray(image[top:bottom, left:right]))
        rows.append(_shifted(row, y=top, x=left))
    if not rows:
        return label_measures(np.zeros((1, 1), np.int32), 0, np.zeros((1, 1, image.shape[-1]), image.dtype))
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _shifted(columns: dict[str, NDArray[Any]], **by: int) -> dict[str, NDArray[Any]]:
    """Measures of a window in the pixels of the image; `by` has the first pixel of the window along each axis."""
    moved = {name: first for axis, first in by.items() for name in (f"centroid_{axis}", f"{axis}0", f"{axis}1")}
    return {name: values + moved[name] if name in moved else values for name, values in columns.items()}


def _measures_by_strips(ids: NDArray[np.int32], count: int, image: Pixels) -> dict[str, NDArray[Any]]:
    """`label_measures` of an image that is read strip by strip, of a volume some planes at a time."""
    from everymask.ops.labels import label_measures

    axis, length = ("y", _STRIP) if ids.ndim == 2 else ("z", _PLANES)
    total: dict[str, NDArray[Any]] = {}
    for first in range(0, len(ids), length):
        window = slice(first, first + length)
        part = _shifted(label_measures(ids[window], count, np.asarray(image[window])), **{axis: first})
        area, present = part["area"], part["area"] > 0
        for name, values in part.items():
            if name == "area":
                total[name] = total.get(name, 0) + area
            elif name in _SIDES:
                lower = name.endswith("0")
                known = total.setdefault(name, np.full(count, np.iinfo(np.int64).max if lower else 0))
                known[present] = (np.minimum if lower else np.maximum)(known, values)[present]
            else:  # means, as sums for now
                total[name] = total.get(name, 0.0) + np.where(present, values * area, 0)
    with np.errstate(invalid="ignore"):
        for name in total.keys() - {"area", *_SIDES}:
            total[name] = total[name] / total["area"]
    absent = total["area"] == 0
    for name in ("x0", "y0", "z0")[: ids.ndim]:
        total[name][absent] = 0
    return total


class MeasureTable:
    """A CSV file with a row for each segment of each image.

    Columns: image, plane (0 in a single image), label (the number in the label file), category, score, then those of
    `measures`. Rows go to the disk as they come; memory does not grow with the number of images.
    """

    def __init__(self, stream: TextIO, categories: Categories | None) -> None:
        self._writer = csv.writer(stream)
        self._names = {item.id: item.name for item in categories or ()}
        self._columns: list[str] = []

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: Path, categories: Categories | None) -> Iterator[MeasureTable]:
        """The table, which appears at `path` when the block ends without an error."""
        # Images may differ in channels, so the header is known at the end only; until then the rows have no name.
        with (
            atomic_write(path) as final,
            tempfile.TemporaryFile("w+", newline="", encoding="utf-8", dir=path.parent) as rows,
        ):
            table = cls(rows, categories)
            yield table
            rows.seek(0)
            header = table.header()
            with final.open("w", newline="", encoding="utf-8") as stream:
                writer = csv.writer(stream)
                writer.writerow(header)
                writer.writerows(row + [""] * (len(header) - len(row)) for row in csv.reader(rows))

    def header(self) -> list[str]:
        """The names of the columns."""
        columns = self._columns or [*_EMPTY_MEASURES]
        return ["image", "plane", "label", "category", "score", *columns]

    def add(self, name: str, plane: int, segments: Segments, columns: dict[str, NDArray[Any]]) -> None:
        """Writes the rows of an image."""
        if len(columns) > len(self._columns):
            self._columns = list(columns)  # channels come last, so the longer list begins with the shorter one
        scores = [""] * len(segments) if segments.score is None else [f"{each:.6g}" for each in segments.score]
        values = [[_number(value) for value in column] for column in columns.values()]
        for i, category in enumerate(segments.category):
            label = self._names.get(int(category), int(category))
            self._writer.writerow([name, plane, i + 1, label, scores[i], *(column[i] for column in values)])


_EMPTY_MEASURES = ("area", "centroid_y", "centroid_x", "x0", "y0", "x1", "y1")


def _number(value: Any) -> str:
    """Whole numbers in full, others to six digits."""
    return str(int(value)) if float(value).is_integer() else f"{value:.6g}"


class CocoFile:
    """A COCO instances file of predictions: `images`, `annotations` with `score`, `categories`.

    Annotations go to the disk as they come; memory does not grow with the number of images.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._images: list[dict[str, Any]] = []
        self._annotations = 0

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: Path, categories: Categories | None) -> Iterator[CocoFile]:
        """The file, which appears at `path` when the block ends without an error."""
        with atomic_write(path) as final, final.open("w", encoding="utf-8") as stream:
            stream.write('{"annotations": [')
            file = cls(stream)
            yield file
            listed = [
                {"id": each.id, "name": each.name, "supercategory": each.supercategory or ""}
                for each in categories or ()
            ]
            stream.write(f'\n],\n"images": {json.dumps(file._images)},\n"categories": {json.dumps(listed)}}}\n')

    def add(self, file_name: str, plane: int, segments: Segments) -> None:
        """Writes the annotations of an image."""
        image = len(self._images) + 1
        height, width = segments.size
        self._images.append({"id": image, "file_name": file_name, "height": height, "width": width, "plane": plane})
        shapes = segmentations(segments)
        for i, (box, area) in enumerate(zip(segments.boxes().tolist(), segments.areas().tolist(), strict=True)):
            self._stream.write(",\n" if self._annotations else "\n")
            self._annotations += 1
            annotation: dict[str, Any] = {
                "id": self._annotations,
                "image_id": image,
                "category_id": int(segments.category[i]),
                "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                "area": area,
                "iscrowd": int(segments.crowd[i]),
            }
            if segments.score is not None:
                annotation["score"] = float(segments.score[i])
            if shapes[i] is not None:
                annotation["segmentation"] = shapes[i]
            json.dump(annotation, self._stream)


class ClassTable:
    """A CSV file with the class of each image, for classifiers.

    Columns: image, plane (0 in a single image), class, probability, then the probability of every class under its name;
    of more than 20 classes, class and probability of the second to the fifth instead. Rows go to the disk as they come.

    Attributes:
        counts: How many images have each class.
    """

    def __init__(self, stream: TextIO, categories: Categories) -> None:
        self._writer = csv.writer(stream)
        self._names = [item.name for item in categories]
        self._index = {item.id: index for index, item in enumerate(categories)}
        self._all = len(categories) <= _ALL_CLASSES
        self.counts: Counter[str] = Counter()

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: Path, categories: Categories) -> Iterator[ClassTable]:
        """The table, which appears at `path` when the block ends without an error."""
        with atomic_write(path) as final, final.open("w", newline="", encoding="utf-8") as stream:
            table = cls(stream, categories)
            others = table._names if table._all else _ranks()
            table._writer.writerow(["image", "plane", "class", "probability", *others])
            yield table

    def add(self, name: str, plane: int, segments: Segments) -> None:
        """Writes the row of an image, whose segments are the classes, the most probable first."""
        order = [self._index[int(each)] for each in segments.category]
        score = np.ones(len(segments)) if segments.score is None else segments.score
        texts = [f"{each:.6g}" for each in score]
        first = self._names[order[0]]
        self.counts[first] += 1
        if self._all:
            by_class = dict(zip(order, texts, strict=True))
            others = [by_class.get(index, "") for index in range(len(self._names))]
        else:
            others = [text for rank in range(1, _BEST) for text in (self._names[order[rank]], texts[rank])]
        self._writer.writerow([name, plane, first, texts[0], *others])


def _ranks() -> list[str]:
    return [column for rank in range(2, _BEST + 1) for column in (f"class_{rank}", f"probability_{rank}")]
