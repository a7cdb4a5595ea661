"""The same ground truth in the forms of COCO, Pascal VOC, YOLO, CVAT and labelme: equal, whichever is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from everymask.formats import open_dataset, write_dataset
from everymask.types import Dataset

FORMS = {
    "coco_format_v1/instances_default.json": "coco",
    "coco_format_v2/instances_v2.json": "coco",
    "cvat_format": "cvat",
    "labelme_format": "labelme",
    "pascalvoc_format": "voc",
    "yolo_format": "yolo",
}
"""Place in the data set -> the format that it must be recognised as."""

Objects = dict[str, list[tuple[str, tuple[float, ...]]]]


def objects(dataset: Dataset) -> Objects:
    """Class and box of all objects of each image, in the order of the boxes."""
    names = {each.id: each.name for each in dataset.categories}
    found = {}
    for sample in dataset:
        assert sample.segments is not None
        boxes = sample.segments.boxes()
        classes = [names[int(each)] for each in sample.segments.category]
        order = np.lexsort(np.round(boxes).T)
        found[sample.name.rpartition("/")[2]] = [(classes[i], tuple(boxes[i].tolist())) for i in order]
    return found


def close(one: Objects, other: Objects, tolerance: float) -> None:
    """Asserts that images, classes and, but for the rounding of a form, boxes are equal."""
    assert one.keys() == other.keys()
    for name, expected in one.items():
        # Boxes of one class that differ by less than the tolerance may change places: each finds its nearest.
        left = list(other[name])
        assert len(left) == len(expected)
        for label, box in expected:
            distances = [np.abs(np.subtract(each, box)).max() if kind == label else np.inf for kind, each in left]
            nearest = int(np.argmin(distances))
            assert distances[nearest] <= tolerance, (name, label, box)
            left.pop(nearest)


@pytest.fixture(scope="module")
def folder(shared_data: Path) -> Path:
    return shared_data / "detection" / "voc100"


@pytest.fixture(scope="module")
def truth(folder: Path) -> Objects:
    """The COCO form, whose numbers are whole and were parsed by others' programs many times."""
    return objects(open_dataset(folder / "gts" / "coco_format_v1" / "instances_default.json"))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_says_the_same(folder: Path, truth: Objects, form: str) -> None:
    dataset = open_dataset(folder / "gts" / form)
    assert dataset.format == FORMS[form]
    assert len(dataset) == 100
    assert len(dataset.categories) == 20
    found = objects(dataset)
    assert sum(map(len, found.values())) == 273
    # YOLO has six decimals of an image of 500 pixels. VOC counts pixels from 1 and has the last one, so that a box that
    # was copied into it number by number is one pixel larger on the left and at the top.
    close(truth, found, {"yolo": 0.001, "voc": 1}.get(dataset.format, 0))
    assert all(sample.path is not None and sample.path.is_file() for sample in dataset)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("target", ["cvat", "labelme", "yolo", "coco"])
def test_every_form_in_every_other(folder: Path, form: str, target: str, tmp_path: Path) -> None:
    dataset = open_dataset(folder / "gts" / form)[:20]
    write_dataset(dataset, tmp_path / "set", target, link_images=True)
    again = open_dataset(tmp_path / "set")
    assert again.format == target
    # YOLO is read to 1e-9 of a pixel, and has no boxes beside polygons.
    close(objects(dataset), objects(again), 1e-9 if target == "yolo" else 0)
