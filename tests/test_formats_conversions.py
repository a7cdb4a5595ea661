"""From every kind of data set to every format: what is not said to be lost is there again, to the last pixel."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conversion_cases import (
    ATTRIBUTES,
    BACKGROUND,
    PLAIN,
    RICH,
    SAMPLES,
    SIZE,
    UNSAID,
    boxes,
    columns,
    dataset,
    differences,
    holed_polygons,
    label_map,
    masks,
    parted_polygons,
    plain_polygons,
    square,
)
from PIL import Image

from everymask.errors import InputError
from everymask.formats import FORMATS, can_read, describe, open_dataset, write_dataset
from everymask.formats.cityscapes_labels import categories as cityscapes_categories
from everymask.formats.coco_stuff_classes import stuff_categories
from everymask.formats.columns import attribute_column
from everymask.formats.description import Feature
from everymask.formats.fidelity import find_losses
from everymask.types import Categories, Category, Dataset, Masks, Polygon, Polygons, Segments, Task

READABLE = [name for name in FORMATS if can_read(name)]
INSTANCES = frozenset({Task.DETECTION, Task.INSTANCE})
FIXED = {
    "cityscapes": cityscapes_categories("ids", drawn=True),
    "coco_stuff": stuff_categories(),
    "ctc": Categories(["cell"]),
}
"""Formats whose classes are what they are."""

Make = Callable[[np.random.Generator, np.ndarray], Segments]


def _of(geometry: Callable[..., Any], **options: Any) -> Make:
    return lambda rng, category: Segments(SIZE, category, geometry(rng, len(category), **options))


def _with(geometry: Callable[..., Any] | None, column: str) -> Make:
    def make(rng: np.random.Generator, category: np.ndarray) -> Segments:
        count = len(category)
        made: dict[str, Any] = {
            "box": boxes(rng, count),
            "score": rng.random(count),
            "crowd": rng.random(count) < 0.5,
            "attributes": columns(rng, count, list(ATTRIBUTES)),
        }
        given = {column: made[column]} | ({"box": made["box"]} if geometry is None else {})
        return Segments(SIZE, category, None if geometry is None else geometry(rng, count), **given)

    return make


def _semantic(rng: np.random.Generator, category: np.ndarray) -> Segments:
    ids = np.unique(category)
    classes = rng.choice([*ids, 0, -1], SIZE, p=[0.8 / len(ids)] * len(ids) + [0.1, 0.1])
    return Segments.from_semantic_map(classes, void=-1, background=0)


KINDS: dict[str, Make] = {
    "polygons": _of(plain_polygons),
    "polygons of two decimals": _of(plain_polygons, digits=2),
    "polygons of parts": _of(parted_polygons),
    "polygons with holes": _of(holed_polygons),
    "masks": _of(masks),
    "label maps": _of(label_map),
    "label maps with void": _of(label_map, void=True),
    "classes": _semantic,
    "boxes": lambda rng, category: Segments(SIZE, category, None, box=boxes(rng, len(category))),
    "volumes": lambda rng, category: Segments(
        (4, *SIZE), category, label_map(rng, len(category), (4, *SIZE), void=True)
    ),
    "tags": lambda rng, category: Segments(SIZE, category[:1]),
    **{
        f"{name} with {column}": _with(geometry, column)
        for name, geometry in (("polygons", plain_polygons), ("masks", masks), ("maps", label_map), ("boxes", None))
        for column in ("box", "score", "crowd", "attributes")
        if (geometry, column) != (None, "box")
    },
}
"""What is annotated -> what makes the segments of an image of objects of the given categories."""

NOT_EVEN_LOSSY = {Feature.VOLUMES, Feature.TAGS, Feature.BOXES}
"""What a format refuses to write without: nothing would be left."""


def classes_for(format: str) -> Categories:
    """Categories that a format takes."""
    return FIXED.get(format, PLAIN)


def make(kind: str, format: str, seed: int) -> Dataset:
    """A data set of random annotations, one image without objects and one that is not annotated."""
    rng = np.random.default_rng(seed)
    categories = classes_for(format)
    segments: list[Segments | None] = []
    for _ in range(4):
        # Formats of classes, and stuff in Cityscapes, know no two objects of a class.
        ids = rng.permutation(categories.ids)[: rng.integers(1, 5)]
        if format not in {"cityscapes", "coco_stuff"}:
            ids = rng.choice(categories.ids, rng.integers(1, 5))
        segments.append(KINDS[kind](rng, np.sort(ids)))
    tasks = INSTANCES
    if kind == "classes":
        tasks = frozenset({Task.SEMANTIC})
    elif kind == "tags":
        # Every class has an image, so that the folders of classes are known as such.
        segments = [Segments(SIZE, [each]) for each in categories.ids[:4]]
        tasks = frozenset({Task.CLASSIFICATION})
    elif kind.startswith("boxes"):
        tasks = frozenset({Task.DETECTION})
    if kind != "tags":
        segments += [Segments.empty(SIZE), None]
    return dataset(segments, categories, tasks, names=[f"im{i}" for i in range(len(segments))])


def convert(source: Dataset, format: str, target: Path, *, lost: Sequence[str] = (), **reading: Any) -> list[str]:
    """Writes and reads a data set; gives what was lost without having been said."""
    said = {str(each.what) for each in find_losses(source, describe(format))}
    module = import_module(FORMATS[format])
    options: dict[str, Any] = {}
    if Feature.OVERLAP in said and "overlap" in inspect.signature(module.write).parameters:
        options["overlap"] = "last"
    write_dataset(source, target, format, **options)
    result = open_dataset(target, **reading)
    assert result.format == format
    return list(differences(source, result, {*said, *UNSAID.get(format, ()), *lost}))


@pytest.mark.parametrize("format", READABLE)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_said_to_be_lost_is_there_again(kind: str, format: str, tmp_path: Path) -> None:
    for seed in range(2):
        source = make(kind, format, seed)
        said = {each.what for each in find_losses(source, describe(format))}
        if said & NOT_EVEN_LOSSY or (format == "image_folder" and kind != "tags"):
            with pytest.raises(InputError, match=r"^im[0-3][ :]"):
                write_dataset(source, tmp_path / "set", format)
            assert not (tmp_path / "set").exists()
            return
        assert convert(source, format, tmp_path / f"set{seed}") == []


# -- names, parts, classes, images, further columns --------------------------------------------------------------------


def simple(format: str, categories: Categories, count: int) -> tuple[list[Segments], frozenset[Task]]:
    """Annotations that a format can hold, of the first two categories."""
    ids = categories.ids[:2]
    if format == "image_folder":
        return [Segments(SIZE, [ids[i % 2]]) for i in range(count)], frozenset({Task.CLASSIFICATION})
    parts = tuple((Polygon(square(1 + 9 * i, 3, 6)),) for i in range(2))
    drawn = Segments(SIZE, ids if len(ids) > 1 else [ids[0]] * 2, Polygons(SIZE, parts))
    if format in {"yolo", "cvat", "coco", "labelme"}:
        return [drawn] * count, INSTANCES
    return [Segments(SIZE, drawn.category, Masks(SIZE, *_runs(drawn)))] * count, INSTANCES


def _runs(segments: Segments) -> tuple[Any, Any]:
    runs = segments.rles()
    return runs.counts, runs.offsets


def simple_set(format: str, names: Sequence[str], categories: Categories | None = None, **options: Any) -> Dataset:
    """A data set that a format can hold."""
    categories = classes_for(format) if categories is None else categories
    segments, tasks = simple(format, categories, len(names))
    return dataset(segments, categories, tasks, names=names, **options)


NAMES = {
    "of other alphabets, with dots, spaces and quotes": SAMPLES,
    "in deep folders": ["a/b/c/d/e", "x/y/z", "x.y/z", "Z"],
    "like suffixes": ["a.jpg.png", "a", "b.PNG"],
    "like those of masks": ["img1", "mask1", "labels", "annotations", "train"],
    "of parts": ["train/a", "val/a", "test/b", "val/c"],
    "strange": [" lead", "100%", "a&b", "#x", "[1]", "a;b", "-x", "~"],
    "long": ["n" * 200, "ä" * 100],
}


@pytest.mark.parametrize("format", READABLE)
@pytest.mark.parametrize("what", NAMES)
def test_names(what: str, format: str, tmp_path: Path) -> None:
    if format == "cityscapes" and what == "long":
        pytest.skip("city and frame are repeated in the name, which would be too long for a file")
    assert convert(simple_set(format, NAMES[what]), format, tmp_path / "set") == []


@pytest.mark.parametrize("format", READABLE)
@pytest.mark.parametrize("prefixed", [True, False])
def test_parts(prefixed: bool, format: str, tmp_path: Path) -> None:
    parts = ["train", "val", "train", "val"]
    names = [
        f"{part}/{name}" if prefixed else name for part, name in zip(parts, "aabc" if prefixed else "abcd", strict=True)
    ]
    source = simple_set(format, names, extras=[{"split": part} for part in parts])
    assert convert(source, format, tmp_path / "set") == []


HIDDEN = {"voc", "segmentation_mask", "yolo", "labelme", "image_folder", "ade20k"}
UNREADABLE = {".x": HIDDEN, ".d/y": HIDDEN, "a\nb": {"voc", "segmentation_mask"}, "classes": {"yolo"}}


@pytest.mark.parametrize(("format", "name"), [(format, name) for name, each in UNREADABLE.items() for format in each])
def test_names_that_would_not_be_found_again(format: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rename"):
        write_dataset(simple_set(format, [name, "b"]), tmp_path / "set", format)
    assert list(tmp_path.iterdir()) == []


CLASS_NAMES = ["two words", "ß", "1", "yes", "null", "a'b\"c", "<&>", "a, b"]


@pytest.mark.parametrize("format", [each for each in READABLE if each not in FIXED])
def test_classes(format: str, tmp_path: Path) -> None:
    for number, name in enumerate(CLASS_NAMES):
        categories = Categories([Category(1, name), Category(2, "other")])
        assert convert(simple_set(format, ["a", "b"], categories), format, tmp_path / str(number)) == []
    rich = [replace(each, name=each.name.replace(": ", " ")) for each in RICH]
    assert convert(simple_set(format, ["a", "b"], Categories(rich)), format, tmp_path / "rich") == []
    counted = Categories([Category(i, f"class {i:02}") for i in range(12)])
    assert convert(simple_set(format, ["a", "b"], counted), format, tmp_path / "counted") == []


@pytest.mark.parametrize(
    ("format", "name"),
    [
        *(("segmentation_mask", name) for name in ("", "a:b", "#a", "background", "ignored", " a", "a\nb")),
        *(("voc", name) for name in ("", " a", "a\nb")),
        *(("labelme", name) for name in ("", " a", "a\nb", "__ignore__")),
        *(("image_folder", name) for name in ("", "a/b", "..", "a\nb")),
        ("cvat", ""),
    ],
)
def test_class_names_that_would_mean_something_else(format: str, name: str, tmp_path: Path) -> None:
    categories = Categories([Category(1, name), Category(2, "other")])
    with pytest.raises(InputError):
        write_dataset(simple_set(format, ["a", "b"], categories), tmp_path / "set", format)
    assert list(tmp_path.iterdir()) == []


EXTRAS: list[dict[str, Any]] = [
    {},
    {"text": "x \"<&>' ä", "nothing": None, "share": 0.1, "flag": True, "list": [1, "2", []], "": ""},
    {"nested": {"k": {"z": [None]}}, "license": 3, "a b": "c d", "zeile": "a\nb", "k.k": 1, "été": "é"},
    {"name": "x", "filename": "f", "folder": "g", "source": {"database": "d"}, "object": [], "imsize": 3},
    {"segmented": "q", "annotations": 4, "kind": "k", "category": 1, "subset": "s", "extra": [1], "version": "1"},
]


@pytest.mark.parametrize("format", READABLE)
def test_further_columns_of_images(format: str, tmp_path: Path) -> None:
    source = simple_set(format, [f"im{i}" for i in range(len(EXTRAS))], extras=EXTRAS)
    assert convert(source, format, tmp_path / "set") == []


TAKEN = ["id", "area", "label", "score", "occluded", "difficult", "pose", "parts", "shape", "source", "z_order", "name"]
TAKEN += ["group_id", "flags", "description", "shape_type", "attributes", "category", "bbox", "polygon", "points", ""]


@pytest.mark.parametrize("format", ["cvat", "voc", "labelme", "ade20k", "label_images"])
@pytest.mark.parametrize("values", [["u", "v"], [3, 4], [True, False], [None, {"q": [1]}]], ids=str)
def test_attributes_that_are_called_like_a_formats_own(format: str, values: list[Any], tmp_path: Path) -> None:
    (segments,), tasks = simple(format, PLAIN, 1)
    taken = [name for name in TAKEN if name != "label" or type(values[0]) is not bool]
    given = {name: attribute_column(values) for name in taken}
    if format == "labelme":
        # A truth value or a number is what its column holds then; `shape_type` is told by the outline.
        given = {name: column for name, column in given.items() if name != "shape_type"}
    if format == "ade20k":
        given = {name: column for name, column in given.items() if name not in {"polygon", "id"}}
    source = dataset(
        [Segments(SIZE, segments.category, segments.geometry, attributes=given)], PLAIN, tasks, names=["a"]
    )
    assert convert(source, format, tmp_path / "set") == []


IMAGES = [
    np.random.default_rng(0).integers(0, 256, (*SIZE, 1), np.uint8),
    np.random.default_rng(1).integers(0, 256, (*SIZE, 4), np.uint8),
    np.random.default_rng(2).integers(0, 2**16, (*SIZE, 1), np.uint16),
    np.random.default_rng(3).integers(0, 2**16, (*SIZE, 3), np.uint16),
    np.random.default_rng(4).random((*SIZE, 1)).astype(np.float32),
    np.random.default_rng(5).random((*SIZE, 5)),
]


@pytest.mark.parametrize("format", [each for each in READABLE if each != "cityscapes"])
def test_images_of_any_kind(format: str, tmp_path: Path) -> None:
    source = simple_set(format, [f"im{i}" for i in range(len(IMAGES))], images=IMAGES)
    assert convert(source, format, tmp_path / "set") == []


@pytest.mark.parametrize("format", [each for each in READABLE if each not in {"cityscapes", "ctc"}])
def test_image_files_stay_as_they_are(format: str, tmp_path: Path) -> None:
    """Byte by byte: a JPEG that EXIF turns, with an upper-case suffix, and a palette PNG."""
    turned = Image.fromarray(IMAGES[0][..., 0].T.copy())
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned clockwise
    turned.save(tmp_path / "turned.JPG", exif=exif)
    Image.fromarray(IMAGES[0][..., 0]).convert("P").save(tmp_path / "palette.png")
    source = simple_set(format, ["turned", "palette"])
    files = [tmp_path / "turned.JPG", tmp_path / "palette.png"]
    from everymask.formats.images import read_image

    kept = [
        replace(each, path=file, read_image=lambda file=file: read_image(file))
        for each, file in zip(source, files, strict=True)
    ]
    source = Dataset.of(kept, source.categories, source.tasks)
    assert convert(source, format, tmp_path / "set") == []
    written = {each.path.read_bytes() for each in open_dataset(tmp_path / "set") if each.path is not None}
    assert written == {file.read_bytes() for file in files}


@pytest.mark.parametrize("format", ["voc", "segmentation_mask", "labelme", "ade20k"])
def test_images_alone_are_no_data_set(format: str, tmp_path: Path) -> None:
    source = dataset([None, None], PLAIN, INSTANCES, names=["a", "b"])
    with pytest.raises(InputError, match="no image of the data set is annotated"):
        write_dataset(source, tmp_path / "set", format)
    assert list(tmp_path.iterdir()) == []


# -- there and back ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", READABLE)
@pytest.mark.parametrize("kind", ["polygons with attributes", "maps with attributes", "boxes with score", "tags"])
def test_the_second_conversion_changes_nothing(kind: str, format: str, tmp_path: Path) -> None:
    """What a format has read it writes without a loss, nothing excepted: all of it has a place there."""
    source = make(kind, format, 3)
    said = {each.what for each in find_losses(source, describe(format))}
    if said & NOT_EVEN_LOSSY or (format == "image_folder" and kind != "tags"):
        pytest.skip("is refused, as tested above")
    overlap = {"overlap": "last"} if Feature.OVERLAP in said and format not in {"cvat", "labelme", "coco"} else {}
    write_dataset(source, tmp_path / "first", format, **overlap)
    first = open_dataset(tmp_path / "first")
    assert find_losses(first, describe(format)) == []
    write_dataset(first, tmp_path / "second", format)
    second = open_dataset(tmp_path / "second")
    assert list(differences(first, second, set())) == []
    assert [each.name for each in first] == [each.name for each in second]
    assert [each.extra for each in first] == [each.extra for each in second]


# -- real data sets ----------------------------------------------------------------------------------------------------

REAL: dict[str, tuple[str, Sequence[int], dict[str, Any]]] = {
    "ADE20K": ("ade20k/ADE20K_2021_17_01", [1], {}),
    "ADE20K polygons": ("ade20k/ADE20K_2021_17_01", [1], {"geometry": "polygons"}),
    "CamVid": ("camvid", [0, 400], {}),
    "CIFAR": ("cifar10", [0, 60, 700, 2000], {}),
    "COCO": ("coco/tiny160", [0, 3, 100, 159], {}),
    "COCO panoptic": ("coco/panoptic2", [0, 1], {}),
    "Cell Tracking Challenge": ("ctc/Fluo-N2DH-SIM+", [0, 1], {"annotation": "both"}),
    "fruits": ("detection/fruits_nuts", [0, 17, 5], {}),
    "nuclei": ("dsb2018", [0, 581], {}),
    "bacteria": ("microscopy/omnipose", [0, 6], {}),
    "VOC boxes": ("voc/detection", [0, 1, 2], {}),
    "VOC masks": ("voc/instance", [0, 1, 2], {}),
    "voc100 COCO": ("detection/voc100/gts/coco_format_v2/instances_v2.json", [0, 99, 50], {}),
    "voc100 CVAT": ("detection/voc100/gts/cvat_format", [0, 99, 50], {}),
    "voc100 labelme": ("detection/voc100/gts/labelme_format", [0, 99, 50], {}),
    "voc100 VOC": ("detection/voc100/gts/pascalvoc_format", [0, 99, 50], {}),
    "voc100 YOLO": ("detection/voc100/gts/yolo_format", [0, 99, 50], {}),
}
TAKES_ANY_CLASS = [each for each in READABLE if each not in {"cityscapes", "coco_stuff", "image_folder"}]


@pytest.mark.parametrize("name", REAL)
def test_real_data_sets(shared_data: Path, name: str, tmp_path: Path) -> None:
    path, chosen, reading = REAL[name]
    source = open_dataset(shared_data / path, **reading)
    source = source.subset(chosen)
    few = {"CIFAR": ["image_folder", "cvat"], "ADE20K": ["ade20k", "voc", "label_images"]}  # the latter's are large
    for format in few.get(name, TAKES_ANY_CLASS):
        said = {each.what for each in find_losses(source, describe(format))}
        if said & NOT_EVEN_LOSSY:
            continue
        options = {"annotation": "both"} if format == source.format == "ctc" else {}
        found = convert(source, format, tmp_path / format, **options)
        assert found == [], (format, found)


def test_cityscapes(shared_data: Path, tmp_path: Path) -> None:
    source = open_dataset(shared_data / "cityscapes")
    chosen = [i for i, each in enumerate(source) if each.read_segments is not None and each.path is not None][:2]
    source = source.subset(chosen)
    assert BACKGROUND not in describe("cityscapes").carries
    assert convert(source, "cityscapes", tmp_path / "cityscapes") == []
    assert convert(source, "label_images", tmp_path / "label_images") == []
    assert convert(source, "coco", tmp_path / "coco") == []
