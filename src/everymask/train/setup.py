"""What a run needs before its first step: checks, optimiser, objective, and the identity that resumed parts share."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from everymask.data.augment import Augmentation
from everymask.errors import InputError, is_out_of_memory, unknown_name
from everymask.methods import method_name

if TYPE_CHECKING:
    from everymask.data.preprocessing import Preprocessing
    from everymask.methods.base import Method
    from everymask.methods.recipe import Recipe
    from everymask.types import Categories, Dataset

# What may change between the parts of a resumed run: it alters how long or how fast it runs, but no step of it.
FREE_OPTIONS = frozenset({"epochs", "workers", "patience", "tune"})


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
    the learning rate: `Recipe.backbone_rate` for what belongs to ``method.backbone``.

    Raises:
        InputError: Unknown optimiser.
    """
    backbone = getattr(method, "backbone", None)
    given = {id(each) for each in backbone.parameters()} if isinstance(backbone, nn.Module) else set()
    trained = [each for each in method.parameters() if each.requires_grad]
    groups = [
        {
            "params": [each for each in trained if (each.ndim > 1) == matrix and (id(each) in given) == old],
            "weight_decay": recipe.weight_decay if matrix else 0.0,
            "share": recipe.backbone_rate if old else 1.0,
        }
        for old in (False, True)
        for matrix in (True, False)
    ]
    groups = [group for group in groups if group["params"]]
    match recipe.optimiser:
        case "adamw":
            return AdamW(groups, lr=recipe.learning_rate)
        case "adam":
            return Adam(groups, lr=recipe.learning_rate)
        case "sgd":
            return SGD(groups, lr=recipe.learning_rate, momentum=0.9, nesterov=True)
    raise unknown_name("optimiser", recipe.optimiser, ["adamw", "adam", "sgd"])


def augmentation_of(recipe: Recipe) -> Augmentation:
    """The random changes that the recipe asks for."""
    return Augmentation(
        flip=recipe.flip,
        rotate=recipe.rotate,
        scale=recipe.scale,
        brightness=recipe.brightness,
        contrast=recipe.contrast,
        gamma=recipe.gamma,
        noise=recipe.noise,
        blur=recipe.blur,
        invert=recipe.invert,
        colour=recipe.colour,
    )


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
    if recipe.crop % method.stride:
        lower = max(method.stride, recipe.crop // method.stride * method.stride)
        raise InputError(f"crop must be a multiple of {method.stride} for this method, got {recipe.crop}; try {lower}")
    if method.channels != preprocessing.channels:
        raise InputError(
            f"the method takes {method.channels} channels, but the preprocessing makes {preprocessing.channels}"
        )
    if method.classes != len(categories):
        raise InputError(f"the method has {method.classes} classes, but there are {len(categories)} categories")
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
            f"cannot resume {out}: {'; '.join(changed)}; give the old values (only epochs, patience, workers and tune "
            "may change) or start anew in another --out"
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
            f"accumulate, now {recipe.accumulate}, by the same factor to learn the same) or lower crop"
        ) from error
