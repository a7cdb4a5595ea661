"""Small masks of detections brought to the size of their boxes, straight into run lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

from everymask.errors import InputError
from everymask.ops.rle_measures import grown

if TYPE_CHECKING:
    from numpy.typing import NDArray


def paste_masks(
    masks: NDArray[Any], boxes: NDArray[Any], size: Sequence[int], threshold: float = 0.5
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Run-length masks of an image from the small masks that a network gives for boxes.

    The rule of `torchvision.models.detection.roi_heads.paste_masks_in_image`: a margin of one zero cell, the box grown
    by the same share and cut to whole pixels, bilinear interpolation; then the threshold. Time and memory depend on the
    boxes alone, not on the image.

    Args:
        masks: (N, S, S) probabilities 0..1.
        boxes: (N, 4) x0, y0, x1, y1 in pixels of the image.
        size: (H, W) of the image.
        threshold: Pixels of at least this probability are of the mask.

    Returns:
        Run lengths (R,) uint32 and offsets (N + 1,) int64, as in `everymask.ops.rle`.

    Raises:
        InputError: The shapes do not fit.
    """
    masks, boxes = np.ascontiguousarray(masks, np.float32), np.ascontiguousarray(boxes, np.float32)
    if masks.ndim != 3 or masks.shape[1] != masks.shape[2] or boxes.shape != (len(masks), 4):
        raise InputError(f"masks: got shapes {masks.shape} and {boxes.shape}, expected (N, S, S) and boxes (N, 4)")
    side = masks.shape[1]
    padded = np.zeros((len(masks), side + 2, side + 2), np.float32)
    padded[:, 1:-1, 1:-1] = masks
    # In float32 like there, since the whole pixels hang on the last digit.
    low, high = boxes[:, :2], boxes[:, 2:]
    half = (high - low) * np.float32(0.5) * np.float32((side + 2) / side)
    middle = (high + low) * np.float32(0.5)
    corners = np.concatenate([middle - half, middle + half], axis=1).astype(np.int64)
    return _paste(padded, corners, int(size[0]), int(size[1]), np.float32(threshold))


@njit(cache=True, nogil=True)
def _taps(
    first: int, last: int, begin: int, length: int, cells: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:  # pragma: no cover - compiled
    """Cell before each pixel first..last - 1 of a stretch, and how far the pixel lies towards the next, 0..1."""
    cell, part = np.empty(last - first, np.int64), np.empty(last - first, np.float32)
    scale = np.float32(cells) / np.float32(length)
    for i in range(first, last):
        place = max(np.float32(0), scale * (np.float32(i - begin) + np.float32(0.5)) - np.float32(0.5))
        cell[i - first] = int(place)
        part[i - first] = place - np.float32(int(place))
    return cell, part


@njit(cache=True, nogil=True)
def _paste(
    masks: NDArray[np.float32], corners: NDArray[np.int64], height: int, width: int, threshold: np.float32
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:  # pragma: no cover - compiled
    number, cells = masks.shape[0], masks.shape[1]
    offsets = np.zeros(number + 1, np.int64)
    counts = np.empty(256 * number + 16, np.uint32)
    column = np.empty(cells + 1, np.float32)
    end = 0
    for n in range(number):
        x0, y0, x1, y1 = corners[n, 0], corners[n, 1], corners[n, 2], corners[n, 3]
        left, right = max(x0, 0), min(x1 + 1, width)
        top, bottom = max(y0, 0), min(y1 + 1, height)
        closed = 0  # where the last run of foreground ended
        start = last = -1
        if left < right and top < bottom:
            across, along = _taps(left, right, x0, max(x1 - x0 + 1, 1), cells)
            down, towards = _taps(top, bottom, y0, max(y1 - y0 + 1, 1), cells)
            for x in range(left, right):
                cell, part = across[x - left], along[x - left]
                following = min(cell + 1, cells - 1)
                for i in range(cells):
                    column[i] = masks[n, i, cell] * (np.float32(1) - part) + masks[n, i, following] * part
                column[cells] = column[cells - 1]
                counts = grown(counts, end + 2 * (bottom - top) + 4)
                for y in range(top, bottom):
                    cell, part = down[y - top], towards[y - top]
                    value = column[cell] * (np.float32(1) - part) + column[cell + 1] * part
                    if value >= threshold:
                        position = x * height + y
                        if start < 0:
                            start = position
                        elif position != last + 1:
                            counts[end], counts[end + 1] = start - closed, last + 1 - start
                            end += 2
                            closed, start = last + 1, position
                        last = position
        counts = grown(counts, end + 4)
        if start >= 0:
            counts[end], counts[end + 1] = start - closed, last + 1 - start
            end += 2
            closed = last + 1
        if closed < height * width or height * width == 0:
            counts[end] = height * width - closed
            end += 1
        offsets[n + 1] = end
    return counts[:end].copy(), offsets
