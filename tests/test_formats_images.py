"""Reading and writing single images: every file type against Pillow or tifffile, every bad file against its message."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from everymask.errors import InputError
from everymask.formats import images

random = np.random.default_rng(7)


def noise(*shape: int, dtype: str = "uint8") -> np.ndarray:
    """Random pixels over the whole range of a number type."""
    if dtype.startswith("float"):
        return random.normal(size=shape).astype(dtype)
    limits = np.iinfo(dtype)
    return random.integers(limits.min, limits.max, size=shape, dtype=dtype, endpoint=True)


# -- Pillow file types -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_reads_what_pillow_wrote(tmp_path: Path, suffix: str, mode: str, channels: int) -> None:
    pixels = noise(13, 17, channels)
    path = tmp_path / f"image{suffix}"
    Image.fromarray(pixels if channels == 3 else pixels[..., 0], mode).save(path)
    image = images.read_image(path)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, pixels)
    assert images.image_size(path) == (13, 17)


def test_jpeg_and_gif_equal_pillow(tmp_path: Path) -> None:
    Image.fromarray(noise(20, 30, 3)).save(tmp_path / "photo.JPG")
    expected = np.asarray(Image.open(tmp_path / "photo.JPG"))
    np.testing.assert_array_equal(images.read_image(tmp_path / "photo.JPG"), expected)
    Image.fromarray(noise(20, 30, 3)).quantize(8).save(tmp_path / "drawing.gif")
    expected = np.asarray(Image.open(tmp_path / "drawing.gif").convert("RGB"))
    np.testing.assert_array_equal(images.read_image(tmp_path / "drawing.gif"), expected)


def test_16_bit_grey_png_keeps_its_bits(tmp_path: Path) -> None:
    pixels = noise(9, 11, dtype="uint16")
    Image.fromarray(pixels).save(tmp_path / "deep.png")
    image = images.read_image(tmp_path / "deep.png")
    assert image.dtype == np.uint16
    np.testing.assert_array_equal(image[..., 0], pixels)


def png(header: bytes, rows: bytes) -> bytes:
    """A PNG file from its header and its filtered rows."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packed = zlib.compress(rows)
    middle = len(packed) // 2
    body = chunk(b"IHDR", header) + chunk(b"IDAT", packed[:middle]) + chunk(b"IDAT", packed[middle:])
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def filtered(pixels: np.ndarray, kind: int) -> bytes:
    """Rows of a PNG through one filter, by the definition of the specification, byte by byte."""
    height, _, channels = pixels.shape
    raw = pixels.astype(">u2").view(np.uint8).reshape(height, -1).astype(int)
    step = channels * 2
    out = bytearray()
    for y in range(height):
        out.append(kind)
        for x in range(raw.shape[1]):
            a = raw[y, x - step] if x >= step else 0
            b = raw[y - 1, x] if y else 0
            c = raw[y - 1, x - step] if y and x >= step else 0
            paeth = min((a, b, c), key=lambda each, p=a + b - c: abs(p - each))
            out.append(int(raw[y, x] - [0, a, b, (a + b) // 2, paeth][kind]) % 256)
    return bytes(out)


@pytest.mark.parametrize("kind", range(5))
@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_16_bit_colour_png_keeps_its_bits(tmp_path: Path, kind: int, colour_type: int, channels: int) -> None:
    pixels = noise(6, 7, channels, dtype="uint16")
    header = struct.pack(">IIBBBBB", 7, 6, 16, colour_type, 0, 0, 0)
    (tmp_path / "deep.png").write_bytes(png(header, filtered(pixels, kind)))
    image = images.read_image(tmp_path / "deep.png")
    assert image.dtype == np.uint16
    np.testing.assert_array_equal(image, pixels)
    # An independent decoder of the same file agrees in the upper 8 bits.
    if channels == 3:
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "deep.png")), pixels >> 8)


def test_one_bit_becomes_0_and_255_but_0_and_1_as_labels(tmp_path: Path) -> None:
    bits = noise(5, 9) > 127
    Image.fromarray(bits).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(images.read_image(tmp_path / "bits.png")[..., 0], bits * 255)
    np.testing.assert_array_equal(images.read_labels(tmp_path / "bits.png"), bits)


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_of_few_bits_gives_stored_labels(tmp_path: Path, bits: int) -> None:
    stored = random.integers(0, 2**bits, (4, 8), dtype=np.uint8)
    per_byte = 8 // bits
    grouped = stored.reshape(4, -1, per_byte)
    packed = sum(grouped[..., i] << (8 - bits * (i + 1)) for i in range(per_byte)).astype(np.uint8)
    rows = b"".join(b"\0" + row.tobytes() for row in packed)
    (tmp_path / "few.png").write_bytes(png(struct.pack(">IIBBBBB", 8, 4, bits, 0, 0, 0, 0), rows))
    np.testing.assert_array_equal(images.read_labels(tmp_path / "few.png"), stored)


def test_alpha_is_dropped_only_where_it_is_opaque_everywhere(tmp_path: Path) -> None:
    pixels = noise(8, 8, 4)
    pixels[..., 3] = 255
    Image.fromarray(pixels).save(tmp_path / "opaque.png")
    np.testing.assert_array_equal(images.read_image(tmp_path / "opaque.png"), pixels[..., :3])
    pixels[3, 3, 3] = 254
    Image.fromarray(pixels).save(tmp_path / "clear.png")
    np.testing.assert_array_equal(images.read_image(tmp_path / "clear.png"), pixels)


def test_palette_is_rgb_as_image_and_indices_as_labels(tmp_path: Path) -> None:
    indices = random.integers(0, 21, (7, 6), dtype=np.uint8)
    palette = noise(256, 3)
    picture = Image.fromarray(indices, "P")
    picture.putpalette(palette.tobytes())
    picture.save(tmp_path / "voc.png")
    np.testing.assert_array_equal(images.read_image(tmp_path / "voc.png"), palette[indices])
    np.testing.assert_array_equal(images.read_labels(tmp_path / "voc.png"), indices)


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.fromarray(noise(16, 16, 4), "CMYK").save(tmp_path / "print.jpg")
    expected = np.asarray(Image.open(tmp_path / "print.jpg").convert("RGB"))
    np.testing.assert_array_equal(images.read_image(tmp_path / "print.jpg"), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_exif_orientation_is_applied_to_pixels_and_size(tmp_path: Path, orientation: int, suffix: str) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned{suffix}"
    Image.fromarray(noise(12, 20, 3)).save(path, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    image = images.read_image(path)
    np.testing.assert_array_equal(image, expected)
    assert images.image_size(path) == expected.shape[:2]


# -- TIFF --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int16", "int32", "float32", "float64"])
@pytest.mark.parametrize("shape", [(9, 8), (9, 8, 1), (9, 8, 2), (9, 8, 3), (9, 8, 7), (6, 9, 8, 1), (6, 9, 8, 3)])
def test_tiff_round_trip(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    pixels = noise(*shape, dtype=dtype)
    path = tmp_path / "image.tif"
    images.write_image(path, pixels)
    expected = pixels if len(shape) > 2 else pixels[..., None]
    image = images.read_image(path)
    assert image.dtype == dtype
    np.testing.assert_array_equal(image, expected)
    assert images.image_size(path) == expected.shape[:-1]
    assert [each.name for each in tmp_path.iterdir()] == ["image.tif"]


def test_tiff_axes_of_imagej_and_ome(tmp_path: Path) -> None:
    stack = noise(5, 2, 9, 8, dtype="uint16")
    tifffile.imwrite(tmp_path / "imagej.tif", stack, imagej=True, metadata={"axes": "ZCYX"})
    np.testing.assert_array_equal(images.read_image(tmp_path / "imagej.tif"), stack.transpose(0, 2, 3, 1))
    assert images.image_size(tmp_path / "imagej.tif") == (5, 9, 8)
    tifffile.imwrite(tmp_path / "ome.ome.tif", stack.swapaxes(0, 1), metadata={"axes": "CZYX"})
    np.testing.assert_array_equal(images.read_image(tmp_path / "ome.ome.tif"), stack.transpose(0, 2, 3, 1))
    tifffile.imwrite(tmp_path / "time.tif", stack[:, 0], imagej=True, metadata={"axes": "TYX"})
    np.testing.assert_array_equal(images.read_image(tmp_path / "time.tif"), stack[:, 0, ..., None])
    tifffile.imwrite(tmp_path / "both.tif", stack, imagej=True, metadata={"axes": "TZYX"})
    with pytest.raises(InputError, match=r"both\.tif has the axes TZYX .* one volume to a file"):
        images.read_image(tmp_path / "both.tif")


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((20, 9, 8), (20, 9, 8, 1)), ((3, 9, 8), (9, 8, 3)), ((9, 8, 2), (9, 8, 2)), ((6, 3, 9, 8), (6, 9, 8, 3))],
)
def test_tiff_axes_without_a_name(tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    tifffile.imwrite(tmp_path / "plain.tif", noise(*shape, dtype="uint16"), photometric="minisblack")
    assert images.read_image(tmp_path / "plain.tif").shape == expected


def test_tiff_pages_without_metadata_are_a_volume(tmp_path: Path) -> None:
    stack = noise(7, 9, 8)
    tifffile.imwrite(tmp_path / "pages.tif", stack, metadata=None, photometric="minisblack")
    np.testing.assert_array_equal(images.read_image(tmp_path / "pages.tif")[..., 0], stack)


def test_planar_and_interleaved_tiff_agree(tmp_path: Path) -> None:
    pixels = noise(10, 12, 3)
    tifffile.imwrite(tmp_path / "planar.tif", pixels.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    tifffile.imwrite(tmp_path / "chunky.tif", pixels, photometric="rgb")
    np.testing.assert_array_equal(images.read_image(tmp_path / "planar.tif"), pixels)
    np.testing.assert_array_equal(images.read_image(tmp_path / "chunky.tif"), pixels)


def test_tiff_palette_white_is_zero_and_alpha(tmp_path: Path) -> None:
    indices = noise(5, 6)
    table = noise(3, 256, dtype="uint16")
    tifffile.imwrite(tmp_path / "palette.tif", indices, photometric="palette", colormap=table)
    np.testing.assert_array_equal(images.read_image(tmp_path / "palette.tif"), (table >> 8).T[indices])
    np.testing.assert_array_equal(images.read_labels(tmp_path / "palette.tif"), indices)
    tifffile.imwrite(tmp_path / "white.tif", indices, photometric="miniswhite")
    np.testing.assert_array_equal(images.read_image(tmp_path / "white.tif")[..., 0], 255 - indices)
    rgba = noise(5, 6, 4)
    rgba[..., 3] = 255
    tifffile.imwrite(tmp_path / "alpha.tif", rgba, photometric="rgb", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(images.read_image(tmp_path / "alpha.tif"), rgba[..., :3])


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_tiff_compressed_by_another_program(tmp_path: Path, compression: str, dtype: str) -> None:
    pixels = noise(31, 17, dtype=dtype)
    Image.fromarray(pixels).save(tmp_path / "packed.tif", compression=compression)
    np.testing.assert_array_equal(images.read_image(tmp_path / "packed.tif")[..., 0], pixels)


@pytest.mark.parametrize("tiled", [False, True])
def test_region_equals_the_slice_of_the_whole(tmp_path: Path, tiled: bool) -> None:
    pixels = noise(100, 130, 3, dtype="uint16")
    layout = {"tile": (32, 48)} if tiled else {"rowsperstrip": 16}
    tifffile.imwrite(tmp_path / "big.tif", pixels, photometric="rgb", compression="zlib", **layout)
    for rows, columns in [
        (slice(0, 100), slice(0, 130)),
        (slice(31, 33), slice(47, 97)),
        (slice(90, 300), slice(-20, None)),
        (slice(40, 40), slice(0, 9)),
    ]:
        region = images.read_region(tmp_path / "big.tif", rows, columns)
        np.testing.assert_array_equal(region, pixels[rows, columns])


def test_region_decodes_only_the_tiles_it_touches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from everymask.formats import tiff

    tifffile.imwrite(tmp_path / "big.tif", noise(256, 256), tile=(64, 64))
    touched = []
    whole = tiff._tile
    monkeypatch.setattr(tiff, "_tile", lambda page, number, path: touched.append(number) or whole(page, number, path))
    images.read_region(tmp_path / "big.tif", slice(60, 70), slice(130, 140))
    assert touched == [2, 6]


# -- labels ------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    ids=hnp.arrays(
        np.int64, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12), elements=st.integers(0, 2**32 - 1)
    )
)
def test_labels_round_trip_exactly_in_tiff(tmp_path_factory: pytest.TempPathFactory, ids: np.ndarray) -> None:
    path = tmp_path_factory.mktemp("labels") / "mask.tif"
    images.write_labels(path, ids)
    read = images.read_labels(path)
    assert read.dtype == (np.uint16 if ids.max() < 2**16 else np.uint32)
    np.testing.assert_array_equal(read, ids)


@pytest.mark.parametrize(("highest", "dtype"), [(255, "uint8"), (256, "uint16"), (65535, "uint16")])
def test_labels_round_trip_exactly_in_png(tmp_path: Path, highest: int, dtype: str) -> None:
    ids = random.integers(0, highest + 1, (20, 20))
    ids[0, 0] = highest
    images.write_labels(tmp_path / "mask.png", ids)
    read = images.read_labels(tmp_path / "mask.png")
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, ids)


def test_label_volume_and_what_a_png_cannot_hold(tmp_path: Path) -> None:
    ids = random.integers(0, 9, (3, 8, 7))
    images.write_labels(tmp_path / "volume.tif", ids)
    np.testing.assert_array_equal(images.read_labels(tmp_path / "volume.tif"), ids)
    with pytest.raises(InputError, match=r"volume\.png: a PNG cannot hold a volume .* write a \.tif"):
        images.write_labels(tmp_path / "volume.png", ids)
    with pytest.raises(InputError, match=r"ids up to 65,535, but there are ids up to 65536; write a \.tif"):
        images.write_labels(tmp_path / "many.png", np.array([[65536]]))
    with pytest.raises(InputError, match=r"written as \.png, \.tif or \.tiff, not \.jpg"):
        images.write_labels(tmp_path / "mask.jpg", ids[0])


def test_masks_that_are_none(tmp_path: Path) -> None:
    Image.fromarray(noise(8, 8, 3)).save(tmp_path / "colours.png")
    with pytest.raises(InputError, match=r"colours\.png is a colour picture with 3 channels.*replace each colour"):
        images.read_labels(tmp_path / "colours.png")
    grey = random.integers(0, 4, (8, 8, 1), dtype=np.uint8)
    Image.fromarray(np.repeat(grey, 3, axis=-1)).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(images.read_labels(tmp_path / "grey.png"), grey[..., 0])
    Image.fromarray(grey[..., 0]).save(tmp_path / "mask.jpg")
    with pytest.raises(InputError, match=r"mask\.jpg is a JPEG, whose compression changes label ids"):
        images.read_labels(tmp_path / "mask.jpg")
    tifffile.imwrite(tmp_path / "negative.tif", np.array([[0, -3]], np.int16))
    with pytest.raises(InputError, match=r"negative\.tif holds negative ids \(lowest -3\)"):
        images.read_labels(tmp_path / "negative.tif")
    tifffile.imwrite(tmp_path / "fraction.tif", np.array([[0, 1.5]], np.float32))
    with pytest.raises(InputError, match=r"fraction\.tif holds fractional values"):
        images.read_labels(tmp_path / "fraction.tif")
    tifffile.imwrite(tmp_path / "whole.tif", np.array([[0, 7.0]], np.float32))
    np.testing.assert_array_equal(images.read_labels(tmp_path / "whole.tif"), [[0, 7]])


# -- bad files ---------------------------------------------------------------------------------------------------------


def write_truncated_png(path: Path) -> None:
    Image.fromarray(noise(64, 64, 3)).save(path)
    path.write_bytes(path.read_bytes()[:5000])


def write_truncated_tiff(path: Path) -> None:
    tifffile.imwrite(path, noise(64, 64, 3), photometric="rgb", compression="zlib")
    path.write_bytes(path.read_bytes()[:5000])


def write_empty_dimensions(path: Path) -> None:
    path.write_bytes(png(struct.pack(">IIBBBBB", 0, 0, 8, 0, 0, 0, 0), b""))


def write_bomb(path: Path) -> None:
    path.write_bytes(png(struct.pack(">IIBBBBB", 40000, 40000, 8, 0, 0, 0, 0), bytes(1000)))


def write_sizes(path: Path) -> None:
    with tifffile.TiffWriter(path) as file:
        file.write(noise(8, 8))
        file.write(noise(9, 9))


def write_deep_truncated(path: Path) -> None:
    pixels = noise(6, 7, 3, dtype="uint16")
    header = struct.pack(">IIBBBBB", 7, 6, 16, 2, 0, 0, 0)
    path.write_bytes(png(header, filtered(pixels, 1)[:50]))


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("missing.png", lambda path: None, r"missing\.png does not exist; check the spelling"),
        ("folder.png", lambda path: path.mkdir(), r"folder\.png is a folder, but an image file is expected"),
        ("zero.png", lambda path: path.touch(), r"zero\.png is empty \(0 bytes\)"),
        ("text.tif", lambda path: path.write_text("hello world"), r"text\.tif is no image .*expected PNG, JPEG, BMP"),
        ("short.png", write_truncated_png, r"short\.png is damaged or cut short"),
        ("short.tif", write_truncated_tiff, r"short\.tif is damaged or cut short"),
        ("head.tif", lambda path: path.write_bytes(b"II*\0\x08\0"), r"head\.tif is damaged or cut short"),
        ("head.png", lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n"), r"head\.png is damaged or cut short"),
        ("none.png", write_empty_dimensions, r"none\.png (has no pixels|is damaged)"),
        ("bomb.png", write_bomb, r"bomb\.png claims 40000 x 40000 pixels, more than the limit of 1,073,741,824"),
        ("sizes.tif", write_sizes, r"sizes\.tif holds 2 images of different sizes"),
        ("deep.png", write_deep_truncated, r"deep\.png is damaged or cut short"),
        ("script.eps", lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n"), r"script\.eps is no image"),
    ],
)
def test_bad_files_give_one_line(tmp_path: Path, name: str, write: object, message: str) -> None:
    write(tmp_path / name)  # type: ignore[operator]
    with pytest.raises(InputError, match=message) as caught:
        images.read_image(tmp_path / name)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError):
        images.read_labels(tmp_path / name)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_bytes_never_give_another_error(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    suffix = data.draw(st.sampled_from([".png", ".jpg", ".tif", ".gif", ".bmp"]))
    path = folder / f"image{suffix}"
    Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3)).save(path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    for read in (images.read_image, images.read_labels, images.image_size):
        try:
            read(path)
        except InputError as error:
            assert path.name in str(error)


def test_large_images_open(tmp_path: Path) -> None:
    # Above Pillow's own limits (warning at 89 million pixels, refusal at 179 million), which apply to Image.open.
    Image.fromarray(np.zeros((14000, 14000), np.uint8)).save(tmp_path / "large.png", compress_level=1)
    assert images.image_size(tmp_path / "large.png") == (14000, 14000)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / "large.png")
    assert images.read_image(tmp_path / "large.png").shape == (14000, 14000, 1)


def test_not_finite_pixels_are_named(tmp_path: Path) -> None:
    pixels = noise(4, 4, dtype="float32")
    images.check_finite(pixels, "good.tif")
    pixels[0, :2] = np.nan
    pixels[1, 0] = np.inf
    tifffile.imwrite(tmp_path / "bad.tif", pixels)
    image = images.read_image(tmp_path / "bad.tif")
    with pytest.raises(InputError, match=r"bad\.tif holds 2 NaN and 1 infinite pixel values; replace them"):
        images.check_finite(image, tmp_path / "bad.tif")
    with pytest.raises(InputError, match=r"m\.png has size 4 x 5, but its image i\.png has 5 x 4"):
        images.check_same_size((5, 4), (4, 5), "i.png", "m.png")


def test_images_that_a_file_type_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a \.png file cannot hold shape \(4, 4, 1\) of float32; write a \.tif"):
        images.write_image(tmp_path / "a.png", noise(4, 4, dtype="float32"))
    with pytest.raises(InputError, match=r"images are written as \.png, \.jpg, \.jpeg, \.tif, not \.xyz"):
        images.write_image(tmp_path / "a.xyz", noise(4, 4))
    with pytest.raises(InputError, match="a TIFF cannot hold complex64"):
        images.write_image(tmp_path / "a.tif", np.zeros((4, 4), np.complex64))
    assert list(tmp_path.iterdir()) == []


# -- finding -----------------------------------------------------------------------------------------------------------


def test_find_images_in_natural_order(tmp_path: Path) -> None:
    for name in ["t10.png", "t2.PNG", "T1.tif", ".hidden.png", "._t3.png", "notes.txt", "deeper/a.jpg"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def names(*given: object, **options: bool) -> list[str]:
        return [path.name for path in images.find_images(given, **options)]  # type: ignore[arg-type]

    assert names(tmp_path) == ["T1.tif", "t2.PNG", "t10.png"]
    assert names(tmp_path, recursive=True) == ["a.jpg", "T1.tif", "t2.PNG", "t10.png"]
    assert names(str(tmp_path / "t*.[pP]*")) == ["t2.PNG", "t10.png"]
    assert names(str(tmp_path / "**" / "*.jpg")) == ["a.jpg"]
    assert names(tmp_path / "t10.png", tmp_path) == ["t10.png", "T1.tif", "t2.PNG"]
    assert [path.name for path in images.find_images(tmp_path / "notes.txt")] == ["notes.txt"]


def test_find_images_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere does not exist; check the spelling"):
        images.find_images(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"holds no image; expected files ending in \.png"):
        images.find_images(tmp_path)
    with pytest.raises(InputError, match="no image matches"):
        images.find_images(str(tmp_path / "*.png"))
    (tmp_path / "plate").mkdir()
    with pytest.raises(InputError, match="holds no image itself; name one of its subfolders: plate"):
        images.find_images([tmp_path])


# -- real files --------------------------------------------------------------------------------------------------------


def test_real_microscopy(shared_data: Path) -> None:
    folder = shared_data / "microscopy"
    for path in images.find_images(folder, recursive=True):
        image = images.read_image(path)
        assert images.image_size(path) == image.shape[:-1]
        # One of the TIFF files is LZW-compressed, which tifffile reads only with imagecodecs, but Pillow by itself.
        through_tifffile = path.suffix == ".tif"
        expected = tifffile.imread(path) if through_tifffile else np.asarray(Image.open(path))
        if image.shape[-1] == 1:
            expected = expected[..., None] if expected.ndim < image.ndim else expected
        np.testing.assert_array_equal(image, expected[..., : image.shape[-1]])
    assert images.read_image(folder / "stardist/img3d.tif").shape == (31, 61, 57, 1)
    assert images.read_labels(folder / "stardist/mask3d.tif").shape == (31, 61, 57)


def test_importing_the_formats_is_light() -> None:
    heavy = "{'torch', 'scipy', 'numba', 'PIL', 'tifffile', 'torchvision'}"
    program = (
        "import sys, everymask.formats\n"
        "from everymask.formats import coco, images, label_images\n"
        f"sys.exit(','.join({heavy} & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
