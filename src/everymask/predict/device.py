"""Where and with which number type a network is evaluated."""

from __future__ import annotations

from typing import Literal

import torch

from everymask.errors import InputError

Precision = Literal["auto", "float32", "bfloat16"]


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """The device asked for; by default the first accelerator if there is one, else the CPU.

    Raises:
        InputError: The device is unknown or absent.
    """
    if device is None:
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"cannot use the device {str(device)!r}; take 'cpu', or leave the device out to pick one"
        ) from error
    return chosen


def computes_bfloat16_fast(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16 products; where it emulates them, float32 is faster."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        # Missing from older releases of torch, which then compute in float32.
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("amx_tile"))
    return False


def use_bfloat16(precision: Precision, device: torch.device) -> bool:
    """Whether networks run in bfloat16 (convolutions and matrix products; sums and normalisation stay in float32).

    Raises:
        InputError: `precision` is none of ``auto``, ``float32``, ``bfloat16``.
    """
    if precision not in ("auto", "float32", "bfloat16"):
        raise InputError(f"precision must be auto, float32 or bfloat16, got {precision!r}")
    return precision == "bfloat16" or (precision == "auto" and computes_bfloat16_fast(device))


def channels_innermost(dimensions: int) -> torch.memory_format:
    """The order in memory in which the channels of a pixel lie side by side, of images (2) or volumes (3)."""
    return torch.channels_last if dimensions == 2 else torch.channels_last_3d
