"""Weights out of ONNX files, which name tensors as they like but keep the order in which the network uses them."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from everymask.errors import InputError

SUFFIX = ".onnx"
"""Of the files that `read_onnx` reads."""

_WITH_WEIGHTS = frozenset({"BatchNormalization", "Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators whose tensors are learnt; constants of others are sizes, scales and indices."""


def read_onnx(path: Path) -> dict[str, Tensor]:
    """The learnt tensors of an ONNX file by name, in the order in which the graph uses them, as float32.

    Exporters fold batch normalisation into the convolution before it and then number the new tensors instead of naming
    them, so that of those only the order tells which is which: weight and bias of the first convolution, of the second
    and so on.

    Args:
        path: Of the file.

    Raises:
        InputError: The file or the package onnx is missing, or it holds no weights.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise InputError("weights in ONNX files need the package onnx; run: pip install 'everymask[export]'") from error
    if not path.is_file():
        raise InputError(f"{path} does not exist; name a file of ONNX weights, such as yolox_nano.onnx")
    found: dict[str, Tensor] = {}
    try:
        graph = onnx.load(str(path)).graph
        constants = {each.name: each for each in graph.initializer}
        for node in graph.node:
            for name in node.input:
                if node.op_type in _WITH_WEIGHTS and name in constants and name not in found:
                    array = np.array(onnx.numpy_helper.to_array(constants[name]), np.float32)
                    found[name] = torch.from_numpy(array)
    except (DecodeError, OSError, ValueError, TypeError, onnx.checker.ValidationError) as error:  # of a broken file
        reason = textwrap.shorten(str(error), 160, placeholder=" ...")
        raise InputError(f"{path} cannot be read as an ONNX file: {reason}; download or export it again") from error
    if not found:
        raise InputError(f"{path} holds no weights; expected a network exported with its weights")
    return found
