"""Images with label masks: the layout of microscopy sets, of CamVid, and of most sets made at home.

`everymask.formats.pairing` says how masks find their images, `label_kind` what their values mean, and `metadata` which
further columns are read. Written are::

    images/NAME.png         the image file as it was, or a PNG or TIFF without loss
    masks/NAME.png          label mask (.tif for volumes and above 65,534 objects)
    categories.json         kind, categories, and the values of void and background
    objects/NAME.json       category, score, box ... of each object, where a mask alone cannot tell
    metadata.jsonl          `Sample.extra`, where there is any
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from everymask.errors import InputError
from everymask.files import atomic_write
from everymask.formats.checks import check_same_size
from everymask.formats.columns import attribute_column
from everymask.formats.description import Description, Feature
from everymask.formats.exporting import check_relative, copy_image
from everymask.formats.images import image_size, read_image, read_labels, write_labels
from everymask.formats.joining import PARTS, join_parts
from everymask.formats.label_kind import Meaning, has_classes, meaning_of, read_categories
from everymask.formats.metadata import read_extras
from everymask.formats.pairing import Pairs, find_layout, find_pairs, splits_of
from everymask.formats.time_series import count_frames, read_frame, read_label_frame
from everymask.types import Categories, Dataset, LabelMap, Sample, Segments, Task
from everymask.types.segments import Overlap

if TYPE_CHECKING:
    from numpy.typing import NDArray

DESCRIPTION = Description(
    summary="images with label masks, one integer a pixel: objects (instance) or classes (semantic); 2-D and 3-D",
    layout="images/ with masks/, or name.png beside name_mask.png",
    tasks=frozenset({Task.INSTANCE, Task.SEMANTIC, Task.PANOPTIC, Task.DETECTION}),
    carries=frozenset(Feature) - {Feature.POINTS, Feature.OVERLAP, Feature.BOXES, Feature.TAGS},
)

_VOID = 2**16 - 1
"""Void in instance masks that are written: the highest value of a 16-bit PNG."""


class JsonObjects(msgspec.Struct, forbid_unknown_fields=True):
    """A file in `objects/`: one value for each object, in the order of the labels."""

    category: list[int]
    score: list[float] | None = None
    box: list[list[float]] | None = None
    crowd: list[bool] | None = None
    attributes: dict[str, list[Any]] = {}


_OBJECTS = msgspec.json.Decoder(JsonObjects)


# -- reading ---------------------------------------------------------------------------------------------------------


def recognise(path: Path) -> bool:
    """Whether `path` is a folder of images with masks, or holds such folders as its parts; by names alone."""
    try:
        if not path.is_dir():
            return False
        return find_layout(path) is not None or any(each.lower() in PARTS for each in splits_of(path))
    except OSError:
        return False
    except InputError:
        return True  # names that do not match: opening it tells which


def read(
    path: Path,
    *,
    split: str | None = None,
    kind: str | None = None,
    classes: Sequence[str] | None = None,
    void: int | None = None,
    unannotated: str | None = None,
    time: bool | None = None,
) -> Dataset:
    """Opens a folder of images with masks.

    No image is read. Masks are looked at only where `kind`, `classes` and the files beside them leave open what their
    values mean, and then at most 72, however many there are.

    Args:
        path: The folder.
        split: A folder below it, or below both of `images/` and `masks/`. Without it, folders such as `train/` and
            `val/` that are data sets are opened as one.
        kind: ``"instance"`` (values are objects) or ``"semantic"`` (values are classes).
        classes: Names of the classes, the first for value 0; or the one name of the objects of instance masks.
        void: Value of pixels to ignore.
        unannotated: ``"keep"`` images that have no mask, without annotation, or take them for an ``"error"``; where
            files lie side by side they are kept by default, else they are an error.
        time: Whether TIFF stacks are time series, each frame a sample ``NAME/t000`` with its `sequence` and `frame` in
            `Sample.extra`. By default those are whose metadata (ImageJ, OME) name a time axis and none of depth; other
            stacks are volumes.

    Raises:
        InputError: There are no images with masks, names do not match, or a list of classes is wrong.
    """
    if not path.is_dir():
        raise InputError(f"{path} is a file, but images with masks are a folder; name the folder")
    layouts = {"": find_layout(path, split)}
    if layouts[""] is None and split is None and {each.lower() for each in splits_of(path)} <= PARTS:
        layouts = {part: find_layout(path / part) for part in splits_of(path)}
    if unannotated is None and (path / "categories.json").is_file():
        # A set that was written with images without annotation says so, lest a lost mask pass for one.
        with contextlib.suppress(InputError):  # said later, with whatever else is wrong
            unannotated = "keep" if read_categories(path / "categories.json").get("unannotated") else None
    pairs = {part: find_pairs(*each, unannotated=unannotated) for part, each in layouts.items() if each is not None}
    if not pairs:
        raise InputError(_no_pairs(path, split))
    below = split if split and (path / split).is_dir() else ""
    # Parts that do not name their classes share what the values of all their masks mean.
    shared = [] if any(has_classes(path / part) for part in pairs if part) else list(pairs.values())
    meaning: Meaning | None = None
    opened: dict[str, Dataset] = {}
    for part, each in pairs.items():
        root = path / (part or below)
        folders = [root, root.parent] if root != path or root.name.lower() in PARTS else [root]
        if meaning is None or not shared:
            masks = [one.mask_folder / mask for one in shared or [each] for mask in one.masks if mask]
            meaning = meaning_of(masks, folders, kind, classes, void)
        frames = count_frames([each.image_folder / image for image in each.images], time)
        extras = read_extras(folders, each.names, part or split or path.name)
        reader = _Reader(each, frames, meaning, root / "objects", extras)
        rows = reader.rows()
        opened[part] = Dataset(
            partial(reader.sample, rows), len(rows), meaning.categories, meaning.tasks, "label_images", path / part
        )
    return opened[""] if "" in opened else join_parts(opened, path)


_Rows = Sequence[tuple[int, int | None]]


@dataclass(frozen=True)
class _Reader:
    """Makes the samples of a folder.

    Args:
        pairs: Images and masks.
        frames: For each image the number of frames, None if it is no time series.
        meaning: What values of the masks mean.
        objects: Where lists of objects may be.
        extras: `Sample.extra` by name.
    """

    pairs: Pairs
    frames: Sequence[int | None]
    meaning: Meaning
    objects: Path
    extras: dict[str, dict[str, Any]]

    def rows(self) -> _Rows:
        """Index of the image, and frame of a time series, of each sample."""
        if not any(self.frames):
            return [(index, None) for index in range(len(self.frames))]
        return [
            (index, frame)
            for index, count in enumerate(self.frames)
            for frame in ([None] if count is None else range(count))
        ]

    def sample(self, rows: _Rows, index: int) -> Sample:
        image, frame = rows[index]
        name, mask = self.pairs.names[image], self.pairs.masks[image]
        path = self.pairs.image_folder / self.pairs.images[image]
        extra = dict(self.extras.get(name, {}))
        pixels: Callable[[], NDArray[Any]] = partial(read_image, path)
        if frame is not None:
            extra |= {"sequence": name, "frame": frame}
            name = f"{name}/t{frame:03d}"
            pixels = partial(read_frame, path, frame)
        segments: Callable[[], Segments] | None = None
        if mask is not None:
            segments = partial(self.segments, name, path, self.pairs.mask_folder / mask, frame)
        return Sample(name, pixels, segments, path if frame is None else None, extra)

    def segments(self, name: str, image: Path, mask: Path, frame: int | None) -> Segments:
        size = image_size(image)
        if frame is None:
            values = read_labels(mask)
            check_same_size(size, values.shape, image, mask)
        else:
            values = read_label_frame(mask, frame, size, image)
        if self.meaning.kind == "semantic":
            return self._semantic(values, mask)
        ids = values
        if self.meaning.void is not None:
            ids = values.astype(np.int64)
            ids[values == self.meaning.void] = -1
        try:
            content = (self.objects / f"{name}.json").read_bytes()
        except FileNotFoundError:
            if len(self.meaning.categories) != 1:
                raise InputError(
                    f"{mask}: there are {len(self.meaning.categories)} categories, but no {self.objects}/{name}.json "
                    "that says which object is what; say kind='semantic' if the values are categories"
                ) from None
            return Segments.from_label_map(ids, self.meaning.categories[0].id)
        return _from_objects(ids, content, self.objects / f"{name}.json")

    def _semantic(self, values: NDArray[Any], mask: Path) -> Segments:
        void, background = self.meaning.void, self.meaning.background
        segments = Segments.from_semantic_map(values, void=void, background=background)
        unknown = sorted(set(segments.category.tolist()) - set(self.meaning.categories.ids.tolist()))
        if unknown:
            raise InputError(
                f"{mask} holds the values {unknown[:5]}, which are none of the {len(self.meaning.categories)} classes; "
                f"if {unknown[0]} marks pixels to ignore, say --reading.void {unknown[0]} (for train --void "
                f"{unknown[0]}, in Python void={unknown[0]}); otherwise list all classes in a classes.txt (first line "
                "for value 0), or say kind='instance' if the values are objects"
            )
        return segments


def _no_pairs(path: Path, split: str | None) -> str:
    """The message for a folder without images and masks."""
    parts = splits_of(path)
    if split is not None:
        return f"{path} has no part {split!r} with images and masks; it has {', '.join(parts) or 'no parts at all'}"
    if parts:
        return f"{path} has the parts {', '.join(parts)}; open {path / parts[0]}, or say split={parts[0]!r}"
    return f"{path} holds no images with masks; expected {DESCRIPTION.layout}"


def _from_objects(ids: NDArray[Any], content: bytes, path: Path) -> Segments:
    """Segments of a label map whose objects are listed in a file."""
    try:
        columns = _OBJECTS.decode(content)
        return Segments(
            ids.shape,
            columns.category,
            LabelMap(ids.astype(np.int32)),
            score=columns.score,
            box=columns.box,
            crowd=columns.crowd,
            attributes={name: attribute_column(values) for name, values in columns.attributes.items()},
        )
    except ValueError as error:
        raise InputError(f"{path} does not fit its mask: {error}; export the data set again") from error


# -- writing ---------------------------------------------------------------------------------------------------------


def write(
    dataset: Dataset, target: Path, *, kind: str | None = None, overlap: Overlap = "error", link_images: bool = False
) -> None:
    """Writes images and masks; reading them gives the same segments, label by label.

    Args:
        dataset: Segments of any geometry.
        target: The folder.
        kind: ``"semantic"`` for masks of category ids, ``"instance"`` for masks of objects. By default semantic if
            that is all the data set is for.
        overlap: What happens where segments overlap: ``"error"``, ``"score"`` or ``"last"``; see `Segments.label_map`.
        link_images: Make hard links of the image files instead of copies.

    Raises:
        InputError: Segments overlap, or have no geometry, or there are categories that a semantic mask cannot hold.
    """
    if kind not in {None, "instance", "semantic"}:
        raise InputError(f"kind must be 'instance' or 'semantic', got {kind!r}")
    if kind is None:
        kind = "semantic" if dataset.tasks == {Task.SEMANTIC} else "instance"
    values = _semantic_values(dataset.categories) if kind == "semantic" else (_VOID, 0)
    void, background = values
    for folder in ("images", "masks"):
        (target / folder).mkdir(parents=True, exist_ok=True)
    lines = []
    highest, void_in, unannotated = 0, "", False
    for sample in dataset:
        copy_image(sample, target / "images", link=link_images)
        if sample.extra:
            lines.append(msgspec.json.encode({"name": sample.name, "extra": sample.extra}))
        segments = sample.segments
        if segments is None:
            unannotated = True
            continue
        if segments.geometry is None and len(segments):
            raise InputError(f"{sample.name} has boxes or tags only, which label masks cannot hold; write coco instead")
        try:
            ids = segments.label_map(overlap) if segments.geometry is not None else np.zeros(segments.size, np.int32)
        except InputError as error:
            raise InputError(f"{sample.name}: {error}") from error
        if kind == "semantic":
            dataset.categories.indices(segments.category)
            table = np.concatenate([[void, background], segments.category])
            _write_mask(target, sample.name, table[ids + 1])
        else:
            highest = max(highest, _write_objects(target, sample.name, segments, ids, dataset.categories))
            void_in = sample.name if (ids < 0).any() else void_in
    if kind == "instance" and void_in and highest >= _VOID:
        raise InputError(
            f"{void_in} has void pixels, and another mask has the label {highest}; where there is void, labels of "
            f"objects go up to {_VOID - 1}; cut the images into smaller ones"
        )
    meaning: dict[str, Any] = {
        "kind": kind,
        "void": void if kind == "semantic" or void_in else None,
        "background": background,
        "categories": dataset.categories.to_json(),
    }
    if unannotated:
        meaning["unannotated"] = True
    with atomic_write(target / "categories.json") as temporary:
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(meaning), indent=1))
    if lines:
        with atomic_write(target / "metadata.jsonl") as temporary:
            temporary.write_bytes(b"\n".join(lines) + b"\n")


def _semantic_values(categories: Categories) -> tuple[int, int]:
    """Values of void and of background that are no category id.

    Raises:
        InputError: A category id is negative or does not fit 16 bits.
    """
    ids = set(categories.ids.tolist())
    free = [value for value in (255, 65535, 0, *range(1, 2**16)) if value not in ids]
    if min(ids, default=0) < 0 or max(ids, default=0) >= 2**16 or len(free) < 2:
        raise InputError(
            f"category ids {min(ids)}..{max(ids)} do not fit a mask of 16 bits; renumber the categories, or say "
            "kind='instance'"
        )
    void = free[0]
    return void, next(value for value in (0, *free) if value in free and value != void)


def _write_mask(target: Path, name: str, values: NDArray[Any]) -> None:
    """Writes a mask as PNG where it fits, else as TIFF."""
    png = values.ndim == 2 and values.max(initial=0) < 2**16
    write_labels(target / "masks" / f"{check_relative(name, 'name of a sample')}{'.png' if png else '.tif'}", values)


def _write_objects(target: Path, name: str, segments: Segments, ids: NDArray[np.int32], categories: Categories) -> int:
    """Writes an instance mask and, where the mask alone cannot tell everything, the list of its objects.

    Returns:
        The highest label.
    """
    categories.indices(segments.category)
    count = len(segments)
    labels = np.arange(1, count + 1)
    box = segments.given_boxes
    present = np.bincount(ids[ids > 0], minlength=count + 1)[1:] > 0
    plain = len(categories) == 1 and segments.score is None and box is None and not segments.crowd.any()
    plain = plain and bool(present.all()) and set(segments.attributes) <= {"label"}
    if plain and count and "label" in segments.attributes:
        # The values of the file that the segments were read from come back.
        originals = segments.attributes["label"]
        plain = originals.dtype.kind in "iu" and originals[0] > 0 and bool((np.diff(originals) > 0).all())
        labels = originals if plain else labels
    _write_mask(target, name, np.concatenate([[_VOID, 0], labels]).astype(np.int64)[ids + 1])
    highest = int(labels.max(initial=0))
    if plain:
        return highest
    columns: dict[str, Any] = {"category": segments.category.tolist()}
    if segments.score is not None:
        columns["score"] = segments.score.tolist()
    if box is not None:
        columns["box"] = box.tolist()
    if segments.crowd.any():
        columns["crowd"] = segments.crowd.tolist()
    if segments.attributes:
        columns["attributes"] = {key: column.tolist() for key, column in segments.attributes.items()}
    with atomic_write(target / "objects" / f"{name}.json") as temporary:
        temporary.write_bytes(msgspec.json.encode(columns))
    return highest
