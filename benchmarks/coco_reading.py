"""Opening COCO files: time and peak memory against pycocotools, hotcoco and msgspec.

    python benchmarks/coco_reading.py [--images 118000] [--annotations 860000] [--results 300000] [--repeat 3]
                                      [--folder FOLDER]

The files are made up: instances of the size of COCO train2017, with polygons of about 22 points and one crowd in
a hundred, and a list of results with boxes. Each program runs in a process of its own, in turn, after one run of ours
that compiles; it says how many images or results it found, which must agree. Ours also reads 2,000 samples.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

INSTANCES = {
    "everymask": """
from pathlib import Path
import numpy as np
from everymask.formats import open_dataset
start = time.perf_counter()
dataset = open_dataset(Path(path), "coco", missing_images="keep")
opened = time.perf_counter()
number = len(dataset)
chosen = np.linspace(0, number - 1, 2000).astype(int).tolist()
for index in chosen:
    dataset[index].segments
each = f"{(time.perf_counter() - opened) / len(chosen) * 1e3:.2f} ms for each sample"
""",
    "pycocotools": """
from pycocotools.coco import COCO
start = time.perf_counter()
dataset = COCO(path)
opened = time.perf_counter()
number = len(dataset.imgs)
""",
    "hotcoco": """
from hotcoco import COCO
start = time.perf_counter()
dataset = COCO(path)
opened = time.perf_counter()
number = len(dataset.get_img_ids())
""",
}
RESULTS = {
    "everymask": """
from pathlib import Path
from everymask.formats.coco_columns import read_results
start = time.perf_counter()
results = read_results(Path(path))
opened = time.perf_counter()
number = len(results)
del results
again = time.perf_counter()
read_results(Path(path))
each = f"{time.perf_counter() - again:.3f} s the second time, without loading compiled code"
""",
    "msgspec": """
import msgspec
from everymask.formats.coco_schema import JsonResult
decoder = msgspec.json.Decoder(list[JsonResult])
start = time.perf_counter()
results = decoder.decode(open(path, "rb").read())
opened = time.perf_counter()
number = len(results)
""",
    "json": """
import json
start = time.perf_counter()
results = json.load(open(path))
opened = time.perf_counter()
number = len(results)
""",
}
FRAME = """
import json, resource, sys, time
path, each = sys.argv[1], ""
{body}
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print("\\n" + json.dumps([number, opened - start, peak / 1024, each]))
"""


def make_instances(path: Path, images: int, annotations: int) -> None:
    """Writes a file of instances like those of COCO."""
    generator = np.random.default_rng(7)
    with path.open("w", encoding="ascii") as stream:
        stream.write('{"info": {"description": "made up"}, "licenses": [{"id": 1, "name": "none"}], "images": [')
        for i in range(images):
            entry = {
                "license": 1,
                "file_name": f"{i:012d}.jpg",
                "coco_url": f"http://images.example.org/train2017/{i:012d}.jpg",
                "height": 480,
                "width": 640,
                "date_captured": "2013-11-14 17:02:52",
                "flickr_url": f"http://farm7.example.org/6116/{i:010d}_a4da7d02f0_z.jpg",
                "id": i,
            }
            stream.write((", " if i else "") + json.dumps(entry))
        stream.write('], "annotations": [')
        owners = generator.integers(0, images, annotations)
        for i in range(annotations):
            crowd = i % 100 == 99
            shape, box, area = _crowd() if crowd else _outline(generator)
            entry = {
                "segmentation": shape,
                "area": area,
                "iscrowd": int(crowd),
                "image_id": int(owners[i]),
                "bbox": box,
                "category_id": 1 + i % 80,
                "id": i + 1,
            }
            stream.write((", " if i else "") + json.dumps(entry))
        categories = [{"supercategory": "thing", "id": 1 + i, "name": f"class {i}"} for i in range(80)]
        stream.write('], "categories": ' + json.dumps(categories) + "}")


def _crowd() -> tuple[object, list[float], float]:
    """Run lengths of a rectangle, its box and its area."""
    runs = [100 * 480 + 40, *[30, 450] * 40, 640 * 480 - 100 * 480 - 40 - 40 * 480]
    return {"counts": runs, "size": [480, 640]}, [100, 40, 40, 30], 1200.0


def _outline(generator: np.random.Generator) -> tuple[object, list[float], float]:
    """A polygon around a circle, its box and its area."""
    angles = np.linspace(0, 2 * np.pi, int(generator.integers(6, 40)), endpoint=False)
    radius = float(generator.uniform(20, 95))
    centre = generator.uniform((100, 100), (540, 380))
    points = (centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)).round(2)
    low, sides = points.min(axis=0), np.ptp(points, axis=0).round(2)
    return [points.ravel().tolist()], [*low.tolist(), *sides.tolist()], round(radius**2 * 3, 4)


def make_results(path: Path, number: int) -> None:
    """Writes a list of results with boxes, with all the digits that programs write."""
    generator = np.random.default_rng(8)
    values = generator.random((number, 5)) * [640, 480, 200, 200, 1]
    with path.open("w", encoding="ascii") as stream:
        for i, (*box, score) in enumerate(values.tolist()):
            entry = {"image_id": i // 60, "category_id": 1 + i % 80, "bbox": box, "score": score}
            stream.write(("," if i else "[") + json.dumps(entry))
        stream.write("]")


def run(code: str, path: Path) -> tuple[int, float, float, str]:
    """What was counted, seconds, peak memory in MiB and a remark of a program in its own process."""
    command = [sys.executable, "-c", FRAME.format(body=code), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    number, seconds, peak, remark = json.loads(done.stdout.splitlines()[-1])
    return number, seconds, peak, remark


def compare(programs: dict[str, str], path: Path, repeat: int) -> None:
    """Prints a table of the programs."""
    run(programs["everymask"], path)
    found: dict[str, list[tuple[int, float, float, str]]] = {name: [] for name in programs}
    for _ in range(repeat):
        for name, code in programs.items():
            found[name].append(run(code, path))
    counted = {each[0] for runs in found.values() for each in runs}
    assert len(counted) == 1, counted
    print(f"{path.name}: {path.stat().st_size / 1e6:.0f} MB")
    ours = min(each[1] for each in found["everymask"])
    for name, runs in found.items():
        seconds, peak = min(each[1] for each in runs), max(each[2] for each in runs)
        print(f"  {name:12} {seconds:7.3f} s  x{seconds / ours:5.1f}  peak {peak:6.0f} MiB  {runs[-1][3]}")


def main() -> None:
    """Makes the files and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=118_000)
    parser.add_argument("--annotations", type=int, default=860_000)
    parser.add_argument("--results", type=int, default=300_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the files are made, and kept; else a temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder: Path = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        results = folder / f"results_{options.results}.json"
        if not results.exists():
            make_results(results, options.results)
        compare(RESULTS, results, options.repeat)
        instances = folder / f"instances_{options.images}_{options.annotations}.json"
        if not instances.exists():
            make_instances(instances, options.images, options.annotations)
        compare(INSTANCES, instances, options.repeat)


if __name__ == "__main__":
    main()
