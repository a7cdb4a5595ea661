"""Videos of a moving square, and a camera that is none, for the tests of prediction."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from everymask.predict.video_inputs import opencv

pytest.importorskip("cv2", exc_type=ImportError)
cv2 = opencv("testing")  # before its first use, which decides how much FFmpeg says
RATE, SIZE, COUNT = 12.5, (48, 64), 24


def picture(number: int, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """A red square on black whose place tells the number of the frame."""
    image = np.zeros((*size, 3), np.uint8)
    image[4 : 4 + 8, 2 * number : 2 * number + 10] = (250, 120, 120)
    image[30:40, 50:60] = (30, 30, 220)
    return image


def write_video(path: Path, count: int = COUNT, code: str = "MJPG", size: tuple[int, int] = SIZE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), RATE, size[::-1])
    assert writer.isOpened()
    for number in range(count):
        writer.write(np.ascontiguousarray(picture(number, size)[..., ::-1]))
    writer.release()
    return path


def frames_of(path: Path) -> list[NDArray[np.uint8]]:
    """The frames as OpenCV itself reads them, in RGB."""
    capture, found = cv2.VideoCapture(str(path)), []
    while True:
        there, frame = capture.read()
        if not there:
            return found
        found.append(np.ascontiguousarray(frame[..., ::-1]))


class FakeCapture:
    """In place of `cv2.VideoCapture`: `frame(number)` for as long as it gives a picture (H, W, 3) RGB, at a pace."""

    def __init__(self, frame: Callable[[int], NDArray[np.uint8] | None], count: float = 0, pace: float = 0.0) -> None:
        self.frame, self.count, self.pace = frame, count, pace
        self.grabbed = 0
        self.released = False

    def __call__(self, *_: Any) -> FakeCapture:
        self.grabbed, self.released = 0, False
        return self

    def isOpened(self) -> bool:
        return True

    def get(self, what: int) -> float:
        return {cv2.CAP_PROP_FPS: 30.0, cv2.CAP_PROP_FRAME_COUNT: self.count}.get(what, 0.0)

    def set(self, *_: Any) -> bool:
        return True

    def grab(self) -> bool:
        time.sleep(self.pace)
        self.current = self.frame(self.grabbed)
        self.grabbed += self.current is not None
        return self.current is not None

    def retrieve(self) -> tuple[bool, NDArray[np.uint8] | None]:
        assert self.current is not None
        return bool(self.current.size), np.ascontiguousarray(self.current[..., ::-1])

    def release(self) -> None:
        self.released = True
