"""StarDist kernels against the official program (`pip install stardist`; no TensorFlow needed).

    python benchmarks/stars.py [--repeats 7] [--model FILE --images ../shared/data/dsb2018/val/images]

Prints the median times of both, measured in turns, and their ratio, on a synthetic field of nuclei: star distances of a
2048 x 2048 label image; suppression, rendering and both together for a prediction of 1024 x 1024 pixels on a grid of 2;
rendering of 10,000 objects of 8192 x 8192 pixels. With ``--model`` also suppression for what a network says of the
images of a folder. Results are compared in the same run. Ours uses one thread, the official program all that OpenMP
gives it (set OMP_NUM_THREADS=1 to compare one with one); other programs running at the same time slow OpenMP down most.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from stardist.geometry import polygons_to_label, star_dist
from stardist.nms import non_maximum_suppression_inds
from stardist.utils import edt_prob

from everymask.ops.distance import object_probability
from everymask.ops.stars import candidates, non_maximum_suppression, render_stars, star_distances


def nuclei(size: int, count: int, seed: int = 0) -> NDArray[np.int32]:
    """(size, size) labels: that many ellipses with radii of 9 to 14 pixels, touching here and there."""
    generator = np.random.default_rng(seed)
    labels = np.zeros((size, size), np.int32)
    placed = 0
    while placed < count:
        y, x = generator.uniform(20, size - 20, 2)
        first, second, angle = generator.uniform(10, 14), generator.uniform(9, 11), generator.uniform(0, np.pi)
        top, left = int(y) - 16, int(x) - 16
        rows, columns = np.mgrid[top : top + 33, left : left + 33]
        along = (columns - x) * np.cos(angle) + (rows - y) * np.sin(angle)
        across = (rows - y) * np.cos(angle) - (columns - x) * np.sin(angle)
        inside = (along / first) ** 2 + (across / second) ** 2 < 1
        view = labels[top : top + 33, left : left + 33]
        if (view[inside] > 0).mean() < 0.1:
            placed += 1
            view[inside & (view == 0)] = placed
    return labels


def prediction(labels: NDArray[np.int32], grid: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Targets with the blur and the noise of a network: probability (h, w) and distances (h, w, 32)."""
    generator = np.random.default_rng(1)
    probability = ndimage.gaussian_filter(edt_prob(labels)[::grid, ::grid], 1)
    probability += generator.normal(0, 0.02, probability.shape).astype(np.float32)
    distances = ndimage.gaussian_filter(star_dist(labels, 32, grid=(grid, grid)), (1, 1, 0.5))
    distances *= 1 + 0.05 * generator.normal(size=distances.shape).astype(np.float32)
    return np.clip(probability, 0, 1), distances


def compare(name: str, ours: Callable[[], Any], official: Callable[[], Any], repeats: int) -> None:
    """Time both in turns after one call for warming up, and print medians, ratio and whether the results agree."""
    agree = np.allclose(ours(), official(), rtol=1e-6)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for function, found in zip((ours, official), times, strict=True):
            start = time.perf_counter()
            function()
            found.append(time.perf_counter() - start)
    mine, theirs = (statistics.median(found) * 1e3 for found in times)
    verdict = "equal" if agree else "DIFFERENT"
    print(f"{name:34s} ours {mine:8.2f} ms   official {theirs:8.2f} ms   ratio {theirs / mine:6.1f}   {verdict}")


def main() -> None:
    """Run all comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--model", help="a StarDist model")
    parser.add_argument("--images", type=Path, help="folder of the images that it predicts")
    given = parser.parse_args()
    repeats = given.repeats
    threads = os.environ.get("OMP_NUM_THREADS", f"all {os.cpu_count()}")
    print(f"official program with {threads} threads, load {os.getloadavg()[0]:.1f}")

    large = nuclei(2048, 4000)
    compare("star_distances 2048^2", lambda: star_distances(large), lambda: star_dist(large), repeats)
    crop = np.ascontiguousarray(large[:256, :256])
    compare("star_distances 256^2", lambda: star_distances(crop), lambda: star_dist(crop), repeats)
    compare("object_probability 256^2", lambda: object_probability(crop), lambda: edt_prob(crop), repeats)

    labels = nuclei(1024, 1000)
    probability, distances = prediction(labels, grid=2)
    points, scores, rays = candidates(probability, distances, 0.4, grid=2)
    centres = points.astype(np.int32)
    keep = non_maximum_suppression(points, scores, rays, 0.4)
    kept = points[keep], rays[keep], scores[keep]
    print(f"1024^2, grid 2: {len(points)} candidates, {keep.sum()} kept")

    def ours_suppressed() -> NDArray[np.bool_]:
        return non_maximum_suppression(points, scores, rays, 0.4)

    def official_suppressed() -> NDArray[np.bool_]:
        return non_maximum_suppression_inds(rays, centres, scores, thresh=0.4, verbose=0).astype(bool)

    def ours_decoded() -> NDArray[np.int32]:
        kept = ours_suppressed()
        return render_stars(points[kept], rays[kept], labels.shape, scores[kept])

    def official_decoded() -> NDArray[np.int32]:
        kept = official_suppressed()
        return polygons_to_label(rays[kept], centres[kept], labels.shape, prob=scores[kept])

    compare("suppression", ours_suppressed, official_suppressed, repeats)
    compare(
        "rendering",
        lambda: render_stars(kept[0], kept[1], labels.shape, kept[2]),
        lambda: polygons_to_label(kept[1], kept[0].astype(int), labels.shape, prob=kept[2]),
        repeats,
    )
    compare("suppression and rendering", ours_decoded, official_decoded, repeats)

    points, rays = np.random.default_rng(0).uniform(0, 8192, (10_000, 2)).astype(np.int32), kept[1]
    rays = np.resize(rays, (len(points), rays.shape[1]))
    compare(
        "rendering 10,000 objects 8192^2",
        lambda: render_stars(points, rays, (8192, 8192)),
        lambda: polygons_to_label(rays, points, (8192, 8192), prob=-np.arange(len(points))),
        repeats,
    )
    if given.model and given.images:
        compare_predicted(given.model, given.images, repeats)


def compare_predicted(name: str, folder: Path, repeats: int) -> None:
    """Suppression of the candidates of all images of a folder, one image after the other."""
    import torch

    from everymask.formats.images import read_image
    from everymask.model import Model

    model = Model.load(name)
    grid, thresholds = model.method.grid, model.method.thresholds
    found = []
    for path in sorted(folder.iterdir()):
        outputs, (height, width) = model.predictor().outputs(read_image(path))
        rows, columns = -(-height // grid), -(-width // grid)
        probability = torch.sigmoid(outputs["probability"][0, 0, :rows, :columns].float()).cpu().numpy()
        distances = outputs["distances"][0, :, :rows, :columns].permute(1, 2, 0).float().cpu().numpy()
        found.append(candidates(probability, distances, thresholds["probability"], grid=grid))
    print(f"{len(found)} images: {sum(len(scores) for _, scores, _ in found)} candidates")

    def ours() -> NDArray[np.bool_]:
        return np.concatenate([non_maximum_suppression(*each, thresholds["overlap"]) for each in found])

    def official() -> NDArray[np.bool_]:
        kept = [
            non_maximum_suppression_inds(rays, points.astype(np.int32), scores, thresh=thresholds["overlap"], verbose=0)
            for points, scores, rays in found
        ]
        return np.concatenate(kept).astype(bool)

    compare("suppression, predicted", ours, official, repeats)


if __name__ == "__main__":
    main()
