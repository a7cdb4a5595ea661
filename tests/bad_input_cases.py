"""Small good data sets, and everything that people's files have wrong with them."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

SIDE = 24
"""Height and width of the good images."""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    def refused(self, *words: str) -> None:
        """Checks the promise of the command line: exit code 2, and one line that has all of `words`."""
        assert "Traceback" not in self.err + self.out
        assert self.code == 2, self.err or self.out
        lines = self.err.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ") and len(lines[0]) < 700, lines
        for word in words:
            assert word in lines[0], (word, lines[0])


def discs(seed: int = 0, size: tuple[int, int] = (SIDE, SIDE)) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A grey image of three bright discs and its label mask."""
    rng = np.random.default_rng(seed)
    rows, columns = np.indices(size)
    ids = np.zeros(size, np.uint8)
    for number, (y, x) in enumerate([(6, 6), (6, 17), (17, 11)], 1):
        ids[(rows - y) ** 2 + (columns - x) ** 2 <= rng.integers(9, 17)] = number
    image = np.where(ids > 0, 200, 30) + rng.integers(0, 20, size)
    return image.astype(np.uint8), ids


def save(path: Path, pixels: NDArray[Any]) -> Path:
    """Writes an array as the suffix of `path` says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        tifffile.imwrite(path, pixels)
    else:
        Image.fromarray(pixels).save(path)
    return path


def make_pairs(folder: Path, count: int = 3, size: tuple[int, int] = (SIDE, SIDE)) -> Path:
    """A good data set of images and masks: images/0.png with masks/0.png and so on."""
    for number in range(count):
        image, ids = discs(number, size)
        save(folder / "images" / f"{number}.png", image)
        save(folder / "masks" / f"{number}.png", ids)
    return folder


def make_coco(folder: Path, change: Callable[[dict[str, Any]], Any] = lambda content: None) -> Path:
    """A good COCO data set of two images, its content changed by `change`; gives the JSON."""
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 3, "name": "cell"}]}
    for number in range(2):
        save(folder / f"{number}.png", discs(number)[0])
        content["images"].append({"id": number, "file_name": f"{number}.png", "width": SIDE, "height": SIDE})
        content["annotations"].append(
            {
                "id": number + 10,
                "image_id": number,
                "category_id": 3,
                "segmentation": [[2, 2, 10, 2, 10, 10, 2, 10]],
                "bbox": [2, 2, 8, 8],
                "area": 64,
                "iscrowd": 0,
            }
        )
    change(content)
    path = folder / "cells.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


# -- single files ------------------------------------------------------------------------------------------------------


def cut(path: Path, share: float = 0.6) -> Path:
    """Cuts a file off."""
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    return path


def text(path: Path) -> Path:
    """Text, whatever the suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("to do: acquire the images\n", encoding="utf-8")
    return path


def empty_png(path: Path) -> Path:
    """A PNG of 0 x 0 pixels, all its checksums right."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 0, 0, 8, 0, 0, 0, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )
    return path


def spoilt_pixel(path: Path, value: float) -> Path:
    """A float image with one pixel that is no number."""
    image = discs()[0].astype(np.float32)
    image[3, 5] = value
    return save(path, image)


BAD_IMAGES: dict[str, tuple[str, Callable[[Path], Any], tuple[str, ...]]] = {
    "truncated PNG": ("bad.png", lambda path: cut(save(path, discs()[0])), ("damaged or cut short", "again")),
    "truncated TIFF": ("bad.tif", lambda path: cut(save(path, discs()[0])), ("damaged or cut short", "again")),
    "text named .tif": ("bad.tif", text, ("no image that can be read", "convert it")),
    "file of no bytes": ("bad.png", lambda path: path.write_bytes(b""), ("is empty", "again")),
    "NaN": ("bad.tif", lambda path: spoilt_pixel(path, np.nan), ("1 NaN and 0 infinite", "nan_to_num")),
    "infinite": ("bad.tif", lambda path: spoilt_pixel(path, -np.inf), ("0 NaN and 1 infinite", "nan_to_num")),
    "0 x 0 PNG": ("bad.png", empty_png, ("no pixels", "again")),
    "5 channels": (
        "bad.tif",
        lambda path: tifffile.imwrite(path, np.ones((5, 9, 9), np.uint8), metadata={"axes": "CYX"}),
        ("5 channels", "takes 3", "--channels 5"),
    ),
    "complex numbers": ("bad.tif", lambda path: save(path, np.ones((9, 9), np.complex64)), ("complex64", "save")),
}
"""What is wrong -> name of the file, what writes it, and words of the message."""


# -- data sets ---------------------------------------------------------------------------------------------------------


def _replace(part: str, path: str, write: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """Puts another file in the place of ``1.png`` in images/ or masks/."""

    def change(folder: Path) -> None:
        (folder / part / "1.png").unlink()
        write(folder / part / path)

    return change


BAD_PAIRS: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "truncated image": (lambda folder: cut(folder / "images/1.png"), ("images/1.png", "damaged or cut short", "again")),
    "text as image": (_replace("images", "1.tif", text), ("images/1.tif", "no image that can be read", "convert it")),
    "truncated mask": (lambda folder: cut(folder / "masks/1.png"), ("masks/1.png", "damaged or cut short", "again")),
    "text as mask": (_replace("masks", "1.tif", text), ("masks/1.tif", "no image that can be read", "convert it")),
    "image without mask": (
        lambda folder: (folder / "masks/1.png").unlink(),
        ("images", "1 image (1.png) without a mask", "add the masks"),
    ),
    "mask without image": (
        lambda folder: (folder / "images/1.png").unlink(),
        ("masks", "1 mask (1.png) without an image", "remove"),
    ),
    "sizes that differ": (
        lambda folder: save(folder / "masks/1.png", np.ones((SIDE, SIDE + 1), np.uint8)),
        ("masks/1.png", "24 x 25", "images/1.png", "24 x 24", "save the mask in the size of the image"),
    ),
    "colour-coded mask": (
        lambda folder: save(folder / "masks/1.png", np.eye(SIDE, dtype=np.uint8)[..., None] * np.uint8([200, 0, 0])),
        ("masks/1.png", "colour picture", "replace each colour by its id"),
    ),
    "negative labels": (
        _replace("masks", "1.tif", lambda path: save(path, discs()[1].astype(np.int16) - 1)),
        ("masks/1.tif", "negative ids (lowest -1)", "use 0 for background"),
    ),
    "fractional labels": (
        _replace("masks", "1.tif", lambda path: save(path, discs()[1] / np.float32(255))),
        ("masks/1.tif", "fractional values", "save it as integers"),
    ),
    "JPEG mask": (
        _replace("masks", "1.jpg", lambda path: save(path, discs()[1])),
        ("masks/1.jpg", "JPEG", "save masks as PNG or TIFF"),
    ),
    "0 x 0 image": (lambda folder: empty_png(folder / "images/1.png"), ("images/1.png", "no pixels", "again")),
    "0 x 0 mask": (lambda folder: empty_png(folder / "masks/1.png"), ("masks/1.png", "no pixels", "again")),
}
"""What is wrong with a data set -> the change of a good one, and words of the message, whatever the command."""

SPOILT_PIXELS: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "NaN": (_replace("images", "1.tif", lambda path: spoilt_pixel(path, np.nan)), ("images/1.tif", "NaN", "replace")),
    "infinite": (
        _replace("images", "1.tif", lambda path: spoilt_pixel(path, np.inf)),
        ("images/1.tif", "infinit", "replace"),
    ),
    "5 channels": (
        _replace(
            "images",
            "1.tif",
            lambda path: tifffile.imwrite(path, np.ones((5, SIDE, SIDE), np.uint8), metadata={"axes": "CYX"}),
        ),
        ("images/1.tif", "5 channels", "--channels 5"),
    ),
}
"""What networks cannot use, though it may be copied."""


def _first(content: dict[str, Any], **values: Any) -> None:
    """Changes the first annotation."""
    content["annotations"][0].update(values)


BAD_COCO: dict[str, tuple[Callable[[dict[str, Any]], Any], tuple[str, ...]]] = {
    "image without file name": (
        lambda content: content["images"][1].pop("file_name"),
        ("`file_name`", "$.images[1]", "expected the COCO format"),
    ),
    "annotation without image": (
        lambda content: content["annotations"][0].pop("image_id"),
        ("`image_id`", "$.annotations[0]", "expected the COCO format"),
    ),
    "annotation without category": (
        lambda content: content["annotations"][0].pop("category_id"),
        ("`category_id`", "$.annotations[0]", "expected the COCO format"),
    ),
    "category without name": (
        lambda content: content["categories"][0].pop("name"),
        ("`name`", "$.categories[0]", "expected the COCO format"),
    ),
    "unknown category": (
        lambda content: _first(content, category_id=7),
        ("annotation 10 has category 7", "not among the categories (3)"),
    ),
    "unknown image": (
        lambda content: _first(content, image_id=99),
        ("annotation 10 belongs to image 99", "remove it or add the image"),
    ),
    "polygon outside the image": (
        lambda content: _first(content, segmentation=[[2, 2, 90, 2, 90, 10]]),
        ("annotation 10 of 0.png", "outside the image of 24 x 24"),
    ),
    "polygon of two points": (
        lambda content: _first(content, segmentation=[[2, 2, 9, 9]]),
        ("annotation 10 of 0.png", "at least three points"),
    ),
    "RLE of the wrong size": (
        lambda content: _first(content, segmentation={"size": [SIDE, 9], "counts": [0, SIDE * 9]}),
        ("annotation 10 of 0.png", "[24, 9]", "[24, 24]"),
    ),
    "RLE that ends too early": (
        lambda content: _first(content, segmentation={"size": [SIDE, SIDE], "counts": [4, 4]}),
        ("annotation 10 of 0.png", "8", "576"),
    ),
    "missing image": (
        lambda content: content["images"][1].update(file_name="lost.png"),
        ("1 of 2 images are missing", "lost.png", "add them"),
    ),
    "image of another size": (
        lambda content: content["images"][1].update(width=SIDE + 4),
        ("1.png has size 24 x 24", "24 x 28", "correct the"),
    ),
    "file outside the folder": (
        lambda content: content["images"][1].update(file_name="../../1.png"),
        ("image 1", "../../1.png"),
    ),
    "double image": (lambda content: content["images"][1].update(id=0), ("image id 0 is there twice", "unique")),
}
"""What is wrong with a COCO file -> the change of a good one, and words of the message."""
