"""The network of Cellpose-SAM: the image encoder of Segment Anything on small patches, applied window by window.

Pachitariu et al., Cellpose-SAM: superhuman generalization for cellular segmentation, bioRxiv 2025, Methods. Official
program: https://github.com/MouseLand/cellpose (BSD-3), version 4, `vit_sam.Transformer`, later `vit.CPSAM`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from everymask.layers.sam_encoder import TOKENS, SamEncoder, sam_windows

_AT_ONCE = 4  # windows: the attention of a large encoder to 256 x 256 pixels takes some 70 MB a window


def cellpose_encoder(
    width: int = 1024,
    depth: int = 24,
    heads: int = 16,
    image: int = 256,
    patch: int = 8,
    channels: int = 3,
    drop: float = 0.4,
) -> SamEncoder:
    """The encoder of Segment Anything without windows, but with its tables of relative positions, interpolated.

    Args:
        width: Features of a token; width, depth and heads are those of ViT-L in the official network.
        depth: Number of blocks.
        heads: Heads of the attention.
        image: Side of the images in pixels.
        patch: Side of a token in pixels.
        channels: Input channels.
        drop: Largest probability of leaving out a block in training.
    """
    tables = [window or TOKENS for window in sam_windows(depth)]
    return SamEncoder(width, depth, heads, image, patch, channels, tables=tables, drop=drop)


def from_sam(patch_weight: Tensor, positions: Tensor, patch: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Patch and position embeddings of a published encoder for smaller patches and images: every n-th number of them.

    Args:
        patch_weight: (width, C, 16, 16).
        positions: (1, 64, 64, width).
        patch: Side of the new patches in pixels, a divisor of 16.
        tokens: New tokens along a side, a divisor of 64.

    Returns:
        Weight (width, C, patch, patch) and positions (1, tokens, tokens, width).
    """
    thinning, step = patch_weight.shape[-1] // patch, positions.shape[1] // tokens
    return patch_weight[..., ::thinning, ::thinning].contiguous(), positions[:, ::step, ::step].contiguous()


def apply_in_windows(network: Callable[[Tensor], Tensor], images: Tensor, side: int) -> Tensor:
    """A network that takes images of one size, applied to images of any size.

    The images are reflected at the bottom and the right up to a whole number of windows, which share a quarter of their
    side with the next ones. There their outputs are faded into each other by a sigmoid, as in the official program
    (`transforms._taper_mask`), which places the windows differently and shares at least a tenth.

    Args:
        network: Maps (N, K, side, side) of images (N, C, side, side).
        images: (B, C, H, W).
        side: A multiple of 4.

    Returns:
        (B, K, H, W) float32.
    """
    batch, channels, height, width = images.shape
    shared = side // 4
    step = side - shared
    rows, columns = (_larger(1, (length - shared + step - 1) // step) for length in (height, width))
    images = images.index_select(-2, _reflected(height, rows * step + shared, images.device))
    images = images.index_select(-1, _reflected(width, columns * step + shared, images.device))
    windows = images.unfold(2, side, step).unfold(3, side, step)  # (B, C, rows, columns, side, side)
    windows = windows.permute(0, 2, 3, 1, 4, 5).reshape(batch * rows * columns, channels, side, side)
    # In training the gradients hold all windows in memory anyway, and an exported network cannot count them.
    if torch.is_grad_enabled() or torch.compiler.is_exporting():
        maps = network(windows)
    else:
        maps = torch.cat([network(each) for each in windows.split(_AT_ONCE)])
    kinds = maps.shape[1]
    maps = maps.float().view(batch, rows, columns, kinds, side, side).permute(0, 3, 1, 4, 2, 5)
    taper = _taper(side, shared, images.device)
    weights = (taper[:, None] * taper).view(1, 1, 1, side, 1, side)
    whole = _join(maps * weights, step)
    share = _join(weights.expand(1, 1, rows, side, columns, side), step)
    return (whole / share)[..., :height, :width]


def _join(windows: Tensor, step: int) -> Tensor:
    """The sum (B, K, H, W) of overlapping windows (B, K, rows, side, columns, side), each `step` after the last."""
    for _ in range(2):  # the last axis first, then the rows take its place
        windows = _join_last(windows, step).movedim(-1, 2)
    return windows


def _join_last(windows: Tensor, step: int) -> Tensor:
    """(..., n * step + side - step): the sum of windows (..., n, side); no pixel lies in more than two."""
    shared = windows.shape[-1] - step
    first = windows[..., :step].flatten(-2)
    second = functional.pad(windows[..., step:], (0, step - shared)).flatten(-2)
    return functional.pad(first, (0, shared)) + functional.pad(second, (step, 0))[..., : first.shape[-1] + shared]


def _taper(side: int, shared: int, device: torch.device) -> Tensor:
    """Weights (side,) that rise over the first `shared` pixels and fall over the last; two that meet add up to 1."""
    places = torch.arange(side, device=device, dtype=torch.float32)
    width = 7.5 * side / 256  # the official one, for windows of 256 pixels
    rise = torch.sigmoid((places - (shared - 1) / 2) / width)
    return torch.where(places < side / 2, rise, rise.flip(0))


def _reflected(length: int, wanted: int, device: torch.device) -> Tensor:
    """Indices (wanted,) that go back and forth between 0 and length - 1."""
    # A tensor, since the remainder of a tensor by a symbol cannot be exported.
    period = torch.full((1,), _larger(2 * length - 2, 1), device=device)
    places = torch.arange(wanted, device=device) % period
    return torch.minimum(places, period - places)


def _larger(first: int, second: int) -> int:
    """The larger of two numbers, which are symbols where a network is exported."""
    larger: int = torch.sym_max(first, second)  # type: ignore[assignment]
    return larger
