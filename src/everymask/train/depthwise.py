"""Depthwise convolutions whose gradients are computed in float32 on CPUs, where that is faster than bfloat16."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class FloatDepthwise(TorchFunctionMode):
    """Inside this context the gradients of depthwise `conv2d` in bfloat16 on a CPU are computed in float32.

    The library behind torch has no fast kernel for the backward pass of these in bfloat16: float32 with the channels
    innermost took a half to a fifth of the time (112 to 1152 channels, 3 x 3 and 5 x 5). The forward pass stays.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Exchanges the convolutions in question; everything else runs as usual."""
        given = kwargs or {}
        if func in _CONVOLUTIONS:
            call = dict(zip(_NAMES, args, strict=False)) | given
            images, weight = call["input"], call["weight"]
            if (
                call.get("groups", 1) > 1
                and weight.shape[1] == 1
                and images.ndim == 4
                and images.device.type == "cpu"
                and not isinstance(call.get("padding", 0), str)
                and torch.is_autocast_enabled("cpu")
            ):
                return _Depthwise.apply(
                    images.bfloat16(),
                    weight.bfloat16(),
                    None if call.get("bias") is None else call["bias"].bfloat16(),
                    _pair(call.get("stride", 1)),
                    _pair(call.get("padding", 0)),
                    _pair(call.get("dilation", 1)),
                )
        return func(*args, **given)


_CONVOLUTIONS = (torch.conv2d, functional.conv2d)
_NAMES = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


def _pair(value: int | Sequence[int]) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * (2 // len(values))


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(*arguments: Any, **_: Any) -> Any:
        ctx, images, weight, bias, *geometry = arguments
        ctx.save_for_backward(images, weight)
        ctx.geometry, ctx.bias = geometry, bias is not None
        stride, padding, dilation = geometry
        return functional.conv2d(images, weight, bias, stride, padding, dilation, images.shape[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        images, weight = ctx.saved_tensors
        stride, padding, dilation = ctx.geometry
        wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.bias and ctx.needs_input_grad[2]]
        found = torch.ops.aten.convolution_backward(
            grads[0].float(),
            images.float(),
            weight.float(),
            [weight.shape[0]] if ctx.bias else None,
            stride,
            padding,
            dilation,
            False,
            [0, 0],
            images.shape[1],
            wanted,
        )
        return (*(None if each is None else each.bfloat16() for each in found), None, None, None)
