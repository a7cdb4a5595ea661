"""GeoJSON for QuPath: features whose rings, filled by a rule of the test's own, are the segments."""

from __future__ import annotations

import json
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from format_cases import in_memory, mask_segments, polygon_segments
from hypothesis import given, settings

from everymask.errors import InputError
from everymask.formats import open_dataset, write_dataset
from everymask.types import Categories, Category, Polygon, Segments

SIZE = (20, 30)
CLASSES = Categories([Category(1, "cell", colour=(255, 128, 0)), Category(2, "größer")])


def features(path: Path) -> list[dict[str, Any]]:
    content = json.loads(path.read_text("utf-8"))
    assert content["type"] == "FeatureCollection"
    assert all(each["type"] == "Feature" for each in content["features"])
    return content["features"]


def polygons(feature: dict[str, Any]) -> list[list[np.ndarray]]:
    """Rings of each polygon, after a check that they are closed."""
    geometry = feature["geometry"]
    parts = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
    rings = [[np.array(ring, float) for ring in part] for part in parts]
    assert all(np.array_equal(ring[0], ring[-1]) and len(ring) >= 4 for part in rings for ring in part)
    return rings


def filled(ring: np.ndarray) -> np.ndarray:
    """Pixels whose centre an odd number of edges lies left of."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    inside = np.zeros(SIZE, bool)
    for (x0, y0), (x1, y1) in pairwise(ring):
        if y0 != y1:
            inside ^= ((y0 > y) != (y1 > y)) & (x > x0 + (y - y0) / (y1 - y0) * (x1 - x0))
    return inside


@settings(deadline=None, max_examples=60)
@given(segments=mask_segments(SIZE, [1, 2]))
def test_masks_with_holes_and_parts(segments: Segments) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(in_memory([segments], CLASSES), Path(folder, "set"), "geojson")
        found = features(Path(folder, "set", "image0.geojson"))
    chosen = [i for i, mask in enumerate(segments.masks()) if mask.any()]
    for feature, mask, category in zip(found, segments.masks()[chosen], segments.category[chosen], strict=True):
        painted = np.zeros(SIZE, bool)
        for exterior, *holes in polygons(feature):
            part = filled(exterior)
            for hole in holes:
                assert not (filled(hole) & ~part).any()
                part &= ~filled(hole)
            assert not (painted & part).any()
            painted |= part
        assert np.array_equal(painted, mask)
        expected = CLASSES.by_id(int(category))
        assert feature["properties"]["classification"]["name"] == expected.name
        assert feature["properties"]["objectType"] == "annotation"


@settings(deadline=None, max_examples=30)
@given(segments=polygon_segments(SIZE, [1, 2], parts=3))
def test_polygons_keep_their_points(segments: Segments) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(in_memory([segments], CLASSES), Path(folder, "set"), "geojson")
        found = features(Path(folder, "set", "image0.geojson"))
    for feature, parts in zip(found, segments.polygons().parts, strict=True):
        for rings, part in zip(polygons(feature), parts, strict=True):
            assert np.array_equal(rings[0][:-1], part.exterior)
            assert len(rings) == 1


def test_properties(tmp_path: Path) -> None:
    columns = {"area": [3.5, 4.0], "who": ["bo", None], "done": [True, False]}
    columns["who"] = np.array(columns["who"], object)
    box = [[2, 3, 10, 12], [2.25, 3.5, 10, 12.75]]
    segments = Segments(SIZE, [1, 2], None, box=box, score=[0.5, 0.25], attributes=columns)
    write_dataset(in_memory([segments], CLASSES, names=["a/ü"]), tmp_path / "set", "geojson", object_type="detection")
    first, second = features(tmp_path / "set" / "a" / "ü.geojson")
    assert first["properties"] == {
        "objectType": "detection",
        "classification": {"name": "cell", "color": [255, 128, 0]},
        "measurements": {"area": 3.5, "score": 0.5},
        "metadata": {"who": "bo", "done": "true"},
    }
    assert second["properties"]["metadata"] == {"done": "false"}
    assert polygons(first)[0][0].tolist() == [[2, 3], [10, 3], [10, 12], [2, 12], [2, 3]]


def test_what_is_not_written(tmp_path: Path) -> None:
    square = np.array([[2.0, 2], [12, 2], [12, 12], [2, 12]])
    outlined = Segments.from_polygons(SIZE, [[Polygon(square)]])
    write_dataset(in_memory([outlined, None], CLASSES), tmp_path / "set", "geojson")
    assert [each.name for each in (tmp_path / "set").iterdir()] == ["image0.geojson"]
    with pytest.raises(InputError, match="image0 has tags of the whole image"):
        write_dataset(in_memory([Segments(SIZE, [1])], CLASSES), tmp_path / "other", "geojson")
    with pytest.raises(InputError, match="unknown object_type 'cell'"):
        write_dataset(in_memory([outlined], CLASSES), tmp_path / "other", "geojson", object_type="cell")
    with pytest.raises(InputError, match="for export only"):
        open_dataset(tmp_path / "set", "geojson")
