"""Faster R-CNN and Mask R-CNN: weights, outputs and losses of torchvision, and what training needs."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models.detection import (
    FasterRCNN as OfficialFaster,
)
from torchvision.models.detection import (
    MaskRCNN as OfficialMask,
)
from torchvision.models.detection import (
    fasterrcnn_resnet50_fpn,
    fasterrcnn_resnet50_fpn_v2,
    maskrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn_v2,
)
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.models.detection.rpn import RPNHead

from everymask.errors import InputError
from everymask.methods.detection.common import segments_of_boxes
from everymask.methods.detection.faster_rcnn import FasterRCNN
from everymask.methods.detection.mask_rcnn import MaskRCNN
from everymask.methods.foreign import load_foreign
from everymask.metrics import make_metric
from everymask.predict.folding import fold_batch_normalisation
from everymask.predict.predictor import Predictor
from everymask.types import Categories, Category, LabelMap, Segments

CLASSES, SIZE = 4, 128
MEAN, STD = torch.tensor([0.485, 0.456, 0.406])[:, None, None], torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def shaken(network: nn.Module, decisive: float = 20) -> nn.Module:
    """Random weights under which objects are found: decisive heads, biases and statistics that are not zero and one."""
    random = torch.Generator().manual_seed(1)
    for name, parameter in network.named_parameters():
        if name.endswith(("cls_logits.weight", "bbox_pred.weight", "cls_score.weight")):
            parameter.data *= decisive
        elif parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=random)
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer += 0.05 * torch.randn(buffer.shape, generator=random)
        elif name.endswith("running_var"):
            buffer *= 0.8 + 0.5 * torch.rand(buffer.shape, generator=random)
    return network


def small(masks: bool, classes: int = 1, **options: Any) -> Any:
    """One of our methods, as small as it goes."""
    sizes = {"backbone": "resnet10t", "width": 16, "hidden": 32, "proposals": 50, "samples": 64}
    return (MaskRCNN if masks else FasterRCNN)(classes, **(sizes | options))


def official(variant: str, masks: bool = True, **options: Any) -> Any:
    """torchvision's detector on ResNet-18, which it has no function for, so that the tests are quick."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d if variant == "v2" else None
    backbone = _resnet_fpn_extractor(resnet18(norm_layer=nn.BatchNorm2d), 5)
    if variant == "v2":
        backbone = _resnet_fpn_extractor(resnet18(), 5, norm_layer=nn.BatchNorm2d)
        options |= {
            "rpn_head": RPNHead(256, 3, conv_depth=2),
            "box_head": FastRCNNConvFCHead((256, 7, 7), [256] * 4, [1024], norm_layer=norm),
        }
        if masks:
            options["mask_head"] = MaskRCNNHeads(256, [256] * 4, 1, norm_layer=norm)
    options = {"min_size": SIZE, "max_size": SIZE, "num_classes": CLASSES + 1} | options
    for phase, number in (("test", 20), ("train", 40)):
        options |= {f"rpn_pre_nms_top_n_{phase}": number, f"rpn_post_nms_top_n_{phase}": number}
    return shaken((OfficialMask if masks else OfficialFaster)(backbone, **options)).eval()


def ours_like(network: nn.Module, variant: str, masks: bool = True, **options: Any) -> Any:
    """One of our methods with the weights of torchvision's."""
    kind: Any = MaskRCNN if masks else FasterRCNN
    method = kind(CLASSES, **({"backbone": "resnet18", "proposals": 20} | options), variant=variant)
    load_foreign(method, network.state_dict())
    return method.eval()


def real_image(shared_data: Path) -> Tensor:
    place = min((shared_data / "coco" / "tiny160" / "train2017").glob("*.jpg"))
    with Image.open(place) as image:
        array = np.asarray(image.convert("RGB").resize((SIZE, SIZE)))
    return torch.from_numpy(array.copy()).permute(2, 0, 1).float() / 255


def check_same_detections(found: Mapping[str, Tensor], expected: list[dict[str, Tensor]]) -> None:
    assert sum(len(each["boxes"]) for each in expected) >= 5
    for image, each in enumerate(expected):
        number = len(each["boxes"])
        assert int((found["scores"][image] > 0).sum()) == number
        torch.testing.assert_close(found["boxes"][image, :number], each["boxes"], atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(found["scores"][image, :number], each["scores"], atol=1e-4, rtol=0)
        assert torch.equal(found["classes"][image, :number] + 1, each["labels"])


@pytest.mark.parametrize("variant", ["v1", "v2"])
def test_detections_and_masks_are_those_of_torchvision(variant: str, shared_data: Path) -> None:
    reference = official(variant)
    method = ours_like(reference, variant)
    images = [torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(2)), real_image(shared_data)]
    batch = torch.stack([(image - MEAN) / STD for image in images])
    with torch.inference_mode():
        expected, found = reference(images), method(batch)
        maps, own = reference.backbone(batch), method.neck(method.backbone(batch))
        raw, own_raw = reference.rpn.head(list(maps.values())), method.rpn(own)
    for one, other in zip(own, maps.values(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-5)
    logits = torch.cat([each.permute(0, 2, 3, 1).flatten(1) for each in raw[0]], dim=1)
    torch.testing.assert_close(own_raw[0], logits, atol=1e-4, rtol=1e-5)
    check_same_detections(found, expected)
    for segments, each in zip(method.decode(found, [(SIZE, SIZE)] * 2), expected, strict=True):
        assert np.array_equal(segments.category + 1, each["labels"])
        np.testing.assert_allclose(segments.boxes(), each["boxes"], atol=1e-4, rtol=1e-5)
        np.testing.assert_allclose(np.asarray(segments.score), each["scores"], atol=1e-4)
        soft = each["masks"][:, 0].numpy()
        sure = abs(soft - 0.5) > 1e-4
        assert np.array_equal(segments.masks()[sure], (soft >= 0.5)[sure])


def test_resnet50_detections_are_those_of_torchvision() -> None:
    torch.manual_seed(0)
    options = {"rpn_pre_nms_top_n_test": 20, "rpn_post_nms_top_n_test": 20, "min_size": 64, "max_size": 96}
    reference: Any = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=CLASSES + 1, **options)
    shaken(reference, decisive=1).eval()
    method = ours_like(reference, "v1", masks=False, backbone="resnet50")
    image = torch.rand(3, 64, 96)
    with torch.inference_mode():
        check_same_detections(method(((image - MEAN) / STD)[None]), reference([image]))


@pytest.mark.parametrize(
    ("reference", "variant", "masks"),
    [
        (fasterrcnn_resnet50_fpn, "v1", False),
        (fasterrcnn_resnet50_fpn_v2, "v2", False),
        (maskrcnn_resnet50_fpn, "v1", True),
        (maskrcnn_resnet50_fpn_v2, "v2", True),
    ],
)
def test_every_tensor_of_torchvision_has_a_place(reference: Any, variant: str, masks: bool) -> None:
    with torch.device("meta"):
        network = reference(weights=None, weights_backbone=None, num_classes=91)
        method: Any = (MaskRCNN if masks else FasterRCNN)(90, variant=variant)
    found = method.foreign(network.state_dict())
    own = method.state_dict()
    assert {name: value.shape for name, value in found.items()} == {name: value.shape for name, value in own.items()}


def test_published_names_and_fixed_statistics_load() -> None:
    """Published files of v1 have the names of an older torchvision, and no counters of batches."""
    reference = official("v1")
    state = reference.state_dict()
    older = {}
    for name, value in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        name = name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        if name.startswith("backbone.fpn."):
            name = name.replace(".0.weight", ".weight").replace(".0.bias", ".bias")
            assert name.count(".") == 4
        if name.startswith("roi_heads.mask_head."):
            layer = int(name.split(".")[2]) + 1
            name = f"roi_heads.mask_head.mask_fcn{layer}.{name.rsplit('.', 1)[1]}"
        older[name] = value
    assert older.keys() != state.keys()
    method = MaskRCNN(CLASSES, backbone="resnet18")
    load_foreign(method, older)
    newer = ours_like(reference, "v1").state_dict()
    assert all(torch.equal(value, newer[name]) for name, value in method.state_dict().items())
    other = MaskRCNN(CLASSES + 3, backbone="resnet18")
    with pytest.raises(InputError, match="new_logits"):
        load_foreign(other, older)
    load_foreign(other, older, new_logits=True)


def truth() -> tuple[list[dict[str, Tensor]], dict[str, list[Tensor]]]:
    """Two images of objects for torchvision and for us."""
    boxes = [torch.tensor([[10.0, 12, 60, 50], [40, 60, 120, 110]]), torch.tensor([[5.0, 70, 50, 121]])]
    labels = [torch.tensor([1, 3]), torch.tensor([4])]
    masks = []
    for each in boxes:
        drawn = torch.zeros(len(each), SIZE, SIZE, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(drawn, each.int().tolist(), strict=True):
            mask[y0 + 3 : y1, x0 : x1 - 7] = True
        masks.append(drawn)
    theirs = [
        {"boxes": one, "labels": two, "masks": three.to(torch.uint8)}
        for one, two, three in zip(boxes, labels, masks, strict=True)
    ]
    crowd = [torch.zeros(len(each), dtype=torch.bool) for each in boxes]
    return theirs, {"boxes": boxes, "classes": [each - 1 for each in labels], "crowd": crowd, "masks": masks}


def keep_statistics(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


@pytest.mark.parametrize(("variant", "everything"), [("v1", False), ("v1", True), ("v2", False)])
def test_losses_are_those_of_torchvision(variant: str, everything: bool) -> None:
    # With `everything` each anchor and proposal is a sample; else the same draws follow from the same seed.
    number = 10**6
    many: dict[str, Any] = (
        {"rpn_batch_size_per_image": number, "box_batch_size_per_image": number} if everything else {}
    )
    reference = official(variant, _skip_resize=True, **many).train()
    method = ours_like(reference, variant, samples=number if everything else 512).train()
    if everything:
        method.rpn.proposing = type(method.rpn.proposing)(before=(20, 40), after=(20, 40), samples=number)
    keep_statistics(reference)
    keep_statistics(method)
    theirs, own = truth()
    images = [torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)) for seed in (5, 6)]
    torch.manual_seed(0)
    expected = reference(images, theirs)
    torch.manual_seed(0)
    found = method.training_loss(torch.stack([(image - MEAN) / STD for image in images]), own)
    names = {
        "objectness": "loss_objectness",
        "proposals": "loss_rpn_box_reg",
        "classes": "loss_classifier",
        "boxes": "loss_box_reg",
        "masks": "loss_mask",
    }
    assert found.keys() == names.keys()
    for name, other in names.items():
        torch.testing.assert_close(found[name], expected[other], atol=1e-5, rtol=1e-5)
    sum(expected.values(), torch.zeros(())).backward()
    sum(found.values(), torch.zeros(())).backward()
    for name in ("rpn.objectness.weight", "neck.lateral.0.0.weight"):
        theirs_name = {"rpn.objectness.weight": "rpn.head.cls_logits.weight"}.get(
            name, "backbone.fpn.inner_blocks.0.0.weight"
        )
        one, other = method.get_parameter(name).grad, reference.get_parameter(theirs_name).grad
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("variant", ["v1", "v2"])
@pytest.mark.parametrize("masks", [False, True])
def test_images_without_objects_train(masks: bool, variant: str) -> None:
    torch.manual_seed(0)
    method = small(masks, 2, variant=variant).train()
    targets = [method.targets(Segments.empty((64, 64))) for _ in range(2)]
    batch = {name: [each[name] for each in targets] for name in targets[0]}
    terms = method.training_loss(torch.rand(2, 3, 64, 64), batch)
    assert all(torch.isfinite(term) for term in terms.values())
    assert float(terms["objectness"].detach()) > 0 and float(terms["boxes"].detach()) == 0
    sum(terms.values(), torch.zeros(())).backward()
    assert all(torch.isfinite(each.grad).all() for each in method.parameters() if each.grad is not None)


def test_what_lies_in_a_crowd_is_not_learnt_as_background() -> None:
    torch.manual_seed(0)
    method = small(False, 1).eval()
    whole = Segments((64, 64), [0], box=[[0, 0, 64, 64]], crowd=[True])
    targets = {name: [value] for name, value in method.targets(whole).items()}
    terms = method.training_loss(torch.rand(1, 3, 64, 64), targets)
    # Proposals are cut off at the edges, so all of them lie in the crowd; anchors reach far beyond.
    assert float(terms["classes"].detach()) == float(terms["boxes"].detach()) == 0
    inside = method.rpn.anchors((64, 64), [(16, 16), (8, 8), (4, 4), (2, 2), (1, 1)], torch.device("cpu"))
    assert float(terms["objectness"].detach()) > 0 and len(inside) > 0


def test_no_detections_are_no_segments() -> None:
    method = small(True, 2, least_score=0.999).eval()
    with torch.inference_mode():
        outputs = method(torch.zeros(1, 3, 64, 96))
    assert outputs["boxes"].shape == (1, 100, 4) and outputs["masks"].shape == (1, 100, 28, 28)
    assert not outputs["scores"].any()
    (segments,) = method.decode(outputs, [(64, 90)])
    assert len(segments) == 0 and segments.size == (64, 90) and segments.masks().shape == (0, 64, 90)


def test_a_batch_says_what_its_images_say_alone() -> None:
    reference = official("v1")
    method = ours_like(reference, "v1", backbone="resnet18", detections=7)
    images = torch.randn(3, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        together = method(images)
        alone = [method(each[None]) for each in images]
    for name, values in together.items():
        torch.testing.assert_close(values, torch.cat([each[name] for each in alone]), atol=1e-2, rtol=1e-4)
    assert together["scores"].shape == (3, 7) and int((together["scores"] > 0).sum()) > 3


def test_folded_normalisation_and_bfloat16_change_little() -> None:
    method = shaken(small(True, 3, variant="v2")).eval()
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = method(images)
    folded = fold_batch_normalisation(copy.deepcopy(method).requires_grad_(False))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    with torch.inference_mode():
        found = folded(images)
        with torch.autocast("cpu", torch.bfloat16):
            rough = method(images)
    torch.testing.assert_close(found["scores"], expected["scores"], atol=1e-3, rtol=1e-3)
    assert all(each.dtype in (torch.float32, torch.int64) for each in rough.values())
    assert float(rough["scores"].max()) > 0


def test_targets_are_the_annotation() -> None:
    ids = np.zeros((20, 30), np.int32)
    ids[2:8, 3:9], ids[10:19, 20:30] = 1, 2
    segments = Segments((20, 30), [4, 0], LabelMap(ids), crowd=[False, True])
    targets = small(True, 5).targets(segments)
    assert targets["boxes"].tolist() == [[3, 2, 9, 8], [20, 10, 30, 19]] and targets["boxes"].dtype == torch.float32
    assert targets["classes"].tolist() == [4, 0] and targets["crowd"].tolist() == [False, True]
    assert np.array_equal(targets["masks"], [ids == 1, ids == 2])
    assert targets.keys() <= MaskRCNN.ragged
    for kind in (FasterRCNN, MaskRCNN):
        protocol, figure = kind.metric
        assert figure in make_metric(protocol, Categories(["any"])).compute()
    plain = small(False, 5).targets(segments)
    assert plain.keys() == {"boxes", "classes", "crowd"}
    beyond = Segments((20, 30), [0], box=[[-5, 3, 40, 9.5]])
    assert small(False, 5).targets(beyond)["boxes"].tolist() == [[0, 3, 30, 9.5]]


@pytest.mark.parametrize("box", [[5, 5, 5, 9], [5, 9, 9, 5], [40, 2, 50, 9], [-9, 2, 0, 9], [float("nan"), 0, 5, 5]])
def test_boxes_without_area_are_named(box: list[float]) -> None:
    method = small(False, 1)
    with pytest.raises(InputError, match=r"object 2 of 2 has no area in the image of 20 x 30") as caught:
        method.targets(Segments((20, 30), [0, 0], box=[[1, 1, 9, 9], box]))
    assert "\n" not in str(caught.value)


def test_wrong_annotation_and_options_are_told() -> None:
    with pytest.raises(InputError, match="boxes but no masks"):
        small(True, 1).targets(Segments((20, 30), [0], box=[[1, 1, 9, 9]]))
    with pytest.raises(InputError, match="neither boxes nor masks"):
        small(False, 1).targets(Segments((20, 30), [0]))
    with pytest.raises(InputError, match="5 levels, got 2"):
        FasterRCNN(1, anchor_sizes=(8.0, 16.0))
    with pytest.raises(InputError, match="1 or more"):
        FasterRCNN(1, detections=0)


def test_detections_are_cut_off_at_the_edges_and_left_out_in_the_padding() -> None:
    boxes = np.array([[2, 3, 40, 9], [31, 2, 36, 9], [0, 0, 5, 5]], np.float32)
    masks = np.ones((3, 28, 28), np.float32)
    found = segments_of_boxes((20, 30), boxes, np.array([0.9, 0.8, 0.7]), np.array([1, 0, 2]), masks)
    assert found.boxes().tolist() == [[2, 3, 30, 9], [0, 0, 5, 5]] and found.category.tolist() == [1, 2]
    assert found.masks()[0, 4:8, 3:30].all() and not found.masks()[0, :, :1].any()
    method = small(False, 3)
    outputs = {
        "boxes": torch.tensor(boxes)[None],
        "scores": torch.tensor([[0.9, 0.3, 0.0]]),
        "classes": torch.tensor([[1.0, 0.0, 2.0]]),
    }
    assert method.decode(outputs, [(64, 64)])[0].score.tolist() == pytest.approx([0.9, 0.3])
    method.thresholds["score"] = 0.5
    assert method.decode(outputs, [(64, 64)])[0].category.tolist() == [1]


def test_images_get_the_size_of_the_paper() -> None:
    assert small(False, 1).magnification_for(400, 600) == 1
    method = small(False, 1, shorter_side=800, longer_side=1333)
    assert method.magnification_for(400, 600) == 2
    assert method.magnification_for(600, 300) == pytest.approx(1333 / 600)
    with pytest.raises(InputError, match="both 0 for images as they are"):
        small(False, 1, shorter_side=800)


def test_transformers_with_patches_of_14_pixels_fit() -> None:
    torch.manual_seed(0)
    method = shaken(small(True, 2, backbone="dinov2_small", least_score=0.01)).eval()
    assert method.stride == 28
    with torch.inference_mode():
        maps = method.neck(method.backbone(torch.zeros(1, 3, 56, 84)))
    grids = [(each.shape[2], each.shape[3]) for each in maps]
    anchors = method.rpn.anchors((56, 84), grids, torch.device("cpu"))
    finest = anchors[: 3 * 16 * 24]
    # The last cells begin a step of 3.5 pixels before the edges of the image, and not far inside.
    assert finest[:, 0::2].mean(1).max() == 23 * 3.5 and finest[:, 1::2].mean(1).max() == 15 * 3.5
    found = Predictor(method, method.preprocessing_of(), "cpu", "float32")(np.zeros((50, 70, 3), np.uint8))
    assert found.size == (50, 70) and len(found) > 0


def test_export_is_refused_at_once(tmp_path: Path) -> None:
    from everymask.export.onnx import export_onnx

    for masks in (False, True):
        with pytest.raises(InputError, match="RCNN cannot be exported: it suppresses boxes between") as caught:
            export_onnx(small(masks), tmp_path / "network.onnx")
        assert "\n" not in str(caught.value) and not (tmp_path / "network.onnx").exists()


def test_fixed_statistics_stay() -> None:
    torch.manual_seed(0)
    method = small(False, norm="fixed_without_epsilon").train()
    norms: list[Any] = [each for each in method.backbone.modules() if isinstance(each, nn.BatchNorm2d)]
    before = [each.running_mean.clone() for each in norms]
    targets = method.targets(Segments((64, 64), [0], box=[[4, 4, 40, 50]]))
    method.training_loss(torch.rand(1, 3, 64, 64), {name: [value] for name, value in targets.items()})
    assert all(torch.equal(one.running_mean, other) for one, other in zip(norms, before, strict=True))
    assert norms and all(each.eps == 0 for each in norms)


def test_a_small_network_learns_boxes_and_masks() -> None:
    """Two images of discs and squares; then each object is found, in its class, with its mask."""
    torch.manual_seed(0)
    method = small(True, 2, width=32, hidden=64, proposals=40, anchor_sizes=(16.0, 24.0, 32.0, 48.0, 64.0))
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:64, :64]
    images: list[Tensor] = []
    truths: list[Segments] = []
    for number in range(2):
        ids = np.zeros((64, 64), np.int32)
        for index, (y, x) in enumerate([(16, 18), (17, 48), (47, 16 + 6 * number)], 1):
            radius = 8 + 2 * index
            far = np.maximum(abs(rows - y), abs(columns - x)) if index == 2 else np.hypot(rows - y, columns - x)
            ids[far < radius] = index
        image = np.where(ids > 0, 1.0, -1.0) + 0.1 * random.standard_normal((3, 64, 64))
        images.append(torch.from_numpy(image.astype(np.float32)))
        truths.append(Segments((64, 64), [0, 1, 0], LabelMap(ids)))
    each = [method.targets(truth) for truth in truths]
    targets = {name: [one[name] for one in each] for name in each[0]}
    batch = torch.stack(images)
    optimiser = torch.optim.AdamW(method.parameters(), 2e-3)
    for _ in range(40):
        optimiser.zero_grad()
        sum(method.training_loss(batch, targets).values(), torch.zeros(())).backward()
        optimiser.step()
    method.eval()
    with torch.inference_mode():
        found = method.decode(method(batch), [(64, 64)] * 2)
    for name in ("coco_boxes", "coco_masks"):
        metric = make_metric(name, Categories([Category(0, "disc"), Category(1, "square")]))
        for number, (segments, true) in enumerate(zip(found, truths, strict=True)):
            metric.update(true, segments, str(number))
        assert metric.compute()["ap50"] >= 0.9
