"""Layers made ready for many predictions with the same weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_CAST = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)


def keep_weights_in_bfloat16(network: nn.Module) -> None:
    """Rounds the weights of convolutions and matrix products once instead of in every pass.

    Autocast does it anew each time for weights that learn nothing (measured: 7 % of the time of PSPNet at 512 x 512
    pixels); the outputs are the same to the last bit.

    Args:
        network: To be run under autocast to bfloat16; changed in place.
    """
    for module in network.modules():
        if type(module) in _CAST:
            module.to(torch.bfloat16)


def run_pointwise_in_one_thread(network: nn.Module) -> None:
    """Makes 1 x 1 convolutions in float32 fast on a single core.

    With one thread torch leaves them to an older kernel, which is slower where the channels lie innermost (measured: by
    a tenth to two thirds). With several threads, in other number types or without oneDNN nothing is changed.

    Args:
        network: To be run on the CPU in float32; changed in place.
    """
    if torch.get_num_threads() > 1 or not torch.backends.mkldnn.is_available():
        return
    for module in network.modules():
        if type(module) is nn.Conv2d and module.kernel_size == (1, 1) and module.padding in ("valid", (0, 0)):
            module.__class__ = _Pointwise


class _Pointwise(nn.Conv2d):
    """A 1 x 1 convolution by oneDNN, however many threads there are."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, outputs, H, W) of features (B, inputs, H, W)."""
        # Small maps, as behind a global pooling, cost more there than they gain.
        if input.numel() < 2**15 or input.dtype != torch.float32:
            return super().forward(input)
        weight, bias, groups = self.weight, self.bias, self.groups
        return torch.mkldnn_convolution(input, weight, bias, (0, 0), self.stride, self.dilation, groups)
