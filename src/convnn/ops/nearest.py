"""The exact search: the k keys with the largest inner product plus a number per key (maximum inner-product search).

nearest   I[b,n] = the k candidates j with the largest <query[b,n], key[b,j]> + bias[b,j]
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .registry import define
from .tiles import in_tiles


def plain_nearest(
    query: Tensor, key: Tensor, bias: Tensor | None, masked: Tensor | None, skip: Tensor | None, k: int, stable: bool
) -> Tensor:
    """Find the k keys with the largest ``<query, key> + bias`` of every query.

    Args:
        query: ``(B, N, C)``.
        key: ``(B, M, C)``.
        bias: ``(B, M)`` or None.
        masked: ``(B, M)`` boolean, True for keys that may not be chosen, or None.
        skip: ``(N,)``, one more key per query that may not be chosen (-1: none), or None.
        k: how many.
        stable: whether equal scores are taken lowest index first.

    Returns:
        ``(B, N, k)`` int64, by descending score; a NaN score counts as the largest.
    """
    # If ties count, pair by pair: a matrix product may round equal columns differently, depending on their position.
    scores = (query.unsqueeze(2) * key.unsqueeze(1)).sum(-1) if stable else query @ key.transpose(1, 2)
    if bias is not None:
        bias = bias.unsqueeze(1)
        # A key of bias -inf must score -inf, where <query, key> + bias may be NaN.
        scores = (scores + bias).masked_fill(bias.isneginf(), -torch.inf)
    return best(scores, masked, skip, k, stable)


def best(scores: Tensor, masked: Tensor | None, skip: Tensor | None, k: int, stable: bool) -> Tensor:
    """Return the indices of the k largest scores ``(B, N, M)`` of the keys that may be chosen."""
    index = torch.arange(scores.shape[2], device=scores.device)
    scores = exclude(scores, index, None if masked is None else masked.unsqueeze(1), skip)
    if stable:
        return scores.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    return scores.topk(k, dim=-1).indices


def exclude(scores: Tensor, index: Tensor, masked: Tensor | None, skip: Tensor | None) -> Tensor:
    """Put keys that may not be chosen below all others: scores ``(..., n, c)`` of the keys ``index``.

    ``masked`` and ``index`` broadcast to the scores; ``skip`` ``(n,)`` is a key per query. The lowest value is kept
    for these keys alone: a real score of -inf is raised to the least finite one first.
    """
    if masked is None and skip is None:
        return scores
    scores = scores.clamp(min=torch.finfo(scores.dtype).min)
    if masked is not None:
        scores = scores.masked_fill(masked, -torch.inf)
    return scores if skip is None else scores.masked_fill(index == skip.unsqueeze(1), -torch.inf)


def fake_search(query: Tensor, k: int) -> Tensor:
    """Return an empty result of a search."""
    return torch.empty(query.shape[0], query.shape[1], k, dtype=torch.int64, device=query.device)


nearest = define(
    plain_nearest,
    portable=in_tiles(
        plain_nearest,
        ("bn", "b", "b", "b", "n"),
        lambda query, key, *rest: key.shape[1] * (key.shape[2] if rest[-1] else 1),
    ),
    fake=lambda query, key, bias, masked, skip, k, stable: fake_search(query, k),
    flops=lambda query, key, *_, **__: 2 * math.prod(query) * key[1],
)
