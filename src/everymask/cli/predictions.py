"""Predictions for `everymask evaluate` that were made before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from everymask.errors import InputError
from everymask.metrics.evaluate import ids_in_data
from everymask.types import Dataset, Sample, Segments, Task

Predict = Callable[[Sample], Segments]
T = TypeVar("T")

ENDINGS = ("_cp_masks", "_labels", "_label", "_masks", "_mask", "_prediction", "_pred", ".labels", ".label", ".mask")
"""What programs put behind an image's name to call its label image."""


def open_predictions(path: Path, data: Dataset) -> Predict:
    """Predictions from whatever programs leave behind.

    Args:
        path: Results in a format of `everymask.formats` (COCO results, panoptic JSON and PNG, Cityscapes PNG, VOC text,
            CTC ``*_RES`` ...); a folder of label images that are called as the images of `data`, with or without one
            of `ENDINGS`; or COCO instances, as `everymask predict --format coco` writes them.
        data: What they are predictions for.

    Raises:
        InputError: The path does not exist, or an image has no prediction.
    """
    if not path.exists():
        raise InputError(
            f"{path} does not exist; --predictions needs a folder of label images, or a file or folder of results"
        )
    from everymask.formats import open_predictions as open_results

    results = open_results(path, data)
    if results is not None:
        found = results
        return lambda sample: found[sample.name]
    return _label_images(path, data) if path.is_dir() else _coco_instances(path, data)


def _label_images(folder: Path, data: Dataset) -> Predict:
    from everymask.formats.images import find_images, read_labels

    ids = [each.id for each in data.categories]
    objects = Task.INSTANCE in data.tasks
    if objects and len(ids) > 1:
        raise InputError(
            f"{folder}: label images tell objects apart but not their {len(ids)} categories; "
            "give the predictions as a COCO file"
        )
    files = {path.relative_to(folder).with_suffix("").as_posix(): path for path in find_images(folder, recursive=True)}
    bare = {name.removesuffix(end): path for name, path in files.items() for end in ENDINGS if name.endswith(end)}
    found = _one_for_each(bare | files, data, str(folder))

    def predict(sample: Sample) -> Segments:
        labels = read_labels(found[sample.name])
        if objects:
            return Segments.from_label_map(labels, ids[0])
        void = None if 255 in ids else 255
        return Segments.from_semantic_map(labels, void=void, background=None if 0 in ids else 0)

    return predict


def _coco_instances(file: Path, data: Dataset) -> Predict:
    from everymask.formats import open_dataset

    predicted = open_dataset(file, "coco", missing_images="keep")
    ids = ids_in_data(predicted.categories, data)
    by_name = {sample.name: sample for sample in predicted}
    found = _named_alike(by_name, data)
    known = {sample.name for sample in found.values()}
    unknown = [name for name in by_name if name not in known]
    if unknown:
        raise InputError(
            f"{file} has predictions for {len(unknown)} images that {data.root} does not have, the first is "
            f"{unknown[0]!r}; are they for another data set?"
        )

    def predict(sample: Sample) -> Segments:
        # Where nothing was found COCO files may leave the image out.
        segments = found[sample.name].segments if sample.name in found else None
        if segments is None:
            size = sample.segments.size if sample.segments is not None else sample.read_image().shape[:-1]
            return Segments.empty(size)
        return segments.with_category([ids[int(each)] for each in segments.category])

    return predict


def _named_alike(available: Mapping[str, T], data: Dataset) -> dict[str, T]:
    """For each sample what has its name, or, where only one has, the last part of its name."""
    by_stem: dict[str, list[str]] = {}
    for name in available:
        by_stem.setdefault(Path(name).name, []).append(name)
    found: dict[str, T] = {}
    for sample in data:
        alike = by_stem.get(Path(sample.name).name, [])
        name = sample.name if sample.name in available else alike[0] if len(alike) == 1 else None
        if name is not None:
            found[sample.name] = available[name]
    return found


def _one_for_each(available: Mapping[str, T], data: Dataset, place: str) -> dict[str, T]:
    """What `_named_alike` finds, if it finds something for each sample.

    Raises:
        InputError: A sample has none.
    """
    found = _named_alike(available, data)
    absent = [sample.name for sample in data if sample.name not in found]
    if absent:
        raise InputError(
            f"{place} has no prediction for {len(absent)} of {len(data)} images, the first is {absent[0]!r}; "
            "expected one of the same name for each image, an empty one where nothing was found"
        )
    return found
