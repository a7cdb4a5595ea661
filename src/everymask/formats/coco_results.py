"""COCO results: predictions for a data set as one JSON list, which the COCO API evaluates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import cast

import msgspec
import numpy as np

from everymask.errors import InputError
from everymask.files import atomic_write
from everymask.formats import coco_schema as schema
from everymask.formats.coco_write import segmentations_of_masks
from everymask.formats.images import image_size
from everymask.types import Dataset, Sample, Segments

_RESULTS = msgspec.json.Decoder(list[schema.JsonResult])
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
    results = schema.decode(path, lambda: _RESULTS.decode(path.read_bytes()))
    return _Predictions(path, dataset, results)


class _Predictions(Mapping[str, Segments]):
    """Segments by the name of the sample."""

    def __init__(self, path: Path, dataset: Dataset, results: list[schema.JsonResult]) -> None:
        self._path, self._dataset, self._results = path, dataset, results
        ids = image_ids(dataset)
        self._positions = {name: position for position, name in enumerate(ids)}
        names = {identifier: name for name, identifier in ids.items()}
        known = set(dataset.categories.ids.tolist())
        self._rows: dict[str, list[int]] = {name: [] for name in ids}
        for row, each in enumerate(results):
            if each.image_id not in names:
                raise InputError(
                    f"{path}: $[{row}] is for image {each.image_id!r}, which the data set does not have; are they "
                    "results for another one?"
                )
            if each.category_id not in known:
                raise InputError(
                    f"{path}: $[{row}] has category {each.category_id}, which the data set does not have; known ids: "
                    f"{', '.join(map(str, sorted(known)[:10]))}{' ...' if len(known) > 10 else ''}"
                )
            self._rows[names[each.image_id]].append(row)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __getitem__(self, name: str) -> Segments:
        rows = self._rows[name]
        found = [self._results[row] for row in rows]
        size = _size(self._dataset[self._positions[name]])
        shapes = []
        for row, each in zip(rows, found, strict=True):
            try:
                if each.bbox is not None:
                    # Predicted boxes may well leave the image.
                    schema.check_box(each.bbox, None)
                shapes.append(schema.segmentation(each.segmentation, f"$[{row}].segmentation", size))
            except msgspec.ValidationError as error:
                raise InputError(f"{self._path}: {error}; expected an RLE") from error
            except InputError as error:
                raise InputError(f"{self._path}: $[{row}], image {each.image_id!r}: {error}") from error
        geometry = schema.geometry(shapes, size)
        boxes = [each.bbox for each in found if each.bbox is not None]
        if len(boxes) != len(found) and geometry is None:
            raise InputError(
                f"{self._path}: results for image {found[0].image_id!r} have neither bbox nor segmentation"
            )
        edges = np.array(boxes, np.float64).reshape(-1, 4)
        edges[:, 2:] += edges[:, :2]
        return Segments(
            size,
            [each.category_id for each in found],
            geometry,
            score=[each.score for each in found],
            box=edges if len(edges) == len(found) else None,
        )


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
