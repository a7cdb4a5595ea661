"""Tracks as a graph, what it takes to correct one graph into another, and how well tracks agree as cell biology.

A vertex is an object in a frame. An edge joins the same track in two frames that follow each other, or the last vertex
of a track with the first of a track that it divided into. Operations and costs: Matula et al. 2015; biological
measures: Ulman et al. 2017, supplementary note 3. What the papers leave open is done as `py-ctcmetrics` does it.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from everymask.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Tracks:
    """V objects of a sequence and the K tracks that they make up.

    Args:
        frames: Number, track labels (N,) in increasing order and parent tracks (N,) of every frame, in order of time.
        role: ``"truth"`` or ``"prediction"``, and which sequence, for messages.

    Attributes:
        frame: (V,) frame of each vertex.
        label: (V,) its track.
        ids: (K,) labels of the tracks in increasing order.
        begin: (K,) first frame.
        end: (K,) last frame.
        parent: (K,) track that divided into it, 0 if there is none.

    Raises:
        InputError: A parent does not exist, or does not end before its child begins.
    """

    def __init__(self, frames: Sequence[tuple[int, NDArray[np.int64], NDArray[np.int64]]], role: str) -> None:
        empty = [np.zeros(0, np.int64)]
        self.frame = np.concatenate([*empty, *(np.full(len(labels), number) for number, labels, _ in frames)])
        self.label = np.concatenate([*empty, *(labels for _, labels, _ in frames)])
        parents = np.concatenate([*empty, *(each for _, _, each in frames)])
        self._order = np.lexsort((self.frame, self.label))  # track by track, each in order of time
        by_track = self.label[self._order]
        self._first = np.flatnonzero(np.diff(by_track, prepend=-1) != 0)
        last = np.append(self._first[1:], len(by_track))[: len(self._first)] - 1
        self.ids = by_track[self._first]
        self._begin_vertex, self._end_vertex = self._order[self._first], self._order[last]
        self.begin, self.end = self.frame[self._begin_vertex], self.frame[self._end_vertex]
        self.parent = parents[self._begin_vertex]
        self._child = np.flatnonzero(self.parent > 0)
        position = np.searchsorted(self.ids, self.parent[self._child])
        for child, at in zip(self._child, position, strict=True):
            track, parent = self.ids[child], self.parent[child]
            if at == len(self.ids) or self.ids[at] != parent:
                raise InputError(f"{role}: track {track} has the parent {parent}, which occurs in no frame; correct it")
            if self.end[at] >= self.begin[child]:
                raise InputError(
                    f"{role}: track {track} begins in frame {self.begin[child]}, but its parent {parent} lasts until "
                    f"frame {self.end[at]}; a parent ends before its children begin"
                )
        self._parent_position = position

    @cached_property
    def edges(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """(E,) vertices before, (E,) vertices after, and whether they are of parent and child (E,)."""
        here, there = self._order[:-1], self._order[1:]
        same = (self.label[here] == self.label[there]) & (self.frame[here] + 1 == self.frame[there])
        before = np.concatenate([here[same], self._end_vertex[self._parent_position]])
        after = np.concatenate([there[same], self._begin_vertex[self._child]])
        return before, after, np.arange(len(before)) >= same.sum()

    @cached_property
    def divisions(self) -> dict[int, list[int]]:
        """Positions among the tracks of those that divide, with the positions of their two or more children."""
        children: dict[int, list[int]] = defaultdict(list)
        for child, parent in zip(self._child.tolist(), self._parent_position.tolist(), strict=True):
            children[parent].append(child)
        return {parent: each for parent, each in sorted(children.items()) if len(each) > 1}

    def by_track(self, values: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Values, labels and frames of the vertices (V,), track by track and in order of time."""
        return values[self._order], self.label[self._order], self.frame[self._order]

    def agreed(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """(K,) the one value that all vertices of a track have, or 0."""
        if not len(self.ids):
            return self.ids
        ordered = values[self._order]
        low, high = np.minimum.reduceat(ordered, self._first), np.maximum.reduceat(ordered, self._first)
        return np.where(low == high, low, 0)


@dataclass(frozen=True, slots=True)
class Operations:
    """How many operations of each kind turn the predicted graph into the true one.

    Args:
        vertices: Vertices of the truth.
        edges: Edges of the truth; NaN, like the operations on edges, where no edges are scored.
        ns: Splits of vertices.
        fn: Vertices to add.
        fp: Vertices to delete.
        ed: Edges to delete.
        ea: Edges to add.
        ec: Edges whose meaning is to be changed.
    """

    vertices: float
    edges: float
    ns: float
    fn: float
    fp: float
    ed: float = math.nan
    ea: float = math.nan
    ec: float = math.nan

    @property
    def det(self) -> float:
        """Detection: 1 minus the cost on vertices relative to adding them all."""
        return _score(5 * self.ns + 10 * self.fn + self.fp, 10 * self.vertices)

    @property
    def lnk(self) -> float:
        """Linking: 1 minus the cost on edges relative to adding them all."""
        return _score(self.ed + 1.5 * self.ea + self.ec, 1.5 * self.edges)

    @property
    def aogm(self) -> float:
        """The cost of all operations."""
        return 5 * self.ns + 10 * self.fn + self.fp + self.ed + 1.5 * self.ea + self.ec

    @property
    def aogm_0(self) -> float:
        """The cost of making the true graph from nothing."""
        return 10 * self.vertices + 1.5 * self.edges

    @property
    def tra(self) -> float:
        """Tracking: 1 minus the cost relative to making the graph from nothing."""
        return _score(self.aogm, self.aogm_0)


def _score(cost: float, highest: float) -> float:
    """1 - min(cost, highest) / highest; NaN where there is nothing to score."""
    return 1 - min(cost, highest) / highest if highest > 0 else math.nan


def vertex_operations(matches: Sequence[NDArray[np.int64]], predicted: Sequence[int]) -> Operations:
    """The operations on vertices.

    Args:
        matches: For every frame (N,) the index of the predicted object that matches each true one, or -1.
        predicted: For every frame the number of predicted objects.
    """
    true = sum(len(each) for each in matches)
    found = sum(int((each >= 0).sum()) for each in matches)
    used = sum(len(np.unique(each[each >= 0])) for each in matches)
    return Operations(true, math.nan, found - used, true - found, sum(predicted) - used)


def all_operations(true: Tracks, predicted: Tracks, match: NDArray[np.int64]) -> Operations:
    """The operations on vertices and edges.

    Edges are compared between those predicted vertices that match exactly one true one.

    Args:
        true: V vertices.
        predicted: The tracks to correct.
        match: (V,) predicted vertex that matches each true one, or -1.
    """
    count = len(predicted.label)
    times = np.bincount(match[match >= 0], minlength=count)
    true_of = np.full(count, -1)
    alone = np.flatnonzero(match >= 0)
    alone = alone[times[match[alone]] == 1]
    true_of[match[alone]] = alone
    before, after, divides = predicted.edges
    kept = (true_of[before] >= 0) & (true_of[after] >= 0)
    width = len(match) + 1
    found = true_of[before[kept]] * width + true_of[after[kept]]
    wanted = true.edges[0] * width + true.edges[1]
    _, in_found, in_wanted = np.intersect1d(found, wanted, assume_unique=True, return_indices=True)
    vertices = vertex_operations([match], [count])
    return Operations(
        vertices.vertices,
        len(wanted),
        vertices.ns,
        vertices.fn,
        vertices.fp,
        ed=len(found) - len(in_found),
        ea=len(wanted) - len(in_wanted),
        ec=int((divides[kept][in_found] != true.edges[2][in_wanted]).sum()),
    )


def assigned_tracks(predicted: Tracks, match: NDArray[np.int64]) -> NDArray[np.int64]:
    """(V,) predicted track of each true vertex; 0 where nothing matches, or what matches also matches another one."""
    times = np.bincount(match[match >= 0], minlength=len(predicted.label))
    assigned = np.zeros(len(match), np.int64)
    found = match >= 0
    assigned[found] = np.where(times[match[found]] == 1, predicted.label[match[found]], 0)
    return assigned


def complete_tracks(true: Tracks, predicted: Tracks, assigned: NDArray[np.int64]) -> float:
    """CT: F1 of tracks that are found as one track from their first frame to their last."""
    if not len(true.ids) + len(predicted.ids):
        return math.nan
    found = true.agreed(assigned)
    at = np.minimum(np.searchsorted(predicted.ids, found), max(len(predicted.ids) - 1, 0))
    complete = 0
    if len(predicted.ids):
        complete = int(((found > 0) & (predicted.begin[at] == true.begin) & (predicted.end[at] == true.end)).sum())
    return 2 * complete / (len(true.ids) + len(predicted.ids))


def track_fractions(true: Tracks, assigned: NDArray[np.int64]) -> float:
    """TF: mean, over the true tracks that are found at all, of the longest part that one predicted track follows.

    The organisers' program goes through predicted tracks by label and leaves the others of a true track aside once one
    that is followed from begin to end has come; the figure depends on that order, so it is kept.
    """
    values, labels, frames = true.by_track(assigned)
    if not len(values):
        return math.nan
    starts = np.flatnonzero(
        (np.diff(values, prepend=-1) != 0) | (np.diff(labels, prepend=-1) != 0) | (np.diff(frames, prepend=-9) != 1)
    )
    lengths = np.diff(np.append(starts, len(values)))
    track = np.searchsorted(true.ids, labels[starts])
    fraction = lengths / (true.end - true.begin + 1)[track]
    longest: dict[tuple[int, int], float] = {}
    for predicted, at, part in zip(values[starts].tolist(), track.tolist(), fraction.tolist(), strict=True):
        if predicted:
            longest[predicted, at] = max(longest.get((predicted, at), 0.0), part)
    best = np.zeros(len(true.ids))
    done = 0  # the predicted track that has followed a whole one, and so is not asked for others
    for (predicted, at), part in sorted(longest.items()):
        if predicted == done or best[at] == 1:
            continue
        best[at] = max(best[at], part)
        if part == 1:
            done = predicted
    found = best[best > 0]
    return math.fsum(found) / len(found) if len(found) else 0.0


def branching_correctness(true: Tracks, predicted: Tracks, assigned: NDArray[np.int64], tolerance: int) -> float:
    """BC(i): F1 of divisions. NaN if the truth has none.

    A division is found if a predicted track divides into as many children, ends at most i frames off, and follows the
    true parent in the last frame that both have; and if for every child there is a predicted one of its own that begins
    at most i frames off and follows it in the first frame that both have.

    Args:
        true: V vertices.
        predicted: The predicted tracks.
        assigned: (V,) from `assigned_tracks`.
        tolerance: i, in frames.
    """
    if not true.divisions:
        return math.nan
    followed_by = dict(zip(zip(true.frame.tolist(), true.label.tolist(), strict=True), assigned.tolist(), strict=True))

    def follows(theirs: int, ours: int, frame: int) -> bool:
        return followed_by.get((frame, int(true.ids[ours])), 0) == int(predicted.ids[theirs])

    def same(theirs: int, ours: int) -> bool:
        ends = int(predicted.end[theirs]), int(true.end[ours])
        children, wanted = predicted.divisions[theirs], true.divisions[ours]
        if abs(ends[0] - ends[1]) > tolerance or len(children) != len(wanted) or not follows(theirs, ours, min(ends)):
            return False
        used: set[int] = set()
        for child in wanted:
            for other in children:
                begins = int(predicted.begin[other]), int(true.begin[child])
                if abs(begins[0] - begins[1]) <= tolerance and follows(other, child, max(begins)):
                    used.add(other)
                    break
        return len(used) == len(wanted)

    # A pair agrees in a frame that both have, so only tracks that meet need be compared.
    position = {label: at for at, label in enumerate(predicted.ids.tolist())}
    met: dict[int, set[int]] = {at: set() for at in true.divisions}
    for label, found in set(zip(true.label.tolist(), assigned.tolist(), strict=True)):
        at = int(np.searchsorted(true.ids, label))
        if found and at in met and position[found] in predicted.divisions:
            met[at].add(position[found])
    hits = sum(same(theirs, ours) for ours, candidates in met.items() for theirs in candidates)
    if not predicted.divisions:
        return 0.0
    precision, recall = hits / len(predicted.divisions), hits / len(true.divisions)
    return 2 * precision * recall / max(precision + recall, 0.0001)


def cell_cycle_accuracy(true: Tracks, predicted: Tracks) -> float:
    """CCA: 1 minus the largest distance of the distributions of cell cycle lengths, in frames.

    A cell cycle is a track that begins and ends with a division. NaN if the truth has none, 0 if the prediction has.
    """
    lengths = []
    for tracks in (true, predicted):
        divides = np.array(list(tracks.divisions), np.int64)
        whole = divides[np.isin(tracks.parent[divides], tracks.ids[divides])]
        lengths.append(np.sort(tracks.end[whole] - tracks.begin[whole]))
    if not len(lengths[0]):
        return math.nan
    if not len(lengths[1]):
        return 0.0
    at = np.concatenate(lengths)
    shares = [np.searchsorted(each, at, side="right") / len(each) for each in lengths]
    return 1 - float(np.abs(shares[0] - shares[1]).max())


def duplicates(numbers: Sequence[int]) -> list[int]:
    """Numbers that occur more than once, in increasing order."""
    return sorted(number for number, times in Counter(numbers).items() if times > 1)
