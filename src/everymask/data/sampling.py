"""Which crops are learnt from: a stream that can be entered anywhere, and draws that favour rare classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch.utils.data import Sampler

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from everymask.data.store import Store


class Draw(NamedTuple):
    """One crop of the endless stream of training crops.

    Args:
        index: Number of the sample.
        position: Position in the stream over all processes; with the seed it fixes every random choice.
        category: Class index of the segment that the crop is to hold; -1 leaves that to the crop.
    """

    index: int
    position: int
    category: int = -1


@dataclass(frozen=True)
class Census:
    """What the images of a data set hold.

    Args:
        pixels: (N, K) pixels of each class in each image, or in its boxes for methods that learn from those.
        background: (N,) pixels of no segment.
        present: (N, K) whether the image holds the class: has pixels or a box of it, or is tagged with it.
    """

    pixels: NDArray[np.int64]
    background: NDArray[np.int64]
    present: NDArray[np.bool_]

    @classmethod
    def of(cls, store: Store, progress: Callable[[int, int], None] | None = None) -> Census:
        """Counts; reads every annotation that is not in memory.

        Args:
            store: The samples.
            progress: Told how many of how many are counted.

        Raises:
            InputError: An annotation cannot be read.
        """
        count, classes = len(store), len(store.categories)
        pixels, background = np.zeros((count, classes), np.int64), np.zeros(count, np.int64)
        present = np.zeros((count, classes), np.bool_)
        for index in range(count):
            category, areas, background[index] = store.counts(index)
            np.add.at(pixels[index], category, areas)
            present[index, category] = True
            if progress is not None:
                progress(index + 1, count)
        return cls(pixels, background, present)


class BalancedDraws:
    """Draws a class first, rare ones as often as frequent ones, and then an image that holds it.

    Args:
        present: (N, K) which image holds which class.
        share: Of the positions that are drawn so, 0..1.
        seed: With the position it fixes the draw, whatever the number of processes.
    """

    def __init__(self, present: NDArray[np.bool_], share: float, seed: int) -> None:
        self.share, self.seed = share, seed
        holders = {index: np.flatnonzero(column) for index, column in enumerate(present.T)}
        self._holders = [(index, images) for index, images in holders.items() if len(images)]

    def draw(self, position: int) -> Draw | None:
        """The draw at a position of the stream; None leaves it as it is."""
        # The third number keeps this stream of random numbers apart from those of crops and permutations.
        rng = np.random.default_rng((self.seed, position, 2))
        if not self._holders or rng.random() >= self.share:
            return None
        category, images = self._holders[int(rng.integers(len(self._holders)))]
        return Draw(int(images[rng.integers(len(images))]), position, category)


class CropStream(Sampler[list[Draw]]):
    """The batches of a whole training run, as one stream that can be entered anywhere.

    Every pass over the data is a new permutation; a batch may span two passes, so all batches have the same size.
    Batch k of all processes together holds the positions from ``k * batch_size * processes`` on, in the order of the
    processes: two processes with batches of 4 learn from the same crops as one with batches of 8.

    Args:
        length: Number of samples.
        batch_size: Crops of a batch of this process.
        batches: Batches of the run.
        visits: How often each sample occurs in a pass, (length,); default: once.
        start: First batch; above 0 when a run is resumed.
        seed: Of the permutations.
        process: Number of this process.
        processes: Number of processes.
        balance: Takes some positions for other samples than the permutation has there.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        batches: int,
        visits: Sequence[int] | None = None,
        start: int = 0,
        seed: int = 0,
        process: int = 0,
        processes: int = 1,
        balance: BalancedDraws | None = None,
    ) -> None:
        self.samples = np.repeat(np.arange(length), 1 if visits is None else visits)
        self.batch_size, self.batches, self.start = batch_size, batches, start
        self.seed, self.process, self.processes, self.balance = seed, process, processes, balance

    def __len__(self) -> int:
        return max(0, self.batches - self.start)

    def __iter__(self) -> Iterator[list[Draw]]:
        current, order = -1, np.zeros(0, np.int64)
        for batch in range(self.start, self.batches):
            first = (batch * self.processes + self.process) * self.batch_size
            draws = []
            for position in range(first, first + self.batch_size):
                turn, place = divmod(position, len(self.samples))
                if turn != current:
                    # The third number keeps this stream of random numbers apart from that of the crops.
                    current = turn
                    order = np.random.default_rng((self.seed, turn, 1)).permutation(self.samples)
                draw = None if self.balance is None else self.balance.draw(position)
                draws.append(draw or Draw(int(order[place]), position))
            yield draws
