"""Reading videos and cameras: every frame once, in order; and writing annotated videos."""

from __future__ import annotations

import re
import struct
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from video_toys import COUNT, RATE, SIZE, FakeCapture, cv2, frames_of, picture, write_video

from everymask.errors import InputError
from everymask.predict.video_inputs import split_inputs
from everymask.predict.video_overlay import OverlayVideo
from everymask.predict.videos import Frame, FrameChoice, Video, VideoWarning
from everymask.report.overlay import frame_drawing
from everymask.types import Categories, Category, LabelMap, Segments


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("videos") / "clip.avi")


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# -- reading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, code", [("a.avi", "MJPG"), ("b.mp4", "mp4v"), ("c.mkv", "MJPG"), ("ü ß%2d/d:1.MOV", "mp4v")]
)
def test_frames_come_in_order_with_their_times(tmp_path: Path, name: str, code: str) -> None:
    path = tmp_path / name
    write_video(tmp_path / f"plain{path.suffix.lower()}", code=code).rename((path.parent.mkdir(exist_ok=True), path)[1])
    with Video(path) as video:
        assert (video.rate, video.frames, video.wanted) == (RATE, COUNT, COUNT)
        found = list(video)
    assert [each.number for each in found] == list(range(COUNT))
    assert [each.seconds for each in found] == pytest.approx([number / RATE for number in range(COUNT)], abs=1e-3)
    for frame in found:
        # Red is where the square of this frame is: colours and order are right, not only the counts.
        assert np.abs(frame.image.astype(int) - picture(frame.number)).mean() < 4
    for frame, expected in zip(found, frames_of(path), strict=True):
        np.testing.assert_array_equal(frame.image, expected)


@pytest.mark.parametrize(
    "every, frames, seconds",
    [
        (1, None, None),
        (3, None, None),
        (1, "5:9", None),
        (4, "2:", None),
        (2, ":7", None),
        (1, None, 0.5),
        (5, "3:20", 1.0),
    ],
)
def test_frames_are_chosen_as_slices_are(clip: Path, every: int, frames: str | None, seconds: float | None) -> None:
    first, _, stop = (frames or ":").partition(":")
    within = COUNT if seconds is None else int(np.ceil(seconds * RATE))
    expected = list(range(COUNT))[int(first or 0) : min(int(stop or COUNT), within) : every]
    video = Video(clip, FrameChoice.parse(every, frames, seconds))
    assert [each.number for each in video] == expected
    assert video.wanted == len(expected)


@pytest.mark.parametrize(
    "options, part",
    [((0,), "every must be at least 1"), ((1, "7"), "FIRST:STOP"), ((1, "a:b"), "FIRST:STOP"), ((1, "9:9"), "got 9:9"),
     ((1, None, 0.0), "seconds must be above 0")],
)  # fmt: skip
def test_impossible_choices_are_told(options: tuple[Any, ...], part: str) -> None:
    with pytest.raises(InputError, match=re.escape(part)):
        FrameChoice.parse(*options)


def test_a_choice_beyond_the_end_is_told(clip: Path) -> None:
    with pytest.raises(InputError, match=r"clip\.avi has 24 frames; ask for some of these instead of 24:"):
        list(Video(clip, FrameChoice(first=24)))
    with pytest.raises(InputError, match=r"frame 20 comes after 0\.5 seconds"):
        list(Video(clip, FrameChoice(first=20, seconds=0.5)))


def test_rotated_videos_are_upright(tmp_path: Path) -> None:
    plain = write_video(tmp_path / "plain.mp4", code="mp4v")
    content = bytearray(plain.read_bytes())
    # The matrix of the box tkhd (ISO/IEC 14496-12, 8.3.2): a quarter turn clockwise, as phones write it.
    place = content.find(b"tkhd") + 44
    assert struct.unpack(">9i", content[place : place + 36]) == (65536, 0, 0, 0, 65536, 0, 0, 0, 2**30)
    content[place : place + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, SIZE[0] << 16, 0, 2**30)
    turned = tmp_path / "turned.mp4"
    turned.write_bytes(content)
    for straight, upright in zip(Video(plain), Video(turned), strict=True):
        np.testing.assert_array_equal(upright.image, np.rot90(straight.image, -1))


def test_a_file_that_breaks_off_gives_its_frames_and_a_warning(clip: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.avi"
    content = clip.read_bytes()
    cut.write_bytes(content[: len(content) * 2 // 3])
    with pytest.warns(
        VideoWarning, match=r"cut\.avi: breaks off after frame (\d+), where its header promises 24"
    ) as told:
        found = list(Video(cut))
    last = int(re.findall(r"after frame (\d+)", str(told[0].message))[0])
    assert [each.number for each in found] == list(range(last + 1)) and 3 < last < COUNT - 1
    for frame, whole in zip(found[:-1], frames_of(clip), strict=False):
        np.testing.assert_array_equal(frame.image, whole)


def test_broken_frames_are_passed_over_and_named(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = np.zeros((0, 0, 3), np.uint8)
    broken = FakeCapture(lambda number: None if number == 9 else nothing if number in (3, 5) else picture(number), 9)
    monkeypatch.setattr(cv2, "VideoCapture", broken)
    with pytest.warns(VideoWarning, match="cannot be decoded are passed over: 3, 5$"):
        assert [each.number for each in Video(clip)] == [0, 1, 2, 4, 6, 7, 8]
    assert broken.released


@pytest.mark.parametrize(
    "content, part",
    [
        (None, "does not exist; check the spelling"),
        (b"", "is empty (0 bytes)"),
        (b"no video at all " * 99, "cannot be read as a video"),
        (b"RIFF\xff\xff\0\0AVI LIST", "cannot be read as a video"),
        ("folder", "is a folder, but a video file"),
    ],
)
def test_what_is_no_video_is_told_in_a_line(
    tmp_path: Path, content: bytes | str | None, part: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.mp4"
    if content == "folder":
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(part)) as error:
        Video(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")  # OpenCV and FFmpeg are silent


def test_no_frames_and_no_camera(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="camera:93 cannot be opened"):
        Video("camera:93")
    monkeypatch.setattr(cv2, "VideoCapture", FakeCapture(lambda number: None))
    with pytest.raises(InputError, match="holds no frame that can be decoded"):
        list(Video(clip))
    with pytest.raises(InputError, match="camera:0 gives no picture"):
        list(Video("camera:0"))


def test_opencv_is_asked_for_when_it_is_missing(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(InputError, match=re.escape("run: pip install 'everymask[video]'")):
        Video(clip)


def test_few_frames_are_read_ahead(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endless = FakeCapture(lambda number: picture(0))
    monkeypatch.setattr(cv2, "VideoCapture", endless)
    frames = iter(Video(clip))
    for given in range(1, 30):
        next(frames)
        assert endless.grabbed <= given + 9
    until = time.monotonic() + 5
    while endless.grabbed < given + 9 and time.monotonic() < until:
        time.sleep(0.01)
    assert endless.grabbed == given + 9  # it does read ahead, and waits
    del frames
    assert endless.released


def test_an_error_of_the_reading_thread_reaches_the_caller(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(number: int) -> NDArray[np.uint8]:
        if number == 2:
            raise OSError("the disk is gone")
        return picture(number)

    monkeypatch.setattr(cv2, "VideoCapture", FakeCapture(fails))
    found: list[Frame] = []
    with pytest.raises(OSError, match="the disk is gone"):
        found.extend(Video(clip))
    assert len(found) <= 2


def test_cameras_give_the_newest_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    camera = FakeCapture(lambda number: picture(number % 20), pace=0.004)
    monkeypatch.setattr(cv2, "VideoCapture", camera)
    video = Video("camera:0", FrameChoice(seconds=0.5))
    assert video.is_camera and video.frames is None and video.wanted is None
    numbers, late = [], []
    for frame in video:
        late.append(camera.grabbed - frame.number)
        numbers.append(frame.number)
        assert np.array_equal(frame.image, picture(frame.number % 20))
        time.sleep(0.03)
    assert np.diff(numbers).min() >= 1 and np.diff(numbers).mean() > 2
    assert np.median(late) <= 2
    assert video.dropped > len(numbers)
    assert camera.released


def test_inputs_are_told_apart(clip: Path, tmp_path: Path) -> None:
    other = write_video(tmp_path / "b10.avi", 2)
    write_video(tmp_path / "b9.avi", 2)
    (tmp_path / "x.png").touch()
    assert split_inputs([str(clip), "camera:1", str(tmp_path), "*.tif", str(other)]) == (
        [str(tmp_path), "*.tif"],
        [str(clip), "camera:1", str(other)],
    )
    assert split_inputs([str(tmp_path / "*.avi")])[1] == [str(tmp_path / name) for name in ("b9.avi", "b10.avi")]
    (tmp_path / "x.png").unlink()
    for given, part in (
        (tmp_path, "holds 2 videos but no image"),
        (tmp_path / "*.mp4", "no video matches"),
        (tmp_path / "none.mp4", "none.mp4 does not exist"),
        ("camera:one", "the first one is camera:0"),
    ):
        with pytest.raises(InputError, match=re.escape(part)):
            split_inputs([str(given)])


# -- annotated videos --------------------------------------------------------------------------------------------------


def test_frames_of_cameras_are_shown_until_the_next_one(tmp_path: Path) -> None:
    with OverlayVideo(tmp_path / "a.mp4", 10) as video:
        for seconds, level in ((5.0, 0), (5.31, 60), (5.33, 120), (6.0, 180)):
            video.add(np.full((48, 64, 3), level, np.uint8), seconds)
    shown = [round(float(each.mean()) / 60) for each in frames_of(tmp_path / "a.mp4")]
    assert shown == [0, 0, 0, 1, 2, 2, 2, 2, 2, 2, 3]


def test_another_encoder_is_taken_where_the_first_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Writer:
        fourcc = staticmethod(cv2.VideoWriter.fourcc)

        def __new__(cls, path: str, *options: Any) -> Any:
            return original() if path.endswith(missing) else original(path, *options)

    original, missing = cv2.VideoWriter, (".mp4",)
    monkeypatch.setattr(cv2, "VideoWriter", Writer)
    with pytest.warns(VideoWarning, match=r"written as a\.avi"), OverlayVideo(tmp_path / "a.mp4", RATE) as video:
        for number in range(3):
            video.add(picture(number))
    assert files_below(tmp_path) == ["a.avi"] and len(frames_of(tmp_path / "a.avi")) == 3

    missing = (".mp4", ".avi")
    with pytest.warns(VideoWarning, match="left out"), OverlayVideo(tmp_path / "b.mp4", RATE) as video:
        video.add(picture(0))
        video.add(picture(1))
    assert video.path is None and files_below(tmp_path) == ["a.avi"]


def test_a_video_that_was_not_written_whole_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        """Writes nothing, as on a disk that is full."""

        fourcc = staticmethod(cv2.VideoWriter.fourcc)

        def __init__(self, *_: Any) -> None: ...
        def isOpened(self) -> bool:
            return True

        def write(self, frame: NDArray[np.uint8]) -> None: ...
        def release(self) -> None: ...

    monkeypatch.setattr(cv2, "VideoWriter", Full)
    with (
        pytest.raises(InputError, match=r"cannot write .*a\.mp4; free some space"),
        OverlayVideo(tmp_path / "a.mp4", 5) as video,
    ):
        video.add(picture(0))
    assert files_below(tmp_path) == []


def test_colours_and_brightness_do_not_flicker() -> None:
    drawn = frame_drawing(Categories([Category(1, "a"), Category(2, "b")]))
    colours = []
    for level in (20, 120, 240):
        image = np.full((60, 80, 3), level, np.uint8)
        ids = np.zeros((60, 80), np.int32)
        ids[10:30, 10:30] = 1
        shown = drawn(image, Segments((60, 80), [2], LabelMap(ids)))
        assert (shown[45:, 45:] == level).all()
        colours.append(tuple(shown[10, 20]))
    assert len(set(colours)) == 1
