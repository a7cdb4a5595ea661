"""Finding the files of Cityscapes, whose names say everything: ``CITY_SEQUENCE_FRAME_TYPE.png``.

Found are the official layout (``leftImg8bit/SPLIT/CITY`` beside ``gtFine/SPLIT/CITY``), either half of it alone, and
any other arrangement in folders, such as pix2pixHD's ``train_img`` and ``train_inst``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from everymask.errors import InputError
from everymask.formats.listing import natural_key

IMAGE = "leftImg8bit"
ANNOTATIONS = ("gtFine", "gtCoarse")
TRUTHS = ("instanceIds", "labelIds", "labelTrainIds", "polygons")
"""What can be read as truth; the first ones tell most."""

_FILE = re.compile(
    r"(?P<core>(?P<city>[^_/]+)_\d{6}_\d{6})_(?:(?P<image>leftImg8bit)\.(?:png|jpe?g)"
    r"|(?P<annotations>gtFine|gtCoarse)_(?P<kind>instanceIds|labelIds|labelTrainIds|color)\.png"
    r"|(?P<outlines>gtFine|gtCoarse)_polygons\.json)",
    re.IGNORECASE,
)
_CORE = re.compile(r"[^_/]+_\d{6}_\d{6}(?!\d)")
_PART = re.compile(r"(train_extra|train|training|val|valid|validation|test|testing)(?:[_-].*)?", re.IGNORECASE)
_LISTED = 200
"""Entries of a folder that are looked at to recognise it."""
_ENTERED = 5
"""Folders in a folder that are looked into to recognise it."""


@dataclass
class Frame:
    """The files of one image.

    Args:
        core: City, sequence and frame: what the names of all its files begin with.
        split: Name of the part it belongs to, empty if its place does not say.
        city: Name of the folder it is in if that is the city, else empty.
        image: The picture, if there is one.
        truths: Files of annotation by kind, see `TRUTHS`.
    """

    core: str
    split: str = ""
    city: str = ""
    image: Path | None = None
    truths: dict[str, Path] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """City and core, as they lie below the folder of the part."""
        return f"{self.city}/{self.core}" if self.city else self.core


def core_of(name: str) -> str | None:
    """City, sequence and frame at the beginning of the last part of a path; None if that is called otherwise."""
    found = _CORE.match(name.rpartition("/")[2])
    return found[0] if found else None


def looks_like_cityscapes(folder: Path) -> bool:
    """Whether a folder holds annotations of Cityscapes, or nothing but its images; a few names are looked at.

    Images alone are not enough where other annotations may lie with them: there are copies of Cityscapes in the form of
    COCO.
    """
    seen = set(_types(folder, 3))
    if "truth" in seen:
        return True
    alone = (folder / IMAGE).is_dir() or IMAGE in folder.resolve().parts or "folder" not in set(_types(folder, 0))
    return "image" in seen and "other" not in seen and alone


def _types(folder: Path, levels: int) -> Iterator[str]:
    """``"truth"``, ``"image"``, ``"folder"``, or ``"other"`` for what may be another format's annotations."""
    below = []
    with os.scandir(folder) as entries:
        for number, entry in enumerate(entries):
            if number > _LISTED:
                break
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                below.append(entry.name)
                yield "folder"
            elif found := _FILE.fullmatch(entry.name):
                yield "image" if found["image"] else "truth"
            elif entry.name.lower().endswith((".json", ".xml", ".yaml", ".yml", ".csv", ".txt")):
                yield "other"
    if levels:
        known = {IMAGE: 1, ANNOTATIONS[0]: 0, ANNOTATIONS[1]: 0}
        below.sort(key=lambda name: (known.get(name, 2), name))
        for each in below[:_ENTERED]:
            yield from _types(folder / each, levels - 1)


def find_frames(folder: Path, annotations: str | None) -> list[Frame]:
    """All images and annotations below a folder, in natural order.

    Of a folder inside the official layout, such as ``gtFine/val``, the other half is found, too.

    Args:
        folder: The data set, or a part of it.
        annotations: ``"gtFine"`` or ``"gtCoarse"``; by default the first of them that there is.

    Raises:
        InputError: Two files have the same name, or there is nothing.
    """
    if annotations is not None and annotations not in ANNOTATIONS:
        raise InputError(f"annotations must be one of {', '.join(ANNOTATIONS)}, got {annotations!r}")
    frames: dict[str, Frame] = {}
    truths: dict[str, list[tuple[str, str, Path, str, str]]] = {each: [] for each in ANNOTATIONS}
    pictures = []
    for path, found, split, folder_name in _walk([folder, *_other_half(folder)]):
        city = folder_name if folder_name == found["city"] else ""
        if found["image"]:
            pictures.append((path, found["core"], split, city))
            continue
        kind = found["kind"] or "polygons"
        fineness = (found["annotations"] or found["outlines"]).lower()
        chosen = ANNOTATIONS[0] if fineness == ANNOTATIONS[0].lower() else ANNOTATIONS[1]
        kind = next((each for each in TRUTHS if each.lower() == kind.lower()), "")
        truths[chosen].append((found["core"], kind, path, split, city))
    which = annotations or next((each for each in ANNOTATIONS if truths[each]), ANNOTATIONS[0])
    for core, kind, path, split, city in truths[which]:
        frame = frames.setdefault(core, Frame(core))
        frame.split, frame.city = frame.split or split, frame.city or city
        if not kind:
            continue  # a coloured picture, which is for people
        if kind in frame.truths:
            raise _double(folder, frame.truths[kind], path)
        frame.truths[kind] = path
    for path, core, split, city in pictures:
        frame = frames.setdefault(core, Frame(core))
        if frame.image is not None:
            raise _double(folder, frame.image, path)
        frame.image = path
        frame.split, frame.city = frame.split or split, frame.city or city
    if not frames:
        raise InputError(
            f"{folder} holds no file of Cityscapes; expected names such as aachen_000000_000019_{IMAGE}.png"
        )
    return sorted(frames.values(), key=lambda each: (each.split, natural_key(each.core)))


def _walk(folders: list[Path]) -> Iterator[tuple[Path, re.Match[str], str, str]]:
    """Files of Cityscapes below some folders, each with its part and its folder; links to folders are not followed."""
    for folder in folders:
        above = folder.resolve().parts
        for place, below, names in os.walk(folder):
            below[:] = sorted(each for each in below if not each.startswith("."))
            inside = Path(place).relative_to(folder).parts
            split, city = _place(above, inside)
            for name in names:
                if found := _FILE.fullmatch(name):
                    yield Path(place, name), found, split, city


def _other_half(folder: Path) -> list[Path]:
    """The folders that belong to one inside ``leftImg8bit``, ``gtFine`` or ``gtCoarse``."""
    parts = list(folder.resolve().parts)
    for position in range(len(parts) - 1, 0, -1):
        if parts[position] in (IMAGE, *ANNOTATIONS):
            others = ANNOTATIONS if parts[position] == IMAGE else (IMAGE,)
            places = [Path(*parts[:position], other, *parts[position + 1 :]) for other in others]
            return [each for each in places if each.is_dir()]
    return []


def _place(above: tuple[str, ...], inside: tuple[str, ...]) -> tuple[str, str]:
    """The part of the data set and the city, as far as the names of folders say.

    Args:
        above: The data set's folder and those above it.
        inside: The folders from there to the file.
    """
    folders = above + inside
    for position in range(len(folders) - 1, -1, -1):
        if folders[position] in (IMAGE, *ANNOTATIONS):
            below = folders[position + 1 :]
            return (below[0] if below else ""), (below[1] if len(below) > 1 else "")
    named = next((found[1].lower() for each in inside if (found := _PART.fullmatch(each))), "")
    return named, inside[-1] if inside else ""


def _double(folder: Path, first: Path, second: Path) -> InputError:
    return InputError(
        f"{folder} holds {first} and {second}, which are of the same image; name the folder of one of them, or "
        "remove one"
    )
