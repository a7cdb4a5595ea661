"""Annotated frames as a video file."""

from __future__ import annotations

import contextlib
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from everymask.errors import InputError
from everymask.files import atomic_write
from everymask.predict.video_inputs import opencv, quiet
from everymask.predict.videos import VideoWarning

if TYPE_CHECKING:
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray

ENCODERS = (("mp4v", ".mp4"), ("MJPG", ".avi"))
"""Codes of what OpenCV may be able to encode, and the suffix of the file, tried in this order."""
UNKNOWN_RATE = 25.0
"""Frames a second where the source does not say."""


class OverlayVideo:
    """A video file that appears, whole, when the block ends; after an error there is none.

    Args:
        path: Of the file; its suffix becomes that of the first of `ENCODERS` that works.
        rate: Frames a second; None where it is not known.

    Attributes:
        path: Of the file; None as long as no frame was given, and if none can be encoded, which a `VideoWarning` says.
    """

    def __init__(self, path: Path, rate: float | None) -> None:
        self.path: Path | None = None
        self._place = path
        # Encoders want a rate that is the quotient of small whole numbers.
        self._rate = round(rate or UNKNOWN_RATE, 2) or UNKNOWN_RATE
        self._cv2 = opencv(f"writing {path}")
        self._file = contextlib.ExitStack()
        self._temporary: Path | None = None
        self._writer: Any = None
        self._tried = False
        self._size = (0, 0)
        self._written = 0
        self._began = 0.0
        self._before: NDArray[np.uint8] | None = None

    def add(self, picture: NDArray[np.uint8], seconds: float | None = None) -> None:
        """Encodes a frame (H, W, 3), resized if it is not as large as the first one.

        Args:
            picture: RGB.
            seconds: For frames that come now and then: their time. Each frame is shown until the next one, or left out
                if that is there at once.
        """
        cv2, (height, width) = self._cv2, picture.shape[:2]
        if not self._tried:
            self._start(height, width)
        if self._writer is None:
            return
        if (height, width) != self._size:
            picture = cv2.resize(picture, self._size[::-1], interpolation=cv2.INTER_AREA)
        frame = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
        if self._before is None:
            self._began = seconds or 0.0
        due = self._written + 1 if seconds is None else round((seconds - self._began) * self._rate) + 1
        while self._before is not None and self._written < due - 1:
            self._write(self._before)
        if self._written < due:
            self._write(frame)
        self._before = frame

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.release()
            self._writer = None
            if kind is None and not self._complete():
                error = InputError(f"cannot write {self.path}; free some space or choose another --out")
                self._file.__exit__(InputError, error, None)
                raise error
        self._file.__exit__(kind, error, trace)

    def _write(self, frame: NDArray[np.uint8]) -> None:
        self._writer.write(frame)
        self._written += 1

    def _start(self, height: int, width: int) -> None:
        self._tried, self._size = True, (height, width)
        for code, suffix in ENCODERS:
            attempt = contextlib.ExitStack()
            path = self._place.with_suffix(suffix)
            temporary = attempt.enter_context(atomic_write(path))
            with quiet(self._cv2):
                fourcc = self._cv2.VideoWriter.fourcc(*code)
                place = os.path.abspath(temporary)  # noqa: PTH100 - as for reading: a colon would mean a protocol
                writer = self._cv2.VideoWriter(place, fourcc, self._rate, (width, height))
            if writer.isOpened():
                self.path, self._temporary, self._file, self._writer = path, temporary, attempt, writer
                if suffix != ENCODERS[0][1]:
                    self._warn(f"written as {path.name}, since OpenCV cannot encode MPEG-4 here")
                return
            failed = InputError("no such encoder")
            attempt.__exit__(InputError, failed, None)
        self._warn("left out, since OpenCV cannot encode video here")

    def _complete(self) -> bool:
        """Whether the file can be read; encoders say nothing of a disk that is full."""
        with quiet(self._cv2):
            capture = self._cv2.VideoCapture(os.path.abspath(str(self._temporary)))  # noqa: PTH100 - see above
            try:
                # The head of an AVI is there even if the rest is not.
                frames = capture.get(self._cv2.CAP_PROP_FRAME_COUNT) if capture.isOpened() else 0
                return frames >= self._written
            finally:
                capture.release()

    def _warn(self, message: str) -> None:
        warnings.warn(f"{self._place}: {message}", VideoWarning, stacklevel=4)
