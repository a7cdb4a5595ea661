"""Panoptic quality of PNG files: ours against hotcoco and a plain numpy program, reading of the files included.

    python benchmarks/panoptic.py [--pairs 500] [--repeat 5] [--threads 2] [--folder made-up/]

Made up are 500 pairs of 640 x 480 pixels with 8 to 30 segments of ragged outlines, as large in bytes as COCO's own PNG.
The programs run in turns, so that a busy machine slows all alike. Processor time is printed besides: it tells how much
work there is when other programs take a part of the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import zoom

from everymask.formats import open_dataset, open_predictions
from everymask.metrics import make_metric
from everymask.metrics.read_ahead import read_ahead

HEIGHT, WIDTH = 480, 640


def displacement(generator: np.random.Generator) -> NDArray[np.float32]:
    """(2, H, W) smooth noise of several scales: how far outlines are from straight lines."""
    field = np.zeros((2, HEIGHT, WIDTH), np.float32)
    for pixels, strength in ((160, 30.0), (40, 7.0), (10, 2.0), (4, 1.0)):
        coarse = generator.standard_normal((2, HEIGHT // pixels + 2, WIDTH // pixels + 2), np.float32)
        field += strength * zoom(coarse, (1, pixels, pixels), order=1)[:, :HEIGHT, :WIDTH]
    return field


def make_files(folder: Path, pairs: int) -> None:
    """Writes truth.json, truth/, results.json and results/."""
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    categories = [{"id": i, "name": f"class {i}", "isthing": int(i <= 80)} for i in range(1, 134)]
    annotations: dict[str, list[dict[str, Any]]] = {"truth": [], "results": []}
    for name in annotations:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(pairs):
        count = int(generator.integers(8, 31))
        y, x = np.stack([rows, columns]) + displacement(generator)
        nearest = np.full((HEIGHT, WIDTH), np.inf, np.float32)
        ids = np.zeros((HEIGHT, WIDTH), np.int64)
        for i in range(count):
            centre, size = generator.uniform(0, 1, 2) * [HEIGHT, WIDTH], generator.uniform(0, 80)
            distance = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 - size**2
            ids[distance < nearest] = i
            nearest = np.minimum(nearest, distance)
        category = generator.integers(1, 134, count)
        moved = 0.15 * displacement(generator)
        nearby = [
            np.clip(np.rint(place + by), 0, end - 1).astype(int)
            for place, by, end in zip((rows, columns), moved, (HEIGHT, WIDTH), strict=True)
        ]
        merged = np.where(generator.random(count) < 0.1, generator.integers(0, count, count), np.arange(count))
        guesses = np.where(generator.random(count) < 0.15, generator.integers(1, 134, count), category)
        crowd = generator.random(count) < 0.03
        void = generator.random(count) < 0.05
        for name, found, classes in (("truth", ids, category), ("results", merged[ids[nearby[0], nearby[1]]], guesses)):
            colours = generator.choice(2**24 - 1, count, replace=False) + 1
            if name == "truth":
                colours[void] = 0
            pixels = colours[found]
            rgb = (pixels[..., None] >> np.array([0, 8, 16]) & 255).astype(np.uint8)
            Image.fromarray(rgb).save(folder / name / f"{number:012}.png")
            areas = np.bincount(found.ravel(), minlength=count)
            infos = [
                {
                    "id": int(colours[i]),
                    "category_id": int(classes[i]),
                    "iscrowd": int(name == "truth" and crowd[i]),
                    "area": int(areas[i]),
                    "bbox": [0, 0, WIDTH, HEIGHT],
                }
                for i in np.flatnonzero(areas)
                if colours[i]
            ]
            annotations[name].append({"image_id": number, "file_name": f"{number:012}.png", "segments_info": infos})
    images = [
        {"id": number, "file_name": f"{number:012}.jpg", "height": HEIGHT, "width": WIDTH} for number in range(pairs)
    ]
    for name, entries in annotations.items():
        content = {"images": images, "annotations": entries, "categories": categories}
        (folder / f"{name}.json").write_text(json.dumps(content))


def ours(folder: Path, threads: int) -> float:
    """PQ by this package, from the files."""
    dataset = open_dataset(folder / "truth.json", "coco_panoptic", missing_images="keep")
    predictions = open_predictions(folder / "results.json", dataset)
    assert predictions is not None
    metric = make_metric("panoptic", dataset.categories)
    for sample, truth, found in read_ahead(dataset, lambda sample: predictions[sample.name], threads=threads):
        if truth is not None and found is not None:
            metric.update(truth, found, sample.name)
    return metric.compute()["pq"]


def theirs(folder: Path) -> float:
    """PQ by hotcoco."""
    from hotcoco import panoptic

    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        return float(panoptic.pq_compute(str(folder / "truth.json"), str(folder / "results.json"))["All"]["pq"])


def plain(folder: Path) -> float:
    """PQ by sorting pixels with numpy, image by image, as the first programs did."""
    truth, results = (json.loads((folder / f"{name}.json").read_text()) for name in ("truth", "results"))
    counts: dict[int, list[float]] = {each["id"]: [0, 0, 0, 0.0] for each in truth["categories"]}
    for one, two in zip(truth["annotations"], results["annotations"], strict=True):
        maps = [
            np.asarray(Image.open(folder / name / one["file_name"])).astype(np.int64) @ [1, 256, 65536]
            for name in ("truth", "results")
        ]
        true, found = ({each["id"]: each for each in part["segments_info"]} for part in (one, two))
        pairs, pixels = np.unique(maps[0] << 24 | maps[1], return_counts=True)
        meeting = {(int(pair) >> 24, int(pair) % 2**24): int(n) for pair, n in zip(pairs, pixels, strict=True)}
        area = dict.fromkeys(found, 0)
        for (_, b), n in meeting.items():
            area[b] += n
        done_true, done_found = set(), set()
        for (a, b), n in meeting.items():
            if a and not true[a]["iscrowd"] and true[a]["category_id"] == found[b]["category_id"]:
                iou = n / (area[b] + true[a]["area"] - n - meeting.get((0, b), 0))
                if iou > 0.5:
                    counts[true[a]["category_id"]][0] += 1
                    counts[true[a]["category_id"]][3] += iou
                    done_true.add(a)
                    done_found.add(b)
        crowds = {each["category_id"]: a for a, each in true.items() if each["iscrowd"]}
        for a, each in true.items():
            if a not in done_true and not each["iscrowd"]:
                counts[each["category_id"]][2] += 1
        for b, each in found.items():
            ignored = meeting.get((0, b), 0) + meeting.get((crowds.get(each["category_id"], -1), b), 0)
            if b not in done_found and ignored / area[b] <= 0.5:
                counts[each["category_id"]][1] += 1
    scored = [iou / (tp + fp / 2 + fn / 2) for tp, fp, fn, iou in counts.values() if tp + fp + fn]
    return sum(scored) / len(scored)


def main() -> None:
    """Compares the results, then prints the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=500)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="keeps the made-up files, or uses those that are there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if not (folder / "results.json").is_file():
            make_files(folder, options.pairs)
        sizes = [path.stat().st_size for path in folder.rglob("*.png")]
        print(f"{len(sizes) // 2} pairs of {WIDTH} x {HEIGHT}, PNG of {np.mean(sizes) / 1000:.1f} kB")
        programs: dict[str, Callable[[], float]] = {
            "everymask": lambda: ours(folder, options.threads),
            "hotcoco": lambda: theirs(folder),
        }
        results = {name: run() for name, run in programs.items()}  # and everything is compiled
        start = time.perf_counter()
        results["numpy"] = plain(folder)
        print(f"numpy, one processor: {time.perf_counter() - start:.2f} s")
        print("PQ: " + ", ".join(f"{name} {value:.12f}" for name, value in results.items()))
        assert np.ptp(list(results.values())) < 1e-9, "the programs disagree"
        walls: dict[str, list[float]] = {name: [] for name in programs}
        works: dict[str, list[float]] = {name: [] for name in programs}
        for _ in range(options.repeat):
            for name, run in programs.items():
                start, work = time.perf_counter(), time.process_time()
                run()
                walls[name].append(time.perf_counter() - start)
                works[name].append(time.process_time() - work)
        for what, times in (("wall", walls), ("processor", works)):
            best = {name: min(each) for name, each in times.items()}
            listed = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in best.items())
            print(f"{what} time: {listed}; hotcoco / everymask {best['hotcoco'] / best['everymask']:.2f}")


if __name__ == "__main__":
    main()
