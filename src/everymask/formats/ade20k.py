"""ADE20K: the scene parsing challenge of 2016 with its 150 classes, and the full data set with parts and instances.

The challenge is ``images/{training,validation}`` beside ``annotations/{training,validation}``, PNG masks of the same
names in which 0 is void and 1..150 are classes. `everymask.formats.ade20k_full` describes the full layout.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from everymask.errors import InputError
from everymask.files import atomic_write
from everymask.formats import ade20k_full, ade20k_write
from everymask.formats.ade20k_classes import CLASSES
from everymask.formats.checks import by, check_same_size
from everymask.formats.description import Description, Feature
from everymask.formats.exporting import check_relative, copy_image
from everymask.formats.images import image_size, read_image, read_labels, write_labels
from everymask.formats.joining import join_parts
from everymask.formats.listing import list_images
from everymask.formats.places import check_missing
from everymask.formats.renaming import renamed
from everymask.types import Categories, Dataset, Sample, Segments, Task
from everymask.types.segments import Overlap

if TYPE_CHECKING:
    from numpy.typing import NDArray

DESCRIPTION = Description(
    summary="ADE20K: scene parsing masks of 150 classes, or the full data set with parts and instances",
    layout="images/ and annotations/ with training/ and validation/; or images/ADE/ with name.jpg beside name_seg.png",
    tasks=frozenset({Task.SEMANTIC, Task.INSTANCE, Task.PANOPTIC, Task.DETECTION}),
    # Of the full form, which is written unless the classes are the challenge's and nothing would be lost.
    carries=frozenset(Feature)
    - {
        *(Feature.POINTS, Feature.OVERLAP, Feature.BOXES, Feature.OWN_BOXES, Feature.TAGS),
        *(Feature.SCORES, Feature.CROWDS, Feature.VOLUMES, Feature.BACKGROUND),
    },
)

VOID = 0
"""Value of pixels that the challenge does not consider."""

_NAME = re.compile(r"ADE_(train|val|test)_\d{8}\.png", re.IGNORECASE)
_INFO = ("objectInfo150.txt", "objectInfo150.csv")


# -- reading ---------------------------------------------------------------------------------------------------------


def recognise(path: Path) -> bool:
    """Whether `path` is a folder with ADE20K in either form, by names alone."""
    try:
        return path.is_dir() and (_is_challenge(path) or ade20k_full.find_base(path) is not None)
    except OSError:
        return False


def _is_challenge(path: Path) -> bool:
    """Whether a folder has masks that are called like those of the challenge, or its list of classes."""
    annotations = path / "annotations"
    if not (path / "images").is_dir() or not annotations.is_dir():
        return False
    if any((path / name).is_file() for name in _INFO):
        return True
    for part in sorted(annotations.iterdir()):
        if part.is_dir():
            with os.scandir(part) as entries:
                first = next((each.name for each in entries if not each.name.startswith(".")), "")
            return _NAME.fullmatch(first) is not None
    return False


def read(
    path: Path,
    *,
    split: str | None = None,
    level: int | None = 0,
    geometry: str = "masks",
    missing_images: str = "error",
) -> Dataset:
    """Opens ADE20K; of the challenge, names only are read, of the full data set also the names of objects.

    Args:
        path: The folder above ``images``; of the full data set also one inside.
        split: The part, such as ``"training"``; by default all, each sample with its part in front of its name.
        level: Of the full data set: 0 for whole objects, 1 for their parts, 2 for parts of parts ...; None for all of
            them, as masks that overlap.
        geometry: Of the full data set: ``"masks"`` for what is visible of an object, ``"amodal"`` for all of it, also
            where others hide it, ``"polygons"`` for its outline as it was drawn.
        missing_images: What to do about masks whose image is absent: ``"error"``, ``"keep"`` (reading the image is then
            an error) or ``"skip"``.

    Raises:
        InputError: There are no such files, images are missing, or an option does not suit the form.
    """
    check_missing(missing_images)
    if not path.is_dir():
        raise InputError(f"{path} is a file, but ADE20K is a folder; name the folder")
    if not _is_challenge(path) and ade20k_full.find_base(path) is not None:
        return ade20k_full.read(path, split=split, level=level, geometry=geometry, missing_images=missing_images)
    if level != 0 or geometry != "masks":
        raise InputError(
            f"{path} is the challenge of 2016, which has no parts and no objects; leave out level and geometry, "
            "or open the full data set"
        )
    parts = sorted(
        {
            entry.name
            for folder in ("images", "annotations")
            if (path / folder).is_dir()
            for entry in (path / folder).iterdir()
            if entry.is_dir() and not entry.name.startswith(".")
        }
    )
    if not parts or (split is not None and split not in parts):
        wanted = f"no part {split!r}" if split is not None else "no images in parts such as images/training"
        raise InputError(f"{path} has {wanted}; it has {', '.join(parts) or 'no parts at all'}")
    if split is not None:
        return _part(path, split, missing_images)
    return join_parts({part: _part(path, part, missing_images) for part in parts}, path)


def _part(path: Path, part: str, missing_images: str) -> Dataset:
    """One part of the challenge."""
    image_folder, mask_folder = path / "images" / part, path / "annotations" / part
    images = _by_stem(image_folder)
    masks = _by_stem(mask_folder)
    absent = [stem for stem in masks if stem not in images]
    if absent and missing_images == "error":
        shown = ", ".join(absent[:3]) + (" ..." if len(absent) > 3 else "")
        raise InputError(
            f"{mask_folder}: {len(absent)} of {len(masks)} masks have no image in {image_folder}: {shown}; add the "
            "images, or say --skip-missing to leave the masks out"
        )
    names = sorted({*images, *(() if missing_images == "skip" else absent)})
    reader = _Reader(image_folder, mask_folder, names, images, masks, part)
    return Dataset(reader.sample, len(names), CLASSES, frozenset({Task.SEMANTIC}), "ade20k", path)


def _by_stem(folder: Path) -> dict[str, str]:
    """Files of images by their path without suffix.

    Raises:
        InputError: Two differ in the suffix only.
    """
    found: dict[str, str] = {}
    for name in list_images(folder, recursive=True) if folder.is_dir() else ():
        other = found.setdefault(name.rpartition(".")[0], name)
        if other != name:
            raise InputError(f"{folder} holds {other} and {name}, which share a name; remove or rename one")
    return found


@dataclass(frozen=True)
class _Reader:
    """Makes the samples of a part."""

    image_folder: Path
    mask_folder: Path
    names: list[str]
    images: dict[str, str]
    masks: dict[str, str]
    part: str

    def sample(self, index: int) -> Sample:
        name = self.names[index]
        image = self.image_folder / self.images[name] if name in self.images else None
        segments: Callable[[], Segments] | None = None
        if name in self.masks:
            segments = partial(_segments, self.mask_folder / self.masks[name], image)
        read_pixels = partial(read_image, image or self.image_folder / f"{name}.jpg")
        return Sample(name, read_pixels, segments, image, {"split": self.part})


def _segments(path: Path, image: Path | None) -> Segments:
    """One segment for each class in a mask."""
    values = read_labels(path)
    highest = int(values.max(initial=0))
    if highest > len(CLASSES):
        raise InputError(
            f"{path} holds the value {highest}, but the challenge has {VOID} for void and the classes 1.."
            f"{len(CLASSES)}; undo any renumbering of the classes"
        )
    if image is not None:
        check_same_size(image_size(image), values.shape, image, path)
    return Segments.from_semantic_map(values, void=VOID)


# -- writing ---------------------------------------------------------------------------------------------------------


def write(
    dataset: Dataset,
    target: Path,
    *,
    form: str | None = None,
    overlap: Overlap = "error",
    link_images: bool = False,
    instance_masks: bool = True,
) -> None:
    """Writes one of the two forms.

    Args:
        dataset: Segments of 2-D images.
        target: The folder.
        form: ``"challenge"`` for masks of the 150 classes, found by their names; single objects are then lost.
            ``"full"`` for objects with everything that is known of them, see `everymask.formats.ade20k_write`. By
            default the challenge if the classes are its own and the data set has no single objects.
        overlap: What happens where segments of one level overlap: ``"error"``, ``"score"`` or ``"last"``; see
            `Segments.label_map`.
        link_images: Make hard links of the image files instead of copies.
        instance_masks: Of the full form: write a mask of each object, too.

    Raises:
        InputError: Segments overlap or have no geometry, or categories do not suit the form.
    """
    if form not in {None, "challenge", "full"}:
        raise InputError(f"form must be 'challenge' or 'full', got {form!r}")
    if form is None:
        form = "challenge" if dataset.categories == CLASSES and dataset.tasks == {Task.SEMANTIC} else "full"
    if form == "full":
        ade20k_write.write(dataset, target, overlap=overlap, link_images=link_images, instance_masks=instance_masks)
        return
    values = _values(dataset.categories)
    for sample in dataset:
        name = check_relative(sample.name, "name of a sample")
        part = check_relative(str(sample.extra.get("split") or "training"), f"part of {name}")
        name = name.removeprefix(f"{part}/")
        copy_image(
            renamed(sample, name),
            target / "images" / part,
            link=link_images,
            listed=True,
        )
        segments = sample.segments
        if segments is not None:
            (target / "annotations" / part / name).parent.mkdir(parents=True, exist_ok=True)
            write_labels(target / "annotations" / part / f"{name}.png", _mask(sample.name, segments, values, overlap))
    with atomic_write(target / _INFO[0]) as temporary:
        lines = ["Idx\tName", *(f"{each.id}\t{each.name}" for each in CLASSES)]
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _values(categories: Categories) -> dict[int, int]:
    """The value in the masks of each category id: by the official name, or by the first of its synonyms.

    Raises:
        InputError: A category is none of the challenge's.
    """
    known = {each.name.partition(",")[0]: each.id for each in CLASSES} | {each.name: each.id for each in CLASSES}
    unknown = [each.name for each in categories if each.name not in known]
    if unknown:
        raise InputError(
            f"the categories {', '.join(map(repr, unknown[:5]))} are none of the challenge's 150 classes; rename them, "
            "or say form='full', which takes any"
        )
    return {each.id: known[each.name] for each in categories}


def _mask(name: str, segments: Segments, values: dict[int, int], overlap: Overlap) -> NDArray[np.uint8]:
    """(H, W) classes of an image."""
    if len(segments.size) != 2:
        raise InputError(
            f"{name} is a volume of {by(segments.size)}, which ADE20K cannot hold; write label_images instead"
        )
    if segments.geometry is None and len(segments):
        raise InputError(f"{name} has boxes or tags only, which masks cannot hold; write coco instead")
    try:
        ids = segments.label_map(overlap) if segments.geometry is not None else np.zeros(segments.size, np.int32)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    table = np.array([VOID, VOID, *(values[each] for each in segments.category.tolist())], np.uint8)
    return table[ids + 1]
