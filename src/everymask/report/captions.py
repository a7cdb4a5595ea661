"""Names of classes at the boxes of a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def captioned(
    picture: NDArray[np.uint8], boxes: NDArray[np.floating], texts: Sequence[str], colours: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """The picture with a text at the upper left corner of each box, within the picture.

    Args:
        picture: (H, W, 3).
        boxes: (N, 4) x0, y0, x1, y1 in its pixels.
        texts: N of them; the first ones are written last, on top.
        colours: (N, 3) of the boxes; the text is black or white on it.
    """
    from PIL import Image, ImageDraw, ImageFont

    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=max(10, round(max(picture.shape) / 60)))
    for box, text, colour in reversed(list(zip(boxes.tolist(), texts, colours.tolist(), strict=True))):
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        width, height = right - left + 4, bottom - top + 4
        x = min(max(0, box[0]), max(0, image.width - width))
        # Above the box where there is room, else inside it.
        y = box[1] - height if box[1] >= height else box[1]
        luma = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
        draw.rectangle((x, y, x + width, y + height), fill=tuple(colour))
        draw.text((x + 2 - left, y + 2 - top), text, fill="black" if luma > 140 else "white", font=font)
    return np.asarray(image)
