"""What the values of label masks mean: objects or classes, and which classes.

A `categories.json` beside the masks says it. It is what `write` leaves there::

    {"kind": "semantic", "void": 255, "background": null, "categories": [{"id": 0, "name": "sky", ...}, ...]}

A plain list of categories will do, and so will a `classes.txt` with one name a line: the first line is the class of
value 0 in semantic masks; in instance masks there may be one line only, so that two or more mean *semantic*.

Without such a file and without the option `kind`, at most 8 masks, evenly spread over the data set, are looked at:

- they are *semantic* if more than half of their values (0 and 255 aside) lie in several separate pieces, or if 255 is
  the only value beside 0; otherwise *instance*. Objects are in one piece, classes rarely are: in 8 masks of CamVid,
  91 % of the values were in pieces; of sets of cells (DSB 2018, Omnipose, StarDist, CTC), less than 1 % each.

Semantic masks without a list of classes are looked at once more, at most 64 of them, for the values that occur:

- 255 is void, unless it is the only value beside 0, which then is the class "foreground" (where a list of classes says
  otherwise, such masks are an error, since they would hold nothing but void);
- 0 is a class if 255 occurs as void, and background otherwise;
- if at least half of the values 0..highest occur, all of them are classes; otherwise those that occur.

A value that turns up later is an error that says so; nothing is guessed behind the user's back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import msgspec
import numpy as np

from everymask.errors import InputError
from everymask.formats.images import read_labels
from everymask.types import Categories, Category, Task

if TYPE_CHECKING:
    from numpy.typing import NDArray

Kind = Literal["instance", "semantic"]

VOID = 255
MASKS_FOR_KIND = 8
MASKS_FOR_CLASSES = 64
_WINDOW = 1024
"""Side of the middle part of a mask whose pieces are counted, so that a huge one costs no more than others."""


@dataclass(frozen=True)
class Meaning:
    """What the values of a set of masks mean.

    Args:
        kind: Objects or classes.
        categories: The classes.
        void: Value of pixels to ignore, if there is one.
        background: Value of pixels that belong to no segment. In semantic masks None means that there is no such value.
    """

    kind: Kind
    categories: Categories
    void: int | None
    background: int | None

    @property
    def tasks(self) -> frozenset[Task]:
        """What such masks can train and score."""
        if self.kind == "semantic":
            return frozenset({Task.SEMANTIC})
        found = {Task.INSTANCE, Task.SEMANTIC, Task.DETECTION}
        if not all(category.is_thing for category in self.categories):
            found.add(Task.PANOPTIC)
        return frozenset(found)


def meaning_of(
    masks: Sequence[Path],
    folders: Sequence[Path],
    kind: str | None,
    classes: Sequence[str] | None,
    void: int | None,
) -> Meaning:
    """Decides what masks mean, by the rules at the top of this module.

    Args:
        masks: All mask files.
        folders: Where `categories.json` or `classes.txt` may be, the most likely first.
        kind: ``"instance"``, ``"semantic"`` or None.
        classes: Names of the classes, in the order of `classes.txt`.
        void: Value of pixels to ignore.

    Raises:
        InputError: The kind is unknown, or a file with classes is wrong or does not fit the kind.
    """
    if kind not in {None, "instance", "semantic"}:
        raise InputError(f"kind must be 'instance' or 'semantic', got {kind!r}")
    found = _from_files(folders) if classes is None else {"names": list(classes), "file": "classes"}
    names: list[str] | None = found.get("names")
    named = "semantic" if names is not None and len(names) > 1 else None
    decided = cast("Kind", kind or found.get("kind") or named or kind_of(_spread(masks, MASKS_FOR_KIND)))
    categories: Categories | None = found.get("categories")
    if decided == "instance":
        if names is not None and len(names) != 1:
            raise InputError(
                f"{found['file']} names {len(names)} classes, but the values of instance masks are objects; say "
                "kind='semantic', or give the category of each object in objects/"
            )
        categories = categories or Categories(names or ["object"])
        return Meaning(decided, categories, void if void is not None else found.get("void"), 0)
    if names is not None:
        categories = Categories([Category(value, name) for value, name in enumerate(names)])
    if categories is None:
        return _semantic_by_values(_spread(masks, MASKS_FOR_CLASSES), void)
    ids = set(categories.ids.tolist())
    if void is None:
        void = found.get("void", VOID if VOID not in ids else None)
        if "void" not in found and void is not None:
            _check_not_white(_spread(masks, MASKS_FOR_KIND), found["file"])
    return Meaning(decided, categories, void, found.get("background", None if 0 in ids else 0))


def kind_of(masks: Sequence[Path]) -> Kind:
    """The kind of a few masks, by their values alone; files that cannot be read are passed over (and told later)."""
    from everymask.ops.labels import compact_labels, connected_components

    values, pieces = 0, 0
    seen: set[int] = set()
    for path in masks:
        try:
            ids, originals = compact_labels(_middle(read_labels(path)))
        except InputError:
            continue
        seen.update(originals.tolist())
        _, owners = connected_components(ids, ids.ndim)
        counts = np.bincount(owners, minlength=len(originals) + 1)[1:][originals != VOID]
        values += int((counts > 0).sum())
        pieces += int((counts > 1).sum())
    return "semantic" if seen == {VOID} or 2 * pieces > values else "instance"


def read_categories(path: Path) -> dict[str, Any]:
    """Contents of a `categories.json`.

    Raises:
        InputError: It is not as the top of this module says.
    """
    try:
        content = msgspec.json.decode(path.read_bytes())
        content = {"categories": content} if isinstance(content, list) else content
        known = {"kind", "void", "background", "categories", "unannotated"}
        if not isinstance(content, dict) or "categories" not in content or not set(content) <= known:
            raise InputError(f"expected a list of categories, or the keys {', '.join(sorted(known))}")
        if content.get("kind") not in {None, "instance", "semantic"}:
            raise InputError(f"kind must be 'instance' or 'semantic', got {content['kind']!r}")
        content["categories"] = Categories.from_json(content["categories"])
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is no list of categories: {error}") from error
    return content


def has_classes(folder: Path) -> bool:
    """Whether a folder has a file that names the classes."""
    return any((folder / name).is_file() for name in ("categories.json", "classes.txt"))


def _from_files(folders: Sequence[Path]) -> dict[str, Any]:
    """What `categories.json` or `classes.txt` says; empty where there is none."""
    for folder in folders:
        if (folder / "categories.json").is_file():
            return {**read_categories(folder / "categories.json"), "file": folder / "categories.json"}
        path = folder / "classes.txt"
        if path.is_file():
            try:
                names = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines()]
            except UnicodeDecodeError as error:
                raise InputError(f"{path} is no UTF-8 text; save it as UTF-8, one class name a line") from error
            if not names or "" in names:
                raise InputError(f"{path} has an empty line; expected one class name a line, the first for value 0")
            return {"names": names, "file": path}
    return {}


def _check_not_white(masks: Sequence[Path], source: Path | str) -> None:
    """Makes sure that 255 is not the only value beside 0, where nothing but habit says that it is void.

    Raises:
        InputError: It is: then it probably stands for the foreground, and there would be nothing but void.
    """
    seen: set[int] = set()
    for path in masks:
        try:
            seen.update(np.unique(_middle(read_labels(path))).tolist())
        except InputError:
            continue
    if VOID in seen and seen <= {0, VOID}:
        raise InputError(
            f"{masks[0]} and others hold only 0 and 255, but {source} names classes by the values 0, 1, 2 ...; replace "
            "255 by the number of the class that is white, or remove the list of classes to have 255 as foreground, or "
            "say void=255 if white is to be ignored"
        )


def _semantic_by_values(masks: Sequence[Path], void: int | None) -> Meaning:
    """The classes of semantic masks by the values that occur."""
    values: set[int] = set()
    for path in masks:
        try:
            labels = read_labels(path)
        except InputError:
            continue
        values.update(
            np.flatnonzero(np.bincount(labels.ravel())).tolist()
            if labels.dtype == np.uint8
            else np.unique(labels).tolist()
        )
    if void is None and values <= {0, VOID}:
        return Meaning("semantic", Categories([Category(VOID, "foreground")]), None, 0)
    chosen_void = VOID if void is None else void
    positive = values - {chosen_void, 0}
    if positive == {1} and chosen_void not in values:
        return Meaning("semantic", Categories([Category(1, "foreground")]), chosen_void, 0)
    zero_is_class = chosen_void in values
    highest = max(positive, default=0)
    if 2 * len(positive) >= highest:
        positive = set(range(1, highest + 1))
    ids = sorted(positive | ({0} if zero_is_class else set()))
    categories = Categories([Category(value, f"class {value}") for value in ids if value != chosen_void])
    return Meaning("semantic", categories, chosen_void, None if zero_is_class else 0)


def _spread(masks: Sequence[Path], count: int) -> list[Path]:
    """At most `count` of the masks, evenly spread."""
    positions = range(len(masks)) if len(masks) <= count else np.linspace(0, len(masks) - 1, count).round()
    return [masks[int(position)] for position in positions]


def _middle(labels: NDArray[Any]) -> NDArray[Any]:
    """The middle part of a mask."""
    starts = [max(0, (length - _WINDOW) // 2) for length in labels.shape]
    return labels[tuple(slice(start, start + _WINDOW) for start in starts)]
