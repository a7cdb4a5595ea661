"""Any network of timm as a feature pyramid."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from everymask.errors import InputError

STRIDES = (2, 4, 8, 16, 32)


class Backbone(nn.Module):
    """Features of an image at several strides.

    Convolutional networks and Swin give their stages. A plain vision transformer has one resolution; its last features
    become a pyramid by the simple feature pyramid of Li et al. 2022 (ViTDet, fig. 2): transposed convolutions and
    pooling, without a top-down path.

    Args:
        name: Of a network that timm has, such as ``resnet50``, ``convnext_tiny`` or ``vit_small_patch14_dinov2``.
        channels: Input channels.
        strides: Those wanted, among 2, 4, 8, 16, 32. Networks whose first stage has stride 4 have no stride 2.
        output_stride: 8 or 16 replace the last strides by dilation (Chen et al. 2017), so that the features keep a higher
            resolution; the strides that are given name the stages as in the undilated network.

    Attributes:
        name: As given.
        widths: Channels of each feature map.
        reductions: Input pixels per feature of each map.
        stride: Height and width of the input must be multiples of it.
        mean: Of each colour channel (0..1) in the training of the published weights.
        std: Its standard deviation.

    Raises:
        InputError: The name is unknown (the nearest are suggested), or the network cannot do what is asked for.
    """

    def __init__(self, name: str, channels: int = 3, strides: Sequence[int] = STRIDES, output_stride: int = 32) -> None:
        super().__init__()
        self.name = name
        self.body, features = _body(name, channels, output_stride)
        self._transformer = len(set(features)) == 1 and len(features) > 1
        wanted = [int(each) for each in strides]
        if self._transformer:
            width, self.patch = self.body.feature_info.channels()[-1], features[-1]
            self.stride = self.patch * 2 if 32 in wanted else self.patch
            if 2 in wanted or output_stride != 32:
                raise InputError(f"the backbone {name!r} has strides 4, 8, 16 and 32 only, and no dilation")
            self.pyramid: nn.ModuleList | None = nn.ModuleList(_scaled(width, each) for each in wanted)
            self.widths = tuple(width for _ in wanted)
            # A patch of 14 pixels gives strides 3.5, 7, 14 and 28, which the heads treat alike.
            self.reductions = tuple(each * self.patch // 16 or 1 for each in wanted)
            self._chosen = (len(features) - 1,)
        else:
            undilated = _undilated(name, features)
            lacking = [each for each in wanted if each not in undilated]
            if lacking:
                raise InputError(
                    f"the backbone {name!r} has strides {', '.join(map(str, undilated))}, not {lacking[0]}"
                )
            self.pyramid = None
            self._chosen = tuple(undilated.index(each) for each in wanted)
            self.widths = tuple(self.body.feature_info.channels()[i] for i in self._chosen)
            self.reductions = tuple(features[i] for i in self._chosen)
            self.stride = max(undilated)
        self._channels_last = str(getattr(self.body, "output_fmt", "NCHW")).endswith("NHWC")
        config = getattr(self.body, "pretrained_cfg", None) or getattr(self.body, "default_cfg", {})
        self.mean: tuple[float, ...] = tuple(config.get("mean", (0.485, 0.456, 0.406)))
        self.std: tuple[float, ...] = tuple(config.get("std", (0.229, 0.224, 0.225)))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps (B, widths[i], H / reductions[i], W / reductions[i]) of images (B, C, H, W)."""
        features: list[Tensor] = self.body(images)
        if self.pyramid is not None:
            return [scale(features[-1]) for scale in self.pyramid]
        chosen = [features[i] for i in self._chosen]
        return [each.permute(0, 3, 1, 2).contiguous() for each in chosen] if self._channels_last else chosen


def _body(name: str, channels: int, output_stride: int) -> tuple[Any, list[int]]:
    """The network without its classifier, and the input pixels per feature of its stages."""
    import timm

    plain = name.split(".")[0]
    if not timm.is_model(plain):
        near = difflib.get_close_matches(plain, timm.list_models(), n=3, cutoff=0.5)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise InputError(f"unknown backbone {name!r}{hint} (any network of timm: timm.list_models())")
    options: dict[str, Any] = {"features_only": True, "pretrained": False, "in_chans": channels}
    if output_stride != 32:
        options["output_stride"] = output_stride
    # Transformers are built for one size of images unless they are told otherwise.
    attempts = [{"dynamic_img_size": True}] if plain.startswith(("vit", "deit", "beit", "eva")) else []
    attempts += [{"strict_img_size": False}] if plain.startswith("swin") else []
    for extra in [*attempts, {}]:
        try:
            body = timm.create_model(name, **options, **extra)
        except TypeError:
            continue
        except (RuntimeError, NotImplementedError, AssertionError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"the backbone {name!r} gives no features with these options: {reason}") from error
        return body, [int(each) for each in body.feature_info.reduction()]
    raise InputError(f"the backbone {name!r} cannot do output_stride {output_stride}; use 32")


def _undilated(name: str, features: list[int]) -> list[int]:
    """The strides that the stages would have without dilation: each half of the one before."""
    first = features[0]
    if any(b not in (a, 2 * a) for a, b in zip(features, features[1:], strict=False)):
        raise InputError(f"the backbone {name!r} has strides {features}, which are no pyramid")
    return [first * 2**i for i in range(len(features))]


def _scaled(width: int, stride: int) -> nn.Module:
    """From the one resolution of a vision transformer (stride 16) to another."""
    if stride == 32:
        return nn.MaxPool2d(2)
    if stride == 16:
        return nn.Identity()
    up: list[nn.Module] = [nn.ConvTranspose2d(width, width, 2, stride=2)]
    if stride == 4:
        up += [nn.GroupNorm(1, width), nn.GELU(), nn.ConvTranspose2d(width, width, 2, stride=2)]
    return nn.Sequential(*up)


def freeze_stages(backbone: Backbone, stages: int) -> None:
    """Keeps the first parts of a backbone as they are: their weights learn nothing and their statistics stay.

    Args:
        backbone: Any.
        stages: Number of parts from the input on: 1 is the stem, 2 the stem and the first stage, and so on; 0 none.
    """
    for module in parts_of(backbone)[:stages]:
        for parameter in module.parameters():
            parameter.requires_grad_(False)
        module.eval()
        # Training mode is set on the whole network; what is frozen must not follow.
        module.train = lambda mode=True, module=module: module  # type: ignore[method-assign]


def parts_of(backbone: Backbone) -> list[nn.Module]:
    """Stem and stages of a backbone, from the input on; blocks of transformers are stages each.

    Networks differ in how they are built; their children that hold weights, with lists of blocks opened, are parts.
    """
    parts: list[nn.Module] = []
    for child in backbone.body.children():
        found = [child]
        # timm wraps some networks whole, and keeps stages in lists.
        while len(found) == 1 and not list(found[0].parameters(recurse=False)) and len(list(found[0].children())) > 1:
            if isinstance(found[0], nn.Conv2d | nn.BatchNorm2d):
                break
            found = list(found[0].children())
        parts += [each for each in found if any(True for _ in each.parameters())]
    return parts


def resized_like(features: Tensor, size: Sequence[int]) -> Tensor:
    """Features interpolated bilinearly to (height, width)."""
    return torch.nn.functional.interpolate(features, size=tuple(size), mode="bilinear", align_corners=False)
