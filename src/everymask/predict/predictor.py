"""`Predictor`: a trained network applied to images of any size."""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from everymask.errors import InputError, is_out_of_memory
from everymask.predict.device import Precision, choose_device, use_bfloat16
from everymask.predict.folding import fold_batch_normalisation
from everymask.predict.memory import keep_freed_memory
from everymask.predict.padding import pad_reflected
from everymask.predict.stitching import stitch
from everymask.predict.tiling import Tile, plan_tiles
from everymask.predict.tta import Augmentation, average_views, chosen_views
from everymask.types import Segments, Task

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import ArrayLike, NDArray
    from torch import Tensor

    from everymask.data.preprocessing import Preprocessing
    from everymask.methods.base import Method

_SAMPLED = 2**24
"""Intensity limits of images with more pixels are taken from a regular subset of about so many."""


_WHOLE = 2**30
"""Side of a tile that holds any image."""


class Predictor:
    """Applies a method to images of any size.

    An image larger than `tile` is predicted in overlapping tiles; the memory of the network depends on `tile` alone.
    The result is that of the untiled image for objects up to the overlap less twice the method's `context`.

    The network is copied, so that training on is no danger to the predictor and the predictor none to training; the
    decision thresholds are those of `method` at the time of the call.

    Args:
        method: The network and its decoder.
        preprocessing: Channel policy and intensity normalisation that the network was trained with.
        device: Where the network runs; None takes an accelerator if there is one.
        precision: ``auto`` computes in bfloat16 where the device does so fast, else in float32.
        tile: Longest side in pixels of what the network sees at once, rounded down to a multiple of the stride.
        overlap: Pixels that neighbouring tiles share. None takes twice the method's context and 64 pixels more, at
            least 128, but no more than half a tile.
        tta: Test-time augmentation: a name of `everymask.predict.tta.VIEWS`; True stands for ``dihedral``.

    Raises:
        InputError: The device, the precision, the tiling or the augmentation do not exist or make no sense.
    """

    def __init__(
        self,
        method: Method,
        preprocessing: Preprocessing,
        device: str | torch.device | None = None,
        precision: Precision = "auto",
        tile: int = 1024,
        overlap: int | None = None,
        tta: bool | Augmentation = False,
    ) -> None:
        if tile < 2 * method.stride:
            raise InputError(f"tile must be at least {2 * method.stride} pixels for this model, got {tile}")
        tile = tile // method.stride * method.stride
        if overlap is not None and not 0 <= overlap <= tile // 2:
            raise InputError(f"overlap must be in 0..{tile // 2} (half a tile), got {overlap}; enlarge the tile")
        if Task.CLASSIFICATION in method.tasks:
            tile = _WHOLE // method.stride * method.stride  # what an image shows is not to be told from a part of it
        self.method = method
        self.preprocessing = preprocessing
        self.device = choose_device(device)
        self.bfloat16 = use_bfloat16(precision, self.device)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.tile = tile
        wanted = max(128, 2 * method.context + 64)
        self.overlap = min(wanted, tile // 2) if overlap is None else overlap
        self.views = chosen_views(tta)
        self._network = fold_batch_normalisation(copy.deepcopy(method).requires_grad_(False).eval())
        # Convolutions run faster with the channels innermost, on CPUs (measured: 1.3 to 2 times) as on tensor cores.
        self._network.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def __call__(self, image: NDArray[Any], limits: ArrayLike | None = None) -> Segments:
        """The segments of an image; their categories are class indices 0..K-1.

        Args:
            image: (H, W) or (H, W, C), any real number type. Any object with `shape`, `dtype` and slices that numpy
                understands will do (`numpy.memmap`, zarr): tiles are read one by one.
            limits: (2,), (2, 1) or (2, C): the intensities that become 0 and 1, where they are to be the same for
                several images; default: those of this image.

        Raises:
            InputError: The image has no pixels, other axes, a wrong number of channels, or values that are not finite.
        """
        image = _checked(image)
        size = (int(image.shape[0]), int(image.shape[1]))
        scale = self._limits(image, limits)
        tiles = plan_tiles(size, self.tile, self.overlap, self.method.stride)
        found = ((tile, self._decode_tile(image, tile, scale)) for tile in tiles)
        if len(tiles) == 1:
            return next(found)[1]
        semantic = Task.SEMANTIC in self.method.tasks and Task.INSTANCE not in self.method.tasks
        segments, cut = stitch(found, size, self.method.classes, semantic)
        if cut:
            warnings.warn(
                f"{cut} of {len(segments)} objects reach beyond their tile and may be cut off; "
                f"enlarge the tile (now {self.tile} pixels) or the overlap ({self.overlap})",
                stacklevel=2,
            )
        return segments

    def predict_stack(self, stack: NDArray[Any], limits: ArrayLike | None = None) -> list[Segments]:
        """The segments of each plane of a stack or time series; planes know nothing of each other.

        Args:
            stack: (Z, H, W) or (Z, H, W, C).
            limits: As for a single image; default: those of each plane.

        Raises:
            InputError: As for a single image.
        """
        if np.ndim(stack) not in (3, 4):
            raise InputError(f"expected a stack (Z, H, W) or (Z, H, W, C), got an array of shape {np.shape(stack)}")
        return [self(stack[z], limits) for z in range(stack.shape[0])]

    def outputs(
        self, image: NDArray[Any], limits: ArrayLike | None = None
    ) -> tuple[dict[str, Tensor], tuple[int, int]]:
        """What the network says of an image, undecoded; to try several thresholds on.

        Args:
            image: As for `__call__`.
            limits: As for `__call__`.

        Returns:
            The outputs (1, ?, H / grid, W / grid) of the padded image, float32 on the CPU, and its (H, W) unpadded:
            just what ``method.decode(outputs, [size])`` takes. Those of large images are put together from tiles.

        Raises:
            InputError: As for `__call__`.
        """
        image = _checked(image)
        size = (int(image.shape[0]), int(image.shape[1]))
        scale = self._limits(image, limits)
        tiles = plan_tiles(size, self.tile, self.overlap, self.method.stride)
        grid = self.method.grid
        joined: dict[str, Tensor] = {}
        for tile in tiles:
            outputs = {name: output.cpu() for name, output in self._outputs_of_tile(image, tile, scale).items()}
            if len(tiles) == 1:
                return outputs, size
            for name, output in outputs.items():
                if name not in joined:
                    height, width = (-(-length // self.method.stride) * self.method.stride // grid for length in size)
                    joined[name] = output.new_zeros(*output.shape[:2], height, width)
                top, left = tile.origin
                rows, columns = (slice(each.start // grid, each.stop // grid) for each in tile.core)
                joined[name][..., top // grid :, left // grid :][..., rows, columns] = output[..., rows, columns]
        return joined, size

    def _limits(self, image: NDArray[Any], given: ArrayLike | None) -> NDArray[np.float32]:
        """The intensity limits (2, 1) or (2, C) of the whole image."""
        if given is not None:
            limits = np.asarray(given, np.float32)
            if limits.shape not in ((2,), (2, 1), (2, self.preprocessing.channels)):
                raise InputError(f"limits must have the shape (2,) or (2, channels), got {limits.shape}")
            return limits.reshape(2, -1)
        # Channels are matched on the subset, so that a colour image is never turned into grey floats as a whole.
        step = max(1, int(np.sqrt(image.shape[0] * image.shape[1] / _SAMPLED)))
        return self.preprocessing.limits(self.preprocessing.match_channels(np.asarray(image[::step, ::step])))

    def _decode_tile(self, image: NDArray[Any], tile: Tile, limits: NDArray[np.float32]) -> Segments:
        height = min(tile.rows.stop, image.shape[0]) - tile.rows.start
        width = min(tile.columns.stop, image.shape[1]) - tile.columns.start
        return self.method.decode(self._outputs_of_tile(image, tile, limits), [(height, width)])[0]

    def _outputs_of_tile(self, image: NDArray[Any], tile: Tile, limits: NDArray[np.float32]) -> dict[str, Tensor]:
        """The outputs of a tile, float32, on the device. The padding of the image belongs to its last tiles."""
        pixels = np.asarray(image[tile.rows.start : tile.rows.stop, tile.columns.start : tile.columns.stop])
        batch = torch.from_numpy(self.preprocessing(pixels, limits))[None]
        height, width = tile.rows.stop - tile.rows.start, tile.columns.stop - tile.columns.start
        batch = pad_reflected(batch, bottom=height - batch.shape[-2], right=width - batch.shape[-1])
        batch = batch.to(self.device, memory_format=torch.channels_last)
        try:
            return average_views(self.method, self._forward, batch, self.views)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            on_accelerator = "" if self.device.type == "cpu" else " or take the device cpu"
            raise InputError(
                f"out of memory on {self.device} with tiles of {height} x {width} pixels; lower tile, now "
                f"{self.tile}{on_accelerator}"
            ) from error

    def _forward(self, batch: Tensor) -> dict[str, Tensor]:
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            outputs = self._network(batch)
        return {name: output.float() for name, output in outputs.items()}


def _checked(image: NDArray[Any]) -> NDArray[Any]:
    """The image if it can be predicted; lazily read arrays stay lazy.

    Raises:
        InputError: It has no pixels, other axes or number types, or values that are not finite.
    """
    if not (hasattr(image, "shape") and hasattr(image, "dtype")):
        image = np.asarray(image)
    if len(image.shape) not in (2, 3):
        raise InputError(f"expected an image (H, W) or (H, W, C), got an array of shape {tuple(image.shape)}")
    if 0 in image.shape:
        raise InputError(f"the image has no pixels: its shape is {tuple(image.shape)}")
    if image.dtype.kind == "b":
        return np.asarray(image).astype(np.uint8) * np.uint8(255)
    if image.dtype.kind not in "uif":
        raise InputError(f"expected an image of real numbers, got {image.dtype}")
    if image.dtype.kind == "f":
        for block in _row_blocks(image):
            if not np.isfinite(block).all():
                raise InputError("the image holds values that are not finite (NaN or infinity); replace them first")
    return image


def _row_blocks(image: NDArray[Any], rows: int = 256) -> Iterator[NDArray[Any]]:
    """The image in strips, so that a memory-mapped one is never held as a whole."""
    for top in range(0, image.shape[0], rows):
        yield np.asarray(image[top : top + rows])
