"""From a data set to batches of training crops, reproducibly and without reading files over and over."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from everymask.data.augment import Augmentation, Placement
from everymask.data.objects import Crop, copy_paste, crop_boxes, crop_masks, mixup, mosaic
from everymask.data.sampling import Draw
from everymask.data.store import Decoded, Store, named
from everymask.data.volumes import cut_volume, random_depth
from everymask.errors import InputError
from everymask.types import LabelMap, Segments

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Mixing:
    """How often crops are made of several others.

    Args:
        mosaic: Share of the crops made of four (Bochkovskiy et al. 2020).
        mixup: Share of the crops that another one is averaged with (Zhang et al. 2018).
        copy_paste: Share of the crops that objects of another one are laid on (Ghiasi et al. 2021).
        until: Position in the stream of crops from which on they are left as they are.
    """

    mosaic: float = 0.0
    mixup: float = 0.0
    copy_paste: float = 0.0
    until: int = 0


class Crops(TorchDataset[tuple[Tensor, dict[str, Tensor]]]):
    """Training crops with their targets.

    An image whose segments are tags is learnt as a whole: a window of it (`Augmentation.draw_window`; all of it in
    validation) is brought to the size of the crop.

    Args:
        store: Decoded samples.
        targets: `Method.targets`; gets segments whose categories are class indices. It runs in forked processes, where
            compiled kernels must not start threads.
        of_image: `Method.of_image`; gets the network's input. None for no such targets.
        crop: Side of the crop in pixels.
        planes: Planes of the crop of volumes; None for images.
        augmentation: Random changes; None for the unchanged crop from the middle of the image (validation).
        foreground: Share of the crops that are placed on a random object; that of a draw's own class comes beside it.
        by_class: Draw the class of such an object first.
        magnify: Of methods with a usual size of images, the factor for an image of height and width; crops of it are
            magnified by it.
        fill: Of methods that learn from boxes or masks, the value of the network's input beyond the image.
        mixing: Which crops are made of several others; for methods that learn from boxes or masks.
        seed: With the position of a draw it fixes every random choice, whatever the number of loader processes.
    """

    def __init__(
        self,
        store: Store,
        targets: Callable[[Segments], dict[str, Tensor]],
        *,
        of_image: Callable[[Tensor], dict[str, Tensor]] | None = None,
        crop: int,
        planes: int | None = None,
        augmentation: Augmentation | None = None,
        foreground: float = 0.0,
        by_class: bool = False,
        magnify: Callable[[int, int], float] | None = None,
        fill: float = 0.0,
        mixing: Mixing | None = None,
        seed: int = 0,
    ) -> None:
        self.store, self.targets, self.of_image = store, targets, of_image
        self.crop, self.planes, self.augmentation, self.seed = crop, planes, augmentation, seed
        self.foreground, self.by_class = foreground, by_class
        self.magnify, self.fill, self.mixing = magnify, fill, mixing
        full = store.preprocessing
        # Intensities are changed between 0 and 1; the mean and deviation of a backbone's training data come after.
        self._to_unit = replace(full, mean=(0.0,), std=(1.0,))
        axes = [1] * (2 if planes is None else 3)
        self._mean = np.asarray(full.mean, np.float32).reshape(-1, *axes)
        self._std = np.asarray(full.std, np.float32).reshape(-1, *axes)

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: Draw) -> tuple[Tensor, dict[str, Tensor]]:
        array, segments = self.cut(index)
        image = torch.from_numpy(array)
        try:
            targets = self.targets(segments)
            return image, targets if self.of_image is None else targets | self.of_image(image)
        except InputError as error:
            raise named(self.store.data[index.index], error) from error

    def cut(self, draw: Draw) -> tuple[NDArray[np.float32], Segments]:
        """The network's input (C, crop, crop), of volumes (C, planes, crop, crop), and the segments of one crop."""
        decoded = self.store[draw.index]
        rng = np.random.default_rng((self.seed, draw.position))
        if self.store.learns_from != "labels":
            image, objects = self._mixed(draw, rng)
            return image, objects.segments((self.crop, self.crop))
        image, segments = self._whole(decoded, rng) if decoded.tagged else self._part(decoded, draw.category, rng)
        if self.augmentation is not None:
            image = self.augmentation.change_intensities(image, rng)
        image = (image - self._mean) / self._std
        return np.ascontiguousarray(image, np.float32), segments

    def _part(self, decoded: Decoded, category: int, rng: np.random.Generator) -> tuple[NDArray[np.float32], Segments]:
        """A part of the image with the segments that have pixels in it; intensities between 0 and 1."""
        size, volume = decoded.ids.shape, self.planes is not None
        placement = Placement()
        centre = (np.array(size) - 1) / 2
        if self.augmentation is not None:
            placement = self.augmentation.draw_placement(rng, volume)
            target = self._target(decoded, category, rng)
            inside = None if target is None else target[-2:]
            centre[-2:] = placement.random_centre(self.crop, (size[-2], size[-1]), rng, inside)
            if self.planes is not None:
                depth = None if target is None else float(target[0])
                centre[0] = random_depth(self.planes, placement.scale, size[0], rng, depth)

        def prepare(window: NDArray[Any]) -> NDArray[np.float32]:
            return self._to_unit(window, decoded.limits)

        if self.planes is None:
            image, ids = placement.cut(decoded.image, decoded.ids, centre, self.crop, prepare)
        else:
            image, ids = cut_volume(placement, decoded.image, decoded.ids, centre, (self.planes, self.crop), prepare)
        return image, _present(ids, decoded)

    def _target(self, decoded: Decoded, category: int, rng: np.random.Generator) -> NDArray[np.float64] | None:
        """A pixel that the crop is to hold, if it is to hold one."""
        if category >= 0:
            return decoded.random_pixel(rng, category)
        if rng.random() < self.foreground:
            return decoded.random_pixel(rng, by_class=self.by_class)
        return None

    def _mixed(self, draw: Draw, rng: np.random.Generator) -> Crop:
        """The network's input and the objects of a crop, which may be made of several others."""
        mixing = self.mixing if self.augmentation is not None else None
        if mixing is None or draw.position >= mixing.until:
            return self._objects(draw.index, draw.category, rng)

        def other() -> Crop:
            return self._objects(int(rng.integers(len(self.store))), -1, rng)

        found = self._objects(draw.index, draw.category, rng)
        if rng.random() < mixing.mosaic:
            low, high = self.crop // 4, self.crop - self.crop // 4
            corner = (int(rng.integers(low, high + 1)), int(rng.integers(low, high + 1)))
            found = mosaic([found, other(), other(), other()], corner)
        if rng.random() < mixing.mixup:
            found = mixup(found, other())
        if rng.random() < mixing.copy_paste:
            found = copy_paste(found, other(), rng)
        return found

    def _objects(self, index: int, category: int, rng: np.random.Generator) -> Crop:
        """A square of the image with its boxes or masks; beyond the image lies the fill and no mirrored object."""
        decoded = self.store[index]
        height, width = decoded.image.shape[:2]
        factor = 1.0 if self.magnify is None else self.magnify(height, width)
        placement = Placement(scale=factor)
        centre = (np.array([height, width]) - 1) / 2
        if self.augmentation is not None:
            placement = self.augmentation.draw_placement(rng)
            placement = replace(placement, scale=factor * placement.scale)
            target = self._target(decoded, category, rng)
            centre = placement.random_centre(self.crop, (height, width), rng, target)
        frames = decoded.frames
        if frames is None:
            raise ValueError("the store was not made for boxes or masks")
        # Without masks nothing is looked up in a label map.
        layers = decoded.ids if decoded.ids.size else np.broadcast_to(np.zeros((), np.int8), (height, width))
        image, ids = placement.cut(
            decoded.image, layers, centre, self.crop, lambda window: self._to_unit(window, decoded.limits)
        )
        if self.augmentation is not None:
            image = self.augmentation.change_intensities(image, rng)
        image = (image - self._mean) / self._std
        image[:, placement.outside((height, width), centre, self.crop)] = self.fill
        if decoded.areas is None:
            objects = crop_boxes(placement, frames, centre, self.crop, decoded.category, decoded.crowd)
        else:
            objects = crop_masks(ids, decoded.areas * placement.scale**2, decoded.category, decoded.crowd)
        return np.ascontiguousarray(image, np.float32), objects

    def _whole(self, decoded: Decoded, rng: np.random.Generator) -> tuple[NDArray[np.float32], Segments]:
        """A window of the image, whatever its proportions, in the size of the crop, with the tags of the image."""
        crop, placement = self.crop, Placement()
        window = decoded.image
        if self.augmentation is not None:
            window = window[self.augmentation.draw_window((window.shape[0], window.shape[1]), rng)]
            placement = replace(self.augmentation.draw_placement(rng), scale=1.0)
        pixels = torch.from_numpy(self._to_unit(window, decoded.limits))[None]
        if pixels.shape[-2:] != (crop, crop):
            pixels = functional.interpolate(pixels, size=(crop, crop), mode="bilinear", antialias=True)
        resized = pixels[0].permute(1, 2, 0).numpy()
        centre = np.full(2, (crop - 1) / 2)
        # The window is turned and mirrored like any crop; its labels do not matter.
        image, _ = placement.cut(
            resized, np.zeros((crop, crop), np.int32), centre, crop, lambda part: part.transpose(2, 0, 1)
        )
        return image, Segments((crop, crop), decoded.category, crowd=decoded.crowd)


def _present(ids: NDArray[np.int32], decoded: Decoded) -> Segments:
    """The segments that still have pixels in the crop `ids`."""
    counts = np.bincount(ids.ravel() + 1, minlength=len(decoded.category) + 2)[2:]
    kept = np.flatnonzero(counts)
    table = np.zeros(len(counts) + 2, np.int32)
    table[0] = -1
    table[kept + 2] = np.arange(1, len(kept) + 1)
    return Segments(ids.shape, decoded.category[kept], LabelMap(table[ids + 1]), crowd=decoded.crowd[kept])


Batch = tuple[Tensor, dict[str, Any]]
"""Images (B, C, H, W) and targets: tensors (B, ...), and lists of B tensors of different lengths."""


def collate(items: Sequence[tuple[Tensor, Mapping[str, Tensor]]], ragged: frozenset[str] = frozenset()) -> Batch:
    """Images (B, C, H, W) and targets (B, ...) of the items of a batch; `ragged` ones stay lists of tensors."""
    images = torch.stack([image for image, _ in items])
    names = items[0][1].keys()
    listed = {name: [targets[name] for _, targets in items] for name in names}
    return images, {name: each if name in ragged else torch.stack(each) for name, each in listed.items()}


def to_device(targets: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """The targets of a batch on a device."""
    return {
        name: [one.to(device, non_blocking=True) for one in value]
        if isinstance(value, list)
        else value.to(device, non_blocking=True)
        for name, value in targets.items()
    }


def batches(
    crops: Crops,
    stream: Sampler[list[Draw]],
    *,
    workers: int,
    pin_memory: bool = False,
    ragged: frozenset[str] = frozenset(),
) -> Generator[Batch, None, None]:
    """The batches of `stream`, made ahead of need by `workers` processes; 0 makes them in this process.

    Raises:
        InputError: What `decode` raises, or a process was killed.
    """
    loader: DataLoader[Any] = DataLoader(
        crops,
        batch_sampler=stream,
        collate_fn=partial(collate, ragged=ragged),
        num_workers=workers,
        pin_memory=pin_memory,
        multiprocessing_context=multiprocessing.get_context("fork") if workers else None,
        worker_init_fn=_prepare_worker if workers else None,
        prefetch_factor=4 if workers else None,
    )
    try:
        yield from loader
    except InputError as error:
        # torch puts the traceback of the worker in front of the message.
        raise InputError(str(error).rstrip().rpartition("InputError: ")[2]) from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        reason = " ".join(str(error).split())
        raise InputError(f"a loader process died ({reason}); if memory ran out, lower workers (0 at least)") from error


def default_workers(processes: int = 1) -> int:
    """Loader processes for each of `processes` training processes on this machine.

    They are forked, so that data sets need not be picklable and memory is shared; where forking is not safe (macOS and
    Windows) batches are made in the training process.
    """
    if os.name != "posix" or os.uname().sysname != "Linux":
        return 0
    cores = len(os.sched_getaffinity(0))
    return max(0, min(8, cores // processes - 1))


def _prepare_worker(worker: int) -> None:
    """One thread; Ctrl-C is left to the training process, which ends its loader processes itself, by SIGTERM."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
