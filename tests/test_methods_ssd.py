"""SSD: weights, outputs, losses and detections of torchvision, and what training needs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dense_toys import ap50, batch_of, check_same_detections, fit, noise, normalised, real_images, shaken, shapes, truth
from torch.nn import functional
from torchvision.models import vgg16
from torchvision.models.detection import ssd300_vgg16
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD as Official
from torchvision.models.detection.ssd import _vgg_extractor

from everymask.backbones.pyramid import IMAGENET_MEAN
from everymask.errors import InputError
from everymask.layers.anchors import DefaultBoxes
from everymask.methods.detection.ssd import SSD
from everymask.methods.foreign import load_foreign
from everymask.predict.predictor import Predictor
from everymask.types import Segments

CLASSES = 4
MEAN, STD = (0.48235, 0.45882, 0.40784), (1 / 255,) * 3


def small(classes: int = 1, **options: Any) -> SSD:
    return SSD(classes, **({"backbone": "test_resnet", "width": 64} | options))


def decisive(factor: float) -> dict[str, float]:
    return {"classification_head": factor, "regression_head": factor / 3}


@pytest.fixture(scope="module")
def official() -> Any:
    """torchvision's SSD with random weights under which objects are found."""
    torch.manual_seed(0)
    network = ssd300_vgg16(weights=None, weights_backbone=None, num_classes=CLASSES + 1, topk_candidates=60)
    return shaken(network, decisive(0.2)).eval()


@pytest.fixture(scope="module")
def ours(official: Any) -> Any:
    """Our method with the same weights."""
    method = SSD(CLASSES, pixels="caffe", candidates=60)
    load_foreign(method, official.state_dict())
    return method.eval()


def test_outputs_and_detections_are_those_of_torchvision(official: Any, ours: Any, shared_data: Path) -> None:
    # Images of any proportions, each of which becomes a square of 300 pixels.
    for image in (noise(200, 330), *real_images(shared_data, 1, 400)):
        batch = normalised([image], MEAN, STD)
        size = (image.shape[1], image.shape[2])
        with torch.inference_mode():
            expected, found = official([image]), ours(batch)
            square, _ = official.transform([image])
            features = list(official.backbone(square.tensors).values())
            raw = official.head(features)
            (anchors,) = official.anchor_generator(square, features)
        torch.testing.assert_close(found["logits"], raw["cls_logits"], atol=1e-3, rtol=1e-5)
        torch.testing.assert_close(found["offsets"], raw["bbox_regression"], atol=1e-3, rtol=1e-5)
        scale = torch.tensor([size[1] / 300, size[0] / 300] * 2)
        torch.testing.assert_close(found["anchors"][0], anchors * scale, atol=1e-3, rtol=1e-5)
        check_same_detections(ours.decode(found, [size]), expected, shift=1)
        twice = ours.decode(ours.at_scale(found, (2.0, 2.0)), [(2 * size[0], 2 * size[1])])[0]
        np.testing.assert_allclose(twice.boxes() / 2, ours.decode(found, [size])[0].boxes(), atol=1e-3)


def test_photographs_are_predicted_as_by_torchvision(official: Any, ours: Any, shared_data: Path) -> None:
    (image,) = real_images(shared_data, 1, 400)
    predictor = Predictor(ours, ours.preprocessing_of(), "cpu", "float32", tile=256)  # and yet seen as a whole
    found = predictor((255 * image).round().to(torch.uint8).permute(1, 2, 0).numpy())
    with torch.inference_mode():
        check_same_detections([found], official([image]), shift=1)


@pytest.mark.parametrize("size", [300, 512])
def test_default_boxes_are_those_of_torchvision(size: Any) -> None:
    method = small(size=size)
    layout = method.default_boxes
    with torch.no_grad():
        maps = method._maps(torch.zeros(1, 3, size, size))
    grids = [(each.shape[2], each.shape[3]) for each in maps]
    if size == 300:
        ratios, scales = [[2], [2, 3], [2, 3], [2, 3], [2], [2]], [0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05]
        steps, number = [8, 16, 32, 64, 100, 300], 8732  # as the paper counts
    else:
        ratios = [[2], [2, 3], [2, 3], [2, 3], [2, 3], [2], [2]]
        scales = [0.04, 0.1, 0.26, 0.42, 0.58, 0.74, 0.9, 1.06]
        steps, number = [8, 16, 32, 64, 128, 256, 512], 24564
    generator = DefaultBoxGenerator(ratios, scales=scales, steps=steps)
    (expected,) = generator(ImageList(torch.zeros(1, 3, size, size), [(size, size)]), maps)
    with torch.inference_mode():
        found = layout(grids, torch.device("cpu"))
    assert len(found) == number and list(layout.per_cell) == generator.num_anchors_per_location()
    assert torch.equal(size * found, expected)
    assert not found.is_inference()


def test_the_larger_network_is_that_of_the_paper() -> None:
    """torchvision has no function for it, but the parts: its further maps are then made as by the original program."""
    torch.manual_seed(0)
    body = _vgg_extractor(vgg16(weights=None), True, 5)
    for block, padding, stride in ((3, 1, 2), (4, 1, 2), (5, 1, 1)):
        convolution: Any = body.extra[block][2]
        convolution.padding, convolution.stride = (padding,) * 2, (stride,) * 2
    generator = DefaultBoxGenerator(
        [[2], [2, 3], [2, 3], [2, 3], [2, 3], [2], [2]],
        scales=[0.04, 0.1, 0.26, 0.42, 0.58, 0.74, 0.9, 1.06],
        steps=[8, 16, 32, 64, 128, 256, 512],
    )
    body.out_channels = [512, 1024, 512, 256, 256, 256, 256]
    means: Any = {"image_mean": list(MEAN), "image_std": list(STD)}
    reference: Any = Official(body, generator, (512, 512), CLASSES + 1, **means)
    shaken(reference, decisive(0.2)).eval()
    method = SSD(CLASSES, size=512, pixels="caffe")
    load_foreign(method, reference.state_dict())
    image = noise(512, 512)
    with torch.inference_mode():
        found = method.eval().decode(method(normalised([image], MEAN, STD)), [(512, 512)])
        check_same_detections(found, reference([image]), shift=1)


def test_every_tensor_of_torchvision_has_a_place() -> None:
    with torch.device("meta"):
        network = ssd300_vgg16(weights=None, weights_backbone=None, num_classes=91)
        method = SSD(90)
    found = method.foreign(network.state_dict())
    own = method.state_dict()
    assert {name: value.shape for name, value in found.items()} == {name: value.shape for name, value in own.items()}
    other = SSD(7)
    with pytest.raises(InputError, match="new_logits"):
        load_foreign(other, {name: torch.zeros(value.shape) for name, value in network.state_dict().items()})


def test_images_are_normalised_as_the_weights_want() -> None:
    caffe = small(pixels="caffe").preprocessing_of()
    assert caffe.normalise == "scale" and caffe.mean == MEAN
    white = np.full((2, 2, 3), 255, np.uint8)
    expected = 255 * (1 - np.array(MEAN))
    np.testing.assert_allclose(caffe(white)[:, 0, 0], expected, rtol=1e-5)
    assert small(backbone="resnet10t").preprocessing_of().mean == IMAGENET_MEAN
    assert len(small(pixels="caffe", channels=5).preprocessing_of().mean) == 1


@pytest.mark.parametrize("stretched", [False, True])
def test_losses_and_gradients_are_those_of_torchvision(official: Any, ours: Any, stretched: bool) -> None:
    theirs, own = truth()
    side = (180, 250) if stretched else (300, 300)
    images = [noise(*side, seed) for seed in (5, 6)]
    official.train()
    try:
        expected = official(images, theirs)
    finally:
        official.eval()
    found = ours.training_loss(normalised(images, MEAN, STD), own)
    assert found.keys() == {"classes", "boxes"}
    torch.testing.assert_close(found["classes"], expected["classification"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found["boxes"], expected["bbox_regression"], atol=1e-5, rtol=1e-4)
    for network, terms in ((official, expected), (ours, found)):
        network.zero_grad()
        sum(terms.values(), torch.zeros(())).backward()
    names = {
        "class_head.0.weight": "head.classification_head.module_list.0.weight",
        "box_head.1.weight": "head.regression_head.module_list.1.weight",
        "scale": "backbone.scale_weight",
        "fully.1.weight": "backbone.extra.0.7.1.weight",
    }
    for name, other in names.items():
        one, two = ours.get_parameter(name).grad, official.get_parameter(other).grad
        torch.testing.assert_close(one, two, atol=1e-3 * float(two.abs().max()), rtol=1e-3)


@pytest.mark.parametrize("kind", ["l1", "smooth_l1", "giou"])
def test_the_loss_is_that_of_a_plain_loop(kind: Any) -> None:
    method = small(3, box_loss=kind, negatives=2.0)
    random = torch.Generator().manual_seed(0)
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 14], [0, 0, 10, 24], [50, 50, 60, 60], [70, 70, 80, 80]])
    anchors = torch.cat([anchors, 100 + torch.arange(40).reshape(20, 2).repeat(1, 2) * 10 + torch.tensor([0, 0, 9, 9])])
    outputs = {
        "logits": 3 * torch.randn(1, len(anchors), 4, generator=random),
        "offsets": torch.randn(1, len(anchors), 4, generator=random),
        "anchors": anchors[None],
    }
    # The first two anchors by their IoU of 1 and .71, the fourth as the best of a small box.
    truths = [Segments((900, 900), [2, 0], box=[[0, 0, 10, 10], [52, 52, 54, 54]])]
    terms = method.loss(outputs, batch_of(method, truths))
    logits, owners = outputs["logits"][0], {0: (2, truths[0].boxes()[0]), 1: (2, truths[0].boxes()[0])}
    owners[3] = (0, truths[0].boxes()[1])
    minus_log = -functional.log_softmax(logits, dim=1)
    expected = sum(float(minus_log[anchor, 1 + kind_of]) for anchor, (kind_of, _) in owners.items())
    background = sorted((float(minus_log[each, 0]) for each in range(len(anchors)) if each not in owners), reverse=True)
    assert float(terms["classes"]) == pytest.approx((expected + sum(background[:6])) / 3, rel=1e-5)
    total = 0.0
    for anchor, (_, box) in owners.items():
        x0, y0, x1, y1 = anchors[anchor].tolist()
        width, height = x1 - x0, y1 - y0
        wide, tall = box[2] - box[0], box[3] - box[1]
        wanted = [
            10 * ((box[0] + box[2]) / 2 - (x0 + x1) / 2) / width,
            10 * ((box[1] + box[3]) / 2 - (y0 + y1) / 2) / height,
            5 * math.log(wide / width),
            5 * math.log(tall / height),
        ]
        given = outputs["offsets"][0, anchor].tolist()
        if kind == "giou":
            x, y = (x0 + x1) / 2 + width * given[0] / 10, (y0 + y1) / 2 + height * given[1] / 10
            w, h = width * math.exp(given[2] / 5), height * math.exp(given[3] / 5)
            found = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
            shared = max(0, min(found[2], box[2]) - max(found[0], box[0])) * max(
                0, min(found[3], box[3]) - max(found[1], box[1])
            )
            union = w * h + wide * tall - shared
            hull = (max(found[2], box[2]) - min(found[0], box[0])) * (max(found[3], box[3]) - min(found[1], box[1]))
            total += 1 - shared / union + (hull - union) / hull
        else:
            far = [abs(one - other) for one, other in zip(given, wanted, strict=True)]
            total += sum(each if kind == "l1" else each - 0.5 if each >= 1 else 0.5 * each**2 for each in far)
    assert float(terms["boxes"]) == pytest.approx(total / 3, rel=1e-4)


def test_images_without_objects_teach_the_background() -> None:
    torch.manual_seed(0)
    method = small(2).train()
    targets = batch_of(method, [Segments.empty((64, 64))] * 2)
    terms = method.training_loss(torch.rand(2, 3, 64, 64), targets)
    assert float(terms["classes"].detach()) > 0 and float(terms["boxes"].detach()) == 0
    sum(terms.values(), torch.zeros(())).backward()
    assert all(torch.isfinite(each.grad).all() for each in method.parameters() if each.grad is not None)


def test_objects_of_any_size_train() -> None:
    torch.manual_seed(0)
    method = small(2, box_loss="giou").train()
    huge = Segments((64, 96), [0], box=[[0, 0, 96, 64]])
    tiny = Segments((64, 96), [1, 0, 0], box=[[95.5, 63.5, 96, 64], [0, 0, 96, 0.01], [0, 0, 96, 0.01]])
    terms = method.training_loss(torch.rand(2, 3, 64, 96), batch_of(method, [huge, tiny]))
    assert all(math.isfinite(term) and term > 0 for term in (each.item() for each in terms.values()))
    sum(terms.values(), torch.zeros(())).backward()
    assert all(torch.isfinite(each.grad).all() for each in method.parameters() if each.grad is not None)


def test_what_lies_in_a_crowd_is_not_learnt_as_background() -> None:
    method = small(1).eval()
    images = torch.rand(1, 3, 300, 300)
    outputs = method(images)
    # Only what is nearly all beyond the crowd is background.
    crowd = batch_of(method, [Segments((300, 300), [0], box=[[0, 0, 300, 300]], crowd=[True])])
    inside = (outputs["anchors"] >= 0).all(-1) & (outputs["anchors"] <= 300).all(-1)
    outputs["logits"] = torch.where(inside[..., None], torch.tensor([-50.0, 50.0]), torch.tensor([50.0, -50.0]))
    assert float(method.loss(outputs, crowd)["classes"]) == 0
    nothing = batch_of(method, [Segments.empty((300, 300))])
    assert float(method.loss(outputs, nothing)["classes"]) == pytest.approx(300)


def test_nothing_is_found_above_a_score_of_one_and_nan_is_nothing() -> None:
    method = small(2).eval()
    with torch.inference_mode():
        outputs = method(torch.rand(1, 3, 64, 96))
    assert len(method.decode(outputs, [(64, 96)])[0]) > 0
    for value in (1e30, math.nan, math.inf):
        (found,) = method.decode({**outputs, "offsets": torch.full_like(outputs["offsets"], value)}, [(64, 90)])
        assert np.isfinite(found.boxes()).all()
    assert len(method.decode({**outputs, "logits": outputs["logits"] * math.nan}, [(64, 90)])[0]) == 0
    method.thresholds["score"] = 1.0
    (found,) = method.decode(outputs, [(64, 90)])
    assert len(found) == 0 and found.size == (64, 90)


def test_a_batch_says_what_its_images_say_alone(ours: Any) -> None:
    images = 100 * torch.randn(2, 3, 200, 260, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        outputs = ours(images)
        together = ours.decode(outputs, [(200, 260), (150, 260)])
        alone = [ours.decode(ours(each[None]), [one.size])[0] for each, one in zip(images, together, strict=True)]
    for one, other in zip(together, alone, strict=True):
        assert len(one) > 3 and one.boxes()[:, 3].max() <= one.size[0]
        np.testing.assert_allclose(one.boxes(), other.boxes(), atol=1e-2)
        assert np.array_equal(one.category, other.category)


@pytest.mark.parametrize(
    ("backbone", "size"),
    [("convnext_atto", 300), ("vgg11_bn", 300), ("vit_tiny_patch16_224", 512)],
)
def test_other_backbones_fit(backbone: str, size: Any) -> None:
    with torch.device("meta"):
        method = SSD(2, backbone=backbone, size=size, width=64)
        maps = method._maps(torch.zeros(1, 3, size, size))
    assert [tuple(each.shape[-2:]) for each in maps][-1] == (1, 1)
    assert sum(math.prod(each.shape[-2:]) for each in maps) > 1500


def test_an_exported_network_agrees(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from everymask.export.onnx import export_onnx

    method: Any = shaken(small(2), {"head": 1.0})
    method.stride = 50
    differences = export_onnx(method, tmp_path / "network.onnx")
    assert differences.keys() == {"logits", "offsets", "anchors"} and max(differences.values()) < 1e-4


def test_wrong_options_are_told() -> None:
    for options, message in (
        ({"size": 320}, "size: got 320, expected 300 or 512"),
        ({"detections": 0}, "1 or more"),
        ({"width": 20}, "multiple of 8"),
        ({"negatives": 0.0}, "negatives: got 0"),
        ({"box_loss": "l2"}, "unknown box_loss 'l2'"),
        ({"pixels": "torch"}, "unknown pixels 'torch'"),
        ({"scales": (0.1, 0.2)}, "6 feature maps need 7 rising scales"),
    ):
        with pytest.raises(InputError, match=message):
            small(**options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="rising"):
        DefaultBoxes((0.5, 0.2), ((2,),), (8,))


def test_a_small_network_learns_boxes() -> None:
    torch.manual_seed(0)
    images, truths = shapes(300, 38)
    assert ap50(fit(small(2, width=128), images, truths, steps=27, rate=2e-3), truths) >= 0.9
