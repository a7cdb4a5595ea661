"""Cell Tracking Challenge: videos of cells, in 2-D and 3-D, with outlines, markers and tracks::

    01/t000.tif                         images, one TIFF a frame; three or four digits
    01_GT/SEG/man_seg000.tif            outlines, perhaps of some frames and of some cells only;
    01_GT/SEG/man_seg_000_012.tif       of volumes perhaps single slices, here slice 12 of frame 0
    01_GT/TRA/man_track000.tif          a marker for every cell in every frame, its value the track
    01_GT/TRA/man_track.txt             a line for each track: label, first frame, last frame, parent (0 for none)
    01_ST/SEG/man_seg000.tif            outlines that the organisers computed from results ("silver truth")
    01_RES/mask000.tif, res_track.txt   results of a tracking program

A sample is a frame, called ``01/t000``; `Sample.extra` has its `sequence`, its `frame` and which `annotation` it holds.
Objects with tracks have these as the attributes `track` and `parent`. How outlines and markers come in one sample is
told at `read`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from everymask.errors import InputError, unknown_name
from everymask.formats.checks import check_same_size
from everymask.formats.ctc_layout import (
    TRACK_FILES,
    Kind,
    Lineage,
    MaskFolder,
    NoImage,
    Sequence,
    find_sequences,
    frame_of,
    has_others,
    read_lineage,
)
from everymask.formats.ctc_write import write
from everymask.formats.description import Description, Feature
from everymask.formats.images import image_size, read_image, read_labels
from everymask.formats.metadata import read_extras
from everymask.formats.places import check_missing
from everymask.types import Categories, Dataset, LabelMap, Sample, Segments, Task

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["DESCRIPTION", "read", "read_predictions", "recognise", "recognise_predictions", "write"]

DESCRIPTION = Description(
    summary="Cell Tracking Challenge: videos in 2-D and 3-D with outlines, markers and tracks; results of trackers",
    layout="01/t000.tif with 01_GT/SEG/man_seg000.tif, 01_GT/TRA/man_track.txt, or 01_RES/mask000.tif",
    tasks=frozenset({Task.INSTANCE, Task.SEMANTIC, Task.DETECTION}),
    carries=frozenset(
        {
            Feature.BACKGROUND,
            Feature.MASKS,
            Feature.HOLES,
            Feature.PARTS,
            Feature.OBJECTS,
            Feature.VOLUMES,
            Feature.UNANNOTATED,
            Feature.EXTRA,
        }
    ),
    attributes=frozenset({"track", "parent", "seg", "label"}),
)
CATEGORIES = Categories(["cell"])
ANNOTATIONS = ("auto", "SEG", "TRA", "both", "ST", "RES")


def recognise(path: Path) -> bool:
    """Whether `path` is a data set, a sequence, or a folder of masks of the challenge; by names alone."""
    try:
        sequences = find_sequences(path) if path.is_dir() else []
        return bool(sequences) and (any(each.masks for each in sequences) or not any(map(has_others, sequences)))
    except OSError:
        return False
    except InputError:
        return True  # two files of one frame: it is one, and opening it tells what is wrong


def read(
    path: Path,
    *,
    annotation: str = "auto",
    images: Path | str | None = None,
    missing_images: str | None = None,
) -> Dataset:
    """Opens a data set, one of its sequences (``01``), or one folder of masks (``01_GT``, ``01_RES`` ...).

    Only names and track files are read.

    Args:
        path: The folder.
        annotation: What the segments are. ``"SEG"``: outlines; a frame without is not annotated, and where only some
            slices of a volume are, the others are void. ``"TRA"``: markers, with tracks. ``"both"``: the two together,
            as pieces: a segment is the pixels that an outline and a marker share, with the outline's value as attribute
            `seg` (0 outside of outlines, -1 in slices that have none) and the marker's as `track` (0 outside of
            markers), which any measure of tracking needs. ``"ST"``: silver truth. ``"RES"``: results, with tracks.
            ``"auto"``: the first there is of SEG, TRA, ST and RES.
        images: Folder of the images, if they are not beside the masks.
        missing_images: What to do with masks without an image: ``"error"``, ``"keep"`` or ``"skip"`` them. By default
            they are kept where the sequence has no images at all, and else an error.

    Raises:
        InputError: There are no sequences, none has this annotation, images are missing, or a track file is wrong.
    """
    if annotation not in ANNOTATIONS:
        raise unknown_name("annotation", annotation, ANNOTATIONS)
    if missing_images is not None:
        check_missing(missing_images)
    sequences = find_sequences(path, None if images is None else Path(images)) if path.is_dir() else []
    if not sequences:
        raise InputError(f"{path} holds no sequence of the Cell Tracking Challenge; expected {DESCRIPTION.layout}")
    opened = [_opened(each, annotation) for each in sequences]
    if annotation not in {"auto", "both"} and not any(each.folders for each in opened):
        there = sorted({kind for each in sequences for kind in each.masks})
        raise InputError(f"{path} has no annotation {annotation!r}; it has {', '.join(there) or 'images only'}")
    frames = [(each, frame) for each in opened for frame in _frames(each, missing_images)]
    names = [each.name(frame) for each, frame in frames]
    extras = read_extras([opened[0].sequence.root], names, path.name)

    def sample(index: int) -> Sample:
        opened, frame = frames[index]
        return opened.sample(frame, extras.get(names[index], {}))

    return Dataset(sample, len(frames), CATEGORIES, DESCRIPTION.tasks, "ctc", path)


def _opened(sequence: Sequence, annotation: str) -> _Opened:
    """A sequence with the masks that were asked for."""
    there: list[Kind] = [kind for kind in ("SEG", "TRA", "ST", "RES") if kind in sequence.masks]
    chosen: list[Kind]
    if annotation == "auto":
        chosen = there[:1]
    elif annotation == "both":
        chosen = [kind for kind in there if kind in {"SEG", "TRA"}] or there[:1]
    else:
        chosen = [kind for kind in there if kind == annotation]
    opened = _Opened(sequence, tuple(sequence.masks[kind] for kind in chosen))
    _ = opened.lineages  # read now, so that what is wrong with them is told now
    return opened


def _frames(opened: _Opened, missing: str | None) -> list[int]:
    """The frames of a sequence in order of time."""
    images = opened.sequence.images.keys()
    masks = set[int]().union(*(each.frames for each in opened.folders))
    absent = sorted(masks - images)
    if absent and (missing == "error" or (missing is None and images)):
        place = opened.sequence.image_folder
        raise InputError(
            f"{place}: {len(absent)} of {len(masks)} images are missing, the first is frame {absent[0]}; add them, say "
            "where they are (option images), or say --skip-missing"
        )
    return sorted(images if missing == "skip" else images | masks)


@dataclass(frozen=True)
class _Opened:
    """A sequence that makes samples.

    Args:
        sequence: Its files.
        folders: The masks to read.
    """

    sequence: Sequence
    folders: tuple[MaskFolder, ...]

    def name(self, frame: int) -> str:
        """Such as ``01/t000``."""
        if frame in self.sequence.images:
            return f"{self.sequence.name}/{Path(self.sequence.images[frame]).stem}"
        known = next((name for each in self.folders for name in each.whole.values()), "")
        digits = len("".join(filter(str.isdigit, known))) or 3
        return f"{self.sequence.name}/t{frame:0{digits}d}"

    @cached_property
    def lineages(self) -> dict[Kind, Lineage | None]:
        """The tracks of the masks that have tracks."""
        found: dict[Kind, Lineage | None] = {}
        for each in self.folders:
            if each.kind in TRACK_FILES:
                found[each.kind] = _lineage(each)
        return found

    def sample(self, frame: int, extra: dict[str, Any]) -> Sample:
        image = None
        if frame in self.sequence.images:
            image = self.sequence.image_folder / self.sequence.images[frame]
        here = [each for each in self.folders if frame in each.frames]
        kinds = [each.kind for each in here]
        extra = {**extra, "sequence": self.sequence.name, "frame": frame}
        if here:
            extra["annotation"] = kinds[0] if len(kinds) == 1 else "both"
            slices = next((sorted(each.slices[frame]) for each in here if frame in each.slices), None)
            if slices is not None:
                extra["slices"] = slices
        pixels: Callable[[], NDArray[Any]] = partial(read_image, image) if image else NoImage(self.sequence, frame)
        segments = partial(self.segments, frame, here, image) if here else None
        return Sample(self.name(frame), pixels, segments, image, extra)

    def segments(self, frame: int, here: list[MaskFolder], image: Path | None) -> Segments:
        """The annotation of a frame."""
        size = None if image is None else image_size(image)
        read = {each.kind: _labels(each, frame, size, image) for each in here if frame in each.whole}
        for each in here:
            if frame not in each.whole:
                known = size if size is not None else next((other.shape for other in read.values()), None)
                read[each.kind] = _slices(each, frame, known)
        tracked = next((each for each in here if self.lineages.get(each.kind) is not None), None)
        lineage = None if tracked is None else self.lineages[tracked.kind]
        if len(read) == 2:
            sizes = {labels.shape for labels in read.values()}
            if len(sizes) > 1:
                raise InputError(
                    f"{here[0].folder}, {here[1].folder}: the masks of frame {frame} differ in size: {sizes}"
                )
            segments = _pieces(read["SEG"], read["TRA"])
        else:
            segments = Segments.from_label_map(next(iter(read.values())))
        if tracked is None or lineage is None:
            return segments
        columns = segments.attributes
        tracks = columns.get("track", columns.get("label", np.arange(1, len(segments) + 1)))
        marked = tracks > 0
        lineage.check_frame(frame, np.unique(tracks[marked]), tracked.file(frame), gaps=tracked.kind == "TRA")
        parents = np.zeros(len(tracks), np.int64)
        parents[marked] = lineage.parents_of(tracks[marked])
        others = {name: values for name, values in columns.items() if name == "seg"}
        attributes = {"track": tracks, "parent": parents, **others}
        return Segments(segments.size, segments.category, segments.geometry, attributes=attributes)


def _lineage(folder: MaskFolder) -> Lineage | None:
    """The tracks of a folder of masks; None for results without tracks.

    Raises:
        InputError: The file is wrong, or names frames without a mask.
    """
    path = folder.folder / TRACK_FILES[folder.kind]
    if folder.kind == "RES" and not path.is_file():
        return None
    lineage = read_lineage(path)
    # Of a track that ends in frame 10**12, one frame without a mask is enough to know.
    first_beyond = max(folder.frames, default=-1) + 1
    expected = range(min(int(lineage.end.max(initial=-1)), first_beyond) + 1)
    for frame in sorted(set(expected) - folder.frames):
        for at in np.flatnonzero((lineage.begin <= frame) & (lineage.end >= frame))[:1]:
            raise InputError(
                f"{folder.file(frame)} is missing, but {path.name}, line {at + 1} says that track {lineage.label[at]} "
                f"lasts from frame {lineage.begin[at]} to {lineage.end[at]}; add the mask or correct the line"
            )
    return lineage


def _labels(folder: MaskFolder, frame: int, size: tuple[int, ...] | None, image: Path | None) -> NDArray[Any]:
    """The mask (H, W) or (Z, H, W) of a frame."""
    path = folder.folder / folder.whole[frame]
    labels = read_labels(path)
    if size is not None and image is not None:
        check_same_size(size, labels.shape, image, path)
    return labels


def _slices(folder: MaskFolder, frame: int, size: tuple[int, ...] | None) -> NDArray[np.int64]:
    """The mask (Z, H, W) of a volume of which only some slices are annotated; -1 in the others."""
    files = folder.slices[frame]
    first = folder.folder / next(iter(files.values()))
    if size is None or len(size) != 3:
        got = "there is none" if size is None else "it is 2-D"
        raise InputError(f"{first} is one slice of a volume, so an image of the volume is needed, but {got}; add it")
    volume = np.full(size, -1, np.int64)
    for z, name in files.items():
        path = folder.folder / name
        labels = read_labels(path)
        if z >= size[0] or labels.shape != size[1:]:
            raise InputError(
                f"{path}: slice {z} of size {labels.shape} does not fit the volume of size {size}; slices count from 0"
            )
        volume[z] = labels
    return volume


def _pieces(outlines: NDArray[Any], markers: NDArray[Any]) -> Segments:
    """One segment for each pair of an outline (-1 for unknown, 0 for none) and a marker (0 for none) that share pixels.

    Pixels of neither are background.
    """
    from everymask.ops.label_tables import renumber
    from everymask.ops.labels import compact_labels

    outline, outline_values = compact_labels(outlines)
    marker, marker_values = compact_labels(markers)
    width = len(marker_values) + 1
    # Keys are positive: unknown outlines (-1) come first, then the background, and so on.
    narrow = (len(outline_values) + 2) * width < 2**31
    keys = (outline.astype(np.int32 if narrow else np.int64) + 1) * width + marker + 1
    compact, found = compact_labels(keys)
    seg = np.concatenate([[-1, 0], outline_values])[(found - 1) // width]
    track = np.concatenate([[0], marker_values])[(found - 1) % width]
    piece = (seg != 0) | (track != 0)
    ids = renumber(compact, np.arange(1, len(found) + 1), np.cumsum(piece) * piece)
    seg, track = seg[piece], track[piece]
    return Segments(ids.shape, np.ones(len(seg), np.int64), LabelMap(ids), attributes={"track": track, "seg": seg})


# -- results -----------------------------------------------------------------------------------------------------------


def recognise_predictions(path: Path) -> bool:
    """Whether `path` is a folder of results, or holds such folders for its sequences."""
    try:
        return path.is_dir() and any("RES" in each.masks for each in find_sequences(path))
    except OSError:
        return False
    except InputError:
        return True


def read_predictions(path: Path, dataset: Dataset) -> Mapping[str, Segments]:
    """Results for the frames of a data set, by sequence and number of the frame.

    Args:
        path: A folder ``01_RES``, or one with such a folder for every sequence.
        dataset: What they are results for: its samples have `sequence` and `frame` in `Sample.extra`.

    Raises:
        InputError: A frame or a sequence has no result; or the results have frames that the data set, which shows all
            of its frames, does not have; or a track file is wrong.
    """
    results = {each.name: _opened(each, "RES") for each in find_sequences(path) if "RES" in each.masks}
    frames: dict[str, tuple[str, int]] = {}
    whole: set[str] = set()
    for sample in dataset:
        if "frame" not in sample.extra or "sequence" not in sample.extra:
            raise InputError(
                f"{path} holds results for the frames of sequences, but {sample.name} of {dataset.root} is no frame of "
                "one; open the data set in the format ctc"
            )
        frames[sample.name] = str(sample.extra["sequence"]), int(sample.extra["frame"])
        if sample.extra.get("annotation") in {"TRA", "both"}:
            whole.add(str(sample.extra["sequence"]))
    wanted = {sequence for sequence, _ in frames.values()}
    if len(wanted) == len(results) == 1 and not (path.name[:2].isdigit() and path.name.upper().endswith("_RES")):
        results = {next(iter(wanted)): next(iter(results.values()))}
    for sequence in sorted(wanted - results.keys()):
        raise InputError(
            f"{path} has no results for sequence {sequence!r}; it has {', '.join(results)}; name the folder "
            f"{sequence}_RES"
        )
    for sequence, frame in frames.values():
        masks = results[sequence].folders[0]
        if frame not in masks.whole:
            raise InputError(
                f"{masks.file(frame)} is missing; expected a mask for every frame, an empty one where nothing was found"
            )
    for sequence in sorted(whole):
        masks = results[sequence].folders[0]
        spare = sorted(masks.frames - {frame for name, frame in frames.values() if name == sequence})
        if spare:
            raise InputError(
                f"{masks.file(spare[0])} is of frame {spare[0]}, which sequence {sequence!r} of "
                f"{dataset.root} does not have; are they results for another one?"
            )
    return _Predictions(results, frames)


@dataclass(frozen=True)
class _Predictions(Mapping[str, Segments]):
    """Segments by the name of the sample, read when asked for."""

    results: dict[str, _Opened]
    frames: dict[str, tuple[str, int]]

    def __len__(self) -> int:
        return len(self.frames)

    def __iter__(self) -> Iterator[str]:
        return iter(self.frames)

    def __getitem__(self, name: str) -> Segments:
        sequence, frame = self.frames.get(name) or frame_of(name)
        if sequence not in self.results or frame not in self.results[sequence].folders[0].whole:
            raise InputError(f"there is no result for {name!r}; expected a mask for every frame of every sequence")
        opened = self.results[sequence]
        return opened.segments(frame, [opened.folders[0]], None)
