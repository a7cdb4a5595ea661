"""`everymask export`: a model for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from everymask.cli.application import Common

EXAMPLES = """\
  everymask export nuclei --to onnx --out nuclei.onnx
  everymask export runs/cells/model.safetensors --to half --out cells.safetensors"""


def command(
    model: str,
    /,
    *,
    to: Literal["onnx", "half"],
    out: Path,
    common: Common = Common(),  # noqa: B008 - frozen, and cyclopts reads the default
) -> None:
    """Write a model in a format for other programs.

    As `onnx` the network is exported: from the normalised image to the method's outputs, for any image size. `half` is
    a model file for this program with 16-bit weights, half as large.

    Args:
        model: Name that `everymask models` lists, or a model file.
        to: Format of the result.
        out: File to write.
    """
    from everymask.cli.output import Output
    from everymask.model import Model

    output = Output(common)
    difference = Model.load(model).export(to, out)
    largest = max(difference.values(), default=0.0)
    output.hint(f"wrote {out}; its outputs differ from the model's by at most {largest:.1e} of their range")
    output.result({"model": model, "format": to, "file": out, "difference": difference})
