"""Images sorted into folders of their classes: the usual layout of classification.

::

    CLASS/NAME.jpg              or, with parts,
    train/CLASS/NAME.jpg
    test/CLASS/NAME.jpg

A class is a folder right below, and its images lie right in it. Ids count from 0 in the order of the sorted names,
which is how torchvision's `ImageFolder` counts them; all parts together decide which classes there are, so that an id
means the same in each. The annotation of an image is one segment without geometry, a tag.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from everymask.errors import InputError
from everymask.files import atomic_write
from everymask.formats.description import Description, Feature
from everymask.formats.exporting import copy_image
from everymask.formats.images import image_size, read_image
from everymask.formats.joining import PARTS, join_parts
from everymask.formats.listing import IMAGE_SUFFIXES, list_images
from everymask.formats.metadata import read_extras
from everymask.types import Categories, Category, Dataset, Sample, Segments, Task

DESCRIPTION = Description(
    summary="images in folders of their classes (classification)",
    layout="CLASS/NAME.jpg for two or more classes, perhaps below train/, val/ and test/",
    tasks=frozenset({Task.CLASSIFICATION}),
    carries=frozenset({Feature.CLASSES, Feature.TAGS, Feature.EXTRA}),
    attributes=frozenset(),
)

_RESERVED = {
    *(
        "annotation",
        "annotations",
        "annots",
        "gt",
        "gts",
        "groundtruth",
        "gtfine",
        "gtcoarse",
        "image",
        "images",
        "img",
    ),
    *("imgs", "input", "inputs", "inst", "instance", "instances", "jpegimages", "label", "labels", "leftimg8bit"),
    *("mask", "masks", "output", "outputs", "overlay", "overlays", "panoptic", "pred", "prediction", "predictions"),
    *("preds", "seg", "segmentation", "segmentations", "segmentationclass", "segmentationobject", "semantic", "stuff"),
    *("test", "tra", "train", "truth", "val", "valid", "validation", "imagesets", "dets", "flows", "res", "results"),
}
"""Words that name folders of something else than a class, as a whole or as a part (``train_label``, ``val2017``)."""
_WORD = re.compile("[a-z]+")
_HARMLESS = {"thumbs.db", "desktop.ini"}
_LOOK = 64
"""How many entries of a folder are looked at to recognise it."""


# -- reading ---------------------------------------------------------------------------------------------------------


def recognise(path: Path) -> bool:
    """Whether `path` holds two or more folders of images and nothing else but files, or parts that do.

    A folder of images has no folders and no other files in it (a sample of its entries is looked at) and a name that
    is not in use for something else, such as ``masks``.
    """
    try:
        return path.is_dir() and (_is_class_level(path) or _are_parts(path))
    except OSError:
        return False


def _are_parts(path: Path) -> bool:
    names = _folders(path)
    if not names or any(name.lower() not in PARTS for name in names):
        return False
    # A small part may well have images of a single class.
    found = [_classes_with_images(path / name) for name in names]
    return all(found) and len(set[str]().union(*(each or () for each in found))) >= 2


def _is_class_level(path: Path) -> bool:
    """Whether the folders right below are classes."""
    return len(_classes_with_images(path) or ()) >= 2


def _classes_with_images(path: Path) -> list[str] | None:
    """The folders right below that hold images; None if any holds something else or is called like something else."""
    names = _folders(path)
    if any(_is_reserved(name) for name in names):
        return None
    with os.scandir(path) as entries:
        seen = [entry.name for entry in islice(entries, _LOOK + len(names)) if not entry.name.startswith(".")]
        if any(name.lower().endswith(IMAGE_SUFFIXES) for name in seen):
            return None  # a picture beside the folders: they are about it, or it is about them
    kinds = {name: _content(path / name) for name in names}
    return None if None in kinds.values() else [name for name, kind in kinds.items() if kind]


def _is_reserved(name: str) -> bool:
    words = {*_WORD.findall(name.lower()), name.lower()}
    return not words.isdisjoint(_RESERVED)


def _content(folder: Path) -> bool | None:
    """Whether a folder holds images; None if it holds anything else, or the frames of a film (``t000.tif``)."""
    with os.scandir(folder) as entries:
        seen = [entry for entry in islice(entries, _LOOK) if not entry.name.startswith(".")]
    names = [entry.name.lower() for entry in seen if entry.name.lower() not in _HARMLESS]
    if not all(name.endswith(IMAGE_SUFFIXES) for name in names) or any(entry.is_dir() for entry in seen):
        return None
    frames = all(name[:1] == "t" and name.rpartition(".")[0][1:].isdigit() and ".tif" in name for name in names)
    return None if names and frames else bool(names)


def _folders(path: Path) -> list[str]:
    with os.scandir(path) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())


def read(path: Path, *, split: str | None = None) -> Dataset:
    """Opens folders of images; lists files, and reads none.

    Args:
        path: The folder above the classes, or above the parts.
        split: Name of a part such as ``"train"``. Without it, all parts are opened as one.

    Raises:
        InputError: There are no classes, or no such part.
    """
    if not path.is_dir():
        raise InputError(f"{path} is a file, but classes are folders; name the folder above them")
    below = _folders(path)
    parts = [name for name in below if name.lower() in PARTS] if set(map(str.lower, below)) <= PARTS else []
    if split is not None and split not in parts:
        raise InputError(f"{path} has no part {split!r}; it has {', '.join(parts) or 'no parts at all'}")
    if not parts:
        family = [path]
        if path.name.lower() in PARTS:
            family += [path.parent / name for name in _folders(path.parent) if name.lower() in PARTS]
        return _read_part(path, _classes(family), path.name)
    categories = _classes([path / name for name in parts])
    opened = {name: _read_part(path / name, categories, name) for name in ([split] if split is not None else parts)}
    return opened[split] if split is not None else join_parts(opened, path)


def _classes(parts: Sequence[Path]) -> Categories:
    names = sorted({name for part in parts for name in _folders(part)})
    if not names:
        raise InputError(f"{parts[0]} holds no folders; expected one for each class, with its images")
    return Categories(Category(position, name) for position, name in enumerate(names))


def _read_part(path: Path, categories: Categories, part: str) -> Dataset:
    files: list[str] = []
    labels: list[int] = []
    for each in categories:
        found = list_images(path / each.name) if (path / each.name).is_dir() else []
        files += [f"{each.name}/{name}" for name in found]
        labels += [each.id] * len(found)
    if not files:
        raise InputError(f"{path} has {len(categories)} folders, but no images in them; expected {DESCRIPTION.layout}")
    stems = [file.rpartition(".")[0] for file in files]
    count = dict.fromkeys(stems, 0)
    for stem in stems:
        count[stem] += 1
    # Two files that differ in the suffix only keep it.
    names = [stem if count[stem] == 1 else file for stem, file in zip(stems, files, strict=True)]
    reader = _Reader(path, files, names, labels, read_extras([path], names, part))
    return Dataset(reader.sample, len(files), categories, frozenset({Task.CLASSIFICATION}), "image_folder", path)


@dataclass(frozen=True)
class _Reader:
    """Makes the samples of a part."""

    folder: Path
    files: list[str]
    names: list[str]
    labels: list[int]
    extras: dict[str, dict[str, Any]]

    def sample(self, index: int) -> Sample:
        name, path = self.names[index], self.folder / self.files[index]
        tag = partial(_tag, path, self.labels[index])
        return Sample(name, partial(read_image, path), tag, path, dict(self.extras.get(name, {})))


def _tag(path: Path, identifier: int) -> Segments:
    return Segments(image_size(path), [identifier])


# -- writing ---------------------------------------------------------------------------------------------------------


def write(dataset: Dataset, target: Path, *, link_images: bool = False) -> None:
    """Writes images into folders of their classes, below folders of their parts where there are some.

    Names that begin with part and class stay as they are; of others, slashes become underscores.

    Args:
        dataset: Samples with one class each.
        target: The folder.
        link_images: Make hard links of the image files instead of copies.

    Raises:
        InputError: A sample has not one class, a class name is no name of a folder, or two images get one name.
    """
    for each in dataset.categories:
        if "/" in each.name or "\\" in each.name or each.name.startswith(".") or not each.name.isprintable():
            raise InputError(f"the class name {each.name!r} cannot be the name of a folder; rename the class")
    lines: dict[str, list[bytes]] = {}
    written: dict[str, str] = {}
    parts: set[str] = set()
    for sample in dataset:
        segments = sample.segments
        if segments is None or len(segments) != 1:
            found = "no annotation" if segments is None else f"{len(segments)} segments"
            raise InputError(f"{sample.name} has {found}, but a folder of images needs one class for each image")
        label = dataset.categories.by_id(int(segments.category[0])).name
        split = sample.extra.get("split")
        part = split if isinstance(split, str) and split.lower() in PARTS else ""
        rest = sample.name.removeprefix(f"{part}/") if part else sample.name
        name = f"{label}/{rest.removeprefix(f'{label}/').replace('/', '_')}"
        place = f"{part}/{name}" if part else name
        if place in written:
            raise InputError(f"{sample.name} and {written[place]} would both be called {place}; rename one of them")
        written[place] = sample.name
        parts.add(part)
        copy_image(_renamed(sample, place), target, link=link_images, listed=True)
        extra = {key: value for key, value in sample.extra.items() if key != "split" or not part}
        if extra:
            lines.setdefault(part, []).append(msgspec.json.encode({"name": name, "extra": extra}))
    if "" in parts and len(parts) > 1:
        raise InputError(
            "some images belong to a part such as 'train' and others to none; open one part of the data set"
        )
    for part in parts:
        for each in dataset.categories:
            (target / part / each.name).mkdir(parents=True, exist_ok=True)
        if part in lines:
            with atomic_write(target / part / "metadata.jsonl") as temporary:
                temporary.write_bytes(b"\n".join(lines[part]) + b"\n")


def _renamed(sample: Sample, name: str) -> Sample:
    return Sample(name, sample.read_image, sample.read_segments, sample.path, sample.extra)
