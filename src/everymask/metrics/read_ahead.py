"""Truth and predictions read by several threads, a few images ahead of the metric that takes them in."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from everymask.types import Dataset, Sample, Segments


def read_ahead(
    data: Dataset, predict: Callable[[Sample], Segments], *, threads: int | None = None
) -> Iterator[tuple[Sample, Segments | None, Segments | None]]:
    """Samples, their truth and their predictions, in order.

    Decoding images is most of the time that scoring finished predictions takes, and runs without the interpreter's
    lock. Twice as many images as there are threads are in memory at once.

    Args:
        data: The truth.
        predict: Gives the prediction for a sample; it is called by several threads at once, so it may read files but
            not run a network.
        threads: How many; by default one for each processor that may be used, 8 at most.

    Yields:
        The sample, its truth, and its prediction: both None where a sample has no annotation.

    Raises:
        InputError: Whatever reading raises, when it is the image's turn.
    """

    def both(index: int) -> tuple[Sample, Segments | None, Segments | None]:
        sample = data[index]
        truth = sample.segments
        return sample, truth, None if truth is None else predict(sample)

    if threads is None:
        threads = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    if threads < 2:
        yield from map(both, range(len(data)))
        return
    waiting: deque[Future[tuple[Sample, Segments | None, Segments | None]]] = deque()
    with ThreadPoolExecutor(threads, "read-ahead") as pool:
        try:
            for index in range(len(data)):
                waiting.append(pool.submit(both, index))
                if len(waiting) >= 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for each in waiting:
                each.cancel()
