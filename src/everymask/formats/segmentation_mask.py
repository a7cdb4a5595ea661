"""CVAT's "Segmentation mask 1.1": the layout of Pascal VOC without XML, with a list of colours.

::

    labelmap.txt                         name:red,green,blue:parts:actions, a line for each class
    SegmentationClass/NAME.png           each pixel in the colour of its class
    SegmentationObject/NAME.png          each object in a colour of its own, from the VOC colour map
    JPEGImages/NAME.jpg                  the images, if they were exported
    ImageSets/Segmentation/default.txt   names of images

Pictures may be RGB or have a palette; what counts is the colour. See `everymask.formats.voc_layout.read_labelmap` for
the ids of the classes, and `everymask.formats.voc_masks.combine` for how objects get their classes. Data sets with this
list *and* XML files are of the format `everymask.formats.voc`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from everymask.errors import InputError
from everymask.files import atomic_write
from everymask.formats.description import Description, Feature
from everymask.formats.exporting import copy_image, nothing_annotated
from everymask.formats.raster import write as write_raster
from everymask.formats.voc import open_layout
from everymask.formats.voc_layout import RESERVED, find_layout, read_labelmap
from everymask.formats.voc_masks import VOID, mask_numbers, number_colours, write_palette
from everymask.formats.voc_write import collect, kind_of, painted, write_lists
from everymask.types import Categories, Dataset, Task
from everymask.types.segments import Overlap

if TYPE_CHECKING:
    from numpy.typing import NDArray

DESCRIPTION = Description(
    summary='CVAT\'s "Segmentation mask 1.1": coloured pictures of classes and of objects, and a list of colours',
    layout="labelmap.txt beside SegmentationClass/ and SegmentationObject/",
    tasks=frozenset({Task.INSTANCE, Task.SEMANTIC}),
    carries=frozenset(
        {
            Feature.BACKGROUND,
            Feature.CLASSES,
            Feature.MASKS,
            Feature.HOLES,
            Feature.PARTS,
            Feature.OBJECTS,
            Feature.VOID,
            Feature.UNANNOTATED,
            Feature.COLOURS,
            Feature.EXTRA,
        }
    ),
    attributes=frozenset({"label"}),
)

_HIGHEST = 2**24 - 1
"""The highest number of an object: that of white."""


def recognise(path: Path) -> bool:
    """Whether `path` has a list of colours and pictures of classes or objects, but no XML files; by names alone."""
    try:
        if not (path / "labelmap.txt").is_file():
            return False
        layout = find_layout(path)
    except OSError:
        return False
    return layout is not None and layout.annotations is None


def read(
    path: Path,
    *,
    split: str | None = None,
    kind: str | None = None,
    images: str | os.PathLike[str] | None = None,
    missing_images: str = "error",
) -> Dataset:
    """Opens a data set; reads lists of names and colours, and no pixels.

    Args:
        path: The folder of `labelmap.txt`.
        split: A list of images such as ``"train"``, in `ImageSets/Segmentation`. Without it, all images.
        kind: Only images with ``"instance"`` (object masks) or ``"semantic"`` (class masks; objects are left aside).
        images: The folder of the images, if they are in none of the usual places.
        missing_images: ``"error"``, ``"keep"`` samples whose image is absent, or ``"skip"`` them.

    Raises:
        InputError: There is no such list, images are missing, or `labelmap.txt` is malformed. When a sample is read:
            a colour is no class.
    """
    layout = find_layout(path) if path.is_dir() else None
    if layout is None or not (path / "labelmap.txt").is_file():
        raise InputError(f"{path} holds no segmentation masks of CVAT; expected {DESCRIPTION.layout}")
    if kind not in {None, "instance", "semantic"}:
        raise InputError(f"kind must be 'instance' or 'semantic', got {kind!r}")
    categories, palette = read_labelmap(path / "labelmap.txt")
    return open_layout(
        layout,
        categories,
        palette,
        "segmentation_mask",
        split=split,
        kind=kind,
        one_based=False,
        images=images,
        missing=missing_images,
    )


def write(
    dataset: Dataset, target: Path, *, kind: str | None = None, overlap: Overlap = "error", link_images: bool = False
) -> None:
    """Writes a data set that CVAT can import; reading it gives the same masks and classes.

    Args:
        dataset: Segments with outlines.
        target: The folder.
        kind: ``"instance"`` or ``"semantic"`` (no pictures of objects). By default semantic if that is all the data
            set is for.
        overlap: What happens where segments overlap: ``"error"``, ``"score"`` or ``"last"``; see `Segments.label_map`.
        link_images: Make hard links of the image files instead of copies.

    Raises:
        InputError: Segments overlap or have no outlines, or a class name cannot be written.
    """
    if kind not in {None, "instance", "semantic"}:
        raise InputError(f"kind must be 'instance' or 'semantic', got {kind!r}")
    semantic = (kind or kind_of(dataset)) == "semantic"
    colours = class_colours(dataset.categories)
    _write_labelmap(target, dataset.categories, colours)
    position = {each.id: index for index, each in enumerate(dataset.categories, 1)}
    # Background, the classes in order, void.
    table = np.array([(0, 0, 0), *colours.values(), number_colours(np.array(VOID))], np.uint8)
    few = len(table) <= 256
    lists: dict[str, list[str]] = {}
    further: list[bytes] = []
    if all(sample.read_segments is None for sample in dataset):
        raise nothing_annotated("segmentation_mask")
    for sample in dataset:
        copy_image(sample, target / "JPEGImages", link=link_images, listed=True)
        segments = sample.segments
        if segments is not None:
            dataset.categories.indices(segments.category)
            if segments.geometry is None and len(segments):
                raise InputError(f"{sample.name} has boxes or tags only, which masks cannot hold; write voc or coco")
            ids = np.zeros(segments.size, np.int32) if segments.geometry is None else painted(sample, segments, overlap)
            rows = np.array([len(table) - 1, 0, *(position[int(each)] for each in segments.category)])
            file = target / "SegmentationClass" / f"{sample.name}.png"
            if few:
                palette = np.zeros((256, 3), np.uint8)
                palette[: len(table)] = table
                write_palette(file, rows[ids + 1], palette)
            else:
                write_raster(file, table[rows[ids + 1]])
            if not semantic:
                numbers = np.array([VOID, 0, *mask_numbers(segments, ids, _HIGHEST)])
                file = target / "SegmentationObject" / f"{sample.name}.png"
                if numbers.max() <= VOID:
                    write_palette(file, numbers[ids + 1])
                else:
                    write_raster(file, number_colours(numbers)[ids + 1])
        collect(sample, lists, further, boxes=False, masks=segments is not None, header=True)
    write_lists(target, lists, further)


def class_colours(categories: Categories) -> dict[int, NDArray[np.uint8]]:
    """A colour for each category id: its own, else a free one of the VOC colour map; never black or that of void."""
    used = {(0, 0, 0), tuple(number_colours(np.array(VOID)).tolist())}
    wanted = {each.colour for each in categories}
    enough = np.arange(1, 2 * len(categories) + 3)
    free = (colour for colour in map(tuple, number_colours(enough).tolist()) if colour not in wanted)
    found: dict[int, NDArray[np.uint8]] = {}
    for each in categories:
        colour = each.colour
        while colour is None or colour in used:
            colour = next(free)
        used.add(colour)
        found[each.id] = np.array(colour, np.uint8)
    return found


def _write_labelmap(target: Path, categories: Categories, colours: Mapping[int, NDArray[np.uint8]]) -> None:
    lines = ["# label:color_rgb:parts:actions", "background:0,0,0::"]
    for each in categories:
        plain = each.name.isprintable() and each.name == each.name.strip() and each.name
        if not plain or ":" in each.name or each.name.startswith("#") or each.name.casefold() in RESERVED:
            raise InputError(f"the class name {each.name!r} cannot be written to labelmap.txt; rename the class")
        lines.append(f"{each.name}:{','.join(map(str, colours[each.id]))}::")
    with atomic_write(target / "labelmap.txt") as temporary:
        temporary.write_text("\n".join([*lines, ""]), encoding="utf-8", newline="\n")
