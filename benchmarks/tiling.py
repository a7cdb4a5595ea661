"""Tiled prediction of a large image: peak memory, time, and equality with the untiled prediction of its parts.

    python benchmarks/tiling.py [--model nuclei] [--images ../shared/data/dsb2018/val/images] [--side 8192]

The image is a mosaic of real images, each stretched to the whole range of uint8. It is predicted in tiles; then parts
of it are predicted without tiles, and the objects of each part that lie away from its edges are compared pixel by pixel
with those of the mosaic. All get the same intensity limits.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import everymask
from everymask.formats.images import find_images, read_image
from everymask.ops.labels import label_overlap
from everymask.predict.predictor import Predictor

LIMITS = (0, 255)


def mosaic(paths: list[Path], side: int, seed: int = 0) -> NDArray[np.uint8]:
    """(side, side) uint8: rows of images of equal height, in random order, again and again."""
    generator = np.random.default_rng(seed)
    by_height: dict[int, list[NDArray[np.uint8]]] = {}
    for path in paths:
        image = read_image(path)[..., :3].astype(np.float32).mean(axis=-1)
        low, high = np.percentile(image, [1, 99.8])
        stretched = (255 * np.clip((image - low) / max(high - low, 1), 0, 1)).astype(np.uint8)
        by_height.setdefault(len(stretched), []).append(stretched)
    canvas = np.zeros((side, side), np.uint8)
    heights = list(by_height)
    top = 0
    while top < side:
        height = heights[generator.choice(len(heights), p=[len(by_height[each]) / len(paths) for each in heights])]
        left = 0
        while left < side:
            image = by_height[height][generator.integers(len(by_height[height]))]
            window = canvas[top : top + height, left : left + image.shape[1]]
            window[:] = image[: window.shape[0], : window.shape[1]]
            left += image.shape[1]
        top += height
    return canvas


def compare(whole: NDArray[np.int32], part: NDArray[np.int32], margin: int) -> dict[str, int]:
    """Objects of `part` at least `margin` pixels from its edges, against the same window of the whole label map."""
    here, there, pixels = label_overlap(part, whole)
    inner = np.unique(part[margin:-margin, margin:-margin])
    edge = np.concatenate([np.unique(part[:margin]), np.unique(part[-margin:])])
    edge = np.concatenate([edge, np.unique(part[:, :margin]), np.unique(part[:, -margin:])])
    chosen = np.setdiff1d(inner[inner > 0], edge)
    area_here = np.bincount(part.ravel())
    area_there = np.bincount(np.maximum(whole, 0).ravel())
    both = (here > 0) & (there > 0) & np.isin(here, chosen)
    here, there, pixels = here[both], there[both], pixels[both]
    union = area_here[here] + area_there[there] - pixels
    best = np.zeros(len(area_here))
    np.maximum.at(best, here, pixels / union)
    best = best[chosen]
    return {
        "objects": len(chosen),
        "identical": int((best == 1).sum()),
        "above 0.9": int((best > 0.9).sum()),
        "not found": int((best < 0.5).sum()),
    }


def peak_memory() -> float:
    """Largest resident memory of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nuclei", help="name of a bundled model, or a model file")
    parser.add_argument("--images", type=Path, default=Path("../shared/data/dsb2018/val/images"))
    parser.add_argument("--side", type=int, default=8192)
    parser.add_argument("--part", type=int, default=2048)
    parser.add_argument("--parts", type=int, default=16, help="number of parts to compare, at random places")
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--overlap", type=int)
    parser.add_argument("--device")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    options = parser.parse_args()

    model = everymask.load(options.model)
    image = mosaic(find_images(options.images), options.side)
    arguments = (model.method, model.preprocessing, options.device, options.precision)
    predictor = Predictor(*arguments, tile=options.tile, overlap=options.overlap)
    predictor(image[:300, :300], LIMITS)  # compiles
    before = peak_memory()
    start = time.perf_counter()
    segments = predictor(image, LIMITS)
    seconds = time.perf_counter() - start
    print(
        f"{options.side} x {options.side} on {predictor.device}, {'bfloat16' if predictor.bfloat16 else 'float32'}, "
        f"tiles of {options.tile} that overlap by {predictor.overlap}: {len(segments)} objects in {seconds:.1f} s, "
        f"{image.size / seconds / 1e6:.2f} megapixels/s; peak memory {peak_memory():.2f} GiB ({before:.2f} before)",
        flush=True,
    )

    ids = segments.label_map()
    untiled = Predictor(*arguments, tile=options.part)
    margin = model.method.context + 64
    generator = np.random.default_rng(1)
    stride = model.method.stride
    totals: dict[str, int] = {}
    for _ in range(options.parts):
        top, left = stride * generator.integers(0, (options.side - options.part) // stride + 1, 2)
        window = (slice(top, top + options.part), slice(left, left + options.part))
        for name, count in compare(ids[window], untiled(image[window], LIMITS).label_map(), margin).items():
            totals[name] = totals.get(name, 0) + count
    print(
        f"{options.parts} untiled parts of {options.part} x {options.part}, {margin} pixels from their edges: "
        + ", ".join(f"{count} {name}" for name, count in totals.items())
    )


if __name__ == "__main__":
    main()
