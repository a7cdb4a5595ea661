"""The part of `everymask predict` that is for videos and cameras."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everymask.cli.output import counted
from everymask.errors import InputError
from everymask.predict.videos import FrameChoice

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rich.progress import ProgressColumn

    from everymask.cli.output import Output
    from everymask.model import Model
    from everymask.predict.video_results import WrittenVideos
    from everymask.types import Segments


def inputs_of(
    given: Sequence[str], every: int, frames: str | None, seconds: float | None
) -> tuple[list[str], list[str], FrameChoice]:
    """Images; videos, of which at least one can be read, or a camera; and which of their frames are wanted.

    Raises:
        InputError: There are both, a video is missing, or frames are chosen without one.
    """
    from everymask.predict.video_inputs import split_inputs
    from everymask.predict.video_results import check_sources

    images, videos = split_inputs(given)
    choice = FrameChoice.parse(every, frames, seconds)
    if not videos:
        if choice != FrameChoice():
            raise InputError("--every, --frames and --seconds are for videos and cameras; leave them out for images")
    elif images:
        raise InputError(
            f"{videos[0]} is a video, and {images[0]} is none; predict images and videos one after the other"
        )
    else:
        check_sources(videos)
    return images, videos, choice


@contextlib.contextmanager
def progress_of(output: Output, videos: Sequence[str]) -> Iterator[Callable[[str, int, int | None], None]]:
    """Gives a function of (video, frames done, frames in all if known) that draws a bar with frames a second."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns: list[ProgressColumn] = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _rate_column(),
    ]
    hidden = output.quiet or not console.is_terminal
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=hidden) as bar:
        numbers: dict[str, Any] = {}

        def advance(name: str, done: int, total: int | None) -> None:
            if name not in numbers:
                for number in numbers.values():
                    bar.update(number, visible=False)
                count = f" ({len(numbers) + 1} of {len(videos)})" if len(videos) > 1 else ""
                numbers[name] = bar.add_task(f"predicting {name}{count}", total=total)
            bar.update(numbers[name], completed=done)

        yield advance


def _rate_column() -> ProgressColumn:
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    class FramesPerSecond(ProgressColumn):
        """How many frames a second there were lately."""

        def render(self, task: Task) -> Text:
            return Text("" if task.speed is None else f"{task.speed:.1f} frames/s")

    return FramesPerSecond()


def frame_predictor(model: Model, options: Mapping[str, Any], score: float) -> Callable[[NDArray[Any]], Segments]:
    """The segments of a frame, with the data set's category ids.

    Args:
        model: Its predictor is made once, since looking for changed weights takes some time for each frame.
        options: As for `Model.predictor`.
        score: Segments of lower scores are left out.
    """
    predictor = model.predictor(**options)

    def predict(image: NDArray[Any]) -> Segments:
        found = predictor(image)
        found = found.with_category(model.categories.ids[found.category])
        return found.probable(score)

    return predict


def tell_videos(output: Output, written: WrittenVideos, out: Path, model: str, place: str | None) -> None:
    """Says what was done and where it is.

    Args:
        output: Where it is said.
        written: What was done.
        out: The output folder.
        model: As it was called.
        place: Of labels or predictions below it; None for classifiers.

    Raises:
        KeyboardInterrupt: It ended the prediction of a file; that of a camera is meant to end so.
    """
    rate = written.frames / max(written.seconds, 1e-9)
    speed = f"{rate:.1f} frames a second"
    dropped = f", {counted(written.dropped, 'frame')} dropped meanwhile" if written.dropped else ""
    videos = "" if written.videos == 1 else f" of {counted(written.videos, 'video')}"
    if place is None:
        output.rows(("class", "frames"), list(written.classes.items()), f"{counted(written.frames, 'frame')} by class")
        output.hint(f"{counted(written.frames, 'frame')}{videos}, {speed}{dropped}")
        paths: dict[str, Path | None] = {"table": out / "classes.csv"}
    else:
        objects, frames = counted(written.segments, "object"), counted(written.frames, "frame")
        output.hint(f"{objects} in {frames}{videos}, {speed}{dropped}")
        overlays = written.overlays[0] if len(written.overlays) == 1 else out / "overlays" if written.overlays else None
        paths = {Path(place).stem: out / place, "overlays": overlays, "measures": out / "measures.csv"}
    paths["times"] = out / "frames.csv"
    for name, path in paths.items():
        if path is not None:
            output.hint(f"  {name:<11} {path}")
    figures = {"videos": written.videos, "frames": written.frames, "dropped": written.dropped}
    found = {"classes": dict(written.classes)} if place is None else {"objects": written.segments}
    output.result({**figures, **found, "frames_per_second": rate, "model": model, **paths})
    if written.interrupted is not None and not written.camera:
        raise KeyboardInterrupt(f"interrupted after frame {written.interrupted}; the results up to it are in {out}")
