"""Distance targets against their formulas computed object by object, as the published programs do.

    python benchmarks/distance_targets.py [--data dsb2018/train] [--repeats 5]

Prints the median processor times of both for crops of 256 x 256 pixels, their ratio and the largest difference: cell
and neighbour distance (microbeSEG), and distances to centre and boundary (torch-em). The reference takes the distance
transform of the whole crop once for each object, and everything from scipy and scikit-image. Then the time of all
targets of a method for a crop, as the training loader computes them. One thread. Without data on synthetic nuclei.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage import measure, morphology, segmentation

from everymask.methods.bottom_up.border_unet import BorderUNet
from everymask.methods.bottom_up.distance_watershed import DistanceWatershed
from everymask.ops.neighbour_distance import centre_and_boundary, neighbour_targets
from everymask.types import Segments

SIDE = 256


def nuclei(count: int = 60, seed: int = 0) -> NDArray[np.int32]:
    """Ellipses with radii of 7 to 14 pixels, touching here and there."""
    random = np.random.default_rng(seed)
    labels = np.zeros((SIDE, SIDE), np.int32)
    rows, columns = np.indices(labels.shape)
    placed = 0
    while placed < count:
        y, x = random.uniform(0, SIDE, 2)
        first, second, angle = random.uniform(7, 14), random.uniform(7, 11), random.uniform(0, np.pi)
        along = (columns - x) * np.cos(angle) + (rows - y) * np.sin(angle)
        across = (rows - y) * np.cos(angle) - (columns - x) * np.sin(angle)
        inside = (along / first) ** 2 + (across / second) ** 2 < 1
        if (labels[inside] > 0).mean() < 0.1:
            placed += 1
            labels[inside & (labels == 0)] = placed
    return labels


def real(folder: Path, count: int = 12) -> list[NDArray[np.int32]]:
    """The upper left corner of the first masks of a folder ``masks`` that hold several objects."""
    from PIL import Image

    found = []
    for path in sorted((folder / "masks").glob("*.png")):
        labels = np.asarray(Image.open(path)).astype(np.int32)[:SIDE, :SIDE]
        if labels.shape == (SIDE, SIDE) and len(np.unique(labels)) > 10:
            found.append(labels)
        if len(found) == count:
            break
    return found


def neighbour_by_object(labels: NDArray[np.int32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cell and neighbour distance of Scherr et al. 2020."""
    numbers = np.unique(labels)[1:]
    cell, neighbour = np.zeros(labels.shape), np.zeros(labels.shape)
    union, touch = np.zeros(labels.shape, bool), np.zeros(labels.shape, bool)
    square = np.ones((3, 3), bool)

    def closed(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return ndimage.binary_closing(np.pad(mask, 9), morphology.disk(3))[9:-9, 9:-9]

    for number in numbers:
        own = labels == number
        edge = ndimage.distance_transform_edt(own)
        cell[own] = edge[own] / edge.max()
        others = (labels > 0) & ~own
        if others.any():
            distance = ndimage.distance_transform_edt(~others)[own]
            neighbour[own] = 1 - np.clip(distance / min(edge.max() + 3, distance.max()), 0, 1)
        union |= closed(own)
        touch |= ndimage.binary_dilation(own, square) & others
    parts = measure.label(closed(union) & ~union, connectivity=2)
    gaps = (parts > 0).astype(float)
    for part in measure.regionprops(parts):
        inside = parts == part.label
        if part.axis_minor_length >= 3:
            gaps[inside & ~ndimage.binary_erosion(inside)] = 0.8
        least = next((least for area, least in ((20, 5), (30, 8), (50, 10)) if part.area <= area), 20)
        if (neighbour * (ndimage.binary_dilation(inside, square) & ~inside)).sum() < least:
            gaps[inside] = 0
    nearest = np.max([neighbour, gaps, touch], axis=0)
    nearest = np.clip(1 / np.sqrt(0.65 + 0.5 * np.exp(-11 * (nearest - 0.75))) - 0.19, 0, 1)
    return cell, ndimage.grey_closing(nearest, size=(3, 3))


def boundary_by_object(labels: NDArray[np.int32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distances to centre and boundary of torch-em."""
    centre, boundary = np.ones(labels.shape), np.ones(labels.shape)
    outermost = segmentation.find_boundaries(labels, mode="inner", connectivity=1)
    rows, columns = np.indices(labels.shape)
    for each in measure.regionprops(labels):
        own = labels == each.label
        depth = np.where(own, ndimage.distance_transform_edt(~(outermost & own)), 0)
        middle = tuple(np.round(each.centroid).astype(int))
        if not own[middle]:
            middle = np.unravel_index(np.argmax(np.where(own, depth, -1)), labels.shape)
        away = np.hypot(rows - middle[0], columns - middle[1])
        centre[own] = away[own] / (away[own].max() + 1e-7)
        boundary[own] = (depth.max() - depth[own]) / (depth.max() + 1e-7)
    return centre, boundary


def milliseconds(function: Callable[[], Any]) -> float:
    """Processor time of one call, which other programs on the machine lengthen less than the time on the wall."""
    start = time.process_time()
    function()
    return 1e3 * (time.process_time() - start)


def main() -> None:
    """Run all comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    crops = [nuclei(seed=seed) for seed in range(6)] if arguments.data is None else real(arguments.data)
    objects = sum(len(np.unique(each)) - 1 for each in crops) / len(crops)
    print(f"{len(crops)} crops of {SIDE} x {SIDE} pixels with {objects:.0f} objects on average")

    pairs: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
        "cell and neighbour distance": (neighbour_targets, neighbour_by_object),
        "centre and boundary distance": (centre_and_boundary, boundary_by_object),
    }
    for name, (ours, reference) in pairs.items():
        difference = max(
            float(np.abs(mine - other).max())
            for crop in crops
            for mine, other in zip(ours(crop), reference(crop), strict=True)
        )
        mine, others = [], []
        for crop in crops:
            mine += [milliseconds(lambda: ours(crop)) for _ in range(arguments.repeats)]  # noqa: B023 - called at once
            others.append(milliseconds(lambda: reference(crop)))  # noqa: B023
        first, second = statistics.median(mine), statistics.median(others)
        print(
            f"{name:30s} ours {first:7.2f} ms   by object {second:8.1f} ms   ratio {second / first:7.1f}   "
            f"largest difference {difference:.1e}"
        )

    methods = {f"distance_watershed, {form}": DistanceWatershed(form=form, base=4, depth=1) for form in
               ("neighbour", "signed", "boundary")} | {"border_unet": BorderUNet(base=4, depth=1)}  # fmt: skip
    samples = [Segments.from_label_map(crop) for crop in crops]
    for name, method in methods.items():
        method.targets(samples[0])
        times = [milliseconds(lambda: method.targets(sample)) for sample in samples for _ in range(arguments.repeats)]  # noqa: B023
        print(f"targets of {name:30s} {statistics.median(times):6.2f} ms")


if __name__ == "__main__":
    main()
