"""The search by Euclidean distance: by products where their rounding cannot matter, by differences elsewhere.

With coordinates taken from a centre c, ``s = <q - c, k - c> - |k - c|^2 / 2`` ranks the keys k of a query q as their
distance does: ``|q - k|^2 / 2 = |q - c|^2 / 2 - s``. Computed with unit roundoff u in C channels, s is wrong by at most

    g (|q - c|^2 / 2 + |k - c|^2)        g = n u / (1 - n u),  n = C + 16

whatever the order of summation (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1; the 16 cover the
roundings of q - c and k - c, of the scale of a blend, of the squares and of the last addition). Many channels are
summed in P parts of p, which leaves n = p + P + 15. Added to s, the key's part makes it an upper bound that is still a
product plus a number per key. A query whose k + 1 best bounds are further apart than the error is settled. Queries far
from c that lie together are ranked again around a centre of their own: the error of far keys is large, but so is their
distance. What that leaves open is ranked by products in float64, and at last by the differences ``q - k`` themselves,
whose error does not grow with the coordinates.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..euclidean import AXES, nearest_euclidean, plain_nearest_euclidean
from ..nearest import exclude, fake_search
from ..registry import kernel
from ..tiles import cut
from .bags import pair_distances
from .nearest import nearest_scores

# Tokens of which the centre is the median: a few suffice, and a far one does not move it.
_CENTRE_TOKENS = 16
# Channels summed at a time: the fewer, the less is rounded, and the slower is a product.
_CHANNELS = 256
# Groups of queries that get a centre of their own: so many at most, of so many queries at least, whose squared distance
# from it is such a part of that from the common centre, judged by so many channels.
_MOST_GROUPS, _QUERIES_OF_A_GROUP, _MUCH_NEARER, _GROUPING_CHANNELS = 64, 32, 2.0**-6, 64
# Up to so many queries of a sample, differences from every key cost less than ranking by products again.
_FEW_QUERIES = 16
# From so many queries on, ranking a few first costs little beside ranking all in vain.
_MANY_QUERIES = 1 << 10
# Distances held at a time where queries are compared with every key by differences.
_TILE_ELEMENTS = 1 << 20


@kernel(nearest_euclidean, "cpu")
def _(query: Tensor, key: Tensor, factor: Tensor | None, *rest: Any) -> Tensor:
    *options, k, stable = rest
    if not query.shape[0] * query.shape[1] * k:
        return fake_search(query, k)
    integers = factor is None and all(bool((x == x.round()).all()) for x in (query, key))
    points = _Points(*(query, key, factor, *options, integers))
    centre = _centre(key)
    if _probably_unsettled(points, centre, k, stable):
        index = fake_search(query, k)
        for sample in range(query.shape[0]):
            part = points.rows(sample, torch.arange(query.shape[1], device=query.device))
            index[sample] = _search_groups(part, centre[sample : sample + 1], k, stable)
        return index
    ranking = points.rank(query.dtype, centre, k + 1)
    index = ranking.keys[..., :k].contiguous()
    unsettled = ~ranking.settled(k, stable=stable)
    for sample in unsettled.any(1).nonzero().flatten().tolist():
        rows = unsettled[sample].nonzero().flatten()
        part = points.rows(sample, rows)
        if rows.shape[0] > _FEW_QUERIES and not stable:  # among keys that equal the query any choice is right
            different = (~part.coincide(index[sample, rows])).nonzero().flatten()
            rows, part = rows[different], part.rows(0, different)
        if rows.shape[0] > _FEW_QUERIES:
            index[sample, rows] = _search_groups(part, centre[sample : sample + 1], k, stable)
        elif rows.shape[0]:
            index[sample, rows] = part.best_of_all(k, stable)
    return index


def _probably_unsettled(points: _Points, centre: Tensor, k: int, stable: bool) -> bool:
    """Return True if products around one centre leave most of a few queries unsettled: ranking all would be in vain."""
    if points.query.shape[1] < _MANY_QUERIES:
        return False
    few = torch.arange(0, points.query.shape[1], _MANY_QUERIES // _FEW_QUERIES, device=points.query.device)
    part = points.rows(0, few)
    ranking = part.rank(points.query.dtype, centre[:1], k + 1)
    settled = ranking.settled(k, stable=stable)[0]
    if not stable:
        settled |= part.coincide(ranking.keys[0, :, :k])
    return bool(settled.double().mean() < 0.25)


def _search_groups(points: _Points, centre: Tensor, k: int, stable: bool) -> Tensor:
    """Return the indices ``(n, k)`` for queries of one sample, each group of them ranked around its own centre."""
    group = _groups(points.query[0] - centre[0])
    index = fake_search(points.query, k)[0]
    for number in group.unique().tolist():
        rows = (group == number).nonzero().flatten()
        part = points.rows(0, rows)
        index[rows] = _search_group(part, k, stable) if number else _search_float64(part, centre, k, stable)
    return index


def _search_group(points: _Points, k: int, stable: bool) -> Tensor:
    """Return the indices ``(n, k)`` for queries of one sample by products around their own centre."""
    centre = _centre(points.query)
    ranking = points.rank(points.query.dtype, centre, k + 1)
    index = ranking.keys[0, :, :k].contiguous()
    rows = (~ranking.settled(k, stable=stable)[0]).nonzero().flatten()
    if rows.numel():
        index[rows] = _search_float64(points.rows(0, rows), centre, k, stable)
    return index


def _groups(x: Tensor) -> Tensor:
    """Divide ``(n, C)`` into groups: the number of each ``(n,)``, 0 for what is in none.

    Farthest-first traversal (Gonzalez, 1985): a group forms around the point that is farthest from all others.
    """
    x = x[:, :: -(-x.shape[1] // _GROUPING_CHANNELS)]
    distance = x.square().sum(1)
    group, wanted = torch.zeros_like(distance, dtype=torch.int64), distance * _MUCH_NEARER
    for number in range(1, min(_MOST_GROUPS, x.shape[0] // _QUERIES_OF_A_GROUP)):
        farthest = (distance - wanted).argmax()
        if not bool(distance[farthest] > wanted[farthest]):
            break
        other = (x - x[farthest]).square().sum(1)
        group.masked_fill_(other < distance, number)
        distance = torch.minimum(distance, other)
    group.masked_fill_(distance > wanted, 0)
    return group.masked_fill_(group.bincount()[group] < _QUERIES_OF_A_GROUP, 0)


def _search_float64(points: _Points, centre: Tensor, k: int, stable: bool) -> Tensor:
    """Return the indices ``(n, k)`` for queries of one sample by products in float64, then by differences."""
    # One rounding of the given numbers: pairs that are closer may come in any order, unless ties have one.
    tolerance = 0 if stable else torch.finfo(points.query.dtype).eps
    ranking = points.rank(torch.float64, centre, 2 * k + 16)
    index = ranking.keys[0, :, :k].contiguous()
    rows = (~ranking.settled(k, tolerance, stable=stable)[0]).nonzero().flatten()
    if rows.numel():
        index[rows] = _search_listed(points.rows(0, rows), ranking.rows(rows), k, stable)
    return index


def _search_listed(points: _Points, ranking: _Ranking, k: int, stable: bool) -> Tensor:
    """Return the indices ``(n, k)`` for queries of one sample by their differences from the keys that are listed."""
    index, distance = points.best_of(ranking.keys.sort(dim=-1).values, k)
    if ranking.keys.shape[2] == points.key.shape[1]:
        return index
    beyond = ranking.nearest_unlisted()[0]
    settled = distance < beyond if stable else (distance <= beyond) | (distance == 0)
    rows = (~settled).nonzero().flatten()
    if rows.numel():
        index[rows] = points.rows(0, rows).best_of_all(k, stable)
    return index


def _centre(x: Tensor) -> Tensor:
    """Return about the middle of most tokens, ``(B, 1, C)``: the median of a few; 0 where that is not finite."""
    centre = x[:, :: max(x.shape[1] // _CENTRE_TOKENS, 1)].median(dim=1, keepdim=True).values
    return centre.where(centre.isfinite(), 0)


def _square_norm(x: Tensor) -> Tensor:
    """Return the squared norms of rows, with no more roundings than the bound counts."""
    parts = [part.square().sum(-1) for part in x.split(_CHANNELS, -1)]
    return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]


def _unit_roundoff(dtype: torch.dtype) -> float:
    """Return the largest relative error of one operation inside a product of matrices."""
    if dtype == torch.float32 and _float32_is_reduced():
        return 2.0**-8  # products may run in TF32 or bfloat16
    return torch.finfo(dtype).eps / 2


def _float32_is_reduced() -> bool:
    try:
        return torch.get_float32_matmul_precision() != "highest"
    except RuntimeError:  # set backend by backend, which this function refuses to sum up
        return True


class _Points(NamedTuple):
    """What is compared, as the operator takes it, and whether all features are integers."""

    query: Tensor
    key: Tensor
    factor: Tensor | None
    query_position: Tensor | None
    key_position: Tensor | None
    masked: Tensor | None
    skip: Tensor | None
    integers: bool

    def rows(self, sample: int, rows: Tensor) -> _Points:
        """Return some queries ``(n,)`` of one sample."""
        one = slice(sample, sample + 1)
        return _Points(*[cut(x, axes, (one, rows)) for x, axes in zip(self, (*AXES, "-"), strict=True)])

    def rank(self, dtype: torch.dtype, centre: Tensor, count: int) -> _Ranking:
        """Rank all keys by products in ``dtype``, and list the best ``count`` of every query."""
        query = self._from(centre, self.query, self.query_position, dtype)
        key = self._from(centre, self.key, self.key_position, dtype)
        roundoff = _unit_roundoff(dtype)
        parts = max(-(-query.shape[2] // _CHANNELS), 1)
        terms = (min(query.shape[2], _CHANNELS) + parts + 15) * roundoff
        # Where a product may be wrong altogether, nothing is settled by it.
        error = terms / (1 - terms) if terms < 0.25 else torch.inf
        length, key_length = _square_norm(query), _square_norm(key)
        if self.integers and max(length.amax(), key_length.amax()) < 0.25 / roundoff:
            error = 0.0  # every product and every sum is an integer that needs no rounding
        bias = key_length * (min(error, 0.25) - 0.5)
        count = min(count, key.shape[1])
        values, keys = nearest_scores(query, key, bias, self.masked, self.skip, count, channels=_CHANNELS)
        listed = key_length.gather(1, keys.flatten(1)).view(keys.shape)
        slack = error * (length.unsqueeze(-1) + 2 * listed + torch.finfo(dtype).tiny / roundoff)
        return _Ranking(values, keys, slack, length, error)

    def _from(self, centre: Tensor, x: Tensor, position: Tensor | None, dtype: torch.dtype) -> Tensor:
        x = x.to(dtype) - centre.to(dtype)
        if self.factor is None or position is None:
            return x
        return torch.cat([x * self.factor.to(dtype), position.to(dtype).expand(x.shape[0], -1, -1)], 2)

    def coincide(self, index: Tensor) -> Tensor:
        """Return ``(n,)``: whether one sample's queries have the very features of all keys ``(n, k)``."""
        if self.factor is not None:
            return torch.zeros_like(index[:, 0], dtype=torch.bool)
        query, key = self.query.double(), self.key.double()
        same: Tensor = pair_distances(query, key, index[:, -1:].unsqueeze(0))[0, :, 0] == 0
        rows = same.nonzero().flatten()
        same[rows] = (pair_distances(query[:, rows], key, index[rows].unsqueeze(0)) == 0).all(-1)[0]
        return same

    def best_of(self, index: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Compare one sample's queries with keys ``(1, n, c)``, given in ascending order, by differences.

        Returns the k best ``(n, k)`` and the distance of the last of them ``(n,)``.
        """
        distance = pair_distances(self.query.double(), self.key.double(), index)
        if self.factor is not None and self.query_position is not None and self.key_position is not None:
            positions = self.query_position.double().unsqueeze(0), self.key_position.double().unsqueeze(0)
            distance = distance * self.factor.double().square() + pair_distances(*positions, index)
        masked = None if self.masked is None else self.masked[0, index[0]]
        scores = exclude(-distance[0], index[0], masked, self.skip)
        order = scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
        return index[0].gather(1, order), -scores.gather(1, order[:, -1:]).squeeze(1)

    def best_of_all(self, k: int, stable: bool) -> Tensor:
        """Compare one sample's queries with every key by differences: ``(n, k)``."""
        every = torch.arange(self.query.shape[1], device=self.query.device)
        parts = [self.rows(0, rows)[:7] for rows in every.split(max(1, _TILE_ELEMENTS // self.key.shape[1]))]
        return torch.cat([plain_nearest_euclidean(*part, k, stable)[0] for part in parts])


class _Ranking(NamedTuple):
    """The best bounds of every query.

    Attributes:
        values: ``(b, n, c)`` upper bounds of s (less a number per query), descending.
        keys: ``(b, n, c)`` the keys that have them.
        slack: ``(b, n, c)`` how far below its bound s may be, less what a key after it may be above its own.
        length: ``(b, n)`` the squared distances of the queries from the centre.
        error: g.
    """

    values: Tensor
    keys: Tensor
    slack: Tensor
    length: Tensor
    error: float

    def rows(self, rows: Tensor) -> _Ranking:
        """Return the ranking of some queries ``(n,)`` of the one sample."""
        values, keys, slack, length = (x[:, rows] for x in self[:4])
        return _Ranking(values, keys, slack, length, self.error)

    def settled(self, k: int, tolerance: float = 0, *, stable: bool) -> Tensor:
        """Return ``(b, n)``: whether the first k are the nearest k in their order.

        With a ``tolerance``, keys whose distances differ by less than that part of them may change places; with
        ``stable``, equal distances may not.
        """
        before, after = self.values[..., :k], self.values[..., 1 : k + 1]
        slack = self.slack[..., : after.shape[-1]]
        gap = before[..., : after.shape[-1]] - after
        clear = gap > slack if stable else gap >= slack
        if tolerance:
            clear |= slack <= tolerance * self._half_distance(before[..., : after.shape[-1]])
        # A key that is infinitely far, or whose square is too large, cannot be told from one that is excluded.
        most = torch.finfo(self.values.dtype).max / 8
        return clear.all(-1) & (before > -most).all(-1) & (self.length < most)

    def nearest_unlisted(self) -> Tensor:
        """Return ``(b, n)``: no key that is not listed has a smaller squared distance than this."""
        return 2 * self._half_distance(self.values[..., -1:]).squeeze(-1)

    def _half_distance(self, values: Tensor) -> Tensor:
        """Return the least half squared distances that keys of these bounds may have."""
        return (0.5 - self.error) * self.length.unsqueeze(-1) - values
