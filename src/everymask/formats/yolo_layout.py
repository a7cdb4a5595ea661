"""Where the images, the labels and the names of the classes of a YOLO data set are.

Three layouts:

- *Ultralytics*: a YAML with ``names`` (a list, or a dictionary of index and name) and ``train``, ``val``, ``test``:
  each a folder of images, several of them, or a text file that lists images; relative to ``path`` (to the YAML).
- *Darknet*: ``obj.data`` with ``train``, ``valid`` (text files that list images) and ``names`` (a name a line).
- *Folders*: ``classes.txt`` or ``obj.names`` beside label files, or beside ``images/`` and ``labels/`` (with folders
  such as ``train`` in both, or without), or in ``labels/``.

The label file of an image has its name and the suffix .txt. It lies where the image does, with ``labels`` in place of
the last folder called ``images`` on the way; or beside the image.

Paths in a YAML or a list are often those of another computer. Of each, the longest end that exists below the folder of
the YAML is taken (``/home/ann/coins/images/train`` finds ``images/train``); ``..`` leads one folder up at most. Nothing
else is read.
"""

from __future__ import annotations

import os
import re
import reprlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from everymask.errors import InputError
from everymask.formats.class_names import read_names
from everymask.formats.exporting import check_relative
from everymask.formats.listing import list_images, natural_key
from everymask.formats.places import absent_images, candidates, image_folder, images_by_stem

PARTS = ("train", "val", "valid", "test")
"""Keys of a YAML or a ``.data`` file that name parts. Another one does where its folder has ``images`` on the way."""
NAME_FILES = ("classes.txt", "obj.names", "classes.names", "_darknet.labels")
_LARGEST = 2**24  # bytes of a YAML; real ones have a few thousand
_ROW = re.compile(rb"\s*\d+(\s+[-+.\deE]+){4,}\s*")


@dataclass(frozen=True)
class Part:
    """Images and their label files.

    Args:
        names: Names of the samples.
        images: Image files.
        labels: Label file of each image, None where there is none.
    """

    names: list[str]
    images: list[Path]
    labels: list[Path | None]


@dataclass(frozen=True)
class Layout:
    """What says where everything is.

    Args:
        source: The YAML, ``.data`` file or file of names, or the folder without any.
        names: The classes, in order of their indices; None where nothing names them.
        parts: Name of the part -> what the source says of its images. Empty where they are all in `folder`.
        folder: What paths are relative to.
    """

    source: Path
    names: list[str] | None
    parts: dict[str, list[str]]
    folder: Path


def find_layout(path: Path) -> Layout | None:
    """The layout of a file or a folder; None if it is of none.

    Raises:
        InputError: A YAML that must be of YOLO is malformed.
    """
    if path.is_file():
        return _from_file(path)
    described = sorted(each for each in path.iterdir() if each.suffix.lower() in {".yaml", ".yml", ".data"})
    found = [layout for each in described[:8] if (layout := _from_file(each))]
    if len(found) == 1:
        return found[0]
    if len(found) > 1:
        listed = ", ".join(each.source.name for each in found)
        raise InputError(f"{path} holds several descriptions of YOLO data sets: {listed}; name one of them")
    for folder in (path, path / "labels"):
        for name in NAME_FILES:
            if (folder / name).is_file() and has_labels(path):
                return Layout(folder / name, read_names(folder / name), _parts_below(path), path)
    return None


def _parts_below(folder: Path) -> dict[str, list[str]]:
    """Folders such as ``train`` in `images/`."""
    images = folder / "images"
    below = sorted(each.name for each in images.iterdir() if each.is_dir()) if images.is_dir() else []
    return {name: [f"images/{name}"] for name in below if name.lower() in {*PARTS, "training", "validation", "testing"}}


def has_labels(folder: Path) -> bool:
    """Whether a folder, its `labels`, or a folder in that, has text files, the first of which begins with a label."""
    labels = folder / "labels"
    below = sorted(each for each in labels.iterdir() if each.is_dir()) if labels.is_dir() else []
    for place in (folder, labels, *below[:4]):
        if row := _first_row(place):
            return _ROW.fullmatch(row) is not None
    return False


def _first_row(folder: Path) -> bytes:
    """The first line with content in the first text files of a folder; b"" if there is none."""
    if not folder.is_dir():
        return b""
    files = [each.path for each in os.scandir(folder) if each.name.endswith(".txt") and each.name not in NAME_FILES]
    for file in sorted(files)[:200]:
        with Path(file).open("rb") as stream:
            if row := next((line for line in stream if line.strip()), b""):
                return row
    return b""


# -- descriptions ------------------------------------------------------------------------------------------------------


def _from_file(path: Path) -> Layout | None:
    if path.suffix.lower() in {".yaml", ".yml"}:
        return _from_yaml(path)
    return _from_darknet(path) if path.suffix.lower() == ".data" else None


def _from_yaml(path: Path) -> Layout | None:
    """The layout in a YAML, None if it does not look like one of YOLO."""
    if path.stat().st_size > _LARGEST:
        return None
    import yaml

    try:
        content = yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or "names" not in content:
        return None
    keys = [*(key for key in PARTS if key in content), *(key for key in content if _is_part(content[key]))]
    if not keys:
        return None
    if "kpt_shape" in content:
        raise InputError(f"{path} describes key points (kpt_shape), which EveryMask does not read; remove them")
    names = content["names"]
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or sorted(names, key=str) != sorted(range(len(names)), key=str):
        raise InputError(f"{path}: names is {_short(names)}; expected a list, or a dictionary of 0, 1, 2 ... and names")
    root = content.get("path")
    parts = {}
    for key in dict.fromkeys(keys):
        given = content.get(key)
        if given is None or given == "":
            continue
        texts = given if isinstance(given, list) else [given]
        if not all(isinstance(each, str) for each in texts):
            raise InputError(f"{path}: {key} is {_short(given)}; expected a folder, several, or a text file")
        parts[str(key)] = [str(PurePosixPath(root, each)) if isinstance(root, str) else each for each in texts]
    ordered = [_name(names[index], path) for index in range(len(names))]
    return Layout(path, ordered, parts, path.resolve().parent)


def _is_part(value: Any) -> bool:
    return isinstance(value, str) and "images" in PurePosixPath(value).parts


def _name(value: Any, path: Path) -> str:
    if isinstance(value, (dict, list)) or value is None:
        raise InputError(f"{path}: a class is called {_short(value)}; expected a text")
    return str(value)


def _from_darknet(path: Path) -> Layout | None:
    """The layout in lines of ``key = value``."""
    try:
        lines = path.read_text("utf-8").splitlines()[:100]
    except (OSError, UnicodeDecodeError):
        return None
    pairs = [line.partition("=") for line in lines if not line.startswith("#")]
    content = {key.strip(): value.strip() for key, equals, value in pairs if equals}
    if "names" not in content:
        return None
    folder = path.resolve().parent
    names = locate(content["names"], folder)
    if names is None:
        raise InputError(f"{path}: its names, {content['names']}, are not beside it; add the file")
    parts = {key: [content[key]] for key in PARTS if content.get(key)}
    return Layout(path, read_names(names), parts, folder)


def locate(text: str, folder: Path) -> Path | None:
    """The file or folder that a path in a description means, by the rule at the top of this module; None if absent."""
    parts = [each for each in text.replace("\\", "/").split("/") if each not in {"", "."}]
    # As it is, if that stays below the folder above.
    above = folder.parent
    direct = Path(os.path.normpath(folder / "/".join(parts))) if not text.startswith("/") else Path(text)
    if direct.is_relative_to(above) and direct != above and direct.exists():
        return direct
    while ".." in parts:
        parts = parts[parts.index("..") + 1 :]
    for start in range(len(parts)):
        if (folder / "/".join(parts[start:])).exists():
            return folder / "/".join(parts[start:])
    return None


# -- images and labels -------------------------------------------------------------------------------------------------


def list_part(layout: Layout, given: Sequence[str], images: Path | None, missing: str) -> Part:
    """Images and label files of a part.

    Args:
        layout: From `find_layout`.
        given: Folders of images or text files that list them, as in `Layout.parts`; none for all in the folder.
        images: The folder of images, if a user says.
        missing: One of `places.MISSING`.

    Raises:
        InputError: A folder or a list is absent, or images are and may not.
    """
    found = []
    for text in given:
        place = locate(text, layout.folder)
        if place is None:
            raise InputError(f"{layout.source}: {text} is not below {layout.folder}; correct the path")
        found.append(_of_folder(place, missing) if place.is_dir() else _of_list(place, layout, images, missing))
    if not given:
        found.append(_loose(layout, images, missing))
    names = [name for each in found for name in each.names]
    if len(set(names)) != len(names):
        double = next(name for name, number in Counter(names).items() if number > 1)
        raise InputError(f"{layout.source}: two images are called {double}; rename one, and its label file")
    return Part(
        names, [file for each in found for file in each.images], [file for each in found for file in each.labels]
    )


def _of_folder(folder: Path, missing: str) -> Part:
    """All images below a folder."""
    files = list_images(folder, recursive=True)
    stems = [_stem(each) for each in files]
    labels = mirrored(folder)
    # Beside the images there may be texts of any kind.
    absent = sorted(_text_files(labels) - set(stems), key=natural_key) if labels != folder else []
    if absent and missing == "keep":
        files, stems = [*files, *absent], [*stems, *absent]
    elif absent and missing == "error":
        raise InputError(
            f"{labels}: {len(absent)} label files have no image in {folder}: {', '.join(absent[:3])}"
            f"{' ...' if len(absent) > 3 else ''}; add the images, or say --skip-missing to leave the labels out"
        )
    return Part(stems, [folder / each for each in files], _label_files(labels, stems))


def _of_list(path: Path, layout: Layout, images: Path | None, missing: str) -> Part:
    """The images that a text file lists, one a line; the folder that all of them lie in is no part of their names."""
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}; expected a text file with an image a line") from error
    listed = [
        [part for part in line.strip().replace("\\", "/").split("/") if part != "."] for line in lines if line.strip()
    ]
    common = []
    for level in zip(*(each[:-1] for each in listed), strict=False):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    names = [check_relative("/".join(each[len(common) :]), str(path)) for each in listed]
    places = [place for text in _mirrored_text(common) if (place := locate(text, layout.folder)) and place.is_dir()]
    home = locate("/".join(common), layout.folder) or layout.folder
    folder = _image_folder(path, names, images, [home, *candidates(layout.folder, common[-1:])], missing)
    if missing == "skip":
        absent = set(absent_images(folder, names))
        names = [each for each in names if each not in absent]
    stems = [_stem(each) for each in names]
    return Part(stems, [folder / each for each in names], _label_files(places[0] if places else home, stems))


def _image_folder(source: Path, names: Sequence[str], given: Path | None, places: Sequence[Path], missing: str) -> Path:
    return image_folder(source, names, [given] if given is not None else list(dict.fromkeys(places)), missing=missing)


def _loose(layout: Layout, images: Path | None, missing: str) -> Part:
    """Images in `images/`, or beside their label files, or anywhere near."""
    for folder in (layout.folder / "images", layout.folder):
        if folder.is_dir() and list_images(folder, recursive=folder != layout.folder) and images is None:
            return _of_folder(folder, missing) if folder != layout.folder else _beside(folder)
    labels = layout.folder / "labels" if (layout.folder / "labels").is_dir() else layout.folder
    stems = sorted(_text_files(labels), key=natural_key)
    places = [images] if images is not None else candidates(layout.folder)
    folder, files = images_by_stem(layout.source, stems, places)
    absent = [stem for stem in stems if stem not in files]
    if absent and missing == "error":
        raise InputError(
            f"{labels}: {len(absent)} of {len(stems)} label files have no image in {folder}: "
            f"{', '.join(absent[:3])}; say where the images are (option images), or --skip-missing to leave them out"
        )
    kept = [stem for stem in stems if stem in files or missing == "keep"]
    return Part(kept, [folder / files.get(stem, stem) for stem in kept], _label_files(labels, kept))


def _beside(folder: Path) -> Part:
    files = list_images(folder)
    stems = [_stem(each) for each in files]
    return Part(stems, [folder / each for each in files], _label_files(folder, stems))


def mirrored(folder: Path) -> Path:
    """Where the label files of a folder of images are: `labels` instead of the last `images` on the way, or there."""
    for text in _mirrored_text(folder.parts):
        if Path(text).is_dir():
            return Path(text)
    return folder


def _mirrored_text(parts: Sequence[str]) -> list[str]:
    """The path with ``labels`` for the last ``images``, if it has that, and as it is."""
    found = [i for i, part in enumerate(parts) if part == "images"]
    swapped = [*parts[: found[-1]], "labels", *parts[found[-1] + 1 :]] if found else parts
    return list(dict.fromkeys(os.path.join(*each) if each else "." for each in (swapped, parts)))  # noqa: PTH118


def _label_files(folder: Path, stems: Sequence[str]) -> list[Path | None]:
    """The label file of each image that has one; each folder is listed once."""
    present = _text_files(folder)
    return [folder / f"{stem}.txt" if stem in present else None for stem in stems]


def _text_files(folder: Path) -> set[str]:
    """Paths below a folder, without suffix, of its text files but for those of names."""
    found = set()
    for root, folders, files in os.walk(folder):
        folders[:] = [each for each in folders if not each.startswith(".")]
        below = Path(root).relative_to(folder).as_posix()
        prefix = "" if below == "." else f"{below}/"
        found.update(prefix + name[:-4] for name in files if name.endswith(".txt") and name not in NAME_FILES)
    return found


def _stem(name: str) -> str:
    return name.rpartition(".")[0] or name


def _short(value: Any) -> str:
    # Of nested lists, too: a few lines of YAML can stand for one of any length.
    text = reprlib.repr(value)
    return text if len(text) < 80 else f"{text[:80]}..."
