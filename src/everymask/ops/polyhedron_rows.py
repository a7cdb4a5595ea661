"""Polyhedra as rows of bits: which voxels lie inside a closed surface of triangles, 64 of a row in a word.

A surface is cut at every whole z, and the outlines that this gives at every whole y, as a polygon is filled by scan
lines. Each crossing toggles all voxels of the row before it, so that those inside remain. An edge belongs to both of
its triangles with the same numbers, and its upper end to the next: so every row crosses the surface an even number of
times, without any tolerance.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

_ALL = np.uint64(0xFFFFFFFFFFFFFFFF)
_FIFTHS = np.uint64(0x5555555555555555)
_THIRDS = np.uint64(0x3333333333333333)
_NIBBLES = np.uint64(0x0F0F0F0F0F0F0F0F)
_BYTES = np.uint64(0x0101010101010101)

# A voxel whose centre lies on the surface, such as at the end of a ray of whole length, counts as inside: polyhedra
# grow by this share, far below what could matter otherwise and far above the rounding of float64.
_GROWTH = 1e-6


@njit(cache=True, nogil=True)
def place_vertices(
    point: NDArray[np.float32],
    distances: NDArray[np.float32],
    directions: NDArray[np.float32],
    vertices: NDArray[np.float64],
    box: NDArray[np.int64],
) -> None:  # pragma: no cover - compiled
    """Vertices of a star polyhedron and the whole numbers that bound its voxels.

    Args:
        point: centre `(3,)` (z, y, x).
        distances: along the rays `(R,)`.
        directions: of the rays `(R, 3)`.
        vertices: `(R, 3)`, written; rounded to float32, as the official program has them, and then grown.
        box: `(6,)`, written: lowest z, y, x and highest z, y, x.
    """
    for axis in range(3):
        low = np.inf
        high = -np.inf
        centre = np.float64(point[axis])
        for k in range(distances.size):
            rounded = np.float64(point[axis] + distances[k] * directions[k, axis])
            vertex = centre + (rounded - centre) * (1.0 + _GROWTH)
            vertices[k, axis] = vertex
            low, high = min(low, vertex), max(high, vertex)
        box[axis], box[axis + 3] = np.int64(np.ceil(low)), np.int64(np.floor(high))


@njit(cache=True, nogil=True)
def write_rows(
    vertices: NDArray[np.float64], faces: NDArray[np.int32], box: NDArray[np.int64], step: int, rows: NDArray[np.uint64]
) -> None:  # pragma: no cover - compiled
    """Sets the bits of the voxels of a box that lie inside a polyhedron.

    Args:
        vertices: `(R, 3)` (z, y, x).
        faces: `(F, 3)` indices of vertices; any consistent order.
        box: `(6,)` lowest z, y, x and highest z, y, x, inclusive.
        step: only every so many planes, from the lowest z on, are written, one after the other.
        rows: at least as many words as the box has (see `words_of`), written; bit b of word w of a row is the voxel
            with x = 64 (w + (lowest x >> 6)) + b.
    """
    low_z, low_y, high_z, high_y = box[0], box[1], box[3], box[4]
    first_word = box[2] >> 6
    words = (box[5] >> 6) - first_word + 1
    height = high_y - low_y + 1
    rows[: ((high_z - low_z) // step + 1) * height * words] = np.uint64(0)
    for f in range(faces.shape[0]):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        az, bz, cz = vertices[a, 0], vertices[b, 0], vertices[c, 0]
        first = np.int64(np.ceil(min(az, bz, cz))) - low_z
        first = low_z + (-(-first // step) * step if first > 0 else 0)
        last = min(high_z, np.int64(np.floor(max(az, bz, cz))))
        if first > last:
            continue
        for z in range(first, last + 1, step):
            # The two edges that cross this plane; each is measured from its lower end, whichever triangle asks.
            begin_y = begin_x = end_y = end_x = 0.0
            found = 0
            for side in range(3):
                p, q = (a, b) if side == 0 else ((b, c) if side == 1 else (c, a))
                if vertices[p, 0] > vertices[q, 0]:
                    p, q = q, p
                pz, qz = vertices[p, 0], vertices[q, 0]
                if pz <= z and z < qz:
                    share = (z - pz) / (qz - pz)
                    y = vertices[p, 1] + share * (vertices[q, 1] - vertices[p, 1])
                    x = vertices[p, 2] + share * (vertices[q, 2] - vertices[p, 2])
                    if found == 0:
                        begin_y, begin_x = y, x
                    else:
                        end_y, end_x = y, x
                    found += 1
            if found < 2:
                continue
            if begin_y > end_y:
                begin_y, begin_x, end_y, end_x = end_y, end_x, begin_y, begin_x
            first_row = max(low_y, np.int64(np.ceil(begin_y)))
            last_row = min(high_y, np.int64(np.ceil(end_y)) - 1)
            if first_row > last_row:
                continue
            slope = (end_x - begin_x) / (end_y - begin_y)
            base = (z - low_z) // step * height
            for y in range(first_row, last_row + 1):
                # A crossing at a whole x would have to count for neither side; grown polyhedra have none that matter.
                crossing = np.int64(np.floor(begin_x + (y - begin_y) * slope))
                start = (base + y - low_y) * words
                word = (crossing >> 6) - first_word
                if word < 0:
                    continue
                for w in range(min(word, words)):
                    rows[start + w] ^= _ALL
                if word < words:
                    rows[start + word] ^= _ALL >> np.uint64(63 - (crossing & 63))


@njit(cache=True, nogil=True)
def words_of(box: NDArray[np.int64]) -> int:  # pragma: no cover - compiled
    """Words that the rows of a box fill; 0 where it is empty."""
    if box[3] < box[0] or box[4] < box[1] or box[5] < box[2]:
        return 0
    return (box[3] - box[0] + 1) * (box[4] - box[1] + 1) * ((box[5] >> 6) - (box[2] >> 6) + 1)


@njit(cache=True, nogil=True)
def count_shared(
    first: NDArray[np.uint64],
    first_box: NDArray[np.int64],
    second: NDArray[np.uint64],
    second_box: NDArray[np.int64],
    step: int,
) -> tuple[int, int]:  # pragma: no cover - compiled
    """Voxels inside both of two polyhedra, in every so many planes, and in the plane that has most of them.

    Args:
        first: rows of all planes of `first_box`.
        first_box: `(6,)`, which holds `second_box`.
        second: rows of every `step`-th plane of `second_box`.
        second_box: `(6,)`.
        step: planes from one that is counted to the next.
    """
    word = (second_box[2] >> 6) - (first_box[2] >> 6)
    words = (second_box[5] >> 6) - (second_box[2] >> 6) + 1
    pitch = (first_box[5] >> 6) - (first_box[2] >> 6) + 1
    height = first_box[4] - first_box[1] + 1
    total, most = np.int64(0), np.int64(0)
    place = 0
    for z in range(second_box[0], second_box[3] + 1, step):
        shared = np.uint64(0)
        for y in range(second_box[1], second_box[4] + 1):
            start = ((z - first_box[0]) * height + y - first_box[1]) * pitch + word
            for w in range(words):
                # Bits are counted in parallel: pairs, nibbles, bytes, and the bytes summed by a multiplication.
                bits = first[start + w] & second[place + w]
                bits -= (bits >> np.uint64(1)) & _FIFTHS
                bits = (bits & _THIRDS) + ((bits >> np.uint64(2)) & _THIRDS)
                bits = (bits + (bits >> np.uint64(4))) & _NIBBLES
                shared += (bits * _BYTES) >> np.uint64(56)
            place += words
        total += np.int64(shared)
        most = max(most, np.int64(shared))
    return int(total), int(most)


@njit(cache=True, nogil=True)
def paint_polyhedra(
    labels: NDArray[np.int32],
    first_plane: int,
    points: NDArray[np.float32],
    distances: NDArray[np.float32],
    directions: NDArray[np.float32],
    faces: NDArray[np.int32],
    order: NDArray[np.int64],
) -> None:  # pragma: no cover - compiled
    """Paints polyhedra one over the other into some planes of a volume.

    Args:
        labels: `(planes, H, W)`, written: polyhedron i has the id i + 1.
        first_plane: z of the first of the planes.
        points: centres `(N, 3)`.
        distances: along the rays `(N, R)`.
        directions: of the rays `(R, 3)`.
        faces: `(F, 3)`.
        order: indices of the polyhedra in the order of painting.
    """
    planes, height, width = labels.shape
    vertices = np.empty((directions.shape[0], 3), dtype=np.float64)
    box = np.empty(6, dtype=np.int64)
    rows = np.empty(1024, dtype=np.uint64)
    for n in order:
        place_vertices(points[n], distances[n], directions, vertices, box)
        box[0], box[3] = max(box[0], first_plane), min(box[3], first_plane + planes - 1)
        box[1], box[4] = max(box[1], 0), min(box[4], height - 1)
        box[2], box[5] = max(box[2], 0), min(box[5], width - 1)
        size = words_of(box)
        if size == 0:
            continue
        if size > rows.size:
            rows = np.empty(size, dtype=np.uint64)
        write_rows(vertices, faces, box, 1, rows)
        words = (box[5] >> 6) - (box[2] >> 6) + 1
        start = 0
        for z in range(box[0] - first_plane, box[3] - first_plane + 1):
            for y in range(box[1], box[4] + 1):
                for x in range(box[2], box[5] + 1):
                    word = rows[start + (x >> 6) - (box[2] >> 6)]
                    if (word >> np.uint64(x & 63)) & np.uint64(1):
                        labels[z, y, x] = n + 1
                start += words
