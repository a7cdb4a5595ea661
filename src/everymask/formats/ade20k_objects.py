"""Objects of the full ADE20K: the coloured pictures, the entries of the JSON, and which belongs to which."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from everymask.errors import InputError
from everymask.formats.images import read_image

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_OBJECTS = 255
"""Objects that a picture can tell apart."""

_PARTS = ("part_level", "ispartof", "hasparts")
PLACED = frozenset({"name", "name_ndx", "parts", "instance_mask"})
"""Fields of an entry that are the segment itself, and no attributes of it."""
OF_IMAGE = frozenset({"filename", "imsize", "object"})
"""Fields of an annotation that are the image itself, and no `Sample.extra`."""
FURTHER = "everymask"
"""Field of an entry and of an annotation that holds what is called like one of those, but is something else."""


def read_level(path: Path) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The regions of a coloured picture.

    Returns:
        (H, W) regions 1..R in order of their values, 0 where there is none; and (R,) class numbers.

    Raises:
        InputError: The file cannot be read, or has no three channels of 8 bits.
    """
    from everymask.ops.label_tables import distinct, renumber

    pixels = read_image(path)
    if pixels.ndim != 3 or pixels.shape[-1] != 3 or pixels.dtype != np.uint8:
        raise InputError(
            f"{path} has {pixels.shape[-1]} channels of {pixels.dtype}; expected red, green and blue of 8 bits, which "
            "stand for class and object"
        )
    hundreds = (np.arange(256) // 10 * 256).astype(np.int32)
    # The object comes first, so that regions are in the order of their values.
    keys = (pixels[..., 2].astype(np.int32) << 16) + hundreds[pixels[..., 0]] + pixels[..., 1]
    values = distinct(keys).astype(np.int64)
    numbers = values & 0xFFFF
    known = numbers > 0
    return renumber(keys, values, np.where(known, np.cumsum(known), 0)), numbers[known]


def level_picture(ids: NDArray[np.int32], numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The inverse of `read_level`: (H, W, 3) of a label map.

    Raises:
        InputError: There are over `MOST_OBJECTS` objects.
    """
    present = np.bincount(np.maximum(ids, 0).ravel(), minlength=len(numbers) + 1) > 0
    present[0] = False
    count = int(present.sum())
    if count > MOST_OBJECTS:
        raise InputError(
            f"has {count} objects of one level, but ADE20K tells up to {MOST_OBJECTS} apart; cut the image into "
            "smaller ones"
        )
    rank = np.cumsum(present)
    blue = np.where(present, np.floor(255 * rank / max(count, 1) + 0.5), 0)
    red = np.concatenate([[0], numbers // 256 * 10])
    green = np.concatenate([[0], numbers % 256])
    table = np.stack([red, green, blue], axis=1).astype(np.uint8)
    picture: NDArray[np.uint8] = table[np.maximum(ids, 0)]
    return picture


def entries_of(content: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    """The entries of a JSON, checked as far as they are needed.

    Raises:
        InputError: An entry has no class.
    """
    listed = content.get("object", [])
    entries = listed if isinstance(listed, list) else [listed]
    for position, each in enumerate(entries):
        if not isinstance(each, dict) or not isinstance(each.get("name_ndx"), int):
            raise InputError(f"{path}: $.annotation.object[{position}] has no number name_ndx; correct or remove it")
        if not isinstance(each.get("parts", {}), dict):
            raise InputError(f"{path}: $.annotation.object[{position}].parts is no object; correct or remove it")
        try:
            level_of(each)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{path}: $.annotation.object[{position}].parts.part_level is no number; correct or remove it"
            ) from error
    return entries


def level_of(entry: dict[str, Any]) -> int:
    """0 for a whole object, 1 for a part, 2 for a part of a part ..."""
    return int(entry.get("parts", {}).get("part_level", 0))


def columns_of(entries: Sequence[dict[str, Any]], *, polygons: bool = True) -> dict[str, NDArray[Any]]:
    """Attributes (N,) of objects: every field of their entries that is not the segment itself."""
    rows = []
    for each in entries:
        fields = {key: value for key, value in each.items() if key not in {*PLACED, FURTHER}}
        rows.append(
            fields | further(each) | {key: each["parts"][key] for key in _PARTS if key in each.get("parts", {})}
        )
    keys = dict.fromkeys(key for row in rows for key in row)
    if not polygons:
        keys.pop("polygon", None)
    return {key: _column([row.get(key) for row in rows]) for key in keys}


def further(entry: dict[str, Any]) -> dict[str, Any]:
    """What stands under `FURTHER`."""
    found = entry.get(FURTHER)
    return found if isinstance(found, dict) else {}


def _column(values: list[Any]) -> NDArray[Any]:
    """(N,) of one number type or of text where all values are alike, else of objects: lists, too, are single values."""
    kinds = {type(value) for value in values}
    if len(kinds) == 1 and kinds <= {bool, int, float, str}:
        return np.array(values)
    column = np.empty(len(values), object)
    for i, value in enumerate(values):
        column[i] = value
    return column


def match_regions(
    ids: NDArray[np.int32],
    numbers: NDArray[np.int64],
    entries: Sequence[dict[str, Any]],
    mask_of: Callable[[dict[str, Any]], NDArray[Any] | None],
    path: Path,
) -> list[int | None]:
    """Which region of a picture an entry of the JSON describes.

    A region and an entry of the same class belong together. Of several, those that overlap most, measured by
    IoU of the region and the visible part of the entry's mask, or else its polygon; what has neither goes by order.

    Args:
        ids: (H, W) regions from 1 on.
        numbers: (R,) class of each region.
        entries: Entries of this level.
        mask_of: Gives the (H, W) mask of an entry, 255 where it is visible; None if it has none.
        path: The JSON, for messages.

    Returns:
        For each entry the region, from 0 on, or None if it has no pixel.
    """
    found: list[int | None] = [None] * len(entries)
    areas = np.bincount(ids.ravel(), minlength=len(numbers) + 1)
    for number in dict.fromkeys(int(each["name_ndx"]) for each in entries):
        rows = [i for i, each in enumerate(entries) if each["name_ndx"] == number]
        regions = np.flatnonzero(numbers == number).tolist()
        if len(rows) == len(regions) == 1:
            found[rows[0]] = regions[0]
            continue
        scores = []
        for row in rows if regions else ():
            mask = mask_of(entries[row])
            inside = mask == 255 if mask is not None else _filled(entries[row], ids.shape, path)
            if inside is None:
                continue
            shared = np.bincount(ids[inside], minlength=len(areas))
            whole = int(inside.sum())
            scores += [
                (int(shared[region + 1]) / (whole + int(areas[region + 1]) - int(shared[region + 1])), row, region)
                for region in regions
                if shared[region + 1]
            ]
        taken: set[int] = set()
        for _, row, region in sorted(scores, key=lambda score: (-score[0], score[1], score[2])):
            if found[row] is None and region not in taken:
                found[row] = region
                taken.add(region)
        left = [row for row in rows if found[row] is None]
        for row, region in zip(left, (region for region in regions if region not in taken), strict=False):
            found[row] = region
    return found


def _filled(entry: dict[str, Any], size: Sequence[int], path: Path) -> NDArray[np.bool_] | None:
    """(H, W) inside of an entry's polygon; None if it has none."""
    from everymask.types import Polygon, Segments

    polygon = entry.get("polygon")
    if not isinstance(polygon, dict) or not {"x", "y"} <= set(polygon):
        return None
    try:
        points = np.stack([np.ravel(np.array(polygon[axis], np.float64)) for axis in "xy"], axis=1)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{path}: the polygon of object {entry.get('id')} is no pair of lists x and y of one length; correct it"
        ) from error
    if len(points) < 3:
        return None
    filled: NDArray[np.bool_] = Segments.from_polygons((size[0], size[1]), [[Polygon(points)]]).masks()[0]
    return filled
