"""What all methods with boxes share: targets of ragged length, segments from boxes, the size of images, backbones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import numpy as np
import torch
from torch import Tensor, nn

from everymask.data.store import LearnsFrom, check_objects, clipped_boxes, have_area
from everymask.errors import InputError
from everymask.layers.suppression import Suppression, check_suppression
from everymask.methods.base import Method
from everymask.methods.recipe import Recipe
from everymask.types import Masks, Segments, Task

if TYPE_CHECKING:
    from numpy.typing import NDArray

Ragged = Mapping[str, Sequence[Tensor]]
"""Targets of a batch: a tensor for each image."""


class BoxMethod(Method):
    """A method that finds boxes x0, y0, x1, y1 in pixels of its input, right and bottom edge exclusive.

    Attributes:
        shorter_side: Side in pixels to which the shorter side of an image is brought; 0 leaves images as they are.
        longer_side: That the longer side must not exceed then.
        suppression: Of methods with anchors or proposals, how boxes suppress less probable ones that they overlap.
        class_agnostic: Whether boxes of different classes do so, too.
    """

    tasks: ClassVar[frozenset[Task]] = frozenset({Task.DETECTION})
    metric: ClassVar[tuple[str, str]] = ("coco_boxes", "ap")
    ragged: ClassVar[frozenset[str]] = frozenset({"boxes", "classes", "crowd", "masks"})
    learns_from: ClassVar[LearnsFrom] = "boxes"
    padding: ClassVar[float | None] = 0.0

    shorter_side: int = 0
    longer_side: int = 0
    suppression: Suppression = "hard"
    class_agnostic: bool = False

    fixed_statistics: bool = False
    """Whether batch normalisation of the backbone keeps the statistics of its weights."""

    def backbone_normalisations(self) -> list[Any]:
        """The batch normalisations of the backbone."""
        backbone = cast("nn.Module", self.backbone)
        return [each for each in backbone.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]

    def train(self, mode: bool = True) -> Self:
        """Training or evaluation mode; fixed statistics of the backbone stay as they are."""
        super().train(mode)
        if self.fixed_statistics:
            for module in self.backbone_normalisations():
                module.training = False
        return self

    def batch_counters(self) -> dict[str, Tensor]:
        """The counters of batches in the state, for weights of programs whose fixed batch normalisation has none."""
        names = (name for name in self.state_dict() if name.endswith("num_batches_tracked"))
        return {name: torch.zeros((), dtype=torch.int64) for name in names}

    @classmethod
    def recipe(cls) -> Recipe:
        """For photographs, on a backbone with weights: mirroring, magnification, AdamW and a cosine."""
        return Recipe(
            epochs=60,
            batch_size=4,
            crop=512,
            foreground=0.5,
            learning_rate=2e-4,
            backbone_rate=0.3,
            weight_decay=1e-2,
            clip=10.0,
            flip="mirror",
            scale=(0.5, 1.5),
            brightness=0.15,
            contrast=(0.7, 1.4),
            colour=0.05,
            noise=0.0,
        )

    def magnification_for(self, height: int, width: int) -> float:
        """The factor by which an image is resized for the network (Ren et al. 2015, sec. 3.3; torchvision's rule)."""
        if not self.shorter_side:
            return 1.0
        return min(self.shorter_side / min(height, width), self.longer_side / max(height, width))

    def resize_to(self, shorter_side: int, longer_side: int) -> None:
        """Sets the usual size of images; 0, 0 for none.

        Raises:
            InputError: The longer side is shorter, or one of both is missing.
        """
        if not 0 <= shorter_side <= longer_side or (shorter_side == 0) != (longer_side == 0):
            raise InputError(
                "shorter_side and longer_side are the sides in pixels that images are resized to, both 0 for images as "
                f"they are, got {shorter_side} and {longer_side}"
            )
        self.shorter_side, self.longer_side, self.largest = shorter_side, longer_side, longer_side

    def suppress_by(self, suppression: Suppression | None = None, class_agnostic: bool | None = None) -> None:
        """Sets the constructor's `suppression` and `class_agnostic`, also of a method that exists; None leaves one.

        A `Predictor` takes them as they are when it is made.

        Raises:
            InputError: There is no such rule, or the method finds no boxes twice and has no such option.
        """
        if "suppression" not in self._config:
            raise InputError(
                f"{type(self).__name__} finds no object twice and suppresses nothing; leave out suppression and "
                "class_agnostic"
            )
        if suppression is not None:
            check_suppression(suppression)
            self.suppression = self._config["suppression"] = suppression
        if class_agnostic is not None:
            self.class_agnostic = self._config["class_agnostic"] = class_agnostic

    def at_scale(self, outputs: Mapping[str, Tensor], factors: Sequence[float]) -> dict[str, Tensor]:
        """Outputs for an image whose sides are `factors` (y, x) times those of the one that the network saw."""
        by = outputs["boxes"].new_tensor([factors[1], factors[0]] * 2)
        return {**outputs, "boxes": outputs["boxes"] * by}

    def targets(self, segments: Segments) -> dict[str, Tensor]:
        """``boxes`` (N, 4) float32, ``classes`` (N,) int64, ``crowd`` (N,) bool, perhaps ``masks`` (N, H, W) bool.

        Boxes are cut off at the edges of the image.

        Raises:
            InputError: There are no boxes or masks, or a box has no area within the image.
        """
        check_objects(segments, self.learns_from)
        targets = {
            "boxes": torch.from_numpy(_checked_boxes(segments)),
            "classes": torch.from_numpy(segments.category.copy()),
            "crowd": torch.from_numpy(segments.crowd.copy()),
        }
        if self.learns_from == "masks":
            none = np.zeros((0, *segments.size), np.bool_)
            targets["masks"] = torch.from_numpy(segments.masks() if len(segments) else none)
        return targets

    def decode(self, outputs: Mapping[str, Tensor], sizes: Sequence[tuple[int, ...]]) -> list[Segments]:
        """Detections above the threshold ``score``, cut off at the edges of the image.

        Args:
            outputs: ``boxes`` (B, M, 4), ``scores`` (B, M), 0 where there is none, ``classes`` (B, M), and perhaps
                ``masks`` (B, M, S, S) logits.
            sizes: (H, W) of each image before padding.
        """
        found = []
        for image, size in enumerate(sizes):
            score = outputs["scores"][image].float()
            kept = torch.where((score > 0) & (score >= self.thresholds["score"]))[0]
            masks = outputs["masks"][image, kept].float().sigmoid().cpu().numpy() if "masks" in outputs else None
            boxes = outputs["boxes"][image, kept].float().cpu().numpy()
            classes = outputs["classes"][image, kept].round().to(torch.int64).cpu().numpy()
            found.append(segments_of_boxes((size[0], size[1]), boxes, score[kept].cpu().numpy(), classes, masks))
        return found


def segments_of_boxes(
    size: tuple[int, int],
    boxes: NDArray[Any],
    scores: NDArray[Any],
    classes: NDArray[Any],
    masks: NDArray[Any] | None = None,
) -> Segments:
    """Segments of detections; those that lie in the padding are left out.

    Args:
        size: (H, W) of the image.
        boxes: (N, 4) x0, y0, x1, y1 in pixels.
        scores: (N,) 0..1.
        classes: (N,) 0..K-1.
        masks: (N, S, S) probabilities within the boxes, None for boxes only.
    """
    height, width = size
    cut = np.clip(boxes, 0, np.array([width, height, width, height], boxes.dtype))
    inside = (cut[:, 2:] > cut[:, :2]).all(axis=1)
    geometry = None
    if masks is not None:
        from everymask.ops.mask_pasting import paste_masks

        # Placed by the whole box, so that cutting it off does not squeeze the mask.
        geometry = Masks(size, *paste_masks(masks[inside], boxes[inside], size))
    return Segments(size, classes[inside], geometry, score=scores[inside], box=cut[inside])


def true_boxes(targets: Mapping[str, Any]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Boxes (N, 4) float32, classes (N,) and crowd (N,) of each image of a batch of targets."""
    boxes, classes = cast("Sequence[Tensor]", targets["boxes"]), cast("Sequence[Tensor]", targets["classes"])
    crowd = cast("Sequence[Tensor]", targets["crowd"])
    return [each.float() for each in boxes], list(classes), list(crowd)


def _checked_boxes(segments: Segments) -> NDArray[np.float32]:
    """The boxes (N, 4) within the image.

    Raises:
        InputError: One has no area there.
    """
    boxes = clipped_boxes(segments)
    wrong = np.flatnonzero(~have_area(boxes))
    if len(wrong):
        x0, y0, x1, y1 = segments.boxes()[wrong[0]]
        height, width = segments.size
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise InputError(
            f"the box {x0:g}, {y0:g}, {x1:g}, {y1:g} (x0, y0, x1, y1) of object {wrong[0] + 1} of {len(segments)}{more}"
            f" has no area in the image of {height} x {width} pixels; correct or delete it"
        )
    return boxes
