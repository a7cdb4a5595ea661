"""Writing what was found in one image: label files, overlays, outlines, rows of tables."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from everymask.errors import InputError, unknown_name
from everymask.formats.images import write_image, write_labels
from everymask.formats.ome_tiff import write_ome_labels
from everymask.formats.zarr_arrays import write_zarr_labels
from everymask.predict.inputs import calibration
from everymask.predict.outputs import ClassTable, CocoFile, MeasureTable, label_image, measures
from everymask.types import Categories, Category, Dataset, LabelMap, Sample, Segments, Task

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from everymask.predict.inputs import Pixels

Output = Literal["labels", "labels-png", "ome-tiff", "zarr", "rois", "geojson", "overlay", "csv", "coco", "classes"]
OUTPUTS: dict[str, str] = {
    "labels": "labels/NAME.tif: object numbers (semantic methods: category ids); a stack for a stack",
    "labels-png": "labels/NAME.png: the same as PNG, for single images with up to 65,535 objects",
    "ome-tiff": "labels/NAME.ome.tif: the same as OME-TIFF, with the size of a pixel where the image has it",
    "zarr": "labels/NAME.zarr: the same as OME-Zarr, written in pieces",
    "rois": "rois/NAME.zip: outlines for the ROI Manager of ImageJ and Fiji, of the planes of a stack, too",
    "geojson": "geojson/NAME.geojson: outlines for QuPath",
    "overlay": "overlays/NAME.png: the image with the segments drawn over it",
    "csv": "measures.csv: position, size and intensity of each object",
    "coco": "predictions.json: all images in one COCO instances file with scores",
    "classes": "classes.csv: the class of each image, for classifiers",
}
"""What `predict_files` can write, and where below the output folder."""
_NEEDED = {"rois": "roifile", "zarr": "zarr"}
"""Packages that an output needs."""
_SHOWN = 4096
"""Longest side in pixels of the overlay of an image that is read in pieces."""


def check_outputs(outputs: Sequence[str]) -> None:
    """Makes sure that outputs exist, and the packages that they need.

    Raises:
        InputError: An output is unknown, or its package is missing.
    """
    for name in outputs:
        if name not in OUTPUTS:
            raise unknown_name("output", name, OUTPUTS)
        package = _NEEDED.get(name)
        if package is not None and importlib.util.find_spec(package) is None:
            raise InputError(f"the output {name} needs the package {package}; run: pip install 'everymask[microscopy]'")


def files_of(name: str, outputs: Sequence[str]) -> dict[str, str]:
    """For each output that makes a file of its own for an image, its place below the output folder.

    Args:
        name: Of the image.
        outputs: Names of `OUTPUTS`.
    """
    places = {
        "labels": f"labels/{name}.tif",
        "labels-png": f"labels/{name}.png",
        "ome-tiff": f"labels/{name}.ome.tif",
        "zarr": f"labels/{name}.zarr",
        "rois": f"rois/{name}.zip",
        "geojson": f"geojson/{name}.geojson",
        "overlay": f"overlays/{name}.png",
    }
    return {output: places[output] for output in outputs if output in places}


@dataclass(frozen=True)
class Writer:
    """Writes the results of one image; runs in a thread.

    Args:
        folder: The output folder.
        outputs: Names of `OUTPUTS`.
        semantic: Label files hold categories instead of objects.
        categories: Names for tables and outlines.
        overlay: Draws segments over an image (H, W, C).
        table: Of measures.
        coco: All images in one file.
        classes: Of images.
        labels: Gets the label files written.
    """

    folder: Path
    outputs: Sequence[str]
    semantic: bool
    categories: Categories | None
    overlay: Callable[[NDArray[Any], Segments], NDArray[np.uint8]] | None
    table: MeasureTable | None
    coco: CocoFile | None
    classes: ClassTable | None
    labels: list[Path]

    def write(self, path: Path, name: str, image: Pixels, found: list[Segments]) -> None:
        """Writes what is asked for of an image (H, W, C), or of a stack (Z, H, W, C).

        Args:
            path: The image file.
            name: Of the image in the results.
            image: Its pixels.
            found: Segments of the image, of each plane of the stack, or of the volume (Z, H, W) as a whole.
        """
        is_stack = image.ndim == 4
        volume = found[0] if len(found[0].size) == 3 else None
        planes = found
        # Of a volume labels and regions are written as a whole, the others plane by plane.
        if volume is not None:
            flat = {"geojson", "overlay", "coco"} & set(self.outputs)
            planes = [volume.plane(z) for z in range(volume.size[0])] if flat else []
        for output, place in files_of(name, self.outputs).items():
            target = self.folder / place
            if output in ("labels", "labels-png", "ome-tiff", "zarr"):
                self._write_labels(output, target, path, image, found)
                self.labels.append(target)
            elif output == "rois":
                from everymask.formats import imagej_roi

                joined = stacked(found) if is_stack and volume is None else found[0]
                imagej_roi.write(self._dataset(name, joined), self.folder / "rois")
            elif output == "geojson":
                for z, segments in enumerate(planes):
                    self._write_geojson(f"{name}_{z:04d}" if is_stack else name, segments)
        if self.table is not None and volume is not None:
            self.table.add(name, 0, volume, measures(volume, image))
        for z, segments in enumerate(planes):
            plane: Pixels = image[z] if is_stack else image
            if "overlay" in self.outputs and self.overlay is not None:
                target = self.folder / "overlays" / f"{name}{f'_{z:04d}' if is_stack else ''}.png"
                write_image(target, self.overlay(*_reduced(plane, segments)))
            if self.table is not None and volume is None:
                self.table.add(name, z, segments, measures(segments, plane))
            if self.coco is not None:
                self.coco.add(f"{name.removesuffix(path.suffix)}{path.suffix}", z, segments)
            if self.classes is not None:
                self.classes.add(name, z, segments)

    def _write_labels(self, output: str, target: Path, path: Path, image: Pixels, found: list[Segments]) -> None:
        is_stack = image.ndim == 4
        planes = [label_image(segments, self.semantic, self.categories) for segments in found]
        if planes[0].ndim == 3:
            planes = list(planes[0])
        if output == "zarr":
            write_zarr_labels(target, planes, calibration(path, image), stack=is_stack)
            return
        ids = np.stack(planes) if is_stack else planes[0]
        if output == "ome-tiff":
            write_ome_labels(target, ids, calibration(path, image))
        else:
            write_labels(target, ids)

    def _write_geojson(self, name: str, segments: Segments) -> None:
        from everymask.formats import geojson

        # QuPath draws detections faster where there are thousands; classes of pixels are regions to look at.
        kind = "annotation" if self.semantic else "detection"
        geojson.write(self._dataset(name, segments), self.folder / "geojson", object_type=kind)

    def _dataset(self, name: str, segments: Segments) -> Dataset:
        """The segments as a data set of one image, as formats take them."""
        categories = self.categories
        if categories is None:
            present = sorted({int(each) for each in segments.category})
            categories = Categories([Category(each, f"category {each}") for each in present])
        sample = Sample(name, lambda: np.zeros((*segments.size, 1), np.uint8), lambda: segments)
        return Dataset.of([sample], categories, frozenset({Task.INSTANCE}))


def stacked(found: Sequence[Segments]) -> Segments:
    """The segments of all planes of a stack (Z, H, W), each an object of its own; where they overlap, by score."""
    ids: list[NDArray[np.int32]] = []
    before = 0
    for segments in found:
        plane = segments.label_map("last" if segments.score is None else "score")
        ids.append(np.where(plane > 0, plane + before, 0).astype(np.int32))
        before += len(segments)
    scores = [each.score for each in found if each.score is not None]
    return Segments(
        (len(found), *found[0].size),
        np.concatenate([each.category for each in found]),
        LabelMap(np.stack(ids)),
        score=np.concatenate(scores) if len(scores) == len(found) else None,
    )


def _reduced(plane: Pixels, segments: Segments) -> tuple[NDArray[Any], Segments]:
    """An image to draw on and its segments: of one that is read in pieces, every n-th pixel if it is large."""
    if isinstance(plane, np.ndarray):
        return plane, segments
    step = -(-max(segments.size) // _SHOWN)
    pixels = np.asarray(plane[::step, ::step])
    if step == 1:
        return pixels, segments
    ids = segments.label_map("last" if segments.score is None else "score")[::step, ::step]
    return pixels, Segments(ids.shape, segments.category, LabelMap(np.ascontiguousarray(ids)), score=segments.score)
