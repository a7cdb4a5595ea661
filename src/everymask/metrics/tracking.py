"""Tracking of cells, the protocol of the Cell Tracking Challenge: SEG, DET, TRA, LNK and the biological measures.

Definitions: Matula et al. 2015, "Cell tracking accuracy measurement based on comparison of acyclic oriented graphs"
(DET, TRA, LNK); Ulman et al. 2017, "An objective comparison of cell-tracking algorithms" (SEG, CT, TF, BC, CCA); Maska
et al. 2023 (LNK and the overall figures). They equal those of `py-ctcmetrics`, the organisers' program in Python.

A predicted object is the match of a true one if it covers more than half of its pixels. So a true object has at most
one match, while a predicted object may be that of several.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from everymask.errors import InputError
from everymask.metrics import tracking_graph as graph
from everymask.metrics.base import Cell, Metric, Table, check_pair, label_map

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from everymask.types import Categories, Segments

_Overlap = tuple["NDArray[np.int64]", "NDArray[np.int64]", "NDArray[np.int64]"]
_NONE = np.zeros(0, np.int64)
_OPERATIONS = ("ns", "fn", "fp", "ed", "ea", "ec")


@dataclass(frozen=True, slots=True, eq=False)
class FrameRecord:
    """What is kept of one frame with N true and M predicted objects.

    Args:
        name: The image.
        sequence: The sequence that it belongs to.
        frame: Its number in the sequence; None for an image that is in no sequence.
        true: (N,) tracks of the true objects in increasing order; None where the truth does not show all objects.
        true_parent: (N,) track that divided into that of each object, 0 for none.
        predicted: (M,) tracks of the predicted objects in increasing order.
        predicted_parent: (M,) likewise.
        match: (N,) index of the predicted object that matches, or -1.
        outlined: Number of true objects with an outline; None where the truth has no outlines.
        iou: (K,) IoU of those of them that have a match.
        linked: Whether truth and prediction say which objects of different frames are the same; None if without any.
    """

    name: str
    sequence: str
    frame: int | None
    true: NDArray[np.int64] | None
    true_parent: NDArray[np.int64]
    predicted: NDArray[np.int64]
    predicted_parent: NDArray[np.int64]
    match: NDArray[np.int64]
    outlined: int | None
    iou: NDArray[np.float64]
    linked: tuple[bool | None, bool | None]


class CellTrackingMetric(Metric):
    """Segmentation, detection and tracking of cells.

    SEG is the mean over the true objects of the IoU with their match, 0 without one. DET = 1 - min(A, A0) / A0 with
    A = 5 NS + 10 FN + FP and A0 = 10 x true objects; NS counts the splits that a predicted object needs which matches
    several true ones. TRA has the costs of links in addition: 1 for a redundant one (ED), 1.5 for a missing one (EA), 1
    for one that says "division" where it is the same cell, or the reverse (EC); LNK has these alone. CT is complete
    tracks, TF track fractions, BC(i) branching correctness of divisions up to i frames off, CCA cell cycle accuracy,
    BIO(i) the mean of those of the four that exist. OP_CSB = (SEG + DET) / 2, OP_CTB = (SEG + TRA) / 2,
    OP_CLB(i) = (LNK + BIO(i)) / 2.

    Sequences are scored one by one, and `compute` gives the mean over them. Links need all frames of a sequence.

    - Objects have their track as attribute `track` and the track that divided into it as `parent`, 0 for none. Without
      tracks in truth or prediction, there are no links to score: SEG and DET are left.
    - `extra` names the ``sequence`` and the number of the ``frame``. Images without them count as one sequence of
      unrelated images.
    - ``extra["annotation"]`` says what the truth is. ``"SEG"`` and ``"ST"``: outlines, perhaps of some objects only;
      they count for SEG. ``"TRA"``: markers of all objects; they count for DET and TRA. ``"both"``: pieces, each the
      pixels that the outline `seg` and the marker `track` share (0 for none; `seg` is -1 where outlines are unknown).
      Anything else: outlines of all objects, which count for everything.
    - ``extra["slices"]`` names the slices of a volume in which there are outlines. Each is scored as an image of its
      own, as the organisers' program for Fiji does (`py-ctcmetrics` repeats a frame with several slices).
    - Void pixels of the truth count neither for truth nor for prediction; categories are not looked at.

    Args:
        categories: The classes of the data set.
        division_frames: The highest i of BC(i), BIO(i) and OP_CLB(i).

    Raises:
        InputError: `division_frames` is negative.
    """

    reading: ClassVar[Mapping[str, Mapping[str, Any]]] = {"ctc": {"annotation": "both"}}

    def __init__(self, categories: Categories, division_frames: int = 3) -> None:
        super().__init__(categories)
        if division_frames < 0:
            raise InputError(f"division_frames: got {division_frames}, expected 0 or more frames")
        self.division_frames = int(division_frames)
        self.records: list[FrameRecord] = []

    def update(
        self,
        truth: Segments,
        prediction: Segments,
        name: str = "",
        group: str = "",
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Takes in one frame; see `Metric.update`.

        Raises:
            InputError: As there; or the prediction has a track twice in the frame, or a number of a track below 1.
        """
        from everymask.ops.labels import label_overlap

        check_pair(truth, prediction, name)
        extra = extra or {}
        kind, frame = extra.get("annotation"), extra.get("frame")
        truth_ids, prediction_ids = label_map(truth, "truth", name), label_map(prediction, "prediction", name)
        overlap = label_overlap(truth_ids, prediction_ids)
        present, tracks = _predicted_tracks(prediction, overlap, name)
        true, parent, match = None, _NONE, _NONE
        if kind not in {"SEG", "ST"}:
            track_of = _column(truth, "track", np.arange(1, len(truth) + 1))
            true, owner, other, _ = _matches(overlap, track_of)
            match = np.full(len(true), -1)
            match[owner] = np.argsort(present)[np.searchsorted(np.sort(present), other)]
            parent = np.zeros(len(true), np.int64)
            pieces = np.isin(track_of, true)
            parent[np.searchsorted(true, track_of[pieces])] = _column(truth, "parent", 0)[pieces]
        outlined, iou = None, [np.zeros(0)]
        if kind != "TRA":
            outline_of = _column(truth, "seg", np.arange(1, len(truth) + 1))
            slices = extra.get("slices")
            parts = [overlap] if slices is None else [label_overlap(truth_ids[z], prediction_ids[z]) for z in slices]
            found = [_matches(each, outline_of) for each in parts]
            outlined, iou = sum(len(each[0]) for each in found), [each[3] for each in found]
        linked = tuple("track" in each.attributes if len(each) else None for each in (truth, prediction))
        self.records.append(
            FrameRecord(
                name,
                str(extra.get("sequence", "")),
                None if frame is None else int(frame),
                true,
                parent,
                tracks,
                _column(prediction, "parent", 0)[present - 1],
                match,
                outlined,
                np.concatenate(iou),
                (linked[0], linked[1]),
            )
        )

    def merge(self, other: Self) -> None:
        """Takes in all frames of `other`; see `Metric.merge`."""
        if (other.categories, other.division_frames) != (self.categories, self.division_frames):
            raise InputError("metrics of different categories or division_frames cannot be merged; use equal ones")
        self.records.extend(other.records)

    def compute(self) -> dict[str, float]:
        """The figures, all but the counts and costs in 0..1, NaN where no sequence has one.

        - `images` (frames) and `sequences`; `true_objects` and `predicted_objects` of frames with markers.
        - Means over the sequences: `seg`, `det`, `tra`, `lnk`, `op_csb`, `op_ctb`, `ct`, `tf`, `cca`, and for every i
          up to `division_frames` `bc@i`, `bio@i`, `op_clb@i`.
        - Sums over the sequences: `aogm`, `aogm_0` (the cost of making the truth from nothing), and the operations
          `ns`, `fn`, `fp`, `ed`, `ea`, `ec`.

        Raises:
            InputError: A frame of a sequence is missing or was given twice, or tracks contradict each other.
        """
        sequences = self._figures()
        marked = [each for each in self.records if each.true is not None]
        figures = {
            "images": float(len(self.records)),
            "sequences": float(len(sequences)),
            "true_objects": float(sum(len(each.match) for each in marked)),
            "predicted_objects": float(sum(len(each.predicted) for each in marked)),
        }
        for name in _sequence_figures("", [], self.division_frames):
            values = [each[name] for each in sequences.values() if not math.isnan(each[name])]
            # fsum is exactly rounded, so the order of frames and processes leaves no trace in the last bit.
            total = math.fsum(values) if values else math.nan
            figures[name] = total if name in (*_OPERATIONS, "aogm", "aogm_0") else total / max(len(values), 1)
        return figures

    def tables(self) -> list[Table]:
        """Figures and operations of every sequence."""
        shown = ["seg", "det", "tra", "op_csb", "op_ctb", "lnk", "ct", "tf", "cca"]
        shown += [f"bc@{i}" for i in range(self.division_frames + 1)]
        sequences = self._figures()
        rows = [(name, *(each[figure] for figure in shown)) for name, each in sequences.items()]
        operations = []
        for name, each in sequences.items():
            counts = (each[figure] for figure in _OPERATIONS)
            operations.append((name, *(x if math.isnan(x) else int(x) for x in counts), each["aogm"]))
        notes = []
        if any(each.linked[1] is False for each in self.records):
            notes.append("The predictions have no tracks, so links are not scored.")
        if not any(each.linked[0] for each in self.records):
            notes.append("The truth has no tracks, so links are not scored.")
        if all(each.outlined is None for each in self.records):
            notes.append("The truth has no outlines, so segmentation is not scored.")
        columns = (
            "sequence",
            "splits",
            "missed",
            "invented",
            "redundant links",
            "missing links",
            "wrong links",
            "AOGM",
        )
        return [
            Table("Sequences", ("sequence", *(each.upper() for each in shown)), tuple(rows), " ".join(notes), "SEG"),
            Table("Corrections", columns, tuple(operations)),
        ]

    def images(self) -> Table:
        """One row for each frame, in order of names: true and predicted objects, operations, DET and SEG."""
        rows: list[tuple[Cell, ...]] = []
        for record in sorted(self.records, key=lambda each: each.name):
            counts: tuple[Cell, ...] = ("", "", "", "", "")
            det = math.nan
            if record.true is not None:
                made = graph.vertex_operations([record.match], [len(record.predicted)])
                det = made.det
                counts = (len(record.true), len(record.predicted), int(made.ns), int(made.fn), int(made.fp))
            rows.append((record.name, record.sequence, *counts, det, _seg([record])))
        columns = (
            "image",
            "sequence",
            "true objects",
            "predicted objects",
            "splits",
            "missed",
            "invented",
            "DET",
            "SEG",
        )
        marked = any(each.true is not None for each in self.records)
        return Table("Images", columns, tuple(rows), judge="DET" if marked else "SEG")

    def _figures(self) -> dict[str, dict[str, float]]:
        """The figures of each sequence, by name."""
        found: dict[str, list[FrameRecord]] = {}
        for record in self.records:
            found.setdefault(record.sequence, []).append(record)
        return {name: _sequence_figures(name, found[name], self.division_frames) for name in sorted(found)}


def _column(segments: Segments, name: str, default: ArrayLike) -> NDArray[np.int64]:
    """(N,) an attribute of the segments as whole numbers, or the default."""
    values = np.asarray(segments.attributes.get(name, default), np.int64)
    return np.broadcast_to(values, (len(segments),))


def _predicted_tracks(
    prediction: Segments, overlap: _Overlap, name: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids (M,) of the predicted objects that have pixels outside of void, in order of their tracks, and these."""
    present = np.unique(overlap[1][(overlap[0] >= 0) & (overlap[1] > 0)])
    tracks = _column(prediction, "track", np.arange(1, len(prediction) + 1))[present - 1]
    order = np.argsort(tracks, kind="stable")
    present, tracks = present[order], tracks[order]
    wrong = [*tracks[tracks < 1], *tracks[1:][np.diff(tracks) == 0]]
    if wrong:
        problem = "below 1" if wrong[0] < 1 else "twice"
        raise InputError(
            f"image {name!r}: the prediction has track {wrong[0]} {problem}; expected a positive number that is one "
            "object of the frame"
        )
    return present, tracks


def _matches(
    overlap: _Overlap, label_of: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Which predicted objects cover more than half of which true ones.

    Args:
        overlap: From `label_overlap`, the truth first.
        label_of: (N,) object that each segment of the truth is a part of; 0 for none, -1 for unknown.

    Returns:
        Labels (n,) of the true objects that have pixels, in increasing order; indices (K,) of those that have a match;
        ids (K,) of the predicted objects; and their IoU (K,).
    """
    piece, other, shared = overlap
    label = np.concatenate([[0], label_of, [-1]])[np.maximum(piece, -1)]  # void is the last, as index -1
    known = label >= 0
    label, other, shared = label[known], np.maximum(other[known], 0), shared[known]
    labels, owner = np.unique(label, return_inverse=True)
    # Sums of pixels stay exact in double precision.
    true_area = np.bincount(owner, shared, minlength=len(labels))
    other_area = np.bincount(other, shared)
    width = len(other_area)
    pairs, pair = np.unique(owner * width + other, return_inverse=True)
    shared = np.bincount(pair, shared, minlength=len(pairs))
    owner, other = np.divmod(pairs, max(width, 1))
    chosen = (labels[owner] > 0) & (other > 0) & (2 * shared > true_area[owner])
    owner, other, shared = owner[chosen], other[chosen], shared[chosen]
    iou = shared / (true_area[owner] + other_area[other] - shared)
    background = int((labels == 0).sum())
    return labels[background:], owner - background, other, iou


def _seg(records: list[FrameRecord]) -> float:
    """SEG of a sequence; NaN without outlines."""
    outlined = sum(each.outlined or 0 for each in records)
    return math.fsum(x for each in records for x in each.iou) / outlined if outlined else math.nan


def _sequence_figures(name: str, records: list[FrameRecord], division_frames: int) -> dict[str, float]:
    """All figures of one sequence.

    Raises:
        InputError: A frame was given twice; or there are links to score and a frame is missing; or tracks contradict
            each other.
    """
    records = sorted(records, key=lambda each: (-1 if each.frame is None else each.frame, each.name))
    numbers = [each.frame for each in records if each.frame is not None]
    for twice in graph.duplicates(numbers):
        raise InputError(f"frame {twice} of sequence {name!r} was given twice; give every frame once")
    marked = [each for each in records if each.true is not None]
    made = graph.vertex_operations([each.match for each in marked], [len(each.predicted) for each in marked])
    seg = _seg(records)
    ct = tf = cca = math.nan
    bc = [math.nan] * (division_frames + 1)
    if _has_links(name, marked):
        frames = [(each.frame or 0, each) for each in marked]
        true = graph.Tracks(
            [(number, each.match if each.true is None else each.true, each.true_parent) for number, each in frames],
            f"truth of sequence {name!r}",
        )
        predicted = graph.Tracks(
            [(number, each.predicted, each.predicted_parent) for number, each in frames],
            f"prediction of sequence {name!r}",
        )
        starts = np.cumsum([0, *(len(each.predicted) for each in marked)])
        match = np.concatenate(
            [np.where(each.match < 0, -1, each.match + start) for each, start in zip(marked, starts, strict=False)]
        )
        made = graph.all_operations(true, predicted, match)
        assigned = graph.assigned_tracks(predicted, match)
        ct, tf = graph.complete_tracks(true, predicted, assigned), graph.track_fractions(true, assigned)
        cca = graph.cell_cycle_accuracy(true, predicted)
        bc = [graph.branching_correctness(true, predicted, assigned, i) for i in range(division_frames + 1)]
    figures = {"seg": seg, "det": made.det, "tra": made.tra, "lnk": made.lnk}
    figures |= {"op_csb": (seg + made.det) / 2, "op_ctb": (seg + made.tra) / 2, "ct": ct, "tf": tf, "cca": cca}
    for i, each in enumerate(bc):
        measures = [x for x in (ct, tf, each, cca) if not math.isnan(x)]
        bio = math.fsum(measures) / len(measures) if measures else math.nan
        figures |= {f"bc@{i}": each, f"bio@{i}": bio, f"op_clb@{i}": (made.lnk + bio) / 2}
    figures |= {each: float(getattr(made, each)) for each in _OPERATIONS}
    return figures | {"aogm": made.aogm, "aogm_0": made.aogm_0}


def _has_links(name: str, records: list[FrameRecord]) -> bool:
    """Whether truth and prediction have tracks over the frames of a sequence.

    Raises:
        InputError: Some frames have tracks and others have objects without; or a frame is missing.
    """
    for role, side in (("truth", 0), ("prediction", 1)):
        told = {each.linked[side] for each in records} - {None}
        if len(told) > 1:
            example = next(each.name for each in records if each.linked[side] is False)
            raise InputError(
                f"image {example!r}: the objects of the {role} have no tracks, but other frames' have some"
            )
    # A prediction without any object has missed every link.
    linked = any(each.linked[0] for each in records) and not any(each.linked[1] is False for each in records)
    if not linked or any(each.frame is None for each in records):
        return False
    numbers = [each.frame or 0 for each in records]
    absent = sorted(set(range(numbers[0], numbers[-1] + 1)) - set(numbers))
    if absent:
        raise InputError(
            f"frame {absent[0]} of sequence {name!r} is missing ({len(absent)} in all), but tracks are scored over all "
            "frames; give every frame, or leave out the tracks"
        )
    return True
