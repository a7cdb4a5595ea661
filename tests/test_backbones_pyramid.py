"""Feature pyramids: the features are those of timm and of torchvision, at the strides that are promised."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import timm
import torch
from torch import Tensor, nn

from everymask.backbones.names import ALIASES, timm_name
from everymask.backbones.pyramid import Backbone
from everymask.errors import InputError


def features_of(backbone: nn.Module, images: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return backbone.eval()(images)


@pytest.mark.parametrize(
    ("name", "size", "options", "dilation"),
    [
        ("resnet18", (64, 96), {"out_indices": (0, 1, 2, 3, 4)}, 32),
        ("resnet18", (97, 65), {"out_indices": (1, 2, 3, 4)}, 8),
        ("resnet26d", (64, 64), {"out_indices": (2, 4)}, 16),
        ("convnext_atto", (64, 96), {}, 32),
        ("convnext_atto", (64, 64), {}, 16),
        ("tf_efficientnet_lite0", (64, 97), {}, 32),
        ("mobilenetv3_small_050", (64, 64), {}, 32),
        ("regnetx_002", (64, 64), {}, 16),
        ("swin_tiny_patch4_window7_224", (224, 224), {}, 32),
    ],
)
def test_features_equal_those_of_timm(name: str, size: tuple[int, int], options: dict, dilation: int) -> None:
    torch.manual_seed(0)
    dilated = {} if dilation == 32 else {"output_stride": dilation}
    reference = timm.create_model(name, features_only=True, in_chans=2, **options, **dilated)
    undilated = timm.create_model(name, features_only=True, **options).feature_info.reduction()
    backbone = Backbone(name, 2, undilated, dilation)
    # timm renames the tensors of some networks for its own pyramid, but keeps their order.
    own = backbone.body.state_dict()
    theirs = list(reference.state_dict().values())
    assert [each.shape for each in own.values()] == [each.shape for each in theirs]
    for value in theirs:
        if value.is_floating_point():
            value.add_(0.1 * torch.randn_like(value).clamp(-1, 1))
    backbone.body.load_state_dict(dict(zip(own, theirs, strict=True)))
    images = torch.rand(2, 2, *size)
    found, expected = features_of(backbone, images), features_of(reference, images)
    expected = [each.permute(0, 3, 1, 2) if "swin" in name else each for each in expected]
    assert len(found) == len(expected)
    for ours, theirs_map in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs_map, rtol=1e-5, atol=1e-5)
    assert backbone.widths == tuple(reference.feature_info.channels())
    assert backbone.reductions == tuple(reference.feature_info.reduction())


@pytest.mark.parametrize(
    ("name", "strides", "stride", "reductions"),
    [
        ("resnet18", (2, 4, 8, 16, 32), 32, (2, 4, 8, 16, 32)),
        ("resnet18", (4, 8), 8, (4, 8)),
        ("convnext_atto", (4, 8, 16, 32), 32, (4, 8, 16, 32)),
        ("vit_tiny_patch16_224", (2, 4, 8, 16, 32), 32, (2, 4, 8, 16, 32)),
        ("vit_tiny_patch16_224", (8, 16), 16, (8, 16)),
        ("dinov2_small", (4, 8, 16, 32), 28, (3.5, 7, 14, 28)),
        ("dinov2_small", (8, 16), 14, (7, 14)),
        ("dino_small_patch8", (4, 8, 16, 32), 32, (4, 8, 16, 32)),
        ("dinov3_small", (4, 16), 16, (4, 16)),
        ("dinov2_small_registers", (16,), 14, (14,)),
    ],
)
def test_maps_have_the_promised_sizes(
    name: str, strides: Sequence[int], stride: int, reductions: tuple[float, ...]
) -> None:
    backbone = Backbone(name, 3, strides)
    assert backbone.stride == stride
    assert backbone.reductions == reductions
    height, width = 4 * stride, 6 * stride
    maps = features_of(backbone, torch.rand(1, 3, height, width))
    expected = [
        (1, channels, height / each, width / each) for channels, each in zip(backbone.widths, reductions, strict=True)
    ]
    assert [tuple(each.shape) for each in maps] == expected


def test_channels_of_the_encoder_of_sam() -> None:
    with torch.device("meta"):
        backbone = Backbone("samvit_base_patch16", 3, (8, 16))
        shapes = [tuple(each.shape) for each in features_of(backbone, torch.rand(1, 3, 1024, 1024))]
    assert backbone.widths == (128, 256)
    assert shapes == [(1, 128, 128, 128), (1, 256, 64, 64)]


def test_stages_that_no_stride_needs_are_left_out() -> None:
    def weights(strides: Sequence[int]) -> int:
        return sum(each.numel() for each in Backbone("resnet18", 3, strides).parameters())

    whole = timm.create_model("resnet18")
    last = sum(each.numel() for each in whole.layer4.parameters()) + sum(each.numel() for each in whole.fc.parameters())
    assert weights((4, 16)) == sum(each.numel() for each in whole.parameters()) - last


def test_position_embeddings_follow_the_size_of_the_image() -> None:
    """The reference is the same network built for that size, its embeddings resampled by timm's reader of files."""
    from timm.models.vision_transformer import checkpoint_filter_fn

    torch.manual_seed(0)
    backbone = Backbone("vit_tiny_patch16_224", 3, (16,))
    state = backbone.body.state_dict()
    state["pos_embed"].normal_()
    reference = timm.create_model("vit_tiny_patch16_224", img_size=(160, 96), num_classes=0)
    reference.load_state_dict(checkpoint_filter_fn(state, reference))
    images = torch.rand(1, 3, 160, 96)
    with torch.no_grad():
        tokens = reference.eval().forward_features(images)[:, 1:]
    expected = tokens.transpose(1, 2).unflatten(2, (10, 6))
    torch.testing.assert_close(features_of(backbone, images)[0], expected, rtol=1e-5, atol=1e-5)


def test_pyramid_of_a_transformer_by_its_definition() -> None:
    """ViTDet: stride 32 is the maximum of 2 x 2 tokens; stride 8 one transposed convolution; stride 4 two of them."""
    torch.manual_seed(0)
    fine, finer, plain, coarse = features_of(
        backbone := Backbone("vit_tiny_patch16_224", 3, (4, 8, 16, 32)), torch.rand(1, 3, 64, 64)
    )
    torch.testing.assert_close(coarse, plain.unflatten(2, (2, 2)).unflatten(4, (2, 2)).amax((3, 5)))
    first, norm, _, second = backbone.pyramid[0]

    def doubled(features: Tensor, layer: nn.ConvTranspose2d) -> Tensor:
        products = torch.einsum("bchw,cdyx->bdhywx", features, layer.weight)
        return products.flatten(4, 5).flatten(2, 3) + layer.bias[:, None, None]

    torch.testing.assert_close(finer, doubled(plain, backbone.pyramid[1][0]), rtol=1e-4, atol=1e-5)
    between = doubled(plain, first)
    mean, variance = between.mean(1, keepdim=True), between.var(1, correction=0, keepdim=True)
    scaled = (between - mean) / (variance + norm.eps).sqrt()
    activated = scaled * 0.5 * (1 + torch.erf(scaled / 2**0.5))
    torch.testing.assert_close(fine, doubled(activated, second), rtol=1e-4, atol=1e-5)


def test_means_are_those_of_the_published_weights() -> None:
    assert Backbone("resnet18", 3, (4,)).mean == (0.485, 0.456, 0.406)
    assert Backbone("vit_tiny_patch16_224", 3, (16,)).mean == (0.5, 0.5, 0.5)  # of the AugReg weights


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_features_can_be_exported_for_any_size(name: str) -> None:
    backbone = Backbone(name, 3, (8, 16)).eval()
    batch, height, width = (torch.export.Dim(each, min=1) for each in ("batch", "rows", "columns"))
    shapes = {"images": {0: batch, 2: 16 * height, 3: 16 * width}}
    program = torch.export.export(backbone, (torch.rand(2, 3, 64, 32),), dynamic_shapes=shapes)
    images = torch.rand(1, 3, 48, 96)
    with torch.no_grad():
        for ours, exported in zip(features_of(backbone, images), program.module()(images), strict=True):
            torch.testing.assert_close(exported, ours, rtol=1e-5, atol=1e-5)


def test_every_alias_exists() -> None:
    for alias, name in ALIASES.items():
        assert timm_name(alias) == name
        assert timm.is_model(name)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("resnet5",), ["'resnet5'", "'resnet50'"]),
        (("dinov2_smal",), ["'dinov2_small'"]),
        (("resnet18.nonsense",), ["'nonsense'", "a1_in1k"]),
        (("convnext_atto",), ["4, 8, 16, 32, not 2"]),
        (("vgg11", 3, (4, 8), 8), ["no dilation", "use 32"]),
        (("resnet18", 3, (4, 8), 4), ["8, 16 or 32", "4"]),
        (("resnet18", 0), ["channels", "0"]),
        (("resnet18", 3, (8, 4)), ["(8, 4)", "(4, 8, 16, 32)"]),
        (("resnet18", 3, ()), ["strides"]),
    ],
)
def test_what_cannot_be_made_is_told(arguments: tuple, words: list[str]) -> None:
    with pytest.raises(InputError) as told:
        Backbone(*arguments)
    message = str(told.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("dinov2_small", (98, 100), ["multiples of 14", "98 x 100"]),
        ("coatnet_nano_rw_224", (256, 224), ["224 x 224 pixels only", "256 x 224"]),
    ],
)
def test_sizes_that_a_network_cannot_take_are_told(name: str, size: tuple[int, int], words: list[str]) -> None:
    with pytest.raises(InputError) as told:
        Backbone(name, 3, (16,))(torch.rand(1, 3, *size))
    for word in words:
        assert word in str(told.value)
