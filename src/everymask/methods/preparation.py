"""Preprocessing that methods on backbones share."""

from __future__ import annotations

from everymask.backbones.pyramid import Backbone
from everymask.data.preprocessing import Preprocessing


def backbone_preprocessing(backbone: Backbone, channels: int) -> Preprocessing:
    """Images as the published weights of a backbone were trained on.

    Args:
        backbone: Knows mean and deviation of the colours.
        channels: Of the method. Other channels than colours are treated like the mean colour.
    """
    mean, std = backbone.mean, backbone.std
    if len(mean) != channels:
        mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
    return Preprocessing(channels=channels, normalise="scale", mean=mean, std=std)
