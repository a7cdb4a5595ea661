"""Scores on validation data: the loss on fixed crops, and the method's metric on whole images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch

from everymask.data.loader import collate, to_device
from everymask.data.sampling import Draw
from everymask.data.store import Decoded, Store
from everymask.errors import InputError
from everymask.metrics import Metric, make_metric
from everymask.predict.device import channels_innermost, use_bfloat16
from everymask.predict.predictor import Predictor
from everymask.train.samples import unchanged_crops

if TYPE_CHECKING:
    from accelerate import Accelerator

    from everymask.data.preprocessing import Preprocessing
    from everymask.methods.base import Method
    from everymask.methods.recipe import Recipe
    from everymask.types import Categories, Dataset, Segments


class Validator:
    """Scores a method on validation data; several processes share the images and get the same figures.

    Args:
        method: The method in training.
        data: Annotated images.
        recipe: Gives crop, batch size and precision.
        preprocessing: Of the images.
        categories: Of the model.
        accelerator: Device and processes.
        budget: Bytes of decoded images to keep in memory.
        progress: Told how many images of how many are read.

    Attributes:
        shows: How many of the first images to remember with their predictions.
        shown: Those of the last validation.
    """

    def __init__(
        self,
        method: Method,
        data: Dataset,
        recipe: Recipe,
        preprocessing: Preprocessing,
        categories: Categories,
        accelerator: Accelerator,
        *,
        budget: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.method, self.recipe = method, recipe
        self.preprocessing, self.categories, self.accelerator = preprocessing, categories, accelerator
        self.data = data.subset(range(accelerator.process_index, len(data), accelerator.num_processes))
        self.store = Store(
            self.data,
            preprocessing,
            categories,
            budget,
            dimensions=method.dimensions,
            learns_from=method.learns_from,
        )
        self._in_memory = self.store.fill(progress) if len(self.data) else True
        self._truths: dict[int, Segments] = {}
        self.shows = 0
        self.shown: list[tuple[Decoded, Segments, Segments]] = []

    def __call__(self, progress: Callable[[int, int], None] | None = None) -> dict[str, float]:
        """``loss``, its terms as ``loss/term``, and the figures of the metric.

        Args:
            progress: Told how many images of how many are scored.
        """
        was_training = self.method.training
        self.method.eval()
        try:
            figures = self._losses()
            figures.update(self._metric(progress))
        finally:
            self.method.train(was_training)
        return figures

    def predictor(self) -> Predictor:
        """A predictor with the present weights."""
        return Predictor(self.method, self.preprocessing, self.accelerator.device, self.recipe.precision)

    def samples(self) -> Iterator[tuple[str, Decoded, Segments]]:
        """Name, decoded sample and truth of this process's images."""
        for index in range(len(self.data)):
            sample = self.data[index]
            decoded = self.store[index]
            truth = self._truths.get(index)
            if truth is None:
                truth = sample.segments
                if truth is None:
                    raise InputError(f"{sample.name} has no annotation")
                if self._in_memory:
                    self._truths[index] = truth
            yield sample.name, decoded, truth

    def new_metric(self) -> Metric:
        """An empty metric of the method's protocol."""
        return make_metric(self.method.metric[0], self.categories)

    def update(self, metric: Metric, truth: Segments, prediction: Segments, name: str) -> None:
        """Scores one prediction, whose categories are class indices."""
        metric.update(truth, prediction.with_category(self.categories.ids[prediction.category]), name)

    def merge(self, metric: Metric, merged: Metric) -> Metric:
        """The metrics of all processes, added to the empty metric `merged`."""
        if self.accelerator.num_processes == 1:
            return metric
        from accelerate.utils import gather_object

        for part in gather_object([metric]):
            merged.merge(part)
        return merged

    def _metric(self, progress: Callable[[int, int], None] | None) -> dict[str, float]:
        predictor, metric = self.predictor(), self.new_metric()
        self.shown.clear()
        for done, (name, decoded, truth) in enumerate(self.samples(), 1):
            prediction = predictor(decoded.image, decoded.limits)
            self.update(metric, truth, prediction, name)
            if done <= self.shows:
                self.shown.append((decoded, truth, prediction))
            if progress is not None:
                progress(done, len(self.data))
        return self.merge(metric, self.new_metric()).compute()

    @torch.no_grad()
    def _losses(self) -> dict[str, float]:
        device = self.accelerator.device
        bfloat16 = use_bfloat16(self.recipe.precision, device)
        crops = unchanged_crops(self.store, self.method, self.recipe)
        sums: dict[str, float] = {}
        count = len(self.data)
        for first in range(0, count, self.recipe.batch_size):
            draws = [Draw(index, index) for index in range(first, min(first + self.recipe.batch_size, count))]
            images, targets = collate([crops[draw] for draw in draws], self.method.ragged)
            images = images.to(device, memory_format=channels_innermost(self.method.dimensions))
            targets = to_device(targets, device)
            with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                terms = self.method.training_loss(images, targets)
            for name, term in terms.items():
                sums[name] = sums.get(name, 0.0) + float(term) * len(draws)
        if self.accelerator.num_processes > 1:
            from accelerate.utils import gather_object

            parts = gather_object([(sums, count)])
            count = sum(each for _, each in parts)
            names = {name for part, _ in parts for name in part}
            sums = {name: math.fsum(part.get(name, 0.0) for part, _ in parts) for name in sorted(names)}
        means = {f"loss/{name}": value / count for name, value in sums.items()}
        return {"loss": math.fsum(means.values()), **means}
