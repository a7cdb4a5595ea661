"""The doctor finds each mistake that data sets are known for, names the image and says what mends it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from everymask.report.inspection import bars, inspect_dataset, sheet
from everymask.types import Categories, Category, Dataset, Masks, Polygon, Sample, Segments, Task

CELL = Categories(["cell"])


def picture(seed: int, size: tuple[int, int] = (48, 64)) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 255, (*size, 1)).astype(np.uint8)


def dataset(
    samples: list[tuple[str, NDArray[Any], Segments | None]], categories: Categories = CELL, splits: str = ""
) -> Dataset:
    made = [
        Sample(
            name,
            lambda image=image: image,
            None if segments is None else lambda segments=segments: segments,
            extra={"split": splits[i]} if splits else {},
        )
        for i, (name, image, segments) in enumerate(samples)
    ]
    return Dataset.of(made, categories, frozenset({Task.INSTANCE}))


def square(x: float = 10, side: float = 8, size: tuple[int, int] = (48, 64), **columns: Any) -> Segments:
    points = np.array([[x, 10], [x + side, 10], [x + side, 10 + side], [x, 10 + side]], float)
    return Segments.from_polygons(size, [[Polygon(points)]], 1, **columns)


def found(data: Dataset) -> dict[str, dict[str, Any]]:
    return {each["kind"]: each for each in inspect_dataset(data)["findings"]}


def test_a_sound_data_set_has_no_findings() -> None:
    assert found(dataset([(f"im{i}", picture(i), square(10 + i)) for i in range(4)])) == {}


def test_copies_within_a_part_and_across_parts() -> None:
    same = [("a", picture(0), square()), ("b", picture(0), square()), ("c", picture(1), square())]
    assert found(dataset(same))["duplicates"]["images"] == ["a = b"]
    leaking = found(dataset(same, splits="xyx"))
    assert leaking["split leak"]["images"] == ["a = b"] and "duplicates" not in leaking


def test_copies_that_were_compressed_anew() -> None:
    rows, columns = np.indices((48, 64))
    image = (90 + 60 * np.sin(rows / 5) * np.cos(columns / 7) + columns)[..., None].astype(np.uint8)
    noisy = image.copy()
    noisy[::9, ::11] += 1
    other = (200 - image.astype(int) // 2).astype(np.uint8)
    findings = found(dataset([("a", image, square()), ("b", noisy, square()), ("c", other, square())]))
    assert findings["duplicates"]["images"] == ["a = b"] and "nearly" in findings["duplicates"]["text"]


@pytest.mark.parametrize("value", [1, 255])
def test_masks_of_zero_and_one_value(value: int) -> None:
    mask = np.zeros((48, 64), np.uint8)
    mask[4:9, 5:30] = value
    segments = [Segments.from_label_map(mask, attributes={"label": np.array([value])}) for _ in range(3)]
    samples = [(f"im{i}", picture(i), each) for i, each in enumerate(segments)]
    assert "kind semantic" in found(dataset(samples))["one mask"]["fix"]
    several = np.kron(np.arange(4).reshape(2, 2), np.ones((24, 32), int))
    assert "one mask" not in found(dataset([*samples, ("more", picture(9), Segments.from_label_map(several))]))


def test_boxes_and_objects() -> None:
    size = (48, 64)
    outside = Segments(size, [1, 1], box=[[60, 5, 70, 15], [0, 0, 5, 5]])
    double = Segments(size, [1, 1], box=[[6, 5, 20, 15], [6, 5, 20, 15]])
    masks = np.zeros((3, *size), bool)
    masks[0, 4, 4:6] = True
    masks[1, 10:20, 10:20] = True
    tiny = Segments.from_masks(masks)
    samples = [("out", picture(0), outside), ("double", picture(1), double), ("tiny", picture(2), tiny)]
    findings = found(dataset(samples))
    assert findings["outside"]["images"] == ["out"] and findings["outside"]["details"] == ["1 by up to 6 pixels"]
    assert findings["double objects"]["images"] == ["double"]
    assert findings["tiny objects"]["images"] == ["tiny"] and findings["empty objects"]["images"] == ["tiny"]
    assert all(each["fix"] for each in findings.values())


def test_polygons_that_fill_their_holes() -> None:
    def ring(x: float, y: float, side: float) -> Polygon:
        return Polygon(np.array([[x, y], [x + side, y], [x + side, y + side], [x, y + side]], float))

    holed = Segments.from_polygons((48, 64), [[ring(5, 5, 30), ring(12, 12, 6)]])
    apart = Segments.from_polygons((48, 64), [[ring(5, 5, 10), ring(20, 20, 6)]])
    corner = Polygon(np.array([[0, 0], [40, 0], [40, 5], [5, 5], [5, 40], [0, 40]], float))
    nested_box = Segments.from_polygons((48, 64), [[corner, ring(20, 20, 6)]])  # in its box, but not inside it
    samples = [("holed", picture(0), holed), ("apart", picture(1), apart), ("corner", picture(2), nested_box)]
    assert found(dataset(samples))["lost holes"]["images"] == ["holed"]


def test_coordinates_and_ids_that_are_off_by_one() -> None:
    size = (48, 64)
    ones = [[1, 1, 64, 48], [1, 4, 9, 9], [5, 1, 64, 20], [1, 1, 64, 30]]
    assert (
        "count from 1" in found(dataset([("a", picture(0), Segments(size, [1] * 4, box=ones))]))["off by one"]["text"]
    )
    below = [[-1, 4, 9, 9], [3, -1, 30, 20]]
    findings = found(dataset([("a", picture(0), Segments(size, [1, 1], box=below))]))
    assert "begin at -1" in findings["off by one"]["text"]
    names = Categories(Category(i, name) for i, name in enumerate(("cat", "dog", "cow")))
    boxes = [[3, 4, 9, 9], [12, 4, 19, 9]]
    findings = found(dataset([("a", picture(0), Segments(size, [1, 2], box=boxes))], names))
    assert "id 0 ('cat') never occurs" in findings["off by one"]["text"]


def test_sizes_void_and_files_that_cannot_be_read() -> None:
    ids = np.full((48, 64), -1, np.int32)
    ids[:10, :10] = 1
    void = Segments.from_label_map(ids)
    findings = found(dataset([("void", picture(0), void), ("size", picture(1, (40, 64)), square())]))
    assert findings["void"]["images"] == ["void"] and findings["void"]["details"] == ["97%"]
    assert findings["size"]["details"] == ["image 40 x 64, annotation 48 x 64"]


def test_counts_by_part_and_histograms() -> None:
    samples = [("a", picture(0), square()), ("b", picture(1), square(side=16)), ("c", picture(2), square())]
    report = inspect_dataset(dataset(samples, splits="xxy"))
    assert report["splits"] == {"x": 2, "y": 1} and report["categories"][0]["splits"] == {"x": 2, "y": 1}
    assert report["areas"] == {"64": 2, "128": 0, "256": 1}
    assert [len(bar) for _, _, bar in bars({"a": 8, "b": 4, "c": 0}, width=8)] == [8, 4, 0]


def test_annotations_alone() -> None:
    def forbidden() -> NDArray[np.uint8]:
        raise AssertionError("an image was read")

    sample = Sample("a", forbidden, lambda: square())
    data = Dataset.of([sample], CELL, frozenset({Task.INSTANCE}))
    assert inspect_dataset(data, images=False)["sizes"] == {"48x64": 1}


def test_the_sheet_shows_every_kind_of_annotation() -> None:
    masks = Masks.join((48, 64), [np.array([100, 50, 48 * 64 - 150], np.uint32)])
    volume = np.zeros((5, 48, 64), np.int32)
    volume[2, 5:20, 5:20] = 1
    samples = [
        ("polygons", picture(0), square()),
        ("masks", picture(1), Segments((48, 64), [1], masks)),
        ("boxes", picture(2), Segments((48, 64), [1], box=[[3, 4, 20, 30]])),
        ("tag", picture(3), Segments((48, 64), [1])),
        ("volume", np.zeros((5, 48, 64, 1), np.uint8), Segments.from_label_map(volume)),
        ("none", picture(4), None),
    ]
    drawn = sheet(dataset(samples), tile=100)
    assert drawn.ndim == 3 and drawn.dtype == np.uint8
    plain = sheet(dataset([(name, image, None) for name, image, _ in samples]), tile=100)
    assert plain.shape == drawn.shape
    assert (drawn != plain).any()
