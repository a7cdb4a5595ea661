"""The data types that every part of EveryMask shares: segments, their geometries, categories and samples."""

from everymask.types.categories import Categories, Category, Task
from everymask.types.geometry import LabelMap, Masks, Polygon, Polygons
from everymask.types.sample import Dataset, Sample
from everymask.types.segments import Segments

__all__ = [
    "Categories",
    "Category",
    "Dataset",
    "LabelMap",
    "Masks",
    "Polygon",
    "Polygons",
    "Sample",
    "Segments",
    "Task",
]
