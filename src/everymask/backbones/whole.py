"""Whole networks of timm, with their own pooling, for methods that classify images or windows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from everymask.backbones.names import timm_name
from everymask.backbones.pyramid import Backbone
from everymask.errors import InputError


class WholeBackbone(Backbone):
    """A network of timm up to the layer that gives the logits: its pooled features.

    Args:
        name: Of the network.
        channels: Input channels.
        size: Height and width of the images.

    Attributes:
        last: What timm calls the layer of the logits.
    """

    def __init__(self, name: str, channels: int, size: int) -> None:
        nn.Module.__init__(self)  # nothing of a pyramid is needed
        self.name = name
        self.body = _network(name, channels, size)
        config = self.body.pretrained_cfg
        self.last = str(config["classifier"])
        self.widths = (int(self.body.head_hidden_size),)
        self.mean, self.std = tuple(config["mean"]), tuple(config["std"])
        self.pyramid, self.reductions, self.stride, self.frozen = None, (size,), 1, 0

    def forward(self, images: Tensor) -> list[Tensor]:
        """The pooled features (B, widths[0]) of images (B, C, size, size)."""
        return [self.body(images)]


def _network(name: str, channels: int, size: int) -> Any:
    """The network without the layer of the logits.

    Raises:
        InputError: The name is unknown, or the network does not take images of this size.
    """
    import timm

    # Networks that are built for one size of images are told another. Plain transformers interpolate their position
    # embeddings as they go, so that published weights fit; the windows of others depend on the size.
    sized = ({"img_size": size}, {})
    attempts: tuple[dict[str, Any], ...] = sized if "swin" in name else ({"dynamic_img_size": True}, *sized)
    for extra in attempts:
        try:
            network = timm.create_model(timm_name(name), num_classes=0, in_chans=channels, **extra)
        except TypeError:
            continue
        try:
            with torch.no_grad():
                network.eval()(torch.zeros(1, channels, size, size))
        except (RuntimeError, AssertionError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"the backbone {name!r} takes no images of {size} x {size} pixels: {reason}") from error
        return network.train()
    raise InputError(f"the backbone {name!r} cannot be made for {channels} channels; choose another")
