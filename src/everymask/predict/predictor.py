"""`Predictor`: a trained network applied to images of any size."""

from __future__ import annotations

import contextlib
import copy
import math
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from everymask.errors import InputError, is_out_of_memory
from everymask.methods.detection.common import BoxMethod
from everymask.methods.semantic.common import SemanticMethod
from everymask.predict.averaging import from_average
from everymask.predict.blending import blend
from everymask.predict.box_views import segments_of_views
from everymask.predict.checks import check_purpose, checked_image
from everymask.predict.convolutions import keep_weights_in_bfloat16, run_pointwise_in_one_thread
from everymask.predict.device import Precision, channels_innermost, choose_device, use_bfloat16
from everymask.predict.folding import fold_batch_normalisation
from everymask.predict.limits import sampled_limits
from everymask.predict.magnification import MagnifiedImage, check_magnification, restored
from everymask.predict.memory import keep_freed_memory
from everymask.predict.padding import pad_constant, pad_reflected
from everymask.predict.stitching import stitch
from everymask.predict.tiling import Tile, plan_tiles, plan_volume
from everymask.predict.tta import VIEWS, Augmentation, average_views, check_views, chosen_views, mean_of_views
from everymask.types import Segments, Task

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray
    from torch import Tensor

    from everymask.data.preprocessing import Preprocessing
    from everymask.methods.base import Method

    Pixels = NDArray[Any] | MagnifiedImage

_WHOLE = 2**30
"""Side of a tile that holds any image."""

_ESTIMATES = 5
"""Tiles of a large image from which its magnification is estimated."""


class Predictor:
    """Applies a method to images of any size.

    A method for volumes is applied to volumes (D, H, W) or (D, H, W, C) instead of images, and to stacks as a whole.

    An image larger than `tile` is predicted in overlapping tiles; the memory of the network depends on `tile` alone.
    Objects are taken whole from the tile that holds their centre: the result is that of the untiled image for objects
    up to the overlap less twice the method's `context`. Classes of pixels fade from tile to tile.

    The network is copied, so that training on is no danger to the predictor and the predictor none to training; the
    decision thresholds are those of `method` at the time of the call.

    Args:
        method: The network and its decoder.
        preprocessing: Channel policy and intensity normalisation that the network was trained with.
        device: Where the network runs; None takes an accelerator if there is one.
        precision: ``auto`` computes in bfloat16 where the device does so fast, else in float32.
        tile: Longest side in pixels of what the network sees at once, rounded down to a multiple of the stride. Of
            volumes the network sees as many voxels at once as twice its square.
        overlap: Pixels that neighbouring tiles share. None takes twice the method's context and 64 pixels more, at
            least 128, but no more than half a tile. For images; of volumes it follows from the method's context.
        tta: Test-time augmentation: a name of `everymask.predict.tta.VIEWS`; True stands for ``dihedral``.
        magnification: Factor by which the image is resized before the network sees it, beside that of the method's
            usual size of images (`Method.magnification_for`); the segments are those of the image itself. Volumes are
            resized along all axes. ``"auto"`` asks the method, if it has ``estimate_magnification(images) -> float``
            for normalised images (1, C, H, W); of large images, several tiles, whose median counts. Beside the result,
            the label map of the resized image is held in memory.
        blend: Whether overlapping tiles fade into one another (see `everymask.predict.blending`) instead of meeting at
            a border; for methods that give each pixel a class. None does so for all methods of semantic segmentation.

    Raises:
        InputError: The device, the precision, the tiling, the augmentation or the magnification do not exist or make no
            sense for this method.
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
        magnification: float | Literal["auto"] = 1.0,
        blend: bool | None = None,
    ) -> None:
        self.views = chosen_views(tta)
        check_views(method, self.views)
        scales = [view.scale for view in self.views]
        if method.dimensions == 3 and overlap is not None:
            raise InputError("the overlap of the tiles of volumes follows from the method; leave out overlap")
        if tile < 2 * method.stride:
            raise InputError(f"tile must be at least {2 * method.stride} pixels for this model, got {tile}")
        # The largest copy is no larger than a tile, the smallest has complete surroundings, too.
        tile = max(2, int(tile / max(scales)) // method.stride) * method.stride
        context = math.ceil(method.context / min(scales))
        if overlap is not None and not 0 <= overlap <= tile // 2:
            raise InputError(f"overlap must be in 0..{tile // 2} (half a tile), got {overlap}; enlarge the tile")
        check_purpose(method, magnification, blend)
        if Task.CLASSIFICATION in method.tasks:
            tile = _WHOLE // method.stride * method.stride  # what an image shows is not to be told from a part of it
        self.method = method
        self.preprocessing = preprocessing
        self.device = choose_device(device)
        self.bfloat16 = use_bfloat16(precision, self.device)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.tile = tile
        self.context = context
        self.overlap = min(max(128, 2 * context + 64), tile // 2) if overlap is None else overlap
        self.magnification = magnification
        self.blend = isinstance(method, SemanticMethod) if blend is None else blend
        self._network = fold_batch_normalisation(copy.deepcopy(method).requires_grad_(False).eval())
        # Convolutions run faster with the channels innermost, on CPUs (measured: 1.3 to 2 times) as on tensor cores.
        self._layout = channels_innermost(method.dimensions)
        self._network.to(device=self.device, memory_format=self._layout)  # type: ignore[call-overload]
        if self.bfloat16:
            keep_weights_in_bfloat16(self._network)
        elif self.device.type == "cpu":
            run_pointwise_in_one_thread(self._network)

    def __call__(self, image: NDArray[Any], limits: ArrayLike | None = None) -> Segments:
        """The segments of an image; their categories are class indices 0..K-1.

        Args:
            image: (H, W) or (H, W, C), for methods of volumes (D, H, W) or (D, H, W, C), any real number type. Any
                object with `shape`, `dtype` and slices that numpy understands will do (`numpy.memmap`, zarr): tiles are
                read one by one.
            limits: (2,), (2, 1) or (2, C): the intensities that become 0 and 1, where they are to be the same for
                several images; default: those of this image.

        Raises:
            InputError: The image has no pixels, other axes, a wrong number of channels, or values that are not finite.
        """
        image = checked_image(image, self.method.dimensions)
        scale = self._limits(image, limits)
        magnified = self._magnified(image, scale)
        segments = self._segments(magnified, scale, self._size(image))
        if segments.size == self._size(image):
            return segments
        segments, lost = restored(segments, self._size(image))
        if lost:
            warnings.warn(
                f"{lost} of {lost + len(segments)} objects are too small to own a pixel of the image, which was "
                "magnified for the network, and are left out",
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
        if len(np.shape(stack)) not in (3, 4):
            raise InputError(f"expected a stack (Z, H, W) or (Z, H, W, C), got an array of shape {np.shape(stack)}")
        return [self(stack[z], limits) for z in range(stack.shape[0])]

    def in_one_piece(self, image: NDArray[Any], limits: ArrayLike | None = None) -> bool:
        """Whether the network sees an image as a whole and not in tiles, which boxes cannot be put together from."""
        image = checked_image(image, self.method.dimensions)
        magnified = self._magnified(image, self._limits(image, limits))
        return len(self._plan(magnified)[1]) == 1

    def outputs(
        self, image: NDArray[Any], limits: ArrayLike | None = None
    ) -> tuple[dict[str, Tensor], tuple[int, ...]]:
        """What the network says of an image, undecoded; to try several thresholds on.

        Args:
            image: As for `__call__`.
            limits: As for `__call__`.

        Returns:
            The outputs (1, ?, H / grid, W / grid) of the padded image, float32 on the CPU, and its (H, W) unpadded:
            just what ``method.decode(outputs, [size])`` takes. Those of large images are put together from tiles;
            logits are then the logarithms of blended probabilities, as they are with augmentation. With a
            magnification, they and the size are those of the resized image.

        Raises:
            InputError: As for `__call__`.
        """
        image = checked_image(image, self.method.dimensions)
        scale = self._limits(image, limits)
        magnified = self._magnified(image, scale)
        size, tiles = self._plan(magnified)
        if len(tiles) == 1:
            outputs = self._outputs_of_tile(magnified, tiles[0], scale, average_views)
            return {name: output.cpu() for name, output in outputs.items()}, size
        grids, strides = self._per_axis(self.method.depth_grid, self.method.grid), self._strides
        sides = [
            -(-length // stride) * stride // grid for length, stride, grid in zip(size, strides, grids, strict=True)
        ]
        joined: dict[str, Tensor] = {}
        for tile, outputs in self._outputs_of_tiles(magnified, tiles, scale):
            here, core = (
                (..., *(slice(each.start // grid, each.stop // grid) for each, grid in zip(window, grids, strict=True)))
                for window in (tile.window, tile.core)
            )
            for name, output in outputs.items():
                if name not in joined:
                    joined[name] = torch.zeros(*output.shape[:2], *sides)
                joined[name][here][core] = output[core].cpu()
        return joined, size

    def _segments(self, image: Pixels, limits: NDArray[np.float32], final: tuple[int, ...]) -> Segments:
        """The segments of an image at the magnification of the network; of some methods already in its final size."""
        size, tiles = self._plan(image)
        if len(tiles) == 1 and size != final and self.views == VIEWS["none"] and hasattr(self.method, "at_scale"):
            # Masks are pasted into the image itself, and not into the resized one.
            outputs = self._outputs_of_tile(image, tiles[0], limits, average_views)
            at_scale: Callable[..., dict[str, Tensor]] = self.method.at_scale  # type: ignore[assignment]
            factors = tuple(wanted / have for wanted, have in zip(final, size, strict=True))
            return self.method.decode(at_scale(outputs, factors), [final])[0]
        if self.method.learns_from == "labels":
            parts = self._outputs_of_tiles(image, tiles, limits)
            found = ((tile, self.method.decode(outputs, [_inside(tile, size)])[0]) for tile, outputs in parts)
        else:
            found = ((tile, self._boxes_of_tile(image, tile, limits, size)) for tile in tiles)
        if len(tiles) == 1:
            return next(found)[1]
        semantic = Task.SEMANTIC in self.method.tasks and Task.INSTANCE not in self.method.tasks
        class_agnostic = isinstance(self.method, BoxMethod) and self.method.class_agnostic
        stuff = getattr(self.method, "stuff", ())
        segments, cut = stitch(found, size, self.method.classes, semantic, class_agnostic, stuff)
        if cut:
            warnings.warn(
                f"{cut} of {len(segments)} objects reach beyond their tile and may be cut off; "
                f"enlarge the tile (now {self.tile} pixels) or the overlap ({self.overlap})",
                stacklevel=3,
            )
        return segments

    def _size(self, image: Pixels) -> tuple[int, ...]:
        """(H, W) of an image, (D, H, W) of a volume."""
        return tuple(int(each) for each in image.shape[: self.method.dimensions])

    def _per_axis(self, depth: int, other: int) -> tuple[int, ...]:
        return (depth, other, other)[-self.method.dimensions :]

    @property
    def _strides(self) -> tuple[int, ...]:
        return self._per_axis(self.method.depth_stride, self.method.stride)

    def _plan(self, image: Pixels) -> tuple[tuple[int, ...], list[Tile]]:
        """Size of an image, and its tiles."""
        size, stride = self._size(image), self.method.stride
        if self.method.dimensions == 3:
            contexts = self._per_axis(self.method.depth_context, self.method.context)
            return size, plan_volume(size, 2 * self.tile**2, self._strides, contexts)
        return size, plan_tiles(size, max(self.tile, -(-self.method.largest // stride) * stride), self.overlap, stride)

    def _limits(self, image: NDArray[Any], given: ArrayLike | None) -> NDArray[np.float32]:
        """The intensity limits (2, 1) or (2, C) of the whole image."""
        if given is not None:
            limits = np.asarray(given, np.float32)
            if limits.shape not in ((2,), (2, 1), (2, self.preprocessing.channels)):
                raise InputError(f"limits must have the shape (2,) or (2, channels), got {limits.shape}")
            return limits.reshape(2, -1)
        return sampled_limits(self.preprocessing, image, self.method.dimensions)

    def _with_channels(self, pixels: NDArray[Any]) -> NDArray[Any]:
        return pixels[..., None] if pixels.ndim == self.method.dimensions else pixels

    def _magnified(self, image: NDArray[Any], limits: NDArray[np.float32]) -> Pixels:
        """The image as the network is to see it; itself where nothing is to be magnified."""
        factor = self._estimated(image, limits) if self.magnification == "auto" else self.magnification
        height, width = self._size(image)[-2:]
        factor *= self.method.magnification_for(height, width)
        return image if factor == 1 else MagnifiedImage(image, [factor] * self.method.dimensions, self.method.antialias)

    def _estimated(self, image: NDArray[Any], limits: NDArray[np.float32]) -> float:
        """What the method says of the magnification: the median over several tiles."""
        estimate: Callable[[Tensor], float] = self._network.estimate_magnification  # type: ignore[assignment]
        _, tiles = self._plan(image)
        chosen = np.unique(np.linspace(0, len(tiles) - 1, _ESTIMATES).round().astype(int))
        with torch.inference_mode():
            return check_magnification(
                float(np.median([float(estimate(self._batch(image, tiles[i], limits))) for i in chosen]))
            )

    def _boxes_of_tile(self, image: Pixels, tile: Tile, limits: NDArray[np.float32], size: tuple[int, ...]) -> Segments:
        """What a method that finds boxes finds in a tile, or in copies of it."""
        inside = _inside(tile, size)
        if self.views == VIEWS["none"]:
            return self.method.decode(self._outputs_of_tile(image, tile, limits, average_views), [inside])[0]
        batch = self._batch(image, tile, limits)
        with self._explained_memory(batch):
            return segments_of_views(self.method, self._forward, batch, self.views, (inside[0], inside[1]))

    def _outputs_of_tiles(
        self, image: Pixels, tiles: list[Tile], limits: NDArray[np.float32]
    ) -> Iterator[tuple[Tile, dict[str, Tensor]]]:
        """Tiles, or the blocks that blended tiles leave, and their outputs in the form that the method decodes."""
        if len(tiles) == 1 or not self.blend:
            for tile in tiles:
                yield tile, self._outputs_of_tile(image, tile, limits, average_views)
            return
        parts = ((tile, self._outputs_of_tile(image, tile, limits, mean_of_views)) for tile in tiles)
        for block, means in blend(parts, tiles, self.context, self.method.grid):
            outputs = from_average(self.method, means)
            means.clear()
            yield block, outputs
            outputs.clear()  # whoever still holds it: the memory is for the next tile

    def _outputs_of_tile(
        self, image: Pixels, tile: Tile, limits: NDArray[np.float32], average: Callable[..., dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """The outputs of a tile, averaged over the views, float32, on the device."""
        batch = self._batch(image, tile, limits)
        with self._explained_memory(batch):
            return average(self.method, self._forward, batch, self.views)

    @contextlib.contextmanager
    def _explained_memory(self, batch: Tensor) -> Iterator[None]:
        """Turns running out of memory into advice.

        Raises:
            InputError: Instead.
        """
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            on_accelerator = "" if self.device.type == "cpu" else " or take the device cpu"
            sides = " x ".join(str(each) for each in batch.shape[2:])
            raise InputError(
                f"out of memory on {self.device} with tiles of {sides} pixels; lower tile, now "
                f"{self.tile}{on_accelerator}"
            ) from error

    def _batch(self, image: Pixels, tile: Tile, limits: NDArray[np.float32]) -> Tensor:
        """The network's input (1, C, h, w) or (1, C, d, h, w) for a tile, on the device."""
        pixels = self._with_channels(np.asarray(image[tile.window]))
        batch = torch.from_numpy(self.preprocessing(pixels, limits))[None]
        missing = [span.stop - span.start - length for span, length in zip(tile.spans, batch.shape[2:], strict=True)]
        behind = missing[0] if len(missing) == 3 else 0
        if self.method.padding is None:
            batch = pad_reflected(batch, bottom=missing[-2], right=missing[-1], behind=behind)
        else:
            batch = pad_constant(batch, missing[-2], missing[-1], self.method.padding)
        return batch.to(self.device, memory_format=self._layout)

    def _forward(self, batch: Tensor) -> dict[str, Tensor]:
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            outputs = self._network(batch)
        return {name: output.float() for name, output in outputs.items()}


def _inside(tile: Tile, size: tuple[int, ...]) -> tuple[int, ...]:
    """The size of a tile without the padding of the image, which belongs to its last tiles."""
    return tuple(min(span.stop, length) - span.start for span, length in zip(tile.spans, size, strict=True))
