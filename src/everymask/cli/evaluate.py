"""`everymask evaluate`: scores of a model, or of predictions that were made before."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from everymask.cli.application import Common
from everymask.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from everymask.types import Sample, Segments

EXAMPLES = """\
  everymask evaluate --data val/ --model nuclei
  everymask evaluate --data val/ --model runs/nuclei/model.safetensors --out report/
  everymask evaluate --data val/ --predictions results/labels --out scores.json"""


def command(
    *,
    data: Path,
    model: str | None = None,
    predictions: Path | None = None,
    protocol: str = "auto",
    format: str | None = None,
    tta: bool = False,
    tile: int = 1024,
    out: Path | None = None,
    common: Common = Common(),  # noqa: B008 - frozen, and cyclopts reads the default
) -> None:
    """Score a model, or a folder of predictions, against annotated images.

    Args:
        data: Annotated images: a folder or file in any supported format.
        model: Name that `everymask models` lists, or a model file.
        predictions: Instead of a model: folder of label images with the names of the images, or a COCO file (JSON).
        protocol: auto picks by what is annotated; matching compares objects, semantic compares pixels.
        format: Format of the data, where it is not recognised.
        tta: Average the predictions for eight flips and turns of each image.
        tile: Side in pixels of the tiles in which larger images are predicted.
        out: A .json file for the figures, or a folder for a report with plots, tables and the worst images.
    """
    from everymask.cli.output import Output
    from everymask.cli.predictions import open_predictions
    from everymask.files import check_writable_folder
    from everymask.formats import open_dataset
    from everymask.metrics import METRICS
    from everymask.metrics.evaluate import evaluate

    if (model is None) == (predictions is None):
        raise InputError("evaluate needs either --model NAME_OR_FILE or --predictions PATH")
    if protocol != "auto" and protocol not in METRICS:
        from everymask.errors import unknown_name

        raise unknown_name("protocol", protocol, ["auto", *METRICS])
    output = Output(common)
    dataset = open_dataset(data, format=format)
    as_file = out is not None and out.suffix == ".json"
    predict: Callable[[Sample], Segments]
    if model is not None:
        from everymask.model import Model

        loaded = Model.load(model)
        predict, tasks = loaded.predictions_for(dataset, tile=tile, tta=tta), loaded.tasks
    else:
        predict, tasks = open_predictions(predictions or Path(), dataset), None
    if out is not None:
        check_writable_folder(out.parent if as_file else out)  # before the work, not after it
    with output.progress("evaluating") as progress:
        evaluation = evaluate(dataset, predict, protocol=protocol, tasks=tasks, progress=progress)

    from everymask.report.evaluation import evaluation_json, headline, write_evaluation, write_evaluation_json

    about = {"data": str(data), "model": model, "predictions": None if predictions is None else str(predictions)}
    for each in evaluation.tables:
        output.table(each)
    output.show("   ".join(f"{name} {value}" for name, value in headline(evaluation)))
    if out is not None and as_file:
        write_evaluation_json(out, evaluation, about)
        output.hint(f"figures  {out}")
    elif out is not None:
        with output.progress("writing the report"):
            report = write_evaluation(out, evaluation, dataset, predict, about)
        output.hint(f"report   {report}")
    output.result(evaluation_json(evaluation, about))
