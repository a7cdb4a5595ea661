"""One segment for every pixel from masks that overlap and a map of classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import njit

from everymask.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def merge_panoptic(
    counts: NDArray[np.uint32],
    offsets: NDArray[np.int64],
    size: tuple[int, int],
    classes: NDArray[np.int32] | None,
    number: int,
    *,
    free: float = 0.5,
    least: float = 4096,
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
    """Lays masks into an image one after the other where there is room, and stuff into the rest.

    The rule of `panopticapi`'s program ``combine_semantic_and_instance_predictions`` (Kirillov et al. 2019, Panoptic
    Segmentation, sec. 7), which Panoptic FPN takes over: of each mask the pixels that earlier ones have left; a mask of
    which too little is left is dropped. Then each class gets those of its pixels that no mask has, if they are enough.

    Args:
        counts: Run lengths of the masks, best first, as in `everymask.ops.rle`.
        offsets: (N + 1,).
        size: (H, W) of the image.
        classes: (H, W) class of each pixel, 0 for none; None for masks alone.
        number: Of the classes, 0 among them; those in the map are 0..number - 1.
        free: Share of a mask's pixels that must be free, 0..1.
        least: Pixels that a class must have left.

    Returns:
        Label map (H, W) int32, 0 where there is nothing; the indices of the masks that are in it, which have the labels
        1, 2, ...; and the classes that are in it, in ascending order, which have the labels after those.

    Raises:
        InputError: The map has another size, or a class that does not exist.
    """
    canvas = np.zeros((size[1], size[0]), np.int32)  # in the order of the runs, which go down the columns
    kept = _place(counts, offsets, canvas.reshape(-1), 1 - free)
    ids = np.ascontiguousarray(canvas.T)
    if classes is None:
        return ids, kept, np.zeros(0, np.int64)
    if classes.shape != ids.shape:
        raise InputError(f"classes: got a map of shape {classes.shape}, expected {ids.shape}")
    if classes.size and not 0 <= int(classes.min()) <= int(classes.max()) < number:
        raise InputError(f"classes: got {classes.min()} to {classes.max()}, expected 0 to {number - 1}")
    return ids, kept, _fill(ids, np.ascontiguousarray(classes, np.int32), number, least, len(kept))


@njit(cache=True, nogil=True)
def _place(
    counts: NDArray[np.uint32], offsets: NDArray[np.int64], canvas: NDArray[np.int32], most_hidden: float
) -> NDArray[np.int64]:  # pragma: no cover - compiled
    """Labels the pixels of each mask that are 0 on the canvas; indices of the masks that got any."""
    kept = np.empty(len(offsets) - 1, np.int64)
    number = 0
    for n in range(len(offsets) - 1):
        area = hidden = position = 0
        for run in range(offsets[n], offsets[n + 1]):
            end = position + np.int64(counts[run])
            if (run - offsets[n]) % 2:
                area += end - position
                for i in range(position, end):
                    hidden += np.int64(canvas[i] != 0)
            position = end
        if hidden == area or hidden / area > most_hidden:
            continue
        kept[number] = n
        number += 1
        position = 0
        for run in range(offsets[n], offsets[n + 1]):
            end = position + np.int64(counts[run])
            if (run - offsets[n]) % 2:
                for i in range(position, end):
                    if canvas[i] == 0:
                        canvas[i] = number
            position = end
    return kept[:number].copy()


@njit(cache=True, nogil=True)
def _fill(
    ids: NDArray[np.int32], classes: NDArray[np.int32], number: int, least: float, used: int
) -> NDArray[np.int64]:  # pragma: no cover - compiled
    """Labels the pixels that are 0 with the class that they have, if it has enough of them; the classes that do."""
    height, width = ids.shape
    pixels = np.zeros(number, np.int64)
    for y in range(height):
        for x in range(width):
            if ids[y, x] == 0:
                pixels[classes[y, x]] += 1
    label, present = np.zeros(number, np.int32), np.empty(number, np.int64)
    count = 0
    for each in range(1, number):
        if pixels[each] > 0 and pixels[each] >= least:
            present[count] = each
            count += 1
            label[each] = used + count
    for y in range(height):
        for x in range(width):
            if ids[y, x] == 0:
                ids[y, x] = label[classes[y, x]]
    return present[:count].copy()
