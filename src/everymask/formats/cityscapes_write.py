"""Writing Cityscapes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from everymask.errors import InputError
from everymask.files import atomic_write
from everymask.formats.checks import by
from everymask.formats.cityscapes_files import IMAGE, core_of
from everymask.formats.cityscapes_labels import BY_ID, BY_NAME, INSTANCES, LABELS, UNLABELED, Label
from everymask.formats.exporting import check_relative, copy_image
from everymask.formats.images import image_size, write_image, write_labels
from everymask.formats.renaming import renamed
from everymask.types import Categories, Dataset, Polygons, Sample, Segments
from everymask.types.segments import Overlap

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SPLIT = "train"
"""The part of samples that do not say theirs."""


def write(
    dataset: Dataset,
    target: Path,
    *,
    overlap: Overlap = "error",
    images: bool = True,
    link_images: bool = False,
) -> None:
    """Writes the official layout: images in ``leftImg8bit``, and in ``gtFine`` all files that the data set has.

    These are ``instanceIds``, ``labelIds``, ``labelTrainIds`` and ``color``, and ``polygons.json`` if the segments are
    outlines of one ring each. Then the label images are drawn from the polygons as cityscapesScripts draws them
    (`preparation/json2instanceImg.py`), the later over the earlier. Reading gives the same label images, value by
    value: instances keep the attribute ``instance_id`` or are numbered from 0. Pixels of no segment become "unlabeled".

    The part of a sample is ``extra["split"]``, else ``"train"``. A sample that is not called like an image of
    Cityscapes becomes a city of its own.

    Args:
        dataset: Segments of 2-D images whose categories are called like labels of Cityscapes.
        target: The folder.
        overlap: What happens where masks overlap: ``"error"``, ``"score"`` or ``"last"``; see `Segments.label_map`.
        images: Write the images, too.
        link_images: Make hard links of the image files instead of copies.

    Raises:
        InputError: A category is no label of Cityscapes, masks overlap, there are over 1,000 instances of a label in an
            image, or two images would get the same name.
    """
    labels = _labels(dataset.categories)
    taken: set[str] = set()
    for sample in dataset:
        split, city, core = _place(sample, taken)
        if sample.segments is not None and len(sample.segments.size) != 2:
            raise InputError(
                f"{sample.name} is a volume of {by(sample.segments.size)}, which Cityscapes cannot hold; write "
                "label_images instead"
            )
        if images:
            _write_image(sample, target / IMAGE / split / city / f"{core}_{IMAGE}.png", link=link_images)
        segments = sample.segments
        if segments is None:
            continue
        try:
            values = instance_ids(segments, labels, overlap)
        except InputError as error:
            raise InputError(f"{sample.name}: {error}") from error
        folder = target / "gtFine" / split / city
        start = f"{core}_gtFine_"
        ids = np.where(values < INSTANCES, values, values // INSTANCES)
        write_labels(folder / f"{start}instanceIds.png", values.astype(np.uint16))
        write_labels(folder / f"{start}labelIds.png", ids.astype(np.uint8))
        write_labels(folder / f"{start}labelTrainIds.png", _TRAIN_IDS[ids])
        write_image(folder / f"{start}color.png", _COLOURS[ids])
        if _are_rings(segments):
            with atomic_write(folder / f"{start}polygons.json") as temporary:
                temporary.write_bytes(_polygons_json(segments, labels))


_TRAIN_IDS = np.array([BY_ID[i].train_id for i in range(len(LABELS) - 1)], np.uint8)
_COLOURS = np.array([(*BY_ID[i].colour, 255) for i in range(len(LABELS) - 1)], np.uint8)


def _labels(categories: Categories) -> dict[int, Label]:
    """The label of each category id, by name.

    Raises:
        InputError: A name is none of a label.
    """
    unknown = [each.name for each in categories if each.name not in BY_NAME]
    if unknown:
        raise InputError(
            f"the categories {', '.join(map(repr, unknown[:5]))} are no labels of Cityscapes; rename them to its "
            f"labels ({', '.join(each.name for each in LABELS if not each.ignored)} ...), or write another format"
        )
    return {each.id: BY_NAME[each.name] for each in categories}


def _place(sample: Sample, taken: set[str]) -> tuple[str, str, str]:
    """Part, city and core of a sample; `taken` are the cores of those before it.

    Raises:
        InputError: Two samples are of the same place and time.
    """
    name = check_relative(sample.name, "name of a sample")
    split = check_relative(str(sample.extra.get("split") or _SPLIT), f"part of {name}")
    core = core_of(name)
    if core is not None:
        if core in taken:
            raise InputError(f"two samples are called {core}, one of them {name}; rename one")
    else:
        city = re.sub(r"[^A-Za-z0-9-]+", "-", name.removeprefix(f"{split}/")).strip("-") or "image"
        frames: Iterable[str] = (f"{city}_{number:06}_000019" for number in range(10**6))
        core = next(each for each in frames if each not in taken)
    taken.add(core)
    return split, core.partition("_")[0], core


def _write_image(sample: Sample, file: Path, *, link: bool) -> None:
    """Writes the image of a sample as PNG: the file itself if it is one."""
    if sample.path is not None and sample.path.suffix.lower() == ".png":
        copy_image(renamed(sample, file.stem), file.parent, link=link)
        return
    write_image(file, sample.image)
    size = image_size(file)
    if sample.segments is not None and sample.segments.size != size:
        raise InputError(
            f"{sample.path or sample.name} has size {by(size)}, but its annotation {by(sample.segments.size)}; correct "
            "the one that is wrong"
        )


def instance_ids(segments: Segments, labels: dict[int, Label], overlap: Overlap) -> NDArray[np.int64]:
    """(H, W) values of ``instanceIds.png``.

    Args:
        segments: Segments of a 2-D image; polygons of one ring each are drawn one over the other.
        labels: The label of each category id.
        overlap: What happens where masks overlap; see `Segments.label_map`.

    Raises:
        InputError: Segments overlap, are boxes only, or there are too many.
    """
    if segments.geometry is None and len(segments):
        raise InputError("has boxes or tags only, which label images cannot hold; write coco instead")
    values = _values(segments, [labels[each] for each in segments.category.tolist()])
    if _are_rings(segments) and len(segments):
        return _painted(segments, values)
    ids = segments.label_map(overlap) if segments.geometry is not None else np.zeros(segments.size, np.int32)
    return np.concatenate([[UNLABELED, UNLABELED], values])[ids + 1]


def _values(segments: Segments, found: list[Label]) -> NDArray[np.int64]:
    """(N,) value of each segment, -1 where it is not drawn: "license plate", and polygons marked as deleted."""
    wanted = segments.attributes.get("instance_id", np.full(len(segments), -1))
    values: list[int] = []
    used = set()
    following = dict.fromkeys((each.id for each in found), 0)
    kept = [
        _keeps(label, bool(crowd), value) for label, crowd, value in zip(found, segments.crowd, wanted, strict=True)
    ]
    reserved = {int(value) for value, keep in zip(wanted, kept, strict=True) if keep}
    deleted = segments.attributes.get("deleted", np.zeros(len(segments)))
    for label, crowd, value, keep, gone in zip(found, segments.crowd, wanted, kept, deleted.tolist(), strict=True):
        if gone:
            values.append(-1)
        elif not label.has_instances or crowd:
            values.append(label.id)
        elif keep and int(value) not in used:
            values.append(int(value))
        else:
            number = following[label.id]
            while INSTANCES * label.id + number in reserved | used:
                number += 1
            following[label.id] = number + 1
            if number >= INSTANCES:
                raise InputError(f"has over {INSTANCES} instances of {label.name!r}, more than Cityscapes can number")
            values.append(INSTANCES * label.id + number)
        used.add(values[-1])
    return np.array(values, np.int64)


def _keeps(label: Label, crowd: bool, value: Any) -> bool:
    """Whether a value is one that an instance of the label can have."""
    return label.has_instances and not crowd and isinstance(value, (int, np.integer)) and value // INSTANCES == label.id


def _are_rings(segments: Segments) -> bool:
    """Whether the segments are polygons as Cityscapes has them: one outline without holes."""
    geometry = segments.geometry
    return isinstance(geometry, Polygons) and all(len(parts) == 1 and not parts[0].holes for parts in geometry.parts)


def _painted(segments: Segments, values: NDArray[np.int64]) -> NDArray[np.int64]:
    """The polygons drawn one over the other, by Pillow's rule, which is the official program's."""
    from PIL import Image, ImageDraw

    height, width = segments.size
    canvas = Image.new("I", (width, height), UNLABELED)
    draw = ImageDraw.Draw(canvas)
    geometry = segments.geometry
    rings = [parts[0].exterior for parts in geometry.parts] if isinstance(geometry, Polygons) else []
    for ring, value in zip(rings, values.tolist(), strict=True):
        if value >= 0 and len(ring) > 1:
            draw.polygon([tuple(point) for point in ring.tolist()], fill=value)
    return np.array(canvas).astype(np.int64)


def _polygons_json(segments: Segments, labels: dict[int, Label]) -> bytes:
    """A ``*_polygons.json``: the polygons in order, with all attributes."""
    geometry = segments.geometry
    parts = geometry.parts if isinstance(geometry, Polygons) else ()
    columns = {name: column.tolist() for name, column in segments.attributes.items() if name != "instance_id"}
    objects = []
    for i, part in enumerate(parts):
        name = labels[int(segments.category[i])].name + ("group" if segments.crowd[i] else "")
        points = [[int(v) if v == int(v) else v for v in point] for point in part[0].exterior.tolist()]
        entry: dict[str, Any] = {"label": name, "polygon": points}
        # A column has None where the object had no such field.
        objects.append(entry | {key: column[i] for key, column in columns.items() if column[i] is not None})
    height, width = segments.size
    content = {"imgHeight": height, "imgWidth": width, "objects": objects}
    return msgspec.json.format(msgspec.json.encode(content), indent=4)
