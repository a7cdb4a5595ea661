"""Three views of a volume joined: written out voxel by voxel, and as in the official program."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from semantic_toys import randomise
from torch import Tensor

from everymask.errors import InputError
from everymask.methods.bottom_up.cellpose import Cellpose
from everymask.methods.foreign import load_foreign
from everymask.ops.three_views import add_view, join_views, joined_views, no_views

SIZE = (5, 7, 9)


def random_views(size: tuple[int, int, int] = SIZE, categories: int = 0, padding: int = 0) -> list[dict[str, Tensor]]:
    """Outputs of no network at all for the planes along each axis."""
    torch.manual_seed(0)
    views = []
    for axis in range(3):
        rest = [length + padding for other, length in enumerate(size) if other != axis]
        channels = {"flow": 2, "cell": 1} | ({"category": categories} if categories else {})
        views.append({name: torch.randn(size[axis], count, *rest) for name, count in channels.items()})
    return views


def test_every_voxel_has_the_mean_of_the_views_that_see_it() -> None:
    front, side, end = views = random_views(categories=3)
    found = join_views(views)
    assert {name: tuple(each.shape) for name, each in found.items()} == {
        "flow": (1, 3, *SIZE), "cell": (1, 1, *SIZE), "category": (1, 3, *SIZE),
    }  # fmt: skip
    probability = found["category"][0].softmax(0)
    for z, y, x in np.ndindex(*SIZE):
        yx, zx, zy = (front["flow"][z, :, y, x], side["flow"][y, :, z, x], end["flow"][x, :, z, y])
        expected = torch.stack([zx[0] + zy[0], yx[0] + zy[1], yx[1] + zx[1]]) / 2
        torch.testing.assert_close(found["flow"][0, :, z, y, x], expected)
        cells = front["cell"][z, 0, y, x] + side["cell"][y, 0, z, x] + end["cell"][x, 0, z, y]
        torch.testing.assert_close(found["cell"][0, 0, z, y, x], cells / 3)
        chances = [front["category"][z, :, y, x], side["category"][y, :, z, x], end["category"][x, :, z, y]]
        torch.testing.assert_close(probability[:, z, y, x], torch.stack([each.softmax(0) for each in chances]).mean(0))


def test_planes_may_come_in_parts_and_padded_and_in_half_precision() -> None:
    whole = join_views([{name: each[..., : each.shape[-2] - 3, : each.shape[-1] - 3] for name, each in view.items()}
                        for view in random_views(categories=2, padding=3)])  # fmt: skip
    total = no_views(SIZE, 2)
    for axis, view in reversed(list(enumerate(random_views(categories=2, padding=3)))):
        for first in range(SIZE[axis] - 2, -2, -2):
            part = slice(max(first, 0), first + 2)
            add_view(total, axis, {name: each[part] for name, each in view.items()}, part.start)
    for name, each in joined_views(total).items():
        torch.testing.assert_close(each, whole[name])
    rough = join_views([{name: each.bfloat16() for name, each in view.items()} for view in random_views()])
    assert rough["flow"].dtype == torch.float32
    torch.testing.assert_close(rough["flow"], join_views(random_views())["flow"], atol=0.02, rtol=0.02)


def test_joining_learns_nothing() -> None:
    views = [{name: each.requires_grad_() for name, each in view.items()} for view in random_views(categories=2)]
    assert not any(each.requires_grad for each in join_views(views).values())


def test_views_that_do_not_belong_together_are_refused() -> None:
    views = random_views()
    with pytest.raises(InputError, match="got 2, expected 3"):
        join_views(views[:2])
    with pytest.raises(InputError, match="5 planes of 7 x 9"):
        add_view(no_views(SIZE), 0, {name: each[:, :, :6] for name, each in views[0].items()})
    with pytest.raises(InputError, match="planes 1 to 6 along axis 0"):
        add_view(no_views(SIZE), 0, views[0], 1)
    with pytest.raises(InputError, match="axis: got 3"):
        add_view(no_views(SIZE), 3, views[0])
    with pytest.raises(InputError, match=r"\(Z, Y, X\)"):
        no_views((4, 5))


def test_the_official_program_joins_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    models = pytest.importorskip("cellpose.models", reason="the official program (cellpose) is not installed")
    core, networks = pytest.importorskip("cellpose.core"), pytest.importorskip("cellpose.resnet_torch")
    torch.manual_seed(0)
    official = randomise(networks.CPnet([2, 4, 8], nout=3, sz=3)).eval()
    own = Cellpose(channels=2, base=4, depth=1).eval()
    load_foreign(own, official.state_dict())
    volume = np.random.default_rng(0).normal(size=(6, 10, 14, 2)).astype(np.float32)

    def whole_planes(net: Any, planes: Any, **options: Any) -> tuple[Any, Any]:
        """`core.run_net` without tiles and padding, which change what the network sees."""
        with torch.inference_mode():
            outputs, styles = net(torch.from_numpy(planes.transpose(0, 3, 1, 2).copy()))[:2]
        return outputs.numpy().transpose(0, 2, 3, 1), styles.numpy()

    monkeypatch.setattr(core, "run_net", whole_planes)
    model = models.CellposeModel(gpu=False, pretrained_model=False)
    model.net = official
    options = {"do_3D": True, "normalize": False, "z_axis": 0, "channel_axis": 3, "compute_masks": False}
    known = inspect.signature(model.eval).parameters
    flows = model.eval(volume, **{name: each for name, each in options.items() if name in known})[1]
    with torch.inference_mode():
        views = [
            own(torch.from_numpy(np.moveaxis(np.moveaxis(volume, axis, 0), -1, 1).copy())) for axis in range(3)
        ]  # fmt: skip
        found = join_views(views)
    scale = float(np.abs(flows[1]).max())
    assert scale > 0.1
    # The official program adds where a mean is taken here.
    np.testing.assert_allclose(2 * found["flow"][0].numpy(), flows[1], atol=1e-5 * scale)
    np.testing.assert_allclose(3 * found["cell"][0, 0].numpy(), flows[2], atol=1e-5 * np.abs(flows[2]).max())
