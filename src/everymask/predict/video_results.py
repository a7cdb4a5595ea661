"""Prediction of videos: frames in; the files of a folder of images, and an annotated video, out."""

from __future__ import annotations

import contextlib
import csv
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from everymask.errors import InputError, interruptible
from everymask.files import atomic_write, check_writable_folder
from everymask.predict.files import file_threads, output_names, reasons_of, refuse_to_overwrite
from everymask.predict.outputs import ClassTable, CocoFile, MeasureTable
from everymask.predict.video_inputs import camera_number
from everymask.predict.video_overlay import ENCODERS, OverlayVideo
from everymask.predict.videos import FrameChoice, PredictedFrame, Video, predicted_frames
from everymask.predict.writing import Output, Writer, check_outputs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from everymask.types import Categories, Segments

_WAITING = 3
"""Frames whose results may wait to be written."""
_CAMERA_RATE = 30.0
"""Frames a second of annotated videos of faster cameras."""


@dataclass(frozen=True)
class WrittenVideos:
    """What `predict_videos` did.

    Args:
        videos: Videos of which there are results.
        frames: Frames predicted.
        segments: Segments found in them.
        dropped: Frames of a camera that came while the network was busy.
        seconds: Time from opening a video to its last result, of all videos.
        labels: Label files written.
        overlays: Annotated videos written.
        classes: With the output ``classes``, how many frames have each class.
        interrupted: The name of the last frame, if Ctrl-C ended the prediction.
        camera: Whether it was a camera.
    """

    videos: int
    frames: int
    segments: int
    dropped: int
    seconds: float
    labels: Sequence[Path]
    overlays: Sequence[Path]
    classes: Mapping[str, int] = field(default_factory=dict)
    interrupted: str | None = None
    camera: bool = False


def predict_videos(
    predict: Callable[[NDArray[Any]], Segments],
    sources: Sequence[str],
    out: Path | str,
    *,
    choice: FrameChoice | None = None,
    outputs: Sequence[Output] = ("labels",),
    categories: Categories | None = None,
    semantic: bool = False,
    overlay: Callable[[NDArray[Any], Segments], NDArray[np.uint8]] | None = None,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> WrittenVideos:
    """Predicts the frames of video files, or of a camera, and writes what was found.

    A frame has the results that an image NAME/000123 would have, where NAME is that of the video as `output_names`
    gives it and 123 the number of the frame. The overlays are one video instead, overlays/NAME_overlay.mp4, and
    frames.csv has the time of each frame. Frames are decoded ahead, and results written behind, while the network runs.

    KeyboardInterrupt, wherever it comes from, ends the prediction with all results of the frames so far.

    Args:
        predict: Segments, with the data set's category ids, of a frame (H, W, 3) uint8.
        sources: Video files, or one camera, ``camera:N``.
        out: Folder for the results; made if it is absent.
        choice: Which frames are wanted; default: all.
        outputs: Names of `everymask.predict.writing.OUTPUTS`.
        categories: Names for the tables.
        semantic: Label files hold categories instead of objects.
        overlay: Draws segments over a frame: (H', W', 3) uint8. Needed for the output ``overlay``.
        progress: Called with the name of the video, and the number of frames done and of all, if that is known.

    Raises:
        InputError: An option is wrong, no frame can be read or predicted, the results would overwrite a video, or a
            file cannot be written. Also at the end, when all others are done, if videos could not be predicted.
        KeyboardInterrupt: It came before any result.
    """
    check_outputs(outputs)
    if "classes" in outputs and categories is None:
        raise InputError("the table of classes needs their names; pass categories")
    if "overlay" in outputs and overlay is None:
        raise InputError("overlays need a function that draws them; pass overlay=everymask.report.draw_overlay")
    folder = check_writable_folder(Path(out))
    names = _names(sources)
    if "overlay" in outputs:
        overlays = (folder / "overlays" / f"{name}_overlay{suffix}" for name in names for _, suffix in ENCODERS)
        refuse_to_overwrite(map(Path, sources), overlays, "video")

    totals = Counter[str]()
    run = _Run(folder, overlay if "overlay" in outputs else None, choice or FrameChoice(), progress, totals)
    failures: list[InputError] = []
    interrupted: str | None = None
    with contextlib.ExitStack() as stack:
        table, coco, classes = None, None, None
        if "csv" in outputs:
            table = stack.enter_context(MeasureTable.open(folder / "measures.csv", categories))
        if "coco" in outputs:
            coco = stack.enter_context(CocoFile.open(folder / "predictions.json", categories))
        if "classes" in outputs and categories is not None:
            classes = stack.enter_context(ClassTable.open(folder / "classes.csv", categories))
        if {"csv", "coco", "classes"} & set(outputs):
            run.times = stack.enter_context(FrameTable.open(folder / "frames.csv", objects="classes" not in outputs))
        of_images = [each for each in outputs if each != "overlay"]
        run.writer = Writer(folder, of_images, semantic, categories, None, table, coco, classes, run.labels)
        run.pool = stack.enter_context(file_threads(1))
        for source, name in zip(sources, names, strict=True):
            before = totals["frames"]
            ended = run.predict(predict, source, name)
            totals["videos"] += totals["frames"] > before
            if isinstance(ended, KeyboardInterrupt):
                interrupted = run.last
                if not totals["frames"]:
                    raise ended
                break
            if ended is not None:
                failures.append(ended)
        if not totals["frames"]:
            raise InputError(_told(failures, len(sources), folder))  # in here, so that no empty tables are left
    if failures:
        raise InputError(_told(failures, len(sources), folder))
    return WrittenVideos(
        videos=totals["videos"],
        frames=totals["frames"],
        segments=totals["segments"],
        dropped=totals["dropped"],
        seconds=run.seconds,
        labels=run.labels,
        overlays=run.overlays,
        classes={} if classes is None else dict(classes.counts.most_common()),
        interrupted=interrupted,
        camera=camera_number(sources[0]) is not None,
    )


def check_sources(sources: Sequence[str]) -> None:
    """Makes sure, by opening them, that at least one of the videos can be read, and that a camera is the only one.

    Raises:
        InputError: A camera is among others, or none can be read.
    """
    _names(sources)
    failures: list[InputError] = []
    for source in sources:
        try:
            with Video(source):
                return
        except InputError as error:
            failures.append(error)
    raise failures[0] if len(failures) == 1 else InputError(_told(failures, len(sources), None))


class _Run:
    """What the videos of a run have in common, and the loop over the frames of one."""

    writer: Writer
    pool: ThreadPoolExecutor
    times: FrameTable | None = None

    def __init__(
        self,
        folder: Path,
        overlay: Callable[[NDArray[Any], Segments], NDArray[np.uint8]] | None,
        choice: FrameChoice,
        progress: Callable[[str, int, int | None], None] | None,
        totals: Counter[str],
    ) -> None:
        self.folder, self.overlay, self.choice, self.progress, self.totals = folder, overlay, choice, progress, totals
        self.labels: list[Path] = []
        self.overlays: list[Path] = []
        self.last = ""
        self.seconds = 0.0

    def predict(
        self, predict: Callable[[NDArray[Any]], Segments], source: str, name: str
    ) -> InputError | KeyboardInterrupt | None:
        """Predicts a video; gives what ended it before its end. What cannot be written is raised."""
        try:
            video = Video(source, self.choice)
        except InputError as error:
            return error
        ended: InputError | KeyboardInterrupt | None = None
        pending: deque[Future[None]] = deque()
        rate = _overlay_rate(video)
        began, done = time.monotonic(), 0
        with contextlib.ExitStack() as stack:
            drawn = None
            if self.overlay is not None:
                place = self.folder / "overlays" / f"{name}_overlay{ENCODERS[0][1]}"
                drawn = stack.enter_context(OverlayVideo(place, rate))
            # After an error nothing writes any more when the annotated video is closed.
            stack.callback(_settle, pending)
            frames = stack.enter_context(contextlib.closing(predicted_frames(video, predict)))
            while ended is None:
                try:
                    if self.progress is not None:
                        self.progress(name, done, video.wanted)
                    with interruptible():
                        frame = next(frames, None)
                    if frame is None:
                        break
                    done += 1
                    pending.append(self.pool.submit(self._write, frame, name, drawn, video.is_camera))
                except (InputError, KeyboardInterrupt) as error:
                    ended = error
                    break
                try:
                    self.totals.update(frames=1, segments=len(frame.segments))
                    self.last = frame_name(name, frame.number)
                    if len(pending) > _WAITING:
                        pending[0].result()
                        pending.popleft()
                except KeyboardInterrupt as error:
                    ended = error
            for each in pending:
                each.result()
        self.totals["dropped"] += video.dropped
        self.seconds += time.monotonic() - began
        if drawn is not None and drawn.path is not None:
            self.overlays.append(drawn.path)
        if isinstance(ended, InputError) and done:
            return InputError(f"{ended}; the {done} frames before have results")
        return ended

    def _write(self, frame: PredictedFrame, name: str, drawn: OverlayVideo | None, at_times: bool) -> None:
        """Writes the results of a frame; runs in the thread."""
        own = frame_name(name, frame.number)
        # Tables call a frame by the name that it would have as an image file.
        self.writer.write(Path(f"{own}.png"), own, frame.image, [frame.segments])
        if self.times is not None:
            self.times.add(name, frame)
        if drawn is not None and self.overlay is not None:
            drawn.add(self.overlay(frame.image, frame.segments), frame.seconds if at_times else None)


class FrameTable:
    """A CSV file with a row for each frame: image (its name in the other tables), video, frame, seconds, objects.

    Args:
        stream: Where it is written.
        objects: Whether there is the last column, the number of objects.
    """

    def __init__(self, stream: TextIO, objects: bool) -> None:
        self._writer = csv.writer(stream)
        self._objects = objects
        self._writer.writerow(["image", "video", "frame", "seconds", *(["objects"] if objects else [])])

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: Path, objects: bool) -> Iterator[FrameTable]:
        """The table, which appears at `path` when the block ends without an error."""
        with atomic_write(path) as final, final.open("w", newline="", encoding="utf-8") as stream:
            yield cls(stream, objects)

    def add(self, video: str, frame: PredictedFrame) -> None:
        """Writes the row of a frame."""
        row = [frame_name(video, frame.number), video, frame.number, f"{frame.seconds:.3f}"]
        self._writer.writerow([*row, len(frame.segments)] if self._objects else row)


def frame_name(video: str, number: int) -> str:
    """The name of a frame in results: that of the video, and the number with leading zeros."""
    return f"{video}/{number:06d}"


def _names(sources: Sequence[str]) -> list[str]:
    """What the videos are called in results.

    Raises:
        InputError: There is none, or a camera is among others.
    """
    cameras = [camera_number(each) for each in sources]
    if not sources:
        raise InputError("no video is given; name files such as clip.mp4, or camera:0")
    if all(each is None for each in cameras):
        return output_names([Path(each) for each in sources])
    if len(sources) > 1:
        raise InputError("a camera is predicted alone, until Ctrl-C; leave out the other inputs")
    return [f"camera_{cameras[0]}"]


def _overlay_rate(video: Video) -> float | None:
    """Frames a second of the annotated video, so that it is as long as what it shows."""
    if video.rate is None:
        return None
    return min(video.rate, _CAMERA_RATE) if video.is_camera else video.rate / video.choice.every


def _settle(pending: Iterable[Future[None]]) -> None:
    """Drops work not yet begun, and waits for the rest."""
    for each in pending:
        each.cancel()
    wait(pending)


def _told(failures: Sequence[InputError], videos: int, folder: Path | None) -> str:
    """One line about all videos that failed."""
    if videos == 1:
        return str(failures[0])
    others = f"; other results are in {folder}" if folder is not None and len(failures) < videos else ""
    return f"{len(failures)} of {videos} videos could not be predicted: {reasons_of(failures)}{others}"
