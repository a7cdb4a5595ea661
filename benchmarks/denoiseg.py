"""DenoiSeg against a U-Net of the same build, with few annotated images of many.

    python benchmarks/denoiseg.py --data ../shared/data/dsb2018 --out runs/denoiseg [--noise 20] [--annotated 10]

Of the fluorescence images in ``train`` some are annotated, the same for both; of the others DenoiSeg gets the images.
The U-Net is DenoiSeg with alpha 0: the same network, recipe and number of steps, and all of its crops are annotated,
of DenoiSeg's half; with ``--methods unet --batch 8`` it sees as many of them as DenoiSeg. Every second image of ``val``
picks the epoch and the threshold, the rest is scored. The paper adds Gaussian noise with a standard deviation of 0, 10
and 20 grey values ("n0", "n10", "n20"), which is done here as well.
"""

from __future__ import annotations

import argparse
import csv
import json
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from everymask.formats import open_dataset
from everymask.model import Model
from everymask.types import Dataset, Sample


def fluorescence(data: Path, part: str, noise: float) -> Dataset:
    """The images of the paper's subset, as grey values with noise that depends on the name of the image alone."""
    with (data / "manifest.csv").open() as file:
        kinds = {row["id"]: row["kind"] for row in csv.DictReader(file)}
    found = open_dataset(data / part)
    chosen = [index for index, sample in enumerate(found) if kinds[Path(sample.name).name] == "fluorescence"]

    def read(index: int) -> Sample:
        sample = found[chosen[index]]

        def image() -> NDArray[Any]:
            grey = sample.image.astype(np.float32).mean(axis=2, keepdims=True)
            rng = np.random.default_rng(zlib.crc32(sample.name.encode()))
            return (grey + rng.normal(0, noise, grey.shape)).astype(np.float32)

        return replace(sample, read_image=image)

    return Dataset(read, len(chosen), found.categories, found.tasks, found.format, found.root)


def without_annotation(data: Dataset, annotated: set[int]) -> Dataset:
    """The same images, of which only some are annotated."""

    def read(index: int) -> Sample:
        sample = data[index]
        return sample if index in annotated else replace(sample, read_segments=None)

    return replace(data, read=read)


def main() -> None:
    """Train and score both, for each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train, val and manifest.csv")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--noise", type=float, default=0.0)
    parser.add_argument("--annotated", type=int, default=10)
    parser.add_argument("--steps", type=int, default=4000, help="of the optimiser")
    parser.add_argument("--base", type=int, default=32)
    parser.add_argument("--fold", type=int, default=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--batch", type=int, default=16, help="crops of a step")
    parser.add_argument("--methods", nargs="+", default=["unet", "denoiseg"], choices=["unet", "denoiseg"])
    given = parser.parse_args()
    train, val = (fluorescence(given.data, part, given.noise) for part in ("train", "val"))
    selection, test = val.subset(range(0, len(val), 2)), val.subset(range(1, len(val), 2))
    for seed in given.seeds:
        chosen = np.random.default_rng(seed).permutation(len(train))[: given.annotated].tolist()
        runs = {"unet": (0.0, train.subset(chosen)), "denoiseg": (0.5, without_annotation(train, set(chosen)))}
        for name in given.methods:
            alpha, data = runs[name]
            torch.manual_seed(seed)
            model = Model("denoiseg", train.categories, channels=1, alpha=alpha, base=given.base, fold=given.fold)
            result = model.train(
                data,
                selection,
                out=given.out / f"n{given.noise:g}-{given.annotated}-{seed}-{name}",
                epochs=10,
                steps_per_epoch=max(1, given.steps // 10),
                seed=seed,
                batch_size=given.batch,
            )
            figures = model.evaluate(test).figures
            row = {key: round(figures[key], 4) for key in ("accuracy@0.5", "accuracy@0.7", "mean_accuracy")}
            print(json.dumps({"method": name, "noise": given.noise, "seed": seed, **row, "seconds": result.seconds}))


if __name__ == "__main__":
    main()
