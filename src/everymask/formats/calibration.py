"""The size of a pixel as microscopes write it: OME-TIFF, ImageJ's TIFF, plain TIFF in centimetres, OME-Zarr."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from everymask.errors import InputError
from everymask.formats.checks import file_head

if TYPE_CHECKING:
    import tifffile

_MICROMETRES = {
    "um": 1.0,
    "µm": 1.0,  # micro sign
    "\u03bcm": 1.0,  # Greek mu
    "\\u00b5m": 1.0,  # as ImageJ writes it
    "micron": 1.0,
    "microns": 1.0,
    "micrometer": 1.0,
    "micrometre": 1.0,
    "nm": 1e-3,
    "nanometer": 1e-3,
    "nanometre": 1e-3,
    "å": 1e-4,
    "angstrom": 1e-4,
    "mm": 1e3,
    "millimeter": 1e3,
    "millimetre": 1e3,
    "cm": 1e4,
    "centimeter": 1e4,
    "centimetre": 1e4,
    "m": 1e6,
    "meter": 1e6,
    "metre": 1e6,
    "inch": 25_400.0,
    "in": 25_400.0,
}


@dataclass(frozen=True, slots=True)
class Calibration:
    """Distances between pixels in micrometres, None where a file does not say.

    Args:
        y: Between rows.
        x: Between columns.
        z: Between planes.
        stack: What the planes of a stack are, depths (``Z``) or times (``T``).
    """

    y: float | None = None
    x: float | None = None
    z: float | None = None
    stack: Literal["Z", "T"] = "Z"


def micrometres(length: Any, unit: Any) -> float | None:
    """A length in micrometres; None where it is no positive number or the unit is none of length."""
    factor = _MICROMETRES.get(str(unit).strip().lower())
    try:
        value = float(length) * (factor or 0.0)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) and value > 0 else None


def calibration_of(path: Path) -> Calibration:
    """What a TIFF says of its pixels; nothing for other files, and where the metadata make no sense."""
    try:
        if not file_head(path).startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
            return Calibration()
        import tifffile

        with tifffile.TiffFile(path) as file:
            lengths = dict(zip(file.series[0].axes, file.series[0].shape, strict=False)) if file.series else {}
            stack: Literal["Z", "T"] = "T" if lengths.get("T", 1) > 1 else "Z"
            if file.is_ome and file.ome_metadata:
                return _of_ome(file.ome_metadata, stack)
            return _of_tags(file, stack)
    except (InputError, OSError, ValueError, KeyError, IndexError, TypeError):
        return Calibration()  # a result without a scale is better than none


def _of_ome(text: str, stack: Literal["Z", "T"]) -> Calibration:
    """From the attributes of the first element Pixels of OME-XML."""
    from defusedxml import ElementTree

    pixels: Mapping[str, str] = next(
        (each.attrib for each in ElementTree.fromstring(text).iter() if each.tag.rpartition("}")[2] == "Pixels"), {}
    )
    y, x, z = (
        micrometres(pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "µm")) for axis in "YXZ"
    )
    return Calibration(y, x, z, stack)


def _of_tags(file: tifffile.TiffFile, stack: Literal["Z", "T"]) -> Calibration:
    """From the resolution, whose unit ImageJ names beside it. Dots per inch are about printing, not about things."""
    tags = file.pages.first.tags
    described = file.imagej_metadata or {}
    unit = described.get("unit")
    if unit is None and int(tags.valueof("ResolutionUnit", default=1)) == 3:
        unit = "cm"
    y, x = (_reciprocal(tags.valueof(f"{axis}Resolution", default=None)) for axis in "YX")
    return Calibration(micrometres(y, unit), micrometres(x, unit), micrometres(described.get("spacing"), unit), stack)


def _reciprocal(fraction: tuple[int, int] | None) -> float | None:
    return None if fraction is None or not all(fraction) else fraction[1] / fraction[0]
