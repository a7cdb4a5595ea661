"""The JSON of COCO panoptic, typed, and the segments of one of its PNG files.

Layout after the COCO data format page (https://cocodataset.org/#format-data, section 4). The id of a segment is the
colour of its pixels, R + 256 G + 256^2 B; id 0, black, is void.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from everymask.errors import InputError
from everymask.formats.checks import by
from everymask.formats.coco_schema import Box, JsonCategory, Side, decode, nested
from everymask.formats.columns import attribute_column
from everymask.types import Categories, Category, Segments
from everymask.types.label_runs import LabelRuns

if TYPE_CHECKING:
    from numpy.typing import NDArray

ID_END = 2**24
"""One more than the highest id that a colour can hold."""
CROWD_INSTANCE = 255
"""Second channel of crowd regions in the 2-channel form."""


class JsonPanopticImage(msgspec.Struct):
    """An image. COCO's ids are numbers, those of Cityscapes text."""

    id: int | str
    file_name: str
    width: Side
    height: Side


class JsonSegment(msgspec.Struct, forbid_unknown_fields=True):
    """A segment of an image, with the fields that have a meaning here."""

    id: int
    category_id: int
    area: float | int | None = None
    bbox: Box | None = None
    iscrowd: int | bool = 0
    score: float | None = None
    attributes: dict[str, Any] | None = None


class JsonAnnotation(msgspec.Struct):
    """An image's annotation. Its segments stay the text they are in the file until somebody asks."""

    image_id: int | str
    file_name: str
    segments_info: msgspec.Raw


class JsonPanoptic(msgspec.Struct):
    """A data set. Images stay text, since their further fields are kept."""

    images: list[msgspec.Raw]
    categories: list[JsonCategory]
    annotations: list[JsonAnnotation] = []
    licenses: list[dict[str, Any]] = []


class JsonPanopticResults(msgspec.Struct):
    """What programs leave behind: annotations, and perhaps the categories by which they were made."""

    annotations: list[JsonAnnotation]


_SEGMENTS = msgspec.json.Decoder(list[JsonSegment])
_ROWS = msgspec.json.Decoder(list[dict[str, Any]])


def segment_rows(raw: msgspec.Raw, place: str) -> list[JsonSegment]:
    """The segments of an annotation; fields that have no meaning here are put among the attributes.

    Args:
        raw: The JSON.
        place: Where it is in the file, for messages.

    Raises:
        InputError: An id is there twice or no colour. The message does not name the file.
        msgspec.ValidationError: The JSON has another structure.
    """
    try:
        found = _SEGMENTS.decode(raw)
    except msgspec.ValidationError:
        # Either there are fields that are not known, or there is a mistake, which the second attempt finds again.
        rows = nested(raw, place, _ROWS)
        known = set(JsonSegment.__struct_fields__)
        for row in rows:
            further = {name: row.pop(name) for name in set(row) - known}
            if further:
                row["attributes"] = {**further, **(row.get("attributes") or {})}
        found = nested(msgspec.Raw(msgspec.json.encode(rows)), place, _SEGMENTS)
    ids = [each.id for each in found]
    wrong = next((i for i, each in enumerate(ids) if not 0 < each < ID_END), None)
    if wrong is not None:
        raise InputError(f"{place}[{wrong}].id is {ids[wrong]}; expected a colour other than black: 1..{ID_END - 1}")
    if len(set(ids)) != len(ids):
        double = next(i for i, each in enumerate(ids) if each in ids[:i])
        raise InputError(f"{place}[{double}].id is {ids[double]} a second time; ids must be unique in an image")
    return found


def checked_rows(raw: msgspec.Raw, path: Path, place: str) -> list[JsonSegment]:
    """`segment_rows` of the file `path`.

    Raises:
        InputError: The JSON is not as it has to be; the message names the file and the place.
    """
    try:
        return decode(path, lambda: segment_rows(raw, place))
    except InputError as error:
        message = str(error)
        raise InputError(message if message.startswith(str(path)) else f"{path}: {message}") from error


def read_segments(
    file: Path, rows: Sequence[JsonSegment], categories: Categories, place: str, *, complete: bool = False
) -> Segments:
    """The segments of a PNG, in the order of the JSON; void where the image is black.

    Args:
        file: The PNG.
        rows: Its segments.
        categories: Those that there are.
        place: Where the segments are, such as ``"panoptic.json: $.annotations[3].segments_info"``, for messages.
        complete: Whether every segment must have pixels.

    Raises:
        InputError: The file is missing or damaged, or holds an id that no segment has; a segment has an unknown
            category or no pixels.
    """
    from everymask.formats.png_labels import read_colour_ids
    from everymask.ops.label_runs import number_runs

    known = set(categories.ids.tolist())
    for position, each in enumerate(rows):
        if each.category_id not in known:
            raise InputError(
                f"{place}[{position}]: the segment id {each.id} of {file.name} has category {each.category_id}, which "
                f"is not among the categories ({_few(categories)}); add the category or correct the id"
            )
    size, starts, colours = read_colour_ids(file)
    ids = np.array([each.id for each in rows], np.int64)
    labels, areas, unknown = number_runs(starts, colours, ids)
    if unknown is not None:
        raise InputError(
            f"{file} holds the segment id {unknown}, which {place} lacks; add the segment, or paint its pixels black"
        )
    if complete and not areas.all():
        lacking = rows[int(np.argmin(areas))].id
        raise InputError(f"{place}: the segment id {lacking} has no pixel in {file}; remove the segment, or paint it")
    attributes: dict[str, Any] = {"id": ids}
    given_areas = [each.area for each in rows]
    if any(each is not None for each in given_areas):
        attributes["area"] = np.array([np.nan if each is None else each for each in given_areas])
    for name in dict.fromkeys(name for each in rows for name in each.attributes or ()):
        attributes.setdefault(name, attribute_column([(each.attributes or {}).get(name) for each in rows]))
    scores = [each.score for each in rows if each.score is not None]
    geometry = LabelRuns(size, starts, labels)
    return _in_runs(
        geometry,
        [each.category_id for each in rows],
        score=scores if scores and len(scores) == len(rows) else None,
        box=_boxes(rows, geometry),
        crowd=[bool(each.iscrowd) for each in rows],
        attributes=attributes,
    )


def _in_runs(geometry: LabelRuns, category: Any, **columns: Any) -> Segments:
    """Segments of a label map whose ids are known to be good, so that it need not be painted to be checked."""
    segments = Segments(geometry.size, category, **columns)
    segments.geometry = geometry
    return segments


def _boxes(rows: Sequence[JsonSegment], geometry: LabelRuns) -> NDArray[np.float64] | None:
    """(N, 4) the boxes of the JSON, None if it has none."""
    given = [each.bbox for each in rows if each.bbox is not None]
    if not given:
        return None
    if len(given) == len(rows):
        boxes = np.array(given, np.float64)
        boxes[:, 2:] += boxes[:, :2]
        return boxes
    from everymask.ops.labels import label_boxes

    boxes = label_boxes(geometry.ids, len(rows)).astype(np.float64)
    for box, each in zip(boxes, rows, strict=True):
        if each.bbox is not None:
            x, y, width, height = each.bbox
            box[:] = x, y, x + width, y + height
    return boxes


def read_two_channels(file: Path, categories: Categories) -> Segments:
    """The segments of a PNG in the 2-channel form, in order of category and instance.

    Red is the category id (0 for void), green the instance, 255 for a crowd region; blue is 0. So the id
    R + 256 G + 256^2 B of a segment is ``category + 256 * instance``, which becomes the attribute ``id``.

    Raises:
        InputError: The file is missing or damaged, or holds an unknown category, or a third channel.
    """
    from everymask.formats.png_labels import read_colour_ids
    from everymask.ops.label_runs import number_runs

    size, starts, colours = read_colour_ids(file)
    found = np.unique(colours)
    found = found[found > 0]
    found = found[np.lexsort((found >> 8, found & 255))]
    wrong = found[(found >> 16 > 0) | ~np.isin(found & 255, categories.ids)]
    if len(wrong):
        red, green, blue = (int(wrong[0]) >> shift & 255 for shift in (0, 8, 16))
        raise InputError(
            f"{file} holds the colour ({red}, {green}, {blue}), but in the 2-channel form red is a category id, here "
            f"one of {_few(categories)}, and blue is 0; leave out form if this is an ordinary panoptic PNG"
        )
    labels, _, _ = number_runs(starts, colours, found)
    crowd = found >> 8 == CROWD_INSTANCE
    return _in_runs(LabelRuns(size, starts, labels), found & 255, crowd=crowd, attributes={"id": found})


def _few(categories: Categories) -> str:
    """The first of the category ids, for messages."""
    return f"{', '.join(map(str, categories.ids[:10].tolist()))}{' ...' if len(categories) > 10 else ''}"


def check_size(file: Path, segments: Segments, height: int, width: int, source: Path) -> None:
    """Makes sure that a PNG has the size that the JSON says.

    Raises:
        InputError: It has not.
    """
    if segments.size != (height, width):
        raise InputError(
            f"{file} has size {by(segments.size)}, but {source} says {height} x {width} (height x width); correct the "
            "one that is wrong"
        )


def make_categories(items: Iterable[JsonCategory], path: Path) -> Categories:
    """The categories of a file.

    Raises:
        InputError: Two share an id or a name.
    """
    try:
        return Categories(
            Category(item.id, item.name, bool(item.isthing), item.color, item.supercategory) for item in items
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
