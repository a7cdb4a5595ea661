"""Prediction of folders: what is written where, and what is not."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image
from predict_toys import PLAIN, Bands, Blobs, blob_field
from scipy import ndimage

from everymask.errors import InputError
from everymask.predict.files import output_names, predict_files
from everymask.predict.outputs import label_image
from everymask.predict.predictor import Predictor
from everymask.types import Categories, Category, LabelMap, Segments

CELL = Categories([Category(7, "cell")])


def predict(image: NDArray[Any]) -> Segments:
    found = Predictor(Blobs(), PLAIN, "cpu", "float32")(image)
    return found.with_category(CELL.ids[found.category])


def save(path: Path, seed: int, size: tuple[int, int] = (60, 80)) -> NDArray[np.uint8]:
    image = (255 * blob_field(size, seed)).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return image


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_labels_measures_coco_and_overlays_of_a_folder(tmp_path: Path) -> None:
    images = {name: save(tmp_path / "in" / f"{name}.png", seed) for seed, name in enumerate(["a1", "a2", "a10"])}
    steps: list[tuple[int, int]] = []
    written = predict_files(
        predict,
        tmp_path / "in",
        tmp_path / "out",
        outputs=("labels", "labels-png", "overlay", "csv", "coco"),
        categories=CELL,
        overlay=lambda image, segments: np.repeat(image, 3, axis=-1),
        progress=lambda done, total: steps.append((done, total)),
    )
    assert steps == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert written.images == written.planes == 3
    assert files_below(tmp_path / "out") == sorted(
        [f"labels/{name}.{suffix}" for name in images for suffix in ("tif", "png")]
        + [f"overlays/{name}.png" for name in images]
        + ["measures.csv", "predictions.json"]
    )
    with (tmp_path / "out" / "measures.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    coco = json.loads((tmp_path / "out" / "predictions.json").read_text(encoding="utf-8"))
    assert coco["categories"] == [{"id": 7, "name": "cell", "supercategory": ""}]
    assert [each["file_name"] for each in coco["images"]] == ["a1.png", "a2.png", "a10.png"]  # in natural order
    assert written.segments == len(rows) == len(coco["annotations"]) > 10
    for number, (name, image) in enumerate(images.items(), 1):
        expected = predict(image)
        ids = tifffile.imread(tmp_path / "out" / "labels" / f"{name}.tif")
        assert ids.dtype == np.uint16
        np.testing.assert_array_equal(ids, expected.label_map())
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / "labels" / f"{name}.png")), ids)
        overlay = np.asarray(Image.open(tmp_path / "out" / "overlays" / f"{name}.png"))
        np.testing.assert_array_equal(overlay, np.repeat(image[..., None], 3, axis=-1))

        mine = [row for row in rows if row["image"] == name]
        index = np.arange(1, len(expected) + 1)
        assert [int(row["label"]) for row in mine] == index.tolist()
        assert {row["category"] for row in mine} == {"cell"} and {row["plane"] for row in mine} == {"0"}
        centres = np.array(ndimage.center_of_mass(ids > 0, ids, index))
        columns = {
            "area": ndimage.sum_labels(np.ones(ids.shape), ids, index),
            "centroid_y": centres[:, 0],
            "centroid_x": centres[:, 1],
            "mean_intensity_0": ndimage.mean(image, ids, index),
            "score": expected.score,
        }
        for column, values in columns.items():
            np.testing.assert_allclose([float(row[column]) for row in mine], values, rtol=1e-5)
        boxes = [[float(row[key]) for key in ("x0", "y0", "x1", "y1")] for row in mine]
        np.testing.assert_array_equal(boxes, expected.boxes())
        assert sum(each["image_id"] == number for each in coco["annotations"]) == len(expected)


def test_the_coco_file_is_what_pycocotools_reads(tmp_path: Path) -> None:
    tools = pytest.importorskip("pycocotools.coco")
    image = save(tmp_path / "in" / "x.png", 5)
    predict_files(predict, tmp_path / "in", tmp_path / "out", outputs=("coco",), categories=CELL)
    coco = tools.COCO(str(tmp_path / "out" / "predictions.json"))
    expected = predict(image)
    for i, annotation in enumerate(coco.loadAnns(coco.getAnnIds(catIds=[7]))):
        np.testing.assert_array_equal(coco.annToMask(annotation), expected.label_map() == i + 1)
        x0, y0, x1, y1 = expected.boxes()[i]
        assert annotation["bbox"] == [x0, y0, x1 - x0, y1 - y0]
        assert annotation["score"] == pytest.approx(expected.score[i])
        assert annotation["area"] == (expected.label_map() == i + 1).sum()


def test_a_file_without_objects_is_still_whole(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(np.zeros((8, 9), np.uint8)).save(tmp_path / "in" / "empty.png")
    predict_files(predict, tmp_path / "in", tmp_path / "out", outputs=("labels", "csv", "coco"), categories=CELL)
    assert json.loads((tmp_path / "out" / "predictions.json").read_text())["annotations"] == []
    header, *rows = (tmp_path / "out" / "measures.csv").read_text().splitlines()
    assert header.startswith("image,plane,label,category,score,area") and rows == []
    assert not tifffile.imread(tmp_path / "out" / "labels" / "empty.tif").any()


def test_a_stack_is_a_series_of_planes(tmp_path: Path) -> None:
    stack = np.stack([(255 * blob_field((40, 50), seed)).astype(np.uint8) for seed in range(3)])
    tifffile.imwrite(tmp_path / "movie.tif", stack, imagej=True, metadata={"axes": "TYX"})
    written = predict_files(
        predict,
        tmp_path / "movie.tif",
        tmp_path / "out",
        outputs=("labels", "overlay", "csv", "coco"),
        overlay=lambda image, segments: image,
    )
    assert (written.images, written.planes) == (1, 3)
    ids = tifffile.imread(tmp_path / "out" / "labels" / "movie.tif")
    for plane, found in zip(stack, ids, strict=True):
        np.testing.assert_array_equal(found, predict(plane).label_map())
    assert files_below(tmp_path / "out" / "overlays") == ["movie_0000.png", "movie_0001.png", "movie_0002.png"]
    with (tmp_path / "out" / "measures.csv").open(newline="") as stream:
        planes = [int(row["plane"]) for row in csv.DictReader(stream)]
    assert planes == sorted(planes) and set(planes) == {0, 1, 2}
    coco = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [each["plane"] for each in coco["images"]] == [0, 1, 2]


def test_images_of_the_same_name_do_not_overwrite_each_other(tmp_path: Path) -> None:
    names = ["one/x.png", "two/x.png", "two/x.bmp", "two/X.gif", "three.png"]
    for seed, name in enumerate(names):
        save(tmp_path / "in" / name, seed)
    found = output_names([tmp_path / "in" / name for name in names])
    assert found == ["one/x", "two/x.png", "two/x.bmp", "two/X.gif", "three"]
    predict_files(predict, [tmp_path / "in" / name for name in names], tmp_path / "out")
    assert files_below(tmp_path / "out") == sorted(f"labels/{name}.tif" for name in found)
    assert output_names([Path("alone/x.png")]) == ["x"]


def test_a_bad_image_among_good_ones_is_told_at_the_end(tmp_path: Path) -> None:
    for seed, name in enumerate(["a", "c"]):
        save(tmp_path / "in" / f"{name}.png", seed)
    (tmp_path / "in" / "b.png").write_bytes(b"\x89PNG\r\n\x1a\nnot really")
    tifffile.imwrite(tmp_path / "in" / "d.tif", np.full((5, 5), np.nan, np.float32))
    tifffile.imwrite(tmp_path / "in" / "e.tif", np.zeros((5, 5, 5), np.uint8), photometric="minisblack")
    with pytest.raises(InputError) as caught:
        predict_files(
            lambda image: predict(image) if image.shape != (5, 5, 1) else _refuse(),
            tmp_path / "in",
            tmp_path / "out",
            outputs=("labels", "csv", "coco"),
        )
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("3 of 5 images could not be predicted") and "other 2 are in" in message
    assert all(name in message for name in ("b.png", "d.tif", "e.tif: no thanks"))
    assert files_below(tmp_path / "out") == ["labels/a.tif", "labels/c.tif", "measures.csv", "predictions.json"]
    with (tmp_path / "out" / "measures.csv").open(newline="") as stream:
        assert {row["image"] for row in csv.DictReader(stream)} == {"a", "c"}


def _refuse() -> Segments:
    raise InputError("no thanks")


def test_a_failure_of_the_program_leaves_no_half_written_tables(tmp_path: Path) -> None:
    for seed in range(3):
        save(tmp_path / "in" / f"{seed}.png", seed)
    calls: list[int] = []

    def fails_at_the_third(image: NDArray[Any]) -> Segments:
        calls.append(1)
        if len(calls) == 3:
            raise ZeroDivisionError
        return predict(image)

    with pytest.raises(ZeroDivisionError):
        predict_files(fails_at_the_third, tmp_path / "in", tmp_path / "out", outputs=("labels", "csv", "coco"))
    assert set(files_below(tmp_path / "out")) <= {"labels/0.tif", "labels/1.tif"}


def test_channels_may_differ_between_images(tmp_path: Path) -> None:
    save(tmp_path / "in" / "grey.png", 0)
    image = np.stack([save(tmp_path / "other.png", seed) for seed in range(3)], -1)
    Image.fromarray(image).save(tmp_path / "in" / "rgb.png")
    predict_files(
        lambda image: predict(image[..., :1]), tmp_path / "in", tmp_path / "out", outputs=("csv",), categories=CELL
    )
    with (tmp_path / "out" / "measures.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["mean_intensity_2"] == "" for row in rows if row["image"] == "grey"} == {True}
    means = [float(row["mean_intensity_2"]) for row in rows if row["image"] == "rgb"]
    ids = predict(image[..., :1]).label_map()
    np.testing.assert_allclose(means, ndimage.mean(image[..., 2], ids, np.arange(1, ids.max() + 1)), rtol=1e-5)


def test_semantic_label_files_hold_categories() -> None:
    image = blob_field((40, 50), level=0.47)
    found = Predictor(Bands(), PLAIN, "cpu", "float32")(image)
    classes = found.semantic_map(void=-1, background=-1)
    assert set(np.unique(classes)) == {-1, 0, 1}
    known = Categories([Category(11, "a"), Category(12, "b")])
    shifted = found.with_category(found.category + 11)
    expected = np.where(classes < 0, classes + 1, classes + 11)
    void = found.label_map() < 0
    assert void.any()
    expected[void] = 255
    for categories in (known, None):
        np.testing.assert_array_equal(label_image(shifted, True, categories), expected)
    # Where 0 is a category, pixels of none must not look like it, even in an image that holds no such category.
    with_zero = Categories([Category(0, "zero"), Category(1, "one"), Category(2, "two")])
    there = np.where(classes < 0, 255, classes + 1)
    np.testing.assert_array_equal(label_image(found.with_category(found.category + 1), True, with_zero), there)
    large = Categories([Category(0, "zero"), Category(300, "many")])
    values = label_image(found.with_category(large.ids[found.category]), True, large)
    assert set(np.unique(values)) == {0, 300, 65535}


def test_overlapping_objects_are_measured_in_full_and_drawn_by_score(tmp_path: Path) -> None:
    save(tmp_path / "x.png", 0, (20, 20))
    masks = np.zeros((2, 20, 20), np.uint8)
    masks[0, 2:12, 2:12] = 1
    masks[1, 8:18, 8:18] = 1
    segments = Segments.from_masks(masks, [7, 7], score=[0.9, 0.4])
    predict_files(lambda image: segments, tmp_path / "x.png", tmp_path / "out", outputs=("labels", "csv", "coco"))
    with (tmp_path / "out" / "measures.csv").open(newline="") as stream:
        assert [row["area"] for row in csv.DictReader(stream)] == ["100", "100"]
    ids = tifffile.imread(tmp_path / "out" / "labels" / "x.tif")
    assert ((ids == 1) == (masks[0] > 0)).all() and (ids == 2).sum() == 84


@pytest.mark.parametrize(
    ("options", "message"),
    [({"outputs": ("label",)}, "labels"), ({"outputs": ("overlay",)}, "overlay=")],
)
def test_wrong_options_are_told_before_anything_is_written(tmp_path: Path, options: dict, message: str) -> None:
    save(tmp_path / "in" / "x.png", 0)
    with pytest.raises(InputError, match=message):
        predict_files(predict, tmp_path / "in", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_results_never_overwrite_the_images(tmp_path: Path) -> None:
    save(tmp_path / "labels" / "x.png", 0)
    with pytest.raises(InputError, match="would overwrite"):
        predict_files(predict, tmp_path / "labels", tmp_path, outputs=("labels-png",))


def test_a_label_map_without_scores_is_written_too(tmp_path: Path) -> None:
    save(tmp_path / "x.png", 0, (4, 4))
    ids = np.array([[0, 1, 1, -1]] * 4, np.int32)
    segments = Segments((4, 4), [7], LabelMap(ids))
    predict_files(lambda image: segments, tmp_path / "x.png", tmp_path / "out", outputs=("labels", "csv"))
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out" / "labels" / "x.tif"), np.maximum(ids, 0))
