"""Losses weighed by distances to the edges of regions.

The distances are those of `everymask.ops.distance`, measured in positions on the CPU. Distances of the target may be
made beforehand (`signed_distances`, for instance where samples are loaded) and given as `distance`. What is void makes
no edge: the edge of a class is where positions of it and known positions of other classes are nearest to each other.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from everymask.errors import InputError
from everymask.losses.classification import entropy
from everymask.losses.forms import VOID, Regions, check_option, mean_of_valid, ratio, regions


def signed_distances(target: Tensor, classes: int | None = None, *, void: int = VOID) -> Tensor:
    """Signed distance of each position to the edge of each class.

    Args:
        target: (B, ...) class indices, or (B, K, ...) labels of classes that stand alone; one, two or three spatial
            dimensions.
        classes: K for class indices (1 for a target of 0 and 1), None for labels.
        void: Value of what does not count.

    Returns:
        (B, K, ...) float32 on the device of the target: distance to the nearest position of the class outside it, less
        the distance to the nearest known position of other classes inside; 0 everywhere for a class without an edge,
        which does not occur or fills the image.

    Raises:
        InputError: The target holds a class that there is not, or has more than three dimensions.
    """
    shape = tuple(target.shape) if classes is None else (target.shape[0], classes, *target.shape[1:])
    # Logits of the right shape that take no memory: only the truth is looked at.
    given = regions(torch.zeros((), device=target.device).expand(shape), target, void)
    return given.spatial(_edge_distances(given.truth > 0.5, given.valid != 0, given.shape))


def boundary(
    logits: Tensor,
    target: Tensor,
    *,
    distance: Tensor | None = None,
    class_weight: Tensor | None = None,
    void: int = VOID,
) -> Tensor:
    """Boundary loss: probability times signed distance, mean over positions and classes (Kervadec et al. 2019).

    What is predicted of a class costs the more, the farther from the class it lies, and gains the more, the deeper it
    lies inside: the loss is negative for good answers. As in the official program the distance is 0 at the innermost
    side of an edge, and classes without an edge take no part. Use it beside a loss of regions and with a small factor:
    ``generalised_dice + 0.01*boundary``.

    Args:
        logits: (B, K, ...), see `everymask.losses.forms.regions`; one, two or three spatial dimensions.
        target: (B, ...) or (B, K, ...).
        distance: (B, K, ...) of `signed_distances`; None to measure it here.
        class_weight: (K,) weight of each class in the mean.
        void: Value of what does not count.

    Raises:
        InputError: The shapes do not fit.
    """
    given = regions(logits, target, void)
    signed = _distances_of(given, distance)
    # Inside, a position beside the edge has a distance of 1 to the other side; the official program counts from there.
    height = torch.where(signed < 0, signed + 1, signed)
    weight = None if class_weight is None else given.of_classes(class_weight)
    return mean_of_valid(height * given.probability(), given.valid, weight)


def hausdorff(
    logits: Tensor,
    target: Tensor,
    *,
    distance: Tensor | None = None,
    class_weight: Tensor | None = None,
    alpha: float = 2.0,
    void: int = VOID,
) -> Tensor:
    """Hausdorff loss by distance transforms: ``(p - t)^2 (d_p^a + d_t^a)``, mean over positions and classes.

    Karimi and Salcudean 2019, as in MONAI. d_t is the distance to the edge of the class in the target, d_p that in the
    prediction above 1/2, so that errors far from either edge cost most. The distances have no gradient.

    Args:
        logits: (B, K, ...), see `everymask.losses.forms.regions`; one, two or three spatial dimensions.
        target: (B, ...) or (B, K, ...).
        distance: (B, K, ...) of `signed_distances`; None to measure it here.
        class_weight: (K,) weight of each class in the mean.
        alpha: a > 0.
        void: Value of what does not count.

    Raises:
        InputError: `alpha` is not above 0, or shapes do not fit.
    """
    check_option(alpha > 0, "alpha", alpha, "a number above 0")
    given = regions(logits, target, void)
    truth = torch.abs(_distances_of(given, distance)) ** alpha
    probability = given.raw_probability()
    known = given.valid != 0
    predicted = _edge_distances((probability.detach() > 0.5) & known, known, given.shape).to(truth)
    terms = (probability - given.truth) ** 2 * (truth + torch.abs(predicted) ** alpha)
    weight = None if class_weight is None else given.of_classes(class_weight)
    return mean_of_valid(terms, given.valid, weight)


def distance_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    distance: Tensor | None = None,
    class_weight: Tensor | None = None,
    strength: float = 1.0,
    void: int = VOID,
) -> Tensor:
    """Distance-penalised cross-entropy ``mean (1 + c phi) CE``, phi falling from 1 at edges to 0 (Caliva et al. 2019).

    phi is the inverted distance map ``(max d - d) / (max d - min d)`` of each side of the edge of a class in an image,
    scaled to 0..1 as in the program of Ma et al. 2020. With softmax the side that counts is the inside of the true
    class.

    Args:
        logits: (B, K, ...), see `everymask.losses.forms.regions`; one, two or three spatial dimensions.
        target: (B, ...) or (B, K, ...).
        distance: (B, K, ...) of `signed_distances`; None to measure it here.
        class_weight: (K,) as in `everymask.losses.classification.cross_entropy`.
        strength: c >= 0.
        void: Value of what does not count.

    Raises:
        InputError: `strength` is negative, or shapes do not fit.
    """
    check_option(strength >= 0, "strength", strength, "a number of 0 or more")
    given = regions(logits, target, void)
    signed = _distances_of(given, distance)
    sides = [_inverted(-signed, (signed < 0) & (given.valid != 0))]
    if not given.exclusive:
        sides.append(_inverted(signed, (signed > 0) & (given.valid != 0)))
    penalty = torch.stack(sides).sum(0)
    if given.exclusive:
        penalty = (penalty * given.truth).sum(1, keepdim=True)
    terms, weight = entropy(given, class_weight)
    return ratio((terms * (1 + strength * penalty)).sum(), weight.sum())


def border_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    class_weight: Tensor | None = None,
    border: float = 10.0,
    sigma: float = 5.0,
    void: int = VOID,
) -> Tensor:
    """Cross-entropy with the weights of the U-Net between objects.

    ``mean (1 + w0 exp(-(d1 + d2)^2 / (2 sigma^2))) CE``, Ronneberger et al. 2015, eq. 1-2; d1 and d2 are the distances
    of a position of the background to the two nearest objects. The objects are the connected pieces of each class but
    class 0 (of each class alone with sigmoid). Where the annotation tells touching objects apart, weights made from it
    are better: give those of `everymask.ops.distance.unet_weight_map` as `pixel_weight` to `cross_entropy`.

    Args:
        logits: (B, K, ...), see `everymask.losses.forms.regions`; one, two or three spatial dimensions.
        target: (B, ...) or (B, K, ...).
        class_weight: (K,) as in `everymask.losses.classification.cross_entropy`.
        border: w0 >= 0.
        sigma: In positions, above 0.
        void: Value of what does not count.

    Raises:
        InputError: A number is out of range, or shapes do not fit.
    """
    check_option(border >= 0, "border", border, "a number of 0 or more")
    check_option(sigma > 0, "sigma", sigma, "a number above 0")
    given = regions(logits, target, void)
    if given.index is not None:
        classes = given.index.clamp(min=0).unsqueeze(1)
    else:
        classes = (given.truth > 0.5).long()
    terms, weight = entropy(given, class_weight)
    return ratio((terms * (1 + _border_weights(classes, given, border, sigma))).sum(), weight.sum())


def _distances_of(given: Regions, distance: Tensor | None) -> Tensor:
    """(B, K, N) signed distances, given or measured."""
    if distance is None:
        return _edge_distances(given.truth > 0.5, given.valid != 0, given.shape).to(given.logits)
    expected = (*given.logits.shape[:2], *given.shape)
    if distance.shape != expected:
        raise InputError(f"distance: got shape {tuple(distance.shape)}, expected that of the logits, {expected}")
    return distance.to(given.logits).flatten(2)


def _edge_distances(inside: Tensor, known: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(B, K, N) float32 signed distances to the edge of masks (B, K, N), 0 where there is no edge.

    `known` (B, 1 or K, N) is where the position is known to be inside or outside.
    """
    if len(shape) > 3:
        raise InputError(f"distances are measured in one, two or three dimensions, not in {len(shape)}")
    masks, counts = inside.cpu().numpy(), known.expand_as(inside).cpu().numpy()
    result = np.zeros(masks.shape, np.float32)
    for place in np.ndindex(*masks.shape[:2]):
        within, without = masks[place], counts[place] & ~masks[place]
        if within.any() and without.any():
            result[place] = np.where(within, -_distance_to(without, shape), _distance_to(within, shape))
    return torch.from_numpy(result).to(inside.device)


def _distance_to(mask: NDArray[np.bool_], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """(N,) distance of each position to the nearest one of a mask (N,), which is not empty."""
    from everymask.ops.distance import distance_to_edge

    return distance_to_edge((~mask).view(np.uint8).reshape(shape if len(shape) > 1 else (1, -1))).ravel()


def _inverted(distance: Tensor, side: Tensor) -> Tensor:
    """(B, K, N) distances turned round and scaled to 1 (nearest) .. 0 (farthest) on one side, 0 on the other."""
    high = distance.masked_fill(~side, -torch.inf).amax(2, keepdim=True)
    low = distance.masked_fill(~side, torch.inf).amin(2, keepdim=True)
    # A side that is nowhere farther from the edge than next to it is edge throughout.
    scaled = torch.where(high > low, (high - distance) / (high - low), 1.0)
    return torch.where(side, scaled, 0)


def _border_weights(classes: Tensor, given: Regions, border: float, sigma: float) -> Tensor:
    """(B, 1 or K, N) weights between the objects of class maps (B, 1 or K, N), 0 being background."""
    from everymask.ops.distance import unet_weight_map
    from everymask.ops.labels import connected_components

    maps = classes.cpu().numpy().astype(np.int32)
    weights = np.zeros(maps.shape, np.float32)
    for place in np.ndindex(*maps.shape[:2]):
        image = maps[place].reshape(given.shape if len(given.shape) > 1 else (1, -1))
        objects, _ = connected_components(image, connectivity=image.ndim)
        if image.ndim == 2:
            weights[place] = unet_weight_map(objects, border, sigma).ravel()
        else:
            weights[place] = _weights_of_volume(objects, border, sigma).ravel()
    return torch.from_numpy(weights).to(given.logits)


def _weights_of_volume(objects: NDArray[np.int32], border: float, sigma: float) -> NDArray[np.float64]:
    """`unet_weight_map` of a volume (Z, H, W): each object is measured in its box and what lies within 6 sigma."""
    from scipy.ndimage import distance_transform_edt, find_objects

    margin = int(np.ceil(6 * sigma))
    nearest, second = np.full(objects.shape, np.inf), np.full(objects.shape, np.inf)
    for label, box in enumerate(find_objects(objects), 1):
        near = tuple(slice(max(each.start - margin, 0), each.stop + margin) for each in box)
        distance: NDArray[np.float64] = np.asarray(distance_transform_edt(objects[near] != label))
        second[near] = np.minimum(second[near], np.maximum(nearest[near], distance))
        nearest[near] = np.minimum(nearest[near], distance)
    weights = border * np.exp(-((nearest + second) ** 2) / (2 * sigma**2))
    return np.where(objects == 0, weights, 0)
