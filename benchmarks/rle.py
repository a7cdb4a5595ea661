"""Speed of run-length masks, boxes and polygons against pycocotools and hotcoco.

    python benchmarks/rle.py [--masks 100] [--height 480] [--width 640] [--repeat 15]

All three get the same objects in the form that each takes, and their results are compared before any time is printed.
Times are the shortest of several runs, taken in turn so that a busy machine slows all alike.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import hotcoco.mask
import numpy as np
import pycocotools.mask
from numpy.typing import NDArray

from everymask.ops import boxes, polygons, rle

Runner = Callable[[], Any]


def shortest_seconds(runners: Sequence[Runner], repeat: int) -> list[float]:
    """The shortest time of each runner, which take turns."""
    times = [float("inf")] * len(runners)
    for _ in range(repeat):
        for i, run in enumerate(runners):
            start = time.perf_counter()
            run()
            times[i] = min(times[i], time.perf_counter() - start)
    return times


def report(what: str, count: int, ours: Runner, peers: dict[str, Runner], repeat: int) -> None:
    """Prints microseconds an item, and how many times faster ours is."""
    mine, *theirs = shortest_seconds([ours, *peers.values()], repeat)
    line = f"{what:34s} everymask {1e6 * mine / count:9.3f} us"
    for name, seconds in zip(peers, theirs, strict=True):
        line += f"   {name} {1e6 * seconds / count:9.3f} us ({seconds / mine:5.1f} x)"
    print(line)


def outlines(number: int, height: int, width: int) -> list[NDArray[np.float64]]:
    """Wavy rings (P, 2) of the sizes of COCO's objects, some of which reach beyond the image."""
    generator = np.random.default_rng(0)
    rings = []
    for _ in range(number):
        points = int(generator.integers(12, 60))
        angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
        radius = np.exp(generator.uniform(np.log(6), np.log(min(height, width) / 3)))
        wave = 1 + 0.25 * np.sin(generator.integers(2, 6) * angle + generator.uniform(0, 6))
        wave += 0.05 * generator.standard_normal(points)
        centre = generator.uniform((0, 0), (width, height))
        rings.append(np.round(centre + (radius * wave)[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1), 2))
    return rings


def flat_outlines(rings: list[NDArray[np.float64]]) -> polygons.Outlines:
    """One segment a ring."""
    singles = np.arange(len(rings) + 1)
    offsets = np.concatenate([[0], np.cumsum([len(each) for each in rings])])
    return polygons.Outlines(np.concatenate(rings), offsets, singles, singles)


def same_runs(ours: tuple[NDArray[np.uint32], NDArray[np.int64]], theirs: Sequence[dict[str, Any]]) -> None:
    """Fails unless the strings are equal byte for byte."""
    assert rle.to_strings(*ours) == [each["counts"] for each in theirs]


def coding(number: int, height: int, width: int, repeat: int) -> None:
    """Encoding, decoding, polygons and strings."""
    coco, hot = pycocotools.mask, hotcoco.mask
    size = (height, width)
    rings = outlines(number, height, width)
    lists = [ring.ravel().tolist() for ring in rings]
    flat = flat_outlines(rings)
    objects = coco.frPyObjects(lists, height, width)
    runs = polygons.rasterise(flat, size)
    same_runs(runs, objects)
    same_runs(runs, hot.frPyObjects(lists, height, width))
    report(
        "polygons to runs",
        number,
        lambda: polygons.rasterise(flat, size),
        {
            "pycocotools": lambda: coco.frPyObjects(lists, height, width),
            "hotcoco": lambda: hot.frPyObjects(lists, height, width),
        },
        repeat,
    )
    masks = rle.decode(*runs, size).view(np.uint8)
    assert np.array_equal(masks, coco.decode(objects).transpose(2, 0, 1))
    assert np.array_equal(masks, hot.decode(objects).transpose(2, 0, 1))
    report(
        "decode",
        number,
        lambda: rle.decode(*runs, size),
        {"pycocotools": lambda: coco.decode(objects), "hotcoco": lambda: hot.decode(objects)},
        repeat,
    )
    columns = np.ascontiguousarray(masks.transpose(0, 2, 1)).transpose(0, 2, 1)  # each mask in Fortran order
    for order, given in (("C", masks), ("Fortran", columns)):
        stack = given.transpose(1, 2, 0)
        same_runs(rle.encode(given), coco.encode(np.asfortranarray(stack)))
        same_runs(rle.encode(given), hot.encode(stack))
        report(
            f"encode, {order} order",
            number,
            lambda: rle.encode(given),  # noqa: B023 - called at once
            {
                "pycocotools": lambda: coco.encode(np.asfortranarray(stack)),  # noqa: B023
                "hotcoco": lambda: hot.encode(stack),  # noqa: B023
            },
            repeat,
        )
    strings = [each["counts"] for each in objects]
    texts = [each.decode() for each in strings]
    assert np.array_equal(rle.from_strings(strings)[0], runs[0])
    uncompressed = [{"size": list(size), "counts": runs[0][a:b].tolist()} for a, b in itertools.pairwise(runs[1])]
    same_runs(runs, coco.frPyObjects(uncompressed, height, width))
    same_runs(runs, hot.frPyObjects(uncompressed, height, width))
    report(
        "runs to strings",
        number,
        lambda: rle.to_strings(*runs),
        {
            "pycocotools": lambda: coco.frPyObjects(uncompressed, height, width),
            "hotcoco": lambda: hot.frPyObjects(uncompressed, height, width),
        },
        repeat,
    )
    report(
        "strings to runs",
        number,
        lambda: rle.from_strings(strings),
        {"hotcoco": lambda: [hot.rle_from_string(each, height, width) for each in texts]},
        repeat,
    )


def measures(number: int, height: int, width: int, repeat: int) -> None:
    """Areas, boxes, unions and IoU. The peers read strings anew each time; so do we in the lines "from strings"."""
    coco, hot = pycocotools.mask, hotcoco.mask
    size = (height, width)
    runs = polygons.rasterise(flat_outlines(outlines(number, height, width)), size)
    objects = [{"size": list(size), "counts": each} for each in rle.to_strings(*runs)]
    strings = [each["counts"] for each in objects]

    def corners_to_sides(corners: NDArray[Any]) -> NDArray[np.float64]:
        return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1).astype(float)

    def iou(counts: NDArray[np.uint32], offsets: NDArray[np.int64]) -> NDArray[np.float64]:
        shared, areas = rle.overlaps(counts, offsets, counts, offsets, size), rle.areas(counts, offsets)
        return shared / (areas[:, None] + areas - shared)

    named: list[tuple[str, Callable[..., Any], Callable[[Any], Any], str, tuple[Any, ...]]] = [
        ("areas", lambda *given: rle.areas(*given), np.asarray, "area", ()),
        ("boxes", lambda *given: rle.boxes(*given, size), corners_to_sides, "toBbox", ()),
        ("union", rle.merge, lambda counts: rle.to_string(counts), "merge", ()),
        ("IoU of all pairs", iou, np.asarray, "iou", (objects, [False] * number)),
    ]
    for what, ours, comparable, theirs, extra in named:
        mine = comparable(ours(*runs))
        for peer in (coco, hot):
            other = getattr(peer, theirs)(objects, *extra)
            if isinstance(other, dict):
                assert mine == other["counts"]
            else:
                assert np.array_equal(mine, other), what
        peers = {
            "pycocotools": lambda: getattr(coco, theirs)(objects, *extra),  # noqa: B023
            "hotcoco": lambda: getattr(hot, theirs)(objects, *extra),  # noqa: B023
        }
        report(what, number, lambda: ours(*runs), peers, repeat)  # noqa: B023
        report(f"{what}, from strings", number, lambda: ours(*rle.from_strings(strings)), peers, repeat)  # noqa: B023


def box_pairs(number: int, repeat: int) -> None:
    """IoU of boxes, some of which are crowds."""
    generator = np.random.default_rng(0)
    low = generator.integers(0, 600, (2, number, 2))
    corners = np.concatenate([low, low + generator.integers(0, 200, low.shape)], axis=2).astype(float)
    sides = np.concatenate([corners[..., :2], corners[..., 2:] - corners[..., :2]], axis=2)
    crowd = generator.random(number) < 0.05
    flags, listed = crowd.astype(np.uint8), crowd.tolist()
    ours = boxes.box_iou(*corners, pairwise=True, crowd=crowd)
    assert np.array_equal(ours, pycocotools.mask.iou(*sides, flags))
    assert np.array_equal(ours, hotcoco.mask.bbox_iou(*sides, listed))
    report(
        f"IoU of {number} x {number} boxes",
        number,
        lambda: boxes.box_iou(*corners, pairwise=True, crowd=crowd),
        {
            "pycocotools": lambda: pycocotools.mask.iou(*sides, flags),
            "hotcoco": lambda: hotcoco.mask.bbox_iou(*sides, listed),
        },
        repeat,
    )


def main() -> None:
    """Runs all comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--masks", type=int, default=100, help="number of objects")
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--repeat", type=int, default=15)
    options = parser.parse_args()
    print(f"microseconds an object, {options.masks} objects in {options.width} x {options.height}; x: times faster")
    coding(options.masks, options.height, options.width, options.repeat)
    measures(options.masks, options.height, options.width, options.repeat)
    box_pairs(1000, options.repeat)


if __name__ == "__main__":
    main()
