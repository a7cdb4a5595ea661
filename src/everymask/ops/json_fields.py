"""Which fields of JSON objects are read, and the columns that are made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MASK, START, END, FIRST = 0, 1, 2, 3  # slots of a row: fields that are there, the bytes of the object, values
OTHER_FIELDS = 62  # bit of the mask: there are fields that were not asked for
AS_TEXT = 31  # bit of the field + this: an identifier is text


class Kind(IntEnum):
    """What a field may hold, and what is kept of it."""

    INTEGER = 0
    """A whole number that fits 64 bits."""
    NUMBER = 1
    """Any number: the nearest double."""
    FOUR_NUMBERS = 2
    """An array of four numbers: the nearest doubles."""
    FLAG = 3
    """A whole number, or true (1) or false (0)."""
    TEXT = 4
    """A string: where it begins and ends, quotes included."""
    VALUE = 5
    """Anything: where it begins and ends."""
    OBJECT = 6
    """An object; nothing of it is kept."""
    IDENTIFIER = 7
    """A whole number, or a string: where that begins."""


_SLOTS = {Kind.FOUR_NUMBERS: 4, Kind.TEXT: 2, Kind.VALUE: 2, Kind.OBJECT: 0}


@dataclass(frozen=True)
class Field:
    """A field of the objects.

    Args:
        name: Its key, in ASCII.
        kind: What it may hold.
        nullable: Whether null stands for a field that is not there.
    """

    name: str
    kind: Kind
    nullable: bool = False


class Objects:
    """The fields of N objects, a column for each.

    Args:
        fields: What was asked for.
    """

    def __init__(self, fields: Sequence[Field]) -> None:
        self._names = {field.name: position for position, field in enumerate(fields)}
        starts, width = _slots(fields)
        # The slots of a row that make up the mask, the span, and each field.
        self._groups = [slice(MASK, START), slice(START, FIRST), *map(slice, starts, [*starts[1:], width])]
        self._columns = [np.empty((0, group.stop - group.start), np.int64) for group in self._groups]
        self._number = 0

    def __len__(self) -> int:
        return self._number

    def append(self, table: NDArray[np.int64], expected: int) -> None:
        """Adds the objects of a table (n, width), after which as many as `expected` may follow."""
        needed = self._number + len(table)
        if needed > len(self._columns[0]):
            # Memory that is not written to costs nothing, so that there may be plenty.
            capacity = max(needed + expected, 2 * len(self._columns[0]))
            for position, column in enumerate(self._columns):
                larger = np.empty((capacity, column.shape[1]), np.int64)
                larger[: self._number] = column[: self._number]
                self._columns[position] = larger
        for group, column in zip(self._groups, self._columns, strict=True):
            column[self._number : needed] = table[:, group]
        self._number = needed

    def _mask(self, bit: int) -> NDArray[np.bool_]:
        return self._columns[0][: self._number, 0] & np.int64(1 << bit) != 0

    def spans(self) -> NDArray[np.int64]:
        """(N, 2) where each object begins and ends."""
        return self._columns[1][: self._number]

    def has(self, name: str) -> bool:
        """Whether the field was asked for."""
        return name in self._names

    def present(self, name: str) -> NDArray[np.bool_]:
        """(N,) whether the field is there and not null."""
        return self._mask(self._names[name])

    def textual(self, name: str) -> NDArray[np.bool_]:
        """(N,) whether an identifier is text."""
        return self._mask(self._names[name] + AS_TEXT)

    def others(self) -> NDArray[np.bool_]:
        """(N,) whether there are fields that were not asked for."""
        return self._mask(OTHER_FIELDS)

    def integers(self, name: str) -> NDArray[np.int64]:
        """(N,) values, or places (N, 2) of text and the like; meaningless where the field is not there."""
        column = self._columns[2 + self._names[name]][: self._number]
        return column.reshape(-1) if column.shape[1] == 1 else column

    def numbers(self, name: str) -> NDArray[np.float64]:
        """(N,) or (N, 4) values; NaN where the field is not there."""
        values = self.integers(name).view(np.float64)
        there = self.present(name)
        if not bool(there.all()):
            values[~there] = np.nan
        return values


class Layout(NamedTuple):
    """F fields as arrays, and the width of a row of their table.

    The key of field f is ``names[name_ends[f]:name_ends[f + 1]]``; its values begin at ``slots[f]`` of a row.
    """

    names: NDArray[np.uint8]
    name_ends: NDArray[np.int64]
    kinds: NDArray[np.int64]
    slots: NDArray[np.int64]
    nullable: NDArray[np.bool_]
    width: int


def layout(fields: Sequence[Field]) -> Layout:
    """The fields as compiled code takes them."""
    slots, width = _slots(fields)
    names = [field.name.encode("ascii") for field in fields]
    return Layout(
        np.array(list(b"".join(names)), np.uint8),
        np.cumsum([0, *map(len, names)]).astype(np.int64),
        np.array([field.kind for field in fields], np.int64),
        slots,
        np.array([field.nullable for field in fields], np.bool_),
        width,
    )


def _slots(fields: Sequence[Field]) -> tuple[NDArray[np.int64], int]:
    """The slot at which the values of each field begin, and the number of slots of a row."""
    ends = np.cumsum([FIRST, *(_SLOTS.get(field.kind, 1) for field in fields)]).astype(np.int64)
    return ends[:-1], int(ends[-1])
