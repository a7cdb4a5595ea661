"""Model files: one safetensors file with the weights and everything needed to use them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everymask.downloads import Published, fetched
from everymask.errors import InputError, unknown_name
from everymask.files import atomic_write

if TYPE_CHECKING:
    from torch import Tensor

    from everymask.data.preprocessing import Preprocessing
    from everymask.methods.base import Method
    from everymask.types import Categories

FORMAT = "1"
"""Version of the metadata; a file of a later version is refused with the advice to update."""


@dataclass(frozen=True, slots=True)
class Source:
    """Weights that come with the package.

    Args:
        file: File name below the package's ``assets/weights``.
        title: One line for tables.
        licence: Licence of the weights (SPDX).
    """

    file: str
    title: str
    licence: str


MODELS = {
    "nuclei": Source(
        "nuclei.safetensors", "Cell nuclei in fluorescence, brightfield and histology images", "Apache-2.0"
    ),
}
"""Name -> file of the bundled weights."""

PUBLISHED = {
    "yolox_nano": Published(
        url="https://github.com/Megvii-BaseDetection/YOLOX/releases/download/0.1.1rc0/yolox_nano.onnx",
        sha256="695e750a5d5754bb5a8d5325643b59282191a7e7a564e435a415fd3c578eab14",
        size=3_660_092,
        licence="Apache-2.0",
        title="80 kinds of things in photographs (COCO), boxes; the smallest YOLOX",
        method="yolo",
        options={"variant": "nano"},
        categories="coco",
        source="https://github.com/Megvii-BaseDetection/YOLOX",
    ),
}
"""Name -> weights that are downloaded when they are first asked for."""


@dataclass(frozen=True)
class Loaded:
    """The contents of a model file."""

    method: Method
    categories: Categories
    preprocessing: Preprocessing
    metadata: dict[str, Any]


def save_model(
    path: Path | str,
    method: Method,
    categories: Categories,
    preprocessing: Preprocessing,
    *,
    metadata: Mapping[str, Any] | None = None,
    half: bool = False,
) -> None:
    """Writes a model file.

    Args:
        path: Target, usually ``*.safetensors``; replaced in one step.
        method: Network and configuration.
        categories: The data set's categories in the order of the class indices.
        preprocessing: How images become inputs.
        metadata: Anything else worth keeping, as JSON values: licence, provenance, recipe, measured scores.
        half: Write the weights as 16-bit floats.
    """
    from everymask.methods import method_name

    header = {
        "format": FORMAT,
        "method": method_name(method),
        "config": method.config,
        "thresholds": method.thresholds,
        "categories": categories.to_json(),
        "preprocessing": preprocessing.to_json(),
        **(metadata or {}),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in method.state_dict().items()}
    write_tensors(path, halved(tensors) if half else tensors, {"everymask": json.dumps(header)})


def halved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights (two axes or more) as float16; biases, statistics and what is too large for 16 bits stay as they are.

    Args:
        tensors: Of a method's state.
    """
    import torch

    def fits(tensor: Tensor) -> bool:
        return (
            tensor.dtype == torch.float32
            and tensor.ndim > 1
            and bool((tensor.abs() <= torch.finfo(torch.float16).max).all())
        )

    return {name: tensor.half() if fits(tensor) else tensor for name, tensor in tensors.items()}


def write_tensors(path: Path | str, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes a safetensors file in one step: it is the old one or the new one, never a part of it.

    Args:
        path: Target.
        tensors: On the CPU, contiguous, no two sharing memory.
        metadata: Texts by name.

    Raises:
        InputError: The folder cannot be made or written, or the disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        with atomic_write(path) as temporary:
            save_file(tensors, temporary, metadata=metadata)
    except SafetensorError as error:  # its way of saying that the system would not write
        raise InputError(f"cannot write {path}: {error}; free some space or choose another --out") from error


def read_metadata(path: Path | str) -> dict[str, Any]:
    """The metadata of a model file, without reading the weights or importing torch.

    Raises:
        InputError: The file is missing, damaged, or no model file of this package.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such model file; `everymask models` lists the names that are known")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(size, 100_000_000):
            # Bare pickles begin with their protocol, the archives of torch.save are zip files.
            if start[:4] == b"PK\x03\x04" or (
                start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
            ):
                raise InputError(
                    f"{path} is a Python pickle, which can run code when it is read; "
                    "only safetensors files written by `everymask train` are loaded"
                )
            raise InputError(f"{path} is no model file (safetensors) or is cut off; train or download it again")
        try:
            header = json.loads(file.read(length))
            end = max((each["data_offsets"][1] for name, each in header.items() if name != "__metadata__"), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise InputError(
                f"{path} is no model file (safetensors) or is damaged; train or download it again"
            ) from error
    if end + 8 + length != size:
        raise InputError(f"{path} is cut off ({size} of {end + 8 + length} bytes); copy or download it again")
    try:
        metadata = json.loads(header["__metadata__"]["everymask"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} was not written by everymask (no configuration in it); only its own files load"
        ) from error
    version = metadata.get("format") if isinstance(metadata, dict) else None
    if version != FORMAT:
        raise InputError(f"{path} has format {version!r}, this version reads {FORMAT!r}; update everymask")
    return metadata


def load_model(path: Path | str) -> Loaded:
    """Reads a model file: the method in evaluation mode with its weights, on the CPU.

    Raises:
        InputError: As `read_metadata`; or the method is unknown; or weights are missing, left over or of another shape.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from everymask.data.preprocessing import Preprocessing
    from everymask.methods import method_class
    from everymask.types import Categories

    metadata = read_metadata(path)
    try:
        kind = method_class(metadata["method"])
        method = kind(**_tuples(metadata["config"]))
        categories = Categories.from_json(metadata["categories"])
        preprocessing = Preprocessing.from_json(metadata["preprocessing"])
        thresholds = {name: float(value) for name, value in metadata["thresholds"].items()}
        method.thresholds = {**method.thresholds, **thresholds}
        if (method.classes, method.channels) != (len(categories), preprocessing.channels):
            raise InputError(
                f"its method has {method.classes} classes and {method.channels} channels, but there are "
                f"{len(categories)} categories and {preprocessing.channels} channels; train it again"
            )
        tensors = load_file(path)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    # The file may be anyone's, and constructors raise all kinds of errors on values of the wrong type.
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} does not fit this version of everymask: {reason}; train it again") from error
    load_strictly(method, tensors, str(path))
    return Loaded(method.eval(), categories, preprocessing, metadata)


def load_any(
    name_or_path: str | Path,
    weights: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Loaded:
    """A model by its name or file; published ones are downloaded once.

    Args:
        name_or_path: A name of `MODELS` or `PUBLISHED`, or a model file.
        weights: Of a published model: the file of its weights, instead of downloading them.
        progress: Of a download; called with the bytes that are there and all bytes.

    Raises:
        InputError: It does not exist, cannot be downloaded or does not fit; or `weights` are given for another model.
    """
    from everymask.formats.coco_stuff_classes import thing_categories
    from everymask.methods import method_class
    from everymask.methods.foreign import load_foreign

    published = PUBLISHED.get(str(name_or_path))
    if published is None:
        if weights is not None:
            raise InputError(
                f"weights are for a published model ({', '.join(PUBLISHED)}), and {name_or_path} has its own; leave "
                "them out"
            )
        return load_model(find_model(name_or_path))
    path = Path(weights) if weights is not None else fetched(str(name_or_path), published, progress)
    categories = thing_categories()
    method = method_class(published.method)(classes=len(categories), **published.options)
    load_foreign(method, path)
    about = {"licence": published.licence, "source": published.source, "url": published.url, "file": str(path)}
    return Loaded(method.eval(), categories, method.preprocessing_of(), about)


def load_strictly(method: Method, tensors: Mapping[str, Any], origin: str) -> None:
    """Copies `tensors` into `method`; every parameter and buffer must be there, and nothing else.

    Raises:
        InputError: Lists missing and unexpected names and shapes that differ, the first few of each.
    """
    own = method.state_dict()
    missing = sorted(own.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - own.keys())
    shapes = [
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(own[name].shape)}"
        for name in sorted(own.keys() & tensors.keys())
        if tensors[name].shape != own[name].shape
    ]
    if missing or unexpected or shapes:
        kinds = {"missing": missing, "unexpected": unexpected, "shapes": shapes}
        told = "; ".join(f"{kind}: {_some(names)}" for kind, names in kinds.items() if names)
        raise InputError(f"{origin}: the weights do not fit the method; {told}; train it again")
    method.load_state_dict(dict(tensors))


def find_model(name_or_path: str | Path) -> Path:
    """The file of a named model or the path itself.

    Raises:
        InputError: It is neither a known name nor a file.
    """
    text = str(name_or_path)
    if text in MODELS:
        return Path(str(resources.files("everymask") / "assets" / "weights" / MODELS[text].file))
    path = Path(text)
    if path.exists():
        if path.is_dir():
            raise InputError(f"{path} is a folder; give the model file in it, such as {path / 'model.safetensors'}")
        return path
    if path.suffix or len(path.parts) > 1:
        raise InputError(f"{path}: no such model file; `everymask models` lists the names that are known")
    raise unknown_name("model", text, [*MODELS, *PUBLISHED])


def check_model(name_or_path: str | Path) -> None:
    """Makes sure that a model is there or can be had, without reading it.

    Raises:
        InputError: It is neither.
    """
    if str(name_or_path) not in PUBLISHED:
        find_model(name_or_path)


def _some(names: Sequence[str], most: int = 3) -> str:
    """The first few of many names."""
    return f"{list(names[:most])}{f' and {len(names) - most} more' if len(names) > most else ''}"


def _tuples(values: Any) -> Any:
    """JSON has lists only; configurations have tuples."""
    if isinstance(values, dict):
        return {key: _tuples(value) for key, value in values.items()}
    return tuple(_tuples(each) for each in values) if isinstance(values, list) else values
