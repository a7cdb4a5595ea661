"""Semantic prediction against `segmentation_models_pytorch` with the same weights (`pip install -e .[peers]`).

    python benchmarks/semantic_predict.py [--repeats 9] [--threads 1]

From an image to the class of each pixel: preprocessing, network, argmax. The peer is used as its documentation does,
eagerly in float32. Ours is measured in float32 and as it predicts by default (bfloat16 where the processor computes it
fast). All run in turns in one process; printed are medians and ours / peer (below 1: ours is faster), by the clock and
by processor time. Results are compared before anything is timed. At the end, the class and the probability of each
pixel from given logits of the size of Cityscapes, against the same in torch, and against its argmax alone.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import segmentation_models_pytorch as smp
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from everymask.backbones.pyramid import IMAGENET_MEAN, IMAGENET_STD
from everymask.methods import method_class
from everymask.methods.foreign import load_foreign
from everymask.methods.semantic.common import SemanticMethod
from everymask.ops.argmax import most_probable
from everymask.predict.predictor import Predictor

CLASSES = 12
NETWORKS: dict[str, tuple[type[nn.Module], str, str, dict[str, Any]]] = {
    "unet": (smp.Unet, "resnet34", "unet", {}),
    "deeplabv3plus": (smp.DeepLabV3Plus, "resnet50", "deeplabv3plus", {"smp": True}),
    "pspnet": (smp.PSPNet, "resnet50", "pspnet", {"depth": 3, "auxiliary": False, "smp": True}),
}
"""For each: class of the peer, encoder, our method and its options."""


def peer_classes(network: nn.Module, image: NDArray[np.uint8], stride: int) -> tuple[torch.Tensor, NDArray[np.int64]]:
    """Logits (1, K, H, W) and classes (H, W) as a user of the peer gets them, padded as ours."""
    height, width = image.shape[:2]
    pixels = (image.astype(np.float32) / 255 - np.float32(IMAGENET_MEAN)) / np.float32(IMAGENET_STD)
    batch = torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None]
    batch = functional.pad(batch, (0, -width % stride, 0, -height % stride), mode="reflect")
    with torch.inference_mode():
        logits = network(batch)[..., :height, :width]
        return logits, logits.argmax(1)[0].numpy()


def pair(name: str, seed: int = 0) -> tuple[nn.Module, SemanticMethod]:
    """The peer's network and ours with the same weights; the statistics of its normalisations are of real images."""
    peer, encoder, ours, options = NETWORKS[name]
    torch.manual_seed(seed)
    network = peer(encoder, encoder_weights=None, classes=CLASSES)
    network.train()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
        for _ in range(2):
            network(torch.randn(2, 3, 128, 128))
    method = method_class(ours)(classes=CLASSES - 1, backbone=encoder, **options)
    load_foreign(method, network.state_dict())
    assert isinstance(method, SemanticMethod)
    return network.eval(), method


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


def decoding(repeats: int, classes: int = 19, size: tuple[int, int] = (1024, 2048)) -> None:
    """Times the step from logits to classes, counts and mean probabilities."""
    torch.manual_seed(0)
    coarse = 4 * torch.randn(1, classes, size[0] // 16, size[1] // 16)
    logits = functional.interpolate(coarse, size, mode="bilinear")[0]

    def in_torch(maps: torch.Tensor) -> tuple[NDArray[Any], ...]:
        highest, index = maps.max(0)
        weights = (highest - maps.logsumexp(0)).exp().flatten().double()
        counts = torch.bincount(index.flatten(), minlength=classes)
        return index.numpy(), counts.numpy(), torch.bincount(index.flatten(), weights, minlength=classes).numpy()

    for order, maps in (
        ("channels first", logits),
        ("channels last", logits.permute(1, 2, 0).contiguous().permute(2, 0, 1)),
    ):
        for ours, expected in zip(most_probable(maps.numpy()), in_torch(maps), strict=True):
            np.testing.assert_allclose(ours, expected, rtol=1e-5)
        runs = {
            "ours": partial(most_probable, maps.numpy()),
            "torch": partial(in_torch, maps),
            "argmax": partial(torch.argmax, maps, 0),
        }
        (ours, busy), (wall, peer), (argmax, alone) = timed(runs, repeats).values()
        print(
            f"classes of {classes} x {size[0]} x {size[1]}, {order}: {1e3 * ours:.0f} ms; "
            f"ours / torch {ours / wall:.2f} {busy / peer:.2f}, "
            f"ours / argmax alone {ours / argmax:.2f} {busy / alone:.2f}"
        )


def main() -> None:
    """Compares, then times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, help="of torch; default: all")
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    print(
        "network         image        smp ms   fp32 ms, ours / smp   default ms, ours / smp   (by clock and processor)"
    )
    for name in options.networks:
        network, method = pair(name)
        exact = Predictor(method, method.preprocessing_of(), "cpu", "float32")
        default = Predictor(method, method.preprocessing_of(), "cpu")
        for size in ((360, 480), (512, 512)):
            image = np.random.default_rng(0).integers(0, 255, (size[0] // 8, size[1] // 8, 3)).astype(np.uint8)
            image = image.repeat(8, 0).repeat(8, 1)
            logits, classes = peer_classes(network, image, method.stride)
            outputs, _ = exact.outputs(image)
            found = outputs["classes"][..., : size[0], : size[1]]
            difference = float((found - logits).abs().max() / logits.abs().max())
            shares = [(each(image).semantic_map(background=-1) + 1 == classes).mean() for each in (exact, default)]
            assert difference < 1e-4, f"{name}: the logits differ by {difference:.1e}"
            assert shares[0] > 0.999 and shares[1] > 0.9, f"{name}: the classes agree in {shares}"
            runs = {
                "smp": partial(peer_classes, network, image, method.stride),
                "fp32": partial(exact, image),
                "default": partial(default, image),
            }
            times = timed(runs, options.repeats)
            (wall, busy), ours, fast = times["smp"], times["fp32"], times["default"]
            print(
                f"{name:<14} {size[0]:>4}x{size[1]:<4}  {1e3 * wall:8.1f} {1e3 * ours[0]:8.1f} "
                f"{ours[0] / wall:4.2f} {ours[1] / busy:4.2f} {1e3 * fast[0]:10.1f} {fast[0] / wall:4.2f} "
                f"{fast[1] / busy:4.2f}   logits differ by {difference:.0e}, classes agree in {shares[1]:.4f}",
                flush=True,
            )
    decoding(options.repeats)


if __name__ == "__main__":
    main()
