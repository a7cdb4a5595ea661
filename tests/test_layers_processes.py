"""What the processes of a distributed training share, in two processes that share it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed

from everymask.layers.processes import mean_count
from everymask.methods.detection.detr import DETR


def network() -> DETR:
    torch.manual_seed(0)
    small = {"width": 16, "heads": 2, "hidden": 16, "encoder_layers": 1, "decoder_layers": 2, "queries": 6}
    return DETR(3, backbone="test_resnet", **small).eval()


def batch(rank: int) -> tuple[Tensor, dict[str, list[Tensor]]]:
    """An image with one object, or one with three."""
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(rank))
    boxes = [[[8.0, 8, 40, 30]], [[4.0, 4, 20, 60], [30, 10, 60, 50], [0, 40, 50, 64]]][rank]
    crowd = torch.zeros(len(boxes), dtype=torch.bool)
    return image, {"boxes": [torch.tensor(boxes)], "classes": [torch.arange(len(boxes))], "crowd": [crowd]}


def run_one_of_two(out: Path) -> None:
    """Loss and gradient of this process's batch, and the loss without a gradient."""
    distributed.init_process_group("gloo")
    method = network()
    images, targets = batch(distributed.get_rank())
    terms = method.training_loss(images, targets)
    (terms["boxes"] + terms["overlap"]).backward()
    with torch.no_grad():
        alone = method.training_loss(images, targets)
    found = [each.detach() for each in (terms["boxes"], terms["overlap"], alone["boxes"])]
    torch.save((found, method.box_head[0].weight.grad), out / str(distributed.get_rank()))


def test_two_processes_count_the_objects_of_both(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    program = (
        "import sys; from pathlib import Path; import test_layers_processes as t; t.run_one_of_two(Path(sys.argv[1]))"
    )
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)],
            env={**os.environ, **common, "RANK": str(rank), "PYTHONPATH": str(Path(__file__).parent)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in started:
        _, told = process.communicate(timeout=240)
        assert process.returncode == 0, told
    (first, first_gradient), (second, second_gradient) = (torch.load(tmp_path / str(rank)) for rank in range(2))
    # What one process makes of both images at once, all objects counting alike.
    method = network()
    (one, targets), (two, others) = batch(0), batch(1)
    terms = method.training_loss(torch.cat([one, two]), {name: targets[name] + others[name] for name in targets})
    (terms["boxes"] + terms["overlap"]).backward()
    for index, name in enumerate(("boxes", "overlap")):
        torch.testing.assert_close((first[index] + second[index]) / 2, terms[name].detach())
    torch.testing.assert_close((first_gradient + second_gradient) / 2, method.box_head[0].weight.grad)
    # Without a gradient each counts its own: 1 and 3 objects instead of 2.
    assert float(first[2]) == pytest.approx(2 * float(first[0]))
    assert float(second[2]) == pytest.approx(2 / 3 * float(second[0]))


def test_one_process_counts_its_own() -> None:
    assert mean_count(3, torch.device("cpu")) == 3 and mean_count(0, torch.device("cpu")) == 1
