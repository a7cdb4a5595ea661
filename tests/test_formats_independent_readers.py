"""What is written is read by other people's programs, or by the rules of a format's own documentation.

Other files test the rest: pycocotools on COCO, hotcoco on panoptic and semantic masks, cityscapesScripts,
py-ctcmetrics, torchvision on VOC and folders of classes, roifile.
"""

from __future__ import annotations

import base64
import io
import json
import shutil
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conversion_cases import PLAIN, SIZE, boxes, dataset, masks, parted_polygons, plain_polygons
from defusedxml.ElementTree import parse
from PIL import Image, ImageDraw
from scipy.ndimage import binary_dilation

from everymask.formats import open_dataset, write_dataset
from everymask.types import Dataset, Polygons, Segments, Task

NAMES = ["a", "b", "ä c"]


@pytest.fixture(scope="module")
def hotcoco() -> ModuleType:
    return pytest.importorskip("hotcoco", reason="hotcoco is the independent reader")


def outlined(seed: int) -> Dataset:
    """Polygons of one ring."""
    rng = np.random.default_rng(seed)
    made = [Segments(SIZE, rng.choice(PLAIN.ids, n), plain_polygons(rng, n, digits=2)) for n in (1, 4, 2)]
    return dataset(made, PLAIN, frozenset({Task.DETECTION, Task.INSTANCE}), names=NAMES)


def boxed(seed: int) -> Dataset:
    """Boxes without outlines."""
    rng = np.random.default_rng(seed)
    made = [Segments(SIZE, rng.choice(PLAIN.ids, n), None, box=boxes(rng, n) // 2 + [0, 0, 4, 3]) for n in (1, 4, 2)]
    return dataset(made, PLAIN, frozenset({Task.DETECTION}), names=NAMES)


def agrees(coco: Any, source: Dataset) -> None:
    """Asserts that a COCO object of another program has the boxes and polygons of a data set, image by image."""
    labels = {key: each["name"] for key, each in coco.cats.items()}
    names = {each.id: each.name for each in source.categories}
    files = {Path(each["file_name"]).stem: key for key, each in coco.imgs.items()}
    for sample in source:
        segments = sample.segments
        assert segments is not None
        image = coco.imgs[files[sample.name]]
        assert (image["height"], image["width"]) == SIZE
        found = [each for each in coco.anns.values() if each["image_id"] == image["id"]]
        assert [labels[each["category_id"]] for each in found] == [names[int(each)] for each in segments.category]
        given = np.array([each["bbox"] for each in found]).reshape(-1, 4)
        given[:, 2:] += given[:, :2]
        np.testing.assert_allclose(given, segments.boxes(), atol=1e-6)
        if isinstance(segments.geometry, Polygons):
            for each, (polygon,) in zip(found, segments.geometry.parts, strict=True):
                np.testing.assert_allclose(each["segmentation"], [polygon.exterior.ravel()], atol=1e-6)


@pytest.mark.parametrize("make", [outlined, boxed])
def test_cvat(hotcoco: ModuleType, make: Any, tmp_path: Path) -> None:
    source = make(0)
    write_dataset(source, tmp_path / "cvat", "cvat")
    agrees(hotcoco.COCO.from_cvat(str(tmp_path / "cvat" / "annotations.xml")), source)


def test_yolo(hotcoco: ModuleType, tmp_path: Path) -> None:
    """Boxes only, which is what this reader knows."""
    source = boxed(1)
    write_dataset(source, tmp_path / "yolo", "yolo")
    # It wants everything in one folder.
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in (tmp_path / "yolo").rglob("*.*"):
        shutil.copy(file, flat)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        agrees(hotcoco.COCO.from_yolo(str(flat), images_dir=str(flat)), source)


def test_voc(hotcoco: ModuleType, tmp_path: Path) -> None:
    """This reader takes VOC at its word: pixels count from 1, and the last one is named."""
    source = boxed(2)
    write_dataset(source, tmp_path / "voc", "voc", one_based=True)
    agrees(hotcoco.COCO.from_voc(str(tmp_path / "voc")), source)


def test_masks_of_cvat_by_its_documentation(tmp_path: Path) -> None:
    """Run lengths go along the rows of the box, beginning with background."""
    rng = np.random.default_rng(3)
    source = dataset([Segments(SIZE, [1, 2, 3], masks(rng, 3))], PLAIN, frozenset({Task.INSTANCE}), names=["a"])
    write_dataset(source, tmp_path / "cvat", "cvat")
    found = []
    for element in parse(tmp_path / "cvat" / "annotations.xml").iter("mask"):
        left, top, width, height = (int(element.attrib[key]) for key in ("left", "top", "width", "height"))
        pixels: list[bool] = []
        for position, run in enumerate(element.attrib["rle"].split(", ")):
            pixels += [position % 2 == 1] * int(run)
        mask = np.zeros(SIZE, bool)
        mask[top : top + height, left : left + width] = np.reshape(pixels, (height, width))
        found.append(mask)
    segments = source[0].segments
    assert segments is not None and np.array_equal(found, segments.masks())


def test_labelme_by_its_documentation(tmp_path: Path) -> None:
    """Keys of version 5; polygons as Pillow draws them; masks in the box between their points, both included."""
    rng = np.random.default_rng(4)
    made = [
        Segments(SIZE, [1, 2], parted_polygons(rng, 2)),
        Segments(SIZE, [3, 1], masks(rng, 2)),
        Segments(SIZE, [2, 2], None, box=boxes(rng, 2)),
    ]
    source = dataset(made, PLAIN, frozenset({Task.INSTANCE}), names=NAMES)
    write_dataset(source, tmp_path / "set", "labelme")
    assert (tmp_path / "set" / "labels.txt").read_text().split() == PLAIN.names
    names = {each.id: each.name for each in PLAIN}
    for sample in source:
        segments = sample.segments
        assert segments is not None
        file = tmp_path / "set" / f"{sample.name}.json"
        content = json.loads(file.read_text())
        assert {"version", "flags", "shapes", "imagePath", "imageData", "imageHeight", "imageWidth"} <= content.keys()
        assert Image.open(file.parent / content["imagePath"]).size == (content["imageWidth"], content["imageHeight"])
        groups: dict[Any, list[dict[str, Any]]] = {}
        for number, shape in enumerate(content["shapes"]):
            assert {"label", "points", "group_id", "shape_type", "flags", "description", "mask"} <= shape.keys()
            key = -1 - number if shape["group_id"] is None else shape["group_id"]
            groups.setdefault((shape["label"], key), []).append(shape)
        assert [label for label, _ in groups] == [names[int(each)] for each in segments.category]
        for i, shapes in enumerate(groups.values()):
            canvas = Image.new("1", SIZE[::-1])
            for shape in shapes:
                points = [tuple(each) for each in shape["points"]]
                if shape["shape_type"] == "mask":
                    with Image.open(io.BytesIO(base64.b64decode(shape["mask"]))) as crop:
                        (x0, y0), (x1, y1) = points
                        assert crop.size == (x1 - x0 + 1, y1 - y0 + 1)
                        canvas.paste(crop.convert("1"), (int(x0), int(y0)))
                elif shape["shape_type"] == "rectangle":
                    assert np.array_equal(np.ravel(points), segments.boxes()[i])
                else:
                    ImageDraw.Draw(canvas).polygon(points, fill=1)
            if segments.geometry is not None:
                ours, theirs = segments.masks()[i], np.array(canvas)
                if isinstance(segments.geometry, Polygons):
                    # Rules of drawing differ by a pixel at the edge, and Pillow draws what is thinner than one.
                    assert not (ours & ~binary_dilation(theirs, np.ones((3, 3)))).any()
                    assert int(theirs.sum()) < 1.5 * int(ours.sum()) + 60
                else:
                    assert np.array_equal(ours, theirs)


def test_the_shared_boxes_agree_with_another_reader(hotcoco: ModuleType, shared_data: Path, tmp_path: Path) -> None:
    """voc100 as CVAT and YOLO: read by us and by hotcoco, and written by us and read by hotcoco."""
    source = open_dataset(shared_data / "detection" / "voc100" / "gts" / "cvat_format")[:20]
    theirs = hotcoco.COCO.from_cvat(
        str(next((shared_data / "detection" / "voc100" / "gts" / "cvat_format").glob("*.xml")))
    )
    write_dataset(source, tmp_path / "cvat", "cvat", link_images=True)
    again = hotcoco.COCO.from_cvat(str(tmp_path / "cvat" / "annotations.xml"))
    boxes_of = {each["file_name"]: [] for each in theirs.imgs.values()}
    for coco, kept in ((theirs, boxes_of), (again, {name: [] for name in boxes_of})):
        for each in coco.anns.values():
            label = coco.cats[each["category_id"]]["name"]
            kept[coco.imgs[each["image_id"]]["file_name"]].append((label, each["bbox"]))
        if coco is again:
            wanted = {each["file_name"] for each in again.imgs.values()}
            assert {name: boxes_of[name] for name in wanted} == {name: kept[name] for name in wanted}
