"""Distance maps and watershed: from labels to targets and back, the losses, the thresholds, learning."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from touching_toys import overfit, picture, touching

from everymask.errors import InputError
from everymask.layers.unet import UNet
from everymask.methods.bottom_up.distance_watershed import DistanceWatershed
from everymask.methods.bottom_up.folded_maps import Unfold
from everymask.predict.predictor import Predictor
from everymask.types import LabelMap, Segments

segmentation = pytest.importorskip("skimage.segmentation")
matching = pytest.importorskip("stardist.matching").matching

FORMS = ("neighbour", "signed", "boundary")


def small(form: str = "neighbour", **options: object) -> DistanceWatershed:
    settings = {"channels": 1, "base": 4, "depth": 1} | options
    return DistanceWatershed(form=form, **settings)  # type: ignore[arg-type]


def perfect(method: DistanceWatershed, segments: Segments) -> dict[str, Tensor]:
    """What a network says that has learnt the targets."""
    targets = {name: value[None] for name, value in method.targets(segments).items()}
    outputs = {name: targets[name] for name in method.maps}
    if method.form == "boundary":
        outputs = {name: torch.logit(value, eps=1e-4) for name, value in outputs.items()}
    if "category" in targets:
        classes = targets["category"].clamp(min=0)
        outputs["category"] = 9.0 * torch.nn.functional.one_hot(classes, method.classes + 1).permute(0, 3, 1, 2)
    return outputs


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", range(3))
def test_touching_objects_come_back_from_perfect_outputs(form: str, seed: int) -> None:
    ids = touching((120, 101), seed, radius=(8, 14))
    assert segmentation.find_boundaries(ids, mode="inner").sum() > 0
    method = small(form)
    outputs = perfect(method, Segments.from_label_map(ids))
    (found,) = method.decode(outputs, [ids.shape])
    assert matching(ids, found.label_map(), thresh=0.7).accuracy > 0.97
    assert found.score is not None
    assert (found.score > 0.5).all()
    assert (found.score <= 1).all()


@pytest.mark.parametrize("form", FORMS)
def test_padding_is_not_decoded(form: str) -> None:
    method = small(form)
    outputs = perfect(method, Segments.from_label_map(touching((64, 64), 1)))
    whole, part = method.decode({key: torch.cat([each, each]) for key, each in outputs.items()}, [(64, 64), (41, 50)])
    (expected,) = method.decode({key: each[..., :41, :50] for key, each in outputs.items()}, [(41, 50)])
    assert whole.size == (64, 64)
    np.testing.assert_array_equal(part.label_map(), expected.label_map())
    assert len(part) > 5


def test_neighbour_decoding_follows_microbeseg() -> None:
    # The steps of the program one by one, with scipy and scikit-image.
    from scipy import ndimage
    from skimage import measure

    random = np.random.default_rng(0)
    method = small()
    perfect_maps = perfect(method, Segments.from_label_map(touching((90, 80), 4)))
    noisy = {key: each[0, 0].numpy() + random.normal(0, 0.2, (90, 80)).astype(np.float32) for key, each in
             perfect_maps.items()}  # fmt: skip
    cell = ndimage.gaussian_filter(noisy["cell"], sigma=0.5)
    border = np.tan(np.clip(noisy["neighbour"], 0, 1) ** 2)
    border[border < 0.05] = 0
    seeds = measure.label(cell - np.clip(border, 0, 1) > 0.45)
    areas = np.bincount(seeds.ravel())[1:]
    for number in 1 + np.flatnonzero(areas <= max(0.1 * areas.mean(), 4)):
        seeds[seeds == number] = 0
    assert len(np.unique(seeds)) - 1 < len(areas)
    official = segmentation.watershed(-cell, measure.label(seeds > 0), mask=cell > 0.1)
    (found,) = method.decode({key: torch.from_numpy(each)[None, None] for key, each in noisy.items()}, [(90, 80)])
    # Floating point of other precision may let the flood take equal heights in another order.
    assert matching(official, found.label_map(), thresh=0.95).accuracy == 1
    assert (official != found.label_map()).mean() < 1e-3


@pytest.mark.parametrize("form", FORMS)
def test_thresholds_do_what_they_say(form: str) -> None:
    method = small(form)
    outputs = perfect(method, Segments.from_label_map(touching((80, 80), 2)))

    def covered(**thresholds: float) -> tuple[int, int]:
        method.thresholds = {**small(form).thresholds, **thresholds}
        (found,) = method.decode(outputs, [(80, 80)])
        return len(found), int((found.label_map() > 0).sum())

    assert set(method.thresholds) == set(method.tunable) == {"mask", "seed"}
    low, high = method.tunable["mask"]
    assert low <= method.thresholds["mask"] <= high
    if form != "boundary":
        assert covered(mask=high)[1] < covered()[1]
    nothing = -2.0 if form == "boundary" else 2.0
    assert covered(seed=nothing) == (0, 0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("classes", [1, 3])
def test_categories_are_kept(form: str, classes: int) -> None:
    ids = touching((80, 80), 3)
    category = np.arange(ids.max()) % classes
    method = small(form, classes=classes)
    (found,) = method.decode(perfect(method, Segments.from_label_map(ids, category)), [ids.shape])
    assert len(found) > 10
    table = np.concatenate([[-1], category])
    for number in range(len(found)):
        inside = ids[found.label_map() == number + 1]
        assert table[np.bincount(inside).argmax()] == found.category[number]


def degenerate() -> dict[str, NDArray[np.int32]]:
    one = np.zeros((32, 32), np.int32)
    one[6:26, 3:29] = 1
    fragmented = one.copy()
    fragmented[:, 14:18] = 0
    pixel = np.zeros((32, 32), np.int32)
    pixel[5, 5] = 1
    void = np.full((32, 32), -1, np.int32)
    return {
        "empty": np.zeros((32, 32), np.int32),
        "one object": one,
        "an object that fills the image": np.ones((32, 32), np.int32),
        "fragmented": fragmented,
        "one pixel": pixel,
        "void": void,
    }


@pytest.mark.parametrize("name", degenerate())
@pytest.mark.parametrize("form", FORMS)
def test_degenerate_images_train_and_decode(form: str, name: str) -> None:
    ids = degenerate()[name]
    method = small(form, classes=2)
    segments = Segments(ids.shape, [1] * max(int(ids.max()), 0), LabelMap(ids))
    targets = {key: value[None] for key, value in method.targets(segments).items()}
    assert all(torch.isfinite(value).all() for value in targets.values())
    terms = method.training_loss(torch.rand(1, 1, 32, 32), targets)
    assert all(torch.isfinite(term) for term in terms.values())
    sum(terms.values(), torch.zeros(())).backward()
    (found,) = method.decode(perfect(method, segments), [ids.shape])
    expected = {"one object": 1, "an object that fills the image": 1, "fragmented": 2}
    if name != "one pixel":
        assert len(found) == expected.get(name, 0)
    if name == "one object":
        assert matching(ids, found.label_map(), thresh=0.7).accuracy == 1
    if name == "void":
        assert all(float(term.detach()) == 0 for term in terms.values())


def test_parts_of_an_object_are_targets_of_their_own() -> None:
    ids = np.zeros((40, 40), np.int32)
    ids[5:25, 5:12], ids[5:35, 14:30] = 1, 1
    targets = small().targets(Segments.from_label_map(ids))
    assert targets["cell"][0, 5:25, 5:12].max() == 1
    assert targets["cell"][0, 5:35, 14:30].max() == 1
    assert targets["neighbour"][0, 15, 12] > 0


def test_crowds_and_void_teach_nothing() -> None:
    ids = touching((64, 64), 5)
    crowd = np.zeros(ids.max(), bool)
    crowd[[0, 3]] = True
    ids[:, 50:] = -1
    for form in FORMS:
        method = small(form, classes=2).eval()
        segments = Segments(ids.shape, np.zeros(len(crowd), int), LabelMap(ids), crowd=crowd)
        targets = {key: value[None] for key, value in method.targets(segments).items()}
        excluded = torch.from_numpy(np.isin(ids, [1, 4, -1]))
        assert torch.equal(targets["valid"][0, 0] == 0, excluded)
        outputs = method(torch.rand(1, 1, 64, 64))
        changed = {key: value + 3 * excluded for key, value in outputs.items()}
        with torch.no_grad():
            first, second = method.loss(outputs, targets), method.loss(changed, targets)
        assert all(float(first[key]) == pytest.approx(float(second[key]), rel=1e-6) for key in first)


@pytest.mark.parametrize("loss", ["l1", "l2", "smooth_l1"])
@pytest.mark.parametrize("form", ["neighbour", "signed"])
def test_losses_of_the_distances_are_means_over_what_is_valid(form: str, loss: str) -> None:
    random = np.random.default_rng(1)
    method = small(form, loss=loss)
    guess, truth = random.normal(size=(2, 2, 1, 6, 7)) * 2
    valid = (random.random((2, 1, 6, 7)) > 0.3).astype(float)
    names = method.maps
    terms = method.loss(
        {name: torch.tensor(guess) for name in names},
        {name: torch.tensor(truth, dtype=torch.float32) for name in names} | {"valid": torch.tensor(valid)},
    )
    error = np.abs(guess - truth)
    each = {"l1": error, "l2": error**2, "smooth_l1": np.where(error < 1, error**2 / 2, error - 0.5)}[loss]
    assert set(terms) == set(names)
    for name in names:
        assert float(terms[name]) == pytest.approx((each * valid).sum() / valid.sum(), rel=1e-5)


def test_loss_of_the_boundary_form_is_that_of_torch_em() -> None:
    random = np.random.default_rng(2)
    method = small("boundary")
    logits = {name: random.normal(size=(2, 1, 6, 7)) for name in method.maps}
    foreground = (random.random((2, 1, 6, 7)) > 0.5).astype(np.float32)
    truth = {"foreground": foreground} | {name: random.random((2, 1, 6, 7)) for name in ("centre", "boundary")}
    terms = method.loss(
        {name: torch.tensor(value) for name, value in logits.items()},
        {name: torch.tensor(value, dtype=torch.float32) for name, value in truth.items()}
        | {"valid": torch.ones(2, 1, 6, 7)},
    )
    guess = {name: 1 / (1 + np.exp(-value)) for name, value in logits.items()}
    dice = 2 * (guess["foreground"] * foreground).sum() / ((guess["foreground"] ** 2).sum() + foreground.sum())
    assert float(terms["foreground"]) == pytest.approx(1 - dice, rel=1e-4)
    for name in ("centre", "boundary"):
        expected = np.mean((guess[name] * foreground - truth[name] * foreground) ** 2)
        assert float(terms[name]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("fold", [1, 2, 4])
def test_outputs_have_the_size_of_the_image(fold: int) -> None:
    method = small(fold=fold, classes=3, channels=5).eval()
    outputs = method(torch.rand(1, 5, 2 * method.stride, 3 * method.stride))
    assert outputs["cell"].shape == (1, 1, 2 * method.stride, 3 * method.stride)
    assert outputs["category"].shape[1] == 4


def test_the_first_decoder_is_the_unet_itself() -> None:
    torch.manual_seed(0)
    method = small(fold=1, depth=2).eval()
    image = torch.rand(1, 1, 16, 24)
    first, second = method.features(image)
    body: UNet = method.body
    assert torch.equal(first, body(image))
    assert not torch.equal(first, second)


def test_pixels_of_a_cell_start_equal_and_learn_apart() -> None:
    torch.manual_seed(0)
    head = Unfold(5, 3, 2)
    outputs = head(torch.rand(1, 5, 4, 6))
    assert outputs.shape == (1, 3, 8, 12)
    for row in (0, 1):
        for column in (0, 1):
            assert torch.equal(outputs[..., row::2, column::2], outputs[..., ::2, ::2])
    assert not torch.equal(outputs[:, 0], outputs[:, 1])
    outputs[..., ::2, ::2].sum().backward()
    weight = head.linear.weight.grad
    assert weight is not None
    assert weight[0].abs().sum() > 0
    assert weight[1].abs().sum() == 0


@pytest.mark.parametrize("fold", [1, 2])
@pytest.mark.parametrize("form", FORMS)
def test_the_context_covers_the_receptive_field(form: str, fold: int) -> None:
    torch.manual_seed(0)
    method = small(form, fold=fold, base=3, norm="none").double().eval()
    for parameter in method.parameters():
        torch.nn.init.uniform_(parameter, 0.01, 0.1)  # positive weights: nothing cancels, no unit dies
    side = 2 * (method.context + method.stride)
    side += -side % method.stride
    image = torch.rand(1, 1, side, side, dtype=torch.double, requires_grad=True)
    middle = side // 2
    method(image)[method.maps[-1]][0, 0, middle, middle].backward()
    assert image.grad is not None
    reached = torch.nonzero(image.grad[0, 0].abs().sum(0))[:, 0]
    assert 4 <= int((reached - middle).abs().max()) <= method.context


@pytest.mark.parametrize(
    ("backbone", "fold"), [("resnet10t", 1), ("resnet10t", 2), ("resnet10t", 4), ("convnext_atto", 2)]
)
def test_backbones_replace_the_unet(backbone: str, fold: int) -> None:
    method = DistanceWatershed(backbone=backbone, fold=fold).eval()
    outputs = method(torch.rand(1, 3, 64, 96))
    assert {key: value.shape for key, value in outputs.items()} == {
        "cell": (1, 1, 64, 96),
        "neighbour": (1, 1, 64, 96),
    }
    assert method.preprocessing_of().normalise == "percentile"


def test_test_time_augmentation_turns_the_maps_back() -> None:
    ids = touching((64, 64), 6)
    method = small()
    straight = method.targets(Segments.from_label_map(ids))
    for flip in (False, True):
        for turns in range(4):
            turned = np.rot90(ids, turns)
            turned = np.ascontiguousarray(np.flip(turned, -1) if flip else turned)
            outputs = {key: each[None] for key, each in method.targets(Segments.from_label_map(turned)).items()}
            undone = method.undo_dihedral(outputs, flip, turns)
            for key in method.maps:
                torch.testing.assert_close(undone[key][0], straight[key], atol=1e-5, rtol=0)


def test_unseen_large_images_give_the_same_objects_in_tiles_and_with_augmentation(tmp_path: Path) -> None:
    method = small(base=8, depth=2)
    overfit(method, tmp_path, flip="dihedral")
    ids = touching((160, 192), 7)
    image = picture(ids, 7)
    whole = Predictor(method, method.preprocessing_of(), "cpu", "float32")(image)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no object is cut by a tile
        tiled = Predictor(method, method.preprocessing_of(), "cpu", "float32", tile=128, overlap=64)(image)
    assert matching(ids, whole.label_map(), thresh=0.5).accuracy > 0.6
    assert matching(whole.label_map(), tiled.label_map(), thresh=0.9).accuracy == 1
    turned = Predictor(method, method.preprocessing_of(), "cpu", "float32", tta=True)(image)
    assert matching(ids, turned.label_map(), thresh=0.5).accuracy > 0.6


@pytest.mark.parametrize(("form", "classes"), [("neighbour", 2), ("signed", 1), ("boundary", 1)])
def test_it_learns_to_tell_touching_objects_apart(form: str, classes: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    method = small(form, classes=classes, base=8, depth=2)
    truth, found = overfit(method, tmp_path)
    for ids, segments in zip(truth, found, strict=True):
        assert matching(ids, segments.label_map(), thresh=0.5).accuracy >= 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "neighbor"}, "did you mean 'neighbour'"),
        ({"loss": "l3"}, "loss"),
        ({"sigma": 0.0}, "sigma"),
        ({"fold": 3}, "fold must be 1, 2 or 4"),
        ({"channels": 0}, "channels"),
        ({"backbone": "resnet5000"}, "resnet5000"),
    ],
)
def test_wrong_options_are_told(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DistanceWatershed(**options)  # type: ignore[arg-type]
