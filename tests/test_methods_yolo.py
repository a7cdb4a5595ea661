"""YOLOX: outputs of the official ONNX file and package, assignment and losses against loops, and training."""

from __future__ import annotations

import builtins
import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from everymask.errors import InputError
from everymask.formats import open_dataset
from everymask.formats.images import read_image
from everymask.layers import sim_ota as assignment
from everymask.layers.csp_darknet import STRIDES, NormedConvolution, SpatialPooling, focus_kernel, folded_state
from everymask.layers.sim_ota import sim_ota
from everymask.methods.detection.yolo import VARIANTS, YOLO, boxes_of_cells, offsets_of_boxes
from everymask.methods.foreign import load_foreign
from everymask.methods.onnx_weights import read_onnx
from everymask.metrics import make_metric
from everymask.predict.folding import fold_batch_normalisation
from everymask.types import Segments

SIDE = 416
SMALL: dict[str, Any] = {"variant": "tiny", "width": 0.125}


def square(array: NDArray[np.uint8]) -> tuple[Tensor, float]:
    """The official letterbox: (3, 416, 416) RGB 0..255 with grey below or at the right, and its magnification."""
    height, width = array.shape[:2]
    factor = min(SIDE / height, SIDE / width)
    pixels = torch.from_numpy(np.atleast_3d(array).copy()).permute(2, 0, 1).float().expand(3, -1, -1)
    size = (int(height * factor), int(width * factor))
    small = functional.interpolate(pixels[None], size, mode="bilinear", align_corners=False)[0].round()
    return functional.pad(small, (0, SIDE - size[1], 0, SIDE - size[0]), value=114), factor


class Official:
    """The published network by onnxruntime, with the pre- and post-processing of its program in numpy."""

    def __init__(self, path: Path) -> None:
        runtime = pytest.importorskip("onnxruntime", reason="onnxruntime runs the published network")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = 1
        self.path, self.session = path, runtime.InferenceSession(str(path), options)
        strides = [np.full((SIDE // each) ** 2, each) for each in STRIDES]
        corners = [np.mgrid[: SIDE // each, : SIDE // each][::-1].reshape(2, -1).T for each in STRIDES]
        self.strides, self.corners = np.concatenate(strides)[:, None], np.concatenate(corners)

    def __call__(self, image: Tensor) -> NDArray[np.float32]:
        """(A, 85) raw offsets, and probabilities of objects and classes, of RGB (3, 416, 416) 0..255."""
        found: NDArray[np.float32] = self.session.run(None, {"images": image.flip(0)[None].numpy()})[0][0]
        return found

    def detections(self, image: Tensor, least: float, overlap: float = 0.65) -> tuple[NDArray[Any], ...]:
        """Boxes (N, 4) in the image, scores and classes after suppression class by class."""
        found = self(image).astype(np.float64)
        centre = (found[:, :2] + self.corners) * self.strides
        half = np.exp(found[:, 2:4]) * self.strides / 2
        boxes, kind = np.hstack([centre - half, centre + half]), found[:, 5:].argmax(1)
        score = found[:, 4] * found[:, 5:].max(1)
        order = [int(each) for each in np.argsort(-score, kind="stable") if score[each] >= least]
        kept: list[int] = []
        while order:
            best = order.pop(0)
            kept.append(best)
            order = [each for each in order if kind[each] != kind[best] or iou(boxes[each], boxes[best]) <= overlap]
        return boxes[kept], score[kept], kind[kept]


def iou(a: Any, b: Any) -> float:
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, wide) * max(0.0, high)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return float(shared / union) if union > 0 else 0.0


@pytest.fixture(scope="module")
def published(shared_data: Path) -> Official:
    path = shared_data.parent / "weights" / "yolox_nano.onnx"
    if not path.is_file():
        pytest.skip("the published weights (../shared/weights) are not beside this checkout")
    return Official(path)


@pytest.fixture(scope="module")
def nano(published: Official) -> YOLO:
    method = YOLO(80, variant="nano")
    load_foreign(method, read_onnx(published.path))
    return method.eval()


# -- the published weights ---------------------------------------------------------------------------------------------


def test_raw_outputs_are_those_of_the_published_network(published: Official, nano: YOLO, shared_data: Path) -> None:
    places = sorted((shared_data / "coco" / "tiny160" / "val2017").glob("*.jpg"))[:2]
    noise = 255 * torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    for image in (noise, *(square(read_image(place))[0] for place in places)):
        expected = torch.from_numpy(published(image))
        with torch.inference_mode():
            found = nano.raw(image[None] / 255)
        torch.testing.assert_close(found["offsets"][0], expected[:, :4], atol=1e-4, rtol=0)
        torch.testing.assert_close(found["objectness"][0].sigmoid(), expected[:, 4], atol=1e-4, rtol=0)
        torch.testing.assert_close(found["classes"][0].sigmoid(), expected[:, 5:], atol=1e-4, rtol=0)


def test_average_precision_is_that_of_the_published_network(published: Official, nano: YOLO, shared_data: Path) -> None:
    dataset = open_dataset(shared_data / "coco" / "tiny160", split="train2017")
    ids = np.array([each.id for each in dataset.categories])
    ours, official = (make_metric("coco_boxes", dataset.categories) for _ in range(2))
    network = fold_batch_normalisation(YOLO(80, variant="nano").eval())  # as prediction does
    network.load_state_dict(fold_batch_normalisation(nano_copy(nano)).state_dict())
    network.to(memory_format=torch.channels_last)
    for sample in dataset:
        image, factor = square(read_image(sample.path))
        with torch.inference_mode():
            found = nano.decode(network(image[None].to(memory_format=torch.channels_last) / 255), [(SIDE, SIDE)])[0]
        boxes, score, kind = published.detections(image, nano.thresholds["score"])
        size = sample.segments.size
        edges = [size[1], size[0], size[1], size[0]]
        for metric, (box, of, sure) in (
            (ours, (found.boxes(), found.category, found.score)),
            (official, (boxes, kind, score)),
        ):
            cut = np.clip(box / factor, 0, edges)
            metric.update(sample.segments, Segments(size, ids[of], score=sure, box=cut), sample.name)
    figures = {name: float(ours.compute()[name]) for name in ("ap", "ap50")}
    expected = {name: float(official.compute()[name]) for name in ("ap", "ap50")}
    assert expected["ap"] > 0.29
    assert figures == pytest.approx(expected, abs=0.002)


def nano_copy(nano: YOLO) -> YOLO:
    copied = YOLO(80, variant="nano").eval()
    copied.load_state_dict(nano.state_dict())
    return copied


def test_weights_without_normalisation_are_trained_without(nano: YOLO) -> None:
    method = nano_copy(nano).train()
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(method(image)["boxes"], nano(image)["boxes"], rtol=1e-6, atol=1e-5)
    method.training_loss(image, targets([[[4, 4, 40, 60]], []], [[3], []]))["objectness"].backward()
    assert all(torch.equal(one, other) for one, other in zip(method.buffers(), nano.buffers(), strict=True))
    fresh = YOLO(2, **SMALL).train()
    fresh(torch.rand(2, 3, 64, 64))
    norms = [each for each in fresh.modules() if isinstance(each, nn.BatchNorm2d)]
    assert all(int(each.num_batches_tracked) == 1 for each in norms)


def test_other_classes_keep_all_but_the_logits(published: Official, nano: YOLO) -> None:
    method = YOLO(3, variant="nano")
    with pytest.raises(InputError, match="other classes"):
        load_foreign(method, read_onnx(published.path))
    load_foreign(method, read_onnx(published.path), new_logits=True)
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(method.eval()(image)["boxes"], nano(image)["boxes"])


def test_onnx_files_that_do_not_fit(published: Official, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="instead of"):
        load_foreign(YOLO(80, variant="tiny"), read_onnx(published.path))
    with pytest.raises(InputError, match="does not exist"):
        read_onnx(tmp_path / "none.onnx")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(published.path.read_bytes()[:100_000])
    with pytest.raises(InputError, match=r"broken\.onnx cannot be read"):
        read_onnx(broken)
    broken.write_bytes(b"")
    with pytest.raises(InputError, match="no weights"):
        read_onnx(broken)
    usual = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "onnx":
            raise ImportError(name)
        return usual(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"everymask\[export\]"):
        read_onnx(published.path)


def test_onnx_weights_come_in_the_order_of_the_graph(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    random = np.random.default_rng(0)
    arrays = {
        "b": random.random((3, 2, 1, 1)).astype(np.float32),
        "a": random.random((2, 3, 1, 1)).astype(np.float16),
        "size": np.array([1, 3, -1]),
        "unused": np.zeros(2, np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "a"], ["first"]),
        helper.make_node("Conv", ["first", "b"], ["second"]),
        helper.make_node("Reshape", ["second", "size"], ["out"]),
    ]
    ends = [helper.make_tensor_value_info(name, 1, None) for name in ("image", "out")]
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    onnx.save(helper.make_model(helper.make_graph(nodes, "two", ends[:1], ends[1:], tensors)), tmp_path / "two.onnx")
    found = read_onnx(tmp_path / "two.onnx")
    assert list(found) == ["a", "b"]
    assert all(np.array_equal(value, arrays[name]) and value.dtype == torch.float32 for name, value in found.items())


# -- the official package ----------------------------------------------------------------------------------------------


def official_network(variant: str, classes: int) -> Any:
    """The official network with random weights and statistics."""
    models = pytest.importorskip("yolox.models", reason="pixeltable-yolox is the reference package")
    depth, width, depthwise, _ = VARIANTS[variant]
    torch.manual_seed(1)
    body = models.YoloPafpn(depth, width, depthwise=depthwise)
    network = models.YoloxModule(body, models.YoloxHead(classes, width, depthwise=depthwise))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps, module.momentum = 1e-3, 0.03  # as its experiments set them
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
    return network


@pytest.mark.parametrize("variant", ["nano", "tiny", "m"])
def test_outputs_are_those_of_the_official_package(variant: str) -> None:
    network = official_network(variant, 7).eval()
    method = YOLO(7, variant=variant).eval()
    load_foreign(method, network.state_dict())
    image = 255 * torch.rand(2, 3, 96, 64)
    with torch.inference_mode():
        expected, found = network(image), method(image.flip(1) / 255)
    half = expected[..., 2:4] / 2
    boxes = torch.cat([expected[..., :2] - half, expected[..., :2] + half], dim=-1)
    torch.testing.assert_close(found["boxes"], boxes, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(found["objectness"].sigmoid(), expected[..., 4], atol=1e-5, rtol=0)
    torch.testing.assert_close(found["classes"].sigmoid(), expected[..., 5:], atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_losses_are_those_of_the_official_package(monkeypatch: pytest.MonkeyPatch) -> None:
    # The package follows version 0.3, whose only change to the assignment is which cells are asked.
    prior = assignment._prior
    monkeypatch.setattr(assignment, "RADIUS", 1.5)
    monkeypatch.setattr(assignment, "OUTSIDE_COST", 1e6)
    monkeypatch.setattr(assignment, "_prior", lambda cells, boxes: (prior(cells, boxes)[1],) * 2)
    network = official_network("nano", 7).train()
    network.head.use_l1 = True
    method = YOLO(7, variant="nano", distance=1.0).train()
    load_foreign(method, network.state_dict())
    side, counts = 160, (12, 0, 3)
    truth, classes, labels = [], [], torch.zeros(3, 20, 5)
    for image, count in enumerate(counts):
        boxes = random_boxes(count, side, image)
        kinds = torch.randint(7, (count,))
        labels[image, :count, 0] = kinds
        labels[image, :count, 1:3] = (boxes[:, :2] + boxes[:, 2:]) / 2
        labels[image, :count, 3:] = boxes[:, 2:] - boxes[:, :2]
        truth.append(boxes.tolist())
        classes.append(kinds.tolist())
    images = 255 * torch.rand(3, 3, side, side)
    expected = network(images, labels)
    found = method.training_loss(images.flip(1) / 255, targets(truth, classes))
    names = {"boxes": "iou_loss", "objectness": "conf_loss", "classes": "cls_loss", "distance": "l1_loss"}
    for name, other in names.items():
        assert float(found[name].detach()) == pytest.approx(float(expected[other].detach()), rel=1e-4)


# -- assignment and losses against loops -------------------------------------------------------------------------------


def random_boxes(count: int, side: int, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    centre = side * torch.rand(count, 2, generator=random)
    half = 2 + side / 5 * torch.rand(count, 2, generator=random)
    return torch.cat([centre - half, centre + half], dim=1).clamp(0, side)


def targets(boxes: Any, classes: Any, crowd: Any = None) -> dict[str, Any]:
    return {
        "boxes": [torch.tensor(each, dtype=torch.float32).reshape(-1, 4) for each in boxes],
        "classes": [torch.tensor(each, dtype=torch.int64) for each in classes],
        "crowd": [torch.tensor(each, dtype=torch.bool) for each in crowd or [[False] * len(each) for each in boxes]],
    }


def grid(side: int) -> NDArray[np.float64]:
    """Column, row and stride of every cell."""
    rows = [(x, y, s) for s in STRIDES for y, x in product(range(side // s), repeat=2)]
    return np.array(rows, np.float64)


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def slow_assignment(predicted: Any, objectness: Any, logits: Any, cells: Any, boxes: Any, classes: Any) -> list[int]:
    """SimOTA as the paper tells it, pair by pair."""
    count, found = len(cells), [-1] * len(cells)
    costs, overlaps = np.full((len(boxes), count), np.nan), np.full((len(boxes), count), np.nan)
    asked = []
    places = {}
    for cell, (column, row, stride) in enumerate(cells):
        x, y = (column + 0.5) * stride, (row + 0.5) * stride
        inside = [b[0] < x < b[2] and b[1] < y < b[3] for b in boxes]
        near = [max(abs(x - (b[0] + b[2]) / 2), abs(y - (b[1] + b[3]) / 2)) < 2.5 * stride for b in boxes]
        if any(inside) or any(near):
            asked.append(cell)
            places[cell] = [one and other for one, other in zip(inside, near, strict=True)]
    for cell in asked:
        sure = np.sqrt(sigmoid(logits[cell]) * sigmoid(objectness[cell]))
        for number, (box, kind) in enumerate(zip(boxes, classes, strict=True)):
            overlaps[number, cell] = iou(box, predicted[cell])
            wrong = -sum(math.log(p if k == kind else 1 - p) for k, p in enumerate(sure))
            costs[number, cell] = wrong - 3 * math.log(overlaps[number, cell] + 1e-8)
            costs[number, cell] += 0 if places[cell][number] else 1e5
    wanted: dict[int, list[int]] = {}
    for number in range(len(boxes)):
        best = sorted((overlaps[number, cell] for cell in asked), reverse=True)[:10]
        for cell in sorted(asked, key=lambda cell: costs[number, cell])[: max(1, int(sum(best)))]:
            wanted.setdefault(cell, []).append(number)
    for cell, numbers in wanted.items():
        found[cell] = numbers[0] if len(numbers) == 1 else int(np.argmin(costs[:, cell]))
    return found


def made_up(seed: int, side: int = 96, classes: int = 4) -> dict[str, NDArray[Any]]:
    """Outputs that are partly right, and boxes, some of them in one place."""
    random = np.random.default_rng(seed)
    count = int(random.integers(1, 7))
    boxes = random_boxes(count, side, seed).double().numpy()
    boxes[-1] = boxes[0] + 1
    cells = grid(side)
    aim = boxes[random.integers(count, size=len(cells))]
    wild = aim + random.normal(0, 4, aim.shape)
    predicted = np.hstack([np.minimum(wild[:, :2], wild[:, 2:] - 1), wild[:, 2:]])
    return {
        "cells": cells,
        "boxes": boxes,
        "classes": random.integers(classes, size=count),
        "predicted": predicted,
        "objectness": random.normal(0, 2, len(cells)),
        "logits": random.normal(0, 2, (len(cells), classes)),
    }


@pytest.mark.parametrize("seed", range(12))
def test_assignment_is_that_of_loops(seed: int) -> None:
    case = made_up(seed)
    found = sim_ota(**{name: torch.from_numpy(value) for name, value in case.items()})
    expected = slow_assignment(**case)
    assert found.tolist() == expected
    assert len(set(expected)) > 1


def test_assignment_without_boxes_or_without_cells_near_them() -> None:
    case = {name: torch.from_numpy(value) for name, value in made_up(0).items()}
    none = case | {"boxes": case["boxes"][:0], "classes": case["classes"][:0]}
    assert set(sim_ota(**none).tolist()) == {-1}
    assert set(sim_ota(**case | {"boxes": case["boxes"] + 10_000}).tolist()) == {-1}


def test_loss_is_that_of_loops() -> None:
    side, classes = 96, 4
    cases = [made_up(seed, side, classes) for seed in range(3)]
    cases[1] |= {"boxes": cases[1]["boxes"][:0], "classes": cases[1]["classes"][:0]}
    cells = grid(side)
    expected, number = dict.fromkeys(("boxes", "objectness", "classes", "distance"), 0.0), 0
    for case in cases:
        found = slow_assignment(**case)
        number += sum(each >= 0 for each in found)
        for cell, box in enumerate(found):
            p = sigmoid(case["objectness"][cell])
            expected["objectness"] -= math.log(p if box >= 0 else 1 - p)
            if box < 0:
                continue
            truth, guess = case["boxes"][box], case["predicted"][cell]
            overlap = iou(truth, guess)
            expected["boxes"] += 5 * (1 - overlap**2)
            for k, logit in enumerate(case["logits"][cell]):
                t = overlap if k == case["classes"][box] else 0.0
                expected["classes"] -= t * math.log(sigmoid(logit)) + (1 - t) * math.log(1 - sigmoid(logit))
            numbers = []
            for box_of in (truth, guess):
                low, high = box_of[:2] / cells[cell, 2], box_of[2:] / cells[cell, 2]
                numbers.append([*((low + high) / 2 - cells[cell, :2]), *np.log(high - low)])
            expected["distance"] += 0.5 * sum(abs(one - other) for one, other in zip(*numbers, strict=True))
    tensors = {name: torch.tensor(np.stack([case[name] for case in cases])) for name in ("objectness", "logits")}
    at = torch.from_numpy(cells)
    offsets = torch.stack([offsets_of_boxes(torch.from_numpy(case["predicted"]), at) for case in cases])
    outputs = {"offsets": offsets, "objectness": tensors["objectness"], "classes": tensors["logits"], "cells": at}
    truth = targets([case["boxes"].tolist() for case in cases], [case["classes"].tolist() for case in cases])
    found_terms = YOLO(classes, **SMALL, distance=0.5).loss(outputs, truth)
    for name, value in expected.items():
        assert float(found_terms[name]) == pytest.approx(value / number, rel=1e-4), name


def test_boxes_and_offsets_are_inverse() -> None:
    cells = torch.from_numpy(grid(64))
    boxes = random_boxes(len(cells), 64, 0).double()
    torch.testing.assert_close(boxes_of_cells(offsets_of_boxes(boxes, cells), cells), boxes, atol=1e-4, rtol=0)


def test_crowds_are_neither_found_nor_background() -> None:
    method = YOLO(2, **SMALL)
    with torch.no_grad():
        outputs = method.raw(torch.rand(1, 3, 64, 64))
    outputs["objectness"] = torch.zeros(1, 64 + 16 + 4)
    crowd = targets([[[0, 0, 32, 64]]], [[0]], [[True]])
    # Of the 84 cells the left half is in the crowd; each of the others costs log 2.
    assert float(method.loss(outputs, crowd)["objectness"]) == pytest.approx(42 * math.log(2))
    assert float(method.loss(outputs, crowd)["boxes"]) == 0


# -- layers ------------------------------------------------------------------------------------------------------------


def test_stem_says_what_a_focus_says() -> None:
    torch.manual_seed(0)
    weight, image = torch.randn(5, 8, 3, 3), torch.randn(1, 2, 12, 16)
    corners = [image[..., y::2, x::2] for x in (0, 1) for y in (0, 1)]
    expected = functional.conv2d(torch.cat(corners, 1), weight, padding=1)
    found = functional.conv2d(image, focus_kernel(weight), stride=2, padding=2)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_folded_normalisation_adds_the_bias_and_nothing_else() -> None:
    torch.manual_seed(0)
    weight, bias, image = torch.randn(4, 3, 3, 3), torch.randn(4), torch.randn(2, 3, 8, 8)
    layer = NormedConvolution(3, 4, 3)
    layer.load_state_dict(folded_state(weight, bias))
    plain = functional.conv2d(image, weight, padding=1)
    assert torch.equal(layer.eval().norm(plain), plain + bias[:, None, None])
    torch.testing.assert_close(layer(image), functional.silu(functional.conv2d(image, weight, bias, padding=1)))


def test_pooling_in_steps_is_pooling_at_once() -> None:
    torch.manual_seed(0)
    layer, image = SpatialPooling(8).eval(), torch.randn(1, 8, 11, 9)
    with torch.inference_mode():
        first = layer.first(image)
        at_once = [functional.max_pool2d(first, side, stride=1, padding=side // 2) for side in (5, 9, 13)]
        assert torch.equal(layer(image), layer.last(torch.cat([first, *at_once], 1)))


# -- detections and training -------------------------------------------------------------------------------------------


def test_decoding_suppresses_class_by_class_and_drops_the_padding() -> None:
    method = YOLO(3, **SMALL)
    boxes = [[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 9], [30, 0, 40, 10], [18, 4, 26, 30], [0, 0, 4, 4], [1, 1, 3, 3]]
    sure = torch.tensor([4.0, 3.0, 2.0, 4.0, 1.0, -9.0, float("nan")])
    classes = torch.full((1, 7, 3), -6.0)
    for cell, kind in enumerate((0, 0, 1, 2, 2, 0, 0)):
        classes[0, cell, kind] = 2.0
    outputs = {"boxes": torch.tensor([boxes], dtype=torch.float32), "objectness": sure[None], "classes": classes}
    found = method.decode(outputs, [(20, 24)])[0]
    # The second is too like the first, the fourth is in the padding, the sixth improbable, the last no number.
    assert found.category.tolist() == [0, 1, 2]
    assert found.boxes().tolist() == [[0, 0, 10, 10], [0, 0, 10, 9], [18, 4, 24, 20]]
    assert found.score == pytest.approx([sigmoid(each) * sigmoid(2.0) for each in (4.0, 2.0, 1.0)])
    method.thresholds["nms"] = 0.95
    assert len(method.decode(outputs, [(20, 24)])[0]) == 4
    limited = YOLO(3, **SMALL, detections=1)
    assert limited.decode(outputs, [(20, 24)])[0].boxes().tolist() == [[0, 0, 10, 10]]
    assert len(method.decode({name: each[:, :0] for name, each in outputs.items()}, [(20, 24)])[0]) == 0


def test_it_learns_the_boxes_of_two_images() -> None:
    torch.manual_seed(0)
    boxes = [[[8, 8, 40, 32], [50, 44, 80, 92]], [[4, 50, 44, 90], [60, 8, 84, 26], [52, 60, 88, 84]]]
    classes = [[0, 1], [1, 0, 0]]
    images = 0.1 * torch.rand(2, 3, 96, 96)
    for image, (these, kinds) in enumerate(zip(boxes, classes, strict=True)):
        for (x0, y0, x1, y1), kind in zip(these, kinds, strict=True):
            images[image, 2 * kind, y0:y1, x0:x1] += 0.8
    method = YOLO(2, **SMALL, distance=1.0).train()
    truth = targets(boxes, classes)
    optimiser = torch.optim.Adam(method.parameters())
    for step in range(140):
        # Slow at the end, so that the running statistics come after.
        optimiser.param_groups[0]["lr"] = 5e-3 * max(0.02, 1 - step / 110)
        optimiser.zero_grad()
        sum(method.training_loss(images, truth).values()).backward()
        optimiser.step()
    method.eval().thresholds["score"] = 0.5
    with torch.inference_mode():
        found = method.decode(method(images), [(96, 96)] * 2)
    for segments, these, kinds in zip(found, boxes, classes, strict=True):
        assert len(segments) == len(these)
        for box, kind in zip(these, kinds, strict=True):
            best = max(range(len(segments)), key=lambda each: iou(segments.boxes()[each], box))
            assert iou(segments.boxes()[best], box) > 0.75
            assert segments.category[best] == kind


@pytest.mark.parametrize("backbone", ["", "resnet10t"])
def test_images_without_objects_train(backbone: str) -> None:
    method = YOLO(2, **SMALL, backbone=backbone, distance=1.0).train()
    terms = method.training_loss(torch.rand(2, 3, 64, 64), targets([[], []], [[], []]))
    assert set(terms) == {"boxes", "objectness", "classes", "distance"}
    total = sum(terms.values())
    assert math.isfinite(float(total))
    total.backward()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in method.head.parameters())


def test_cells_are_as_large_as_those_of_the_backbone() -> None:
    method = YOLO(1, **SMALL, backbone="dinov2_small").eval()
    assert method.stride == 28
    with torch.inference_mode():
        raw = method.raw(torch.zeros(1, 3, 56, 84))
    cells = raw["cells"]
    assert [sorted(set(each)) for each in cells.T.tolist()] == [[*range(12)], [*range(8)], [7, 14, 28]]
    # The last cell of each map ends where the image ends.
    assert all(cells[cells[:, 2] == step, 0].max() * step + step == 84 for step in (7, 14, 28))
    offsets = torch.zeros_like(raw["offsets"])
    assert boxes_of_cells(offsets, cells)[0, -1].tolist() == [42, 14, 70, 42]


def test_half_precision_and_other_channels_train() -> None:
    method = YOLO(1, channels=5, **SMALL).train()
    with torch.autocast("cpu", torch.bfloat16):
        terms = method.training_loss(torch.rand(1, 5, 64, 64), targets([[[0, 0, 64, 64]]], [[0]]))
    assert all(each.dtype == torch.float32 and each.isfinite() for each in terms.values())
    assert float(terms["boxes"].detach()) > 0


def test_sizes_and_options() -> None:
    nano, small = YOLO(1, variant="nano"), YOLO(1)
    assert nano.magnification_for(640, 480) == pytest.approx(416 / 640)
    assert small.magnification_for(320, 160) == 2
    assert YOLO(1, **SMALL, side=512).magnification_for(256, 1024) == 0.5
    assert [YOLO.recipe_for(**each).crop for each in ({}, {"variant": "tiny"}, {"side": 320})] == [640, 416, 320]
    # Table 3 and 4 of the paper, in millions of parameters with 80 classes.
    parameters = {name: sum(each.numel() for each in YOLO(80, variant=name).parameters()) for name in ("nano", "s")}
    assert {name: round(number / 1e6, 2) for name, number in parameters.items()} == {"nano": 0.91, "s": 8.97}
    for options, message in (
        ({"variant": "small"}, "variant"),
        ({"classes": 0}, "classes"),
        ({"width": 0.01}, "width"),
        ({"depth": float("nan")}, "depth"),
        ({"distance": -1.0}, "distance"),
    ):
        with pytest.raises(InputError, match=message):
            YOLO(**options)
