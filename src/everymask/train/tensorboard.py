"""Event files for TensorBoard: losses, figures, the learning rate and a few pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from everymask.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from everymask.data.preprocessing import Preprocessing
    from everymask.data.store import Decoded
    from everymask.types import Categories, Segments

FOLDER = "tensorboard"
"""Name of the folder of the event files in the output folder of a run."""
PICTURES = 4
"""Validation images that are shown after each validation."""
_SIDE = 512


class TensorBoard:
    """Writes what `RunLog` writes, as curves over the optimiser steps.

    Args:
        folder: For the event files.
        first_step: Of this part of the run; what an earlier part wrote of it and of later ones is left out.
        preprocessing: Of the images.
        categories: Of the model.

    Raises:
        InputError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, first_step: int, preprocessing: Preprocessing, categories: Categories) -> None:
        check_installed()
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(folder), purge_step=first_step)
        self.categories = categories
        self._to_unit = replace(preprocessing, mean=(0.0,), std=(1.0,))

    def write(self, event: str, values: Mapping[str, Any]) -> None:
        """Adds the numbers of an entry of the log.

        Args:
            event: Name of the entry; see `RunLog`.
            values: Its values.
        """
        if event not in ("step", "epoch"):
            return
        step = int(values["step"])
        for name, value in values["loss"].items():
            self.writer.add_scalar(f"training_loss/{name}", value, step)
        for name in ("learning_rate", "gradient_norm", "images_per_second"):
            if name in values:
                self.writer.add_scalar(f"training/{name}", values[name], step)
        for name, value in values.get("validation", {}).items():
            group = "validation_loss" if name.partition("/")[0] == "loss" else "validation"
            self.writer.add_scalar(f"{group}/{name.removeprefix('loss/').replace('loss', 'total')}", value, step)
        self.writer.flush()

    def show(self, shown: Sequence[tuple[Decoded, Segments, Segments]], step: int) -> None:
        """Adds pictures: the image, its annotation and its prediction side by side.

        Args:
            shown: Images with their annotations, of the data set's category ids, and predictions, of class indices.
            step: Optimiser steps so far.
        """
        for number, (decoded, truth, prediction) in enumerate(shown):
            truth = truth.with_category(self.categories.indices(truth.category))
            image = self._to_unit(decoded.image, decoded.limits)
            if image.ndim == 4:  # of volumes the plane in the middle
                middle = image.shape[1] // 2
                image, truth, prediction = image[:, middle], truth.plane(middle), prediction.plane(middle)
            image = image.transpose(1, 2, 0)
            panels = [picture(image, each, self.categories) for each in (None, truth, prediction)]
            tag = f"image, annotation, prediction/{number}"
            self.writer.add_image(tag, np.concatenate(panels, axis=1), step, dataformats="HWC")
        self.writer.flush()

    def close(self) -> None:
        """Writes what is left."""
        self.writer.close()


def check_installed() -> None:
    """Raises an `InputError` if there is no TensorBoard."""
    try:
        import tensorboard  # noqa: F401 - only to see whether it is there
    except ImportError as error:
        raise InputError("--tensorboard needs a package: pip install everymask[tensorboard]") from error


def picture(image: NDArray[np.float32], segments: Segments | None, categories: Categories) -> NDArray[np.uint8]:
    """(h, w, 3) the image with its segments in the colours of their classes, every n-th pixel of large ones.

    Args:
        image: (H, W, C), 0..1.
        segments: Of class indices; those without a place in the image are not drawn.
        categories: Give the colours.
    """
    from everymask.ops.labels import label_boundaries

    step = -(-max(image.shape[:2]) // _SIDE)
    small = image[::step, ::step, :3]
    colours = small if small.shape[2] == 3 else np.repeat(small[..., :1], 3, axis=2)
    made = 255 * np.clip(colours, 0, 1)
    if segments is not None and segments.geometry is not None:
        ids = np.ascontiguousarray(np.maximum(segments.label_map("last"), 0)[::step, ::step])
        table = np.concatenate([[[0, 0, 0]], categories.colours()[segments.category]]).astype(np.float32)
        made = np.where(ids[..., None] > 0, 0.5 * made + 0.5 * table[ids], made)
        made[label_boundaries(ids, 1)] = 255
    return made.round().astype(np.uint8)
