"""Batch normalisation as part of the convolution before it."""

from __future__ import annotations

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_batch_normalisation(network: nn.Module) -> nn.Module:
    """Replaces each convolution with batch normalisation right after it, in an `nn.Sequential`, by one convolution.

    In evaluation mode the normalisation is a fixed scale and offset for each channel, which the weights and the bias
    can take over (Jacob et al., CVPR 2018, section 3.2); the network then reads and writes each feature map once less.

    Args:
        network: In evaluation mode; changed in place.

    Returns:
        The network.
    """
    for module in network.modules():
        # A subclass may run its parts in another order.
        if type(module) is not nn.Sequential:
            continue
        for i in range(len(module) - 1):
            convolution, normalisation = module[i], module[i + 1]
            if isinstance(convolution, nn.Conv2d) and isinstance(normalisation, nn.BatchNorm2d):
                module[i] = fuse_conv_bn_eval(convolution, normalisation)
                module[i + 1] = nn.Identity()
    return network
