"""DETR for panoptic segmentation: a mask for every object that DETR sees, things and stuff alike.

Carion et al., End-to-End Object Detection with Transformers, ECCV 2020, sec. 4.4 and fig. 8.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from everymask.data.store import LearnsFrom
from everymask.layers.set_matching import Matching
from everymask.losses.classification import focal
from everymask.losses.forms import check_option
from everymask.losses.region import dice
from everymask.methods.detection.detr import DETR, Decoded, Norm
from everymask.types import LabelMap, Segments, Task

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ABSENT = -100.0
"""Logit of masks that are not computed."""

_ROWS = 16
"""Masks that are computed at once in prediction: more need more memory and are no faster."""

_LARGEST_SPECK = 4
"""Pixels of a segment that is left out, as in the official program."""


class AttentionMaps(nn.Module):
    """How much each object looks where: attention without values.

    Args:
        width: Channels E.
        heads: Number of maps of an object.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        for layer in (self.query, self.key):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, objects: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        """Maps (B, Q, heads, M) of objects (B, Q, E) over features (B, M, E).

        They sum to 1 over the features and the heads together, as in the official program.

        Args:
            objects: After the decoder.
            memory: After the encoder.
            mask: (B, 1, 1, M) bool, false for padding.
        """
        query = self.query(objects).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key = self.key(memory).unflatten(-1, (self.heads, -1)).permute(0, 2, 3, 1)
        agreement = ((query * query.shape[-1] ** -0.5) @ key).float().transpose(1, 2)
        if mask is not None:
            agreement = agreement.masked_fill(~mask, -torch.inf)
        return agreement.flatten(2).softmax(-1).view_as(agreement)


class _Block(nn.Module):
    """A 3 x 3 convolution, group normalisation and a rectifier."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm = nn.GroupNorm(math.gcd(8, outputs), outputs)

    def forward(self, features: Tensor) -> Tensor:
        """(R, outputs, h, w) of features (R, inputs, h, w)."""
        return self.finish(self.convolution(features))

    def finish(self, convolved: Tensor) -> Tensor:
        """What follows the convolution."""
        return functional.relu(self.norm(convolved), inplace=True)


class MaskHead(nn.Module):
    """Masks at a quarter of the resolution from attention maps, with what finer maps of the backbone know.

    What is the same for all objects of an image is computed once: the part of the first convolution that reads the
    image's features, and the layers that bring the finer maps to the width of the masks. The result is that of the
    official program, which puts copies of the features beside the maps of every object.

    Args:
        width: Channels E of the image's features; those of the masks halve from there.
        heads: Attention maps of an object.
        finer: Channels of the maps of strides 16, 8 and 4.
    """

    def __init__(self, width: int, heads: int, finer: Sequence[int]) -> None:
        super().__init__()
        self.width = width
        widths = [width + heads, width // 2, width // 4, width // 8, width // 16]
        self.first = _Block(widths[0], widths[0])
        self.blocks = nn.ModuleList(_Block(before, after) for before, after in pairwise(widths))
        self.adapters = nn.ModuleList(
            nn.Conv2d(theirs, ours, 1) for theirs, ours in zip(finer, widths[1:-1], strict=True)
        )
        self.output = nn.Conv2d(widths[-1], 1, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.kaiming_uniform_(module.weight, a=1)
                nn.init.zeros_(module.bias)

    def shared(self, features: Tensor, finer: Sequence[Tensor]) -> list[Tensor]:
        """What `forward` needs of the images.

        Args:
            features: (B, E, h, w) before the encoder.
            finer: Maps (B, C, h, w) of strides 16, 8 and 4.
        """
        first = self.first.convolution
        part = functional.conv2d(features, first.weight[:, : self.width], first.bias, padding=1)
        return [part, *(adapt(each) for adapt, each in zip(self.adapters, finer, strict=True))]

    def forward(self, attention: Tensor, shared: Sequence[Tensor], image: Tensor) -> Tensor:
        """Logits (R, h, w) of the masks of R objects.

        Args:
            attention: (R, heads, h, w).
            shared: Of the images.
            image: (R,) which one each object lies in.
        """
        part, *finer = shared
        masks = functional.conv2d(attention, self.first.convolution.weight[:, self.width :], padding=1)
        masks = self.blocks[0](self.first.finish(masks + part[image]))
        for block, each in zip(self.blocks[1:], finer, strict=True):
            masks = block(functional.interpolate(masks, size=each.shape[-2:], mode="nearest") + each[image])
        return self.output(masks)[:, 0].float()


class DETRPanoptic(DETR):
    """Things and stuff by DETR with masks, as in the official program and in `transformers`, whose weights load.

    Args:
        classes: Number of categories K. Class k is row k of the official heads, which are numbered by the ids of COCO
            and have rows for ids that nothing has: 250 for panoptic segmentation.
        channels: Input channels C.
        backbone: Any network of timm with strides 4 to 32, such as ``resnet50``.
        width: Channels E of the transformer, a multiple of 16 and of `heads`.
        heads: Of each attention; `width` and `heads` together a multiple of 8 give the official mask head.
        hidden: Width of the feed-forward networks.
        encoder_layers: Layers over the features.
        decoder_layers: Layers over the objects.
        queries: Segments of an image at most, Q.
        dilation: Dilate the last stage of the backbone instead of halving the resolution (DC5 of the paper).
        pre_norm: Normalise before instead of behind each part of a layer, as the official option ``--pre_norm``.
        norm: ``fixed`` keeps the statistics of the backbone's batch normalisation, those of its weights; ``batch`` lets
            them follow the data, which a backbone without weights needs.
        dropout: Share of attention weights and activations that are dropped in training.
        no_object: Weight of "no object" in the loss of the classes, against the many queries that see none.
        any_size: Take images as they are instead of padding them to multiples of the backbone's stride, as the
            published networks need (see `DETR`); for convolutional backbones.
        shorter_side: Pixels to which the shorter side of images is brought, 800 in the published networks; 0 leaves
            images as they are.
        longer_side: Pixels that the longer side must not exceed then; 1333 in the published networks.
        stuff: Classes 0..K-1 that are no countable things: those of an image are one segment.
        least_score: Queries of lower probability get no mask in prediction, which saves most of the time; 0 for all.
    """

    tasks: ClassVar[frozenset[Task]] = frozenset({Task.DETECTION, Task.INSTANCE, Task.PANOPTIC})
    metric: ClassVar[tuple[str, str]] = ("panoptic", "pq")
    tunable: ClassVar[Mapping[str, tuple[float, ...]]] = {"score": (0.3, 0.95)}
    learns_from: ClassVar[LearnsFrom] = "masks"
    strides: ClassVar[tuple[int, ...]] = (4, 8, 16, 32)

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
        stuff: tuple[int, ...] = (),
        least_score: float = 0.3,
    ) -> None:
        super().__init__(
            classes,
            channels,
            backbone,
            width,
            heads,
            hidden,
            encoder_layers,
            decoder_layers,
            queries,
            dilation,
            pre_norm,
            norm,
            dropout,
            no_object,
            any_size,
            shorter_side,
            longer_side,
        )
        check_option(width % 16 == 0, "width", width, "a multiple of 16, which the mask head divides it by")
        check_option(0 <= least_score <= 1, "least_score", least_score, "a probability from 0 to 1")
        wrong = [each for each in stuff if not 0 <= each < classes]
        check_option(not wrong, "stuff", wrong, f"classes from 0 to {classes - 1}")
        self.stuff, self.least_score = tuple(stuff), least_score
        self.thresholds = {"score": 0.85}
        self.mask_attention = AttentionMaps(width, heads)
        self.mask_head = MaskHead(width, heads, self.backbone.widths[2::-1])

    def of_objects(self, decoded: Decoded, logits: Tensor) -> dict[str, Tensor]:
        """``masks`` (B, Q, h, w) at a quarter of the size: logits of each query's mask, far below 0 for none."""
        batch, queries = logits.shape[:2]
        size = decoded.maps[0].shape[-2:]
        images = torch.arange(batch, device=logits.device)[:, None].expand(-1, queries)
        attention = self._attention(decoded.states[-1], decoded.memory, decoded.projected, decoded.mask)
        shared = self.mask_head.shared(decoded.projected, decoded.maps[2::-1])
        if torch.compiler.is_exporting():  # the number of rows must not hang on the values
            every = self.mask_head(attention.flatten(0, 1), shared, images.flatten())
            return {"masks": every.unflatten(0, (batch, queries))}
        likely = logits.softmax(-1)[..., :-1].amax(-1) >= self.least_score
        masks = logits.new_full((batch, queries, *size), _ABSENT)
        for image, query in zip(images[likely].split(_ROWS), likely.nonzero()[:, 1].split(_ROWS), strict=True):
            masks[image, query] = self.mask_head(attention[image, query], shared, image)
        return {"masks": masks}

    def _attention(self, objects: Tensor, memory: Tensor, projected: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attention maps (B, Q, heads, h, w)."""
        found: Tensor = self.mask_attention(objects, memory, mask)
        return found.unflatten(-1, projected.shape[-2:])

    def loss_of_pairs(
        self,
        outputs: Mapping[str, Tensor],
        matching: Matching,
        number: float,
        single: Sequence[Tensor],
        targets: Mapping[str, Any],
    ) -> dict[str, Tensor]:
        """``masks`` (focal) and ``dice`` of the last layer's pairs (sec. 4.4), at the size of the images.

        Only queries that are matched with an object get a mask, since the others learn nothing from theirs.
        """
        image, query = matching.image, matching.prediction[-1]
        maps = [outputs[f"map{level}"] for level in (2, 1, 0)]
        attention = self._attention(outputs["states"][-1], outputs["memory"], outputs["projected"])
        shared = self.mask_head.shared(outputs["projected"], maps)
        logits = self.mask_head(attention[image, query], shared, image)
        true = torch.cat([masks[kept] for masks, kept in zip(targets["masks"], single, strict=True)])
        true = true[matching.object[-1]][:, None].to(logits.dtype)
        logits = functional.interpolate(logits[:, None], size=true.shape[-2:], mode="bilinear", align_corners=False)
        share = len(true) / number  # the means become sums over the pairs, divided as the other terms
        return {
            "masks": share * focal(logits, true, alpha=0.25, gamma=2.0),
            "dice": share * dice(logits, true, smooth=1.0, per_image=True, absent=True),
        }

    def at_scale(self, outputs: Mapping[str, Tensor], factors: Sequence[float]) -> dict[str, Tensor]:
        """Outputs for an image whose sides are `factors` (y, x) times those of the one that the network saw."""
        return super().at_scale(outputs, factors) | {"factors": torch.tensor(factors, dtype=torch.float64)}

    def decode(self, outputs: Mapping[str, Tensor], sizes: Sequence[tuple[int, ...]]) -> list[Segments]:
        """Each pixel goes to the query with the highest mask of those above the threshold ``score``.

        The rule of the official program: queries for the same stuff are one segment, segments of up to 4 pixels are
        left out, and pixels of what is left out go to the highest mask of the rest, until nothing more is left out. So
        every pixel has a segment, unless no query is sure enough. Of several queries for the same stuff, all but the
        first are then left out, since their pixels are its.

        Args:
            outputs: ``logits`` (B, Q, K + 1) and ``masks`` (B, Q, h, w), see `forward` and `at_scale`.
            sizes: (H, W) of each image before padding.
        """
        factors = outputs["factors"].tolist() if "factors" in outputs else (1.0, 1.0)
        found: list[Segments] = []
        for image, (height, width) in enumerate(sizes):
            size = (height, width)
            score, classes = outputs["logits"][image].float().softmax(-1).max(-1)
            seen = torch.where(classes < self.classes)[0]
            masks = outputs["masks"][image, seen]
            candidates = Segments(size, classes[seen].cpu().numpy(), score=score[seen].cpu().numpy())
            found.append(self.painted(candidates, lambda n, m=masks, s=size: self.enlarged(m[n], s, factors)))
        return found

    def candidates(self, outputs: Mapping[str, Tensor], image: int, size: tuple[int, int]) -> tuple[Segments, Tensor]:
        """Queries whose best class is not below `least_score`, whatever "no object" is, for copies to agree on.

        Args:
            outputs: See `forward`.
            image: Which of the batch.
            size: (H, W) of it before padding.

        Returns:
            Their class, score and box, and their masks (N, h, w) logits.
        """
        score, classes = outputs["logits"][image].float().softmax(-1)[..., :-1].max(-1)
        kept = torch.where(score >= self.least_score)[0]
        box = outputs["boxes"][image, kept].float().cpu().numpy()
        found = Segments(size, classes[kept].cpu().numpy(), score=score[kept].cpu().numpy(), box=box)
        return found, outputs["masks"][image, kept]

    def painted(self, candidates: Segments, mask: Callable[[int], Tensor]) -> Segments:
        """Each pixel to the candidate with the highest mask of those above the threshold ``score``; see `decode`.

        Args:
            candidates: Class and score of each.
            mask: Gives the mask (H, W) of one by its number, logits or probabilities. One after the other is asked for,
                so that memory does not grow with their number.
        """
        score = np.zeros(0) if candidates.score is None else candidates.score
        size = (candidates.size[0], candidates.size[1])
        kept = np.flatnonzero(score > max(self.thresholds["score"], self.least_score))
        category, ids = candidates.category[kept], np.zeros(size, np.int32)
        while len(kept):
            ids = _first_of_stuff(category, self.stuff)[_winners([int(each) for each in kept], mask)]
            small = np.bincount(ids.ravel(), minlength=len(kept)) <= _LARGEST_SPECK
            if not small.any():
                ids += 1
                break
            kept, category, ids = kept[~small], category[~small], np.zeros(size, np.int32)
        return Segments(size, category, LabelMap(ids), score=score[kept])

    def enlarged(self, mask: Tensor, size: tuple[int, int], factors: Sequence[float] = (1.0, 1.0)) -> Tensor:
        """Logits (H, W) of a mask (h, w) of what the network saw.

        Args:
            mask: At a quarter of the size.
            size: (H, W) of the result.
            factors: Its sides by those of what the network saw, without padding.
        """
        seen = [round(length / factor) for length, factor in zip(size, factors, strict=True)]
        step = self.backbone.reductions[0]
        whole = seen if self.stride == 1 else [int(step * length) for length in mask.shape[-2:]]
        large = functional.interpolate(mask.float()[None, None], size=whole, mode="bilinear", align_corners=False)[0, 0]
        if tuple(seen) == size:
            return large[: size[0], : size[1]]
        # The pixel that the middle of each pixel of the result lies on.
        rows, columns = (
            ((torch.arange(wanted, dtype=torch.float64, device=mask.device) + 0.5) * (have / wanted)).long()
            for wanted, have in zip(size, seen, strict=True)
        )
        return large[rows][:, columns]

    def foreign(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of the official program or of `transformers` (old and new names) under the names of this method."""
        renamed = {}
        for name, value in super().foreign(state).items():
            for pattern, replacement in _FOREIGN:
                name = pattern.sub(replacement, name)
            renamed[name] = value
        return renamed


def _winners(candidates: Sequence[int], mask: Callable[[int], Tensor]) -> NDArray[np.int64]:
    """Index (H, W) of the candidate with the highest mask, the first of equal ones."""
    best = mask(candidates[0])
    winner = torch.zeros_like(best, dtype=torch.int64)
    for number, candidate in enumerate(candidates[1:], 1):
        large = mask(candidate)
        winner.masked_fill_(large > best, number)
        best = torch.maximum(best, large)
    return winner.cpu().numpy()


def _first_of_stuff(category: NDArray[np.int64], stuff: Sequence[int]) -> NDArray[np.int32]:
    """(M,) int32: for each query itself, or of those for the same stuff the first."""
    first: dict[int, int] = {}
    return np.array(
        [first.setdefault(int(each), number) if each in stuff else number for number, each in enumerate(category)],
        np.int32,
    )


_BLOCKS = ("first", "blocks.0", "blocks.1", "blocks.2", "blocks.3")
"""Of the mask head, in the order in which they run."""

_FOREIGN = tuple(
    (re.compile(pattern), rf"{replacement}.")
    for pattern, replacement in (
        (r"^bbox_attention\.q_(?:linear|proj)\.", "mask_attention.query"),
        (r"^bbox_attention\.k_(?:linear|proj)\.", "mask_attention.key"),
        *((rf"^mask_head\.lay{each}\.", f"mask_head.{block}.convolution") for each, block in enumerate(_BLOCKS, 1)),
        *((rf"^mask_head\.gn{each}\.", f"mask_head.{block}.norm") for each, block in enumerate(_BLOCKS, 1)),
        *((rf"^mask_head\.adapter{each + 1}\.", f"mask_head.adapters.{each}") for each in range(3)),
        *(
            (rf"^mask_head\.{theirs}\.{kind}\.", f"mask_head.{block}.{ours}")
            for theirs, block in zip(
                ("conv1", "conv2", *(rf"fpn_stages\.{each}\.refine" for each in range(3))), _BLOCKS, strict=True
            )
            for kind, ours in (("conv", "convolution"), ("norm", "norm"))
        ),
        *((rf"^mask_head\.fpn_stages\.{each}\.fpn_adapter\.", f"mask_head.adapters.{each}") for each in range(3)),
        (r"^mask_head\.(?:out_lay|output_conv)\.", "mask_head.output"),
    )
)
