"""Transformer encoder and decoder for sets of objects, and the sine positions of a feature map.

Vaswani et al., Attention Is All You Need, NeurIPS 2017, in the form of Carion et al., End-to-End Object Detection with
Transformers, ECCV 2020, appendix A.3: positions are added to queries and keys of every attention, never to values.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from everymask.errors import InputError

TEMPERATURE = 10_000.0
"""Wavelengths of the sine positions lie between one and this many times the length of the map."""


def sine_positions(
    height: int, width: int, channels: int, device: torch.device | None = None, valid: Tensor | None = None
) -> Tensor:
    """Sines and cosines of the place of each feature, half of the channels for the row and half for the column.

    Places count from just above 0 to 2 pi across the map, whatever its size (`normalize` of the official program).

    Args:
        height: Rows of the map.
        width: Columns of the map.
        channels: E, a multiple of 4.
        device: Of the result.
        valid: (B, 2) rows and columns of the part of each map that is no padding, at the top left; the places of that
            part count to 2 pi.

    Returns:
        (1, height * width, E) float32, row after row, or (B, height * width, E) with `valid`.

    Raises:
        InputError: `channels` is no multiple of 4.
    """
    if channels < 4 or channels % 4:
        raise InputError(f"sine positions need a multiple of 4 channels, got {channels}")
    half = channels // 2
    wavelength = TEMPERATURE ** (2 * (torch.arange(half, device=device) // 2) / half)
    axes = []
    for axis, length in enumerate((height, width)):
        place = torch.arange(1, length + 1, device=device, dtype=torch.float32)[None]
        last = place[:, -1:]
        if valid is not None:
            last = valid[:, axis, None].to(place)
            place = torch.minimum(place, last)
        angle = (place / (last + 1e-6) * (2 * math.pi))[..., None] / wavelength
        axes.append(torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], dim=-1).flatten(2))
    rows, columns = axes
    shape = (-1, height, width, -1)
    grid = torch.cat([rows[:, :, None].expand(shape), columns[:, None].expand(shape)], dim=-1)
    return grid.flatten(1, 2)


class Attention(nn.Module):
    """Scaled dot-product attention of several heads (Vaswani et al. 2017, sec. 3.2).

    Args:
        width: Channels E of queries, keys, values and results.
        heads: Number of heads; divides `width`.
        dropout: Share of the attention weights that are dropped in training.

    Raises:
        InputError: `heads` does not divide `width`.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise InputError(f"the width {width} must be a multiple of the number of heads, got {heads} heads")
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """What each query finds.

        Args:
            queries: (B, N, E).
            keys: (B, M, E).
            values: (B, M, E).
            mask: (B, 1 or heads, 1 or N, M) bool, false for keys that a query must not see; each query sees one.

        Returns:
            (B, N, E).
        """
        query, key, value = (
            projection(given).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection, given in ((self.query, queries), (self.key, keys), (self.value, values))
        )
        dropout = self.dropout if self.training else 0.0
        found = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        return self.output(found.transpose(1, 2).flatten(2))


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward network, each added to its input.

    Args:
        width: Channels E.
        heads: Of the attention.
        hidden: Width of the feed-forward network.
        dropout: Share of attention weights and activations that are dropped in training.
        pre_norm: Normalise the input of both parts instead of the sum, so that a plain sum runs through all layers.
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float = 0.0, pre_norm: bool = False) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.attention = Attention(width, heads, dropout)
        self.attention_norm = nn.LayerNorm(width)
        self.feed_forward = feed_forward(width, hidden, dropout)
        self.final_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor, positions: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Features (B, M, E) after this layer.

        Args:
            features: (B, M, E).
            positions: (B or 1, M, E), added to queries and keys.
            mask: (B, 1, 1, M) bool, false for padding.
        """
        given = self.attention_norm(features) if self.pre_norm else features
        placed = with_positions(given, positions)
        features = features + self.dropout(self.attention(placed, placed, given, mask))
        if self.pre_norm:
            return features + self.feed_forward(self.final_norm(features))
        features = self.attention_norm(features)
        normalised: Tensor = self.final_norm(features + self.feed_forward(features))
        return normalised


class DecoderLayer(nn.Module):
    """Attention among the objects, attention from the objects to the features, and a feed-forward network.

    Args:
        width: Channels E.
        heads: Of both attentions.
        hidden: Width of the feed-forward network.
        dropout: Share of attention weights and activations that are dropped in training.
        pre_norm: As in `EncoderLayer`.
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float = 0.0, pre_norm: bool = False) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.attention = Attention(width, heads, dropout)
        self.attention_norm = nn.LayerNorm(width)
        self.cross_attention = Attention(width, heads, dropout)
        self.cross_norm = nn.LayerNorm(width)
        self.feed_forward = feed_forward(width, hidden, dropout)
        self.final_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        objects: Tensor,
        memory: Tensor,
        queries: Tensor | None = None,
        keys: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Objects (B, Q, E) after this layer.

        Args:
            objects: (B, Q, E).
            memory: (B, M, E) features, the values of the cross-attention.
            queries: (B or 1, Q, E) positions of the objects.
            keys: (B, M, E) the keys of the cross-attention: features with their positions; default: `memory`.
            mask: (B, 1, 1, M) bool, false for padding.
        """
        keys = memory if keys is None else keys
        given = self.attention_norm(objects) if self.pre_norm else objects
        placed = with_positions(given, queries)
        objects = objects + self.dropout(self.attention(placed, placed, given))
        if not self.pre_norm:
            objects = self.attention_norm(objects)
        given = self.cross_norm(objects) if self.pre_norm else objects
        objects = objects + self.dropout(self.cross_attention(with_positions(given, queries), keys, memory, mask))
        if self.pre_norm:
            return objects + self.feed_forward(self.final_norm(objects))
        objects = self.cross_norm(objects)
        normalised: Tensor = self.final_norm(objects + self.feed_forward(objects))
        return normalised


class Encoder(nn.Module):
    """Layers of self-attention over the features of an image.

    Args:
        layers: Number of layers.
        width: Channels E.
        heads: Of each attention.
        hidden: Width of the feed-forward networks.
        dropout: As in the layers.
        pre_norm: As in the layers; then a last normalisation follows them.
    """

    def __init__(
        self, layers: int, width: int, heads: int, hidden: int, dropout: float = 0.0, pre_norm: bool = False
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(width, heads, hidden, dropout, pre_norm) for _ in range(layers))
        self.norm = nn.LayerNorm(width) if pre_norm else nn.Identity()

    def forward(self, features: Tensor, positions: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Features (B, M, E) that know of each other; arguments as `EncoderLayer.forward`."""
        for layer in self.layers:
            features = layer(features, positions, mask)
        encoded: Tensor = self.norm(features)
        return encoded


class Decoder(nn.Module):
    """Layers in which a fixed number of objects ask each other and the features of an image.

    Args:
        layers: Number of layers.
        width: Channels E.
        heads: Of each attention.
        hidden: Width of the feed-forward networks.
        dropout: As in the layers.
        pre_norm: As in the layers.
    """

    def __init__(
        self, layers: int, width: int, heads: int, hidden: int, dropout: float = 0.0, pre_norm: bool = False
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(width, heads, hidden, dropout, pre_norm) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(
        self,
        queries: Tensor,
        memory: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        every_layer: bool = False,
    ) -> Tensor:
        """The objects, which start from zero and are told apart by their learnt positions alone.

        Args:
            queries: (Q, E) positions of the objects.
            memory: (B, M, E) features of the encoder.
            positions: (B or 1, M, E) of the features.
            mask: (B, 1, 1, M) bool, false for padding.
            every_layer: Give those after every layer, which auxiliary losses learn from.

        Returns:
            (1, B, Q, E) normalised objects after the last layer, or (L, B, Q, E) after each.
        """
        keys = with_positions(memory, positions)
        placed = queries.expand(memory.shape[0], -1, -1)  # len() would fix the size of the batch in an export
        objects = torch.zeros_like(placed)
        states = []
        for number, layer in enumerate(self.layers, 1):
            objects = layer(objects, memory, placed, keys, mask)
            if every_layer or number == len(self.layers):
                states.append(self.norm(objects))
        return torch.stack(states)


def feed_forward(width: int, hidden: int, dropout: float) -> nn.Sequential:
    """The network that each feature goes through alone, with the dropout of its result."""
    return nn.Sequential(
        nn.Linear(width, hidden),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(hidden, width),
        nn.Dropout(dropout),
    )


def with_positions(features: Tensor, positions: Tensor | None) -> Tensor:
    """Features with their positions added, if there are any."""
    return features if positions is None else features + positions


def initialise_transformer(module: nn.Module) -> None:
    """Weights drawn by Glorot's rule, uniformly, as in the official program of DETR; biases 0."""
    for each in module.modules():
        if isinstance(each, nn.Linear):
            nn.init.xavier_uniform_(each.weight)
            nn.init.zeros_(each.bias)
