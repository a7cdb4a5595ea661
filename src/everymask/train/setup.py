"""What a run needs before its first step: checks, optimiser, objective, and the identity that resumed parts share."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from everymask.backbones.pyramid import Backbone
from everymask.backbones.stages import freeze_stages
from everymask.backbones.stages import layer_decay as decayed
from everymask.errors import InputError, is_out_of_memory, unknown_name
from everymask.methods import method_name

if TYPE_CHECKING:
    from everymask.data.preprocessing import Preprocessing
    from everymask.methods.base import Method
    from everymask.methods.recipe import Recipe
    from everymask.types import Categories, Dataset

# What may change between the parts of a resumed run: it alters how long or how fast it runs, but no step of it.
FREE_OPTIONS = frozenset({"epochs", "workers", "patience", "tune", "checkpointing"})


class Objective(nn.Module):
    """`Method.training_loss` as a module's forward pass, which is what distributed training wraps.

    Args:
        method: The method in training.
        bfloat16: Whether convolutions and matrix products run in bfloat16.
    """

    def __init__(self, method: Method, bfloat16: bool) -> None:
        super().__init__()
        self.method, self.mixed = method, bfloat16

    def forward(self, images: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The named terms of the loss."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.mixed):
            return self.method.training_loss(images, targets)


def make_optimiser(method: Method, recipe: Recipe) -> Optimizer:
    """The recipe's optimiser; biases and normalisation (every parameter with one axis or none) do not decay.

    ``adamw`` decays the weights apart from the gradient (Loshchilov and Hutter 2019); ``adam`` and ``sgd`` (Nesterov
    momentum 0.9) add the decay to the gradient, as their papers' programs do. Each group has ``share``, its factor of
    the learning rate: 1, and for ``method.backbone`` `Recipe.backbone_rate` times the `layer_decay` of its depth.

    Raises:
        InputError: Unknown optimiser.
    """
    backbone = getattr(method, "backbone", None)
    layers: list[tuple[list[nn.Parameter], float]] = []
    if isinstance(backbone, Backbone) and recipe.layer_decay < 1:
        layers = [(learning, recipe.backbone_rate * share) for learning, share in decayed(backbone, recipe.layer_decay)]
    elif isinstance(backbone, nn.Module):
        layers = [([each for each in backbone.parameters() if each.requires_grad], recipe.backbone_rate)]
    given = {id(each) for learning, _ in layers for each in learning}
    rest = [each for each in method.parameters() if each.requires_grad and id(each) not in given]
    groups = [
        {
            "params": [each for each in learning if (each.ndim > 1) == matrix],
            "weight_decay": recipe.weight_decay if matrix else 0.0,
            "share": share,
        }
        for learning, share in [(rest, 1.0), *layers]
        for matrix in (True, False)
    ]
    groups = [group for group in groups if group["params"]]
    # One pass over memory a step instead of ten: a third of the time on CPUs.
    fused = all(each.device.type in ("cpu", "cuda", "xpu") for each in method.parameters())
    match recipe.optimiser:
        case "adamw":
            return AdamW(groups, lr=recipe.learning_rate, fused=fused)
        case "adam":
            return Adam(groups, lr=recipe.learning_rate, fused=fused)
        case "sgd":
            return SGD(groups, lr=recipe.learning_rate, momentum=0.9, nesterov=True, fused=fused)
    raise unknown_name("optimiser", recipe.optimiser, ["adamw", "adam", "sgd"])


def freeze(method: Method, parts: int) -> None:
    """Keeps the first parts of the method's backbone as they are, or, with 0, lets all learn.

    Raises:
        InputError: There are not so many.
    """
    backbone = getattr(method, "backbone", None)
    if isinstance(backbone, Backbone) and (parts or backbone.frozen):
        freeze_stages(backbone, parts)


def share_statistics(method: Method) -> None:
    """Makes batch normalisation take its statistics over the batches of all processes (`torch.nn.SyncBatchNorm`).

    Weights and their names stay. torch has this for accelerators only; processes on CPUs use their own batches.
    """
    from timm.layers import convert_sync_batchnorm  # torch's own would drop the activations that timm joins to some

    convert_sync_batchnorm(method)


def check_fit(
    method: Method,
    train_data: Dataset,
    val_data: Dataset | None,
    recipe: Recipe,
    preprocessing: Preprocessing,
    categories: Categories,
) -> None:
    """Checks that method, data and recipe belong together.

    Raises:
        InputError: They do not; the message says what to change.
    """
    if not len(train_data):
        raise InputError(f"{train_data.root}: no images to train on")
    if val_data is not None and not len(val_data):
        raise InputError(f"{val_data.root}: no images to validate on; leave the validation data out to train without")
    strides = {"crop": (recipe.crop, method.stride)}
    if method.dimensions == 3:
        strides["planes"] = (recipe.sides(3)[0], method.depth_stride)
    elif recipe.planes:
        raise InputError(f"planes {recipe.planes} is for volumes, but this method is for images; leave planes out")
    for name, (length, stride) in strides.items():
        if length % stride:
            lower = max(stride, length // stride * stride)
            raise InputError(f"{name} must be a multiple of {stride} for this method, got {length}; try {lower}")
    if method.channels != preprocessing.channels:
        raise InputError(
            f"the method takes {method.channels} channels, but the preprocessing makes {preprocessing.channels}"
        )
    if method.classes != len(categories):
        raise InputError(f"the method has {method.classes} classes, but there are {len(categories)} categories")
    if not isinstance(getattr(method, "backbone", None), Backbone):
        for name, plain in (("freeze", 0), ("layer_decay", 1.0)):
            if getattr(recipe, name) != plain:
                raise InputError(
                    f"{name} {getattr(recipe, name):g} is for a backbone, but this {method_name(method)} has none; "
                    f"leave {name} out, or give --backbone if the method takes one"
                )
    needed = {"mosaic": ("boxes", "masks"), "mixup": ("boxes", "masks"), "copy_paste": ("masks",)}
    for name, kinds in needed.items():
        if getattr(recipe, name) and method.learns_from not in kinds:
            raise InputError(
                f"{name} is for methods that learn from {' or '.join(kinds)}, and {method_name(method)} learns from "
                f"{method.learns_from}; leave {name} out"
            )
    if recipe.weigh_classes != "none" and "class_weights" not in method.config:
        raise InputError(
            f"{method_name(method)} has no class_weights, so its classes cannot be weighed; leave weigh_classes out"
        )
    if recipe.checkpointing and recipe.compile:
        raise InputError("a compiled network decides by itself what to compute anew; leave checkpointing out")
    if val_data is not None:
        check_same_classes(val_data, categories)
    if not method.tasks & train_data.tasks:
        raise InputError(
            f"{train_data.root}: the annotation can train {_listed(train_data.tasks)}, but {method_name(method)} "
            f"needs {_listed(method.tasks)}; `everymask methods` lists what suits your data"
        )


def check_same_classes(val_data: Dataset, categories: Categories) -> None:
    """Checks that the classes of the validation data are called as in the training data.

    The one class of data that have no more may be called otherwise; classes that the validation data lack do no harm.

    Raises:
        InputError: An id means another class.
    """
    if len(val_data.categories) == len(categories) == 1:
        return
    known = {each.id: each.name for each in categories}
    for each in val_data.categories:
        if known.get(each.id, each.name) != each.name:
            raise InputError(
                f"{val_data.root}: class {each.id} of the validation data is {each.name!r}, but that of the training "
                f"data is {known[each.id]!r}; give both the same list of classes, in the same order"
            )


def _listed(tasks: Any) -> str:
    return " or ".join(sorted(str(each) for each in tasks)) or "nothing"


def identity(
    method: Method,
    train_data: Dataset,
    val_data: Dataset | None,
    recipe: Recipe,
    preprocessing: Preprocessing,
    categories: Categories,
    processes: int,
) -> dict[str, Any]:
    """Everything that two parts of one run must have in common, as flat JSON values."""
    values: dict[str, Any] = {"method": method_name(method)}
    values |= {f"method option {name}": value for name, value in method.config.items()}
    values |= {name: value for name, value in recipe.to_json().items() if name not in FREE_OPTIONS}
    values |= {f"preprocessing {name}": value for name, value in preprocessing.to_json().items()}
    values["categories"] = categories.to_json()
    values["number of training images"] = len(train_data)
    values["number of validation images"] = 0 if val_data is None else len(val_data)
    values["number of processes"] = processes
    return json.loads(json.dumps(values))  # tuples become lists, as in the checkpoint


def check_identity(before: Mapping[str, Any], now: Mapping[str, Any], out: str) -> None:
    """Checks that a resumed run is the same run.

    Raises:
        InputError: It is not; every difference is named.
    """
    changed = [
        f"{name} was {before.get(name)!r} and is now {now.get(name)!r}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if changed:
        raise InputError(
            f"cannot resume {out}: {'; '.join(changed)}; give the old values (only epochs, patience, workers, tune "
            "and checkpointing may change) or start anew in another --out"
        )


@contextlib.contextmanager
def explained_memory(recipe: Recipe) -> Iterator[None]:
    """Turns running out of memory into advice.

    Raises:
        InputError: Instead of the out-of-memory errors of accelerators and of the CPU.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(
            f"out of memory with batch_size {recipe.batch_size} and crop {recipe.crop}; lower batch_size (and raise "
            f"accumulate, now {recipe.accumulate}, by the same factor to learn the same) or crop, or set checkpointing"
        ) from error
