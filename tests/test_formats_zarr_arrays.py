"""Zarr and OME-Zarr against the package zarr itself, in whichever generation is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from everymask.errors import InputError
from everymask.formats.calibration import Calibration
from everymask.formats.zarr_arrays import is_zarr, open_zarr, write_zarr_labels

zarr = pytest.importorskip("zarr", reason="the extra microscopy is not installed")
GENERATION = int(zarr.__version__.split(".")[0])


def save(path: Path, array: np.ndarray, version: int = 2, **options: Any) -> None:
    extra = {"zarr_format": version} if GENERATION >= 3 else {}
    chunks = tuple(max(1, side // 2) for side in array.shape)
    made = zarr.open_array(
        str(path), mode="w", shape=array.shape, chunks=chunks, dtype=array.dtype, **{**extra, **options}
    )
    made[...] = array


def ome(path: Path, array: np.ndarray, axes: Any, scale: list[float] | None = None, version: str = "0.4") -> None:
    save(path / "0", array)
    datasets: list[dict[str, Any]] = [{"path": "0"}]
    if scale is not None:
        datasets[0]["coordinateTransformations"] = [{"type": "scale", "scale": scale}]
    described = {"multiscales": [{"version": version, "axes": axes, "datasets": datasets}]}
    if axes is None:
        del described["multiscales"][0]["axes"]
    (path / ".zgroup").write_text('{"zarr_format": 2}')
    (path / ".zattrs").write_text(json.dumps({"ome": described} if version == "0.5" else described))


def named(letters: str, unit: str = "micrometer") -> list[dict[str, str]]:
    return [{"name": each, **({"unit": unit} if each in "zyx" else {})} for each in letters]


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize(
    ("shape", "channels", "expected"),
    [((20, 30), None, (20, 30, 1)), ((3, 20, 30), 0, (20, 30, 3)), ((20, 30, 3), 2, (20, 30, 3)),
     ((1, 1, 20, 30), None, (20, 30, 1)), ((2, 4, 20, 30), 1, None)],
)  # fmt: skip
def test_arrays_without_metadata(
    tmp_path: Path, version: int, shape: tuple[int, ...], channels: int | None, expected: tuple[int, ...] | None
) -> None:
    if version == 3 and GENERATION < 3:
        pytest.skip("this zarr knows format 2 only")
    array = np.random.default_rng(0).integers(0, 60_000, shape).astype(">u2")
    save(tmp_path / "x.zarr", array.astype("u2") if version == 3 else array, version)
    if expected is None:
        with pytest.raises(InputError, match="not one image"):
            open_zarr(tmp_path / "x.zarr")
        return
    image = open_zarr(tmp_path / "x.zarr")
    whole = array.reshape((*shape[-2:], 1)) if channels is None else np.moveaxis(array, channels, -1)
    assert image.shape == expected == np.asarray(image).shape and image.ndim == 3
    np.testing.assert_array_equal(np.asarray(image), whole)
    np.testing.assert_array_equal(image[3:9, 4:40], whole[3:9, 4:40])
    np.testing.assert_array_equal(image[::3, ::2], whole[::3, ::2])
    np.testing.assert_array_equal(image[5:7], whole[5:7])


def test_a_long_first_axis_is_a_stack(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 255, (6, 20, 30)).astype(np.uint8)
    save(tmp_path / "x.zarr", array)
    stack = open_zarr(tmp_path / "x.zarr")
    assert stack.shape == (6, 20, 30, 1) and len(stack) == 6
    for z in (0, 5, -1):
        np.testing.assert_array_equal(stack[z][2:4, :], array[z, 2:4, :, None])
    with pytest.raises(IndexError):
        stack[6]


@pytest.mark.parametrize(
    ("axes", "shape", "expected", "order"),
    [
        (named("yx"), (20, 30), (20, 30, 1), None),
        (named("cyx"), (7, 20, 30), (20, 30, 7), (1, 2, 0)),
        (named("tczyx"), (1, 2, 1, 20, 30), (20, 30, 2), (3, 4, 1)),
        (["t", "c", "z", "y", "x"], (1, 2, 1, 20, 30), (20, 30, 2), (3, 4, 1)),
        (None, (1, 2, 1, 20, 30), (20, 30, 2), (3, 4, 1)),
        (named("zyx"), (3, 20, 30), (3, 20, 30, 1), None),
        (named("tcyx"), (4, 2, 20, 30), (4, 20, 30, 2), (0, 2, 3, 1)),
    ],
)
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_axes_of_ome_zarr(
    tmp_path: Path, axes: Any, shape: tuple[int, ...], expected: tuple[int, ...], order: Any, version: str
) -> None:
    array = np.random.default_rng(0).random(shape).astype(np.float32)
    ome(tmp_path / "x.ome.zarr", array, axes, version=version)
    image = open_zarr(tmp_path / "x.ome.zarr")
    assert image.shape == expected and image.dtype == np.float32
    kept = range(len(shape)) if order is None else order
    whole = array.transpose(*(axis for axis in range(len(shape)) if axis not in kept), *kept).reshape(expected)
    np.testing.assert_array_equal(np.asarray(image), whole)


def test_the_size_of_a_pixel(tmp_path: Path) -> None:
    ome(tmp_path / "a", np.zeros((1, 2, 9, 9), np.uint8), named("tcyx"), [1, 1, 0.5, 0.25])
    assert open_zarr(tmp_path / "a").calibration == Calibration(0.5, 0.25, None)
    ome(tmp_path / "b", np.zeros((5, 9, 9), np.uint8), named("zyx", "nanometer"), [300, 65, 60])
    found = open_zarr(tmp_path / "b").calibration
    assert (found.z, found.y, found.x) == pytest.approx((0.3, 0.065, 0.06))
    ome(tmp_path / "c", np.zeros((5, 9, 9), np.uint8), named("tyx"), [2, 1, 1])
    assert open_zarr(tmp_path / "c").calibration.stack == "T"
    ome(tmp_path / "d", np.zeros((9, 9), np.uint8), [{"name": "y"}, {"name": "x"}], [1, 1])
    assert open_zarr(tmp_path / "d").calibration == Calibration()


@pytest.mark.parametrize("stack", [False, True])
def test_labels_are_what_zarr_reads(tmp_path: Path, stack: bool) -> None:
    planes = [np.random.default_rng(z).integers(0, 70_000 if z else 9, (1500, 1100)).astype(np.int32) for z in range(2)]
    planes = planes if stack else planes[:1]
    path = tmp_path / "labels" / "x.zarr"
    for _ in range(2):  # the second time in the place of the first
        write_zarr_labels(path, planes, Calibration(0.5, 0.25, 2.0), stack=stack)
    assert [each.name for each in (tmp_path / "labels").iterdir()] == ["x.zarr"] and is_zarr(path)
    group = zarr.open(str(path), mode="r")
    np.testing.assert_array_equal(group["0"][...], np.stack(planes) if stack else planes[0])
    assert group["0"].dtype == (np.uint32 if stack else np.uint16)
    described = dict(group.attrs)["multiscales"][0]
    assert [each["name"] for each in described["axes"]] == [*("z" if stack else ""), "y", "x"]
    scale = described["datasets"][0]["coordinateTransformations"][0]["scale"]
    assert scale == ([2.0, 0.5, 0.25] if stack else [0.5, 0.25])
    assert open_zarr(path).calibration.x == 0.25


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.zarr"
    write_zarr_labels(path, [np.ones((5, 5), np.int32)])

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zarr, "open_array", full)
    with pytest.raises(InputError, match=r"cannot write .*x\.zarr: No space left"):
        write_zarr_labels(path, [np.zeros((5, 5), np.int32)])
    assert [each.name for each in tmp_path.iterdir()] == ["x.zarr"]
    assert zarr.open(str(path), mode="r")["0"][...].all()


def test_folders_that_are_no_image_are_told_in_a_line(tmp_path: Path) -> None:
    assert not is_zarr(tmp_path) and not is_zarr(tmp_path / "absent")
    ome(tmp_path / "5d", np.zeros((2, 1, 2, 9, 9), np.uint8), named("tczyx"))
    save(tmp_path / "group" / "inner", np.zeros((3, 3), np.uint8))
    (tmp_path / "group" / ".zgroup").write_text('{"zarr_format": 2}')
    save(tmp_path / "line", np.zeros(9, np.uint8))
    save(tmp_path / "broken", np.ones((9, 9), np.uint8))
    (tmp_path / "broken" / ".zarray").write_text("{")
    for name, words in (
        ("5d", "not one image"),
        ("group", "holds inner"),
        ("line", "not one image"),
        ("broken", "Zarr"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            open_zarr(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)
    save(tmp_path / "piece", np.random.default_rng(0).integers(0, 255, (40, 40)).astype(np.uint8))
    (tmp_path / "piece" / "0.0").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="piece cannot be read as Zarr"):
        np.asarray(open_zarr(tmp_path / "piece"))
