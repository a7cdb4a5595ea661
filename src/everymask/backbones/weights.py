"""Weights of backbones from timm's hub or from a file, strictly: every tensor that does not fit is listed."""

from __future__ import annotations

import argparse
import contextlib
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from everymask.backbones.foreign import TRANSLATIONS, Tensors
from everymask.backbones.names import timm_name
from everymask.backbones.pyramid import Backbone, create
from everymask.errors import InputError

WRAPPERS = ("state_dict", "model", "model_state_dict", "state_dict_ema", "model_ema", "teacher")
"""Where training programs put the tensors of a network in their files."""

PREFIXES = ("module.", "_orig_mod.", "model.", "student.", "teacher.")
"""Put by training programs before the name of every tensor."""

PARTS = ("backbone.", "encoder.", "body.")
"""Put before the tensors of the backbone in files of larger models, whose other tensors are left out."""

LISTED = 30
"""Names that a message gives of each kind; `WeightsError` has all of them."""


class WeightsError(InputError):
    """Tensors that do not fit a network.

    Attributes:
        missing: Names of the network that the file has not.
        unexpected: Names of the file that the network has not.
        misshapen: Names of both whose shapes differ.
    """

    def __init__(
        self, message: str, missing: Sequence[str], unexpected: Sequence[str], misshapen: Sequence[str]
    ) -> None:
        super().__init__(message)
        self.missing, self.unexpected, self.misshapen = tuple(missing), tuple(unexpected), tuple(misshapen)


def load_backbone(backbone: Backbone, source: str | Path) -> None:
    """Fills a backbone with weights.

    Args:
        backbone: Changed in place. For other than three input channels, weights of three are adapted: summed for one
            channel, else repeated and scaled by 3 / C (``timm.models.adapt_input_conv``).
        source: ``"pretrained"`` for those that timm publishes for the network (downloaded once), or a file:
            safetensors, or a state dict saved by torch, of timm, torchvision (VGG, ResNet, ConvNeXt, Swin, ViT), the
            ``efficientnet-pytorch`` packages, or an official program that timm can read. Its classifier is left out.

    Raises:
        InputError: They cannot be fetched or read.
        WeightsError: They do not fit; missing and unexpected tensors are listed.
    """
    with torch.device("meta"):
        # Some networks of timm are made without a classifier, which files of others have nevertheless.
        whole, _ = create(backbone.name, backbone.body.in_chans, num_classes=1000)
    state = _published(backbone.name) if str(source) == "pretrained" else read_state(Path(source))
    _load(backbone.body, whole, state, f"{source} does not fit {backbone.name}")


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, taken out of what training programs wrap them in (``state_dict``, ``model`` ...).

    Raises:
        InputError: It cannot be read, or holds more than tensors (such a file could run programs).
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist; name a file of weights (.safetensors, .pth), or say pretrained")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            # Many programs store their command line beside the weights, which is harmless.
            with torch.serialization.safe_globals([argparse.Namespace]):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the libraries make of a broken or foreign file
        reason = textwrap.shorten(str(error), 160, placeholder=" ...")
        raise InputError(f"{path} cannot be read as weights: {reason}; expected a file of tensors only") from error
    while isinstance(content, Mapping):
        inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    tensors = {
        str(name): value
        for name, value in (content.items() if isinstance(content, Mapping) else ())
        if isinstance(value, Tensor)
    }
    if not tensors:
        raise InputError(f"{path} holds no tensors by name; expected the state dict of a network")
    return tensors


def _published(name: str) -> dict[str, Tensor]:
    """The weights that timm publishes for a network.

    Raises:
        InputError: There are none, or they cannot be downloaded.
    """
    import timm
    from timm.models import is_model_pretrained

    known = timm_name(name)
    if not is_model_pretrained(known):
        raise InputError(f"timm has no published weights for the backbone {name}; give a file instead")
    try:
        with _no_waiting():
            state: dict[str, Tensor] = timm.create_model(known, pretrained=True).state_dict()
    except Exception as error:  # of the hub's client, of http, of the disk ...
        reason = textwrap.shorten(str(error), 160, placeholder=" ...")
        raise InputError(
            f"the published weights of {name} cannot be downloaded ({type(error).__name__}: {reason}); connect to the "
            "internet, or give a file by --backbone-weights FILE"
        ) from error
    return state


@contextlib.contextmanager
def _no_waiting() -> Iterator[None]:
    """Without a connection to the hub only what it has left on the disk is asked for.

    Its client would try for most of a minute, and tell about each attempt.
    """
    from huggingface_hub import constants, get_session

    before = constants.HF_HUB_OFFLINE
    if not before:
        try:
            get_session().head(constants.ENDPOINT, timeout=10)
        except Exception:  # noqa: BLE001 (of httpx or requests, as its version has it: there is no connection)
            constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _load(network: nn.Module, whole: nn.Module, state: Tensors, problem: str) -> None:
    """Fills a network with the tensors of a file in whatever layout fits.

    Args:
        network: What to fill.
        whole: The same with its classifier and all stages, whose tensors the file may have besides.
        state: Of the file.
        problem: Begins the message if none fits.

    Raises:
        WeightsError: No layout fits.
    """
    own, ignored = network.state_dict(), whole.state_dict().keys()
    attempts = []
    for candidate in _layouts(state, network, whole):
        tensors = _adapted(candidate, own, whole)
        # Files from before 2018 do not count the batches.
        missing = [name for name in own if name not in tensors and not name.endswith("num_batches_tracked")]
        unexpected = [name for name in tensors if name not in own and name not in ignored]
        misshapen = [name for name in own if name in tensors and own[name].shape != tensors[name].shape]
        if not (missing or unexpected or misshapen):
            network.load_state_dict({name: tensors[name] for name in own if name in tensors}, strict=False)
            return
        attempts.append((missing, unexpected, misshapen, tensors))
    missing, unexpected, misshapen, tensors = min(attempts, key=lambda each: sum(map(len, each[:3])))
    shapes = [f"{name} {tuple(tensors[name].shape)} for {tuple(own[name].shape)}" for name in misshapen]
    kinds = {"missing": missing, "unexpected": unexpected, "of other shape": shapes}
    parts = [f"{len(names)} {kind}: {_listed(names)}" for kind, names in kinds.items() if names]
    raise WeightsError(f"{problem}; {'; '.join(parts)}", missing, unexpected, misshapen)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _layouts(state: Tensors, network: nn.Module, whole: nn.Module) -> Iterator[Tensors]:
    """The tensors as they are, and as each known layout would call them, with and without prefixes."""
    names = whole.state_dict().keys()
    for plain in _without_prefixes(state):
        yield plain
        translated = [found for each in TRANSLATIONS if (found := each(plain, names)) is not None]
        yield from translated
        # The network has the shapes that position embeddings must be brought to, but stages may lack.
        for each in (plain, *translated):
            for model in (network, whole):
                if (found := _timm_translation(each, model)) is not None:
                    yield found


def _without_prefixes(state: Tensors) -> Iterator[Tensors]:
    """The tensors by their names, and by what is left of these without what larger models put before them."""
    yield state
    for prefix in (*PREFIXES, *PARTS):
        inner = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        if inner and (prefix in PARTS or len(inner) == len(state)):
            yield from _without_prefixes(inner)


def _timm_translation(state: Tensors, model: nn.Module) -> Tensors | None:
    """The tensors as timm's own reader of official files calls and shapes them, or None if it cannot."""
    translate = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if translate is None:
        return None
    try:
        return translate(dict(state), model)
    except (KeyError, RuntimeError, ValueError, AttributeError, AssertionError, IndexError, TypeError):
        return None  # it is made for files of this network and looks for their tensors


def _adapted(state: Tensors, own: Tensors, whole: nn.Module) -> dict[str, Tensor]:
    """With the weights of the first convolution for as many channels as the network takes."""
    from timm.models import adapt_input_conv

    tensors = dict(state)
    first: Any = whole.pretrained_cfg.get("first_conv") or ()  # type: ignore[operator]
    for layer in [first] if isinstance(first, str) else first:
        name = f"{layer}.weight"
        if name in tensors and name in own and tensors[name].ndim == own[name].ndim == 4:
            given, wanted = tensors[name].shape[1], own[name].shape[1]
            if given == 3 and wanted != 3:
                tensors[name] = adapt_input_conv(wanted, tensors[name])
    return tensors
