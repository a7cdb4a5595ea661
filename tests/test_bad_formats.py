"""Hostile and broken annotations through the command line: exit code 2 and one line, or the right result."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_format_cases import JSON_CASES, PICTURE_CASES, TEXT_CASES, XML_CASES, Case, as_folder, link_loops, without
from bad_input_cases import Ended
from PIL import Image
from test_formats_conversions import READABLE, simple_set

from everymask.cli import main
from everymask.errors import InputError
from everymask.formats import FORMATS, open_dataset, recognise, write_dataset
from everymask.formats.images import read_image
from everymask.types import Categories, Dataset, Sample, Segments, Task

pytestmark = [pytest.mark.filterwarnings("error::UserWarning"), pytest.mark.filterwarnings("error::RuntimeWarning")]

Run = Callable[..., Ended]
CASES = {**XML_CASES, **JSON_CASES, **TEXT_CASES, **PICTURE_CASES}
SECONDS = 10.0
"""That a command may take on a data set of three small images, whatever is in it."""


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process."""

    def run(*arguments: object) -> Ended:
        capsys.readouterr()
        began = time.perf_counter()
        code = main([str(each) for each in arguments])
        assert time.perf_counter() - began < SECONDS
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Path], Path]:
    """Copies a good data set of three images; each is made once."""
    made: dict[str, Path] = {}

    def copy(format: str, target: Path) -> Path:
        if format not in made:
            made[format] = tmp_path_factory.mktemp(format) / "set"
            write_dataset(simple_set(format, ["im0", "im1", "im2"]), made[format], format)
        shutil.copytree(made[format], target)
        return target

    return copy


def target_format(format: str) -> str:
    """A format that takes what the data sets hold."""
    return {"image_folder": "cvat", "coco": "labelme"}.get(format, "coco")


def last_line(ended: Ended) -> Ended:
    """Without the notes on what --lossy loses, which come before a mistake that only reading all can tell."""
    lines = [line for line in ended.err.splitlines() if not line.startswith("note: ")]
    return Ended(ended.code, ended.out, "\n".join(lines))


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_broken_and_hostile_files(run: Run, good: Callable[[str, Path], Path], tmp_path: Path, name: str) -> None:
    case: Case = CASES[name]
    format, change, words = case
    source = good(format, tmp_path / "set")
    change(source)
    converted = run("convert", source, tmp_path / "out", "--to", target_format(format), "--lossy")
    last_line(converted).refused(*words)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["set"]
    assert not Path("pwned").exists()
    inspected = run("inspect", source)
    assert "Traceback" not in inspected.out + inspected.err
    if inspected.code == 0:
        assert "finding: an image or annotation cannot be read" in inspected.out or "is missing" in inspected.out
    else:
        last_line(inspected).refused()


@pytest.mark.parametrize("format", ["cvat", "voc", "yolo", "labelme", "coco"])
def test_missing_images_are_left_out_on_demand(
    run: Run, good: Callable[[str, Path], Path], tmp_path: Path, format: str
) -> None:
    source = good(format, tmp_path / "set")
    image = open_dataset(source)[1].path
    assert image is not None
    image.unlink()
    command = ("convert", source, tmp_path / "out", "--to", target_format(format), "--lossy")
    run(*command).refused("im1", "--skip-missing")
    assert run(*command, "--skip-missing").code == 0
    assert [each.name for each in open_dataset(tmp_path / "out")] == ["im0", "im2"]


@pytest.mark.parametrize("format", READABLE)
def test_links_that_lead_back(run: Run, good: Callable[[str, Path], Path], tmp_path: Path, format: str) -> None:
    """They are passed over, or told; nobody walks in circles."""
    source = good(format, tmp_path / "set")
    plain = open_dataset(source)
    expected = [(each.name, len(each.segments or ())) for each in plain]
    link_loops(source)
    ended = run("inspect", source)
    if ended.code == 0:
        assert [(each.name, len(each.segments or ())) for each in open_dataset(source)] == expected
    else:
        ended.refused()


# -- places ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_recognising_never_fails(format: str, tmp_path: Path) -> None:
    from importlib import import_module

    module: Any = import_module(FORMATS[format])
    (tmp_path / "empty").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    for suffix in ("json", "xml", "yaml", "data", "txt", "zip", "png"):
        (tmp_path / f"empty.{suffix}").touch()
        (tmp_path / "folders" / f"a.{suffix}").mkdir(parents=True)
    for each in [*tmp_path.iterdir(), tmp_path / "absent", tmp_path / ("a" * 300), Path(os.devnull)]:
        assert module.recognise(each) is False, each


def test_places_that_are_no_data_sets(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for each in ("images", "masks", "labels", "Annotations", "JPEGImages", "01"):
        (tmp_path / "folders" / each).mkdir(parents=True)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "notes.json").write_text("{}")
    (tmp_path / "notes.xml").write_text("<a/>")
    places = {
        "empty": "is an empty folder",
        "folders": "cannot tell what",
        "loop": "loop",
        "notes.json": "lacks images and annotations and categories",
        "notes.xml": "cannot tell what",
        "absent": "does not exist",
    }
    for name, words in places.items():
        for command in (("inspect", tmp_path / name), ("convert", tmp_path / name, tmp_path / "out", "--to", "coco")):
            run(*command).refused(words)
        assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="nothing is forbidden to the superuser")
@pytest.mark.parametrize("format", READABLE)
def test_folders_that_may_not_be_read(run: Run, good: Callable[[str, Path], Path], tmp_path: Path, format: str) -> None:
    source = good(format, tmp_path / "set")
    source.chmod(0)
    try:
        run("inspect", source).refused(str(source))
    finally:
        source.chmod(0o700)


@pytest.mark.parametrize("format", READABLE)
def test_a_data_set_read_as_another(run: Run, good: Callable[[str, Path], Path], tmp_path: Path, format: str) -> None:
    """Whatever is said with --format: one line, or a data set of that format."""
    source = good(format, tmp_path / "set")
    for other in READABLE:
        ended = run("inspect", source, "--format", other)
        if ended.code:
            ended.refused()


@pytest.mark.parametrize("format", [each for each in READABLE if each != "coco_stuff"])
def test_a_data_set_is_recognised_with_much_around_it(
    good: Callable[[str, Path], Path], tmp_path: Path, format: str
) -> None:
    """Files that systems and people leave everywhere."""
    source = good(format, tmp_path / "set")
    before = [(each.name, len(each.segments or ())) for each in open_dataset(source)]
    for folder in [source, *(each for each in source.rglob("*") if each.is_dir())]:
        (folder / ".DS_Store").write_bytes(b"\0\1")
        (folder / "._im0.png").write_bytes(b"\0\5\x16\7")
        if folder != source or format != "image_folder":
            (folder / "Thumbs.db").write_bytes(b"\xd0\xcf")
    (source / "README.md").write_text("# A data set\n")
    assert recognise(source) == format
    assert [(each.name, len(each.segments or ())) for each in open_dataset(source)] == before


def test_two_images_of_one_name_in_two_folders(run: Run, tmp_path: Path) -> None:
    source = simple_set("coco", ["a/im", "b/im", "A/im", "im"])
    write_dataset(source, tmp_path / "coco", "coco")
    for format in ("cvat", "voc", "yolo", "labelme", "label_images"):
        assert run("convert", tmp_path / "coco", tmp_path / format, "--to", format, "--lossy").code == 0
        found = {each.name: each.image.tobytes() for each in open_dataset(tmp_path / format)}
        assert found == {each.name: each.image.tobytes() for each in source}


def test_upper_case_suffixes_and_images_turned_by_exif(run: Run, tmp_path: Path) -> None:
    """Sizes and outlines are those of the image as a viewer shows it, in every format."""
    noise = np.random.default_rng(0).integers(0, 256, (34, 26), np.uint8)
    image = Image.fromarray(noise)
    exif = image.getexif()
    exif[0x0112] = 8
    (tmp_path / "in").mkdir()
    image.save(tmp_path / "in" / "im.JPEG", exif=exif)
    pixels = read_image(tmp_path / "in" / "im.JPEG")
    assert pixels.shape == (26, 34, 1)
    segments = simple_set("coco", ["im"])[0].segments
    sample = Sample("im", lambda: pixels, lambda: segments, tmp_path / "in" / "im.JPEG")
    write_dataset(Dataset.of([sample], Categories(["a", "b"]), frozenset({Task.INSTANCE})), tmp_path / "coco", "coco")
    for format in ("cvat", "voc", "yolo", "labelme", "label_images", "segmentation_mask"):
        assert run("convert", tmp_path / "coco", tmp_path / format, "--to", format, "--lossy").code == 0
        (again,) = open_dataset(tmp_path / format)
        assert again.path is not None and again.path.name == "im.JPEG"
        assert np.array_equal(again.image, pixels) and again.segments is not None and segments is not None
        assert np.array_equal(again.segments.masks(), segments.masks())


# -- targets -----------------------------------------------------------------------------------------------------------


def _interrupting(source: Dataset, at: int, error: BaseException) -> Dataset:
    def read(index: int) -> Sample:
        if index == at:
            raise error
        return source[index]

    return Dataset(read, len(source), source.categories, source.tasks, source.format, source.root)


@pytest.mark.parametrize("format", [*READABLE, "geojson"])
@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), OSError(28, "No space left on device"), InputError("bad image")]
)
def test_nothing_is_left_of_what_was_not_finished(format: str, error: BaseException, tmp_path: Path) -> None:
    source = simple_set(format if format != "geojson" else "coco", [f"im{i}" for i in range(4)])
    with pytest.raises((KeyboardInterrupt, InputError)):
        write_dataset(_interrupting(source, 2, error), tmp_path / "set", format)
    assert list(tmp_path.iterdir()) == []
    # An empty folder that was there before stays.
    (tmp_path / "set").mkdir()
    with pytest.raises((KeyboardInterrupt, InputError)):
        write_dataset(_interrupting(source, 2, error), tmp_path / "set", format)
    assert [each.name for each in tmp_path.iterdir()] == ["set"] and not any((tmp_path / "set").iterdir())


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set that takes a while to convert."""
    folder = tmp_path_factory.mktemp("many") / "coco"
    write_dataset(simple_set("coco", [f"im{i}" for i in range(1500)]), folder, "coco")
    return folder


@pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_conversion_that_is_stopped(number: signal.Signals, many: Path, tmp_path: Path) -> None:
    """Ctrl-C leaves nothing; what is killed leaves no target, though its hidden folder stays."""
    code = "import sys; from everymask.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "convert", str(many), str(tmp_path / "out"), "--to", "cvat"]
    process = subprocess.Popen([*command, "--lossy"], stderr=subprocess.PIPE, text=True)
    hidden = None
    for _ in range(3000):
        hidden = next(tmp_path.glob(".out.*"), None)
        if hidden is not None and len(list(hidden.rglob("*.png"))) > 20:
            break
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    expected = (130, "interrupted\n") if number == signal.SIGINT else (-number, "")
    assert (process.returncode, errors) == expected
    assert not (tmp_path / "out").exists()
    if number == signal.SIGINT:
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["a file", "a full folder", "below a file", "a name of 300 letters", "/proc/x"])
def test_targets_that_cannot_be_written(run: Run, tmp_path: Path, place: str) -> None:
    write_dataset(simple_set("coco", ["im0"]), tmp_path / "coco", "coco")
    (tmp_path / "file").write_text("mine")
    targets = {
        "a file": tmp_path / "file",
        "a full folder": tmp_path / "coco",
        "below a file": tmp_path / "file" / "out",
        "a name of 300 letters": tmp_path / ("x" * 300),
        "/proc/x": Path("/proc/everymask"),
    }
    if place == "/proc/x" and not Path("/proc").is_dir():
        pytest.skip("this system has no /proc")
    last_line(run("convert", tmp_path / "coco", targets[place], "--to", "voc", "--lossy")).refused("choose")
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["coco", "file"]


# -- memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["cvat", "voc", "yolo", "labelme", "label_images", "ade20k", "ctc"])
def test_memory_does_not_grow_with_the_samples(format: str, tmp_path: Path) -> None:
    """220 images take as much as 20 but for their names: never two samples at a time are held."""
    side = 96
    pixels = np.zeros((side, side, 1), np.uint8)
    ids = np.arange(side * side, dtype=np.int32).reshape(side, side) // (side * 12) + 1

    def peak(count: int) -> int:
        def read(index: int) -> Sample:
            return Sample(f"im{index:05}", pixels.copy, lambda: Segments.from_label_map(ids.copy()))

        made = Dataset(read, count, Categories(["cell"]), frozenset({Task.INSTANCE}), "memory", Path())
        if format == "yolo":
            boxes = np.tile([1.0, 2.0, 30.0, 40.0], (8, 1))
            made = Dataset(
                lambda index: Sample(f"im{index:05}", pixels.copy, lambda: Segments((side, side), [1] * 8, box=boxes)),
                count,
                made.categories,
                frozenset({Task.DETECTION}),
                "memory",
                Path(),
            )
        options = {"instance_masks": False} if format == "ade20k" else {}
        tracemalloc.start()
        write_dataset(made, tmp_path / f"{count}", format, **options)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        shutil.rmtree(tmp_path / f"{count}")
        return found

    peak(3)
    few, many = peak(20), peak(220)
    # A held label map alone would be 37,000 bytes each, and a held image 9,000.
    assert many - few < 200 * 2500, (few, many)


def test_a_file_in_place_of_a_folder(run: Run, good: Callable[[str, Path], Path], tmp_path: Path) -> None:
    for format, folder in (("cvat", "images"), ("voc", "JPEGImages"), ("yolo", "labels"), ("label_images", "masks")):
        source = good(format, tmp_path / format)
        shutil.rmtree(source / folder)
        (source / folder).write_text("gone")
        ended = run("convert", source, tmp_path / "out", "--to", "coco", "--lossy")
        if format == "yolo":  # images of a part without labels are images that nobody has annotated
            assert ended.code == 0
            shutil.rmtree(tmp_path / "out")
        else:
            ended.refused()
        assert not (tmp_path / "out").exists()


def test_a_mask_without_an_image_and_an_image_that_is_a_folder(
    run: Run, good: Callable[[str, Path], Path], tmp_path: Path
) -> None:
    for format, file in (("ade20k", "images/ADE/training/im1.png"), ("voc", "JPEGImages/im1.png")):
        for change in (without, as_folder):
            source = good(format, tmp_path / "set")
            change(file)(source)
            run("convert", source, tmp_path / "out", "--to", "coco", "--lossy").refused("im1", "--skip-missing")
            shutil.rmtree(source)
