"""Tuning a method's decision thresholds on validation data."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from everymask.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from everymask.metrics import Metric
    from everymask.train.validation import Validator

ITERATIONS = 20
"""Shortenings of an interval in a golden-section search; with the tolerance below fewer do."""

CACHE_BYTES = 1_000_000_000
"""Network outputs that are kept while thresholds are tried; those of further images are computed anew each time."""

OBJECT_IOU = (0.3, 0.5, 0.7)
"""Thresholds are tuned for the mean accuracy at these, as by StarDist's program: steadier than a single one."""


def tune_thresholds(
    validator: Validator,
    cache_bytes: int = CACHE_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Thresholds of `Method.tunable` that maximise the method's figures on the validation images.

    The network runs once on each image (but of a method that finds boxes in each trial, if it sees the image in tiles);
    then every combination of the listed values is tried, and for each the thresholds given as a range are searched by
    golden section, one after the other. The present thresholds are tried as well, so the result is never worse than
    they are.

    Args:
        validator: Method, images and metric. The method's thresholds are as before afterwards.
        cache_bytes: Bytes of outputs to keep.
        progress: Told how many trials of at most how many are done.

    Returns:
        The method's thresholds with the tuned ones replaced.
    """
    method = validator.method
    protocol, figure = method.metric
    make: Callable[[], Metric] = validator.new_metric
    if protocol == "matching":
        from everymask.metrics.matching import MatchingMetric

        make, figure = lambda: MatchingMetric(validator.categories, OBJECT_IOU), "mean_accuracy"
    boxes = method.learns_from != "labels"
    before = dict(method.thresholds)
    was_training = method.training
    predictor = validator.predictor()
    cache: dict[str, tuple[dict[str, Tensor], tuple[int, ...]]] = {}
    kept = 0
    known: dict[tuple[tuple[str, float], ...], float] = {}

    def score(thresholds: Mapping[str, float]) -> float:
        nonlocal kept
        key = tuple(sorted(thresholds.items()))
        if key in known:
            return known[key]
        method.thresholds = dict(thresholds)
        metric = make()
        for name, decoded, truth in validator.samples():
            if boxes and not predictor.in_one_piece(decoded.image, decoded.limits):
                # What is found in tiles is joined behind the thresholds.
                validator.update(metric, truth, predictor(decoded.image, decoded.limits), name)
                continue
            found = cache.get(name) or predictor.outputs(decoded.image, decoded.limits)
            if name not in cache:
                size = sum(each.nbytes for each in found[0].values())
                if kept + size <= cache_bytes:
                    cache[name] = found
                    kept += size
            validator.update(metric, truth, method.decode(found[0], [found[1]])[0], name)
        reached = validator.merge(metric, make()).compute()[figure]
        known[key] = reached if math.isfinite(reached) else -math.inf
        if progress is not None:
            progress(len(known), most)
        return known[key]

    lists = {name: values for name, values in method.tunable.items() if len(values) != 2}
    ranges = {name: values for name, values in method.tunable.items() if len(values) == 2}
    most = 1 + math.prod(len(values) for values in lists.values()) * max(1, len(ranges) * (ITERATIONS + 2))
    try:
        method.eval()
        best = before
        score(before)
        for values in itertools.product(*lists.values()):
            trial = {**before, **dict(zip(lists, values, strict=True))}
            for name, (low, high) in ranges.items():
                trial[name] = golden_section(lambda value: score({**trial, name: value}), low, high)  # noqa: B023 - called at once
            if score(trial) > score(best):
                best = trial
        return best
    finally:
        method.thresholds = before
        method.train(was_training)


def golden_section(
    function: Callable[[float], float], low: float, high: float, tolerance: float = 1e-2, iterations: int = ITERATIONS
) -> float:
    """The point of low..high at which a function is largest, by golden-section search (Kiefer 1953).

    Exact for functions with one maximum; among equal values the smaller point is preferred. Returns the best point that
    was tried.

    Args:
        function: What to maximise.
        low: Lower end.
        high: Upper end.
        tolerance: Length of the interval at which the search ends.
        iterations: Largest number of shortenings.

    Raises:
        InputError: The range is empty.
    """
    if not low < high:
        raise InputError(f"a range of thresholds must have low < high, got {low} {high}")
    ratio = (math.sqrt(5) - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = function(left), function(right)
    tried = {left: at_left, right: at_right}
    for _ in range(iterations):
        if high - low <= tolerance:
            break
        if at_left >= at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = tried[left] = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = tried[right] = function(right)
    return max(sorted(tried), key=tried.__getitem__)
