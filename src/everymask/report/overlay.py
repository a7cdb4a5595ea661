"""Segments drawn over their image so that a person sees at once what was found."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from everymask.errors import InputError
from everymask.report.captions import captioned
from everymask.report.colours import contrasting_palette, distinct_choice, vivid_colours
from everymask.report.picture import displayed, resized
from everymask.types import LabelMap, Segments

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from everymask.types import Categories

PALETTE = 12
"""Colours that objects choose from; few enough to differ clearly, enough for the neighbours of nearly any object."""


def draw_overlay(
    image: NDArray[Any],
    segments: Segments,
    *,
    categories: Categories | None = None,
    colour_by: Literal["object", "category"] | None = None,
    colours: NDArray[np.uint8] | None = None,
    fill: float = 0.15,
    thickness: int | None = None,
    magnify: int = 1,
    stretch: bool = True,
) -> NDArray[np.uint8]:
    """The image in a sensible display range with a contour and a faint fill for each segment.

    Neighbouring objects never share a colour, and the colours are chosen to stand out from this image. Where segments
    overlap, smaller ones lie on top. Boxes bear the names of their classes where there are several.

    Args:
        image: (H, W) or (H, W, C), any number type.
        segments: Of the same size. Segments without a geometry are drawn as boxes.
        categories: Gives the colours of `colour_by="category"`; without it categories get colours of their own.
        colour_by: ``object`` or ``category``. Default: by category where `categories` holds stuff, else by object.
        colours: (N, 3) of the segments, instead of those chosen here.
        fill: Opacity of the fill, 0..1.
        thickness: Of the contours in pixels of the result; default: from the size of image and objects.
        magnify: Whole factor by which the result is larger than the image, so that contours stay thin on small images.
        stretch: Bring the image into a display range of its own; without it, (H, W, 3) uint8 is shown as it is.

    Returns:
        (H * magnify, W * magnify, 3) uint8.

    Raises:
        InputError: Image and segments differ in size, or the image is a volume.
    """
    picture = displayed(image) if stretch else image
    if segments.size != picture.shape[:2]:
        raise InputError(f"the image has size {picture.shape[:2]}, but the segments {segments.size}")
    if magnify > 1:
        picture = resized(picture, magnify * picture.shape[0], magnify * picture.shape[1])
    if not len(segments) or not picture.size:
        return picture.copy()
    if segments.geometry is None and not segments.has_boxes:
        return picture.copy()  # image-level tags have no place in the image

    # Large segments first, so that small ones are painted over them.
    if segments.geometry is not None and not isinstance(segments.geometry, LabelMap):
        order = np.argsort(-segments.areas(), kind="stable")
        segments, colours = segments[order], None if colours is None else colours[order]
    boxes_only = segments.geometry is None
    ids = _box_outlines(segments, picture.shape[:2], magnify, thickness) if boxes_only else _labels(segments, magnify)

    from everymask.ops.labels import label_boundaries
    from everymask.report.kernels import paint

    if thickness is None:
        thickness = contour_thickness(picture.shape[:2], segments, magnify)
    contour = ids > 0 if boxes_only else label_boundaries(ids, thickness)
    if colours is None:
        colours = _colours(picture, ids, contour, segments, categories, colour_by)
    painted = paint(picture, ids, contour, colours, 0.0 if boxes_only else fill)
    if not boxes_only or categories is None or len(categories) == 1:
        return painted
    names = [categories.by_id(int(each)).name for each in segments.category]
    texts = (
        names
        if segments.score is None
        else [f"{name} {score:.2f}" for name, score in zip(names, segments.score, strict=True)]
    )
    return captioned(painted, magnify * segments.boxes(), texts, colours)


def frame_drawing(categories: Categories | None) -> Callable[[NDArray[Any], Segments], NDArray[np.uint8]]:
    """A function like `draw_overlay` for the frames of a video: what is chosen by the image elsewhere does not flicker.

    Frames (H, W, 3) uint8 are shown as they are, each category has one colour, and lines are as thick as in the first
    frame that has objects.

    Args:
        categories: Give names and colours.
    """
    thickness: int | None = None

    def draw(image: NDArray[Any], segments: Segments) -> NDArray[np.uint8]:
        nonlocal thickness
        if thickness is None and len(segments) and segments.geometry is not None:
            thickness = contour_thickness(segments.size, segments)
        return draw_overlay(
            image, segments, categories=categories, colour_by="category", thickness=thickness, stretch=False
        )

    return draw


def suggested_magnification(size: tuple[int, ...], target: int = 1024) -> int:
    """Whole factor 1..4 that brings the longer side of a small image near `target` pixels."""
    return int(np.clip(target // max(1, *size[-2:]), 1, 4))


def contour_thickness(shown: tuple[int, ...], segments: Segments, magnify: int = 1) -> int:
    """Pixels of contour: one for every 300 pixels of the longer side, but at most a tenth of a typical object."""
    areas = segments.areas()
    areas = areas[areas > 0]
    typical = magnify * float(np.sqrt(np.median(areas))) if len(areas) else 1.0
    return int(np.clip(round(max(shown) / 300), 1, max(1, round(typical / 10))))


def _grown(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(H, W) the mask and its 4-neighbours."""
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown


def _labels(segments: Segments, magnify: int) -> NDArray[np.int32]:
    """The label map at the size of the result."""
    ids = np.ascontiguousarray(segments.label_map("last"))
    return ids if magnify == 1 else ids.repeat(magnify, axis=0).repeat(magnify, axis=1)


def _box_outlines(segments: Segments, shown: tuple[int, ...], magnify: int, thickness: int | None) -> NDArray[np.int32]:
    """Label map with the frames of the boxes."""
    ids = np.zeros(shown, np.int32)
    width = thickness or max(1, round(max(shown) / 500))
    for number, box in enumerate(np.round(magnify * segments.boxes()).astype(int), 1):
        x0, y0, x1, y1 = np.clip(box, 0, [shown[1], shown[0]] * 2)
        inside = ids[y0:y1, x0:x1]
        for side in (np.s_[:width], np.s_[-width:], np.s_[:, :width], np.s_[:, -width:]):
            inside[side] = number
    return ids


def _colours(
    picture: NDArray[np.uint8],
    ids: NDArray[np.int32],
    contour: NDArray[np.bool_],
    segments: Segments,
    categories: Categories | None,
    colour_by: Literal["object", "category"] | None,
) -> NDArray[np.uint8]:
    """(N, 3) the colour of each segment."""
    if colour_by is None:
        colour_by = "category" if categories is not None and any(not each.is_thing for each in categories) else "object"
    if colour_by == "category" and categories is not None:
        return categories.colours()[categories.indices(segments.category)]
    place = np.flatnonzero(_grown(contour))
    background = picture.reshape(-1, 3)[place[:: max(1, len(place) // 2000)]]
    if colour_by == "category":
        present, number = np.unique(segments.category, return_inverse=True)
        palette = contrasting_palette(background, min(max(len(present), PALETTE), len(vivid_colours())))
        return palette[number % len(palette)]
    from everymask.report.kernels import neighbours

    reach = max(2, round(max(picture.shape) / 150))
    palette = contrasting_palette(background, PALETTE)
    return palette[distinct_choice(neighbours(ids, reach) - 1, len(segments), palette)]
