"""What looks like a mistake in a data set, with the images that show it and what mends it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from everymask.types import LabelMap, Polygons

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from everymask.types import Categories, Dataset, Polygon, Sample, Segments

TINY = 4
"""Objects of fewer pixels are taken for slips of the pen."""
FLAT = 1e-9
OUTSIDE = 1.0
"""Pixels that a box may reach beyond the image, for rounding."""
MUCH_VOID = 0.5
"""Share of void from which an image hardly counts."""
_THUMB = 16


@dataclass
class Finding:
    """One kind of mistake.

    Args:
        kind: Short name, such as ``"tiny objects"``.
        text: What was found.
        fix: The command, the option or the change that mends it.
        images: Names of the images, in order; none for what concerns the whole data set.
        details: What was found in each of them, where that differs.
    """

    kind: str
    text: str
    fix: str
    images: list[str] = field(default_factory=list)
    details: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        shown = [
            f"{name}: {detail}" if detail else name
            for name, detail in zip(self.images[:3], (self.details or [""] * 3)[:3], strict=False)
        ]
        more = f" and {len(self.images) - 3} more" if len(self.images) > 3 else ""
        where = f" in {', '.join(shown)}{more}" if shown else ""
        end = "" if self.text.endswith("?") and not where else "."
        return f"{self.text}{where}{end} {self.fix}"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"kind": self.kind, "text": self.text, "fix": self.fix, "images": self.images, "details": self.details}


TEXTS = {
    "unreadable": ("an image or annotation cannot be read", "Export or copy the file again."),
    "missing": ("the image is missing", "Add the file, or leave it out with --skip-missing."),
    "empty image": ("the image has no pixels", "Export it again."),
    "not finite": ("pixel values are NaN or infinite", "Replace them, for example by the lowest value."),
    "flat image": ("every pixel has the same value", "Check the export; such an image teaches nothing."),
    "no annotation": ("no annotation", "Annotate the image or move it away; training refuses un-annotated images."),
    "no objects": (
        "annotated, but without any object",
        "If objects are there, the annotation is lost: export it again.",
    ),
    "size": (
        "image and annotation have different sizes",
        "Correct the one that is wrong; was the image resized or turned?",
    ),
    "empty objects": (
        "objects have no pixels",
        "Remove them, or write the set anew: everymask convert SOURCE TARGET --to coco.",
    ),
    "tiny objects": (f"objects have fewer than {TINY} pixels", "Remove them if they are slips of the pen."),
    "double objects": ("objects have the same box and category", "Remove the copies if objects were annotated twice."),
    "outside": (
        "boxes leave the image",
        "Clip them, or check whether the annotation belongs to another size of the image.",
    ),
    "lost holes": (
        "a polygon lies inside another one of its object, which fills it",
        "If it is a hole, draw it again in a format that has holes (run-length masks, label images).",
    ),
    "void": (
        f"more than {MUCH_VOID:.0%} of the pixels are void",
        "Void is neither learned nor scored; annotate more of it.",
    ),
    "one mask": (
        "the mask holds 0 and one other value only",
        "If the value means foreground, not one object: --reading.kind semantic, or separate the objects first.",
    ),
}
"""Kind -> what is said of it and what mends it."""


class Doctor:
    """Collects findings image by image; its memory does not grow with the pixels.

    Args:
        data: The data set.
    """

    def __init__(self, data: Dataset) -> None:
        self._categories: Categories = data.categories
        self._format = data.format
        self._findings: dict[str, Finding] = {}
        self._hashes: dict[bytes, list[tuple[str, str]]] = {}
        self._thumbs: dict[bytes, list[tuple[str, str]]] = {}
        self._types: dict[str, int] = {}
        self._seen: set[int] = set()
        self._edges = np.zeros(4, np.int64)  # boxes that begin at -1, at 0, at 1, and that end at the image's edge
        self._foreground: list[tuple[str, str]] = []
        self._annotated = 0

    def note(self, kind: str, name: str, detail: str = "") -> None:
        """One more image with a mistake of `kind`."""
        text, fix = TEXTS[kind]
        found = self._findings.setdefault(kind, Finding(kind, text, fix))
        found.images.append(name)
        found.details.append(detail)

    def image(self, sample: Sample, image: NDArray[Any]) -> None:
        """Looks at the pixels of an image."""
        self._types[image.dtype.name] = self._types.get(image.dtype.name, 0) + 1
        if not image.size:
            self.note("empty image", sample.name)
            return
        if image.dtype.kind == "f" and not np.isfinite(image).all():
            self.note("not finite", sample.name, f"{int(np.count_nonzero(~np.isfinite(image)))} pixel values are NaN")
            return
        low, high = float(image.min()), float(image.max())
        if high - low < FLAT:
            self.note("flat image", sample.name, f"every pixel has the value {low:g}")
            return
        split = str(sample.extra.get("split", ""))
        pixels = np.ascontiguousarray(image)
        whole = hashlib.blake2b(pixels.data, digest_size=16, key=str(image.shape).encode()).digest()
        self._hashes.setdefault(whole, []).append((sample.name, split))
        if image.ndim == 3 and min(image.shape[:2]) >= 2 * _THUMB:
            self._thumbs.setdefault(_thumb(image), []).append((sample.name, split))

    def segments(self, sample: Sample, segments: Segments, size: tuple[int, ...] | None) -> None:
        """Looks at the annotation of an image of the given size."""
        self._annotated += 1
        self._seen.update(np.unique(segments.category).tolist())
        if size is not None and segments.size != size:
            shown = (" x ".join(map(str, each)) for each in (size, segments.size))
            self.note("size", sample.name, "image {}, annotation {}".format(*shown))
        if not len(segments):
            self.note("no objects", sample.name)
        if isinstance(segments.geometry, LabelMap):
            void = float(np.mean(segments.geometry.ids < 0)) if segments.geometry.ids.size else 0.0
            if void > MUCH_VOID:
                self.note("void", sample.name, f"{void:.0%}")
            labels = segments.attributes.get("label")
            if len(segments) == 1 and labels is not None and int(labels[0]) in (1, 255):
                self._foreground.append((sample.name, f"0 and {int(labels[0])}"))
        if not len(segments) or not segments.has_boxes:
            return
        self._boxes(sample, segments)
        if segments.geometry is None:
            return
        areas = segments.areas()
        if empty := int(np.count_nonzero(areas == 0)):
            self.note("empty objects", sample.name, f"{empty} objects have no pixels")
        if tiny := int(np.count_nonzero((areas > 0) & (areas < TINY))):
            self.note("tiny objects", sample.name, str(tiny))
        if isinstance(segments.geometry, Polygons):
            filled = sum(_fills_holes(parts) for parts in segments.geometry.parts)
            if filled:
                self.note("lost holes", sample.name, f"{filled} objects")

    def _boxes(self, sample: Sample, segments: Segments) -> None:
        if len(segments.size) != 2:
            return
        boxes = segments.boxes()
        rows = np.column_stack([np.round(boxes, 2), segments.category])[segments.areas() > 0]
        count = np.unique(rows, axis=0, return_counts=True)[1]
        if double := int(np.count_nonzero(count > 1)):
            self.note("double objects", sample.name, str(double))
        given = segments.given_boxes
        if given is None:
            return
        height, width = segments.size
        over = np.maximum(-given[:, :2], given[:, 2:] - [width, height]).max(axis=1)
        if outside := int(np.count_nonzero(over > OUTSIDE)):
            self.note("outside", sample.name, f"{outside} by up to {over.max():.0f} pixels")
        starts = given[:, :2]
        ends = np.count_nonzero(given[:, 2:] == [width, height])
        self._edges += [
            np.count_nonzero(starts == -1),
            np.count_nonzero(starts == 0),
            np.count_nonzero(starts == 1),
            ends,
        ]

    def findings(self) -> list[Finding]:
        """All that was found, what is worst first."""
        found = list(self._findings.values())
        # One object in each image may be right; the same single value in all of several images hardly is.
        if len(self._foreground) > 1 and len(self._foreground) == self._annotated:
            text, fix = TEXTS["one mask"]
            names, details = zip(*self._foreground, strict=True)
            found.append(Finding("one mask", text, fix, list(names), list(details)))
        found += _duplicates(self._hashes.values(), "identical images")
        exact = {name for group in self._hashes.values() if len(group) > 1 for name, _ in group}
        alike = [[each for each in group if each[0] not in exact] for group in self._thumbs.values()]
        found += _duplicates(alike, "nearly identical images")
        found += self._shifts()
        never = [each.name for each in self._categories if each.id not in self._seen]
        if never and self._annotated:
            shown = ", ".join(map(repr, never[:5])) + (f" and {len(never) - 5} more" if len(never) > 5 else "")
            text = (
                f"category {shown} occurs in no image" if len(never) == 1 else f"categories {shown} occur in no image"
            )
            found.append(Finding("unused category", text, "Remove it from the list of categories, or add examples."))
        if len(self._types) > 1:
            listed = ", ".join(f"{name} ({count})" for name, count in self._types.items())
            text = f"images have different number types: {listed}"
            found.append(
                Finding("number types", text, "Export all images alike, or train with a preprocessing by percentiles.")
            )
        return found

    def _shifts(self) -> list[Finding]:
        """Coordinates and ids that are off by one."""
        before, zero, one, ends = self._edges.tolist()
        found = []
        if before and not zero:
            text = (
                f"{before} boxes begin at -1 and none at 0: coordinates that count from 0 were read as counting from 1"
            )
            fix = (
                "Read them as they are: --reading.one-based no."
                if self._format == "voc"
                else "Add 1 to all coordinates."
            )
            found.append(Finding("off by one", text, fix))
        elif one >= 3 and not zero and ends >= 3:
            text = (
                f"{one} boxes begin at 1, none at 0, and {ends} end at the image's edge: do coordinates count from 1?"
            )
            fix = "--reading.one-based yes" if self._format == "voc" else "take 1 from the left and top coordinates"
            found.append(Finding("off by one", text, f"If they do: {fix}."))
        ids = sorted(each.id for each in self._categories)
        only_zero = self._seen == set(ids) - {0}
        if len(ids) > 2 and ids[0] == 0 and only_zero:
            name = self._categories.by_id(0).name
            text = f"of {len(ids)} categories only id 0 ({name!r}) never occurs: are the ids off by one?"
            fix = "If names and ids start at different numbers, correct the list of categories."
            found.append(Finding("off by one", text, fix))
        return found


def _duplicates(groups: Iterable[list[tuple[str, str]]], kind: str) -> list[Finding]:
    """A finding for copies within a part, and one for copies across parts."""
    inside: list[str] = []
    across: list[str] = []
    for group in groups:
        if len(group) > 1:
            leak = len({split for _, split in group}) > 1
            (across if leak else inside).append(" = ".join(name for name, _ in group[:4]))
    found = []
    if across:
        fix = "Remove them from one part: scores on images that were trained on mean nothing."
        found.append(Finding("split leak", f"{kind} in several parts", fix, across))
    if inside:
        found.append(Finding("duplicates", kind, "Remove the copies.", inside))
    return found


def _thumb(image: NDArray[Any]) -> bytes:
    """Signs of the differences of neighbouring cells of a coarse grid: the same for copies that were compressed anew.

    The difference hash of Krawetz (2013), with 16 x 16 cells.
    """
    height, width = image.shape[:2]
    grey = image[..., :3].mean(axis=-1, dtype=np.float32)
    rows = np.linspace(0, height, _THUMB + 1).astype(int)[:-1]
    columns = np.linspace(0, width, _THUMB + 2).astype(int)[:-1]
    cells = np.add.reduceat(np.add.reduceat(grey, rows, axis=0), columns, axis=1)
    cells /= np.outer(np.diff([*rows, height]), np.diff([*columns, width]))
    return np.packbits(np.diff(cells, axis=1) > 0).tobytes() + f"{height / width:.2f}".encode()


def _fills_holes(parts: tuple[Polygon, ...]) -> bool:
    """Whether a part of an object lies inside another part, so that it adds no pixel."""
    if len(parts) < 2:
        return False
    from everymask.ops.polygons import polygon_boxes

    outlines = [Polygons((1, 1), ((part,),)) for part in parts]
    boxes = [polygon_boxes(each.outlines())[0] for each in outlines]
    for i, inner in enumerate(boxes):
        for j, outer in enumerate(boxes):
            nested = i != j and bool((inner[:2] >= outer[:2]).all() and (inner[2:] <= outer[2:]).all())
            if nested and _inside(parts[i].exterior, parts[j].exterior):
                return True
    return False


def _inside(points: NDArray[np.float64], ring: NDArray[np.float64]) -> bool:
    """Whether all points (P, 2) lie inside a ring (K, 2), by the even-odd rule."""
    x0, y0 = ring.T
    x1, y1 = np.roll(ring, -1, axis=0).T
    for x, y in points:
        crosses = (y0 > y) != (y1 > y)
        with np.errstate(divide="ignore", invalid="ignore"):
            at = x0 + (y - y0) / (y1 - y0) * (x1 - x0)
        if not np.count_nonzero(crosses & (x < at)) % 2:
            return False
    return True
