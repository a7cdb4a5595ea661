"""The classifier: whole images with tags through loader, network and metric, and the weights of other programs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from everymask.cli import main
from everymask.data.augment import Augmentation
from everymask.data.loader import Crops, Draw, Store
from everymask.data.preprocessing import Preprocessing
from everymask.errors import InputError
from everymask.formats import open_dataset
from everymask.methods.classify.classifier import Classifier
from everymask.methods.foreign import load_foreign
from everymask.model import Model
from everymask.types import Categories, Dataset, Sample, Segments, Task

GREY = Preprocessing(channels=1, normalise="scale")


def tagged(images: list[np.ndarray], labels: list[int], names: tuple[str, ...] = ("a", "b")) -> Dataset:
    samples = [
        Sample(f"image {i}", lambda image=image: image, lambda image=image, tag=tag: Segments(image.shape[:2], [tag]))
        for i, (image, tag) in enumerate(zip(images, labels, strict=True))
    ]
    return Dataset.of(samples, Categories(names), frozenset({Task.CLASSIFICATION}))


def make_folder(folder: Path, count: int = 6, size: tuple[int, int] = (40, 56)) -> Path:
    """Photographs of stripes that lie or stand, in folders of these classes."""
    random = np.random.default_rng(0)
    for part, number in (("train", count), ("val", 3)):
        for name in ("lying", "standing"):
            for i in range(number):
                rows, columns = np.indices(size)
                wave = np.sin((rows if name == "lying" else columns) * 1.2 + random.uniform(0, 6))
                pixels = (128 + 90 * wave + random.normal(0, 8, size)).clip(0, 255).astype(np.uint8)
                (folder / part / name).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).convert("RGB").save(folder / part / name / f"{i}.png")
    return folder


# -- loader ------------------------------------------------------------------------------------------------------------


def test_validation_sees_the_whole_image_in_the_size_of_the_crop() -> None:
    image = np.random.default_rng(0).integers(0, 256, (30, 50, 1)).astype(np.uint8)
    data = tagged([image], [2])
    crops = Crops(Store(data, GREY, data.categories, 10**8), lambda segments: {}, crop=16)
    found, segments = crops.cut(Draw(0, 0))
    whole = torch.from_numpy(image.astype(np.float32) / 255).permute(2, 0, 1)[None]
    expected = functional.interpolate(whole, size=(16, 16), mode="bilinear", antialias=True)[0]
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)
    assert segments.category.tolist() == [1] and segments.geometry is None and segments.size == (16, 16)


def test_training_sees_random_windows_turned_and_mirrored() -> None:
    rows, columns = np.indices((60, 90))
    image = np.stack([rows, columns], axis=-1).astype(np.uint8)
    data = tagged([image], [1])
    preprocessing = Preprocessing(channels=2, normalise="scale")
    augmentation = Augmentation(flip="mirror", scale=(1.0, 3.0))
    store = Store(data, preprocessing, data.categories, 10**8)
    crops = Crops(store, lambda segments: {}, crop=20, augmentation=augmentation, seed=3)
    shares, mirrored = [], 0
    for position in range(200):
        found = crops.cut(Draw(0, position))[0] * 255
        high = (found[0, -1, 0] - found[0, 0, 0]) / 19 * 20 / 60
        wide = (found[1, 0, -1] - found[1, 0, 0]) / 19 * 20 / 90
        mirrored += wide < 0
        shares.append((high, abs(wide)))
        assert found[0].min() >= -1 and found[0].max() <= 60 and found[1].max() <= 90
        assert high > 0  # never upside down
    high, wide = np.array(shares).T
    assert 70 < mirrored < 130
    # Sides are 1 / scale of the image's, the proportions up to 4 : 3.
    assert 0.25 < min(high.min(), wide.min()) < 0.4 and 0.85 < max(high.max(), wide.max()) < 1.02
    assert 0.7 < (high / wide).min() < 0.85 and 1.15 < (high / wide).max() < 1.4


def test_without_magnification_the_window_is_the_image() -> None:
    assert Augmentation().draw_window((7, 9), np.random.default_rng(0)) == (slice(0, 7), slice(0, 9))
    assert Augmentation(scale=(0.5, 0.5)).draw_window((7, 9), np.random.default_rng(0)) == (slice(0, 7), slice(0, 9))
    rows, columns = Augmentation(scale=(2.0, 2.0)).draw_window((8, 10), np.random.default_rng(0))
    assert (rows.stop - rows.start, columns.stop - columns.start) == (4, 5)


def test_a_single_pixel_is_an_image() -> None:
    data = tagged([np.full((1, 1, 1), 255, np.uint8)], [1])
    store = Store(data, GREY, data.categories, 10**8)
    crops = Crops(store, lambda segments: {}, crop=8, augmentation=Augmentation(scale=(1.0, 4.0), rotate=20))
    np.testing.assert_allclose(crops.cut(Draw(0, 0))[0], 1, rtol=1e-6)
    assert store.visits("area", (8, 8)) == [1]


# -- method ------------------------------------------------------------------------------------------------------------


def test_decoding_gives_every_class_with_its_probability_the_best_first() -> None:
    method = Classifier(classes=3, backbone="test_resnet", size=64)
    logits = torch.tensor([[0.0, 2.0, 1.0]])
    (found,) = method.decode({"classes": logits}, [(30, 40)])
    assert found.category.tolist() == [1, 2, 0] and found.geometry is None and found.size == (30, 40)
    assert found.score == pytest.approx(np.sort(torch.softmax(logits[0].double(), 0).numpy())[::-1])


def test_images_of_any_size_are_brought_to_the_size_of_the_network() -> None:
    method = Classifier(classes=2, backbone="test_resnet", size=64).eval()
    images = torch.rand(2, 3, 50, 90)
    smaller = functional.interpolate(images, size=(64, 64), mode="bilinear", antialias=True)
    with torch.inference_mode():
        torch.testing.assert_close(method(images)["classes"], method(smaller)["classes"])


def test_one_class_or_several_tags_teach_nothing() -> None:
    with pytest.raises(InputError, match="one class"):
        Classifier(classes=1, backbone="test_resnet").targets(Segments((4, 4), [0]))
    with pytest.raises(InputError, match="2 classes"):
        Classifier(classes=3, backbone="test_resnet").targets(Segments((4, 4), [0, 2]))


def test_the_loss_is_the_cross_entropy_of_torch() -> None:
    method = Classifier(classes=4, backbone="test_resnet", size=64)
    logits, target = torch.randn(5, 4), torch.tensor([0, 3, 1, 1, 2])
    terms = method.loss({"classes": logits}, {"class": target})
    assert float(terms["cross_entropy"]) == pytest.approx(float(functional.cross_entropy(logits, target)), rel=1e-6)


@pytest.mark.parametrize("backbone", ["resnet18", "efficientnet_lite0", "test_vit", "test_convnext"])
def test_classifiers_of_timm_load_and_agree(backbone: str) -> None:
    import timm

    torch.manual_seed(0)
    official = timm.create_model(backbone, num_classes=7).eval()
    size = official.pretrained_cfg["input_size"][-1]
    own = Classifier(classes=7, backbone=backbone, size=size).eval()
    load_foreign(own, official.state_dict())
    images = torch.randn(1, 3, size, size)
    with torch.inference_mode():
        torch.testing.assert_close(own(images)["classes"], official(images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backbone", ["resnet18", "convnext_tiny", "swin_t"])
def test_classifiers_of_torchvision_load_and_agree(backbone: str) -> None:
    from torchvision import models

    torch.manual_seed(0)
    official = getattr(models, backbone)(weights=None, num_classes=7).eval()
    own = Classifier(classes=7, backbone=backbone, size=224).eval()
    load_foreign(own, official.state_dict())
    images = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        expected, found = official(images), own(images)["classes"]
    assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
    other = Classifier(classes=3, backbone=backbone, size=224)
    with pytest.raises(InputError, match="new_logits"):
        load_foreign(other, official.state_dict())
    load_foreign(other, official.state_dict(), new_logits=True)


def test_the_backbone_takes_its_published_weights(tmp_path: Path) -> None:
    import timm

    official = timm.create_model("test_resnet", num_classes=10)
    torch.save(official.state_dict(), tmp_path / "weights.pth")
    model = Model("classifier", ["a", "b"], backbone="test_resnet", size=64)
    model.load_backbone(tmp_path / "weights.pth")
    own = model.method.backbone.body.state_dict()
    assert all(torch.equal(official.state_dict()[name], value) for name, value in own.items())


def test_a_size_that_the_network_does_not_take_is_told() -> None:
    with pytest.raises(InputError, match="'test_vit' takes no images of 50 x 50 pixels"):
        Classifier(classes=2, backbone="test_vit", size=50)
    with pytest.raises(InputError, match="unknown backbone"):
        Classifier(classes=2, backbone="resnet18s")


# -- training ----------------------------------------------------------------------------------------------------------


def test_folders_of_images_are_learnt_by_one_command(tmp_path: Path) -> None:
    data, out = make_folder(tmp_path / "data"), tmp_path / "run"
    options = "--backbone test_resnet --size 32 --crop 32 --batch-size 6 --epochs 12 --workers 0 --quiet"
    options += " --learning-rate 0.003 --backbone-rate 1 --warmup 0 --flip none --scale 1 1.5 --ema 0.9"
    command = ["train", "classifier", "--data", data, "--out", out, *options.split()]
    assert main([str(each) for each in command]) == 0
    model = Model.load(out / "model.safetensors")
    assert model.categories.names == ["lying", "standing"]
    evaluation = model.evaluate(open_dataset(data / "val"))
    assert evaluation.protocol == "classification" and evaluation.figures["top1"] == 1.0
    found = model.predict(np.asarray(Image.open(data / "val" / "lying" / "0.png")))
    assert model.categories.by_id(int(found.category[0])).name == "lying"
