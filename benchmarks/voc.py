"""Time of Pascal VOC average precision on a made-up set of 5,000 images with 100 detections each.

The reference is the devkit's rule (VOCevaldet.m) with one array operation a detection, as the usual Python ports have
it. Both get the same arrays in memory; average precisions are compared before times are printed.

    python benchmarks/voc.py [--images 5000] [--repeats 3]
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from everymask.metrics.voc import VocMetric
from everymask.types import Categories, Segments

CATEGORIES = Categories([f"class {number}" for number in range(20)])
SIZE = (480, 640)


def made_up(images, detections=100):
    """Truth and prediction of each image: 7 objects on average, detections near them and anywhere."""
    generator = np.random.default_rng(0)
    pairs = []
    for _ in range(images):
        count = 1 + generator.poisson(6)
        corner = generator.uniform(0, [500, 380], (count, 2))
        boxes = np.hstack([corner, corner + generator.uniform(20, 140, (count, 2))])
        category = generator.integers(1, 21, count)
        chosen = generator.integers(0, count, detections)
        found = boxes[chosen] + generator.normal(0, 12, (detections, 4))
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        kinds = np.where(generator.random(detections) < 0.7, category[chosen], generator.integers(1, 21, detections))
        difficult = generator.random(count) < 0.1
        truth = Segments(SIZE, category, box=boxes, attributes={"difficult": difficult})
        pairs.append((truth, Segments(SIZE, kinds, box=found, score=generator.random(detections))))
    return pairs


def ours(pairs):
    metric = VocMetric(CATEGORIES)
    for number, (truth, prediction) in enumerate(pairs):
        metric.update(truth, prediction, f"{number:06}")
    figures = metric.compute()
    return [figures[f"ap/{name}"] for name in CATEGORIES.names]


def port(pairs):
    """One loop over the detections of each class."""
    result = []
    for identifier in CATEGORIES.ids:
        objects = []
        images, scores, rows = [], [], []
        for number, (truth, prediction) in enumerate(pairs):
            of_class = truth.category == identifier
            flags = truth.attributes["difficult"][of_class]
            objects.append((truth.boxes()[of_class], flags, np.zeros(len(flags), bool)))
            found = prediction.category == identifier
            images.append(np.full(np.count_nonzero(found), number))
            scores.append(prediction.score[found])
            rows.append(prediction.boxes()[found])
        order = np.argsort(-np.concatenate(scores), kind="stable")
        images, rows = np.concatenate(images)[order], np.concatenate(rows)[order]
        right, wrong = np.zeros(len(rows)), np.zeros(len(rows))
        for position, (number, box) in enumerate(zip(images, rows, strict=True)):
            boxes, difficult, taken = objects[number]
            highest = -np.inf
            if len(boxes):
                sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2]) + 1
                shared = np.maximum(sides, 0).prod(1)
                area = (box[2:] - box[:2] + 1).prod() + (boxes[:, 2:] - boxes[:, :2] + 1).prod(1) - shared
                best = int(np.argmax(shared / area))
                highest = (shared / area)[best]
            if highest < 0.5:
                wrong[position] = 1
            elif not difficult[best]:
                right[position], wrong[position] = not taken[best], taken[best]
                taken[best] = True
        right, wrong = np.cumsum(right), np.cumsum(wrong)
        recall = np.concatenate([[0], right / sum((~flags).sum() for _, flags, _ in objects), [1]])
        precision = np.concatenate([[0], right / np.maximum(right + wrong, 1e-300), [0]])
        precision = np.maximum.accumulate(precision[::-1])[::-1]
        result.append(float((np.diff(recall) * precision[1:]).sum()))
    return result


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    pairs = made_up(given.images)
    ours(pairs[:2])  # compiles
    assert np.allclose(ours(pairs), port(pairs), rtol=0, atol=1e-9)
    times = {ours: [], port: []}
    for _ in range(given.repeats):
        for each, taken in times.items():
            start = time.perf_counter()
            each(pairs)
            taken.append(time.perf_counter() - start)
    mine, theirs = (statistics.median(taken) for taken in times.values())
    print(f"{given.images} images, 100 detections each: everymask {mine:.2f} s, port of the devkit {theirs:.2f} s")
    print(f"ratio {theirs / mine:.1f}")


if __name__ == "__main__":
    main()
