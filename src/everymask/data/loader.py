"""From a data set to batches of training crops, reproducibly and without reading files over and over."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from everymask.data.augment import Augmentation, Placement
from everymask.data.preprocessing import Preprocessing
from everymask.errors import InputError
from everymask.types import Categories, Dataset, LabelMap, Sample, Segments

if TYPE_CHECKING:
    from numpy.typing import NDArray

CACHE_BYTES = 1_000_000_000
"""Decoded images and label maps that are kept in memory, for all processes of a machine together."""


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """A sample as it is kept in memory.

    Args:
        image: (H, W, C) in the file's own number type.
        limits: From `Preprocessing.limits`, of the whole image.
        ids: (H, W) labels in the smallest fitting integer type; (0, 0) where the segments are tags of the image.
        category: (N,) class indices.
        crowd: (N,) bool.
        boxes: (M, 5) int32: label, y0, x0, y1, x1 of the segments that have pixels; ends exclusive.
    """

    image: NDArray[Any]
    limits: NDArray[np.float32]
    ids: NDArray[Any]
    category: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    boxes: NDArray[np.int32]

    @property
    def tagged(self) -> bool:
        """Whether the segments are tags of the whole image, without a place in it."""
        return self.ids.size == 0

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        return self.image.nbytes + self.ids.nbytes + self.boxes.nbytes

    def random_pixel(self, rng: np.random.Generator) -> NDArray[np.float64] | None:
        """A random pixel (y, x) of a random segment, whatever the segments' areas; None if there is no segment."""
        if not len(self.boxes):
            return None
        label, top, left, bottom, right = (int(each) for each in self.boxes[rng.integers(len(self.boxes))])
        inside = np.flatnonzero(self.ids[top:bottom, left:right] == label)
        row, column = divmod(int(inside[rng.integers(len(inside))]), right - left)
        return np.array([top + row, left + column], np.float64)


def decode(sample: Sample, preprocessing: Preprocessing, categories: Categories) -> Decoded:
    """Reads a sample and checks it.

    Raises:
        InputError: The image is unreadable, not finite or a volume; the annotation is missing, has boxes only, another
            size than the image, or a category that `categories` lacks. The message names the sample.
    """
    from scipy import ndimage

    try:
        segments = sample.segments
        image = preprocessing.match_channels(sample.image)
        if segments is None:
            raise InputError("has no annotation; remove the image from the training data or annotate it")
        if segments.size != image.shape[:2]:
            raise InputError(
                f"the image has {_by(image.shape[:2])} pixels (height x width), but its annotation "
                f"{_by(segments.size)}; they must be equal"
            )
        if np.issubdtype(image.dtype, np.floating) and not np.isfinite(image).all():
            raise InputError("the image holds NaN or infinite values; replace them by numbers")
        tags = segments.geometry is None and not segments.has_boxes
        ids = np.zeros((0, 0), np.int32) if tags else segments.label_map("last")
        category = _indices(segments, categories)
    except InputError as error:
        raise _named(sample, error) from error
    found = ndimage.find_objects(np.maximum(ids, 0), max_label=len(segments))
    boxes = [
        (number, place[0].start, place[1].start, place[0].stop, place[1].stop)
        for number, place in enumerate(found, 1)
        if place is not None
    ]
    return Decoded(
        image,
        preprocessing.limits(image),
        ids.astype(np.int16) if len(segments) < np.iinfo(np.int16).max else ids,
        category,
        segments.crowd,
        np.array(boxes, np.int32).reshape(-1, 5),
    )


def _indices(segments: Segments, categories: Categories) -> NDArray[np.int64]:
    try:
        return categories.indices(segments.category)
    except InputError as error:
        raise InputError(
            f"{error} ({', '.join(categories.names[:8])}); train on data that have all classes, or mark the pixels of "
            "others as void"
        ) from error


def _named(sample: Sample, error: InputError) -> InputError:
    """The error with the file that it is about."""
    place, text = str(sample.path or sample.name), str(error)
    return error if place in text else InputError(f"{place}: {text}")


def _by(size: Sequence[int]) -> str:
    return " x ".join(str(each) for each in size)


Visits = Literal["once", "side", "area"]


class Store:
    """Decoded samples, the most recently used ones kept in memory.

    Args:
        data: The samples.
        preprocessing: Decides on channels and limits.
        categories: The model's categories.
        budget: Bytes to keep at most.
    """

    def __init__(self, data: Dataset, preprocessing: Preprocessing, categories: Categories, budget: int) -> None:
        self.data, self.preprocessing, self.categories, self.budget = data, preprocessing, categories, budget
        self._kept: OrderedDict[int, Decoded] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Decoded:
        if index in self._kept:
            self._kept.move_to_end(index)
            return self._kept[index]
        decoded = decode(self.data[index], self.preprocessing, self.categories)
        self._kept[index] = decoded
        self._bytes += decoded.bytes
        while self._bytes > self.budget and self._kept:
            self._bytes -= self._kept.popitem(last=False)[1].bytes
        return decoded

    def visits(self, rule: Visits, crop: int) -> list[int]:
        """How often an epoch visits each sample; every rule but ``once`` reads all samples to learn their sizes.

        Args:
            rule: ``once``; ``side``: as many times as crops fit along the geometric mean of the image's sides;
                ``area``: as many as fit into the image. At least once.
            crop: Side of the crop.
        """
        if rule == "once":
            return [1] * len(self)
        sides = [math.sqrt(math.prod(self[index].image.shape[:2])) / crop for index in range(len(self))]
        return [max(1, round(side if rule == "side" else side**2)) for side in sides]

    def fill(self, progress: Callable[[int, int], None] | None = None) -> bool:
        """Reads all samples if they fit the budget, judged by a few of them; returns whether they are all in memory.

        Done before loader processes are started, which then share the memory, and so that a damaged file is found at
        once and not after hours.
        """
        count = len(self)
        probes = sorted({round(each) for each in np.linspace(0, count - 1, min(8, count))})
        typical = sum(self[index].bytes for index in probes) / len(probes)
        if typical * count > 0.9 * self.budget:
            return False
        for index in range(count):
            _ = self[index]
            if progress is not None:
                progress(index + 1, count)
        return len(self._kept) == count


class Draw(NamedTuple):
    """One crop of the endless stream of training crops.

    Args:
        index: Number of the sample.
        position: Position in the stream over all processes; with the seed it fixes every random choice.
    """

    index: int
    position: int


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
        foreground: Share of the crops that are placed on a random object.
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
        seed: int = 0,
    ) -> None:
        self.store, self.targets = store, targets
        self.crop, self.augmentation, self.foreground, self.seed = crop, augmentation, foreground, seed
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
            raise _named(self.store.data[index.index], error) from error

    def cut(self, draw: Draw) -> tuple[NDArray[np.float32], Segments]:
        """The network's input (C, crop, crop) and the segments of one crop."""
        decoded = self.store[draw.index]
        rng = np.random.default_rng((self.seed, draw.position))
        image, segments = self._whole(decoded, rng) if decoded.tagged else self._part(decoded, rng)
        if self.augmentation is not None:
            image = self.augmentation.change_intensities(image, rng)
        image = (image - self._mean) / self._std
        return np.ascontiguousarray(image, np.float32), segments

    def _part(self, decoded: Decoded, rng: np.random.Generator) -> tuple[NDArray[np.float32], Segments]:
        """A square of the image with the segments that have pixels in it; intensities between 0 and 1."""
        size = (decoded.ids.shape[0], decoded.ids.shape[1])
        if self.augmentation is None:
            placement, centre = Placement(), (np.array(size) - 1) / 2
        else:
            placement = self.augmentation.draw_placement(rng)
            target = decoded.random_pixel(rng) if rng.random() < self.foreground else None
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


class CropStream(Sampler[list[Draw]]):
    """The batches of a whole training run, as one stream that can be entered anywhere.

    Every pass over the data is a new permutation; a batch may span two passes, so all batches have the same size.
    Batch k of all processes together holds the positions from ``k * batch_size * processes`` on, in the order of the
    processes: two processes with batches of 4 learn from the same crops as one with batches of 8.

    Args:
        length: Number of samples.
        batch_size: Crops of a batch of this process.
        batches: Batches of the run.
        visits: How often each sample occurs in a pass, (length,); default: once.
        start: First batch; above 0 when a run is resumed.
        seed: Of the permutations.
        process: Number of this process.
        processes: Number of processes.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        batches: int,
        visits: Sequence[int] | None = None,
        start: int = 0,
        seed: int = 0,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        self.samples = np.repeat(np.arange(length), 1 if visits is None else visits)
        self.batch_size, self.batches, self.start = batch_size, batches, start
        self.seed, self.process, self.processes = seed, process, processes

    def __len__(self) -> int:
        return max(0, self.batches - self.start)

    def __iter__(self) -> Iterator[list[Draw]]:
        current, order = -1, np.zeros(0, np.int64)
        for batch in range(self.start, self.batches):
            first = (batch * self.processes + self.process) * self.batch_size
            draws = []
            for position in range(first, first + self.batch_size):
                turn, place = divmod(position, len(self.samples))
                if turn != current:
                    # The third number keeps this stream of random numbers apart from that of the crops.
                    current = turn
                    order = np.random.default_rng((self.seed, turn, 1)).permutation(self.samples)
                draws.append(Draw(int(order[place]), position))
            yield draws


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
