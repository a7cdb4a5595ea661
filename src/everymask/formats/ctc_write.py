"""Writing the layout of the Cell Tracking Challenge, one frame in memory at a time."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from everymask.errors import InputError, unknown_name
from everymask.files import atomic_write
from everymask.formats.checks import by
from everymask.formats.ctc_layout import TRACK_FILES, NoImage, frame_of
from everymask.formats.exporting import copy_image
from everymask.formats.images import image_size, write_image, write_labels
from everymask.types import Dataset, Sample, Segments
from everymask.types.segments import Overlap

if TYPE_CHECKING:
    from numpy.typing import NDArray

ANNOTATIONS = ("auto", "SEG", "TRA", "both", "ST", "RES")
_OWN_EXTRA = {"sequence", "frame", "annotation", "slices"}
_LARGEST = 2**32 - 1
"""The highest value of a mask."""
_PREFIX = {"SEG": "man_seg", "ST": "man_seg", "TRA": "man_track", "RES": "mask"}
_PLACE = {"SEG": "{}_GT/SEG", "TRA": "{}_GT/TRA", "ST": "{}_ST/SEG", "RES": "{}_RES"}


@dataclass
class _Track:
    """What is known of a track so far."""

    begin: int
    end: int
    parent: int
    frames: int = 1


@dataclass
class _Sequence:
    """What is known of a sequence so far: the frames written, and the tracks of each kind of mask by label."""

    frames: set[int] = field(default_factory=set)
    tracks: dict[str, dict[int, _Track]] = field(default_factory=dict)


def write(
    dataset: Dataset,
    target: Path,
    *,
    annotation: str = "auto",
    digits: int | None = None,
    overlap: Overlap = "error",
    link_images: bool = False,
) -> None:
    """Writes sequences of images, masks and tracks; reading them gives the same segments.

    Sequence and frame are those of `Sample.extra`; without them, the samples are the frames of sequence 01, in order.
    A sequence that is not called by two digits, or like one of another part, gets the next free number.

    Args:
        dataset: Segments of any geometry, a cell each.
        target: The folder.
        annotation: Which masks are written. ``"auto"`` is what ``Sample.extra["annotation"]`` says, else ``"both"``
            where segments have the attribute `track` and ``"SEG"`` where not. ``"both"`` writes the pieces that `read`
            makes apart again; of other segments, each becomes outline and marker.
        digits: Digits of the number of the frame in names; by default 3, or as many as the names of the samples have.
        overlap: What happens where segments overlap: ``"error"``, ``"score"`` or ``"last"``; see `Segments.label_map`.
        link_images: Make hard links of the image files instead of copies.

    Raises:
        InputError: Segments overlap or have no masks; tracks are missing, have gaps, or contradict each other; or a
            frame comes twice.
    """
    if annotation not in ANNOTATIONS:
        raise unknown_name("annotation", annotation, ANNOTATIONS)
    sequences: dict[str, _Sequence] = {}
    names: dict[tuple[str, str], str] = {}
    lines = []
    width = digits
    for number, sample in enumerate(dataset):
        given = str(sample.extra.get("sequence", "01"))
        # Without sequences, parts do not begin anew with frame 0.
        key = (str(sample.extra.get("split", "")) if "sequence" in sample.extra else "", given)
        if key not in names:
            own = re.fullmatch(r"\d{2}", given) and given not in names.values()
            names[key] = given if own else _free_number(names.values(), sample)
        name = names[key]
        frame = _frame_number(sample, number)
        sequence = sequences.setdefault(name, _Sequence())
        if frame in sequence.frames:
            raise InputError(
                f"{sample.name} is frame {frame} of sequence {name!r}, which was there before; number anew"
            )
        sequence.frames.add(frame)
        if width is None:
            known = frame_of(sample.name)[1] >= 0
            width = len(sample.name.rpartition("/t")[2]) if known else max(3, len(str(len(dataset) - 1)))
        stem = f"{frame:0{width}d}"
        _write_image(sample, target, f"{name}/t{stem}", link=link_images)
        other = {key: value for key, value in sample.extra.items() if key not in _OWN_EXTRA}
        if other:
            lines.append(msgspec.json.encode({"name": f"{name}/t{stem}", "extra": other}))
        segments = sample.segments
        if segments is None:
            continue
        kind = annotation
        if kind == "auto":
            kind = str(sample.extra.get("annotation", "both" if _whole(segments, "track") is not None else "SEG"))
        for each, labels in _masks(segments, kind, sample, overlap):
            parents = _write_mask(target, name, stem, each, labels, segments, sample)
            if parents is not None:
                _extend(sequence.tracks.setdefault(each, {}), frame, parents, sample)
    for name, sequence in sequences.items():
        for kind, tracks in sequence.tracks.items():
            _write_tracks(target / _PLACE[kind].format(name) / TRACK_FILES[kind], tracks, gaps=kind == "TRA")
    if lines:
        with atomic_write(target / "metadata.jsonl") as temporary:
            temporary.write_bytes(b"\n".join(lines) + b"\n")


def _free_number(used: Iterable[str], sample: Sample) -> str:
    taken = set(used)
    number = next((each for each in (f"{i:02d}" for i in range(1, 100)) if each not in taken), None)
    if number is None:
        raise InputError(f"{sample.name} is of the 100th sequence, but two digits number 99; write fewer of them")
    return number


def _frame_number(sample: Sample, default: int) -> int:
    frame = sample.extra.get("frame", default)
    if type(frame) is not int or frame < 0:
        raise InputError(f"{sample.name} has the frame {frame!r}; expected a whole number from 0 on")
    return frame


def _write_image(sample: Sample, target: Path, name: str, *, link: bool) -> None:
    """Puts the image of a frame in its place, if there is one."""
    if isinstance(sample.read_image, NoImage):
        return
    if sample.path is not None and sample.path.suffix.lower() in {".tif", ".tiff"}:
        copy_image(replace(sample, name=name), target, link=link)
        return
    path = target / f"{name}.tif"
    write_image(path, sample.image)
    size = image_size(path)
    if sample.segments is not None and sample.segments.size != size:
        raise InputError(
            f"{sample.path or sample.name} has size {by(size)}, but its annotation {by(sample.segments.size)}; correct "
            "the one that is wrong"
        )


def _masks(segments: Segments, kind: str, sample: Sample, overlap: Overlap) -> list[tuple[str, NDArray[np.int64]]]:
    """The masks of a frame: what each is, and its values (H, W) or (Z, H, W), -1 where nothing is known."""
    if segments.geometry is None and len(segments):
        raise InputError(f"{sample.name} has boxes or tags only, which masks cannot hold; write coco instead")
    try:
        ids = segments.label_map(overlap) if segments.geometry is not None else np.zeros(segments.size, np.int32)
    except InputError as error:
        raise InputError(f"{sample.name}: {error}") from error
    numbers = _whole(segments, "label", distinct=True)
    numbers = np.arange(1, len(segments) + 1) if numbers is None else numbers
    tracked, pieces = _whole(segments, "track"), _whole(segments, "seg")
    tracks = numbers if tracked is None else tracked
    outlines = pieces if pieces is not None else tracks if kind != "SEG" else numbers
    shared = outlines if kind in {"SEG", "ST"} else tracks
    # Only pieces of one outline or one marker, which is what having both attributes means, may share a value.
    if (pieces is None or tracked is None) and len(np.unique(shared[shared > 0])) < int((shared > 0).sum()):
        raise InputError(f"{sample.name}: two objects have the same track; in a frame a track is one object")
    kinds = {"SEG": ["SEG"], "ST": ["ST"], "TRA": ["TRA"], "both": ["SEG", "TRA"], "RES": ["RES"]}.get(kind)
    if kinds is None:
        raise unknown_name("annotation", kind, ANNOTATIONS)
    if len(segments) and tracked is None and "TRA" in kinds:
        raise InputError(
            f"{sample.name}: its objects have no attribute 'track', which markers need; say annotation=SEG"
        )
    return [
        (each, np.concatenate([[-1, 0], tracks if each in {"TRA", "RES"} else outlines])[ids + 1]) for each in kinds
    ]


def _whole(segments: Segments, name: str, *, distinct: bool = False) -> NDArray[np.int64] | None:
    """(N,) an attribute, if it holds whole numbers that a mask can."""
    column = segments.attributes.get(name)
    if column is None or column.dtype.kind not in "iu":
        return None
    numbers: NDArray[np.int64] = column.astype(np.int64)
    fits = numbers.max(initial=0) <= _LARGEST
    if distinct:
        fits = fits and numbers.min(initial=1) > 0 and len(np.unique(numbers)) == len(numbers)
    return numbers if fits else None


def _write_mask(
    target: Path, sequence: str, stem: str, kind: str, labels: NDArray[np.int64], segments: Segments, sample: Sample
) -> dict[int, int] | None:
    """Writes the mask of a frame, or its annotated slices.

    Returns:
        The parent of each track in the mask; None for masks without tracks.
    """
    folder = target / _PLACE[kind].format(sequence)
    slices = sample.extra.get("slices")
    if kind in {"SEG", "ST"} and slices is not None and labels.ndim == 3:
        for z in slices:
            write_labels(folder / f"{_PREFIX[kind]}_{stem}_{z:0{len(stem)}d}.tif", np.maximum(labels[z], 0))
        return None
    write_labels(folder / f"{_PREFIX[kind]}{stem}.tif", np.maximum(labels, 0))
    tracks = _whole(segments, "track")
    if kind not in TRACK_FILES or tracks is None:
        return None
    parents = _whole(segments, "parent")
    parents = np.zeros(len(tracks), np.int64) if parents is None else parents
    shown = set(np.unique(labels).tolist())
    return {
        track: parent for track, parent in zip(tracks.tolist(), parents.tolist(), strict=True) if track in shown - {0}
    }


def _extend(tracks: dict[int, _Track], frame: int, parents: dict[int, int], sample: Sample) -> None:
    """Adds the tracks of a frame."""
    for label, parent in parents.items():
        track = tracks.setdefault(label, _Track(frame, frame, parent, 0))
        if track.parent != parent:
            raise InputError(
                f"{sample.name}: track {label} has the parent {parent} here and {track.parent} before; a track has one"
            )
        track.begin, track.end, track.frames = min(track.begin, frame), max(track.end, frame), track.frames + 1


def _write_tracks(path: Path, tracks: dict[int, _Track], *, gaps: bool) -> None:
    """Writes the lines of a track file.

    Raises:
        InputError: A track has gaps where it must not, or a parent is absent or does not end before its child begins.
    """
    for label, track in sorted(tracks.items()):
        parent = tracks.get(track.parent)
        if not gaps and track.frames != track.end - track.begin + 1:
            raise InputError(
                f"{path.name}: track {label} is in {track.frames} frames between {track.begin} and {track.end}; give "
                "the part after a gap a track of its own, with the one before as its parent"
            )
        if track.parent and (parent is None or parent.end >= track.begin):
            wrong = "is in no frame" if parent is None else f"lasts until frame {parent.end}"
            raise InputError(
                f"{path.name}: track {label} begins in frame {track.begin}, but its parent {track.parent} {wrong}; a "
                "parent ends before its children begin"
            )
    lines = [f"{label} {each.begin} {each.end} {each.parent}\n" for label, each in sorted(tracks.items())]
    with atomic_write(path) as temporary:
        temporary.write_text("".join(lines), encoding="ascii")
