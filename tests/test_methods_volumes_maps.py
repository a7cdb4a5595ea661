"""Volumes: distance maps, border classes and spatial embeddings, from labels to targets and back, and learning."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional

from everymask.errors import InputError
from everymask.methods.base import Method
from everymask.methods.bottom_up.border_unet import BorderUNet
from everymask.methods.bottom_up.distance_watershed import DistanceWatershed
from everymask.methods.bottom_up.folded_maps import FoldedMaps, Unfold, folded, unfolded
from everymask.methods.bottom_up.objects import turned_back
from everymask.methods.bottom_up.spatial_embedding import UNIT, SpatialEmbedding, embeddings
from everymask.types import LabelMap, Segments

pytest.importorskip("skimage.segmentation")
matching = pytest.importorskip("stardist.matching").matching

Make = Callable[..., Method]
SMALL = {"channels": 1, "base": 4, "depth": 1, "dimensions": 3}


def watershed_of(form: str) -> Make:
    return lambda **options: DistanceWatershed(form=form, **(SMALL | options))  # type: ignore[arg-type]


METHODS: dict[str, Make] = {
    "neighbour": watershed_of("neighbour"),
    "signed": watershed_of("signed"),
    "boundary": watershed_of("boundary"),
    "border": lambda **options: BorderUNet(**(SMALL | options)),  # type: ignore[arg-type]
    "embedding": lambda **options: SpatialEmbedding(**(SMALL | {"network": "unet"} | options)),  # type: ignore[arg-type]
}


def touching(
    size: tuple[int, int, int] = (24, 44, 40), anisotropy: float = 1.0, seed: int = 0, radius: float = 8.5
) -> NDArray[np.int32]:
    """Labels of balls in a heap that touch without a gap, in planes too; some are cut by the faces of the volume."""
    random = np.random.default_rng(seed)
    spacing = np.array([anisotropy, 1.0, 1.0])
    places = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1) * spacing
    centres: list[NDArray[np.float64]] = []
    for _ in range(400):
        centre = random.uniform(0, np.array(size) * spacing)
        if all(np.linalg.norm(centre - other) > 1.5 * radius for other in centres):
            centres.append(centre)
    apart = np.stack([np.linalg.norm(places - centre, axis=-1) for centre in centres])
    ids = np.where(apart.min(0) < radius, apart.argmin(0) + 1, 0)
    for number in range(1, len(centres) + 1):  # slivers at a face that no method has to find
        if (ids == number).sum() < 0.5 * radius**3 / anisotropy:
            ids[ids == number] = 0
    return np.unique(ids, return_inverse=True)[1].reshape(size).astype(np.int32)


def perfect(method: Method, segments: Segments) -> dict[str, Tensor]:
    """Outputs (1, ?, D, H, W) of a network that has learnt the targets."""
    targets = {name: value[None] for name, value in method.targets(segments).items()}
    outputs: dict[str, Tensor] = {}
    if isinstance(method, SpatialEmbedding):
        return ideal(method, targets)
    if isinstance(method, BorderUNet):
        outputs = {"parts": 9.0 * functional.one_hot(targets["parts"].clamp(min=0), 3).movedim(-1, 1)}
    elif isinstance(method, DistanceWatershed):
        outputs = {name: targets[name] for name in method.maps}
        if method.form == "boundary":
            outputs = {name: torch.logit(value, eps=1e-4) for name, value in outputs.items()}
    if "category" in targets:
        classes = targets["category"].clamp(min=0)
        outputs["category"] = 9.0 * functional.one_hot(classes, method.classes + 1).movedim(-1, 1)
    return outputs


def ideal(method: SpatialEmbedding, targets: dict[str, Tensor]) -> dict[str, Tensor]:
    """Pixels embed at centres; bandwidths fit the objects; seed scores fall off outwards."""
    labels, centres = targets["labels"][0], targets["centres"][0]
    steps = torch.tensor([method.anisotropy, 1.0, 1.0])[:, None, None, None]
    position = steps * torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in labels.shape], indexing="ij"))
    apart = torch.where(labels > 0, centres - position, 0.0)
    sigma = torch.ones_like(apart)
    for label in labels[labels > 0].unique():
        inside = labels == label
        extent = apart[:, inside].abs().amax(1) + 1
        sigma[:, inside] = (torch.log(4 * UNIT**2 / extent**2) / 10)[:, None]
    category = targets.get("category", torch.zeros_like(targets["labels"]))[0]
    seed = torch.stack([(labels > 0) & (category == k) for k in range(method.classes)])
    logit = torch.where(seed, 5 - apart.square().sum(0) / 500, -5.0)
    return {"offset": torch.atanh(apart / UNIT)[None], "sigma": sigma[None], "seed": logit[None]}


# -- from labels to outputs and back -----------------------------------------------------------------------------------


@pytest.mark.parametrize("anisotropy", [1.0, 3.0])
@pytest.mark.parametrize("name", METHODS)
def test_touching_objects_come_back_from_perfect_outputs(name: str, anisotropy: float) -> None:
    size = (int(36 / anisotropy), 44, 40)
    ids = touching(size, anisotropy, seed=1)
    assert (ids[1:] != ids[:-1])[(ids[1:] > 0) & (ids[:-1] > 0)].sum() > 200  # they touch across planes
    method = METHODS[name](anisotropy=anisotropy)
    (found,) = method.decode(perfect(method, Segments.from_label_map(ids)), [size])
    assert found.size == size
    assert ids.max() >= 8
    assert matching(ids, found.label_map(), thresh=0.7).accuracy == 1
    assert found.score is not None
    assert ((found.score > 0.5) & (found.score <= 1)).all()
    if name == "embedding":
        np.testing.assert_array_equal(found.label_map() > 0, ids > 0)


@pytest.mark.parametrize("name", METHODS)
def test_categories_are_kept_and_padding_is_not_decoded(name: str) -> None:
    ids = touching((16, 40, 36), 2.0, seed=2)
    category = np.arange(ids.max()) % 3
    method = METHODS[name](classes=3, anisotropy=2.0)
    outputs = perfect(method, Segments.from_label_map(ids, category))
    padded = {key: functional.pad(each, (0, 4, 0, 3, 0, 2), value=3.0) for key, each in outputs.items()}
    both = {key: torch.cat([each, each]) for key, each in padded.items()}
    whole, part = method.decode(both, [(16, 40, 36), (11, 30, 25)])
    (expected,) = method.decode({key: each[:, :, :11, :30, :25] for key, each in outputs.items()}, [(11, 30, 25)])
    np.testing.assert_array_equal(part.label_map(), expected.label_map())
    table = np.concatenate([[-1], category])
    assert len(whole) == ids.max() > 5
    for number in range(len(whole)):
        inside = ids[whole.label_map() == number + 1]
        assert table[np.bincount(inside).argmax()] == whole.category[number]


def degenerate() -> dict[str, tuple[NDArray[np.int32], int]]:
    """Volumes, and how many objects are in them."""
    size = (10, 24, 24)
    one = np.zeros(size, np.int32)
    one[1:9, 3:21, 2:22] = 1
    void = one.copy()
    void[7:] = -1
    fragments = one.copy()
    fragments[:, :, 11:13] = 0
    plane = np.zeros((1, 24, 24), np.int32)
    plane[0, 4:20, 3:12], plane[0, 4:20, 12:21] = 1, 2
    return {
        "empty": (np.zeros(size, np.int32), 0),
        "one object": (one, 1),
        "an object that fills the volume": (np.ones(size, np.int32), 1),
        "void planes": (void, 1),
        "all void": (np.full(size, -1, np.int32), 0),
        "parts": (fragments, 2),
        "a single plane": (plane, 2),
    }


@pytest.mark.parametrize("case", degenerate())
@pytest.mark.parametrize("name", METHODS)
def test_degenerate_volumes_train_and_decode(name: str, case: str) -> None:
    torch.manual_seed(0)
    ids, count = degenerate()[case]
    method = METHODS[name](classes=2, channels=2, anisotropy=2.0, depth=2, flat=1)
    segments = Segments(ids.shape, [1] * max(int(ids.max()), 0), LabelMap(ids))
    (found,) = method.decode(perfect(method, segments), [ids.shape])
    if name == "embedding" and case == "parts":
        count = 1  # both point at one centre
    assert len(found) == count
    assert (found.category == 1).all()
    if case == "one object":
        assert matching(ids, found.label_map(), thresh=0.8).accuracy == 1
    planes = -len(ids) % method.depth_stride  # the engine pads, with void
    padded = np.pad(ids, ((0, planes), (0, 0), (0, 0)), constant_values=-1)
    targets = method.targets(Segments(padded.shape, segments.category, LabelMap(padded)))
    terms = method.training_loss(torch.rand(1, 2, *padded.shape), {key: each[None] for key, each in targets.items()})
    assert all(torch.isfinite(term) for term in terms.values())
    sum(terms.values(), torch.zeros(())).backward()
    assert all(torch.isfinite(each.grad).all() for each in method.parameters() if each.grad is not None)
    if case == "all void":
        assert all(float(term.detach()) == 0 for term in terms.values())


@pytest.mark.parametrize("name", METHODS)
def test_void_planes_teach_nothing(name: str) -> None:
    torch.manual_seed(0)
    ids = touching((8, 24, 24), 2.0, seed=3, radius=7)
    ids[5:] = -1
    method = METHODS[name](anisotropy=2.0).eval()
    targets = {key: each[None] for key, each in method.targets(Segments.from_label_map(ids)).items()}
    with torch.no_grad():
        outputs = method(torch.rand(1, 1, *ids.shape))
        changed = {key: each.clone() for key, each in outputs.items()}
        for each in changed.values():
            each[:, :, 5:] += 1.7
        first, second = method.loss(outputs, targets), method.loss(changed, targets)
    assert sum(map(float, first.values())) > 0.01
    assert all(float(first[key]) == pytest.approx(float(second[key]), rel=1e-5) for key in first)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize("name", METHODS)
def test_outputs_of_turned_volumes_are_turned_back(name: str, turns: int, flip: bool) -> None:
    options = {"centre": "centroid"} if name == "embedding" else {}  # of equally good medoids any may be taken
    method = METHODS[name](anisotropy=2.0, **options)
    ids = touching((8, 24, 32), 2.0, seed=4, radius=7)

    def outputs_of(labels: NDArray[np.int32]) -> dict[str, Tensor]:
        return perfect(method, Segments(labels.shape, np.zeros(ids.max(), int), LabelMap(labels)))

    turned = np.rot90(ids, turns, (-2, -1))
    turned = np.ascontiguousarray(turned[..., ::-1] if flip else turned)
    back = method.undo_dihedral(outputs_of(turned), flip, turns)
    for key, output in outputs_of(ids).items():
        torch.testing.assert_close(back[key], output, rtol=1e-4, atol=1e-5)


def test_vectors_of_turned_volumes_keep_their_first_component() -> None:
    vectors = torch.rand(2, 3, 4, 5, 5)
    for flip in (False, True):
        for turns in range(4):
            back = turned_back(vectors, flip, turns)
            assert torch.equal(back[:, 0], vectors[:, 0])
            for plane in range(4):  # the planes are images
                assert torch.equal(back[:, 1:, plane], turned_back(vectors[:, 1:, plane], flip, turns))


def test_embeddings_are_positions_in_pixels() -> None:
    offset = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64) / 50
    places = embeddings(offset, 2.5) * UNIT
    for z, y, x in np.ndindex(4, 5, 6):
        expected = torch.tensor([2.5 * z, y, x]) + UNIT * offset[:, :, z, y, x].tanh()
        torch.testing.assert_close(places[:, :, z, y, x], expected, rtol=1e-6, atol=1e-6)


def test_centres_of_volumes_are_in_pixels() -> None:
    ids = np.zeros((7, 9, 11), np.int32)
    ids[1:6, 2:7, 3:10] = 1
    targets = SpatialEmbedding(dimensions=3, network="unet", anisotropy=3.0).targets(Segments.from_label_map(ids))
    inside = targets["labels"] == 1
    assert (targets["centres"][:, inside] == torch.tensor([9.0, 4.0, 6.0])[:, None]).all()
    assert targets["centres"].shape == (3, 7, 9, 11)


# -- networks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fold", [1, 2, 4])
def test_folding_of_volumes_is_that_of_their_planes(fold: int) -> None:
    volume = torch.rand(2, 3, 5, 8, 12)
    cells = folded(volume, fold)
    assert torch.equal(unfolded(cells, fold), volume)
    for plane in range(5):
        assert torch.equal(cells[:, :, plane], functional.pixel_unshuffle(volume[:, :, plane], fold))
        assert torch.equal(cells[:, :, plane], folded(volume[:, :, plane], fold))
    head = Unfold(3, 2, fold, dimensions=3)
    flat = Unfold(3, 2, fold)
    flat.load_state_dict({key: value.reshape(value.shape[:4]) for key, value in head.state_dict().items()})
    for plane in range(5):
        torch.testing.assert_close(head(volume)[:, :, plane], flat(volume[:, :, plane]))


@pytest.mark.parametrize("options", [{"fold": 1}, {"fold": 2, "flat": 2}, {"fold": 4, "flat": 1}])
@pytest.mark.parametrize("name", ["neighbour", "border"])
def test_outputs_have_the_size_of_the_volume(name: str, options: dict[str, int]) -> None:
    method = METHODS[name](depth=2, classes=2, channels=3, **options).eval()
    fold, flat = options["fold"], options.get("flat", 0)
    assert (method.stride, method.depth_stride) == (4 * fold, 2 ** (2 - flat))
    size = (2 * method.depth_stride, method.stride, 2 * method.stride)
    with torch.inference_mode():
        outputs = method(torch.rand(1, 3, *size))
    assert all(each.shape[2:] == size for each in outputs.values())
    assert isinstance(method, FoldedMaps)
    with torch.inference_mode():
        first = method.features(torch.rand(1, 3, *size, generator=torch.manual_seed(0)))[0]
        whole = method.body(folded(torch.rand(1, 3, *size, generator=torch.manual_seed(0)), fold))
    assert torch.equal(first, whole)  # the first decoder is the U-Net itself


@pytest.mark.parametrize(("network", "flat"), [("unet", 1), ("erfnet", 0), ("erfnet", 2)])
def test_networks_of_embeddings_start_alike(network: str, flat: int) -> None:
    method = SpatialEmbedding(2, 3, network, base=4, depth=3, repeats=1, dimensions=3, flat=flat).eval()  # type: ignore[arg-type]
    assert (method.stride, method.depth_stride) == (8, 2 ** (3 - flat))
    size = (method.depth_stride, 16, 24)
    with torch.inference_mode():
        outputs = method(torch.rand(1, 3, *size))
    assert {name: tuple(each.shape) for name, each in outputs.items()} == {
        "offset": (1, 3, *size),
        "sigma": (1, 3, *size),
        "seed": (1, 2, *size),
    }
    assert (outputs["offset"] == 0).all()
    assert (outputs["sigma"] == 1).all()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("neighbour", {"norm": "none"}),
        ("border", {"norm": "none", "flat": 1, "fold": 1}),
        ("embedding", {"depth": 2, "flat": 1}),
    ],
)
def test_the_context_covers_the_receptive_field(name: str, options: dict[str, object]) -> None:
    torch.manual_seed(0)
    method = METHODS[name](**({"base": 2, "anisotropy": 2.0} | options)).eval()
    for parameter in method.parameters():
        nn.init.uniform_(parameter, 0.01, 0.1)  # positive weights: nothing cancels, no unit dies
    planes, side = 2 * (method.depth_context + method.depth_stride), 2 * (method.context + method.stride)
    planes, side = planes + -planes % method.depth_stride, side + -side % method.stride
    volume = torch.rand(1, 1, planes, side, side, requires_grad=True)
    outputs = method(volume)
    at = (0, slice(None), planes // 2, side // 2, side // 2)
    sum(each[at].sum() for each in outputs.values()).backward()  # type: ignore[union-attr]
    assert volume.grad is not None
    reached = torch.nonzero(volume.grad[0, 0]) - torch.tensor([planes // 2, side // 2, side // 2])
    depth, height, width = reached.abs().amax(0).tolist()
    assert 4 <= depth <= method.depth_context
    assert 8 <= max(height, width) <= method.context


def test_volumes_are_learnt_in_smaller_crops() -> None:
    for kind in (DistanceWatershed, BorderUNet, SpatialEmbedding):
        assert kind.recipe_for(dimensions=3).crop < kind.recipe().crop
        assert kind.recipe_for(dimensions=2) == kind.recipe_for() == kind.recipe()


# -- learning ----------------------------------------------------------------------------------------------------------


def picture(ids: NDArray[np.int32], anisotropy: float) -> Tensor:
    """A volume (1, 1, D, H, W) of objects brighter in the middle, with noise."""
    spacing = (anisotropy, 1.0, 1.0)
    depth = np.zeros(ids.shape)
    for number in range(1, ids.max() + 1):
        depth += np.minimum(ndimage.distance_transform_edt(ids == number, sampling=spacing), 4) / 4
    noise = np.random.default_rng(0).normal(0, 0.05, ids.shape)
    return torch.from_numpy(depth + noise).float()[None, None]


@pytest.mark.parametrize(
    ("name", "options", "planes", "steps"),
    [
        ("neighbour", {"classes": 2}, 12, 60),
        ("signed", {}, 12, 60),
        ("boundary", {}, 12, 60),
        ("border", {}, 12, 60),
        ("embedding", {}, 12, 60),
        ("embedding", {"network": "erfnet", "repeats": 1}, 8, 100),
    ],
)
def test_it_learns_to_tell_touching_objects_apart(
    name: str, options: dict[str, object], planes: int, steps: int
) -> None:
    torch.manual_seed(0)
    anisotropy, rate = 2.0, 1e-2
    ids = touching((planes, 24, 24), anisotropy, seed=5)
    category = np.arange(ids.max()) % 2 if "classes" in options else np.zeros(ids.max(), int)
    method = METHODS[name](**({"base": 8, "depth": 2, "flat": 1, "anisotropy": anisotropy} | options))
    targets = {key: each[None] for key, each in method.targets(Segments.from_label_map(ids, category)).items()}
    image = picture(ids, anisotropy)
    optimiser = torch.optim.Adam(method.parameters(), lr=rate)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = rate * (1 - step / steps)
        optimiser.zero_grad()
        sum(method.training_loss(image, targets).values(), torch.zeros(())).backward()
        optimiser.step()
    method.eval()
    with torch.inference_mode():
        (found,) = method.decode(method(image), [ids.shape])
    assert ids.max() == 7
    assert matching(ids, found.label_map(), thresh=0.5).accuracy >= 0.9
    owners = [np.bincount(ids[found.label_map() == number + 1]).argmax() for number in range(len(found))]
    np.testing.assert_array_equal(found.category, np.concatenate([[-1], category])[owners])


# -- options -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [DistanceWatershed, BorderUNet, SpatialEmbedding])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dimensions": 4}, "dimensions must be 2"),
        ({"dimensions": 3, "anisotropy": 0.0}, "anisotropy"),
        ({"dimensions": 3, "anisotropy": float("nan")}, "anisotropy"),
        ({"anisotropy": 2.0}, "anisotropy is for volumes"),
        ({"flat": 1}, "flat is for volumes"),
        ({"dimensions": 3, "flat": 9}, "flat counts poolings"),
        ({"dimensions": 3, "backbone": "resnet10t"}, "backbones are for images"),
    ],
)
def test_wrong_options_are_told(kind: type[Method], options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        kind(**options)
    assert "\n" not in str(caught.value)


def test_the_configuration_makes_the_same_network() -> None:
    for make in METHODS.values():
        method = make(anisotropy=2.0, flat=1)
        again = type(method)(**method.config)
        again.load_state_dict(method.state_dict())
        assert (again.dimensions, again.anisotropy, again.depth_stride) == (3, 2.0, 1)
