"""Selective search beside that of OpenCV's contributed modules, on photographs with boxes.

    pip install opencv-contrib-python-headless
    python benchmarks/selective_search.py ../shared/data/coco/tiny160/annotations/instances_train2017.json \\
        ../shared/data/coco/tiny160/train2017 [--images 20 --most 2000]

Both in one thread, in turns, image by image. Prints the shares of the objects (crowds left out) that a box of the first
`most` overlaps by an IoU of 0.5, the mean of the best overlaps, the number of boxes, the median times and their ratio;
with --quality those of the thorough search as well. The two are not the same box by box: scales and textures differ.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from everymask.ops.boxes import box_iou
from everymask.ops.selective_search import selective_search

Boxes = NDArray[np.float64]


def opencv(image: NDArray[np.uint8], quality: bool) -> Boxes:
    """Boxes x0, y0, x1, y1 of OpenCV."""
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(image[..., ::-1]))
    if quality:
        search.switchToSelectiveSearchQuality()
    else:
        search.switchToSelectiveSearchFast()
    boxes = search.process().astype(np.float64)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def ours(image: NDArray[np.uint8], quality: bool) -> Boxes:
    """Boxes x0, y0, x1, y1 of this package."""
    return selective_search(image, "quality" if quality else "fast").astype(np.float64)


def main() -> None:
    """Compares, then tells."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotation", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--most", type=int, default=2000)
    parser.add_argument("--quality", action="store_true")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    truth: dict[str, Any] = json.loads(options.annotation.read_text())
    programs: dict[str, Callable[[NDArray[np.uint8], bool], Boxes]] = {"everymask": ours, "opencv": opencv}
    ours(np.zeros((30, 30, 3), np.uint8), False)  # compiles
    for quality in (False, True) if options.quality else (False,):
        times: dict[str, list[float]] = {name: [] for name in programs}
        best: dict[str, list[NDArray[Any]]] = {name: [] for name in programs}
        counts: dict[str, list[int]] = {name: [] for name in programs}
        for each in truth["images"][: options.images]:
            with Image.open(options.folder / each["file_name"]) as file:
                image = np.asarray(file.convert("RGB"))
            found = [a["bbox"] for a in truth["annotations"] if a["image_id"] == each["id"] and not a["iscrowd"]]
            objects = np.array(found, np.float64).reshape(-1, 4)
            objects[:, 2:] += objects[:, :2]
            for name, search in programs.items():
                start = time.perf_counter()
                boxes = search(image, quality)
                times[name].append(time.perf_counter() - start)
                counts[name].append(len(boxes))
                if len(objects):
                    best[name].append(box_iou(objects, boxes[: options.most], pairwise=True).max(1))
        print("quality" if quality else "fast", f"({len(np.concatenate(best['opencv']))} objects)")
        for name in programs:
            overlaps = np.concatenate(best[name])
            print(
                f"  {name:10} recall {(overlaps >= 0.5).mean():.3f}, mean best overlap {overlaps.mean():.3f}, "
                f"{statistics.mean(counts[name]):.0f} boxes, {statistics.median(times[name]):.2f} s an image"
            )
        ratio = statistics.median(a / b for a, b in zip(times["opencv"], times["everymask"], strict=True))
        print(f"  opencv / everymask: {ratio:.1f}")


if __name__ == "__main__":
    main()
