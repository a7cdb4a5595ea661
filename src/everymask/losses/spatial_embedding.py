"""The loss of spatial embeddings: each object learns its own bandwidth, by the IoU of what it would cluster.

Neven et al., Instance Segmentation by Jointly Optimizing Spatial Embeddings and Clustering Bandwidth, CVPR 2019;
weights as in Lalit, Tomancak, Jug, EmbedSeg, Medical Image Analysis 2022.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from everymask.errors import InputError
from everymask.losses.forms import VOID, ratio

SHARPNESS = 10.0
"""A bandwidth sigma stands for the scale s = exp(10 sigma), so that useful ones lie around 1."""

_AT_ONCE = 2**25
"""Distances of pixels to objects that are held at a time on an accelerator."""

_NONE, _VOID = -1, -2
"""Object of pixels of the background, and of those that do not count."""


class EmbeddingLoss(NamedTuple):
    """The three terms, scalars, without their weights."""

    instance: Tensor
    variance: Tensor
    seed: Tensor


def spatial_embedding(
    embedding: Tensor,
    sigma: Tensor,
    seed: Tensor,
    labels: Tensor,
    centres: Tensor,
    category: Tensor | None = None,
    *,
    foreground_weight: float = 10.0,
    void: int = VOID,
) -> EmbeddingLoss:
    """Loss of embeddings, bandwidths and seed scores against the objects of a batch.

    For object k with centre c_k, each pixel i of the image has ``phi_k(i) = exp(-sum_a s_ka (e_ia - c_ka)^2)``, with
    ``s_k = exp(10 mean sigma)`` over the pixels of the object.

    - Instance: Lovasz hinge (Berman et al. 2018) of the margins ``2 phi_k - 1``, mean over the objects of an image.
    - Variance: ``mean (sigma - mean sigma)^2`` over the pixels of an object, mean over the objects.
    - Seed: ``seed^2`` at pixels that are not of the category, ``foreground_weight (seed - phi_k)^2`` at those of object
      k, where phi is taken as a constant; mean over the pixels of an image, summed over categories.

    All are means over the images; an image without objects counts as 0 in the first two.

    A pixel outside an object matters to the Lovasz hinge only if its error exceeds the least error of the object's own
    pixels: below that the Jaccard loss has reached 1 and rises no more. Such pixels are few, and no others are sorted,
    so the cost hardly depends on the number of objects. In float32, errors of less than the rounding of 1 are left out
    as well.

    Args:
        embedding: (B, A, ...) where each pixel says that its centre is; A spatial axes.
        sigma: (B, A, ...) bandwidths.
        seed: (B, K, ...) scores 0..1 of each category.
        labels: (B, ...) integers: the object of each pixel, from 1 in each image, 0 background.
        centres: (B, A, ...) at each pixel of an object its centre, in the unit of `embedding`; elsewhere anything.
        category: (B, ...) class index 0..K-1 at each pixel of an object; may be left out with one category.
        foreground_weight: Of the seed scores inside objects.
        void: Label of what does not count.

    Raises:
        InputError: The shapes do not fit.
    """
    batch, shape = embedding.shape[0], embedding.shape[2:]
    if (
        not sigma.shape == centres.shape == embedding.shape
        or seed.shape != (batch, seed.shape[1], *shape)
        or labels.shape != (batch, *shape)
        or not (seed.shape[1] == 1 if category is None else category.shape == labels.shape)
    ):
        raise InputError(
            f"embedding, sigma and centres have shapes {tuple(embedding.shape)}, {tuple(sigma.shape)} and "
            f"{tuple(centres.shape)}, seed {tuple(seed.shape)}, labels {tuple(labels.shape)}, category "
            f"{None if category is None else tuple(category.shape)}; expected three times (B, A, ...), (B, K, ...) and "
            "twice (B, ...), the category only with K = 1 left out"
        )
    kind = torch.float64 if embedding.dtype == torch.float64 else torch.float32
    scores, ids = seed.to(kind).flatten(2), labels.flatten(1).long()
    # (A, B P): pixels of the whole batch numbered through, the axes apart.
    places, widths, middles = (each.to(kind).transpose(0, 1).flatten(1) for each in (embedding, sigma, centres))

    # Objects are numbered through as well: N in the batch. Their pixels are listed: M of them.
    numbers = ids.amax(1).clamp(min=0)
    first = numbers.cumsum(0) - numbers
    home = torch.repeat_interleave(torch.arange(batch, device=ids.device), numbers)
    count = len(home)
    objects = torch.where(ids > 0, ids + (first - 1).unsqueeze(1), _NONE).masked_fill(ids == void, _VOID).flatten()
    pixel = torch.nonzero(objects >= 0)[:, 0]
    member = objects[pixel]
    sizes = torch.bincount(member, minlength=count).to(kind)
    present = sizes > 0
    in_image = torch.zeros(batch, dtype=kind, device=ids.device).index_add(0, home, present.to(kind))
    share = present / (in_image[home].clamp(min=1) * batch)

    own_widths = widths.index_select(1, pixel)
    mean_width = ratio(_sums(own_widths, member, count), sizes)
    spread = (own_widths - mean_width.index_select(1, member)).square().mean(0)
    variance = (share * ratio(_sums(spread, member, count), sizes)).sum()

    scale = torch.exp(SHARPNESS * mean_width)
    centre = torch.zeros_like(scale).index_copy(1, member, middles.index_select(1, pixel))
    distance = _distances(places, scale, centre, pixel, member)
    phi = torch.exp(-distance)
    with torch.no_grad():
        nearest = distance.new_full((count,), math.inf).scatter_reduce(0, member, distance, "amin")
        # An error outside is 2 phi, one inside 2 - 2 phi: what matters are pixels with phi > 1 - phi of the nearest one
        # inside. Rounding must not lose any, and those below the rounding of the sum need not be there.
        reach = -1.001 * torch.log(-torch.expm1(-nearest))
        reach = reach.clamp(max=-math.log(torch.finfo(kind).eps))
        rival, place = _rivals(places, objects, numbers, scale, centre, reach)
    away = torch.exp(-_distances(places, scale, centre, place, rival))
    with torch.no_grad():
        all_objects = torch.cat([member, rival])
        steps = _lovasz_steps(torch.cat([2 - 2 * phi, 2 * away]), all_objects, len(member), sizes)
        inner, outer = (2 * steps * share.index_select(0, all_objects)).split([len(member), len(rival)])
    instance = ((1 - phi) * inner).sum() + (away * outer).sum()

    valid = ids != void
    wanted = torch.zeros_like(scores)
    weight = valid.to(kind).unsqueeze(1).expand_as(scores).clone()
    of = 0 if category is None else category.flatten()[pixel].long()
    image, inside = pixel // ids.shape[1], pixel % ids.shape[1]
    where = (image * scores.shape[1] + of) * ids.shape[1] + inside
    wanted.view(-1)[where] = phi.detach()
    weight.view(-1)[where] = foreground_weight
    squared = (weight * (scores - wanted).square()).sum((1, 2))
    return EmbeddingLoss(instance, variance, ratio(squared, valid.sum(1)).mean())


def _sums(values: Tensor, member: Tensor, count: int) -> Tensor:
    """Sums (..., N) of values (..., M) of the objects `member` (M,)."""
    return values.new_zeros(*values.shape[:-1], count).index_add(-1, member, values)


def _distances(places: Tensor, scale: Tensor, centre: Tensor, pixel: Tensor, member: Tensor) -> Tensor:
    """``sum_a s_a (e_a - c_a)^2`` (Q,) of some pixels, each with the scale and centre (A, N) of its object."""
    apart = places.index_select(1, pixel) - centre.index_select(1, member)
    return (scale.index_select(1, member) * apart.square()).sum(0)


def _rivals(places: Tensor, objects: Tensor, numbers: Tensor, scale: Tensor, centre: Tensor, reach: Tensor) -> Tensor:
    """Pairs (2, Q) of an object and a pixel outside it that embeds within the object's reach.

    Args:
        places: (A, B P) embeddings.
        objects: (B P,) object that each pixel belongs to, -1 background, -2 void.
        numbers: (B,) objects of each image.
        scale: (A, N).
        centre: (A, N).
        reach: (N,) the largest distance, in units of the scale.
    """
    length = len(objects) // max(len(numbers), 1)
    found: list[Tensor] = []
    last = 0
    for number, count in enumerate(numbers.tolist()):
        pixels, mine = slice(number * length, (number + 1) * length), slice(last, last + count)
        last += count
        given = (
            places[:, pixels],
            torch.where(objects[pixels] < 0, objects[pixels], objects[pixels] - mine.start),
            scale[:, mine],
            centre[:, mine],
            reach[mine],
        )
        pairs = _search(*given) if places.device.type == "cpu" else _compare(*given)
        found.append(pairs + torch.tensor([[mine.start], [pixels.start]], device=places.device))
    return torch.cat(found, dim=1)


def _search(places: Tensor, objects: Tensor, scale: Tensor, centre: Tensor, reach: Tensor) -> Tensor:
    """`_rivals` of one image, by a grid of embeddings."""
    from everymask.ops.embedding_clusters import embeddings_within

    return torch.from_numpy(embeddings_within(*(each.numpy() for each in (places, objects, scale, centre, reach))))


def _compare(places: Tensor, objects: Tensor, scale: Tensor, centre: Tensor, reach: Tensor) -> Tensor:
    """`_rivals` of one image, by looking at all pairs, so many at a time as fit the memory of an accelerator."""
    found = []
    for rows in torch.arange(len(reach), device=places.device).split(max(1, _AT_ONCE // max(len(objects), 1))):
        apart = places[:, None] - centre[:, rows, None]
        distance = (scale[:, rows, None] * apart.square()).sum(0)
        close = (distance < reach[rows, None]) & (objects != rows[:, None]) & (objects != _VOID)
        row, pixel = torch.nonzero(close, as_tuple=True)
        found.append(torch.stack([rows[row], pixel]))
    return torch.cat(found, dim=1) if found else objects.new_zeros(2, 0)


def _lovasz_steps(errors: Tensor, member: Tensor, inside: int, sizes: Tensor) -> Tensor:
    """How much each error adds to the Jaccard loss of its object (Berman et al. 2018, algorithm 1).

    Args:
        errors: (M,) 0 or more.
        member: (M,) the object that each belongs to.
        inside: That many first ones are of pixels inside the object, the others of pixels outside.
        sizes: (N,) pixels of each object.

    Returns:
        (M,) of the type of `errors`.
    """
    if errors.dtype == torch.float32:
        # The bits of numbers that are not negative sort like the numbers. Sorting one list of integers is much faster
        # than sorting twice.
        order = ((member << 32) - errors.view(torch.int32)).sort().indices
    else:
        order = errors.argsort(descending=True)
        order = order[member[order].argsort(stable=True)]
    member = member.index_select(0, order)
    whole = sizes.long()
    first = torch.bincount(member, minlength=len(sizes)).cumsum(0).roll(1)
    first[:1] = 0
    of_earlier = (whole.cumsum(0) - whole).index_select(0, member)
    hit = (order < inside).cumsum(0) - of_earlier
    seen = torch.arange(1, len(order) + 1, device=order.device) - first.index_select(0, member)
    whole = whole.index_select(0, member)
    loss = 1 - (whole - hit).to(errors.dtype) / (whole + seen - hit)
    steps = torch.where(seen > 1, loss - loss.roll(1), loss)
    return torch.empty_like(errors).scatter_(0, order, steps)
