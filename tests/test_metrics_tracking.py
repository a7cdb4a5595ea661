"""Cell tracking measures against py-ctcmetrics, the organisers' program, on real and on made-up sequences."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile

from everymask.errors import InputError
from everymask.formats import open_dataset, open_predictions
from everymask.metrics import make_metric
from everymask.metrics.evaluate import evaluate
from everymask.metrics.tracking import CellTrackingMetric
from everymask.types import Categories, LabelMap, Segments

pytestmark = pytest.mark.filterwarnings("ignore:Empty frame:UserWarning")  # of the reference program
CELLS = Categories(["cell"])
NAMES = {
    "SEG": "seg",
    "DET": "det",
    "TRA": "tra",
    "LNK": "lnk",
    "OP_CSB": "op_csb",
    "OP_CTB": "op_ctb",
    "CT": "ct",
    "TF": "tf",
    "CCA": "cca",
    "AOGM": "aogm",
    "AOGM_0": "aogm_0",
    **{f"AOGM_{each.upper()}": each for each in ("ns", "fn", "fp", "ed", "ea", "ec")},
    **{f"{each}({i})": f"{each.lower()}@{i}" for each in ("BC", "BIO", "OP_CLB") for i in range(4)},
}
METRICS = ["Valid", "DET", "SEG", "TRA", "LNK", "CT", "TF", "BC", "CCA"]


@pytest.fixture(scope="module")
def official():
    program = pytest.importorskip("ctc_metrics.scripts.evaluate", reason="py-ctcmetrics is the reference program")

    def run(results: Path, truth: Path) -> dict[str, float]:
        figures = program.evaluate_sequence(str(results), str(truth), metrics=list(METRICS), threads=1)
        assert figures["Valid"] == 1, "the reference program takes the made-up results for invalid"
        return figures

    return run


def ours(results: Path, truth: Path) -> dict[str, float]:
    dataset = open_dataset(truth, annotation="both")
    predictions = open_predictions(results, dataset)
    assert predictions is not None
    return evaluate(dataset, lambda sample: predictions[sample.name], protocol="ctc").figures


def assert_equal(figures: dict[str, float], reference: dict[str, float]) -> None:
    for theirs, name in NAMES.items():
        value = reference.get(theirs)
        if value is None:
            # BC and CCA are None without divisions; OP_CLB is only made if BIO was asked for.
            assert np.isnan(figures[name]) or theirs.startswith("OP_CLB"), theirs
            continue
        if theirs.startswith("BIO") or (theirs == "OP_CSB" and np.isnan(value)):
            continue
        assert figures[name] == pytest.approx(value, abs=1e-9), theirs
    for i in range(4):
        parts = [reference[each] for each in ("CT", "TF", f"BC({i})", "CCA") if reference[each] is not None]
        assert figures[f"bio@{i}"] == pytest.approx(sum(parts) / len(parts), abs=1e-9)
        assert figures[f"op_clb@{i}"] == pytest.approx((reference["LNK"] + sum(parts) / len(parts)) / 2, abs=1e-9)


# -- made-up sequences -------------------------------------------------------------------------------------------------

Frame = np.ndarray
Lines = dict[int, list[int]]  # label -> begin, end, parent


def write_masks(folder: Path, prefix: str, frames: list[Frame], lines: Lines | None = None, file: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, labels in enumerate(frames):
        tifffile.imwrite(folder / f"{prefix}{number:03d}.tif", labels.astype(np.uint16))
    if lines is not None:
        text = "".join(f"{label} {' '.join(map(str, line))}\n" for label, line in lines.items())
        (folder / file).write_text(text)


def made_up_truth(generator: np.random.Generator, length: int, shape: tuple[int, ...]) -> tuple[list[Frame], Lines]:
    """Boxes that wander, divide, vanish and come back, with the lines of their tracks."""
    lines: Lines = {}
    following = itertools.count(1)
    alive: dict[int, np.ndarray] = {}

    def begin(place: np.ndarray, frame: int, parent: int = 0) -> None:
        label = next(following)
        alive[label] = np.clip(place, 1, np.array(shape) - 4)
        lines[label] = [frame, frame, parent]

    frames: list[Frame] = []
    for number in range(length):
        for label in list(alive):
            place = alive[label] + generator.integers(-1, 2, len(shape))
            event = generator.random()
            if number and event < 0.12:
                del alive[label]
                for step in ([-3] * len(shape), [3] * len(shape)):
                    begin(place + step, number, label)
            elif number and event < 0.2:
                del alive[label]
                if event < 0.16 and number + 1 < length:
                    begin(place, number, label)  # the same cell goes on as another track
            else:
                alive[label] = np.clip(place, 1, np.array(shape) - 4)
        while len(alive) < 3 or (len(alive) < 9 and generator.random() < 0.3):
            begin(generator.integers(0, shape), number)
        labels = np.zeros(shape, np.uint16)
        for label, place in alive.items():
            labels[tuple(slice(at, at + int(generator.integers(3, 6))) for at in place)] = label
        labels[tuple([0] * len(shape))] = 0  # the official program takes the lowest value for background
        frames.append(labels)
        for label in list(alive):
            if (labels == label).any():
                lines[label][1] = number
            else:  # covered by another cell: its track is over, or never began
                del alive[label]
                if lines[label][0] == number:
                    del lines[label]
    for label, line in lines.items():
        line[2] = line[2] if line[2] in lines and lines[line[2]][1] < line[0] else 0
        assert line[1] >= line[0], label
    return frames, lines


def perturbed(generator: np.random.Generator, frames: list[Frame], lines: Lines) -> tuple[list[Frame], Lines]:
    """What a tracker makes of it: lost, invented, merged, shrunk and shifted cells, broken and swapped tracks."""
    made = [labels.copy() for labels in frames]
    label_of: list[dict[int, int]] = [{int(x): int(x) for x in np.unique(each) if x} for each in made]
    following = itertools.count(max(lines, default=0) + 1)
    came_from = {label: line[2] for label, line in lines.items()}
    for number, labels in enumerate(made):
        for label in list(label_of[number]):
            mask = labels == label
            match int(generator.integers(14)):
                case 0:
                    labels[mask] = 0
                case 1:
                    labels[mask & (np.roll(mask, 2, axis=-1))] = 0
                case 2:
                    other = int(generator.choice(list(label_of[number])))
                    labels[mask] = other
                case 3:
                    new = next(following)
                    came_from[new] = label
                    for later, later_labels in enumerate(made[number:], number):
                        later_labels[later_labels == label] = new
                        label_of[later] = {new if key == label else key: key for key in label_of[later]}
        if generator.random() < 0.3:
            labels[tuple(slice(at, at + 3) for at in generator.integers(1, np.array(labels.shape) - 3))] = next(
                following
            )
        if generator.random() < 0.1:
            labels[...] = 0
    # Files that agree with each other: every run of frames of a label becomes a track of its own.
    tracks: Lines = {}
    renamed: dict[tuple[int, int], int] = {}
    for number, labels in enumerate(made):
        result = np.zeros_like(labels)
        for label in map(int, np.unique(labels[labels > 0])):
            before = renamed.get((number - 1, label))
            track = before if before is not None else len(tracks) + 1
            tracks.setdefault(track, [number, number, 0])[1] = number
            renamed[number, label] = track
            result[labels == label] = track
        made[number] = result
    for (number, label), track in renamed.items():
        line = tracks[track]
        ended = [each for each, other in tracks.items() if other[1] < line[0] <= other[1] + 2]
        origin = {renamed.get((number - back, came_from.get(label, 0))) for back in (1, 2)}
        if line[0] == number and ended and generator.random() < 0.8:
            line[2] = next((each for each in ended if each in origin), 0) or int(generator.choice([0, *ended]))
    return made, tracks


@pytest.mark.parametrize("seed", range(30))
def test_made_up_sequences(official, tmp_path: Path, seed: int) -> None:
    generator = np.random.default_rng(seed)
    shape = (8, 26, 30) if seed % 10 == 9 else (36, 44)
    truth, lines = made_up_truth(generator, int(generator.integers(4, 14)), shape)
    results, tracks = perturbed(generator, truth, lines)
    write_masks(tmp_path / "01_GT" / "TRA", "man_track", truth, lines, "man_track.txt")
    outlines = [np.where(generator.random() < 0.8, each, np.roll(each, 1, axis=-1)) for each in truth]
    write_masks(tmp_path / "01_GT" / "SEG", "man_seg", outlines)
    for number in range(1, len(truth)):
        if generator.random() < 0.4:
            (tmp_path / "01_GT" / "SEG" / f"man_seg{number:03d}.tif").unlink()
    write_masks(tmp_path / "01_RES", "mask", results, tracks, "res_track.txt")
    assert tracks
    figures = ours(tmp_path / "01_RES", tmp_path / "01_GT")
    assert_equal(figures, official(tmp_path / "01_RES", tmp_path / "01_GT"))
    assert figures["det"] < 1


def test_made_up_sequences_have_every_operation(tmp_path: Path) -> None:
    """That the sequences above exercise what they are for."""
    total = dict.fromkeys(("ns", "fn", "fp", "ed", "ea", "ec"), 0.0)
    divided = 0
    for seed in range(30):
        generator = np.random.default_rng(seed)
        shape = (8, 26, 30) if seed % 10 == 9 else (36, 44)
        truth, lines = made_up_truth(generator, int(generator.integers(4, 14)), shape)
        results, tracks = perturbed(generator, truth, lines)
        folder = tmp_path / str(seed)
        write_masks(folder / "01_GT" / "TRA", "man_track", truth, lines, "man_track.txt")
        write_masks(folder / "01_RES", "mask", results, tracks, "res_track.txt")
        figures = ours(folder / "01_RES", folder / "01_GT")
        total = {name: value + figures[name] for name, value in total.items()}
        divided += figures["bc@3"] > 0
    assert all(value > 10 for value in total.values()), total
    assert divided > 3


def test_real_sequence_with_a_perturbed_result(official, shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "ctc" / "Fluo-N2DH-SIM+" / "01_GT"
    frames = [tifffile.imread(each)[::2, ::2] for each in sorted((source / "TRA").glob("man_track*.tif"))]
    lines = {
        int(label): [int(each) for each in line]
        for label, *line in (text.split() for text in (source / "TRA" / "man_track.txt").read_text().splitlines())
    }
    outlines = [tifffile.imread(each)[::2, ::2] for each in sorted((source / "SEG").glob("man_seg*.tif"))]
    write_masks(tmp_path / "01_GT" / "TRA", "man_track", frames, lines, "man_track.txt")
    write_masks(tmp_path / "01_GT" / "SEG", "man_seg", outlines)
    results, tracks = perturbed(np.random.default_rng(0), frames, lines)
    write_masks(tmp_path / "01_RES", "mask", results, tracks, "res_track.txt")
    figures = ours(tmp_path / "01_RES", tmp_path / "01_GT")
    assert_equal(figures, official(tmp_path / "01_RES", tmp_path / "01_GT"))
    assert figures["true_objects"] == 2606, "of 2607, one is too thin for half the resolution"
    assert 0.3 < figures["tra"] < 0.95


def test_a_trackers_results_against_themselves(official, shared_data: Path, tmp_path: Path) -> None:
    """The results of a real tracker as truth, and the same with every fifth track cut in two."""
    source = shared_data / "ctc" / "Fluo-N2DL-HeLa" / "01_RES"
    frames = [tifffile.imread(each)[::2, ::2] for each in sorted(source.glob("mask*.tif"))[:40]]
    lines: Lines = {}
    parents = {
        int(line.split()[0]): int(line.split()[3]) for line in (source / "res_track.txt").read_text().splitlines()
    }
    for number, labels in enumerate(frames):
        for label in map(int, np.unique(labels[labels > 0])):
            lines.setdefault(label, [number, number, 0])[1] = number
    for label, line in lines.items():
        parent = parents[label]
        line[2] = parent if parent in lines and lines[parent][1] < line[0] else 0
    write_masks(tmp_path / "01_GT" / "TRA", "man_track", frames, lines, "man_track.txt")
    write_masks(tmp_path / "01_GT" / "SEG", "man_seg", frames)
    results, tracks = [each.copy() for each in frames], {key: list(line) for key, line in lines.items()}
    for label, (begin, end, _) in lines.items():
        if label % 5 == 0 and end > begin:
            middle, new = (begin + end + 1) // 2, max(tracks) + 1
            for labels in results[middle:]:
                labels[labels == label] = new
            for line in tracks.values():
                line[2] = new if line[2] == label else line[2]
            tracks[label][1], tracks[new] = middle - 1, [middle, end, label]
    write_masks(tmp_path / "01_RES", "mask", results, tracks, "res_track.txt")
    figures = ours(tmp_path / "01_RES", tmp_path / "01_GT")
    assert_equal(figures, official(tmp_path / "01_RES", tmp_path / "01_GT"))
    assert (figures["seg"], figures["det"]) == (1, 1)
    assert figures["ec"] > 10


def test_single_slices_of_volumes(official, tmp_path: Path) -> None:
    """One annotated slice a frame, as the official program reads them."""
    generator = np.random.default_rng(3)
    truth, lines = made_up_truth(generator, 6, (8, 30, 34))
    results, tracks = perturbed(generator, truth, lines)
    write_masks(tmp_path / "01_GT" / "TRA", "man_track", truth, lines, "man_track.txt")
    write_masks(tmp_path / "01_RES", "mask", results, tracks, "res_track.txt")
    (tmp_path / "01_GT" / "SEG").mkdir()
    for number, labels in enumerate(truth):
        z = int(np.argmax((labels > 0).sum(axis=(1, 2))))
        tifffile.imwrite(tmp_path / "01_GT" / "SEG" / f"man_seg_{number:03d}_{z:03d}.tif", labels[z])
    figures = ours(tmp_path / "01_RES", tmp_path / "01_GT")
    assert_equal(figures, official(tmp_path / "01_RES", tmp_path / "01_GT"))
    assert 0 < figures["seg"] < 1


def test_several_slices_are_images_of_their_own() -> None:
    """As the organisers' program for Fiji: an object counts once in every annotated slice."""
    truth = np.zeros((3, 4, 8), np.int32)
    truth[0, :2, :4], truth[2, :2, :2] = 1, 1
    prediction = truth.copy()
    prediction[2, :2, :6] = 1
    prediction[1] = 1
    metric = CellTrackingMetric(CELLS)
    metric.update(*map(tracked, (truth, prediction)), "a", extra={"annotation": "SEG", "slices": [0, 2]})
    assert metric.compute()["seg"] == pytest.approx((1 + 4 / 12) / 2)


# -- closed forms ------------------------------------------------------------------------------------------------------


def tracked(ids: np.ndarray, tracks: dict[int, int] | None = None, parents: dict[int, int] | None = None) -> Segments:
    """Segments of a label map whose objects are called 1..N; None for tracks leaves them without."""
    count = int(ids.max(initial=0))
    numbers = range(1, count + 1)
    columns = {}
    if tracks is not None:
        columns = {
            "track": np.array([tracks[i] for i in numbers], np.int64),
            "parent": np.array([(parents or {}).get(tracks[i], 0) for i in numbers], np.int64),
        }
    return Segments(ids.shape, np.ones(count, np.int64), LabelMap(ids.astype(np.int32)), attributes=columns)


def row(*runs: tuple[int, int]) -> np.ndarray:
    """A label map of one row: (label, pixels), one after the other."""
    return np.concatenate([np.full(pixels, label) for label, pixels in runs])[None]


def scored(frames: list[tuple[Segments, Segments]], **extra: str) -> dict[str, float]:
    metric = CellTrackingMetric(CELLS)
    for number, (truth, prediction) in enumerate(frames):
        metric.update(truth, prediction, f"t{number}", extra={"sequence": "01", "frame": number, **extra})
    return metric.compute()


def test_a_match_is_more_than_half_of_the_true_object() -> None:
    truth = tracked(row((1, 4), (0, 4)), {1: 1})
    half, more = tracked(row((1, 2), (0, 6)), {1: 1}), tracked(row((1, 3), (0, 5)), {1: 1})
    assert scored([(truth, half)])["seg"] == 0
    figures = scored([(truth, more)])
    assert figures["seg"] == 0.75
    assert figures["det"] == 1
    assert np.isnan(figures["lnk"]), "one frame has no links"


def test_costs_of_single_operations() -> None:
    """Two cells in two frames: A0 = 10 * 4 + 1.5 * 2 = 43."""
    both = tracked(row((1, 3), (2, 3), (0, 2)), {1: 1, 2: 2})
    merged = tracked(row((1, 6), (0, 2)), {1: 1})
    missed = tracked(row((1, 3), (0, 5)), {1: 1})
    invented = tracked(row((1, 3), (2, 3), (3, 2)), {1: 1, 2: 2, 3: 3})
    swapped = tracked(row((1, 3), (2, 3), (0, 2)), {1: 2, 2: 1})
    renamed = tracked(row((1, 3), (2, 3), (0, 2)), {1: 7, 2: 2}, {7: 1})
    for second, cost in (
        (both, 0),
        (merged, 5 + 2 * 1.5),
        (missed, 10 + 1.5),
        (invented, 1),
        (swapped, 2 + 2 * 1.5),
        (renamed, 1),
    ):
        figures = scored([(both, both), (both, second)])
        assert figures["aogm"] == cost
        assert figures["aogm_0"] == 43
        assert figures["tra"] == pytest.approx(1 - cost / 43)


def test_nothing_found_and_nothing_there() -> None:
    cell, nothing = tracked(row((1, 3), (0, 5)), {1: 1}), tracked(row((0, 8)))
    figures = scored([(cell, nothing), (cell, nothing)])
    assert (figures["seg"], figures["det"], figures["tra"]) == (0, 0, 0)
    assert all(np.isnan(scored([(nothing, nothing)])[name]) for name in ("seg", "det", "tra"))
    assert all(np.isnan(CellTrackingMetric(CELLS).compute()[name]) for name in ("seg", "det", "tra"))


def test_without_tracks_only_segmentation_and_detection_are_scored() -> None:
    truth, prediction = tracked(row((1, 4), (0, 4)), {1: 1}), tracked(row((1, 3), (0, 5)))
    metric = CellTrackingMetric(CELLS)
    for number in range(2):
        metric.update(truth, prediction, str(number), extra={"sequence": "01", "frame": number})
    figures = metric.compute()
    assert (figures["seg"], figures["det"], figures["op_csb"]) == (0.75, 1, 0.875)
    assert np.isnan(figures["tra"])
    assert "predictions have no tracks" in metric.tables()[0].note
    # Images that are no frames of anything, and truth without tracks.
    metric = CellTrackingMetric(CELLS)
    for number in range(3):
        metric.update(tracked(row((1, 4), (0, 4))), prediction, str(number))
    assert metric.compute()["op_csb"] == 0.875


def test_outlines_and_markers_count_for_their_own() -> None:
    cell = tracked(row((1, 4), (0, 4)), {1: 1})
    outlines = scored([(tracked(row((1, 4), (0, 4))), cell)], annotation="SEG")
    assert outlines["seg"] == 1
    assert np.isnan(outlines["det"])
    markers = scored([(cell, cell)], annotation="TRA")
    assert markers["det"] == 1
    assert np.isnan(markers["seg"])


# -- streaming ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [2, 3])
def test_merge_equals_one_process_to_the_last_bit(tmp_path: Path, share: int) -> None:
    pairs = []
    for sequence in ("01", "02"):
        generator = np.random.default_rng(int(sequence))
        truth, lines = made_up_truth(generator, 9, (36, 44))
        results, tracks = perturbed(generator, truth, lines)
        folder = tmp_path / sequence
        write_masks(folder / f"{sequence}_GT" / "TRA", "man_track", truth, lines, "man_track.txt")
        write_masks(folder / f"{sequence}_GT" / "SEG", "man_seg", truth)
        write_masks(folder / f"{sequence}_RES", "mask", results, tracks, "res_track.txt")
        dataset = open_dataset(folder / f"{sequence}_GT", annotation="both")
        predictions = open_predictions(folder / f"{sequence}_RES", dataset)
        pairs += [(each.segments, predictions[each.name], each.name, "", each.extra) for each in dataset]

    def metric(chosen):
        made = make_metric("ctc", CELLS)
        for each in chosen:
            made.update(*each)
        return made

    whole = metric(pairs)
    parts = [metric(pairs[start::share]) for start in range(share)]
    merged = parts[-1]
    for each in parts[:-1]:
        merged.merge(each)
    assert repr(merged.compute()) == repr(whole.compute())
    assert repr(merged.tables()) == repr(whole.tables())
    assert repr(merged.images()) == repr(whole.images())
    figures = whole.compute()
    for name in ("seg", "det", "tra"):
        single = [metric([each for each in pairs if each[4]["sequence"] == s]).compute()[name] for s in ("01", "02")]
        assert figures[name] == pytest.approx(np.mean(single), abs=1e-12)
    table = whole.images()
    assert table.judge in table.columns
    assert len(table.rows) == 18


# -- mistakes ----------------------------------------------------------------------------------------------------------


def test_mistakes_are_told() -> None:
    cell = tracked(row((1, 4), (0, 4)), {1: 1})
    metric = CellTrackingMetric(CELLS)
    metric.update(cell, cell, "a", extra={"sequence": "01", "frame": 0})
    metric.update(cell, cell, "b", extra={"sequence": "01", "frame": 2})
    with pytest.raises(InputError, match=r"frame 1 of sequence '01' is missing"):
        metric.compute()
    metric.update(cell, cell, "c", extra={"sequence": "01", "frame": 2})
    with pytest.raises(InputError, match=r"frame 2 of sequence '01' was given twice"):
        metric.compute()
    two = row((1, 3), (2, 3), (0, 2))
    with pytest.raises(InputError, match=r"image 'a': the prediction has track 4 twice"):
        scored_twice = CellTrackingMetric(CELLS)
        scored_twice.update(tracked(two, {1: 1, 2: 2}), tracked(two, {1: 4, 2: 4}), "a")
    with pytest.raises(InputError, match=r"prediction of sequence '01': track 1 has the parent 9, which occurs in no"):
        scored([(cell, tracked(row((1, 4), (0, 4)), {1: 1}, {1: 9}))])
    late = tracked(two, {1: 1, 2: 2}, {2: 1})
    with pytest.raises(InputError, match=r"track 2 begins in frame 0, but its parent 1 lasts until frame 0"):
        scored([(cell, late)])
    with pytest.raises(InputError, match="have no tracks, but other frames' have some"):
        scored([(cell, cell), (cell, tracked(row((1, 4), (0, 4))))])
    with pytest.raises(InputError, match="size"):
        scored([(cell, tracked(row((1, 4)), {1: 1}))])
    with pytest.raises(InputError, match="division_frames"):
        CellTrackingMetric(CELLS, division_frames=-1)
    with pytest.raises(InputError, match="merged"):
        CellTrackingMetric(CELLS).merge(CellTrackingMetric(CELLS, division_frames=1))


def test_a_missing_result_is_named(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    truth, lines = made_up_truth(generator, 4, (36, 44))
    write_masks(tmp_path / "01_GT" / "TRA", "man_track", truth, lines, "man_track.txt")
    shutil.copytree(tmp_path / "01_GT" / "TRA", tmp_path / "01_RES")
    for number in range(4):
        (tmp_path / "01_RES" / f"man_track{number:03d}.tif").rename(tmp_path / "01_RES" / f"mask{number:03d}.tif")
    (tmp_path / "01_RES" / "man_track.txt").rename(tmp_path / "01_RES" / "res_track.txt")
    assert ours(tmp_path / "01_RES", tmp_path / "01_GT")["tra"] == 1
    (tmp_path / "01_RES" / "mask002.tif").unlink()
    with pytest.raises(InputError, match=r"01_RES.mask002\.tif is missing"):
        ours(tmp_path / "01_RES", tmp_path / "01_GT")
