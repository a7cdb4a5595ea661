"""ROI sets of ImageJ and Fiji: a zip of regions for each image, for the ROI Manager. Export only.

A region is a segment: a rectangle (boxes), a polygon, or, with holes or several parts, a composite. It has the class as
its name and in its properties, the position of the class as its group and the colour of the class as its stroke.
Coordinates are ImageJ's own, which are ours: (0, 0) is the top left corner of the top left pixel.

The files are made by the package roifile (extra ``microscopy``); the layout is that of ``ij/io/RoiEncoder.java``.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from everymask.errors import InputError
from everymask.files import atomic_write
from everymask.formats.description import Description, Feature
from everymask.formats.exporting import check_relative
from everymask.types import Categories, Dataset, LabelMap, Masks, Polygon, Sample, Segments, Task

if TYPE_CHECKING:
    from roifile import ImagejRoi

__all__ = ["DESCRIPTION", "recognise", "write"]

DESCRIPTION = Description(
    summary="ImageJ ROI sets: regions for the ROI Manager of ImageJ and Fiji (export only)",
    layout="name.zip of regions for each image; the images are not copied",
    tasks=frozenset({Task.INSTANCE, Task.DETECTION}),
    carries=frozenset(
        {
            Feature.BACKGROUND,
            Feature.CLASSES,
            Feature.MASKS,
            Feature.POINTS,
            Feature.HOLES,
            Feature.PARTS,
            Feature.OVERLAP,
            Feature.OBJECTS,
            Feature.BOXES,
            Feature.SCORES,
            Feature.COLOURS,
            Feature.VOLUMES,
        }
    ),
    attributes=frozenset(),
)

_MOVE, _LINE, _CLOSE = 0.0, 1.0, 4.0
"""Steps of a path, as numbers of `java.awt.geom.PathIterator`."""
# Names are files in the zip, and UTF-16 of two bytes a character in the region.
_UNSAFE = re.compile(r'[\x00-\x1f/\\:*?"<>|]|[^\x00-\uffff]')


def recognise(path: Path) -> bool:
    """No: what is exported is not read again."""
    return False


def write(dataset: Dataset, target: Path) -> None:
    """Writes a zip of regions for each annotated image, called like it; of a volume, a region for each plane.

    Parts of an object that overlap are united, since ImageJ leaves out what two parts of a composite cover. Segments
    without pixels are left out: ImageJ takes a region without area for one of the whole image.

    Args:
        dataset: Segments of any geometry, boxes included.
        target: The folder.

    Raises:
        InputError: A sample has tags of the whole image, or the package roifile is missing.
    """
    try:
        import roifile as _  # noqa: F401 - told now, not after the first image
    except ImportError as error:
        raise InputError("ROI sets need the package roifile; run: pip install 'everymask[microscopy]'") from error
    for sample in dataset:
        if sample.segments is None:
            continue
        name = check_relative(sample.name, "name of a sample")
        with (
            atomic_write(target / f"{name}.zip") as temporary,
            zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive,
        ):
            for number, roi in enumerate(_regions(sample, sample.segments, dataset.categories), 1):
                roi.name = f"{number:04d}-{roi.name}"
                archive.writestr(f"{roi.name}.roi", roi.tobytes())


def _regions(sample: Sample, segments: Segments, categories: Categories) -> Iterator[ImagejRoi]:
    """The regions of an image, or of the planes of a volume."""
    if len(segments) and not segments.has_boxes:
        raise InputError(f"{sample.name} has tags of the whole image, which have no outline; write cvat instead")
    positions = categories.indices(segments.category)
    colours = categories.colours()
    for plane, i, roi in _shapes(segments):
        position = int(positions[i])
        category = categories[position]
        properties = {"class": category.name, "segment": str(i + 1)}
        if segments.score is not None:
            properties["score"] = repr(float(segments.score[i]))
        roi.name = _UNSAFE.sub("_", category.name)
        roi.props = "".join(f"{key}: {_UNSAFE.sub('_', value)}\n" for key, value in properties.items())
        # A group is one byte in files that older versions read; 0 is none.
        roi.group = position + 1 if position < 255 else 0
        roi.stroke_color = b"\xff" + bytes(colours[position].tolist())
        if plane is not None:
            roi.position = plane + 1
        yield roi


def _shapes(segments: Segments) -> Iterator[tuple[int | None, int, ImagejRoi]]:
    """Plane (None in an image), number of the segment, and its region."""
    if not len(segments):
        return
    if isinstance(segments.geometry, LabelMap) and segments.geometry.ids.ndim == 3:
        for plane, ids in enumerate(segments.geometry.ids):
            flat = Segments(ids.shape, segments.category, LabelMap(ids))
            for i, parts in enumerate(flat.polygons().parts):
                if parts:
                    yield plane, i, _outline(parts)
        return
    boxes = segments.boxes()
    outlines = ((),) * len(segments) if segments.geometry is None else segments.polygons().parts
    for i, parts in enumerate(outlines):
        if len(parts) > 1:
            parts = _united(parts, (segments.size[0], segments.size[1]))
        if parts:
            yield None, i, _outline(parts)
        elif (boxes[i, 2:] > boxes[i, :2]).all():
            yield None, i, _rectangle(*boxes[i].tolist())


def _united(parts: tuple[Polygon, ...], size: tuple[int, int]) -> tuple[Polygon, ...]:
    """The parts of an object, or, where any overlap, the outlines of the pixels that they cover together."""
    whole = Segments.from_polygons(size, [parts])
    alone = Segments.from_polygons(size, [[part] for part in parts])
    if int(alone.areas().sum()) == int(whole.areas()[0]):
        return parts
    masks = whole.rles()
    return Segments(size, [1], Masks(size, masks.counts, masks.offsets)).polygons().parts[0]


def _outline(parts: tuple[Polygon, ...]) -> ImagejRoi:
    """A polygon, or a composite of several rings."""
    from roifile import ROI_OPTIONS, ROI_TYPE, ImagejRoi

    rings = [ring for part in parts for ring in (part.exterior, *part.holes)]
    if len(rings) == 1:
        whole = (rings[0] == np.round(rings[0])).all()
        roi = ImagejRoi.frompoints(rings[0].astype(np.int32) if whole else rings[0])
        roi.roitype = ROI_TYPE.POLYGON
        return roi
    path: list[float] = []
    for ring in rings:
        for step, (x, y) in enumerate(ring.tolist()):
            path += [_LINE if step else _MOVE, x, y]
        path.append(_CLOSE)
    points = np.concatenate(rings)
    (left, top), (right, bottom) = np.floor(points.min(axis=0)), np.ceil(points.max(axis=0))
    return ImagejRoi(
        roitype=ROI_TYPE.RECT,  # a composite is a rectangle with a path
        options=ROI_OPTIONS.OVERLAY_LABELS,
        left=int(left),
        top=int(top),
        right=int(right),
        bottom=int(bottom),
        shape_roi_size=len(path),
        multi_coordinates=np.array(path, np.float32),
    )


def _rectangle(x0: float, y0: float, x1: float, y1: float) -> ImagejRoi:
    from roifile import ROI_OPTIONS, ROI_TYPE, ImagejRoi

    edges: dict[str, Any] = {"left": round(x0), "top": round(y0), "right": round(x1), "bottom": round(y1)}
    if (edges["left"], edges["top"], edges["right"], edges["bottom"]) != (x0, y0, x1, y1):
        edges |= {
            "options": ROI_OPTIONS.SUB_PIXEL_RESOLUTION,
            "xd": x0,
            "yd": y0,
            "widthd": x1 - x0,
            "heightd": y1 - y0,
        }
    return ImagejRoi(roitype=ROI_TYPE.RECT, **edges)
