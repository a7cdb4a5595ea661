"""Cityscapes: pictures of streets with every pixel labelled, and instances of people and vehicles.

Read are label images (``*_instanceIds.png``, else ``*_labelIds.png``, else ``*_labelTrainIds.png``) or the polygons
they were made of. In ``instanceIds.png`` a value from 1000 on is an instance (label * 1000 + number); below, it is a
label: a segment of stuff, or a group of things without a line between them, which is marked as a crowd. "unlabeled" is
void.

Each instance keeps its value as the attribute ``instance_id``; of a polygon, every field of its JSON object is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import msgspec
import numpy as np

from everymask.errors import InputError, unknown_name
from everymask.formats.checks import check_same_size
from everymask.formats.cityscapes_files import TRUTHS, Frame, core_of, find_frames, looks_like_cityscapes
from everymask.formats.cityscapes_labels import BY_ID, BY_NAME, INSTANCES, LABELS, UNLABELED, LabelSet, categories
from everymask.formats.cityscapes_write import instance_ids, write
from everymask.formats.columns import attribute_column
from everymask.formats.description import Description, Feature
from everymask.formats.images import image_size, read_image, read_labels
from everymask.formats.listing import list_images
from everymask.formats.places import check_missing
from everymask.types import Categories, Dataset, LabelMap, Polygon, Polygons, Sample, Segments, Task

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["DESCRIPTION", "read", "read_predictions", "recognise", "recognise_predictions", "write"]

DESCRIPTION = Description(
    summary="Cityscapes: label and instance images, or polygons, of street scenes",
    layout="leftImg8bit/ with gtFine/, or any folders of files called like aachen_000000_000019_gtFine_labelIds.png",
    tasks=frozenset({Task.SEMANTIC, Task.INSTANCE, Task.PANOPTIC, Task.DETECTION}),
    carries=frozenset(
        {
            Feature.CLASSES,
            Feature.MASKS,
            Feature.HOLES,
            Feature.PARTS,
            Feature.OBJECTS,
            Feature.CROWDS,
            Feature.VOID,
            Feature.UNANNOTATED,
            # Only labels of Cityscapes can be written, and these have their own ids, colours and groups.
            Feature.IDS,
            Feature.COLOURS,
            Feature.SUPERCATEGORIES,
            Feature.STUFF,
        }
    ),
    attributes=frozenset({"instance_id"}),
)

_GEOMETRIES = ("masks", "polygons")


class JsonPolygons(msgspec.Struct):
    """A ``*_polygons.json``."""

    imgHeight: int
    imgWidth: int
    objects: list[dict[str, Any]]


_POLYGONS = msgspec.json.Decoder(JsonPolygons)


# -- reading ---------------------------------------------------------------------------------------------------------


def recognise(path: Path) -> bool:
    """Whether `path` is a folder with files that are called like those of Cityscapes; by a few names."""
    try:
        return path.is_dir() and looks_like_cityscapes(path)
    except OSError:
        return False


def read(
    path: Path,
    *,
    split: str | None = None,
    labels: LabelSet = "ids",
    geometry: str | None = None,
    annotations: str | None = None,
    missing_images: str = "keep",
) -> Dataset:
    """Opens Cityscapes, or a part of it; reads names only.

    Args:
        path: The folder above ``leftImg8bit`` and ``gtFine``, one inside them, or any folder of such files.
        split: The part, such as ``"val"``; by default all, each sample with its part in front of its name.
        labels: ``"ids"`` for all labels under their ids, ``"train"`` for the 19 that are evaluated, under their
            training ids 0..18; then all else is void.
        geometry: ``"masks"`` for the label images, or where there are none the polygons painted one over the other as
            cityscapesScripts does; ``"polygons"`` for the polygons as they were drawn. By default polygons only if
            there is nothing else.
        annotations: ``"gtFine"`` or ``"gtCoarse"``; by default the fine ones, if there are any.
        missing_images: ``"keep"`` annotations whose image is absent (reading it is an error), which suits an
            evaluation; ``"skip"`` them; or take them for an ``"error"``.

    Raises:
        InputError: There are no such files, an option has no good value, or two files are of the same image.
    """
    if not path.is_dir():
        raise InputError(f"{path} is a file, but Cityscapes is a folder; name the folder")
    if labels not in get_args(LabelSet):
        raise unknown_name("labels", labels, get_args(LabelSet))
    if geometry is not None and geometry not in _GEOMETRIES:
        raise unknown_name("geometry", geometry, _GEOMETRIES)
    check_missing(missing_images)
    frames = find_frames(path, annotations)
    parts = sorted({each.split for each in frames} - {""})
    if split is not None:
        if split not in parts:
            raise InputError(f"{path} has no part {split!r}; it has {', '.join(parts) or 'no parts at all'}")
        frames = [each for each in frames if each.split == split]
    frames = _with_images(frames, missing_images, path)
    kinds = {kind for each in frames for kind in each.truths}
    drawn = geometry == "masks" or (geometry is None and (kinds != {"polygons"} or labels == "train"))
    if not drawn and labels == "train":
        raise InputError(
            f"{path}: polygons of labels that are not evaluated hide others, so labels='train' goes with "
            "geometry='masks', which draws them"
        )
    known = categories(labels, drawn=drawn)
    reader = _Reader(frames, labels, drawn, known, joined=split is None)
    told_apart = any(set(each.truths) & {"instanceIds", "polygons"} for each in frames if reader.truth(each))
    tasks = DESCRIPTION.tasks if told_apart else frozenset({Task.SEMANTIC})
    return Dataset(reader.sample, len(frames), known, tasks, "cityscapes", path)


def _with_images(frames: list[Frame], missing_images: str, path: Path) -> list[Frame]:
    """The frames without those whose image is absent and may not be.

    Raises:
        InputError: Images are missing and none may.
    """
    absent = [each for each in frames if each.image is None]
    if missing_images == "error" and absent:
        shown = ", ".join(each.core for each in absent[:3]) + (" ..." if len(absent) > 3 else "")
        raise InputError(
            f"{path}: {len(absent)} of {len(frames)} images are missing: {shown}; add them, or say --skip-missing to "
            "leave them out"
        )
    return [each for each in frames if each.image is not None] if missing_images == "skip" else frames


@dataclass(frozen=True)
class _Reader:
    """Makes the samples."""

    frames: list[Frame]
    labels: LabelSet
    drawn: bool
    categories: Categories
    joined: bool

    def sample(self, index: int) -> Sample:
        frame = self.frames[index]
        name = f"{frame.split}/{frame.name}" if self.joined and frame.split else frame.name
        truth = self.truth(frame)
        extra: dict[str, Any] = {"split": frame.split} if frame.split else {}
        if truth is not None and truth[0] in {"labelIds", "labelTrainIds"}:
            extra["instances"] = False
        segments: Callable[[], Segments] | None = None if truth is None else partial(self.segments, frame, *truth)
        return Sample(name, partial(self.image, frame), segments, frame.image, extra)

    def truth(self, frame: Frame) -> tuple[str, Path] | None:
        """Kind and path of the annotation that is read."""
        kinds = [each for each in TRUTHS if each in frame.truths and (self.drawn or each == "polygons")]
        return (kinds[0], frame.truths[kinds[0]]) if kinds else None

    def image(self, frame: Frame) -> NDArray[Any]:
        if frame.image is None:
            raise InputError(
                f"{frame.core} has an annotation, but no image; add {frame.core}_leftImg8bit.png, or say --skip-missing"
            )
        return read_image(frame.image)

    def segments(self, frame: Frame, kind: str, path: Path) -> Segments:
        if not self.drawn:
            segments = self.outlines(path)
        elif kind == "polygons":
            pixels = instance_ids(self.outlines(path), BY_ID, "last").astype(np.int32)
            segments = self.masks("instanceIds", pixels, path)
        else:
            segments = self.masks(kind, np.ascontiguousarray(read_labels(path)), path)
        if frame.image is not None:
            check_same_size(image_size(frame.image), segments.size, frame.image, path)
        return segments

    def masks(self, kind: str, pixels: NDArray[Any], path: Path) -> Segments:
        """Segments of a label image: one for each value, in increasing order."""
        from everymask.ops.label_tables import distinct, renumber

        values = distinct(pixels).astype(np.int64)
        if kind == "labelTrainIds":
            numbers = {each.train_id: each.id for each in LABELS if not each.ignored} | {255: UNLABELED}
        else:
            numbers = {each.id: each.id for each in LABELS if each.id >= 0}
            if kind == "instanceIds":
                numbers |= {v: v // INSTANCES for v in values.tolist() if _is_instance(v)}
        ids = np.array([_known(v, numbers, path) for v in values.tolist()], np.int64)
        category = np.array([self.category(each) for each in ids.tolist()], np.int64)
        kept = category >= 0
        compact = renumber(pixels, values, np.where(kept, np.cumsum(kept), -1))
        things = np.array([BY_ID[each].has_instances for each in ids[kept].tolist()], bool)
        columns = {"instance_id": values[kept]} if kind == "instanceIds" else {}
        crowd = things & (values[kept] < INSTANCES)
        return Segments(compact.shape, category[kept], LabelMap(compact), crowd=crowd, attributes=columns)

    def category(self, identifier: int) -> int:
        """The id in the data set of a label, -1 for void."""
        label = BY_ID[identifier]
        if self.labels == "train":
            return -1 if label.ignored else label.train_id
        return -1 if identifier == UNLABELED else identifier

    def outlines(self, path: Path) -> Segments:
        """Segments of the polygons in a file, in its order."""
        try:
            content = _POLYGONS.decode(path.read_bytes())
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise InputError(f"{path}: {error}; expected imgHeight, imgWidth and objects") from error
        rings: list[tuple[Polygon]] = []
        numbers: list[int] = []
        crowd: list[bool] = []
        for position, each in enumerate(content.objects):
            place = f"{path}: $.objects[{position}]"
            name = each.get("label")
            bare = str(name).removesuffix("group")
            grouped = name not in BY_NAME and bare in BY_NAME
            if name not in BY_NAME and not grouped:
                raise InputError(f"{place}.label: unknown label {name!r}; correct it to one of Cityscapes' 35 labels")
            try:
                ring = np.array(each["polygon"], np.float64).reshape(-1, 2)
            except (KeyError, TypeError, ValueError) as error:
                raise InputError(f"{place}.polygon: expected a list of [x, y]; correct or remove the object") from error
            rings.append((Polygon(ring),))
            numbers.append(BY_NAME[bare if grouped else str(name)].id)
            crowd.append(grouped)
        keys = dict.fromkeys(key for each in content.objects for key in each if key not in {"label", "polygon"})
        columns = {key: attribute_column([each.get(key) for each in content.objects]) for key in keys}
        size = (content.imgHeight, content.imgWidth)
        return Segments(size, numbers, Polygons(size, tuple(rings)), crowd=crowd, attributes=columns)


def _is_instance(value: int) -> bool:
    label = BY_ID.get(value // INSTANCES)
    return value >= INSTANCES and label is not None and label.has_instances


def _known(value: int, numbers: Mapping[int, int], path: Path) -> int:
    """The label of a value of a label image.

    Raises:
        InputError: There is no such label.
    """
    if value not in numbers:
        raise InputError(f"{path} holds the value {value}, which is no label of Cityscapes; {_hint(path)}")
    return numbers[value]


def _hint(path: Path) -> str:
    if "train" in path.stem.lower():
        return "training ids are 0..18 and 255"
    return "ids are 0..33 (a prediction of training ids has to be mapped back to ids first)"


# -- results ---------------------------------------------------------------------------------------------------------


def recognise_predictions(path: Path) -> bool:
    """Whether `path` is a folder of results: PNG files that begin with city, sequence and frame."""
    if not path.is_dir():
        return False
    try:
        found = list_images(path, recursive=True)
    except InputError:
        return False
    return bool(found) and all(core_of(name) and name.lower().endswith(".png") for name in found)


def read_predictions(path: Path | str, dataset: Dataset) -> Mapping[str, Segments]:
    """Reads results as the official program takes them: one PNG of label ids for each image.

    A file belongs to the image whose city, sequence and frame its name begins with, wherever it lies below the folder
    and however it goes on (`getPrediction` of cityscapesScripts). Pixels of labels that the data set was read without
    are void, hence false negatives, as in the official program.

    Args:
        path: The folder.
        dataset: What they are results for: Cityscapes in any form, categories called like its labels.

    Returns:
        The segments of every sample by its name, one for each label that occurs, read when asked for.

    Raises:
        InputError: An image has no result, or two.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path} is no folder; expected a folder of PNG files of label ids")
    files: dict[str, list[Path]] = {}
    for name in list_images(path, recursive=True):
        core = core_of(name)
        if core is not None and name.lower().endswith(".png"):
            files.setdefault(core, []).append(path / name)
    return _Predictions(path, dataset, files)


class _Predictions(Mapping[str, Segments]):
    """Segments by the name of the sample."""

    def __init__(self, path: Path, dataset: Dataset, files: dict[str, list[Path]]) -> None:
        numbers = {each.name: each.id for each in dataset.categories}
        if not set(numbers) & set(BY_NAME):
            raise InputError(
                f"{path} holds results in label ids of Cityscapes, but the data set has none of its labels; are they "
                "results for another one?"
            )
        self._numbers = np.full(len(LABELS) - 1, -1, np.int64)
        for each in LABELS:
            if each.id > UNLABELED:
                self._numbers[each.id] = numbers.get(each.name, -1)
        self._files: dict[str, Path] = {}
        for sample in dataset:
            core = core_of(sample.name)
            found = files.get(core or "", [])
            if len(found) != 1:
                which = f"{len(found)} results: {found[0].name}, {found[1].name}" if found else "no result"
                raise InputError(
                    f"{path}: the image {sample.name!r} has {which}; expected one PNG whose name begins with "
                    f"{core or 'CITY_SEQUENCE_FRAME'}"
                )
            self._files[sample.name] = found[0]

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __getitem__(self, name: str) -> Segments:
        path = self._files[name]
        pixels = read_labels(path)
        highest = int(pixels.max(initial=0))
        if highest >= len(self._numbers):
            _known(highest, {}, path)
        known = self._numbers[pixels]
        return Segments.from_semantic_map(known, void=-1)
