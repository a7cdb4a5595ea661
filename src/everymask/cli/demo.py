"""`everymask demo`: the whole path on bundled images with bundled weights, without a network connection."""

from __future__ import annotations

import json
import math
import time
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everymask.cli.application import Common

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from everymask.cli.output import Output
    from everymask.types import Segments

EXAMPLES = """\
  everymask demo
  everymask demo --out my_demo/"""

MODEL = "nuclei"


def command(
    *,
    out: Path = Path("demo"),
    common: Common = Common(),  # noqa: B008 - frozen, and cyclopts reads the default
) -> None:
    """Try it: segment the bundled sample images and leave pictures and scores.

    Needs no network. Writes labels/, overlays/, measures.csv and contact_sheet.png into the output folder.

    Args:
        out: Folder for the results.
    """
    from everymask.cli.output import Output, counted
    from everymask.files import check_writable_folder

    output = Output(common)
    check_writable_folder(out)
    folder = Path(str(resources.files("everymask") / "assets" / "images"))
    samples = json.loads((folder / "images.json").read_text(encoding="utf-8"))
    rows, pictures = _predict_all(folder, samples, out, output)

    from everymask.report.picture import contact_sheet, save_png

    titles = [f"{row['title']}: {counted(row['objects'], 'object')}" for row in rows]
    save_png(out / "contact_sheet.png", contact_sheet(pictures, titles))
    output.rows(
        ("image", "size", "objects", "mean score", "accuracy at IoU 0.5", "seconds"),
        [
            (
                row["title"],
                row["size"],
                row["objects"],
                *(math.nan if row[key] is None else row[key] for key in ("mean_score", "accuracy")),
                round(row["seconds"], 3),
            )
            for row in rows
        ],
        f"Segmented with the bundled model {MODEL!r}",
    )
    output.hint("Accuracy is TP / (TP + FP + FN) against an annotation by experts, where the image has one.")
    output.hint(f"Look at  {out / 'contact_sheet.png'}")
    output.hint(f"         {out / 'overlays'}, {out / 'labels'} and {out / 'measures.csv'}")
    output.hint("Next     everymask predict YOUR_IMAGES/ --model nuclei --out results/")
    output.hint("         everymask train stardist --data YOUR_ANNOTATED_IMAGES/ --out runs/first")
    output.result({"model": MODEL, "out": out, "images": rows})


def _predict_all(
    folder: Path, samples: list[dict[str, Any]], out: Path, output: Output
) -> tuple[list[dict[str, Any]], list[NDArray[np.uint8]]]:
    """Predicts and writes; returns a row of figures and an overlay for each image."""
    from everymask.formats.images import read_image
    from everymask.model import Model
    from everymask.predict.files import predict_files
    from everymask.report.overlay import draw_overlay, suggested_magnification

    model = Model.load(MODEL)
    rows: list[dict[str, Any]] = []
    pictures: list[NDArray[np.uint8]] = []
    # The first prediction compiles kernels and warms caches, which is not what the table is about.
    model.predict(read_image(folder / samples[0]["file"]))

    def predict(image: NDArray[Any]) -> Segments:
        entry = samples[len(rows)]  # files are predicted in the order they are given in
        began = time.perf_counter()
        found = model.predict(image)
        seconds = time.perf_counter() - began
        rows.append(
            {
                "file": entry["file"],
                "title": entry["title"],
                "size": "x".join(map(str, found.size)),
                "objects": len(found),
                "mean_score": None if found.score is None or not len(found) else float(found.score.mean()),
                "accuracy": None if entry["truth"] is None else _accuracy(folder / entry["truth"], found),
                "seconds": seconds,
            }
        )
        return found

    def drawn(image: NDArray[Any], segments: Segments) -> NDArray[np.uint8]:
        magnify = suggested_magnification(segments.size)
        pictures.append(draw_overlay(image, segments, categories=model.categories, magnify=magnify))
        return pictures[-1]

    with output.progress("segmenting") as progress:
        predict_files(
            predict,
            [folder / each["file"] for each in samples],
            out,
            outputs=("labels", "overlay", "csv"),
            categories=model.categories,
            overlay=drawn,
            progress=progress,
        )
    return rows, pictures


def _accuracy(truth: Path, found: Segments) -> float:
    """TP / (TP + FP + FN) at IoU 0.5."""
    from everymask.formats.images import read_labels
    from everymask.metrics.matching import MatchingMetric
    from everymask.types import Categories, Segments

    metric = MatchingMetric(Categories(["object"]))
    metric.update(Segments.from_label_map(read_labels(truth)), found)
    return metric.compute()["accuracy@0.5"]
