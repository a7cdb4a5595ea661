"""Columns that a data set keeps with its images: `metadata.jsonl`, `metadata.csv` or `manifest.csv`.

A table has a header and a column that names the image: `id`, `name`, `image`, `image_id`, `file_name`, `filename` or
`stem` (a suffix is ignored). The other columns become `Sample.extra`; whole and decimal numbers become numbers. If
there is a column `split` that names the folder that is opened, rows of other parts are left aside.

`metadata.jsonl` is what EveryMask writes, since CSV forgets types: ``{"name": "a", "extra": {"kind": "histology"}}``.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from everymask.errors import InputError

_FILES = ("metadata.jsonl", "metadata.csv", "manifest.csv")
_KEYS = ("id", "name", "image", "image_id", "file_name", "filename", "stem")
_WHOLE = re.compile(r"-?(0|[1-9]\d{0,17})")
_DECIMAL = re.compile(r"-?(0|[1-9]\d*)\.\d+")


class JsonLine(msgspec.Struct, forbid_unknown_fields=True):
    """A line of `metadata.jsonl`."""

    name: str
    extra: dict[str, Any]


_LINE = msgspec.json.Decoder(JsonLine)


def read_extras(folders: Sequence[Path], names: Sequence[str], split: str) -> dict[str, dict[str, Any]]:
    """`Sample.extra` of the samples that a table has a row for.

    Args:
        folders: Where the table may be; the first one found counts.
        names: Names of the samples.
        split: Name of the part that is opened.

    Raises:
        InputError: The table cannot be read.
    """
    for folder in folders:
        for file in _FILES:
            path = folder / file
            if path.is_file():
                try:
                    rows = _read_lines(path) if path.suffix == ".jsonl" else _read_table(path, split)
                except (OSError, ValueError, csv.Error, RecursionError) as error:
                    raise InputError(f"{path} cannot be read: {error}; expected one row for each image") from error
                wanted = set(names)
                return {name: row for name, row in rows.items() if name in wanted}
    return {}


def _read_lines(path: Path) -> dict[str, dict[str, Any]]:
    with path.open("rb") as stream:
        lines = [_LINE.decode(line) for line in stream if line.strip()]
    return {line.name: line.extra for line in lines}


def _read_table(path: Path, split: str) -> dict[str, dict[str, Any]]:
    rows: list[tuple[str, dict[str, Any]]] = []
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream)
        key = next((each for each in _KEYS if each in (reader.fieldnames or ())), None)
        if key is None:
            return {}
        for row in reader:
            # DictReader puts the cells beyond the header under None, and None into missing cells.
            extra = {column: _typed(value) for column, value in row.items() if column and value is not None}
            extra.pop(key, None)
            rows.append((str(row[key] or ""), extra))
    if any(extra.get("split") == split for _, extra in rows):
        rows = [(name, extra) for name, extra in rows if extra.get("split") == split]
    return {each: extra for name, extra in rows for each in (name, re.sub(r"\.\w{3,4}$", "", name))}


def _typed(value: str) -> str | int | float:
    """Numbers as numbers where that loses nothing; everything else, such as ``007`` or ``1e5``, as text."""
    if _WHOLE.fullmatch(value):
        return int(value)
    return float(value) if _DECIMAL.fullmatch(value) else value
