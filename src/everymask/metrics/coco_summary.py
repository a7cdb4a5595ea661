"""Precision and recall of matched detections, bit for bit as `COCOeval.accumulate` of pycocotools computes them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numba
import numpy as np
from numba import njit
from numpy.typing import NDArray

from everymask.metrics.coco_matching import descending_keys, rows_by_group, sort_rows
from everymask.metrics.coco_rules import RECALLS, Rules

_SPACING = float(np.spacing(1))  # what the official program adds to keep away from 0 / 0


class Scored(NamedTuple):
    """D matched detections, in the order in which equal scores are told apart.

    Args:
        category: (D,) int32 index of the category.
        rank: (D,) int32, how many of its image and category have higher scores.
        score: (D,) float64.
        true: (D, W) uint64, bits of the settings in which it is a true positive.
        false: (D, W) uint64, bits of those in which it is a false positive.
    """

    category: NDArray[np.int32]
    rank: NDArray[np.int32]
    score: NDArray[np.float64]
    true: NDArray[np.uint64]
    false: NDArray[np.uint64]

    def chosen(self, rows: NDArray[np.int64]) -> Scored:
        """Some detections, in the order of `rows`."""
        return Scored(self.category[rows], self.rank[rows], self.score[rows], self.true[rows], self.false[rows])

    @classmethod
    def joined(cls, parts: Sequence[Scored]) -> Scored:
        """The detections of some parts, one after the other."""
        return cls(
            np.concatenate([part.category for part in parts]),
            np.concatenate([part.rank for part in parts]),
            np.concatenate([part.score for part in parts]),
            np.concatenate([part.true for part in parts]),
            np.concatenate([part.false for part in parts]),
        )


class Summary(NamedTuple):
    """What `COCOeval.eval` holds, with NaN for its -1: of categories without true objects.

    Args:
        precision: (T, R, K, A, M) at T thresholds, R levels of recall, for K categories, A area ranges and M limits of
            detections.
        recall: (T, K, A, M) the highest recall.
    """

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]

    def mean(self, values: NDArray[np.float64]) -> float:
        """Mean of what is defined, NaN if nothing is; summed in the order of the official program."""
        defined = values[~np.isnan(values)]
        return float(np.mean(defined)) if len(defined) else float("nan")


def summarise(rules: Rules, scored: Scored, positives: NDArray[np.int64]) -> Summary:
    """Accumulates detections into precision and recall.

    Args:
        rules: Thresholds, area ranges and limits.
        scored: Detections of all images.
        positives: (K, A) number of true objects of each category that are not ignored.
    """
    categories = len(positives)
    rows, starts = rows_by_group(scored.category, categories)
    keys = descending_keys(scored.score)
    limits = np.array(rules.max_detections, np.int64)
    shape = (categories, len(rules.thresholds), len(RECALLS), len(rules.areas), len(limits))
    precision = np.full(shape, np.nan)
    recall = np.full((categories, *shape[1:2], *shape[3:]), np.nan)

    def work(category: int) -> None:
        _summarise_category(
            rows[starts[category] : starts[category + 1]],
            keys,
            scored.rank,
            scored.true,
            scored.false,
            len(rules.thresholds),
            rules.per_word,
            positives[category],
            limits,
            RECALLS,
            precision[category],
            recall[category],
        )

    occurring = np.flatnonzero(positives.any(axis=1))
    # The largest categories first, so that no thread is left with one of them at the end.
    ordered = occurring[np.argsort(np.diff(starts)[occurring])[::-1]].tolist()
    if len(scored.score) < 10_000:
        for category in ordered:
            work(category)
    else:
        with ThreadPoolExecutor(numba.get_num_threads()) as pool:
            list(pool.map(work, ordered))
    return Summary(np.ascontiguousarray(np.moveaxis(precision, 0, 2)), np.ascontiguousarray(np.moveaxis(recall, 0, 1)))


@njit(cache=True, nogil=True)
def _count_bits(word: np.uint64, counts: NDArray[np.int64], step: int) -> None:  # pragma: no cover - compiled
    """Adds `step` to ``counts[t]`` for every bit t of the word."""
    for t in range(len(counts)):
        counts[t] += step * np.int64(word >> np.uint64(t) & np.uint64(1))


@njit(cache=True, nogil=True)
def _summarise_category(
    rows: NDArray[np.int64],
    keys: NDArray[np.uint64],
    rank: NDArray[np.int32],
    true: NDArray[np.uint64],
    false: NDArray[np.uint64],
    thresholds: int,
    per_word: int,
    positives: NDArray[np.int64],
    limits: NDArray[np.int64],
    recalls: NDArray[np.float64],
    precision: NDArray[np.float64],
    recall: NDArray[np.float64],
) -> None:  # pragma: no cover - compiled
    """Fills precision (T, R, A, M) and recall (T, A, M) of one category; its rows are sorted in place.

    The precision at a recall is the highest one from the detection on that reaches it. Precision only rises at true
    positives, and a level of recall is reached at one, so a walk from the last detection to the first that looks at
    true positives alone finds every value, with no array of precisions in between.
    """
    areas, number = len(positives), len(rows)
    full = ~np.uint64(0) >> np.uint64(64 - thresholds)
    sort_rows(rows, 0, number, keys)
    # Every walk below is along these, not across memory.
    true, false, rank = true[rows], false[rows], rank[rows]
    word_of, shift_of = np.empty(areas, np.int64), np.empty(areas, np.uint64)
    for a in range(areas):
        word_of[a], shift_of[a] = a // per_word, a % per_word * thresholds
    # How many true positives reach each level of recall; the quotient is compared, as officially.
    needed = np.zeros((areas, len(recalls)), np.int64)
    for a in range(areas):
        for r in range(len(recalls)):
            count = np.int64(recalls[r] * positives[a])
            while count > 0 and (count - 1) / max(positives[a], 1) >= recalls[r]:
                count -= 1
            while count / max(positives[a], 1) < recalls[r]:
                count += 1
            needed[a, r] = count
    true_count = np.empty((areas, thresholds), np.int64)
    false_count = np.empty((areas, thresholds), np.int64)
    false_everywhere = np.empty(areas, np.int64)  # those that are false positives at all thresholds, as most are
    best = np.empty((areas, thresholds), np.float64)
    level = np.empty((areas, thresholds), np.int64)
    for m in range(len(limits)):
        true_count[:] = 0
        false_count[:] = 0
        false_everywhere[:] = 0
        for i in range(number):
            if rank[i] >= limits[m]:
                continue
            for a in range(areas):
                word = false[i, word_of[a]] >> shift_of[a] & full
                if word == full:
                    false_everywhere[a] += 1
                    continue
                if word:
                    _count_bits(word, false_count[a], 1)
                word = true[i, word_of[a]] >> shift_of[a] & full
                if word:
                    _count_bits(word, true_count[a], 1)
        for a in range(areas):
            for t in range(thresholds):
                level[a, t] = len(recalls) - 1
                best[a, t] = 0.0
                if positives[a] == 0:
                    continue
                recall[t, a, m] = true_count[a, t] / positives[a]
                while level[a, t] >= 0 and needed[a, level[a, t]] > true_count[a, t]:
                    precision[t, level[a, t], a, m] = 0.0
                    level[a, t] -= 1
        for i in range(number - 1, -1, -1):
            if rank[i] >= limits[m]:
                continue
            for a in range(areas):
                word = false[i, word_of[a]] >> shift_of[a] & full
                if word == full:
                    false_everywhere[a] -= 1
                    continue
                if word:
                    _count_bits(word, false_count[a], -1)
                word = true[i, word_of[a]] >> shift_of[a] & full
                t = 0
                while word:
                    if word & np.uint64(1):
                        hits = true_count[a, t]
                        misses = false_count[a, t] + false_everywhere[a]
                        value = hits / (float(misses) + float(hits) + _SPACING)
                        best[a, t] = max(best[a, t], value)
                        while level[a, t] >= 0 and needed[a, level[a, t]] == hits:
                            precision[t, level[a, t], a, m] = best[a, t]
                            level[a, t] -= 1
                        true_count[a, t] -= 1
                    word >>= np.uint64(1)
                    t += 1
        for a in range(areas):
            for t in range(thresholds):
                # recall 0 is reached by the very first detection, whatever it is
                while positives[a] and level[a, t] >= 0:
                    precision[t, level[a, t], a, m] = best[a, t]
                    level[a, t] -= 1
