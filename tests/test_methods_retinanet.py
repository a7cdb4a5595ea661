"""RetinaNet: weights, outputs, losses and detections of torchvision, and what training needs."""

from __future__ import annotations

import copy
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dense_toys import ap50, batch_of, check_same_detections, fit, noise, normalised, real_images, shaken, shapes, truth
from torch import nn
from torchvision.models import resnet18
from torchvision.models.detection import RetinaNet as Official
from torchvision.models.detection import retinanet_resnet50_fpn, retinanet_resnet50_fpn_v2
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import FrozenBatchNorm2d, sigmoid_focal_loss
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from everymask.backbones.pyramid import IMAGENET_MEAN, IMAGENET_STD
from everymask.errors import InputError
from everymask.methods.detection.retinanet import RetinaNet
from everymask.methods.foreign import load_foreign
from everymask.predict.folding import fold_batch_normalisation
from everymask.predict.predictor import Predictor
from everymask.types import Segments

CLASSES, SIZE, WIDTH = 5, 128, 64


def decisive(factor: float) -> dict[str, float]:
    return {"cls_logits": factor, "bbox_reg": factor / 10}


def small(classes: int = 1, **options: Any) -> RetinaNet:
    return RetinaNet(classes, **({"backbone": "test_resnet", "width": 32} | options))


def official(variant: str, frozen: bool = False, **options: Any) -> Any:
    """torchvision's detector on a narrow ResNet-18, which it has no function for, so that the tests are quick."""
    torch.manual_seed(0)
    body = resnet18(norm_layer=FrozenBatchNorm2d if frozen else nn.BatchNorm2d)
    second = variant == "v2"
    layers = {f"layer{number}": str(number - 2) for number in (2, 3, 4)}
    top = LastLevelP6P7(512 if second else WIDTH, WIDTH)
    pyramid = BackboneWithFPN(body, layers, [128, 256, 512], WIDTH, top)
    head = RetinaNetHead(WIDTH, 9, CLASSES, partial(nn.GroupNorm, 32) if second else None)
    if second:
        head.regression_head._loss_type = "giou"
    network = Official(pyramid, CLASSES, head=head, min_size=SIZE, max_size=SIZE, detections_per_img=100, **options)
    return shaken(network, decisive(20 if second else 200)).eval()


def ours_like(network: nn.Module, variant: str, **options: Any) -> Any:
    """One of our methods with the weights of torchvision's."""
    method: Any = RetinaNet(
        **({"classes": CLASSES, "backbone": "resnet18", "width": WIDTH, "variant": variant} | options)
    )
    load_foreign(method, network.state_dict())
    return method.eval()


@pytest.mark.parametrize("variant", ["v1", "v2"])
@pytest.mark.parametrize("candidates", [1000, 30])
def test_outputs_and_detections_are_those_of_torchvision(variant: str, candidates: int, shared_data: Path) -> None:
    reference = official(variant, topk_candidates=candidates)
    method = ours_like(reference, variant, candidates=candidates)
    # The sizes differ, so that smaller images are padded, and their boxes cut off before the padding.
    images = [noise(96, 128), *real_images(shared_data, 2, SIZE)]
    with torch.inference_mode():
        expected = reference(images)
        resized, _ = reference.transform(images)
        found = method(resized.tensors)
        maps = list(reference.backbone(resized.tensors).values())
        raw = reference.head(maps)
        anchors = reference.anchor_generator(resized, maps)
    torch.testing.assert_close(found["logits"], raw["cls_logits"], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(found["offsets"], raw["bbox_regression"], atol=1e-4, rtol=1e-5)
    assert torch.equal(found["anchors"], torch.stack(anchors))
    assert len({tuple(size) for size in resized.image_sizes}) > 1
    segments = method.decode(found, resized.image_sizes)
    for each, size, image in zip(expected, resized.image_sizes, images, strict=True):
        each["boxes"] = each["boxes"] * torch.tensor([size[1] / image.shape[2], size[0] / image.shape[1]] * 2)
    check_same_detections(segments, expected, shift=0)


def test_images_are_resized_and_predicted_as_by_torchvision(shared_data: Path) -> None:
    reference = official("v1")
    reference.transform.min_size, reference.transform.max_size = (160,), 240
    method = ours_like(reference, "v1", shorter_side=160, longer_side=240)
    image = real_images(shared_data, 1, 200)[0][:, :80, :118]
    predictor = Predictor(method, method.preprocessing_of(), "cpu", "float32")
    found = predictor((255 * image).round().to(torch.uint8).permute(1, 2, 0).numpy())
    with torch.inference_mode():
        check_same_detections([found], reference([image]), shift=0)


def test_images_get_the_size_of_the_paper() -> None:
    transform = retinanet_like().transform.eval()
    for height, width in ((480, 640), (300, 900), (1000, 700)):
        resized, _ = transform([torch.zeros(3, height, width)])
        factor = small(shorter_side=800, longer_side=1333).magnification_for(height, width)
        assert resized.image_sizes[0] == pytest.approx((factor * height, factor * width), abs=1)
    assert small().magnification_for(480, 640) == 1


def retinanet_like() -> Any:
    with torch.device("meta"):
        return retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3)


@pytest.mark.parametrize("make", [retinanet_resnet50_fpn, retinanet_resnet50_fpn_v2])
def test_resnet50_detections_are_those_of_torchvision(make: Any) -> None:
    torch.manual_seed(0)
    reference = make(
        weights=None, weights_backbone=None, num_classes=CLASSES, min_size=64, max_size=96, detections_per_img=100
    )
    variant = "v2" if make is retinanet_resnet50_fpn_v2 else "v1"
    shaken(reference, decisive({"v1": 30, "v2": 10}[variant])).eval()
    method = ours_like(reference, variant, backbone="resnet50", width=256)
    image = noise(64, 96)
    with torch.inference_mode():
        found = method.decode(method(normalised([image], IMAGENET_MEAN, IMAGENET_STD)), [(64, 96)])
        check_same_detections(found, reference([image]), shift=0)


@pytest.mark.parametrize(("make", "variant"), [(retinanet_resnet50_fpn, "v1"), (retinanet_resnet50_fpn_v2, "v2")])
def test_every_tensor_of_torchvision_has_a_place(make: Any, variant: Any) -> None:
    with torch.device("meta"):
        network = make(weights=None, weights_backbone=None, num_classes=91)
        methods = [RetinaNet(classes, variant=variant) for classes in (90, 91)]
    for method in methods:
        found = method.foreign(network.state_dict())
        assert {name: value.shape for name, value in found.items()} == {
            name: value.shape for name, value in method.state_dict().items()
        }


def test_the_class_of_the_background_is_left_out() -> None:
    reference = official("v1")
    whole, without = (ours_like(reference, "v1", classes=classes) for classes in (CLASSES, CLASSES - 1))
    images = normalised([noise(64, 96)], IMAGENET_MEAN, IMAGENET_STD)
    with torch.inference_mode():
        torch.testing.assert_close(without(images)["logits"], whole(images)["logits"][..., 1:])


def test_published_names_and_fixed_statistics_load() -> None:
    """The published file of v1 has the names of an older torchvision, and statistics that are fixed."""
    reference = official("v1", frozen=True)
    older = {}
    for name, value in reference.state_dict().items():
        if name.startswith("backbone.fpn.") and "extra_blocks" not in name:
            name = name.replace(".0.weight", ".weight").replace(".0.bias", ".bias")
        if "_head.conv." in name:
            start, number, _, kind = name.rsplit(".", 3)
            name = f"{start}.{2 * int(number)}.{kind}"
        older[name] = value
    assert older.keys() != reference.state_dict().keys()
    for module in reference.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.eps = 0.0
    method = RetinaNet(CLASSES, backbone="resnet18", width=WIDTH, norm="fixed_without_epsilon")
    load_foreign(method, older)
    method.train()
    norms: list[Any] = [each for each in method.backbone.modules() if isinstance(each, nn.BatchNorm2d)]
    assert norms and not any(each.training for each in norms)
    images = normalised([noise(64, 96)], IMAGENET_MEAN, IMAGENET_STD)
    with torch.inference_mode():
        raw = reference.head(list(reference.backbone(images).values()))
        torch.testing.assert_close(method(images)["logits"], raw["cls_logits"], atol=1e-4, rtol=1e-5)
    other = RetinaNet(CLASSES + 3, backbone="resnet18", width=WIDTH)
    with pytest.raises(InputError, match="new_logits"):
        load_foreign(other, older)
    load_foreign(other, older, new_logits=True)


def keep_statistics(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


@pytest.mark.parametrize(("variant", "kind"), [("v1", "l1"), ("v1", "smooth_l1"), ("v1", "giou"), ("v2", "giou")])
@pytest.mark.parametrize("without", [False, True])
def test_losses_and_gradients_are_those_of_torchvision(variant: str, kind: Any, without: bool) -> None:
    reference = official(variant, _skip_resize=True).train()
    reference.head.regression_head._loss_type = kind
    default = kind == {"v1": "l1", "v2": "giou"}[variant]
    method = ours_like(reference, variant, box_loss="" if default else kind).train()
    keep_statistics(reference)
    keep_statistics(method)
    theirs, own = truth()
    own["classes"] = [each["labels"] for each in theirs]  # with the class of the background, as torchvision has it
    if without:
        theirs[1] = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
        own = {name: [values[0], values[1][:0]] for name, values in own.items()}
    images = [noise(SIZE, SIZE, seed) for seed in (5, 6)]
    expected = reference(images, theirs)
    found = method.training_loss(normalised(images, IMAGENET_MEAN, IMAGENET_STD), own)
    assert found.keys() == {"classes", "boxes"}
    torch.testing.assert_close(found["classes"], expected["classification"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found["boxes"], expected["bbox_regression"], atol=1e-5, rtol=1e-5)
    sum(expected.values(), torch.zeros(())).backward()
    sum(found.values(), torch.zeros(())).backward()
    names = {
        "class_tower.predict.weight": "head.classification_head.cls_logits.weight",
        "box_tower.predict.weight": "head.regression_head.bbox_reg.weight",
        "neck.lateral.0.0.weight": "backbone.fpn.inner_blocks.0.0.weight",
    }
    for name, other in names.items():
        one, two = method.get_parameter(name).grad, reference.get_parameter(other).grad
        torch.testing.assert_close(one, two, atol=1e-5 + 1e-4 * float(two.abs().max()), rtol=1e-3)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.6, 0.0), (0.5, 1.5)])
def test_the_focal_loss_has_its_options(alpha: float, gamma: float) -> None:
    method = small(3, alpha=alpha, focusing=gamma)
    random = torch.Generator().manual_seed(0)
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 14.5], [0, 0, 10, 24], [50, 50, 60, 60]])[None]
    logits = 9 * torch.randn(1, 4, 3, generator=random)
    outputs = {
        "logits": logits,
        "offsets": torch.zeros(1, 4, 4),
        "anchors": anchors,
    }
    targets = batch_of(method, [Segments((99, 99), [2], box=[[0, 0, 10, 10]])])
    # IoU 1, .69, .42 (which is ignored) and 0.
    labels = torch.tensor([[0.0, 0, 1], [0, 0, 1], [0, 0, 0]])
    expected = sigmoid_focal_loss(logits[0, [0, 1, 3]], labels, alpha, gamma, "sum") / 2
    terms = method.loss(outputs, targets)
    torch.testing.assert_close(terms["classes"], expected)
    assert float(terms["boxes"]) == pytest.approx(math.log(14.5 / 10) / 2 + 0.5 * 4.5 / 14.5 / 2)


def test_images_without_objects_train() -> None:
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
    tiny = Segments((64, 96), [1, 0], box=[[95.5, 63.5, 96, 64], [0, 0, 96, 0.01]])
    terms = method.training_loss(torch.rand(2, 3, 64, 96), batch_of(method, [huge, tiny]))
    assert all(math.isfinite(term) and term > 0 for term in (each.item() for each in terms.values()))
    sum(terms.values(), torch.zeros(())).backward()
    assert all(torch.isfinite(each.grad).all() for each in method.parameters() if each.grad is not None)


def test_what_lies_in_a_crowd_is_not_learnt_as_background() -> None:
    method = small(1).eval()
    images = torch.rand(1, 3, 64, 64)
    crowds = [Segments((64, 64), [0], box=[[0, 0, 64, 64]], crowd=[crowd]) for crowd in (True, False)]
    crowd, single = (method.training_loss(images, batch_of(method, [each])) for each in crowds)
    nothing = method.training_loss(images, batch_of(method, [Segments.empty((64, 64))]))
    assert float(crowd["boxes"].detach()) == 0 < float(single["boxes"].detach())
    assert 0 < float(crowd["classes"].detach()) < float(nothing["classes"].detach())


def test_nothing_is_found_above_a_score_of_one_and_nan_is_nothing() -> None:
    method = small(2).eval()
    with torch.inference_mode():
        outputs = method(torch.zeros(1, 3, 64, 96))
    assert method.decode(outputs, [(64, 90)])[0].boxes().shape == (0, 4)  # at the start all is background
    wild = {**outputs, "logits": torch.full_like(outputs["logits"], 9.0)}
    for value, some in ((1e30, True), (math.nan, False), (math.inf, False)):
        (found,) = method.decode({**wild, "offsets": torch.full_like(outputs["offsets"], value)}, [(64, 90)])
        assert np.isfinite(found.boxes()).all() and (len(found) == 0 or some)
    assert len(method.decode({**wild, "logits": wild["logits"] * math.nan}, [(64, 90)])[0]) == 0
    method.thresholds["score"] = 1.0
    assert len(method.decode(wild, [(64, 90)])[0]) == 0
    method.thresholds["score"] = 0.0
    assert len(method.decode(outputs, [(64, 90)])[0]) == 100


def test_a_batch_says_what_its_images_say_alone() -> None:
    method = ours_like(official("v1"), "v1")
    images = torch.randn(3, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    sizes = [(64, 96), (50, 90), (64, 70)]
    with torch.inference_mode():
        together = method.decode(method(images), sizes)
        alone = [method.decode(method(each[None]), [size])[0] for each, size in zip(images, sizes, strict=True)]
    for one, other in zip(together, alone, strict=True):
        assert len(one) > 3 and one.size == other.size
        np.testing.assert_allclose(one.boxes(), other.boxes(), atol=1e-2)
        assert np.array_equal(one.category, other.category)


def test_folded_normalisation_and_bfloat16_change_little() -> None:
    method = shaken(small(3, variant="v2", width=64), {}).eval()
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    folded = fold_batch_normalisation(copy.deepcopy(method).requires_grad_(False))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    with torch.inference_mode():
        expected, found = method(images), folded(images)
        with torch.autocast("cpu", torch.bfloat16):
            rough = method(images)
    for name in ("logits", "offsets"):
        torch.testing.assert_close(found[name], expected[name], atol=1e-3, rtol=1e-3)
        assert rough[name].dtype == torch.float32
        assert float((rough[name] - expected[name]).abs().max()) < 0.1 * float(expected[name].abs().max())


@pytest.mark.parametrize("backbone", ["swin_t", "dinov2_small", "convnext_atto"])
def test_other_backbones_fit(backbone: str) -> None:
    with torch.device("meta"):
        method = RetinaNet(2, backbone=backbone, width=32)
        found = method(torch.zeros(1, 3, 2 * method.stride, method.stride))
    assert found["logits"].shape[1] == found["offsets"].shape[1] == found["anchors"].shape[1]


def test_an_exported_network_agrees(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from everymask.export.onnx import export_onnx

    method: Any = shaken(small(2), {"predict": 50})
    method.stride = 128  # the exporter's smallest image must have more than a pixel on the coarsest map
    differences = export_onnx(method, tmp_path / "network.onnx")
    assert differences.keys() == {"logits", "offsets", "anchors", "levels"} and max(differences.values()) < 1e-4


def test_wrong_options_are_told() -> None:
    for options, message in (
        ({"anchor_sizes": (8.0, 16.0)}, "5 levels, got 2"),
        ({"detections": 0}, "1 or more"),
        ({"alpha": 1.5}, "alpha: got 1.5"),
        ({"focusing": -1.0}, "focusing: got -1"),
        ({"box_loss": "l2"}, "unknown box_loss 'l2'"),
        ({"variant": "v3"}, "unknown variant 'v3'"),
        ({"variant": "v2", "width": 48}, "multiple of 32"),
    ):
        with pytest.raises(InputError, match=message):
            small(**options)  # type: ignore[arg-type]


def test_a_small_network_learns_boxes() -> None:
    torch.manual_seed(0)
    images, truths = shapes(64, 8)
    method = small(2, variant="v2", width=64, anchor_sizes=(16.0, 24.0, 32.0, 48.0, 64.0), anchor_octaves=1)
    assert ap50(fit(method, images, truths, steps=30, rate=2e-3), truths) >= 0.9
