"""One-to-one assignment of true and predicted objects from the few pairs that overlap, equal to that of all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DENSE = 2**20
"""Entries of a table of objects up to which a dense assignment is quicker than a sparse one."""


def assign(
    truth: NDArray[np.int64], prediction: NDArray[np.int64], iou: NDArray[np.float64], threshold: float
) -> NDArray[np.int64]:
    """Indices of the pairs that are true positives.

    The official program solves one dense assignment of all objects, with the cost -(IoU >= t) - IoU / (2 n) of a pair.
    It prefers more matches to any gain of IoU; among assignments with equally many it takes the highest sum of IoU,
    pairs below the threshold included. The same optimum is found here from the sparse pairs:

    - Above .5 an object has at most one candidate, so all candidates match.
    - Otherwise a candidate both of whose objects have no other candidate is in every largest matching.
    - The rest falls apart into connected components; each that holds a choice is solved by itself.

    Args:
        truth: (P,) numbers of the true objects.
        prediction: (P,) numbers of the predicted objects.
        iou: (P,) their IoU, above 0.
        threshold: t.
    """
    candidate = iou >= threshold
    if threshold > 0.5 or not candidate.any():
        return np.flatnonzero(candidate)
    true_degree = np.bincount(truth[candidate], minlength=int(truth.max()) + 1)
    predicted_degree = np.bincount(prediction[candidate], minlength=int(prediction.max()) + 1)
    certain = candidate & (true_degree[truth] == 1) & (predicted_degree[prediction] == 1)
    if np.array_equal(certain, candidate):
        return np.flatnonzero(certain)
    free = ~np.isin(truth, truth[certain]) & ~np.isin(prediction, prediction[certain])
    chosen = best_pairs(truth, prediction, iou, candidate, np.flatnonzero(free), every=False)
    return np.sort(np.concatenate([np.flatnonzero(certain), chosen[candidate[chosen]]]))


def best_pairs(
    truth: NDArray[np.int64],
    prediction: NDArray[np.int64],
    iou: NDArray[np.float64],
    candidate: NDArray[np.bool_],
    left: NDArray[np.int64],
    *,
    every: bool,
) -> NDArray[np.int64]:
    """Indices of the pairs of the assignment with most candidates and, among those, the highest sum of IoU.

    Args:
        truth: (P,) numbers of the true objects.
        prediction: (P,) numbers of the predicted objects.
        iou: (P,) their IoU, above 0.
        candidate: (P,) pairs that count.
        left: Indices of the pairs to choose from.
        every: Assign pairs also where no candidate is near.
    """
    from scipy.optimize import linear_sum_assignment
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components, min_weight_full_bipartite_matching

    if not len(left):
        return left
    rows = int(truth.max()) + 1
    nodes = rows + int(prediction.max()) + 1
    graph = coo_array((np.ones(len(left)), (truth[left], prediction[left] + rows)), shape=(nodes, nodes))
    component = connected_components(graph, directed=False)[1][truth[left]]
    undecided = np.ones(len(left), bool) if every else np.isin(component, component[candidate[left]])
    left, component = left[undecided], component[undecided]
    order = np.argsort(component, kind="stable")
    left, component = left[order], component[order]
    chosen = []
    for members in np.split(left, np.flatnonzero(np.diff(component)) + 1):
        if len(members) == 1:
            chosen.append(members)
            continue
        rows, row = np.unique(truth[members], return_inverse=True)
        columns, column = np.unique(prediction[members], return_inverse=True)
        gain = candidate[members] + iou[members] / (2 * min(len(rows), len(columns)))
        if len(rows) * len(columns) <= _DENSE:
            table = np.zeros((len(rows), len(columns)))
            table[row, column] = gain
            member = np.full(table.shape, -1)
            member[row, column] = members
            picked = member[linear_sum_assignment(table, maximize=True)]
        else:
            # Each row may also take a column of its own for nothing; a matching that fills the rows always exists.
            own = np.arange(len(rows))
            entries = np.concatenate([1 + gain, np.ones(len(rows))])
            places = (np.concatenate([row, own]), np.concatenate([column, len(columns) + own]))
            table = coo_array((entries, places), shape=(len(rows), len(columns) + len(rows))).tocsr()
            at, taken = min_weight_full_bipartite_matching(table, maximize=True)
            key = row * len(columns) + column
            wanted = at[taken < len(columns)] * len(columns) + taken[taken < len(columns)]
            picked = members[np.isin(key, wanted)]
        chosen.append(picked[picked >= 0])
    return np.concatenate(chosen) if chosen else left[:0]
