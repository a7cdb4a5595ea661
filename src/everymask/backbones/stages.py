"""Parts of a backbone from the input to the output: to freeze the first ones, or to let them learn more slowly."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from torch import nn

from everymask.errors import InputError

if TYPE_CHECKING:
    from everymask.backbones.pyramid import Backbone


def parts_of(backbone: Backbone) -> list[list[nn.Module]]:
    """The modules of the stem and of each stage of a backbone, from the input on.

    A stage ends where the network's next feature map is made, the blocks of a plain transformer being stages each. What
    comes before the first stage is the stem (with the first map itself if that comes without a stage of its own, as
    in ResNet and VGG). What timm lists a module at a time belongs where it is, as it lists them in the order of use.
    """
    ends = [str(info["module"]) for info in backbone.body.feature_info]
    modules = dict(backbone.body.named_modules())
    parts: list[list[nn.Module]] = [[]]
    stage, entered = 0, False
    for name, module in modules.items():
        inside = f"{name}.".startswith(f"{ends[stage]}.")
        if entered and not inside and stage + 1 < len(ends):
            stage, entered = stage + 1, False
            parts.append([])
            inside = f"{name}.".startswith(f"{ends[stage]}.")
        if inside and not entered:
            entered = True
            if stage == 0 and any(True for _ in module.parameters()):
                parts.append([])  # what came before is the stem
        parts[-1].append(module)
    return parts


def freeze_stages(backbone: Backbone, stages: int) -> None:
    """Keeps the first parts of a backbone as they are: their weights learn nothing and their statistics stay.

    Call it before the optimiser is made. The parts after them learn again, whatever was frozen before.

    Args:
        backbone: Changed in place.
        stages: Number of parts from the input on: 1 is the stem, 2 the stem and the first stage, and so on; 0 none. The
            blocks of a plain transformer are stages each.

    Raises:
        InputError: There are not so many, or timm does not tell where the stages of the network are.
    """
    parts = parts_of(backbone)
    if stages and len(parts) == 1:
        raise InputError(f"the backbone {backbone.name!r} has no stages that timm names, so none can be frozen")
    if not 0 <= stages <= len(parts):
        raise InputError(
            f"the backbone {backbone.name!r} has a stem and {len(parts) - 1} stages, so 0 to {len(parts)} parts can be "
            f"frozen, got {stages}"
        )
    for index, part in enumerate(parts):
        for module in part:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(index >= stages)
    backbone.frozen = stages
    backbone.train(backbone.training)


def layer_depths(backbone: Backbone) -> dict[str, int]:
    """How deep each parameter of a backbone lies: 0 for the stem, then one more for each layer.

    Layers are those of timm's ``group_matcher``: blocks of transformers, ResNets, ConvNeXts and most others, of VGG the
    convolutions. Networks that name none have those of `parts_of`.

    Returns:
        For the name of each parameter its depth. A pyramid on a plain transformer lies one deeper than its last block.
    """
    from timm.models import group_parameters

    if hasattr(backbone.body, "group_matcher"):
        matcher = backbone.body.group_matcher(coarse=False)
        found = cast("dict[str, int]", group_parameters(backbone.body, matcher, reverse=True))
    else:
        depth_of = {
            parameter: depth
            for depth, part in enumerate(parts_of(backbone))
            for module in part
            for parameter in module.parameters(recurse=False)
        }
        found = {name: depth_of[parameter] for name, parameter in backbone.body.named_parameters()}
    deepest = max(found.values())
    names = (name for name, _ in backbone.named_parameters())
    return {name: found.get(name.removeprefix("body."), deepest + 1) for name in names}


def layer_decay(backbone: Backbone, decay: float) -> list[tuple[list[nn.Parameter], float]]:
    """Factors of the learning rate that fall with the distance from the output (Bao et al. 2022, BEiT, appendix).

    The last layer of the backbone has the factor `decay`, the one before it ``decay**2``, and so on; what lies on top
    of it (decoders, the pyramid on a plain transformer) has 1.

    Args:
        backbone: Any.
        decay: Between 0 (excluded) and 1; 1 is no decay. 0.65 to 0.9 are usual.

    Returns:
        Parameters that learn, and their factor, the first layer first.

    Raises:
        InputError: `decay` is out of range.
    """
    if not 0 < decay <= 1:
        raise InputError(f"layer decay must be above 0 and at most 1, got {decay}")
    depths = layer_depths(backbone)
    top = 1 + max(depth for name, depth in depths.items() if name.startswith("body."))
    groups: dict[int, list[nn.Parameter]] = {}
    for name, parameter in backbone.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(depths[name], []).append(parameter)
    return [(groups[depth], decay ** (top - depth)) for depth in sorted(groups)]
