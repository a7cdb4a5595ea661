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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from everymask.errors import InputError, unknown_name

if TYPE_CHECKING:
    from everymask.formats.description import Description, Format
    from everymask.formats.listing import PathLike
    from everymask.types import Dataset

__all__ = ["FORMATS", "describe", "open_dataset", "recognise", "write_dataset"]

FORMATS: dict[str, str] = {
    "coco": "everymask.formats.coco",
    "label_images": "everymask.formats.label_images",
}
"""Name -> module. The most specific layout comes first: where several recognise a path, the first one wins."""


def open_dataset(path: PathLike, format: str | None = None, *, split: str | None = None, **options: Any) -> Dataset:
    """Opens a data set of any supported format, without reading a pixel of an image.

    Args:
        path: The folder or file.
        format: One of `FORMATS`; recognised by the content of `path` where not given.
        split: Name of the part to open, such as ``"train"``, where a data set has parts.
        options: The format's own options, described at its `read` function.

    Raises:
        InputError: The path does not exist or is of no known format, the format or an option is unknown, or the data
            set is not what its format asks for.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist; check the spelling")
    if path.is_dir() and not any(path.iterdir()):
        raise InputError(f"{path} is an empty folder; expected a data set")
    name = format if format is not None else recognise(path)
    read = _module(name).read
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
    """Name of the format that `path` is in.

    Raises:
        InputError: None of them.
    """
    path = Path(path)
    for name in FORMATS:
        if _module(name).recognise(path):
            return name
    if path.suffix.lower() == ".json" and path.is_file():
        from everymask.formats.coco_schema import check_keys

        check_keys(path)
    layouts = "; ".join(f"{name} ({describe(name).layout})" for name in FORMATS)
    raise InputError(f"cannot tell what {path} is; expected one of: {layouts}; say --format")


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


def _check_options(name: str, function: Callable[..., Any], options: dict[str, Any]) -> None:
    """Makes sure that `function` takes all of `options`."""
    known = list(inspect.signature(function).parameters)[1:]
    for option in options:
        if option == "split" and option not in known:
            raise InputError(f"the format {name!r} has no splits; leave out split and name the part's own path")
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
