"""What a run learns from: the training images in memory, which crops of them come when, and how classes are weighed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from everymask.data.augment import Augmentation
from everymask.data.loader import Crops, Mixing
from everymask.data.sampling import BalancedDraws, Census, CropStream, Draw
from everymask.data.store import Store
from everymask.errors import InputError
from everymask.losses.classification import class_weights

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from everymask.data.preprocessing import Preprocessing
    from everymask.methods.base import Method
    from everymask.methods.recipe import Recipe
    from everymask.types import Categories, Dataset, Segments

Counting = Callable[[str], AbstractContextManager[Callable[[int, int], None] | None]]
"""Such as `everymask.train.progress.Progress.counting`."""


class TrainingSamples:
    """The samples of a run, in the order and form in which it learns from them.

    Args:
        method: Gives the targets; gets its class weights here if the recipe weighs classes.
        data: Annotated images.
        recipe: Crops, augmentation, balance.
        preprocessing: Of the images.
        categories: Of the model.
        budget: Bytes of decoded images to keep in memory.
        workers: Loader processes; each keeps images of its own if not all fit.
        counting: Shows progress.

    Attributes:
        store: The decoded samples.
        visits: How often a pass visits each sample.
    """

    def __init__(
        self,
        method: Method,
        data: Dataset,
        recipe: Recipe,
        preprocessing: Preprocessing,
        categories: Categories,
        *,
        budget: int,
        workers: int,
        counting: Counting,
    ) -> None:
        self.method, self.recipe = method, recipe
        kept: dict[str, Any] = {
            "unannotated": method.learns_from_unlabelled,
            "dimensions": method.dimensions,
            "learns_from": method.learns_from,
        }
        with counting("reading training images") as told:
            self.store = Store(data, preprocessing, categories, budget, **kept)
            if not self.store.fill(told):
                share = budget // max(1, workers)
                self.store = Store(data, preprocessing, categories, share, **kept)
        self.visits = self.store.visits(recipe.visits, recipe.sides(method.dimensions))
        self.balance: BalancedDraws | None = None
        if recipe.balance == "classes" or recipe.weigh_classes != "none":
            with counting("counting the classes") as told:
                census = Census.of(self.store, told)
            if recipe.balance == "classes":
                self.balance = BalancedDraws(census.present, recipe.foreground, recipe.seed)
            if recipe.weigh_classes != "none":
                weigh_classes(method, census, recipe.weigh_classes)

    def crops(self, steps_per_epoch: int | None = None, processes: int = 1) -> Crops:
        """The augmented crops with their targets.

        Args:
            steps_per_epoch: Tells when the last epochs begin, in which crops are not mixed any more; None for never.
            processes: Likewise.
        """
        recipe = self.recipe
        until = sys.maxsize
        if recipe.plain_epochs and steps_per_epoch is not None:
            steps = steps_per_epoch * recipe.mixed_epochs
            until = steps * recipe.batch_size * recipe.accumulate * processes
        mixing = Mixing(recipe.mosaic, recipe.mixup, recipe.copy_paste, until)
        return Crops(
            self.store,
            self.method.targets,
            of_image=self.method.of_image,
            crop=self.recipe.crop,
            planes=self.recipe.planes_for(self.method.dimensions),
            augmentation=augmentation_of(self.recipe),
            foreground=0.0 if self.balance else self.recipe.foreground,
            by_class=self.recipe.balance == "image",
            magnify=self.method.magnification_for,
            fill=self.method.padding or 0.0,
            mixing=mixing if max(recipe.mosaic, recipe.mixup, recipe.copy_paste) > 0 else None,
            seed=self.recipe.seed,
        )

    def unchanged(self, most: int) -> Iterator[tuple[NDArray[np.float32], Segments]]:
        """The middle of at most so many of the images, evenly spread, without augmentation.

        Images are (C, crop, crop), volumes (C, planes, crop, crop).
        """
        crops = unchanged_crops(self.store, self.method, self.recipe)
        count = len(self.store)
        for index in np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int)).tolist():
            yield crops.cut(Draw(index, index))

    def stream(self, batches: int, *, start: int = 0, process: int = 0, processes: int = 1) -> CropStream:
        """Which crops come when; the arguments are those of `CropStream`."""
        return CropStream(
            len(self.store),
            self.recipe.batch_size,
            batches=batches,
            visits=self.visits,
            start=start,
            seed=self.recipe.seed,
            process=process,
            processes=processes,
            balance=self.balance,
        )


def unchanged_crops(store: Store, method: Method, recipe: Recipe) -> Crops:
    """The middle of each sample as the network gets it, without augmentation."""
    return Crops(
        store,
        method.targets,
        of_image=method.of_image,
        crop=recipe.crop,
        planes=recipe.planes_for(method.dimensions),
        magnify=method.magnification_for,
        fill=method.padding or 0.0,
    )


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


def weigh_classes(method: Method, census: Census, rule: str) -> None:
    """Sets the method's class weights by how often the classes occur.

    Raises:
        InputError: It has other ones already.
    """
    weights = class_weights_of(census, rule, background=bool(method.config.get("background")))
    given = method.config["class_weights"]
    if given and not np.allclose(given, weights):
        raise InputError(
            f"the method has class_weights {', '.join(f'{each:g}' for each in given)}, but weigh_classes {rule} would "
            "make other ones of these data; give one of both"
        )
    method.weigh_classes(weights)


def class_weights_of(census: Census, rule: str, *, background: bool) -> list[float]:
    """Weights of the classes, background first if it is one, by `everymask.losses.classification.class_weights`.

    For ``effective`` the beta of Cui et al. 2019 is (N - 1) / N as in their section 3.1, with the mean number of pixels
    of a class for N: rarer classes are weighed by about their inverse frequency, frequent ones nearly alike.

    Args:
        census: Of the training data.
        rule: ``inverse``, ``median`` or ``effective``.
        background: Whether pixels of no segment are a class.
    """
    pixels = np.column_stack([census.background, census.pixels]) if background else census.pixels
    counts = pixels.sum(axis=0)
    seen = (pixels.sum(axis=1)[:, None] * (pixels > 0)).sum(axis=0)
    mean = counts.sum() / max(1, np.count_nonzero(counts))
    weights = class_weights(
        torch.from_numpy(counts), rule, beta=1 - 1 / max(1.0, float(mean)), seen=torch.from_numpy(seen)
    )
    return [float(each) for each in weights]
