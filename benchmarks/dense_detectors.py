"""SSD and RetinaNet against torchvision with the same weights and images.

    python benchmarks/dense_detectors.py [--repeats 5] [--threads 1] [--networks ssd300] [--images FOLDER] [--steps]

Prediction goes from an image of 0..255 to detections: resizing, network, suppression. Networks have random weights, the
layers of the logits scaled so that some hundred anchors are probable. The peer runs eagerly in float32, ours as
`Predictor` does in float32 and by default (bfloat16 where the processor computes it fast). Then decoding alone, from
the same outputs, and the loss alone with its gradient. With `--steps`, a training step without the optimiser, which is
the same: in float32, and ours with the channels innermost as the engine has them. All run in turns in one process;
printed are medians and ours / peer (below 1: ours is faster), by the clock and by processor time. Detections and losses
are compared before anything is timed; the weights have learnt nothing, so those in bfloat16 are compared loosely.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torchvision.models.detection import retinanet_resnet50_fpn, retinanet_resnet50_fpn_v2, ssd300_vgg16
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from everymask.methods.detection.dense import DenseMethod
from everymask.methods.detection.retinanet import RetinaNet
from everymask.methods.detection.ssd import SSD
from everymask.methods.foreign import load_foreign
from everymask.predict.predictor import Predictor

CLASSES, OBJECTS = 90, 8
SIDES = {"shorter_side": 800, "longer_side": 1333, "detections": 300}
NETWORKS: dict[str, tuple[Callable[..., nn.Module], Callable[[], DenseMethod]]] = {
    "ssd300": (ssd300_vgg16, partial(SSD, CLASSES, pixels="caffe")),
    "retinanet": (retinanet_resnet50_fpn, partial(RetinaNet, CLASSES, **SIDES)),
    "retinanet_v2": (retinanet_resnet50_fpn_v2, partial(RetinaNet, CLASSES, variant="v2", **SIDES)),
}
"""For each, the peer and our method."""


def pair(name: str, image: NDArray[np.uint8], probable: int) -> tuple[Any, DenseMethod]:
    """Both networks with the same weights, under which as many anchors have a probable class."""
    theirs, ours = NETWORKS[name]
    torch.manual_seed(0)
    network: Any = theirs(weights=None, weights_backbone=None, num_classes=CLASSES + 1).eval()
    with torch.inference_mode():
        resized, _ = network.transform([as_tensor(image)])
        # The normalisations know nothing of the data yet: their statistics are those of the image.
        norms = [each for each in network.modules() if isinstance(each, nn.BatchNorm2d)]
        for norm in norms:
            norm.train().momentum = None
        network.backbone(resized.tensors)
        for norm in norms:
            norm.eval()
        logits = network.head(list(network.backbone(resized.tensors).values()))["cls_logits"]
    weights = [each for each in network.head.classification_head.modules() if isinstance(each, nn.Conv2d)]
    last = weights if name == "ssd300" else weights[-1:]
    spread = float(logits.std(dim=1).mean())
    for convolution in last:
        convolution.weight.data *= 1.0 / spread
    with torch.inference_mode():
        logits = network.head(list(network.backbone(resized.tensors).values()))["cls_logits"][0]
        if name == "ssd300":
            margin = logits[:, 1:].amax(1) - logits[:, 0] - np.log(0.05)
        else:
            margin = logits[:, 1:].amax(1) - float(np.log(0.05 / 0.95))
        shift = float(margin.sort(descending=True).values[probable])
        for convolution in last:
            bias = convolution.bias.data.view(-1, CLASSES + 1)
            bias[:, 1:] -= shift
            if name != "ssd300":
                # The class of the background, which we leave out.
                bias[:, 0] = -20
                convolution.weight.data.unflatten(0, (-1, CLASSES + 1))[:, 0] = 0
    method = ours()
    load_foreign(method, network.state_dict())
    return network, method.eval()


def as_tensor(image: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1).float() / 255


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


def inferred(network: Any, *inputs: Any) -> Any:
    with torch.inference_mode():
        return network(*inputs)


def agreement(found: Any, expected: dict[str, Tensor], pixels: float, probability: float) -> tuple[float, int]:
    """The share of the peer's detections that ours hold but for such differences, and their number."""
    boxes, scores = expected["boxes"].numpy(), expected["scores"].numpy()
    if not len(found):
        return 0.0, len(boxes)
    far = abs(found.boxes()[:, None] - boxes).max(-1)
    same = (far < pixels) & (found.category[:, None] == expected["labels"].numpy() - 1)
    same &= abs(np.asarray(found.score)[:, None] - scores) < probability
    return float(same.any(0).mean()), len(boxes)


def truths(height: int, width: int, batch: int) -> tuple[list[dict[str, Tensor]], dict[str, list[Tensor]]]:
    """Objects for both, in pixels of the image."""
    random = torch.Generator().manual_seed(0)
    size = torch.tensor([width, height])
    theirs, own = [], {"boxes": [], "classes": [], "crowd": []}
    for _ in range(batch):
        low = torch.rand(OBJECTS, 2, generator=random) * 0.6
        sides = 0.05 + 0.35 * torch.rand(OBJECTS, 2, generator=random)
        boxes = torch.cat([low * size, (low + sides) * size], 1)
        classes = torch.randint(CLASSES, (OBJECTS,), generator=random)
        theirs.append({"boxes": boxes, "labels": classes + 1})
        for name, each in (("boxes", boxes), ("classes", classes), ("crowd", torch.zeros(OBJECTS) > 0)):
            own[name].append(each)
    return theirs, own


def parts(network: Any, method: Any, batch: Tensor, truth: Any) -> list[tuple[str, dict[str, Callable[[], Any]]]]:
    """Decoding and loss of both from the same outputs; the losses must agree."""
    theirs, own = truth
    size = (batch.shape[-2], batch.shape[-1])
    with torch.no_grad():
        features = list(network.backbone(batch).values())
        outputs = network.head(features)
        anchors = network.anchor_generator(ImageList(batch, [size] * len(batch)), features)
        found = method(batch)
    if isinstance(method, SSD):
        decode = partial(network.postprocess_detections, outputs, anchors, [size] * len(batch))
    else:
        counts = [9 * each.shape[-2] * each.shape[-1] for each in features]
        split = {name: list(each.split(counts, dim=1)) for name, each in outputs.items()}
        anchors_of = [list(each.split(counts)) for each in anchors]
        decode = partial(network.postprocess_detections, split, anchors_of, [size] * len(batch))

    def matched() -> dict[str, Tensor]:
        inputs = {name: each.detach().requires_grad_() for name, each in outputs.items()}
        if isinstance(method, SSD):
            index = [
                network.proposal_matcher(box_iou(each["boxes"], anchor))
                for each, anchor in zip(theirs, anchors, strict=True)
            ]
            return network.compute_loss(theirs, inputs, anchors, index)
        return network.compute_loss(theirs, inputs, anchors)

    def ours() -> dict[str, Tensor]:
        inputs = {name: each.detach().requires_grad_(name in ("logits", "offsets")) for name, each in found.items()}
        return method.loss(inputs, own)

    def stepped(loss: Callable[[], dict[str, Tensor]]) -> None:
        sum(loss().values(), torch.zeros(())).backward()

    one, other = (sum(float(each.detach()) for each in loss().values()) for loss in (ours, matched))
    assert abs(one - other) < 1e-3 * abs(other), f"the losses are {one} and {other}"
    decoding = {"peer": partial(inferred, decode), "ours": partial(inferred, method.decode, found, [size] * len(batch))}
    return [
        ("decoding alone", decoding),
        ("loss alone", {"peer": partial(stepped, matched), "ours": partial(stepped, ours)}),
    ]


def steps(network: Any, method: Any, batch: Tensor, truth: Any) -> dict[str, Callable[[], Any]]:
    """A training step of both from a normalised batch."""
    theirs, own = truth
    network.transform = _AsGiven()

    def step(module: nn.Module, loss: Callable[[], dict[str, Tensor]]) -> None:
        module.zero_grad()
        sum(loss().values(), torch.zeros(())).backward()

    innermost = batch.to(memory_format=torch.channels_last)
    copy = type(method)(**method.config).train().to(memory_format=torch.channels_last)
    return {
        "peer": partial(step, network.train(), partial(network, list(batch), theirs)),
        "ours": partial(step, method.train(), partial(method.training_loss, batch, own)),
        "channels innermost": partial(step, copy, partial(copy.training_loss, innermost, own)),
    }


class _AsGiven(nn.Module):
    """Instead of the peer's resizing: images that are resized and normalised already."""

    def forward(self, images: list[Tensor], targets: Any = None) -> tuple[Any, Any]:
        return ImageList(torch.stack(images), [(each.shape[-2], each.shape[-1]) for each in images]), targets


def picture(folder: Path | None, height: int, width: int) -> NDArray[np.uint8]:
    """The first image of a folder, or blots."""
    if folder is not None:
        with Image.open(min(folder.glob("*.jpg"))) as image:
            return np.asarray(image.convert("RGB")).copy()
    random = np.random.default_rng(0).integers(0, 255, (height // 16, width // 16, 3)).astype(np.uint8)
    with Image.fromarray(random) as image:
        return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)).copy()


def show(title: str, times: dict[str, tuple[float, float]], told: str = "") -> None:
    wall, busy = times.pop("peer")
    each = [f"{kind} {1e3 * w:.0f} ms, {w / wall:.2f} {c / busy:.2f}" for kind, (w, c) in times.items()]
    print(f"{title}: peer {1e3 * wall:.0f} ms; {'; '.join(each)}{told}", flush=True)


def main() -> None:
    """Compares, then times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of torch; default: all")
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--images", type=Path, help="folder of JPEGs, of which the first is taken")
    parser.add_argument("--size", nargs=2, type=int, default=(512, 640), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--crop", type=int, default=512, help="of training steps of RetinaNet")
    parser.add_argument("--probable", type=int, default=500, help="anchors with a probable class")
    parser.add_argument("--steps", action="store_true")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    image = picture(options.images, *options.size)
    for name in options.networks:
        network, method = pair(name, image, options.probable)
        exact, default = (Predictor(method, method.preprocessing_of(), "cpu", kind) for kind in ("float32", "auto"))
        (expected,) = inferred(network, [as_tensor(image)])
        share, number = agreement(exact(image), expected, 0.1, 1e-3)
        rough, _ = agreement(default(image), expected, 8, 0.1)
        assert share > 0.95, f"{name}: of {number} detections {share:.3f} agree"
        runs: dict[str, Callable[[], Any]] = {
            "peer": lambda network=network: inferred(network, [as_tensor(image)]),
            "float32": partial(exact, image),
            "default": partial(default, image),
        }
        told = f" ({number} detections, of which {share:.3f} and {rough:.3f} agree)"
        show(f"{name}, image to detections", timed(runs, options.repeats), told)
        side = method.size if isinstance(method, SSD) else options.crop
        batch = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
        truth = truths(side, side, len(batch))
        for title, both in parts(network, method, batch, truth):
            show(f"{name}, {title}", timed(both, 2 * options.repeats))
        if options.steps:
            times = timed(steps(network, method, batch, truth), max(1, options.repeats // 2))
            show(f"{name}, training step of {len(batch)} crops of {side}", times)


if __name__ == "__main__":
    main()
