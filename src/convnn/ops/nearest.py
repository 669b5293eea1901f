"""The exact search in tiles: the k best keys of every query, with no more than a few megabytes of scores at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .product import one_by_one, product
from .top import network_width, top
from .transforms import loop

# Scores held at a time: on a CPU, what two cores' caches hold; elsewhere enough to fill the device.
_TILE_ELEMENTS = 1 << 21
_TILE_ELEMENTS_ON_DEVICE = 1 << 26
_MOST_KEYS = 1 << 13
# Up to so many, all scores are read in order faster than the last chosen ones are looked up.
_FEW_KEYS = 64
# Up to this many keys, several samples share a tile.
_NARROW = 256


@torch.library.custom_op("convnn::nearest", mutates_args=())
def nearest(
    query: Tensor, key: Tensor, bias: Tensor | None, masked: Tensor | None, own: Tensor | None, k: int, stable: bool
) -> Tensor:
    """Find the k keys with the largest ``<query, key> + bias`` of every query.

    Args:
        query: ``(B, N, C)``.
        key: ``(B, M, C)``.
        bias: ``(B, M)`` or None.
        masked: ``(B, M)`` boolean, True for keys that may not be chosen, or None.
        own: ``(N,)``, a key per query that may not be chosen (-1: none), or None.
        k: how many.
        stable: whether equal scores are taken lowest index first.

    Returns:
        ``(B, N, k)`` int64, by descending score.
    """
    index = torch.empty(query.shape[0], query.shape[1], k, dtype=torch.int64, device=query.device)
    if index.numel():
        for where, tile, width in _tiles(query, key, bias, masked, own, stable=stable):
            index[where] = tile.best_stable(k, width) if stable else tile.best_index(k, width)
    return index


def nearest_scores(
    query: Tensor, key: Tensor, bias: Tensor | None, masked: Tensor | None, own: Tensor | None, k: int
) -> tuple[Tensor, Tensor]:
    """Return the scores and the indices, both ``(B, N, k)``, of what ``nearest`` finds; for use inside operators."""
    values = query.new_empty(query.shape[0], query.shape[1], k)
    index = torch.empty(values.shape, dtype=torch.int64, device=query.device)
    if index.numel():
        for where, tile, width in _tiles(query, key, bias, masked, own, stable=False):
            values[where], index[where] = tile.best(k, width)
    return values, index


def _tiles(
    query: Tensor, key: Tensor, bias: Tensor | None, masked: Tensor | None, own: Tensor | None, *, stable: bool
) -> Iterator[tuple[tuple[slice, slice], _Tile, int]]:
    """Divide a search into tiles: the samples and queries of each, the tile, and how many keys to score at a time."""
    # A key infinitely far has the score -inf, which <query, key> + bias may give as nan.
    far = None if bias is None else bias.isneginf()
    far = far if far is not None and bool(far.any()) else None
    batch, queries, keys = query.shape[0], query.shape[1], key.shape[1]
    width = min(keys, _MOST_KEYS)
    budget = _TILE_ELEMENTS if query.device.type == "cpu" else _TILE_ELEMENTS_ON_DEVICE
    height = min(max(1, budget // width), queries)
    step = max(1, budget // (width * height)) if keys <= _NARROW and not stable else 1
    for start in range(0, batch, step):
        some = slice(start, start + step)
        for first in range(0, queries, height):
            rows = slice(first, first + height)
            tile = _Tile(
                query[some, rows],
                key[some],
                None if bias is None else bias[some].unsqueeze(1),
                None if far is None else far[some].unsqueeze(1),
                None if masked is None else masked[some].unsqueeze(1),
                None if own is None else own[rows],
            )
            yield (some, rows), tile, width


@nearest.register_fake
def _(
    query: Tensor, key: Tensor, bias: Tensor | None, masked: Tensor | None, own: Tensor | None, k: int, stable: bool
) -> Tensor:
    return torch.empty(query.shape[0], query.shape[1], k, dtype=torch.int64, device=query.device)


nearest.register_vmap(loop(nearest))


def _products(x: Tensor, y: Tensor) -> Tensor:
    """Multiply ``(b, n, C)`` and ``(b, m, C)`` to ``(b, n, m)``."""
    if x.shape[0] == 1:
        return product(x[0], y[0]).unsqueeze(0)
    return torch.stack(_each(x, y)) if one_by_one(x, y) else torch.bmm(x, y.transpose(1, 2))


def _products_by_keys(query: Tensor, key: Tensor) -> Tensor:
    """Multiply as ``_products``; in memory ``(m, b, n)``, the scores of all queries with one key together."""
    if one_by_one(key, query):
        return torch.stack(_each(key, query), dim=1).permute(1, 2, 0)
    return torch.bmm(key, query.transpose(1, 2)).transpose(0, 1).contiguous().permute(1, 2, 0)


def _each(x: Tensor, y: Tensor) -> list[Tensor]:
    return [product(*pair) for pair in zip(x, y, strict=True)]


def _at(scores: Tensor, place: Tensor) -> Tensor:
    """Return the scores ``(b, n, m)`` at places ``(b, n, 1)``."""
    # Along the first axis: torch gathers a few along the last one by one, slowly.
    return scores.permute(2, 0, 1).gather(0, place.permute(2, 0, 1))


class _Tile(NamedTuple):
    """Queries ``(b, n, C)`` against all keys ``(b, M, C)`` of their samples; the rest ``(b, 1, M)``, own ``(n,)``."""

    query: Tensor
    key: Tensor
    bias: Tensor | None
    far: Tensor | None
    masked: Tensor | None
    own: Tensor | None

    def best(self, k: int, width: int) -> tuple[Tensor, Tensor]:
        """Return scores and indices ``(b, n, k)`` of the best keys, taking ``width`` keys at a time and merging."""
        scores, index = self._best_of(slice(0, width), k)
        values = scores.gather(2, index)
        for start in range(width, self.key.shape[1], width):
            scores, at = self._best_of(slice(start, start + width), k)
            values = torch.cat([values, scores.gather(2, at)], 2)
            place = top(values, k)
            values, index = values.gather(2, place), torch.cat([index, at + start], 2).gather(2, place)
        return values, index

    def best_index(self, k: int, width: int) -> Tensor:
        """Return the indices alone."""
        return self._best_of(slice(0, width), k)[1] if width >= self.key.shape[1] else self.best(k, width)[1]

    def _best_of(self, keys: slice, k: int) -> tuple[Tensor, Tensor]:
        """Return the scores ``(b, n, m)`` of some keys and the places ``(b, n, k)`` of the best among them."""
        scores = self._scores(keys, k)
        excluding = self.masked is not None or self.own is not None
        finite = excluding and scores.shape[2] <= _FEW_KEYS and bool(scores.amin() > -torch.inf)
        if excluding:
            self._exclude(scores, keys)
        place = top(scores, min(k, scores.shape[2]))
        if excluding and not finite and bool(_at(scores, place[..., -1:]).isneginf().any()):
            # A real score of -inf must still beat an excluded key: raise the real ones, exclude again, search again.
            scores = self._scores(keys, k).clamp_(min=torch.finfo(scores.dtype).min)
            self._exclude(scores, keys)
            place = top(scores, min(k, scores.shape[2]))
        return scores, place

    def _scores(self, keys: slice, k: int) -> Tensor:
        key = self.key[:, keys]
        by_keys = network_width(key, self.query[..., 0].numel(), key.shape[1], k) is not None
        scores = (_products_by_keys if by_keys else _products)(self.query, key)
        if self.bias is not None:
            scores.add_(self.bias[..., keys])
        return scores if self.far is None else scores.masked_fill_(self.far[..., keys], -torch.inf)

    def _exclude(self, scores: Tensor, keys: slice) -> None:
        if self.masked is not None:
            scores.masked_fill_(self.masked[..., keys], -torch.inf)
        if self.own is not None:
            column = self.own - keys.start
            inside = ((column >= 0) & (column < scores.shape[2])).nonzero().squeeze(1)
            scores[:, inside, column[inside]] = -torch.inf

    def best_stable(self, k: int, width: int) -> Tensor:
        """Return the indices ``(1, n, k)`` of the best keys, equal scores lowest index first.

        A product of matrices may round equal columns differently, by where they stand. So some more keys than k are
        taken by it, and compared again pair by pair; rows in which rounding may have hidden a tie with a key beyond
        those are compared with every key.
        """
        keys = self.key.shape[1]
        count = min(2 * k + 16, keys)
        values, index = self.best(count, width)
        index = self._by_exact_score(index.sort(dim=2).values, k)
        if count < keys:
            length = self.query.norm(dim=2) * self.key.norm(dim=2).amax()
            reach = 0 if self.bias is None else self.bias.abs().nan_to_num(0, 0, 0).amax()
            rounding = 4 * self.query.shape[2] * torch.finfo(values.dtype).eps * (length + reach)
            unsure = (~(values[..., -1] < values[..., k - 1] - rounding))[0].nonzero().squeeze(1)
            everything = torch.arange(keys, device=index.device).view(1, 1, keys)
            for row in unsure.tolist():
                own = None if self.own is None else self.own[row : row + 1]
                index[0, row] = self._replace(query=self.query[:, row : row + 1], own=own)._by_exact_score(
                    everything, k
                )
        return index

    def _by_exact_score(self, index: Tensor, k: int) -> Tensor:
        """Order keys ``(1, n, c)``, given in ascending order, by their scores pair by pair, and return the first k."""
        at = index[0]
        scores = (self.query[0].unsqueeze(1) * self.key[0, at]).sum(-1)
        if self.bias is not None:
            bias = self.bias[0, 0, at]
            scores = (scores + bias).masked_fill(bias.isneginf(), -torch.inf)
        scores = exclude(scores, at, None if self.masked is None else self.masked[0], self.own)
        return at.gather(1, scores.sort(dim=1, descending=True, stable=True).indices[:, :k]).unsqueeze(0)


def exclude(scores: Tensor, at: Tensor, masked: Tensor | None, own: Tensor | None) -> Tensor:
    """Put keys that may not be chosen below all others: scores ``(n, c)`` of the keys ``at`` ``(n or 1, c)``.

    ``masked`` ``(1, M)`` and ``own`` ``(n,)`` are those of one sample. The lowest value is kept for the excluded alone:
    a real score of -inf is raised to the least finite one first.
    """
    if masked is None and own is None:
        return scores
    scores = scores.clamp(min=torch.finfo(scores.dtype).min)
    if masked is not None:
        scores = scores.masked_fill(masked[0, at], -torch.inf)
    return scores if own is None else scores.masked_fill(at == own.unsqueeze(1), -torch.inf)
