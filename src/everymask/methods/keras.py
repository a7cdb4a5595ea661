"""Weights of Keras networks from HDF5 files, in the axis order of torch.

Keras writes one group a layer, in the order of the layers (``layer_names``), with its arrays (``weight_names``); the
file of a whole model has the same under ``model_weights``. Files are read by h5py, without TensorFlow.
"""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from everymask.errors import InputError

if TYPE_CHECKING:
    import h5py

SUFFIXES = (".h5", ".hdf5")
"""Of the files that `read_keras` reads."""

LARGEST = 2**32
"""Bytes of a file's arrays above which it is refused: a small file may claim to hold any number of zeros."""

_NAMES = {
    "kernel": "weight",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
"""Keras's name of an array -> torch's."""


def read_keras(path: Path) -> dict[str, Tensor]:
    """The arrays of a Keras file as ``layer.weight``, ``layer.bias`` ..., in the order of the layers.

    Kernels (height, width, inputs, outputs) become (outputs, inputs, height, width), likewise in 3-D; those of
    transposed convolutions (height, width, outputs, inputs) become (inputs, outputs, height, width).

    Args:
        path: Written by ``model.save_weights("x.h5")`` or ``model.save("x.h5")``.

    Raises:
        InputError: The file or the package h5py is missing, or it holds no weights of Keras.
    """
    try:
        import h5py
    except ImportError as error:
        raise InputError("weights of Keras need the package h5py; run: pip install 'everymask[microscopy]'") from error
    if not path.is_file():
        raise InputError(f"{path} does not exist; name a file of Keras weights, such as weights_best.h5")
    try:
        with h5py.File(path, "r") as file:
            return _arrays(file, path)
    except (OSError, KeyError, RuntimeError, TypeError) as error:  # what h5py makes of broken files
        reason = textwrap.shorten(str(error), 160, placeholder=" ...")
        raise InputError(f"{path} cannot be read as weights of Keras: {reason}") from error


def _arrays(file: h5py.File, path: Path) -> dict[str, Tensor]:
    import h5py

    root: Any = file
    if "layer_names" not in root.attrs and file.get("model_weights", getlink=True) is not None:
        root = _own(file, "model_weights", path)
    if "layer_names" not in root.attrs:
        raise InputError(
            f"{path} does not list the layers of a Keras network; expected a file of "
            'model.save_weights("weights.h5"), not .weights.h5, which has no names of layers'
        )
    found: dict[str, Tensor] = {}
    bytes_left = LARGEST
    for layer in map(_text, root.attrs["layer_names"]):
        group = _own(root, layer, path)
        for name in map(_text, group.attrs.get("weight_names", ())):
            dataset = _own(group, name, path)
            if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind != "f":
                raise InputError(f"{path}: {layer}/{name} is no array of numbers; save the weights again")
            bytes_left -= math.prod(dataset.shape) * dataset.dtype.itemsize
            if dataset.external or dataset.is_virtual or bytes_left < 0:
                raise InputError(f"{path}: {layer}/{name} is not held by the file itself, or above {LARGEST} bytes")
            last = name.rsplit("/", 1)[-1].split(":")[0]
            found[f"{layer}.{_NAMES.get(last, last)}"] = _in_torch(dataset[()], last)
    if not found:
        raise InputError(f"{path} holds no weights; expected those of a trained Keras network")
    return found


def _own(group: Any, name: str, path: Path) -> Any:
    """A member that lies in the file itself: links, at any step of its path, could lead to any file of the machine."""
    import h5py

    member = group
    for part in name.split("/"):
        link = member.get(part, getlink=True) if isinstance(member, h5py.Group) else None
        if not isinstance(link, h5py.HardLink):
            raise InputError(f"{path} lacks {name!r}, or has only a link to it; save the weights of the network again")
        member = member[part]
    return member


def _text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _in_torch(values: Any, name: str) -> Tensor:
    array = np.asarray(values, np.float32)
    if name == "kernel" and array.ndim >= 2:
        array = array.transpose(array.ndim - 1, array.ndim - 2, *range(array.ndim - 2))
    return torch.from_numpy(array.copy())
