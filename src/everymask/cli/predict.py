"""`everymask predict`: images and videos in; label masks, overlays and a table of measures out, or their classes."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from everymask.cli.application import Common
from everymask.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from everymask.cli.output import Output
    from everymask.predict.files import Output as FileOutput
    from everymask.predict.files import Written
    from everymask.types import Segments

EXAMPLES = """\
  everymask predict my_images/ --model nuclei --out results/
  everymask predict 'plate1/*.tif' --model runs/nuclei/model.safetensors --out results/ --tta
  everymask predict street/ --model runs/camvid/model.safetensors --out results/ --tta multiscale
  everymask predict slide.tif --model nuclei --out results/ --format rois --magnify 0.5 --no-overlay
  everymask predict street.jpg --model yolox_nano --out results/ --format coco
  everymask predict crowd.jpg --model yolox_nano --out results/ --suppression gaussian --class-agnostic
  everymask predict stack.tif --model runs/nuclei/model.safetensors --out results/ --stacks joined
  everymask predict slide.zarr --model nuclei --out results/ --format zarr
  everymask predict clip.mp4 --model yolox_nano --out results/ --every 5
  everymask predict camera:0 --model yolox_nano --out results/ --seconds 60"""

FORMATS: dict[str, tuple[FileOutput, str]] = {
    "labels": ("labels", "labels"),
    "png": ("labels-png", "labels"),
    "ome-tiff": ("ome-tiff", "labels"),
    "zarr": ("zarr", "labels"),
    "coco": ("coco", "predictions.json"),
    "rois": ("rois", "rois"),
    "geojson": ("geojson", "geojson"),
}
"""For each format what is written, and where below the output folder."""


def command(
    images: list[str],
    /,
    *,
    model: str,
    out: Path,
    weights: Path | None = None,
    format: Literal["labels", "png", "ome-tiff", "zarr", "coco", "rois", "geojson"] | None = None,
    score: float = 0.3,
    suppression: Literal["hard", "linear", "gaussian"] | None = None,
    class_agnostic: bool | None = None,
    overlay: bool = True,
    tta: bool | Literal["mirror", "flips", "dihedral", "multiscale"] = False,
    magnify: float | Literal["auto"] = 1.0,
    diameter: float | None = None,
    tile: int = 1024,
    stacks: Literal["planes", "joined", "views"] = "planes",
    anisotropy: float = 1.0,
    recursive: bool = False,
    every: int = 1,
    frames: str | None = None,
    seconds: float | None = None,
    common: Common = Common(),  # noqa: B008 - frozen, and cyclopts reads the default
) -> None:
    """Segment images and videos: label masks, overlays and a table of measures.

    Writes labels/, overlays/ and measures.csv into the output folder; other formats have other places. Images of any
    size are predicted tile by tile. A stack is predicted as a whole by models of volumes, else plane by plane unless
    --stacks says otherwise. A classifier writes classes.csv only.

    A frame of a video has the results that an image clip/000123 would have, but the overlays are one video,
    overlays/clip_overlay.mp4; frames.csv has the times. Ctrl-C ends it with all results of the frames so far. Needs
    pip install 'everymask[video]'.

    Args:
        images: Images, folders of images, patterns such as 'plate1/*.tif', or Zarr folders, which are read in pieces.
            Or video files, or camera:0 for the first camera, of which the newest frame is predicted each time: those
            that come while the network is busy are dropped, so that results are of now.
        model: Name that `everymask models` lists, or a model file. Models published by others are downloaded once.
        out: Folder for the results.
        weights: For a model published by others, a file of its weights that is there already, so that none is
            downloaded.
        format: labels (TIFF with the number of each object; the default), png (the same as PNG), ome-tiff (with the
            size of a pixel), zarr (OME-Zarr), coco (one JSON file; the default for models that find boxes), rois (zip
            for the ROI Manager of Fiji) or geojson (QuPath).
        score: Of models that find boxes, objects of lower scores are left out.
        suppression: Of models that find boxes, what becomes of one that a better one overlaps: hard drops it, linear
            and gaussian (soft-NMS) lower its score, for objects that hide one another. Default: as it was trained.
        class_agnostic: Of models that find boxes, whether those of different classes suppress one another, too.
        overlay: Write pictures with the contours over the image, or a video.
        tta: Average over copies of each image: slower, a little more accurate. dihedral (eight flips and turns; also
            without a name), flips, mirror, or multiscale (three scales, mirrored) for semantic methods.
        magnify: Factor by which images are resized for the network, if its objects were larger or smaller than these;
            auto where the method can tell. Results are in the pixels of the image.
        diameter: Instead of it, the diameter of the objects in pixels, for methods that know theirs.
        tile: Side in pixels of the tiles in which larger images are predicted; lower it if memory runs out.
        stacks: What a stack is to a model of images: planes of their own (time series), joined (a volume whose objects
            are joined where they overlap from plane to plane), or views (a volume seen from three sides; Cellpose).
        anisotropy: Distance between planes in pixels, for --stacks views.
        recursive: Take the images of subfolders, too.
        every: Of videos, predict each so many-th frame only.
        frames: Of videos, predict the frames FIRST:STOP, from 0 and without STOP; 0:100 are the first hundred, 100: are
            those behind them.
        seconds: Of videos, stop after so many seconds of it; of a camera, after that time.
    """
    from everymask.cli.output import Output
    from everymask.cli.suppression import set_suppression
    from everymask.cli.videos import frame_predictor, inputs_of, progress_of, tell_videos
    from everymask.predict.inputs import find_inputs
    from everymask.weights import check_model

    output = Output(common)
    pictures, videos, choice = inputs_of(images, every, frames, seconds)
    files = find_inputs(pictures, recursive=recursive) if pictures else []
    check_model(model)  # told before the seconds that importing torch takes

    from everymask.model import Model
    from everymask.predict.files import predict_files
    from everymask.predict.video_results import predict_videos
    from everymask.predict.volumes import check_stacks
    from everymask.report.overlay import draw_overlay, frame_drawing, suggested_magnification
    from everymask.types import Task

    with output.progress(f"downloading {model}") as told:
        loaded = Model.load(model, weights, told)
    set_suppression(loaded, model, suppression, class_agnostic)
    options: dict[str, Any] = {"tile": tile, "tta": tta, "magnification": magnify, "diameter": diameter}
    # A wrong option is told once, not for each image.
    check_stacks(loaded.predictor(**options), stacks, anisotropy)

    least = score if Task.DETECTION in loaded.tasks else 0.0

    def predict(image: NDArray[Any]) -> Segments:
        return loaded.predict(image, stacks=stacks, anisotropy=anisotropy, **options).probable(least)

    def drawn(image: NDArray[Any], segments: Segments) -> NDArray[np.uint8]:
        magnify = suggested_magnification(segments.size)
        return draw_overlay(image, segments, categories=loaded.categories, magnify=magnify)

    classifies = Task.CLASSIFICATION in loaded.tasks
    if format is None:
        format = "coco" if loaded.tasks == {Task.DETECTION} else "labels"
    elif classifies:
        raise InputError(f"{model} is a classifier, which finds no objects to write as {format}; leave out --format")
    outputs: list[FileOutput] = [FORMATS[format][0], "csv", *(["overlay"] if overlay else [])]  # type: ignore[list-item]
    if classifies:
        outputs = ["classes"]
    if videos:
        if loaded.method.dimensions == 3 or stacks != "planes":
            raise InputError("the frames of a video are images; take a model of images, and leave out --stacks")
        with progress_of(output, videos) as of_frames, _told_once(output, frames=True):
            filmed = predict_videos(
                frame_predictor(loaded, options, least),
                videos,
                out,
                choice=choice,
                outputs=outputs,
                categories=loaded.categories,
                semantic=loaded.tasks == {Task.SEMANTIC},
                overlay=frame_drawing(loaded.categories),
                progress=of_frames,
            )
        tell_videos(output, filmed, out, model, None if classifies else FORMATS[format][1])
        return
    with output.progress("predicting") as progress, _told_once(output):
        written = predict_files(
            predict,
            files,
            out,
            outputs=outputs,
            categories=loaded.categories,
            semantic=loaded.tasks == {Task.SEMANTIC},
            volumes=loaded.method.dimensions == 3 or stacks != "planes",
            overlay=drawn,
            progress=progress,
        )
    if classifies:
        _tell_classes(output, written, out / "classes.csv", model)
    else:
        _tell_objects(output, written, out, model, format, overlay)


def make_command(tokens: Sequence[str]) -> Callable[..., None]:
    """The command, if what stands behind ``--tta`` is a name or nothing of its own.

    Raises:
        InputError: It is an image, which would be taken for the name.
    """
    following = tokens[list(tokens).index("--tta") + 1 :][:1] if "--tta" in tokens else []
    names = ("mirror", "flips", "dihedral", "multiscale")
    if following and Path(following[0]).exists() and following[0] not in names:
        raise InputError(
            f"--tta takes one of {', '.join(names)}, got {following[0]!r}; put images first, or write --tta=dihedral"
        )
    return command


def _tell_objects(output: Output, written: Written, out: Path, model: str, format: str, overlay: bool) -> None:
    from everymask.cli.output import counted

    place = FORMATS[format][1]
    paths = {
        "labels": out / place if place == "labels" else None,
        "predictions": out / place if format == "coco" else None,
        "rois": out / place if format == "rois" else None,
        "geojson": out / place if format == "geojson" else None,
        "overlays": out / "overlays" if overlay else None,
        "measures": out / "measures.csv",
    }
    output.hint(f"{counted(written.segments, 'object')} in {counted(written.images, 'image')}")
    for name, path in paths.items():
        if path is not None:
            output.hint(f"  {name:<11} {path}")
    output.result({"images": written.images, "objects": written.segments, "model": model, **paths})


def _tell_classes(output: Output, written: Written, table: Path, model: str) -> None:
    from everymask.cli.output import counted

    output.rows(("class", "images"), list(written.classes.items()), f"{counted(written.planes, 'image')} by class")
    output.hint(f"  classes     {table}")
    output.result({"images": written.images, "classes": dict(written.classes), "model": model, "table": table})


@contextlib.contextmanager
def _told_once(output: Output, frames: bool = False) -> Iterator[None]:
    """Warnings of the predictor as notes; for many images alike, the same words once, of frames with any numbers."""
    from everymask.predict.videos import VideoWarning

    told: set[str] = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        text = str(message)
        words = re.sub(r"\d+", "0", text) if frames and not isinstance(message, VideoWarning) else text
        if words not in told:
            told.add(words)
            output.note(text)

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield
