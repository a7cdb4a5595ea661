"""Colours that can be told apart, from each other and from the image under them."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_RGB_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_LMS_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def oklab(colours: NDArray[np.uint8]) -> NDArray[np.float64]:
    """OKLab coordinates (lightness 0..1, green-red, blue-yellow) of sRGB colours.

    Euclidean distances in OKLab follow how different two colours look: 0.02 is just visible, 1 is black against white.

    Args:
        colours: (..., 3) red, green, blue of 0..255.

    Source:
        B. Ottosson, "A perceptual color space for image processing" (2020).
    """
    part = np.asarray(colours, np.float64) / 255
    linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ _RGB_TO_LMS.T) @ _LMS_TO_LAB.T


def _srgb(lab: NDArray[np.float64]) -> NDArray[np.float64]:
    """sRGB of OKLab colours, unclipped: values outside 0..1 cannot be shown."""
    lms = (lab @ np.linalg.inv(_LMS_TO_LAB).T) ** 3
    linear = lms @ np.linalg.inv(_RGB_TO_LMS).T
    safe = np.maximum(linear, 0.0031308)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * safe ** (1 / 2.4) - 0.055)


@functools.cache
def vivid_colours(hues: int = 36, lightnesses: tuple[float, ...] = (0.62, 0.75, 0.88)) -> NDArray[np.uint8]:
    """(hues * lightnesses, 3) the most saturated colours that a screen can show at each hue and OKLab lightness.

    The default leaves out dark colours: contours have a dark rim, against which only light ones show.
    """
    made = []
    for lightness in lightnesses:
        for angle in np.linspace(0, 2 * np.pi, hues, endpoint=False):
            chroma = np.linspace(0, 0.4, 81)[:, None]
            lab = np.hstack([np.full_like(chroma, lightness), chroma * np.cos(angle), chroma * np.sin(angle)])
            colour = _srgb(lab)
            shown = np.flatnonzero(((colour >= 0) & (colour <= 1)).all(axis=1))
            made.append(colour[shown[-1]])
    return np.round(255 * np.array(made)).astype(np.uint8)


def contrasting_palette(background: NDArray[np.uint8], count: int = 12) -> NDArray[np.uint8]:
    """(count, 3) colours that differ from each other and from the image.

    Greedy: the next colour is the vivid one whose nearest rival (a colour already taken, or the background where it
    resembles the candidate most) is farthest away.

    Args:
        background: (K, 3) sample of the image's colours where the contours will lie; may be empty.
        count: At most 108.
    """
    candidates = vivid_colours()
    lab = oklab(candidates)
    contrast = np.ones(len(candidates))
    if len(background):
        sample = oklab(background[:: max(1, len(background) // 2000)])
        distance = np.sqrt(((lab[:, None] - sample[None]) ** 2).sum(axis=-1))
        # The 5th percentile: a colour must stand out from nearly all of the pixels it may lie on.
        contrast = np.percentile(distance, 5, axis=1)
    # Only the better half may be taken at all, since a hidden contour is worse than two that look alike.
    kept = np.argsort(-contrast, kind="stable")[: max(count, len(candidates) // 2)]
    candidates, lab, nearest = candidates[kept], lab[kept], contrast[kept].copy()
    chosen = []
    for _ in range(count):
        best = int(np.argmax(nearest))
        chosen.append(best)
        nearest = np.minimum(nearest, np.sqrt(((lab - lab[best]) ** 2).sum(axis=1)))
        nearest[best] = -1
    return candidates[chosen]


def distinct_choice(pairs: NDArray[np.int64], objects: int, palette: NDArray[np.uint8]) -> NDArray[np.int64]:
    """(objects,) number of the palette's colour for each object: clearly different for neighbours.

    Greedy graph colouring: each object in turn takes, starting at another colour each time, the first colour that is
    far from those of its neighbours, or the farthest if none is. It takes a colour of a neighbour only if its coloured
    neighbours have used up the whole palette.

    Args:
        pairs: (P, 2) object numbers 0..objects-1 of neighbours, each pair once.
        objects: Number of objects.
        palette: (K, 3) red, green, blue.
    """
    lab = oklab(palette)
    apart = np.sqrt(((lab[:, None] - lab[None]) ** 2).sum(axis=-1))
    # Twice what separates the two most similar colours of the palette on average, but never more than is to be had.
    enough = 2 * float(np.mean(np.sort(apart, axis=1)[:, 1])) if len(palette) > 1 else 0.0
    both = np.vstack([pairs, pairs[:, ::-1]])
    both = both[np.argsort(both[:, 0], kind="stable")]
    bounds = np.searchsorted(both[:, 0], np.arange(objects + 1))
    first = np.arange(len(palette))
    orders = (first[:, None] + first) % len(palette)
    apart = np.minimum(apart, enough)[orders]
    neighbours = both[:, 1]
    chosen = np.full(objects, -1)
    for each in range(objects):
        start = each % len(palette)
        taken = chosen[neighbours[bounds[each] : bounds[each + 1]]]
        distance = apart[start][:, taken[taken >= 0]].min(axis=1, initial=np.inf)
        chosen[each] = orders[start, np.argmax(distance)]
    return chosen
