"""DETR and DETR panoptic: weights, outputs, losses and results of transformers, and what training needs."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from everymask.backbones.stages import freeze_stages
from everymask.errors import InputError
from everymask.methods.detection.detr import DETR
from everymask.methods.detection.detr_panoptic import AttentionMaps, DETRPanoptic, MaskHead
from everymask.methods.foreign import load_foreign
from everymask.metrics import make_metric
from everymask.predict.folding import fold_batch_normalisation
from everymask.predict.predictor import Predictor
from everymask.types import Categories, Category, LabelMap, Segments, Task

transformers = pytest.importorskip("transformers", reason="transformers is the reference program")
reference_losses = pytest.importorskip("transformers.loss.loss_for_object_detection")

CLASSES, QUERIES, SIZE = 5, 12, (96, 128)
MEAN, STD = torch.tensor([0.485, 0.456, 0.406])[:, None, None], torch.tensor([0.229, 0.224, 0.225])[:, None, None]
SMALL: dict[str, Any] = {
    "backbone": "resnet18",
    "width": 64,
    "heads": 8,
    "hidden": 96,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "queries": QUERIES,
}


def official(masks: bool, **options: Any) -> Any:
    """The network of transformers, small, with random weights that are all in use."""
    torch.manual_seed(0)
    config = transformers.DetrConfig(
        **{"backbone": "resnet18"}
        | options
        | {
            "d_model": 64,
            "encoder_attention_heads": 8,
            "decoder_attention_heads": 8,
            "encoder_ffn_dim": 96,
            "decoder_ffn_dim": 96,
            "encoder_layers": 2,
            "decoder_layers": 3,
            "num_queries": QUERIES,
            "num_labels": CLASSES,
        }
    )
    network = (transformers.DetrForSegmentation if masks else transformers.DetrForObjectDetection)(config)
    random = torch.Generator().manual_seed(1)
    for name, parameter in network.named_parameters():
        if "class_labels_classifier.weight" in name or "output_conv.weight" in name:
            parameter.data = 0.25 * torch.randn(parameter.shape, generator=random)
        elif "bbox_predictor.layers.2.weight" in name:
            parameter.data = 0.5 * torch.randn(parameter.shape, generator=random)
        elif "query" in name:
            parameter.data = 2 * torch.randn(parameter.shape, generator=random)
        elif "backbone" not in name and parameter.ndim == 2:
            nn.init.xavier_uniform_(parameter.data, generator=random)
        elif parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=random)
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer += 0.05 * torch.randn(buffer.shape, generator=random)
        elif name.endswith("running_var"):
            buffer *= 0.8 + 0.5 * torch.rand(buffer.shape, generator=random)
    return network.eval()


def ours_like(network: nn.Module, masks: bool, **options: Any) -> Any:
    """One of our methods with the weights of the other network."""
    method = (DETRPanoptic if masks else DETR)(CLASSES, **(SMALL | options))
    load_foreign(method, network.state_dict())
    return method.eval()


def small(masks: bool, classes: int = 1, **options: Any) -> Any:
    """One of our methods, as small as it goes."""
    kind: Any = DETRPanoptic if masks else DETR
    return kind(classes, **(SMALL | {"backbone": "test_resnet", "norm": "batch"} | options))


def pictures(shared_data: Path) -> Tensor:
    """A random and a real image (2, 3, H, W), normalised."""
    place = min((shared_data / "coco" / "tiny160" / "train2017").glob("*.jpg"))
    with Image.open(place) as image:
        array = np.asarray(image.convert("RGB").resize(SIZE[::-1]))
    real = torch.from_numpy(array.copy()).permute(2, 0, 1).float() / 255
    random = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(2))
    return torch.stack([(each - MEAN) / STD for each in (random, real)])


def in_pixels(shares: Tensor, sizes: Tensor) -> Tensor:
    """Corners (B, Q, 4) in pixels of boxes (B, Q, 4) in shares of images of `sizes` (B or 1, 2)."""
    low, high = shares[..., :2] - shares[..., 2:] / 2, shares[..., :2] + shares[..., 2:] / 2
    return torch.cat([low, high], -1) * sizes.flip(-1).repeat(1, 2)[:, None]


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dilation", [False, True])
def test_boxes_are_those_of_transformers(dilation: bool, shared_data: Path) -> None:
    # ResNets of basic blocks have no dilation.
    backbone = "resnet26" if dilation else "resnet18"
    reference = official(False, backbone=backbone, dilation=dilation)
    method = ours_like(reference, False, dilation=dilation, backbone=backbone)
    assert method.stride == (16 if dilation else 32)
    images = pictures(shared_data)
    with torch.inference_mode():
        expected, found = reference(images), method(images)
    assert found.keys() == {"logits", "boxes"}
    assert expected.logits.std() > 0.5 and expected.pred_boxes.std() > 0.05
    close(found["logits"], expected.logits)
    close(found["boxes"], in_pixels(expected.pred_boxes, torch.tensor([SIZE])))
    processor = transformers.DetrImageProcessor()
    for threshold in (0.0, 0.4):
        method.thresholds["score"] = threshold
        detections = processor.post_process_object_detection(expected, threshold, torch.tensor([SIZE, SIZE]))
        assert sum(len(each["scores"]) for each in detections) >= 4
        for segments, each in zip(method.decode(found, [SIZE, SIZE]), detections, strict=True):
            # Boxes are cut off at the edges of the image.
            boxes = each["boxes"].clamp(min=0).minimum(torch.tensor([SIZE[1], SIZE[0], SIZE[1], SIZE[0]]))
            assert np.array_equal(segments.category, each["labels"])
            np.testing.assert_allclose(segments.boxes(), boxes, atol=1e-2, rtol=1e-4)
            np.testing.assert_allclose(np.asarray(segments.score), each["scores"], atol=1e-4)


def test_masks_are_those_of_transformers(shared_data: Path) -> None:
    reference = official(True)
    images = pictures(shared_data)
    with torch.inference_mode():
        expected = reference(images)
        found = ours_like(reference, True, least_score=0.0)(images)
    close(found["logits"], expected.logits)
    close(found["boxes"], in_pixels(expected.pred_boxes, torch.tensor([SIZE])))
    assert found["masks"].shape == (2, QUERIES, SIZE[0] // 4, SIZE[1] // 4)
    assert expected.pred_masks.std() > 0.1
    close(found["masks"], expected.pred_masks)
    # What is not computed is what is improbable.
    score = expected.logits.softmax(-1)[..., :-1].amax(-1)
    low, high = score.flatten().sort().values[QUERIES - 1 : QUERIES + 1].tolist()
    computed = score > low
    with torch.inference_mode():
        some = ours_like(reference, True, least_score=(low + high) / 2)(images)
    assert 0 < int(computed.sum()) <= QUERIES
    close(some["masks"][computed], expected.pred_masks[computed])
    assert (some["masks"][~computed] == -100).all()


@pytest.mark.parametrize("masks", [False, True])
def test_padding_is_not_seen(masks: bool) -> None:
    """Batches of images of several sizes, as transformers with a mask of the pixels."""
    reference = official(masks)
    method = ours_like(reference, masks, **({"least_score": 0.0} if masks else {}))
    sizes = torch.tensor([[96, 128], [50, 128], [96, 61]])
    images = torch.randn(3, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    inside = torch.zeros(3, *SIZE, dtype=torch.int64)
    for image, mask, (height, width) in zip(images, inside, sizes.tolist(), strict=True):
        mask[:height, :width] = 1
        image *= mask
    with torch.inference_mode():
        expected, found, unaware = reference(images, pixel_mask=inside), method(images, sizes), method(images)
    close(found["logits"], expected.logits)
    assert not torch.allclose(unaware["logits"][1:], expected.logits[1:], atol=1e-2)
    close(found["boxes"], in_pixels(expected.pred_boxes, sizes))
    if masks:
        close(found["masks"], expected.pred_masks)


def facebook_names(network: Any) -> dict[str, Tensor]:
    """The tensors of a network of transformers as the official program calls them."""
    rules = (
        (r"^detr\.(?=model|class|bbox_predictor)", ""),
        (r"^model\.backbone\.model\.", "backbone.0.body."),
        (r"^model\.input_projection\.", "input_proj."),
        (r"^model\.query_position_embeddings\.", "query_embed."),
        (r"^model\.(encoder|decoder)\.", r"transformer.\1."),
        (r"^class_labels_classifier\.", "class_embed."),
        (r"^bbox_predictor\.", "bbox_embed."),
        (r"decoder\.layernorm\.", "decoder.norm."),
        (r"\.self_attn_layer_norm\.", ".norm1."),
        (r"\.encoder_attn_layer_norm\.", ".norm2."),
        (r"(transformer\.encoder\.layers\.\d+)\.final_layer_norm\.", r"\1.norm2."),
        (r"\.final_layer_norm\.", ".norm3."),
        (r"\.encoder_attn\.", ".multihead_attn."),
        (r"\.mlp\.fc", ".linear"),
        (r"\.o_proj\.", ".out_proj."),
        (r"^(bbox_attention\.[qk])_proj\.", r"\1_linear."),
        (r"^mask_head\.conv(\d)\.conv\.", r"mask_head.lay\1."),
        (r"^mask_head\.conv(\d)\.norm\.", r"mask_head.gn\1."),
        (r"^mask_head\.output_conv\.", "mask_head.out_lay."),
    )
    state: dict[str, Tensor] = {}
    for name, value in network.state_dict().items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        if stage := re.match(r"mask_head\.fpn_stages\.(\d)\.(fpn_adapter|refine\.conv|refine\.norm)\.(.*)", name):
            number, part, kind = int(stage[1]), stage[2], stage[3]
            layer = {"fpn_adapter": f"adapter{number + 1}", "refine.conv": f"lay{number + 3}"}
            name = f"mask_head.{layer.get(part, f'gn{number + 3}')}.{kind}"
        state[name] = value
    for name in [each for each in state if ".q_proj." in each]:
        stem, kind = name.split(".q_proj.")
        parts = [state.pop(f"{stem}.{each}_proj.{kind}") for each in "qkv"]
        state[f"{stem}.in_proj_{kind}"] = torch.cat(parts)
    if any(name.startswith("mask_head.") for name in state):
        return {name if name.startswith(("mask", "bbox_att")) else f"detr.{name}": each for name, each in state.items()}
    return state


@pytest.mark.parametrize("masks", [False, True])
def test_official_names_load(masks: bool) -> None:
    reference = official(masks)
    state = facebook_names(reference)
    prefix = "detr." if masks else ""
    for name in (
        "backbone.0.body.layer1.0.bn2.running_var",
        "transformer.encoder.layers.1.self_attn.in_proj_bias",
        "transformer.encoder.layers.0.norm2.weight",
        "transformer.decoder.layers.2.multihead_attn.out_proj.weight",
        "transformer.decoder.layers.0.norm3.bias",
        "transformer.decoder.norm.weight",
        "bbox_embed.layers.2.bias",
        "class_embed.weight",
        "query_embed.weight",
        "input_proj.weight",
    ):
        assert prefix + name in state
    if masks:
        assert {"bbox_attention.k_linear.bias", "mask_head.gn5.weight", "mask_head.out_lay.bias"} <= state.keys()
        assert {"mask_head.lay3.weight", "mask_head.adapter3.weight"} <= state.keys()
    method = (DETRPanoptic if masks else DETR)(CLASSES, **SMALL)
    load_foreign(method, state)
    own = ours_like(reference, masks).state_dict()
    assert all(torch.equal(value, own[name]) for name, value in method.state_dict().items())


@pytest.mark.parametrize("masks", [False, True])
def test_saved_files_load(masks: bool, tmp_path: Path) -> None:
    """Files of transformers have older names than its networks."""
    reference = official(masks)
    reference.save_pretrained(tmp_path)
    method = (DETRPanoptic if masks else DETR)(CLASSES, **SMALL)
    load_foreign(method, tmp_path / "model.safetensors")
    own = ours_like(reference, masks).state_dict()
    assert all(torch.equal(value, own[name]) for name, value in method.state_dict().items())
    other = (DETRPanoptic if masks else DETR)(CLASSES + 2, **SMALL)
    with pytest.raises(InputError, match="new_logits"):
        load_foreign(other, tmp_path / "model.safetensors")
    load_foreign(other, tmp_path / "model.safetensors", new_logits=True)


def test_resnets_of_transformers_itself_load() -> None:
    backbone = transformers.ResNetConfig(
        depths=[2, 2, 2, 2],
        hidden_sizes=[64, 128, 256, 512],
        layer_type="basic",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    reference = official(False, backbone=None, backbone_config=backbone)
    assert any("encoder.stages.3.layers.0.shortcut.convolution" in name for name in reference.state_dict())
    method = ours_like(reference, False)
    images = torch.randn(1, 3, *SIZE)
    with torch.inference_mode():
        close(method(images)["logits"], reference(images).logits)


@pytest.mark.parametrize(("masks", "rows"), [(False, 91), (True, 250)])
def test_every_tensor_of_the_published_networks_has_a_place(masks: bool, rows: int) -> None:
    config = transformers.DetrConfig(num_labels=rows)
    with torch.device("meta"):
        network = (transformers.DetrForSegmentation if masks else transformers.DetrForObjectDetection)(config)
        method = (DETRPanoptic if masks else DETR)(rows)
    found, own = method.foreign(network.state_dict()), method.state_dict()
    assert {name: value.shape for name, value in found.items()} == {name: value.shape for name, value in own.items()}


def truth(size: tuple[int, int], crowd: bool = False) -> tuple[list[dict[str, Tensor]], dict[str, list[Tensor]]]:
    """Objects of two images for transformers and for us; a crowd region is for us only, which leave it out."""
    boxes = [torch.tensor([[10.0, 12, 60, 50], [40, 30, 120, 90], [0, 0, 20, 96]]), torch.tensor([[5.0, 40, 50, 81]])]
    classes = [torch.tensor([0, 3, 3]), torch.tensor([4])]
    masks = []
    for each in boxes:
        drawn = torch.zeros(len(each), *size, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(drawn, each.int().tolist(), strict=True):
            mask[y0 + 3 : y1, x0 : x1 - 7] = True
        masks.append(drawn)
    pixels = torch.tensor([size[1], size[0], size[1], size[0]])
    theirs = []
    for one, two, three in zip(boxes, classes, masks, strict=True):
        shares = torch.cat([(one[:, :2] + one[:, 2:]) / 2, one[:, 2:] - one[:, :2]], 1) / pixels
        theirs.append({"class_labels": two, "boxes": shares, "masks": three.float()})
    own = {"boxes": boxes, "classes": classes, "masks": masks, "crowd": [torch.zeros(len(each)) > 0 for each in boxes]}
    if crowd:
        for name, extra in (("boxes", [3.0, 3, 70, 80]), ("classes", 1), ("crowd", True)):
            values = own[name][0]
            own[name][0] = torch.cat([values[:1], torch.tensor([extra], dtype=values.dtype), values[1:]])
        own["masks"][0] = torch.cat([masks[0][:1], masks[0][1:2] ^ True, masks[0][1:]])
    return theirs, own


@pytest.mark.parametrize(("masks", "crowd"), [(False, True), (True, False), (True, True)])
def test_losses_are_those_of_transformers(masks: bool, crowd: bool) -> None:
    reference = official(masks)
    method = ours_like(reference, masks)
    images = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(3))
    theirs, own = truth(SIZE, crowd)
    head = reference.detr if masks else reference
    # Its option auxiliary_loss normalises the objects between the layers, too, which the official program does not.
    states: list[Tensor] = []
    decoder = head.model.decoder
    for layer in decoder.layers:
        layer.register_forward_hook(lambda *arguments: states.append(decoder.layernorm(arguments[-1])))
    outputs = reference(images)
    logits = torch.stack([head.class_labels_classifier(each) for each in states])
    boxes = torch.stack([head.bbox_predictor(each).sigmoid() for each in states])
    close(logits[-1], outputs.logits)
    config = copy.deepcopy(reference.config)
    config.auxiliary_loss = True
    arguments = (outputs.logits, theirs, images.device, outputs.pred_boxes)
    if masks:
        loss = reference_losses.ForSegmentationLoss
        total, terms, _ = loss(*arguments, outputs.pred_masks, config, logits, boxes)
    else:
        total, terms, _ = reference_losses.ForObjectDetectionLoss(*arguments, config, logits, boxes)
    found = method.training_loss(images, own)
    names = {"classes": ("loss_ce", 1), "boxes": ("loss_bbox", 5), "overlap": ("loss_giou", 2)}
    expected = {name: weight * terms[other] for name, (other, weight) in names.items()}
    expected |= {
        f"auxiliary_{name}": weight * (terms[f"{other}_0"] + terms[f"{other}_1"])
        for name, (other, weight) in names.items()
    }
    if masks:
        expected |= {"masks": terms["loss_mask"], "dice": terms["loss_dice"]}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4)
    ours = sum(found.values(), torch.zeros(()))
    torch.testing.assert_close(ours, total, atol=1e-4, rtol=1e-4)
    total.backward()
    ours.backward()
    pairs = [
        (method.encoder.layers[0].attention.value.weight, head.model.encoder.layers[0].self_attn.v_proj.weight),
        (method.queries.weight, head.model.query_position_embeddings.weight),
        (method.box_head[0].weight, head.bbox_predictor.layers[0].weight),
    ]
    if masks:
        pairs += [
            (method.mask_head.first.convolution.weight, reference.mask_head.conv1.conv.weight),
            (method.mask_head.adapters[0].weight, reference.mask_head.fpn_stages[0].fpn_adapter.weight),
            (method.mask_attention.key.weight, reference.bbox_attention.k_proj.weight),
        ]
    for one, other in pairs:
        assert one.grad is not None and one.grad.abs().max() > 0
        torch.testing.assert_close(one.grad, other.grad, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("masks", [False, True])
def test_images_without_objects_and_with_too_many_train(masks: bool) -> None:
    torch.manual_seed(0)
    method = small(masks, 2, queries=3).train()
    many = np.zeros((64, 64), np.int32)
    for number in range(7):
        many[9 * number : 9 * number + 6, 5:40] = number + 1
    crowded = Segments((64, 64), [0, 1] * 3 + [0], LabelMap(many))
    for samples in ([Segments.empty((64, 64))] * 2, [Segments.empty((64, 64)), crowded]):
        targets = [method.targets(each) for each in samples]
        batch = {name: [each[name] for each in targets] for name in targets[0]}
        terms = method.training_loss(torch.rand(2, 3, 64, 64), batch)
        assert all(torch.isfinite(term) for term in terms.values())
        assert float(terms["classes"].detach()) > 0
        assert (float(terms["boxes"].detach()) > 0) == (len(samples[1]) > 0)
        sum(terms.values(), torch.zeros(())).backward()
        assert all(torch.isfinite(each.grad).all() for each in method.parameters() if each.grad is not None)


def panoptic_by_hand(
    logits: np.ndarray, large: np.ndarray, stuff: set[int], size: tuple[int, int], limit: float
) -> tuple[np.ndarray, list[int]]:
    """The rule of the official program for one image, pixel by pixel: the query of each pixel, -1 none, and classes.

    Masks are (Q, H, W) of what the network saw; of an image of another size, pixels are those that their middles are.
    """
    probability = np.exp(logits - logits.max(1, keepdims=True))
    probability /= probability.sum(1, keepdims=True)
    none = logits.shape[1] - 1
    alive = [q for q in range(len(logits)) if probability[q].argmax() != none and probability[q].max() > limit]
    rows, columns = (
        [int((place + 0.5) * have / wanted) for place in range(wanted)]
        for have, wanted in zip(large.shape[1:], size, strict=True)
    )
    merging = True
    while alive:
        owner = np.zeros(size, int)
        for y in range(size[0]):
            for x in range(size[1]):
                owner[y, x] = max(alive, key=lambda q, y=y, x=x: (large[q, rows[y], columns[x]], -q))
        if merging:
            for label in stuff:
                same = [q for q in alive if probability[q].argmax() == label]
                for q in same:
                    owner[owner == q] = same[0]
        merging = False
        left = [q for q in alive if (owner == q).sum() > 4]
        if left == alive:
            return owner, [int(probability[q].argmax()) for q in alive]
        alive = left
    return np.full(size, -1), []


@pytest.mark.parametrize("seed", range(6))
def test_panoptic_results_follow_the_official_rule(seed: int) -> None:
    random = np.random.default_rng(seed)
    method = small(True, 4, queries=9, stuff=(1, 3))
    method.thresholds["score"] = 0.5
    logits = random.standard_normal((1, 9, 5)) * 2
    for query in range(6):
        logits[0, query, query % 4] += 6
    masks = random.standard_normal((1, 9, 8, 8)) * 3
    masks[0, 2] -= 8 + seed % 2
    masks[0, 7] -= 7
    outputs = {"logits": torch.from_numpy(logits).float(), "masks": torch.from_numpy(masks).float()}
    size = (27, 30)
    (found,) = method.decode(outputs, [size])
    large = functional.interpolate(outputs["masks"], scale_factor=4, mode="bilinear")[0, :, : size[0], : size[1]]
    owner, classes = panoptic_by_hand(
        outputs["logits"][0].numpy(), large.numpy(), {1, 3}, size, method.thresholds["score"]
    )
    assert found.category.tolist() == classes
    assert np.array_equal(found.label_map(), np.searchsorted(np.unique(owner), owner) + 1)
    assert len(classes) < 6 and len(set(classes) & {1, 3}) == sum(each in (1, 3) for each in classes)
    score = outputs["logits"][0].softmax(-1).amax(-1)[np.unique(owner)]
    np.testing.assert_allclose(np.asarray(found.score), score, atol=1e-6)


def test_no_sure_query_is_no_segment() -> None:
    method = small(True, 2)
    logits = torch.zeros(2, QUERIES, 3)
    logits[1, 0, 1], logits[1, 1, 2] = 9.0, 9.0
    masks = torch.full((2, QUERIES, 16, 16), -100.0)
    none, whole = method.decode({"logits": logits, "masks": masks}, [(64, 64), (60, 63)])
    assert len(none) == 0 and not none.label_map().any()
    assert whole.category.tolist() == [1] and (whole.label_map() == 1).all() and whole.size == (60, 63)


@pytest.mark.parametrize("masks", [False, True])
def test_a_batch_says_what_its_images_say_alone(masks: bool) -> None:
    method = ours_like(official(masks), masks)
    images = torch.randn(3, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        together, alone = method(images), [method(each[None]) for each in images]
    for name, values in together.items():
        close(values, torch.cat([each[name] for each in alone]))


@pytest.mark.parametrize("masks", [False, True])
def test_the_predictor_finds_what_the_network_says(masks: bool) -> None:
    """With folded normalisation, and in bfloat16, of an image that has to be padded, with zeros as crops are."""
    method = ours_like(official(masks), masks)
    method.thresholds["score"] = 0.4
    image = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    batch = functional.pad((torch.from_numpy(image).permute(2, 0, 1) / 255 - MEAN) / STD, (0, 8, 0, 6))
    with torch.inference_mode():
        outputs = method(batch[None])
    (expected,) = method.decode(outputs, [(90, 120)])
    found = Predictor(method, method.preprocessing_of(), "cpu", "float32")(image)
    assert len(expected) >= 1 and found.size == (90, 120)
    assert np.array_equal(found.category, expected.category)
    if masks:
        assert (found.label_map() == expected.label_map()).mean() > 0.98
    else:
        np.testing.assert_allclose(found.boxes(), expected.boxes(), atol=1e-2)
    rough, size = Predictor(method, method.preprocessing_of(), "cpu", "bfloat16").outputs(image)
    assert size == (90, 120) and all(each.dtype == torch.float32 for each in rough.values())
    assert (rough["boxes"] - outputs["boxes"]).abs().max() < 5
    folded = fold_batch_normalisation(copy.deepcopy(method).requires_grad_(False))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())


@pytest.mark.parametrize("masks", [False, True])
def test_images_of_any_size_are_seen_as_by_transformers(masks: bool) -> None:
    """No side is a multiple of anything; the result is for an image that was larger before it was resized."""
    reference = official(masks)
    method = ours_like(reference, masks, any_size=True)
    method.thresholds["score"] = 0.3
    size, original = (83, 116), (90, 121)
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    raw, seen = Predictor(method, method.preprocessing_of(), "cpu", "float32").outputs(image)
    with torch.inference_mode():
        expected = reference(((torch.from_numpy(image).permute(2, 0, 1) / 255 - MEAN) / STD)[None])
    assert seen == size
    close(raw["logits"], expected.logits)
    close(raw["boxes"], in_pixels(expected.pred_boxes, torch.tensor([size])))
    factors = [wanted / have for wanted, have in zip(original, size, strict=True)]
    (found,) = method.decode(method.at_scale(raw, factors), [original])
    assert found.size == original and len(found) >= 2
    if masks:
        computed = raw["masks"] > -100
        assert computed.any()
        close(raw["masks"][computed], expected.pred_masks[computed])
        large = functional.interpolate(raw["masks"], size=size, mode="bilinear", align_corners=False)[0]
        owner, names = panoptic_by_hand(raw["logits"][0].numpy(), large.numpy(), set(), original, 0.3)
        assert found.category.tolist() == names
        assert np.array_equal(found.label_map(), np.searchsorted(np.unique(owner), owner) + 1)
    else:
        score, classes = expected.logits.softmax(-1)[0, :, :-1].max(-1)
        boxes = in_pixels(expected.pred_boxes, torch.tensor([original]))[0, score >= 0.3]
        edges = torch.tensor([original[1], original[0], original[1], original[0]])
        assert found.category.tolist() == classes[score >= 0.3].tolist()
        np.testing.assert_allclose(found.boxes(), boxes.clamp(min=0).minimum(edges), atol=1e-2)


def test_masks_need_not_be_computed_for_each_query() -> None:
    """The mask head gives what copies of the features beside every object's maps would give."""
    torch.manual_seed(0)
    head, random = MaskHead(32, 8, (20, 12, 6)), torch.Generator().manual_seed(0)
    features = torch.randn(2, 32, 3, 4, generator=random)
    finer = [torch.randn(2, each, 3 * 2**n, 4 * 2**n, generator=random) for n, each in enumerate((20, 12, 6), 1)]
    attention, image = torch.rand(5, 8, 3, 4, generator=random), torch.tensor([0, 1, 1, 0, 1])
    masks = head.first(torch.cat([features[image], attention], 1))
    masks = head.blocks[0](masks)
    for block, adapt, each in zip(head.blocks[1:], head.adapters, finer, strict=True):
        masks = block(adapt(each[image]) + masks.repeat_interleave(2, -1).repeat_interleave(2, -2))
    close(head(attention, head.shared(features, finer), image), head.output(masks)[:, 0])
    none = head(attention[:0], head.shared(features, finer), image[:0])
    assert none.shape == (0, 24, 32)
    maps = AttentionMaps(32, 4)(torch.randn(2, 5, 32), torch.randn(2, 12, 32))
    assert maps.shape == (2, 5, 4, 12)
    torch.testing.assert_close(maps.sum((2, 3)), torch.ones(2, 5))


def test_networks_are_exported_for_any_size() -> None:
    """Batch, height and width stay free, and every query gets its mask, whatever it is worth."""
    torch.manual_seed(0)
    method = small(True, 2, decoder_layers=1, encoder_layers=1, queries=2, least_score=0.0).eval()
    batch, rows, columns = (torch.export.Dim(each, min=1) for each in ("batch", "rows", "columns"))
    shapes = {"images": {0: batch, 2: 32 * rows, 3: 32 * columns}}
    program = torch.export.export(method, (torch.randn(2, 3, 128, 64),), dynamic_shapes=shapes)
    other = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        expected, found = method(other), program.module()(other)
    assert found.keys() == expected.keys() == {"logits", "boxes", "masks"}
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-4, rtol=1e-4)


def test_an_exported_network_takes_images_as_they_are(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from everymask.export.onnx import export_onnx

    torch.manual_seed(0)
    method = small(False, 2, any_size=True, encoder_layers=1, decoder_layers=1)
    assert max(export_onnx(method, tmp_path / "network.onnx").values()) < 1e-4
    session = onnxruntime.InferenceSession(str(tmp_path / "network.onnx"))
    for size in ((97, 130), (250, 333), (31, 64)):
        images = torch.rand(1, 3, *size)
        with torch.inference_mode():
            expected = method(images)
        found = session.run(list(expected), {"images": images.numpy()})
        for array, wanted in zip(found, expected.values(), strict=True):
            close(torch.from_numpy(array), wanted)


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_the_first_layers_learn_nothing_as_in_the_official_program(backbone: str) -> None:
    for kind in (DETR, DETRPanoptic):
        recipe = kind.recipe_for(backbone=backbone)
        assert recipe.freeze == 2 and kind.recipe_for(norm="fixed").freeze == 2
        assert kind.recipe_for(norm="batch").freeze == 0  # random weights must learn
        method: Any = kind(CLASSES, **(SMALL | {"backbone": backbone}))
        freeze_stages(method.backbone, recipe.freeze)
        names = dict(method.backbone.body.named_parameters())
        # models/backbone.py, BackboneBase: all but these are frozen.
        learning = {name for name in names if any(stage in name for stage in ("layer2", "layer3", "layer4"))}
        assert {name for name, each in names.items() if each.requires_grad} == learning != names.keys()


def test_contract_and_options() -> None:
    for kind, tasks in (
        (DETR, {Task.DETECTION}),
        (DETRPanoptic, {Task.DETECTION, Task.INSTANCE, Task.PANOPTIC}),
    ):
        protocol, figure = kind.metric
        categories = Categories([Category(1, "car"), Category(2, "sky", is_thing=False)])
        metric = make_metric(protocol, categories)
        ids = np.array([[1, 1, 2, 2]] * 4, np.int32)
        segments = Segments((4, 4), [1, 2], LabelMap(ids), score=[0.9, 0.8])
        metric.update(segments, segments, "a")
        assert metric.compute()[figure] == pytest.approx(1) and kind.tasks == tasks
        assert kind.recipe().learning_rate == 1e-4
        assert kind(2, **SMALL).magnification_for(400, 600) == 1
        assert kind(2, **SMALL, shorter_side=800, longer_side=1333).magnification_for(400, 600) == 2
    method = DETR(2, **SMALL).train()
    norms: list[Any] = [each for each in method.backbone.modules() if isinstance(each, nn.BatchNorm2d)]
    assert norms and not any(each.training for each in norms) and method.encoder.training
    targets = small(True, 3).targets(Segments((4, 4), [2, 0], LabelMap(ids)))
    assert targets["masks"].shape == (2, 4, 4) and targets["boxes"].tolist() == [[0, 0, 2, 4], [2, 0, 4, 4]]
    for options, message in (
        ({"queries": 0}, "queries: got 0, expected 1 or more"),
        ({"decoder_layers": 0}, "decoder_layers: got 0"),
        ({"encoder_layers": -1}, "encoder_layers: got -1"),
        ({"width": 30}, "expected a multiple of 4"),
        ({"width": 24}, "expected a multiple of 16"),
        ({"heads": 7}, "multiple of the number of heads, got 7"),
        ({"no_object": -1}, "no_object: got -1"),
        ({"dropout": 1.5}, "dropout: got 1.5"),
        ({"norm": "fix"}, "unknown norm"),
        ({"stuff": (3,)}, r"stuff: got \[3\], expected classes from 0 to 1"),
        ({"least_score": 2}, "least_score: got 2"),
        ({"shorter_side": 800}, "shorter_side and longer_side"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            DETRPanoptic(2, **(SMALL | options))
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="boxes but no masks"):
        small(True).targets(Segments((20, 30), [0], box=[[1, 1, 9, 9]]))
    assert set(small(False).targets(Segments((20, 30), [0], box=[[1, 1, 9, 9]]))) == {"boxes", "classes", "crowd"}


def shapes(masks: bool) -> tuple[Tensor, list[Segments]]:
    """Two images of a disc and two squares; with masks the ground on the left and on the right is stuff."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:64, :64]
    images: list[Tensor] = []
    truths: list[Segments] = []
    for number in range(2):
        ids = np.zeros((64, 64), np.int32)
        category = [0, 1, 1]
        if masks:
            ids[:], category = np.where(columns < 32 + 10 * number, 4, 5), [0, 1, 1, 2, 3]
        for index, (y, x) in enumerate([(15, 18 + 20 * number), (17, 50 - 30 * number), (47, 16 + 15 * number)], 1):
            far = np.hypot(rows - y, columns - x) if index == 1 else np.maximum(abs(rows - y), abs(columns - x))
            ids[far < 5 + 3 * index] = index
        image = np.select([ids == 1, (ids == 2) | (ids == 3), ids == 4], [1.0, 0.3, -0.4], -1.0)
        images.append(torch.from_numpy((image + 0.1 * random.standard_normal((3, 64, 64))).astype(np.float32)))
        truths.append(Segments((64, 64), category, LabelMap(ids)))
    return torch.stack(images), truths


@pytest.mark.parametrize(("masks", "steps"), [(False, 100), (True, 160)])
def test_a_small_network_learns(masks: bool, steps: int) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"queries": 10, "decoder_layers": 1 if masks else 2, "dropout": 0.0}
    method = small(masks, 4 if masks else 2, **options, **({"stuff": (2, 3)} if masks else {})).train()
    images, truths = shapes(masks)
    each = [method.targets(truth) for truth in truths]
    targets = {name: [one[name] for one in each] for name in each[0]}
    optimiser = torch.optim.AdamW(method.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1.0, 3 * (1 - step / steps)))
    for _ in range(steps):
        optimiser.zero_grad()
        sum(method.training_loss(images, targets).values(), torch.zeros(())).backward()
        optimiser.step()
        schedule.step()
    method.eval()
    with torch.inference_mode():
        found = method.decode(method(images), [(64, 64)] * len(images))
    names = [Category(0, "disc"), Category(1, "square"), Category(2, "left", False), Category(3, "right", False)]
    protocol, figure = ("panoptic", "pq") if masks else ("coco_boxes", "ap50")
    metric = make_metric(protocol, Categories(names))
    for number, (segments, true) in enumerate(zip(found, truths, strict=True)):
        metric.update(true, segments, str(number))
    # Masks of a quarter of so small a size are coarse.
    assert metric.compute()[figure] >= (0.7 if masks else 0.9)
