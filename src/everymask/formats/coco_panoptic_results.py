"""COCO panoptic results: what programs predict, as a JSON of segments and a folder of PNG."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from everymask.errors import InputError
from everymask.formats import coco_panoptic_schema as schema
from everymask.formats.coco_results import image_ids
from everymask.formats.coco_schema import decode
from everymask.formats.exporting import check_relative
from everymask.formats.places import absent_images
from everymask.types import Dataset, Segments

_RESULTS = msgspec.json.Decoder(schema.JsonPanopticResults)


def recognise_predictions(path: Path) -> bool:
    """Whether `path` is a JSON whose first annotation has segments, or a folder with exactly one such file."""
    try:
        return _results_file(path) is not None
    except OSError:
        return False


def _results_file(path: Path) -> Path | None:
    if path.is_dir():
        names = [Path(entry.path) for entry in os.scandir(path) if entry.name.lower().endswith(".json")]
        # A folder of one JSON for each image is something else, and long to look through.
        found = [each for each in names[:5] if _has_segments(each)] if len(names) <= 5 else []
        return found[0] if len(found) == 1 else None
    return path if _has_segments(path) else None


def _has_segments(path: Path) -> bool:
    if path.suffix.lower() != ".json" or not path.is_file() or path.stat().st_size < 2:
        return False
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        first = content.find(b'"annotations"')
        return first >= 0 and content.find(b'"segments_info"', first, first + 4096) >= 0


def find_masks(path: Path, files: Sequence[str], given: str | os.PathLike[str] | None, *, prefer: str = "") -> Path:
    """The folder of the PNG files of a JSON.

    Args:
        path: The JSON.
        files: The PNG files that it names.
        given: The folder, if a user said so.
        prefer: A part of the name of the folder that goes before the one that is called like the JSON.

    Raises:
        InputError: A PNG file is missing.
    """
    if given is not None:
        folders = [Path(given)]
    else:
        below = sorted(Path(entry.path) for entry in os.scandir(path.resolve().parent) if entry.is_dir())
        preferred = [each for each in below if prefer and prefer in each.name and each.name.startswith(path.stem)]
        folders = [*preferred, path.with_suffix(""), path.resolve().parent, *below]
    hits = [sum((folder / name).is_file() for name in files[:10]) for folder in folders]
    best = folders[int(np.argmax(hits))]
    if files and not max(hits):
        listed = ", ".join(map(str, folders[:4]))
        raise InputError(
            f"{path}: none of its PNG files is found, the first is {files[0]}; looked in {listed}; put them into "
            f"{path.with_suffix('')}, or say where they are (option masks)"
        )
    absent = absent_images(best, files)
    if absent:
        shown = ", ".join(absent[:3]) + (" ..." if len(absent) > 3 else "")
        raise InputError(
            f"{path}: {len(absent)} of its {len(files)} PNG files are missing in {best}: {shown}; add them, or remove "
            "their annotations"
        )
    return best


def read_predictions(
    path: Path | str, dataset: Dataset, *, masks: str | os.PathLike[str] | None = None
) -> Mapping[str, Segments]:
    """Reads COCO panoptic results.

    Args:
        path: The JSON, or the folder that holds it.
        dataset: What they are predictions for: its image ids (see `coco_results.image_ids`) and categories.
        masks: The folder of the PNG files; by default the one called like the JSON, or the one that holds them.

    Returns:
        The segments of every sample by its name; the PNG are decoded when asked for. As in the official program, it is
        an error then if a PNG and its annotation do not hold the same ids.

    Raises:
        InputError: The file is malformed, an image is none of the data set's or has two annotations, an annotated
            sample has no prediction, or a PNG file is missing.
    """
    file = _results_file(Path(path))
    if file is None:
        raise InputError(
            f"{path} is no JSON of COCO panoptic results; expected one whose annotations have segments_info"
        )
    return _Predictions(file, dataset, masks)


class _Predictions(Mapping[str, Segments]):
    """Segments by the name of the sample."""

    def __init__(self, path: Path, dataset: Dataset, masks: str | os.PathLike[str] | None) -> None:
        self._path, self._dataset = path, dataset
        self._annotations = decode(path, lambda: _RESULTS.decode(path.read_bytes())).annotations
        names = {identifier: name for name, identifier in image_ids(dataset).items()}
        self._rows: dict[str, int] = {}
        for row, each in enumerate(self._annotations):
            place = f"{path}: $.annotations[{row}]"
            check_relative(each.file_name, place)
            name = names.get(each.image_id)
            if name is None:
                raise InputError(
                    f"{place} is for image {each.image_id!r}, which the data set does not have; are they results for "
                    "another one?"
                )
            if name in self._rows:
                raise InputError(f"{place} is the second one of image {each.image_id!r}; remove one of them")
            self._rows[name] = row
        ids = {name: identifier for identifier, name in names.items()}
        if len(self._rows) < len(ids):
            for sample in dataset:
                if sample.name not in self._rows and sample.read_segments is not None:
                    raise InputError(
                        f"{path}: there is no prediction for image {ids[sample.name]!r} ({sample.name}); add one, with "
                        "an empty list of segments and a black PNG if nothing was found"
                    )
        self._folder = find_masks(path, [each.file_name for each in self._annotations], masks)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __getitem__(self, name: str) -> Segments:
        row = self._rows[name]
        annotation = self._annotations[row]
        place = f"$.annotations[{row}].segments_info"
        rows = schema.checked_rows(annotation.segments_info, self._path, place)
        file = self._folder / annotation.file_name
        categories = self._dataset.categories
        return schema.read_segments(file, rows, categories, f"{self._path}: {place}", complete=True)
