"""TIFF images and label masks, read through tifffile.

The rules:

- The axes are those that ImageJ, OME or tifffile's own metadata name: Y and X, then C and S (channels, samples) become
  the last axis, Z or T the first. A time series of volumes is refused: there is one volume to a file.
- Axes that no metadata names: a last axis of 2 to 4 behind two longer ones is channels (an array saved as (H, W, C));
  in front, an axis of 2 to 4 is channels and a longer one is Z. In a label mask, every such axis is Z.
- Of a file with several images (a pyramid, an OME series, a slide with its thumbnail) the first is read; plain pages of
  different sizes are refused.
- Palette -> RGB (but indices in a label mask); white-is-zero is inverted; 1 bit -> 0 and 255; CMYK -> RGB.
- Compressions that tifffile needs the package imagecodecs for (LZW, JPEG ...) are read through Pillow where it can do
  so without loss.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from everymask.errors import InputError
from everymask.files import atomic_write
from everymask.formats.checks import check_plane, integer_labels, reading, single_channel, without_opaque_alpha

if TYPE_CHECKING:
    import tifffile
    from numpy.typing import NDArray

_MOST_CHANNELS = 4
"""The longest axis without a name that is taken for channels."""

_INTERLEAVED = 1
"""Value of the tag PlanarConfiguration for channels that lie side by side; 2 is one plane each."""


# -- reading ---------------------------------------------------------------------------------------------------------


def read_image(path: Path) -> NDArray[Any]:
    """(H, W, C) or (Z, H, W, C) in the file's own number type.

    Raises:
        InputError: The file is damaged, its axes cannot be told, or its compression needs imagecodecs.
    """
    with _opened(path) as series:
        page = series.keyframe
        axes = _axes(series, path)
        pixels = _decode(series, path)
        photometric = _name(page.photometric)
        if photometric == "PALETTE" and page.colormap is not None:
            table = np.asarray(page.colormap)
            table = (table >> 8 if table.max(initial=0) > 255 else table).astype(np.uint8)
            pixels, axes = table.T[pixels], axes + "S"
        elif photometric == "MINISWHITE" and pixels.dtype.kind in "bu":
            pixels = ~pixels if pixels.dtype.kind == "b" else np.array(2**page.bitspersample - 1 - pixels, pixels.dtype)
        if pixels.dtype.kind == "b":
            pixels = pixels.astype(np.uint8) * np.uint8(255)
        if pixels.dtype.kind not in "uif":
            raise InputError(
                f"{path} holds numbers of type {pixels.dtype}, which are no image; save a real number type"
            )
        ordered = _ordered(pixels, axes, path)
        if photometric == "SEPARATED" and ordered.shape[-1] == 4 and ordered.dtype == np.uint8:
            return _rgb_of_cmyk(ordered)
        return _without_alpha(ordered) if _has_alpha(page) else ordered


def read_labels(path: Path) -> NDArray[Any]:
    """(H, W) or (Z, H, W) non-negative integers; palette files give their indices.

    Raises:
        InputError: As for `read_image`; or the channels differ; or a value is negative or fractional.
    """
    with _opened(path) as series:
        ordered = _ordered(_decode(series, path), _axes(series, path, labels=True), path)
        if _has_alpha(series.keyframe):
            ordered = _without_alpha(ordered)
        return integer_labels(single_channel(ordered, path), path)


def image_size(path: Path) -> tuple[int, ...]:
    """(H, W) or (Z, H, W) of what `read_image` gives, from the header."""
    with _opened(path) as series:
        lengths = dict(zip(_axes(series, path), series.shape, strict=True))
        depth = lengths.get("Z", lengths.get("T", 1))
        size = (lengths["Y"], lengths["X"])
        return size if depth == 1 else (depth, *size)


def read_region(path: Path, rows: slice, columns: slice) -> NDArray[Any]:
    """(h, w, C) of an image: only the strips or tiles that the rectangle touches are decoded.

    Raises:
        InputError: As for `read_image`; or the file is a volume; or a slice has a step.
    """
    if rows.step not in {None, 1} or columns.step not in {None, 1}:
        raise InputError(f"a region of {path} needs slices with step 1, got {rows} and {columns}")
    with _opened(path) as series:
        page = series.keyframe
        height, width, channels = page.imagelength, page.imagewidth, page.samplesperpixel
        simple = math.prod(series.shape) == height * width * channels and page.planarconfig == _INTERLEAVED
        simple = simple and _name(page.photometric) in {"MINISBLACK", "RGB"} and not _has_alpha(page)
        if not simple or page.dtype is None or page.dtype.kind not in "uif":
            whole = read_image(path)
            if whole.ndim == 4:
                raise InputError(f"{path} is a volume of shape {whole.shape[:3]}, but a region is cut from a 2-D image")
            return whole[rows, columns]
        top, bottom, _ = rows.indices(height)
        left, right, _ = columns.indices(width)
        region = np.zeros((max(bottom - top, 0), max(right - left, 0), channels), page.dtype)
        tile_height = page.tilelength if page.is_tiled else page.rowsperstrip
        tile_width = page.tilewidth if page.is_tiled else width
        across = math.ceil(width / tile_width)
        if region.size:
            for down in range(top // tile_height, (bottom - 1) // tile_height + 1):
                for along in range(left // tile_width, (right - 1) // tile_width + 1):
                    tile = _tile(page, down * across + along, path)
                    y, x = down * tile_height, along * tile_width
                    y0, y1 = max(top, y), min(bottom, y + tile.shape[0])
                    x0, x1 = max(left, x), min(right, x + tile.shape[1])
                    region[y0 - top : y1 - top, x0 - left : x1 - left] = tile[y0 - y : y1 - y, x0 - x : x1 - x]
        return region


def _tile(page: tifffile.TiffPage, number: int, path: Path) -> NDArray[Any]:
    """(h, w, C) of one strip or tile."""
    handle = page.parent.filehandle
    handle.seek(page.dataoffsets[number])
    data = handle.read(page.databytecounts[number])
    try:
        tile = page.decode(data, number)[0]
    except ValueError as error:
        raise _needs_codec(path, page) from error
    if tile is None:
        raise InputError(f"{path} is damaged: strip or tile {number} is empty; export the file again")
    return tile[0]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tifffile.TiffPageSeries]:
    """The first series of a TIFF, its plane checked."""
    import tifffile

    with reading(path), tifffile.TiffFile(path) as file:
        if not file.series:
            raise InputError(f"{path} is a TIFF without an image; export the file again")
        series = file.series[0]
        page = series.keyframe
        check_plane((page.imagelength, page.imagewidth), path)
        full_pages = [other for other in file.series if not other.keyframe.is_reduced]
        if series.kind in {"generic", "uniform", "shaped"} and len(full_pages) > 1:
            raise InputError(
                f"{path} holds {len(full_pages)} images of different sizes or types; save each as a file of its own"
            )
        yield series


def _axes(series: tifffile.TiffPageSeries, path: Path, *, labels: bool = False) -> str:
    """One letter of Z, T, Y, X, C, S for each axis of a series, those without a name decided by the rule above.

    Axes of length 1 that are neither rows nor columns get the letter ``"1"``.
    """
    shape = series.shape
    letters = list(series.axes)
    if letters.count("Y") != 1 or letters.count("X") != 1 or 0 in shape:
        raise InputError(f"{path} has the axes {series.axes} of lengths {shape}, but an image needs Y and X once each")
    letters = [
        "1" if length == 1 and letter not in "YX" else letter if letter in "ZTYXCS" else "?"
        for letter, length in zip(letters, shape, strict=True)
    ]
    if labels:
        letters = ["Z" if letter == "?" else letter for letter in letters]
    elif (
        letters[-3:] == ["?", "Y", "X"]
        and series.kind == "shaped"
        and shape[-1] <= _MOST_CHANNELS < min(shape[-3], shape[-2])
    ):
        letters[-3:] = ["Y", "X", "C"]
    for position, letter in enumerate(letters):
        if letter == "?" and shape[position] <= _MOST_CHANNELS and not {"C", "S"} & set(letters):
            letters[position] = "C"
    if letters.count("?") == 1 and not {"Z", "T"} & set(letters):
        letters[letters.index("?")] = "Z"
    if "?" in letters or sum(letters.count(letter) for letter in "ZT") > 1 or letters.count("C") > 1:
        raise InputError(
            f"{path} has the axes {series.axes} of lengths {shape}, which are not one image or one volume; save one "
            "volume to a file, with the axes named (ImageJ or OME-TIFF)"
        )
    return "".join(letters)


def _decode(series: tifffile.TiffPageSeries, path: Path) -> NDArray[Any]:
    """The raw array of a series, through tifffile or else through Pillow."""
    page = series.keyframe
    try:
        if _name(page.photometric) == "YCBCR" and _name(page.compression) == "NONE":
            return _decode_with_pillow(series, path)
        return np.asarray(series.asarray())
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        return _decode_with_pillow(series, path)


def _decode_with_pillow(series: tifffile.TiffPageSeries, path: Path) -> NDArray[Any]:
    """The array of a series, page by page.

    Raises:
        InputError: Pillow would lose something: more than 8 bits in colour, channels in planes of their own, or a
            compression that it does not know, either.
    """
    from PIL import Image, TiffImagePlugin

    page = series.keyframe
    pages = [part for part in series.pages if part is not None]
    modes = {1: {"L", "P", "1", "I;16", "I;16B", "I", "F"}, 2: {"LA"}, 3: {"RGB"}, 4: {"RGBA", "CMYK"}}
    depths = {1, 8, 16, 32} if page.samplesperpixel == 1 else {8}
    if page.planarconfig != _INTERLEAVED or page.bitspersample not in depths or len(pages) != len(series.pages):
        raise _needs_codec(path, page)
    planes = []
    with path.open("rb") as stream:
        file = TiffImagePlugin.TiffImageFile(stream)
        for part in pages:
            file.seek(part.index)
            image: Image.Image = file.convert("RGB") if file.mode == "YCbCr" else file
            plane = np.array(image)
            plane = plane.astype(plane.dtype.newbyteorder("="))
            if image.mode not in modes.get(page.samplesperpixel, set()) or plane.dtype != page.dtype:
                raise _needs_codec(path, page)
            if _name(page.photometric) == "MINISWHITE" and plane.dtype.kind in "bu":
                # Pillow has inverted it already; the caller expects what lies in the file.
                plane = ~plane
            planes.append(plane)
    return np.stack(planes).reshape(series.shape)


def _name(value: int) -> str:
    """The name of one of tifffile's numbered constants; files hold numbers without a name, too."""
    return str(getattr(value, "name", value))


def _needs_codec(path: Path, page: tifffile.TiffPage) -> InputError:
    return InputError(
        f"{path} is compressed with {_name(page.compression)}, which needs one more package: pip install imagecodecs "
        "(or save the file without compression)"
    )


def _ordered(pixels: NDArray[Any], axes: str, path: Path) -> NDArray[Any]:
    """(H, W, C) or (Z, H, W, C) of an array with the given axes."""
    if len(axes) != pixels.ndim:
        raise InputError(f"{path} has {len(axes)} axes ({axes}), but its pixels have shape {pixels.shape}")
    keep = [position for position, letter in enumerate(axes) if letter != "1"]
    pixels = pixels.reshape([pixels.shape[position] for position in keep])
    axes = "".join(axes[position] for position in keep)
    order = [axes.index(letter) for letter in "ZTYXCS" if letter in axes]
    pixels = pixels.transpose(order)
    spatial = len(order) - sum(letter in axes for letter in "CS")
    return np.ascontiguousarray(pixels.reshape(*pixels.shape[:spatial], -1))


def _has_alpha(page: tifffile.TiffPage) -> bool:
    """Whether the last sample of each pixel is an alpha channel."""
    return (
        page.samplesperpixel in {2, 4}
        and _name(page.photometric) in {"RGB", "MINISBLACK"}
        and bool(page.extrasamples)
        and _name(page.extrasamples[-1]) in {"ASSOCALPHA", "UNASSALPHA"}
    )


def _without_alpha(pixels: NDArray[Any]) -> NDArray[Any]:
    """Drops an alpha channel of integers that is opaque everywhere."""
    return without_opaque_alpha(pixels) if pixels.dtype.kind == "u" else pixels


def _rgb_of_cmyk(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGB (..., 3) of CMYK (..., 4), both 0..255, by Pillow's rule."""
    from PIL import Image

    flat = np.ascontiguousarray(pixels.reshape(-1, pixels.shape[-2], 4))
    converted = np.asarray(Image.fromarray(flat, mode="CMYK").convert("RGB"))
    return converted.reshape(*pixels.shape[:-1], 3).copy()


# -- writing ---------------------------------------------------------------------------------------------------------


def write_image(path: Path, image: NDArray[Any]) -> None:
    """Writes (H, W, C) or (Z, H, W, C), so that `read_image` gives the same array.

    3 channels of uint8 or uint16 become RGB, any other number of channels one plane each.
    """
    volume = image.ndim == 4
    channels = image.shape[-1]
    if channels == 1:
        write(path, image[..., 0], "ZYX" if volume else "YX")
    elif channels == 3 and image.dtype in (np.uint8, np.uint16):
        write(path, image, "ZYXS" if volume else "YXS")
    else:
        write(path, np.moveaxis(image, -1, -3), "ZCYX" if volume else "CYX")


def write(path: Path, array: NDArray[Any], axes: str) -> None:
    """Writes an array, deflate-compressed, with its axes named in the metadata.

    Args:
        path: Ends in ``.tif`` or ``.tiff``.
        array: Any real number type.
        axes: A letter for each axis, such as ``"ZYX"``; S stands for the samples of RGB.

    Raises:
        InputError: The number type is none that a TIFF holds, or the disk is full.
    """
    import tifffile

    if array.dtype.kind not in "buif" or array.dtype.itemsize > 8:
        raise InputError(f"{path}: a TIFF cannot hold {array.dtype}; convert the image to a real number type")
    pixels = array.astype(np.uint8) if array.dtype.kind == "b" else array
    with atomic_write(path) as temporary:
        tifffile.imwrite(
            temporary,
            np.ascontiguousarray(pixels),
            photometric="rgb" if axes.endswith("S") else "minisblack",
            compression="zlib",
            metadata={"axes": axes},
        )
