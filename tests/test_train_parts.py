"""Schedule, moving average, checkpoints, optimiser groups and threshold search against independent references."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy import optimize
from torch import nn
from train_toys import Toy

from everymask.errors import InputError
from everymask.methods.recipe import Recipe
from everymask.train.checkpoint import optimiser_tensors, read_checkpoint, restore_optimiser, write_checkpoint
from everymask.train.ema import MovingAverage
from everymask.train.schedule import Schedule
from everymask.train.setup import explained_memory, make_optimiser
from everymask.train.thresholds import golden_section, tune_thresholds


def test_cosine_with_warm_up_is_that_of_torch():
    recipe = Recipe(epochs=5, warmup=1.5, learning_rate=0.3)
    schedule = Schedule(recipe, 10)
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    warm = torch.optim.lr_scheduler.LinearLR(optimiser, 1 / 15, 1.0, total_iters=14)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=35, eta_min=0.003)
    both = torch.optim.lr_scheduler.SequentialLR(optimiser, [warm, cosine], [15])
    for step in range(50):
        assert schedule.rate(step) == pytest.approx(optimiser.param_groups[0]["lr"], rel=1e-6), step
        optimiser.step()
        both.step()
    assert schedule.rate(50) == pytest.approx(0.003)


def test_plateau_is_that_of_torch():
    recipe = Recipe(schedule="plateau", plateau_factor=0.3, plateau_patience=2, warmup=0, learning_rate=1.0)
    schedule = Schedule(recipe, 10)
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, factor=0.3, patience=2)
    rng = np.random.default_rng(0)
    for epoch in range(60):
        loss = float(1 / (1 + epoch) + 0.1 * rng.random())
        schedule.observe(loss)
        reference.step(loss)
        copy = Schedule(recipe, 10)
        copy.restore(schedule.state())
        assert copy.rate(1000) == schedule.rate(1000) == pytest.approx(optimiser.param_groups[0]["lr"])
    assert schedule.reduction < 0.3


def test_constant_schedule():
    schedule = Schedule(Recipe(schedule="constant", warmup=1, learning_rate=0.1), 4)
    assert [schedule.rate(step) for step in (0, 1, 2, 3, 4, 999)] == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1])


def test_moving_average_is_the_weighted_sum():
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = MovingAverage(network, 0.7)
    weights = [network[0].weight.detach().clone()]
    for step in range(1, 20):
        with torch.no_grad():
            network[0].weight += torch.randn(2, 2)
            network[1].num_batches_tracked += 1
        weights.append(network[0].weight.detach().clone())
        average.update(step)
    expected = torch.zeros(2, 2)
    for first, value in enumerate(weights):
        decays = [min(0.7, (1 + step) / (10 + step)) for step in range(1, 20)]
        share = (1.0 if first == 0 else 1 - decays[first - 1]) * math.prod(decays[first:])
        expected += share * value
    torch.testing.assert_close(average.average["0.weight"], expected)
    with average.applied():
        torch.testing.assert_close(network[0].weight, expected)
        assert int(network[1].num_batches_tracked) == 19
    assert torch.equal(network[0].weight, weights[-1])
    torch.testing.assert_close(average.average["0.weight"], expected)


@pytest.mark.parametrize("steps", [20, 300, 3000])
def test_the_average_of_a_short_run_is_that_of_its_end(steps):
    """Its mean age is about a tenth of the run, and the random start is forgotten, though .999 remembers 1000 steps."""
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, -1e6)  # the start
    average = MovingAverage(network, 0.999)
    for step in range(1, steps + 1):
        nn.init.constant_(network.weight, step)
        average.update(step)
    age = steps - average.average["weight"].item()
    # With d = (1 + t) / (10 + t) the share of step k is 9 (k + 2) ... (k + 9) / ((t + 2) ... (t + 10)).
    shares = [
        9 * math.prod(range(k + 2, k + 10)) / math.prod(range(steps + 2, steps + 11)) for k in range(1, steps + 1)
    ]
    expected = sum(share * (steps - k) for k, share in enumerate(shares, 1)) + (1 - sum(shares)) * (steps + 1e6)
    assert age == pytest.approx(expected, rel=1e-3, abs=0.05)
    assert 1 - sum(shares) < 1e-4
    assert expected < steps / 8 or steps < 50


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_a_restored_optimiser_takes_the_same_step(name, tmp_path):
    def made():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
        return network, make_optimiser(network, Recipe(optimiser=name, weight_decay=0.1, learning_rate=0.1))

    def step(network, optimiser, seed):
        torch.manual_seed(seed)
        optimiser.zero_grad()
        network(torch.randn(2, 3, 5, 5)).square().sum().backward()
        optimiser.step()

    network, optimiser = made()
    step(network, optimiser, 1)
    write_checkpoint(tmp_path / "c.safetensors", optimiser_tensors(optimiser), {})
    other, other_optimiser = made()
    other.load_state_dict(network.state_dict())
    restore_optimiser(other_optimiser, read_checkpoint(tmp_path / "c.safetensors")[0])
    step(network, optimiser, 2)
    step(other, other_optimiser, 2)
    for mine, theirs in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_fused_steps_are_those_of_the_plain_optimisers(name):
    plain_of = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    # As in training, where weights lie in memory in another order than their axes say.
    networks = [Toy(channels=3, dropout=0.0, norm=False).to(memory_format=torch.channels_last) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    recipe = Recipe(optimiser=name, weight_decay=0.1, learning_rate=0.01)
    ours = make_optimiser(networks[0], recipe)
    assert all(group["fused"] for group in ours.param_groups)
    decaying = [each for each in networks[1].parameters() if each.ndim > 1]
    rest = [each for each in networks[1].parameters() if each.ndim <= 1]
    more = {"momentum": 0.9, "nesterov": True} if name == "sgd" else {}
    groups = [{"params": decaying, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    theirs = plain_of[name](groups, lr=0.01, foreach=False, **more)
    for seed in range(4):
        for network, optimiser in zip(networks, (ours, theirs), strict=True):
            torch.manual_seed(seed)
            images = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
            optimiser.zero_grad()
            network(images)["blob"].square().mean().backward()
            optimiser.step()
    for mine, their in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        torch.testing.assert_close(mine, their)


def test_biases_and_normalisation_do_not_decay():
    method = Toy()
    optimiser = make_optimiser(method, Recipe(weight_decay=0.5, learning_rate=0.1))
    decaying = {id(each) for group in optimiser.param_groups if group["weight_decay"] for each in group["params"]}
    names = {name for name, each in method.named_parameters() if id(each) in decaying}
    assert names == {"body.0.weight", "head.weight"}
    assert sum(len(group["params"]) for group in optimiser.param_groups) == len(list(method.parameters()))


def test_checkpoints_keep_tied_weights_and_all_number_types(tmp_path):
    shared = torch.arange(6.0).reshape(2, 3)
    tensors = {"a": shared, "b": shared, "c": shared.T, "d": torch.tensor(3), "e": torch.ones(2, dtype=torch.bfloat16)}
    path = tmp_path / "c.safetensors"
    write_checkpoint(path, tensors, {"epoch": 3, "score": None})
    found, state = read_checkpoint(path)
    assert state == {"epoch": 3, "score": None}
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor)
        assert found[name].dtype == tensor.dtype
    assert [each.name for each in tmp_path.iterdir()] == ["c.safetensors"]


@pytest.mark.parametrize("damage", [lambda content: content[:-9], lambda content: b"PK" + content, lambda content: b""])
def test_damaged_checkpoints_are_told(tmp_path, damage):
    path = tmp_path / "c.safetensors"
    write_checkpoint(path, {"a": torch.zeros(100)}, {})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"c\.safetensors is damaged"):
        read_checkpoint(path)


def test_golden_section_finds_the_maximum_of_scipy():
    def function(value):
        return -((value - 0.37) ** 2) * (1 + value)

    found = golden_section(function, 0.1, 0.9, tolerance=1e-4, iterations=100)
    reference = optimize.minimize_scalar(lambda value: -function(value), bounds=(0.1, 0.9), method="bounded")
    assert found == pytest.approx(reference.x, abs=1e-3)


def test_golden_section_is_frugal_and_prefers_the_smaller_of_equals():
    calls = []

    def function(value):
        calls.append(value)
        return float(value < 0.3)  # nothing is found above, as with a probability threshold that is too high

    assert golden_section(function, 0.1, 0.9) < 0.3
    assert len(calls) <= 22
    assert len(set(calls)) == len(calls)
    with pytest.raises(InputError, match="low < high"):
        golden_section(function, 0.9, 0.1)


class Peak:
    """Stands in for a method, its images and its metric; scores best at probability 0.62 and overlap 0.4."""

    tunable: ClassVar = {"probability": (0.1, 0.9), "overlap": (0.3, 0.4, 0.5)}
    metric = ("semantic", "miou")
    learns_from = "labels"
    training = False

    def __init__(self):
        self.thresholds = {"probability": 0.5, "overlap": 0.3, "other": 7.0}
        self.method = self
        self.looked_at = []
        self.told = []

    def eval(self):
        return self

    train = lambda self, mode: self  # noqa: E731

    def predictor(self):
        return self

    def outputs(self, image, limits):
        self.looked_at.append(image)
        return {"map": torch.zeros(100)}, (1, 1)

    def samples(self):
        decoded = [SimpleNamespace(image=number, limits=None) for number in range(3)]
        return [(f"image {each.image}", each, None) for each in decoded]

    def decode(self, outputs, sizes):
        return [dict(self.thresholds)]

    def new_metric(self):
        return []

    def update(self, metric, truth, prediction, name):
        metric.append(prediction)

    def merge(self, metric, merged):
        assert len(metric) == 3
        used = metric[0]
        return SimpleNamespace(
            compute=lambda: {"miou": 1 - (used["probability"] - 0.62) ** 2 - 3 * abs(used["overlap"] - 0.4)}
        )


def test_thresholds_are_searched_in_lists_and_ranges():
    peak = Peak()
    before = dict(peak.thresholds)
    found = tune_thresholds(peak, progress=lambda done, most: peak.told.append((done, most)))
    assert found == {"probability": pytest.approx(0.62, abs=0.01), "overlap": 0.4, "other": 7.0}
    assert peak.thresholds == before
    assert peak.looked_at == [0, 1, 2]  # once each
    assert [done for done, _ in peak.told] == list(range(1, len(peak.told) + 1))
    assert len(peak.told) <= peak.told[0][1]


def test_outputs_beyond_the_cache_are_computed_again():
    peak = Peak()
    tune_thresholds(peak, cache_bytes=800, progress=lambda done, most: peak.told.append(done))
    counts = [peak.looked_at.count(number) for number in range(3)]
    assert counts == [1, 1, len(peak.told)]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_out_of_memory_becomes_advice(error):
    with (
        pytest.raises(InputError, match=r"batch_size 6 and crop 64.*lower"),
        explained_memory(Recipe(batch_size=6, crop=64)),
    ):
        raise error


def test_a_real_allocation_failure_becomes_advice():
    with pytest.raises(InputError, match="out of memory"), explained_memory(Recipe()):
        torch.empty(2**60, dtype=torch.uint8)


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="mat1 and mat2"), explained_memory(Recipe()):
        torch.zeros(2, 3) @ torch.zeros(2, 3)
