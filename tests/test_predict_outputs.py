"""What microscopes and their programs exchange: OME-TIFF, ROI sets, GeoJSON, Zarr; and tables of classes."""

from __future__ import annotations

import csv
import json
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image
from predict_toys import PLAIN, Blobs, blob_field
from skimage.draw import polygon2mask

from everymask.cli import main
from everymask.errors import InputError
from everymask.formats.calibration import Calibration, calibration_of
from everymask.formats.ome_tiff import write_ome_labels
from everymask.model import Model
from everymask.predict.files import predict_files
from everymask.predict.inputs import find_inputs
from everymask.predict.outputs import measures
from everymask.predict.predictor import Predictor
from everymask.predict.writing import stacked
from everymask.types import Categories, Category, LabelMap, Segments

CELL = Categories([Category(7, "cell")])


def predict(image: Any) -> Segments:
    found = Predictor(Blobs(), PLAIN, "cpu", "float32", tile=64)(image)
    return found.with_category(CELL.ids[found.category])


def field(seed: int = 0, size: tuple[int, int] = (90, 120)) -> NDArray[np.uint8]:
    return (255 * blob_field(size, seed)).astype(np.uint8)


def run(tmp_path: Path, *outputs: str, source: str = "in") -> Path:
    predict_files(
        predict,
        tmp_path / source,
        tmp_path / "out",
        outputs=outputs,  # type: ignore[arg-type]
        categories=CELL,
        overlay=lambda image, segments: np.repeat(image, 3, axis=-1).astype(np.uint8),
    )
    return tmp_path / "out"


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


# -- OME-TIFF ----------------------------------------------------------------------------------------------------------


def test_ome_tiff_has_the_size_of_a_pixel(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    metadata = {"axes": "YX", "PhysicalSizeX": 65.0, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.07}
    tifffile.imwrite(tmp_path / "in" / "a.ome.tif", field(), ome=True, metadata=metadata)
    inch = {"resolution": (300, 300), "resolutionunit": "INCH"}
    tifffile.imwrite(tmp_path / "in" / "b.tif", field(1), **inch)
    written = run(tmp_path, "ome-tiff")
    with tifffile.TiffFile(written / "labels" / "a.ome.tif") as file:
        assert file.is_ome and file.series[0].axes == "YX"
        pixels = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]
        assert (pixels["PhysicalSizeX"], pixels["PhysicalSizeXUnit"]) == (pytest.approx(0.065), "µm")
        assert pixels["PhysicalSizeY"] == pytest.approx(0.07)
        np.testing.assert_array_equal(file.asarray(), predict(field()).label_map())
    with tifffile.TiffFile(written / "labels" / "b.ome.tif") as file:
        assert "PhysicalSizeX" not in (file.ome_metadata or "")  # dots per inch are about printing


def test_large_and_deep_ome_tiffs(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 70_000, (3, 40, 1100)).astype(np.int32)
    for stack in ("Z", "T"):
        write_ome_labels(tmp_path / "x.ome.tif", ids, Calibration(0.5, 0.25, 2.0, stack))
        with tifffile.TiffFile(tmp_path / "x.ome.tif") as file:
            assert file.series[0].axes == f"{stack}YX" and file.pages.first.is_tiled
            np.testing.assert_array_equal(file.asarray(), ids)
            assert ("PhysicalSizeZ=" in (file.ome_metadata or "")) == (stack == "Z")
        assert calibration_of(tmp_path / "x.ome.tif") == Calibration(0.5, 0.25, 2.0 if stack == "Z" else None, stack)


def test_calibration_of_other_files(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    stack = np.zeros((4, 8, 9), np.uint8)
    for unit in ("um", "\\u00B5m", "micron"):
        metadata = {"axes": "ZYX", "unit": unit, "spacing": 0.3}
        tifffile.imwrite(path, stack, imagej=True, resolution=(10, 5), metadata=metadata)
        found = calibration_of(path)
        assert (found.x, found.y, found.z) == pytest.approx((0.1, 0.2, 0.3)) and found.stack == "Z"
    tifffile.imwrite(path, stack, imagej=True, resolution=(10, 5), metadata={"axes": "TYX", "unit": "pixel"})
    assert calibration_of(path) == Calibration(stack="T")
    tifffile.imwrite(path, stack[0], resolution=(20_000, 10_000), resolutionunit="CENTIMETER")
    assert (calibration_of(path).x, calibration_of(path).y) == pytest.approx((0.5, 1.0))
    Image.fromarray(stack[0]).save(tmp_path / "x.png")
    path.write_bytes(b"II*\0nonsense")
    for other in ("x.png", "x.tif", "absent"):
        assert calibration_of(tmp_path / other) == Calibration()


# -- outlines ----------------------------------------------------------------------------------------------------------


def test_regions_for_fiji(tmp_path: Path) -> None:
    roifile = pytest.importorskip("roifile", reason="the extra microscopy is not installed")
    (tmp_path / "in").mkdir()
    tifffile.imwrite(tmp_path / "in" / "a.tif", field())
    planes = np.stack([field(1), field(2)])
    tifffile.imwrite(tmp_path / "in" / "t.tif", planes, imagej=True, metadata={"axes": "TYX"})
    written = run(tmp_path, "rois")
    expected = predict(field())
    rois = roifile.roiread(written / "rois" / "a.zip")
    assert len(rois) == len(expected) > 3 and {roi.name.partition("-")[2] for roi in rois} == {"cell"}
    for i, roi in enumerate(rois):
        if roi.multi_coordinates is None:
            drawn = polygon2mask(expected.size, roi.coordinates()[:, ::-1] - 0.5 + 1e-6)
            assert (drawn != (expected.label_map() == i + 1)).mean() < 1e-3
    found = roifile.roiread(written / "rois" / "t.zip")
    for z, plane in enumerate(planes, 1):
        assert sum(roi.position == z for roi in found) == len(predict(plane))


def test_outlines_for_qupath(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    tifffile.imwrite(tmp_path / "in" / "a.tif", field())
    tifffile.imwrite(tmp_path / "in" / "t.tif", np.stack([field(1), field(2)]), imagej=True, metadata={"axes": "TYX"})
    written = run(tmp_path, "geojson")
    names = sorted(each.name for each in (written / "geojson").iterdir())
    assert names == ["a.geojson", "t_0000.geojson", "t_0001.geojson"]
    features = json.loads((written / "geojson" / "a.geojson").read_text())["features"]
    expected = predict(field())
    assert len(features) == len(expected)
    assert {each["properties"]["objectType"] for each in features} == {"detection"}
    assert features[0]["properties"]["measurements"]["score"] == pytest.approx(expected.score[0])


def test_planes_of_a_stack_are_numbered_on() -> None:
    one = Segments((2, 3), [7, 8], LabelMap(np.array([[1, 2, 0], [-1, 0, 0]], np.int32)), score=[0.5, 0.6])
    two = Segments((2, 3), [9], LabelMap(np.array([[0, 0, 0], [0, 1, 1]], np.int32)), score=[0.7])
    joined = stacked([one, two])
    assert joined.size == (2, 2, 3) and joined.category.tolist() == [7, 8, 9]
    np.testing.assert_array_equal(joined.label_map(), [[[1, 2, 0], [0, 0, 0]], [[0, 0, 0], [0, 3, 3]]])


# -- Zarr --------------------------------------------------------------------------------------------------------------


def zarr_image(path: Path, array: NDArray[Any]) -> None:
    zarr = pytest.importorskip("zarr", reason="the extra microscopy is not installed")
    path.parent.mkdir(parents=True, exist_ok=True)
    chunks = tuple(min(50, side) for side in array.shape)
    zarr.open_array(str(path), mode="w", shape=array.shape, chunks=chunks, dtype=array.dtype)[...] = array


def test_zarr_in_is_tiff_in(tmp_path: Path) -> None:
    images = {"a": field(), "b": field(1, (70, 200))}
    for name, image in images.items():
        zarr_image(tmp_path / "in" / f"{name}.zarr", image)
        (tmp_path / "tiffs").mkdir(exist_ok=True)
        tifffile.imwrite(tmp_path / "tiffs" / f"{name}.tif", image)
    assert [each.name for each in find_inputs(tmp_path / "in")] == ["a.zarr", "b.zarr"]
    outputs = ("labels", "zarr", "csv", "coco", "overlay")
    first = run(tmp_path, *outputs)
    labels = {name: tifffile.imread(first / "labels" / f"{name}.tif") for name in images}
    rows, coco = rows_of(first / "measures.csv"), json.loads((first / "predictions.json").read_text())
    pictures = [np.asarray(Image.open(first / "overlays" / f"{name}.png")) for name in images]
    for name in images:
        np.testing.assert_array_equal(np.asarray(Image.open(first / "overlays" / f"{name}.png"))[..., 0], images[name])
        import zarr

        np.testing.assert_array_equal(
            zarr.open(str(first / "labels" / f"{name}.zarr"), mode="r")["0"][...], labels[name]
        )
    second = run(tmp_path, *outputs, source="tiffs")
    for name in images:
        np.testing.assert_array_equal(tifffile.imread(second / "labels" / f"{name}.tif"), labels[name])
    assert rows_of(second / "measures.csv") == rows and len(rows) > 5
    assert len(pictures) == 2
    again = json.loads((second / "predictions.json").read_text())
    assert again["annotations"] == coco["annotations"]


def test_stacks_and_channels_of_zarr(tmp_path: Path) -> None:
    planes = np.stack([field(seed) for seed in range(6)])
    zarr_image(tmp_path / "in" / "t.zarr", planes)
    written = run(tmp_path, "zarr", "labels")
    import zarr

    labels = zarr.open(str(written / "labels" / "t.zarr"), mode="r")["0"][...]
    np.testing.assert_array_equal(labels, np.stack([predict(plane).label_map() for plane in planes]))
    np.testing.assert_array_equal(tifffile.imread(written / "labels" / "t.tif"), labels)


def test_measures_of_an_image_read_in_pieces_are_those_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lazy:
        def __init__(self, pixels: NDArray[Any]) -> None:
            self.pixels, self.shape, self.dtype = pixels, pixels.shape, pixels.dtype

        def __getitem__(self, key: Any) -> NDArray[Any]:
            assert not isinstance(key, tuple) or len(key) == 2
            return self.pixels[key]

    monkeypatch.setattr("everymask.predict.outputs._STRIP", 17)
    image = np.random.default_rng(0).integers(0, 255, (90, 120, 2)).astype(np.uint8)
    found = predict(field())
    ids = found.label_map().copy()
    ids[ids == 3] = 0  # one that has no pixels
    label_map = Segments(found.size, found.category, LabelMap(ids))
    overlapping = Segments(found.size, found.category, found.rles())
    for segments in (label_map, overlapping):
        whole, pieces = measures(segments, image), measures(segments, Lazy(image))  # type: ignore[arg-type]
        assert list(whole) == list(pieces)
        for name, values in whole.items():
            np.testing.assert_allclose(pieces[name], values, rtol=1e-9)
    by_mask, by_label = (
        measures(overlapping, image),
        measures(Segments(found.size, found.category, found.geometry), image),
    )
    for name, values in by_label.items():
        np.testing.assert_allclose(by_mask[name], values, rtol=1e-9)


def test_zarr_among_other_images(tmp_path: Path) -> None:
    zarr_image(tmp_path / "in" / "x10.zarr", field())
    zarr_image(tmp_path / "in" / "x2.zarr", field())
    zarr_image(tmp_path / "in" / "deep" / "y.zarr", field())
    Image.fromarray(field()).save(tmp_path / "in" / "z.png")
    (tmp_path / "in" / "x2.zarr" / "thumbnail.png").write_bytes((tmp_path / "in" / "z.png").read_bytes())

    def names(found: list[Path]) -> list[str]:
        return [each.relative_to(tmp_path / "in").as_posix() for each in found]

    assert names(find_inputs(tmp_path / "in")) == ["z.png", "x2.zarr", "x10.zarr"]
    assert names(find_inputs(tmp_path / "in", recursive=True)) == ["z.png", "deep/y.zarr", "x2.zarr", "x10.zarr"]
    assert names(find_inputs([tmp_path / "in" / "x2.zarr", tmp_path / "in" / "z.png"])) == ["x2.zarr", "z.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no image"):
        find_inputs(tmp_path / "empty")


def test_a_damaged_zarr_among_good_ones_is_told_at_the_end(tmp_path: Path) -> None:
    zarr_image(tmp_path / "in" / "a.zarr", field())
    zarr_image(tmp_path / "in" / "b.zarr", field())
    zarr_image(tmp_path / "in" / "c.zarr", np.full((20, 20), np.nan, np.float32))
    chunks = [each for each in (tmp_path / "in" / "b.zarr").rglob("*") if each.is_file() and each.name[0].isdigit()]
    for each in chunks:
        each.write_bytes(b"nonsense")
    with pytest.raises(InputError, match=r"2 of 3 images could not be predicted: .*b\.zarr.*c\.zarr.*not finite"):
        run(tmp_path, "labels")
    assert [each.name for each in (tmp_path / "out" / "labels").iterdir()] == ["a.tif"]


# -- classes -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Model files of classifiers with random weights, by their number of classes."""
    import torch

    folder, made = tmp_path_factory.mktemp("models"), {}
    for count in (3, 30):
        torch.manual_seed(count)
        model = Model("classifier", [f"kind {i}" for i in range(count)], backbone="test_resnet", size=32)
        model.save(folder / f"{count}.safetensors")
        made[count] = folder / f"{count}.safetensors"
    return made


@pytest.mark.parametrize("count", [3, 30])
def test_a_classifier_writes_a_table_of_classes(
    classifiers: dict[int, Path], count: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = {}
    (tmp_path / "in").mkdir()
    for seed in range(4):
        images[f"im{seed}"] = np.random.default_rng(seed).integers(0, 255, (40, 50, 3)).astype(np.uint8)
        Image.fromarray(images[f"im{seed}"]).save(tmp_path / "in" / f"im{seed}.png")
    arguments = ["predict", str(tmp_path / "in"), "--model", str(classifiers[count]), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["classes.csv"]
    rows = rows_of(tmp_path / "out" / "classes.csv")
    assert result["images"] == len(rows) == 4 and sum(result["classes"].values()) == 4
    model = Model.load(classifiers[count])
    names = {item.id: item.name for item in model.categories}
    for row, (name, image) in zip(rows, images.items(), strict=True):
        found = model.predict(image)
        ranked = [(names[int(each)], float(score)) for each, score in zip(found.category, found.score, strict=True)]
        assert (row["image"], row["plane"], row["class"]) == (name, "0", ranked[0][0])
        assert float(row["probability"]) == pytest.approx(ranked[0][1], rel=1e-5)
        if count == 3:
            assert {each: float(row[each]) for each, _ in ranked} == pytest.approx(dict(ranked), rel=1e-4)
        else:
            for rank in range(2, 6):
                assert row[f"class_{rank}"] == ranked[rank - 1][0]
                assert float(row[f"probability_{rank}"]) == pytest.approx(ranked[rank - 1][1], rel=1e-4)
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "4 images by class" in printed and "classes.csv" in printed
    assert main([*arguments, "--tta", "mirror", "--quiet"]) == 0
    assert rows_of(tmp_path / "out" / "classes.csv") != rows


def test_what_a_classifier_cannot_do_is_told(
    classifiers: dict[int, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "x.png")
    common = ["predict", str(tmp_path / "x.png"), "--model", str(classifiers[3]), "--out", str(tmp_path / "out")]
    for options, words in (
        (["--format", "coco"], "is a classifier"),
        (["--magnify", "2"], "leave out the magnification"),
        (["--diameter", "20"], "knows no diameter"),
        (["--tta", "multiscale"], "multiscale changes nothing"),
    ):
        assert main([*common, *options]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


# -- the command line --------------------------------------------------------------------------------------------------


def test_options_of_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    torch.manual_seed(0)
    street = Model("unet", ["road", "sky"], channels=3, base=4, depth=2)
    street.save(tmp_path / "street.safetensors")
    stars = Model("stardist", ["cell"], rays=8, base=4, depth=1, features=8)
    stars.method.thresholds = {"probability": 0.05, "overlap": 0.3}
    stars.save(tmp_path / "stars.safetensors")
    Image.fromarray(field()).save(tmp_path / "x.png")

    def labels(model: str, *options: str) -> NDArray[Any]:
        arguments = [str(tmp_path / "x.png"), "--model", str(tmp_path / model), "--out", str(tmp_path / "out")]
        assert main(["predict", *arguments, "--no-overlay", "--quiet", *options]) == 0
        return tifffile.imread(tmp_path / "out" / "labels" / "x.tif")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = labels("street.safetensors")
        every = {name: labels("street.safetensors", "--tta", name) for name in ("mirror", "multiscale", "dihedral")}
        np.testing.assert_array_equal(labels("street.safetensors", "--tta"), every["dihedral"])
        expected = street.predict(field(), tta="multiscale", magnification=1.0)
        np.testing.assert_array_equal(every["multiscale"], expected.semantic_map())
        assert all((each != plain).any() for each in every.values())
        assert labels("stars.safetensors", "--magnify", "1.5").shape == (90, 120)
        found = stars.predict(field(), magnification=1.5)
        np.testing.assert_array_equal(labels("stars.safetensors", "--magnify", "1.5"), found.label_map())
    capsys.readouterr()
    base = ["predict", str(tmp_path / "x.png"), "--out", str(tmp_path / "out"), "--model"]
    for options, words in (
        ([str(tmp_path / "stars.safetensors"), "--tta", "multiscale"], "StarDist predicts lengths"),
        ([str(tmp_path / "stars.safetensors"), "--magnify", "auto"], "cannot estimate"),
        ([str(tmp_path / "stars.safetensors"), "--magnify", "0"], "magnification must be"),
        ([str(tmp_path / "stars.safetensors"), "--diameter", "9", "--magnify", "2"], "leave out one of the two"),
        ([str(tmp_path / "stars.safetensors"), "--tta", "miror"], "mirror"),
        ([str(tmp_path / "stars.safetensors"), "--tta", str(tmp_path / "x.png")], "put images first"),
    ):
        assert main([*base, *options]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1


@pytest.mark.parametrize("format", ["ome-tiff", "zarr", "rois", "geojson"])
def test_every_format_of_the_command_line(format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("roifile", reason="the extra microscopy is not installed")
    Image.fromarray(field()).save(tmp_path / "x.png")
    import torch

    torch.manual_seed(0)
    model = Model("stardist", ["cell"], rays=8, base=4, depth=1, features=8)
    model.method.thresholds = {"probability": 0.05, "overlap": 0.3}
    model.save(tmp_path / "m.safetensors")
    arguments = ["predict", str(tmp_path / "x.png"), "--model", str(tmp_path / "m.safetensors")]
    assert main([*arguments, "--out", str(tmp_path / "out"), "--format", format, "--no-overlay", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    place = {"ome-tiff": "labels/x.ome.tif", "zarr": "labels/x.zarr", "rois": "rois/x.zip",
             "geojson": "geojson/x.geojson"}[format]  # fmt: skip
    assert (tmp_path / "out" / place).exists()
    assert Path(result["labels" if format in ("ome-tiff", "zarr") else format]) == (tmp_path / "out" / place).parent
    if format == "rois":
        with zipfile.ZipFile(tmp_path / "out" / place) as archive:
            assert len(archive.namelist()) == result["objects"]
