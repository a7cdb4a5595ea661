"""EveryMask: every segmentation method of the deep-learning era behind one data type and one set of verbs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from everymask.formats import open_dataset
    from everymask.model import Model, load
    from everymask.types import Categories, Category, Dataset, Sample, Segments, Task

__all__ = [
    "Categories",
    "Category",
    "Dataset",
    "Model",
    "Sample",
    "Segments",
    "Task",
    "load",
    "open_dataset",
]

_HOME = {"Model": "everymask.model", "load": "everymask.model", "open_dataset": "everymask.formats"}


def __getattr__(name: str) -> Any:
    """Imports the public names on first use, so that `import everymask` stays free of torch."""
    if name not in __all__:
        raise AttributeError(f"module 'everymask' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOME.get(name, "everymask.types")), name)
