"""COCO-Stuff in its two kinds, by hand-made files and by round trips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from everymask.errors import InputError
from everymask.formats import open_dataset, write_dataset
from everymask.formats.coco_stuff_classes import stuff_categories
from everymask.types import Categories, Dataset, LabelMap, Sample, Segments, Task


def save(path: Path, values: object, mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(values, np.uint8))
    if mode == "P":
        # An indexed image, as the authors' own files are.
        image.putpalette(list(range(256)) * 3)
    image.save(path)


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    for part in ("train2017", "val2017"):
        save(tmp_path / f"images/{part}/000000000009.jpg", np.zeros((2, 3)))
        save(tmp_path / f"stuffthingmaps/{part}/000000000009.png", [[0, 181, 255], [12, 91, 91]], "P")
    return tmp_path


def test_the_list_of_classes() -> None:
    classes = stuff_categories()
    assert len(classes) == 171
    assert sum(each.is_thing for each in classes) == 80
    assert classes.ids.tolist() == sorted({*range(1, 183)} - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91})
    # spots along the authors' list
    spots = {1: "person", 13: "stop sign", 46: "wine glass", 67: "dining table", 90: "toothbrush", 92: "banner"}
    spots |= {110: "desk-stuff", 133: "mirror-stuff", 157: "sky-other", 173: "wall-other", 182: "wood"}
    assert {number: classes.by_id(number).name for number in spots} == spots
    assert stuff_categories(things=False).ids.tolist() == list(range(92, 184))


def test_things_and_stuff_in_parts(maps: Path) -> None:
    dataset = open_dataset(maps)
    assert dataset.format == "coco_stuff"
    assert dataset.tasks == {Task.SEMANTIC}
    assert [sample.name for sample in dataset] == ["train2017/000000000009", "val2017/000000000009"]
    segments = dataset[0].segments
    assert segments is not None
    assert segments.semantic_map(void=-1).tolist() == [[1, 182, -1], [13, 92, 92]]
    assert dataset[1].image.shape == (2, 3, 1)
    for path in (maps / "stuffthingmaps", maps / "stuffthingmaps/val2017"):
        assert open_dataset(path)[-1].path == maps.resolve() / "images/val2017/000000000009.jpg"
    assert len(open_dataset(maps, split="val")) == 1
    with pytest.raises(InputError, match="has no part 'test'; it has train2017, val2017"):
        open_dataset(maps, split="test")


def test_official_folders_and_pixelmaps(maps: Path) -> None:
    (maps / "stuffthingmaps").rename(maps / "annotations")
    dataset = open_dataset(maps)
    assert (dataset.format, len(dataset)) == ("coco_stuff", 2)
    stuff = maps / "stuff"
    save(stuff / "stuff_val2017_pixelmaps/000000000009.png", [[92, 183, 0], [182, 92, 92]], "P")
    save(stuff / "images/val2017/000000000009.jpg", np.zeros((2, 3)))
    dataset = open_dataset(stuff)
    assert dataset.categories.names[-1] == "other"
    segments = dataset[0].segments
    assert segments is not None
    assert segments.semantic_map(void=-1).tolist() == [[92, 183, -1], [182, 92, 92]]
    wrong = open_dataset(stuff, zero_based=True)
    with pytest.raises(InputError, match=r"holds the value 0, .* if they are not, say zero_based=False"):
        _ = wrong[0].segments


def test_missing_images_and_other_layouts(maps: Path) -> None:
    (maps / "images/val2017/000000000009.jpg").unlink()
    with pytest.raises(InputError, match=r"val2017: 1 of 1 maps have no image in .*the first is 000000000009"):
        open_dataset(maps)
    assert len(open_dataset(maps, missing_images="skip")) == 1
    kept = open_dataset(maps, missing_images="keep")[1]
    assert kept.segments is not None
    with pytest.raises(InputError, match="does not exist"):
        _ = kept.image
    save(maps / "images/val2017/000000000009.jpg", np.zeros((3, 3)))
    with pytest.raises(InputError, match="has size 2 x 3, but its image"):
        _ = open_dataset(maps)[1].segments
    (maps / "other/annotations/train2017").mkdir(parents=True)
    save(maps / "other/annotations/train2017/first.png", [[1]])
    with pytest.raises(InputError, match="has no maps of COCO-Stuff"):
        open_dataset(maps / "other", "coco_stuff")


@pytest.mark.parametrize("parts", [True, False])
def test_round_trips(parts: bool, tmp_path: Path) -> None:
    generator = np.random.default_rng(parts)
    classes = stuff_categories()
    samples = []
    for number in range(4):
        ids = generator.integers(-1, 6, (7, 9))
        ids[ids == 0] = -1
        chosen = np.sort(generator.choice(classes.ids, 5, replace=False))
        segments = Segments((7, 9), chosen, LabelMap(ids))
        name = f"{'val' if number % 2 else 'train'}2017/{number}" if parts else f"{number}"
        samples.append(Sample(name, lambda: np.zeros((7, 9, 1), np.uint8), lambda segments=segments: segments))
    write_dataset(Dataset.of(samples, classes, frozenset({Task.SEMANTIC})), tmp_path / "out", "coco_stuff")
    again = {sample.name: sample for sample in open_dataset(tmp_path / "out")}
    assert set(again) == {sample.name for sample in samples}
    for sample in samples:
        one, two = sample.segments, again[sample.name].segments
        assert one is not None
        assert two is not None
        assert np.array_equal(one.semantic_map(), two.semantic_map())


def test_what_cannot_be_written(tmp_path: Path) -> None:
    sample = Sample("a", lambda: np.zeros((4, 5, 1), np.uint8), lambda: Segments((4, 5), [1], box=[[0, 0, 1, 1]]))
    dataset = Dataset.of([sample], Categories(["car"]), frozenset({Task.SEMANTIC}))
    with pytest.raises(InputError, match=r"the category 'car' with id 1 is none of the fixed list .*\(id 1: person\)"):
        write_dataset(dataset, tmp_path / "out", "coco_stuff")
    dataset = Dataset.of([sample], Categories(["person"]), frozenset({Task.SEMANTIC}))
    with pytest.raises(InputError, match="a is a volume or has boxes or tags only"):
        write_dataset(dataset, tmp_path / "out", "coco_stuff")
