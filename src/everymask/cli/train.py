"""`everymask train`: a method, data, a folder for the result."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter
from cyclopts.config import Dict

from everymask.cli.application import Common
from everymask.cli.options import argument_of, given_names, method_options, read_options_file, recipe_options
from everymask.cli.values import option_values
from everymask.methods import METHODS
from everymask.methods.recipe import Recipe

if TYPE_CHECKING:
    from everymask.types import Dataset

EXAMPLES = """\
  everymask train stardist --data train/ --val val/ --out runs/nuclei
  everymask train stardist --data train/ --out runs/small --epochs 20 --base 16 --rays 32
  everymask train unet --data annotations.json --out runs/unet --config recipe.toml
  everymask train stardist --data train/ --val val/ --out runs/nuclei --resume
  everymask train unet --backbone resnet34 --data street/ --out runs/street --preview

`everymask train METHOD --help` shows the options of that method and its own recipe; `everymask methods` lists them."""

RUN = Group("Options", sort_key=0)


def configuration(tokens: Sequence[str]) -> Any:
    """The options of the file behind ``--config``; those on the command line overrule them."""
    path = argument_of("--config", tokens)
    return None if path is None else [Dict(read_options_file(path), source=path, use_commands_as_keys=False)]


def make_command(tokens: Sequence[str]) -> Callable[..., None]:
    """The verb, with the options of the method that the tokens name.

    Raises:
        InputError: There is no such method.
    """
    name = _method_among(tokens)
    if name is None:
        recipe_type = recipe_options(Recipe(), "Recipe (each method has its own defaults)")
        method_type = None
    else:
        # Only now that the method is known does anything need torch.
        from everymask.methods import method_class

        kind = method_class(name)
        given = given_names(kind, tokens)
        recipe = kind.recipe_for(**given)
        # Options that change the recipe are named, so that the help says what it is the recipe of.
        changing = "" if recipe == kind.recipe() else "".join(f" --{each} {given[each]}" for each in given)
        recipe_type = recipe_options(recipe, f"Recipe (defaults of {name}{changing})")
        method_type = method_options(kind, f"Method {name}")

    def train(
        method: Annotated[str, Parameter(show_default=False)],
        /,
        *,
        data: Annotated[Path, Parameter(group=RUN)],
        out: Annotated[Path, Parameter(group=RUN)],
        val: Annotated[Path | None, Parameter(group=RUN)] = None,
        format: Annotated[str | None, Parameter(group=RUN)] = None,
        void: Annotated[int | None, Parameter(group=RUN)] = None,
        reading: Annotated[dict[str, str] | None, Parameter(group=RUN)] = None,
        config: Annotated[Path | None, Parameter(group=RUN)] = None,
        resume: Annotated[bool, Parameter(group=RUN, negative="", show_default=False)] = False,
        preview: Annotated[bool, Parameter(group=RUN, negative="", show_default=False)] = False,
        tensorboard: Annotated[bool, Parameter(group=RUN, negative="", show_default=False)] = False,
        channels: Annotated[int, Parameter(group=RUN)] = 3,
        normalise: Annotated[Literal["percentile", "scale"] | None, Parameter(group=RUN)] = None,
        weights: Annotated[Path | None, Parameter(group=RUN)] = None,
        new_logits: Annotated[bool, Parameter(group=RUN, negative="", show_default=False)] = False,
        backbone_weights: Annotated[str | None, Parameter(group=RUN)] = None,
        data_licence: Annotated[str | None, Parameter(group=RUN)] = None,
        recipe: Any = None,
        architecture: Any = None,
        common: Common = Common(),  # noqa: B008 - frozen, and cyclopts reads the default
    ) -> None:
        """Train a method on annotated images.

        Writes model.safetensors, checkpoints, log.jsonl and report.html into the output folder.

        Args:
            method: What to train: a name that `everymask methods` lists, or my.module:Class.
            data: Training images with their annotation: a folder or file in any supported format.
            out: Folder for the model, checkpoints, log and report.
            val: Validation data; without it the data's own part for validation, or else a tenth of the training images,
                drawn with a fixed seed, is held out.
            format: Format of the data, where it is not recognised.
            void: Value of pixels to ignore, in label images.
            reading: Options of the format of the data, such as --reading.images FOLDER; `everymask formats` lists the
                formats.
            config: TOML file with any of these options by name; the command line overrules it.
            resume: Continue the run in the output folder from its last checkpoint.
            preview: Only write preview.png, a sheet of augmented training crops with their labels, into the output
                folder.
            tensorboard: Write event files for TensorBoard into the folder tensorboard of the output folder, with a few
                validation images.
            channels: Channels of the network's input. 3 fits grey and colour images together, 1 grey images only.
            normalise: percentile stretches each image to its own range, for images that have no common one, such as
                those of microscopes; scale divides by the largest value of the file's type, for photographs. Default:
                as the method and its backbone want it.
            weights: File with the weights of the whole network to start from (.safetensors, .pth, .onnx of YOLOX, .h5
                of StarDist): of this program, or of the official one of the method, torchvision, timm or
                segmentation_models_pytorch, made with the same options.
            new_logits: Leave out the layers of --weights that give the classes, which are other ones there.
            backbone_weights: For methods with a backbone: a file of weights for it (.safetensors, .pth), or pretrained
                for those that timm publishes (downloaded once). Without it training starts from random weights.
            data_licence: Licence of the training images, kept in the model file beside data, command and recipe.
        """
        _train(
            method,
            data,
            val,
            out,
            opening=Opening(format, void, reading),
            resume=resume,
            preview=preview,
            tensorboard=tensorboard,
            channels=channels,
            normalise=normalise,
            weights=weights,
            new_logits=new_logits,
            backbone_weights=backbone_weights,
            recipe=None if recipe is None else Recipe(**asdict(recipe)),
            options={} if architecture is None else asdict(architecture),
            data_licence=data_licence,
            command=shlex.join(["everymask", "train", *tokens]),
            common=common,
        )

    # Annotations made here cannot be written as text, which is what the future import makes of all others.
    train.__annotations__["recipe"] = recipe_type
    _set_default(train, "recipe", recipe_type())
    if method_type is None:
        train.__annotations__["architecture"] = Annotated[Any, Parameter(parse=False)]
    else:
        train.__annotations__["architecture"] = method_type
        _set_default(train, "architecture", method_type())
    return train


def _set_default(function: Callable[..., None], name: str, value: Any) -> None:
    function.__kwdefaults__[name] = value  # type: ignore[index]


def _method_among(tokens: Sequence[str]) -> str | None:
    """The METHOD of the command line: the first argument, or wherever a known name stands alone."""
    if tokens and not tokens[0].startswith("-"):
        return tokens[0]
    return next((token for token in tokens if token in METHODS), None)


@dataclass(frozen=True)
class Opening:
    """How the data are opened.

    Args:
        format: Of training and validation data, if it is given.
        void: Value of pixels to ignore.
        reading: Options of the format.
    """

    format: str | None = None
    void: int | None = None
    reading: Mapping[str, str] | None = None

    def dataset(self, path: Path, *, unlabelled: bool = False, like: Dataset | None = None) -> Dataset:
        """Opens the data.

        Args:
            path: A data set.
            unlabelled: Keep images without annotation, too.
            like: The training data, if these are for validation: of another format, their options are not for them.

        Raises:
            InputError: They cannot be opened, or an option is not one of the format.
        """
        from everymask.errors import InputError
        from everymask.formats import has_option, open_dataset, recognise

        name = self.format or recognise(path)
        if like is not None and like.format != name:
            return open_dataset(path, format=self.format)
        options = option_values(self.reading)
        if self.void is not None:
            if not has_option(name, "void"):
                raise InputError(f"{path}: the format {name!r} has no value for pixels to ignore; leave out --void")
            options["void"] = self.void
        if unlabelled and has_option(name, "unannotated"):
            options.setdefault("unannotated", "keep")
        return open_dataset(path, format=self.format, **options)


def _train(
    method: str,
    data: Path,
    val: Path | None,
    out: Path,
    *,
    opening: Opening,
    resume: bool,
    preview: bool,
    tensorboard: bool,
    channels: int,
    normalise: Literal["percentile", "scale"] | None,
    weights: Path | None,
    new_logits: bool,
    backbone_weights: str | None,
    recipe: Recipe | None,
    options: dict[str, Any],
    data_licence: str | None,
    command: str,
    common: Common,
) -> None:
    from everymask.cli.output import Output
    from everymask.data.parts import hold_out
    from everymask.errors import InputError, interruptible
    from everymask.methods import method_class
    from everymask.model import Model
    from everymask.report.picture import save_png

    if os.environ.get("RANK", "0") != "0":
        common = replace(common, quiet=True, json=False)  # of the processes of torchrun only the first one talks
    output = Output(common)
    training = opening.dataset(data, unlabelled=method_class(method).learns_from_unlabelled)
    if val is None:
        training, validation = hold_out(training)
        part = validation[0].extra.get("split")
        if part is not None and part != training[0].extra.get("split"):
            how = f"the part {part!r} of the data ({len(validation)} images) is for validation"
        else:
            how = (
                f"{len(validation)} of {len(training) + len(validation)} images, drawn at random with a fixed seed, "
                "are held out for validation"
            )
        output.note(f"no --val given: {how}")
    else:
        validation = opening.dataset(val, like=training)
    if recipe is not None:
        import torch

        torch.manual_seed(recipe.seed)  # the first weights belong to what the seed decides
    model = Model(method, training.categories, channels=channels, **options)
    if weights is not None and backbone_weights is not None:
        raise InputError(
            "--weights are those of the whole network, --backbone-weights of a part of it; give one of both"
        )
    if weights is not None:
        model.load_foreign(weights, new_logits=new_logits)
    if backbone_weights is not None:
        model.load_backbone(backbone_weights)
    if normalise is not None:
        model.preprocessing = replace(model.preprocessing, normalise=normalise)
    if preview:
        path = out / "preview.png"
        with output.progress("reading training images") as told:
            picture = model.preview(training, recipe=recipe, progress=told)
        save_png(path, picture)
        output.hint(f"preview {path}")
        output.result({"preview": path})
        return
    provenance = {"data": str(data), "validation": "held out" if val is None else str(val), "command": command}
    given = {"weights": weights, "backbone weights": backbone_weights}
    provenance |= {name: str(value) for name, value in given.items() if value is not None}
    if data_licence is not None:
        provenance["data licence"] = data_licence
    try:
        with interruptible():
            result = model.train(
                training,
                validation,
                out=out,
                recipe=recipe,
                resume=resume,
                provenance=provenance,
                quiet=common.quiet,
                tensorboard=tensorboard,
            )
    except KeyboardInterrupt as interruption:
        advice = f"interrupted; the same command with --resume continues the run in {out}"
        raise KeyboardInterrupt(advice) from interruption
    output.hint(f"model   {result.model}")
    output.hint(f"report  {out / 'report.html'}")
    output.hint(f"Next: everymask predict IMAGES --model {result.model} --out results/")
    values = {key: value for key, value in asdict(result).items() if key != "history"}
    output.result({**values, "report": out / "report.html", "log": out / "log.jsonl"})
