"""Any network of timm as a feature pyramid.

timm: Wightman, PyTorch Image Models, https://github.com/huggingface/pytorch-image-models (Apache-2.0).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from everymask.backbones.names import timm_name
from everymask.backbones.stages import parts_of
from everymask.errors import InputError

STRIDES = (2, 4, 8, 16, 32)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Backbone(nn.Module):
    """Features of an image at several strides.

    Convolutional networks and Swin give their stages. A plain vision transformer has one resolution; its last features,
    after the final normalisation, become a pyramid as in the simple feature pyramid of Li et al. 2022 (ViTDet, section
    3): transposed convolutions and pooling, without a top-down path. The convolutions after them are left to decoders.
    Its position embeddings are interpolated to the size of the image. Its strides are named as if its patches had 16
    pixels (8 or 32 if that is nearer): with the 14 pixels of DINOv2, ``strides=(4, 8, 16, 32)`` are 3.5, 7, 14 and 28,
    as `reductions` says.

    Args:
        name: Of a network that timm has, such as ``resnet50``, ``convnext_tiny`` or ``vit_base_patch16_224.mae``, or
            one of `everymask.backbones.names.ALIASES`, such as ``dinov2_small`` or ``swin_t``.
        channels: Input channels.
        strides: Those wanted, finest first. Networks whose first stage has stride 4 have no stride 2. Stages deeper
            than the last stride are left out of the network.
        output_stride: 8 or 16 replace the last strides by dilation (Chen et al. 2017), so that the features keep a
            higher resolution; `strides` name the stages as in the undilated network.

    Attributes:
        name: As given.
        body: The network of timm, its parameters named as there.
        widths: Channels of each feature map.
        reductions: Input pixels per feature of each map.
        stride: Height and width of the input must be multiples of it for the maps to have exactly these sizes.
        mean: Of each colour channel (0..1) in the training of the published weights.
        std: Its standard deviation.
        frozen: How many parts, from the input on, do not learn; set by `everymask.backbones.stages.freeze_stages`.

    Raises:
        InputError: The name is unknown (the nearest are suggested), or the network cannot do what is asked for.
    """

    def __init__(self, name: str, channels: int = 3, strides: Sequence[int] = STRIDES, output_stride: int = 32) -> None:
        super().__init__()
        _check(channels, strides, output_stride)
        self.name, self.frozen = name, 0
        self.body, self._fixed = create(name, channels, output_stride)
        undilated = [int(each["reduction"]) for each in self.body.feature_info]
        if output_stride != 32:
            with torch.device("meta"):
                undilated = [int(each["reduction"]) for each in create(name, channels)[0].feature_info]
        # The deepest stage of each stride is the richest.
        deepest = {stride: index for index, stride in enumerate(undilated)}
        self.pyramid: nn.ModuleList | None = None
        self._norm = len(deepest) == 1
        if self._norm:
            (patch,) = deepest
            nominal = 2 ** round(math.log2(patch))
            # The end of SAM's encoder changes the channels, too.
            width = int(self.body.feature_info[-1].get("num_chs_norm", self.body.feature_info[-1]["num_chs"]))
            self.pyramid = nn.ModuleList(_rescaled(width, nominal / stride) for stride in strides)
            self.widths = tuple(max(1, width * min(stride, nominal) // nominal) for stride in strides)
            exact = [stride * patch / nominal for stride in strides]
            self.reductions: tuple[float, ...] = tuple(int(each) if each.is_integer() else each for each in exact)
            self.stride = max(patch, math.ceil(max(exact)))
            chosen = [len(undilated) - 1]
        else:
            lacking = [each for each in strides if each not in deepest]
            if lacking:
                raise InputError(
                    f"the backbone {name!r} has strides {', '.join(map(str, deepest))}, not {lacking[0]}; "
                    "choose another backbone or leave that stride out"
                )
            chosen = [deepest[each] for each in strides]
            self.widths = tuple(int(self.body.feature_info[each]["num_chs"]) for each in chosen)
            self.reductions = tuple(int(self.body.feature_info[each]["reduction"]) for each in chosen)
            self.stride = int(max(self.reductions))
        self._chosen = self.body.prune_intermediate_layers(chosen, prune_norm=not self._norm, prune_head=True)
        # Other networks round the sizes of their maps up or down.
        self._patch = undilated[0] if self._norm or _swin_blocks(self.body) else 1
        self.mean: tuple[float, ...] = tuple(self.body.pretrained_cfg.get("mean", IMAGENET_MEAN))
        self.std: tuple[float, ...] = tuple(self.body.pretrained_cfg.get("std", IMAGENET_STD))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps (B, widths[i], H / reductions[i], W / reductions[i]) of images (B, C, H, W).

        Raises:
            InputError: The network takes one size of images only, or whole patches, and this is not so.
        """
        height, width = images.shape[-2:]
        self._check_size(height, width)
        features: list[Tensor] = self.body.forward_intermediates(
            images, indices=self._chosen, norm=self._norm, output_fmt="NCHW", intermediates_only=True
        )
        return features if self.pyramid is None else [rescale(features[-1]) for rescale in self.pyramid]

    def train(self, mode: bool = True) -> Backbone:
        """Training or evaluation mode; frozen parts stay in evaluation, so that their running statistics are kept."""
        super().train(mode)
        if self.frozen:
            for part in parts_of(self)[: self.frozen]:
                for module in part:
                    module.training = False
        return self

    def _check_size(self, height: int, width: int) -> None:
        if self._fixed and (height, width) != self._fixed:
            expected = " x ".join(map(str, self._fixed))
            raise InputError(
                f"the backbone {self.name!r} takes images of {expected} pixels only, got {height} x {width}; "
                "crop to that size or choose another backbone"
            )
        if height % self._patch or width % self._patch:
            raise InputError(
                f"the backbone {self.name!r} needs heights and widths that are multiples of {self._patch}, got "
                f"{height} x {width}; crop or pad the images"
            )


def create(name: str, channels: int, output_stride: int = 32, **options: Any) -> tuple[Any, tuple[int, int] | None]:
    """A network of timm with random weights that takes images of any size, if it can.

    Args:
        name: As `Backbone` takes it.
        channels: Input channels.
        output_stride: 8 or 16 for dilation.
        options: Others of ``timm.create_model``, such as ``num_classes``.

    Returns:
        The network, and (height, width) if it takes images of one size only.

    Raises:
        InputError: The name is unknown, or the network cannot do it.
    """
    import timm

    options |= {"in_chans": channels}
    if output_stride != 32:
        options["output_stride"] = output_stride
    # Transformers are built for one size of images unless told otherwise, and the windows of Swin fitted to that size.
    attempts: list[dict[str, Any]] = [
        {"dynamic_img_size": True, "always_partition": True},
        {"dynamic_img_size": True},
        {},
    ]
    for extra in attempts:
        try:
            network: Any = timm.create_model(timm_name(name), **options, **extra)
        except TypeError:
            continue  # it does not know an option
        except (RuntimeError, NotImplementedError, AssertionError) as error:
            if output_stride == 32:
                raise
            raise _no_dilation(name, output_stride) from error
        for block in _swin_blocks(network):
            block.register_forward_pre_hook(_shift_where_it_matters)
        config = network.pretrained_cfg
        height, width = config["input_size"][1:]
        return network, (height, width) if config.get("fixed_input_size") and not extra else None
    raise _no_dilation(name, output_stride)


def _no_dilation(name: str, output_stride: int) -> InputError:
    return InputError(f"the backbone {name!r} has no dilation, so no output_stride {output_stride}; use 32")


def _check(channels: int, strides: Sequence[int], output_stride: int) -> None:
    if channels < 1:
        raise InputError(f"channels must be 1 or more, got {channels}")
    if not strides or list(strides) != sorted(set(strides)) or min(strides) < 1:
        raise InputError(f"strides must rise, such as (4, 8, 16, 32), got {tuple(strides)}")
    if output_stride not in (8, 16, 32):
        raise InputError(f"output_stride must be 8, 16 or 32, got {output_stride}")


def _rescaled(width: int, factor: float) -> nn.Module:
    """From the resolution of a vision transformer to `factor` times that; each doubling halves the channels."""
    from timm.layers import LayerNorm2d

    if factor <= 1:
        return nn.Identity() if factor == 1 else nn.MaxPool2d(round(1 / factor))
    layers: list[nn.Module] = []
    for doubling in range(round(math.log2(factor))):
        if doubling:
            layers += [LayerNorm2d(width), nn.GELU()]
        layers.append(nn.ConvTranspose2d(width, width // 2, 2, stride=2))
        width //= 2
    return nn.Sequential(*layers)


def _swin_blocks(network: nn.Module) -> list[nn.Module]:
    from timm.models.swin_transformer import SwinTransformerBlock
    from timm.models.swin_transformer_v2 import SwinTransformerV2Block
    from timm.models.swin_transformer_v2_cr import SwinTransformerV2CrBlock

    kinds = SwinTransformerBlock | SwinTransformerV2Block | SwinTransformerV2CrBlock
    return [each for each in network.modules() if isinstance(each, kinds)]


def _shift_where_it_matters(block: Any, inputs: tuple[Tensor]) -> None:
    """Shifts the windows of a block of Swin (Liu et al. 2021) unless one window covers its features (B, H, W, C).

    timm decides this once, for the size that the network was built for; then the last stage would never shift, however
    large the images are. This is the rule of torchvision, and the same at the size of the classifier.
    """
    block.shift_size = tuple(
        0 if side <= window else shift
        for side, window, shift in zip(inputs[0].shape[1:3], block.window_size, block.target_shift_size, strict=True)
    )
