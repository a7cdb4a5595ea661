"""Tasks and categories: what is asked of an image and what its segments are called."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from everymask.errors import InputError, unknown_name

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


class Task(StrEnum):
    """What a method predicts for an image."""

    CLASSIFICATION = "classification"
    DETECTION = "detection"
    SEMANTIC = "semantic"
    INSTANCE = "instance"
    PANOPTIC = "panoptic"
    PROMPTABLE = "promptable"


@dataclass(frozen=True, slots=True)
class Category:
    """One class of a data set.

    Args:
        id: The data set's own number. Any integer; never shifted.
        name: The data set's own name.
        is_thing: Countable object (True) or stuff such as sky (False).
        colour: (red, green, blue) of 0..255, or None for one derived from the position.
        supercategory: Name of the group it belongs to, if the data set has groups.
    """

    id: int
    name: str
    is_thing: bool = True
    colour: tuple[int, int, int] | None = None
    supercategory: str | None = None


class Categories(Sequence[Category]):
    """The ordered categories of a data set.

    A category has an `id` (the data set's own, with gaps if it likes) and an index (its position, 0..K-1, which is
    what networks predict). `indices` and `ids` convert between the two, and nothing else does.

    Args:
        items: Categories, or plain names, which get the ids 1, 2, ...

    Raises:
        InputError: Two categories share an id or a name.
    """

    def __init__(self, items: Iterable[Category | str]) -> None:
        self._items = tuple(
            Category(position, item) if isinstance(item, str) else item for position, item in enumerate(items, 1)
        )
        self._index = {item.id: position for position, item in enumerate(self._items)}
        if len(self._index) != len(self._items):
            raise InputError(f"category ids must be unique, got {[item.id for item in self._items]}")
        if len({item.name for item in self._items}) != len(self._items):
            raise InputError(f"category names must be unique, got {[item.name for item in self._items]}")

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, key: int) -> Category: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[Category, ...]: ...
    def __getitem__(self, key: int | slice) -> Category | tuple[Category, ...]:
        return self._items[key]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Categories) and self._items == other._items

    def __hash__(self) -> int:
        return hash(self._items)

    def __repr__(self) -> str:
        return f"Categories({list(self._items)!r})"

    @property
    def names(self) -> list[str]:
        """The names in order of index."""
        return [item.name for item in self._items]

    @property
    def ids(self) -> NDArray[np.int64]:
        """The data set's ids in order of index, (K,)."""
        return np.array([item.id for item in self._items], dtype=np.int64)

    def by_id(self, identifier: int) -> Category:
        """The category with the data set's id `identifier`.

        Raises:
            InputError: There is none.
        """
        if identifier not in self._index:
            raise InputError(f"unknown category id {identifier}; known ids: {sorted(self._index)}")
        return self._items[self._index[identifier]]

    def by_name(self, name: str) -> Category:
        """The category called `name`.

        Raises:
            InputError: There is none; the nearest names are suggested.
        """
        for item in self._items:
            if item.name == name:
                return item
        raise unknown_name("category", name, self.names)

    def indices(self, identifiers: ArrayLike) -> NDArray[np.int64]:
        """Indices 0..K-1 of category ids, any shape.

        Raises:
            InputError: An id is unknown.
        """
        identifiers = np.asarray(identifiers, dtype=np.int64)
        unknown = sorted({int(each) for each in identifiers.ravel()} - set(self._index))
        if unknown:
            raise InputError(f"unknown category ids {unknown}; known ids: {sorted(self._index)}")
        return np.array([self._index[int(each)] for each in identifiers.ravel()], dtype=np.int64).reshape(
            identifiers.shape
        )

    def colours(self) -> NDArray[np.uint8]:
        """(K, 3) red, green, blue: the data set's colours, or evenly spread hues where it has none."""
        hues = [(0.61803398875 * position) % 1.0 for position in range(len(self))]
        made = [tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.75, 0.95)) for hue in hues]
        rows = [item.colour or colour for item, colour in zip(self._items, made, strict=True)]
        return np.array(rows, dtype=np.uint8).reshape(-1, 3)

    def to_json(self) -> list[dict[str, Any]]:
        """Plain lists and dictionaries, for model files and data sets."""
        return [asdict(item) for item in self._items]

    @classmethod
    def from_json(cls, items: Iterable[Mapping[str, Any]]) -> Categories:
        """The inverse of `to_json`.

        Raises:
            InputError: An entry has no id or name, or unknown keys.
        """
        made = []
        for item in items:
            try:
                colour = item.get("colour")
                columns: dict[str, Any] = {**item, "colour": tuple(colour) if colour else None}
                made.append(Category(**columns))
            except TypeError as error:
                raise InputError(f"not a category: {item!r} ({error})") from error
        return cls(made)
