"""Samples under other names, for formats that say where an image has to lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from everymask.types import Sample, Segments


def renamed(sample: Sample, name: str) -> Sample:
    """The same sample under another name; an annotation that has been decoded is not decoded once more."""
    read: Callable[[], Segments] | None = None
    segments = sample.segments
    if segments is not None:

        def read() -> Segments:
            return segments

    return replace(sample, name=name, read_segments=read)
