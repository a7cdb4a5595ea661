"""How an image file becomes the numbers a network sees; stored with the weights."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from everymask.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """Channel policy and intensity normalisation.

    Args:
        channels: Channels the network takes. Grey images are repeated into 3 channels; an RGB image becomes grey
            (ITU-R 601 luma) where 1 is wanted; any other difference is an error.
        normalise: ``percentile`` maps the `low` and `high` percentile of the image to 0 and 1; ``scale`` divides
            integers by the largest value of their type; then `mean` is subtracted and divided by `std`.
        low: Lower percentile, 0..100.
        high: Upper percentile, 0..100.
        per_channel: Take the percentiles of each channel alone instead of all channels together.
        mean: Subtracted after normalisation, one value for all channels or one each.
        std: Divided by after that.
        missing: What grey images get for the channels that they lack: ``repeat`` gives 3 equal ones, ``empty`` appends
            channels of zeros, for networks whose channels mean different things, such as a second stain.
    """

    channels: int = 3
    normalise: Literal["percentile", "scale"] = "percentile"
    low: float = 1.0
    high: float = 99.8
    per_channel: bool = False
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    missing: Literal["repeat", "empty"] = "repeat"

    def limits(self, image: NDArray[Any]) -> NDArray[np.float32]:
        """(2, C) or (2, 1): the values that become 0 and 1, of an image (H, W, C) or a volume (D, H, W, C).

        Percentiles of images above 16 megapixels are taken from every n-th pixel of rows and columns.
        """
        if self.normalise == "scale":
            top = np.iinfo(image.dtype).max if np.issubdtype(image.dtype, np.integer) else 1
            return np.array([[0], [top]], dtype=np.float32)
        step = max(1, int(np.sqrt(math.prod(image.shape[:-1]) / 2**24)))
        sampled = image[..., ::step, ::step, :]
        axis = tuple(range(image.ndim - 1)) if self.per_channel else None
        found = np.percentile(sampled, [self.low, self.high], axis=axis).astype(np.float32)
        return found.reshape(2, -1)

    def __call__(self, image: NDArray[Any], limits: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """The network's input (C, H, W) of an image (H, W, C) or (H, W), or (C, D, H, W) of a volume (D, H, W, C).

        Args:
            image: Any real number type; must be finite.
            limits: From `limits`, if they were taken on a larger image; default: those of this image.

        Raises:
            InputError: The channels do not fit.
        """
        image = self.match_channels(image)
        low, high = self.limits(image) if limits is None else limits
        # The floor keeps a flat image flat instead of blowing its noise up to full contrast.
        scaled = (image.astype(np.float32) - low) / np.maximum(high - low, 1e-6)
        scaled = (scaled - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return np.ascontiguousarray(np.moveaxis(scaled, -1, 0), dtype=np.float32)

    def match_channels(self, image: NDArray[Any]) -> NDArray[Any]:
        """The image as (H, W, channels), a volume (D, H, W, C) as (D, H, W, channels).

        Raises:
            InputError: There is no sensible conversion.
        """
        if image.ndim == 2:
            image = image[..., None]
        have = image.shape[-1]
        if image.ndim not in (3, 4):
            raise InputError(
                f"expected an image (H, W, C) or a volume (D, H, W, C), got an array of shape {image.shape}"
            )
        if have == self.channels:
            return image
        if have < self.channels and self.missing == "empty":
            return np.concatenate([image, np.zeros((*image.shape[:-1], self.channels - have), image.dtype)], axis=-1)
        if have == 1 and self.channels == 3:
            return np.repeat(image, 3, axis=-1)
        if have == 4 and self.channels == 3:
            return image[..., :3]  # the fourth channel of an RGBA file is transparency, not signal
        if have in (3, 4) and self.channels == 1:
            grey = image[..., :3].astype(np.float32) @ np.array([[0.299], [0.587], [0.114]], np.float32)
            # The number type stays, because `scale` takes the range from it.
            return np.round(grey).astype(image.dtype) if np.issubdtype(image.dtype, np.integer) else grey
        raise InputError(
            f"the image has {have} channels, but the model takes {self.channels}; "
            f"select channels or train with --channels {have}"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values for model files."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Preprocessing:
        """The inverse of `to_json`."""
        try:
            given: dict[str, Any] = {
                key: tuple(each) if isinstance(each, list) else each for key, each in values.items()
            }
            return cls(**given)
        except TypeError as error:
            raise InputError(f"unknown preprocessing {values!r} ({error})") from error
