"""Loss functions: logits in, void respected, a scalar out; one file per family."""

from everymask.losses.pixel import binary_cross_entropy, cross_entropy, masked_l1

__all__ = ["binary_cross_entropy", "cross_entropy", "masked_l1"]
