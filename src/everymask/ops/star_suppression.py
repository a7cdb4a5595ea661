"""Greedy suppression of overlapping star polygons: the compiled loop behind `stars.non_maximum_suppression`."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from everymask.ops.star_overlap import (
    clipper_intersection_area,
    edge_lines,
    intersection_area,
    new_workspace,
    twice_signed_area,
)


@njit(cache=True, nogil=True)
def suppress(
    points: NDArray[np.float32],
    distances: NDArray[np.float32],
    sines: NDArray[np.float32],
    cosines: NDArray[np.float32],
    threshold: np.float32,
) -> NDArray[np.bool_]:  # pragma: no cover - compiled
    """Greedy suppression over polygons sorted by descending score; True for the kept ones.

    Most pairs are decided by the octagons around them, with sides along the axes and diagonals: the octagon around both
    bounds their union from above, so the two areas less its area bound the intersection from below; the common part of
    the two octagons bounds it from above. Both decisions leave a margin for the rounding of crossings. The other
    pairs are intersected, and those that come near the threshold once more with the rounding of Clipper.

    Args:
        points: centres `(N, 2)` (y, x).
        distances: distances along rays `(N, R)`.
        sines: of the angles of the rays `(R,)`.
        cosines: of the same.
        threshold: share of the smaller area above which the worse polygon is dropped.
    """
    total, rays = distances.shape
    # Vertices are computed again where they are needed: that is cheaper than to fetch them from memory.
    x, y = np.empty(rays, dtype=np.int32), np.empty(rays, dtype=np.int32)
    other_x, other_y = np.empty(rays, dtype=np.int32), np.empty(rays, dtype=np.int32)
    cross = np.empty(rays, dtype=np.float32)
    octagon = np.empty((total, 8), dtype=np.float32)
    area = np.empty(total, dtype=np.float32)
    reach = np.empty(total, dtype=np.float32)
    bits, bits_of_reach = distances.view(np.int32), reach.view(np.int32)
    for i in range(total):
        _whole_vertices(points[i, 0], points[i, 1], distances[i], sines, cosines, x, y)
        _octagon(x, y, octagon[i])
        area[i] = _float_area(x, y, cross)
        bits_of_reach[i] = _largest(bits[i])  # positive numbers are ordered like their bits
    keep = np.ones(total, dtype=np.bool_)
    if total == 0:
        return keep

    # Candidates sorted into square buckets; each bucket is a stretch of `members`, from which dropped ones are removed.
    largest_reach = reach.max()
    top, left = points[:, 0].min(), points[:, 1].min()
    extent = (points[:, 0].max() - top) * (points[:, 1].max() - left)
    side = max(np.float32(4), np.float32(0.5) * largest_reach, np.float32(np.sqrt(extent / total)))
    rows = np.int64((points[:, 0].max() - top) / side) + 1
    columns = np.int64((points[:, 1].max() - left) / side) + 1
    bucket = np.empty(total, dtype=np.int64)
    begin = np.zeros(rows * columns + 1, dtype=np.int64)
    for i in range(total):
        bucket[i] = np.int64((points[i, 0] - top) / side) * columns + np.int64((points[i, 1] - left) / side)
        begin[bucket[i] + 1] += 1
    for b in range(rows * columns):
        begin[b + 1] += begin[b]
    end = begin[:-1].copy()
    members = np.empty(total, dtype=np.int64)
    for i in range(total):
        members[end[bucket[i]]] = i
        end[bucket[i]] += 1

    workspace = new_workspace(rays)
    no_levels = np.empty(0, dtype=np.float64)
    lines = np.empty((5, rays), dtype=np.float64)
    other_lines = np.empty((5, rays), dtype=np.float64)
    for i in range(total):
        if not keep[i]:
            continue
        lines_ready = False
        signed_area = np.int64(0)
        # No polygon whose centre is further away overlaps; the official program asks its tree of centres for these.
        radius = largest_reach + reach[i]
        squared_radius = radius * radius
        first_row = max(np.int64(0), np.int64(np.floor((points[i, 0] - radius - top) / side)))
        last_row = min(rows - 1, np.int64((points[i, 0] + radius - top) / side))
        first_column = max(np.int64(0), np.int64(np.floor((points[i, 1] - radius - left) / side)))
        last_column = min(columns - 1, np.int64((points[i, 1] + radius - left) / side))
        for row in range(first_row, last_row + 1):
            for b in range(row * columns + first_column, row * columns + last_column + 1):
                write = begin[b]
                for read in range(begin[b], end[b]):
                    j = members[read]
                    if j <= i:  # kept ones included: they only meet worse ones, from their own turn
                        continue
                    decision = _octagons_decide(octagon[i], octagon[j], area[i], area[j], threshold)
                    if decision == 0:
                        dy, dx = points[i, 0] - points[j, 0], points[i, 1] - points[j, 1]
                        if dy * dy + dx * dx < squared_radius:
                            if not lines_ready:
                                _whole_vertices(points[i, 0], points[i, 1], distances[i], sines, cosines, x, y)
                                edge_lines(x, y, 1.0, lines)
                                signed_area = twice_signed_area(x, y)
                                lines_ready = True
                            _whole_vertices(points[j, 0], points[j, 1], distances[j], sines, cosines, other_x, other_y)
                            edge_lines(other_x, other_y, -1.0, other_lines)
                            other_area = twice_signed_area(other_x, other_y)
                            shared, doubt = intersection_area(
                                lines, other_lines, signed_area, other_area, no_levels, workspace
                            )
                            smaller = min(area[i], area[j])
                            if abs(shared - threshold * smaller) < doubt:
                                shared = clipper_intersection_area(x, y, other_x, other_y, workspace)
                            share = np.float32(np.float32(shared) / (float(smaller) + 1e-10))
                            decision = 1 if share > threshold else -1
                    if decision > 0:
                        keep[j] = False
                    else:
                        members[write] = j
                        write += 1
                end[b] = write
    return keep


@njit(cache=True, nogil=True)
def _whole_vertices(
    centre_y: np.float32,
    centre_x: np.float32,
    distances: NDArray[np.float32],
    sines: NDArray[np.float32],
    cosines: NDArray[np.float32],
    x: NDArray[np.int32],
    y: NDArray[np.int32],
) -> None:  # pragma: no cover - compiled
    """Vertices cut to whole pixels (towards 0), computed in float32 like those of the official program."""
    for k in range(distances.size):
        x[k] = np.int32(centre_x + distances[k] * cosines[k])
        y[k] = np.int32(centre_y + distances[k] * sines[k])


@njit(cache=True, nogil=True)
def _octagon(
    x: NDArray[np.int32], y: NDArray[np.int32], octagon: NDArray[np.float32]
) -> None:  # pragma: no cover - compiled
    """Smallest and largest x, y, x + y and x - y of the vertices, the largest negated."""
    low_x = low_y = low_sum = low_difference = np.int32(0x7FFFFFFF)
    high_x = high_y = high_sum = high_difference = np.int32(-0x7FFFFFFF)
    for k in range(x.size):
        low_x, high_x = min(low_x, x[k]), max(high_x, x[k])
        low_y, high_y = min(low_y, y[k]), max(high_y, y[k])
        low_sum, high_sum = min(low_sum, x[k] + y[k]), max(high_sum, x[k] + y[k])
        low_difference, high_difference = min(low_difference, x[k] - y[k]), max(high_difference, x[k] - y[k])
    octagon[0], octagon[1], octagon[2], octagon[3] = low_x, low_y, low_sum, low_difference
    octagon[4], octagon[5], octagon[6], octagon[7] = -high_x, -high_y, -high_sum, -high_difference


@njit(cache=True, nogil=True)
def _float_area(
    x: NDArray[np.int32], y: NDArray[np.int32], cross: NDArray[np.float32]
) -> np.float32:  # pragma: no cover - compiled
    """Area of a polygon, summed in float32 in the order of the official program.

    Its products are whole numbers of 64 bits; below 2^53, as they are here, float64 holds them, too, and is faster.
    """
    last = x.size - 1
    for k in range(last):
        cross[k] = np.float32(float(x[k]) * float(y[k + 1]) - float(y[k]) * float(x[k + 1]))
    cross[last] = np.float32(float(x[last]) * float(y[0]) - float(y[last]) * float(x[0]))
    total = np.float32(0)
    for k in range(x.size):
        total += cross[k]
    return np.float32(0.5) * abs(total)


@njit(cache=True, nogil=True)
def _largest(numbers: NDArray[np.int32]) -> np.int32:  # pragma: no cover - compiled
    """The largest of some whole numbers, which processors compare many at a time."""
    most = numbers[0]
    for k in range(1, numbers.size):
        most = max(most, numbers[k])
    return most


@njit(cache=True, nogil=True)
def _octagons_decide(
    first: NDArray[np.float32],
    second: NDArray[np.float32],
    first_area: np.float32,
    second_area: np.float32,
    threshold: np.float32,
) -> int:  # pragma: no cover - compiled
    """1 where the overlap is surely above the threshold, -1 where surely not, 0 where the octagons cannot tell."""
    # Common part: the larger of the lower bounds.
    width = -max(first[4], second[4]) - max(first[0], second[0])
    height = -max(first[5], second[5]) - max(first[1], second[1])
    if width < 0 or height < 0:
        return -1
    smaller = min(first_area, second_area)
    needed = threshold * smaller
    margin = np.float32(2) + np.float32(1.5) * (width + height)
    if width * height < needed - margin:
        return -1
    # Octagon around both: the smaller of the lower bounds.
    low_x, low_y = min(first[0], second[0]), min(first[1], second[1])
    low_sum, low_difference = min(first[2], second[2]), min(first[3], second[3])
    high_x, high_y = -min(first[4], second[4]), -min(first[5], second[5])
    high_sum, high_difference = -min(first[6], second[6]), -min(first[7], second[7])
    union = (high_x - low_x) * (high_y - low_y)
    cut = low_sum - (low_x + low_y)
    union -= 0.5 * cut * cut
    cut = (high_x + high_y) - high_sum
    union -= 0.5 * cut * cut
    cut = low_difference - (low_x - high_y)
    union -= 0.5 * cut * cut
    cut = (high_x - low_y) - high_difference
    union -= 0.5 * cut * cut
    if first_area + second_area - union > needed + margin:
        return 1
    # Common part once more, less the corners that diagonal sides cut off: those of one diagonal, which do not overlap.
    left, top = max(first[0], second[0]), max(first[1], second[1])
    right, bottom = left + width, top + height
    most = min(width, height)
    sum_cut = min(max(max(first[2], second[2]) - (left + top), np.float32(0)), most)
    other_sum_cut = min(max((right + bottom) + max(first[6], second[6]), np.float32(0)), most)
    difference_cut = min(max(max(first[3], second[3]) - (left - bottom), np.float32(0)), most)
    other_difference_cut = min(max((right - top) + max(first[7], second[7]), np.float32(0)), most)
    cut = max(
        sum_cut * sum_cut + other_sum_cut * other_sum_cut,
        difference_cut * difference_cut + other_difference_cut * other_difference_cut,
    )
    if width * height - 0.5 * cut < needed - margin:
        return -1
    return 0
