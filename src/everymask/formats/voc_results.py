"""Detections as text: the result files of the VOC devkit, and one file an image as many detectors leave them.

- A file for each class, ``comp3_det_test_CLASS.txt``, with lines ``image score xmin ymin xmax ymax``. Boxes count as
  those of the truth do: from 1 where it was opened with ``one_based=True``.
- A file for each image with lines ``class score`` and a box, or ``class``, a box and the score. The class is a name, or
  a number from 0 on: a line of a list of names (``*.names``, ``classes.txt`` ...) in the folder or one of the two above
  it, else the position among the categories of the data set. Images without a file have no detections.

What the four numbers of a box are is told from all boxes together: it is the one reading in which they lie in their
images, are at least a pixel large, and scores lie in 0..1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from everymask.errors import InputError, unknown_name
from everymask.formats.images import image_size
from everymask.formats.voc_layout import BACKGROUND, CLASS_FILES, read_lines
from everymask.types import Categories, Dataset, Sample, Segments

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Corners = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]

_PER_CLASS = re.compile(r"(comp\d+_)?det_.+", re.IGNORECASE)
_WRONG = 0.02
"""Share of boxes that may contradict a reading: detectors do look beyond the border now and then."""
_BEYOND = 0.02
"""How far a box may reach beyond the border, as a share of the image, and still count as lying in it."""


def _corners(values: NDArray[np.float64], size: NDArray[np.float64]) -> NDArray[np.float64]:
    return values


def _corner_and_sides(values: NDArray[np.float64], size: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.hstack([values[:, :2], values[:, :2] + values[:, 2:]])


def _relative_centre_and_sides(values: NDArray[np.float64], size: NDArray[np.float64]) -> NDArray[np.float64]:
    middle, half = values[:, :2], values[:, 2:] / 2
    return np.hstack([middle - half, middle + half]) * np.tile(size, 2)


BOXES: dict[str, Corners] = {
    "abs_xyxy": _corners,
    "abs_xywh": _corner_and_sides,
    "rel_xywh": _relative_centre_and_sides,
}
"""What the numbers of a box can be: corners in pixels; the upper left corner, width and height in pixels; centre, width
and height as shares of the image."""
_PLACES = ("score_first", "score_last")
_LOOK = 64
_SPELLINGS = {"abs_xyx2y2": "abs_xyxy", "abs_x1y1x2y2": "abs_xyxy", "rel_cxcywh": "rel_xywh"}


# -- recognising -------------------------------------------------------------------------------------------------------


def recognise_predictions(path: Path) -> bool:
    """Whether `path` is a folder of detections as text, from the lines of at most 64 files.

    Shares of the image with the score behind them are what YOLO writes, and left to `everymask.formats.yolo`.
    """
    try:
        files = list(islice(_files(path), _LOOK)) if path.is_dir() else []
        lines = [line.strip() for file in files for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError):
        return False
    parts = [line.rsplit(maxsplit=5) for line in lines if line]
    rows = [_numbers(each[1:]) for each in parts if len(each) == 6 and not _has_number(each[0])]
    numbers = np.array([each for each in rows if each is not None], np.float64).reshape(-1, 5)
    # Lines of polygons are longer, those of boxes without a score shorter.
    if not parts or len(numbers) < len(parts):
        return False
    if all(_PER_CLASS.fullmatch(file.stem) for file in files):
        return True
    unit = np.ones((len(numbers), 2))
    first, last = (
        _plausible(numbers, unit, _relative_centre_and_sides, score_last=each).mean() for each in (False, True)
    )
    scored = ((numbers[:, 0] >= 0) & (numbers[:, 0] <= 1)).mean() >= 1 - _WRONG
    return bool(last < 1 - _WRONG and (first >= 1 - _WRONG or scored or (numbers[:, :4] > 1).any()))


def _files(folder: Path) -> Iterator[Path]:
    return (
        path
        for path in sorted(folder.glob("*.txt"))
        if path.name.lower() not in CLASS_FILES and not path.name.startswith(".") and path.is_file()
    )


def _has_number(text: str) -> bool:
    """Whether a class of several words holds a number, so that it is none."""
    words = text.split()
    return len(words) > 1 and any(_numbers([each]) is not None for each in words)


def _numbers(texts: Sequence[str]) -> list[float] | None:
    """Finite numbers; None if there is anything else."""
    try:
        found = [float(each) for each in texts]
    except ValueError:
        return None
    return found if all(map(math.isfinite, found)) else None


# -- reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Results(Mapping[str, Segments]):
    """Detections by the names of samples."""

    dataset: Dataset
    positions: dict[str, int]
    found: dict[str, tuple[list[int], list[float], NDArray[np.float64]]]
    sizes: dict[str, tuple[int, int]]

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[str]:
        return iter(self.positions)

    def __getitem__(self, name: str) -> Segments:
        sample = self.dataset[self.positions[name]]
        size = self.sizes.get(name) or _size(sample)
        category, score, box = self.found.get(name, ([], [], np.zeros((0, 4))))
        return Segments(size, category, score=score, box=box)


def read_predictions(
    path: Path, dataset: Dataset, *, boxes: str | None = None, score_last: bool | None = None
) -> Mapping[str, Segments]:
    """Detections for the samples of a data set; every sample has an entry, perhaps an empty one.

    Args:
        path: The folder of text files.
        dataset: What they are detections for.
        boxes: One of `BOXES`: what the numbers are, in files for single images. By default it is told from the boxes;
            if they leave it open, from the name of the folder.
        score_last: Whether the score is the last number of a line, not the one behind the class; likewise.

    Raises:
        InputError: A file is for no sample, a line is malformed, a class or an image is unknown, or the boxes can be
            read in several ways.
    """
    if boxes is not None and boxes not in BOXES:
        raise unknown_name("reading of boxes", boxes, BOXES)
    files = list(_files(path))
    samples = {sample.name: (position, sample) for position, sample in enumerate(dataset)}
    by_stem: dict[str, list[str]] = {}
    for name in samples:
        by_stem.setdefault(name.rpartition("/")[2], []).append(name)
    named = {stem: names[0] for stem, names in by_stem.items() if len(names) == 1} | {name: name for name in samples}
    positions = {name: position for name, (position, _) in samples.items()}
    if files and all(_PER_CLASS.fullmatch(file.stem) for file in files) and not any(f.stem in named for f in files):
        found = _per_class(files, dataset.categories, named, {name: sample for name, (_, sample) in samples.items()})
        return _Results(dataset, positions, found, {})
    unknown = [file for file in files if file.stem not in named]
    if unknown or not files:
        what = f"{len(unknown)} of {len(files)} files are for no image of {dataset.root}"
        what = f"{what}, the first is {unknown[0].name}" if unknown else "there is no text file"
        raise InputError(f"{path}: {what}; expected a file for each image, called like it")
    class_ids = _ClassColumn(path, dataset.categories)
    rows = {named[file.stem]: _rows(file, class_ids) for file in files}
    sizes = {name: _size(samples[name][1]) for name, (classes, _) in rows.items() if classes}
    corners, last = _reading(path, list(rows.values()), [sizes.get(name, (0, 0)) for name in rows], boxes, score_last)
    found = {}
    for name, (classes, numbers) in rows.items():
        if classes:
            score = numbers[:, 4] if last else numbers[:, 0]
            box = corners(numbers[:, :4] if last else numbers[:, 1:], np.array([sizes[name][::-1]], np.float64))
            found[name] = (classes, score.tolist(), box)
    return _Results(dataset, positions, found, sizes)


def _size(sample: Sample) -> tuple[int, int]:
    """(H, W) of a sample."""
    size = sample.segments.size if sample.segments is not None else image_size(sample.path or Path(sample.name))
    return size[-2], size[-1]


class _ClassColumn:
    """The categories that the first column of a file for an image stands for."""

    def __init__(self, folder: Path, categories: Categories) -> None:
        self.categories = categories
        self.names = categories.names
        self.source = f"the {len(categories)} categories of the data set"
        for place in list(islice((folder.resolve(), *folder.resolve().parents), 3)):
            lists = [*sorted(place.glob("*.names")), *(place / name for name in CLASS_FILES)]
            if listed := next((each for each in lists if each.is_file()), None):
                lines = [line.strip() for line in read_lines(listed)]
                self.names = [line for line in lines if line and line.casefold() not in BACKGROUND]
                self.source = f"the {len(self.names)} names in {listed}"
                return

    def __call__(self, text: str, place: str) -> int:
        name = text
        if text.isdigit() and text not in self.categories.names:
            if int(text) >= len(self.names):
                raise InputError(f"{place}: class {text} is none of {self.source}; numbers begin at 0")
            name = self.names[int(text)]
        try:
            return self.categories.by_name(name).id
        except InputError as error:
            raise InputError(f"{place}: {error}") from error


def _rows(file: Path, class_ids: _ClassColumn) -> tuple[list[int], NDArray[np.float64]]:
    """Categories (N,) and numbers (N, 5) of the lines of a file."""
    classes: list[int] = []
    numbers: list[list[float]] = []
    for place, line in _lines(file):
        parts = line.rsplit(maxsplit=5)
        values = _numbers(parts[1:])
        if len(parts) != 6 or values is None:
            raise InputError(f"{place}: got {line[:80]!r}, expected a class and five numbers (a score and a box)")
        classes.append(class_ids(parts[0], place))
        numbers.append(values)
    return classes, np.array(numbers, np.float64).reshape(-1, 5)


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    """The lines of a file that are not empty, and where they are."""
    for number, line in enumerate(read_lines(file), 1):
        if line.strip():
            yield f"{file}, line {number}", line.strip()


def _reading(
    path: Path,
    rows: Sequence[tuple[list[int], NDArray[np.float64]]],
    sizes: Sequence[tuple[int, ...]],
    boxes: str | None,
    score_last: bool | None,
) -> tuple[Corners, bool]:
    """What the numbers of a box are, and whether the score is the last number.

    Raises:
        InputError: No reading fits, or several do.
    """
    numbers = np.concatenate([np.zeros((0, 5)), *(each for _, each in rows)])
    size = np.repeat(np.array(sizes, np.float64).reshape(-1, 2)[:, ::-1], [len(each) for each, _ in rows], axis=0)
    wanted = [
        (name, last) for name in BOXES for last in (False, True) if boxes in {None, name} and score_last in {None, last}
    ]
    if not len(numbers):
        return BOXES[wanted[0][0]], wanted[0][1]
    fitting = [
        (name, last)
        for name, last in wanted
        if _plausible(numbers, size, BOXES[name], score_last=last).mean() >= 1 - _WRONG
    ]
    if len(fitting) > 1:
        called = path.name.lower()
        fitting = [each for each in fitting if _SPELLINGS.get(called, called).startswith(each[0])] or fitting
        fitting = [each for each in fitting if called.endswith(_PLACES[each[1]])] or fitting
    if len(fitting) > 1:
        names = [f"{name}_{_PLACES[last]}" for name, last in fitting]
        raise InputError(
            f"{path}: the boxes can be read as {' or '.join(names)}; call the folder like the right one (options boxes "
            "and score_last)"
        )
    if not fitting:
        raise InputError(
            f"{path}: the boxes fit their images neither as corners nor as corner, width and height, in pixels or "
            "shares of the image; are they for other images, or for images of another size?"
        )
    name, last = fitting[0]
    return BOXES[name], last


def _plausible(
    numbers: NDArray[np.float64], size: NDArray[np.float64], corners: Corners, *, score_last: bool
) -> NDArray[np.bool_]:
    """(N,) whether each score is one, and each box lies in its image of the given width and height (N, 2)."""
    score = numbers[:, 4] if score_last else numbers[:, 0]
    found = corners(numbers[:, :4] if score_last else numbers[:, 1:], size)
    beyond = _BEYOND * size + (size > 1)
    smallest = np.where(size > 1, 1.0, 0.0)
    good = (score >= 0) & (score <= 1) & (found[:, 2:] - found[:, :2] >= smallest).all(axis=1)
    result: NDArray[np.bool_] = good & ((found[:, :2] >= -beyond) & (found[:, 2:] <= size + beyond)).all(axis=1)
    return result


def _per_class(
    files: Sequence[Path], categories: Categories, named: Mapping[str, str], samples: Mapping[str, Sample]
) -> dict[str, tuple[list[int], list[float], NDArray[np.float64]]]:
    """Detections by sample, from a file for each class."""
    rows: dict[str, list[tuple[int, list[float]]]] = {}
    for file in files:
        fitting = [each for each in categories if file.stem.endswith(f"_{each.name}")]
        if not fitting:
            raise InputError(
                f"{file}: its name ends in none of the {len(categories)} classes ({', '.join(categories.names[:5])}"
                " ...); expected comp3_det_test_CLASS.txt"
            )
        category = max(fitting, key=lambda each: len(each.name)).id
        for place, line in _lines(file):
            parts = line.rsplit(maxsplit=5)
            values = _numbers(parts[1:])
            if len(parts) != 6 or values is None:
                raise InputError(f"{place}: got {line[:80]!r}, expected: image score xmin ymin xmax ymax")
            if parts[0] not in named:
                raise InputError(f"{place}: the image {parts[0]!r} is not in the data set; leave the line out")
            rows.setdefault(named[parts[0]], []).append((category, values))
    found = {}
    for name, entries in rows.items():
        numbers = np.array([each for _, each in entries])
        own = samples[name].extra.get("voc")
        box = numbers[:, 1:].copy()
        box[:, :2] -= 1 if isinstance(own, dict) and own.get("one_based") else 0
        found[name] = ([category for category, _ in entries], numbers[:, 0].tolist(), box)
    return found
