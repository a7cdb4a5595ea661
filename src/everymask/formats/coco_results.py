"""COCO results: predictions for a data set as one JSON list, which the COCO API evaluates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

import msgspec
import numpy as np

from everymask.errors import InputError
from everymask.files import atomic_write
from everymask.formats import coco_schema as schema
from everymask.formats.coco_write import segmentations_of_masks
from everymask.formats.images import image_size
from everymask.types import Dataset, Sample, Segments

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from everymask.formats.coco_columns import Columns

_LOOKED_AT = 1 << 20  # bytes that are read to recognise a file
_ENCODER = msgspec.json.Encoder()


def image_ids(dataset: Dataset) -> dict[str, int | str]:
    """The id of each sample in a file of results, by its name.

    It is the id that the data set gives the image; without one, a name that is a number is that number (COCO's own
    files are called so: 000000000139.jpg is image 139), and any other name is the id itself.
    """
    return {sample.name: sample.extra.get("image_id", _number(sample.name)) for sample in dataset}


def write_predictions(
    path: Path | str,
    predictions: Mapping[str, Segments] | Iterable[tuple[str, Segments]],
    ids: Mapping[str, int | str] | None = None,
) -> None:
    """Writes predictions as COCO results, image by image.

    Args:
        path: The JSON file.
        predictions: Name of the sample and its segments, which need scores. Any geometry, or boxes only.
        ids: Id of each sample, from `image_ids`; by default what the name says by the rule there.

    Raises:
        InputError: Segments have no scores, or a name has no id.
    """
    items = cast("Mapping[str, Segments]", predictions).items() if isinstance(predictions, Mapping) else predictions
    with atomic_write(path) as temporary, temporary.open("wb") as stream:
        separator = b"[\n"
        for name, segments in items:
            if ids is not None and name not in ids:
                raise InputError(f"there is no image id for {name!r}; expected one for each prediction")
            if segments.score is None and len(segments):
                raise InputError(f"the segments of {name!r} have no scores, but COCO results need one for each")
            for entry in _entries(segments, _number(name) if ids is None else ids[name]):
                stream.write(separator + _ENCODER.encode(entry))
                separator = b",\n"
        stream.write(b"\n]\n" if separator == b",\n" else b"[]\n")


def _entries(segments: Segments, image_id: int | str) -> Iterator[dict[str, object]]:
    if not len(segments) or segments.score is None:
        return
    # The COCO API reads compressed RLE only, for crowds, too.
    plain = Segments(segments.size, segments.category, segments.geometry)
    shapes = segmentations_of_masks(plain) if segments.geometry is not None else None
    boxes = schema.json_boxes(segments.boxes())
    for i in range(len(segments)):
        entry: dict[str, object] = {
            "image_id": image_id,
            "category_id": int(segments.category[i]),
            "bbox": boxes[i],
            "score": float(segments.score[i]),
        }
        yield entry if shapes is None else {**entry, "segmentation": shapes[i]}


def recognise_predictions(path: Path) -> bool:
    """Whether `path` is a JSON list of results, judged by the first of them; an empty list is one, too."""
    try:
        if path.suffix.lower() != ".json" or not path.is_file():
            return False
        with path.open("rb") as stream:
            begin = stream.read(_LOOKED_AT).lstrip(b"\xef\xbb\xbf \t\r\n")
    except OSError:
        return False
    if not begin.startswith(b"["):
        return False
    first = begin[1:].lstrip()
    return first.startswith(b"]") or (first.startswith(b"{") and b'"image_id"' in first and b'"category_id"' in first)


def read_predictions(path: Path | str, dataset: Dataset) -> Mapping[str, Segments]:
    """Reads COCO results.

    Args:
        path: The JSON file.
        dataset: What they are predictions for: its image ids, categories and, for boxes, sizes.

    Returns:
        The segments of every sample by its name, in the order of the file (which breaks ties of scores); no segments
        where the file has none. They are decoded when asked for.

    Raises:
        InputError: The file is malformed, or an image or a category is none of the data set's.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist; expected a JSON file of COCO results")
    from everymask.formats.coco_columns import read_results

    return _Predictions(path, dataset, read_results(path))


class _Predictions(Mapping[str, Segments]):
    """Segments by the name of the sample: those of sample i are ``rows[starts[i]:starts[i + 1]]`` of the results."""

    def __init__(self, path: Path, dataset: Dataset, columns: Columns) -> None:
        self._path, self._dataset, self._columns = path, dataset, columns
        ids = image_ids(dataset)
        self._positions = {name: position for position, name in enumerate(ids)}
        owner = _owners(list(ids.values()), columns)
        if bool((owner < 0).any()):
            row = int(np.argmax(owner < 0))
            raise InputError(
                f"{path}: $[{row}] is for image {self._image(row)!r}, which the data set does not have; are they "
                "results for another one?"
            )
        unknown = schema.positions(dataset.categories.ids, columns.category_id) < 0
        if bool(unknown.any()):
            row, known = int(np.argmax(unknown)), sorted(dataset.categories.ids.tolist())
            raise InputError(
                f"{path}: $[{row}] has category {columns.category_id[row]}, which the data set does not have; known "
                f"ids: {', '.join(map(str, known[:10]))}{' ...' if len(known) > 10 else ''}"
            )
        alike = Counter(ids.values())
        double = np.array([alike[identifier] > 1 for identifier in ids.values()], bool)
        if bool(double[owner].any()):
            row = int(np.argmax(double[owner]))
            raise InputError(
                f"{path}: $[{row}] is for image {self._image(row)!r}, which is the id of several images of the data "
                "set; open one part of it"
            )
        self._rows = np.argsort(owner, kind="stable")
        self._starts = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(ids)))])

    def _image(self, row: int) -> int | str:
        """The id of the image that a result is for."""
        identifier = int(self._columns.image_id[row])
        return self._columns.image_texts[identifier] if self._columns.image_text[row] else identifier

    def __len__(self) -> int:
        return len(self._positions)

    def __iter__(self) -> Iterator[str]:
        return iter(self._positions)

    def __getitem__(self, name: str) -> Segments:
        position = self._positions[name]
        columns, rows = self._columns, self._rows[self._starts[position] : self._starts[position + 1]]
        size = _size(self._dataset[position])
        boxes = columns.box[rows]
        negative = (boxes[:, 2:] < 0).any(axis=1)
        if bool(negative.any()):
            row = int(rows[np.argmax(negative)])
            raise InputError(
                f"{self._path}: {self._named(row)}: its bbox {columns.box[row].tolist()} has a negative width or "
                "height; correct or remove it"
            )
        geometry = columns.shapes.geometry(rows, size, self._named)
        boxed = not bool(np.isnan(boxes).any())
        if geometry is None and not boxed:
            raise InputError(
                f"{self._path}: results for image {self._image(int(rows[0]))!r} have neither bbox nor segmentation"
            )
        boxes[:, 2:] += boxes[:, :2]
        return Segments(
            size, columns.category_id[rows], geometry, score=columns.score[rows], box=boxes if boxed else None
        )

    def _named(self, row: int) -> str:
        return f"$[{row}], image {self._image(row)!r}"


def _owners(ids: list[int | str], columns: Columns) -> NDArray[np.int64]:
    """(N,) the position in `ids` of the image of each result, -1 for an image that is not there."""
    numbers = {identifier: position for position, identifier in enumerate(ids) if isinstance(identifier, int)}
    places = np.array([*numbers.values(), -1], np.int64)
    owner = places[schema.positions(np.array(list(numbers), np.int64), columns.image_id)]
    if columns.image_texts:
        named = {identifier: position for position, identifier in enumerate(ids)}
        by_text = np.array([named.get(text, -1) for text in columns.image_texts], np.int64)
        owner[columns.image_text] = by_text[columns.image_id[columns.image_text]]
    return owner


def _size(sample: Sample) -> tuple[int, int]:
    """(H, W) of a sample, from its annotation if it has one: that decodes no image."""
    segments = sample.segments
    size = segments.size if segments is not None else image_size(sample.path) if sample.path else sample.image.shape[:2]
    if len(size) != 2:
        raise InputError(f"{sample.name} is a volume of {size}, but COCO results are for images")
    return size[0], size[1]


def _number(name: str) -> int | str:
    last = name.rpartition("/")[2]
    return int(last) if last.isdecimal() else name
