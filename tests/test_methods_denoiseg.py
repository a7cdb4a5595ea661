"""DenoiSeg: its targets, its hidden pixels, its loss and its objects against independent references; it learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from everymask.errors import InputError
from everymask.methods.bottom_up.denoiseg import BORDER, DenoiSeg, grown_borders, hide_pixels, outer_borders
from everymask.model import Model
from everymask.types import Categories, Dataset, LabelMap, Sample, Segments, Task


def blobs(seed: int, size: tuple[int, int] = (40, 37), count: int = 14) -> NDArray[np.int32]:
    """Discs that touch and overlap, cut by the border of the image; ids with gaps."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]]
    ids = np.zeros(size, np.int32)
    for number in range(1, count):
        y, x, radius = random.uniform(0, size[0]), random.uniform(0, size[1]), random.uniform(1, 7)
        ids[(rows - y) ** 2 + (columns - x) ** 2 < radius**2] = 3 * number
    return ids


# --- targets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_borders_are_those_of_the_official_program(seed: int) -> None:
    segmentation = pytest.importorskip("skimage.segmentation")
    random = np.random.default_rng(seed)
    sparse = random.integers(0, 5, (12, 9)) * (random.random((12, 9)) < 0.4)
    for ids in (blobs(seed), random.integers(0, 4, (12, 9)), sparse, blobs(seed, count=1)):
        # Of int64 labels scikit-image takes the largest number for the background, which float64 does not hold.
        assert np.array_equal(outer_borders(ids), segmentation.find_boundaries(ids.astype(np.int32), mode="outer"))


def test_targets_are_the_three_classes_of_the_paper() -> None:
    segmentation = pytest.importorskip("skimage.segmentation")
    ids = blobs(1)
    targets = DenoiSeg(base=2, depth=1).targets(Segments.from_label_map(ids))
    expected = (ids > 0).astype(np.int64)
    expected[segmentation.find_boundaries(ids, mode="outer")] = 2
    assert np.array_equal(targets["segmentation"].numpy(), expected)


def test_void_and_crowds_are_not_learnt() -> None:
    ids = np.zeros((8, 9), np.int32)
    ids[1:4, 1:4], ids[5:8, 5:9], ids[:, 8] = 1, 2, -1
    targets = DenoiSeg(classes=2, base=2, depth=1).targets(Segments(ids.shape, [1, 0], LabelMap(ids), crowd=[0, 1]))
    for name in ("segmentation", "category"):
        assert np.array_equal(targets[name].numpy() == -1, (ids == -1) | (ids == 2))
    assert set(targets["category"].numpy()[ids == 1].tolist()) == {2}


# --- hidden pixels --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width", "cell", "radius"), [(32, 24, 8, 5), (19, 30, 7, 2), (5, 3, 8, 5)])
def test_one_pixel_of_each_cell_gets_the_value_of_a_neighbour(height: int, width: int, cell: int, radius: int) -> None:
    torch.manual_seed(0)
    images = torch.arange(2 * height * width).view(2, 1, height, width).repeat(1, 3, 1, 1).float()
    images[:, 1] += 0.25  # channels differ, but are replaced by the same neighbour
    seen = np.zeros((2, height, width), bool)
    offsets = set()
    for _ in range(400):
        masked, hidden = hide_pixels(images, cell, radius)
        assert hidden.shape == (2, 1, height, width)
        chosen = hidden[:, 0].numpy() > 0
        left_alone = (hidden == 0).expand_as(images)
        assert torch.equal(masked[left_alone], images[left_alone])
        assert torch.equal(masked[:, 1], masked[:, 0] + 0.25)
        for top in range(0, height, cell):
            for left in range(0, width, cell):
                window = chosen[:, top : top + cell, left : left + cell]
                counts = window.sum((1, 2))
                whole = window.shape[1:] == (cell, cell)
                assert (counts == 1).all() if whole else (counts <= 1).all()
        for number, row, column in zip(*np.nonzero(chosen), strict=True):
            value = int(masked[number, 0, row, column]) - number * height * width
            offset = (value // width - row, value % width - column)
            assert max(map(abs, offset)) <= radius
            offsets.add(offset)
        seen |= chosen
    assert seen.mean() > 0.99  # every pixel is hidden sooner or later
    if min(height, width) > 2 * radius:
        assert len(offsets) == (2 * radius + 1) ** 2  # every neighbour is taken, the pixel itself as well


def test_as_many_pixels_are_hidden_as_the_paper_says() -> None:
    _, hidden = hide_pixels(torch.rand(4, 1, 64, 64), DenoiSeg(base=2, depth=1).cell, 5)
    assert float(hidden.mean()) == pytest.approx(0.015, abs=0.001)


# --- loss -----------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_formula_of_the_paper() -> None:
    random = np.random.default_rng(0)
    method = DenoiSeg(channels=2, alpha=0.3, border_weight=4.0, base=2, depth=1)
    parts = random.integers(-1, 3, (2, 6, 5))
    logits, guess = random.normal(size=(2, 3, 6, 5)), random.normal(size=(2, 2, 6, 5))
    image, hidden = random.normal(size=(2, 2, 6, 5)) * 3, random.random((2, 1, 6, 5)) < 0.2
    terms = method.loss(
        {"segmentation": torch.tensor(logits), "denoised": torch.tensor(guess)},
        {
            "segmentation": torch.tensor(parts),
            "image": torch.tensor(image),
            "hidden": torch.tensor(hidden.astype(np.float32)),
        },
    )
    entropy, count = 0.0, 0
    for n, y, x in np.ndindex(*parts.shape):
        if (part := parts[n, y, x]) >= 0:
            row = logits[n, :, y, x]
            entropy += (1.0, 1.0, 4.0)[part] * (np.log(np.exp(row).sum()) - row[part])
            count += 1
    assert float(terms["segmentation"]) == pytest.approx(0.7 * entropy / count, rel=1e-5)
    errors = ((guess - image) ** 2)[np.broadcast_to(hidden, image.shape)]
    assert float(terms["denoising"]) == pytest.approx(0.3 * errors.mean() / image.var(ddof=1), rel=1e-5)


def batch(method: DenoiSeg, seed: int = 0) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    ids = blobs(seed, (32, 32))
    targets = method.targets(Segments.from_label_map(ids, category=np.arange(len(np.unique(ids)) - 1) % 2))
    noise = np.random.default_rng(seed).normal(0, 0.2, (2, method.channels, 32, 32))
    images = torch.from_numpy(((ids > 0) + noise).astype(np.float32))
    return images, {name: torch.stack([each, each]) for name, each in targets.items()}


def test_evaluation_is_the_same_every_time_and_leaves_the_random_numbers_alone() -> None:
    method = DenoiSeg(classes=2, base=4, depth=1)
    images, targets = batch(method)
    method.eval()
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first, second = (method.training_loss(images, targets) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    method.train()
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(float(method.training_loss(images, targets)["denoising"].detach()))
    assert losses[0] == losses[1] != losses[2]


def test_images_without_annotation_teach_denoising_alone() -> None:
    method = DenoiSeg(classes=2, base=4, depth=1)
    images, _ = batch(method)
    void = method.targets(Segments((32, 32), [], LabelMap(np.full((32, 32), -1, np.int32))))
    terms = method.training_loss(images, {name: torch.stack([each, each]) for name, each in void.items()})
    assert terms["segmentation"].item() == terms["category"].item() == 0
    assert terms["denoising"].item() > 0
    sum(terms.values(), torch.zeros(())).backward()
    gradients = {name: each.grad for name, each in method.named_parameters()}
    assert all(each is not None and torch.isfinite(each).all() for each in gradients.values())
    assert not any(gradients[f"segmentation.linear.{kind}"].any() for kind in ("weight", "bias"))  # type: ignore[union-attr]
    assert gradients["body.down.0.0.0.weight"].any()  # type: ignore[union-attr]
    assert DenoiSeg.learns_from_unlabelled


def test_without_denoising_it_is_a_plain_network() -> None:
    method = DenoiSeg(alpha=0.0, base=4, depth=1).eval()
    images, targets = batch(method)
    outputs = method(images)
    assert set(outputs) == {"segmentation"}
    assert torch.equal(
        method.training_loss(images, targets)["segmentation"], method.loss(outputs, targets)["segmentation"]
    )


# --- decoding -------------------------------------------------------------------------------------------------------


def perfect(method: DenoiSeg, segments: Segments) -> dict[str, torch.Tensor]:
    """Sure and right outputs."""
    targets = method.targets(segments)
    return {
        name: torch.nn.functional.one_hot(targets[name].clamp(min=0), size).permute(2, 0, 1)[None] * 20.0
        for name, size in (("segmentation", 3), ("category", method.classes + 1))
        if name in targets
    }


def touching() -> NDArray[np.int32]:
    """A wall of bricks that touch each other and the border of the image, and one apart."""
    ids = np.zeros((60, 53), np.int32)
    for number, (row, column) in enumerate(np.ndindex(3, 3)):
        ids[12 * row : 12 * row + 12, 13 * column : 13 * column + 13] = number + 1
    ids[40:55, 20:40] = 10
    return ids


def test_touching_objects_come_back_as_they_were() -> None:
    ids = touching()
    category = np.arange(10) % 3
    segments = Segments.from_label_map(ids, category)
    method = DenoiSeg(classes=3, base=2, depth=1)
    (found,) = method.decode(perfect(method, segments), [ids.shape])
    assert len(found) == 10
    assert found.score is not None
    assert found.score.min() > 0.99
    pairs = np.unique(np.stack([found.label_map().ravel(), ids.ravel()]), axis=1)
    assert pairs.shape[1] == 11  # the same pixels under other numbers
    truth = dict(pairs.T[1:].tolist())
    assert [category[truth[number + 1] - 1] for number in range(10)] == found.category.tolist()
    bare = DenoiSeg(classes=3, base=2, depth=1, grow=False)
    (thin,) = bare.decode(perfect(bare, segments), [ids.shape])
    expected = np.where(outer_borders(ids), 0, ids)
    assert np.array_equal(thin.label_map() > 0, expected > 0)
    assert len(thin) == 10


@pytest.mark.parametrize("seed", range(10))
def test_grown_borders_pixel_by_pixel(seed: int) -> None:
    whole = blobs(seed)
    border = outer_borders(whole)
    ids = np.where(border, 0, whole)
    found = grown_borders(ids, border)
    axes, diagonals = ((-1, 0), (1, 0), (0, -1), (0, 1)), ((-1, -1), (-1, 1), (1, -1), (1, 1))
    for y, x in np.ndindex(*ids.shape):

        def at(dy: int, dx: int) -> int:
            inside = 0 <= y + dy < ids.shape[0] and 0 <= x + dx < ids.shape[1]  # noqa: B023 - called at once
            return int(ids[y + dy, x + dx]) if inside else 0  # noqa: B023

        allowed: list[set[int]] = []
        for directions in (axes, diagonals):
            allowed.append(set())
            for dy, dx in directions:
                others = [at(-step * dy, -step * dx) for step in (1, 2, 3)]
                nearest = next((each for each in others if each), 0)
                if at(dy, dx) and nearest not in (0, at(dy, dx)):
                    allowed[-1].add(at(dy, dx))
        if ids[y, x] or not border[y, x]:
            assert found[y, x] == ids[y, x]
        else:
            assert found[y, x] in (allowed[0] or allowed[1] or {0})


def test_the_threshold_and_the_smallest_object_decide() -> None:
    method = DenoiSeg(base=2, depth=1, smallest=3)
    probability = torch.tensor([0.3, 0.6, 0.9])
    logits = torch.full((1, 3, 8, 12), -30.0)
    logits[:, 0] = 0.0
    for number, value in enumerate(probability):
        logits[0, 1, 2:5, 4 * number : 4 * number + 2] = torch.logit(value)
    logits[0, 1, 7, 11] = 9.0
    for threshold, expected in ((0.2, 3), (0.5, 2), (0.7, 1), (0.95, 0)):
        method.thresholds = {"foreground": threshold}
        (found,) = method.decode({"segmentation": logits}, [(8, 12)])
        assert len(found) == expected
        assert found.score is not None
        np.testing.assert_allclose(found.score, probability[3 - expected :], atol=1e-6)
    method.smallest = 0
    assert len(method.decode({"segmentation": logits}, [(8, 12)])[0]) == 1


def test_one_object_may_fill_the_image_and_none_may_be_there() -> None:
    method = DenoiSeg(base=2, depth=1)
    for value, count in ((1, 1), (0, 0)):
        ids = np.full((9, 7), value, np.int32)
        segments = Segments.from_label_map(ids)
        assert BORDER not in method.targets(segments)["segmentation"]
        (found,) = method.decode(perfect(method, segments), [ids.shape])
        assert len(found) == count
        assert np.array_equal(found.label_map(), ids)


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"alpha": 1.0}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"hidden": 0.0}, "hidden"),
        ({"radius": 0}, "radius"),
        ({"border_weight": -1.0}, "border_weight"),
        ({"smallest": -1}, "smallest"),
    ],
)
def test_options_out_of_range_are_told_in_a_line(options: dict[str, object], name: str) -> None:
    with pytest.raises(InputError, match=name) as caught:
        DenoiSeg(**options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("channels", [1, 5])
def test_any_channels_and_a_backbone(channels: int) -> None:
    for options in ({"base": 4, "depth": 1}, {"base": 4, "depth": 1, "fold": 2}, {"backbone": "resnet10t"}):
        method = DenoiSeg(channels=channels, **options)  # type: ignore[arg-type]
        images = torch.rand(2, channels, 64, 32)
        outputs = method(images)
        assert outputs["denoised"].shape == images.shape
        assert outputs["segmentation"].shape == (2, 3, 64, 32)


# --- learning -------------------------------------------------------------------------------------------------------


def picture(number: int) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """A noisy image of pairs of discs that touch along a dark line, and their ids."""
    random = np.random.default_rng(number)
    rows, columns = np.mgrid[:64, :64]
    ids = np.zeros((64, 64), np.int32)
    for pair, (y, x) in enumerate(((16, 16), (16, 48), (48, 16), (48, 48))):
        angle = random.uniform(0, np.pi)
        for side in (1, -1):
            centre = (y + side * 6 * np.sin(angle), x + side * 6 * np.cos(angle))
            inside = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < 6.5**2
            ids[inside & (ids == 0)] = 2 * pair + (1 if side > 0 else 2)
    clean = 60.0 + 110 * (ids > 0) - 90 * outer_borders(ids) * (ids > 0)
    return (clean + random.normal(0, 12, clean.shape)).clip(0, 255).astype(np.uint8)[..., None], ids


def pictures(count: int, annotated: int, start: int = 0) -> Dataset:
    def sample(number: int) -> Sample:
        def segments() -> Segments | None:
            return Segments.from_label_map(picture(start + number)[1]) if number < annotated else None

        return Sample(f"{number}", lambda: picture(start + number)[0], segments)

    return Dataset(sample, count, Categories(["disc"]), frozenset({Task.INSTANCE}), "test", Path("made-up"))


def test_it_learns_touching_objects_with_images_that_nobody_annotated(tmp_path: Path) -> None:
    torch.manual_seed(0)
    result = Model("denoiseg", ["disc"], channels=1, base=8, depth=2).train(
        pictures(6, annotated=3),
        pictures(3, annotated=3),
        out=tmp_path / "run",
        quiet=True,
        epochs=3,
        steps_per_epoch=45,
        validate_every=3,
        warmup=0.2,
        batch_size=4,
        crop=64,
        learning_rate=1e-2,
        ema=0.9,
        workers=0,
        precision="float32",
    )
    assert result.validation["accuracy@0.5"] >= 0.9


def test_it_learns_to_denoise_without_clean_images() -> None:
    torch.manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    phase = 6.3 * torch.rand(9, 1, 1, 1)
    clean = 0.5 + 0.4 * torch.sin(rows / 6 + phase) * torch.cos(columns / 7 - phase)
    noisy = clean + 0.2 * torch.randn_like(clean)
    method = DenoiSeg(channels=1, base=8, depth=1, hidden=0.06)
    void = {"segmentation": torch.full((8, 32, 32), -1)}
    optimiser = torch.optim.Adam(method.parameters(), lr=1e-2)
    for _ in range(100):
        optimiser.zero_grad()
        sum(method.training_loss(noisy[:8], void).values(), torch.zeros(())).backward()
        optimiser.step()
    with torch.inference_mode():
        denoised = method.eval()(noisy[8:])["denoised"]
    assert (denoised - clean[8:]).square().mean() < 0.3 * (noisy[8:] - clean[8:]).square().mean()
