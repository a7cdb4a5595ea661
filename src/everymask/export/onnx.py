"""Export to ONNX, and the proof that the exported network says the same."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from everymask.errors import InputError
from everymask.export.example import example_images, example_side
from everymask.files import atomic_write

if TYPE_CHECKING:
    from collections.abc import Mapping

    from everymask.methods.base import Method


class _Outputs(nn.Module):
    """The method's forward pass with a tuple instead of a dictionary, which ONNX does not know."""

    def __init__(self, method: Method, names: list[str]) -> None:
        super().__init__()
        self.method = method
        self.names = names

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs = self.method(images)
        return tuple(outputs[name] for name in self.names)


def export_onnx(method: Method, path: Path, metadata: Mapping[str, Any] | None = None) -> dict[str, float]:
    """Writes the network as ONNX with free batch size, height and width, and compares it with the original.

    The file takes ``images`` (B, C, H, W) float32 after preprocessing, H and W multiples of ``method.stride``, and
    gives the outputs of ``method.forward`` by name; decoding is not part of it. For methods of volumes it takes
    (B, C, D, H, W), D a multiple of ``method.depth_stride``.

    Args:
        method: The trained method.
        path: Target ``*.onnx``.
        metadata: Kept in the file as JSON under the key ``everymask``.

    Returns:
        For each output the largest absolute difference on a random image, relative to its range.

    Raises:
        InputError: The method says that it cannot be exported, the extra ``export`` is not installed, or the exported
            network disagrees by more than 1e-3.
    """
    if method.not_exportable:
        raise InputError(
            f"{type(method).__name__} cannot be exported: {method.not_exportable}; predict with everymask, or train "
            "another method"
        )
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 (torch.onnx needs it and would tell so less clearly)
    except ImportError as error:
        raise InputError(f"export needs {error.name}: pip install 'everymask[export]'") from error

    method = method.eval().float().cpu()
    side, depth = example_side(method), [2 * method.depth_stride] if method.dimensions == 3 else []
    generator = torch.Generator().manual_seed(0)
    example = example_images(method, generator)
    with torch.inference_mode():
        expected = {name: output.numpy() for name, output in method(example).items()}
    names = list(expected)
    free = {
        name: torch.export.Dim(name, min=1) for name in ("batch", *(["planes"] if depth else []), "rows", "columns")
    }
    strides = {"batch": 1, "planes": method.depth_stride, "rows": method.stride, "columns": method.stride}
    axes = [0, *range(2, example.ndim)]
    # A dimension times 1 is another thing to the exporter than the dimension.
    sizes = [strides[name] * each if strides[name] > 1 else each for name, each in free.items()]
    shapes = {"images": dict(zip(axes, sizes, strict=True))}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), atomic_write(path) as temporary:
        warnings.simplefilter("ignore")  # deprecations inside the exporter concern its authors, not its users
        program = torch.onnx.export(
            _Outputs(method, names),
            (example,),
            input_names=["images"],
            output_names=names,
            dynamic_shapes=shapes,
            dynamo=True,
            verbose=False,
        )
        if program is None:
            raise InputError("this version of torch cannot export the method; update torch")
        proto = program.model_proto
        onnx.helper.set_model_props(proto, {"everymask": json.dumps(dict(metadata or {}))})
        temporary.write_bytes(proto.SerializeToString())
        session = onnxruntime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
        # Another shape than the one that was traced, to prove that the sizes are free.
        longer = [3 * each for each in depth]
        other = torch.rand(1, method.channels, *longer, side, 3 * side, generator=generator)
        with torch.inference_mode():
            second = {name: output.numpy() for name, output in method(other).items()}
        worst = dict.fromkeys(names, 0.0)
        for images, wanted in ((example, expected), (other, second)):
            found = session.run(names, {"images": images.numpy()})
            for name, array in zip(names, found, strict=True):
                scale = float(np.abs(wanted[name]).max()) or 1.0
                worst[name] = max(worst[name], float(np.abs(array - wanted[name]).max()) / scale)
        if max(worst.values()) > 1e-3:
            raise InputError(f"the exported network disagrees with the original: {worst}; nothing was written")
    return worst
