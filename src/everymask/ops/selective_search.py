"""Selective search: boxes that may hold an object, of whatever class, from a hierarchy of regions.

Uijlings, van de Sande, Gevers, Smeulders, Selective Search for Object Recognition, IJCV 2013.
"""

from __future__ import annotations

import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from everymask.errors import InputError, unknown_name

if TYPE_CHECKING:
    from numpy.typing import NDArray

Search = Literal["fast", "quality"]


@dataclass(frozen=True, slots=True)
class Similarity:
    """Which of the four similarities are summed, each 0..1 (eq. 1 to 6).

    Args:
        colour: Intersection of the histograms of colours.
        texture: Intersection of the histograms of gradients.
        size: Small regions are joined first.
        fill: Regions are joined first that fill the box around both.
    """

    colour: bool = True
    texture: bool = True
    size: bool = True
    fill: bool = True


_ALL, _PLAIN = Similarity(), Similarity(colour=False)
_FILL = Similarity(colour=False, texture=False, size=False)
_SIZE = Similarity(colour=False, texture=False, fill=False)


@dataclass(frozen=True, slots=True)
class _Strategies:
    """Every combination is one hierarchy (sec. 5.2, table 5 of the paper).

    Args:
        spaces: Colour spaces of images of three channels.
        others: Those of images of another number of channels.
        scales: Of the first regions, as multiples of the finest one; the least size in pixels is the same number.
        grey: The scales for images of one channel, of which there is but one colour space.
        similarities: Of the grouping.
    """

    spaces: tuple[str, ...]
    others: tuple[str, ...]
    scales: tuple[int, ...]
    grey: tuple[int, ...]
    similarities: tuple[Similarity, ...]


_SEARCHES = {
    "fast": _Strategies(("hsv", "lab"), ("channels", "intensity"), (1, 2), (1, 2, 3, 6), (_ALL, _PLAIN)),
    "quality": _Strategies(
        ("hsv", "lab", "rgi", "hue", "intensity"),
        ("channels", "shares", "intensity"),
        (1, 2, 3, 6),
        (1, 2, 3, 6),
        (_ALL, _PLAIN, _FILL, _SIZE),
    ),
}


def check_search(search: str, finest: int) -> None:
    """Checks the options of a search.

    Raises:
        InputError: There is none of that name, or the finest scale is below 1.
    """
    if finest < 1:
        raise InputError(f"the finest scale of a search must be 1 pixel or more, got {finest}")
    if search not in _SEARCHES:
        raise unknown_name("search", str(search), _SEARCHES)


def selective_search(
    image: NDArray[Any], search: Search = "fast", most: int | None = None, finest: int = 50, threads: int = 1
) -> NDArray[np.float32]:
    """Boxes of the regions of all hierarchies, the promising ones first.

    First regions by `felzenszwalb` are joined step by step to the whole image (`group_regions`), once for each of
    several colour spaces, scales and similarities. Boxes are ordered by their place in the hierarchy, the whole image
    first, times a random number (sec. 4.2), which depends on the image alone; each is given once, at its best place.

    Args:
        image: (H, W) or (H, W, C), uint8, or floats from 0 to 1. Three channels are red, green and blue.
        search: ``fast`` goes through 8 hierarchies of a colour image, ``quality`` through 80.
        most: Boxes at most; None for all, a few thousand or ten thousand of a photograph.
        finest: Scale and least size in pixels of the smallest first regions, 50 in the paper; others are two, and with
            ``quality`` three and six times as large. Less finds smaller objects, by more boxes.
        threads: That share the colour spaces.

    Returns:
        (P, 4) x0, y0, x1, y1 in pixels, right and bottom exclusive.

    Raises:
        InputError: The search is unknown, the finest scale is below 1, or the image has no pixels or another shape.
    """
    check_search(search, finest)
    if image.ndim not in (2, 3) or 0 in image.shape:
        raise InputError(f"expected an image (H, W) or (H, W, C) with pixels in it, got the shape {image.shape}")
    from everymask.ops.colour_spaces import SPACES

    pixels = _bytes(image)
    strategies, channels = _SEARCHES[search], pixels.shape[2]
    if channels == 3:
        spaces, multiples = strategies.spaces, strategies.scales
    elif channels == 1:
        spaces, multiples = ("intensity",), strategies.grey
    else:
        spaces, multiples = strategies.others, strategies.scales
    scales = tuple(each * finest for each in multiples)

    def of_space(name: str) -> list[NDArray[np.int32]]:
        space = _Space(SPACES[name](pixels), scales)
        return [boxes for index in range(len(scales)) for boxes in space.boxes(index, strategies.similarities)]

    if threads > 1 and len(spaces) > 1:
        with ThreadPoolExecutor(min(threads, len(spaces))) as pool:
            groups = list(pool.map(of_space, spaces))
    else:
        groups = [of_space(name) for name in spaces]
    random = np.random.default_rng(zlib.crc32(pixels.tobytes()))
    return _ordered([boxes for group in groups for boxes in group], random)[:most]


class _Space:
    """An image in a colour space, with its first regions at several scales.

    Args:
        image: (H, W, C), 0..1.
        scales: Of the regions.
    """

    def __init__(self, image: NDArray[np.float32], scales: tuple[int, ...]) -> None:
        from scipy import ndimage

        from everymask.ops.felzenszwalb import felzenszwalb
        from everymask.ops.region_grouping import COLOUR_BINS

        self.bins = np.minimum(image * np.float32(COLOUR_BINS), COLOUR_BINS - 1).astype(np.uint8)
        self.labels = felzenszwalb(image, scales, scales)
        self.gradients = np.stack(
            [ndimage.gaussian_filter(image, 1, order, axes=(0, 1)) for order in ((1, 0), (0, 1))], axis=-1
        )
        self.steepest = np.sqrt(np.square(self.gradients).sum(-1).max((0, 1)))

    def boxes(self, index: int, similarities: tuple[Similarity, ...]) -> list[NDArray[np.int32]]:
        """For each similarity the boxes (2 n - 1, 4) of a hierarchy on the regions of a scale."""
        from everymask.ops.region_grouping import describe_regions, group_regions

        regions = describe_regions(self.labels[index], self.bins, self.gradients, self.steepest)
        return [group_regions(regions, each)[1] for each in similarities]


def _bytes(image: NDArray[Any]) -> NDArray[np.uint8]:
    """(H, W, C) uint8, contiguous."""
    if image.dtype != np.uint8:
        image = np.round(255 * np.clip(np.nan_to_num(image), 0, 1)).astype(np.uint8)
    return np.ascontiguousarray(image.reshape(*image.shape[:2], -1))


def _ordered(groups: list[NDArray[np.int32]], random: np.random.Generator) -> NDArray[np.float32]:
    """The boxes of several hierarchies, each from the first regions to the whole image, as `selective_search` says."""
    places = np.concatenate([np.arange(len(each), 0, -1) * random.random(len(each)) for each in groups])
    boxes = np.concatenate(groups)[np.argsort(places, kind="stable")]
    # One number for each box, which is found far faster than rows are.
    codes = np.zeros(len(boxes), np.int64)
    for side in boxes.T.astype(np.int64):
        codes = codes * (int(side.max()) + 1) + side
    _, first = np.unique(codes, return_index=True)
    return boxes[np.sort(first)].astype(np.float32)
