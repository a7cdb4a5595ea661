"""The size model of Cellpose: from the style of an image to the diameter of its objects.

Stringer et al., Cellpose, Nature Methods 2021, Methods ("Size model"); official program `train.train_size` and
`models.SizeModel`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from everymask.errors import InputError

_LEAST = 5.0  # pixels; the official program answers nothing smaller


@dataclass(frozen=True)
class SizeModel:
    """Linear in the style, and its answer the logarithm of the diameter as a share of the mean.

    Args:
        weights: (S,), ``A`` in the official program.
        style: (S,) mean style of the training images, ``smean`` there.
        offset: Mean answer for them, ``ymean`` there.
    """

    weights: NDArray[np.floating]
    style: NDArray[np.floating]
    offset: float

    def diameter(self, style: NDArray[np.floating], mean: float) -> float:
        """The diameter in pixels that a style (S,) tells, at least 5.

        Args:
            style: Of length 1.
            mean: Diameter that the network was trained for.
        """
        return max(_LEAST, mean * math.exp(float(self.weights @ (style - self.style)) + self.offset))


def fit_size_model(
    styles: NDArray[np.floating], diameters: NDArray[np.floating], mean: float, strength: float = 1.0
) -> SizeModel:
    """Ridge regression of the logarithm of diameters on styles, both less their means (`train.train_size`).

    Args:
        styles: (N, S).
        diameters: (N,) median diameters of the objects in pixels, as the network saw them.
        mean: Diameter that the network was trained for.
        strength: Of the penalty on the squares of the weights.

    Raises:
        InputError: There are not as many styles as diameters, none, or diameters of 0.
    """
    styles, diameters = np.asarray(styles, np.float64), np.asarray(diameters, np.float64)
    if styles.ndim != 2 or diameters.shape != styles.shape[:1] or not len(styles):
        raise InputError(f"expected styles (N, S) and diameters (N,), got {styles.shape} and {diameters.shape}")
    if not (diameters > 0).all():
        raise InputError("diameters must be above 0 pixels; leave out images without objects")
    answers = np.log(diameters / mean)
    centred = styles - styles.mean(0)
    gram = centred.T @ centred + strength * np.eye(styles.shape[1])
    weights = np.linalg.solve(gram, centred.T @ (answers - answers.mean()))
    return SizeModel(weights, styles.mean(0), float(answers.mean()))


def object_diameter(areas: NDArray[np.integer]) -> float:
    """Median diameter of objects of these areas, each taken for a disc; 0 without any (`utils.diameters`)."""
    return float(np.median(np.sqrt(areas)) * 2 / math.sqrt(math.pi)) if len(areas) else 0.0
