"""What the exact Euclidean search compares, and the ranking of keys by products with a bound on their rounding."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..euclidean import AXES, plain_nearest_euclidean, squared_distances
from ..nearest import exclude
from ..tiles import cut
from .bags import pair_distances
from .nearest import nearest_scores

# Channels summed at a time: the fewer, the less is rounded, and the slower is a product.
_CHANNELS = 256
# Part of the keys that may stay near a group: to copy more of them costs more than their scores.
_MOST_KEPT = 0.75
# Distances held at a time where queries are compared with every key by differences.
_TILE_ELEMENTS = 1 << 20


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


class Points(NamedTuple):
    """What is compared, as the operator takes it, and whether all features are integers."""

    query: Tensor
    key: Tensor
    factor: Tensor | None
    query_position: Tensor | None
    key_position: Tensor | None
    masked: Tensor | None
    skip: Tensor | None
    integers: bool

    def rows(self, sample: int, rows: Tensor) -> Points:
        """Return some queries ``(n,)`` of one sample."""
        one = slice(sample, sample + 1)
        return Points(*[cut(x, axes, (one, rows)) for x, axes in zip(self, (*AXES, "-"), strict=True)])

    def rank(self, dtype: torch.dtype, centre: Tensor, count: int) -> Ranking:
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
        return Ranking(values, keys, slack, length, error)

    def _from(self, centre: Tensor, x: Tensor, position: Tensor | None, dtype: torch.dtype) -> Tensor:
        x = x.to(dtype) - centre.to(dtype)
        if self.factor is None or position is None:
            return x
        return torch.cat([x * self.factor.to(dtype), position.to(dtype).expand(x.shape[0], -1, -1)], 2)

    def near(self, centre: Tensor, k: int) -> Tensor | None:
        """Return the keys of one sample, ascending, that may be among the k nearest of any query; None for all."""
        if self.factor is not None or self.key.shape[1] <= k + 1:
            return None
        distance = squared_distances(centre[0], self.key[0])[0].sqrt()
        allowed = distance if self.masked is None else distance.masked_fill(self.masked[0], torch.inf)
        closest = allowed.kthvalue(k + 1).values  # one more than k: each query may exclude one
        reach = 2 * squared_distances(centre[0], self.query[0]).sqrt().amax() + closest
        # Each of these distances has a relative error below (C + 2) / 2 units of roundoff.
        reach = reach * (1 + 2 * (self.key.shape[2] + 8) * torch.finfo(reach.dtype).eps)
        if not bool((reach > torch.finfo(reach.dtype).tiny ** 0.25) & reach.isfinite()):
            return None  # squares this small have few digits
        kept = (~(distance > reach)).nonzero().flatten()  # NaN is kept
        return kept if kept.shape[0] < _MOST_KEPT * distance.shape[0] else None

    def among(self, kept: Tensor) -> Points:
        """Return the points with some keys alone, which are given in ascending order."""
        skip = self.skip
        if skip is not None:
            at = torch.searchsorted(kept, skip).clamp_(max=kept.shape[0] - 1)
            skip = at.where(kept[at] == skip, -1)
        masked = None if self.masked is None else self.masked[:, kept]
        return self._replace(key=self.key[:, kept], masked=masked, skip=skip)

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


class Ranking(NamedTuple):
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

    def rows(self, sample: int, rows: Tensor) -> Ranking:
        """Return the ranking of some queries ``(n,)`` of one sample."""
        values, keys, slack, length = (x[sample, rows].unsqueeze(0) for x in self[:4])
        return Ranking(values, keys, slack, length, self.error)

    def best(self, points: Points, k: int, *, stable: bool) -> tuple[Tensor, Tensor]:
        """Return the first k keys of one sample's queries ``(n, k)``, and ``(n,)``: whether they are the nearest.

        What the bounds leave open is ordered by differences, where the last key that is listed is far enough.
        """
        # One rounding of the given numbers: pairs that are closer may come in any order, unless ties have one.
        tolerance = 0 if stable else torch.finfo(points.query.dtype).eps
        index, settled = self.keys[0, :, :k].contiguous(), self.settled(k, tolerance, stable=stable)[0]
        everything = self.keys.shape[2] == points.key.shape[1]
        clear = self.values[0, :, k - 1] - self.values[0, :, -1] >= self.slack[0, :, k - 1]
        if not stable and points.factor is None:  # among keys that equal the query any choice is right
            clear |= (points.key[0, index[:, -1]] == points.query[0]).all(-1)
        rows = (~settled & (clear | everything)).nonzero().flatten()
        if rows.numel():
            index[rows], distance = points.rows(0, rows).best_of(self.keys[:, rows].sort(dim=-1).values, k)
            beyond = self.nearest_unlisted()[0, rows]
            settled[rows] = (distance < beyond if stable else (distance <= beyond) | (distance == 0)) | everything
        return index, settled

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
