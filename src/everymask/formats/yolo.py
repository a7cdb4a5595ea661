"""YOLO: text files with a line an object, boxes or polygons as fractions of the image, as Ultralytics and Darknet have.

A line is ``class x y width height`` (the centre and the sides of a box) or ``class x1 y1 x2 y2 x3 y3 ...`` (a polygon;
the four corners of oriented boxes are one, too). Classes are counted from 0 in the order of the names, and so are the
ids of categories. `everymask.formats.yolo_layout` says where files are looked for.

An image without a label file has no objects, as in YOLO ("background"), unless none of its part has one: then the part
is not annotated. Coordinates with up to nine decimals come back as they were, others but for the last bit.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from everymask.errors import InputError
from everymask.formats.class_names import read_names
from everymask.formats.description import Description, Feature
from everymask.formats.images import image_size, read_image
from everymask.formats.joining import join_parts
from everymask.formats.places import check_missing
from everymask.formats.yolo_layout import NAME_FILES, Layout, Part, find_layout, list_part
from everymask.formats.yolo_write import TOLERANCE, write
from everymask.types import Categories, Category, Dataset, Polygon, Polygons, Sample, Segments, Task

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["DESCRIPTION", "read", "read_predictions", "recognise", "recognise_predictions", "write"]

DESCRIPTION = Description(
    summary="YOLO text files: boxes or polygons as fractions of the image (Ultralytics, Darknet)",
    layout="data.yaml with images/ and labels/, or obj.data, or classes.txt beside text files",
    tasks=frozenset({Task.DETECTION, Task.INSTANCE}),
    carries=frozenset(
        {
            Feature.BACKGROUND,
            Feature.EMPTY,
            Feature.CLASSES,
            Feature.MASKS,
            Feature.POINTS,
            Feature.OVERLAP,
            Feature.OBJECTS,
            Feature.BOXES,
        }
    ),
    attributes=frozenset(),
)

DECIMALS = 9
"""Of pixel coordinates that are read: more than any tool writes, and fewer than the error of a division leaves."""
_PEEKED = 64


def recognise(path: Path) -> bool:
    """Whether `path` is a YAML or ``.data`` file of YOLO, or a folder with one, or of names and text files."""
    try:
        return find_layout(path) is not None
    except InputError:
        return True  # it is, with a mistake that reading will tell
    except OSError:
        return False


def read(
    path: Path,
    *,
    split: str | None = None,
    images: str | os.PathLike[str] | None = None,
    missing_images: str = "error",
    names: Sequence[str] | None = None,
) -> Dataset:
    """Opens a YOLO data set; reads names of files and the first labels, no pixels.

    Args:
        path: The YAML or ``.data`` file, or the folder of one.
        split: One of its parts, such as ``"train"``; without it, all are opened as one.
        images: The folder of images, where they are not found.
        missing_images: ``"error"``, ``"keep"`` listed images that are absent (reading one is then an error), or
            ``"skip"`` them.
        names: The classes, in order of their indices, where no file says them.

    Raises:
        InputError: There are no names, a part is unknown, or a file or folder is absent.
    """
    check_missing(missing_images)
    layout = find_layout(path)
    if layout is None and names is not None and path.is_dir():
        layout = Layout(path, None, {}, path.resolve())
    if layout is None:
        raise InputError(f"{path} has no names of classes; add a data.yaml or a classes.txt, or say names")
    classes = list(names) if names is not None else layout.names or []
    try:
        categories = Categories(Category(index, name) for index, name in enumerate(classes))
    except InputError as error:
        raise InputError(f"{layout.source}: {error}; rename one of them") from error
    chosen = _choose(layout, split)
    folder = None if images is None else Path(images)
    parts = {}
    for part, given in chosen.items():
        found = list_part(layout, given, folder, missing_images)
        index = _Index(found, categories, {"split": part} if part else {}, any(found.labels))
        parts[part] = Dataset(index.sample, len(found.names), categories, index.tasks(), "yolo", path)
    return join_parts(parts, path) if len(parts) > 1 else next(iter(parts.values()))


def _choose(layout: Layout, split: str | None) -> dict[str, list[str]]:
    """The parts to open; ``""`` for everything where there are no parts.

    Two parts that lie in the same place are one, called like the folder if one of them is, and no part at all if that
    is all there is: Ultralytics demands a ``val`` of sets that have none.
    """
    if split is not None:
        if split not in layout.parts:
            raise InputError(f"{layout.source} has no part {split!r}; it has {', '.join(layout.parts) or 'no parts'}")
        return {split: layout.parts[split]}
    places: dict[tuple[str, ...], list[str]] = {}
    for part, given in layout.parts.items():
        places.setdefault(tuple(given), []).append(part)
    if not places or (len(places) == 1 and len(layout.parts) > 1):
        return {"": list(next(iter(places), ()))}
    best = {
        given: next((part for part in parts if given[0].endswith(f"/{part}")), parts[0])
        for given, parts in places.items()
    }
    return {part: list(given) for given, part in best.items()}


@dataclass(frozen=True)
class _Index:
    """Makes the samples of a part."""

    part: Part
    categories: Categories
    extra: dict[str, str]
    annotated: bool

    def sample(self, index: int) -> Sample:
        file = self.part.images[index]
        segments = partial(self.segments, index) if self.annotated else None
        return Sample(self.part.names[index], partial(read_image, file), segments, file, dict(self.extra))

    def segments(self, index: int) -> Segments:
        size = image_size(self.part.images[index])
        if len(size) != 2:
            raise InputError(f"{self.part.images[index]} is a volume, which YOLO labels are not for")
        label = self.part.labels[index]
        rows = [] if label is None else read_rows(label, len(self.categories), scored=False)
        return _segments(rows, (size[0], size[1]))

    def tasks(self) -> frozenset[Task]:
        """Instances if any of the first objects has an outline."""
        for label in islice((each for each in self.part.labels if each is not None), _PEEKED):
            try:
                lines = label.read_bytes().splitlines()
            except OSError:
                continue  # told when it is read
            if any(len(line.split()) > 5 for line in lines):
                return frozenset({Task.DETECTION, Task.INSTANCE})
        return frozenset({Task.DETECTION})


# -- rows --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A line of a label file: class index, numbers as they are in the file, and the score if it has one."""

    index: int
    numbers: list[float]
    score: float | None


def read_rows(path: Path, classes: int, *, scored: bool) -> list[Row]:
    """The lines of a label file.

    Args:
        path: The text file.
        classes: Number of classes.
        scored: Whether each line ends in a score.

    Raises:
        InputError: A line has the wrong number of columns, a class is unknown, or a coordinate is not a fraction.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}; expected a text file of YOLO labels") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append(_row(line.split(), classes, scored))
        except InputError as error:
            raise InputError(f"{path}, line {number}: {error}") from error
    return rows


def _row(words: list[str], classes: int, scored: bool) -> Row:
    form = "class x y width height" + (" score" if scored else "")
    polygon = "class x1 y1 x2 y2 x3 y3 ..." + (" score" if scored else "")
    count = len(words) - 1 - int(scored)
    if count != 4 and (count < 6 or count % 2):
        raise InputError(f"{len(words)} columns; expected '{form}' or '{polygon}'")
    try:
        index, *numbers = (float(word) for word in words)
    except ValueError as error:
        raise InputError(f"{error}; expected '{form}' or '{polygon}'") from error
    if not index.is_integer() or not 0 <= index < classes:
        raise InputError(
            f"class {words[0]}, but there are {classes} names; expected 0 to {classes - 1}: add a name, or correct it"
        )
    score = numbers.pop() if scored else None
    if count == 4 and min(numbers[2:]) < 0:
        raise InputError(f"a box of width {numbers[2]:g} and height {numbers[3]:g}; expected fractions from 0 to 1")
    low, high = min(numbers), max(numbers)
    if not all(map(math.isfinite, numbers)) or low < -TOLERANCE or high > 1 + TOLERANCE:
        wrong = low if low < 0 else high
        raise InputError(f"coordinate {wrong:g}; expected fractions of the image, from 0 to 1")
    if score is not None and not 0 <= score <= 1:
        raise InputError(f"score {score:g} in the last column; expected 0 to 1")
    return Row(int(index), numbers, score)


def _segments(rows: Sequence[Row], size: tuple[int, int]) -> Segments:
    """Segments of an image of (H, W); class indices are the ids of categories."""
    scale = np.array([size[1], size[0]], np.float64)
    boxes = np.zeros((len(rows), 4))
    parts: list[tuple[Polygon, ...]] = []
    for i, row in enumerate(rows):
        if len(row.numbers) == 4:
            centre, side = np.array(row.numbers).reshape(2, 2)
            boxes[i] = np.concatenate([(centre - side / 2) * scale, (centre + side / 2) * scale])
            parts.append(())
        else:
            points = np.array(row.numbers).reshape(-1, 2) * scale
            points = _shortened(points, np.abs(points))
            boxes[i] = np.concatenate([points.min(axis=0), points.max(axis=0)])
            parts.append((Polygon(points),))
    geometry = Polygons(size, tuple(parts)) if any(parts) or not parts else None
    scores = [row.score for row in rows if row.score is not None]
    outlined = bool(parts) and all(parts)
    return Segments(
        size,
        [row.index for row in rows],
        geometry,
        score=scores if scores else None,
        box=None if outlined else _shortened(boxes, 4 * np.tile(scale, 2)),
    )


def _shortened(numbers: NDArray[np.float64], largest: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coordinates without the error that dividing by the size of the image and multiplying again has left.

    That is up to two units in the last place of the `largest` numbers that were added up. What differs by more from a
    number of `DECIMALS` has more of them, which the pixels of an outline may hang on.
    """
    short = np.round(numbers, DECIMALS)
    return np.where(np.abs(numbers - short) <= 2 * np.finfo(np.float64).eps * largest, short, numbers)


# -- predictions -------------------------------------------------------------------------------------------------------


def recognise_predictions(path: Path) -> bool:
    """Whether `path` is a folder of text files with labels that have a score at the end, or has them in `labels`."""
    folder = _results_folder(path)
    if folder is None:
        return False
    for file in islice(_result_files(folder), _PEEKED):
        for line in file.read_bytes().splitlines():
            if words := line.split():
                return len(words) >= 6 and len(words) % 2 == 0 and words[0].isdigit() and _is_fraction(words[-1])
    return False


def _is_fraction(word: bytes) -> bool:
    try:
        return 0 <= float(word) <= 1
    except ValueError:
        return False


def _results_folder(path: Path) -> Path | None:
    """`path`, or `labels` in it, as `yolo predict save_txt` leaves them."""
    for folder in (path, path / "labels"):
        if folder.is_dir() and next(_result_files(folder), None) is not None:
            return folder
    return None


def _result_files(folder: Path) -> Iterator[Path]:
    return (each for each in sorted(folder.glob("*.txt")) if each.name not in NAME_FILES)


def read_predictions(
    path: Path | str, dataset: Dataset, *, names: Sequence[str] | None = None
) -> Mapping[str, Segments]:
    """Reads what YOLO leaves of a prediction (``save_txt=True save_conf=True``).

    Args:
        path: The folder of text files, called like the images.
        dataset: What they are predictions for.
        names: The classes of the results in order of their indices. Without it, those in a ``classes.txt`` or
            ``data.yaml`` beside the results or one folder up; else the data set's own.

    Returns:
        The segments of every sample by its name; no segments where there is no file. They are read when asked for.

    Raises:
        InputError: A file is of no image of the data set, or a class is none of its classes.
    """
    folder = _results_folder(Path(path))
    if folder is None:
        raise InputError(f"{path} has no text files of YOLO results; expected one for each image with objects")
    classes = list(names) if names is not None else _class_names(folder)
    if classes is None:
        ids = dataset.categories.ids
    else:
        ids = np.array([dataset.categories.by_name(name).id for name in classes], np.int64)
    return _Predictions(folder, dataset, ids.tolist())


def _class_names(folder: Path) -> list[str] | None:
    for place in (folder, folder.parent):
        for name in NAME_FILES:
            if (place / name).is_file():
                return read_names(place / name)
        if (place / "data.yaml").is_file() and (layout := find_layout(place / "data.yaml")):
            return layout.names
    return None


class _Predictions(Mapping[str, Segments]):
    """Segments by the name of the sample."""

    def __init__(self, folder: Path, dataset: Dataset, ids: list[int]) -> None:
        self._dataset, self._ids = dataset, np.array(ids, np.int64)
        self._positions = {sample.name: position for position, sample in enumerate(dataset)}
        # Results lie in one folder, whatever folders the images are in.
        owners: dict[str, list[str]] = {}
        for name in self._positions:
            owners.setdefault(name.rpartition("/")[2], []).append(name)
        self._files: dict[str, Path] = {}
        for file in _result_files(folder):
            found = owners.get(file.stem, [])
            if len(found) != 1:
                known = f"the images {', '.join(found[:3])}" if found else "no image of the data set"
                raise InputError(f"{file} is for {known}; results are called like one image each")
            self._files[found[0]] = file

    def __len__(self) -> int:
        return len(self._positions)

    def __iter__(self) -> Iterator[str]:
        return iter(self._positions)

    def __getitem__(self, name: str) -> Segments:
        sample = self._dataset[self._positions[name]]
        size = sample.segments.size if sample.segments is not None else image_size(sample.path or Path(name))
        file = self._files.get(name)
        rows = [] if file is None else read_rows(file, len(self._ids), scored=True)
        found = _segments(rows, (size[0], size[1]))
        return Segments(
            found.size,
            self._ids[found.category],
            found.geometry,
            score=found.score if rows else [],
            box=found.given_boxes,
        )
