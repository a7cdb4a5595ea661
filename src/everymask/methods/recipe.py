"""The training recipe: every number of a training run that is not part of the network."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from everymask.errors import InputError, unknown_name

_NOT_NEGATIVE = (
    "steps_per_epoch",
    "planes",
    "weight_decay",
    "warmup",
    "plateau_patience",
    "clip",
    "backbone_rate",
    "freeze",
    "rotate",
    "brightness",
    "noise",
    "blur",
    "colour",
    "patience",
    "plain_epochs",
    "seed",
)
"""Numbers that may be 0, which often switches something off, but not less."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a method is trained. A method's default recipe is changed by `with_options`, never inherited.

    Args:
        epochs: Passes over the training data.
        steps_per_epoch: Optimiser steps of an epoch; 0 means as many as make each image's visits.
        visits: How often an epoch visits an image: ``once``, or as many times as crops fit along its ``side`` or into
            its ``area``, so that large images are not learnt less than small ones.
        batch_size: Crops per optimiser step and process, before accumulation.
        accumulate: Batches whose gradients are summed before a step.
        crop: Side of the square training crop in pixels.
        planes: Planes of a crop of a volume, for methods with ``dimensions`` 3; 0 takes as many as its side has pixels.
        foreground: Share of the crops that are placed so that they hold an object, 0..1.
        balance: How the object of such a crop is drawn: ``none`` takes any of the image, ``image`` first one of the
            image's classes, ``classes`` first one of all classes, rare ones as often as frequent ones, and then an
            image that holds it.
        weigh_classes: Weights of the classes in the loss, from their pixels in the training data, for methods with the
            option `class_weights`: ``inverse`` frequency, ``median`` frequency (Eigen and Fergus 2015), ``effective``
            number (Cui et al. 2019), or ``none``.
        learning_rate: Peak learning rate.
        optimiser: Name of the optimiser.
        weight_decay: Decoupled weight decay (not applied to biases and normalisation).
        backbone_rate: Factor of the learning rate for a backbone, which usually has weights already.
        layer_decay: Further factor for each layer of a backbone, from its last one to the first, above 0 and up to 1; 1
            lets all learn at one rate, .65 to .9 are usual for transformers.
        freeze: Parts of a backbone that keep their weights and statistics, from the input on: 1 is the stem, 2 the stem
            and the first stage, and so on.
        schedule: ``cosine`` decays to 1 % of the peak, ``poly`` as (1 - share done)^0.9, ``plateau`` multiplies by
            `plateau_factor` whenever the validation loss has not improved for `plateau_patience` epochs, ``constant``
            keeps the rate.
        warmup: Epochs of linear warm-up (fractions allowed).
        plateau_factor: Factor in 0..1 of the plateau schedule.
        plateau_patience: Epochs without improvement before the plateau schedule acts.
        clip: Largest norm of the gradient; 0 switches clipping off.
        ema: Decay per step of the exponential moving average of the weights that is validated and saved; 0 switches it
            off.
        precision: ``auto`` takes bfloat16 where the device computes it fast, else float32.
        checkpointing: Compute the features inside blocks anew for the gradient instead of keeping them: a fifth to a
            half of the memory, up to half as much time again.
        compile: Translate the network with `torch.compile`; the first step then takes a minute or more.
        flip: Random symmetries: ``none``, ``mirror`` left and right (street scenes), ``flips`` also up and down,
            ``dihedral`` also quarter turns (microscopy, satellites).
        rotate: Largest random rotation in degrees (0 switches it off).
        scale: Range of the random magnification.
        brightness: Added to the normalised image, uniform in -brightness..brightness.
        contrast: Range of the factor on the normalised image.
        gamma: Range of the random exponent on the normalised image.
        noise: Largest standard deviation of Gaussian noise on the normalised image.
        blur: Largest standard deviation in pixels of a random Gaussian blur.
        invert: Probability of inverting the image.
        colour: Largest random change of single channels, as a share of the range.
        mosaic: Share of the crops made of four, for methods that learn from boxes or masks.
        mixup: Share of the crops that another one is averaged with, likewise.
        copy_paste: Share of the crops that objects of another one are laid on, for methods that learn from masks.
        plain_epochs: Last epochs without these three.
        validate_every: Epochs between validations.
        monitor: Validation figure that picks the best checkpoint: ``loss`` or ``metric`` (the method's headline).
        patience: Validations without improvement before training stops early; 0 never stops early.
        tune: Optimise the decision thresholds on the validation data at the end.
        seed: Seed of every random number.
        workers: Loader processes; -1 picks a number from the cores.
    """

    epochs: int = 100
    steps_per_epoch: int = 0
    visits: Literal["once", "side", "area"] = "once"
    batch_size: int = 8
    accumulate: int = 1
    crop: int = 256
    planes: int = 0
    foreground: float = 0.9
    balance: Literal["none", "image", "classes"] = "none"
    weigh_classes: Literal["none", "inverse", "median", "effective"] = "none"
    learning_rate: float = 1e-3
    optimiser: Literal["adamw", "adam", "sgd"] = "adamw"
    weight_decay: float = 1e-4
    backbone_rate: float = 1.0
    layer_decay: float = 1.0
    freeze: int = 0
    schedule: Literal["cosine", "poly", "plateau", "constant"] = "cosine"
    warmup: float = 1.0
    plateau_factor: float = 0.5
    plateau_patience: int = 10
    clip: float = 1.0
    ema: float = 0.999
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    checkpointing: bool = False
    compile: bool = False
    flip: Literal["none", "mirror", "flips", "dihedral"] = "dihedral"
    rotate: float = 0.0
    scale: tuple[float, float] = (0.8, 1.25)
    brightness: float = 0.2
    contrast: tuple[float, float] = (0.6, 1.6)
    gamma: tuple[float, float] = (1.0, 1.0)
    noise: float = 0.02
    blur: float = 0.0
    invert: float = 0.0
    colour: float = 0.0
    mosaic: float = 0.0
    mixup: float = 0.0
    copy_paste: float = 0.0
    plain_epochs: int = 0
    validate_every: int = 1
    monitor: Literal["loss", "metric"] = "metric"
    patience: int = 0
    tune: bool = True
    seed: int = 0
    workers: int = -1

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(Recipe).items():
            if get_origin(hint) is Literal and getattr(self, name) not in get_args(hint):
                raise unknown_name(name, str(getattr(self, name)), get_args(hint))
        for name in ("epochs", "batch_size", "accumulate", "crop", "validate_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        at_least = dict.fromkeys(_NOT_NEGATIVE, 0) | {"workers": -1}
        for name, lowest in at_least.items():
            if not getattr(self, name) >= lowest:
                raise InputError(f"{name} must be at least {lowest}, got {getattr(self, name)}")
        if not 0 < self.plateau_factor < 1:
            raise InputError(f"plateau_factor must be between 0 and 1, got {self.plateau_factor}")
        if not self.learning_rate > 0:
            raise InputError(f"learning_rate must be above 0, got {self.learning_rate}")
        if not 0 < self.layer_decay <= 1:
            raise InputError(f"layer_decay must be above 0 and at most 1, got {self.layer_decay}")
        if self.balance != "none" and not self.foreground:
            raise InputError(f"balance {self.balance} is for crops that hold an object; set foreground above 0")
        for name in ("foreground", "invert", "ema", "mosaic", "mixup", "copy_paste"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} must be in 0..1, got {getattr(self, name)}")
        for name in ("scale", "contrast", "gamma"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise InputError(f"{name} must be two numbers with 0 < low <= high, got {low} {high}")

    def with_options(self, **options: Any) -> Recipe:
        """The recipe with some numbers changed.

        Raises:
            InputError: An option does not exist (the nearest are named) or is out of range.
        """
        known = {each.name for each in fields(self)}
        for name in options:
            if name not in known:
                raise unknown_name("recipe option", name, known)
        return replace(self, **options)

    @property
    def mixed_epochs(self) -> int:
        """Epochs before the last, plain ones."""
        return max(0, self.epochs - self.plain_epochs)

    def planes_for(self, dimensions: int) -> int | None:
        """Planes of a crop of a volume (3 dimensions); None for images (2)."""
        return (self.planes or self.crop) if dimensions == 3 else None

    def sides(self, dimensions: int) -> tuple[int, ...]:
        """Sides of a crop of an image (2 dimensions): rows and columns; of a volume (3): planes, rows and columns."""
        return (self.planes or self.crop, self.crop, self.crop)[-dimensions:]

    def to_json(self) -> dict[str, Any]:
        """Plain values for model files and logs."""
        return asdict(self)
