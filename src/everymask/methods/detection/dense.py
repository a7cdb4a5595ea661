"""What methods share that say the class and the box of every anchor (SSD, RetinaNet): from outputs to segments."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from everymask.layers.box_coding import Weights
from everymask.layers.dense_head import Candidates, detections
from everymask.methods.detection.common import BoxMethod, segments_of_boxes
from everymask.types import Segments


class DenseMethod(BoxMethod):
    """A method with outputs ``logits`` (B, A, K), ``offsets`` (B, A, 4) and ``anchors`` (B, A, 4) in pixels.

    Its `thresholds` are the least ``score`` and the ``overlap`` (IoU) from which the less probable of two boxes is
    suppressed.

    Attributes:
        coding: Weights of the offsets.
        candidates: Most probable pairs of an anchor and a class of each group that go into the suppression.
        detections: Of an image at most.
    """

    coding: ClassVar[Weights]
    candidates: int
    detections: int

    @abstractmethod
    def probable(self, outputs: Mapping[str, Tensor]) -> Candidates:
        """The best candidates of each group that are above the threshold ``score``."""

    def at_scale(self, outputs: Mapping[str, Tensor], factors: Sequence[float]) -> dict[str, Tensor]:
        """Outputs for an image whose sides are `factors` (y, x) times those of the one that the network saw."""
        by = outputs["anchors"].new_tensor([factors[1], factors[0]] * 2)
        # Offsets are in sides of the anchors, and hold at any scale.
        return {**outputs, "anchors": outputs["anchors"] * by}

    def decode(self, outputs: Mapping[str, Tensor], sizes: Sequence[tuple[int, ...]]) -> list[Segments]:
        """Detections above the threshold ``score``, cut off at the edges of the image, without duplicates.

        Args:
            outputs: Of `forward`.
            sizes: (H, W) of each image before padding.
        """
        results = detections(
            self.probable(outputs),
            outputs,
            sizes,
            coding=self.coding,
            overlap=self.thresholds["overlap"],
            most=self.detections,
            suppression=self.suppression,
            class_agnostic=self.class_agnostic,
            least_score=self.thresholds["score"],
        )
        return [
            segments_of_boxes((height, width), *(each.cpu().numpy() for each in result))
            for result, (height, width) in zip(results, sizes, strict=True)
        ]
