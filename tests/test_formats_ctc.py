"""Cell Tracking Challenge folders: layouts, annotations, slices, tracks, round trips, and what is said of mistakes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile

from everymask.errors import InputError
from everymask.formats import open_dataset, open_predictions, recognise, write_dataset
from everymask.formats.ctc import recognise as is_ctc
from everymask.formats.ctc import recognise_predictions
from everymask.formats.images import read_labels, write_image, write_labels
from everymask.types import Categories, Dataset, LabelMap, Sample, Segments, Task

CELLS = Categories(["cell"])
LINES = "3 0 1 0\n5 0 2 0\n7 2 2 3\n9 2 2 3\n"


def masks(*shape: int) -> list[np.ndarray]:
    """Three frames: cell 3 divides into 7 and 9, cell 5 stays."""
    frames = []
    for frame in range(3):
        labels = np.zeros(shape, np.uint16)
        labels[..., 2:8, 2 + frame : 10 + frame] = 3
        labels[..., 12:18, 3:12] = 5
        if frame == 2:
            labels[labels == 3] = 0
            labels[..., 1:5, 2:8], labels[..., 6:10, 2:8] = 7, 9
        frames.append(labels)
    return frames


def markers(frames: list[np.ndarray]) -> list[np.ndarray]:
    """A few pixels of each cell, one of which reaches beyond it."""
    made = []
    for labels in frames:
        small = np.zeros_like(labels)
        for label in np.unique(labels[labels > 0]):
            where = np.argwhere(labels == label)
            small[tuple(where[len(where) // 2])] = label
            small[tuple(where[-1])] = label
            small[(*where[-1][:-1], where[-1][-1] + 1)] = label
        made.append(small)
    return made


def make(
    root: Path, *shape: int, sequence: str = "01", digits: int = 3, images: bool = True, lines: str = LINES
) -> Path:
    frames = masks(*shape)
    for frame, (labels, marks) in enumerate(zip(frames, markers(frames), strict=True)):
        number = f"{frame:0{digits}d}"
        if images:
            write_image(root / sequence / f"t{number}.tif", (labels.astype(np.uint16) * 9 + 1)[..., None])
        write_labels(root / f"{sequence}_GT" / "SEG" / f"man_seg{number}.tif", labels)
        write_labels(root / f"{sequence}_GT" / "TRA" / f"man_track{number}.tif", marks)
        write_labels(root / f"{sequence}_RES" / f"mask{number}.tif", labels)
    (root / f"{sequence}_GT" / "TRA" / "man_track.txt").write_text(lines)
    (root / f"{sequence}_RES" / "res_track.txt").write_text(lines)
    return root


def same(a: Dataset, b: Dataset) -> None:
    """Asserts that two data sets agree in everything, pixel by pixel."""
    assert [each.name for each in a] == [each.name for each in b]
    for one, other in zip(a, b, strict=True):
        assert one.extra == other.extra
        assert (one.path is None) == (other.path is None)
        if one.path is not None:
            np.testing.assert_array_equal(one.image, other.image)
        assert (one.segments is None) == (other.segments is None)
        if one.segments is None or other.segments is None:
            continue
        np.testing.assert_array_equal(one.segments.label_map(), other.segments.label_map())
        assert one.segments.attributes.keys() == other.segments.attributes.keys()
        for name, values in one.segments.attributes.items():
            assert values.dtype == other.segments.attributes[name].dtype
            np.testing.assert_array_equal(values, other.segments.attributes[name])


def files(folder: Path) -> dict[str, np.ndarray | str]:
    """Contents of all files below a folder."""
    return {
        each.relative_to(folder).as_posix(): each.read_text() if each.suffix == ".txt" else tifffile.imread(each)
        for each in sorted(folder.rglob("*.*"))
    }


def same_files(a: Path, b: Path) -> None:
    one, other = files(a), files(b)
    assert one.keys() == other.keys()
    for name, content in one.items():
        np.testing.assert_array_equal(content, other[name])


# -- reading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(20, 30), (6, 20, 30)])
def test_each_annotation(tmp_path: Path, shape: tuple[int, ...]) -> None:
    make(tmp_path, *shape)
    frames = masks(*shape)
    outlines = open_dataset(tmp_path)
    assert outlines.format == "ctc"
    assert outlines.categories == CELLS
    assert [each.name for each in outlines] == ["01/t000", "01/t001", "01/t002"]
    assert outlines[1].extra == {"sequence": "01", "frame": 1, "annotation": "SEG"}
    assert outlines[1].image.shape == (*shape, 1)
    np.testing.assert_array_equal(outlines[1].segments.attributes["label"], [3, 5])
    np.testing.assert_array_equal(outlines[1].segments.label_map() > 0, frames[1] > 0)

    tracks = open_dataset(tmp_path, annotation="TRA")[2]
    assert tracks.extra["annotation"] == "TRA"
    np.testing.assert_array_equal(tracks.segments.attributes["track"], [5, 7, 9])
    np.testing.assert_array_equal(tracks.segments.attributes["parent"], [0, 3, 3])
    values = np.concatenate([[0], tracks.segments.attributes["track"]])
    np.testing.assert_array_equal(values[tracks.segments.label_map()], markers(frames)[2])

    both = open_dataset(tmp_path, annotation="both")[2]
    assert both.extra["annotation"] == "both"
    for name, expected in (("seg", frames[2]), ("track", markers(frames)[2])):
        values = np.concatenate([[0], both.segments.attributes[name]])
        np.testing.assert_array_equal(values[both.segments.label_map()], expected)
    parent = dict(zip(both.segments.attributes["track"], both.segments.attributes["parent"], strict=True))
    assert parent == {0: 0, 5: 0, 7: 3, 9: 3}

    results = open_dataset(tmp_path, annotation="RES")
    np.testing.assert_array_equal(results[2].segments.attributes["track"], [5, 7, 9])
    assert results[2].extra["annotation"] == "RES"


def test_every_folder_opens(tmp_path: Path) -> None:
    make(tmp_path / "data", 20, 30)
    make(tmp_path / "data", 20, 30, sequence="02")
    shutil.copytree(tmp_path / "data" / "01_GT" / "SEG", tmp_path / "data" / "02_ST" / "SEG")
    for path, count, annotation in (
        ("", 6, "SEG"),
        ("01", 3, "SEG"),
        ("02_GT", 3, "SEG"),
        ("02_ST", 3, "ST"),
        ("02_RES", 3, "RES"),
    ):
        dataset = open_dataset(tmp_path / "data" / path)
        assert (dataset.format, len(dataset)) == ("ctc", count)
        assert dataset[0].extra["annotation"] == annotation
        assert all(each.path is not None and each.segments is not None for each in dataset)
    # A sequence without annotation, a folder of results alone, and results under another name.
    make(tmp_path / "alone", 20, 30)
    shutil.copytree(tmp_path / "alone" / "01", tmp_path / "test" / "01")
    dataset = open_dataset(tmp_path / "test")
    assert [each.segments for each in dataset] == [None] * 3
    for name in ("01_RES", "mine"):
        shutil.copytree(tmp_path / "alone" / "01_RES", tmp_path / "results" / name)
        dataset = open_dataset(tmp_path / "results" / name)
        assert len(dataset) == 3
        with pytest.raises(InputError, match="has no image of frame 0; only masks"):
            _ = dataset[0].image
    given = open_dataset(tmp_path / "results" / "01_RES", images=tmp_path / "alone")
    assert given[0].image.shape == (20, 30, 1)
    with pytest.raises(InputError, match="has no annotation 'ST'; it has RES, SEG, TRA"):
        open_dataset(tmp_path / "alone", annotation="ST")
    with pytest.raises(InputError, match="did you mean 'SEG'"):
        open_dataset(tmp_path / "alone", annotation="SEGG")


def test_other_layouts_are_not_claimed(shared_data: Path, tmp_path: Path) -> None:
    for name in (
        "dsb2018",
        "camvid/train",
        "voc/instance",
        "cityscapes/pix2pixhd",
        "ade20k",
        "coco/tiny160",
        "cifar10",
    ):
        assert not is_ctc(shared_data / name), name
    (tmp_path / "01").mkdir()
    write_labels(tmp_path / "01" / "mask000.tif", np.zeros((4, 4), np.uint8))
    assert not is_ctc(tmp_path)
    assert not is_ctc(tmp_path / "01")
    assert not is_ctc(tmp_path / "01" / "mask000.tif")
    assert not is_ctc(tmp_path / "absent")


def test_sparse_outlines(tmp_path: Path) -> None:
    make(tmp_path, 20, 30)
    (tmp_path / "01_GT" / "SEG" / "man_seg001.tif").unlink()
    outlines = open_dataset(tmp_path)
    assert [each.segments is None for each in outlines] == [False, True, False]
    assert "annotation" not in outlines[1].extra
    both = open_dataset(tmp_path, annotation="both")
    assert [each.extra["annotation"] for each in both] == ["both", "TRA", "both"]
    assert "seg" not in both[1].segments.attributes


def test_single_slices_are_void_elsewhere(tmp_path: Path) -> None:
    make(tmp_path, 6, 20, 30)
    folder = tmp_path / "01_GT" / "SEG"
    for frame, labels in enumerate(masks(6, 20, 30)):
        (folder / f"man_seg{frame:03d}.tif").unlink()
        for z in (1, 4):
            write_labels(folder / f"man_seg_{frame:03d}_{z:03d}.tif", labels[z])
    outlines = open_dataset(tmp_path)
    assert outlines[0].extra["slices"] == [1, 4]
    ids = outlines[0].segments.label_map()
    assert ids.shape == (6, 20, 30)
    assert (ids[[0, 2, 3, 5]] == -1).all()
    np.testing.assert_array_equal(ids[[1, 4]] > 0, masks(6, 20, 30)[0][[1, 4]] > 0)
    both = open_dataset(tmp_path, annotation="both")[0].segments
    seg, track = (np.concatenate([[0], both.attributes[name]])[both.label_map()] for name in ("seg", "track"))
    assert (seg[[0, 2, 3, 5]] == -1).all()
    np.testing.assert_array_equal(seg[[1, 4]], masks(6, 20, 30)[0][[1, 4]])
    np.testing.assert_array_equal(track, markers(masks(6, 20, 30))[0])
    for annotation in ("SEG", "both"):
        dataset = open_dataset(tmp_path, annotation=annotation)
        write_dataset(dataset, tmp_path / "written" / annotation, "ctc")
        same(open_dataset(tmp_path / "written" / annotation, annotation=annotation), dataset)
        same_files(folder, tmp_path / "written" / annotation / "01_GT" / "SEG")
    write_labels(folder / "man_seg_000_006.tif", masks(20, 30)[0])
    with pytest.raises(InputError, match=r"man_seg_000_006\.tif: slice 6 .* does not fit the volume"):
        _ = open_dataset(tmp_path)[0].segments
    shutil.rmtree(tmp_path / "01")
    with pytest.raises(InputError, match="one slice of a volume, so an image of the volume is needed"):
        _ = open_dataset(tmp_path / "01_GT")[1].segments


def test_real_sets(shared_data: Path) -> None:
    truth = open_dataset(shared_data / "ctc" / "Fluo-N2DH-SIM+")
    assert len(truth) == 65
    assert [each.extra["frame"] for each in truth] == list(range(65))
    path = shared_data / "ctc" / "Fluo-N2DH-SIM+" / "01_GT" / "TRA" / "man_track064.tif"
    last = open_dataset(shared_data / "ctc" / "Fluo-N2DH-SIM+", annotation="TRA")[64].segments
    labels = read_labels(path)
    np.testing.assert_array_equal(last.attributes["track"], np.unique(labels[labels > 0]))
    results = open_dataset(shared_data / "ctc" / "Fluo-N2DL-HeLa")
    assert (len(results), results.format) == (92, "ctc")
    assert results[0].segments.size == (700, 1100)


def test_missing_images(tmp_path: Path) -> None:
    make(tmp_path, 20, 30)
    (tmp_path / "01" / "t001.tif").unlink()
    with pytest.raises(InputError, match="1 of 3 images are missing, the first is frame 1"):
        open_dataset(tmp_path)
    assert [each.extra["frame"] for each in open_dataset(tmp_path, missing_images="skip")] == [0, 2]
    kept = open_dataset(tmp_path, missing_images="keep")
    assert [each.name for each in kept] == ["01/t000", "01/t001", "01/t002"]
    shutil.rmtree(tmp_path / "01")
    assert len(open_dataset(tmp_path)) == 3
    with pytest.raises(InputError, match="3 of 3 images are missing"):
        open_dataset(tmp_path, missing_images="error")


# -- writing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(20, 30), (6, 20, 30)])
@pytest.mark.parametrize("digits", [3, 4])
def test_round_trips(tmp_path: Path, shape: tuple[int, ...], digits: int) -> None:
    make(tmp_path / "a", *shape, digits=digits)
    make(tmp_path / "a", *shape, digits=digits, sequence="02")
    (tmp_path / "a" / "01_GT" / "SEG" / f"man_seg{1:0{digits}d}.tif").unlink()
    for annotation in ("SEG", "TRA", "both", "RES"):
        dataset = open_dataset(tmp_path / "a", annotation=annotation)
        write_dataset(dataset, tmp_path / annotation, "ctc")
        same(open_dataset(tmp_path / annotation, annotation=annotation), dataset)
    write_dataset(open_dataset(tmp_path / "a", annotation="both"), tmp_path / "all", "ctc")
    shutil.rmtree(tmp_path / "a" / "01_RES")
    shutil.rmtree(tmp_path / "a" / "02_RES")
    same_files(tmp_path / "a", tmp_path / "all")


def test_the_official_program_takes_what_is_written(shared_data: Path, tmp_path: Path) -> None:
    evaluation = pytest.importorskip("ctc_metrics.scripts.evaluate", reason="py-ctcmetrics is the reference program")
    validation = pytest.importorskip("ctc_metrics.scripts.validate")
    source = open_dataset(shared_data / "ctc" / "Fluo-N2DL-HeLa" / "01_RES")
    dataset = source.subset(range(len(source)))
    write_dataset(dataset, tmp_path / "results", "ctc")
    same_files(shared_data / "ctc" / "Fluo-N2DL-HeLa" / "01_RES", tmp_path / "results" / "01_RES")
    assert validation.validate_sequence(str(tmp_path / "results" / "01_RES"))["Valid"] == 1
    few = Dataset.of([small(each) for each in dataset[60:75]], CELLS, dataset.tasks)
    write_dataset(few, tmp_path / "truth", "ctc", annotation="both")
    write_dataset(few, tmp_path / "few", "ctc", annotation="RES")
    figures = evaluation.evaluate_sequence(
        str(tmp_path / "few" / "01_RES"), str(tmp_path / "truth" / "01_GT"), threads=1
    )
    assert [figures[name] for name in ("Valid", "SEG", "DET", "TRA", "LNK")] == [1, 1, 1, 1, 1]


def small(sample: Sample) -> Sample:
    """A frame at a quarter of the resolution, the first of them being frame 0; parents before it are forgotten."""
    segments = sample.segments
    ids = segments.label_map()[::4, ::4]
    present = np.unique(ids[ids > 0]) - 1
    kept = segments[present]
    made = Segments(
        ids.shape,
        kept.category,
        LabelMap(kept.label_map()[::4, ::4]),
        attributes={"track": kept.attributes["track"], "parent": np.zeros(len(kept), np.int64)},
    )
    return Sample(
        sample.name,
        lambda: np.zeros((*ids.shape, 1), np.uint8),
        lambda: made,
        extra={"frame": sample.extra["frame"] - 60},
    )


def test_segments_without_tracks_and_further_columns(tmp_path: Path) -> None:
    labels = masks(20, 30)
    samples = [
        Sample(f"photo {i}", lambda: np.zeros((20, 30, 1), np.uint8), lambda i=i: Segments.from_label_map(labels[i]))
        for i in range(3)
    ]
    samples.append(Sample("last", lambda: np.zeros((20, 30, 1), np.uint8), extra={"kind": "dark", "depth": 0.5}))
    dataset = Dataset.of(samples, CELLS, frozenset({Task.INSTANCE}))
    write_dataset(dataset, tmp_path / "made", "ctc")
    again = open_dataset(tmp_path / "made")
    assert [each.name for each in again] == ["01/t000", "01/t001", "01/t002", "01/t003"]
    np.testing.assert_array_equal(again[2].segments.attributes["label"], [5, 7, 9])
    assert again[3].segments is None
    assert again[3].extra == {"kind": "dark", "depth": 0.5, "sequence": "01", "frame": 3}
    assert not (tmp_path / "made" / "01_GT" / "TRA").exists()
    write_dataset(dataset, tmp_path / "results", "ctc", annotation="RES", digits=4)
    results = open_dataset(tmp_path / "results")
    assert sorted(each.name for each in (tmp_path / "results" / "01_RES").iterdir()) == [
        f"mask000{i}.tif" for i in range(3)
    ]
    assert set(results[0].segments.attributes) == {"label"}
    with pytest.raises(InputError, match=r"photo 0: its objects have no attribute 'track'"):
        write_dataset(dataset, tmp_path / "tracks", "ctc", annotation="TRA")


def tracked_frames(*frames: dict[int, int]) -> Dataset:
    """Frames of one row in which the given tracks, with their parents, are one pixel each."""

    def sample(frame: int, tracks: dict[int, int]) -> Sample:
        ids = np.zeros((1, 9), np.int32)
        ids[0, : len(tracks)] = range(1, len(tracks) + 1)
        columns = {"track": np.array(list(tracks), np.int64), "parent": np.array(list(tracks.values()), np.int64)}
        segments = Segments(ids.shape, np.ones(len(tracks), np.int64), LabelMap(ids), attributes=columns)
        return Sample(f"{frame}", lambda: np.zeros((1, 9, 1), np.uint8), lambda: segments)

    return Dataset.of([sample(*each) for each in enumerate(frames)], CELLS, frozenset({Task.INSTANCE}))


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (({1: 0}, {}, {1: 0}), "track 1 is in 2 frames between 0 and 2"),
        (({1: 0}, {2: 3}), "its parent 3 is in no frame"),
        (({1: 0}, {1: 0, 2: 1}), "its parent 1 lasts until frame 1"),
        (({1: 0, 2: 0}, {2: 1}), "track 2 has the parent 1 here and 0 before"),
    ],
)
def test_tracks_that_cannot_be_written(tmp_path: Path, frames: tuple[dict[int, int], ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        write_dataset(tracked_frames(*frames), tmp_path / "made", "ctc", annotation="RES")
    assert not (tmp_path / "made").exists()


def test_other_things_that_cannot_be_written(tmp_path: Path) -> None:
    sample = tracked_frames({1: 0})[0]
    twice = [Sample(name, sample.read_image, sample.read_segments, extra={"frame": 4}) for name in "ab"]
    with pytest.raises(InputError, match="b is frame 4 of sequence '01', which was there before"):
        write_dataset(Dataset.of(twice, CELLS, frozenset()), tmp_path / "made", "ctc")
    boxes = Segments((4, 4), [1], box=[[0, 0, 2, 2]])
    dataset = Dataset.of([Sample("a", lambda: np.zeros((4, 4, 1), np.uint8), lambda: boxes)], CELLS, frozenset())
    with pytest.raises(InputError, match="a has boxes or tags only"):
        write_dataset(dataset, tmp_path / "made", "ctc")
    large = Segments((4, 4), [1], LabelMap(np.ones((4, 4), np.int32)))
    dataset = Dataset.of([Sample("a", lambda: np.zeros((4, 5, 1), np.uint8), lambda: large)], CELLS, frozenset())
    with pytest.raises(InputError, match="a has size 4 x 5, but its annotation 4 x 4"):
        write_dataset(dataset, tmp_path / "made", "ctc")
    assert not (tmp_path / "made").exists()


# -- results -----------------------------------------------------------------------------------------------------------


def test_results_find_their_frames(tmp_path: Path) -> None:
    make(tmp_path, 20, 30)
    make(tmp_path, 20, 30, sequence="02")
    assert recognise(tmp_path) == "ctc"
    assert recognise_predictions(tmp_path / "01_RES")
    assert not recognise_predictions(tmp_path / "01_GT")
    truth = open_dataset(tmp_path, annotation="both")
    results = open_predictions(tmp_path, truth)
    assert list(results) == [each.name for each in truth]
    np.testing.assert_array_equal(results["02/t002"].attributes["track"], [5, 7, 9])
    # The names stay those of the frames, however the truth is opened afterwards.
    outlines = open_dataset(tmp_path / "01_GT", annotation="SEG").subset([0])
    results = open_predictions(tmp_path / "01_RES", outlines)
    assert len(results) == 1
    np.testing.assert_array_equal(results["01/t002"].attributes["parent"], [0, 3, 3])
    with pytest.raises(InputError, match="no result for '02/t000'"):
        _ = results["02/t000"]
    shutil.copytree(tmp_path / "01_RES", tmp_path / "mine")
    assert len(open_predictions(tmp_path / "mine", open_dataset(tmp_path / "02_GT"))) == 3


def test_results_that_do_not_fit(tmp_path: Path) -> None:
    make(tmp_path, 20, 30)
    truth = open_dataset(tmp_path / "01_GT", annotation="TRA")
    write_labels(tmp_path / "01_RES" / "mask003.tif", masks(20, 30)[2])
    with pytest.raises(InputError, match=r"mask003\.tif is of frame 3, which sequence '01' of .* does not have"):
        open_predictions(tmp_path / "01_RES", truth)
    (tmp_path / "01_RES" / "mask003.tif").unlink()
    shutil.copytree(tmp_path / "01_RES", tmp_path / "02_RES")
    with pytest.raises(InputError, match="has no results for sequence '01'; it has 02"):
        open_predictions(tmp_path / "02_RES", truth)
    (tmp_path / "01_RES" / "res_track.txt").unlink()
    (tmp_path / "01_RES" / "mask001.tif").unlink()
    with pytest.raises(InputError, match=r"01_RES.mask001\.tif is missing"):
        open_predictions(tmp_path / "01_RES", truth)
    images = Dataset.of([Sample("a", lambda: np.zeros((4, 4, 1)))], CELLS, frozenset())
    with pytest.raises(InputError, match=r"a of .* is no frame"):
        open_predictions(tmp_path / "02_RES", images)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("3 0 1 0\n5 0 2\n", r"txt, line 2: got '5 0 2', expected four whole numbers"),
        ("3 0 1 0\n5 0 2 -1\n", "line 2: got '5 0 2 -1', expected four whole numbers"),
        ("3 0 1 x\n", "line 1: got '3 0 1 x'"),
        ("3 0 1 0\n\n5 0 2 0\n", "line 2: got ''"),
        (LINES + "3 0 1 0\n", "line 5: label 3 is in line 1 already"),
        ("0 0 1 0\n", "line 1: track 0 has the label 0, which is background"),
        ("3 1 0 0\n", "line 1: track 3 has the end 0 before the begin 1"),
        ("3 0 1 0\n5 0 2 0\n7 2 2 4\n9 2 2 3\n", "line 3: the parent 4 of track 7 is in no line"),
        (
            "3 0 1 0\n5 0 2 0\n7 2 2 5\n9 2 2 3\n",
            "line 3: track 7 begins in frame 2, but its parent 5 lasts until frame 2",
        ),
        (
            "3 0 1 0\n5 0 3 0\n7 2 2 3\n9 2 2 3\n",
            r"003\.tif is missing, but .* line 2 says that track 5 lasts from frame 0",
        ),
    ],
)
@pytest.mark.parametrize("annotation", ["TRA", "RES"])
def test_wrong_lines(tmp_path: Path, lines: str, message: str, annotation: str) -> None:
    make(tmp_path, 20, 30, lines=lines)
    with pytest.raises(InputError, match=message):
        open_dataset(tmp_path, annotation=annotation)


def test_masks_that_contradict_their_lines(tmp_path: Path) -> None:
    make(tmp_path, 20, 30, lines=LINES.replace("9 2 2 3\n", ""))
    for annotation in ("TRA", "both", "RES"):
        dataset = open_dataset(tmp_path, annotation=annotation)
        assert len(dataset[0].segments) > 0
        with pytest.raises(InputError, match=r"002\.tif holds the label 9, which is not in \w+_track\.txt"):
            _ = dataset[2].segments
    make(tmp_path, 20, 30, lines=LINES.replace("9 2 2 3", "9 1 2 0"))
    with pytest.raises(InputError, match=r"mask001\.tif lacks the label 9, which lasts from frame 1 to 2 by .* line 4"):
        _ = open_dataset(tmp_path, annotation="RES")[1].segments
    make(tmp_path, 20, 30, lines=LINES.replace("3 0 1 0", "3 0 0 0"))
    with pytest.raises(InputError, match=r"track001\.tif holds the label 3, which lasts from frame 0 to 0 there"):
        _ = open_dataset(tmp_path, annotation="TRA")[1].segments
    # A gap in the middle is wrong in results; reference markers have some, and the official program takes them.
    make(tmp_path, 20, 30)
    for name in ("01_GT/TRA/man_track001.tif", "01_RES/mask001.tif"):
        labels = read_labels(tmp_path / name)
        write_labels(tmp_path / name, np.where(labels == 5, 0, labels))
    assert open_dataset(tmp_path, annotation="TRA")[1].segments.attributes["track"].tolist() == [3]
    with pytest.raises(InputError, match=r"mask001\.tif lacks the label 5"):
        _ = open_dataset(tmp_path, annotation="RES")[1].segments


def test_other_mistakes(tmp_path: Path) -> None:
    make(tmp_path, 20, 30)
    (tmp_path / "01_GT" / "TRA" / "man_track.txt").unlink()
    with pytest.raises(InputError, match=r"man_track\.txt does not exist"):
        open_dataset(tmp_path, annotation="TRA")
    (tmp_path / "01_GT" / "TRA" / "man_track.txt").write_bytes(b"\xff\xfe3")
    with pytest.raises(InputError, match=r"man_track\.txt cannot be read as text"):
        open_dataset(tmp_path, annotation="TRA")
    write_labels(tmp_path / "01_GT" / "SEG" / "man_seg002.tif", np.ones((20, 31), np.uint16))
    with pytest.raises(InputError, match=r"man_seg002\.tif has size 20 x 31, but its image .*t002\.tif has 20 x 30"):
        _ = open_dataset(tmp_path)[2].segments
    shutil.rmtree(tmp_path / "01")
    (tmp_path / "01_GT" / "TRA" / "man_track.txt").write_text(LINES)
    with pytest.raises(InputError, match="the masks of frame 2 differ in size"):
        _ = open_dataset(tmp_path, annotation="both")[2].segments
    write_labels(tmp_path / "01_GT" / "SEG" / "man_seg0002.tif", np.ones((20, 30), np.uint16))
    with pytest.raises(InputError, match=r"both man_seg0002\.tif and man_seg002\.tif, which are the same frame"):
        open_dataset(tmp_path)
    with pytest.raises(InputError, match="holds no sequence"):
        open_dataset(tmp_path / "01_GT" / "SEG", "ctc")
