"""Spatial embeddings: the loss against plain loops, decoding of ideal outputs, symmetries, learning, odd input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from everymask.data.preprocessing import Preprocessing
from everymask.errors import InputError
from everymask.losses import spatial_embedding as module
from everymask.losses.lovasz import lovasz
from everymask.losses.spatial_embedding import spatial_embedding
from everymask.methods.bottom_up.spatial_embedding import SpatialEmbedding
from everymask.metrics.matching import MatchingMetric
from everymask.predict.predictor import Predictor
from everymask.train.loop import train
from everymask.types import Categories, Dataset, LabelMap, Sample, Segments, Task

# -- loss --------------------------------------------------------------------------------------------------------------


def batch(
    seed: int, classes: int = 1, size: tuple[int, ...] = (14, 17)
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Outputs and targets, float64, of three images: of many objects with void, of one object, of none."""
    generator = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"))
    points = generator.uniform(0, size, (9, len(size)))
    ids = sum((axis[..., None] - points[:, a]) ** 2 for a, axis in enumerate(grid)).argmin(-1)
    ids[generator.random(size) < 0.3] = 0
    ids[ids == 4] = -1  # object 4 has no pixel
    one = np.zeros_like(ids)
    one[..., 3:9, 4:12] = 1
    labels = np.stack([ids, one, np.zeros_like(ids)])
    centres, category = np.zeros((3, len(size), *size)), generator.integers(0, classes, labels.shape)
    for number, image in enumerate(labels):
        for label in range(1, image.max() + 1):
            inside = image == label
            if inside.any():
                centres[number, :, inside] = np.argwhere(inside).mean(0)
                category[number, inside] = label % classes
    places = grid + generator.normal(0, 1.5, centres.shape)
    sigma = -0.25 + generator.normal(0, 0.05, places.shape)
    scores = generator.random((3, classes, *size))
    return tuple(map(torch.from_numpy, (places, sigma, scores, labels, centres, category)))  # type: ignore[return-value]


def expected_terms(
    places: NDArray[np.float64],
    sigma: NDArray[np.float64],
    scores: NDArray[np.float64],
    labels: NDArray[np.int64],
    centres: NDArray[np.float64],
    category: NDArray[np.int64],
) -> list[float]:
    """The definition, one object and one pixel after the other."""
    terms = np.zeros(3)
    for e, sig, score, ids, centre, kind in zip(places, sigma, scores, labels, centres, category, strict=True):
        counts = ids >= 0
        instance, variance, wanted = [], [], np.zeros_like(score)
        weight = np.broadcast_to(np.where(counts, 1.0, 0.0), score.shape).copy()
        for label in np.unique(ids[ids > 0]):
            inside = ids == label
            mean = sig[:, inside].mean(1)
            variance.append(((sig[:, inside] - mean[:, None]) ** 2).mean())
            middle = centre[:, inside][:, 0]
            along = (-1, *[1] * ids.ndim)
            phi = np.exp(-(np.exp(10 * mean).reshape(along) * (e - middle.reshape(along)) ** 2).sum(0))
            instance.append(hinge((2 * phi - 1)[counts], inside[counts]))
            k = kind[inside][0]
            wanted[k][inside], weight[k][inside] = phi[inside], 10
        terms += [
            np.mean(instance) if instance else 0,
            np.mean(variance) if variance else 0,
            (weight * (score - wanted) ** 2).sum() / counts.sum(),
        ]
    return (terms / len(places)).tolist()


def hinge(margins: NDArray[np.float64], inside: NDArray[np.bool_]) -> float:
    """Lovasz hinge by its definition: errors, largest first, times what each adds to the Jaccard loss of the set."""
    errors = np.maximum(1 - margins * np.where(inside, 1, -1), 0)
    wrong, before, total = np.zeros(len(errors), bool), 0.0, 0.0
    for i in np.argsort(-errors):
        wrong[i] = True
        # The prediction that is wrong at just these pixels.
        predicted = inside ^ wrong
        loss = 1 - (predicted & inside).sum() / (predicted | inside).sum()
        total += errors[i] * (loss - before)
        before = loss
    return total


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize(("classes", "size"), [(1, (14, 17)), (3, (14, 17)), (1, (5, 10, 13)), (2, (5, 10, 13))])
def test_the_loss_is_its_definition(classes: int, size: tuple[int, ...], kind: torch.dtype) -> None:
    for seed in range(4):
        given = batch(seed, classes, size)
        found = spatial_embedding(*(each.to(kind) for each in given[:3]), *given[3:])
        expected = expected_terms(*(each.numpy() for each in given))
        assert min(expected) > 1e-4
        assert [float(each) for each in found] == pytest.approx(expected, rel=1e-10 if kind == torch.float64 else 2e-5)


def test_the_instance_term_is_the_lovasz_hinge_of_all_pixels() -> None:
    places, sigma, scores, labels, centres, _ = batch(5, size=(40, 50))
    places[0] = torch.where(labels[0] > 0, centres[0] + 0.02 * places[0], places[0])  # as a trained network would say
    terms = []
    for number in range(2):
        for label in labels[number][labels[number] > 0].unique():
            inside = labels[number] == label
            scale = torch.exp(10 * sigma[number][:, inside].mean(1))[:, None, None]
            middle = centres[number][:, inside][:, :1, None]
            phi = torch.exp(-(scale * (places[number] - middle) ** 2).sum(0))
            target = torch.where(labels[number] == -1, -1, inside.long())
            objects = int((labels[number].unique() > 0).sum())
            terms.append(lovasz((2 * phi - 1)[None, None], target[None]) / objects)
    found = spatial_embedding(places, sigma, scores, labels, centres)
    assert float(found.instance) == pytest.approx(float(sum(terms)) / 3, rel=1e-10)


def test_the_gradient_is_that_of_the_loss() -> None:
    places, sigma, scores, labels, centres, category = batch(1, 2, (5, 6))

    def total(*outputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(spatial_embedding(*outputs, labels, centres, category))[:2]

    outputs = tuple(each.requires_grad_() for each in (places, sigma, scores))
    assert torch.autograd.gradcheck(total, outputs, eps=1e-7, atol=1e-5)
    # The seed scores learn from phi, but phi does not learn from them.
    seed = spatial_embedding(*outputs, labels, centres, category).seed
    by_place, by_score = torch.autograd.grad(seed, (places, scores), allow_unused=True)
    assert by_place is None
    assert bool(by_score.abs().sum() > 0)


@pytest.mark.parametrize("axes", [2, 3])
def test_both_ways_to_find_what_matters_agree(axes: int) -> None:
    generator = np.random.default_rng(0)
    given = (
        torch.from_numpy(generator.normal(0, 0.1, (axes, 900))).float(),
        torch.from_numpy(generator.integers(-2, 12, 900)),
        torch.from_numpy(np.exp(generator.normal(6, 1, (axes, 12)))).float(),
        torch.from_numpy(generator.normal(0, 0.1, (axes, 12))).float(),
        torch.from_numpy(generator.uniform(0, 16, 12)).float(),
    )
    searched, compared = (sorted(found.T.tolist()) for found in (module._search(*given), module._compare(*given)))
    assert len(searched) > 500
    assert searched == compared


def test_the_loss_refuses_shapes_that_do_not_fit() -> None:
    places, sigma, scores, labels, centres, category = batch(0, 2)
    with pytest.raises(InputError, match="only with K = 1"):
        spatial_embedding(places, sigma, scores, labels, centres)
    with pytest.raises(InputError, match="expected three times"):
        spatial_embedding(places, sigma, scores, labels[:, 1:], centres, category)


# -- targets, decoding, symmetries -------------------------------------------------------------------------------------


def touching(size: int = 72, seed: int = 0, cell: int = 16) -> NDArray[np.int32]:
    """Cells that share borders, apart from a strip of background on the left."""
    generator = np.random.default_rng(seed)
    points = np.stack(np.meshgrid(*[np.arange(cell / 2, size, cell)] * 2), -1).reshape(-1, 2)
    points = points + generator.uniform(-3, 3, points.shape)
    rows, columns = np.mgrid[:size, :size]
    apart = (rows[..., None] - points[:, 0]) ** 2 + (columns[..., None] - points[:, 1]) ** 2
    ids = np.where(apart.min(-1) < (0.62 * cell) ** 2, apart.argmin(-1) + 1, 0).astype(np.int32)
    ids[:, :6] = 0
    return ids


def ideal(method: SpatialEmbedding, segments: Segments) -> dict[str, Tensor]:
    """Outputs (1, ?, H, W) that say what the targets want: pixels embed at centres, seed scores fall off outwards."""
    targets = method.targets(segments)
    labels, centres = targets["labels"], targets["centres"]
    position = torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in labels.shape], indexing="ij"))
    apart = torch.where(labels > 0, centres - position, 0.0)
    sigma = torch.ones_like(apart)
    for label in labels[labels > 0].unique():
        inside = labels == label
        extent = apart[:, inside].abs().amax(1) + 1
        sigma[:, inside] = (torch.log(4 * 1023**2 / extent**2) / 10)[:, None]
    category = targets.get("category", torch.zeros_like(labels))
    seed = torch.stack([(labels > 0) & (category == k) for k in range(method.classes)])
    logit = torch.where(seed, 5 - apart.square().sum(0) / 500, -5.0)
    return {"offset": torch.atanh(apart / 1023)[None], "sigma": sigma[None], "seed": logit[None]}


def test_ideal_outputs_give_back_objects_of_any_shape() -> None:
    ids = touching()
    ids[30:34] = 0
    ids[31, 8:70] = ids.max() + 1  # a bar across
    ids[40:60, 40:60] = np.where(np.hypot(*np.mgrid[-10:10, -10:10]) > 6, ids.max() + 1, ids[40:60, 40:60])
    segments = Segments.from_label_map(ids)
    for centre in ("medoid", "centroid"):
        method = SpatialEmbedding(base=8, channels=1, centre=centre, smallest=0)  # type: ignore[arg-type]
        (found,) = method.decode(ideal(method, segments), [ids.shape])
        assert len(found) == len(segments)
        metric = MatchingMetric(Categories(["cell"]), [0.999])
        metric.update(segments, found.with_category(np.ones(len(found), int)), "a")
        assert metric.compute()["mean_accuracy"] == 1
        assert found.score is not None
        assert found.score.min() > 0.9


def test_objects_of_several_categories_keep_them() -> None:
    ids = touching(seed=1)
    category = np.arange(ids.max()) % 3
    method = SpatialEmbedding(classes=3, base=8, channels=1)
    segments = Segments.from_label_map(ids, category)
    outputs = ideal(method, segments)
    doubled = {name: torch.cat([each, each]) for name, each in outputs.items()}
    whole, part = method.decode(doubled, [(72, 72), (50, 61)])
    assert part.size == (50, 61)
    table, of = np.concatenate([[-1], whole.category]), np.concatenate([[-1], segments.category])
    found = whole.label_map()
    large = np.flatnonzero(segments.areas() > 36) + 1
    assert (table[found] == of[ids])[np.isin(ids, [0, *large])].all()
    assert len(whole) == len(large)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_outputs_of_turned_images_are_turned_back(flip: bool, turns: int) -> None:
    method = SpatialEmbedding(base=8, channels=1, centre="centroid")
    ids = touching(seed=2)[:, :56]
    copy = np.rot90(ids, turns)
    copy = copy[:, ::-1] if flip else copy
    outputs = ideal(method, Segments(ids.shape, np.zeros(ids.max(), int), LabelMap(ids)))
    turned = ideal(method, Segments(copy.shape, np.zeros(ids.max(), int), LabelMap(copy.copy())))
    back = method.undo_dihedral(turned, flip, turns)
    for name, output in outputs.items():
        torch.testing.assert_close(back[name], output, rtol=1e-4, atol=1e-6)
    assert outputs["sigma"].std(1).max() > 0  # the axes differ


def test_ideal_outputs_have_no_loss_but_the_lovasz_margin() -> None:
    ids = touching(seed=3)
    method = SpatialEmbedding(base=8, channels=1)
    segments = Segments.from_label_map(ids)
    outputs, targets = ideal(method, segments), {k: v[None] for k, v in method.targets(segments).items()}
    terms = {name: float(each) for name, each in method.loss(outputs, targets).items()}
    assert terms["variance"] < 1e-10
    assert terms["instance"] < 0.01
    wrong = dict(outputs, offset=outputs["offset"] + 0.01)
    assert float(method.loss(wrong, targets)["instance"]) > 0.5


# -- learning ----------------------------------------------------------------------------------------------------------


def picture(number: int) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    ids = touching(64, number)
    random = np.random.default_rng(number)
    edges = (np.roll(ids, 1, 0) != ids) | (np.roll(ids, 1, 1) != ids)
    return (40 + 120 * (ids > 0) - 60.0 * edges + random.normal(0, 8, ids.shape)).clip(0, 255).astype(np.uint8), ids


def test_a_small_network_learns_touching_cells(tmp_path: Path) -> None:
    categories = Categories(["cell"])

    def sample(number: int) -> Sample:
        image, ids = picture(number)
        return Sample(f"{number}", lambda: image[..., None], lambda: Segments.from_label_map(ids))

    data = Dataset(sample, 2, categories, frozenset({Task.INSTANCE}), "test", Path("made-up"))
    torch.manual_seed(0)
    method = SpatialEmbedding(channels=1, network="unet", base=8, depth=2)
    recipe = method.recipe().with_options(
        epochs=120, batch_size=2, crop=64, learning_rate=8e-3, ema=0.9, foreground=0.0, noise=0.0, flip="none",
        scale=(1.0, 1.0), contrast=(1.0, 1.0), brightness=0.0, workers=0, precision="float32", validate_every=1000,
    )  # fmt: skip
    preprocessing = Preprocessing(channels=1)
    train(method, data, None, recipe=recipe, preprocessing=preprocessing, categories=categories, out=tmp_path,
          device="cpu", quiet=True)  # fmt: skip
    predictor = Predictor(method, preprocessing, "cpu", "float32")
    metric = MatchingMetric(categories, [0.5])
    for number in range(2):
        image, ids = picture(number)
        found = predictor(image)
        metric.update(Segments.from_label_map(ids), found.with_category(np.ones(len(found), int)), str(number))
    assert metric.compute()["mean_accuracy"] >= 0.9


# -- odd annotations and options ---------------------------------------------------------------------------------------


def annotations() -> dict[str, Segments]:
    size = (48, 48)
    cut = np.zeros(size, np.int32)
    cut[:20, :13] = 1
    fragments = np.zeros(size, np.int32)
    fragments[::6, ::7] = 1
    fragments[40:, 40:] = 7
    crowd = np.zeros(size, np.int32)
    crowd[5:20, 5:20], crowd[30:40, 30:40] = 1, 2
    return {
        "empty": Segments.empty(size),
        "one pixel": Segments(size, [0], LabelMap(np.pad([[1]], ((20, 27), (30, 17))))),
        "fills the image": Segments(size, [0], LabelMap(np.ones(size, np.int32))),
        "cut by the border": Segments(size, [0], LabelMap(cut)),
        "fragments, labels not contiguous": Segments.from_label_map(fragments, 0),
        "crowd": Segments(size, [0, 0], LabelMap(crowd), crowd=[True, False]),
        "all void": Segments(size, [], LabelMap(np.full(size, -1))),
        "hidden": Segments(size, [0, 0], LabelMap(2 * cut)),
    }


@pytest.mark.parametrize("name", annotations())
@pytest.mark.parametrize("classes", [1, 2])
def test_odd_annotations_give_finite_losses_and_gradients(name: str, classes: int) -> None:
    method = SpatialEmbedding(classes=classes, channels=5, base=8, repeats=1)
    segments = annotations()[name]
    targets = {key: value[None] for key, value in method.targets(segments).items()}
    assert {key: tuple(value.shape) for key, value in targets.items()} == {
        "labels": (1, 48, 48),
        "centres": (1, 2, 48, 48),
    } | ({"category": (1, 48, 48)} if classes > 1 else {})
    terms = method.training_loss(torch.randn(1, 5, 48, 48), targets)
    sum(terms.values(), torch.zeros(())).backward()
    assert all(torch.isfinite(each) for each in terms.values())
    assert all(torch.isfinite(each.grad).all() for each in method.parameters() if each.grad is not None)
    if not (targets["labels"] > 0).any():
        assert terms["instance"].item() == terms["variance"].item() == 0
    if name == "all void":
        assert terms["seed"].item() == 0


def test_crowds_are_void() -> None:
    labels = SpatialEmbedding(channels=1, base=8).targets(annotations()["crowd"])["labels"]
    assert (labels[5:20, 5:20] == -1).all()
    assert (labels[30:40, 30:40] == 2).all()


def test_outputs_that_are_not_finite_give_no_objects() -> None:
    method = SpatialEmbedding(channels=1, base=8)
    outputs = {name: torch.full((1, n, 16, 16), torch.nan) for name, n in (("offset", 2), ("sigma", 2), ("seed", 1))}
    (found,) = method.decode(outputs, [(16, 16)])
    assert len(found) == 0


@pytest.mark.parametrize(("options", "stride"), [({"network": "unet", "depth": 3}, 8), ({"backbone": "resnet10t"}, 32)])
def test_other_networks_have_the_same_outputs(options: dict[str, object], stride: int) -> None:
    method = SpatialEmbedding(classes=2, base=8, **options).eval()  # type: ignore[arg-type]
    assert method.stride == stride
    with torch.inference_mode():
        outputs = method(torch.rand(1, 3, 64, 96))
    assert {name: tuple(each.shape) for name, each in outputs.items()} == {
        "offset": (1, 2, 64, 96),
        "sigma": (1, 2, 64, 96),
        "seed": (1, 2, 64, 96),
    }
    # At the start each pixel is its own centre, with the bandwidth of the papers.
    assert (outputs["offset"] == 0).all()
    assert (outputs["sigma"] == 1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "erf"}, "network"),
        ({"centre": "mean"}, "centre"),
        ({"base": 0}, "base must be at least 1|at least 1, got"),
        ({"base": 4, "channels": 5}, "base must be larger than the number of channels"),
        ({"overlap": 2.0}, "overlap must be in 0..1"),
        ({"dropout": 1.0}, "dropout in 0..1"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        SpatialEmbedding(**options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
