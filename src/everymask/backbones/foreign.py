"""Names of tensors in the files of other programs, as timm calls them.

Each function knows one layout by its own tensors and gives None for any other. Official files that timm itself reads
(ConvNeXt, Swin, DeiT, DINOv2, DINOv3, CLIP ...) are translated by timm, see `everymask.backbones.weights`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping

from torch import Tensor

Tensors = Mapping[str, Tensor]
Translation = Callable[[Tensors, Collection[str]], dict[str, Tensor] | None]
"""From the tensors of a file and the names of timm's network to the tensors by such names."""


def torchvision_vgg(state: Tensors, names: Collection[str]) -> dict[str, Tensor] | None:
    """VGG of torchvision, with and without batch normalisation: timm has its fully connected layers as convolutions."""
    if not {"features.0.weight", "classifier.0.weight", "classifier.3.weight"} <= state.keys():
        return None
    renamed = _renamed(state, {r"classifier\.0\.": "pre_logits.fc1.", r"classifier\.3\.": "pre_logits.fc2."})
    renamed = _renamed(renamed, {r"classifier\.6\.": "head.fc."})
    for layer, side in (("pre_logits.fc1.weight", 7), ("pre_logits.fc2.weight", 1)):
        matrix = renamed[layer]
        if matrix.ndim == 2 and matrix.shape[1] % side**2 == 0:
            renamed[layer] = matrix.reshape(len(matrix), -1, side, side)
    return renamed


def torchvision_convnext(state: Tensors, names: Collection[str]) -> dict[str, Tensor] | None:
    """ConvNeXt of torchvision: ``features`` 1, 3, 5, 7 are stages, 2, 4, 6 what halves the resolution before them."""
    if "features.1.0.layer_scale" not in state:
        return None
    renamed = _renamed(
        state,
        {
            r"features\.0\.": "stem.",
            r"features\.([1357])\.(\d+)\.block\.0\.": r"stages.\1.blocks.\2.conv_dw.",
            r"features\.([1357])\.(\d+)\.block\.2\.": r"stages.\1.blocks.\2.norm.",
            r"features\.([1357])\.(\d+)\.block\.3\.": r"stages.\1.blocks.\2.mlp.fc1.",
            r"features\.([1357])\.(\d+)\.block\.5\.": r"stages.\1.blocks.\2.mlp.fc2.",
            r"features\.([1357])\.(\d+)\.layer_scale": r"stages.\1.blocks.\2.gamma",
            r"features\.([246])\.": r"stages.\1.downsample.",
            r"classifier\.0\.": "head.norm.",
            r"classifier\.2\.": "head.fc.",
        },
    )
    renamed = _by_stage("stages", renamed)
    return {name: tensor.flatten() if name.endswith(".gamma") else tensor for name, tensor in renamed.items()}


def torchvision_swin(state: Tensors, names: Collection[str]) -> dict[str, Tensor] | None:
    """Swin of torchvision, both versions: as its ConvNeXt, with indices stored that timm computes.

    Version 2 has no bias of the keys: torchvision stores one and sets it to zero in use.
    """
    if "features.1.0.attn.qkv.weight" not in state:
        return None
    computed = ("relative_position_index", "relative_coords_table")
    renamed = _renamed(
        {name: tensor for name, tensor in state.items() if not name.endswith(computed)},
        {
            r"features\.0\.0\.": "patch_embed.proj.",
            r"features\.0\.2\.": "patch_embed.norm.",
            r"features\.([1357])\.(\d+)\.mlp\.0\.": r"layers.\1.blocks.\2.mlp.fc1.",
            r"features\.([1357])\.(\d+)\.mlp\.3\.": r"layers.\1.blocks.\2.mlp.fc2.",
            r"features\.([1357])\.(\d+)\.": r"layers.\1.blocks.\2.",
            r"features\.([246])\.": r"layers.\1.downsample.",
            r"head\.(weight|bias)": r"head.fc.\1",
        },
    )
    renamed = _by_stage("layers", renamed)
    if "features.1.0.attn.logit_scale" in state:
        for name in [each for each in renamed if each.endswith("attn.qkv.bias")]:
            query, _, value = renamed.pop(name).chunk(3)
            stem = name.removesuffix("qkv.bias")
            renamed |= {f"{stem}q_bias": query, f"{stem}v_bias": value}
    return renamed


def torchvision_vit(state: Tensors, names: Collection[str]) -> dict[str, Tensor] | None:
    """Vision transformers of torchvision."""
    if "conv_proj.weight" not in state:
        return None
    block = r"encoder\.layers\.encoder_layer_(\d+)\."
    return _renamed(
        state,
        {
            r"class_token": "cls_token",
            r"conv_proj\.": "patch_embed.proj.",
            r"encoder\.pos_embedding": "pos_embed",
            block + r"ln_([12])\.": r"blocks.\1.norm\2.",
            block + r"self_attention\.in_proj_": r"blocks.\1.attn.qkv.",
            block + r"self_attention\.out_proj\.": r"blocks.\1.attn.proj.",
            # Its first release called the layers linear_1 and linear_2.
            block + r"mlp\.(?:0|linear_1)\.": r"blocks.\1.mlp.fc1.",
            block + r"mlp\.(?:3|linear_2)\.": r"blocks.\1.mlp.fc2.",
            r"encoder\.ln\.": "norm.",
            r"heads\.head\.": "head.",
        },
    )


def efficientnet_pytorch(state: Tensors, names: Collection[str]) -> dict[str, Tensor] | None:
    """The packages ``efficientnet-pytorch`` and ``efficientnet-lite-pytorch``, for timm's ``tf_efficientnet_*``.

    Their blocks are numbered throughout, and their convolutions are called by what they do.
    """
    if "_conv_stem.weight" not in state:
        return None
    plain = {
        r"_conv_stem\.": "conv_stem.",
        r"_bn0\.": "bn1.",
        r"_conv_head\.": "conv_head.",
        r"_bn1\.": "bn2.",
        r"_fc\.": "classifier.",
    }
    expanding = {
        r"_expand_conv\.": "conv_pw.",
        r"_bn0\.": "bn1.",
        r"_depthwise_conv\.": "conv_dw.",
        r"_bn1\.": "bn2.",
        r"_project_conv\.": "conv_pwl.",
        r"_bn2\.": "bn3.",
        r"_se_reduce\.": "se.conv_reduce.",
        r"_se_expand\.": "se.conv_expand.",
    }
    # A block without expansion begins with its depthwise convolution, and its layers are counted from there.
    plain_block = expanding | {r"_bn1\.": "bn1.", r"_project_conv\.": "conv_pw.", r"_bn2\.": "bn2."}
    found = (re.match(r"blocks\.(\d+)\.(\d+)\.", name) for name in names)
    places = sorted({(int(each[1]), int(each[2])) for each in found if each})
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        block = re.fullmatch(r"_blocks\.(\d+)\.(.+)", name)
        if block is None:
            renamed |= _renamed({name: tensor}, plain)
        elif int(block[1]) < len(places):
            stage, place = places[int(block[1])]
            layers = expanding if f"_blocks.{block[1]}._expand_conv.weight" in state else plain_block
            (layer,) = _renamed({block[2]: tensor}, layers)
            renamed[f"blocks.{stage}.{place}.{layer}"] = tensor
        else:
            renamed[name] = tensor  # more blocks than the network has: reported as unexpected
    return renamed


TRANSLATIONS: tuple[Translation, ...] = (
    torchvision_vgg,
    torchvision_convnext,
    torchvision_swin,
    torchvision_vit,
    efficientnet_pytorch,
)


def _renamed(state: Tensors, rules: Mapping[str, str]) -> dict[str, Tensor]:
    """Names changed by the first rule whose pattern matches their beginning; others stay."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for pattern, replacement in rules.items():
            changed, count = re.subn(f"^{pattern}", replacement, name)
            if count:
                name = changed
                break
        renamed[name] = tensor
    return renamed


def _by_stage(container: str, state: Tensors) -> dict[str, Tensor]:
    """Places in torchvision's ``features`` after the stem as numbers of stages: 1, 2, 3 ... 7 become 0, 1, 1 ... 3."""
    pattern = re.compile(rf"^{container}\.(\d+)\.")
    return {
        pattern.sub(lambda found: f"{container}.{int(found[1]) // 2}.", name): tensor for name, tensor in state.items()
    }
