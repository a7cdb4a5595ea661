"""Frames of video files and cameras, in order, decoded ahead in a thread while the network is busy with others.

OpenCV, an optional package, reads files and cameras. However long a video is, a few frames are in memory at a time.
"""

from __future__ import annotations

import itertools
import math
import os
import re
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from everymask.errors import InputError
from everymask.predict.video_inputs import camera_number, opencv, opened_camera, opened_file

if TYPE_CHECKING:
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray

    from everymask.formats.listing import PathLike
    from everymask.types import Segments

_AHEAD = 2**26
"""Bytes of frames that are decoded ahead, as far as that makes 2 to 8 frames."""
_PATIENCE = 2.0
"""Seconds that a camera has to give its last frame when it is closed."""


class VideoWarning(UserWarning):
    """Something is wrong with a video whose other frames were predicted."""


class Frame(NamedTuple):
    """A frame of a video.

    Args:
        number: Counted from 0 over all frames of the video, those left out and dropped ones included.
        seconds: Since the beginning of the video, by its time stamps; since the first frame of a camera.
        image: (H, W, 3) uint8 RGB, upright as the file says.
    """

    number: int
    seconds: float
    image: NDArray[np.uint8]


class PredictedFrame(NamedTuple):
    """A frame as in `Frame`, and what was found in it."""

    number: int
    seconds: float
    image: NDArray[np.uint8]
    segments: Segments


@dataclass(frozen=True)
class FrameChoice:
    """Which frames of a video are wanted.

    Args:
        every: Each so many-th frame, counted from `first`.
        first: Number of the first frame.
        stop: Number of the first frame that is not wanted any more; None: there is none.
        seconds: Only what lies in the first so many seconds; None: all.

    Raises:
        InputError: No frame can be chosen so.
    """

    every: int = 1
    first: int = 0
    stop: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.every < 1:
            raise InputError(f"every must be at least 1, which takes all frames, got {self.every}")
        if self.first < 0 or (self.stop is not None and self.stop <= self.first):
            raise InputError(f"frames must be FIRST:STOP with 0 <= FIRST < STOP, such as 0:100 or 100:, got {self}")
        if self.seconds is not None and not self.seconds > 0:
            raise InputError(f"seconds must be above 0, got {self.seconds:g}")

    @classmethod
    def parse(cls, every: int = 1, frames: str | None = None, seconds: float | None = None) -> Self:
        """The choice with its frames written as ``FIRST:STOP``; either number may be left out.

        Raises:
            InputError: They are written in another way, or no frame can be chosen so.
        """
        found = re.fullmatch(r"(\d*):(\d*)", frames or ":")
        if found is None:
            raise InputError(f"frames must be FIRST:STOP, such as 0:100 or 100:, got {frames!r}")
        return cls(every, int(found[1] or 0), int(found[2]) if found[2] else None, seconds)

    def takes(self, number: int) -> bool:
        """Whether a frame is wanted, as far as its number tells."""
        within = number >= self.first and (self.stop is None or number < self.stop)
        return within and (number - self.first) % self.every == 0

    def count(self, frames: int | None, rate: float | None) -> int | None:
        """How many frames are wanted of a video with so many frames at so many a second; None if that is not known."""
        ends = [each for each in (frames, self.stop) if each is not None]
        if self.seconds is not None and rate is not None:
            ends.append(math.ceil(self.seconds * rate))
        return len(range(self.first, min(ends), self.every)) if frames is not None else None

    def __str__(self) -> str:
        return f"{self.first}:{'' if self.stop is None else self.stop}"


class Video:
    """The frames of a video file or a camera.

    Iterating decodes the frames in order, some ahead in a thread. Of a camera each iteration gives the newest frame:
    what comes while the caller is busy is dropped, so that results are of now. Frames of a file that cannot be decoded
    are passed over, and a `VideoWarning` names them; another one says so if a file ends too early.

    Args:
        source: Path of a file, or ``camera:N`` for the N-th camera of the computer, from 0.
        choice: Which frames are wanted.

    Attributes:
        name: The source as messages call it.
        is_camera: Whether it is a camera.
        rate: Frames a second; None where it is not known.
        frames: Frames in the file as its header has it, which may be an estimate; None if it has none, and of a camera.
        dropped: Frames of a camera that came while the caller was busy.

    Raises:
        InputError: OpenCV is not installed, the file is missing, no video or of an unknown kind, or there is no such
            camera; when iterated, there is no frame, or none of those wanted.
    """

    def __init__(self, source: PathLike, choice: FrameChoice | None = None) -> None:
        self.name = os.fspath(source)
        camera = camera_number(source)
        self.is_camera = camera is not None
        self.choice = choice or FrameChoice()
        self.dropped = 0
        self._cv2 = opencv(f"reading {self.name}")
        self._open: Callable[[], Any] = lambda: (
            opened_file(self._cv2, Path(source)) if camera is None else opened_camera(self._cv2, camera)
        )
        self._capture: Any = self._open()
        self._buffer: _Buffer | None = None
        rate, frames = (
            float(self._capture.get(each)) for each in (self._cv2.CAP_PROP_FPS, self._cv2.CAP_PROP_FRAME_COUNT)
        )
        self.rate = rate if 0 < rate <= 10_000 else None
        self.frames = int(frames) if not self.is_camera and 0 < frames < 2**31 else None

    @property
    def wanted(self) -> int | None:
        """How many frames the choice takes, as far as the header of the file tells; None if it does not."""
        return self.choice.count(self.frames, self.rate)

    def __iter__(self) -> Iterator[Frame]:
        self.close()
        capture, self._capture = self._capture or self._open(), None
        self._buffer = buffer = _Buffer(newest=self.is_camera)
        ending = _Ending()
        thread = threading.Thread(
            target=self._read, args=(capture, buffer, ending), daemon=True, name="everymask-video"
        )
        thread.start()
        given = 0
        try:
            for frame in buffer:
                given += 1
                yield frame
        finally:
            buffer.close()
            self.dropped = buffer.dropped
            thread.join(_PATIENCE)
        if self._buffer is buffer:  # else it was closed in between
            self._tell(ending, given)

    def close(self) -> None:
        """Stops reading; an iteration under way ends with the frames that are decoded."""
        if self._buffer is not None:
            self._buffer.close()
            self._buffer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if self._capture is not None:
            self._capture.release()
            self._capture = None

    def _read(self, capture: Any, buffer: _Buffer, ending: _Ending) -> None:
        """The reading thread, which alone touches the capture from now on."""
        try:
            for frame in self._decoded(capture, ending):
                if not buffer.put(frame):
                    break
            buffer.finish()
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits for frames
            buffer.finish(error)
        finally:
            capture.release()

    def _decoded(self, capture: Any, ending: _Ending) -> Iterator[Frame]:
        choice, began, seconds = self.choice, 0.0, 0.0
        for number in itertools.count():
            if choice.stop is not None and number >= choice.stop:
                return
            # Frames before the first are decoded, too: jumping to a frame is off by some in many files.
            if not capture.grab():
                ending.early = True
                return
            ending.frames = number + 1
            if self.is_camera:
                now = time.monotonic()
                began = now if number == 0 else began
                seconds = now - began
            else:
                seconds = self._time_stamp(capture, number, seconds)
            if choice.seconds is not None and seconds >= choice.seconds:
                return
            if not choice.takes(number):
                continue
            decoded, picture = capture.retrieve()
            if not decoded or picture is None or picture.size == 0:
                ending.broken.append(number)
                continue
            yield Frame(number, seconds, self._rgb(picture))

    def _time_stamp(self, capture: Any, number: int, before: float) -> float:
        """Seconds of the frame just decoded; by the frame rate in files whose time stamps are missing."""
        stamp = float(capture.get(self._cv2.CAP_PROP_POS_MSEC)) / 1000
        if number and not (math.isfinite(stamp) and stamp > before):
            stamp = number / self.rate if self.rate else before
        return max(before, stamp if math.isfinite(stamp) else 0.0)

    def _rgb(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(H, W, 3) RGB of what OpenCV gives: blue first, or grey from some cameras."""
        cv2 = self._cv2
        if picture.ndim == 2 or picture.shape[2] == 1:
            return cv2.cvtColor(picture, cv2.COLOR_GRAY2RGB)
        return cv2.cvtColor(picture, cv2.COLOR_BGRA2RGB if picture.shape[2] == 4 else cv2.COLOR_BGR2RGB)

    def _tell(self, ending: _Ending, given: int) -> None:
        """What is to be said when the frames are at an end.

        Raises:
            InputError: There were none.
        """
        if not given:
            if self.is_camera:
                raise InputError(f"{self.name} gives no picture; another program may be using it")
            if not ending.frames or ending.broken:
                raise InputError(f"{self.name} holds no frame that can be decoded; is the file complete?")
            if ending.early:
                raise InputError(
                    f"{self.name} has {ending.frames} frames; ask for some of these instead of {self.choice}"
                )
            raise InputError(
                f"{self.name}: frame {self.choice.first} comes after {self.choice.seconds:g} seconds; ask for an "
                "earlier one, or for more seconds"
            )
        if ending.broken:
            more = f" and {len(ending.broken) - 5} more" if len(ending.broken) > 5 else ""
            listed = ", ".join(map(str, ending.broken[:5]))
            self._warn(f"frames that cannot be decoded are passed over: {listed}{more}")
        if ending.early and self.is_camera:
            self._warn(f"gives no more pictures after frame {ending.frames - 1}; was it unplugged?")
        # Headers may be off by a little without any damage.
        elif ending.early and self.frames is not None and self.frames - ending.frames > max(2, self.frames // 50):
            self._warn(
                f"breaks off after frame {ending.frames - 1}, where its header promises {self.frames} frames; it may "
                "be damaged or cut off. What was found up to there is kept"
            )

    def _warn(self, message: str) -> None:
        warnings.warn(f"{self.name}: {message}", VideoWarning, stacklevel=4)


class _Ending:
    """How reading ended: frames decoded, numbers of those that could not be, whether there were no more."""

    def __init__(self) -> None:
        self.frames = 0
        self.broken: list[int] = []
        self.early = False


class _Buffer:
    """Frames on their way from the reading thread to the caller: all of them in order, or the newest one only.

    Args:
        newest: A frame takes the place of one that nobody has taken yet, instead of waiting.

    Attributes:
        dropped: Frames that were replaced.
    """

    def __init__(self, newest: bool) -> None:
        self.dropped = 0
        self._newest = newest
        self._frames: deque[Frame] = deque()
        self._changed = threading.Condition()
        self._ended = self._closed = False
        self._error: BaseException | None = None

    def put(self, frame: Frame) -> bool:
        """Hands a frame over, waiting for room; False if no more are wanted."""
        room = 1 if self._newest else min(8, max(2, _AHEAD // max(1, frame.image.nbytes)))
        with self._changed:
            if self._newest:
                self.dropped += len(self._frames)
                self._frames.clear()
            while len(self._frames) >= room and not self._closed:
                self._changed.wait()
            if self._closed:
                return False
            self._frames.append(frame)
            self._changed.notify_all()
            return True

    def finish(self, error: BaseException | None = None) -> None:
        """There are no more frames; the error is raised by whoever waits for them."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def close(self) -> None:
        """No more frames are wanted."""
        with self._changed:
            self._closed = self._ended = True
            self._changed.notify_all()

    def __iter__(self) -> Iterator[Frame]:
        while True:
            with self._changed:
                while not self._frames and not self._ended:
                    self._changed.wait(0.2)  # not for ever, since Windows hears Ctrl-C only in between
                if not self._frames:
                    if self._error is not None:
                        raise self._error
                    return
                frame = self._frames.popleft()
                self._changed.notify_all()
            yield frame


def predicted_frames(
    video: Video, predict: Callable[[NDArray[np.uint8]], Segments]
) -> Generator[PredictedFrame, None, None]:
    """The frames of a video with what is found in them, one at a time as they are asked for.

    Args:
        video: Closed at the end.
        predict: Segments of an image (H, W, 3).

    Raises:
        InputError: Frames cannot be read or predicted; the message names the video and the frame.
    """
    with video:
        for number, seconds, image in video:
            try:
                found = predict(image)
            except InputError as error:
                raise InputError(f"{video.name}, frame {number}: {error}") from error
            yield PredictedFrame(number, seconds, image, found)
