"""Images for people: display range, magnification, contact sheets and PNG files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from everymask.errors import InputError
from everymask.files import atomic_write

if TYPE_CHECKING:
    from numpy.typing import NDArray


def displayed(image: NDArray[Any], low: float = 0.2, high: float = 99.8) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 picture of an image of any number type.

    The given percentiles of all channels together become black and white, so that colours keep their hue and faint
    16-bit images become visible. Very dark pictures are lifted by a gamma curve, so that dim objects show.

    Args:
        image: (H, W), or (H, W, C): grey, two channels (shown magenta and green), RGB; of more than three channels the
            first three are shown.
        low: Percentile that becomes black, 0..100.
        high: Percentile that becomes white.

    Raises:
        InputError: The array is no 2-D image.
    """
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[2] < 1:
        raise InputError(f"expected a 2-D image (H, W) or (H, W, C), got an array of shape {image.shape}")
    image = image[..., :3]
    if image.size == 0:
        return np.zeros((*image.shape[:2], 3), np.uint8)
    step = max(1, int(np.sqrt(image.shape[0] * image.shape[1] / 2**20)))
    sample = image[::step, ::step].astype(np.float32)
    sample = sample[np.isfinite(sample)]
    black, white = np.percentile(sample, [low, high]) if sample.size else (0.0, 1.0)
    if white <= black:  # a flat image, or one with fewer bright pixels than the percentile allows
        black, white = (float(sample.min()), float(sample.max())) if sample.size else (0.0, 1.0)
    scale = 1 / max(float(white - black), 1e-12)
    middle = float(np.clip((np.mean(sample) - black) * scale, 0, 1)) if sample.size else 0.5
    gamma = 0.7 if middle < 0.2 else 1.0
    if np.issubdtype(image.dtype, np.integer) and np.iinfo(image.dtype).bits <= 16:
        # A table of all grey values is several times faster than arithmetic on every pixel.
        limits = np.iinfo(image.dtype)
        values = np.arange(limits.min, int(limits.max) + 1, dtype=np.float32)
        table = _stretched(values, black, scale, gamma)
        # Negative values count from the end of the table, where rolling puts their entries.
        shown = np.roll(table, limits.min)[image]
    else:
        shown = _stretched(np.nan_to_num(image.astype(np.float32), nan=black), black, scale, gamma)
    if shown.shape[2] == 1:
        return np.repeat(shown, 3, axis=2)
    if shown.shape[2] == 2:
        return np.stack([shown[..., 0], shown[..., 1], shown[..., 0]], axis=2)
    return np.ascontiguousarray(shown)


def _stretched(values: NDArray[np.float32], black: float, scale: float, gamma: float) -> NDArray[np.uint8]:
    """Values to 0..255."""
    share = np.clip((values - np.float32(black)) * np.float32(scale), 0, 1)
    return np.round(255 * share**gamma).astype(np.uint8)


def resized(picture: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """The picture (H, W, 3) at another size, smoothly."""
    from PIL import Image

    filter_ = Image.Resampling.BICUBIC if height > picture.shape[0] else Image.Resampling.BOX
    return np.asarray(Image.fromarray(picture).resize((width, height), filter_))


def png_bytes(picture: NDArray[np.uint8]) -> bytes:
    """A picture (H, W, 3) or (H, W) as a PNG file."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", compress_level=4)
    return buffer.getvalue()


def save_png(path: Path | str, picture: NDArray[np.uint8]) -> None:
    """Writes a picture (H, W, 3) or (H, W) uint8; never leaves half a file.

    Raises:
        InputError: The folder cannot be written.
    """
    with atomic_write(path) as temporary:
        temporary.write_bytes(png_bytes(picture))


def contact_sheet(
    pictures: Sequence[NDArray[np.uint8]], titles: Sequence[str], *, columns: int = 0, tile: int = 480
) -> NDArray[np.uint8]:
    """One picture of many, in rows, each with a title above it.

    Args:
        pictures: Each (h, w, 3) uint8; scaled to fit a square of `tile` pixels.
        titles: One line each; cut where too long.
        columns: Pictures in a row; 0 picks a number that makes the sheet about 4:3.
        tile: Side of a square in pixels.

    Returns:
        (H, W, 3) uint8.

    Raises:
        InputError: The numbers of pictures and titles differ, or there are none.
    """
    from PIL import Image, ImageDraw, ImageFont

    if not pictures or len(pictures) != len(titles):
        raise InputError(f"a contact sheet needs a title for each picture, got {len(pictures)} and {len(titles)}")
    columns = columns or max(1, min(len(pictures), round(np.sqrt(len(pictures) * 4 / 3))))
    rows = -(-len(pictures) // columns)
    margin, size = max(6, tile // 40), max(13, tile // 26)
    title_height = round(1.7 * size)
    font = ImageFont.load_default(size)
    width = columns * tile + (columns + 1) * margin
    height = rows * (tile + title_height) + (rows + 1) * margin
    sheet = Image.new("RGB", (width, height), (24, 26, 30))
    draw = ImageDraw.Draw(sheet)
    for position, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
        row, column = divmod(position, columns)
        left, top = margin + column * (tile + margin), margin + row * (tile + title_height + margin)
        line = title
        while len(line) > 1 and draw.textlength(line, font=font) > tile:
            line = line.removesuffix("…")[:-1] + "…"
        draw.text((left, top + (title_height - size) / 2 - 1), line, fill=(235, 235, 235), font=font)
        share = tile / max(picture.shape[0], picture.shape[1], 1)
        shown = resized(picture, max(1, round(share * picture.shape[0])), max(1, round(share * picture.shape[1])))
        offset = ((tile - shown.shape[1]) // 2, (tile - shown.shape[0]) // 2)
        sheet.paste(Image.fromarray(shown), (left + offset[0], top + title_height + offset[1]))
    return np.asarray(sheet)
