"""The exact search in tiles: the k best keys of every query, with no more than a few megabytes of scores at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..nearest import exclude, fake_search, nearest
from ..registry import kernel
from ..tiles import cut
from .product import one_by_one, product
from .topk import network_width, top

# Scores held at a time: what two cores' caches hold.
_TILE_ELEMENTS = 1 << 21
# Keys scored at a time, of which the best are merged.
_MOST_KEYS = 1 << 13
# Up to so many, all scores are read in order faster than the last chosen ones are looked up.
_FEW_KEYS = 64
# Up to this many keys, several samples share a tile.
_NARROW = 256


@kernel(nearest, "cpu")
def _(
    query: Tensor, key: Tensor, bias: Tensor | None, masked: Tensor | None, skip: Tensor | None, k: int, stable: bool
) -> Tensor:
    index = fake_search(query, k)
    if index.numel():
        for where, tile, width in _tiles(query, key, bias, masked, skip, stable=stable):
            index[where] = tile.best_stable(k, width) if stable else tile.best_index(k, width)
    return index


def nearest_scores(
    query: Tensor,
    key: Tensor,
    bias: Tensor | None,
    masked: Tensor | None,
    skip: Tensor | None,
    k: int,
    *,
    channels: int,
) -> tuple[Tensor, Tensor]:
    """Return the scores and the indices, both ``(B, N, k)``, of what ``nearest`` finds; for use inside operators.

    So many ``channels`` are multiplied at a time and their products added up, which rounds less than one long sum.
    """
    values = query.new_empty(query.shape[0], query.shape[1], k)
    index = torch.empty(values.shape, dtype=torch.int64, device=query.device)
    if index.numel():
        for where, tile, width in _tiles(query, key, bias, masked, skip, stable=False):
            values[where], index[where] = tile._replace(channels=channels).best(k, width)
    return values, index


def _tiles(
    query: Tensor, key: Tensor, bias: Tensor | None, masked: Tensor | None, skip: Tensor | None, *, stable: bool
) -> Iterator[tuple[tuple[slice, slice], _Tile, int]]:
    """Divide a search into tiles: the samples and queries of each, the tile, and how many keys to score at a time."""
    # Keys of bias -inf must score -inf, where <query, key> + bias may be NaN.
    infinite = None if bias is None else bias.isneginf()
    infinite = infinite if infinite is not None and bool(infinite.any()) else None
    by_key: list[Any] = [None if x is None else x.unsqueeze(1) for x in (bias, infinite, masked)]
    whole = _Tile(*(query, key, *by_key, skip))
    batch, queries, keys = query.shape[0], query.shape[1], key.shape[1]
    width = min(keys, _MOST_KEYS)
    height = min(max(1, _TILE_ELEMENTS // width), queries)
    step = max(1, _TILE_ELEMENTS // (width * height)) if keys <= _NARROW and not stable else 1
    for start, first in itertools.product(range(0, batch, step), range(0, queries, height)):
        where = slice(start, start + step), slice(first, first + height)
        yield where, _Tile(*[cut(x, axes, where) for x, axes in zip(whole, _AXES, strict=True)]), width


def _products(x: Tensor, y: Tensor) -> Tensor:
    """Multiply ``(b, n, C)`` and ``(b, m, C)`` to ``(b, n, m)``."""
    if x.shape[0] == 1:
        return product(x[0], y[0]).unsqueeze(0)
    return torch.stack(_each(x, y)) if one_by_one(x, y) else torch.bmm(x, y.transpose(1, 2))


def _products_by_keys(query: Tensor, key: Tensor) -> Tensor:
    """Multiply as ``_products``, with the result stored as ``(m, b, n)``: all scores of one key together."""
    if one_by_one(key, query):
        return torch.stack(_each(key, query), dim=1).permute(1, 2, 0)
    return torch.bmm(key, query.transpose(1, 2)).transpose(0, 1).contiguous().permute(1, 2, 0)


def _each(x: Tensor, y: Tensor) -> list[Tensor]:
    return [product(*pair) for pair in zip(x, y, strict=True)]


def _at(scores: Tensor, index: Tensor) -> Tensor:
    """Return the scores ``(b, n, m)`` at indices ``(b, n, 1)``."""
    # Along the first axis: torch gathers a few along the last one by one, slowly.
    return scores.permute(2, 0, 1).gather(0, index.permute(2, 0, 1))


_AXES = ("bn", "b", "b", "b", "b", "n", "-")  # of the fields of a tile, as ``cut`` takes them


class _Tile(NamedTuple):
    """Queries ``(b, n, C)`` and all keys ``(b, M, C)`` of their samples; skip ``(n,)``, the rest ``(b, 1, M)``.

    ``channels``: how many are summed at a time; None for all.
    """

    query: Tensor
    key: Tensor
    bias: Tensor | None
    infinite: Tensor | None
    masked: Tensor | None
    skip: Tensor | None
    channels: int | None = None

    def best(self, k: int, width: int) -> tuple[Tensor, Tensor]:
        """Return scores and indices ``(b, n, k)`` of the best keys, scoring ``width`` keys at a time and merging."""
        scores, index = self._best_of(slice(0, width), k)
        values = scores.gather(2, index)
        for start in range(width, self.key.shape[1], width):
            scores, at = self._best_of(slice(start, start + width), k)
            values = torch.cat([values, scores.gather(2, at)], 2)
            kept = top(values, k)
            values, index = values.gather(2, kept), torch.cat([index, at + start], 2).gather(2, kept)
        return values, index

    def best_index(self, k: int, width: int) -> Tensor:
        """Return the indices alone."""
        return self._best_of(slice(0, width), k)[1] if width >= self.key.shape[1] else self.best(k, width)[1]

    def _best_of(self, keys: slice, k: int) -> tuple[Tensor, Tensor]:
        """Return the scores ``(b, n, m)`` of some keys and the indices ``(b, n, k)`` of the best among them."""
        scores = self._scores(keys, k)
        excluding = self.masked is not None or self.skip is not None
        finite = excluding and scores.shape[2] <= _FEW_KEYS and bool(scores.amin() > -torch.inf)
        if excluding:
            self._exclude(scores, keys)
        index = top(scores, min(k, scores.shape[2]))
        if excluding and not finite and bool(_at(scores, index[..., -1:]).isneginf().any()):
            # A real score of -inf must still beat an excluded key: raise the real ones, exclude again, search again.
            scores = self._scores(keys, k).clamp_(min=torch.finfo(scores.dtype).min)
            self._exclude(scores, keys)
            index = top(scores, min(k, scores.shape[2]))
        return scores, index

    def _scores(self, keys: slice, k: int) -> Tensor:
        key = self.key[:, keys]
        by_keys = network_width(key, self.query[..., 0].numel(), key.shape[1], k) is not None
        multiply = _products_by_keys if by_keys else _products
        channels = self.channels or max(key.shape[2], 1)
        parts = map(multiply, self.query.split(channels, 2), key.split(channels, 2))
        scores = next(parts)
        for part in parts:
            scores.add_(part)
        if self.bias is not None:
            scores.add_(self.bias[..., keys])
        return scores if self.infinite is None else scores.masked_fill_(self.infinite[..., keys], -torch.inf)

    def _exclude(self, scores: Tensor, keys: slice) -> None:
        if self.masked is not None:
            scores.masked_fill_(self.masked[..., keys], -torch.inf)
        if self.skip is not None:
            column = self.skip - keys.start
            inside = ((column >= 0) & (column < scores.shape[2])).nonzero().squeeze(1)
            scores[:, inside, column[inside]] = -torch.inf

    def best_stable(self, k: int, width: int) -> Tensor:
        """Return the indices ``(1, n, k)`` of the best keys, equal scores lowest index first.

        A product of matrices may round equal columns differently, by their position. So some more keys than k are
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
            maybe_tied = (~(values[..., -1] < values[..., k - 1] - rounding))[0].nonzero().squeeze(1)
            everything = torch.arange(keys, device=index.device).view(1, 1, keys)
            for row in maybe_tied.tolist():
                skip = None if self.skip is None else self.skip[row : row + 1]
                alone = self._replace(query=self.query[:, row : row + 1], skip=skip)
                index[0, row] = alone._by_exact_score(everything, k)
        return index

    def _by_exact_score(self, index: Tensor, k: int) -> Tensor:
        """Order keys ``(1, n, c)``, given in ascending order, by their scores pair by pair, and return the first k."""
        at = index[0]
        scores = (self.query[0].unsqueeze(1) * self.key[0, at]).sum(-1)
        if self.bias is not None:
            bias = self.bias[0, 0, at]
            scores = (scores + bias).masked_fill(bias.isneginf(), -torch.inf)
        scores = exclude(scores, at, None if self.masked is None else self.masked[0, 0, at], self.skip)
        return at.gather(1, scores.sort(dim=1, descending=True, stable=True).indices[:, :k]).unsqueeze(0)
