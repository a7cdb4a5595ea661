"""Data sets on disk: opened lazily, recognised by their content, written without a trace of a failure.

A format is a module with a `DESCRIPTION`, `recognise`, `read` and `write` (see `everymask.formats.description`). A new
format is one file, one line in `FORMATS` and one round-trip test.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from everymask.errors import InputError, unknown_name
from everymask.formats.joining import PARTS, join_parts

if TYPE_CHECKING:
    from everymask.formats.description import Description, Format, ReadsPredictions
    from everymask.formats.listing import PathLike
    from everymask.types import Dataset, Segments

__all__ = [
    "FORMATS",
    "PARTS",
    "can_read",
    "describe",
    "has_option",
    "open_dataset",
    "open_predictions",
    "recognise",
    "write_dataset",
]

FORMATS: dict[str, str] = {
    "cvat": "everymask.formats.cvat",
    "segmentation_mask": "everymask.formats.segmentation_mask",
    "voc": "everymask.formats.voc",
    "yolo": "everymask.formats.yolo",
    "ctc": "everymask.formats.ctc",
    "coco_panoptic": "everymask.formats.coco_panoptic",
    "coco_stuff": "everymask.formats.coco_stuff",
    "cityscapes": "everymask.formats.cityscapes",
    "ade20k": "everymask.formats.ade20k",
    "labelme": "everymask.formats.labelme",
    "imagej_roi": "everymask.formats.imagej_roi",
    "geojson": "everymask.formats.geojson",
    "coco": "everymask.formats.coco",
    "label_images": "everymask.formats.label_images",
    "image_folder": "everymask.formats.image_folder",
}
"""Name -> module. The most specific layout comes first: where several recognise a path, the first one wins."""


_DEPTH, _MOST_FOLDERS = 3, 300
"""How far below a folder a data set is looked for."""


def open_dataset(path: PathLike, format: str | None = None, *, split: str | None = None, **options: Any) -> Dataset:
    """Opens a data set of any supported format, without reading a pixel of an image.

    Args:
        path: The folder or file.
        format: One of `FORMATS`; recognised by the content of `path` where not given.
        split: Name of the part to open, such as ``"train"``, where a data set has parts. Without it, all parts are
            opened as one, and ``Sample.extra["split"]`` says which a sample is from.
        options: The format's own options, described at its `read` function.

    Raises:
        InputError: The path does not exist or is of no known format, the format or an option is unknown, or the data
            set is not what its format asks for.
    """
    path = _existing(path)
    name = format if format is not None else _recognised(path)
    if name is None:
        parts = _parts(path)
        if not parts and split is not None and (path / split).is_dir():
            return open_dataset(path / split, **options)
        if not parts:
            return open_dataset(_only_one_below(path), split=split, **options)
        if split is not None and split not in parts:
            raise InputError(f"{path} has no part {split!r}; it has {', '.join(parts)}")
        chosen = parts if split is None else {split: parts[split]}
        opened = {part: open_dataset(path / part, each, **options) for part, each in chosen.items()}
        return join_parts(opened, path) if split is None else opened[split]
    read = _reader(name)
    if split is not None:
        options["split"] = split
    _check_options(name, read, options)
    return cast("Dataset", read(path, **options))


def write_dataset(dataset: Dataset, target: PathLike, format: str, **options: Any) -> None:
    """Writes a data set, one sample in memory at a time.

    Everything is written to a hidden folder beside `target`, which takes its place when all is there; after an error or
    an interruption nothing is left.

    Args:
        dataset: What to write.
        target: The folder to make; it may exist if it is empty.
        format: One of `FORMATS`.
        options: The format's own options, described at its `write` function.

    Raises:
        InputError: The format or an option is unknown, `target` holds something already or cannot be written, or the
            format cannot carry the data set.
    """
    module = _module(format)
    _check_options(format, module.write, options)
    with _new_folder(Path(target)) as folder:
        module.write(dataset, folder, **options)


def recognise(path: PathLike) -> str:
    """Name of the format that `path`, or each of its parts, is in.

    Raises:
        InputError: None of them.
    """
    path = _existing(path)
    name = _recognised(path) or next(iter(_parts(path).values()), None)
    return recognise(_only_one_below(path)) if name is None else name


def open_predictions(path: PathLike, dataset: Dataset) -> Mapping[str, Segments] | None:
    """Results of other programs for the samples of a data set, by their names, read when asked for.

    Args:
        path: A file or folder of results in a format that programs leave results in.
        dataset: What they are results for.

    Returns:
        None if `path` is of no such format.

    Raises:
        InputError: The results are malformed, or are none for this data set.
    """
    path = Path(path)
    name = _format_of_results(path)
    return None if name is None else cast("ReadsPredictions", _module(name)).read_predictions(path, dataset)


def _existing(path: PathLike) -> Path:
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist; check the spelling")
    if path.is_dir() and not any(path.iterdir()):
        raise InputError(f"{path} is an empty folder; expected a data set")
    return path


def _recognised(path: Path) -> str | None:
    return next((name for name in FORMATS if _module(name).recognise(path)), None)


def _format_of_results(path: Path) -> str | None:
    """Name of the format that `path` holds results of a program in; None if there is none."""
    for name in FORMATS:
        module = _module(name)
        if hasattr(module, "recognise_predictions") and cast("ReadsPredictions", module).recognise_predictions(path):
            return name
    return None


def _parts(path: Path) -> dict[str, str]:
    """Names and formats of the folders below `path` that are data sets and are called like parts of one."""
    if not path.is_dir():
        return {}
    below = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and entry.name.lower() in PARTS)
    found = {name: _recognised(path / name) for name in below}
    return {name: each for name, each in found.items() if each is not None}


def _only_one_below(path: Path) -> Path:
    """The one data set in the folders below `path`, as archives often wrap theirs in folders.

    Raises:
        InputError: There is none, or there are several; these are named.
    """
    found: dict[Path, str] = {}
    waiting = [(path, 0)]
    looked_at = 0
    while waiting and looked_at < _MOST_FOLDERS and path.is_dir():
        folder, depth = waiting.pop(0)
        for each in sorted(entry for entry in folder.iterdir() if entry.is_dir() and entry.name[0] not in "._"):
            looked_at += 1
            name = _recognised(each) or next(iter(_parts(each).values()), None)
            if name is not None:
                found[each] = name
            elif depth + 1 < _DEPTH:
                waiting.append((each, depth + 1))
    if not found:
        raise _unrecognised(path)
    if len(found) > 1:
        listed = ", ".join(f"{each.relative_to(path).as_posix()} ({name})" for each, name in list(found.items())[:8])
        raise InputError(f"{path} holds {len(found)} data sets: {listed}; name one of them")
    return next(iter(found))


def _unrecognised(path: Path) -> InputError:
    results = _format_of_results(path)
    if results is not None:
        return InputError(f"{path} holds results ({results}), no data set; give it to evaluate as --predictions")
    if path.suffix.lower() == ".json" and path.is_file():
        from everymask.formats.coco_schema import check_keys

        check_keys(path)
    return InputError(
        f"cannot tell what {path} is; expected a data set as {', '.join(FORMATS)} (`everymask formats --json` says "
        "what each looks like); check the path, or say --format"
    )


def describe(name: str) -> Description:
    """What the format called `name` can carry.

    Raises:
        InputError: There is no such format.
    """
    return _module(name).DESCRIPTION


def _module(name: str) -> Format:
    if name not in FORMATS:
        raise unknown_name("format", name, FORMATS)
    return cast("Format", importlib.import_module(FORMATS[name]))


def can_read(name: str) -> bool:
    """Whether data sets can be opened in the format called `name`; the others are for export only."""
    return hasattr(_module(name), "read")


def has_option(name: str, option: str) -> bool:
    """Whether the format called `name` takes an option when it opens a data set."""
    return can_read(name) and option in inspect.signature(_module(name).read).parameters


def _reader(name: str) -> Callable[..., Any]:
    module = _module(name)
    if not hasattr(module, "read"):
        raise InputError(f"the format {name!r} is for export only; give the data set that it was exported from")
    return module.read


def _check_options(name: str, function: Callable[..., Any], options: dict[str, Any]) -> None:
    """Makes sure that `function` takes all of `options`."""
    known = list(inspect.signature(function).parameters)[1:]
    for option in options:
        if option == "split" and option not in known:
            raise InputError(f"the format {name!r} has no splits; leave out split and name the part's own path")
        if option == "missing_images" and option not in known:
            raise InputError(f"the format {name!r} finds its images by itself, so none can be missing")
        if option not in known:
            raise unknown_name(f"option of the format {name!r}", option, known)


@contextlib.contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """A temporary folder that becomes `target` when the block ends without an error."""
    if target.suffix.lower() in {".json", ".zip", ".tif", ".png", ".csv"}:
        raise InputError(
            f"{target} looks like a file, but a data set is written to a folder; leave out {target.suffix}"
        )
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        kind = "is a folder that is not empty" if target.is_dir() else "is a file"
        raise InputError(f"{target} {kind}; choose a new folder for the data set")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name[:40]}."))
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror}; choose another place") from error
    try:
        folder = temporary / "dataset"
        folder.mkdir()
        yield folder
        # A folder can be renamed onto an empty one, but onto nothing else.
        folder.replace(target)
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror or error}; free some space") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
