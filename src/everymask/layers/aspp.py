"""Atrous spatial pyramid pooling: several dilations side by side (DeepLab)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


def dilated_convolution(inputs: int, outputs: int, dilation: int = 1, kernel: int = 3) -> nn.Sequential:
    """A convolution without bias that keeps the size, batch normalisation and ReLU."""
    padding = kernel // 2 * dilation
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def separable_convolution(inputs: int, outputs: int, dilation: int = 1) -> nn.Sequential:
    """A 3 x 3 convolution of each channel alone, one of 1 x 1 that mixes them (Chollet 2017), batch norm. and ReLU."""
    each = nn.Conv2d(inputs, inputs, 3, padding=dilation, dilation=dilation, groups=inputs, bias=False)
    return nn.Sequential(each, *dilated_convolution(inputs, outputs, kernel=1))


class GlobalPooling(nn.Sequential):
    """The mean of the whole map through a convolution, spread over the map again (Chen et al. 2017, sec. 3.3).

    Args:
        inputs: Channels of the map.
        outputs: Channels of the result.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(inputs, outputs, 1, bias=False),
            BatchNormOfSingles(outputs),
            nn.ReLU(inplace=True),
        )

    def forward(self, input: Tensor) -> Tensor:
        """(B, outputs, H, W), equal everywhere, of features (B, inputs, H, W)."""
        pooled: Tensor = super().forward(input)
        return pooled.expand(-1, -1, *input.shape[-2:])


class BatchNormOfSingles(nn.BatchNorm2d):
    """Batch normalisation of maps of one pixel: a batch of one image has no variance, so it is not learnt from."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, 1, 1), normalised by the batch in training if it has several images, else by what was learnt."""
        if self.training and input.shape[0] == 1:
            return functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(input)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling (Chen, Papandreou, Schroff, Adam 2017, fig. 5).

    A 1 x 1 convolution, one of 3 x 3 for each rate and the mean of the map, joined by a 1 x 1 convolution. Tensors are
    called as in torchvision.

    Args:
        inputs: Channels of the features.
        outputs: Channels of each branch and of the result.
        rates: Dilations of the 3 x 3 convolutions.
        separable: Whether they are separable, as in DeepLab v3+.
        dropout: Share of the values that are dropped at the end in training.
    """

    def __init__(
        self, inputs: int, outputs: int, rates: Sequence[int], *, separable: bool = False, dropout: float = 0.5
    ) -> None:
        super().__init__()
        branch = separable_convolution if separable else dilated_convolution
        branches: list[nn.Module] = [dilated_convolution(inputs, outputs, kernel=1)]
        branches += [branch(inputs, outputs, rate) for rate in rates]
        branches.append(GlobalPooling(inputs, outputs))
        self.convs = nn.ModuleList(branches)
        joining = dilated_convolution(len(branches) * outputs, outputs, kernel=1)
        self.project = nn.Sequential(*joining, nn.Dropout(dropout))

    def forward(self, features: Tensor) -> Tensor:
        """(B, outputs, H, W) of features (B, inputs, H, W)."""
        joined: Tensor = self.project(torch.cat([branch(features) for branch in self.convs], dim=1))
        return joined


def atrous_rates(output_stride: int) -> tuple[int, ...]:
    """Those of Chen et al. 2017, sec. 4.1: 6, 12 and 18 at output stride 16, doubled when the stride is halved."""
    return tuple(max(1, rate * 16 // output_stride) for rate in (6, 12, 18))
