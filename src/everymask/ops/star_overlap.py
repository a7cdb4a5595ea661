"""Intersection area of two polygons with whole-pixel vertices, made for the suppression of star polygons.

The area is that of the boundary pieces of each polygon inside the other (Green's theorem). Where a vertex lies on an
edge or two edges overlap, the second polygon counts as moved by an infinitely small step, along x and much less along y
(Edelsbrunner and Muecke, "Simulation of Simplicity", 1990): no case is special, and the area is not changed.

The official StarDist program takes the area from the Clipper library (version 6), which moves crossings of edges to
whole pixels by rules of its own. Near the threshold this decides, so `clipper_intersection_area` follows these rules.
It gives Clipper's area in all but a few cases, in which outlines touch without crossing or cross themselves.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
from numba import njit
from numpy.typing import NDArray

# Room for the crossings of one pair of polygons of R vertices: this times R. Star polygons have far fewer.
_CROSSINGS_PER_VERTEX = 4

Workspace: TypeAlias = tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.int64]]


@njit(cache=True, nogil=True)
def new_workspace(vertices: int) -> Workspace:  # pragma: no cover - compiled
    """Scratch memory of the functions below for polygons of at most that many vertices."""
    room = _CROSSINGS_PER_VERTEX * vertices
    sides = np.empty((2, vertices + 1, vertices + 1), dtype=np.uint8)
    return sides, np.empty((4, room), dtype=np.float64), np.empty((5, room), dtype=np.int64)


@njit(cache=True, nogil=True)
def edge_lines(
    x: NDArray[np.integer[Any]], y: NDArray[np.integer[Any]], moved: float, lines: NDArray[np.float64]
) -> None:  # pragma: no cover - compiled
    """Write the lines through the edges of a polygon of R vertices to `lines` (5, R): x, y, dx, dy, c.

    A point (u, v) lies to the left of edge k where `dx * v - dy * u + c > 0`. All numbers are whole, so half a unit in
    `c` decides a point on the line as if it were moved by an infinitely small step (`moved` 1) or moved back (-1).
    """
    count = x.size
    for k in range(count):
        follower = k + 1 if k + 1 < count else 0
        dx = float(x[follower] - x[k])
        dy = float(y[follower] - y[k])
        step = -dy if dy != 0 else dx
        lines[0, k] = x[k]
        lines[1, k] = y[k]
        lines[2, k] = dx
        lines[3, k] = dy
        lines[4, k] = dy * x[k] - dx * y[k] + (0.5 * moved if step > 0 else -0.5 * moved)


@njit(cache=True, nogil=True)
def twice_signed_area(
    x: NDArray[np.integer[Any]], y: NDArray[np.integer[Any]]
) -> np.int64:  # pragma: no cover - compiled
    """Twice the area of a polygon with whole vertices, positive where it turns from the x axis to the y axis."""
    total = np.int64(0)
    previous = x.size - 1
    for k in range(x.size):
        total += np.int64(x[previous]) * np.int64(y[k]) - np.int64(y[previous]) * np.int64(x[k])
        previous = k
    return total


@njit(cache=True, nogil=True)
def intersection_area(
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    first_area: np.int64,
    second_area: np.int64,
    levels: NDArray[np.float64],
    workspace: Workspace,
) -> tuple[float, float]:  # pragma: no cover - compiled
    """Area that two polygons share, and how far that of Clipper may be from it, both in pixels.

    Args:
        first: `edge_lines` (5, R) of one polygon, written with `moved` 1.
        second: `edge_lines` (5, S) of the other, written with `moved` -1.
        first_area: `twice_signed_area` of the first.
        second_area: the same of the second.
        levels: all y of both polygons in descending order to place crossings as Clipper does; empty to leave them.
        workspace: from `new_workspace`.
    """
    sides, place, crossing = workspace
    count, other_count = first.shape[1], second.shape[1]
    of_second, of_first = sides[0], sides[1]
    # of_second[k, m]: vertex m of the second is left of edge k of the first; of_first[k, m]: vertex k of the first is
    # left of edge m of the second. Two edges cross where both pairs of ends are on different sides.
    for k in range(count):
        dx, dy, c = first[2, k], first[3, k], first[4, k]
        for m in range(other_count):
            of_second[k, m] = dx * second[1, m] - dy * second[0, m] + c > 0
        of_second[k, other_count] = of_second[k, 0]
        x, y = first[0, k], first[1, k]
        for m in range(other_count):
            of_first[k, m] = second[2, m] * y - second[3, m] * x + second[4, m] > 0
    for m in range(other_count):
        of_first[count, m] = of_first[0, m]

    found = 0
    doubt = 2.0
    for k in range(count):
        some = np.uint8(0)
        for m in range(other_count):
            some |= (of_second[k, m] ^ of_second[k, m + 1]) & (of_first[k, m] ^ of_first[k + 1, m])
        if some == 0:
            continue
        for m in range(other_count):
            crosses = (of_second[k, m] ^ of_second[k, m + 1]) & (of_first[k, m] ^ of_first[k + 1, m])
            if crosses == 0 or found == place.shape[1]:
                continue
            across_x, across_y = second[0, m] - first[0, k], second[1, m] - first[1, k]
            turn = first[2, k] * second[3, m] - first[3, k] * second[2, m]  # never 0: parallel edges do not cross
            along = (across_x * second[3, m] - across_y * second[2, m]) / turn
            x, y = first[0, k] + along * first[2, k], first[1, k] + along * first[3, k]
            if levels.size > 0 and not (x == math.floor(x) and y == math.floor(y)):
                x, y = _clipper_crossing(first[:, k], second[:, m], levels)
            place[0, found], place[1, found] = x, y
            place[2, found] = along
            place[3, found] = (across_x * first[3, k] - across_y * first[2, k]) / turn
            crossing[0, found], crossing[1, found] = k, m
            crossing[2, found] = 1 if of_first[k + 1, m] else -1  # change of winding, walking along the first
            # A crossing moved by a pixel along x and y turns the two sides that meet there: they sweep triangles.
            # (Measured on 19,000 pairs of predicted polygons: Clipper stays below two fifths of this.)
            doubt += 0.5 * (abs(first[2, k]) + abs(first[3, k]) + abs(second[2, m]) + abs(second[3, m]))
            found += 1

    # Winding number of the other polygon about the first vertex of each.
    of_vertex = 0
    for m in range(other_count):
        follower = m + 1 if m + 1 < other_count else 0
        above, then_above = second[1, m] >= first[1, 0], second[1, follower] >= first[1, 0]
        if above != then_above and then_above == (of_first[0, m] == 1):
            of_vertex += 1 if then_above else -1
    of_other_vertex = 0
    for k in range(count):
        follower = k + 1 if k + 1 < count else 0
        above, then_above = first[1, k] > second[1, 0], first[1, follower] > second[1, 0]
        if above != then_above and then_above == (of_second[k, 0] == 1):
            of_other_vertex += 1 if then_above else -1

    if found == 0:
        if of_vertex != 0:
            return 0.5 * abs(first_area), doubt
        return (0.5 * abs(second_area) if of_other_vertex != 0 else 0.0), doubt
    origin_x, origin_y = first[0, 0], first[1, 0]
    mine = _inside_boundary(first, 0, place, crossing, found, of_vertex, origin_x, origin_y)
    other = _inside_boundary(second, 1, place, crossing, found, of_other_vertex, origin_x, origin_y)
    area = 0.5 * (mine if first_area >= 0 else -mine) + 0.5 * (other if second_area >= 0 else -other)
    return area, doubt


@njit(cache=True, nogil=True)
def _inside_boundary(
    lines: NDArray[np.float64],
    which: int,
    place: NDArray[np.float64],
    crossing: NDArray[np.int64],
    found: int,
    winding: int,
    origin_x: float,
    origin_y: float,
) -> float:  # pragma: no cover - compiled
    """Twice the signed area under the boundary of polygon `which` as far as it runs inside the other one.

    `winding` is the winding number of the other polygon about the first vertex of this one. The area is taken towards
    the origin, near by, so that whole numbers stay exact.
    """
    order = crossing[3 + which]
    along = place[2 + which]
    edge = crossing[which]
    for n in range(found):
        at = n
        while at > 0:
            before = order[at - 1]
            if edge[before] < edge[n] or (edge[before] == edge[n] and along[before] <= along[n]):
                break
            order[at] = before
            at -= 1
        order[at] = n
    sense = 1 if which == 0 else -1
    count = lines.shape[1]
    total = 0.0
    following = 0
    x, y = lines[0, 0] - origin_x, lines[1, 0] - origin_y
    for k in range(count):
        while following < found and edge[order[following]] == k:
            n = order[following]
            next_x, next_y = place[0, n] - origin_x, place[1, n] - origin_y
            if winding != 0:
                total += x * next_y - y * next_x
            winding += sense * crossing[2, n]
            x, y = next_x, next_y
            following += 1
        follower = k + 1 if k + 1 < count else 0
        next_x, next_y = lines[0, follower] - origin_x, lines[1, follower] - origin_y
        if winding != 0:
            total += x * next_y - y * next_x
        x, y = next_x, next_y
    return total


@njit(cache=True, nogil=True)
def clipper_intersection_area(
    x: NDArray[np.integer[Any]],
    y: NDArray[np.integer[Any]],
    other_x: NDArray[np.integer[Any]],
    other_y: NDArray[np.integer[Any]],
    workspace: Workspace,
) -> float:  # pragma: no cover - compiled
    """Area that two polygons with whole vertices share, with the crossings of edges where Clipper puts them.

    Clipper sweeps over both polygons from the largest y to the smallest, in beams between the heights of the vertices;
    vertices in the middle of a straight line are taken out before.

    Args:
        x: of the vertices of one polygon `(R,)`, whole pixels.
        y: of the same.
        other_x: of the vertices of the other `(S,)`.
        other_y: of the same.
        workspace: from `new_workspace`, for at least as many vertices.
    """
    x, y = _without_straight_vertices(x, y)
    other_x, other_y = _without_straight_vertices(other_x, other_y)
    if x.size < 3 or other_x.size < 3:
        return 0.0
    lines = np.empty((5, x.size), dtype=np.float64)
    other_lines = np.empty((5, other_x.size), dtype=np.float64)
    edge_lines(x, y, 1.0, lines)
    edge_lines(other_x, other_y, -1.0, other_lines)
    levels = -np.sort(-np.concatenate((lines[1], other_lines[1])))
    areas = twice_signed_area(x, y), twice_signed_area(other_x, other_y)
    return intersection_area(lines, other_lines, areas[0], areas[1], levels, workspace)[0]


@njit(cache=True, nogil=True)
def _without_straight_vertices(
    x: NDArray[np.integer[Any]], y: NDArray[np.integer[Any]]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:  # pragma: no cover - compiled
    """The polygon without repeated vertices and without those on a straight line between their neighbours."""
    x, y = x.astype(np.int64), y.astype(np.int64)
    count = x.size
    k = unchanged = 0
    while count > 2 and unchanged < count:
        before, after = (k + count - 1) % count, (k + 1) % count
        if (x[k] - x[before]) * (y[after] - y[k]) == (y[k] - y[before]) * (x[after] - x[k]):
            for n in range(k, count - 1):
                x[n], y[n] = x[n + 1], y[n + 1]
            count -= 1
            k = (k + count - 1) % count
            unchanged = 0
        else:
            k = after
            unchanged += 1
    return x[:count], y[:count]


@njit(cache=True, nogil=True)
def _round_away(value: float) -> int:  # pragma: no cover - compiled
    """Nearest whole number, halves away from 0."""
    return math.floor(value + 0.5) if value >= 0 else math.ceil(value - 0.5)


@njit(cache=True, nogil=True)
def _x_at(
    low_x: float, low_y: float, high_x: float, high_y: float, slope: float, y: float
) -> float:  # pragma: no cover - compiled
    """Whole x of an edge at height y, as seen from its start."""
    return high_x if y == high_y else low_x + _round_away(slope * (y - low_y))


@njit(cache=True, nogil=True)
def _clipper_crossing(
    first: NDArray[np.float64], second: NDArray[np.float64], levels: NDArray[np.float64]
) -> tuple[float, float]:  # pragma: no cover - compiled
    """Whole point where Clipper lets two edges cross that do not cross in a whole point.

    `first` and `second` are columns of `edge_lines`. The sweep goes towards smaller y, so edges start at their larger y
    ("low" here). Two edges are found to have crossed at the first end of a beam where their rounded x are in the wrong
    order. The point is then the rounded crossing of their lines, moved into the beam where it lies outside.
    """
    ax, ay, bx, by = first[0], first[1], first[0] + first[2], first[1] + first[3]
    if by > ay:
        ax, ay, bx, by = bx, by, ax, ay
    cx, cy, dx, dy = second[0], second[1], second[0] + second[2], second[1] + second[3]
    if dy > cy:
        cx, cy, dx, dy = dx, dy, cx, cy
    slope = (bx - ax) / (by - ay) if by != ay else 0.0  # of x over y
    other_slope = (dx - cx) / (dy - cy) if dy != cy else 0.0
    if by == ay:
        return _x_at(cx, cy, dx, dy, other_slope, ay), ay
    if dy == cy:
        return _x_at(ax, ay, bx, by, slope, cy), cy
    steeper_is_first = abs(slope) < abs(other_slope)

    bottom, top = min(ay, cy), max(by, dy)
    position = (ax * (ay - by) + (bx - ax) * (ay - bottom)) * (cy - dy)
    other_position = (cx * (cy - dy) + (dx - cx) * (cy - bottom)) * (ay - by)
    first_is_left = position < other_position or (position == other_position and slope > other_slope)
    beam = bottom
    for y in levels:
        if y >= beam:
            continue
        if y < top:
            break
        x, other_x = _x_at(ax, ay, bx, by, slope, y), _x_at(cx, cy, dx, dy, other_slope, y)
        if (x <= other_x) if first_is_left else (other_x <= x):
            beam = y
            continue
        # The order of operations is that of Clipper: halves are common here, and rounding errors decide them.
        if slope == 0:
            cross_x = ax
            cross_y = _round_away(ax / other_slope + (cy - cx / other_slope))
        elif other_slope == 0:
            cross_x = cx
            cross_y = _round_away(cx / slope + (ay - ax / slope))
        else:
            shift, other_shift = ax - ay * slope, cx - cy * other_slope
            height = (other_shift - shift) / (slope - other_slope)
            cross_y = _round_away(height)
            cross_x = _round_away(slope * height + shift if steeper_is_first else other_slope * height + other_shift)
        limited = min(max(cross_y, top), beam)
        if limited != cross_y:
            cross_y = limited
            if steeper_is_first:
                cross_x = _x_at(ax, ay, bx, by, slope, cross_y)
            else:
                cross_x = _x_at(cx, cy, dx, dy, other_slope, cross_y)
        if cross_y < y:
            return (x if first_is_left else other_x), y
        return cross_x, cross_y
    # Never in the wrong order before the first of them ends: they meet in that end.
    return (bx, by) if by == top else (dx, dy)
