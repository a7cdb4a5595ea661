"""Average precision of COCO boxes and masks, from files to figures, against pycocotools, hotcoco and faster-coco-eval.

    python benchmarks/coco_ap.py [--kinds boxes masks] [--images 5000] [--repeat 5] [--peers hotcoco pycocotools ...]
                                 [--official-repeat 1] [--folder DIR]

The data set is made up at the scale of val2017: 5,000 images, 36,000 true objects of 80 categories as polygons and
crowds, and 100 detections an image, with compressed run lengths for masks. Every program runs in a process of its own,
which first evaluates a small data set (so that nothing is compiled or imported while the clock runs), then the large
one as often as it is told, one program after the other. All figures are compared before a time is printed. Reading the
files is part of the time; memory is the largest of the process up to the end of its first large evaluation. Ratios are
those of a program to ours: above 1, ours is faster or smaller.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PEER = Path(__file__).with_name("coco_ap_peer.py")
SIZE = (480, 640)
CATEGORIES = 80


def outline(generator: np.random.Generator, box: NDArray[np.float64], vertices: int) -> NDArray[np.float64]:
    """(K, 2) vertices x, y of a star-shaped polygon that touches the sides of its box about."""
    angle = np.sort(generator.random(vertices)) * 2 * np.pi
    waves = generator.normal(0, 0.12, (3, 1)) * np.sin(np.outer([2, 3, 5], angle) + generator.random((3, 1)) * 6)
    radius = (1 + waves.sum(axis=0))[:, None]
    points = np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius / radius.max() / 2 + 0.5
    return np.clip(points * box[2:] + box[:2], 0, [SIZE[1], SIZE[0]])


def moved(generator: np.random.Generator, box: NDArray[np.float64], spread: float) -> NDArray[np.float64]:
    """A box that a detector could have found for `box`."""
    found = box + generator.normal(0, spread, 4) * np.tile(box[2:], 2)
    found[2:] = np.maximum(found[2:], 2)
    found[:2] = np.clip(found[:2], 0, np.array(SIZE[::-1]) - 2)
    found[2:] = np.minimum(found[2:], np.array(SIZE[::-1]) - found[:2])
    return found


def random_box(generator: np.random.Generator) -> NDArray[np.float64]:
    """x, y, width, height; sides are log-normal, as those of COCO about are."""
    sides = np.minimum(np.exp(generator.normal(4.0, 0.9, 2)), np.array(SIZE[::-1]) * 0.95)
    return np.concatenate([generator.random(2) * (np.array(SIZE[::-1]) - sides), np.maximum(sides, 4)])


def write_data(folder: Path, kind: str, images: int, objects: int, detections: int, seed: int) -> tuple[Path, Path]:
    """Writes a truth and its results, unless they are there, and gives their paths."""
    stem = f"{kind}-{images}-{objects}-{detections}-{seed}"
    truth_path, result_path = folder / f"{stem}-truth.json", folder / f"{stem}-results.json"
    if result_path.exists():
        return truth_path, result_path
    generator = np.random.default_rng(seed)
    frequency = 1 / np.arange(2, CATEGORIES + 2)
    frequency /= frequency.sum()
    annotations: list[dict[str, Any]] = []
    ids = np.sort(generator.choice(600_000, images, replace=False)) + 1
    counts = generator.multinomial(objects, generator.dirichlet(np.full(images, 1.2)))
    with result_path.with_suffix(".part").open("w") as stream:
        separator = "["
        for image, count in zip(ids.tolist(), counts, strict=True):
            # Objects of an image are of few categories.
            present = generator.choice(CATEGORIES, generator.integers(1, 5), p=frequency)
            own: list[tuple[NDArray[np.float64], int]] = []
            for _ in range(count):
                box, category = random_box(generator), int(generator.choice(present))
                points = outline(generator, box, int(generator.integers(12, 60)))
                low, high = points.min(axis=0), points.max(axis=0)
                box = np.concatenate([low, high - low])
                crowd = generator.random() < 0.012
                entry = {
                    "segmentation": [np.round(points.ravel(), 2).tolist()],
                    "area": round(float(np.prod(box[2:])) * 0.65, 4),
                    "iscrowd": int(crowd),
                    "image_id": image,
                    "bbox": np.round(box, 2).tolist(),
                    "category_id": category + 1,
                    "id": len(annotations) + 1,
                }
                if crowd:
                    entry["segmentation"] = crowd_runs(points)
                annotations.append(entry)
                own.append((box, category))
            scores = np.sort(generator.beta(0.6, 2.5, detections))[::-1]
            polygons, entries = [], []
            for score in scores:
                # The higher the score, the likelier and the closer a true object.
                if own and generator.random() < 0.35 + 0.6 * score:
                    box, category = own[int(generator.integers(len(own)))]
                    box = moved(generator, box, 0.16 * (1.1 - score))
                    category = category if generator.random() < 0.85 else int(generator.choice(present))
                else:
                    box = random_box(generator)
                    category = int(generator.choice(present if generator.random() < 0.7 else CATEGORIES))
                entry = {"image_id": image, "category_id": category + 1, "score": round(float(score), 5)}
                if kind == "boxes":
                    entry["bbox"] = np.round(box, 2).tolist()
                else:
                    polygons.append(outline(generator, box, 40).ravel().tolist())
                entries.append(entry)
            if kind == "masks":
                from pycocotools import mask

                for entry, code in zip(entries, mask.frPyObjects(polygons, *SIZE), strict=True):
                    entry["segmentation"] = {"size": list(SIZE), "counts": code["counts"].decode()}
            for entry in entries:
                stream.write(separator + json.dumps(entry))
                separator = ", "
        stream.write("]")
    truth = {
        "info": {"description": "made up"},
        "images": [{"id": i, "file_name": f"{i:012}.jpg", "height": SIZE[0], "width": SIZE[1]} for i in ids.tolist()],
        "categories": [{"id": k + 1, "name": f"class {k + 1}", "supercategory": "thing"} for k in range(CATEGORIES)],
        "annotations": annotations,
    }
    truth_path.write_text(json.dumps(truth))
    result_path.with_suffix(".part").replace(result_path)
    return truth_path, result_path


def crowd_runs(points: NDArray[np.float64]) -> dict[str, Any]:
    """Uncompressed run lengths of a polygon, as COCO gives crowds."""
    from pycocotools import mask

    pixels = mask.decode(mask.frPyObjects([points.ravel().tolist()], *SIZE))[:, :, 0].ravel(order="F")
    edges = np.flatnonzero(np.diff(np.concatenate([[0], pixels, [0]])))
    counts = np.diff(np.concatenate([[0], edges, [pixels.size]]))
    return {"size": list(SIZE), "counts": counts.tolist()}


class Peer:
    """A program in a process of its own, which evaluates when told."""

    def __init__(self, name: str, kind: str, small: tuple[Path, Path]) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, str(PEER), name, kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.idle = self.run(small)["peak"]

    def run(self, paths: tuple[Path, Path]) -> dict[str, Any]:
        """Figures, seconds (`wall`, `cpu`) and the process's largest memory so far (`peak`, bytes)."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([str(each) for each in paths]) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def compare(kind: str, arguments: argparse.Namespace, folder: Path) -> None:
    """Prints agreement, times and memory of all programs for boxes or masks."""
    small = write_data(folder, kind, 20, 150, 100, 1)
    large = write_data(folder, kind, arguments.images, round(7.2 * arguments.images), 100, 0)
    megabytes = [path.stat().st_size / 1e6 for path in large]
    print(f"\n{kind}: truth {megabytes[0]:.0f} MB, results {megabytes[1]:.0f} MB")
    peers = [Peer(name, kind, small) for name in ("everymask", *arguments.peers)]
    runs: dict[str, list[dict[str, Any]]] = {peer.name: [] for peer in peers}
    for turn in range(arguments.repeat):
        for peer in peers:
            if turn < arguments.official_repeat or peer.name in ("everymask", "hotcoco"):
                runs[peer.name].append(peer.run(large))
    for peer in peers:
        peer.close()
    ours = runs["everymask"][0]
    for name, found in runs.items():
        gap = max(abs(a - b) for a, b in zip(found[0]["figures"], ours["figures"], strict=True))
        assert gap < 1e-9, f"{name} differs by {gap}"
        print(f"  {name:18} greatest difference of the 12 figures from ours: {gap:.1e}")

    def median(name: str, what: str) -> float:
        return statistics.median(run[what] for run in runs[name])

    print(f"  {'':18} {'wall s':>8} {'best':>8} {'ratio':>6} {'cpu s':>8} {'ratio':>6} {'peak MB':>8} {'ratio':>6}")
    for name, found in runs.items():
        wall, cpu = median(name, "wall"), median(name, "cpu")
        peak = found[0]["peak"]
        best = min(run["wall"] for run in found)
        print(
            f"  {name:18} {wall:8.3f} {best:8.3f} {wall / median('everymask', 'wall'):6.2f} "
            f"{cpu:8.3f} {cpu / median('everymask', 'cpu'):6.2f} {peak / 1e6:8.0f} "
            f"{peak / ours['peak']:6.2f}"
        )


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=["boxes", "masks"], choices=["boxes", "masks"])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--official-repeat", type=int, default=1, help="turns of the slow peers")
    parser.add_argument("--peers", nargs="*", default=["hotcoco", "pycocotools", "faster_coco_eval"])
    parser.add_argument("--folder", type=Path, help="where the data set is kept; a temporary folder by default")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for kind in arguments.kinds:
            compare(kind, arguments, folder)


if __name__ == "__main__":
    main()
