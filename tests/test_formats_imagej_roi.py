"""ROI sets of ImageJ: what roifile reads in them, filled by a rule of its own, is what was written."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from format_cases import in_memory, mask_segments, polygon_segments
from hypothesis import given, settings

from everymask.errors import InputError
from everymask.formats import open_dataset, write_dataset
from everymask.types import Categories, Category, LabelMap, Segments

roifile = pytest.importorskip("roifile")

SIZE = (20, 30)
CLASSES = Categories([Category(1, "cell", colour=(255, 128, 0)), Category(2, "a/b 🦠")])


def regions(path: Path) -> list[roifile.ImagejRoi]:
    found = roifile.roiread(path)
    assert isinstance(found, list)
    return found


def filled(roi: roifile.ImagejRoi) -> np.ndarray:
    """Pixels whose centre an odd number of edges lies left of: the even-odd rule, which ImageJ's composites have."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    inside = np.zeros(SIZE, bool)
    for ring in roi.coordinates(multi=True):
        for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            if y0 != y1:
                inside ^= ((y0 > y) != (y1 > y)) & (x > x0 + (y - y0) / (y1 - y0) * (x1 - x0))
    return inside


@settings(deadline=None, max_examples=60)
@given(segments=mask_segments(SIZE, [1, 2]))
def test_masks(segments: Segments) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(in_memory([segments], CLASSES), Path(folder, "set"), "imagej_roi")
        found = regions(Path(folder, "set", "image0.zip"))
    chosen = [i for i, mask in enumerate(segments.masks()) if mask.any()]
    for roi, mask, category in zip(found, segments.masks()[chosen], segments.category[chosen], strict=True):
        assert np.array_equal(filled(roi), mask)
        assert roi.group == category
        assert roi.name.endswith("cell" if category == 1 else "a_b _")
        assert f"class: {'cell' if category == 1 else 'a_b _'}\n" in roi.props
        assert category != 1 or roi.stroke_color == b"\xff\xff\x80\x00"


@settings(deadline=None, max_examples=40)
@given(segments=polygon_segments(SIZE, [1, 2]))
def test_polygons_keep_their_points(segments: Segments) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(in_memory([segments], CLASSES), Path(folder, "set"), "imagej_roi")
        found = regions(Path(folder, "set", "image0.zip")) if len(segments) else []
    for roi, parts in zip(found, segments.polygons().parts, strict=True):
        assert roi.roitype == roifile.ROI_TYPE.POLYGON
        # ImageJ's coordinates are floats of 32 bits.
        assert np.array_equal(np.asarray(roi.coordinates(), np.float32), parts[0].exterior.astype(np.float32))


@settings(deadline=None, max_examples=40)
@given(segments=polygon_segments(SIZE, [1], parts=3))
def test_parts_that_overlap_are_united(segments: Segments) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(in_memory([segments], CLASSES), Path(folder, "set"), "imagej_roi")
        found = regions(Path(folder, "set", "image0.zip")) if len(segments) else []
    masks = segments.masks() if len(segments) else []
    for roi, mask, parts in zip(found, masks, segments.polygons().parts, strict=True):
        alone = Segments.from_polygons(SIZE, [[part] for part in parts]).masks()
        if (alone.sum(axis=0) > 1).any():
            assert np.array_equal(filled(roi), mask)
        else:
            assert len(roi.coordinates(multi=True)) == len(parts)


def test_boxes(tmp_path: Path) -> None:
    boxes = [[2, 3, 10, 12], [2.25, 3.5, 10, 12.75]]
    segments = Segments(SIZE, [1, 2], None, box=boxes, score=[0.5, 0.25])
    write_dataset(in_memory([segments], CLASSES, names=["a/ü"]), tmp_path / "set", "imagej_roi")
    whole, broken = regions(tmp_path / "set" / "a" / "ü.zip")
    assert whole.roitype == broken.roitype == roifile.ROI_TYPE.RECT
    assert [whole.left, whole.top, whole.right, whole.bottom] == boxes[0]
    assert [broken.xd, broken.yd, broken.xd + broken.widthd, broken.yd + broken.heightd] == boxes[1]
    assert "score: 0.25\n" in broken.props


def test_volumes(tmp_path: Path) -> None:
    ids = np.zeros((3, *SIZE), np.int32)
    ids[0, 2:5, 2:6] = 1
    ids[1, 3:5, 2:6] = 1
    ids[1, 10:15, 2:9] = 2
    segments = Segments(ids.shape, [1, 2], LabelMap(ids))
    write_dataset(in_memory([segments], CLASSES, size=SIZE), tmp_path / "set", "imagej_roi")
    found = regions(tmp_path / "set" / "image0.zip")
    assert [roi.position for roi in found] == [1, 2, 2]
    for roi, label in zip(found, [1, 1, 2], strict=True):
        assert np.array_equal(filled(roi), ids[roi.position - 1] == label)


def test_what_cannot_be_done(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="image0 has tags of the whole image"):
        write_dataset(in_memory([Segments(SIZE, [1])], CLASSES), tmp_path / "set", "imagej_roi")
    (tmp_path / "a.zip").touch()
    with pytest.raises(InputError, match="for export only"):
        open_dataset(tmp_path, "imagej_roi")
