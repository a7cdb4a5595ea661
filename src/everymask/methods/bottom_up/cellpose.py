"""Cellpose: objects as the pixels whose flows end at the same place.

Stringer et al., Cellpose: a generalist algorithm for cellular segmentation, Nature Methods 2021; Pachitariu et al.,
Cellpose-SAM, bioRxiv 2025. Program: https://github.com/MouseLand/cellpose (BSD-3). Each pixel predicts whether it
belongs to an object, and a vector that leads it to the object's middle; pixels follow the vectors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from everymask.data.preprocessing import Preprocessing
from everymask.errors import InputError, unknown_name
from everymask.layers.cellpose_unet import CellposeUNet, pre_activated, style_of
from everymask.layers.cellpose_vit import apply_in_windows, cellpose_encoder
from everymask.layers.sam_encoder import SamEncoder
from everymask.layers.unet import initialise
from everymask.layers.unet_decoder import UNetDecoder
from everymask.losses import binary_cross_entropy, cross_entropy
from everymask.methods.base import Method
from everymask.methods.bottom_up.cellpose_size import SizeModel, fit_size_model, object_diameter
from everymask.methods.bottom_up.cellpose_weights import from_cellpose
from everymask.methods.bottom_up.objects import learnt_ids, on_accelerator, turned_back
from everymask.methods.preparation import at_stride, decoder_pyramid
from everymask.methods.recipe import Recipe
from everymask.types import LabelMap, Segments, Task
from everymask.types.geometry import VOID

NETWORKS = ("residual", "sam")
PATCH = 8
"""Side in pixels of the tokens of the SAM network."""


class Cellpose(Method):
    """Flows to the middle of each object.

    Volumes are segmented by a network for images: it is applied to the planes of the three directions, whose results
    are joined to one flow with three components (`everymask.ops.three_views`). It is trained with planes.

    The default network is that of Cellpose 1 to 3, whose published weights take 2 channels (cytoplasm, nuclei) and
    objects of 30 pixels (17 for nuclei). ``network="sam"`` is that of Cellpose-SAM. Weights of both load by
    ``--weights``, and for the latter those of Segment Anything to start from.

    Args:
        classes: Number of categories K. With more than one a class head is added.
        channels: Input channels C; the published weights of Cellpose 1 to 3 need 2, those of Cellpose-SAM 3.
        network: ``residual`` for the residual U-Net, ``sam`` for the encoder of Segment Anything.
        base: Features of the first level of the residual U-Net.
        depth: Its poolings.
        style: Whether its decoder is told the style of the image. Since the style is that of a whole tile, neighbouring
            tiles of a large image may differ a little more than without.
        backbone: Any network of timm as the encoder of a plain U-Net, such as ``resnet34``, instead of `network`.
        encoder: Width, blocks and heads of the SAM network; those of ViT-L are published.
        window: Side in pixels of what the SAM network sees at once, a multiple of 32. Larger images are cut into
            overlapping windows.
        diameter: Mean diameter in pixels of the objects that the network knows, which the estimate of the magnification
            needs; 0 until `fit_size`, or published weights, tell it.
        min_size: Objects of fewer pixels are dropped.
        max_fraction: Objects that cover more of the image, or of a tile of it, are dropped; the official program has
            0.4, which loses objects that fill a crop.
    """

    tasks: ClassVar[frozenset[Task]] = frozenset({Task.INSTANCE})
    metric: ClassVar[tuple[str, str]] = ("matching", "mean_accuracy")
    stretched: ClassVar[bool] = True
    tunable: ClassVar[Mapping[str, tuple[float, ...]]] = {"foreground": (-3.0, 3.0), "flow_error": (0.2, 0.4, 0.8)}
    logit_layers: ClassVar[tuple[str, ...]] = ("category",)
    three_views: ClassVar[bool] = True
    """Volumes may be predicted plane by plane in all three directions (see `everymask.ops.three_views`)."""

    body: CellposeUNet | SamEncoder | UNetDecoder
    diameter: Tensor
    usual_diameter: Tensor
    size_weights: Tensor
    size_style: Tensor
    size_offset: Tensor

    def __init__(
        self,
        classes: int = 1,
        channels: int = 3,
        network: Literal["residual", "sam"] = "residual",
        base: int = 32,
        depth: int = 3,
        style: bool = True,
        backbone: str = "",
        encoder: tuple[int, int, int] = (1024, 24, 16),
        window: int = 256,
        diameter: float = 0.0,
        min_size: int = 15,
        max_fraction: float = 1.0,
    ) -> None:
        super().__init__()
        _check(network, backbone, window, diameter, max_fraction)
        self.classes, self.channels = classes, channels
        self.min_size, self.max_fraction, self.window = min_size, max_fraction, window
        self.kind = "backbone" if backbone else network
        if backbone:
            self.backbone = decoder_pyramid(backbone, channels)
            self.body = UNetDecoder(self.backbone.widths)
            self.stride, self.context = self.backbone.stride, 4 * self.backbone.stride
            styles = self.backbone.widths[-1]
        elif network == "sam":
            self.body = cellpose_encoder(*encoder, image=window, patch=PATCH, channels=channels)
            self.stride, self.context = PATCH, window // 4
            styles = self.body.width
        else:
            self.body = CellposeUNet(channels, base, depth, style)
            self.stride, self.context = 2**depth, self.body.radius
            styles = self.body.style_width
        self.readout = self._head(self.body.width, 3)
        self.category = self._head(self.body.width, classes + 1) if classes > 1 else None
        if network != "sam":
            for part in (self.body, self.readout, self.category or nn.Identity()):
                initialise(part)
        self.thresholds = {"foreground": 0.0, "flow_error": 0.4}
        self.register_buffer("diameter", torch.tensor([float(diameter)]))
        self.register_buffer("usual_diameter", torch.tensor([float(diameter)]))
        self.register_buffer("size_weights", torch.zeros(styles))
        self.register_buffer("size_style", torch.zeros(styles))
        self.register_buffer("size_offset", torch.zeros(1))

    def _head(self, inputs: int, outputs: int) -> nn.Module:
        """The layer from features to outputs; that of the SAM network gives all pixels of a token at once."""
        if self.kind == "sam":
            return nn.Conv2d(inputs, outputs * PATCH**2, 1)
        return (
            nn.Conv2d(inputs, outputs, 3, padding=1) if self.kind == "backbone" else pre_activated(inputs, outputs, 1)
        )

    @classmethod
    def recipe(cls) -> Recipe:
        """The paper's augmentation, with AdamW and a cosine schedule.

        The official program trains for 2000 epochs of crops of 224 pixels, batch 8, with SGD at 0.2 (version 3: AdamW
        at .005), weight decay 1e-5, 10 epochs of warm-up, and halves the rate every 10 of the last 100 epochs.
        """
        return Recipe(
            epochs=100, batch_size=8, crop=256, learning_rate=1e-3, rotate=180, scale=(0.75, 1.25), contrast=(0.6, 1.6)
        )

    @classmethod
    def recipe_for(cls, **options: Any) -> Recipe:
        """For the SAM network the official rate for weights that exist already, and its weight decay."""
        recipe = cls.recipe()
        if options.get("network") != "sam" or options.get("backbone"):
            return recipe
        return recipe.with_options(learning_rate=1e-5, weight_decay=0.1, batch_size=2)

    @classmethod
    def preprocessing(cls, channels: int) -> Preprocessing:
        """Percentiles 1 and 99 of each channel become 0 and 1; of two channels, the second one may be missing."""
        missing: Literal["repeat", "empty"] = "empty" if channels == 2 else "repeat"
        return Preprocessing(channels=channels, high=99.0, per_channel=True, missing=missing)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Outputs of images (B, C, H, W).

        Returns:
            ``flow`` (B, 2, H, W), down and right, of length 5 where it is certain; ``cell`` (B, 1, H, W) logits; and
            with several categories ``category`` (B, K + 1, H, W) logits, background first.
        """
        if self.kind == "sam":
            maps = apply_in_windows(self._window_maps, images, self.window)
        elif self.kind == "backbone":
            maps = at_stride(self._maps(self.body(self.backbone(images))), self.backbone, images)
        else:
            maps = self._maps(self.body(images)[0])
        outputs = {"flow": maps[:, :2], "cell": maps[:, 2:3]}
        if self.category is not None:
            outputs["category"] = maps[:, 3:]
        return outputs

    def _maps(self, features: Tensor) -> Tensor:
        """Flow, cell logit and class logits of features."""
        maps: Tensor = self.readout(features)
        return maps if self.category is None else torch.cat([maps, self.category(features)], 1)

    def _window_maps(self, windows: Tensor) -> Tensor:
        return functional.pixel_shuffle(self._maps(self.body(windows)), PATCH)

    def targets(self, segments: Segments) -> dict[str, Tensor]:
        """Flow of length 5, whether there is an object, validity and (with several categories) classes."""
        from everymask.ops.flow_targets import FLOW_SCALE, flow_targets

        ids = learnt_ids(segments)
        targets = {
            "flow": torch.from_numpy(FLOW_SCALE * flow_targets(ids)),
            "cell": torch.from_numpy((ids[None] > 0).astype(np.float32)),
            "valid": torch.from_numpy((ids[None] != VOID).astype(np.float32)),
        }
        if self.category is not None:
            table = np.concatenate([[VOID, 0], segments.category + 1])
            targets["category"] = torch.from_numpy(table[ids + 1])
        return targets

    def loss(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Half the squared error of the flow plus cross-entropy (paper, Methods; official `train._loss_fn_seg`)."""
        valid = targets["valid"]
        squares = (outputs["flow"].float() - targets["flow"]).square().mean(1, keepdim=True)
        terms = {
            "flow": 0.5 * (squares * valid).sum() / valid.sum().clamp(min=1),
            "cell": binary_cross_entropy(outputs["cell"], targets["cell"], valid),
        }
        if "category" in outputs:
            terms["category"] = cross_entropy(outputs["category"], targets["category"])
        return terms

    def decode(self, outputs: Mapping[str, Tensor], sizes: Sequence[tuple[int, ...]]) -> list[Segments]:
        """Pixels that end at the same place are an object; those whose flows differ from what it would have go.

        An object's score is the mean probability of its pixels to belong to an object. In volumes no object is dropped
        for its flows, as in the official program.
        """
        from everymask.ops.watershed import mean_inside

        found = []
        for i, size in enumerate(sizes):
            window = (..., *(slice(length) for length in size))
            flow, logit = outputs["flow"][i][window].float(), outputs["cell"][i, 0][window].float()
            ids = self._labels(flow, logit)
            count = int(ids.max(initial=0))
            # Pixels of filled holes may have any logit, not a number among them.
            probability = logit.sigmoid().nan_to_num(0.0).cpu().numpy()
            score = mean_inside(ids, count, probability)
            category = np.zeros(count, np.int64)
            if "category" in outputs and count:
                chances = outputs["category"][i, 1:][window].float().log_softmax(0).cpu().numpy()
                votes = [np.bincount(ids.ravel(), chance.ravel(), count + 1)[1:] for chance in chances]
                category = np.argmax(votes, axis=0).astype(np.int64)
            found.append(Segments(size, category, LabelMap(ids), score=score.clip(0, 1)))
        return found

    def _labels(self, flow: Tensor, logit: Tensor) -> NDArray[np.int32]:
        """Ids (...) of the objects of a flow (axes, ...) and a logit (...), found where these are."""
        options: dict[str, Any] = {
            "foreground_threshold": self.thresholds["foreground"],
            "flow_threshold": self.thresholds["flow_error"],
            "min_size": self.min_size,
            "max_fraction": self.max_fraction,
        }
        if on_accelerator(flow):
            from everymask.ops import flow_torch

            return flow_torch.flow_labels(flow, logit, **options)
        from everymask.ops import flow_masks

        return flow_masks.flow_labels(flow.cpu().numpy(), logit.cpu().numpy(), **options, parallel=True)

    def undo_dihedral(self, outputs: Mapping[str, Tensor], flip: bool, turns: int) -> dict[str, Tensor]:
        """Turns the maps back, and the vectors with them."""
        undone = super().undo_dihedral(outputs, flip, turns)
        return undone | {"flow": turned_back(undone["flow"], flip, turns)}

    @torch.no_grad()
    def styles(self, images: Tensor) -> Tensor:
        """Styles (B, S) of length 1 of images (B, C, H, W): their deepest features, averaged over windows.

        Official program, `core.run_net`: the styles of all windows are averaged and scaled to length 1. Here these are
        at most 16 windows of `window` pixels, evenly spread.
        """
        kept: list[Tensor] = []
        for top in _starts(images.shape[-2], self.window):
            for left in _starts(images.shape[-1], self.window):
                part = images[..., top : top + self.window, left : left + self.window]
                kept.append(self._deepest_style(_padded(part, self.window if self.kind == "sam" else self.stride)))
        return functional.normalize(torch.stack(kept).mean(0), dim=1)

    def _deepest_style(self, images: Tensor) -> Tensor:
        if isinstance(self.body, CellposeUNet):
            return style_of(self.body.encode(images)[-1])
        return style_of(self.backbone(images)[-1] if self.kind == "backbone" else self.body(images))

    @torch.no_grad()
    def complete(self, samples: Iterable[tuple[Tensor, Segments]]) -> None:
        """Fits the size model, see `fit_size`."""
        self.fit_size(samples)

    def fit_size(self, samples: Iterable[tuple[Tensor, Segments]], *, repeats: int = 5, seed: int = 0) -> None:
        """Fits what `estimate_magnification` uses: the mean diameter of the objects, and the size model.

        To be called once the network is trained, in evaluation mode, with images as they were in training.

        Args:
            samples: Images (C, H, W) after preprocessing, on the device of the network, with their truth. Images
                without objects are left out.
            repeats: How often each image is looked at, magnified at random by 0.5 to 2.
            seed: Of the magnifications.
        """
        random = np.random.default_rng(seed)
        styles: list[NDArray[np.float32]] = []
        apparent: list[float] = []
        diameters: list[float] = []
        for image, segments in samples:
            diameter = object_diameter(segments.areas()[~segments.crowd])
            if not diameter:
                continue
            diameters.append(diameter)
            for factor in 2.0 ** random.uniform(-1, 1, repeats):
                scaled, factor = _scaled(image[None], factor, self.stride)
                styles.append(self.styles(scaled)[0].cpu().numpy())
                apparent.append(diameter * factor)
        if not diameters:
            return
        mean = float(np.exp(np.mean(np.log(diameters))))
        self.diameter.fill_(mean)
        self.usual_diameter.fill_(mean)
        self.set_size_model(fit_size_model(np.stack(styles), np.array(apparent), mean))

    def set_size_model(self, model: SizeModel) -> None:
        """Takes over a size model, such as ``SizeModel(A, smean, ymean)`` of one that the official program fitted.

        The official files (``size_*.npy``) are Python pickles, which can run programs when they are read, so they are
        not read here; `numpy` reads the three arrays where the file can be trusted.

        Raises:
            InputError: It is one for styles of another length.
        """
        if model.weights.shape != self.size_weights.shape or model.style.shape != self.size_style.shape:
            raise InputError(
                f"the size model is for styles of {model.weights.size} numbers, the network's have "
                f"{len(self.size_weights)}; fit it with this network"
            )
        self.size_weights.copy_(torch.from_numpy(np.asarray(model.weights, np.float32)))
        self.size_style.copy_(torch.from_numpy(np.asarray(model.style, np.float32)))
        self.size_offset.fill_(float(model.offset))

    @property
    def size_model(self) -> SizeModel | None:
        """The size model; None if none was fitted."""
        weights, style = (each.double().cpu().numpy() for each in (self.size_weights, self.size_style))
        return SizeModel(weights, style, float(self.size_offset)) if weights.any() else None

    @torch.no_grad()
    def estimate_magnification(self, images: Tensor, *, largest: int = 1024) -> float:
        """By how much to enlarge an image, so that its objects have the size that the network knows.

        Official program, `models.SizeModel.eval`: the style tells a diameter; the image is segmented at the
        magnification that follows from it, and the median diameter of the objects that are found is the answer. Without
        a size model, the usual diameter stands for the first guess; without objects, the first guess for the answer.

        Args:
            images: (1, C, H, W) after preprocessing.
            largest: The middle of the image, of at most this many pixels a side when enlarged, is segmented.

        Raises:
            InputError: The network does not know the size of its objects.
        """
        mean, model = float(self.diameter), self.size_model
        if not mean:
            raise InputError(
                "the model does not know how large the objects were that it was trained on, so the magnification "
                "cannot be estimated; give it as a number"
            )
        guess = float(self.usual_diameter)
        if model is not None:
            guess = model.diameter(self.styles(images)[0].cpu().numpy(), mean)
        height, width = images.shape[-2:]
        side = max(1, round(largest * guess / mean))
        top, left = max(0, height - side) // 2, max(0, width - side) // 2
        scaled, factor = _scaled(images[..., top : top + side, left : left + side], mean / guess, self.stride)
        (found,) = self.decode(self(_padded(scaled, self.stride)), [(scaled.shape[-2], scaled.shape[-1])])
        return mean * factor / (object_diameter(found.areas()) or mean)

    def foreign(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of the official programs, and of Segment Anything, under the names of this method.

        Raises:
            InputError: They are of a network that other options make; the options are named.
        """
        return from_cellpose(state, self.state_dict(), self.config)


def _check(network: str, backbone: str, window: int, diameter: float, max_fraction: float) -> None:
    """Raises InputError unless the options make sense; layers check their own."""
    if network not in NETWORKS:
        raise unknown_name("network", network, NETWORKS)
    if backbone and network == "sam":
        raise InputError("a backbone takes the place of the residual network; leave out network or backbone")
    if window < 4 * PATCH or window % (4 * PATCH):
        raise InputError(f"window must be a multiple of {4 * PATCH} pixels, got {window}")
    if not diameter >= 0:
        raise InputError(f"diameter must be 0 (unknown) or more pixels, got {diameter}")
    if not 0 < max_fraction <= 1:
        raise InputError(f"max_fraction must be above 0 and at most 1, got {max_fraction}")


def _starts(length: int, side: int, most: int = 4) -> list[int]:
    """Where windows begin along an axis, evenly spread."""
    count = min(most, -(-length // side))
    return np.linspace(0, max(0, length - side), count).astype(int).tolist()


def _scaled(images: Tensor, factor: float, least: int) -> tuple[Tensor, float]:
    """Images (B, C, H, W) enlarged by a factor, and the factor that it was, since sizes are whole numbers."""
    height, width = images.shape[-2:]
    size = (max(least, round(factor * height)), max(least, round(factor * width)))
    scaled = functional.interpolate(images, size=size, mode="bilinear", antialias=factor < 1)
    return scaled, float(np.sqrt(size[0] * size[1] / (height * width)))


def _padded(images: Tensor, multiple: int) -> Tensor:
    """Images (B, C, H, W), repeated at the bottom and the right to sizes that are multiples of a number."""
    below, right = (-length % multiple for length in images.shape[-2:])
    return functional.pad(images, (0, right, 0, below), mode="replicate")
