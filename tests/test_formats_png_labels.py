"""Label images read by runs, against Pillow, and the unpacking of their data, against zlib."""

from __future__ import annotations

import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from everymask.errors import InputError
from everymask.formats.images import read_labels
from everymask.formats.png_labels import read_colour_ids
from everymask.formats.png_labels import read_labels as read_by_runs
from everymask.ops.inflate import inflate_nonzero
from everymask.ops.label_runs import image_runs, joint_runs, number_runs, paint
from everymask.ops.labels import label_overlap


def inflate(packed: bytes, size: int) -> bytes:
    places, values = inflate_nonzero(packed, size)
    assert bool((np.diff(places) > 0).all() and (values > 0).all())
    unpacked = np.zeros(size, np.uint8)
    unpacked[places] = values
    return unpacked.tobytes()


def contents(chooser: random.Random, size: int) -> bytes:
    """Noise, sparse bytes, repetitions of any period, or zeros."""
    kind = chooser.randrange(4)
    if kind == 0:
        return chooser.randbytes(size)
    if kind == 1:
        return bytes(chooser.choices(b"\0\1", (9, 1), k=size))
    if kind == 2:
        found = b""
        while len(found) < size:
            found += chooser.randbytes(chooser.randrange(1, 9)) * chooser.randrange(1, 300)
        return found[:size]
    return bytes(size)


@pytest.mark.parametrize("seed", range(8))
def test_inflate_equals_zlib_and_survives_damage(seed: int) -> None:
    chooser = random.Random(seed)
    for _ in range(60):
        size = chooser.choice([0, 1, 2, 5, 100, 5000, 70_000])
        raw = contents(chooser, size)
        packer = zlib.compressobj(
            chooser.randrange(10), 8, chooser.choice([9, 10, 12, 15]), chooser.randrange(1, 10), chooser.randrange(5)
        )
        middle = chooser.randrange(size + 1)
        packed = packer.compress(raw[:middle])
        packed += packer.flush(chooser.choice([zlib.Z_NO_FLUSH, zlib.Z_SYNC_FLUSH, zlib.Z_FULL_FLUSH]))
        packed += packer.compress(raw[middle:]) + packer.flush()
        assert inflate(packed, size) == raw
        damaged = bytearray(packed)
        damaged[chooser.randrange(len(damaged))] ^= 1 << chooser.randrange(8)
        damaged = damaged[: chooser.randrange(len(damaged) + 1)] if chooser.random() < 0.3 else damaged
        try:
            got = inflate(bytes(damaged), size)
        except ValueError:
            continue
        # What was unpacked before zlib noticed anything has to be the same.
        reader = zlib.decompressobj(-15)
        wanted = b""
        try:
            for position in range(2, len(damaged)):
                wanted += reader.decompress(bytes(damaged[position : position + 1]))
        except zlib.error:
            pass
        assert got == wanted[:size] or len(wanted) < size


def write_png(path: Path, pixels: np.ndarray, filters: np.ndarray, chunk: int = 2**20) -> None:
    """A PNG with the given filter for each row; (H, W, C) uint8 or (H, W) uint16."""
    wide = pixels.dtype == np.uint16
    rows = pixels.astype(">u2").view(np.uint8).reshape(len(pixels), -1) if wide else pixels.reshape(len(pixels), -1)
    step = 2 if wide else pixels.shape[2]
    coded = b""
    previous = [0] * rows.shape[1]
    for row, kind in zip(rows.tolist(), filters.tolist(), strict=True):
        left, corner = [0] * step + row[:-step], [0] * step + previous[:-step]
        if kind == 4:
            predictions = []
            for a, b, c in zip(left, previous, corner, strict=True):
                distances = [abs(a + b - c - each) for each in (a, b, c)]
                predictions.append((a, b, c)[distances.index(min(distances))])
        else:
            mean = [(a + b) // 2 for a, b in zip(left, previous, strict=True)]
            predictions = [[0] * len(row), left, previous, mean][kind]
        coded += bytes([kind, *((a - b) % 256 for a, b in zip(row, predictions, strict=True))])
        previous = row
    packed = zlib.compress(coded)

    def block(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    colour_type = 0 if wide else {1: 0, 3: 2, 4: 6}[pixels.shape[2]]
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16 if wide else 8, colour_type, 0, 0, 0)
    parts = [packed[i : i + chunk] for i in range(0, len(packed), chunk)]
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + block(b"IHDR", header)
        + b"".join(block(b"IDAT", part) for part in parts)
        + block(b"IEND", b"")
    )


def labels(generator: np.random.Generator, height: int, width: int, highest: int) -> np.ndarray:
    """Blocks of labels with a ragged edge, or noise."""
    if generator.random() < 0.2:
        return generator.integers(0, highest + 1, (height, width))
    small = generator.integers(0, highest + 1, (height // 5 + 1, width // 7 + 1)) * (generator.random() < 0.9)
    large = np.kron(small, np.ones((5, 7), np.int64))[:height, :width]
    return np.where(generator.random((height, width)) < 0.05, np.roll(large, 1, 1), large)


@pytest.mark.parametrize("seed", range(30))
def test_every_filter_gives_what_pillow_reads(seed: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(seed)
    height, width = int(generator.integers(1, 40)), int(generator.integers(1, 60))
    filters = generator.integers(0, 5, height) if seed % 3 else np.full(height, seed // 3 % 5)
    path = tmp_path / "labels.png"
    ids = labels(generator, height, width, 2**24 - 1)
    channels = 3 + seed % 2
    colours = (ids[..., None] >> np.arange(0, 8 * channels, 8) & 255).astype(np.uint8)
    write_png(path, colours, filters, chunk=int(generator.integers(20, 3000)))
    assert np.array_equal(np.asarray(Image.open(path)), colours)
    size, starts, values = read_colour_ids(path)
    assert size == (height, width)
    assert np.array_equal(paint(starts, values, size), ids)
    grey = labels(generator, height, width, 2 ** (8 if seed % 2 else 16) - 1)
    if seed % 2:
        write_png(path, grey.astype(np.uint8)[..., None], filters)
    else:
        write_png(path, grey.astype(np.uint16), filters)
    quick = read_by_runs(path, path.read_bytes()[:32])
    assert quick is not None
    assert quick.dtype == (np.uint8 if seed % 2 else np.uint16)
    assert np.array_equal(quick, grey)
    assert np.array_equal(np.asarray(Image.open(path)), grey)


def test_real_label_images_equal_pillow(shared_data: Path) -> None:
    files = sorted((shared_data / "cityscapes/pix2pixhd").rglob("*Ids.png"))[:4]
    files += sorted((shared_data / "dsb2018/val/masks").glob("*.png"))[:10]
    assert len(files) == 14
    for file in files:
        with Image.open(file) as image:
            assert np.array_equal(read_labels(file), np.asarray(image)), file


def test_what_is_special_is_left_to_pillow(tmp_path: Path) -> None:
    ids = np.arange(60, dtype=np.uint8).reshape(6, 10)
    path = tmp_path / "labels.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(ids).save(path, exif=exif)
    assert np.array_equal(read_labels(path), np.rot90(ids, -1))
    colours = np.stack([ids, ids // 2, ids // 3], axis=-1)
    Image.fromarray(colours).save(path, exif=exif)
    size, starts, values = read_colour_ids(path)
    turned = np.rot90(colours, -1).astype(np.int64)
    assert np.array_equal(paint(starts, values, size), turned @ [1, 256, 65536])
    palette = Image.fromarray(ids).convert("P")
    palette.save(path)
    assert np.array_equal(read_labels(path), np.asarray(palette))


def test_damaged_files_are_told(tmp_path: Path) -> None:
    path = tmp_path / "labels.png"
    write_png(path, np.ones((9, 9, 3), np.uint8), np.full(9, 2))
    good = path.read_bytes()
    for position in (20, 45, 60):  # width, pixels, checksum
        bad = bytearray(good)
        bad[position] ^= 1
        path.write_bytes(bytes(bad))
        with pytest.raises(InputError, match=r"labels\.png (is damaged|claims)"):
            read_colour_ids(path)
    for length in (30, len(good) - 20):
        path.write_bytes(good[:length])
        with pytest.raises(InputError, match=r"labels\.png is damaged or cut short"):
            read_colour_ids(path)
    Image.new("L", (4, 4)).save(path)
    with pytest.raises(InputError, match=r"labels\.png is no PNG of red, green and blue"):
        read_colour_ids(path)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.jpg")
    with pytest.raises(InputError, match=r"a\.jpg is no PNG"):
        read_colour_ids(tmp_path / "a.jpg")
    with pytest.raises(InputError, match=r"b\.png does not exist"):
        read_colour_ids(tmp_path / "b.png")
    # a few bytes that claim to be 9,000 x 9,000 pixels
    header = struct.pack(">IIBBBBB", 9000, 9000, 8, 0, 0, 0, 0)
    bomb = good[:8] + struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    path.write_bytes(bomb + good[33:])
    with pytest.raises(InputError, match="is damaged"):
        read_labels(path)


@pytest.mark.parametrize("seed", range(10))
def test_runs_are_numbered_and_joined_as_pixels_are(seed: int) -> None:
    generator = np.random.default_rng(seed)
    a = labels(generator, 23, 31, 6) * 100_003
    starts, values = image_runs(a)
    assert np.array_equal(paint(starts, values, a.shape), a)
    ids = generator.permutation(np.unique(a[a > 0]))
    numbers, areas, unknown = number_runs(starts, values, ids)
    assert unknown is None
    assert areas.tolist() == [(a == each).sum() for each in ids]
    painted = paint(starts, numbers, a.shape)
    assert np.array_equal(np.array([0, *ids])[np.maximum(painted, 0)], a)
    if len(ids):
        assert number_runs(starts, values, ids[1:])[2] == ids[0]
    other = labels(generator, 23, 31, 4).astype(np.int32) - 1
    joined = joint_runs(starts, numbers, *image_runs(other))
    for got, wanted in zip(joined, label_overlap(painted, other), strict=True):
        assert np.array_equal(got, wanted)
