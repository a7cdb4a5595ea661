"""The files that predictions are written to. Each appears whole, when it is complete, or not at all."""

from __future__ import annotations

import contextlib
import csv
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from everymask.files import atomic_write
from everymask.formats.coco_write import segmentations
from everymask.types import LabelMap

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from everymask.types import Categories, Segments


def label_image(segments: Segments, semantic: bool, categories: Categories | None = None) -> NDArray[np.int32]:
    """What a label file of the segments holds, (H, W).

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
        return np.maximum(ids, 0)
    known = segments.category if categories is None else categories.ids
    void = 255 if known.max(initial=0) < 255 else 65535
    background = void if (known == 0).any() else 0
    return segments.semantic_map(void=void, background=background, overlap="last").astype(np.int32)


def measures(segments: Segments, image: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Columns of measures of each segment (see `everymask.ops.labels.label_measures`); overlapping ones each in full.

    Args:
        segments: Of one image.
        image: (H, W, C).
    """
    from everymask.ops.labels import label_measures

    if isinstance(segments.geometry, LabelMap):
        return label_measures(segments.geometry.ids, len(segments), image)
    if segments.geometry is None:
        boxes = segments.boxes()
        columns: dict[str, NDArray[Any]] = {"area": segments.areas()}
        columns["centroid_y"] = (boxes[:, 1] + boxes[:, 3] - 1) / 2
        columns["centroid_x"] = (boxes[:, 0] + boxes[:, 2] - 1) / 2
        return columns | {name: boxes[:, i] for i, name in enumerate(("x0", "y0", "x1", "y1"))}
    # One at a time, since dense masks of all would take N times the image.
    rows = [label_measures(segments[i : i + 1].masks()[0].astype(np.int32), 1, image) for i in range(len(segments))]
    if not rows:
        return label_measures(np.zeros(segments.size, np.int32), 0, image)
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


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
