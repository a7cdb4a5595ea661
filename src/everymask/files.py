"""Writing files so that a reader never meets half of one."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from everymask.errors import InputError


@contextlib.contextmanager
def atomic_write(path: Path | str) -> Iterator[Path]:
    """Gives a temporary path beside `path` and renames it onto `path` when the block ends without an error.

    The temporary file keeps the suffix of `path`, so that writers that go by the suffix work. On any error,
    Ctrl-C included, the temporary file is removed and an existing file at `path` stays as it was.

    Raises:
        InputError: The folder cannot be made or written, or the disk is full.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem[:40]}.", suffix=path.suffix)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another --out") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files private to the user; outputs get the ordinary permissions instead.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another --out"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def check_writable_folder(path: Path | str) -> Path:
    """Makes the folder `path` if it is absent and proves that files can be written in it.

    Called before long work, so that an unwritable target is told at once and not after an hour.

    Raises:
        InputError: `path` is a file, or cannot be made, or cannot be written.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file, but a folder is needed for the output; choose another --out")
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise InputError(f"cannot write into {path}: {error.strerror}; choose another --out") from error
    return path
