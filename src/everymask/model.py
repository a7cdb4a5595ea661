"""`Model`: the one object a user holds, with the verbs of the command line."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from everymask.data.parts import hold_out
from everymask.errors import InputError, unknown_name
from everymask.methods import method_class
from everymask.methods.base import Method
from everymask.metrics.evaluate import Evaluation, evaluate, ids_in_data
from everymask.types import Categories, Category, Dataset, Sample, Segments, Task
from everymask.weights import load_any, load_model, save_model

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from everymask.data.preprocessing import Preprocessing
    from everymask.methods.recipe import Recipe
    from everymask.predict.predictor import Predictor
    from everymask.predict.tta import Augmentation
    from everymask.predict.videos import PredictedFrame
    from everymask.predict.volumes import Stacks
    from everymask.train.loop import TrainingResult

TrainingSource = Dataset | Path | str


class Model:
    """A method with its weights, categories and preprocessing.

    Args:
        method: Name in `everymask.methods.METHODS`, ``module:Class``, or a `Method`.
        categories: Names or `Category` objects of what is to be found.
        channels: Channels the network takes: 3 also for mixed grey and colour images, 1 for grey.
        preprocessing: How images become inputs; default: the method's own.
        options: Constructor arguments of the method.

    Example:
        >>> model = Model.load("nuclei")
        >>> segments = model.predict(image)
    """

    def __init__(
        self,
        method: str | Method,
        categories: Categories | Iterable[Category | str] = ("object",),
        *,
        channels: int = 3,
        preprocessing: Preprocessing | None = None,
        **options: Any,
    ) -> None:
        self.categories = categories if isinstance(categories, Categories) else Categories(categories)
        if isinstance(method, Method):
            if options:
                raise InputError(f"options {sorted(options)} cannot change a method that exists already")
            self.method = method
        else:
            kind = method_class(method)
            check_options(kind, options)
            if "stuff" in inspect.signature(kind).parameters:
                stuff = tuple(index for index, each in enumerate(self.categories) if not each.is_thing)
                options = {"stuff": stuff, **options}
            self.method = kind(classes=len(self.categories), channels=channels, **options)
        if self.method.classes != len(self.categories):
            raise InputError(
                f"the method has {self.method.classes} classes, but there are {len(self.categories)} categories"
            )
        self.preprocessing = preprocessing or self.method.preprocessing_of()
        self.metadata: dict[str, Any] = {}
        self._predictor: tuple[tuple[Any, ...], Predictor] | None = None

    @classmethod
    def load(
        cls,
        name_or_path: str | Path,
        weights: str | Path | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Self:
        """A model by name, bundled or published by others (downloaded once), or a model file.

        Args:
            name_or_path: `everymask models` lists the names.
            weights: Of a published model: the file of its weights, instead of downloading them.
            progress: Of a download; called with the bytes that are there and all bytes.

        Raises:
            InputError: It does not exist, or is no model file of this package.
        """
        loaded = load_any(name_or_path, weights, progress)
        model = cls(loaded.method, loaded.categories, preprocessing=loaded.preprocessing)
        model.metadata = loaded.metadata
        return model

    def load_backbone(self, source: str | Path) -> None:
        """Fills the backbone of the method with weights, before training.

        Args:
            source: A file (.safetensors, .pth), or ``"pretrained"`` for those that timm publishes.

        Raises:
            InputError: The method has no backbone, or the weights cannot be had or do not fit.
        """
        from everymask.backbones.pyramid import Backbone
        from everymask.backbones.weights import load_backbone

        backbone = getattr(self.method, "backbone", None)
        if not isinstance(backbone, Backbone):
            raise InputError(
                "this method has no backbone to fill with weights; choose one by --backbone, if it takes any"
            )
        load_backbone(backbone, source)

    def load_foreign(self, source: str | Path, *, new_logits: bool = False) -> None:
        """Fills the whole network with weights of this or of another program, before training.

        Args:
            source: A file (.safetensors, .pth, .onnx of YOLOX, .h5 of StarDist); the method's options must be those of
                the network that it is from.
            new_logits: Leave out the layers that give the classes.

        Raises:
            InputError: The weights cannot be read or do not fit.
        """
        from everymask.methods.foreign import load_foreign

        load_foreign(self.method, Path(source), new_logits=new_logits)

    def save(self, path: str | Path, *, half: bool = False) -> None:
        """Writes one safetensors file that `load` needs nothing else for, of half the size with 16-bit weights."""
        metadata = self._extra_metadata()
        save_model(path, self.method, self.categories, self.preprocessing, metadata=metadata, half=half)

    @property
    def tasks(self) -> frozenset[Task]:
        """What the model predicts."""
        return type(self.method).tasks

    def predictor(
        self,
        *,
        tile: int = 1024,
        tta: bool | Augmentation = False,
        magnification: float | Literal["auto"] = 1.0,
        diameter: float | None = None,
        device: str | None = None,
    ) -> Predictor:
        """The engine behind `predict`; kept while weights and options stay the same."""
        from everymask.predict.magnification import magnification_for
        from everymask.predict.predictor import Predictor

        if diameter is not None:
            if magnification != 1:
                raise InputError("diameter gives the magnification; leave out one of the two")
            magnification = magnification_for(self.method, diameter)
        # In-place changes of a tensor raise its version, so that training on after a prediction is noticed.
        versions = tuple(each._version for each in self.method.state_dict().values())
        key = (tile, tta, magnification, device, id(self.method), self.method.config, versions)
        if self._predictor is None or self._predictor[0] != key:
            made = Predictor(
                self.method, self.preprocessing, device=device, tile=tile, tta=tta, magnification=magnification
            )
            self._predictor = (key, made)
        return self._predictor[1]

    def predict(
        self,
        image: NDArray[Any],
        *,
        tile: int = 1024,
        tta: bool | Augmentation = False,
        magnification: float | Literal["auto"] = 1.0,
        diameter: float | None = None,
        limits: NDArray[np.float32] | None = None,
        device: str | None = None,
        stacks: Stacks = "planes",
        anisotropy: float = 1.0,
    ) -> Segments:
        """Segments of an image or a volume, with the data set's category ids.

        Args:
            image: (H, W) or (H, W, C), any real number type, any size. Arrays that are read by slices, such as
                `numpy.memmap` and zarr, are read tile by tile. For methods of volumes, and where `stacks` says so,
                (D, H, W) or (D, H, W, C).
            tile: Images larger than this are predicted tile by tile; the result is stitched without seams.
            tta: Average over copies of the image: slower, a little more accurate. ``"mirror"``, ``"flips"``,
                ``"dihedral"`` (the eight flips and quarter turns; also True), or, for semantic methods,
                ``"multiscale"``.
            magnification: Factor by which the image is resized for the network; ``"auto"`` where the method can tell.
            diameter: Instead of it, the size of the objects in pixels, for methods that know theirs.
            limits: Intensity limits from `Preprocessing.limits`, to treat several images alike.
            device: Such as ``"cuda"``; default: the fastest there is.
            stacks: How a method of images predicts volumes: ``"joined"`` finds objects in each plane and joins those
                that lie on each other, ``"views"`` (Cellpose) sees the volume from three sides.
            anisotropy: Of such a volume, the distance between planes in pixels, for ``"views"``.
        """
        from everymask.predict.volumes import check_stacks, predict_volume

        predictor = self.predictor(tile=tile, tta=tta, magnification=magnification, diameter=diameter, device=device)
        check_stacks(predictor, stacks, anisotropy)
        if stacks == "planes":
            found = predictor(image, limits)
        else:
            found = predict_volume(predictor, image, stacks, anisotropy=anisotropy, limits=limits)
        return found.with_category(self.categories.ids[found.category])

    def predict_video(
        self,
        source: Path | str,
        *,
        every: int = 1,
        frames: tuple[int, int | None] = (0, None),
        seconds: float | None = None,
        **options: Any,
    ) -> Iterator[PredictedFrame]:
        """The frames of a video file or a camera, in order, with their segments; each when it is asked for.

        Args:
            source: Path, or ``camera:0`` for the first camera, which gives its newest frame each time.
            every: Take each so many-th frame only.
            frames: Number of the first frame, from 0, and of the first that is not wanted any more, if there is one.
            seconds: Only what lies in the first so many seconds.
            options: As for `predictor`, such as ``tile=512``.

        Returns:
            Of tuples (number of the frame, seconds, image (H, W, 3) uint8, segments).

        Raises:
            InputError: It cannot be read, or the model is for volumes; later, a frame cannot be predicted.
        """
        from everymask.predict.videos import FrameChoice, Video, predicted_frames

        if self.method.dimensions == 3:
            raise InputError("the frames of a video are images, and this is a model of volumes")
        predictor = self.predictor(**options)

        def predict(image: NDArray[Any]) -> Segments:
            found = predictor(image)
            return found.with_category(self.categories.ids[found.category])

        return predicted_frames(Video(source, FrameChoice(every, *frames, seconds)), predict)

    def train(
        self,
        data: TrainingSource,
        val: TrainingSource | None = None,
        *,
        out: Path | str,
        recipe: Recipe | None = None,
        resume: bool = False,
        provenance: Mapping[str, Any] | None = None,
        quiet: bool = False,
        tensorboard: bool = False,
        **options: Any,
    ) -> TrainingResult:
        """Trains the method on `data`; afterwards the model holds the best weights and tuned thresholds.

        Methods of images learn from the planes of volumes, and are validated on them.

        Args:
            data: Data set or its path.
            val: Data for validation; without it a tenth of `data` is held out.
            out: Folder for checkpoints, log, report and ``model.safetensors``.
            recipe: Default: the method's own.
            resume: Go on from the checkpoint in `out`.
            provenance: Written into the model file: data, licence, command.
            quiet: No progress line.
            tensorboard: Write event files for TensorBoard, into the folder ``tensorboard`` of `out`.
            options: Changes of the recipe, such as ``epochs=20``.
        """
        from everymask.report.curves import training_report
        from everymask.train.loop import train

        training = self._training_data(data)
        validation = _dataset(val) if val is not None else None
        if validation is None:
            training, validation = hold_out(training)
        result = train(
            self.method,
            self._learnt_from(training),
            self._learnt_from(validation),
            recipe=self._recipe(recipe, options),
            preprocessing=self.preprocessing,
            categories=self.categories,
            out=Path(out),
            resume=resume,
            provenance=dict(provenance or {}),
            quiet=quiet,
            tensorboard=tensorboard,
        )
        loaded = load_model(result.model)
        self.method, self.metadata, self._predictor = loaded.method, loaded.metadata, None
        if os.environ.get("RANK", "0") == "0":  # of several processes the first one writes
            training_report(Path(out))
        return result

    def preview(
        self,
        data: TrainingSource,
        *,
        recipe: Recipe | None = None,
        progress: Callable[[int, int], None] | None = None,
        **options: Any,
    ) -> NDArray[np.uint8]:
        """A picture (H, W, 3) of the first augmented crops of a training, with their labels drawn over.

        Args:
            data: Training data or their path.
            recipe: Default: the method's own.
            progress: Called with (images read, images in all).
            options: Changes of the recipe, such as ``crop=320``.
        """
        from everymask.data.store import CACHE_BYTES
        from everymask.report.preview import training_preview
        from everymask.train.samples import TrainingSamples
        from everymask.train.setup import check_fit

        dataset = self._learnt_from(self._training_data(data))
        # Of classes no weights are wanted here, and the method is left as it is.
        chosen = self._recipe(recipe, options).with_options(weigh_classes="none")
        check_fit(self.method, dataset, None, chosen, self.preprocessing, self.categories)
        samples = TrainingSamples(
            self.method,
            dataset,
            chosen,
            self.preprocessing,
            self.categories,
            budget=CACHE_BYTES,
            workers=0,
            counting=lambda _: nullcontext(progress),
        )
        return training_preview(samples, self.preprocessing, self.categories)

    def _recipe(self, recipe: Recipe | None, options: Mapping[str, Any]) -> Recipe:
        chosen = type(self.method).recipe_for(**self.method.config) if recipe is None else recipe
        return chosen.with_options(**options)

    def _training_data(self, source: TrainingSource) -> Dataset:
        """The data set; images without annotation are kept if the method learns from such."""
        from everymask.formats import has_option, open_dataset, recognise

        if isinstance(source, Dataset):
            return source
        keeps = type(self.method).learns_from_unlabelled and has_option(recognise(source), "unannotated")
        return open_dataset(source, **({"unannotated": "keep"} if keeps else {}))

    def _learnt_from(self, data: Dataset) -> Dataset:
        """The data as the method takes them: volumes as planes if it is for images."""
        from everymask.data.planes import in_planes

        return data if self.method.dimensions == 3 else in_planes(data)

    def evaluate(
        self,
        data: TrainingSource,
        *,
        protocol: str = "auto",
        tta: bool | Augmentation = False,
        tile: int = 1024,
        stacks: Stacks = "joined",
        anisotropy: float = 1.0,
        score: float = 0.0,
        progress: Callable[[int, int], None] | None = None,
        **options: Any,
    ) -> Evaluation:
        """Scores the model on a data set or its path by an official protocol.

        Args:
            data: Data set or its path.
            protocol: One of `everymask.metrics.METRICS`; auto picks by what the data and the model hold.
            tta: Average over copies of each image, as for `predict`.
            tile: Side in pixels of the tiles in which larger images are predicted.
            stacks: How a method of images predicts volumes, as for `predict`.
            anisotropy: Likewise.
            score: Objects of lower scores are left out, for protocols that do not rank them.
            progress: Called with (images done, images in all).
            options: The protocol's own options.
        """
        dataset = _dataset(data)
        return evaluate(
            dataset,
            self.predictions_for(dataset, tile=tile, tta=tta, stacks=stacks, anisotropy=anisotropy, score=score),
            protocol=protocol,
            options=options,
            tasks=self.tasks,
            preferred=type(self.method).metric[0],
            progress=progress,
        )

    def predictions_for(
        self,
        data: Dataset,
        *,
        tile: int = 1024,
        tta: bool | Augmentation = False,
        stacks: Stacks = "joined",
        anisotropy: float = 1.0,
        score: float = 0.0,
    ) -> Callable[[Sample], Segments]:
        """A function that predicts a sample of a data set, with the category ids of that data set, matched by name.

        The arguments are those of `evaluate`.

        Raises:
            InputError: The data set lacks a category of the model, or an option is wrong; later, an image cannot be
                predicted.
        """
        table = ids_in_data(self.categories, data)
        ids = np.array([table[each.id] for each in self.categories], dtype=np.int64)
        from everymask.predict.volumes import check_stacks, predict_volume

        whole = self.method.dimensions == 3
        # A wrong option is told at once, not for the first image.
        predictor = self.predictor(tile=tile, tta=tta)
        if not whole and (stacks, anisotropy) != ("joined", 1.0):
            check_stacks(predictor, stacks, anisotropy)

        def predict(sample: Sample) -> Segments:
            predictor = self.predictor(tile=tile, tta=tta)
            try:
                image = sample.read_image()
                if image.ndim == 4 and not whole:
                    found = predict_volume(predictor, image, stacks, anisotropy=anisotropy)
                else:
                    found = predictor(image)
            except InputError as error:
                place = str(sample.path or sample.name)
                raise error if place in str(error) else InputError(f"{place}: {error}") from error
            found = found.probable(score)
            return found.with_category(ids[found.category])

        return predict

    def export(self, kind: str, path: Path | str) -> dict[str, float]:
        """Writes the network for other programs and checks that it says the same.

        Args:
            kind: ``"onnx"``, or ``"half"`` for a model file with 16-bit weights.
            path: Target file.

        Returns:
            The largest difference of each output, relative to its range.
        """
        if kind == "half":
            from everymask.export.half import difference_of_half

            difference = difference_of_half(self.method)
            self.save(path, half=True)
            return difference
        if kind != "onnx":
            raise unknown_name("export format", kind, ["half", "onnx"])
        from everymask.export.onnx import export_onnx

        header = {"categories": self.categories.to_json(), "preprocessing": self.preprocessing.to_json()}
        header |= {"thresholds": self.method.thresholds, "stride": self.method.stride, "grid": self.method.grid}
        return export_onnx(self.method, Path(path), header)

    def _extra_metadata(self) -> dict[str, Any]:
        own = {"format", "method", "config", "thresholds", "categories", "preprocessing"}
        return {key: value for key, value in self.metadata.items() if key not in own}


def load(name_or_path: str | Path) -> Model:
    """`Model.load`: a bundled model by name, or a model file."""
    return Model.load(name_or_path)


def check_options(kind: type[Method], options: Mapping[str, Any]) -> None:
    """Refuses options that the constructor of a method does not have.

    Raises:
        InputError: Names the option and the nearest ones that exist.
    """
    known = set(inspect.signature(kind.__init__).parameters) - {"self", "classes", "channels"}
    for name in options:
        if name not in known:
            raise unknown_name(f"option of {kind.__name__}", name, known)


def _dataset(source: TrainingSource) -> Dataset:
    if isinstance(source, Dataset):
        return source
    from everymask.formats import open_dataset

    return open_dataset(source)
