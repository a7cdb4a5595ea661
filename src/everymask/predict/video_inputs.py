"""Which of a user's inputs are videos and cameras, and opening them by OpenCV, an optional package."""

from __future__ import annotations

import contextlib
import glob
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everymask.errors import InputError
from everymask.formats.checks import file_head
from everymask.formats.listing import PathLike, natural_key

if TYPE_CHECKING:
    from types import ModuleType

VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".mts", ".m2ts", ".3gp",
    ".ogv",
)  # fmt: skip
"""Suffixes, in lower case, of files that are taken for videos."""
_CAMERA = re.compile(r"camera:(\d+)", re.IGNORECASE)


def camera_number(source: PathLike) -> int | None:
    """N of ``camera:N``; None for anything else."""
    found = _CAMERA.fullmatch(os.fspath(source))
    return None if found is None else int(found[1])


def split_inputs(given: Iterable[str]) -> tuple[list[str], list[str]]:
    """Images, folders and patterns of images; and video files and cameras.

    Args:
        given: Videos are told by their suffix, cameras by ``camera:N``. A pattern that ends in the suffix of a video
            gives videos in natural order. Videos that lie in folders are not taken.

    Raises:
        InputError: A video does not exist, no file matches a pattern, or a folder holds nothing but videos.
    """
    images: list[str] = []
    videos: dict[str, None] = {}
    for item in given:
        if camera_number(item) is not None:
            videos[item] = None
        elif item.lower().startswith("camera:") and not Path(item).exists():
            raise InputError(f"{item} is no camera; the first one is camera:0, the next one camera:1")
        elif Path(item).is_dir() or Path(item).suffix.lower() not in VIDEO_SUFFIXES:
            _refuse_folder_of_videos(Path(item))
            images.append(item)
        elif Path(item).exists():
            videos[item] = None
        elif glob.has_magic(item):
            matches = sorted(glob.glob(item, recursive=True), key=natural_key)  # noqa: PTH207 - Path.glob refuses absolute patterns
            if not matches:
                raise InputError(f"no video matches {item!r}; check the pattern")
            videos.update((each, None) for each in matches)
        else:
            raise InputError(f"{item} does not exist; check the spelling")
    return images, list(videos)


def _refuse_folder_of_videos(path: Path) -> None:
    """Makes sure that a path is no folder with nothing but videos, which would be told to hold no image.

    Raises:
        InputError: It is.
    """
    if not path.is_dir():
        return
    listed = [each for each in path.iterdir() if not each.name.startswith(".")]
    videos = [each for each in listed if each.suffix.lower() in VIDEO_SUFFIXES]
    if videos and len(videos) == len(listed):
        pattern = path / f"*{videos[0].suffix}"
        raise InputError(f"{path} holds {len(videos)} videos but no image; name them, or give a pattern: '{pattern}'")


def opencv(purpose: str) -> ModuleType:
    """The package cv2, which is optional.

    Raises:
        InputError: It is not installed, or cannot be loaded.
    """
    # FFmpeg would write to the terminal what is told in a line of our own.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    try:
        import cv2
    except ImportError as error:
        reason = "" if error.name == "cv2" else f" ({error})"
        raise InputError(f"{purpose} needs OpenCV{reason}; run: pip install 'everymask[video]'") from error
    return cv2


def opened_file(cv2: ModuleType, path: Path) -> Any:
    """A capture of a video file.

    Raises:
        InputError: It is missing or no video.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder, but a video file is expected; name a file in it")
    file_head(path)
    # FFmpeg takes what stands before a colon for a protocol, but not in an absolute path.
    place = os.path.abspath(path)  # noqa: PTH100 - links stay as they are
    with quiet(cv2):
        # Other readers, which take less and complain on the terminal, only in builds of OpenCV without FFmpeg.
        ffmpeg = cv2.videoio_registry.hasBackend(cv2.CAP_FFMPEG)
        capture = cv2.VideoCapture(place, cv2.CAP_FFMPEG if ffmpeg else cv2.CAP_ANY)
        if not capture.isOpened():
            raise InputError(
                f"{path} cannot be read as a video: it is damaged, cut off, no video, or in a codec that OpenCV does "
                "not know; try to convert it, such as by ffmpeg -i OLD new.mp4"
            )
        capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
    return capture


def opened_camera(cv2: ModuleType, number: int) -> Any:
    """A capture of a camera.

    Raises:
        InputError: There is none, or it cannot be used.
    """
    with quiet(cv2):
        capture = cv2.VideoCapture(number)
    if not capture.isOpened():
        raise InputError(
            f"camera:{number} cannot be opened; is a camera connected, allowed for this program, and not in use by "
            "another? The first one is camera:0"
        )
    return capture


@contextlib.contextmanager
def quiet(cv2: ModuleType) -> Iterator[None]:
    """Within, OpenCV writes nothing to the terminal: whoever opens a file tells what fails."""
    logging = getattr(cv2.utils, "logging", cv2)  # earlier releases of OpenCV 4 have it elsewhere
    before = logging.getLogLevel()
    logging.setLogLevel(0)
    try:
        yield
    finally:
        logging.setLogLevel(before)
