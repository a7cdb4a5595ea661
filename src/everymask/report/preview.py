"""What a network will be trained on, seen with its own eyes: augmented crops with their labels drawn over."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from everymask.data.sampling import Draw
from everymask.report.colours import contrasting_palette, distinct_choice
from everymask.report.overlay import PALETTE, contour_thickness, suggested_magnification
from everymask.report.picture import contact_sheet, resized
from everymask.types import Segments

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from everymask.data.preprocessing import Preprocessing
    from everymask.train.samples import TrainingSamples
    from everymask.types import Categories

TILE = 320
"""Side of a crop in the picture."""


def training_preview(
    samples: TrainingSamples, preprocessing: Preprocessing, categories: Categories, count: int = 16
) -> NDArray[np.uint8]:
    """A sheet of the first crops of a training run (H, W, 3).

    The crops are the network's own input, only its mean and deviation are undone: what is too dark here is too dark for
    the network. Void is hatched.

    Args:
        samples: Of the run.
        preprocessing: Of the images.
        categories: Of the model.
        count: Number of crops.
    """
    crops = samples.crops()
    batches = samples.stream(-(-count // samples.recipe.batch_size))
    draws: list[Draw] = [draw for batch in batches for draw in batch][:count]
    pictures: list[NDArray[np.uint8]] = []
    titles: list[str] = []
    for draw in draws:
        image, segments = middle_plane(*crops.cut(draw))
        pictures.append(drawn_crop(image, segments, preprocessing, categories))
        present = [categories.names[index] for index in np.unique(segments.category)]
        titles.append(f"{samples.store.data[draw.index].name}: {', '.join(present) or 'nothing'}")
    return contact_sheet(pictures, titles, columns=math.ceil(math.sqrt(count)), tile=TILE)


def middle_plane(image: NDArray[Any], segments: Segments) -> tuple[NDArray[Any], Segments]:
    """Of a volume (C, D, H, W) the plane in the middle with what lies in it; of an image (C, H, W) itself."""
    if image.ndim == 3:
        return image, segments
    middle = image.shape[1] // 2
    return image[:, middle], segments.plane(middle)


def drawn_crop(
    image: NDArray[np.float32], segments: Segments, preprocessing: Preprocessing, categories: Categories
) -> NDArray[np.uint8]:
    """A crop as the network gets it, with the contours of its segments.

    Args:
        image: (C, H, W), normalised.
        segments: Of class indices. Colours are those of the classes; objects of an only class are told apart.
        preprocessing: How the image was normalised.
        categories: Of the model.

    Returns:
        (H, W, 3), magnified where the crop is small.
    """
    from everymask.ops.labels import label_boundaries
    from everymask.report.kernels import neighbours, paint

    mean, deviation = (
        np.asarray(each, np.float32).reshape(-1, 1, 1) for each in (preprocessing.mean, preprocessing.std)
    )
    unit = np.clip(image * deviation + mean, 0, 1)
    colours = unit[:3] if len(unit) >= 3 else unit[:1].repeat(3, axis=0)
    picture = (255 * colours).round().astype(np.uint8).transpose(1, 2, 0)
    magnify = suggested_magnification(segments.size, TILE)
    height, width = magnify * picture.shape[0], magnify * picture.shape[1]
    picture = resized(picture, height, width) if magnify > 1 else np.ascontiguousarray(picture)
    if segments.geometry is None:
        return picture
    ids = segments.label_map("last").repeat(magnify, axis=0).repeat(magnify, axis=1)
    contour = label_boundaries(ids, contour_thickness(picture.shape[:2], segments, magnify))
    if len(categories) > 1:
        palette = categories.colours()[segments.category]
    else:
        choice = contrasting_palette(picture[contour], PALETTE)
        palette = choice[distinct_choice(neighbours(ids) - 1, len(segments), choice)]
    # Without segments there is nothing to paint, and no colour to paint it with.
    painted = paint(picture, ids, contour, palette, 0.2) if len(segments) else picture.copy()
    rows, columns = np.indices(ids.shape)
    painted[(ids < 0) & ((rows + columns) // 4 % 2 == 0)] //= 3
    return painted
