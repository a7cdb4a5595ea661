"""YOLOX against the official package with the same random weights (`pip install -e .[peers]`).

    python benchmarks/yolo.py [--variants nano s] [--repeats 7] [--threads 1] [--weights yolox_nano.onnx]

The network on one image, eagerly in float32 and as prediction runs it (normalisation folded, channels last, in float32
and in bfloat16), against the official network eagerly in float32; a training step's loss, assignment included, on the
same outputs against the official head; and with the published weights onnxruntime. All run in turns in one process;
printed are medians by the clock and by processor time. Results are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from yolox.models import YoloPafpn, YoloxHead, YoloxModule

from everymask.layers import sim_ota
from everymask.methods.detection.yolo import VARIANTS, YOLO
from everymask.methods.foreign import load_foreign
from everymask.methods.onnx_weights import read_onnx
from everymask.predict.convolutions import keep_weights_in_bfloat16, run_pointwise_in_one_thread
from everymask.predict.folding import fold_batch_normalisation

CLASSES = 80


def pair(variant: str) -> tuple[Any, YOLO]:
    """The official network and ours with the same weights."""
    depth, width, depthwise, _ = VARIANTS[variant]
    torch.manual_seed(0)
    head = YoloxHead(CLASSES, width, depthwise=depthwise)
    head.initialize_biases(1e-2)
    official = YoloxModule(YoloPafpn(depth, width, depthwise=depthwise), head)
    for module in official.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-3
    method = YOLO(CLASSES, variant=variant)
    load_foreign(method, official.state_dict())
    return official.eval(), method.eval()


def prepared(method: YOLO, bfloat16: bool) -> YOLO:
    """The network as prediction runs it."""
    network = fold_batch_normalisation(copy.deepcopy(method).requires_grad_(False))
    network.to(memory_format=torch.channels_last)
    if bfloat16:
        keep_weights_in_bfloat16(network)
    else:
        run_pointwise_in_one_thread(network)
    return network


def predicted(network: Any, image: Tensor, bfloat16: bool = False) -> Any:
    """Outputs for one image."""
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        return network(image)


def timed(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, tuple[float, float]]:
    """Median milliseconds of each by the clock and the processor, run in turns."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            start, busy = time.perf_counter(), time.process_time()
            run()
            if repeat:  # the first is for caches
                times[name].append((1e3 * (time.perf_counter() - start), 1e3 * (time.process_time() - busy)))
    return {name: (statistics.median(w for w, _ in t), statistics.median(c for _, c in t)) for name, t in times.items()}


def report(title: str, times: dict[str, tuple[float, float]], peer: str) -> None:
    """Prints milliseconds, and ratios to the peer (below 1: faster)."""
    print(title)
    for name, (wall, busy) in times.items():
        ratios = f"{wall / times[peer][0]:5.2f} {busy / times[peer][1]:5.2f}"
        print(f"  {name:<28} {wall:9.1f} ms   / {peer}: {ratios}", flush=True)


def network(variant: str, repeats: int) -> None:
    """Compares and times the forward pass."""
    official, method = pair(variant)
    side = VARIANTS[variant][3]
    image = 255 * torch.rand(1, 3, side, side)
    ours = (image.flip(1) / 255).contiguous()
    last = ours.to(memory_format=torch.channels_last)
    expected = predicted(official, image)
    exact, half = prepared(method, False), prepared(method, True)
    for each, given in ((method, ours), (exact, last)):
        found = predicted(each, given)
        difference = float((found["classes"].sigmoid() - expected[..., 5:]).abs().max())
        assert difference < 1e-4, f"{variant}: the probabilities differ by {difference:.1e}"
    runs = {
        "official": partial(predicted, official, image),
        "ours, eager": partial(predicted, method, ours),
        "ours, float32": partial(predicted, exact, last),
        "ours, bfloat16": partial(predicted, half, last, True),
    }
    report(f"{variant}, {side} x {side} pixels", timed(runs, repeats), "official")


class Given(nn.Module):
    """Maps instead of a network that makes them."""

    def __init__(self, maps: list[Tensor]) -> None:
        super().__init__()
        self.maps = maps

    def forward(self, _: Any) -> list[Tensor]:
        """Always the same."""
        return self.maps


def loss(variant: str, repeats: int, boxes: int = 40, batch: int = 4) -> None:
    """Compares and times heads, assignment, loss and gradient on the same features.

    The package follows version 0.3 of the official program, which asks other cells; ours is made to do the same.
    """
    prior = sim_ota._prior
    sim_ota.RADIUS, sim_ota.OUTSIDE_COST = 1.5, 1e6
    sim_ota._prior = lambda cells, truth: (prior(cells, truth)[1],) * 2
    official, method = pair(variant)
    side = VARIANTS[variant][3]
    labels = torch.zeros(batch, boxes, 5)
    labels[..., 0] = torch.randint(CLASSES, (batch, boxes))
    labels[..., 1:3] = side * torch.rand(batch, boxes, 2)
    labels[..., 3:] = 8 + side / 4 * torch.rand(batch, boxes, 2)
    corners = torch.cat([labels[..., 1:3] - labels[..., 3:] / 2, labels[..., 1:3] + labels[..., 3:] / 2], dim=-1)
    crowd = torch.zeros(boxes, dtype=torch.bool)
    targets = {"boxes": list(corners), "classes": list(labels[..., 0].long()), "crowd": [crowd] * batch}
    images = 255 * torch.rand(batch, 3, side, side)
    with torch.no_grad():
        maps = official.backbone(images)
    official.train()
    method.train()
    method.backbone, method.neck = nn.Identity(), Given(maps)  # type: ignore[assignment]

    def of_official() -> float:
        total: Tensor = official.head(maps, labels, images)[0]
        total.backward()
        return float(total.detach())

    def of_ours() -> float:
        total = torch.stack(list(method.training_loss(images, targets).values())).sum()
        total.backward()
        return float(total.detach())

    expected, found = of_official(), of_ours()
    assert abs(expected - found) < 1e-3 * expected, f"{variant}: the loss is {found}, not {expected}"
    runs = {"official": of_official, "ours": of_ours}
    report(f"{variant}, head and loss of {batch} images with {boxes} boxes each", timed(runs, repeats), "official")
    sim_ota.RADIUS, sim_ota.OUTSIDE_COST, sim_ota._prior = 2.5, 1e5, prior


def published(weights: Path, repeats: int) -> None:
    """Compares and times the published YOLOX-nano here and in onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(weights), options)
    method = YOLO(CLASSES, variant="nano")
    load_foreign(method, read_onnx(weights))
    exact, half = prepared(method.eval(), False), prepared(method, True)
    image = 255 * torch.rand(1, 3, 416, 416)
    last = (image.flip(1) / 255).to(memory_format=torch.channels_last)
    expected = torch.from_numpy(session.run(None, {"images": image.numpy()})[0])
    difference = float((predicted(exact, last)["classes"].sigmoid() - expected[..., 5:]).abs().max())
    assert difference < 1e-4, f"the probabilities differ by {difference:.1e}"
    runs = {
        "onnxruntime": partial(session.run, None, {"images": image.numpy()}),
        "ours, float32": partial(predicted, exact, last),
        "ours, bfloat16": partial(predicted, half, last, True),
    }
    report("published nano, 416 x 416 pixels", timed(runs, repeats), "onnxruntime")


def main() -> None:
    """Compares, then times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="*", default=["nano", "s"], choices=list(VARIANTS))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, help="of torch; default: all")
    parser.add_argument("--weights", type=Path, help="yolox_nano.onnx, to compare with onnxruntime")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    for variant in options.variants:
        network(variant, options.repeats)
        loss(variant, options.repeats)
    if options.weights:
        published(options.weights, options.repeats)


if __name__ == "__main__":
    main()
