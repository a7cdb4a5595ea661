"""What all formats share: what is lost is said first, parts are joined, images are found where people put them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from everymask.cli import main
from everymask.errors import InputError
from everymask.formats import open_dataset, recognise
from everymask.formats.description import Description, Feature
from everymask.formats.fidelity import find_losses
from everymask.formats.joining import join_parts
from everymask.formats.places import absent_images, candidates, image_folder, images_by_stem
from everymask.types import Categories, Category, Dataset, LabelMap, Polygon, Sample, Segments, Task

SIZE = (32, 40)


def ring(x: float, y: float, side: float) -> np.ndarray:
    return np.array([[x, y], [x + side, y], [x + side, y + side], [x, y + side]], float)


def without(*features: Feature, attributes: frozenset[str] | None = None) -> Description:
    return Description("", "", frozenset(Task), frozenset(Feature) - set(features), attributes)


def one(segments: Segments | None, categories: Categories = Categories(["cell"]), **extra: object) -> Dataset:  # noqa: B008
    read = None if segments is None else lambda: segments
    sample = Sample("im", lambda: np.zeros((*SIZE, 1), np.uint8), read, extra=dict(extra))
    return Dataset.of([sample], categories, frozenset({Task.INSTANCE}))


PLAIN = Segments.from_polygons(SIZE, [[Polygon(ring(5, 5, 10))]])
HOLED = Segments.from_polygons(SIZE, [[Polygon(ring(5, 5, 10), (ring(8, 8, 2),))]])
PARTED = Segments.from_polygons(SIZE, [[Polygon(ring(5, 5, 5)), Polygon(ring(20, 5, 5))]])
OVERLAPPING = Segments.from_polygons(SIZE, [[Polygon(ring(5, 5, 5))], [Polygon(ring(7, 7, 5))]])
IDS = np.zeros(SIZE, np.int32)
IDS[3:9, 3:9] = 1


@pytest.mark.parametrize(
    ("feature", "segments"),
    [
        (Feature.MASKS, PLAIN),
        (Feature.POINTS, PLAIN),
        (Feature.HOLES, HOLED),
        (Feature.HOLES, Segments(SIZE, [1], HOLED.rles())),
        (Feature.PARTS, PARTED),
        (Feature.PARTS, Segments(SIZE, [1], LabelMap(PARTED.label_map()))),
        (Feature.OVERLAP, OVERLAPPING),
        (Feature.OBJECTS, PARTED.__class__(SIZE, [1, 1], LabelMap(IDS + np.roll(2 * IDS, 15, 1)))),
        (Feature.OWN_BOXES, Segments(SIZE, [1], PLAIN.geometry, box=[[0, 0, 30, 30]])),
        (Feature.BOXES, Segments(SIZE, [1], box=[[0, 0, 30, 30]])),
        (Feature.TAGS, Segments(SIZE, [1])),
        (Feature.SCORES, Segments(SIZE, [1], PLAIN.geometry, score=[0.5])),
        (Feature.CROWDS, Segments(SIZE, [1], PLAIN.geometry, crowd=[True])),
        (Feature.VOID, Segments(SIZE, [1], LabelMap(np.where(IDS, 1, -1)))),
        (Feature.VOLUMES, Segments((2, *SIZE), [1], LabelMap(np.stack([IDS, IDS])))),
        (Feature.UNANNOTATED, None),
    ],
)
def test_each_loss_is_found_and_nothing_else(feature: Feature, segments: Segments | None) -> None:
    assert [each.what for each in find_losses(one(segments), without(feature))] == [feature]
    assert find_losses(one(segments), without()) == []


def test_losses_of_categories_images_and_attributes() -> None:
    rich = Categories([Category(7, "sky", False, (1, 2, 3), "air"), Category(3, "cell")])
    lacking = (Feature.IDS, Feature.COLOURS, Feature.SUPERCATEGORIES, Feature.STUFF)
    found = find_losses(one(PLAIN.with_category([3]), rich), without(*lacking))
    assert {each.what for each in found} == set(lacking) and all(not each.images for each in found)
    assert [str(each) for each in find_losses(one(PLAIN, licence="x"), without(Feature.EXTRA))] == [
        "further columns of images (1 image, the first is im)"
    ]
    assert find_losses(one(PLAIN, split="val"), without(Feature.EXTRA)) == []
    marked = Segments(SIZE, [1], PLAIN.geometry, attributes={"occluded": [True], "difficult": [False]})
    found = find_losses(one(marked), without(attributes=frozenset({"difficult"})))
    assert [each.what for each in found] == ["the attribute 'occluded'"]
    # A box that is that of the outline is no loss.
    tight = Segments(SIZE, [1], PLAIN.geometry, box=PLAIN.boxes())
    assert find_losses(one(tight), without(Feature.OWN_BOXES)) == []


def pairs(folder: Path, count: int = 2) -> Path:
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray((IDS * 200).astype(np.uint8)).save(folder / "images" / f"{number}.png")
        Image.fromarray((IDS * (number + 1)).astype(np.uint8)).save(folder / "masks" / f"{number}.png")
    return folder


def coco(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray((IDS * 200).astype(np.uint8)).save(folder / "a.png")
    polygons = [ring(5, 5, 10).ravel().tolist(), ring(9, 9, 10).ravel().tolist()]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": SIZE[0], "width": SIZE[1]}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 1, "bbox": [5 + 4 * i, 5 + 4 * i, 10, 10], "area": 100,
             "iscrowd": 0, "segmentation": [polygon]}
            for i, polygon in enumerate(polygons)
        ],
        "categories": [{"id": 1, "name": "cell"}],
    }  # fmt: skip
    (folder / "instances.json").write_text(json.dumps(content))
    return folder / "instances.json"


def test_convert_loses_nothing_without_being_told_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = coco(tmp_path / "coco"), tmp_path / "masks"
    assert main(["convert", str(source), str(target), "--to", "label_images"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and Feature.OVERLAP in error and Feature.POINTS in error and "--lossy" in error
    assert [each.name for each in tmp_path.iterdir()] == ["coco"]
    arguments = ["convert", str(source), str(target), "--to", "label_images", "--lossy", "--writing.overlap", "last"]
    assert main([*arguments, "--json"]) == 0
    captured = capsys.readouterr()
    assert "note: label_images has no place for" in captured.err
    assert {each["what"] for each in json.loads(captured.out)["lost"]} == {Feature.OVERLAP, Feature.POINTS}
    segments = open_dataset(target)[0].segments
    assert segments is not None and segments.areas().tolist() == [100 - 36, 100]


def test_convert_takes_options_of_formats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = pairs(tmp_path / "pairs")
    assert main(["convert", str(source), str(tmp_path / "out"), "--to", "coco", "--reading.knd", "semantic"]) == 2
    assert "did you mean 'kind'" in capsys.readouterr().err
    assert main(["convert", str(source), str(tmp_path / "out"), "--to", "coco", "--skip-missing"]) == 2
    assert "finds its images by itself" in capsys.readouterr().err


def test_formats_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["formats", "--json"]) == 0
    listed = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert listed["coco"]["reads"] and Feature.OVERLAP in listed["label_images"]["lacks"]
    assert main(["formats"]) == 0
    assert "label_images" in capsys.readouterr().out


def test_folders_called_like_parts_are_opened_as_one(tmp_path: Path) -> None:
    coco(tmp_path / "train")
    coco(tmp_path / "test")
    (tmp_path / "notes").mkdir()
    assert recognise(tmp_path) == "coco"
    joined = open_dataset(tmp_path)
    assert [sample.name for sample in joined] == ["test/a", "train/a"]
    assert [sample.extra["split"] for sample in joined] == ["test", "train"]
    assert [sample.name for sample in open_dataset(tmp_path, split="train")] == ["a"]
    with pytest.raises(InputError, match=r"part 'val'.*test.*train"):
        open_dataset(tmp_path, split="val")


def test_parts_with_other_categories_are_not_joined(tmp_path: Path) -> None:
    first, second = one(PLAIN), one(PLAIN, Categories(["dog"]))
    with pytest.raises(InputError, match="train and val have different categories"):
        join_parts({"train": first, "val": second}, tmp_path)


def test_images_are_found_beside_and_above_their_annotations(tmp_path: Path) -> None:
    for folder in ("set/labels/train", "set/images/train", "set/JPEGImages"):
        (tmp_path / folder).mkdir(parents=True)
    Image.fromarray(IDS.astype(np.uint8)).save(tmp_path / "set/images/train/ä.PNG")
    source = tmp_path / "set" / "labels" / "train"
    places = candidates(source, ["train"])
    assert places[0] == source and tmp_path / "set/images/train" in places
    assert image_folder(source, ["ä.PNG"], places) == tmp_path / "set/images/train"
    assert images_by_stem(source, ["ä"], places) == (tmp_path / "set/images/train", {"ä": "ä.PNG"})
    Image.fromarray(IDS.astype(np.uint8)).save(tmp_path / "set/images/train/ä.jpg")
    with pytest.raises(InputError, match="share a name"):
        images_by_stem(source, ["ä"], places)


def test_missing_images_are_listed(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.fromarray(IDS.astype(np.uint8)).save(tmp_path / "images" / "0.png")
    names = [f"{number}.png" for number in range(5)]
    with pytest.raises(InputError, match=r"4 of 5 images are missing in .*: 1.png, 2.png, 3.png ...; .*--skip-missing"):
        image_folder(tmp_path / "x.json", names, candidates(tmp_path))
    assert image_folder(tmp_path / "x.json", names, candidates(tmp_path), missing="skip") == tmp_path / "images"
    assert absent_images(tmp_path / "images", names) == names[1:]
    with pytest.raises(InputError, match="none of its images is found"):
        image_folder(tmp_path / "x.json", ["a.png"], candidates(tmp_path))
    with pytest.raises(InputError, match="must be one of error, keep, skip"):
        image_folder(tmp_path / "x.json", [], [], missing="ignore")


def test_a_data_set_with_its_own_parts_trains_and_validates_on_them(tmp_path: Path) -> None:
    from everymask.data.parts import hold_out

    for part in ("train", "val"):
        coco(tmp_path / part)
    training, validation = hold_out(open_dataset(tmp_path))
    assert [sample.name for sample in training] == ["train/a"] and [each.name for each in validation] == ["val/a"]
