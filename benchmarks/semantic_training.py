"""Optimiser steps a second of semantic methods here, and of the same networks of segmentation_models_pytorch.

The peer is trained by a plain loop: forward pass, cross-entropy, backward pass, AdamW. It runs twice: in float32 as
people write it first, and in bfloat16 with the channels innermost as the careful do. Ours is the engine as it trains
by default, with gradient clipping, moving average and the checks for infinite losses on top. Both get the same weights,
and must give the same logits before anything is timed. Steps are taken in turn, each by a process of its own, because
the engine changes how a process takes memory from the system; the medians are compared.

    python benchmarks/semantic_training.py --batch 4 --crop 256 --repeats 7
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import repeat
from multiprocessing.connection import Connection
from typing import Any

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from torch.nn import functional

from everymask.data.loader import Batch
from everymask.methods import method_class
from everymask.methods.base import Method
from everymask.train.engine import Engine

CLASSES = 11
COMPETITORS = ("ours", "peer in bf16", "peer in fp32")
Step = Callable[[], Tensor]

CASES: dict[str, tuple[str, dict[str, Any], Callable[[], nn.Module]]] = {
    "unet(resnet34)": (
        "unet",
        {"backbone": "resnet34"},
        lambda: smp.Unet("resnet34", encoder_weights=None, classes=CLASSES),
    ),
    "unet(tf_efficientnet_lite0)": (
        "unet",
        {"backbone": "tf_efficientnet_lite0"},
        lambda: smp.Unet("tu-tf_efficientnet_lite0", encoder_weights=None, classes=CLASSES),
    ),
    "deeplabv3plus(resnet50)": (
        "deeplabv3plus",
        {"backbone": "resnet50", "smp": True},
        lambda: smp.DeepLabV3Plus("resnet50", encoder_weights=None, classes=CLASSES),
    ),
    "pspnet(resnet50)": (
        "pspnet",
        {"backbone": "resnet50", "depth": 3, "auxiliary": False, "smp": True},
        lambda: smp.PSPNet("resnet50", encoder_weights=None, classes=CLASSES),
    ),
}


def batch_of(size: int, crop: int, device: torch.device) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(size, 3, crop, crop, generator=generator)
    blocks = torch.randint(-1, CLASSES, (size, crop // 16, crop // 16), generator=generator)
    classes = blocks.repeat_interleave(16, 1).repeat_interleave(16, 2)
    return images.to(device), {"classes": classes.to(device)}


def ours(method: Method, batch: Batch) -> Step:
    """A step of the engine with the method's own recipe."""
    engine = Engine(method, method.recipe_for(**method.config))
    engine.objective.train()
    source: Iterator[Batch] = repeat(batch)
    return lambda: engine.step(source, 1e-4)


def peer(network: nn.Module, batch: Batch, fast: bool) -> Step:
    """A step of the plain loop."""
    images, targets = batch
    device = images.device
    network = network.to(device).train()
    if fast:
        network, images = (each.to(memory_format=torch.channels_last) for each in (network, images))
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4)

    def step() -> Tensor:
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=fast):
            logits = network(images)
        loss = functional.cross_entropy(logits.float(), targets["classes"], ignore_index=-1)
        loss.backward()
        optimiser.step()
        return loss.detach()

    return step


def check_same(method: Method, network: nn.Module, batch: Batch) -> None:
    """Gives both the same weights and compares their logits."""
    # The peer wraps the networks that it takes from timm once more.
    state = {name.replace("encoder.model.", "encoder."): each for name, each in network.state_dict().items()}
    method.load_state_dict(method.foreign(state))  # type: ignore[attr-defined]
    with torch.no_grad():
        mine, theirs = method.eval()(batch[0][:1])["classes"], network.eval()(batch[0][:1])
    difference = float((mine - theirs).abs().max() / theirs.abs().max())
    if difference > 1e-4:
        raise SystemExit(f"the networks differ by {difference:.2g} of the largest logit")


def seconds(step: Step, device: torch.device) -> tuple[float, float]:
    """By the clock, and of processor time, which other programs on the machine disturb less."""
    started, used = time.perf_counter(), time.process_time()
    _ = float(step().sum())  # looking at the result waits for an accelerator
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - started, time.process_time() - used


def serve(pipe: Connection, name: str, competitor: str, size: int, crop: int, threads: int) -> None:
    """Takes a step whenever asked to, and answers how long it took."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = accelerator or torch.device("cpu")
    method_name, arguments, make = CASES[name]
    method = method_class(method_name)(classes=CLASSES, background=False, **arguments)
    network = make()
    if competitor == "ours":
        check_same(method, network, batch_of(size, crop, torch.device("cpu")))
    batch = batch_of(size, crop, device)
    step = ours(method, batch) if competitor == "ours" else peer(network, batch, competitor == "peer in bf16")
    for _ in range(2):
        seconds(step, device)
    pipe.send(str(device))
    while pipe.recv():
        pipe.send(seconds(step, device))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--crop", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU")
    parser.add_argument("--only", nargs="*", default=list(CASES), help="cases")
    options = parser.parse_args()
    print(f"batches of {options.batch} crops of {options.crop} pixels, {options.threads} threads of the CPU")
    print("steps a second, and ours / peer: by the clock, in brackets by processor time")
    print(f"{'network':28} {'':6}" + "".join(f"{each:>14}" for each in COMPETITORS) + "        in bf16        in fp32")
    context = multiprocessing.get_context("spawn")
    for name in options.only:
        pipes: list[Connection] = []
        for competitor in COMPETITORS:
            here, there = context.Pipe()
            arguments = (there, name, competitor, options.batch, options.crop, options.threads)
            context.Process(target=serve, args=arguments, daemon=True).start()
            device = here.recv()  # one after the other, so that warming up disturbs nobody
            pipes.append(here)
        taken: list[list[tuple[float, float]]] = [[] for _ in pipes]
        for _ in range(options.repeats):
            for pipe, found in zip(pipes, taken, strict=True):
                pipe.send(True)
                found.append(pipe.recv())
        for pipe in pipes:
            pipe.send(False)
        clock, used = ([statistics.median(each[i] for each in found) for found in taken] for i in (0, 1))
        rates = "".join(f"{1 / each:14.3f}" for each in clock)
        ratios = "".join(f"{clock[i] / clock[0]:8.2f} ({used[i] / used[0]:.2f})" for i in (1, 2))
        print(f"{name:28} {device:6}{rates}{ratios}", flush=True)


if __name__ == "__main__":
    main()
