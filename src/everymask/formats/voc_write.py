"""Writing Pascal VOC: XML files, pictures of classes and objects, images, and lists of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from everymask.errors import InputError
from everymask.files import atomic_write
from everymask.formats.exporting import check_relative, copy_image, nothing_annotated
from everymask.formats.images import image_size
from everymask.formats.voc_layout import CLASSES, default_sets
from everymask.formats.voc_masks import VOID, linked_by_number, mask_numbers, write_palette
from everymask.formats.voc_xml import Annotation, VocObject, annotation_text
from everymask.types import Categories, Dataset, Sample, Segments, Task
from everymask.types.segments import Overlap

if TYPE_CHECKING:
    from numpy.typing import NDArray

_KINDS = ("detection", "instance", "semantic")


def write(
    dataset: Dataset,
    target: Path,
    *,
    kind: str | None = None,
    overlap: Overlap = "error",
    one_based: bool | None = None,
    link_images: bool = False,
) -> None:
    """Writes a data set in the layout of the devkit; reading it gives the same segments.

    Args:
        dataset: Segments with boxes or outlines.
        target: The folder.
        kind: ``"detection"`` (XML only), ``"instance"`` (XML and both pictures, where an image has outlines) or
            ``"semantic"`` (the picture of classes only). By default what the data set is for.
        overlap: What happens where segments overlap: ``"error"``, ``"score"`` or ``"last"``; see `Segments.label_map`.
        one_based: Count pixels from 1 in XML, as VOC itself; by default as the image was read.
        link_images: Make hard links of the image files instead of copies.

    Raises:
        InputError: Segments overlap, or have neither boxes nor outlines; there are too many classes or objects; a name
            cannot be written.
    """
    if kind not in {None, *_KINDS}:
        raise InputError(f"kind must be one of {', '.join(_KINDS)}, got {kind!r}")
    chosen = kind or kind_of(dataset)
    values = class_values(dataset.categories)
    write_class_list(target, dataset.categories, values)
    lists: dict[str, list[str]] = {}
    further: list[bytes] = []
    annotated = False
    for sample in dataset:
        file = copy_image(sample, target / "JPEGImages", link=link_images, listed=True)
        boxes, masks = _write_sample(sample, file, target, dataset.categories, values, chosen, overlap, one_based)
        collect(sample, lists, further, boxes=boxes, masks=masks)
        annotated |= boxes or masks
    if not annotated:
        raise nothing_annotated("VOC")
    write_lists(target, lists, further)


def kind_of(dataset: Dataset) -> str:
    """What is written of a data set if nothing is said: all that it is for."""
    if dataset.tasks == {Task.SEMANTIC}:
        return "semantic"
    return "detection" if dataset.tasks <= {Task.DETECTION} else "instance"


def class_values(categories: Categories) -> dict[int, int]:
    """The value of each category id in pictures: itself if all fit, else 1, 2, ... in order.

    Raises:
        InputError: There are more than 254 categories.
    """
    ids = categories.ids.tolist()
    if len(ids) > VOID - 1:
        raise InputError(f"there are {len(ids)} categories, but VOC masks hold at most 254; merge some of them")
    fits = all(0 < each < VOID for each in ids) and ids == sorted(ids)
    return {each: each if fits else position for position, each in enumerate(ids, 1)}


def write_class_list(target: Path, categories: Categories, values: Mapping[int, int]) -> None:
    """Writes `class_names.txt`, unless the classes are those of VOC: line number v (from 0) is value v."""
    if categories.names == CLASSES and list(values.values()) == list(range(1, len(CLASSES) + 1)):
        return
    lines = ["_background_"] + [""] * max(values.values(), default=0)
    for each in categories:
        if each.name != each.name.strip() or not each.name.isprintable() or not each.name:
            raise InputError(f"the class name {each.name!r} is no line of text; rename the class")
        lines[values[each.id]] = each.name
    with atomic_write(target / "class_names.txt") as temporary:
        temporary.write_text("\n".join([*lines, ""]), encoding="utf-8", newline="\n")


def collect(
    sample: Sample,
    lists: dict[str, list[str]],
    further: list[bytes],
    *,
    boxes: bool,
    masks: bool,
    header: bool = False,
) -> None:
    """Adds a sample to its lists of images, and what VOC has no place for to the lines of `metadata.jsonl`.

    Args:
        sample: An image.
        lists: Names of images by list.
        further: The lines.
        boxes: Whether it has an XML file.
        masks: Whether it has pictures.
        header: Keep what was in its XML file, too, as there is none.

    Raises:
        InputError: Its name is no line of text.
    """
    if "\n" in sample.name or "\r" in sample.name or ('"' in sample.name and any(map(str.isspace, sample.name))):
        raise InputError(f"the image {sample.name!r} cannot stand in a list of images; rename it")
    own = sample.extra.get("voc")
    sets = own.get("sets") if isinstance(own, dict) else None
    split = sample.extra.get("split")
    if not isinstance(sets, list) or not all(isinstance(each, str) for each in sets):
        sets = default_sets(split if isinstance(split, str) and split else None, boxes=boxes, masks=masks)
    for each in sets:
        lists.setdefault(check_relative(each, f"{sample.name}: list of images"), []).append(sample.name)
    extra = {key: value for key, value in sample.extra.items() if key not in {"split", "voc"}}
    if own is not None and (header or not isinstance(own, dict)):
        rest = {key: value for key, value in own.items() if key != "sets"} if isinstance(own, dict) else own
        extra |= {"voc": rest} if rest else {}
    if extra:
        further.append(msgspec.json.encode({"name": sample.name, "extra": extra}))


def write_lists(target: Path, lists: Mapping[str, Sequence[str]], further: Sequence[bytes]) -> None:
    """Writes `ImageSets` and `metadata.jsonl`."""
    for name, members in lists.items():
        lines = [f'"{each}"' if any(character.isspace() for character in each) else each for each in members]
        with atomic_write(target / "ImageSets" / f"{name}.txt") as temporary:
            temporary.write_text("\n".join([*lines, ""]), encoding="utf-8", newline="\n")
    if further:
        with atomic_write(target / "metadata.jsonl") as temporary:
            temporary.write_bytes(b"\n".join(further) + b"\n")


def painted(sample: Sample, segments: Segments, overlap: Overlap) -> NDArray[np.int32]:
    """The label map of a sample.

    Raises:
        InputError: Segments overlap, or it is a volume.
    """
    if len(segments.size) != 2:
        raise InputError(f"{sample.name} is a volume, which VOC cannot hold; write label_images instead")
    try:
        return segments.label_map(overlap)
    except InputError as error:
        raise InputError(f"{sample.name}: {error}") from error


def _write_sample(
    sample: Sample,
    file: Path,
    target: Path,
    categories: Categories,
    values: Mapping[int, int],
    kind: str,
    overlap: Overlap,
    one_based: bool | None,
) -> tuple[bool, bool]:
    """Writes the annotation of a sample; gives whether there is XML and whether there are pictures."""
    segments = sample.segments
    if segments is None:
        return False, False
    categories.indices(segments.category)
    masks = kind != "detection" and segments.geometry is not None
    ids = None
    numbers = np.zeros(len(segments), np.int64)
    if kind == "semantic" and not masks and len(segments):
        raise InputError(f"{sample.name} has no outlines, but pictures of classes need them; say kind='detection'")
    if masks:
        ids = painted(sample, segments, overlap)
        table = np.array([VOID, 0, *(values[int(each)] for each in segments.category)])
        write_palette(target / "SegmentationClass" / f"{sample.name}.png", table[ids + 1])
        if kind == "semantic":
            return False, True
        try:
            numbers = mask_numbers(segments, ids, VOID - 1)
        except InputError as error:
            raise InputError(f"{sample.name}: {error}") from error
        table = np.array([VOID, 0, *numbers])
        write_palette(target / "SegmentationObject" / f"{sample.name}.png", table[ids + 1])
    if len(segments) and not segments.has_boxes:
        raise InputError(f"{sample.name} has tags of the whole image, without boxes; write image_folder instead")
    own = sample.extra.get("voc")
    header: dict[str, Any] = dict(own) if isinstance(own, dict) else {}
    header.pop("sets", None)
    counted = bool(header.pop("one_based", False)) if one_based is None else one_based
    header.setdefault("segmented", str(int(masks)))
    listed = _objects(segments, categories, numbers, ids)
    size = image_size(file)
    annotation = Annotation(file.relative_to(target / "JPEGImages").as_posix(), (size[-2], size[-1]), listed, header)
    with atomic_write(target / "Annotations" / f"{sample.name}.xml") as temporary:
        temporary.write_text(annotation_text(annotation, one_based=counted), encoding="utf-8", newline="\n")
    return True, masks


def _objects(
    segments: Segments, categories: Categories, numbers: NDArray[np.int64], ids: NDArray[np.int32] | None
) -> list[VocObject]:
    columns = {name: column.tolist() for name, column in segments.attributes.items()}
    if ids is not None and segments.attributes.get("label", numbers).dtype.kind in "iu":
        columns.pop("label", None)
    # Readers link masks and boxes by number and overlap; where that would not do, the number is written out.
    if ids is not None and not linked_by_number(segments, ids, numbers):
        columns["label"] = numbers.tolist()
    boxes = segments.boxes().tolist() if len(segments) else []
    return [
        VocObject(
            categories.by_id(int(segments.category[i])).name,
            (boxes[i][0], boxes[i][1], boxes[i][2], boxes[i][3]),
            None if segments.score is None else float(segments.score[i]),
            {name: column[i] for name, column in columns.items()},
        )
        for i in range(len(segments))
    ]
