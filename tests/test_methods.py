"""The contract of every method, and the two first ones against independent references."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from everymask.data.loader import collate
from everymask.errors import InputError
from everymask.layers.unet import UNet
from everymask.losses import binary_cross_entropy, cross_entropy, masked_l1
from everymask.methods import METHODS, method_class, method_name
from everymask.methods.bottom_up.stardist import StarDist
from everymask.methods.semantic.unet import UNetSegmentation
from everymask.types import LabelMap, Segments, Task


def discs(size: int = 96, spacing: int = 24, radius: int = 9, seed: int = 0) -> NDArray[np.int32]:
    """A label image of discs of slightly different radii and places."""
    random = np.random.default_rng(seed)
    ids = np.zeros((size, size), np.int32)
    rows, columns = np.mgrid[:size, :size]
    for number, (y, x) in enumerate(np.mgrid[12:size:spacing, 12:size:spacing].reshape(2, -1).T, 1):
        y, x = y + random.uniform(-2, 2), x + random.uniform(-2, 2)
        ids[(rows - y) ** 2 + (columns - x) ** 2 < random.uniform(radius - 2, radius + 1) ** 2] = number
    return ids


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_decodes_and_is_rebuilt_from_its_config(name: str) -> None:
    kind = method_class(name)
    known = inspect.signature(kind).parameters
    options = {"base": 8, "depth": 2} if "base" in known else {"backbone": "resnet10t"}
    small = {each: value for each, value in options.items() if each in known}
    torch.manual_seed(0)
    method = kind(classes=2, channels=3, **small)
    assert method_name(method) == name
    again = kind(**method.config)
    ids = discs(64)
    segments = Segments.from_label_map(ids, category=np.arange(ids.max()) % 2)
    if kind.tasks == {Task.CLASSIFICATION}:
        segments = Segments(ids.shape, [1])
    images = torch.rand(2, 3, 64, 64)
    item = (images[0], method.targets(segments))
    _, targets = collate([item, item], kind.ragged)
    terms = method.training_loss(images, targets)
    assert all(term.ndim == 0 and torch.isfinite(term) for term in terms.values())
    sum(terms.values(), torch.zeros(())).backward()
    assert all(each.grad is not None for each in method.parameters() if each.requires_grad)
    again.load_state_dict(method.state_dict())
    method.eval()
    again.eval()
    with torch.inference_mode():
        outputs, same = method(images), again(images)
    assert all(torch.equal(outputs[key], same[key]) for key in outputs)
    for found in method.decode(outputs, [(64, 64), (50, 37)]):
        assert found.size in ((64, 64), (50, 37))
        assert set(found.category.tolist()) <= {0, 1}


@pytest.mark.parametrize(("channels", "grid", "parameters"), [(1, 2, 1_425_185), (3, 2, 1_425_761)])
def test_stardist_has_as_many_parameters_as_the_official_network(channels: int, grid: int, parameters: int) -> None:
    # stardist 0.9.2: StarDist2D(Config2D(grid=(2, 2), n_channel_in=channels)).keras_model.count_params()
    method = StarDist(channels=channels, grid=grid, norm="none")
    assert sum(each.numel() for each in method.parameters()) == parameters


@pytest.mark.parametrize("upsampling", ["nearest", "transposed"])
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_the_receptive_field_of_the_unet_is_what_it_says(upsampling: str, depth: int) -> None:
    torch.manual_seed(0)
    network = UNet(1, base=4, depth=depth, upsampling=upsampling).double().eval()  # type: ignore[arg-type]
    for parameter in network.parameters():
        torch.nn.init.uniform_(parameter, 0.01, 0.1)  # positive weights: nothing cancels, no unit dies
    side = 2 * (network.radius + 2**depth) + 2**depth
    side += -side % 2**depth
    image = torch.rand(1, 1, side, side, dtype=torch.double, requires_grad=True)
    middle = side // 2
    network(image)[0, :, middle, middle].sum().backward()
    assert image.grad is not None
    reached = torch.nonzero(image.grad[0, 0].abs().sum(0))[:, 0]
    assert int((reached - middle).abs().max()) <= network.radius
    if depth == 0:
        assert int((reached - middle).abs().max()) == network.radius - 1


def test_stardist_loss_is_the_formula_of_the_paper() -> None:
    random = np.random.default_rng(0)
    method = StarDist(rays=8, grid=1, base=4, depth=1, channels=1)
    probability = random.random((2, 1, 6, 5)).astype(np.float32)
    valid = (random.random((2, 1, 6, 5)) > 0.2).astype(np.float32)
    truth, logits = random.random((2, 8, 6, 5)) * 9, random.normal(size=(2, 1, 6, 5))
    guess = random.normal(size=(2, 8, 6, 5)) * 5
    terms = method.loss(
        {"probability": torch.tensor(logits), "distances": torch.tensor(guess)},
        {"probability": torch.tensor(probability), "distances": torch.tensor(truth), "valid": torch.tensor(valid)},
    )
    sigmoid = 1 / (1 + np.exp(-logits))
    entropy = -(probability * np.log(sigmoid) + (1 - probability) * np.log(1 - sigmoid))
    expected = (entropy * valid).sum() / valid.sum()
    assert float(terms["probability"]) == pytest.approx(expected, rel=1e-5)
    inside, outside = probability * valid, (1 - probability) * valid
    expected = np.mean(inside * np.abs(truth - guess)) / np.mean(inside) + 1e-4 * np.mean(outside * np.abs(guess))
    assert float(terms["distances"]) == pytest.approx(0.2 * expected, rel=1e-5)


@pytest.mark.parametrize("grid", [1, 2])
def test_stardist_gives_back_objects_from_perfect_outputs(grid: int) -> None:
    from stardist.matching import matching

    ids = discs()
    method = StarDist(rays=32, grid=grid, base=4, depth=1, channels=1)
    targets = method.targets(Segments.from_label_map(ids))
    outputs = {
        "probability": torch.logit(targets["probability"][None].clamp(1e-6, 1 - 1e-6)),
        "distances": targets["distances"][None],
    }
    (found,) = method.decode(outputs, [ids.shape])
    assert found.score is not None
    assert len(found) == ids.max()
    assert matching(ids, found.label_map(), thresh=0.75).accuracy == 1


def test_stardist_keeps_the_category_of_each_object() -> None:
    ids = discs()
    category = np.arange(ids.max()) % 3
    method = StarDist(classes=3, rays=16, grid=2, base=4, depth=1, channels=1)
    targets = method.targets(Segments.from_label_map(ids, category))
    outputs = {
        "probability": torch.logit(targets["probability"][None].clamp(1e-6, 1 - 1e-6)),
        "distances": targets["distances"][None],
        "category": torch.nn.functional.one_hot(targets["category"][None], 4).permute(0, 3, 1, 2).float(),
    }
    (found,) = method.decode(outputs, [ids.shape])
    table = np.concatenate([[-1], category])
    for number in range(len(found)):
        inside = ids[found.label_map() == number + 1]
        assert table[np.bincount(inside).argmax()] == found.category[number]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_stardist_outputs_of_a_turned_image_are_turned_back_exactly(flip: bool, turns: int) -> None:
    ids = discs()
    method = StarDist(rays=16, grid=1, base=4, depth=1, channels=1)
    straight = method.targets(Segments.from_label_map(ids))
    turned = np.rot90(ids, turns)
    turned = np.flip(turned, -1) if flip else turned
    outputs = {key: value[None] for key, value in method.targets(Segments.from_label_map(turned.copy())).items()}
    undone = method.undo_dihedral(outputs, flip, turns)
    for key in ("probability", "distances"):
        difference = (undone[key][0] - straight[key]).abs()
        # A ray that ends exactly between two pixels is rounded up or down depending on its direction.
        assert float((difference > 1e-3).float().mean()) < 0.002, key


def test_void_counts_in_no_loss() -> None:
    ids = discs(64)
    void = ids.copy()
    void[:, 32:] = -1
    for method in (StarDist(grid=1, base=4, depth=1, channels=1), UNetSegmentation(base=4, depth=1, channels=1)):
        targets = {
            key: value[None] for key, value in method.targets(Segments(void.shape, [0] * 16, LabelMap(void))).items()
        }
        outputs = method.eval()(torch.rand(1, 1, 64, 64))
        changed = {key: value.clone() for key, value in outputs.items()}
        for value in changed.values():
            value[..., 32:] += 3
        with torch.no_grad():
            first, second = method.loss(outputs, targets), method.loss(changed, targets)
        assert all(float(first[key]) == pytest.approx(float(second[key]), rel=1e-6) for key in first)


def test_crowd_regions_teach_stardist_nothing() -> None:
    ids = discs(64)
    crowd = np.zeros(ids.max(), bool)
    crowd[[0, 2]] = True
    targets = StarDist(grid=1, base=4, depth=1).targets(Segments(ids.shape, crowd * 0, LabelMap(ids), crowd=crowd))
    region = np.isin(ids, [1, 3])
    assert np.array_equal(targets["valid"][0].numpy() == 0, region)
    assert not targets["probability"][0].numpy()[region].any()


def test_unet_weights_the_gap_between_objects() -> None:
    ids = np.zeros((40, 40), np.int32)
    ids[10:30, 5:19], ids[10:30, 21:35] = 1, 2
    method = UNetSegmentation(base=4, depth=1, channels=1, border_weight=10, border_sigma=5)
    weight = method.targets(Segments.from_label_map(ids, 0))["weight"].numpy()
    # Eq. 2: the two gap columns lie 1 and 2 pixels from the objects; inside the objects the paper adds nothing.
    assert weight[20, 19] == pytest.approx(1 + 10 * np.exp(-((1 + 2) ** 2) / 50), rel=1e-5)
    assert weight[20, 10] == 1


def test_unet_without_background_leaves_uncovered_pixels_void() -> None:
    ids = np.array([[0, 1], [2, -1]], np.int32)
    segments = Segments((2, 2), [1, 0], LabelMap(ids))
    assert UNetSegmentation(classes=2, background=False).targets(segments)["classes"].tolist() == [[-1, 1], [0, -1]]
    assert UNetSegmentation(classes=2, background=True).targets(segments)["classes"].tolist() == [[0, 2], [1, -1]]


def test_unet_decodes_the_most_probable_class() -> None:
    logits = torch.tensor([[[[5.0, 0, 0]], [[0, 5.0, 0]], [[0, 0, 5.0]]]])
    (found,) = UNetSegmentation(classes=2).decode({"classes": logits}, [(1, 3)])
    assert found.category.tolist() == [0, 1]
    assert found.label_map().tolist() == [[0, 1, 2]]
    assert found.score is not None
    assert found.score.tolist() == pytest.approx([float(np.exp(5) / (np.exp(5) + 2))] * 2)


def test_pixel_losses_equal_torch_and_stay_finite() -> None:
    torch.manual_seed(0)
    logits, classes = torch.randn(2, 5, 7, 6) * 4, torch.randint(-1, 5, (2, 7, 6))
    expected = torch.nn.functional.cross_entropy(logits, classes, ignore_index=-1)
    assert float(cross_entropy(logits, classes)) == pytest.approx(float(expected), rel=1e-6)
    nothing = torch.full((2, 7, 6), -1)
    assert float(cross_entropy(logits, nothing)) == 0
    assert torch.isfinite(cross_entropy(1e4 * logits.bfloat16(), classes))
    zero = torch.zeros(1, 1, 3, 3)
    assert float(binary_cross_entropy(zero, zero, zero)) == 0
    assert float(masked_l1(zero, zero + 1, zero)) == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [("stardst", "did you mean 'stardist'"), ("os:path", "not a subclass"), ("nowhere:Net", "cannot import")],
)
def test_unknown_methods_are_told_in_one_line(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        method_class(name)
    assert "\n" not in str(caught.value)


def test_impossible_networks_are_refused() -> None:
    with pytest.raises(InputError, match="grid must be 1, 2 or 4"):
        StarDist(grid=3)
    with pytest.raises(InputError, match="background=True"):
        UNetSegmentation(classes=1, background=False)
