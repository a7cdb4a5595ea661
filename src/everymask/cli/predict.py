"""`everymask predict`: images in; label masks, overlays and a table of measures out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from everymask.cli.application import Common

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from everymask.predict.files import Output as FileOutput
    from everymask.types import Segments

EXAMPLES = """\
  everymask predict my_images/ --model nuclei --out results/
  everymask predict 'plate1/*.tif' --model runs/nuclei/model.safetensors --out results/ --tta
  everymask predict slide.tif --model nuclei --out results/ --format coco --no-overlay"""


def command(
    images: list[str],
    /,
    *,
    model: str,
    out: Path,
    format: Literal["labels", "png", "coco"] = "labels",
    overlay: bool = True,
    tta: bool = False,
    tile: int = 1024,
    recursive: bool = False,
    common: Common = Common(),  # noqa: B008 - frozen, and cyclopts reads the default
) -> None:
    """Segment images: label masks, overlay pictures and a table of measures.

    Writes labels/, overlays/ and measures.csv into the output folder; with --format coco predictions.json instead
    of labels/. Images of any size are predicted tile by tile. A stack is predicted plane by plane.

    Args:
        images: Images, folders of images, or patterns such as 'plate1/*.tif'.
        model: Name that `everymask models` lists, or a model file.
        out: Folder for the results.
        format: labels (TIFF with the number of each object), png (the same as PNG) or coco (one JSON file).
        overlay: Write pictures with the contours over the image.
        tta: Average over eight flips and turns of each image: slower, a little more accurate.
        tile: Side in pixels of the tiles in which larger images are predicted; lower it if memory runs out.
        recursive: Take the images of subfolders, too.
    """
    from everymask.cli.output import Output, counted
    from everymask.formats.images import find_images
    from everymask.weights import find_model

    output = Output(common)
    files = find_images(images, recursive=recursive)
    find_model(model)  # told before the seconds that importing torch takes

    from everymask.model import Model
    from everymask.predict.files import predict_files
    from everymask.report.overlay import draw_overlay, suggested_magnification
    from everymask.types import Task

    loaded = Model.load(model)
    loaded.predictor(tile=tile, tta=tta)  # a wrong option is told once, not for each image

    def predict(image: NDArray[Any]) -> Segments:
        return loaded.predict(image, tile=tile, tta=tta)

    def drawn(image: NDArray[Any], segments: Segments) -> NDArray[np.uint8]:
        magnify = suggested_magnification(segments.size)
        return draw_overlay(image, segments, categories=loaded.categories, magnify=magnify)

    first: FileOutput = {"labels": "labels", "png": "labels-png", "coco": "coco"}[format]  # type: ignore[assignment]
    outputs: list[FileOutput] = [first, "csv", *(["overlay"] if overlay else [])]  # type: ignore[list-item]
    with output.progress("predicting") as progress:
        written = predict_files(
            predict,
            files,
            out,
            outputs=outputs,
            categories=loaded.categories,
            semantic=loaded.tasks == {Task.SEMANTIC},
            overlay=drawn,
            progress=progress,
        )
    paths = {
        "labels": None if format == "coco" else out / "labels",
        "predictions": out / "predictions.json" if format == "coco" else None,
        "overlays": out / "overlays" if overlay else None,
        "measures": out / "measures.csv",
    }
    output.hint(f"{counted(written.segments, 'object')} in {counted(written.images, 'image')}")
    for name, path in paths.items():
        if path is not None:
            output.hint(f"  {name:<11} {path}")
    output.result({"images": written.images, "objects": written.segments, "model": model, **paths})
