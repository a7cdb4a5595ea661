"""What is in a data set: counts by category and part, sizes, areas, and the findings of the doctor."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from everymask.errors import InputError
from everymask.report.doctor import Doctor
from everymask.types import LabelMap, Segments

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from everymask.types import Categories, Dataset, Sample

_AHEAD = 8
"""Images that are decoded before they are needed."""


def inspect_dataset(
    data: Dataset, progress: Callable[[int, int], None] | None = None, *, images: bool = True
) -> dict[str, Any]:
    """Counts and findings of a data set, as JSON values. Reads images and annotations a few at a time.

    Args:
        data: The data set.
        progress: Called with (images done, images in all).
        images: Read the images, too; without, only annotations are looked at.

    Returns:
        ``format``, ``images``, ``annotated``, ``tasks``; ``splits`` (part -> images); ``categories``, each with ``id``,
        ``name``, ``objects``, ``images``, ``splits`` (part -> objects) and in pixels ``median_area``,
        ``smallest_area``, ``largest_area``; ``sizes``, ``types`` and ``channels`` (value -> number of images);
        ``areas`` (power of two in pixels -> objects); ``objects_in_an_image`` (text: smallest, median, largest);
        ``void`` (share of the pixels) and ``findings``, see `everymask.report.doctor.Finding`.
    """
    doctor = Doctor(data)
    sizes: Counter[str] = Counter()
    types: Counter[str] = Counter()
    channels: Counter[str] = Counter()
    splits: Counter[str] = Counter()
    tally = _Tally(data.categories)
    for number, (sample, image) in enumerate(_read(data, images), 1):
        split = str(sample.extra.get("split", ""))
        splits[split] += 1
        if isinstance(image, InputError):
            missing = sample.path is not None and not sample.path.exists()
            doctor.note("missing" if missing else "unreadable", sample.name, "" if missing else str(image))
        elif image is not None:
            sizes["x".join(map(str, image.shape[:-1]))] += 1
            types[image.dtype.name] += 1
            channels[str(image.shape[-1])] += 1
            doctor.image(sample, image)
        try:
            segments = sample.segments
        except InputError as error:
            doctor.note("unreadable", sample.name, str(error))
        else:
            if segments is None:
                doctor.note("no annotation", sample.name)
            else:
                if not images:
                    sizes["x".join(map(str, segments.size))] += 1
                tally.add(segments, split)
                size = None if image is None or isinstance(image, InputError) else image.shape[:-1]
                doctor.segments(sample, segments, size)
        if progress is not None:
            progress(number, len(data))
    return {
        "format": data.format,
        "images": len(data),
        "annotated": len(tally.counts),
        "tasks": sorted(data.tasks),
        "splits": dict(splits) if set(splits) - {""} else {},
        "categories": tally.categories(),
        "sizes": dict(sizes),
        "types": dict(types),
        "channels": dict(channels),
        "areas": tally.histogram(),
        "objects_in_an_image": _spread(tally.counts),
        "void": tally.void / tally.pixels if tally.pixels else 0.0,
        "findings": [each.to_json() | {"message": str(each)} for each in doctor.findings()],
    }


class _Tally:
    """Objects by category and part, and their areas."""

    def __init__(self, categories: Categories) -> None:
        self._categories = categories
        self._areas: dict[int, list[NDArray[np.int64]]] = {each.id: [] for each in categories}
        self._objects: dict[int, Counter[str]] = {each.id: Counter() for each in categories}
        self._images: Counter[int] = Counter()
        self.counts: list[int] = []
        self.void = self.pixels = 0

    def add(self, segments: Segments, split: str) -> None:
        self.counts.append(len(segments))
        if isinstance(segments.geometry, LabelMap):
            self.void += int(np.count_nonzero(segments.geometry.ids < 0))
            self.pixels += segments.geometry.ids.size
        area = segments.areas() if segments.has_boxes else None
        for identifier, count in zip(*np.unique(segments.category, return_counts=True), strict=True):
            key = int(identifier)
            self._objects.setdefault(key, Counter())[split] += int(count)
            self._images[key] += 1
            if area is not None:
                self._areas.setdefault(key, []).append(area[segments.category == identifier])

    def categories(self) -> list[dict[str, Any]]:
        made = []
        for each in self._categories:
            joined = np.concatenate([np.zeros(0, np.int64), *self._areas[each.id]])
            figures = [float(function(joined)) if len(joined) else 0.0 for function in (np.median, np.min, np.max)]
            by_split = self._objects[each.id]
            made.append(
                {
                    "id": each.id,
                    "name": each.name,
                    "objects": sum(by_split.values()),
                    "images": self._images[each.id],
                    "splits": {name: count for name, count in by_split.items() if name},
                    "median_area": round(figures[0]),
                    "smallest_area": round(figures[1]),
                    "largest_area": round(figures[2]),
                }
            )
        return made

    def histogram(self) -> dict[str, int]:
        """Objects by area: the key is the lower end of a range that reaches to its double."""
        areas = np.concatenate([np.zeros(0, np.int64), *(each for list_ in self._areas.values() for each in list_)])
        powers = Counter(np.floor(np.log2(areas[areas > 0])).astype(int).tolist())
        if not powers:
            return {}
        return {str(2**power): powers[power] for power in range(min(powers), max(powers) + 1)}


def _read(data: Dataset, images: bool) -> Iterator[tuple[Sample, NDArray[Any] | InputError | None]]:
    """The samples with their images, decoded in threads a few ahead; the error where one cannot be read."""
    samples = iter(data)
    if not images:
        yield from ((sample, None) for sample in samples)
        return

    def read(sample: Sample) -> NDArray[Any] | InputError:
        try:
            return sample.read_image()
        except InputError as error:
            return error

    with ThreadPoolExecutor() as pool:
        waiting: list[tuple[Sample, Future[NDArray[Any] | InputError]]] = [
            (sample, pool.submit(read, sample)) for sample in islice(samples, _AHEAD)
        ]
        while waiting:
            sample, image = waiting.pop(0)
            waiting += [(each, pool.submit(read, each)) for each in islice(samples, 1)]
            yield sample, image.result()


def sheet(data: Dataset, *, most: int = 12, tile: int = 360) -> NDArray[np.uint8]:
    """Overlays of a few images spread over the data set, in one picture (H, W, 3).

    Args:
        data: The data set.
        most: Number of images.
        tile: Side of each in pixels.

    Raises:
        InputError: No image can be read.
    """
    from everymask.report.overlay import draw_overlay, suggested_magnification
    from everymask.report.picture import contact_sheet, displayed

    pictures: list[NDArray[np.uint8]] = []
    titles: list[str] = []
    chosen = np.unique(np.linspace(0, len(data) - 1, min(most, len(data))).astype(int))
    for sample in data.subset(chosen.tolist()):
        try:
            image, segments = sample.image, sample.segments
        except InputError:
            continue  # a finding says so
        if image.ndim == 4:  # the middle of a volume
            middle = image.shape[0] // 2
            image, segments = image[middle], None if segments is None else segments.plane(middle)
        if segments is None or segments.size != image.shape[:2]:
            pictures.append(displayed(image))
        else:
            magnify = suggested_magnification(segments.size, tile)
            pictures.append(draw_overlay(image, segments, categories=data.categories, magnify=magnify))
        named = {data.categories.by_id(int(each)).name for each in segments.category} if segments is not None else set()
        text = f": {', '.join(sorted(named))}" if segments is not None and not segments.has_boxes else ""
        titles.append(sample.name + text)
    if not pictures:
        raise InputError(f"{data.root}: no image can be read, so there is nothing to show")
    return contact_sheet(pictures, titles, tile=tile)


def bars(counts: dict[str, int], width: int = 40) -> list[tuple[str, int, str]]:
    """Rows of a histogram: the label, the count, and a bar of text.

    Args:
        counts: Label -> count.
        width: Characters of the longest bar.
    """
    most = max(counts.values(), default=0)
    eighths = " ▏▎▍▌▋▊▉"
    made: list[tuple[str, int, str]] = []
    for label, count in counts.items():
        length = math.ceil(8 * width * count / most) if most else 0
        made.append((label, count, ("█" * (length // 8) + eighths[length % 8]).strip()))
    return made


def _spread(counts: list[int]) -> str:
    if not counts:
        return "none"
    return f"{min(counts)} to {max(counts)}, median {int(np.median(counts))}, {sum(counts):,} in all"
