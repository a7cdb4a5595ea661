"""Prediction of files: images in, label files, overlays and tables out."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from everymask.errors import InputError
from everymask.files import check_writable_folder
from everymask.predict.inputs import calibration, find_inputs, read_input
from everymask.predict.outputs import ClassTable, CocoFile, MeasureTable
from everymask.predict.writing import OUTPUTS, Output, Writer, check_outputs, files_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from everymask.formats.listing import PathLike
    from everymask.predict.inputs import Pixels
    from everymask.types import Categories, Segments

__all__ = ["OUTPUTS", "Output", "Written", "output_names", "predict_files"]


@dataclass(frozen=True)
class Written:
    """What `predict_files` did.

    Args:
        images: Images predicted.
        segments: Segments found in them.
        planes: Planes predicted; more than `images` where there are stacks.
        labels: Label files written.
        classes: With the output ``classes``, how many planes have each class.
    """

    images: int
    segments: int
    planes: int
    labels: list[Path]
    classes: Mapping[str, int] = field(default_factory=dict)


def predict_files(
    predict: Callable[[NDArray[Any]], Segments],
    paths: PathLike | Iterable[PathLike],
    out: PathLike,
    *,
    outputs: Sequence[Output] = ("labels",),
    categories: Categories | None = None,
    semantic: bool = False,
    volumes: bool = False,
    overlay: Callable[[NDArray[Any], Segments], NDArray[np.uint8]] | None = None,
    recursive: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Written:
    """Predicts image files and writes what was found.

    NAME in the output files is the path of the image below the folder that holds all images, without the suffix; images
    that differ in the suffix alone keep it. A file with several planes is a series of images: it is predicted plane by
    plane, its label file is a stack in which each plane counts its objects from 1, and its overlays are NAME_0000.png
    and so on. The next image is read, and the last one written, while the network runs.

    An image that cannot be read or predicted is passed over, and told at the end; nothing is written for it.

    Args:
        predict: Segments, with the data set's category ids, of an image (H, W, C), or of a volume.
        paths: Files, folders and patterns, as for `everymask.predict.inputs.find_inputs`. Zarr images are read in
            pieces, and may be larger than memory; their segments may not.
        out: Folder for the results; made if it is absent.
        outputs: Names of `OUTPUTS`.
        categories: Names for the tables.
        semantic: Label files hold categories instead of objects.
        volumes: Files are volumes (Z, H, W, C), predicted as a whole, and an object has one number in all its planes.
        overlay: Draws segments over an image (H, W, C): (H', W', 3) uint8. Needed for the output ``overlay``.
        recursive: Take the images of subfolders, too.
        progress: Called with the number of images done and of all images.

    Raises:
        InputError: An option is wrong, no image is found, the results would overwrite an image, or a file cannot be
            written. Also at the end, when all others are done, if images could not be predicted.
    """
    check_outputs(outputs)
    if "classes" in outputs and categories is None:
        raise InputError("the table of classes needs their names; pass categories")
    if "overlay" in outputs and overlay is None:
        raise InputError("overlays need a function that draws them; pass overlay=everymask.report.draw_overlay")
    images = find_inputs(paths, recursive=recursive)
    folder = check_writable_folder(Path(out))
    names = output_names(images)
    targets = (folder / target for name in names for target in files_of(name, outputs).values())
    refuse_to_overwrite(images, targets, "image")

    totals = Counter[str]()
    labels: list[Path] = []
    failures: list[InputError] = []
    with contextlib.ExitStack() as stack:
        table, coco, classes = None, None, None
        if "csv" in outputs:
            table = stack.enter_context(MeasureTable.open(folder / "measures.csv", categories))
        if "coco" in outputs:
            coco = stack.enter_context(CocoFile.open(folder / "predictions.json", categories))
        if "classes" in outputs and categories is not None:
            classes = stack.enter_context(ClassTable.open(folder / "classes.csv", categories))
        writer = Writer(folder, outputs, semantic, categories, overlay, table, coco, classes, labels)
        background = stack.enter_context(file_threads(2))
        pending: Future[None] | None = None
        for done, (path, name, pixels) in enumerate(_read_ahead(images, names, background)):
            if progress is not None:
                progress(done, len(images))
            try:
                image = pixels.result()
                if image.ndim == 4 and "labels-png" in outputs:
                    raise InputError(f"{path} is a stack, which a PNG cannot hold; write labels as TIFF instead")
                if volumes:
                    planes: list[Any] = [_as_volume(path, image)]
                else:
                    planes = [image] if image.ndim == 3 else [image[z] for z in range(len(image))]
                found = [predict(plane) for plane in planes]
            except InputError as error:
                text = str(error)
                failures.append(error if str(path) in text else InputError(f"{path}: {text}"))
                continue
            if pending is not None:
                pending.result()
            pending = background.submit(writer.write, path, name, image, found)
            totals.update(images=1, planes=len(planes), segments=sum(map(len, found)))
        if pending is not None:
            pending.result()
        if len(failures) == len(images):
            raise InputError(_told(failures, len(images), folder))  # in here, so that no empty tables are left
    if progress is not None:
        progress(len(images), len(images))
    if failures:
        raise InputError(_told(failures, len(images), folder))
    counts = {} if classes is None else dict(classes.counts.most_common())
    return Written(totals["images"], totals["segments"], totals["planes"], labels, counts)


def _as_volume(path: Path, image: Pixels) -> Pixels:
    """The volume in a file.

    Raises:
        InputError: The file holds a single image, or a time series.
    """
    if image.ndim == 3:
        raise InputError(f"{path} is a single image, and a volume is wanted; give stacks of planes (TIFF, Zarr)")
    if calibration(path, image).stack == "T":
        raise InputError(f"{path} is a time series, and a volume is wanted; its axis is named T and should be Z")
    return image


def output_names(images: Sequence[Path]) -> list[str]:
    """A name for each image that no other has: its path below the folder that holds all, without the suffix (.ome.tif).

    Images that differ in the suffix alone keep it.
    """
    absolute = [Path(os.path.abspath(path)) for path in images]  # noqa: PTH100 - resolving links would change names
    common = Path(os.path.commonpath([path.parent for path in absolute])) if absolute else Path()
    relative = [path.relative_to(common) for path in absolute]
    bare = [path.with_suffix("").as_posix().removesuffix(".ome") for path in relative]
    count = Counter(name.casefold() for name in bare)  # some file systems ignore case
    return [name if count[name.casefold()] == 1 else path.as_posix() for name, path in zip(bare, relative, strict=True)]


def refuse_to_overwrite(inputs: Iterable[Path], targets: Iterable[Path], kind: str) -> None:
    """An input in the output folder might be a result of this very run.

    Args:
        inputs: Files to read.
        targets: Files to write.
        kind: What an input is called.

    Raises:
        InputError: One is.
    """
    read = {path.resolve() for path in inputs}
    for target in targets:
        if target.resolve() in read:
            raise InputError(f"the result would overwrite the {kind} {target}; choose another --out")


@contextlib.contextmanager
def file_threads(number: int) -> Iterator[ThreadPoolExecutor]:
    """Threads to read and write; after an error, work not yet begun is dropped."""
    pool = ThreadPoolExecutor(number, thread_name_prefix="everymask-files")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _read_ahead(
    images: Sequence[Path], names: Sequence[str], pool: ThreadPoolExecutor
) -> Iterator[tuple[Path, str, Future[Pixels]]]:
    """Each image as a future, the reading of the next one already begun."""
    following = pool.submit(read_input, images[0])
    for i, (path, name) in enumerate(zip(images, names, strict=True)):
        current = following
        if i + 1 < len(images):
            following = pool.submit(read_input, images[i + 1])
        yield path, name, current


def _told(failures: Sequence[InputError], images: int, folder: Path) -> str:
    """One line about all images that failed."""
    others = f"; the results of the other {images - len(failures)} are in {folder}" if len(failures) < images else ""
    return f"{len(failures)} of {images} images could not be predicted: {reasons_of(failures)}{others}"


def reasons_of(failures: Sequence[InputError]) -> str:
    """The first few reasons in one line, and how many more there are."""
    more = f"; and {len(failures) - 5} more" if len(failures) > 5 else ""
    return "; ".join(str(each) for each in failures[:5]) + more
