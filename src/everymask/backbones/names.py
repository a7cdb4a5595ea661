"""Names of backbones: those of timm, and short or torchvision's names for some of them."""

from __future__ import annotations

import difflib

from everymask.errors import InputError

ALIASES = {
    # DINO, Caron et al. 2021
    "dino_small": "vit_small_patch16_224.dino",
    "dino_small_patch8": "vit_small_patch8_224.dino",
    "dino_base": "vit_base_patch16_224.dino",
    "dino_base_patch8": "vit_base_patch8_224.dino",
    # DINOv2, Oquab et al. 2024, and with registers, Darcet et al. 2024
    "dinov2_small": "vit_small_patch14_dinov2.lvd142m",
    "dinov2_base": "vit_base_patch14_dinov2.lvd142m",
    "dinov2_large": "vit_large_patch14_dinov2.lvd142m",
    "dinov2_giant": "vit_giant_patch14_dinov2.lvd142m",
    "dinov2_small_registers": "vit_small_patch14_reg4_dinov2.lvd142m",
    "dinov2_base_registers": "vit_base_patch14_reg4_dinov2.lvd142m",
    "dinov2_large_registers": "vit_large_patch14_reg4_dinov2.lvd142m",
    "dinov2_giant_registers": "vit_giant_patch14_reg4_dinov2.lvd142m",
    # DINOv3, Simeoni et al. 2025
    "dinov3_small": "vit_small_patch16_dinov3.lvd1689m",
    "dinov3_small_plus": "vit_small_plus_patch16_dinov3.lvd1689m",
    "dinov3_base": "vit_base_patch16_dinov3.lvd1689m",
    "dinov3_large": "vit_large_patch16_dinov3.lvd1689m",
    "dinov3_convnext_tiny": "convnext_tiny.dinov3_lvd1689m",
    "dinov3_convnext_small": "convnext_small.dinov3_lvd1689m",
    "dinov3_convnext_base": "convnext_base.dinov3_lvd1689m",
    "dinov3_convnext_large": "convnext_large.dinov3_lvd1689m",
    # Masked autoencoders, He et al. 2022
    "mae_base": "vit_base_patch16_224.mae",
    "mae_large": "vit_large_patch16_224.mae",
    # torchvision's names, where timm has others; its ResNets, VGGs and ConvNeXts are called alike
    "swin_t": "swin_tiny_patch4_window7_224",
    "swin_s": "swin_small_patch4_window7_224",
    "swin_b": "swin_base_patch4_window7_224",
    "swin_v2_t": "swinv2_tiny_window8_256",
    "swin_v2_s": "swinv2_small_window8_256",
    "swin_v2_b": "swinv2_base_window8_256",
    "vit_b_16": "vit_base_patch16_224",
    "vit_b_32": "vit_base_patch32_224",
    "vit_l_16": "vit_large_patch16_224",
    "vit_l_32": "vit_large_patch32_224",
    "vit_h_14": "vit_huge_patch14_224",
}
"""Short name -> name in timm, with the tag of its published weights after the point."""


def timm_name(name: str) -> str:
    """The name by which timm makes a network.

    Args:
        name: One of timm, with or without the tag of published weights (``resnet50.a1_in1k``), or one of `ALIASES`.

    Raises:
        InputError: There is no such network (the nearest names are suggested), or no such weights for it.
    """
    import timm

    name = ALIASES.get(name, name)
    network, _, tag = name.partition(".")
    if not timm.is_model(network):
        near = difflib.get_close_matches(network, [*ALIASES, *timm.list_models()], n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(repr(each) for each in near)}?" if near else "see docs/backbones.md"
        raise InputError(f"unknown backbone {name!r}; {hint} (any network of timm: timm.list_models())")
    if tag and name not in (known := timm.list_pretrained(f"{network}.*")):
        listed = ", ".join(each.partition(".")[2] for each in known) or "none"
        raise InputError(f"the backbone {network!r} has no published weights {tag!r}; it has {listed}")
    return name
