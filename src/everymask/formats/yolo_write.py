"""Writing YOLO labels."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from everymask.errors import InputError
from everymask.files import atomic_write
from everymask.formats.exporting import check_relative, copy_image
from everymask.formats.yolo_layout import NAME_FILES
from everymask.types import Categories, Dataset, Masks, Polygon, Polygons, Segments

if TYPE_CHECKING:
    from numpy.typing import NDArray

TOLERANCE = 0.01
"""By how much coordinates may leave 0..1; the limit of Ultralytics' own check of labels."""
_PLAIN = ("train", "val", "test")
"""Keys of a YAML that Ultralytics knows, which need no quotes."""


def write(dataset: Dataset, target: Path, *, link_images: bool = False) -> None:
    """Writes `data.yaml`, `images/` and `labels/`; reading them gives the same boxes and polygons.

    Classes are numbered from 0 in the order of the categories. A line is one ring: holes and further parts of an object
    are joined to it by seams, there and back on the same line, so that filling the ring covers the same pixels. Of an
    object with an outline, the box is not written. Objects that leave the image by
    more than `TOLERANCE` of its size end at its edge.

    Parts lie in folders of their names, unless there is only one.

    Args:
        dataset: Segments with boxes or any geometry.
        target: The folder.
        link_images: Make hard links of the image files instead of copies.

    Raises:
        InputError: A sample is a volume, or has tags of the whole image.
    """
    splits = {str(sample.extra.get("split") or ""): None for sample in dataset}
    if len(splits) > 1:
        splits = {split or "unsplit": None for split in splits}
    (target / "images").mkdir(parents=True, exist_ok=True)
    for sample in dataset:
        folder = target / "images"
        if len(splits) > 1 and not sample.name.startswith(f"{sample.extra.get('split')}/"):
            # Names are those below the folder of the part, with the part before them.
            folder /= check_relative(str(sample.extra.get("split") or "unsplit"), f"part of {sample.name}")
        file = copy_image(sample, folder, link=link_images, listed=True)
        if sample.segments is None:
            continue
        if len(sample.segments.size) != 2:
            raise InputError(f"{sample.name} is a volume, which YOLO labels cannot hold; write label_images instead")
        label = (target / "labels" / file.relative_to(target / "images")).with_suffix(".txt")
        if label.name in NAME_FILES:
            raise InputError(
                f"the label file of the image {sample.name!r} would be taken for a list of classes; rename the image"
            )
        with atomic_write(label) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as stream:
            stream.writelines(_lines(sample.name, sample.segments, dataset.categories))
    with atomic_write(target / "data.yaml") as temporary:
        temporary.write_text(_yaml(list(splits), dataset.categories), "utf-8", newline="\n")


def _yaml(splits: Sequence[str], categories: Categories) -> str:
    lines = ["# Written by EveryMask. Paths are relative to this file."]
    if len(splits) == 1 and splits[0]:
        lines.append(f"{_text(splits[0])}: images")
    elif len(splits) < 2:
        # Ultralytics demands both; reading takes two parts in one place for none.
        lines += ["train: images", "val: images"]
    else:
        lines += [f"{_text(split)}: {_text(f'images/{split}')}" for split in splits]
        lines += [
            f"val: images/{split}" for split in ("valid", "validation") if split in splits and "val" not in splits
        ]
    lines += ["names:", *(f"  {index}: {_text(each.name)}" for index, each in enumerate(categories))]
    return "\n".join(lines) + "\n"


def _text(text: str) -> str:
    """A YAML string; those of JSON are, whatever is in them."""
    return text if text in _PLAIN else json.dumps(text)


def _lines(name: str, segments: Segments, categories: Categories) -> Iterator[str]:
    """The lines of a label file."""
    if len(segments) and not segments.has_boxes:
        raise InputError(f"{name} has tags of the whole image, without boxes, which YOLO labels cannot hold")
    if not len(segments):
        return
    classes = categories.indices(segments.category)
    height, width = segments.size
    scale = np.array([width, height], np.float64)
    boxes = segments.boxes()
    rings = [None] * len(segments) if segments.geometry is None else _rings(segments)
    for i, ring in enumerate(rings):
        corners = boxes[i].reshape(2, 2) if ring is None else ring
        numbers = _fractions(corners, scale, box=ring is None)
        if numbers.min() < -TOLERANCE or numbers.max() > 1 + TOLERANCE:
            numbers = _fractions(np.clip(corners, 0, scale), scale, box=ring is None)
        yield f"{classes[i]} {' '.join(map(repr, numbers.tolist()))}\n"


def _fractions(points: NDArray[np.float64], scale: NDArray[np.float64], *, box: bool) -> NDArray[np.float64]:
    """The numbers of a line: of a box its centre and sides, of a ring its points, as fractions of the image."""
    if not box:
        return (points / scale).ravel()
    low, high = points
    return np.concatenate([(low + high) / 2 / scale, (high - low) / scale])


def _rings(segments: Segments) -> list[NDArray[np.float64] | None]:
    """One ring (K, 2) for each segment; None where it has no outline."""
    outlines = segments.polygons()
    rings = [_joined(parts) for parts in outlines.parts]
    seamed = [i for i, parts in enumerate(outlines.parts) if len(parts) > 1 or any(part.holes for part in parts)]
    if not seamed:
        return rings
    # Seams keep the pixels unless parts overlap, which filling by even and odd crossings would empty: then the outlines
    # of the pixels are joined, whose parts never overlap.
    wanted = Segments(
        segments.size, np.ones(len(seamed)), Polygons(outlines.size, tuple(outlines.parts[i] for i in seamed))
    )
    drawn = [(Polygon(ring),) for i in seamed if (ring := rings[i]) is not None]
    got = Segments(segments.size, np.ones(len(seamed)), Polygons(outlines.size, tuple(drawn))).rles()
    masks = wanted.rles()
    for position, i in enumerate(seamed):
        if not np.array_equal(masks[position], got[position]):
            alone = Segments(segments.size, [1], Masks.join(masks.size, [masks[position]]))
            rings[i] = _joined(alone.polygons().parts[0])
    return rings


def _joined(parts: Sequence[Polygon]) -> NDArray[np.float64] | None:
    """One ring of all rings, each joined to those before by a seam between their nearest points."""
    rings = [ring for part in parts for ring in (part.exterior, *part.holes)]
    if not rings:
        return None
    joined = rings[0]
    for ring in rings[1:]:
        distances = np.square(joined[:, None] - ring[None]).sum(axis=-1)
        here, there = np.unravel_index(int(distances.argmin()), distances.shape)
        turned = np.concatenate([ring[there:], ring[: there + 1]])
        joined = np.concatenate([joined[: here + 1], turned, joined[here:]])
    return joined
