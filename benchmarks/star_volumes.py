"""StarDist for volumes against the official program: distances, suppression and rendering; and what both decide.

    OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 python benchmarks/star_volumes.py [--repeats 3] [--labels mask3d.tif]

Prints the median times of both, measured in turns, and their ratio, on synthetic volumes of nuclei: one of 64 planes as
far apart as pixels with a grid of 2, one of 40 planes twice as far apart with a grid of (1, 2, 2). With ``--labels``
also how well stars of the true labels of a volume cover these. Results are compared in the same run. Suppression uses
one thread here, and all that OpenMP gives it in the official program, which takes minutes for volumes hardly larger.
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
from stardist.geometry import polyhedron_to_label, star_dist3D
from stardist.nms import non_maximum_suppression_3d_inds
from stardist.rays3d import Rays_GoldenSpiral

from everymask.ops.distance import object_probability
from everymask.ops.sphere_rays import golden_spiral, ray_distances
from everymask.ops.star_volumes import render_polyhedra, suppress_polyhedra, volume_candidates

Grid = tuple[int, int, int]


def nuclei(shape: tuple[int, int, int], count: int, anisotropy: float) -> NDArray[np.int32]:
    """Labels of that many ellipsoids with half axes of 5 to 9 pixels, touching here and there."""
    generator = np.random.default_rng(0)
    labels = np.zeros(shape, np.int32)
    spacing = np.array([anisotropy, 1.0, 1.0])
    placed = 0
    for _ in range(100 * count):
        centre, radii = generator.uniform(0, 1, 3) * shape, generator.uniform(5, 9, 3)
        axes, _ = np.linalg.qr(generator.normal(size=(3, 3)))
        reach = (9 / spacing + 2).astype(int)
        low, high = np.maximum(centre.astype(int) - reach, 0), np.minimum(centre.astype(int) + reach + 1, shape)
        offsets = np.moveaxis(np.mgrid[tuple(map(slice, low, high))], 0, -1) - centre
        inside = (((offsets * spacing) @ axes / radii) ** 2).sum(-1) < 1
        view = labels[tuple(map(slice, low, high))]
        if placed < count and inside.any() and (view[inside] > 0).mean() < 0.1:
            placed += 1
            view[inside & (view == 0)] = placed
    return labels


def prediction(
    labels: NDArray[np.int32], anisotropy: float, grid: Grid
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Targets with the blur and the noise of a network: probability (d, h, w) and distances (96, d, h, w)."""
    generator = np.random.default_rng(1)
    cells = tuple(slice(None, None, step) for step in grid)
    probability = ndimage.gaussian_filter(object_probability(labels, (anisotropy, 1, 1))[cells], 0.7)
    probability += generator.normal(0, 0.02, probability.shape).astype(np.float32)
    distances = ndimage.gaussian_filter(
        ray_distances(labels, golden_spiral(96, anisotropy)[0], grid), (0, 0.7, 0.7, 0.7)
    )
    distances *= 1 + 0.03 * generator.normal(size=distances.shape).astype(np.float32)
    return np.clip(probability, 0, 1), distances


def compare(name: str, ours: Callable[[], Any], official: Callable[[], Any], repeats: int) -> None:
    """Time both in turns after one call for warming up, and print medians, ratio and whether the results agree."""
    first, second = np.asarray(ours()), np.asarray(official())
    verdict = (
        "equal" if np.array_equal(first, second) else f"{np.count_nonzero(first != second)} of {first.size} differ"
    )
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for function, found in zip((ours, official), times, strict=True):
            start = time.perf_counter()
            function()
            found.append(time.perf_counter() - start)
    mine, theirs = (statistics.median(found) * 1e3 for found in times)
    print(f"{name:34s} ours {mine:8.2f} ms   official {theirs:9.2f} ms   ratio {theirs / mine:6.1f}   {verdict}")


def compare_volume(labels: NDArray[np.int32], anisotropy: float, grid: Grid, repeats: int) -> None:
    """All kernels for one volume of labels."""
    shape = (labels.shape[0], labels.shape[1], labels.shape[2])
    directions, faces = golden_spiral(96, anisotropy)
    rays = Rays_GoldenSpiral(96, anisotropy=(anisotropy, 1, 1))
    compare(
        "distances",
        lambda: ray_distances(labels, directions, grid),
        lambda: np.moveaxis(star_dist3D(labels, rays, grid=grid), -1, 0),
        repeats,
    )
    points, scores, lengths = volume_candidates(*prediction(labels, anisotropy, grid), 0.5, 2, grid)
    keep = suppress_polyhedra(points, scores, lengths, directions, faces, 0.4)
    print(f"{shape}, grid {grid}: {labels.max()} nuclei, {len(points)} candidates, {keep.sum()} kept")
    compare(
        "suppression",
        lambda: suppress_polyhedra(points, scores, lengths, directions, faces, 0.4),
        lambda: non_maximum_suppression_3d_inds(lengths, points, rays, scores, thresh=0.4, verbose=0).astype(bool),
        repeats,
    )
    kept = points[keep], lengths[keep], scores[keep]
    compare(
        "rendering",
        lambda: render_polyhedra(kept[0], kept[1], directions, faces, shape, kept[2]),
        lambda: polyhedron_to_label(kept[1], kept[0], rays, shape, prob=kept[2], verbose=0),
        repeats,
    )


def compare_reconstruction(path: Path, anisotropy: float) -> None:
    """How well stars at the centres of true objects cover these, by both programs."""
    import tifffile

    labels = tifffile.imread(path).astype(np.int32)
    ids = np.unique(labels[labels > 0])
    centres = np.array(ndimage.center_of_mass(labels > 0, labels, ids)).astype(int)
    own = labels[tuple(centres.T)] == ids
    ids, centres = ids[own], centres[own]
    directions, faces = golden_spiral(96, anisotropy)
    lengths = ray_distances(labels, directions)[:, *centres.T].T
    drawn = {
        "ours": render_polyhedra(centres, lengths, directions, faces, labels.shape),
        "official": polyhedron_to_label(
            lengths,
            centres,
            Rays_GoldenSpiral(96, anisotropy=(anisotropy, 1, 1)),
            labels.shape,
            prob=-np.arange(len(ids)),
            verbose=0,
        ),
    }
    for name, stars in drawn.items():
        pairs = [(stars == place, labels == number) for place, number in enumerate(ids, 1)]
        overlap = np.mean([(first & second).sum() / (first | second).sum() for first, second in pairs])
        print(f"{path.name}: mean overlap of {len(ids)} objects with their stars, {name}: {overlap:.4f}")


def main() -> None:
    """Run all comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--labels", type=Path, help="true labels of a volume, TIFF")
    parser.add_argument("--anisotropy", type=float, default=2.0, help="of that volume")
    given = parser.parse_args()
    threads = os.environ.get("OMP_NUM_THREADS", f"all {os.cpu_count()}")
    print(f"official program with {threads} threads, load {os.getloadavg()[0]:.1f}")
    compare_volume(nuclei((64, 128, 128), 300, 1.0), 1.0, (2, 2, 2), given.repeats)
    compare_volume(nuclei((40, 128, 128), 300, 2.0), 2.0, (1, 2, 2), given.repeats)
    if given.labels:
        compare_reconstruction(given.labels, given.anisotropy)


if __name__ == "__main__":
    main()
