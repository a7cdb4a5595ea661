"""Text files with the name of a class a line: `classes.txt`, `obj.names`, `labels.txt`."""

from __future__ import annotations

from pathlib import Path

from everymask.errors import InputError


def read_names(path: Path) -> list[str]:
    """A name a line; empty lines at the end are none.

    Raises:
        InputError: The file cannot be read or has no names.
    """
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}; expected a text file with a class a line") from error
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise InputError(f"{path} is empty; expected the name of a class in each line")
    return lines
