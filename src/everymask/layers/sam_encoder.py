"""The image encoder of Segment Anything: a vision transformer with windows and relative positions.

Kirillov et al., Segment Anything, ICCV 2023, appendix A; Li et al., Exploring Plain Vision Transformer Backbones for
Object Detection (ViTDet), ECCV 2022. Official program: https://github.com/facebookresearch/segment-anything
(Apache-2.0), `modeling.image_encoder.ImageEncoderViT`. The parameters are named as there.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional

from everymask.errors import InputError

WINDOW, TOKENS = 14, 64
"""Tokens along a side of a window, and of the whole image of 1024 pixels, in the published encoders."""


class SamEncoder(nn.Module):
    """Tokens of an image in, features of its neck out.

    The published encoders are ``width=768, depth=12, heads=12`` (ViT-B), ``1024, 24, 16`` (ViT-L) and ``1280, 32, 16``
    (ViT-H), with ``windows=sam_windows(depth)``.

    Args:
        width: Features of a token.
        depth: Number of blocks.
        heads: Heads of the attention; must divide `width`.
        image: Side of the images in pixels that the position embeddings are made for.
        patch: Side of a token in pixels.
        channels: Input channels C.
        windows: For each block the tokens along the side of the windows that it attends in; 0 for the whole image.
        tables: For each block the tokens along the side that its table of relative positions is made for; where it
            attends in another size, the table is interpolated. Default: its window, or the whole image.
        outputs: Channels of the output.
        drop: Largest probability of leaving out a block in training (stochastic depth, Huang et al. 2016), which rises
            linearly from 0 at the first block.

    Attributes:
        patch: As given.
        width: Channels of the output.

    Raises:
        InputError: The numbers do not fit each other.
    """

    def __init__(
        self,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        image: int = 1024,
        patch: int = 16,
        channels: int = 3,
        windows: Sequence[int] = (),
        tables: Sequence[int] = (),
        outputs: int = 256,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        if min(width, depth, heads, patch, channels, outputs) < 1 or width % heads:
            raise InputError(
                f"a vision transformer needs a width that its heads divide, got width {width}, depth {depth} and heads "
                f"{heads}"
            )
        if image < patch or image % patch:
            raise InputError(f"images of {image} pixels cannot be cut into patches of {patch}")
        tokens = image // patch
        windows = windows or [0] * depth
        tables = tables or [window or tokens for window in windows]
        if len(windows) != depth or len(tables) != depth:
            raise InputError(f"windows and tables need {depth} numbers, got {len(windows)} and {len(tables)}")
        self.patch, self.width, self.drop = patch, outputs, drop
        self.patch_embed = _named(proj=nn.Conv2d(channels, width, patch, stride=patch))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, tokens, width))
        self.blocks = nn.ModuleList(Block(width, heads, *each) for each in zip(windows, tables, strict=True))
        self.neck = nn.Sequential(
            nn.Conv2d(width, outputs, 1, bias=False),
            LayerNorm2d(outputs),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            LayerNorm2d(outputs),
        )
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, outputs, h, w) of images (B, C, h * patch, w * patch), of the size that `image` said."""
        tokens: Tensor = self.patch_embed(images).permute(0, 2, 3, 1) + self.pos_embed
        for number, block in enumerate(self.blocks):
            changed = block(tokens)
            rate = self.drop * number / max(len(self.blocks) - 1, 1)
            if self.training and rate > 0:
                # The block is computed for all and its result dropped for some: every parameter gets a gradient, as
                # several processes need it.
                left_out = torch.rand(len(tokens), 1, 1, 1, device=tokens.device) < rate
                changed = torch.where(left_out, tokens, changed)
            tokens = changed
        features: Tensor = self.neck(tokens.permute(0, 3, 1, 2))
        return features


class Block(nn.Module):
    """Attention, within windows or not, and two linear layers; each after a normalisation and with a shortcut.

    Args:
        width: Features of a token.
        heads: Heads of the attention.
        window: Tokens along the side of a window; 0 for attention over the whole image.
        table: Tokens along the side that the table of relative positions is made for.
    """

    def __init__(self, width: int, heads: int, window: int, table: int) -> None:
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = RelativeAttention(width, heads, table)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = _named(lin1=nn.Linear(width, 4 * width), act=nn.GELU(), lin2=nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, h, w, width) of tokens (B, h, w, width)."""
        normal = self.norm1(tokens)
        attended = _in_windows(self.attn, normal, self.window) if self.window else self.attn(normal)
        tokens = tokens + attended
        result: Tensor = tokens + self.mlp(self.norm2(tokens))
        return result


class RelativeAttention(nn.Module):
    """Attention with a learnt bias for the offset between two tokens along each axis.

    Li et al., MViTv2, CVPR 2022, eq. 4: the bias is the product of the query with an embedding of the vertical and one
    of the horizontal offset.

    Args:
        width: Features of a token.
        heads: Heads of the attention.
        table: Tokens along the side of the largest image that the embeddings are made for; those of other sizes are
            interpolated.
    """

    def __init__(self, width: int, heads: int, table: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * table - 1, width // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * table - 1, width // heads))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, h, w, width) of tokens (B, h, w, width)."""
        batch, height, width, features = tokens.shape
        mixed = self.qkv(tokens).view(batch, height * width, 3, self.heads, -1)
        query, key, value = mixed.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, h w, width / heads)
        grid = query.unflatten(2, (height, width))
        vertical = torch.einsum("bnhwc,hkc->bnhwk", grid, offsets(self.rel_pos_h, height))
        horizontal = torch.einsum("bnhwc,wkc->bnhwk", grid, offsets(self.rel_pos_w, width))
        bias = vertical[..., :, None] + horizontal[..., None, :]  # (B, heads, h, w, h, w)
        bias = bias.flatten(4).flatten(2, 3).to(query.dtype)
        attended = functional.scaled_dot_product_attention(query, key, value, bias)
        # Not a transposition: the order in memory of the attention's result is not the same once exported.
        joined = torch.cat(attended.unbind(1), -1).view(batch, height, width, features)
        result: Tensor = self.proj(joined)
        return result


def offsets(table: Tensor, length: int) -> Tensor:
    """The embeddings (length, length, C) of all pairs of places along an axis, by how far the first is from the second.

    Args:
        table: (2 n - 1, C), from offset 1 - n to n - 1; interpolated if n is not `length`.
        length: Number of places.
    """
    if len(table) != 2 * length - 1:
        table = functional.interpolate(table.T[None], size=2 * length - 1, mode="linear")[0].T
    places = torch.arange(length, device=table.device)
    return table[places[:, None] - places + length - 1]


def sam_windows(depth: int, window: int = WINDOW) -> tuple[int, ...]:
    """The windows of the published encoders: the last block of each quarter sees the whole image (0)."""
    last = {depth * quarter // 4 - 1 for quarter in range(1, 5)}
    return tuple(0 if block in last else window for block in range(depth))


def _in_windows(attention: nn.Module, tokens: Tensor, side: int) -> Tensor:
    """Attention (B, h, w, C) within windows of `side` x `side` tokens; those at the far edges are filled with zeros."""
    batch, height, width, features = tokens.shape
    below, right = -height % side, -width % side
    padded = functional.pad(tokens, (0, 0, 0, right, 0, below))
    rows, columns = (height + below) // side, (width + right) // side
    windows = padded.view(batch, rows, side, columns, side, features).transpose(2, 3).flatten(0, 2)
    attended: Tensor = attention(windows)
    joined = attended.view(batch, rows, columns, side, side, features).transpose(2, 3)
    return joined.reshape(padded.shape)[:, :height, :width]


def _named(**layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))
