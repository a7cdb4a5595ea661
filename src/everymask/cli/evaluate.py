"""`everymask evaluate`: scores of a model, or of predictions that were made before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from everymask.cli.application import Common
from everymask.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from everymask.types import Dataset, Sample, Segments

EXAMPLES = """\
  everymask evaluate --data val/ --model nuclei
  everymask evaluate --data val/ --model runs/nuclei/model.safetensors --out report/
  everymask evaluate --data val/ --predictions results/labels --out scores.json
  everymask evaluate --data instances_val.json --predictions results.json --protocol coco_boxes
  everymask evaluate --data VOC2012 --predictions results/ --protocol voc --option.interpolation 11"""


def command(
    *,
    data: Path,
    model: str | None = None,
    predictions: Path | None = None,
    protocol: str = "auto",
    option: dict[str, str] | None = None,
    split: str | None = None,
    reading: dict[str, str] | None = None,
    skip_missing: bool = False,
    format: str | None = None,
    tta: bool | Literal["mirror", "flips", "dihedral", "multiscale"] = False,
    suppression: Literal["hard", "linear", "gaussian"] | None = None,
    class_agnostic: bool | None = None,
    score: float = 0.0,
    tile: int = 1024,
    stacks: Literal["joined", "views"] = "joined",
    anisotropy: float = 1.0,
    out: Path | None = None,
    common: Common = Common(),  # noqa: B008 - frozen, and cyclopts reads the default
) -> None:
    """Score a model, or a folder of predictions, against annotated images.

    Args:
        data: Annotated images: a folder or file in any supported format.
        model: Name that `everymask models` lists, or a model file.
        predictions: Instead of a model: folder of label images with the names of the images, COCO results or instances
            (JSON), panoptic JSON with PNGs, Cityscapes PNGs, VOC or YOLO text, a CTC result folder.
        protocol: auto picks by what the data and the predictions hold. Others: matching, semantic, coco_boxes,
            coco_masks, coco_boundary, voc, panoptic, cityscapes, boundary, surface, ctc, classification.
        option: Options of the protocol, such as --option.interpolation 11 for voc.
        split: Part of the data, such as val; without it all parts.
        reading: Options of the format of the data, such as --reading.images FOLDER.
        skip_missing: Leave out images that the annotations name and that are not there.
        format: Format of the data, where it is not recognised.
        tta: Average over copies of each image: dihedral (eight flips and turns; also without a name), flips, mirror, or
            multiscale (three scales, mirrored) for semantic methods.
        suppression: Of models that find boxes, what becomes of one that a better one overlaps: hard drops it, linear
            and gaussian (soft-NMS) lower its score. Default: as it was trained.
        class_agnostic: Of models that find boxes, whether those of different classes suppress one another, too.
        score: Of a model, objects of lower scores are left out. Average precision ranks them and wants all; matching
            and others count every object of a model that finds boxes, however improbable.
        tile: Side in pixels of the tiles in which larger images are predicted.
        stacks: How a model of images predicts volumes: joined (plane by plane, objects joined where they overlap) or
            views (seen from three sides; Cellpose).
        anisotropy: Distance between planes in pixels, for --stacks views.
        out: A .json file for the figures, or a folder for a report with plots, tables and the worst images.
    """
    from everymask.cli.output import Output
    from everymask.cli.predictions import open_predictions
    from everymask.cli.suppression import set_suppression
    from everymask.cli.values import option_values
    from everymask.files import check_writable_folder
    from everymask.metrics import METRICS, metric_class
    from everymask.metrics.evaluate import evaluate, evaluate_files, protocol_for
    from everymask.types import Task

    if (model is None) == (predictions is None):
        raise InputError("evaluate needs either --model NAME_OR_FILE or --predictions PATH")
    if model is None and (suppression is not None or class_agnostic is not None or score):
        raise InputError("--suppression, --class-agnostic and --score change how a model predicts; leave them out")
    if protocol != "auto" and protocol not in METRICS:
        from everymask.errors import unknown_name

        raise unknown_name("protocol", protocol, ["auto", *METRICS])
    output = Output(common)
    settings = option_values(option)
    opening = Opening(data, format, split, option_values(reading), skip_missing, needs_images=model is not None)
    dataset = opening.dataset({} if protocol == "auto" else metric_class(protocol).reading)
    as_file = out is not None and out.suffix == ".json"
    predict: Callable[[Sample], Segments]
    preferred = None
    if model is not None:
        from everymask.model import Model

        loaded = Model.load(model)
        set_suppression(loaded, model, suppression, class_agnostic)
        predict = loaded.predictions_for(dataset, tile=tile, tta=tta, stacks=stacks, anisotropy=anisotropy, score=score)
        tasks = loaded.tasks
        preferred = type(loaded.method).metric[0]
    else:
        predict, tasks = open_predictions(predictions or Path(), dataset), None
    if protocol == "auto":
        protocol = protocol_for(dataset, predict, tasks, preferred)
        if dataset.format in metric_class(protocol).reading:
            dataset = opening.dataset(metric_class(protocol).reading)
    if protocol == "matching" and tasks is not None and Task.DETECTION in tasks and not score:
        output.note("matching counts every box, however improbable; --score 0.5 leaves out the improbable ones")
    if out is not None:
        check_writable_folder(out.parent if as_file else out)  # before the work, not after it
    evaluation = None
    if predictions is not None and not skip_missing:
        evaluation = evaluate_files(dataset, predictions, protocol, settings)
    if evaluation is None:
        with output.progress("evaluating") as progress:
            evaluation = evaluate(
                dataset,
                predict,
                protocol=protocol,
                options=settings,
                tasks=tasks,
                from_files=model is None,
                progress=progress,
            )

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


@dataclass(frozen=True)
class Opening:
    """How the truth is opened.

    Args:
        path: The data set.
        format: Its format, if it is given.
        split: Its part.
        options: Options of the format that the user gave.
        skip_missing: Leave out samples without an image.
        needs_images: The images will be read; otherwise they may be absent.
    """

    path: Path
    format: str | None
    split: str | None
    options: Mapping[str, Any]
    skip_missing: bool
    needs_images: bool

    def dataset(self, reading: Mapping[str, Mapping[str, Any]]) -> Dataset:
        """The truth, opened as a protocol wants it (`Metric.reading`)."""
        from everymask.formats import has_option, open_dataset, recognise

        name = self.format or recognise(self.path)
        options = {**reading.get(name, {}), **self.options}
        if self.skip_missing:
            options["missing_images"] = "skip"
        elif not self.needs_images and has_option(name, "missing_images"):
            options.setdefault("missing_images", "keep")
        return open_dataset(self.path, format=self.format, split=self.split, **options)
