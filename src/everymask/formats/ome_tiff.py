"""Label masks as OME-TIFF (https://docs.openmicroscopy.org/ome-model): with the size of a pixel. Writing only.

Reading needs nothing of its own: `everymask.formats.images.read_labels` reads them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from everymask.files import atomic_write
from everymask.formats.calibration import Calibration
from everymask.formats.checks import integer_labels

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TILE = 512
"""Larger images are stored in tiles of this side, so that viewers need not read them whole."""


def write_ome_labels(path: Path, ids: NDArray[Any], calibration: Calibration | None = None) -> None:
    """Writes a label mask, deflate-compressed.

    Args:
        path: Such as ``name.ome.tif``.
        ids: (H, W) or (Z, H, W) integers, none negative; uint16 in the file if they fit, else uint32.
        calibration: Distances between pixels, and what the planes are.

    Raises:
        InputError: A number is negative, or the file cannot be written.
    """
    import tifffile

    ids = integer_labels(np.asarray(ids), path)
    known = calibration or Calibration()
    metadata: dict[str, Any] = {"axes": "YX" if ids.ndim == 2 else f"{known.stack}YX", "Name": path.name}
    for axis in ("x", "y", "z"):
        distance = getattr(known, axis)
        if distance is not None and (axis != "z" or (ids.ndim == 3 and known.stack == "Z")):
            metadata |= {f"PhysicalSize{axis.upper()}": distance, f"PhysicalSize{axis.upper()}Unit": "µm"}
    with atomic_write(path) as temporary:
        tifffile.imwrite(
            temporary,
            ids.astype(np.uint16 if int(ids.max(initial=0)) < 2**16 else np.uint32),
            ome=True,
            photometric="minisblack",
            compression="zlib",
            tile=(_TILE, _TILE) if max(ids.shape[-2:]) > 2 * _TILE else None,
            metadata=metadata,
        )
