"""Which files of a Cell Tracking Challenge data set belong to which frame, told by names alone; and its track files."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from everymask.errors import InputError

Kind = Literal["SEG", "TRA", "ST", "RES"]
"""Outlines, markers with tracks, computed reference outlines ("silver truth"), results."""

_SEQUENCE = re.compile(r"(\d{2})(?:_(GT|ST|RES))?", re.IGNORECASE)
_IMAGE = re.compile(r"t(\d{3,})\.tiff?", re.IGNORECASE)
_MASKS: dict[Kind, re.Pattern[str]] = {
    "SEG": re.compile(r"man_seg_?(\d{3,})(?:_(\d{3,}))?\.tiff?", re.IGNORECASE),
    "TRA": re.compile(r"man_track(\d{3,})\.tiff?", re.IGNORECASE),
    "RES": re.compile(r"mask(\d{3,})\.tiff?", re.IGNORECASE),
}
_MASKS["ST"] = _MASKS["SEG"]
TRACK_FILES: dict[str, str] = {"TRA": "man_track.txt", "RES": "res_track.txt"}


@dataclass(frozen=True)
class MaskFolder:
    """The masks of one kind of a sequence.

    Args:
        kind: What they are.
        folder: Where they are.
        whole: File name of each frame.
        slices: For frames of which single slices are annotated, the file name of each slice.
    """

    kind: Kind
    folder: Path
    whole: dict[int, str]
    slices: dict[int, dict[int, str]] = field(default_factory=dict)

    @property
    def frames(self) -> set[int]:
        """The frames that have a mask."""
        return self.whole.keys() | self.slices.keys()

    def file(self, frame: int) -> Path:
        """The mask of a frame; for a frame without one, where it would be."""
        if frame in self.whole:
            return self.folder / self.whole[frame]
        return self.folder / re.sub(r"\d+", lambda found: f"{frame:0{len(found[0])}d}", next(iter(self.whole.values())))


@dataclass(frozen=True)
class Sequence:
    """One video: its images and the masks of every kind that there are.

    Args:
        name: Such as ``"01"``.
        root: The data set that it belongs to.
        image_folder: Where the images are or would be.
        images: File name of the image of each frame.
        masks: The masks by kind.
    """

    name: str
    root: Path
    image_folder: Path
    images: dict[int, str]
    masks: dict[Kind, MaskFolder]


@dataclass(frozen=True)
class NoImage:
    """Stands for an image that is not there.

    Args:
        sequence: Its sequence.
        frame: Its frame.
    """

    sequence: Sequence
    frame: int

    def __call__(self) -> NDArray[Any]:
        """Tells that there is no image.

        Raises:
            InputError: Always.
        """
        raise InputError(
            f"{self.sequence.image_folder} has no image of frame {self.frame}; only masks of this sequence are "
            "there, so say where its images are (option images)"
        )


def find_sequences(path: Path, images: Path | None = None) -> list[Sequence]:
    """The sequences of a data set: of its root, of one folder of images, or of one folder of masks.

    Args:
        path: A folder.
        images: Folder with the images, or with a folder of images for each sequence; by default they lie beside the
            masks.
    """
    path = path.absolute()  # so that "." has a name
    match = _SEQUENCE.fullmatch(path.name)
    if _annotation_folders(path):
        names = {match[1] if match else path.name: [path]}
        base = path.parent
    else:
        base = path.parent if match and _files(path, _IMAGE) else path
        wanted = match[1] if match and base != path else None
        names = {}
        for entry in sorted(os.scandir(base), key=lambda each: each.name):
            found = _SEQUENCE.fullmatch(entry.name)
            if found and entry.is_dir() and wanted in {None, found[1]}:
                names.setdefault(found[1], []).append(Path(entry.path))
    sequences = []
    for name, places in names.items():
        image_folder = base / name
        if images is not None:
            image_folder = images / name if (images / name).is_dir() else images
        masks = {kind: each for place in places for kind, each in _annotation_folders(place).items()}
        found_images = {frame: files[None] for frame, files in _files(image_folder, _IMAGE).items()}
        if masks or found_images:
            sequences.append(Sequence(name, base, image_folder, found_images, masks))
    return sequences


def has_others(sequence: Sequence) -> bool:
    """Whether there are files beside the images of a sequence, as in data sets of other formats with such names."""
    if not sequence.images:
        return False
    with os.scandir(sequence.image_folder) as entries:
        names = [entry.name for entry in entries if not entry.name.startswith(".")]
    return len(names) > len(sequence.images)


def _annotation_folders(path: Path) -> dict[Kind, MaskFolder]:
    """The masks of a folder such as ``01_GT``, ``01_ST`` or ``01_RES``, by kind; empty if it is none."""
    match = _SEQUENCE.fullmatch(path.name)
    called = (match[2] or "").upper() if match else ""
    outlines: Kind = "ST" if called == "ST" else "SEG"
    found: dict[Kind, MaskFolder] = {}
    places: list[tuple[Kind, Path]] = [(outlines, path / "SEG"), ("TRA", path / "TRA")]
    # Files called mask000.tif are results only where the folder or a list of tracks says so.
    if called == "RES" or (path / TRACK_FILES["RES"]).is_file():
        places.append(("RES", path))
    for kind, folder in places:
        files = _files(folder, _MASKS[kind])
        whole = {frame: each[None] for frame, each in files.items() if None in each}
        slices = {
            frame: {z: name for z, name in each.items() if z is not None}
            for frame, each in files.items()
            if frame not in whole
        }
        if files:
            found[kind] = MaskFolder(kind, folder, whole, slices)
    return found


def _files(folder: Path, pattern: re.Pattern[str]) -> dict[int, dict[int | None, str]]:
    """Names of the files of a folder by frame and, where the name has one, slice."""
    found: dict[int, dict[int | None, str]] = {}
    if not folder.is_dir():
        return found
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries)
    for name in names:
        match = pattern.fullmatch(name)
        if not match:
            continue
        key = int(match[2]) if match.lastindex == 2 else None
        other = found.setdefault(int(match[1]), {}).setdefault(key, name)
        if other != name:
            raise InputError(f"{folder} holds both {other} and {name}, which are the same frame; remove one")
    return found


def frame_of(name: str) -> tuple[str, int]:
    """Sequence and number of the frame that a sample called like ``01/t007`` is; -1 if it is called differently."""
    match = re.fullmatch(r"(?:.*/)?(\d{2})/t(\d{3,})", name)
    return (match[1], int(match[2])) if match else ("", -1)


@dataclass(frozen=True)
class Lineage:
    """The tracks of a sequence, in the order of the file.

    Args:
        path: The file.
        label: (K,) the track's value in the masks.
        begin: (K,) its first frame.
        end: (K,) its last frame.
        parent: (K,) the track that divided into it, 0 for none.
    """

    path: Path
    label: NDArray[np.int64]
    begin: NDArray[np.int64]
    end: NDArray[np.int64]
    parent: NDArray[np.int64]

    def parents_of(self, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Parents (N,) of tracks (N,), all of which are in the file."""
        order = np.argsort(self.label)
        return self.parent[order[np.searchsorted(self.label, labels, sorter=order)]]

    def check_frame(self, frame: int, labels: NDArray[np.int64], mask: Path, *, gaps: bool) -> None:
        """Makes sure that a mask holds the tracks that the file says.

        Args:
            frame: Its number.
            labels: The labels that occur in it.
            mask: The mask, for the message.
            gaps: A track may be absent between its first and its last frame.

        Raises:
            InputError: A label is not in the file or not in this frame, or a track is missing in the mask.
        """
        here = (self.begin <= frame) & (self.end >= frame)
        for label in labels[~np.isin(labels, self.label[here])][:1]:
            known = self.label == label
            says = f"lasts from frame {self.begin[known][0]} to {self.end[known][0]} there" if known.any() else "is not"
            raise InputError(
                f"{mask} holds the label {label}, which {says} in {self.path.name}; correct one of the two files"
            )
        needed = here & ((self.begin == frame) | (self.end == frame)) if gaps else here
        for at in np.flatnonzero(needed & ~np.isin(self.label, labels))[:1]:
            raise InputError(
                f"{mask} lacks the label {self.label[at]}, which lasts from frame {self.begin[at]} to {self.end[at]} "
                f"by {self.path.name}, line {at + 1}; a track has no gaps: give its second part its own label, with "
                "the first part as its parent"
            )


def read_lineage(path: Path) -> Lineage:
    """Reads `man_track.txt` or `res_track.txt`: lines of label, first frame, last frame, parent.

    Raises:
        InputError: The file is absent, a line is malformed, a label occurs twice, or a parent does not exist or does
            not end before its child begins; with the line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; the tracks of the masks are expected in it") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as text ({error}); expected lines of four numbers") from error
    rows: list[tuple[int, int, int, int]] = []
    line_of: dict[int, int] = {}
    while lines and not lines[-1].strip():
        lines.pop()
    for number, line in enumerate(lines, 1):
        parts = line.split()
        if len(parts) != 4 or not all(part.isascii() and part.isdecimal() and len(part) < 19 for part in parts):
            raise InputError(
                f"{path}, line {number}: got {line!r}, expected four whole numbers: label, first frame, last frame, "
                "parent (0 for none)"
            )
        label, begin, end, parent = map(int, parts)
        if label < 1 or end < begin:
            what = "the label 0, which is background" if label < 1 else f"the end {end} before the begin {begin}"
            raise InputError(f"{path}, line {number}: track {label} has {what}; correct the line")
        if label in line_of:
            raise InputError(f"{path}, line {number}: label {label} is in line {line_of[label]} already; remove one")
        line_of[label] = number
        rows.append((label, begin, end, parent))
    for number, (label, begin, _, parent) in enumerate(rows, 1):
        if parent and parent not in line_of:
            raise InputError(
                f"{path}, line {number}: the parent {parent} of track {label} is in no line; write 0 for none"
            )
        if parent and rows[line_of[parent] - 1][2] >= begin:
            raise InputError(
                f"{path}, line {number}: track {label} begins in frame {begin}, but its parent {parent} lasts until "
                f"frame {rows[line_of[parent] - 1][2]}; a parent ends before its children begin"
            )
    table = np.array(rows, np.int64).reshape(-1, 4)
    return Lineage(path, table[:, 0], table[:, 1], table[:, 2], table[:, 3])
