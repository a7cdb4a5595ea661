"""DETR against `transformers` with the same weights (`pip install -e .[peers]`).

    python benchmarks/detr.py [--repeats 5] [--threads 1] [--methods detr detr_panoptic] [--steps]

The time from a normalised batch of one image to the outputs of the network, on ResNet-50 with random weights and 100
queries. The peer runs eagerly in float32, in evaluation mode. Ours is measured as it is, as `Predictor` runs it in
float32 (batch normalisation folded, channels innermost), and as it predicts by default (bfloat16 where the processor
computes it fast). All run in turns in one process; printed are medians and ours / peer (below 1: ours is faster), by
the clock and by processor time. Outputs are compared before anything is timed. Our panoptic method computes masks
of probable queries alone; it is told to take `--found` of the 100 for such. With `--steps`, a training step with 10
objects an image is timed, too, without the optimiser.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DetrConfig, DetrForObjectDetection, DetrForSegmentation

from everymask.methods import method_class
from everymask.methods.foreign import load_foreign
from everymask.predict.predictor import Predictor

CLASSES, OBJECTS = 91, 10
METHODS = {
    "detr": ("everymask.methods.detection.detr:DETR", DetrForObjectDetection),
    "detr_panoptic": ("everymask.methods.detection.detr_panoptic:DETRPanoptic", DetrForSegmentation),
}


def pair(name: str, batch: Tensor, found: int, seed: int = 0) -> tuple[Any, Any]:
    """The peer's network and ours with the same weights; ours takes `found` queries of the image for probable."""
    ours, theirs = METHODS[name]
    torch.manual_seed(seed)
    peer: Any = theirs(DetrConfig(num_labels=CLASSES)).eval()
    head = peer.detr if name == "detr_panoptic" else peer
    queries = head.model.query_position_embeddings.weight
    nn.init.normal_(queries)
    nn.init.normal_(head.class_labels_classifier.weight, std=0.5)
    method: Any = method_class(ours)(classes=CLASSES)
    load_foreign(method, peer.state_dict())
    with torch.inference_mode():
        score = peer(batch).logits[0].softmax(-1)[:, :-1].amax(-1).sort(descending=True).values
    method.least_score = float((score[found - 1] + score[found]) / 2)
    return peer, method.eval()


def timed(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, tuple[float, float]]:
    """Median seconds of each by the clock and the processor, run in turns."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            start, busy = time.perf_counter(), time.process_time()
            run()
            if repeat:  # the first is for caches
                times[name].append((time.perf_counter() - start, time.process_time() - busy))
    return {name: (statistics.median(w for w, _ in t), statistics.median(c for _, c in t)) for name, t in times.items()}


def inferred(network: Any, batch: Tensor) -> Any:
    with torch.inference_mode():
        return network(batch)


def compare(peer: Any, method: Any, batch: Tensor) -> float:
    """The largest difference of the outputs, relative to their range."""
    expected, found = inferred(peer, batch), inferred(method, batch)
    probable = expected.logits.softmax(-1)[..., :-1].amax(-1) >= method.least_score
    x, y, wide, high = expected.pred_boxes.unbind(-1)
    height, width = batch.shape[-2:]
    corners = [(x - wide / 2) * width, (y - high / 2) * height, (x + wide / 2) * width, (y + high / 2) * height]
    pairs = [(found["logits"], expected.logits), (found["boxes"], torch.stack(corners, -1))]
    if "masks" in found:
        pairs.append((found["masks"][probable], expected.pred_masks[probable]))
    differences = [float((one - other).abs().max() / other.abs().max()) for one, other in pairs if other.numel()]
    return max(differences)


def training(peer: Any, method: Any, batch: Tensor) -> dict[str, Callable[[], Any]]:
    """A step of both, with the auxiliary losses."""
    height, width = batch.shape[-2:]
    random = torch.Generator().manual_seed(0)
    shares = 0.3 + 0.4 * torch.rand(OBJECTS, 4, generator=random)
    corners = torch.cat([shares[:, :2] - shares[:, 2:] / 2, shares[:, :2] + shares[:, 2:] / 2], 1).clamp(0, 1)
    shares = torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], 1)
    boxes = corners * torch.tensor([width, height, width, height])
    masks = torch.zeros(OBJECTS, height, width, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y0:y1, x0:x1] = True
    classes = torch.randint(CLASSES, (OBJECTS,), generator=random)
    theirs = [{"class_labels": classes, "boxes": shares, "masks": masks.float()}]
    own: Any = {"boxes": [boxes], "classes": [classes], "crowd": [torch.zeros(OBJECTS) > 0], "masks": [masks]}

    def step(network: nn.Module, loss: Callable[[], Tensor]) -> None:
        network.zero_grad()
        loss().backward()

    return {
        "peer": partial(step, peer, lambda: peer(batch, labels=theirs).loss),
        "ours": partial(step, method, lambda: sum(method.training_loss(batch, own).values(), torch.zeros(()))),
    }


def main() -> None:
    """Compares, then times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of torch; default: all")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--size", nargs=2, type=int, default=(480, 640), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--found", type=int, default=15, help="probable queries")
    parser.add_argument("--steps", action="store_true")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    for name in options.methods:
        batch = torch.randn(1, 3, *options.size, generator=torch.Generator().manual_seed(0))
        peer, method = pair(name, batch, options.found)
        difference = compare(peer, method, batch)
        assert difference < 1e-3, f"{name}: the outputs differ by {difference:.1e}"
        exact, default = (Predictor(method, method.preprocessing_of(), "cpu", kind) for kind in ("float32", "auto"))
        innermost = batch.to(memory_format=torch.channels_last)
        runs: dict[str, Callable[[], Any]] = {
            "peer": partial(inferred, peer, batch),
            "eager": partial(inferred, method, batch),
            "float32": partial(exact._forward, innermost),
            "default": partial(default._forward, innermost),
        }
        show(f"{name}, {options.found} probable queries", timed(runs, options.repeats), difference)
        if options.steps:
            peer.config.auxiliary_loss = True
            runs = training(peer.train(), method.train(), batch)
            show(f"{name}, training step", timed(runs, max(1, options.repeats // 2)), difference)


def show(title: str, times: dict[str, tuple[float, float]], difference: float) -> None:
    wall, busy = times.pop("peer")
    parts = [f"{kind} {1e3 * w:.0f} ms, {w / wall:.2f} {c / busy:.2f}" for kind, (w, c) in times.items()]
    print(f"{title}: peer {1e3 * wall:.0f} ms; {'; '.join(parts)} (outputs differ by {difference:.0e})", flush=True)


if __name__ == "__main__":
    main()
