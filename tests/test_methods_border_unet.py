"""The U-Net with a border class: from labels to classes and back, its loss, learning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor
from touching_toys import overfit, touching

from everymask.errors import InputError
from everymask.methods.bottom_up.border_unet import BorderUNet
from everymask.types import LabelMap, Segments

segmentation = pytest.importorskip("skimage.segmentation")
matching = pytest.importorskip("stardist.matching").matching


def small(**options: object) -> BorderUNet:
    return BorderUNet(**({"channels": 1, "base": 4, "depth": 1} | options))  # type: ignore[arg-type]


def perfect(method: BorderUNet, segments: Segments) -> dict[str, Tensor]:
    """What a network says that has learnt the targets."""
    targets = method.targets(segments)
    outputs = {"parts": 9.0 * torch.nn.functional.one_hot(targets["parts"].clamp(min=0), 3).permute(2, 0, 1)[None]}
    if "category" in targets:
        classes = targets["category"].clamp(min=0)
        outputs["category"] = 9.0 * torch.nn.functional.one_hot(classes, method.classes + 1).permute(2, 0, 1)[None]
    return outputs


@pytest.mark.parametrize("width", [1.0, 1.5, 2.0])
def test_touching_objects_come_back_from_perfect_outputs(width: float) -> None:
    ids = touching((120, 101), 1)
    method = small(border_width=width)
    (found,) = method.decode(perfect(method, Segments.from_label_map(ids)), [ids.shape])
    assert len(found) == ids.max()
    assert matching(ids, found.label_map(), thresh=0.8).accuracy == 1
    assert found.score is not None
    assert (found.score > 0.99).all()


def test_interiors_grow_to_the_nearest_border() -> None:
    # Two squares side by side: the flood meets in the middle of what neither owns.
    ids = np.zeros((20, 30), np.int32)
    ids[5:15, 4:14], ids[5:15, 14:26] = 1, 2
    method = small(border_width=2.0)
    (found,) = method.decode(perfect(method, Segments.from_label_map(ids)), [ids.shape])
    np.testing.assert_array_equal(found.label_map(), ids)


def test_classes_are_those_of_the_distance_to_the_outside() -> None:
    ids = touching((60, 70), 2)
    ids[:5] = -1
    parts = small(border_width=2.0).targets(Segments(ids.shape, [0] * ids.max(), LabelMap(ids)))["parts"].numpy()
    for number in range(1, ids.max() + 1):  # the void may leave parts; each counts for itself
        labelled, count = ndimage.label(ids == number, np.ones((3, 3)))
        for part in range(1, count + 1):
            own = labelled == part
            edge = ndimage.distance_transform_edt(own)
            border = own & (edge <= 2) & ((edge < edge.max()) | (edge.max() > 2))
            np.testing.assert_array_equal(parts[own] == 2, border[own])
            np.testing.assert_array_equal(parts[own] == 1, ~border[own])
    np.testing.assert_array_equal(parts == 0, ids == 0)
    np.testing.assert_array_equal(parts == -1, ids == -1)


def test_loss_is_the_weighted_cross_entropy() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(2, 3, 5, 6)) * 2
    parts = random.integers(-1, 3, (2, 5, 6))
    (term,) = small(border_weight=4.0).loss({"parts": torch.tensor(logits)}, {"parts": torch.tensor(parts)}).values()
    logarithms = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    each = -np.take_along_axis(logarithms, np.maximum(parts, 0)[:, None], 1)[:, 0] * np.where(parts == 2, 4.0, 1.0)
    assert float(term) == pytest.approx(each[parts >= 0].sum() / (parts >= 0).sum(), rel=1e-5)


def test_categories_are_kept() -> None:
    ids = touching((80, 80), 3)
    category = np.arange(ids.max()) % 3
    method = small(classes=3)
    (found,) = method.decode(perfect(method, Segments.from_label_map(ids, category)), [ids.shape])
    table = np.concatenate([[-1], category])
    assert len(found) == ids.max()
    for number in range(len(found)):
        inside = ids[found.label_map() == number + 1]
        assert table[np.bincount(inside).argmax()] == found.category[number]


def test_thresholds_do_what_they_say() -> None:
    method = small()
    outputs = perfect(method, Segments.from_label_map(touching((64, 64), 4)))
    assert set(method.tunable) == set(method.thresholds)
    for name in method.thresholds:
        method.thresholds = {**small().thresholds, name: 1.0}
        assert len(method.decode(outputs, [(64, 64)])[0]) == 0
    method.thresholds = small().thresholds
    assert len(method.decode(outputs, [(64, 64)])[0]) > 5


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (np.zeros((32, 32), np.int32), 0),
        (np.ones((32, 32), np.int32), 1),
        (np.full((32, 32), -1, np.int32), 0),
        (np.pad(np.ones((6, 6), np.int32), 13), 1),
        (np.pad(np.array([[1] * 6 + [0] * 3 + [1] * 6] * 6, np.int32), ((13, 13), (8, 9))), 2),
    ],
    ids=["empty", "an object that fills the image", "void", "one object", "fragmented"],
)
def test_degenerate_images_train_and_decode(ids: np.ndarray, expected: int) -> None:
    method = small()
    segments = Segments(ids.shape, [0] * max(int(ids.max()), 0), LabelMap(ids))
    targets = {key: value[None] for key, value in method.targets(segments).items()}
    terms = method.training_loss(torch.rand(1, 1, 32, 32), targets)
    assert all(torch.isfinite(term) for term in terms.values())
    (found,) = method.decode(perfect(method, segments), [ids.shape])
    assert len(found) == expected


def test_it_learns_to_tell_touching_objects_apart(tmp_path: Path) -> None:
    torch.manual_seed(0)
    truth, found = overfit(small(base=8, depth=2), tmp_path)
    for ids, segments in zip(truth, found, strict=True):
        assert matching(ids, segments.label_map(), thresh=0.5).accuracy >= 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [({"border_width": 0.5}, "border_width"), ({"border_weight": 0.0}, "border_weight"), ({"fold": 8}, "fold must be")],
)
def test_wrong_options_are_told(options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BorderUNet(**options)  # type: ignore[arg-type]
