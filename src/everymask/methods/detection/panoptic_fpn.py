"""Panoptic FPN: Mask R-CNN for things, and a semantic branch on its feature pyramid for stuff.

Kirillov, Girshick, He, Dollar, Panoptic Feature Pyramid Networks, CVPR 2019.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from everymask.layers.semantic_fpn import SemanticBranch
from everymask.layers.suppression import Suppression
from everymask.losses.forms import check_option
from everymask.losses.pixel import cross_entropy
from everymask.methods.detection.common import segments_of_boxes
from everymask.methods.detection.faster_rcnn import Norm, Variant
from everymask.methods.detection.mask_rcnn import MaskRCNN
from everymask.methods.semantic.common import most_probable_classes
from everymask.types import LabelMap, Masks, Segments, Task
from everymask.types.geometry import VOID

_LEVELS = 4
"""Maps of the pyramid that the semantic branch reads: P2 to P5."""


class PanopticFPN(MaskRCNN):
    """Things by Mask R-CNN, as in torchvision, whose weights load, and stuff by a semantic branch.

    The weights of a Mask R-CNN load with `new_logits`; the semantic branch then begins with random ones.

    Args:
        classes: Number of categories K, things and stuff together.
        channels: Input channels C.
        backbone: Any network of timm with strides 4 to 32, such as ``resnet50``.
        variant: Of the pyramid and the heads of Mask R-CNN: ``v1`` is as published; ``v2`` has batch normalisation
            there, two convolutions in the proposal network and a convolutional box head (Li et al. 2021), which is
            slower and more accurate.
        width: Channels of the pyramid and of the mask head.
        hidden: Width of the fully connected layers of the box head.
        norm: ``batch`` lets the statistics of the backbone's batch normalisation follow the data; ``fixed`` keeps those
            of its weights, which is better for batches of few images if it has weights;
            ``fixed_without_epsilon`` also adds nothing to the variance, as torchvision's published v1 weights need.
        anchor_sizes: Square root of the anchors' area in pixels for each of the five levels.
        anchor_ratios: Heights of the anchors divided by their widths.
        proposals: Proposals of an image at most; in training twice as many.
        samples: Proposals of an image that a training step looks at.
        overlap: IoU from which the less probable of two boxes of a class is suppressed.
        least_score: Detections of lower probability are never looked at.
        detections: Of an image at most.
        shorter_side: Pixels to which the shorter side of images is brought, 800 in the published networks; 0 leaves
            images as they are.
        longer_side: Pixels that the longer side must not exceed then; 1333 in the published networks.
        stuff: Classes 0..K-1 that are no countable things: those of an image are one segment.
        semantic_width: Channels of the semantic branch.
        instance_weight: Of the losses of the box and mask heads (lambda_i in eq. 1 of the paper).
        semantic_weight: Of the loss of the semantic branch (lambda_s there).
        least_free: Share of a thing's mask, 0..1, that more probable things must leave free; else it is dropped. The
            initial value of `thresholds`, as the next.
        least_stuff: Pixels that stuff of a class must have in an image; else it is dropped. The paper's value suits
            photographs of half a megapixel; training tries smaller ones as well.
        suppression: What becomes of a box that a more probable one overlaps: ``hard`` drops it; ``linear`` and
            ``gaussian`` (soft-NMS, Bodla et al. 2017) lower its score, which finds more of objects that hide one
            another. `suppress_by` changes it later, and the next.
        class_agnostic: Whether boxes of different classes suppress one another, too: no two boxes then lie on one
            object.
    """

    tasks: ClassVar[frozenset[Task]] = frozenset({Task.DETECTION, Task.INSTANCE, Task.PANOPTIC})
    metric: ClassVar[tuple[str, str]] = ("panoptic", "pq")
    tunable: ClassVar[Mapping[str, tuple[float, ...]]] = {
        "score": (0.3, 0.95),
        "least_stuff": (0.0, 1024.0, 4096.0),
    }
    logit_layers: ClassVar[tuple[str, ...]] = ("box_predictor", "mask_head.logits", "semantic_branch.logits")

    def __init__(
        self,
        classes: int = 1,
        channels: int = 3,
        backbone: str = "resnet50",
        variant: Variant = "v1",
        width: int = 256,
        hidden: int = 1024,
        norm: Norm = "batch",
        anchor_sizes: tuple[float, ...] = (32.0, 64.0, 128.0, 256.0, 512.0),
        anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0),
        proposals: int = 1000,
        samples: int = 512,
        overlap: float = 0.5,
        least_score: float = 0.05,
        detections: int = 100,
        shorter_side: int = 0,
        longer_side: int = 0,
        stuff: tuple[int, ...] = (),
        semantic_width: int = 128,
        instance_weight: float = 1.0,
        semantic_weight: float = 0.5,
        least_free: float = 0.5,
        least_stuff: int = 4096,
        suppression: Suppression = "hard",
        class_agnostic: bool = False,
    ) -> None:
        wrong = [each for each in stuff if not 0 <= each < classes]
        check_option(not wrong, "stuff", wrong, f"classes from 0 to {classes - 1}")
        check_option(semantic_width >= 1, "semantic_width", semantic_width, "1 or more")
        check_option(instance_weight >= 0, "instance_weight", instance_weight, "0 or more")
        check_option(semantic_weight >= 0, "semantic_weight", semantic_weight, "0 or more")
        check_option(0 <= least_free <= 1, "least_free", least_free, "a share from 0 to 1")
        check_option(least_stuff >= 0, "least_stuff", least_stuff, "0 or more")
        of_stuff = tuple(sorted(set(stuff)))
        things = tuple(each for each in range(classes) if each not in of_stuff)
        super().__init__(
            # Without things the heads are not kept, and without any class the parent says what is wrong.
            len(things) if things or not classes else 1,
            channels,
            backbone,
            variant,
            width,
            hidden,
            norm,
            anchor_sizes,
            anchor_ratios,
            proposals,
            samples,
            overlap,
            least_score,
            detections,
            shorter_side,
            longer_side,
            suppression=suppression,
            class_agnostic=class_agnostic,
        )
        self.classes, self.things, self.stuff = classes, things, of_stuff
        self.instance_weight, self.semantic_weight = instance_weight, semantic_weight
        self.thresholds = {"score": 0.5, "least_free": least_free, "least_stuff": float(least_stuff)}
        if not things:
            del self.rpn, self.box_pool, self.box_head, self.box_predictor, self.mask_pool, self.mask_head
        if of_stuff:
            self.semantic_branch = SemanticBranch(width, semantic_width, len(of_stuff) + 1, _LEVELS)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Detections of things, as of Mask R-CNN, and the class of each pixel.

        Returns:
            Of T things: ``boxes`` (B, M, 4) x0, y0, x1, y1 in pixels, ``scores`` (B, M) 0..1 and 0 for none,
            ``classes`` (B, M) 0..T-1 and ``masks`` (B, M, 28, 28) logits; of S classes of stuff ``semantic``
            (B, S + 1, H / 4, W / 4) logits, "other" first. Without things or without stuff that part is missing.
        """
        maps = self.neck(self.backbone(images))
        outputs = self.tables(maps, (images.shape[-2], images.shape[-1])) if self.things else {}
        if self.stuff:
            outputs["semantic"] = self.semantic_branch(maps)
        return outputs

    def targets(self, segments: Segments) -> dict[str, Tensor]:
        """Those of Mask R-CNN for the things, classes 0..T-1, and ``semantic`` (H, W) int64.

        That is 0 for things, 1..S for stuff, and -1, which nothing is learnt from, where there is no segment. Things
        lie on stuff. Crowds of things are "other" as well, and the heads neither find nor miss anything in them.

        Raises:
            InputError: There are no masks, or a thing has no area within the image.
        """
        things = ~np.isin(segments.category, self.stuff)
        found: dict[str, Tensor] = {}
        if self.things:
            chosen = segments[things]
            found = super().targets(chosen.with_category(np.searchsorted(self.things, chosen.category)))
        if self.stuff:
            semantic = np.full(segments.size, VOID, np.int64)
            if len(segments):
                layered = segments[np.argsort(things, kind="stable")]
                table = np.zeros(self.classes, np.int64)
                table[list(self.stuff)] = np.arange(1, len(self.stuff) + 1)
                semantic = np.concatenate([[VOID, VOID], table[layered.category]])[layered.label_map("last") + 1]
            found["semantic"] = torch.from_numpy(semantic)
        return found

    def training_loss(self, images: Tensor, targets: Mapping[str, Any]) -> dict[str, Tensor]:
        """The terms of `loss`; the network of the second stage runs on samples that are drawn with the targets."""
        if self.things:
            return super().training_loss(images, targets)
        maps = self.neck(self.backbone(images))
        return self.loss({f"map{number}": each for number, each in enumerate(maps)}, targets)

    def loss(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Any]) -> dict[str, Tensor]:
        """Eq. 1 of the paper, beside the terms of the proposal network.

        Args:
            outputs: As of Mask R-CNN.
            targets: See `targets`.

        Returns:
            The terms of Mask R-CNN, of which ``classes``, ``boxes`` and ``masks`` are weighed, and ``semantic``: mean
            cross-entropy of the pixels that have a class, weighed.
        """
        terms: dict[str, Tensor] = {}
        if self.things:
            terms = super().loss(outputs, targets)
            terms |= {name: self.instance_weight * terms[name] for name in ("classes", "boxes", "masks")}
        if self.stuff:
            true = targets["semantic"]
            logits = self.semantic_branch([outputs[f"map{number}"] for number in range(_LEVELS)])
            large = functional.interpolate(logits, size=true.shape[-2:], mode="bilinear", align_corners=False)
            terms["semantic"] = self.semantic_weight * cross_entropy(large, true)
        return terms

    def at_scale(self, outputs: Mapping[str, Tensor], factors: Sequence[float]) -> dict[str, Tensor]:
        """Outputs for an image whose sides are `factors` (y, x) times those of the one that the network saw."""
        scaled = super().at_scale(outputs, factors) if self.things else dict(outputs)
        return scaled | {"factors": torch.tensor(factors, dtype=torch.float64)}

    def decode(self, outputs: Mapping[str, Tensor], sizes: Sequence[tuple[int, ...]]) -> list[Segments]:
        """Things where the box head is sure enough, stuff in the rest; see `parts` and `merged`.

        Args:
            outputs: See `forward` and `at_scale`.
            sizes: (H, W) of each image before padding.
        """
        return [self.merged(*parts) for parts in self.parts(outputs, sizes, self.thresholds["score"])]

    def parts(
        self, outputs: Mapping[str, Tensor], sizes: Sequence[tuple[int, ...]], least_score: float
    ) -> list[tuple[Segments, Tensor | None]]:
        """What both branches say of each image, to be merged.

        Args:
            outputs: See `forward` and `at_scale`.
            sizes: (H, W) of each image before padding.
            least_score: Of the things.

        Returns:
            Things with masks that may overlap, and logits (S + 1, H, W) of the pixels, "other" first; None without
            stuff.
        """
        found: list[tuple[Segments, Tensor | None]] = []
        factors = outputs["factors"].tolist() if "factors" in outputs else (1.0, 1.0)
        for image, (height, width) in enumerate(sizes):
            size = (height, width)
            things = Segments(size, [], Masks.join(size, []), score=[], box=np.zeros((0, 4)))
            if self.things:
                score = outputs["scores"][image].float()
                kept = torch.where((score > 0) & (score >= least_score))[0]
                boxes, classes, masks = (outputs[name][image, kept].float() for name in ("boxes", "classes", "masks"))
                category = np.array(self.things)[classes.round().to(torch.int64).cpu().numpy()]
                shapes = masks.sigmoid().cpu().numpy()
                things = segments_of_boxes(size, boxes.cpu().numpy(), score[kept].cpu().numpy(), category, shapes)
            semantic = self._enlarged(outputs["semantic"][image].float(), size, factors) if self.stuff else None
            found.append((things, semantic))
        return found

    def _enlarged(self, logits: Tensor, size: tuple[int, int], factors: Sequence[float]) -> Tensor:
        """Logits (S + 1, H, W) of an image from those of what the network saw.

        Args:
            logits: (S + 1, h, w).
            size: (H, W).
            factors: Its sides by those of what the network saw, without padding.
        """
        step = self.backbone.reductions[0]
        whole = [round(step * length) for length in logits.shape[-2:]]
        seen = [round(length / factor) for length, factor in zip(size, factors, strict=True)]
        large = functional.interpolate(logits[None], size=whole, mode="bilinear", align_corners=False)
        large = large[..., : seen[0], : seen[1]]
        if tuple(seen) != size:
            large = functional.interpolate(large, size=size, mode="bilinear", align_corners=False)
        return large[0]

    def merged(self, things: Segments, semantic: Tensor | None) -> Segments:
        """Every pixel to one thing or to stuff, as far as anything is sure of it (sec. 3 of the paper).

        Things below the threshold ``score`` are left out. The others are laid down from the most probable on, each
        where there is room, and dropped if less than the share ``least_free`` of its mask is free. What is left goes
        to the most probable class of stuff, one segment for each, unless this is "other" or the class has fewer than
        ``least_stuff`` pixels. Its score is its mean probability where it is the most probable class.

        Args:
            things: With masks that may overlap.
            semantic: Logits (S + 1, H, W).
        """
        from everymask.ops.panoptic_merging import merge_panoptic

        score = np.zeros(0) if things.score is None else things.score
        order = np.argsort(-score, kind="stable")
        things = things[order[score[order] >= self.thresholds["score"]]]
        size = (things.size[0], things.size[1])
        masks, classes, of_classes = things.rles(), None, np.zeros(1)
        if semantic is not None:
            classes, counts, sums = most_probable_classes(semantic)
            of_classes = np.clip(sums / np.maximum(counts, 1), 0, 1)  # sums may be rounded up
        ids, kept, present = merge_panoptic(
            masks.counts,
            masks.offsets,
            size,
            classes,
            len(of_classes),
            free=self.thresholds["least_free"],
            least=self.thresholds["least_stuff"],
        )
        category = np.concatenate([things.category[kept], np.array(self.stuff, np.int64)[present - 1]])
        scores = np.concatenate([np.zeros(0) if things.score is None else things.score[kept], of_classes[present]])
        return Segments(size, category, LabelMap(ids), score=scores)

    def foreign(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of torchvision's ``maskrcnn_*`` under the names of this method.

        The semantic branch, which they lack, keeps its weights, but that its logits have to be asked for.
        """
        found = super().foreign(state)
        if any(name.startswith("roi_heads.") for name in state):
            logits = f"{self.logit_layers[-1]}."
            found |= {
                name: value
                for name, value in self.state_dict().items()
                if name.startswith("semantic_branch.") and not name.startswith(logits)
            }
        return found
