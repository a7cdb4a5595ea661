"""What is averaged when several predictions of the same pixels are joined: tiles that overlap, augmented copies.

Classes are averaged as probabilities, the arithmetic mean. The mean of logits would be the geometric mean of the
probabilities, in which a single prediction that is sure of a class, however wrongly, outvotes all others, since logits
have no bounds; and the score would not be the mean of the scores. Decoders get the logarithms of the means, which are
logits of just these probabilities. Other outputs are averaged as the method gives them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from everymask.methods.semantic.common import SemanticMethod
from everymask.types import Task

if TYPE_CHECKING:
    from torch import Tensor

    from everymask.methods.base import Method

_LOGITS = "classes"
"""Output of semantic methods and classifiers that holds logits of classes that exclude one another."""


def to_average(method: Method, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The outputs of a method in the form whose mean makes sense."""
    if _has_classes(method):
        return {name: output.softmax(1) if name == _LOGITS else output for name, output in outputs.items()}
    return dict(outputs)


@torch.inference_mode()
def from_average(method: Method, means: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `to_average`: outputs that the method can decode, made in the place of the means."""
    if _has_classes(method):
        return {name: mean.log_() if name == _LOGITS else mean for name, mean in means.items()}
    return dict(means)


def _has_classes(method: Method) -> bool:
    return isinstance(method, SemanticMethod) or Task.CLASSIFICATION in method.tasks
