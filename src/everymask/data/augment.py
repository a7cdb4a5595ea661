"""Random crops and augmentation of an image and its label map together."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from everymask.types.geometry import VOID

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Ranges of the random changes; the defaults change nothing.

    Every number is drawn anew, uniformly from its range, for each crop. Intensities are those of the normalised image,
    where 0 and 1 are the ends of its range (before a mean is subtracted).

    Args:
        flip: Symmetries to choose from, all exact: ``none``, ``mirror`` (left-right), ``flips`` (also up-down) or
            ``dihedral`` (also quarter turns: the 8 symmetries of the square).
        rotate: Largest rotation in degrees, either way.
        scale: Range of the magnification.
        brightness: Added, from -brightness to brightness.
        contrast: Range of the factor.
        gamma: Range of the exponent; values below 0 keep their sign.
        noise: Largest standard deviation of Gaussian noise.
        blur: Largest standard deviation of a Gaussian blur, in pixels.
        invert: Probability of x -> 1 - x.
        colour: Added to each channel alone, from -colour to colour.
    """

    flip: Literal["none", "mirror", "flips", "dihedral"] = "none"
    rotate: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    brightness: float = 0.0
    contrast: tuple[float, float] = (1.0, 1.0)
    gamma: tuple[float, float] = (1.0, 1.0)
    noise: float = 0.0
    blur: float = 0.0
    invert: float = 0.0
    colour: float = 0.0

    def draw_placement(self, rng: np.random.Generator, volume: bool = False) -> Placement:
        """A random orientation and magnification.

        Args:
            rng: Source of the randomness.
            volume: Also draw whether the order of planes is reversed, if up-down flips are allowed.
        """
        angle = math.radians(rng.uniform(-self.rotate, self.rotate)) if self.rotate else 0.0
        low, high = self.scale
        # Uniform in the logarithm, so that halving is as probable as doubling.
        scale = math.exp(rng.uniform(math.log(low), math.log(high))) if high > low else low
        flip = self.flip != "none" and bool(rng.integers(2))
        backwards = self.flip in ("flips", "dihedral") and volume and bool(rng.integers(2))
        # A flip and half a turn make an up-down flip.
        turns = {"none": 0, "mirror": 0, "flips": 2 * int(rng.integers(2)), "dihedral": int(rng.integers(4))}[self.flip]
        return Placement(angle, scale, flip, turns, backwards)

    def draw_window(self, size: tuple[int, int], rng: np.random.Generator) -> tuple[slice, slice]:
        """Rows and columns of a random window, for images that are learnt as a whole.

        Its sides are those of the image divided by the magnification, and up to a sixth longer or shorter where the
        magnification varies, so that its proportions vary by up to 4 : 3 (Szegedy et al. 2015, sec. 6).

        Args:
            size: (H, W) of the image.
            rng: Source of the randomness.
        """
        low, high = self.scale
        scale = math.exp(rng.uniform(math.log(low), math.log(high))) if high > low else low
        stretch = math.exp(rng.uniform(-0.5, 0.5) * math.log(4 / 3)) if high > low else 1.0
        window = []
        for length, factor in zip(size, (stretch, 1 / stretch), strict=True):
            side = min(length, max(1, round(length / scale * factor)))
            start = int(rng.integers(length - side + 1))
            window.append(slice(start, start + side))
        return window[0], window[1]

    def change_intensities(self, image: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        """The image (C, H, W) or volume (C, D, H, W) with other intensities, blurred and with noise."""
        if self.invert and rng.random() < self.invert:
            image = 1 - image
        if self.gamma != (1.0, 1.0):
            image = np.sign(image) * np.abs(image) ** np.float32(rng.uniform(*self.gamma))
        if self.contrast != (1.0, 1.0):
            image = image * np.float32(rng.uniform(*self.contrast))
        if self.brightness:
            image = image + np.float32(rng.uniform(-self.brightness, self.brightness))
        if self.colour:
            shift = rng.uniform(-self.colour, self.colour, (image.shape[0], *[1] * (image.ndim - 1)))
            image = image + shift.astype(np.float32)
        if self.blur:
            from scipy import ndimage

            width = rng.uniform(0, self.blur)
            # Planes of a volume lie further apart than pixels, and each is blurred for itself.
            image = ndimage.gaussian_filter(image, width, mode="nearest", axes=(-2, -1))
        if self.noise:
            strength = rng.uniform(0, self.noise)
            image = (image + strength * rng.standard_normal(image.shape)).astype(np.float32)
        return image


@dataclass(frozen=True, slots=True)
class Placement:
    """How a square crop lies in its image: rotated by `angle`, magnified by `scale`, then turned and flipped exactly.

    Planes of volumes are treated alike (see `everymask.data.volumes`).

    Args:
        angle: Radians.
        scale: Above 1 the objects in the crop are larger than in the image.
        flip: Left-right flip, after the turns.
        turns: Counter-clockwise quarter turns.
        backwards: Of volumes, the order of planes is reversed.
    """

    angle: float = 0.0
    scale: float = 1.0
    flip: bool = False
    turns: int = 0
    backwards: bool = False

    def steps(self) -> NDArray[np.float64]:
        """(2, 2): image (y, x) that one pixel down and one pixel to the right in the crop amount to, as columns."""
        cosine, sine = math.cos(self.angle) / self.scale, math.sin(self.angle) / self.scale
        return np.array([[cosine, -sine], [sine, cosine]])

    def random_centre(
        self,
        crop: int,
        size: tuple[int, int],
        rng: np.random.Generator,
        target: NDArray[np.float64] | None = None,
    ) -> NDArray[np.float64]:
        """The image point (y, x) on which the crop is centred.

        Args:
            crop: Side of the crop in its own pixels.
            size: (H, W) of the image.
            rng: Source of the randomness.
            target: An image point that is to lie in the crop, anywhere with equal probability; None for any place. A
                crop that would reach beyond the image is moved back into it, as far as it fits; the target stays in it
                unless it is rotated.

        Returns:
            (2,) in pixel coordinates: 0 is the middle of the first pixel.
        """
        half = crop / self.scale / 2
        limits = np.array(size, np.float64)
        low = np.minimum(half, limits / 2) - 0.5
        high = np.maximum(limits - half, limits / 2) - 0.5
        if target is None:
            return rng.uniform(low, high)
        offset = self.steps() @ rng.uniform(-(crop - 1) / 2, (crop - 1) / 2, 2)
        return np.clip(target - offset, low, high)

    def cut(
        self,
        image: NDArray[Any],
        ids: NDArray[Any],
        centre: NDArray[np.float64],
        crop: int,
        prepare: Callable[[NDArray[Any]], NDArray[np.float32]],
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """The crop of an image and of its label map.

        Only the window of the image that the crop needs is touched. Beyond its borders the image is mirrored and the
        labels are void. Without rotation and magnification pixels are copied; otherwise the image is interpolated
        bilinearly and labels are taken from the nearest pixel.

        Args:
            image: (H, W, C) of any number type.
            ids: (H, W) labels, or (H, W, P) labels of P planes that are cut alike.
            centre: (y, x) as `random_centre` gives it.
            crop: Side of the result.
            prepare: Makes float (C, h, w) of a window (h, w, C) of the image.

        Returns:
            Image (C, crop, crop) and labels (crop, crop) or (crop, crop, P).
        """
        if self.angle == 0 and self.scale == 1:
            found, labels = _copy(image, ids, np.round(centre - (crop - 1) / 2).astype(int), crop, prepare)
        else:
            found, labels = _resample(image, ids, centre, self.steps(), crop, prepare)
        found, labels = np.rot90(found, self.turns, (1, 2)), np.rot90(labels, self.turns)
        if self.flip:
            found, labels = found[..., ::-1], labels[:, ::-1]
        return np.ascontiguousarray(found), np.ascontiguousarray(labels)

    def moved_boxes(self, boxes: NDArray[np.floating], centre: NDArray[np.float64], crop: int) -> NDArray[np.float64]:
        """Boxes of the image in the pixels of the crop; of rotated ones, the upright boxes around them.

        Args:
            boxes: (N, 4) x0, y0, x1, y1 in pixels of the image, right and bottom edges exclusive.
            centre: As for `cut`.
            crop: Side of the crop.

        Returns:
            (N, 4); they may reach beyond the crop.
        """
        points = boxes[:, [1, 0, 1, 2, 3, 0, 3, 2]].reshape(-1, 4, 2).astype(np.float64)  # corners (y, x)
        if self.angle == 0 and self.scale == 1:
            points = points - np.round(centre - (crop - 1) / 2)
        else:
            # 0 is the middle of the first pixel for `centre`, and its edge for boxes.
            points = (points - 0.5 - centre) @ np.linalg.inv(self.steps()).T + crop / 2
        for _ in range(self.turns % 4):
            points = np.stack([crop - points[..., 1], points[..., 0]], axis=-1)
        if self.flip:
            points[..., 1] = crop - points[..., 1]
        return np.concatenate([points.min(axis=1)[:, ::-1], points.max(axis=1)[:, ::-1]], axis=1)

    def outside(self, size: tuple[int, int], centre: NDArray[np.float64], crop: int) -> NDArray[np.bool_]:
        """(crop, crop) whether a pixel of the crop lies beyond the borders of the image.

        Args:
            size: (H, W) of the image.
            centre: As for `cut`.
            crop: Side of the crop.
        """
        offsets = np.arange(crop) - (crop - 1) / 2
        if self.angle == 0 and self.scale == 1:
            centre = np.round(centre - (crop - 1) / 2) + (crop - 1) / 2
        steps = self.steps()
        found = np.zeros((crop, crop), np.bool_)
        for axis in range(2):
            places = centre[axis] + steps[axis, 0] * offsets[:, None] + steps[axis, 1] * offsets[None, :]
            found |= (places < -0.5) | (places > size[axis] - 0.5)
        found = np.rot90(found, self.turns)
        return np.ascontiguousarray(found[:, ::-1] if self.flip else found)


def _copy(
    image: NDArray[Any],
    ids: NDArray[Any],
    start: NDArray[np.int64],
    crop: int,
    prepare: Callable[[NDArray[Any]], NDArray[np.float32]],
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """The pixels from `start` on, exactly."""
    low = np.maximum(start, 0)
    high = np.minimum(start + crop, ids.shape[:2])
    found = prepare(image[low[0] : high[0], low[1] : high[1]])
    labels = ids[low[0] : high[0], low[1] : high[1]].astype(np.int32)
    margins = np.stack([low - start, start + crop - high], axis=1)
    if margins.any():
        found = np.pad(found, [(0, 0), *margins], mode="symmetric")
        labels = np.pad(labels, [*margins, *[(0, 0)] * (ids.ndim - 2)], constant_values=VOID)
    return found, labels


def _resample(
    image: NDArray[Any],
    ids: NDArray[Any],
    centre: NDArray[np.float64],
    steps: NDArray[np.float64],
    crop: int,
    prepare: Callable[[NDArray[Any]], NDArray[np.float32]],
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """The crop on a rotated or magnified grid."""
    import torch
    from torch.nn import functional

    reach = np.abs(steps).sum(axis=1) * (crop - 1) / 2 + 1  # 1 for the neighbours of the interpolation
    limits = np.array(ids.shape[:2])
    low = np.clip(np.floor(centre - reach), 0, limits - 1).astype(int)
    high = np.clip(np.ceil(centre + reach) + 1, low + 1, limits).astype(int)
    window = prepare(image[low[0] : high[0], low[1] : high[1]])
    labels = ids[low[0] : high[0], low[1] : high[1]].astype(np.float32) + 1  # void is 0, as grid_sample gives outside

    offsets = np.arange(crop) - (crop - 1) / 2
    origin = centre - low
    rows = origin[0] + steps[0, 0] * offsets[:, None] + steps[0, 1] * offsets[None, :]
    columns = origin[1] + steps[1, 0] * offsets[:, None] + steps[1, 1] * offsets[None, :]
    # grid_sample counts from -1 to 1 between the outer edges of the first and the last pixel.
    height, width = labels.shape[:2]
    grid = np.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], axis=-1)
    places = torch.from_numpy(grid.astype(np.float32))[None]
    found = functional.grid_sample(
        torch.from_numpy(window)[None], places, mode="bilinear", padding_mode="reflection", align_corners=False
    )
    planes = np.ascontiguousarray(labels.reshape(height, width, -1).transpose(2, 0, 1))
    nearest = functional.grid_sample(
        torch.from_numpy(planes)[None], places, mode="nearest", padding_mode="zeros", align_corners=False
    )
    drawn = nearest[0].numpy().astype(np.int32) - 1
    return found[0].numpy(), drawn[0] if ids.ndim == 2 else drawn.transpose(1, 2, 0)
