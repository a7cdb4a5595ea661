"""What is kept of matched images: a few columns for every detection, joined in the order of the official program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from everymask.errors import InputError
from everymask.metrics.coco_matching import Objects, Pairs, match
from everymask.metrics.coco_rules import Rules
from everymask.metrics.coco_summary import Scored

ImageKey = tuple[bool, int | str]
"""What images are ordered by: numbers by value, and after them text."""


def image_key(identifier: int | str) -> ImageKey:
    """The key of an image id, or of a name where there is no id."""
    return isinstance(identifier, str), identifier


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Matched images: I of them with D detections, and Q pairs of an image and a category that has truths in it.

    Args:
        names: The images.
        groups: Kinds of image.
        keys: What the images are ordered by.
        starts: (I + 1,) int64 where the detections of each begin.
        detections: D detections, image by image, by category and falling score.
        truth_starts: (I + 1,) int64 where the rows of each begin in the two columns below.
        truth_category: (Q,) int32 category.
        truth_count: (Q, A) int32 number of true objects that are not ignored in each area range.
    """

    names: tuple[str, ...]
    groups: tuple[str, ...]
    keys: tuple[ImageKey, ...]
    starts: NDArray[np.int64]
    detections: Scored
    truth_starts: NDArray[np.int64]
    truth_category: NDArray[np.int32]
    truth_count: NDArray[np.int32]

    def chosen(self, images: Sequence[int]) -> Part:
        """The images with the given positions, in that order."""
        order = np.asarray(images, np.int64)
        starts, rows = _ranges(self.starts, order)
        truth_starts, truth_rows = _ranges(self.truth_starts, order)
        return Part(
            tuple(self.names[i] for i in images),
            tuple(self.groups[i] for i in images),
            tuple(self.keys[i] for i in images),
            starts,
            self.detections.chosen(rows),
            truth_starts,
            self.truth_category[truth_rows],
            self.truth_count[truth_rows],
        )

    def positives(self, categories: int) -> NDArray[np.int64]:
        """(K, A) number of true objects of each category that are not ignored."""
        total = np.zeros((categories, self.truth_count.shape[1]), np.int64)
        np.add.at(total, self.truth_category, self.truth_count)
        return total

    @classmethod
    def joined(cls, parts: Sequence[Part], *, in_order: bool = True) -> Part:
        """All images of some parts.

        Args:
            parts: At least one.
            in_order: Order them by id, where ids are equal by name; else they stay as they are.

        Raises:
            InputError: An image is there twice.
        """
        whole = parts[0]
        if len(parts) > 1:
            whole = cls(
                tuple(name for part in parts for name in part.names),
                tuple(group for part in parts for group in part.groups),
                tuple(key for part in parts for key in part.keys),
                _joined_starts([part.starts for part in parts]),
                Scored.joined([part.detections for part in parts]),
                _joined_starts([part.truth_starts for part in parts]),
                np.concatenate([part.truth_category for part in parts]),
                np.concatenate([part.truth_count for part in parts]),
            )
        if not in_order:
            return whole
        order = sorted(range(len(whole.keys)), key=lambda i: (whole.keys[i], whole.names[i]))
        for before, after in pairwise(order):
            key, name = whole.keys[after], whole.names[after]
            if (key, name) == (whole.keys[before], whole.names[before]) and (name or key[1] != ""):
                raise InputError(f"image {name!r} (id {key[1]!r}) was scored twice; give every image once")
        return whole if order == list(range(len(order))) else whole.chosen(order)


def matched_part(
    rules: Rules,
    labels: tuple[tuple[str, ...], tuple[str, ...], tuple[ImageKey, ...]],
    truths: Objects,
    detections: Objects,
    pairs: Pairs,
    score: NDArray[np.float64],
    area: NDArray[np.float64],
    truth_area: NDArray[np.float64],
    crowd: NDArray[np.bool_],
) -> Part:
    """Matches the detections of some images and keeps what accumulation needs.

    Args:
        rules: Thresholds, area ranges and limits.
        labels: Names, kinds and keys of the I images.
        truths: G true objects.
        detections: D detections.
        pairs: Their overlaps.
        score: (D,) by position, as everything below.
        area: (D,) in pixels.
        truth_area: (G,) in pixels.
        crowd: (G,) whether a true object is a crowd.
    """
    outcome = match(rules, pairs, area, truth_area, crowd)
    # One row for each image and category with truths, those of which all are ignored included.
    count = len(truths.category)
    image = np.repeat(np.arange(len(truths.starts) - 1), np.diff(truths.starts))
    fresh = np.ones(count, np.bool_)
    fresh[1:] = (image[1:] != image[:-1]) | (truths.category[1:] != truths.category[:-1])
    first = np.flatnonzero(fresh)
    counts = np.zeros((len(first), len(rules.areas)), np.int32)
    for index in range(len(rules.areas) if count else 0):
        bit = np.uint64(index % rules.per_word * len(rules.thresholds))
        counted = outcome.counted[:, index // rules.per_word] >> bit & np.uint64(1)
        counts[:, index] = np.add.reduceat(counted.astype(np.int32), first)
    return Part(
        *labels,
        detections.starts,
        Scored(detections.category, detections.rank, score, outcome.true, outcome.false),
        np.searchsorted(first, truths.starts).astype(np.int64),
        truths.category[first],
        counts,
    )


def box_sides(edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 4) x, y, width, height of boxes (N, 4) x0, y0, x1, y1.

    Files hold widths, from which the right edge was added up, and IoU that hit a threshold exactly depend on the last
    bit. So the width is taken that the file had: the difference, if it is a single precision number as networks give
    them, else the shortest decimal that leads to the same edge: 3.1 - 1 is 2.1 and not 2.1000000000000001.
    """
    exact = edges[:, 2:] - edges[:, :2]
    sides = exact
    for digits in (12, 9, 6, 4, 3, 2, 1, 0):
        shorter = np.round(exact, digits)
        sides = np.where(edges[:, :2] + shorter == edges[:, 2:], shorter, sides)
    return np.concatenate([edges[:, :2], np.where(exact.astype(np.float32) == exact, exact, sides)], axis=1)


def _ranges(starts: NDArray[np.int64], order: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """New starts of the chosen ranges, and the positions in them one after the other."""
    lengths = np.diff(starts)[order]
    fresh = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return fresh, np.arange(fresh[-1]) + np.repeat(starts[:-1][order] - fresh[:-1], lengths)


def _joined_starts(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    lengths = np.concatenate([np.diff(part) for part in parts])
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
