"""Fast R-CNN: outputs and losses of torchvision's parts, regions of selective search, and what training needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from proposal_toys import QUICK, scene, scenes
from torch import Tensor, nn
from torchvision.models import resnet18, vgg11
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.vgg import cfgs, make_layers
from torchvision.ops import box_iou, roi_pool

from everymask.backbones.weights import load_backbone
from everymask.data.loader import Crops, batches, collate
from everymask.data.sampling import CropStream, Draw
from everymask.data.store import Store
from everymask.errors import InputError
from everymask.methods.detection.fast_rcnn import FastRCNN
from everymask.methods.detection.proposals import numbered
from everymask.methods.foreign import load_foreign
from everymask.model import Model
from everymask.ops.selective_search import selective_search
from everymask.types import Segments

CLASSES, HIDDEN, SIZE = 3, 32, (96, 128)


class Pool(nn.Module):
    """torchvision's RoI max pooling in the place of its RoIAlign."""

    def forward(self, features: dict[str, Tensor], boxes: list[Tensor], _: list[tuple[int, int]]) -> Tensor:
        return roi_pool(features["0"], boxes, 7, 1 / 16)


def official(kind: str, **options: Any) -> tuple[nn.Sequential, RoIHeads]:
    """Backbone and second stage of torchvision, with decisive random weights."""
    torch.manual_seed(0)
    if kind == "vgg11":
        body, width = make_layers(cfgs["A"])[:-1], 512
    else:
        whole = resnet18(weights=None)
        body, width = nn.Sequential(*list(whole.children())[:-3]), 256
    predictor = FastRCNNPredictor(HIDDEN, CLASSES + 1)
    predictor.cls_score.weight.data *= 20
    given = {"fg_iou_thresh": 0.5, "bg_iou_thresh": 0.5, "batch_size_per_image": 64, "positive_fraction": 0.25}
    given |= {"bbox_reg_weights": None, "score_thresh": 0.05, "nms_thresh": 0.5, "detections_per_img": 100}
    heads = RoIHeads(Pool(), TwoMLPHead(width * 49, HIDDEN), predictor, **(given | options))
    return body.eval(), heads.eval()


def ours_like(kind: str, body: nn.Sequential, heads: RoIHeads, **options: Any) -> FastRCNN:
    """Our method with the same weights."""
    method = FastRCNN(CLASSES, backbone=kind, hidden=HIDDEN, **options)
    own = {name for name in method.backbone.body.state_dict() if not name.endswith("num_batches_tracked")}
    names = ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3"]
    prefixes = {str(index): name for index, name in enumerate(names)} if kind == "resnet18" else {}
    state = {}
    for name, value in body.state_dict().items():
        first, _, rest = name.partition(".")
        state[f"{prefixes[first]}.{rest}" if prefixes else f"features.{name}"] = value
    assert own <= state.keys()
    method.backbone.body.load_state_dict(state)
    for layer, of in ((1, heads.box_head.fc6), (3, heads.box_head.fc7)):
        method.box_head[layer].load_state_dict(of.state_dict())
    method.box_predictor.score.load_state_dict(heads.box_predictor.cls_score.state_dict())
    moves = heads.box_predictor.bbox_pred.state_dict()
    method.box_predictor.offsets.load_state_dict({name: value[4:] for name, value in moves.items()})
    return method.eval()


def small(classes: int = 1, **options: Any) -> FastRCNN:
    return FastRCNN(classes, **({"backbone": "resnet10t", "hidden": HIDDEN, "proposals": 60} | options))


def random_regions(images: int, number: int = 40) -> list[Tensor]:
    random = torch.Generator().manual_seed(3)
    corners = torch.rand(images, number, 2, 2, generator=random) * torch.tensor([SIZE[1] - 20, SIZE[0] - 20])
    low, high = corners.amin(2), corners.amax(2) + 12
    return list(torch.cat([low, high], -1))


def boxes_of(images: int) -> dict[str, list[Tensor]]:
    boxes = [torch.tensor([[10.0, 12, 60, 50], [40, 20, 120, 90]]), torch.tensor([[5.0, 30, 50, 91]])]
    classes = [torch.tensor([0, 2]), torch.tensor([1])]
    none = [torch.zeros(len(each), dtype=torch.bool) for each in boxes]
    return {"boxes": boxes[:images], "classes": classes[:images], "crowd": none[:images]}


# -- torchvision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vgg11", "resnet18"])
def test_detections_are_those_of_the_parts_of_torchvision(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    body, heads = official(kind)
    method = ours_like(kind, body, heads)
    images = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    regions = random_regions(2)
    monkeypatch.setattr(method, "regions_of", lambda *_: numbered(regions))
    with torch.inference_mode():
        features = body(images)
        pooled = heads.box_roi_pool({"0": features}, regions, [SIZE] * 2)
        logits, moves = heads.box_predictor(heads.box_head(pooled))
        expected, _ = heads({"0": features}, regions, [SIZE] * 2)
        own = method.second_stage(method.backbone(images)[0], numbered(regions))
        found = method(images)
    torch.testing.assert_close(method.backbone(images)[0], features, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(own[0], logits, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(own[1].flatten(1), moves[:, 4:], atol=1e-4, rtol=1e-5)
    assert sum(len(each["boxes"]) for each in expected) > 10
    for image, each in enumerate(expected):
        number = len(each["boxes"])
        assert int((found["scores"][image] > 0).sum()) == number
        torch.testing.assert_close(found["boxes"][image, :number], each["boxes"], atol=1e-3, rtol=1e-5)
        torch.testing.assert_close(found["scores"][image, :number], each["scores"], atol=1e-4, rtol=0)
        assert torch.equal(found["classes"][image, :number] + 1, each["labels"])
    segments = method.decode(found, [SIZE] * 2)
    assert [len(each) for each in segments] == [len(each["boxes"]) for each in expected]


def test_losses_are_those_of_torchvision() -> None:
    """So few regions that both look at all of them, the true boxes among them."""
    body, heads = official("vgg11", batch_size_per_image=400, positive_fraction=1.0)
    method = ours_like("vgg11", body, heads, samples=1600, least_background=0.0)
    images, regions = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(1)), random_regions(2)
    targets = boxes_of(2)
    truth = [
        {"boxes": boxes, "labels": classes + 1}
        for boxes, classes in zip(targets["boxes"], targets["classes"], strict=True)
    ]
    _, expected = heads.train()({"0": body(images)}, regions, [SIZE] * 2, truth)
    found = method.training_loss(images, targets | {"regions": regions})
    assert found.keys() == {"classes", "boxes"}
    torch.testing.assert_close(found["classes"], expected["loss_classifier"], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(found["boxes"], expected["loss_box_reg"], atol=1e-4, rtol=1e-5)
    assert float(found["boxes"].detach()) > 0


def test_both_layers_of_vgg_begin_the_head(tmp_path: Path) -> None:
    with torch.device("meta"):
        whole = vgg11(weights=None)
        method = FastRCNN(CLASSES, backbone="vgg11")
        found = method.foreign(whole.state_dict())
    own = {name: value.shape for name, value in method.state_dict().items()}
    assert own.keys() - found.keys() == {name for name in own if name.startswith("box_predictor.")}
    assert all(own[name] == value.shape for name, value in found.items())
    timm = {"pre_logits.fc1.weight": torch.arange(2.0 * 3 * 49).reshape(2, 3, 7, 7), "head.fc.weight": torch.zeros(1)}
    renamed = method.foreign(timm)
    assert renamed.keys() == {"box_head.1.weight"}
    windows = torch.randn(5, 3, 7, 7)
    expected = nn.functional.conv2d(windows, timm["pre_logits.fc1.weight"]).flatten(1)
    torch.testing.assert_close(windows.flatten(1) @ renamed["box_head.1.weight"].T, expected, atol=1e-2, rtol=1e-4)
    again, other = small(1), small(2)
    load_foreign(again, other.state_dict(), new_logits=True)
    assert torch.equal(again.box_head[1].weight, other.box_head[1].weight)
    path = tmp_path / "vgg.pth"
    torch.manual_seed(0)
    network = nn.ModuleDict({"features": make_layers(cfgs["A"])})
    torch.save(network.state_dict(), path)
    shallow = FastRCNN(1, backbone="vgg11", hidden=8)
    load_backbone(shallow.backbone, path)
    assert torch.equal(
        shallow.backbone.body.state_dict()["features.0.weight"], network.state_dict()["features.0.weight"]
    )


# -- regions -----------------------------------------------------------------------------------------------------------


def test_regions_are_those_of_the_picture_and_lie_in_it() -> None:
    method = small(2, proposals=200)
    image, truth = scene(0)
    network_input = torch.from_numpy(method.preprocessing_of()(image))
    framed = torch.zeros(3, 128, 160)
    framed[:, 5:101, 9:105] = network_input
    plain, moved = method.of_image(network_input)["regions"], method.of_image(framed)["regions"]
    assert torch.equal(plain + torch.tensor([9, 5, 9, 5]), moved)
    assert plain.amin() == 0 and plain.amax() == 96 and len(plain) <= 200
    assert box_iou(torch.from_numpy(truth.boxes()).float(), plain).amax(1).min() > 0.7
    # The stretch of the contrast takes 1 % at both ends.
    low, high = np.percentile(image, [1, 99])
    stretched = np.clip((image - low) / (high - low), 0, 1)
    expected = selective_search(stretched, most=200)
    assert (box_iou(torch.from_numpy(expected), plain).amax(1) > 0.8).float().mean() > 0.8
    # In a dark picture, whatever its preprocessing, the objects are found as well.
    darker = method.of_image(0.2 * network_input - 0.3)["regions"]
    assert box_iou(torch.from_numpy(truth.boxes()).float(), darker).amax(1).min() > 0.7


def test_large_images_are_searched_reduced() -> None:
    image, truth = scene(1)
    large = torch.from_numpy(image.repeat(3, 0).repeat(4, 1)).permute(2, 0, 1) / 60.0 - 1
    method = small(1, proposals=500, search_side=96)
    regions = method.of_image(large)["regions"]
    assert regions.amin() == 0 and regions[:, 2:].amax(0).tolist() == [384, 288]
    boxes = torch.from_numpy(truth.boxes() * [4, 3, 4, 3]).float()
    assert box_iou(boxes, regions).amax(1).min() > 0.6
    whole = small(1, proposals=5000, search_side=0)
    assert len(whole.of_image(large)["regions"]) > len(regions)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_loader_finds_the_regions(workers: int) -> None:
    method = small(2)
    store = Store(scenes(3), method.preprocessing_of(), scenes(1).categories, 10**8, learns_from="boxes")
    crops = Crops(store, method.targets, of_image=method.of_image, crop=64, fill=0.0, seed=1)
    expected_images, expected = collate([crops[Draw(index, index)] for index in range(3)], method.ragged)
    stream = CropStream(3, 3, batches=1, visits=[1, 1, 1], seed=0)
    (found,) = list(batches(crops, stream, workers=workers, ragged=method.ragged))
    assert {"regions", "boxes", "classes", "crowd"} == found[1].keys() == expected.keys()
    for image, regions in zip(found[0], found[1]["regions"], strict=True):
        assert torch.equal(regions, method.of_image(image)["regions"]) and len(regions) > 4
    # With them the method does not search itself.
    torch.manual_seed(0)
    with_regions = method.training_loss(expected_images, expected)
    torch.manual_seed(0)
    del expected["regions"]
    without = method.training_loss(expected_images, expected)
    assert all(torch.equal(with_regions[name], without[name]) for name in without)


def test_regions_at_the_last_pixels_have_features() -> None:
    method = small(1).eval()
    features = torch.rand(1, 256, 4, 5) + 1
    corner, row = [0, 78, 61, 80, 64], [0, 16, 57, 64, 64]
    logits, _ = method.second_stage(features, torch.tensor([corner, row], dtype=torch.float32))
    whole_cells = torch.tensor([[0.0, 64, 48, 80, 64], [0, 16, 48, 64, 64]])
    pooled = roi_pool(features, whole_cells, 7, 1 / 16)
    assert (pooled > 0).flatten(1).any(1).all()
    torch.testing.assert_close(logits, method.box_predictor(method.box_head(pooled))[0])
    assert not roi_pool(features, torch.tensor([corner], dtype=torch.float32), 7, 1 / 16).any()


def test_background_is_taken_near_objects_first() -> None:
    method = small(1, samples=8, least_background=0.1)
    boxes = torch.tensor([[20.0, 20, 60, 60]])
    near = torch.tensor([[30.0, 30, 70, 70], [20, 20, 60, 90]])
    far = torch.tensor([[70.0, 70, 90, 90]]).repeat(20, 1) + torch.arange(20.0)[:, None]
    chosen = method._instructive(torch.cat([far, near]), boxes)
    assert torch.equal(chosen[:2], near) and len(chosen) == 8
    many = near.repeat(10, 1)
    assert torch.equal(method._instructive(torch.cat([far, many]), boxes), many)
    assert len(method._instructive(far, torch.zeros(0, 4))) == 20


# -- odd cases ---------------------------------------------------------------------------------------------------------


def test_images_without_objects_or_regions_train() -> None:
    torch.manual_seed(0)
    method = small(2).train()
    images = torch.randn(2, 3, 64, 64)
    none = {"boxes": [torch.zeros(0, 4)] * 2, "classes": [torch.zeros(0, dtype=torch.int64)] * 2}
    none["crowd"] = [torch.zeros(0, dtype=torch.bool)] * 2
    for regions in ([torch.tensor([[3.0, 4, 40, 50]]), torch.zeros(0, 4)], [torch.zeros(0, 4)] * 2):
        terms = method.training_loss(images, none | {"regions": regions})
        assert float(terms["boxes"].detach()) == 0 and all(torch.isfinite(each) for each in terms.values())
        sum(terms.values(), torch.zeros(())).backward()
    crowd = method.targets(Segments((64, 64), [0], box=[[0, 0, 64, 64]], crowd=[True]))
    terms = method.training_loss(images[:1], {name: [value] for name, value in crowd.items()})
    assert float(terms["classes"].detach()) == 0


def test_no_regions_and_empty_images_predict(monkeypatch: pytest.MonkeyPatch) -> None:
    method = small(2, least_score=0.01).eval()
    with torch.inference_mode():
        flat = method(torch.zeros(1, 3, 64, 96))
        monkeypatch.setattr(method, "regions_of", lambda images: images.new_zeros(0, 5))
        none = method(torch.zeros(2, 3, 64, 96))
    assert flat["boxes"].shape == (1, 100, 4) and none["boxes"].shape == (2, 100, 4)
    assert flat["scores"].any() and not none["scores"].any()
    assert all(len(each) == 0 for each in method.decode(none, [(64, 96), (60, 90)]))


def test_a_method_with_a_search_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="FastRCNN cannot be exported: its regions come from selective search") as told:
        Model("fast_rcnn", ["thing"], backbone="resnet10t", hidden=8).export("onnx", tmp_path / "no.onnx")
    assert "\n" not in str(told.value) and not list(tmp_path.iterdir())


def test_wrong_options_are_told() -> None:
    for options, message in (
        ({"search": "slow"}, "unknown search"),
        ({"proposals": 0}, "proposals must be 1 or more"),
        ({"hidden": 0}, "1 or more"),
        ({"least_background": 0.5}, "the first one below the second, got 0.5 and 0.5"),
        ({"finest": 0}, "1 pixel or more"),
        ({"suppression": "soft"}, "unknown suppression"),
    ):
        with pytest.raises(InputError, match=message):
            small(1, **options)


def test_a_small_network_learns_boxes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    options = {"backbone": "test_resnet", "hidden": 64, "samples": 32, "proposals": 150, "least_background": 0.0}
    model = Model("fast_rcnn", scenes(1).categories, **options)
    model.train(
        scenes(3),
        scenes(3),
        out=tmp_path,
        epochs=1,
        steps_per_epoch=80,
        learning_rate=3e-3,
        backbone_rate=1.0,
        **QUICK,
    )
    assert model.evaluate(scenes(3)).figures["ap50"] >= 0.9
    assert model.evaluate(scenes(3), tta="mirror").figures["ap50"] >= 0.8
