"""Images in Zarr, read piece by piece, and label masks written so: for what is larger than memory.

An image is a folder that holds a Zarr array (formats 2 and 3), or an OME-Zarr image
(https://ngff.openmicroscopy.org), of which the first, full resolution is taken. The rules for the axes:

- OME-Zarr names them: y and x, then perhaps c, and one of z and t; others must have length 1.
- Without names, two axes are rows and columns. Of three, a last axis of up to 4 is channels, else a first one of up to
  4 is, and else the first axis counts planes. Further axes in front must have length 1.

Arrays of other programs may be compressed in ways that need other packages; the error says so. The package zarr (extra
``microscopy``) does the reading, in its second as in its third generation.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from everymask.errors import InputError
from everymask.formats.calibration import Calibration, micrometres

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MARKS = (".zarray", ".zgroup", "zarr.json")
_CHUNK = 1024
_MOST_CHANNELS = 4
"""The longest axis without a name that is taken for channels, as in TIFF files."""


def is_zarr(path: Path) -> bool:
    """Whether a folder is a Zarr array or group."""
    return path.is_dir() and any((path / mark).is_file() for mark in _MARKS)


class ZarrImage:
    """An image (H, W, C), or a stack (Z, H, W, C) of such, of which slices are read.

    Attributes:
        shape: (H, W, C) or (Z, H, W, C).
        dtype: The file's own number type.
        calibration: Distances between pixels.
        path: The folder.
    """

    def __init__(self, array: Any, axes: str, path: Path, calibration: Calibration, plane: int | None = None) -> None:
        self._array, self._axes, self._plane = array, axes, plane
        self.path, self.calibration = path, calibration
        lengths = dict(zip(axes, array.shape, strict=True))
        plain = (lengths["Y"], lengths["X"], lengths.get("C", 1))
        self.shape: tuple[int, ...] = (lengths["Z"], *plain) if "Z" in axes and plane is None else plain
        self.dtype = np.dtype(array.dtype)

    @property
    def ndim(self) -> int:
        """3, or 4 for a stack."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: int | slice | tuple[slice, ...]) -> Any:
        """A plane of a stack by its number, as another lazy image; a part of an image or of a stack as an array.

        Args:
            key: Of a stack, the number of a plane, or slices of planes, rows and columns (the latter may be left out),
                which give (z, h, w, C). Of an image, slices of rows and columns, which give (h, w, C).

        Raises:
            InputError: A piece is damaged, or compressed in a way that is not known.
        """
        if self.ndim == 4:
            if not isinstance(key, int | np.integer):
                planes, *window = key if isinstance(key, tuple) else (key,)
                return np.stack([self[z][tuple(window)] for z in range(*planes.indices(self.shape[0]))])
            plane = range(self.shape[0])[int(key)]
            return ZarrImage(self._array, self._axes, self.path, self.calibration, plane)
        rows, columns = (*(key if isinstance(key, tuple) else (key,)), slice(None), slice(None))[:2]
        wanted = {"Y": rows, "X": columns, "C": slice(None), "Z": self._plane or 0}
        with _reading(self.path):
            pixels = np.asarray(self._array[tuple(wanted.get(axis, 0) for axis in self._axes)])
        order = [axis for axis in self._axes if axis in "YXC"]
        pixels = pixels.transpose([order.index(axis) for axis in "YXC" if axis in order])
        return pixels if "C" in order else pixels[..., None]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """The whole image."""
        whole = np.stack([self[z][:] for z in range(len(self))]) if self.ndim == 4 else self[:]
        return whole if dtype is None else whole.astype(dtype)


def open_zarr(path: Path) -> ZarrImage:
    """Opens an image; nothing is read but what describes it.

    Raises:
        InputError: The package zarr is missing, the folder holds no image by the rules above, or is damaged.
    """
    zarr = _zarr()
    with _reading(path):
        node = zarr.open(str(path), mode="r")
        described = dict(node.attrs)
        array, multiscales = node, _multiscales(described)
        if not hasattr(node, "shape"):
            inner = multiscales["datasets"][0]["path"] if multiscales else "0"
            if inner not in node:
                names = sorted(str(name) for name in node)
                listed = ", ".join(names[:5]) or "nothing"
                raise InputError(f"{path} is no OME-Zarr image; it holds {listed}: name an array in it")
            array = node[inner]
        if not hasattr(array, "shape"):
            raise InputError(f"{path} holds groups only; name an image in it, such as {path}/0")
        axes = _named_axes(multiscales, array.ndim) or _likely_axes(array.shape)
        lengths = dict(zip(axes, array.shape, strict=True))
        kept = "".join("1" if n == 1 and axis not in "YX" else axis for axis, n in zip(axes, array.shape, strict=True))
        stack = "T" if "T" in kept else "Z"
        calibration = _calibration(multiscales, axes, stack)
        others = [axis for axis in kept if axis not in "1ZTCYX"]
        if others or ("Z" in kept and "T" in kept) or any(axes.count(axis) != 1 for axis in "YX"):
            raise InputError(
                f"{path} has the axes {axes} of lengths {tuple(lengths.values())}, which are not one image or one "
                "stack; save one stack to a folder"
            )
        if 0 in array.shape:
            raise InputError(f"{path} has no pixels: its shape is {tuple(array.shape)}")
    return ZarrImage(array, kept.replace("T", "Z"), path, calibration)


def _multiscales(attributes: dict[str, Any]) -> dict[str, Any] | None:
    """The first image of OME-Zarr metadata, whose place changed with version 0.5."""
    listed = attributes.get("ome", attributes).get("multiscales")
    return listed[0] if listed else None


def _named_axes(multiscales: dict[str, Any] | None, count: int) -> str:
    """A letter for each axis by the metadata: names stood alone before version 0.4, there were five before 0.3."""
    if multiscales is None:
        return ""
    axes = multiscales.get("axes", "tczyx" if count == 5 else "")
    letters = "".join((axis["name"] if isinstance(axis, dict) else str(axis))[:1] for axis in axes).upper()
    return letters if len(letters) == count else ""


def _likely_axes(shape: Sequence[int]) -> str:
    """A letter for each axis of an array that nothing is said of; ``"1"`` for those in front of the last three."""
    if len(shape) == 2:
        return "YX"
    if len(shape) < 2:
        return "X"[: len(shape)]
    front = "".join("1" if length == 1 else "?" for length in shape[:-3])
    first, second, last = shape[-3:]
    if last <= _MOST_CHANNELS < min(first, second):
        return f"{front}YXC"
    return f"{front}CYX" if first <= _MOST_CHANNELS else f"{front}ZYX"


def _calibration(multiscales: dict[str, Any] | None, axes: str, stack: Any) -> Calibration:
    """Distances from the scale of the first resolution."""
    if multiscales is None or not isinstance(multiscales.get("axes"), list):
        return Calibration(stack=stack)
    changes = multiscales["datasets"][0].get("coordinateTransformations", [])
    scale: list[Any] = next((each["scale"] for each in changes if each.get("type") == "scale"), [])
    units = [each.get("unit") if isinstance(each, dict) else None for each in multiscales["axes"]]
    found = {
        axis.lower(): micrometres(length, unit)
        for axis, length, unit in zip(axes, scale, units, strict=False)
        if axis in "YXZ"
    }
    return Calibration(found.get("y"), found.get("x"), found.get("z"), stack)


def write_zarr_labels(
    path: Path, planes: Sequence[NDArray[Any]], calibration: Calibration | None = None, *, stack: bool = False
) -> None:
    """Writes a label mask as an OME-Zarr image (version 0.4, Zarr format 2, which all viewers read), strip by strip.

    Args:
        path: The folder, such as ``name.zarr``; it appears when it is complete, in the place of one that was there.
        planes: Integers (H, W), none negative: one, or those of a stack.
        calibration: Distances between pixels, and what the planes are.
        stack: Write three axes.

    Raises:
        InputError: The package zarr is missing, or the folder cannot be written.
    """
    zarr = _zarr()
    known = calibration or Calibration()
    height, width = planes[0].shape
    highest = max(int(plane.max(initial=0)) for plane in planes)
    chunks = (min(_CHUNK, height), min(_CHUNK, width))
    # Later generations of the package write another format by themselves.
    extra = {"zarr_format": 2} if int(zarr.__version__.split(".")[0]) >= 3 else {}
    with _folder(path) as temporary:
        array = zarr.open_array(
            str(temporary / "0"),
            mode="w",
            shape=(len(planes), height, width) if stack else (height, width),
            chunks=(1, *chunks) if stack else chunks,
            dtype="uint16" if highest < 2**16 else "uint32",
            fill_value=0,
            dimension_separator="/",
            **extra,
        )
        for z, plane in enumerate(planes):
            for top in range(0, height, _CHUNK):
                strip = plane[top : top + _CHUNK].astype(array.dtype)
                if stack:
                    array[z, top : top + _CHUNK] = strip
                else:
                    array[top : top + _CHUNK] = strip
        (temporary / ".zgroup").write_text(json.dumps({"zarr_format": 2}), encoding="utf-8")
        described = json.dumps(_description(path.stem, known, stack), indent=2)
        (temporary / ".zattrs").write_text(described, encoding="utf-8")


def _description(name: str, known: Calibration, stack: bool) -> dict[str, Any]:
    """OME-Zarr metadata, version 0.4."""
    axes: list[dict[str, str]] = []
    scale: list[float] = []
    if stack:
        axes.append({"name": known.stack.lower(), "type": "space" if known.stack == "Z" else "time"})
    axes += [{"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    for axis in axes:
        distance = None if axis["name"] == "t" else getattr(known, axis["name"])
        if distance is not None:
            axis["unit"] = "micrometer"
        scale.append(1.0 if distance is None else distance)
    datasets = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": scale}]}]
    return {
        "multiscales": [{"version": "0.4", "name": name, "axes": axes, "datasets": datasets}],
        "image-label": {"version": "0.4"},
    }


@contextlib.contextmanager
def _folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place when the block ends without an error."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.stem[:40]}."))
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another --out") from error
    made = temporary / "made"
    try:
        made.mkdir()
        yield made
        if path.is_dir():
            path.rename(temporary / "old")  # a folder can take the place of nothing but an empty one
        made.rename(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; choose another --out") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns the errors of the package into one line about the file."""
    try:
        yield
    except InputError:
        raise
    except (
        OSError,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
        RuntimeError,
        ArithmeticError,
    ) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{path} cannot be read as Zarr: {reason[:200]}; export it again, or install what its compression needs"
        ) from error


def _zarr() -> Any:
    try:
        import zarr
    except ImportError as error:
        raise InputError("Zarr needs the package zarr; run: pip install 'everymask[microscopy]'") from error
    return zarr
