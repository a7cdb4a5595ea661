"""Attributes of objects between JSON and arrays, without a change of type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def attribute_column(values: Sequence[Any]) -> NDArray[Any]:
    """(N,) array of JSON values: of numbers, truth values or text if all are of one type, else of objects."""
    kinds = {type(value) for value in values}
    if len(kinds) == 1 and kinds <= {bool, int, float, str}:
        return np.array(values)
    column = np.empty(len(values), object)
    for position, value in enumerate(values):  # numpy would take equally long lists for rows
        column[position] = value
    return column
