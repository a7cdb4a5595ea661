"""Test-time augmentation against outputs that are known for every position and direction."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from predict_toys import PLAIN, Blobs, StarOracle, Toy, blob_field, random_images
from torch import Tensor
from torch.nn import functional

from everymask.errors import InputError
from everymask.predict.predictor import Predictor
from everymask.predict.tta import VIEWS, average_views, chosen_views


class Samples(Toy):
    """The output is the input at pixels 0, g, 2 g, ..., and its slope to the right and downwards."""

    def __init__(self, grid: int, stride: int) -> None:
        super().__init__()
        self.grid, self.stride = grid, stride

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        extended = functional.pad(images, (1, 1, 1, 1), mode="replicate")
        right = extended[..., 1:-1, 2:] - extended[..., 1:-1, :-2]
        down = extended[..., 2:, 1:-1] - extended[..., :-2, 1:-1]
        step = (..., slice(None, None, self.grid), slice(None, None, self.grid))
        return {"value": images[step], "slope": torch.cat([right, down], 1)[step]}

    def undo_dihedral(self, outputs: Mapping[str, Tensor], flip: bool, turns: int) -> dict[str, Tensor]:
        undone = super().undo_dihedral(outputs, flip, turns)
        right, down = undone["slope"].chunk(2, 1)
        right = -right if flip else right
        for _ in range(turns):  # a counter-clockwise turn took "right" up, and "down" to the right
            right, down = -down, right
        undone["slope"] = torch.cat([right, down], 1)
        return undone


@pytest.mark.parametrize(("grid", "stride"), [(1, 1), (1, 8), (2, 2), (2, 8), (4, 8)])
@pytest.mark.parametrize("views", ["mirror", "flips", "dihedral"])
def test_every_view_samples_the_same_pixels(grid: int, stride: int, views: str) -> None:
    method = Samples(grid, stride)
    images = random_images(2, (3 * stride + 8 * (8 % stride == 0), 40))
    images = images[..., : images.shape[-2] // stride * stride, :]
    plain = method(images)
    for view in VIEWS[views]:
        alone = average_views(method, method, images, (view,))
        torch.testing.assert_close(alone["value"], plain["value"], atol=0, rtol=0)
        # At the border the slope depends on what is taken to lie beyond it.
        inside = (..., slice(1, -1), slice(1, -1))
        torch.testing.assert_close(alone["slope"][inside], plain["slope"][inside], atol=1e-6, rtol=0)
    mean = average_views(method, method, images, VIEWS[views])
    torch.testing.assert_close(mean["value"], plain["value"], atol=1e-6, rtol=0)


def test_dihedral_views_are_the_eight_symmetries_of_the_square() -> None:
    square = torch.arange(9).reshape(3, 3)
    copies = {
        tuple(torch.rot90(square, t).flip(-1).flatten().tolist() if f else torch.rot90(square, t).flatten().tolist())
        for f, t in VIEWS["dihedral"]
    }
    assert len(copies) == 8
    flips = {tuple(each.flatten().tolist()) for each in (square, square.flip(0), square.flip(1), square.flip(0, 1))}
    assert {
        tuple((torch.rot90(square, t).flip(-1) if f else torch.rot90(square, t)).flatten().tolist())
        for f, t in VIEWS["flips"]
    } == flips


@pytest.mark.parametrize("grid", [1, 2, 4])
def test_star_distances_of_turned_copies_are_those_of_the_image(grid: int) -> None:
    rows, columns = np.mgrid[:96, :128]
    ids = np.zeros((96, 128), np.float32)
    for i, (y, x, a, b) in enumerate([(30, 40, 12, 20), (70, 90, 18, 9), (60, 25, 7, 15)], 1):
        ids[((rows - y) / a) ** 2 + ((columns - x) / b) ** 2 < 1] = i
    method = StarOracle(channels=1, rays=32, grid=grid, base=4, depth=1)
    images = torch.from_numpy(ids)[None, None]
    plain = method(images)
    inside = plain["probability"][0, 0].sigmoid() > 1e-5
    for view in VIEWS["dihedral"]:
        turned = average_views(method, method, images, (view,))
        torch.testing.assert_close(turned["probability"].sigmoid(), plain["probability"].sigmoid(), atol=1e-5, rtol=0)
        # Rays are walked in steps of a pixel and rounded, which is not quite the same in all directions.
        difference = (turned["distances"] - plain["distances"]).abs()[0][:, inside]
        assert difference.max() < 2.1 and difference.mean() < 0.5


def test_prediction_with_augmentation_is_tiled_like_any_other() -> None:
    class Lopsided(Blobs):
        """Sees better to its left than to its right."""

        def forward(self, images: Tensor) -> dict[str, Tensor]:
            return {name: functional.pad(output, (5, -5)) for name, output in super().forward(images).items()}

    image = blob_field((200, 330))
    arguments = (Lopsided(stride=4), PLAIN, "cpu", "float32")
    whole, _ = Predictor(*arguments, tta=True).outputs(image)
    tiled, _ = Predictor(*arguments, tile=128, overlap=48, tta="dihedral").outputs(image)
    plain, _ = Predictor(*arguments).outputs(image)
    np.testing.assert_allclose(tiled["foreground"].numpy(), whole["foreground"].numpy(), atol=1e-6)
    assert (whole["foreground"] - plain["foreground"]).abs().max() > 1e-3


def test_outputs_that_are_not_dense_are_refused() -> None:
    class Boxes(Samples):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            return {"boxes": images.new_zeros(1, 7, 4)}

    with pytest.raises(InputError, match="dense outputs"):
        Predictor(Boxes(1, 1), PLAIN, "cpu", tta=True).outputs(np.zeros((8, 8), np.uint8))


def test_unknown_augmentations_are_named() -> None:
    assert chosen_views(True) == VIEWS["dihedral"] and chosen_views(False) == VIEWS["none"]
    with pytest.raises(InputError, match="dihedral"):
        chosen_views("dihedrl")  # type: ignore[arg-type]
