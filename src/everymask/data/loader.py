"""From a data set to batches of training crops, reproducibly and without reading files over and over."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from everymask.data.augment import Augmentation, Placement
from everymask.data.sampling import Draw
from everymask.data.store import Decoded, Store, named
from everymask.errors import InputError
from everymask.types import LabelMap, Segments

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Crops(TorchDataset[tuple[Tensor, dict[str, Tensor]]]):
    """Training crops with their targets.

    An image whose segments are tags is learnt as a whole: a window of it (`Augmentation.draw_window`; all of it in
    validation) is brought to the size of the crop.

    Args:
        store: Decoded samples.
        targets: `Method.targets`; gets segments whose categories are class indices. It runs in forked processes, where
            compiled kernels must not start threads.
        crop: Side of the crop in pixels.
        augmentation: Random changes; None for the unchanged crop from the middle of the image (validation).
        foreground: Share of the crops that are placed on a random object; that of a draw's own class comes beside it.
        by_class: Draw the class of such an object first.
        seed: With the position of a draw it fixes every random choice, whatever the number of loader processes.
    """

    def __init__(
        self,
        store: Store,
        targets: Callable[[Segments], dict[str, Tensor]],
        *,
        crop: int,
        augmentation: Augmentation | None = None,
        foreground: float = 0.0,
        by_class: bool = False,
        seed: int = 0,
    ) -> None:
        self.store, self.targets = store, targets
        self.crop, self.augmentation, self.seed = crop, augmentation, seed
        self.foreground, self.by_class = foreground, by_class
        full = store.preprocessing
        # Intensities are changed between 0 and 1; the mean and deviation of a backbone's training data come after.
        self._to_unit = replace(full, mean=(0.0,), std=(1.0,))
        self._mean = np.asarray(full.mean, np.float32).reshape(-1, 1, 1)
        self._std = np.asarray(full.std, np.float32).reshape(-1, 1, 1)

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: Draw) -> tuple[Tensor, dict[str, Tensor]]:
        image, segments = self.cut(index)
        try:
            return torch.from_numpy(image), self.targets(segments)
        except InputError as error:
            raise named(self.store.data[index.index], error) from error

    def cut(self, draw: Draw) -> tuple[NDArray[np.float32], Segments]:
        """The network's input (C, crop, crop) and the segments of one crop."""
        decoded = self.store[draw.index]
        rng = np.random.default_rng((self.seed, draw.position))
        image, segments = self._whole(decoded, rng) if decoded.tagged else self._part(decoded, draw.category, rng)
        if self.augmentation is not None:
            image = self.augmentation.change_intensities(image, rng)
        image = (image - self._mean) / self._std
        return np.ascontiguousarray(image, np.float32), segments

    def _part(self, decoded: Decoded, category: int, rng: np.random.Generator) -> tuple[NDArray[np.float32], Segments]:
        """A square of the image with the segments that have pixels in it; intensities between 0 and 1."""
        size = (decoded.ids.shape[0], decoded.ids.shape[1])
        if self.augmentation is None:
            placement, centre = Placement(), (np.array(size) - 1) / 2
        else:
            placement = self.augmentation.draw_placement(rng)
            target = None
            if category >= 0:
                target = decoded.random_pixel(rng, category)
            elif rng.random() < self.foreground:
                target = decoded.random_pixel(rng, by_class=self.by_class)
            centre = placement.random_centre(self.crop, size, rng, target)
        image, ids = placement.cut(
            decoded.image, decoded.ids, centre, self.crop, lambda window: self._to_unit(window, decoded.limits)
        )
        return image, _present(ids, decoded)

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


Batch = tuple[Tensor, dict[str, Tensor]]


def collate(items: Sequence[tuple[Tensor, Mapping[str, Tensor]]]) -> Batch:
    """Images (B, C, H, W) and targets (B, ...) of the items of a batch."""
    images = torch.stack([image for image, _ in items])
    names = items[0][1].keys()
    return images, {name: torch.stack([targets[name] for _, targets in items]) for name in names}


def batches(
    crops: Crops, stream: Sampler[list[Draw]], *, workers: int, pin_memory: bool = False
) -> Generator[Batch, None, None]:
    """The batches of `stream`, made ahead of need by `workers` processes; 0 makes them in this process.

    Raises:
        InputError: What `decode` raises, or a process was killed.
    """
    loader: DataLoader[Any] = DataLoader(
        crops,
        batch_sampler=stream,
        collate_fn=collate,
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
