"""Loss functions: logits in, void respected, a scalar out; one file per family.

`everymask.losses.expression` names those of a classification of pixels and adds them up.
"""

from everymask.losses.pixel import binary_cross_entropy, cross_entropy, masked_l1

__all__ = ["binary_cross_entropy", "cross_entropy", "masked_l1"]
