"""The contract of every method: a network, its targets, its loss, and how its outputs become segments."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from everymask.backbones.pyramid import Backbone
from everymask.data.preprocessing import Preprocessing
from everymask.data.store import LearnsFrom
from everymask.errors import InputError
from everymask.methods.preparation import backbone_preprocessing
from everymask.methods.recipe import Recipe
from everymask.types import Segments, Task


class Method(nn.Module, ABC):
    """A segmentation method.

    Inside a method the categories are class indices 0..K-1; `everymask.Model` converts them to and from the data set's
    ids. The constructor arguments are the whole configuration: plain numbers, strings and tuples, recorded in
    `config` and stored with the weights.

    Attributes:
        tasks: What the method can be trained for.
        classes: Number of categories K.
        channels: Channels C of the input.
        stride: Input height and width must be multiples of it; the engine pads.
        grid: Input pixels per output pixel of the dense outputs; divides `stride`.
        context: Radius in pixels of the surroundings that an output may depend on; tiles overlap by at least this much.
        dimensions: 2 for images, 3 for volumes: then images are (B, C, D, H, W), outputs (B, ?, D / depth_grid,
            H / grid, W / grid), and sizes (D, H, W).
        depth_stride: Of volumes, what `stride` is for their planes: their number must be a multiple of it.
        depth_grid: Of volumes, planes per output plane.
        depth_context: Of volumes, `context` in planes.
        anisotropy: Of volumes, the distance between planes in pixels.
        largest: Longest side of images that the network sees as a whole, however small tiles are to be; 0 for none.
        completion_images: Training images that `complete` is shown at most.
        thresholds: Decision thresholds that `decode` uses; tuned on validation data and stored with the weights.
    """

    tasks: ClassVar[frozenset[Task]]
    metric: ClassVar[tuple[str, str]]
    """Protocol of `everymask.metrics` and its figure that validation maximises: ``("matching", "mean_accuracy")``."""
    tunable: ClassVar[Mapping[str, tuple[float, ...]]] = {}
    """For each threshold the values to try; a pair of values is a range that is searched by golden section."""
    learns_from_unlabelled: ClassVar[bool] = False
    """Whether images without annotation teach it something: in training such an image is all void."""
    ragged: ClassVar[frozenset[str]] = frozenset()
    """Names of targets whose length differs from image to image: batches hold a list of them, one tensor an image."""
    learns_from: ClassVar[LearnsFrom] = "labels"
    """What `targets` needs: a label map (or tags of the image), boxes, or masks that may overlap."""
    padding: ClassVar[float | None] = None
    """What lies beyond an image: the image itself, mirrored (None), or a value of the network's input."""
    stretched: ClassVar[bool] = False
    """Whether images are brought to one range by percentiles on a backbone, too: microscopes have no common one."""
    antialias: ClassVar[bool] = True
    """Whether images are smoothed when they are reduced for prediction; some published weights expect otherwise."""
    not_exportable: ClassVar[str] = ""
    """Why the network cannot be written in a format for other programs; empty if it can."""

    classes: int
    channels: int
    stride: int = 1
    grid: int = 1
    context: int = 0
    dimensions: Literal[2, 3] = 2
    depth_stride: int = 1
    depth_grid: int = 1
    depth_context: int = 0
    anisotropy: float = 1.0
    largest: int = 0
    completion_images: int = 64
    thresholds: dict[str, float]
    class_weights: Tensor | None
    _config: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Method:
        """Records the constructor arguments, defaults included, so that subclasses need not."""
        self = super().__new__(cls)
        try:
            bound = inspect.signature(cls.__init__).bind(self, *args, **kwargs)
        except TypeError:
            return self  # __init__ itself raises, with the better message
        bound.apply_defaults()
        values = dict(list(bound.arguments.items())[1:])
        object.__setattr__(self, "_config", values)
        return self

    @property
    def config(self) -> dict[str, Any]:
        """The constructor arguments: ``type(method)(**method.config)`` makes the same network."""
        return dict(self._config)

    @classmethod
    @abstractmethod
    def recipe(cls) -> Recipe:
        """The default training recipe."""

    @classmethod
    def recipe_for(cls, **options: Any) -> Recipe:
        """The default training recipe of the network that these constructor arguments make.

        Methods that are trained otherwise with other options override it. Volumes come in smaller crops and batches.
        """
        recipe = cls.recipe()
        if options.get("dimensions", 2) == 2:
            return recipe
        return recipe.with_options(crop=96, planes=32, batch_size=2, visits="area")

    @classmethod
    def preprocessing(cls, channels: int) -> Preprocessing:
        """The default preprocessing for images of `channels` channels."""
        return Preprocessing(channels=channels)

    def preprocessing_of(self) -> Preprocessing:
        """The default preprocessing of this very network: that of its backbone's weights if it has a backbone."""
        backbone = getattr(self, "backbone", None)
        if isinstance(backbone, Backbone):
            found = backbone_preprocessing(backbone, self.channels)
            if self.stretched:
                found = replace(type(self).preprocessing(self.channels), mean=found.mean, std=found.std)
            return found
        return type(self).preprocessing(self.channels)

    @abstractmethod
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Named outputs (B, ?, H / grid, W / grid) of images (B, C, H, W); exportable."""

    @abstractmethod
    def targets(self, segments: Segments) -> dict[str, Tensor]:
        """What the network should say for one sample; runs in loader workers, after augmentation."""

    def of_image(self, image: Tensor) -> dict[str, Tensor]:
        """Further targets that depend on the network's input (C, H, W) alone, such as regions that may hold objects.

        Found by the loader's processes while the network learns; those of lengths that differ are `ragged`.
        """
        return {}

    @abstractmethod
    def loss(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Named scalar terms, weights included; their sum is minimised."""

    @abstractmethod
    def decode(self, outputs: Mapping[str, Tensor], sizes: Sequence[tuple[int, ...]]) -> list[Segments]:
        """Segments of each image; `sizes` are the (H, W) before padding at the bottom and the right.

        Of volumes they are (D, H, W), padded behind the last plane as well.
        """

    def weigh_classes(self, weights: Sequence[float]) -> None:
        """Sets the constructor's `class_weights` of a method that exists.

        A method with that option keeps them as the buffer of that name, and its option `background` says whether the
        first weight is that of the background.

        Args:
            weights: One number of 0 or more for each class, background first where it is a class.

        Raises:
            InputError: The method has no such option.
        """
        if "class_weights" not in self._config:
            raise InputError(
                f"{type(self).__name__} has no class_weights, so the classes cannot be weighed; leave out weigh_classes"
            )
        self._config["class_weights"] = tuple(float(each) for each in weights)
        self.class_weights = torch.tensor(self._config["class_weights"], dtype=torch.float32)

    def training_loss(self, images: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Forward pass and loss; methods whose network needs the targets override it."""
        return self.loss(self(images), targets)

    def complete(self, samples: Iterable[tuple[Tensor, Segments]]) -> None:
        """Learns from the finished network what it cannot learn during training; called once, in evaluation mode.

        Args:
            samples: Images (C, H, W) as in training, on the network's device, with their truth.
        """

    def begin_plain_epochs(self) -> None:
        """Told by the trainer when the last epochs begin, whose crops are not made of several others."""

    def magnification_for(self, height: int, width: int) -> float:
        """The factor by which images of a size are resized for the network, in training and prediction."""
        return 1.0

    def undo_dihedral(self, outputs: Mapping[str, Tensor], flip: bool, turns: int) -> dict[str, Tensor]:
        """Outputs for an image from those for its transformed copy; `turns` counts counter-clockwise quarter turns.

        The copy was made by ``torch.rot90(image, turns, (-2, -1))`` and then, if `flip`, ``.flip(-1)``, all planes of
        volumes alike. Here the maps are turned back; methods whose values depend on direction (rays, flows, offsets)
        override it and permute them.
        """
        undone = {}
        for name, output in outputs.items():
            back = output.flip(-1) if flip else output
            undone[name] = torch.rot90(back, -turns, (-2, -1))
        return undone
