"""The search by Euclidean distance: by products where their rounding cannot matter, by differences elsewhere.

With coordinates taken from a centre c, ``s = <q - c, k - c> - |k - c|^2 / 2`` ranks the keys k of a query q as their
distance does: ``|q - k|^2 / 2 = |q - c|^2 / 2 - s``. Computed with unit roundoff u in C channels, s is wrong by at most

    g (|q - c|^2 / 2 + |k - c|^2)        g = n u / (1 - n u),  n = C + 16

whatever the order of summation (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1; the 16 cover the
roundings of q - c and k - c, of the scale of a blend, of the squares and of the last addition). Many channels are
summed in P parts of p, which leaves n = p + P + 15. Added to s, the key's part makes it an upper bound that is still a
product plus a number per key. A query whose k + 1 best bounds are further apart than the error is settled.

Queries that this leaves open are divided into groups that lie together. Each group is ranked around a centre of its
own, among the keys near it: in a group of radius R, around whose centre k keys lie within D, no key further than
2 R + D from that centre is a neighbour. Queries that are still open are ranked in float64, and at last by the
differences ``q - k`` themselves, whose error does not grow with the coordinates.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..euclidean import nearest_euclidean
from ..nearest import fake_search
from ..registry import kernel
from .ranking import Points

# Tokens of which the centre is the median: a few suffice, and a far one does not move it.
_CENTRE_TOKENS = 16
# Groups: so many at most, of so many queries at least, whose squared distance from the group's pivot is such a part of
# that from the common centre. Pivots are chosen from so many queries, and distances judged by so many channels.
_MOST_GROUPS, _QUERIES_OF_A_GROUP, _MUCH_NEARER, _SAMPLE, _GROUPING_CHANNELS = 128, 16, 2.0**-6, 1 << 10, 64
# After the first pivots the search for more is given up unless each has so many of the sample near it.
_FIRST_PIVOTS, _NEAR_A_PIVOT = 16, 3
# Up to so many queries, or numbers to subtract, differences from every key cost less than ranking by products again.
_FEW_QUERIES, _FEW_NUMBERS = 16, 1 << 19
# Listed beyond k: what ties with the k-th key, by duplicates or within the bound, is then ordered by differences.
_MORE = 7
# From so many queries on, ranking a few first costs little beside ranking all in vain.
_MANY_QUERIES = 1 << 10


@kernel(nearest_euclidean, "cpu")
def _(query: Tensor, key: Tensor, factor: Tensor | None, *rest: Any) -> Tensor:
    *options, k, stable = rest
    if not query.shape[0] * query.shape[1] * k:
        return fake_search(query, k)
    integers = factor is None and all(bool((x == x.round()).all()) for x in (query, key))
    points = Points(*(query, key, factor, *options, integers))
    centre = _centre(key)
    if _probably_unsettled(points, centre, k, stable):
        index = fake_search(query, k)
        for sample in range(query.shape[0]):
            part = points.rows(sample, torch.arange(query.shape[1], device=query.device))
            index[sample] = _search_groups(part, centre[sample], k, stable)
        return index
    ranking = points.rank(query.dtype, centre, k + _MORE)
    index = ranking.keys[..., :k].contiguous()
    unsettled = ~ranking.settled(k, stable=stable)
    for sample in unsettled.any(1).nonzero().flatten().tolist():
        rows = unsettled[sample].nonzero().flatten()
        part = points.rows(sample, rows)
        index[sample, rows], settled = ranking.rows(sample, rows).best(part, k, stable=stable)
        left = (~settled).nonzero().flatten()
        if left.numel():
            index[sample, rows[left]] = _search_groups(part.rows(0, left), centre[sample], k, stable)
    return index


def _probably_unsettled(points: Points, centre: Tensor, k: int, stable: bool) -> bool:
    """Return True if products around one centre leave most of a few queries unsettled: ranking all would be in vain."""
    if points.query.shape[1] < _MANY_QUERIES:
        return False
    few = torch.arange(0, points.query.shape[1], _MANY_QUERIES // _FEW_QUERIES, device=points.query.device)
    part = points.rows(0, few)
    _, settled = part.rank(points.query.dtype, centre[:1], k + _MORE).best(part, k, stable=stable)
    return bool(settled.double().mean() < 0.25)


def _search_groups(points: Points, centre: Tensor, k: int, stable: bool) -> Tensor:
    """Return the indices ``(n, k)`` for queries of one sample, each group of them ranked around its own centre."""
    group = _groups(points.query[0] - centre)
    numbers = group.unique().tolist()
    if len(numbers) == 1:
        return _search_group(points, k, stable)
    index = fake_search(points.query, k)[0]
    for number in numbers:
        rows = (group == number).nonzero().flatten()
        # What is in no group may have smaller ones, unless most of it is in none.
        again = number == 0 and 2 * rows.shape[0] <= group.shape[0]
        part = points.rows(0, rows)
        index[rows] = _search_groups(part, centre, k, stable) if again else _search_group(part, k, stable)
    return index


def _search_group(points: Points, k: int, stable: bool) -> Tensor:
    """Return the indices ``(n, k)`` for queries of one sample: by products, in float64 where needed, by differences."""
    index = fake_search(points.query, k)[0]
    unsettled = torch.arange(index.shape[0], device=index.device)
    # Features in float64 have one round, with the longer list.
    for dtype, more in {points.query.dtype: _MORE, torch.float64: k + 16}.items():
        part = points.rows(0, unsettled)
        centre = _centre(part.query)
        kept = part.near(centre, k)
        part = part if kept is None else part.among(kept)
        count, channels = part.query.shape[1:]
        if count <= _FEW_QUERIES or count * channels * part.key.shape[1] <= _FEW_NUMBERS:
            found, settled = part.best_of_all(k, stable), torch.ones_like(unsettled, dtype=torch.bool)
        else:
            found, settled = part.rank(dtype, centre, k + more).best(part, k, stable=stable)
        index[unsettled] = found if kept is None else kept[found]
        unsettled = unsettled[~settled]
        if not unsettled.numel():
            return index
    index[unsettled] = points.rows(0, unsettled).best_of_all(k, stable)
    return index


def _groups(x: Tensor) -> Tensor:
    """Divide ``(n, C)`` into groups: the number of each ``(n,)``, 0 for what is in none."""
    group = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
    x = x[:, :: -(-x.shape[1] // _GROUPING_CHANNELS)].contiguous()
    pivots = _pivots(x[:: -(-x.shape[0] // _SAMPLE)], min(_MOST_GROUPS, x.shape[0] // _QUERIES_OF_A_GROUP))
    if pivots.shape[0]:
        length = x.square().sum(1)  # of which products lose a small part only
        gap, nearest = (x @ pivots.T - pivots.square().sum(1) / 2).max(1)
        group = torch.where(length - 2 * gap <= length * _MUCH_NEARER, nearest + 1, group)
    return group.masked_fill_(group.bincount()[group] < _QUERIES_OF_A_GROUP, 0)


def _pivots(x: Tensor, most: int) -> Tensor:
    """Return up to so many rows of ``(n, C)`` that are far apart: farthest-first traversal (Gonzalez, 1985).

    Rows that are much nearer to a pivot than to the centre, which is zero, are left out; none are returned where few
    are.
    """
    distance = x.square().sum(1)
    near = distance * _MUCH_NEARER
    chosen: list[Tensor] = []
    while len(chosen) < most:
        gap = distance - near
        farthest = gap.argmax()
        if not bool(gap[farthest] > 0):
            break
        chosen.append(farthest)
        distance = torch.minimum(distance, (x - x[farthest]).square().sum(1))
        if len(chosen) == _FIRST_PIVOTS and int((distance <= near).sum()) < _FIRST_PIVOTS * _NEAR_A_PIVOT:
            return x[:0]
    return x[torch.stack(chosen)] if chosen else x[:0]


def _centre(x: Tensor) -> Tensor:
    """Return about the middle of most tokens, ``(B, 1, C)``: the median of a few; 0 where that is not finite."""
    centre = x[:, :: max(x.shape[1] // _CENTRE_TOKENS, 1)].median(dim=1, keepdim=True).values
    return centre.where(centre.isfinite(), 0)
