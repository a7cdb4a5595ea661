"""Cellpose: its networks and its decoder against the official programs, its targets and losses, and that it learns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from semantic_toys import randomise
from stardist.matching import matching
from test_methods import discs
from torch import Tensor, nn
from torch.nn import functional

from everymask.errors import InputError
from everymask.layers.cellpose_unet import CellposeUNet
from everymask.layers.cellpose_vit import apply_in_windows
from everymask.layers.sam_encoder import SamEncoder, sam_windows
from everymask.methods.bottom_up.cellpose import Cellpose
from everymask.methods.bottom_up.cellpose_size import SizeModel, fit_size_model, object_diameter
from everymask.methods.foreign import load_foreign
from everymask.model import Model
from everymask.predict.predictor import Predictor
from everymask.types import Categories, Dataset, LabelMap, Sample, Segments, Task

TINY_SAM: dict[str, Any] = {"network": "sam", "encoder": (16, 4, 2), "window": 64}


def perfect(ids: NDArray[np.int32], method: Cellpose) -> dict[str, Tensor]:
    """What a network says that has learnt a label image by heart."""
    targets = method.targets(Segments.from_label_map(ids, 0))
    return {"flow": targets["flow"][None], "cell": 12 * targets["cell"][None] - 6}


# -- the networks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "base", "depth"), [(2, 32, 3), (1, 8, 2)])
def test_the_residual_network_is_the_official_one(channels: int, base: int, depth: int) -> None:
    official_code = pytest.importorskip("cellpose.resnet_torch")
    torch.manual_seed(0)
    widths = [channels, *(base * 2**level for level in range(depth + 1))]
    official = randomise(official_code.CPnet(widths, nout=3, sz=3, diam_mean=17.0))
    own = Cellpose(channels=channels, base=base, depth=depth).eval()
    load_foreign(own, official.state_dict())
    images = torch.randn(2, channels, 64, 96)
    with torch.inference_mode():
        expected, style, _ = official(images)
        outputs = own(images)
        found = torch.cat([outputs["flow"], outputs["cell"]], 1)
        assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
        assert torch.allclose(own.body(images)[1], style, atol=1e-6)
    learnt = [each for each in official.parameters() if each.requires_grad]
    assert sum(each.numel() for each in own.parameters()) == sum(each.numel() for each in learnt)
    assert float(own.diameter) == 17


def test_the_residual_network_sees_as_far_as_it_says() -> None:
    torch.manual_seed(0)
    network = CellposeUNet(1, base=2, depth=1, style=False).eval()
    side = 2 * network.radius + 24
    middle = side // 2
    images = torch.rand(1, 1, side, side, requires_grad=True)
    network(images)[0][0, :, middle, middle].sum().backward()
    assert images.grad is not None
    rows = images.grad[0, 0].abs().sum(1).nonzero()[:, 0]
    assert middle - network.radius <= int(rows.min()) and int(rows.max()) <= middle + network.radius
    assert int(rows.max() - rows.min()) > network.radius


@pytest.mark.parametrize(("image", "window"), [(160, 4), (128, 0)])
def test_the_encoder_is_that_of_segment_anything(image: int, window: int) -> None:
    official_code = pytest.importorskip("segment_anything.modeling.image_encoder")
    torch.manual_seed(0)
    global_blocks = [number for number, each in enumerate(sam_windows(4, window)) if each == 0]
    official = official_code.ImageEncoderViT(
        img_size=image, embed_dim=32, depth=4, num_heads=4, norm_layer=layer_norm, use_rel_pos=True,
        window_size=window, global_attn_indexes=global_blocks,
    ).eval()  # fmt: skip
    positions_at_random(official)
    own = SamEncoder(32, 4, 4, image, windows=sam_windows(4, window)).eval()
    own.load_state_dict(official.state_dict())
    images = torch.randn(2, 3, image, image)
    with torch.inference_mode():
        expected = official(images)
        assert float((own(images) - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def layer_norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=1e-6)


def positions_at_random(network: nn.Module) -> None:
    """Those of a new network are 0, which would hide mistakes."""
    for name, parameter in network.named_parameters():
        if "pos" in name:
            nn.init.normal_(parameter, std=0.3)


class Reference(nn.Module):
    """What Cellpose 4 (`vit_sam.Transformer`) makes of an encoder of Segment Anything, written down anew."""

    def __init__(self, encoder: Any, window: int, outputs: int) -> None:
        super().__init__()
        self.encoder = encoder
        width = encoder.patch_embed.proj.out_channels
        encoder.patch_embed.proj = nn.Conv2d(3, width, 8, stride=8)
        step = 64 // (window // 8)
        encoder.pos_embed = nn.Parameter(encoder.pos_embed[:, ::step, ::step].clone())
        for block in encoder.blocks:
            block.window_size = 0
        self.out = nn.Conv2d(256, outputs * 64, 1)
        self.W2 = nn.Parameter(torch.eye(outputs * 64).reshape(outputs * 64, outputs, 8, 8), requires_grad=False)
        self.diam_labels = nn.Parameter(torch.tensor([30.0]), requires_grad=False)
        self.diam_mean = nn.Parameter(torch.tensor([30.0]), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        return functional.conv_transpose2d(self.out(self.encoder(images)), self.W2, stride=8)


def reference(outputs: int = 3) -> Reference:
    official_code = pytest.importorskip("segment_anything.modeling.image_encoder")
    torch.manual_seed(0)
    encoder = official_code.ImageEncoderViT(
        embed_dim=16, depth=4, num_heads=2, norm_layer=layer_norm, use_rel_pos=True, window_size=14,
        global_attn_indexes=[0, 1, 2, 3],
    )  # fmt: skip
    for number, block in enumerate(encoder.blocks[:-1]):  # as a network of four blocks has it
        if sam_windows(4)[number]:
            block.attn.rel_pos_h = nn.Parameter(torch.zeros(27, 8))
            block.attn.rel_pos_w = nn.Parameter(torch.zeros(27, 8))
    made = Reference(encoder, 64, outputs).eval()
    positions_at_random(made)
    return made


@pytest.mark.parametrize("classes", [1, 2])
def test_the_sam_network_is_that_of_cellpose_sam(classes: int) -> None:
    official = reference(3 if classes == 1 else 3 + classes + 1)
    own = Cellpose(classes=classes, **TINY_SAM).eval()
    load_foreign(own, {f"module.{name}": value for name, value in official.state_dict().items()})
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected, outputs = official(images), own(images)
    # The official order: classes, down, right, cell.
    found = torch.cat([*([outputs["category"]] if classes > 1 else []), outputs["flow"], outputs["cell"]], 1)
    assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def test_the_published_cellpose_sam_fits_in_full_size() -> None:
    build = pytest.importorskip("segment_anything.build_sam")
    with torch.device("meta"):
        official = Reference(build.build_sam_vit_l(None).image_encoder, 256, 3)
        own = Cellpose(network="sam")
        state = {name: value for name, value in official.state_dict().items() if name != "W2"}
        found = own.foreign(state)
    assert {name: value.shape for name, value in found.items()} == {
        name: value.shape for name, value in own.state_dict().items()
    }


def test_weights_of_segment_anything_are_a_start() -> None:
    own = Cellpose(network="sam", encoder=(16, 4, 2), window=256)
    before = {name: value.clone() for name, value in own.state_dict().items()}
    torch.manual_seed(1)
    encoder = SamEncoder(16, 4, 2, windows=sam_windows(4))
    state = {f"image_encoder.{name}": value for name, value in encoder.state_dict().items()}
    load_foreign(own, {**state, "mask_decoder.iou_token.weight": torch.zeros(1)})
    assert torch.equal(own.body.patch_embed.proj.weight, encoder.patch_embed.proj.weight[:, :, ::2, ::2])
    assert torch.equal(own.body.pos_embed[0, 3, 5], encoder.pos_embed[0, 6, 10])
    assert torch.equal(own.body.blocks[2].mlp.lin1.weight, encoder.blocks[2].mlp.lin1.weight)
    assert torch.equal(own.readout.weight, before["readout.weight"])
    with pytest.raises(InputError, match="network='sam'"):
        load_foreign(Cellpose(base=4, depth=1), state)


def test_weights_of_other_networks_are_refused_with_the_options_that_they_need() -> None:
    official_code = pytest.importorskip("cellpose.resnet_torch")
    state = official_code.CPnet([2, 8, 16], nout=3, sz=3).state_dict()
    with pytest.raises(InputError, match="make it with channels=2, base=8, depth=1 ") as caught:
        load_foreign(Cellpose(), state)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"unexpected: readout\.2\.nonsense"):
        load_foreign(Cellpose(channels=2, base=8, depth=1), {**state, "output.2.nonsense": torch.zeros(1)})
    with pytest.raises(InputError, match=r"missing: body\.up\.0\.style\.1\.weight"):
        shorter = {name: each for name, each in state.items() if "res_up_0.conv.conv_2.full.weight" not in name}
        load_foreign(Cellpose(channels=2, base=8, depth=1), shorter)


def test_new_classes_on_published_weights() -> None:
    official_code = pytest.importorskip("cellpose.resnet_torch")
    state = official_code.CPnet([2, 8, 16], nout=3, sz=3).state_dict()
    own = Cellpose(classes=3, channels=2, base=8, depth=1)
    with pytest.raises(InputError, match="missing: category"):
        load_foreign(own, state)
    load_foreign(own, state, new_logits=True)
    assert torch.equal(own.readout[2].weight, state["output.2.weight"])


# -- windows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (100, 333), (65, 112), (7, 1)])
def test_windows_put_an_image_together_again(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    images = torch.rand(2, 3, *size)
    counts: list[int] = []

    def unchanged(windows: Tensor) -> Tensor:
        assert windows.shape[1:] == (3, 64, 64)
        counts.append(len(windows))
        return windows

    with torch.inference_mode():
        assert torch.allclose(apply_in_windows(unchanged, images, 64), images, atol=1e-6)
    # Windows begin every 48 pixels, and the last one reaches the end.
    rows, columns = (next(n for n in range(1, 99) if 48 * n + 16 >= length) for length in size)
    assert sum(counts) == 2 * rows * columns


def test_windows_fade_into_each_other() -> None:
    numbers = iter(range(9))

    def constant(windows: Tensor) -> Tensor:
        return torch.full_like(windows[:, :1], float(next(numbers)))

    images = torch.zeros(1, 1, 64, 208)  # four windows, one call
    values = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 64, 64)
    row = apply_in_windows(lambda windows: values.clone(), images, 64)[0, 0, 10]
    assert torch.equal(row[16:48], torch.zeros(32))
    assert float((row[48:64].diff()).min()) > 0 and float(row[55:57].mean()) == pytest.approx(0.5, abs=1e-6)
    assert torch.allclose(row[64:96], torch.ones(32))
    assert torch.equal(apply_in_windows(constant, images[..., :64], 64)[0, 0], torch.zeros(64, 64))


# -- targets, loss, decoding -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_flows_of_a_turned_image_are_turned_back(flip: bool, turns: int) -> None:
    ids = discs(64)[:, :50]
    method = Cellpose(base=4, depth=1)
    straight = method.targets(Segments.from_label_map(ids, 0))
    turned = np.rot90(ids, turns)
    turned = np.flip(turned, -1) if flip else turned
    outputs = {key: value[None] for key, value in method.targets(Segments.from_label_map(turned.copy(), 0)).items()}
    undone = method.undo_dihedral(outputs, flip, turns)
    assert torch.equal(undone["cell"][0], straight["cell"])
    # Where two pixels are equally near the middle, the first one along the rows is taken: the flow starts one further.
    difference = (undone["flow"][0] - straight["flow"]).norm(dim=0)[straight["cell"][0] > 0]
    assert float(difference.median()) < 0.05 and float((difference < 2.5).float().mean()) > 0.9


def test_test_time_augmentation_of_a_network_that_turns_along_changes_nothing() -> None:
    # Gradients of a blurred image are a network that commutes with turns exactly.
    from everymask.predict.tta import VIEWS, average_views

    class Gradients(Cellpose):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            padded = functional.pad(images[:, :1], (1, 1, 1, 1), mode="replicate")
            down = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
            right = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
            return {"flow": torch.cat([down, right], 1), "cell": images[:, :1]}

    torch.manual_seed(0)
    method = Gradients(base=4, depth=1)
    images = torch.rand(1, 3, 8, 12)
    averaged = average_views(method, method, images, VIEWS["dihedral"])
    for name, output in method(images).items():
        assert torch.allclose(averaged[name], output, atol=1e-6), name


def test_the_loss_is_the_official_one_and_void_counts_nothing() -> None:
    ids = discs(64)
    void = ids.copy()
    void[:, 40:] = -1
    method = Cellpose(base=4, depth=1)
    torch.manual_seed(0)
    outputs = {"flow": torch.randn(1, 2, 64, 64), "cell": torch.randn(1, 1, 64, 64)}
    whole = {key: value[None] for key, value in method.targets(Segments.from_label_map(ids, 0)).items()}
    terms = method.loss(outputs, whole)
    # train._loss_fn_seg: MSELoss(flow, 5 * unit flow) / 2 + BCEWithLogitsLoss(cell)
    assert float(terms["flow"]) == pytest.approx(float(functional.mse_loss(outputs["flow"], whole["flow"]) / 2))
    expected = functional.binary_cross_entropy_with_logits(
        outputs["cell"], (torch.from_numpy(ids) > 0).float()[None, None]
    )
    assert float(terms["cell"]) == pytest.approx(float(expected))
    part = method.targets(Segments(void.shape, [0] * 16, LabelMap(void)))
    part = {key: value[None] for key, value in part.items()}
    changed = {key: torch.where(torch.arange(64) >= 40, value + 3, value) for key, value in outputs.items()}
    first, second = method.loss(outputs, part), method.loss(changed, part)
    assert all(float(first[key]) == pytest.approx(float(second[key]), rel=1e-6) for key in first)
    crowd = method.targets(Segments(ids.shape, [0] * 16, LabelMap(ids), crowd=np.arange(16) == 3))
    assert np.array_equal(crowd["valid"][0].numpy() == 0, ids == 4)
    assert not crowd["flow"][:, torch.from_numpy(ids == 4)].any()


def test_flows_point_to_the_middle_with_length_5() -> None:
    ids = np.zeros((41, 41), np.int32)
    rows, columns = np.mgrid[:41, :41] - 20
    ids[rows**2 + columns**2 <= 15**2] = 1
    flow = Cellpose(base=4, depth=1).targets(Segments.from_label_map(ids, 0))["flow"].numpy()
    far = (ids > 0) & (rows**2 + columns**2 > 9)
    assert np.allclose(np.linalg.norm(flow, axis=0)[far], 5, atol=1e-4)
    towards = -np.stack([rows, columns]) / np.maximum(np.hypot(rows, columns), 1)
    assert float((flow * towards).sum(0)[far].min()) > 5 * 0.97


def test_perfect_outputs_decode_to_the_truth() -> None:
    ids = discs(128)
    method = Cellpose(base=4, depth=1)
    (found,) = method.decode(perfect(ids, method), [ids.shape])
    assert len(found) == ids.max()
    assert matching(ids, found.label_map(), thresh=0.9).accuracy == 1
    assert found.score is not None and found.score.min() > 0.99


def test_decoding_equals_the_official_program() -> None:
    dynamics = pytest.importorskip("cellpose.dynamics")
    ids = discs(160, radius=11)
    method = Cellpose(base=4, depth=1, max_fraction=0.4)
    random = np.random.default_rng(0)
    outputs = perfect(ids, method)
    noise = torch.from_numpy(random.normal(0, 2, (1, 3, 160, 160)).astype(np.float32))
    noise = functional.avg_pool2d(noise, 5, 1, 2, count_include_pad=False)
    flow, cell = outputs["flow"] + 2 * noise[:, :2], outputs["cell"] + 6 * noise[:, 2:]
    method.thresholds = {"foreground": 0.5, "flow_error": 0.3}
    (found,) = method.decode({"flow": flow, "cell": cell}, [ids.shape])
    expected = dynamics.compute_masks(
        flow[0].numpy(), cell[0, 0].numpy(), cellprob_threshold=0.5, flow_threshold=0.3, min_size=15
    )
    expected = expected[0] if isinstance(expected, tuple) else expected
    assert 5 < expected.max() < len(np.unique(ids))  # the thresholds did something
    assert len(found) == expected.max()
    assert matching(expected.astype(np.int32), found.label_map(), thresh=0.9).accuracy == 1


def test_categories_are_those_of_most_pixels() -> None:
    ids = discs()
    category = np.arange(ids.max()) % 3
    method = Cellpose(classes=3, base=4, depth=1)
    targets = method.targets(Segments.from_label_map(ids, category))
    outputs = perfect(ids, method)
    torch.manual_seed(0)
    logits = functional.one_hot(targets["category"][None], 4).permute(0, 3, 1, 2) + 0.8 * torch.randn(1, 4, *ids.shape)
    (found,) = method.decode({**outputs, "category": logits}, [ids.shape])
    table = np.concatenate([[-1], category])
    for number in range(len(found)):
        inside = ids[found.label_map() == number + 1]
        assert table[np.bincount(inside).argmax()] == found.category[number]


@pytest.mark.parametrize("options", [{"base": 4, "depth": 1}, {"backbone": "test_resnet"}, TINY_SAM])
def test_odd_images_and_masks(options: Mapping[str, Any]) -> None:
    torch.manual_seed(0)
    method = Cellpose(channels=5, classes=2, **options)
    side = 64
    whole, sparse = np.ones((side, side), np.int32), np.zeros((side, side), np.int32)
    sparse[0, :3], sparse[-4:, -4:], sparse[30:40, 10:20], sparse[50:60, 10:20] = 7, 900, 12, 12
    empty = Segments((side, side), [], LabelMap(np.zeros((side, side), np.int32)))
    for segments in (empty, Segments.from_label_map(whole, 0), Segments.from_label_map(sparse, 1)):
        targets = {key: value[None] for key, value in method.targets(segments).items()}
        terms = method.training_loss(torch.rand(1, 5, side, side), targets)
        assert all(torch.isfinite(each) for each in terms.values())
        sum(terms.values(), torch.zeros(())).backward()
    outputs = perfect(whole, method)
    (found,) = method.decode(outputs, [(side, side)])
    assert len(found) == 1 and found.areas()[0] > 0.95 * side**2
    broken = {key: value.clone() for key, value in outputs.items()}
    broken["flow"][..., 20:30, 20:30] = torch.nan
    broken["cell"][..., 5, 5] = torch.nan
    (found,) = method.decode(broken, [(side, side)])
    assert found.score is not None and np.isfinite(found.score).all()
    (nothing,) = method.decode({"flow": outputs["flow"], "cell": -outputs["cell"]}, [(side, side)])
    assert len(nothing) == 0 and nothing.size == (side, side)


def test_large_images_are_predicted_in_tiles_as_in_one_piece() -> None:
    torch.manual_seed(0)
    method = Cellpose(channels=1, base=4, depth=1, style=False)
    image = np.random.default_rng(0).normal(100, 20, (150, 210)).astype(np.float32)
    tiled, size = Predictor(method, method.preprocessing_of(), device="cpu", tile=112, overlap=56).outputs(image)
    whole, _ = Predictor(method, method.preprocessing_of(), device="cpu", tile=512).outputs(image)
    assert method.context <= 28 < 2 * method.context and size == (150, 210)
    for name, output in whole.items():
        assert torch.allclose(tiled[name], output, atol=1e-4), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "residul"}, "did you mean 'residual'"),
        ({"network": "sam", "backbone": "resnet18"}, "leave out"),
        ({"window": 100}, "multiple of 32"),
        ({"diameter": -1.0}, "diameter"),
        ({"max_fraction": 1.5}, "max_fraction"),
        ({"channels": 0}, "at least 1 channel"),
        ({"network": "sam", "encoder": (30, 2, 4)}, "heads divide"),
    ],
)
def test_impossible_networks_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Cellpose(**options)
    assert "\n" not in str(caught.value)


# -- sizes -------------------------------------------------------------------------------------------------------------


def test_the_size_model_is_ridge_regression_and_answers_as_the_official_one() -> None:
    random = np.random.default_rng(0)
    styles, diameters = random.normal(0, 0.3, (40, 12)), random.uniform(8, 60, 40)
    model = fit_size_model(styles, diameters, 30.0)
    # Ridge regression is least squares with a row for each weight that asks it to be 0.
    answers = np.log(diameters / 30)
    stacked = np.concatenate([styles - styles.mean(0), np.eye(12)])
    expected = np.linalg.lstsq(stacked, np.concatenate([answers - answers.mean(), np.zeros(12)]), rcond=None)[0]
    assert np.allclose(model.weights, expected) and model.offset == pytest.approx(answers.mean())
    for style in (styles[0], 40 * styles[1], -40 * styles[1]):
        # models.SizeModel._size_estimation
        official = np.exp(expected @ (style - styles.mean(0)) + np.log(30.0) + answers.mean())
        assert model.diameter(style, 30.0) == pytest.approx(max(5.0, official))


def test_the_diameter_is_the_official_one() -> None:
    ids = discs(96)
    utils = pytest.importorskip("cellpose.utils")
    assert object_diameter(Segments.from_label_map(ids, 0).areas()) == pytest.approx(utils.diameters(ids)[0])
    assert object_diameter(np.zeros(0, np.int64)) == 0


class Oracle(Cellpose):
    """Finds bright objects of whatever size."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        from everymask.ops.labels import connected_components

        ids = connected_components((images[0, 0] > 0.5).numpy().astype(np.int32))[0]
        return perfect(ids, self)


@pytest.mark.parametrize("radius", [6, 10])
def test_the_magnification_makes_objects_as_large_as_the_network_knows(radius: int) -> None:
    ids = discs(192, radius=radius)
    image = torch.from_numpy((ids > 0).astype(np.float32))[None, None].expand(1, 3, -1, -1)
    true = object_diameter(Segments.from_label_map(ids, 0).areas())
    method = Oracle(base=4, depth=1, diameter=24.0)
    assert method.estimate_magnification(image) == pytest.approx(24 / true, rel=0.05)
    # Far from the truth at first: the segmentation corrects the size model.
    method.set_size_model(SizeModel(np.full(8, 1e-9), np.zeros(8), float(np.log(1.3))))
    assert method.estimate_magnification(image) == pytest.approx(24 / true, rel=0.05)
    with pytest.raises(InputError, match="give it as a number"):
        Oracle(base=4, depth=1).estimate_magnification(image)
    # Without objects the first guess stands.
    assert method.estimate_magnification(torch.zeros(1, 3, 64, 64)) == pytest.approx(1 / 1.3, rel=0.05)


def test_the_size_model_learns_sizes_and_is_stored_with_the_weights() -> None:
    torch.manual_seed(0)
    method = Cellpose(channels=1, base=4, depth=3).eval()

    def sample(number: int, radius: int) -> tuple[Tensor, Segments]:
        ids = discs(96, radius=radius, seed=number)
        noise = np.random.default_rng(number).normal(0, 0.05, ids.shape)
        return torch.from_numpy(((ids > 0) + noise).astype(np.float32))[None], Segments.from_label_map(ids, 0)

    empty = torch.zeros(1, 96, 96), Segments((96, 96), [], LabelMap(np.zeros((96, 96), np.int32)))
    radii = [5, 6, 7, 8, 9, 10, 11]
    assert method.size_model is None
    method.fit_size([empty, *(sample(number, radius) for number, radius in enumerate(radii))])
    model = method.size_model
    assert model is not None
    truths, answers = [], []
    for number, radius in enumerate(radii, 50):
        image, segments = sample(number, radius)
        truths.append(object_diameter(segments.areas()))
        answers.append(model.diameter(method.styles(image[None])[0].numpy(), float(method.diameter)))
    assert float(method.diameter) == pytest.approx(np.exp(np.mean(np.log(truths))), rel=0.1)
    assert np.corrcoef(np.log(truths), np.log(answers))[0, 1] > 0.8
    again = Cellpose(**method.config)
    again.load_state_dict(method.state_dict())
    assert again.size_model is not None and np.array_equal(again.size_model.weights, model.weights)
    with pytest.raises(InputError, match="styles of 5 numbers"):
        again.set_size_model(SizeModel(np.ones(5), np.ones(5), 0.0))
    with pytest.raises(InputError, match="above 0"):
        fit_size_model(np.ones((2, 3)), np.array([1.0, 0.0]), 30.0)


# -- training and export -----------------------------------------------------------------------------------------------


def cells(number: int, side: int = 96) -> Sample:
    """Round cells, many of which touch their neighbours; their edges are dim."""
    random = np.random.default_rng(number)
    middles = np.mgrid[12:side:20, 12:side:20].reshape(2, -1).T + random.uniform(-3, 3, (25, 2))
    rows, columns = np.mgrid[:side, :side]
    distances = np.hypot(rows[..., None] - middles[:, 0], columns[..., None] - middles[:, 1])
    nearest = np.sort(distances, -1)
    ids = np.where(nearest[..., 0] < 11, distances.argmin(-1) + 1, 0).astype(np.int32)
    dim = np.clip((nearest[..., 1] - nearest[..., 0]) / 6, 0, 1)
    image = random.normal(100, 8, (side, side)) + 100 * (ids > 0) * (0.4 + 0.6 * dim)
    segments = Segments.from_label_map(ids, category=1)
    return Sample(f"cells{number}", lambda: image.astype(np.uint16)[..., None], lambda: segments)


def test_it_learns_touching_cells_by_heart(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = Dataset.of([cells(number) for number in range(3)], Categories(["cell"]), frozenset({Task.INSTANCE}))
    model = Model("cellpose", data.categories, channels=1, base=8, depth=2)
    model.train(
        data, data, out=tmp_path, epochs=5, steps_per_epoch=20, batch_size=4, crop=64, learning_rate=5e-3, ema=0.9,
        workers=0, scale=(1, 1), rotate=0, contrast=(0.9, 1.1), validate_every=5, tune=False, quiet=True,
    )  # fmt: skip
    figures = model.evaluate(data).figures
    assert figures["accuracy@0.5"] >= 0.9 and figures["accuracy@0.75"] >= 0.9

    # The trainer has fitted the size model: of an image twice as large it wants half.
    method = model.method
    assert isinstance(method, Cellpose) and method.size_model is not None
    large = np.kron(data[0].image, np.ones((2, 2, 1), np.uint16))
    image = torch.from_numpy(model.preprocessing(large, model.preprocessing.limits(large)))[None]
    assert method.estimate_magnification(image) == pytest.approx(0.5, rel=0.15)


@pytest.mark.parametrize(
    "options",
    [{"base": 4, "depth": 1}, {"network": "sam", "encoder": (8, 1, 1), "window": 32}],
    ids=["residual", "sam"],
)
def test_exported_networks_agree(options: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from everymask.export.onnx import export_onnx

    torch.manual_seed(0)
    method = Cellpose(classes=2, **options)
    randomise(method)
    differences = export_onnx(method, tmp_path / "network.onnx")
    assert set(differences) == {"flow", "cell", "category"} and max(differences.values()) < 1e-4
