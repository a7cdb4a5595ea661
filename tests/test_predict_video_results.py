"""Prediction of videos and cameras: each frame has the results that it would have as an image."""

from __future__ import annotations

import csv
import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from predict_toys import PLAIN, Blobs
from scipy import ndimage
from video_toys import COUNT, RATE, SIZE, FakeCapture, cv2, frames_of, picture, write_video

from everymask.cli import main
from everymask.errors import InputError
from everymask.formats.images import read_labels
from everymask.model import Model
from everymask.predict.files import predict_files
from everymask.predict.video_overlay import OverlayVideo
from everymask.predict.video_results import FrameTable, predict_videos
from everymask.predict.videos import FrameChoice, PredictedFrame, Video
from everymask.report.overlay import frame_drawing
from everymask.types import Categories, Category, LabelMap, Segments

CELL = Categories([Category(7, "cell")])


def predict(image: NDArray[Any]) -> Segments:
    """Connected components of what is not black, by their brightest channel."""
    ids, count = ndimage.label(image.max(axis=-1) > 100)
    score = np.linspace(0.5, 0.9, count)
    return Segments(ids.shape, np.full(count, 7), LabelMap(ids.astype(np.int32)), score=score)


def draw(image: NDArray[Any], segments: Segments) -> NDArray[np.uint8]:
    return frame_drawing(CELL)(image, segments)


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("videos") / "clip.avi")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights, which finds something or nothing, but fast."""
    import torch

    torch.manual_seed(0)
    made = Model("stardist", ["square"], rays=8, base=4, depth=1, features=8)
    made.method.thresholds = {"probability": 0.05, "overlap": 0.3}
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    made.save(path)
    return path


# -- results -----------------------------------------------------------------------------------------------------------


def test_results_are_those_of_the_frames_as_images(clip: Path, tmp_path: Path) -> None:
    for number, frame in enumerate(frames_of(clip)):
        path = tmp_path / "images" / "clip" / f"{number:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(frame).save(path)
    Image.fromarray(frame).save(tmp_path / "images" / "other.png")  # so that names keep the folder
    outputs = ("labels", "labels-png", "ome-tiff", "rois", "geojson", "csv", "coco")
    predict_files(predict, tmp_path / "images", tmp_path / "a", outputs=outputs, categories=CELL, recursive=True)
    steps: list[tuple[str, int, int | None]] = []
    written = predict_videos(
        predict,
        [str(clip)],
        tmp_path / "b",
        outputs=(*outputs, "overlay"),
        categories=CELL,
        overlay=draw,
        progress=lambda *step: steps.append(step),
    )
    assert steps == [("clip", done, COUNT) for done in range(COUNT + 1)]
    assert (written.videos, written.frames, written.interrupted, written.camera) == (1, COUNT, None, False)
    assert written.segments == sum(len(predict(frame)) for frame in frames_of(clip)) > COUNT

    of_images = {name for name in files_below(tmp_path / "a") if "/other" not in name}
    of_frames = set(files_below(tmp_path / "b"))
    assert of_frames - of_images == {"overlays/clip_overlay.mp4", "frames.csv"} and of_images <= of_frames
    for name in of_images:
        if name.endswith((".tif", ".png")):
            np.testing.assert_array_equal(read_labels(tmp_path / "a" / name), read_labels(tmp_path / "b" / name))
        elif name.endswith(".geojson"):
            assert (tmp_path / "a" / name).read_text() == (tmp_path / "b" / name).read_text()
    rows = [row for row in read_rows(tmp_path / "a" / "measures.csv") if row["image"] != "other"]
    assert read_rows(tmp_path / "b" / "measures.csv") == rows
    images, frames = (json.loads((tmp_path / each / "predictions.json").read_text()) for each in "ab")
    assert frames["images"] == [each for each in images["images"] if each["file_name"] != "other.png"]
    kept = {each["id"] for each in frames["images"]}
    assert frames["annotations"] == [each for each in images["annotations"] if each["image_id"] in kept]

    times = read_rows(tmp_path / "b" / "frames.csv")
    assert [row["image"] for row in times] == [f"clip/{number:06d}" for number in range(COUNT)]
    assert [float(row["seconds"]) for row in times] == pytest.approx(
        [number / RATE for number in range(COUNT)], abs=1e-3
    )
    assert sum(int(row["objects"]) for row in times) == written.segments

    assert [path.name for path in written.overlays] == ["clip_overlay.mp4"]
    drawn = Video(written.overlays[0])
    assert drawn.rate == RATE
    for shown, frame in zip(drawn, frames_of(clip), strict=True):
        assert np.abs(shown.image.astype(int) - draw(frame, predict(frame))).mean() < 6


def test_overlays_of_skipped_frames_play_at_the_same_speed(clip: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"outputs": ("overlay",), "overlay": draw, "choice": FrameChoice(every=5)}
    written = predict_videos(predict, [str(clip)], tmp_path, **options)
    drawn = Video(written.overlays[0])
    assert (drawn.rate, len(list(drawn))) == (RATE / 5, 5)


def test_ctrl_c_leaves_complete_results(clip: Path, tmp_path: Path) -> None:
    calls: list[int] = []

    def interrupted(image: NDArray[Any]) -> Segments:
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return predict(image)

    written = predict_videos(
        interrupted,
        [str(clip), str(write_video(tmp_path / "next.avi", 3))],
        tmp_path / "out",
        outputs=("labels", "coco", "csv", "overlay"),
        categories=CELL,
        overlay=draw,
    )
    assert (written.videos, written.frames) == (1, 7) and written.interrupted == str(Path(written.interrupted or ""))
    assert (written.interrupted or "").endswith("clip/000006")
    names = [Path(row["image"]).name for row in read_rows(tmp_path / "out" / "frames.csv")]
    assert names == [f"{number:06d}" for number in range(7)]
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())["images"]) == 7
    assert len(list(Video(written.overlays[0]))) == len(written.labels) == 7
    assert not [name for name in files_below(tmp_path / "out") if Path(name).name.startswith(".")]

    with pytest.raises(KeyboardInterrupt):
        predict_videos(lambda image: (_ for _ in ()).throw(KeyboardInterrupt), [str(clip)], tmp_path / "none")
    assert files_below(tmp_path / "none") == []


def test_results_that_cannot_be_written_leave_no_half_files(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "labels").write_text("in the way")
    options: dict[str, Any] = {"outputs": ("labels", "coco", "overlay"), "categories": CELL, "overlay": draw}
    with pytest.raises(InputError, match=r"cannot write .*labels"):
        predict_videos(predict, [str(clip)], tmp_path / "out", **options)
    assert files_below(tmp_path / "out") == ["labels"]


def test_one_bad_video_does_not_stop_the_others(clip: Path, tmp_path: Path) -> None:
    bad = tmp_path / "in" / "bad.mp4"
    bad.parent.mkdir()
    bad.write_text("no video")
    good = [write_video(tmp_path / "in" / f"{name}.avi", 3) for name in ("a", "b")]
    sources = [str(good[0]), str(bad), str(good[1])]
    with pytest.raises(InputError, match=r"1 of 3 videos could not be predicted: .*bad\.mp4 cannot be read"):
        predict_videos(predict, sources, tmp_path / "out", outputs=("csv",), categories=CELL)
    frames = [row["image"] for row in read_rows(tmp_path / "out" / "frames.csv")]
    assert frames == [f"{name}/{number:06d}" for name in "ab" for number in range(3)]

    def picky(image: NDArray[Any]) -> Segments:
        raise InputError("too many channels")

    with pytest.raises(InputError, match=r"clip\.avi, frame 0: too many channels"):
        predict_videos(picky, [str(clip)], tmp_path / "none", outputs=("csv",), categories=CELL)
    assert files_below(tmp_path / "none") == []


def test_an_input_is_never_overwritten(tmp_path: Path) -> None:
    sources = [write_video(tmp_path / "overlays" / name, 2) for name in ("a.avi", "a_overlay.avi")]
    with pytest.raises(InputError, match="would overwrite the video"):
        predict_videos(predict, list(map(str, sources)), tmp_path, outputs=("overlay",), overlay=draw)
    with pytest.raises(InputError, match="a camera is predicted alone"):
        predict_videos(predict, [str(sources[0]), "camera:0"], tmp_path)


def test_classes_of_frames(clip: Path, tmp_path: Path) -> None:
    names = Categories(["left", "right"])

    def classify(image: NDArray[Any]) -> Segments:
        side = int(np.flatnonzero(image[8, :, 0] > 125).mean() >= 24)
        return Segments(image.shape[:2], names.ids[[side, 1 - side]], score=[0.75, 0.25])

    written = predict_videos(classify, [str(clip)], tmp_path, outputs=("classes",), categories=names)
    rows = read_rows(tmp_path / "classes.csv")
    assert [row["class"] for row in rows] == sorted(row["class"] for row in rows)
    assert dict(written.classes) == {name: sum(row["class"] == name for row in rows) for name in ("left", "right")}
    assert files_below(tmp_path) == ["classes.csv", "frames.csv"]
    assert list(read_rows(tmp_path / "frames.csv")[0]) == ["image", "video", "frame", "seconds"]


def test_frames_may_change_their_size(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [(48, 64)] * 3 + [(96, 128)] * 3
    changing = FakeCapture(lambda number: picture(number, sizes[number]) if number < 6 else None, 6)
    monkeypatch.setattr(cv2, "VideoCapture", changing)
    options: dict[str, Any] = {"outputs": ("labels", "overlay"), "overlay": draw}
    with monkeypatch.context() as patched:
        patched.setattr(OverlayVideo, "_complete", lambda self: True)  # which would read the fake, too
        written = predict_videos(predict, [str(clip)], tmp_path, **options)
    monkeypatch.undo()
    assert [read_labels(path).shape for path in written.labels] == sizes
    assert [each.image.shape[:2] for each in Video(written.overlays[0])] == [SIZE] * 6


# -- the command line and Python ---------------------------------------------------------------------------------------


def test_the_command_line(clip: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(clip), "--model", str(model), "--out", str(tmp_path), "--frames", "2:20", "--every", "4", "--json"]
    assert main(["predict", *arguments]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["videos"], told["frames"], told["dropped"]) == (1, 5, 0)
    assert told["overlays"] == str(tmp_path / "overlays" / "clip_overlay.mp4")
    assert all(Path(told[name]).exists() for name in ("labels", "measures", "times"))
    for number in range(2, 20, 4):
        expected = Model.load(model).predict(frames_of(clip)[number]).label_map()
        np.testing.assert_array_equal(read_labels(tmp_path / "labels" / "clip" / f"{number:06d}.tif"), expected)


def test_mistakes_on_the_command_line(
    clip: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "image.png"
    Image.fromarray(picture(0)).save(image)
    for arguments, part in (
        ([clip, image], "is a video, and"),
        ([image, "--every", "2"], "are for videos and cameras"),
        ([clip, "--stacks", "joined"], "the frames of a video are images"),
        ([clip, "camera:0"], "a camera is predicted alone"),
        ([tmp_path / "none.mp4"], "none.mp4 does not exist"),
    ):
        assert main(["predict", *map(str, arguments), "--model", str(model), "--out", str(tmp_path / "out")]) == 2
        told = capsys.readouterr().err
        assert told.startswith("error: ") and told.count("\n") == 1 and part in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("source", ["camera", "file"])
def test_a_signal_ends_the_prediction_with_its_results(
    source: str,
    clip: Path,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen: list[int] = []
    add = FrameTable.add

    def counted(self: FrameTable, video: str, frame: PredictedFrame) -> None:
        add(self, video, frame)
        seen.append(frame.number)
        if len(seen) == 5:
            signal.raise_signal(signal.SIGINT)  # from the thread that writes; Python hears it in the main thread

    def frame(number: int) -> NDArray[np.uint8] | None:
        return picture(number % 20) if number < 500 else None

    monkeypatch.setattr(FrameTable, "add", counted)
    monkeypatch.setattr(cv2, "VideoCapture", FakeCapture(frame, pace=0.02))
    given = "camera:0" if source == "camera" else str(clip)
    command = ["predict", given, "--model", str(model), "--out", str(tmp_path), "--no-overlay", "--format", "coco"]
    assert main(command) == (0 if source == "camera" else 130)
    rows = read_rows(tmp_path / "frames.csv")
    told = capsys.readouterr()
    assert f"{len(rows)} frame" in told.out
    if source == "file":
        assert told.err == f"interrupted after frame {rows[-1]['image']}; the results up to it are in {tmp_path}\n"
    listed = json.loads((tmp_path / "predictions.json").read_text())["images"]
    assert [each["file_name"] for each in listed] == [f"{row['image']}.png" for row in rows]
    assert [int(row["frame"]) for row in rows] == seen and 5 <= len(seen) < 15


def test_frames_from_python_come_one_by_one(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Model(Blobs(), ["cell"], preprocessing=PLAIN)
    expected = frames_of(clip)
    found = list(made.predict_video(clip, every=2, frames=(4, 15)))
    assert [each.number for each in found] == list(range(4, 15, 2))
    for number, seconds, image, segments in found:
        assert seconds == pytest.approx(number / RATE, abs=1e-3)
        np.testing.assert_array_equal(image, expected[number])
        np.testing.assert_array_equal(segments.label_map(), made.predict(expected[number]).label_map())
    assert max(len(each.segments) for each in found) > 0

    with pytest.raises(InputError, match=r"none\.mp4 does not exist"):
        made.predict_video("none.mp4")  # told at once, not when the first frame is asked for
    endless = FakeCapture(lambda number: picture(number % 20))
    monkeypatch.setattr(cv2, "VideoCapture", endless)
    for frame in made.predict_video("camera:0"):
        if frame.number > 5:
            break
    del frame
    assert endless.released
