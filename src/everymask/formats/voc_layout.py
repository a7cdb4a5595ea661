"""Where the files of a Pascal VOC data set are, which classes it has, and which lists of images."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from everymask.errors import InputError
from everymask.formats.exporting import check_relative
from everymask.formats.listing import list_images, natural_key
from everymask.formats.voc_masks import NO_CLASS, VOID, Palette, colour_numbers, number_colours
from everymask.formats.voc_xml import parse
from everymask.types import Categories, Category

CLASSES = [
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
]
"""The classes of VOC 2007 to 2012; their values in masks are 1 to 20."""
CLASS_FILES = ("class_names.txt", "classes.txt", "labels.txt")
"""Files that list classes: one a line, in the order of their values; the first line is background, or value 1."""
BACKGROUND = {"background", "_background_", "__background__"}
_IGNORED = {"ignored", "ignore", "__ignore__", "void", "_void_"}
RESERVED = BACKGROUND | _IGNORED
"""Names in `labelmap.txt` that are no classes, in lower case."""
_ANNOTATIONS = ("annotations", "annotation", "xmls", "xml", "labels")
_ROOT = re.compile(rb"<annotation[\s/>]")
_OBJECT = re.compile(r"<object[\s>].*?</object>", re.DOTALL)
_INNER = re.compile(r"<(part|attributes)[\s>].*?</\1>", re.DOTALL)
_NAME = re.compile(r"<name>([^<]*)</name>")
_DEVKIT = re.compile(r"VOC\d{4}.*", re.IGNORECASE)
_DEEPEST, _ENTERED, _PEEKED = 6, 20, 5
"""How many levels below its folder, how many folders of each and how many files of these are looked into for an XML."""
_LABEL = re.compile(r"(?P<name>[^:]+):(?P<colour>\d+,\d+,\d+)?(:[^:]*){0,2}")


@dataclass(frozen=True)
class Layout:
    """The folders of a data set; those that are absent are None.

    Args:
        root: The data set.
        annotations: XML files.
        classes: Pictures of classes.
        objects: Pictures of objects.
        sets: Lists of images.
    """

    root: Path
    annotations: Path | None
    classes: Path | None
    objects: Path | None
    sets: Path | None


def find_layout(folder: Path) -> Layout | None:
    """The layout of a folder, judged by names and the beginning of one XML file; None if it is no VOC data set."""
    below = {entry.name.casefold(): Path(entry.path) for entry in os.scandir(folder) if entry.is_dir()}
    named = (below[name] for name in _ANNOTATIONS if name in below)
    pictures = [below.get(name) for name in ("segmentationclass", "segmentationobject")]
    classes, objects = (each if each is not None and _has_picture(each) else None for each in pictures)
    # Beside pictures, XML files that cannot be told are meant to be annotations: reading them says what is wrong.
    certain = classes is not None or objects is not None
    annotations = next((each for each in named if _has_annotation(each, _DEEPEST, any_xml=certain)), None)
    if annotations is None and classes is None and objects is None:
        if not _has_annotation(folder):
            return None
        annotations = folder
    return Layout(folder, annotations, classes, objects, below.get("imagesets"))


def find_roots(path: Path) -> dict[str, Layout]:
    """The data set at `path`, or those of a devkit below it (`VOCdevkit/VOC2012`), by name; the former has none."""
    if not path.is_dir():
        return {}
    if (layout := find_layout(path)) is not None:
        return {"": layout}
    for folder in (path, path / "VOCdevkit"):
        if folder.is_dir():
            names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and _DEVKIT.match(entry.name))
            found = {name: find_layout(folder / name) for name in names}
            if any(found.values()):
                return {name: each for name, each in found.items() if each is not None}
    return {}


def _has_annotation(folder: Path, levels: int = 0, *, any_xml: bool = False) -> bool:
    """Whether one of the first XML files of a folder is a VOC annotation.

    Args:
        folder: The folder.
        levels: How many levels of folders below it are looked into, too.
        any_xml: Take any XML file for one.
    """
    with os.scandir(folder) as entries:
        first = sorted(islice(entries, 1000), key=lambda entry: entry.name)
    files = [
        entry for entry in first if entry.name.lower().endswith(".xml") and entry.name[0] != "." and entry.is_file()
    ]
    if files and any_xml:
        return True
    for entry in files[:_PEEKED]:
        with Path(entry.path).open("rb") as stream:
            # A declaration, a comment or a document type may come before the root.
            if _ROOT.search(stream.read(4096)) is not None:
                return True
    below = [Path(entry.path) for entry in first if entry.is_dir()] if levels else []
    return any(_has_annotation(each, levels - 1, any_xml=any_xml) for each in below[:_ENTERED])


def _has_picture(folder: Path) -> bool:
    for _, _, files in os.walk(folder):
        if any(name.lower().endswith(".png") and not name.startswith(".") for name in files):
            return True
    return False


def annotation_files(layout: Layout) -> dict[str, Path]:
    """XML files by their paths without suffix, below the folder of annotations."""
    folder = layout.annotations
    if folder is None:
        return {}
    found: dict[str, Path] = {}
    for current, folders, names in os.walk(folder):
        if folder == layout.root:
            folders.clear()  # images and XML side by side: what lies below is another data set
        for name in names:
            if name.lower().endswith(".xml") and not name.startswith("."):
                path = Path(current, name)
                found[path.relative_to(folder).with_suffix("").as_posix()] = path
    return found


def mask_files(folder: Path | None) -> dict[str, Path]:
    """Mask files by their paths without suffix, below their folder."""
    if folder is None:
        return {}
    return {name.rpartition(".")[0]: folder / name for name in list_images(folder, recursive=True)}


# -- classes ---------------------------------------------------------------------------------------------------------


def find_classes(layout: Layout, given: Sequence[str] | None, siblings: Iterable[Layout] = ()) -> tuple[
    Categories, Palette
]:  # fmt: skip
    """The classes of a data set and the values they have in pictures.

    In this order: those that are `given`; `labelmap.txt`; one of `CLASS_FILES`; the 20 of VOC, if the lists of images
    are those of the devkit, or every name in the XML files is one of them, or there are only masks; else the names in
    the XML files, sorted.

    Args:
        layout: The data set.
        given: Names, the first for value 1.
        siblings: The other parts of it, whose classes are its own.

    Raises:
        InputError: A list of classes is malformed, or names a class twice.
    """
    root = layout.root
    if given is None and (root / "labelmap.txt").is_file():
        return read_labelmap(root / "labelmap.txt")
    listed = next((root / name for name in CLASS_FILES if (root / name).is_file()), None)
    source = "the classes that were given"
    if given is not None:
        categories = Categories([given] if isinstance(given, str) else given)
    elif listed is not None:
        source, categories = str(listed), _read_class_list(listed)
    else:
        source = f"a list of classes ({root / CLASS_FILES[0]})"
        names: set[str] = set()
        if not (layout.sets and any((layout.sets / "Main").glob("aeroplane_*.txt"))):
            for each in (layout, *siblings):
                for path in annotation_files(each).values():
                    names |= object_names(path)
        categories = Categories(CLASSES if names <= set(CLASSES) else sorted(names))
    return categories, Palette(None, frozenset(categories.ids.tolist()), source)


def object_names(path: Path) -> set[str]:
    """The classes of the objects in an XML file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        text = ""
    # Seven times faster than parsing, which is left to files with comments, CDATA or another encoding.
    if "<annotation" in text and "<!" not in text:
        blocks = (_NAME.search(_INNER.sub("", block)) for block in _OBJECT.findall(text))
        return {html.unescape(found[1]).strip() for found in blocks if found is not None} - {""}
    return {(each.findtext("name") or "").strip() for each in parse(path).findall("object")} - {""}


def _read_class_list(path: Path) -> Categories:
    lines = [line.strip() for line in read_lines(path)]
    if lines and lines[0].casefold() in _IGNORED:
        lines = lines[1:]  # the value -1 of labelme
    first = 0 if lines and lines[0].casefold() in BACKGROUND else 1
    entries = [Category(value, name) for value, name in enumerate(lines, first) if name and value > 0]
    try:
        return Categories(entries)
    except InputError as error:
        raise InputError(f"{path}: {error}; name each class once") from error


def read_labelmap(path: Path) -> tuple[Categories, Palette]:
    """Classes and colours of `labelmap.txt`: a line ``name:red,green,blue:parts:actions`` for each class.

    Background (by its name, or black) and void (``ignored``) are no categories; the others have the ids 1, 2, ... in
    order. A class without a colour has that of its line in the VOC colour map. Parts and actions are passed over.

    Raises:
        InputError: A line is malformed, or a name or a colour is there twice.
    """
    categories: list[Category] = []
    values: dict[int, int] = {}
    position = 0
    for number, line in enumerate(read_lines(path), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        found = _LABEL.fullmatch(text)
        parts = [int(each) for each in (found["colour"] or "").split(",") if each] if found else []
        if found is None or any(each > 255 for each in parts):
            raise InputError(
                f"{path}, line {number}: got {text[:60]!r}, expected name:red,green,blue:parts:actions with 0..255"
            )
        colour = np.array(parts, np.uint8) if parts else number_colours(np.array(position))
        position += 1
        key = int(colour_numbers(colour))
        name = found["name"].strip()
        if key in values:
            raise InputError(f"{path}, line {number}: the colour of {name!r} is that of another class; change it")
        if name.casefold() in _IGNORED:
            values[key] = NO_CLASS
        elif name.casefold() in BACKGROUND:
            values[key] = 0
        else:
            red, green, blue = (int(each) for each in colour)
            categories.append(Category(len(categories) + 1, name, colour=(red, green, blue)))
            values[key] = len(categories)
    values.setdefault(0, 0)
    values.setdefault(VOID, NO_CLASS)
    try:
        made = Categories(categories)
    except InputError as error:
        raise InputError(f"{path}: {error}; name each class once") from error
    return made, Palette(values, frozenset(made.ids.tolist()), str(path))


def read_lines(path: Path) -> list[str]:
    """The lines of a text file.

    Raises:
        InputError: It cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}; expected UTF-8 text") from error


# -- lists of images -------------------------------------------------------------------------------------------------


def read_sets(layout: Layout, known: Iterable[str]) -> dict[str, list[str]]:
    """Names of images by list, such as ``"Main/train"``; lists of single classes (``Main/bird_train.txt``) left out.

    A line is a name, in quotes or not, perhaps with a number behind it.

    Args:
        layout: The data set.
        known: Names of all images and annotations, to tell ``cat 1`` from ``cat`` with a number.

    Raises:
        InputError: A name leads out of the data set.
    """
    if layout.sets is None:
        return {}
    files = {
        path.relative_to(layout.sets).with_suffix("").as_posix(): path
        for path in sorted(layout.sets.rglob("*.txt"), key=lambda path: natural_key(str(path)))
        if not path.name.startswith(".")
    }
    known = set(known)
    found: dict[str, list[str]] = {}
    for name, path in files.items():
        folder, _, stem = name.rpartition("/")
        plain, _, part = stem.rpartition("_")
        if plain and f"{folder}/{part}".lstrip("/") in files:
            continue
        names = [_listed(line.strip(), known) for line in read_lines(path) if line.strip()]
        for each in names:
            check_relative(each, str(path))
        found[name] = list(dict.fromkeys(names))
    return found


def _listed(line: str, known: set[str]) -> str:
    if line[0] == '"' and (end := line.find('"', 1)) > 0:
        return line[1:end]
    head = line.rpartition(" ")[0].rstrip()
    return head if line not in known and head and re.fullmatch(r".*\s-?\d+", line) else line


def default_sets(split: str | None, *, boxes: bool, masks: bool) -> list[str]:
    """The lists that an image of a split is in, if nothing else is said."""
    name = split or "default"
    return [f"Main/{name}"] * (boxes or not masks) + [f"Segmentation/{name}"] * masks


def split_of(sets: Iterable[str]) -> str | None:
    """The part that the lists of an image tell: ``train`` rather than ``trainval``; None for ``default``."""
    names = dict.fromkeys(each.rpartition("/")[2] for each in sets)
    names.pop("default", None)
    return min(names, key=lambda name: name == "trainval", default=None)
