"""Pascal VOC: boxes in one XML an image, pictures of classes and of objects, and lists of images.

::

    Annotations/NAME.xml            boxes, flags, parts
    SegmentationClass/NAME.png      palette picture: values are classes, 255 is void
    SegmentationObject/NAME.png     palette picture: values are objects
    JPEGImages/NAME.jpg             the images
    ImageSets/Main/train.txt        names of images; also in ImageSets/Segmentation, Layout ...
    labelmap.txt or class_names.txt the classes, where they are not the 20 of VOC

Any of them may be missing; a folder of XML files will do, with images beside them or in a folder nearby. Images that
have neither XML nor masks are samples without annotation. A devkit with several years is opened as one.

Boxes are taken as they stand: x0 = xmin, x1 = xmax. That is how CVAT, labelImg and most programs write them, and how
most read those of VOC itself, which count pixels from 1 and name the last one. For these, ``one_based=True`` gives
boxes that fit the masks to the pixel (x0 = xmin - 1, x1 = xmax); `everymask.metrics.voc` says what that means for
scores.

How masks and boxes become the same objects is said at `everymask.formats.voc_masks.combine`. Of `Sample.extra`,
``split`` is the list that an image is in, and ``voc`` what its XML holds besides the objects.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from everymask.errors import InputError
from everymask.formats.description import Description, Feature
from everymask.formats.exporting import check_relative
from everymask.formats.images import image_size, read_image
from everymask.formats.joining import PARTS, join_parts
from everymask.formats.listing import list_images, natural_key
from everymask.formats.metadata import read_extras
from everymask.formats.places import FOLDERS, candidates, check_missing, images_by_stem
from everymask.formats.voc_layout import (
    Layout,
    annotation_files,
    default_sets,
    find_classes,
    find_layout,
    find_roots,
    mask_files,
    read_sets,
    split_of,
)
from everymask.formats.voc_masks import Palette, combine, object_columns
from everymask.formats.voc_results import read_predictions, recognise_predictions
from everymask.formats.voc_write import write
from everymask.formats.voc_xml import Annotation, VocObject, read_annotation
from everymask.types import Categories, Dataset, Sample, Segments, Task

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["DESCRIPTION", "open_layout", "read", "read_predictions", "recognise", "recognise_predictions", "write"]

DESCRIPTION = Description(
    summary="Pascal VOC: boxes with flags in XML, pictures of classes and objects, lists of images",
    layout="Annotations/ with XML files, or SegmentationClass/, beside JPEGImages/; or VOCdevkit/VOC2012",
    tasks=frozenset({Task.DETECTION, Task.INSTANCE, Task.SEMANTIC}),
    carries=frozenset(
        {
            Feature.BACKGROUND,
            Feature.EMPTY,
            Feature.CLASSES,
            Feature.MASKS,
            Feature.HOLES,
            Feature.PARTS,
            Feature.OBJECTS,
            Feature.BOXES,
            Feature.OWN_BOXES,
            Feature.SCORES,
            Feature.VOID,
            Feature.UNANNOTATED,
            Feature.EXTRA,
        }
    ),
)

_KINDS = ("detection", "instance", "semantic")
_TOLERANCE = 1.0
"""Pixels by which boxes may lie outside their image: one, for those who count from 0 and those who count from 1."""


def recognise(path: Path) -> bool:
    """Whether `path` is a VOC data set or a devkit of several; by names and the beginning of one XML file."""
    try:
        return bool(find_roots(path))
    except OSError:
        return False


def read(
    path: Path,
    *,
    split: str | None = None,
    kind: str | None = None,
    classes: Sequence[str] | None = None,
    one_based: bool = False,
    images: str | os.PathLike[str] | None = None,
    missing_images: str = "error",
) -> Dataset:
    """Opens a data set; reads lists of names, of XML files at most the names of classes, and no pixels.

    Args:
        path: The folder with `Annotations` or masks, a folder of XML files, or a devkit.
        split: A list of images such as ``"train"``: of `ImageSets/Segmentation` where there are masks and boxes are
            not asked for, else of `ImageSets/Main`; or ``"Layout/train"``. Without it, all images.
        kind: Only images with ``"detection"`` (boxes; masks are left aside), ``"instance"`` (object masks) or
            ``"semantic"`` (class masks; objects are left aside). By default each image with all that it has.
        classes: Names of the classes, the first for value 1 in masks, if they are neither those of VOC nor listed.
        one_based: Whether boxes count pixels from 1 and include the last one, as those of VOC itself do.
        images: The folder of the images, if they are in none of the usual places.
        missing_images: ``"error"``, ``"keep"`` samples whose image is absent, or ``"skip"`` them.

    Raises:
        InputError: There is no such list, images are missing, names lead out of the folder, or lists are malformed.
    """
    roots = find_roots(path)
    if not roots:
        raise InputError(f"{path} is no VOC data set; expected {DESCRIPTION.layout}")
    options: dict[str, Any] = {"split": split, "kind": kind, "one_based": one_based}
    options |= {"images": images, "missing": missing_images}
    parts: dict[str, Dataset] = {}
    for name, layout in roots.items():
        found = find_classes(layout, classes, _siblings(layout.root))
        several = len(roots) > 1
        parts[name] = open_layout(layout, *found, "voc", keep_sets=several, skip_lacking=several, **options)
    parts = {name: each for name, each in parts.items() if len(each) or len(parts) == 1} or parts
    joined = next(iter(parts.values())) if len(parts) == 1 else join_parts(parts, path)
    if split is not None and not len(joined):
        raise InputError(f"{path} has no list of images {split!r} with an image in it")
    return joined


def _siblings(root: Path) -> list[Layout]:
    """The other parts of the data set that `root` is a part of, so that all have the same classes."""
    if root.name.lower() not in PARTS:
        return []
    beside = (Path(each.path) for each in os.scandir(root.parent) if each.is_dir() and each.name.lower() in PARTS)
    return [found for each in sorted(beside) if each != root and (found := find_layout(each)) is not None]


def open_layout(
    layout: Layout,
    categories: Categories,
    palette: Palette,
    format: str,
    *,
    split: str | None,
    kind: str | None,
    one_based: bool,
    images: str | os.PathLike[str] | None,
    missing: str,
    keep_sets: bool = False,
    skip_lacking: bool = False,
) -> Dataset:
    """Opens one data set of known layout and classes, for this format and for `segmentation_mask`.

    Args:
        layout: Its folders.
        categories: Its classes.
        palette: What the pictures of classes mean.
        format: Name of the format.
        split: See `read`.
        kind: See `read`.
        one_based: See `read`.
        images: See `read`.
        missing: See `read`, `missing_images`.
        keep_sets: Note the lists of each image, even if its split tells them.
        skip_lacking: Without the list `split`, there is no sample, instead of an error.

    Raises:
        InputError: See `read`.
    """
    check_missing(missing)
    if kind not in {None, *_KINDS}:
        raise InputError(f"kind must be one of {', '.join(_KINDS)}, got {kind!r}")
    xml, class_masks, object_masks = annotation_files(layout), mask_files(layout.classes), mask_files(layout.objects)
    annotated = {*xml, *class_masks, *object_masks}
    folder, files = _images(layout, annotated, images)
    sets = read_sets(layout, annotated | set(files))
    stems = _chosen(layout, sets, split, kind, skip_lacking=skip_lacking)
    if stems is None:
        listed = {stem for names in sets.values() for stem in names}
        # Images elsewhere may belong to something else.
        own = set(files) if images is not None or folder.is_relative_to(layout.root.resolve()) else set()
        stems = sorted(annotated | listed | own, key=natural_key)
    wanted: Mapping[str | None, Mapping[str, Path]] = {
        "detection": xml,
        "instance": object_masks,
        "semantic": class_masks,
    }
    if kind is not None:
        stems = [stem for stem in stems if stem in wanted[kind]]
    membership: dict[str, list[str]] = {}
    for name, names in sets.items():
        for stem in names:
            membership.setdefault(stem, []).append(name)
    rows = []
    absent = []
    for stem in stems:
        file = folder / files[stem] if stem in files else None
        if file is None and stem in xml:
            file = _named_image(xml[stem], folder)
        if file is None:
            absent.append(stem)
            if missing == "skip":
                continue
        row = _Row(stem, file or folder / f"{stem}.jpg", xml.get(stem), class_masks.get(stem), object_masks.get(stem))
        rows.append(replace(row, sets=tuple(membership.get(stem, ())), present=file is not None))
    if absent and missing == "error":
        shown = ", ".join(absent[:3]) + (" ..." if len(absent) > 3 else "")
        raise InputError(
            f"{layout.root}: {len(absent)} of {len(stems)} images are missing in {folder}: {shown}; say where they are "
            "(option images), or --skip-missing to leave them out"
        )
    # The name of a sample is that of its image.
    names = [row.image.relative_to(folder).with_suffix("").as_posix() for row in rows]
    extras = read_extras([layout.root], names, split or layout.root.name)
    reader = _Reader(layout, names, rows, extras, categories, palette, kind, one_based, keep_sets)
    tasks: set[Task] = set()
    tasks |= {Task.DETECTION} if xml and kind in {None, "detection"} else set()
    tasks |= {Task.INSTANCE} if object_masks and kind in {None, "instance"} else set()
    tasks |= {Task.SEMANTIC} if class_masks and kind != "detection" else set()
    return Dataset(reader.sample, len(rows), categories, frozenset(tasks), format, layout.root)


def _images(
    layout: Layout, annotated: set[str], given: str | os.PathLike[str] | None
) -> tuple[Path, dict[str, str]]:  # fmt: skip
    """The folder of images, and its files by their paths without suffix."""
    if given is not None and not Path(given).is_dir():
        raise InputError(f"images: {given} is no folder; expected the folder of the images")
    folders = [Path(given)] if given is not None else candidates(layout.root)
    folder, hits = images_by_stem(layout.root, sorted(annotated, key=natural_key), folders)
    if not hits:
        root = layout.root.resolve()
        folder = next((each for each in folders if each.name in FOLDERS and each.parent == root), folder)
    nested = folder.resolve() != layout.root.resolve() and any("/" in stem for stem in annotated)
    below = list_images(folder, recursive=nested)
    return images_by_stem(layout.root, [each.rpartition(".")[0] for each in below], [folder])


def _chosen(
    layout: Layout, sets: Mapping[str, Sequence[str]], split: str | None, kind: str | None, *, skip_lacking: bool
) -> Sequence[str] | None:
    """The names in the list that `split` means; None for all.

    Raises:
        InputError: There is no such list.
    """
    if split is None:
        return None
    masks = kind != "detection" and (layout.classes is not None or layout.objects is not None)
    order = ["Segmentation", "Main"] if masks else ["Main", "Segmentation"]
    for name in (split, *(f"{each}/{split}" for each in order), *(each for each in sets if each.endswith(f"/{split}"))):
        if name in sets:
            return sets[name]
    if skip_lacking:
        return []
    listed = ", ".join(sets) or "no lists in ImageSets"
    raise InputError(f"{layout.root} has no list of images {split!r}; it has {listed}")


def _named_image(xml: Path, folder: Path) -> Path | None:
    """The image that an XML file names, if it is there."""
    name = read_annotation(xml).filename
    return folder / name if name and (folder / check_relative(name, f"{xml}: filename")).is_file() else None


@dataclass(frozen=True)
class _Row:
    """The files of one image."""

    stem: str
    image: Path
    xml: Path | None
    classes: Path | None
    objects: Path | None
    sets: tuple[str, ...] = ()
    present: bool = True


@dataclass(frozen=True)
class _Reader:
    """Makes the samples of a data set."""

    layout: Layout
    names: list[str]
    rows: list[_Row]
    extras: dict[str, dict[str, Any]]
    categories: Categories
    palette: Palette
    kind: str | None
    one_based: bool
    keep_sets: bool

    def sample(self, index: int) -> Sample:
        row, name = self.rows[index], self.names[index]
        annotation = None
        if row.xml is not None:
            annotation = read_annotation(row.xml, one_based=self.one_based)
            if annotation.filename:
                check_relative(annotation.filename, f"{row.xml}: filename")
        segments: Callable[[], Segments] | None = None
        if row.xml is not None or row.classes is not None or row.objects is not None:
            segments = partial(self.segments, row, annotation)
        extra, further = self._extra(row, annotation), self.extras.get(name, {})
        if isinstance(kept := further.get("voc"), dict):
            extra["voc"] = {**kept, **extra.get("voc", {})}
        return Sample(name, partial(read_image, row.image), segments, row.image, {**further, **extra})

    def _extra(self, row: _Row, annotation: Annotation | None) -> dict[str, Any]:
        header = dict(annotation.header) if annotation is not None else {}
        masks = row.classes is not None or row.objects is not None
        if header.get("segmented") == str(int(masks)):
            del header["segmented"]
        if self.one_based and annotation is not None:
            header["one_based"] = True
        split = split_of(row.sets)
        usual = sorted(row.sets) == sorted(default_sets(split, boxes=row.xml is not None, masks=masks))
        if row.sets and (self.keep_sets or not usual):
            header["sets"] = list(row.sets)
        extra: dict[str, Any] = {} if split is None else {"split": split}
        return extra | {"voc": header} if header else extra

    def segments(self, row: _Row, annotation: Annotation | None) -> Segments:
        listed = [] if annotation is None else annotation.objects
        size = image_size(row.image) if row.present else None
        if annotation is not None and annotation.size is not None:
            if size is not None and size != annotation.size:
                raise InputError(
                    f"{row.xml} says height {annotation.size[0]} and width {annotation.size[1]}, but {row.image} has "
                    f"{size[0]} and {size[1]}; correct the XML, or the image (is it turned by EXIF?)"
                )
            size = annotation.size
        if size is None:
            mask = row.objects or row.classes
            if mask is None:
                raise InputError(f"{row.xml} has no <size>, and its image {row.image} is absent; add one of them")
            size = image_size(mask)
        if row.xml is not None:
            _check(listed, size, self.categories, row.xml)
        pictures = (row.classes, None if self.kind == "semantic" else row.objects)
        if self.kind == "detection" or pictures == (None, None):
            return self._boxes(listed, size, row)
        return combine(pictures, self.palette, self.categories, listed, size, row.image)

    def _boxes(self, listed: Sequence[VocObject], size: tuple[int, ...], row: _Row) -> Segments:
        for number, each in enumerate(listed, 1):
            if each.box is None:
                raise InputError(f"{row.xml}: object {number} ({each.name}) has no bndbox; add it or remove the object")
        columns, score = object_columns(listed, len(listed))
        boxes = np.array([each.box for each in listed], np.float64).reshape(-1, 4)
        category = [self.categories.by_name(each.name).id for each in listed]
        return Segments(size, category, score=score, box=boxes, attributes=columns)


def _check(listed: Sequence[VocObject], size: tuple[int, ...], categories: Categories, path: Path) -> None:
    """Makes sure that classes are known and boxes lie in the image.

    Raises:
        InputError: One does not; the message names the object.
    """
    height, width = size[-2:]
    known = set(categories.names)
    for number, each in enumerate(listed, 1):
        place = f"{path}: object {number} ({each.name})"
        if each.name not in known:
            raise InputError(
                f"{place} is of none of the classes {', '.join(categories.names[:8])}"
                f"{' ...' if len(known) > 8 else ''}; add it to the list of classes, or correct its name"
            )
        if each.box is None:
            continue
        x0, y0, x1, y1 = each.box
        if min(x0, y0) < -_TOLERANCE or x1 > width + _TOLERANCE or y1 > height + _TOLERANCE:
            raise InputError(
                f"{place} has the box {x0:g}, {y0:g}, {x1:g}, {y1:g}, which lies outside the image of width {width} "
                f"and height {height}; correct the box"
            )
