"""DETR: a transformer that turns an image into a set of objects, without anchors and without suppression.

Carion, Massa, Synnaeve, Usunier, Kirillov, Zagoruyko, End-to-End Object Detection with Transformers, ECCV 2020;
official program https://github.com/facebookresearch/detr (Apache-2.0).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from everymask.backbones.pyramid import Backbone
from everymask.errors import unknown_name
from everymask.layers.processes import mean_count
from everymask.layers.set_matching import Costs, Matching, centres, corners, match_sets
from everymask.layers.transformer import Decoder, Encoder, initialise_transformer, sine_positions
from everymask.losses.forms import check_option
from everymask.methods.detection.common import BoxMethod, true_boxes
from everymask.methods.recipe import Recipe
from everymask.ops.boxes import generalized_box_iou
from everymask.types import Segments

Norm = Literal["batch", "fixed"]

COSTS = Costs(classes=1.0, boxes=5.0, overlap=2.0)
"""Of the matching, and the weights of the terms of the loss (appendix A.4 of the paper)."""


class Decoded(NamedTuple):
    """What the transformer makes of a batch of images."""

    maps: list[Tensor]
    """Of the backbone, finest first."""
    projected: Tensor
    """(B, E, h, w) the coarsest map in the width of the transformer."""
    memory: Tensor
    """(B, h * w, E) after the encoder."""
    states: Tensor
    """(L, B, Q, E) the objects after the last layer of the decoder (L = 1), or after each."""
    mask: Tensor | None
    """(B, 1, 1, h * w) bool, false for features of padding; None where there are none."""


class DETR(BoxMethod):
    """Boxes by DETR, as in the official program and in `transformers`, whose weights load.

    Each of a fixed number of learnt queries says which object it sees, if any; more objects than queries cannot be
    found in an image. The network says boxes in shares of its input, so it matters what it was trained with: crops
    here, whose padding, if any, is part of them; images of any size without padding in the published networks, which
    are to be loaded with ``any_size=True, shorter_side=800, longer_side=1333``.

    Args:
        classes: Number of categories K. Class k is row k of the official heads, which are numbered by the ids of COCO
            and have rows for ids that nothing has: 91 for boxes.
        channels: Input channels C.
        backbone: Any network of timm with a stride of 32, such as ``resnet50``.
        width: Channels E of the transformer, a multiple of 4 and of `heads`.
        heads: Of each attention.
        hidden: Width of the feed-forward networks.
        encoder_layers: Layers over the features.
        decoder_layers: Layers over the objects.
        queries: Objects of an image at most, Q.
        dilation: Dilate the last stage of the backbone instead of halving the resolution (DC5 of the paper): better for
            small objects, at about twice the time.
        pre_norm: Normalise before instead of behind each part of a layer, as the official option ``--pre_norm``.
        norm: ``fixed`` keeps the statistics of the backbone's batch normalisation, those of its weights, and in
            training the weights of its stem and first stage, too, unless the recipe's `freeze` says otherwise;
            ``batch`` lets them follow the data, which a backbone without weights needs.
        dropout: Share of attention weights and activations that are dropped in training.
        no_object: Weight of "no object" in the loss of the classes, against the many queries that see none.
        any_size: Take images as they are instead of padding them to multiples of the backbone's stride; for
            convolutional backbones.
        shorter_side: Pixels to which the shorter side of images is brought, 800 in the published networks; 0 leaves
            images as they are.
        longer_side: Pixels that the longer side must not exceed then; 1333 in the published networks.
    """

    logit_layers: ClassVar[tuple[str, ...]] = ("class_head",)
    strides: ClassVar[tuple[int, ...]] = (32,)
    """Of the maps that the backbone gives, coarsest last."""

    def __init__(
        self,
        classes: int = 1,
        channels: int = 3,
        backbone: str = "resnet50",
        width: int = 256,
        heads: int = 8,
        hidden: int = 2048,
        encoder_layers: int = 6,
        decoder_layers: int = 6,
        queries: int = 100,
        dilation: bool = False,
        pre_norm: bool = False,
        norm: Norm = "fixed",
        dropout: float = 0.1,
        no_object: float = 0.1,
        any_size: bool = False,
        shorter_side: int = 0,
        longer_side: int = 0,
    ) -> None:
        super().__init__()
        if norm not in get_args(Norm):
            raise unknown_name("norm", norm, get_args(Norm))
        counts = {"classes": classes, "hidden": hidden, "decoder_layers": decoder_layers, "queries": queries}
        for name, count in counts.items():
            check_option(count >= 1, name, count, "1 or more")
        check_option(encoder_layers >= 0, "encoder_layers", encoder_layers, "0 or more")
        check_option(width >= 4 and width % 4 == 0, "width", width, "a multiple of 4, for the sine positions")
        check_option(0 <= dropout < 1, "dropout", dropout, "a share from 0 to below 1")
        check_option(no_object >= 0, "no_object", no_object, "0 or more")
        self.resize_to(shorter_side, longer_side)
        self.classes, self.channels, self.width, self.no_object = classes, channels, width, no_object
        self.thresholds = {"score": 0.05}
        self.fixed_statistics = norm == "fixed"
        self.backbone = Backbone(backbone, channels, self.strides, output_stride=16 if dilation else 32)
        self.stride = 1 if any_size else self.backbone.stride
        self.projection = nn.Conv2d(self.backbone.widths[-1], width, 1)
        self.encoder = Encoder(encoder_layers, width, heads, hidden, dropout, pre_norm)
        self.decoder = Decoder(decoder_layers, width, heads, hidden, dropout, pre_norm)
        self.queries = nn.Embedding(queries, width)
        self.class_head = nn.Linear(width, classes + 1)
        self.box_head = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4)
        )
        initialise_transformer(self.encoder)
        initialise_transformer(self.decoder)

    @classmethod
    def recipe(cls) -> Recipe:
        """As in the paper (sec. 4) and the official program: AdamW with 1e-4, a tenth of it for the backbone, long.

        The stem and the first stage of the backbone keep their weights.
        """
        return BoxMethod.recipe().with_options(
            epochs=300, learning_rate=1e-4, backbone_rate=0.1, freeze=2, weight_decay=1e-4, clip=0.1
        )

    @classmethod
    def recipe_for(cls, **options: Any) -> Recipe:
        """A backbone without weights, for which `norm` is ``batch``, learns as a whole."""
        recipe = super().recipe_for(**options)
        return recipe if options.get("norm", "fixed") == "fixed" else recipe.with_options(freeze=0)

    def forward(self, images: Tensor, sizes: Tensor | None = None) -> dict[str, Tensor]:
        """What each query sees in images (B, C, H, W).

        Args:
            images: H and W are multiples of `stride`.
            sizes: (B, 2) int64 height and width of each image without the padding at its bottom and right, for batches
                of several sizes; features of padding alone are then not looked at. Without it, all is image.

        Returns:
            ``logits`` (B, Q, K + 1), "no object" last, and ``boxes`` (B, Q, 4) x0, y0, x1, y1 in pixels.
        """
        decoded = self.transform(images, sizes)
        logits, shares = (values[-1] for values in self.predictions(decoded.states))
        # Boxes are in shares of the image without its padding. No tensor is made of a size, which an export would fix.
        height, width = images.shape[-2:] if sizes is None else sizes.to(logits)[..., None].unbind(1)
        x, y, wide, high = shares.unbind(-1)
        boxes = corners(torch.stack([x * width, y * height, wide * width, high * height], dim=-1))
        return {"logits": logits, "boxes": boxes} | self.of_objects(decoded, logits)

    def transform(self, images: Tensor, sizes: Tensor | None = None, every_layer: bool = False) -> Decoded:
        """Features and objects of images; arguments as `forward`, and whether to give the objects after every layer."""
        maps = self.backbone(images)
        projected = self.projection(maps[-1])
        height, width = projected.shape[-2:]
        valid = mask = None
        if sizes is not None:
            # A feature counts if its first pixel does.
            rows = self._first_pixels(height, images, -2) < sizes[:, :1]
            columns = self._first_pixels(width, images, -1) < sizes[:, 1:]
            valid = torch.stack([rows.sum(1), columns.sum(1)], dim=1)
            mask = (rows[:, :, None] & columns[:, None]).flatten(1)[:, None, None]
        positions = sine_positions(height, width, self.width, images.device, valid)
        memory = self.encoder(projected.flatten(2).transpose(1, 2), positions, mask)
        states = self.decoder(self.queries.weight, memory, positions, mask, every_layer)
        return Decoded(maps, projected, memory, states, mask)

    def _first_pixels(self, features: int, images: Tensor, axis: int) -> Tensor:
        """(1, features) the first pixel of each row or column of features."""
        return (torch.arange(features, device=images.device) * images.shape[axis] // features)[None]

    def predictions(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (..., K + 1) of objects (..., E), and centre and sides (..., 4) in shares of the image."""
        return self.class_head(states).float(), self.box_head(states).float().sigmoid()

    def of_objects(self, decoded: Decoded, logits: Tensor) -> dict[str, Tensor]:
        """Further outputs of the objects, whose logits (B, Q, K + 1) are known."""
        return {}

    def training_loss(self, images: Tensor, targets: Mapping[str, Any]) -> dict[str, Tensor]:
        """The terms of `loss` for the objects after every layer of the decoder."""
        decoded = self.transform(images, every_layer=True)
        logits, shares = self.predictions(decoded.states)
        outputs = {"logits": logits, "shares": shares, "images": images, "states": decoded.states}
        outputs |= {"projected": decoded.projected, "memory": decoded.memory}
        return self.loss(outputs | {f"map{number}": each for number, each in enumerate(decoded.maps)}, targets)

    def loss(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Any]) -> dict[str, Tensor]:
        """The set loss (sec. 3.1 and eq. 2 of the paper): each object is learnt by the query that it is matched with.

        Sums over the objects are divided by their number in the batch, at least 1, which is averaged over the processes
        of a distributed training. Crowd regions are left out.

        Args:
            outputs: ``logits`` (L, B, Q, K + 1) and ``shares`` (L, B, Q, 4), centre and sides in shares of the image,
                after each layer of the decoder, and the ``images``, of which only the size counts; for masks all that
                `training_loss` gives.
            targets: For each image ``boxes`` (N, 4), ``classes`` (N,) and ``crowd`` (N,), and what `targets` gives
                besides.

        Returns:
            ``classes`` (cross-entropy), ``boxes`` (L1 distance) and ``overlap`` (generalised IoU) of the last layer;
            the sums over the layers before it as ``auxiliary_classes``, ``auxiliary_boxes`` and ``auxiliary_overlap``.
        """
        logits, found = outputs["logits"].float(), outputs["shares"].float()
        height, width = outputs["images"].shape[-2:]
        boxes, classes, crowd = true_boxes(targets)
        single = [~each for each in crowd]
        pixels = found.new_tensor([width, height, width, height])
        true = [centres(each[kept]) / pixels for each, kept in zip(boxes, single, strict=True)]
        true_classes = [each[kept] for each, kept in zip(classes, single, strict=True)]
        matching = match_sets(logits, found, true_classes, true, COSTS)
        number = mean_count(sum(len(each) for each in true), found.device)

        layer = torch.arange(len(logits), device=logits.device)[:, None]
        place = (layer, matching.image[None], matching.prediction)
        wanted = torch.full(logits.shape[:-1], self.classes, device=logits.device)
        wanted[place] = torch.cat(true_classes)[matching.object]
        weight = torch.ones(self.classes + 1, device=logits.device)
        weight[-1] = self.no_object
        entropies = [
            functional.cross_entropy(each.flatten(0, 1), index.flatten(), weight)
            for each, index in zip(logits, wanted, strict=True)
        ]
        predicted, true_of_pair = found[place], torch.cat(true)[matching.object]
        overlap = generalized_box_iou(corners(predicted), corners(true_of_pair))
        terms = {
            "classes": COSTS.classes * torch.stack(entropies),
            "boxes": COSTS.boxes * (predicted - true_of_pair).abs().sum((1, 2)) / number,
            "overlap": COSTS.overlap * (1 - overlap).sum(1) / number,
        }
        last = {name: values[-1] for name, values in terms.items()}
        if len(logits) > 1:
            last |= {f"auxiliary_{name}": values[:-1].sum() for name, values in terms.items()}
        return last | self.loss_of_pairs(outputs, matching, number, single, targets)

    def loss_of_pairs(
        self,
        outputs: Mapping[str, Tensor],
        matching: Matching,
        number: float,
        single: Sequence[Tensor],
        targets: Mapping[str, Any],
    ) -> dict[str, Tensor]:
        """Further terms of the pairs.

        Args:
            outputs: As in `loss`.
            matching: Pairs of queries and objects.
            number: Of objects in the batch, at least 1, averaged over the processes.
            single: (N,) bool for each image, the objects that are matched.
            targets: As in `loss`.
        """
        return {}

    def decode(self, outputs: Mapping[str, Tensor], sizes: Sequence[tuple[int, ...]]) -> list[Segments]:
        """The most probable class of each query, above the threshold ``score``; the official evaluation has it at 0.

        Args:
            outputs: ``logits`` (B, Q, K + 1) and ``boxes`` (B, Q, 4), see `forward`.
            sizes: (H, W) of each image before padding.
        """
        score, classes = outputs["logits"].float().softmax(-1)[..., :-1].max(-1)
        return super().decode({"boxes": outputs["boxes"], "scores": score, "classes": classes}, sizes)

    def foreign(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of the official program or of `transformers` (old and new names) under the names of this method."""
        if "class_head.weight" in state:
            return dict(state)
        renamed: dict[str, Tensor] = {}
        for name, value in state.items():
            for pattern, replacement in _FOREIGN:
                name = pattern.sub(replacement, name)
            if match := _PACKED.match(name):
                stem, kind = match.groups()
                parts = zip(("query", "key", "value"), value.chunk(3), strict=True)
                renamed |= {f"{stem}.{part}.{kind}": tensor for part, tensor in parts}
            else:
                renamed[name] = value
        return self.batch_counters() | renamed


_PACKED = re.compile(r"^(.*)\.in_proj_(weight|bias)$")
"""Projections of queries, keys and values in one matrix, as torch's attention has them."""

_FOREIGN = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^detr\.", ""),
        (r"^(model|transformer)\.", ""),
        (r"^backbone\.(0\.body|conv_encoder\.model|model)\.", "backbone.body."),
        (r"^(input_proj|input_projection)\.", "projection."),
        (r"^(query_embed|query_position_embeddings)\.", "queries."),
        (r"^(class_embed|class_labels_classifier)\.", "class_head."),
        (r"^(bbox_embed|bbox_predictor)\.layers\.0\.", "box_head.0."),
        (r"^(bbox_embed|bbox_predictor)\.layers\.1\.", "box_head.2."),
        (r"^(bbox_embed|bbox_predictor)\.layers\.2\.", "box_head.4."),
        (r"^decoder\.layernorm\.", "decoder.norm."),
        (r"^((?:en|de)coder\.layers\.\d+)\.(norm1|self_attn_layer_norm)\.", r"\1.attention_norm."),
        (r"^(decoder\.layers\.\d+)\.(norm2|encoder_attn_layer_norm)\.", r"\1.cross_norm."),
        (r"^((?:en|de)coder\.layers\.\d+)\.(norm2|norm3|final_layer_norm)\.", r"\1.final_norm."),
        (r"^((?:en|de)coder\.layers\.\d+)\.self_attn\.", r"\1.attention."),
        (r"^(decoder\.layers\.\d+)\.(multihead_attn|encoder_attn)\.", r"\1.cross_attention."),
        (r"^((?:en|de)coder\.layers\.\d+)\.(linear1|fc1|mlp\.fc1)\.", r"\1.feed_forward.0."),
        (r"^((?:en|de)coder\.layers\.\d+)\.(linear2|fc2|mlp\.fc2)\.", r"\1.feed_forward.3."),
        (r"(\.(?:cross_)?attention)\.q_proj\.", r"\1.query."),
        (r"(\.(?:cross_)?attention)\.k_proj\.", r"\1.key."),
        (r"(\.(?:cross_)?attention)\.v_proj\.", r"\1.value."),
        (r"(\.(?:cross_)?attention)\.(?:out|o)_proj\.", r"\1.output."),
        # ResNets of transformers itself count stages and convolutions from 0.
        *(
            (rf"^backbone\.body\.encoder\.stages\.{stage}\.layers\.(\d+)\.", rf"backbone.body.layer{stage + 1}.\1.")
            for stage in range(4)
        ),
        *(
            (rf"^(backbone\.body\.layer\d\.\d+)\.layer\.{number}\.{theirs}\.", rf"\1.{ours}{number + 1}.")
            for number in range(3)
            for theirs, ours in (("convolution", "conv"), ("normalization", "bn"))
        ),
        (r"^(backbone\.body\.layer\d\.\d+)\.shortcut\.convolution\.", r"\1.downsample.0."),
        (r"^(backbone\.body\.layer\d\.\d+)\.shortcut\.normalization\.", r"\1.downsample.1."),
        (r"^backbone\.body\.embedder\.embedder\.convolution\.", "backbone.body.conv1."),
        (r"^backbone\.body\.embedder\.embedder\.normalization\.", "backbone.body.bn1."),
    )
)
