"""Greedy suppression of overlapping star polyhedra: the compiled loop behind `star_volumes.suppress_polyhedra`.

The official program (`stardist.lib.stardist3d`) asks of two polyhedra, in this order: may the boxes, or the spheres
around them, share enough? Do the spheres within them? Do the kernels (the points that see all of the surface), whose
common volume is exact and bounds that of the polyhedra from below? Do not even the convex hulls, which bound it from
above? How many voxels do they share? The first that is sure decides. Kernels and hulls are exact where voxels are
counted, so they can only differ from the count by what counting may err: where the count is further from the threshold
than that, it decides alone.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from everymask.ops.half_spaces import hull_planes, intersection_volume
from everymask.ops.polyhedron_rows import count_shared, place_vertices, words_of, write_rows

# Polyhedra that are measured at once, one in each lane of the processor's vectors.
_LANES = 16
# Words of the rows of bits that are kept at a time: larger polyhedra are counted in parts.
_WORDS = 1 << 21
# What official quotients add to their divisor, so that a volume of 0 never divides by 0.
_OFFICIAL_EPSILON = 1e-10
# How far a count may be from the volume, as a share of half the surface of the box that holds what is counted. Counts
# of cubes whose faces lie on voxels err by .35 of it, those of round bodies by a tenth of that.
_COUNTING_ERROR = 0.36
# Planes of what two polyhedra share that are counted first.
_PLANES = 6


@njit(cache=True, nogil=True)
def suppress(
    points: NDArray[np.float32],
    distances: NDArray[np.float32],
    directions: NDArray[np.float32],
    faces: NDArray[np.int32],
    threshold: np.float32,
) -> NDArray[np.bool_]:  # pragma: no cover - compiled
    """Greedy suppression over polyhedra sorted by descending score; True for the kept ones.

    Args:
        points: centres `(N, 3)` (z, y, x).
        distances: distances along rays `(N, R)`.
        directions: unit vectors `(R, 3)`.
        faces: triangles `(F, 3)`.
        threshold: share of the smaller volume above which the worse polyhedron is dropped.
    """
    total, rays = distances.shape
    keep = np.ones(total, dtype=np.bool_)
    if total == 0:
        return keep
    boxes, volumes = _boxes_and_volumes(points, distances, directions, faces)
    scale = _average_scale(boxes)
    inner, outer = _radii(distances, directions, faces, scale)
    reach = np.empty(total, dtype=np.float32)
    for i in range(total):
        reach[i] = distances[i].max()

    # Candidates sorted into buckets; each bucket is a stretch of `members`, from which dropped ones are removed.
    largest_reach = reach.max()
    lows = np.empty(3, dtype=np.float32)
    counts = np.empty(3, dtype=np.int64)
    extent = 1.0
    for axis in range(3):
        lows[axis] = points[:, axis].min()
        extent *= points[:, axis].max() - lows[axis] + 1
    side = np.float32(max(2.0, 0.5 * largest_reach, (extent / total) ** (1.0 / 3.0)))
    for axis in range(3):
        counts[axis] = np.int64((points[:, axis].max() - lows[axis]) / side) + 1
    bucket = np.empty(total, dtype=np.int64)
    begin = np.zeros(counts[0] * counts[1] * counts[2] + 1, dtype=np.int64)
    for i in range(total):
        place = np.int64(0)
        for axis in range(3):
            place = place * counts[axis] + np.int64((points[i, axis] - lows[axis]) / side)
        bucket[i] = place
        begin[place + 1] += 1
    for b in range(begin.size - 1):
        begin[b + 1] += begin[b]
    end = begin[:-1].copy()
    members = np.empty(total, dtype=np.int64)
    for i in range(total):
        members[end[bucket[i]]] = i
        end[bucket[i]] += 1

    vertices = np.empty((2, rays, 3), dtype=np.float64)
    cells = np.empty((2, 6), dtype=np.int64)
    first_rows, second_rows = np.empty(1, dtype=np.uint64), np.empty(1, dtype=np.uint64)
    from_bucket, to_bucket = np.empty(3, dtype=np.int64), np.empty(3, dtype=np.int64)
    for i in range(total):
        if not keep[i]:
            continue
        ready = False
        for axis in range(3):
            radius = largest_reach + reach[i]
            from_bucket[axis] = max(0, np.int64(math.floor((points[i, axis] - radius - lows[axis]) / side)))
            to_bucket[axis] = min(counts[axis] - 1, np.int64((points[i, axis] + radius - lows[axis]) / side))
        for bz in range(from_bucket[0], to_bucket[0] + 1):
            for by in range(from_bucket[1], to_bucket[1] + 1):
                row = (bz * counts[1] + by) * counts[2]
                for b in range(row + from_bucket[2], row + to_bucket[2] + 1):
                    write = begin[b]
                    for read in range(begin[b], end[b]):
                        j = members[read]
                        if j <= i:  # kept ones included: they only meet worse ones, from their own turn
                            continue
                        smaller = min(volumes[i], volumes[j])
                        decision = _bounds_decide(
                            points[i], points[j], boxes[i], boxes[j], reach[i] + reach[j], outer[i], outer[j], inner[i],
                            inner[j], scale, smaller, threshold,
                        )  # fmt: skip
                        if decision == 0:
                            if not ready:
                                place_vertices(points[i], distances[i], directions, vertices[0], cells[0])
                                size = min(words_of(cells[0]), _WORDS)
                                if size > first_rows.size:
                                    first_rows = np.empty(size, dtype=np.uint64)
                                if words_of(cells[0]) <= _WORDS:
                                    write_rows(vertices[0], faces, cells[0], 1, first_rows)
                                ready = True
                            place_vertices(points[j], distances[j], directions, vertices[1], cells[1])
                            size = min(words_of(cells[1]), _WORDS)
                            if size > second_rows.size:
                                second_rows = np.empty(size, dtype=np.uint64)
                            enough = np.float64(smaller) * np.float64(threshold)
                            shared, doubt = _shared_voxels(vertices, cells, faces, enough, first_rows, second_rows)
                            share = np.float32(np.float32(shared) / (np.float64(smaller) + _OFFICIAL_EPSILON))
                            decision = 1 if share > threshold else -1
                            if abs(shared - enough) <= doubt:
                                decision = _exact_volumes_decide(
                                    vertices, points[i], points[j], faces, enough, decision
                                )
                        if decision > 0:
                            keep[j] = False
                        else:
                            members[write] = j
                            write += 1
                    end[b] = write
    return keep


@njit(cache=True, nogil=True)
def _boxes_and_volumes(
    points: NDArray[np.float32],
    distances: NDArray[np.float32],
    directions: NDArray[np.float32],
    faces: NDArray[np.int32],
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:  # pragma: no cover - compiled
    """Boxes of the rounded vertices `(N, 6)`, lowest and highest of each axis, and volumes `(N,)`, all in float32."""
    total, rays = distances.shape
    boxes = np.empty((total, 6), dtype=np.int32)
    volumes = np.empty(total, dtype=np.float32)
    corners = np.empty((3, rays, _LANES), dtype=np.float32)
    low, high = np.empty(_LANES, dtype=np.float32), np.empty(_LANES, dtype=np.float32)
    for start in range(0, total, _LANES):
        lanes = min(_LANES, total - start)
        for axis in range(3):
            low[:], high[:] = np.inf, -np.inf
            centre = points[start : start + lanes, axis]
            for k in range(rays):
                direction = directions[k, axis]
                corner = corners[axis, k]
                for n in range(lanes):
                    corner[n] = distances[start + n, k] * direction
                    vertex = centre[n] + corner[n]
                    low[n], high[n] = min(low[n], vertex), max(high[n], vertex)
            for n in range(lanes):
                boxes[start + n, 2 * axis] = np.int32(np.rint(low[n]))
                boxes[start + n, 2 * axis + 1] = np.int32(np.rint(high[n]))
        sums = np.zeros(_LANES, dtype=np.float32)
        for f in range(faces.shape[0]):
            az, ay, ax = corners[0, faces[f, 0]], corners[1, faces[f, 0]], corners[2, faces[f, 0]]
            bz, by, bx = corners[0, faces[f, 1]], corners[1, faces[f, 1]], corners[2, faces[f, 1]]
            cz, cy, cx = corners[0, faces[f, 2]], corners[1, faces[f, 2]], corners[2, faces[f, 2]]
            for n in range(_LANES):
                pz, py, px = bz[n] - az[n], by[n] - ay[n], bx[n] - ax[n]
                qz, qy, qx = cz[n] - az[n], cy[n] - ay[n], cx[n] - ax[n]
                rz, ry, rx = -az[n], -ay[n], -ax[n]
                determinant = pz * (qy * rx - ry * qx) - py * (qz * rx - qx * rz) + px * (qz * ry - qy * rz)
                sums[n] += determinant / np.float32(6)
        volumes[start : start + lanes] = sums[:lanes]
    return boxes, volumes


@njit(cache=True, nogil=True)
def _average_scale(boxes: NDArray[np.int32]) -> NDArray[np.float32]:  # pragma: no cover - compiled
    """Factors of the axes that make the average box a cube, the largest extent staying as it is."""
    extents = np.zeros(3, dtype=np.float32)
    total = np.float32(boxes.shape[0])
    for i in range(boxes.shape[0]):
        for axis in range(3):
            extents[axis] += np.float32(boxes[i, 2 * axis + 1] - boxes[i, 2 * axis]) / total
    largest = extents.max()
    scale = np.ones(3, dtype=np.float32)
    for axis in range(3):
        # Where all polyhedra are smaller than a voxel, nothing is a voxel wide; boxes then decide alone.
        if extents[axis] > 0:
            scale[axis] = largest / extents[axis]
    return scale


@njit(cache=True, nogil=True)
def _radii(
    distances: NDArray[np.float32],
    directions: NDArray[np.float32],
    faces: NDArray[np.int32],
    scale: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:  # pragma: no cover - compiled
    """Radii `(N,)` of the largest spheres around the centres within, and of the smallest around, in scaled axes."""
    total, rays = distances.shape
    inner, outer = np.empty(total, dtype=np.float32), np.empty(total, dtype=np.float32)
    corners = np.empty((3, rays, _LANES), dtype=np.float32)
    nearest, farthest = np.empty(_LANES, dtype=np.float32), np.empty(_LANES, dtype=np.float32)
    for start in range(0, total, _LANES):
        lanes = min(_LANES, total - start)
        farthest[:], nearest[:] = 0, np.inf
        for k in range(rays):
            for axis in range(3):
                corner = corners[axis, k]
                for n in range(lanes):
                    corner[n] = scale[axis] * distances[start + n, k] * directions[k, axis]
            z, y, x = corners[0, k], corners[1, k], corners[2, k]
            for n in range(lanes):
                farthest[n] = max(farthest[n], z[n] * z[n] + y[n] * y[n] + x[n] * x[n])
        for f in range(faces.shape[0]):
            az, ay, ax = corners[0, faces[f, 0]], corners[1, faces[f, 0]], corners[2, faces[f, 0]]
            bz, by, bx = corners[0, faces[f, 1]], corners[1, faces[f, 1]], corners[2, faces[f, 1]]
            cz, cy, cx = corners[0, faces[f, 2]], corners[1, faces[f, 2]], corners[2, faces[f, 2]]
            for n in range(_LANES):
                pz, py, px = bz[n] - az[n], by[n] - ay[n], bx[n] - ax[n]
                qz, qy, qx = cz[n] - az[n], cy[n] - ay[n], cx[n] - ax[n]
                nz, ny, nx = px * qy - py * qx, pz * qx - px * qz, py * qz - pz * qy
                length = np.float64(np.sqrt(nz * nz + ny * ny + nx * nx)) + _OFFICIAL_EPSILON
                shrink = np.float32(1.0 / length)
                distance = az[n] * (nz * shrink) + ay[n] * (ny * shrink) + ax[n] * (nx * shrink)
                nearest[n] = min(nearest[n], distance)
        for n in range(lanes):
            inner[start + n], outer[start + n] = nearest[n], np.sqrt(farthest[n])
    return inner, outer


@njit(cache=True, nogil=True)
def _bounds_decide(
    first: NDArray[np.float32],
    second: NDArray[np.float32],
    first_box: NDArray[np.int32],
    second_box: NDArray[np.int32],
    reach: np.float32,
    first_outer: np.float32,
    second_outer: np.float32,
    first_inner: np.float32,
    second_inner: np.float32,
    scale: NDArray[np.float32],
    smaller: np.float32,
    threshold: np.float32,
) -> int:  # pragma: no cover - compiled
    """1 where the overlap is surely above the threshold, -1 where surely not, 0 where boxes and spheres cannot tell."""
    dz, dy, dx = first[0] - second[0], first[1] - second[1], first[2] - second[2]
    if dz * dz + dy * dy + dx * dx >= reach * reach:
        return -1
    common = np.float32(1)
    for axis in range(3):
        low, high = (
            max(first_box[2 * axis], second_box[2 * axis]),
            min(first_box[2 * axis + 1], second_box[2 * axis + 1]),
        )
        common *= np.float32(max(high - low, 0))
    volume = np.float64(smaller) + _OFFICIAL_EPSILON
    if common < 1e-10 or np.float32(common / volume) <= threshold:
        return -1
    dz, dy, dx = scale[0] * dz, scale[1] * dy, scale[2] * dx
    distance = np.sqrt(dz * dz + dy * dy + dx * dx)
    common = _shared_ball(first_outer, second_outer, distance, scale)
    if common < 1e-10 or np.float32(common / volume) <= threshold:
        return -1
    if np.float32(_shared_ball(first_inner, second_inner, distance, scale) / volume) > threshold:
        return 1
    return 0


@njit(cache=True, nogil=True)
def _shared_ball(
    first: np.float32, second: np.float32, distance: np.float32, scale: NDArray[np.float32]
) -> np.float32:  # pragma: no cover - compiled
    """Volume that two balls share, in float32 as the official program has it.

    A ball within the other has its volume in scaled axes there, larger than that in voxels: an upper bound stays one,
    and a lower one errs only for polyhedra of which one lies in the middle of another.
    """
    if distance > first + second:
        return np.float32(0)
    small, large = min(first, second), max(first, second)
    if large >= np.float64(distance + small) - _OFFICIAL_EPSILON:
        return np.float32(math.pi * 4 / 3 * small * small * small)
    part = (first + second - distance) / np.float32(2) / distance
    height = (second - first + distance) * part
    other_height = (first - second + distance) * part
    cap = np.float32(math.pi / 3 * height * height * (np.float32(3) * first - height))
    other_cap = np.float32(math.pi / 3 * other_height * other_height * (np.float32(3) * second - other_height))
    return (cap + other_cap) / (scale[0] * scale[1] * scale[2])


@njit(cache=True, nogil=True)
def _shared_voxels(
    vertices: NDArray[np.float64],
    cells: NDArray[np.int64],
    faces: NDArray[np.int32],
    enough: float,
    first_rows: NDArray[np.uint64],
    second_rows: NDArray[np.uint64],
) -> tuple[int, float]:  # pragma: no cover - compiled
    """Voxels that two polyhedra share, and by how much their common volume may differ from that.

    Some planes are counted first. Where their number is far from enough, an estimate is returned.

    Args:
        vertices: of both `(2, R, 3)`.
        cells: the boxes of both `(2, 6)`.
        faces: `(F, 3)`.
        enough: the voxels that have to be told from more of them.
        first_rows: rows of bits of the first in its box; room for parts of it where it is larger than `_WORDS`.
        second_rows: room for those of the second.
    """
    common = np.empty(6, dtype=np.int64)
    for axis in range(3):
        common[axis] = max(cells[0, axis], cells[1, axis])
        common[axis + 3] = min(cells[0, axis + 3], cells[1, axis + 3])
    words = words_of(common)
    if words == 0:
        return 0, 1.0
    depth, height, width = common[3] - common[0] + 1, common[4] - common[1] + 1, common[5] - common[2] + 1
    doubt = _COUNTING_ERROR * float(depth * height + height * width + width * depth)
    if words_of(cells[0]) <= _WORDS and words <= second_rows.size:
        step = max(1, depth // _PLANES)
        while True:
            write_rows(vertices[1], faces, common, step, second_rows)
            shared, most = count_shared(first_rows, cells[0], second_rows, common, step)
            # Sections of round bodies grow and then shrink, so that no more than one step of the largest is missed.
            if step == 1 or abs(shared * step - enough) > doubt + step * most:
                return shared * step, doubt
            step = 1
    part, shared = common.copy(), 0
    planes = max(1, min(first_rows.size, second_rows.size) // (words // depth))
    for low in range(common[0], common[3] + 1, planes):
        part[0], part[3] = low, min(low + planes - 1, common[3])
        write_rows(vertices[0], faces, part, 1, first_rows)
        write_rows(vertices[1], faces, part, 1, second_rows)
        shared += count_shared(first_rows, part, second_rows, part, 1)[0]
    return shared, doubt


@njit(cache=True, nogil=True)
def _exact_volumes_decide(
    vertices: NDArray[np.float64],
    first: NDArray[np.float32],
    second: NDArray[np.float32],
    faces: NDArray[np.int32],
    enough: float,
    counted: int,
) -> int:  # pragma: no cover - compiled
    """What kernels and hulls say against the count, 1 for too much overlap or -1 for not; else the count itself.

    The official program seeks both intersections from the middle between the two centres: where that lies outside, the
    kernels count as apart, and the hulls cannot tell.
    """
    count = faces.shape[0]
    middle = np.empty(3, dtype=np.float64)
    for axis in range(3):
        middle[axis] = 0.5 * (np.float64(first[axis]) + np.float64(second[axis]))
    if counted < 0:
        normals, offsets = np.empty((2 * count, 3), dtype=np.float64), np.empty(2 * count, dtype=np.float64)
        found = 0
        for which in range(2):
            for f in range(count):
                a, b, c = vertices[which, faces[f, 0]], vertices[which, faces[f, 1]], vertices[which, faces[f, 2]]
                pz, py, px = b[0] - a[0], b[1] - a[1], b[2] - a[2]
                qz, qy, qx = c[0] - a[0], c[1] - a[1], c[2] - a[2]
                nz, ny, nx = px * qy - py * qx, pz * qx - px * qz, py * qz - pz * qy
                length = math.sqrt(nz * nz + ny * ny + nx * nx)
                if length == 0:
                    continue
                away = (a[0] - middle[0]) * nz + (a[1] - middle[1]) * ny + (a[2] - middle[2]) * nx
                if away <= 0:
                    return counted
                normals[found, 0], normals[found, 1], normals[found, 2] = nz / length, ny / length, nx / length
                offsets[found] = away / length
                found += 1
        return 1 if intersection_volume(normals[:found], offsets[:found], enough) > enough else counted
    centred = np.empty((vertices.shape[1], 3), dtype=np.float64)
    for axis in range(3):
        centred[:, axis] = vertices[0, :, axis] - first[axis]
    normals, offsets = hull_planes(centred)
    for axis in range(3):
        centred[:, axis] = vertices[1, :, axis] - second[axis]
    other_normals, other_offsets = hull_planes(centred)
    for axis in range(3):
        offsets -= normals[:, axis] * (middle[axis] - first[axis])
        other_offsets -= other_normals[:, axis] * (middle[axis] - second[axis])
    if offsets.min() <= 0 or other_offsets.min() <= 0:
        return counted
    normals, offsets = np.concatenate((normals, other_normals)), np.concatenate((offsets, other_offsets))
    return counted if intersection_volume(normals, offsets, enough) > enough else -1
