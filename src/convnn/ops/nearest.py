"""The exact search in tiles: the k best keys of every query, with no more than a few megabytes of scores at a time."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .vmap import register_loop

# Scores held at a time: on a CPU, what two cores' caches hold; elsewhere enough to fill the device.
_TILE_ELEMENTS = 1 << 19
_TILE_ELEMENTS_ON_DEVICE = 1 << 26
_MOST_KEYS = 1 << 13
# From this width on, the best of the groups' maxima are found first; it costs less than one pass of topk.
_WIDE, _GROUP = 512, 8


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
    # A key infinitely far has the score -inf, which <query, key> + bias may give as nan.
    far = None if bias is None else bias.isneginf()
    far = far if far is not None and bool(far.any()) else None
    batch, queries, keys = query.shape[0], query.shape[1], key.shape[1]
    index = torch.empty(batch, queries, k, dtype=torch.int64, device=query.device)
    width = min(keys, _MOST_KEYS)
    budget = _TILE_ELEMENTS if query.device.type == "cpu" else _TILE_ELEMENTS_ON_DEVICE
    height = max(1, budget // max(width, 1))
    for b in range(batch):
        for top in range(0, queries, height):
            rows = slice(top, min(top + height, queries))
            tile = _Tile(
                query[b, rows],
                key[b],
                None if bias is None else bias[b],
                None if far is None else far[b],
                None if masked is None else masked[b],
                None if own is None else own[rows],
            )
            index[b, rows] = tile.best_stable(k, width) if stable else tile.best(k, width)[1]
    return index


@nearest.register_fake
def _(
    query: Tensor, key: Tensor, bias: Tensor | None, masked: Tensor | None, own: Tensor | None, k: int, stable: bool
) -> Tensor:
    return torch.empty(query.shape[0], query.shape[1], k, dtype=torch.int64, device=query.device)


register_loop(nearest)


class _Tile(NamedTuple):
    """Some queries of one sample against all its keys."""

    query: Tensor
    key: Tensor
    bias: Tensor | None
    far: Tensor | None
    masked: Tensor | None
    own: Tensor | None

    def best(self, k: int, width: int) -> tuple[Tensor, Tensor]:
        """Return scores and indices ``(n, k)`` of the best keys, taking ``width`` keys at a time and merging."""
        values, index = self._best_of(0, width, k)
        for start in range(width, self.key.shape[0], width):
            more, at = self._best_of(start, width, k)
            values, place = _top(torch.cat([values, more], 1), k)
            index = torch.cat([index, at], 1).gather(1, place)
        return values, index

    def _best_of(self, start: int, width: int, k: int) -> tuple[Tensor, Tensor]:
        scores = self._scores(start, width)
        excluding = self.masked is not None or self.own is not None
        if excluding:
            self._exclude(scores, start)
        values, place = _top(scores, min(k, scores.shape[1]))
        if excluding and bool(values.isneginf().any()):
            # A real score of -inf must still beat an excluded key: raise the real ones, exclude again, search again.
            scores = self._scores(start, width).clamp_(min=torch.finfo(scores.dtype).min)
            self._exclude(scores, start)
            values, place = _top(scores, min(k, scores.shape[1]))
        return values, place + start

    def best_stable(self, k: int, width: int) -> Tensor:
        """Return the indices ``(n, k)`` of the best keys, equal scores lowest index first.

        A product of matrices may round equal columns differently, by where they stand. So some more keys than k are
        taken by it, and compared again pair by pair; rows in which rounding may have hidden a tie with a key beyond
        those are compared with every key.
        """
        count, keys = min(2 * k + 16, self.key.shape[0]), self.key.shape[0]
        values, index = self.best(count, width)
        index = self._by_exact_score(index.sort(dim=1).values, k)
        if count < keys:
            length = self.query.norm(dim=1) * self.key.norm(dim=1).amax()
            reach = 0 if self.bias is None else self.bias.abs().nan_to_num(0, 0, 0).amax()
            rounding = 4 * self.query.shape[1] * torch.finfo(values.dtype).eps * (length + reach)
            unsure = (~(values[:, -1] < values[:, k - 1] - rounding)).nonzero().squeeze(1)
            everything = torch.arange(keys, device=index.device)
            for row in unsure:
                one = self._replace(
                    query=self.query[row : row + 1], own=None if self.own is None else self.own[row : row + 1]
                )
                index[row] = one._by_exact_score(everything.unsqueeze(0), k)[0]
        return index

    def _by_exact_score(self, index: Tensor, k: int) -> Tensor:
        """Order keys ``(n, c)``, given in ascending order, by their scores pair by pair, and return the first k."""
        scores = (self.query.unsqueeze(1) * self.key[index]).sum(-1)
        if self.bias is not None:
            scores = (scores + self.bias[index]).masked_fill(self.bias[index].isneginf(), -torch.inf)
        excluded = torch.zeros_like(index, dtype=torch.bool)
        if self.masked is not None:
            excluded |= self.masked[index]
        if self.own is not None:
            excluded |= index == self.own.unsqueeze(1)
        scores = scores.clamp(min=torch.finfo(scores.dtype).min).masked_fill(excluded, -torch.inf)
        return index.gather(1, scores.sort(dim=1, descending=True, stable=True).indices[:, :k])

    def _scores(self, start: int, width: int) -> Tensor:
        keys = self.key[start : start + width]
        if self.bias is None:
            return torch.mm(self.query, keys.t())
        scores = torch.addmm(self.bias[start : start + width], self.query, keys.t())
        return scores if self.far is None else scores.masked_fill_(self.far[start : start + width], -torch.inf)

    def _exclude(self, scores: Tensor, start: int) -> None:
        if self.masked is not None:
            scores.masked_fill_(self.masked[start : start + scores.shape[1]], -torch.inf)
        if self.own is not None:
            column = self.own - start
            inside = ((column >= 0) & (column < scores.shape[1])).nonzero().squeeze(1)
            scores[inside, column[inside]] = -torch.inf


def _top(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest of each row and their places, descending; nan counts as the largest."""
    if scores.shape[1] < max(_WIDE, 4 * _GROUP * k):
        values, place = scores.topk(k, dim=1)
        return values, place
    return _top_of_groups(scores, k)


def _top_of_groups(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the k best by the maxima of groups: the k best elements lie in the k groups with the largest maxima.

    Group g holds the columns ``g, g + n, g + 2n, ...``, so that the maxima are running maxima of whole rows.
    """
    n = scores.shape[1] // _GROUP
    grouped = scores[:, : n * _GROUP].unflatten(1, (_GROUP, n))
    best = grouped.amax(1).topk(k, dim=1, sorted=False).indices
    pool = grouped.gather(2, best.unsqueeze(1).expand(-1, _GROUP, -1)).flatten(1)
    rest = scores[:, n * _GROUP :]
    values, place = torch.cat([pool, rest], 1).topk(k, dim=1)
    member = torch.div(place, k, rounding_mode="floor")
    index = member * n + best.gather(1, place % k)
    return values, torch.where(member < _GROUP, index, place - _GROUP * k + n * _GROUP)
