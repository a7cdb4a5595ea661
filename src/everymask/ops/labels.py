"""Label maps: renumbering, components, boundaries, and the measures of every object in one pass.

A label map is an integer array (H, W) or (Z, H, W). 0 is background, negative values are void (to be ignored), and
each positive value is an object or a class. Neighbouring pixels mostly agree, so the kernels work on runs of equal
values along the rows, and look a value up only where a run begins.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from everymask.errors import InputError
from everymask.ops.label_tables import distinct, joint_histogram, renumber

# -- renumbering -------------------------------------------------------------------------------------------------------


def compact_labels(ids: NDArray[Any]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Number the labels of an image 1..N.

    Args:
        ids: (H, W) or (Z, H, W), any integer type, or a float type that holds whole numbers (as some programs write).
            Labels may be as sparse and as large as they like.

    Returns:
        The label map int32 with labels 1..N in increasing order of the original ones, 0 for background and -1 for
        every negative value; and the N original labels, int64.

    Raises:
        InputError: The values are no whole numbers, or do not fit 64 bits.
    """
    ids = _whole_numbers(ids, "label map")
    values = distinct(ids)
    originals = values[values > 0].astype(np.int64)
    count = len(originals)
    already_compact = count == 0 or (originals[0] == 1 and originals[-1] == count)
    if ids.dtype == np.int32 and already_compact and (len(values) == 0 or values[0] >= -1):
        return ids, originals
    targets = np.where(values < 0, -1, np.cumsum(values > 0))
    return renumber(ids, values, targets), originals


def semantic_labels(
    classes: NDArray[Any], void: int | None = 255, background: int | None = None
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """One label for each class of a semantic map.

    Args:
        classes: (H, W) or (Z, H, W) category ids; any whole numbers, 0 and negative ones included.
        void: Value of ignored pixels, if there is one.
        background: Value that stands for no category at all, if there is one.

    Returns:
        The label map int32, in which label i + 1 is the i-th category that occurs, 0 is background and -1 void; and
        the ids of those categories in increasing order, int64.

    Raises:
        InputError: The values are no whole numbers, or do not fit 64 bits.
    """
    classes = _whole_numbers(classes, "semantic map")
    values = distinct(classes).astype(np.int64)
    is_category = np.ones(len(values), bool)
    targets = np.zeros(len(values), np.int64)
    for value, target in ((background, 0), (void, -1)):
        if value is not None:
            is_category[values == value] = False
            targets[values == value] = target
    targets[is_category] = np.arange(1, is_category.sum() + 1)
    return renumber(classes, values, targets), values[is_category]


def label_overlap(a: NDArray[Any], b: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Which labels of two maps meet, and in how many pixels: their joint histogram, without the zeros.

    All measures of matching follow from this table. Background, void and every other value count as labels of their
    own, so that the sums over the rows of a label are its area.

    Args:
        a: Whole numbers of any type, any shape.
        b: Likewise, of the same shape.

    Returns:
        Labels of `a`, labels of `b` and the number of pixels (at least 1) in which they meet, (P,) int64 each, ordered
        by label of `a` and then of `b`.

    Raises:
        InputError: The shapes differ, or the values are no whole numbers.
    """
    a, b = _whole_numbers(a, "first label map"), _whole_numbers(b, "second label map")
    if a.shape != b.shape:
        raise InputError(f"label maps have shapes {a.shape} and {b.shape}, expected equal ones")
    return joint_histogram(a, b)


def _whole_numbers(values: NDArray[Any], name: str) -> NDArray[Any]:
    """`values` as contiguous uint8, int32 or int64: few types, since kernels are compiled for each."""
    values = np.asarray(values)
    if values.dtype.kind == "f":
        whole = values.astype(np.int64)
        if not bool(np.all(whole == values)):
            raise InputError(f"{name}: holds fractions or non-finite values ({values.dtype}), expected whole numbers")
        values = whole
    elif values.dtype.kind not in "biu":
        raise InputError(f"{name}: got values of type {values.dtype}, expected integers")
    elif values.dtype == np.uint64 and int(values.max(initial=0)) > np.iinfo(np.int64).max:
        raise InputError(f"{name}: holds {values.max()}, expected at most {np.iinfo(np.int64).max}")
    if values.dtype in (np.bool_, np.uint8):
        return np.ascontiguousarray(values).view(np.uint8)
    fits = np.can_cast(values.dtype, np.int32)
    return np.ascontiguousarray(values, np.int32 if fits else np.int64)


def _volume(ids: NDArray[Any], name: str = "label map") -> NDArray[np.int32]:
    """A label map as contiguous int32 (Z, H, W), of one slice if it is an image."""
    ids = np.asarray(ids)
    if ids.ndim not in (2, 3):
        raise InputError(f"{name}: got shape {ids.shape}, expected (H, W) or (Z, H, W)")
    whole = _whole_numbers(ids, name)
    limits = np.iinfo(np.int32)
    if whole.dtype == np.int64 and whole.size and (whole.max() > limits.max or whole.min() < limits.min):
        raise InputError(f"{name}: holds labels beyond {limits.max}; number them anew with `compact_labels`")
    whole = np.ascontiguousarray(whole, np.int32)
    return whole if ids.ndim == 3 else whole[None]


# -- components --------------------------------------------------------------------------------------------------------


def connected_components(ids: NDArray[Any], connectivity: int = 1) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Connected parts of every label of a map, or of a mask, in one go.

    Touching objects of different labels stay apart. For a mask this is `scipy.ndimage.label`.

    Args:
        ids: Label map (H, W) or (Z, H, W), or a mask of that shape.
        connectivity: In how many axes a pixel and its neighbour may differ, as in scikit-image: 1 joins pixels that
            share an edge (a face in volumes), the number of axes also those that share only a corner.

    Returns:
        The components int32 (same shape), numbered 1..M in the order in which their first pixels are met along the
        rows, 0 background, -1 void; and the label (M,) int32 that each component is a part of.

    Raises:
        InputError: No label map, or another connectivity than 1..number of axes.
    """
    volume = _volume(ids)
    axes = np.ndim(ids)
    if not 1 <= connectivity <= axes:
        raise InputError(f"connectivity: got {connectivity}, expected 1..{axes} for an array of {axes} axes")
    components, owners = component_tables(volume, earlier_rows(axes, connectivity))
    return components.reshape(np.shape(ids)), owners


def earlier_rows(axes: int, connectivity: int) -> NDArray[np.int64]:
    """(K, 3) rows of pixels that come before a row in memory and touch it: steps z and y, and how far askew in x."""
    rows = [
        (dz, dy, min(1, connectivity - abs(dz) - abs(dy)))
        for dz in ((-1, 0) if axes == 3 else (0,))
        for dy in (-1, 0, 1)
        if (dz, dy) < (0, 0) and abs(dz) + abs(dy) <= connectivity
    ]
    return np.array(rows, np.int64).reshape(-1, 3)


@njit(cache=True, nogil=True)
def _root(parents: NDArray[np.int32], label: int) -> int:  # pragma: no cover - compiled
    while parents[label] != label:
        parents[label] = parents[parents[label]]
        label = parents[label]
    return label


@njit(cache=True, nogil=True)
def component_tables(
    ids: NDArray[np.int32], earlier: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:  # pragma: no cover - compiled
    """`connected_components` of an int32 volume and `earlier_rows`, for use in kernels too.

    Union-find over runs of equal pixels: a run takes the component of the first run of its label that it touches in an
    earlier row, and unites all further ones with it. The smaller root always wins.
    """
    depth, height, width = ids.shape
    components = np.zeros(ids.shape, np.int32)
    parents = np.empty(ids.size + 1, np.int32)  # memory is used only as far as it is written
    highest = 0
    for z in range(depth):
        for y in range(height):
            row = ids[z, y]
            x = 0
            while x < width:
                label = row[x]
                start = x
                x += 1
                while x < width and row[x] == label:
                    x += 1
                if label == 0:
                    continue
                if label < 0:
                    components[z, y, start:x] = -1
                    continue
                mine = 0
                for k in range(len(earlier)):
                    other_z, other_y, reach = z + earlier[k, 0], y + earlier[k, 1], earlier[k, 2]
                    if other_z < 0 or other_y < 0 or other_y >= height:
                        continue
                    other = ids[other_z, other_y]
                    known = 0
                    for i in range(max(start - reach, 0), min(x + reach, width)):
                        if other[i] != label:
                            known = 0
                        elif known == 0:
                            known = components[other_z, other_y, i]
                            if mine == 0:
                                mine = known
                            elif mine != known:
                                first, second = _root(parents, mine), _root(parents, known)
                                mine = min(first, second)
                                parents[max(first, second)] = mine
                if mine == 0:
                    highest += 1
                    mine = highest
                    parents[mine] = mine
                components[z, y, start:x] = mine
    number = 0
    final = np.zeros(highest + 1, np.int32)
    for label in range(1, highest + 1):
        if parents[label] == label:
            number += 1
            final[label] = number
        else:
            final[label] = final[parents[label]]  # parents come before their children
    owners = np.zeros(number, np.int32)
    flat, labels = components.ravel(), ids.ravel()
    for i in range(len(flat)):
        if flat[i] > 0:
            flat[i] = final[flat[i]]
            owners[flat[i] - 1] = labels[i]
    return components, owners


# -- measures ----------------------------------------------------------------------------------------------------------


def label_areas(ids: NDArray[Any], count: int) -> NDArray[np.int64]:
    """(N,) number of pixels of the labels 1..`count` in a map (H, W) or (Z, H, W); others are passed over."""
    return _extents(_volume(ids), count)[0]


def label_boxes(ids: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Tight boxes of the labels 1..`count` in pixels, the far edges exclusive.

    Args:
        ids: (H, W) or (Z, H, W).
        count: N; labels above it are passed over.

    Returns:
        (N, 4) x0, y0, x1, y1, or (N, 6) x0, y0, z0, x1, y1, z1; zeros for a label that does not occur.
    """
    boxes = _extents(_volume(ids), count)[1]
    return boxes if np.ndim(ids) == 3 else np.ascontiguousarray(boxes[:, [0, 1, 3, 4]])


def label_measures(ids: NDArray[Any], count: int, image: NDArray[Any] | None = None) -> dict[str, NDArray[Any]]:
    """Columns of a table of object measures, one row for each label 1..`count`.

    Args:
        ids: (H, W) or (Z, H, W).
        count: N; labels above it are passed over.
        image: (H, W, C) or (Z, H, W, C) to measure the intensity in, any number type.

    Returns:
        ``area`` in pixels; ``centroid_y``, ``centroid_x`` (and ``centroid_z``) in pixel indices, so that the middle of
        the first pixel is 0 as in scikit-image; the box ``x0``, ``y0``, ``x1``, ``y1`` (``z0``, ``z1``) of
        `label_boxes`; and with an image ``mean_intensity_0`` and so on, one for each channel. Centroid and intensity
        of a label that does not occur are not-a-number.

    Raises:
        InputError: The image has another size than the label map.
    """
    volume = _volume(ids)
    is_volume = np.ndim(ids) == 3
    areas, boxes, sums = _extents(volume, count)
    columns: dict[str, NDArray[Any]] = {"area": areas}
    with np.errstate(invalid="ignore"):
        for axis, name in ((2, "z"), (1, "y"), (0, "x")):
            if name != "z" or is_volume:
                columns[f"centroid_{name}"] = sums[:, axis] / areas
    for column, name in enumerate(("x0", "y0", "z0", "x1", "y1", "z1")):
        if name[0] != "z" or is_volume:
            columns[name] = boxes[:, column]
    if image is not None:
        image = np.asarray(image)
        if image.shape[:-1] != np.shape(ids):
            raise InputError(f"the image has shape {image.shape}, expected {(*np.shape(ids), 'C')} as the label map")
        if image.dtype.kind not in "iuf":
            image = image.astype(np.float64)
        totals = _intensity_sums(volume.ravel(), count, image.reshape(-1, image.shape[-1]))
        with np.errstate(invalid="ignore"):
            for channel in range(image.shape[-1]):
                columns[f"mean_intensity_{channel}"] = totals[:, channel] / areas
    return columns


@njit(cache=True, nogil=True)
def _extents(
    ids: NDArray[np.int32], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:  # pragma: no cover - compiled
    """Areas (N,), boxes (N, 6) x0 y0 z0 x1 y1 z1, and coordinate sums (N, 3) x y z."""
    depth, height, width = ids.shape
    areas = np.zeros(count, np.int64)
    boxes = np.zeros((count, 6), np.int64)
    sums = np.zeros((count, 3), np.float64)
    for z in range(depth):
        for y in range(height):
            row = ids[z, y]
            x = 0
            while x < width:
                label = row[x]
                start = x
                x += 1
                while x < width and row[x] == label:
                    x += 1
                if label <= 0 or label > count:
                    continue
                n = label - 1
                if areas[n] == 0:
                    boxes[n, 0], boxes[n, 1], boxes[n, 2] = start, y, z
                length = x - start
                areas[n] += length
                boxes[n, 0] = min(boxes[n, 0], start)
                boxes[n, 1] = min(boxes[n, 1], y)
                boxes[n, 3] = max(boxes[n, 3], x)
                boxes[n, 4] = max(boxes[n, 4], y + 1)
                boxes[n, 5] = z + 1
                sums[n, 0] += 0.5 * length * (start + x - 1)
                sums[n, 1] += length * y
                sums[n, 2] += length * z
    return areas, boxes, sums


@njit(cache=True, nogil=True)
def _intensity_sums(
    ids: NDArray[np.int32], count: int, image: NDArray[Any]
) -> NDArray[np.float64]:  # pragma: no cover - compiled
    sums = np.zeros((count, image.shape[1]), np.float64)
    for i in range(len(ids)):
        if 0 < ids[i] <= count:
            for channel in range(image.shape[1]):
                sums[ids[i] - 1, channel] += image[i, channel]
    return sums


# -- boundaries --------------------------------------------------------------------------------------------------------


def label_boundaries(ids: NDArray[Any], thickness: int = 1) -> NDArray[np.bool_]:
    """The pixels of objects along their edges, so that an overlay shows touching objects apart.

    Args:
        ids: (H, W) or (Z, H, W). Pixels of a label above 0 next to (sharing an edge with) another value are boundary.
            The border of the image is none.
        thickness: How many pixels the boundary reaches into the object, at least 1.

    Returns:
        bool, same shape. Thickness 1 equals `skimage.segmentation.find_boundaries` with ``mode="inner"`` and
        ``connectivity=1``.

    Raises:
        InputError: The thickness is less than 1.
    """
    if thickness < 1:
        raise InputError(f"thickness: got {thickness}, expected 1 pixel or more")
    ids = np.asarray(ids)
    boundary = np.zeros(ids.shape, bool)
    for axis in range(ids.ndim):
        there, here = _shifted(ids.ndim, axis)
        differs = ids[there] != ids[here]
        boundary[there] |= differs
        boundary[here] |= differs
    inside = ids > 0
    boundary &= inside
    for _ in range(thickness - 1):
        # Growing may step into a touching object only where that one has its own boundary already.
        thinner = boundary.copy()
        for axis in range(ids.ndim):
            there, here = _shifted(ids.ndim, axis)
            boundary[there] |= thinner[here]
            boundary[here] |= thinner[there]
        boundary &= inside
    return boundary


def _shifted(axes: int, axis: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Indices of all pixels but the first, and of all but the last, along `axis`."""
    everything = [slice(None)] * axes
    return (
        (*everything[:axis], slice(1, None), *everything[axis + 1 :]),
        (*everything[:axis], slice(None, -1), *everything[axis + 1 :]),
    )
